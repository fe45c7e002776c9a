"""MEMIT, Meng et al. 2023: many facts written at once, spread over the feed-forward layers that look facts up."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kemem.editing.edit import Edit, editable, value_deltas
from kemem.editing.facts import Request, check, without_conflicts
from kemem.editing.moments import Moments
from kemem.editing.prompts import PLAIN, Contexts, contexts, shares
from kemem.editing.solve import closed_form
from kemem.editing.stepping import Beginning
from kemem.editing.targets import Progress, Search, values
from kemem.errors import BadInput
from kemem.memory import Memories

AT_ONCE = 512  # requests whose keys in all contexts are held in float64 together
Solver = Callable[[int, Float[Tensor, "M N"], Float[Tensor, "D N"]], Float[Tensor, "D M"]]


@dataclass(frozen=True)
class MEMIT:
    """Writes requests into the feed-forward layers `layers`, the highest of which is where targets are set.

    weight: lambda, how many ordinary keys the old memories count as. search: how targets are found. Layers ascend.
    An edit is a value: the model is as it was when it is made.
    """

    layers: tuple[int, ...]
    weight: float = 15_000.0
    search: Search = field(default_factory=Search)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", ascending(self.layers))

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        requests: Sequence[Request],
        moments: Moments,
        *,
        templates: Sequence[str] = (PLAIN,),
        targets: Float[Tensor, "N D"] | None = None,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Edit:
        """Algorithm 1. templates: contexts of a prompt, the bare one first. targets: z, where they are known."""
        memories = editable(model)
        of = prepared(memories, tokenizer, requests, templates, self.layers)
        moments.checked(memories, self.layers)
        seconds: dict[str, float] = {}
        z, notes = wanted(memories, of, self.layers[-1], self.search, targets, batch_size, progress, seconds)

        def solve(layer: int, K: Tensor, R: Tensor) -> Tensor:
            factor = moments.factor(layer) if 2 * K.shape[1] <= memories.count else None
            return closed_form(K, R, moments[layer], weight=self.weight, factor=factor)

        deltas = spread(
            memories, of, z, self.layers, solve, batch_size=batch_size, seconds=seconds, progress=progress
        )
        return Edit(value_deltas(memories, deltas), seconds, notes)


def ascending(layers: Sequence[int]) -> tuple[int, ...]:
    """The layers of an editor; refused where there is none, or where they do not ascend."""
    if not layers or any(a >= b for a, b in pairwise(layers)):
        raise BadInput(f"expected layers that ascend; got {list(layers)}; give each once, the lowest first.")
    return tuple(layers)


def prepared(
    memories: Memories,
    tokenizer: Any,
    requests: Sequence[Request],
    templates: Sequence[str],
    layers: Sequence[int],
) -> list[Contexts]:
    """What every editor of this kind checks first: requests, layers, and that each prompt fits the model."""
    check(requests)
    without_conflicts(requests)
    for layer in layers:
        memories.block_path(layer)
    longest = getattr(memories.model.config, "max_position_embeddings", None)
    return contexts(tokenizer, requests, templates, longest=longest)


def wanted(
    memories: Memories, of: Sequence[Contexts], layer: int, search: Search, targets: Tensor | None,
    batch_size: int, progress: Progress | None, seconds: dict[str, float],
) -> tuple[Float[Tensor, "N D"], dict[str, Any]]:  # fmt: skip
    """The target vectors, found or given; and what is told of the search."""
    if targets is not None:
        if tuple(targets.shape) != (len(of), memories.width):
            raise BadInput(
                f"expected a target vector of {memories.width} numbers for each of {len(of)} requests; got shape "
                f"{tuple(targets.shape)}; give those of the same requests and model."
            )
        return targets, {"targets": targets}
    start = time.perf_counter()
    found = values(memories, of, layer, search, batch_size=batch_size, progress=progress)
    seconds["values"] = time.perf_counter() - start
    return found.z, {"targets": found.z, "passes": found.passes, "losses": found.losses}


def spread(
    memories: Memories, of: Sequence[Contexts], z: Float[Tensor, "N D"], layers: Sequence[int], solve: Solver, *,
    share: Callable[[int], float] = float, batch_size: int = 32, seconds: dict[str, float] | None = None,
    progress: Progress | None = None,
) -> dict[int, Float[Tensor, "D M"]]:  # fmt: skip
    """What each layer adds to its values, the lowest first, each seeing those below it changed.

    Meng et al. 2023, algorithm 1: of what the stream at the subject's last token still lacks of z above the highest
    layer, (z - h) / (layers left) is this layer's to add; its keys are those of the model as edited so far.
    share: what the lack is divided by, given the number of layers left. In one sweep upwards: rows are read once up to
    the lowest layer, then block by block, up to the subject's last token alone.
    """
    per = len(of[0].rows)
    rows = Beginning(memories, [row for c in of for row in c.to_subject], batch_size=batch_size * per)
    number = rows.index.view(len(of), per)
    plain, weights = number[:, 0], shares(per)
    deltas: dict[int, Tensor] = {}
    spent = {"keys": 0.0, "solve": 0.0}
    with ExitStack() as stack:
        for done, layer in enumerate(layers):
            start = time.perf_counter()
            K = averaged(rows.coefficients(layer), number, weights)
            lacking = z.to(K) - rows.outputs(layers[-1], plain).to(K)
            between = time.perf_counter()
            delta = solve(layer, K, (lacking / share(len(layers) - done)).T)
            deltas[layer] = delta
            stack.enter_context(Edit(value_deltas(memories, {layer: delta})).applied(memories.model))
            spent["keys"] += between - start
            spent["solve"] += time.perf_counter() - between
            if progress is not None:
                progress(done + 1, len(layers), f"layer {layer}")
    if seconds is not None:
        seconds.update(spent)
    return deltas


def averaged(
    keys: Float[Tensor, "U M"], number: Int[Tensor, "N P"], weights: Float[Tensor, " P"]
) -> Float[Tensor, "M N"]:
    """Of each request the mean of its contexts' keys, rows `number` of `keys`, in float64; some requests at a time."""
    weights = weights.to(keys.device)
    return torch.cat(
        [torch.einsum("p,npm->mn", weights, keys[own].double()) for own in number.split(AT_ONCE)], 1
    )
