"""The same numbers on a CUDA device as on the CPU: `pytest -m gpu`, run first wherever there is one."""

import pytest
import torch
from conftest import tiny

from kemem.entropy import measure
from kemem.entropy.batches import Padder
from kemem.entropy.sums import Sums
from kemem.memory import Memories

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here"),
]
TEXTS = ((5, 1, 12, 3, 12, 26, 4), 61)


def texts() -> list[list[int]]:
    lengths, vocabulary = TEXTS
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def both(family, dtype, **settings):
    """The measurement on the CPU in float32, and on the device in dtype, on a model whose layers differ by size."""
    model = tiny(family, width=48, memories=80)
    expected = measure(model, texts(), batch_size=4, **settings)
    return expected, measure(model.to("cuda", dtype), texts(), batch_size=4, **settings)


@pytest.mark.parametrize("side", ["right", "left"])
def test_entropy_in_float32_is_that_of_the_cpu(family, side):
    expected, found = both(family, torch.float32, attention=True, side=side)
    assert found.usage.device.type == "cpu" and found.usage.dtype == torch.float64
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.attention, expected.attention, rtol=0, atol=1e-4)
    assert found.next_token_entropy == pytest.approx(expected.next_token_entropy, abs=1e-4)
    assert (found.tokens, found.instances) == (expected.tokens, expected.instances)


def test_entropy_in_float64_is_that_of_the_cpu(family):
    model = tiny(family, dtype=torch.float64)
    expected = measure(model, texts(), batch_size=4)
    found = measure(model.to("cuda"), texts(), batch_size=4)
    # rotary angles and eager softmax stay in float32
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=1e-7)


def test_entropy_in_bfloat16_is_near_that_in_float32(family):
    if not torch.cuda.is_bf16_supported():
        pytest.skip("this CUDA device has no bfloat16")
    expected, found = both(family, torch.bfloat16, attention=True)
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=0.01)
    torch.testing.assert_close(found.attention, expected.attention, rtol=0, atol=0.05)
    assert found.next_token_entropy == pytest.approx(expected.next_token_entropy, abs=0.03)


@pytest.mark.parametrize("coefficient", ["abs", "relu", "relu-gate"])
@pytest.mark.parametrize("padding", ["mask", "include"])
def test_every_coefficient_and_padding(coefficient, padding):
    expected, found = both("olmo", torch.float32, coefficient=coefficient, padding=padding, pad_id=1)
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=1e-4)


def test_a_batch_is_measured_without_waiting_for_the_device():
    model = tiny("olmo", width=48, memories=80).to("cuda")
    sums = Sums(Memories(model), "abs", attention=False, next_token=True)
    padder = Padder(model, causal=True, pad_id=None, padding="mask", side="right", length=None)
    rows = [torch.tensor(ids) for ids in texts()]
    with torch.no_grad():
        sums.add(padder(rows))  # the first pass may build what later ones reuse
        torch.cuda.set_sync_debug_mode("error")
        try:
            sums.add(padder(rows))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sums.usage(14).isfinite().all()
