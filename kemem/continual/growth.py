"""Growing a model while it lives: what `grow_width_` and `grow_depth_` share, and what growth changes and costs.

A Hugging Face model knows its sizes in many places: its configuration, its modules, its heads. So growth never edits
them one by one: a second model is made from the grown configuration, the grown parameters are put into it, and the
first one takes over its modules. It stays the same object, it saves and loads as any model does, and nothing has
happened to it where growth is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kemem.continual import beside
from kemem.errors import BadInput
from kemem.evaluation import evaluating
from kemem.memory import Memories
from kemem.models.shape import FAMILIES
from kemem.objective import Batch, logits_of

SIZES = ("layers", "width", "memories", "heads")


@dataclass(frozen=True)
class Difference:
    """How far two models are apart on a text.

    logits: the largest difference of a score. divergence: KL(before || after) in nats, the mean over positions.
    """

    logits: float
    divergence: float


def growth_error(before: nn.Module | Tensor, after: nn.Module, batch: Batch) -> Difference:
    """What growth changed: 0 for both where it preserved the function, as far as numbers are rounded.

    before: a copy of the model as it was, or its scores [B T V] for this batch, since growth is in place. Both models
    are read in evaluation mode; padding does not count.
    """
    old = before if isinstance(before, Tensor) else scores(before, batch)
    new = scores(after, batch)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().cpu()
    largest, divergence = 0.0, 0.0
    for row in range(len(mask)):  # one at a time: scores of a real vocabulary are large in float64
        p, q = (found[row].cpu().double()[mask[row]] for found in (old, new))  # [positions V]
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
        largest = max(largest, (q - p).abs().amax().item() if len(p) else 0.0)
    return Difference(largest, max(0.0, divergence / max(1, int(mask.sum()))))


def scores(model: nn.Module, batch: Batch) -> Tensor:
    """A model's logits [B T V] in evaluation mode, without gradient."""
    with evaluating(model) as device:
        return logits_of(model, {name: tensor.to(device) for name, tensor in batch.items()})


def flops_per_token(model: nn.Module, length: int) -> int:
    """Floating-point operations of a forward pass, per token of rows of this length; a training step takes 3 times it.

        2 sum of entries of all matrices + 4 length L H d        a product and its addition are two operations

    The first term has the head of the model in it, also where it shares the embeddings; these only look up. The second
    is scores and mixtures of attention over all length x length pairs; a kernel that skips what a causal mask hides
    does half of it. Norms, activations and softmax are left out. Unlike 6 x parameters this can be compared across
    growth of a small model, where head and attention are a large part.
    """
    if length < 1:
        raise BadInput(
            f"expected rows of at least one token; got a length of {length}; give that of the text."
        )
    memories = Memories(model)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
    heads = memories.heads * memories.head(0, 0)["output"].shape[1]
    return 2 * matrices + 4 * length * memories.layers * heads


# ---------------------------------------------------------------------- a model of other sizes in the place of one
def skeleton(model: nn.Module, changes: Mapping[str, Any]) -> nn.Module:
    """A model of the same class with some sizes changed and no parameters worth anything, beside `model`.

    changes: of SIZES, or fields of the configuration by their own names. The configuration goes through the same
    checks as one that is loaded. Refused: families whose sizes have unknown names, modules of others beside the
    model, sizes that transformers refuses.
    """
    family = Memories(model).family
    if family not in FAMILIES:
        raise BadInput(
            f"expected a family that can be grown; got {family!r}; the known ones are {', '.join(FAMILIES)}."
        )
    for name in beside.present(model):
        if not isinstance(beside.module(model, name), nn.Embedding):
            raise BadInput(
                f"expected nothing but embeddings beside a model that grows; got {name!r}, whose sizes are unknown; "
                "take it away first."
            )
    names = {size: FAMILIES[family][size] for size in SIZES}
    renamed = {names.get(name, name): value for name, value in changes.items()}
    old: Any = model.config
    try:
        config = type(old).from_dict({**old.to_dict(), **renamed})
        config._attn_implementation = old._attn_implementation
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and thrown away
            return type(model)(config)
    except Exception as error:  # transformers refuses sizes by several types
        reason = " ".join(str(error).split())
        what = ", ".join(f"{name}={value}" for name, value in renamed.items())
        raise BadInput(
            f"expected sizes that {family!r} can have; got {what}: {reason}; choose others."
        ) from error


def become_(
    model: nn.Module, new: nn.Module, parameters: Mapping[str, Tensor], origin: Callable[[str], str]
) -> None:
    """Lets `model` take over the modules of `new`, filled with `parameters`; those beside it stay with it.

    origin: the name in `model` of what has a name in `new`: whether it is trained, and buffers, come from there.
    """
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    for name, p in new.named_parameters():
        if name not in parameters or parameters[name].shape != p.shape:
            got = list(parameters[name].shape) if name in parameters else "nothing"
            raise BadInput(
                f"expected {name} of the grown model to be {list(p.shape)}; got {got}; this family cannot grow so."
            )
    new.to(next(model.parameters()).device)  # buffers that are not kept below, too
    for name, p in new.named_parameters():
        p.data = parameters[name].contiguous()  # tied ones share it, and every dtype stays
        p.requires_grad_(trained.get(origin(name), True))
    for name, buffer in list(new.named_buffers()):
        path, _, leaf = name.rpartition(".")
        if (kept := buffers.get(origin(name))) is not None and kept.shape == buffer.shape:
            new.get_submodule(path)._buffers[leaf] = kept.clone()
    own = {name: vars(model)[name] for name in ("training", "generation_config") if name in vars(model)}
    shelf = model._modules.get(beside.NAME)
    vars(model).update(vars(new) | own)
    if shelf is not None:
        for name, module in shelf.items():
            assert isinstance(module, nn.Embedding), "skeleton has refused others"
            module.weight.data = parameters[f"{beside.NAME}.{name}.weight"].contiguous()
            module.embedding_dim = module.weight.shape[1]
        model.add_module(beside.NAME, shelf)
    model.train(model.training)
