"""Native OLMo checkpoints (`config.yaml` and `model.pt`, as its trainer writes them) in the Hugging Face layout.

    transformer.wte.weight                     [V D]    model.embed_tokens.weight
    transformer.blocks.{l}.att_proj.weight     [3D D]   self_attn.q_proj, k_proj, v_proj: rows in this order
    transformer.blocks.{l}.attn_out.weight     [D D]    self_attn.o_proj
    transformer.blocks.{l}.ff_proj.weight      [2M D]   mlp.up_proj: rows 0..M-1; mlp.gate_proj: rows M..2M-1
    transformer.blocks.{l}.ff_out.weight       [D M]    mlp.down_proj, whose columns are the memories
    transformer.ff_out.weight                  [V D]    lm_head, where it is not tied to the embeddings

There is nothing else: norms have no parameters and projections no biases. Other shapes of the trainer's models
(OLMo 2, with norms that are learned) are refused: they are published in the Hugging Face layout.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import OlmoConfig

from kemem.errors import BadInput
from kemem.models.hub import BESIDE

END_OF_TEXT = 50279  # of the tokenizer that the training data were made with; the trainer's files may say 0

# Settings that the layout above stands for: name, the value without it, what is accepted.
FIXED: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("activation_type", "swiglu", ("swiglu",)),
    ("block_type", "sequential", ("sequential",)),
    ("layer_norm_type", "default", ("default", "low_precision")),
    ("rope", False, (True,)),
    ("alibi", False, (False,)),
    ("include_bias", True, (False,)),
    ("layer_norm_with_affine", True, (False,)),
    ("attention_layer_norm", False, (False,)),
    ("norm_after", False, (False,)),
    ("scale_logits", False, (False,)),
    ("input_emb_norm", False, (False,)),
)


def convert(folder: str | Path, target: str | Path) -> Path:
    """A native OLMo checkpoint as an `OlmoForCausalLM` in a new folder, number by number the same.

    folder: with config.yaml or config.json, and model.pt or model.safetensors; a tokenizer in it is copied. Peak
    memory is the size of the weights, whose number type stays. Refused: a setting that `OlmoForCausalLM` has no
    place for, a tensor that is missing, of another shape or not known, a target with something in it.
    """
    folder, target = Path(folder).expanduser(), Path(target).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"expected a new folder to write to; got {target}, which is there; give another.")
    config = configuration(folder)
    tensors = weights(folder)
    shapes = dict(_shapes(config))
    for name, shape in shapes.items():
        if name not in tensors:
            raise BadInput(
                f"expected the tensor {name} in {folder}; got none of this name; give another file."
            )
        found = tuple(tensors[name].shape)
        if found != shape:
            raise BadInput(
                f"expected {name} of shape {shape} in {folder}; got {found}; see its configuration."
            )
    unknown = sorted(tensors.keys() - shapes.keys())
    if unknown:
        raise BadInput(
            f"expected no tensors but OLMo's in {folder}; got {unknown[0]}; see its configuration."
        )
    _write(folder, target, config, dict(_renamed(tensors, config)))
    return target


def configuration(folder: Path) -> OlmoConfig:
    """What `config.yaml` or `config.json` of a native checkpoint says, as `transformers` wants it."""
    given = _settings(folder)
    for name, usual, accepted in FIXED:
        value = given.get(name, usual)
        if value not in accepted:
            raise BadInput(
                f"expected {name} {accepted[0]} in the configuration of {folder}; got {value!r}; "
                "only the first OLMo models are converted."
            )
    lacking = [n for n in ("d_model", "n_heads", "n_layers", "max_sequence_length") if given.get(n) is None]
    vocabulary = given.get("embedding_size") or given.get("vocab_size")
    if lacking or vocabulary is None:
        raise BadInput(
            f"expected {(lacking or ['vocab_size'])[0]} in the configuration of {folder}; got none."
        )
    try:
        return _config(given, vocabulary)
    except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"expected sizes of an OLMo model in the configuration of {folder}; got {reason}; mend it."
        ) from error


def _config(given: dict[str, Any], vocabulary: int) -> OlmoConfig:
    width, heads = given["d_model"], given["n_heads"]
    if width % heads:
        raise ValueError(f"a width of {width} for {heads} heads")
    hidden = int(given.get("mlp_hidden_size") or given.get("mlp_ratio", 4) * width)
    end = given.get("eos_token_id")
    return OlmoConfig(
        architectures=["OlmoForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden // 2,
        num_hidden_layers=given["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=given.get("n_kv_heads") or (1 if given.get("multi_query_attention") else heads),
        max_position_embeddings=given["max_sequence_length"],
        rope_parameters={"rope_type": "default", "rope_theta": float(given.get("rope_theta") or 10_000.0)},
        clip_qkv=given.get("clip_qkv"),
        tie_word_embeddings=given.get("weight_tying", True),
        bos_token_id=None,
        eos_token_id=END_OF_TEXT if end == 0 and vocabulary > END_OF_TEXT else end,
        pad_token_id=given.get("pad_token_id"),
    )


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a native checkpoint by name, read by loaders that can hold nothing but tensors."""
    for file in (folder / "model.safetensors", folder / "model.pt"):
        if not file.is_file():
            continue
        try:
            if file.suffix == ".pt":
                found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            else:
                found = load_file(file)
            return {_plain(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
        except Exception as error:  # whatever can be wrong with a file
            reason = " ".join(str(error).split())[:120]
            raise BadInput(
                f"expected {file} to hold tensors by name and nothing else; got {reason}; fetch it again."
            ) from error
    raise BadInput(
        f"expected model.pt or model.safetensors in {folder}; got neither; unshard the checkpoint first."
    )


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of the model. `config.json` has them bare, `config.yaml` among those of the training."""
    yaml, bare = folder / "config.yaml", folder / "config.json"
    try:
        if yaml.is_file():
            from huggingface_hub import RepoCard  # its reader of metadata is a safe reader of YAML

            given = RepoCard(f"---\n{yaml.read_text()}\n---\n").data.to_dict()["model"]
        else:
            given = json.loads(bare.read_text())
        return dict(given)
    except FileNotFoundError:
        raise BadInput(f"expected config.yaml or config.json in {folder}; got neither.") from None
    except Exception as error:  # whatever a YAML reader can raise
        raise BadInput(
            f"expected settings of an OLMo model in {yaml if yaml.is_file() else bare}; "
            f"got {type(error).__name__}; fetch it again."
        ) from error


def _plain(name: str) -> str:
    """The name of a tensor. The trainer's safetensors spell it in base64, around it a little of its own."""
    if "." not in name:
        try:
            found = re.search(rb"transformer\.[\w.]+", base64.urlsafe_b64decode(name))
            name = found[0].decode() if found else name
        except (binascii.Error, ValueError):
            pass
    return name.removeprefix("model.")


def _shapes(config: OlmoConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    width, memories = config.hidden_size, config.intermediate_size
    fused = sum(_heads(config))
    yield "transformer.wte.weight", (config.vocab_size, width)
    for layer in range(config.num_hidden_layers):
        block = f"transformer.blocks.{layer}"
        yield f"{block}.att_proj.weight", (fused, width)
        yield f"{block}.attn_out.weight", (width, width)
        yield f"{block}.ff_proj.weight", (2 * memories, width)
        yield f"{block}.ff_out.weight", (width, memories)
    if not config.tie_word_embeddings:
        yield "transformer.ff_out.weight", (config.vocab_size, width)


def _heads(config: OlmoConfig) -> tuple[int, int, int]:
    """Rows of the fused projection that are queries, keys and values."""
    keys = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    return config.hidden_size, keys, keys


def _renamed(tensors: dict[str, Tensor], config: OlmoConfig) -> Iterator[tuple[str, Tensor]]:
    yield "model.embed_tokens.weight", tensors["transformer.wte.weight"]
    for layer in range(config.num_hidden_layers):
        block, place = f"transformer.blocks.{layer}", f"model.layers.{layer}"
        fused = tensors[f"{block}.att_proj.weight"].split(_heads(config))
        up, gate = tensors[f"{block}.ff_proj.weight"].chunk(2)
        for name, part in zip("qkv", fused, strict=True):
            yield f"{place}.self_attn.{name}_proj.weight", part.clone()
        yield f"{place}.self_attn.o_proj.weight", tensors[f"{block}.attn_out.weight"]
        yield f"{place}.mlp.up_proj.weight", up.clone()
        yield f"{place}.mlp.gate_proj.weight", gate.clone()
        yield f"{place}.mlp.down_proj.weight", tensors[f"{block}.ff_out.weight"]
    if not config.tie_word_embeddings:
        yield "lm_head.weight", tensors["transformer.ff_out.weight"]


def _write(folder: Path, target: Path, config: OlmoConfig, state: dict[str, Tensor]) -> None:
    """Beside its place, then renamed."""
    from huggingface_hub import save_torch_state_dict

    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        config.dtype = next(iter(state.values())).dtype
        config.save_pretrained(part)
        save_torch_state_dict(state, part)
        for name in BESIDE:
            if name != "config.json" and (folder / name).is_file():
                shutil.copyfile(folder / name, part / name)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"expected to write to {target}; got: {reason}; free some space or give another folder."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
