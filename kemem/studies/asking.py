"""Stores for sweeps: which rows a chapter asks for, and rows shared out among processes that all ask for the same.

What a chapter asks for may hang on rows that are not there yet: settings are chosen from trials. So nothing lists its
rows; its contents (`kemem.studies.contents`) are asked, again and again, and each time get a little further.

    Asking     computes nothing: notes every row, and hands out a `Pending` one for what is missing
    Claiming   computes what is missing unless another process is at it or it has failed; then a `Pending` one

A pending row has no values: whoever looks at them gets `Unfinished`, which ends the step that did.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from filelock import Timeout

from kemem.runs import Row, Store, canonical, digest


class Unfinished(LookupError):
    """What comes next hangs on a row that is not finished."""


class Busy(Exception):
    """Another process is at a row that this one begins with."""


class Pending:
    """The values of a row that is not finished: to look at them raises Unfinished."""

    def __init__(self, what: str) -> None:
        self.__dict__["what"] = what

    def _refuse(self, *_: Any) -> NoReturn:
        raise Unfinished(self.__dict__["what"])

    __getitem__ = __iter__ = __len__ = __contains__ = __bool__ = __getattr__ = __eq__ = __float__ = _refuse
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Asked:
    """A row that was asked for: settings as their study made them, and the row where it is finished."""

    study: str
    version: int
    settings: Any
    recorded: bool
    row: Row | None

    @property
    def digest(self) -> str:
        return digest(self.study, self.version, self.settings)


def _pending(study: str, version: int, plain: Any, origin: str) -> Row:
    what = f"row {digest(study, version, plain)} of study {study!r} is not finished"
    return Row(study, version, plain, Pending(what), {}, origin)


class Asking(Store):
    """The rows of another store, looked at: nothing is computed.

    stand_ins: by study, what is taken for the values of a row that is missing, from its settings as they were asked
    for. With them all that a chapter will ask for can be known beforehand, as far as it does not hang on a choice.
    """

    pooled = False

    def __init__(self, store: Store, stand_ins: Mapping[str, Callable[[Any], Any]] | None = None) -> None:
        super().__init__(store.live, store.records, mode=store.mode, keep_stale=store.keep_stale)
        self.asked: dict[tuple[str, str], Asked] = {}
        self.stand_ins = stand_ins or {}
        self.assumed: set[str] = set()
        """Studies of which values were stood in for."""

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
        plain = canonical(settings)
        found = self.find(study, version, plain, recorded=recorded)
        key = (study, self._name(study, plain))
        self.asked[key] = Asked(study, version, settings, recorded, found)
        if found is not None:
            return found
        missing = _pending(study, version, plain, "recorded" if self.mode == "record" else "live")
        if study not in self.stand_ins:
            return missing
        self.assumed.add(study)
        return Row(study, version, plain, self.stand_ins[study](settings), {}, missing.origin)


@dataclass
class Failures:
    """Rows that failed in this sweep, known to all of its processes: a file each in one folder."""

    folder: Path

    def _path(self, study: str, name: str) -> Path:
        return self.folder / f"{study}-{name}.json"

    def add(self, study: str, name: str, error: Exception) -> None:
        said = {"study": study, "row": name, "kind": type(error).__name__, "error": str(error)}
        path = self._path(study, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        part.write_text(json.dumps(said) + "\n", encoding="utf-8")
        os.replace(part, path)

    def has(self, study: str, name: str) -> bool:
        return self._path(study, name).is_file()

    def forget(self, some: Iterable[Mapping[str, str]]) -> None:
        """What failed before may be tried again."""
        for each in some:
            self._path(each["study"], each["row"]).unlink(missing_ok=True)

    def __iter__(self) -> Any:
        for path in sorted(self.folder.glob("*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))


@dataclass
class Claims:
    """What a process has done in a pass over the contents; one object for a store and the readers made of it."""

    depth: int = 0
    pending: int = 0
    """How often a row was handed out that is not finished."""
    waiting: set[tuple[str, str]] = field(default_factory=set)
    computed: list[Row] = field(default_factory=list)


class Claiming(Store):
    """A store whose missing rows are computed by whichever process comes first.

    begin(study, settings): called before a row is computed; a Busy from it puts the row off, whatever else is no
    Exception ends the work. told(row, settings): called after. A row that begins with one that another process is at
    is put off too: nobody waits for a single row.
    """

    pooled = False
    patience = 0.0

    def __init__(
        self,
        store: Store,
        failures: Failures,
        *,
        begin: Callable[[str, Any], None] | None = None,
        told: Callable[[Row, Any], None] | None = None,
        failed: Callable[[str, str, Exception], None] | None = None,
    ) -> None:
        super().__init__(store.live, store.records, mode=store.mode, keep_stale=store.keep_stale)
        self.failures, self.claims = failures, Claims()
        self.begin, self.told, self.failed = begin, told, failed

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
        plain = canonical(settings)
        if self.claims.depth or not self.computes:  # another row begins with this one; or a reader asks
            try:
                return super().row(study, version, plain, compute, recorded=recorded, device=device)
            except Timeout:
                raise Busy(f"another process is at a row of {study!r}") from None
        found = self.find(study, version, plain, recorded=recorded)
        if found is not None:
            return found
        name = self._name(study, plain)
        mine = False

        def noting(provenance: dict[str, Any]) -> Any:
            nonlocal mine
            mine = True
            if self.begin is not None:
                self.begin(study, settings)
            return compute(provenance)

        if not self.failures.has(study, name):
            self.claims.depth += 1
            try:
                row = super().row(study, version, plain, noting, recorded=recorded, device=device)
                if mine:
                    self.claims.computed.append(row)
                    if self.told is not None:
                        self.told(row, settings)
                return row
            except (Timeout, Busy):
                self.claims.waiting.add((study, name))
            except Exception as error:  # told, and the rest goes on
                self.fail(study, name, error)
            finally:
                self.claims.depth -= 1
        self.claims.pending += 1
        return _pending(study, version, plain, "live")

    def fail(self, study: str, name: str, error: Exception) -> None:
        """Note that something failed, so that no process of this sweep tries it again."""
        if not self.failures.has(study, name):
            self.failures.add(study, name, error)
            if self.failed is not None:
                self.failed(study, name, error)
