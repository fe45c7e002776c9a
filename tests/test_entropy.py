"""The arithmetic of knowledge entropy: bounds, symmetries, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kemem.entropy import deficit, effective_memories, effective_share, layer_entropy, prediction_entropy
from kemem.entropy.attention import attention_entropy
from kemem.errors import BadInput

usages = st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda values: max(values) > 1e-200)
fast = settings(max_examples=60, deadline=None)


def usage(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@fast
@given(usages)
def test_entropy_lies_between_its_bounds(values):
    entropy = float(layer_entropy(usage(values)))
    assert -1e-12 <= entropy <= math.log(len(values)) + 1e-12


@fast
@given(usages, st.floats(1e-80, 1e80))
def test_scale_does_not_matter(values, scale):
    values = [value if value > 1e-100 else 0.0 for value in values]
    if max(values) == 0:
        values[0] = 1.0
    torch.testing.assert_close(
        layer_entropy(usage(values) * scale), layer_entropy(usage(values)), rtol=0, atol=1e-12
    )


@fast
@given(usages, st.randoms(use_true_random=False))
def test_order_of_the_memories_does_not_matter(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    torch.testing.assert_close(
        layer_entropy(usage(shuffled)), layer_entropy(usage(values)), rtol=0, atol=1e-12
    )


@fast
@given(usages)
def test_it_is_the_definition(values):
    total = math.fsum(values)
    by_hand = -math.fsum(v / total * math.log(v / total) for v in values if v / total > 0)
    assert float(layer_entropy(usage(values))) == pytest.approx(by_hand, abs=1e-10)


@fast
@given(st.integers(1, 5000), st.floats(1e-30, 1e30))
def test_uniform_use_attains_the_upper_bound(memories, level):
    entropy = layer_entropy(torch.full((memories,), level, dtype=torch.float64))
    assert float(entropy) == pytest.approx(math.log(memories), abs=1e-9)
    assert float(effective_memories(entropy)) == pytest.approx(memories, rel=1e-9)


@fast
@given(st.integers(1, 500), st.integers(0, 499))
def test_one_memory_doing_everything_attains_zero(memories, which):
    one_hot = torch.zeros(memories, dtype=torch.float64)
    one_hot[which % memories] = 3.0
    assert float(layer_entropy(one_hot)) == 0.0
    assert float(effective_memories(layer_entropy(one_hot))) == 1.0


def test_layers_are_independent_and_float32_stays_float32():
    stack = torch.rand(3, 5, 70)
    entropies = layer_entropy(stack)
    assert entropies.shape == (3, 5) and entropies.dtype == torch.float32
    torch.testing.assert_close(entropies[1, 2], layer_entropy(stack[1, 2]))


def test_as_released_differs_by_its_epsilon_alone():
    values = torch.rand(8192, dtype=torch.float64)
    difference = layer_entropy(values) - layer_entropy(values, as_released=True)
    assert float(difference) == pytest.approx(8192e-9, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[0.5, -0.1]], "absolute"),
        ([[0.5, 0.1], [0.0, 0.0]], "zeros"),
        ([[0.5, float("nan")]], "finite"),
        ([[0.5, float("inf")]], "finite"),
    ],
)
def test_what_is_no_usage_is_refused_in_one_line(values, said):
    with pytest.raises(BadInput, match=said) as refusal:
        layer_entropy(usage(values))
    assert "\n" not in str(refusal.value)


def test_share_and_deficit_say_the_same_as_the_definitions():
    layers = usage([5.0, 6.0, 6.1])
    assert float(effective_share(layers, 512)) == pytest.approx(math.exp(17.1 / 3) / 512)
    assert float(deficit(layers, 512)) == pytest.approx(3 * math.log(512) - 17.1)
    full = torch.full((4, 3), math.log(512), dtype=torch.float64)
    assert effective_share(full, 512).tolist() == pytest.approx([1] * 4)
    assert deficit(full, 512).tolist() == pytest.approx([0] * 4)


@fast
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_attention_and_prediction_entropy_are_those_of_a_distribution(size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(3, size, generator=generator, dtype=torch.float64)
    p = logits.softmax(-1)
    expected = torch.distributions.Categorical(probs=p, validate_args=False).entropy()
    torch.testing.assert_close(prediction_entropy(logits), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(attention_entropy(p[:, None]), expected[:, None], rtol=0, atol=1e-10)


def test_a_hidden_key_or_a_forbidden_token_counts_for_nothing():
    row = torch.tensor([[0.25, 0.75, 0.0, 0.0]])
    by_hand = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(attention_entropy(row)) == pytest.approx(by_hand, abs=1e-6)
    logits = torch.tensor([[math.log(0.25), math.log(0.75), -math.inf]])
    assert float(prediction_entropy(logits)) == pytest.approx(by_hand, abs=1e-6)
    assert attention_entropy(row.bfloat16()).dtype == torch.float32
    assert prediction_entropy(logits.bfloat16()).dtype == torch.float32
