"""What the chapters of part 3 ask for. Each keeps its benches, so that a model is opened once for all its rows."""

from __future__ import annotations

from typing import Any

from kemem.studies import (
    association,
    capacity,
    critique,
    field,
    grids,
    hardness,
    implications,
    knowing,
    many,
    one_target,
    parts,
    relations,
    released,
    sequence,
    single_edits,
    thousands,
    tracing,
)
from kemem.studies.contents.cells import functions
from kemem.studies.contents.step import Step, step
from kemem.studies.field import Setting
from kemem.studies.lab import Lab
from kemem.studies.many import NONE

Parameters = dict[str, Any]
LIVE = (NONE, "FT-W", "MEMIT")
"""Methods that chapter 14 runs live."""
WRITTEN_OUT = 8
"""Facts on which chapter 13 checks the algorithm that it writes out."""
FEW = 6
"""Relations of which chapter 13 writes facts live."""


def knowledge_base(lab: Lab, p: Parameters) -> list[Step]:
    traced = tracing.settings(lab.scale, seed=p["seed"], facts=p["facts"], window=p["window"])
    return [
        step(knowing.run, lab, knowing.settings(lab.scale, seed=p["seed"])),
        step(tracing.run, lab, traced),
    ]


def one_fact(lab: Lab, p: Parameters) -> list[Step]:
    at = {"seed": p["seed"], "dtype": p["dtype"]}
    return [
        step(association.run, lab, association.settings(lab.scale, seed=p["seed"])),
        step(one_target.run, lab, one_target.settings(lab.scale, **at, weight=p["weight"])),
        step(single_edits.run, lab, single_edits.settings(lab.scale, **at, facts=p["facts"])),
    ]


def at_once(lab: Lab, p: Parameters) -> list[Step]:
    dtype, seed = p["dtype"], p["seed"]
    s = thousands.settings(lab.scale, seed=seed, dtype=dtype)
    most = thousands.LIVE if p["most"] is None else p["most"]
    benches = many.Benches(lab)

    def written_out() -> None:
        sweeps = thousands.run(lab, s, most=most)
        few = thousands.one(s, (sweeps.weight, sweeps.clamp), WRITTEN_OUT, written=0)
        source = next((lab.root / "chapters").glob("13_*.py"))
        capacity.algorithm(benches, few, *functions(source, "memit", "read"))

    others = [seed_ for seed_ in thousands.SEEDS[lab.scale] if seed_ != seed]
    draws = [thousands.settings(lab.scale, seed=other, dtype=dtype) for other in others]
    return [
        step(thousands.run, lab, s, most=most),
        *(step(thousands.run, lab, other, recorded=True) for other in draws),
        written_out,
        *(step(_hardness, lab, benches, each) for each in dict.fromkeys((seed, *relations.seeds(lab.scale)))),
        step(relations.run, lab, lab.scale, seed=seed, live=FEW),
        step(implications.draws, lab, lab.scale, seed=seed),
    ]


def _hardness(lab: Lab, benches: many.Benches, seed: int) -> None:
    """What `relations.run` begins with, of all draws of facts side by side."""
    s = relations.settings(lab.scale, seed=seed).hardness
    if lab.store.find(hardness.STUDY, hardness.VERSION, s, recorded=True) is None:
        hardness.measured(benches, s)


def editors(lab: Lab, p: Parameters) -> list[Step]:
    z = field.sizes(lab.scale, dtype=p["dtype"])
    benches = many.Benches(lab)

    def made() -> dict[str, Setting]:
        return field.chosen(grids.table(lab, field.tuning(z), benches))

    def live() -> None:
        chosen, at = made(), p["count"] or z.written_at[0]
        grid = field.contest(z, chosen)
        for name in LIVE:
            own = (
                field.one(z, name, chosen[name], at, seed=p["seed"])
                if p["count"]
                else grid[name, at, p["seed"]]
            )
            many.run(benches, own)

    def heavier() -> None:
        chosen = field.chosen(grids.table(lab, field.tuning(z, z.together), benches))
        grids.table(lab, field.loaded(z, chosen), benches)

    return [
        live,
        lambda: grids.table(lab, field.contest(z, made()), benches),
        heavier,
        lambda: parts.table(lab, z, made(), benches),
        lambda: grids.table(lab, field.questions(z, made()), benches),
        *(step(lambda kind: released.table(lab, z, made(), kind, benches), kind)
          for kind in (released.RELEASED, released.COST)),
        lambda: sequence.table(lab, sequence.grid(lab.scale, made()), benches),
        lambda: grids.table(lab, sequence.at_once(lab.scale, made()), benches),
        lambda: critique.table(lab, made(), benches),
    ]  # fmt: skip
