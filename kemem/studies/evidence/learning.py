"""Evidence on continual learning from every stage: chapter 05."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from scipy import stats

from kemem.runs import Row, Store
from kemem.studies import acquiring, outcomes, stages
from kemem.studies.evidence.record import STAGES, Evidence, Reader, evidence, percent


def _from_learning(
    measure: Callable[[dict[float, Row]], dict[str, float] | None], unit: str, store: Store, scale: str
) -> list[Evidence]:
    models = acquiring.finished(store, scale)
    if not models or not set(STAGES) <= set(models[0]):
        return []
    values = [measure(rows) for rows in models]
    if any(value is None for value in values):  # a model that answered nothing has nothing to forget
        return []
    rows = [row for each in models for row in each.values()]
    return [evidence("continual learning of chapter 05", values, rows, unit)]


def acquired_by_stage(rows: dict[float, Row]) -> dict[str, float]:
    """Claim 5: A at the stages of the paper's tables."""
    return {percent(share): 100 * outcomes.acquired(rows[share]) for share in STAGES}


def forgotten_by_stage(rows: dict[float, Row]) -> dict[str, float] | None:
    """Claim 6: F at the stages of the paper's tables."""
    lost = {percent(share): outcomes.forgot(rows[share]) for share in STAGES}
    return None if None in lost.values() else {name: 100 * f for name, f in lost.items() if f is not None}


def _measures(row: Row, when: str) -> dict[str, float]:
    """K in nats a token, and P as a share."""
    return {"K": outcomes.knowledge(row, when), "P": outcomes.performance(row, when)}


def ends_by_stage(rows: dict[float, Row]) -> dict[str, float]:
    """Claim 7: K and P at the end from a middle stage less the first and the last, and first less last."""
    first, middle, last = (_measures(rows[share], "after") for share in (STAGES[0], STAGES[1], STAGES[-1]))
    pairs = {
        "middle less first": (middle, first),
        "middle less last": (middle, last),
        "first less last": (first, last),
    }
    return {f"{of}, {name}": a[of] - b[of] for of in first for name, (a, b) in pairs.items()}


def starts_by_stage(rows: dict[float, Row]) -> dict[str, float]:
    """Claim 8: K and P before, each stage less the one before."""
    starts = {share: _measures(rows[share], "before") for share in STAGES}
    return {
        f"{of}, {100 * b:.0f} % less {100 * a:.0f} %": starts[b][of] - starts[a][of]
        for of in ("K", "P")
        for a, b in pairwise(STAGES)
    }


def entropy_correlations(rows: dict[float, Row]) -> dict[str, float] | None:
    """Claim 9: Pearson's r over the stages of one model, of H with A, and of H with F with its sign turned."""
    h = [row.values["before"]["entropy"] for row in rows.values()]
    a, f = ([of(row) for row in rows.values()] for of in (outcomes.acquired, outcomes.forgot))
    if None in f:
        return None
    return {
        "r(H, A)": float(stats.pearsonr(h, a).statistic),
        "-r(H, F)": -float(stats.pearsonr(h, f).statistic),
    }


def groups_by_stage(rows: dict[float, Row]) -> dict[str, float]:
    """Claim 22: A of what is told in every slot less A of what is told once, and the latter at the end turned."""
    found = {}
    for share in STAGES:
        often, once = (100 * outcomes.acquired(rows[share], group=g) for g in ("paraphrase", "once"))
        found[f"paraphrase less once at {100 * share:.0f} %"] = often - once
    return found | {"once at 100 %, sign turned": -once}


def _special(store: Store, scale: str) -> list[Evidence]:
    """review.entropy-is-special: r with A over stages, of H less that of attention and of next-token entropy."""
    models = acquiring.finished(store, scale)
    values, rows = [], []
    for seed, learnt in zip(acquiring.SCALES[scale].seeds if models else (), models, strict=False):
        about = stages.subject(scale, seed=seed)
        asked = about.settings(**stages.extras(about))
        seen = store.find(stages.STUDY, stages.VERSION, asked, recorded=True)
        if seen is None:
            return []
        at = dict(zip(seen.settings["revisions"], seen.values["stages"], strict=True))
        points = [at[f"step{row.settings['step']}"] for row in learnt.values()]
        a = [outcomes.acquired(row) for row in learnt.values()]
        h, attention, words = (
            float(stats.pearsonr(of, a).statistic)
            for of in (
                [p["entropy"] for p in points],
                [sum(p["attention"]) for p in points],
                [p["next_token"] for p in points],
            )
        )
        values.append({"H less attention entropy": h - attention, "H less next-token entropy": h - words})
        rows += [seen, *learnt.values()]
    return [evidence("continual learning of chapter 05", values, rows, "of r")] if values else []


EVIDENCE: dict[str, Reader] = {
    "review.entropy-is-special": _special,
    "entropy.5": partial(_from_learning, acquired_by_stage, "%"),
    "entropy.6": partial(_from_learning, forgotten_by_stage, "%"),
    "entropy.7": partial(_from_learning, ends_by_stage, "nats, or share"),
    "entropy.8": partial(_from_learning, starts_by_stage, "nats, or share"),
    "entropy.9": partial(_from_learning, entropy_correlations, ""),
    "entropy.22": partial(_from_learning, groups_by_stage, "%"),
}
