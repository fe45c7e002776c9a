"""Chapter 09: variants of DAS beside plain DAS, seed by seed: with released defects, without parts, other importances.

No rows of its own: those of `budget` stand beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kemem.continual import Course
from kemem.runs import Row, Store
from kemem.studies import budget, courses, looking
from kemem.studies.budget import Budget, Place
from kemem.studies.courses import Learning
from kemem.studies.findings import change
from kemem.studies.lab import Lab, Result
from kemem.studies.looking import MODELS, mean

CHAPTER = "09_das"
ROWS: dict[str, int] = {}

GRIDS = {"defect": budget.defects, "part": budget.parts, "importance": budget.importances}
QUANTITIES: dict[str, Callable[[Course], float]] = {
    "average": lambda course: course.average,
    "forgetting": lambda course: course.forgetting,
    "learned": lambda course: course.learned,
}
"""In nats a token; average and forgetting are better when lower, what is learned when higher."""


def alone(z: Budget) -> Budget:
    """The comparison with DAS for its only method, and so with its trials alone."""
    return replace(z, names=("das",), square=())


def plain_das(z: Budget, made: Mapping[str, budget.Setting]) -> dict[Place, Learning]:
    """DAS as it was chosen, in the first order, with which its variants are compared."""
    whole = budget.one(z, "das", made["das"])
    return {("das", 0, seed): replace(whole, seed=seed) for seed in z.seeds}


Compared = dict[str, dict[str, list[float]]]
"""Variant -> quantity -> the variant less plain DAS, one number a seed."""


def beside(lab: Lab, z: Budget, grid: str) -> tuple[Compared, dict[str, list[float]]]:
    """Variants of DAS less plain DAS with the same seed, and what plain DAS itself comes to."""
    made = budget.chosen(budget.tried(lab, alone(z)))
    return less(budget.table(lab, GRIDS[grid](z, made)), budget.table(lab, plain_das(z, made)))


def less(rows: Mapping[Place, Row], plain: Mapping[Place, Row]) -> tuple[Compared, dict[str, list[float]]]:
    whole = {
        name: {seed: of(courses.course(row)) for (_, _, seed), row in plain.items()}
        for name, of in QUANTITIES.items()
    }
    found: Compared = {}
    for (variant, _, seed), row in rows.items():
        course = courses.course(row)
        for name, of in QUANTITIES.items():
            found.setdefault(variant, {}).setdefault(name, []).append(of(course) - whole[name][seed])
    return found, {name: list(by_seed.values()) for name, by_seed in whole.items()}


def said(values: Sequence[float], digits: int = 3) -> str:
    """Mean and interval for a cell."""
    return change(values).short(digits)


def finished(store: Store, scale: str, *, masked: bool, grid: str) -> tuple[Compared, dict[str, list[float]]]:
    """As `beside`, from rows that are there; empty where one is missing."""
    z = budget.sizes(scale, masked=masked)
    made = budget.settings(store, scale, masked=masked)
    if not made:
        return {}, {}
    rows, plain = (budget.finished(store, g) for g in (GRIDS[grid](z, made), plain_das(z, made)))
    return less(rows, plain) if rows and plain else ({}, {})


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Less plain DAS: `units.masked.defect.gradient.average`, `units.causal.part.random.learned`, and so on."""
    if scale not in looking.SCALES:
        return {}
    found: dict[str, Result] = {}
    for name, masked in MODELS.items():
        made = budget.settings(store, scale, masked=masked)
        whole = budget.finished(store, plain_das(budget.sizes(scale, masked=masked), made)) if made else {}
        if not whole:
            continue
        origin = looking.origin(next(iter(whole.values())))
        for grid in GRIDS:
            differences, _ = finished(store, scale, masked=masked, grid=grid)
            for variant, quantities in differences.items():
                for quantity, values in quantities.items():
                    key = f"units.{name}.{grid}.{variant}.{quantity}"
                    found[key] = Result(mean(values), "nats", origin)
    return found
