"""Sums over a text of what one forward pass shows: all that is kept of it."""

from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from kemem.entropy.attention import attention_entropy
from kemem.entropy.batches import Batch
from kemem.entropy.coefficients import MAGNITUDES
from kemem.entropy.prediction import chunked_entropies, vocabulary
from kemem.memory import Memories
from kemem.models.streaming import head_alone, streamed

# Coefficients at a time: a copy of 4 MB stays in the cache and in the allocator's hands.
PIECE = {"cpu": 2**20}
PIECE_ELSEWHERE = 2**26


class Sums:
    """Running sums over instances, in float64 on the device of each layer (on the CPU where that has no float64)."""

    def __init__(self, memories: Memories, coefficient: str, *, attention: bool, next_token: bool) -> None:
        self.memories = memories
        self.magnitude = MAGNITUDES[coefficient]
        self.watch = memories.gate_and_up if coefficient == "relu-gate" else memories.coefficients
        self.wants_attention, self.wants_next_token = attention, next_token
        # All of them now: made during the first pass, they would lie between its large tensors and split what is freed.
        pages = streamed(memories.model)  # whose values would be read for this
        places = [
            memories.values(n).device if pages is None else pages.device for n in range(memories.layers)
        ]
        self._usage = [_zeros(memories.count, place) for place in places]
        self._attention = [_zeros(memories.heads, place) for place in places]
        self._next_token = _zeros(1, places[-1])

    def add(self, batch: Batch) -> None:
        """One forward pass of the base model, and of the head in chunks. Nothing here waits for the device."""
        model = self.memories.model
        told = {"attention_mask": batch.mask, "position_ids": batch.positions}
        told = {name: value for name, value in told.items() if value is not None}
        with ExitStack() as stack:
            stack.enter_context(self.watch(partial(self._add_usage, batch)))
            if self.wants_attention:
                stack.enter_context(self.memories.attention(partial(self._add_attention, batch)))
            outputs = model.base_model(
                input_ids=batch.ids,
                use_cache=False,
                output_attentions=False,
                output_hidden_states=False,
                **told,
            )
        if self.wants_next_token:
            with head_alone(model, outputs) as logits:
                for (hidden,), weight in batch.pieces(outputs.last_hidden_state):
                    entropies = chunked_entropies(logits, hidden, vocabulary(model))
                    self._next_token.add_(entropies.to(self._next_token).sum(), alpha=weight)

    def _add_usage(self, batch: Batch, layer: int, *parts: Tensor) -> None:
        """parts: the coefficients [B T M], or gate and up."""
        total = self._usage[layer]
        rows = max(1, PIECE.get(parts[0].device.type, PIECE_ELSEWHERE) // parts[0].shape[-1])
        precision = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
        for counted, weight in batch.pieces(*parts):
            for piece in zip(*(part.split(rows) for part in counted), strict=True):
                subtotal = self.magnitude(*piece).sum(0, dtype=precision)
                total.add_(subtotal.to(total.device), alpha=weight)

    def _add_attention(self, batch: Batch, layer: int, weights: Tensor) -> None:
        """weights: [B H T T], one row after the other: entropies need a copy of them."""
        total = self._attention[layer]
        for row, ((start, stop), weight) in enumerate(zip(batch.spans, batch.weights, strict=True)):
            entropies = attention_entropy(weights[row, :, start:stop])  # [H n]
            total.add_(entropies.to(total).sum(-1), alpha=weight)

    def usage(self, instances: int) -> Float[Tensor, "L M"]:
        return torch.stack([total.cpu() for total in self._usage]) / instances

    def attention(self, instances: int) -> Float[Tensor, "L H"] | None:
        return (
            torch.stack([total.cpu() for total in self._attention]) / instances
            if self.wants_attention
            else None
        )

    def next_token(self, instances: int) -> float | None:
        return float(self._next_token) / instances if self.wants_next_token else None


def _zeros(size: int, place: torch.device) -> Float[Tensor, " K"]:
    # meta: offloaded weights, which come to a device only to be used
    has_float64 = place.type not in ("mps", "meta")
    return torch.zeros(size, dtype=torch.float64, device=place if has_float64 else "cpu")
