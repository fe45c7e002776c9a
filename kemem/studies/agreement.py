"""Whether two measures of memories agree though neither is exact: ranks within layers, over draws of the data.

A measure is one number a memory and draw, [S L M], the draws independent of each other. Two measures are always
compared across draws: on one draw they would share its accidents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

Array = np.ndarray
LEAST = 1e-6  # of a reliability that something is divided by


@dataclass(frozen=True)
class Agreement:
    """How two measures agree: means over layers, and by layer.

    raw: mean rank correlation of one on a draw with the other on another draw. ceiling: the most that could be seen,
    sqrt(r_a r_b), r the same of a measure with itself. corrected: raw / ceiling (Spearman 1904). Of error-free
    measures it is the correlation; of estimates it may leave [-1, 1]. low, high: its 95 % interval by leaving out one
    draw at a time. None where a measure does not tell memories apart in some layer.
    """

    raw: float
    ceiling: float | None
    corrected: float | None
    low: float | None
    high: float | None
    layers: tuple[float | None, ...]
    """corrected, by layer."""


def standardised(found: Tensor) -> Array:
    """Ranks within layers, ties at their mean, with mean 0 and mean square 1; 0 where all are equal. [S L M]"""
    ranks = stats.rankdata(found.double().cpu().numpy(), axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    spread = np.sqrt((ranks**2).mean(-1, keepdims=True))
    return np.where(spread > 0, ranks / np.where(spread > 0, spread, 1.0), 0.0)


def across(a: Array, b: Array) -> Array:
    """Spearman's rank correlation of draw s of one and draw t of the other, by layer, [L S S]; of `standardised`."""
    return np.einsum("slm,tlm->lst", a, b) / a.shape[-1]


def agreement(a: Tensor, b: Tensor) -> Agreement:
    """Of two measures [S L M] over the same draws."""
    x, y = standardised(a), standardised(b)
    pairs = [across(*each) for each in ((x, y), (x, x), (y, y))]
    draws = a.shape[0]
    raw, rel_a, rel_b = (_apart(each, range(draws)) for each in pairs)
    layers = _corrected(raw, rel_a, rel_b)
    known = [value for value in layers if value is not None]
    if len(known) < len(layers):
        return Agreement(float(raw.mean()), None, None, None, None, layers)
    value = math.fsum(known) / len(known)

    def without(draw: int) -> float:
        rest = [d for d in range(draws) if d != draw]
        found = [v for v in _corrected(*(_apart(each, rest) for each in pairs)) if v is not None]
        return math.fsum(found) / len(found) if found else value

    low, high = interval(value, without, draws)
    ceiling = float(np.sqrt(rel_a * rel_b).mean())
    return Agreement(float(raw.mean()), ceiling, value, low, high, layers)


def interval(value: float, without: Callable[[int], float], draws: int) -> tuple[float | None, float | None]:
    """95 % interval by the jackknife: without(d) is the estimate that draw d has no part in. None of two draws."""
    if draws < 3:
        return None, None
    left = np.array([without(draw) for draw in range(draws)])
    error = math.sqrt((draws - 1) / draws * float(((left - left.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, draws - 1)) * error
    return value - half, value + half


def reliability(found: Tensor) -> list[float]:
    """Mean rank correlation of a measure with itself on another draw, by layer."""
    own = standardised(found)
    return _apart(across(own, own), range(found.shape[0])).tolist()


def partial(xy: float, xz: float, yz: float) -> float | None:
    """Correlation of x and y with what both share with z taken out; None where z leaves nothing of one of them."""
    left = (1 - xz * xz) * (1 - yz * yz)
    return (xy - xz * yz) / math.sqrt(left) if left > LEAST else None


def top(found: Tensor, share: float) -> Tensor:
    """Of each layer the memories with the largest values, that share of them and at least one, as a mask [.. L M]."""
    count = max(1, round(share * found.shape[-1]))
    chosen = found.topk(count, -1).indices
    return found.new_zeros(found.shape).scatter(-1, chosen, 1.0).bool()


def shared(a: Tensor, b: Tensor, share: float) -> float:
    """Share of the top memories of one that are also among the top of the other, across draws [S L M].

    By chance it is `share` itself; of a measure with itself on other draws it says how well its top is known.
    """
    one, other = top(a, share), top(b, share)
    draws = range(a.shape[0])
    each = [float((one[s] & other[t]).sum() / one[s].sum()) for s in draws for t in draws if s != t]
    return math.fsum(each) / len(each)


def _apart(pairs: Array, draws: Sequence[int]) -> Array:
    """Mean over pairs of different draws, by layer."""
    return np.mean([pairs[:, s, t] for s in draws for t in draws if s != t], axis=0)


def _corrected(raw: Array, rel_a: Array, rel_b: Array) -> tuple[float | None, ...]:
    return tuple(
        float(r / math.sqrt(a * b)) if min(a, b) > LEAST else None
        for r, a, b in zip(raw, rel_a, rel_b, strict=True)
    )
