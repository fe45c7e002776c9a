"""What a claim's evidence is: measured quantities, one number a seed. Nothing is judged here, and nothing computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kemem.runs import Row, Store

STAGES = (0.2, 0.5, 0.75, 1.0)
"""Shares of the schedule at which the paper's tables stand (its first is at 16 %; ours are measured every 5 %)."""


@dataclass(frozen=True)
class Evidence:
    """Measured quantities by name, each with one number a seed (or other independent unit), in one order of seeds."""

    on: str
    """What was measured: an arm, a model."""
    series: Mapping[str, tuple[float, ...]]
    unit: str
    rows: tuple[str, ...]
    """Digests of the rows that the numbers were read from."""
    note: str = ""


Reader = Callable[[Store, str], list[Evidence]]
"""(store, scale) -> what its rows say, the main evidence first; empty where rows of the main one are missing."""


def evidence(on: str, found: Sequence[Mapping[str, float]], rows: Sequence[Row], unit: str) -> Evidence:
    """From one mapping a seed. Rows of an older version are said to be such."""
    series = {name: tuple(each[name] for each in found) for name in found[0]}
    note = "from rows of an older version" if any(row.stale for row in rows) else ""
    return Evidence(on, series, unit, tuple(row.digest for row in rows), note)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
