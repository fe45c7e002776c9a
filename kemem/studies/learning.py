"""Continual learning with passages injected: its settings, what is told, and what is looked at before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

from torch import nn

from kemem import corpora, entropy, evaluation, harness, training
from kemem.corpora import instances, specs
from kemem.corpora.files import expanded
from kemem.entropy import Passage, passages
from kemem.errors import BadInput
from kemem.harness import SIX
from kemem.studies.lab import Lab
from kemem.studies.pretraining import Pretraining, sources
from kemem.studies.questions import Question, questions
from kemem.studies.setup import blocks, read, spread
from kemem.studies.stages import padding_id, stage
from kemem.world import World

EndTasks = dict[str, list[Question]] | harness.Loaded


@dataclass(frozen=True)
class Learning:
    """Continual pre-training of one stage with passages injected; the paper's recipe (B.4.1), scaled."""

    model: Pretraining
    step: int
    """The stage, as its number of steps."""
    corpus: str
    """The new domain."""
    paraphrased: int
    once: int
    slots: int
    interval: int
    rows: int
    learning_rate: float
    weight_decay: float = 0.1
    warmup_share: float = 0.05
    final_share: float = 0.1
    epochs: int = 1
    """How often the slots are told."""
    source: str = "world"
    """Of the passages: the stage's own world, or a folder with the released files."""
    tasks: int = 240
    """Questions on facts of the stage's own world: its end tasks."""
    held_out: int = 12_000
    """Tokens of each kind of text on which the loss is measured."""
    instances: int = 64
    """Texts on which entropy is measured."""
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.epochs * self.slots * self.interval

    at_once: ClassVar[int] = 2**16
    """Tokens in memory at a time, beyond which a step's rows are cut into micro-batches."""

    def recipe(self) -> training.Recipe:
        return training.Recipe(
            steps=self.steps, batch_size=self.rows, learning_rate=self.learning_rate,
            accumulation=math.ceil(self.rows * self.model.setup.length / self.at_once),
            warmup_steps=round(self.warmup_share * self.steps), final_share=self.final_share,
            weight_decay=self.weight_decay, epsilon=1e-5, seed=self.seed,
        )  # fmt: skip

    def end_tasks(self) -> EndTasks:
        """What the model could do before; needs no model, so that what is missing is told early."""
        return questions(self.model.setup.corpus, self.tasks)


@dataclass(frozen=True)
class Mixed(Learning):
    """In mixed precision, as pretraining on an accelerator."""

    precision: str = "bfloat16"

    def recipe(self) -> training.Recipe:
        return replace(super().recipe(), precision=self.precision)


@dataclass(frozen=True)
class Benchmarked(Mixed):
    """With public end tasks, as the evaluation harness asks them, in place of questions on the model's own world."""

    harness: tuple[str, ...] = tuple(SIX)
    include: str = ""
    """A folder with tasks of the harness; empty: its own."""
    at_once: ClassVar[int] = 2**14

    def end_tasks(self) -> EndTasks:
        return harness.load(self.harness, include=expanded(self.include) if self.include else None)


class Watch:
    """End tasks, losses and entropy of a model, the same texts and questions each time."""

    def __init__(self, lab: Lab, s: Learning, tok: Any, tasks: EndTasks) -> None:
        own = s.model.setup.corpus
        self.tokenizer, self.length, self.batch_size = tok, s.model.setup.length, lab.batch_size or 32
        self.tasks = tasks
        named = {**sources(own), "new domain": s.corpus}
        self.texts = {
            name: blocks(lab, s.model.setup, spec, "test", limit=s.held_out) for name, spec in named.items()
        }
        texts = spread(read(own).part("test"), s.instances)
        self.instances = instances(texts, tok, self.length, limit=s.instances)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        found = entropy.measure(
            model, self.instances.ids, batch_size=self.batch_size, pad_id=padding_id(self.tokenizer),
            length=self.length, next_token=False,
        )  # fmt: skip
        return {
            **stage(found),
            "tasks": self.solved(model),
            "loss": {
                name: evaluation.loss(model, text, batch_size=self.batch_size)
                for name, text in self.texts.items()
            },
        }

    def solved(self, model: nn.Module) -> dict[str, float]:
        """Of each end task the share answered right."""
        if isinstance(self.tasks, harness.Loaded):
            return harness.accuracies(model, self.tokenizer, self.tasks, batch_size=self.batch_size)
        return {kind: self.known(model, asked) for kind, asked in self.tasks.items()}

    def known(self, model: nn.Module, asked: list[Question]) -> float:
        return evaluation.cloze(
            model, self.tokenizer, [q.prompt for q in asked], [q.candidates for q in asked],
            [q.candidates.index(q.answer) for q in asked], start=[self.tokenizer.eos_token_id],
            batch_size=self.batch_size,
        ).accuracy  # fmt: skip


def fictional(s: Learning) -> tuple[Passage, ...]:
    """The passages of a run: released ones, or casts of the stage's own world without namesakes in the new domain."""
    if s.source != "world":
        released = passages(s.source)
        again, once = ([p for p in released if p.group == group] for group in ("paraphrase", "once"))
        return (*again[: s.paraphrased], *once[: s.once])
    own, new = _world(s.model.setup.corpus), _world(s.corpus)
    taken = set(new.entities) if new else set()
    assert own is not None, "the model was trained on a world"
    free = [
        cast for cast in range(own.fictional)
        if taken.isdisjoint(name for names in own.cast(cast).values() for name in names)
    ]  # fmt: skip
    wanted = s.paraphrased + s.once
    if len(free) < wanted:
        raise BadInput(
            f"expected {wanted} passages; got {len(free)} that the new domain does not contradict."
        )
    records = own.fictional_knowledge(own.fictional, paraphrases=s.slots - 1, brief=True)
    chosen = [records[cast] for cast in free[:wanted]]
    again, once = chosen[: s.paraphrased], chosen[s.paraphrased :]
    return (*passages(again, "paraphrase"), *passages(once, "once"))


@lru_cache(maxsize=4)
def _world(spec: str) -> World | None:
    return next((corpora.world(part)[0] for part in specs(spec) if part.scheme == "world"), None)
