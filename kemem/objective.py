"""What a language model is asked to predict, and its loss: the same for training and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from kemem.errors import BadInput

IGNORED = -100  # a label that is no target, as everywhere in Hugging Face code

Batch = Mapping[str, Tensor]


def logits_of(model: nn.Module, batch: Batch) -> Float[Tensor, "B T V"]:
    """The model's scores for one batch; labels are kept out of it, so no second loss is computed."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return model(**inputs, use_cache=False).logits


def token_losses(logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """-log p(target) in nats at every position; 0 where the target is IGNORED.

    targets: already beside the scores that predict them (see `Causal.targets`).
    Scores in half precision are raised to float32 first: a sum of V exponentials needs it.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view_as(targets)


@dataclass(frozen=True)
class Objective:
    """Position t is scored against label t. Base of `Causal` and `Masked`."""

    def prepare(self, batch: Batch, keys: Sequence[int]) -> Batch:
        """The batch of one step, before it is cut into micro-batches; `keys` holds a `row_key` for each row.

        What is drawn from a key is the same however a step is cut and wherever a killed run resumes.
        """
        return batch

    def targets(self, batch: Batch) -> Int[Tensor, "B T"]:
        return batch["labels"]

    def count(self, batch: Batch) -> int:
        """Target tokens in a batch: the weight of its mean."""
        return int((self.targets(batch) != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss over the target tokens of the batch, in nats; 0 for a batch without one."""
        targets = self.targets(batch)
        logits = logits_of(model, batch)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        total = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / (targets != IGNORED).sum().clamp(min=1)


@dataclass(frozen=True)
class Causal(Objective):
    """Next-token prediction: position t is scored against label t + 1."""

    def targets(self, batch: Batch) -> Int[Tensor, "B T"]:
        # labels move left, not scores: V times less to copy. The last position predicts nothing.
        return F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)


@dataclass(frozen=True)
class Masked(Objective):
    """BERT's corruption: a share of the tokens is hidden, and only those are targets.

    Of the chosen tokens 80 % become `mask_id`, 10 % a random token below `vocabulary`, 10 % stay as they are.
    Special tokens (ids in `special`) and padding are never chosen. What is hidden follows from the row's key.
    """

    mask_id: int
    vocabulary: int
    share: float = 0.15
    special: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise BadInput(f"the masked share must lie between 0 and 1; got {self.share}; BERT's is 0.15.")

    def prepare(self, batch: Batch, keys: Sequence[int]) -> Batch:
        ids = batch["input_ids"]
        rows = torch.tensor([key - (1 << 64) if key >> 63 else key for key in keys])[:, None]
        places = torch.arange(ids.shape[1])[None]
        allowed = batch["labels"] != IGNORED
        if "attention_mask" in batch:
            allowed &= batch["attention_mask"].bool()
        for token in self.special:
            allowed &= ids != token
        chosen = allowed & (uniform(rows, places, 0) < self.share)
        way = uniform(rows, places, 1)
        random = (uniform(rows, places, 2) * self.vocabulary).long().to(ids.dtype)
        hidden = torch.where(way < 0.8, self.mask_id, torch.where(way < 0.9, random, ids))
        return {
            **batch,
            "input_ids": torch.where(chosen, hidden, ids).to(ids.dtype),
            "labels": torch.where(chosen, batch["labels"], IGNORED),
        }


causal = Causal()


def row_key(seed: int, epoch: int, row: int) -> int:
    """What a row's draws hang on: the seed, the pass over the data, and the row's number."""
    return mix(seed, 1, epoch, row)


def mix(*numbers: int) -> int:
    """A 64-bit number that depends on all of `numbers` and their order (splitmix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state


def uniform(rows: Int[Tensor, "B 1"], places: Int[Tensor, "1 T"], stream: int) -> Float[Tensor, "B T"]:
    """Numbers in [0, 1), a pure function of (row key, place, stream): no generator, no order of drawing."""
    state = rows + (places + (stream << 32)) * _signed(0x9E3779B97F4A7C15)  # int64 wraps as uint64 does
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    return (state ^ _shift(state, 31)).bitwise_and((1 << 53) - 1).double() / (1 << 53)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _shift(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts the sign in; a hash wants zeros
