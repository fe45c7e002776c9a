"""Chapter 03: knowledge entropy over training, and what drives it.

Two kinds of rows. `measured`: the stages of chapter 02's model (or of any model, by its revisions) on one corpus
with one reading of the coefficient. `arm`: a small model trained and measured on the way, one row a setting and seed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from kemem import entropy, evaluation, models
from kemem.corpora import instances
from kemem.errors import BadInput
from kemem.families import LAYOUTS
from kemem.runs import Row, Store
from kemem.studies import pretraining
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import Setup, blocks, read, spread, tokenizer, train

MEASURED, ARM = "entropy", "decay"
VERSION = 1
CHAPTER = "03_entropy_decay"
STUDIES = {MEASURED: VERSION, ARM: VERSION}


# ---------------------------------------------------------------------- stages of one model
@dataclass(frozen=True)
class Measured:
    """Knowledge entropy at stages of a model. `model` is chapter 02's settings, or a hub name or folder."""

    model: Pretraining | str
    revisions: tuple[str, ...]
    corpus: str
    part: str = "test"
    unit: str = "text"
    """What an instance is: a "text", or a "sentence" of one."""
    instances: int = 128
    length: int = 96
    coefficient: str = "abs"
    padding: str = "mask"
    attention: bool = False
    dtype: str = "float32"
    marks: tuple[int, ...] = ()
    """Numbers of instances after which the last stage is measured too (convergence)."""
    seed: int = 0


def measured(lab: Lab, s: Measured, *, recorded: bool = False) -> Row:
    """One row: at each revision the entropy of each layer, and of next token and attention where asked."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        text = read(s.corpus)
        provenance["corpus"] = {"spec": s.corpus, "digest": text.digest, "versions": text.versions}
        stages, origins = [], set()
        for i, revision in enumerate(s.revisions):
            model, tok, origin = _load(lab, s, revision)
            origins.add(origin)
            texts = spread(_units(text.part(s.part), s.unit), s.instances)
            chosen = instances(texts, tok, s.length, limit=s.instances)
            last = revision == s.revisions[-1]
            found = entropy.measure(
                model, chosen.ids, batch_size=32, pad_id=_padding(tok), coefficient=s.coefficient, padding=s.padding,
                length=s.length, attention=s.attention, next_token=s.attention, marks=s.marks if last else (),
            )  # fmt: skip
            stages.append(_stage(found) | {"revision": revision})
            if lab.progress:
                lab.progress(i + 1, len(s.revisions), f"entropy of {revision}: {found.entropy:.3f} nats")
        provenance["checkpoints"] = sorted(origins)
        return {
            "stages": stages,
            "layers": found.usage.shape[0],
            "memories": found.usage.shape[1],
            "bound": found.bound,
        }

    return lab.store.row(
        MEASURED, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


def _load(lab: Lab, s: Measured, revision: str) -> tuple[nn.Module, Any, str]:
    if isinstance(s.model, Pretraining):
        model, tok, found = pretraining.load(lab, s.model, int(revision.removeprefix("step")), dtype=s.dtype)
        return model, tok, "shipped" if found.shipped else "live"
    model, tok = models.load(s.model, revision=revision or None, device=lab.device, dtype=s.dtype)
    if tok is None:
        raise BadInput(
            f"measuring text needs the model's tokenizer; {s.model} has none; save it beside the weights."
        )
    return model, tok, "given"


def _units(texts: list[str], unit: str) -> list[str]:
    if unit == "text":
        return texts
    return [sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence.strip()]


def _padding(tok: Any) -> int:
    return tok.pad_token_id if tok.pad_token_id is not None else tok.eos_token_id or 0


def _stage(found: entropy.Measurement) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layers": found.layers.tolist(), "entropy": found.entropy, "effective_share": found.effective_share,
        "tokens": found.tokens, "instances": found.instances,
    }  # fmt: skip
    if found.next_token_entropy is not None:
        row["next_token"] = found.next_token_entropy
    if found.attention is not None:
        row["attention"] = found.attention.mean(1).tolist()  # a layer's value is the mean over its heads
    if found.snapshots:
        row["marks"] = {
            str(n): float(entropy.layer_entropy(usage).sum()) for n, usage in found.snapshots.items()
        }
    return row


@dataclass(frozen=True)
class Sizes:
    """What chapter 03 measures at a scale."""

    instances: int
    length: int
    marks: tuple[int, ...]
    seeds: tuple[int, ...]
    base: Setup
    points: int
    """Stages at which an arm is measured, spread evenly."""
    arms: tuple[str, ...] | None = None
    """Arms of the sweep; None: all."""


BASE = pretraining.LAPTOP.with_(
    corpus="world:people=100,documents=16000",
    vocabulary=1024,
    layers=3,
    width=48,
    memories=192,
    heads=3,
    steps=1000,
    weight_decay=1.0,
)
SMALL = pretraining.SCALES["smoke"].setup.with_(corpus="world:people=40,documents=400", steps=24, rows=4)
SCALES: dict[str, Sizes] = {
    "smoke": Sizes(
        24,
        48,
        (4, 8, 16),
        (0, 1),
        SMALL,
        5,
        ("base", "no weight decay", "weight decay / 4", "weight decay x 4", "ungated (GPT-2)"),
    ),
    "laptop": Sizes(256, 96, (8, 16, 32, 64, 128, 192), (0, 1, 2), BASE, 20),
    "gpu": Sizes(2048, 512, (32, 128, 512, 1024), (0, 1, 2), BASE.with_(steps=6000, rows=64), 20),
    "paper": Sizes(2048, 2048, (64, 256, 512, 1024), (0, 1, 2), BASE, 20),
}
OLMO = "allenai/OLMo-1B-hf"
OLMO_STAGES = ("step117850-tokens494B", "step369000-tokens1547B", "step738020-tokens3094B")


@dataclass(frozen=True)
class Subject:
    """A model whose stages are measured, and on what. `places` are the stages on the axis of a figure."""

    model: Pretraining | str
    revisions: tuple[str, ...]
    places: tuple[float, ...]
    axis: str
    corpora: dict[str, str]
    sizes: Sizes
    length: int
    instances: int
    dtype: str
    coefficient: str
    seed: int

    def settings(self, corpus: str | None = None, **changes: Any) -> Measured:
        """What is measured: its stages on one of its corpora, the first by default."""
        chosen = Measured(
            self.model, self.revisions, self.corpora[corpus or next(iter(self.corpora))], instances=self.instances,
            length=self.length, coefficient=self.coefficient, dtype=self.dtype, seed=self.seed,
        )  # fmt: skip
        return replace(chosen, **changes)

    def row(self, lab: Lab, corpus: str | None = None, **changes: Any) -> Row:
        return measured(lab, self.settings(corpus, **changes))


def subject(
    scale: str,
    *,
    seed: int = 0,
    model: Pretraining | str | None = None,
    corpus: str | None = None,
    instances: int | None = None,
    coefficient: str = "abs",
    dtype: str | None = None,
) -> Subject:
    """Chapter 02's model at this scale, or another: its settings, a folder (sub-folders are stages) or a hub name."""
    sizes = SCALES[scale]
    common = {
        "sizes": sizes,
        "instances": instances or sizes.instances,
        "coefficient": coefficient,
        "seed": seed,
    }
    if model is None and scale == "paper":
        model = OLMO
    if model is None or isinstance(model, Pretraining):
        base = model or pretraining.settings(scale, seed=seed, dtype=dtype)
        parts = pretraining.sources(base.setup.corpus)
        texts = {"mixture": base.setup.corpus, **parts} if len(parts) > 1 else parts
        if corpus is not None:
            texts = {corpus: corpus}
        millions = tuple(step * base.setup.rows * base.setup.length / 1e6 for step in base.steps)
        return Subject(
            base, tuple(f"step{step}" for step in base.steps), millions, "tokens read (millions)", texts,
            length=min(sizes.length, base.setup.length), dtype=dtype or base.setup.dtype, **common,
        )  # fmt: skip
    revisions = OLMO_STAGES if model == OLMO else models.revisions(model)
    steps = [re.search(r"\d+", revision) for revision in revisions]
    places = tuple(float(m.group()) if m else float(i) for i, m in enumerate(steps))
    texts = {corpus or "docstrings:limit=4000": corpus or "docstrings:limit=4000"}
    return Subject(
        model, revisions, places, "step", texts, length=sizes.length, dtype=dtype or "float32", **common
    )


# ---------------------------------------------------------------------- what drives it
@dataclass(frozen=True)
class Arm:
    """One small training run that is measured on its way, on held-out text of its own corpus."""

    setup: Setup
    points: int
    instances: int = 64
    seed: int = 0


def arms(scale: str) -> dict[str, Setup]:
    """The sweep: one factor at a time around the base."""
    base = SCALES[scale].base
    rate, decay = base.learning_rate, base.weight_decay
    return {
        "base": base,
        "no weight decay": base.with_(weight_decay=0.0),
        "weight decay / 4": base.with_(weight_decay=decay / 4),
        "weight decay x 4": base.with_(weight_decay=decay * 4),
        "steps x 2.5": base.with_(steps=round(2.5 * base.steps)),
        "rate / 2, decay x 2": base.with_(learning_rate=rate / 2, weight_decay=decay * 2),
        "width x 1/2": base.with_(width=base.width // 2, memories=base.memories // 2),
        "layers x 2": base.with_(layers=2 * base.layers),
        "docstrings": base.with_(corpus=DOCSTRINGS[scale == "smoke"]),
        "ungated (GPT-2)": base.with_(family="gpt2", memories=base.memories * 3 // 2),
    }


DOCSTRINGS = ("docstrings:limit=8000", "docstrings:networkx,limit=120")
SAME_MODEL = (
    "base", "no weight decay", "weight decay / 4", "weight decay x 4", "steps x 2.5", "rate / 2, decay x 2",
)  # fmt: skip
LIVE = "no weight decay"  # with the base from the records, the arm that answers the chapter's question


def arm(lab: Lab, setup: Setup, seed: int, *, recorded: bool = True) -> Row:
    """Train one arm and measure it on the way: layer entropies, next-token entropy and held-out loss at each point."""
    sizes = SCALES[lab.scale]
    s = Arm(setup.with_(seed=seed), sizes.points, seed=seed)

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        tok = tokenizer(lab, s.setup)
        texts = read(s.setup.corpus).part("test")
        chosen = instances(texts, tok, s.setup.length, limit=s.instances)
        held_out = blocks(lab, s.setup, s.setup.corpus, "test", limit=12_000)

        def look(model: nn.Module, step: int) -> dict[str, Any]:
            found = entropy.measure(
                model, chosen.ids, batch_size=32, pad_id=_padding(tok), length=s.setup.length, attention=True
            )
            return _stage(found) | {"loss": evaluation.loss(model, held_out)}

        shares = tuple(i / s.points for i in range(s.points + 1))
        keep = s.setup.at((0.0, 0.02, *shares))
        # an arm takes a minute or two, so it keeps no checkpoints: a killed sweep goes on with the arm it was at
        _, history, found = train(lab, s.setup, None, keep=keep, at_checkpoint=look)
        provenance.update(found)
        recipe = s.setup.recipe()
        rates = [recipe.rate(i) * recipe.weight_decay for i in range(recipe.steps)]
        return {
            "points": [point | {"time_constants": math.fsum(rates[: point["step"]])} for point in history.checkpoints],
            "parameters": found["parameters"], "layers": s.setup.layers, "memories": s.setup.memories,
            "time_constants": recipe.time_constants,
        }  # fmt: skip

    return lab.store.row(
        ARM, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


def sweep(lab: Lab) -> dict[str, list[Row]]:
    """The arms of this scale by name, recorded, one row a seed."""
    sizes = SCALES[lab.scale]
    return {
        name: [arm(lab, setup, seed) for seed in sizes.seeds]
        for name, setup in arms(lab.scale).items()
        if sizes.arms is None or name in sizes.arms
    }


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of the scale's own subject and base arm, by name; what was not computed is left out."""
    found: dict[str, Result] = {}
    about = subject(scale)
    row = store.find(MEASURED, VERSION, about.settings(**extras(about)))
    if row is not None:
        stages = row.values["stages"]
        bound = row.values["bound"]
        least = min(range(len(stages)), key=lambda i: stages[i]["entropy"])
        numbers: dict[str, tuple[Any, str]] = {
            "bound": (bound, "nats"),
            "first": (stages[0]["entropy"], "nats"),
            "last": (stages[-1]["entropy"], "nats"),
            "deficit.last": (bound - stages[-1]["entropy"], "nats"),
            "share.first": (100 * stages[0]["effective_share"], "%"),
            "share.last": (100 * stages[-1]["effective_share"], "%"),
            "share.least": (100 * stages[least]["effective_share"], "%"),
        }
        provenance = {"study": MEASURED, "digest": row.digest, "origin": row.origin, **row.provenance}
        found |= {f"entropy.{k}": Result(value, unit, provenance) for k, (value, unit) in numbers.items()}
    return found


def extras(about: Subject) -> dict[str, Any]:
    """What the chapter's headline row measures besides: attention and next-token entropy, and convergence."""
    return {"attention": True, "marks": tuple(n for n in about.sizes.marks if n < about.instances)}


def readings(about: Subject) -> tuple[str, ...]:
    """The readings of the coefficient that the subject allows: all in gated models, two in others."""
    if isinstance(about.model, Pretraining):
        family = about.model.setup.family
    else:
        family = models.family(about.model, revision=about.revisions[-1] or None)
    gated = family in LAYOUTS and bool(LAYOUTS[family].gate or LAYOUTS[family].fused)
    return entropy.COEFFICIENTS if gated else tuple(c for c in entropy.COEFFICIENTS if c != "relu-gate")
