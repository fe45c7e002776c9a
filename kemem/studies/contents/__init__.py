"""What every chapter asks for, without the chapter: the same studies are called with the same settings.

    steps(lab, "03")      the chapter's contents, in the order in which their rows are needed
    batches(lab, "03")    the rows that are missing: batch by batch, since settings are chosen from rows

The rows that a chapter's own cells compute with functions of their own stay with the chapter: the die of chapter 00.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from kemem.errors import BadInput
from kemem.studies.asking import Asked, Asking, Unfinished
from kemem.studies.contents import continual, editing, entropy, joined
from kemem.studies.contents.step import Step
from kemem.studies.lab import Lab

CHAPTERS: dict[str, Callable[[Lab, dict[str, Any]], list[Step]]] = {
    "00": entropy.how_to_read, "01": entropy.looked_at, "02": entropy.pretrained, "03": entropy.entropy_decay,
    "04": entropy.injection, "05": entropy.acquisition, "06": entropy.rivals, "07": entropy.resuscitation,
    "08": continual.forgetting, "09": continual.das, "10": continual.methods, "11": editing.knowledge_base,
    "12": editing.one_fact, "13": editing.at_once, "14": editing.editors,
    "15": joined.three_papers, "16": joined.your_own,
}  # fmt: skip


def steps(lab: Lab, number: str) -> list[Step]:
    """The contents of a chapter with the lab's parameters. Refuses what its studies refuse: a scale without sizes."""
    if number not in CHAPTERS:
        raise BadInput(f"the contents of chapters {', '.join(CHAPTERS)} are known; got {number!r}.")
    return CHAPTERS[number](lab, lab.parameters)


def asked(lab: Lab, number: str, store: Asking, *, failing: bool = False) -> list[Asked]:
    """Every row that can be asked for by now, finished or not, each once.

    failing: pass over a step that raises, which whoever computes the rows has told.
    """
    looking = replace(lab, store=store)
    for each in steps(looking, number):
        try:
            go(each)
        except Exception:
            if not failing:
                raise
    return list(store.asked.values())


def go(each: Step) -> bool:
    """Take a step as far as it goes; whether that was to its end."""
    try:
        each()
    except Unfinished:
        return False
    return True


def batches(lab: Lab, number: str) -> Iterator[list[Asked]]:
    """Rows that are missing, those that can be computed by now; then, when they were, the next ones.

    Ends where nothing is missing, or nothing of a batch was computed.
    """
    before: Sequence[str] = ()
    while True:
        batch = [row for row in asked(lab, number, Asking(lab.store)) if row.row is None]
        names = [row.digest for row in batch]
        if not batch or names == before:
            return
        yield batch
        before = names
