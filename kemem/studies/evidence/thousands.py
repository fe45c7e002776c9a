"""Part 3: what chapter 13's sweeps say on claims 7, 12 and 13 of Meng et al. 2023, one number a draw of facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from scipy import stats

from kemem.editing.scores import SUCCESS
from kemem.runs import Row, Store
from kemem.studies import factual, thousands
from kemem.studies.evidence.record import Evidence, Reader, evidence
from kemem.studies.thousands import Sweeps, curve, score

Measure = Callable[[Sweeps], dict[str, float] | None]
Used = Callable[[Sweeps], Sequence[Row]]


def _from_draws(
    measure: Measure, used: Used, unit: str, store: Store, scale: str, more: str = ""
) -> list[Evidence]:
    """Empty where rows of a draw are missing, or where one of its numbers is."""
    if scale not in factual.SCALES:
        return []
    values: list[dict[str, float]] = []
    rows: dict[str, Row] = {}
    for seed in thousands.SEEDS.get(scale, ()):
        found = thousands.finished(store, thousands.settings(scale, seed=seed), recorded=True)
        measured = None if found is None else measure(found)
        if found is None or measured is None:
            return []
        values.append(measured)
        rows |= {row.digest: row for row in used(found)}  # trials are those of every draw
    on = f"the model of chapter 11, {len(values)} draws of facts{more}"
    return [evidence(on, values, list(rows.values()), unit)] if values else []


def neighbours(sweeps: Sweeps) -> dict[str, float] | None:
    """Claim 7: NS after MEMIT less that of the same requests before, with as many facts to a memory as published."""
    last = sweeps.published
    return _without_none({"NS": _less(score(last, "NS"), score(last, "NS", "before"))})


def neighbours_under_weight(sweeps: Sweeps) -> dict[str, float] | None:
    """Claim 7 with the weight and clamp that were chosen at this number of facts."""
    row = sweeps.heavy[sweeps.load]
    return _without_none({"NS": _less(score(row, "NS"), score(row, "NS", "before"))})


def weighed(sweeps: Sweeps) -> dict[str, float] | None:
    """Claim 12: rank correlations with the weight, ES and PS turned; and S at a weight in between less S at each end.

    That weight is the one chosen on tuning facts: the best of the same rows would be above both ends by selection.
    """
    rows = sweeps.weights
    found: dict[str, float | None] = {}
    for name, sign in (("NS", 1), ("GE", 1), ("ES", -1), ("PS", -1)):
        values = curve(rows, name)
        turned = ", sign turned" if sign < 0 else ""
        found[f"rank of {name}{turned}"] = None if None in values else sign * rank(list(rows), values)
    least, *_, most = rows
    for name, end in (("least", least), ("greatest", most)):
        found[f"S at the chosen weight less S at the {name}"] = _less(
            score(rows[sweeps.weight], "S"), score(rows[end], "S")
        )
    return _without_none(found)


def spanned(sweeps: Sweeps) -> dict[str, float] | None:
    """Claim 13: all critical layers less the highest of them alone, whose targets are the same; S less that of late
    layers and of attention. None where one layer is critical."""
    if "highest 1" not in sweeps.layers:
        return None
    found = spread_out(sweeps)
    whole, attention = (score(sweeps.layers[name], "S") for name in ("critical", "attention"))
    return _without_none({**found, "S: critical less attention": _less(whole, attention)})


def spread_out(sweeps: Sweeps) -> dict[str, float | None]:
    """The part of claim 13 on feed-forward layers alone."""
    whole, alone, late = (sweeps.layers[name] for name in ("critical", "highest 1", "late"))
    found = {
        f"{name}: all critical less one": _less(score(whole, name), score(alone, name)) for name in SUCCESS
    }
    return found | {"S: critical less late": _less(score(whole, "S"), score(late, "S"))}


def rank(x: Sequence[float], y: Sequence[float | None]) -> float:
    """Spearman's rank correlation; 0 where all are the same, as no order is seen."""
    return float(stats.spearmanr(x, y).statistic) if len(set(y)) > 1 else 0.0


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _without_none(found: dict[str, float | None]) -> dict[str, float] | None:
    """None where any number is missing."""
    known = {name: value for name, value in found.items() if value is not None}
    return known if len(known) == len(found) else None


def load_and_weight(store: Store, scale: str) -> list[Evidence]:
    """Claim 7: with what was chosen at few facts, as all of the chapter, and with what was chosen at this number."""
    chosen_here = partial(
        _from_draws,
        neighbours_under_weight,
        lambda found: [found.heavy[found.load]],
        "points",
        more=", weight and clamp chosen at this number",
    )
    plain = partial(_from_draws, neighbours, lambda found: [found.published], "points")
    return [*plain(store, scale), *chosen_here(store, scale)]


EVIDENCE: dict[str, Reader] = {
    "memit.7": load_and_weight,
    "memit.12": partial(
        _from_draws,
        weighed,
        lambda found: [*found.trials.values(), *found.weights.values()],
        "of rank, or points",
    ),
    "memit.13": partial(_from_draws, spanned, lambda found: list(found.layers.values()), "points"),
}
