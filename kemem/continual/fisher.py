"""How sharply a model's loss depends on each of its parameters: the diagonal of the Fisher information.

    F_i = 1/N sum_n (dL_n / dtheta_i)^2        L_n: mean loss over the target tokens of text n, in evaluation mode

With the text's own tokens as targets, as everywhere in continual pre-training, it is the empirical Fisher: it does not
vanish where the model is at its best on average, only where it is on every text.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D

from kemem.continual.contrast import mode, restored
from kemem.errors import BadInput
from kemem.objective import Batch, Causal, Objective, causal, mix, row_key
from kemem.training import Rows

BY = ("parameter", "unit")
CHOICE = 0  # what a seed is mixed with to draw rows
AT_ONCE = {
    "cpu": 1 << 19,
    "cuda": 1 << 28,
}  # gradients held at a time; on a processor few, or memory is the limit
LARGEST = 64  # texts at a time


def fisher(
    model: nn.Module,
    data: Rows,
    *,
    samples: int = 1000,
    objective: Objective = causal,
    by: str = "parameter",
    of_batches: int = 0,
    seed: int = 0,
) -> dict[str, Float[Tensor, "..."]]:
    """Name of each parameter that is trained -> its F, in float32 at least.

    samples: texts, drawn from the seed; at most all are used. by: "unit" averages F over the parameters that produce a
    unit, see `by_unit`. of_batches: instead of single texts, the square of the gradient of the mean loss of that many,
    times their number, as the released code of Ke et al. 2023 has it; for 1 it is the same. On average that is F plus
    n - 1 times the square of the mean gradient.

    Differs from the released code, which measures in training mode, dropout included.
    """
    refuse(samples, by, of_batches)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {
        n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in named.items()
    }
    device = next(model.parameters()).device
    count = sum(p.numel() for p in named.values())
    together = of_batches or max(1, min(LARGEST, AT_ONCE.get(device.type, 0) // count))
    parts = drawn(len(data), samples, seed).split(together)
    with mode(model, training=False), torch.enable_grad():
        for rows in parts:
            batch = objective.prepare(data.batch(rows), [row_key(seed, 0, row) for row in rows.tolist()])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            if of_batches:
                _add_squares_(total, named, objective(model, batch), len(rows) / len(parts))
                continue
            weight = 1 / sum(map(len, parts))
            if len(rows) == 1 or not _add_together_(total, named, model, batch, objective, weight):
                for row in range(len(rows)):
                    one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
                    _add_squares_(total, named, objective(model, one), weight)
    return by_unit(model, total) if by == "unit" else total


def drawn(count: int, samples: int, seed: int) -> Int[Tensor, " N"]:
    """Which of `count` rows are read: `samples` of them without replacement, or all, in the data's order."""
    generator = torch.Generator().manual_seed(mix(seed, CHOICE) >> 1)
    return torch.randperm(count, generator=generator)[:samples].sort().values


def by_unit(model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One number for all parameters of a unit: the mean over the inputs of each output of a matrix.

    Shapes broadcast to those of the parameters: [out 1], in a Conv1D [1 out]. Of an embedding the unit is a token. Each
    number of a bias or a norm is a unit. A sum over all parameters stays what it was.
    """
    across = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return {
        name: tensor.mean(0 if name in across else 1, keepdim=True) if tensor.ndim == 2 else tensor
        for name, tensor in found.items()
    }


def ranked(found: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The share of the others that are less important, in [0, 1] with 1 for the most; all 0 where all are equal."""
    flat = found.flatten()
    less = torch.searchsorted(flat.sort().values, flat).to(found.dtype)
    return (less / less.max().clamp(min=1)).view_as(found)


def fitting(objective: Objective, batch: Batch) -> None:
    """Refuses a method that was not given the objective of its training: its own losses would be others."""
    if isinstance(objective, Causal) and not torch.equal(restored(batch)["input_ids"], batch["input_ids"]):
        raise BadInput(
            "expected objective to be the one that training is given; got the causal one, but the batch's ids are not "
            "its labels; give the masked objective to both."
        )


def _add_squares_(total: dict[str, Tensor], named: Mapping[str, Tensor], loss: Tensor, weight: float) -> None:
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for name, gradient in zip(named, found, strict=True):
        if gradient is not None:
            wide = gradient.to(total[name].dtype)
            total[name].addcmul_(wide, wide, value=weight)


def _add_together_(
    total: dict[str, Tensor],
    named: Mapping[str, Tensor],
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    weight: float,
) -> bool:
    """Squared gradients of all texts at once. False where the model's code branches on what is in a tensor.

    GPT-2 does, on padding, and most others where there is a mask of it.
    """
    scored = _Scored(model, objective)

    def of_one(parameters: dict[str, Tensor], text: dict[str, Tensor]) -> Tensor:
        values = {f"model.{name}": tensor for name, tensor in parameters.items()}
        return functional_call(scored, values, ({name: tensor[None] for name, tensor in text.items()},))

    try:
        with sdpa_kernel(
            SDPBackend.MATH
        ):  # the fused kernels have no rule for many texts with weights of their own
            found = vmap(grad(of_one), in_dims=(None, 0))(
                {n: p.detach() for n, p in named.items()}, dict(batch)
            )
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return False
    for name, gradients in found.items():
        total[name].add_(gradients.to(total[name].dtype).square().sum(0), alpha=weight)
    return True


class _Scored(nn.Module):
    """A model that gives its loss: torch exchanges parameters of modules only."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective(self.model, batch)


def refuse(samples: int, by: str, of_batches: int) -> None:
    """Refuses settings that `fisher` could not be asked with."""
    if samples < 1 or of_batches < 0:
        raise BadInput(
            f"expected samples of at least 1 and of_batches of 0 or more; got {samples} and {of_batches}; of_batches=0 "
            "takes single texts."
        )
    if by not in BY:
        raise BadInput(f"expected by to be one of {', '.join(BY)}; got {by!r}; choose one of these.")
