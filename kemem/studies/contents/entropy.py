"""What the chapters of part 1 ask for, and those before it."""

from __future__ import annotations

from typing import Any

from kemem.errors import BadInput
from kemem.studies import (
    acquiring,
    arms,
    decay,
    inside,
    lifting,
    many,
    memories,
    midstage,
    pretraining,
    realpassages,
    realtext,
    resuscitating,
    robustness,
    stages,
    tour,
    tracing,
)
from kemem.studies.contents.step import Step, step
from kemem.studies.lab import Lab

Parameters = dict[str, Any]


def how_to_read(lab: Lab, p: Parameters) -> list[Step]:
    stops = tour.settings(lab.scale, seed=p["seed"], dtype=p["dtype"])
    return [
        step(tour.learning, lab, stops),
        step(tour.domains, lab, stops),
        step(tracing.run, lab, stops.traced),
        step(many.run, many.Benches(lab), stops.edited),
    ]


def looked_at(lab: Lab, p: Parameters) -> list[Step]:
    settings = memories.settings(lab.scale, seed=p["seed"], dtype=p["dtype"], device=lab.card)
    return [step(memories.run, lab, settings)]


def pretrained(lab: Lab, p: Parameters) -> list[Step]:
    settings = pretraining.settings(
        lab.scale, seed=p["seed"], corpus=p["corpus"], dtype=p["dtype"], family=p["model"],
        instances=p["instances"], device=lab.card,
    )  # fmt: skip
    about = stages.subject(lab.scale, model=settings, coefficient=p["coefficient"])
    return [
        step(pretraining.texts, lab, settings),
        step(pretraining.run, lab, settings),
        step(about.row, lab),
    ]


def entropy_decay(lab: Lab, p: Parameters) -> list[Step]:
    chosen = {name: p[name] for name in ("model", "corpus", "instances", "coefficient")}
    about = stages.subject(lab.scale, seed=p["seed"], dtype=p["dtype"], device=lab.card, **chosen)
    usual = chosen == {"model": None, "corpus": None, "instances": None, "coefficient": "abs"}
    live = decay.arms(lab.scale)[decay.LIVE]
    return [
        step(about.row, lab, **stages.extras(about)),
        *([step(stages.of_all_seeds, lab)] if usual else []),
        *(step(about.row, lab, name) for name in about.corpora),
        step(realtext.rows, lab),
        *(step(about.row, lab, coefficient=name) for name in stages.readings(about)),
        step(about.row, lab, unit="sentence", dtype="float32"),
        step(about.row, lab, unit="sentence", dtype="float32", padding="include"),
        step(decay.sweep, lab),
        step(decay.arm, lab, live, p["seed"], recorded=False),
    ]


def injection(lab: Lab, p: Parameters) -> list[Step]:
    rate = {} if p["learning_rate"] is None else {"learning_rate": p["learning_rate"]}
    settings = acquiring.settings(lab.scale, seed=p["seed"], **rate)
    return [step(acquiring.run, lab, settings), step(acquiring.published, lab)]


def acquisition(lab: Lab, p: Parameters) -> list[Step]:
    named = {"epochs": p["epochs"], "learning_rate": p["lr"], "rows": p["batch"]}
    changes = {name: value for name, value in named.items() if value is not None}
    live = [acquiring.settings(lab.scale, seed=p["seed"], share=share, **changes) for share in p["stages"]]
    return [
        step(acquiring.along, lab),
        *(step(acquiring.run, lab, settings) for settings in live),
        step(realpassages.rows, lab),
    ]


def rivals(lab: Lab, p: Parameters) -> list[Step]:
    if p["setting"] not in robustness.SETTINGS:
        raise BadInput(f"setting is one of {', '.join(robustness.SETTINGS)}; got {p['setting']!r}.")
    live = robustness.SETTINGS[p["setting"]](lab.scale, p["seed"], p["stage"])
    return [
        step(arms.run, lab, live),
        step(robustness.table, lab),
        step(inside.table, lab),
        step(midstage.table, lab),
    ]


def resuscitation(lab: Lab, p: Parameters) -> list[Step]:
    edit = {"fraction": p["fraction"], "gain": p["gain"]}
    at = {"seed": p["seed"], "share": p["stage"]}
    return [
        step(lifting.run, lab, lifting.settings(lab.scale, **at, **edit)),
        step(arms.run, lab, arms.settings(lab.scale, **at)),
        step(arms.run, lab, arms.settings(lab.scale, **at, edit="lift", **edit)),
        step(resuscitating.table, lab),
    ]
