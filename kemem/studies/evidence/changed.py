"""Evidence from arms with one thing changed: other settings (chapter 06), and memories woken (chapter 07)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise

from kemem.runs import Row, Store
from kemem.studies import arms, outcomes, resuscitating, robustness
from kemem.studies.evidence.record import Evidence, Reader, evidence, percent
from kemem.studies.resuscitating import gains, lift
from kemem.studies.robustness import BASELINE

COLLAPSED = -50.0
"""A in percent below which the paper's only run that fell apart lies, and no other: it lost most of what it knew."""
Stages = Mapping[float, Row]  # one seed's rows by stage
Series = dict[str, list[float]]
SETTINGS_ON, WAKING_ON = "arms of chapter 06", "arms of chapter 07"


# ---------------------------------------------------------------------- chapter 06
def _from_settings(
    names: tuple[str, ...],
    measure: Callable[[dict[str, Stages]], dict[str, float] | None],
    store: Store,
    scale: str,
) -> list[Evidence]:
    found = robustness.finished(store, scale)
    wanted = [name for name in names if name in robustness.names(scale)] if scale in arms.SCALES else []
    if len(wanted) < len(names) or not set(wanted) <= found.keys():
        return []
    sizes = arms.SCALES[scale]
    values = []
    for seed in sizes.seeds:
        one = {name: dict(zip(sizes.stages, found[name][seed], strict=True)) for name in wanted}
        measured = measure(one)
        if measured is None:
            return []
        values.append(measured)
    rows = [row for name in wanted for each in found[name].values() for row in each]
    return [evidence(SETTINGS_ON, values, rows, "points")]


def _A(row: Row) -> float:
    return 100 * outcomes.acquired(row)


def _F(row: Row) -> float | None:
    lost = outcomes.forgot(row)
    return None if lost is None else 100 * lost


def _whole(found: Mapping[str, float | None]) -> dict[str, float] | None:
    """None where a model had nothing to forget."""
    return None if None in found.values() else {name: v for name, v in found.items() if v is not None}


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


OTHERS = ("batch x 5", "rate x 2.5", "3 epochs", "own world", "smaller model", "rate / 4")
"""The paper's settings as they are here: five times the rows instead of 16, new text of the known world for C4, a
smaller model for a larger one."""


def last_less_first(rows: dict[str, Stages]) -> dict[str, float] | None:
    """Claim 16: A and F with its sign turned, last stage less first, in each setting; A not at the lower rate."""
    found: dict[str, float | None] = {}
    for name, stages in rows.items():
        first, *_, last = stages.values()
        if name != "rate / 4":
            found[f"A, {name}"] = _A(last) - _A(first)
        found[f"F turned, {name}"] = _less(_F(first), _F(last))
    return _whole(found)


def _each_stage(rows: dict[str, Stages], name: str, signs: Mapping[str, int]) -> dict[str, float] | None:
    """A setting less the baseline at each stage, with the signs that make the claim one direction."""
    found: dict[str, float | None] = {}
    for share, base in rows[BASELINE].items():
        for letter, sign in signs.items():
            of = {"A": _A, "F": _F}[letter]
            less = _less(of(rows[name][share]), of(base))
            found[f"{letter} at {percent(share)}"] = None if less is None else sign * less
    return _whole(found)


def _without_collapse(store: Store, scale: str) -> list[Evidence]:
    """Claim 17: the stages at which the mean A of the larger batch is above COLLAPSED."""
    name = "batch x 5"
    rows = robustness.finished(store, scale).get(name, {})
    columns = list(zip(*rows.values(), strict=True))
    stages = arms.SCALES[scale].stages if rows else ()
    sound = {s for s, each in zip(stages, columns, strict=True) if sum(map(_A, each)) / len(each) > COLLAPSED}

    def measure(found: dict[str, Stages]) -> dict[str, float] | None:
        kept = {n: {s: row for s, row in each.items() if s in sound} for n, each in found.items()}
        return _each_stage(kept, name, {"A": 1, "F": 1})

    return _from_settings((BASELINE, name), measure, store, scale) if sound else []


def far_less_near(rows: dict[str, Stages]) -> dict[str, float] | None:
    """Claim 21: the fall of A, and A, F turned, K and P at each stage: another world less new text of the known one."""
    far, near = rows[BASELINE], rows["own world"]
    first, *_, last = far
    fall = [_A(each[first]) - _A(each[last]) for each in (far, near)]
    found: dict[str, float | None] = {"fall of A": fall[0] - fall[1]}
    for share in far:
        a, b = far[share], near[share]
        found |= {
            f"A at {percent(share)}": _A(a) - _A(b),
            f"F turned at {percent(share)}": _less(_F(b), _F(a)),
            f"K at {percent(share)}": outcomes.knowledge(a, "after") - outcomes.knowledge(b, "after"),
            f"P at {percent(share)}": 100
            * (outcomes.performance(a, "after") - outcomes.performance(b, "after")),
        }
    return _whole(found)


def _setting(name: str, **signs: int) -> Reader:
    return partial(_from_settings, (BASELINE, name), partial(_each_stage, name=name, signs=signs))


# ---------------------------------------------------------------------- chapter 07
def _from_waking(
    needed: Mapping[str, tuple[str, ...]],
    measure: Callable[[resuscitating.Found], Series | None],
    store: Store,
    scale: str,
    on: str = WAKING_ON,
) -> list[Evidence]:
    """needed: group -> arms that must be there; all others are handed on as well."""
    found = resuscitating.finished(store, scale)
    if any(not {BASELINE, *names} <= found.get(group, {}).keys() for group, names in needed.items()):
        return []
    series = measure(found)
    if series is None:
        return []
    rows = [
        row for group, names in needed.items() for name in (BASELINE, *names) for row in found[group][name]
    ]
    each = [dict(zip(series, values, strict=True)) for values in zip(*series.values(), strict=True)]
    return [evidence(on, each, rows, "points, or nats")]


def _both(readers: Iterable[Reader], store: Store, scale: str) -> list[Evidence]:
    """The main evidence and what stands beside it; nothing without the main one."""
    found = [read(store, scale) for read in readers]
    return [one for each in found for one in each] if found[0] else []


PUBLISHED_ON = "the same, A and F from the changed start, as published"
HIGH = tuple(lift(q) for q in (1.0, 2.0, 3.0))
TURNED = {"A": 1, "F": -1, "K": 1, "P": 1, "A as published": 1, "F as published": -1}


def _turned(quantity: str) -> str:
    return f"{quantity} turned" if TURNED[quantity] < 0 else quantity


def _signed(values: list[float] | None, quantity: str) -> list[float] | None:
    return None if values is None else [TURNED[quantity] * v for v in values]


def _all(series: Mapping[str, list[float] | None]) -> Series | None:
    """None where a model had nothing to forget."""
    return None if None in series.values() else {name: v for name, v in series.items() if v is not None}


def _gained(names: tuple[str, ...], quantities: tuple[str, ...], found: resuscitating.Found) -> Series | None:
    """With the change less without at the last stage; F with its sign turned."""
    group = found["last"]
    return _all(
        {
            f"{_turned(q)}, {name}": _signed(gains(group[name], group[BASELINE], q), q)
            for name in names
            for q in quantities
        }
    )


def _waking(names: tuple[str, ...], quantities: tuple[str, ...], published: tuple[str, ...] = ()) -> Reader:
    needed = {"last": names}
    readers = [partial(_from_waking, needed, partial(_gained, names, quantities))]
    if published:
        second = partial(_gained, names, published)
        readers.append(partial(_from_waking, needed, second, on=PUBLISHED_ON))
    return partial(_both, readers)


def lifted_less_middle(found: resuscitating.Found) -> dict[str, list[float]]:
    """Claim 12: K and P at the end, the lifted last stage less the plain middle one."""
    middle = found["50 %"][BASELINE]
    series = {}
    for name in (lift(1.0), lift(2.0)):
        pairs = list(zip(found["last"][name], middle, strict=True))
        series[f"K, {name}"] = [
            outcomes.knowledge(a, "after") - outcomes.knowledge(b, "after") for a, b in pairs
        ]
        series[f"P, {name}"] = [
            100 * (outcomes.performance(a, "after") - outcomes.performance(b, "after")) for a, b in pairs
        ]
    return series


def _less_each(a: list[float] | None, b: list[float] | None) -> list[float] | None:
    return None if a is None or b is None else [x - y for x, y in zip(a, b, strict=True)]


def half_less_others(quantity: str, found: resuscitating.Found) -> Series | None:
    """Claim 23: A with half of the memories lifted to the mean less A with a quarter, and less A with nine tenths."""
    group = found["last"]

    def of(name: str) -> list[float] | None:
        return gains(group[name], group[BASELINE], quantity)

    return _all({f"p 0.5 less p {p:g}": _less_each(of(lift(1.0)), of(lift(1.0, p))) for p in (0.25, 0.9)})


def later_gains_more(found: resuscitating.Found) -> Series | None:
    """Claim 24: what lifting to twice the mean adds at the end, each stage less the one before; two turned."""
    groups = ("20 %", "50 %", "75 %", "last")
    series: dict[str, list[float] | None] = {}
    for quantity in ("K", "P"):
        added = {g: gains(found[g][lift(2.0)], found[g][BASELINE], quantity) for g in groups}
        for a, b in pairwise(groups):
            series[f"{quantity}, {b} less {a}"] = _less_each(added[b], added[a])
        for g in groups[:2]:
            series[f"{quantity} turned, {g}"] = _less_each([0.0] * len(found[g][BASELINE]), added[g])
    return _all(series)


def lift_less_temperature(quantities: tuple[str, str], found: resuscitating.Found) -> Series | None:
    """Claim 25: A, and F with its sign turned: half of the memories at twice the mean less each temperature."""
    group = found["last"]
    series = {}
    for t in resuscitating.TEMPERATURES:
        for q in quantities:
            lifted, flat = (gains(group[name], group[BASELINE], q) for name in (lift(2.0), f"T {t:g}"))
            series[f"{_turned(q)}, T {t:g}"] = _signed(_less_each(lifted, flat), q)
    return _all(series)


HALF = {"last": (lift(1.0), lift(1.0, 0.25), lift(1.0, 0.9))}
STAGES_LIFTED = {g: (lift(2.0),) for g in ("20 %", "50 %", "75 %", "last")}
FLAT = {"last": (lift(2.0), *(f"T {t:g}" for t in resuscitating.TEMPERATURES))}


def damaged_start(found: resuscitating.Found) -> Series | None:
    """review.damaged-start: the gain in A and in F against the changed start less that against the unchanged one."""
    group = found["last"]
    return _all(
        {
            f"{_turned(q)}, {name}": _signed(
                _less_each(
                    gains(group[name], group[BASELINE], f"{q} as published"),
                    gains(group[name], group[BASELINE], q),
                ),
                q,
            )
            for name in HIGH
            for q in ("A", "F")
        }
    )


def all_less_halves(found: resuscitating.Found) -> Series | None:
    """review.layer-subset: A against the unchanged start, all layers lifted less each half of them."""
    group = found["last"]
    whole = gains(group[lift(2.0)], group[BASELINE], "A")
    return _all(
        {
            half: _less_each(whole, gains(group[f"{half}, q 2"], group[BASELINE], "A"))
            for half in resuscitating.HALVES
        }
    )


def more_to_lose(rows: dict[str, Stages]) -> dict[str, float] | None:
    """review.more-to-lose: how much F rises from the first stage to the last; it divides by what there was to lose."""
    first, *_, last = rows[BASELINE].values()
    return _whole({"rise of F": _less(_F(last), _F(first))})


EVIDENCE: dict[str, Reader] = {
    "review.damaged-start": partial(_from_waking, {"last": HIGH}, damaged_start),
    "review.layer-subset": partial(
        _from_waking, {"last": (lift(2.0), *(f"{half}, q 2" for half in resuscitating.HALVES))}, all_less_halves
    ),
    "review.more-to-lose": partial(_from_settings, (BASELINE,), more_to_lose),
    "entropy.10": _waking(HIGH, ("A", "F", "K", "P"), ("A as published", "F as published")),
    "entropy.11": _waking((lift(0.5),), ("A", "F"), ("A as published", "F as published")),
    "entropy.12": partial(
        _from_waking, {"last": (lift(1.0), lift(2.0)), "50 %": ()}, lifted_less_middle
    ),
    "entropy.16": partial(_from_settings, OTHERS, last_less_first),
    "entropy.17": _without_collapse,
    "entropy.18": _setting("rate x 2.5", A=1, F=-1),
    "entropy.19": _setting("rate / 4", F=1),
    "entropy.20": _setting("3 epochs", A=1, F=1),
    "entropy.21": partial(_from_settings, (BASELINE, "own world"), far_less_near),
    "entropy.23": partial(
        _both,
        (
            partial(_from_waking, HALF, partial(half_less_others, "A")),
            partial(_from_waking, HALF, partial(half_less_others, "A as published"), on=PUBLISHED_ON),
        ),
    ),
    "entropy.24": partial(_from_waking, STAGES_LIFTED, later_gains_more),
    "entropy.25": partial(
        _both,
        (
            partial(_from_waking, FLAT, partial(lift_less_temperature, ("A", "F"))),
            partial(
                _from_waking, FLAT, partial(lift_less_temperature, ("A as published", "F as published")),
                on=PUBLISHED_ON,
            ),
        ),
    ),
}  # fmt: skip
