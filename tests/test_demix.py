"""DEMIX: whose copy a new domain begins with, and text of unknown domain read by all experts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import MASKED, tiny, tokens
from torch import nn

from kemem import evaluation
from kemem.continual import beside
from kemem.continual.adapters import Adapter
from kemem.continual.demix import DEMIX, posterior
from kemem.continual.sequence import Held, learn
from kemem.errors import BadInput
from kemem.objective import IGNORED, Masked, causal, logits_of, row_key
from kemem.training import Domain, Method, Recipe, Together, train

RECIPE = Recipe(steps=6, batch_size=4, learning_rate=3e-2, log_every=1)
MASK = Masked(mask_id=3, vocabulary=61, share=0.3, special=(0, 1, 2))
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Rows:
    """Rows of a few tokens of their own, so that domains are apart: begin..begin + 8."""

    def __init__(
        self, begin: int, rows: int = 12, length: int = 10, seed: int = 0, padded: bool = False
    ) -> None:
        self.ids = tokens(rows, length, vocab=11, seed=seed) + begin
        self.mask = torch.ones_like(self.ids)
        if padded:
            for row in range(rows):
                self.mask[row, length - row % 4 :] = 0

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        ids, mask = self.ids[indices], self.mask[indices]
        labels = ids.masked_fill(mask == 0, IGNORED)
        return {"input_ids": ids.masked_fill(mask == 0, 1), "labels": labels, "attention_mask": mask}


DOMAINS = [Domain("low", Rows(0)), Domain("high", Rows(40)), Domain("low again", Rows(1, seed=3))]


def objective(family: str) -> Any:
    return MASK if family in MASKED else causal


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def logits(model: nn.Module, method: Method, domain: Domain) -> torch.Tensor:
    with torch.no_grad(), method.at(model, domain):
        return model(input_ids=DOMAINS[0].blocks.ids).logits


def learned(family: str = "olmo", domains: list[Domain] = DOMAINS, recipe: Recipe = RECIPE, **changes: Any):
    model = tiny(family, dtype=torch.float64, **changes)
    method = DEMIX(reduction=3, sample=6, objective=objective(family))
    for domain in domains:
        train(model, domain, recipe, method, objective=objective(family))
    return model, method


@pytest.fixture(scope="module")
def trained():
    return learned(domains=DOMAINS)


# ---------------------------------------------------------------------- whose copy
@pytest.mark.parametrize(
    ("family", "placement"), [("llama", "sequential"), ("gpt2", "parallel"), ("roberta", "sequential")]
)
def test_a_new_domain_begins_as_the_nearest_one(family, placement):
    model, known = tiny(family, dtype=torch.float64, square=family == "llama"), objective(family)
    method = DEMIX(reduction=1, placement=placement, sample=12, objective=known)
    bare, last = states(model), DOMAINS[2]
    drawn = torch.get_rng_state()
    method.before(model, DOMAINS[0])
    first = logits(model, method, DOMAINS[0])
    assert float((first - logits(model, Method(), DOMAINS[0])).abs().max()) < 1e-12
    method.after(model, DOMAINS[0])
    for domain in DOMAINS[:2]:
        train(model, domain, replace(RECIPE, steps=20), method, objective=known)
    losses = []
    for domain in DOMAINS[:2]:
        with method.at(model, domain):
            losses.append(evaluation.loss(model, last.blocks, objective=known))
    assert losses[0] < losses[1] - 0.1  # far apart, whatever the sample
    before = [logits(model, method, domain) for domain in DOMAINS[:2]]
    method.before(model, last)
    assert method.parents == {"low": None, "high": "low", "low again": "low"}
    assert torch.equal(logits(model, method, last), before[0]) and not torch.equal(*before)
    one, three = (beside.module(model, f"adapters{place}") for place in (0, 2))
    assert equal(states(one), states(three))
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in three.parameters()}
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {f"beside.adapters2.{n}" for n, _ in three.named_parameters()}
    method.after(model, last)
    train(model, last, RECIPE, method, objective=known)
    assert torch.equal(torch.get_rng_state(), drawn)
    after = states(model)
    assert all(torch.equal(after[n], bare[n]) for n in bare)
    assert [torch.equal(logits(model, method, d), b) for d, b in zip(DOMAINS, before, strict=False)] == [
        True
    ] * 2
    assert not torch.equal(logits(model, method, last), before[0])
    assert torch.equal(logits(model, method, Domain("?", last.blocks)), logits(model, method, last))


def test_nearness_is_measured_on_the_sample_that_was_drawn(monkeypatch):
    """The lowest of the losses of each expert on the same `sample` rows, against the losses by hand."""
    model, method = learned(domains=DOMAINS[:2])
    read: list[Any] = []
    honest = evaluation.loss

    def listen(model: nn.Module, text: Any, **given: Any) -> float:
        read.append((text.batch(torch.arange(len(text)))["input_ids"], given["objective"]))
        return honest(model, text, **given)

    monkeypatch.setattr(evaluation, "loss", listen)
    assert (
        method.nearest(model, DOMAINS[2]) == "low" and method.nearest(model, Domain("x", Rows(41))) == "high"
    )
    (one, known), (two, _), (three, _), _ = read
    assert torch.equal(one, two) and one.shape == (6, 10) and known is causal and three.min() > 41
    rows = {tuple(row) for row in DOMAINS[2].blocks.ids.tolist()}
    assert len({tuple(row) for row in one.tolist()} & rows) == 6
    assert torch.equal(one, read[0][0]) and not torch.equal(one, DOMAINS[2].blocks.ids[:6])
    other = replace(method, seed=5)
    other.parents, other._adapters = method.parents, method._adapters
    read.clear()
    other.nearest(model, DOMAINS[2])
    assert not torch.equal(read[0][0], one)
    alone = DEMIX()
    assert alone.nearest(model, DOMAINS[0]) is None


def test_a_domain_that_comes_again_goes_on_with_its_own():
    model, method = learned(domains=DOMAINS[:2], recipe=replace(RECIPE, steps=1))
    shown, other = (logits(model, method, domain) for domain in DOMAINS[:2])
    method.before(model, DOMAINS[0])
    assert torch.equal(logits(model, method, DOMAINS[0]), shown)
    method.after(model, DOMAINS[0])
    train(model, DOMAINS[0], RECIPE, method)
    assert not torch.equal(logits(model, method, DOMAINS[0]), shown)
    assert torch.equal(logits(model, method, DOMAINS[1]), other)
    assert beside.present(model) == ("adapters0", "adapters1") and method.parents == {
        "low": None,
        "high": "low",
    }


def test_with_one_domain_it_is_an_adapter_of_its_own():
    found = []
    for method in (DEMIX(reduction=3), Adapter(reduction=3, per_domain=True)):
        model = tiny("gpt2")  # with dropout
        train(model, DOMAINS[0], RECIPE, method)
        found.append(states(model))
    assert equal(*found)


# ---------------------------------------------------------------------- laws of every method
def test_accumulation_leaves_the_step_as_it_is():
    two = [
        states(learned("roberta", recipe=replace(RECIPE, accumulation=parts, steps=2), **DRY)[0])
        for parts in (1, 2)
    ]
    assert all(
        float((two[0][n] - two[1][n]).abs().max()) < 1e-6 * float(two[0][n].abs().max()) for n in two[0]
    )


def test_the_same_seed_gives_the_same_numbers():
    one, two = (states(learned("gpt2", recipe=replace(RECIPE, steps=2))[0]) for _ in range(2))  # with dropout
    assert equal(one, two)


class Stop(Exception):
    pass


class StopAt(Method):
    def __init__(self, left: int | None = None) -> None:
        self.left = left

    def gradients(self, model: nn.Module) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stop


def test_a_killed_sequence_ends_as_an_unbroken_one(tmp_path):
    held = [Held(domain.name, domain.blocks, domain.blocks) for domain in DOMAINS]
    recipe = replace(RECIPE, steps=2, save_every=1)

    def run(folder: str, left: int | None = None):
        model, method = tiny("gpt2"), DEMIX(reduction=3, sample=6)
        made = learn(model, held, Together((method, StopAt(left))), recipe, out=tmp_path / folder)
        return states(model), made.loss, made.added, method.parents

    whole = run("whole")
    R, D = 4, 12
    assert whole[2] == [2 * 2 * (2 * D * R + R + D)] * 3
    for left in (3, 2):  # in the second domain, in the third one
        with pytest.raises(Stop):
            run("cut", left)
    found = run("cut")
    assert equal(found[0], whole[0]) and found[1:] == whole[1:]


# ---------------------------------------------------------------------- text of unknown domain
def chances(model: nn.Module, method: DEMIX, rows: Rows, known: Any) -> list[list[list[float]]]:
    """Every expert's probability of each target: a list of rows, of targets, of experts."""
    found = []
    for row in range(len(rows)):
        batch = known.prepare(rows.batch(torch.tensor([row])), [row_key(0, 0, row)])
        targets, scores = known.targets(batch)[0], []
        for name in method.parents:
            with torch.no_grad(), method.at(model, Domain(name, rows)):
                scores.append(logits_of(model, batch)[0].softmax(-1))
        places = [place for place, target in enumerate(targets.tolist()) if target != IGNORED]
        found.append([[float(each[place, targets[place]]) for each in scores] for place in places])
    return found


def by_hand(rows: list[list[list[float]]], prior: list[float], updating: bool = False):
    """Bayes' rule, token by token."""
    total, count, alone, sums = 0.0, 0, [0.0] * len(prior), [0.0] * len(prior)
    for row in rows:
        belief, own = list(prior), [0.0] * len(prior)
        for p in row:
            mixed = sum(b * q for b, q in zip(belief, p, strict=True))
            total -= math.log(mixed)
            alone = [a - math.log(q) for a, q in zip(alone, p, strict=True)]
            own = [s + b for s, b in zip(own, belief, strict=True)]
            belief = [b * q / mixed for b, q in zip(belief, p, strict=True)]
        count += len(row)
        sums = [s + r for s, r in zip(sums, own, strict=True)]
        if updating and row:
            prior = [0.7 * a + 0.3 * r / len(row) for a, r in zip(prior, own, strict=True)]
    return total / count, [a / count for a in alone], [s / count for s in sums], prior


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_the_mixture_is_bayes_rule_token_by_token(family):
    model, method = learned(family)
    text = Rows(1, rows=5, seed=8, padded=True)
    told = chances(model, method, text, objective(family))
    for prior, updating in (([1 / 3] * 3, False), ([0.2, 0.5, 0.3], True), ([0.0, 1.0, 0.0], True)):
        expected = by_hand(told, prior, updating)
        for size in (2, 32):  # rows a pass: no matter
            given = torch.tensor(prior, dtype=torch.float64)
            found = method.mixture(model, text, prior=given, updating=updating, batch_size=size)
            assert found.loss == pytest.approx(expected[0], abs=1e-10)
            for got, wanted in zip((found.alone, found.posterior, found.prior), expected[1:], strict=True):
                assert got.tolist() == pytest.approx(wanted, abs=1e-10)
    assert found.loss == pytest.approx(float(found.alone[1]), abs=1e-12)  # a prior of one expert
    assert found.names == [domain.name for domain in DOMAINS]
    uniform = method.mixture(model, text)
    assert uniform.prior.tolist() == [1 / 3] * 3
    with method.at(model, DOMAINS[1]):
        assert float(uniform.alone[1]) == pytest.approx(
            evaluation.loss(model, text, objective=objective(family)), abs=1e-10
        )


def test_the_mixture_of_a_row_is_the_mean_likelihood_of_its_experts(trained):
    """- log (1/K sum_k P_k(row)): never worse than the best expert by more than log K a row."""
    model, method = trained
    for row in range(4):
        text = Rows(0, rows=1, seed=20 + row)
        found = method.mixture(model, text)
        likelihood = torch.logsumexp(-9 * found.alone, 0) - math.log(3)  # 9 targets a row of 10
        assert found.loss == pytest.approx(-float(likelihood) / 9, abs=1e-12)
        assert found.loss <= float(found.alone.min()) + math.log(3) / 9


def test_text_of_a_domain_is_given_to_its_expert(trained):
    model, method = trained
    low, high = (method.mixture(model, domain.blocks, updating=True) for domain in DOMAINS[:2])
    assert high.prior.argmax() == 1 and float(high.prior[1]) > 0.8
    assert float(low.prior[1]) < 0.1 and low.loss < float(low.alone[1]) and high.loss < float(high.alone[0])


def test_a_posterior_begins_at_the_prior_and_is_a_distribution():
    losses = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 900
    prior = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    found = posterior(losses, prior)
    assert torch.allclose(found[:, 0], prior) and torch.allclose(found.sum(0), torch.ones(6).double())
    changed = losses.clone()
    changed[:, 3] += torch.tensor([5.0, 0.0, 1.0])
    assert torch.equal(
        posterior(changed, prior)[:, :4], found[:, :4]
    )  # a token has no say in its own weights
    same = posterior(torch.full((2, 4), 1e6).double(), torch.tensor([0.5, 0.5]).double())
    assert torch.equal(same, torch.full((2, 4), 0.5).double())


def test_what_cannot_be_mixed_is_refused(trained):
    model, method = trained
    with pytest.raises(BadInput, match="none before the first domain"):
        DEMIX().mixture(model, DOMAINS[0].blocks)
    for wrong in ([0.5, 0.5], [0.5, 0.6, 0.1], [1.5, -0.5, 0.0]):
        with pytest.raises(BadInput, match="a prior over 3 domains, of sum 1"):
            method.mixture(model, DOMAINS[0].blocks, prior=torch.tensor(wrong))
    with pytest.raises(BadInput, match="got 2 rows without any"):
        method.mixture(model, Rows(0, rows=2, length=1))
    with pytest.raises(BadInput, match="sample of at least 1 row; got 0"):
        DEMIX(sample=0)
    with pytest.raises(BadInput, match="reduction of at least 1"):
        DEMIX(reduction=0)
