"""Growing a model in depth: blocks get a copy right behind them (ELLE, Qin et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kemem.continual.growth import become_, skeleton
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import mix

PICKS = ("random", "last")


def grow_depth_(
    model: nn.Module,
    *,
    blocks: int,
    pick: str = "random",
    seed: int = 0,
    zeroed: bool = False,
    origins: Sequence[int] = (),
) -> tuple[int, ...]:
    """Adds that many blocks to a model in place, each a copy of one block and right behind it; returns `origins`.

    Copied are blocks that were not copied yet, drawn at random or the last of them first; once all were, those that
    there are by then are a new beginning. origins: of each block, its number at the last beginning, so that blocks not
    copied yet are known when the model grows again: give back what was returned; nothing: now is a beginning.

    Not function-preserving: a residual block that comes twice adds twice; measure it with `growth_error`. zeroed: the
    output projections of the copies are 0, so a new block adds nothing and the function stays, exactly. It is not
    ELLE's: copies then learn what their originals did not.

    Differs from the authors' code, which for masked models adds noise to all parameters here too.
    Refused: zeroed where a norm comes behind the residual (LN(x) is not x); attention scaled by the block's number.
    """
    old = Memories(model)
    _check(model, old, blocks, pick, zeroed)
    origins = list(origins) or list(range(old.layers))
    if len(origins) != old.layers:
        raise BadInput(
            f"expected an origin for each of {old.layers} blocks; got {len(origins)}; leave them out."
        )
    draws = torch.Generator().manual_seed(mix(seed, 2) >> 1)
    sources = list(range(old.layers))  # of each block of the new model, the one it is or is a copy of
    added: list[bool] = [False] * old.layers
    for _ in range(blocks):
        left = [origin for origin in sorted(set(origins)) if origins.count(origin) == 1]
        if not left:
            origins = list(range(len(origins)))
            left = list(origins)
        chosen = left[-1 if pick == "last" else int(torch.randint(len(left), (), generator=draws))]
        place = origins.index(chosen)
        for found, value in ((sources, sources[place]), (origins, chosen), (added, True)):
            found.insert(place + 1, value)
    changes = {"layers": len(sources)}
    if getattr(model.config, "layer_types", None):  # Qwen's: which blocks look at all of the text
        changes["layer_types"] = [model.config.layer_types[source] for source in sources]
    new = skeleton(model, changes)
    prefix = f"{old.blocks_path}."

    def origin(name: str) -> str:
        if not name.startswith(prefix):
            return name
        number, _, rest = name.removeprefix(prefix).partition(".")
        return f"{prefix}{sources[int(number)]}.{rest}"

    names = [name for name, _ in new.named_parameters()]
    names += [
        name for name, _ in model.named_parameters() if name not in names and not name.startswith(prefix)
    ]
    weights = dict(model.named_parameters())
    parameters = {name: weights[origin(name)].detach().clone() for name in names}
    if zeroed:
        deeper = Memories(new)
        for layer in (layer for layer, fresh in enumerate(added) if fresh):
            attention = f"{deeper.attention_path(layer)}.{deeper.layout.output}"
            for name in parameters:
                if name.rpartition(".")[0] in (attention, deeper.down_path(layer)):
                    parameters[name].zero_()
    become_(model, new, parameters, origin)
    return tuple(origins)


def _check(model: nn.Module, old: Memories, blocks: int, pick: str, zeroed: bool) -> None:
    if blocks < 1:
        raise BadInput(f"expected at least one block to add; got {blocks}; give more.")
    if pick not in PICKS:
        raise BadInput(f"expected pick to be one of {', '.join(PICKS)}; got {pick!r}; choose one of these.")
    if zeroed and old.layout.norm == "after_residual":
        raise BadInput(
            f"expected zeroed copies where a block without output passes on its input; got {old.family!r}, whose norm "
            "behind the residual changes it; leave zeroed out."
        )
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise BadInput(
            "expected blocks that do not depend on their number; got scale_attn_by_inverse_layer_idx, where an "
            "inserted block changes those behind it; load the model without it."
        )
