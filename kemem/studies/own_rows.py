"""Chapter 16, on what the reader brings: entropy along the stages, where facts are looked up, an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kemem import editing, entropy, models
from kemem.corpora import instances
from kemem.editing import MEMIT, Judge, tracing
from kemem.editing.effects import Runs, questions
from kemem.editing.places import leading
from kemem.evaluation import Targets, evaluating
from kemem.models import MASKED
from kemem.runs import Row, Store
from kemem.spans import Span
from kemem.studies.lab import Lab, Result
from kemem.studies.own import Given, given
from kemem.studies.stages import padding_id, stage, step
from kemem.studies.tracing import PAPER_LAYERS, PAPER_WINDOW, averages, greedy

STAGES, TRACES, EDITS = "own_stages", "own_traces", "own_edits"
ROWS = {STAGES: 2, TRACES: 1, EDITS: 1}
CHAPTER = "16_your_own"
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Weights that are tried, in memories of a layer: at 1 an ordinary key gets half of what it lacks (chapter 12)."""
PUBLISHED = (3, 8, 28)  # the layers that Meng et al. 2023 edit in GPT-J, first and last, of how many
SHOWN = ("ES", "PS", "NS", "S", "rewrite_tokens", "paraphrase_tokens", "locality_tokens", "S_tokens")
WRITTEN, WORDS = 4, 8  # requests whose prompts are gone on with, and by how many tokens


@dataclass(frozen=True)
class _Of:
    """Settings that know what they are of by its content. given: the `Given`, in no digest: a forecast counts it."""

    given: InitVar[Any] = field(kw_only=True)

    def __post_init__(self, given: Any) -> None:
        object.__setattr__(self, "given", given)


@dataclass(frozen=True)
class Stages(_Of):
    """What was measured: of each revision its name and what identifies it."""

    models: tuple[tuple[str, str], ...]
    texts: str
    length: int
    dtype: str


@dataclass(frozen=True)
class Looked(_Of):
    model: str
    facts: str
    samples: int
    window: int
    dtype: str
    seed: int


@dataclass(frozen=True)
class Written(_Of):
    model: str
    requests: str
    texts: str
    layers: tuple[int, ...]
    weights: tuple[float, ...]
    length: int
    dtype: str
    seed: int


def stages_of(g: Given) -> Stages:
    each = tuple(zip(g.revisions, g.identities, strict=True))
    return Stages(each, g.digest(g.texts), g.length, g.dtype, given=g)


def looked_of(g: Given) -> Looked:
    window = max(1, round(PAPER_WINDOW / PAPER_LAYERS * g.outline.layers))
    facts = g.digest([asdict(fact) for fact in g.facts])
    return Looked(g.identities[-1], facts, g.samples, window, g.dtype, g.seed, given=g)


def written_of(g: Given, chosen: Sequence[int]) -> Written:
    weights = tuple(share * g.outline.count for share in SHARES) if g.weight is None else (float(g.weight),)
    requests = g.digest([asdict(request) for request in g.requests])
    return Written(
        g.identities[-1], requests, g.digest(g.texts), tuple(chosen), weights, g.length, g.dtype, g.seed, given=g
    )  # fmt: skip


def entropies(lab: Lab, g: Given) -> Row:
    """At each revision the entropy of every layer, of attention and of the next token, and the loss on the texts."""
    s = stages_of(g)

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        found = []
        for i, revision in enumerate(g.revisions):
            net, tok = opened(lab, g, i)
            chosen = instances(g.texts, tok, g.length)
            measured = entropy.measure(
                net, chosen.ids, batch_size=lab.batch_size or 32, pad_id=padding_id(tok), attention=True
            )
            own = stage(measured) | {"revision": revision}
            if g.family not in MASKED and (nats := text_loss(net, chosen.ids)) is not None:
                own["loss"] = nats
            found.append(own)
            _tell(lab, i + 1, len(g.revisions), f"entropy of {revision or g.model}")
        layers, memories = measured.usage.shape
        return {"stages": found, "layers": layers, "memories": memories, "bound": measured.bound}

    return _row(lab, STAGES, s, compute)


def text_loss(net: nn.Module, texts: Sequence[Sequence[int]]) -> float | None:
    """Nats a token of a causal model on texts as token ids, over all tokens but the first of each; None without any."""
    spans = [Span(tuple(ids), 1) for ids in texts if len(ids) > 1]
    if not spans:
        return None
    nats = -Targets(spans, batch_size=32)(net, mean=False).sum()
    return float(nats) / sum(len(span.target) for span in spans)


def traced(lab: Lab, g: Given) -> Row | None:
    """The facts that the last revision knows, and where it looks them up; None where nothing can be traced."""
    if g.untraceable:
        return None
    s = looked_of(g)

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        net, tok = opened(lab, g, -1)
        size = lab.batch_size or 128
        runs = Runs(net, batch_size=size)
        with evaluating(net):
            clean = [runs.clean(each) for each in questions(tok, g.facts, longest=g.longest)]
        known = [each.question.fact for each in clean if each.known]
        asked = [
            {"prompt": c.question.fact.prompt, "true": c.question.fact.attribute, "p": c.probability, "known": c.known}
            for c in clean
        ]  # fmt: skip
        if not known:
            return {"asked": asked, "known": 0}
        found = tracing.trace(
            net, tok, known, samples=s.samples, window=s.window, seed=s.seed, batch_size=size, progress=lab.progress
        )  # fmt: skip
        return {"asked": asked, "known": len(known), "noise": found.noise, **averages(found)}

    return _row(lab, TRACES, s, compute)


def layers(g: Given, row: Row | None) -> tuple[int, ...]:
    """Those to edit: as asked; as traced; else where GPT-J's are, in proportion."""
    if g.layers is not None:
        return g.layers
    if row is not None and row.values["known"]:
        return tuple(row.values["suggested"])
    first, last, of = PUBLISHED
    count = g.outline.layers
    return tuple(
        range(min(count - 1, round(first * count / of)), min(count - 1, round(last * count / of)) + 1)
    )


def edited(lab: Lab, g: Given, chosen: Sequence[int]) -> Row | None:
    """All requests written by MEMIT into the last revision, once for each weight; None where it cannot be edited.

    Target vectors do not depend on the weight, and are found once.
    """
    if g.uneditable:
        return None
    s = written_of(g, chosen)

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        net, tok = opened(lab, g, -1)
        rows = editing.text_rows(tok, g.texts, len(g.texts), g.length)
        moments = editing.key_moments(net, rows, s.layers, batch_size=lab.batch_size or 16)
        judge, templates = Judge(tok, g.requests), editing.sampled(net, tok, seed=s.seed)
        before, said = judge(net).summary(), _goes_on(net, tok, g)
        tried: list[dict[str, Any]] = []
        targets: Tensor | None = None
        for i, weight in enumerate(s.weights):
            made = MEMIT(s.layers, weight=weight)(
                net, tok, g.requests, moments, templates=templates, targets=targets
            )
            targets = made.notes["targets"]
            with made.applied(net):
                scores = judge(net).summary()
                tried.append({"weight": weight, **_scores(scores), "written": _goes_on(net, tok, g)})
            _tell(lab, i + 1, len(s.weights), f"edits with weight {weight:.3g}")
        return {
            "requests": len(g.requests), "tokens": moments.tokens, "memories": g.outline.count,
            "before": _scores(before), "said": said, "tried": tried,
        }  # fmt: skip

    return _row(lab, EDITS, s, compute)


def place(revision: str, otherwise: float) -> float:
    """Where a stage stands on the axis of a figure: the number in its name, else its place in the list."""
    return step(revision, otherwise)


def headline(row: Row) -> tuple[str, ...]:
    """The scores that these requests have prompts for: successes, or of zsRE shares of tokens."""
    own = [
        name
        for name in SHOWN
        if all(each[name] is not None for each in (row.values["before"], *row.values["tried"]))
    ]
    return tuple(own if "ES" not in own else [name for name in own if not name.endswith("tokens")])


def best(row: Row) -> dict[str, Any]:
    """What was tried with the highest score S (of zsRE records S_tokens), then efficacy; of equals the heaviest."""

    def order(each: dict[str, Any]) -> tuple[float, float]:
        names = (("S", "S_tokens"), ("ES", "rewrite_tokens"))
        return tuple(next((v for name in own if (v := each[name]) is not None), 0.0) for own in names)

    return max(reversed(row.values["tried"]), key=order)


def opened(lab: Lab, g: Given, stage: int) -> tuple[nn.Module, Any]:
    """A stage: the sub-folder, or of the hub the very commit that identifies it."""
    revision = g.revisions[stage] if Path(g.model).expanduser().is_dir() else g.identities[stage]
    return models.load(g.model, revision=revision or None, device=lab.device, dtype=g.dtype)


def _goes_on(net: nn.Module, tok: Any, g: Given) -> list[str]:
    """What the model writes after the prompts of the first requests."""
    start = leading(tok)
    prompts = [(*start, *tok(r.text, add_special_tokens=False)["input_ids"]) for r in g.requests[:WRITTEN]]
    return [tok.decode(ids, skip_special_tokens=True) for ids in greedy(net, prompts, WORDS)]


def _scores(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary.get(name) for name in SHOWN}


def _tell(lab: Lab, done: int, total: int, message: str) -> None:
    if lab.progress:
        lab.progress(done, total, message)


def _row(lab: Lab, study: str, s: Any, compute: Any) -> Row:
    return lab.store.row(study, ROWS[study], s, compute, device=models.named_device(lab.device).type)


def results(store: Store, scale: str) -> dict[str, Result]:
    """`own.*`, of the example alone: shares of memories, first and last; facts known; scores of the edit."""
    if store.records is None or not (store.records / STAGES).is_dir():
        return {}
    lab = Lab(scale=scale, store=store, root=store.records.parents[1])
    g = given(lab)
    found: dict[str, tuple[float, str, Row]] = {}
    if row := store.find(STAGES, ROWS[STAGES], stages_of(g)):
        for name, one in (("first", row.values["stages"][0]), ("last", row.values["stages"][-1])):
            found[f"share.{name}"] = (100 * one["effective_share"], "%", row)
    if row := store.find(TRACES, ROWS[TRACES], looked_of(g)):
        found |= {"known": (row.values["known"], "", row), "asked": (len(row.values["asked"]), "", row)}
        if edit := store.find(EDITS, ROWS[EDITS], written_of(g, layers(g, row))):
            kept = best(edit)
            found |= {
                f"{name}.before": (edit.values["before"][name], "%", edit) for name in ("ES", "PS", "NS")
            }
            found |= {f"{name}.after": (kept[name], "%", edit) for name in ("ES", "PS", "NS")}
    return {
        f"own.{name}": Result(
            value, unit, {"study": row.study, "digest": row.digest, "origin": row.origin, **row.provenance}
        )
        for name, (value, unit, row) in found.items()
    }
