"""Entropy of self-attention: over how many earlier tokens does a head spread?"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from kemem.errors import BadInput


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, attention is computed in the open, with its weights; afterwards as before."""
    before = model.config._attn_implementation
    if before == "eager":
        yield
        return
    try:
        model.set_attn_implementation("eager")
        # transformers only warns where a class cannot be switched
        if model.config._attn_implementation != "eager":
            raise BadInput(
                f"attention entropy needs a model whose attention can be set to eager; got {type(model).__name__} with "
                f"{before}; load it with attn_implementation='eager'."
            )
        yield
    finally:
        model.set_attn_implementation(before)


def attention_entropy(weights: Float[Tensor, "*H T S"]) -> Float[Tensor, "*H T"]:
    """Entropy, in nats, of where each token looks.

    Kim et al. 2025, eq. 3:  H_j = - sum_i A_ji ln A_ji,  A after the softmax, i over keys.
    Bounds: 0, which the first token of a causal model always has, and ln of the number of keys in sight.
    At least in float32, whatever the model's dtype.
    """
    weights = weights if weights.dtype == torch.float64 else weights.float()
    tiny = torch.finfo(weights.dtype).tiny
    return weights.clamp_min(tiny).log_().mul_(weights).sum(-1).neg_()  # three times as fast as entr on a CPU
