"""The claims ledger in the book: a page of tables, and badges in the text that link to it.

    {claim}`entropy.5`        the claim's id and verdict, with its statement on hovering; links to its row

An unknown id is a warning, which the strict build turns into a failure. Verdicts are those of committed rows.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from kemem.book import status
from kemem.book.places import checkout
from kemem.book.sphinx_ext import _Generated
from kemem.claims import CLAIMS, VERDICTS, Claim, Verdict, scales, verdicts
from kemem.claims.ledger import Number
from kemem.claims.shown import measured

PAGE = "pages/claims"
MARKS = dict(zip(VERDICTS, "✓✗?–", strict=True))
"""A sign for each verdict, so that nobody needs its colour."""


@lru_cache(maxsize=1)
def found() -> dict[str, dict[str, list[Verdict]]]:
    """Scale -> claim -> its verdicts, the main one first, of every scale that has committed rows."""
    return {
        scale: {claim: [v for v in listed if v.claim == claim] for claim in CLAIMS}
        for scale, listed in ((scale, verdicts(checkout(), scale)) for scale in scales(checkout()))
    }


def shown(claim: str) -> Verdict:
    """The verdict of a badge: that of the scale which this book shows, else of the first that has rows."""
    known = found()
    scale = os.environ.get("KEMEM_BOOK_SCALE", "laptop")
    if scale not in known:
        scale = next(iter(known), scale)
    return known[scale][claim][0] if scale in known else Verdict(claim, scale, "not tested")


def anchor(claim: str) -> str:
    return "claim-" + claim.replace(".", "-")


def css(verdict: str) -> list[str]:
    return ["kemem-claim", "kemem-claim-" + verdict.replace(" ", "-")]


def published(claim: Claim) -> str:
    """The published numbers as a reader of the table sees them."""

    def text(value: Number | tuple[Number, ...]) -> str:
        values = value if isinstance(value, tuple) else (value,)
        decimals = max(len(str(v).partition(".")[2]) for v in values)  # 9.00 beside 8.88, as printed
        return ", ".join(f"{v:,.{decimals}f}" if abs(v) >= 10_000 else f"{v:.{decimals}f}" for v in values)

    minus = str.maketrans("-", "\N{MINUS SIGN}")
    listed = (f"{label}: {text(value).translate(minus)}" for label, value in claim.published.items())
    return "; ".join(listed)


def table(group: str) -> str:
    """The claims whose id begins with `group`, as Markdown: a line that counts at each scale, and a table."""
    own = [claim for claim in CLAIMS.values() if claim.id.split(".")[0] == group]
    assert own, f"no claim is called {group}.*"
    lines = []
    for scale, by_claim in found().items():
        count = Counter(by_claim[claim.id][0].verdict for claim in own)
        said = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict])
        lines.append(f"{len(own)} claims; at `{scale}`: {said}.")
    rows = [
        [
            claim.id,
            f"{claim.statement} [{claim.where}. Measured: {claim.quantity}. Rule: {claim.rule}.]{{.kemem-claim-more}}",
            f"[{published(claim)}]{{.kemem-claim-more}}" if claim.published else "",
            _verdicts(claim.id),
        ]
        for claim in own
    ]
    return "\n\n".join([*lines, status.table(["Claim", "What is claimed", "Published", "Here"], rows)])


def _verdicts(claim: str) -> str:
    """A badge and what was measured, for each scale; one for all where it was tested at none."""
    listed = [v for by_claim in found().values() for v in by_claim[claim]]
    tested = [v for v in listed if v.verdict != "not tested"] or listed[:1]
    return " ".join(
        f"[{MARKS[v.verdict]} {v.verdict}]{{{' '.join('.' + name for name in css(v.verdict))}}} "
        f"[{measured(v)}]{{.kemem-claim-more}}"
        for v in tested
    )


class Claims(_Generated):
    """The ledger's table of one group; every row can be linked to."""

    required_arguments = 1

    def lines(self) -> list[str]:
        return table(self.arguments[0]).splitlines()

    def run(self) -> list[nodes.Node]:
        made = super().run()
        for part in made:
            for row in part.findall(nodes.row):
                claim = row[0].astext()
                if claim in CLAIMS:
                    row["ids"].append(anchor(claim))
        return made


class Badge(nodes.Inline, nodes.TextElement):
    """A claim in the text. It becomes a link once all pages are read."""


def claim_role(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Any,
    options: Any = None,
    content: Any = None,
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    if text not in CLAIMS:
        near = [key for key in CLAIMS if key.split(".")[0] == text.split(".")[0]] or list(CLAIMS)
        message = inliner.reporter.error(
            f"no claim is called {text!r}; known are {', '.join(near)}.", line=lineno
        )
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    return [Badge(rawtext, text, claim=text)], []


def link_badges(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Each badge as a link to its row: id, sign and verdict as text, statement and scale as its title."""
    for badge in list(doctree.findall(Badge)):
        claim = CLAIMS[badge["claim"]]
        v = shown(claim.id)
        link = nodes.reference(
            "", f"{claim.id} {MARKS[v.verdict]} {v.verdict}", internal=True, classes=css(v.verdict),
            refuri=f"{app.builder.get_relative_uri(page, PAGE)}#{anchor(claim.id)}",
            reftitle=f"{claim.statement} At scale {v.scale}: {v.verdict}.",
        )  # fmt: skip
        badge.replace_self(link)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("claim", claim_role)
    app.add_directive("claims", Claims)
    app.add_node(Badge)
    app.connect("doctree-resolved", link_badges)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
