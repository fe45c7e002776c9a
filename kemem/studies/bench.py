"""What edits of part 3's model share: the model, contexts of its own, moments of its keys, and facts that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from kemem import editing
from kemem.editing import Moments, Request
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.studies import factual
from kemem.studies.lab import Lab
from kemem.studies.pretraining import Pretraining
from kemem.world import World

ROOM = 2**24  # requests x layers x memories that a search holds at once on an accelerator, or a little more


@dataclass(frozen=True)
class Bench:
    """A model to edit. Nothing in it changes from edit to edit but `targets`."""

    model: nn.Module
    tok: Any
    world: World
    templates: tuple[str, ...]
    moments: Moments
    rows: list[list[int]] = field(default_factory=list)
    """The documents as token ids over which moments were measured."""
    targets: dict[Any, tuple[Tensor, float]] = field(default_factory=dict)
    """Target vectors found so far, with the seconds that took: they depend on no setting of what follows."""
    attention: dict[tuple[int, ...], Moments] = field(default_factory=dict)
    """Moments of what enters attention's output projections, where they were asked for, by layers."""
    requests: int = 32
    """Requests whose targets are searched for together."""
    read: int = 64
    """Texts that are scored together."""


def opened(
    lab: Lab,
    model: Pretraining,
    layers: Sequence[int],
    *,
    texts: int,
    dtype: str | None = None,
    seed: int = 0,
) -> Bench:
    """The model, contexts of its own, and the second moments of its keys on `texts` documents of its world."""
    net, tok = factual.model(lab, model, dtype=dtype)
    world = factual.world(model)
    rows = list(editing.text_rows(tok, world.documents(texts), texts, model.setup.length))
    return made(net, tok, world, layers, rows, seed=seed, batch_size=lab.batch_size)


def made(
    net: nn.Module,
    tok: Any,
    world: World,
    layers: Sequence[int],
    rows: list[list[int]],
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> Bench:
    """The same of a model that is open already. rows: of token ids, over which moments are measured."""
    requests, read = together(net, batch_size)
    return Bench(
        net, tok, world, editing.sampled(net, tok, seed=seed),
        editing.key_moments(net, rows, layers, batch_size=batch_size or 16), rows, requests=requests, read=read,
    )  # fmt: skip


def together(net: nn.Module, asked: int | None) -> tuple[int, int]:
    """Requests and texts at a time: as asked, or what fills an accelerator with a model of this size.

    A search keeps what each of a request's contexts passes through every layer.
    """
    if asked is not None:
        return asked, asked
    if next(net.parameters()).device.type == "cpu":
        return Bench.requests, Bench.read
    memories = Memories(net)
    room = ROOM // (memories.layers * memories.count)
    return min(256, max(Bench.requests, room)), min(512, max(Bench.read, 2 * room))


def known(
    at: Bench, part: str, asked: int | None, wanted: int, *, seed: int = 0, relation: str | None = None
) -> tuple[list[Request], int]:
    """The first `wanted` requests whose fact the model says by itself, unedited; and of how many it does."""
    kept = said(at, editing.requests(at.world.counterfact(asked, seed, part=part, relation=relation)))
    if len(kept) < wanted:
        raise BadInput(
            f"expected {wanted} {part} facts that the model knows; got {len(kept)} of {asked}; ask for fewer."
        )
    return kept[:wanted], len(kept)


def said(at: Bench, requests: Sequence[Request]) -> list[Request]:
    """Those whose fact the model says by itself, if they have paraphrases and neighbours to be scored by."""
    found = editing.generated_success(
        at.model, at.tok, [replace(r, new=r.true) for r in requests], batch_size=at.read
    )
    return [r for r, says in zip(requests, found, strict=True) if says and r.neighbours and r.paraphrases]
