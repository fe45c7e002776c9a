"""What a row of chapter 16 takes to compute: entropies, traces and edits of a model that a reader brings.

Its shape is read from its configuration, without weights. Texts are counted at their full length, and of the facts
all as if the model knew them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kemem.models import MASKED
from kemem.studies.operations import Moments, Part, Sized, Work
from kemem.studies.own import Given
from kemem.studies.setup import Setup
from kemem.studies.work_of_edits import edited, traced


@dataclass(frozen=True)
class _Model:
    """As `edited` asks for it."""

    setup: Setup


@dataclass(frozen=True)
class _Edits:
    model: _Model
    layers: tuple[int, ...]


def setup_of(g: Given) -> Sized:
    """The shape of what was brought. Its outline has no output projection: where that is not tied, it is added."""
    memories, config = g.outline, g.config
    vocabulary = config.get_text_config().vocab_size
    head = 0 if getattr(config, "tie_word_embeddings", False) else vocabulary * memories.width
    count = sum(p.numel() for p in memories.model.parameters()) + head
    return Sized(
        corpus="", vocabulary=vocabulary, layers=memories.layers, width=memories.width, memories=memories.count,
        heads=memories.heads, length=g.length, steps=0, rows=0, learning_rate=0.0, weight_decay=0.0, family=g.family,
        dtype=g.dtype, count=count,
    )  # fmt: skip


def _stages(s: Any) -> Work:
    """The texts are read for entropies, and where there is a next token once more for its loss."""
    g = s.given
    times = 1 if g.family in MASKED else 2
    return [Part("forward", setup_of(g), times * len(g.revisions) * len(g.texts) * g.length)]


def _traces(s: Any) -> Work:
    return [traced(setup_of(s.given), len(s.given.facts) * s.samples)]


def _edits(s: Any) -> Work:
    """Keys on the texts and targets once, an edit and its scores for each weight."""
    g, setup = s.given, setup_of(s.given)
    tokens, facts = len(g.texts) * g.length, len(g.requests)
    asked = Part("forward", setup, 0)  # scores before the edit are the same for every weight
    of = _Edits(_Model(setup), s.layers)
    return [
        Part("forward", setup, tokens),
        Moments(len(s.layers), setup.memories, tokens),
        *edited(of, facts),
        *(part for _ in s.weights[1:] for part in edited(of, facts, sought=0, before=asked)),
    ]


ROWS: dict[str, Callable[[Any], Work]] = {
    "own_stages": _stages,
    "own_traces": _traces,
    "own_edits": _edits,
}
"""By study."""
