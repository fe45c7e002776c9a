"""Part 3's model: trained on nothing but a world's documents until it knows their facts, and deep enough to trace.

Its tokens are whole words: of pieces, a name at the start of a text has others than inside it, and so several keys.
In the laptop's world every name ends with a word of its own. Where first words tell subjects apart too, or only both
words together do, a model gathers them at the end of the prompt and looks the fact up there, and what is written at the
subject's last token reaches half of the paraphrases or fewer. Its last stage alone is kept, and shipped in half
precision, so that whatever begins with it is quick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from kemem import corpora
from kemem.corpora import specs
from kemem.errors import BadInput
from kemem.studies import checkpoints
from kemem.studies.lab import Lab
from kemem.studies.pretraining import LAPTOP, Pretraining, small_card
from kemem.studies.setup import WORDS, Setup
from kemem.studies.sources import Published, Records, Source, Told
from kemem.world import World

GPT_J = Published(
    Setup(
        corpus="hub:wikipedia:limit=4000", tokenizer="EleutherAI/gpt-j-6b", vocabulary=50_400, family="gptj",
        layers=28, width=4096, memories=16_384, heads=16, length=2048, rows=1, steps=1, learning_rate=0.0,
        weight_decay=0.0,
    ),
    stages=(1.0,), held_out=100_000, facts=0, prompts=(), name="EleutherAI/gpt-j-6b", critical=tuple(range(3, 9)),
    where=(
        ("ROME", (5,)), ("r-ROME", (5,)), ("EMMET", (5,)), ("FT", (21,)), ("FT-M", (21,)), ("FT-W", (21,)),
        ("FT-L", (0,)),
    ),
)  # fmt: skip
"""As Meng et al. 2023 edited it; the setup tells its shape and its text, and of training nothing."""
GPT2_XL = replace(
    GPT_J,
    setup=GPT_J.setup.with_(
        tokenizer="openai-community/gpt2-xl", vocabulary=50_257, family="gpt2", layers=48, width=1600, memories=6400,
        heads=25, length=1024,
    ),
    name="openai-community/gpt2-xl", critical=tuple(range(13, 18)), weight=20_000.0,
    where=(("ROME", (17,)), ("r-ROME", (17,)), ("FT", (1,)), ("FT-M", (1,)), ("FT-W", (1,)), ("FT-L", (0,))),
)  # fmt: skip
"""By the released settings; the paper prints no result of it with MEMIT."""
PUBLISHED = {model.name: model for model in (GPT_J, GPT2_XL)}
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
    # as many tokens for a fact as on a laptop; 1.4e8 parameters, 1.4e17 FLOP, seven minutes at 35 % of an H200
    "gpu": Pretraining(
        LAPTOP.with_(
            corpus="world:people=5400,documents=360000,fictional=0,shared_names=1", tokenizer=WORDS, vocabulary=16384,
            layers=8, width=768, memories=6144, heads=12, length=128, rows=256, steps=5100, learning_rate=1e-3,
            weight_decay=0.1, precision="bfloat16", compile=True,
        ),
        stages=(1.0,), held_out=60_000, facts=1000, prompts=(),
    ),
    "paper": GPT_J,
}  # fmt: skip

SMALL_CARD = Pretraining(
    LAPTOP.with_(
        corpus="world:people=2500,documents=160000,fictional=0,shared_names=1", tokenizer=WORDS, vocabulary=8192,
        layers=6, width=384, memories=2048, heads=6, length=96, rows=128, steps=6000, learning_rate=1.5e-3,
        weight_decay=0.1,
    ),
    stages=(1.0,), held_out=60_000, facts=1000, prompts=(),
)  # fmt: skip
"""The `gpu` scale on a card of 16 GB, or on one that does not multiply bfloat16: smaller, and in float32."""
SMALLER = {"gpu": SMALL_CARD}
MEMORIES = 512  # of a layer of the laptop's model, on which weights of the old memory were first tried


def settings(scale: str, *, seed: int = 0, device: str | None = None, name: str | None = None) -> Pretraining:
    """The model at a scale. device: where it will run; a small card gets a smaller model, with rows of its own.

    name: one of PUBLISHED, where the scale has published models.
    """
    if scale not in SCALES:
        raise BadInput(f"the model of facts has sizes at the scales {', '.join(SCALES)}; got {scale!r}.")
    base = SMALLER[scale] if scale in SMALLER and small_card(device) else SCALES[scale]
    if name is not None:
        if not isinstance(base, Published) or name not in PUBLISHED:
            raise BadInput(
                f"expected one of {', '.join(PUBLISHED)}, at the scale paper; got {name!r} at {scale}."
            )
        base = PUBLISHED[name]
    return replace(base, setup=base.setup.with_(seed=seed), seed=seed)


def chosen(lab: Lab, *, seed: int = 0) -> Pretraining:
    """The model of a chapter: of its scale, its card and its parameter `model`."""
    return settings(lab.scale, seed=seed, device=lab.card, name=lab.parameters.get("model"))


def critical(s: Pretraining) -> tuple[int, ...]:
    """The layers that edits write: those that begin in the first third of the model, untried where it is a new one.

    On the laptop tracing names the lowest of six, and edits of it and the next take best. Meng et al. 2023 write from
    a tenth to a third of the way up GPT-J. What other layers do is a sweep of chapter 13.
    """
    if isinstance(s, Published):
        return s.critical
    return tuple(range(math.ceil(s.setup.layers / 3)))


def last(s: Pretraining, count: int = 3) -> tuple[int, ...]:
    """The highest layers, which MEND writes."""
    return tuple(range(max(0, s.setup.layers - count), s.setup.layers))


def weighed(s: Pretraining, values: Sequence[float]) -> tuple[float, ...]:
    """Weights of the old memory as they are tried on MEMORIES memories a layer, for as many as this model has.

    An ordinary key has k^T C^-1 k = M, so that a weight acts by its ratio to the number of memories. Of a published
    model nothing is tried: its own weight.
    """
    if isinstance(s, Published):
        return (s.weight,)
    return tuple(x * s.setup.memories / MEMORIES for x in values)


def model(lab: Lab, s: Pretraining, *, dtype: str | None = None) -> tuple[nn.Module, Any]:
    """The trained model and its tokenizer: shipped, or trained here."""
    found, tok, _ = checkpoints.load(lab, s, s.steps[-1], dtype=dtype)
    return found, tok


def where(s: Pretraining) -> dict[str, tuple[int, ...]]:
    """Layers of editors that were published with others than MEMIT's; of our own models of none."""
    return dict(s.where) if isinstance(s, Published) else {}


def has_table(s: Pretraining) -> bool:
    """Whether what is true is known, of every subject: as of a world, and not of records."""
    return not isinstance(s, Published)


NO_TABLE = "records hold a fact and no table of all that is true: left out at this scale"


def world(s: Pretraining) -> World:
    """The world that the model has read of. Refused where there is none, only records."""
    if isinstance(s, Published):
        raise BadInput(
            f"expected a model of a world, with its table of facts; got {s.name} and records; take another scale."
        )
    return next(corpora.world(part)[0] for part in specs(s.setup.corpus) if part.scheme == "world")


def source(s: Pretraining) -> Source:
    """Where the model's facts come from."""
    return Records(s) if isinstance(s, Published) else Told(world(s))
