"""ROME and its variants against the same in plain loops: full sequences, torch's own hooks, torch.linalg.inv."""

import copy
from collections.abc import Sequence
from typing import Any

import naive_editing as naive
import pytest
import torch
from conftest import tiny, tokens
from naive_editing import at, down
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from kemem.editing import rome
from kemem.editing.edit import Edit
from kemem.editing.facts import Request
from kemem.editing.memit import MEMIT
from kemem.editing.moments import Moments, key_moments
from kemem.editing.prompts import Contexts, contexts
from kemem.editing.rome import ROME, r_rome
from kemem.editing.targets import Search, values
from kemem.errors import BadInput

TEMPLATES = ("{}", "w7 w8 {}", "w9 {}")
SEARCH = Search(steps=4, rate=0.3, clamp=2.0)
causal = pytest.mark.parametrize("family", naive.CAUSAL)


# ---------------------------------------------------------------------- what both sides are given
def words() -> PreTrainedTokenizerFast:
    """A word a token: w3 is token 3. Nothing is put before a text."""
    table = {"<s>": 0, "<pad>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, 61)}
    made = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def asked(count: int) -> list[Request]:
    """Requests of different lengths: subjects of 1 or 2 words, targets of 1 to 3."""
    return [
        Request(
            case_id=i,
            prompt="w50 {} w51 w52" if i % 2 else "{} w53",
            subject=f"w{10 + i}" if i % 3 else f"w{10 + i} w{20 + i}",
            new=" ".join(f"w{30 + i + j}" for j in range(1 + i % 3)),
        )
        for i in range(count)
    ]


def ordinary(model: nn.Module, layers: Sequence[int]) -> Moments:
    return key_moments(model, [tokens(9, seed=i).tolist() for i in range(12)], layers)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def unmoved(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(p, before[name]) and p.requires_grad for name, p in model.named_parameters()
    ) and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def whole(edit: Edit, model: nn.Module, layer: int) -> Tensor:
    """The delta [D M] of a layer, by the names of the model and not of the edit."""
    path = next(name for name, m in model.named_modules() if m is down(model, layer))
    delta = edit.deltas[f"{path}.weight"]
    return delta.T if model.config.model_type == "gpt2" else delta


def near(found: Tensor, wanted: Tensor, family: str, usual: float = 1e-9) -> bool:
    error = (found.double() - wanted.double()).abs().max() / wanted.abs().max()
    return error.item() < max(usual, 1e-4 if family == "gptj" else 0)


# ---------------------------------------------------------------------- the same, plainly
def search(
    model: nn.Module, c: Contexts, modules: Sequence[nn.Module], how: Search, *, easing: bool = False
) -> tuple[list[Tensor], int]:
    """What is added to each module's output, and the forward passes; easing: by PMET's further rule."""
    starts: dict[nn.Module, Tensor] = {}
    deltas = [torch.zeros(naive.WIDTH, dtype=model.dtype, requires_grad=True) for _ in modules]

    def said(row: Sequence[int], token: int) -> Tensor:
        def adding(delta: Tensor) -> Any:
            def add(module: nn.Module, _: Any, out: Any) -> Any:
                changed = (out[0] if isinstance(out, tuple) else out).clone()
                starts.setdefault(module, changed[0, token].detach().clone())
                changed[0, token] = changed[0, token] + delta
                return (changed, *out[1:]) if isinstance(out, tuple) else changed

            return add

        handles = [m.register_forward_hook(adding(d)) for m, d in zip(modules, deltas, strict=True)]
        found = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        return found

    adam = torch.optim.Adam(deltas, lr=how.rate)
    usual, counts = None, 1.0
    for step in range(1, how.steps + 1):
        nll, likeliest = 0.0, True
        for row, begin, last in zip(c.rows, c.begins, c.subjects, strict=True):
            scores = said(row, last)
            for i in range(begin, len(row)):
                nll = nll - scores[i - 1, row[i]] / (len(row) - begin) / len(c.rows)
                likeliest = likeliest and scores[i - 1].argmax().item() == row[i]
        now = said(c.essence, len(c.essence) - 1)[-1]
        usual = now.detach() if usual is None else usual
        strayed = how.kl * (now.exp() * (now - usual)).sum()
        decay = sum(d.norm() / starts[m].norm() ** 2 for m, d in zip(modules, deltas, strict=True))
        loss = counts * nll + strayed + how.decay * decay
        if loss < how.stop or (easing and likeliest and strayed <= 0.01) or step == how.steps:
            break
        counts = 0.1 if easing and likeliest else 1.0
        for delta, slope in zip(deltas, torch.autograd.grad(loss, deltas), strict=True):
            delta.grad = slope
        adam.step()
        with torch.no_grad():
            for m, delta in zip(modules, deltas, strict=True):
                most = how.clamp * starts[m].norm()
                delta *= min(1.0, (most / delta.norm()).item())
    return [d.detach() for d in deltas], step


def rome_(model: nn.Module, of: Sequence[Contexts], layer: int, how: Search, key: str, C: Tensor) -> None:
    """Sheet section 4, request by request, written into the model."""
    module = down(model, layer)
    for c in of:
        keys = [
            at(model, module, row, last, "input").double()
            for row, last in zip(c.rows, c.subjects, strict=True)
        ]
        k, mean = keys[0], sum(keys) / len(keys)
        left = torch.linalg.inv(C) @ (k if key == "plain" else mean)
        q = mean if key == "averaged" else k
        outputs = [
            at(model, module, row, last).double() for row, last in zip(c.rows, c.subjects, strict=True)
        ]
        (delta,), _ = search(model, c, [module], how)
        here = sum(outputs) / len(outputs) if key == "averaged" else outputs[0]
        right = (outputs[0] + delta - here) / (left @ q)
        update = torch.outer(left, right) if model.config.model_type == "gpt2" else torch.outer(right, left)
        with torch.no_grad():
            module.weight += update.to(model.dtype)


# ---------------------------------------------------------------------- tests
@causal
@pytest.mark.parametrize(("key", "square"), [("as_released", False), ("averaged", True), ("plain", False)])
def test_requests_one_after_another_give_what_plain_loops_give(family, key, square):
    model = tiny(family, layers=3, dtype=torch.float64, square=square)
    requests, before = asked(2), weights(model)
    moments = ordinary(model, [1])
    edit = ROME(1, SEARCH, key)(model, words(), requests, moments, templates=TEMPLATES)
    assert unmoved(model, before) and len(edit.deltas) == 1
    other = copy.deepcopy(model)
    rome_(other, contexts(words(), requests, TEMPLATES), 1, SEARCH, key, moments[1])
    wanted = down(other, 1).weight - down(model, 1).weight
    assert near(whole(edit, model, 1), wanted.T if family == "gpt2" else wanted, family)
    with edit.applied(model):
        logits = model(input_ids=tokens(2, 9)).logits
    assert near(logits, other(input_ids=tokens(2, 9)).logits, family)
    assert unmoved(model, before)


@causal
@pytest.mark.parametrize(("key", "square"), [("as_released", True), ("averaged", False), ("plain", False)])
def test_the_new_value_stands_exactly_at_the_key_that_is_used(family, key, square):
    model = tiny(family, layers=3, dtype=torch.float64, square=square)
    requests = asked(1)
    v = torch.randn(1, naive.WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    edit = ROME(2, key=key)(model, words(), requests, ordinary(model, [2]), templates=TEMPLATES, targets=v)
    (c,) = contexts(words(), requests, TEMPLATES)
    rows = list(zip(c.rows, c.subjects, strict=True))[: None if key == "averaged" else 1]
    with edit.applied(model):
        outputs = [at(model, down(model, 2), row, last) for row, last in rows]
    assert near(sum(outputs) / len(outputs), v[0], family, 1e-10)


def test_an_earlier_request_is_seen_by_a_later_one_and_disturbed_by_it():
    model = tiny("olmo", layers=3, dtype=torch.float64)
    moments, editor = ordinary(model, [1]), ROME(1, SEARCH, "plain")
    both = editor(model, words(), asked(2), moments)
    alone = [editor(model, words(), asked(2)[i : i + 1], moments) for i in (0, 1)]
    first = whole(alone[0], model, 1)
    with alone[0].applied(model):
        second = whole(editor(model, words(), asked(2)[1:], moments), model, 1)
    assert near(whole(both, model, 1), first + second, "olmo", 1e-12)
    assert not near(whole(both, model, 1), first + whole(alone[1], model, 1), "olmo", 1e-3)


@causal
def test_with_one_context_the_variants_are_one(family):
    model = tiny(family, layers=3, dtype=torch.float64)
    moments = ordinary(model, [1])
    found = [
        whole(make(1, search=SEARCH)(model, words(), asked(2), moments), model, 1)
        for make in (ROME, r_rome, lambda *a, **k: ROME(*a, key="plain", **k))
    ]
    assert near(found[1], found[0], family, 1e-12) and near(found[2], found[0], family, 1e-12)
    several = r_rome(1, search=SEARCH)(model, words(), asked(2), moments, templates=TEMPLATES)
    assert not near(whole(several, model, 1), found[0], "olmo", 1e-2)


@pytest.mark.parametrize("key", ["as_released", "plain"])
def test_a_search_without_a_step_changes_nothing(key):
    model = tiny("gpt2", layers=3, dtype=torch.float64)
    edit = ROME(1, Search(steps=1), key)(model, words(), asked(3), ordinary(model, [1]), templates=TEMPLATES)
    assert whole(edit, model, 1).abs().max() == 0
    assert edit.notes["passes"].tolist() == [1, 1, 1]


@causal
def test_memit_of_one_request_is_a_shrunken_rome(family):
    """Sheet 2.6: by s / (1 + s), s = k (weight C)^-1 k, for the same lack and key."""
    model = tiny(family, layers=3, dtype=torch.float64)
    requests, moments, weight = asked(1), ordinary(model, [1]), 3.0
    (c,) = contexts(words(), requests)
    place = c.rows[0], c.subjects[0]
    lack = torch.randn(1, naive.WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z = at(model, naive.block(model, 1), *place) + lack
    v = at(model, down(model, 1), *place) + lack
    k = at(model, down(model, 1), *place, "input").double()
    s = (k @ torch.linalg.inv(weight * moments[1]) @ k).item()
    soft = whole(MEMIT((1,), weight)(model, words(), requests, moments, targets=z), model, 1)
    hard = whole(ROME(1)(model, words(), requests, moments, targets=v), model, 1)
    assert near(soft, s / (1 + s) * hard, family)


def test_weights_of_few_bits_get_the_sum_rounded_once():
    model = tiny("llama", layers=3, dtype=torch.bfloat16)
    before = weights(model)
    edit = ROME(1, SEARCH)(model, words(), asked(3), ordinary(model, [1]), templates=TEMPLATES)
    assert whole(edit, model, 1).dtype == torch.bfloat16 and whole(edit, model, 1).isfinite().all()
    assert unmoved(model, before)


def test_after_an_exception_in_an_edited_model_it_is_as_it_was(monkeypatch):
    model = tiny("gptj", layers=3).train()
    before, moments = weights(model), ordinary(model, [1])
    moved = []

    def fails(*given: Any, **more: Any) -> Any:
        moved.append(not torch.equal(down(model, 1).weight, before["transformer.h.1.mlp.fc_out.weight"]))
        if len(moved) == 3:
            raise KeyboardInterrupt
        return values(*given, **more)

    monkeypatch.setattr(rome, "values", fails)
    with pytest.raises(KeyboardInterrupt):
        ROME(1, SEARCH)(model, words(), asked(3), moments, templates=TEMPLATES)
    assert moved == [False, True, True]  # it was edited when it happened
    assert unmoved(model, before) and all(m.training for m in model.modules())


def test_what_cannot_be_edited_is_refused_in_one_line():
    model = tiny("olmo", layers=2, dtype=torch.float64)
    moments, few = ordinary(model, [1]), Moments({1: torch.zeros(20, 20, dtype=torch.float64)})
    cases = [
        (lambda: ROME(1)(tiny("olmo2"), words(), asked(1), moments), "joins the stream unchanged"),
        (lambda: ROME(1)(tiny("bert"), words(), asked(1), moments), "joins the stream unchanged"),
        (lambda: ROME(2)(model, words(), asked(1), moments), "a layer in 0..1"),
        (lambda: ROME(0)(model, words(), asked(1), moments), "moments of layer 0"),
        (lambda: ROME(1)(model, words(), asked(1), few), "positive definite"),
        (lambda: ROME(1)(model, words(), [], moments), "got none"),
        (lambda: ROME(1)(model, words(), asked(2), moments, targets=torch.zeros(1, 12)), "shape (1, 12)"),
        (lambda: ROME(1, key="k"), "as_released, averaged, plain"),
    ]
    for call, said in cases:
        with pytest.raises(BadInput) as refused:
            call()
        assert said in str(refused.value) and "\n" not in str(refused.value)
