"""Evidence on entropy along pretraining: the sweep of chapter 03, and the model of chapter 02."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from kemem import entropy
from kemem.runs import Row, Store
from kemem.studies import decay, stages
from kemem.studies.evidence.record import STAGES, Evidence, Reader, evidence, percent
from kemem.studies.findings import late, late_layers

Points = Sequence[dict[str, Any]]  # what a row of the sweep measured on its way, in order of steps
ARMS = ("base", "weight decay x 4")
"""Arms of the sweep that claims 1 to 4 are read from. The first was fixed beforehand; the second lasts four times as
many time constants of weight decay, which is nearer to the paper's regime."""


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
        found.append(evidence(f"sweep: {name}", [measure(r.values["points"]) for r in rows], rows, unit))
    return found


def entropy_at_stages(points: Points) -> dict[str, float]:
    """Claim 1: H at the stages of the paper's tables."""
    last = points[-1]["step"]
    return {
        percent(share): next(p["entropy"] for p in points if p["step"] >= share * last) for share in STAGES
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
    return [evidence("model of chapter 02", changes, rows, "nats")]


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
    return [*found, evidence("model of chapter 02", [entropy_at_stages(p) for p in points], whole, "nats")]


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
