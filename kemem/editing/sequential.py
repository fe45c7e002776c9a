"""Batch after batch of requests, each written into the model as the ones before have left it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kemem.editing.edit import Edit
from kemem.editing.facts import Request
from kemem.editing.memit import prepared
from kemem.editing.moments import Moments
from kemem.editing.prompts import PLAIN
from kemem.editing.targets import Progress
from kemem.errors import BadInput
from kemem.memory import Memories


def in_batches(
    editor: Callable[..., Edit],
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    moments: Moments,
    size: int,
    *,
    templates: Sequence[str] = (PLAIN,),
    batch_size: int = 32,
    after: Callable[[int, nn.Module], object] | None = None,
    progress: Progress | None = None,
) -> Edit:
    """The edit that an editor's batches of `size` requests, made one after another, add up to.

    Targets, keys and outputs of a batch are those of the model with all batches before it; moments stay those given, of
    the model without any. An editor that `remembers` gets the edits before as `previous`, without their deltas.
    after: called after each batch with its number, from 1, and the model as edited by then, to be scored and left as it
    is. Deltas are summed in float64 and rounded to the weights' dtype once. notes: what the batches tell, joined along
    requests; seconds: summed. The model is bit for bit as it was at the end, after an exception too.
    A later batch may rewrite what an earlier one wrote; conflicts within a batch are refused before any is written.
    """
    if size < 1:
        raise BadInput(f"expected batches of 1 request or more; got {size}; give a larger size.")
    batches = [requests[i : i + size] for i in range(0, len(requests), size)] or [requests]
    memories = Memories(model)
    for batch in batches:
        prepared(memories, tokenizer, batch, templates, ())
    total, kinds = Edit({}), {}
    made: list[Edit] = []
    done = 0
    for number, batch in enumerate(batches, 1):
        more = {"previous": tuple(made)} if getattr(editor, "remembers", False) else {}
        with total.applied(model):
            edit = editor(
                model, tokenizer, batch, moments, templates=templates, batch_size=batch_size, **more
            )
        kinds |= {name: delta.dtype for name, delta in edit.deltas.items()}
        total = Edit(_summed(total.deltas, edit.deltas))
        made.append(Edit({}, edit.seconds, edit.notes))
        done += len(batch)
        if after is not None:
            with total.applied(model):
                after(number, model)
        if progress is not None:
            progress(done, len(requests), f"batch {number}")
    seconds = {name: sum(e.seconds.get(name, 0.0) for e in made) for e in made for name in e.seconds}
    deltas = {name: delta.to(kinds[name]) for name, delta in total.deltas.items()}
    return Edit(deltas, seconds, _joined([e.notes for e in made]))


def _summed(total: Mapping[str, Tensor], deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    more = {name: delta.double() + total.get(name, 0.0) for name, delta in deltas.items()}
    return {**total, **more}


def _joined(parts: Sequence[Any]) -> Any:
    """Tensors end to end along requests, whether by themselves or in mappings of them; of all else a list."""
    if all(isinstance(part, Mapping) for part in parts):
        return {name: _joined([part[name] for part in parts if name in part]) for name in parts[0]}
    if all(isinstance(part, Tensor) and part.ndim for part in parts):
        return torch.cat(list(parts))
    return list(parts)
