"""Waking idle memories by an edit of the weights, and what to hold the result against."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kemem.entropy.passages import acquisition, forgetting
from kemem.errors import BadInput
from kemem.memory import Memories


def idle(usage: Float[Tensor, "L M"], fraction: float) -> Bool[Tensor, "L M"]:
    """Which memories of each layer are its least used ones, a share `fraction` of them.

    Kim et al. 2025, algorithm 1:  C_li <= t_l,  t_l the fraction-quantile of C_l, interpolated linearly. Ties at t_l
    all belong. fraction = 0 is none, although t_l is the minimum then; any fraction above takes one at least.
    """
    if not 0 <= fraction <= 1:
        raise BadInput(
            f"fraction must be a share of the memories, in [0, 1]; got {fraction}; for 50 percent give 0.5."
        )
    if not torch.isfinite(usage).all() or (usage < 0).any():
        raise BadInput(
            f"usage must be a mean of absolute coefficients, finite and at least 0; got {usage.min():.3g} to "
            f"{usage.max():.3g}; take that of kemem.entropy.measure."
        )
    if fraction == 0:
        return torch.zeros_like(usage, dtype=torch.bool)
    usage = usage.double()
    return usage <= usage.quantile(fraction, -1, keepdim=True)


def multiplier(usage: Float[Tensor, "L M"], fraction: float, gain: float) -> Float[Tensor, "L M"]:
    """Factor that brings the least used memories of each layer to `gain` times its mean usage. In float64.

    Kim et al. 2025, algorithm 1, with p = fraction and q = gain:
        u_li = q mean(C_l) / C_li  for the idle memories of `idle`,   1 for all others
    where the mean is over all M. An idle memory above q mean(C_l) is lowered: with q = 0.5 some of them, with q = 1
    those between the mean and a quantile above it.

    The authors' code agrees. Differs from both at fraction = 0, where they change the least used memory of each layer.
    Refused: an idle memory without any usage, which no factor could lift.
    """
    if not 0 < gain < math.inf:
        raise BadInput(f"gain must be a number above 0; got {gain}; 1 lifts idle memories to the mean usage.")
    chosen = idle(usage, fraction)
    usage = usage.double()
    factors = torch.where(chosen, gain * usage.mean(-1, keepdim=True) / usage, 1.0)
    if not torch.isfinite(factors).all():
        layer, memory = (~torch.isfinite(factors)).nonzero()[0].tolist()
        raise BadInput(
            "multiplier needs idle memories that are used a little; got a layer with an unused memory: layer "
            f"{layer}, memory {memory}, usage {usage[layer, memory]:.3g}; measure on more text."
        )
    return factors


def resuscitate_(model: nn.Module, factors: Float[Tensor, "L M"]) -> None:
    """Multiplies memory i of layer l by factors[l, i], in place. All else is left as it is.

    In gated families this is row i of `up`, with its bias: c = act(gate) * up is linear in it, so for the same input
    of the layer coefficient i becomes factor times what it was. From the second layer on that input changes as well:
    measure again.
    In ungated families an activation stands between key and coefficient, so the value (column i of the last
    projection) is multiplied instead. This scales what the memory writes, not its coefficient: usage and entropy of
    the first layer do not change.
    """
    for part, factor in _parts(_fitting(model, factors), factors):
        wide = torch.promote_types(
            part.dtype, torch.float32
        )  # rounded once, also where weights are in 16 bits
        part.copy_(part.to(wide) * factor.to(wide).to(part.device))


def reparameterise_(model: nn.Module, factors: Float[Tensor, "L M"]) -> None:
    """Multiplies the key of memory i of layer l by factors[l, i] and divides its value by it, in place.

    Ours, a control: with f the factor, c = act(gate) * up becomes f c and v becomes v / f, so that c v stays. The model
    computes what it did, for every text; its usage is multiplied by exactly f in all layers, since no layer's input
    changes; with the factors of `multiplier(usage, 1.0, 1.0)` its knowledge entropy is the largest possible, L ln M.
    What a change of entropy does beyond such a change of scale is what it does to the model. Learning does see the
    scale: the gradient of the value is multiplied by f, that of the key's row in `up` divided by it.

    What is multiplied is what `resuscitate_` multiplies in gated families. In weights of few bits products and
    quotients are rounded, so the function changes by as much, unless factors are powers of two.
    Refused: ungated families, where the activation stands between; factors that are not above 0.
    """
    memories = _fitting(model, factors)
    if not memories.gated:
        raise BadInput(
            f"reparameterise_ needs a gated family, whose coefficients are linear in up; got {memories.family!r}, "
            "where an activation stands between key and coefficient; take a model with a gate."
        )
    if (factors <= 0).any():
        raise BadInput(
            f"reparameterise_ divides values by factors, so they must be above 0; got {factors.min():.3g}; "
            "take those of multiplier."
        )
    resuscitate_(model, factors)
    for layer, factor in enumerate(factors):
        values = memories.values(layer)  # [D M], a memory a column
        wide = torch.promote_types(values.dtype, torch.float32)
        values.copy_(values.to(wide) / factor.to(wide).to(values.device))


@contextmanager
def resuscitated(model: nn.Module, factors: Float[Tensor, "L M"]) -> Iterator[None]:
    """Within the block the model is as `resuscitate_` leaves it; afterwards its weights are back, bit for bit."""
    memories = _fitting(model, factors)
    kept = [part.clone() for part, _ in _parts(memories, factors)]
    try:
        resuscitate_(model, factors)
        yield
    finally:
        for (part, _), before in zip(_parts(memories, factors), kept, strict=True):
            part.copy_(before)


def _fitting(model: nn.Module, factors: Tensor) -> Memories:
    memories = Memories(model)
    size = (memories.layers, memories.count)
    if tuple(factors.shape) != size or not torch.isfinite(factors).all():
        got = f"a tensor {list(factors.shape)}" if tuple(factors.shape) != size else "NaN or infinity"
        raise BadInput(
            f"factors must be finite numbers [{size[0]} {size[1]}], one a memory of this model; got {got}; "
            "take those that multiplier makes of a measurement of this very model."
        )
    if memories.values(memories.layers - 1).device.type == "meta":
        raise BadInput(
            "resuscitation changes weights in place, so they must be in memory; got offloaded ones; "
            "load the model without device_map."
        )
    return memories


def _parts(memories: Memories, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What is multiplied, as views into the model, each with its factors in a shape that fits."""
    for layer, factor in enumerate(factors):
        if not memories.gated:
            yield memories.values(layer), factor  # [D M], a memory a column
            continue
        yield memories.keys(layer), factor[:, None]  # [M D], a memory a row
        if (bias := memories.key_bias(layer)) is not None:
            yield bias, factor


@dataclass(frozen=True)
class Against:
    """A continual learning run that began at modified weights. See `against`.

    knowledge, performance: K and P at the end. acquisition, forgetting: A and F against the modified start, as
    published. true_acquisition, true_forgetting: the same against the checkpoint before it was modified.
    """

    knowledge: float
    performance: float
    acquisition: float
    forgetting: float
    true_acquisition: float
    true_forgetting: float


def against(
    before_modified: tuple[float, float], before_unmodified: tuple[float, float], after: tuple[float, float]
) -> Against:
    """What a run gained and lost against each of its two starts. Arguments are (K, P): knowledge and performance.

    A and F are those of `acquisition` and `forgetting`. An edit damages the model, and a low start makes any end look
    good: A rises, F falls, and neither says that the model knows more. None of these numbers stands without the others.
    """
    rates = (
        rate
        for K, P in (before_modified, before_unmodified)
        for rate in (acquisition(K, after[0]), forgetting(P, after[1]))
    )
    return Against(*after, *rates)
