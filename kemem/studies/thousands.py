"""Chapter 13, writing thousands: MEMIT by the number of facts, by the weight of the old memory, and by layers.

Grids of `many` rows and what is read of them. Weight and clamp are chosen on tuning facts, in code, and are those of
all other rows; how many facts there are to write is known once the model was asked: the row on capacity tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kemem.editing import Search
from kemem.editing.scores import SUCCESS
from kemem.runs import MissingRow, Row, Store
from kemem.studies import capacity, factual, many
from kemem.studies.association import told
from kemem.studies.capacity import Capacity, blocks_of, up_to
from kemem.studies.lab import Lab, Result
from kemem.studies.many import Benches, Many
from kemem.studies.methods import ATTENTION, METHODS, TARGET_CLAMPS
from kemem.studies.pretraining import Pretraining

CHAPTER = "13_thousands"
VERSION = many.VERSION
ROWS = {many.STUDY: many.VERSION, **capacity.ROWS}
METHOD = "MEMIT"
SEEDS = {"smoke": (0,), "laptop": (0, 1, 2), "gpu": (0,), "paper": (0,)}
"""Of the draws of facts; the first is live in the chapter."""
LOAD = 10_000 / 16_384  # facts to memories of a layer, as published
LIVE = 128  # facts at once that a chapter writes on the reader's machine; more are recorded
CLAMP = 1.0  # at which weights are tried
PHASES = ("values", "keys", "solve")
TEXTS = ("GE", "RS")
AROUND = (0.3, 3.0, 1000.0, 3000.0)
WEIGHTS = tuple(sorted({*AROUND, *METHODS[METHOD].values}))
"""Of the sweep: those that are tried, and others around them, over four decades."""
Trial = tuple[float, float]
"""What is tried of MEMIT: a weight of the old memory, and how far a target may move the stream, in lengths of it."""


@dataclass(frozen=True)
class Thousands:
    """What the rows of this chapter share, and the grids they lie on."""

    model: Pretraining
    layers: tuple[int, ...] = (0, 1)
    """The critical ones, lowest first."""
    counts: tuple[int, ...] = (1, 4, 16, 64, 128, 312, 512)
    """Facts at once; all that are known are added as the last. 312 to 512 memories are as 10,000 to GPT-J's 16,384."""
    least: int = 64
    """Facts that are scored at least: fewer at once are written in several blocks, the model restored in between."""
    most: int | None = None
    """Facts at most; None: all that the model knows."""
    at: int = 64
    """Facts of the trials and of the sweeps of weights and layers: an eighth of a layer's memories."""
    tried: tuple[float, ...] = METHODS[METHOD].values
    """Weights of the trials, ..."""
    clamp: float = CLAMP
    """... at this clamp, ..."""
    clamps: tuple[float, ...] = TARGET_CLAMPS
    """... and clamps that are tried at the best of them."""
    weights: tuple[float, ...] = WEIGHTS
    heavier: tuple[float, ...] = (10.0, 100.0, 300.0, 1000.0)
    """Weights that are tried at the published load; none: the others hold there too."""
    swept: tuple[str, ...] = ()
    """Ranges of layers that are written, by their names in `spans`; none named: all."""
    written: int = 8
    texts: int = 2000
    dtype: str | None = None
    seed: int = 0

    @property
    def load(self) -> int:
        """The number of facts that are to a layer's memories most nearly what the paper's are to GPT-J's."""
        return min(self.counts, key=lambda n: abs(n / self.model.setup.memories - LOAD))


SIZES: dict[str, dict[str, Any]] = {
    "smoke": {
        "layers": (0, 1), "counts": (1, 2, 4, 8), "least": 8, "most": 24, "at": 8,
        "weights": (0.3, 10.0, 30.0, 100.0, 300.0, 3000.0), "heavier": (10.0, 100.0), "written": 1, "texts": 100,
        "tried": METHODS[METHOD].values,
    },
    "gpu": {"counts": (1, 16, 128, 1024, 5000), "least": 128, "most": 10_000, "at": 512, "texts": 10_000},
    # nothing is tried: weight and clamp are the published ones
    "paper": {
        "counts": (1, 10, 100, 1000, 10_000), "least": 100, "most": 10_000, "at": 1000, "texts": 4000, "heavier": (),
        "clamp": Search().clamp, "clamps": (Search().clamp,),
        "swept": ("critical", "highest 1", "highest 3", "early", "late", "layer 3", "layer 5", "layer 8"),
    },
}  # fmt: skip
HEAVIER = {"gpu": (100.0, 1000.0)}
"""Weights that are tried at the published load where not those of the laptop; per MEMORIES, as all others."""
AROUND_ONE = (0.1, 1 / 3, 1.0, 3.0, 10.0)
"""The sweep of weights where nothing is tried, in published ones."""


def settings(
    scale: str, *, seed: int = 0, dtype: str | None = None, model: Pretraining | None = None
) -> Thousands:
    """The model is the same for every seed: that of the facts, of the new objects and of the prefixes.

    model: the scale's own unless given. Weights of the old memory are those of the laptop to a memory.
    """
    model = model or factual.settings(scale)
    tried = factual.weighed(model, METHODS[METHOD].values)
    around = factual.weighed(model, WEIGHTS) if len(tried) > 1 else [x * tried[0] for x in AROUND_ONE]
    sizes = {
        "layers": factual.critical(model), "tried": tried, "weights": tuple(around),
        "heavier": factual.weighed(model, HEAVIER.get(scale, Thousands.heavier)), **SIZES.get(scale, {}),
    }  # fmt: skip
    return Thousands(model, dtype=dtype, seed=seed, **sizes)


# ---------------------------------------------------------------------- grids
def one(s: Thousands, at: Trial, count: int, *, least: int = 1, **rest: Any) -> Many:
    """A row of MEMIT: `count` facts at once, in as many blocks as score `least`."""
    base = Many(
        s.model, METHOD, at[0], count, s.layers, clamp=at[1], blocks=blocks_of(count, least), written=s.written,
        texts=s.texts, dtype=s.dtype, seed=s.seed,
    )  # fmt: skip
    return replace(base, **rest)


def trials(s: Thousands) -> dict[Trial, Many]:
    """Weights that are tried first, on tuning facts. Their draw is the same whatever the draw of reported facts."""
    return {(x, s.clamp): one(s, (x, s.clamp), s.at, part="tuning", written=0, seed=0) for x in s.tried}


def clampings(s: Thousands, weight: float) -> dict[Trial, Many]:
    """Clamps that are tried then, at the best of the weights."""
    return {(weight, x): one(s, (weight, x), s.at, part="tuning", written=0, seed=0) for x in s.clamps}


def chosen(rows: Mapping[Trial, Row]) -> Trial:
    """The trial with the highest S, among equals that whose neighbours keep most of their probability (NM)."""
    return max(rows, key=lambda x: (score(rows[x], "S") or 0.0, score(rows[x], "NM") or 0.0))


def loaded(s: Thousands, clamp: float) -> dict[Trial, Many]:
    """Trials at the published load, on tuning facts: heavier old memories, at either clamp."""
    return {
        (x, c): one(s, (x, c), s.load, part="tuning", written=0, seed=0)
        for x in s.heavier
        for c in dict.fromkeys((s.clamp, clamp))
    }


def heavy(s: Thousands, at: Trial, known: int) -> dict[int, Many]:
    """By number of facts, from that of the first trials on, with what was chosen at the published load."""
    return {n: one(s, at, n, written=0) for n in up_to(s.counts, known, s.least) if n >= min(s.at, s.load)}


def capacities(s: Thousands, at: Trial) -> Capacity:
    return Capacity(one(s, at, 1, written=0), s.counts, s.weights, s.least, s.most, s.seed)


def scaling(s: Thousands, at: Trial, known: int) -> dict[int, Many]:
    """By number of facts at once. known: how many there are; the last row writes them all."""
    return {n: one(s, at, n, least=min(s.least, known)) for n in up_to(s.counts, known, s.least)}


def weights(s: Thousands, clamp: float) -> dict[float, Many]:
    """By weight of the old memory."""
    return {x: one(s, (x, clamp), s.at) for x in s.weights}


def spans(s: Thousands) -> dict[str, tuple[int, ...]]:
    """Ranges of layers by name: critical ones from the highest down, ranges as long elsewhere, and each layer alone.

    "late" and "all but the last" end below the last block: what that puts out at the subject no later token reads.
    """
    layers, wide = s.model.setup.layers, len(s.layers)
    middle = (layers - wide) // 2
    late = max(0, layers - 1 - wide)
    found = {f"highest {n}": s.layers[-n:] for n in range(1, wide)}
    every = {
        "critical": s.layers, **found, "early": tuple(range(wide)), "middle": tuple(range(middle, middle + wide)),
        "late": tuple(range(late, layers - 1)), "all but the last": tuple(range(layers - 1)),
        **{f"layer {i}": (i,) for i in range(layers)},
    }  # fmt: skip
    return {name: span for name, span in every.items() if not s.swept or name in s.swept}


def layers(s: Thousands, at: Trial) -> dict[str, Many]:
    """By the layers that are written, with what was chosen for the critical ones; texts of those alone.

    "attention" writes into what attention puts out in the critical layers, instead of their values.
    """
    found = {
        name: one(s, at, s.at, layers=span, written=s.written if span == s.layers else 0)
        for name, span in spans(s).items()
    }
    found["attention"] = one(s, at, s.at, method=ATTENTION, written=0)
    return found


# ---------------------------------------------------------------------- rows
@dataclass(frozen=True)
class Sweeps:
    """All rows of one draw of facts."""

    trials: dict[Trial, Row]
    weight: float
    clamp: float
    """Both chosen from the trials."""
    capacity: Row
    scaling: dict[int, Row]
    weights: dict[float, Row]
    layers: dict[str, Row]
    load: int
    loaded: dict[Trial, Row]
    heavy: dict[int, Row]

    @property
    def published(self) -> Row:
        """That with as many facts to a memory as published, or with all where they are fewer."""
        return self.scaling.get(self.load, self.scaling[max(self.scaling)])

    @property
    def heavily(self) -> Row:
        """The same with what was chosen there."""
        return self.heavy.get(self.load, self.heavy[max(self.heavy)])

    @property
    def rows(self) -> list[Row]:
        """Each once."""
        every = [
            *self.trials.values(), self.capacity, *self.scaling.values(), *self.weights.values(), *self.layers.values(),
            *self.loaded.values(), *self.heavy.values(),
        ]  # fmt: skip
        return list({row.digest: row for row in every}.values())


def gathered(
    s: Thousands, edited: Callable[[Many], Row], held: Callable[[Capacity], Row],
    curve: Callable[[Many], Row] | None = None,
) -> Sweeps:  # fmt: skip
    """The sweeps from whatever gives rows: trials first, as the others hang on their choice. curve: gives those of
    the curve by number of facts, where they come from elsewhere."""
    tried = {x: edited(m) for x, m in trials(s).items()}
    tried |= {x: edited(m) for x, m in clampings(s, chosen(tried)[0]).items()}
    at = chosen(tried)
    room = held(capacities(s, at))
    grown = {n: (curve or edited)(m) for n, m in scaling(s, at, room.values["known"]).items()}
    more = {x: edited(m) for x, m in loaded(s, at[1]).items()}
    found = [{key: edited(m) for key, m in grid.items()} for grid in (weights(s, at[1]), layers(s, at))]
    if not more:  # what was chosen on few facts holds for many
        return Sweeps(
            tried, *at, room, grown, *found, s.load, more, {n: r for n, r in grown.items() if n >= s.at}
        )
    heavier = heavy(s, chosen(more), room.values["known"])
    return Sweeps(tried, *at, room, grown, *found, s.load, more, {n: edited(m) for n, m in heavier.items()})


def run(lab: Lab, s: Thousands, *, recorded: bool = False, most: int = LIVE) -> Sweeps:
    """All rows of a draw of facts. Of the curve those of up to `most` facts are computed here, unless `recorded`; all
    others are taken from the records, where they are there."""
    benches = Benches(lab)

    def taken(m: Many) -> Row:
        return lab.store.find(many.STUDY, many.VERSION, m, recorded=True) or many.run(benches, m)

    def here(m: Many) -> Row:
        return many.run(benches, m) if m.count <= most and not recorded else taken(m)

    def held(c: Capacity) -> Row:
        found = lab.store.find(capacity.STUDY, capacity.VERSION, c, recorded=True)
        return found or capacity.run(benches, c)

    return gathered(s, taken, held, here)


def finished(store: Store, s: Thousands, *, recorded: bool = False) -> Sweeps | None:
    """The same where every row is there, else None; nothing is computed."""

    def found(study: str, version: int, asked: Any) -> Row:
        row = store.find(study, version, asked, recorded=recorded)
        if row is None:
            raise MissingRow(study)
        return row

    try:
        return gathered(
            s,
            lambda m: found(many.STUDY, many.VERSION, m),
            lambda c: found(capacity.STUDY, capacity.VERSION, c),
        )
    except MissingRow:
        return None


# ---------------------------------------------------------------------- reading rows
def score(row: Row, name: str, when: str = "after") -> float | None:
    """A score in %, or of generated texts (GE, RS) times 100, or `nats` of ordinary text; None where there is none."""
    own = row.values[when]
    return (own["texts"] or {}).get(name) if name in TEXTS else own[name]


def curve(rows: Mapping[Any, Row], name: str, when: str = "after") -> list[float | None]:
    return [score(row, name, when) for row in rows.values()]


def across(
    draws: Sequence[Sweeps], grid: str, name: str, when: str = "after"
) -> tuple[list[Any], list[list[float]]]:
    """Places on a grid ("scaling", "weights") and a score there in each draw of facts; "all" lies where the first has
    it. Draws of another length, or with a place without a number, are left out."""
    places = list(getattr(draws[0], grid))
    curves = [curve(getattr(each, grid), name, when) for each in draws]
    kept = [[y for y in own if y is not None] for own in curves]
    return places, [own for own in kept if len(own) == len(places)]


def seconds(row: Row) -> dict[str, float]:
    """Of a fact, by phase. A target that other rows need too counts with the seconds that its search took."""
    return {name: row.values["seconds"].get(name, 0.0) / row.values["facts"] for name in PHASES}


def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of the first draw of facts: by count ("all" is the last), weight and layers, and of capacity."""
    found = finished(store, settings(scale)) if scale in factual.SCALES else None
    if found is None:
        return {}
    room = found.capacity
    v, points = room.values, room.values["points"]
    all_rows = list(found.scaling.values())
    named: dict[str, tuple[float | int, str, Row]] = {
        "thousands.weight": (found.weight, "keys", found.trials[found.weight, found.clamp]),
        "thousands.clamp": (found.clamp, "lengths of the stream", found.trials[found.weight, found.clamp]),
        "thousands.load": (found.load, "facts", found.published),
        "thousands.heavy.weight": (
            found.heavily.settings["value"],
            "keys",
            found.heavily,
        ),
        **{f"thousands.{name}": (v[name], "", room) for name in ("known", "subjects", "memories", "width")},
        "thousands.at": (found.layers["critical"].values["facts"], "facts", found.layers["critical"]),
    }
    rows = {f"n {count}": row for count, row in found.scaling.items()}
    rows |= {"first": all_rows[0], "all": all_rows[-1]}
    rows |= {f"weight {x:g}": row for x, row in found.weights.items()} | found.layers
    rows |= {f"heavy {count}": row for count, row in found.heavy.items()}
    for name, row in rows.items():
        for own in ("S", *SUCCESS, "NS+", "EM", "PM", "NM", "nats", *TEXTS):
            for when, mark in (("after", ""), ("before", " before")):
                value = score(row, own, when)
                if value is not None:
                    unit = "nats" if own == "nats" else "" if own in TEXTS else "%"
                    named[f"thousands.{name}.{own}{mark}"] = (value, unit, row)
        for phase, spent in seconds(row).items():
            named[f"thousands.{name}.{phase}"] = (1000 * spent, "ms", row)
    ends = (("first", points[0]), ("all", points[-1]))
    for name, point in (*((f"n {point['count']}", point) for point in points), *ends):
        shares = {own: point[own] for own in ("keys", "isotropic", "residuals", "left")}
        shares |= {own: point[own][-1] for own in ("unwritten", "disturbance")}
        named |= {f"capacity.{name}.{own}": (100 * share, "%", room) for own, share in shares.items()}
        for own in ("dimension", "rank"):
            named[f"capacity.{name}.{own}"] = (point[own][-1], "directions", room)
    named["capacity.rank"] = (v["rank"][-1], "directions", room)
    return told(named)
