"""Products by the other library are the same products, forward and backward, and only inside the block."""

from pathlib import Path

import pytest
import torch
from conftest import tiny, tokens
from torch.func import functional_call, grad, vmap
from torch.overrides import TorchFunctionMode

from kemem import arithmetic, evaluation
from kemem.arithmetic import Products, products
from kemem.corpora.packing import Blocks
from kemem.entropy import measure
from kemem.objective import causal
from kemem.runs import Store
from kemem.studies import checkpoints, pretraining
from kemem.studies.lab import Lab
from kemem.studies.setup import blocks
from kemem.training import Recipe, train

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


@pytest.fixture
def allowed():
    arithmetic.allow_tf32()
    yield
    arithmetic.allow_tf32(False)


CUDA = torch.backends.cuda.matmul


def test_a_card_rounds_where_that_was_allowed_and_asked_for_alone(allowed):
    card, before = torch.device("cuda"), CUDA.fp32_precision
    with arithmetic.fast(card):
        assert CUDA.fp32_precision == before
    with pytest.raises(ZeroDivisionError), arithmetic.fast(card, tf32=True):
        assert CUDA.fp32_precision == "tf32"
        raise ZeroDivisionError
    assert CUDA.fp32_precision == before
    arithmetic.allow_tf32(False)
    with arithmetic.fast(card, tf32=True):
        assert CUDA.fp32_precision == before
    assert torch.get_float32_matmul_precision() != "high"


def test_a_processor_has_no_tf32(allowed):
    with arithmetic.fast(torch.device("cpu"), tf32=True):
        assert CUDA.fp32_precision != "tf32"
    assert arithmetic.precision(torch.device("cpu")) == "float32"


@pytest.mark.parametrize(
    ("generation", "expected"), [((7, 0), "float32"), ((8, 9), "tf32"), ((9, 0), "tf32")]
)
def test_what_a_row_says_of_its_products(allowed, monkeypatch, generation, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: generation)
    assert arithmetic.precision(torch.device("cuda")) == expected
    arithmetic.allow_tf32(False)
    assert arithmetic.precision(torch.device("cuda")) == "float32"


def test_scores_and_searches_may_round_and_training_may_not(allowed, monkeypatch):
    asked = []
    original = arithmetic.fast
    monkeypatch.setattr(
        arithmetic, "fast", lambda device, tf32=False: asked.append(tf32) or original(device, tf32=tf32)
    )
    model = tiny("olmo")
    rows = [tokens(1, 12)[0].tolist() for _ in range(4)]
    measure(model, rows)
    assert asked and all(asked)
    asked.clear()
    ids = torch.tensor(rows, dtype=torch.int32)
    train(model, Blocks(ids, torch.zeros_like(ids)), Recipe(steps=1, batch_size=2, learning_rate=1e-3))
    assert asked == [False]


def test_rounding_to_tf32_moves_no_entropy_and_no_loss_of_a_trained_model(tmp_path):
    """On the book's own model, whose factors are rounded here as a card does: first ten bits of 23."""
    root = Path(__file__).resolve().parents[1]
    lab = Lab("laptop", Store(tmp_path, root / "records" / "laptop", mode="run"), root)
    settings = pretraining.settings("laptop")
    model, _, _ = checkpoints.load(lab, settings, settings.steps[-1])
    held_out = blocks(lab, settings.setup, settings.setup.corpus, "test", limit=6000)
    rows = [row.tolist() for row in held_out.ids]
    exact, loss = measure(model, rows), evaluation.loss(model, held_out)
    with RoundedFactors():
        found, rounded = measure(model, rows), evaluation.loss(model, held_out)
    moved = ((found.layers - exact.layers) / exact.layers).abs().max()
    assert 0 < moved < 1e-5
    assert found.next_token_entropy == pytest.approx(exact.next_token_entropy, rel=1e-4)
    assert rounded == pytest.approx(loss, rel=1e-4) and rounded != loss


def test_factors_are_rounded_to_the_nearest_of_ten_bits():
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-12, -(1 + 3 * 2**-12)])
    rounded = torch.tensor([1.0, 1 + 2**-10, 1.0, 1 + 2**-9, 1.0, -(1 + 2**-10)])
    assert torch.equal(tf32(x), rounded)


def tf32(x: torch.Tensor) -> torch.Tensor:
    """The nearest number of ten bits after the first, to even where two are as near."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << 12) - 1 + ((bits >> 13) & 1)) & ~((1 << 13) - 1)).view(torch.float32)


class RoundedFactors(TorchFunctionMode):
    """Products of linear layers and of attention, of factors rounded to TF32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.linear:
            args = (tf32(args[0]), tf32(args[1]), *args[2:])
        elif function is torch.nn.functional.scaled_dot_product_attention:
            args = (*map(tf32, args[:3]), *args[3:])
        return function(*args, **(kwargs or {}))
