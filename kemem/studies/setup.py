"""How the book makes a model: text, tokenizer, shape and schedule in one record, and the way from it to weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import nn
from transformers import PreTrainedTokenizerBase

from kemem import corpora, models, training
from kemem.corpora import Blocks, Corpus, corpus, pack, train_tokenizer
from kemem.corpora.files import expanded
from kemem.errors import BadInput
from kemem.objective import Masked, Objective, causal
from kemem.studies.lab import Lab
from kemem.training.state import write_folder

TOKENIZER_CHARACTERS = (
    6_000_000  # more text changes a vocabulary of a few thousand by little, and takes longer
)
WORDS = "words"
FEW_WORDS = 2048  # of more words than that the rarest name stands in few of the texts: all are read


@dataclass(frozen=True)
class Setup:
    """A model and its training, as numbers. Time is steps of rows x length tokens; shares are of the steps."""

    corpus: str
    vocabulary: int
    layers: int
    width: int
    memories: int
    heads: int
    length: int
    steps: int
    rows: int
    learning_rate: float
    weight_decay: float
    family: str = "olmo"
    tokenizer: str = ""
    """Empty: trained on the corpus; WORDS: likewise, of whole words. Else a file, folder or hub name."""
    warmup_share: float = 0.05
    final_share: float = 0.1
    schedule: str = "cosine"
    accumulation: int = 1
    precision: str = "float32"
    dtype: str = "float32"
    compile: bool = False
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the whole run reads."""
        return self.steps * self.rows * self.length

    def shape(self, vocabulary: int) -> models.Shape:
        return models.Shape(
            family=self.family, layers=self.layers, width=self.width, memories=self.memories, heads=self.heads,
            context=self.length, vocab=vocabulary,
        )  # fmt: skip

    def recipe(self, checkpoints: tuple[int, ...] = ()) -> training.Recipe:
        return training.Recipe(
            steps=self.steps, batch_size=self.rows, accumulation=self.accumulation, learning_rate=self.learning_rate,
            warmup_steps=round(self.warmup_share * self.steps), final_share=self.final_share, schedule=self.schedule,
            weight_decay=self.weight_decay, seed=self.seed, precision=self.precision, compile=self.compile,
            checkpoints=checkpoints, save_every=max(1, self.steps // 10),
        )  # fmt: skip

    def at(self, shares: tuple[float, ...]) -> tuple[int, ...]:
        """Steps at these shares of the schedule, without repeats."""
        return tuple(sorted({round(share * self.steps) for share in shares}))

    def with_(self, **changes: Any) -> Setup:
        return replace(self, **changes)


@dataclass(frozen=True)
class Dropped(Setup):
    """A setup with dropout at every place where the family has it. Rows of setups without it need not know."""

    dropout: float = 0.1

    def shape(self, vocabulary: int) -> models.Shape:
        return replace(super().shape(vocabulary), dropout=self.dropout)


@dataclass(frozen=True)
class Untied(Setup):
    """A setup whose last projection has weights of its own, as OLMo-7B has."""

    def shape(self, vocabulary: int) -> models.Shape:
        return replace(super().shape(vocabulary), tied=False)


def objective(setup: Setup, tok: PreTrainedTokenizerBase) -> Objective:
    """What a model of this setup is trained for: filling in masked tokens in the families that do, else the next."""
    if setup.family not in models.MASKED:
        return causal
    return Masked(tok.mask_token_id, len(tok), special=tuple(sorted(set(tok.all_special_ids))))


@lru_cache(maxsize=8)
def read(spec: str) -> Corpus:
    """A corpus, read once a process: chapters ask for the same one several times."""
    return corpus(spec)


def tokenizer(lab: Lab, setup: Setup) -> PreTrainedTokenizerBase:
    """The setup's tokenizer: loaded by name, or trained on the training part of its corpus and kept beside the runs."""
    if setup.tokenizer not in ("", WORDS):
        return named(setup.tokenizer)
    text, unit = read(setup.corpus), "word" if setup.tokenizer == WORDS else "bytes"
    most = None if unit == "word" and setup.vocabulary > FEW_WORDS else TOKENIZER_CHARACTERS
    identity = [text.digest, setup.vocabulary, most, *([unit] if unit != "bytes" else [])]
    name = sha256(json.dumps(identity).encode()).hexdigest()[:16]
    folder = lab.store.live / "work" / "tokenizers" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if (folder / "tokenizer.json").is_file():
            return corpora.load_tokenizer(str(folder))
        fresh = train_tokenizer(_some(text.part("train"), most), setup.vocabulary, unit=unit)
        write_folder(folder, fresh.save_pretrained)  # whole or not at all: a torn vocabulary would be trusted
    return corpora.load_tokenizer(str(folder))


def named(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of a file or folder, or of a model of the hub, which then is of the same commit as its weights."""
    if expanded(name).exists() or name.endswith(".json"):
        return corpora.load_tokenizer(name)
    _, found = models.described(name)
    if found is None:
        raise BadInput(f"expected a tokenizer in {name}; got a model without one; name another.")
    return found


def _some(texts: list[str], most: int | None) -> list[str]:
    """Texts spread evenly over the corpus, together at most so many characters long; None: all."""
    share = 1 if most is None else max(1, -(-sum(map(len, texts)) // most))
    return texts[::share]


def spread(texts: list[str], count: int) -> list[str]:
    """`count` texts at even distances, or all where there are fewer, in an order that depends on the texts alone.

    A mixture is seen in its proportions, and so are its first texts.
    """
    chosen = [texts[i * len(texts) // count] for i in range(count)] if count < len(texts) else texts
    return sorted(chosen, key=lambda text: sha256(text.encode()).digest())


@lru_cache(maxsize=4)
def _packed(spec: str, part: str, folder: str, length: int, limit: int | None) -> Blocks:
    return pack(read(spec).part(part), named(folder), length, limit_tokens=limit)


def blocks(lab: Lab, setup: Setup, spec: str, part: str, *, limit: int | None = None) -> Blocks:
    """A part of a corpus in the setup's tokens and block length; `limit` in tokens."""
    name = getattr(tokenizer(lab, setup), "name_or_path", "") or setup.tokenizer
    return _packed(spec, part, name, setup.length, limit)


def in_pieces(lab: Lab, recipe: training.Recipe) -> training.Recipe:
    """The recipe with a step's rows cut into as many micro-batches as the lab's batch size asks for."""
    if lab.batch_size is None:
        return recipe
    return replace(
        recipe, accumulation=max(recipe.accumulation, math.ceil(recipe.batch_size / lab.batch_size))
    )


def train(
    lab: Lab,
    setup: Setup,
    folder: Path | None,
    *,
    keep: tuple[int, ...] = (),
    at_checkpoint: Callable[[nn.Module, int], dict[str, Any] | None] | None = None,
    method: training.Method | None = None,
    sharded: bool = False,
) -> tuple[nn.Module, training.History, dict[str, Any]]:
    """Train the setup's model from nothing (or from where a killed run stopped); weights, history and provenance.

    sharded: as in `kemem.training.train`; the whole model is then in the processor's memory first.
    """
    tok = tokenizer(lab, setup)
    data = blocks(lab, setup, setup.corpus, "train")
    place = models.named_device(lab.device)
    model = models.build(setup.shape(len(tok)), tok, seed=setup.seed).to(
        "cpu" if sharded else place, models.named_dtype(setup.dtype)
    )
    parameters = sum(p.numel() for p in model.parameters())
    recipe = in_pieces(lab, setup.recipe(keep))
    history = training.train(
        model, training.Domain(setup.corpus, data), recipe, method, objective=objective(setup, tok), out=folder,
        tokenizer=tok, at_checkpoint=at_checkpoint, progress=lab.progress, device=place, sharded=sharded,
    )  # fmt: skip
    text = read(setup.corpus)
    provenance = {
        "corpus": {"spec": setup.corpus, "digest": text.digest, "versions": text.versions},
        "parameters": parameters,
        "vocabulary": len(tok),
        "passes": round(setup.tokens / data.tokens, 3),
    }
    return model, history, provenance
