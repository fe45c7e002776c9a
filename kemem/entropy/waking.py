"""Waking idle memories while the model learns, without an edit of its weights."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.training import Domain, Method


def update_scale(usage: Float[Tensor, "L M"], strength: float, limit: float) -> Float[Tensor, "L M"]:
    """How much larger the update of each memory is to be, 1 on average in every layer. In float64.

    s_i = (mean(C) / C_i) ** strength, clipped to [1 / limit, limit], then divided by its mean over the layer.
    A memory without any usage gets the largest.
    """
    usage = usage.double()
    ratio = (usage.mean(-1, keepdim=True) / usage) ** strength
    scale = ratio.clamp(1 / limit, limit)
    return scale / scale.mean(-1, keepdim=True)


@dataclass(eq=False)
class WakeIdle(Method):
    """Training in which idle memories learn faster and busy ones slower, with the same budget in every layer.

    Ours: the gentler method that Kim et al. 2025 ask for in their limits. After each optimizer step every memory i,
    its key (gate and up, with biases) and its value alike, takes
        w_i = w_i(before) + s_i (w_i(after) - w_i(before))          s_i as in `update_scale`
    The update is scaled and not the gradient, whose size AdamW divides out; weight decay is a part of the update.
    All other parameters learn as always. strength = 0 is plain training bit for bit.

    usage: of the model at the start, from `measure`; it is not measured again on the way. limit: of a single
    memory's ratio, before the mean is set to 1.
    """

    usage: Float[Tensor, "L M"]
    strength: float
    limit: float = 10.0
    _memories: Memories | None = field(default=None, init=False, repr=False)
    _scales: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise BadInput(
                f"strength must be 0 or more; got {self.strength}; 0 is plain training, 1 makes updates inverse "
                "to usage."
            )
        if not 1 <= self.limit < math.inf:
            raise BadInput(f"limit must be 1 or more; got {self.limit}; 10 lets updates differ 100 times.")
        bad = not torch.isfinite(self.usage).all() or (self.usage < 0).any()
        if bad or (self.usage.amax(-1) == 0).any():
            raise BadInput(
                "usage must be finite, at least 0, and above 0 somewhere in every layer; got "
                f"{self.usage.min():.3g} to {self.usage.max():.3g}; take that of kemem.entropy.measure."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        self._memories = memories = Memories(model)
        size = (memories.layers, memories.count)
        if tuple(self.usage.shape) != size:
            raise BadInput(
                f"usage must be [{size[0]} {size[1]}], one number a memory of this model; got "
                f"{list(self.usage.shape)}; measure this very model."
            )
        scales = update_scale(self.usage, self.strength, self.limit)
        # layers without a difference are not touched at all: not even to add and subtract the same
        self._scales = {}
        for layer, scale in enumerate(scales):
            if (scale != 1).any():
                values = memories.values(layer)
                self._scales[layer] = scale.to(values.dtype).to(values.device)

    def updated(self, model: nn.Module, previous: dict[str, Tensor]) -> None:
        for layer, scale in self._scales.items():
            for name, parts in self._parts(layer, scale).items():
                if name not in previous:  # frozen, or without it in this family
                    continue
                parameter = model.get_parameter(name)
                parameter.sub_(previous[name])  # now it holds the update
                for part, factor in parts:
                    part.mul_(factor)
                parameter.add_(previous[name])

    def _parts(self, layer: int, scale: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Of each parameter of the layer, what belongs to its memories as views, each with its scales."""
        memories = self._memories
        assert memories is not None, "before comes first"
        up, gate, down = memories.up_path(layer), memories.gate_path(layer), memories.down_path(layer)
        found = [
            (f"{up}.weight", memories.keys(layer), scale[:, None]),
            (f"{up}.bias", memories.key_bias(layer), scale),
            (f"{down}.weight", memories.values(layer), scale),
        ]
        if gate is not None:
            found.append((f"{gate}.weight", memories.gates(layer), scale[:, None]))
            found.append((f"{gate}.bias", memories.gate_bias(layer), scale))
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, part, factor in found:
            if part is not None:
                parts.setdefault(name, []).append((part, factor))  # a fused projection holds two of them
        return parts

    def state(self) -> dict[str, Tensor]:
        return {"usage": self.usage.float()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Numbers of the method are compared before a run is resumed, tensors are not: so it is done here."""
        if not torch.equal(state["usage"].cpu(), self.usage.float().cpu()):
            raise BadInput(
                "expected the usage that this run began with; got another; give that one, or choose another folder."
            )
