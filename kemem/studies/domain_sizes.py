"""Chapters 08 to 10: models, domains, steps and arms of the comparison on one budget, at each scale.

At `smoke` and `laptop` the models are trained here and text is what every machine has. At `gpu` the models are larger,
trained here too, and beside such text stand the corpora of `$KEMEM_DATA/domains`. At `paper` scale the models are the
published ones and the domains data sets of the hub: three of the fields of Ke et al. 2023 as they are named there (ACL,
AI and PubMed papers), reviews of businesses for those of restaurants, of products for those of phones, of films for
those of cameras. Steps, rows, rates and end tasks are those of the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kemem import models, training
from kemem.continual.das import ABLATIONS, DEFECTS
from kemem.errors import BadInput
from kemem.studies import pretraining
from kemem.studies.courses import FineTuned, Learning, OnCard
from kemem.studies.pretraining import Pretrained, Pretraining
from kemem.studies.setup import Dropped
from kemem.studies.trials import ON_CARD, PUBLISHED, SQUARE, TRIED, Tried


@dataclass(frozen=True)
class Budget:
    """Sizes of the comparison at a scale."""

    base: Learning
    measured: int = 200
    """Rows of a domain on which importances are measured."""
    orders: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3), (3, 2, 1, 0))
    seeds: tuple[int, ...] = (0, 1, 2)
    names: tuple[str, ...] = tuple(TRIED)
    tried: int = 4
    """Trials of each method at most."""
    square: tuple[str, ...] = tuple(SQUARE)
    shares: tuple[float, ...] = (0.1,)
    """Of a domain's rows, on which importance is measured."""
    stages: tuple[float, ...] = (0.2, 0.5, 0.75, 1.0)
    """Shares of the schedule of pretraining after which the sequence begins."""
    importances: tuple[str, ...] = ("magnitude", "gradient", "lottery")
    normalisations: tuple[str, ...] = ("tanh_clip", "paper_abs", "rank")
    parts: tuple[str, ...] = tuple(name.replace(" ", "-") for name in ABLATIONS)
    defects: tuple[str, ...] = (*(name.replace(" ", "-") for name in DEFECTS), "as-released")
    trials: Mapping[str, Tried] = field(default_factory=lambda: {**TRIED, **SQUARE})
    """What is tried of each method."""
    few: tuple[int, ...] | None = None
    """Seeds of what is beside the question: placements of CPT's plugins, earlier starts. None: all."""

    @property
    def aside(self) -> tuple[int, ...]:
        """Seeds of what is beside the question."""
        return self.few or self.seeds


# ---------------------------------------------------------------------- models that fill in masked tokens
LAPTOP = (
    "docstrings:sympy", "world:people=300,seed=1,within=Sumstan", "docstrings:transformers", "docstrings:pandas",
)  # fmt: skip
MASKED = Pretraining(
    Dropped(
        corpus=pretraining.LAPTOP.corpus, vocabulary=2048, layers=4, width=96, memories=384, heads=4, length=96,
        rows=16, steps=16_000, learning_rate=2e-3, weight_decay=0.1, family="roberta",
    ),
    stages=(1.0,), facts=0, prompts=(),
)  # fmt: skip
"""A RoBERTa-shaped model that fills in masked tokens, with dropout as in the paper, on the same text."""
SMOKE_MASKED = Pretraining(
    Dropped(
        corpus=pretraining.SCALES["smoke"].setup.corpus, vocabulary=512, layers=2, width=24, memories=40, heads=2,
        length=48, rows=8, steps=20, learning_rate=2e-3, weight_decay=0.1, family="roberta", dtype="float64",
    ),
    stages=(1.0,), held_out=1000, facts=0, prompts=(),
)  # fmt: skip


def masked_like(s: Pretraining) -> Pretraining:
    """A RoBERTa-shaped model of the sizes of a causal one, with dropout, on its text, at its end."""
    setup = s.setup
    own = Dropped(
        corpus=setup.corpus, vocabulary=setup.vocabulary, layers=setup.layers, width=setup.width,
        memories=setup.memories, heads=setup.heads, length=256, rows=setup.rows, steps=setup.steps,
        learning_rate=setup.learning_rate, weight_decay=setup.weight_decay, family="roberta",
        accumulation=setup.accumulation, precision=setup.precision, compile=setup.compile,
    )  # fmt: skip
    return Pretraining(own, stages=(1.0,), held_out=s.held_out, facts=0, prompts=())


ROBERTA = Pretrained(
    Dropped(
        corpus="hub:wikipedia:limit=20000", vocabulary=50265, tokenizer="FacebookAI/roberta-base", layers=12, width=768,
        memories=3072, heads=12, length=512, rows=8000, steps=500_000, learning_rate=6e-4, weight_decay=0.01,
        family="roberta", precision="bfloat16",
    ),
    stages=(1.0,), facts=0, prompts=(), name="FacebookAI/roberta-base",
)  # fmt: skip
"""The paper's model, which was published at its end alone. Wikipedia is a part of what it has read."""


# ---------------------------------------------------------------------- sizes at a scale
FIRST = (
    "ncl", "one", "pool", "ewc", "kd", "replay", "derpp", "das", "hat", "adapter-sequential", "adapter-parallel",
    "adapters-one", "prompt", "lora", "cpt", "elle", "woken",
)  # fmt: skip
"""The methods that are compared wherever methods are."""
FEW = ("ncl", "one", "pool", "ewc", "replay", "das")
REAL = ("restaurants", "acl", "ai", "pubmed")
GPU = ("docstrings:sympy", "world:people=300,seed=1,within=Sumstan", "books", "docstrings:pandas")
GPU_REAL = ("restaurants", "acl", "ai", "electronics", "pubmed", "movies")
"""In the paper's order; electronics and movies stand for its phones and cameras, which are not to be had."""
NONE: dict[str, Any] = {"square": (), "shares": (), "importances": (), "normalisations": ()}
NO_ARMS: dict[str, Any] = {**NONE, "stages": ()}


PAPER = (
    "hub:yelp:limit=600000", "hub:acl:limit=15000", "hub:ml-arxiv:limit=all", "hub:amazon:limit=1000000",
    "hub:pubmed:limit=400000", "hub:imdb:limit=all",
)  # fmt: skip
"""In the paper's order of fields. Of those with all records there is less text than steps read: it is read again."""


def _smoke(masked: bool, device: str | None) -> Budget:
    model = SMOKE_MASKED if masked else pretraining.settings("smoke")
    base = _base(
        model, ("docstrings:networkx", "world:people=60,seed=1,documents=300,within=Sumstan"), steps=3, rows=4,
        length=48, test_tokens=600, examples=(40, 20), asked_length=32, dtype="float64",
    )  # fmt: skip
    return Budget(
        base, 16, ((0, 1), (1, 0)), (0,), ("ncl", "one", "pool", "ewc", "das"), 2, tuple(SQUARE)[:2], (0.5,),
        () if masked else (0.5, 1.0), ("magnitude",), ("rank",), ("without-contrast",), ("gradient",),
    )  # fmt: skip


def _laptop(masked: bool, device: str | None) -> Budget:
    if masked:
        return Budget(_base(MASKED, LAPTOP), orders=((0, 1, 2, 3),), names=FEW, **NO_ARMS)
    return Budget(_base(pretraining.settings("laptop"), LAPTOP), defects=CAUSAL_DEFECTS)


def _gpu(masked: bool, device: str | None) -> Budget:
    causal = pretraining.settings("gpu", device=device)
    own: dict[str, Any] = {"tried": 2, "trials": ON_CARD, "orders": ((0, 1, 2, 3),)}
    if masked:
        base = _on_card(masked_like(causal), GPU, device)
        return Budget(base, seeds=(0,), names=FEW, defects=("gradient", "as-released"), **own, **NO_ARMS)
    base = _on_card(causal, GPU, device)
    return Budget(base, few=(0,), names=FIRST, stages=(0.5, 1.0), defects=(), **own, **NONE)


def _paper(masked: bool, device: str | None) -> Budget:
    """One rate for all, as in the released code, and so no search."""
    causal = pretraining.SCALES["paper"]
    causal = replace(causal, setup=causal.setup.with_(corpus="hub:dolma:limit=20000"))
    model = ROBERTA if masked else causal
    base = _on_card(
        model, PAPER, device, kind=FineTuned, steps=2580, rows=248, accumulation=4, test_tokens=100_000,
        examples=(100_000, 100_000), asked_length=164, learning_rate=1e-4,
    )  # fmt: skip
    own: dict[str, Any] = {
        "measured": 10_000,
        "orders": (tuple(range(len(PAPER))),),
        "tried": 1,
        "trials": PUBLISHED,
    }
    if masked:
        return Budget(base, **own, **NO_ARMS)
    return Budget(base, seeds=(0,), names=FEW, defects=(), stages=causal.stages, **own, **NONE)


CAUSAL_DEFECTS = tuple(name for name in Budget.defects if name != "uncorrupted")
"""In a causal model there is nothing to corrupt."""
_SIZES: dict[str, Callable[[bool, str | None], Budget]] = {
    "smoke": _smoke, "laptop": _laptop, "gpu": _gpu, "paper": _paper,
}  # fmt: skip
SCALES = tuple(_SIZES)


def _base(model: Pretraining, texts: tuple[str, ...], **sizes: Any) -> Learning:
    return Learning(model, model.steps[-1], texts, **sizes)


def _on_card(
    model: Pretraining,
    texts: tuple[str, ...],
    device: str | None,
    kind: type[OnCard] = OnCard,
    **changes: Any,
) -> OnCard:
    """A course at `gpu` scale, in bfloat16 where the device multiplies it."""
    sizes: dict[str, Any] = {
        "steps": 40, "rows": 80, "length": 164, "test_tokens": 16_000, "examples": (400, 300), "asked_length": 96,
        "accumulation": model.setup.accumulation,
    }  # fmt: skip
    slow = device is not None and not training.bfloat16_runs(models.named_device(device))
    precision = "float32" if slow else "bfloat16"
    return kind(model, model.steps[-1], texts, **{**sizes, "precision": precision, **changes})


def sizes(scale: str, *, masked: bool = False, device: str | None = None) -> Budget:
    """The comparison at a scale, with the causal model or the one that fills in masked tokens.

    device: where it will run; a small card gets smaller models, whose rows are rows of their own.
    """
    if scale not in SCALES:
        raise BadInput(f"domains are learned in a row at the scales {', '.join(SCALES)}; got {scale!r}.")
    return _SIZES[scale](masked, device)


def real(scale: str, *, device: str | None = None) -> Budget | None:
    """Domains of the paper with their published end tasks, with settings that were chosen on the others.

    The model that fills in masked tokens learns them: it is the paper's kind. None where no data is asked for, and at
    `paper` scale, where the domains of the comparison are these.
    """
    alone: dict[str, Any] = {"seeds": (0,), "names": FEW, "defects": (), **NO_ARMS}
    if scale == "laptop":
        base = _base(
            MASKED, REAL, steps=80, rows=16, test_tokens=8000, examples=(1500, 1000), asked_length=96
        )
        return Budget(base, orders=((0, 1, 2, 3),), **alone)
    if scale == "gpu":
        z = sizes(scale, masked=True, device=device)
        base = replace(z.base, domains=GPU_REAL, examples=(2000, 1000), asked_length=164)
        return replace(z, base=base, orders=((0, 1, 2, 3, 4, 5),), parts=(), **alone)
    return None
