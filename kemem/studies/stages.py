"""Chapter 03, first half: knowledge entropy at the stages of one model.

A row is the stages of chapter 02's model (or of any model, by its revisions) on one corpus with one reading of the
coefficient. Two more models of the same shape read real text through OLMo's own tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from kemem import entropy, models
from kemem.corpora import instances
from kemem.errors import BadInput
from kemem.families import LAYOUTS
from kemem.runs import Row, Store
from kemem.studies import checkpoints, findings, pool, pretraining
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import read, spread

STUDY = "entropy"
VERSION = 1
CHAPTER = "03_entropy_decay"


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
                model, chosen.ids, batch_size=lab.batch_size or 32, pad_id=padding_id(tok), coefficient=s.coefficient,
                padding=s.padding, length=s.length, attention=s.attention, next_token=s.attention,
                marks=s.marks if last else (),
            )  # fmt: skip
            stages.append(stage(found) | {"revision": revision})
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
        STUDY, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


def _load(lab: Lab, s: Measured, revision: str) -> tuple[nn.Module, Any, str]:
    if isinstance(s.model, Pretraining):
        model, tok, found = checkpoints.load(lab, s.model, int(revision.removeprefix("step")), dtype=s.dtype)
        return model, tok, found.origin
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


def padding_id(tok: Any) -> int:
    return tok.pad_token_id if tok.pad_token_id is not None else tok.eos_token_id or 0


def stage(found: entropy.Measurement) -> dict[str, Any]:
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
    """What is measured at a scale. `marks` are numbers of texts at which convergence is looked at."""

    instances: int
    length: int
    marks: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    """Of the models of chapter 02 that are measured: verdicts on them need three."""


SCALES: dict[str, Sizes] = {
    "smoke": Sizes(24, 48, (4, 8, 16)),
    "laptop": Sizes(256, 96, (8, 16, 32, 64, 128, 192), (0, 1, 2)),
    "gpu": Sizes(2048, 512, (32, 128, 512, 1024)),
    "paper": Sizes(2048, 2048, (64, 256, 512, 1024)),
}
OLMO = "allenai/OLMo-1B-hf"
PUBLISHED_STAGES = {
    OLMO: ("step117850", "step369000", "step554000", "step738020"),
    "allenai/OLMo-7B-hf": ("step118000", "step278000", "step369000", "step557000"),
}
"""As the paper's tables have them, of 7B as its figures do; each is the one branch of the hub that begins so."""
OLMO_TEXTS = {name: f"hub:{name.lower()}:limit=2048" for name in ("Dolma", "PubMed", "C4")}


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
    device: str | None = None,
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
        base = model or pretraining.settings(scale, seed=seed, dtype=dtype, device=device)
        parts = pretraining.sources(base.setup.corpus)
        texts = {"mixture": base.setup.corpus, **parts} if len(parts) > 1 else parts
        if corpus is not None:
            texts = {corpus: corpus}
        millions = tuple(step * base.setup.rows * base.setup.length / 1e6 for step in base.steps)
        return Subject(
            base, tuple(f"step{step}" for step in base.steps), millions, "tokens read (millions)", texts,
            length=min(sizes.length, base.setup.length), dtype=dtype or base.setup.dtype, **common,
        )  # fmt: skip
    revisions = PUBLISHED_STAGES.get(model) or models.revisions(model)
    places = tuple(step(revision, float(i)) for i, revision in enumerate(revisions))
    usual = OLMO_TEXTS if scale == "paper" else {"docstrings:limit=4000": "docstrings:limit=4000"}
    texts = usual if corpus is None else {corpus: corpus}
    return Subject(
        model, revisions, places, "step", texts, length=sizes.length, dtype=dtype or "float32", **common
    )


def of_all_seeds(lab: Lab) -> list[Row]:
    """The headline row of every seed of chapter 02's model at this scale, recorded; with it their other readings."""
    asked = []
    for seed in SCALES[lab.scale].seeds:
        about = subject(lab.scale, seed=seed, device=lab.card)
        asked.append(
            [
                about.settings(**extras(about)),
                *(about.settings(name) for name in about.corpora),
                *(about.settings(coefficient=name) for name in readings(about)),
            ]
        )
    # seeds innermost: neighbours in the pool then wait for different models to be trained, not for one
    jobs = [(recorded, (s,)) for each in zip(*asked, strict=True) for s in each]
    return pool.rows(lab, jobs)[: len(asked)]


def recorded(lab: Lab, s: Measured) -> Row:
    """The row of these settings, one that is recorded."""
    return measured(lab, s, recorded=True)


def extras(about: Subject) -> dict[str, Any]:
    """What the chapter's headline row measures besides: attention and next-token entropy, and convergence."""
    return {"attention": True, "marks": tuple(n for n in about.sizes.marks if n < about.instances)}


def readings(about: Subject, *, family: str | None = None) -> tuple[str, ...]:
    """The readings of the coefficient that the subject allows: all in gated models, two in others.

    family: of a model by its name, where it is known already; None: read from its configuration.
    """
    if isinstance(about.model, Pretraining):
        family = about.model.setup.family
    elif about.model in PUBLISHED_STAGES:
        family = "olmo"  # known without looking at the hub
    elif family is None:
        family = models.family(about.model, revision=about.revisions[-1] or None)
    gated = family in LAYOUTS and bool(LAYOUTS[family].gate or LAYOUTS[family].fused)
    return entropy.COEFFICIENTS if gated else tuple(c for c in entropy.COEFFICIENTS if c != "relu-gate")


def millions(row: Row) -> list[float]:
    """Millions of tokens that a model of ours had read at each of a row's stages."""
    setup = row.settings["model"]["setup"]
    return [step(revision) * setup["rows"] * setup["length"] / 1e6 for revision in row.settings["revisions"]]


def late(row: Row, *, start: float = 0.2) -> float:
    """Change of entropy from the stage at `start` of the schedule, where the paper's first one lies, to the last."""
    places = [step(revision, float(i)) for i, revision in enumerate(row.settings["revisions"])]
    first = next(i for i, place in enumerate(places) if place >= (start - 0.01) * places[-1])
    found = row.values["stages"]
    return found[-1]["entropy"] - found[first]["entropy"]


def step(revision: str, otherwise: float = 0.0) -> float:
    """The number in a revision's name, as in step1000-tokens4B."""
    number = re.search(r"\d+", revision)
    return float(number.group()) if number else otherwise


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of the scale's own subject and base arm, by name; what was not computed is left out."""
    found: dict[str, Result] = {}
    about = subject(scale)
    row = store.find(STUDY, VERSION, about.settings(**extras(about)))
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
        provenance = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
        found |= {f"entropy.{k}": Result(value, unit, provenance) for k, (value, unit) in numbers.items()}
    models = [
        store.find(STUDY, VERSION, each.settings(**extras(each)), recorded=True)
        for each in (subject(scale, seed=seed) for seed in SCALES[scale].seeds)
    ]
    rows = [model for model in models if model is not None]
    if rows and len(rows) == len(models):
        provenance = {
            "study": STUDY,
            "digest": rows[0].digest,
            "origin": rows[0].origin,
            **rows[0].provenance,
        }
        for name, start in (("late", 0.2), ("last_quarter", 0.75)):
            change = findings.change([late(row, start=start) for row in rows])
            found[f"entropy.models.{name}"] = Result(change.mean, "nats", provenance)
            if change.low is not None and change.high is not None:
                found[f"entropy.models.{name}.low"] = Result(change.low, "nats", provenance)
                found[f"entropy.models.{name}.high"] = Result(change.high, "nats", provenance)
    return found
