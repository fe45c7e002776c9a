"""Chapter 14, why PMET trails: its targets are of attention and feed-forward together, and only the latter is written.

Of each target three probabilities: with both parts added, as they were searched; with the feed-forward's part alone;
and after the edit. What is lost from the first to the second is what the search left to attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kemem import editing, models, trace
from kemem.editing import PMET, Judge, Request, Search
from kemem.editing.pmet import joint_values
from kemem.evaluation import evaluating, padded
from kemem.memory import Memories
from kemem.objective import IGNORED, logits_of, token_losses
from kemem.runs import Row, Store
from kemem.studies import field, grids, methods
from kemem.studies.association import told
from kemem.studies.bench import Bench
from kemem.studies.field import Field, Settings
from kemem.studies.lab import Lab, Result
from kemem.studies.many import Benches, Many
from kemem.studies.methods import METHODS

STUDY, VERSION = "pmet_parts", 1
CHAPTER = "14_field"
ROWS = {STUDY: VERSION}
STEPS = ("both", "feed-forward alone", "written")


@dataclass(frozen=True)
class Parts:
    """PMET with its weight as chosen, at several clamps of its targets."""

    facts: Many
    """The row of no editor that has these facts in one block."""
    weight: float
    clamps: tuple[float, ...]
    seed: int = 0


def settings(z: Field, made: Settings, *, seed: int = 0) -> Parts:
    """At the number of facts on which values are chosen; the published clamp, and those that were tried."""
    clamps = tuple(sorted({1.0, *METHODS["PMET"].clamps}))
    return Parts(field.facts(z, min(z.tuning, z.one_by_one), seed=seed), made["PMET"].value, clamps, seed)


def run(benches: Benches, s: Parts) -> Row:
    """The row: by clamp the mean probability of the new object at each of STEPS, and the scores after the edit."""
    lab = benches.lab

    def compute(_: dict[str, Any]) -> dict[str, Any]:
        at, requests = benches.at(s.facts), benches.requests(s.facts)
        layers, found = s.facts.layers, {}
        for clamp in s.clamps:
            search = methods.own(Search(clamp=clamp))
            of = editing.contexts(at.tok, requests, at.templates)
            z = joint_values(Memories(at.model), of, layers[-1], search)
            edit = PMET(layers, s.weight, search)(
                at.model, at.tok, requests, at.moments, templates=at.templates, targets=z.z
            )
            alone = said(at, requests, layers[-1], z.z)
            with edit.applied(at.model):
                after = said(at, requests, layers[-1], None)
                scores = Judge(at.tok, requests)(at.model)
            shares = (z.probability.double(), alone, after)
            found[f"{clamp:g}"] = {
                **{name: x.mean().item() for name, x in zip(STEPS, shares, strict=True)},
                "S": scores.S, "ES": scores.mean("ES"),
            }  # fmt: skip
        return {"facts": len(requests), "clamps": found}

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def said(
    at: Bench, requests: Sequence[Request], layer: int, v: Float[Tensor, "N D"] | None
) -> Float[Tensor, " N"]:
    """exp of the mean log-probability of a target token, over all contexts of a request.

    v: what the feed-forward of `layer` puts out at the subject's last token instead; None: what it does.
    """
    of = editing.contexts(at.tok, requests, at.templates)
    each = [(i, row, begin, last) for i, c in enumerate(of)
            for row, begin, last in zip(c.rows, c.begins, c.subjects, strict=True)]  # fmt: skip
    owner = torch.tensor([i for i, *_ in each])
    losses = []
    with evaluating(at.model) as device:
        for start in range(0, len(each), 256):
            part = each[start : start + 256]
            ids, mask = (x.to(device) for x in padded([row for _, row, _, _ in part]))
            targets = torch.full_like(ids, IGNORED)
            for number, (_, row, begin, _) in enumerate(part):
                targets[number, begin - 1 : len(row) - 1] = torch.tensor(row[begin:])
            rows, last = torch.arange(len(part)), torch.tensor([last for *_, last in part])

            def put(out: Tensor, rows: Tensor = rows, last: Tensor = last, begin: int = start) -> Tensor:
                if v is None:
                    return out
                changed = out.clone()
                changed[rows, last] = v[owner[begin : begin + len(rows)]].to(out)
                return changed

            with trace.replace(at.model, {Memories(at.model).down_path(layer): put}):
                found = token_losses(logits_of(at.model, {"input_ids": ids, "attention_mask": mask}), targets)
            losses.append(found.double().sum(1) / (targets != IGNORED).sum(1))
    by_row = torch.cat(losses).cpu()
    total = torch.zeros(len(requests), dtype=torch.float64).index_add(0, owner, by_row)
    return (-total / torch.bincount(owner)).exp()


# ---------------------------------------------------------------------- rows and numbers
def finished(store: Store, scale: str) -> list[Row]:
    """The rows of a scale, one a seed, if all are there."""
    made = field.settings(store, scale)
    if "PMET" not in made:
        return []
    z = field.sizes(scale)
    rows = [store.find(STUDY, VERSION, settings(z, made, seed=seed), recorded=True) for seed in z.seeds]
    return [] if None in rows else [row for row in rows if row is not None]


def table(lab: Lab, z: Field, made: Settings, benches: Benches) -> list[Row]:
    """The rows, one a seed, recorded; computed as `grids.table` does."""
    at = grids.reading(lab, benches)
    asked = [settings(z, made, seed=seed) for seed in z.seeds]
    return [lab.store.find(STUDY, VERSION, s, recorded=True) or run(at, s) for s in asked]


def results(store: Store, scale: str) -> dict[str, Result]:
    """Means over seeds: `pmet.1.both`, `pmet.6.written`, by clamp, in %."""
    rows = finished(store, scale)
    found: dict[str, tuple[float | int, str, Row]] = {}
    for name in rows[0].values["clamps"] if rows else ():
        for step in (*STEPS, "S"):
            mean = sum(row.values["clamps"][name][step] for row in rows) / len(rows)
            value = mean if step == "S" else 100 * mean
            found[f"pmet.{name}.{step}"] = (value, "%", rows[0])
    return told(found)
