"""Verdicts as text: in the ledger's page, on the command line, and as a table in a chapter."""

from __future__ import annotations

from kemem import plot
from kemem.claims.ledger import Claim, Verdict, verdict
from kemem.runs import Store
from kemem.studies.evidence import EVIDENCE
from kemem.studies.lab import Lab


def judged(store: Store, scale: str, claim: Claim) -> list[Verdict]:
    """A claim judged on the rows that the store hands out: a verdict for each way it was tested, the main one first."""
    read = EVIDENCE.get(claim.id)
    evidence = read(store, scale) if read else []
    return [verdict(claim, each, scale) for each in evidence or [None]]


def table(lab: Lab, *claims: Claim) -> plot.Table:
    """What the rows of this run say of claims."""
    rows = [
        (claim.id, claim.statement, v.on or "nothing yet", effect(v), v.verdict)
        for claim in claims
        for v in judged(lab.store, lab.scale, claim)
    ]
    return plot.table(rows, ("claim", "statement", "measured on", "measured", "verdict"))


def number(value: float) -> str:
    """Three decimals and a sign, with a true minus; more where that would show nothing."""
    text = f"{value:+.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:+.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def effect(v: Verdict) -> str:
    """Effect and interval of the contrast that decided, or what a test would need."""
    if v.effect is None:
        return f"needs {v.note}"
    interval = "" if v.low is None or v.high is None else f" [{number(v.low)}, {number(v.high)}]"
    which = v.contrast if v.contrasts == 1 else f"{v.contrast} (one of {v.contrasts} contrasts)"
    return f"{number(v.effect)}{interval} {v.unit}".rstrip() + f", {which}"


def measured(v: Verdict) -> str:
    """The same with the scale, and with what was measured and how often."""
    if v.effect is None:
        return effect(v)
    seeds = "1 seed" if v.seeds == 1 else f"{v.seeds} seeds"
    return f"{', '.join(filter(None, (v.scale, v.on, seeds, v.note)))}: {effect(v)}"
