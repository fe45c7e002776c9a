"""Virtual gates: a number at each unit of a block, multiplied into the passes that run.

Ke et al. 2023:  o_hat_l = g_l (x) o_l,  g_l all ones and never trained. What they call a layer l is one of
three sites in every block, and a unit is one of its heads or neurons:

    heads         [H]   the attention's heads, each head's slice of what enters the attention's last projection
    intermediate  [M]   the memories, at the coefficient: what enters the feed-forward's last projection
    output        [D]   what leaves that projection, before dropout, residual and norm

Multiplying a head's slice is the same as multiplying its attention weights, as the authors do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.errors import BadInput
from kemem.memory import Memories

SITES = ("heads", "intermediate", "output")


@dataclass(frozen=True, eq=False)
class Units:
    """One number for every unit of a model: gates, importances, masks. With a leading B: for every sample."""

    heads: Float[Tensor, "*B L H"]
    intermediate: Float[Tensor, "*B L M"]
    output: Float[Tensor, "*B L D"]

    def map(self, function: Callable[..., Tensor], *others: Units) -> Units:
        """The function of the tensors of all, site by site."""
        return Units(*(function(*(getattr(units, site) for units in (self, *others))) for site in SITES))

    def tensors(self) -> dict[str, Tensor]:
        """Site -> tensor."""
        return {site: getattr(self, site) for site in SITES}


def ones(memories: Memories, samples: int | None = None) -> Units:
    """Gates that change nothing, on the model's device and in its dtype; with `samples` for each sample its own."""
    like = memories.values(0)
    lead = (memories.layers,) if samples is None else (samples, memories.layers)
    sizes = (memories.heads, memories.count, memories.width)
    return Units(*(torch.ones(*lead, size, dtype=like.dtype, device=like.device) for size in sizes))


@contextmanager
def gated(model: nn.Module, gates: Units, *, before_activation: bool = False) -> Iterator[None]:
    """Within the block every pass has its units multiplied by `gates`, one number a unit, or a sample and unit [B L U].

    before_activation: the gate of a memory stands where the authors placed it, on the first projection's output, so
    that its gradient is not that of the coefficient. Gates of ones change nothing, bit for bit.
    Refused: gates of another model, and before_activation where the feed-forward has a gate of its own.
    """
    memories = Memories(model)
    fits(memories, gates)
    if before_activation and memories.gated:
        raise BadInput(
            f"expected an ungated feed-forward for before_activation; got {memories.family!r}, where a coefficient is "
            "a product of two projections, and so there is no one place before it; leave before_activation out."
        )
    entering: dict[str, Callable[[Tensor], Tensor]] = {}
    leaving: dict[str, Callable[[Tensor], Tensor]] = {}
    for layer in range(memories.layers):
        heads, intermediate, output = (_product(gate, layer) for gate in gates.tensors().values())
        entering[f"{memories.attention_path(layer)}.{memories.layout.output}"] = heads
        if before_activation:
            leaving[memories.up_path(layer)] = intermediate
        else:
            entering[memories.down_path(layer)] = intermediate
        leaving[memories.down_path(layer)] = output
    with ExitStack() as stack:
        stack.enter_context(trace.replace(model, entering, side="input"))
        stack.enter_context(trace.replace(model, leaving, side="output"))
        yield


def fits(memories: Memories, units: Units) -> None:
    """Refuses units that are not those of this model."""
    for site, size in zip(SITES, (memories.heads, memories.count, memories.width), strict=True):
        found = tuple(getattr(units, site).shape[-2:])
        if found != (memories.layers, size):
            raise BadInput(
                f"expected one number a unit, {site} [{memories.layers} {size}]; got {list(found)}; "
                "measure this very model."
            )


def _product(gates: Tensor, layer: int) -> Callable[[Tensor], Tensor]:
    """x [B T nU] -> x with the n numbers of each unit multiplied by its gate."""
    gate = gates.select(-2, layer)  # [U] or [B U]
    if gate.ndim == 2:
        gate = gate[:, None]  # [B 1 U]

    def multiplied(x: Tensor) -> Tensor:
        wide = gate.repeat_interleave(x.shape[-1] // gate.shape[-1], -1)
        return x * wide.to(x.dtype)  # of the pass, which may run in 16 bits

    return multiplied
