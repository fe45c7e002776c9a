"""Which chapters need not be run again: nothing they depend on has changed since they were."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from kemem.book.places import store_folder
from kemem.book.run import Execution
from kemem.provenance import versions

FILE = "executed.json"


def fingerprint(root: Path, source: Path, scale: str) -> str:
    """Of all that a chapter's notebook follows from: its source, the package, library versions, records, live rows."""
    state = sha256(json.dumps([scale, versions(), os.environ.get("KEMEM_DATA", "")]).encode())
    for path in [
        source,
        *_files(root / "kemem", "**/*.py"),
        *_rows(root / "records" / scale),
        *_rows(store_folder(root) / scale),
    ]:
        data = path.read_bytes()
        state.update(f"{path.name} {len(data)} ".encode() + data)
    return state.hexdigest()


def _files(folder: Path, pattern: str) -> Iterable[Path]:
    return sorted(folder.glob(pattern))


def _rows(folder: Path) -> Iterable[Path]:
    """The rows of a store or of the records; not what lies beside them, as checkpoints and locks."""
    return _files(folder, "*/*-v*.json")


def remember(folder: Path, executions: list[Execution], fingerprints: dict[str, str]) -> None:
    """Notes beside the notebooks of a build what each that passed followed from."""
    document = {
        e.chapter: {"fingerprint": fingerprints[e.chapter], **asdict(e)} for e in executions if e.passed
    }
    (folder / FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def unchanged(root: Path, folder: Path, sources: list[Path], scale: str) -> dict[str, Execution]:
    """Executions of an earlier build that still hold, by chapter; none when everything is to be trained again."""
    if os.environ.get("KEMEM_TRAIN", "") == "all":
        return {}
    try:
        noted = json.loads((folder / FILE).read_text(encoding="utf-8"))
        held = {}
        for source in sources:
            entry = dict(noted.get(source.stem) or {})
            same = entry.pop("fingerprint", None) == fingerprint(root, source, scale)
            if same and (folder / f"{source.stem}.ipynb").is_file():
                held[source.stem] = Execution(**entry)
        return held
    except (OSError, ValueError, TypeError, AttributeError):  # never built, or noted by another version
        return {}
