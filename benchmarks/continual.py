"""A step of DAS against the passes that it needs by arithmetic, and of every other way of learning domains in a row.

Each has learned one domain, so that penalties, replay and masks act; steps of the second are timed against plain ones.
What is measured, copied or grown between domains is not in it. An ELLE step is that of the grown model.
"""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.ratio import Ratio
from kemem.continual.named import LEARNERS, Given, method
from kemem.models import Shape, build
from kemem.objective import Masked, Objective, causal
from kemem.training import Domain, Method, Recipe, train

BOUND = 1.1  # of issue 5
STEPS = 4  # timed together, after one that is not
PAIRS = {"das": 5, "others": 3}  # a repeat is their median
ROWS, LENGTH = 16, 96  # of a step
VOCABULARY = 2048
SHAPE = Shape(layers=4, width=128, memories=512, heads=4, vocab=VOCABULARY, context=128)  # room for a prompt
RECIPE = Recipe(STEPS + 1, ROWS, 1e-3, warmup_steps=2, schedule="linear", clip=0.0, log_every=1)


@dataclass(frozen=True)
class Case:
    """A model, and how many plain passes a step of DAS needs on it: twin and previous view beside the loss's own."""

    name: str
    shape: Shape
    passes: int
    objective: Objective = causal


CASES = (
    Case("causal, with dropout", replace(SHAPE, family="gpt2", dropout=0.1), 3),
    Case("causal, without dropout", SHAPE, 2),  # two passes are one
    Case(  # no view is the loss's own, for that sees corrupted ids
        "masked, with dropout", replace(SHAPE, family="roberta", dropout=0.1), 4, Masked(3, VOCABULARY)
    ),
)


class Rows:
    """Random tokens."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(4, VOCABULARY, (4 * ROWS, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        return {"input_ids": self.ids[rows], "labels": self.ids[rows]}


FIRST, SECOND = Domain("first", Rows(0)), Domain("second", Rows(1))


class _Enough(Exception):
    """The last step that is timed was taken."""


def learned(case: Case, name: str, device: str) -> tuple[nn.Module, Method]:
    """A model after its first domain, and the method with what it keeps of that."""
    model = build(case.shape, seed=1).to(device)
    given = Given(RECIPE.steps, SHAPE.context, case.objective, 0, SHAPE.width)
    made = method(name, given)
    train(model, FIRST, replace(RECIPE, steps=2), made, objective=case.objective)
    return model, made


def seconds(case: Case, start: tuple[nn.Module, Method]) -> float:
    """Of a step in the second domain, the mean of STEPS. `start` is left as it was."""
    model, made = copy.deepcopy(start)  # together, for a method may hold parts of the model
    marks: list[float] = []

    def mark(done: int, total: int, message: str) -> None:  # called when the loss of the step was read
        marks.append(time.perf_counter())
        if done == total:
            raise _Enough

    with contextlib.suppress(_Enough):
        train(model, SECOND, RECIPE, made, objective=case.objective, earlier=[FIRST], progress=mark)
    return (marks[-1] - marks[0]) / STEPS


def ratio(first: Callable[[], float], second: Callable[[], float], pairs: int) -> float:
    """Median over pairs of what both say of themselves; the order alternates, so that a drift cancels."""
    found = []
    for pair in range(pairs):
        if pair % 2:
            divisor = second()
            found.append(first() / divisor)
        else:
            dividend = first()
            found.append(dividend / second())
    return statistics.median(found)


def ratios(*, repeats: int = 5, device: str = "cpu") -> Iterator[Ratio]:
    for case in CASES:
        plain, das = (learned(case, name, device) for name in ("ncl", "das"))
        values = tuple(
            ratio(lambda: seconds(case, das), lambda: seconds(case, plain), PAIRS["das"])  # noqa: B023
            / case.passes
            for _ in range(repeats)
        )
        name = f"DAS, a step / {case.passes} plain steps ({case.name})"
        yield Ratio(name, values, BOUND, "at most")
    case = CASES[1]  # the book's own family
    plain = learned(case, "ncl", device)
    for name, learner in LEARNERS.items():
        if learner.schedule != "sequence" or name == "das":
            continue
        other = learned(case, name, device)
        values = tuple(
            ratio(lambda: seconds(case, other), lambda: seconds(case, plain), PAIRS["others"])  # noqa: B023
            for _ in range(min(repeats, 3))
        )
        note = "plain against itself" if name == "ncl" else ""
        yield Ratio(f"{name}, a step / a plain step", values, None, "at most", note)
