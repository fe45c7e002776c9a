"""Chapter 11: causal traces of facts that the model of part 3 knows, and the layers that they suggest to edit.

One row: average indirect effects by role of the token and layer, the same with paths severed, of all facts and of
three disjoint draws of them, and how much surer an effect is with one noise for the clean-up and for its base.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kemem import models
from kemem.editing import tracing
from kemem.editing.effects import KINDS, Restored, Runs, questions, standard_noise
from kemem.editing.facts import KnownFact
from kemem.editing.places import leading
from kemem.editing.tracing import Mean, Traces
from kemem.errors import BadInput
from kemem.evaluation import encode_all, evaluating
from kemem.runs import Row, Store
from kemem.studies import factual
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.sources import Source

STUDY, VERSION = "tracing", 1
CHAPTER = "11_knowledge_base"
DRAWS = 3
PAPER_WINDOW, PAPER_LAYERS = 10, 48  # of GPT-2 XL


@dataclass(frozen=True)
class Tracing:
    """Facts of the tuning part, the first that the model says in full; reported ones are kept for the editors."""

    model: Pretraining
    facts: int = 60
    """Facts traced, in three disjoint draws one after the other."""
    samples: int = 10
    window: int = 1
    """Layers whose feed-forward or attention outputs are restored together."""
    shared: float = 0.5
    """A fact is left out if its object's first token begins more than this share of the objects of its relation."""
    paired: int = 8
    """Facts on which the noise of effects is measured, and ..."""
    noises: int = 32
    """... the samples for it."""
    seed: int = 0


SIZES = {
    "smoke": {"facts": 12, "samples": 3, "paired": 2, "noises": 8},
    "gpu": {"facts": 300},
    "paper": {"facts": 300},
}


def settings(
    scale: str, *, seed: int = 0, facts: int | None = None, window: int | None = None,
    model: Pretraining | None = None,
) -> Tracing:  # fmt: skip
    """The scale's settings. window: by default the paper's share of the layers, at least one. model: its own."""
    model = model or factual.settings(scale, seed=seed)
    sizes = {**SIZES.get(scale, {}), **({} if facts is None else {"facts": facts})}
    wide = max(1, round(PAPER_WINDOW / PAPER_LAYERS * model.setup.layers)) if window is None else window
    return Tracing(model, window=wide, seed=seed, **sizes)


def run(lab: Lab, s: Tracing) -> Row:
    """The row. Refused: fewer facts than draws, and more than the model knows of the tuning part."""
    if s.facts < DRAWS:
        raise BadInput(f"expected {DRAWS} facts to trace, or more; got {s.facts}; trace more.")

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        model, tok = factual.model(lab, s.model)
        asked, left_out = telling(tok, factual.source(s.model), s.shared, s.seed)
        known = said(model, tok, asked, batch_size=lab.batch_size or 128)
        if len(known) < s.facts:
            raise BadInput(
                f"expected at most {len(known)} facts to trace, as many as the model knows; got {s.facts}; "
                "trace fewer."
            )
        size = lab.batch_size or 128
        found = tracing.trace(
            model, tok, known[: s.facts], samples=s.samples, window=s.window, seed=s.seed, batch_size=size
        )
        return {
            "asked": len(asked), "left_out": left_out, "known": len(known), "noise": found.noise,
            "window": s.window, "layers": s.model.setup.layers,
            "whole": averages(found), "draws": [averages(part) for part in parts(found)],
            "facts": [
                {"relation": each.fact.relation, "prompt": each.fact.prompt, "attribute": each.fact.attribute,
                 "clean": each.clean, "corrupted": each.corrupted}
                for each in found.traces
            ],
            "pairing": pairing(model, tok, known[: s.paired], found.noise, s.noises, s.seed, size),
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def telling(tok: Any, source: Source, shared: float, seed: int) -> tuple[list[KnownFact], int]:
    """Known facts whose object's first token tells objects apart, and how many have another one.

    What is traced is the probability of that token. Where nearly all objects of a relation begin alike, as years of
    one century do, a model that has lost the subject still says it.
    """
    first: dict[str, Counter[int]] = defaultdict(Counter)
    start = leading(tok)
    told = list(source.told())
    for (relation, *_), span in zip(
        told, encode_all(tok, [(prompt, f" {o}") for _, prompt, o in told], start=start), strict=True
    ):
        first[relation][span.target[0]] += 1
    every, kept = source.known(seed), []
    spans = encode_all(tok, [(each.prompt, f" {each.attribute}") for each in every], start=start)
    for each, span in zip(every, spans, strict=True):
        begins = first[each.relation or ""]
        if begins[span.target[0]] <= shared * begins.total():
            kept.append(each)
    return kept, len(every) - len(kept)


def said(model: nn.Module, tok: Any, facts: Sequence[KnownFact], *, batch_size: int) -> list[KnownFact]:
    """Those whose whole object the model says, each token of it the likeliest."""
    spans = encode_all(tok, [(f.prompt, f" {f.attribute}") for f in facts], start=leading(tok))
    longest = max(len(span.target) for span in spans)
    written = greedy(model, [span.prompt for span in spans], longest, batch_size=batch_size)
    return [
        fact
        for fact, span, ids in zip(facts, spans, written, strict=True)
        if tuple(ids[: len(span.target)]) == span.target
    ]


def greedy(
    model: nn.Module, prompts: Sequence[Sequence[int]], tokens: int, *, batch_size: int = 128
) -> list[list[int]]:
    """The likeliest continuation of each, token by token; prompts of one length together, so nothing is padded."""
    lengths: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        lengths[len(prompt)].append(number)
    written: list[list[int]] = [[] for _ in prompts]
    with evaluating(model) as device:
        for numbers in lengths.values():
            for begin in range(0, len(numbers), batch_size):
                part = numbers[begin : begin + batch_size]
                given: Tensor = torch.tensor([list(prompts[number]) for number in part], device=device)
                cache, kept = None, []
                for _ in range(tokens):
                    read = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
                    cache, given = read.past_key_values, read.logits[:, -1].argmax(-1, keepdim=True)
                    kept.append(given)
                for number, row in zip(part, torch.cat(kept, 1).tolist(), strict=True):
                    written[number] = row
    return written


def parts(found: Traces) -> list[Traces]:
    """Three disjoint draws, of like sizes: facts of one do not stand in another."""
    cuts = [len(found.traces) * k // DRAWS for k in range(DRAWS + 1)]
    return [replace(found, traces=found.traces[a:b], read=b - a) for a, b in pairwise(cuts)]


def averages(found: Traces) -> dict[str, Any]:
    """Averages over facts, as plain numbers by layer."""
    return {
        "facts": len(found.traces),
        "clean": found.clean,
        "corrupted": found.corrupted,
        "effects": {kind: {role: _plain(own) for role, own in found.effects(kind).items()} for kind in KINDS},
        "severed": {name: _plain(own) for name, own in found.severed.items()},
        "gap": _plain(found.gap),
        "suggested": list(found.layers),
    }


def _plain(own: Mean) -> dict[str, Any]:
    half = None if own.half is None else own.half.tolist()
    return {"value": own.value.tolist(), "half": half, "facts": own.facts}


def pairing(
    model: nn.Module, tok: Any, facts: Sequence[KnownFact], noise: float, samples: int, seed: int, size: int
) -> dict[str, list[float]]:
    """Variance over the noise of one sample of the effect of the state at the subject's last token, by layer.

    Mean over facts. "same": the state restored and the base read the same noise; "own": each has noise of its own.
    """
    runs = Runs(model, batch_size=size)
    found: dict[str, list[Tensor]] = {"same": [], "own": []}
    with evaluating(model):
        for each in questions(tok, facts):
            clean = runs.clean(each)
            drawn = noise * standard_noise(each, 2 * samples, runs.memories.width, seed + 1)
            here, there = (runs.corrupted(clean, part) for part in drawn.split(samples))
            states = [
                Restored("state", (layer,), (each.place.last,)) for layer in range(runs.memories.layers)
            ]
            restored = runs.restored(here, states)  # [L S]
            found["same"].append((restored - here.probabilities).var(-1))
            found["own"].append((restored - there.probabilities).var(-1))
    return {name: torch.stack(rows).mean(0).tolist() for name, rows in found.items()}


def early_or_middle(layers: int) -> int:
    """How many layers have their middle in the first two thirds of the model."""
    return sum((layer + 0.5) / layers < 2 / 3 for layer in range(layers))


def contrasts(found: Mapping[str, Any]) -> dict[str, float]:
    """Claim 16: each number is above 0 where it holds. Other tokens compete in the early and middle layers alone.

    At the last token of the prompt the state of the last layer is the answer: restoring it restores all by itself.
    """
    states = {role: own["value"] for role, own in found["effects"]["state"].items()}
    own = states["last_subject"]
    cut = early_or_middle(len(own))
    best = max(own[:cut])
    mlp, attention = (found["severed"][name]["value"] for name in ("mlp", "attention"))
    upto = range(max(found["suggested"]) + 1)
    return {
        "early or middle less late": best - max(own[cut:]),
        "less best other token": best - max(max(v[:cut]) for r, v in states.items() if r != "last_subject"),
        "lost without MLP less lost without attention": sum(attention[i] - mlp[i] for i in upto) / len(upto),
    }


def results(store: Store, scale: str) -> dict[str, Result]:
    """Total and largest indirect effects in points of probability, the layers suggested, and claim 16's contrasts."""
    if scale not in factual.SCALES:
        return {}
    row = store.find(STUDY, VERSION, settings(scale))
    if row is None:
        return {}
    origin = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
    values, whole = row.values, row.values["whole"]
    numbers: dict[str, tuple[float | int, str]] = {
        "facts": (whole["facts"], ""), "asked": (values["asked"], ""), "left_out": (values["left_out"], ""),
        "known": (100 * values["known"] / values["asked"], "%"), "noise": (values["noise"], ""),
        "window": (values["window"], ""), "layers": (values["layers"], ""),
        "clean": (100 * whole["clean"], "%"), "corrupted": (100 * whole["corrupted"], "%"),
        "total": (100 * (whole["clean"] - whole["corrupted"]), "points"),
        "first": (whole["suggested"][0], ""), "last": (whole["suggested"][-1], ""),
        "gap": (100 * max(whole["gap"]["value"]), "points"),
    }  # fmt: skip
    for kind in KINDS:
        for role, own in whole["effects"][kind].items():
            best = max(range(len(own["value"])), key=own["value"].__getitem__)
            numbers[f"{kind}.{role}"] = 100 * own["value"][best], "points"
            numbers[f"{kind}.{role}.layer"] = best, ""
    for name, value in contrasts(whole).items():
        numbers[name] = 100 * value, "points"
    pairs = [
        o / s for s, o in zip(values["pairing"]["same"], values["pairing"]["own"], strict=True) if s > 1e-12
    ]
    numbers["pairing"] = min(pairs), "times"
    return {f"tracing.{name}": Result(value, unit, origin) for name, (value, unit) in numbers.items()}
