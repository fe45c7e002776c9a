"""The book around the package: what a chapter's first cell calls, and what runs, checks and renders the chapters."""

from kemem.book.session import open_chapter
from kemem.book.source import source

__all__ = ["open_chapter", "source"]
