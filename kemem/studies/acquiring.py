"""Chapters 04 and 05: fictional passages injected into continual pre-training, from every stage of chapter 02's model.

A row is one run: a stage, trained on text of another world into which passages are put, with what it knows of the
passages at every injection, and before and after the run its end tasks, its losses and its entropy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy

from kemem import corpora, entropy, models, training
from kemem.corpora.files import expanded
from kemem.entropy import passages, schedule
from kemem.errors import BadInput
from kemem.runs import Row, Store
from kemem.studies import checkpoints, pool, pretraining
from kemem.studies.lab import Lab, Result
from kemem.studies.learning import Benchmarked, Learning, Mixed, Watch, fictional
from kemem.studies.outcomes import acquired, forgot, knowledge, performance
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import blocks, in_pieces, read

STUDY, PUBLISHED = "acquisition", "published_passages"
VERSION = 1
CHAPTER = "05_acquisition"
ROWS = {STUDY: VERSION, PUBLISHED: VERSION}


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
