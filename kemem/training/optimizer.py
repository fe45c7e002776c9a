"""AdamW as the book uses it, and its moments as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kemem.training.recipe import Recipe

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, by torch's names


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Two groups: matrices decay; norms, biases and, unless the recipe says so, embeddings do not.

    An embedding that also is the last projection counts as an embedding.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed, free = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and (recipe.decay_embeddings or id(parameter) not in embeddings)
            (decayed if decays else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    fused = all(
        p.device.type in ("cpu", "cuda") for p in decayed + free
    )  # one pass over memory instead of six
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.epsilon,
        fused=fused,
    )


def moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's tensors as "exp_avg.<parameter>" and so on; a parameter never stepped has none."""
    found = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    return {f"{moment}.{name}": kept[moment] for name, kept in found.items() for moment in MOMENTS if kept}


def restore_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Takes back what `moments` gave, on the device of each parameter."""
    fused = optimizer.param_groups[0]["fused"]
    for name, parameter in parameters.items():
        if f"step.{name}" in tensors:
            kept = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
            optimizer.state[parameter] = {
                moment: tensor if moment == "step" and not fused else tensor.to(parameter.device)
                for moment, tensor in kept.items()
            }
