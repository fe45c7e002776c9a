"""What makes two runs the same run: recipe, data, first weights, method. Compared before one is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kemem.errors import BadInput
from kemem.objective import Objective
from kemem.training.method import Method, settings
from kemem.training.recipe import Recipe, Rows

WITHOUT_EFFECT = ("save_every",)  # on what the run computes or leaves behind


def identity(
    recipe: Recipe,
    domain: str,
    data: Rows,
    objective: Objective,
    method: Method,
    *,
    start: str,
    processes: int,
) -> dict[str, Any]:
    """The settings of a run as JSON, with fingerprints of its first weights and of three rows of its data."""
    numbers = {name: value for name, value in asdict(recipe).items() if name not in WITHOUT_EFFECT}
    rows = torch.tensor(sorted({0, len(data) // 2, len(data) - 1}))
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in numbers.items()},
        "domain": domain,
        "rows": len(data),
        "data": fingerprint(data.batch(rows).items()),
        "first weights": start,
        "objective": repr(objective),
        "method": type(method).__qualname__,
        **{f"method.{name}": value for name, value in settings(method).items()},
        "processes": processes,
    }


def same(there: Mapping[str, Any], here: Mapping[str, Any], out: Path) -> None:
    """Refuses a folder whose state belongs to another run."""
    there = {"optimizer": "adamw", **there}  # runs saved before there was a choice had this one
    differing = sorted(name for name in {**there, **here} if there.get(name) != here.get(name))
    if differing:
        what = ", ".join(f"{name} ({there.get(name)!r} there, {here.get(name)!r} now)" for name in differing)
        raise BadInput(
            f"expected {out} to be empty or to hold this very run; it holds another: {what}; "
            "choose another folder or delete this one."
        )


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """16 hexadecimal digits of the names, shapes and bytes of some tensors."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
