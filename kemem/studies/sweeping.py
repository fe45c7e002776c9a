"""One process of a sweep: it asks for the contents of chapters and computes what no other process is at.

Any number of such processes may share a store, on one machine or several that see its folder: a row is computed by
the one that locks it, and a lock ends with its process. So none has to be told what to do, one that is killed leaves
its row to the others, and the same sweep started again, or twice, computes nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from kemem.studies import contents
from kemem.studies.asking import Claiming
from kemem.studies.contents.step import Step
from kemem.studies.lab import Lab

SHORTEST, LONGEST = 0.1, 5.0  # seconds between two looks at rows that others are at


def work(
    chapters: Sequence[tuple[Lab, str]], store: Claiming, *, wait: Callable[[float], None] = time.sleep
) -> None:
    """Compute all rows that these chapters ask for, side by side with whoever else does; failures are in the store.

    chapters: a lab, whose store is not used, and a number. Returns when nothing is left that could be computed here.
    """
    todo = [
        (number, each)
        for lab, number in chapters
        for each in contents.steps(replace(lab, store=store), number)
    ]
    pause = SHORTEST
    while todo:
        done = len(store.claims.computed)
        store.claims.waiting.clear()
        todo = [(number, each) for number, each in todo if not _finished(store, number, each)]
        if len(store.claims.computed) > done:
            pause = SHORTEST
        elif not store.claims.waiting:
            return  # what is left hangs on rows that failed
        else:
            wait(pause)
            pause = min(2 * pause, LONGEST)


def _finished(store: Claiming, number: str, each: Step) -> bool:
    """Whether a step has all its rows, or can have none: it failed itself."""
    before = store.claims.pending
    try:
        whole = contents.go(each)
    except Exception as error:
        store.fail(f"chapter {number}", type(error).__name__, error)
        return True
    return whole and store.claims.pending == before
