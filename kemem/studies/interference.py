"""Chapter 08, why plain training forgets: what learning a second domain does to the weights that the first one left.

A model learns a domain and then, each time from there, one of two others. Looked at are the gradients of the domains
at the same weights, the rise of the first domain's loss beside its forecast by a Taylor series, the groups of
parameters that have to be put back to undo it, and the straight line between the weights before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from kemem import evaluation, models
from kemem.continual import Held
from kemem.continual.end_tasks import EndTask
from kemem.corpora import pack
from kemem.objective import Objective
from kemem.runs import Row, Store
from kemem.studies import budget, checkpoints, courses
from kemem.studies.association import told
from kemem.studies.budget import Budget, Setting
from kemem.studies.courses import Learning
from kemem.studies.lab import Lab, Result
from kemem.studies.landscape import (
    Forecast,
    Weights,
    between,
    cosines,
    halves,
    holding,
    kinds,
    layers,
    put,
    weights_of,
)
from kemem.studies.setup import in_pieces, objective, read
from kemem.training import Rows, train

STUDY, VERSION = "interference", 1
CHAPTER = "08_forgetting"
ROWS = {STUDY: VERSION}
GENERAL = "general text"
BOUNDS = ("ncl", "one", "pool")
SAMPLE = 240  # characters of a text that are shown


@dataclass(frozen=True)
class Interference:
    """Two domains in turn, and what is looked at on the way."""

    course: Learning
    """Plain training; its first domain comes first here."""
    seconds: tuple[int, ...] = (1, 2)
    """Places in the course of the domains that are learned second, each from the same weights."""
    at: tuple[int, ...] = (2, 5, 10, 20, 40)
    """Steps on the second domain after which the forecast is made."""
    shares: tuple[float, ...] = tuple(i / 10 for i in range(13))
    """Of the way from the weights before the second domain to those after it."""
    samples: int = 100
    """Training texts of the first domain for the Fisher as EWC has it."""
    seed: int = 0


SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"seconds": (1,), "at": (1, 3), "shares": (0.0, 0.5, 1.0), "samples": 6},
    "laptop": {},
    "gpu": {"samples": 400},
    "paper": {"at": (26, 129, 516, 1290, 2580), "samples": 1000},
}
FILLING = ("paper",)
"""Scales at which it is the model that fills in masked tokens: many copies of a larger one's weights do not fit."""


def bounds(scale: str, *, device: str | None = None) -> Budget:
    """Of the comparison on one budget what this chapter shows: plain training, specialists, all at once."""
    return replace(budget.sizes(scale, masked=scale in FILLING, device=device), names=BOUNDS, square=())


def staged(scale: str, *, device: str | None = None) -> Budget:
    """The comparison from earlier stages: of this chapter's model, or of the causal one where this was kept at none."""
    z = bounds(scale, device=device)
    return z if z.stages else replace(budget.sizes(scale, device=device), names=BOUNDS[:1], square=())


def settings(
    scale: str,
    *,
    rate: float | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
) -> Interference:
    """rate: of learning; None is the first that is tried. dtype: None is the scale's own. device: of `budget.sizes`."""
    z = bounds(scale, device=device)
    course = budget.one(z, "ncl", Setting(rate or z.trials["ncl"].rates[0]), seed=seed)
    return Interference(replace(course, dtype=dtype or course.dtype), seed=seed, **SIZES[scale])


def run(lab: Lab, s: Interference) -> Row:
    """The row: losses, cosines of gradients, and for each second domain path, forecasts, groups and line."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        of = s.course
        model, tok, found = checkpoints.load(lab, of.model, of.step, dtype=of.dtype)
        provenance["checkpoints"] = found.origin
        sources = [courses.source(spec, of.part) for spec in of.domains]
        provenance["corpus"] = {
            x.spec: {"digest": x.corpus.digest, "versions": x.corpus.versions} for x in sources
        }
        held = [courses.rows_of(spec, tok, of.length, of) for spec in of.domains]
        text = read(of.model.setup.corpus).part(of.part)
        general = pack(text, tok, of.length, limit_tokens=of.test_tokens)
        goal = objective(of.model.setup, tok)
        return {
            "samples": {each.name: each.corpus.part(of.part)[0][:SAMPLE] for each in sources}
            | {GENERAL: text[0][:SAMPLE]},
            "tasks": {each.name: _task(each.task, of) for each in sources if each.task is not None},
            **_Looking(lab, s, model, goal, held, general).values(),
        }

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def _task(task: EndTask, of: Learning) -> dict[str, Any]:
    """An end task as the course puts it; always: the score of the answer that is most often right."""
    task = task.limited(*of.examples)
    often = max(task.classes, key=task.labels.count)
    return {
        "name": task.name, "classes": len(task.classes), "train": len(task.train), "test": len(task.test),
        "text": task.test[0].text[:SAMPLE], "label": task.test[0].label,
        "always": task.score([often] * len(task.test)),
    }  # fmt: skip


@dataclass
class _Looking:
    """One run of the study; the model is at the weights that were reached last."""

    lab: Lab
    s: Interference
    model: nn.Module
    goal: Objective
    held: list[Held]
    general: Rows
    groups: dict[str, dict[str, list[str]]] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = {"kinds": kinds(self.model), "layers": layers(self.model)}
        self.texts = [*(each.test for each in self.held), self.general]

    def values(self) -> dict[str, Any]:
        before = [self.loss(text) for text in self.texts]
        alike = {"start": self.cosines()}
        self.learn(0, 0)
        after = [self.loss(text) for text in self.texts]
        alike["first"] = self.cosines()
        first = weights_of(self.model)
        forecast = Forecast.at(self.model, self.held[0], self.goal, self.s.samples)
        pairs = []
        for number, place in enumerate(self.s.seconds, 1):
            put(self.model, first)
            pairs.append(self.pair(place, first, forecast))
            alike[self.held[place].name] = self.cosines()
            if self.lab.progress is not None:
                self.lab.progress(number, len(self.s.seconds), f"{self.held[place].name} after the first")
        return {
            "names": [*(each.name for each in self.held), GENERAL], "tokens": forecast.tokens,
            "parameters": {
                by: {group: sum(first[name].numel() for name in names) for group, names in own.items()}
                for by, own in self.groups.items()
            },
            "before": before, "after": after, "cosines": alike, "pairs": pairs,
        }  # fmt: skip

    def loss(self, text: Rows) -> float:
        size = self.lab.batch_size or 32
        return evaluation.loss(self.model, text, batch_size=size, objective=self.goal)

    def learn(self, place: int, turn: int, look: Any = None) -> list[dict[str, Any]]:
        """Trains on a domain as the course does when its turn comes; what `look` says on the way."""
        recipe = in_pieces(self.lab, self.s.course.recipe())
        at = self.s.at if look else ()
        recipe = replace(recipe, seed=recipe.seed + 1000 * turn, checkpoints=at)
        return train(
            self.model, self.held[place].domain, recipe, objective=self.goal, at_checkpoint=look
        ).checkpoints

    def cosines(self) -> dict[str, list[list[float]]]:
        """Of all texts at the model's weights: over all parameters, and by kind."""
        found = [halves(self.model, text, self.goal) for text in self.texts]
        every = {"all": [name for own in self.groups["kinds"].values() for name in own]}
        return {group: cosines(found, names) for group, names in (every | self.groups["kinds"]).items()}

    def pair(self, place: int, first: Weights, forecast: Forecast) -> dict[str, Any]:
        one, two = self.held[0].test, self.held[place].test

        def both() -> list[float]:
            return [self.loss(one), self.loss(two)]

        def look(model: nn.Module, _: int) -> dict[str, Any]:
            return {"loss": both(), **forecast(model, first, self.groups["kinds"])}

        ends = [both()]
        path = self.learn(place, 1, look)
        last = weights_of(self.model)
        ends.append(both())
        every = {group: names for own in self.groups.values() for group, names in own.items()}
        back, alone, line = {}, {}, []
        for group, names in every.items():
            with holding(self.model, {name: first[name] for name in names}):
                back[group] = both()
            with holding(self.model, first | {name: last[name] for name in names}):
                alone[group] = both()
        for share in self.s.shares:
            with holding(self.model, between(first, last, share)):
                line.append([share, *both()])
        elsewhere = [self.loss(text) for text in self.texts]
        return {
            "second": self.held[place].name, "path": path, "ends": ends, "losses": elsewhere, "put back": back,
            "alone": alone, "line": line,
        }  # fmt: skip


# ---------------------------------------------------------------------- numbers
def forecasts(step: dict[str, Any]) -> dict[str, float]:
    """Of a step of a path, what each of the four forecasts of the rise says, and EWC's own, without the slope."""
    slope = sum(step["slope"].values())
    return {
        "slope": slope, "diagonal": slope + sum(step["diagonal"].values()), "fisher": slope + step["fisher"],
        "curvature": slope + step["curvature"], "ewc": sum(step["ewc"].values()),
    }  # fmt: skip


def best(pair: dict[str, Any]) -> tuple[float, float, float]:
    """Where on the line between both weights the mean of both losses is lowest: share of the way, and the losses."""
    return tuple(min(pair["line"], key=lambda point: point[1] + point[2]))


def results(store: Store, scale: str) -> dict[str, Result]:
    """Of each second domain: `interference.Sumstan.rise`, ...; the row is that of the rate that trials chose."""
    if scale not in SIZES:
        return {}
    tried = budget.finished(store, budget.tuning(bounds(scale)))
    rate = budget.chosen(tried)["ncl"].rate if tried else None
    row = store.find(STUDY, VERSION, settings(scale, rate=rate))
    if row is None:
        return {}
    v, nats = row.values, "nats"
    found: dict[str, tuple[float, str]] = {"tokens": (v["tokens"], "")}
    names = v["names"]
    for when, tables in v["cosines"].items():
        for i, name in enumerate(names):
            found[f"{when}.cosine.{name}"] = (tables["all"][0][i], "")
    for pair in v["pairs"]:
        own, (start, end) = pair["second"], pair["ends"]
        found[f"{own}.rise"] = (end[0] - start[0], nats)
        found[f"{own}.learned"] = (start[1] - end[1], nats)
        for name, before, after in zip(names, v["after"], pair["losses"], strict=True):
            found[f"{own}.rise.{name}"] = (after - before, nats)
        step = pair["path"][-1]
        for name, x in forecasts(step).items():
            found[f"{own}.{name}"] = (x, nats)
        found[f"{own}.ratio"] = (step["curvature"] / sum(step["diagonal"].values()), "")
        for group, (one, two) in pair["put back"].items():
            found[f"{own}.back.{group}"] = (100 * (end[0] - one) / (end[0] - start[0]), "%")
            found[f"{own}.given.{group}"] = (100 * (two - end[1]) / (start[1] - end[1]), "%")
        for group, (one, two) in pair["alone"].items():
            found[f"{own}.alone.rise.{group}"] = (100 * (one - start[0]) / (end[0] - start[0]), "%")
            found[f"{own}.alone.learned.{group}"] = (100 * (start[1] - two) / (start[1] - end[1]), "%")
        for name in ("rise", "learned"):
            parts = [found[f"{own}.alone.{name}.{kind}"][0] for kind in v["parameters"]["kinds"]]
            found[f"{own}.alone.{name}"] = (sum(parts), "%")
        _, one, two = next(point for point in pair["line"] if point[0] == 0.5)
        found[f"{own}.half.rise"] = (100 * (one - start[0]) / (end[0] - start[0]), "%")
        found[f"{own}.half.learned"] = (100 * (start[1] - two) / (start[1] - end[1]), "%")
        share, one, two = best(pair)
        found[f"{own}.line.share"] = (100 * share, "%")
        found[f"{own}.line.first"], found[f"{own}.line.second"] = (one, nats), (two, nats)
        found[f"{own}.line.gain"] = (min(sum(start), sum(end)) / 2 - (one + two) / 2, nats)
    return told({f"interference.{name}": (x, unit, row) for name, (x, unit) in found.items()})
