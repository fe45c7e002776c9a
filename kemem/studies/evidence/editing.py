"""Part 3: what rows of chapters 11 and 12 say on claims 16, 18 and 19 of Meng et al. 2023."""

from __future__ import annotations

from kemem.runs import Row, Store
from kemem.studies import association, factual, one_target, tracing
from kemem.studies.evidence.record import Evidence, evidence


def traced(store: Store, scale: str) -> list[Evidence]:
    """Claim 16: effects at the subject's last token, in points, one number a disjoint draw of facts."""
    if scale not in factual.SCALES:
        return []
    row = store.find(tracing.STUDY, tracing.VERSION, tracing.settings(scale))
    if row is None:
        return []
    values = [{name: 100 * v for name, v in tracing.contrasts(own).items()} for own in row.values["draws"]]
    return [evidence("causal traces of chapter 11, three draws of facts", values, [row], "points")]


def independent_targets(store: Store, scale: str) -> list[Evidence]:
    """Claim 18: of each request, its target found alone against in a batch, and that against the reverse order's."""
    row = _looked_at(store, scale)
    if row is None:
        return []
    found = row.values["together"]
    return [
        evidence(
            f"requests of chapter 12, {dtype}",
            [
                {"batched": b, "reversed": r}
                for b, r in zip(found[dtype]["batched"], found[dtype]["reversed"], strict=True)
            ],
            [row],
            "of |z|",
        )
        for dtype in sorted(found, reverse=True)  # float64, the algebra, is the main one
    ]


def shrunk_edit(store: Store, scale: str) -> list[Evidence]:
    """Claim 19: of each request on the model's own keys, and of each draw of random pairs."""
    row = _looked_at(store, scale)
    if row is None:
        return []
    pairs = store.find(association.STUDY, association.VERSION, association.settings(scale))
    if pairs is None:
        return []
    names = ("identity", "vanishing")
    own = [dict(zip(names, both, strict=True)) for both in zip(*(row.values[n] for n in names), strict=True)]
    drawn = [{name: draw[name] for name in names} for draw in pairs.values["draws"]]
    return [
        evidence("requests of chapter 12", own, [row], "relative"),
        evidence("random pairs of chapter 12", drawn, [pairs], "relative"),
    ]


def _looked_at(store: Store, scale: str) -> Row | None:
    if scale not in factual.SCALES:
        return None
    return store.find(one_target.STUDY, one_target.VERSION, one_target.settings(scale))


EVIDENCE = {"memit.16": traced, "memit.18": independent_targets, "memit.19": shrunk_edit}
