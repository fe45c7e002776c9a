"""What edits of part 3's model share: the model, contexts of its own, moments of its keys, and facts that it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from kemem.studies.sources import Source, Told
from kemem.world import World

ROOM = 2**24  # requests x layers x memories that a search holds at once on an accelerator, or a little more


@dataclass
class Bench:
    """A model to edit. Nothing in it changes from edit to edit but `targets` and what else was measured by then."""

    model: nn.Module
    tok: Any
    source: Source
    """Where facts come from."""
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
    where: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Layers of editors that write others than they are given."""

    @property
    def world(self) -> World:
        """The world that the facts are of; refused where they are records."""
        if not isinstance(self.source, Told):
            raise BadInput(
                "expected facts of a world, with a table of all that is true; got records; take others."
            )
        return self.source.world

    def measure(self, layers: Sequence[int]) -> None:
        """Adds the moments of layers that were not measured yet."""
        if missing := sorted(set(layers) - set(self.moments.of)):
            found = editing.key_moments(self.model, self.rows, missing)
            self.moments = Moments({**self.moments.of, **found.of}, found.tokens)


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
    source = factual.source(model)
    rows = list(editing.text_rows(tok, source.texts(texts), texts, model.setup.length))
    at = made(net, tok, source, layers, rows, seed=seed, batch_size=lab.batch_size)
    return replace(at, where=factual.where(model))


def made(
    net: nn.Module,
    tok: Any,
    source: Source,
    layers: Sequence[int],
    rows: list[list[int]],
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> Bench:
    """The same of a model that is open already. rows: of token ids, over which moments are measured."""
    requests, read = together(net, batch_size)
    return Bench(
        net, tok, source, editing.sampled(net, tok, seed=seed),
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
    kept = said(at, at.source.requests(asked, seed, part=part, relation=relation))
    if len(kept) < wanted:
        raise BadInput(
            f"expected {wanted} {part} facts that the model knows; got {len(kept)} of {asked}; ask for fewer."
        )
    return kept[:wanted], len(kept)


def said(at: Bench, requests: Sequence[Request]) -> list[Request]:
    """Those whose fact the model says by itself, if they have paraphrases and neighbours to be scored by.

    Of records all that have: Meng et al. 2023 do not ask what the model knows.
    """
    if not at.source.asks:
        return [r for r in requests if r.neighbours and r.paraphrases]
    found = editing.generated_success(
        at.model, at.tok, [replace(r, new=r.true) for r in requests], batch_size=at.read
    )
    return [r for r, says in zip(requests, found, strict=True) if says and r.neighbours and r.paraphrases]
