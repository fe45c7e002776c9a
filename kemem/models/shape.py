"""New models: a `Shape` of sizes, and `build`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
)

from kemem.errors import BadInput

MASKED = ("bert", "roberta")
"""Families read as masked language models; all others predict the next token."""

# What the configuration of each family calls the sizes of a `Shape`.
_NEW = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "memories": "intermediate_size",
    "heads": "num_attention_heads",
    "context": "max_position_embeddings",
}
_OLD = {
    "layers": "n_layer",
    "width": "n_embd",
    "memories": "n_inner",
    "heads": "n_head",
    "context": "n_positions",
}
_GROUPED = (
    "olmo",
    "olmo2",
    "llama",
    "qwen2",
    "qwen3",
)  # may have fewer key-value heads than heads: ours have as many
FAMILIES: dict[str, dict[str, str]] = {
    **dict.fromkeys((*_GROUPED, "gpt_neox", *MASKED), _NEW),
    **dict.fromkeys(("gpt2", "gptj"), _OLD),
}
_DROPOUT = {
    **dict.fromkeys(_GROUPED, ("attention_dropout",)),
    **dict.fromkeys(("gpt2", "gptj"), ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
    **dict.fromkeys(MASKED, ("hidden_dropout_prob", "attention_probs_dropout_prob")),
    "gpt_neox": ("attention_dropout", "hidden_dropout"),
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. `memories` is their number in each layer, elsewhere called the intermediate size.

    dropout: share, at every place where the family has it (Llama-like families: in attention only).
    tied: whether the embeddings also are the last projection, as in OLMo-1B.
    """

    family: str = "olmo"
    layers: int = 3
    width: int = 64
    memories: int = 512
    heads: int = 4
    context: int = 256
    vocab: int = 2048
    dropout: float = 0.0
    tied: bool = True

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise BadInput(f"expected a family of models; got {self.family!r}; choose one of {known}.")
        for name in ("layers", "width", "memories", "heads", "context", "vocab"):
            if getattr(self, name) < 1:
                raise BadInput(f"expected {name} to be at least 1; got {getattr(self, name)}; raise it.")
        rotary = self.family not in ("gpt2", *MASKED)
        if self.width % self.heads or (rotary and self.width // self.heads % 2):
            kind = "an even" if rotary else "a whole"
            raise BadInput(
                f"expected a width of heads times {kind} number; got width {self.width} and {self.heads} "
                "heads; change one of them."
            )
        if not 0 <= self.dropout < 1:
            raise BadInput(
                f"expected dropout to be a share, in [0, 1); got {self.dropout}; usual is 0 or 0.1."
            )


def build(shape: Shape, tokenizer: Any = None, *, seed: int = 0) -> PreTrainedModel:
    """A new model of this shape in float32 on the CPU, its weights drawn from `seed` alone.

    Weights are drawn as `transformers` does: normal with standard deviation 0.02, norms 1, biases 0. With a
    tokenizer its special tokens enter the configuration, and it must fit in `shape.vocab`. Torch's own
    generator stays as it was.
    """
    if tokenizer is not None and len(tokenizer) > shape.vocab:
        raise BadInput(
            f"expected a vocabulary of at least the tokenizer's {len(tokenizer)} tokens; got {shape.vocab}; "
            "raise vocab."
        )
    settings: dict[str, Any] = {name: getattr(shape, size) for size, name in FAMILIES[shape.family].items()}
    settings |= {"vocab_size": shape.vocab, "tie_word_embeddings": shape.tied}
    settings |= dict.fromkeys(_DROPOUT[shape.family], shape.dropout)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        settings[token] = getattr(tokenizer, token, None)
    if shape.family in _GROUPED:
        settings["num_key_value_heads"] = shape.heads
    if shape.family == "qwen3":
        settings["head_dim"] = shape.width // shape.heads
    if shape.family == "gptj":
        settings["rotary_dim"] = min(64, shape.width // shape.heads)
    if shape.family == "roberta":  # its positions are counted from the padding token's id + 1
        padding = 1 if settings["pad_token_id"] is None else settings["pad_token_id"]
        context = shape.context + padding + 1
        settings |= {"pad_token_id": padding, "max_position_embeddings": context, "type_vocab_size": 1}
    config = CONFIG_MAPPING[shape.family](**settings)
    loader = AutoModelForMaskedLM if shape.family in MASKED else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loader.from_config(config, dtype=torch.float32)
