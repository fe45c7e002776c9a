"""Chapters as notebooks: from percent source to .ipynb, made equal on every machine, and compared with their source."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}
OF_A_RUN = ("papermill", "execution", "ExecuteTime", "collapsed", "scrolled")


def convert(source: Path) -> NotebookNode:
    """The notebook of a percent source, without outputs, normalised."""
    return normalise(jupytext.read(source))


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Drop what differs between two equal runs: times, papermill's notes, patch versions, random cell ids.

    A cell's id is a digest of its text, so that a change to one cell changes one id. Neighbouring pieces of one stream
    are joined: where they are cut depends on the machine's speed.
    """
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        metadata = cell.metadata
        for key in OF_A_RUN:
            metadata.pop(key, None)
        tags = metadata.get("tags", [])
        if "injected-parameters" in tags and "hide-input" not in tags:
            metadata["tags"] = [*tags, "hide-input"]
        if not metadata.get("tags", True):
            del metadata["tags"]
        text = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        cell["id"] = f"{text}-{seen[text]}" if seen[text] else text
        seen[text] += 1
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _join_streams(outputs: list[Any]) -> list[Any]:
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def write(notebook: NotebookNode, path: Path) -> None:
    """Write atomically: nobody sees half a notebook."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    nbformat.validate(notebook)
    temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    temporary.replace(path)


def differences(source: Path, notebook: Path) -> list[str]:
    """Where an executed notebook no longer is its source: one line a cell; empty when it is current.

    The cell that papermill injected is no part of the comparison; prose is, since it is what the page shows.
    """
    fresh = [_content(cell) for cell in convert(source).cells]
    stored = nbformat.read(notebook, as_version=4)
    kept = [_content(c) for c in stored.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    found = [
        f"{notebook.name}, cell {i}: not what {source.name} says"
        for i, (old, new) in enumerate(zip(kept, fresh, strict=False))
        if old != new
    ]
    if len(kept) != len(fresh):
        found.append(f"{notebook.name} has {len(kept)} cells, {source.name} {len(fresh)}")
    found += [
        f"{notebook.name}, cell {i}: {output.ename}: {output.evalue}"
        for i, cell in enumerate(stored.cells)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    found += [
        f"{notebook.name}, cell {i}: never executed"
        for i, cell in enumerate(stored.cells)
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None
    ]
    return found


def _content(cell: NotebookNode) -> tuple[str, str, str]:
    metadata = {k: v for k, v in cell.metadata.items() if k not in OF_A_RUN and v != []}
    return cell.cell_type, cell.source, json.dumps(metadata, sort_keys=True)
