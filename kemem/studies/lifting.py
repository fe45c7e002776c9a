"""Chapter 07: what Algorithm 1 does to a model before it learns anything: usage, entropy, and what it could do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kemem import entropy, models
from kemem.runs import Row, Store
from kemem.studies import acquiring, checkpoints, outcomes
from kemem.studies.arms import usage_of
from kemem.studies.lab import Lab, Result
from kemem.studies.learning import Learning, Watch

STUDY, VERSION = "lifting", 1
CHAPTER = "07_resuscitation"
POINTS = 49  # of a curve of sorted usage


@dataclass(frozen=True)
class Lifting:
    """Algorithm 1 on one stage, with nothing learnt after it."""

    learning: Learning
    fraction: float = 0.5
    gain: float = 2.0
    texts: int = 128
    seed: int = 0


def settings(
    scale: str, *, seed: int = 0, share: float = 1.0, fraction: float = 0.5, gain: float = 2.0
) -> Lifting:
    return Lifting(acquiring.settings(scale, seed=seed, share=share), fraction, gain, seed=seed)


def run(lab: Lab, s: Lifting) -> Row:
    """The row: sorted usage of each layer as it was, as predicted and as measured again; tasks, losses, entropy."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        of = s.learning
        tasks = of.end_tasks()
        model, tok, found = checkpoints.load(lab, of.model, of.step)
        provenance["checkpoints"] = found.origin

        def usage() -> Tensor:
            return usage_of(lab, of.model.setup, s.texts, model, tok)

        watch = Watch(lab, of, tok, tasks)
        before = usage()
        factors = entropy.multiplier(before, s.fraction, s.gain)
        predicted = before.double() * factors
        order = before.argsort(-1)
        rows = {"unchanged": watch(model)}
        with entropy.resuscitated(model, factors):
            after = usage()
            rows["lifted"] = watch(model)
        with torch.no_grad():
            entropy.reparameterise_(model, factors)
        same = usage()
        rows["same function"] = watch(model)
        places = torch.linspace(0, before.shape[1] - 1, min(POINTS, before.shape[1])).round().long()
        return {
            "places": ((places + 0.5) / before.shape[1]).tolist(),
            "usage": {
                name: _relative(each, before).gather(1, order)[:, places].tolist()
                for name, each in (("before", before), ("predicted", predicted), ("after", after), ("same", same))
            },
            "predicted_entropy": entropy.layer_entropy(predicted).tolist(),
            "starts": rows, "idle": int(entropy.idle(before, s.fraction).sum()), "memories": before.numel(),
            "largest_factor": float(factors.max()),
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def _relative(usage: Tensor, before: Tensor) -> Tensor:
    """In units of the layer's mean usage before the edit."""
    return usage.double() / before.double().mean(-1, keepdim=True)


def results(store: Store, scale: str) -> dict[str, Result]:
    """Entropy and questions right of the last stage, as it is and lifted."""
    if scale not in acquiring.SCALES:
        return {}
    row = store.find(STUDY, VERSION, settings(scale))
    if row is None:
        return {}
    origin = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
    found = {"lifting.largest": Result(row.values["largest_factor"], "", origin)}
    for name, start in row.values["starts"].items():
        tasks = start["tasks"]
        found[f"lifting.{name}.H"] = Result(start["entropy"], "nats", origin)
        found[f"lifting.{name}.P"] = Result(100 * sum(tasks.values()) / len(tasks), "%", origin)
        found[f"lifting.{name}.loss"] = Result(outcomes.own_loss(start), "nats/token", origin)
    return found
