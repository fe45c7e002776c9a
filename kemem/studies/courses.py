"""Chapters 08 to 10: domains in a row, by any method and on one budget.

A row is one course: a model, an order of domains and a method, with what `kemem.continual` measures of it, the loss of
general text and the end task of every domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from kemem import entropy, evaluation, models
from kemem.continual import (
    DAS,
    Course,
    FisherMask,
    Held,
    Probing,
    Units,
    asked,
    domains,
    learn,
    named,
    pooled,
    specialists,
)
from kemem.continual.domains import REAL, Source
from kemem.continual.end_tasks import EndTask
from kemem.continual.finetuning import FineTuning, How, Score, longest
from kemem.continual.importance import Measuring, domain_importance, general_importance
from kemem.continual.published_tasks import PUBLISHED
from kemem.corpora import Blocks, Corpus, pack
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import Batch, Objective, mix
from kemem.runs import Row
from kemem.studies import checkpoints
from kemem.studies.lab import Lab
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import objective, read
from kemem.training import Domain, Method, Recipe, Rows

STUDY = "courses"
VERSION = 1

Value = int | float | str
GO: dict[str, Any] = {"sequence": learn, "pool": pooled, "one": specialists}


@dataclass(frozen=True)
class Learning:
    """One course over domains; the paper's recipe, scaled.

    method, variant, changes: as in `kemem.continual.named`, or one of OWN. part: of the text by which it is judged;
    with "validation", for choosing settings, no end tasks are put. every: also the loss of each domain after every so
    many steps, with plain training.
    """

    model: Pretraining
    step: int
    """The stage of the model to start from."""
    domains: tuple[str, ...]
    """In the order of learning."""
    method: str = "ncl"
    variant: str = ""
    changes: tuple[tuple[str, Value], ...] = ()
    learning_rate: float = 1e-3
    steps: int = 40
    """On each domain, of rows x length tokens."""
    rows: int = 8
    length: int = 96
    test_tokens: int = 4000
    """Of each domain and of general text, on which the loss is measured."""
    examples: tuple[int, int] = (160, 100)
    """Of an end task at most: to learn from, and to test with."""
    asked_length: int = 48
    """Tokens of an example that are read."""
    part: str = "test"
    every: int = 0
    dtype: str | None = None
    seed: int = 0

    def recipe(self) -> Recipe:
        return Recipe(  # the rate falls to 1 / steps and not to 0, at which the last step would do nothing
            steps=self.steps, batch_size=self.rows, learning_rate=self.learning_rate,
            warmup_steps=round(0.1 * self.steps), final_share=1 / self.steps, schedule="linear", weight_decay=0.0,
            betas=(0.9, 0.999), epsilon=1e-6, clip=0.0, seed=self.seed,
        )  # fmt: skip

    def ends(self, task: EndTask) -> How:
        """How the model is put to an end task."""
        return Probing(length=self.asked_length)

    def products(self, device: torch.device) -> AbstractContextManager[Any]:
        """Around a whole course: the precision in which matrices are multiplied."""
        return nullcontext()


@dataclass(frozen=True)
class OnCard(Learning):
    """A course on an accelerator: weights in float32, products in `precision` in training, measuring and judging.

    accumulation: micro-batches of a step.
    """

    precision: str = "bfloat16"
    accumulation: int = 1

    def recipe(self) -> Recipe:
        return replace(super().recipe(), precision=self.precision, accumulation=self.accumulation)

    def products(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        # without its cache, which would hold 16-bit copies of the weights as they were before a step
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True)
class FineTuned(OnCard):
    """A course whose end tasks are fine-tuned, a copy of the model for each, as in Ke et al. 2023."""

    epochs: int = 5
    """Of an end task that is none of theirs, whose own are in `published_tasks.PUBLISHED`."""

    def ends(self, task: EndTask) -> How:
        epochs = PUBLISHED[task.name].epochs if task.name in PUBLISHED else self.epochs
        return FineTuning(epochs, length=self.asked_length, seed=self.seed)


# ---------------------------------------------------------------------- methods that stand beside the named ones
@dataclass(eq=False)
class Woken(Method):
    """Part 1's resuscitation in a sequence: idle memories are woken before each domain, then training is plain.

    fraction, gain: of `kemem.entropy.multiplier`, by the usage on `texts` rows of the domain to come. fraction = 0 is
    plain training bit for bit.
    """

    fraction: float = 0.5
    gain: float = 1.0
    texts: int = 64

    def before(self, model: nn.Module, domain: Domain) -> None:
        if not self.fraction:
            return
        ids = domain.blocks.batch(torch.arange(min(self.texts, len(domain.blocks))))["input_ids"]
        usage = entropy.measure(model, ids, next_token=False).usage  # type: ignore[arg-type]
        entropy.resuscitate_(model, entropy.multiplier(usage, self.fraction, self.gain))


@dataclass(eq=False)
class Watched(Method):
    """Plain training, watched: the loss of every domain after each `every` steps, the first time before any."""

    held: list[Held]
    every: int
    objective: Objective
    seen: list[dict[str, Any]] = field(default_factory=list)
    _model: nn.Module | None = field(default=None, repr=False)
    _domain: str = ""

    def during(self, model: nn.Module, domain: Domain) -> Any:
        self._model, self._domain = model, domain.name
        return nullcontext()

    def rows(self, step: int, batch: Batch) -> Batch:
        if (step - 1) % self.every == 0:
            assert self._model is not None
            losses = [evaluation.loss(self._model, h.test, objective=self.objective) for h in self.held]
            self.seen.append({"domain": self._domain, "step": step - 1, "loss": losses})
        return batch


@dataclass
class StandIn:
    """An importance for DAS whose first part is measured on other text: that which the model was trained on.

    by: "kl", the divergence of two noisy passes, or "loss". What comes after is measured as DAS measures it.
    """

    by: str
    objective: Objective
    seed: int
    samples: int
    text: Rows = field(repr=False)
    asked: int = field(default=0, repr=False)

    def __call__(self, model: nn.Module, domain: Domain) -> Units:
        how = Measuring(self.samples, seed=mix(self.seed, self.asked))
        self.asked += 1
        if self.asked > 1:
            return domain_importance(model, domain.blocks, self.objective, how)
        if self.by == "kl":
            return general_importance(model, self.text, how=how)
        return domain_importance(model, self.text, self.objective, how)


OWN: dict[str, type[Method]] = {"fisher-mask": FisherMask, "woken": Woken, "das-stand-in": DAS}


def method(s: Learning, given: named.Given, general: Rows | None = None) -> Method:
    """A new method of these settings. general: text like that which the model was trained on, for a stand-in."""
    changes = dict(s.changes)
    if s.method not in OWN:
        return named.method(s.method, given, variant=s.variant, **changes)
    kind: Any = OWN[s.method]
    told: dict[str, Any] = {} if kind is Woken else {"objective": given.objective, "seed": given.seed}
    if kind is DAS:
        assert general is not None
        told["importance"] = StandIn(
            s.variant, given.objective, given.seed, int(changes.get("samples", DAS.samples)), general
        )
    return kind(**told, **changes)


# ---------------------------------------------------------------------- one course
def run(lab: Lab, s: Learning, recorded: bool = False) -> Row:
    """The row of one course."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        return _course(lab, s, provenance)

    return lab.store.row(
        STUDY, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


def _course(lab: Lab, s: Learning, provenance: dict[str, Any]) -> dict[str, Any]:
    model, tok, found = checkpoints.load(lab, s.model, s.step, dtype=s.dtype)
    provenance["checkpoints"] = found.origin
    goal = objective(s.model.setup, tok)
    given = named.Given(s.steps, longest(model, s.length), goal, s.seed, Memories(model).width)
    length = (
        s.length if s.method in OWN else min(s.length, named.available(s.method, given, **dict(s.changes)))
    )
    sources = [source(spec, s.part) for spec in s.domains]
    lists = [rows_of(spec, tok, length, s) for spec in s.domains]
    mixture = read(s.model.setup.corpus)
    provenance["corpus"] = joined([*(each.corpus for each in sources), mixture])
    general = _packed(mixture, s.part, tok, length, s.test_tokens)
    learnt = _packed(mixture, "train", tok, length, s.steps * s.rows * s.length)
    own = [method(s, given, learnt)]

    def another() -> Method:
        own.append(method(s, given, learnt))
        return own[-1]

    schedule = named.LEARNERS[s.method].schedule if s.method in named.LEARNERS else "sequence"
    if s.every and s.method != "ncl":
        raise BadInput(f"expected plain training to be watched, ncl; got {s.method!r}; set every=0.")
    if s.every:
        own = [Watched(lists, s.every, goal)]
    with s.products(models.named_device(lab.device)):
        course: Course = GO[schedule](
            model, lists, another if schedule == "one" else own[0], s.recipe(), objective=goal,
            general=general, ask=_ask(s, sources, tok), batch_size=lab.batch_size or 32, progress=lab.progress,
        )  # fmt: skip
    watched = own[0].seen if isinstance(own[0], Watched) else []
    return {**told(course), "parameters": sum(p.numel() for p in model.parameters()), "watched": watched}


def joined(texts: Sequence[Corpus]) -> dict[str, Any]:
    """Provenance of several texts as that of one."""
    return {
        "spec": " and ".join(text.spec for text in texts),
        "digest": sha256(" ".join(text.digest for text in texts).encode()).hexdigest()[:16],
        "versions": {name: version for text in texts for name, version in text.versions.items()},
    }


@lru_cache(maxsize=16)
def source(spec: str, part: str) -> Source:
    """A domain with an end task; of a package or of reviews its test examples are of both parts, for there are few."""
    if part == "validation":
        return replace(domains.hub(spec) if spec.startswith("hub:") else domains.named(spec), task=None)
    if spec in REAL:
        return domains.real(spec, parts=("validation", "test"))
    scheme, _, name = spec.partition(":")
    if scheme == "hub":
        return domains.hub(spec)
    if scheme == "docstrings" and name.isidentifier():
        return domains.package(name, parts=("validation", "test"))
    return domains.named(spec)


def rows_of(spec: str, tok: Any, length: int, s: Learning) -> Held:
    """A domain as it is learned and judged here, the same for all seeds."""
    domain = source(spec, s.part)
    train = _packed(domain.corpus, "train", tok, length, s.steps * s.rows * s.length)
    return Held(domain.name, train, _packed(domain.corpus, s.part, tok, length, s.test_tokens))


def _packed(text: Corpus, part: str, tok: Any, length: int, limit: int) -> Blocks:
    """The first rows of a part, cut once a process: courses of one table read the same ones."""
    key = (text.digest, part, sha256(tok.backend_tokenizer.to_str().encode()).hexdigest(), length, limit)
    if key not in _ROWS:
        _ROWS[key] = pack(text.part(part), tok, length, limit_tokens=limit)
    return _ROWS[key]


_ROWS: dict[tuple[Any, ...], Blocks] = {}


def _ask(s: Learning, sources: list[Source], tok: Any) -> Any:
    tasks = {each.name: each.task.limited(*s.examples) for each in sources if each.task is not None}

    def how(
        model: nn.Module, tok: Any, task: EndTask, method: Method | None = None, domain: Domain | None = None
    ) -> Score:
        return s.ends(task)(model, tok, task, method, domain)

    return asked(tasks, how, tok) if tasks else None


def told(course: Course) -> dict[str, Any]:
    """A course as a row has it."""
    names = ("names", "before", "loss", "general", "task_before", "task", "added", "own")
    return {name: getattr(course, name) for name in names} | {
        "seconds": [round(x, 3) for x in course.seconds]
    }


def course(row: Row) -> Course:
    """The course of a row, with its averages."""
    names = ("names", "before", "loss", "general", "task_before", "task", "added", "own", "seconds")
    return Course(**{name: row.values[name] for name in names})
