"""Bottleneck adapters: small layers beside a frozen model, after each of its sublayers or parallel to them.

    sequential   y <- y + up(relu(down(y)))        y [B T D]: what the sublayer's last projection gives
    parallel     y <- y + up(relu(down(x)))        x [B T D]: what enters the sublayer

in every block at both sites: "attention", whose x enters the attention module, and "feed_forward", whose x enters the
first projection. What is changed is the output of the last projection of each, before dropout, norm and residual sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.continual import beside
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import mix
from kemem.training import Domain, Method

SITES = ("attention", "feed_forward")
PLACEMENTS = ("sequential", "parallel")

Transform = Callable[[int, str, str, Tensor], Tensor]
"""(layer, site, place, tensor) -> the tensor to go on with, of equal shape; see `AdapterStack.inserted`."""


class Bottleneck(nn.Module):
    """One adapter: down [R D], ReLU, up [D R], each with a bias. `up` begins at 0, so nothing is added at first."""

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        # skip_init: torch's own initial values would be drawn from its global generator
        self.down = nn.utils.skip_init(nn.Linear, width, hidden)
        self.up = nn.utils.skip_init(nn.Linear, hidden, width)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(hidden, width, generator=generator) / width**0.5)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(
        self, x: Float[Tensor, "*B D"], change: Callable[[str, Tensor], Tensor] | None = None
    ) -> Float[Tensor, "*B D"]:
        """What is to be added. change: (place, tensor) -> tensor, at "input", "hidden" and "output"."""
        if change is None:
            return self.up(torch.relu(self.down(x)))
        hidden = change("hidden", torch.relu(self.down(change("input", x))))
        return change("output", self.up(hidden))


class AdapterStack(nn.Module):
    """Adapters for all blocks of one model; a plain module, which holds no reference to the model.

        stack = AdapterStack(model, hidden=8)
        beside.add_(model, "adapter", stack)
        with stack.inserted(model):
            ...                                   every pass of the model in here has the adapters in it

    `stack.adapter(layer, site)` is one `Bottleneck` with its Linear layers `down` and `up`; `stack.places` lists
    (layer, site) from the first block on; `stack.hidden[site]` is the width R. All paths come from `Memories`.

    hidden: R, one number for both sites or a number for each. sites: may leave one out. seed: of the first weights of
    `down`; torch's global generator is not used.
    Refused: what is no site or placement, a width below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden: int | Mapping[str, int],
        placement: str = "sequential",
        sites: tuple[str, ...] = SITES,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _known("placement", placement, PLACEMENTS)
        for site in sites:
            _known("site", site, SITES)
        self.placement = placement
        self.hidden = {site: hidden if isinstance(hidden, int) else hidden[site] for site in sites}
        if not sites or min(self.hidden.values()) < 1:
            raise BadInput(
                f"expected adapters at least 1 wide at one site or more; got {self.hidden}; widen them."
            )
        memories = Memories(model)
        self.layers = nn.ModuleList()
        for layer in range(memories.layers):
            row = nn.ModuleDict()
            for site in sites:
                generator = torch.Generator().manual_seed(mix(seed, layer, SITES.index(site)) >> 1)
                row[site] = Bottleneck(memories.width, self.hidden[site], generator)
            self.layers.append(row)

    @property
    def places(self) -> list[tuple[int, str]]:
        return [(layer, site) for layer in range(len(self.layers)) for site in self.hidden]

    def adapter(self, layer: int, site: str) -> Bottleneck:
        return self.layers[layer][site]

    @contextmanager
    def inserted(self, model: nn.Module, transform: Transform | None = None) -> Iterator[None]:
        """Within the block every pass of the model has these adapters in it.

        transform: masks, routing, gates between an adapter's layers. It is called in every pass as
        transform(layer, site, place, tensor) and gives the tensor to go on with, at three places in this order:
            "input"    [B T D]   what the adapter reads: y if sequential, x if parallel; the sum y + ... keeps y itself
            "hidden"   [B T R]   relu(down(input))
            "output"   [B T D]   up(hidden), before it is added
        Gradients flow through it. `scaled` makes one from vectors. More stacks than one may be inserted at a time:
        the one inserted last reads what the ones before have added (sequential).
        """
        memories = Memories(model)
        ends = {place: _end(memories, *place) for place in self.places}
        with ExitStack() as stack:
            waiting: dict[tuple[int, str], Tensor] = {}
            if self.placement == "parallel":
                begins = {_begin(memories, *place): _keep(waiting, place) for place in self.places}
                stack.enter_context(trace.observe(model, begins, side="input"))
                stack.callback(waiting.clear)
            functions = {end: self._adding(place, waiting, transform) for place, end in ends.items()}
            stack.enter_context(trace.replace(model, functions, side="output"))
            yield

    def _adding(
        self, place: tuple[int, str], waiting: dict[tuple[int, str], Tensor], transform: Transform | None
    ) -> Callable[[Tensor], Tensor]:
        adapter = self.adapter(*place)

        def change(where: str, tensor: Tensor) -> Tensor:
            assert transform is not None
            return transform(*place, where, tensor)

        def add(y: Tensor) -> Tensor:
            x = y if self.placement == "sequential" else waiting.pop(place)
            return y + adapter(x, None if transform is None else change)

        return add


def scaled(
    hidden: Callable[[int, str], Tensor] | None = None, output: Callable[[int, str], Tensor] | None = None
) -> Transform:
    """A transform that multiplies each adapter's hidden units by hidden(layer, site) [R], its output by output [D]."""

    def transform(layer: int, site: str, place: str, tensor: Tensor) -> Tensor:
        scale = {"hidden": hidden, "output": output}.get(place)
        return tensor if scale is None else tensor * scale(layer, site)

    return transform


@dataclass(eq=False)
class Adapter(Method):
    """The model is frozen and adapters learn instead: one set for all domains, or one a domain.

    Houlsby et al. 2019; in Ke et al. 2023 "NCL-Adapter" is the shared set and "DAP-Adapter" one a domain (reduction
    16). Adapters are D // reduction wide. A domain without a set of its own is shown with the newest one. `adapters`
    in `model.beside`, or `adapters0`, `adapters1`, ... in the order of the domains.

    train_head: the language-model head's own parameters learn as well. All domains share them, so one set a domain
    then no longer keeps what an earlier domain had.
    Differs from Houlsby et al., whose adapters stand behind the sublayer's dropout: here they stand before it, so that
    what they add is dropped like the rest of the sublayer's output.
    Refused: a reduction that leaves no unit, a head without parameters of its own (tied to the embeddings).
    """

    reduction: int = 16
    placement: str = "sequential"
    per_domain: bool = False
    train_head: bool = False
    seed: int = 0
    _sets: beside.Sets = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _known("placement", self.placement, PLACEMENTS)
        if self.reduction < 1:
            raise BadInput(f"expected a reduction of at least 1; got {self.reduction}; 16 is usual.")
        self._sets = beside.Sets("adapters", each=self.per_domain)

    def before(self, model: nn.Module, domain: Domain) -> None:
        head = head_parameters(model) if self.train_head else []
        self._sets.begin(model, domain.name, lambda number: self._new(model, number), head)

    def _new(self, model: nn.Module, number: int) -> AdapterStack:
        width = Memories(model).width
        if width < self.reduction:
            raise BadInput(
                f"expected a reduction of at most the model's width, {width}; got {self.reduction}; lower it."
            )
        return AdapterStack(
            model, hidden=width // self.reduction, placement=self.placement, seed=mix(self.seed, number)
        )

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        return self.at(model, domain)

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        stack = self.stack(model, domain.name)
        return nullcontext() if stack is None else stack.inserted(model)

    def stack(self, model: nn.Module, name: str) -> AdapterStack | None:
        """The adapters that a domain is shown with; None before the first domain."""
        found = self._sets.of(model, name)
        assert found is None or isinstance(found, AdapterStack)
        return found

    def after(self, model: nn.Module, domain: Domain) -> None:
        self._sets.end()


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The language-model head's own parameters: outside of the base model, not tied to it. Refused: none."""
    inside = {id(p) for p in model.base_model.parameters()}
    named = model.named_parameters()
    found = [p for name, p in named if id(p) not in inside and not name.startswith(f"{beside.NAME}.")]
    if not found:
        raise BadInput(
            f"expected a head with parameters of its own; got a {type(model).__name__} whose head is missing or tied "
            "to its embeddings; set train_head=False, or untie it."
        )
    return found


def _begin(memories: Memories, layer: int, site: str) -> str:
    """Path of the module that a sublayer's input enters."""
    return memories.attention_path(layer) if site == "attention" else memories.up_path(layer)


def _end(memories: Memories, layer: int, site: str) -> str:
    """Path of a sublayer's last projection."""
    if site == "attention":
        return f"{memories.attention_path(layer)}.{memories.layout.output}"
    return memories.down_path(layer)


def _keep(waiting: dict[tuple[int, str], Tensor], place: tuple[int, str]) -> Callable[[Tensor], None]:
    def keep(x: Tensor) -> None:
        waiting[place] = x

    return keep


def _known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInput(
            f"expected {name} to be one of {', '.join(known)}; got {value!r}; choose one of these."
        )
