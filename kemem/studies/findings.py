"""Verdicts of chapter 03: each is computed from rows by a rule that is written beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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


@dataclass(frozen=True)
class Finding:
    """A claim of the paper (numbered as in chapter 03), what was measured for it, and what follows."""

    claim: str
    statement: str
    measured: str
    verdict: str


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


def _after(rows: Sequence[Row]) -> list[list[dict]]:
    """Points of each seed from 20 % of the schedule on, where the paper's first stage lies."""
    return [
        [p for p in r.values["points"] if p["step"] >= 0.2 * r.values["points"][-1]["step"]] for r in rows
    ]


def decay_findings(base: Sequence[Row]) -> list[Finding]:
    """Claims 1 to 4 on the seeds of the base arm; 1 and 2 as the paper words them, from 20 % of the schedule on."""
    runs = [row.values["points"] for row in base]
    total = change([late(points, "entropy") for points in runs])
    steps = [b["entropy"] - a["entropy"] for points in _after(base) for a, b in pairwise(points)]
    falling = sum(d < 0 for d in steps)
    by_layer = [change(list(deltas)) for deltas in zip(*(late_layers(p) for p in runs), strict=True)]
    most = [min(range(len(d)), key=d.__getitem__) for d in map(late_layers, runs)]
    depth = len(by_layer)
    last = sum(layer == depth - 1 for layer in most)
    attention = change([sum(p[-1]["attention"]) - sum(_first(p)["attention"]) for p in runs])
    token = change([late(points, "next_token") for points in runs])
    every = [falls(c) for c in by_layer]
    return [
        Finding("1a", "knowledge entropy is lower at the end than at 20 % of training", f"{total} nats", falls(total)),
        Finding(
            "1b", "it falls between all consecutive stages from 20 % on", f"{falling} of {len(steps)} steps fall",
            "holds" if falling == len(steps) else "fails",
        ),
        Finding(
            "2a", "it falls in every layer", "; ".join(f"layer {i}: {c.mean:+.3f}" for i, c in enumerate(by_layer)),
            "holds" if set(every) == {"holds"} else "fails" if "fails" in every else "undecided",
        ),
        Finding("2b", "it falls most in the last layer", f"in {last} of {len(most)} seeds", _all(last, len(most))),
        Finding("3", "attention entropy falls too", f"{attention} nats", falls(attention)),
        Finding("4", "next-token entropy falls too", f"{token} nats", falls(token)),
    ]  # fmt: skip


def _first(points: Sequence[dict]) -> dict:
    return next(p for p in points if p["step"] >= 0.2 * points[-1]["step"])


def _all(count: int, of: int) -> str:
    return "holds" if count == of and of > 1 else "fails" if count == 0 and of > 1 else "undecided"


def agreement(claim: str, statement: str, changes: dict[str, float], reference: str) -> Finding:
    """Whether other readings (corpora, coefficients) change in the same direction as the reference one."""
    same = [name for name, d in changes.items() if (d < 0) == (changes[reference] < 0)]
    measured = "; ".join(f"{name}: {d:+.3f}" for name, d in changes.items())
    return Finding(claim, statement, f"{measured} nats", "holds" if len(same) == len(changes) else "fails")


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
