"""One model over several processes, each with a part of every weight, gradient and moment (FSDP2).

    torchrun --nproc-per-node 8 --no-python kemem pretrain --scale paper --out DIR --sharded

Where a block runs, its weights are put together for that time; everything else is a part all the time, so each process
needs memory for the model divided by their number, and for one block. What is written to the disk is whole, as from
one process, so a run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from kemem import trace
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import IGNORED
from kemem.training.method import Method, overrides
from kemem.training.processes import Processes

MOMENTS = ("before", "during", "at", "loss", "gradients", "updated", "after")
"""Of a method, those that may look into weights, of which no process has all."""


def check(method: Method) -> None:
    """Refuses a method that would look into weights."""
    own = [name for name in MOMENTS if overrides(method, name)]
    if own:
        raise BadInput(
            f"expected plain training, to share the weights among processes; got {type(method).__name__}, which has a "
            f"part of its own in {own[0]}; train without sharding, where every process has all weights."
        )


def shard_(model: nn.Module, shared: Processes) -> None:
    """Leaves each process its part of every weight, on its device; in one process nothing changes.

    All must begin with the same weights, which is looked at by the caller. Gradients are summed, not averaged.
    """
    if shared.count == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(shared.device.type, (shared.count,))
    for block in trace.module(model, Memories(model).blocks_path).children():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)


def agreed(start: str, shared: Processes) -> None:
    """Refuses processes whose models do not begin alike. start: a fingerprint of the weights."""
    if shared.count == 1:
        return
    found: list[str | None] = [None] * shared.count
    torch.distributed.all_gather_object(found, start)
    if set(found) != {start}:
        raise BadInput(
            f"expected the same first weights in all {shared.count} processes; got others in some; build the model "
            "with one seed, or load it from one folder."
        )


def gathered(tensors: Mapping[str, Tensor], shared: Processes) -> dict[str, Tensor]:
    """All of some tensors, put together from their parts, in the memory of the first process; of the others none.

    Every process must ask, at the same time. One tensor at a time is whole on a device.
    """
    found = {}
    for name, tensor in tensors.items():
        every = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if shared.main:
            found[name] = every.detach().cpu()
    return found


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as `like` is; the tensor itself where that is whole."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def with_targets(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch without targets, with some: what a process reads, to count for nothing, while the others read theirs.

    Blocks are put together by all processes at once, so none may leave out a pass.
    """
    labels = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
    return {**batch, "labels": labels}
