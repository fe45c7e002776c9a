"""Rows of a grid of `many` edits: recorded, or computed where there are no records."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TypeVar

from kemem.runs import Row, Store
from kemem.studies import many
from kemem.studies.lab import Lab
from kemem.studies.many import Benches, Many

Key = TypeVar("Key", bound=Hashable)


def reading(lab: Lab, benches: Benches) -> Benches:
    """Benches whose rows are not computed where this scale has records: what is missing there is an error."""
    if lab.store.mode == "run" and lab.store.records is not None:
        return Benches(replace(lab, store=lab.store.reader()), benches.kept, benches.facts)
    return benches


def table(lab: Lab, grid: Mapping[Key, Many], benches: Benches) -> dict[Key, Row]:
    """The rows of a grid, recorded; computed where this scale has no records, or where records are made."""
    at = reading(lab, benches)
    return {
        key: lab.store.find(many.STUDY, many.VERSION, s, recorded=True) or many.run(at, s)
        for key, s in grid.items()
    }


def finished(store: Store, grid: Mapping[Key, Many]) -> dict[Key, Row]:
    """The rows of a grid if all are there, else none; nothing is computed."""
    rows = {key: store.find(many.STUDY, many.VERSION, s, recorded=True) for key, s in grid.items()}
    return {} if None in rows.values() else {key: row for key, row in rows.items() if row is not None}
