"""The coverage page: every part of the three papers, and where the book shows it or why it does not.

The list is data, pages/coverage.csv: a paper (its key in references.bib), a kind, a number, a title; then either
`where`, a label in a chapter, or `why`, a reason that begins with "not yet" or "not run"; and where the entry itself is
known from.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from kemem.book.places import chapters, checkout
from kemem.book.status import table as markdown_table

KINDS = ("section", "background", "figure", "table", "algorithm", "appendix")
LABEL = r"^# \(([\w:.-]+)\)=\s*$"
FIGURE = r'^# %%.*mystnb=\{"figure": \{"name": "([\w:.-]+)"'
HEADING = r"^# #{1,3} (.+)$"
SOURCES = {
    "text": "",
    "transcription": "",
    "sheet": "†",
    "recalled": "‡",
}


@dataclass(frozen=True)
class Entry:
    """One part of a paper. Exactly one of `where` and `why` is given."""

    paper: str
    kind: str
    number: str
    title: str
    where: str
    why: str
    source: str

    @property
    def name(self) -> str:
        """As papers say it: Section 3.1, Figure 8, Appendix B.4."""
        kind = "heading in section" if self.kind == "background" else self.kind
        return f"{kind.capitalize()} {self.number}"


def entries(root: Path | None = None) -> list[Entry]:
    path = (root or checkout()) / "pages" / "coverage.csv"
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == [f.name for f in fields(Entry)], f"{path.name} has other columns"
        return [Entry(**row) for row in reader]


def labels(root: Path) -> dict[str, str]:
    """What an entry may point to, with the Markdown that links to it.

    Labels of headings, `(label)=` on the line before; names of figures in the metadata of their cell; and headings
    themselves, as CHAPTER#the-heading-in-small-letters.
    """
    found: dict[str, str] = {}
    for source in chapters(root):
        text = source.read_text(encoding="utf-8")
        number = source.stem.split("_")[0]
        marks = {label: f"{number}: {{ref}}`{label}`" for label in re.findall(LABEL, text, re.MULTILINE)}
        marks |= {label: f"{number}: {{numref}}`{label}`" for label in re.findall(FIGURE, text, re.MULTILINE)}
        for heading in re.findall(HEADING, text, re.MULTILINE):
            slug = f"{source.stem}#{slugify(heading)}"
            marks[slug] = f"{number}: [{heading}](/chapters/{source.stem}.ipynb#{slugify(heading)})"
        twice = found.keys() & marks.keys()
        assert not twice, f"defined in {source.stem} and in an earlier chapter: {', '.join(sorted(twice))}"
        found |= marks
    return found


def slugify(heading: str) -> str:
    """The anchor that MyST gives a heading: small letters, hyphens for spaces, no other signs."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def faults(listed: list[Entry], known: dict[str, str]) -> list[str]:
    """What is wrong with the list, one line each; empty when all is well."""
    wrong = []
    for entry in listed:
        at = f"{entry.paper}, {entry.name}, {entry.title!r}"
        if entry.kind not in KINDS or entry.source not in SOURCES:
            wrong.append(f"{at}: unknown kind {entry.kind!r} or source {entry.source!r}")
        if bool(entry.where) == bool(entry.why):
            wrong.append(f"{at}: needs a label or a reason, and not both")
        if entry.where and entry.where not in known:
            wrong.append(f"{at}: no chapter defines the label {entry.where!r}")
        if entry.why and not re.match(r"not (yet|run): \S", entry.why):
            wrong.append(f"{at}: a reason begins with `not yet: ` or `not run: `")
    twice = Counter((e.paper, e.kind, e.number, e.title if e.kind == "background" else "") for e in listed)
    wrong += [f"{key} is listed {count} times" for key, count in twice.items() if count > 1]
    return wrong


def table(paper: str, root: Path | None = None) -> str:
    """The table of one paper, as Markdown, in the order of the list, with a line that counts."""
    place = root or checkout()
    own = [entry for entry in entries(place) if entry.paper == paper]
    assert own, f"no entry of {paper}"
    known = labels(place)
    shown = sum(entry.where in known for entry in own)
    rows = []
    for entry in own:
        # an entry with a place that is not there is a fault that a test names; the page does not hide it
        rows.append(
            [f"{entry.name}{SOURCES[entry.source]}", entry.title, known.get(entry.where) or entry.why or "?"]
        )
    return f"{shown} of {len(own)} parts are shown.\n\n" + markdown_table(["Part", "Title", "Where"], rows)
