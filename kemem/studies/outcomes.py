"""What a run of continual learning came to, from its row: K, P, A and F, and what goes with them over stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scipy import stats

from kemem import entropy
from kemem.runs import Row
from kemem.studies import findings

LARGEST = 1 - 1e-12  # of a correlation that is transformed


def knowledge(
    row: Row, when: str, *, group: str = "all", kind: str = "all", reduction: str = "target_mean"
) -> float:
    """K "before" or "after" the run, nats a target token."""
    step = {"before": 0, "after": row.values["steps"]}[when]
    return next(
        r[reduction]
        for r in row.values["probes"]
        if (r["step"], r["group"], r["kind"]) == (step, group, kind)
    )


def performance(row: Row, when: str) -> float:
    """P "before" or "after": mean over kinds of questions of the share answered right."""
    tasks = row.values[when]["tasks"]
    return sum(tasks.values()) / len(tasks)


def own_loss(at: Mapping[str, Any]) -> float:
    """Loss on the model's own world, or where it has read of none on the first part of its own text."""
    loss = at["loss"]
    return float(loss["world"] if "world" in loss else next(iter(loss.values())))


def acquired(row: Row, **of: str) -> float:
    """A of a run, a fraction of |K before|."""
    return entropy.acquisition(knowledge(row, "before", **of), knowledge(row, "after", **of))


def forgot(row: Row) -> float | None:
    """F of a run, a fraction of P before; None for a model that answered nothing."""
    before, after = (performance(row, when) for when in ("before", "after"))
    return entropy.forgetting(before, after) if before else None


def correlations(models: dict[int, list[Row]]) -> dict[str, dict[str, findings.Change | None]]:
    """Pearson's r over the stages of a model, of entropy, stage and loss with A and F: mean over models, interval.

    None where no model has three stages that were all measured.
    """
    sources = {
        "entropy H": lambda row: row.values["before"]["entropy"],
        "stage": lambda row: row.settings["step"],
        "loss on its own world": lambda row: own_loss(row.values["before"]),
    }
    found: dict[str, dict[str, findings.Change | None]] = {}
    for name, read_ in sources.items():
        found[name] = {}
        for target, of in (("A", acquired), ("F", forgot)):
            each = [
                float(stats.pearsonr([read_(r) for r in rows], [of(r) for r in rows]).statistic)
                for rows in models.values()
                if len(rows) > 2 and all(of(r) is not None for r in rows)
            ]
            found[name][target] = _mean_correlation(each) if each else None
    return found


def _mean_correlation(each: list[float]) -> findings.Change:
    """Mean and interval of correlations by Fisher's z = artanh r, so that both stay within -1 and 1."""
    z = findings.change([math.atanh(min(max(r, -LARGEST), LARGEST)) for r in each])
    low, high = (None if end is None else math.tanh(end) for end in (z.low, z.high))
    return findings.Change(math.tanh(z.mean), low, high, z.seeds)
