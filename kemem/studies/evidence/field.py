"""Evidence from many edits by every editor: chapter 14. One number a draw of facts, and of cost one a repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from kemem.runs import Row, Store
from kemem.studies import factual, field, grids, released
from kemem.studies.evidence.record import Evidence, Reader, evidence
from kemem.studies.many import NONE
from kemem.studies.released import COST, RELEASED, TIMED

Found = Mapping[str, Row]  # one seed's rows by method
ZSRE_ON = "questions of chapter 14, with values chosen on other facts"
LARGEST, TOGETHER = "largest", "together"


def _count(z: field.Field, which: int | str) -> int | None:
    """The largest count, the largest at which all methods were run, or this one; None where it was not run."""
    if which == LARGEST:
        return z.counts[-1]
    if which == TOGETHER:
        return z.together
    return int(which) if which in z.counts else None


def contested(
    store: Store, scale: str, names: Sequence[str], which: Sequence[int | str]
) -> dict[int | str, list[dict[str, Row]]]:
    """By count, as it was asked for, one mapping a seed; empty where a row is missing."""
    made = field.settings(store, scale)
    if not set(names) <= made.keys():
        return {}
    z = field.sizes(scale)
    counts = {asked: _count(z, asked) for asked in which}
    grid = {
        key: s for key, s in field.contest(z, made).items() if key[0] in names and key[1] in counts.values()
    }
    rows = grids.finished(store, grid)
    keys = [(name, n, seed) for name in names for n in counts.values() for seed in z.seeds]
    if not rows or any(key not in rows for key in keys):
        return {}
    return {
        asked: [{name: rows[name, n, seed] for name in names} for seed in z.seeds]
        for asked, n in counts.items()
        if n is not None
    }


def _after(row: Row, score: str) -> float | None:
    texts = row.values["after"]["texts"] or {}
    return texts.get(score) if score in ("GE", "RS") else row.values["after"][score]


Measure = Callable[[Callable[[str, str], float]], dict[str, float]]
"""(method and score -> number) -> contrasts or quantities by name."""


def _measured(rows: Sequence[Found], measure: Measure, on: str, unit: str) -> list[Evidence]:
    values = []
    for own in rows:
        try:
            values.append(measure(partial(_number, own)))
        except LookupError:  # a score that was not measured
            return []
    return [evidence(on, values, [row for own in rows for row in own.values()], unit)] if values else []


def _number(own: Found, name: str, score: str) -> float:
    found = _after(own[name], score)
    if found is None:
        raise LookupError(score)
    return found


def _at(names: Sequence[str], which: str, measure: Measure, store: Store, scale: str) -> list[Evidence]:
    """With settings chosen at a smaller count, as everywhere; and with those chosen at that very count."""
    rows = contested(store, scale, names, (which,)).get(which, [])
    count = f"{rows[0][names[0]].settings['count']} edits at once, chapter 14" if rows else ""
    heavy = (
        _loaded(store, scale, names)
        if rows and field.sizes(scale).together == rows[0][names[0]].settings["count"]
        else []
    )
    return [
        *_measured(rows, measure, count, "points"),
        *_measured(heavy, measure, "the same, settings chosen at that count", "points"),
    ]


def _loaded(store: Store, scale: str, names: Sequence[str]) -> list[dict[str, Row]]:
    """One mapping a seed at the largest count of all methods, settings chosen there; empty where a row is missing."""
    made = field.settings(store, scale, load=True)
    if not set(names) <= made.keys():
        return []
    z = field.sizes(scale)
    rows = grids.finished(store, {key: s for key, s in field.loaded(z, made).items() if key[0] in names})
    return [{name: rows[name, z.together, seed] for name in names} for seed in z.seeds] if rows else []


def _zsre(names: Sequence[str], measure: Measure, store: Store, scale: str) -> list[Evidence]:
    made = field.settings(store, scale)
    if not set(names) <= made.keys():
        return []
    z = field.sizes(scale)
    grid = {key: s for key, s in field.questions(z, made).items() if key[0] in names}
    rows = grids.finished(store, grid)
    own = [{name: rows[name, seed] for name in names} for seed in z.seeds] if rows else []
    return _measured(own, measure, ZSRE_ON, "points")


Of = Callable[[str, str], float]


def taken(of: Of) -> dict[str, float]:
    """Claim 2: efficacy of MEMIT on zsRE, and how near paraphrases come."""
    efficacy = of("MEMIT", "rewrite_tokens")
    return {
        "Efficacy less 95": efficacy - 95,
        "Paraphrase less Efficacy, plus 8": of("MEMIT", "paraphrase_tokens") - efficacy + 8,
    }


def spared(of: Of) -> dict[str, float]:
    """Claim 3: unrelated answers after MEMIT and after ROME."""
    apart = abs(of("MEMIT", "locality_tokens") - of(NONE, "locality_tokens"))
    return {
        "1 less the distance, MEMIT": 1 - apart,
        "2 less Specificity, ROME": 2 - of("ROME", "locality_tokens"),
    }


def paid(of: Of) -> dict[str, float]:
    """Claim 5: fine-tuning against MEMIT: ES, NS, and GE against half of the unedited model's."""
    return {
        "ES, FT-W less MEMIT": of("FT-W", "ES") - of("MEMIT", "ES"),
        "NS, MEMIT less FT-W, less 20": of("MEMIT", "NS") - of("FT-W", "NS") - 20,
        "half of the unedited GE less FT-W": of(NONE, "GE") / 2 - of("FT-W", "GE"),
    }


def fluent(of: Of) -> dict[str, float]:
    """Claim 6: GE of MEMIT within one per cent, RS above."""
    return {
        "1 less the distance of GE in %": 1 - 100 * abs(of("MEMIT", "GE") / of(NONE, "GE") - 1),
        "RS less the unedited": of("MEMIT", "RS") - of(NONE, "RS"),
    }


def broken(store: Store, scale: str) -> list[Evidence]:
    """Claim 9: ROME edit after edit."""
    rows = contested(store, scale, ("ROME",), (10, 32, TOGETHER))
    if not rows:
        return []
    values = []
    for few, more, most in zip(rows[10], rows[32], rows[TOGETHER], strict=True):
        end = {score: _after(most["ROME"], score) for score in ("ES", "PS", "NS")}
        values.append(
            {
                "S, 10 less 32": _after(few["ROME"], "S") - _after(more["ROME"], "S"),
                **{f"5 less the distance of {name} from 50": 5 - abs(x - 50) for name, x in end.items()},
            }
        )
    used = [own["ROME"] for each in rows.values() for own in each]
    return [
        evidence(
            f"up to {rows[TOGETHER][0]['ROME'].settings['count']} edits of chapter 14", values, used, "points"
        )
    ]


def lost(store: Store, scale: str) -> list[Evidence]:
    """Claim 10: MEND as described, then as released, where the last chunk alone counts."""
    rows = contested(store, scale, ("MEND",), (1, 6, LARGEST))
    if not rows:
        return []

    def fallen(one: float, six: float, most: float, before: float) -> dict[str, float]:
        return {"ES, 6 less 1": six - one, "distance of ES from the unedited, less 1": abs(most - before) - 1}

    each = list(zip(*(rows[n] for n in (1, 6, LARGEST)), strict=True))
    before = [most["MEND"].values["before"]["ES"] for _, _, most in each]
    values = [
        fallen(*(_after(own["MEND"], "ES") for own in three), unedited)
        for three, unedited in zip(each, before, strict=True)
    ]
    found = [
        evidence("MEND as described, chapter 14", values, [own["MEND"] for t in each for own in t], "points")
    ]
    faulty = released.own_rows(store, scale, RELEASED)
    if faulty and {"1", "6"} <= faulty[0].values["small"].keys():
        values = [
            fallen(
                *(row.values["small"][n]["ES"] for n in "16"),
                row.values["switches"]["MEND as released"]["ES"],
                b,
            )
            for row, b in zip(faulty, before, strict=True)
        ]
        found.append(evidence("the same as released, the last chunk alone", values, faulty, "points"))
    return found


def generalised(store: Store, scale: str) -> list[Evidence]:
    """Claim 11: ROME against MEMIT with few edits."""
    few = [n for n in field.sizes(scale).counts if n <= 10] if scale in factual.SCALES else []
    rows = contested(store, scale, ("ROME", "MEMIT"), few)
    if not rows:
        return []
    values = [
        {
            name: x
            for n in few
            for own in [rows[n][i]]
            for name, x in (
                (f"PS at {n}, ROME less MEMIT", _after(own["ROME"], "PS") - _after(own["MEMIT"], "PS")),
                (f"NS at {n}, MEMIT less ROME", _after(own["MEMIT"], "NS") - _after(own["ROME"], "NS")),
            )
        }
        for i in range(len(rows[few[0]]))
    ]
    used = [row for each in rows.values() for own in each for row in own.values()]
    return [evidence("few edits at once, chapter 14", values, used, "points")]


def timed(store: Store, scale: str) -> list[Evidence]:
    """Claim 17: seconds of each editor less the one before, and the share of MEMIT's that goes into targets."""
    rows = released.own_rows(store, scale, COST)
    if not rows:
        return []
    values = []
    for row in rows:
        seconds = row.values["seconds"]
        values.append(
            {f"{b} less {a}": seconds[b]["all"] - seconds[a]["all"] for a, b in pairwise(TIMED)}
            | {
                "share of MEMIT's targets in %, less 80": 100
                * seconds["MEMIT"]["values"]
                / seconds["MEMIT"]["all"]
                - 80
            }
        )
    on = f"{rows[0].values['facts']} edits of chapter 14, timed again and again"
    return [evidence(on, values, rows, "seconds, or %")]


def _order(names: Sequence[str], score: str) -> Measure:
    return lambda of: {name: of(name, score) for name in names}


RANKED, SCORED = ("MEMIT", "FT-W", NONE, "MEND", "ROME"), ("MEMIT", "FT-W", "ROME", "MEND")
EVIDENCE: dict[str, Reader] = {
    "memit.1": partial(_zsre, RANKED, _order(RANKED, "S_tokens")),
    "memit.2": partial(_zsre, ("MEMIT",), taken),
    "memit.3": partial(_zsre, ("MEMIT", NONE, "ROME"), spared),
    "memit.4": partial(_at, SCORED, TOGETHER, _order(SCORED, "S")),
    "memit.5": partial(_at, ("FT-W", "MEMIT", NONE), LARGEST, paid),
    "memit.6": partial(_at, ("MEMIT", NONE), LARGEST, fluent),
    "memit.9": broken,
    "memit.10": lost,
    "memit.11": generalised,
    "memit.17": timed,
}
