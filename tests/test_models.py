"""Models are built as asked, read back as written, and refused in one line where they cannot be read."""

import json
import socket
from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, MASKED, tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.models import Shape, build, family, hub, load, named_device, named_dtype

SHAPE = Shape(layers=3, width=12, memories=20, heads=3, context=32, vocab=40)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tokenizer(words=("<end>", "<pad>", "a", "b")):
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")


# ---------------------------------------------------------------------- building
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_built_as_asked(name):
    shape = replace(SHAPE, family=name)
    model = build(shape)
    view = Memories(model)
    assert (view.family, view.layers, view.width, view.count, view.heads) == (name, 3, 12, 20, 3)
    assert model.get_output_embeddings().weight.shape == (40, 12)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == shape.tied
    ids = torch.arange(3, 35)[None]
    assert model(input_ids=ids).logits.shape == (1, 32, 40)  # the whole context can be read
    assert all(p.dtype == torch.float32 for p in model.parameters())
    untied = build(replace(shape, tied=False))
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_is_what_was_asked_for(name):
    ids = torch.arange(3, 20)[None]

    def differs(dropout):
        model = build(replace(SHAPE, family=name, dropout=dropout)).train()
        return not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)

    assert (differs(0.0), differs(0.5)) == (False, True)


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first = weights(build(SHAPE, seed=1))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert equal(first, weights(build(SHAPE, seed=1))) and not equal(first, weights(build(SHAPE, seed=2)))
    assert first["model.layers.0.mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.2)


def test_special_tokens_come_from_the_tokenizer():
    model = build(SHAPE, tokenizer())
    assert (model.config.eos_token_id, model.config.pad_token_id, model.config.bos_token_id) == (0, 1, None)
    with pytest.raises(BadInput, match="at least the tokenizer's 4 tokens; got 3"):
        build(replace(SHAPE, vocab=3), tokenizer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "olmo3"}, "one of bert, .*gpt2"),
        ({"layers": 0}, "layers"),
        ({"memories": -1}, "memories"),
        ({"heads": 5}, "width 12 and 5 heads"),
        ({"heads": 4}, "an even number"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    with pytest.raises(BadInput, match=message) as caught:
        replace(SHAPE, **change)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- reading
@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_is_read_as_it_was(tmp_path, name):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    found, tok = load(str(tmp_path), device="cpu")
    assert type(found) is type(model) and equal(weights(found), weights(model))
    assert tok is None and not found.training and family(str(tmp_path)) == name
    body, _ = load(str(tmp_path), device="cpu", head=False, dtype="float64")
    ids = torch.arange(3, 9)[None]
    expected = tiny(name, dtype=torch.float64).base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(body(input_ids=ids).last_hidden_state, expected, rtol=0, atol=1e-6)
    assert (body.dtype == torch.float64 and "ForMaskedLM" in type(found).__name__) or name not in MASKED


def test_revisions_of_a_folder_are_its_sub_folders(tmp_path):
    for step in (5, 10, 100):
        build(SHAPE, seed=step).save_pretrained(tmp_path / f"step{step}")
    tokenizer().save_pretrained(tmp_path / "step10")
    found, tok = load(str(tmp_path), revision="step10", device="cpu")
    assert equal(weights(found), weights(build(SHAPE, seed=10)))
    assert tok("b a")["input_ids"] == [3, 2]
    assert load(str(tmp_path / "step5"), device="cpu")[1] is None
    for revision in ("step7", "../step5", str(tmp_path / "step5")):
        with pytest.raises(BadInput, match="choose one of step5, step10, step100"):
            load(str(tmp_path), revision=revision, device="cpu")
    with pytest.raises(BadInput, match="give a revision: step5, step10, step100"):
        load(str(tmp_path), device="cpu")
    with pytest.raises(BadInput, match="leave the revision out"):
        load(str(tmp_path / "step5"), revision="main", device="cpu")


def test_attention_can_be_chosen(tmp_path):
    tiny("olmo").save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu", attention="eager")[0].config._attn_implementation == "eager"


def refused(match, *args, **options):
    with pytest.raises(BadInput, match=match) as caught:
        load(*args, device="cpu", **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_places_without_a_model_are_refused(tmp_path):
    refused("neither; check the path", str(tmp_path / "missing"))
    refused("neither; check the path", "./missing")
    refused("neither; check the path", "")
    refused("without a config.json; give one written by save_pretrained", str(tmp_path))
    (tmp_path / "file").write_text("")
    refused("neither; check the path", str(tmp_path / "file"))


def test_broken_configurations_are_refused(tmp_path):
    config = tmp_path / "config.json"
    for text in ("{", "[]", "", '{"model_type": 3}', "\xff"):
        config.write_bytes(text.encode("latin-1"))
        refused("expected a model", str(tmp_path))
    sizes = {"model_type": "olmo", "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2}
    for wrong in ({"hidden_size": "12"}, {"num_hidden_layers": 1.5}, {"vocab_size": None}):
        config.write_text(json.dumps(sizes | wrong))
        refused("expected a model", str(tmp_path))
    config.write_text(json.dumps({"model_type": "olmo9"}))
    refused("got 'olmo9'; kemem reads bert", str(tmp_path))


def test_incomplete_and_foreign_weights_are_refused(tmp_path):
    model = tiny("olmo")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    down = "model.layers.1.mlp.down_proj.weight"
    save_file({name: t for name, t in tensors.items() if name != down}, file, metadata={"format": "pt"})
    refused(f"1 missing or of another shape, .*{down}", str(tmp_path))
    save_file({**tensors, down: torch.zeros(3, 4)}, file, metadata={"format": "pt"})
    refused("down_proj|shape|size", str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    refused("expected a model that opens", str(tmp_path))
    file.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    refused("expected weights as safetensors in .*; got none", str(tmp_path))


def test_a_body_without_a_head_is_not_given_a_random_one(tmp_path):
    tiny("olmo").model.save_pretrained(tmp_path)
    refused("missing or of another shape, lm_head.weight", str(tmp_path))
    assert load(str(tmp_path), device="cpu", head=False)[0].config.model_type == "olmo"


def test_code_of_a_models_authors_does_not_run(tmp_path):
    (tmp_path / "configuration_evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.EvilConfig"}})
    )
    refused("got 'evil'", str(tmp_path))


def test_a_tokenizer_that_does_not_open_is_refused(tmp_path):
    tiny("olmo").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    refused("expected a tokenizer that opens|tokenizer", str(tmp_path))


def test_without_a_network_a_name_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", connect)
    refused("no such folder and no network", "kemem-nobody/no-such-model")
    assert len(asked) == 1 and asked[0][1] == 443
    monkeypatch.setattr(hub, "reachable", lambda: False)
    refused("at step7 to be a folder", "kemem-nobody/no-such-model", revision="step7")


# ---------------------------------------------------------------------- devices and number types
def test_devices_and_number_types():
    assert named_device("cpu") == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert named_device("auto").type == best
    assert named_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(BadInput, match="one of auto, cpu, cuda, mps"):
        named_device("gpu")
    with pytest.raises(BadInput, match="one of float32, float64"):
        named_dtype("fp32")
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="got 'cuda'; use cpu"):
            named_device("cuda")


def test_a_device_without_float64_is_told(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert named_device("auto").type == "mps"
    with pytest.raises(BadInput, match="take the device cpu"):
        named_dtype("float64", "auto")
