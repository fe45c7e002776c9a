"""The status page: for every chapter and scale when its rows were computed, from what, on what, for how long."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

from kemem.book.notebooks import differences
from kemem.book.places import chapters, store_folder
from kemem.book.run import Execution, load
from kemem.provenance import versions
from kemem.studies import STUDIES
from kemem.studies.lab import SCALES

EXECUTIONS = "executions.json"
Document = dict[str, Any]


def documents(folder: Path) -> list[Document]:
    """The rows below a folder of rows, as they were written."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*-v[0-9]*.json"))]


def part(name: str, root: Path, stage: Path | None, *, live: bool) -> str:
    """One part of the page as Markdown. `stage` holds the notebooks that are rendered; `live`: they were run here."""
    match name:
        case "records":
            return _records(root)
        case "notebooks":
            return _notebooks(root)
        case "run" if live and stage:
            return _this_run(root, load(stage / EXECUTIONS))
        case "run":
            return "This copy shows the committed notebooks; nothing was run to make it."
        case "cost":
            return _measured(root)
        case "versions":
            return _versions(root)
        case _:
            raise AssertionError(f"no part of the status page is called {name!r}")


def measured(root: Path, chapter: str) -> list[Execution]:
    """Wall time and memory of a chapter at each scale where it was measured, as `make measure` recorded them."""
    return [
        execution
        for scale in SCALES
        for execution in load(root / "records" / scale / EXECUTIONS)
        if execution.chapter == chapter
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _records(root: Path) -> str:
    """One line a chapter and scale: the rows that are committed."""
    rows: list[Sequence[object]] = []
    for source in chapters(root):
        own = [
            (scale, [d for d in documents(root / "records" / scale) if chapter_of(d) == source.stem])
            for scale in SCALES
        ]
        lines = [(scale, found) for scale, found in own if found]
        rows += [[_link(source.stem), scale, *_facts(found), _freshness(found)] for scale, found in lines]
        if not lines:
            rows.append([_link(source.stem), "none", 0, "", "", "", "", "nothing recorded"])
    return table(["Chapter", "Scale", "Rows", "Finished", "Commit", "Device", "Time", "State"], rows)


def _notebooks(root: Path) -> str:
    """Whether the committed notebooks are what their sources say."""
    rows = []
    for source in chapters(root):
        notebook = source.with_suffix(".ipynb")
        wrong = differences(source, notebook) if notebook.is_file() else ["not executed yet"]
        rows.append([_link(source.stem), "; ".join(wrong[:1]) or "is its source, and ran without an error"])
    return table(["Chapter", "Committed notebook"], rows)


def _facts(found: list[Document]) -> list[object]:
    origin = [d["provenance"] for d in found]
    return [
        len(found),
        _span(sorted({str(o["finished"]) for o in origin})),
        ", ".join(sorted({f"`{_short(o['commit'])}`" for o in origin if o.get("commit")})) or "none",
        ", ".join(sorted({str(o["device"]) for o in origin})),
        duration(sum(o["seconds"] for o in origin)),
    ]


def _short(commit: str) -> str:
    """A commit as git shows it, with the mark of one whose files were changed."""
    return commit[:7] + ("+" if commit.endswith("+") else "")


def _freshness(found: list[Document]) -> str:
    stale = sum(d["version"] != studies().get(d["study"], ("", d["version"]))[1] for d in found)
    return f"**{stale} of {len(found)} stale**" if stale else "current"


def studies() -> dict[str, tuple[str, int]]:
    """Chapter and current version of every study, by the name in its rows.

    A module of `kemem.studies` says CHAPTER, STUDY and VERSION, or, where it makes rows of several kinds, ROWS: a
    version for each name.
    """
    return {name: (module.CHAPTER, version) for module in STUDIES for name, version in _rows(module).items()}


def _rows(module: ModuleType) -> dict[str, int]:
    return module.ROWS if hasattr(module, "ROWS") else {getattr(module, "STUDY", ""): module.VERSION}


def chapter_of(document: Document) -> str:
    """The chapter that shows a row: that of its study, or the one that made the row itself, under its own name."""
    name = document["study"]
    return studies().get(name, (name, 0))[0]


def _this_run(root: Path, executions: list[Execution]) -> str:
    """What `make book` did when this copy of the book was built."""
    rows = []
    for done in executions:
        found = [d for d in documents(store_folder(root) / done.scale) if chapter_of(d) == done.chapter]
        rows.append([
            _link(done.chapter), done.scale, duration(done.seconds), f"{done.peak_memory_mib} MiB", len(found),
            "passed" if done.passed else f"failed: {done.error}",
        ])  # fmt: skip
    head = ["Chapter", "Scale", "Wall time", "Memory", "Live rows", "Result"]
    made = f"This copy was made by `make book` on {date.today().isoformat()}, with rows it computed or found."
    return f"{made}\n\n" + table(head, rows)


def _measured(root: Path) -> str:
    rows = [
        [
            _link(e.chapter),
            e.scale,
            duration(e.seconds),
            f"{e.peak_memory_mib} MiB",
            "yes" if e.passed else "no",
        ]
        for source in chapters(root)
        for e in measured(root, source.stem)
    ]
    if not rows:
        return "Not measured yet."
    return table(["Chapter", "Scale", "Wall time", "Memory", "Passed"], rows)


def _versions(root: Path) -> str:
    """The libraries that the rows were computed with, beside those that rendered this page."""
    here = versions()
    seen: dict[str, dict[str, None]] = {name: {} for name in here}
    for scale in SCALES:
        for document in documents(root / "records" / scale):
            for name, version in document["provenance"]["versions"].items():
                seen.setdefault(name, {})[version] = None
    rows = [
        [name, ", ".join(sorted(found)) or "none", here.get(name, "none")] for name, found in seen.items()
    ]
    return table(["Library", "Recorded rows", "This page"], rows)


def _span(days: list[str]) -> str:
    return days[0] if len(set(days)) == 1 else f"{days[0]} to {days[-1]}"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 48 s, 12 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _link(chapter: str) -> str:
    return f"{{doc}}`{chapter.split('_')[0]} </chapters/{chapter}>`"
