"""`kemem run CHAPTER --dry-run`: what the chapter would fetch, compute and need, as a table or a JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kemem.cli.terminal import write_json


def dry_run(
    root: Path, stem: str, chosen: Sequence[dict[str, Any]], card: str | None, place: str | None
) -> None:
    """Print the forecast of a chapter with these combinations of (checked) parameters.

    No weights, and no network but for what a reader names for chapter 16: a configuration, texts, requests.
    """
    from kemem.book.session import open_lab
    from kemem.studies.cards import DEFAULT
    from kemem.studies.cards import card as named
    from kemem.studies.forecast import forecast

    number = stem.split("_")[0]
    found = forecast([(open_lab(root, each), number) for each in chosen], named(card or DEFAULT))
    document = {"chapter": stem, "scale": sorted({each["scale"] for each in chosen}), **found.document()}
    if place is not None:
        write_json(document, place)
    if place != "-":
        print("\n".join(lines(document)))


def lines(d: dict[str, Any]) -> Iterator[str]:
    """The document as text."""
    card, rows = d["card"], d["rows"]
    have = f"{rows['there']} rows are there, {rows['missing']} are missing"
    yield f"{d['chapter']} at scale {', '.join(d['scale'])}: {have}"
    yield from _table(
        ("study", "there", "missing"), [(n, *map(str, both)) for n, both in rows["by_study"].items()]
    )
    if d["assumed"]:
        names = ", ".join(d["assumed"])
        taken = "where these are missing the first trial, or what is usual, is taken"
        yield f"  settings are chosen from rows of {names}; {taken}"
    if d["unreckoned"]:
        names = ", ".join(d["unreckoned"])
        yield f"  not reckoned below: rows of {names}, on a model whose sizes are not known here, and its weights"
    yield ""
    yield "to fetch:" if d["fetch"] else "to fetch: nothing"
    for each in d["fetch"]:
        size = _bytes(each["bytes"]) if each["bytes"] is not None else "unknown size"
        many = f", {each['revisions']} revisions" if each.get("revisions", 1) > 1 else ""
        yield f"  {each['name']}{many}: {size} ({each['note']})"
    yield ""
    yield "to train:" if d["models"] else "to train: nothing"
    for m in d["models"]:
        shape = f"{m['layers']} layers, width {m['width']}, {m['memories']} memories, {m['parameters']:,} parameters"
        cost = f"{m['tokens']:.3g} tokens, {m['flops']:.3g} FLOP, {_time(m['hours'])}"
        yield f"  {m['family']}, {shape}, seed {m['seed']}: {cost}"
    yield ""
    flops = d["flops"]
    yield from _table(("to compute", "FLOP"), [(kind, f"{n:.3g}") for kind, n in flops.items()])
    half = "no bfloat16" if card["bf16_tflops"] is None else f"bfloat16 {card['bf16_tflops']:g} TFLOP/s"
    yield f"on {card['name']} ({half}, float32 {card['fp32_tflops']:g}, {card['memory_gb']:g} GB): {_time(d['hours'])}"
    fit = "" if d["fits"] else f"; more than {card['name']} has: give a smaller --batch-size"
    yield f"memory: {_bytes(d['memory_bytes'])}{fit}; disk: {_bytes(d['disk_bytes'])}"
    yield ""
    yield "how this is reckoned:"
    yield from (f"  {name}: {formula}" for name, formula in d["formulae"].items())


def _table(head: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> Iterator[str]:
    every = [head, *body]
    widths = [max(len(line[i]) for line in every) for i in range(len(head))]
    for line in every:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        yield f"  {'  '.join(cells)}"


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} seconds"
