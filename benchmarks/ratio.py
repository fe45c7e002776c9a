"""How a ratio is taken and shown."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PAIRS = 11


@dataclass(frozen=True)
class Ratio:
    """A ratio with its bound. values: one a repeat; their median is what is held against the bound."""

    name: str
    values: tuple[float, ...]
    bound: float | None  # None: for information
    sense: str  # "at most" or "at least"
    note: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        if self.bound is None:
            return True
        return self.value <= self.bound if self.sense == "at most" else self.value >= self.bound

    def __str__(self) -> str:
        spread = ""
        if len(self.values) > 1:
            spread = f" (of {len(self.values)}: {min(self.values):.3f} to {max(self.values):.3f})"
        note = f"  {self.note}" if self.note else ""
        if self.bound is None:
            return f"{'':6}  {self.name}: {self.value:.3f}{spread}, no bound{note}"
        verdict = "holds" if self.holds else "MISSED"
        return f"{verdict:6}  {self.name}: {self.value:.3f}{spread}, bound {self.sense} {self.bound:g}{note}"


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one call, what it has left to an accelerator included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    first: Callable[[], object], second: Callable[[], object], *, pairs: int = PAIRS, device: str = "cpu"
) -> float:
    """Median over pairs of time(first) / time(second). The order alternates, so that a drift of the machine cancels."""

    first()
    second()
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            divisor = seconds(second, device)
            ratios.append(seconds(first, device) / divisor)
        else:
            dividend = seconds(first, device)
            ratios.append(dividend / seconds(second, device))
    return statistics.median(ratios)
