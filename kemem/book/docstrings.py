"""Docstrings of this package as reStructuredText: they are written to be read in the source, as plain text.

Code stands in single backticks, equations and examples in indented blocks, fields and arguments as `name: meaning`
lines. Anything that reStructuredText would take for markup of its own, an asterisk or a bar in an equation, is text.
"""

from __future__ import annotations

import re

NAMED = re.compile(r"(\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_][\w.]*)*): (?=\S)")
BULLET = re.compile(r"- (?=\S)")


def restructured(lines: list[str]) -> list[str]:
    """The docstring's lines as reStructuredText, blank line at the end."""
    result: list[str] = []
    for block in _blocks(lines):
        if block[0].startswith(" "):
            result += ["::", "", *(f"    {line}" if line else "" for line in block), ""]
        elif all(NAMED.match(line) or BULLET.match(line) or line.startswith(" ") for line in block):
            result += [*_items(block), ""]
        else:
            result += _mixed(block)
    return result


def _blocks(lines: list[str]) -> list[list[str]]:
    """Paragraphs; neighbouring indented ones are one, with the blank lines between them."""
    blocks: list[list[str]] = []
    gap = 0
    for line in lines:
        if not line.strip():
            gap += 1
        elif gap == 0 and blocks:
            blocks[-1].append(line.rstrip())
        elif blocks and line.startswith(" ") and blocks[-1][0].startswith(" "):
            blocks[-1] += [""] * gap + [line.rstrip()]
        else:
            blocks.append([line.rstrip()])
        if line.strip():
            gap = 0
    return blocks


def _mixed(block: list[str]) -> list[str]:
    """A paragraph; indented lines inside it, as after `Kim et al., equation 2:`, are a literal block."""
    result: list[str] = []
    previous = False
    for line in block:
        indented = line.startswith(" ")
        if indented and not previous:
            result += ["", "::", ""]
        if previous and not indented:
            result += [""]
        result.append(f"    {line}" if indented else escape(line))
        previous = indented
    return [*result, ""]


def _items(block: list[str]) -> list[str]:
    """One list item a named line; deeper lines go on with the item."""
    result = []
    for line in block:
        if line.startswith(" "):
            result.append(f"  {escape(line.strip())}")
        elif named := NAMED.match(line):
            names = ", ".join(f"``{name}``" for name in named.group(1).split(", "))
            result.append(f"- {names}: {escape(line[named.end() :])}")
        else:
            result.append(f"- {escape(line[2:])}")
    return result


def escape(line: str) -> str:
    """Backticks become literals; every other sign stands for itself."""
    pieces = re.split(r"(`+[^`]+`+)", line)
    return "".join(
        f"``{piece.strip('` ')}``" if i % 2 else re.sub(r"([\\*|_`])", r"\\\1", piece)
        for i, piece in enumerate(pieces)
    )
