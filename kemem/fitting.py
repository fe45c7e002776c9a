"""Whether a layout tells the truth about a model: what its shapes cannot show, one pass over a text does.

For a family that nobody has tried yet. A wrong path or size is refused by `Memories` itself; here the two equations
that the papers rest on are looked at in the running model:

    c = f(gates @ x + b) * (keys @ x + b)      with a gate; c = f(keys @ x + b) without
    the stream behind a block moves by d       where d is added to what the feed-forward layer puts out (norm "none")
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kemem import trace
from kemem.errors import BadInput
from kemem.families import Layout
from kemem.memory import Memories

TOLERANCE = 1e-3  # of the largest number, and in few bits some of their roundings: what is wrong is far above
ROUNDINGS = 8


@torch.no_grad()
def fitted(model: nn.Module, layout: Layout | None = None, *, ids: Sequence[Sequence[int]]) -> Memories:
    """`Memories(model, layout=layout)`, once a pass over some token ids [B T] has shown that the layout is right.

    layout: by default that of the model's family. Refused: an activation, or an order of gate and up, that does not
    give the coefficients; norm="none" where the feed-forward layer's output is scaled or normalised on its way.
    """
    memories = Memories(model, layout=layout)
    given = torch.tensor([list(row) for row in ids], device=next(model.parameters()).device)
    if not given.numel():
        raise BadInput("expected token ids to try a layout on; got none; give a text of a few tokens.")
    was = model.training
    model.eval()
    try:
        _coefficients(memories, given)
        if memories.layout.norm == "none":
            _joins(memories, given)
        if memories.layout.attention is not None:
            for layer in range(memories.layers):
                trace.module(model, memories.attention_path(layer))
    finally:
        model.train(was)
    return memories


def _coefficients(memories: Memories, ids: Tensor) -> None:
    """Refuses a layout whose keys, gates and activation do not make what enters the last projection."""
    made: dict[int, Tensor] = {}
    seen: dict[int, Tensor] = {}

    def keep(store: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
        return lambda tensor: store.__setitem__(layer, tensor.clone())

    layers = range(memories.layers)
    firsts = {memories.up_path(layer): keep(made, layer) for layer in layers}
    downs = {memories.down_path(layer): keep(seen, layer) for layer in layers}
    with trace.observe(memories.model, firsts), trace.observe(memories.model, downs):
        memories.model(ids)
    for layer in layers:
        if layer not in made or layer not in seen:
            path = memories.down_path(layer) if layer in made else memories.up_path(layer)
            raise BadInput(f"expected {path!r} to run in a pass; got no call of it; correct its layout.")
        x = made[layer]
        expected = _times(x, memories.keys(layer), memories.key_bias(layer))
        if memories.gated:
            gate = _times(x, memories.gates(layer), memories.gate_bias(layer))
            expected = _bent(memories, gate) * expected
        else:
            expected = _bent(memories, expected)
        if not _alike(expected, seen[layer]):
            raise BadInput(
                f"expected coefficients of layer {layer} that up, gate and activation make; got others, "
                f"{_apart(expected, seen[layer]):.2g} of the largest apart; correct their names or the order in fused."
            )


def _joins(memories: Memories, ids: Tensor) -> None:
    """Refuses norm="none" where what is added to a feed-forward layer's output does not reach the stream as it is."""
    model, last = memories.model, memories.layers - 1
    kept: list[Tensor] = []
    with trace.observe(model, {memories.block_path(last): lambda h: kept.append(h.clone())}, side="output"):
        model(ids)
        added = torch.linspace(-1, 1, memories.width).to(kept[0]) * kept[0].abs().max()
        with trace.replace(model, {memories.down_path(last): lambda out: out + added}):
            model(ids)
    before, after = kept
    moved = after - before
    if not _alike(moved, added.expand_as(moved)):
        raise BadInput(
            'expected what the last projection puts out to join the stream as it is, as norm="none" says; got a '
            f"change of it that arrives {_apart(moved, added.expand_as(moved)):.2g} of its size off; set norm to "
            '"before_residual" or "after_residual"; where it is scaled instead, editors cannot be used.'
        )


def _bent(memories: Memories, given: Tensor) -> Tensor:
    function = memories.activation
    try:
        found = function(given)
    except (RuntimeError, TypeError, ValueError):
        found = None
    if not isinstance(found, Tensor) or found.shape != given.shape:
        raise BadInput(
            f"expected an activation, which bends every number by itself, at {memories.layout.activation!r}; got "
            f"{type(function).__name__}; correct activation in its layout."
        )
    return found


def _times(x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    found = x @ rows.T
    return found if bias is None else found + bias


def _apart(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def _alike(found: Tensor, expected: Tensor) -> bool:
    allowed = max(TOLERANCE, ROUNDINGS * torch.finfo(found.dtype).eps)
    return found.shape == expected.shape and _apart(found.double(), expected.double()) < allowed
