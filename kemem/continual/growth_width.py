"""Growing a model in width: every unit may get copies, and the function stays as it is (ELLE, Qin et al. 2022).

Old unit j has c_j copies in all, f(i) is the unit that i is a copy of, and f(i) = i for the old ones:

    what writes units (rows of W, entries of a bias or gain)      W'[i, :] = W[f(i), :]
    what reads units (columns of W)                               W'[:, i] = W[:, f(i)] / c_f(i)

so that every sum over units is what it was. The residual stream has one map f for the whole model: embeddings, norms
and every projection into and out of it. The memories and the heads of each layer have maps of their own. A head is
copied whole, with its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kemem import trace
from kemem.continual.growth import become_, skeleton
from kemem.continual.growth_copies import Copies, copied, joined
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import mix


@dataclass(frozen=True, eq=False)
class Width:
    """The maps of a grown model: of its residual stream, and of each layer's memories, query and key-value heads."""

    residual: Copies
    memories: tuple[Copies, ...]
    heads: tuple[Copies, ...]
    kv_heads: tuple[Copies, ...]


def grow_width_(
    model: nn.Module,
    *,
    width: int | None = None,
    memories: int | None = None,
    heads: int | None = None,
    seed: int = 0,
    copies: str = "random",
    noise: float = 0.0,
    noise_everywhere: bool = False,
    untie: bool = False,
) -> Width:
    """Grows a model in place to these sizes, None leaving one as it is; returns what was copied from what.

    Preserved exactly: growth of memories and heads by any number; of the width to whole multiples. Any other width
    changes the mean and the variance that norms take: measure by how much with `growth_error`. Query heads that share a
    key-value head are copied with it, so key-value heads grow by the same factor.

    The head of the model reads the last state, so its columns are divided by c as all others. Where it is tied to the
    embeddings this would break them, and c divides gain and bias of the norm before it. OLMo's norm has neither: a tied
    OLMo is refused, or with `untie` gets a head of its own. Other models are never untied.

    copies: order in which units are copied, as `copied` says. noise: standard deviation of what is added to all new
    entries, so that copies learn to differ (ELLE: 0.01); with noise_everywhere to every parameter of the model.

    Differs from the authors' code: for masked models it adds noise to every parameter; for causal ones it divides
    neither the last norm nor the tied head, so that scores grow with the width.
    Refused: a smaller size; heads of another size (where it is width / heads, both must grow by one factor); heads
    that are no multiple of those sharing a key-value head.
    """
    old = Memories(model)
    asked = {"width": (width, old.width), "memories": (memories, old.count), "heads": (heads, old.heads)}
    sizes = {name: now if size is None else size for name, (size, now) in asked.items()}
    _check(old, sizes, noise)
    group, size = old.heads // old.kv_heads, old.head(0, 0)["output"].shape[1]
    changes: dict[str, Any] = dict(sizes)
    if hasattr(model.config, "num_key_value_heads"):
        changes["num_key_value_heads"] = sizes["heads"] // group
    if hasattr(model.config, "head_dim") or sizes["width"] != sizes["heads"] * size:
        changes["head_dim"] = size
    norm = _gain(model, old, untie) if _tied(model) and sizes["width"] > old.width else None
    untied = norm == ""
    new = skeleton(model, changes | ({"tie_word_embeddings": False} if untied else {}))
    if (got := Memories(new).head(0, 0)["output"].shape[1]) != size:
        raise BadInput(
            f"expected heads to keep their size of {size}, which in {old.family!r} models is width / heads; got "
            f"{sizes['width']} / {sizes['heads']} = {got}; give width={sizes['heads'] * size}."
        )
    draws = torch.Generator().manual_seed(mix(seed, 0) >> 1)
    residual = copied(old.width, sizes["width"], copies, draws)
    shared = [copied(old.kv_heads, sizes["heads"] // group, copies, draws) for _ in range(old.layers)]
    units = [copied(old.count, sizes["memories"], copies, draws) for _ in range(old.layers)]
    maps = Width(residual, tuple(units), tuple(kv.each(group) for kv in shared), tuple(shared))
    grown = _Grown(model, new, old, maps, size)
    parameters = {name: grown(name, p.detach()) for name, p in model.named_parameters()}
    if untied:
        head = _head(model)
        name = next(path for path, module in model.named_modules() if module is head) + ".weight"
        parameters[name] = grown.head(name, head.weight.detach())
    elif norm is not None:
        for name, _ in trace.module(model, norm).named_parameters(norm):
            parameters[name] /= residual.count.to(parameters[name].device)
    if noise:
        draws = torch.Generator().manual_seed(mix(seed, 1) >> 1)
        for name, tensor in parameters.items():
            drawn = noise * torch.randn(tensor.shape, generator=draws)
            tensor += (drawn if noise_everywhere else drawn * grown.new[name]).to(tensor)
    become_(model, new, parameters, lambda name: name)
    return maps


def _check(old: Memories, sizes: dict[str, int], noise: float) -> None:
    for name, least in (("width", old.width), ("memories", old.count), ("heads", old.heads)):
        if sizes[name] < least:
            raise BadInput(
                f"expected {name} of at least the present {least}; got {sizes[name]}; give more, or None."
            )
    group = old.heads // old.kv_heads
    if sizes["heads"] % group:
        raise BadInput(
            f"expected heads in groups of {group}, as many as share a key-value head; got {sizes['heads']}; give a "
            "multiple of it."
        )
    if not 0 <= noise < math.inf:
        raise BadInput(f"expected noise to be 0 or more; got {noise}; that of ELLE is 0.01.")


def _head(model: Any) -> Any:
    """The last projection, None in a model without one."""
    return model.get_output_embeddings()


def _tied(model: Any) -> bool:
    head = _head(model)
    return head is not None and head.weight is model.get_input_embeddings().weight


def _gain(model: nn.Module, memories: Memories, untie: bool) -> str:
    """Path of the norm that the head reads, in all families the last outside the blocks; "" where it has no gain."""
    inside = f"{memories.blocks_path}."
    norms = [
        path
        for path, module in model.named_modules()
        if type(module).__name__.endswith("Norm") and not path.startswith(inside)
    ]
    if getattr(trace.module(model, norms[-1]), "weight", None) is not None:
        return norms[-1]
    if not untie:
        raise BadInput(
            "expected a head of its own, or a last norm with a gain, in a model that grows in width; got a "
            f"{memories.family!r} model with a tied head and {norms[-1]!r} without; say untie=True."
        )
    return ""


class _Grown:
    """What each parameter of a model becomes. new: of each, which entries are new, 1 or 0."""

    def __init__(self, model: nn.Module, new: nn.Module, old: Memories, maps: Width, size: int) -> None:
        self.model, self.old, self.residual = model, old, maps.residual
        self.shapes = {name: p.shape for name, p in new.named_parameters()}
        self.own_head = None if _tied(model) else _head(model)
        self.sides: dict[str, tuple[Copies, Copies]] = {}  # of a projection: what it writes, what it reads
        self.scaled: dict[str, Copies] = {}  # of a norm inside attention
        self.new: dict[str, Tensor] = {}
        for layer in range(old.layers):
            queries, keys = maps.heads[layer].each(size), maps.kv_heads[layer].each(size)
            self.feed_forward(layer, maps.memories[layer])
            self.attention(layer, queries, keys, maps.heads[layer].each(3 * size))

    def feed_forward(self, layer: int, memory: Copies) -> None:
        old = self.old
        first = memory if old.layout.fused is None else joined([memory, memory])
        self.sides[old.up_path(layer)] = (first, self.residual)
        self.sides[old.gate_path(layer) or old.up_path(layer)] = (first, self.residual)
        self.sides[old.down_path(layer)] = (self.residual, memory)

    def attention(self, layer: int, queries: Copies, keys: Copies, threes: Copies) -> None:
        layout, path = self.old.layout, self.old.attention_path(layer)
        rows = {layout.query: queries, layout.key: keys, layout.value: keys}
        if layout.qkv is not None:
            blocks = joined([queries, keys, keys])
            rows = {layout.qkv: threes if layout.fused_attention == "heads" else blocks}
        for name, written in rows.items():
            self.sides[f"{path}.{name}"] = (written, self.residual)
        self.sides[f"{path}.{layout.output}"] = (self.residual, queries)
        for name, module in trace.module(self.model, path).named_children():
            # OLMo2 has a norm over all heads together; where both maps fit, both are the same
            for units in (queries, keys):
                if getattr(module, "weight", torch.empty(0)).shape == (units.old,):
                    self.scaled[f"{path}.{name}"] = units

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The grown parameter. Refused: one that has to grow and is of no known kind."""
        path, _, kind = name.rpartition(".")
        module, written, read = trace.module(self.model, path), self.residual, self.residual
        if path in self.sides:
            written, read = self.sides[path]
        elif isinstance(module, nn.Embedding):
            return self.put(name, tensor, (None, written))
        elif self.shapes.get(name) == tensor.shape:
            return self.put(name, tensor, ())
        elif module is self.own_head:
            return self.head(name, tensor)
        elif path in self.scaled:
            written = self.scaled[path]
        if tensor.shape == (written.old,):
            return self.put(name, tensor, (written,))
        if kind == "weight" and isinstance(module, Conv1D) and tensor.shape == (read.old, written.old):
            return self.put(name, tensor, (read, written), divided=0)
        if kind == "weight" and isinstance(module, nn.Linear) and tensor.shape == (written.old, read.old):
            return self.put(name, tensor, (written, read), divided=1)
        raise BadInput(
            f"expected parameters of known kinds to grow; got {name} {list(tensor.shape)} in a {self.old.family!r} "
            "model; take one without it."
        )

    def head(self, name: str, tensor: Tensor) -> Tensor:
        return self.put(name, tensor, (None, self.residual), divided=1)

    def put(
        self, name: str, tensor: Tensor, sides: tuple[Copies | None, ...], divided: int | None = None
    ) -> Tensor:
        """Copies entries along each side that has a map; divided: the side that reads, by the number of copies."""
        new = torch.zeros([1] * tensor.ndim)
        tensor = tensor.clone()
        for dim, units in enumerate(sides):
            if units is not None:
                along = [-1 if other == dim else 1 for other in range(tensor.ndim)]
                tensor = tensor.index_select(dim, units.source.to(tensor.device))
                new = torch.maximum(new, units.new.float().view(along))
                if dim == divided:
                    tensor /= units.count.view(along).to(tensor.device)
        self.new[name] = new.expand(tensor.shape)
        return tensor
