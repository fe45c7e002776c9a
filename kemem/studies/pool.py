"""Independent rows of a sweep computed side by side: small models leave a processor's cores idle one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch

from kemem import models
from kemem.errors import BadInput
from kemem.runs import Row
from kemem.studies.lab import Lab

WORKERS = "KEMEM_WORKERS"
MOST = 8  # each worker holds the text and a model of its own, about half a gigabyte


def workers(lab: Lab) -> int:
    """How many rows to compute at once: $KEMEM_WORKERS, else one a core on a CPU, and one on a GPU."""
    named = os.environ.get(WORKERS, "")
    if named:
        if not named.isdecimal() or int(named) < 1:
            raise BadInput(f"{WORKERS} is a whole number, 1 or more; got {named!r}.")
        return int(named)
    if models.named_device(lab.device).type != "cpu":
        return 1
    return max(1, min(MOST, torch.get_num_threads()))


def rows(lab: Lab, jobs: Sequence[tuple[Callable[..., Row], tuple[Any, ...]]]) -> list[Row]:
    """`function(lab, *arguments)` of each job, in their order; those that are not finished run side by side.

    Each function makes one row of the store, so a killed sweep has lost only the rows it was at. Functions are named
    by their module (no lambdas), since other processes must find them. Each worker has one thread.
    """
    if not lab.store.pooled:
        return [function(lab, *arguments) for function, arguments in jobs]
    missing = [job for job in jobs if not _finished(lab, job)] if not lab.replay else []
    count = min(workers(lab), len(missing))
    if count > 1:
        context = get_context("spawn")  # forked threads of torch would hang
        with ProcessPoolExecutor(count, mp_context=context, initializer=_begin) as pool:
            waiting = [pool.submit(_compute, lab, job) for job in missing]
            for done, future in enumerate(waiting, 1):
                future.result()
                if lab.progress:
                    lab.progress(done, len(waiting), "runs of the sweep")
    return [function(lab, *arguments) for function, arguments in jobs]


def _finished(lab: Lab, job: tuple[Callable[..., Row], tuple[Any, ...]]) -> bool:
    function, arguments = job
    look = replace(lab, store=lab.store.reader())
    try:
        function(look, *arguments)
    except LookupError:
        return False
    return True


def _begin() -> None:
    torch.set_num_threads(1)


def _compute(lab: Lab, job: tuple[Callable[..., Row], tuple[Any, ...]]) -> None:
    function, arguments = job
    function(lab, *arguments)
