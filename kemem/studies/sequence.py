"""Chapter 14, edits one after another: what is left of the first ones, and of the model, after many of them.

A batch is written into the model as the batches before have left it, and nothing is put back. Targets, keys and
outputs are those of the edited model; the moments stay those of the unedited one, as in the released code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kemem import editing, evaluation, models
from kemem.editing import Judge, Request
from kemem.editing.scores import SUCCESS
from kemem.errors import BadInput
from kemem.runs import Row, Store
from kemem.studies import factual, field, grids, methods
from kemem.studies.association import told
from kemem.studies.field import Field, Setting, Settings
from kemem.studies.lab import Lab, Result
from kemem.studies.many import Benches, Many
from kemem.studies.methods import METHODS
from kemem.studies.setup import blocks

STUDY, VERSION = "sequence", 1
CHAPTER = "14_field"
ROWS = {STUDY: VERSION}
NAMES = ("MEMIT", "AlphaEdit", "EMMET", "ROME", "r-ROME", "FT-W")
KINDS = ("all", "first", "latest")
SHOWN = ("S", *SUCCESS, "EM", "NM", "rewrite_acc")


@dataclass(frozen=True)
class Sequential:
    """Edits of one method, batch after batch; those that take one fact at a time go fact after fact."""

    facts: Many
    """The row of no editor that has all these facts in one block."""
    method: str
    setting: Setting
    batch: int
    marks: tuple[int, ...]
    """Numbers of edits after which the model is looked at, each some batches."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS or METHODS[self.method].make is None:
            raise BadInput(f"expected one of {', '.join(NAMES)}; got {self.method!r}; choose one.")
        if not self.marks or any(mark % self.batch for mark in self.marks):
            raise BadInput(
                f"expected marks that are whole batches of {self.batch}; got {list(self.marks)}; round them."
            )
        if max(self.marks) != self.facts.count:
            raise BadInput(
                f"expected the last mark to be all {self.facts.count} facts; got {max(self.marks)}; end there."
            )


SIZES: dict[str, dict[str, Any]] = {
    "laptop": {"batch": 24, "marks": (24, 72, 144, 312), "names": NAMES},
    "smoke": {"batch": 2, "marks": (2, 4), "names": ("MEMIT", "ROME")},
    "gpu": {"batch": 128, "marks": (128, 256, 512, 1024), "names": NAMES},
    "paper": {"batch": 100, "marks": (100, 200, 500, 1000), "names": NAMES},
}


def settings(scale: str, made: Settings, name: str, *, seed: int = 0, of: Field | None = None) -> Sequential:
    """made: as chosen for many edits at once; nothing is chosen for edits in sequence.

    of: the sizes of the comparison, the scale's own unless given.
    """
    own = SIZES[scale]
    facts = field.facts(of or field.sizes(scale), own["marks"][-1], seed=seed)
    return Sequential(facts, name, made[name], own["batch"], own["marks"], seed)


def grid(scale: str, made: Settings, of: Field | None = None) -> dict[tuple[str, int], Sequential]:
    """By method and seed."""
    z = of or field.sizes(scale)
    return {
        (name, seed): settings(scale, made, name, seed=seed, of=z)
        for name in SIZES[scale]["names"]
        if name in made
        for seed in z.seeds
    }


def at_once(scale: str, made: Settings, of: Field | None = None) -> dict[tuple[str, int], Many]:
    """The same facts written all at once by the methods that can, by method and seed: rows of `many`."""
    z = of or field.sizes(scale)
    return {
        (name, seed): field.one(
            z, name, s.setting, s.facts.count, seed=seed, blocks=1, written=z.texts_at(s.facts.count)
        )
        for (name, seed), s in grid(scale, made, z).items()
        if not METHODS[name].one_by_one
    }


def run(benches: Benches, s: Sequential) -> Row:
    """The row: after each mark scores of all facts so far, of the first batch and of the latest; text, and weights."""
    lab = benches.lab

    def compute(_: dict[str, Any]) -> dict[str, Any]:
        at, requests = benches.at(s.facts), benches.requests(s.facts)
        editor = methods.made(lab, at, s.method, s.setting.value, s.facts.layers, clamp=s.setting.clamp)
        ordinary = blocks(
            lab, s.facts.model.setup, s.facts.model.setup.corpus, "test", limit=s.facts.model.held_out
        )
        size = 1 if METHODS[s.method].one_by_one else s.batch
        weights = {name: p.detach().double().clone() for name, p in at.model.named_parameters()}
        points: list[dict[str, Any]] = []

        def look(number: int, model: nn.Module) -> None:
            if (done := number * size) in s.marks:
                points.append(
                    {"edits": done, **scored(at.tok, model, requests[:done], s.batch, at.read), **grown(model, weights),
                     "nats": evaluation.loss(model, ordinary)}
                )  # fmt: skip
                if lab.progress is not None:
                    lab.progress(done, s.marks[-1], f"{s.method}, edits in sequence")

        before = {
            **scored(at.tok, at.model, requests, s.batch, at.read),
            "nats": evaluation.loss(at.model, ordinary),
        }
        edit = editing.in_batches(
            editor, at.model, at.tok, requests, at.moments, size, templates=at.templates, after=look
        )
        return {"before": before, "points": points, "seconds": dict(edit.seconds)}

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def scored(
    tok: Any, model: nn.Module, requests: Sequence[Request], batch: int, read: int = 64
) -> dict[str, dict[str, Any]]:
    """Scores of all these facts, of the first batch and of the latest. read: texts at a time."""
    parts = {"all": requests, "first": requests[:batch], "latest": requests[-batch:]}
    found = {}
    for name, part in parts.items():
        own = Judge(tok, part, batch_size=read)(model).summary()
        found[name] = {score: own[score] for score in SHOWN}
    return found


def grown(model: nn.Module, before: Mapping[str, Tensor]) -> dict[str, float]:
    """Of the weights that have changed: |W| / |W0|, and |W - W0| / |W0|."""
    own = {name: p.detach().double() for name, p in model.named_parameters()}
    changed = [name for name, w in own.items() if not w.equal(before[name])]

    def size(of: Sequence[Tensor]) -> float:
        return math.hypot(*(w.norm().item() for w in of), 0.0)

    first = size([before[name] for name in changed])
    if not first:
        return {"norm": 1.0, "moved": 0.0}
    return {
        "norm": size([own[name] for name in changed]) / first,
        "moved": size([own[name] - before[name] for name in changed]) / first,
    }


# ---------------------------------------------------------------------- rows and numbers
def table(
    lab: Lab, found: Mapping[tuple[str, int], Sequential], benches: Benches
) -> dict[tuple[str, int], Row]:
    """The rows of a grid, recorded; computed where this scale has no records, or where records are made."""
    at = grids.reading(lab, benches)
    return {key: lab.store.find(STUDY, VERSION, s, recorded=True) or run(at, s) for key, s in found.items()}


def finished(store: Store, scale: str) -> dict[tuple[str, int], Row]:
    """The rows of a scale if all are there; nothing is computed."""
    made = field.settings(store, scale)
    rows = (
        {k: store.find(STUDY, VERSION, s, recorded=True) for k, s in grid(scale, made).items()}
        if made
        else {}
    )
    return {} if None in rows.values() else {key: row for key, row in rows.items() if row is not None}


def path(rows: Mapping[tuple[str, int], Row], name: str, of: str, score: str = "") -> list[list[float]]:
    """A method's course over its marks, a list a seed: a score of one of KINDS, or nats, norm, moved."""
    found = []
    for (method, _), row in rows.items():
        if method == name:
            points = row.values["points"]
            found.append([p[of][score] if score else p[of] for p in points])
    return found


def results(store: Store, scale: str) -> dict[str, Result]:
    """Means over seeds at the end: `sequence.MEMIT.first.ES`, `sequence.MEMIT.nats`; and those of all facts at once."""
    rows = finished(store, scale)
    found: dict[str, tuple[float | int, str, Row]] = {}
    for name in dict.fromkeys(method for method, _ in rows):
        row = next(row for (method, _), row in rows.items() if method == name)
        for of in KINDS:
            for score in SHOWN:
                ends = [each[-1] for each in path(rows, name, of, score) if each[-1] is not None]
                if ends:
                    found[f"sequence.{name}.{of}.{score}"] = (math.fsum(ends) / len(ends), "%", row)
        for of, unit in (("nats", "nats"), ("norm", "times"), ("moved", "times")):
            ends = [each[-1] for each in path(rows, name, of)]
            found[f"sequence.{name}.{of}"] = (math.fsum(ends) / len(ends), unit, row)
        found["sequence.edits"] = (row.settings["marks"][-1], "edits", row)
        found["sequence.batch"] = (row.settings["batch"], "edits", row)
        found["sequence.unedited.nats"] = (row.values["before"]["nats"], "nats", row)
    if scale in factual.SCALES and rows:
        once = grids.finished(store, at_once(scale, field.settings(store, scale)))
        for name in dict.fromkeys(method for method, _ in once):
            own = [row for (method, _), row in once.items() if method == name]
            for score in ("S", *SUCCESS, "nats"):
                each = [row.values["after"][score] for row in own]
                found[f"sequence.at once.{name}.{score}"] = (math.fsum(each) / len(each), "%", own[0])
    return told(found)
