"""Chapter 09: a course of DAS, watched: importances as they are measured, and how they fill the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem.continual import DAS, Course, Units, learn
from kemem.continual.gates import SITES
from kemem.continual.importance import Measuring, domain_importance, emax, general_importance, normalised
from kemem.objective import Objective, causal, mix
from kemem.runs import Row, Store
from kemem.studies import looking
from kemem.studies.lab import Lab, Result
from kemem.studies.looking import HOW, MODELS, Looking, opened, rounded, settings
from kemem.training import Domain, Recipe

CHAPTER = "09_das"
STUDY = "unit_course"
VERSION = 1

QUANTILES = 32


@dataclass(frozen=True)
class Coursed(Looking):
    """DAS over all domains, watched. samples: rows on which importance is measured."""

    samples: int = 200
    steps: int = 20
    batch: int = 16
    learning_rate: float = 1e-3
    normalisation: str = "tanh_clip"
    test_tokens: int = 3000
    sized: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"rows": 12, "samples": 6, "steps": 2, "batch": 4, "test_tokens": 300},
        "gpu": {"rows": 1000, "batch": 16, "learning_rate": 3e-4, "test_tokens": 10_000},
        "paper": {"rows": 10_000, "samples": 1000, "steps": 100, "batch": 62, "learning_rate": 1e-4},
    }


@dataclass
class Own:
    """DAS's own importance, measured as `DAS` does it and kept before it is normalised.

    Asked before the first domain, where it is that of general knowledge, and after each.
    """

    objective: Objective = causal
    samples: int = 1000
    seed: int = 0
    kept: list[Units] = field(default_factory=list, repr=False)

    def __call__(self, model: nn.Module, domain: Domain) -> Units:
        how = Measuring(self.samples, seed=mix(self.seed, len(self.kept)))
        if self.kept:
            found = domain_importance(model, domain.blocks, self.objective, how)
        else:
            found = general_importance(model, domain.blocks, how=how)
        self.kept.append(found)
        return found


def run(lab: Lab, s: Coursed) -> Row:
    """The row of one course of DAS: importances as they were measured, and how they fill the mask."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = opened(lab, s, provenance, test_tokens=s.test_tokens)
        own = Own(at.goal, s.samples, s.seed)
        method = DAS(
            importance=own, normalisation=s.normalisation, objective=at.goal, seed=s.seed, samples=s.samples
        )
        recipe = Recipe(
            steps=s.steps, batch_size=s.batch, learning_rate=s.learning_rate, warmup_steps=round(0.1 * s.steps),
            final_share=1 / s.steps, schedule="linear", weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-6, clip=0.0,
            seed=s.seed,
        )  # fmt: skip
        course: Course = learn(at.model, at.domains, method, recipe, objective=at.goal, progress=lab.progress)
        return {
            "names": course.names,
            "before": course.before,
            "loss": course.loss,
            "heads": [rounded(units.heads) for units in own.kept],
            "output": [rounded(units.output) for units in own.kept],
            "intermediate": [sorted_by_layer(units.intermediate) for units in own.kept],
            "filled": {how: filled(own.kept, how) for how in HOW},
        }

    return looking.row(lab, STUDY, VERSION, s, compute)


def filled(kept: Sequence[Units], how: str) -> dict[str, dict[str, list[float]]]:
    """Site -> of the mask before each domain and after the last: its mean; the share of units hardly held (< 0.1)."""
    table: dict[str, dict[str, list[float]]] = {site: {"mean": [], "free": []} for site in SITES}
    known: Units | None = None
    for units in kept:
        own = normalised(units, how)
        known = own if known is None else emax(known, own)
        for site, mask in known.tensors().items():
            table[site]["mean"].append(float(mask.mean()))
            table[site]["free"].append(float((mask < 0.1).double().mean()))
    return table


def sorted_by_layer(found: Float[Tensor, "L M"]) -> list[list[float]]:
    """Each layer's importances in descending order, in units of the layer's mean, at evenly spaced places."""
    count = found.shape[-1]
    places = [round(i * (count - 1) / (QUANTILES - 1)) for i in range(QUANTILES)]
    scaled = found / found.mean(-1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
    return rounded(scaled.sort(-1, descending=True).values[:, places])


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Of the masks: `units.masked.filled.tanh_clip.heads.mean.last`, and so on."""
    if scale not in looking.SCALES:
        return {}
    found: dict[str, Result] = {}
    for name, masked in MODELS.items():
        row = store.find(STUDY, VERSION, settings(Coursed, scale, masked=masked))
        if row:
            for how in HOW:
                for site in SITES:
                    own = row.values["filled"][how][site]
                    for key, values in own.items():
                        for place, value in (("first", values[0]), ("last", values[-1])):
                            full = f"units.{name}.filled.{how}.{site}.{key}.{place}"
                            found[full] = Result(value, "", looking.origin(row))
    return found
