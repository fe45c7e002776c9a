"""The parameters of a chapter: the plain assignments in the cell tagged `parameters`, and the values they may take."""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kemem.errors import BadInput
from kemem.studies.lab import SCALES

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16", "float64")


@dataclass(frozen=True)
class Parameter:
    """A name, the value it has where nobody says otherwise, and the sentence that says what it means."""

    name: str
    default: Any
    meaning: str


def declared(source: Path) -> dict[str, Parameter]:
    """Parameters of a chapter in percent format. Asserts that each is a literal with a comment on its line."""
    cell = re.search(
        r'^# %% .*tags=\[[^\]]*"parameters"[^\]]*\][^\n]*\n(.*?)(?=^# %%|\Z)',
        source.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    assert cell, f"{source.name} has no cell tagged `parameters`"
    code = cell.group(1)
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for statement in ast.parse(code).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                pass
            case _:
                raise AssertionError(
                    f"{source.name}: only `name = literal  # meaning` belongs in the parameters cell"
                )
        meaning = comments.get(statement.end_lineno or 0, "")
        assert meaning, f"{source.name}: the parameter {name} needs a comment that says what it means"
        found[name] = Parameter(name, ast.literal_eval(value), meaning)
    return found


def check(known: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters with their values, `given` over the defaults. Refuses unknown names and values that cannot be."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        names = ", ".join(unknown)
        raise BadInput(
            f"the parameters of this chapter are {', '.join(known)}; got {names}; correct or drop it."
        )
    values = {name: parameter.default for name, parameter in known.items()} | dict(given)
    for name, value in values.items():
        _check_type(known[name], value)
        if name in CHECKS and value is not None:
            CHECKS[name](name, value)
    return values


def _check_type(parameter: Parameter, value: Any) -> None:
    default = parameter.default
    if value is None or default is None:
        return
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), tuple: (tuple, list), list: (tuple, list)}
    expected = kinds.get(type(default), (type(default),))
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise BadInput(
            f"{parameter.name} is a {type(default).__name__} like {default!r} ({parameter.meaning}); got {value!r}."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{parameter.name} is a finite number; got {value!r}.")


def _one_of(*known: str) -> Callable[[str, Any], None]:
    def test(name: str, value: Any) -> None:
        if value not in known:
            raise BadInput(f"{name} is one of {', '.join(known)}; got {value!r}.")

    return test


def _whole(least: int) -> Callable[[str, Any], None]:
    def test(name: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{name} is a whole number, {least} or more; got {value!r}.")

    return test


def _device(name: str, value: Any) -> None:
    if value in DEVICES:
        return
    from kemem.models.places import accelerator  # torch, which most values need not wait for

    if value is None or value != accelerator():
        _one_of(*DEVICES)(name, value)


def _corpus(name: str, value: Any) -> None:
    from kemem.corpora import specs

    specs(value)


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "scale": _one_of(*SCALES),
    "device": _device,
    "dtype": _one_of(*DTYPES),
    "coefficient": _one_of("abs", "relu", "relu-gate"),
    "padding": _one_of("mask", "include"),
    "seed": _whole(0),
    "instances": _whole(1),
    "batch_size": _whole(1),
    "corpus": _corpus,
}
