"""Feed-forward layers as memories: one view of every architecture, over the unmodified Hugging Face model.

A feed-forward layer of width D with M memories gives, for the input x of a token (Kim et al. 2024, sec. 3.1),

    FFN(x) = values @ c + bias = sum_i c_i v_i + bias        values [D M], c [M]
    c = f(keys @ x)                  where it is not gated   keys [M D], f elementwise
    c = f(gates @ x) * (keys @ x)    where it is gated       gates [M D]; biases of both are left out here

so the memory coefficient c (Meng et al. 2023 call it the key k) is the input of the last projection, in every
architecture. Weights are oriented by the type of their module, never by comparing sides: M may equal D. What
differs between families stands in one row of LAYOUTS; nothing about it is guessed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.errors import BadInput
from kemem.families import LAYOUTS, Layout, identified, matrix, offset, register

__all__ = ["LAYOUTS", "Layout", "Memories", "register"]


class Memories:
    """The memories of a Hugging Face model, with or without a head: `Memories(model)`.

    `layers` L, `width` D, `count` M (memories a layer), `heads` H, `kv_heads`, `gated`, `family`, `layout`.
    layout: where a model keeps its memories, for a family without a row, or instead of its row. It holds for this
    view; `register` makes a family known to everything that takes a model. `kemem.fitting.fitted` tries it in a pass.
    Tensors are views into the model, on its device, in its dtype and without gradient: editing one in place
    edits the model. Where blocks stay on the disk (`kemem.models.stream`) they are copies, read when asked for, and
    torch refuses to change them in place. Refused: families without a row, rows that do not fit the model, quantised
    weights.
    """

    def __init__(self, model: nn.Module, *, layout: Layout | None = None) -> None:
        self.model = model
        self.family, self.layout = identified(model, layout)
        self._block = self._locate()
        self.layers: int = len(trace.module(model, self.blocks_path))
        self.gated: bool = self.layout.gate is not None or self.layout.fused is not None
        config = getattr(model, "config", None)
        self.heads: int = getattr(config, "num_attention_heads", 0)
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.width, self.count = self._sizes()

    def __repr__(self) -> str:
        size = f"{self.layers} layers x {self.count} memories of width {self.width}"
        return f"Memories({self.family}: {size}, {'gated' if self.gated else 'ungated'})"

    def _locate(self) -> str:
        """The block path in this model: as the row has it, or without the base model's name, or with it."""
        block = self.layout.block
        base = getattr(self.model, "base_model_prefix", "")
        for candidate in (block, block.partition(".")[2], f"{base}.{block}"):
            try:
                found = trace.module(self.model, candidate.removesuffix(".{}"))
                if isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
                    return candidate
            except BadInput:
                continue
        raise BadInput(
            f"expected the blocks of a {self.family!r} model at {block!r}; got a {type(self.model).__name__} "
            "without them; unwrap the model, or correct block in its layout."
        )

    def _sizes(self) -> tuple[int, int]:
        """(D, M), checked over all layers, so that a wrong name in a row is said here and not later."""
        sizes = {tuple(self._matrix(self.down_path(layer)).shape) for layer in range(self.layers)}
        if len(sizes) != 1:
            raise BadInput(
                f"expected layers of one size [D M]; got {', '.join(map(str, sorted(sizes)))}; "
                "use a model whose layers hold equally many memories."
            )
        width, count = sizes.pop()
        rows = (2 if self.layout.fused else 1) * count
        for path in {self.up_path(0), self.gate_path(0) or self.up_path(0)}:
            got = tuple(self._matrix(path).shape)
            if got != (rows, width):
                raise BadInput(
                    f"expected {path!r} to have {rows} outputs and {width} inputs, as {self.down_path(0)!r} "
                    f"asks; got {got[0]} and {got[1]}; correct up, gate, fused in the layout of {self.family!r}."
                )
        return width, count

    def _matrix(self, path: str) -> Tensor:
        return matrix(trace.module(self.model, path), path)

    # ------------------------------------------------------------------ paths
    @property
    def blocks_path(self) -> str:
        """The list of all blocks."""
        return self._block.removesuffix(".{}")

    def block_path(self, layer: int) -> str:
        if not 0 <= layer < self.layers:
            raise BadInput(f"expected a layer in 0..{self.layers - 1}; got {layer}; layers count from 0.")
        return self._block.format(layer)

    def down_path(self, layer: int) -> str:
        """The last projection: its input is the coefficients, its output the FFN's, before any norm of it."""
        return f"{self.block_path(layer)}.{self.layout.down}"

    def up_path(self, layer: int) -> str:
        """The first projection, whose rows are the keys (with the gate's, where the family fuses both)."""
        return f"{self.block_path(layer)}.{self.layout.up}"

    def gate_path(self, layer: int) -> str | None:
        """The gate's projection, the same as `up_path` where both are fused; None where ungated."""
        if self.layout.fused is not None:
            return self.up_path(layer)
        return None if self.layout.gate is None else f"{self.block_path(layer)}.{self.layout.gate}"

    def attention_path(self, layer: int) -> str:
        if self.layout.attention is None:
            raise BadInput(
                f"expected a row that names the attention; got the row of {self.family!r} without it; "
                "add attention=... and the names of its projections."
            )
        return f"{self.block_path(layer)}.{self.layout.attention}"

    # ------------------------------------------------------------------ feed-forward
    def values(self, layer: int) -> Float[Tensor, "D M"]:
        """The memory vectors, one a column: FFN output = values @ c + bias, before any norm of it."""
        return matrix(self._linear(self.down_path(layer)))

    def bias(self, layer: int) -> Float[Tensor, " D"] | None:
        return offset(self._linear(self.down_path(layer)))

    def keys(self, layer: int) -> Float[Tensor, "M D"]:
        """The keys, one a row: of the first projection, in gated models of `up`, in which c is linear."""
        return self._rows(matrix(self._linear(self.up_path(layer))), "up")

    def key_bias(self, layer: int) -> Float[Tensor, " M"] | None:
        found = offset(self._linear(self.up_path(layer)))
        return None if found is None else self._rows(found, "up")

    def gates(self, layer: int) -> Float[Tensor, "M D"]:
        """The gates, one a row. Refused where the family has none."""
        return self._rows(matrix(self._linear(self._gated(layer))), "gate")

    def gate_bias(self, layer: int) -> Float[Tensor, " M"] | None:
        found = offset(self._linear(self._gated(layer)))
        return None if found is None else self._rows(found, "gate")

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """What the model applies to the gate's output, or to that of `up` where it is not gated."""
        if self.layout.activation is None:
            raise BadInput(
                f"expected a row that names the activation; got the row of {self.family!r} without it; "
                'add activation="mlp.act_fn", or the name that print(model) shows.'
            )
        owner, _, name = f"{self.block_path(0)}.{self.layout.activation}".rpartition(".")
        found = getattr(trace.module(self.model, owner), name, None)  # BERT's may be a function, not a module
        if not callable(found):
            raise BadInput(
                f"expected the activation at '{owner}.{name}'; got nothing there that can be called; correct "
                "activation in its layout."
            )
        return found

    def _linear(self, path: str) -> nn.Module:
        """The projection at a path; where its block stays on the disk, a copy with its weights read."""
        found = trace.module(self.model, path)
        pages = getattr(found, "pages", None)  # of kemem.models.paging
        return found if pages is None else pages().module(found)

    def _gated(self, layer: int) -> str:
        path = self.gate_path(layer)
        if path is None:
            raise BadInput(
                f"expected a gated model; got {self.family!r}, where one projection makes the coefficients; "
                f"use keys({layer})."
            )
        return path

    def _rows(self, tensor: Tensor, part: str, dim: int = 0) -> Tensor:
        """What belongs to `up` or `gate` along `dim` of a fused projection; all of others."""
        if self.layout.fused is None:
            return tensor
        return tensor.narrow(dim, self.layout.fused.split(",").index(part) * self.count, self.count)

    # ------------------------------------------------------------------ attention
    def head(self, layer: int, head: int) -> dict[str, Float[Tensor, "..."]]:
        """What belongs to one query head, as views: `query`, `key`, `value` [d D] and `output` [D d].

        With `query_bias`, `key_bias`, `value_bias` [d] where there are any; the output's bias is no head's.
        Where query heads share a key-value head (H > kv_heads), `key` and `value` are the shared ones. OLMo2
        normalises queries and keys over all heads together: the length of one head's rows reaches the rest.
        """
        if not self.heads:
            raise BadInput(
                f"expected a model whose configuration has num_attention_heads; got {self.family!r} without; "
                "use a model of transformers."
            )
        if not 0 <= head < self.heads:
            raise BadInput(f"expected a head in 0..{self.heads - 1}; got {head}; heads count from 0.")
        layout, attention = self.layout, self.attention_path(layer)
        output = matrix(self._linear(f"{attention}.{layout.output}"))  # [D Hd]
        size = output.shape[1] // self.heads
        shared = head // (self.heads // self.kv_heads)
        names = ("query", "key", "value")
        if layout.fused_attention == "heads":
            assert self.kv_heads == self.heads, "an order by heads has no shared key-value heads"
            starts = [3 * head + order for order in range(3)]
        elif layout.fused_attention == "blocks":
            starts = [head, self.heads + shared, self.heads + self.kv_heads + shared]
        else:
            starts = [head, shared, shared]
        found: dict[str, Tensor] = {"output": output.narrow(1, head * size, size)}
        for name, start in zip(names, starts, strict=True):
            path = layout.qkv if layout.qkv is not None else getattr(layout, name)
            projection = self._linear(f"{attention}.{path}")
            found[name] = matrix(projection).narrow(0, start * size, size)
            if (bias := offset(projection)) is not None:
                found[f"{name}_bias"] = bias.narrow(0, start * size, size)
        return found

    # ------------------------------------------------------------------ during a forward pass
    @contextmanager
    def coefficients(self, callback: Callable[[int, Tensor], object]) -> Iterator[None]:
        """Within the block, every pass calls callback(l, c) in each layer with its coefficients c [B T M].

        They are signed, and the pass's own tensor, neither copied nor detached: reduced at once, only those
        of one layer are ever alive.
        """

        def tell(layer: int) -> Callable[[Tensor], object]:
            return lambda c: callback(layer, c)

        places = {self.down_path(layer): tell(layer) for layer in range(self.layers)}
        with trace.observe(self.model, places, side="input"):
            yield

    @contextmanager
    def gate_and_up(self, callback: Callable[[int, Tensor, Tensor], object]) -> Iterator[None]:
        """Within the block, every pass calls callback(l, gate, up), both [B T M]: c = activation(gate) * up.

        `gate` is the gate's output before its activation. Refused where the family has no gate.
        """
        self._gated(0)

        def split(layer: int) -> Callable[[Tensor], object]:
            return lambda both: callback(layer, self._rows(both, "gate", -1), self._rows(both, "up", -1))

        waiting: dict[int, dict[str, Tensor]] = {layer: {} for layer in range(self.layers)}

        def part(layer: int, name: str) -> Callable[[Tensor], None]:
            def keep(tensor: Tensor) -> None:
                waiting[layer][name] = tensor  # the first one waits for the other, in whichever order
                if len(waiting[layer]) == 2:
                    both, waiting[layer] = waiting[layer], {}
                    callback(layer, both["gate"], both["up"])

            return keep

        places: dict[str, Callable[[Any], object]] = {}
        for layer in range(self.layers):
            if self.layout.fused is not None:
                places[self.up_path(layer)] = split(layer)
            else:
                places[self._gated(layer)] = part(layer, "gate")
                places[self.up_path(layer)] = part(layer, "up")
        with trace.observe(self.model, places, side="output"):
            yield

    @contextmanager
    def attention(self, callback: Callable[[int, Tensor], object]) -> Iterator[None]:
        """Within the block, every pass calls callback(l, A) with a layer's attention weights A [B H T T].

        A[b, h, j, i] is what query j gives key i. Refused where not computed: all but eager attention.
        """

        def tell(layer: int) -> Callable[[Any], object]:
            def weights(found: Tensor | None) -> None:
                if found is None:
                    raise BadInput(
                        "expected attention weights, which only eager attention computes; got none; load the "
                        'model with attn_implementation="eager", or model.set_attn_implementation("eager").'
                    )
                callback(layer, found)

            return weights

        places = {self.attention_path(layer): tell(layer) for layer in range(self.layers)}
        with trace.observe(self.model, places, side="output", element=1):
            yield
