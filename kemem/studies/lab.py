"""What a study needs from the place it runs in: a run store, a device, somewhere to show progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kemem.errors import BadInput
from kemem.runs import Store

SCALES = ("smoke", "laptop", "gpu", "paper")
Progress = Callable[[int, int, str], None]  # (done, total, message)


@dataclass(frozen=True)
class Lab:
    """One run of one chapter. `root` is the checkout: rows of other scales and shipped checkpoints are below it.

    device and dtype are names ("auto", "float32"); retrain = True ignores shipped checkpoints.
    """

    scale: str
    store: Store
    root: Path
    device: str = "auto"
    dtype: str | None = None
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
