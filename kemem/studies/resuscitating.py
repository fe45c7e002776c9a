"""Chapter 07: idle memories woken before or while a model learns, and what that is to be held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kemem import entropy
from kemem.runs import Row, Store
from kemem.studies import arms, outcomes, pool, pretraining
from kemem.studies.arms import Arm, settings
from kemem.studies.findings import Change, change
from kemem.studies.lab import Lab, Result
from kemem.studies.outcomes import knowledge, performance
from kemem.studies.pretraining import Pretraining
from kemem.studies.robustness import BASELINE, SMALLER

CHAPTER = "07_resuscitation"
STUDY, VERSION = arms.STUDY, arms.VERSION
ROWS: dict[str, int] = {}  # its rows are those of `arms`, which chapter 06 declares

GAINS = (0.5, 1.0, 2.0, 3.0)
FRACTIONS = (0.25, 0.5, 0.75, 0.9)
TEMPERATURES = (1.5, 2.0, 3.0)
STRENGTHS = (0.5, 1.0)
HALVES = ("first half", "last half")
LIFTED = {"edit": "lift", "fraction": 0.5}


def lift(gain: float, fraction: float = 0.5) -> str:
    """The name of an arm of Algorithm 1."""
    return f"p {fraction:g}, q {gain:g}"


def ungated(scale: str, seed: int = 0) -> Pretraining:
    """A GPT-2-shaped model on the same text and schedule, at the size of chapter 06's smaller one."""
    base = pretraining.settings(scale, seed=seed)
    size = dict(SMALLER[scale])
    size["memories"] = size["memories"] * 3 // 2  # as many weights without a gate
    return replace(base, setup=base.setup.with_(family="gpt2", **size))


def _changes() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {BASELINE: {}}
    found |= {lift(gain): {**LIFTED, "gain": gain} for gain in GAINS}
    found |= {lift(1.0, p): {"edit": "lift", "fraction": p, "gain": 1.0} for p in FRACTIONS if p != 0.5}
    found |= {f"T {t:g}": {"temperature": t} for t in TEMPERATURES}
    found["T 2, cooled"] = {"temperature": 2.0, "cooled": True}
    found["shuffled, q 2"] = {"edit": "shuffled lift", "fraction": 0.5, "gain": 2.0}
    found["same function, q 2"] = {"edit": "same function", "fraction": 0.5, "gain": 2.0}
    found |= {f"{half}, q 2": {**LIFTED, "gain": 2.0, "layers": half} for half in HALVES}
    found |= {f"wake {s:g}": {"wake": s} for s in STRENGTHS}
    return found


CHANGES = _changes()
"""What differs from plain continual learning, by name."""
LATE = tuple(CHANGES)
"""Arms from the last stage."""
EARLIER = {
    "laptop": (0.2, 0.5, 0.75), "gpu": (0.2, 0.5), "smoke": (0.5,),
    "paper": arms.SCALES["paper"].stages[1:3],
}  # fmt: skip
SOME = (0.5, 0.75, *EARLIER["paper"])
"""Stages at which all gains are tried (the paper: 369k and 554k steps)."""
SMOKE = (BASELINE, lift(1.0), lift(2.0), "T 2", "shuffled, q 2", "same function, q 2", "wake 1")


def arm(scale: str, name: str, *, seed: int = 0, share: float = 1.0, model: Pretraining | None = None) -> Arm:
    return settings(scale, seed=seed, share=share, model=model, **CHANGES[name])


def asked(scale: str) -> dict[str, dict[str, Callable[[int], Arm]]]:
    """Group -> name -> (seed -> arm): the last stage, earlier stages, the ungated model."""

    def one(name: str, share: float = 1.0) -> Callable[[int], Arm]:
        return lambda seed: arm(scale, name, seed=seed, share=share)

    def other(name: str) -> Callable[[int], Arm]:
        return lambda seed: arm(scale, name, seed=seed, model=ungated(scale, seed))

    small = scale == "smoke"
    found = {"last": {name: one(name) for name in (SMOKE if small else LATE)}}
    for share in EARLIER[scale]:
        gains = (2.0,) if small or share not in SOME else GAINS
        found[f"{100 * share:.0f} %"] = {
            name: one(name, share) for name in (BASELINE, *(lift(gain) for gain in gains))
        }
    if scale in SMALLER:
        found["ungated"] = {
            name: other(name) for name in (BASELINE, lift(1.0), lift(2.0))[: 2 if small else 3]
        }
    return found


Found = dict[str, dict[str, list[Row]]]
"""Group -> name -> rows, one a seed."""


def table(lab: Lab) -> Found:
    """All arms, recorded; what is missing is computed side by side."""
    seeds = arms.SCALES[lab.scale].seeds
    groups = asked(lab.scale)
    jobs = [
        (arms.run, (make(seed), True))
        for group in groups.values()
        for make in group.values()
        for seed in seeds
    ]
    rows = iter(pool.rows(lab, jobs))
    return {group: {name: [next(rows) for _ in seeds] for name in named} for group, named in groups.items()}


def finished(store: Store, scale: str) -> Found:
    """The arms whose seeds are all there, in groups; nothing is computed."""
    if scale not in arms.SCALES:
        return {}
    seeds = arms.SCALES[scale].seeds
    found: Found = {}
    for group, named in asked(scale).items():
        for name, make in named.items():
            rows = [store.find(STUDY, VERSION, make(seed), recorded=True) for seed in seeds]
            if all(row is not None for row in rows):
                found.setdefault(group, {})[name] = [row for row in rows if row is not None]
    return found


# ---------------------------------------------------------------------- what follows from them
def _forgot(before: float, after: float) -> float | None:
    """F in points; None for a model that answered nothing."""
    return 100 * entropy.forgetting(before, after) if before else None


QUANTITIES: dict[str, Callable[[Row, Row], float | None]] = {
    "A": lambda row, plain: 100 * entropy.acquisition(knowledge(plain, "before"), knowledge(row, "after")),
    "F": lambda row, plain: _forgot(performance(plain, "before"), performance(row, "after")),
    "K": lambda row, plain: knowledge(row, "after"),
    "P": lambda row, plain: 100 * performance(row, "after"),
    "A as published": lambda row, plain: 100 * outcomes.acquired(row),
    "F as published": lambda row, plain: _forgot(performance(row, "before"), performance(row, "after")),
}
"""Of a row, and of plain learning from the same checkpoint, whose start is the unchanged one: A and F against that
start, K and P at the end; A and F against the changed start, as the paper has them."""


def gains(rows: list[Row], plain: list[Row], quantity: str) -> list[float] | None:
    """With the change less without, one number a seed. None where a model answered nothing: F is not defined then."""
    of = QUANTITIES[quantity]
    pairs = [(of(a, b), of(b, b)) for a, b in zip(rows, plain, strict=True)]
    return None if any(None in pair for pair in pairs) else [a - b for a, b in pairs]  # type: ignore[operator]


def gained(rows: list[Row], plain: list[Row], quantity: str) -> Change | None:
    found = gains(rows, plain, quantity)
    return None if found is None else change(found)


def entropies(rows: list[Row], plain: list[Row]) -> tuple[Change, Change, Change]:
    """H of the changed start less that of the checkpoint, the same at the end, and H at the end."""
    begin = [
        a.values["before"]["entropy"] - b.values["before"]["entropy"]
        for a, b in zip(rows, plain, strict=True)
    ]
    end = [
        a.values["after"]["entropy"] - b.values["after"]["entropy"] for a, b in zip(rows, plain, strict=True)
    ]
    return change(begin), change(end), change([a.values["after"]["entropy"] for a in rows])


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """What each arm of the last stage gains over plain learning, by name and quantity: `waking.p 0.5, q 2.K`."""
    found: dict[str, Result] = {}
    for group, named in finished(store, scale).items():
        plain = named.get(BASELINE)
        if not plain:
            continue
        prefix = "waking" if group == "last" else f"waking.{group}"
        for name, rows in named.items():
            origin = {
                "study": STUDY,
                "digest": rows[0].digest,
                "origin": rows[0].origin,
                **rows[0].provenance,
            }
            if name == BASELINE:
                continue
            for quantity in QUANTITIES:
                seen = gained(rows, plain, quantity)
                if seen is not None:
                    unit = "nats" if quantity == "K" else "points"
                    found[f"{prefix}.{name}.{quantity}"] = Result(seen.mean, unit, origin)
            start, end, _ = entropies(rows, plain)
            found[f"{prefix}.{name}.H"] = Result(start.mean, "nats", origin)
            found[f"{prefix}.{name}.end H"] = Result(end.mean, "nats", origin)
            if group == "last":
                found["waking.models"] = Result(len(rows), "", origin)
    return found
