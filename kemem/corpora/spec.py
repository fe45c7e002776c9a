"""How a corpus is named in one line of text.

    docstrings                           docstrings:numpy,scipy,limit=3000
    world                                world:people=300,documents=12000,seed=0
    files:PATH                           hub:NAME[@REVISION][/CONFIG][:field=text,split=train,limit=10000]
    dolma-order:INDICES,files=LIST       the instances of OLMo's training, in its order (`kemem.corpora.dolma`)

joined by `+` for a mixture. A `+` joins only where the name of a scheme follows, so that paths may hold `+`;
the rare path in which one does (`/data/a+world`) is written with `++` at that place.
"""

import re
from dataclasses import dataclass, field

from kemem.errors import BadInput

SCHEMES = ("docstrings", "world", "files", "hub", "dolma-order")
LIMIT = 10_000  # texts of the hub read unless asked otherwise: many data sets there fit on no disk
_FOLLOWED = {"files": "a path", "hub": "a name", "dolma-order": "the place of its indices"}
_JOINT = re.compile(r"(?<!\+)\+(?=(?:docstrings|world)(?:[:+]|$)|(?:files|hub|dolma-order):)")
_DOUBLED = re.compile(r"\+\+(?=(?:docstrings|world)(?:[:+]|$)|(?:files|hub|dolma-order):)")


@dataclass(frozen=True)
class Part:
    """One part of a mixture: its scheme and what stands behind the colon."""

    scheme: str
    rest: str = ""


@dataclass(frozen=True)
class Options:
    """`numpy,scipy,limit=3000` taken apart: bare names, and values by key."""

    names: tuple[str, ...] = ()
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A data set of the hub, or a folder; which part of it and how many texts (None: all).

    listing: a file of the data set with the addresses of its files, where they lie elsewhere.
    """

    name: str
    local: bool = False
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    field: str = "text"
    limit: int | None = LIMIT
    listing: str | None = None


def specs(spec: str) -> tuple[Part, ...]:
    """The parts of a mixture, in order. Refused: an unknown scheme, `files:` with nothing behind it."""
    parts = []
    for text in _JOINT.split(spec.strip()):
        scheme, colon, rest = _DOUBLED.sub("+", text).partition(":")
        if scheme not in SCHEMES:
            hint = f"; for a file of yours write files:{text}" if re.search(r"[./\\]", scheme) else ""
            raise BadInput(
                "a corpus is docstrings, world, files:PATH or hub:NAME (or dolma-order:INDICES), joined by '+'; "
                f"got {text!r}{hint}."
            )
        if (colon or scheme in _FOLLOWED) and not rest.strip():
            raise BadInput(f"{scheme}: must be followed by {_FOLLOWED.get(scheme, 'options')}; got {spec!r}.")
        parts.append(Part(scheme, rest.strip()))
    return tuple(parts)


def options(part: Part) -> Options:
    """Options of a part. Refused: an empty one, a key given twice, a key without a value."""
    names: list[str] = []
    values: dict[str, str] = {}
    for item in part.rest.split(",") if part.rest else ():
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not key or (equals and not value):
            raise BadInput(f"options of {part.scheme} are key=value, joined by ','; got {part.rest!r}.")
        if not equals:
            names.append(key)
        elif key in values:
            raise BadInput(f"an option of {part.scheme} is given once; got {key!r} twice in {part.rest!r}.")
        else:
            values[key] = value
    return Options(tuple(names), values)


def known(part: Part, given: Options, keys: tuple[str, ...]) -> None:
    """Refuse options that the part does not have, naming those it has."""
    for key in given.values:
        if key not in keys:
            raise BadInput(f"{part.scheme} has the options {', '.join(keys)}; got {key!r}.")


def count(part: Part, key: str, value: str) -> int:
    """A whole number of at least 1 out of an option."""
    if not re.fullmatch(r"[0-9]+", value) or int(value) < 1:
        raise BadInput(f"{key} of {part.scheme} must be a whole number of at least 1; got {value!r}.")
    return int(value)


def number(part: Part, key: str, value: str) -> int | float:
    """A number out of an option, whole where it is written so."""
    try:
        return int(value) if re.fullmatch(r"[+-]?[0-9]+", value) else float(value)
    except ValueError:
        raise BadInput(f"{key} of {part.scheme} must be a number; got {value!r}.") from None
