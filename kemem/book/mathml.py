"""Equations as MathML, which browsers draw by themselves: the pages need no script from another host, work offline,
and can be read aloud. TeX that docutils cannot convert is a warning, which the strict build turns into a failure.
"""

from __future__ import annotations

import re
from html import escape

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

FUNCTION = re.compile(
    r"<mi>(ln|log|exp|min|max|sin|cos|tanh|det|sup|inf)</mi>\s*<mo>&ApplyFunction;</mo>(\s*)(<m\w+(?: [^>]*)?>\(?)"
)
logger = logging.getLogger(__name__)


def convert(tex: str, *, block: bool = False) -> str:
    """MathML of an equation; lines of a block end in two backslashes and are aligned at ampersands."""
    mathml = latex2mathml.tex2mathml(tex.strip(), as_block=block)
    mathml = FUNCTION.sub(_spaced, mathml)
    # as an accent a bar may sink into its letter, and the modifier letter is missing in some fonts
    mathml = mathml.replace('<mover accent="true">', "<mover>").replace("\u02c9", "\u00af")
    # where MathML cannot be read aloud, the TeX is
    return mathml.replace("<math ", f'<math alttext="{escape(" ".join(tex.split()))}" ', 1)


def _spaced(match: re.Match[str]) -> str:
    """A function's name as an operator, with the thin spaces that TeX sets around it, none before a bracket."""
    name, gap, after = match.groups()
    right = "0" if after.endswith(">(") else "0.167em"
    return f'<mo form="prefix" lspace="0.167em" rspace="{right}" stretchy="false">{name}</mo>{gap}{after}'


def _converted(node: nodes.Node, *, block: bool) -> str:
    tex = node.astext()
    try:
        return convert(tex, block=block)
    except (SyntaxError, latex2mathml.MathError) as error:
        logger.warning("this equation cannot be written as MathML: %s (%s)", tex, error, location=node)
        return f"<code>{escape(tex)}</code>"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(_converted(node, block=False) + "</span>")
    raise nodes.SkipNode


def visit_displaymath(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    self.body.append(f'<div class="equation">{_converted(node, block=True)}</div>')
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, object]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
