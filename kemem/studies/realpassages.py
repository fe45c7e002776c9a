"""Chapter 05: the authors' own passages, learnt from PubMed abstracts by a model of novels, from two of its stages.

Small, and one model: that the protocol runs on real text as on ours, and what it then measures. Some of the text is
about a small world, whose facts are the end tasks. Rows are recorded, since few readers have the files.
"""

from __future__ import annotations

from dataclasses import replace

from kemem.runs import Row, Store
from kemem.studies import acquiring, pool, pretraining
from kemem.studies.acquiring import Published
from kemem.studies.lab import Lab, Result
from kemem.studies.learning import Learning
from kemem.studies.outcomes import acquired, forgot, knowledge, performance
from kemem.studies.pretraining import Pretraining
from kemem.studies.realtext import NOVELS, PUBMED

STUDY, VERSION, CHAPTER = acquiring.STUDY, acquiring.VERSION, acquiring.CHAPTER

MODEL = Pretraining(
    pretraining.LAPTOP.with_(
        corpus=f"{NOVELS}+world:people=20,documents=60000", tokenizer=Published.tokenizer, vocabulary=50280,
        length=256, rows=8, steps=1000,
    ),
    stages=(0.0, 0.2, 1.0), facts=120, prompts=("He looked at her and",),
)  # fmt: skip
STAGES = {"early": 0.2, "last": 1.0}
LAPTOP = Learning(
    MODEL, 1000, PUBMED, paraphrased=70, once=60, slots=10, interval=4, rows=80,
    learning_rate=MODEL.setup.learning_rate, source=Published.folder, tasks=120,
)  # fmt: skip
SCALES: dict[str, Learning] = {"laptop": LAPTOP}


def settings(scale: str) -> dict[str, Learning]:
    """The two runs by name; none at scales that have none."""
    base = SCALES.get(scale)
    if base is None:
        return {}
    return {name: replace(base, step=round(share * base.model.setup.steps)) for name, share in STAGES.items()}


def rows(lab: Lab) -> dict[str, Row]:
    """Their rows, recorded."""
    asked = settings(lab.scale)
    found = pool.rows(lab, [(acquiring.run, (one, True)) for one in asked.values()])
    return dict(zip(asked, found, strict=True))


def table(found: dict[str, Row]) -> list[tuple[str, ...]]:
    """A line a stage: K and P before and after, A and F."""
    lines = []
    for name, row in found.items():
        lost = forgot(row)
        lines.append(
            (
                f"{name}, step {row.settings['step']}",
                *(f"{knowledge(row, when):.2f}" for when in ("before", "after")),
                f"{100 * acquired(row):.0f}",
                *(f"{100 * performance(row, when):.0f}" for when in ("before", "after")),
                "not defined" if lost is None else f"{100 * lost:.0f}",
            )
        )
    return lines


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """K after, A, P before and F of both stages, by name: `real passages.early.A`."""
    found: dict[str, Result] = {}
    for name, one in settings(scale).items():
        row = store.find(STUDY, VERSION, one, recorded=True)
        if row is None:
            continue
        origin = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
        numbers = {
            "K before": (knowledge(row, "before"), "nats"), "K after": (knowledge(row, "after"), "nats"),
            "A": (100 * acquired(row), "%"), "P before": (100 * performance(row, "before"), "%"),
            "P after": (100 * performance(row, "after"), "%"), "passages": (row.values["passages"], ""),
            "cut": (row.values["lost"], "tokens"),
        }  # fmt: skip
        if (lost := forgot(row)) is not None:
            numbers["F"] = (100 * lost, "%")
        found |= {
            f"real passages.{name}.{key}": Result(value, unit, origin)
            for key, (value, unit) in numbers.items()
        }
    return found
