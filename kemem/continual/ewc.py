"""Keeping what mattered to earlier domains by the Fisher information: a penalty on its change, a mask of its update.

The Fisher is that of single parameters or is averaged over each unit, so there are four ways with one measure:

                    penalty                     mask
    parameter       EWC(by="parameter")         FisherMask(by="parameter")
    unit            EWC(by="unit")              FisherMask(by="unit")
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kemem.continual.fisher import fisher, fitting, ranked, refuse
from kemem.errors import BadInput
from kemem.objective import Batch, Objective, causal, mix
from kemem.training import Domain, Method


@dataclass(eq=False)
class _Measured(Method):
    """What both have: the Fisher of each domain at its end."""

    strength: float = 1.0
    samples: int = 1000
    by: str = "parameter"
    of_batches: int = 0
    seed: int = 0
    objective: Objective = causal
    domains: int = field(default=0, init=False, repr=False)
    """How many were finished."""
    _unseen: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        refuse(self.samples, self.by, self.of_batches)

    def before(self, model: nn.Module, domain: Domain) -> None:
        self._unseen = True

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        if self._unseen:
            fitting(self.objective, batch)
            self._unseen = False
        return loss

    def measured(self, model: nn.Module, domain: Domain) -> dict[str, Tensor]:
        return fisher(
            model,
            domain.blocks,
            samples=self.samples,
            objective=self.objective,
            by=self.by,
            of_batches=self.of_batches,
            seed=mix(self.seed, self.domains),
        )


@dataclass(eq=False)
class EWC(_Measured):
    """Elastic weight consolidation: a quadratic penalty on leaving the last domain's end, by the Fisher F.

    Kirkpatrick et al. 2017, as Ke et al. 2023 use it:
        L + (strength / 2) sum_i F_i (theta_i - anchor_i)^2        F <- (F_new + k F) / (k + 1) after k earlier domains
    There is one anchor, the model at the end of the last domain. In the first domain there is no penalty.

    strength: 5000 is the best of the released code's grid of 500 to 50,000. samples, by, of_batches: of `fisher`.
    objective: the one that training is given. strength = 0 is plain training bit for bit.
    A second copy of the parameters and their F are held, and both are read once a micro-batch.
    """

    strength: float = 5000.0
    fisher: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    anchor: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < math.inf:
            raise BadInput(f"strength must be 0 or more; got {self.strength}; 0 is plain training.")

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        loss = super().loss(model, batch, loss)
        if not (self.strength and self.fisher):
            return loss
        terms = [
            (self.fisher[name] * (p - self.anchor[name]).square()).sum()
            for name, p in model.named_parameters()
            if name in self.fisher
        ]
        return loss + 0.5 * self.strength * torch.stack(terms).sum()

    def after(self, model: nn.Module, domain: Domain) -> None:
        k, found = self.domains, self.measured(model, domain)
        self.fisher = {
            name: (new + k * self.fisher[name]) / (k + 1) if name in self.fisher else new
            for name, new in found.items()
        }
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters() if name in found}
        self.domains += 1


@dataclass(eq=False)
class FisherMask(_Measured):
    """A soft mask of each step's update by the Fisher of earlier domains, ranked within each tensor.

    Ours, between EWC and DAS:  theta <- theta_before + (1 - strength I) (theta_after - theta_before)
    where I in [0, 1] is the elementwise maximum over the earlier domains of the rank of F in its tensor (`ranked`). The
    update is masked and not the gradient, whose size AdamW divides out; weight decay is a part of the update. Ranks of
    parameters and of units have one mean, 1/2 where none are equal, so after a first domain both spare as much. In the
    first domain nothing is masked.

    samples, by, of_batches: of `fisher`. objective: the one that training is given. strength: in [0, 1]; 0 is plain
    training bit for bit.
    """

    importance: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength <= 1:
            raise BadInput(
                f"strength must be a share of the importance, in [0, 1]; got {self.strength}; 1 leaves the most "
                "important parameter of each tensor unmoved."
            )

    def updated(self, model: nn.Module, previous: dict[str, Tensor]) -> None:
        for name, importance in self.importance.items():
            if name in previous and self.strength:
                parameter = model.get_parameter(name)
                back = (self.strength * importance).to(parameter.dtype)
                parameter.copy_(torch.lerp(parameter, previous[name], back))  # exact at 0 and 1

    def after(self, model: nn.Module, domain: Domain) -> None:
        for name, found in self.measured(model, domain).items():
            rank = ranked(found)
            self.importance[name] = torch.maximum(rank, self.importance.get(name, rank))
        self.domains += 1
