"""Several methods in one run, against the same moments called one after the other by hand."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kemem.entropy import CoolAttention, Injection, Schedule, WakeIdle
from kemem.errors import BadInput
from kemem.models import Shape, build
from kemem.training import Domain, Method, Recipe, Together, train
from kemem.training.method import overrides

VOCAB = 61
RECIPE = Recipe(steps=6, batch_size=4, learning_rate=1e-2, log_every=1)
BUSY = torch.linspace(0.1, 2.0, 20).repeat(2, 1)  # [L M]
TOLD = Injection(Schedule((((5, 6, 7, 0), (9, 8, 0)), ((4, 4, 0),)), 2))


class Rows:
    """Rows of random tokens."""

    def __init__(self, rows: int = 16, length: int = 10, seed: int = 0) -> None:
        self.ids = torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.ids[indices]}


def net(dropout: float = 0.0) -> nn.Module:
    shape = Shape("gpt2" if dropout else "olmo", layers=2, width=12, memories=20, heads=3, vocab=VOCAB, context=16,
                  dropout=dropout)  # fmt: skip
    return build(shape, seed=1)


def trained(method: Method | None, recipe: Recipe = RECIPE, model: nn.Module | None = None, **options: Any):
    model = net() if model is None else model
    history = train(model, Rows(), recipe, method, **options)
    return {name: p.detach().clone() for name, p in model.named_parameters()}, [
        row["loss"] for row in history.steps
    ]


def same(a, b) -> bool:
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][n], b[0][n]) for n in a[0])


# ---------------------------------------------------------------------- what leaves training as it is
def test_without_effect_it_is_the_other_method_bit_for_bit():
    told, plain = trained(TOLD), trained(None)
    assert same(trained(Together((TOLD, WakeIdle(BUSY, 0.0)))), told) and not same(told, plain)
    assert same(trained(Together((WakeIdle(BUSY, 0.0), TOLD, CoolAttention(1.0, 6)))), told)
    woken = trained(WakeIdle(BUSY, 1.0))
    assert same(trained(Together([WakeIdle(BUSY, 1.0)])), woken)
    assert same(trained(Together((Together((Method(),)), WakeIdle(BUSY, 1.0), Method()))), woken)
    assert same(trained(Together(())), plain) and not same(woken, plain)
    assert not same(trained(Together((TOLD, WakeIdle(BUSY, 1.0)))), told)


def test_accumulation_leaves_the_step_as_it_is():
    whole, cut = (
        trained(Together((TOLD, WakeIdle(BUSY, 1.0))), replace(RECIPE, accumulation=n), net().double())[0]
        for n in (1, 4)
    )
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-12


def test_weights_are_copied_at_every_step_only_for_who_looks_at_them():
    for methods, copied in (((TOLD,), False), ((TOLD, Method()), False), ((), False),
                            ((TOLD, WakeIdle(BUSY, 1.0)), True), ((CoolAttention(2.0, 6),), False)):  # fmt: skip
        assert overrides(Together(methods), "updated") is copied
        assert overrides(Together((Together(methods), TOLD)), "updated") is copied
        assert not overrides(Together(methods), "batches")


# ---------------------------------------------------------------------- every moment, by hand
class Written(Method):
    """Writes down every moment, and changes what passes through by arithmetic that tells the order."""

    def __init__(self, number: int, diary: list[Any]) -> None:
        self.number, self.diary, self.kept = number, diary, torch.tensor(float(number))

    def before(self, model, domain):
        self.diary.append(("before", self.number, domain.name))

    def rows(self, step, batch):
        self.diary.append(("rows", self.number, step))
        return {name: 3 * tensor + self.number for name, tensor in batch.items()}

    def loss(self, model, batch, loss):
        self.diary.append(("loss", self.number, batch["input_ids"].item()))
        return 3 * loss + self.number

    def gradients(self, model):
        self.diary.append(("gradients", self.number))
        model.weight.grad.mul_(3).add_(self.number)

    def updated(self, model, previous):
        self.diary.append(("updated", self.number, previous["weight"].item()))
        model.weight.mul_(3).add_(self.number)

    def after(self, model, domain):
        self.diary.append(("after", self.number, domain.name))

    @contextmanager
    def at(self, model, domain):
        self.diary.append(("enter", self.number, domain.name))
        try:
            yield
        finally:
            self.diary.append(("leave", self.number))

    @contextmanager
    def during(self, model, domain):
        with self.at(model, domain):
            self.diary.append(("during", self.number))
            yield

    def state(self):
        return {"kept": self.kept, f"own{self.number}": torch.tensor([self.number])}

    def restore(self, state):
        self.diary.append(("restore", self.number, {name: tensor.tolist() for name, tensor in state.items()}))


def played(method: Method | None, each: list[Method], start: int) -> tuple[list[Any], list[float]]:
    """Every moment of one method, or of each of several by hand; the numbers that came out of them."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, start)
    model.weight.grad = torch.full((1, 1), 2.0)
    domain = Domain("own", Rows())
    batch, loss = {"input_ids": torch.tensor(start)}, torch.tensor(float(start))
    order = each if method is None else [method]
    with torch.no_grad():
        for one in order:
            one.before(model, domain)
        for one in order:
            batch = one.rows(7, batch)
        for one in order:
            loss = one.loss(model, batch, loss)
        for one in order:
            one.gradients(model)
        for one in order:
            one.updated(model, {"weight": torch.tensor(0.5)})
        for one in order:
            one.after(model, domain)
    return each[0].diary if each else [], [
        float(batch["input_ids"]), float(loss), model.weight.item(), model.weight.grad.item(),
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 9), max_size=4), start=st.integers(-5, 5), inner=st.integers(0, 4))
def test_moments_come_in_order_to_each(numbers, start, inner):
    """Also where the first few are one themselves."""

    def written() -> list[Method]:
        diary: list[Any] = []
        return [Written(number, diary) for number in numbers]

    each = written()
    one = Together((Together(each[:inner]), *each[inner:]))
    assert played(one, each, start) == played(None, written(), start)


def test_it_shows_what_each_shows_and_gives_back_what_each_kept():
    diary: list[Any] = []
    one = Together([Written(4, diary), Written(2, diary), Method()])
    with pytest.raises(KeyError), one.at(nn.Linear(1, 1), Domain("own", Rows())):
        diary.append("inside")
        raise KeyError
    assert diary == [("enter", 4, "own"), ("enter", 2, "own"), "inside", ("leave", 2), ("leave", 4)]
    diary.clear()
    with one.during(nn.Linear(1, 1), Domain("own", Rows())):
        diary.append("inside")
    assert diary == [
        ("enter", 4, "own"), ("during", 4), ("enter", 2, "own"), ("during", 2), "inside", ("leave", 2), ("leave", 4),
    ]  # fmt: skip
    diary.clear()
    state = one.state()
    assert sorted(state) == ["0.kept", "0.own4", "1.kept", "1.own2"]
    one.restore(state)
    assert diary == [("restore", 4, {"kept": 4.0, "own4": [4]}), ("restore", 2, {"kept": 2.0, "own2": [2]})]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 14))
def test_state_comes_back_to_the_place_it_is_from(count):
    """With more than ten, place 1 begins place 10."""
    diary: list[Any] = []
    Together(many := [Written(number, diary) for number in range(count)]).restore(Together(many).state())
    assert diary == [("restore", n, {"kept": float(n), f"own{n}": [n]}) for n in range(count)]


class Other(Method):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batches(self, domains):
        return Rows(seed=self.seed)


def test_one_may_choose_the_data_and_two_may_not():
    chosen = trained(Other(3))
    assert same(trained(Together((Method(), Together((Other(3),))))), chosen)
    assert not same(chosen, trained(None))
    for methods in ((Other(1), TOLD, Other(2)), (Other(1), Together((Other(2),)))):
        with pytest.raises(
            BadInput, match=r"at most one method that chooses the data.*got 2: Other"
        ) as caught:
            Together(methods)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- a run that is broken off
@dataclass(eq=False)
class Average(Method):
    """Carries something from step to step, uses it, and stops a run in the middle."""

    share: float = 0.1
    stop = 99

    def before(self, model, domain):
        self.mean = torch.zeros_like(next(model.parameters()))

    def updated(self, model, previous):
        weight = next(model.parameters())
        self.mean = (1 - self.share) * self.mean + self.share * weight
        weight.sub_(0.1 * self.mean)

    def gradients(self, model):
        self.stop -= 1
        if self.stop < 0:
            raise KeyboardInterrupt

    def state(self):
        return {"mean": self.mean}

    def restore(self, state):
        self.mean = state["mean"]


def methods(stop: int = 99, *, share: float = 0.1, strength: float = 1.0, usage=BUSY, told=TOLD) -> Together:
    """Three that have a state, two of them the same tensor; one that replaces rows."""
    average = Average(share)
    average.stop = stop
    return Together((told, WakeIdle(usage, strength), average, WakeIdle(usage, 0.5), Average(0.3)))


SAVED = replace(RECIPE, steps=9, save_every=2, accumulation=2)


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 8])
def test_broken_off_anywhere_it_ends_in_the_same_numbers(tmp_path, stop):
    whole = trained(methods(), SAVED, net(0.2))
    with pytest.raises(KeyboardInterrupt):
        trained(methods(stop), SAVED, net(0.2), out=tmp_path)
    again = methods(9 - stop // 2 * 2)  # it goes on from what was saved: more steps would break it off
    assert same(trained(again, SAVED, net(0.2), out=tmp_path), whole)
    assert same(trained(methods(0), SAVED, net(0.2), out=tmp_path), whole)  # finished: read, not repeated


def test_a_temperature_and_an_average_go_on_where_they_were(tmp_path):
    def both(stop: int = 99) -> Together:
        average = Average()
        average.stop = stop
        return Together((CoolAttention(3.0, 9), average))

    whole = trained(both(), SAVED)
    assert not same(whole, trained(Average(), SAVED))
    with pytest.raises(KeyboardInterrupt):
        trained(both(5), SAVED, out=tmp_path)
    assert same(trained(both(), SAVED, out=tmp_path), whole)


def test_a_folder_of_other_members_is_refused(tmp_path):
    out: Path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        trained(methods(3), SAVED, out=out)
    other = Injection(Schedule((((5, 6, 0),),), 2))
    for changed, said in (
        (methods(strength=2.0), r"method\.members \(.Injection\(digest='.*strength=1\.0.*strength=2\.0"),
        (methods(share=0.2), r"Average\(share=0\.1\).* there, .*Average\(share=0\.2\)"),
        (methods(told=other), other.digest),
        (Together(methods().methods[:-1]), r"method\.members"),
        (Together(methods().methods[::-1]), r"method\.members"),
        (Together((methods(),)), r"Together\(members="),
        (TOLD, r"method \('Together' there, 'Injection' now\)"),
        (methods(usage=BUSY.flip(-1)), "the usage that this run began with"),
    ):
        with pytest.raises(BadInput, match=said) as caught:
            trained(changed, SAVED, out=out)
        assert "\n" not in str(caught.value)
    assert same(trained(methods(), SAVED, out=out), trained(methods(), SAVED))
