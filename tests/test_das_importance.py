"""Gates against scaled weights; importance against finite differences and plain loops; the released code's switches."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from conftest import FAMILIES, GATED, GROUPED, MASKED, tiny, tokens
from torch import nn

from kemem.continual.contrast import draws, drops, last_hidden, mode, noisy, present
from kemem.continual.gates import SITES, Units, gated, ones
from kemem.continual.importance import (
    DROPOUT,
    NORMALISATIONS,
    Measuring,
    Released,
    disagreement,
    domain_importance,
    emax,
    gate_gradients,
    general_importance,
    normalised,
    random_importance,
)
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import IGNORED, Masked, causal, logits_of, mix

SOME = ("olmo", "llama", "gpt2", "gpt_neox", "roberta")
MASK = Masked(mask_id=4, vocabulary=61, share=0.4)


class Rows:
    """Rows of random tokens; with `padded` a shorter text in each, the rest padding."""

    def __init__(self, rows: int = 5, length: int = 7, *, padded: int = 0, seed: int = 0) -> None:
        self.ids = tokens(rows, length, seed=seed)
        self.padded = padded

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        ids = self.ids[indices]
        if not self.padded:
            return {"input_ids": ids, "labels": ids}
        more = torch.ones(len(ids), self.padded, dtype=ids.dtype)
        return {
            "input_ids": torch.cat([ids, more], 1),
            "labels": torch.cat([ids, IGNORED * more], 1),
            "attention_mask": torch.cat([torch.ones_like(ids), 0 * more], 1),
        }


def exact(family: str, **changes) -> nn.Module:
    return tiny(family, dtype=torch.float64, **changes)


def objective_of(family: str):
    return MASK if family in MASKED else causal


def drawn(model: nn.Module, seed: int = 0, *, low: float = 0.1) -> Units:
    """Numbers in [low, 1], another one at every unit."""
    return random_importance(model, seed).map(lambda u: low + (1 - low) * u)


def each(memories: Memories) -> Iterator[tuple[str, int, int]]:
    """Every unit of a model: site, layer, place."""
    for site, tensor in ones(memories).tensors().items():
        for layer in range(tensor.shape[0]):
            for unit in range(tensor.shape[1]):
                yield site, layer, unit


def batch_of(rows: int = 3, **options) -> dict[str, torch.Tensor]:
    return Rows(rows, **options).batch(torch.arange(rows))


# ---------------------------------------------------------------------- gates
def test_gates_of_ones_change_nothing_bit_for_bit(family):
    for changes in ({}, {"square": True}):
        model = tiny(family, layers=1, **changes)
        memories, batch = Memories(model), batch_of(padded=2)
        plain = logits_of(model, batch)
        for placed in (False,) if family in GATED else (False, True):
            for gates in (ones(memories), ones(memories, 3)):
                with gated(model, gates, before_activation=placed):
                    assert torch.equal(logits_of(model, batch), plain)
        assert torch.equal(logits_of(model, batch), plain)


def scaled(model: nn.Module, gates: Units, *, before_activation: bool = False) -> nn.Module:
    """A copy whose weights are scaled as the gates would scale what they multiply."""
    memories = Memories(copy.deepcopy(model))
    for layer in range(memories.layers):
        heads, intermediate, output = (getattr(gates, site)[layer] for site in SITES)
        for head in range(memories.heads):
            memories.head(layer, head)["output"].mul_(heads[head])
        if before_activation:
            memories.keys(layer).mul_(intermediate[:, None])
            memories.key_bias(layer).mul_(intermediate)
        else:
            memories.values(layer).mul_(intermediate)
        memories.values(layer).mul_(output[:, None])
        if (bias := memories.bias(layer)) is not None:
            bias.mul_(output)
    return memories.model


@pytest.mark.parametrize("square", [False, True])
def test_gates_are_scaled_weights(family, square):
    """Of every site at once; also one gate a sample, which no weights could do for two samples together."""
    model, batch = exact(family, square=square), batch_of(2)
    close = 1e-5 if family == "gptj" else 1e-10
    first, second = drawn(model, 1), drawn(model, 2)
    for placed in (False,) if family in GATED else (False, True):
        expected = [
            logits_of(scaled(model, g, before_activation=placed), batch)[i]
            for i, g in enumerate((first, second))
        ]
        both = first.map(lambda a, b: torch.stack([a, b]), second)  # [2 L U]
        with gated(model, both, before_activation=placed):
            found = logits_of(model, batch)
        torch.testing.assert_close(found, torch.stack(expected), rtol=close, atol=close)
        with gated(model, first, before_activation=placed):
            torch.testing.assert_close(logits_of(model, batch)[0], expected[0], rtol=close, atol=close)
        assert (expected[0] - logits_of(model, batch)[0]).abs().max() > 1e-2


def test_gates_leave_the_dtype_of_the_pass_and_no_hook():
    model, batch = tiny("olmo", dtype=torch.bfloat16), batch_of()
    with gated(model, drawn(model)):
        assert logits_of(model, batch).dtype == torch.bfloat16
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    with pytest.raises(KeyError), gated(model, drawn(model)):
        raise KeyError
    assert not hooks and not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("family", GATED)
def test_a_gated_feed_forward_has_no_place_before_the_activation(family):
    model = tiny(family)
    with (
        pytest.raises(BadInput, match=r"product of two projections.*leave before_activation out"),
        gated(model, ones(Memories(model)), before_activation=True),
    ):
        pass


@pytest.mark.parametrize("site", SITES)
def test_gates_of_another_model_are_refused(site):
    model = tiny("gpt2")
    wrong = Units(**{**ones(Memories(model)).tensors(), site: torch.ones(2, 5)})
    with pytest.raises(BadInput, match=rf"{site} \[2 \d+\]; got \[2, 5\]"), gated(model, wrong):
        pass


# ---------------------------------------------------------------------- against finite differences
COARSE = (
    "olmo",
    "olmo2",
    "llama",
    "qwen2",
    "qwen3",
)  # their norms compute in float32, whatever the model is in


def moved(model: nn.Module, by: float) -> Units:
    """Gates of as many samples as there are units, all at 1 but each sample's own unit."""
    memories = Memories(model)
    found = ones(memories, sum(1 for _ in each(memories)))
    for sample, (site, layer, unit) in enumerate(each(memories)):
        getattr(found, site)[sample, layer, unit] += by
    return found


def differences(model, family: str, loss, **options) -> torch.Tensor:
    """dL/dg of every unit by the five-point stencil; loss() gives L of each sample, one sample a unit."""
    h, total = 1e-2 if family in COARSE else 1e-3, 0.0
    for by, weight in ((h, 8), (-h, -8), (2 * h, -1), (-2 * h, 1)):
        with torch.no_grad(), gated(model, moved(model, by), **options):
            total = total + weight * loss()
    return total / (12 * h)


def flat(units: Units) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in units.tensors().values()])


def close(family: str) -> dict[str, float]:
    return {"rtol": 1e-3, "atol": 3e-5} if family in COARSE else {"rtol": 1e-5, "atol": 1e-9}


@pytest.mark.parametrize(
    ("family", "placed", "square"),
    [*((family, False, False) for family in SOME), ("llama", False, True), ("gpt2", True, False),
     ("roberta", True, True)],
)  # fmt: skip
def test_importance_is_the_mean_of_absolute_finite_differences(family, placed, square):
    """Text by text and unit by unit, the loss written out."""
    model, data, objective = exact(family, memories=8, square=square), Rows(3), objective_of(family)
    how = Measuring(batch_size=2, before_activation=placed, seed=5)
    found = flat(domain_importance(model, data, objective, how))
    batch = objective.prepare(data.batch(torch.arange(3)), [mix(5, 1, row) for row in range(3)])
    if family in MASKED:
        assert not torch.equal(batch["input_ids"], data.ids)
    shift = 0 if family in MASKED else 1
    expected = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        wanted = [(t - shift, y) for t, y in enumerate(labels.tolist()) if t >= shift and y != IGNORED]

        def loss(ids=ids, wanted=wanted) -> torch.Tensor:
            logp = logits_of(model, {"input_ids": ids.expand(len(found), -1)}).log_softmax(-1)
            return torch.stack([-logp[:, t, y] for t, y in wanted]).mean(0)

        expected.append(differences(model, family, loss, before_activation=placed).abs())
    torch.testing.assert_close(found, torch.stack(expected).mean(0), **close(family))
    assert found.min() > 0 and found.max() > 1e-2


@pytest.mark.parametrize("family", ["olmo", "gpt2", "roberta"])
def test_the_proxy_is_the_mean_of_absolute_finite_differences(family):
    """With the same dropout, or noise where a model has none, on both sides of the difference; text by text."""
    model, how, data = exact(family, layers=1), Measuring(batch_size=1, seed=5), Rows(2, padded=2)
    found = flat(general_importance(model, data, 0.2, how))
    places = [0, 2, 11, 22, 34]  # 3 heads, 20 memories, 12 outputs
    h, expected = 1e-2 if family in COARSE else 1e-3, torch.zeros(2, len(places)).double()
    gates = {by: moved(model, by * h) for by in (1, -1, 2, -2)}
    with noisy(model, 0.2) if family == "olmo" else nullcontext(), mode(model, training=True):
        for text, place in itertools.product(range(2), range(len(places))):
            for by, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                one = gates[by].map(lambda g, i=places[place]: g[i])
                with torch.no_grad(), gated(model, one), draws(torch.device("cpu"), 5, DROPOUT, text):
                    batch = data.batch(torch.tensor([text]))
                    p, q = (logits_of(model, batch).softmax(-1)[0, :7] for _ in range(2))
                assert not torch.equal(p, q)
                expected[text, place] += weight * (p * (p / q).log()).sum(-1).mean() / (12 * h)
    torch.testing.assert_close(found[places], expected.abs().mean(0), **close(family))
    assert found.min() > 0 and found.max() > 1e-3


# ---------------------------------------------------------------------- what it does not hang on
@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_padding_and_batches_change_nothing(family):
    model, objective = exact(family), objective_of(family)
    plain = domain_importance(model, Rows(), objective, Measuring(batch_size=5))
    for data, size in ((Rows(padded=3), 5), (Rows(), 2), (Rows(padded=1), 1)):
        found = domain_importance(model, data, objective, Measuring(batch_size=size))
        for site in SITES:
            torch.testing.assert_close(getattr(found, site), getattr(plain, site), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_it_leaves_the_model_and_torch_as_they_were(family):
    model = tiny(family).train()
    model.get_submodule(Memories(model).down_path(0)).eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = [
        (general_importance(model, Rows()), domain_importance(model, Rows(), objective_of(family)))
        for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    for once, twice in zip(*found, strict=True):
        assert all(torch.equal(getattr(once, site), getattr(twice, site)) for site in SITES)
        assert once.output.dtype == torch.float64
    other = general_importance(model, Rows(), how=Measuring(seed=1))
    assert not torch.equal(other.output, found[0][0].output)
    with torch.no_grad():  # the gradient is asked for all the same
        assert torch.equal(domain_importance(model, Rows(), objective_of(family)).output, found[0][1].output)


def test_which_rows_are_read():
    assert Measuring(samples=100).rows(7).tolist() == list(range(7))
    assert len(Measuring(samples=0.25).rows(40)) == 10 and len(Measuring(samples=1e-9).rows(40)) == 1
    some, again, other = (Measuring(samples=5, seed=seed).rows(40).tolist() for seed in (0, 0, 1))
    assert len(set(some)) == 5 and some == again == sorted(some) and some != other
    assert some != list(range(5))
    assert Measuring(samples=5, released=Released(first_rows=True)).rows(40).tolist() == list(range(5))
    model, data = exact("olmo"), Rows(12)

    class Read(Rows):
        def batch(self, indices):
            read.extend(indices.tolist())
            return super().batch(indices)

    read: list[int] = []
    how = Measuring(samples=5, batch_size=2)
    found = domain_importance(model, Read(12), how=how)
    assert read == how.rows(12).tolist()
    data.ids = data.ids[how.rows(12)]
    torch.testing.assert_close(found.heads, domain_importance(model, data).heads, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 0}, "at least 1, or a share as a float in .0, 1.; got 0"),
        ({"samples": 1.5}, "a share as a float"),
        ({"samples": 0.0}, "a share as a float"),
        ({"batch_size": 0}, "batch_size to be at least 1"),
    ],
)
def test_wrong_measuring_is_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        Measuring(**settings)


# ---------------------------------------------------------------------- the proxy
def test_the_proxy_is_0_in_evaluation_and_above_it_in_training():
    for family in ("gpt2", "roberta", "olmo"):
        model, batch = exact(family), batch_of(padded=2)
        assert drops(model) is (family != "olmo")
        if family == "olmo":  # there it is a number, and no module
            assert drops(tiny(family, attention_dropout=0.1)) and not drops(tiny("llama"))

        def divergence(model=model, batch=batch) -> torch.Tensor:
            with torch.no_grad():
                return disagreement(*(logits_of(model, batch) for _ in range(2)), present(batch))

        assert divergence().abs().max() < 1e-15
        model.train()
        assert (divergence() > 1e-4).all() == (family != "olmo")
        with noisy(model, 0.1):
            assert (divergence() > 1e-4).all()
        assert (divergence() > 1e-4).all() == (family != "olmo")
        silent = general_importance(model, Rows(), how=Measuring(released=Released(no_dropout=True)))
        loud = general_importance(model, Rows())
        assert silent.output.max() < 1e-14 < 1e-4 < loud.output.min()


def test_divergence_by_loops():
    a, b = (torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(i)).double() for i in (0, 1))
    tokens = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    for over in (False, True):
        found = disagreement(a, b, tokens, over_positions=over)
        for text, length in ((0, 4), (1, 2)):
            p, q = a[text, :length], b[text, :length]
            total = 0.0
            for i in range(5 if over else length):
                one, other = (p[:, i], q[:, i]) if over else (p[i], q[i])
                one, other = (x.exp() / x.exp().sum() for x in (one, other))
                total += sum(float(x) * math.log(x / y) for x, y in zip(one, other, strict=True))
            assert float(found[text]) == pytest.approx(total / (1 if over else length), rel=1e-12)
        a.requires_grad_()
        (grad,) = torch.autograd.grad(disagreement(a, b, tokens, over_positions=over).sum(), a)
        assert torch.isfinite(grad).all() and (grad[1, 2:] == 0).all() and (grad[1, :2] != 0).all()
        a = a.detach()
    torch.testing.assert_close(disagreement(a, b, None), disagreement(a, b, torch.ones(2, 4).bool()))


def test_a_proxy_without_dropout_is_refused():
    with pytest.raises(BadInput, match="needs two passes that differ; got neither"):
        general_importance(tiny("olmo"), Rows(), 0.0)
    general_importance(tiny("gpt2"), Rows(), 0.0)
    with pytest.raises(BadInput, match=r"noise to be a share, in \[0, 1\); got 1"):
        general_importance(tiny("olmo"), Rows(), 1.0)


def test_noise_is_dropout_of_what_the_sublayers_give():
    """As much as it says, only there, and only where a model has none of its own."""
    model = exact("gpt_neox").train()
    given: list[torch.Tensor] = []
    memories = Memories(model)
    watch = [f"gpt_neox.layers.{layer}.attention.dense" for layer in (0, 1)]
    watch += [memories.down_path(layer) for layer in (0, 1)]
    with noisy(model, 0.25):
        hooks = [
            model.get_submodule(path).register_forward_hook(lambda m, a, out: given.append(out)) for path in watch
        ]  # fmt: skip
        torch.manual_seed(0)
        logits_of(model, batch_of(50))
    for hook in hooks:
        hook.remove()
    shares = [float((out == 0).double().mean()) for out in given]
    assert len(shares) == 4 and all(abs(share - 0.25) < 0.04 for share in shares)
    own = exact("gpt2", layers=1)
    twice = [general_importance(own, Rows(), noise).heads for noise in (0.1, 0.5)]
    assert torch.equal(*twice)  # it has dropout: noise is not asked


# ---------------------------------------------------------------------- as released, one at a time
def by_text(model, data, objective, seed, *, clean=False) -> list[Units]:
    """dL_n/dg of one text after the other."""
    found = []
    for row in range(len(data)):
        read = data.batch(torch.tensor([row]))
        batch = objective.prepare(read, [mix(seed, 1, row)])
        batch = {**batch, "input_ids": read["input_ids"]} if clean else batch
        if (objective.targets(batch) == IGNORED).all():
            found.append(ones(Memories(model)).map(torch.zeros_like))
            continue
        gates = gate_gradients(model, batch, lambda m, b: objective(m, b)[None])
        found.append(gates.map(lambda g: g[0]))
    return found


def test_signs_and_sums_that_are_never_zeroed():
    model, data = exact("roberta"), Rows(5)
    texts = by_text(model, data, MASK, 2)

    def mean(weights, sign) -> Units:
        parts = [t.map(lambda g, w=w: w * sign(g)) for t, w in zip(texts, weights, strict=True)]
        return Units(*(sum(getattr(p, s) for p in parts) / sum(weights) for s in SITES))

    kept = lambda g: g  # noqa: E731
    for switches, weights, sign in (
        ({}, [1] * 5, torch.abs),
        ({"signed": True}, [1] * 5, kept),
        ({"unzeroed": True}, [3, 3, 2, 2, 1], torch.abs),  # batches of 2, 2, 1
        ({"signed": True, "unzeroed": True}, [3, 3, 2, 2, 1], kept),
    ):
        how = Measuring(batch_size=2, seed=2, released=Released(**switches))
        found, expected = domain_importance(model, data, MASK, how), mean(weights, sign)
        for site in SITES:
            torch.testing.assert_close(getattr(found, site), getattr(expected, site), rtol=1e-9, atol=1e-13)


def test_unzeroed_is_what_torch_adds_up_in_grad():
    """One gate for all texts, backward after backward without zeroing, each time read and added."""
    model, data = exact("gpt2"), Rows(6)
    gates = ones(Memories(model)).map(lambda g: g.requires_grad_())
    total = ones(Memories(model)).map(torch.zeros_like)
    for rows in torch.arange(6).split(2):
        with gated(model, gates):
            (2 * causal(model, data.batch(rows))).backward()  # mean over 2 texts, all equally long
        total = total.map(lambda t, g: t + g.grad, gates)
    how = Measuring(batch_size=2, released=Released(signed=True, unzeroed=True))
    found = domain_importance(model, data, how=how)
    for site in SITES:
        a, b = getattr(found, site), getattr(total, site)
        torch.testing.assert_close(a / a.abs().sum(), b / b.abs().sum(), rtol=1e-9, atol=1e-12)


def test_ids_that_hide_nothing():
    model, data = exact("roberta"), Rows(5)
    how = Measuring(seed=2, released=Released(uncorrupted=True))
    found = domain_importance(model, data, MASK, how)
    texts = by_text(model, data, MASK, 2, clean=True)
    expected = torch.stack([t.output.abs() for t in texts]).mean(0)
    torch.testing.assert_close(found.output, expected, rtol=1e-9, atol=1e-13)
    other = domain_importance(model, data, MASK, Measuring(seed=2)).output
    assert (other - found.output).abs().max() > 1e-3


def test_a_softmax_over_positions():
    model, data = exact("gpt2", layers=1), Rows(3)
    how = Measuring(batch_size=3, seed=4, released=Released(over_positions=True))
    found = general_importance(model, data, how=how)

    def losses(model, batch):
        p, q = (last_hidden(model, batch).softmax(1) for _ in range(2))
        return (p * (p / q).log()).sum((1, 2))

    model.train()
    with draws(torch.device("cpu"), 4, DROPOUT, 0):
        expected = gate_gradients(model, data.batch(torch.arange(3)), losses)
    for site in SITES:
        mean = getattr(expected, site).abs().mean(0)
        torch.testing.assert_close(getattr(found, site), mean, rtol=1e-9, atol=0)


# ---------------------------------------------------------------------- normalising and joining
def units(*rows: list[float]) -> Units:
    tensor = torch.tensor(rows, dtype=torch.float64)
    return Units(tensor, tensor.clone(), tensor.clone())


def test_normalisations_by_hand():
    raw = units([1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 1.0, 0.5])
    z = torch.tensor([-2.0, -1.0, 0.0, 3.0]).double() / math.sqrt(14 / 3)
    expected = {
        "tanh_clip": [0.0, 0.0, 0.0, math.tanh(z[3])],
        "paper_abs": [abs(math.tanh(x)) for x in z],
        "rank": [0.0, 1 / 3, 2 / 3, 1.0],
    }
    for how, row in expected.items():
        for tensor in normalised(raw, how).tensors().values():
            assert tensor[0].tolist() == pytest.approx(row, rel=1e-12)
            assert (tensor[1] == 0).all()  # none is more important than another
            assert ((tensor >= 0) & (tensor <= 1)).all()
    assert normalised(raw, "rank").heads[2].tolist() == pytest.approx([0.0, 0.0, 1.0, 2 / 3])
    # what is least important counts like what is most: only in the authors' normalisation
    low = {how: float(normalised(units([0.0, 5.0, 5.0, 10.0]), how).heads[0, 0]) for how in expected}
    assert low["paper_abs"] == normalised(units([0.0, 5.0, 5.0, 10.0]), "paper_abs").heads[0, 3] > 0.8
    assert low["tanh_clip"] == low["rank"] == 0.0
    one = units([3.0])
    assert all(float(normalised(one, how).heads) == 0.0 for how in expected)
    same = units([0.0, 0.3, 1.0])
    assert torch.equal(normalised(same, "none").heads, same.heads)


def test_normalising_what_cannot_be_is_refused():
    with pytest.raises(BadInput, match=f"a normalisation of {', '.join(NORMALISATIONS)}; got 'zscore'"):
        normalised(units([1.0, 2.0]), "zscore")
    with pytest.raises(BadInput, match=r"importances in \[0, 1\]; got 0.5 to 2 in heads"):
        normalised(units([0.5, 2.0]), "none")
    with pytest.raises(BadInput, match="finite importances; got NaN or infinity in heads"):
        normalised(units([0.5, math.nan]), "rank")


def test_the_maximum_is_monotone_and_in_any_order():
    model = tiny("olmo")
    parts = [random_importance(model, seed) for seed in range(4)]
    joined = emax(*parts)
    for order in ((3, 1, 0, 2), (2, 0, 3, 1)):
        assert torch.equal(emax(*(parts[i] for i in order)).output, joined.output)
    one_by_one = emax(emax(emax(parts[1], parts[0]), parts[3]), parts[2])
    for site in SITES:
        all_parts = torch.stack([getattr(p, site) for p in parts])
        assert torch.equal(getattr(one_by_one, site), getattr(joined, site))
        assert torch.equal(getattr(joined, site), all_parts.amax(0))
        assert (getattr(joined, site) >= getattr(parts[2], site)).all()
    assert torch.equal(emax(joined, parts[0]).heads, joined.heads)


def test_random_importances_are_uniform_and_follow_from_the_seed():
    model = tiny("olmo", width=60, memories=1000)
    found, again, other = (random_importance(model, seed) for seed in (0, 0, 1))
    assert torch.equal(found.intermediate, again.intermediate)
    assert not torch.equal(found.intermediate, other.intermediate)
    drawn = found.intermediate.flatten()
    assert drawn.min() >= 0 and drawn.max() < 1 and abs(drawn.mean() - 0.5) < 0.03
    assert abs(drawn.var() - 1 / 12) < 0.01
    assert found.heads.shape == (2, 3) and found.output.shape == (2, 60)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in SOME])
def test_every_family_is_measured(family):
    model, objective = tiny(family), objective_of(family)
    for found in (general_importance(model, Rows(4)), domain_importance(model, Rows(4), objective)):
        assert found.heads.shape == (2, 3) and (found.heads > 0).all()  # of query heads, also in GROUPED
        assert found.intermediate.shape == (2, 20) and found.output.shape == (2, 12)
    assert family in GROUPED or Memories(model).kv_heads == 3
