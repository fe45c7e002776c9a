"""HAT, Serra et al. 2018, on a whole language model: each domain opens units of its own, and used ones are held."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kemem import trace
from kemem.continual import beside
from kemem.continual.gates import SITES, Units
from kemem.continual.softmask import PLACEMENTS, mask_gradients_, mask_update_, multipliers
from kemem.continual.taskmasks import TaskMasks, freedom, sparsity, steepness
from kemem.errors import BadInput
from kemem.families import matrix
from kemem.memory import Memories
from kemem.objective import Batch
from kemem.training import Domain, Method

SHOWN = ("mask", "all")


@dataclass(eq=False)
class HAT(Method):
    """Each domain learns which heads, memories and output units of the model are its own; those in use may not move.

    Serra et al. 2018, with the sites of DAS (Ke et al. 2023). In every block are multiplied by m_t = sigmoid(s e_t)
        heads [H]          the context of each head, before the output projection of attention
        intermediate [M]   the coefficients of the memories, before the last projection of the feed-forward
        output [D]         what the feed-forward gives, before dropout, norm and residual
    and a weight between an input unit j and an output unit i moves by 1 - min(m_i, m_j) of what it would, m being the
    maximum over earlier domains. Of the two units only those count that belong to a site joined by this very weight:
        rows of query, key, value: the head (shared keys and values: the largest of their heads)
        columns of the output projection of attention: the head
        rows of up and gate: the memory                values: min(output, memory), their bias: output
    The residual stream on the other side is read and written by every domain, so it counts as used. What belongs to no
    site (embeddings, norms, the head of the model, the bias of attention's output) is trained freely as in the
    released code, and so is a leak: a tied embedding changes every score of every earlier domain.

    steps: those of one domain's recipe, over which s rises; the method does not see the recipe. sparsity: weight of the
    share of free units that a domain takes. mask: "update" holds used weights under any optimizer and its decay,
    "gradient" as released: AdamW divides factors above 0 out again, and decays what has factor 0. evaluate: "mask"
    shows a domain its own sub-network at smax, "all" the whole model (HAT-All; training is the same). freeze_rest:
    what belongs to no site is not trained at all. pace, seed: of the embeddings, see `TaskMasks`.
    The compensated gradients of e are large and count in the global norm: clipping (`Recipe.clip`) scales all others
    down with them, from step to step differently; Ke et al. do not clip.

    No setting of it is plain training: masks drawn from N(0, 1) shut half of all units of a trained model. In OLMo2,
    which normalises queries and keys over all heads together, rows of a free head still reach the used ones.
    Differs from the released code, which masks before the activation and has no way to hold weights under AdamW.
    """

    steps: int
    smax: float = 400.0
    sparsity: float = 0.75
    mask: str = "update"
    evaluate: str = "mask"
    freeze_rest: bool = False
    pace: float = 1.0
    seed: int = 0
    _masks: TaskMasks | None = field(default=None, init=False, repr=False)
    _factors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _back: Callable[[], None] | None = field(default=None, init=False, repr=False)
    _s: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value, known in (("mask", self.mask, PLACEMENTS), ("evaluate", self.evaluate, SHOWN)):
            if value not in known:
                raise BadInput(f"expected {name} to be one of {', '.join(known)}; got {value!r}; choose one.")
        if self.steps < 1 or self.sparsity < 0:
            raise BadInput(
                "expected steps of 1 or more, as the recipe has, and a sparsity of 0 or more; got "
                f"{self.steps} and {self.sparsity}; change them."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        if self._masks is None:
            self._masks = TaskMasks(sizes(Memories(model)), self.smax, self.pace, self.seed)
        self._factors = freedoms(model, self._masks.used) if self._masks.used else {}
        own = self._masks.add_(model, domain)
        self._s = steepness(1, self.steps, self.smax)
        if self.freeze_rest:
            embeddings = self._masks.embeddings(model)
            joining = freedoms(model, {site: torch.ones_like(e.detach()) for site, e in embeddings.items()})
            self._back = beside.train_only_(model, [own, *map(model.get_parameter, joining)])

    @contextmanager
    def during(self, model: nn.Module, domain: Domain) -> Iterator[None]:
        masks = self._begun()
        with multiplied(Memories(model), lambda site: masks.mask(model, site, self._s)):
            yield

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        task = None if self._masks is None or self.evaluate == "all" else self._masks.task(domain)
        if task is None:
            return nullcontext()
        return multiplied(Memories(model), self._begun().final(model, task).__getitem__)

    def rows(self, step: int, batch: Batch) -> Batch:
        self._s = steepness(step, self.steps, self.smax)
        return batch

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        masks = self._begun()
        return loss + self.sparsity * sparsity(masks.masks(model, self._s), masks.used)

    def gradients(self, model: nn.Module) -> None:
        self._begun().compensate_(model, self._s)
        if self.mask == "gradient":
            mask_gradients_(model, self._factors)

    def updated(self, model: nn.Module, previous: dict[str, Tensor]) -> None:
        self._begun().constrain_(model, previous)
        if self.mask == "update":
            mask_update_(model, previous, self._factors)

    def after(self, model: nn.Module, domain: Domain) -> None:
        if self._back is not None:
            self._back()
        self._begun().finish_(model)

    def _begun(self) -> TaskMasks:
        assert self._masks is not None, "before comes first"
        return self._masks


def sizes(memories: Memories) -> dict[str, int]:
    """Units of every site of a model, by name: heads0, intermediate0, output0, heads1, ..."""
    units = {"heads": memories.heads, "intermediate": memories.count, "output": memories.width}
    return {f"{kind}{layer}": count for layer in range(memories.layers) for kind, count in units.items()}


@contextmanager
def multiplied(memories: Memories, mask: Callable[[str], Tensor]) -> Iterator[None]:
    """As `gates.gated`, with mask(site) asked for in every pass, because it is learned."""

    def times(site: str) -> Callable[[Tensor], Tensor]:
        def product(x: Tensor) -> Tensor:
            m = mask(site).to(x)
            return x * m.repeat_interleave(x.shape[-1] // m.numel())  # a head has several numbers

        return product

    entering: dict[str, Callable[[Tensor], Tensor]] = {}
    leaving: dict[str, Callable[[Tensor], Tensor]] = {}
    for layer in range(memories.layers):
        entering[f"{memories.attention_path(layer)}.{memories.layout.output}"] = times(f"heads{layer}")
        entering[memories.down_path(layer)] = times(f"intermediate{layer}")
        leaving[memories.down_path(layer)] = times(f"output{layer}")
    with ExitStack() as stack:
        stack.enter_context(trace.replace(memories.model, entering, side="input"))
        stack.enter_context(trace.replace(memories.model, leaving, side="output"))
        yield


def freedoms(model: nn.Module, used: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How far every number of what joins units of a site may move, by name of the parameter; all 1 is left out."""
    layers = range(Memories(model).layers)
    units = Units(*(torch.stack([used[f"{kind}{layer}"] for layer in layers]) for kind in SITES))
    found = multipliers(model, units)
    for layer in layers:
        path = Memories(model).down_path(layer)
        down = copy.deepcopy(trace.module(model, path))  # to orient it as the module does
        matrix(down).copy_(freedom(used[f"output{layer}"], used[f"intermediate{layer}"]))
        found[f"{path}.weight"] = down.get_parameter("weight").detach()
    return found
