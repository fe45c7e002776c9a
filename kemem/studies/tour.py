"""Chapter 00, the tour: five ideas on one small model, each a short run of what a later chapter does at length.

Nothing is repeated over seeds: a tour shows what is measured, and proves nothing. Layers, weight and clamp of the edit
are the best of eighteen trials on tuning facts; all else is as other chapters have it, only shorter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from kemem.editing.effects import KINDS
from kemem.runs import Row, Store
from kemem.studies import arms, budget, courses, factual, many, pretraining, tracing
from kemem.studies.arms import Arm
from kemem.studies.courses import Learning
from kemem.studies.lab import Lab, Result
from kemem.studies.many import Many
from kemem.studies.outcomes import knowledge, performance
from kemem.studies.tracing import Tracing

CHAPTER = "00_how_to_read"
ROWS: dict[str, int] = {}  # its rows are those of the chapters that it leads to
KNOWING = {"smoke": factual.settings, "laptop": pretraining.settings}
"""Whose facts are traced and rewritten: at smoke scale chapter 02's model knows none, so that of part 3 stands in."""


ROLES = {
    "first_subject": "subject, first", "middle_subject": "subject, middle", "last_subject": "subject, last",
    "first_subsequent": "first after it", "further": "further tokens", "last": "question, last",
}  # fmt: skip
"""Tokens of a question, in their order, and how a figure names them."""


@dataclass(frozen=True)
class Tour:
    """What is run, all of it on chapter 02's model as it is at the end of its training."""

    plain: Arm
    """Reads text of another world with passages in it; looked at before, as it is, and after."""
    woken: Arm
    """The same with idle memories woken first."""
    domains: dict[str, Learning]
    """Two domains in a row, by plain training and by DAS."""
    traced: Tracing
    edited: Many


SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        "arm": {"texts": 16}, "course": {"steps": 3, "changes": (("samples", 8),)},
        "trace": {"facts": 3, "samples": 2, "paired": 1, "noises": 4}, "edit": {"count": 2, "texts": 60},
    },
    "laptop": {
        "arm": {"paraphrased": 10, "once": 0, "slots": 5, "interval": 6, "tasks": 120, "held_out": 4000},
        "course": {"steps": 15, "changes": (("samples", 64),), "test_tokens": 2000, "examples": (60, 40)},
        "trace": {"facts": 9, "samples": 4, "paired": 2, "noises": 8}, "edit": {"count": 8, "texts": 600},
    },
}  # fmt: skip


def settings(scale: str, *, seed: int = 0, dtype: str | None = None) -> Tour:
    """The larger scales have the laptop's. seed: of the order of data, of draws and of noise; the model is one."""
    small = scale if scale in SIZES else "laptop"
    own, knowing = SIZES[small], KNOWING[small](small)
    plain = arms.settings(small, seed=seed, model=pretraining.settings(small), **own["arm"])
    course = replace(budget.sizes(small).base, seed=seed, **own["course"])
    course = replace(course, domains=course.domains[:2], dtype=dtype or course.dtype)
    return Tour(
        plain,
        replace(plain, edit="lift", fraction=0.5, gain=1.0),
        {"plain": replace(course, changes=()), "DAS": replace(course, method="das")},
        Tracing(knowing, seed=seed, **own["trace"]),
        Many(knowing, "MEMIT", 10.0, layers=(0,), dtype=dtype, seed=seed, **own["edit"]),
    )


def learning(lab: Lab, s: Tour) -> dict[str, Row]:
    """Acquisition, without and with waking."""
    return {name: arms.run(lab, arm) for name, arm in (("as it is", s.plain), ("woken", s.woken))}


def domains(lab: Lab, s: Tour) -> dict[str, Row]:
    """Two domains, by either method."""
    return {name: courses.run(lab, course) for name, course in s.domains.items()}


def sites(row: Row) -> dict[str, tuple[str, int, float]]:
    """Of states, feed-forward layers and attention: where a trace has its largest effect before the last token.

    (token, layer, points of probability). At the last token the answer itself is restored.
    """
    effects = row.values["whole"]["effects"]
    found = {}
    for kind in KINDS:
        value, token, layer = max(
            (value, token, layer)
            for token, own in effects[kind].items()
            if token != "last"
            for layer, value in enumerate(own["value"])
        )
        found[kind] = (token, layer, 100 * value)
    return found


def results(store: Store, scale: str) -> dict[str, Result]:
    """`tour.*`: what each stop came to; none where it was not run."""
    s = settings(scale)
    found: dict[str, tuple[float, str, Row]] = {}
    for name, arm in (("plain", s.plain), ("woken", s.woken)):
        if row := store.find(arms.STUDY, arms.VERSION, arm):
            found[f"{name}.entropy"] = (row.values["before"]["entropy"], "nats", row)
            if name == "plain":
                used = [math.exp(nats) for nats in row.values["before"]["layers"]]
                found["memories"] = (arm.learning.model.setup.memories, "", row)
                found["used.least"], found["used.most"] = (min(used), "", row), (max(used), "", row)
            for when in ("before", "after"):
                found[f"{name}.K.{when}"] = (knowledge(row, when), "nats a token", row)
                found[f"{name}.P.{when}"] = (100 * performance(row, when), "%", row)
    for name, course in s.domains.items():
        if row := store.find(courses.STUDY, courses.VERSION, course):
            found[f"{name}.forgetting"] = (courses.course(row).forgetting, "nats a token", row)
            found[f"{name}.learned"] = (courses.course(row).learned, "nats a token", row)
    if row := store.find(many.STUDY, many.VERSION, s.edited):
        found["edit.facts"] = (row.values["facts"], "", row)
        for when in ("before", "after"):
            for score in ("ES", "PS", "NS"):
                found[f"edit.{score}.{when}"] = (row.values[when][score], "%", row)
    if row := store.find(tracing.STUDY, tracing.VERSION, s.traced):
        whole = row.values["whole"]
        found["trace.total"] = (100 * (whole["clean"] - whole["corrupted"]), "points", row)
        found["trace.facts"] = (whole["facts"], "", row)
        for kind, (_, layer, value) in sites(row).items():
            found[f"trace.{kind}.layer"] = (layer, "", row)
            found[f"trace.{kind}"] = (value, "points", row)
    return {
        f"tour.{name}": Result(
            value, unit, {"study": row.study, "digest": row.digest, "origin": row.origin, **row.provenance}
        )
        for name, (value, unit, row) in found.items()
    }
