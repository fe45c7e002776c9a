"""Chapter 15: the same checkpoints through three papers: what goes with what over stages, and numbers for prose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from kemem.runs import Row, Store
from kemem.studies import (
    editability,
    fact_silencing,
    findings,
    looking,
    notions,
    rescaling,
    silencing,
    stages,
    tracing,
)
from kemem.studies.desk import (
    ROWS,
    SCALES,
    Sizes,
    harboured,
    noted,
    quiet,
    rescale,
    sizes,
    trials,
    writing,
)
from kemem.studies.explaining import correlation
from kemem.studies.lab import Result
from kemem.studies.notions import Notions, given, of_pair
from kemem.studies.outcomes import acquired, forgot, knowledge

__all__ = ["CHAPTER", "ROWS", "along", "results", "verdict", "with_share"]

CHAPTER = "15_three_papers"


# ---------------------------------------------------------------------- along the stages
QUANTITIES = {
    "share": "effective share (%)", "A": "acquisition A (%)", "K": "K afterwards (nats a token)",
    "F": "forgetting F (%)", "S": "score S (%)", "ES": "efficacy ES (%)", "PS": "paraphrases PS (%)",
    "NS": "neighbours NS (%)", "kept": "NS, of what it was (%)", "world": "cost on world (nats a token)",
    "docstrings": "cost on docstrings (nats a token)",
}  # fmt: skip
"""What is followed along the stages. K is what a model knows of the passages after it learned on by gradient."""


def along(
    entropy: Row, learnt: Mapping[int, Sequence[Row]], written: Mapping[int, Sequence[Row]]
) -> dict[str, list[list[float]]]:
    """Quantity -> of every stage its values: one a model that learned on, or one a draw of what was written."""
    by_step = {int(stages.step(s["revision"])): s for s in entropy.values["stages"]}
    found: dict[str, list[list[float]]] = {name: [] for name in QUANTITIES}
    for step, edits in written.items():
        found["share"].append([100 * by_step[step]["effective_share"]])
        found["A"].append([100 * acquired(row) for row in learnt[step]])
        found["K"].append([knowledge(row, "after") for row in learnt[step]])
        found["F"].append([100 * lost for row in learnt[step] if (lost := forgot(row)) is not None])
        for name in ("S", "ES", "PS", "NS"):
            found[name].append([row.values["after"][name] or 0.0 for row in edits])
        found["kept"].append([row.values["kept"] or 0.0 for row in edits])
        for name in ("world", "docstrings"):
            found[name].append([row.values["nats"][name] for row in edits])
    return found


def with_share(path: Mapping[str, list[list[float]]]) -> dict[str, float]:
    """Rank correlation over the stages of each quantity's mean with the effective share, and with the stage itself."""
    means = {name: [looking.mean(own) for own in each] for name, each in path.items() if all(each)}
    order = [float(stage) for stage in range(len(means["share"]))]
    told = {}
    for name, own in means.items():
        told[name] = correlation(means["share"], own)[0]
        told[f"{name}, stage"] = correlation(order, own)[0]
    return told


def verdict(low: float | None, high: float | None, *, one: float = 0.8) -> str:
    """What an interval of a corrected correlation says: by a rule that knows no notion."""
    if low is None or high is None:
        return "undecided"
    if low > one:
        return "nearly one"
    if low > 0:
        return "related"
    return "opposed" if high < 0 else "undecided"


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """`papers.*`: of the first and last stage, of the second model, and changes; none where rows are missing."""
    if scale not in SCALES:
        return {}
    z = sizes(scale)
    found: dict[str, tuple[float | int, str, Row]] = {}
    for part in (_agreement, _silenced, _written, _traced):
        found |= part(store, z)
    found |= _entropy(store, z, scale)
    return {
        f"papers.{name}": Result(value, unit, looking.origin(row))
        for name, (value, unit, row) in found.items()
    }


Told = dict[str, tuple[float | int, str, Row]]


def _agreement(store: Store, z: Sizes) -> Told:
    last = z.of.steps[-1]
    rows = {
        step: store.find(notions.STUDY, notions.VERSION, s, recorded=step != last)
        for step, s in noted(z).items()
    }
    here = {step: row for step, row in rows.items() if row is not None}
    if len(here) < len(rows):
        return {}
    found: Told = {"facts.drawn": (here[last].values["facts"], "", here[last])}
    named = {"first": here[z.of.steps[0]], "last": here[last]}
    if z.other is not None:
        other = store.find(notions.STUDY, notions.VERSION, Notions(z.other, z.other.steps[-1]), recorded=True)
        named |= {} if other is None else {"second": other}
    for when, row in named.items():
        for a, b in combinations(row.values["names"], 2):
            pair = of_pair(row, a, b)
            for key in ("corrected", "low", "high", "raw"):
                if pair[key] is not None:
                    name = f"{when}.{a}.{b}" + ("" if key == "corrected" else f".{key}")
                    found[name] = pair[key], "", row
            found[f"{when}.{a}.{b}.shared"] = 100 * pair["shared"], "%", row
            for layer, value in enumerate(pair["layers"]):
                if value is not None:
                    found[f"{when}.{a}.{b}.layer {layer}"] = value, "", row
            for third in ("usage", "key"):
                if third not in (a, b) and (left := given(row, a, b, third)) is not None:
                    found[f"{when}.{a}.{b}.given {third}"] = left, "", row
        for name, own in row.values["reliability"].items():
            found[f"{when}.{name}.again"] = looking.mean(own), "", row
            found[f"{when}.{name}.again.shared"] = 100 * row.values["top"][name], "%", row
    for a, b in combinations(here[last].values["names"], 2):
        each = [v for row in here.values() if (v := of_pair(row, a, b)["corrected"]) is not None]
        if len(each) == len(here):
            found[f"least.{a}.{b}"], found[f"most.{a}.{b}"] = (
                (min(each), "", here[last]),
                (max(each), "", here[last]),
            )
    return found


def _silenced(store: Store, z: Sizes) -> Told:
    found: Told = {}
    for step, s in quiet(z).items():
        row = store.find(silencing.STUDY, silencing.VERSION, s, recorded=True)
        if row is None:
            continue
        when = "last" if step == z.of.steps[-1] else "first"
        found[f"silenced.{when}.facts"] = row.values["facts"], "", row
        for name, shares in row.values["contribution"].items():
            found[f"silenced.{when}.{name}.share"] = 100 * looking.mean(shares), "%", row
        for way, sets in row.values["lost"].items():
            for name in sets:
                for key, own in silencing.lost_by(row, way, name).items():
                    unit, times = ("points", -100) if key == "facts" else ("nats a token", 1)
                    found[f"silenced.{when}.{way}.{name}.{key}"] = times * looking.mean(own), unit, row
    return found


def _written(store: Store, z: Sizes) -> Told:
    """Of the edits, and of one of them in rescaled weights, with the setting that the trials chose."""
    tried = {
        step: store.find(editability.TRIALS, editability.VERSION, s, recorded=True)
        for step, s in trials(z).items()
    }
    if None in tried.values():
        return {}
    known = {step: row for step, row in tried.items() if row is not None}
    made, _ = editability.best(known)
    some = next(iter(known.values()))
    found: Told = {
        "trials": (len(z.settings), "", some), "tuning": (z.tuning, "", some), "facts": (z.facts, "", some),
        "count": (z.count, "", some), "weight": (made.weight, "", some), "clamp": (made.clamp, "", some),
        "stages": (len(z.of.steps), "", some),
    }  # fmt: skip
    for setting, scores in zip(z.settings, known[z.of.steps[-1]].values["scores"], strict=True):
        name = "tuned." + "+".join(map(str, setting.layers))
        if scores["S"] is not None and scores["S"] >= found.get(name, (0, "", some))[0]:
            found[name] = scores["S"], "%", known[z.of.steps[-1]]
    asked = writing(z, dict.fromkeys(z.of.steps, made))
    rows = {
        step: [store.find(editability.STUDY, editability.VERSION, s, recorded=True) for s in each]
        for step, each in asked.items()
    }
    if not any(None in each for each in rows.values()):
        ends = {when: [row for row in rows[step] if row] for when, step in
                (("first", z.of.steps[0]), ("last", z.of.steps[-1]))}  # fmt: skip
        for name, (of, unit) in WRITTEN.items():
            values = {when: [of(row) for row in own] for when, own in ends.items()}
            for when, own in values.items():
                found[f"written.{when}.{name}"] = looking.mean(own), unit, ends[when][0]
            moved = findings.change([b - a for a, b in zip(values["first"], values["last"], strict=True)])
            for key, value in (("", moved.mean), (".low", moved.low), (".high", moved.high)):
                if value is not None:
                    found[f"written.change.{name}{key}"] = (
                        value,
                        "points" if unit == "%" else unit,
                        ends["last"][0],
                    )
    for step, s in harboured(z, made).items():
        row = store.find(fact_silencing.STUDY, fact_silencing.VERSION, s, recorded=True)
        if row is not None:
            found |= fact_silencing.numbers("last" if step == z.of.steps[-1] else "first", row)
    row = store.find(rescaling.STUDY, rescaling.VERSION, rescale(z, made))
    if row is not None:
        for name, own in row.values.items():
            for key in ("entropy", "rank", "rank, contribution", "S", "ES", "NS", "effect"):
                found[f"rescaled.{name}.{key}"] = own[key], "nats" if key == "entropy" else "", row
            for key, value in own["changed"].items():
                found[f"rescaled.{name}.changed.{key}"] = value, "", row
    return found


WRITTEN = {
    **{
        name: (lambda row, name=name: row.values["after"][name] or 0.0, "%")
        for name in ("S", "ES", "PS", "NS")
    },
    "NS.before": (lambda row: row.values["before"]["NS"] or 0.0, "%"),
    "true": (lambda row: -row.values["before"]["EM"], "points"),
    "kept": (lambda row: row.values["kept"] or 0.0, "%"),
    "world": (lambda row: row.values["nats"]["world"], "nats a token"),
    "docstrings": (lambda row: row.values["nats"]["docstrings"], "nats a token"),
    "norm": (lambda row: row.values["norm"], ""),
}
"""Of a row of edits: true is how much likelier the true object is than the new one, before the edit."""


def _entropy(store: Store, z: Sizes, scale: str) -> Told:
    """Of chapter 03's row, the compared stages."""
    about = stages.subject(scale, model=z.of.model)
    row = store.find(stages.STUDY, stages.VERSION, about.settings(**stages.extras(about)), recorded=True)
    if row is None:
        return {}
    shares = {int(stages.step(s["revision"])): 100 * s["effective_share"] for s in row.values["stages"]}
    own = [shares[step] for step in z.of.steps]
    ends = (("first", own[0]), ("last", own[-1]), ("least", min(own)))
    return {f"share.{name}": (value, "%", row) for name, value in ends}


def _traced(store: Store, z: Sizes) -> Told:
    """The largest effects of a trace, by kind of what is restored and token."""
    row = store.find(tracing.STUDY, tracing.VERSION, z.traced, recorded=True)
    if row is None:
        return {}
    whole = row.values["whole"]
    found: Told = {
        "traced.total": (100 * (whole["clean"] - whole["corrupted"]), "points", row),
        "traced.facts": (whole["facts"], "", row),
    }
    for kind, roles in whole["effects"].items():
        for role, effect in roles.items():
            value = effect["value"]
            best = max(range(len(value)), key=value.__getitem__)
            found[f"traced.{kind}.{role}"] = 100 * value[best], "points", row
            found[f"traced.{kind}.{role}.layer"] = best, "", row
    return found
