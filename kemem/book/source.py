"""Showing a function of the package inside a chapter: the code beside its equation, always the code that runs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """The text of a function; Markdown in a notebook, plain elsewhere."""

    module: str
    text: str

    def _repr_markdown_(self) -> str:
        return f"```python\n# {self.module}\n{self.text}\n```"

    def __repr__(self) -> str:
        return self.text


def source(function: Callable[..., Any]) -> Source:
    """The source of a function or class of the package, as it is installed."""
    return Source(function.__module__, textwrap.dedent(inspect.getsource(function)).rstrip())
