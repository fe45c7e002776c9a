"""Chapter 14, as released against as described, and what editors cost: two rows beside those of `field`.

Defects are those that reading the released code of Meng et al. 2023 shows: a loop that keeps its last chunk alone, a
decay that is never switched on, a loss that asks for all tokens of an object at one place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kemem import editing, models
from kemem.editing import MEND, Edit, FineTune, Judge, Request
from kemem.editing.places import leading
from kemem.errors import BadInput
from kemem.evaluation import encode
from kemem.runs import Row, Store
from kemem.studies import factual, field, grids, many, methods
from kemem.studies.association import told
from kemem.studies.bench import Bench, opened
from kemem.studies.field import SHOWN, Field, Setting, Settings, sizes, trained
from kemem.studies.lab import Lab, Result
from kemem.studies.many import Benches, Many
from kemem.studies.methods import METHODS, Trained
from kemem.studies.setup import blocks

CHAPTER = "14_field"
RELEASED, COST = "as_released", "editing_cost"
VERSION = 1
ROWS = {RELEASED: VERSION, COST: VERSION}
TIMED = ("MEND", "FT-W", "MEMIT", "ROME")  # in the order in which the paper has them take longer


# ---------------------------------------------------------------------- as released, as described
@dataclass(frozen=True)
class Released:
    """Defects of released code, each switched by itself, on the same facts."""

    facts: Many
    """The row of no editor that has these facts in one block."""
    rates: tuple[float, float]
    """Of FT-W and of FT, as chosen with what is described."""
    mend: Trained
    chunk: int
    small: tuple[tuple[int, int], ...]
    """Smaller counts of MEND as released, each with its blocks."""
    seed: int = 0


def released_settings(z: Field, made: Settings, *, seed: int = 0) -> Released:
    """At the largest count of all, unless the sizes have another: what is thrown away grows with it."""
    count = z.switched or z.counts[-1]
    small = tuple((n, max(1, math.ceil(z.least / n))) for n in z.counts if n <= 6 and n < count)
    rates = made["FT-W"].value, made.get("FT", made["FT-W"]).value
    return Released(
        field.facts(z, count, seed=seed), rates, trained(z, made["MEND"].value), z.chunk, small, seed
    )


def switches(lab: Lab, at: Bench, s: Released) -> dict[str, Callable[..., Edit]]:
    """The editors by what is switched."""
    net, layer, rate = methods.networks(lab, at, s.mend), alone(at, s, "FT-W"), s.rates[0]
    return {
        "FT-W as described": FineTune.ft_w(layer, rate=rate),
        "FT-W, the whole block": FineTune.ft_w(layer, rate=rate, part="block"),
        "FT-W, no decay": FineTune.ft_w(layer, rate=rate, decay=0.0),
        "FT-W as released": FineTune.ft_w(layer, released=True, rate=rate),
        "MEND as described": MEND(net),
        "MEND, the last chunk": MEND(net, "last", "each", s.chunk),
        "MEND, the loss of a chunk": MEND(net, "all", "chunk", s.chunk),
        "MEND as released": MEND(net, "last", "chunk", s.chunk),
    }


def alone(at: Bench, s: Released, name: str) -> int:
    """The layer that an editor of one layer writes."""
    return at.where.get(name, s.facts.layers)[-1]


def released(benches: Benches, s: Released) -> Row:
    """The row: every switch on the same facts, MEND as released at small counts, and FT's loss on long targets."""
    lab = benches.lab

    def compute(_: dict[str, Any]) -> dict[str, Any]:
        at = benches.at(s.facts)
        every = many.counterfact(at, s.facts)
        if len(every) < s.facts.count:
            raise BadInput(
                f"expected {s.facts.count} facts that the model knows; got {len(every)}; ask for fewer."
            )
        requests, several = every[: s.facts.count], long(at, every)[: s.facts.count]
        editors = switches(lab, at, s)
        losses = {
            name: make(alone(at, s, name), rate=s.rates[1])
            for name, make in (("FT", FineTune.ft), ("FT-M", FineTune.ft_m))
        }
        return {
            "facts": len(requests), "several": len(several),
            "switches": {name: judged(lab, at, requests, editor) for name, editor in editors.items()},
            "small": {
                n: judged(lab, at, every[: n * b], editors["MEND as released"], n) for n, b in s.small
            },
            "losses": {name: judged(lab, at, several, editor) for name, editor in losses.items() if several},
        }  # fmt: skip

    return lab.store.row(RELEASED, VERSION, s, compute, device=models.named_device(lab.device).type)


def long(at: Bench, requests: Sequence[Request]) -> list[Request]:
    """Requests whose new object is of several tokens."""
    start = leading(at.tok)
    return [r for r in requests if len(encode(at.tok, r.text, f" {r.new}", start=start).target) > 1]


def judged(
    lab: Lab, at: Bench, requests: Sequence[Request], editor: Callable[..., Edit], count: int | None = None
) -> dict[str, Any]:
    """Scores of an editor in blocks of `count`, all at once unless given, and of how many requests it counted."""
    found = many.Found()
    size, counted = count or len(requests), 0
    for begin in range(0, len(requests), size):
        own = requests[begin : begin + size]
        edit = editor(at.model, at.tok, own, at.moments, templates=at.templates)
        counted += edit.notes.get("requests", len(own))
        judge = Judge(at.tok, own, batch_size=at.read, prefixed=True)
        with edit.applied(at.model):
            found.add(own, judge(at.model))
    after = found.told()
    return {**{name: after[name] for name in SHOWN}, "counted": counted}


# ---------------------------------------------------------------------- cost
@dataclass(frozen=True)
class Cost:
    """One timing of each of TIMED on the same facts, nothing kept from before."""

    facts: Many
    settings: tuple[Setting, ...]
    mend: Trained
    steps: int = 2
    """Of training MEND's networks that are timed."""
    seed: int = 0
    """Of the repeat: it draws nothing, for the facts are the same."""


def cost_settings(z: Field, made: Settings, *, seed: int = 0) -> Cost:
    facts = field.facts(z, min(z.one_by_one, z.counts[-1]))
    return Cost(facts, tuple(made[name] for name in TIMED), trained(z, made["MEND"].value), seed=seed)


def cost(benches: Benches, s: Cost) -> Row:
    """The row: seconds of each editor, in all and by phase; of moments, and of a step of MEND's training."""
    lab = benches.lab

    def compute(_: dict[str, Any]) -> dict[str, Any]:
        requests, at = benches.requests(s.facts), benches.at(s.facts)
        start = time.perf_counter()
        at = opened(lab, s.facts.model, s.facts.layers, texts=s.facts.texts, dtype=s.facts.dtype)
        before = {"moments and prefixes": time.perf_counter() - start}
        found = {}
        for name, (value, clamp) in zip(TIMED, s.settings, strict=True):
            editor = methods.made(lab, at, name, value, s.facts.layers, clamp=clamp, of=s.mend)
            timed(at, name, editor, requests[:1])  # what is done once in a process is none of its work
            found[name] = timed(at, name, editor, requests)
        net = editing.Networks.of(at.model, s.mend.layers, rank=s.mend.rank, seed=s.mend.seed)
        text = blocks(lab, s.facts.model.setup, s.facts.model.setup.corpus, "train", limit=200_000)
        start = time.perf_counter()
        editing.train_(net, at.model, at.tok, requests, text, editing.Training(steps=s.steps))
        before["training MEND, a step"] = (time.perf_counter() - start) / s.steps
        return {"facts": len(requests), "seconds": found, "before": before, "steps": s.mend.steps}

    return lab.store.row(COST, VERSION, s, compute, device=models.named_device(lab.device).type)


def timed(at: Bench, name: str, editor: Callable[..., Edit], requests: Sequence[Request]) -> dict[str, float]:
    """Seconds of one edit: in all, and what the editor says of its phases."""
    start = time.perf_counter()
    if METHODS[name].one_by_one:
        edit = editing.in_batches(editor, at.model, at.tok, requests, at.moments, 1, templates=at.templates)
    else:
        edit = editor(at.model, at.tok, requests, at.moments, templates=at.templates)
    return {"all": time.perf_counter() - start, **edit.seconds}


def own_rows(store: Store, scale: str, study: str) -> list[Row]:
    """This module's rows of one kind, one a seed, if all are there."""
    made, z = field.settings(store, scale), sizes(scale) if scale in factual.SCALES else None
    if z is None or not {"FT-W", "MEND", "MEMIT", "ROME"} <= made.keys():
        return []
    of = released_settings if study == RELEASED else cost_settings
    rows = [store.find(study, VERSION, of(z, made, seed=seed), recorded=True) for seed in z.seeds]
    return [] if None in rows else [row for row in rows if row is not None]


def table(lab: Lab, z: Field, made: Settings, study: str, benches: Benches) -> list[Row]:
    """The rows of one kind, one a seed, recorded; computed as `field.table` does."""
    of, run = (released_settings, released) if study == RELEASED else (cost_settings, cost)
    at = grids.reading(lab, benches)
    asked = [of(z, made, seed=seed) for seed in z.seeds]
    return [lab.store.find(study, VERSION, s, recorded=True) or run(at, s) for s in asked]  # type: ignore[operator]


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Means over seeds: `field.released.FT-W as released.NS`; `field.cost.ROME.all` in seconds."""
    found: dict[str, tuple[float | int, str, Row]] = {}

    def put(name: str, each: Sequence[float | int | None], unit: str, row: Row) -> None:
        known = [x for x in each if x is not None]
        if known:
            found[name] = (math.fsum(known) / len(known), unit, row)

    several = own_rows(store, scale, RELEASED)
    for group in ("switches", "losses"):
        for name in several[0].values[group] if several else ():
            for score in (*SHOWN, "counted"):
                own = [row.values[group][name][score] for row in several]
                unit = "requests" if score == "counted" else "%"
                put(f"field.released.{name}.{score}", own, unit, several[0])
    runs = own_rows(store, scale, COST)
    for name in TIMED if runs else ():
        for phase in runs[0].values["seconds"][name]:
            own = [row.values["seconds"][name][phase] for row in runs]
            put(f"field.cost.{name}.{phase}", own, "s", runs[0])
    for row in runs[:1]:
        found["field.cost.facts"] = (row.values["facts"], "facts", row)
        found["field.cost.steps"] = (row.values["steps"], "steps", row)
    for row in several[:1]:
        found["field.released.facts"] = (row.values["facts"], "facts", row)
        found["field.released.several"] = (row.values["several"], "facts", row)
    for phase in runs[0].values["before"] if runs else ():
        put(f"field.cost.{phase}", [row.values["before"][phase] for row in runs], "s", runs[0])
    return told(found)
