"""Part 3: what rows of chapter 13 say of relations, of mixtures of them, and of what follows from a fact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from kemem.runs import Row, Store
from kemem.studies import implications, relations
from kemem.studies.evidence.record import Evidence, Reader, evidence
from kemem.studies.relations import Seen, pooled, score

ON = "facts of chapter 13, one relation at a time"
MIXED = "mixtures of chapter 13"
POOLED = ", less the scores of their facts taken together"


def methods_by_relation(found: Sequence[Seen]) -> list[Evidence]:
    """Claim 14: by relation, S of MEMIT less that of each other method."""
    names = relations.shared(found)
    values = [
        {
            f"less {method}, {name}": score(each.alone["MEMIT"][name]) - score(each.alone[method][name])
            for method in relations.METHODS[1:]
            for name in names
        }
        for each in found
    ]
    rows = [row for each in found for own in each.alone.values() for row in own.values()]
    return [evidence(ON, values, rows, "points")] if names else []


def mixtures(found: Sequence[Seen]) -> list[Evidence]:
    """Claim 15: of each pair its largest mixture: S less the mean of both alone, and less S of both taken together."""
    sizes: dict[tuple[str, str], int] = {}
    for a, b, n in found[0].pairs:
        if all((a, b, n) in each.pairs for each in found):
            sizes[a, b] = max(n, sizes.get((a, b), 0))
    if not sizes:
        return []

    def less(alone: Callable[[Sequence[Row]], float]) -> list[dict[str, float]]:
        return [
            {
                f"{a} with {b}, {n} facts": score(each.pairs[a, b, n][0]) - alone(each.pairs[a, b, n][1:])
                for (a, b), n in sizes.items()
            }
            for each in found
        ]

    rows = [row for each in found for (a, b), n in sizes.items() for row in each.pairs[a, b, n]]
    return [
        evidence(MIXED, less(_mean), rows, "points"),
        evidence(MIXED + POOLED, less(pooled), rows, "points"),
    ]


def alike(found: Sequence[Seen]) -> list[Evidence]:
    """review.similar-facts: mean over relations of S on facts of one, less S on as many facts of all by turns.

    The second takes the facts of the single relations together before the harmonic mean, as the mixture does.
    """
    alone = [list(each.alone["MEMIT"].values()) for each in found]
    rows = [row for own in alone for row in own] + [each.many for each in found]

    def less(of: Callable[[Sequence[Row]], float]) -> list[dict[str, float]]:
        return [
            {"one relation less many": of(own) - score(each.many)}
            for own, each in zip(alone, found, strict=True)
        ]

    return [
        evidence(ON, less(_mean), rows, "points"),
        evidence(ON + ", taken together", less(pooled), rows, "points"),
    ]


def hard(found: Sequence[Seen]) -> list[Evidence]:
    """review.hard-relations: S on reported facts of the relations that were easiest and hardest on tuning ones."""
    ends = relations.extremes(found)
    if ends is None:
        return []
    easiest, hardest = ends
    rows = [each.alone["MEMIT"][name] for each in found for name in ends]
    rows += [row for each in found for row in each.tuning.values()]
    values = [
        {
            f"{easiest} less {hardest}": score(each.alone["MEMIT"][easiest])
            - score(each.alone["MEMIT"][hardest])
        }
        for each in found
    ]
    return [evidence(ON, values, rows, "points")]


def reverse(store: Store, scale: str) -> list[Evidence]:
    """review.reverse-fact: change of success on reversed questions, of all facts that have one; then by kind."""
    rows = implications.finished(store, scale)
    changes = [implications.reversed_change(row) for row in rows]
    if not rows or None in changes:
        return []
    whole = [{"reversed questions": change[0]} for change in changes if change is not None]
    kinds = [
        way
        for way in implications.REVERSED
        if all(row.values["ways"][way]["change"][0] is not None for row in rows)
    ]
    by_kind = [{way: row.values["ways"][way]["change"][0] for way in kinds} for row in rows]
    on = "single edits of chapter 13"
    return [
        evidence(on, whole, rows, "points"),
        *([evidence(f"{on}, by kind", by_kind, rows, "points")] if kinds else []),
    ]


def _mean(rows: Sequence[Row]) -> float:
    return math.fsum(score(row) for row in rows) / len(rows)


def _from_draws(read: Callable[[Sequence[Seen]], list[Evidence]], store: Store, scale: str) -> list[Evidence]:
    found = relations.finished(store, scale)
    return read(found) if found else []


EVIDENCE: dict[str, Reader] = {
    "memit.14": partial(_from_draws, methods_by_relation),
    "memit.15": partial(_from_draws, mixtures),
    "review.similar-facts": partial(_from_draws, alike),
    "review.hard-relations": partial(_from_draws, hard),
    "review.reverse-fact": reverse,
}
