"""What rows say about claims: for each claim that was tested, the numbers its rule looks at, one a seed.

Nothing is judged here, and nothing computed: a function reads finished rows and hands on numbers. Rules and verdicts
are in `kemem.claims`.
"""

from kemem.studies.evidence import changed, decaying, domains, editing, field, learning, relations, thousands
from kemem.studies.evidence.decaying import (
    ARMS,
    attention_changes,
    entropy_at_stages,
    layer_changes,
    next_token_change,
)
from kemem.studies.evidence.record import STAGES, Evidence, Reader

EVIDENCE: dict[str, Reader] = {
    **decaying.EVIDENCE, **learning.EVIDENCE, **changed.EVIDENCE, **editing.EVIDENCE, **thousands.EVIDENCE,
    **relations.EVIDENCE, **field.EVIDENCE, **domains.EVIDENCE,
}  # fmt: skip
"""By claim. A claim that is not here was not tested, and says what it needs."""

__all__ = [
    "ARMS",
    "EVIDENCE",
    "STAGES",
    "Evidence",
    "Reader",
    "attention_changes",
    "entropy_at_stages",
    "layer_changes",
    "next_token_change",
]
