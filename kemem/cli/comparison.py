"""The page that lays the executions of one chapter side by side."""

import re
from pathlib import Path
from typing import Any

from kemem.cli.terminal import write_whole

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,_]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
SAME = "…"


def page(path: Path, chapter: str, executions: list[tuple[dict[str, Any], Path, Any]]) -> None:
    """Markdown: combination, notebook, seconds; then every printed line that is not the same in all.

    executions: parameters, notebook, and what `kemem.book.run.execute` said of it.
    """
    names = list(executions[0][0])
    heads = [*names, "notebook", "seconds", "peak MiB", "outcome"]
    rows = []
    for given, target, done in executions:
        file = target if done.passed else target.with_suffix(".failed.ipynb")
        link = f"[{file.name}]({file.name})" if file.is_file() else ""
        outcome = done.error or "finished"
        rows.append(
            [*map(str, given.values()), link, f"{done.seconds:.1f}", str(done.peak_memory_mib), outcome]
        )
    whole = [(given, printed(target)) for given, target, done in executions if done.passed]
    runs = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    text = [f"# {chapter}: {runs}", table(heads, rows), "## What was printed"]
    if not whole:
        text.append("None finished.")
    elif len(whole) == 1:
        text.append(table(["printed"], [[line] for line in whole[0][1].values()]))
    else:
        varied = [name for name in names if len({str(given[name]) for given, *_ in executions}) > 1]
        columns = [", ".join(f"{name} = {given[name]}" for name in varied) for given, _ in whole]
        differing, equal = differences([lines for _, lines in whole])
        text.append(f"Lines that differ; {equal} more are the same in all.")
        text.append(table(["printed", *columns], differing))
    write_whole(path, "\n\n".join(text) + "\n")


def printed(notebook: Path) -> dict[tuple[str, int], str]:
    """Lines that the cells of a notebook put out as text, by cell and place in it."""
    import nbformat

    found: dict[tuple[str, int], str] = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        number = 0
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            shown = output.get("text", "") if output.get("name") == "stdout" else data.get("text/plain", "")
            if any(kind.startswith("image/") for kind in data):
                continue  # a figure; its text is the name of its class
            for line in filter(str.strip, shown.splitlines()):
                found[cell.id, number] = line.strip()
                number += 1
    return found


def differences(notebooks: list[dict[tuple[str, int], str]]) -> tuple[list[list[str]], int]:
    """Rows [line, what it has in each notebook] of the lines that differ, and how many do not.

    Where only its numbers differ, a line is shown once with … in their places, its numbers in the columns.
    """
    rows, equal = [], 0
    for key in dict.fromkeys(key for lines in notebooks for key in lines):
        lines = [each.get(key) for each in notebooks]
        if len(set(lines)) == 1:
            equal += 1
            continue
        patterns = {None if line is None else NUMBER.sub(SAME, line) for line in lines}
        if len(patterns) == 1 and None not in patterns:
            rows.append([patterns.pop() or "", *(" ".join(NUMBER.findall(line or "")) for line in lines)])
        else:
            rows.append(["", *(line or "" for line in lines)])
    return rows, equal


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
