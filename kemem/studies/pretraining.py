"""Chapter 02: a small model trained on text of two kinds, watched at stages along its schedule.

One row: the training history, and at each stage the held-out loss of every part of the corpus, how many facts of the
world the model ranks first among candidates, by kind of fact, and what it writes when it is asked to go on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kemem import evaluation, models, training
from kemem.corpora import specs
from kemem.errors import BadInput
from kemem.runs import Row, Store
from kemem.studies.lab import Lab, Result
from kemem.studies.questions import Question, draw, questions
from kemem.studies.setup import Setup, blocks, objective, read, tokenizer, train

STUDY, TEXTS = "pretraining", "texts"
VERSION = 1
CHAPTER = "02_pretraining"
ROWS = {STUDY: VERSION, TEXTS: VERSION}


@dataclass(frozen=True)
class Pretraining:
    """The model of chapter 02. `stages` are shares of the schedule at which it is looked at and kept."""

    setup: Setup
    stages: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
    held_out: int = 40_000
    """Tokens of each part of the corpus on which the held-out loss is measured."""
    facts: int = 240
    """Facts of the world that are asked for at each stage."""
    prompts: tuple[str, ...] = ("Return the",)
    """What the model goes on from, besides the name of a person of its world."""
    written: int = 24
    """Tokens written after each prompt."""
    seed: int = 0

    @property
    def steps(self) -> tuple[int, ...]:
        return self.setup.at(self.stages)


@dataclass(frozen=True)
class Pretrained(Pretraining):
    """A model that others trained. `setup`: its shape, its tokenizer, its schedule and text like what it has read."""

    name: str = ""
    """Of the hub, or a folder."""
    revision: str = ""
    """A branch, tag or commit, or how one branch begins, with {step} for the stage's step; empty: the main branch."""

    def at(self, step: int) -> str | None:
        """The revision of a stage."""
        if step not in self.steps:
            raise BadInput(
                f"{self.name} is taken at the steps {', '.join(map(str, self.steps))}; got {step}."
            )
        return self.revision.format(step=step) or None


LAPTOP = Setup(
    corpus="world:people=100,documents=24000+docstrings:limit=2500", vocabulary=2048,
    layers=4, width=96, memories=384, heads=4, length=96, rows=16, steps=4000,
    learning_rate=4e-3, weight_decay=1.8,
)  # fmt: skip
NOVELS = "files:$KEMEM_DATA/pretrain/novels_100_english.jsonl.gz+files:$KEMEM_DATA/pretrain/novels_eltec_eng.jsonl.gz"
SCALES: dict[str, Pretraining] = {
    # float64, so that rounded outputs are the same on every processor
    "smoke": Pretraining(
        LAPTOP.with_(
            corpus="world:people=40,documents=400+docstrings:networkx,limit=120", vocabulary=512, layers=2, width=24,
            memories=40, heads=2, length=48, rows=8, steps=60, dtype="float64",
        ),
        stages=(0.0, 0.2, 0.5, 0.75, 1.0), held_out=2000, facts=24, written=8,
    ),
    "laptop": Pretraining(LAPTOP),
    "gpu": Pretraining(
        Setup(
            corpus=NOVELS + "+world:people=2000,documents=200000", vocabulary=16384,
            layers=10, width=512, memories=2048, heads=8, length=512, rows=128, steps=3000,
            learning_rate=1e-3, weight_decay=0.1, precision="bfloat16", compile=True,
        ),
        held_out=400_000, facts=1000,
    ),
    # nobody trains it again: its authors' checkpoints are read, at the four steps of the paper's tables
    "paper": Pretrained(
        Setup(
            corpus="hub:dolma:limit=2048", vocabulary=50280, tokenizer="allenai/OLMo-1B-hf",
            layers=16, width=2048, memories=8192, heads=16, length=2048, rows=2048, steps=738_020,
            learning_rate=4e-4, weight_decay=0.1, precision="bfloat16", compile=True, warmup_share=0.0027,
        ),
        stages=tuple(step / 738_020 for step in (117_850, 369_000, 554_000, 738_020)),
        name="allenai/OLMo-1B-hf", revision="step{step}",
    ),
}  # fmt: skip

SMALL_CARD = Pretraining(
    Setup(
        corpus=NOVELS + "+world:people=2000,documents=200000", vocabulary=8192,
        layers=8, width=384, memories=1536, heads=6, length=256, rows=64, accumulation=4, steps=4000,
        learning_rate=1.5e-3, weight_decay=0.1,
    ),
    held_out=200_000, facts=1000,
)  # fmt: skip
"""The `gpu` scale on a card of 16 GB, or on one that does not multiply bfloat16: smaller, and in float32."""
SMALLER = {"gpu": SMALL_CARD}
LARGE_CARD_GIB = 20


def settings(
    scale: str,
    *,
    seed: int = 0,
    corpus: str | None = None,
    dtype: str | None = None,
    family: str | None = None,
    instances: int | None = None,
    device: str | None = None,
) -> Pretraining:
    """The scale's settings with what the reader chose instead; None: the scale's own.

    family: the architecture that is trained, at the same sizes. instances: blocks of held-out text. device: where it
    will run; a small card gets a smaller model, whose rows are rows of their own.
    """
    base = SMALLER[scale] if scale in SMALLER and small_card(device) else SCALES[scale]
    if family is not None and family not in models.FAMILIES:
        known = ", ".join(sorted(models.FAMILIES))
        raise BadInput(f"the model of this chapter is a family, one of {known}; got {family!r}.")
    if family is not None and isinstance(base, Pretrained):
        raise BadInput(
            f"at this scale the model is {base.name}, as it was trained; got {family!r}; leave it out."
        )
    given = {"corpus": corpus, "dtype": dtype, "family": family}
    setup = base.setup.with_(seed=seed, **{name: v for name, v in given.items() if v is not None})
    held_out = base.held_out if instances is None else instances * setup.length
    return replace(base, setup=setup, seed=seed, held_out=held_out)


def small_card(device: str | None) -> bool:
    """Whether this is a CUDA device with less than LARGE_CARD_GIB, or one that does not multiply bfloat16."""
    if device is None or models.named_device(device).type != "cuda":
        return False
    memory = torch.cuda.get_device_properties(models.named_device(device)).total_memory
    return memory < LARGE_CARD_GIB * 2**30 or not training.bfloat16_runs(device)


def run(lab: Lab, s: Pretraining) -> Row:
    """Train (or go on, or read) the model of these settings; checkpoints are kept beside the run store.

    One that others trained is looked at, stage by stage: its row has no history.
    """

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        watch = Watch(lab, s)
        if isinstance(s, Pretrained):
            return _seen(lab, s, watch, provenance)
        _, history, found = train(lab, s.setup, folder(lab, s), keep=s.steps, at_checkpoint=watch.stage)
        provenance.update(found)
        if history.steps:
            provenance["training_seconds"] = round(history.steps[-1]["seconds"], 1)
        return {
            "history": history.steps, "stages": history.checkpoints, "tokens": s.setup.tokens,
            "parameters": found["parameters"], "vocabulary": found["vocabulary"],
            "time_constants": s.setup.recipe().time_constants, "asked": watch.asked,
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def _seen(lab: Lab, s: Pretrained, watch: Watch, provenance: dict[str, Any]) -> dict[str, Any]:
    stages = []
    for done, step in enumerate(s.steps, start=1):
        model, tok = given(lab, s, step, s.setup.dtype)
        stages.append({"step": step, **watch.stage(model, step)})
        if lab.progress:
            lab.progress(done, len(s.steps), "stages")
    text = read(s.setup.corpus)
    provenance["corpus"] = {"spec": s.setup.corpus, "digest": text.digest, "versions": text.versions}
    return {
        "history": [], "stages": stages, "tokens": s.setup.tokens,
        "parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tok),
        "time_constants": s.setup.recipe().time_constants, "asked": watch.asked,
    }  # fmt: skip


def given(lab: Lab, s: Pretrained, step: int, dtype: str) -> tuple[nn.Module, Any]:
    """A stage of a model that others trained, and its tokenizer. Refused: one without a tokenizer, another step."""
    model, tok = models.load(s.name, revision=s.at(step), device=lab.device, dtype=dtype)
    if tok is None:
        raise BadInput(
            f"expected a tokenizer beside the weights of {s.name}; got none; use a folder that has one."
        )
    return model, tok


def folder(lab: Lab, s: Pretraining) -> Path:
    """Where the checkpoints of these settings are kept."""
    return lab.store.folder(STUDY, VERSION, s)


@dataclass(frozen=True)
class Texts:
    """One short training text of each part of a corpus, for the page."""

    corpus: str
    longest: int = 420
    seed: int = 0


def texts(lab: Lab, s: Pretraining) -> Row:
    """A sample of what the model reads, and how much of it there is."""
    asked = Texts(s.setup.corpus)

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        samples, documents, characters = {}, {}, {}
        for name, spec in sources(asked.corpus).items():
            text = read(spec)
            chosen = min(
                (t for t in text.part("train") if len(t) <= asked.longest), key=draw, default=text.texts[0]
            )
            samples[name] = chosen[: asked.longest]
            documents[name], characters[name] = len(text), text.characters
            provenance.setdefault("corpus", {})[spec] = {"digest": text.digest, "versions": text.versions}
        return {"samples": samples, "documents": documents, "characters": characters}

    return lab.store.row(TEXTS, VERSION, asked, compute)


class Watch:
    """What is looked at in a model at each stage; texts, questions and prompts are fixed before training."""

    def __init__(self, lab: Lab, s: Pretraining) -> None:
        self.settings = s
        self.batch_size = lab.batch_size or 32
        self.tokenizer = tokenizer(lab, s.setup)
        self.held_out = {
            name: blocks(lab, s.setup, spec, "test", limit=s.held_out)
            for name, spec in sources(s.setup.corpus).items()
        }
        self.objective = objective(s.setup, self.tokenizer)
        # a model that fills in masked tokens does not go on from a prompt
        self.facts = questions(s.setup.corpus, s.facts) if s.facts else {}
        people = [q.subject for asked in self.facts.values() for q in asked if q.relation == "born_in"]
        self.prompts = (*s.prompts, *people[:1])
        self.asked = {kind: len(asked) for kind, asked in self.facts.items()}

    def stage(self, model: nn.Module, step: int) -> dict[str, Any]:
        s = self.settings
        return {
            "tokens": step * s.setup.rows * s.setup.length,
            "loss": {
                name: evaluation.loss(model, text, batch_size=self.batch_size, objective=self.objective)
                for name, text in self.held_out.items()
            },
            "known": {kind: self.known(model, asked) for kind, asked in self.facts.items()},
            "written": [
                evaluation.sample(model, self.tokenizer, prompt, tokens=s.written) for prompt in self.prompts
            ],
        }

    def known(self, model: nn.Module, asked: list[Question]) -> float:
        """Share of questions whose true answer the model finds likelier, a token, than every other candidate."""
        found = evaluation.cloze(
            model, self.tokenizer, [q.prompt for q in asked], [q.candidates for q in asked],
            [q.candidates.index(q.answer) for q in asked], start=[self.tokenizer.eos_token_id],
            batch_size=self.batch_size,
        )  # fmt: skip
        return found.accuracy


def sources(spec: str) -> dict[str, str]:
    """The parts of a corpus by a short name: `world`, `docstrings`, `novels_100_english`, ..."""
    named: dict[str, str] = {}
    for part in specs(spec):
        whole = f"{part.scheme}:{part.rest}" if part.rest else part.scheme
        name = (
            part.scheme
            if part.scheme in ("world", "docstrings")
            else Path(part.rest.partition(":")[0]).name.partition(".")[0]
        )
        named[name if name not in named else f"{name} {len(named)}"] = whole
    return named


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of the scale's own model, by name; none where it was not trained."""
    row = store.find(STUDY, VERSION, settings(scale))
    if row is None:
        return {}
    first, last = row.values["stages"][0], row.values["stages"][-1]
    numbers: dict[str, tuple[Any, str]] = {
        "parameters": (row.values["parameters"], ""),
        "tokens": (row.values["tokens"], "tokens"),
        "vocabulary": (row.values["vocabulary"], ""),
        "time_constants": (row.values["time_constants"], ""),
        **({"passes": (row.provenance["passes"], "")} if "passes" in row.provenance else {}),
        "seconds": (row.provenance.get("training_seconds", row.provenance["seconds"]), "s"),
    }
    for name, loss in last["loss"].items():
        numbers[f"loss.{name}"] = (loss, "nats/token")
        numbers[f"first_loss.{name}"] = (first["loss"][name], "nats/token")
    if last["known"]:
        total = sum(row.values["asked"].values())
        for name, stage in (("first", first), ("last", last)):
            share = sum(stage["known"][k] * n for k, n in row.values["asked"].items()) / total
            numbers[f"known.{name}"] = (100 * share, "%")
    provenance = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
    return {f"pretraining.{k}": Result(v, unit, provenance) for k, (v, unit) in numbers.items()}
