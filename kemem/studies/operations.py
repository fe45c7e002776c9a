"""Operations: tokens through a model, forward or in training, and linear systems.

    training   6 N tokens   a product forward and two backward for each of N parameters, two operations each
    forward    2 N tokens
    targets    4 N tokens   forward, and backward to what enters a layer, not to weights: the search of an editor
    attention  2 L D T for each of these products instead of N: 12, 4 or 8 L D T tokens in all
    algebra    L (M^3 / 3 + 4 M^2 n)   a layer's Cholesky factor and two solutions, n facts at once

N counts every parameter once, an embedding that is also the output projection as the latter.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

import torch

from kemem import models
from kemem.studies.setup import Setup

TIMES = {"training": 6, "forward": 2, "targets": 4}
QUESTION = 12 * 8
"""Tokens of a question on a fact, with its candidates."""


@dataclass(frozen=True)
class Part:
    """Tokens through a model of this setup. kind: of TIMES. steps: of an optimizer, each of which takes its time.

    precision: of its products; empty: in training the setup's, else TF32 where a card has it. shared: what it is done
    for, where rows have it in common: of parts with one name only the largest is done.
    """

    kind: str
    setup: Setup
    tokens: int
    steps: int = 0
    precision: str = ""
    shared: Hashable = None

    @property
    def numbers(self) -> str:
        """The number type whose products a card is asked for."""
        return self.precision or (self.setup.precision if self.kind == "training" else "tf32")

    @property
    def flops(self) -> dict[str, int]:
        """Operations by kind: of the parameters, and of attention."""
        s, times = self.setup, TIMES[self.kind]
        return {
            self.kind: times * parameters(s) * self.tokens,
            "attention": 2 * times * s.layers * s.width * s.length * self.tokens,
        }


@dataclass(frozen=True)
class Algebra:
    """Linear systems of `layers` layers with M memories, `times` times, each for n facts, in float64."""

    layers: int
    memories: int
    facts: int
    times: int = 1
    numbers: str = "float64"
    shared: Hashable = None

    @property
    def flops(self) -> dict[str, int]:
        each = self.memories**3 // 3 + 4 * self.memories**2 * self.facts
        return {"algebra": self.times * self.layers * each}


@dataclass(frozen=True)
class Moments:
    """Second moments of the keys of `layers` layers with M memories over so many tokens, in float64."""

    layers: int
    memories: int
    tokens: int
    shared: Hashable = None
    numbers: str = "float64"

    @property
    def flops(self) -> dict[str, int]:
        return {"moments": 2 * self.layers * self.memories**2 * self.tokens}


Work = list[Part | Algebra | Moments]


@dataclass(frozen=True)
class Sized(Setup):
    """The shape of a model that the book does not build, with the number of its parameters."""

    count: int = 0


@lru_cache(maxsize=256)
def parameters(setup: Setup) -> int:
    """Parameters of a model of this setup, built without memory for its weights; of others as counted."""
    if isinstance(setup, Sized):
        return setup.count
    shape = setup.shape(setup.vocabulary)
    with torch.device("meta"):
        model = models.build(shape)
    return sum(p.numel() for p in model.parameters())


def trained(setup: Setup) -> Part:
    """A whole run of pretraining."""
    return Part("training", setup, setup.tokens, setup.steps * setup.accumulation)
