"""Running a part of a model, through its own forward pass: some of its blocks, on the tokens that matter.

An editor changes what happens at a few blocks and a few tokens. The blocks below see no change, and tokens before the
changed one see none either, because attention is causal. What they gave is computed once and kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from kemem import trace
from kemem.errors import BadInput
from kemem.evaluation import padded
from kemem.memory import Memories


@contextmanager
def excerpt(memories: Memories, start: int, stop: int) -> Iterator[nn.Module]:
    """Within the block the model has blocks start..stop-1 alone; gives its base model, without the head.

    Called with `inputs_embeds` = the output of block start-1, its last block puts out what it does in the whole model.
    Position vectors that a family adds to the embeddings (GPT-2) are left out where start > 0: that output has them.
    Blocks count from `start` inside, so places for hooks are named before.
    """
    kinds = set(getattr(memories.model.config, "layer_types", None) or ["full_attention"])
    if len(kinds) > 1:
        raise BadInput(
            f"expected layers of one kind of attention, to run by themselves; got {', '.join(sorted(kinds))}; "
            "take a model without sliding windows."
        )
    above, _, name = memories.blocks_path.rpartition(".")
    holder = trace.module(memories.model, above)
    whole = getattr(holder, name)
    positions = memories.layout.positions if start > 0 else None
    table = {} if positions is None else {f"{above}.{positions}".lstrip("."): torch.zeros_like}
    setattr(holder, name, whole[start:stop])
    try:
        with trace.replace(memories.model, table):
            yield base_of(memories.model)
    finally:
        setattr(holder, name, whole)


def base_of(model: nn.Module) -> nn.Module:
    """The model without its head: what it puts out is normalised, and not yet projected to the vocabulary."""
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def head_of(model: nn.Module) -> nn.Module:
    """The projection to the vocabulary."""
    head = model.get_output_embeddings()
    if head is None:
        raise BadInput(
            f"expected a model with a language-model head; got {type(model).__name__}; load it with its head."
        )
    return head


class Beginning:
    """Token rows, read up to some block: the stream that enters the next one, kept for every row and token.

    Rows are unique; `index` says which of them each given row is. Only causal models: what is cut off behind a row's
    end changes nothing in it.
    """

    def __init__(self, memories: Memories, rows: Sequence[Sequence[int]], *, batch_size: int = 256) -> None:
        self.memories = memories
        unique = sorted({tuple(row) for row in rows}, key=lambda row: (len(row), row))
        number = {row: i for i, row in enumerate(unique)}
        self.index = torch.tensor([number[tuple(row)] for row in rows])
        self.lengths = torch.tensor([len(row) for row in unique])
        self.block = 0
        device = next(memories.model.parameters()).device
        self._chunks: list[dict[str, Tensor]] = [
            {"input_ids": padded(unique[i : i + batch_size])[0].to(device)}
            for i in range(0, len(unique), batch_size)
        ]

    @torch.no_grad()
    def forward_to(self, block: int) -> None:
        """Reads on until just below `block`; 0 is where the rows are tokens."""
        if block <= self.block:
            return
        # in place: for two streams of all rows there may be no room
        for i, chunk in enumerate(self._chunks):
            self._chunks[i] = {"inputs_embeds": self._through(chunk, block)[0]}
        self.block = block

    @torch.no_grad()
    def coefficients(self, layer: int) -> Float[Tensor, "N M"]:
        """The coefficients of a layer at the last token of every unique row; reads on to just below that layer."""
        self.forward_to(layer)
        found, begin = [], 0
        for chunk in self._chunks:
            every = self._through(chunk, layer + 1, down=layer)[1]  # of all tokens, [B T M]
            lengths = self.lengths[begin : begin + len(every)]
            found.append(every[torch.arange(len(every)), lengths - 1])
            begin += len(every)
        return torch.cat(found)

    @torch.no_grad()
    def outputs(self, layer: int, rows: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """What block `layer` puts out at the last token of some unique rows, by the weights as they are now."""
        wanted = set(rows.tolist())
        found = torch.empty(
            len(self.lengths),
            self.memories.width,
            dtype=self._dtype,
            device=next(self.memories.model.parameters()).device,
        )
        begin = 0
        for chunk in self._chunks:
            (given,) = chunk.values()
            own = [i for i in range(len(given)) if begin + i in wanted]
            if own:
                part = {name: tensor[own] for name, tensor in chunk.items()}
                out, _ = self._through(part, layer + 1)
                lengths = self.lengths[begin : begin + len(given)][own]
                places = [begin + i for i in own]
                found[places] = out[torch.arange(len(own)), lengths - 1]
            begin += len(given)
        return found[rows]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.memories.model.parameters()).dtype

    def _through(self, chunk: dict[str, Tensor], stop: int, down: int | None = None) -> tuple[Tensor, Any]:
        """The output of block stop-1, and the coefficients of layer `down`."""
        out: dict[str, Tensor] = {}
        memories = self.memories

        def keep(name: str) -> Any:
            return lambda tensor: out.__setitem__(name, tensor)

        with trace.observe(memories.model, {memories.block_path(stop - 1): keep("stream")}, side="output"):
            watched = {} if down is None else {memories.down_path(down): keep("coefficients")}
            with (
                trace.observe(memories.model, watched, side="input"),
                excerpt(memories, self.block, stop) as base,
            ):
                base(**chunk, use_cache=False)
        return out["stream"], out.get("coefficients")


class Remembered:
    """Keys and values of earlier tokens, given to attention at every pass and never added to."""

    is_compileable = False

    def __init__(self, keys: dict[int, Tensor], values: dict[int, Tensor]) -> None:
        self.keys, self.values = keys, values

    def update(
        self, key: Tensor, value: Tensor, layer: int, *rest: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys[layer], key], 2), torch.cat([self.values[layer], value], 2)

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def chosen(self, rows: Tensor) -> "Remembered":
        keys, values = ({layer: t[rows] for layer, t in found.items()} for found in (self.keys, self.values))
        return Remembered(keys, values)


class Ending:
    """Rows from one token on, through the blocks above a layer: what a vector added there does to what follows.

    rows: token ids. begins: of each the place where the vector is added; what stands before is read once, and its
    attention keys and values are remembered. The stream after block `layer` from there on is `stream` [B T D], padded
    on the right. Exact: tokens before the changed one cannot see it.
    """

    def __init__(
        self, memories: Memories, layer: int, rows: Sequence[Sequence[int]], begins: Sequence[int]
    ) -> None:
        self.memories, self.layer = memories, layer
        device = next(memories.model.parameters()).device
        ids, mask = (t.to(device) for t in padded(rows))
        begin, length = torch.tensor(begins, device=device), mask.sum(1)
        cache = DynamicCache()
        kept: list[Tensor] = []
        with (
            torch.no_grad(),
            trace.observe(memories.model, {memories.block_path(layer): kept.append}, side="output"),
        ):
            base_of(memories.model)(input_ids=ids, past_key_values=cache, use_cache=True)
        span = int((length - begin).max())
        steps = torch.arange(span, device=device)
        places = begin[:, None] + steps  # [B T]
        inside = places.clamp(max=ids.shape[1] - 1)
        self.stream = kept[0].gather(1, inside[..., None].expand(-1, -1, memories.width))
        self.places = inside
        before = int(begin.max())
        self._cache = self._remember(cache, before)
        self._mask = self._visible(begin, before, span)

    def _remember(self, cache: DynamicCache, before: int) -> Remembered:
        above = range(self.layer + 1, self.memories.layers)
        keys = {i: cache.layers[i].keys[:, :, :before] for i in above}
        values = {i: cache.layers[i].values[:, :, :before] for i in above}
        return Remembered(keys, values)

    def _visible(self, begin: Tensor, before: int, span: int) -> Float[Tensor, "B 1 T S"]:
        """0 where a token may look, a very negative number elsewhere: at remembered ones before its row's `begin`, and
        causally at those from there on."""
        remembered = torch.arange(before, device=begin.device) < begin[:, None]  # [B S]
        remembered = remembered[:, None].expand(-1, span, -1)
        causal = torch.ones(span, span, dtype=torch.bool, device=begin.device).tril()
        seen: Bool[Tensor, "B T S"] = torch.cat([remembered, causal.expand(len(begin), -1, -1)], 2)
        dtype = self.stream.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=begin.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )[:, None]

    def __call__(self, stream: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What enters the head, given the stream after block `layer` from each row's begin on. Has a gradient."""
        if self.layer + 1 == self.memories.layers:
            with excerpt(self.memories, self.layer + 1, self.layer + 1) as base:
                return base(inputs_embeds=stream, use_cache=False).last_hidden_state
        with excerpt(self.memories, self.layer + 1, self.memories.layers) as base:
            return base(
                inputs_embeds=stream,
                attention_mask=self._mask,
                position_ids=self.places,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state

    def chosen(self, rows: Int[Tensor, " B"]) -> "Ending":
        """The same for some of the rows."""
        other = object.__new__(Ending)
        other.memories, other.layer = self.memories, self.layer
        other.stream, other.places, other._mask = self.stream[rows], self.places[rows], self._mask[rows]
        other._cache = self._cache.chosen(rows)
        return other
