"""Chapter 15: the top memories by each notion are silenced, and what the model loses by it is measured.

That two measures agree does not say that either is right. A memory in which something lives should be missed. One row:
of one stage, by notion and draw, what is lost on text of each kind and on facts that the model said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kemem import editing, evaluation, models, trace
from kemem.corpora import Blocks
from kemem.editing import Request
from kemem.evaluation import evaluating
from kemem.memory import Memories
from kemem.objective import mix
from kemem.runs import Row
from kemem.studies import agreement, notions
from kemem.studies.bench import Bench
from kemem.studies.checkpointed import MIXTURE, Stages, knowing
from kemem.studies.notions import Found, Notions

STUDY, VERSION = "silencing", 1
WAYS = ("zero", "mean")
"""What a silenced coefficient becomes: nothing, or its own mean over text, which leaves what is always there."""
RANDOM, LEAST = "random", "usage, least"
RATIOS = (("loss, world", "loss, docstrings"), ("loss, docstrings", "loss, world"), ("key", "usage"))
"""A memory's share in one measure over its share in another: what is special to one of them."""


@dataclass(frozen=True)
class Silenced:
    """How the notions were measured, and how much is silenced: the share of each layer's memories, by each draw."""

    of: Notions
    share: float = 0.1
    facts: int = 160
    """Of those the stage knows, at most; none of a subject by which keys were measured."""
    seed: int = 0


@contextmanager
def silenced(
    model: nn.Module, which: Bool[Tensor, "L M"], fill: Float[Tensor, "L M"] | None = None
) -> Iterator[None]:
    """Within the block the coefficients of these memories are `fill`, 0 by default, at every token."""
    memories = Memories(model)

    def change(layer: int) -> Callable[[Tensor], Tensor]:
        chosen = which[layer]
        value = torch.zeros(len(chosen)) if fill is None else fill[layer]

        def changed(c: Tensor) -> Tensor:
            return torch.where(chosen.to(c.device), value.to(c), c)

        return changed

    with trace.replace(
        model, {memories.down_path(layer): change(layer) for layer in range(memories.layers)}, side="input"
    ):
        yield


def means(model: nn.Module, rows: Blocks, *, batch_size: int = 32) -> Float[Tensor, "L M"]:
    """The mean coefficient of every memory over all tokens of some rows, with its sign."""
    memories = Memories(model)
    sums = torch.zeros(memories.layers, memories.count, dtype=torch.float64)

    def add(layer: int, c: Tensor) -> None:
        sums[layer] += c.sum((0, 1), dtype=torch.float64).cpu()

    with evaluating(model) as device, memories.coefficients(add):
        for part in torch.arange(len(rows)).split(batch_size):
            model(input_ids=rows.batch(part)["input_ids"].to(device), use_cache=False)
    return sums / rows.tokens


def chosen(found: Found, share: float, seed: int) -> dict[str, Bool[Tensor, "S L M"]]:
    """What is silenced in every draw: the top of each notion, of ratios of two, the least used, and random ones."""
    sets = {name: agreement.top(own, share) for name, own in found.items()}
    for a, b in RATIOS:
        if a in found and b in found:
            sets[f"{a} / {b}"] = agreement.top(relative(found[a]) / relative(found[b]), share)
    sets[LEAST] = agreement.top(-found["usage"], share)
    generator = torch.Generator().manual_seed(mix(seed, 3) >> 1)
    dealt = torch.rand(found["usage"].shape, generator=generator, dtype=torch.float64)
    return {**sets, RANDOM: agreement.top(dealt, share)}


def relative(own: Tensor) -> Tensor:
    """In units of a layer's mean; a memory that is never used stays finite."""
    scaled = own / own.mean(-1, keepdim=True)
    return scaled.clamp(min=1e-6)


def run(stages: Stages, s: Silenced, recorded: bool = False) -> Row:
    """The row: by way and set a list over draws of what is lost; the same of whole layers."""
    lab = stages.lab

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        stages.say(provenance)
        at = stages.bench(s.of.step)
        found = notions.measured(stages, s.of)
        sets = chosen(found, s.share, s.seed)
        ask = Ask(stages, at, s)
        texts = stages.rows(MIXTURE)[:-1]
        fills = [means(at.model, rows) for rows in texts]
        lost: dict[str, dict[str, list[dict[str, float]]]] = {way: {} for way in WAYS}
        for number, (name, masks) in enumerate(sets.items()):
            for draw, which in enumerate(masks):
                for way, fill in zip(WAYS, (None, fills[draw]), strict=True):
                    with silenced(at.model, which, fill):
                        lost[way].setdefault(name, []).append(ask(at.model))
            if lab.progress is not None:
                lab.progress(number + 1, len(sets), f"silenced by {name} at step {s.of.step}")
        share = {
            name: [held(found["contribution"][draw], which) for draw, which in enumerate(masks)]
            for name, masks in sets.items()
        }
        return {
            "before": ask.before, "facts": len(ask.facts), "lost": lost, "contribution": share,
            "layers": whole_layers(at, ask, fills[0]),
        }  # fmt: skip

    place = models.named_device(lab.device).type
    return lab.store.row(STUDY, VERSION, s, compute, recorded=recorded, device=place)


class Ask:
    """What is asked of a model, laid out once: the loss on each text, and which facts it says; less what it was."""

    def __init__(self, stages: Stages, at: Bench, s: Silenced) -> None:
        parts = [name for name in stages.sources if name != MIXTURE]
        self.texts = {name: stages.rows(name)[-1] for name in parts}
        taken = {r.subject for draw in stages.drawn() for r in draw}
        free = [r for r in stages.asked("reported", s.seed) if r.subject not in taken]
        own = knowing(at.model, at.tok, free) if stages.of.known else free
        self.facts = tuple(replace(r, new=r.true or "") for r in own[: s.facts])
        self.tok = at.tok
        self.before: dict[str, float] = {}
        self.before = self(at.model)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Nats a token by text, and the share of facts said, less what they were before."""
        now = {name: evaluation.loss(model, rows) for name, rows in self.texts.items()}
        now["facts"] = said(model, self.tok, self.facts)
        return {name: value - self.before.get(name, 0.0) for name, value in now.items()}


def said(model: nn.Module, tok: Any, facts: Sequence[Request]) -> float:
    """Share of the requests whose object the model says by itself; 0 of none."""
    found = editing.generated_success(model, tok, facts) if facts else ()
    return sum(found) / len(found) if found else 0.0


def held(contribution: Float[Tensor, "L M"], which: Bool[Tensor, "L M"]) -> float:
    """Share of what all memories of a layer add to the stream that these add, mean over layers."""
    return float(((contribution * which).sum(-1) / contribution.sum(-1)).mean())


def whole_layers(at: Bench, ask: Ask, fill: Float[Tensor, "L M"]) -> dict[str, list[dict[str, float]]]:
    """By way and layer what is lost without all memories of that layer."""
    layers = range(len(fill))
    found: dict[str, list[dict[str, float]]] = {}
    for way, value in zip(WAYS, (None, fill), strict=True):
        found[way] = []
        for layer in layers:
            which = torch.zeros(fill.shape, dtype=torch.bool)
            which[layer] = True
            with silenced(at.model, which, value):
                found[way].append(ask(at.model))
    return found


def lost_by(row: Row, way: str, name: str) -> Mapping[str, list[float]]:
    """Of each quantity what was lost in every draw."""
    each = row.values["lost"][way][name]
    return {key: [draw[key] for draw in each] for key in each[0]}
