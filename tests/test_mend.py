"""MEND against autograd and plain loops: its factors, its networks, their training, and many edits at once."""

import copy
import json

import naive_editing as naive
import pytest
import torch
from conftest import tiny, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from test_finetune import REQUESTS, by_hand, cut, state, words
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from kemem.corpora import Blocks
from kemem.editing.facts import Request
from kemem.editing.finetune import FineTune
from kemem.editing.mend import MEND, LowRank, Networks, Transform, factors
from kemem.editing.mend_training import Training, edited, train_
from kemem.errors import BadInput
from kemem.memory import Memories

UP = {
    "olmo": "mlp.up_proj", "llama": "mlp.up_proj", "qwen2": "mlp.up_proj", "gpt2": "mlp.c_fc", "gptj": "mlp.fc_in",
    "gpt_neox": "mlp.dense_h_to_4h",
}  # fmt: skip
causal = pytest.mark.parametrize("family", naive.CAUSAL)


def names(family: str, *layers: int) -> list[str]:
    return [
        f"{naive.BLOCK[family].format(layer)}.{path}.weight"
        for layer in layers
        for path in (UP[family], naive.DOWN[family])
    ]


def rows(requests=REQUESTS):
    both = [cut(r) for r in requests]
    return [prompt + target for prompt, target in both], [len(prompt) for prompt, _ in both]


def gradients(model, wanted, loss):
    """Autograd's own, as stored."""
    model = copy.deepcopy(model)
    loss(model).backward()
    return {name: model.get_parameter(name).grad for name in wanted}


def summed(requests):
    return lambda model: sum(by_hand(model, r, "as_described") for r in requests)


def outward(model, name, gradient):
    """[outputs inputs], by the type of the module."""
    return gradient.T if isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D) else gradient


def stirred(networks, seed=0):
    """Networks away from the identity, with rates of both signs and a scale and deviation that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in networks.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator).to(p)
        for transform in networks.transforms.values():
            transform.count += 9
            for sums in (transform.mean, transform.squares):
                sums.copy_(torch.rand(sums.shape, generator=generator))
    return networks


def text(count=6, length=9):
    return Blocks(tokens(count, length, seed=5), torch.zeros(count, length, dtype=torch.long))


def close(found, wanted, tolerance=1e-12):
    assert found.keys() == wanted.keys()
    for name, delta in found.items():
        assert delta.shape == wanted[name].shape
        assert (delta - wanted[name]).abs().max() <= tolerance * (1 + wanted[name].abs().max()), name


# ---------------------------------------------------------------------- factors
@causal
@pytest.mark.parametrize("square", [False, True])
def test_the_factors_make_up_the_gradient(family, square):
    model = tiny(family, dtype=torch.float64, square=square)
    own = names(family, 0, 1)
    wanted = gradients(model, own, summed(REQUESTS))
    found = factors(model, own, *rows())
    assert list(found) == own
    for name, (x, delta) in found.items():
        made = sum(torch.outer(delta[t], x[t]) for t in range(len(x)))
        truth = outward(model, name, wanted[name])
        assert (made - truth).abs().max() <= naive.tolerance(family, 1e-12) * (1 + truth.abs().max())


@causal
def test_tokens_without_a_gradient_are_left_out(family):
    model = tiny(family, dtype=torch.float64)
    last = names(family, 1)
    found = factors(model, last, *rows(REQUESTS[1:4]))
    targets = sum(len(cut(r)[1]) for r in REQUESTS[1:4])
    for x, delta in found.values():  # of the last layer only what a target is read from has one; 3 + 2 + 1
        assert len(x) == len(delta) == targets == 6
    first = factors(model, names(family, 0), *rows(REQUESTS[1:4]))
    lengths = [len(row) - 1 for row in rows(REQUESTS[1:4])[0]]
    assert {len(x) for x, _ in first.values()} == {sum(lengths)}  # no padding


def test_factors_of_a_loss_in_shares():
    model = tiny("olmo", dtype=torch.float64)
    wanted = gradients(
        model,
        names("olmo", 1),
        lambda m: 0.3 * by_hand(m, REQUESTS[0], "as_described") + 2 * by_hand(m, REQUESTS[1], "as_described"),
    )
    found = factors(model, names("olmo", 1), *rows(REQUESTS[:2]), shares=(0.3, 2.0))
    close({name: delta.T @ x for name, (x, delta) in found.items()}, wanted)


# ---------------------------------------------------------------------- networks
def test_a_layer_is_its_equation_and_the_identity_at_first():
    generator = torch.Generator().manual_seed(0)
    layer = LowRank(7, 3, 2, generator).double()
    x = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    assert torch.equal(layer(x, 1), x)
    layer(x, 0).sum().backward()
    assert layer.U.grad.abs().min() > 0  # although it stands where relu bends
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    for weight in (0, 1):
        for t in range(5):
            for i in range(7):
                low = [sum(layer.V[r, j] * x[t, j] for j in range(7)) for r in range(3)]
                inner = sum(layer.U[i, r] * low[r] for r in range(3)) + layer.bias[i]
                inner = layer.scale[weight, i] * inner + layer.shift[weight, i]
                assert layer(x, weight)[t, i].item() == pytest.approx((x[t, i] + max(inner, 0)).item())
    assert LowRank(7, 30, 2, generator).U.shape == (7, 7)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_the_running_mean_and_deviation_are_those_of_all_tokens(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    x, delta = (3 + torch.randn(sum(sizes), n, generator=generator, dtype=torch.float64) for n in (4, 2))
    transform = Transform(4, 2, 1, 3, True, generator).double()
    for part in zip(x.split(sizes), delta.split(sizes), strict=True):
        transform.learn(*part)
    assert transform.count == sum(sizes)
    both = torch.cat([x, delta], 1)
    found = torch.cat(transform(x, delta, 0), 1)
    if sum(sizes) < 2:
        assert torch.equal(found, both)
    else:
        wanted = (both - both.mean(0)) / (both.std(0) + 1e-7)
        assert torch.allclose(found, wanted, atol=1e-9, rtol=1e-9)
        transform.normalise = False
        assert torch.equal(torch.cat(transform(x, delta, 0), 1), both)


@causal
def test_weights_of_one_shape_share_a_network_and_differ_in_scale(family):
    model = tiny(family, layers=3)
    networks = Networks.of(model, (1, 2), rank=5)
    assert list(networks.weights) == names(family, 1, 2)
    assert set(networks.transforms) == {"12x20", "20x12"}
    placed = [networks.place[name] for name in networks.weights]
    assert placed == [("12x20", 0), ("20x12", 0), ("12x20", 1), ("20x12", 1)]
    assert all(layer.scale.shape == (2, 32) for t in networks.transforms.values() for layer in t.layers)
    square = Networks.of(tiny(family, square=True), (1,), rank=5)
    assert set(square.transforms) == {"12x12"} and square.transforms["12x12"].layers[0].shift.shape == (2, 24)
    x, delta = torch.randn(4, 12), torch.randn(4, 20)
    one, other = (
        networks.update(name, x, delta) for name in networks.weights if networks.place[name][0] == "12x20"
    )
    assert torch.equal(one, other)
    with torch.no_grad():
        networks.transforms["12x20"].layers[0].shift[1] += 1
        networks.rates[0] *= 2
    one, other = (
        networks.update(name, x, delta) for name in networks.weights if networks.place[name][0] == "12x20"
    )
    assert torch.allclose(one, -2e-4 * delta.T @ x) and not torch.allclose(one, 2 * other)


# ---------------------------------------------------------------------- edits
@causal
@pytest.mark.parametrize("normalise", [False, True])
def test_untrained_it_is_a_step_down_the_gradient(family, normalise):
    model = tiny(family, dtype=torch.float64, square=normalise)
    eta = 0.003
    networks = Networks.of(model, (1,), rank=4, rate=-eta, normalise=normalise).double()
    wanted = gradients(model, names(family, 1), summed(REQUESTS))
    edit = MEND(networks)(model, words(), REQUESTS)
    close(
        edit.deltas, {n: -eta * g for n, g in wanted.items()}, naive.tolerance(family, 1e-8)
    )  # rates in float32 first
    before = summed(REQUESTS)(model).item()
    with edit.applied(model):
        assert summed(REQUESTS)(model).item() < before - 1e-3


def test_an_edit_is_its_equation():
    """Layer by layer and token by token, for one weight of each kind."""
    model = tiny("gpt2", dtype=torch.float64, layers=3)
    networks = stirred(Networks.of(model, (1, 2), rank=4, rate=-0.02).double())
    edit = MEND(networks)(model, words(), REQUESTS[:2], batch_size=1)
    for place, name in enumerate(networks.weights):
        shape, number = networks.place[name]
        transform = networks.transforms[shape]
        deviation = (transform.squares / (transform.count - 1)).sqrt()
        total = 0.0
        for x, delta in zip(*factors(model, [name], *rows(REQUESTS[:2]))[name], strict=True):
            y = (torch.cat([x, delta]) - transform.mean) / (deviation + 1e-7)
            for layer in transform.layers:
                inner = layer.scale[number] * (layer.U @ (layer.V @ y) + layer.bias) + layer.shift[number]
                y = y + torch.relu(inner)
            total = total + networks.rates[place] * torch.outer(
                y[: len(x)], y[len(x) :]
            )  # Conv1D: [inputs outputs]
        close({name: edit.deltas[name]}, {name: total.detach()}, 1e-10)


@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 5), (2, 3), (5, 2)])
def test_many_edits_are_the_sum_of_single_ones(batch_size, chunk):
    model = tiny("olmo", dtype=torch.float64)
    networks = stirred(Networks.of(model, (1,), rank=4).double())
    single = [MEND(networks)(model, words(), [r]).deltas for r in REQUESTS]
    whole = MEND(networks, chunk=chunk)(model, words(), REQUESTS, batch_size=batch_size)
    assert whole.notes["requests"] == 5
    close(whole.deltas, {name: sum(deltas[name] for deltas in single) for name in whole.deltas}, 1e-10)


@pytest.mark.parametrize("loss", ["each", "chunk"])
def test_as_released_only_the_last_of_three_chunks_counts(loss):
    model = tiny("gptj")
    networks = stirred(Networks.of(model, (1,), rank=4))
    told = []
    last = MEND(networks, chunks="last", chunk=2, loss=loss)
    edit = last(model, words(), REQUESTS, progress=lambda *said: told.append(said))
    alone = MEND(networks, loss=loss)(model, words(), REQUESTS[4:])
    assert all(torch.equal(delta, alone.deltas[name]) for name, delta in edit.deltas.items())
    assert edit.notes["requests"] == 1 and told == [(1, 1, "1 of 1 requests")]
    whole = MEND(networks, chunk=2, loss=loss)(model, words(), REQUESTS)
    assert all((delta - whole.deltas[name]).abs().max() > 1e-6 for name, delta in edit.deltas.items())
    even = last(model, words(), REQUESTS[:4])
    close(even.deltas, MEND(networks, loss=loss)(model, words(), REQUESTS[2:4]).deltas, 1e-6)
    published = Networks.of(model, (1,), rank=1)
    assert (MEND(published).chunk, MEND(published).chunks, MEND(published).loss) == (128, "all", "each")


def test_as_released_the_loss_of_a_chunk_is_a_mean_over_its_tokens():
    model = tiny("gpt2", dtype=torch.float64)
    networks = Networks.of(model, (0,), rank=4, rate=-1.0, normalise=False).double()

    def mean(requests):
        count = sum(len(cut(r)[1]) for r in requests)
        return lambda m: sum(by_hand(m, r, "as_described") * len(cut(r)[1]) for r in requests) / count

    parts = [gradients(model, names("gpt2", 0), mean(REQUESTS[i : i + 3])) for i in (0, 3)]
    edit = MEND(networks, loss="chunk", chunk=3)(model, words(), REQUESTS, batch_size=2)
    close(edit.deltas, {name: -parts[0][name] - parts[1][name] for name in parts[0]}, 1e-10)


# ---------------------------------------------------------------------- training
def taught():
    """A tiny model that has been shown some facts; facts to edit; other text."""
    model = tiny("gpt2", dtype=torch.float64)
    shown = [Request(r.case_id, r.prompt, r.subject, "green") for r in REQUESTS]
    FineTune((0, 1), part="block", rate=1e-2, epochs=6, batch=5)(model, words(), shown).apply_(model)
    return model


def test_training_lowers_its_loss():
    model = taught()
    before = state(model)
    networks = Networks.of(model, (1,), rank=8, seed=3).double()
    settings_ = Training(
        steps=20, accumulate=2, network_rate=3e-3, rates_rate=3e-3, edit=1.0, texts=2, seed=1
    )
    told = []
    found = train_(
        networks, model, words(), REQUESTS, text(), settings_, progress=lambda *said: told.append(said)
    )
    assert found.losses[-5:].mean() < found.losses[:5].mean() - 0.3, found.losses
    assert found.edits[-5:].mean() < found.edits[:5].mean() - 0.3
    assert torch.allclose(found.losses, found.edits + found.strays) and (found.strays >= 0).all()
    assert [said[:2] for said in told] == [(i, 20) for i in range(1, 21)]
    assert all(p.grad is None for p in networks.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    unseen = Request(9, "{} was born in", "Fay", "Rome")
    edit = MEND(networks)(model, words(), [unseen])
    old = by_hand(model, unseen, "as_described").item()
    with edit.applied(model):
        assert by_hand(model, unseen, "as_described").item() < old - 0.3


def test_one_step_of_training_is_its_equation():
    """Loss and gradient from full passes with torch alone, and Adam's first step by hand."""
    model = tiny("olmo", dtype=torch.float64)
    requests = REQUESTS[3:4]  # without paraphrases: its own prompt
    blocks = text(1)
    networks = stirred(Networks.of(model, (0, 1), rank=4, rate=-0.05, normalise=False).double())
    own = {name: p.detach().clone().requires_grad_() for name, p in networks.named_parameters()}
    pairs = factors(model, list(networks.weights), *rows(requests))
    changed = {name: p.detach() for name, p in model.named_parameters()}
    for name, (x, delta) in pairs.items():
        update = functional_call(
            Update(networks, name), {f"networks.{n}": p for n, p in own.items()}, (x, delta)
        )
        changed[name] = changed[name] + update
    (row,), (begin,) = rows(requests)
    said = functional_call(model, changed, (), {"input_ids": torch.tensor([row])}).logits[0].log_softmax(-1)
    nll = -sum(said[at - 1, row[at]] for at in range(begin, len(row))) / (len(row) - begin)
    ids = blocks.ids.long()
    old = model(input_ids=ids).logits[0, :-1].softmax(-1).detach()
    new = functional_call(model, changed, (), {"input_ids": ids}).logits[0, :-1].softmax(-1)
    kl = (old * (old.log() - new.log())).sum() / 8
    loss = 0.1 * nll + 1.0 * kl
    slopes = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    found = train_(networks, model, words(), requests, blocks, Training(steps=1, accumulate=3, clip=1e-9))
    assert found.losses.item() == pytest.approx(loss.item(), rel=1e-6)  # OLMo's norms are float32
    assert found.edits.item() == pytest.approx(nll.item(), rel=1e-6)
    assert found.strays.item() == pytest.approx(kl.item(), rel=1e-5)
    length = torch.stack([g.square().sum() for g in slopes.values()]).sum().sqrt()
    assert length > 1e-3
    for name, p in networks.named_parameters():
        slope = slopes[name] * 1e-9 / length  # cut; beside Adam's 1e-8 its length is seen
        step = (1e-4 if name == "rates" else 1e-6) * slope / (slope.abs() + 1e-8)
        assert torch.allclose(p.detach() - own[name].detach(), -step, rtol=1e-3, atol=1e-12), name


class Update(torch.nn.Module):
    def __init__(self, networks, name):
        super().__init__()
        self.networks, self.name = networks, name

    def forward(self, x, delta):
        return self.networks.update(self.name, x, delta)


def test_the_same_seed_trains_the_same_and_paraphrases_are_what_is_asked():
    model = tiny("gpt2")
    way = Training(steps=2, accumulate=2, network_rate=1e-3, rates_rate=1e-3)
    made, seen = [], []
    for seed in (0, 0, 1):
        networks = Networks.of(model, (1,), rank=4, seed=7)
        seen.append(
            train_(networks, model, words(), REQUESTS, text(), Training(**{**vars(way), "seed": seed}))
        )
        made.append(networks.state_dict())
    assert all(torch.equal(made[1][name], tensor) for name, tensor in made[0].items())
    assert any(not torch.equal(made[2][name], tensor) for name, tensor in made[0].items())
    assert torch.equal(seen[0].losses, seen[1].losses)
    # one request, rate 0: the loss is that of its paraphrases, no more and no less
    asked = REQUESTS[:1]
    networks = Networks.of(model, (1,), rank=4, rate=0.0)
    found = train_(networks, model, words(), asked, text(), Training(steps=8, accumulate=1, rates_rate=0.0))
    paraphrased = [
        by_hand(model, Request(0, p.replace("Ada", "{}"), "Ada", "Rome"), "as_described").item()
        for p in asked[0].paraphrases
    ]
    assert {round(loss, 4) for loss in found.edits.tolist()} == {round(loss, 4) for loss in paraphrased}
    assert found.strays.abs().max() < 1e-6


def test_training_learns_the_tokens_it_edits_and_editing_does_not():
    model = tiny("gpt2")
    networks = Networks.of(model, (0, 1), rank=4)
    edited(networks, model, *rows(REQUESTS[:2]))
    pairs = factors(model, list(networks.weights), *rows(REQUESTS[:2]))
    for shape, transform in networks.transforms.items():
        seen = torch.cat([torch.cat(pairs[n], 1) for n in networks.weights if networks.place[n][0] == shape])
        assert transform.count == len(seen)
        assert torch.allclose(transform.mean, seen.double().mean(0), atol=1e-6)
    before = {name: tensor.clone() for name, tensor in networks.state_dict().items()}
    MEND(networks)(model, words(), REQUESTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in networks.state_dict().items())


# ---------------------------------------------------------------------- kept
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_networks_give_the_same_edits(tmp_path, dtype):
    model = tiny("llama", dtype=dtype)
    networks = stirred(Networks.of(model, (0, 1), rank=4, normalise=True)).to(dtype)
    networks.save(tmp_path / "some" / "networks")
    again = Networks.load(tmp_path / "some" / "networks")
    one, other = (MEND(n)(model, words(), REQUESTS).deltas for n in (networks, again))
    assert one.keys() == other.keys() and all(torch.equal(delta, other[name]) for name, delta in one.items())
    assert [p.requires_grad for p in again.parameters()] == [True] * len(list(again.parameters()))
    kept = json.loads((tmp_path / "some" / "networks" / "networks.json").read_text())
    assert kept["rank"] == 4 and list(kept["weights"]) == names("llama", 0, 1)


def test_files_that_are_not_networks_are_refused(tmp_path):
    with pytest.raises(BadInput, match="got No such file"):
        Networks.load(tmp_path)
    model = tiny("gpt2")
    Networks.of(model, (1,), rank=4).save(tmp_path)
    for content in (
        "[1]",
        "{}",
        "no",
        '{"weights": [1], "rank": 2}',
        '{"weights": {"a": [1, 2]}, "rank": 4}',
    ):
        (tmp_path / "networks.json").write_text(content)
        with pytest.raises(BadInput, match=r"a folder that Networks\.save wrote"):
            Networks.load(tmp_path)
    Networks.of(model, (1,), rank=4).save(tmp_path)
    (tmp_path / "networks.safetensors").write_bytes(b"0" * 20)
    with pytest.raises(BadInput, match=r"a folder that Networks\.save wrote"):
        Networks.load(tmp_path)


# ---------------------------------------------------------------------- the model
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_and_the_networks_are_left_as_they_were(broken):
    model = tiny("gpt2", tie_word_embeddings=True)
    networks = stirred(Networks.of(model, (1,), rank=4))
    wanted = MEND(networks)(model, words(), REQUESTS).deltas
    model.train()
    model.transformer.h[0].eval()
    model.transformer.h[1].mlp.c_proj.weight.requires_grad_(False)
    model.transformer.h[1].mlp.c_fc.weight.grad = torch.ones_like(model.transformer.h[1].mlp.c_fc.weight)
    before = state(model)
    modes = [module.training for module in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

    def stop(step, total, message):
        if broken:
            raise KeyboardInterrupt

    for act in (
        lambda: MEND(networks)(model, words(), REQUESTS, progress=stop),
        lambda: train_(
            copy.deepcopy(networks), model, words(), REQUESTS, text(), Training(1, 1), progress=stop
        ),
    ):
        if broken:
            with pytest.raises(KeyboardInterrupt):
                act()
        else:
            found = act()
            for name, delta in getattr(found, "deltas", {}).items():
                assert torch.equal(delta, wanted[name]) and not delta.requires_grad
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert modes == [module.training for module in model.modules()]
        assert asked == [p.requires_grad for p in model.parameters()]
        for name, p in model.named_parameters():
            if name == "transformer.h.1.mlp.c_fc.weight":
                assert torch.equal(p.grad, torch.ones_like(p))
            else:
                assert p.grad is None
        assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert all(p.grad is None for p in networks.parameters())


# ---------------------------------------------------------------------- refused
def test_settings_and_models_that_do_not_fit_are_refused():
    model = tiny("gpt2")
    networks = Networks.of(model, (1,), rank=4)
    for wrong, said in (
        ({"chunks": "first"}, "chunks to be one of all, last"),
        ({"loss": "mean"}, "loss to be one of each, chunk"),
        ({"chunk": 0}, "chunks of 1 request"),
    ):
        with pytest.raises(BadInput, match=said):
            MEND(networks, **wrong)
    for wrong in ({"steps": 0}, {"accumulate": 0}, {"clip": 0.0}, {"texts": 0}):
        with pytest.raises(BadInput, match=f"{next(iter(wrong))} above 0"):
            Training(**{"steps": 1, **wrong})
    with pytest.raises(BadInput, match="rank of 1 or more; got 2 weights and rank 0"):
        Networks.of(model, (1,), rank=0)
    with pytest.raises(BadInput, match=r"layer in 0\.\.1"):
        Networks.of(model, (2,))
    for other in (tiny("gpt2", memories=24), tiny("gpt2", layers=1), tiny("olmo")):
        with pytest.raises(BadInput):
            MEND(networks)(other, words(), REQUESTS)
        with pytest.raises(BadInput):
            train_(networks, other, words(), REQUESTS, text(), Training(1))
    with pytest.raises(BadInput, match="got no rows"):
        train_(networks, model, words(), REQUESTS, text(0), Training(1))
    with pytest.raises(BadInput, match="got 40 in case 1"):
        long = Request(1, "{} is", "Ada", "Rome", paraphrases=("a " * 39,))
        train_(networks, tiny("gpt2", context=32), words(), [long], text(), Training(1))
    with pytest.raises(BadInput, match="take lower rates"):
        train_(networks, model, words(), REQUESTS, text(), Training(4, 1, network_rate=1e30, rates_rate=1e30))


def test_a_gate_of_its_own_is_left_alone_and_olmo2_can_be_edited():
    model = tiny("olmo2", dtype=torch.float64)
    networks = Networks.of(model, (1,), rank=4, rate=-1e-3)
    edit = MEND(networks)(model, words(), REQUESTS)
    memories = Memories(model)
    assert set(edit.deltas) == {f"{memories.up_path(1)}.weight", f"{memories.down_path(1)}.weight"}
    assert all(delta.dtype == torch.float64 for delta in edit.deltas.values())
