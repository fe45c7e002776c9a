"""The same quantities by the procedure as released: one request at a time, whole sequences, whole depth, all logits.

To be timed and compared with; nothing else calls it. Meng et al. 2023, code of November 2022.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.editing.prompts import Contexts, shares
from kemem.editing.targets import Search
from kemem.evaluation import padded
from kemem.memory import Memories


def target(
    memories: Memories, c: Contexts, layer: int, search: Search
) -> tuple[Float[Tensor, " D"], float, int]:
    """One target vector, its loss and the forward passes it took.

    Every pass runs all contexts and the bare subject in one padded batch through the whole model, with logits and
    their softmax at every token of every row.
    """
    model = memories.model
    device = next(model.parameters()).device
    rows = [row[:-1] for row in c.rows] + [c.essence]
    ids, mask = (t.to(device) for t in padded(rows))
    at = torch.tensor([*c.subjects, len(c.essence) - 1], device=device)
    number = torch.arange(len(rows), device=device)
    origin: list[Tensor] = []
    delta = torch.zeros(
        memories.width, dtype=next(model.parameters()).dtype, device=device, requires_grad=True
    )

    def add(stream: Tensor) -> Tensor:
        if not origin:
            origin.append(stream[0, at[0]].detach().clone())
        moved = stream.clone()
        moved[number, at] = moved[number, at] + delta
        return moved

    adam, usual = torch.optim.Adam([delta], lr=search.rate), None
    for step in range(1, search.steps + 1):
        adam.zero_grad()
        with trace.replace(model, {memories.block_path(layer): add}):
            said = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
        losses = [
            -said[i, begin - 1 : len(row) - 1]
            .gather(1, torch.tensor(row[begin:], device=device)[:, None])
            .mean()
            for i, (row, begin) in enumerate(zip(c.rows, c.begins, strict=True))
        ]
        now = said[-1, at[-1]]
        usual = now.detach() if usual is None else usual
        loss = torch.stack(losses).mean() + search.kl * (now.exp() * (now - usual)).sum()
        loss = loss + search.decay * delta.norm() / origin[0].norm() ** 2
        if loss < search.stop or step == search.steps:
            break
        loss.backward()
        adam.step()
        most = search.clamp * origin[0].norm()
        with torch.no_grad():
            delta *= (most / delta.norm()).clamp(max=1)
    return (origin[0] + delta).detach(), loss.item(), step


@torch.no_grad()
def keys(
    memories: Memories, of: Sequence[Contexts], layer: int, top: int, *, batch_size: int = 512
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "D N"]]:
    """A layer's averaged keys, and what block `top` puts out at the bare prompts' subjects.

    Whole prompts through the whole model, logits and all, twice: all contexts for the keys, then the bare ones.
    """
    per = len(of[0].rows)
    every = [
        (row[:begin], last) for c in of for row, begin, last in zip(c.rows, c.begins, c.subjects, strict=True)
    ]
    bare = [(c.rows[0][: c.begins[0]], c.subjects[0]) for c in of]
    found = _seen(memories.model, memories.down_path(layer), "input", every, batch_size)
    out = _seen(memories.model, memories.block_path(top), "output", bare, batch_size)
    weights = shares(per).to(found)
    return torch.einsum("p,npm->mn", weights, found.view(len(of), per, -1)), out.T


def _seen(model: nn.Module, path: str, side: str, rows: Sequence[tuple[Any, int]], size: int) -> Tensor:
    device, found = next(model.parameters()).device, []
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        ids, mask = (t.to(device) for t in padded([row for row, _ in part]))
        with trace.record(model, [path], side=side) as seen:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        found.append(seen[path][0][torch.arange(len(part)), [last for _, last in part]])
    return torch.cat(found)
