"""MEMIT written into another matrix than the feed-forward's values: what attention writes to the stream."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.editing.edit import Edit, editable
from kemem.editing.facts import Request
from kemem.editing.finetune import chosen
from kemem.editing.memit import ascending, prepared, wanted
from kemem.editing.mend import stored
from kemem.editing.moments import Moments
from kemem.editing.prompts import PLAIN, Contexts, shares
from kemem.editing.solve import closed_form
from kemem.editing.targets import Progress, Search
from kemem.errors import BadInput
from kemem.evaluation import evaluating, padded
from kemem.memory import Memories

PARTS = ("attention", "feed_forward")


@dataclass(frozen=True)
class Projections:
    """MEMIT with the output projection of a part of the layers as its memory, "attention" unless said otherwise.

    Meng et al. 2023, app. F.2: what enters the projection at the subject's last token is the key, of heads joined where
    it is attention's; targets and the closed form are MEMIT's. `moments` are those of these keys, see
    `projection_moments`. With "feed_forward" the edit is MEMIT's own. Each layer is read in a pass of its own.
    """

    layers: tuple[int, ...]
    moments: Moments
    weight: float = 15_000.0
    search: Search = field(default_factory=Search)
    part: str = "attention"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", ascending(self.layers))
        chosen("part", self.part, PARTS)

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        requests: Sequence[Request],
        moments: Moments | None = None,
        *,
        templates: Sequence[str] = (PLAIN,),
        targets: Float[Tensor, "N D"] | None = None,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Edit:
        """moments: of feed-forward keys, for which this has no use."""
        memories = editable(model)
        of = prepared(memories, tokenizer, requests, templates, self.layers)
        names = {layer: projection(memories, layer, self.part) for layer in self.layers}
        for layer in self.layers:
            self.moments[layer]  # refused before the search
        seconds: dict[str, float] = {}
        z, notes = wanted(memories, of, self.layers[-1], self.search, targets, batch_size, progress, seconds)
        start = time.perf_counter()
        deltas: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for done, layer in enumerate(self.layers):
                K, stream = _read(memories, of, names[layer], self.layers[-1], batch_size)
                lacking = (z.to(stream) - stream) / (len(self.layers) - done)
                delta = closed_form(K, lacking.T, self.moments[layer], weight=self.weight)
                own = {f"{names[layer]}.weight": stored(model, f"{names[layer]}.weight", delta)}
                stack.enter_context(Edit(own).applied(model))
                deltas |= own
                if progress is not None:
                    progress(done + 1, len(self.layers), f"layer {layer}")
        seconds["solve"] = time.perf_counter() - start
        return Edit(deltas, seconds, notes)


def projection(memories: Memories, layer: int, part: str) -> str:
    """Path of the matrix through which a part of a layer writes to the stream."""
    if part == "feed_forward":
        return memories.down_path(layer)
    return f"{memories.attention_path(layer)}.{memories.layout.output}"


def projection_moments(
    model: nn.Module, rows: Iterable[Sequence[int]], layers: Sequence[int], *, part: str = "attention",
    batch_size: int = 16,
) -> Moments:  # fmt: skip
    """E[k k^T] of what enters these projections, over all tokens of the rows; float64."""
    memories = Memories(model)
    names = {layer: projection(memories, layer, part) for layer in layers}
    sums: dict[int, Any] = dict.fromkeys(layers, 0.0)
    kept, tokens = sorted(rows, key=len), 0
    with evaluating(model) as device:
        for begin in range(0, len(kept), batch_size):
            ids, mask = (t.to(device) for t in padded(kept[begin : begin + batch_size]))
            with trace.record(model, names.values(), side="input") as seen:
                model(input_ids=ids, attention_mask=mask)
            for layer, name in names.items():
                own = seen[name][0][mask.bool()].double()
                sums[layer] = sums[layer] + own.T @ own
            tokens += int(mask.sum())
    if not tokens:
        raise BadInput("expected text with tokens to measure keys on; got none; give more text.")
    return Moments({layer: found / tokens for layer, found in sums.items()}, tokens)


@torch.no_grad()
def _read(
    memories: Memories, of: Sequence[Contexts], name: str, top: int, batch_size: int
) -> tuple[Float[Tensor, "X N"], Float[Tensor, "N D"]]:
    """Keys of the requests, contexts weighed as MEMIT does; the stream above block `top` after the bare prompts."""
    per = len(of[0].rows)
    rows = [row for c in of for row in c.to_subject]
    keys, streams = [], []
    model, block = memories.model, memories.block_path(top)
    with evaluating(model) as device:
        for begin in range(0, len(rows), batch_size):
            ids, mask = (t.to(device) for t in padded(rows[begin : begin + batch_size]))
            last = mask.sum(1) - 1
            with trace.record(model, [name], side="input") as seen, trace.record(model, [block]) as out:
                model(input_ids=ids, attention_mask=mask)
            each = torch.arange(len(ids), device=device)
            keys.append(seen[name][0][each, last])
            streams.append(out[block][0][each, last])
    every = torch.cat(keys).double().view(len(of), per, -1)
    K = torch.einsum("p,npx->xn", shares(per).to(every), every)
    return K, torch.cat(streams).double().view(len(of), per, -1)[:, 0]
