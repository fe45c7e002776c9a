"""SupSup: masks on weights against edited weights, the straight-through gradient, and that nothing is forgotten."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import tokens
from test_hat import (
    RECIPE,
    SEVERAL,
    domain,
    equal,
    farthest,
    moved,
    moved_on,
    net,
    objective,
    resumes,
    scores,
    seen,
    weights,
)
from torch import nn

from kemem.continual import beside
from kemem.continual.supsup import SupSup, kept, linears, masked
from kemem.errors import BadInput
from kemem.families import matrix
from kemem.training import train


def test_a_mask_is_one_from_zero_on_and_its_gradient_the_identity():
    score = torch.tensor([-0.1, 0.0, 0.2, -1e-9], dtype=torch.float64, requires_grad=True)
    assert kept(score).tolist() == [0, 1, 1, 0]
    (gradient,) = torch.autograd.grad((kept(score) * torch.tensor([1.0, 2, 3, 4]).double()).sum(), score)
    assert gradient.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("square", [False, True])
def test_masks_are_zeros_in_weights(family, square):
    model = net(family, square=square)
    drawn = torch.Generator().manual_seed(0)
    masks = [(torch.rand(matrix(m).numel(), generator=drawn) < 0.7).double() for m in linears(model).values()]
    bare = scores(model)
    with masked(model, masks.__getitem__):
        found = scores(model)
    assert torch.equal(scores(model), bare)
    with torch.no_grad():
        for linear, mask in zip(linears(model).values(), masks, strict=True):
            weight = matrix(linear)
            for number, one in enumerate(mask.tolist()):  # in the order of [out in]
                if not one:
                    weight[number // weight.shape[1], number % weight.shape[1]] = 0
    rounding = 1e-4 if family == "gptj" else 1e-10
    assert (found - scores(model)).abs().max() < rounding and (found - bare).abs().max() > 1e-2


def test_what_is_masked_is_every_matrix_of_the_blocks(family):
    model = net(family)
    found = {f"{path}.weight" for path in linears(model)}
    assert found == {
        n for n, p in model.named_parameters() if p.ndim == 2 and any(f".{i}." in n for i in (0, 1))
    }


def test_at_first_the_function_is_the_models(family):
    model, method = net(family), SupSup()
    bare = scores(model)
    assert torch.equal(seen(model, method, domain()), bare)
    method.before(model, domain())
    assert (seen(model, method, domain()) - bare).abs().max() < 1e-12
    with method.during(model, domain()):
        assert (scores(model) - bare).abs().max() < 1e-12


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_gradient_of_a_score_is_that_of_the_masked_weight_times_the_weight(family):
    """Against autograd through a model whose weights were edited."""
    model, method = net(family), SupSup()
    method.before(model, domain())
    drawn = torch.Generator().manual_seed(0)
    own = beside.module(model, "scores0")
    with torch.no_grad():
        for score in own:
            score.copy_(torch.randn(score.shape, generator=drawn))
    batch = domain().blocks.batch(torch.arange(4))
    edited = copy.deepcopy(model).requires_grad_(True)
    with torch.no_grad():
        for linear, score in zip(linears(edited).values(), own, strict=True):
            weight = matrix(linear)
            weight.mul_((score >= 0).view(weight.shape))
    with method.during(model, domain()):
        objective(family)(model, batch).backward()
    objective(family)(edited, batch).backward()
    for (path, linear), score in zip(linears(edited).items(), own, strict=True):
        gradient = linear.weight.grad if isinstance(linear, nn.Linear) else linear.weight.grad.T
        plain = matrix(linears(model)[path])
        assert torch.allclose(score.grad.view(plain.shape), gradient * plain, rtol=1e-9, atol=1e-12), path
        assert linears(model)[path].weight.grad is None


@pytest.mark.parametrize("family", SEVERAL)
def test_nothing_is_forgotten(family):
    model, method = net(family), SupSup()
    before = weights(model)
    moved(model, method, count=1, family=family)
    own = seen(model, method, domain())
    assert (own - scores(model)).abs().max() > 1e-4
    moved_on(model, method, family)
    assert torch.equal(seen(model, method, domain()), own)
    assert not torch.equal(seen(model, method, domain(1)), own)
    assert torch.equal(seen(model, method, domain(1)), seen(model, method, domain(7)))
    after = weights(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(before)
    assert torch.equal(seen(copy.deepcopy(model), method, domain()), own)


def test_scores_do_not_decay():
    """A score without a gradient, of an input that never occurs, stays; it would not as a matrix."""
    model = net()
    method = SupSup(start=0.5)
    path = "model.layers.0.mlp.gate_proj"
    with torch.no_grad():
        model.get_parameter(f"{path}.weight")[3].zero_()  # its score's gradient is 0
    train(model, domain(), replace(RECIPE, weight_decay=0.9), method)
    place = list(linears(model)).index(path)
    assert (beside.module(model, "scores0")[place].view(20, 12)[3] == 0.5).all()


def test_it_guesses_by_entropy():
    """Against the entropy of mixtures written out, by finite differences; GPT-2's norms keep float64."""
    model, method = net("gpt2"), SupSup()
    moved(model, method, count=3, family="gpt2")
    batch = {"input_ids": tokens(2, 7)}
    every = [[kept(s) for s in beside.module(model, f"scores{task}")] for task in range(3)]

    def entropy(share):
        mixed = [sum(a * m for a, m in zip(share, masks, strict=True)) for masks in zip(*every, strict=True)]
        with torch.no_grad(), masked(model, mixed.__getitem__):
            p = model(**batch).logits.softmax(-1)
        return float(-(p * p.log()).sum(-1).mean())

    def moved_by(task, step):
        return entropy([1 / 3 + step * (i == task) for i in range(3)])

    # central and not too fine: the norm of OLMo computes in float32, so an entropy is good to 1e-8
    slopes = [(moved_by(task, 1e-3) - moved_by(task, -1e-3)) / 2e-3 for task in range(3)]
    found = method.slopes(model, batch)
    assert found.tolist() == pytest.approx(slopes, rel=1e-3)
    assert method.guess(model, batch) == method.tasks[min(range(3), key=slopes.__getitem__)]
    filled = torch.cat([batch["input_ids"], torch.ones(2, 5, dtype=torch.long)], 1)
    padded = {"input_ids": filled, "attention_mask": (torch.arange(12) < 7).long().expand(2, -1)}
    assert torch.allclose(method.slopes(model, padded), found, rtol=1e-5)
    with pytest.raises(BadInput, match="train it first"):
        SupSup().guess(model, batch)


@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_accumulation_leaves_the_step_as_it_is(family):
    ends = [
        weights(moved(net(family), SupSup(), family=family, recipe=replace(RECIPE, accumulation=n)))
        for n in (1, 4)
    ]
    assert farthest(*ends) < 1e-6


def test_twice_is_the_same():
    assert equal(*(weights(moved(net(), SupSup())) for _ in range(2)))
    state = torch.random.get_rng_state()
    SupSup().before(net(), domain())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_killed_and_resumed(tmp_path, family):
    resumes(SupSup, tmp_path, family)


def test_a_start_below_zero_is_refused():
    with pytest.raises(BadInput, match="0 or more"):
        SupSup(start=-0.1)
