"""One process or several: who does which rows, and how their gradients become one step."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from kemem.errors import BadInput

LOST = re.compile(r"gloo|NCCL|[Cc]onnection (was )?(closed|reset)|process group|[Ss]ocket", re.ASCII)
"""What the libraries of communication say when a process is gone."""


class Processes:
    """The processes that share a run: one, unless `accelerate launch` or `torchrun` started more."""

    def __init__(self, device: torch.device, index: int = 0, count: int = 1) -> None:
        self.device, self.index, self.count = device, index, count

    @property
    def main(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        if self.count > 1:
            torch.distributed.barrier()

    @contextmanager
    def explained(self, out: Path | None) -> Iterator[None]:
        """Turns the failure of another process into one line."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not LOST.search(str(error)):
                raise
            remedy = "see its own message, and run this again" + (
                f": it goes on from the last state in {out}" if out is not None else ""
            )
            raise BadInput(
                f"expected all {self.count} processes of this run to go on; got one that ended; {remedy}."
            ) from error

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites the tensors by those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.data, 0)

    def sum_(self, values: Tensor) -> Tensor:
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def sum_gradients_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds up every gradient over the processes, all in one message a dtype.

        A parameter without a gradient in every process keeps none, as it would in one process.
        """
        if self.count == 1:
            return
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            alike = [p for p in parameters if p.dtype == dtype]
            present = torch.tensor([p.grad is not None for p in alike], device=self.device).to(dtype)
            parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in alike]
            flat = self.sum_(torch.cat([present, *parts]))
            sums = flat[len(alike) :].split([p.numel() for p in alike])
            for parameter, found, total in zip(alike, flat[: len(alike)].tolist(), sums, strict=True):
                parameter.grad = total.view_as(parameter).clone() if found else None


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes of this run, found through `accelerate` where a launcher has started several.

    In one process nothing is set up and nothing is left behind, so a notebook may train again on another
    device or in another precision.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not torch.distributed.is_initialized():
        yield Processes(device)
        return
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    yield Processes(state.device, state.process_index, state.num_processes)
