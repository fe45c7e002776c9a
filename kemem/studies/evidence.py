"""What rows say about claims: for each claim that was tested, the numbers its rule looks at, one a seed.

Nothing is judged here, and nothing computed: a function reads finished rows and hands on numbers. Rules and verdicts
are in `kemem.claims`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from scipy import stats

from kemem import entropy
from kemem.runs import Row, Store
from kemem.studies import acquiring, decay, outcomes, stages
from kemem.studies.findings import late, late_layers

Points = Sequence[dict[str, Any]]  # what a row of the sweep measured on its way, in order of steps
ARMS = ("base", "weight decay x 4")
"""Arms of the sweep that claims 1 to 4 are read from. The first was fixed beforehand; the second lasts four times as
many time constants of weight decay, which is nearer to the paper's regime."""
STAGES = (0.2, 0.5, 0.75, 1.0)
"""Shares of the schedule at which the paper's tables stand (its first is at 16 %; ours are measured every 5 %)."""


@dataclass(frozen=True)
class Evidence:
    """Measured quantities by name, each with one number a seed (or other independent unit), in one order of seeds."""

    on: str
    """What was measured: an arm, a model."""
    series: Mapping[str, tuple[float, ...]]
    unit: str
    rows: tuple[str, ...]
    """Digests of the rows that the numbers were read from."""
    note: str = ""


Reader = Callable[[Store, str], list[Evidence]]
"""(store, scale) -> what its rows say, the main evidence first; empty where rows of the main one are missing."""


def _evidence(on: str, found: Sequence[Mapping[str, float]], rows: Sequence[Row], unit: str) -> Evidence:
    series = {name: tuple(each[name] for each in found) for name in found[0]}
    note = "from rows of an older version" if any(row.stale for row in rows) else ""
    return Evidence(on, series, unit, tuple(row.digest for row in rows), note)


# ---------------------------------------------------------------------- the sweep of chapter 03
def _from_arms(
    measure: Callable[[Points], dict[str, float]], store: Store, scale: str, unit: str = "nats"
) -> list[Evidence]:
    found = []
    arms = decay.finished(store, scale)
    for name in ARMS:
        rows = arms.get(name)
        if not rows:
            break  # without the main arm the others would stand in its place
        found.append(_evidence(f"sweep: {name}", [measure(r.values["points"]) for r in rows], rows, unit))
    return found


def entropy_at_stages(points: Points) -> dict[str, float]:
    """Claim 1: H at the stages of the paper's tables."""
    last = points[-1]["step"]
    return {
        f"{100 * share:.0f} %": next(p["entropy"] for p in points if p["step"] >= share * last)
        for share in STAGES
    }


def layer_changes(points: Points) -> dict[str, float]:
    """Claim 2: how much each layer falls, and how much more the last one than each other."""
    *others, last = late_layers(points)
    by_layer = {f"layer {i}": d for i, d in enumerate([*others, last])}
    return by_layer | {f"last layer less layer {i}": last - d for i, d in enumerate(others)}


def attention_changes(points: Points, *, start: float = STAGES[0]) -> dict[str, float]:
    """Claim 3: change of attention entropy after the first stage, and how much steeper it falls before."""
    after = math.fsum(late_layers(points, "attention", start=start))
    before = math.fsum(late_layers(points, "attention", start=0.0)) - after
    return {"after 20 %": after, "slope before 20 % less slope after": before / start - after / (1 - start)}


def next_token_change(points: Points) -> dict[str, float]:
    """Claim 4: change of next-token entropy after the first stage."""
    return {"after 20 %": late(points, "next_token")}


# ---------------------------------------------------------------------- the model of chapter 02
def _subjects(scale: str) -> Iterator[stages.Subject]:
    """Chapter 02's model, of every seed it is measured at."""
    return (stages.subject(scale, seed=seed) for seed in stages.SCALES[scale].seeds)


def _from_model(
    ask: Callable[[stages.Subject], Mapping[str, stages.Measured]], least: int, store: Store, scale: str
) -> list[Evidence]:
    """Change of H after the first stage in each reading asked for; a seed counts when all its readings are there.

    A reading that no seed has, as one that the model does not allow, is left out; `least` must remain.
    """
    found: list[dict[str, Row]] = []
    for about in _subjects(scale):
        rows = {
            name: store.find(stages.STUDY, stages.VERSION, s, recorded=True) for name, s in ask(about).items()
        }
        found.append({name: row for name, row in rows.items() if row is not None})
    most = max(map(len, found))
    whole = [rows for rows in found if len(rows) == most]
    if most < least:
        return []
    changes = [{name: stages.late(row) for name, row in rows.items()} for rows in whole]
    rows = [row for each in whole for row in each.values()]
    return [_evidence("model of chapter 02", changes, rows, "nats")]


def _falling(store: Store, scale: str) -> list[Evidence]:
    """Claim 1: the sweep, and chapter 02's model, which lasts as many time constants as OLMo-1B."""
    found = _from_arms(entropy_at_stages, store, scale)
    asked = [about.settings(**stages.extras(about)) for about in _subjects(scale)]
    rows = [store.find(stages.STUDY, stages.VERSION, s, recorded=True) for s in asked]
    if not found or not all(rows):
        return found
    whole = [row for row in rows if row is not None]
    points = [
        [
            {"step": stages.step(name), **stage}
            for name, stage in zip(row.settings["revisions"], row.values["stages"], strict=True)
        ]
        for row in whole
    ]
    return [*found, _evidence("model of chapter 02", [entropy_at_stages(p) for p in points], whole, "nats")]


def _texts(about: stages.Subject) -> dict[str, stages.Measured]:
    return {name: about.settings(name) for name in about.corpora}


def _readings(about: stages.Subject) -> dict[str, stages.Measured]:
    return {name: about.settings(coefficient=name) for name in entropy.COEFFICIENTS}


EVIDENCE: dict[str, Reader] = {
    "entropy.1": _falling,
    "entropy.2": partial(_from_arms, layer_changes),
    "entropy.3": partial(_from_arms, attention_changes),
    "entropy.4": partial(_from_arms, next_token_change),
    "entropy.13": partial(_from_model, _texts, 2),
    "entropy.14": partial(_from_model, _readings, 2),
}
"""By claim. A claim that is not here was not tested, and says what it needs."""


# ---------------------------------------------------------------------- continual learning of chapter 05
def _from_learning(
    measure: Callable[[dict[float, Row]], dict[str, float] | None], unit: str, store: Store, scale: str
) -> list[Evidence]:
    models = acquiring.finished(store, scale)
    if not models or not set(STAGES) <= set(models[0]):
        return []
    values = [measure(rows) for rows in models]
    if any(value is None for value in values):  # a model that answered nothing has nothing to forget
        return []
    rows = [row for each in models for row in each.values()]
    return [_evidence("continual learning of chapter 05", values, rows, unit)]


def acquired_by_stage(rows: dict[float, Row]) -> dict[str, float]:
    """Claim 5: A at the stages of the paper's tables."""
    return {f"{100 * share:.0f} %": 100 * outcomes.acquired(rows[share]) for share in STAGES}


def forgotten_by_stage(rows: dict[float, Row]) -> dict[str, float] | None:
    """Claim 6: F at the stages of the paper's tables."""
    lost = {f"{100 * share:.0f} %": outcomes.forgot(rows[share]) for share in STAGES}
    return None if None in lost.values() else {name: 100 * f for name, f in lost.items() if f is not None}


def _measures(row: Row, when: str) -> dict[str, float]:
    """K in nats a token, and P as a share."""
    return {"K": outcomes.knowledge(row, when), "P": outcomes.performance(row, when)}


def ends_by_stage(rows: dict[float, Row]) -> dict[str, float]:
    """Claim 7: K and P at the end from a middle stage less the first and the last, and first less last."""
    first, middle, last = (_measures(rows[share], "after") for share in (STAGES[0], STAGES[1], STAGES[-1]))
    pairs = {
        "middle less first": (middle, first),
        "middle less last": (middle, last),
        "first less last": (first, last),
    }
    return {f"{of}, {name}": a[of] - b[of] for of in first for name, (a, b) in pairs.items()}


def starts_by_stage(rows: dict[float, Row]) -> dict[str, float]:
    """Claim 8: K and P before, each stage less the one before."""
    starts = {share: _measures(rows[share], "before") for share in STAGES}
    return {
        f"{of}, {100 * b:.0f} % less {100 * a:.0f} %": starts[b][of] - starts[a][of]
        for of in ("K", "P")
        for a, b in pairwise(STAGES)
    }


def entropy_correlations(rows: dict[float, Row]) -> dict[str, float] | None:
    """Claim 9: Pearson's r over the stages of one model, of H with A, and of H with F with its sign turned."""
    h = [row.values["before"]["entropy"] for row in rows.values()]
    a, f = ([of(row) for row in rows.values()] for of in (outcomes.acquired, outcomes.forgot))
    if None in f:
        return None
    return {
        "r(H, A)": float(stats.pearsonr(h, a).statistic),
        "-r(H, F)": -float(stats.pearsonr(h, f).statistic),
    }


def groups_by_stage(rows: dict[float, Row]) -> dict[str, float]:
    """Claim 22: A of what is told in every slot less A of what is told once, and the latter at the end turned."""
    found = {}
    for share in STAGES:
        often, once = (100 * outcomes.acquired(rows[share], group=g) for g in ("paraphrase", "once"))
        found[f"paraphrase less once at {100 * share:.0f} %"] = often - once
    return found | {"once at 100 %, sign turned": -once}


EVIDENCE |= {
    "entropy.5": partial(_from_learning, acquired_by_stage, "%"),
    "entropy.6": partial(_from_learning, forgotten_by_stage, "%"),
    "entropy.7": partial(_from_learning, ends_by_stage, "nats, or share"),
    "entropy.8": partial(_from_learning, starts_by_stage, "nats, or share"),
    "entropy.9": partial(_from_learning, entropy_correlations, ""),
    "entropy.22": partial(_from_learning, groups_by_stage, "%"),
}
