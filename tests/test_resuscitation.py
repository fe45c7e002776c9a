"""Resuscitation, attention temperature and its gentler variants: each against what it promises, measured again."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FAMILIES, GATED, MASKED, randomised, tiny, tokens
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from kemem.cli import main
from kemem.corpora import train_tokenizer
from kemem.entropy import (
    Against,
    CoolAttention,
    WakeIdle,
    against,
    attention_temperature,
    idle,
    measure,
    multiplier,
    reparameterise_,
    resuscitate_,
    resuscitated,
)
from kemem.entropy.waking import update_scale
from kemem.errors import BadInput
from kemem.memory import LAYOUTS, Layout, Memories
from kemem.models import Shape, build
from kemem.training import Domain, Method, Recipe, train

TEXT = [*tokens(3, 14)]
UP = {"llama": ("up_proj.weight", "up_proj.bias")}  # its tiny model has biases


def usage(model) -> torch.Tensor:
    return measure(model, TEXT, batch_size=4, next_token=False).usage


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model, before) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def fused(monkeypatch):
    """A tiny Phi-3, whose gate and up are one tensor, the gate's rows first."""
    row = Layout(
        block="model.layers.{}", up="mlp.gate_up_proj", down="mlp.down_proj", fused="gate,up",
        activation="mlp.activation_fn", attention="self_attn", qkv="qkv_proj", fused_attention="blocks",
    )  # fmt: skip
    monkeypatch.setitem(LAYOUTS, "phi3", row)
    config = CONFIG_MAPPING["phi3"](
        vocab_size=61, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return randomised(AutoModelForCausalLM, config)


# ---------------------------------------------------------------------- multiplier
def algorithm_1(C: np.ndarray, p: float, q: float) -> np.ndarray:
    """The paper's listing, a layer at a time, p in percent."""
    u = np.ones_like(C)
    for layer, row in enumerate(C):
        t = np.percentile(row, p)
        for i, c in enumerate(row):
            if c <= t:
                u[layer, i] = row.mean() / c * q
    return u


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.9, 1.0])
def test_multiplier_is_algorithm_1(fraction, gain):
    C = torch.rand(3, 37, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.01
    expected = torch.from_numpy(algorithm_1(C.numpy(), 100 * fraction, gain))
    torch.testing.assert_close(multiplier(C, fraction, gain), expected, rtol=1e-14, atol=0)
    assert torch.equal(multiplier(C.float(), fraction, gain) != 1, expected != 1)


def test_multiplier_by_hand():
    C = torch.tensor([[1.0, 2.0, 3.0, 6.0], [8.0, 4.0, 4.0, 4.0]], dtype=torch.float64)
    # medians 2.5 and 4: of the second layer three memories tie at it; means 3 and 5, over all four
    assert multiplier(C, 0.5, 2.0).tolist() == [[6.0, 3.0, 1.0, 1.0], [1.0, 2.5, 2.5, 2.5]]
    assert multiplier(C, 1.0, 1.0).tolist() == [[3.0, 1.5, 1.0, 0.5], [0.625, 1.25, 1.25, 1.25]]
    assert idle(C, 1.0).all() and not idle(C, 0.0).any()
    assert idle(C, 1e-9).sum(-1).tolist() == [1, 3]  # the minimum, and what ties with it
    assert (multiplier(C, 0.0, 3.0) == 1).all()


def test_half_of_an_even_number_is_half():
    """As released: 4,096 of 8,192, since the median lies between two of them."""
    C = torch.rand(2, 8192, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert idle(C, 0.5).sum(-1).tolist() == [4096, 4096]


@pytest.mark.parametrize(
    ("fraction", "gain", "said"),
    [
        (1.1, 1.0, r"fraction must be a share .* got 1.1; for 50 percent give 0.5"),
        (-0.1, 1.0, r"fraction must be"),
        (math.nan, 1.0, r"fraction must be"),
        (0.5, 0.0, r"gain must be a number above 0; got 0.0"),
        (0.5, -1.0, r"gain must be"),
        (0.5, math.inf, r"gain must be"),
        (0.5, math.nan, r"gain must be"),
    ],
)
def test_fractions_and_gains_out_of_range_are_refused(fraction, gain, said):
    with pytest.raises(BadInput, match=said):
        multiplier(torch.rand(1, 4) + 1, fraction, gain)


def test_a_memory_without_usage_is_named_never_divided_by():
    C = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 2.0]])
    with pytest.raises(
        BadInput, match=r"a layer with an unused memory: layer 1, memory 1, usage 0; measure on"
    ):
        multiplier(C, 0.5, 1.0)
    with pytest.raises(BadInput, match="layer 0, memory 0"):
        multiplier(torch.zeros(1, 3), 0.5, 1.0)
    with pytest.raises(BadInput, match="layer 0, memory 2"):
        multiplier(torch.tensor([[1.0, 1.0, 5e-324]], dtype=torch.float64), 0.5, 1.0)  # 1 / it is infinite
    assert (multiplier(C, 0.0, 1.0) == 1).all()  # nothing is selected, so nothing is divided
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(BadInput, match="usage must be a mean of absolute coefficients"):
            multiplier(torch.tensor([[1.0, wrong]]), 0.5, 1.0)


# ---------------------------------------------------------------------- resuscitate_, gated
@pytest.mark.parametrize("square", [False, True], ids=["M", "M=D"])
@pytest.mark.parametrize("family", GATED)
def test_selected_memories_of_the_first_layer_land_on_gain_times_the_mean(family, square):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        model = tiny(family, square=square, dtype=dtype)
        first = usage(model)
        chosen = idle(first, 0.5)
        assert chosen.sum(-1).tolist() == [first.shape[1] // 2] * 2
        for gain in (0.5, 1.0, 2.0, 3.0):
            with resuscitated(model, multiplier(first, 0.5, gain)):
                again = usage(model)
            expected = torch.where(chosen[0], gain * first[0].mean(), first[0])
            torch.testing.assert_close(again[0], expected, rtol=tolerance, atol=0)
            assert not torch.allclose(
                again[1][~chosen[1]], first[1][~chosen[1]], rtol=1e-2
            )  # its input changed


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_coefficients_are_multiplied_with_their_sign(fraction):
    model = tiny("llama", dtype=torch.float64)
    factors = multiplier(usage(model), fraction, 2.0)
    seen: list[torch.Tensor] = []
    for _ in range(2):
        with Memories(model).coefficients(lambda layer, c: seen.append(c[0]) if layer == 0 else None):
            model(TEXT[0][None])
        resuscitate_(model, factors)
    assert (seen[0] < 0).any()
    torch.testing.assert_close(seen[1], seen[0] * factors[0], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("square", [False, True], ids=["M", "M=D"])
@pytest.mark.parametrize("family", GATED)
def test_nothing_but_the_idle_rows_of_up_changes(family, square):
    model = tiny(family, square=square)
    before, factors = weights(model), multiplier(usage(model), 0.5, 2.0)
    resuscitate_(model, factors)
    ends = UP.get(family, ("up_proj.weight",))
    assert changed(model, before) == {f"model.layers.{layer}.mlp.{end}" for layer in (0, 1) for end in ends}
    for layer in (0, 1):
        mlp, row = f"model.layers.{layer}.mlp.", factors[layer].float()
        now = dict(model.named_parameters())
        assert torch.equal(now[f"{mlp}up_proj.weight"], before[f"{mlp}up_proj.weight"] * row[:, None])
        if len(ends) == 2:
            assert torch.equal(now[f"{mlp}up_proj.bias"], before[f"{mlp}up_proj.bias"] * row)


def test_only_the_up_half_of_a_fused_projection_changes(monkeypatch):
    model = fused(monkeypatch)
    before, first = weights(model), usage(model)
    resuscitate_(model, multiplier(first, 0.5, 1.0))
    assert changed(model, before) == {f"model.layers.{layer}.mlp.gate_up_proj.weight" for layer in (0, 1)}
    name = "model.layers.0.mlp.gate_up_proj.weight"
    same = (dict(model.named_parameters())[name] == before[name]).all(-1)
    assert same[:20].all() and torch.equal(~same[20:], idle(first, 0.5)[0])
    expected = torch.where(idle(first, 0.5)[0], first[0].mean(), first[0])
    torch.testing.assert_close(usage(model)[0], expected, rtol=1e-4, atol=0)


def test_fraction_0_leaves_the_model_bit_for_bit(family):
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(family, dtype=dtype)
        before = weights(model)
        resuscitate_(model, multiplier(torch.rand(2, 20), 0.0, 3.0))
        assert not changed(model, before)


def test_all_at_the_mean_have_the_largest_entropy():
    """Fraction 1, gain 1: every memory of the first layer works equally, so its entropy is ln M."""
    model = tiny("olmo", dtype=torch.float64)
    first = usage(model)
    assert idle(first, 1.0).all()
    resuscitate_(model, multiplier(first, 1.0, 1.0))
    assert measure(model, TEXT).layers[0].item() == pytest.approx(math.log(20), abs=1e-9)


def test_weights_in_16_bits_are_rounded_once():
    model = tiny("olmo", dtype=torch.bfloat16)
    before = Memories(model).keys(0).clone()
    factors = torch.full((2, 20), 1.2345678, dtype=torch.float64)
    resuscitate_(model, factors)
    assert torch.equal(Memories(model).keys(0), (before.float() * 1.2345678).bfloat16())
    assert not torch.equal(Memories(model).keys(0), before * factors.bfloat16()[0, :, None])


# ---------------------------------------------------------------------- resuscitate_, ungated
@pytest.mark.parametrize("square", [False, True], ids=["M", "M=D"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in GATED])
def test_without_a_gate_what_a_memory_writes_is_multiplied(family, square):
    model = tiny(family, square=square, dtype=torch.float64)
    first, memories = measure(model, TEXT), Memories(model)
    before, values = weights(model), [memories.values(layer).clone() for layer in (0, 1)]
    factors = multiplier(first.usage, 0.5, 2.0)
    resuscitate_(model, factors)
    down = {f"{memories.down_path(layer)}.weight" for layer in (0, 1)}
    assert changed(model, before) == down
    for layer in (0, 1):
        assert torch.equal(memories.values(layer), values[layer] * factors[layer])
    again = measure(model, TEXT)
    torch.testing.assert_close(again.usage[0], first.usage[0], rtol=1e-12, atol=0)  # not its own coefficients
    assert again.layers[0].item() == pytest.approx(first.layers[0].item(), abs=1e-12)
    assert not torch.allclose(again.usage[1], first.usage[1], rtol=1e-3)


# ---------------------------------------------------------------------- reparameterise_
def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(3, 14, seed=5)).logits


@pytest.mark.parametrize("square", [False, True], ids=["M", "M=D"])
@pytest.mark.parametrize("family", GATED)
def test_another_scale_of_memories_is_the_same_function_with_another_usage(family, square):
    model = tiny(family, square=square, dtype=torch.float64)
    plain, first = logits(model), usage(model)
    factors = (
        torch.rand(first.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3 + 0.1
    )
    reparameterise_(model, factors)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(usage(model), first * factors, rtol=1e-10, atol=0)  # in all layers
    reparameterise_(model, 1 / factors)
    reparameterise_(model, multiplier(first, 1.0, 1.0))
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-10)
    M = first.shape[1]
    assert measure(model, TEXT).layers.tolist() == pytest.approx([math.log(M)] * 2, abs=1e-12)


def test_the_halves_of_a_fused_projection_keep_the_function(monkeypatch):
    model = fused(monkeypatch).double()
    plain, first, gates = logits(model), usage(model), Memories(model).gates(1).clone()
    reparameterise_(model, multiplier(first, 1.0, 1.0))
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(usage(model), first.mean(-1, keepdim=True).expand(2, 20), rtol=1e-10, atol=0)
    assert torch.equal(Memories(model).gates(1), gates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_powers_of_two_leave_the_function_bit_for_bit(dtype):
    for family in GATED:
        model = tiny(family, dtype=dtype)
        plain, before = logits(model), weights(model)
        factors = 2.0 ** torch.randint(-2, 3, (2, 20), generator=torch.Generator().manual_seed(4))
        reparameterise_(model, factors)
        assert torch.equal(logits(model), plain)
        mlp = "model.layers.{}.mlp."
        ends = (*UP.get(family, ("up_proj.weight",)), "down_proj.weight")
        assert changed(model, before) == {mlp.format(layer) + end for layer in (0, 1) for end in ends}
        down = mlp.format(1) + "down_proj.weight"
        assert torch.equal(dict(model.named_parameters())[down], before[down] / factors[1].to(dtype))


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_factors_no_value_can_be_divided_by_are_refused(wrong):
    model = tiny("olmo")
    before, factors = weights(model), torch.ones(2, 20)
    factors[1, 7] = wrong
    said = "must be above 0; got" if math.isfinite(wrong) else "got NaN or infinity"
    with pytest.raises(BadInput, match=said) as caught:
        reparameterise_(model, factors)
    assert "\n" not in str(caught.value) and not changed(model, before)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in GATED])
def test_without_a_gate_there_is_no_such_scale(family):
    model = tiny(family)
    before = weights(model)
    with pytest.raises(BadInput, match=f"needs a gated family, .* got '{family}'") as caught:
        reparameterise_(model, torch.full((2, 20), 2.0))
    assert "\n" not in str(caught.value) and not changed(model, before)


# ---------------------------------------------------------------------- for a while, and refusals
def test_leaving_the_block_restores_every_weight_bit_for_bit(family):
    model = tiny(family)
    before, factors = weights(model), multiplier(usage(model), 0.5, 3.0)
    with resuscitated(model, factors):
        during = weights(model)
        assert changed(model, before)
    assert not changed(model, before)
    with pytest.raises(KeyError), resuscitated(model, factors):
        assert not changed(model, during)
        raise KeyError
    assert not changed(model, before)


def test_a_fused_projection_is_restored_and_so_is_what_was_trained_meanwhile(monkeypatch):
    model = fused(monkeypatch)
    before = weights(model)
    with resuscitated(model, torch.full((2, 20), 1.7)):
        Memories(model).keys(1).add_(1.0)
    assert not changed(model, before)


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        (torch.ones(2, 19), r"\[2 20\], one a memory of this model; got a tensor \[2, 19\]"),
        (torch.ones(3, 20), r"got a tensor \[3, 20\]"),
        (torch.full((2, 20), math.nan), "got NaN or infinity"),
    ],
)
def test_factors_that_do_not_fit_are_refused_and_nothing_is_changed(factors, said):
    model = tiny("olmo")
    before = weights(model)
    with pytest.raises(BadInput, match=said):
        resuscitate_(model, factors)
    with pytest.raises(BadInput, match=said), resuscitated(model, factors):
        pass
    assert not changed(model, before)
    with pytest.raises(BadInput, match="must be in memory; got offloaded ones"):
        resuscitate_(tiny("olmo").to("meta"), torch.ones(2, 20))


# ---------------------------------------------------------------------- attention temperature
def attention_of(model, ids) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    with torch.no_grad(), Memories(model).attention(lambda layer, A: seen.append(A)):
        model(ids)
    return seen


def scores(model, ids, monkeypatch) -> torch.Tensor:
    """q . k / sqrt(d) of the first layer, hidden keys at -inf, from what torch's own attention is given."""
    given = []
    true = functional.scaled_dot_product_attention

    def spy(query, key, value, *args, **kwargs):
        given.append((query, key))
        return true(query, key, value, *args, **kwargs)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(functional, "scaled_dot_product_attention", spy)
        model(ids)
    query, key = given[0]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    s = query @ key.mT / math.sqrt(query.shape[-1])
    if model.config.model_type in MASKED:
        return s
    hidden = torch.ones(s.shape[-2:], dtype=torch.bool).triu(1)
    return s.masked_fill(hidden, -math.inf)


@pytest.mark.parametrize("T", [0.5, 3.0])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gptj"])
def test_attention_is_the_softmax_of_scores_over_T(family, T, monkeypatch):
    ids = tokens(2, 11)
    eager, sdpa = tiny(family, attention="eager"), tiny(family, attention="sdpa")
    by_hand = torch.softmax(scores(sdpa, ids, monkeypatch) / T, -1)
    with attention_temperature(eager, T), attention_temperature(sdpa, T), torch.no_grad():
        torch.testing.assert_close(attention_of(eager, ids)[0], by_hand, rtol=1e-5, atol=1e-6)
        hot = eager(ids).logits
        torch.testing.assert_close(sdpa(ids).logits, hot, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert (sdpa(ids).logits - hot).abs().max() > 1e-2


@pytest.mark.parametrize("T", [0.5, 3.0])
def test_every_layer_of_every_family_has_its_temperature(family, T):
    """softmax(s / T) from softmax(s) alone; layers beyond the first get another input, so one at a time."""
    model, ids = tiny(family, attention="eager", layers=1), tokens(2, 11)
    plain = attention_of(model, ids)[0]
    with attention_temperature(model, T):
        hot = attention_of(model, ids)[0]
    torch.testing.assert_close(hot, torch.softmax(plain.log() / T, -1), rtol=1e-4, atol=1e-6)
    deep, held = tiny(family), set()
    with attention_temperature(deep, T):
        for module in deep.modules():
            held |= {getattr(module, name) for name in ("scaling", "scale_attn") if hasattr(module, name)}
    assert len(held) == 1  # all layers have the same number


def test_entropy_of_attention_rises_with_T(family):
    model = tiny(family)
    found = []
    for T in (0.5, 3.0, 1e6):
        with attention_temperature(model, T):
            found.append(measure(model, TEXT, attention=True, next_token=False).attention.mean(-1))
    first = [float(layers[0]) for layers in found]
    assert first == sorted(first) and first[-1] - first[0] > 0.1
    sight = [torch.full((len(ids),), len(ids)) for ids in TEXT]
    if family not in MASKED:
        sight = [keys.cumsum(0) // len(keys) for keys in sight]  # 1, 2, ... T
    flat = sum(float(keys.log().mean()) for keys in sight) / len(TEXT)
    assert found[-1].tolist() == pytest.approx([flat, flat], abs=1e-4)  # T to infinity: all keys alike


def test_T_of_1_and_leaving_the_block_change_nothing_bit_for_bit(family):
    model, ids = tiny(family), tokens(2, 11)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits

    plain = run()
    with attention_temperature(model, 1.0):
        assert torch.equal(run(), plain)
    with pytest.raises(KeyError), attention_temperature(model, 3.0):
        assert not torch.equal(run(), plain)
        with attention_temperature(model, 1 / 3):  # inside another one they multiply
            torch.testing.assert_close(run(), plain, rtol=1e-4, atol=1e-4)
        raise KeyError
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("T", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_that_are_none_are_refused(T):
    model = tiny("olmo")
    with (
        pytest.raises(BadInput, match="temperature must be a number above 0"),
        attention_temperature(model, T),
    ):
        pass


def test_a_family_without_a_scale_is_refused_with_the_reason():
    model = tiny("olmo")
    for block in model.model.layers:
        del block.self_attn.scaling
    with (
        pytest.raises(
            BadInput, match=r"needs one number .* got 0 of them in 'model.layers.0.self_attn' of 'olmo'"
        ),
        attention_temperature(model, 2.0),
    ):
        pass


# ---------------------------------------------------------------------- waking while learning
class Rows:
    def __init__(self) -> None:
        self.ids = tokens(24, 10)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.ids[indices]}


DOMAIN = Domain("data", Rows())
RECIPE = Recipe(steps=4, batch_size=8, learning_rate=1e-2, warmup_steps=1)
BUSY = torch.rand(2, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.05


def net(family: str = "olmo"):
    return build(Shape(family, layers=2, width=12, memories=20, heads=3, vocab=61), seed=1).double()


def trained(
    method: Method | None = None, recipe: Recipe = RECIPE, *, model=None, **options
) -> dict[str, torch.Tensor]:
    model = net() if model is None else model
    train(model, Rows(), recipe, method, **options)
    return weights(model)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_scales_by_hand():
    C = torch.tensor([[1.0, 4.0, 7.0, 4.0], [2.0, 2.0, 2.0, 2.0]])  # means 4 and 2
    raw = torch.tensor([4.0, 1.0, 4 / 7, 1.0], dtype=torch.float64)
    expected = torch.stack([raw / raw.mean(), torch.ones(4, dtype=torch.float64)])
    torch.testing.assert_close(update_scale(C, 1.0, 10.0), expected, rtol=1e-7, atol=0)
    root = raw.sqrt()
    torch.testing.assert_close(update_scale(C, 0.5, 10.0)[0], root / root.mean(), rtol=1e-7, atol=0)
    clipped = torch.tensor([1.5, 1.0, 1 / 1.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(update_scale(C, 1.0, 1.5)[0], clipped / clipped.mean(), rtol=1e-7, atol=0)
    unused = update_scale(torch.tensor([[0.0, 2.0, 2.0, 4.0]]), 1.0, 10.0)[0]  # of a mean of 2
    torch.testing.assert_close(unused, torch.tensor([10, 1, 1, 0.5]).double() / 3.125, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        update_scale(BUSY, 1.3, 3.0).mean(-1), torch.ones(2).double(), rtol=1e-14, atol=0
    )
    assert (update_scale(BUSY, 0.0, 10.0) == 1).all()


@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "gpt_neox"])
def test_one_step_is_the_update_of_plain_training_times_the_scale(family):
    one = replace(RECIPE, steps=1)
    start, plain = weights(net(family)), trained(recipe=one, model=net(family))
    model = net(family)
    found = trained(WakeIdle(BUSY, 0.7), one, model=model)
    scales, memories = update_scale(BUSY, 0.7, 10.0), Memories(model)
    moved = set()
    for layer in (0, 1):
        s = scales[layer]
        for path in {memories.up_path(layer), memories.gate_path(layer) or memories.up_path(layer)}:
            for name in (f"{path}.weight", f"{path}.bias"):
                if name in start:
                    moved.add(name)
                    row = (
                        s[:, None] if name.endswith("weight") and family != "gpt2" else s
                    )  # Conv1D: a column
                    expected = start[name] + row * (plain[name] - start[name])
                    torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-15)
        name = f"{memories.down_path(layer)}.weight"
        moved.add(name)
        row = s[:, None] if family == "gpt2" else s
        torch.testing.assert_close(
            found[name], start[name] + row * (plain[name] - start[name]), rtol=0, atol=1e-15
        )
    assert {name for name in start if not torch.equal(found[name], plain[name])} == moved


def test_the_halves_of_a_fused_projection_get_the_same_scales(monkeypatch):
    model = fused(monkeypatch)
    before = weights(model)
    method = WakeIdle(BUSY, 1.0)
    method.before(model, DOMAIN)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
        method.updated(model, before)
    name = "model.layers.1.mlp.gate_up_proj.weight"
    moved = dict(model.named_parameters())[name] - before[name]
    expected = update_scale(BUSY, 1.0, 10.0)[1].float().repeat(2)[:, None].expand_as(moved)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)


def test_strength_0_is_plain_training_bit_for_bit():
    recipe = replace(RECIPE, accumulation=4)
    plain = trained(recipe=recipe)
    assert same(trained(WakeIdle(BUSY, 0.0), recipe), plain)
    assert same(trained(WakeIdle(torch.ones(2, 20), 2.0), recipe), plain)  # all equally used
    assert not same(trained(WakeIdle(BUSY, 0.1), recipe), plain)


def test_accumulation_and_seed_leave_the_steps_as_they_are():
    whole, cut = (trained(WakeIdle(BUSY, 1.0), replace(RECIPE, accumulation=n)) for n in (1, 4))
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-12
    assert same(trained(WakeIdle(BUSY, 1.0)), whole)


def test_frozen_parameters_stay_and_the_others_are_scaled():
    model = net()
    for name, p in model.named_parameters():
        p.requires_grad_("down_proj" in name or "gate_proj" in name)
    before = weights(model)
    after = trained(WakeIdle(BUSY, 1.0), model=model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("gate", "down")
    }


def test_a_resumed_run_with_another_usage_is_refused(tmp_path):
    once = trained(WakeIdle(BUSY, 1.0), out=tmp_path / "run")
    assert same(trained(WakeIdle(BUSY, 1.0), out=tmp_path / "run"), once)
    with pytest.raises(BadInput, match="the usage that this run began with; got another"):
        trained(WakeIdle(BUSY.flip(-1), 1.0), out=tmp_path / "run")
    with pytest.raises(BadInput, match=r"method.strength \(1.0 there, 2.0 now\)"):
        trained(WakeIdle(BUSY, 2.0), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((BUSY, -1.0), "strength must be 0 or more; got -1.0"),
        ((BUSY, math.nan), "strength must be 0 or more"),
        ((BUSY, 1.0, 0.5), "limit must be 1 or more; got 0.5"),
        ((-BUSY, 1.0), "usage must be finite, at least 0, and above 0 somewhere"),
        ((BUSY * math.nan, 1.0), "usage must be finite"),
        ((BUSY * torch.tensor([[0.0], [1.0]]), 1.0), "usage must be finite"),
        ((BUSY[:, :19], 1.0), r"usage must be \[2 20\], one number a memory of this model; got \[2, 19\]"),
    ],
)
def test_wrong_settings_of_waking_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        WakeIdle(*settings).before(net(), DOMAIN)


# ---------------------------------------------------------------------- attention that cools while learning
class Watched(CoolAttention):
    """Keeps what scores were multiplied by in each step, and stops a run in the middle."""

    def __init__(self, *settings, stop: int = 99) -> None:
        super().__init__(*settings)
        self.seen, self.stop = [], stop

    def loss(self, model, batch, loss):
        self.seen.append([block.self_attn.scaling for block in model.model.layers])
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        return loss


def test_attention_cools_linearly_to_1(tmp_path):
    model, method = net(), Watched(3.0, 4)
    scale = 4**-0.5
    hot = trained(method, model=model)
    temperatures = [scale / left for both in method.seen for left in both]
    assert temperatures == pytest.approx([3.0, 3.0, 2.5, 2.5, 2.0, 2.0, 1.5, 1.5])
    assert model.model.layers[1].self_attn.scaling == scale
    plain = trained()
    assert not same(hot, plain)
    assert same(trained(CoolAttention(1.0, 4)), plain)
    saved = replace(RECIPE, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        trained(Watched(3.0, 4, stop=3), saved, out=tmp_path / "run")
    again = Watched(3.0, 4)
    assert same(trained(again, saved, out=tmp_path / "run"), hot)  # goes on at 2.0, where it was
    assert again.seen == method.seen[2:]
    model = net()
    with pytest.raises(KeyboardInterrupt), attention_temperature(model, 1.0):
        trained(Watched(3.0, 4, stop=2), model=model)
    assert model.model.layers[0].self_attn.scaling == scale
    for wrong, said in (
        ((0.0, 4), "temperature must be a number above 0"),
        ((2.0, 0), "steps must be at least 1"),
    ):
        with pytest.raises(BadInput, match=said):
            CoolAttention(*wrong)


# ---------------------------------------------------------------------- the three baselines
def test_a_run_is_held_against_both_starts():
    """The paper's final 1B model with a damaged start: P from 37 looks like retention, from 57 it is a loss."""
    found = against((-0.8, 37.0), (-0.4, 57.0), (-0.3, 52.0))
    assert isinstance(found, Against)
    assert vars(found) == {
        "knowledge": -0.3,
        "performance": 52.0,
        "acquisition": pytest.approx(0.625),
        "forgetting": pytest.approx(-15 / 37),
        "true_acquisition": pytest.approx(0.25),
        "true_forgetting": pytest.approx(5 / 57),
    }
    with pytest.raises(BadInput, match="got 0"):
        against((-0.4, 50.0), (0.0, 57.0), (-0.3, 52.0))


# ---------------------------------------------------------------------- kemem resuscitate
TEXTS = ("The capital of a country is a city.", "A short one.", "Keys decide how much, values what.", "x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(family) -> a tiny model with its tokenizer; a corpus stands beside it."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(TEXTS, 280)
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    def save(family: str):
        place = root / family
        if not place.exists():
            tiny(family, vocab=len(tokenizer)).save_pretrained(place)
            tokenizer.save_pretrained(place)
        return place

    return save


def command(model, out, *more: object, fraction: float = 0.5, gain: float = 2.0) -> list[str]:
    corpus = f"files:{model.parent / 'texts.jsonl'}"
    fixed = ["resuscitate", model, "--fraction", fraction, "--gain", gain, "--out", out, "--corpus", corpus]
    return [str(each) for each in (*fixed, "--device", "cpu", *more)]


def entropy_of(model, place, *more: str) -> dict:
    """What `kemem entropy` says of a folder on the same texts."""
    corpus = f"files:{place / 'texts.jsonl'}"
    asked = [
        "entropy",
        str(model),
        "--corpus",
        corpus,
        "--device",
        "cpu",
        "--json",
        str(place / "e.json"),
        *more,
    ]
    assert main(asked) == 0
    return json.loads((place / "e.json").read_text())[0]


@pytest.mark.parametrize("family", ["olmo", "gpt2"])
def test_the_command_writes_a_model_that_opens_and_says_what_it_measured(family, folder, tmp_path, capsys):
    model, out = folder(family), tmp_path / "new" / "model"
    bytes_before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert main(command(model, out, "--json", tmp_path / "found.json", "--dtype", "float64")) == 0
    shown = capsys.readouterr()
    assert not shown.out
    assert ("gpt2 has no gate: values are scaled" in shown.err) == (family == "gpt2")
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == [
        "model", "revision", "family", "fraction", "gain", "scaled", "selected", "bound", "corpus", "tokens",
        "before", "after", "out",
    ]  # fmt: skip
    assert found["selected"] == [10, 10] and found["scaled"] == ("up" if family == "olmo" else "values")
    assert (found["model"], found["revision"], found["family"]) == (str(model), None, family)
    assert (found["fraction"], found["gain"], found["out"]) == (0.5, 2.0, str(out))
    for when, place in (("before", model), ("after", out)):
        row = entropy_of(place, model.parent, "--dtype", "float64")
        assert {**row, **found[when]} == row | {
            key: pytest.approx(value, abs=1e-9) for key, value in found[when].items()
        }
        assert (row["bound"], row["tokens"], row["corpus"]) == (
            found["bound"],
            found["tokens"],
            found["corpus"],
        )
    assert found["before"]["entropy"] != found["after"]["entropy"]
    # the same by calls of the package, from the same folders
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    ours = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    written = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64)
    resuscitate_(ours, multiplier(measure(ours, ids).usage, 0.5, 2.0))
    for name, p in ours.named_parameters():
        torch.testing.assert_close(dict(written.named_parameters())[name], p, rtol=1e-12, atol=0)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == bytes_before | {}
    assert sorted(path.name for path in out.parent.iterdir()) == ["model"]  # nothing left beside it


def test_fraction_0_writes_the_same_weights_and_a_table(folder, tmp_path, capsys):
    model, out = folder("olmo"), tmp_path / "same"
    out.mkdir()  # an empty folder is as good as none
    assert main(command(model, out, fraction=0.0)) == 0
    shown = capsys.readouterr().out
    assert "fraction 0, gain 2, up scaled" in shown and "memories selected 0 0" in shown
    rows = [line.split()[1:] for line in shown.splitlines() if line.strip().startswith(("before", "after"))]
    assert len(rows) == 2 and rows[0] == rows[1]
    a, b = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (model, out))
    assert same(a, b)


def test_an_unused_memory_or_a_full_folder_is_one_line_and_nothing_is_written(folder, tmp_path, capsys):
    model = tmp_path / "dead"
    source = folder("olmo")
    (tmp_path / "texts.jsonl").write_text((source.parent / "texts.jsonl").read_text())
    dead = AutoModelForCausalLM.from_pretrained(source)
    Memories(dead).keys(1)[7] = 0
    dead.save_pretrained(model)
    AutoTokenizer.from_pretrained(source).save_pretrained(model)
    capsys.readouterr()
    assert main(command(model, tmp_path / "new")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a layer with an unused memory: layer 1, memory 7" in line
    assert not (tmp_path / "new").exists()
