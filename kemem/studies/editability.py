"""Chapter 15: the same facts written by MEMIT at every stage, and what the facts and the memory are like there.

Layers, weight and clamp are chosen on tuning facts, by as many trials at each stage; reported facts are others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kemem import editing, evaluation, models
from kemem.editing import MEMIT, Request, Search
from kemem.editing.scores import SUCCESS, Judge, Scores, average, harmonic
from kemem.runs import Row
from kemem.studies import many
from kemem.studies.bench import Bench
from kemem.studies.checkpointed import Compared, Stages
from kemem.studies.critique import bare_keys

TRIALS, STUDY, VERSION = "editability_trials", "editability", 1


@dataclass(frozen=True)
class Setting:
    """Of MEMIT: where it writes, how much the old memory weighs, how far a target may go in lengths of the stream."""

    layers: tuple[int, ...]
    weight: float
    clamp: float

    def editor(self) -> MEMIT:
        return MEMIT(self.layers, self.weight, Search(clamp=self.clamp))


@dataclass(frozen=True)
class Trials:
    """All settings at one stage, on the first tuning facts that all stages know, in blocks of `count`."""

    of: Compared
    step: int
    settings: tuple[Setting, ...]
    count: int = 24
    blocks: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """The reported facts at one stage. seed: of the objects that are written."""

    of: Compared
    step: int
    setting: Setting
    count: int = 24
    blocks: int = 4
    seed: int = 0


def tried(stages: Stages, s: Trials, recorded: bool = False) -> Row:
    """The row: the scores of every setting at this stage, in their order."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        stages.say(provenance)
        at = stages.bench(s.step)
        facts = stages.facts(s.count * s.blocks, "tuning", seed=s.seed)
        found = []
        for number, setting in enumerate(s.settings):
            found.append(scored(after(at, facts, setting, s.count)))
            if stages.lab.progress is not None:
                stages.lab.progress(number + 1, len(s.settings), f"trials at step {s.step}")
        return {"scores": found, "facts": len(facts)}

    return _row(stages, TRIALS, s, compute, recorded)


def written(stages: Stages, s: Written, recorded: bool = False) -> Row:
    """The row: scores before and after, what the edits cost elsewhere, and what keys and moments are like."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        stages.say(provenance)
        at = stages.bench(s.step)
        facts = stages.facts(s.count * s.blocks, seed=s.seed)
        texts = {name: stages.rows(name)[-1] for name in stages.sources}
        nats: dict[str, list[float]] = {name: [] for name in texts}
        norms: list[float] = []

        def read() -> dict[str, float]:
            return {name: evaluation.loss(at.model, rows) for name, rows in texts.items()}

        def look(edit: editing.Edit) -> None:
            for name, value in read().items():
                nats[name].append(value)
            norms.append(math.hypot(*edit.norms.values()))

        unedited = read()
        before = [Judge(at.tok, own)(at.model) for own in parts(facts, s.count)]
        edited = after(at, facts, s.setting, s.count, look)
        return {
            "facts": len(facts), "before": scored(before), "after": scored(edited),
            "kept": kept(before, edited), "norm": mean(norms),
            "nats": {name: mean(own) - unedited[name] for name, own in nats.items()},
            "keys": keys(at, facts, s.setting.layers[0]),
        }  # fmt: skip

    return _row(stages, STUDY, s, compute, recorded)


def _row(stages: Stages, study: str, s: Any, compute: Any, recorded: bool) -> Row:
    place = models.named_device(stages.lab.device).type
    return stages.lab.store.row(study, VERSION, s, compute, recorded=recorded, device=place)


def parts(facts: Sequence[Request], count: int) -> list[Sequence[Request]]:
    return [facts[begin : begin + count] for begin in range(0, len(facts), count)]


def after(
    at: Bench, facts: Sequence[Request], setting: Setting, count: int, look: Any = None
) -> list[Scores]:
    """Scores of each block in the model that it was written into; between blocks the model is as it was."""
    found = []
    for own in parts(facts, count):
        edit = many.write(at, "MEMIT", setting.editor(), own)
        with edit.applied(at.model):
            found.append(Judge(at.tok, own)(at.model))
            if look is not None:
                look(edit)
    return found


def scored(blocks: Sequence[Scores]) -> dict[str, Any]:
    """Over all records of the blocks: ES, PS, NS and S in %, magnitudes EM and NM, and half their 95 % intervals."""
    names = (*SUCCESS, "EM", "NM", "rewrite_acc")
    values = {name: [v for own in blocks for v in own.values[name]] for name in names}
    found = {name: average(own) for name, own in values.items()}
    return {
        **{name: value for name, (value, _, _) in found.items()},
        "S": harmonic(found[name][0] for name in SUCCESS),
        "half": {name: half for name, (_, half, _) in found.items()},
    }


def kept(before: Sequence[Scores], edited: Sequence[Scores]) -> float | None:
    """NS after in % of what it was before, of all records together: earlier stages know fewer neighbours at all."""
    both = [average(v for own in each for v in own.values["NS"])[0] for each in (before, edited)]
    return None if not both[0] or both[1] is None else 100 * both[1] / both[0]


def keys(at: Bench, facts: Sequence[Request], layer: int) -> dict[str, float]:
    """Of the keys of the facts and of a layer's moment C: size, how alike, and how many directions.

    size: mean k^T C^-1 k / M, 1 for ordinary keys: the larger, the less an edit disturbs. alike: mean cosine of the
    keys of different facts, C whitened away. rank: tr(C)^2 / |C|^2 / M. diagonal: the same of C's diagonal alone.
    """
    C, K = at.moments[layer].cpu(), bare_keys(at, facts, layer).cpu()
    lower = torch.linalg.cholesky(C)
    white = torch.linalg.solve_triangular(lower, K.T, upper=False)  # [M N]
    unit = white / white.norm(dim=0)
    cosines = unit.T @ unit
    apart = ~torch.eye(len(facts), dtype=torch.bool)
    squares = C.diagonal()
    return {
        "size": float((white**2).sum(0).mean() / len(C)),
        "alike": float(cosines[apart].mean()) if len(facts) > 1 else 0.0,
        "rank": editing.effective_rank(C) / len(C),
        "diagonal": float(squares.sum() ** 2 / (squares**2).sum() / len(C)),
    }


def mean(found: Sequence[float]) -> float:
    return math.fsum(found) / len(found)


def best(rows: Mapping[int, Row]) -> tuple[Setting, dict[int, Setting]]:
    """The setting with the highest mean of S over stages, and that of each stage by itself."""
    settings = next(iter(rows.values())).settings["settings"]
    S = {step: [own["S"] or 0.0 for own in row.values["scores"]] for step, row in rows.items()}
    whole = [mean([own[i] for own in S.values()]) for i in range(len(settings))]
    made = [Setting(tuple(own["layers"]), own["weight"], own["clamp"]) for own in settings]
    return made[_first(whole)], {step: made[_first(own)] for step, own in S.items()}


def _first(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
