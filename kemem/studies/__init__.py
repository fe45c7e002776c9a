"""Every table and figure of the book as a plain function: here alone do methods meet sizes and numbers of papers."""

from types import ModuleType

from kemem.runs import Store
from kemem.studies import (
    acquiring,
    association,
    decay,
    implications,
    inside,
    knowing,
    lifting,
    memories,
    midstage,
    one_target,
    pretraining,
    realpassages,
    realtext,
    relations,
    resuscitating,
    robustness,
    single_edits,
    stages,
    thousands,
    tracing,
)
from kemem.studies.lab import Result

STUDIES: tuple[ModuleType, ...] = (
    memories, pretraining, stages, realtext, decay, acquiring, realpassages, robustness, midstage, inside, lifting,
    resuscitating, knowing, tracing, association, one_target, single_edits, thousands, relations, implications,
)  # fmt: skip


def results(store: Store, scale: str) -> dict[str, Result]:
    """Every number that prose may quote, by name, from the rows of a scale; nothing is computed."""
    found: dict[str, Result] = {}
    for module in STUDIES:
        found |= module.results(store, scale)
    return found
