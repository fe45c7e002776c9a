"""Changes over training with their intervals, and what goes with them. The rules of verdicts are in `kemem.claims`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from kemem.runs import Row


@dataclass(frozen=True)
class Change:
    """Mean change over seeds and its 95 % interval (Student's t; None with a single seed)."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:+.3f} (1 seed)"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] ({self.seeds} seeds)"

    def short(self, digits: int = 2, factor: float = 1.0) -> str:
        """For a cell of a table that says elsewhere how many seeds there are. factor: 100 for percent, say."""
        mean, *ends = (
            f"{factor * value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
            for value in (self.mean, self.low, self.high)
            if value is not None
        )
        return f"{mean} [{', '.join(ends)}]" if ends else mean


def change(values: Sequence[float]) -> Change:
    """Mean and 95 % interval of one number a seed."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Change(mean, None, None, n)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return Change(mean, mean - half, mean + half, n)


def falls(found: Change) -> str:
    """holds: the whole interval is below 0; fails: it is above; undecided: it holds 0, or there is one seed only."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "undecided"
    return "holds" if found.high < 0 else "fails"


def late(points: Sequence[dict], key: str, *, start: float = 0.2) -> float:
    """Change of a quantity from the first point at or after `start` of the schedule to the last."""
    last = points[-1]
    first = next(p for p in points if p["step"] >= start * last["step"])
    return last[key] - first[key]


def late_layers(points: Sequence[dict], key: str = "layers", *, start: float = 0.2) -> list[float]:
    last = points[-1]
    first = next(p for p in points if p["step"] >= start * last["step"])
    return [b - a for a, b in zip(first[key], last[key], strict=True)]


FACTORS = {
    "time constants": lambda row: row.values["time_constants"],
    "weight decay": lambda row: row.settings["setup"]["weight_decay"],
    "peak rate": lambda row: row.settings["setup"]["learning_rate"],
    "steps": lambda row: row.settings["setup"]["steps"],
    "final loss": lambda row: row.values["points"][-1]["loss"],
}


def drivers(arms: Mapping[str, Sequence[Row]]) -> dict[str, tuple[float, float]]:
    """Spearman's rank correlation of each factor with the late change of entropy, and its two-sided p value.

    One point an arm, the mean of its seeds: seeds of one arm are no independent evidence on what differs between arms.
    """
    changes = [change([late(row.values["points"], "entropy") for row in rows]).mean for rows in arms.values()]
    found = {}
    for name, read in FACTORS.items():
        values = [math.fsum(map(read, rows)) / len(rows) for rows in arms.values()]
        if len(set(values)) > 1:
            test = stats.spearmanr(values, changes)
            found[name] = (float(test.statistic), float(test.pvalue))
    return found
