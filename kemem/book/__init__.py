"""The book around the package: what a chapter's first cell calls, and what runs, checks and renders the chapters."""

import warnings

# Said at the first import of transformers in a kernel without ipywidgets; it would stand in a page.
warnings.filterwarnings("ignore", message="IProgress not found")

from kemem.book.session import open_chapter  # noqa: E402
from kemem.book.source import source  # noqa: E402

__all__ = ["open_chapter", "source"]
