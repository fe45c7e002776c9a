"""What tells the whole model's view of a text from the part that was known before: DAS's contrast.

Ke et al. 2023. Of every text n in a micro-batch there are three representations, each the mean of the
final hidden state over the text's tokens: full_n, the ordinary one; full+_n, its twin under another dropout mask; and
prev_n, of a pass in which every unit is multiplied by its importance so far. With sim the cosine,

    L_con = - 1/N sum_n log( e^(sim(full_n, full+_n)/tau)
                             / sum_j ( e^(sim(full_n, full+_j)/tau) + e^(sim(full_n, prev_j)/tau) ) )
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from kemem import trace
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import IGNORED, Batch, mix


def contrastive_loss(
    full: Float[Tensor, "B D"],
    twin: Float[Tensor, "B D"],
    previous: Float[Tensor, "B D"] | None,
    temperature: float,
) -> Float[Tensor, ""]:
    """L_con in nats; without `previous` the sum below has its first half only, and a single text gives 0."""
    others = twin if previous is None else torch.cat([twin, previous])
    similar = F.normalize(full, dim=-1) @ F.normalize(others, dim=-1).T  # [B B] or [B 2B]
    return F.cross_entropy(similar / temperature, torch.arange(len(full), device=full.device))


def mispaired(full: Float[Tensor, "B D"], twin: Float[Tensor, "B D"]) -> tuple[Tensor, Tensor]:
    """The pairs of the released code: the batch tiled, then viewed in twos, so that texts 2i and 2i + 1 are a pair.

    The true twin becomes a negative, or is no candidate at all where B is even, and the rows are no longer those of
    `previous`, where the text itself is a negative then.
    """
    both = torch.cat([full, twin]).view(len(full), 2, -1)
    return both[:, 0], both[:, 1]


def representation(
    hidden: Float[Tensor, "B T D"], tokens: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B D"]:
    """The mean over tokens, all places where None says so. At least in float32."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if tokens is None:
        return wide.mean(1)
    return (wide * tokens[..., None]).sum(1) / tokens.sum(1, keepdim=True).clamp(min=1)


def present(batch: Batch) -> Bool[Tensor, "B T"] | None:
    """Which places are tokens and no padding; None where all are."""
    return batch["attention_mask"].bool() if "attention_mask" in batch else None


def restored(batch: Batch) -> Batch:
    """The batch with its ids as they were before a masked objective hid some: labels hold what was there."""
    labels = batch["labels"]
    return {**batch, "input_ids": torch.where(labels != IGNORED, labels, batch["input_ids"])}


def base_path(model: nn.Module) -> str:
    """Where the model without its head is, whose output is what the head reads: after the final norm."""
    prefix = getattr(model, "base_model_prefix", "")
    if not isinstance(getattr(model, prefix, None), nn.Module):
        raise BadInput(
            "expected a Hugging Face model with a language-model head over a base model; got "
            f"{type(model).__name__}; load it with AutoModelForCausalLM or AutoModelForMaskedLM."
        )
    return prefix


def last_hidden(model: nn.Module, batch: Batch) -> Float[Tensor, "B T D"]:
    """The final hidden state of one pass. The head is skipped."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return trace.module(model, base_path(model))(**inputs, use_cache=False)[0]


class Passed:
    """The final hidden state of the latest pass, for who asks with the very batch that passed: no pass of its own."""

    def __init__(self) -> None:
        self._ids: Tensor | None = None
        self._hidden: Tensor | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        def enter(ids: Tensor) -> None:
            self._ids = ids

        def leave(output: Any) -> None:
            self._hidden = output if isinstance(output, Tensor) else output[0]

        table = model.get_input_embeddings()
        path = next(name for name, module in model.named_modules() if module is table)
        with (
            trace.observe(model, {path: enter}),
            trace.observe(model, {base_path(model): leave}, side="output"),
        ):
            yield

    def take(self, batch: Batch) -> Float[Tensor, "B T D"] | None:
        """Of this batch, or None where another one passed last. It is kept no longer."""
        ids, hidden = self._ids, self._hidden
        self._ids = self._hidden = None
        given = batch["input_ids"]
        if ids is None or hidden is None or ids.data_ptr() != given.data_ptr():
            return None
        return hidden if hidden.shape[:2] == given.shape else None


# ---------------------------------------------------------------------- two passes that differ
def drops(model: nn.Module) -> bool:
    """Whether two passes of it in training mode differ: it has dropout somewhere, as a module or as a number."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return True
        if any("dropout" in name and isinstance(p, float) and p > 0 for name, p in vars(module).items()):
            return True
    return False


@contextmanager
def draws(device: torch.device, *numbers: int) -> Iterator[None]:
    """Within the block torch draws from a seed made of `numbers`; afterwards its generators are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(mix(*numbers) >> 1)
        yield


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode within the block; every module's own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes.items():
            module.training = before


@contextmanager
def noisy(model: nn.Module, share: float) -> Iterator[None]:
    """Within the block a share of the entries of what attention and feed-forward give is dropped, as dropout does."""
    memories = Memories(model)
    paths = [
        path
        for layer in range(memories.layers)
        for path in (
            f"{memories.attention_path(layer)}.{memories.layout.output}",
            memories.down_path(layer),
        )
    ]
    with trace.replace(model, dict.fromkeys(paths, lambda x: F.dropout(x, share))):
        yield
