"""What the first cell of a chapter calls: parameters checked, run store opened, before anything runs.

    from kemem import book
    lab = book.open_chapter("03_entropy_decay", globals())

Three environment variables decide where rows come from: KEMEM_REPLAY=1 (nothing is computed: every row is read from
records/), KEMEM_RECORD=1 (what is missing is computed into records/) and KEMEM_STORE (the folder of live rows).
KEMEM_TRAIN=all ignores shipped checkpoints.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from kemem import arithmetic
from kemem.book.parameters import check, declared
from kemem.book.places import chapter, checkout, store_folder
from kemem.errors import BadInput
from kemem.runs import Store
from kemem.studies.lab import Lab

LARGE = ("gpu", "paper")
"""Scales that are computed on a card, whose float32 products may be of TF32 there: see `kemem.arithmetic`."""
OF_IPYTHON = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open", "display"})


def open_chapter(name: str, namespace: Mapping[str, Any]) -> Lab:
    """The lab of a chapter, from the notebook's `globals()`.

    Refuses a name that is no parameter of the chapter (papermill only warns of one) and a value out of range, in one
    line. Called again in a session that has a lab already, it cannot tell parameters from the reader's own variables
    and only checks the values.
    """
    root = checkout()
    source = chapter(root, name)
    known = declared(source)
    again = any(isinstance(value, Lab) for value in namespace.values())
    given = {
        key: value
        for key, value in namespace.items()
        if key in known or not (again or _of_the_session(key, value, namespace))
    }
    return open_lab(root, check(known, given), title=source.stem.split("_")[0])


def open_lab(root: Path, parameters: Mapping[str, Any], *, title: str = "") -> Lab:
    """A lab in this checkout for checked parameters; the mode is that of the environment.

    At the scales of a card this process may take TF32 there from now on (`arithmetic.allow_tf32`).
    """
    scale = parameters["scale"]
    arithmetic.allow_tf32(scale in LARGE)
    return Lab(
        scale=scale,
        store=open_store(root, scale),
        root=root,
        device=parameters.get("device", "auto"),
        dtype=parameters.get("dtype"),
        batch_size=parameters.get("batch_size"),
        progress=Terminal(title),
        retrain=os.environ.get("KEMEM_TRAIN", "") == "all",
        parameters=dict(parameters),
    )


def open_store(root: Path, scale: str) -> Store:
    """The run store of a scale: live rows below $KEMEM_STORE, recorded ones in records/<scale>."""
    mode = _mode()
    records = root / "records" / scale
    if mode == "run" and not records.is_dir():
        return Store(store_folder(root) / scale)  # no records at this scale: every arm is live
    stale = scale == "gpu" and mode != "record"  # what is recorded anew must not be what is to be replaced
    return Store(store_folder(root) / scale, records, mode=mode, keep_stale=stale)


def _mode() -> str:
    replay, record = (os.environ.get(name, "") not in ("", "0") for name in ("KEMEM_REPLAY", "KEMEM_RECORD"))
    if replay and record:
        raise BadInput("KEMEM_REPLAY reads records and KEMEM_RECORD writes them; both are set; unset one.")
    return "replay" if replay else "record" if record else "run"


def _of_the_session(key: str, value: Any, namespace: Mapping[str, Any]) -> bool:
    """True for what Python and IPython put into a notebook's namespace, and for modules a cell has imported."""
    shell = namespace.get("get_ipython")
    hidden = getattr(shell(), "user_ns_hidden", {}) if callable(shell) else {}
    return key.startswith("_") or key in OF_IPYTHON or key in hidden or isinstance(value, ModuleType)


class Terminal:
    """Progress of a long computation as lines on the terminal that started the kernel, at most one in `every` seconds.

    It never reaches a cell's outputs: a progress bar there would differ from run to run. In a kernel `sys.stderr` is
    the cell's output, and its `fileno()` the terminal; outside one both are the terminal.
    """

    def __init__(self, title: str = "", *, every: float = 5.0) -> None:
        self.title = f"[{title}] " if title else ""
        self.every = every
        self._next = 0.0

    def __call__(self, done: int, total: int, message: str = "") -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + self.every
        share = f"{done}/{total} " if total else ""
        line = f"{self.title}{share}{message}".rstrip() + "\n"
        try:
            os.write(sys.stderr.fileno(), line.encode())
        except (OSError, ValueError, AttributeError):
            return  # no terminal: nobody to tell
