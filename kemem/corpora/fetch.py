"""Bytes over a network that may fail: asked for again after a wait, a range at a time, all of one version.

A place is a path on this machine (`~` and `$KEMEM_DATA` are filled in) or a URL whose server answers ranges.
"""

from __future__ import annotations

import io
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from kemem.corpora.files import expanded
from kemem.errors import BadInput

T = TypeVar("T")
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses that another try may not meet
REMOTE = ("http://", "https://")
SECONDS = 60.0  # without an answer
TOLD = 5.0  # seconds of waiting from which on it is told
_NETWORK = {"TransportError", "ConnectionError", "TimeoutError", "ClientError", "OfflineModeIsEnabled"}

_BROKEN = {"RemoteProtocolError", "ReadError", "WriteError", "TimeoutException", "ConnectionResetError"}


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


@dataclass(frozen=True)
class Patience:
    """Seconds to wait before each further try; and at most, where a server says how long.

    wait: what does the waiting.
    """

    waits: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    longest: float = 120.0
    wait: Callable[[float], None] = _sleep


PATIENCE = Patience()


def busy(error: Exception) -> bool:
    """Whether a server answered that it could not answer now."""
    return getattr(getattr(error, "response", None), "status_code", None) in BUSY


def unreachable(error: Exception) -> bool:
    """Whether the network failed, by the kind of the error: http libraries differ in theirs and change."""
    return bool(_NETWORK & {kind.__name__ for kind in type(error).__mro__})


def broken(error: Exception) -> bool:
    """Whether a connection that stood ended early or fell silent."""
    return bool(_BROKEN & {kind.__name__ for kind in type(error).__mro__})


class Tries:
    """Waits between tries of one thing, each a little longer."""

    def __init__(self, patience: Patience = PATIENCE) -> None:
        self.patience, self.left = patience, iter(patience.waits)

    def again(self, error: Exception, *kinds: Callable[[Exception], bool]) -> None:
        """Waits; raises the error where it will not pass by waiting, or enough was waited."""
        asked = _asked(error)
        pause = next(self.left, None) if any(kind(error) for kind in kinds) else None
        if pause is None or asked > self.patience.longest:
            raise error
        pause = max(pause, asked)
        if pause >= TOLD:
            warnings.warn(f"waiting {pause:.0f} s before the next try: {reason(error)}", stacklevel=2)
        self.patience.wait(pause)


def persevere(
    attempt: Callable[[], T], patience: Patience = PATIENCE, kinds: tuple[Any, ...] = (busy, unreachable)
) -> T:
    """What `attempt` gives, tried again while it fails in these ways and there is patience."""
    tries = Tries(patience)
    while True:
        try:
            return attempt()
        except Exception as error:
            tries.again(error, *kinds)


def _asked(error: Exception) -> float:
    """Seconds that the server asks to wait; 0 where it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    given = str(headers.get("Retry-After", ""))
    return float(given) if re.fullmatch(r"\d+(\.\d+)?", given) else 0.0


def reason(error: Exception) -> str:
    """An error in one line."""
    asked = _asked(error)
    said = " ".join(str(error).split()).partition(" For more information check")[0]
    said = said[:200].rstrip(" .:;") or type(error).__name__
    return f"{said} (it asks to wait {asked:.0f} s)" if asked else said


# ---------------------------------------------------------------------- places
def opened(place: str, patience: Patience = PATIENCE) -> Local | Remote:
    """A place whose bytes can be read in any order. Refused: a path where no file is."""
    return Remote(place, patience) if place.startswith(REMOTE) else Local(place)


@dataclass(frozen=True)
class Local:
    """A file on this machine."""

    place: str

    @cached_property
    def _begin(self) -> tuple[int, str]:
        try:
            found = expanded(self.place).stat()
        except OSError as error:
            raise _refused(self.place, error.strerror or str(error)) from None
        return found.st_size, f"modified {found.st_mtime_ns}"

    @property
    def size(self) -> int:
        return self._begin[0]

    @property
    def version(self) -> str:
        """What tells this content from another at the same place."""
        return self._begin[1]

    def read(self, start: int, stop: int) -> bytes:
        """These bytes. Refused: fewer than that."""
        try:
            with expanded(self.place).open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
        except OSError as error:
            raise _refused(self.place, error.strerror or str(error)) from None
        if len(data) < stop - start:
            raise _refused(self.place, f"only {start + len(data):,} of at least {stop:,} bytes")
        return data


@dataclass(frozen=True)
class Remote:
    """A file behind a URL, of one version from first to last: another ETag or size is refused."""

    place: str
    patience: Patience = field(default=PATIENCE, compare=False)

    @cached_property
    def _begin(self) -> tuple[int, str]:
        _, size, version = self._fetched(0, 1)
        return size, version

    @property
    def size(self) -> int:
        return self._begin[0]

    @property
    def version(self) -> str:
        return self._begin[1]

    def read(self, start: int, stop: int) -> bytes:
        """These bytes. Refused: what does not come after all tries, and a file that is not the same any more."""
        if stop > self.size:
            raise _refused(self.place, f"only {self.size:,} of at least {stop:,} bytes")
        data, size, version = self._fetched(start, stop)
        if (size, version) != self._begin:
            raise _refused(
                self.place, f"another file than before (ETag {version} and {size:,} bytes, not {self.version} "
                f"and {self.size:,})"
            )  # fmt: skip
        return data

    def _fetched(self, start: int, stop: int) -> tuple[bytes, int, str]:
        """The bytes, the size of the whole and its ETag."""
        try:
            return persevere(lambda: _range(self.place, start, stop), self.patience)
        except BadInput:
            raise
        except Exception as error:  # whatever the network or a proxy can raise
            raise _refused(self.place, reason(error)) from None


def _range(url: str, start: int, stop: int) -> tuple[bytes, int, str]:
    from huggingface_hub.utils import get_session, hf_raise_for_status

    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    response = get_session().get(url, headers=headers, timeout=SECONDS, follow_redirects=True)
    hf_raise_for_status(response)
    told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or not told or int(told[1]) != start:
        raise _refused(url, f"status {response.status_code} without the range that was asked for")
    size, data = int(told[2]), response.content
    if len(data) != min(stop, size) - start:
        raise ConnectionError(f"{len(data)} bytes came instead of {min(stop, size) - start}")
    return data, size, response.headers.get("ETag", "").removeprefix("W/").strip('"')


def _refused(place: str, got: str) -> BadInput:
    return BadInput(
        f"{place} must be a file whose bytes can be read; got {got}; check the place, or copy it here."
    )


class Stream(io.RawIOBase):
    """The bytes of a place from the first to the last, for readers of archives."""

    def __init__(self, source: Local | Remote, *, chunk: int = 1 << 20) -> None:
        self.source, self.chunk, self.position = source, chunk, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.chunk, self.source.size - self.position)
        buffer[:count] = self.source.read(self.position, self.position + count) if count else b""
        self.position += count
        return count
