"""Chapters 13 and 14, many edits at once: one editor, one count of requests, one draw of facts; a row each.

The facts are cut into blocks of `count`; each block is written into the unedited model and scored, then all is put
back, as in section 5.2 of Meng et al. 2023. What the model said before is scored on the same requests.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kemem import editing, evaluation, models
from kemem.editing import EMMET, MEMIT, AlphaEdit, Edit, Judge, Request
from kemem.editing.projections import Projections
from kemem.editing.scores import SUCCESS, TOKENS, Scores
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.runs import Row
from kemem.studies import bench, methods
from kemem.studies.bench import Bench
from kemem.studies.lab import Lab
from kemem.studies.methods import ATTENTION, METHODS, Editor, Trained
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import blocks

STUDY, VERSION = "many_edits", 1
RECORDS = ("counterfact", "zsre")
NONE = "none"  # the method that writes nothing
MOMENTS = (
    2**33
)  # bytes that moments of all layers may take; of larger models those are measured that are asked for
SHOWN = (*SUCCESS, "NS+", "EM", "PM", "NM", "rewrite_acc", "paraphrase_acc", "neighbourhood_acc", *TOKENS)


@dataclass(frozen=True)
class Many:
    """`blocks` blocks of `count` facts, written by one editor with its setting at `value`."""

    model: Pretraining
    method: str
    value: float
    count: int
    layers: tuple[int, ...]
    clamp: float = 1.0
    """How far MEMIT and its kin may move the stream, in lengths of it."""
    blocks: int = 1
    part: str = "reported"
    records: str = "counterfact"
    """zsre: questions on entities the model has not read of; counterfact: facts that it knows."""
    relations: tuple[str, ...] = ()
    """Those that facts are taken from, as many from each; empty: all."""
    written: int = 0
    """Requests, the first ones, after which texts are generated before and after."""
    texts: int = 2000
    mend: Trained | None = None
    dtype: str | None = None
    seed: int = 0
    """Of the draw of facts and of the model's own prefixes."""

    def __post_init__(self) -> None:
        known = (NONE, *METHODS, ATTENTION)
        if self.method not in known:
            raise BadInput(f"expected a method, one of {', '.join(known)}; got {self.method!r}; choose one.")
        if self.records not in RECORDS:
            raise BadInput(f"expected records of {' or '.join(RECORDS)}; got {self.records!r}; choose one.")
        if self.count < 1 or self.blocks < 1:
            raise BadInput(f"expected facts and blocks; got {self.count} in {self.blocks} blocks; give more.")


@dataclass
class Benches:
    """Benches by what they depend on, opened once for the rows of a sweep, and what is found once for the facts."""

    lab: Lab
    kept: dict[Any, Bench] = field(default_factory=dict)
    facts: dict[Any, list[Request]] = field(default_factory=dict)
    before: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def at(self, s: Many) -> Bench:
        key = (s.model, s.texts, s.dtype, s.seed)
        setup = s.model.setup
        whole = 8 * setup.layers * setup.memories**2 <= MOMENTS  # all layers in one pass, where there is room
        layers = range(setup.layers) if whole else s.layers
        if key not in self.kept:
            self.kept[key] = bench.opened(
                self.lab, s.model, layers, texts=s.texts, dtype=s.dtype, seed=s.seed
            )
        self.kept[key].measure(layers)
        return self.kept[key]

    def requests(self, s: Many) -> list[Request]:
        """The row's requests, `blocks` times `count` of them; a larger number begins with a smaller one."""
        at = self.at(s)
        wanted = s.count * s.blocks
        key = (s.model, s.part, s.records, s.relations, s.dtype, s.seed)
        if key not in self.facts:
            self.facts[key] = zsre(at, s) if s.records == "zsre" else counterfact(at, s)
        found = self.facts[key]
        if len(found) < wanted:
            raise BadInput(
                f"expected {wanted} {s.part} facts to edit; got {len(found)}, all that the model knows; ask for fewer."
            )
        return found[:wanted]


def counterfact(at: Bench, s: Many) -> list[Request]:
    """Known facts, of all relations in a drawn order, or of the given ones by turns."""
    each = [
        bench.said(at, at.source.requests(None, s.seed, part=s.part, relation=relation))
        for relation in s.relations or (None,)
    ]
    return spread(r for turn in zip(*each, strict=False) for r in turn)


def zsre(at: Bench, s: Many) -> list[Request]:
    """Questions on entities that no document of the model named; their answers are true, and new to it."""
    if s.relations:
        raise BadInput("expected questions of all relations; got some named; leave them out.")
    return spread(editing.without_conflicts(at.source.questions(s.seed), keep="first"))


def spread(requests: Iterable[Request]) -> list[Request]:
    """Each subject once, in the order given, then those with more than one fact again, and so on; numbered anew.

    Requests of one subject have one key, and an edit can only write the mean of what they ask there. In CounterFact
    nine subjects of ten have a single request.
    """
    turns: dict[str, int] = defaultdict(int)
    ordered = []
    for r in requests:
        ordered.append((turns[r.subject], r))
        turns[r.subject] += 1
    return [replace(r, case_id=i) for i, (_, r) in enumerate(sorted(ordered, key=lambda pair: pair[0]))]


def run(benches: Benches, s: Many) -> Row:
    """The row: scores before and after of all facts together and by relation, what else an edit moves, and seconds."""
    lab = benches.lab

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at, requests = benches.at(s), benches.requests(s)
        provenance["moments"] = {"tokens": at.moments.tokens}
        editor = (
            None
            if s.method == NONE
            else methods.made(lab, at, s.method, s.value, s.layers, clamp=s.clamp, of=s.mend)
        )
        after = Found()
        norms: dict[str, float] = defaultdict(float)
        seconds: dict[str, float] = defaultdict(float)
        for number in range(s.blocks):
            own = requests[number * s.count : (number + 1) * s.count]
            edit = Edit({}) if editor is None else write(at, s.method, editor, own)
            for name, size in edit.norms.items():
                norms[name] += size / s.blocks
            for phase, spent in edit.seconds.items():
                seconds[phase] += spent
            with edit.applied(at.model):
                look(lab, at, s, own, after)
            if lab.progress is not None:
                lab.progress(number + 1, s.blocks, f"{s.method}, {s.count} facts")
        weights = dict(at.model.named_parameters())
        whole = math.hypot(*(weights[name].detach().double().norm().item() for name in norms), 0.0)
        return {
            "facts": len(requests), "before": unedited(benches, s), "after": after.told(), "norms": dict(norms),
            "norm": math.hypot(*norms.values(), 0.0) / whole if whole else 0.0, "seconds": dict(seconds),
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def look(lab: Lab, at: Bench, s: Many, requests: Sequence[Request], found: Found) -> None:
    """Adds the scores of a block to what was found, and after the first one what other text is like by now."""
    first = not found.requests
    judge = Judge(at.tok, requests, batch_size=at.read, prefixed=s.records == "counterfact")
    found.add(requests, judge(at.model))
    if first:
        ordinary = blocks(lab, s.model.setup, s.model.setup.corpus, "test", limit=s.model.held_out)
        found.nats = evaluation.loss(at.model, ordinary)
        found.texts = texts(at, requests[: s.written])


def unedited(benches: Benches, s: Many) -> dict[str, Any]:
    """What the unedited model makes of the row's requests, once for all editors that they are given to."""
    at, requests = benches.at(s), benches.requests(s)
    key = (s.model, s.part, s.records, s.relations, s.dtype, s.seed, s.texts, s.count, s.blocks, s.written)
    if key not in benches.before:
        found = Found()
        for begin in range(0, len(requests), s.count):
            look(benches.lab, at, s, requests[begin : begin + s.count], found)
        benches.before[key] = found.told()
    return benches.before[key]


def write(at: Bench, name: str, editor: Editor, requests: Sequence[Request]) -> Edit:
    """One block's edit: at once, or where the editor takes one request, one after another."""
    if name in METHODS and METHODS[name].one_by_one:
        return editing.in_batches(editor, at.model, at.tok, requests, at.moments, 1, templates=at.templates)
    if isinstance(editor, MEMIT | EMMET | AlphaEdit | Projections):
        z, seconds = targets(at, editor, requests)
        edit = editor(
            at.model, at.tok, requests, at.moments, templates=at.templates, targets=z, batch_size=at.requests
        )
        return replace(edit, seconds={**edit.seconds, "values": seconds})
    return editor(at.model, at.tok, requests, at.moments, templates=at.templates)


def targets(
    at: Bench, editor: MEMIT | EMMET | AlphaEdit | Projections, requests: Sequence[Request]
) -> tuple[Tensor, float]:
    """Target vectors of these requests, those found before not again, and the seconds that all of them took."""
    keys = [(replace(r, case_id=0), editor.layers[-1], editor.search) for r in requests]
    fresh = {key: r for key, r in zip(keys, requests, strict=True) if key not in at.targets}
    if fresh:
        of = editing.contexts(at.tok, list(fresh.values()), at.templates)
        start = time.perf_counter()
        found = editing.values(
            Memories(at.model), of, editor.layers[-1], editor.search, batch_size=at.requests
        )
        each = (time.perf_counter() - start) / len(fresh)
        at.targets.update({key: (z, each) for key, z in zip(fresh, found.z, strict=True)})
    both = [at.targets[key] for key in keys]
    return torch.stack([z for z, _ in both]), math.fsum(seconds for _, seconds in both)


def texts(at: Bench, requests: Sequence[Request]) -> dict[str, Any] | None:
    """GE and RS of what the model writes now, on the subjects of these requests; None where none are asked for."""
    if not requests:
        return None
    found = editing.generate(
        at.model, at.tok, requests, references=at.source.references(requests), batch_size=at.read
    )
    return found.summary()


@dataclass
class Found:
    """Scores of all blocks, in the order of their requests; text as it is after the first."""

    requests: list[Request] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=lambda: defaultdict(list))
    nats: float | None = None
    texts: dict[str, Any] | None = None

    def add(self, requests: Sequence[Request], scores: Scores) -> None:
        self.requests += requests
        for name, own in scores.values.items():
            self.values[name] += own

    def told(self) -> dict[str, Any]:
        """Averages with intervals, the same by relation, nats a token of ordinary text, GE and RS."""
        whole = self._scores(range(len(self.requests))).summary()
        by: dict[str, list[int]] = defaultdict(list)
        for number, r in enumerate(self.requests):
            by[r.relation or ""].append(number)
        relations = {}
        for name, numbers in sorted(by.items()):
            own = self._scores(numbers)
            relations[name] = {
                "facts": len(numbers),
                "S": own.S,
                **{score: own.mean(score) for score in SUCCESS},
            }
        return {
            "S": whole["S"], "S_tokens": whole["S_tokens"], **{name: whole[name] for name in SHOWN},
            "interval": {name: whole["interval"].get(name) for name in SHOWN}, "relations": relations,
            "nats": self.nats, "texts": self.texts,
        }  # fmt: skip

    def _scores(self, numbers: Sequence[int]) -> Scores:
        values = {name: tuple(own[i] for i in numbers) for name, own in self.values.items()}
        return Scores(tuple(self.requests[i].case_id for i in numbers), values)
