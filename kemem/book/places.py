"""Where things lie: the checkout that this package was installed from, its chapters, records and run store."""

from __future__ import annotations

import os
from pathlib import Path

from kemem.errors import BadInput


def checkout() -> Path:
    """The folder that holds chapters/ and records/: that of the editable install, whatever the working folder."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file() or not (root / "chapters").is_dir():
        raise BadInput(
            "a chapter needs a checkout of the book (its sources and records); this kemem was installed without "
            "one; clone the repository and run `make setup` in it."
        )
    return root


def store_folder(root: Path) -> Path:
    """Where this checkout keeps the rows and checkpoints it computes: $KEMEM_STORE, or .kemem in the checkout."""
    named = os.environ.get("KEMEM_STORE")
    return Path(named).expanduser().resolve() if named else root / ".kemem"


def chapters(root: Path) -> list[Path]:
    """The chapter sources, in order."""
    return sorted((root / "chapters").glob("[0-9][0-9]_*.py"))


def chapter(root: Path, name: str) -> Path:
    """The source of a chapter named by its number ("03") or its file stem. Refuses others, listing the known."""
    known = chapters(root)
    for path in known:
        stem = path.stem
        if name in (stem, stem.split("_")[0]):
            return path
    raise BadInput(
        f"a chapter is a number or a file stem, one of {', '.join(p.stem for p in known)}; got {name!r}."
    )
