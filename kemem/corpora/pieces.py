"""Pieces of equal length out of files of tokens: where they are, fetched by their bytes, kept with checksums.

A file of tokens is uint16, as `numpy.memmap` writes it, or with the header that `numpy.save` puts before it. What is
left at its end is no piece.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy

from kemem.corpora.fetch import PATIENCE, Patience, opened
from kemem.errors import BadInput
from kemem.progress import Reporter

TOKEN = numpy.dtype("<u2")
_MAGIC = b"\x93NUMPY"
_AT_ONCE = 8  # requests under way
_SUM = 16  # bytes of the checksum behind each piece that is kept


def header(source: Any) -> int:
    """Bytes before the numbers of a file: none, or the header of numpy."""
    begin = source.read(0, min(10, source.size))
    if not begin.startswith(_MAGIC):
        return 0
    end = 12 if begin[6] > 1 else 10  # of the length of the header, which is wider from version 2 on
    return end + int.from_bytes(source.read(8, end), "little")


def plan(
    numbers: numpy.ndarray, places: list[str], length: int, patience: Patience = PATIENCE
) -> dict[str, Any]:
    """Where each piece begins, as (place, byte), and the versions of the files that have one.

    numbers: of the pieces, counted through all files in turn. Refused: one that no file has.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sources = [opened(place, patience) for place in places]
        begins = list(pool.map(header, sources))
    size = length * TOKEN.itemsize
    counts = numpy.array([(s.size - begin) // size for s, begin in zip(sources, begins, strict=True)])
    ends = counts.cumsum()
    if numbers.max() >= ends[-1]:
        raise BadInput(
            f"the indices must be below the {ends[-1]:,} pieces of {length} tokens that all files have; got "
            f"{numbers.max():,}; do both lists belong to one run?"
        )
    file = numpy.searchsorted(ends, numbers, side="right")
    within = numbers - (ends - counts)[file]
    found = [[places[i], begins[i] + n * size] for i, n in zip(file.tolist(), within.tolist(), strict=True)]
    return {"pieces": found, "versions": {places[i]: sources[i].version for i in sorted(set(file.tolist()))}}


def kept_plan(folder: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The plan of a folder, made anew where it is not whole or a file on this machine has changed since."""
    path = folder / "plan.json"
    try:
        body = json.loads(path.read_text())
        if body["sha256"] == _digest(body["plan"]) and _unchanged(body["plan"]["versions"]):
            return body["plan"]
    except (OSError, ValueError, KeyError, TypeError, BadInput):
        pass
    for old in folder.glob("pieces*"):  # they belong to the plan before
        old.unlink()
    made = make()
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"plan": made, "sha256": _digest(made)}))
    os.replace(part, path)
    return made


def _unchanged(versions: dict[str, str]) -> bool:
    here = {place: version for place, version in versions.items() if version.startswith("modified ")}
    return all(opened(place).version == version for place, version in here.items())


def _digest(made: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def fetched(
    folder: Path, pieces: list[list[Any]], length: int, patience: Patience, report: Reporter
) -> numpy.ndarray:
    """All pieces, each kept with a checksum as soon as it is there; those that are kept are not asked for again."""
    size = length * TOKEN.itemsize
    path, part = folder / "pieces", folder / "pieces.part"
    rows = _sound(path, size) if path.exists() else _sound(part, size)
    if path.exists() and len(rows) < len(pieces):
        warnings.warn(f"the kept tokens {path} were altered or cut; the rest is fetched anew", stacklevel=3)
        os.replace(path, part)
    if len(rows) < len(pieces):
        sources = {place: opened(place, patience) for place, _ in pieces[len(rows) :]}

        def fetch(piece: list[Any]) -> bytes:
            place, begin = piece
            return sources[place].read(begin, begin + size)

        with part.open("r+b" if part.exists() else "wb") as file, ThreadPoolExecutor(_AT_ONCE) as pool:
            file.truncate(len(rows) * (size + _SUM))
            file.seek(0, os.SEEK_END)
            for start in range(len(rows), len(pieces), 4 * _AT_ONCE):  # few, so that a failure is met soon
                for row in pool.map(fetch, pieces[start : start + 4 * _AT_ONCE]):
                    file.write(row + _sum(len(rows), row))
                    rows.append(row)
                file.flush()
                report(len(rows), len(pieces), f"{len(rows) * size / 1e6:.1f} MB")
            os.fsync(file.fileno())
        os.replace(part, path)
    return numpy.frombuffer(b"".join(rows), TOKEN).reshape(len(pieces), length)


def _sound(path: Path, size: int) -> list[bytes]:
    """The pieces kept in a file, up to the first that is altered or cut."""
    rows: list[bytes] = []
    if not path.exists():
        return rows
    with path.open("rb") as file:
        while len(block := file.read(size + _SUM)) == size + _SUM:
            if block[size:] != _sum(len(rows), block[:size]):
                break
            rows.append(block[:size])
    return rows


def _sum(number: int, row: bytes) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "little") + row, digest_size=_SUM).digest()
