"""CPT: plugins against their equations written out, and what task masks hold of them."""

from dataclasses import replace

import pytest
import torch
from conftest import MASKED, tiny
from test_hat import (
    RECIPE,
    SEVERAL,
    domain,
    equal,
    farthest,
    moved,
    moved_on,
    net,
    resumes,
    scores,
    seen,
    set_,
    split,
    weights,
)

from kemem import trace
from kemem.continual import beside
from kemem.continual.cpt import CPT, SITES, end, inserted, shared
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.training import Method, train


def made(family: str = "olmo", placement: str = "parallel", **settings):
    """A model with plugins of random numbers, in front of its first domain."""
    model, method = (
        net(family, square=settings.pop("square", False)),
        CPT(4, placement, start="random", **settings),
    )
    method.before(model, domain())
    return model, method


def by_hand(plugin, x, m1, m2):
    """The equation of a plugin, one token at a time."""
    out = torch.empty(*x.shape[:-1], len(m2), dtype=x.dtype)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[:-1])).tolist():
        token = x[tuple(place)]
        hidden = m1 * (plugin.down.weight @ token + plugin.down.bias).clamp(min=0)
        out[tuple(place)] = m2 * (plugin.up.weight @ hidden + plugin.up.bias).clamp(min=0)
    return out


# ---------------------------------------------------------------------- what a plugin computes
@pytest.mark.parametrize("placement", ["parallel", "sequential"])
def test_plugins_add_what_their_equation_says(family, placement):
    """Every pass is recorded within the block; what a place would give without its plugin is computed from it."""
    model, method = made(family, placement, square=family == "olmo")
    memories, drawn = Memories(model), torch.Generator().manual_seed(0)
    masks = {
        site: torch.rand(n, generator=drawn, dtype=torch.float64) for site, n in method._masks.sites.items()
    }
    before = scores(model)
    ends = {site: [end(memories, layer, site) for layer in range(2)] for site in SITES}
    begins = {
        "attention": [memories.attention_path(layer) for layer in range(2)],
        "feed_forward": [memories.up_path(layer) for layer in range(2)],
    }
    every = [path for paths in ends.values() for path in paths]
    with (
        trace.record(model, every, side="input") as joined,  # before the plugin's change of it
        inserted(model, placement, masks.__getitem__),
        trace.record(model, [*every, *begins["attention"], *begins["feed_forward"]], side="input") as entered,
        trace.record(model, every, side="output") as given,
    ):
        after = scores(model)
    assert torch.equal(scores(model), before) and (after - before).abs().max() > 1e-2
    with torch.no_grad():
        for layer in range(2):
            for site in SITES:
                path, name = ends[site][layer], f"{site}{layer}"
                plugin = beside.module(model, "plugins")[name]
                m = masks[f"{name}_hidden"], masks[f"{name}_output"]
                x = entered[begins[site][layer]][0]
                own = trace.module(model, path)(entered[path][0])  # of the projection alone
                if placement == "sequential":
                    assert torch.allclose(given[path][0], own + by_hand(plugin, own, *m), atol=1e-10)
                elif site == "attention":
                    assert torch.allclose(
                        entered[path][0], joined[path][0] + by_hand(plugin, x, *m), atol=1e-10
                    )
                    assert torch.equal(given[path][0], own)
                else:
                    assert torch.allclose(given[path][0], own + by_hand(plugin, x, *m), atol=1e-10)


@pytest.mark.parametrize("placement", ["parallel", "sequential"])
def test_at_first_the_function_is_the_models(family, placement):
    model = net(family)
    bare, method = scores(model), CPT(4, placement)
    assert torch.equal(seen(model, method, domain()), bare)
    method.before(model, domain())
    assert (seen(model, method, domain()) - bare).abs().max() < 1e-12
    with method.during(model, domain()):
        assert (scores(model) - bare).abs().max() < 1e-12
    other = net(family)
    drawn = CPT(4, placement, start="random")
    drawn.before(other, domain())
    assert (seen(other, drawn, domain()) - bare).abs().max() > 1e-2


def test_plugins_at_zero_learn_in_their_first_step():
    model = moved(net(), CPT(4, train_shared=False), count=1, recipe=replace(RECIPE, steps=2))
    for name, p in model.named_parameters():
        if ".plugins." in name and not name.endswith("down.bias"):
            assert p.count_nonzero() > 0.3 * p.numel(), name


@pytest.mark.parametrize(("family", "context"), [("olmo", 12), ("qwen3", 18)])
def test_widths(family, context):
    """Of the contexts of all heads where the plugin of attention is parallel; hidden units are shares of the width."""
    for placement, out in (("parallel", context), ("sequential", 12)):
        model, method = made(family, placement, attention_width=2 / 3, feed_forward_width=0.5)
        plugin = beside.module(model, "plugins")["attention1"]
        assert plugin.down.weight.shape == (8, 12) and plugin.up.weight.shape == (out, 8)
        assert beside.module(model, "plugins")["feed_forward0"].up.weight.shape == (12, 6)
        assert method._masks.sites["attention0_output"] == out
    numbers = [
        sum(p.numel() for p in made("olmo", placement)[0].parameters())
        for placement in ("parallel", "sequential")
    ]
    assert numbers[0] == numbers[1]  # so both can be compared at equal parameters


# ---------------------------------------------------------------------- what is trained, and what is held
def test_what_is_shared(family):
    model = net(family)
    names = {id(p): name for name, p in model.named_parameters()}
    beside.add_(model, "other", torch.nn.LayerNorm(3))
    found = {names[id(p)] for p in shared(model)}
    norms = {n for n in names.values() if "norm" in n.lower() or "ln_" in n}
    head = {
        n
        for n in names.values()
        if n.startswith(("lm_head", "cls", "embed_out")) and "decoder.weight" not in n
    }
    head -= {"lm_head.weight", "embed_out.weight"}
    assert found == norms | head
    if family == "roberta":
        assert {"lm_head.dense.weight", "lm_head.layer_norm.bias", "lm_head.bias"} <= found
    assert bool(found) is (family != "olmo")  # whose norms have no parameters


@pytest.mark.parametrize("learns", [True, False])
def test_the_model_itself_is_frozen(learns):
    model = net("roberta")
    before = weights(model)
    own = {name for name, p in model.named_parameters() if any(p is q for q in shared(model))}
    moved(model, CPT(4, train_shared=learns), family="roberta")
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == (
        own - {"lm_head.bias"} if learns else set()
    )  # another one, of the decoder, is used there
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if "masks" in name} == set() and trained >= set(before)


@pytest.mark.parametrize("placement", ["parallel", "sequential"])
@pytest.mark.parametrize("family", SEVERAL)
def test_the_first_domain_keeps_its_function(family, placement):
    """Masks are binary when they are shown and kept, so nothing at all changes, under AdamW with decay."""
    model, method = net(family), CPT(4, placement, train_shared=False)
    moved(model, method, count=1, family=family)
    own, first = seen(model, method, domain()), weights(model)
    assert (own - scores(model)).abs().max() > 1e-4
    moved_on(model, method, family)
    assert torch.equal(seen(model, method, domain()), own)
    assert not torch.equal(seen(model, method, domain(1)), own)
    for name, factor in method._factors.items():
        p = model.get_parameter(name)
        factor = factor.expand_as(p)
        assert set(factor.flatten().tolist()) == {0.0, 1.0}
        assert torch.equal(p[factor == 0], first[name][factor == 0]), name
    up = "beside.plugins.feed_forward1.up.weight"
    assert not torch.equal(model.get_parameter(up), first[up])


def test_shared_norms_are_a_leak():
    model, method = net("gpt2"), CPT(4)
    moved(model, method, count=1, family="gpt2")
    own = seen(model, method, domain())
    moved_on(model, method, "gpt2")
    assert (seen(model, method, domain()) - own).abs().max() > 1e-4


def test_without_task_masks_nothing_is_held():
    model, method = net(), CPT(4, task_masks=False)
    assert torch.equal(seen(model, method, domain()), scores(model))
    moved(model, method, count=1)
    assert beside.present(model) == ("plugins",)
    own = seen(model, method, domain())
    assert (own - scores(model)).abs().max() > 1e-4
    moved_on(model, method)
    assert (seen(model, method, domain()) - own).abs().max() > 1e-4
    assert torch.equal(seen(model, method, domain()), seen(model, method, domain(1)))


def test_masks_of_domains_are_binary():
    model, method = made()
    e = method._masks.embeddings(model)["feed_forward0_hidden"]
    with torch.no_grad():
        e[:3] = torch.tensor([1e-4, 0.0, -1e-4])
    shown = method._masks.final(model, 0, binary=True)
    assert shown["feed_forward0_hidden"][:3].tolist() == [1, 0, 0]
    with inserted(model, "parallel", shown.__getitem__):
        expected = scores(model)
    assert torch.equal(seen(model, method, domain()), expected)
    assert torch.equal(seen(model, method, domain(5)), expected)  # not seen yet
    method.after(model, domain())
    assert method._masks.used["feed_forward0_hidden"][:3].tolist() == [1, 0, 0]


def test_gradients_of_held_weights_are_zero_too():
    model, method = made()
    set_(model, method._masks, split)
    method.after(model, domain())
    found = []
    original = method.gradients

    def gradients(model):
        original(model)
        for name, factor in method._factors.items():
            found.append(model.get_parameter(name).grad[factor.expand_as(model.get_parameter(name)) == 0])

    method.gradients = gradients
    train(model, domain(1), replace(RECIPE, steps=1), method)
    assert len(found) == 16 and all(part.numel() and not part.any() for part in found)


# ---------------------------------------------------------------------- laws of every method
@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_accumulation_leaves_the_step_as_it_is(family):
    ends = [
        weights(
            moved(net(family), CPT(4, start="random"), family=family, recipe=replace(RECIPE, accumulation=n))
        )
        for n in (1, 4)
    ]
    assert farthest(*ends) < 1e-6


def test_a_seed_decides():
    ends = [weights(moved(net(), CPT(4, seed=seed))) for seed in (0, 0, 1)]
    assert equal(ends[0], ends[1]) and not equal(ends[0], ends[2])
    state = torch.random.get_rng_state()
    made()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_killed_and_resumed(tmp_path):
    resumes(lambda: CPT(4), tmp_path)
    resumes(lambda: CPT(4, "sequential", start="random"), tmp_path / "masked", "roberta")


def test_there_is_no_sparsity_loss():
    assert CPT.loss is Method.loss


def test_half_precision_passes_stay_in_it():
    model = tiny("llama").to(torch.bfloat16)
    method = CPT(4, start="random")
    method.before(model, domain())
    assert seen(model, method, domain()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"placement": "before"}, "placement to be one of parallel, sequential"),
        ({"start": "one"}, "start to be one of zero, random"),
        ({"steps": 0}, "steps of 1 or more"),
        ({"attention_width": 0.0}, "widths above 0"),
    ],
)
def test_settings_that_cannot_be(wrong, said):
    with pytest.raises(BadInput, match=said):
        CPT(**{"steps": 4, **wrong})


def test_families_are_of_both_kinds():
    assert set(SEVERAL) & set(MASKED) and set(SEVERAL) - set(MASKED)
