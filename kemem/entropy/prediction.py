"""Entropy of what a model predicts, without ever holding the logits of a whole batch."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

# Logits at a time: 32 MB in float32; beyond, a CPU spends its time on fresh pages.
CHUNK = {"cpu": 2**23}
CHUNK_ELSEWHERE = 2**26


def has_head(model: PreTrainedModel) -> bool:
    """Whether the model gives a distribution over its vocabulary."""
    return model.base_model is not model and model.get_output_embeddings() is not None


def vocabulary(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().num_embeddings


def prediction_entropy(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """Entropy, in nats, of softmax(logits):  H = - sum_v p_v ln p_v  (Kim et al. 2025, A.4).

    Bounds: 0 and ln V. At least in float32, whatever the model's dtype; a logit of -infinity counts for nothing.
    """
    log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
    log_p.clamp_min_(torch.finfo(log_p.dtype).min)  # 0 * -infinity would be NaN
    return log_p.exp().mul_(log_p).sum(-1).neg_()


def chunked_entropies(
    logits: Callable[[Tensor], Tensor], hidden: Float[Tensor, "N D"], vocabulary_size: int
) -> Float[Tensor, " N"]:
    """Prediction entropy at every hidden state, a few tokens at a time."""
    size = max(1, CHUNK.get(hidden.device.type, CHUNK_ELSEWHERE) // vocabulary_size)
    return torch.cat([prediction_entropy(logits(part[None])[0]) for part in hidden.split(size)])
