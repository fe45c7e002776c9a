"""The book's own Sphinx extension: numbers in prose from rows, and the coverage, status and parameter tables.

    {result}`entropy-end|.2f`      a number of `kemem.studies.results`, with its unit; hovering shows where it is from

An unknown name is a warning, which the strict build turns into a failure: prose cannot drift from the rows. Where a
book shows another scale than the laptop's, a number that this scale does not have is the laptop's, and says so.
"""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

from kemem.book import coverage, status
from kemem.book.docstrings import restructured
from kemem.book.parameters import declared
from kemem.book.places import chapter, chapters, checkout
from kemem.book.session import open_store
from kemem.runs import Store
from kemem.studies.lab import Result

WRITTEN_FOR = "laptop"
"""The scale that the prose was written for."""


def _scale() -> str:
    return os.environ.get("KEMEM_BOOK_SCALE", WRITTEN_FOR)


@cache
def _results(scale: str, *, recorded: bool = False) -> dict[str, Result]:
    """Results of a scale from live rows and records, or from records alone; nothing is computed."""
    from kemem.studies import results  # imports torch: only a page with a number needs it

    store = open_store(checkout(), scale)
    if recorded:  # what chapters compute anew is recorded too
        store = Store(store.live, checkout() / "records" / scale, mode="replay")
    return results(store, scale)


def provenance(result: Result) -> str:
    """One line that says where a number is from; what is not known is left out."""
    found = result.provenance
    seconds = found.get("seconds")
    parts = [
        f"study {found['study']}" if found.get("study") else "",
        f"row {found['digest']}" if found.get("digest") else "",
        f"{found['origin']}" if found.get("origin") else "",
        f"seed {found['seed']}" if found.get("seed") is not None else "",
        f"commit {found['commit']}" if found.get("commit") else "",
        str(found.get("device") or ""),
        f"{seconds:.0f} s" if seconds is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def show(result: Result, form: str) -> str:
    """The number as printed: formatted, a true minus sign, and its unit."""
    text = format(result.value, form) if form else str(result.value)
    if not isinstance(result.value, str):
        text = text.replace("-", "\N{MINUS SIGN}")
    gap = "" if result.unit in ("", "%") else "\N{NO-BREAK SPACE}"
    return f"{text}{gap}{result.unit}"


class Quoted(nodes.inline):
    """A number quoted in prose, with where it is from."""


def visit_quoted(self: HTML5Translator, node: Quoted) -> None:
    # focusable, so that the origin can be reached without a mouse; the style sheet shows it
    self.body.append(self.starttag(node, "abbr", "", title=node["origin"], tabindex="0"))


def depart_quoted(self: HTML5Translator, node: Quoted) -> None:
    self.body.append("</abbr>")


def _nothing(self: nodes.NodeVisitor, node: Quoted) -> None:
    """Formats without hovering show the number alone."""


def result_role(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Any,
    options: Any = None,
    content: Any = None,
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    key, _, form = text.partition("|")
    scale = _scale()
    known = _results(scale)
    try:
        return [_quoted(rawtext, known[key], form)], []
    except KeyError:
        said = f"no result is called {key!r}; known are {', '.join(sorted(known)) or 'none yet'}."
    except (ValueError, TypeError) as error:
        said = f"the result {key!r} cannot be written as {form!r}: {error}."
    if scale != WRITTEN_FOR and key in (written := _results(WRITTEN_FOR, recorded=True)):
        with contextlib.suppress(ValueError, TypeError):
            return [_quoted(rawtext, written[key], form, lacking=scale)], []
    message = inliner.reporter.error(said, line=lineno)
    return [inliner.problematic(rawtext, rawtext, message)], [message]


def _quoted(raw: str, result: Result, form: str, lacking: str = "") -> Quoted:
    """lacking: the scale that has no such number, where this is the laptop's."""
    text, origin = show(result, form), provenance(result)
    if lacking:
        text, origin = f"{text} ({WRITTEN_FOR})", f"not found at scale {lacking}; {origin}"
    return Quoted(raw, text, origin=origin, classes=["kemem-result"])


class _Generated(SphinxDirective):
    """A directive whose content is Markdown written by a function."""

    def lines(self) -> list[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        place = nodes.container()
        self.state.nested_parse(StringList(self.lines(), source=f"<{self.name}>"), self.content_offset, place)
        return place.children


class Coverage(_Generated):
    required_arguments = 1

    def lines(self) -> list[str]:
        return coverage.table(self.arguments[0]).splitlines()


class Status(_Generated):
    required_arguments = 1

    def lines(self) -> list[str]:
        stage = os.environ.get("KEMEM_BOOK_STAGE")
        live = os.environ.get("KEMEM_REPLAY", "") in ("", "0")
        return status.part(
            self.arguments[0], checkout(), Path(stage) if stage else None, live=live
        ).splitlines()


class Parameters(_Generated):
    """The parameters of a chapter, or of all: name, default, meaning, as its own cell declares them."""

    optional_arguments = 1

    def lines(self) -> list[str]:
        root = checkout()
        sources = [chapter(root, self.arguments[0])] if self.arguments else chapters(root)
        rows = [
            [
                f"{{doc}}`/chapters/{source.stem}`" if i == 0 else "",
                f"`{p.name}`",
                f"`{p.default!r}`",
                p.meaning,
            ]
            for source in sources
            for i, p in enumerate(declared(source).values())
        ]
        return status.table(["Chapter", "Parameter", "Default", "Meaning"], rows).splitlines()


class Runtime(_Generated):
    """What a chapter costs at each scale where that was measured: one line of its card."""

    required_arguments = 1

    def lines(self) -> list[str]:
        costs = [
            f"{status.duration(e.seconds)} and {e.peak_memory_mib} MiB at `{e.scale}`"
            for e in status.measured(checkout(), chapter(checkout(), self.arguments[0]).stem)
        ]
        return [f"**Running time and memory.** {'; '.join(costs) or 'Not measured yet'}."]


def plain_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = restructured(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", plain_docstring)
    app.add_role("result", result_role)
    plain = (_nothing, _nothing)
    app.add_node(
        Quoted, html=(visit_quoted, depart_quoted), latex=plain, text=plain, man=plain, texinfo=plain
    )
    app.add_directive("coverage", Coverage)
    app.add_directive("status", Status)
    app.add_directive("parameters", Parameters)
    app.add_directive("runtime", Runtime)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
