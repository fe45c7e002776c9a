"""What pruning takes for important, in the place of DAS's own importance: `DAS(importance=Magnitude())`.

Each is called as (model, domain) -> `Units`, one number of 0 or more for every head, memory and output unit; DAS brings
them to [0, 1] and joins domains. What produces a unit is what a soft mask spares: of a head its rows of query, key and
value (a shared key-value head counts for every head that reads it), of a memory its rows of the feed-forward's first
projections, of an output unit its row of the last one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem.continual.gates import Units, ones
from kemem.continual.importance import Measuring, domain_importance
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import Objective, causal
from kemem.training import Domain, Method, Recipe, train


@dataclass(frozen=True)
class Magnitude:
    """The length of the parameters that produce a unit, biases included. The text does not matter. In float64."""

    def __call__(self, model: nn.Module, domain: Domain) -> Units:
        return _sums(model, torch.square).map(torch.sqrt)


@dataclass(frozen=True)
class AccumulatedGradient:
    """Mean over texts of the absolute gradient of each unit's gate, in each layer divided by its length. In float64.

    Michel et al. 2019, of heads:  I_h = E_x | dL(x) / dxi_h |,  xi_h = 1, then I / ||I||_2 in every layer. Here of all
    units. A layer without any gradient stays 0. But for the length it is DAS's importance of a domain, and what brings
    that to [0, 1] undoes a length: in DAS the difference is that it stands in for general knowledge as well.

    objective: the one that training is given.
    """

    objective: Objective = causal
    how: Measuring = field(default_factory=Measuring)

    def __call__(self, model: nn.Module, domain: Domain) -> Units:
        found = domain_importance(model, domain.blocks, self.objective, self.how)
        return found.map(
            lambda own: own / own.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)
        )


@dataclass(frozen=True)
class LotteryTicket:
    """The share of the weights that produce a unit which are left, when a copy is trained, pruned and rewound in turn.

    Frankle and Carbin 2019, for Transformers Brix et al. 2020: train a copy for some steps; of every matrix drop the
    `share` of the weights left that are now smallest in size; put the others back to what they were; and so on for
    `rounds`. In the end (1 - share)^rounds of each matrix is left. Only weights that produce units are dropped, no
    biases; all parameters are trained. The model itself is not changed.

    objective: the one that training is given. The rate is constant, without decay, for that would prune by itself.
    """

    steps: int = 50
    batch_size: int = 8
    learning_rate: float = 1e-3
    rounds: int = 3
    share: float = 0.2
    seed: int = 0
    objective: Objective = causal

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.share < 1:
            raise BadInput(
                f"expected at least 1 round and a share in (0, 1); got {self.rounds} and {self.share}; 3 rounds of 0.2 "
                "leave 51 percent."
            )

    def __call__(self, model: nn.Module, domain: Domain) -> Units:
        ticket = copy.deepcopy(model).requires_grad_(True)
        start = {name: p.detach().clone() for name, p in ticket.named_parameters()}
        kept = _producing(model)
        dropped = {name: torch.zeros_like(mask) for name, mask in kept.items()}
        for turn in range(self.rounds):
            _set_(ticket, start, dropped)
            recipe = Recipe(
                steps=self.steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                schedule="constant",
                weight_decay=0.0,
                seed=self.seed + turn,
            )
            train(ticket, domain, recipe, _Dropped(dropped), objective=self.objective)
            for name, mask in kept.items():
                _drop_(mask, dropped[name], ticket.get_parameter(name).detach(), self.share)
        whole = {name: torch.ones_like(tensor) for name, tensor in start.items()}
        _set_(ticket, whole, {})
        count = _sums(ticket, torch.abs, biases=False)
        _set_(ticket, whole, dropped)
        return _sums(ticket, torch.abs, biases=False).map(torch.div, count)


class _Dropped(Method):
    """Keeps weights that were dropped at 0."""

    def __init__(self, dropped: dict[str, Tensor]) -> None:
        self.dropped = dropped

    def updated(self, model: nn.Module, previous: dict[str, Tensor]) -> None:
        for name, mask in self.dropped.items():
            model.get_parameter(name).masked_fill_(mask, 0)


def _drop_(kept: Tensor, dropped: Tensor, weights: Tensor, share: float) -> None:
    """Moves the share of the kept weights that is smallest in size from one mask to the other, in place."""
    places = kept.flatten().nonzero()[:, 0]
    order = weights.flatten()[places].abs().argsort(stable=True)
    out = places[order[: round(share * len(places))]]
    kept.view(-1)[out] = False
    dropped.view(-1)[out] = True


@torch.no_grad()
def _set_(model: nn.Module, values: dict[str, Tensor], dropped: Mapping[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        p.copy_(values[name].masked_fill(dropped[name], 0) if name in dropped else values[name])


def _producing(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> which of its entries are weights that produce a unit; parameters without any are left out."""
    shadow = copy.deepcopy(model).requires_grad_(False)
    for p in shadow.parameters():
        p.zero_()
    memories = Memories(shadow)
    for layer in range(memories.layers):
        for _, _, part in _parts(memories, layer, biases=False):
            part.fill_(1)
    return {name: p.bool() for name, p in shadow.named_parameters() if p.any()}


def _sums(model: nn.Module, function: Callable[[Tensor], Tensor], *, biases: bool = True) -> Units:
    """For every unit the sum of function(weights) over the parameters that produce it, in float64."""
    memories = Memories(model)
    sums = ones(memories).map(lambda one: torch.zeros_like(one, dtype=torch.float64))
    for layer in range(memories.layers):
        for site, units, part in _parts(memories, layer, biases=biases):
            getattr(sums, site)[layer, units] += function(part.double()).reshape(len(part), -1).sum(1)
    return sums


def _parts(
    memories: Memories, layer: int, *, biases: bool
) -> Iterator[tuple[str, slice, Float[Tensor, "U *K"]]]:
    """(site, units, their parameters, a unit a row) for everything that produces units of a layer, as views."""
    for head in range(memories.heads):
        for name, part in memories.head(layer, head).items():
            if name != "output" and (biases or not name.endswith("_bias")):
                yield "heads", slice(head, head + 1), part[None]
    middle = [(memories.keys(layer), memories.key_bias(layer))]
    if memories.gated:
        middle.append((memories.gates(layer), memories.gate_bias(layer)))
    sites = [("intermediate", pair) for pair in middle]
    for site, pair in [*sites, ("output", (memories.values(layer), memories.bias(layer)))]:
        for part in pair if biases else pair[:1]:
            if part is not None:
                yield site, slice(None), part
