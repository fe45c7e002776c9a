"""Chapter 10: every method on one budget of steps, text and trials.

Each method has four trials on validation text, with one seed and in one order, and where the best of them lies at an
end of what was tried, one or two beyond it. The best is run with all seeds in all orders and judged on test text. Parts
of DAS are left out, and defects of its released code put in, with the settings that were chosen for DAS.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from kemem.continual import named
from kemem.runs import Row, Store
from kemem.studies import courses, pool
from kemem.studies.courses import Learning, Value
from kemem.studies.domain_sizes import SCALES, Budget, real, sizes
from kemem.studies.lab import Lab
from kemem.studies.trials import SQUARE as SQUARE
from kemem.studies.trials import TRIED as TRIED
from kemem.studies.trials import Setting

MEASURING = ("ewc", "fisher-mask", "das")
"""Methods that measure importances on rows of each domain."""


# ---------------------------------------------------------------------- the rows
def one(z: Budget, name: str, of: Setting, *, seed: int = 0, order: int = 0, **changes: Any) -> Learning:
    """A row of `courses`: a method of TRIED or SQUARE as it was set."""
    method, _, by = name.partition(", ")
    own = (
        of.changes
        + ((("by", by),) if by else ())
        + ((("samples", z.measured),) if method in MEASURING else ())
    )
    if name == "adapters-one":
        method, own = "adapter-sequential", (*own, ("per_domain", True))
    texts = tuple(z.base.domains[place] for place in z.orders[order])
    return replace(
        z.base, domains=texts, method=method, changes=own, learning_rate=of.rate, seed=seed, **changes
    )


def tuning(z: Budget) -> dict[tuple[str, Setting], Learning]:
    """All trials, by method and setting."""
    return {
        (name, of): one(z, name, of, part="validation")
        for name in (*z.names, *z.square)
        for of in z.trials[name].trials()[: z.tried]
    }


def beyond(z: Budget, rows: Mapping[tuple[str, Setting], Row]) -> dict[tuple[str, Setting], Learning]:
    """Further trials of those methods whose best lies at an end of what was tried. rows: of `tuning`."""
    if z.tried < 4:
        return {}
    return {
        (name, of): one(z, name, of, part="validation")
        for name, best in chosen(rows).items()
        for of in z.trials[name].beyond(best)
    }


def chosen(rows: Mapping[tuple[str, Setting], Row]) -> dict[str, Setting]:
    """Of each method the setting with the lowest loss over all domains at the end; among equals the first."""
    by: dict[str, list[Setting]] = {}
    for name, of in rows:
        by.setdefault(name, []).append(of)
    return {
        name: min(own, key=lambda of, name=name: courses.course(rows[name, of]).average)  # type: ignore[misc]
        for name, own in by.items()
    }


Settings = Mapping[str, Setting]
Place = tuple[str, int, int]
"""(name, order, seed)"""


def contest(z: Budget, settings: Settings) -> dict[Place, Learning]:
    """Each method as chosen."""
    return _everywhere(z, {name: one(z, name, settings[name]) for name in z.names})


def ablations(z: Budget, settings: Settings) -> dict[Place, Learning]:
    """DAS with a part left out."""
    whole = one(z, "das", settings["das"])
    return _first(z, {name: replace(whole, variant=name) for name in z.parts})


def parts(z: Budget, settings: Settings) -> dict[Place, Learning]:
    """DAS with a part left out; and with its first importance measured on the text of pretraining, in two ways."""
    whole = one(z, "das", settings["das"])
    arms = {f"stand-in-{by}": replace(whole, method="das-stand-in", variant=by) for by in ("kl", "loss")}
    return {**ablations(z, settings), **_first(z, arms)}


def published(scale: str, settings: Settings, *, device: str | None = None) -> dict[Place, Learning]:
    """The methods and the ablations on domains of the paper; none where the scale has none.

    settings: what was chosen for the model that fills in masked tokens, on the other domains. device: of `sizes`.
    """
    z = real(scale, device=device)
    return {**contest(z, settings), **ablations(z, settings)} if z and settings else {}


def defects(z: Budget, settings: Settings) -> dict[Place, Learning]:
    """DAS with a defect of its released code, or all of them."""
    whole = one(z, "das", settings["das"])
    variants = named.LEARNERS["das"].variants
    return _first(
        z,
        {
            # settings that were chosen would go before those of a variant
            name: replace(
                whole, variant=name, changes=tuple(c for c in whole.changes if c[0] not in variants[name])
            )
            for name in z.defects
        },
    )


def importances(z: Budget, settings: Settings) -> dict[Place, Learning]:
    """DAS with importance from pruning, with its own from a share of the rows, and otherwise normalised."""
    whole = one(z, "das", settings["das"])
    arms = {name: _changed(whole, importance=name) for name in z.importances}
    arms |= {f"{share:g}": _changed(whole, samples=share) for share in z.shares}
    arms |= {how: _changed(whole, normalisation=how) for how in z.normalisations}
    return _first(z, arms)


def _changed(s: Learning, **changes: Value) -> Learning:
    """The row with these settings of its method, in place of what they were."""
    return replace(s, changes=tuple({**dict(s.changes), **changes}.items()))


def square(z: Budget, settings: Settings) -> dict[Place, Learning]:
    """Penalty or mask, by parameter or by unit."""
    return _first(z, {name: one(z, name, settings[name]) for name in z.square})


def plugins(z: Budget, settings: Settings) -> dict[Place, Learning]:
    """CPT parallel and sequential, with as many parameters, with and without masks of tasks."""
    if "cpt" not in z.names:
        return {}
    rate = settings["cpt"].rate
    arms = {
        f"{placement}, {'masks' if masks else 'no masks'}": one(
            z, "cpt", Setting(rate, (("placement", placement), ("task_masks", masks)))
        )
        for placement in ("parallel", "sequential")
        for masks in (True, False)
    }
    return _first(z, arms, z.aside)


def starts(z: Budget, settings: Settings) -> dict[Place, Learning]:
    """Plain training from earlier stages of the same model."""
    whole = one(z, "ncl", settings["ncl"])
    steps = {share: whole.model.setup.at((share,))[0] for share in z.stages}
    return _first(z, {f"{share:g}": replace(whole, step=step) for share, step in steps.items()}, z.aside)


def _everywhere(z: Budget, arms: Mapping[str, Learning]) -> dict[Place, Learning]:
    return {
        (name, order, seed): replace(
            s, seed=seed, domains=tuple(z.base.domains[place] for place in z.orders[order])
        )
        for name, s in arms.items()
        for order in range(len(z.orders))
        for seed in z.seeds
    }


def _first(
    z: Budget, arms: Mapping[str, Learning], seeds: tuple[int, ...] | None = None
) -> dict[Place, Learning]:
    """In the first order only; seeds: those of the comparison unless others are given."""
    return {(name, 0, seed): replace(s, seed=seed) for name, s in arms.items() for seed in seeds or z.seeds}


Key = TypeVar("Key", bound=Hashable)


def table(lab: Lab, grid: Mapping[Key, Learning]) -> dict[Key, Row]:
    """The rows of a grid: recorded, or computed side by side where this scale has no records."""
    found = pool.rows(lab, [(courses.run, (s, True)) for s in grid.values()])
    return dict(zip(grid, found, strict=True))


def finished(store: Store, grid: Mapping[Key, Learning]) -> dict[Key, Row]:
    """The rows of a grid if all are there, else none; nothing is computed."""
    rows = _found(_Place(store), tuple(grid.values()))
    return {} if rows is None else dict(zip(grid, rows, strict=True))


class _Place:
    """Where rows are looked for, as it is now: equal to another while no file came or went there."""

    def __init__(self, store: Store) -> None:
        self.store = store
        folders = [root / courses.STUDY for root in (store.records, store.live) if root is not None]
        stamps = tuple((str(f), f.stat().st_mtime_ns if f.is_dir() else 0) for f in folders)
        self.key = (store.mode, store.keep_stale, stamps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=64)
def _found(place: _Place, asked: tuple[Learning, ...]) -> tuple[Row, ...] | None:
    """Every claim of part 2 asks for the same rows, so they are read once."""
    rows = [place.store.find(courses.STUDY, courses.VERSION, s, recorded=True) for s in asked]
    return None if None in rows else tuple(row for row in rows if row is not None)


def trials(store: Store, scale: str, *, masked: bool = False) -> dict[tuple[str, Setting], Row]:
    """All trials of a scale, those beyond an end too, where they are there; nothing is computed."""
    if scale not in SCALES:
        return {}
    return trials_of(store, sizes(scale, masked=masked))


def trials_of(store: Store, z: Budget) -> dict[tuple[str, Setting], Row]:
    """The same of these sizes, which may have fewer methods."""
    first = finished(store, tuning(z))
    further = beyond(z, first)
    more = finished(store, further)
    return {**first, **more} if len(more) == len(further) else {}


def settings(store: Store, scale: str, *, masked: bool = False) -> dict[str, Setting]:
    """What was chosen at a scale, where all trials are there."""
    return chosen(trials(store, scale, masked=masked))


def tried(lab: Lab, z: Budget) -> dict[tuple[str, Setting], Row]:
    """All trials of these sizes: recorded, or computed where the scale has no records."""
    first = table(lab, tuning(z))
    return {**first, **table(lab, beyond(z, first))}
