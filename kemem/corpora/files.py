"""`files:PATH`: texts of the reader's own, as txt or jsonl, plain or compressed.

Of a txt file each non-empty line is one document; of a jsonl file the field `text` of each line. Read as a
stream.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kemem.errors import BadInput

EXTENSIONS = tuple(kind + pack for kind in (".txt", ".jsonl") for pack in ("", ".gz", ".zst"))
_VARIABLE = "$KEMEM_DATA"
_CHUNK = 1 << 18


def expanded(path: str) -> Path:
    """The path with `~` and a leading `$KEMEM_DATA` filled in; refused where that variable is not set."""
    if path == _VARIABLE or path.startswith(_VARIABLE + "/"):
        folder = os.environ.get(_VARIABLE[1:])
        if not folder:
            raise BadInput(
                f"{path} needs the environment variable KEMEM_DATA, which is not set; "
                "set it to the folder with the data or write the path out."
            )
        path = folder + path[len(_VARIABLE) :]
    return Path(path).expanduser()


def files(path: str) -> list[Path]:
    """The file, or those of the folder in order of name, without hidden files and the folders inside it."""
    place = expanded(path)
    if not os.path.exists(place):  # unlike Path.exists, False for what may not be looked at
        raise BadInput(f"files:PATH must name a file or a folder that exists; got {place}.")
    if not place.is_dir():
        if not place.name.lower().endswith(EXTENSIONS):
            raise BadInput(f"a corpus file must end in {', '.join(EXTENSIONS)}; got {place}.")
        return [place]
    found = sorted(
        file
        for file in place.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name.lower().endswith(EXTENSIONS)
    )
    if not found:
        raise BadInput(
            f"a corpus folder must hold files that end in {', '.join(EXTENSIONS)}; got none in {place}; "
            "folders inside it are not searched, name one of them."
        )
    return found


def texts(path: str) -> Iterator[str]:
    """Documents of a file or folder, one after the other.

    Refused, each with file and line: text that is not UTF-8, an archive that is damaged or ends early, a
    line of jsonl that is not JSON or has no string in `text`.
    """
    for file in files(path):
        yield from _texts_of(file)


def _texts_of(file: Path) -> Iterator[str]:
    jsonl = re.search(r"\.jsonl(\.gz|\.zst)?$", file.name.lower()) is not None
    for number, line in _lines(file):
        text = _decoded(line, number, str(file)).rstrip("\r\n")
        if text.strip():
            yield _field(text, f"{file}, line {number}") if jsonl else text


def _decoded(line: bytes, number: int, name: str) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise BadInput(
            f"a corpus must be UTF-8; got byte 0x{byte:02x} in {name}, line {number}; convert the file."
        ) from None


def _field(line: str, place: str) -> str:
    return field_of(parsed(line, place), "text", place)


def parsed(line: str, place: str) -> object:
    """What a line of jsonl holds; refused where it is not JSON."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        fault = f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        fault = _first(error)
    raise BadInput(f"a line of jsonl must be one JSON object with a text; {place}: {fault}.")


def field_of(record: object, field: str, place: str) -> str:
    """The text in a field of a record; refused where there is none or it cannot be written as UTF-8."""
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise BadInput(f"a record must be an object with the field {field!r}; got {kind} in {place}.")
    if field not in record:
        fields = ", ".join(map(str, list(record)[:8])) or "no field"
        raise BadInput(f"a record must have the field {field!r}; got {fields} in {place}.")
    text = record[field]
    if not isinstance(text, str):
        raise BadInput(f"the field {field!r} must be a string; got {type(text).__name__} in {place}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"the field {field!r} must be Unicode text; got half a surrogate pair in {place}."
        ) from None
    return text


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines as bytes; damage is reported with the last line that could be read."""
    try:
        with file.open("rb") as raw:
            yield from lines(raw, str(file))
    except OSError as error:
        reason = error.strerror or _first(error)
        raise BadInput(f"a corpus file must be readable; got {reason} for {file}.") from None


def lines(raw: Any, name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of an open file, unpacked as the ending of its name says.

    Refused: an archive that is damaged or ends early, with the last line that could be read.
    """
    number = 0
    try:
        for number, line in enumerate(_opened(raw, name), start=1):
            yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(
            f"an archive must be whole; {name} is damaged or cut off after line {number} ({_first(error)}); "
            "copy or download it again."
        ) from None


def objects(raw: Any, name: str) -> Iterator[object]:
    """What the non-empty lines of an open jsonl file hold. Refused as by `lines`, and a line that is not JSON."""
    for number, line in lines(raw, name):
        if line.strip():
            yield parsed(_decoded(line, number, name), f"{name}, line {number}")


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _opened(raw: Any, name: str) -> Iterator[bytes]:
    if name.lower().endswith(".gz"):
        return iter(gzip.GzipFile(fileobj=raw))
    if name.lower().endswith(".zst"):
        return _split(_zstandard(raw, name))
    return iter(raw)


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines out of chunks cut anywhere."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, newline, others = chunk.partition(b"\n")
        rest.append(first)
        if newline:
            yield b"".join(rest) + newline
            *whole, last = others.split(b"\n")
            for line in whole:
                yield line + newline
            rest = [last]
    if last := b"".join(rest):
        yield last


def _zstandard(raw: Any, name: str) -> Iterator[bytes]:
    """Decompressed chunks. The package's own stream reader ends without a word where a frame is cut off."""
    try:
        import zstandard
    except ImportError:
        raise BadInput(
            f"{name} needs the package zstandard, which is not installed; pip install zstandard."
        ) from None
    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    while chunk := raw.read(_CHUNK):
        while chunk:
            begun = True
            try:
                data = frame.decompress(chunk)
            except zstandard.ZstdError as error:
                raise EOFError(_first(error)) from None
            if data:
                yield data
            chunk = b""
            if frame.eof:
                chunk = frame.unused_data
                frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    if begun:
        raise EOFError("the last frame is not complete")
