"""Chapter 12, one fact closely: how its target is found, step by step, and how its key depends on the context.

One row: the search with the clamp and without, what is said before and after, cosines of keys, targets found in one
batch against those found one by one, and MEMIT's update as ROME's shrunk one on the model's own keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import editing, evaluation, models
from kemem.editing import MEMIT, Request, Search
from kemem.editing.generation import greedy
from kemem.editing.places import leading
from kemem.editing.prompts import Contexts, shares
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import factual, single_edits
from kemem.studies.association import VANISHING, relative, shrinkage, told
from kemem.studies.bench import Bench, known, opened
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.single_edits import Edits, context_keys, maker

STUDY, VERSION = "one_target", 1
CHAPTER = "12_one_fact"


@dataclass(frozen=True)
class Target:
    """One fact looked at closely, and the target vectors of `requests` facts found together and one by one."""

    edits: Edits
    weight: float = 50.0
    steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 20, 25)
    """After how many passes the search is looked at."""
    requests: int = 24
    fact: int = 0
    tokens: int = 10
    """Of a continuation."""
    seed: int = 0


SIZES: dict[str, dict[str, Any]] = {"smoke": {"requests": 5}, "gpu": {"requests": 64}}


def settings(
    scale: str, *, seed: int = 0, weight: float | None = None, dtype: str | None = None,
    model: Pretraining | None = None,
) -> Target:  # fmt: skip
    """weight: lambda of the edit that is looked at, by default the middle one of those that are tried."""
    of = single_edits.settings(scale, seed=seed, dtype=dtype, model=model)
    return Target(
        of, of.weights[len(of.weights) // 2] if weight is None else weight, seed=seed, **SIZES.get(scale, {})
    )


def run(lab: Lab, s: Target) -> Row:
    """The row: a search step by step, what is said before and after, keys over contexts; and what claims 18, 19 ask."""

    def compute(_: dict[str, Any]) -> dict[str, Any]:
        at = opened(
            lab, s.edits.model, s.edits.layers, texts=s.edits.texts, dtype=s.edits.dtype, seed=s.edits.seed
        )
        layer = s.edits.layers[-1]
        requests, _count = known(at, "reported", s.edits.asked[1], s.requests, seed=s.seed)
        r, memories = requests[s.fact], Memories(at.model)
        of = editing.contexts(at.tok, requests, at.templates)
        keys = [context_keys(at, c, layer) for c in of]
        bare = torch.stack([own[0] for own in keys])
        searches = {"clamped": Search().clamp, "free": math.inf}
        kinds = {str(next(at.model.parameters()).dtype).removeprefix("torch."), "float64"}
        return {
            "subject": r.subject, "prompt": r.text, "true": r.true, "new": r.new, "templates": list(at.templates),
            "search": {
                name: steps(memories, of[s.fact], layer, Search(clamp=clamp), s.steps)
                for name, clamp in searches.items()
            },
            "texts": said(at, r, MEMIT((layer,), s.weight), s.tokens),
            "cosines": cosines(keys[s.fact]), "other_subjects": cosines(bare),
            "together": {name: together(at.model, of, layer, getattr(torch, name)) for name in sorted(kinds)},
            **identities(at, of, layer, s.weight),
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def steps(
    memories: Memories, of: Contexts, layer: int, search: Search, counts: Sequence[int]
) -> list[dict[str, float | int]]:
    """The search as it is after some passes, until it stops by itself; length: |delta| / |h|."""
    path: list[dict[str, float | int]] = []
    for count in counts:
        found = editing.values(memories, [of], layer, replace(search, steps=count))
        length = (found.z - found.origin).norm() / found.origin.norm()
        path.append({
            "passes": int(found.passes), "loss": found.losses.item(), "probability": found.probability.item(),
            "length": length.item(),
        })  # fmt: skip
        if found.passes.item() < count:
            break
    return path


def said(at: Bench, r: Request, editor: MEMIT, tokens: int) -> list[dict[str, str]]:
    """How the model goes on by itself from the prompt, its paraphrases and a neighbour, before and after the edit."""
    prompts = [
        ("prompt", r.text),
        *(("paraphrase", text) for text in r.paraphrases),
        ("neighbour", r.neighbours[0]),
    ]
    start = leading(at.tok)
    rows = [evaluation.encode(at.tok, text, f" {r.new}", start=start).prompt for _, text in prompts]

    def written() -> list[str]:
        return [at.tok.decode(own) for own in greedy(at.model, rows, [tokens] * len(rows))]

    before = written()
    with maker(at, editor)(r).applied(at.model):
        after = written()
    return [
        {"kind": kind, "prompt": text, "before": b, "after": a}
        for (kind, text), b, a in zip(prompts, before, after, strict=True)
    ]


def cosines(rows: Float[Tensor, "N M"]) -> list[list[float]]:
    unit = rows / rows.norm(dim=1, keepdim=True)
    return (unit @ unit.T).tolist()


def together(model: nn.Module, of: Sequence[Contexts], layer: int, dtype: torch.dtype) -> dict[str, Any]:
    """Targets found alone against those found in one batch, and in one of the reverse order: |z - z'| / |z'| of each.

    stops: share of requests that take as many passes alone as in the batch.
    """
    usual = next(model.parameters()).dtype
    try:
        memories = Memories(model.to(dtype))
        alone = [editing.values(memories, [c], layer) for c in of]
        batch = editing.values(memories, of, layer, batch_size=len(of))
        turned = editing.values(memories, of[::-1], layer, batch_size=len(of)).z.flip(0)
    finally:
        model.to(usual)
    same = [a.passes.item() == b for a, b in zip(alone, batch.passes.tolist(), strict=True)]
    return {
        "batched": [relative(z, a.z[0]) for z, a in zip(batch.z, alone, strict=True)],
        "reversed": [relative(z, b) for z, b in zip(turned, batch.z, strict=True)],
        "stops": sum(same) / len(same),
    }  # fmt: skip


def identities(at: Bench, of: Sequence[Contexts], layer: int, weight: float) -> dict[str, list[float]]:
    """On the model's own keys and moments, of each request: MEMIT's update from ROME's shrunk one, and what the key
    misses of its target at a vanishing weight, relative to what it lacked."""
    memories, found = Memories(at.model), editing.values(Memories(at.model), of, layer)
    C, factor = at.moments[layer], at.moments.factor(layer)
    values: dict[str, list[float]] = {"identity": [], "vanishing": [], "sizes": []}
    share = shares(len(at.templates))
    for c, z, h in zip(of, found.z.double(), found.origin.double(), strict=True):
        k, lacking = context_keys(at, c, layer).T @ share.to(C)[:, None], (z - h)[:, None]
        size = (k.T @ torch.linalg.solve(C, k)).item()
        soft = editing.closed_form(k, lacking, C, weight=weight)
        values["identity"].append(relative(soft, shrinkage(size, weight) * editing.equality(k, lacking, C)))
        nearly = editing.closed_form(k, lacking, C, weight=VANISHING, factor=factor)
        values["vanishing"].append(relative(nearly @ k, lacking))
        values["sizes"].append(size / memories.count)
    return values


def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of the scale's row, by name, where it is finished."""
    row = store.find(STUDY, VERSION, settings(scale)) if scale in factual.SCALES else None
    if row is None:
        return {}
    found: dict[str, tuple[float | int, str, Row]] = {}
    v = row.values
    for name, path in v["search"].items():
        found[f"target.{name}.passes"] = (len(path), "passes", row)
        found[f"target.{name}.length"] = (path[-1]["length"], "", row)
        found[f"target.{name}.probability"] = (100 * path[-1]["probability"], "%", row)
    found["target.before"] = (100 * v["search"]["clamped"][0]["probability"], "%", row)
    found["target.cosine.contexts"] = (_apart(v["cosines"]), "", row)
    found["target.cosine.prefixed"] = (_apart([row[1:] for row in v["cosines"][1:]]), "", row)
    found["target.cosine.bare"] = (math.fsum(v["cosines"][0][1:]) / len(v["cosines"][0][1:]), "", row)
    found["target.cosine.subjects"] = (_apart(v["other_subjects"]), "", row)
    found["target.size"] = (math.fsum(v["sizes"]) / len(v["sizes"]), "", row)
    for name in ("identity", "vanishing"):
        found[f"target.{name}"] = (max(v[name]), "", row)
    for dtype, own in v["together"].items():
        found[f"target.{dtype}.largest"] = (max(own["batched"] + own["reversed"]), "", row)
        found[f"target.{dtype}.stops"] = (100 * own["stops"], "%", row)
    return told(found)


def _apart(table: Sequence[Sequence[float]]) -> float:
    """Mean cosine of different rows."""
    others = [c for i, row in enumerate(table) for j, c in enumerate(row) if i != j]
    return math.fsum(others) / len(others)
