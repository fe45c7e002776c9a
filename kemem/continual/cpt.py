"""CPT, Ke et al. 2022: a plugin beside every sublayer of a frozen model, shared by domains under masks of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.continual import beside
from kemem.continual.softmask import mask_gradients_, mask_update_
from kemem.continual.taskmasks import TaskMasks, freedom_of_two, steepness
from kemem.errors import BadInput
from kemem.families import matrix
from kemem.memory import Memories
from kemem.objective import Batch, mix
from kemem.training import Domain, Method

NAME = "plugins"
SITES = ("attention", "feed_forward")
PLACEMENTS = ("parallel", "sequential")
STARTS = ("zero", "random")

Mask = Callable[[str], Tensor]


class Plugin(nn.Module):
    """down [R D], ReLU, mask, up [D' R], ReLU, mask: what is added, so never negative."""

    def __init__(self, width: int, hidden: int, out: int, start: str, generator: torch.Generator) -> None:
        super().__init__()
        # skip_init: torch's own initial values would be drawn from its global generator
        self.down = nn.utils.skip_init(nn.Linear, width, hidden)
        self.up = nn.utils.skip_init(nn.Linear, hidden, out)
        with torch.no_grad():
            for layer, drawn in ((self.down, True), (self.up, start == "random")):
                bound = layer.in_features**-0.5 if drawn else 0.0  # torch's own bound of a linear layer
                for p in (layer.weight, layer.bias):
                    p.copy_(bound * (2 * torch.rand(p.shape, generator=generator) - 1))

    def forward(self, x: Float[Tensor, "*B D"], mask: Callable[[str], Tensor] | None) -> Tensor:
        """What is to be added. mask: of "hidden" and of "output", the units' factors; None: no masks."""
        hidden = torch.relu(self.down(x))
        if mask is not None:
            hidden = hidden * mask("hidden").to(hidden)
        y = self.up(hidden)
        y = torch.where(y >= 0, y, 0.0)  # ReLU with derivative 1 at 0, where `up` begins
        return y if mask is None else y * mask("output").to(y)


@dataclass(eq=False)
class CPT(Method):
    """Two plugins in every block learn the domains, each under its own task mask; the model itself is frozen.

    Ke et al. 2022, the CL-plugin. With x what enters a sublayer, y what its last projection gives, c the joined
    contexts of the heads:
        plugin(x) = m2_t (x) relu(up(m1_t (x) relu(down(x))))
        parallel     attention c <- c + plugin(x), before its output projection;  feed-forward y <- y + plugin(x)
        sequential   y <- y + plugin(y) in both
    m = sigmoid(s e) with s from 1/smax to smax over a domain (tau = 1/s in the paper), without a sparsity loss. Shown
    and kept masks are binary, 1 where m > 0.5 at smax. Used weights are held in the gradient and in the update, as
    CPT's own Adam does: down by m1, up by min(m2, m1), its bias by m2, each the maximum over earlier domains.

    attention_width, feed_forward_width: hidden units as shares of the model's width D (512 and 768 of 768).
    task_masks=False: the same plugins shared without masks, so nothing is held. train_shared: norms and the head's own
    layers (not the vocabulary's matrix) learn as well, as released; all domains share them and nothing holds them.
    start: "zero" begins with `up` at 0, so that the function is the model's at first; "random" as released.
    steps, pace, seed: as in `HAT`.
    Differs from the released code, whose parallel feed-forward plugin also adds x itself, so that it counts twice; and
    from both in adding to y before the block's dropout.
    """

    steps: int
    placement: str = "parallel"
    task_masks: bool = True
    attention_width: float = 512 / 768
    feed_forward_width: float = 1.0
    train_shared: bool = True
    start: str = "zero"
    smax: float = 400.0
    pace: float = 1.0
    seed: int = 0
    _masks: TaskMasks | None = field(default=None, init=False, repr=False)
    _factors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _back: Callable[[], None] | None = field(default=None, init=False, repr=False)
    _s: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("placement", self.placement, PLACEMENTS),
            ("start", self.start, STARTS),
        ):
            if value not in known:
                raise BadInput(
                    f"expected {name} to be one of {', '.join(known)}; got {value!r}; choose one of these."
                )
        if self.steps < 1 or self.attention_width <= 0 or self.feed_forward_width <= 0:
            raise BadInput(
                "expected steps of 1 or more and widths above 0; got "
                f"{self.steps}, {self.attention_width} and {self.feed_forward_width}; raise them."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        if self._masks is None:
            self._masks = TaskMasks(self._build(model), self.smax, self.pace, self.seed)
        masks, learning = self._masks, [beside.module(model, NAME)]
        if self.task_masks:
            self._factors = freedoms(masks.used)
            learning.append(masks.add_(model, domain))
        else:
            masks.tasks.append(domain.name)
        self._s = steepness(1, self.steps, self.smax)
        self._back = beside.train_only_(model, [*learning, *(shared(model) if self.train_shared else [])])

    def _build(self, model: nn.Module) -> dict[str, int]:
        """Puts the plugins beside the model, and says how many units each of their layers has."""
        memories, plugins, sites = Memories(model), nn.ModuleDict(), {}
        shares = {"attention": self.attention_width, "feed_forward": self.feed_forward_width}
        for layer in range(memories.layers):
            for site, share in shares.items():
                out = memories.width
                if site == "attention" and self.placement == "parallel":
                    out = matrix(trace.module(model, end(memories, layer, site))).shape[
                        1
                    ]  # of the joined contexts
                hidden = max(1, round(share * memories.width))
                generator = torch.Generator().manual_seed(mix(self.seed, len(plugins)) >> 1)
                plugins[f"{site}{layer}"] = Plugin(memories.width, hidden, out, self.start, generator)
                sites |= {f"{site}{layer}_hidden": hidden, f"{site}{layer}_output": out}
        beside.add_(model, NAME, plugins)
        return sites

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        masks = self._begun()
        mask = (lambda site: masks.mask(model, site, self._s)) if self.task_masks else None
        return inserted(model, self.placement, mask)

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        task = None if self._masks is None else self._masks.task(domain)
        if task is None:
            return nullcontext()
        final = self._begun().final(model, task, binary=True).__getitem__ if self.task_masks else None
        return inserted(model, self.placement, final)

    def rows(self, step: int, batch: Batch) -> Batch:
        self._s = steepness(step, self.steps, self.smax)
        return batch

    def gradients(self, model: nn.Module) -> None:
        if self.task_masks:
            self._begun().compensate_(model, self._s)
            mask_gradients_(model, self._factors)

    def updated(self, model: nn.Module, previous: dict[str, Tensor]) -> None:
        if self.task_masks:
            self._begun().constrain_(model, previous)
            mask_update_(model, previous, self._factors)

    def after(self, model: nn.Module, domain: Domain) -> None:
        assert self._back is not None, "before comes first"
        self._back()
        if self.task_masks:
            self._begun().finish_(model, binary=True)

    def _begun(self) -> TaskMasks:
        assert self._masks is not None, "before comes first"
        return self._masks


def end(memories: Memories, layer: int, site: str) -> str:
    """Path of the last projection of a sublayer."""
    if site == "attention":
        return f"{memories.attention_path(layer)}.{memories.layout.output}"
    return memories.down_path(layer)


@contextmanager
def inserted(model: nn.Module, placement: str, mask: Mask | None) -> Iterator[None]:
    """Within the block every pass has the plugins in it, their units multiplied by mask(name), if there is one."""
    memories, plugins = Memories(model), beside.module(model, NAME)
    waiting: dict[str, Tensor] = {}  # what entered a sublayer, until its plugin reads it

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda x: waiting.__setitem__(name, x)

    def add(name: str) -> Callable[[Tensor], Tensor]:
        own = None if mask is None else (lambda layer: mask(f"{name}_{layer}"))
        return lambda y: y + plugins.get_submodule(name)(waiting.pop(name, y), own)

    begins, contexts, outputs = {}, {}, {}
    for layer in range(memories.layers):
        for site in SITES:
            name, path = f"{site}{layer}", end(memories, layer, site)
            if placement == "parallel":
                begin = memories.attention_path if site == "attention" else memories.up_path
                begins[begin(layer)] = keep(name)
            (contexts if placement == "parallel" and site == "attention" else outputs)[path] = add(name)
    with ExitStack() as stack:
        stack.enter_context(trace.observe(model, begins, side="input"))
        stack.enter_context(trace.replace(model, contexts, side="input"))
        stack.enter_context(trace.replace(model, outputs, side="output"))
        yield


def freedoms(used: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How far every number of every plugin may move, by name of its parameter; empty before anything is used."""
    found: dict[str, Tensor] = {}
    for name in sorted({site.partition("_hidden")[0] for site in used if site.endswith("_hidden")}):
        units = used[f"{name}_hidden"], used[f"{name}_output"]
        found |= freedom_of_two(f"{beside.NAME}.{NAME}.{name}", *units)
    return found


def shared(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of norms, and of the head without the vocabulary's matrix.

    A norm is a module with vectors only and no module inside; the head is what lies outside of the base model.
    """
    own = {id(p) for p in (model.beside.parameters() if beside.present(model) else ())}
    base = getattr(model, model.base_model_prefix, model)  # type: ignore[arg-type]
    inside = {id(p) for p in base.parameters()}
    words = model.get_output_embeddings()  # type: ignore[operator]
    head = {id(p) for p in model.parameters()} - inside - {id(words.weight) if words is not None else 0}
    norms = set()
    for module in model.modules():
        vectors = list(module.parameters(recurse=False))
        if vectors and not list(module.children()) and all(p.ndim == 1 for p in vectors):
            norms |= {id(p) for p in vectors}
    return [p for p in model.parameters() if id(p) in (norms | head) - own]
