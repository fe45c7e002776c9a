"""What the chapters ask for that join the three papers: one model through all of them, and the reader's own."""

from __future__ import annotations

from typing import Any

from kemem.studies import editability, own, own_rows
from kemem.studies.contents.step import Step, step
from kemem.studies.desk import Desk
from kemem.studies.editability import Setting
from kemem.studies.lab import Lab

Parameters = dict[str, Any]
GIVEN = (
    "model",
    "revisions",
    "text",
    "requests",
    "layout",
    "instances",
    "facts",
    "layers",
    "weight",
    "seed",
    "dtype",
)


def three_papers(lab: Lab, p: Parameters) -> list[Step]:
    papers = Desk(lab)

    def made() -> Setting:
        return editability.best(papers.trials())[0]

    return [
        step(papers.notions, p["share"]), papers.second, papers.trials, papers.traced, papers.silenced, papers.entropy,
        papers.learning,
        lambda: papers.by_fact(made()),
        lambda: papers.written(dict.fromkeys(papers.z.of.steps, made())),
        lambda: papers.rescaled(made(), seed=p["seed"], spread=p["spread"]),
    ]  # fmt: skip


def your_own(lab: Lab, p: Parameters) -> list[Step]:
    mine = own.given(lab, **{name: p[name] for name in GIVEN})

    def edited() -> None:
        own_rows.edited(lab, mine, own_rows.layers(mine, own_rows.traced(lab, mine)))

    return [step(own_rows.entropies, lab, mine), step(own_rows.traced, lab, mine), edited]
