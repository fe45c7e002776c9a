"""Every table and figure of the book as a plain function: here alone do methods meet sizes and numbers of papers."""

from types import ModuleType

from kemem.runs import Store
from kemem.studies import (
    acquiring,
    association,
    critique,
    decay,
    field,
    footprint,
    growing,
    implications,
    inside,
    interference,
    knowing,
    lifting,
    masking,
    memories,
    midstage,
    moving,
    one_target,
    own_rows,
    pairing,
    parts,
    pretraining,
    realpassages,
    realtext,
    relations,
    released,
    resuscitating,
    robustness,
    sequence,
    single_edits,
    stages,
    standing,
    thousands,
    three_papers,
    tour,
    tracing,
    units,
    variants,
)
from kemem.studies.lab import Result

STUDIES: tuple[ModuleType, ...] = (
    tour, memories, pretraining, stages, realtext, decay, acquiring, realpassages, robustness, midstage, inside,
    lifting, resuscitating, interference, units, masking, moving, pairing, variants, standing, growing,
    footprint, knowing, tracing, association, one_target, single_edits, thousands, relations, implications,
    field, released, parts, sequence, critique, three_papers, own_rows,
)  # fmt: skip


def results(store: Store, scale: str) -> dict[str, Result]:
    """Every number that prose may quote, by name, from the rows of a scale; nothing is computed."""
    found: dict[str, Result] = {}
    for module in STUDIES:
        found |= module.results(store, scale)
    return found
