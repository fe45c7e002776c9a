"""Sizes of what learning changes, against arithmetic on reshaped weights and against the gradient of A.1."""

import json
import math

import pytest
import torch
from conftest import GATED, tiny, tokens
from scipy.stats import rankdata
from test_resuscitation import fused

from kemem.entropy import Updates, measure, multiplier, reparameterise_, updates
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.trace import module as module_at
from kemem.training import Recipe, train

# of each tiny model by name: what makes a coefficient, then the value; D last in all but Conv1D
ENDS = {
    "gpt2": (("transformer.h.{}.mlp.c_fc",), "transformer.h.{}.mlp.c_proj"),
    "gptj": (("transformer.h.{}.mlp.fc_in",), "transformer.h.{}.mlp.fc_out"),
    "gpt_neox": (("gpt_neox.layers.{}.mlp.dense_h_to_4h",), "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    "roberta": (("roberta.encoder.layer.{}.intermediate.dense",), "roberta.encoder.layer.{}.output.dense"),
    "bert": (("bert.encoder.layer.{}.intermediate.dense",), "bert.encoder.layer.{}.output.dense"),
}
MLP = "model.layers.{}.mlp."


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model, seed: int = 9) -> dict[str, torch.Tensor]:
    """The weights before; then every one of the model is changed by noise."""
    start, generator = weights(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) * 0.1)
    return start


def by_hand(family: str, start, now, layer: int, memory: int) -> tuple[float, float]:
    """Number by number, over all the entries that belong to one memory."""
    keys, value = ENDS.get(family, ((MLP + "gate_proj", MLP + "up_proj"), MLP + "down_proj"))
    turned = family == "gpt2"
    total = 0.0
    for key in keys:
        name = key.format(layer)
        change = now[f"{name}.weight"] - start[f"{name}.weight"]
        total += sum(x**2 for x in (change[:, memory] if turned else change[memory]).tolist())
        if f"{name}.bias" in start:
            total += (now[f"{name}.bias"][memory] - start[f"{name}.bias"][memory]).item() ** 2
    name = f"{value.format(layer)}.weight"
    change = now[name] - start[name]
    column = change[memory] if turned else change[:, memory]
    return math.sqrt(total), math.sqrt(sum(x**2 for x in column.tolist()))


@pytest.mark.parametrize("square", [False, True], ids=["M", "M=D"])
def test_sizes_are_those_of_every_memory_by_name(family, square):
    model = tiny(family, square=square, dtype=torch.float64)
    start = moved(model)
    now, found = weights(model), updates(model, start)
    assert found.keys.shape == found.values.shape == (2, 12 if square else 20)
    for layer in (0, 1):
        for memory in range(found.keys.shape[1]):
            key, value = by_hand(family, start, now, layer, memory)
            assert found.keys[layer, memory].item() == pytest.approx(key, rel=1e-12)
            assert found.values[layer, memory].item() == pytest.approx(value, rel=1e-12)
    after = weights(model)
    assert all(torch.equal(after[name], now[name]) for name in now)  # it only looks


def test_one_memory_alone(family):
    """Only what belongs to memory 7 of layer 1 is changed: all others are at 0, key and value apart."""
    model = tiny(family)
    start, memories = weights(model), Memories(model)
    memories.keys(1)[7] += 3.0
    found = updates(model, start)
    assert found.keys.nonzero().tolist() == [[1, 7]] and not found.values.any()
    assert found.keys[1, 7].item() == pytest.approx(3 * math.sqrt(12), rel=1e-6)
    memories.values(1)[:, 7] -= 2.0
    if family in GATED:
        memories.gates(1)[7] += 4.0
        found = updates(model, start)
        assert found.keys[1, 7].item() == pytest.approx(5 * math.sqrt(12), rel=1e-6)
    found = updates(model, start)
    assert found.values.nonzero().tolist() == [[1, 7]]
    assert found.values[1, 7].item() == pytest.approx(2 * math.sqrt(12), rel=1e-6)


def test_a_fused_projection_has_both_halves_of_a_key(monkeypatch):
    model = fused(monkeypatch)
    start = moved(model)
    found, now = updates(model, start), weights(model)
    name = "model.layers.1.mlp.gate_up_proj.weight"
    change = (now[name].double() - start[name].double()).square().sum(-1)  # [2M]
    torch.testing.assert_close(found.keys[1], (change[:20] + change[20:]).sqrt(), rtol=1e-12, atol=0)


def test_weights_in_16_bits_are_compared_in_float64():
    model = tiny("olmo", dtype=torch.bfloat16)
    start = moved(model)
    name = "model.layers.0.mlp.down_proj.weight"
    expected = (weights(model)[name].double() - start[name].double()).norm(dim=0)
    torch.testing.assert_close(updates(model, start).values[0], expected, rtol=1e-14, atol=0)


# ---------------------------------------------------------------------- A.1
class OneRow:
    def __len__(self) -> int:
        return 1

    def batch(self, indices):
        ids = tokens(1, 14, seed=3)
        return {"input_ids": ids, "labels": ids.clone()}


def test_one_plain_step_of_sgd_is_A_1(family):
    """dL/dv_i = sum_j c_ij dL/dFFN_j, from hooks in the very pass that trains, so dropout has no say."""
    model = tiny(family, dtype=torch.float64)
    start, memories = weights(model), Memories(model)
    seen, hooks = {}, []

    def keep(layer):
        def hook(module, given, output):
            output.retain_grad()
            seen[layer] = (given[0].detach(), output)

        return hook

    for layer in (0, 1):
        hooks.append(module_at(model, memories.down_path(layer)).register_forward_hook(keep(layer)))
    recipe = Recipe(
        steps=1, batch_size=1, learning_rate=0.3, optimizer="sgd", betas=(0.0, 0.0), weight_decay=0.0, clip=0.0,
        schedule="constant",
    )  # fmt: skip
    train(model, OneRow(), recipe)
    for hook in hooks:
        hook.remove()
    found = updates(model, start)
    for layer, (c, output) in seen.items():
        gradient = torch.einsum("btm,btd->md", c, output.grad)  # [M D]
        assert gradient.norm(dim=1).min() > 1e-6
        torch.testing.assert_close(found.values[layer], 0.3 * gradient.norm(dim=1), rtol=1e-9, atol=1e-13)


# ---------------------------------------------------------------------- shares and ranks
def test_shares_and_ranks_by_hand():
    keys = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    found = Updates(keys, values)
    shares = found.effective_share()
    p = [0.1, 0.2, 0.3, 0.4]
    last = math.exp(-sum(x * math.log(x) for x in p)) / 4
    assert shares["keys"].tolist() == pytest.approx([1.0, 0.25], rel=1e-14)
    assert shares["values"].tolist() == pytest.approx([0.5, last], rel=1e-14)
    assert "2 x 4 memories" in repr(found)
    order = torch.tensor([[1.0, 2.0, 3.0, 4.0], [9.0, 7.0, 7.0, 1.0]])
    found = Updates(values, values.flip(-1))
    ranks = found.rank_with(order)
    a, b = rankdata([1, 2, 3, 4]), rankdata([9, 7, 7, 1])
    tied = ((a - 2.5) * (b - 2.5)).sum() / math.sqrt(((a - 2.5) ** 2).sum() * ((b - 2.5) ** 2).sum())
    assert ranks["keys"].tolist() == pytest.approx([-2 / math.sqrt(5), tied], rel=1e-12)
    assert ranks["values"].tolist() == pytest.approx([2 / math.sqrt(5), -tied], rel=1e-12)


def test_a_table_is_json(family):
    model = tiny(family)
    found = updates(model, moved(model))
    usage = measure(model, [*tokens(3, 14)], next_token=False).usage
    rows = json.loads(json.dumps(found.table(usage), allow_nan=False))
    shares, ranks = found.effective_share(), found.rank_with(usage)
    assert [row["layer"] for row in rows] == [0, 1]
    for name in ("keys", "values"):
        for row in rows:
            layer = row["layer"]
            assert row[f"{name}_mean"] == getattr(found, name)[layer].mean().item()
            assert row[f"{name}_effective_share"] == shares[name][layer].item()
            assert row[f"{name}_rank_with_usage"] == ranks[name][layer].item()
    assert list(found.table()[0]) == [
        "layer", "keys_mean", "values_mean", "keys_effective_share", "values_effective_share",
    ]  # fmt: skip


def test_a_change_of_scale_alone_changes_memories():
    """Of the control: keys move by |f - 1| of themselves, values by |1 / f - 1|, while the function stays."""
    model = tiny("qwen2", dtype=torch.float64)
    start, memories = weights(model), Memories(model)
    keys, values = memories.keys(0).norm(dim=1), memories.values(0).norm(dim=0)
    factors = multiplier(measure(model, [*tokens(3, 14)], next_token=False).usage, 1.0, 1.0)
    reparameterise_(model, factors)
    found = updates(model, start)
    torch.testing.assert_close(found.keys[0], keys * (factors[0] - 1).abs(), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.values[0], values * (1 / factors[0] - 1).abs(), rtol=1e-9, atol=1e-14)


# ---------------------------------------------------------------------- refusals
def refused(said: str, call) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_starts_that_do_not_fit_are_refused():
    model = tiny("llama")
    start = moved(model)
    updates(model, {name: tensor for name, tensor in start.items() if ".mlp." in name})  # enough
    for end in ("up_proj.weight", "up_proj.bias", "gate_proj.weight", "gate_proj.bias", "down_proj.weight"):
        name = f"model.layers.1.mlp.{end}"
        fewer = {key: tensor for key, tensor in start.items() if key != name}
        refused(rf"start to have '{name}' \[.*\]; got none; copy", lambda fewer=fewer: updates(model, fewer))
    name = "model.layers.0.mlp.down_proj.weight"
    refused(r"\[12, 20\]; got one \[20, 12\]", lambda: updates(model, {**start, name: start[name].T}))
    refused("got offloaded ones", lambda: updates(tiny("llama").to("meta"), start))
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = math.nan
    refused("expected finite weights; got NaN or infinity", lambda: updates(model, start))


def test_nothing_changed_has_no_share_and_no_rank():
    model = tiny("olmo")
    start, usage = weights(model), torch.rand(2, 20)
    found = updates(model, start)
    assert not found.keys.any()
    for call in (found.effective_share, found.table, lambda: found.rank_with(usage)):
        refused("keys of every layer to have changed; got those of layer 0 as at the start", call)
    Memories(model).keys(0).add_(torch.rand(20, 1))
    Memories(model).keys(1).add_(torch.rand(20, 1))
    Memories(model).values(0).add_(1.0)
    refused("values of every layer .* layer 1", updates(model, start).effective_share)


def test_usage_that_ranks_nothing_is_refused():
    keys = torch.rand(2, 20, dtype=torch.float64) + 0.1
    found = Updates(keys, keys)
    usage = torch.rand(2, 20)
    refused(r"usage must be finite numbers \[2, 20\].* got \[2, 19\]", lambda: found.rank_with(usage[:, :19]))
    refused("got NaN or infinity", lambda: found.rank_with(usage * math.nan))
    level = usage.clone()
    level[1] = 0.5
    refused(
        "needs usage that differ; got the same for all memories of layer 1", lambda: found.rank_with(level)
    )
    flat = Updates(keys, torch.ones_like(keys))
    refused("needs values that differ; .* layer 0", lambda: flat.rank_with(usage))
