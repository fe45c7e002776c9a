"""Figures from run tables only: one style, colours safe for colour-blind readers, live and recorded points told apart.

Filled markers with solid lines are this run (live); open markers with dashed lines were recorded; a grey band is a
range published by a paper. Figures keep a white ground of their own, so that they read the same on a dark page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Okabe & Ito's palette without yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # one more than colours: pairs repeat late
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "font.size": 10,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
}


def use_style() -> None:
    """Sets matplotlib's defaults for this process to the book's style."""
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update({**STYLE, "axes.prop_cycle": cycler(color=COLOURS)})


@contextmanager
def figure(
    columns: int = 1, rows: int = 1, *, width: float = 7.2, height: float = 3.2, **keywords: Any
) -> Iterator[Any]:
    """Axes (one, or an array) of a figure that is shown once and closed when the block ends."""
    import matplotlib.pyplot as plt

    use_style()
    drawn, axes = plt.subplots(rows, columns, figsize=(width, height * rows), **keywords)
    yield axes
    plt.show()
    plt.close(drawn)


def look(origin: str, index: int = 0) -> dict[str, Any]:
    """Marker and line of a series: filled and solid when live, open and dashed when recorded."""
    colour = COLOURS[index % len(COLOURS)]
    marker = MARKERS[index % len(MARKERS)]
    if origin == "live":
        return {"color": colour, "marker": marker, "linestyle": "-"}
    return {"color": colour, "marker": marker, "linestyle": "--", "markerfacecolor": "white"}


def series(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    label: str,
    *,
    origin: str = "live",
    index: int = 0,
    drift: str = "",
    **keywords: Any,
) -> None:
    """One labelled curve; its origin is part of the label, so a legend says what was computed here.

    drift: how its text differs from the recorded one (`Lab.drift`), which the label then says too.
    """
    said = ", ".join(filter(None, (origin, drift)))
    axes.plot(x, y, label=f"{label} ({said})", **{**look(origin, index), **keywords})


def spread(
    axes: Any,
    x: Sequence[float],
    runs: Sequence[Sequence[float]],
    label: str,
    *,
    origin: str = "recorded",
    index: int = 0,
    of: str = "seeds",
) -> None:
    """Mean of several runs with a band from the lowest to the highest. of: what they differ in, for the legend."""
    columns = list(zip(*runs, strict=True))
    mean = [sum(c) / len(c) for c in columns]
    colour = COLOURS[index % len(COLOURS)]
    axes.fill_between(
        x, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.15, linewidth=0
    )
    several = f", {len(runs)} {of}" if len(runs) > 1 else ""
    axes.plot(x, mean, label=f"{label} ({origin}{several})", **look(origin, index))


def published_band(axes: Any, low: float, high: float, label: str) -> None:
    """A range that a paper's figure spans (its axis ticks): never a curve, because no value is printed there."""
    axes.axhspan(low, high, color="#999999", alpha=0.22, linewidth=0, label=f"{label} (published axis range)")


def published_points(axes: Any, x: Sequence[float], y: Sequence[float], label: str) -> None:
    """Values printed in a paper's table."""
    axes.plot(x, y, color="#555555", marker="*", markersize=8, linestyle="none", label=f"{label} (published)")


@dataclass(frozen=True)
class Table:
    """Rounded cells under a header; Markdown in a notebook, aligned text elsewhere."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def _repr_markdown_(self) -> str:
        def line(cells: Sequence[str]) -> str:
            whole = (re.sub(r"(?<!\\)\|", r"\|", cell).replace("\n", " ") for cell in cells)
            return "| " + " | ".join(whole) + " |"

        return "\n".join([line(self.header), line(["---"] * len(self.header)), *map(line, self.rows)])

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
            for r in (self.header, *self.rows)
        )


def plain(text: str) -> str:
    """Text from a corpus or a tokenizer, for a cell: signs that Markdown and MyST would read are escaped."""
    return re.sub(r"([\\`*_\[\]<>$|{}~#])", r"\\\1", text)


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> Table:
    """A table for a chapter. Cells are text or whole numbers; round a float before it comes here.

    Refuses a float: how many digits a number deserves is the caller's to say.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"a row has as many cells as the header ({len(header)}); got {len(row)}: {row!r}."
            )
        if any(isinstance(cell, float) for cell in row):
            raise ValueError(f"cells of a table are rounded text; got a float in {row!r}. Format it first.")
    return Table(tuple(header), tuple(tuple(str(c) for c in row) for row in rows))
