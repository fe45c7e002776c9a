"""HAT inside adapters, and its relatives B-CL and CLASSIC: their equations written out, and what is held."""

from dataclasses import replace

import pytest
import torch
from conftest import tokens
from test_hat import (
    RECIPE,
    SEVERAL,
    Text,
    begun,
    domain,
    equal,
    farthest,
    moved,
    moved_on,
    net,
    resumes,
    scores,
    seen,
    split,
    weights,
)
from torch.nn import functional as F

from kemem.continual import beside
from kemem.continual.bcl import BCL, Capsule, routed
from kemem.continual.classic import CLASSIC, Mixture, twin_loss
from kemem.continual.contrast import last_hidden
from kemem.continual.cpt import end
from kemem.continual.hat_adapter import HATAdapter, adapters, freedoms
from kemem.continual.taskmasks import compensation, sparsity, steepness
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.training import Domain, Method, train

METHODS = [HATAdapter, BCL, CLASSIC]
every = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


def made(method=HATAdapter, **settings):
    return method(steps=4, reduction=3, **settings)


def filled(model):
    """Numbers where layers begin at zero, so that they do something."""
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("beside") and not p.any():
                p.copy_(0.5 * torch.randn(p.shape, generator=drawn))


# ---------------------------------------------------------------------- adapters under masks
@every
def test_at_first_the_function_is_the_models(family, method):
    model, own = net(family), made(method)
    bare = scores(model)
    assert torch.equal(seen(model, own, domain()), bare)
    own.before(model, domain())
    assert (seen(model, own, domain()) - bare).abs().max() < 1e-12
    with own.during(model, domain()):
        assert (scores(model) - bare).abs().max() < 1e-12
    filled(model)
    assert (seen(model, own, domain()) - bare).abs().max() > 1e-3


@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_masks_are_zeros_in_an_adapters_weights(placement):
    """Units under a mask m: as if `up` had columns times m1, rows and bias times m2."""
    model, method = net("llama"), made(placement=placement)
    method.before(model, domain())
    filled(model)
    drawn = torch.Generator().manual_seed(0)
    masks = {
        site: torch.rand(n, generator=drawn, dtype=torch.float64) for site, n in method._masks.sites.items()
    }
    with method.inserted(model, masks.__getitem__, 0):
        found = scores(model)
    stack = adapters(model)
    with torch.no_grad():
        for layer, site in stack.places:
            up = stack.adapter(layer, site).up
            m1, m2 = masks[f"{site}_hidden{layer}"], masks[f"{site}_output{layer}"]
            up.weight.mul_(m1[None]).mul_(m2[:, None])
            up.bias.mul_(m2)
    with stack.inserted(model):
        assert (scores(model) - found).abs().max() < 1e-10


@pytest.mark.parametrize("family", SEVERAL)
def test_the_first_domain_keeps_its_function(family):
    model, method = net(family), begun(made(), split)
    before = weights(model)
    moved(model, method, count=1, family=family)
    own, first = seen(model, method, domain()), weights(model)
    assert (own - scores(model)).abs().max() > 1e-4
    moved_on(model, method, family)
    assert (seen(model, method, domain()) - own).abs().max() < 1e-10
    assert not torch.equal(seen(model, method, domain(1)), own)
    assert torch.equal(seen(model, method, domain(1)), seen(model, method, domain(9)))
    after = weights(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    for name, factor in freedoms(adapters(model), method._masks.final(model, 0)).items():
        factor = factor.expand_as(after[name])
        assert torch.equal(after[name][factor == 0], first[name][factor == 0]), name
    assert not torch.equal(after["beside.adapters.layers.1.attention.up.weight"],
                           first["beside.adapters.layers.1.attention.up.weight"])  # fmt: skip
    assert {n for n, p in model.named_parameters() if p.requires_grad and "masks" in n} == set()


def test_gradient_masks_do_not_hold_what_adamw_decays():
    for mask, held in (("update", True), ("gradient", False)):
        model, method = net(), begun(made(mask=mask), split)
        moved(model, method, count=1)
        first = weights(model)
        moved_on(model, method)
        name = "beside.adapters.layers.1.feed_forward.up.weight"
        frozen = method._factors[name] == 0
        assert torch.equal(model.get_parameter(name)[frozen], first[name][frozen]) is held


def test_its_embeddings_learn_as_those_of_hat():
    """The gradient of the loss with its sparsity, compensated, and the units of both domains added up by max."""
    model, method = net(), made(sparsity=2.0)
    moved(model, method, count=1)
    found = []
    original = method.gradients

    def gradients(model):
        raw = {site: e.grad.clone() for site, e in method._masks.embeddings(model).items()}
        original(model)
        for site, e in method._masks.embeddings(model).items():
            s = steepness(len(found) + 1, 4, 400.0)
            assert torch.equal(e.grad, raw[site] * compensation(e.detach(), s, 400.0))
        found.append(1)

    method.gradients = gradients
    moved_on(model, method)
    assert len(found) == 4
    for site, m in method._masks.used.items():
        assert torch.equal(m, torch.maximum(*(method._masks.final(model, n)[site] for n in (0, 1))))
    masks = method._masks
    share = sparsity(masks.masks(model, method._s), masks.used)
    loss = HATAdapter.loss(method, model, {}, torch.tensor(1.0).double())
    assert loss.item() == pytest.approx(1 + 2 * share.item())


# ---------------------------------------------------------------------- B-CL
def test_routing_by_a_plain_loop():
    u = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # [t B K 3]
    for row in range(4):
        for j in range(2):
            b, proposals = [0.0, 0.0, 0.0], [u[i, row, j] for i in range(3)]
            for _ in range(3):
                total = sum(torch.tensor(x).exp() for x in b)
                s = sum(torch.tensor(x).exp() / total * p for x, p in zip(b, proposals, strict=True))
                v = s / s.norm() * s.norm() ** 2 / (1 + s.norm() ** 2)
                b = [x + float(p @ v) for x, p in zip(b, proposals, strict=True)]
            assert torch.allclose(routed(u)[row, j], v, rtol=1e-6)
    one = routed(u[:1])
    assert torch.allclose(one.norm(dim=-1), (n := u[0].norm(dim=-1)) ** 2 / (1 + n**2))
    nothing = torch.zeros(2, 1, 2, 3, requires_grad=True)
    routed(nothing).sum().backward()
    assert torch.equal(nothing.grad, torch.zeros_like(nothing))  # and no NaN


def test_a_capsule_by_hand():
    capsule = Capsule(5, 4, torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    p = F.relu(F.linear(x, capsule.first)) @ capsule.second.T
    for j in range(3):
        assert torch.allclose(capsule(x)[:, :, j], p @ capsule.proposal[j].T, atol=1e-6)


def test_what_is_shared_is_added_before_the_adapter():
    model, method = net("gpt2"), made(BCL)
    method.before(model, domain())
    method.before(model, domain(1))
    filled(model)
    shown = method._masks.final(model, 1)
    from kemem import trace

    memories = Memories(model)
    paths = {(layer, site): end(memories, layer, site) for layer, site in adapters(model).places}
    with (
        trace.record(model, paths.values(), side="output") as plain,
        method.inserted(model, shown.__getitem__, 1),
        trace.record(model, paths.values(), side="output") as given,
    ):
        scores(model)
    with torch.no_grad():
        for (layer, site), path in paths.items():
            y = plain[path][0]
            place = f"{site}{layer}"
            u = torch.stack([beside.module(model, f"capsules{i}")[place](y) for i in (0, 1)])
            y = y + routed(u).flatten(-2) @ beside.module(model, "spread")[place].T
            adapter = adapters(model).adapter(layer, site)
            hidden = shown[f"{site}_hidden{layer}"] * adapter.down(y).relu()
            assert torch.allclose(
                given[path][0], y + shown[f"{site}_output{layer}"] * adapter.up(hidden), atol=1e-10
            )


def test_a_domain_sees_capsules_of_earlier_ones_only():
    model, method = net(), made(BCL)
    moved(model, method, count=3)
    assert [n for n in beside.present(model) if "caps" in n] == ["capsules0", "capsules1", "capsules2"]
    before = [seen(model, method, domain(n)) for n in range(3)]
    with torch.no_grad():
        for p in beside.module(model, "capsules1").parameters():
            p.add_(1.0)
    changed = [not torch.equal(seen(model, method, domain(n)), before[n]) for n in range(3)]
    assert changed == [False, True, True]


def test_capsules_and_spread_learn_in_every_domain():
    model, method = net(), made(BCL)
    moved(model, method, count=1)
    first = weights(model)
    moved_on(model, method)
    after = weights(model)
    for name in first:
        learns = "capsules" in name or "spread" in name or "adapters" in name
        assert torch.equal(after[name], first[name]) is not learns, name


# ---------------------------------------------------------------------- CLASSIC
def test_twin_loss_by_a_plain_loop():
    drawn = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 6, generator=drawn, dtype=torch.float64) for _ in range(2))
    both = [*a, *b]
    total = 0.0
    for i, x in enumerate(both):
        others = [F.cosine_similarity(x, y, 0) / 0.5 for j, y in enumerate(both) if j != i]
        twin = F.cosine_similarity(x, both[(i + 4) % 8], 0) / 0.5
        total += float(torch.stack(others).logsumexp(0) - twin)
    assert twin_loss(a, b, 0.5).item() == pytest.approx(total / 8, rel=1e-12)
    assert twin_loss(a[:1], b[:1], 1.0).item() == 0.0
    assert twin_loss(a, a, 0.05) < twin_loss(a, a.roll(1, 0), 0.05)


def test_the_mixture_begins_as_the_mean_and_attends():
    mixture = Mixture(6, seed=0).double()
    each = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(mixture(each), each.mean(1))
    with torch.no_grad():
        mixture.value.copy_(torch.eye(6))
    q, k = each @ mixture.query.T, each @ mixture.key.T
    expected = F.scaled_dot_product_attention(q, k, each)
    assert torch.allclose(mixture(each), (each + expected).mean(1), atol=1e-12)


class Written(CLASSIC):
    """Writes down what the contrast adds."""

    def loss(self, model, batch, loss):
        plain = HATAdapter.loss(self, model, batch, loss)
        whole = super().loss(model, batch, loss)
        self.added = [*getattr(self, "added", []), float((whole - plain).detach())]
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        return whole


def test_the_contrast_is_between_the_present_mask_and_those_before():
    model, method = net(), made(Written)
    moved(model, method, count=2)
    assert method.added[:4] == [0.0] * 4 and min(method.added[4:]) > 0
    method.before(model, domain(2))
    with torch.no_grad():
        for p in beside.module(model, "mixture").parameters():
            p.add_(0.3)
    method.rows(3, {})
    with method.during(model, domain(2)):
        whole = method.loss(model, method.batch, torch.tensor(0.0).double())
        whole.backward()
    up = adapters(model).adapter(1, "attention").up.weight
    gradient, up.grad = up.grad, None
    views = []
    for task, s in ((2, method._s), (0, 400.0), (1, 400.0)):
        own = {site: torch.sigmoid(s * e) for site, e in method._masks.embeddings(model, task).items()}
        with method.inserted(model, own.__getitem__, task), torch.set_grad_enabled(not views):
            views.append(last_hidden(model, method.batch).mean(1))
    expected = twin_loss(views[0], beside.module(model, "mixture")(torch.stack(views[1:], 1)), 1.0)
    assert method.added[-1] == pytest.approx(expected.item(), rel=1e-9)
    expected.backward()
    assert torch.allclose(gradient, up.grad, rtol=1e-9, atol=1e-14) and up.grad.any()
    learned = [p.grad for p in beside.module(model, "mixture").parameters()]
    assert all(g is not None and g.any() for g in learned)
    assert all(e.grad is None for e in method._masks.embeddings(model, 0).values())


def test_padding_and_hidden_words_change_nothing():
    model, method = net("roberta"), made(Written)
    moved(model, method, count=2, family="roberta")
    ids = tokens(4, 7)
    plain = {"input_ids": ids, "labels": ids.clone()}
    wide = F.pad(ids, (0, 3), value=1)
    kept = (torch.arange(10) < 7).long().expand(4, -1)
    padded = {"input_ids": wide, "labels": torch.where(kept.bool(), wide, -100), "attention_mask": kept}
    hidden = {"input_ids": ids.clone(), "labels": torch.full_like(ids, -100)}
    hidden["input_ids"][:, 2], hidden["labels"][:, 2] = 2, ids[:, 2]
    method.added = []
    for batch in (plain, padded, hidden):
        method.rows(2, batch)
        with method.during(model, domain(1)):
            method.loss(model, batch, torch.tensor(0.0).double())
    assert method.added[0] > 0 and method.added == pytest.approx([method.added[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_without_contrast_it_is_hat_adapter_bit_for_bit(family):
    """With dropout: in the second domain, and with contrast the draws of ordinary passes still are what they were."""
    from test_hat import quiet

    ends = [
        weights(moved(net(family, **quiet(family, 0.2)), method, family=family))
        for method in (made(), made(CLASSIC, contrast=0.0), made(CLASSIC))
    ]
    assert equal(ends[0], ends[1]) and "beside.mixture.key" in ends[2]
    name = "beside.adapters.layers.1.feed_forward.up.weight"
    assert not torch.equal(ends[0][name], ends[2][name])
    assert torch.equal(
        ends[0]["beside.masks0.feed_forward_hidden1"], ends[2]["beside.masks0.feed_forward_hidden1"]
    )

    class Untouched(CLASSIC):
        def loss(self, model, batch, loss):
            return loss + 0 * super().loss(model, batch, loss)

    class Still(HATAdapter):
        def loss(self, model, batch, loss):
            return loss

    recipe = replace(RECIPE, accumulation=2, weight_decay=0.0)  # decay would move what has a gradient of 0
    ends = [
        weights(moved(net(family, **quiet(family, 0.2)), method, family=family, recipe=recipe))
        for method in (made(Still), made(Untouched))
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# ---------------------------------------------------------------------- laws of every method
@pytest.mark.parametrize("method", [HATAdapter, BCL])
@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_accumulation_leaves_the_step_as_it_is(family, method):
    """CLASSIC is exempt: its negatives are those of a micro-batch."""
    ends = [
        weights(moved(net(family), made(method), family=family, recipe=replace(RECIPE, accumulation=n)))
        for n in (1, 4)
    ]
    assert farthest(*ends) < 1e-6


@every
def test_a_seed_decides(method):
    ends = [weights(moved(net(square=True), made(method, seed=seed))) for seed in (0, 0, 1)]
    assert equal(ends[0], ends[1]) and not equal(ends[0], ends[2])
    state = torch.random.get_rng_state()
    made(method).before(net(), domain())
    assert torch.equal(torch.random.get_rng_state(), state)


@every
def test_killed_and_resumed(tmp_path, method):
    resumes(lambda: made(method), tmp_path, "roberta" if method is CLASSIC else "gpt2")


def test_only_the_method_differs():
    assert isinstance(made(BCL), Method) and len(Text(3)) == 3
    short = Domain("short", Text(8))
    model = net()
    train(model, short, replace(RECIPE, steps=1), made(BCL))
    assert set(beside.present(model)) == {"capsules0", "spread", "adapters", "masks0"}


@pytest.mark.parametrize(
    ("method", "wrong", "said"),
    [
        (HATAdapter, {"mask": "weights"}, "mask to be one of update, gradient"),
        (HATAdapter, {"steps": 0}, "steps and reduction of 1 or more"),
        (HATAdapter, {"placement": "before"}, "placement to be one of"),
        (HATAdapter, {"reduction": 13}, "at most the model's width, 12"),
        (BCL, {"placement": "parallel"}, "expected sequential adapters"),
        (CLASSIC, {"contrast": -1.0}, "contrast of 0 or more"),
        (CLASSIC, {"temperature": 0.0}, "temperature above 0"),
    ],
)
def test_settings_that_cannot_be(method, wrong, said):
    with pytest.raises(BadInput, match=said):
        method(**{"steps": 4, "reduction": 3, **wrong}).before(net(), domain())
