"""SGD against its equations written out, with AdamW's groups and decay, through kills and restarts."""

from dataclasses import replace

import killed_run
import pytest
import torch
from conftest import tiny
from test_resume import Stop, StopAt, assert_same

from kemem.errors import BadInput
from kemem.models import Shape, build
from kemem.training import Recipe, train
from kemem.training.identity import same
from kemem.training.optimizer import adamw, moments, optimizer_of, restore_moments, sgd
from kemem.training.order import Order

RECIPE = Recipe(
    steps=12, batch_size=4, learning_rate=0.3, optimizer="sgd", save_every=3, log_every=2, clip=0.0
)


def net(family: str = "gpt2", *, dtype: torch.dtype = torch.float64):
    shape = Shape(family, layers=1, width=8, memories=12, heads=2, vocab=64, context=16)
    return build(shape, seed=1).to(dtype)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def by_hand(model, recipe: Recipe, steps: int) -> dict[str, torch.Tensor]:
    """Autograd gives the gradients; all else is arithmetic on plain tensors."""
    data, order = killed_run.Rows(), Order(30, recipe.batch_size, recipe.seed)
    momentum: dict[str, torch.Tensor] = {}
    model.train()
    for step in range(steps):
        ids = data.batch(order(step)[1])["input_ids"]
        scores = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        loss = -scores.gather(-1, ids[:, 1:, None]).mean()
        model.zero_grad()
        loss.backward()
        rate, mu = recipe.rate(step), recipe.betas[0]
        for name, p in model.named_parameters():
            g = p.grad.clone()
            decay = recipe.weight_decay if p.ndim == 2 and "wte" not in name and "wpe" not in name else 0.0
            b = momentum[name] = mu * momentum[name] + g if name in momentum else g
            p.data = p.data - rate * decay * p.data - rate * b
    return weights(model)


@pytest.mark.parametrize("weight_decay", [0.0, 0.4])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_written_out(momentum, weight_decay):
    recipe = replace(RECIPE, steps=5, warmup_steps=2, betas=(momentum, 0.95), weight_decay=weight_decay)
    ours = net()
    train(ours, killed_run.Rows(), recipe)
    theirs = by_hand(net(), recipe, 5)
    found, start = weights(ours), weights(net())
    for name, tensor in theirs.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-13)
        assert not torch.equal(found[name], start[name])


def test_decay_is_kept_out_of_gradient_and_momentum():
    """What has a gradient of zero shrinks as under AdamW; torch's own decay would gather speed."""
    models = [tiny("olmo", dtype=torch.float64) for _ in range(3)]
    recipe = replace(RECIPE, weight_decay=0.5, learning_rate=0.1)
    theirs = torch.optim.SGD(models[2].parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    for optimizer, model in zip(
        (sgd(models[0], recipe), adamw(models[1], recipe), theirs), models, strict=True
    ):
        for _ in range(4):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
    a, b, c = map(weights, models)
    name, start = "model.layers.0.mlp.up_proj.weight", weights(tiny("olmo", dtype=torch.float64))
    torch.testing.assert_close(a[name], start[name] * 0.95**4, rtol=1e-14, atol=0)
    assert all(torch.allclose(a[n], b[n], rtol=1e-14, atol=0) for n in a)
    assert not torch.allclose(a[name], c[name], rtol=1e-2)
    assert torch.equal(a["model.embed_tokens.weight"], start["model.embed_tokens.weight"])


@pytest.mark.parametrize("decay_embeddings", [False, True])
def test_both_decay_the_same_parameters(decay_embeddings):
    model = tiny("gpt2")
    recipe = replace(RECIPE, decay_embeddings=decay_embeddings)
    of_sgd, of_adamw = sgd(model, recipe).param_groups, adamw(model, recipe).param_groups
    for here, there in zip(of_sgd, of_adamw, strict=True):
        assert [id(p) for p in here["params"]] == [id(p) for p in there["params"]]
        assert (here["decay"], here["weight_decay"]) == (there["weight_decay"], 0.0)


def test_what_has_no_gradient_stays():
    model = tiny("olmo")
    before, optimizer = weights(model), sgd(model, RECIPE)
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_recipe_chooses_and_adamw_is_the_default():
    model, plain = tiny("olmo"), Recipe(steps=1, batch_size=1, learning_rate=1.0)
    assert type(optimizer_of(model, plain)) is torch.optim.AdamW
    chosen = optimizer_of(model, replace(plain, optimizer="sgd", betas=(0.7, 0.95)))
    assert type(chosen) is torch.optim.SGD and chosen.param_groups[0]["momentum"] == 0.7
    for wrong in ("adam", "", "SGD"):
        with pytest.raises(BadInput, match=f"optimizer to be one of adamw, sgd; got '{wrong}'") as caught:
            replace(plain, optimizer=wrong)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- kills
def run(folder, recipe: Recipe, stop: int | None = None):
    model = net(dtype=torch.float32)
    history = train(model, killed_run.Rows(), recipe, StopAt(stop), out=folder)
    return history.json(), weights(model)


@pytest.mark.parametrize("stop", [2, 5, 11])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_broken_off_anywhere_it_ends_the_same(tmp_path, momentum, stop):
    recipe = replace(RECIPE, betas=(momentum, 0.95), clip=1.0, warmup_steps=2)
    with pytest.raises(Stop):
        run(tmp_path / "broken", recipe, stop)
    whole = run(tmp_path / "whole", recipe)
    assert_same(run(tmp_path / "broken", recipe), whole)


def test_momentum_is_what_is_kept_and_it_matters():
    model = net()
    named = dict(model.named_parameters())
    optimizer = sgd(model, RECIPE)
    for p in named.values():
        p.grad = torch.ones_like(p)
    assert not moments(optimizer, named)
    optimizer.step()
    kept = moments(optimizer, named)
    assert kept.keys() == {f"momentum_buffer.{name}" for name in named}
    start, ends = weights(model), []
    for tensors in (kept, kept, {}):
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(start[name])
        again = sgd(model, RECIPE)
        restore_moments(again, named, {name: tensor.clone() for name, tensor in tensors.items()})
        again.step()
        ends.append(weights(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in named)
    assert not any(torch.equal(ends[0][name], ends[2][name]) for name in named)
    still = sgd(model, replace(RECIPE, betas=(0.0, 0.95)))
    still.step()
    assert not moments(still, named)


def test_a_folder_of_the_other_optimizer_is_refused(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path, RECIPE, 7)
    with pytest.raises(BadInput, match=r"optimizer \('sgd' there, 'adamw' now\)"):
        run(tmp_path, replace(RECIPE, optimizer="adamw"))


def test_a_run_saved_before_there_was_a_choice_goes_on(tmp_path):
    same({"steps": 1}, {"steps": 1, "optimizer": "adamw"}, tmp_path)
    with pytest.raises(BadInput, match=r"optimizer \('adamw' there, 'sgd' now\)"):
        same({"steps": 1}, {"steps": 1, "optimizer": "sgd"}, tmp_path)
