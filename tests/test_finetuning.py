"""Fine-tuning and probing: against plain loops, with padding, methods, seeds, and what must stay as it was."""

from __future__ import annotations

import copy
import re
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from conftest import MASKED, tiny, tokens
from torch import nn
from torch.nn import functional as F

from kemem import trace
from kemem.continual import beside, finetuning, learn
from kemem.continual.end_tasks import EndTask, Example, accuracy, f1
from kemem.continual.finetuning import (
    FineTuning,
    Probing,
    asked,
    encoded,
    features,
    longest,
    pooled,
    regression,
    scored,
    standardised,
)
from kemem.continual.sequence import Held
from kemem.corpora import train_tokenizer
from kemem.corpora.packing import Blocks, permutation
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.models import Shape, build
from kemem.objective import mix
from kemem.training import Domain, Method, Recipe

WORDS = [f"w{i}" for i in range(40)]
TOKENIZER = train_tokenizer([" ".join(WORDS)], 61, unit="word")
TEXTS = [tokens(n, seed=n).tolist() for n in (5, 1, 12, 3, 9, 12, 2)]


def rows(count: int = 6, seed: int = 0) -> Blocks:
    ids = tokens(count, 10, seed=seed).int()
    return Blocks(ids, torch.zeros_like(ids))


def task(name: str = "words", train: int = 24, test: int = 12, classes: int = 3) -> EndTask:
    """Which of a few words stands in a text of 3 to 5 words."""
    made = []
    for i in range(train + test):
        label, other = f"w{40 - classes + i % classes}", f"w{tokens(1, vocab=37, seed=i).item()}"
        made.append(Example(" ".join([label] * (2 + i % 2) + [other] * (1 + i % 3 // 2)), label))
    names = tuple(f"w{40 - classes + i}" for i in range(classes))
    return EndTask(name, names, tuple(made[:train]), tuple(made[train:]))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ---------------------------------------------------------------------- the mean of the last hidden states
def test_padding_changes_nothing(family):
    model = tiny(family, dtype=torch.float64)
    alone = torch.cat([features(model, [text]) for text in TEXTS])
    tolerance = 1e-5 if family == "gptj" else 1e-10
    for size in (2, 7):
        torch.testing.assert_close(
            features(model, TEXTS, batch_size=size), alone, rtol=tolerance, atol=tolerance
        )


def test_features_are_means_over_the_tokens(family):
    """Each text read by itself, without a mask, by the whole model."""
    model = tiny(family, dtype=torch.float64)
    found = features(model, TEXTS, batch_size=3)
    for text, feature in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
        expected = sum(states[i] for i in range(len(text))) / len(text)
        tolerance = 1e-5 if family == "gptj" else 1e-10
        torch.testing.assert_close(feature, expected, rtol=tolerance, atol=tolerance)


def test_a_context_shorter_than_the_length_decides(family):
    model = tiny(family, context=16)
    assert longest(model) == 16 and longest(model, 7) == 7
    text = encoded(TOKENIZER, [Example(" ".join(WORDS), "a")], longest(model))
    assert len(text[0]) == 16 and torch.isfinite(features(model, text)).all()


def test_the_published_length_holds_where_it_fits():
    for family in ("olmo", "roberta"):
        assert longest(tiny(family, context=512)) == 164
    assert (
        longest(build(Shape("roberta", layers=1, width=8, memories=8, heads=2, context=128, vocab=50))) == 128
    )


# ---------------------------------------------------------------------- texts
def test_what_is_asked_about_stands_before_a_separator():
    ids = encoded(TOKENIZER, [Example("w3 w4", "a", "w1 w2"), Example("w3 w4", "a")], 64)
    assert TOKENIZER.convert_ids_to_tokens(ids[0]) == ["w1", "w2", TOKENIZER.eos_token, "w3", "w4"]
    assert TOKENIZER.convert_ids_to_tokens(ids[1]) == ["w3", "w4"]
    assert [len(x) for x in encoded(TOKENIZER, [Example("w3 w4", "a", "w1 w2")], 4)] == [4]
    other = copy.deepcopy(TOKENIZER)
    other.add_special_tokens({"sep_token": "[SEP]"})
    assert other.convert_ids_to_tokens(encoded(other, [Example("w3", "a", "w1")], 9)[0])[1] == "[SEP]"


def test_texts_without_tokens_are_refused():
    def none(texts, **_):
        return {"input_ids": [[] for _ in texts]}

    none.sep_token = none.eos_token = None
    with pytest.raises(BadInput, match="texts with tokens; got '-'"):
        encoded(none, [Example("-", "a")], 8)
    with pytest.raises(BadInput, match="a tokenizer with a separator"):
        encoded(none, [Example("-", "a", "b")], 8)


# ---------------------------------------------------------------------- fine-tuning
@pytest.mark.parametrize("family", ["olmo", "gpt2", "llama", "gpt_neox", "roberta"])
@pytest.mark.parametrize("how", [FineTuning(epochs=8, learning_rate=5e-3, batch_size=8), Probing()])
def test_what_words_decide_is_learned(family, how):
    model = tiny(family, width=24)
    found = how(model, TOKENIZER, task())
    assert found.accuracy > 80 and len(found.predictions) == 12
    labels = [x.label for x in task().test]
    assert found.score == found.macro_f1 == f1(labels, found.predictions)
    assert found.accuracy == accuracy(labels, found.predictions)


@pytest.mark.parametrize("family", ["olmo", "roberta"])
@pytest.mark.parametrize("how", [FineTuning(epochs=1, learning_rate=1e-2), Probing()])
def test_the_model_stays_as_it_was(family, how):
    dropout = {"attention_dropout": 0.3} if family == "olmo" else {}  # RoBERTa's own is 0.1
    model = tiny(family, **dropout).train()
    next(model.parameters()).requires_grad_(False)
    model(tokens(2, 5)).logits.sum().backward()
    before, modes = state(model), {name: m.training for name, m in model.named_modules()}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    slopes = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    generator = torch.get_rng_state()
    how(model, TOKENIZER, task())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    for name, p in model.named_parameters():
        assert (p.grad is None) if slopes[name] is None else torch.equal(p.grad, slopes[name])


def weights_after(how: FineTuning, model: nn.Module, drift: list[torch.Tensor]) -> None:
    """Appends all weights of the copy as it was when the test texts were read."""

    @dataclass(eq=False)
    class Watch(Method):
        @contextmanager
        def at(self, model, domain):
            yield
            drift.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    how(model, TOKENIZER, task(train=10, test=4), Watch(), Domain("a", rows()))


def test_gradients_left_on_the_model_do_not_matter():
    seen: list[torch.Tensor] = []
    for stale in (False, True):
        model = tiny("olmo")
        if stale:
            model(tokens(2, 5)).logits.sum().backward()
        weights_after(FineTuning(epochs=1, learning_rate=1e-3), model, seen)
    assert torch.equal(*seen)


def test_the_same_seed_twice_is_the_same():
    model = tiny("roberta")  # with dropout
    seen: list[torch.Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(seen))
        weights_after(FineTuning(epochs=2, learning_rate=1e-3, batch_size=4, seed=seed), model, seen)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_training_is_adamw_by_hand(family):
    """Against a loop that reads one text at a time without padding and writes AdamW out. Dropout off, float64."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if family in MASKED else {}
    model = tiny(family, dtype=torch.float64, **quiet)
    texts, answers = TEXTS[:5], torch.tensor([0, 1, 2, 0, 1])
    how = FineTuning(epochs=2, learning_rate=1e-2, weight_decay=0.1, batch_size=2, seed=3)
    head = nn.Linear(12, 3).double()
    by_hand, own_head = copy.deepcopy(model), copy.deepcopy(head)
    how._train(model, head, texts, answers)

    parameters = [*by_hand.parameters(), *own_head.parameters()]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    step = 0
    for epoch in range(2):
        order = permutation(5, mix(3, epoch))
        for part in (order[0:2], order[2:4], order[4:5]):
            loss = 0.0
            for i in part:
                states = by_hand(torch.tensor([texts[i]]), output_hidden_states=True).hidden_states[-1][0]
                scores = own_head(states.mean(0))
                loss = loss + (torch.logsumexp(scores, 0) - scores[answers[i]]) / len(part)
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
            rate = 1e-2 * (1 - step / 6)
            step += 1
            with torch.no_grad():
                for p, slope, m, v in zip(parameters, slopes, first, second, strict=True):
                    if slope is None:  # the language-model head: neither moved nor decayed
                        continue
                    m.mul_(0.9).add_(0.1 * slope)
                    v.mul_(0.999).add_(0.001 * slope**2)
                    p.mul_(1 - rate * 0.1)
                    p.sub_(rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-6))
    assert step == 6
    for p, q in zip([*model.parameters(), *head.parameters()], parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_a_rate_that_explodes_is_said():
    with pytest.raises(BadInput, match=r"finite scores on 'words'; .* lower learning_rate \(1e\+30\)"):
        FineTuning(epochs=2, learning_rate=1e30)(tiny("olmo"), TOKENIZER, task())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FineTuning(epochs=0), "epochs above 0; got 0"),
        (lambda: FineTuning(learning_rate=float("nan")), "learning_rate above 0; got nan"),
        (lambda: FineTuning(batch_size=-1), "batch_size above 0"),
        (lambda: Probing(strength=0.0), "strength above 0; got 0.0"),
        (lambda: Probing(length=0), "length above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        make()


# ---------------------------------------------------------------------- probing
def test_the_probe_is_at_its_one_minimum():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=draw, dtype=torch.float64)
    answers = torch.randint(0, 3, (60,), generator=draw)
    for strength in (1e-3, 0.5):
        weight, bias = regression(x, answers, 3, strength)
        W, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = F.cross_entropy(x @ W.T + b, answers) + strength / 2 * (W**2).sum()
        slopes = torch.autograd.grad(loss, (W, b))
        assert max(slope.abs().max().item() for slope in slopes) < 1e-6
        assert weight.norm() > 0.05
    again = regression(x, answers, 3, 0.5)
    assert torch.equal(again[0], weight) and torch.equal(again[1], bias)


def test_the_probe_by_another_way():
    """Newton's method on the standardised features, in the test's own words."""
    model, made = tiny("llama", dtype=torch.float64), task(train=30, test=30)
    train, test = (
        torch.stack([pooled(model, encoded(TOKENIZER, [x], 64))[0].detach() for x in part])
        for part in (made.train, made.test)
    )
    mean, spread = train.mean(0), ((train - train.mean(0)) ** 2).mean(0).sqrt()
    x, z = (train - mean) / spread, (test - mean) / spread
    answers = torch.tensor([made.classes.index(e.label) for e in made.train])

    def loss(flat):
        W, b = flat[:36].view(3, 12), flat[36:]
        ridge = 1e-9 * (b**2).sum()  # all biases may move together: a direction without curvature
        return F.cross_entropy(x @ W.T + b, answers) + 0.05 * (W**2).sum() + ridge

    flat = torch.zeros(39, dtype=torch.float64)
    for _ in range(30):
        slope = torch.autograd.functional.jacobian(loss, flat)
        flat = flat - torch.linalg.solve(torch.autograd.functional.hessian(loss, flat), slope)
    expected = (z @ flat[:36].view(3, 12).T + flat[36:]).argmax(1)
    found = Probing(strength=0.1)(model, TOKENIZER, made)
    assert list(found.predictions) == [made.classes[i] for i in expected]


def test_a_class_without_training_examples_is_never_answered(monkeypatch):
    made = task()
    more = EndTask(
        "t", (*made.classes, "w0"), made.train, (*made.test, Example("w0 w0", "w0")), "micro_f1", ("w0",)
    )
    asked_for = []

    def counted(x, answers, classes, strength):
        asked_for.append((classes, set(answers.tolist())))
        return regression(x, answers, classes, strength)

    monkeypatch.setattr(finetuning, "regression", counted)
    found = Probing()(tiny("olmo"), TOKENIZER, more)
    assert asked_for == [(3, {0, 1, 2})], "a bias of nothing would fall for ever"
    assert "w0" not in found.predictions and len(found.predictions) == 13
    assert found.score == found.accuracy < 100


def test_features_are_scaled_by_the_training_examples():
    draw = torch.Generator().manual_seed(0)
    train, test = (5 + 3 * torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (50, 9))
    train[:, 2] = 7.0
    x, z = standardised(train, test)
    varying = [0, 1, 3]
    torch.testing.assert_close(x.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close((x**2).mean(0)[varying], torch.ones(3, dtype=torch.float64))
    assert (x[:, 2] == 0).all() and torch.equal(z[:, 2], test[:, 2] - 7)
    slope = ((x[0] - x[1]) / (train[0] - train[1]))[varying]
    torch.testing.assert_close((z[0] - z[1])[varying], slope * (test[0] - test[1])[varying])
    torch.testing.assert_close((z[0] - x[0])[varying], slope * (test[0] - train[0])[varying])


# ---------------------------------------------------------------------- the model as a method shows it
@dataclass(eq=False)
class Scaled(Method):
    """On domain "a" all coefficients of the first layer are doubled."""

    seen: list | None = None

    @contextmanager
    def at(self, model, domain):
        if domain.name != "a":
            yield
            return
        calls = []

        def double(c):
            calls.append(model.training)
            return 2 * c

        with trace.replace(model, {Memories(model).down_path(0): double}, side="input"):
            yield
        if self.seen is not None:
            self.seen.append((model, calls))


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_both_see_what_the_method_shows(family):
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if family in MASKED else {}
    model = tiny(family, dtype=torch.float64, **quiet)
    other = copy.deepcopy(model)
    values = Memories(other).values(0)
    values.mul_(2)  # the same, written into the weights
    a, b = Domain("a", rows()), Domain("b", rows())
    with Scaled().at(model, a):
        torch.testing.assert_close(features(model, TEXTS), features(other, TEXTS))
    for how in (Probing(), FineTuning(epochs=1, learning_rate=1e-3)):
        seen: list = []
        shown = how(model, TOKENIZER, task(), Scaled(seen), a)
        assert how(model, TOKENIZER, task(), Scaled(), b) == how(model, TOKENIZER, task())
        if isinstance(how, Probing):
            assert shown == how(other, TOKENIZER, task())
        ((at, calls),) = seen
        assert (at is model) == isinstance(how, Probing)
        assert set(calls) == ({True, False} if isinstance(how, FineTuning) else {False})


@dataclass(eq=False)
class Sum(Method):
    """A module beside the model, added to the last hidden state; the method's own hooks, on whatever model it gets."""

    @contextmanager
    def at(self, model, domain):
        own = beside.module(model, "bias")
        path = f"{Memories(model).block_path(Memories(model).layers - 1)}"
        with trace.replace(model, {path: lambda h: h + own.weight[0]}):
            yield


def test_modules_beside_the_copy_learn_too():
    model = tiny("olmo")
    beside.add_(model, "bias", nn.Embedding.from_pretrained(torch.ones(1, 12)))
    before = state(model)
    drift: list = []

    @dataclass(eq=False)
    class Watched(Sum):
        @contextmanager
        def at(self, model, domain):
            with super().at(model, domain):
                yield
            drift.append(beside.module(model, "bias").weight.detach().clone())

    FineTuning(epochs=1, learning_rate=1e-2)(model, TOKENIZER, task(), Watched(), Domain("a", rows()))
    assert not torch.equal(drift[0], torch.ones(1, 12))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


# ---------------------------------------------------------------------- in a sequence
def test_tasks_are_asked_for_by_domain():
    model, made, other = tiny("olmo"), task(), task("more", classes=2)
    domains = [Domain(name, rows()) for name in ("a", "b", "c")]
    method, calls = Scaled(), []

    def how(*given):
        calls.append(given)
        return scored(given[2], [given[2].classes[0]] * len(given[2].test))

    found = asked({"c": other, "a": made}, how, TOKENIZER)(model, method, domains)
    assert calls == [
        (model, TOKENIZER, made, method, domains[0]),
        (model, TOKENIZER, other, method, domains[2]),
    ]
    assert found == [pytest.approx(100 / 6), None, pytest.approx(100 / 3)]
    with pytest.raises(BadInput, match="end tasks of a, b, c; got one of d"):
        asked({"d": made}, Probing(), TOKENIZER)(model, Method(), domains)


@pytest.mark.parametrize("how", [FineTuning(epochs=1, learning_rate=1e-3), Probing()])
def test_a_sequence_has_a_matrix_of_scores(how):
    domains = [Held(name, rows(8, seed), rows(2, seed + 9)) for seed, name in enumerate(("a", "b"))]
    recipe = Recipe(steps=2, batch_size=4, learning_rate=1e-2)
    made = task(train=12, test=12)
    bare, with_tasks = tiny("olmo"), tiny("olmo")
    without = learn(bare, domains, None, recipe)
    course = learn(with_tasks, domains, None, recipe, ask=asked({"a": made}, how, TOKENIZER))
    assert course.task_before == [how(tiny("olmo"), TOKENIZER, made).score, None]
    assert course.task[0][1] == how(bare, TOKENIZER, made).score and course.task[1] == [None, None]
    assert len(course.task[0]) == 2 and course.loss == without.loss
    assert all(torch.equal(p, q) for p, q in zip(bare.parameters(), with_tasks.parameters(), strict=True))


def test_any_model_with_a_base_is_read():
    """A model without a base model of its own name is its own base."""
    base = tiny("olmo").model
    assert torch.equal(features(base, TEXTS), features(tiny("olmo"), TEXTS))
