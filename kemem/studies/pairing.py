"""Chapter 09: what the contrast of DAS compares: two views of one text, with true twins and with the released pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kemem.continual import Units, gated
from kemem.continual.contrast import (
    contrastive_loss,
    draws,
    drops,
    last_hidden,
    mispaired,
    mode,
    present,
    representation,
)
from kemem.continual.importance import Measuring, general_importance, normalised
from kemem.objective import mix
from kemem.runs import Row, Store
from kemem.studies import looking
from kemem.studies.lab import Lab, Result
from kemem.studies.looking import MODELS, Looking, mean, opened, settings

CHAPTER = "09_das"
STUDY = "unit_contrast"
VERSION = 1


@dataclass(frozen=True)
class Contrasted(Looking):
    """The contrast's loss on the same texts, with true twins and with the released pairs."""

    batch: int = 16
    batches: int = 4
    samples: int = 100
    temperature: float = 0.05
    sized: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"rows": 12, "batch": 4, "batches": 2, "samples": 6},
        "gpu": {"rows": 400, "batch": 64, "samples": 200},
        "paper": {"rows": 1000, "batch": 62, "samples": 1000},
    }


def contrast(lab: Lab, s: Contrasted) -> Row:
    """The contrast before any training, on the first texts of the first domain: with twins, and as released."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = opened(lab, s, provenance, count=1)
        data = at.domains[0].train
        how = Measuring(s.samples, seed=s.seed)
        known = normalised(general_importance(at.model, data, how=how), "tanh_clip")
        parts = torch.arange(s.batch * s.batches).split(s.batch)
        each = [views(at.model, data.batch(rows), known, mix(s.seed, i)) for i, rows in enumerate(parts)]
        kept = [compared(*view, s.temperature) for view in each]
        return {
            "drops": drops(at.model),
            "candidates": 2 * s.batch,
            **{name: mean(one[name] for one in kept) for name in kept[0]},
        }

    return looking.row(lab, STUDY, VERSION, s, compute)


def views(
    model: nn.Module, batch: dict[str, Tensor], known: Units, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(full, twin, previous) of the texts of a batch, as in training. Without dropout the twin is the view itself."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with torch.no_grad(), mode(model, training=True), draws(device, seed):
        full = representation(last_hidden(model, batch), present(batch))
        twin = representation(last_hidden(model, batch), present(batch)) if drops(model) else full
        with gated(model, known):
            previous = representation(last_hidden(model, batch), present(batch))
    return full, twin, previous


def compared(full: Tensor, twin: Tensor, previous: Tensor, temperature: float) -> dict[str, float]:
    """Losses in nats with each way to pair, with and without previous views; cosines of the pairs and of others."""
    wrong = mispaired(full, twin)
    sides = [nn.functional.normalize(x.double(), dim=-1) for x in (full, twin, previous, *wrong)]
    a, b, c, d, e = sides
    other = ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    return {
        "twins": float(contrastive_loss(full, twin, previous, temperature)),
        "mispaired": float(contrastive_loss(*wrong, previous, temperature)),
        "twins alone": float(contrastive_loss(full, twin, None, temperature)),
        "mispaired alone": float(contrastive_loss(*wrong, None, temperature)),
        "cosine of twins": float((a * b).sum(-1).mean()),
        "cosine of mispaired": float((d * e).sum(-1).mean()),
        "cosine of others": float((a @ b.T)[other].mean()),
        "cosine with previous": float((a * c).sum(-1).mean()),
    }


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Of the contrast: `units.masked.contrast.twins`, `units.masked.contrast.mispaired`, and so on."""
    if scale not in looking.SCALES:
        return {}
    found: dict[str, Result] = {}
    for name, masked in MODELS.items():
        row = store.find(STUDY, VERSION, settings(Contrasted, scale, masked=masked))
        if row:
            for key, value in row.values.items():
                if key not in ("drops", "candidates"):
                    unit = "" if key.startswith("cosine") else "nats"
                    found[f"units.{name}.contrast.{key}"] = Result(value, unit, looking.origin(row))
    return found
