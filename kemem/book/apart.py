"""A pytest plugin: each notebook computes in a store of its own, so that no output hangs on which others ran before.

Loaded with `-p kemem.book.apart`; stores are folders of $KEMEM_STORES, named after the notebooks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

STORES = "KEMEM_STORES"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """Before nbval starts the kernel of a notebook, at its first cell."""
    if folder := os.environ.get(STORES):
        os.environ["KEMEM_STORE"] = str(Path(folder) / Path(item.path).stem)
