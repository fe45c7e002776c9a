"""The ledger of claims: what the three papers and their reviews say, and what our rows say to it.

    CLAIMS["entropy.5"]              one claim: statement, where, rule, published numbers
    verdicts(root, "laptop")         every claim judged on the committed rows of a scale
    table(lab, CLAIMS["entropy.5"])  the same for a chapter, on the rows of its run

Claims are data, one file a paper. Numbers come from `kemem.studies.evidence`, rules from `kemem.claims.rules`.
"""

from __future__ import annotations

from pathlib import Path

from kemem.claims import das, entropy, memit, reviews
from kemem.claims.ledger import VERDICTS, Claim, Verdict, verdict
from kemem.claims.shown import judged, table
from kemem.runs import Store
from kemem.studies.lab import SCALES

__all__ = ["CLAIMS", "VERDICTS", "Claim", "Verdict", "judged", "scales", "table", "verdict", "verdicts"]

CLAIMS: dict[str, Claim] = {
    claim.id: claim for file in (entropy, das, memit, reviews) for claim in file.CLAIMS
}


def scales(root: Path) -> list[str]:
    """The scales that the checkout at `root` has committed rows of."""
    return [scale for scale in SCALES if (root / "records" / scale).is_dir()]


def verdicts(root: Path, scale: str) -> list[Verdict]:
    """Verdicts on every claim, in the order of the ledger, from committed rows alone; nothing is computed.

    A claim that was tested in several ways has several, the main one first.
    """
    records = root / "records" / scale
    store = Store(records, records, mode="replay", keep_stale=scale == "gpu")  # replay only reads
    return [found for claim in CLAIMS.values() for found in judged(store, scale, claim)]
