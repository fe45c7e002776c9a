"""An edit as a value: what is added to which weights. The model changes only inside `applied`, or by `apply_`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kemem import trace
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.models.streaming import streamed


@dataclass(frozen=True)
class Edit:
    """What an editor gives: `deltas`, of each changed parameter its name and what is added to it, as it is stored.

    seconds: by phase. notes: what else an editor tells, such as how many requests stopped early.
    """

    deltas: Mapping[str, Tensor]
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block the model is edited; on the way out, by an exception too, every bit is as it was."""
        parameters = self._checked(model)
        if (pages := streamed(model)) is not None:
            lift = pages.lay({p: self.deltas[name] for name, p in parameters.items()})
            try:
                yield model
            finally:
                lift()
            return
        before = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            self._add(parameters)
            yield model
        finally:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(before[name])

    def apply_(self, model: nn.Module) -> None:
        """Edits the model for good; one whose blocks stay on the disk, until it is gone or saved."""
        parameters = self._checked(model)
        if (pages := streamed(model)) is not None:
            pages.lay({p: self.deltas[name] for name, p in parameters.items()})
        else:
            self._add(parameters)

    @property
    def norms(self) -> dict[str, float]:
        """Frobenius norm of what is added, by parameter."""
        return {name: delta.double().norm().item() for name, delta in self.deltas.items()}

    def _checked(self, model: nn.Module) -> dict[str, nn.Parameter]:
        own = dict(model.named_parameters())
        for name, delta in self.deltas.items():
            if name not in own or own[name].shape != delta.shape:
                got = tuple(own[name].shape) if name in own else "no such parameter"
                raise BadInput(
                    f"expected a model with {name!r} of shape {tuple(delta.shape)}; got {got}; apply an edit to the "
                    "model it was made for."
                )
        return {name: own[name] for name in self.deltas}

    @torch.no_grad()
    def _add(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, p in parameters.items():
            p += self.deltas[name].to(p.device, p.dtype)


def value_deltas(memories: Memories, deltas: Mapping[int, Float[Tensor, "D M"]]) -> dict[str, Tensor]:
    """What is added to the values of some layers, by parameter name and as stored: Conv1D keeps [M D]."""
    found = {}
    for layer, delta in deltas.items():
        path = memories.down_path(layer)
        stored = delta.T if isinstance(trace.module(memories.model, path), Conv1D) else delta
        weight = memories.values(layer)
        found[f"{path}.weight"] = stored.to(weight.dtype).contiguous()
    return found


def editable(model: nn.Module) -> Memories:
    """The memories of a model whose feed-forward output joins the residual stream as it is.

    Refused: families that normalise it (OLMo2, BERT, RoBERTa), where values @ c + delta @ c does not move the
    stream by delta @ c, so that the equations of ROME and MEMIT do not hold; and masked models.
    """
    memories = Memories(model)
    if memories.layout.norm != "none":
        raise BadInput(
            f"expected a model whose feed-forward output joins the stream unchanged; got {memories.family!r}, which "
            "normalises it, so that adding to the values does not add to the stream; edit it by fine-tuning "
            "(ft, ft-l, ft-w), or take another family."
        )
    return memories
