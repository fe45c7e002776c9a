"""Whether some quantity, or a rule fitted on half of the cases, tells a response: ranks, ridge, and what chance does.

Plain float64 arithmetic on a handful of cases, such as relations; nothing is drawn but by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray
LARGEST = 1 - 1e-12  # of a correlation that is transformed
LEAST = 4  # cases: two to fit a rule on, two to try it on


def correlation(
    x: Sequence[float] | Array, y: Sequence[float] | Array
) -> tuple[float, float | None, float | None]:
    """Spearman's rank correlation and its 95 % interval, by Fisher's z with variance (1 + r^2 / 2) / (n - 3).

    Bonett and Wright 2000. 0 where one of them does not vary; no interval of fewer than five points.
    """
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0, None, None
    r = float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    if len(x) < 5:
        return r, None, None
    z, half = math.atanh(min(max(r, -LARGEST), LARGEST)), 1.96 * math.sqrt((1 + r * r / 2) / (len(x) - 3))
    return r, math.tanh(z - half), math.tanh(z + half)


def strongest(X: Array, y: Array, *, shuffles: int = 2000, seed: int = 0) -> tuple[int, float]:
    """Column with the largest |rank correlation|, and how often one of the columns is as strong by chance (p).

    Against responses dealt out at random among the cases, the strongest column of each: so many predictors are
    paid for.
    """
    draw = np.random.default_rng(seed)
    dealt = np.stack([y, *(draw.permutation(y) for _ in range(shuffles))], 1)  # [R 1+shuffles]
    found = np.abs(_standard(stats.rankdata(X, axis=0)).T @ _standard(stats.rankdata(dealt, axis=0))) / len(y)
    best = found.max(0)
    return int(found[:, 0].argmax()), float(np.mean(best >= best[0] - 1e-12))


def fitted(X: Array, Y: Array, penalty: float) -> Callable[[Array], Array]:
    """Ridge regression of columns Y on standardised X: |y - m - Z b|^2 + penalty n |b|^2 at its least."""
    mean, spread = X.mean(0), X.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    Z = (X - mean) / spread
    b = np.linalg.solve(Z.T @ Z + penalty * len(Z) * np.eye(Z.shape[1]), Z.T @ (Y - Y.mean(0)))
    return lambda new: Y.mean(0) + (new - mean) / spread @ b


def halved(X: Array, Y: Array, *, times: int, penalty: float, seed: int) -> tuple[Array, Array]:
    """R^2 and rank correlation [times S] on the half that was not fitted, for each of S columns of Y.

    R^2 = 1 - |y - guess|^2 / |y - mean of the fitted half|^2, so below 0 where the rule is worse than that mean.
    """
    draw = np.random.default_rng(seed)
    fits, ranks = [], []
    for _ in range(times):
        order = draw.permutation(len(X))
        a, b = order[: len(X) // 2], order[len(X) // 2 :]
        guess = fitted(X[a], Y[a], penalty)(X[b])
        base, left = ((Y[b] - Y[a].mean(0)) ** 2).sum(0), ((Y[b] - guess) ** 2).sum(0)
        fits.append(1 - left / np.where(base > 0, base, np.inf))
        both = (_standard(stats.rankdata(each, axis=0)) for each in (guess, Y[b]))
        ranks.append(np.prod(list(both), axis=0).mean(0))
    return np.stack(fits), np.stack(ranks)


def explained(
    X: Array, y: Array, *, times: int = 200, shuffles: int = 500, penalty: float = 0.3, seed: int = 0
) -> dict[str, Any]:
    """Whether a rule fitted on half of the cases holds for the others, against responses dealt out at random.

    R2, rank: over all halvings, by the true responses; the first halving is the one that was fixed beforehand.
    chance: the medians with responses dealt out at random; p: the share of them as high as the true median.
    """
    draw = np.random.default_rng(seed)
    dealt = np.stack([y, *(draw.permutation(y) for _ in range(shuffles))], 1)
    found = {}
    for name, own in zip(
        ("R2", "rank"), halved(X, dealt, times=times, penalty=penalty, seed=seed), strict=True
    ):
        middle = np.median(own, axis=0)
        found[name] = {
            "first": float(own[0, 0]), "halves": own[:, 0].tolist(), "median": float(middle[0]),
            "chance": middle[1:].tolist(), "p": float(np.mean(middle >= middle[0] - 1e-12)),
        }  # fmt: skip
    return found


def _standard(x: Array) -> Array:
    """Columns of mean 0 and mean square 1; 0 where they do not vary."""
    centred = x - x.mean(0)
    spread = x.std(0)
    return centred / np.where(spread > 0, spread, 1.0)
