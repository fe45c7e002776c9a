"""Runs chapters at smoke scale as plain programs, every row read from one store, and prints which rows they read.

    python tests/replayed_chapter.py STORE NUMBER [NUMBER ...]

Not in the process of the tests: there annotations are checked strictly, and a chapter may draw whole numbers.
"""

import json
import linecache
import re
import sys
import warnings
from pathlib import Path

import matplotlib

from kemem.book import session
from kemem.book.places import chapter, checkout
from kemem.runs import Row, Store

OWN = {"00_how_to_read"}  # computed by a cell of the chapter, with a function of its own


class Read(Store):
    """Remembers the file of every row that is found in it, and computes only those of a chapter's own cells."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder, mode="replay")
        self.found: set[str] = set()

    def find(self, study, version, settings, *, recorded=False):
        row = super().find(study, version, settings, recorded=recorded)
        if row is not None:
            self.found.add(f"{study}/{self._name(study, row.settings)}-v{version}.json")
        return row

    def row(self, study, version, settings, compute, **more):
        if study in OWN:
            return Row(study, version, settings, compute({}), {}, "live")
        return super().row(study, version, settings, compute, **more)


def run(source: Path) -> None:
    text = re.sub(
        r'^scale = "laptop"', 'scale = "smoke"', source.read_text(encoding="utf-8"), count=1, flags=re.M
    )
    place = f"<{source.stem}>"  # so that a chapter can show the text of its own functions
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
    exec(compile(text, place, "exec"), {"__name__": "__main__"})


def main(folder: Path, *numbers: str) -> None:
    store = Read(folder)
    session.open_store = lambda root, scale: store
    for number in numbers:
        run(chapter(checkout(), number))
    print(json.dumps(sorted(store.found)))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    matplotlib.use("Agg")
    main(Path(sys.argv[1]), *sys.argv[2:])
