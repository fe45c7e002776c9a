"""Chapter 14, the field: every editor on the same requests, after as many trials as every other.

Trials, the contest and the questions of zsRE are rows of `many`. Settings are chosen on tuning facts by the rows alone,
for zsRE too: nothing is chosen on what is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kemem.runs import Row, Store
from kemem.studies import factual, grids, many
from kemem.studies.association import told
from kemem.studies.findings import Change, change
from kemem.studies.lab import Result
from kemem.studies.many import NONE, Many
from kemem.studies.methods import METHODS, Trained
from kemem.studies.pretraining import Pretraining

CHAPTER = "14_field"
ROWS: dict[str, int] = {}  # its rows are those of `many`
QUESTIONS = ("MEMIT", "FT-W", NONE, "MEND", "ROME")
UNITS = {"nats": "nats", "GE": "", "RS": ""}  # all others are in %
SHOWN = ("S", "ES", "PS", "NS", "NS+", "NM", "rewrite_acc", "paraphrase_acc")
UNLOADED = ("r-ROME",)
"""Left out where values are chosen a second time, at the largest count: ROME's neighbour, as slow as ROME."""
CLAMPED = tuple(name for name, method in METHODS.items() if method.clamps)
"""Set targets in the stream: four values are tried, then four clamps at the best of them; of others eight values."""


class Setting(NamedTuple):
    """What is chosen of a method: the value of its own setting, and how far targets may move the stream."""

    value: float
    clamp: float = 1.0


Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class Field:
    """Sizes of the comparison at a scale."""

    model: Pretraining
    counts: tuple[int, ...] = (1, 6, 10, 32, 64, 312)
    """Facts that are written at once; the largest are to 512 memories as the paper's 10,000 to 16,384."""
    followed: tuple[str, ...] = ("MEMIT", "FT-W", "MEND", "ROME", NONE)
    """Methods that are run at every count, those of the paper; the others at `few` of them."""
    few: tuple[int, ...] = (1, 10, 64, 312)
    tuning: int = 64
    """Facts of the tuning part on which values are chosen: an eighth of the memories of a layer."""
    least: int = 64
    """Facts that are scored where fewer are written at once: as many blocks as that takes."""
    one_by_one: int = 312
    """The most that an editor is given which writes one fact after another."""
    zsre: int = 312
    written: int = 24
    """Requests after which texts are generated, at the count of tuning and at the largest."""
    layers: tuple[int, ...] = (0, 1)
    mend_layers: tuple[int, ...] = (3, 4, 5)
    mend_steps: int = 300
    mend_rank: int = 64
    mend_asked: int = 400
    mend_skipped: int = 128
    chunk: int = 37
    """Requests that MEND as released reads at a time; of 312 the last chunk has 16, as of 10,000 with 128."""
    tried: int = 8
    """Values of each method at most, at even distances among those it has."""
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of methods whose values are not those of METHODS."""
    clamps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Likewise of their clamps."""
    switched: int | None = None
    """Facts on which released defects are switched; None: the largest count."""
    names: tuple[str, ...] = tuple(METHODS)
    texts: int = 2000
    dtype: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def together(self) -> int:
        """The largest count at which every method is run."""
        return max(n for n in self.counts if n <= self.one_by_one)

    @property
    def written_at(self) -> tuple[int, int]:
        """Counts at which GE and RS are measured: the one nearest to that of tuning, and the largest."""
        return min(self.counts, key=lambda n: abs(n - self.tuning)), self.counts[-1]

    def texts_at(self, count: int) -> int:
        """Requests after which texts are generated, where so many facts are written at once."""
        return min(count, self.written) if count in self.written_at else 0


SIZES: dict[str, dict[str, Any]] = {
    "smoke": {
        "counts": (2, 4), "tuning": 6, "least": 2, "one_by_one": 4, "zsre": 4, "written": 1, "mend_layers": (2, 3),
        "mend_steps": 1, "mend_rank": 8, "mend_asked": 40, "mend_skipped": 20, "chunk": 3, "tried": 2,
        "names": ("MEMIT", "PMET", "ROME", "FT-W", "MEND"), "texts": 60, "seeds": (0,), "values": {},
    },
    # an editor that writes one fact after another takes a third of a second for each: it gets few, and few trials
    "gpu": {
        "counts": (1, 16, 64, 128, 1024, 10_000), "few": (1, 64, 1024), "one_by_one": 128, "zsre": 256,
        "switched": 1000, "chunk": 128, "mend_rank": 256, "mend_asked": 2000, "mend_skipped": 512, "tried": 4,
        "names": ("MEMIT", "PMET", "EMMET", "AlphaEdit", "ROME", "FT", "FT-W", "MEND"), "texts": 10_000, "seeds": (0,),
    },
    # as published for GPT-J: one value of each editor, at the layers of its authors; MEND's networks are trained here
    "paper": {
        "counts": (1, 10, 100, 1000, 10_000), "few": (1, 100, 1000), "tuning": 100, "least": 100, "one_by_one": 100,
        "zsre": 500, "switched": 1000, "chunk": 128, "mend_rank": 1920, "mend_asked": 3000, "mend_skipped": 512,
        "tried": 1, "texts": 4000, "seeds": (0,),
        "values": {
            "MEMIT": (15_000.0,), "PMET": (6000.0,), "EMMET": (10_000.0,), "AlphaEdit": (10.0,), "ROME": (4.0,),
            "r-ROME": (4.0,), "FT": (5e-4,), "FT-L": (5e-5,), "FT-W": (5e-4,), "FT-M": (5e-4,), "MEND": (1e-5,),
        },
        "clamps": dict.fromkeys(CLAMPED, (0.75,)),
    },
}  # fmt: skip
WEIGHED = ("MEMIT", "PMET", "EMMET")
"""Methods whose setting is a weight of the old memory: tried by its ratio to the number of memories."""
SLOWER = {"gpu": 0.1}
"""Learning rates of fine-tuning are tried at this share of those of the laptop's small model."""


def sizes(scale: str, *, dtype: str | None = None, model: Pretraining | None = None) -> Field:
    """model: the scale's own unless given. Weights are those of the laptop's trials, in keys to a memory."""
    model = model or factual.settings(scale)
    values = {name: factual.weighed(model, METHODS[name].values) for name in WEIGHED}
    if scale in SLOWER:
        rates = {name: m.values for name, m in METHODS.items() if m.setting == "rate"}
        values |= {name: tuple(SLOWER[scale] * x for x in own) for name, own in rates.items()}
    found = {
        "layers": factual.critical(model), "mend_layers": factual.last(model), "values": values,
        **SIZES.get(scale, {}),
    }  # fmt: skip
    return Field(model, dtype=dtype, **found)


def trained(z: Field, rate: float) -> Trained:
    """How MEND's networks are trained, once for all draws of facts, on tuning facts that no trial edits."""
    return Trained(
        z.model, z.mend_layers, rate, z.mend_steps, z.mend_rank, z.mend_asked, z.mend_skipped, z.dtype
    )


def one(
    z: Field, name: str, of: Setting, count: int, *, blocks: int = 0, seed: int = 0, **changes: Any
) -> Many:
    """A row of `many`. blocks: 0 for as many as it takes to score `least` facts."""
    return Many(
        z.model, name, of.value, count, z.layers, clamp=of.clamp, blocks=blocks or max(1, math.ceil(z.least / count)),
        texts=z.texts, dtype=z.dtype, mend=trained(z, of.value) if name == "MEND" else None, seed=seed, **changes,
    )  # fmt: skip


def facts(z: Field, count: int, *, seed: int = 0) -> Many:
    """The row of no editor that has so many facts in one block: it names them."""
    return one(z, NONE, Setting(0.0), count, blocks=1, seed=seed)


def spaced(found: Sequence[float], most: int) -> Sequence[float]:
    """At most so many of them, at even distances."""
    step = max(1, len(found) // most)
    return found[step // 2 :: step]


def tuning(z: Field, count: int | None = None) -> dict[tuple[str, Setting], Many]:
    """All trials, by method and setting. count: of facts at once; None: as many as usual."""
    names = [name for name in z.names if not (count and name in UNLOADED)]
    return {
        (name, of): one(z, name, of, count or z.tuning, part="tuning", blocks=1)
        for name in names
        for of in paired(name, z.tried, z.values.get(name), z.clamps.get(name))
    }


def paired(
    name: str, most: int, values: Sequence[float] | None = None, clamps: Sequence[float] | None = None
) -> list[Setting]:
    """At most so many settings of a method: its values; of one that sets targets, each value with each clamp."""
    clamps = clamps or METHODS[name].clamps or (1.0,)
    return [
        Setting(value, x)
        for x in clamps
        for value in spaced(values or METHODS[name].values, max(1, most // len(clamps)))
    ]


def chosen(rows: Mapping[tuple[str, Setting], Row]) -> dict[str, Setting]:
    """Of each method the setting with the highest S on tuning facts, and among equals the highest NM; 0 of none."""

    def rank(of: Setting, name: str) -> tuple[float, float]:
        after = rows[name, of].values["after"]
        return after["S"] or 0.0, after["NM"] or 0.0

    by: dict[str, list[Setting]] = {}
    for name, of in rows:
        by.setdefault(name, []).append(of)
    return {NONE: Setting(0.0)} | {name: max(own, key=lambda of: rank(of, name)) for name, own in by.items()}


def contest(z: Field, settings: Settings) -> dict[tuple[str, int, int], Many]:
    """By method, count and seed of facts: each method as chosen, and none."""
    return {
        (name, count, seed): one(z, name, of, count, seed=seed, written=z.texts_at(count))
        for name, of in settings.items()
        for count in z.counts
        if (name in z.followed or count in z.few)
        and not (name in METHODS and METHODS[name].one_by_one and count > z.one_by_one)
        for seed in z.seeds
    }


def loaded(z: Field, settings: Settings) -> dict[tuple[str, int, int], Many]:
    """The contest at the largest count of all methods, with settings that were chosen at that count."""
    n = z.together
    return {
        (name, n, seed): one(z, name, of, n, seed=seed, written=z.texts_at(n))
        for name, of in settings.items()
        for seed in z.seeds
    }


def questions(z: Field, settings: Settings) -> dict[tuple[str, int], Many]:
    """By method and seed: the answers to questions on entities that the model has not read of, all at once."""
    return {
        (name, seed): one(z, name, settings[name], z.zsre, seed=seed, records="zsre", blocks=1)
        for name in QUESTIONS
        if name in settings
        for seed in z.seeds
    }


# ---------------------------------------------------------------------- trials and what they say
def trials(store: Store, scale: str, *, load: bool = False) -> dict[tuple[str, Setting], Row]:
    """All trials of a scale if they are there; nothing is computed. load: those at the largest count of all methods."""
    if scale not in factual.SCALES:
        return {}
    z = sizes(scale)
    return grids.finished(store, tuning(z, z.together if load else None))


def settings(store: Store, scale: str, *, load: bool = False) -> dict[str, Setting]:
    """What was chosen at a scale, where all trials are there."""
    rows = trials(store, scale, load=load)
    return chosen(rows) if rows else {}


def scores(rows: Mapping[tuple[str, int, int], Row], name: str, count: int, score: str) -> list[float]:
    """A score of a method after `count` edits, one number a seed; without those that have none.

    GE and RS are those of the texts, "nats" of ordinary text; `none` is the unedited model on the same facts.
    """
    found = []
    for (method, n, _), row in rows.items():
        if method == name and n == count:
            after = row.values["after"]
            own = (after["texts"] or {}).get(score) if score in ("GE", "RS") else after[score]
            found += [] if own is None else [own]
    return found


def counts(rows: Mapping[tuple[str, int, int], Row], name: str) -> list[int]:
    """Counts at which a method was run."""
    return sorted({n for method, n, _ in rows if method == name})


def mean(found: Sequence[float]) -> Change | None:
    return change(found) if found else None


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Means over seeds: `field.MEMIT.64.ES`, or `.largest.`; `field.zsre.ROME.S_tokens`; what was chosen."""
    rounds = trials(store, scale)
    if not rounds:
        return {}
    made = chosen(rounds)
    z = sizes(scale)
    found: dict[str, tuple[float | int, str, Row]] = {}

    def put(name: str, each: Sequence[float | int | None], unit: str, row: Row) -> None:
        known = [x for x in each if x is not None]
        if known:
            found[name] = (math.fsum(known) / len(known), unit, row)

    trial = next(iter(rounds.values()))
    for name, of in made.items():
        found[f"field.{name}.value"] = (of.value, METHODS[name].setting if name in METHODS else "", trial)
        found[f"field.{name}.clamp"] = (of.clamp, "of the stream", trial)
    found["field.tuning"] = (z.tuning, "facts", trial)
    found["field.together"] = (z.together, "facts", trial)
    found["field.largest"] = (z.counts[-1], "facts", trial)
    heavy = settings(store, scale, load=True)
    for (name, count, seed), row in (own := grids.finished(store, loaded(z, heavy)) if heavy else {}).items():
        if seed == z.seeds[0]:
            for score in (*SHOWN, "nats", "GE", "RS"):
                put(f"field.{name}.load.{score}", scores(own, name, count, score), UNITS.get(score, "%"), row)
            found[f"field.{name}.load.value"] = (
                heavy[name].value,
                METHODS[name].setting if name in METHODS else "",
                row,
            )
    rows = grids.finished(store, contest(z, made))
    ends = (("least", z.counts[0]), ("together", z.together), ("largest", z.counts[-1]))
    for (name, count, seed), row in rows.items():
        if seed == z.seeds[0]:
            for called in (str(count), *(end for end, n in ends if n == count)):
                for score in (*SHOWN, "nats", "GE", "RS"):
                    put(
                        f"field.{name}.{called}.{score}",
                        scores(rows, name, count, score),
                        UNITS.get(score, "%"),
                        row,
                    )
    asked = grids.finished(store, questions(z, made))
    for (name, seed), row in asked.items():
        if seed == z.seeds[0]:
            own = [r.values["after"] for (other, _), r in asked.items() if other == name]
            for score in ("S_tokens", *many.TOKENS):
                put(f"field.zsre.{name}.{score}", [v[score] for v in own], "%", row)
            found["field.zsre.facts"] = (row.values["facts"], "questions", row)
    return told(found)
