"""Chapter 13: which relations are hard to write, what of them tells so, and what writing two together does.

Facts are written in rows of `many`: of one relation, by three methods; of two, and of all together, by MEMIT. What the
relations are like is a row of `hardness`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kemem.editing.scores import SUCCESS, harmonic
from kemem.runs import MissingRow, Row, Store
from kemem.studies import factual, field, hardness, many
from kemem.studies.explaining import LEAST, Array, correlation, explained, strongest
from kemem.studies.hardness import PREDICTORS, Hardness, written
from kemem.studies.lab import Lab, Result
from kemem.studies.many import Benches, Many
from kemem.studies.methods import Trained
from kemem.studies.pretraining import Pretraining

CHAPTER = "13_thousands"
VERSION = many.VERSION
ROWS = {many.STUDY: many.VERSION, hardness.STUDY: hardness.VERSION}
METHODS = ("MEMIT", "FT-W", "MEND")


@dataclass(frozen=True)
class Grid:
    """What is written: `values` are those of METHODS' settings, as chosen on tuning facts in chapters 13 and 14."""

    hardness: Hardness
    mend: Trained
    values: tuple[float, float, float] = (10.0, 4e-2, 1e-4)
    clamp: float = 2.0
    """Of MEMIT's targets."""
    least: int = 8
    """Tuning facts that a relation must have to be chosen as the easiest or hardest."""
    sizes: tuple[int, ...] = (8, 24, 64)
    """Facts written at once in mixtures of two relations, half of each; even numbers."""
    pairs: tuple[tuple[str, str], ...] = (
        ("born_in", "native_language"), ("occupation", "speaks"), ("born_in", "set_in"), ("born_in", "works_for"),
    )  # fmt: skip
    """As in appendix D of Meng et al. 2023: P27 and P37, P413 and P1412, P17 and P495, P27 and P937."""


SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "smoke": (
        {"count": 4, "most": 4, "others": 3, "traced": 2, "samples": 2, "texts": 100},
        {"least": 2, "sizes": (4,), "values": Grid.values},
    ),
    "gpu": (
        {"count": 64, "others": 16, "traced": 12, "texts": 10_000},
        {"least": 16, "sizes": (16, 64, 256)},
    ),
}
SEEDS = {"smoke": (0,), "gpu": (0,), "paper": (0,)}  # of facts; elsewhere three


def settings(scale: str, *, seed: int = 0, model: Pretraining | None = None) -> Grid:
    """seed: of the draw of facts; the model is one, the scale's own unless given.

    Values are those that trials on the laptop chose; on other models the weight is as many keys to a memory, and the
    others are untried.
    """
    z = field.sizes(scale, model=model)
    of, grid = SIZES.get(scale, ({}, {}))
    weight, *others = Grid.values
    grid = {"values": (*factual.weighed(z.model, (weight,)), *others), **grid}
    mend = field.trained(z, grid["values"][2])
    return Grid(Hardness(z.model, z.layers, **of, seed=seed), mend, **grid)


def seeds(scale: str) -> tuple[int, ...]:
    return SEEDS.get(scale, (0, 1, 2))


# ---------------------------------------------------------------------- what is written
def asked(
    g: Grid, relations: tuple[str, ...], count: int, method: str = "MEMIT", part: str = "reported"
) -> Many:
    """Facts of these relations written by a method of the grid."""
    value = g.values[METHODS.index(method)]
    if method == "MEMIT":
        return written(g.hardness, relations, count, part, method, value, clamp=g.clamp)
    return written(g.hardness, relations, count, part, method, value, g.mend if method == "MEND" else None)


@dataclass(frozen=True)
class Seen:
    """All rows of one draw of facts."""

    hardness: Row
    alone: Mapping[str, Mapping[str, Row]]
    """By method and relation."""
    tuning: Mapping[str, Row]
    many: Row
    """As many facts as of one relation, of all of them by turns."""
    pairs: Mapping[tuple[str, str, int], tuple[Row, Row, Row]]
    """By both relations and the number of facts: the mixture, and as many of each alone."""


def gathered(g: Grid, hardness: Row, take: Callable[[Many], Row]) -> Seen:
    """The rows of one draw, each by `take`. Mixtures are of the pairs and sizes for which enough facts are known."""
    names, known = by_known(hardness, hardness.values["relations"]), hardness.values["known"]
    count = g.hardness.count
    trials = {name: min(count, known["tuning"].get(name, 0)) for name in names}
    mixtures = [
        (a, b, n)
        for a, b in g.pairs
        for n in g.sizes
        if min(known["reported"].get(a, 0), known["reported"].get(b, 0)) >= n
    ]
    return Seen(
        hardness,
        {method: {name: take(asked(g, (name,), count, method)) for name in names} for method in METHODS},
        {name: take(asked(g, (name,), n, part="tuning")) for name, n in trials.items() if n >= g.least},
        take(asked(g, tuple(names), count)),
        {
            (a, b, n): (take(asked(g, (a, b), n)), take(asked(g, (a,), n)), take(asked(g, (b,), n)))
            for a, b, n in mixtures
        },
    )


def run(
    lab: Lab, scale: str, *, seed: int = 0, live: int = 6, model: Pretraining | None = None
) -> tuple[Seen, ...]:
    """All draws of facts of a scale: recorded rows where there are any, the others computed here.

    live: relations, those of which the most facts are known, of which MEMIT's row for `seed` is computed in any case.
    """
    benches, found = Benches(lab), []
    for each in dict.fromkeys((seed, *seeds(scale))):
        g = settings(scale, seed=each, model=model)
        row = lab.store.find(hardness.STUDY, hardness.VERSION, g.hardness, recorded=True)
        row = row or hardness.measured(benches, g.hardness)
        names = list(row.values["relations"]) if each == seed else []
        here = [asked(g, (name,), g.hardness.count) for name in by_known(row, names)[:live]]

        def take(s: Many, here: Sequence[Many] = here) -> Row:
            own = None if s in here else lab.store.find(many.STUDY, many.VERSION, s, recorded=True)
            return own or many.run(benches, s)

        found.append(gathered(g, row, take))
    return tuple(found)


def by_known(row: Row, names: Iterable[str]) -> list[str]:
    """Those of which the model knows the most facts first; a row that was read has its names in another order."""
    known = row.values["known"]["reported"]
    return sorted(names, key=lambda name: (-known[name], name))


def finished(store: Store, scale: str) -> tuple[Seen, ...]:
    """The draws of facts of a scale, where all rows of all of them are there; nothing is computed."""
    if scale not in factual.SCALES:
        return ()

    def nothing(_: dict[str, Any]) -> Any:
        raise AssertionError("a reader computes nothing")

    def take(s: Many) -> Row:
        return store.reader().row(many.STUDY, many.VERSION, s, nothing, recorded=True)

    found = []
    try:
        for each in seeds(scale):
            g = settings(scale, seed=each)
            row = store.reader().row(hardness.STUDY, hardness.VERSION, g.hardness, nothing, recorded=True)
            found.append(gathered(g, row, take))
    except MissingRow:
        return ()
    return tuple(found)


# ---------------------------------------------------------------------- what follows from them
def score(row: Row, name: str = "S") -> float:
    """A score after the edit; 0 where it is not defined."""
    return row.values["after"][name] or 0.0


def shared(found: Sequence[Seen]) -> list[str]:
    """Relations that were written in every draw of facts."""
    return [name for name in found[0].alone["MEMIT"] if all(name in each.alone["MEMIT"] for each in found)]


def extremes(found: Sequence[Seen]) -> tuple[str, str] | None:
    """The easiest and the hardest relation by S on tuning facts, mean over draws; None where fewer than two are."""
    names = [name for name in shared(found) if all(name in each.tuning for each in found)]
    if len(names) < 2:
        return None
    mean = {name: math.fsum(score(each.tuning[name]) for each in found) for name in names}
    return max(names, key=mean.__getitem__), min(names, key=mean.__getitem__)


def pooled(rows: Sequence[Row]) -> float:
    """S of all facts of rows of like size taken together: the harmonic mean of mean ES, PS and NS.

    It is at least the mean of their S, since a harmonic mean is concave: a mixture in which nothing disturbs anything
    scores this much.
    """
    means = [math.fsum(score(row, name) for row in rows) / len(rows) for name in SUCCESS]
    return harmonic(means) or 0.0


def table(found: Sequence[Seen], response: str = "S") -> tuple[list[str], Array, Array]:
    """Relations [R], their predictors [R P] and MEMIT's score [R], means over draws; those with all predictors."""
    each = {
        name: [[own.hardness.values["relations"][name][p] for p in PREDICTORS] for own in found]
        for name in shared(found)
    }
    names = [name for name, rows in each.items() if all(v is not None for row in rows for v in row)]
    X = np.array([np.mean(each[name], axis=0) for name in names], dtype=np.float64)
    y = [np.mean([score(own.alone["MEMIT"][name], response) for own in found]) for name in names]
    return names, X.reshape(len(names), len(PREDICTORS)), np.array(y, dtype=np.float64)


def results(store: Store, scale: str) -> dict[str, Result]:
    """Scores by method over relations, the easiest and hardest, what explains them, and mixtures less their halves."""
    found = finished(store, scale)
    if not found:
        return {}
    names, X, y = table(found)
    first = found[0].hardness
    numbers: dict[str, tuple[float | int | str, str]] = {
        "relations": (len(shared(found)), ""), "facts": (first.settings["count"], ""), "draws": (len(found), ""),
    }  # fmt: skip
    for method in METHODS:
        own = [np.mean([score(each.alone[method][n]) for each in found]) for n in shared(found)]
        numbers |= {f"{method}.least": (float(min(own)), "%"), f"{method}.most": (float(max(own)), "%")}
        numbers[f"{method}.mean"] = float(np.mean(own)), "%"
    numbers["many"] = float(np.mean([score(each.many) for each in found])), "%"
    ends = extremes(found)
    for kind, name in zip(("easiest", "hardest"), ends or (), strict=False):
        numbers[kind] = name, ""
        numbers[f"{kind}.S"] = float(np.mean([score(each.alone["MEMIT"][name]) for each in found])), "%"
    if len(names) >= LEAST:
        best, p = strongest(X, y)
        numbers |= {"best": (PREDICTORS[list(PREDICTORS)[best]], ""), "best.p": (p, "")}
        for i, name in enumerate(PREDICTORS):
            numbers[f"{name}.rank"] = correlation(X[:, i], y)[0], ""
        for name, rule in explained(X, y).items():
            numbers |= {f"rule.{name}": (rule["median"], ""), f"rule.{name}.first": (rule["first"], "")}
            numbers |= {f"rule.{name}.chance": (float(np.median(rule["chance"])), "")}
            numbers |= {f"rule.{name}.p": (rule["p"], "")}
    for (a, b, n), rows in found[0].pairs.items():
        mix, *alone = (score(row) for row in rows)
        numbers[f"{a} with {b}, {n}"] = mix - math.fsum(alone) / 2, "points"
    origin = {"study": first.study, "digest": first.digest, "origin": first.origin, **first.provenance}
    return {f"relations.{name}": Result(value, unit, origin) for name, (value, unit) in numbers.items()}
