"""Chapter 14, the metrics themselves: what an edit that succeeds by them says, in other words, freely, and of others.

Every question is asked of the unedited model as well, and of the same facts. Who is near an edited fact is told by
keys, who a neighbour is by the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import editing, evaluation, models
from kemem.editing import PLAIN, Judge, Request
from kemem.editing.stepping import Beginning
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import field, grids, many, methods
from kemem.studies.association import told
from kemem.studies.bench import Bench
from kemem.studies.field import Field, Setting, Settings
from kemem.studies.lab import Lab, Result
from kemem.studies.many import NONE, Benches, Many
from kemem.studies.setup import blocks
from kemem.studies.wording import PARAPHRASES, STATED, distance, rephrased, said_first, stating

STUDY, VERSION = "critique", 2
CHAPTER = "14_field"
ROWS = {STUDY: VERSION}
NAMES = ("MEMIT", "ROME", "FT-W")
NEIGHBOURS = ("same subject", "nearest keys", "any fact")


@dataclass(frozen=True)
class Critique:
    """One edit of many facts by each method, looked at in other ways than the usual ones."""

    facts: Many
    """The row of no editor that has these facts in one block."""
    methods: tuple[tuple[str, Setting], ...]
    nearest: int = 5
    """Of each edited fact so many others by their keys, so many of any kind, and at most so many of its subject."""
    others: int = 400
    """Known facts of other subjects, at most, among which those are looked for."""
    length: int = 96
    top_k: int = 5
    seed: int = 0


SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"nearest": 3, "others": 40, "length": 48},
    "gpu": {"others": 2000},
    "paper": {"length": 100},
}


def settings(scale: str, made: Settings, *, seed: int = 0, of: Field | None = None) -> Critique:
    """At the number of facts on which values were chosen, or the nearest below the most that ROME is given.

    of: the sizes of the comparison, the scale's own unless given.
    """
    z = of or field.sizes(scale)
    count = min(z.tuning, z.one_by_one)
    facts = field.facts(z, count, seed=seed)
    return Critique(facts, tuple((name, made[name]) for name in NAMES), seed=seed, **SIZES.get(scale, {}))


def run(benches: Benches, s: Critique) -> Row:
    """The row: everything that is asked, of the unedited model and after each method's edit."""
    lab = benches.lab

    def compute(_: dict[str, Any]) -> dict[str, Any]:
        at = benches.at(s.facts)
        every = many.counterfact(at, s.facts)
        requests, others = every[: s.facts.count], around(every, s.facts.count, s.others)
        near = near_by(at, requests, others, s.facts.layers[-1], s.nearest)
        ordinary = blocks(
            lab, s.facts.model.setup, s.facts.model.setup.corpus, "test", limit=s.facts.model.held_out
        )
        ask = asker(at, requests, others, near, s)

        def look(model: nn.Module) -> dict[str, Any]:
            return {**ask(model), "nats": evaluation.loss(model, ordinary)}

        found = {NONE: look(at.model)}
        for name, (value, clamp) in s.methods:
            editor = methods.made(lab, at, name, value, s.facts.layers, clamp=clamp)
            with many.write(at, name, editor, requests).applied(at.model):
                found[name] = look(at.model)
            if lab.progress is not None:
                lab.progress(len(found) - 1, len(s.methods), f"looked at {name}")
        heard = {kind: [rephrased(at, r, others)[kind] for r in requests] for kind in PARAPHRASES}
        return {
            "facts": len(requests), "others": len(others), "methods": found,
            "distance": {kind: distance(requests, prompts) for kind, prompts in heard.items()},
            "reach": {
                kind: mean([near.reach[i, j].item() for i, j in pairs]) if pairs else None
                for kind, pairs in near.pairs.items()
            },
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def around(every: Sequence[Request], count: int, most: int) -> list[Request]:
    """Of the facts behind the first `count`: at most so many of other subjects, then all of the same subjects.

    Facts stand in turns of subjects, so those of one subject are far apart.
    """
    edited, rest = {r.subject for r in every[:count]}, every[count:]
    strangers = [r for r in rest if r.subject not in edited]
    return [*strangers[:most], *(r for r in rest if r.subject in edited)]


def asker(
    at: Bench, requests: Sequence[Request], others: Sequence[Request], near: Near, s: Critique
) -> Callable[[nn.Module], dict[str, Any]]:
    """What is asked of a model, laid out once."""
    usual = Judge(at.tok, requests, prefixed=True)
    heard = [rephrased(at, r, others) for r in requests]
    kinds = {kind: [replace(r, paraphrases=own[kind]) for r, own in zip(requests, heard, strict=True) if own[kind]]
             for kind in PARAPHRASES}  # fmt: skip
    said = {kind: Judge(at.tok, own) for kind, own in kinds.items() if own}
    # the fact that is to stay in the place of the new one, so that ES is its success against the new object
    kept = {
        kind: Judge(
            at.tok, [replace(others[j], new=others[j].true or "", true=requests[i].new) for i, j in pairs]
        )
        for kind, pairs in near.pairs.items()
        if pairs
    }
    patterns = [stating(at, r) for r in requests]

    def ask(model: nn.Module) -> dict[str, Any]:
        scores = usual(model)
        new, true = (
            editing.generated_success(model, at.tok, [replace(r, new=of(r)) for r in requests])
            for of in (lambda r: r.new, lambda r: r.true or "")
        )
        success = [value == 1 for value in scores.values["ES"]]
        texts = editing.generate(model, at.tok, requests, length=s.length, top_k=s.top_k, seed=s.seed).texts
        freely = Counter(
            said_first(pattern, text, r)
            for r, pattern, own in zip(requests, patterns, texts, strict=True)
            for text in own
        )
        return {
            **{name: scores.mean(name) for name in ("ES", "PS", "NS", "NS+", "rewrite_acc", "rewrite_tokens")},
            "neighbourhood_acc": scores.mean("neighbourhood_acc"),
            "says new": 100 * mean(new), "says true": 100 * mean(true),
            "success": sum(success), "success unsaid": sum(a and not b for a, b in zip(success, new, strict=True)),
            "texts": freely.total(), "stated": {kind: freely[kind] for kind in STATED},
            "paraphrases": {kind: _both(judge(model), "PS", "paraphrase_acc") for kind, judge in said.items()},
            "neighbours": {kind: _both(judge(model), "ES", "rewrite_acc") for kind, judge in kept.items()},
        }  # fmt: skip

    return ask


def _both(scores: editing.Scores, success: str, said: str) -> dict[str, float | None]:
    return {"success": scores.mean(success), "said": scores.mean(said)}


def mean(found: Sequence[float | int | bool]) -> float:
    return sum(found) / len(found) if found else 0.0


# ---------------------------------------------------------------------- who is near
@dataclass(frozen=True)
class Near:
    """Pairs (edited, other) by kind; reach [N O]: of what is written at an edited key, the share that another gets."""

    pairs: dict[str, list[tuple[int, int]]]
    reach: Float[Tensor, "N O"]


def near_by(
    at: Bench, requests: Sequence[Request], others: Sequence[Request], layer: int, nearest: int
) -> Near:
    """Of each edited fact: others of its subject, those with the nearest keys, any; none of them is edited.

    reach_ij = k_i^T C^-1 k_j / (k_i^T C^-1 k_i): by ROME's update for fact i alone, the share of its value at key j.
    """
    a, b = (bare_keys(at, part, layer) for part in (requests, others))
    u = torch.cholesky_solve(a.T, at.moments.factor(layer).to(a)).T
    reach = (u @ b.T) / (u * a).sum(1, keepdim=True)
    edited = {r.subject for r in requests}
    pairs: dict[str, list[tuple[int, int]]] = {kind: [] for kind in NEIGHBOURS}
    for i, r in enumerate(requests):
        own = [j for j, o in enumerate(others) if o.subject == r.subject and o.true != r.new]
        free = [j for j, o in enumerate(others) if o.subject not in edited and o.true != r.new]
        pairs["same subject"] += [(i, j) for j in own[:nearest]]
        by = sorted(free, key=lambda j: -reach[i, j].item())
        pairs["nearest keys"] += [(i, j) for j in by[:nearest]]
        turn = i * nearest % max(1, len(free))  # the next ones for each fact
        pairs["any fact"] += [(i, j) for j in (free[turn:] + free[:turn])[:nearest]]
    return Near(pairs, reach)


def bare_keys(at: Bench, requests: Sequence[Request], layer: int) -> Float[Tensor, "N M"]:
    """The keys of the requests' subjects in their bare prompts; float64."""
    of = editing.contexts(at.tok, requests, (PLAIN,))
    rows = Beginning(Memories(at.model), [c.to_subject[0] for c in of])
    return rows.coefficients(layer).double()[rows.index]


# ---------------------------------------------------------------------- rows and numbers
def finished(store: Store, scale: str) -> list[Row]:
    """The rows of a scale, one a seed, if all are there."""
    made = field.settings(store, scale)
    if not set(NAMES) <= made.keys():
        return []
    seeds = field.sizes(scale).seeds
    rows = [store.find(STUDY, VERSION, settings(scale, made, seed=seed), recorded=True) for seed in seeds]
    return [] if None in rows else [row for row in rows if row is not None]


def table(lab: Lab, made: Settings, benches: Benches, of: Field | None = None) -> list[Row]:
    """The rows, one a seed, recorded; computed as `field.table` does."""
    at, z = grids.reading(lab, benches), of or field.sizes(lab.scale)
    asked = [settings(lab.scale, made, seed=seed, of=z) for seed in z.seeds]
    return [lab.store.find(STUDY, VERSION, s, recorded=True) or run(at, s) for s in asked]


def freely(own: Mapping[str, Any]) -> dict[str, float]:
    """Shares in %: of texts that state an object, those that state the new one, and the true; of all, those that do."""
    stated = own["stated"]
    some = own["texts"] - stated["none"]
    return {
        "stated": 100 * some / own["texts"] if own["texts"] else 0.0,
        **{kind: 100 * stated[kind] / some if some else 0.0 for kind in STATED[:3]},
    }


def results(store: Store, scale: str) -> dict[str, Result]:
    """Means over seeds: `critique.MEMIT.ES`, `critique.MEMIT.freely.new`, `critique.ROME.question.said`, ..."""
    rows = finished(store, scale)
    if not rows:
        return {}
    series: dict[str, list[float | None]] = {}
    for row in rows:
        v = row.values
        found: dict[str, float | None] = {"facts": v["facts"], "others": v["others"]}
        for name, own in v["methods"].items():
            for score in ("ES", "PS", "NS", "NS+", "rewrite_acc", "rewrite_tokens", "neighbourhood_acc", "says new",
                          "says true", "nats"):  # fmt: skip
                found[f"{name}.{score}"] = own[score]
            found[f"{name}.unsaid"] = 100 * own["success unsaid"] / own["success"] if own["success"] else None
            found |= {f"{name}.freely.{kind}": share for kind, share in freely(own).items()}
            for group in ("paraphrases", "neighbours"):
                for kind, both in own[group].items():
                    found |= {f"{name}.{kind}.{which}": x for which, x in both.items()}
        for group in ("distance", "reach"):
            found |= {f"{group}.{kind}": x for kind, x in v[group].items()}
        for name, x in found.items():
            series.setdefault(name, []).append(x)
    known = {name: [x for x in each if x is not None] for name, each in series.items()}
    return told({f"critique.{n}": (mean(each), unit(n), rows[0]) for n, each in known.items() if each})


def unit(name: str) -> str:
    """Of a number for prose."""
    if name in ("facts", "others"):
        return "facts"
    return "" if name.startswith(("distance", "reach")) else "nats" if name.endswith(".nats") else "%"
