"""HAT inside adapters: the model is frozen, and each domain opens units of its own in adapters that all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor, nn

from kemem.continual import beside
from kemem.continual.adapters import AdapterStack, Transform
from kemem.continual.softmask import PLACEMENTS, mask_gradients_, mask_update_
from kemem.continual.taskmasks import TaskMasks, freedom_of_two, sparsity, steepness
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import Batch
from kemem.training import Domain, Method

NAME = "adapters"


@dataclass(eq=False)
class HATAdapter(Method):
    """Adapters shared by all domains, with a mask of each domain on their hidden and output units.

    Serra et al. 2018 in the adapters of Houlsby et al. 2019, "HAT-Adapter" in Ke et al. 2023 (reduction 16):
        y <- y + m2_t (x) up(m1_t (x) relu(down(x)))       m = sigmoid(s e), s as in `HAT`
    and weights move by 1 - m1 (down), 1 - min(m2, m1) (up), 1 - m2 (its bias), with the maxima over earlier domains.
    Nothing else is trained, so what an earlier domain computes stays as far as its masks are 0 or 1. `up` begins at 0:
    at first the function is the model's, whatever the masks.

    Settings as in `HAT`; adapters are D // reduction wide, placement as in `AdapterStack`.
    """

    steps: int
    reduction: int = 16
    placement: str = "sequential"
    smax: float = 400.0
    sparsity: float = 0.75
    mask: str = "update"
    pace: float = 1.0
    seed: int = 0
    _masks: TaskMasks | None = field(default=None, init=False, repr=False)
    _factors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _back: Callable[[], None] | None = field(default=None, init=False, repr=False)
    _s: float = field(default=0.0, init=False, repr=False)
    _shown: Mapping[str, Tensor] | None = field(default=None, init=False, repr=False)
    """Masks to pass under instead of the present domain's, within `during`."""

    def __post_init__(self) -> None:
        if self.mask not in PLACEMENTS:
            raise BadInput(
                f"expected mask to be one of {', '.join(PLACEMENTS)}; got {self.mask!r}; choose one of these."
            )
        if self.steps < 1 or self.sparsity < 0 or self.reduction < 1:
            raise BadInput(
                "expected steps and reduction of 1 or more, and a sparsity of 0 or more; got "
                f"{self.steps}, {self.reduction} and {self.sparsity}; change them."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        if self._masks is None:
            width = Memories(model).width
            if width < self.reduction:
                raise BadInput(
                    f"expected a reduction of at most the model's width, {width}; got {self.reduction}; lower it."
                )
            hidden = width // self.reduction
            stack = AdapterStack(model, hidden=hidden, placement=self.placement, seed=self.seed)
            beside.add_(model, NAME, stack)
            sites = {}
            for place in stack.places:
                sites |= {unit(*place, "hidden"): hidden, unit(*place, "output"): width}
            self._masks = TaskMasks(sites, self.smax, self.pace, self.seed)
        self._factors = freedoms(adapters(model), self._masks.used) if self._masks.used else {}
        own = self._masks.add_(model, domain)
        self._s = steepness(1, self.steps, self.smax)
        self._back = beside.train_only_(model, [own, *self.learning(model)])

    def learning(self, model: nn.Module) -> list[nn.Module | nn.Parameter]:
        """What is trained in every domain, besides its own embeddings."""
        return [adapters(model)]

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        masks = self._begun()

        def mask(name: str) -> Tensor:
            return masks.mask(model, name, self._s) if self._shown is None else self._shown[name]

        return self.inserted(model, mask, len(masks.tasks) - 1)

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        task = None if self._masks is None else self._masks.task(domain)
        if task is None:
            return nullcontext()
        return self.inserted(model, self._begun().final(model, task).__getitem__, task)

    def inserted(
        self, model: nn.Module, mask: Callable[[str], Tensor], task: int
    ) -> AbstractContextManager[object]:
        """The model with the adapters of one domain in it."""
        return adapters(model).inserted(model, times(mask))

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
        assert self._back is not None, "before comes first"
        self._back()
        self._begun().finish_(model)

    def _begun(self) -> TaskMasks:
        assert self._masks is not None, "before comes first"
        return self._masks


def adapters(model: nn.Module) -> AdapterStack:
    found = beside.module(model, NAME)
    assert isinstance(found, AdapterStack)
    return found


def unit(layer: int, site: str, place: str) -> str:
    """Name of the units behind one layer of an adapter."""
    return f"{site}_{place}{layer}"


def times(mask: Callable[[str], Tensor]) -> Transform:
    """Multiplies an adapter's hidden and output units by their masks, asked for in every pass."""

    def transform(layer: int, site: str, place: str, tensor: Tensor) -> Tensor:
        return tensor if place == "input" else tensor * mask(unit(layer, site, place)).to(tensor)

    return transform


def freedoms(stack: AdapterStack, used: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How far every number of every adapter may move, by name of its parameter, as factors that broadcast to it."""
    found: dict[str, Tensor] = {}
    for layer, site in stack.places:
        name = f"{beside.NAME}.{NAME}.layers.{layer}.{site}"
        found |= freedom_of_two(name, used[unit(layer, site, "hidden")], used[unit(layer, site, "output")])
    return found
