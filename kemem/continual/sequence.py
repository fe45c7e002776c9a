"""Domains in a row: one model learns them in turn, and is asked for all of them after each.

    L_ij   held-out loss of domain i after training on domain j, nats a token; row = domain, column = when
    forgetting         1/(n-1) sum_{i<n} (L_in - L_ii)       (Ke et al. 2023, section 4: of scores, sign turned)
    backward transfer  - forgetting
    forward transfer   1/(n-1) sum_{i>1} (L_i0 - L_i,i-1)    L_i0: before any training
    average            1/n sum_i L_in

The last domain cannot be forgotten, the first one gets nothing from others. All four are means over domains and not
over tokens, so that a large domain does not speak for the others.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kemem import evaluation
from kemem.errors import BadInput
from kemem.objective import Objective, causal
from kemem.progress import Reporter
from kemem.training import Domain, History, Method, Recipe, Rows, train


@dataclass(frozen=True)
class Held:
    """A domain with the text that it is trained on, and text of its own that it is judged by."""

    name: str
    train: Rows
    test: Rows

    @property
    def domain(self) -> Domain:
        return Domain(self.name, self.train)


Asked = Callable[[nn.Module, Method, Sequence[Domain]], list[float | None]]
"""(model, method, all domains) -> a score of each domain's end task, higher is better; None where it has none."""


@dataclass
class Course:
    """What a sequence of n domains left behind. Plain numbers only, so it is JSON as it stands.

    loss [n n]: row = domain, column = after training on that domain. before [n]: of the model as it was given.
    task, task_before: likewise of end tasks, None where there is none. general: loss on text of no domain, before
    everything and after each domain; empty where none was given. seconds, added: of each domain, added being
    parameters that the method gave the model for it. own: each domain has a model of its own, column j being that of
    domain j (`specialists`); each is then judged by its own and nothing is forgotten.
    """

    names: list[str]
    before: list[float]
    loss: list[list[float]]
    general: list[float] = field(default_factory=list)
    task_before: list[float | None] = field(default_factory=list)
    task: list[list[float | None]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    added: list[int] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)
    own: bool = False

    def _end(self, i: int) -> int:
        """The column by which domain i is judged in the end."""
        return i if self.own else -1

    @property
    def average(self) -> float:
        """Mean over domains of the loss at the end."""
        return mean([row[self._end(i)] for i, row in enumerate(self.loss)])

    @property
    def forgetting(self) -> float:
        """Mean rise of the loss of a domain from when it was learned to the end; the last domain left out."""
        return mean([row[self._end(i)] - row[i] for i, row in enumerate(self.loss[:-1])])

    @property
    def backward_transfer(self) -> float:
        """Mean fall of the loss of a domain by what came after it."""
        return -self.forgetting

    @property
    def forward_transfer(self) -> float:
        """Mean fall of the loss of a domain by what came before it; the first domain left out. Of own models 0."""
        if self.own:
            return 0.0
        return mean([self.before[i] - self.loss[i][i - 1] for i in range(1, len(self.loss))])

    @property
    def learned(self) -> float:
        """Mean fall of the loss of a domain by training on it: the plasticity that is left."""
        later = [self.before[i] if self.own else self.loss[i][i - 1] for i in range(1, len(self.loss))]
        earlier = [self.before[0], *later]
        return mean([earlier[i] - self.loss[i][i] for i in range(len(self.loss))])

    @property
    def task_average(self) -> float | None:
        """Mean over domains of the end task's score at the end, of those that have one."""
        ends = [row[self._end(i)] for i, row in enumerate(self.task)]
        found = [score for score in ends if score is not None]
        return mean(found) if found else None

    @property
    def task_forgetting(self) -> float | None:
        """Ke et al. 2023, section 4: 1/(n-1) sum_{k<n} (A_kk - A_nk); positive is forgetting."""
        pairs = [(row[i], row[self._end(i)]) for i, row in enumerate(self.task[:-1])]
        found = [then - now for then, now in pairs if then is not None and now is not None]
        return mean(found) if found else None


def mean(found: Sequence[float]) -> float:
    return sum(found) / len(found)


def learn(
    model: nn.Module,
    domains: Sequence[Held],
    method: Method | None,
    recipe: Recipe,
    *,
    objective: Objective = causal,
    general: Rows | None = None,
    ask: Asked | None = None,
    out: Path | None = None,
    batch_size: int = 32,
    progress: Reporter | None = None,
) -> Course:
    """Trains `model` in place on each domain in turn, with a fresh optimizer and `recipe` each time.

    method: None is plain training. Between domains it keeps what it has learned of the earlier ones; a domain that
    was not seen yet is asked for with the model as the method shows it by then. recipe: its seed is mixed with the
    place of the domain, so that two domains of equal size are not read in one order. out: a folder for each domain,
    from which a killed run resumes; the method's moments before and after a finished domain are then repeated.
    Refused: fewer than two domains, one given twice, less text than a step reads.
    """
    checked(domains, recipe)
    method = method or Method()
    seen: list[Domain] = []
    every = [held.domain for held in domains]
    scores = _Scores(domains, every, objective, general, ask, batch_size)
    before, task_before = scores(model, Method())
    course = Course([held.name for held in domains], before, [[] for _ in domains], task_before=task_before)
    course.task = [[] for _ in domains]
    if general is not None:
        course.general.append(scores.general_loss(model, Method(), every[0]))
    for place, (held, domain) in enumerate(zip(domains, every, strict=True)):
        size, start = count(model), time.perf_counter()
        history = train(
            model, domain, replace(recipe, seed=recipe.seed + 1000 * place), method, objective=objective,
            out=None if out is None else out / f"{place}-{held.name}", earlier=seen,
            progress=progress and _titled(progress, f"{held.name} ({place + 1} of {len(domains)})"),
        )  # fmt: skip
        course.seconds.append(time.perf_counter() - start)
        course.added.append(count(model) - size)
        course.histories.append(history)
        seen.append(domain)
        loss, task = scores(model, method)
        for row, own in zip(course.loss, loss, strict=True):
            row.append(own)
        for own_row, score in zip(course.task, task, strict=True):
            own_row.append(score)
        if general is not None:
            course.general.append(scores.general_loss(model, method, domain))
    return course


def specialists(
    model: nn.Module, domains: Sequence[Held], method: Callable[[], Method], recipe: Recipe, **options: Any
) -> Course:
    """One model a domain, each trained from `model`, which stays as it was: column j is what specialist j makes of all.

    method: makes a new one for each. options: as of `learn`.
    """
    checked(domains, recipe)
    courses: list[Course] = []
    for place in range(len(domains)):
        first = courses[0] if courses else None
        courses.append(_alone(copy.deepcopy(model), domains, place, method(), recipe, first, **options))
    return _joined(courses)


def pooled(
    model: nn.Module, domains: Sequence[Held], method: Method | None, recipe: Recipe, **options: Any
) -> Course:
    """All domains together in one run of as many steps as the sequence takes; every column is its end."""
    checked(domains, recipe)
    steps = len(domains) * recipe.steps
    longer = replace(recipe, steps=steps, warmup_steps=min(steps, len(domains) * recipe.warmup_steps))
    pool = Held("pool", Mixed([held.train for held in domains]), domains[0].test)
    course = _alone(model, domains, pool, method or Method(), longer, **options)
    course.loss = [row * len(domains) for row in course.loss]
    course.task = [row * len(domains) for row in course.task]
    return course


def _alone(
    model: nn.Module,
    domains: Sequence[Held],
    own: int | Held,
    method: Method,
    recipe: Recipe,
    first: Course | None = None,
    *,
    objective: Objective = causal,
    general: Rows | None = None,
    ask: Asked | None = None,
    out: Path | None = None,
    batch_size: int = 32,
    progress: Reporter | None = None,
) -> Course:
    """One training run on one text, and what it makes of every domain: a course with a single column.

    first: another run from the same model, which is then not asked again.
    """
    held = domains[own] if isinstance(own, int) else own
    place = own if isinstance(own, int) else 0
    every = [each.domain for each in domains]
    scores = _Scores(domains, every, objective, general, ask, batch_size)
    before, task_before = (first.before, first.task_before) if first else scores(model, Method())
    course = Course([each.name for each in domains], before, [], task_before=task_before)
    if general is not None:
        course.general.append(
            first.general[0] if first else scores.general_loss(model, Method(), held.domain)
        )
    size, start = count(model), time.perf_counter()
    course.histories = [
        train(
            model, held.domain, replace(recipe, seed=recipe.seed + 1000 * place), method, objective=objective,
            out=None if out is None else out / f"{place}-{held.name}",
            progress=progress and _titled(progress, held.name),
        )
    ]  # fmt: skip
    course.seconds, course.added = [time.perf_counter() - start], [count(model) - size]
    loss, task = scores(model, method)
    course.loss, course.task = [[x] for x in loss], [[x] for x in task]
    if general is not None:
        course.general.append(scores.general_loss(model, method, held.domain))
    return course


def _joined(courses: Sequence[Course]) -> Course:
    """Courses of one column each, side by side; `general` is that of the first model, then each specialist's."""
    first = courses[0]
    return Course(
        first.names, first.before,
        [[c.loss[i][0] for c in courses] for i in range(len(first.names))],
        [*first.general[:1], *(x for c in courses for x in c.general[1:])], first.task_before,
        [[c.task[i][0] for c in courses] for i in range(len(first.names))],
        [x for c in courses for x in c.seconds], [x for c in courses for x in c.added],
        [x for c in courses for x in c.histories], own=True,
    )  # fmt: skip


@dataclass
class _Scores:
    """What is asked of a model, again and again."""

    domains: Sequence[Held]
    every: list[Domain]
    objective: Objective
    general: Rows | None
    ask: Asked | None
    batch_size: int

    def __call__(self, model: nn.Module, method: Method) -> tuple[list[float], list[float | None]]:
        losses = []
        for held, domain in zip(self.domains, self.every, strict=True):
            losses.append(self._loss(model, method, domain, held.test))
        tasks = [None] * len(losses) if self.ask is None else self.ask(model, method, self.every)
        return losses, list(tasks)

    def general_loss(self, model: nn.Module, method: Method, domain: Domain) -> float:
        """Loss on text of no domain, with the model as the method shows it for `domain`."""
        assert self.general is not None
        return self._loss(model, method, domain, self.general)

    def _loss(self, model: nn.Module, method: Method, domain: Domain, text: Rows) -> float:
        with method.at(model, domain):
            return evaluation.loss(model, text, batch_size=self.batch_size, objective=self.objective)


@dataclass(frozen=True)
class Mixed:
    """Several texts as one, row after row."""

    parts: Sequence[Rows]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Rows by number over all parts, in the order asked for. Parts must have rows of one length."""
        numbers = torch.as_tensor(indices, dtype=torch.long)
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"expected rows in 0..{len(self) - 1}; got {numbers.tolist()}")
        places, read, start = [], [], 0
        for part in self.parts:
            own = ((numbers >= start) & (numbers < start + len(part))).nonzero()[:, 0]
            if len(own):
                places.append(own)
                read.append(part.batch(numbers[own] - start))
            start += len(part)
        order = torch.cat(places).argsort()
        return {name: torch.cat([rows[name] for rows in read])[order] for name in read[0]}


def checked(domains: Sequence[Held], recipe: Recipe) -> None:
    """Refuses what is no sequence of domains: fewer than two, a name twice, less text than a step reads."""
    names = [held.name for held in domains]
    if len(names) < 2:
        raise BadInput(f"expected two domains or more, one after another; got {len(names)}; add one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"expected each domain once; got {', '.join(twice)} again; leave out or rename it.")
    for held in domains:
        if len(held.train) < recipe.batch_size or not len(held.test):
            raise BadInput(
                f"expected at least {recipe.batch_size} rows to train on, as many as a step reads, and one to test, in "
                f"{held.name}; got {len(held.train)} and {len(held.test)}; give more text or a smaller batch."
            )


def count(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def _titled(progress: Reporter, title: str) -> Reporter:
    return lambda done, total, message: progress(done, total, f"{title}: {message}")
