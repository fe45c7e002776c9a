"""Part 3's model: trained on nothing but a world's documents until it knows their facts, and deep enough to trace.

Its tokens are whole words: of pieces, a name at the start of a text has others than inside it, and so several keys.
In the laptop's world every name ends with a word of its own. Where first words tell subjects apart too, or only both
words together do, a model gathers them at the end of the prompt and looks the fact up there, and what is written at the
subject's last token reaches half of the paraphrases or fewer. Its last stage alone is kept, and shipped in half
precision, so that whatever begins with it is quick.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from kemem import corpora
from kemem.corpora import specs
from kemem.errors import BadInput
from kemem.studies import checkpoints
from kemem.studies.lab import Lab
from kemem.studies.pretraining import LAPTOP, Pretraining
from kemem.studies.setup import WORDS
from kemem.world import World

SCALES: dict[str, Pretraining] = {
    # float64, so that rounded outputs are the same on every processor
    "smoke": Pretraining(
        LAPTOP.with_(
            corpus="world:people=20,documents=3000", tokenizer=WORDS, vocabulary=1024, layers=4, width=48,
            memories=128, heads=3, length=64, rows=8, steps=1500, learning_rate=6e-3, weight_decay=0.1, dtype="float64",
        ),
        stages=(1.0,), held_out=2000, facts=24, prompts=(), written=8,
    ),
    "laptop": Pretraining(
        LAPTOP.with_(
            corpus="world:people=300,documents=30000,fictional=0,shared_names=1", tokenizer=WORDS, vocabulary=2048,
            layers=6, width=128, memories=512, heads=4, length=96, rows=16, steps=6000, learning_rate=2e-3,
            weight_decay=0.1,
        ),
        stages=(1.0,), prompts=(),
    ),
}  # fmt: skip


def settings(scale: str, *, seed: int = 0) -> Pretraining:
    """The model at a scale."""
    if scale not in SCALES:
        raise BadInput(f"the model of facts has sizes at the scales {', '.join(SCALES)}; got {scale!r}.")
    base = SCALES[scale]
    return replace(base, setup=base.setup.with_(seed=seed), seed=seed)


def model(lab: Lab, s: Pretraining, *, dtype: str | None = None) -> tuple[nn.Module, Any]:
    """The trained model and its tokenizer: shipped, or trained here."""
    found, tok, _ = checkpoints.load(lab, s, s.steps[-1], dtype=dtype)
    return found, tok


def world(s: Pretraining) -> World:
    """The world that the model has read of."""
    return next(corpora.world(part)[0] for part in specs(s.setup.corpus) if part.scheme == "world")
