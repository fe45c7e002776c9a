"""Importance from pruning, against loops over the parameters by their own names."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch import nn

from kemem.continual.das import DAS
from kemem.continual.gates import SITES, Units, gated, ones
from kemem.continual.importance import Measuring
from kemem.continual.pruning import AccumulatedGradient, LotteryTicket, Magnitude
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.models import Shape, build
from kemem.objective import IGNORED, Masked, causal, mix
from kemem.training import Domain, Method, Recipe, train

VOCAB = 61
HIDE = Masked(3, VOCAB, 0.4)
FEW = ("olmo", "llama", "gpt2", "gpt_neox", "roberta")  # gated, grouped heads, Conv1D, fused by heads, masked


class Rows:
    """Rows of random tokens; in each a different number of labels is no target."""

    def __init__(self, seed: int = 0, rows: int = 8, length: int = 8) -> None:
        self.ids = torch.randint(4, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
        self.labels = self.ids.clone()
        for row in range(rows):
            self.labels[row, length - row % (length - 2) :] = IGNORED

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.labels[indices]}


DOMAIN = Domain("a", Rows())
QUICK = {"steps": 2, "batch_size": 4, "rounds": 2, "share": 0.25, "learning_rate": 1e-2}


def objective_of(family: str):
    return HIDE if family in ("roberta", "bert") else causal


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows_of(tensor: torch.Tensor, units: int) -> list[torch.Tensor]:
    return list(tensor.reshape(units, -1))


def producing(family: str, model: nn.Module, layer: int, given: dict[str, torch.Tensor], biases: bool = True):
    """Site -> for each unit, the numbers that produce it, out of tensors named as the model's parameters are."""

    def both(path: str) -> list[torch.Tensor]:
        """Weight [out in] and bias [out]."""
        weight = given[f"{path}.weight"]
        found = [weight.T if family == "gpt2" else weight]
        return [*found, given[f"{path}.bias"][:, None]] if biases and f"{path}.bias" in given else found

    H, d = model.config.num_attention_heads, 4
    parts: dict[str, list[list[torch.Tensor]]]
    if family in ("olmo", "llama"):
        at = f"model.layers.{layer}"
        q, k, v = ([rows_of(t, len(t) // d) for t in both(f"{at}.self_attn.{x}_proj")] for x in "qkv")
        share = len(q[0]) // len(k[0])
        heads = [[*(t[h] for t in q), *(t[h // share] for t in (*k, *v))] for h in range(H)]
        first, last = both(f"{at}.mlp.up_proj") + both(f"{at}.mlp.gate_proj"), both(f"{at}.mlp.down_proj")
    elif family == "gpt2":
        at = f"transformer.h.{layer}"
        fused = [rows_of(t, 3 * H) for t in both(f"{at}.attn.c_attn")]
        heads = [[t[h + H * x] for t in fused for x in range(3)] for h in range(H)]
        first, last = both(f"{at}.mlp.c_fc"), both(f"{at}.mlp.c_proj")
    elif family == "gpt_neox":
        at = f"gpt_neox.layers.{layer}"
        fused = [rows_of(t, H) for t in both(f"{at}.attention.query_key_value")]
        heads = [[t[h] for t in fused] for h in range(H)]
        first, last = both(f"{at}.mlp.dense_h_to_4h"), both(f"{at}.mlp.dense_4h_to_h")
    else:
        at = f"roberta.encoder.layer.{layer}"
        split = [rows_of(t, H) for x in ("query", "key", "value") for t in both(f"{at}.attention.self.{x}")]
        heads = [[t[h] for t in split] for h in range(H)]
        first, last = both(f"{at}.intermediate.dense"), both(f"{at}.output.dense")
    parts = {
        "heads": heads,
        "intermediate": [[t[m] for t in first] for m in range(len(first[0]))],
        "output": [[t[u] for t in last] for u in range(len(last[0]))],
    }
    return {site: [torch.cat([t.flatten() for t in unit]) for unit in own] for site, own in parts.items()}


def written_out(
    family: str, model: nn.Module, given, function, biases: bool = True
) -> dict[str, torch.Tensor]:
    layers = [producing(family, model, layer, given, biases) for layer in range(2)]
    return {
        site: torch.stack([torch.stack([function(u.double()) for u in layer[site]]) for layer in layers])
        for site in SITES
    }


def check(found: Units, expected: dict[str, torch.Tensor], bound: float = 1e-12) -> None:
    for site, own in found.tensors().items():
        torch.testing.assert_close(own, expected[site], rtol=bound, atol=bound)


# ---------------------------------------------------------------------- magnitude
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("family", FEW)
def test_magnitude_is_the_length_of_what_produces_a_unit(family, square):
    model = tiny(family, square=square)
    start = weights(model)
    found = Magnitude()(model, DOMAIN)
    check(found, written_out(family, model, start, lambda u: u.square().sum().sqrt()), 1e-7)
    assert same(weights(model), start) and found.heads.dtype == torch.float64
    assert not any(own.requires_grad for own in found.tensors().values())


def test_magnitude_sees_every_family(family):
    model = tiny(family)
    memories = Memories(model)
    before = Magnitude()(model, DOMAIN)
    memories.keys(1)[3] *= 2
    memories.values(0)[5] *= 3
    memories.head(1, 2)["query"].mul_(2)
    after = Magnitude()(model, DOMAIN)
    for site, (layer, unit) in {"heads": (1, 2), "intermediate": (1, 3), "output": (0, 5)}.items():
        larger = (getattr(after, site) > getattr(before, site)).nonzero().tolist()
        assert larger == [[layer, unit]], site


# ---------------------------------------------------------------------- accumulated gradient
@pytest.mark.parametrize("family", ["olmo", "gpt2", "roberta"])
def test_the_accumulated_gradient_is_the_loop_of_michel_and_others(family):
    model, objective = tiny(family, dtype=torch.float64), objective_of(family)
    how = Measuring(samples=5, batch_size=2, seed=4)
    total, rows = None, how.rows(8)
    for row in rows.tolist():
        gates = ones(Memories(model)).map(lambda one: one.requires_grad_())
        text = objective.prepare(DOMAIN.blocks.batch(torch.tensor([row])), [mix(4, 1, row)])
        with gated(model, gates):
            objective(model, text).backward()
        sizes = gates.map(lambda gate: gate.grad.abs())
        total = sizes if total is None else total.map(torch.add, sizes)
    expected = total.map(lambda own: own / own.square().sum(-1, keepdim=True).sqrt()).tensors()
    found = AccumulatedGradient(objective, how)(model, DOMAIN)
    check(found, expected, 1e-5 if family == "olmo" else 1e-9)  # olmo's norms compute in float32
    for own in found.tensors().values():
        torch.testing.assert_close(own.norm(dim=-1), torch.ones(2, dtype=own.dtype))


def test_a_layer_without_any_gradient_stays_0():
    model = tiny("olmo")
    Memories(model).values(1).zero_()  # nothing of this layer's memories arrives
    found = AccumulatedGradient()(model, DOMAIN)
    assert not found.intermediate[1].any() and found.intermediate[0].norm() == pytest.approx(1)


# ---------------------------------------------------------------------- lottery ticket
def ticket_written_out(model: nn.Module, family: str, names: list[str], given: LotteryTicket):
    """Which weights are left, by a loop over sorted lists."""
    start, left = weights(model), {name: torch.ones_like(p) for name, p in weights(model).items()}

    class Zero(Method):
        def updated(self, model, previous):
            for name in names:
                dict(model.named_parameters())[name].mul_(left[name])

    for turn in range(given.rounds):
        ticket = tiny(family)
        with torch.no_grad():
            for name, p in ticket.named_parameters():
                p.copy_(start[name] * left[name])
        recipe = Recipe(given.steps, given.batch_size, given.learning_rate, schedule="constant", weight_decay=0.0,
                        seed=turn)  # fmt: skip
        train(ticket, DOMAIN, recipe, Zero(), objective=objective_of(family))
        for name in names:
            trained, mask = dict(ticket.named_parameters())[name].detach().flatten(), left[name].view(-1)
            alive = sorted((abs(float(trained[i])), i) for i in range(len(mask)) if mask[i])
            for _, i in alive[: round(given.share * len(alive))]:
                mask[i] = 0
    return left


@pytest.mark.parametrize("family", ["olmo", "gpt2", "roberta"])
def test_a_ticket_keeps_what_a_loop_over_sorted_weights_keeps(family):
    model, given = tiny(family), LotteryTicket(**QUICK, objective=objective_of(family))
    start, state = weights(model), torch.random.get_rng_state()
    found = given(model, DOMAIN)
    assert same(weights(model), start) and torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training
    words = {
        "olmo": ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"),
        "gpt2": ("c_attn", "c_fc", "mlp.c_proj"),
        "roberta": ("query", "key", "value", "intermediate.dense", ".output.dense"),
    }[family]
    names = [name for name in start if name.endswith(".weight") and any(word in name for word in words)]
    names = [name for name in names if "attention.output" not in name]
    left = ticket_written_out(model, family, names, given)
    check(found, written_out(family, model, left, torch.mean, biases=False))
    for name in names:
        assert left[name].mean() == pytest.approx(0.75**2, abs=0.01)
    for own in found.tensors().values():
        assert 0 <= own.min() < own.max() <= 1 and own.mean() == pytest.approx(0.75**2, abs=0.02)


def test_a_ticket_is_drawn_from_its_seed_and_depends_on_the_training():
    model = tiny("olmo")
    found = [
        LotteryTicket(**{**QUICK, **changes})(model, domain).intermediate
        for changes, domain in (({}, DOMAIN), ({}, DOMAIN), ({"seed": 5}, DOMAIN), ({}, Domain("b", Rows(1))))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])
    frozen = tiny("olmo").requires_grad_(
        False
    )  # a method may have frozen the model: the copy learns all the same
    assert torch.equal(LotteryTicket(**QUICK)(frozen, DOMAIN).intermediate, found[0])
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"share": 0.0}, {"share": 1.0}])
def test_wrong_settings_are_refused_when_they_are_made(settings):
    with pytest.raises(BadInput, match=r"at least 1 round and a share in \(0, 1\)"):
        LotteryTicket(**settings)


# ---------------------------------------------------------------------- in the place of DAS's own
RECIPE = Recipe(steps=3, batch_size=4, learning_rate=1e-2, save_every=1)
EVERY = {
    "magnitude": Magnitude(),
    "gradient": AccumulatedGradient(how=Measuring(samples=4)),
    "ticket": LotteryTicket(**QUICK),
}


def net() -> nn.Module:
    sizes = {"layers": 1, "width": 8, "memories": 12, "heads": 2, "vocab": VOCAB, "context": 16}
    return build(Shape("gpt2", **sizes, dropout=0.2), seed=1)


@pytest.mark.parametrize("name", EVERY)
def test_das_takes_each_and_resumes_with_it(name, tmp_path):
    class Stops(DAS):
        def gradients(self, model):
            if self.seen == 2:
                raise KeyboardInterrupt
            self.seen += 1

    Stops.__qualname__ = "DAS"
    make = lambda kind=DAS: kind(importance=EVERY[name], contrast="none", normalisation="rank")  # noqa: E731
    once, method = net(), make()
    train(once, DOMAIN, RECIPE, method)
    expected = EVERY[name](net(), DOMAIN)
    assert method.domains == 1 and all(
        own.min() >= 0 and own.max() == 1 for own in method.known.tensors().values()
    )
    broken, again = make(Stops), make()
    broken.seen = 0
    with pytest.raises(KeyboardInterrupt):
        train(net(), DOMAIN, RECIPE, broken, out=tmp_path)
    model = net()
    train(model, DOMAIN, RECIPE, again, out=tmp_path)
    assert same(weights(model), weights(once))
    # the most important memory before the first domain did not move in it
    best = int(expected.intermediate[0].argmax())
    start, end = Memories(net()), Memories(once)
    assert torch.equal(start.keys(0)[best], end.keys(0)[best])
    assert (start.keys(0) != end.keys(0)).any(1).sum() == 11
    plain = net()
    train(plain, DOMAIN, replace(RECIPE))
    assert not same(weights(plain), weights(once))
