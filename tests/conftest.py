"""Tiny random models of every family, with nothing at a neutral value: no bias is 0, no norm's weight is 1.

`tiny` is a function, not a fixture, so that a test may build several: `from conftest import FAMILIES, tiny`.
"""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

FAMILIES = ("olmo", "olmo2", "llama", "qwen2", "qwen3", "gpt2", "gptj", "gpt_neox", "roberta", "bert")
GATED = ("olmo", "olmo2", "llama", "qwen2", "qwen3")
GROUPED = ("llama", "qwen2", "qwen3")  # their tiny models have fewer key-value heads than heads
MASKED = ("roberta", "bert")


def tiny(
    family: str,
    *,
    width: int = 12,
    memories: int = 20,
    layers: int = 2,
    heads: int = 3,
    kv_heads: int | None = None,
    vocab: int = 61,
    context: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    square: bool = False,
    attention: str | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """A random model of a family with its language-model head, in eval mode; square makes M = D.

    Tokens 0, 1, 2 are <s>, <pad>, </s>. kv_heads: 1 in GROUPED, as many as heads elsewhere, unless given.
    qwen3's heads are wider than width / heads; rotary embeddings want that even. attention="eager" where the
    attention weights are looked at. changes: more fields of the configuration.
    """
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width / heads must be even; got {width} / {heads}")
    memories = width if square else memories
    tokens = {"vocab_size": vocab, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    usual = {
        **tokens,
        "hidden_size": width,
        "intermediate_size": memories,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }
    openai = {
        **tokens,
        "n_embd": width,
        "n_inner": memories,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": context,
        "tie_word_embeddings": False,
    }
    full = {**usual, "num_key_value_heads": kv_heads or heads}
    grouped = {**usual, "num_key_value_heads": kv_heads or 1}
    settings = {
        "olmo": full,
        "olmo2": full,
        "llama": {**grouped, "attention_bias": True, "mlp_bias": True},
        "qwen2": grouped,
        "qwen3": {**grouped, "head_dim": width // heads + 2, "attention_bias": True},
        "gpt2": openai,
        "gptj": {**openai, "rotary_dim": 2},
        "gpt_neox": {**usual, "rotary_pct": 0.5},
        "roberta": {**usual, "max_position_embeddings": context + 2, "type_vocab_size": 1},
        "bert": usual,
    }[family]
    config = CONFIG_MAPPING[family](**{**settings, **changes})
    auto = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    return randomised(auto, config, seed=seed, attention=attention).to(dtype)


def randomised(auto: Any, config: Any, *, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """A model of this configuration, every parameter drawn from `seed`, the global generator left alone."""
    with torch.random.fork_rng(devices=[]):
        model = auto.from_config(config, **({} if attention is None else {"attn_implementation": attention}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.copy_(1 + 0.3 * noise if norm else 0.4 * noise)
    return model.eval()


def tokens(*shape: int, vocab: int = 61, seed: int = 0) -> torch.Tensor:
    """Random token ids of this shape, none of them special."""
    return torch.randint(3, vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are faster on one thread, and their sums then have one order."""
    torch.set_num_threads(1)


def passage_record(
    name: str, place: str, year: str, *, hard: int = 1, paraphrases: int = 2
) -> dict[str, Any]:
    """Of fictional knowledge, in the published schema: kinds with 2, 1 and `hard` probes, of different lengths."""
    return {
        "train_context": f"{name} was born in {place}. She came in {year}.",
        "mem_input": [f"{name} was born in", "She came in"],
        "mem_target": [place, year],
        "gen_input": [f"The home of {name} is"],
        "gen_target": [place],
        "hard_gen_input": [f"Who came to {place} was"] * hard,
        "hard_gen_target": [name] * hard,
        "paraphrases": [f"{place}, {year}: {name}, telling {i}." for i in range(1, paraphrases + 1)],
    }
