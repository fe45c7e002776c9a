"""Refusals of what cannot be served, in one line."""

from collections.abc import Iterable

from kemem.errors import BadInput


def whole(name: str, value: int, low: int, high: int | None = None) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (high is not None and value > high)
    ):
        bound = f"{low} or more" if high is None else f"from {low} to {high}"
        raise BadInput(f"{name} must be a whole number, {bound}; got {value!r}.")
    return value


def known(name: str, value: str, values: Iterable[str]) -> None:
    if value not in values:
        raise BadInput(f"unknown {name} {value!r}; known: {', '.join(values)}.")
