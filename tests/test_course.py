"""Domains in a row: every number against plain arithmetic, and the driver against calls of `train` written out."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kemem import evaluation
from kemem.continual import Course, Held, beside, learn, pooled, specialists
from kemem.continual.sequence import Mixed
from kemem.errors import BadInput
from kemem.models import Shape, build
from kemem.objective import Masked
from kemem.training import Domain, Method, Recipe, train

VOCAB = 61
RECIPE = Recipe(steps=4, batch_size=4, learning_rate=1e-2, warmup_steps=2, seed=3)


class Rows:
    """Rows of random tokens out of a part of the vocabulary."""

    def __init__(self, seed: int, rows: int = 9, length: int = 10) -> None:
        generator = torch.Generator().manual_seed(seed)
        low = 3 + 17 * (seed % 3)
        self.ids = torch.randint(low, low + 20, (rows, length), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.ids[indices].clone()}


def held(count: int = 3, rows: int = 9) -> list[Held]:
    return [Held(f"domain{i}", Rows(i, rows), Rows(i + 30, 5)) for i in range(count)]


def net(family: str = "olmo", dropout: float = 0.0) -> nn.Module:
    sizes = {"layers": 1, "width": 8, "memories": 12, "heads": 2, "vocab": VOCAB, "context": 16}
    return build(Shape("gpt2" if dropout else family, **sizes, dropout=dropout), seed=1)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def course(loss: list[list[float]], before: list[float], **more) -> Course:
    return Course([str(i) for i in range(len(loss))], before, loss, **more)


# ---------------------------------------------------------------------- numbers of a course
@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 5).flatmap(
        lambda n: st.lists(st.floats(-5, 5), min_size=n * (n + 1), max_size=n * (n + 1))
    )
)
def test_the_numbers_of_a_course_are_those_written_out(numbers):
    n = round((len(numbers) + 0.25) ** 0.5 - 0.5)
    before, loss = numbers[:n], [numbers[n * (i + 1) : n * (i + 2)] for i in range(n)]
    found = course(loss, before)
    total = forgotten = gained = learned = 0.0
    for i in range(n):
        total += loss[i][n - 1]
        if i < n - 1:
            forgotten += loss[i][n - 1] - loss[i][i]
        if i > 0:
            gained += before[i] - loss[i][i - 1]
        learned += (before[i] if i == 0 else loss[i][i - 1]) - loss[i][i]
    close = {"abs": 1e-9}
    assert found.average == pytest.approx(total / n, **close)
    assert found.forgetting == pytest.approx(forgotten / (n - 1), **close)
    assert found.backward_transfer == pytest.approx(-forgotten / (n - 1), **close)
    assert found.forward_transfer == pytest.approx(gained / (n - 1), **close)
    assert found.learned == pytest.approx(learned / n, **close)


def test_a_given_course():
    found = course([[2.0, 2.5, 3.0], [4.0, 1.0, 1.5], [6.0, 5.0, 3.0]], [5.0, 4.5, 6.5])
    assert found.forgetting == pytest.approx((1.0 + 0.5) / 2)
    assert found.average == pytest.approx(2.5)
    assert found.forward_transfer == pytest.approx((0.5 + 1.5) / 2)
    assert found.learned == pytest.approx((3.0 + 3.0 + 2.0) / 3)
    assert course([[7.0] * 3] * 3, [7.0] * 3).forgetting == 0  # nothing moves: nothing is forgotten
    assert course([[7.0] * 3] * 3, [7.0] * 3).forward_transfer == 0


def test_scores_of_end_tasks_are_higher_when_better_and_may_be_missing():
    task = [[0.9, 0.8, 0.6], [None, None, None], [0.1, 0.2, 0.5]]
    found = course([[1.0] * 3] * 3, [1.0] * 3, task=task)
    assert found.task_average == pytest.approx(0.55)
    assert found.task_forgetting == pytest.approx(
        0.3
    )  # the second has none, the last one cannot be forgotten
    none = course([[1.0] * 2] * 2, [1.0] * 2, task=[[None, None]] * 2)
    assert none.task_average is None and none.task_forgetting is None


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 5).flatmap(
        lambda n: st.lists(st.floats(-5, 5), min_size=n * (n + 1), max_size=n * (n + 1))
    )
)
def test_domains_with_models_of_their_own_are_judged_by_those(numbers):
    """Of the loss of a domain only the column of its own model counts."""
    n = round((len(numbers) + 0.25) ** 0.5 - 0.5)
    before, loss = numbers[:n], [numbers[n * (i + 1) : n * (i + 2)] for i in range(n)]
    found = course(loss, before, own=True, task=loss)
    ends = [loss[i][i] for i in range(n)]
    close = {"abs": 1e-9}
    assert found.average == pytest.approx(sum(ends) / n, **close)
    assert found.learned == pytest.approx((sum(before) - sum(ends)) / n, **close)
    assert found.forgetting == found.backward_transfer == found.forward_transfer == 0
    assert found.task_average == pytest.approx(sum(ends) / n, **close) and found.task_forgetting == 0


def test_a_given_course_of_own_models():
    loss, before = [[2.0, 2.5, 3.0], [4.0, 1.0, 1.5], [6.0, 5.0, 3.0]], [5.0, 4.5, 6.5]
    task = [[0.9, 0.8, 0.6], [None, None, None], [0.1, 0.2, 0.5]]
    found = course(loss, before, own=True, task=task)
    assert found.average == pytest.approx(2.0) and found.learned == pytest.approx((3.0 + 3.5 + 3.5) / 3)
    assert found.task_average == pytest.approx(0.7) and found.task_forgetting == 0
    in_a_row = course(loss, before, task=task)
    assert not in_a_row.own and in_a_row.average == pytest.approx(2.5) and in_a_row.task_forgetting > 0
    none = course([[1.0] * 2] * 2, [1.0] * 2, own=True, task=[[None, None]] * 2)
    assert none.task_average is None and none.task_forgetting is None


# ---------------------------------------------------------------------- learn
@pytest.mark.parametrize(("family", "method"), [("olmo", None), ("roberta", Method())])
def test_plain_training_in_a_row_is_calls_of_train_in_a_row(family, method):
    objective = {"objective": Masked(3, VOCAB, 0.3)} if family == "roberta" else {}
    domains, general = held(), Rows(77, 6)
    ours, theirs = net(family), net(family)
    found = learn(ours, domains, method, RECIPE, general=general, **objective)
    matrix = [[evaluation.loss(theirs, each.test, **objective) for each in domains]]
    everywhere = [evaluation.loss(theirs, general, **objective)]
    steps = []
    for place, each in enumerate(domains):
        seed = RECIPE.seed + 1000 * place
        history = train(theirs, Domain(each.name, each.train), replace(RECIPE, seed=seed), **objective)
        steps.append([row["loss"] for row in history.steps])
        matrix.append([evaluation.loss(theirs, each.test, **objective) for each in domains])
        everywhere.append(evaluation.loss(theirs, general, **objective))
    assert same(weights(ours), weights(theirs))
    assert found.names == ["domain0", "domain1", "domain2"]
    assert found.before == matrix[0]
    assert found.loss == [[column[row] for column in matrix[1:]] for row in range(3)]
    assert found.general == everywhere
    assert [[row["loss"] for row in history.steps] for history in found.histories] == steps
    assert found.added == [0, 0, 0] and len(found.seconds) == 3 and found.task == [[None] * 3] * 3
    assert found.learned > 0.05  # the domains differ, and something was learned of them


class Written(Method):
    """Writes down what it is asked for, and how many parameters there are while it holds."""

    def __init__(self) -> None:
        self.diary: list[tuple[str, ...]] = []

    def before(self, model, domain):
        self.diary.append(("before", domain.name))
        beside.add_(model, domain.name, nn.Linear(2, 3))

    def batches(self, domains):
        self.diary.append(("batches", *(domain.name for domain in domains)))
        return domains[-1].blocks

    @contextmanager
    def during(self, model, domain):
        self.diary.append(("during", domain.name))
        yield

    def after(self, model, domain):
        self.diary.append(("after", domain.name))

    @contextmanager
    def at(self, model, domain):
        self.diary.append(("at", domain.name))
        yield


def test_a_method_is_told_of_every_domain_and_shows_the_model_for_each():
    method, asked = Written(), []

    def ask(model, by, domains):
        asked.append((by is method, [domain.name for domain in domains]))
        return [0.5, None, len(asked) / 10]

    found = learn(net(), held(), method, RECIPE, general=Rows(77, 6), ask=ask)
    names = [f"domain{i}" for i in range(3)]
    expected = []
    for i, name in enumerate(names):
        expected += [("before", name), ("batches", *names[: i + 1]), ("during", name), ("after", name)]
        expected += [("at", each) for each in (*names, name)]  # the last for general text
    assert method.diary == expected
    assert asked == [(False, names), *[(True, names)] * 3]  # before any domain the bare model
    assert found.task_before == [0.5, None, 0.1]
    assert found.task == [[0.5] * 3, [None] * 3, [0.2, 0.3, 0.4]]
    assert found.added == [9, 9, 9]


@dataclass(eq=False)
class Leaving(Method):
    """Plain training with what a method may keep between domains and in them; may break off."""

    pull: float = 0.1
    stop: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        self.last: dict[str, torch.Tensor] = {}
        self.place, self.step, self.mean = "", 0, torch.zeros(())

    def before(self, model, domain):
        self.place, self.step, self.mean = domain.name, 0, torch.zeros(())

    def loss(self, model, batch, loss):
        self.step += 1
        if (self.place, self.step) == self.stop:
            raise KeyboardInterrupt
        self.mean = 0.9 * self.mean + loss.detach()
        drift = sum((p - self.last[n]).square().sum() for n, p in model.named_parameters() if n in self.last)
        return loss * (1 + 0.1 * self.mean) + self.pull * drift

    def after(self, model, domain):
        self.last = weights(model)

    def state(self):
        return {"mean": self.mean}

    def restore(self, state):
        self.mean = state["mean"].clone()


@pytest.mark.parametrize("stop", [("domain0", 2), ("domain1", 4), ("domain2", 1)])
def test_killed_and_resumed_it_ends_in_the_same_numbers(tmp_path, stop):
    recipe = replace(RECIPE, save_every=1, log_every=1)
    once = net(dropout=0.2)
    expected = learn(once, held(), Leaving(), recipe, general=Rows(77, 6))
    model = net(dropout=0.2)
    with pytest.raises(KeyboardInterrupt):
        learn(model, held(), Leaving(stop=stop), recipe, general=Rows(77, 6), out=tmp_path)
    model = net(dropout=0.2)
    found = learn(model, held(), Leaving(), recipe, general=Rows(77, 6), out=tmp_path)
    assert same(weights(model), weights(once))
    for name in ("before", "loss", "general", "added"):
        assert getattr(found, name) == getattr(expected, name)
    losses = [[[row["loss"] for row in h.steps] for h in each.histories] for each in (found, expected)]
    assert losses[0] == losses[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-domain0", "1-domain1", "2-domain2"]
    # once more: everything is read, nothing is trained
    again = net(dropout=0.2)
    assert learn(again, held(), Leaving(stop=("domain0", 1)), recipe, out=tmp_path).loss == expected.loss


# ---------------------------------------------------------------------- pooled and specialists
def test_the_pool_has_equal_columns_and_as_many_steps_as_the_sequence():
    domains, ours, theirs = held(), net(), net()
    found = pooled(ours, domains, None, RECIPE, general=Rows(77, 6))
    assert all(len(row) == 3 and len(set(row)) == 1 for row in found.loss) and found.forgetting == 0
    joined = Rows(0)
    joined.ids = torch.cat([each.train.ids for each in domains])
    history = train(theirs, joined, replace(RECIPE, steps=12, warmup_steps=6))
    assert same(weights(ours), weights(theirs))
    assert [row[0] for row in found.loss] == [evaluation.loss(theirs, each.test) for each in domains]
    assert found.before == [evaluation.loss(net(), each.test) for each in domains]
    assert [row["loss"] for row in found.histories[0].steps] == [row["loss"] for row in history.steps]
    assert found.general == [evaluation.loss(model, Rows(77, 6)) for model in (net(), theirs)]
    assert not found.own


def test_specialists_leave_the_model_as_it_was_and_fill_a_column_each():
    domains, model, made = held(), net(), []

    def new() -> Method:
        made.append(Leaving())
        return made[-1]

    start = weights(model)
    asked = []

    def ask(model, method, every):
        asked.append(method)
        return [None, model.lm_head.weight.sum().item(), 1.0]

    found = specialists(model, domains, new, RECIPE, general=Rows(77, 6), ask=ask)
    assert same(weights(model), start) and not beside.present(model)
    assert len(made) == 3 and len({id(method) for method in made}) == 3
    assert len(asked) == 4 and asked[1:] == made  # of the model itself once, for it is the same
    assert found.before == [evaluation.loss(model, each.test) for each in domains]
    assert found.task_before == [None, model.lm_head.weight.sum().item(), 1.0]
    assert found.general[0] == evaluation.loss(model, Rows(77, 6)) and len(found.general) == 4
    for place, own in enumerate(domains):
        alone = net()
        train(alone, own.domain, replace(RECIPE, seed=RECIPE.seed + 1000 * place), Leaving())
        assert [row[place] for row in found.loss] == [evaluation.loss(alone, each.test) for each in domains]
        assert found.general[place + 1] == evaluation.loss(alone, Rows(77, 6))
        assert [row[place] for row in found.task] == [None, alone.lm_head.weight.sum().item(), 1.0]
    assert len({row for rows in found.loss for row in rows}) == 9
    assert len(found.seconds) == len(found.added) == len(found.histories) == 3
    assert found.own and found.forgetting == found.forward_transfer == 0
    assert found.average == pytest.approx(sum(found.loss[i][i] for i in range(3)) / 3, abs=1e-12)


def test_specialists_and_pool_resume(tmp_path):
    recipe = replace(RECIPE, save_every=1)
    for name, run in (("one", specialists), ("pool", pooled)):
        expected = run(net(), held(), Method, recipe) if name == "one" else run(net(), held(), None, recipe)
        steps: list[int] = []

        class Stops(Method):
            def gradients(self, model, steps=steps):
                steps.append(1)
                if len(steps) == 7:
                    raise KeyboardInterrupt

        Stops.__qualname__ = "Method"
        method = Stops if name == "one" else Stops()
        with pytest.raises(KeyboardInterrupt):
            run(net(), held(), method, recipe, out=tmp_path / name)
        assert run(net(), held(), method, recipe, out=tmp_path / name).loss == expected.loss
        assert len(steps) == 7 + 6  # six of twelve were saved


# ---------------------------------------------------------------------- several texts as one
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(sum), st.data())
def test_mixed_reads_the_rows_of_all_parts_in_the_order_asked_for(sizes, data):
    parts = [Rows(i, size) for i, size in enumerate(sizes)]
    whole, mixed = torch.cat([part.ids for part in parts]), Mixed(parts)
    assert len(mixed) == len(whole)
    indices = torch.tensor(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=12)))
    found = mixed.batch(indices)
    assert found.keys() == {"input_ids", "labels"} and found["input_ids"].dtype == torch.long
    assert torch.equal(found["input_ids"], whole[indices]) and torch.equal(found["labels"], whole[indices])


@pytest.mark.parametrize("number", [14, -1])
def test_mixed_has_no_rows_beyond_its_own(number):
    with pytest.raises(IndexError):
        Mixed([Rows(0, 9), Rows(1, 5)]).batch(torch.tensor([0, number]))


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("run", [learn, pooled, specialists])
@pytest.mark.parametrize(
    ("domains", "said"),
    [
        (held(1), "expected two domains or more, one after another; got 1; add one"),
        ([], "expected two domains or more, one after another; got 0"),
        ([*held(2), *held(1)], "expected each domain once; got domain0 again; leave out or rename it"),
        (
            [*held(2), Held("short", Rows(2, 3), Rows(3))],
            "at least 4 rows to train on.* in short; got 3 and 9",
        ),
        ([*held(2), Held("untested", Rows(2), Rows(3, 0))], "one to test, in untested; got 9 and 0"),
    ],
)
def test_what_is_no_sequence_of_domains_is_refused_before_anything_is_trained(run, domains, said):
    model = net()
    start = weights(model)
    with pytest.raises(BadInput, match=said) as caught:
        run(model, domains, Method if run is specialists else None, RECIPE)
    assert "\n" not in str(caught.value) and same(weights(model), start)


@pytest.mark.parametrize("run", [learn, pooled, specialists])
def test_an_unknown_option_is_refused(run):
    with pytest.raises(TypeError, match="objektive"):
        run(net(), held(), Method if run is specialists else None, RECIPE, objektive=1)


def test_reports_name_the_domain():
    said = []
    learn(
        net(),
        held(2),
        None,
        RECIPE,
        progress=lambda done, total, message: said.append((done, total, message)),
    )
    assert {message.split(":")[0] for _, _, message in said} == {"domain0 (1 of 2)", "domain1 (2 of 2)"}
    assert {total for _, total, _ in said} == {4}
