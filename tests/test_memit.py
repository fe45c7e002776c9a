"""MEMIT against its plainest form (naive_editing.py), its closed form against algebra, its parts against hooks."""

import copy
from itertools import pairwise

import naive_editing as naive
import pytest
import torch
from conftest import tiny, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from kemem.editing import edit, memit, moments, solve, targets
from kemem.editing.edit import Edit, editable, value_deltas
from kemem.editing.prompts import check_templates, shares
from kemem.editing.stepping import Beginning, Ending, excerpt, head_of
from kemem.errors import BadInput
from kemem.memory import Memories

DEEP = {"layers": 4, "dtype": torch.float64}
causal = pytest.mark.parametrize("family", naive.CAUSAL)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted.double()).abs().max() / wanted.abs().max()).item()


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ---------------------------------------------------------------------- parts of a model
@causal
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_blocks_above_on_the_last_tokens_give_the_logits_of_the_whole(family, attention):
    if family == "gptj" and attention == "sdpa":
        pytest.skip("transformers has no sdpa for GPT-J")
    model = tiny(family, attention=attention, **DEEP)
    memories = Memories(model)
    rows, begins = [tokens(n, seed=n).tolist() for n in (5, 9, 7, 12)], [0, 4, 6, 3]
    for layer in range(4):
        ending = Ending(memories, layer, rows, begins)
        some = ending.chosen(torch.tensor([3, 1]))
        with torch.no_grad():
            found, chosen = head_of(model)(ending(ending.stream)), head_of(model)(some(some.stream))
            for i, (row, begin) in enumerate(zip(rows, begins, strict=True)):
                whole = model(input_ids=torch.tensor([row])).logits[0, begin:]
                assert relative(found[i, : len(whole)], whole) < naive.tolerance(family)
        assert relative(chosen[0], found[3]) < naive.tolerance(family)
        assert relative(chosen[1, :5], found[1, :5]) < naive.tolerance(family)


@causal
def test_rows_read_block_by_block_are_what_hooks_see(family):
    model = tiny(family, **DEEP)
    memories = Memories(model)
    rows = [tokens(n, seed=n).tolist() for n in (5, 9, 7, 12)]
    rows.append(rows[1])
    begun = Beginning(memories, rows, batch_size=2)
    assert len(begun.lengths) == 4 and begun.index[4] == begun.index[1]
    for layer in (0, 1, 3):
        c = begun.coefficients(layer)
        assert begun.block == layer
        for row, i in zip(rows, begun.index.tolist(), strict=True):
            wanted = naive.at(model, naive.down(model, layer), row, -1, "input")
            assert relative(c[i], wanted) < naive.tolerance(family)
            out = begun.outputs(3, torch.tensor([i, begun.index[0]]))
            assert relative(out[0], naive.at(model, naive.block(model, 3), row, -1)) < naive.tolerance(family)
            assert relative(out[1], naive.at(model, naive.block(model, 3), rows[0], -1)) < naive.tolerance(
                family
            )


def test_an_excerpt_gives_the_model_back_also_after_an_exception(family):
    model = tiny(family)
    memories = Memories(model)
    before = list(model.named_modules())
    with pytest.raises(RuntimeError, match="inside"), excerpt(memories, 1, 2):
        assert memories.model.get_submodule(memories.blocks_path)[0] is before[0][1].get_submodule(
            f"{memories.blocks_path}.0"
        )
        raise RuntimeError("inside")
    assert [name for name, _ in model.named_modules()] == [name for name, _ in before]
    assert all(a is b for (_, a), (_, b) in zip(model.named_modules(), before, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_of_two_kinds_of_attention_are_refused():
    model = tiny("qwen2", layers=2)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(BadInput, match="one kind of attention"), excerpt(Memories(model), 0, 1):
        pass


# ---------------------------------------------------------------------- target vectors
@causal
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_target_vectors_in_a_batch_are_those_of_one_request_at_a_time(family, dtype, near):
    model, of = tiny(family, layers=3, dtype=dtype), naive.drawn_contexts()
    search = targets.Search(steps=12, rate=0.3, clamp=3.0, stop=4.2)
    model.train()
    for p in model.parameters():
        p.requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    found = targets.values(Memories(model), of, 1, search, batch_size=4)
    assert model.training and [p.requires_grad for p in model.parameters()].count(True) == 1
    model.eval()
    stops = set()
    for i, c in enumerate(of):
        z, passes, loss = naive.target(model, c, 1, search)
        assert passes == found.passes[i]
        assert relative(found.z[i], z) < max(near, naive.tolerance(family))
        assert found.losses[i].item() == pytest.approx(loss, rel=max(near, naive.tolerance(family)))
        stops.add(passes)
    assert torch.equal(found.origin[0], targets.values(Memories(model), of[:1], 1, search).origin[0]) or (
        relative(found.origin[0], naive.at(model, naive.block(model, 1), of[0].rows[0], of[0].subjects[0]))
        < 1e-5
    )
    if family in ("olmo", "gpt2"):
        assert len(stops) > 1, "some requests are to stop early in this test"


@given(
    rate=st.floats(0.01, 1.0), clamp=st.floats(0.05, 4.0), kl=st.floats(0.0, 2.0), decay=st.floats(0.0, 20.0),
    steps=st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=6, deadline=None)
def test_every_term_of_the_search_is_that_of_the_equation(rate, clamp, kl, decay, steps):
    model, of = tiny("olmo", layers=3, dtype=torch.float64), naive.drawn_contexts(3, seed=4)
    search = targets.Search(steps=steps, rate=rate, clamp=clamp, kl=kl, decay=decay, stop=-1.0)
    found = targets.values(Memories(model), of, 0, search)
    for i, c in enumerate(of):
        z, _, loss = naive.target(model, c, 0, search)
        assert relative(found.z[i], z) < 1e-7
        assert found.losses[i].item() == pytest.approx(loss, rel=1e-7)
        assert (found.z[i] - found.origin[i]).norm() <= clamp * found.origin[i].norm() * (1 + 1e-12)


def test_another_origin_moves_what_lengths_are_measured_against():
    model, of = tiny("olmo", layers=3, dtype=torch.float64), naive.drawn_contexts(3)
    origin = torch.randn(3, naive.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    search = targets.Search(steps=9, rate=1.0, clamp=0.1, stop=-1.0)
    found = targets.values(Memories(model), of, 1, search, origin=origin)
    assert torch.equal(found.origin, origin)
    torch.testing.assert_close((found.z - origin).norm(dim=1), 0.1 * origin.norm(dim=1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"steps": 0}, "1 step or more"), ({"rate": 0.0}, "rate above 0"), ({"clamp": -1.0}, "clamp")],
)
def test_a_search_that_cannot_be_is_refused(changes, said):
    with pytest.raises(BadInput, match=said):
        targets.Search(**changes)


# ---------------------------------------------------------------------- key moments
@causal
def test_moments_are_the_mean_outer_product_of_keys_over_real_tokens(family):
    model = tiny(family, **DEEP)
    rows = [tokens(3 + n % 7, seed=n).tolist() for n in range(13)]
    parts = {}
    found = moments.key_moments(
        model, rows, (2, 0), batch_size=4, snapshots=(5,), snapshot=lambda n, m: parts.__setitem__(n, m)
    )
    assert found.tokens == sum(map(len, rows)) and sorted(found.of) == [0, 2]
    for layer in (0, 2):
        keys = torch.stack(
            [
                naive.at(model, naive.down(model, layer), row, i, "input")
                for row in rows
                for i in range(len(row))
            ]
        ).double()
        torch.testing.assert_close(
            found[layer], keys.T @ keys / len(keys), rtol=1e-6, atol=naive.tolerance(family)
        )
        (count,) = parts
        early = keys[: sum(map(len, rows[:5]))]
        assert count == len(early)
        torch.testing.assert_close(
            parts[count][layer], early.T @ early / len(early), rtol=1e-6, atol=naive.tolerance(family)
        )
        assert 1 <= moments.effective_rank(found[layer]) <= 20
    assert moments.distance(found, found) == {0: 0.0, 2: 0.0}


def test_moments_are_written_and_read_again(tmp_path):
    of = {layer: torch.eye(5, dtype=torch.float64) * (layer + 1) for layer in (1, 3)}
    moments.Moments(of, 17).save(tmp_path / "moments.safetensors")
    again = moments.read_moments(tmp_path / "moments.safetensors")
    assert again.tokens == 17 and all(torch.equal(again[layer], of[layer]) for layer in of)
    torch.testing.assert_close(again.factor(3), 2 * torch.eye(5, dtype=torch.float64))
    assert again.factor(3) is again.factor(3)
    with pytest.raises(BadInput, match="layer 2; got those of 1, 3"):
        again[2]


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({1: torch.eye(20), 2: torch.eye(12)}, "shape .20, 20."),
        ({1: torch.eye(20)}, "moments of layer 2"),
        ({1: torch.eye(20), 2: torch.eye(20) + torch.ones(20, 20).triu(1)}, "symmetric"),
        ({1: torch.eye(20), 2: torch.full((20, 20), torch.nan)}, "finite"),
        ({1: torch.eye(20), 2: -torch.eye(20)}, "positive definite"),
        ({1: torch.eye(20), 2: 1e3 * (torch.ones(20, 20) - 0.9 * torch.eye(20))}, "positive definite"),
    ],
)
def test_moments_of_another_model_are_refused(of, said):
    model = tiny("olmo", layers=4)
    got = moments.Moments({layer: m.double() for layer, m in of.items()})
    memories, of_two = Memories(model), naive.drawn_contexts(2)

    def run(layer, K, R):
        return solve.closed_form(K, R, got[layer], weight=10.0)

    with pytest.raises(BadInput, match=said):
        got.checked(memories, (1, 2))
        memit.spread(memories, of_two, torch.zeros(2, 12), (1, 2), run)


# ---------------------------------------------------------------------- the closed form
def problem(M: int, N: int, D: int, seed: int, condition: float = 100.0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(M, M, generator=generator, dtype=torch.float64)).Q
    C = (
        basis * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), M, dtype=torch.float64)
    ) @ basis.T
    draw = (torch.randn(M, N, generator=generator), torch.randn(D, N, generator=generator))
    return draw[0].double(), draw[1].double(), (C + C.T) / 2


@given(
    M=st.integers(2, 24), N=st.integers(1, 40), D=st.integers(1, 16), seed=st.integers(0, 99),
    weight=st.floats(0.01, 1e4), power=st.floats(0, 6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_way_to_solve_gives_one_update(M, N, D, seed, weight, power):
    """To 1e-10 up to a condition of 1e6. Woodbury answers to the condition of C as well, and is for N below M."""
    K, R, C = problem(M, N, D, seed, 10**power)
    wanted = solve.closed_form(K, R, C, weight=weight, way="lu")
    whole, old = torch.linalg.cond(weight * C + K @ K.T).item(), torch.linalg.cond(C).item()

    def off(**options):
        return relative(solve.closed_form(K, R, C, weight=weight, **options), wanted)

    assert off(way="cholesky") < max(1e-10, 1e-15 * whole)
    assert off() < max(1e-10, 1e-15 * whole)
    if 2 * N <= M:
        for options in ({"way": "woodbury"}, {"factor": torch.linalg.cholesky(C)}):
            assert off(**options) < max(1e-10, 1e-15 * max(whole, old))


@given(N=st.integers(1, 12), seed=st.integers(0, 50), weight=st.floats(0.1, 100))
@settings(max_examples=20, deadline=None)
def test_the_update_is_stationary_for_its_objective(N, seed, weight):
    """Law 7: lambda tr(D C D^T) + |D K - R|^2 has no slope there."""
    K, R, C = problem(10, N, 6, seed)
    delta = solve.closed_form(K, R, C, weight=weight).requires_grad_(True)
    loss = weight * torch.trace(delta @ C @ delta.T) + (delta @ K - R).square().sum()
    (slope,) = torch.autograd.grad(loss, delta)
    assert slope.abs().max() < 1e-8 * (1 + weight)


def test_one_soft_edit_is_a_shrunken_exact_one():
    for seed in range(5):
        k, r, C = problem(15, 1, 7, seed)
        weight = 10.0**seed
        s = (k.T @ torch.linalg.inv(weight * C) @ k).item()
        soft, exact = solve.closed_form(k, r, C, weight=weight), solve.equality(k, r, C)
        torch.testing.assert_close(soft, s / (1 + s) * exact, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(exact @ k, r, rtol=1e-9, atol=1e-12)


def test_a_weightless_past_is_overwritten():
    K, R, C = problem(20, 6, 5, 3)
    missed = [
        (solve.closed_form(K, R, C, weight=w) @ K - R).norm() / R.norm() for w in (1e2, 1e0, 1e-2, 1e-4, 1e-6)
    ]
    assert all(a > b for a, b in pairwise(missed)) and missed[-1] < 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": 0.0}, "weight above 0"),
        ({"way": "qr"}, "cholesky"),
        ({"moment": -torch.eye(8)}, "positive definite"),
    ],
)
def test_what_cannot_be_solved_is_refused(change, said):
    K, R, C = problem(8, 3, 4, 0)
    with pytest.raises(BadInput, match=said):
        solve.closed_form(K, R, change.pop("moment", C), **({"weight": 10.0} | change))


def test_more_exact_associations_than_memories_are_refused():
    K, R, C = problem(8, 9, 4, 0)
    with pytest.raises(BadInput, match="no more than 8"):
        solve.equality(K, R, C)
    with pytest.raises(BadInput, match="keys that differ"):
        solve.equality(K[:, [0, 0]], R[:, :2], C)
    assert torch.isfinite(solve.equality(K[:, [0, 0]], R[:, :2], C, ridge=0.1)).all()


# ---------------------------------------------------------------------- the layers in turn
@causal
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("layers", [(1, 2), (0, 1, 3), (2,)])
def test_the_sweep_is_the_algorithm_layer_by_layer(family, square, layers):
    model, of = tiny(family, square=square, **DEEP), naive.drawn_contexts()
    memories, before = Memories(model), weights(model)
    rows = [tokens(8, seed=n).tolist() for n in range(40)]
    C = moments.key_moments(model, rows, layers)
    z = torch.randn(len(of), naive.WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(layer, K, R):
        return solve.closed_form(K, R, C[layer], weight=3.0)

    found = memit.spread(memories, of, z, layers, run, batch_size=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    plain = copy.deepcopy(model)
    wanted = naive.memit_(plain, of, z, layers, C, 3.0)
    near = 5e-5 if family == "gptj" else 1e-8
    assert all(relative(found[layer], wanted[layer]) < near for layer in layers)
    made = Edit(value_deltas(memories, found))
    assert len(made.deltas) == len(layers) and made.norms.keys() == made.deltas.keys()
    with made.applied(model):
        for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
            assert (a - b).abs().max() < max(near, 1e-6), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_failure_between_layers_leaves_the_model_as_it_was():
    model, of = tiny("gpt2", **DEEP), naive.drawn_contexts()
    before, calls = weights(model), []

    def run(layer, K, R):
        calls.append(layer)
        if len(calls) == 2:
            raise RuntimeError("in the middle")
        return torch.ones(naive.WIDTH, naive.MEMORIES, dtype=torch.float64)

    with pytest.raises(RuntimeError, match="middle"):
        memit.spread(Memories(model), of, torch.zeros(7, naive.WIDTH, dtype=torch.float64), (1, 2, 3), run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_contexts_weigh_as_released():
    assert shares(1).tolist() == [1.0]
    assert shares(6).tolist() == [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1)])
def test_layers_that_do_not_ascend_are_refused(layers):
    with pytest.raises(BadInput, match="layers that ascend"):
        memit.MEMIT(layers)


@pytest.mark.parametrize(
    ("templates", "said"),
    [((), 'begin with "{}"'), (("x {}",), "begin"), (("{}", "a"), "got 0"), (("{}", "{} {}"), "got 2")],
)
def test_templates_without_one_place_are_refused(templates, said):
    with pytest.raises(BadInput, match=said):
        check_templates(templates)


@pytest.mark.parametrize("family", ["olmo2", "bert", "roberta"])
def test_families_that_normalise_the_output_are_refused(family):
    with pytest.raises(BadInput, match=f"{family}.*normalises it"):
        editable(tiny(family))


# ---------------------------------------------------------------------- edits as values
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_leaving_an_edit_restores_every_bit(seed):
    model = tiny("llama", seed=seed % 3)
    before = weights(model)
    generator = torch.Generator().manual_seed(seed)
    names = ["model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.bias"]
    own = dict(model.named_parameters())
    made = Edit({name: torch.randn(own[name].shape, generator=generator) * 1e3 for name in names})
    with pytest.raises(RuntimeError), made.applied(model):
        assert all(not torch.equal(own[name], before[name]) for name in names)
        raise RuntimeError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    made.apply_(model)
    for name in names:
        assert torch.equal(own[name], before[name] + made.deltas[name])


def test_an_edit_of_another_model_is_refused_before_anything_moves():
    model = tiny("llama")
    before = weights(model)
    made = edit.Edit({"model.layers.0.mlp.down_proj.weight": torch.ones(12, 20), "no.such": torch.ones(1)})
    with pytest.raises(BadInput, match="no such parameter"), made.applied(model):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
