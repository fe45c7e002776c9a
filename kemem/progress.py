"""Saying how far a long computation is, on the terminal, once it takes long enough to wonder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Reporter(Protocol):
    """What long computations report to: `step` of `total` are done, and a line about it."""

    def __call__(self, step: int, total: int, message: str) -> None: ...


class Progress:
    """One line on standard error, shown from `patience` seconds on and wiped at the end."""

    def __init__(self, title: str = "", *, patience: float = 5.0, stream: Any = None) -> None:
        self.title, self.patience, self.stream = title, patience, stream
        self.bar = None

    def __call__(self, step: int, total: int, message: str) -> None:
        from tqdm import tqdm

        if self.bar is None:
            stream = self.stream or sys.stderr
            self.bar = tqdm(
                total=total,
                initial=step,
                desc=self.title or None,
                delay=self.patience,
                leave=False,
                file=stream,
                mininterval=0.2 if stream.isatty() else 10.0,
                bar_format="{desc}{percentage:3.0f} % |{bar:20}| {n_fmt}/{total_fmt}{postfix}",
            )
        self.bar.set_postfix_str(message, refresh=False)
        self.bar.update(step - self.bar.n)
        if step >= total:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps bars and reports of `transformers` off the terminal while it reads or writes weights."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
