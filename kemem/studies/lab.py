"""What a study needs from the place it runs in: a run store, a device, somewhere to show progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kemem.errors import BadInput
from kemem.runs import Row, Store

SCALES = ("smoke", "laptop", "gpu", "paper")
Progress = Callable[[int, int, str], None]  # (done, total, message)


@dataclass(frozen=True)
class Lab:
    """One run of one chapter. `root` is the checkout: rows of other scales and shipped checkpoints are below it.

    device and dtype are names ("auto", "float32"); retrain = True ignores shipped checkpoints. batch_size is how many
    rows go through the model at once, in measuring and in training, where a step's rows are then cut into as many
    micro-batches as that takes; None is each study's own. It changes no result beyond rounding, so no row knows it.
    """

    scale: str
    store: Store
    root: Path
    device: str = "auto"
    dtype: str | None = None
    batch_size: int | None = None
    progress: Progress | None = None
    retrain: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise BadInput(f"scale is one of {', '.join(SCALES)}; got {self.scale!r}.")

    @property
    def replay(self) -> bool:
        return self.store.mode == "replay"

    @property
    def card(self) -> str | None:
        """The device that sizes may depend on; None in replay, which shows what was recorded elsewhere."""
        return None if self.replay else self.device

    def drift(self, row: Row) -> str:
        """How the text of a live row differs from that of the recorded one, for a label; "" where it does not.

        Other versions of the packages have other docstrings. What was never recorded cannot differ.
        """
        recorded = self.recorded(self.scale) if row.origin == "live" else None
        other = recorded and recorded.find(row.study, row.version, row.settings)
        here, there = ((r.provenance.get("corpus") or {}) if r else {} for r in (row, other))
        if not other or here.get("digest") == there.get("digest"):
            return ""
        versions = here.get("versions") or {}
        changed = [
            f"{name} {v}"
            for name, v in sorted(versions.items())
            if (there.get("versions") or {}).get(name) != v
        ]
        return f"other text than recorded ({', '.join(changed) or 'same versions'})"

    @property
    def shipped(self) -> Path:
        """Half-precision checkpoints that are committed with the book."""
        return self.root / "records" / "checkpoints"

    def recorded(self, scale: str) -> Store | None:
        """Read-only rows of another scale, or None where none were recorded. Stale GPU rows are kept and marked."""
        folder = self.root / "records" / scale
        if not folder.is_dir():
            return None
        return Store(self.store.live, folder, mode="replay", keep_stale=scale == "gpu")


@dataclass(frozen=True)
class Result:
    """A number that prose may quote: its value, unit, and the row it comes from."""

    value: float | int | str
    unit: str
    provenance: dict[str, Any]
