"""CLASSIC, Ke et al. 2021: adapters under HAT masks, drawn towards what the masks of earlier domains make of a text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kemem.continual import beside
from kemem.continual.contrast import draws, last_hidden, present, representation, restored
from kemem.continual.hat_adapter import HATAdapter
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import Batch, mix
from kemem.training import Domain

NAME = "mixture"


class Mixture(nn.Module):
    """One representation from several, by self-attention between them. It begins as their mean."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(mix(seed) >> 1)
        drawn = [torch.randn(width, width, generator=generator) / width**0.5 for _ in range(2)]
        self.query, self.key = map(nn.Parameter, drawn)
        self.value = nn.Parameter(torch.zeros(width, width))

    def forward(self, each: Float[Tensor, "B t D"]) -> Float[Tensor, "B D"]:
        """1/t sum_i (r_i + sum_j a_ij V r_j),  a_i = softmax_j(q_i . k_j / sqrt(D))"""
        scores = (each @ self.query.T) @ (each @ self.key.T).transpose(1, 2)
        weights = (scores / each.shape[-1] ** 0.5).softmax(-1)
        return (each + weights @ each @ self.value.T).mean(1)


def twin_loss(a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], temperature: float) -> Float[Tensor, ""]:
    """SimCLR's loss, in nats: of all other 2B - 1 representations each is to find its twin in the other view.

    Chen et al. 2020:  1/2B sum_i -log(e^(sim(i, twin of i)/tau) / sum_{j != i} e^(sim(i, j)/tau)),  sim the cosine.
    """
    both = F.normalize(torch.cat([a, b]), dim=-1)
    similar = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similar, torch.arange(2 * len(a), device=a.device).roll(len(a)))


@dataclass(eq=False)
class CLASSIC(HATAdapter):
    """HAT-Adapter, and from the second domain on a contrast that hands over what earlier domains know of a text.

    Ke et al. 2021, with the adapters of `HATAdapter`, as used beside DAS (weight and temperature 1):
        L = L_HAT + contrast * twin_loss(z, Mixture(z_1, ..., z_(t-1)))
    z, z_k [D]: the mean of the final hidden state over the text's tokens, under the present mask and, without gradient,
    under the masks of each earlier domain. Texts are read as they were before a masked objective hid any of them.

    contrast = 0 is `HATAdapter` bit for bit. Negatives are the other texts of a micro-batch, so a step depends on how
    it is cut. A step costs one more pass with gradient, and one without for each earlier domain.
    Differs from the released code, which normalises one of the two views only.
    """

    contrast: float = 1.0
    temperature: float = 1.0
    _step: int = field(default=0, init=False, repr=False)
    _cut: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrast < 0 or self.temperature <= 0:
            raise BadInput(
                "expected a contrast of 0 or more and a temperature above 0; got "
                f"{self.contrast} and {self.temperature}; both are 1 as released."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        if self._masks is None and self.contrast:
            beside.add_(model, NAME, Mixture(Memories(model).width, self.seed))
        super().before(model, domain)

    def learning(self, model: nn.Module) -> list[nn.Module | nn.Parameter]:
        return [*super().learning(model), *([beside.module(model, NAME)] if self.contrast else [])]

    def rows(self, step: int, batch: Batch) -> Batch:
        self._step, self._cut = step, 0
        return super().rows(step, batch)

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        loss = super().loss(model, batch, loss)
        masks, texts = self._begun(), restored(batch)
        earlier = len(masks.tasks) - 1
        if not self.contrast or not earlier:
            return loss
        self._cut += 1
        # dropout from draws of its own, so that those of the ordinary passes stay what they were
        with draws(loss.device, self.seed, self._step, self._cut):
            own = representation(last_hidden(model, texts), present(texts))
            each = []
            for task in range(earlier):
                self._shown = masks.final(model, task)
                try:
                    with torch.no_grad():
                        each.append(representation(last_hidden(model, texts), present(texts)))
                finally:
                    self._shown = None
        mixture = beside.module(model, NAME)
        known = mixture(torch.stack(each, 1).to(next(mixture.parameters()).dtype))
        return loss + self.contrast * twin_loss(own, known.to(own.dtype), self.temperature)
