"""DAS: what its mask spares, what its contrast sees, and one domain after another."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import MASKED, tiny, tokens
from torch import nn

from kemem.continual import Held, learn
from kemem.continual.contrast import (
    contrastive_loss,
    last_hidden,
    mispaired,
    present,
    representation,
    restored,
)
from kemem.continual.das import ABLATIONS, DAS, DEFECTS
from kemem.continual.gates import SITES, Units, gated, ones
from kemem.continual.importance import (
    Measuring,
    Released,
    domain_importance,
    emax,
    general_importance,
    normalised,
    random_importance,
)
from kemem.continual.softmask import multipliers
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import IGNORED, Causal, Masked, causal, logits_of, mix
from kemem.training import Domain, Method, Recipe, Together, train
from kemem.training.method import overrides

SOME = ("olmo", "llama", "gpt2", "gpt_neox", "roberta")
MASK = Masked(mask_id=4, vocabulary=61, share=0.3)
RECIPE = Recipe(steps=2, batch_size=8, learning_rate=1e-2)
ONE = replace(RECIPE, steps=1)
STILL = {  # what takes away the dropout that a family's tiny model has
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    **{name: {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} for name in MASKED},
}
SHARED = {"llama": {"width": 16, "heads": 4, "kv_heads": 2}}  # two query heads to each key-value head


class Rows:
    def __init__(self, rows: int = 12, length: int = 6, *, seed: int = 0) -> None:
        self.ids = tokens(rows, length, seed=seed)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.ids[indices]}


FIRST, SECOND = Domain("first", Rows(seed=1)), Domain("second", Rows(seed=2))


def exact(family: str, **changes) -> nn.Module:
    return tiny(family, dtype=torch.float64, **STILL.get(family, {}), **SHARED.get(family, {}), **changes)


def objective_of(family: str):
    return MASK if family in MASKED else causal


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(
    method: Method | None, model, recipe: Recipe = RECIPE, *, domains=(FIRST,), objective=causal, **options
):
    for domain in domains:
        train(model, domain, recipe, method, objective=objective, **options)
    return weights(model)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@dataclass(frozen=True)
class Fixed:
    """Importances that are given, and how often they were asked for."""

    units: Units
    asked: list[str]

    def __call__(self, model: nn.Module, domain: Domain) -> Units:
        self.asked.append(domain.name)
        return self.units


def fixed(units: Units, **settings: Any) -> DAS:
    return DAS(importance=Fixed(units, []), normalisation="none", **{"contrast": "none", **settings})


def zeros(model: nn.Module) -> Units:
    return ones(Memories(model)).map(torch.zeros_like)


def single(model: nn.Module, site: str, layer: int, unit: int) -> Units:
    found = zeros(model)
    getattr(found, site)[layer, unit] = 1.0
    return found


# ---------------------------------------------------------------------- what a mask spares
def belongs(model: nn.Module, site: str, layer: int, unit: int) -> dict[str, torch.Tensor]:
    """For each parameter, where it belongs to the unit: read off a copy whose other entries are 0."""
    marked = copy.deepcopy(model)
    with torch.no_grad():
        for p in marked.parameters():
            p.zero_()
    memories = Memories(marked)
    if site == "heads":
        parts = list(memories.head(layer, unit).values())
    elif site == "intermediate":
        parts = [memories.keys(layer)[unit], *([memories.gates(layer)[unit]] if memories.gated else [])]
        for bias in (memories.key_bias(layer), memories.gate_bias(layer) if memories.gated else None):
            parts += [] if bias is None else [bias[unit : unit + 1]]
    else:
        parts = [memories.values(layer)[unit]]
        parts += [] if memories.bias(layer) is None else [memories.bias(layer)[unit : unit + 1]]
    for part in parts:
        part.fill_(1)
    return {name: p.detach().bool() for name, p in marked.named_parameters()}


@pytest.mark.parametrize(
    ("family", "square"), [*((family, False) for family in SOME), ("llama", True), ("gpt2", True)]
)
def test_a_unit_of_importance_1_keeps_what_produces_it_and_all_else_moves_as_ever(family, square):
    """Bit for bit, weight decay included; with masked models and shared key-value heads."""
    start, objective = tiny(family, square=square, **SHARED.get(family, {})), objective_of(family)
    before = weights(start)
    plain = trained(None, copy.deepcopy(start), ONE, objective=objective)
    for site, layer, unit in (("heads", 1, 1), ("intermediate", 1, 7), ("output", 0, 3)):
        method = fixed(single(start, site, layer, unit), objective=objective)
        after = trained(method, copy.deepcopy(start), ONE, objective=objective)
        spared = belongs(start, site, layer, unit)
        assert sum(int(mask.sum()) for mask in spared.values()) >= 12
        for name, mask in spared.items():
            assert torch.equal(after[name], torch.where(mask, before[name], plain[name])), (site, name)
            if mask.any() and not name.endswith("bias"):  # a key's bias has no gradient in softmax attention
                assert (plain[name] != before[name])[mask].all()


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("family", SOME)
def test_the_mask_stands_where_the_gradient_of_the_unit_is(family, square):
    """Which weights produce a unit, asked of autograd instead of the orders that the package knows."""
    model = exact(family, square=square)
    memories = Memories(model)
    attention, down = memories.attention_path(0), memories.down_path(0)
    first = (memories.up_path(0), memories.gate_path(0) or memories.up_path(0))
    for site, path, side, place, below in (
        ("heads", f"{attention}.{memories.layout.output}", "input", slice(4, 8), attention + "."),
        ("intermediate", down, "input", slice(5, 6), tuple(f"{path}." for path in first)),
        ("output", down, "output", slice(7, 8), down),
    ):
        unit = 1 if site == "heads" else place.start
        masks = multipliers(model, single(model, site, 0, unit))
        caught: list[torch.Tensor] = []

        def catch(module, args, output, caught=caught, side=side):
            caught.append(args[0] if side == "input" else output)

        hook = model.get_submodule(path).register_forward_hook(catch)
        logits_of(model, FIRST.blocks.batch(torch.arange(6)))
        hook.remove()
        names = [name for name, p in model.named_parameters() if p.ndim == 2 and name.startswith(below)]
        parameters = [model.get_parameter(name) for name in names]
        grads = torch.autograd.grad(caught[0][..., place].square().sum(), parameters, allow_unused=True)
        for name, p, grad in zip(names, parameters, grads, strict=True):
            mask = (masks.get(name, torch.ones(())) == 0).expand_as(p)
            if grad is None:  # the attention's output: its columns read the head, they do not produce it
                columns = torch.zeros(memories.width, dtype=torch.bool)
                columns[place] = True
                assert torch.equal(mask if family != "gpt2" else mask.T, columns.expand(memories.width, -1))
            else:
                assert torch.equal(mask, grad != 0) and mask.any() and not mask.all(), (site, name)


@pytest.mark.parametrize("family", SOME)
def test_an_update_is_exactly_what_importance_leaves_of_it(family):
    model, objective = exact(family), objective_of(family)
    spared, before = random_importance(model, 3), weights(model)
    plain = Memories(copy.deepcopy(model))
    trained(None, plain.model, ONE, objective=objective)
    found = Memories(copy.deepcopy(model))
    trained(fixed(spared, objective=objective), found.model, ONE, objective=objective)
    start = Memories(model)

    def check(of, left) -> None:
        expected = of(start) + left * (of(plain) - of(start))
        torch.testing.assert_close(of(found), expected, rtol=0, atol=1e-15)

    for layer in (0, 1):
        heads, intermediate, output = (1 - getattr(spared, site)[layer] for site in SITES)
        for head in range(start.heads):
            for name in start.head(layer, head):
                shared = family == "llama" and name.removesuffix("_bias") in ("key", "value")
                left = heads[head // 2 * 2 : head // 2 * 2 + 2].min() if shared else heads[head]
                check(lambda m, n=name, lay=layer, h=head: m.head(lay, h)[n], left)
        check(lambda m, lay=layer: m.keys(lay), intermediate[:, None])
        check(lambda m, lay=layer: m.values(lay), output[:, None])
        if start.gated:
            check(lambda m, lay=layer: m.gates(lay), intermediate[:, None])
        if start.bias(layer) is not None:
            check(lambda m, lay=layer: m.bias(lay), output)
            check(lambda m, lay=layer: m.key_bias(lay), intermediate)
    assert same(weights(model), before)


def test_masks_are_small_and_follow_from_importances():
    model = tiny("gpt2")
    assert multipliers(model, zeros(model)) == {}
    masks = multipliers(model, single(model, "intermediate", 1, 4))
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        "transformer.h.1.mlp.c_fc.weight": (1, 20), "transformer.h.1.mlp.c_fc.bias": (20,),
    }  # fmt: skip
    half = multipliers(tiny("olmo", dtype=torch.bfloat16), zeros(model).map(lambda z: z + 0.001))
    assert all(mask.dtype == torch.float32 and (mask == 0.999).all() for mask in half.values())
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(BadInput, match=r"importances in \[0, 1\]; got"):
            multipliers(model, zeros(model).map(lambda z, w=wrong: z + w))
    with pytest.raises(BadInput, match="measure this very model"):
        multipliers(model, zeros(tiny("gpt2", memories=8)))


def test_frozen_parameters_and_other_placements():
    model = exact("olmo")
    for name, p in model.named_parameters():
        p.requires_grad_("down_proj" not in name)
    before = weights(model)
    after = trained(fixed(single(model, "output", 0, 3)), model)
    assert all(torch.equal(after[n], before[n]) == ("down_proj" in n) for n in after)
    # a gradient of 0 does not hold a weight that decays
    start, spared = exact("olmo"), single(exact("olmo"), "intermediate", 0, 3)
    recipe = replace(ONE, weight_decay=0.1, clip=0.0)
    row = Memories(start).keys(0)[3].clone()
    for placement, factor in (("update", 1.0), ("gradient", 1 - 0.1 * recipe.rate(0))):
        model = copy.deepcopy(start)
        trained(fixed(spared, placement=placement), model, recipe)
        torch.testing.assert_close(Memories(model).keys(0)[3], factor * row, rtol=1e-14, atol=0)


def test_adam_undoes_a_mask_of_the_gradient_and_not_one_of_the_update():
    """How far the rows of neurons move with I = 0.9 against none: 0.1 of it, or nearly all."""
    recipe = replace(RECIPE, steps=10, weight_decay=0.0, clip=0.0, learning_rate=1e-4, schedule="constant")
    start = exact("olmo")
    spared = zeros(start)
    spared.intermediate[0] += 0.9

    def distance(method, recipe=recipe) -> float:
        model = copy.deepcopy(start)
        trained(method, model, recipe)
        return float((Memories(model).keys(0) - Memories(start).keys(0)).norm())

    plain = distance(None)
    gradient, update = (distance(fixed(spared, placement=p)) / plain for p in ("gradient", "update"))
    assert 0.97 < gradient < 1.03 and 0.098 < update < 0.102
    slow = replace(recipe, optimizer="sgd", betas=(0.0, 0.0), steps=1)
    plain = distance(None, slow)
    for placement in ("gradient", "update"):
        assert distance(fixed(spared, placement=placement), slow) / plain == pytest.approx(0.1, rel=1e-12)


# ---------------------------------------------------------------------- nothing spared, nothing changed
@pytest.mark.parametrize("family", ["gpt2", "roberta", "llama"])
def test_importance_0_without_contrast_is_plain_training_bit_for_bit(family):
    """With dropout where the family has it: the method's passes draw from generators of their own."""
    objective, recipe = objective_of(family), replace(RECIPE, accumulation=2)
    plain = trained(None, tiny(family, layers=1), recipe, objective=objective)
    nothing = zeros(tiny(family, layers=1))
    for method in (
        *(fixed(nothing, placement=placement) for placement in ("update", "gradient")),
        fixed(nothing, contrast="full", weight=0.0),
        DAS(soft_mask=False, contrast="none"),
        DAS(soft_mask=False, weight=1e-45),  # the contrast's passes are run, and add nothing
    ):
        method.objective = objective
        assert same(trained(method, tiny(family, layers=1), recipe, objective=objective), plain), method
    other = DAS(soft_mask=False, objective=objective, weight=0.1)
    assert not same(trained(other, tiny(family, layers=1), recipe, objective=objective), plain)
    # what is measured does not reach the training that follows: only the mask does
    unmasked = DAS(contrast="none", objective=objective)
    unmasked.gradients = lambda model: None
    vars(unmasked)["updated"] = lambda model, previous: None
    found = trained(unmasked, tiny(family, layers=1), recipe, objective=objective)
    assert same(found, plain) and unmasked.known is not None


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_accumulation_leaves_the_masked_step_as_it_is(family):
    whole, cut = (
        trained(
            DAS(contrast="none", objective=objective_of(family)), exact(family, layers=1),
            replace(RECIPE, accumulation=n), objective=objective_of(family),
        )
        for n in (1, 4)
    )  # fmt: skip
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-6, atol=1e-10)


def test_all_weights_are_copied_at_a_step_only_where_the_update_is_masked():
    for settings, copied in (({}, True), ({"placement": "gradient"}, False), ({"soft_mask": False}, False)):
        assert overrides(DAS(**settings), "updated") is copied
        assert overrides(Together((DAS(**settings),)), "updated") is copied


# ---------------------------------------------------------------------- the contrast
def test_the_contrast_is_the_sum_written_out():
    generator = torch.Generator().manual_seed(0)
    full, twin, previous = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)

    def cosine(a, b) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(
            sum(x * x for x in a) * sum(y * y for y in b)
        )

    for known in (previous, None):
        total = 0.0
        for n in range(4):
            near = math.exp(cosine(full[n].tolist(), twin[n].tolist()) / 0.3)
            every = sum(math.exp(cosine(full[n].tolist(), twin[j].tolist()) / 0.3) for j in range(4))
            if known is not None:
                every += sum(math.exp(cosine(full[n].tolist(), known[j].tolist()) / 0.3) for j in range(4))
            total -= math.log(near / every) / 4
        assert float(contrastive_loss(full, twin, known, 0.3)) == pytest.approx(total, rel=1e-12)
    assert float(contrastive_loss(full[:1], twin[:1], None, 0.3)) == 0.0


def test_a_released_pair_is_two_neighbouring_texts():
    full = torch.arange(6.0)[:, None].expand(6, 2)
    one, other = mispaired(full, full + 10)
    assert one[:, 0].tolist() == [0, 2, 4, 10, 12, 14] and other[:, 0].tolist() == [1, 3, 5, 11, 13, 15]
    one, other = mispaired(full[:3], full[:3] + 10)
    assert one[:, 0].tolist() == [0, 2, 11] and other[:, 0].tolist() == [1, 10, 12]
    # of texts that differ no twin is among the candidates, or it is there as a negative
    for texts, known, expected in ((8, False, math.log(8)), (7, False, 20.0), (8, True, 20.0)):
        apart = torch.eye(texts, dtype=torch.float64)
        previous = apart if known else None
        assert float(contrastive_loss(apart, apart, None, 0.05)) < 1e-7
        assert float(contrastive_loss(*mispaired(apart, apart), previous, 0.05)) == pytest.approx(
            expected, abs=0.7
        )


class Watched(DAS):
    """Keeps the views of every micro-batch, and whether the loss's own pass was one of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.views, self.seen = [], []

    def _views(self, model, batch, seen):
        found = super()._views(model, batch, seen)
        self.views.append(tuple(None if view is None else view.detach() for view in found))
        self.seen.append(seen is not None)
        return found


def hidden(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The mean over places of what transformers calls the last hidden state."""
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[-1].mean(1)


@pytest.mark.parametrize("family", [*SOME, "gptj"])
def test_views_are_the_whole_model_and_the_known_part_of_it(family):
    model, objective = exact(family), objective_of(family)
    known, rows = random_importance(model, 1), torch.arange(8)
    raw = FIRST.blocks.batch(rows)
    batch = objective.prepare(raw, [mix(7, row) for row in range(8)])
    assert torch.equal(restored(batch)["input_ids"], raw["input_ids"])
    assert (family in MASKED) != torch.equal(batch["input_ids"], raw["input_ids"])
    whole_view = hidden(model, raw["input_ids"])
    placed = {"before_activation": family in ("gpt2", "roberta")}
    with gated(model, known, **placed):
        known_view = hidden(model, raw["input_ids"])
    with gated(model, known.map(lambda u: 1 - u), **placed):
        own_view = hidden(model, raw["input_ids"])
    close = {"rtol": 1e-5, "atol": 1e-6} if family == "gptj" else {"rtol": 1e-10, "atol": 1e-12}
    for kind, expected in (("full", whole_view), ("domain", own_view)):
        method = Watched(
            importance=Fixed(known, []), normalisation="none", objective=objective, contrast=kind, weight=0.5,
            **placed,
        )  # fmt: skip
        with torch.no_grad():
            method.before(model, FIRST)
            method._drops = True  # as if: the twin is a pass of its own then
            model.train()
            with method.during(model, FIRST):
                loss = objective(model, batch)
                total = method.loss(model, batch, loss)
        (full, twin, previous), (seen,) = method.views[0], method.seen
        torch.testing.assert_close(full, expected, **close)
        torch.testing.assert_close(twin, full, **close)  # identical, for there is no dropout
        torch.testing.assert_close(previous, known_view, **close)
        assert seen == (kind == "full" and family not in MASKED) and method._passed.take(batch) is None
        torch.testing.assert_close(total, loss + 0.5 * contrastive_loss(full, twin, previous, 0.05))
    assert (whole_view - own_view).abs().max() > 1e-3 < (whole_view - known_view).abs().max()


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_twins_differ_by_dropout_that_is_new_at_every_step_and_part(family):
    objective = objective_of(family)
    model = tiny(family)
    same_rows = Rows()
    same_rows.ids = Rows(1).ids.expand(12, -1)  # one text everywhere: views differ by dropout alone
    method = Watched(objective=objective, initialisation=False)
    tiny_steps = replace(RECIPE, steps=2, learning_rate=1e-12, accumulation=2)
    train(model, Domain("same", same_rows), tiny_steps, method, objective=objective)
    twins = torch.cat([twin for _, twin, _ in method.views])  # 2 steps of 2 parts of 4
    full = torch.cat([full for full, _, _ in method.views])
    assert len(twins) == 16
    apart = torch.cdist(torch.cat([twins, full]), torch.cat([twins, full])) + torch.eye(32)
    assert apart.min() > 1e-3


@pytest.mark.parametrize(
    ("family", "changes", "settings", "passes"),
    [
        ("gpt2", {}, {}, (3, 1)), ("gpt2", STILL["gpt2"], {}, (2, 1)), ("olmo", {}, {}, (2, 1)),
        ("roberta", {}, {}, (4, 1)), ("roberta", {}, {"contrast": "none"}, (1, 1)),
        ("roberta", {}, {"soft_mask": False}, (3, 1)), ("gpt2", {}, {"weight": 0.0}, (1, 1)),
        ("gpt2", {}, {"contrast": "domain"}, (4, 1)),
    ],
)  # fmt: skip
def test_passes_of_a_step(family, changes, settings, passes):
    """Of the model without its head, and of the head."""
    model, objective, counts = tiny(family, **changes), objective_of(family), [0, 0]
    given = {"importance": "random", "objective": objective, **settings}

    class Counting(DAS):
        def rows(self, step, batch):
            for i, module in enumerate(
                (getattr(model, model.base_model_prefix), model.get_output_embeddings())
            ):
                hooks.append(
                    module.register_forward_hook(lambda m, a, o, i=i: counts.__setitem__(i, counts[i] + 1))
                )
            return super().rows(step, batch)

        def after(self, model, domain):
            for hook in hooks:
                hook.remove()

    hooks: list[Any] = []
    trained(Counting(**given), model, ONE, objective=objective)
    assert tuple(counts) == passes


def test_padding_does_not_reach_a_representation():
    model = exact("olmo")
    ids = FIRST.blocks.ids[:3]
    more = torch.ones(3, 4, dtype=ids.dtype)
    padded = {
        "input_ids": torch.cat([ids, more], 1),
        "labels": torch.cat([ids, IGNORED * more], 1),
        "attention_mask": torch.cat([torch.ones_like(ids), 0 * more], 1),
    }
    plain = {"input_ids": ids, "labels": ids}
    a, b = (representation(last_hidden(model, batch), present(batch)) for batch in (plain, padded))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert representation(torch.ones(1, 2, 3, dtype=torch.bfloat16), None).dtype == torch.float32
    assert torch.equal(restored(padded)["input_ids"], padded["input_ids"])


class Passing(Method):
    """Another method that runs the model on other text, or on nearly the same."""

    def loss(self, model, batch, loss):
        model(input_ids=batch["input_ids"].flip(0), use_cache=False)
        return loss


def test_passes_of_other_methods_are_not_taken_for_the_loss_s_own():
    """Where one comes between, it runs one more of its own and comes to the same."""
    recipe, found = replace(ONE, accumulation=2), {}
    for name in ("alone", "before", "after"):
        method = Watched(importance="random")
        methods = {"alone": [method], "before": [Passing(), method], "after": [method, Passing()]}[name]
        trained(Together(methods), exact("gpt2"), recipe)
        found[name] = method.seen, method.views
    assert [seen for seen, _ in found.values()] == [[True, True], [False, False], [True, True]]
    for name in ("before", "after"):
        for views, expected in zip(found[name][1], found["alone"][1], strict=True):
            torch.testing.assert_close(views, expected, rtol=1e-10, atol=1e-12)


def test_a_detached_view_gives_no_gradient():
    model, batch = exact("olmo"), FIRST.blocks.batch(torch.arange(4))
    for detach in (False, True):
        method = fixed(random_importance(model, 0), contrast="full", detach=detach)
        method.before(model, FIRST)
        full, _, previous = method._views(model, batch, None)
        assert full.requires_grad and previous.requires_grad is not detach


# ---------------------------------------------------------------------- one domain after another
@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_what_is_known_is_the_maximum_of_all_that_was_measured(family):
    """Measured at the right moments: before the first domain, and at the end of each."""
    objective = objective_of(family)
    model = tiny(family, layers=1)
    measuring = {"samples": 10, "batch_size": 4, "before_activation": family == "roberta"}
    how = [Measuring(**measuring, seed=mix(5, number)) for number in range(3)]
    expected = normalised(general_importance(model, FIRST.blocks, 0.3, how[0]), "rank")
    method = DAS(objective=objective, normalisation="rank", noise=0.3, seed=5, **measuring)
    for number, domain in enumerate((FIRST, SECOND), 1):
        trained(method, model, ONE, domains=(domain,), objective=objective)
        found = domain_importance(model, domain.blocks, objective, how[number])
        expected = emax(expected, normalised(found, "rank"))
        assert all(torch.equal(getattr(method.known, site), getattr(expected, site)) for site in SITES)
        assert method.domains == number


def test_ablations():
    model = tiny("gpt2")
    random = DAS(importance="random", seed=3)
    random.before(model, FIRST)
    first = random_importance(model, mix(3, 0))
    assert torch.equal(random.known.output, first.output)
    random.after(model, FIRST)
    expected = emax(first, random_importance(model, mix(3, 1)))
    assert torch.equal(random.known.output, expected.output) and not torch.equal(
        first.output, expected.output
    )
    late = DAS(initialisation=False)
    late.before(model, FIRST)
    assert late.known is None
    with late.during(model, FIRST):
        assert late._masks == {} and late._views(model, FIRST.blocks.batch(torch.arange(3)), None)[2] is None
    late.after(model, FIRST)
    expected = normalised(domain_importance(model, FIRST.blocks, how=Measuring(seed=mix(0, 1))), "tanh_clip")
    assert torch.equal(late.known.heads, expected.heads)
    apart = DAS(soft_mask=False)
    apart.before(model, FIRST)
    apart.after(model, FIRST)
    assert apart.known is None  # nothing is measured that nothing needs


def test_every_ablation_and_defect_changes_the_run():
    """What a run leaves behind: weights, and what is known; on a masked model, for which all of them say something."""

    def run(**settings) -> dict[str, torch.Tensor]:
        method = DAS(**{"objective": MASK, "samples": 6, "batch_size": 4, **settings})
        found = trained(method, tiny("roberta", memories=8, layers=1), ONE, objective=MASK)
        assert all(torch.isfinite(p).all() for p in found.values())
        return found | ({} if method.known is None else method.known.tensors())

    plain = run()
    assert same(run(), plain) and not same(run(seed=1), plain)
    assert set(DEFECTS) > set(vars(Released())) and len(DEFECTS) == 10 and len(ABLATIONS) == 5
    for name, settings in {**ABLATIONS, **DEFECTS}.items():
        assert not same(run(**settings), plain), name


def test_a_sequence_of_domains():
    held = [Held("a", Rows(seed=1), Rows(4, seed=3)), Held("b", Rows(seed=2), Rows(4, seed=4))]
    for family in ("olmo", "roberta"):
        objective = objective_of(family)
        method = DAS(objective=objective)
        course = learn(tiny(family, layers=1), held, method, RECIPE, objective=objective)
        assert all(math.isfinite(x) for row in course.loss for x in row) and course.added == [0, 0]
        assert method.domains == 2 and method._masks is None


def test_another_importance_may_stand_in():
    model = tiny("olmo")
    mine = Fixed(random_importance(model, 0), [])
    method = DAS(importance=mine, normalisation="rank")
    trained(method, model, domains=(FIRST, SECOND))
    assert mine.asked == ["first", "first", "second"]
    function = partial(random_importance, seed=3)
    assert DAS(importance=function).others.startswith(
        "importance=functools.partial(<function random_importance>, seed=3)"
    )
    expected = normalised(mine.units, "rank")
    assert torch.equal(method.known.intermediate, expected.intermediate)


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_as_released_heads_mask_columns(family):
    model = exact(family)
    spared = zeros(model)
    spared.heads[0] = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    masks = multipliers(model, spared, head_columns=True)
    vector = torch.tensor([0.8] * 4 + [0.5] * 4 + [0.0] * 4, dtype=torch.float64)
    marked = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in marked.named_parameters():
            p.copy_(masks.get(name, torch.ones(())).expand_as(p))
    memories = Memories(marked)
    for head, left in enumerate((0.8, 0.5, 0.0)):
        parts = memories.head(0, head)
        for name in ("query", "key", "value"):
            torch.testing.assert_close(parts[name], vector.expand(4, 12), rtol=0, atol=1e-15)
            assert (parts[f"{name}_bias"] - left).abs().max() < 1e-15
        assert (parts["output"] - left).abs().max() < 1e-15
    bias = f"{memories.attention_path(0)}.{memories.layout.output}.bias"
    torch.testing.assert_close(masks[bias], vector, rtol=0, atol=1e-15)
    assert all("attention" in name or ".attn." in name for name in masks)


def test_as_released():
    released = DAS.as_released(objective=MASK, samples=8)
    assert all(vars(released.released).values()) and released.before_activation
    assert (released.normalisation, released.placement, released.samples) == ("paper_abs", "gradient", 8)
    trained(released, tiny("roberta"), domains=(FIRST, SECOND), objective=MASK)
    assert released.domains == 2 and released.known.output.max() <= 1
    for model, settings, said in (
        (tiny("llama"), {}, "product of two projections"),
        (tiny("llama"), {"before_activation": False}, "each with a key and value of its own"),
        (tiny("qwen3", kv_heads=3), {"before_activation": False}, "got 3 of 6, 3 with a key and value"),
    ):
        with pytest.raises(BadInput, match=said):
            DAS.as_released(**settings).before(model, FIRST)


# ---------------------------------------------------------------------- a run that is broken off
class Broken(Exception):
    pass


def test_broken_off_it_ends_in_the_same_numbers(tmp_path):
    """Of a masked model with dropout, and its gradients masked; the next test has a causal one."""
    recipe = replace(RECIPE, steps=3, save_every=2, accumulation=2)

    def run(folder, stop: int = 99):
        method, left = DAS(objective=MASK, placement="gradient"), [stop]
        plain = method.gradients

        def gradients(model) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Broken
            plain(model)

        method.gradients = gradients
        model = tiny("roberta", layers=1)
        for domain in (FIRST, SECOND):
            out = None if folder is None else folder / domain.name
            train(model, domain, recipe, method, objective=MASK, out=out)
        return weights(model), method.known.tensors()

    whole = run(None)
    with pytest.raises(Broken):
        run(tmp_path, 5)  # in the last step of the second domain
    # the step that was not saved; then, finished, all is measured again and nothing repeated
    for left in (1, 0):
        found = run(tmp_path, left)
        assert same(found[0], whole[0]) and same(found[1], whole[1])


def test_a_second_domain_is_resumed_without_the_first(tmp_path):
    """The state holds what was known; a method that has seen nothing takes it up."""
    recipe = replace(RECIPE, steps=3, save_every=1)

    class Stopping(DAS):
        left = 99

        def gradients(self, model):
            self.left -= 1
            if self.left < 0:
                raise Broken

    def second(method: DAS, model: nn.Module, out=None):
        train(model, SECOND, recipe, method, out=out)
        return weights(model), method.known.tensors(), method.domains

    method, model = Stopping(samples=8), tiny("llama", layers=1)
    train(model, FIRST, recipe, method)
    start = copy.deepcopy(model)
    twin = copy.deepcopy(method)
    whole = second(twin, copy.deepcopy(start))
    method.left = 2
    with pytest.raises(Broken):
        second(method, copy.deepcopy(start), tmp_path)
    found = second(Stopping(samples=8), copy.deepcopy(start), tmp_path)
    assert same(found[0], whole[0]) and same(found[1], whole[1]) and found[2] == whole[2] == 2


def test_a_folder_of_other_settings_is_refused(tmp_path):
    trained(DAS(samples=8), tiny("llama", layers=1), out=tmp_path)
    for settings, said in (
        ({"temperature": 0.1}, r"method.temperature \(0.05 there, 0.1 now\)"),
        ({"released": Released(signed=True)}, r"method.others .*signed=False.* there, .*signed=True"),
        (
            {"importance": Fixed(zeros(tiny("llama", layers=1)), [])},
            r"importance=own.* there, 'importance=Fixed",
        ),
    ):
        with pytest.raises(BadInput, match=said):
            trained(DAS(**{"samples": 8, **settings}), tiny("llama", layers=1), out=tmp_path)


# ---------------------------------------------------------------------- what cannot be
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"normalisation": "zscore"},
            "normalisation to be one of tanh_clip, paper_abs, rank, none; got 'zscore'",
        ),
        ({"placement": "weights"}, "placement to be one of update, gradient; got 'weights'"),
        ({"contrast": "half"}, "contrast to be one of full, domain, none; got 'half'"),
        ({"contrast": "domain", "soft_mask": False}, "full or none without a soft mask"),
        ({"weight": -1.0}, "weight to be 0 or more; got -1.0"),
        ({"weight": math.nan}, "weight to be 0 or more"),
        ({"temperature": 0.0}, "temperature to be above 0"),
        ({"noise": 1.0}, "noise to be a share"),
        ({"importance": "magnitude"}, "importance to be own, random or a function; got 'magnitude'"),
        ({"samples": 0}, "samples to be a whole number"),
        ({"batch_size": 0}, "batch_size to be at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said) as caught:
        DAS(**settings)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_model_is_refused_before_a_step():
    model = tiny("olmo")
    with pytest.raises(BadInput, match="needs two passes that differ"):
        trained(DAS(noise=0.0), model)
    with pytest.raises(BadInput, match="leave before_activation out"):
        trained(DAS(before_activation=True), model)
    with pytest.raises(BadInput, match="a language-model head over a base model; got OlmoModel"):
        DAS().before(model.model, FIRST)
    with pytest.raises(BadInput, match="measure this very model"):
        trained(fixed(zeros(tiny("olmo", memories=8))), model)
    with pytest.raises(BadInput, match="objective to be the one that training is given"):
        trained(DAS(contrast="none"), tiny("roberta"), objective=MASK)
    assert isinstance(DAS().objective, Causal)
