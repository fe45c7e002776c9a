"""Knowledge entropy of a model against a computation that shares nothing with it.

The reference opens the model with plain hooks at paths written out here, reads one instance at a time without padding,
in float64, and does the arithmetic in numpy.
"""

import math
import weakref

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import FAMILIES, GATED, MASKED, tiny
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from kemem.entropy import measure, prediction
from kemem.entropy.measure import SIDES
from kemem.errors import BadInput
from kemem.memory import Memories

LAST = {  # the last projection of block l of the base model
    **dict.fromkeys(GATED, "layers.{}.mlp.down_proj"),
    "gpt2": "h.{}.mlp.c_proj",
    "gptj": "h.{}.mlp.fc_out",
    "gpt_neox": "layers.{}.mlp.dense_4h_to_h",
    **dict.fromkeys(MASKED, "encoder.layer.{}.output.dense"),
}
LENGTHS = (3, 1, 9, 30, 9, 17, 2)


def texts(lengths=LENGTHS, seed=0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 61, (length,), generator=generator).tolist() for length in lengths]


def seen_at(model, paths, ids, side="input") -> list[np.ndarray]:
    """What enters (or leaves) the modules of the base model while it reads `ids` [B T], as float64 arrays [B T K]."""
    seen, hooks = [], []

    def entering(_, args):
        seen.append(args[0].double().numpy().copy())

    def leaving(_, __, output):
        seen.append(output.double().numpy().copy())

    for path in paths:
        place = model.base_model.get_submodule(path)
        if side == "input":
            hooks.append(place.register_forward_pre_hook(entering))
        else:
            hooks.append(place.register_forward_hook(leaving))
    with torch.no_grad():
        model(input_ids=torch.as_tensor(ids))
    for hook in hooks:
        hook.remove()
    return seen


def usage_by_hand(model, instances, magnitude=np.abs) -> np.ndarray:
    paths = [LAST[model.config.model_type].format(layer) for layer in range(model.config.num_hidden_layers)]
    per_instance = [[magnitude(c[0]).mean(0) for c in seen_at(model, paths, [ids])] for ids in instances]
    return np.mean(per_instance, axis=0)


def entropy_by_hand(usage: np.ndarray) -> np.ndarray:
    p = usage / usage.sum(-1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def reloaded(model, folder, dtype, **settings):
    model.save_pretrained(folder)
    auto = AutoModelForMaskedLM if model.config.model_type in MASKED else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype, **settings)


@pytest.mark.parametrize("square", [False, True], ids=["D<M", "D=M"])
def test_agrees_with_plain_hooks_in_float64(family, square, tmp_path):
    model = reloaded(tiny(family, square=square), tmp_path, torch.float64)
    instances = texts()
    usage = usage_by_hand(model, instances)
    single = reloaded(model, tmp_path, torch.float32)
    for side in SIDES:
        found = measure(model, instances, batch_size=3, side=side, next_token=False)
        np.testing.assert_allclose(found.usage, usage, rtol=1e-10)
        np.testing.assert_allclose(found.layers, entropy_by_hand(usage), rtol=0, atol=1e-10)
        padded = measure(single, instances, batch_size=3, side=side, next_token=False)
        np.testing.assert_allclose(padded.layers, entropy_by_hand(usage), rtol=0, atol=1e-5)
    assert found.entropy == pytest.approx(float(entropy_by_hand(usage).sum()), abs=1e-10)
    assert found.bound == pytest.approx(model.config.num_hidden_layers * math.log(usage.shape[1]))
    assert found.effective_share == pytest.approx(math.exp(found.entropy / 2) / usage.shape[1])
    assert (found.tokens, found.instances, found.skipped, found.cut) == (sum(LENGTHS), len(LENGTHS), 0, 0)


def test_attention_entropy_is_that_of_the_weights_the_model_returns(family, tmp_path):
    model = reloaded(tiny(family), tmp_path, torch.float32)
    before = model.config._attn_implementation
    shown = reloaded(model, tmp_path, torch.float32, attn_implementation="eager")
    per_instance = []
    for ids in texts():
        with torch.no_grad():
            weights = shown(input_ids=torch.tensor([ids]), output_attentions=True).attentions
        p = torch.stack(weights)[:, 0].double().numpy()  # [L H T T]
        per_instance.append(-(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean(-1))
    expected = np.mean(per_instance, axis=0)  # [L H]
    for side in SIDES:
        found = measure(model, texts(), batch_size=4, attention=True, next_token=False, side=side)
        np.testing.assert_allclose(found.attention, expected, rtol=0, atol=1e-5)
        assert found.attention_entropy == pytest.approx(expected.mean(1).sum(), abs=1e-5)
    assert model.config._attn_implementation == before
    if family not in MASKED:  # the first token sees only itself
        assert measure(model, [[7]], attention=True).attention_entropy == 0
    assert measure(model, [[7, 8]]).attention is None


def test_next_token_entropy_is_that_of_the_full_logits(family, monkeypatch):
    monkeypatch.setitem(prediction.CHUNK, "cpu", 200)
    model = tiny(family)  # 200 logits at a time: 3 tokens of 61, so chunks end inside instances
    per_instance = []
    for ids in texts():
        with torch.no_grad():
            p = model(input_ids=torch.tensor([ids])).logits.double().softmax(-1).numpy()
        per_instance.append(-(p * np.log(p)).sum(-1).mean())
    for side in SIDES:
        found = measure(model, texts(), batch_size=4, side=side)
        assert found.next_token_entropy == pytest.approx(np.mean(per_instance), abs=1e-5)
    assert 0 < found.next_token_entropy < math.log(61)


def test_what_a_family_does_to_its_logits_is_in_the_next_token_entropy():
    model = tiny("llama")
    cold = measure(model, texts()).next_token_entropy
    forward = type(model).forward

    class Scaled(type(model)):
        def forward(self, **inputs):
            outputs = forward(self, **inputs)
            outputs.logits = 0 * outputs.logits
            return outputs

    model.__class__ = Scaled
    assert cold < 4
    assert measure(model, texts()).next_token_entropy == pytest.approx(math.log(61), abs=1e-6)


def test_a_model_without_head_has_no_next_token_entropy(family, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    extra = {"add_pooling_layer": False} if family in MASKED else {}
    bare = AutoModel.from_pretrained(tmp_path, **extra)
    found = measure(bare, texts())
    assert found.next_token_entropy is None
    torch.testing.assert_close(found.usage, measure(model, texts()).usage)


@pytest.mark.parametrize("side", SIDES)
def test_padding_changes_no_statistic(family, side):
    model = tiny(family)
    alone = measure(model, texts(), batch_size=1, attention=True)
    for batch_size, pad_id in ((3, None), (7, 30)):
        together = measure(model, texts(), batch_size=batch_size, pad_id=pad_id, side=side, attention=True)
        torch.testing.assert_close(together.usage, alone.usage, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.attention, alone.attention, rtol=0, atol=1e-5)
        assert together.next_token_entropy == pytest.approx(alone.next_token_entropy, abs=1e-5)
        assert together.tokens == alone.tokens


def test_nor_in_float64_where_attention_is_eager(family):
    """There transformers masks with a number that overflows in its float32 softmax: padding on the left gave NaN."""
    model = tiny(family, dtype=torch.float64)
    alone = measure(model, texts(), batch_size=1, attention=True, next_token=False)
    together = measure(model, texts(), batch_size=7, attention=True, next_token=False, side="left")
    torch.testing.assert_close(together.layers, alone.layers, rtol=0, atol=1e-12)
    torch.testing.assert_close(together.attention, alone.attention, rtol=0, atol=1e-12)


def test_means_are_over_tokens_and_then_over_instances():
    model = tiny("olmo", dtype=torch.float64)
    long, short = texts((20, 2))
    both = measure(model, [long, short]).usage
    torch.testing.assert_close(both, (measure(model, [long]).usage + measure(model, [short]).usage) / 2)
    repeated = measure(model, [long, short, long, short])
    torch.testing.assert_close(repeated.usage, both)


@pytest.mark.parametrize("pad_id", [1, 30])
def test_include_is_the_released_procedure(family, pad_id):
    """Every instance padded to `length`, no mask, sum over all positions, divided by the number of instances."""
    model = tiny(family, dtype=torch.float64)
    instances = texts()
    paths = [LAST[family].format(layer) for layer in range(2)]
    rows = [ids + [pad_id] * (30 - len(ids)) for ids in instances]
    expected = np.mean([[np.abs(c[0]).sum(0) for c in seen_at(model, paths, [row])] for row in rows], axis=0)
    found = measure(model, instances, batch_size=3, padding="include", pad_id=pad_id, length=30)
    np.testing.assert_allclose(found.usage, expected, rtol=1e-10)
    np.testing.assert_allclose(found.layers, entropy_by_hand(expected), rtol=0, atol=1e-10)
    assert found.tokens == sum(LENGTHS)
    masked = measure(model, instances, batch_size=3)
    assert abs(found.entropy - masked.entropy) > 1e-3  # the padding does count
    full = [row[:30] for row in texts((30, 30))]
    included = measure(model, full, padding="include", pad_id=pad_id, length=30)
    torch.testing.assert_close(included.usage, 30 * measure(model, full).usage)


def test_include_pads_to_the_context_where_no_length_is_given():
    model = tiny("gpt2", context=16)
    by_default = measure(model, texts((4, 9)), padding="include", pad_id=5)
    assert by_default.length == 16
    torch.testing.assert_close(
        by_default.usage, measure(model, texts((4, 9)), padding="include", pad_id=5, length=16).usage
    )


@pytest.mark.parametrize("family", GATED)
def test_relu_of_the_gate(family):
    model = tiny(family, dtype=torch.float64)
    gates = [f"layers.{layer}.mlp.gate_proj" for layer in range(2)]
    ups = [f"layers.{layer}.mlp.up_proj" for layer in range(2)]
    per_instance = []
    for ids in texts():
        gate, up = (seen_at(model, paths, [ids], "output") for paths in (gates, ups))
        per_instance.append(
            [np.abs(np.maximum(g[0], 0) * u[0]).mean(0) for g, u in zip(gate, up, strict=True)]
        )
    found = measure(model, texts(), batch_size=3, coefficient="relu-gate")
    np.testing.assert_allclose(
        found.layers, entropy_by_hand(np.mean(per_instance, axis=0)), rtol=0, atol=1e-10
    )
    assert found.coefficient == "relu-gate"


def test_relu_of_the_product(family):
    model = tiny(family, dtype=torch.float64)
    expected = usage_by_hand(model, texts(), lambda c: np.maximum(c, 0))
    found = measure(model, texts(), batch_size=3, coefficient="relu")
    np.testing.assert_allclose(found.layers, entropy_by_hand(expected), rtol=0, atol=1e-10)
    assert abs(found.entropy - measure(model, texts()).entropy) > 1e-3


def test_snapshots_are_the_usage_of_the_first_instances():
    model = tiny("olmo", dtype=torch.float64)
    instances = texts((4, 9, 4, 2, 9, 9, 4, 2, 4))
    found = measure(model, instances, batch_size=2, marks=(3, 7, 9, 1000))
    assert sorted(found.snapshots) == [3, 7, 9]
    for mark, usage in found.snapshots.items():
        torch.testing.assert_close(usage, measure(model, instances[:mark], batch_size=2).usage)
    torch.testing.assert_close(found.snapshots[9], found.usage)


def test_blocks_tensors_and_generators_are_read_alike():
    model = tiny("olmo")
    ids = torch.tensor(texts((9,) * 5), dtype=torch.int32)

    class Blocks:
        pass

    blocks = Blocks()
    blocks.ids = ids
    expected = measure(model, ids.tolist(), batch_size=2).usage
    for instances in (blocks, ids, (row for row in ids), ids.numpy()):
        assert torch.equal(measure(model, instances, batch_size=2).usage, expected)


def test_a_text_is_read_as_it_comes():
    model, read, at_first_progress = tiny("olmo"), [], []

    def endless():
        for number in range(70):
            read.append(number)
            yield [5, 6, 7]

    def progress(done, total):
        at_first_progress.append((done, total, len(read)))

    measure(model, endless(), batch_size=2, progress=progress)
    assert at_first_progress[0] == (2, None, 32)
    assert at_first_progress[-1] == (70, None, 70)


def test_empty_instances_are_skipped_and_long_ones_cut(family):
    model = tiny(family, context=16)
    instances = [[], *texts((40, 16, 3)), []]
    found = measure(model, instances, length=9999)
    assert (found.skipped, found.cut, found.instances, found.length, found.tokens) == (2, 1, 3, 16, 35)
    torch.testing.assert_close(found.usage, measure(model, [ids[:16] for ids in instances]).usage)
    assert measure(model, instances, length=2).tokens == 6


def test_one_pass_gives_everything(family):
    model = tiny(family)
    calls = []
    first = model.base_model.get_submodule(LAST[family].format(0))
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    measure(model, texts((6,) * 9), batch_size=3, attention=True, coefficient="abs", marks=(3,))
    hook.remove()
    assert len(calls) == 3


def test_one_layer_is_held_at_a_time():
    model = tiny("olmo", layers=4)
    memories, alive, counts = Memories(model), [], {"coefficients": [], "attention": []}

    def watch(kind, tensor):
        alive[:] = [(name, ref) for name, ref in alive if ref() is not None]
        alive.append((kind, weakref.ref(tensor)))
        counts[kind].append(sum(name == kind for name, _ in alive))

    hooks = []
    for layer in range(4):
        down, attention = (
            model.get_submodule(path) for path in (memories.down_path(layer), memories.attention_path(layer))
        )
        hooks.append(down.register_forward_pre_hook(lambda _, args: watch("coefficients", args[0])))
        hooks.append(attention.register_forward_hook(lambda _, __, output: watch("attention", output[1])))
    measure(model, texts(), batch_size=7, attention=True)
    for hook in hooks:
        hook.remove()
    assert counts == {"coefficients": [1] * 4, "attention": [1] * 4}


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["nowhere", "after a batch", "in a block", "in the head"])
def test_the_model_is_left_as_it_was(family, where):
    model = tiny(family).train()
    modules = dict(model.named_modules())
    modules[next(name for name in modules if name.endswith("1"))].eval()  # modes may be mixed
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in modules.items()}
    attention, random = model.config._attn_implementation, torch.get_rng_state()

    def stop(*_):
        raise Stop

    place = {
        "in a block": model.base_model.get_submodule(LAST[family].format(1)),
        "in the head": model.get_output_embeddings(),
    }
    hook = place[where].register_forward_hook(stop) if where in place else None
    progress = stop if where == "after a batch" else None
    if where == "nowhere":
        measure(model, texts(), attention=True)
    else:
        with pytest.raises(Stop):
            measure(model, texts(), attention=True, progress=progress)
    if hook is not None:
        hook.remove()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.config._attn_implementation == attention
    assert "forward" not in model.base_model.__dict__
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off_and_the_same_text_gives_the_same_numbers():
    model = tiny("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    first, second = (measure(model, texts(), attention=True) for _ in range(2))
    assert torch.equal(first.usage, second.usage) and torch.equal(first.attention, second.attention)


def test_bfloat16_models_are_summed_in_float32(family):
    model = tiny(family).bfloat16()
    (ids,) = texts((60,))
    np.testing.assert_allclose(measure(model, [ids]).usage, usage_by_hand(model, [ids]), rtol=1e-6)
    wide = tiny(family).bfloat16().float()
    assert measure(model, texts()).entropy == pytest.approx(measure(wide, texts()).entropy, abs=0.02)


@pytest.mark.parametrize(
    ("family", "instances", "settings", "said"),
    [
        ("olmo", [], {}, "at least one instance with a token; got 0 empty"),
        ("olmo", [[], []], {}, "at least one instance with a token; got 2 empty"),
        ("olmo", [[5], [61]], {}, r"0\.\.60.*got 61"),
        ("olmo", [[5], [-1]], {}, "got -1"),
        ("olmo", ["text"], {}, "list of token ids; got 'text'"),
        ("olmo", [[[5, 6]]], {}, "list of token ids"),
        ("olmo", [5, 6], {}, "list of token ids"),
        ("olmo", [[5]], {"coefficient": "sum"}, "abs, relu, relu-gate; got 'sum'"),
        ("olmo", [[5]], {"padding": "drop"}, "mask, include; got 'drop'"),
        ("olmo", [[5]], {"side": "top"}, "right, left; got 'top'"),
        ("olmo", [[5]], {"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ("olmo", [[5]], {"length": 0}, "length must be at least 1; got 0"),
        ("olmo", [[5]], {"pad_id": 61}, "pad_id.*got 61"),
        *[(family, [[5]], {"coefficient": "relu-gate"}, "choose abs or relu") for family in FAMILIES[5:]],
    ],
)
def test_bad_input_is_refused_in_one_line(family, instances, settings, said):
    with pytest.raises(BadInput, match=said) as refusal:
        measure(tiny(family), instances, **settings)
    assert "\n" not in str(refusal.value)


def test_include_without_a_pad_id_is_refused():
    model = tiny("olmo", pad_token_id=None)
    with pytest.raises(BadInput, match="needs pad_id"):
        measure(model, [[5]], padding="include")


def test_a_wrong_id_is_said_before_any_forward_pass():
    model = tiny("olmo")
    model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(BadInput, match="got 99"):
        measure(model, [[5]] * 50 + [[99]], batch_size=1)


def test_a_measurement_prints_in_one_line():
    shown = repr(measure(tiny("olmo"), texts()))
    assert "\n" not in shown and "2 x 20 memories" in shown and "71 tokens, 7 instances" in shown


def test_a_model_whose_weights_are_elsewhere_is_measured_alike():
    expected = measure(tiny("olmo"), texts(), attention=True)
    offloaded = cpu_offload(tiny("olmo"), execution_device=torch.device("cpu"))
    assert next(offloaded.parameters()).is_meta
    found = measure(offloaded, texts(), attention=True)
    assert torch.equal(found.usage, expected.usage) and torch.equal(found.attention, expected.attention)
    assert found.next_token_entropy == pytest.approx(expected.next_token_entropy, rel=1e-6)
