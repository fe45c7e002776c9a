"""Chapter 11: the same facts asked of a table and of a model that has read of them, in every phrasing.

One row: how often the model says the whole object, by kind of fact and by how often the subject is written about;
whether it answers alike in other words; what it says where it is wrong, and of subjects that it has never read of.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from kemem import corpora, models
from kemem.corpora import specs
from kemem.runs import Row, Store
from kemem.studies import factual
from kemem.studies.answering import OUTCOMES, Answered, Recorded, answered, named
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.questions import draw
from kemem.world import RELATIONS, Fact, World

STUDY, VERSION = "knowing", 1
CHAPTER = "11_knowledge_base"
GROUPS = ("told", "implied", "held_out")
QUARTILES = 4


@dataclass(frozen=True)
class Knowing:
    """Facts with one object, drawn by hash: that documents tell, that only follow from those, and of the unread."""

    model: Pretraining
    facts: int = 1200
    implied: int = 300
    held_out: int = 300
    examples: int = 2
    """Facts shown of each sort: right in all phrasings, in some, in none, and never read of."""
    seed: int = 0


SIZES = {
    "smoke": {"facts": 60, "implied": 12, "held_out": 24},
    "gpu": {"facts": 4000, "implied": 1000, "held_out": 1000},
}


def settings(scale: str, *, seed: int = 0, model: Pretraining | None = None) -> Knowing:
    """model: the scale's own unless given."""
    return Knowing(model or factual.settings(scale, seed=seed), seed=seed, **SIZES.get(scale, {}))


def run(lab: Lab, s: Knowing) -> Row:
    """The row: shares of right answers, of like ones, and of what the wrong ones are."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        model, tok = factual.model(lab, s.model)
        size, parameters = lab.batch_size or 128, sum(p.numel() for p in model.parameters())
        if not factual.has_table(s.model):
            start = time.perf_counter()
            found = recalled(s, model, tok, batch_size=size)
            provenance |= {"asking_seconds": time.perf_counter() - start, "table_seconds": 0.0}
            return {**found, "parameters": parameters}
        world, documents = factual.world(s.model), told_in(s.model)
        asked = {group: sampled(facts, getattr(s, group if group != "told" else "facts"))
                 for group, facts in grouped(world).items()}  # fmt: skip
        start = time.perf_counter()
        found = {g: ask(model, tok, world, own, batch_size=size) for g, own in asked.items()}
        provenance["asking_seconds"] = time.perf_counter() - start
        told = grouped(world)["told"]
        start = time.perf_counter()
        shares, cells = table(world, told, asked)
        provenance["table_seconds"] = time.perf_counter() - start
        return {
            "groups": {group: summary(own) for group, own in found.items()},
            "kinds": {group: by_kind(own) for group, own in found.items()},
            "quartiles": [
                {**summary(own), "documents": documents * math.fsum(frequencies(world, own)) / len(own)}
                for own in quartiles(world, found["told"])
            ],
            "documents": documents,
            "table": shares,
            "cells": cells,
            "follows": math.fsum(len(world.implied(fact)) for fact in asked["told"]) / len(asked["told"]),
            "parameters": parameters,
            "examples": examples(found, s.examples),
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def grouped(world: World) -> dict[str, list[Fact]]:
    """Facts with one object, by what a reader of the documents could know of them."""
    found = world.facts("trained"), world.facts("trained", stated=False), world.facts("held_out")
    return {
        group: [fact for fact in facts if len(fact.objects) == 1]
        for group, facts in zip(GROUPS, found, strict=True)
    }


def sampled(facts: Sequence[Fact], count: int) -> list[Fact]:
    return sorted(facts, key=lambda fact: draw(fact.subject, fact.relation))[:count]


def ask(
    model: nn.Module, tokenizer: Any, world: World, facts: Sequence[Fact], *, batch_size: int = 128
) -> list[Answered]:
    """What the model answers to facts of a world; others than the right one by their type."""
    names = of_type(world)

    def judged(fact: Fact, text: str) -> tuple[str, str]:
        answer = named(text, type_ := names[fact.row.object])
        alike = "same type" if answer in type_ else "something else"
        return answer, "true too" if true_too(world, fact, answer) else alike

    return answered(model, tokenizer, facts, judged, batch_size=batch_size)


def recalled(s: Knowing, model: nn.Module, tokenizer: Any, *, batch_size: int) -> dict[str, Any]:
    """The row's values where facts are of records: what is true of the same, nothing of what only a table tells."""
    requests = factual.source(s.model).requests(None, 0)
    every = [
        Recorded(r.subject, r.relation or "none", r.true or "", (r.text, *r.paraphrases[:2]))
        for r in requests
    ]
    names: dict[str, set[str]] = defaultdict(set)
    for fact in every:
        names[fact.relation].add(fact.object)

    def judged(fact: Recorded, text: str) -> tuple[str, str]:
        answer = named(text, names[fact.relation])
        return answer, "same type" if answer in names[fact.relation] else "something else"

    facts = sorted(every, key=lambda fact: draw(fact.subject, fact.relation))[: s.facts]
    found = answered(model, tokenizer, facts, judged, batch_size=batch_size)
    return {
        "groups": {"told": summary(found)}, "kinds": {"told": by_kind(found), "held_out": {}}, "quartiles": [],
        "documents": 0, "table": {"cells": {}, "with rules": {}}, "cells": 0, "follows": 0.0,
        "examples": examples({"told": found, "held_out": []}, s.examples),
    }  # fmt: skip


def of_type(world: World) -> dict[str, set[str]]:
    """Every string of a type that any fact has as object, and every entity of that type."""
    found: dict[str, set[str]] = defaultdict(set)
    for entity in world.entities.values():
        found[entity.type].add(entity.name)
    for split in ("trained", "held_out"):
        for fact in world.facts(split, stated=None):
            found[fact.row.object].update(fact.objects)
    return found


def true_too(world: World, fact: Fact, answer: str) -> bool:
    """Whether another answer holds: of order alone, where many are older than one is."""
    if fact.kind != "order" or answer not in world.entities:
        return False
    forward = fact.row if fact.row.chain else RELATIONS[fact.row.inverse]
    own, other = (world.fact(name, forward.chain[0]) for name in (fact.subject, answer))
    if own is None or other is None:
        return False
    apart = int(own.object) - int(other.object)
    return apart < 0 if fact.row is forward else apart > 0


def table(
    world: World, told: Sequence[Fact], asked: Mapping[str, Sequence[Fact]]
) -> tuple[dict[str, dict[str, float]], int]:
    """Shares that a table of the told facts answers rightly, by itself and with the rules of the world; its cells."""
    written = {(fact.subject, fact.relation): fact.object for fact in told}
    ruled = {(s, r): o for fact in told for s, r, o in world.implied(fact)} | written
    shares = {
        name: {
            group: _share(cells.get((f.subject, f.relation)) == f.object for f in facts)
            for group, facts in asked.items()
        }
        for name, cells in (("cells", written), ("with rules", ruled))
    }
    return shares, len(written)


def summary(answered: Sequence[Answered]) -> dict[str, Any]:
    """Shares of facts (`right`: mean over phrasings, `half` its 95 % interval) and of all answers (`outcomes`)."""
    if not answered:
        return {"facts": 0, "questions": 0}
    means = [_share(each.right) for each in answered]
    outcomes = [outcome for each in answered for outcome in each.outcomes]
    wrong = [outcome for outcome in outcomes if outcome != "right"]
    first = [all(each.right) for each in answered if each.right[0]]
    phrasings = min(len(each.right) for each in answered)
    mean = math.fsum(means) / len(means)
    return {
        "facts": len(answered),
        "questions": len(outcomes),
        "right": mean,
        "half": 1.96 * math.sqrt(math.fsum((m - mean) ** 2 for m in means) / len(means) / len(means)),
        "phrasings": [_share(each.right[k] for each in answered) for k in range(phrasings)],
        "all": _share(m == 1 for m in means),
        "some": _share(0 < m < 1 for m in means),
        "none": _share(m == 0 for m in means),
        "alike": _share(len(set(each.said)) == 1 for each in answered),
        "kept": _share(first) if first else None,
        "outcomes": {name: _share(o == name for o in outcomes) for name in OUTCOMES},
        "type_right": _share(o != "something else" for o in wrong) if wrong else None,
    }


def by_kind(answered: Iterable[Answered]) -> dict[str, dict[str, Any]]:
    kinds: dict[str, list[Answered]] = defaultdict(list)
    for each in answered:
        kinds[each.fact.kind].append(each)
    return {kind: summary(own) for kind, own in sorted(kinds.items())}


def quartiles(world: World, answered: Sequence[Answered]) -> list[list[Answered]]:
    """Facts in four equal parts, those about the subjects that are written about least first."""
    order = sorted(answered, key=lambda a: (world.frequency(a.fact.subject), a.fact.subject, a.fact.relation))
    cuts = [len(order) * k // QUARTILES for k in range(QUARTILES + 1)]
    return [order[a:b] for a, b in pairwise(cuts) if b > a]


def frequencies(world: World, answered: Iterable[Answered]) -> list[float]:
    return [world.frequency(each.fact.subject) for each in answered]


def told_in(s: Pretraining) -> int:
    """Documents of the world that the model has read of."""
    return next(corpora.world(part)[1] for part in specs(s.setup.corpus) if part.scheme == "world")


def examples(found: Mapping[str, Sequence[Answered]], count: int) -> list[dict[str, Any]]:
    told = found["told"]
    sorts = {
        "right in all": [a for a in told if all(a.right)],
        "right in some": [a for a in told if any(a.right) and not all(a.right)],
        "right in none": [a for a in told if not any(a.right)],
        "never read of": found["held_out"],
    }
    return [
        {"sort": sort, "kind": a.fact.kind, "prompt": a.fact.prompt(0), "object": a.fact.object, "said": a.said}
        for sort, own in sorts.items() for a in own[:count]
    ]  # fmt: skip


def _share(values: Iterable[bool]) -> float:
    known = list(values)
    return sum(known) / len(known)


def results(store: Store, scale: str) -> dict[str, Result]:
    """Shares in %, by group and kind of fact, and how they change with frequency."""
    if scale not in factual.SCALES:
        return {}
    row = store.find(STUDY, VERSION, settings(scale))
    if row is None:
        return {}
    origin = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
    numbers = ("cells", "parameters", "follows", "documents")
    found = {f"knowing.{name}": Result(row.values[name], "", origin) for name in numbers}
    for name in ("asking", "table"):
        found[f"knowing.seconds.{name}"] = Result(row.provenance[f"{name}_seconds"], "s", origin)
    named_rows = {f"knowing.{group}": own for group, own in row.values["groups"].items()}
    for group, kinds in row.values["kinds"].items():
        named_rows |= {f"knowing.{group}.{kind}": own for kind, own in kinds.items()}
    named_rows |= {f"knowing.quartile {k}": own for k, own in enumerate(row.values["quartiles"], start=1)}
    for name, own in named_rows.items():
        found[f"{name}.facts"] = Result(own["facts"], "", origin)
        for key in ("right", "all", "some", "none", "alike", "kept", "type_right"):
            if own.get(key) is not None:
                found[f"{name}.{key}"] = Result(100 * own[key], "%", origin)
    for how, shares in row.values["table"].items():
        for group, share in shares.items():
            found[f"knowing.table.{how}.{group}"] = Result(100 * share, "%", origin)
    return found
