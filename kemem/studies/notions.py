"""Chapter 15: three notions of where knowledge lives, measured on the memories of one stage, over draws of the data.

Kim et al. count how much a memory works, Ke et al. how much the loss changes with it, Meng et al. read it at the
subject of a fact and write to it. One row: how the notions agree with each other, and how far each with itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kemem import entropy, models
from kemem.continual.importance import Measuring, domain_importance, general_importance
from kemem.corpora import Blocks
from kemem.editing import MEMIT, Request, Search
from kemem.memory import Memories
from kemem.objective import causal, mix
from kemem.runs import Row
from kemem.studies import agreement, many
from kemem.studies.bench import Bench
from kemem.studies.checkpointed import MIXTURE, Compared, Stages
from kemem.studies.critique import bare_keys
from kemem.studies.lab import Lab
from kemem.studies.looking import rounded

STUDY, VERSION = "notions", 1
NOISE = 0.1  # the share of a sublayer's output that is dropped for DAS's proxy: the model has no dropout of its own

Found = dict[str, Float[Tensor, "S L M"]]


@dataclass(frozen=True)
class Notions:
    """What is measured at one stage. weight, clamp: of MEMIT, which writes a draw of facts into one layer at a time."""

    of: Compared
    step: int
    weight: float = 10.0
    clamp: float = 1.0
    share: float = 0.1
    """Of a layer's memories: its top ones."""
    kept: bool = False
    """Whether the measures of every memory are kept, for a picture."""
    seed: int = 0


def measured(stages: Stages, s: Notions) -> Found:
    """Notion -> a number a memory for every draw, in float64 on the CPU.

    usage          mean |c|, of the model's own mixture of text (Kim et al. 2025, eq. 2)
    contribution   usage |v|: the length of what a memory adds to the stream
    general        DAS's importance for general knowledge, on the mixture: by the divergence of two passes with noise
    loss           the same by the loss on the mixture
    loss, NAME     the same by the loss on a part of it
    key            mean |k| at the last token of a fact's subject, over the facts of the draw
    key, centred   the same of k less its mean over these facts: what tells them apart
    key, whitened  root mean square of C^-1 k, C the moment of ordinary keys: what MEMIT makes of a key
    update         |column of Delta|, MEMIT writing those facts into this layer alone
    written        update x key: the length of what the changed column adds at the subjects
    """
    at = stages.bench(s.step)
    texts = {name: stages.rows(name)[:-1] for name in stages.sources}
    found: dict[str, list[Tensor]] = {}
    for draw, facts in enumerate(stages.drawn()):
        own = of_text(at, {name: rows[draw] for name, rows in texts.items()}, mix(s.seed, draw) >> 1)
        own |= of_facts(at, facts, s.weight, s.clamp)
        for name, values in own.items():
            found.setdefault(name, []).append(values.detach().cpu().double())
        if stages.lab.progress is not None:
            stages.lab.progress(draw + 1, s.of.draws, f"notions at step {s.step}")
    return {name: torch.stack(each) for name, each in found.items()}


def of_text(at: Bench, texts: Mapping[str, Blocks], seed: int) -> dict[str, Float[Tensor, "L M"]]:
    """The notions of Kim et al. and Ke et al. on rows of the mixture and, where it is one, of its parts."""
    own = texts[MIXTURE]
    usage = entropy.measure(at.model, own, length=own.length, next_token=False).usage
    how = Measuring(len(own), seed=seed)
    found = {
        "usage": usage,
        "contribution": usage * lengths(at),
        "general": general_importance(at.model, own, noise=NOISE, how=how).intermediate,
        "loss": domain_importance(at.model, own, causal, how).intermediate,
    }
    parts = {name: rows for name, rows in texts.items() if name != MIXTURE}
    if len(parts) > 1:
        found |= {
            f"loss, {name}": domain_importance(
                at.model, rows, causal, Measuring(len(rows), seed=seed)
            ).intermediate
            for name, rows in parts.items()
        }
    return found


def of_facts(
    at: Bench, facts: Sequence[Request], weight: float, clamp: float
) -> dict[str, Float[Tensor, "L M"]]:
    """The notions of Meng et al.: keys of the facts, and what MEMIT adds to the value of each memory."""
    layers = range(Memories(at.model).layers)
    keys = torch.stack([bare_keys(at, facts, layer) for layer in layers]).cpu()  # [L N M]
    moments = torch.stack([at.moments[layer] for layer in layers]).cpu()
    key = keys.abs().mean(1)
    update = torch.stack([columns(at, facts, layer, weight, clamp) for layer in layers]).cpu()
    return {
        "key": key,
        "key, centred": (keys - keys.mean(1, keepdim=True)).abs().mean(1),
        "key, whitened": torch.linalg.solve(moments, keys.mT).square().mean(-1).sqrt(),
        "update": update,
        "written": update * key,
    }


def columns(
    at: Bench, facts: Sequence[Request], layer: int, weight: float, clamp: float
) -> Float[Tensor, " M"]:
    """|what is added to a memory's value|, of a layer that MEMIT writes these facts into by itself."""
    memories = Memories(at.model)
    before = memories.values(layer).double().clone()
    edit = many.write(at, "MEMIT", MEMIT((layer,), weight, Search(clamp=clamp)), facts)
    with edit.applied(at.model):
        return (memories.values(layer).double() - before).norm(dim=0)


def lengths(at: Bench) -> Float[Tensor, "L M"]:
    """|v| of every memory."""
    memories = Memories(at.model)
    return torch.stack(
        [memories.values(layer).double().norm(dim=0) for layer in range(memories.layers)]
    ).cpu()


def run(stages: Stages, s: Notions, recorded: bool = False) -> Row:
    """The row: agreement of every two notions, reliability of each, what lies in which layer."""
    lab: Lab = stages.lab

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        stages.say(provenance)
        found = measured(stages, s)
        values: dict[str, Any] = {
            "names": list(found),
            "reliability": {name: agreement.reliability(own) for name, own in found.items()},
            "pairs": [pair(found, a, b, s.share) for a, b in combinations(found, 2)],
            "top": {name: agreement.shared(own, own, s.share) for name, own in found.items()},
            "layers": by_layer(found),
            "entropy": entropy.layer_entropy(found["usage"].mean(0)).tolist(),
            "facts": s.of.draws * s.of.subjects,
        }
        if s.kept:
            values["units"] = {
                name: rounded(own.mean(0) / own.mean((0, 2))[:, None]) for name, own in found.items()
            }
        return values

    place = models.named_device(lab.device).type
    return lab.store.row(STUDY, VERSION, s, compute, recorded=recorded, device=place)


def pair(found: Found, a: str, b: str, share: float) -> dict[str, Any]:
    own = asdict(agreement.agreement(found[a], found[b]))
    return {"a": a, "b": b, **own, "shared": agreement.shared(found[a], found[b], share)}


def by_layer(found: Found) -> dict[str, list[float]]:
    """Of each notion the share of its sum over all memories that lies in each layer, mean over draws."""
    shares = {}
    for name, own in found.items():
        sums = own.sum(-1)  # [S L]
        shares[name] = (sums / sums.sum(-1, keepdim=True)).mean(0).tolist()
    return shares


def of_pair(row: Row, a: str, b: str) -> dict[str, Any]:
    """What a row has of two notions, in whichever order."""
    return next(each for each in row.values["pairs"] if {each["a"], each["b"]} == {a, b})


def given(row: Row, a: str, b: str, third: str) -> float | None:
    """The corrected correlation of two notions with what both share with a third taken out, mean over layers."""
    pairs = (of_pair(row, *names)["layers"] for names in ((a, b), (a, third), (b, third)))
    found = [
        None if None in own else agreement.partial(*own) for own in zip(*pairs, strict=True)
    ]  # a layer at a time: the partial of mean correlations is not the mean of partial ones
    return None if None in found else math.fsum(v for v in found if v is not None) / len(found)
