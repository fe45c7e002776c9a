"""A step of a chapter's contents: something to be asked for, with what it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

Step = Callable[[], Any]
"""Asks for rows, and where it needs their values, for further ones."""


def step(function: Callable[..., Any], *arguments: Any, **named: Any) -> Step:
    return partial(function, *arguments, **named)
