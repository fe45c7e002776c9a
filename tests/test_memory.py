"""memory: the identities that the three papers rest on, for every family, against captures without a Layout.

Independent of the package here: modules are found by their class, heads are masked or recorded inside the
model's own attention function, and what a projection got or gave is seen through a plain torch hook.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import FAMILIES, GATED, GROUPED, MASKED, randomised, tiny, tokens
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.pytorch_utils import Conv1D

from kemem.errors import BadInput
from kemem.memory import LAYOUTS, Layout, Memories

IDS = tokens(2, 7)


# ---------------------------------------------------------------------- independent captures
def feed_forward(model: nn.Module) -> list[nn.Module]:
    """In order, the modules whose output is the FFN's, before any norm of it: by class, not by path."""
    found = []
    for part in model.modules():
        name = type(part).__name__
        if name.endswith("MLP"):
            found.append(part)
        elif name.endswith("Output") and not name.endswith("SelfOutput") and hasattr(part, "LayerNorm"):
            found.append(part.dense)  # BERT and RoBERTa
    return found


@contextmanager
def captured(modules: list[nn.Module], *, side: str = "output") -> Iterator[list[Tensor]]:
    """What each module gave or got in the last pass, through torch's own hooks."""
    seen: list[Tensor] = [torch.empty(0)] * len(modules)

    def hook(i: int) -> Callable:
        def keep(_, args, *output):
            tensor = output[0] if side == "output" else args[0]
            seen[i] = (tensor[0] if isinstance(tensor, tuple) else tensor).detach().clone()

        return keep

    handles = [
        part.register_forward_hook(hook(i)) if side == "output" else part.register_forward_pre_hook(hook(i))
        for i, part in enumerate(modules)
    ]
    yield seen
    for handle in handles:
        handle.remove()


@contextmanager
def inside_attention(
    model: nn.Module, layer: int, act: Callable[[dict[str, Tensor]], Tensor]
) -> Iterator[None]:
    """Within the block, `act` gets the query, key and value that the heads of a layer work on and the output
    that they give, all [B H T d], and returns the output that the pass goes on with.

    Done in the attention function of the model's own source file, where heads are an axis of their own.
    """
    source = sys.modules[type(model).__module__]
    by_method = hasattr(source, "GPTJAttention")
    owner, name = (source.GPTJAttention, "_attn") if by_method else (source, "eager_attention_forward")
    original = getattr(owner, name)

    def through(module, query, key, value, *args, **kwargs):
        output, weights = original(module, query, key, value, *args, **kwargs)
        if module.layer_idx == layer:
            given = output if by_method else output.transpose(1, 2)
            given = act({"query": query, "key": key, "value": value, "output": given})
            output = given if by_method else given.transpose(1, 2)
        return output, weights

    setattr(owner, name, through)
    try:
        yield
    finally:
        setattr(owner, name, original)


def heads_seen(model: nn.Module, layer: int) -> dict[str, Tensor]:
    """Query, key, value and output [H B T d] of a layer's heads over IDS; fewer heads of key and value."""
    seen: dict[str, Tensor] = {}

    def keep(parts: dict[str, Tensor]) -> Tensor:
        seen.update({name: part.movedim(1, 0).clone() for name, part in parts.items()})
        return parts["output"]

    with inside_attention(model, layer, keep):
        run(model)
    return seen


def run(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    """Logits, or the last state of a model without a head."""
    with torch.no_grad():
        return model(ids)[0]


def passed(model: nn.Module) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Coefficients by the package, FFN outputs by plain hooks, and logits, of one pass over IDS."""
    memories = Memories(model)
    c: dict[int, Tensor] = {}
    with (
        captured(feed_forward(model)) as outputs,
        memories.coefficients(lambda layer, t: c.update({layer: t.clone()})),
    ):
        logits = run(model)
    assert list(c) == list(range(memories.layers)) and len(outputs) == memories.layers
    return list(c.values()), outputs, logits


@contextmanager
def kept(*views: Tensor) -> Iterator[None]:
    """Restores the views on the way out."""
    before = [view.clone() for view in views]
    yield
    for view, old in zip(views, before, strict=True):
        view.copy_(old)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else x @ weight.T + bias


# ---------------------------------------------------------------------- checks shared by known and added rows
def check_feed_forward(model: nn.Module, *, tolerance: float) -> None:
    """values @ c + bias is the FFN's output, c is f(keys @ x) or f(gates @ x) * (keys @ x), in all layers."""
    memories = Memories(model)
    coefficients, outputs, _ = passed(model)
    first = [model.get_submodule(memories.up_path(layer)) for layer in range(memories.layers)]
    with captured(first, side="input") as inputs:
        run(model)
    for layer, (c, output, x) in enumerate(zip(coefficients, outputs, inputs, strict=True)):
        values, keys = memories.values(layer), memories.keys(layer)
        assert values.shape == (memories.width, memories.count) and keys.shape == (
            memories.count,
            memories.width,
        )
        assert c.shape == (*IDS.shape, memories.count)
        assert output.abs().max() > 0.1
        torch.testing.assert_close(
            linear(c, values, memories.bias(layer)), output, atol=tolerance, rtol=tolerance
        )
        up = linear(x, keys, memories.key_bias(layer))
        if memories.gated:
            gate = linear(x, memories.gates(layer), memories.gate_bias(layer))
            expected = memories.activation(gate) * up
        else:
            expected = memories.activation(up)
        torch.testing.assert_close(expected, c, atol=tolerance, rtol=tolerance)


def check_output_slices(model: nn.Module) -> None:
    """Zeroing the output slice of head j is zeroing what head j gives; all slices together are all of it."""
    memories = Memories(model)
    plain = run(model)
    for layer in range(memories.layers):
        for j in range(memories.heads):

            def without(parts: dict[str, Tensor], j: int = j) -> Tensor:
                output = parts["output"].clone()
                output[:, j] = 0
                return output

            with inside_attention(model, layer, without):
                masked = run(model)
            view = memories.head(layer, j)["output"]
            with kept(view):
                view.zero_()
                torch.testing.assert_close(run(model), masked, atol=1e-5, rtol=1e-5)
            assert (masked - plain).abs().max() > 1e-3
        views = [memories.head(layer, j)["output"] for j in range(memories.heads)]
        with inside_attention(model, layer, lambda parts: torch.zeros_like(parts["output"])):
            silent = run(model)
        with kept(*views):
            for view in views:
                view.zero_()
            torch.testing.assert_close(run(model), silent, atol=1e-5, rtol=1e-5)
    assert torch.equal(run(model), plain)


def check_input_slices(model: nn.Module) -> None:
    """Changing a head's rows changes its query (key, value) alone, and what it gives (and those sharing it).

    Rows are negated: a norm over all heads (OLMo2) keeps its length. A negated value negates what is given.
    """
    memories = Memories(model)
    layer, group = memories.layers - 1, memories.heads // memories.kv_heads
    plain = heads_seen(model, layer)
    assert [len(plain[name]) for name in plain] == [
        memories.heads,
        memories.kv_heads,
        memories.kv_heads,
        memories.heads,
    ]
    for j in range(memories.heads):
        views = memories.head(layer, j)
        sharing = {h for h in range(memories.heads) if h // group == j // group}
        for name, row, affected in (
            ("query", j, {j}),
            ("key", j // group, sharing),
            ("value", j // group, sharing),
        ):
            assert views[name].shape == (plain["output"].shape[-1], memories.width)
            parts = [view for key, view in views.items() if key.startswith(name)]  # with its bias
            with kept(*parts):
                for view in parts:
                    view.neg_()
                now = heads_seen(model, layer)
            expected = {**plain, name: plain[name].clone()}
            expected[name][row] *= -1
            for part in ("query", "key", "value"):
                torch.testing.assert_close(now[part], expected[part], atol=1e-5, rtol=1e-5)
            for h in range(memories.heads):
                same = torch.allclose(now["output"][h], plain["output"][h], atol=1e-5, rtol=1e-5)
                assert same == (h not in affected), (name, j, h)
                if name == "value" and h in affected:
                    torch.testing.assert_close(now["output"][h], -plain["output"][h], atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------- the ten families
def test_sizes_and_repr(family):
    memories = Memories(tiny(family, layers=3))
    assert (memories.family, memories.layers, memories.width, memories.count) == (family, 3, 12, 20)
    assert (memories.heads, memories.kv_heads) == (3, 1 if family in GROUPED else 3)
    assert memories.gated == (family in GATED)
    assert memories.layout is LAYOUTS[family]
    norm = "before_residual" if family == "olmo2" else "after_residual" if family in MASKED else "none"
    assert memories.layout.norm == norm
    kind = "gated" if family in GATED else "ungated"
    assert repr(memories) == f"Memories({family}: 3 layers x 20 memories of width 12, {kind})"


def test_every_known_family_is_tested():
    assert set(LAYOUTS) == set(FAMILIES)


@pytest.mark.parametrize("square", [False, True], ids=["M!=D", "M=D"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 6e-2)]
)
def test_values_times_coefficients_is_the_output(family, square, dtype, tolerance):
    model = tiny(family, square=square, dtype=dtype)
    assert Memories(model).values(0).dtype == dtype
    check_feed_forward(model, tolerance=tolerance)


def test_the_row_says_where_the_output_is_normalised(family):
    """By behaviour of the last block: an output added as it is carries a push to the block's own output; one
    normalised before it is added forgets its length; a sum normalised after forgets a push along ones."""
    model = tiny(family)
    memories = Memories(model)
    down = model.get_submodule(memories.down_path(1))
    block = model.get_submodule(memories.block_path(1))
    push = torch.randn(12, generator=torch.Generator().manual_seed(1))

    def state(change: Callable[[Tensor], Tensor]) -> Tensor:
        handle = down.register_forward_hook(lambda module, args, output: change(output))
        with captured([block]) as states:
            run(model)
        handle.remove()
        return states[0]

    plain = state(lambda output: output)
    seen = (
        torch.allclose(state(lambda output: output + push), plain + push, atol=1e-4),
        torch.allclose(state(lambda output: 3 * output), plain, atol=1e-3),
        torch.allclose(state(lambda output: output + 1), plain, atol=1e-3),
    )
    kinds = {
        (True, False, False): "none",
        (False, True, False): "before_residual",
        (False, False, True): "after_residual",
    }
    assert kinds[seen] == memories.layout.norm


@pytest.mark.parametrize("square", [False, True], ids=["M!=D", "M=D"])
def test_editing_a_value_moves_the_output_along_it(family, square):
    model = tiny(family, square=square)
    memories = Memories(model)
    c, outputs, logits = passed(model)
    push = torch.randn(memories.width, generator=torch.Generator().manual_seed(1))
    memories.values(1)[:, 4] += push
    c_after, after, logits_after = passed(model)
    torch.testing.assert_close(after[1], outputs[1] + c[1][..., 4:5] * push, atol=1e-5, rtol=1e-5)
    assert (
        torch.equal(after[0], outputs[0]) and torch.equal(c_after[0], c[0]) and torch.equal(c_after[1], c[1])
    )
    assert (logits_after - logits).abs().max() > 1e-3


@pytest.mark.parametrize("square", [False, True], ids=["M!=D", "M=D"])
def test_editing_a_key_or_gate_moves_its_coefficient_alone(family, square):
    model = tiny(family, square=square)
    memories = Memories(model)
    c, _, _ = passed(model)
    others = torch.arange(memories.count) != 4
    parts = [(memories.keys(1), memories.key_bias(1))]
    if memories.gated:
        parts.append((memories.gates(1), memories.gate_bias(1)))
    for weight, bias in parts:
        views = [t[4] for t in (weight, bias) if t is not None]
        with kept(*views):
            for view in views:
                view.mul_(2)
            now, _, _ = passed(model)
        torch.testing.assert_close(now[1][..., others], c[1][..., others])
        assert torch.equal(now[0], c[0])
        assert (now[1][..., 4] - c[1][..., 4]).abs().max() > 1e-3
        linear_in_it = memories.gated and weight.data_ptr() == memories.keys(1).data_ptr()
        assert torch.allclose(now[1][..., 4], 2 * c[1][..., 4], rtol=1e-4, atol=1e-5) == linear_in_it
    back, _, _ = passed(model)
    assert torch.equal(back[1], c[1])


def test_editing_a_bias_moves_the_output(family):
    model = tiny(family)
    memories = Memories(model)
    has_bias = family not in ("olmo", "olmo2", "qwen2", "qwen3")
    assert (memories.bias(0) is not None) == has_bias
    if family == "llama":
        assert memories.gate_bias(0).shape == memories.key_bias(0).shape == (20,)
    if has_bias:
        _, outputs, _ = passed(model)
        memories.bias(0)[3] += 1
        _, after, _ = passed(model)
        shift = torch.zeros(12)
        shift[3] = 1
        torch.testing.assert_close(after[0], outputs[0] + shift)


def test_everything_is_a_view_without_gradient(family):
    """Views share memory with the model's parameters, and can be edited without a no_grad block."""
    model = tiny(family)
    memories = Memories(model)
    spans = [
        (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size())
        for p in model.parameters()
        if p.requires_grad
    ]
    views = [memories.values(0), memories.keys(0), *memories.head(0, 1).values()]
    views += [t for t in (memories.bias(0), memories.key_bias(0)) if t is not None]
    if memories.gated:
        views.append(memories.gates(0))
    for view in views:
        assert not view.requires_grad
        assert any(low <= view.data_ptr() < high for low, high in spans)
        view.add_(0)
    assert all(p.requires_grad for p in model.parameters())


def test_gradients_follow_the_same_orientation():
    """dL/dv_i = c_i dL/dFFN(x): a parameter's own gradient fits the orientation of the views."""
    for family in ("gpt2", "llama"):
        model = tiny(family, square=True)
        memories = Memories(model)
        c: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}

        def keep(layer: int, t: Tensor, c: dict = c) -> None:
            c[layer] = t.detach()

        down = model.get_submodule(memories.down_path(1))
        handle = down.register_forward_hook(
            lambda m, a, o, outputs=outputs: o.retain_grad() or outputs.update({1: o})
        )
        with memories.coefficients(keep):
            model(IDS)[0].square().sum().backward()
        handle.remove()
        expected = torch.einsum("btd,btm->dm", outputs[1].grad, c[1])
        gradient = down.weight.grad.T if isinstance(down, Conv1D) else down.weight.grad
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)


# ---------------------------------------------------------------------- orientation
def test_orientation_is_read_from_the_type():
    """A projection swapped for its equal of the other type, M = D, leaves values and keys what they were."""
    for family, square in (("gpt2", True), ("gpt2", False), ("llama", True), ("llama", False)):
        model = tiny(family, square=square)
        memories = Memories(model)
        values, keys, logits = memories.values(0).clone(), memories.keys(0).clone(), run(model)
        for path in (memories.down_path(0), memories.up_path(0)):
            old = model.get_submodule(path)
            if isinstance(old, Conv1D):
                new = nn.Linear(*old.weight.shape)
            else:
                new = Conv1D(old.out_features, old.in_features)
            new.weight.data = old.weight.data.T.contiguous()
            new.bias.data = old.bias.data
            model.set_submodule(path, new)
        torch.testing.assert_close(run(model), logits)  # the same model
        assert torch.equal(memories.values(0), values) and torch.equal(memories.keys(0), keys)


def test_weights_of_other_modules_are_refused():
    class Adapted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight = inner, inner.weight

    model = tiny("llama")
    down = model.model.layers[1].mlp.down_proj
    model.model.layers[1].mlp.down_proj = Adapted(down)
    with pytest.raises(BadInput, match="got Adapted; load the model unquantised and merge adapters first"):
        Memories(model)
    model.model.layers[1].mlp.down_proj = nn.utils.parametrizations.weight_norm(down)
    with pytest.raises(BadInput, match="got ParametrizedLinear"):
        Memories(model)
    packed = nn.Linear(20, 12)
    packed.weight = nn.Parameter(
        torch.zeros(120, 1, dtype=torch.uint8), requires_grad=False
    )  # as 4-bit layers do
    model.model.layers[1].mlp.down_proj = packed
    with pytest.raises(BadInput, match=r"plain weight at '.*mlp\.down_proj'; got Linear"):
        Memories(model)


# ---------------------------------------------------------------------- heads
SHARED = {"width": 16, "heads": 4, "kv_heads": 2}


def eager(family: str, **settings) -> nn.Module:
    return tiny(family, attention="eager", **settings)


def test_output_slices_are_heads(family):
    check_output_slices(eager(family))


def test_query_key_value_slices_are_heads(family):
    check_input_slices(eager(family))


@pytest.mark.parametrize("shared", ["llama", "qwen2", "qwen3", "olmo", "olmo2"])
def test_heads_that_share_keys_and_values(shared):
    model = eager(shared, **SHARED)
    assert (Memories(model).heads, Memories(model).kv_heads) == (4, 2)
    check_output_slices(model)
    check_input_slices(model)
    one, two, three = (Memories(model).head(0, h) for h in (0, 1, 2))
    assert one["key"].data_ptr() == two["key"].data_ptr() != three["key"].data_ptr()
    assert one["query"].data_ptr() != two["query"].data_ptr()


def test_the_heads_add_up_to_the_attention_output(family):
    """sum over h of output_h @ (what head h gives), plus the bias, is what the output projection gives."""
    model = eager(family)
    memories = Memories(model)
    projection = model.get_submodule(f"{memories.attention_path(0)}.{memories.layout.output}")
    with captured([projection]) as projected:
        given = heads_seen(model, 0)["output"]
    total = sum(given[h] @ memories.head(0, h)["output"].T for h in range(3))
    if projection.bias is not None:
        total = total + projection.bias.detach()
    torch.testing.assert_close(total, projected[0], atol=1e-5, rtol=1e-5)


def test_head_biases_are_listed_where_there_are_any(family):
    found = Memories(tiny(family)).head(0, 2)
    biased = family not in ("olmo", "olmo2", "gptj")
    expected = {"query", "key", "value", "output"}
    if biased:
        expected |= {"query_bias", "key_bias", "value_bias"}
    assert set(found) == expected
    assert found["output"].shape == found["query"].T.shape


def test_attention_weights(family):
    """callback(l, A): rows are distributions, causal where the model is, and mix the values."""
    model = eager(family)
    memories = Memories(model)
    seen: dict[int, Tensor] = {}
    with memories.attention(lambda layer, weights: seen.update({layer: weights})):
        expected = run(model)
    assert torch.equal(expected, run(model))
    assert set(seen) == {0, 1} and seen[1].shape == (2, 3, 7, 7)
    torch.testing.assert_close(seen[1].sum(-1), torch.ones(2, 3, 7))
    assert (seen[1].triu(1) == 0).all() == (family not in MASKED)
    heads = heads_seen(model, 1)
    values = heads["value"].repeat_interleave(3 // memories.kv_heads, 0).movedim(0, 1)
    torch.testing.assert_close(seen[1] @ values, heads["output"].movedim(0, 1), atol=1e-5, rtol=1e-5)


def test_attention_weights_that_are_not_computed_are_refused():
    model = tiny("llama", attention="sdpa")
    weights = Memories(model).attention(lambda layer, a: None)
    with pytest.raises(BadInput, match='attn_implementation="eager"'), weights:
        run(model)
    model.set_attn_implementation("eager")  # what the message says to do
    seen = []
    with Memories(model).attention(lambda layer, a: seen.append(layer)):
        run(model)
    assert seen == [0, 1]


# ---------------------------------------------------------------------- callbacks
def test_coefficients_are_the_input_of_the_last_projection(family):
    model = tiny(family)
    memories = Memories(model)
    last = [model.get_submodule(memories.down_path(layer)) for layer in range(2)]
    seen: dict[int, Tensor] = {}
    with (
        captured(last, side="input") as inputs,
        memories.coefficients(lambda layer, c: seen.update({layer: c})),
    ):
        logits = model(IDS)[0]
    for layer in range(2):
        assert torch.equal(seen[layer], inputs[layer])
        assert seen[layer].requires_grad  # the pass's own, not detached
    assert torch.equal(logits.detach(), run(model))
    assert (seen[0] < 0).any()  # signed


@pytest.mark.parametrize("gated", GATED)
def test_gate_and_up(gated):
    model = tiny(gated)
    memories = Memories(model)
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    c: dict[int, Tensor] = {}
    with (
        memories.gate_and_up(lambda layer, gate, up: pairs.update({layer: (gate, up)})),
        memories.coefficients(lambda layer, t: c.update({layer: t})),
        captured(feed_forward(model), side="input") as x,
    ):
        run(model)
    assert set(pairs) == {0, 1}
    for layer, (gate, up) in pairs.items():
        torch.testing.assert_close(memories.activation(gate) * up, c[layer])
        torch.testing.assert_close(gate, linear(x[layer], memories.gates(layer), memories.gate_bias(layer)))
        torch.testing.assert_close(up, linear(x[layer], memories.keys(layer), memories.key_bias(layer)))


def test_gate_and_up_pairs_belong_to_one_pass():
    """Whichever projection runs first; and a pass that broke off between them leaves nothing for the next."""
    model = tiny("llama")
    memories = Memories(model)
    mlp = model.model.layers[0].mlp

    def up_first(x):
        up = mlp.up_proj(x)
        return mlp.down_proj(up * mlp.act_fn(mlp.gate_proj(x)))

    mlp.forward = up_first
    seen: list[tuple[int, Tensor, Tensor]] = []
    c: dict[int, Tensor] = {}
    with memories.gate_and_up(lambda *found: seen.append(found)):
        handle = mlp.gate_proj.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model)
        handle.remove()
        assert seen == []
        with memories.coefficients(lambda layer, t: c.update({layer: t})):
            run(model, tokens(3, 5, seed=1))
    assert [layer for layer, _, _ in seen] == [0, 1]
    for layer, gate, up in seen:
        torch.testing.assert_close(memories.activation(gate) * up, c[layer])


def test_hooks_are_removed_after_an_exception(family):
    model = eager(family)
    memories = Memories(model)
    contexts = [memories.coefficients(lambda *_: 1 / 0), memories.attention(lambda *_: 1 / 0)]
    if memories.gated:
        contexts.append(memories.gate_and_up(lambda *_: 1 / 0))

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    for context in contexts:
        with pytest.raises(ZeroDivisionError), context:
            assert hooks() > before
            run(model)
        assert hooks() == before


# ---------------------------------------------------------------------- how models come
def test_models_with_and_without_a_head_as_saved(family, tmp_path):
    """Saved, then opened with and without a head, in another dtype: the same memories, the same identity."""
    model = tiny(family)
    model.save_pretrained(tmp_path)
    values = Memories(model).values(1)
    head = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    for auto in (head, AutoModel):
        for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 6e-2)):
            opened = auto.from_pretrained(tmp_path, dtype=dtype).eval()
            memories = Memories(opened)
            assert torch.equal(memories.values(1), values.to(dtype))
            assert memories.layers == 2 and dict(opened.named_modules())[memories.down_path(1)] is not None
            check_feed_forward(opened, tolerance=tolerance)
    inner = Memories(model.base_model)
    assert inner.values(0).data_ptr() == Memories(model).values(0).data_ptr()
    assert inner.block_path(0) != Memories(model).block_path(0)


def test_wrong_requests_are_refused_in_one_line(family):
    memories = Memories(tiny(family))
    requests = {
        r"a layer in 0\.\.1; got 2": lambda: memories.values(2),
        r"a layer in 0\.\.1; got -1": lambda: memories.keys(-1),
        r"a head in 0\.\.2; got 3": lambda: memories.head(0, 3),
        r"a head in 0\.\.2; got -1": lambda: memories.head(0, -1),
    }
    if not memories.gated:
        assert memories.gate_path(0) is None
        for request in (lambda: memories.gates(1), lambda: memories.gate_bias(1)):
            with pytest.raises(BadInput, match=rf"gated model; got '{family}'.*use keys\(1\)"):
                request()
        with pytest.raises(BadInput, match="gated model"), memories.gate_and_up(print):
            pass
    for said, request in requests.items():
        with pytest.raises(BadInput, match=said) as error:
            request()
        assert "\n" not in str(error.value)


def test_what_is_no_hugging_face_model_is_refused():
    with pytest.raises(BadInput, match="got Linear; load it with transformers"):
        Memories(nn.Linear(2, 2))
    with pytest.raises(BadInput, match=r"got DataParallel; .*unwrap it"):
        Memories(nn.DataParallel(tiny("gpt2")))


def test_models_that_no_row_fits_are_refused():
    with pytest.raises(BadInput, match="chunk_size_feed_forward = 4; load it with chunk_size_feed_forward=0"):
        Memories(tiny("bert", chunk_size_feed_forward=4))
    model = tiny("llama")
    model.model.layers[1].mlp = tiny("llama", memories=22).model.layers[1].mlp
    with pytest.raises(BadInput, match=r"one size \[D M\]; got \(12, 20\), \(12, 22\)"):
        Memories(model)
    headless = tiny("gpt2").transformer.h[0]
    headless.config = tiny("gpt2").config
    with pytest.raises(BadInput, match=r"at 'transformer\.h\.{}'; got a GPT2Block without them"):
        Memories(headless)


# ---------------------------------------------------------------------- new families
SMALL = {
    "vocab_size": 61, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 3, "max_position_embeddings": 64,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
USUAL = {"block": "model.layers.{}", "down": "mlp.down_proj", "attention": "self_attn"}
ROWS = {
    "mistral": (
        {"num_key_value_heads": 1, "head_dim": 4},
        {**USUAL, "up": "mlp.up_proj", "gate": "mlp.gate_proj", "activation": "mlp.act_fn"},
    ),
    "gemma": (
        {"num_key_value_heads": 1, "head_dim": 6},
        {**USUAL, "up": "mlp.up_proj", "gate": "mlp.gate_proj", "activation": "mlp.act_fn"},
    ),
    "phi": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {**USUAL, "up": "mlp.fc1", "down": "mlp.fc2", "activation": "mlp.activation_fn", "output": "dense"},
    ),
    "phi3": (
        {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2},
        {
            **USUAL, "up": "mlp.gate_up_proj", "fused": "gate,up", "activation": "mlp.activation_fn",
            "qkv": "qkv_proj", "fused_attention": "blocks",
        },
    ),
}  # fmt: skip


def other(name: str, *, square: bool = False) -> nn.Module:
    config = CONFIG_MAPPING[name](**{**SMALL, **ROWS[name][0]})
    if square:
        config.intermediate_size = config.hidden_size
    return randomised(AutoModelForCausalLM, config, attention="eager")


@pytest.mark.parametrize("name", ROWS)
def test_an_unknown_family_is_refused_with_the_way_to_add_it(name):
    with pytest.raises(BadInput) as error:
        Memories(other(name))
    said = str(error.value)
    assert "\n" not in said
    assert all(known in said for known in LAYOUTS) and f"got '{name}'" in said
    assert f"kemem.register('{name}', kemem.Layout(block='model.layers.{{}}'" in said


def test_a_row_without_names_that_are_asked_for_is_refused(monkeypatch):
    monkeypatch.setitem(LAYOUTS, "mistral", Layout("model.layers.{}", "mlp.up_proj", "mlp.down_proj"))
    memories = Memories(other("mistral"))
    for said, request in (
        ("names the attention", lambda: memories.head(0, 0)),
        ("names the activation", lambda: memories.activation),
    ):
        with pytest.raises(BadInput, match=said):
            request()


@pytest.mark.parametrize("square", [False, True], ids=["M!=D", "M=D"])
@pytest.mark.parametrize("name", ROWS)
def test_a_family_is_one_row(name, square, monkeypatch):
    monkeypatch.setitem(LAYOUTS, name, Layout(**ROWS[name][1]))
    model = other(name, square=square)
    check_feed_forward(model, tolerance=1e-5)
    check_feed_forward(model.base_model, tolerance=1e-5)
    check_output_slices(model)
    check_input_slices(model)
    memories = Memories(model)
    if memories.gated:
        pairs: dict[int, tuple[Tensor, Tensor]] = {}
        c: dict[int, Tensor] = {}
        with (
            memories.gate_and_up(lambda layer, gate, up: pairs.update({layer: (gate, up)})),
            memories.coefficients(lambda layer, t: c.update({layer: t})),
        ):
            run(model)
        for layer, (gate, up) in pairs.items():
            torch.testing.assert_close(memories.activation(gate) * up, c[layer])


def test_the_order_of_a_fused_projection_matters(monkeypatch):
    """A row with the wrong order gives another gate: nothing in the shapes would tell."""
    model = other("phi3")
    row = ROWS["phi3"][1]
    monkeypatch.setitem(LAYOUTS, "phi3", Layout(**row))
    right = Memories(model)
    monkeypatch.setitem(LAYOUTS, "phi3", Layout(**{**row, "fused": "up,gate"}))
    wrong = Memories(model)
    assert torch.equal(right.gates(0), wrong.keys(0)) and torch.equal(right.keys(0), wrong.gates(0))
    assert not torch.equal(right.keys(0), wrong.keys(0))
    c, _, _ = passed(model)
    now = right.gates(0)
    with kept(now):
        now.zero_()  # activation(0) = 0
        silent, _, _ = passed(model)
    assert (silent[0] == 0).all() and (c[0] != 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"up": "mlp.upper"}, "'model.layers.0.mlp' holds gate_up_proj, down_proj"),
        (
            {"fused": None},
            "to have 20 outputs and 16 inputs, as 'model.layers.0.mlp.down_proj' asks; got 40 and 16",
        ),
        (
            {"up": "mlp.down_proj"},
            "to have 40 outputs and 16 inputs, as 'model.layers.0.mlp.down_proj' asks; got 16 and 20",
        ),
        ({"block": "model.blocks.{}"}, "at 'model.blocks.{}'; got a Phi3ForCausalLM without them"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_at_once(change, said, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "phi3", Layout(**{**ROWS["phi3"][1], **change}))
    with pytest.raises(BadInput) as error:
        Memories(other("phi3"))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block": "model.layers"}, "ends in .{}; got 'model.layers'"),
        ({"block": "{}.layers.{}"}, "ends in .{}"),
        ({"norm": "post"}, "norm to be one of 'none', 'before_residual', 'after_residual'; got 'post'"),
        ({"fused": "up"}, "fused to be one of None, 'gate,up', 'up,gate'; got 'up'"),
        ({"fused": "gate,up", "gate": "mlp.gate"}, "gate or fused, not both"),
        ({"fused_attention": "rows", "qkv": "qkv"}, "fused_attention to be one of None, 'blocks', 'heads'"),
        ({"qkv": "c_attn"}, "qkv and fused_attention together; got qkv='c_attn' and fused_attention=None"),
        ({"fused_attention": "heads"}, "qkv and fused_attention together; got qkv=None"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(change, said):
    with pytest.raises(BadInput) as error:
        Layout(**{"block": "model.layers.{}", "up": "mlp.up", "down": "mlp.down", **change})
    assert said in str(error.value) and "\n" not in str(error.value)
