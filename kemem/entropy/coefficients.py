"""Entropy of how the memories of a layer are used: the arithmetic, without a model.

Letters: L layer, M memories per layer. Entropies are in nats.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kemem.errors import BadInput

# How much a memory works at one token, from its coefficient c = silu(gate) * up (gated), c = activation(up) (not).
# "abs" is what the paper and its code use. Of its ReLU variant (A.2) prose and formula differ: "relu" is the prose,
# negative coefficients set to 0; "relu-gate" the formula ReLU(gate) * up, made absolute, as it can be negative.
MAGNITUDES: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "relu": torch.relu,
    "relu-gate": lambda gate, up: (torch.relu(gate) * up).abs_(),
}
COEFFICIENTS = tuple(MAGNITUDES)


def layer_entropy(usage: Float[Tensor, "*L M"], *, as_released: bool = False) -> Float[Tensor, "*L"]:
    """Entropy, in nats, of the share of work done by each memory of a layer.

    Kim et al. 2025, eq. 2:  H(l) = - sum_i p_i ln p_i,  p_i = C_i / sum_j C_j.
    The knowledge entropy of a model is the sum over its layers. Bounds, both attained: 0 (one memory
    does everything) and ln M (all M work equally).

    usage: mean |coefficient| of each memory; its scale does not matter. Signed or infinite usage is
    refused, and so is a layer none of whose memories was ever used.
    as_released adds 1e-9 inside the logarithm, as the authors' code does: about M * 1e-9 nats less.
    """
    if not torch.isfinite(usage).all():
        raise BadInput(
            "usage must be finite; got NaN or infinity; the model overflowed: measure it in float32 or bfloat16."
        )
    if (usage < 0).any():
        raise BadInput(
            f"usage must be a mean of absolute coefficients, at least 0; got a minimum of {usage.min():.3g}; "
            "take the absolute value before the mean."
        )
    if (usage.amax(-1) == 0).any():
        raise BadInput(
            "usage needs a memory above 0 in every layer; got a layer of zeros; measure on more text, or look at "
            "whether the layer's weights are zero."
        )
    share = usage / usage.amax(-1, keepdim=True)  # first to [0, 1]: a sum of huge or tiny values stays finite
    share = share / share.sum(-1, keepdim=True)
    if as_released:
        return -(share * (share + 1e-9).log()).sum(-1)
    return torch.special.entr(share).sum(-1)  # entr(0) = 0, so both bounds are attained


def effective_memories(entropy: Float[Tensor, "*L"]) -> Float[Tensor, "*L"]:
    """How many equally used memories have this entropy: exp(H), between 1 and M."""
    return entropy.exp()


def effective_share(layers: Float[Tensor, "*N L"], memories: int) -> Float[Tensor, "*N"]:
    """Effective memories of a model as a share of the M it has in a layer: exp(sum_l H(l) / L) / M, in [1 / M, 1]."""
    return (layers.mean(-1) - math.log(memories)).exp()


def deficit(layers: Float[Tensor, "*N L"], memories: int) -> Float[Tensor, "*N"]:
    """Nats missing to the bound, L ln M - sum_l H(l): what to plot, as the fall itself is a fraction of a percent."""
    return (math.log(memories) - layers).sum(-1)
