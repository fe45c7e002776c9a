"""Chapter 06: the same question in other settings, one factor at a time, and arms that separate entropy from rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kemem.runs import Row, Store
from kemem.studies import arms, outcomes, pool, pretraining
from kemem.studies.arms import Arm, settings
from kemem.studies.findings import Change, change
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining

CHAPTER = "06_rivals"
STUDY, VERSION = arms.STUDY, arms.VERSION
ROWS = {STUDY: VERSION}
BASELINE = "baseline"

SMALLER = {
    "smoke": {"layers": 1, "width": 16, "memories": 24},
    "laptop": {"layers": 3, "width": 64, "memories": 256},
    "gpu": {"layers": 6, "width": 384, "memories": 1536, "heads": 6},
}
NEAR = {
    "smoke": "world:people=40,documents=400,sample=1",
    "laptop": "world:people=100,documents=16000,sample=1",
    "gpu": "world:people=2000,documents=200000,sample=1",
    "paper": "hub:c4:limit=600000",
}
"""New documents of the world that the model was trained on; at paper scale web text, nearer to what it has read."""
SGD_RATE = {"smoke": 0.3, "laptop": 0.3, "gpu": 0.3}
"""Chosen before any arm was recorded; what was tried is in the chapter."""
SMOKE = (BASELINE, "rate x 2.5", "own world", "equal ratio", "SGD")
PUBLISHED = (BASELINE, "batch x 16", "rate x 2.5", "rate / 4", "3 epochs", "C4", "equal ratio")
"""Of the published model: the paper's own changes, as it made them, and the rate that is not warmed up again."""


def smaller(scale: str, seed: int = 0, **changes: Any) -> Pretraining:
    """Chapter 02's corpus and schedule, a smaller model."""
    base = pretraining.settings(scale, seed=seed)
    return replace(base, setup=base.setup.with_(**{**SMALLER[scale], **changes}))


def _batch(times: int) -> Callable[[str, int, float], Arm]:
    """So many times the rows in so many times fewer steps, rounded down: as many tellings."""

    def batch(scale: str, seed: int, share: float) -> Arm:
        base = arms.SCALES[scale].base
        interval = max(1, base.interval // times)
        return settings(scale, seed=seed, share=share, rows=times * base.rows, interval=interval)

    return batch


def _rate(factor: float) -> Callable[[str, int, float], Arm]:
    return lambda scale, seed, share: settings(
        scale, seed=seed, share=share, learning_rate=factor * arms.SCALES[scale].base.learning_rate
    )


def _ratio(scale: str, seed: int, share: float) -> Arm:
    """The rate that pretraining had when it reached the stage: nothing is warmed again."""
    setup = pretraining.settings(scale, seed=seed).setup
    (step,) = setup.at((share,))
    return settings(scale, seed=seed, share=share, learning_rate=setup.recipe().rate(step - 1))


def _sgd(scale: str, seed: int, share: float) -> Arm:
    """Momentum SGD; its decay is such that weights shrink as much a step as under AdamW."""
    base, rate = arms.SCALES[scale].base, SGD_RATE[scale]
    return settings(
        scale, seed=seed, share=share, optimizer="sgd", learning_rate=rate,
        weight_decay=base.weight_decay * base.learning_rate / rate,
    )  # fmt: skip


SETTINGS: dict[str, Callable[[str, int, float], Arm]] = {
    BASELINE: lambda scale, seed, share: settings(scale, seed=seed, share=share),
    "batch x 5": _batch(5),
    "rate x 2.5": _rate(2.5),
    "rate / 4": _rate(0.25),
    "3 epochs": lambda scale, seed, share: settings(scale, seed=seed, share=share, epochs=3),
    "own world": lambda scale, seed, share: settings(scale, seed=seed, share=share, corpus=NEAR[scale]),
    "smaller model": lambda scale, seed, share: settings(
        scale, seed=seed, share=share, model=smaller(scale, seed)
    ),
    "equal ratio": _ratio,
    "SGD": _sgd,
    "batch x 16": _batch(16),
    "C4": lambda scale, seed, share: settings(scale, seed=seed, share=share, corpus=NEAR[scale]),
}
"""By name: (scale, seed, share of the schedule) -> the arm. One factor differs from the baseline in each."""


def names(scale: str) -> tuple[str, ...]:
    own = tuple(name for name in SETTINGS if name not in ("batch x 16", "C4"))
    return {"smoke": SMOKE, "paper": PUBLISHED}.get(scale, own)


def table(lab: Lab) -> dict[str, dict[int, list[Row]]]:
    """Setting -> seed -> rows in the order of the stages, recorded; what is missing is computed side by side."""
    sizes = arms.SCALES[lab.scale]
    # seeds innermost: neighbours in the pool then wait for different models to be trained, not for one
    places = [
        (name, share, seed) for name in names(lab.scale) for share in sizes.stages for seed in sizes.seeds
    ]
    jobs = [(arms.run, (SETTINGS[name](lab.scale, seed, share), True)) for name, share, seed in places]
    found = dict(zip(places, pool.rows(lab, jobs), strict=True))
    return {
        name: {seed: [found[name, share, seed] for share in sizes.stages] for seed in sizes.seeds}
        for name in names(lab.scale)
    }


def finished(store: Store, scale: str) -> dict[str, dict[int, list[Row]]]:
    """The settings of which all rows are there; nothing is computed."""
    if scale not in arms.SCALES:
        return {}
    sizes = arms.SCALES[scale]
    found = {}
    for name in names(scale):
        rows = {
            seed: [
                store.find(STUDY, VERSION, SETTINGS[name](scale, seed, share), recorded=True)
                for share in sizes.stages
            ]
            for seed in sizes.seeds
        }
        if all(row is not None for each in rows.values() for row in each):
            found[name] = rows
    return found


# ---------------------------------------------------------------------- what follows from them
def gaps(rows: dict[int, list[Row]], of: Callable[[Row], float | None]) -> list[float]:
    """Last stage less first, one number a seed; a seed in which it is not defined is left out."""
    pairs = [(of(each[0]), of(each[-1])) for each in rows.values()]
    return [b - a for a, b in pairs if a is not None and b is not None]


def gap(rows: dict[int, list[Row]], of: Callable[[Row], float | None]) -> Change | None:
    found = gaps(rows, of)
    return change(found) if found else None


def gap_less(
    rows: dict[int, list[Row]], base: dict[int, list[Row]], of: Callable[[Row], float | None]
) -> Change | None:
    """The gap of a setting less that of the baseline, seed by seed: what the factor makes of it.

    A seed in which either is not defined is left out of both.
    """
    pairs = [[gaps({seed: each[seed]}, of) for each in (rows, base)] for seed in rows if seed in base]
    found = [a[0] - b[0] for a, b in pairs if a and b]
    return change(found) if found else None


def within_stage(
    settings_: Sequence[dict[int, list[Row]]], of: Callable[[Row], float | None]
) -> Change | None:
    """Slope of an outcome on the loss on the new domain at the start, at a fixed stage, over domains.

    At a stage all domains meet the same weights, so entropy is the same in all and only the fit differs. A point more
    of the outcome a nat of loss, one number a seed: the mean over stages.
    """
    slopes = []
    for seed in settings_[0]:
        each = []
        for stage in range(len(settings_[0][seed])):
            rows = [rows[seed][stage] for rows in settings_]
            losses, values = (
                [row.values["before"]["loss"]["new domain"] for row in rows],
                [of(r) for r in rows],
            )
            if None in values or len(set(losses)) == 1:  # nothing to lose, or texts that fit alike
                continue
            middle, level = sum(losses) / len(losses), sum(values) / len(values)
            spread = sum((x - middle) ** 2 for x in losses)
            each.append(sum((x - middle) * (y - level) for x, y in zip(losses, values, strict=True)) / spread)
        if each:
            slopes.append(sum(each) / len(each))
    return change(slopes) if slopes else None


def concentration(rows: dict[int, list[Row]], what: str) -> list[list[float]]:
    """Mean over layers of a measure of the updates (`share of values`, `rank of keys`), seed by stage."""
    return [
        [sum(row.values["updates"][what]) / len(row.values["updates"][what]) for row in each]
        for each in rows.values()
    ]


def explains(seen: Change | None, less: Change | None) -> str:
    """What an arm that takes a rival away says of it, from the gap that is left and how much smaller it has become.

    survives: the gap is as good as unchanged; in part: it is smaller and still there; explained: it is smaller, and
    zero is in its interval, or it lies on the other side. undecided: the intervals cannot tell.
    """
    if seen is None or less is None or None in (seen.low, seen.high, less.low, less.high):
        return "undecided"
    base = seen.mean - less.mean  # the gap of the baseline
    assert seen.low is not None and seen.high is not None and less.low is not None and less.high is not None
    smaller_ = less.high < 0 if base > 0 else less.low > 0
    still = seen.low > 0 if base > 0 else seen.high < 0
    if smaller_:
        return "in part" if still else "explained"
    return "survives" if still else "undecided"


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """The gap of A and of F in each setting, in percent points, by name."""
    found: dict[str, Result] = {}
    rows = finished(store, scale)
    for name, each in rows.items():
        one = next(iter(each.values()))[0]
        origin = {"study": STUDY, "digest": one.digest, "origin": one.origin, **one.provenance}
        for letter, of in (("A", outcomes.acquired), ("F", outcomes.forgot)):
            seen = gap(each, of)
            if seen is not None:
                found[f"rivals.{name}.{letter}"] = Result(100 * seen.mean, "points", origin)
        ranks = concentration(each, "rank of values")
        found[f"rivals.{name}.rank"] = Result(sum(map(sum, ranks)) / sum(map(len, ranks)), "", origin)
        for when in ("before", "after"):
            late = change([outcomes.knowledge(rows_[-1], when) for rows_ in each.values()]).mean
            kept = change([100 * outcomes.performance(rows_[-1], when) for rows_ in each.values()]).mean
            found[f"rivals.{name}.K {when}"] = Result(late, "nats", origin)
            found[f"rivals.{name}.P {when}"] = Result(kept, "%", origin)
    if BASELINE in rows:
        one = rows[BASELINE][min(rows[BASELINE])][0]
        origin = {"study": STUDY, "digest": one.digest, "origin": one.origin, **one.provenance}
        if "own world" in rows:
            for letter, of in (("A", outcomes.acquired), ("F", outcomes.forgot)):
                slope = within_stage([rows[BASELINE], rows["own world"]], of)
                if slope is not None:
                    found[f"rivals.fit.{letter}"] = Result(100 * slope.mean, "points", origin)
        found["rivals.settings"] = Result(len(rows), "", origin)
        found["rivals.steps"] = Result(one.values["steps"], "steps", origin)
        found["rivals.passages"] = Result(one.values["passages"], "", origin)
    return found
