"""EMMET, PMET, AlphaEdit and batches one after another, against plain loops, float64 and torch.linalg.inv."""

import copy
import math
from collections.abc import Callable, Sequence

import naive_editing as naive
import pytest
import torch
from conftest import tiny, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_editing import at, block, down
from test_rome import TEMPLATES, asked, near, ordinary, search, unmoved, weights, whole, words
from torch import Tensor, nn

from kemem.editing import sequential
from kemem.editing.alphaedit import AlphaEdit, free_directions
from kemem.editing.edit import Edit
from kemem.editing.emmet import EMMET
from kemem.editing.facts import Request
from kemem.editing.memit import MEMIT
from kemem.editing.moments import Moments
from kemem.editing.pmet import PMET, joint_values
from kemem.editing.prompts import Contexts, contexts
from kemem.editing.rome import ROME
from kemem.editing.sequential import in_batches
from kemem.editing.targets import Search
from kemem.errors import BadInput
from kemem.memory import Memories

LAYERS = (1, 2)
SEARCH = Search(steps=3, rate=0.3, clamp=2.0)
causal = pytest.mark.parametrize("family", naive.CAUSAL)
shaped = pytest.mark.parametrize(
    ("family", "square"), [(f, f == "llama") for f in naive.CAUSAL] + [("gpt2", True)]
)
ATTENTION = {"gpt2": "attn", "gptj": "attn", "gpt_neox": "attention"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def deep(family: str, **more) -> nn.Module:
    return tiny(family, layers=4, dtype=torch.float64, **more)


# ---------------------------------------------------------------------- the same, plainly
@torch.no_grad()
def written_(
    model: nn.Module, of: Sequence[Contexts], z: Tensor, layers: Sequence[int],
    solve: Callable[[int, Tensor, Tensor], Tensor], *, share=float, place: Callable = block,
) -> dict[int, Tensor]:  # fmt: skip
    """Sheet 2.6 with another solver, share, and module whose output is to be z; gives the keys, too."""
    keys = {}
    for i, layer in enumerate(layers):
        K = keys[layer] = torch.stack([naive.key(model, c, layer) for c in of], 1)
        H = torch.stack(
            [at(model, place(model, layers[-1]), c.rows[0], c.subjects[0]).double() for c in of], 1
        )
        delta = solve(layer, K, (z.T - H) / share(len(layers) - i))
        stored = down(model, layer).weight
        stored += delta.T if model.config.model_type == "gpt2" else delta
    return keys


def moved(model: nn.Module, before: nn.Module, layer: int) -> Tensor:
    found = (down(model, layer).weight - down(before, layer).weight).detach()
    return found.T if model.config.model_type == "gpt2" else found


def emmet(moments: Moments, weight: float, ridge: float) -> Callable[[int, Tensor, Tensor], Tensor]:
    def solve(layer: int, K: Tensor, R: Tensor) -> Tensor:
        inverse = torch.linalg.inv(weight * moments[layer])
        inner = K.T @ inverse @ K + (ridge if K.shape[1] > 1 else 0.0) * torch.eye(K.shape[1]).double()
        return R @ torch.linalg.inv(inner) @ K.T @ inverse

    return solve


def alphaedit(
    moments: Moments, threshold: float, ridge: float, before: dict[int, Tensor] | None = None
) -> Callable[[int, Tensor, Tensor], Tensor]:
    """The equation as printed, with P and a general solver."""

    def solve(layer: int, K: Tensor, R: Tensor) -> Tensor:
        U, size, _ = torch.linalg.svd(moments[layer])
        P = U[:, size < threshold] @ U[:, size < threshold].T
        old = torch.zeros_like(P) if before is None else before[layer] @ before[layer].T
        A = P @ (K @ K.T + old) + ridge * torch.eye(len(P)).double()
        return torch.linalg.solve(A, P @ K @ R.T).T

    return solve


# ---------------------------------------------------------------------- EMMET
@pytest.mark.parametrize(
    ("family", "layers", "count", "square"),
    [(f, (1, 2), 3, False) for f in naive.CAUSAL]
    + [("gpt2", (2,), 1, True), ("llama", (2,), 1, True), ("gpt2", (2,), 4, False)],
)
def test_emmet_is_its_equation(family, layers, count, square):
    model = deep(family, square=square)
    requests, before, moments, z = asked(count), weights(model), ordinary(model, layers), drawn(count, 12)
    edit = EMMET(layers, 3.0, 0.2)(model, words(), requests, moments, templates=TEMPLATES, targets=z)
    assert unmoved(model, before) and len(edit.deltas) == len(layers)
    other = copy.deepcopy(model)
    written_(other, contexts(words(), requests, TEMPLATES), z, layers, emmet(moments, 3.0, 0.2))
    for layer in layers:
        assert near(whole(edit, model, layer), moved(other, model, layer), family)


@causal
def test_emmet_without_a_ridge_meets_every_target_and_is_rome_for_one(family):
    model = deep(family)
    moments, requests, z = ordinary(model, [2]), asked(4), drawn(4, 12)
    edit = EMMET((2,), ridge=0.0)(model, words(), requests, moments, targets=z)
    with edit.applied(model):
        for c, wanted in zip(contexts(words(), requests), z, strict=True):
            assert near(at(model, block(model, 2), c.rows[0], c.subjects[0]), wanted, family)
    (c,) = contexts(words(), requests[:1])
    lack = z[:1] - at(model, block(model, 2), c.rows[0], c.subjects[0])
    v = at(model, down(model, 2), c.rows[0], c.subjects[0]) + lack
    one = EMMET((2,))(model, words(), requests[:1], moments, targets=z[:1])
    other = ROME(2, key="plain")(model, words(), requests[:1], moments, targets=v)
    assert near(whole(one, model, 2), whole(other, model, 2), family)


@settings(max_examples=3, deadline=None)
@given(st.floats(0.1, 1e4), st.integers(2, 5))
def test_emmet_with_a_ridge_of_1_is_memit(weight, count):
    model = deep("qwen2")
    given_ = model, words(), asked(count), ordinary(model, LAYERS)
    z = drawn(count, 12)
    hard = EMMET(LAYERS, weight, 1.0)(*given_, targets=z)
    soft = MEMIT(LAYERS, weight)(*given_, targets=z)
    for layer in LAYERS:
        assert near(whole(hard, model, layer), whole(soft, model, layer), "qwen2", 1e-6)


# ---------------------------------------------------------------------- PMET
@shaped
def test_pmet_is_its_equation_and_search(family, square):
    model = deep(family, square=square)
    requests, before, moments = asked(3), weights(model), ordinary(model, LAYERS)
    how = Search(steps=4, rate=0.3, clamp=1.0, kl=1.0)
    edit = PMET(LAYERS, 3.0, how)(model, words(), requests, moments, templates=TEMPLATES, batch_size=2)
    assert unmoved(model, before)
    of = contexts(words(), requests, TEMPLATES)
    places = [block(model, 2).get_submodule(ATTENTION.get(family, "self_attn")), down(model, 2)]
    v = []
    for i, c in enumerate(of):
        (_, delta), steps = search(model, c, places, how, easing=True)
        assert edit.notes["passes"][i] == steps
        v.append(at(model, down(model, 2), c.rows[0], c.subjects[0]) + delta)
    assert near(edit.notes["targets"], torch.stack(v), family)
    other = copy.deepcopy(model)

    def solve(layer: int, K: Tensor, R: Tensor) -> Tensor:
        return R @ K.T @ torch.linalg.inv(3.0 * moments[layer] + K @ K.T)

    written_(other, of, torch.stack(v), LAYERS, solve, share=math.sqrt, place=down)
    for layer in LAYERS:
        assert near(whole(edit, model, layer), moved(other, model, layer), family)


@pytest.mark.parametrize("kl", [1.0, 1e-3])
def test_pmet_eases_and_stops_where_the_target_is_the_likeliest(kl):
    """At the last block, where the subject ends the prompt, so that the target can be reached."""
    model = deep("llama")
    of = contexts(words(), [Request(i, "w50 {}", f"w{10 + i}", f"w{30 + i}") for i in range(3)])
    how = Search(steps=12, rate=0.5, clamp=20.0, kl=kl, decay=0.0, stop=1e-3)
    found = joint_values(Memories(model), of, 3, how, batch_size=2)
    places = [block(model, 3).self_attn, down(model, 3)]
    eased = []
    for i, c in enumerate(of):
        (_, delta), steps = search(model, c, places, how, easing=True)
        assert found.passes[i] == steps
        assert near(found.z[i], at(model, down(model, 3), c.rows[0], c.subjects[0]) + delta, "llama", 1e-6)
        (_, usual), usual_steps = search(model, c, places, how)
        eased.append(usual_steps > steps if kl < 1 else not near(delta, usual, "llama", 1e-3))
    assert any(eased)  # the rule was of consequence


# ---------------------------------------------------------------------- AlphaEdit
def median(moments: Moments, layer: int) -> float:
    return torch.linalg.eigvalsh(moments[layer])[10].item() * 1.0001


@shaped
def test_alphaedit_is_its_equation_also_with_earlier_keys(family, square):
    model = deep(family, square=square)
    moments, z, before = ordinary(model, LAYERS), drawn(5, 12), weights(model)
    limit = sum(median(moments, layer) for layer in LAYERS) / 2
    editor, given_ = AlphaEdit(LAYERS, limit, 0.7), {"templates": TEMPLATES}
    first = editor(model, words(), asked(5)[:2], moments, targets=z[:2], **given_)
    other, of = copy.deepcopy(model), contexts(words(), asked(5), TEMPLATES)
    keys = written_(other, of[:2], z[:2], LAYERS, alphaedit(moments, limit, 0.7))
    for layer in LAYERS:
        assert near(whole(first, model, layer), moved(other, model, layer), family)
        assert near(first.notes["keys"][layer].T, keys[layer], family)
    with first.applied(model):
        second = editor(model, words(), asked(5)[2:], moments, targets=z[2:], previous=(first,), **given_)
        alone = editor(model, words(), asked(5)[2:], moments, targets=z[2:], **given_)
    last = copy.deepcopy(other)
    written_(last, of[2:], z[2:], LAYERS, alphaedit(moments, limit, 0.7, keys))
    for layer in LAYERS:
        assert near(whole(second, model, layer), moved(last, other, layer), family)
        assert not near(whole(alone, model, layer), moved(last, other, layer), "olmo", 1e-3)
    assert unmoved(model, before)


def test_alphaedit_moves_nothing_where_ordinary_keys_are():
    model = deep("gpt_neox")
    moments = ordinary(model, [2])
    limit = median(moments, 2)
    edit = AlphaEdit((2,), limit, 0.5)(model, words(), asked(4), moments, targets=drawn(4, 12))
    size, directions = torch.linalg.eigh(moments[2])
    delta = whole(edit, model, 2)
    held, free = directions[:, size >= limit], directions[:, size < limit]
    assert held.shape[1] and free.shape[1] and held.shape[1] + free.shape[1] == 20
    assert (delta @ held).norm() < 1e-12 * delta.norm() and (delta @ free).norm() > 0.99 * delta.norm()


def test_alphaedit_with_every_direction_free_is_a_ridge_regression():
    model = deep("gpt2")
    moments, z = ordinary(model, LAYERS), drawn(3, 12)
    edit = AlphaEdit(LAYERS, 1e9, 2.0)(model, words(), asked(3), moments, targets=z)
    eye = Moments({layer: torch.eye(20, dtype=torch.float64) for layer in LAYERS})
    same = MEMIT(LAYERS, 2.0)(model, words(), asked(3), eye, targets=z)
    for layer in LAYERS:
        assert near(whole(edit, model, layer), whole(same, model, layer), "gpt2")


def test_thresholds_have_two_names_and_directions_are_found_once_for_a_moment():
    moment = torch.diag(torch.tensor([1.0, 0.015, 0.005, 3.0], dtype=torch.float64))
    assert free_directions(moment, "as_released").shape == (4, 2)
    assert free_directions(moment, "as_described").abs().round().tolist() == [[0], [0], [1], [0]]
    assert free_directions(moment).shape == (4, 2) == free_directions(moment, 0.02).shape
    editor, both = AlphaEdit((0,)), [Moments({0: moment}), Moments({0: moment * 2})]
    first = editor._space(both[0], 0)
    assert editor._space(both[0], 0) is first and editor._space(both[1], 0).shape == (4, 1)
    assert editor == AlphaEdit((0,)) and "_free" not in editor.__dataclass_fields__


# ---------------------------------------------------------------------- all of them
EDITORS = (EMMET((1, 2), search=SEARCH), PMET((1, 2), search=SEARCH), AlphaEdit((1, 2), 1e9, search=SEARCH))


@pytest.mark.parametrize("editor", EDITORS)
def test_a_search_without_a_step_changes_nothing(editor):
    model = deep("olmo")
    still = type(editor)(
        (1, 2), search=Search(steps=1), **({"threshold": 1e9} if editor is EDITORS[2] else {})
    )
    given_ = model, words(), asked(3), ordinary(model, LAYERS)
    most = [max(edit(*given_).norms.values()) for edit in (still, editor)]
    assert most[0] < 1e-12 * most[1]


@pytest.mark.parametrize("editor", EDITORS)
def test_the_model_is_as_it_was_after_an_exception_in_the_middle(editor):
    model = deep("gpt2").train()
    before, moments = weights(model), ordinary(model, LAYERS)
    edited = []

    def fails(done: int, count: int, what: str) -> None:
        if what == "layer 1":
            edited.append(not torch.equal(down(model, 1).weight, before["transformer.h.1.mlp.c_proj.weight"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editor(model, words(), asked(3), moments, progress=fails)
    assert edited == [True] and unmoved(model, before) and all(m.training for m in model.modules())


# ---------------------------------------------------------------------- batch after batch
@pytest.mark.parametrize("family", ["olmo", "gpt2"])
@pytest.mark.parametrize("editor", [MEMIT(LAYERS, 3.0, SEARCH), EDITORS[2], ROME(2, SEARCH)])
def test_batches_one_after_another_are_edits_of_the_edited_model(family, editor):
    model = deep(family)
    before, moments, requests = weights(model), ordinary(model, LAYERS), asked(5)
    seen: list[tuple[int, Tensor]] = []

    def after(number: int, now: nn.Module) -> None:
        assert now is model
        seen.append((number, now(input_ids=tokens(1, 7)).logits.detach()))

    edit = in_batches(editor, model, words(), requests, moments, 2, templates=TEMPLATES, after=after)
    assert unmoved(model, before) and [number for number, _ in seen] == [1, 2, 3]
    other, made = copy.deepcopy(model), []
    for i, (_, logits) in enumerate(seen):
        more = {"previous": made} if isinstance(editor, AlphaEdit) else {}
        made.append(editor(other, words(), requests[2 * i : 2 * i + 2], moments, templates=TEMPLATES, **more))
        made[-1].apply_(other)
        assert near(logits, other(input_ids=tokens(1, 7)).logits, family)
    for layer in (2,) if isinstance(editor, ROME) else LAYERS:
        assert near(whole(edit, model, layer), moved(other, model, layer), family)
    assert near(edit.notes["targets"], torch.cat([e.notes["targets"] for e in made]), family)
    if isinstance(editor, AlphaEdit):
        assert near(edit.notes["keys"][2], torch.cat([e.notes["keys"][2] for e in made]), family)
        again = editor(model, words(), asked(6)[5:], moments, previous=(edit,))
        assert near(
            whole(again, model, 2),
            whole(editor(model, words(), asked(6)[5:], moments, previous=made), model, 2), family, 1e-6,
        )  # fmt: skip


def test_one_batch_is_the_editor_itself_and_bits_are_those_of_the_weights():
    model = tiny("llama", layers=4)
    moments, editor = ordinary(model, LAYERS), MEMIT(LAYERS, 3.0, SEARCH)
    once = editor(model, words(), asked(3), moments)
    found = in_batches(editor, model, words(), asked(3), moments, 5)
    assert found.deltas.keys() == once.deltas.keys() and set(found.seconds) == set(once.seconds)
    for name, delta in once.deltas.items():
        assert torch.equal(found.deltas[name], delta) and found.deltas[name].dtype == torch.float32


@pytest.mark.parametrize("where", ["editor", "after"])
def test_batches_leave_the_model_as_it_was_after_an_exception(where):
    model = deep("gptj")
    before, moments, editor = weights(model), ordinary(model, LAYERS), MEMIT(LAYERS, 3.0)
    edited, calls = [], []

    def fails() -> None:
        edited.append(not torch.equal(down(model, 1).weight, before["transformer.h.1.mlp.fc_out.weight"]))
        raise KeyboardInterrupt

    def failing(now: nn.Module, *given_, **more) -> Edit:
        calls.append(len(given_[1]))
        if where == "editor" and len(calls) == 2:
            fails()
        return editor(now, *given_, targets=drawn(calls[-1], 12), **more)

    with pytest.raises(KeyboardInterrupt):
        in_batches(
            failing,
            model,
            words(),
            asked(4),
            moments,
            2,
            after=(lambda *_: fails()) if where == "after" else None,
        )
    assert edited == [True] and unmoved(model, before)


def test_a_fact_may_be_rewritten_in_a_later_batch_but_not_within_one():
    first, second = asked(2)
    later = Request(case_id=9, prompt=first.prompt, subject=first.subject, new="w60")
    model = deep("olmo")
    moments, editor = ordinary(model, LAYERS), MEMIT(LAYERS, 3.0, SEARCH)
    in_batches(editor, model, words(), [first, second, later], moments, 2)

    def never(*_, **__) -> Edit:
        raise AssertionError("a batch was written before all were read")

    with pytest.raises(BadInput, match="two in cases 0 and 9"):
        in_batches(never, model, words(), [second, first, later], moments, 2 + 1)
    with pytest.raises(BadInput, match="two in cases 0 and 9"):
        in_batches(never, model, words(), [second, asked(3)[2], first, later], moments, 2)


def test_what_cannot_be_done_is_refused_in_one_line():
    model = deep("olmo")
    moments = ordinary(model, LAYERS)
    none = Moments({layer: torch.zeros(20, 20, dtype=torch.float64) for layer in LAYERS})
    many = [Request(i, "{} w53", f"w{3 + i} w{4 + i}", "w60") for i in range(21)]
    cases = [
        (lambda: EMMET(LAYERS)(model, words(), asked(1), none), "positive definite"),
        (lambda: EMMET(LAYERS, ridge=0.0)(model, words(), many, moments), "no more requests than"),
        (lambda: EMMET((2, 1)), "layers that ascend"),
        (lambda: EMMET((1,), weight=0.0), "a weight above 0"),
        (lambda: EMMET((1,), ridge=-1.0), "a ridge of 0 or more"),
        (lambda: PMET(()), "layers that ascend"),
        (lambda: PMET((0,))(model, words(), asked(1), ordinary(model, [0])), "highest layer of 1 or more"),
        (lambda: AlphaEdit((1, 1)), "layers that ascend"),
        (lambda: AlphaEdit((1,), "as_told"), "as_released, as_described"),
        (lambda: AlphaEdit((1,), ridge=0.0), "a ridge above 0"),
        (lambda: AlphaEdit(LAYERS, 1e-30)(model, words(), asked(1), moments), "got none, the least is"),
        (lambda: AlphaEdit(LAYERS)(model, words(), asked(1), moments, previous=[Edit({})]), "got no keys"),
        (lambda: in_batches(EDITORS[0], model, words(), asked(1), moments, 0), "batches of 1 request"),
        (lambda: in_batches(EDITORS[0], model, words(), [], moments, 2), "requests to edit; got none"),
        *[
            (lambda e=editor, f=family: e(tiny(f), words(), asked(1), moments), "joins the stream unchanged")
            for editor in EDITORS for family in ("olmo2", "roberta")
        ],
    ]  # fmt: skip
    for call, said in cases:
        with pytest.raises(BadInput) as refused:
            call()
        assert said in str(refused.value) and "\n" not in str(refused.value)


def test_earlier_edits_are_passed_on_without_their_deltas(monkeypatch):
    model = deep("olmo")
    moments = ordinary(model, LAYERS)
    given_: list[tuple[Edit, ...]] = []
    usual = AlphaEdit.__call__

    def watched(self, *rest, previous=(), **more):
        given_.append(tuple(previous))
        return usual(self, *rest, previous=previous, **more)

    monkeypatch.setattr(AlphaEdit, "__call__", watched)
    sequential.in_batches(EDITORS[2], model, words(), asked(3), moments, 1)
    assert [len(edits) for edits in given_] == [0, 1, 2]
    assert all(not e.deltas and e.notes["keys"][1].shape == (1, 20) for edits in given_ for e in edits)
