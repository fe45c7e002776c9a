"""Soft-masking: how far training may move the parameters that produce a unit, 1 - I of what its importance I leaves.

Ke et al. 2023:  grad_l <- (1 - I_l) (x) grad_l. The forward pass is not masked. What is multiplied:

    heads         the rows of query, key and value with their biases, and the columns of the attention's output
    intermediate  the rows of the feed-forward's first projection, or of both where it is gated, with their biases
    output        the rows of the feed-forward's last projection with its bias

So a unit with I = 1 keeps what produces it: its rows. Where query heads share a key-value head, that takes the largest
importance of its heads. Embeddings, norms, the output's bias and the head of the model always learn freely.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.continual.gates import SITES, Units, fits
from kemem.errors import BadInput
from kemem.families import offset
from kemem.memory import Memories

PLACEMENTS = ("update", "gradient")


def multipliers(
    model: nn.Module, importance: Units, *, head_columns: bool = False
) -> dict[str, Float[Tensor, "..."]]:
    """Parameter name -> what its change is multiplied by, in [0, 1], of a shape that broadcasts to the parameter's.

    Parameters without any masked entry are left out, so that they learn bit for bit as without a mask. head_columns:
    heads mask as in the released code, see `kemem.continual.importance.Released`.
    Refused: importances of another model or outside [0, 1].
    """
    fits(Memories(model), importance)
    for site, found in importance.tensors().items():
        if not ((found >= 0) & (found <= 1)).all():
            raise BadInput(
                f"expected importances in [0, 1]; got {found.min():.3g} to {found.max():.3g} in {site}; "
                "normalise them."
            )
    # A copy of the model with ones for weights: what is multiplied there through `Memories` stands, oriented and
    # sliced out of fused projections, where the parameters of the model stand.
    fresh = {
        id(p): nn.Parameter(torch.ones(p.shape, dtype=_wide(p), device=p.device), requires_grad=False)
        for p in model.parameters()
    }
    shadow = Memories(copy.deepcopy(model, {**fresh}))
    for layer in range(shadow.layers):
        heads, intermediate, output = (1 - getattr(importance, site)[layer] for site in SITES)
        (_mask_head_columns if head_columns else _mask_heads)(shadow, layer, heads)
        _rows(intermediate, shadow.keys(layer), shadow.key_bias(layer))
        if shadow.gated:
            _rows(intermediate, shadow.gates(layer), shadow.gate_bias(layer))
        _rows(output, shadow.values(layer), shadow.bias(layer))
    masks = {name: _smallest(p.detach()) for name, p in shadow.model.named_parameters()}
    return {name: mask for name, mask in masks.items() if (mask != 1).any()}


def mask_gradients_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Multiplies gradients in place: what the paper describes. An optimizer that divides by their size undoes it."""
    for name, mask in masks.items():
        if (gradient := model.get_parameter(name).grad) is not None:
            gradient.mul_(mask.to(gradient.dtype))


def mask_update_(model: nn.Module, previous: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """p <- previous + mask (p - previous) in place, exactly previous at 0 and p at 1; decay is a part of the update."""
    for name, mask in masks.items():
        if name in previous:  # not frozen
            parameter = model.get_parameter(name)
            parameter.copy_(torch.lerp(previous[name], parameter, mask.to(parameter.dtype)))


def _mask_heads(shadow: Memories, layer: int, left: Float[Tensor, " H"]) -> None:
    """left: what the importance of each head leaves, 1 - I."""
    together = shadow.heads // shadow.kv_heads
    shared = left.view(shadow.kv_heads, together).amin(-1)  # of the most important head
    for head in range(shadow.heads):
        parts = shadow.head(layer, head)
        for name, part in parts.items():
            if name.removesuffix("_bias") in ("key", "value"):
                if head % together == 0:  # the same views for all of its heads: once
                    part.mul_(shared[head // together].to(part.dtype))
            else:
                part.mul_(left[head].to(part.dtype))


def _mask_head_columns(shadow: Memories, layer: int, left: Float[Tensor, " H"]) -> None:
    """As released: a vector with each head's number size times, along the last side of whatever is D wide."""
    columns_fit(shadow)
    vector = left.repeat_interleave(shadow.width // shadow.heads)
    for head in range(shadow.heads):
        for name, part in shadow.head(layer, head).items():
            if name == "output" or name.endswith("_bias"):
                part.mul_(left[head].to(part.dtype))  # these are right
            else:
                part.mul_(vector.to(part.dtype))  # [d D], the columns of its rows
    bias = offset(trace.module(shadow.model, f"{shadow.attention_path(layer)}.{shadow.layout.output}"))
    if bias is not None:
        bias.mul_(vector.to(bias.dtype))


def columns_fit(memories: Memories) -> None:
    """Refuses models for which the released code's mask of columns is not defined."""
    size = memories.head(0, 0)["output"].shape[1]
    if size * memories.heads != memories.width or memories.kv_heads != memories.heads:
        raise BadInput(
            "expected heads that are as wide together as the model, each with a key and value of its own, for the "
            f"released code's mask of columns; got {memories.heads} of {size}, {memories.kv_heads} with a key and "
            f"value, and a width of {memories.width}; leave head_columns out."
        )


def _rows(left: Float[Tensor, " N"], matrix: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None) -> None:
    matrix.mul_(left[:, None].to(matrix.dtype))
    if bias is not None:
        bias.mul_(left.to(bias.dtype))


def _smallest(mask: Tensor) -> Tensor:
    """Without the sides along which nothing changes: a mask of rows is kept as a column."""
    for side in range(mask.ndim):
        one = mask.narrow(side, 0, 1)
        if torch.equal(one.expand_as(mask), mask):
            mask = one
    return mask.clone()


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
