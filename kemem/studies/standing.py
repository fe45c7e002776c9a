"""Chapters 08 to 10, numbers for prose: what every method came to on one budget, as means over orders and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from kemem.continual import Course
from kemem.runs import Row, Store
from kemem.studies import budget, courses
from kemem.studies.budget import Place
from kemem.studies.lab import Result

CHAPTER = "10_methods"
ROWS = {courses.STUDY: courses.VERSION}

QUANTITIES: dict[str, tuple[Callable[[Course], float | None], str]] = {
    "average": (lambda course: course.average, "nats a token"),
    "forgetting": (lambda course: course.forgetting, "nats a token"),
    "learned": (lambda course: course.learned, "nats a token"),
    "forward": (lambda course: course.forward_transfer, "nats a token"),
    "general": (lambda course: _late(course), "nats a token"),
    "task": (lambda course: course.task_average, "%"),
    "task.forgetting": (lambda course: course.task_forgetting, "points"),
}
"""What is said of a course, and its unit."""
BEFORE: dict[str, tuple[Callable[[Course], float | None], str]] = {
    "average": (lambda course: _mean(course.before), "nats a token"),
    "general": (lambda course: course.general[0], "nats a token"),
    "task": (lambda course: _mean([score for score in course.task_before if score is not None]), "%"),
}
"""The same of the model before any training."""


def _late(course: Course) -> float | None:
    """General text at the end; of specialists the mean over them."""
    return _mean(course.general[1:]) if course.own else course.general[-1]


def _mean(found: list[float]) -> float | None:
    return math.fsum(found) / len(found) if found else None


def means(
    rows: Mapping[Place, Row], asked: Mapping[str, tuple[Callable[[Course], float | None], str]]
) -> dict[str, tuple[float, str, Row]]:
    """`<arm>.<quantity>`: its mean over orders and seeds, unit and first row; what a course lacks is left out."""
    arms: dict[str, list[Row]] = {}
    for (name, _, _), row in rows.items():
        arms.setdefault(name, []).append(row)
    found = {}
    for name, own in arms.items():
        for quantity, (of, unit) in asked.items():
            known = [x for x in (of(courses.course(row)) for row in own) if x is not None]
            if len(known) == len(own):
                found[f"{name}.{quantity}"] = (math.fsum(known) / len(known), unit, own[0])
    return found


GRIDS = {
    "": budget.contest, "part.": budget.parts, "defect.": budget.defects, "importance.": budget.importances,
    "square.": budget.square, "plugin.": budget.plugins, "start.": budget.starts,
}  # fmt: skip


def results(store: Store, scale: str) -> dict[str, Result]:
    """`budget.das.average`, `budget.part.random.forgetting`, `budget.masked.das.task`, `budget.das.rate`, ..."""
    found: dict[str, tuple[float, str, Row]] = {}
    for prefix, masked in (("budget.", False), ("budget.masked.", True)):
        trials = budget.trials(store, scale, masked=masked)
        if not trials:
            continue
        made, z = budget.chosen(trials), budget.sizes(scale, masked=masked)
        for (name, of), row in trials.items():
            if of == made[name]:
                found[f"{prefix}{name}.rate"] = (of.rate, "", row)
        for kind, grid in GRIDS.items():
            rows = budget.finished(store, grid(z, made))
            found |= {prefix + kind + name: value for name, value in means(rows, QUANTITIES).items()}
            if not kind and rows:
                plain = {
                    ("untouched", order, seed): row
                    for (name, order, seed), row in rows.items()
                    if name == "ncl"
                }
                found |= {prefix + name: value for name, value in means(plain, BEFORE).items()}
    masked = budget.settings(store, scale, masked=True)
    rows = budget.finished(store, budget.published(scale, masked))
    found |= {f"budget.real.{name}": value for name, value in means(rows, QUANTITIES).items()}
    before = {key: row for key, row in rows.items() if key[0] == "ncl"}
    found |= {
        name.replace("ncl", "budget.real.untouched"): value for name, value in means(before, BEFORE).items()
    }
    return {
        name: Result(
            value,
            unit,
            {"study": courses.STUDY, "digest": row.digest, "origin": row.origin, **row.provenance},
        )
        for name, (value, unit, row) in found.items()
    }
