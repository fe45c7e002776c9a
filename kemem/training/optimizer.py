"""AdamW and SGD as the book uses them, and their moments as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kemem.training.recipe import Recipe
from kemem.training.sharding import part_of

# what an optimizer keeps of a parameter, by torch's names: AdamW the first three, SGD with momentum the last
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer that the recipe names, over the parameters that are to be trained."""
    return {"adamw": adamw, "sgd": sgd}[recipe.optimizer](model, recipe)


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Two groups: matrices decay; norms, biases and, unless the recipe says so, embeddings do not.

    An embedding that also is the last projection counts as an embedding.
    """
    groups = _groups(model, recipe)
    fused = all(
        p.device.type in ("cpu", "cuda") for group in groups for p in group["params"]
    )  # one pass over memory instead of six
    return torch.optim.AdamW(
        groups,
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.epsilon,
        fused=fused,
    )


def sgd(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Gradient descent with momentum mu = betas[0] and the groups of `adamw`, whose decay is kept as it is there:

        w <- (1 - rate * weight_decay) w,    b <- mu b + g,    w <- w - rate b        g after clipping; at first b = g

    What is missing against AdamW is the division of each parameter's step by the size of its own gradients. It is
    this division that Kim et al. 2025, A.1, leave out: without it, in the first step, the change of memory i's value
    is proportional to its coefficients.

    Differs from torch's own weight_decay, which joins the gradient and so the momentum. b is torch's sum of
    gradients, not a mean: steady gradients move a weight by rate / (1 - mu) of them, ten times the rate at mu = 0.9.
    """
    groups = [
        {"params": group["params"], "weight_decay": 0.0, "decay": group["weight_decay"]}
        for group in _groups(model, recipe)
    ]
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.betas[0])
    optimizer.register_step_pre_hook(_decay)
    return optimizer


@torch.no_grad()
def _decay(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """AdamW's decay for an optimizer without it: before the step, of what has a gradient."""
    for group in optimizer.param_groups:
        if group["decay"]:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["decay"])


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed, free = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and (recipe.decay_embeddings or id(parameter) not in embeddings)
            (decayed if decays else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's tensors as "exp_avg.<parameter>" and so on; a parameter never stepped has none.

    Nor has any in SGD without momentum.
    """
    found = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    return {
        f"{moment}.{name}": kept[moment]
        for name, kept in found.items()
        for moment in MOMENTS
        if kept.get(moment) is not None
    }


def restore_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Takes back what `moments` gave, on the device of each parameter."""
    fused = optimizer.param_groups[0]["fused"]
    for name, parameter in parameters.items():
        kept = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS if f"{moment}.{name}" in tensors}
        if kept:
            step = kept.pop("step", None)
            optimizer.state[parameter] = {
                moment: part_of(tensor.to(parameter.device), parameter) for moment, tensor in kept.items()
            }
            if step is not None:
                optimizer.state[parameter]["step"] = step.to(parameter.device) if fused else step
