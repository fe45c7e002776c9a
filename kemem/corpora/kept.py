"""What was read from the hub, kept on this machine: read once, found again without a network.

    $KEMEM_CACHE/records/OWNER--NAME/COMMIT-KEY.jsonl.gz     the first records of a split, one a line
    $KEMEM_CACHE/commits/OWNER--NAME.json                    what its branches and tags last stood for

Without that variable they are in `kemem` below the cache home of Hugging Face. A file of records ends in a line with
their number and checksum. It is written beside its place and renamed: it is there whole or not at all, and one that
was altered is named and read anew. As it holds the first records, it serves every limit; a larger one adds to it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "KEMEM_CACHE"
MOST = 1 << 34  # bytes of records that are kept of one split: what is larger is streamed each time
_DAY = 86_400


def folder() -> Path:
    """Where things are kept."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    from huggingface_hub import constants

    return Path(constants.HF_HOME).expanduser() / "kemem"


def place(name: str, commit: str, *key: str | None) -> Path:
    """The file for the records of a data set at a commit; key: configuration, split and field."""
    digest = hashlib.sha256(json.dumps([name, commit, *key]).encode()).hexdigest()[:16]
    return folder() / "records" / _folded(name) / f"{commit[:12]}-{digest}.jsonl.gz"


def _folded(name: str) -> str:
    return name.replace("/", "--")


@dataclass(frozen=True)
class Kept:
    """The first records of a split. ended: all of them. at: where to read on, as shard and record of it."""

    path: Path
    records: int
    ended: bool
    at: tuple[int, int]

    def __iter__(self) -> Iterator[Any]:
        with gzip.open(self.path, "rb") as lines:
            for _, line in zip(range(self.records), lines, strict=False):
                yield json.loads(line)


def found(path: Path) -> Kept | None:
    """What is kept there, if it is whole; what is not is named in a warning and removed."""
    if not path.is_file():
        return None
    state, last, count = hashlib.sha256(), b"", -1
    try:
        with gzip.open(path, "rb") as lines:
            for line in lines:
                state.update(last)
                last, count = line, count + 1
        end = json.loads(last)
        if (end["records"], end["sha256"]) == (count, state.hexdigest()):
            return Kept(path, count, end["ended"], tuple(end["at"]))
        fault = "its checksum is another"
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        fault = (str(error).splitlines() or [type(error).__name__])[0]
    warnings.warn(f"the kept records {path} were altered or cut ({fault}); they are read anew", stacklevel=4)
    path.unlink(missing_ok=True)
    return None


class Writer:
    """Keeps records as they come, until `settle` puts them in their place or `drop` forgets them.

    A disk that cannot be written is named in a warning; what cannot be written as JSON, or is more than MOST, is not
    kept. Neither stops the reading.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.bytes, self.file = path, 0, 0, None
        self.part = path.with_name(f".{path.name}.{os.getpid()}-{id(self)}.part")
        self.state = hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in path.parent.glob(".*.part"):  # of processes that were killed
                with suppress(OSError):
                    if time.time() - old.stat().st_mtime > _DAY:
                        old.unlink()
            self.file = gzip.GzipFile(self.part, "wb", compresslevel=4)
        except OSError as error:
            self._give_up(error)

    def add(self, value: Any) -> None:
        if self.file is None:
            return
        try:
            line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        except (TypeError, ValueError):
            self.drop()
            return
        self.count, self.bytes = self.count + 1, self.bytes + len(line)
        if self.bytes > MOST:
            self.drop()
            return
        self.state.update(line)
        try:
            self.file.write(line)
        except OSError as error:
            self._give_up(error)

    def settle(self, ended: bool, at: tuple[int, int]) -> None:
        """Puts the records in their place, once they are on the disk."""
        if self.file is None:
            return
        end = {"records": self.count, "ended": ended, "at": at, "sha256": self.state.hexdigest()}
        try:
            self.file.write(json.dumps(end).encode() + b"\n")
            self.file.close()
            with self.part.open("rb") as whole:
                os.fsync(whole.fileno())
            os.replace(self.part, self.path)
        except OSError as error:
            self._give_up(error)

    def drop(self) -> None:
        """Forgets the records."""
        file, self.file = self.file, None
        with suppress(OSError):
            if file is not None:
                file.close()
            self.part.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        self.drop()
        told = error.strerror or str(error)
        warnings.warn(
            f"what is read is not kept in {self.path.parent}: {told}; set {VARIABLE} to another folder",
            stacklevel=5,
        )


# ---------------------------------------------------------------------- commits
def remember(name: str, revision: str | None, commit: str) -> None:
    """Keeps what a revision of a data set stands for now."""
    path = _commits(name)
    known = {**remembered(name), str(revision): commit}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with suppress(OSError):  # then it is asked for again
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known))
        os.replace(part, path)


def remembered(name: str) -> dict[str, str]:
    """What revisions of a data set stood for when last asked; None is written out."""
    try:
        known = json.loads(_commits(name).read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _commits(name: str) -> Path:
    return folder() / "commits" / f"{_folded(name)}.json"
