"""Chapter 09: what DAS is looked at with: a model before any domain and the text of the domains, for all its rows.

Settings of what is looked at at a scale, the model and its domains opened, and how numbers are averaged and kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from kemem import models
from kemem.continual import Held
from kemem.corpora import pack
from kemem.objective import Objective
from kemem.runs import Row
from kemem.studies import budget, checkpoints, courses
from kemem.studies.lab import Lab
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import objective

SCALES = budget.SCALES
MODELS = {"masked": True, "causal": False}
"""The paper's kind of model first."""
HOW = ("tanh_clip", "paper_abs", "rank")


@dataclass(frozen=True)
class Looking:
    """A model before any domain, and the text of the domains: as many rows of each as the courses learn from."""

    model: Pretraining
    step: int
    domains: tuple[str, ...]
    length: int = 96
    rows: int = 640
    dtype: str | None = None
    seed: int = 0
    sized: ClassVar[dict[str, dict[str, Any]]] = {}
    """What is other than these at a scale."""


SEEDS = {"smoke": (0,), "paper": (0, 1, 2)}  # else those of the comparison
Kind = TypeVar("Kind", bound=Looking)


def settings(
    kind: type[Kind],
    scale: str,
    *,
    masked: bool,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    **changes: Any,
) -> Kind:
    """What is looked at with one of MODELS; device: of `budget.sizes`. changes of None are left out."""
    base = budget.sizes(scale, masked=masked, device=device).base
    asked = {name: value for name, value in changes.items() if value is not None}
    return kind(
        base.model, base.step, base.domains, length=base.length, dtype=dtype or base.dtype, seed=seed,
        **{**kind.sized.get(scale, {}), **asked},
    )  # fmt: skip


def seeds(scale: str) -> tuple[int, ...]:
    return SEEDS.get(scale) or budget.sizes(scale).seeds


@dataclass(frozen=True)
class Opened:
    """A model with its objective, and its domains in tokens."""

    model: nn.Module
    goal: Objective
    domains: list[Held]


def opened(
    lab: Lab,
    s: Looking,
    provenance: dict[str, Any],
    *,
    count: int | None = None,
    test_tokens: int | None = None,
) -> Opened:
    """count: of domains, from the first; None: all. test_tokens: of each domain's test text; None: one row."""
    model, tok, found = checkpoints.load(lab, s.model, s.step, dtype=s.dtype)
    provenance["checkpoints"] = found.origin
    tokens = test_tokens or s.length
    domains, texts = [], {}
    for spec in s.domains[:count]:
        text = courses.source(spec, "test")
        texts[spec] = {"digest": text.corpus.digest, "versions": text.corpus.versions}
        train_rows = pack(text.corpus.part("train"), tok, s.length, limit_tokens=s.rows * s.length)
        test_rows = pack(text.corpus.part("test"), tok, s.length, limit_tokens=tokens)
        domains.append(Held(text.name, train_rows, test_rows))
    provenance["corpus"] = texts
    return Opened(model, objective(s.model.setup, tok), domains)


def row(
    lab: Lab,
    study: str,
    version: int,
    s: Looking,
    compute: Callable[[dict[str, Any]], Any],
    *,
    recorded: bool = False,
) -> Row:
    place = models.named_device(lab.device).type
    return lab.store.row(study, version, s, compute, recorded=recorded, device=place)


def rounded(found: Tensor) -> Any:
    """As lists of numbers of four digits, which is what a picture can show."""
    if found.ndim:
        return [rounded(each) for each in found]
    return float(f"{float(found):.4g}")


def mean(found: Iterable[float]) -> float:
    every = list(found)
    return math.fsum(every) / len(every)


def origin(row: Row) -> dict[str, Any]:
    return {"study": row.study, "digest": row.digest, "origin": row.origin, **row.provenance}
