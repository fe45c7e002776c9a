"""Products by the other library are the same products, forward and backward, and only inside the block."""

import pytest
import torch
from conftest import tiny, tokens
from torch.func import functional_call, grad, vmap

from kemem import arithmetic
from kemem.arithmetic import Products, products
from kemem.objective import causal

MATMUL = torch.backends.mkldnn.matmul


def gradients(model, batch) -> list[torch.Tensor]:
    model.zero_grad()
    causal(model, batch).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "gpt_neox"])
def test_loss_and_gradients_are_those_of_float64(family):
    model = tiny(family, width=48, memories=80)
    ids = tokens(3, 17)
    batch = {"input_ids": ids, "labels": ids}
    exact = gradients(tiny(family, width=48, memories=80, dtype=torch.float64), batch)
    usual = gradients(model, batch)
    with Products():
        found = gradients(model, batch)
    for ours, theirs, true in zip(found, usual, exact, strict=True):
        size = true.abs().max()
        assert ours.shape == theirs.shape and ours.stride() == theirs.stride()
        assert (ours - true).abs().max() < 2 * (theirs - true).abs().max() + 1e-6 * size


def test_every_kind_of_call_of_a_linear_layer():
    x, weight, bias = torch.randn(2, 3, 5, requires_grad=True), torch.randn(7, 5), torch.randn(7)
    layer = torch.nn.functional.linear
    cases = [(x, weight), (x, weight, bias), (x, weight, None), (x[0, 0], weight, bias), (x[:, :0], weight)]
    for case in cases:
        with Products():
            found = layer(*case)
        torch.testing.assert_close(found, layer(*case), rtol=1e-5, atol=1e-5)
    with Products():
        torch.testing.assert_close(layer(x, weight, bias=bias), layer(x, weight, bias))
        assert layer(x.double(), weight.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x, weight).dtype == torch.bfloat16


def test_the_permission_is_given_around_products_alone(monkeypatch):
    seen = []
    original = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args: seen.append(MATMUL.fp32_precision) or original(*args))
    before = MATMUL.fp32_precision
    x, weight = torch.randn(4, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    with Products():
        out = torch.nn.functional.linear(x, weight)
        assert MATMUL.fp32_precision == before
    out.sum().backward()
    assert seen == ["bf16"] * 3 and MATMUL.fp32_precision == before
    torch.nn.functional.linear(x, weight)
    assert len(seen) == 3


def test_the_permission_is_taken_back_after_an_error():
    before = MATMUL.fp32_precision
    with Products(), pytest.raises(RuntimeError):
        torch.nn.functional.linear(torch.randn(4, 5), torch.randn(7, 6))
    assert MATMUL.fp32_precision == before


def test_a_processor_that_would_round_is_not_asked(monkeypatch):
    """As on one with AMX: the permission is used, and products come back in bfloat16."""
    products.cache_clear()
    original = torch.Tensor.__matmul__

    def rounding(a, b):
        out = original(a, b)
        return (
            out.bfloat16().float() if MATMUL.fp32_precision == "bf16" and out.dtype == torch.float32 else out
        )

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    assert not products()
    assert not isinstance(arithmetic.fast(torch.device("cpu")), Products)
    products.cache_clear()


def test_gradients_an_example_by_vmap():
    model = tiny("olmo", attention="eager")
    ids = tokens(4, 6)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, row):
        logits = functional_call(model, weights, kwargs={"input_ids": row[None], "use_cache": False}).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1], row[1:])

    expected = [grad(loss)(parameters, row)["model.embed_tokens.weight"] for row in ids]
    with Products():
        found = vmap(grad(loss), in_dims=(None, 0))(parameters, ids)["model.embed_tokens.weight"]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_other_devices_are_left_alone():
    assert not isinstance(arithmetic.fast(torch.device("meta")), Products)
