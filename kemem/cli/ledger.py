"""`kemem claims`: what the papers claim, and the verdict of the committed rows on it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.options import SCALES, Json, one_of
from kemem.cli.terminal import check_json, guarded, write_json
from kemem.errors import BadInput

PARTS = (1, 2, 3)


@guarded("nothing was computed: run this again")
def claims(
    part: Annotated[int | None, typer.Option(help="of the book: 1, 2 or 3; by default all")] = None,
    scale: Annotated[
        str | None, typer.Option(help=f"{SCALES}; by default every scale that has committed rows")
    ] = None,
    json: Json = None,
) -> None:
    """Every claim of the three papers and their reviews, judged by its rule on the committed rows.

    holds, fails: a 95 % interval over at least three seeds lies on one side. undecided: it does not. not tested: no
    rows, and what a test would take. Nothing is computed. JSON is a list with one object a verdict.
    """
    if part is not None and part not in PARTS:
        raise BadInput(f"expected --part to be 1, 2 or 3; got {part}; choose one of these.")
    if scale is not None:
        one_of("--scale", scale, SCALES.replace(" or ", ", ").split(", "))
    check_json(json)
    from kemem.book.places import checkout

    root = checkout()
    rows = _rows(root, part, scale)
    if json is not None:
        write_json(rows, json)
    if json != "-":
        _show(rows)


def _rows(root: Path, part: int | None, scale: str | None) -> list[dict[str, Any]]:
    """One a verdict: the claim's own fields, then what was found."""
    from dataclasses import asdict

    from kemem.claims import CLAIMS, scales, verdicts

    rows = []
    for each in [scale] if scale else scales(root):
        for found in verdicts(root, each):
            claim = CLAIMS[found.claim]
            if part in (None, claim.part):
                about = {k: v for k, v in asdict(claim).items() if k not in ("id", "rule")}
                rows.append({"claim": claim.id, **about, "rule": str(claim.rule), **asdict(found)})
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    """The verdicts as a table for people, and how many there are of each."""
    from collections import Counter

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE)
    for head in ("claim", "scale", "verdict", "effect, 95 % interval", "statement"):
        table.add_column(head)
    for row in rows:
        interval = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        effect = "" if row["effect"] is None else f"{row['effect']:+.3f}{interval} {row['unit']}".rstrip()
        shown = (row["claim"], row["scale"], row["verdict"], effect, row["statement"])
        table.add_row(*(Text(text) for text in shown))  # not markup, where [ ] has a meaning
    Console().print(table)
    count = Counter(row["verdict"] for row in rows)
    print(
        ", ".join(f"{number} {verdict}" for verdict, number in count.most_common()) or "no rows are recorded"
    )
