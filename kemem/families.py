"""The families of models that are known: one row each, with the names and orders that differ between them.

No other file of the package knows a module path. A new family is one more row, here or in a notebook:

    LAYOUTS["mistral"] = Layout(
        block="model.layers.{}", up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj",
        activation="mlp.act_fn", attention="self_attn",
    )
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kemem.errors import BadInput

NORMS = ("none", "before_residual", "after_residual")
FUSED = (None, "gate,up", "up,gate")
FUSED_ATTENTION = (None, "blocks", "heads")


@dataclass(frozen=True)
class Layout:
    """Where one family keeps its memories. Names are paths below the block.

    block: path of block l in the model with a head, {} for l. Its first part, HF's base model, may be absent.
    up, gate, down: the projections; no gate where it is ungated. Where one tensor holds both up and gate,
        `up` names it and `fused` gives the order of its rows.
    activation: what is applied to the gate's output, or to that of `up` where it is ungated.
    positions: the table of position vectors where a family adds them to the embeddings, beside the blocks.
    norm: where the FFN's output is normalised: "before_residual" (not yet added to it), "after_residual" or
        "none".
    attention: the attention module, with query, key, value and output below it. Where one tensor holds the
        first three, `qkv` names it and `fused_attention` gives its order: "blocks" (all queries, all keys,
        all values) or "heads" (the three of each head in turn).
    """

    block: str
    up: str
    down: str
    gate: str | None = None
    fused: str | None = None
    activation: str | None = None
    positions: str | None = None
    norm: str = "none"
    attention: str | None = None
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"
    qkv: str | None = None
    fused_attention: str | None = None

    def __post_init__(self) -> None:
        if self.block.count("{}") != 1 or not self.block.endswith(".{}"):
            raise BadInput(
                f"expected block to be a path that ends in .{{}}; got {self.block!r}; "
                "write it like 'model.layers.{}'."
            )
        for name, value, known in (
            ("norm", self.norm, NORMS),
            ("fused", self.fused, FUSED),
            ("fused_attention", self.fused_attention, FUSED_ATTENTION),
        ):
            if value not in known:
                raise BadInput(
                    f"expected {name} to be one of {', '.join(map(repr, known))}; got {value!r}; "
                    "choose one of these."
                )
        if self.fused is not None and self.gate is not None:
            raise BadInput(
                f"expected gate or fused, not both; got gate={self.gate!r} and fused={self.fused!r}; "
                "where one tensor holds both, name it as up and give only fused."
            )
        if (self.qkv is None) != (self.fused_attention is None):
            raise BadInput(
                f"expected qkv and fused_attention together; got qkv={self.qkv!r} and fused_attention="
                f"{self.fused_attention!r}; name the fused tensor and its order, or neither."
            )


def _llama(norm: str = "none") -> Layout:
    return Layout(
        block="model.layers.{}",
        up="mlp.up_proj",
        gate="mlp.gate_proj",
        down="mlp.down_proj",
        activation="mlp.act_fn",
        norm=norm,
        attention="self_attn",
    )


def _bert(base: str) -> Layout:
    return Layout(
        block=f"{base}.encoder.layer.{{}}",
        up="intermediate.dense",
        down="output.dense",
        activation="intermediate.intermediate_act_fn",
        norm="after_residual",
        attention="attention",
        query="self.query",
        key="self.key",
        value="self.value",
        output="output.dense",
    )


LAYOUTS: dict[str, Layout] = {
    "olmo": _llama(),
    "olmo2": _llama(norm="before_residual"),
    "llama": _llama(),
    "qwen2": _llama(),
    "qwen3": _llama(),
    "gpt2": Layout(
        block="transformer.h.{}",
        up="mlp.c_fc",
        down="mlp.c_proj",
        activation="mlp.act",
        positions="wpe",
        attention="attn",
        qkv="c_attn",
        fused_attention="blocks",
        output="c_proj",
    ),
    "gptj": Layout(
        block="transformer.h.{}",
        up="mlp.fc_in",
        down="mlp.fc_out",
        activation="mlp.act",
        attention="attn",
        output="out_proj",
    ),
    "gpt_neox": Layout(
        block="gpt_neox.layers.{}",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        activation="mlp.act",
        attention="attention",
        qkv="query_key_value",
        fused_attention="heads",
        output="dense",
    ),
    "roberta": _bert("roberta"),
    "bert": _bert("bert"),
}


def matrix(linear: nn.Module) -> Float[Tensor, "out in"]:
    """The weight of a linear map as [out in], oriented by its type: Linear stores it so, Conv1D transposed.

    A view without gradient: editing it in place edits the module at once. Refused: modules whose weight is
    not what they multiply by (quantised, parametrised, with an adapter).
    """
    weight = getattr(linear, "_parameters", {}).get("weight")
    if weight is not None:
        if isinstance(linear, Conv1D):
            return weight.detach().T
        if isinstance(linear, nn.Linear) and weight.shape == (linear.out_features, linear.in_features):
            return weight.detach()
    raise BadInput(
        "expected a torch.nn.Linear or a transformers Conv1D with a plain weight; got "
        f"{type(linear).__name__}; load the model unquantised, and merge adapters first."
    )


def offset(linear: nn.Module) -> Float[Tensor, " out"] | None:
    """The bias of a linear map, a view without gradient; None where it has none."""
    bias = getattr(linear, "bias", None)
    return None if bias is None else bias.detach()
