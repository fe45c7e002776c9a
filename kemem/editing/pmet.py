"""PMET, Li et al. 2024: targets found for attention and feed-forward layer together, of which the latter is written."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kemem import trace
from kemem.editing.edit import Edit, editable, value_deltas
from kemem.editing.facts import Request
from kemem.editing.memit import ascending, prepared, spread, wanted
from kemem.editing.moments import Moments
from kemem.editing.prompts import PLAIN, Contexts
from kemem.editing.solve import closed_form
from kemem.editing.stepping import Beginning, head_of
from kemem.editing.targets import Batch, Progress, Search, Values, searched
from kemem.errors import BadInput
from kemem.memory import Memories

EASED = 0.1  # what the target's loss counts once the target is the likeliest
STRAYED = 0.01  # the weighted KL term below which it is then enough


@dataclass(frozen=True)
class PMET:
    """Writes requests into the feed-forward layers `layers`, the highest of which, L, is where targets are set.

    Li et al. 2024: `joint_values` finds what attention and feed-forward layer of block L should put out together. The
    feed-forward's part v is written by MEMIT's closed form, the attention's part not at all. At each layer
        R = (v - FFN_L) / sqrt(layers left)
    with FFN_L what the feed-forward of block L puts out after the bare prompt by then. As in the released code, the
    lack is measured there and not at the stream: lower layers reach it through its input alone. Keys are MEMIT's.
    Defaults are the released ones of GPT-J. Refused: L = 0, below which there is no block to start from.
    """

    layers: tuple[int, ...]
    weight: float = 6_000.0
    search: Search = field(default_factory=partial(Search, steps=30, rate=0.2, kl=1.0))

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
        """templates: contexts of a prompt, the bare one first. targets: v, where they are known."""
        memories = editable(model)
        of = prepared(memories, tokenizer, requests, templates, self.layers)
        moments.checked(memories, self.layers)
        seconds: dict[str, float] = {}
        highest = self.layers[-1]
        if targets is not None:
            v, notes = wanted(memories, of, highest, self.search, targets, batch_size, progress, seconds)
        else:
            start = time.perf_counter()
            found = joint_values(memories, of, highest, self.search, batch_size=batch_size, progress=progress)
            seconds["values"] = time.perf_counter() - start
            v, notes = found.z, {"targets": found.z, "passes": found.passes, "losses": found.losses}

        def solve(layer: int, K: Tensor, _: Tensor) -> Tensor:
            rows = Beginning(memories, [c.to_subject[0] for c in of], batch_size=batch_size)
            k = rows.coefficients(highest).double()[rows.index]  # [N M], the model being edited below `layer`
            now = k @ memories.values(highest).double().T
            if (bias := memories.bias(highest)) is not None:
                now = now + bias
            lacking = (v.to(now) - now) / math.sqrt(len(self.layers) - self.layers.index(layer))
            factor = moments.factor(layer) if 2 * K.shape[1] <= memories.count else None
            return closed_form(K, lacking.T, moments[layer], weight=self.weight, factor=factor)

        # what `spread` measures at the stream is not looked at: here the lack is the feed-forward's own
        deltas = spread(
            memories, of, v, self.layers, solve, batch_size=batch_size, seconds=seconds, progress=progress
        )
        return Edit(value_deltas(memories, deltas), seconds, notes)


def joint_values(
    memories: Memories,
    of: Sequence[Contexts],
    layer: int,
    search: Search,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Values:
    """What the feed-forward of block `layer` should put out at each subject's last token; `z` and `origin` are its own.

    As `kemem.editing.targets.values`, with two vectors: a, added to what the block's attention puts out, and b, to what
    its feed-forward does; each has its own clamp and decay, in lengths of what it is added to. In sequential families
    a enters that feed-forward as well, so block `layer` itself runs; in parallel ones both just join the stream.
    Once the target is the likeliest in every context, its loss counts 0.1 at the next step, and the search is done as
    soon as the weighted KL term is 0.01 or less.
    """
    if layer < 1:
        raise BadInput(
            "expected a highest layer of 1 or more, whose block runs on what one below puts out; got 0; add layer 1."
        )
    memories.block_path(layer)
    return searched(
        memories, of, lambda part: _Pair(memories, [of[i] for i in part], layer, search), batch_size, progress
    )


class _Pair(Batch):
    """Some requests that are searched together, with two vectors each: of [N 2 D] the attention's comes first."""

    def __init__(self, memories: Memories, of: Sequence[Contexts], layer: int, search: Search) -> None:
        super().__init__(memories, of, layer - 1, search, None)
        self.paths = (memories.attention_path(layer), memories.down_path(layer))
        self.bare = torch.arange(len(of), device=self.owner.device) * len(of[0].rows)
        self.starts: list[
            Tensor
        ] = []  # what each of both puts out after the bare prompt, before anything is added

    def run(self) -> Values:
        search, count = self.search, len(self.bare)
        delta = self.ending.stream.new_zeros(count, 2, self.memories.width)
        first, second = torch.zeros_like(delta), torch.zeros_like(delta)
        losses, probability = delta.new_zeros(count), delta.new_zeros(count)
        counts = torch.ones_like(losses)  # what the target's loss counts
        passes = torch.zeros(count, dtype=torch.long)
        active = torch.arange(count, device=delta.device)
        for step in range(1, search.steps + 1):
            added = delta[active].requires_grad_(True)
            heard, strayed, likeliest = self._heard(added)
            start = torch.stack(self.starts, 1)  # [N 2 D]
            length = start.norm(dim=2)[active]
            decay = (added.norm(dim=2) / length.square()).sum(1)
            loss = counts[active] * heard + search.kl * strayed + search.decay * decay
            losses[active], probability[active] = loss.detach(), heard.detach().neg().exp()
            passes[active.cpu()] = step
            enough = likeliest & (search.kl * strayed.detach() <= STRAYED)
            going = (loss.detach() >= search.stop) & ~enough
            if step == search.steps or not going.any():
                break
            (slope,) = torch.autograd.grad(loss.sum(), added)
            counts[active] = torch.where(likeliest, EASED, 1.0).to(counts)
            if not going.all():
                self.leave(going)
                active, slope, length = active[going], slope[going], length[going]
            first[active] = 0.9 * first[active] + 0.1 * slope
            second[active] = 0.999 * second[active] + 0.001 * slope.square()
            mean, square = first[active] / (1 - 0.9**step), second[active] / (1 - 0.999**step)
            new = delta[active] - search.rate * mean / (square.sqrt() + 1e-8)
            most = search.clamp * length[..., None]
            delta[active] = new * (most / new.norm(dim=2, keepdim=True)).clamp(max=1)
        return Values(start[:, 1] + delta[:, 1], start[:, 1], losses, passes, probability)

    def _heard(
        self, added: Float[Tensor, "N 2 D"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Of each request the mean -log p of its target, the KL divergence after the bare subject, and whether every
        token of the target is the likeliest one in every context."""
        first = not self.starts

        def adding(which: int) -> Callable[[Tensor], Tensor]:
            def change(out: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
                if first:
                    self.starts.append(out[self.bare, 0].detach())
                return torch.cat([(out[:, 0] + added[self.owner, which])[:, None], out[:, 1:]], 1)

            return change

        with trace.replace(self.memories.model, {path: adding(i) for i, path in enumerate(self.paths)}):
            ended = self.ending(self.ending.stream)
        head = head_of(self.memories.model)
        scores = head(ended[self.row, self.token]).log_softmax(-1)
        said = scores.gather(1, self.target[:, None])[:, 0]
        heard = torch.zeros_like(added[:, 0, 0]).index_add(0, self.owner[self.row], -self.weight * said)
        beaten = torch.zeros_like(heard).index_add(0, self.owner[self.row], (said < scores.amax(1)).to(heard))
        now = head(ended[self.essence, 0]).log_softmax(-1)
        if self.usual is None:
            self.usual = now.detach()
        return heard, (now.exp() * (now - self.usual)).sum(-1), beaten == 0
