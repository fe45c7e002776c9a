"""Families without a row: a layout given once, against plain torch hooks, in everything that takes a model."""

import copy
import json
import math
import shlex

import naive_editing as naive
import numpy as np
import pytest
import test_tracing as by_hooks
import torch
from conftest import randomised, tokens
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import kemem
from kemem.cli import main
from kemem.corpora import train_tokenizer
from kemem.editing import edit, memit, moments, solve, targets
from kemem.editing.tracing import trace
from kemem.entropy import measure, multiplier
from kemem.entropy.resuscitation import resuscitate_
from kemem.errors import BadInput
from kemem.families import LAYOUTS, Layout, read_layout, register
from kemem.fitting import fitted
from kemem.memory import Memories

SMALL = {
    "vocab_size": 61, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3, "max_position_embeddings": 64, "bos_token_id": 0, "pad_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
GATED = {
    "block": "model.layers.{}", "up": "mlp.up_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj",
    "activation": "mlp.act_fn", "attention": "self_attn",
}  # fmt: skip
PHI = {
    "block": "model.layers.{}", "up": "mlp.fc1", "down": "mlp.fc2", "activation": "mlp.activation_fn",
    "attention": "self_attn", "output": "dense",
}  # fmt: skip
FAMILIES = {
    "mistral": ({"num_key_value_heads": 1, "head_dim": 4}, GATED),
    "stablelm": ({"num_key_value_heads": 3, "partial_rotary_factor": 0.5}, GATED),
    "phi": ({"partial_rotary_factor": 0.5, "num_key_value_heads": 3}, PHI),
}
unlisted = pytest.mark.parametrize("name", FAMILIES)
ROWS = [tokens(n, seed=n).tolist() for n in (5, 9, 7, 12)]


def made(name: str, *, dtype: torch.dtype = torch.float64, **changes) -> nn.Module:
    config = CONFIG_MAPPING[name](**{**SMALL, **FAMILIES.get(name, ({},))[0], **changes})
    return randomised(AutoModelForCausalLM, config).to(dtype)


@pytest.fixture(autouse=True)
def rows_as_they_were():
    """What a test registers is gone after it."""
    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)


@pytest.fixture
def known(name):
    register(name, Layout(**FAMILIES[name][1]))


def last_projection(model: nn.Module, layer: int) -> nn.Module:
    """By the sizes of its weight, which no other module of a block has."""
    (found,) = [
        m
        for m in model.model.layers[layer].modules()
        if isinstance(m, nn.Linear) and m.weight.shape == (12, 20)
    ]
    return found


def keys_by_hooks(model: nn.Module, row: list[int]) -> list[torch.Tensor]:
    seen, handles = [], []
    for layer in range(3):
        module = last_projection(model, layer)
        handles.append(module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone())))
    with torch.no_grad():
        model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return seen


# ---------------------------------------------------------------------- one view
@unlisted
def test_a_layout_makes_one_view_and_the_family_stays_unknown(name):
    model, layout = made(name), Layout(**FAMILIES[name][1])
    memories = Memories(model, layout=layout)
    assert (memories.family, memories.layers, memories.width, memories.count) == (name, 3, 12, 20)
    assert memories.layout is layout and memories.gated == ("gate" in FAMILIES[name][1])
    assert memories.values(1).data_ptr() == last_projection(model, 1).weight.data_ptr()
    with pytest.raises(BadInput, match=f"got '{name}'; say where it keeps its memories"):
        Memories(model)


def test_a_layout_counts_more_than_the_row_of_a_known_family():
    model = made("llama", num_key_value_heads=1)
    swapped = Layout(**{**GATED, "up": "mlp.gate_proj", "gate": "mlp.up_proj"})
    assert torch.equal(Memories(model, layout=swapped).keys(0), Memories(model).gates(0))
    assert Memories(model).layout is LAYOUTS["llama"]


@unlisted
def test_a_layout_that_is_right_is_found_to_be(name):
    layout = Layout(**FAMILIES[name][1])
    for dtype in (torch.float64, torch.bfloat16):
        model = made(name, dtype=dtype).train()
        assert fitted(model, layout, ids=[ROWS[0]]).layout is layout
        assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---------------------------------------------------------------------- everything that takes a model
@unlisted
def test_entropy_is_that_of_plain_hooks(name, known):
    model = made(name)
    found = measure(model, ROWS, batch_size=2)
    means = [
        torch.stack([keys_by_hooks(model, row)[i].abs().mean(0) for row in ROWS]).mean(0) for i in range(3)
    ]
    for layer, usage in enumerate(means):
        torch.testing.assert_close(found.usage[layer], usage, rtol=1e-10, atol=1e-12)
        p = (usage / usage.sum()).tolist()
        assert found.layers[layer].item() == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-10)
    whole = measure(model, ROWS, attention=True)
    assert whole.attention_entropy is not None and whole.next_token_entropy is not None


@unlisted
def test_waking_multiplies_the_coefficients(name, known):
    model = made(name)
    before = measure(model, ROWS[:1])
    factors = multiplier(before.usage, 0.5, 1.0)
    old = keys_by_hooks(model, ROWS[0])[0]
    values = last_projection(model, 0).weight.detach().clone()
    resuscitate_(model, factors)
    scaled = factors[0].to(old)
    if Memories(model).gated:  # the coefficients of the first layer, which nothing below changes
        torch.testing.assert_close(keys_by_hooks(model, ROWS[0])[0], old * scaled, rtol=1e-9, atol=1e-12)
    else:
        torch.testing.assert_close(last_projection(model, 0).weight.detach(), values * scaled)


@unlisted
def test_key_moments_targets_and_memit_are_the_plain_algorithm(name, known, monkeypatch):
    monkeypatch.setitem(naive.BLOCK, name, "model.layers.{}")
    monkeypatch.setitem(naive.DOWN, name, FAMILIES[name][1]["down"])
    model, of, layers = made(name), naive.drawn_contexts(4), (0, 1)
    C = moments.key_moments(model, ROWS, layers)
    keys = torch.cat([keys_by_hooks(model, row)[1] for row in ROWS])
    torch.testing.assert_close(C[1], keys.T @ keys / len(keys), rtol=1e-8, atol=1e-10)
    search = targets.Search(steps=5, rate=0.3, clamp=3.0)
    found = targets.values(Memories(model), of, 1, search)
    for i, c in enumerate(of):
        torch.testing.assert_close(found.z[i], naive.target(model, c, 1, search)[0], rtol=1e-6, atol=1e-8)
    deltas = memit.spread(
        edit.editable(model), of, found.z, layers, lambda at, K, R: solve.closed_form(K, R, C[at], weight=3.0)
    )
    plain = naive.memit_(copy.deepcopy(model), of, found.z, layers, C, 3.0)
    for layer in layers:
        torch.testing.assert_close(deltas[layer], plain[layer], rtol=1e-6, atol=1e-8)


@unlisted
def test_traces_are_those_of_plain_hooks(name, known, monkeypatch):
    words = train_tokenizer([by_hooks.WORDS], 61, unit="word")
    monkeypatch.setitem(by_hooks.PATHS, name, ("model.embed_tokens", "model.layers.{}", "mlp", "self_attn"))
    model = made(name, vocab_size=len(words))
    (fact,) = by_hooks.known(model, words, [by_hooks.SHORT])
    found = trace(model, words, [fact], samples=2, window=2, noise=0.4, seed=3).traces[0]
    drawn = 0.4 * by_hooks.standard_noise(by_hooks.effects.questions(words, [fact])[0], 2, 12, 3)
    plain = by_hooks.Plain(model, words, fact, name)
    clean, corrupted, maps, severed = plain.traced(drawn, 2)
    assert found.clean == pytest.approx(clean) and found.corrupted == pytest.approx(corrupted)
    for (kind, token, layer), effect in maps.items():
        assert found.indirect[kind][token, layer].item() == pytest.approx(effect, abs=1e-9)
    for (kind, layer), effect in severed.items():
        assert found.severed[kind][layer].item() == pytest.approx(effect, abs=1e-9)


# ---------------------------------------------------------------------- a module of one's own
class Layer(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(4, 6), nn.Linear(6, 4, bias=False)
        self.bend, self.scale = nn.ReLU(), scale

    def forward(self, x):
        return x + self.scale * self.back(self.bend(self.wide(x)))


class Net(nn.Module):
    """No configuration, no attention, no head: a stack of feed-forward layers over an embedding."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.stack = nn.Sequential(Layer(scale), Layer(scale))

    def forward(self, ids):
        return self.stack(self.words(ids))


OWN = Layout(block="stack.{}", up="wide", down="back", activation="bend")


def net(scale: float = 1.0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(scale)


def test_a_module_of_ones_own_has_memories_too():
    model, ids = net(), torch.tensor([[3, 1, 4]])
    memories = fitted(model, OWN, ids=[[3, 1, 4]])
    assert repr(memories) == "Memories(Net: 2 layers x 6 memories of width 4, ungated)"
    c = {}
    with torch.no_grad(), memories.coefficients(lambda layer, tensor: c.update({layer: tensor})):
        out = model(ids)
    x = model.words(ids)
    for layer in range(2):
        wanted = torch.relu(x @ memories.keys(layer).T + memories.key_bias(layer))
        torch.testing.assert_close(c[layer], wanted)
        x = x + wanted @ memories.values(layer).T
    torch.testing.assert_close(out, x)
    with pytest.raises(BadInput, match="num_attention_heads"):
        memories.head(0, 0)


def test_a_class_is_registered_by_its_name():
    register("Net", OWN)
    model = net()
    with pytest.raises(BadInput, match=r"a model of transformers.*got Net"):
        measure(model, [[1, 2]])
    keys = Memories(model).values(1).clone()
    resuscitate_(model, torch.full((2, 6), 2.0))
    torch.testing.assert_close(Memories(model).values(1), 2 * keys)


# ---------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block": "model.blocks.{}"}, "the blocks of a 'mistral' model at 'model.blocks.{}'"),
        (
            {"down": "mlp.out"},
            "got 'model.layers.0.mlp.out', but 'model.layers.0.mlp' holds gate_proj, up_proj",
        ),
        ({"down": "mlp.act_fn"}, "with a plain weight at 'model.layers.0.mlp.act_fn'; got SiLU"),
        ({"down": "self_attn.o_proj"}, "to have 12 outputs and 12 inputs"),
        ({"up": "mlp.down_proj"}, "to have 20 outputs and 12 inputs, as 'model.layers.0.mlp.down_proj' asks"),
        ({"gate": None, "fused": "gate,up"}, "to have 40 outputs and 12 inputs"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_at_once(change, said):
    with pytest.raises(BadInput) as error:
        Memories(made("mistral"), layout=Layout(**{**GATED, **change}))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"up": "mlp.gate_proj", "gate": "mlp.up_proj"},
            "coefficients of layer 0 that up, gate and activation make",
        ),
        ({"gate": None}, "coefficients of layer 0"),
        ({"activation": "mlp.curve"}, "the activation at 'model.layers.0.mlp.curve'"),
        ({"activation": None}, "names the activation"),
        (
            {"activation": "self_attn.q_proj"},
            "bends every number by itself, at 'self_attn.q_proj'; got Linear",
        ),
        ({"attention": "attn"}, "got 'model.layers.0.attn'"),
    ],
)
def test_what_no_shape_shows_is_found_by_a_pass(change, said):
    model, layout = made("mistral"), Layout(**{**GATED, **change})
    Memories(model, layout=layout)
    with pytest.raises(BadInput) as error:
        fitted(model, layout, ids=ROWS[:1])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_norm_or_a_scale_behind_the_last_projection_is_found_by_a_pass():
    for model, layout in (
        (made("olmo2", num_key_value_heads=3), Layout(**GATED)),
        (made("granite", num_key_value_heads=3, residual_multiplier=0.22), Layout(**GATED)),
        (net(0.5), OWN),
    ):
        with pytest.raises(BadInput, match="to join the stream as it is") as error:
            fitted(model, layout, ids=[[3, 4, 5]])
        assert "\n" not in str(error.value)
    normed = Layout(**GATED, norm="before_residual")
    model = made("olmo2", num_key_value_heads=3)
    assert fitted(model, normed, ids=[[3, 4, 5]]).layout.norm == "before_residual"
    with pytest.raises(BadInput, match="token ids to try a layout on"):
        fitted(model, normed, ids=[[]])


def test_a_mixture_of_experts_is_refused():
    model = made("mixtral", num_local_experts=4, num_key_value_heads=1)
    with pytest.raises(BadInput, match="chooses among 4; take a model without experts"):
        Memories(model, layout=Layout(**GATED))


def test_a_family_is_registered_once():
    register("mistral", Layout(**GATED))
    register("mistral", Layout(**GATED))
    with pytest.raises(BadInput, match="a family without a layout; got 'mistral'"):
        register("mistral", Layout(**PHI))
    with pytest.raises(BadInput, match="got 'gpt2', which has another one"):
        register("gpt2", Layout(**GATED))


def test_the_line_of_the_refusal_works_as_it_stands():
    model = made("stablelm")
    with pytest.raises(BadInput) as error:
        Memories(model)
    line = str(error.value).split("print(model) shows: ")[1].split(", or --layout")[0]
    eval(line, {"kemem": kemem})
    assert Memories(model).count == 20 and not Memories(model).gated


def test_a_layout_is_read_from_a_file(tmp_path):
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(PHI))
    assert read_layout(file) == Layout(**PHI)
    for text, said in (
        ("{", "got something else"),
        ("[]", "one object of strings"),
        ('{"block": 1}', "one object of strings"),
        (json.dumps({**PHI, "dwn": "x"}), "got 'dwn', which is none"),
        (json.dumps({"block": "model.layers.{}", "up": "mlp.up"}), "got none for 'down'"),
    ):
        file.write_text(text)
        with pytest.raises(BadInput, match="layout") as error:
            read_layout(file)
        assert said in str(error.value)
    with pytest.raises(BadInput, match="No such file"):
        read_layout(tmp_path / "none.json")


# ---------------------------------------------------------------------- commands
@pytest.mark.parametrize("name", ["phi", "mistral"])
def test_commands_take_a_layout_from_a_file(name, tmp_path, capfd):
    words = train_tokenizer([by_hooks.WORDS], 61, unit="word")
    model = made(name, dtype=torch.float32, vocab_size=len(words))
    (fact,) = by_hooks.known(model, words, [by_hooks.SHORT])
    model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    request = {
        "case_id": 0, "subject": fact.subject, "prompt": fact.prompt, "target_new": "fire", "ground_truth": "water",
        "rephrase_prompt": fact.prompt,
    }  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps([{**vars(fact)}]))
    (tmp_path / "requests.json").write_text(json.dumps([request]))
    (tmp_path / "layout.json").write_text(json.dumps(FAMILIES[name][1]))
    (tmp_path / "text.txt").write_text("The tower of Pisa lies in Italy\n" * 9)

    def told(command: str):
        given = f"{command} --layout {tmp_path}/layout.json --json {tmp_path}/out.json --device cpu"
        assert main(shlex.split(given.replace("@", str(tmp_path)))) == 0, capfd.readouterr().err
        return json.loads((tmp_path / "out.json").read_text())

    (row,) = told("entropy @/model --corpus files:@/text.txt --instances 2")
    ids = [words("The tower of Pisa lies in Italy", add_special_tokens=False)["input_ids"]] * 2
    assert row["family"] == name and row["entropy"] == pytest.approx(measure(model, ids).entropy, rel=1e-6)
    assert told("trace @/model --facts @/facts.json --samples 1 --window 1")["facts_used"] == 1
    edited = told("edit @/model --requests @/requests.json --method ft --layers 1")
    assert edited["n"] == 1 and edited["update_norm"]["1"] > 0
    woken = told("resuscitate @/model --fraction 0.5 --gain 1 --corpus files:@/text.txt --out @/woken")
    assert woken["scaled"] == ("up" if name == "mistral" else "values")


@pytest.mark.parametrize("name", ["phi", "mistral"])
def test_a_family_with_a_layout_learns_domains_by_das(name, tmp_path, capfd):
    """Without the layout the family is refused, and the refusal names it."""
    words = train_tokenizer([by_hooks.WORDS], 61, unit="word")
    made(name, dtype=torch.float32, vocab_size=len(words)).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    (tmp_path / "layout.json").write_text(json.dumps(FAMILIES[name][1]))
    draw, vocabulary = np.random.default_rng(0), by_hooks.WORDS.split()
    for text, known in (("one", vocabulary[::2]), ("two", vocabulary[1::2])):
        documents = [json.dumps({"text": " ".join(draw.choice(known, 12)), "id": str(i)}) for i in range(200)]
        (tmp_path / f"{text}.jsonl").write_text("\n".join(documents))
    command = shlex.split(
        f"adapt {tmp_path}/model --domains files:{tmp_path}/one.jsonl,files:{tmp_path}/two.jsonl --method das "
        f"--steps 2 --batch 4 --length 6 --tasks none --set samples=4 --device cpu --json {tmp_path}/out.json"
    )
    assert main(command) == 2 and "layout" in capfd.readouterr().err
    assert main([*command, "--layout", str(tmp_path / "layout.json")]) == 0, capfd.readouterr().err
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["settings"]["family"] == name and told["domains"] and np.isfinite(told["loss"]).all()
    before, after = told["before"], np.diag(told["loss"])
    assert all(a != b for a, b in zip(before, after, strict=True))
