"""What a chapter would take at a scale, before any of it is done: rows, arithmetic, hours, memory, disk, downloads.

Nothing is computed, no weights are made, and no network is used but to look at what chapter 16 is given. Rows whose
settings are chosen from others are counted as if the first trial had won. FORMULAE are shown beside the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kemem.corpora import specs
from kemem.corpora.catalogue import CATALOGUE
from kemem.corpora.files import expanded
from kemem.errors import BadInput
from kemem.studies import checkpoints, contents
from kemem.studies.asking import Asked, Asking
from kemem.studies.cards import MFU, Card
from kemem.studies.lab import Lab
from kemem.studies.operations import Algebra, Moments, Part, Work, parameters, trained
from kemem.studies.pretraining import STUDY as MODELS
from kemem.studies.pretraining import Pretrained, Pretraining
from kemem.studies.setup import Setup
from kemem.studies.work import HUB, ROWS, within
from kemem.studies.work_of_own import setup_of
from kemem.world.relations import RELATIONS

STEP = 0.01
"""Seconds that an optimizer step takes at least: small models are not bound by arithmetic."""
ROW_BYTES = 30_000
FORMULAE = {
    "training": "6 N tokens: a product forward and two backward for each of N parameters, two operations each",
    "forward": "2 N tokens",
    "targets": "4 N tokens: an editor's search, forward and backward to activations alone",
    "attention": "2 L D T for each product by a parameter: 12 L D T tokens in training, 4 forward",
    "algebra": "L (M^3 / 3 + 4 M^2 n): key moments factorised and solved for n facts, in float64",
    "moments": "2 L M^2 tokens: products of keys summed over ordinary text, in float64",
    "seconds": f"of each row FLOP / (peak x MFU), with MFU = {MFU:g} taken for granted, and {STEP:g} s a step at "
    "least; the peak in training is that of its precision, elsewhere of TF32 if the card has it; reading and "
    "tokenizing text is not counted",
    "memory": "the most of any row: state 16 N bytes in training (weights, gradients, two moments in float32; 32 N in "
    "float64), 4 N forward (8 N), and activations tokens x (L (12 D + 4 M) b + 8 V) bytes of a micro-batch (forward: "
    "of 32 rows, L = 1), b = 2 in bfloat16, 4 in float32, 8 in float64",
    "disk": "of each model that is trained: stages x N x 4 bytes (8 in float64), and two states to resume from of 3 N "
    f"each; {ROW_BYTES // 1000} kB a row",
}


@dataclass
class Forecast:
    """What is left to be done. flops: by kind. seconds: on the card. memory, disk: bytes."""

    card: Card
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Study -> rows that are there, rows that are missing."""
    flops: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    disk: int = 0
    trained: list[dict[str, Any]] = field(default_factory=list)
    fetched: list[dict[str, Any]] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    """Studies of which the first trial was taken for the best."""
    unreckoned: list[str] = field(default_factory=list)
    """Studies with missing rows on models whose sizes are not known here."""

    @property
    def there(self) -> int:
        return sum(there for there, _ in self.rows.values())

    @property
    def missing(self) -> int:
        return sum(missing for _, missing in self.rows.values())

    def add(self, work: Work) -> None:
        """Work on one row or model."""
        for part in work:
            self.flops.update(part.flops)
            self.seconds += seconds(part, self.card)
            if isinstance(part, Part):
                self.memory = max(self.memory, memory(part))

    def document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "card": {
                "name": self.card.name, "bf16_tflops": self.card.half if self.card.bfloat16 else None,
                "fp32_tflops": self.card.single, "tf32_tflops": self.card.tf32, "fp64_tflops": self.card.double,
                "memory_gb": self.card.memory, "mfu": MFU,
            },
            "rows": {"there": self.there, "missing": self.missing, "by_study": self.rows},
            "flops": {**dict(self.flops), "all": sum(self.flops.values())},
            "hours": self.seconds / 3600, "memory_bytes": self.memory, "disk_bytes": self.disk,
            "fits": self.memory <= self.card.memory * 1e9, "models": self.trained, "fetch": self.fetched,
            "assumed": self.assumed, "unreckoned": self.unreckoned, "formulae": FORMULAE,
        }  # fmt: skip


def seconds(part: Part | Algebra | Moments, card: Card) -> float:
    """On a card, at the share of its peak that is taken for granted."""
    peak = card.peak(part.numbers)
    least = part.steps * STEP if isinstance(part, Part) else 0.0
    return max(sum(part.flops.values()) / (peak * MFU), least)


def memory(part: Part) -> int:
    """Bytes of weights, what training keeps beside them, and activations of a micro-batch."""
    s = part.setup
    double = 2 if s.dtype == "float64" else 1
    state = (16 if part.kind == "training" else 4) * double * parameters(s)
    number = 2 if s.precision == "bfloat16" and part.kind == "training" else 4 * double
    tokens = -(-part.tokens // part.steps) if part.steps else min(part.tokens, 32 * s.length)
    layers = s.layers if part.kind == "training" else 1  # what nothing has to be derived from is let go
    return state + tokens * (layers * (12 * s.width + 4 * s.memories) * number + 8 * s.vocabulary)


def forecast(chapters: Sequence[tuple[Lab, str]], card: Card) -> Forecast:
    """Of chapters with their labs, each row and each model counted once. Refuses a scale that a study refuses."""
    found = Forecast(card)
    rows: dict[str, Asked] = {}
    for lab, number in chapters:
        store = Asking(lab.store, STAND_INS)
        rows |= {row.digest: row for row in contents.asked(lab, number, store)}
        found.assumed = sorted({*found.assumed, *store.assumed})
    for row in rows.values():
        found.rows.setdefault(row.study, [0, 0])[row.row is None] += 1
    missing = [row for row in rows.values() if row.row is None]
    for model in to_train(chapters[0][0], missing):
        _train(found, model)
    work = [(row.study, ROWS[row.study](row.settings)) for row in missing]
    found.unreckoned = sorted({study for study, parts in work if parts is None})
    found.add(once(part for _, parts in work for part in parts or ()))
    found.disk += ROW_BYTES * len(missing)
    found.fetched = [*_models(missing), *_corpora(missing)]
    return found


def once(parts: Iterable[Part | Algebra | Moments]) -> Work:
    """All of them, and of those that share what they do the largest alone."""
    kept: Work = []
    largest: dict[Hashable, Part | Algebra | Moments] = {}
    for part in parts:
        if part.shared is None:
            kept.append(part)
        elif part.shared not in largest or sum(part.flops.values()) > sum(
            largest[part.shared].flops.values()
        ):
            largest[part.shared] = part
    return kept + list(largest.values())


def to_train(lab: Lab, missing: Iterable[Asked]) -> list[Pretraining]:
    """Models of chapter 02's kind that have to be trained for these rows, each once."""
    models: dict[Pretraining, bool] = {}
    for row in missing:
        own = {m: row.study == MODELS for m in within(row.settings) if isinstance(m, Pretraining)}
        if row.study == "inside":  # it is trained in the row itself, with passages
            continue
        for model, asked in own.items():
            models[model] = models.get(model, False) or asked
    return [
        model
        for model, asked in models.items()
        if not isinstance(model, Pretrained) and (asked or not checkpoints.there(lab, model))
    ]


def _train(found: Forecast, model: Pretraining) -> None:
    setup, part = model.setup, trained(model.setup)
    found.add([part])
    count, each = parameters(setup), 8 if setup.dtype == "float64" else 4
    found.disk += len(model.steps) * count * each + 2 * 3 * count * each
    found.trained.append(
        {
            "family": setup.family, "layers": setup.layers, "width": setup.width, "memories": setup.memories,
            "parameters": count, "tokens": setup.tokens, "flops": part.flops["training"], "seed": setup.seed,
            "hours": seconds(part, found.card) / 3600,
        }
    )  # fmt: skip


# ---------------------------------------------------------------------- what is fetched
def _models(missing: Iterable[Asked]) -> list[dict[str, Any]]:
    """Weights of others: of `Pretrained` settings, and of settings that name a model."""
    named: dict[str, tuple[Setup | None, set[str]]] = {}
    for row in missing:
        for each in within(row.settings):
            model = getattr(each, "model", row.study == MODELS and each)
            if isinstance(model, Pretrained):
                named.setdefault(model.name, (model.setup, set()))[1].update(_revisions(model, each))
        s = row.settings
        if isinstance(model := getattr(s, "model", None), str) and hasattr(s, "revisions"):
            named.setdefault(model, (HUB.get(model), set()))[1].update(s.revisions)
        if (g := getattr(s, "given", None)) and not Path(g.model).expanduser().is_dir():
            stages = g.revisions if row.study == "own_stages" else g.revisions[-1:]
            named.setdefault(g.model, (setup_of(g), set()))[1].update(stages)
    return [
        {
            "kind": "model", "name": name, "revisions": len(revisions), "licence": None,
            "bytes": None if setup is None else 4 * parameters(setup) * len(revisions),
            "note": "its size is not known here" if setup is None else "in float32, at most",
        }
        for name, (setup, revisions) in named.items()
    ]  # fmt: skip


def _revisions(model: Pretrained, of: Any) -> set[str]:
    """The stages that settings read of a model: one, those that they name, or of the model itself all."""
    if of is model:
        steps: Iterable[int] = model.steps
    elif hasattr(of, "step"):
        steps = (of.step,)
    elif hasattr(of, "revisions"):
        steps = [int(name.removeprefix("step")) for name in of.revisions]
    else:
        steps = model.steps[-1:]
    return {model.at(step) or "main" for step in steps}


def _corpora(missing: Iterable[Asked]) -> list[dict[str, Any]]:
    """Texts that are not made here: of the hub, and files of the reader's."""
    found: dict[str, dict[str, Any]] = {}
    for row in missing:
        for text in _texts(row.settings):
            for part in _specs(text):
                if part.scheme in ("hub", "files"):
                    found.setdefault(f"{part.scheme}:{part.rest}", _corpus(part.scheme, part.rest))
    return list(found.values())


def _texts(settings: Any) -> Iterable[str]:
    for each in within(settings):
        for name in ("corpus", "domains", "source"):
            value = getattr(each, name, ())
            yield from (value,) if isinstance(value, str) else value


def _specs(text: str) -> tuple[Any, ...]:
    try:
        return specs(text)
    except BadInput:
        return ()  # a domain by its short name, a folder of passages


def _corpus(scheme: str, rest: str) -> dict[str, Any]:
    if scheme == "hub":
        name, _, options = rest.partition(":")
        entry = CATALOGUE.get(name.partition("@")[0])
        limit = next((o.removeprefix("limit=") for o in options.split(",") if o.startswith("limit=")), None)
        said = entry.size if entry is not None else "its size is not known here"
        told = f"{limit} records of it are read" if limit else "read as a stream"
        note = "; ".join(part for part in (said, told) if part)
        return {
            "kind": "corpus", "name": f"hub:{name}", "bytes": entry.bytes if entry else None, "note": note,
            "licence": entry.licence if entry else None,
        }  # fmt: skip
    try:
        size = _size(expanded(rest.partition(":")[0]))
    except BadInput:
        size = None
    return {
        "kind": "files", "name": f"files:{rest}", "bytes": size, "licence": None,
        "note": "not there" if size is None else "there",
    }  # fmt: skip


def _size(place: Path) -> int | None:
    if place.is_file():
        return place.stat().st_size
    return sum(p.stat().st_size for p in place.rglob("*") if p.is_file()) if place.is_dir() else None


# ---------------------------------------------------------------------- rows that are not there yet
def _course(s: Any) -> dict[str, Any]:
    n = len(s.domains)
    zeros = [0.0] * n
    return {
        "names": list(s.domains), "before": zeros, "loss": [zeros] * n, "general": [0.0] * (n + 1),
        "task_before": [None] * n, "task": [[None] * n] * n, "added": [0] * n, "own": False, "seconds": zeros,
    }  # fmt: skip


def _hardness(s: Any) -> dict[str, Any]:
    names = list(RELATIONS)[: s.most]
    known = dict.fromkeys(names, s.count)
    return {"known": {"reported": known, "tuning": known}, "relations": {name: {} for name in names}}


STAND_INS: Mapping[str, Any] = {
    "courses": _course,
    "many_edits": lambda s: {"after": {"S": 0.0, "NM": 0.0}},
    "capacity": lambda s: {"known": s.most or 2 * max(s.counts)},
    "hardness": _hardness,
    "own_traces": lambda s: {"known": 0},  # the layers to edit are then those of the paper, in proportion
}
"""Values that stand in for those of rows from which settings are chosen: all trials alike, so that the first wins."""
