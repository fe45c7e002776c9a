"""The rules of the ledger: what must be true of measured numbers for a claim to hold.

A rule turns measured series into contrasts, numbers that each have a side to lie on; the interval of each contrast
decides. A claim holds when every contrast's 95 % interval lies inside its bounds, fails when one lies wholly outside,
and is undecided otherwise, always so with fewer than three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy import stats

from kemem.studies.findings import Change, change

Series = Mapping[str, Sequence[float]]
LEAST_SEEDS = 3
FALLS, RISES = -1, 1


@dataclass(frozen=True)
class Contrast:
    """One number a seed, and the open range in which the claim says it lies."""

    name: str
    values: tuple[float, ...]
    above: float
    below: float


def _sided(name: str, values: Sequence[float], direction: int) -> Contrast:
    above, below = (0.0, math.inf) if direction > 0 else (-math.inf, 0.0)
    return Contrast(name, tuple(values), above, below)


# Each rule says in `str` what a reader of the table must know of it.
@dataclass(frozen=True)
class Sign:
    """Every quantity lies on one side of zero."""

    direction: int

    def __str__(self) -> str:
        return f"sign: {'above' if self.direction > 0 else 'below'} 0"

    def contrasts(self, series: Series) -> list[Contrast]:
        return [_sided(name, values, self.direction) for name, values in series.items()]


@dataclass(frozen=True)
class Order:
    """Each quantity lies above (or below) the one before it, seed by seed."""

    direction: int

    def __str__(self) -> str:
        return f"order: each {'above' if self.direction > 0 else 'below'} the one before"

    def contrasts(self, series: Series) -> list[Contrast]:
        return [
            _sided(f"{a} to {b}", [y - x for x, y in zip(before, after, strict=True)], self.direction)
            for (a, before), (b, after) in pairwise(series.items())
        ]


@dataclass(frozen=True)
class Trend:
    """Spearman's rank correlation of the quantities with their place, one a seed, has a sign."""

    direction: int

    def __str__(self) -> str:
        return f"trend: {'rises' if self.direction > 0 else 'falls'} along the stages"

    def contrasts(self, series: Series) -> list[Contrast]:
        ranks = [_rank(path) for path in zip(*series.values(), strict=True)]
        return [_sided("rank correlation", ranks, self.direction)]


@dataclass(frozen=True)
class Value:
    """Every quantity lies within a tolerance of a number."""

    target: float
    tolerance: float

    def __str__(self) -> str:
        return f"value: {self.target:g} within {self.tolerance:g}"

    def contrasts(self, series: Series) -> list[Contrast]:
        low, high = self.target - self.tolerance, self.target + self.tolerance
        return [Contrast(name, tuple(values), low, high) for name, values in series.items()]


@dataclass(frozen=True)
class Agreement:
    """Every quantity has the sign that the first has on average."""

    def __str__(self) -> str:
        return "agreement: all in one direction"

    def contrasts(self, series: Series) -> list[Contrast]:
        direction = RISES if math.fsum(next(iter(series.values()))) > 0 else FALLS
        return Sign(direction).contrasts(series)


Rule = Sign | Order | Trend | Value | Agreement


def _rank(path: Sequence[float]) -> float:
    """Rank correlation with the place in the sequence; 0 where all are the same, as no order is seen."""
    return float(stats.spearmanr(range(len(path)), path).statistic) if len(set(path)) > 1 else 0.0


@dataclass(frozen=True)
class Judged:
    """What follows: the verdict, the contrast that decided it, its interval, and of how many it is one."""

    verdict: str
    contrast: str
    found: Change
    contrasts: int


def judge(rule: Rule, series: Series) -> Judged:
    """The verdict of a rule. It names the contrast that fails most clearly, else the one nearest to failing."""
    seen = [(contrast, change(contrast.values)) for contrast in rule.contrasts(series)]
    inside = [_inside(*pair) for pair in seen]
    outside = [_outside(*pair) for pair in seen]
    decisive = min(range(len(seen)), key=inside.__getitem__)
    if min(found.seeds for _, found in seen) < LEAST_SEEDS:
        verdict = "undecided"
    elif max(outside) > 0:
        verdict = "fails"
        decisive = max(range(len(seen)), key=outside.__getitem__)
    else:
        verdict = "holds" if min(inside) > 0 else "undecided"
    contrast, found = seen[decisive]
    return Judged(verdict, contrast.name, found, len(seen))


def _ends(found: Change) -> tuple[float, float]:
    """The interval, or the number itself where one seed gives none."""
    if found.low is None or found.high is None:
        return found.mean, found.mean
    return found.low, found.high


def _inside(contrast: Contrast, found: Change) -> float:
    """How far inside its bounds the whole interval lies; 0 or less where part of it does not."""
    low, high = _ends(found)
    return min(low - contrast.above, contrast.below - high)


def _outside(contrast: Contrast, found: Change) -> float:
    """How far beyond a bound the whole interval lies; 0 or less where it does not."""
    low, high = _ends(found)
    return max(contrast.above - high, low - contrast.below)
