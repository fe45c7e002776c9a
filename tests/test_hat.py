"""HAT: masks, their gradients and what they hold, against autograd, plain loops and edited weights."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, MASKED, tiny, tokens
from torch import nn

from kemem.continual import Held, beside, learn
from kemem.continual.hat import HAT, freedoms, multiplied, sizes
from kemem.continual.taskmasks import TaskMasks, compensation, freedom, freedom_of_two, sparsity, steepness
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import Masked, Objective, causal
from kemem.training import Domain, Method, Recipe, train

RECIPE = Recipe(steps=4, batch_size=8, learning_rate=1e-2, weight_decay=0.3, clip=0.0, log_every=1)
SEVERAL = (
    "olmo",
    "llama",
    "gpt2",
    "gpt_neox",
    "roberta",
)  # plain, grouped heads, Conv1D, fused heads, masked


# ---------------------------------------------------------------------- shared with the tests of its relatives
class Text:
    """Rows of random tokens."""

    def __init__(self, rows: int = 24, length: int = 8, *, seed: int = 0) -> None:
        self.ids = tokens(rows, length, seed=seed)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.ids[indices].clone()}


def domain(number: int = 0) -> Domain:
    return Domain(f"domain {number}.", Text(seed=10 + number))


def held(number: int) -> Held:
    return Held(domain(number).name, domain(number).blocks, Text(8, seed=20 + number))


def objective(family: str) -> Objective:
    return Masked(mask_id=2, vocabulary=61, share=0.4) if family in MASKED else causal


def net(family: str = "olmo", *, seed: int = 1, **changes: Any) -> nn.Module:
    return tiny(family, seed=seed, dtype=torch.float64, **{**quiet(family), **changes})


def quiet(family: str, share: float = 0.0) -> dict[str, float]:
    """The dropout of a family that has it by default."""
    old, new = (
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    )
    names = {"gpt2": old, "gptj": old, **dict.fromkeys(MASKED, new)}
    return dict.fromkeys(names.get(family, ("attention_dropout",)), share)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference, as a share of the largest entry of its tensor."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max() / b[n].abs().max().clamp(min=1e-3)) for n in a)


def scores(model: nn.Module, seed: int = 3) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(3, 7, seed=seed)).logits


def moved(model: nn.Module, method: Method, *, count: int = 2, recipe: Recipe = RECIPE, family: str = "olmo"):
    """The model after `count` domains."""
    for number in range(count):
        seen = [domain(n) for n in range(number)]
        train(model, domain(number), recipe, method, objective=objective(family), earlier=seen)
    return model


class Stop(Exception):
    pass


def stopping(method: Method, step: int) -> Method:
    """The same method, which breaks off after so many steps."""
    original, left = method.gradients, [step]

    def gradients(model: nn.Module) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        original(model)

    method.gradients = gradients  # type: ignore[method-assign]
    return method


def resumes(method: Any, folder: Path, family: str = "gpt2", *, steps: int = 4) -> None:
    """Killed in the second domain and begun again, with dropout, it ends as if nothing had been."""
    recipe = replace(RECIPE, save_every=1, steps=steps)
    ends = []
    for name, stop in (("whole", None), ("broken", steps + 2), ("broken", None)):
        model = tiny(family, **quiet(family, 0.2))
        made = method() if stop is None else stopping(method(), stop)
        try:
            course = learn(
                model, [held(0), held(1)], made, recipe, out=folder / name, objective=objective(family)
            )
        except Stop:
            continue
        ends.append((weights(model), course.loss))
    assert equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]
    assert stop is None and len(list((folder / "broken").iterdir())) == 2


def set_(model: nn.Module, masks: TaskMasks, values: Any) -> None:
    """Sets the embeddings of the latest task."""
    with torch.no_grad():
        for site, e in masks.embeddings(model).items():
            e.copy_(values(site, e))


def split(site: str, e: torch.Tensor) -> torch.Tensor:
    """About half of the units wide open, the rest shut, different at every site."""
    own = torch.Generator().manual_seed(sum(map(ord, site)))
    signs = torch.where(torch.rand(e.shape, generator=own) < 0.5, 5.5, -5.5)
    signs[0], signs[-1] = 5.5, -5.5
    return signs


def begun(method: Any, values: Any) -> Any:
    """The same method, whose first task begins with these embeddings."""
    original = method.before

    def before(model: nn.Module, domain: Domain) -> None:
        original(model, domain)
        if len(method._masks.tasks) == 1:
            set_(model, method._masks, values)

    method.before = before
    return method


# ---------------------------------------------------------------------- the arithmetic of masks
def test_steepness_goes_from_one_over_smax_to_smax():
    found = [steepness(step, 11, 400.0) for step in range(1, 12)]
    assert found[0] == 1 / 400 and found[-1] == pytest.approx(400, rel=1e-15)
    assert found[5] == pytest.approx((400 + 1 / 400) / 2)
    assert steepness(1, 1, 400.0) == 1 / 400
    with pytest.raises(BadInput, match=r"11 steps.*got step 12"):
        steepness(12, 11, 400.0)


@pytest.mark.parametrize("s", [1 / 400, 0.3, 1.0, 5.0, 20.0])
def test_compensation_is_the_gradient_of_the_mask_that_is_not_steep(s):
    """smax times d sigmoid(e)/de, with what comes from above as it was; exact while |s e| is below 50."""
    drawn = torch.Generator().manual_seed(0)
    e = (torch.rand(40, generator=drawn, dtype=torch.float64) * 3 - 1.5).requires_grad_()
    v = torch.randn(40, generator=drawn, dtype=torch.float64)
    (steep,) = torch.autograd.grad((v * torch.sigmoid(s * e)).sum(), e)
    (plain,) = torch.autograd.grad((v * 400.0 * torch.sigmoid(e)).sum(), e)
    # what sigmoid's derivative loses to rounding at its upper end is all that is lost
    assert torch.allclose(steep * compensation(e.detach(), s, 400.0), plain, rtol=1e-3 if s > 10 else 1e-9)


def test_compensation_is_clipped_as_published():
    e = torch.tensor([-6.0, 0.0, 0.2, 6.0], dtype=torch.float64)
    found = compensation(e, 400.0, 400.0)
    by_hand = (torch.cosh(torch.tensor([50.0, 0, 50, 50]).double()) + 1) / (torch.cosh(e) + 1)
    assert torch.allclose(found, by_hand, rtol=1e-12) and found[1] == 1
    assert compensation(e, 2.0, 400.0)[1] == 200


def test_sparsity_against_arithmetic():
    masks = {"a": torch.tensor([0.2, 0.9]), "b": torch.tensor([1.0, 0.0, 0.5])}
    assert sparsity(masks, {}).item() == pytest.approx(2.6 / 5)
    used = {"a": torch.tensor([1.0, 0.5]), "b": torch.tensor([0.0, 1.0, 0.2])}
    assert sparsity(masks, used).item() == pytest.approx((0.9 * 0.5 + 1.0 + 0.5 * 0.8) / (0.5 + 1 + 0.8))
    full = {site: torch.ones_like(m) for site, m in masks.items()}
    assert sparsity(masks, full).item() == 0.0
    e = torch.zeros(2, requires_grad=True)
    sparsity({"a": torch.sigmoid(e)}, {"a": torch.ones(2)}).backward()
    assert torch.equal(e.grad, torch.zeros(2))  # and no NaN


def test_freedom_is_one_minus_the_smaller_of_both_units():
    out, into = torch.tensor([1.0, 0.3]), torch.tensor([0.9, 0.0, 1.0])
    expected = [[1 - min(float(i), float(j)) for j in into] for i in out]
    assert torch.allclose(freedom(out, into), torch.tensor(expected))
    assert torch.equal(freedom(out, None), 1 - out[:, None]) and torch.equal(
        freedom(None, into), 1 - into[None]
    )


def test_freedom_of_an_adapter_by_a_plain_loop():
    hidden, output = torch.tensor([1.0, 0.0, 0.4]), torch.tensor([0.0, 1.0])
    free = freedom_of_two("a", hidden, output)
    down, up = nn.Linear(2, 3), nn.Linear(3, 2)
    for layer, name, into in ((down, "down", None), (up, "up", hidden)):
        own = hidden if name == "down" else output
        for i in range(layer.out_features):
            for j in range(layer.in_features):
                both = min(own[i], into[j]) if into is not None else own[i]
                assert free[f"a.{name}.weight"].expand_as(layer.weight)[i, j] == 1 - both
            assert free[f"a.{name}.bias"][i] == 1 - own[i]


# ---------------------------------------------------------------------- in the model
def drawn(memories: Memories, *, binary: bool = False) -> dict[str, torch.Tensor]:
    own = torch.Generator().manual_seed(5)
    found = {site: torch.rand(n, generator=own, dtype=torch.float64) for site, n in sizes(memories).items()}
    if binary:
        found = {site: (m > 0.5).double() for site, m in found.items()}
        for m in found.values():
            m[0], m[-1] = 1.0, 0.0
    return found


@pytest.mark.parametrize("square", [False, True])
def test_masks_are_columns_and_rows_of_weights(family, square):
    """A mask on a head's context scales its columns of attention's output; on coefficients those of the values."""
    model = net(family, square=square)
    memories = Memories(model)
    masks = drawn(memories)
    before = scores(model)
    with multiplied(memories, masks.__getitem__):
        found = scores(model)
    assert torch.equal(scores(model), before)
    for layer in range(memories.layers):
        for head in range(memories.heads):
            memories.head(layer, head)["output"].mul_(masks[f"heads{layer}"][head])
        memories.values(layer).mul_(masks[f"intermediate{layer}"][None]).mul_(
            masks[f"output{layer}"][:, None]
        )
        if (bias := memories.bias(layer)) is not None:
            bias.mul_(masks[f"output{layer}"])
    rounding = 1e-4 if family == "gptj" else 1e-10  # attention of GPT-J computes in float32
    assert (found - scores(model)).abs().max() < rounding and (found - before).abs().max() > 1e-2


@pytest.mark.parametrize("square", [False, True])
def test_what_is_free_to_move_does_not_reach_the_used_units(family, square):
    """All that may move is moved; under the mask the function stays. What may not move changes it, each parameter."""
    model = net(family, square=square, layers=1)
    memories = Memories(model)
    used = drawn(memories, binary=True)
    free = freedoms(model, used)
    generator = torch.Generator().manual_seed(1)
    first = weights(model)

    def shaken(names: Any, factor: Any) -> torch.Tensor:
        with torch.no_grad():
            for name in names:
                p = model.get_parameter(name)
                p.add_(factor(free[name]) * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            with multiplied(memories, used.__getitem__):
                found = scores(model)
            for name in names:
                model.get_parameter(name).copy_(first[name])
        return found

    with multiplied(memories, used.__getitem__):
        expected = scores(model)
    off = (shaken(free, lambda f: f) - expected).abs().max()
    if (
        family == "olmo2"
    ):  # it normalises queries and keys over all heads together: a shut head reaches the others
        assert off > 1e-3
    else:
        assert off < (1e-4 if family == "gptj" else 1e-10)  # attention of GPT-J computes in float32
    blind = f"{memories.layout.key}.bias"  # the same for all keys of a query, where positions do not turn it
    for name in free:
        if not name.endswith(blind):
            assert (shaken([name], lambda f: 1 - f) - expected).abs().max() > 1e-3, name
    masked = {name for name in free if any(free[name].flatten() == 0)}
    assert masked == set(free)  # every parameter holds something of a used unit


def test_shared_keys_and_values_belong_to_all_their_heads():
    model = net("llama", heads=6, kv_heads=2)
    used = {site: torch.zeros(units).double() for site, units in sizes(Memories(model)).items()}
    used |= {f"heads{layer}": torch.tensor([0, 0.2, 0, 0, 1, 0.5]).double() for layer in range(2)}
    free = freedoms(model, used)
    path = "model.layers.1.self_attn"
    free = {name: factor.expand_as(model.get_parameter(name)) for name, factor in free.items()}
    assert free[f"{path}.q_proj.weight"][::2, 0].tolist() == pytest.approx([1, 0.8, 1, 1, 0, 0.5])
    for part in ("k_proj", "v_proj"):
        assert free[f"{path}.{part}.weight"][:, 3].tolist() == pytest.approx([0.8, 0.8, 0, 0])
        assert free[f"{path}.{part}.bias"].tolist() == pytest.approx([0.8, 0.8, 0, 0])
    assert free[f"{path}.o_proj.weight"][5, ::2].tolist() == pytest.approx([1, 0.8, 1, 1, 0, 0.5])
    assert f"{path}.o_proj.bias" not in free and "model.layers.0.mlp.up_proj.weight" not in free


def test_masks_of_ones_leave_the_function_as_it_is(family):
    model = net(family)
    method = HAT(steps=4)
    assert torch.equal(seen(model, method, domain()), scores(model))  # before any domain: the bare model
    method.before(model, domain())
    bare = scores(model)
    assert (seen(model, method, domain()) - bare).abs().max() > 1e-2  # half of all units are shut
    set_(model, method._masks, lambda site, e: 6.0 + 0 * e)
    assert (seen(model, method, domain()) - bare).abs().max() < 1e-12
    method.rows(4, {})
    with method.during(model, domain()):
        assert (scores(model) - bare).abs().max() < 1e-12


def seen(model: nn.Module, method: Method, shown: Domain) -> torch.Tensor:
    with method.at(model, shown):
        return scores(model)


# ---------------------------------------------------------------------- two domains
@pytest.mark.parametrize("family", SEVERAL)
def test_the_first_domain_keeps_its_function(family):
    """AdamW with decay, units wide open or shut: no bit changes of any weight that the first domain reads."""
    model = net(family, square=family == "llama")
    method = begun(HAT(steps=4, freeze_rest=True), split)
    moved(model, method, count=1, family=family)
    own, first = seen(model, method, domain()), weights(model)
    assert (own - seen(model, HAT(steps=4), domain())).abs().max() > 1e-2
    moved_on(model, method, family)
    assert (seen(model, method, domain()) - own).abs().max() < 1e-10
    free = method._factors
    for name, p in model.named_parameters():
        if name in free:
            factor = free[name].expand_as(p)
            assert torch.equal(p[factor == 0], first[name][factor == 0]), name
            assert (p == first[name])[factor == 1].sum() < 0.5 * p.numel(), name
        elif not name.startswith("beside.masks1"):
            assert torch.equal(p, first[name]), name
        assert p.requires_grad is not name.startswith("beside"), (
            name
        )  # all is as it was, but for old embeddings
    assert (seen(model, method, domain(1)) - own).abs().max() > 1e-2


def moved_on(model: nn.Module, method: Method, family: str = "olmo", recipe: Recipe = RECIPE) -> None:
    train(model, domain(1), recipe, method, objective=objective(family), earlier=[domain(0)])


def test_gradient_masks_do_not_hold_what_adamw_decays():
    for mask, decay, held in (("update", 0.3, True), ("gradient", 0.3, False), ("gradient", 0.0, True)):
        model = net()
        method = begun(HAT(steps=4, mask=mask), split)
        moved(model, method, count=1)
        first = weights(model)
        moved_on(model, method, recipe=replace(RECIPE, weight_decay=decay))
        name = "model.layers.1.mlp.down_proj.weight"
        frozen = method._factors[name].expand_as(first[name]) == 0
        assert torch.equal(model.get_parameter(name)[frozen], first[name][frozen]) is held
        head = model.get_parameter("lm_head.weight")
        assert not torch.equal(head, first["lm_head.weight"])  # what belongs to no site is free


def test_a_soft_gradient_mask_is_divided_out_by_adam():
    """Half a gradient is a whole step under AdamW, and half a step under the update mask."""
    steps = {}
    for mask in ("none", "gradient", "update"):
        model = net()
        method = HAT(steps=4, mask="gradient" if mask == "none" else mask, sparsity=0.0)
        method.before(model, domain(0))
        method.after(model, domain(0))
        half = {
            site: torch.full_like(m, 0.0 if mask == "none" else 0.5) for site, m in method._masks.used.items()
        }
        method._masks.used = half
        name = "model.layers.0.mlp.up_proj.weight"
        before = weights(model)[name]
        train(model, domain(1), replace(RECIPE, steps=1, weight_decay=0.0, epsilon=1e-12), method)
        steps[mask] = model.get_parameter(name).detach() - before
    assert torch.allclose(steps["gradient"], steps["none"], rtol=1e-6)
    assert torch.allclose(steps["update"], 0.5 * steps["none"], rtol=1e-6)


def test_masks_of_domains():
    """A domain is shown its own mask, one not seen yet the latest; HAT-All shows the whole model; a copy works too."""
    model = net()
    method = HAT(steps=4)
    moved(model, method)
    assert method._masks.tasks == ["domain 0.", "domain 1."]
    both = [seen(model, method, domain(n)) for n in (0, 1, 2)]
    assert not torch.equal(both[0], both[1]) and torch.equal(both[1], both[2])
    with multiplied(Memories(model), method._masks.final(model, 0).__getitem__):
        assert torch.equal(scores(model), both[0])
    e = beside.module(model, "masks0")["output1"]
    assert torch.equal(method._masks.final(model, 0)["output1"], torch.sigmoid(400 * e))
    assert torch.equal(seen(copy.deepcopy(model), method, domain(0)), both[0])
    method.evaluate = "all"
    assert torch.equal(seen(model, method, domain(0)), scores(model))
    everything = torch.maximum(*(method._masks.final(model, n)["intermediate0"] for n in (0, 1)))
    assert torch.equal(method._masks.used["intermediate0"], everything)
    trained = [p.requires_grad for n, p in model.named_parameters() if not n.startswith("beside")]
    assert all(trained) and not any(p.requires_grad for p in beside.module(model, "masks0").parameters())


def test_training_of_hat_all_is_that_of_hat():
    ends = [weights(moved(net(), HAT(steps=4, evaluate=shown))) for shown in ("mask", "all")]
    assert equal(*ends)


def test_embeddings_learn_by_the_compensated_gradient_and_stay_in_bounds():
    model, method = net(), HAT(steps=4, sparsity=0.0)
    original, off, changed = method.gradients, [], []

    def gradients(model: nn.Module) -> None:
        e = method._masks.embeddings(model)["intermediate1"]
        raw, factor = e.grad.clone(), compensation(e.detach(), steepness(len(off) + 1, 4, 400.0), 400.0)
        original(model)
        off.append(float((e.grad - raw * factor).abs().max()))
        changed.append(float((e.grad - raw).abs().max()))

    method.gradients = gradients
    train(model, domain(), replace(RECIPE, learning_rate=3.0), method)
    assert off == [0.0] * 4 and changed[0] > 0.1
    e = torch.cat([e.detach() for e in method._masks.embeddings(model).values()])
    assert e.abs().max() == 6.0


def test_pace_scales_the_steps_of_embeddings_alone():
    first, ends = net(), []
    HAT(steps=4).before(first, domain())
    for pace in (1.0, 10.0):
        model = moved(net(), HAT(steps=4, pace=pace), count=1, recipe=replace(RECIPE, steps=1))
        ends.append({n: p - weights(first)[n] for n, p in weights(model).items()})
    for name in ends[0]:
        factor = 10 if name.startswith("beside") else 1
        assert torch.allclose(ends[1][name], factor * ends[0][name], rtol=1e-6, atol=1e-12), name


# ---------------------------------------------------------------------- laws of every method
@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_accumulation_leaves_the_step_as_it_is(family):
    ends = [
        weights(moved(net(family), HAT(steps=4), family=family, recipe=replace(RECIPE, accumulation=n)))
        for n in (1, 4)
    ]
    assert farthest(*ends) < 1e-6


def test_a_seed_decides():
    ends = [weights(moved(net(), HAT(steps=4, seed=seed))) for seed in (0, 0, 1)]
    assert equal(ends[0], ends[1]) and not equal(ends[0], ends[2])
    state = torch.random.get_rng_state()
    method = HAT(steps=4)
    method.before(net(), domain())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_killed_and_resumed(tmp_path):
    resumes(lambda: HAT(steps=4), tmp_path)
    resumes(lambda: HAT(steps=4, freeze_rest=True, mask="gradient"), tmp_path / "masked", "roberta")


def test_hooks_are_gone_after_an_error():
    model, method = net(), HAT(steps=4)
    method.before(model, domain())
    bare = scores(model)
    with pytest.raises(Stop), method.during(model, domain()):
        assert not torch.equal(scores(model), bare)
        raise Stop
    assert torch.equal(scores(model), bare)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mask": "weights"}, "mask to be one of update, gradient"),
        ({"evaluate": "half"}, "evaluate to be one of mask, all"),
        ({"steps": 0}, "steps of 1 or more"),
        ({"sparsity": -1.0}, "sparsity of 0 or more"),
    ],
)
def test_settings_that_cannot_be(wrong, said):
    with pytest.raises(BadInput, match=said):
        HAT(**{"steps": 4, **wrong})


def test_masks_that_cannot_be():
    with pytest.raises(BadInput, match="smax must be above 1"):
        HAT(steps=4, smax=1.0).before(net(), domain())
    with pytest.raises(BadInput, match="pace must be above 0"):
        HAT(steps=4, pace=0.0).before(net(), domain())
    with pytest.raises(BadInput, match="3 steps"):
        train(net(), domain(), RECIPE, HAT(steps=3))


def test_every_family_is_listed_here():
    assert set(SEVERAL) <= set(FAMILIES)
