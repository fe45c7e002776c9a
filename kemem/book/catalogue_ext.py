"""The catalogue of data sets in the book: its table and its notes, rendered from the entries themselves.

    ```{catalogue} table
    ```

and `notes`. Another word is an error, which the strict build turns into a failure.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from kemem.book.sphinx_ext import _Generated
from kemem.corpora import catalogue

PARTS = {"table": catalogue.table, "notes": catalogue.notes}


class Catalogue(_Generated):
    required_arguments = 1

    def lines(self) -> list[str]:
        if self.arguments[0] not in PARTS:
            raise self.error(f"the catalogue has {' and '.join(PARTS)}; got {self.arguments[0]!r}.")
        return PARTS[self.arguments[0]]().splitlines()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("catalogue", Catalogue)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
