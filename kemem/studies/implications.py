"""Chapter 13: what one edit does to what follows from it, kind of knowledge by kind.

One row a draw of facts: each fact is written alone by MEMIT, the model put back in between. Asked before and after
are the fact itself, and what would be true if it were: its reverse, the end of a chain through it, and what takes a
second fact to say. Beside that: the consequence written by an edit of its own, and both written together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kemem import editing, models
from kemem.editing import MEMIT, Edit, Judge, Request, Search
from kemem.editing.places import leading
from kemem.editing.scores import SUCCESS, Readings, Scores, average
from kemem.evaluation import encode
from kemem.runs import Row, Store
from kemem.studies import bench, factual, many
from kemem.studies.bench import Bench
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.relations import seeds
from kemem.world import RELATIONS, Fact, World
from kemem.world.relation import KINDS
from kemem.world.values import COMPOSITIONS

STUDY, VERSION = "implications", 1
CHAPTER = "13_thousands"
REVERSED = ("inverse", "symmetric", "order")
WAYS = (*REVERSED, "chain", "two steps")
"""How something follows: the same fact read from its object, by kind; from the subject to the end of a chain; and by a
second fact about the object, in one question."""
SHOWN = (*SUCCESS, "EM", "PM", "NM")


@dataclass(frozen=True)
class Implications:
    """Facts of each kind that the model says by itself, and the editor's setting."""

    model: Pretraining
    layers: tuple[int, ...] = (0, 1)
    weight: float = 10.0
    clamp: float = 2.0
    facts: int = 16
    """Of each kind, where the model knows so many; and of each way in which something follows."""
    part: str = "reported"
    texts: int = 2000
    examples: int = 1
    """Of each way, shown with the probabilities before and after."""
    dtype: str | None = None
    seed: int = 0


SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"facts": 2, "texts": 100, "weight": Implications.weight},
    "gpu": {"facts": 24, "texts": 10_000},
}


def settings(scale: str, *, seed: int = 0, model: Pretraining | None = None) -> Implications:
    """seed: of the draw of facts; the model is one, the scale's own unless given, and its weight as chosen on the
    laptop, in keys to a memory."""
    model = model or factual.settings(scale)
    (weight,) = factual.weighed(model, (Implications.weight,))
    return Implications(
        model, factual.critical(model), seed=seed, **{"weight": weight, **SIZES.get(scale, {})}
    )


@dataclass(frozen=True)
class Consequence:
    """What a request implies, as a request of its own: `new` would be true, `true` was. way: one of WAYS.

    turned: the reverse of the old fact, which the request makes false, as (prompt, answer); None where there is none.
    """

    way: str
    request: Request
    turned: tuple[str, str] | None = None


# ---------------------------------------------------------------------- what follows
def consequences(world: World, r: Request) -> list[Consequence]:
    """What would be true if a request about a trained entity were, and is not already; at most one of each way."""
    fact = world.fact(r.subject, r.relation or "")
    assert fact is not None
    found = []
    for subject, relation, object_ in world.implied(fact, r.new):
        reverse = relation == fact.row.inverse
        before = world.fact(subject, relation)
        old = world.fact(r.true, relation) if reverse and r.true is not None else None
        turned = None if old is None else (old.prompt(0), fact.subject)
        found.append(_follows(fact.kind if reverse else "chain", before, object_, turned))
    found += [_follows("chain", before, r.new) for before in ends(world, fact)]
    for first, second, text in COMPOSITIONS:
        if first == r.relation and len(fact.objects) == 1:
            here, there = (world.fact(o, second) for o in (fact.object, r.new))
            if here and there and len(here.objects) == len(there.objects) == 1:
                asked = Request(
                    0, text[:-1].rstrip(), r.subject, there.object, here.object, f"{first} {second}"
                )
                found.append(Consequence("two steps", asked) if asked.new != asked.true else None)
    first_of = {each.way: each for each in reversed(found) if each is not None}
    return [first_of[way] for way in WAYS if way in first_of]


def ends(world: World, fact: Fact) -> list[Fact]:
    """Facts at the end of chains of which this one is the last step: the countries of a region's cities."""
    rows = [row for row in RELATIONS.values() if row.source == "chained" and row.chain[-1] == fact.relation]
    return [
        end
        for row in rows
        for near in world.facts(relation=row.chain[0], stated=None)
        if near.object == fact.subject and (end := world.fact(near.subject, row.name)) is not None
    ]


def _follows(
    way: str, before: Fact | None, object_: str, turned: tuple[str, str] | None = None
) -> Consequence | None:
    """None where nothing was true before, or the same already."""
    if before is None or object_ in before.objects:
        return None
    template = before.row.cloze[0][:-1].rstrip()
    return Consequence(
        way, Request(0, template, before.subject, object_, before.object, before.relation), turned
    )


def known(at: Bench, s: Implications, kind: str) -> tuple[list[Request], int]:
    """Facts of a kind that the model says by itself, and of how many; neighbours are not asked for."""
    records = at.world.counterfact(None, s.seed, kind=kind, part=s.part)
    if not records:
        return [], 0
    asked = editing.requests(records)
    says = editing.generated_success(at.model, at.tok, [replace(r, new=r.true) for r in asked])
    return [r for r, said in zip(asked, says, strict=True) if said], len(asked)


def planned(
    world: World, requests: Sequence[Request], found: Mapping[str, Sequence[Any]], wanted: int
) -> list[tuple[Request, Consequence]]:
    """Requests and what follows, in their order, until with those found before there are `wanted` of each way."""
    room = {way: wanted - len(own) for way, own in found.items()}
    kept = []
    for r in requests:
        for c in consequences(world, r):
            if room[c.way] > 0:
                room[c.way] -= 1
                kept.append((r, c))
    return kept


# ---------------------------------------------------------------------- the row
def run(lab: Lab, s: Implications) -> Row:
    """The row: scores by kind before and after, and what became of each way in which something follows."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = bench.opened(lab, s.model, s.layers, texts=s.texts, dtype=s.dtype, seed=s.seed)
        provenance["moments"] = {"tokens": at.moments.tokens}
        editor = MEMIT(s.layers, s.weight, Search(clamp=s.clamp))
        kinds: dict[str, Any] = {}
        ways: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for done, kind in enumerate(KINDS):
            said, asked = known(at, s, kind)
            judged, follow = said[: s.facts], planned(at.world, said, ways, s.facts)
            if judged:  # all targets of a kind are searched for together
                many.targets(at, editor, [*judged, *(r for own in follow for r in (own[0], own[1].request))])
            before, after = [], []
            for r in judged:
                judge = Judge(at.tok, [r])
                before.append(judge(at.model))
                with edited(at, editor, r).applied(at.model):
                    after.append(judge(at.model))
            for r, c in follow:
                ways[c.way].append(followed(at, editor, r, c))
            counts = {"asked": asked, "known": len(said), "facts": len(judged)}
            kinds[kind] = {**counts, "before": together(before), "after": together(after)}
            if lab.progress is not None:
                lab.progress(done + 1, len(KINDS), f"{len(judged)} facts of the kind {kind}")
        return {
            "kinds": kinds,
            "ways": {way: summary(ways[way]) for way in WAYS},
            "examples": [each for way in WAYS for each in ways[way][: s.examples]],
        }

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def edited(at: Bench, editor: MEMIT, *requests: Request) -> Edit:
    z, _ = many.targets(at, editor, requests)
    return editor(at.model, at.tok, requests, at.moments, templates=at.templates, targets=z)


def followed(at: Bench, editor: MEMIT, r: Request, c: Consequence) -> dict[str, Any]:
    """Of one edit and one consequence: -log p, nats a token, before and after, of what is asked about either."""
    start = leading(at.tok)
    asked = [(own.text, answer) for own in (r, c.request) for answer in (own.new, own.true or "")]
    asked += [] if c.turned is None else [c.turned]
    read = Readings([encode(at.tok, prompt, f" {answer}", start=start) for prompt, answer in asked])
    edits = {"after": (r,), "own": (c.request,), "both": (r, c.request)}
    found = {"before": read(at.model)[0].tolist()}
    for name, requests in edits.items():
        with edited(at, editor, *requests).applied(at.model):
            found[name] = read(at.model)[0].tolist()
    return {
        "way": c.way, "fact": [r.text, r.true, r.new], "follows": [c.request.text, c.request.true, c.request.new],
        "losses": found,
    }  # fmt: skip


def together(found: Sequence[Scores]) -> dict[str, Any]:
    """S and averages in % of single edits, with half-intervals and how many have one; None where none has."""
    if not found:
        return {**dict.fromkeys(("S", *SHOWN)), "interval": {}, "n": {}}
    values = {name: tuple(each.values[name][0] for each in found) for name in found[0].values}
    whole = Scores(tuple(range(len(found))), values).summary()
    parts = {part: {name: whole[part].get(name) for name in SHOWN} for part in ("interval", "n")}
    return {**{name: whole[name] for name in ("S", *SHOWN)}, **parts}


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one way: [mean, half-interval, n] of success in %, of its change in points, and of changes in nats.

    before, after, own, both: the implied answer is likelier than the old one, unedited, after the fact was written,
    after the consequence itself was, and after both were; written, written with: the fact is, alone and with both.
    change: after less before. gained: log p of the implied answer, after less before; turned: the same of the old
    reverse, which has become false.
    """
    losses = [each["losses"] for each in found]

    def wins(when: str, place: int) -> list[float]:
        return [float(own[when][place] < own[when][place + 1]) for own in losses]

    def rises(place: int) -> list[float]:
        return [(own["before"][place] - own["after"][place]) for own in losses if len(own["before"]) > place]

    shares: dict[str, list[float]] = {when: wins(when, 2) for when in ("before", "after", "own", "both")}
    shares |= {"written": wins("after", 0), "written with": wins("both", 0)}
    shares["change"] = [a - b for a, b in zip(shares["after"], shares["before"], strict=True)]
    nats = {"gained": rises(2), "turned": rises(4)}
    told = {name: list(average(values)) for name, values in shares.items()}
    for name, values in nats.items():  # of which an average is not in %
        told[name] = [None if x is None else x / 100 for x in average(values)[:2]] + [len(values)]
    return {"facts": len(found), **told}


# ---------------------------------------------------------------------- all draws of facts
def draws(
    lab: Lab, scale: str, *, seed: int = 0, live: bool = True, model: Pretraining | None = None
) -> list[Row]:
    """The rows of all draws of facts: recorded ones where there are any. live: that of `seed` is computed here."""
    found = []
    for each in dict.fromkeys((seed, *seeds(scale))):
        s = settings(scale, seed=each, model=model)
        row = None if live and each == seed else lab.store.find(STUDY, VERSION, s, recorded=True)
        found.append(row or run(lab, s))
    return found


def finished(store: Store, scale: str) -> list[Row]:
    """The rows of all draws of facts, where all are there."""
    if scale not in factual.SCALES:
        return []
    rows = [store.find(STUDY, VERSION, settings(scale, seed=seed), recorded=True) for seed in seeds(scale)]
    return [row for row in rows if row is not None] if None not in rows else []


def reversed_change(row: Row) -> tuple[float, int] | None:
    """Change of success on reversed questions in points, mean over all facts that have one, and how many."""
    own = [row.values["ways"][way]["change"] for way in REVERSED]
    count = sum(n for _, _, n in own)
    return (math.fsum(mean * n for mean, _, n in own if n) / count, count) if count else None


def over(rows: Sequence[Row], way: str, name: str) -> float | None:
    """A number of `summary`, mean over draws that have it."""
    found = [row.values["ways"][way][name][0] for row in rows]
    kept = [value for value in found if value is not None]
    return math.fsum(kept) / len(kept) if kept else None


def results(store: Store, scale: str) -> dict[str, Result]:
    """Scores by kind, and success before and after by way, means over draws of facts: `implied.inverse.after`."""
    rows = finished(store, scale)
    if not rows:
        return {}
    origin = {"study": STUDY, "digest": rows[0].digest, "origin": rows[0].origin, **rows[0].provenance}
    numbers: dict[str, tuple[Any, str]] = {"draws": (len(rows), ""), "facts": (rows[0].settings["facts"], "")}
    for kind in KINDS:
        for name in ("S", *SUCCESS):
            own = [row.values["kinds"][kind]["after"][name] for row in rows]
            kept = [value for value in own if value is not None]
            numbers[f"{kind}.{name}"] = (math.fsum(kept) / len(kept) if kept else None), "%"
    for way in WAYS:
        for name in ("before", "after", "own", "both", "written", "written with"):
            numbers[f"{way}.{name}"] = over(rows, way, name), "%"
        numbers[f"{way}.change"] = over(rows, way, "change"), "points"
        numbers |= {f"{way}.{name}": (over(rows, way, name), "nats") for name in ("gained", "turned")}
    if changes := [change for row in rows if (change := reversed_change(row))]:
        numbers["reversed.change"] = math.fsum(mean for mean, _ in changes) / len(changes), "points"
        numbers["reversed.facts"] = sum(count for _, count in changes), ""
    return {
        f"implied.{name}": Result(value, unit, origin)
        for name, (value, unit) in numbers.items()
        if value is not None
    }
