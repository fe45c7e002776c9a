"""Native OLMo checkpoints: the same numbers in the Hugging Face layout, or a refusal that names the tensor."""

import base64
import json
import pickle

import pytest
import torch
import yaml
from conftest import tiny, tokens
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn.functional import layer_norm, silu
from transformers.models.olmo import modeling_olmo

from kemem.errors import BadInput
from kemem.models import convert, load
from kemem.models.native import configuration

SETTINGS = {
    "d_model": 12,
    "n_heads": 3,
    "n_layers": 2,
    "mlp_ratio": 4,
    "mlp_hidden_size": 40,
    "max_sequence_length": 64,
    "vocab_size": 60,
    "embedding_size": 61,
    "activation_type": "swiglu",
    "layer_norm_type": "default",
    "layer_norm_with_affine": False,
    "include_bias": False,
    "rope": True,
    "alibi": False,
    "multi_query_attention": False,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


def native(model) -> dict[str, torch.Tensor]:
    """What the trainer of OLMo would have written of this model."""
    state = model.state_dict()
    made = {"transformer.wte.weight": state["model.embed_tokens.weight"]}
    for layer in range(model.config.num_hidden_layers):
        given, block = f"model.layers.{layer}", f"transformer.blocks.{layer}"
        heads = [state[f"{given}.self_attn.{name}_proj.weight"] for name in "qkv"]
        made[f"{block}.att_proj.weight"] = torch.cat(heads)
        made[f"{block}.attn_out.weight"] = state[f"{given}.self_attn.o_proj.weight"]
        halves = [state[f"{given}.mlp.{name}_proj.weight"] for name in ("up", "gate")]
        made[f"{block}.ff_proj.weight"] = torch.cat(halves)
        made[f"{block}.ff_out.weight"] = state[f"{given}.mlp.down_proj.weight"]
    if not model.config.tie_word_embeddings:
        made["transformer.ff_out.weight"] = state["lm_head.weight"]
    return made


def write(folder, state, form="model.pt", *, config="config.yaml", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**SETTINGS, **changes}
    training = {"run_name": "tiny", "model": settings, "optimizer": {"betas": [0.9, 0.95]}, "epoch": None}
    bare = {"model_type": "hf_olmo", **settings}
    (folder / config).write_text(yaml.safe_dump(training) if config.endswith("yaml") else json.dumps(bare))
    if form == "model.pt":
        torch.save(state, folder / "model.pt")
        return folder
    if form == "spelled":  # as the trainer's own writer of safetensors does
        spelled = (base64.urlsafe_b64encode(pickle.dumps(((name,), False))).decode() for name in state)
    else:
        spelled = (f"model.{name}" for name in state)
    tensors = (tensor.clone() for tensor in state.values())
    save_file(dict(zip(spelled, tensors, strict=True)), folder / "model.safetensors")
    return folder


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def independent(state, ids, *, heads, clip):
    """Logits by the native forward pass, in plain torch and float64; angles in float32, as both have them."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def turned(x, angle):
        first, second = x.chunk(2, dim=-1)
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    x = state["transformer.wte.weight"][ids]
    batch, length, width = x.shape
    size = width // heads
    speeds = 1 / 10_000.0 ** (torch.arange(0, size, 2).float() / size)
    angle = torch.arange(length).float()[:, None] * speeds
    mask = torch.ones(length, length).tril() == 0
    layers = sum("att_proj" in name for name in state)
    for layer in range(layers):
        block = {name: state[f"transformer.blocks.{layer}.{name}.weight"] for name in
                 ("att_proj", "attn_out", "ff_proj", "ff_out")}  # fmt: skip
        fused = norm(x) @ block["att_proj"].T
        if clip is not None:
            fused = fused.clamp(-clip, clip)
        q, k, v = (part.view(batch, length, heads, size).transpose(1, 2) for part in fused.chunk(3, dim=-1))
        scores = (turned(q, angle) @ turned(k, angle).transpose(-1, -2)) / size**0.5
        mixed = scores.masked_fill(mask, float("-inf")).softmax(-1) @ v
        x = x + mixed.transpose(1, 2).reshape(batch, length, width) @ block["attn_out"].T
        up, gate = (norm(x) @ block["ff_proj"].T).chunk(2, dim=-1)
        x = x + (silu(gate) * up) @ block["ff_out"].T
    return norm(x) @ state.get("transformer.ff_out.weight", state["transformer.wte.weight"]).T


@pytest.mark.parametrize(
    ("form", "config", "tied", "clip"),
    [
        ("model.pt", "config.yaml", True, None),
        ("model.pt", "config.json", False, 0.7),
        ("named", "config.json", False, None),
        ("spelled", "config.yaml", True, 0.7),
    ],
)
def test_a_converted_model_is_bit_equal(tmp_path, form, config, tied, clip):
    model = tiny("olmo", tie_word_embeddings=tied, clip_qkv=clip)
    made = native(model)
    folder = write(tmp_path / "native", made, form, config=config, weight_tying=tied, clip_qkv=clip)
    (folder / "tokenizer_config.json").write_text("{}")
    target = convert(folder, tmp_path / "converted")
    found, _ = load(str(target), device="cpu")
    ids = tokens(2, 30)
    assert torch.equal(logits(found, ids), logits(model, ids))
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert (found.config.clip_qkv, found.config.tie_word_embeddings) == (clip, tied)
    assert {path.name for path in tmp_path.iterdir()} == {"native", "converted"}
    kept = {"config.json", "model.safetensors", "tokenizer_config.json"}
    assert {path.name for path in target.iterdir()} == kept


def unrounded(norm, x):
    """`transformers` computes this norm in float32 always: of a model in float64 it would be the only rounding."""
    return layer_norm(x, norm.normalized_shape, eps=1e-5)


@pytest.mark.parametrize(("tied", "clip"), [(True, None), (False, 0.7)])
def test_it_computes_what_the_native_forward_pass_does(tmp_path, monkeypatch, tied, clip):
    model = tiny("olmo", tie_word_embeddings=tied, clip_qkv=clip)
    made = native(model)
    target = convert(write(tmp_path / "a", made, weight_tying=tied, clip_qkv=clip), tmp_path / "b")
    monkeypatch.setattr(modeling_olmo.OlmoLayerNorm, "forward", unrounded)
    found, _ = load(str(target), device="cpu", dtype="float64")
    ids = tokens(2, 30)
    expected = independent(made, ids, heads=3, clip=clip)
    assert expected.abs().max() > 1  # not all near zero
    torch.testing.assert_close(logits(found, ids), expected, rtol=0, atol=1e-10)


def test_the_halves_of_the_fused_projection_are_told_apart(tmp_path):
    """With the gate's rows first, as other families fuse them, another model comes out."""
    model = tiny("olmo")
    made = native(model)
    for name in [name for name in made if "ff_proj" in name]:
        made[name] = made[name].roll(20, dims=0)
    found, _ = load(
        str(convert(write(tmp_path / "a", made, weight_tying=False), tmp_path / "b")), device="cpu"
    )
    ids = tokens(2, 30)
    assert (logits(found, ids) - logits(model, ids)).abs().max() > 0.1
    layer, original = found.model.layers[0].mlp, model.model.layers[0].mlp
    assert torch.equal(layer.up_proj.weight, original.gate_proj.weight)


def test_fewer_heads_for_keys_and_another_number_type(tmp_path):
    model = tiny("olmo", kv_heads=1).to(torch.bfloat16)
    folder = write(tmp_path / "a", native(model), weight_tying=False, n_kv_heads=1, rope_theta=500_000)
    target = convert(folder, tmp_path / "b")
    config = json.loads((target / "config.json").read_text())
    assert (config["num_key_value_heads"], config["dtype"]) == (1, "bfloat16")
    assert config["rope_parameters"]["rope_theta"] == 500_000
    found, _ = load(str(target), device="cpu", dtype="bfloat16")
    layer = "model.layers.1.self_attn.v_proj.weight"
    assert torch.equal(found.state_dict()[layer], model.state_dict()[layer])


def test_the_end_of_text_of_the_published_models_is_put_right(tmp_path):
    wide = {"transformer.wte.weight": torch.zeros(50304, 2)}
    sizes = {"d_model": 2, "n_heads": 1, "n_layers": 0, "vocab_size": 50280, "embedding_size": 50304}
    target = convert(write(tmp_path / "a", wide, eos_token_id=0, **sizes), tmp_path / "b")
    config = json.loads((target / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["vocab_size"]) == (50279, 1, 50304)
    model = tiny("olmo", tie_word_embeddings=True)
    target = convert(write(tmp_path / "c", native(model), eos_token_id=0), tmp_path / "d")
    assert (
        json.loads((target / "config.json").read_text())["eos_token_id"] == 0
    )  # a vocabulary of another kind


def refused(match, folder, target):
    with pytest.raises(BadInput, match=match) as caught:
        convert(folder, target)
    assert "\n" not in str(caught.value)
    assert not target.exists() and not list(target.parent.glob(".*"))


@pytest.mark.parametrize("tensor", ["transformer.wte.weight", "transformer.blocks.1.ff_proj.weight"])
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, tensor):
    made = native(tiny("olmo", tie_word_embeddings=True))
    rest = {name: value for name, value in made.items() if name != tensor}
    refused(f"the tensor {tensor} in .*; got none", write(tmp_path / "a", rest), tmp_path / "t")
    wrong = {**made, tensor: made[tensor][:-1]}
    refused(f"expected {tensor} of shape", write(tmp_path / "b", wrong), tmp_path / "t")
    more = {**made, "transformer.ln_f.weight": torch.ones(12)}
    refused(
        r"no tensors but OLMo's in .*; got transformer\.ln_f\.weight",
        write(tmp_path / "c", more),
        tmp_path / "t",
    )
    refused(
        "the tensor transformer.ff_out.weight",
        write(tmp_path / "d", made, weight_tying=False),
        tmp_path / "t",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_type": "rms"}, "layer_norm_type default .*; got 'rms'"),
        ({"rope": False}, "rope True .*; got False"),
        ({"include_bias": True}, "include_bias False"),
        ({"attention_layer_norm": True}, "attention_layer_norm False"),
        ({"activation_type": "gelu"}, "activation_type swiglu"),
        ({"block_type": "llama"}, "block_type sequential"),
        ({"n_heads": 0}, "expected sizes of an OLMo model"),
        ({"n_heads": "2"}, "expected sizes of an OLMo model"),
        ({"d_model": "16"}, "expected sizes of an OLMo model"),
        ({"rope_theta": "x"}, "expected sizes of an OLMo model"),
        ({"n_heads": None}, "expected n_heads in the configuration"),
        ({"vocab_size": None, "embedding_size": None}, "expected vocab_size in the configuration"),
    ],
)
def test_settings_without_a_place_are_refused(tmp_path, changes, message):
    refused(message, write(tmp_path / "a", native(tiny("olmo")), **changes), tmp_path / "t")


def test_sizes_that_are_whole_floats_are_sizes(tmp_path):
    made = native(tiny("olmo"))
    whole = configuration(write(tmp_path / "a", made, mlp_ratio=4))
    assert configuration(write(tmp_path / "b", made, mlp_ratio=4.0)).to_dict() == whole.to_dict()


def test_files_that_are_not_there_or_broken_are_refused(tmp_path):
    folder = write(tmp_path / "a", native(tiny("olmo")), weight_tying=False)
    weights, config = folder / "model.pt", folder / "config.yaml"
    with pytest.raises(BadInput, match=r"kemem\.models\.convert writes it anew"):
        load(str(folder), device="cpu")
    weights.write_bytes(weights.read_bytes()[:500])
    refused("to hold tensors by name and nothing else", folder, tmp_path / "t")
    weights.unlink()
    refused("got neither; unshard", folder, tmp_path / "t")
    for text in ("model: [", "model: 3", "{}"):
        config.write_text(text)
        refused("settings of an OLMo model", folder, tmp_path / "t")
    config.unlink()
    refused(r"expected config\.yaml or config\.json", folder, tmp_path / "t")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(BadInput, match="a new folder"):
        convert(folder, tmp_path / "full")
    assert (tmp_path / "full" / "mine").read_text() == "kept"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), SafetensorError("No space left (os error 28)")]
)
def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", full)
    folder = write(tmp_path / "a", native(tiny("olmo")), weight_tying=False)
    refused("expected to write to .*; got: No space left", folder, tmp_path / "t")


class Harm:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    folder = write(tmp_path / "a", {"transformer.wte.weight": Harm()})
    refused("to hold tensors by name and nothing else", folder, tmp_path / "t")
