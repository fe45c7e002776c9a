"""Chapter 09: how alike importances of units are, beside what unrelated ones would have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from kemem.continual import Units
from kemem.continual.importance import normalised
from kemem.studies.looking import mean


def likeness(found: Sequence[Units], site: str) -> dict[str, float]:
    """How alike importances of one site are: mean cosine over pairs, what unrelated ones would have, and ranks.

    raw: of the scores as they are; paper_abs, tanh_clip: normalised. unrelated: the mean of the same over all ways to
    shuffle each of them within its layers. rank: mean rank correlation within layers, of unrelated ones 0.
    """
    told: dict[str, float] = {}
    for name in ("raw", "paper_abs", "tanh_clip"):
        scores = [
            getattr(units if name == "raw" else normalised(units, name), site).cpu().double()
            for units in found
        ]
        told[name] = mean_cosine(scores)
        told[f"{name}, unrelated"] = unrelated_cosine(scores)
    told["rank"] = mean(
        within(a, b) for a, b in combinations([getattr(units, site).cpu() for units in found], 2)
    )
    return told


def cosine(a: Float[Tensor, "L U"], b: Float[Tensor, "L U"]) -> float:
    """Of all units of a site as one vector; 0 where one of them is 0."""
    return float(nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def mean_cosine(scores: Sequence[Float[Tensor, "L U"]]) -> float:
    """Over all pairs, which is also the mean over domains of the mean with the others."""
    return mean(cosine(a, b) for a, b in combinations(scores, 2))


def unrelated_cosine(scores: Sequence[Float[Tensor, "L U"]]) -> float:
    """The mean of `mean_cosine` over all shuffles of each within its layers, which leave lengths as they are.

        E[a . b] = sum_l U mean_l(a) mean_l(b)

    So scores that are nowhere negative agree without being related, and a layer that is large in both adds to it.
    """
    flat = [score.mean(-1, keepdim=True).expand_as(score) for score in scores]
    return mean(
        float((flat[i] * flat[j]).sum() / (scores[i].norm() * scores[j].norm()).clamp(min=1e-300))
        for i, j in combinations(range(len(scores)), 2)
    )


def within(a: Float[Tensor, "L U"], b: Float[Tensor, "L U"]) -> float:
    """Spearman's rank correlation of the units of a layer, mean over the layers in which it is defined."""
    found = [
        float(stats.spearmanr(x, y).statistic)
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
        if len(set(x)) > 1 and len(set(y)) > 1
    ]
    return mean(found) if found else 0.0


def shuffled(
    scores: Sequence[Float[Tensor, "L U"]], count: int, generator: torch.Generator
) -> Float[Tensor, " count"]:
    """`mean_cosine` after each score is shuffled within its layers by itself, `count` times."""
    whole = torch.stack([score / score.norm().clamp(min=1e-300) for score in scores]).double()  # [N L U]
    order = torch.rand(count, *whole.shape, generator=generator).argsort(-1)
    mixed = whole.expand(count, *whole.shape).gather(-1, order).flatten(2).sum(1)  # [count L*U]
    n = len(scores)
    own = float((whole**2).sum())
    return ((mixed**2).sum(-1) - own) / (n * (n - 1))


def beaten(scores: Sequence[Tensor], count: int, generator: torch.Generator) -> dict[str, float]:
    """Of normalised heads: quantiles of the shuffled mean cosine, and the share of draws that reach the real one."""
    masks = [normalised(Units(score, score, score), "paper_abs").heads for score in scores]
    drawn, real = shuffled(masks, count, generator), mean_cosine(masks)
    low, high = (float(drawn.quantile(q)) for q in (0.025, 0.975))
    return {"low": low, "high": high, "reached": float((drawn >= real - 1e-12).double().mean())}


def differing(found: Mapping[str, float]) -> dict[str, float]:
    """Likeness with what is left of it when that of unrelated scores is taken off."""
    names = [name for name in found if f"{name}, unrelated" in found]
    return {**found, **{f"{name}, more": found[name] - found[f"{name}, unrelated"] for name in names}}
