"""Adapters, prompts and LoRA beside a frozen model, against forward passes written out without them."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import FAMILIES, MASKED, tiny, tokens
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.pytorch_utils import Conv1D

from kemem import evaluation
from kemem.continual import beside
from kemem.continual.adapters import (
    PLACEMENTS,
    SITES,
    Adapter,
    AdapterStack,
    head_parameters,
    scaled,
)
from kemem.continual.lora import LoRA, projections, updates, worn
from kemem.continual.prompts import Prompt, prompted
from kemem.continual.sequence import Held, count, learn, specialists
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import Masked, causal
from kemem.training import Domain, Method, Recipe, Together, train

RECIPE = Recipe(steps=4, batch_size=4, learning_rate=3e-2, log_every=1)
MASK = Masked(mask_id=3, vocabulary=61, share=0.3, special=(0, 1, 2))
DRY = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
METHODS: dict[str, Callable[[], Method]] = {
    "sequential": partial(Adapter, reduction=4, seed=3),
    "parallel": partial(Adapter, reduction=4, placement="parallel"),
    "adapter of each": partial(Adapter, reduction=4, per_domain=True),
    "with head": partial(Adapter, reduction=4, train_head=True),
    "prompt": partial(Prompt, tokens=3, per_domain=False),
    "prompt of each": partial(Prompt, tokens=3),
    "lora": partial(LoRA, rank=2),
    "lora of each": partial(LoRA, rank=2, alpha=4.0, per_domain=True),
}
EACH = [name for name in METHODS if name.endswith("of each")]
SHORT = (
    "sequential",
    "adapter of each",
    "prompt of each",
    "lora of each",
)  # one of each kind, where it is slow


class Rows:
    """Rows of random tokens, a domain being a seed."""

    def __init__(self, seed: int, rows: int = 12, length: int = 10) -> None:
        self.ids = tokens(rows, length, seed=seed)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.ids[indices]}


DOMAINS = [Domain("a.b", Rows(1)), Domain("c", Rows(2))]  # names of packages have dots
IDS = tokens(3, 9, seed=5)


def objective(family: str) -> Any:
    return MASK if family in MASKED else causal


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def logits(model: nn.Module, method: Method | None = None, domain: Domain = DOMAINS[0], **given: Any):
    given = given or {"input_ids": IDS}
    with torch.no_grad(), (method or Method()).at(model, domain):
        return model(**given).logits


def course(model: nn.Module, method: Method, family: str = "olmo", recipe: Recipe = RECIPE) -> None:
    for domain in DOMAINS:
        train(model, domain, recipe, method, objective=objective(family))


def stirred(module: nn.Module, seed: int = 0, size: float = 0.3) -> None:
    """Random values, so that nothing is at its neutral start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64))


def largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())


# ---------------------------------------------------------------------- at first nothing changes
@pytest.mark.parametrize("name", ["sequential", "parallel"])
def test_at_their_first_values_they_leave_the_function(family, name):
    square = family in ("qwen3", "bert")
    model = tiny(family, dtype=torch.float64, square=square)
    plain, method = logits(model), METHODS[name]()
    drawn = torch.get_rng_state()
    method.before(model, DOMAINS[0])
    assert torch.equal(torch.get_rng_state(), drawn)  # draws of their own
    with method.during(model, DOMAINS[0]):
        assert largest(model(input_ids=IDS).logits - plain) < 1e-12
    assert largest(logits(model, method) - plain) < 1e-12
    [module] = [beside.module(model, name) for name in beside.present(model)]
    stirred(module)
    assert largest(logits(model, method) - plain) > 1e-3  # and they are in the pass
    assert torch.equal(logits(model), plain)
    with pytest.raises(ZeroDivisionError), method.at(model, DOMAINS[0]):
        raise ZeroDivisionError
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("name", [*SHORT, "prompt", "lora"])
def test_before_any_domain_it_is_the_bare_model_and_later_the_newest(name):
    model, method = tiny("olmo", dtype=torch.float64), METHODS[name]()
    plain = logits(model)
    assert torch.equal(logits(model, method), plain)
    for domain in DOMAINS:
        train(model, domain, replace(RECIPE, steps=2), method)
        stranger = logits(model, method, Domain("never seen", Rows(9)))
        assert torch.equal(stranger, logits(model, method, domain))
    same = torch.equal(*(logits(model, method, domain) for domain in DOMAINS))
    assert same == (name not in EACH)


# ---------------------------------------------------------------------- what learns
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sequential", "llama"), ("parallel", "roberta"), ("adapter of each", "gpt2"), ("prompt of each", "gpt2"),
        ("prompt of each", "roberta"), ("lora of each", "llama"), ("lora of each", "roberta"),
    ],
)  # fmt: skip
def test_the_model_is_frozen_and_what_is_beside_it_learns(name, family):
    model, method = tiny(family), METHODS[name]()
    bare, known = states(model), objective(family)
    model.get_parameter(next(n for n, _ in model.named_parameters())).requires_grad_(
        False
    )  # to be found so again
    flags = [p.requires_grad for p in model.parameters()]
    held = evaluation.loss
    for place, domain in enumerate(DOMAINS):
        other = None if place == 0 else logits(model, method)
        method.before(model, domain)
        with method.at(model, domain):
            first = held(model, domain.blocks, objective=known)
        method.after(model, domain)
        train(model, domain, Recipe(steps=4, batch_size=12, learning_rate=1e-2), method, objective=known)
        with method.at(model, domain):
            assert held(model, domain.blocks, objective=known) < first
        if other is not None and name in EACH:
            assert torch.equal(logits(model, method), other)  # the first domain's function, bit for bit
    after = states(model)
    assert all(torch.equal(after[n], bare[n]) for n in bare)
    assert all(n.startswith("beside.") for n in after.keys() - bare.keys())
    assert [p.requires_grad for n, p in model.named_parameters() if n in bare] == flags


@pytest.mark.parametrize("name", EACH)
def test_a_later_domain_leaves_the_sets_of_an_earlier_one(name):
    model, method = tiny("olmo"), METHODS[name]()
    train(model, DOMAINS[0], RECIPE, method)
    one = states(model)
    train(model, DOMAINS[1], RECIPE, method)
    two = states(model)
    assert len(beside.present(model)) == 2
    assert all(torch.equal(two[n], one[n]) for n in one) and len(two) > len(one)
    first, second = (beside.module(model, n) for n in beside.present(model))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in pairs)


def test_the_head_learns_where_asked_unless_it_is_tied():
    model = tiny("roberta")
    before = states(model)
    train(model, DOMAINS[0], RECIPE, METHODS["with head"](), objective=MASK)
    moved = {n for n, p in states(model).items() if n in before and not torch.equal(p, before[n])}
    assert moved and all(n.startswith("lm_head.") for n in moved)
    assert "lm_head.dense.weight" in moved and "lm_head.layer_norm.bias" in moved
    own = {id(p) for p in head_parameters(model)}
    assert own == {id(p) for p in model.lm_head.parameters()}
    tied = tiny("olmo", tie_word_embeddings=True)
    with pytest.raises(BadInput, match="tied to its embeddings; set train_head=False"):
        train(tied, DOMAINS[0], RECIPE, METHODS["with head"]())
    own = {id(p) for p in head_parameters(tiny("roberta", tie_word_embeddings=True))}
    assert len(own) == 5  # dense, norm and the bias of the tied projection


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_accumulation_leaves_the_step_as_it_is(family, name):
    found = []
    for parts in (1, 2):
        model, method = tiny(family, dtype=torch.float64, **DRY[family]), METHODS[name]()
        course(model, method, family, replace(RECIPE, accumulation=parts, steps=2))
        found.append(states(model))
    whole, cut = found
    for n in whole:
        assert largest(whole[n] - cut[n]) <= 1e-6 * largest(whole[n]), n


@pytest.mark.parametrize("name", SHORT)
def test_the_same_seed_gives_the_same_numbers_and_another_one_others(name):
    found = []
    for seed in (None, None, 7):
        model, method = tiny("gpt2"), METHODS[name]()  # with dropout
        if seed is not None:
            method = replace(method, seed=seed)
        course(model, method, recipe=replace(RECIPE, steps=1))
        found.append(states(model))
        torch.manual_seed(99 + len(found))
    assert equal(found[0], found[1]) and not equal(found[0], found[2])


# ---------------------------------------------------------------------- killed and resumed
class Stop(Exception):
    pass


class StopAt(Method):
    """Breaks off after so many steps of all domains together; without a number it is plain training."""

    def __init__(self, left: int | None = None) -> None:
        self.left = left

    def gradients(self, model: nn.Module) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stop


@pytest.mark.parametrize("name", SHORT)
def test_a_killed_sequence_ends_as_an_unbroken_one(tmp_path, name):
    held = [Held(domain.name, domain.blocks, Rows(8, 2)) for domain in DOMAINS]
    recipe = replace(RECIPE, steps=2, save_every=1, checkpoints=(1,))

    def run(folder: str, left: int | None = None):
        model = tiny("gpt2")  # with dropout
        made = learn(model, held, Together((METHODS[name](), StopAt(left))), recipe, out=tmp_path / folder)
        return states(model), made.loss, made.added

    whole = run("whole")
    for left in (1, 2):  # in the first domain; from there on, in the second one
        with pytest.raises(Stop):
            run("cut", left)
    weights, losses, added = run("cut")
    assert equal(weights, whole[0]) and (losses, added) == whole[1:]
    folder = tmp_path / "whole" / "1-c" / "step1"
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(opened), logits(tiny("gpt2")))
    assert any(n.startswith("beside.") for n in load_file(folder / "model.safetensors"))


# ---------------------------------------------------------------------- how many parameters
def test_parameters_added_are_what_arithmetic_says():
    D, M, L, R = 12, 20, 2, 3
    a, b = L * 2 * (2 * D * R + R + D), 3 * D
    attention, feed_forward = L * 4 * 2 * (D + D), L * 3 * 2 * (D + M)  # rank 2: q, k, v, o; up, gate, down
    expected = {
        "sequential": [a, 0], "parallel": [a, 0], "adapter of each": [a, a], "with head": [a, 0],
        "prompt": [b, 0], "prompt of each": [b, b], "lora": [attention + feed_forward, 0],
        "lora of each": [attention + feed_forward] * 2, "attention": [attention, 0],
        "feed-forward": [feed_forward, 0],
    }  # fmt: skip
    made = {**METHODS, "attention": partial(LoRA, rank=2, parts="attention"),
            "feed-forward": partial(LoRA, rank=2, parts="feed_forward")}  # fmt: skip
    for name, make in made.items():
        model, method, added = tiny("olmo"), make(), []
        for domain in DOMAINS:
            size = count(model)
            method.before(model, domain)
            method.after(model, domain)
            added.append(count(model) - size)
        assert added == expected[name], name
    model = tiny("olmo")
    stack = AdapterStack(model, hidden={"attention": 5, "feed_forward": 7})
    assert sum(p.numel() for p in stack.parameters()) == L * (2 * D * 5 + 5 + D + 2 * D * 7 + 7 + D)
    held = [Held(domain.name, domain.blocks, Rows(8, 2)) for domain in DOMAINS]
    one_each = specialists(tiny("olmo"), held, METHODS["lora"], replace(RECIPE, steps=1))
    assert one_each.added == [attention + feed_forward] * 2


def test_a_model_saved_with_modules_beside_it_opens_as_the_bare_one(tmp_path):
    for family, auto in (("gpt2", AutoModelForCausalLM), ("roberta", AutoModelForMaskedLM)):
        model = tiny(family)
        for name in SHORT:
            method = METHODS[name]()
            method.before(model, DOMAINS[0])
            method.after(model, DOMAINS[0]) if name != "adapter of each" else None
        assert beside.present(model) == ("adapters", "adapters0", "prompt0", "lora0")
        model.save_pretrained(tmp_path / family)
        opened, told = auto.from_pretrained(tmp_path / family, output_loading_info=True)
        assert torch.equal(logits(opened), logits(tiny(family))) and not told["missing_keys"]
        saved = load_file(tmp_path / family / "model.safetensors")
        own = {n: p for n, p in model.named_parameters() if n.startswith("beside.")}
        assert len(own) > 20 and all(torch.equal(saved[n], p) for n, p in own.items())


# ---------------------------------------------------------------------- adapters, written out
# attention, its last projection, first and last projection of the feed-forward layer
NAMES = {
    "olmo": ("self_attn", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
    "llama": ("self_attn", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
    "gpt2": ("attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": ("attention", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "roberta": ("attention", "attention.output.dense", "intermediate.dense", "output.dense"),
}
BLOCKS = {
    "olmo": "model.layers.{}", "llama": "model.layers.{}", "gpt2": "transformer.h.{}",
    "gpt_neox": "gpt_neox.layers.{}", "roberta": "roberta.encoder.layer.{}",
}  # fmt: skip


def explicit(adapter: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """up(relu(down(x))), an entry of the hidden layer at a time."""
    total = adapter.up.bias.expand_as(x).clone()
    for i, (row, bias) in enumerate(zip(adapter.down.weight, adapter.down.bias, strict=True)):
        total = total + (x @ row + bias).clamp(min=0)[..., None] * adapter.up.weight[:, i]
    return total


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", list(NAMES))
def test_adapters_add_what_is_written_down(family, placement):
    model = tiny(family, dtype=torch.float64, square=family in ("gpt2", "llama"))
    stack = beside.add_(model, "adapters", AdapterStack(model, hidden=3, placement=placement))
    stirred(stack)
    seen: dict[tuple[int, str, str], torch.Tensor] = {}

    def keep(key: tuple[int, str, str], at: int | None = None):
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            found = (args[0] if args else kwargs["hidden_states"]) if at == 0 else output
            seen[key] = found.detach().clone()

        return hook

    places = []
    for layer in range(2):
        block = BLOCKS[family].format(layer)
        attention, out, up, down = (model.get_submodule(f"{block}.{name}") for name in NAMES[family])
        places += [(layer, "attention", attention, out), (layer, "feed_forward", up, down)]
    for layer, site, begin, end in places:
        begin.register_forward_pre_hook(keep((layer, site, "x"), 0), with_kwargs=True)
        end.register_forward_hook(keep((layer, site, "y")), with_kwargs=True)  # before the adapter's own hook
    assert stack.places == [(layer, site) for layer, site, *_ in places]
    with torch.no_grad(), stack.inserted(model):
        for layer, site, _, end in places:
            end.register_forward_hook(keep((layer, site, "changed")), with_kwargs=True)
        model(input_ids=IDS)
    for layer, site, *_ in places:
        x, y, changed = (seen[layer, site, name] for name in ("x", "y", "changed"))
        read = y if placement == "sequential" else x
        expected = y + explicit(stack.adapter(layer, site), read)
        assert largest(changed - expected) < 1e-12 and largest(expected - y) > 1e-3


@pytest.mark.parametrize("family", list(NAMES))
def test_a_sequential_adapter_is_a_layer_behind_the_projection(family):
    """The same model with modules put in for good, no hook: equal logits, and equal gradients of the adapters."""

    class Behind(nn.Module):
        def __init__(self, linear: nn.Module, adapter: nn.Module) -> None:
            super().__init__()
            self.linear, self.adapter = linear, adapter

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            return y + self.adapter.up(torch.relu(self.adapter.down(y)))

    model = tiny(family, dtype=torch.float64)
    stack = beside.add_(model, "adapters", AdapterStack(model, hidden=3))
    stirred(stack)
    other = copy.deepcopy(model)
    for layer in range(2):
        for site, name in zip(SITES, NAMES[family][1::2], strict=True):
            path, _, own = f"{BLOCKS[family].format(layer)}.{name}".rpartition(".")
            holder = other.get_submodule(path)
            setattr(holder, own, Behind(getattr(holder, own), other.beside["adapters"].adapter(layer, site)))
    with stack.inserted(model):
        found = model(input_ids=IDS).logits
    expected = other(input_ids=IDS).logits
    assert largest(found - expected) < 1e-10
    for scores, which in ((found, model), (expected, other)):
        scores.square().mean().backward()
        assert all(p.grad is not None for p in which.beside["adapters"].parameters())
    for p, q in zip(stack.parameters(), other.beside["adapters"].parameters(), strict=True):
        assert largest(p.grad - q.grad) < 1e-10


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_is_hooked_between_an_adapters_layers(placement):
    """A transform sees input, hidden and output in this order, and what it gives is what goes on."""
    model = tiny("roberta", dtype=torch.float64)
    stack = beside.add_(model, "adapters", AdapterStack(model, hidden=3, placement=placement))
    stirred(stack)
    plain, order, inputs = logits(model), [], {}

    def write(layer: int, site: str, place: str, tensor: torch.Tensor) -> torch.Tensor:
        order.append((layer, site, place))
        inputs[layer, site, place] = tensor
        return tensor

    with torch.no_grad(), stack.inserted(model):
        whole = model(input_ids=IDS).logits
    with torch.no_grad(), stack.inserted(model, write):
        assert torch.equal(model(input_ids=IDS).logits, whole)
    assert order == [(*place, name) for place in stack.places for name in ("input", "hidden", "output")]
    for place in stack.places:
        own = stack.adapter(*place)
        hidden = torch.relu(own.down(inputs[*place, "input"]))
        assert torch.equal(inputs[*place, "hidden"], hidden) and hidden.shape == (3, 9, 3)
        assert torch.equal(inputs[*place, "output"], own.up(hidden))
    with stack.inserted(model, scaled(output=lambda layer, site: torch.zeros(12))):
        assert torch.equal(model(input_ids=IDS).logits, plain)

    # a mask on hidden units is the adapter without them, a scale of the output scales its last layer
    keep, size = torch.tensor([1.0, 0.0, 1.0]).double(), torch.linspace(0, 1, 12).double()
    with torch.no_grad(), stack.inserted(model, scaled(lambda *_: keep, lambda *_: size)):
        found = model(input_ids=IDS).logits
    with torch.no_grad():
        for place in stack.places:
            up = stack.adapter(*place).up
            up.weight.copy_(size[:, None] * up.weight * keep)
            up.bias.mul_(size)
    with torch.no_grad(), stack.inserted(model):
        assert largest(found - model(input_ids=IDS).logits) < 1e-12

    def masked(layer: int, site: str, place: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 0 if place == "input" else tensor

    with (
        torch.no_grad(),
        stack.inserted(model, masked),
    ):  # what reads nothing adds a constant; y itself is kept
        model(input_ids=IDS)


def test_stacks_follow_one_another_and_one_site_may_be_left_out():
    model = tiny("olmo", dtype=torch.float64)
    one = beside.add_(model, "one", AdapterStack(model, hidden=2, sites=("feed_forward",), seed=1))
    two = beside.add_(model, "two", AdapterStack(model, hidden=2, placement="parallel"))
    assert one.places == [(0, "feed_forward"), (1, "feed_forward")]
    plain = logits(model)
    stirred(two)
    with two.inserted(model):
        alone = logits(model)
    with one.inserted(model), two.inserted(model):  # `one` adds nothing
        assert torch.equal(logits(model), alone) and not torch.equal(alone, plain)
    stirred(one)
    with two.inserted(model), one.inserted(model):
        both = logits(model)
    assert not torch.equal(both, alone)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reduction": 0}, "reduction of at least 1; got 0"),
        ({"placement": "beside"}, "placement to be one of sequential, parallel; got 'beside'"),
        ({"reduction": 13}, "at most the model's width, 12; got 13"),
    ],
)
def test_adapters_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        Adapter(**wrong).before(tiny("olmo"), DOMAINS[0])


def test_stacks_that_cannot_be_are_refused():
    model = tiny("olmo")
    for wrong, said in (
        ({"hidden": 0}, "at least 1 wide"), ({"hidden": 2, "sites": ()}, "at one site or more"),
        ({"hidden": 2, "sites": ("head",)}, "site to be one of attention, feed_forward; got 'head'"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            AdapterStack(model, **wrong)


# ---------------------------------------------------------------------- LoRA, written out
def test_lora_is_the_weight_and_the_product_and_merges_into_it(family):
    square = family in ("gpt2", "olmo", "qwen2", "bert")
    model, method = tiny(family, dtype=torch.float64, square=square), LoRA(rank=2, alpha=3.0)
    tolerance = 1e-5 if family == "gptj" else 1e-10
    plain, drawn = logits(model), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft's, where it is told wrongly how a family keeps its matrices
        method.before(model, DOMAINS[0])
    assert torch.equal(torch.get_rng_state(), drawn)  # draws of its own
    method.after(model, DOMAINS[0])
    assert largest(logits(model, method) - plain) < 1e-12
    layers = beside.module(model, "lora")
    stirred(layers)
    shown = logits(model, method)
    assert largest(shown - plain) > 1e-3
    with pytest.raises(ZeroDivisionError), method.during(model, DOMAINS[0]):
        raise ZeroDivisionError
    assert torch.equal(logits(model), plain)
    other = tiny(family, dtype=torch.float64, square=square)
    changed = set()
    for name, layer in layers.items():
        path = name.replace("/", ".")
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        linear = other.get_submodule(path)
        update = (3.0 / 2) * B @ A  # [out in]
        with torch.no_grad():
            linear.weight += update.T if isinstance(linear, Conv1D) else update
        changed.add(f"{path}.weight")
    assert largest(logits(other) - shown) < tolerance
    every = {n for n, p in other.named_parameters() if p.ndim == 2 and ".word_" not in n and "embed" not in n}
    blocks = {n for n in every if any(f".{layer}." in n for layer in range(2))}
    assert changed == blocks  # every matrix of every block

    method.merge_(model, DOMAINS[0])
    assert not beside.present(model) and not hasattr(model, "beside")
    assert largest(logits(model) - shown) < tolerance and torch.equal(logits(model, method), logits(model))
    assert {n for n, p in model.named_parameters() if not torch.equal(p, tiny(family, dtype=torch.float64,
            square=square).get_parameter(n))} == changed  # fmt: skip
    with pytest.raises(BadInput, match="one before its first domain"):
        method.merge_(model, DOMAINS[0])


def test_a_trained_lora_merges_into_a_folder_that_opens(tmp_path):
    model, method = tiny("gpt2", dtype=torch.float64), METHODS["lora of each"]()
    train(model, DOMAINS[0], RECIPE, method)
    train(model, DOMAINS[1], RECIPE, method)
    shown = logits(model, method, DOMAINS[0])
    assert largest(shown - logits(model, method, DOMAINS[1])) > 1e-3
    method.merge_(model, DOMAINS[0])
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert largest(logits(opened) - shown) < 1e-10


def test_inside_lora_the_memories_are_refused_and_outside_they_are_there():
    model, method = tiny("llama"), METHODS["lora"]()
    method.before(model, DOMAINS[0])
    assert Memories(model).layers == 2
    with (
        method.during(model, DOMAINS[0]),
        pytest.raises(BadInput, match=r"plain weight at .*; got Linear; .* merge adapters"),
    ):
        Memories(model)
    assert Memories(model).layers == 2
    assert all(p.requires_grad for p in beside.module(model, "lora").parameters())
    layers = updates(model, projections(Memories(model), ("attention",)), 1, 1.0, 0)
    assert len(layers) == 8 and not any(".base_layer" in n for n, _ in layers.named_parameters())
    with (
        pytest.raises(BadInput, match="expected the path of a module"),
        worn(model, nn.ModuleDict({"no/where": nn.Identity()})),
    ):
        pass
    assert Memories(model).layers == 2


@pytest.mark.parametrize(("wrong", "said"), [({"rank": 0}, "rank of at least 1"), ({"parts": "head"}, "'head'"),
                                             ({"parts": "attention,attention"}, "name one")])  # fmt: skip
def test_loras_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        LoRA(**wrong)


def test_without_peft_it_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(BadInput, match="pip install peft"):
        LoRA().before(tiny("olmo"), DOMAINS[0])


# ---------------------------------------------------------------------- prompts, written out
def soft(count: int, width: int = 12, seed: int = 4) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_prompt_is_embeddings_put_in_front_and_cut_off_again(family):
    model, prompt = tiny(family, dtype=torch.float64), soft(4)
    plain, words = logits(model), model.get_input_embeddings()
    rows = torch.cat([prompt.expand(3, -1, -1), words(IDS)], 1)
    expected = logits(model, inputs_embeds=rows)[:, 4:]
    with prompted(model, prompt):
        found = logits(model)
        deep = model(input_ids=IDS, output_hidden_states=True)
        assert largest(logits(model, inputs_embeds=words(IDS)) - expected) < 1e-10
        labels = model(input_ids=IDS, labels=IDS).loss
        assert isinstance(model(input_ids=IDS, return_dict=False)[0], torch.Tensor)
        assert torch.equal(model(input_ids=IDS, return_dict=False)[0], model(input_ids=IDS).logits)
    assert found.shape == plain.shape and largest(found - plain) > 1e-3
    assert largest(found - expected) < (1e-5 if family == "gptj" else 1e-10)
    assert all(state.shape == (3, 9, 12) for state in deep.hidden_states)
    batch = {"input_ids": IDS, "labels": IDS}
    if family not in MASKED:
        assert largest(labels - evaluation.token_losses(found, causal.targets(batch))[:, :-1].mean()) < 1e-6
    assert torch.equal(logits(model), plain) and "forward" not in vars(model.base_model)
    with pytest.raises(ZeroDivisionError), prompted(model, prompt):
        raise ZeroDivisionError
    assert torch.equal(logits(model), plain) and "forward" not in vars(model.base_model)


def test_a_base_model_without_a_head_and_one_prompt_at_a_time():
    model, prompt = tiny("gpt2", dtype=torch.float64), soft(2)
    base = model.base_model
    rows = torch.cat([prompt.expand(3, -1, -1), base.wte(IDS)], 1)
    expected = base(inputs_embeds=rows).last_hidden_state[:, 2:]
    with prompted(base, prompt):
        assert largest(base(input_ids=IDS).last_hidden_state - expected) < 1e-10
        assert largest(base(IDS).last_hidden_state - expected) < 1e-10
        assert largest(logits(model) - model.lm_head(expected)) < 1e-10
        with pytest.raises(BadInput, match="one prompt at a time"), prompted(model, soft(1)):
            pass
        assert largest(base(IDS).last_hidden_state - expected) < 1e-10
    types = torch.ones_like(IDS)  # looked up in the table of words
    with prompted(model, prompt):
        told = logits(model, input_ids=IDS, token_type_ids=types)
    types = torch.cat([types.new_zeros(3, 2), types], 1)
    assert largest(told - logits(model, inputs_embeds=rows, token_type_ids=types)[:, 2:]) < 1e-10


@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "gpt_neox", "roberta", "bert"])
def test_behind_a_prompt_padding_and_given_positions_change_nothing(family):
    model, prompt = tiny(family, dtype=torch.float64), soft(4)
    pad = model.config.pad_token_id
    row, mask = torch.full((2, 9), pad), torch.zeros(2, 9, dtype=torch.long)
    row[0, :6], mask[0, :6], row[1], mask[1] = IDS[0, :6], 1, IDS[1], 1
    first = pad + 1 if family == "roberta" else 0
    with prompted(model, prompt):
        alone, whole = logits(model, input_ids=IDS[:1, :6]), logits(model, input_ids=IDS[1:2])
        both = logits(model, input_ids=row, attention_mask=mask)
        places = first + torch.arange(9)[None]
        for given in (places, places.expand(2, -1)):
            placed = logits(model, input_ids=row, attention_mask=mask, position_ids=given)
            assert largest(placed[1] - whole) < 1e-12 and largest(placed[0, :6] - alone) < 1e-12
        bare = logits(model, input_ids=IDS[1:2], position_ids=places)
    assert largest(both[0, :6] - alone) < 1e-12 and largest(both[1] - whole) < 1e-12
    assert largest(bare - whole) < 1e-12


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_prompt_is_kept_in_a_cache(family):
    """Text that goes on from a cache, with a mask and positions as the cloze has it, and generation."""
    model, prompt = tiny(family, dtype=torch.float64), soft(4)
    with torch.no_grad(), prompted(model, prompt):
        whole = model(input_ids=IDS).logits
        mask = torch.ones_like(IDS)
        for given in ({}, {"attention_mask": mask, "position_ids": torch.arange(5, 9).expand(3, -1)}):
            cache = model(input_ids=IDS[:, :5], use_cache=True).past_key_values
            rest = model(input_ids=IDS[:, 5:], past_key_values=cache, use_cache=True, **given).logits
            assert largest(rest - whole[:, 5:]) < 1e-10
        ids = IDS[:1, :5]
        for _ in range(4):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        made = model.generate(IDS[:1, :5], attention_mask=mask[:1, :5], max_new_tokens=4, do_sample=False,
                              eos_token_id=None, pad_token_id=1)  # fmt: skip
    assert torch.equal(made, ids)


def test_prompts_begin_as_words_and_are_not_decayed():
    model = tiny("olmo")
    found = []
    for number, domain in enumerate(DOMAINS):
        if not number:
            method = Prompt(tokens=5)
        method.before(model, domain)
        found.append(beside.module(model, f"prompt{number}").weight.detach().clone())
        assert [n for n, p in model.named_parameters() if p.requires_grad] == [
            f"beside.prompt{number}.weight"
        ]
        method.after(model, domain)
    words = model.get_input_embeddings().weight
    assert all((words == vector).all(1).any() for prompt in found for vector in prompt)
    assert not torch.equal(*found)
    still = replace(RECIPE, learning_rate=1e-12, weight_decay=1e11, steps=1)
    train(model, DOMAINS[0], still, method)
    assert largest(beside.module(model, "prompt0").weight - found[0]) < 1e-6  # decay would have taken a tenth


def test_a_prompt_of_no_tokens_is_the_frozen_model():
    model, method = tiny("roberta"), Prompt(tokens=0)
    plain = logits(model)
    method.before(model, DOMAINS[0])
    assert torch.equal(logits(model, method), plain)
    method.after(model, DOMAINS[0])
    with pytest.raises(BadInput, match="expected something to train"):
        train(tiny("olmo"), DOMAINS[0], RECIPE, Prompt(tokens=0))


@pytest.mark.parametrize("family", ["olmo", "gpt2", "gptj", "roberta"])
def test_a_prompt_and_a_row_must_fit_into_the_context(family):
    model = tiny(family, context=16)
    Prompt(tokens=6).before(model, DOMAINS[0])
    refused = "fit in the model's context of 16 tokens; got 7 and 10"
    with pytest.raises(BadInput, match=refused):
        Prompt(tokens=7, per_domain=False).before(model, DOMAINS[0])
    with prompted(model, soft(7).float()), pytest.raises(BadInput, match=refused):
        logits(model, input_ids=tokens(1, 10))
    with prompted(model, soft(6).float()):
        assert logits(model, input_ids=tokens(1, 10)).isfinite().all()
        with pytest.raises(BadInput, match=r"attention mask \[B T\] beside a prompt; got \[1, 1, 9, 9\]"):
            logits(model, input_ids=tokens(1, 9), attention_mask=torch.ones(1, 1, 9, 9))
    with pytest.raises(BadInput, match="0 tokens or more; got -1"):
        Prompt(tokens=-1)


# ---------------------------------------------------------------------- what lies beside
def test_sets_are_begun_ended_and_dropped():
    model, other = tiny("olmo"), nn.Linear(2, 2)
    beside.add_(model, "other", other)
    sets = beside.Sets("part", each=True)
    assert sets.of(model, "a") is None
    made = [sets.begin(model, name, lambda number: nn.Linear(2, 3 + number)) for name in ("a", "b.c", "a")]
    assert made[0] is made[2] and made[1].out_features == 4
    assert beside.present(model) == ("other", "part0", "part1")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"beside.part0.weight", "beside.part0.bias"}
    sets.end()
    assert all(p.requires_grad for p in model.parameters())
    assert sets.of(model, "b.c") is sets.of(model, "unseen") is made[1]
    sets.drop_(model)
    assert beside.present(model) == ("other",) and sets.of(model, "a") is None
    beside.drop_(model, "other")
    assert beside.present(model) == () and not hasattr(model, "beside")
    with pytest.raises(BadInput, match="there are none"):
        beside.drop_(model, "other")
    shared = beside.Sets("one", each=False)
    first = shared.begin(model, "a", lambda number: nn.Linear(2, 2))
    assert shared.begin(model, "b", lambda number: nn.Linear(2, 2)) is first
    shared.drop_(model)
    assert not hasattr(model, "beside")
    assert math.isfinite(evaluation.loss(model, Rows(3)))


def test_families_are_all_tried():
    assert set(NAMES) <= set(FAMILIES)
