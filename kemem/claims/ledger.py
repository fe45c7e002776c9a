"""A claim, and what becomes of it: verdicts are computed from rows by the claim's rule, never typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kemem.claims.rules import Rule, judge
from kemem.studies.evidence import Evidence

Number = int | float
VERDICTS = ("holds", "fails", "undecided", "not tested")


@dataclass(frozen=True)
class Claim:
    """One thing that a paper, or a review of it, says and that measurement can contradict."""

    id: str
    part: int
    paper: str
    """Its key in references.bib."""
    where: str
    statement: str
    quantity: str
    """What is measured, and in which order the rule sees it."""
    rule: Rule
    published: Mapping[str, Number | tuple[Number, ...]] = field(default_factory=dict)
    """Published numbers by what they are of. A bare axis range is called that: it is no data point."""
    chapters: tuple[str, ...] = ()
    """Where the book tests it: file stems."""
    needs: str = ""
    """What a test would take, for a claim that has none."""


@dataclass(frozen=True)
class Verdict:
    """What the rows of a scale say of a claim: `effect` is that of the contrast that decided it."""

    claim: str
    scale: str
    verdict: str
    on: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    contrast: str = ""
    contrasts: int = 0
    seeds: int = 0
    rows: tuple[str, ...] = ()
    note: str = ""


def verdict(claim: Claim, evidence: Evidence | None, scale: str) -> Verdict:
    """The claim judged by its rule. None: not tested, with what that would take."""
    if evidence is None:
        note = claim.needs or f"rows of scale {scale}, which are not among the records"
        return Verdict(claim.id, scale, "not tested", note=note)
    found = judge(claim.rule, evidence.series)
    return Verdict(
        claim.id, scale, found.verdict, evidence.on, found.found.mean, found.found.low, found.found.high, evidence.unit,
        found.contrast, found.contrasts, found.found.seeds, evidence.rows, evidence.note,
    )  # fmt: skip
