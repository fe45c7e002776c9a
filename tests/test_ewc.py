"""Fisher, EWC, the mask by Fisher, and distillation: each against its definition written out, and its laws."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch import nn

from kemem.continual import Held, learn
from kemem.continual import fisher as fisher_module
from kemem.continual.distillation import KD, divergence
from kemem.continual.ewc import EWC, FisherMask
from kemem.continual.fisher import by_unit, drawn, fisher, ranked
from kemem.errors import BadInput
from kemem.families import matrix
from kemem.models import Shape, build
from kemem.objective import IGNORED, Masked, causal, row_key
from kemem.training import Domain, Method, Recipe, Together, train

VOCAB = 61
HIDE = Masked(3, VOCAB, 0.4)
RECIPE = Recipe(steps=3, batch_size=4, learning_rate=1e-2, warmup_steps=1, save_every=1, log_every=1)


class Rows:
    """Rows of random tokens; holes: in each a different number of labels is no target; padded: and no token."""

    def __init__(
        self, seed: int = 0, rows: int = 9, length: int = 8, holes: bool = True, padded: bool = False
    ):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(4, VOCAB, (rows, length), generator=generator)
        self.mask = torch.ones_like(self.ids)
        if holes:
            for row in range(rows):
                self.mask[row, length - row % (length - 1) :] = 0
        self.padded = padded

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        ids, mask = self.ids[indices], self.mask[indices]
        found = {"input_ids": ids, "labels": ids.where(mask.bool(), IGNORED)}
        return {**found, "attention_mask": mask} if self.padded else found


def objective_of(family: str):
    return HIDE if family in ("roberta", "bert") else causal


def net(family: str = "olmo", dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    sizes = {"layers": 1, "width": 8, "memories": 12, "heads": 2, "vocab": VOCAB, "context": 16}
    return build(Shape(family, **sizes, dropout=dropout), seed=1).to(dtype)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max() / b[n].abs().max().clamp(min=1e-300)) for n in b)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[n] - b[n]).abs().max()) for n in b)


def taught(
    method: Method | None, recipe: Recipe = RECIPE, *, family="olmo", dropout=0.0, domains=2, **options
):
    """The weights after some domains in a row, with calls of `train` alone."""
    dtype = options.pop("dtype", torch.float64)
    model = net(family, dropout, dtype)
    for place in range(domains):
        domain = Domain(f"domain{place}", Rows(place, **options))
        train(model, domain, replace(recipe, seed=place), method, objective=objective_of(family))
    return weights(model)


METHODS = {
    "EWC": (lambda **s: EWC(**{"strength": 300.0, "samples": 6, **s}), {"strength": 0.0}),
    "EWC by unit": (
        lambda **s: EWC(**{"strength": 300.0, "samples": 6, "by": "unit", **s}),
        {"strength": 0.0},
    ),
    "mask": (lambda **s: FisherMask(**{"samples": 6, **s}), {"strength": 0.0}),
    "mask by unit": (lambda **s: FisherMask(**{"samples": 6, "by": "unit", **s}), {"strength": 0.0}),
    "KD": (lambda **s: KD(**{"strength": 2.0, **s}), {"strength": 0.0}),
    "KD of logits": (lambda **s: KD(**{"strength": 2.0, "of": "logits", **s}), {"strength": 0.0}),
}
EVERY = pytest.mark.parametrize("name", METHODS)


# ---------------------------------------------------------------------- the Fisher
def losses_written_out(model, batch, family):
    """Mean loss of every row, with the sums spelled out."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    scores = model(**inputs).logits.log_softmax(-1)
    labels, found = batch["labels"], []
    for row in range(len(labels)):
        terms = []
        for t in range(labels.shape[1]):
            before = t if objective_of(family) is HIDE else t - 1
            if labels[row, t] != IGNORED and before >= 0:
                terms.append(-scores[row, before, labels[row, t]])
        found.append(torch.stack(terms).mean() if terms else 0 * scores.sum())
    return found


def fisher_written_out(model, batch, family):
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(len(batch["labels"])):
        model.zero_grad()
        losses_written_out(model, {n: t[row : row + 1] for n, t in batch.items()}, family)[0].backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square() / len(batch["labels"])
    model.zero_grad()
    return total


@pytest.mark.parametrize("padded", [False, True])
def test_the_fisher_is_the_mean_square_of_every_texts_gradient(family, padded, monkeypatch):
    model, data = tiny(family, layers=1, dtype=torch.float64), Rows(padded=padded)
    together, original = [], fisher_module._add_together_
    monkeypatch.setattr(
        fisher_module, "_add_together_", lambda *given: together.append(original(*given)) or together[-1]
    )
    state = torch.random.get_rng_state()
    found = fisher(model.train(), data, objective=objective_of(family), seed=5)
    assert model.training and torch.equal(state, torch.random.get_rng_state())
    keys = [row_key(5, 0, row) for row in range(len(data))]
    batch = objective_of(family).prepare(data.batch(torch.arange(len(data))), keys)
    expected = fisher_written_out(model.eval(), batch, family)
    bound = 1e-5 if family == "gptj" else 1e-10
    for name, theirs in expected.items():
        scale = float(theirs.max().clamp(min=1e-12))
        torch.testing.assert_close(found[name], theirs, rtol=0, atol=bound * scale)
    assert all(p.grad is None for p in model.parameters())
    fast = not padded and family != "gpt2"  # the fast way is taken where it is possible
    assert together == [fast or family == "gptj"]


def test_the_fisher_of_a_tied_model_in_parts(monkeypatch):
    """One at a time, three at a time and all at once are the same; an embedding that is the head too counts once."""
    model, data, found = net(), Rows(), []
    assert len(list(model.parameters())) < len(list(net("gpt_neox").parameters()))  # tied
    for limit in (1, 3, 64):
        monkeypatch.setattr(fisher_module, "LARGEST", limit)
        found.append(fisher(model, data))
    assert farthest(found[0], found[1]) < 1e-10 and farthest(found[0], found[2]) < 1e-10
    expected = fisher_written_out(model, data.batch(torch.arange(9)), "olmo")
    assert farthest(found[0], expected) < 1e-10


def test_the_fisher_of_batches_is_as_released():
    model, data = net(), Rows(holes=False)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for rows in torch.arange(9).split(4):
        model.zero_grad()
        torch.stack(losses_written_out(model, data.batch(rows), "olmo")).mean().backward()
        for name, p in model.named_parameters():
            expected[name] += len(rows) * p.grad.square() / 3
    model.zero_grad()
    assert farthest(fisher(model, data, of_batches=4), expected) < 1e-10
    assert farthest(fisher(model, data, of_batches=1), fisher(model, data)) < 1e-10
    assert farthest(fisher(model, data, of_batches=4), fisher(model, data)) > 0.1
    # on average over batches: F + (n - 1) (mean gradient)^2; here over all pairs of three texts
    three, pairs = Rows(rows=3, holes=False), []
    for pair in ([0, 1], [0, 2], [1, 2], [0, 0], [1, 1], [2, 2], [1, 0], [2, 0], [2, 1]):
        two = Rows(rows=2)
        two.ids, two.mask = three.ids[pair], three.mask[pair]
        pairs.append(fisher(model, two, of_batches=2))
    single, whole = fisher(model, three), fisher(model, three, of_batches=3)
    for name, F in single.items():
        torch.testing.assert_close(
            sum(p[name] for p in pairs) / 9, F + whole[name] / 3, rtol=1e-5, atol=1e-12
        )


def test_which_rows_are_read_follows_from_the_seed():
    model, data, part = net(), Rows(), Rows()
    chosen = drawn(9, 4, 1)
    assert len(set(chosen.tolist())) == 4 and torch.equal(drawn(3, 9, 0), torch.arange(3))
    assert not torch.equal(chosen, drawn(9, 4, 2))
    part.ids, part.mask = data.ids[chosen], data.mask[chosen]
    assert farthest(fisher(model, data, samples=4, seed=1), fisher(model, part)) < 1e-12
    assert same(fisher(model, data, samples=4, seed=1), fisher(model, data, samples=4, seed=1))
    assert farthest(fisher(model, data, samples=4, seed=2), fisher(model, part)) > 0.1


def test_frozen_parameters_have_none_and_dropout_is_off():
    model, dropping = net("gpt2"), net("gpt2", dropout=0.4)
    assert same(fisher(model, Rows()), fisher(dropping.train(), Rows()))
    model.transformer.wte.requires_grad_(False)
    found = fisher(model, Rows())
    assert (
        found.keys()
        == {name for name, p in model.named_parameters() if p.requires_grad}
        < set(weights(model))
    )
    half = net(dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in fisher(half, Rows(), samples=2).values()} == {torch.float32}


def test_padding_and_texts_without_a_target_change_nothing():
    short, long = Rows(length=8, holes=False), Rows(length=8, holes=False, padded=True)
    long.ids = torch.cat([long.ids, torch.full((9, 3), 7)], 1)
    long.mask = torch.cat([long.mask, torch.zeros(9, 3, dtype=torch.long)], 1)
    assert farthest(fisher(net(), long), fisher(net(), short)) < 1e-10
    empty = Rows(holes=False)
    empty.mask[4] = 0
    rest = Rows(holes=False, rows=8)
    rest.ids = empty.ids[[0, 1, 2, 3, 5, 6, 7, 8]]
    expected = {name: F * 8 / 9 for name, F in fisher(net(), rest).items()}
    assert farthest(fisher(net(), empty), expected) < 1e-10
    assert farthest(fisher(net(), empty, of_batches=1), expected) < 1e-10


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("family", ["olmo", "gpt2", "roberta"])
def test_a_units_fisher_is_the_mean_over_the_inputs_of_its_row(family, square):
    model = tiny(family, layers=1, dtype=torch.float64, square=square)
    single = fisher(model, Rows(), objective=objective_of(family))
    units = fisher(model, Rows(), objective=objective_of(family), by="unit")
    for name, F in single.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if F.ndim == 1:
            assert torch.equal(units[name], F)
            continue
        shadow = copy.deepcopy(module).requires_grad_(False)
        shadow.weight.copy_(F)
        oriented = F if isinstance(module, nn.Embedding) else matrix(shadow)  # [out in]
        spread = units[name].expand_as(F)
        if not isinstance(module, nn.Embedding):
            shadow.weight.copy_(spread)
            spread = matrix(shadow)
        torch.testing.assert_close(spread, oriented.mean(1, keepdim=True).expand_as(oriented))
        assert spread.sum().item() == pytest.approx(F.sum().item())


def test_ranks():
    assert ranked(torch.tensor([3.0, 0.0, 9.0])).tolist() == [0.5, 0.0, 1.0]
    assert ranked(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert ranked(torch.tensor([[0.0, 0.0], [5.0, 7.0]])).tolist() == [
        [0.0, 0.0],
        [pytest.approx(2 / 3), 1.0],
    ]
    assert ranked(torch.rand(40, 30)).mean() == pytest.approx(0.5, abs=1e-3)
    assert ranked(torch.rand(40, 1)).mean() == pytest.approx(0.5, abs=1e-6)


# ---------------------------------------------------------------------- EWC
@pytest.mark.parametrize("by", ["parameter", "unit"])
def test_the_penalty_is_the_one_written_out(by):
    model, method = net(), EWC(strength=7.0, samples=5, by=by)
    found, anchors = [], []
    for place in range(3):
        domain = Domain(str(place), Rows(place))
        method.before(model, domain)
        method.after(model, domain)
        found.append(fisher(model, domain.blocks, samples=5, by=by, seed=fisher_module.mix(0, place)))
        anchors.append(weights(model))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(place)))
    merged = {n: (found[2][n] + 2 * (found[1][n] + found[0][n]) / 2) / 3 for n in found[0]}
    expected, gradients = 0.0, {}
    for name, p in model.named_parameters():
        drift = p.detach() - anchors[-1][name]
        expected += 3.5 * (merged[name].expand_as(p) * drift * drift).sum().item()
        gradients[name] = 7.0 * merged[name] * drift
    batch = Rows().batch(torch.arange(2))
    penalty = method.loss(model, batch, torch.tensor(2.0, dtype=torch.float64))
    assert penalty.item() == pytest.approx(2 + expected, rel=1e-12) and expected > 0.01
    penalty.backward()
    assert farthest({n: p.grad for n, p in model.named_parameters()}, gradients) < 1e-10


def test_a_stronger_penalty_leaves_less_movement():
    """The second domain's movement from the end of the first, weighed by the first one's Fisher."""
    moved = []
    for strength in (0.0, 1e3, 1e5):
        method, model = EWC(strength=strength), net()
        train(model, Domain("a", Rows(0)), RECIPE, method)
        F, anchor = method.fisher, weights(model)
        train(model, Domain("b", Rows(1)), replace(RECIPE, steps=10), method)
        moved.append(sum((F[n] * (p - anchor[n]).square()).sum().item() for n, p in model.named_parameters()))
    assert moved[0] > 1.5 * moved[1] > 3 * moved[2]


# ---------------------------------------------------------------------- the mask
@pytest.mark.parametrize(
    ("family", "by", "strength"),
    [
        ("olmo", "parameter", 1.0),
        ("gpt2", "unit", 1.0),
        ("roberta", "parameter", 1.0),
        ("roberta", "unit", 0.3),
    ],
)
def test_the_update_is_masked_by_what_importance_leaves(family, by, strength):
    objective = objective_of(family)
    model, method = net(family), FisherMask(strength=strength, samples=5, by=by, objective=objective)
    train(model, Domain("a", Rows(0)), RECIPE, method, objective=objective)
    assert same(weights(model), taught(None, family=family, domains=1))  # nothing to spare yet
    start, importance = weights(model), dict(method.importance)
    plain = copy.deepcopy(model)
    one = replace(RECIPE, steps=1, warmup_steps=0, weight_decay=0.5)
    train(plain, Domain("b", Rows(1)), one, objective=objective)
    train(model, Domain("b", Rows(1)), one, method, objective=objective)
    whole, unmoved = weights(plain), 0
    for name, found in weights(model).items():
        left = (1 - strength * importance[name]).expand_as(found)
        torch.testing.assert_close(
            found, start[name] + left * (whole[name] - start[name]), rtol=0, atol=1e-15
        )
        assert torch.equal(found[left == 0], start[name][left == 0])
        assert torch.equal(found[left == 1], whole[name][left == 1])
        unmoved += int(((left == 0) & (whole[name] != start[name])).sum())
    assert (unmoved > 0) == (strength == 1.0)
    assert importance.keys() == start.keys() and max(float(i.max()) for i in importance.values()) == 1
    for name, rank in method.importance.items():  # of both domains
        new = fisher(model, Rows(1), samples=5, by=by, objective=objective, seed=fisher_module.mix(0, 1))[
            name
        ]
        assert torch.equal(rank, torch.maximum(importance[name], ranked(new)))


def test_all_four_ways_have_one_budget():
    """The sums of the Fisher are the same for parameters and units, and the mean of the mask is one half for both."""
    model = tiny("olmo", dtype=torch.float64)
    F = fisher(model, Rows(rows=40))
    units = by_unit(model, F)
    for name, found in F.items():
        assert units[name].expand_as(found).sum().item() == pytest.approx(found.sum().item())
        if "embed" not in name:  # a token that does not occur has none
            assert ranked(found).mean() == pytest.approx(0.5, abs=0.02)
            assert ranked(units[name]).mean() == pytest.approx(0.5, abs=0.02)


# ---------------------------------------------------------------------- distillation
def kl_written_out(teacher, student, temperature):
    p, q = (z / temperature for z in (teacher, student))
    p, q = (z.exp() / z.exp().sum() for z in (p - p.max(), q - q.max()))
    return temperature**2 * sum((a * (a.log() - b.log())).item() for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("of", ["hidden", "logits"])
@pytest.mark.parametrize(
    ("family", "padded"), [("olmo", False), ("llama", True), ("roberta", True), ("gpt2", False)]
)
def test_distillation_is_the_divergence_written_out(family, padded, of):
    model, objective = tiny(family, dtype=torch.float64), objective_of(family)
    method = KD(strength=3.0, temperature=2.0, of=of, objective=objective)
    method.before(model, Domain("a", Rows()))
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(
                0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype)
            )
    clean = Rows(padded=padded, rows=5).batch(torch.arange(5))
    batch = objective.prepare(clean, [row_key(0, 0, row) for row in range(5)])
    inputs = {name: tensor for name, tensor in clean.items() if name != "labels"}
    states = []
    for each in (teacher, model):
        out = each(**inputs, output_hidden_states=True)
        states.append((out.hidden_states[-1] if of == "hidden" else out.logits).detach())
    real = clean.get("attention_mask", torch.ones_like(clean["input_ids"]))
    total = 0.0
    for row in range(5):
        found = [kl_written_out(states[0][row, t], states[1][row, t], 2.0) for t in range(8) if real[row, t]]
        total += sum(found) / len(found) * int((objective.targets(batch)[row] != IGNORED).sum())
    expected = 3.0 * total / objective.count(batch)
    found = method.loss(model, batch, torch.tensor(1.0, dtype=torch.float64))
    assert found.item() == pytest.approx(1 + expected, rel=1e-5 if family == "gptj" else 1e-9)
    assert expected > 1e-3
    found.backward()
    assert all(p.grad is None for p in method._teacher.parameters())


def test_the_divergence_is_0_only_where_both_agree_and_has_a_direction():
    a, b = torch.randn(2, 1, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert divergence(a, a + 4, 1.0).abs().item() < 1e-15
    assert divergence(a, b, 1.0).item() > 0.01
    assert abs(divergence(a, b, 1.0).item() - divergence(b, a, 1.0).item()) > 1e-3
    wide = divergence(a.bfloat16(), b.bfloat16(), 1.0)
    assert wide.dtype == torch.float32


def test_the_teacher_is_the_model_before_the_domain_without_dropout():
    seen = []

    class Watched(KD):
        def loss(self, model, batch, loss):
            seen.append((weights(self._teacher), self._teacher.training, self._teacher is not model))
            return super().loss(model, batch, loss)

    model, method, starts = net("gpt2", dropout=0.3), Watched(), []
    for place in range(2):
        starts.append(weights(model))
        train(model, Domain(str(place), Rows(place)), RECIPE, method)
    assert len(seen) == 6 and not any(training for _, training, _ in seen) and all(own for *_, own in seen)
    assert all(same(found, starts[place // 3]) for place, (found, *_) in enumerate(seen))
    assert method._teacher is None  # nothing is kept between domains


def test_at_the_start_a_student_without_dropout_is_the_teacher():
    """So the first step is a plain one, and the second is not."""
    for of in ("hidden", "logits"):
        one = replace(RECIPE, steps=1)
        assert farthest(taught(KD(5.0, of=of), one, domains=1), taught(None, one, domains=1)) < 1e-6
        assert farthest(taught(KD(5.0, of=of), domains=1), taught(None, domains=1)) > 1e-3


# ---------------------------------------------------------------------- laws of all
@pytest.mark.parametrize(
    "name", ["EWC", "mask", "KD"]
)  # the others differ in what they would do, if they did
def test_the_null_setting_is_plain_training_bit_for_bit_with_dropout(name):
    make, null = METHODS[name]
    recipe = replace(RECIPE, accumulation=2)
    recipe = replace(recipe, steps=2)
    given = {"family": "gpt2", "dropout": 0.3, "dtype": torch.float32, "holes": False}
    plain = taught(None, recipe, **given)
    assert same(taught(make(**null), recipe, **given), plain)
    assert not same(taught(make(), recipe, **given), plain)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("EWC", "llama"),
        ("mask by unit", "roberta"),
        ("KD", "llama"),
        ("KD", "roberta"),
        ("KD of logits", "roberta"),
    ],
)
def test_accumulation_leaves_the_step_as_it_is_and_a_seed_repeats_it(name, family):
    make, _ = METHODS[name]
    method = lambda: make(objective=objective_of(family))  # noqa: E731
    whole, cut = (replace(RECIPE, batch_size=8, steps=2, accumulation=n) for n in (1, 4))
    padded = {"family": family, "padded": True, "rows": 8}
    expected = taught(method(), whole, **padded)
    assert distance(taught(method(), cut, **padded), expected) < 1e-8  # of weights that a step moves by 1e-2
    assert same(taught(method(), whole, **padded), expected)
    assert distance(taught(None, whole, **padded), expected) > 1e-4


def broken_off(method: Method, domain: str, step: int) -> Method:
    """The method, made to break off at a step of a domain."""
    found = {"domain": "", "step": 0}
    before, rows = method.before, method.rows

    def begin(model, which):
        found["domain"] = which.name
        before(model, which)

    def read(number, batch):
        if (found["domain"], number) == (domain, step):
            raise KeyboardInterrupt
        return rows(number, batch)

    method.before, method.rows = begin, read
    return method


@pytest.mark.parametrize("name", ["EWC by unit", "mask", "KD"])
def test_killed_and_resumed_it_ends_in_the_same_numbers(name, tmp_path):
    make, _ = METHODS[name]
    domains = [Held(f"d{place}", Rows(place), Rows(place + 5, 3)) for place in range(2)]
    once, again = net("gpt2", 0.2, torch.float32), net("gpt2", 0.2, torch.float32)
    expected = learn(once, domains, make(), RECIPE)
    with pytest.raises(KeyboardInterrupt):
        learn(net("gpt2", 0.2, torch.float32), domains, broken_off(make(), "d1", 3), RECIPE, out=tmp_path)
    assert learn(again, domains, make(), RECIPE, out=tmp_path).loss == expected.loss
    assert same(weights(again), weights(once))


def test_the_loops_own_draws_are_those_of_plain_training():
    """What distillation draws for its further pass does not move the dropout of a later micro-batch."""
    drawn = []

    class Watch(Method):
        def loss(self, model, batch, loss):
            drawn[-1].append(torch.random.get_rng_state())
            return loss

    for methods in ((Watch(),), (Watch(), KD()), (Watch(), EWC(), FisherMask())):
        drawn.append([])
        taught(Together(methods), replace(RECIPE, accumulation=2), family="gpt2", dropout=0.3)
    assert all(torch.equal(a, b) for other in drawn[1:] for a, b in zip(drawn[0], other, strict=True))


def test_together_they_are_what_both_are():
    both = taught(Together((EWC(300.0, 6), KD(2.0))))
    assert same(both, taught(Together((EWC(300.0, 6), KD(2.0)))))
    assert farthest(both, taught(EWC(300.0, 6))) > 1e-4 and farthest(both, taught(KD(2.0))) > 1e-4


@EVERY
def test_another_objective_than_that_of_training_is_refused(name):
    make, _ = METHODS[name]
    with pytest.raises(
        BadInput, match="expected objective to be the one that training is given; got the causal"
    ):
        train(net("roberta"), Domain("a", Rows()), RECIPE, make(), objective=HIDE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: EWC(-1.0), "strength must be 0 or more; got -1.0"),
        (lambda: FisherMask(1.5), r"strength must be a share of the importance, in \[0, 1\]; got 1.5"),
        (lambda: EWC(samples=0), "samples of at least 1"),
        (lambda: FisherMask(by="layer"), "expected by to be one of parameter, unit; got 'layer'"),
        (lambda: EWC(of_batches=-1), "of_batches of 0 or more"),
        (lambda: KD(-1.0), "strength of 0 or more"),
        (lambda: KD(temperature=0.0), "temperature above 0"),
        (lambda: KD(of="scores"), "of to be one of hidden, logits; got 'scores'"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()
