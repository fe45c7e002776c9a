"""Chapters 04 and 05: fictional passages injected into continual pre-training, from every stage of chapter 02's model.

A row is one run: a stage, trained on text of another world into which passages are put, with what it knows of the
passages at every injection, and before and after the run its end tasks, its losses and its entropy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy
from torch import nn

from kemem import corpora, entropy, evaluation, harness, models, training
from kemem.corpora import instances, specs
from kemem.corpora.files import expanded
from kemem.entropy import Passage, passages, schedule
from kemem.errors import BadInput
from kemem.harness import SIX
from kemem.runs import Row, Store
from kemem.studies import checkpoints, pool, pretraining
from kemem.studies.lab import Lab, Result
from kemem.studies.outcomes import acquired, forgot, knowledge, performance
from kemem.studies.pretraining import Pretraining, sources
from kemem.studies.questions import Question, questions
from kemem.studies.setup import blocks, in_pieces, read, spread
from kemem.studies.stages import padding_id, stage
from kemem.world import World

STUDY, PUBLISHED = "acquisition", "published_passages"
VERSION = 1
CHAPTER = "05_acquisition"
ROWS = {STUDY: VERSION, PUBLISHED: VERSION}
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


@dataclass(frozen=True)
class Published:
    """The released passages, tokenizer and injection map."""

    folder: str = "$KEMEM_DATA/fictional_knowledge"
    tokenizer: str = "$KEMEM_DATA/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"
    map: str = "$KEMEM_DATA/fictional_knowledge/paraphrase70-once60split.json"
    slots: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Sizes:
    """The study at a scale: continual learning of the last stage with the first seed, and the seeds of the rest."""

    base: Learning
    seeds: tuple[int, ...]
    stages: tuple[float, ...]
    """Shares of the schedule from which models learn on; the paper's are 16, 50, 75 and 100 %."""
    published: Published | None = None


def _base(scale: str, corpus: str, **sizes: Any) -> Learning:
    model = pretraining.SCALES[scale]
    kind = Mixed if model.setup.precision == "bfloat16" else Learning
    # the paper's rate is the peak of pretraining, so it is here
    return kind(model, model.steps[-1], corpus, learning_rate=model.setup.learning_rate, **sizes)


def _rows_of(length: int) -> Pretraining:
    model = pretraining.SCALES["paper"]
    return replace(model, setup=model.setup.with_(length=length))


OLMO = _rows_of(1024)
SCALES: dict[str, Sizes] = {
    "smoke": Sizes(
        _base(
            "smoke", "world:people=20,seed=1,documents=200", paraphrased=2, once=4, slots=2, interval=3, rows=4,
            tasks=24, held_out=1000, instances=8,
        ),
        (0,), (0.5, 1.0),
    ),
    "laptop": Sizes(
        _base(
            "laptop", "world:people=40,seed=1,documents=16000", paraphrased=20, once=40, slots=10, interval=30,
            rows=32,
        ),
        (0, 1, 2), (0.1, 0.2, 0.35, 0.5, 0.75, 1.0), Published(),
    ),
    "gpu": Sizes(
        _base(
            "gpu", "files:$KEMEM_DATA/domains/pubmed_abstracts.jsonl.gz", paraphrased=70, once=60, slots=10,
            interval=16, rows=128, tasks=1000, held_out=100_000, instances=512, source=Published.folder,
        ),
        (0,), (0.1, 0.2, 0.35, 0.5, 0.75, 1.0), Published(),
    ),
    # B.4.1: 1,600 steps of 128 rows of 1,024 tokens. The passages of the hub have no paraphrases, so the released files
    "paper": Sizes(
        Benchmarked(
            OLMO, OLMO.steps[-1], "hub:pubmed:limit=900000", paraphrased=70, once=60, slots=10, interval=160, rows=128,
            learning_rate=OLMO.setup.learning_rate, tasks=0, held_out=200_000, instances=2048, source=Published.folder,
        ),
        (0,), OLMO.stages, Published(),
    ),
}  # fmt: skip


def settings(scale: str, *, seed: int = 0, share: float = 1.0, **changes: Any) -> Learning:
    """Continual learning of one stage: the model and the order of the data follow the seed."""
    if scale not in SCALES:
        raise BadInput(f"continual learning has sizes at the scales {', '.join(SCALES)}; got {scale!r}.")
    base = SCALES[scale].base
    model = replace(base.model, setup=base.model.setup.with_(seed=seed), seed=seed)
    (step,) = model.setup.at((share,))
    if step not in model.steps:
        shares = ", ".join(f"{s:g}" for s in model.stages)
        raise BadInput(f"a stage is one of the shares {shares} of the schedule; got {share:g}.")
    return replace(base, model=model, step=step, seed=seed, **changes)


def run(lab: Lab, s: Learning, recorded: bool = False) -> Row:
    """The row of one run."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        tasks = s.end_tasks()
        model, tok, found = checkpoints.load(lab, s.model, s.step)
        provenance["checkpoints"] = found.origin
        text = read(s.corpus)
        provenance["corpus"] = {"spec": s.corpus, "digest": text.digest, "versions": text.versions}
        told = fictional(s)
        watch = Watch(lab, s, tok, tasks)
        data = blocks(lab, s.model.setup, s.corpus, "train")
        plan = schedule(told, tok, slots=s.slots, interval=s.interval)
        first = watch(model)
        learnt = entropy.acquire(
            model, training.Domain(s.corpus, data), plan, in_pieces(lab, s.recipe()), tokenizer=tok, passages=told,
            progress=lab.progress, batch_size=2 * (lab.batch_size or 32),
        )  # fmt: skip
        last = watch(model)
        provenance["passes"] = round(s.steps * s.rows * s.model.setup.length / data.tokens, 3)
        return {
            "before": first, "after": last, "probes": learnt.rows, "losses": learnt.history.steps,
            "injected": learnt.injected, "lost": learnt.lost, "passages": len(told), "steps": s.steps,
        }  # fmt: skip

    return lab.store.row(
        STUDY, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


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


def along(lab: Lab) -> dict[int, list[Row]]:
    """Learning from every stage, recorded: rows of each seed in the order of the stages."""
    sizes = SCALES[lab.scale]
    # seeds innermost: neighbours in the pool then wait for different models to be trained, not for one
    places = [(seed, share) for share in sizes.stages for seed in sizes.seeds]
    jobs = [(run, (settings(lab.scale, seed=seed, share=share), True)) for seed, share in places]
    found = dict(zip(places, pool.rows(lab, jobs), strict=True))
    return {seed: [found[seed, share] for share in sizes.stages] for seed in sizes.seeds}


# ---------------------------------------------------------------------- the authors' own passages
def published(lab: Lab) -> Row | None:
    """Whether our schedule of the released passages is the released one, token for token; None where none is asked."""
    s = SCALES[lab.scale].published
    if s is None:
        return None

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        plan = schedule(passages(s.folder), corpora.load_tokenizer(s.tokenizer), slots=s.slots)
        released = json.loads(expanded(s.map).read_text(encoding="utf-8"))
        theirs = [released[str(number)] for number in range(1, s.slots + 1)]
        pairs = [
            (ours, tuple(ids)) for slot, other in zip(plan.slots, theirs, strict=True)
            for ours, ids in zip(slot, other, strict=True)
        ]  # fmt: skip
        return {
            "slots": len(plan.slots), "told": len(pairs), "equal": sum(a == b for a, b in pairs),
            "tokens": plan.tokens,
        }  # fmt: skip

    return lab.store.row(PUBLISHED, VERSION, s, compute, recorded=True)


def finished(store: Store, scale: str) -> list[dict[float, Row]]:
    """By model, the run from each stage; none unless all are there. Nothing is computed."""
    if scale not in SCALES:
        return []
    sizes = SCALES[scale]
    found = [
        {
            share: store.find(STUDY, VERSION, settings(scale, seed=seed, share=share), recorded=True)
            for share in sizes.stages
        }
        for seed in sizes.seeds
    ]
    whole = [{share: row for share, row in rows.items() if row is not None} for rows in found]
    return whole if whole == found else []


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Means over models at the first and last stage, and what they were measured on; none where rows are missing."""
    if scale not in SCALES:
        return {}
    sizes = SCALES[scale]
    shown = store.find(STUDY, VERSION, settings(scale))
    headline: dict[str, Result] = {}
    if shown is not None:
        origin = {"study": STUDY, "digest": shown.digest, "origin": shown.origin, **shown.provenance}
        for group, kind in (("paraphrase", "all"), ("paraphrase", "composition"), ("once", "all")):
            value = 100 * acquired(shown, group=group, kind=kind)
            headline[f"injection.{group}.{kind}"] = Result(value, "%", origin)
    learnt = finished(store, scale)
    if not learnt:
        return headline
    whole = {share: [rows[share] for rows in learnt] for share in sizes.stages}
    one = next(iter(whole.values()))[0]
    origin = {"study": STUDY, "digest": one.digest, "origin": one.origin, **one.provenance}
    numbers: dict[str, tuple[Any, str]] = {
        "models": (len(sizes.seeds), ""),
        "stages": (len(sizes.stages), ""),
    }
    for name, share in (("early", 0.2), ("middle", 0.5), ("last", 1.0)):
        rows = whole.get(share)
        if not rows:
            continue
        values = {
            "A": (100 * _mean(map(acquired, rows)), "%"),
            "K before": (_mean(knowledge(row, "before") for row in rows), "nats"),
            "K after": (_mean(knowledge(row, "after") for row in rows), "nats"),
            "P before": (100 * _mean(performance(row, "before") for row in rows), "%"),
            "P after": (100 * _mean(performance(row, "after") for row in rows), "%"),
        }
        lost = [forgot(row) for row in rows]
        if None not in lost:
            values["F"] = (100 * _mean(f for f in lost if f is not None), "%")
        numbers |= {f"{quantity}.{name}": value for quantity, value in values.items()}
    return headline | {
        f"acquiring.{name}": Result(value, unit, origin) for name, (value, unit) in numbers.items()
    }


def _mean(values: Iterable[float]) -> float:
    return float(numpy.mean(list(values)))
