"""MEMIT written into other projections: on the feed-forward it is MEMIT, on attention its own normal equations hold."""

import naive_editing as naive
import pytest
import torch
from conftest import tiny, tokens
from test_rome import asked, ordinary, weights, words

from kemem import editing
from kemem.editing import Search
from kemem.editing.projections import Projections, projection, projection_moments
from kemem.errors import BadInput
from kemem.memory import Memories

TEMPLATES = ("{}", "w7 w8 {}", "w9 {}")
SEARCH = Search(steps=4, rate=0.3, clamp=2.0)
families = pytest.mark.parametrize("family", naive.CAUSAL)


def made(family, **more):
    return tiny(family, layers=3, dtype=torch.float64, **more).eval()


def text():
    return [tokens(9, seed=i).tolist() for i in range(12)]


def tolerance(family):
    return 1e-5 if family == "gptj" else 1e-10  # GPT-J computes attention in float32


@families
def test_on_the_feed_forward_it_is_memit(family):
    model, tok, requests = made(family), words(), asked(5)
    moments = projection_moments(model, text(), (0, 1), part="feed_forward")
    for layer in (0, 1):
        torch.testing.assert_close(moments[layer], ordinary(model, (0, 1))[layer], rtol=1e-10, atol=1e-12)
    own = Projections((0, 1), moments, 3.0, SEARCH, "feed_forward")(model, tok, requests, templates=TEMPLATES)
    memit = editing.MEMIT((0, 1), 3.0, SEARCH)(model, tok, requests, moments, templates=TEMPLATES)
    assert set(own.deltas) == set(memit.deltas)
    for name, delta in memit.deltas.items():
        assert (own.deltas[name] - delta).norm() <= tolerance(family) * delta.norm()


@families
@pytest.mark.parametrize("square", [False, True])
def test_attention_meets_its_own_normal_equations(family, square):
    """Delta (weight C + K K^T) = R K^T with keys taken by plain hooks, a row at a time, the last layer edited last."""
    model, tok, requests = made(family, square=square), words(), asked(4)
    before = weights(model)
    moments = projection_moments(model, text(), (0, 1))
    edit = Projections((0, 1), moments, 3.0, SEARCH)(model, tok, requests, templates=TEMPLATES)
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    memories = Memories(model)
    names = [projection(memories, layer, "attention") for layer in (0, 1)]
    assert list(edit.deltas) == [f"{name}.weight" for name in names]

    of = editing.contexts(tok, requests, TEMPLATES)
    first = editing.Edit({f"{names[0]}.weight": edit.deltas[f"{names[0]}.weight"]})
    for layer, state in ((0, editing.Edit({})), (1, first)):
        with state.applied(model):
            K, lacking = plainly(model, of, names[layer], memories.block_path(1), edit.notes["targets"])
        R = lacking / (2 - layer)
        delta = edit.deltas[f"{names[layer]}.weight"].double()
        if family == "gpt2":
            delta = delta.T
        wanted = R @ K.T
        found = delta @ (3.0 * moments[layer] + K @ K.T)
        assert (found - wanted).norm() <= max(1e-8, tolerance(family)) * wanted.norm()


def plainly(model, of, name, block, z):
    """Keys [X N] and what the stream lacks [D N], by torch's own hooks and one row a pass."""
    seen = {}

    def entered(_, args):
        seen["key"] = args[0].detach()

    def left(_, args, output):
        seen["stream"] = (output[0] if isinstance(output, tuple) else output).detach()

    inside = dict(model.named_modules())
    hooks = [inside[name].register_forward_pre_hook(entered), inside[block].register_forward_hook(left)]
    keys, lacking = [], []
    for number, each in enumerate(of):
        found = []
        for row in each.to_subject:
            model(input_ids=torch.tensor([row]))
            found.append(seen["key"][0, -1].double())
            if len(found) == 1:
                lacking.append(z[number].double() - seen["stream"][0, -1].double())
        keys.append(found[0] / 2 + (found[1] + found[2]) / 4)
    for hook in hooks:
        hook.remove()
    return torch.stack(keys, 1), torch.stack(lacking, 1)


@families
def test_moments_are_those_of_what_enters(family):
    model = made(family)
    rows = [tokens(3 + i, seed=i).tolist() for i in range(5)]
    name = projection(Memories(model), 1, "attention")
    seen = []
    hook = dict(model.named_modules())[name].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    for row in rows:
        model(input_ids=torch.tensor([row]))
    hook.remove()
    every = torch.cat([keys[0].double() for keys in seen])
    found = projection_moments(model, rows, (1,), batch_size=3)
    assert found.tokens == len(every) == 25
    torch.testing.assert_close(
        found[1], every.T @ every / len(every), rtol=tolerance(family), atol=tolerance(family)
    )


def test_refusals():
    model, tok = made("gpt2"), words()
    moments = projection_moments(model, text(), (0,))
    with pytest.raises(BadInput, match="expected part to be one of"):
        Projections((0,), moments, part="head")
    with pytest.raises(BadInput, match="expected moments of layer 1"):
        Projections((0, 1), moments)(model, tok, asked(2))
    with pytest.raises(BadInput, match="expected text with tokens"):
        projection_moments(model, [], (0,))
