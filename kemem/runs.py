"""The run store: settings -> digest -> one small JSON row, computed once, checked, never silently used when damaged.

A row is what a study found for one arm: its declared settings, its values, and where they came from. Its identity is a
digest over (study, version, settings); the texts' digest, library versions, commit, device, seconds and peak memory
are provenance. `version` is a number that a study raises with every change that may alter its numbers: a row of an
older version is stale.

    live rows       <store>/<study>/<settings digest>-v<version>.json     computed by this checkout, ignored by git
    recorded rows   records/<scale>/<study>/...                           committed; written only in mode "record"

An arm is *live* (computed here even where a record exists) or *recorded* (read from the records). Three modes:

    run      live arms are computed when missing, recorded arms are read; without records every arm is live
    replay   nothing is computed: every row comes from the records, a missing or stale one is an error
    record   every missing or stale row is computed into the records
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kemem.errors import BadInput
from kemem.provenance import measured, origin

MODES = ("run", "replay", "record")


class MissingRow(LookupError):
    """A row that replay needs is not among the records, or only in an older version."""


def canonical(value: Any) -> Any:
    """The plain-JSON form of settings or values: dataclasses as dicts, tuples as lists, keys as sorted strings.

    Refuses what JSON cannot carry exactly: NaN and infinities, sets, arrays.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): canonical(value[k]) for k in sorted(value, key=str)}  # the order that a read row has
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"a row holds finite numbers; got {value}. A missing value is None, never 0 or NaN."
            )
        return float(value)  # numpy's float64 is a float whose repr would not be plain
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"a row holds plain JSON values; got {type(value).__name__}. Convert it with .tolist() or float()."
    )


def _encode(value: Any) -> bytes:
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(study: str, version: int, settings: Any) -> str:
    """16 hex digits over (study, version, settings): the identity of a row."""
    return hashlib.sha256(_encode([study, version, settings])).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """One finished run. `origin` is "live" or "recorded"; `stale` marks a kept row of an older version."""

    study: str
    version: int
    settings: dict[str, Any]
    values: Any
    provenance: dict[str, Any]
    origin: str
    stale: bool = False

    @property
    def digest(self) -> str:
        return digest(self.study, self.version, self.settings)

    def __repr__(self) -> str:
        seconds = self.provenance.get("seconds")
        took = "" if seconds is None else f", {seconds:.0f} s"
        return f"Row({self.study} v{self.version} {self.digest}, {self.origin}{', stale' if self.stale else ''}{took})"


class Store:
    """Rows of one scale. `live` is written in mode run, `records` in mode record; `work` holds checkpoints and locks.

    keep_stale: hand out rows of an older version, marked stale, instead of refusing them (GPU records).
    """

    pooled = True
    """Whether rows of a sweep may be computed side by side by processes of their own."""
    patience = -1.0
    """Seconds to wait for a process that is at a row that is wanted; below 0: until it has finished."""

    def __init__(
        self,
        live: Path | str,
        records: Path | str | None = None,
        *,
        mode: str = "run",
        keep_stale: bool = False,
    ) -> None:
        if mode not in MODES:
            raise BadInput(f"a run store's mode is one of {', '.join(MODES)}; got {mode!r}.")
        if mode != "run" and records is None:
            raise BadInput(f"mode {mode!r} needs a folder of records; got none. Name it, or use mode 'run'.")
        self.live = Path(live)
        self.records = None if records is None else Path(records)
        self.mode = mode
        self.keep_stale = keep_stale
        self.computes = mode != "replay"

    def reader(self) -> Store:
        """The same rows, of which none is computed: what is not finished raises MissingRow."""
        view = copy.copy(self)
        view.computes = False
        return view

    # ------------------------------------------------------------------ reading
    def _name(self, study: str, settings: Any) -> str:
        return hashlib.sha256(_encode([study, settings])).hexdigest()[:16]

    def _read(self, folder: Path | None, study: str, version: int, settings: Any, origin: str) -> Row | None:
        """The row of this version, or with `keep_stale` the newest older one; None where none is whole."""
        if folder is None:
            return None
        name = self._name(study, settings)
        exact = folder / study / f"{name}-v{version}.json"
        paths = [exact]
        if self.keep_stale:
            older = sorted(
                (folder / study).glob(f"{name}-v*.json"), key=lambda p: int(p.stem.rsplit("v", 1)[1])
            )
            paths += older[::-1]
        for path in paths:
            document = _load(path)
            if document is not None:
                return Row(
                    study, document["version"], document["settings"], document["values"], document["provenance"],
                    origin, stale=document["version"] != version,
                )  # fmt: skip
        return None

    def find(self, study: str, version: int, settings: Any, *, recorded: bool = False) -> Row | None:
        """The finished row that this mode would use, or None."""
        settings = canonical(settings)
        if self.mode != "run":
            return self._read(self.records, study, version, settings, "recorded")
        if recorded and self.records is not None:
            row = self._read(self.records, study, version, settings, "recorded")
            if row is not None:
                return row
        return self._read(self.live, study, version, settings, "live")

    # ------------------------------------------------------------------ writing
    def row(
        self,
        study: str,
        version: int,
        settings: Any,
        compute: Callable[[dict[str, Any]], Any],
        *,
        recorded: bool = False,
        device: str = "cpu",
    ) -> Row:
        """The row of these settings: read where it is finished, else computed, written atomically and returned.

        compute(provenance) returns the values and may add to `provenance` (the digest of its corpus, say).
        Two processes that ask for one row compute it once: the second waits for the first.
        """
        settings = canonical(settings)
        found = self.find(study, version, settings, recorded=recorded)
        if found is not None:
            return found
        if not self.computes or (recorded and self.mode == "run" and self.records is not None):
            raise MissingRow(self._missing(study, version, settings))
        folder = self.records if self.mode == "record" else self.live
        assert folder is not None
        name = self._name(study, settings)
        lock = self.live / "locks" / f"{study}-{name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=self.patience):
            found = self.find(study, version, settings, recorded=recorded)
            if found is not None:  # another process finished it while this one waited
                return found
            provenance: dict[str, Any] = {}
            with measured(provenance, device):
                values = canonical(compute(provenance))
            if device.startswith("cuda"):
                provenance["products"] = _products(device)
            provenance = {
                "seed": settings.get("seed") if isinstance(settings, dict) else None,
                **origin(),
                **provenance,
            }
            document = {
                "study": study,
                "version": version,
                "settings": settings,
                "values": values,
                "provenance": canonical(provenance),
            }
            _write(folder / study / f"{name}-v{version}.json", document)
        kind = "recorded" if self.mode == "record" else "live"
        return Row(study, version, settings, values, canonical(provenance), kind)

    def folder(self, study: str, version: int, settings: Any) -> Path:
        """Where a run keeps what is too large for a row (checkpoints, resume state); not committed."""
        path = self.live / "work" / study / f"{self._name(study, canonical(settings))}-v{version}"
        return path

    def _missing(self, study: str, version: int, settings: Any) -> str:
        older = (
            list((self.records / study).glob(f"{self._name(study, settings)}-v*.json"))
            if self.records
            else []
        )
        state = f"only in an older version ({older[0].stem.rsplit('-', 1)[1]})" if older else "not"
        scale = self.records.name if self.records else "laptop"
        return (
            f"the row {digest(study, version, settings)} of study {study!r} (v{version}) is {state} among the records "
            f"of scale {scale}; compute it with `make record SCALE={scale}`."
        )


# ---------------------------------------------------------------------- files
def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_encode({k: v for k, v in document.items() if k != "checksum"})).hexdigest()


def _load(path: Path) -> dict[str, Any] | None:
    """A row's file, or None where it is absent; a half-written or altered one is said and treated as absent."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        sound = isinstance(document, dict) and document.get("checksum") == _checksum(document)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):  # not JSON, or numbers that no row holds
        sound = False
    if not sound:
        warnings.warn(
            f"the row {path.name} is damaged or was altered (checksum); it is not used.", stacklevel=3
        )
        return None
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    """Write atomically: a reader sees the old file or the whole new one, also after a kill or a full disk."""
    document = {**document, "checksum": _checksum(document)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, sort_keys=True, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno == errno.ENOSPC:
            raise BadInput(
                f"no space left to write {path}; free some or set KEMEM_STORE to another disk, then run again."
            ) from error
        raise


FIELDS = ("corpus", "versions", "commit", "device")


def differences(rows: Mapping[str, Row], fields: Sequence[str] = FIELDS) -> list[str]:
    """What of the provenance differs between rows that a figure joins: one line a field, none where all agree.

    The rows are named up to a handful and counted beyond.
    """
    lines = []
    for field in fields:
        seen: dict[str, list[str]] = {}
        for name, row in rows.items():
            seen.setdefault(json.dumps(row.provenance.get(field), sort_keys=True), []).append(name)
        if len(seen) > 1:
            said = (f"{value} in {_some(names)}" for value, names in seen.items())
            lines.append(f"{field}: " + "; ".join(said))
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} rows"


def _products(device: str) -> str:
    import torch

    from kemem import arithmetic

    return arithmetic.precision(torch.device(device))
