"""B-CL, Ke et al. 2021: capsules of all domains so far, mixed by routing, before adapters under HAT masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.continual import beside
from kemem.continual.cpt import end
from kemem.continual.hat_adapter import HATAdapter, adapters
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import mix
from kemem.training import Domain

SIZE = 3  # numbers in a capsule
COUNT = 3  # capsules that are mixed from those of the domains
ITERATIONS = 3


class Capsule(nn.Module):
    """What one domain makes of a token, as a proposal for each of the mixed capsules: W_j second(relu(first(x)))."""

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) / shape[-1] ** 0.5)

        self.first, self.second, self.proposal = (
            drawn(hidden, width),
            drawn(SIZE, hidden),
            drawn(COUNT, SIZE, SIZE),
        )

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K 3"]:
        """The proposals, one for each of the K mixed capsules."""
        p = torch.relu(x @ self.first.T) @ self.second.T  # [*B 3]
        return torch.einsum("kij,...j->...ki", self.proposal, p)


def routed(u: Float[Tensor, "t *B K 3"]) -> Float[Tensor, "*B K 3"]:
    """The mixed capsules: those of domains that agree with the mixture count more. Lengths are below 1.

    Sabour et al. 2017, three times, from b = 0:
        c = softmax_i(b),   v_j = squash(sum_i c_ij u_ij),   b_ij <- b_ij + u_ij . v_j        i: domains, j: capsules
    squash(s) = s |s| / (1 + |s|^2). The softmax is over domains, so that one of t = 1 gets all.
    """
    b = torch.zeros_like(u[..., 0])
    for iteration in range(ITERATIONS):
        s = (b.softmax(0)[..., None] * u).sum(0)
        length = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
        v = s * length / (1 + length.square())
        if iteration + 1 < ITERATIONS:
            b = b + (u * v).sum(-1)
    return v


@dataclass(eq=False)
class BCL(HATAdapter):
    """After every sublayer, what the capsules of all domains so far share is added; HAT-Adapter follows.

    Ke, Xu and Liu 2021, with the adapters of `HATAdapter`, as used beside DAS:
        y <- y + spread(routed(capsules of domains 1..t of y)),      then as in `HATAdapter`
    Every domain brings a capsule of 3 numbers to each place, made by two layers (the first as wide as the adapter), and
    sees those of earlier domains, never of later ones. Routing mixes them into 3 capsules, whose 9 numbers `spread`
    [D 9] reads. `spread` begins at 0: at first the function is the model's.

    All visible capsules and `spread` learn in every domain and nothing holds them: only the adapters are under masks.
    An earlier domain so is shown with its own mask and domains, and may be forgotten through what is shared.
    Refused: the parallel placement, whose adapters would not read what is shared.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement != "sequential":
            raise BadInput(
                f"expected sequential adapters, which read what capsules add; got {self.placement!r}; leave it out."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        memories, task = Memories(model), 0 if self._masks is None else len(self._masks.tasks)
        width = memories.width
        generator = torch.Generator().manual_seed(mix(self.seed, task, 1) >> 1)
        fresh, spread = nn.ModuleDict(), nn.ParameterDict()
        for layer in range(memories.layers):
            for site in ("attention", "feed_forward"):
                fresh[f"{site}{layer}"] = Capsule(width, max(1, width // self.reduction), generator)
                spread[f"{site}{layer}"] = torch.zeros(width, COUNT * SIZE)
        beside.add_(model, f"capsules{task}", fresh)
        if not task:
            beside.add_(model, "spread", spread)
        super().before(model, domain)

    def learning(self, model: nn.Module) -> list[nn.Module | nn.Parameter]:
        names = [name for name in beside.present(model) if name.startswith("capsules")]
        return [*super().learning(model), *(beside.module(model, name) for name in ("spread", *names))]

    @contextmanager
    def inserted(self, model: nn.Module, mask: Callable[[str], Tensor], task: int) -> Iterator[None]:
        memories, spread = Memories(model), beside.module(model, "spread")
        visible = [beside.module(model, f"capsules{i}") for i in range(task + 1)]

        def share(place: str) -> Callable[[Tensor], Tensor]:
            def shared(y: Tensor) -> Tensor:
                proposals = torch.stack([each.get_submodule(place)(y) for each in visible])
                return y + routed(proposals).flatten(-2) @ spread.get_parameter(place).T

            return shared

        places = {
            end(memories, layer, site): share(f"{site}{layer}") for layer, site in adapters(model).places
        }
        with ExitStack() as stack:
            stack.enter_context(trace.replace(model, places, side="output"))
            stack.enter_context(super().inserted(model, mask, task))
            yield
