"""What the chapters of part 2 ask for. Courses hang on trials, so most steps choose settings first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kemem.studies import (
    budget,
    courses,
    footprint,
    growing,
    interference,
    looking,
    masking,
    moving,
    pairing,
    units,
    variants,
)
from kemem.studies.budget import Budget, Setting
from kemem.studies.contents.step import Step, step
from kemem.studies.lab import Lab

Parameters = dict[str, Any]
COMPARED = ("ncl", "replay", "das")
"""Methods that chapter 10 runs live."""


def chosen(lab: Lab, z: Budget) -> dict[str, Setting]:
    return budget.chosen(budget.tried(lab, z))


def forgetting(lab: Lab, p: Parameters) -> list[Step]:
    z, dtype = interference.bounds(lab.scale, device=lab.card), p["dtype"]

    def live() -> None:
        rate = p["learning_rate"] or chosen(lab, z)["ncl"].rate
        asked = {"rate": rate, "seed": p["seed"], "dtype": dtype, "device": lab.card}
        interference.run(lab, interference.settings(lab.scale, **asked))
        every = max(1, z.base.steps // 8)
        course = budget.one(z, "ncl", Setting(rate), seed=p["seed"], every=every)
        courses.run(lab, replace(course, dtype=dtype or course.dtype))

    return [
        live,
        lambda: budget.table(lab, budget.contest(z, chosen(lab, z))),
        step(_grid, lab, interference.staged(lab.scale, device=lab.card), budget.starts),
    ]


def das(lab: Lab, p: Parameters) -> list[Step]:
    steps: list[Step] = []
    for masked in looking.MODELS.values():
        common = {"masked": masked, "seed": p["seed"], "dtype": p["dtype"], "device": lab.card}
        samples = {"samples": p["samples"]}

        def of(kind: type[looking.Looking], common: Any = common, **more: Any) -> Any:
            return looking.settings(kind, lab.scale, **common, **more)

        steps += [
            step(masking.run, lab, of(masking.Coursed, **samples, steps=p["steps"])),
            step(units.importance, lab, of(units.Measured, **samples)),
            step(units.importances, lab, masked=masked),
            step(units.shares, lab, masked=masked),
            step(moving.movement, lab, of(moving.Moved)),
            step(pairing.contrast, lab, of(pairing.Contrasted, **samples)),
        ]
    compared = (("defect", True), ("defect", False), ("part", True), ("part", False), ("importance", False))
    for grid, masked in compared:
        z = budget.sizes(lab.scale, masked=masked, device=lab.card)
        steps.append(step(_variants, lab, z, grid))
    return steps


def _variants(lab: Lab, z: Budget, grid: str) -> None:
    """What `variants.beside` compares."""
    made = chosen(lab, variants.alone(z))
    budget.table(lab, variants.GRIDS[grid](z, made))
    budget.table(lab, variants.plain_das(z, made))


def methods(lab: Lab, p: Parameters) -> list[Step]:
    z, filling = (budget.sizes(lab.scale, masked=masked, device=lab.card) for masked in (False, True))
    growing.sizes(lab.scale)  # refused here, not after hours, where the scale has none

    def live() -> None:
        made, steps = chosen(lab, z), min(p["steps"], z.base.steps)
        for name in COMPARED:
            if name in made:
                one = budget.one(z, name, made[name], seed=p["seed"])
                dtype = p["dtype"] or z.base.dtype
                courses.run(lab, replace(one, steps=steps, examples=(60, 40), dtype=dtype))

    def published() -> None:
        budget.table(lab, budget.published(lab.scale, chosen(lab, filling), device=lab.card))

    grids = (budget.contest, budget.square, budget.plugins)
    return [
        live,
        *(step(_grid, lab, z, grid) for grid in grids),
        lambda: footprint.table(lab, z, chosen(lab, z)),
        step(_grid, lab, filling, budget.contest),
        *([published] if budget.real(lab.scale) else []),
        step(growing.table, lab, lab.scale),
    ]


def _grid(lab: Lab, z: Budget, grid: Any) -> None:
    budget.table(lab, grid(z, chosen(lab, z)))
