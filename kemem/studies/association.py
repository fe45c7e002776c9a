"""Chapter 12, a memory of pairs: a matrix that stores random pairs by least squares, and one pair more.

By weight what the new pair still misses and what it costs old ones, for MEMIT, ROME and a gradient step. What the
chapter's other rows need of the algebra stands here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kemem import editing
from kemem.runs import Row, Store
from kemem.studies.lab import Lab, Result

STUDY, VERSION = "association", 1
CHAPTER = "12_one_fact"
VANISHING = 1e-9  # a weight of the old memory that leaves it next to nothing


@dataclass(frozen=True)
class Association:
    """A matrix that stores random pairs by least squares, and one pair more; `draws` times. Sizes are as in a layer."""

    memories: int = 64
    width: int = 24
    old: int = 512
    weights: tuple[float, ...] = tuple(10.0**power for power in range(-2, 7))
    portions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    """How much of what the new pair lacks a gradient step takes away."""
    draws: int = 5
    seed: int = 0


def settings(scale: str, *, seed: int = 0) -> Association:
    """The same at every scale: it takes a second."""
    return Association(seed=seed)


def remembered(keys: Float[Tensor, "M N"], values: Float[Tensor, "D N"]) -> Float[Tensor, "D M"]:
    """The matrix that maps keys to values with the least squares of error: W K K^T = V K^T."""
    return torch.linalg.solve(keys @ keys.T, keys @ values.T).T


def pairs(s: Association, draw: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old keys [M N] and values [D N], a new key [M 1] and value [D 1]. Coordinates of keys differ in size."""
    generator = torch.Generator().manual_seed(1000 * s.seed + draw)
    sizes = torch.arange(1, s.memories + 1, dtype=torch.float64)[:, None].rsqrt()
    keys = sizes * torch.randn(s.memories, s.old + 1, generator=generator, dtype=torch.float64)
    values = torch.randn(s.width, s.old + 1, generator=generator, dtype=torch.float64)
    return keys[:, 1:], values[:, 1:], keys[:, :1], values[:, :1]


def run(lab: Lab, s: Association) -> Row:
    """The row: by weight what the new pair still misses and what it costs old ones; ROME's and a gradient step's."""

    def compute(_: dict[str, Any]) -> dict[str, Any]:
        draws = [one_pair(s, draw) for draw in range(s.draws)]
        return {**draws[0], "draws": [draw["checks"] for draw in draws]}

    return lab.store.row(STUDY, VERSION, s, compute)


def one_pair(s: Association, draw: int) -> dict[str, Any]:
    """One new pair. missing: |r - Delta k| / |r|; cost: mean |Delta k_i|^2 over old keys, in units of |r|^2."""
    keys, values, k, v = pairs(s, draw)
    W = remembered(keys, values)
    C = keys @ keys.T / s.old
    lacking = v - W @ k  # r
    rome = editing.equality(k, lacking, C)
    size = (k.T @ torch.linalg.solve(C, k)).item()  # k^T C^-1 k

    def judged(delta: Tensor) -> dict[str, float]:
        missing = ((lacking - delta @ k).norm() / lacking.norm()).item()
        return {
            "missing": missing,
            "cost": ((delta @ keys).square().sum(0).mean() / lacking.square().sum()).item(),
        }

    soft = {weight: editing.closed_form(k, lacking, C, weight=weight) for weight in s.weights}
    step = lacking @ k.T / k.square().sum()
    again = remembered(torch.cat([keys, k], 1), torch.cat([values, v], 1))
    at_count = editing.closed_form(k, lacking, C, weight=float(s.old))
    nearly = editing.closed_form(
        k, lacking, C, weight=VANISHING, factor=torch.linalg.cholesky(C), way="woodbury"
    )
    identity = [relative(delta, shrinkage(size, weight) * rome) for weight, delta in soft.items()]
    return {
        "soft": [
            {"weight": w, "share": shrinkage(size, w), **judged(delta)} for w, delta in soft.items()
        ],
        "rome": judged(rome),
        "gradient": [{"portion": p, **judged(p * step)} for p in s.portions],
        "checks": {
            "size": size, "identity": max(identity), "vanishing": judged(nearly)["missing"],
            "normal": relative(W @ keys @ keys.T, values @ keys.T), "refit": relative(W + at_count, again),
            "gradient": judged(step)["cost"] / judged(rome)["cost"],
        },
    }  # fmt: skip


def shrinkage(size: float, weight: float) -> float:
    """s / (1 + s), s = k^T (lambda C)^-1 k: the share of ROME's update that MEMIT makes; size: k^T C^-1 k."""
    s = size / weight
    return s / (1 + s)


def relative(found: Tensor, wanted: Tensor) -> float:
    """|a - b| / |b|."""
    return ((found - wanted).norm() / wanted.norm()).item()


def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of the scale's row, by name, where it is finished."""
    row = store.find(STUDY, VERSION, settings(scale))
    if row is None:
        return {}
    v = row.values
    found = {"association.rome.cost": (v["rome"]["cost"], "", row)}
    for name in ("identity", "vanishing", "refit"):
        found[f"association.{name}"] = (max(draw[name] for draw in v["draws"]), "", row)
    ratios = [draw["gradient"] for draw in v["draws"]]
    found["association.gradient.least"] = (min(ratios), "", row)
    found["association.gradient.most"] = (max(ratios), "", row)
    return told(found)


def told(found: Mapping[str, tuple[float | int, str, Row]]) -> dict[str, Result]:
    """Each number with its unit and the row it comes from, as prose quotes it."""
    return {
        name: Result(
            value, unit, {"study": row.study, "digest": row.digest, "origin": row.origin, **row.provenance}
        )
        for name, (value, unit, row) in found.items()
    }
