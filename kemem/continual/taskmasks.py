"""Masks of units, one for each task: the part of HAT (Serra et al. 2018) that its relatives share.

Task t has an embedding e_t, one number a unit. While it is learned, its units are multiplied by

    m_t = sigmoid(s e_t)         s rising from 1 / smax to smax, so that every unit ends open or shut

and what earlier tasks use, m_(<t) = max over them of m at smax, is kept by holding back the weights between used units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem.continual import beside
from kemem.errors import BadInput
from kemem.objective import mix
from kemem.training import Domain

LIMIT = 6.0  # of an embedding, either way
COSH = 50.0  # largest |s e| of which the compensation takes the cosh


def steepness(step: int, steps: int, smax: float) -> float:
    """How steep the masks of a step are: 1 / smax at the first, smax at the last of a domain.

    Serra et al. 2018, eq. 3:  s = 1/smax + (smax - 1/smax) (b - 1) / (B - 1)      b = step, from 1; B = steps

    Differs from the code of Ke et al., which divides by B and so ends one step short of smax.
    Refused: a step beyond the last.
    """
    if step > steps:
        raise BadInput(
            f"expected a domain of {steps} steps, over which masks become sharp; got step {step}; give `steps` "
            "that of the recipe."
        )
    return 1 / smax + (smax - 1 / smax) * (step - 1) / max(1, steps - 1)


def compensation(e: Float[Tensor, "*units"], s: float, smax: float) -> Float[Tensor, "*units"]:
    """What the gradient of an embedding is multiplied by, because a steep sigmoid has almost none.

    Serra et al. 2018, eq. 5:  (smax / s) (cosh(s e) + 1) / (cosh(e) + 1),  s e clipped to [-50, 50]
    Since d sigmoid(s e)/de = (s / 2) / (cosh(s e) + 1), the result is smax times the gradient through sigmoid(e),
    with dL/dm as it is under the steep mask.

    Where sigmoid(s e) is 1 in the model's precision (s e > 17 in float32) the gradient is 0 and stays so.
    """
    return (smax / s) * (torch.cosh((s * e).clamp(-COSH, COSH)) + 1) / (torch.cosh(e) + 1)


def sparsity(masks: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Share of the still unused units that the masks take, in [0, 1]; over all sites together.

    Serra et al. 2018, eq. 6:  sum m (1 - u) / sum (1 - u),   u = m_(<t); nothing is used before the first task.
    0 where no unit is left.
    """
    free = {site: 1 - used[site] if site in used else torch.ones_like(m) for site, m in masks.items()}
    taken = torch.stack([(m * free[site]).sum() for site, m in masks.items()]).sum()
    left = torch.stack([units.sum() for units in free.values()]).sum()
    return taken / left.clamp(min=torch.finfo(left.dtype).tiny)


def freedom(output: Float[Tensor, " out"] | None, input: Float[Tensor, " in"] | None) -> Tensor:
    """How far each weight of a layer may move: 0 where both units it joins are used by earlier tasks, 1 where not.

    Serra et al. 2018, eq. 2:  1 - min(m_(<t) of the output unit, m_(<t) of the input unit),  as [out in].
    None is a side without masks: all tasks use all its units, so the other side decides alone, as [out 1] or [1 in].
    """
    if output is None:
        assert input is not None, "a layer without masks on either side has no freedom of its own"
        return 1 - input[None, :]
    return 1 - (output[:, None] if input is None else torch.minimum(output[:, None], input[None, :]))


@dataclass(eq=False)
class TaskMasks:
    """The embeddings and masks of all tasks, at named sites of so many units each. A task is a domain, by name.

    Embeddings are drawn from N(0, 1), lie beside the model as vectors (which the recipe's decay leaves alone), and are
    trained during their own task only.
    pace: how many times as far as the optimizer moves them they move. Adam moves a number by at most its rate a step,
    so that 2,580 steps at 1e-4 move an embedding by less than 0.3 and masks stay almost what was drawn.
    """

    sites: Mapping[str, int]
    smax: float
    pace: float = 1.0
    seed: int = 0
    tasks: list[str] = field(default_factory=list, init=False)
    used: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.smax <= 1:
            raise BadInput(
                f"smax must be above 1, so that masks become sharp; got {self.smax}; HAT's is 400."
            )
        if self.pace <= 0:
            raise BadInput(f"pace must be above 0; got {self.pace}; 1 leaves it to the optimizer.")

    def add_(self, model: nn.Module, domain: Domain) -> nn.Module:
        """Begins a task: its embeddings, beside the model."""
        place = len(self.tasks)
        generator = torch.Generator().manual_seed(mix(self.seed, place) >> 1)
        drawn = {site: torch.randn(units, generator=generator) for site, units in self.sites.items()}
        self.tasks.append(domain.name)
        return beside.add_(model, f"masks{place}", nn.ParameterDict(drawn))

    def task(self, domain: Domain) -> int | None:
        """The place of a domain among the tasks; of one not begun yet, that of the latest; None before any."""
        known = domain.name in self.tasks
        return self.tasks.index(domain.name) if known else len(self.tasks) - 1 if self.tasks else None

    def embeddings(self, model: nn.Module, task: int = -1) -> dict[str, nn.Parameter]:
        """Those of a task by site; -1 is the latest."""
        return dict(beside.module(model, f"masks{task % len(self.tasks)}").items())

    def mask(self, model: nn.Module, site: str, s: float) -> Float[Tensor, " units"]:
        """The mask of the latest task at a site, with its gradient."""
        return torch.sigmoid(s * self.embeddings(model)[site])

    def masks(self, model: nn.Module, s: float) -> dict[str, Tensor]:
        return {site: self.mask(model, site, s) for site in self.sites}

    def final(self, model: nn.Module, task: int = -1, *, binary: bool = False) -> dict[str, Tensor]:
        """The masks of a task at smax, without gradient. binary: 1 where above 0.5, 0 elsewhere."""
        found = {
            site: torch.sigmoid(self.smax * e.detach()) for site, e in self.embeddings(model, task).items()
        }
        return {site: (m > 0.5).to(m) for site, m in found.items()} if binary else found

    def compensate_(self, model: nn.Module, s: float) -> None:
        for e in self.embeddings(model).values():
            if e.grad is not None:
                e.grad.mul_(compensation(e.detach(), s, self.smax))

    def constrain_(self, model: nn.Module, previous: Mapping[str, Tensor]) -> None:
        """After a step: embeddings move by `pace` times the update, within [-6, 6]."""
        prefix = f"{beside.NAME}.masks{len(self.tasks) - 1}"
        for site, e in self.embeddings(model).items():
            if self.pace != 1 and f"{prefix}.{site}" in previous:
                e.add_(e - previous[f"{prefix}.{site}"], alpha=self.pace - 1)
            e.clamp_(-LIMIT, LIMIT)

    def finish_(self, model: nn.Module, *, binary: bool = False) -> None:
        """Ends the task: its units join those in use, its embeddings stay as they are."""
        for e in self.embeddings(model).values():
            e.requires_grad_(False)
        for site, m in self.final(model, binary=binary).items():
            self.used[site] = torch.maximum(self.used[site].to(m), m) if site in self.used else m


def freedom_of_two(name: str, hidden: Float[Tensor, " R"], output: Float[Tensor, " D"]) -> dict[str, Tensor]:
    """Freedom of an adapter's layers `down` [R D] and `up` [D R], whose outputs both are masked, by parameter."""
    return {
        f"{name}.down.weight": freedom(hidden, None),
        f"{name}.down.bias": 1 - hidden,
        f"{name}.up.weight": freedom(output, hidden),
        f"{name}.up.bias": 1 - output,
    }
