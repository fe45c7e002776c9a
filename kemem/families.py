"""The families of models that are known: one row each, with the names and orders that differ between them.

No other file of the package knows a module path. A model of a family that is not listed is given its layout:

    layout = Layout(
        block="model.layers.{}", up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj",
        activation="mlp.act_fn", attention="self_attn",
    )
    Memories(model, layout=layout)     # one view
    register("mistral", layout)        # from here on all of kemem knows the family
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kemem.errors import BadInput

NORMS = ("none", "before_residual", "after_residual")
FUSED = (None, "gate,up", "up,gate")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # in configurations
FUSED_ATTENTION = (None, "blocks", "heads")


@dataclass(frozen=True)
class Layout:
    """Where one family keeps its memories. Names are paths below the block.

    block: path of block l in the model with a head, {} for l. Its first part, HF's base model, may be absent.
    up, gate, down: the projections, nn.Linear or Conv1D; no gate where it is ungated. Where one tensor holds both up
        and gate, `up` names it and `fused` gives the order of its rows.
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


_USUAL = {"block": "model.layers.{}", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_EXAMPLE = f"Layout({', '.join(f'{name}={path!r}' for name, path in _USUAL.items())})"


def register(family: str, layout: Layout) -> None:
    """Makes a family known: from here on `Memories(model)`, and all that calls it, finds models of it by this layout.

    family: what `Memories` would call it: the `model_type` of a model's configuration, or the name of its class where
    it has none. Whether the layout fits is seen at the first model. Refused: a family that has another layout.
    """
    if LAYOUTS.setdefault(family, layout) != layout:
        raise BadInput(
            f"expected a family without a layout; got {family!r}, which has another one; give it to one view, "
            "Memories(model, layout=...), or take it out of kemem.families.LAYOUTS first."
        )


def read_layout(file: str | Path) -> Layout:
    """A layout from a JSON file: one object, whose names are the fields of `Layout`."""
    names = [field.name for field in fields(Layout)]
    try:
        given = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"expected a layout as JSON in {file}; got: {error.strerror}; check the path."
        ) from None
    except ValueError:
        raise BadInput(f"expected a layout as JSON in {file}; got something else; correct it.") from None
    if not isinstance(given, dict) or not all(isinstance(value, str | None) for value in given.values()):
        raise BadInput(f"expected one object of strings in {file}; got another; write {json.dumps(_USUAL)}.")
    unknown, lacking = sorted(given.keys() - set(names)), [n for n in names[:3] if n not in given]
    if unknown or lacking:
        got = f"{unknown[0]!r}, which is none" if unknown else f"none for {lacking[0]!r}"
        raise BadInput(
            f"expected the fields of a layout ({', '.join(names)}) in {file}; got {got}; correct it."
        )
    return Layout(**given)


def identified(model: nn.Module, layout: Layout | None = None) -> tuple[str, Layout]:
    """The family of a model, and its layout: the one given, or that of its family.

    Refused: a family without a layout; layers that read texts in pieces, or choose among experts.
    """
    config = getattr(model, "config", None)
    named = getattr(config, "model_type", None)
    family = named or type(model).__name__
    if layout is None and family not in LAYOUTS:
        raise (
            _unlisted(family)
            if named
            else BadInput(
                f"expected a Hugging Face model, whose config names its family; got {family}; load it with "
                "transformers, and unwrap it where it is wrapped; a module of one's own is given a layout."
            )
        )
    if getattr(config, "chunk_size_feed_forward", 0):
        raise BadInput(
            "expected a model whose layers see whole texts; got chunk_size_feed_forward = "
            f"{config.chunk_size_feed_forward}; load it with chunk_size_feed_forward=0."
        )
    experts = max(getattr(config, name, None) or 0 for name in EXPERTS)
    if experts > 1:
        raise BadInput(
            f"expected one feed-forward layer a block; got a {family!r} model that chooses among {experts}; take a "
            "model without experts: which of them a token reaches is no coefficient."
        )
    return family, LAYOUTS[family] if layout is None else layout


def known(family: str) -> Layout:
    """The layout of a family, by the name that a configuration gives it."""
    if family not in LAYOUTS:
        raise _unlisted(family)
    return LAYOUTS[family]


def _unlisted(family: str) -> BadInput:
    return BadInput(
        f"expected a model of a known family ({', '.join(LAYOUTS)}); got {family!r}; say where it keeps its memories, "
        f"with the names that print(model) shows: kemem.register({family!r}, kemem.{_EXAMPLE}), or --layout FILE."
    )


def matrix(linear: nn.Module, path: str = "") -> Float[Tensor, "out in"]:
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
        f"expected a torch.nn.Linear or a transformers Conv1D with a plain weight{path and f' at {path!r}'}; got "
        f"{type(linear).__name__}; load the model unquantised and merge adapters first, or correct its layout."
    )


def offset(linear: nn.Module) -> Float[Tensor, " out"] | None:
    """The bias of a linear map, a view without gradient; None where it has none."""
    bias = getattr(linear, "bias", None)
    return None if bias is None else bias.detach()
