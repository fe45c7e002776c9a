"""Functions that a chapter's own cells define, made without running the chapter."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kemem.errors import BadInput


def functions(source: Path, *names: str) -> list[Callable[..., Any]]:
    """The functions of these names, with what the chapter imports for them; their text is that of the chapter.

    `inspect.getsource` finds it, as it does in a notebook.
    """
    text = source.read_text(encoding="utf-8")
    tree = ast.parse(text)
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    if missing := sorted(set(names) - {node.name for node in wanted}):
        raise BadInput(f"expected the chapter {source.stem} to define {', '.join(missing)}; got none.")
    used = {node.id for each in wanted for node in ast.walk(each) if isinstance(node, ast.Name)}
    namespace: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            kept = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in used]
            if kept:
                node.names = kept
                exec(compile(ast.Module([node], []), str(source), "exec"), namespace)
    for node in wanted:
        place = f"<{source.stem}: {node.name}>"
        body = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) + "\n"
        linecache.cache[place] = (len(body), None, body.splitlines(keepends=True), place)
        exec(compile(body, place, "exec"), namespace)
    return [namespace[name] for name in names]
