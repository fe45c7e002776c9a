"""A chapter's own cells in this process: where a test has made what they read smaller, or stands in for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxtyping
import jupytext
import pytest

from kemem.book.places import chapter, checkout


def cells(number: str, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> dict[str, Any]:
    """Executes every code cell of a chapter in order, with these parameters after its own; what the cells have named.

    An error tells the cell it came from. KEMEM_STORE says where rows go. Types are not checked, as for a reader: a
    chapter may give whole numbers where floats are asked for.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    source: Path = chapter(checkout(), number)
    names: dict[str, Any] = {"__name__": "__main__"}
    for place, cell in enumerate(jupytext.read(source).cells):
        if cell.cell_type != "code":
            continue
        text = cell.source
        if "parameters" in cell.metadata.get("tags", ()):
            text += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
        exec(compile(text, f"{source.name}, cell {place}", "exec"), names)
    return names
