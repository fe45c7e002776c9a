"""trace: what is seen is what the model computed, what is replaced is all that changes, no hook is left."""

import pytest
import torch
from conftest import tiny, tokens
from torch import nn

from kemem import trace
from kemem.errors import BadInput


class Doubled(nn.Module):
    """A module called in the ways transformers calls modules: by position, by name; it returns a tuple."""

    def forward(self, hidden_states, other=None):
        return 2 * hidden_states, "weights", other


class Toy(nn.Module):
    def __init__(self, by_name: bool = False):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([Doubled(), Doubled()])
        self.by_name = by_name

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x, weights, _ = block(hidden_states=x, other=1) if self.by_name else block(x, other=1)
            assert weights == "weights"
        return x


@pytest.fixture(params=[False, True], ids=["by position", "by name"])
def toy(request) -> Toy:
    torch.manual_seed(0)
    return Toy(request.param)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# ---------------------------------------------------------------------- module
def test_module_follows_the_path(toy):
    assert trace.module(toy, "") is toy
    assert trace.module(toy, "first") is toy.first
    assert trace.module(toy, "blocks.1") is toy.blocks[1]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("second", "the model holds first, blocks"),
        ("blocks.2", "'blocks' holds 0, 1"),
        ("blocks.1.mlp.up", "'blocks.1' holds no modules"),
        ("first.weight", "'first' holds no modules"),  # a parameter is not a module
        ("forward", "the model holds first, blocks"),  # nor is a method
    ],
)
def test_a_wrong_path_is_refused_with_the_part_that_exists(toy, path, said):
    with pytest.raises(BadInput) as error:
        trace.module(toy, path)
    assert said in str(error.value) and repr(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_list_of_children_is_cut():
    with pytest.raises(BadInput, match=r"holds 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\.;"):
        trace.module(nn.ModuleList([nn.Identity() for _ in range(30)]), "30")


# ---------------------------------------------------------------------- observe
def test_observe_gives_the_pass_own_tensors_in_order(toy):
    x = torch.randn(5, 3)
    h = toy.first(x)
    seen = []
    names = ("first", "blocks.0", "blocks.1")
    with trace.observe(toy, {name: lambda t, name=name: seen.append((name, t)) for name in names}):
        toy(x)
    assert [name for name, _ in seen] == list(names)
    assert seen[0][1] is x  # not a copy
    assert torch.equal(seen[1][1], h) and torch.equal(seen[2][1], 2 * h)
    assert seen[2][1].requires_grad  # not detached


def test_observe_output_takes_the_first_or_the_named_element(toy):
    x = torch.randn(5, 3)
    expected = toy(x)
    seen = []
    with trace.observe(toy, {"blocks.1": seen.append}, side="output"):
        toy(x)
    with trace.observe(toy, {"blocks.1": seen.append}, side="output", element=2):
        toy(x)
    assert torch.equal(seen[0], expected)
    assert seen[1] == 1


def test_what_an_observer_returns_changes_nothing(toy):
    x = torch.randn(5, 3)
    expected = toy(x)
    with (
        trace.observe(toy, {"first": lambda t: 0 * t, "blocks.0": lambda t: 0 * t}, side="input"),
        trace.observe(toy, {"first": lambda t: 0 * t, "blocks.0": lambda t: 0 * t}, side="output"),
    ):
        assert torch.equal(toy(x), expected)


# ---------------------------------------------------------------------- record
def test_record_keeps_a_detached_copy_of_every_call(toy):
    x, y = torch.randn(5, 3), torch.randn(2, 3)
    with trace.record(toy, ["first", "blocks.1"]) as seen:
        out = [toy(x), toy(y)]
    assert [len(found) for found in seen.values()] == [2, 2]
    assert torch.equal(seen["first"][1], toy.first(y))
    for kept, given in zip(seen["blocks.1"], out, strict=True):
        assert torch.equal(kept, given) and not kept.requires_grad
    out[0].detach().zero_()  # what was recorded does not follow
    assert seen["blocks.1"][0].abs().sum() > 0


def test_record_is_not_changed_by_modules_that_work_in_place():
    """OLMo's clip_qkv clamps in place what the query projection gave: what it gave is recorded."""
    model = tiny("olmo", clip_qkv=0.05)
    path = "model.layers.0.self_attn.q_proj"
    with (
        torch.no_grad(),
        trace.record(model, [path]) as seen,
        trace.record(model, [path], side="input") as into,
    ):
        model(tokens(1, 5))
    expected = into[path][0] @ model.get_submodule(path).weight.detach().T
    assert expected.abs().max() > 1
    torch.testing.assert_close(seen[path][0], expected)


def test_record_names_its_paths_also_before_a_pass(toy):
    with trace.record(toy, ["first"], side="input") as seen:
        pass
    assert seen == {"first": []}


# ---------------------------------------------------------------------- replace
def test_replace_output_and_input(toy):
    x = torch.randn(5, 3)
    h = toy.first(x)
    with trace.replace(toy, {"blocks.0": lambda t: t + 1}):
        torch.testing.assert_close(toy(x), 2 * (2 * h + 1))
    with trace.replace(toy, {"blocks.0": lambda t: t + 1}, side="input"):
        torch.testing.assert_close(toy(x), 2 * (2 * (h + 1)))
    with trace.replace(toy, {"first": torch.zeros_like}):  # a module that returns a plain tensor
        assert (toy(x) == 0).all()
    torch.testing.assert_close(toy(x), 4 * h)


def test_gradients_flow_through_a_replacement(toy):
    scale = torch.tensor(3.0, requires_grad=True)
    x = torch.randn(5, 3)
    with trace.replace(toy, {"blocks.0": lambda t: scale * t}):
        toy(x).sum().backward()
    torch.testing.assert_close(scale.grad, 4 * toy.first(x).sum().detach())


def test_nested_contexts_act_in_the_order_they_were_entered(toy):
    x = torch.randn(5, 3)
    seen = []
    with (
        trace.replace(toy, {"first": lambda t: t + 1}),
        trace.observe(toy, {"first": seen.append}, side="output"),
        trace.replace(toy, {"first": lambda t: 10 * t}),
    ):
        out = toy(x)
    torch.testing.assert_close(seen[0], toy.first(x) + 1)
    torch.testing.assert_close(out, 40 * (toy.first(x) + 1))


@pytest.mark.parametrize("wrong", [lambda t: t[:1], lambda t: None])
def test_a_replacement_of_another_shape_is_refused(toy, wrong):
    said = r"shape \(5, 4\) for the output of 'blocks.0'"
    with pytest.raises(BadInput, match=said), trace.replace(toy, {"blocks.0": wrong}):
        toy(torch.randn(5, 3))
    assert hooks(toy) == 0


# ---------------------------------------------------------------------- hooks
def break_off(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("side", trace.SIDES)
def test_no_hook_is_left(toy, side):
    x = torch.randn(5, 3)
    expected = toy(x)
    for context in (
        lambda: trace.observe(toy, {"first": break_off}, side=side),
        lambda: trace.replace(toy, {"blocks.1": break_off}, side=side),
    ):
        with pytest.raises(KeyboardInterrupt), context():
            assert hooks(toy) == 1
            toy(x)
        assert hooks(toy) == 0
    with pytest.raises(ZeroDivisionError), trace.record(toy, ["first", "blocks.0"], side=side):
        assert hooks(toy) == 2
        _ = 1 / 0
    assert hooks(toy) == 0
    assert torch.equal(toy(x), expected)


def test_a_wrong_path_or_side_leaves_no_hook(toy):
    for places, side in (({"first": print, "nowhere": print}, "input"), ({"first": print}, "inside")):
        with pytest.raises(BadInput), trace.observe(toy, places, side=side):
            raise AssertionError("the block must not be entered")
        assert hooks(toy) == 0


def test_hooks_of_others_stay(toy):
    handle = toy.first.register_forward_hook(lambda *_: None)
    with trace.record(toy, ["first"]):
        assert hooks(toy) == 2
    assert hooks(toy) == 1
    handle.remove()


def test_a_module_called_on_nothing_nameable_is_refused():
    class Odd(nn.Module):
        def forward(self, *, query, key):
            return query + key

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Odd()

        def forward(self, x):
            return self.odd(query=x, key=x)

    model = Holder()
    said = "got the arguments key, query; take its output"
    with pytest.raises(BadInput, match=said), trace.observe(model, {"odd": print}):
        model(torch.ones(1))
    with trace.record(model, ["odd"]) as seen:  # its output can be seen
        model(torch.ones(1))
    assert seen["odd"][0].item() == 2


# ---------------------------------------------------------------------- real blocks
def test_blocks_and_attention_of_every_family(family):
    """A block's first output element is the next block's input, whether it returns a tensor or a tuple."""
    from kemem.memory import Memories

    model = tiny(family)
    memories = Memories(model)
    blocks = [memories.block_path(layer) for layer in range(2)]
    ids = tokens(2, 6)
    with (
        torch.no_grad(),
        trace.record(model, blocks) as out,
        trace.record(model, blocks, side="input") as into,
        trace.record(model, [memories.attention_path(0)], side="input") as attended,
    ):
        expected = model(ids).logits
    assert torch.equal(out[blocks[0]][0], into[blocks[1]][0])
    assert attended[memories.attention_path(0)][0].shape == (2, 6, 12)  # passed by position or by name
    other = tokens(2, 6, seed=1)
    with (
        torch.no_grad()
    ):  # the last block's state of one text, put into another's pass, gives the first one's logits
        last = blocks[-1]
        assert not torch.allclose(model(other).logits, expected)
        with trace.replace(model, {last: lambda _: out[last][0]}):
            torch.testing.assert_close(model(other).logits, expected)
