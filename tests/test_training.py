"""The training loop: what a step is, what leaves it as it is, and the moments of a method."""

import math
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import two_processes
from conftest import tiny
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from kemem.errors import BadInput
from kemem.models import Shape, build
from kemem.objective import IGNORED, Masked, causal, row_key, uniform
from kemem.training import Domain, Method, Recipe, bfloat16_runs, train
from kemem.training.optimizer import adamw
from kemem.training.order import Order, split

VOCAB = 61


class Rows:
    """Rows of random tokens; in each but the first a different number of labels is no target."""

    def __init__(self, rows: int = 24, length: int = 10, *, seed: int = 0, holes: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, VOCAB, (rows, length), generator=generator)
        self.labels = self.ids.clone()
        if holes:
            for row in range(rows):
                self.labels[row, length - row % length :] = IGNORED

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.labels[indices]}


def model(family: str = "olmo", *, dtype: torch.dtype = torch.float64, **sizes: float) -> nn.Module:
    shape = Shape(family, **{"layers": 2, "width": 12, "memories": 20, "heads": 3, "vocab": VOCAB, **sizes})
    return build(shape, seed=1).to(dtype)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def trained(recipe: Recipe, method: Method | None = None, *, data: Rows | None = None, net=None, **options):
    net = model() if net is None else net
    train(net, data or Rows(), recipe, method, **options)
    return weights(net)


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


RECIPE = Recipe(steps=5, batch_size=8, learning_rate=1e-2, warmup_steps=1)


# ---------------------------------------------------------------------- what a step is
def test_steps_are_those_written_out():
    """Loss, clipping and rate written out, the optimizer torch's unfused one: only the order is shared."""
    data = Rows()
    recipe = Recipe(
        steps=6,
        batch_size=8,
        learning_rate=1e-2,
        warmup_steps=2,
        weight_decay=0.3,
        clip=0.2,
        epsilon=1e-6,
        seed=5,
    )
    ours, theirs = model(), model()
    history = train(ours, data, recipe)
    matrices = [p for n, p in theirs.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in theirs.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        lr=0.0, betas=(0.9, 0.95), eps=1e-6, fused=False, foreach=False,
    )  # fmt: skip
    order = Order(len(data), 8, 5)
    rates = [0.005, 0.01, *(0.001 + 0.009 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4))]
    theirs.train()
    losses = []
    for step, rate in enumerate(rates):
        batch = data.batch(order(step)[1])
        scores = theirs(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
        wanted = batch["labels"][:, 1:]
        loss = -scores[wanted != -100][torch.arange((wanted != -100).sum()), wanted[wanted != -100]].mean()
        assert loss.item() == pytest.approx(theirs(**batch).loss.item(), abs=1e-6)  # HF's is in float32
        losses.append(loss.item())
        loss.backward()
        norm = sum(p.grad.square().sum() for p in theirs.parameters()) ** 0.5
        for p in theirs.parameters():
            p.grad *= (0.2 / (norm + 1e-6)).clamp(max=1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    assert farthest(weights(ours), weights(theirs)) < 1e-12
    assert [row["loss"] for row in history.steps] == pytest.approx(losses, rel=1e-6)
    assert [row["lr"] for row in history.steps] == pytest.approx(rates, rel=1e-12)
    assert [row["tokens"] for row in history.steps] == [80 * (k + 1) for k in range(6)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule(schedule):
    recipe = Recipe(
        steps=10, batch_size=1, learning_rate=2.0, warmup_steps=4, schedule=schedule, weight_decay=0.5
    )
    rates = [recipe.rate(step) for step in range(10)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[9] == pytest.approx(2.0 if schedule == "constant" else 0.2)
    if schedule != "constant":
        assert all(a > b for a, b in pairwise(rates[3:]))
        assert rates[6] == pytest.approx(1.1)  # half way down, for both
    assert recipe.time_constants == pytest.approx(0.5 * sum(rates))


@pytest.mark.parametrize("decays", [False, True])
def test_a_row_without_gradient_shrinks_by_decay_alone(decays):
    """The embedding of a token that never occurs, in a model whose embeddings are not tied."""
    net = model("gpt_neox", tied=False)
    before = weights(net)
    recipe = Recipe(
        steps=8, batch_size=8, learning_rate=0.05, weight_decay=0.9, warmup_steps=2, decay_embeddings=decays
    )
    after = trained(recipe, net=net)
    name = "gpt_neox.embed_in.weight"
    factor = torch.tensor([1 - recipe.rate(step) * 0.9 for step in range(8)], dtype=torch.float64).prod()
    assert torch.allclose(after[name][:3], before[name][:3] * (factor if decays else 1), rtol=1e-12, atol=0)
    assert abs(factor.log() + recipe.time_constants) < 0.02 and not torch.equal(
        after[name][5], before[name][5]
    )


def test_norms_and_biases_do_not_decay():
    net = tiny("gpt2")
    groups = adamw(net, Recipe(steps=1, batch_size=1, learning_rate=1.0)).param_groups
    names = {id(p): name for name, p in net.named_parameters()}
    decayed = {names[id(p)] for p in groups[0]["params"]}
    free = {names[id(p)] for p in groups[1]["params"]}
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.1, 0.0)
    assert "transformer.h.0.mlp.c_fc.weight" in decayed and "lm_head.weight" in decayed
    assert {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"} <= free
    assert all(name.endswith("weight") for name in decayed) and decayed | free == set(names.values())


# ---------------------------------------------------------------------- law 3: how a step is cut
@pytest.mark.parametrize("accumulation", [2, 3, 4, 8])
def test_accumulation_leaves_the_step_as_it_is(accumulation):
    """8 rows with 9, 8, 7, ... target tokens, in equal and unequal parts; a part may have no target."""
    cut = trained(replace(RECIPE, accumulation=accumulation))
    assert farthest(trained(RECIPE), cut) < 1e-12


def test_accumulation_with_padding():
    class Padded(Rows):
        def batch(self, indices):
            filled = self.labels[indices] != IGNORED
            filled[:, 0] = True
            return {**super().batch(indices), "attention_mask": filled.long()}

    whole, cut = (trained(replace(RECIPE, accumulation=n), data=Padded()) for n in (1, 4))
    assert farthest(whole, cut) < 1e-12
    history = train(model(), Padded(), replace(RECIPE, steps=3))  # 24 rows in three steps: one pass
    assert history.steps[-1]["tokens"] == Padded().batch(torch.arange(24))["attention_mask"].sum()


def test_a_mean_of_means_would_be_another_step():
    """The same rows weighted equally instead of by their tokens: the check above can fail."""

    class Equal(Method):
        def loss(self, model, batch, loss):
            return loss / causal.count(batch)

    whole, cut = (trained(replace(RECIPE, accumulation=n), Equal()) for n in (1, 4))
    assert farthest(whole, cut) > 1e-4


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_penalty_counts_once(accumulation):
    seen = []

    class Penalty(Method):
        def loss(self, model, batch, loss):
            return 0 * loss + 7.0 * model.model.embed_tokens.weight.sum()

        def gradients(self, model):
            seen.append(model.model.embed_tokens.weight.grad.clone())

    trained(replace(RECIPE, steps=1, accumulation=accumulation), Penalty())
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], 7.0), rtol=1e-12, atol=0)


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Started as a launcher does: unequal numbers of target tokens, accumulation, a penalty."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, two_processes.__file__, str(tmp_path)]
    running = []
    for rank in map(str, range(2)):
        place = {
            "WORLD_SIZE": "2",
            "RANK": rank,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    for dtype, bound in (("float64", 1e-12), ("float32", 2e-6)):
        losses, alone = two_processes.run(None, dtype)
        for rank in range(2):
            there, found = two_processes.read(tmp_path / f"process{rank}-{dtype}")
            assert farthest(found, alone) < bound
            assert there == pytest.approx(losses, rel=1e-6)
        assert (tmp_path / dtype / "step4" / "model.safetensors").is_file()


# ---------------------------------------------------------------------- laws 4 and 6: null methods, seeds
class Null(Method):
    """Every moment overridden, none with an effect."""

    def before(self, model, domain):
        self.noise = torch.Generator().manual_seed(1)

    def batches(self, domains):
        return domains[-1].blocks

    def loss(self, model, batch, loss):
        with torch.no_grad():
            model(input_ids=batch["input_ids"])
        return loss + 0.0 * loss.detach()

    def gradients(self, model):
        for p in model.parameters():
            p.grad.mul_(1.0)

    def updated(self, model, previous):
        for name, p in model.named_parameters():
            p.copy_(torch.where(torch.ones_like(p, dtype=torch.bool), p, previous[name]))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_null_method_is_plain_training_bit_for_bit(accumulation):
    recipe = replace(RECIPE, accumulation=accumulation)
    net = lambda: model(dtype=torch.float32)  # noqa: E731
    assert equal(trained(recipe, net=net()), trained(recipe, Null(), net=net()))


def test_the_same_seed_twice_and_another_one():
    """With dropout, and with the caller's generator somewhere else: the run depends on the recipe alone."""
    net = lambda: model("gpt2", dropout=0.3, dtype=torch.float32)  # noqa: E731
    torch.manual_seed(3)
    first = trained(RECIPE, net=net())
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    assert equal(first, trained(RECIPE, net=net()))
    assert torch.equal(before, torch.random.get_rng_state())
    other = trained(replace(RECIPE, seed=1), net=net(), data=Rows(8))
    assert not equal(trained(RECIPE, net=net(), data=Rows(8)), other)  # one pass a step: only dropout differs
    still = lambda: model("gpt2", dtype=torch.float32)  # noqa: E731
    assert not equal(first, trained(RECIPE, net=still()))


def test_dropout_differs_from_step_to_step_and_from_row_to_row():
    seen = []

    class Watch(Method):
        def loss(self, model, batch, loss):
            seen.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
            return loss

    trained(replace(RECIPE, steps=2, accumulation=2), Watch())
    assert len(seen) == 4 and all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


# ---------------------------------------------------------------------- the moments of a method
def test_moments_come_in_order():
    log = []

    class Log(Method):
        def before(self, model, domain):
            log.append(f"before {domain.name}")

        def batches(self, domains):
            log.append("batches " + " ".join(domain.name for domain in domains))
            return domains[0].blocks

        def loss(self, model, batch, loss):
            assert model.training
            log.append("loss")
            return loss

        def gradients(self, model):
            log.append("gradients")

        def updated(self, model, previous):
            log.append("updated")

        def after(self, model, domain):
            assert not model.training
            log.append(f"after {domain.name}")

        @contextmanager
        def during(self, model, domain):
            log.append(f"during {domain.name}")
            yield
            log.append("left")

        @contextmanager
        def at(self, model, domain):
            log.append(f"at {domain.name}")
            yield
            log.append("left")

    def look(net, step):
        assert not net.training
        log.append(f"look {step}")

    net = model().eval()
    old, new = Domain("old", Rows(seed=1)), Domain("new", Rows(2))  # too few rows, were it not for `batches`
    recipe = replace(RECIPE, steps=1, accumulation=2, checkpoints=(0, 1))
    train(net, new, recipe, Log(), earlier=[old], at_checkpoint=look)
    look_ = ["at new", "look {}", "left"]
    assert log == [
        "before new", "batches old new", *(word.format(0) for word in look_), "during new", "loss", "loss",
        "gradients", "updated", "left", *(word.format(1) for word in look_), "after new",
    ]  # fmt: skip


def test_what_is_hooked_in_while_training_is_left_at_checkpoints_saves_and_errors(tmp_path):
    """Two checkpoints and a save in six steps: four stretches, and every one of them is left."""
    log = []

    class Hooked(Method):
        fails = 0

        @contextmanager
        def during(self, model, domain):
            log.append("in")
            try:
                yield
            finally:
                log.append("out")

        def rows(self, step, batch):
            log.append(step)
            if step == self.fails:
                raise KeyError(step)
            return batch

    recipe = replace(RECIPE, steps=6, checkpoints=(0, 2, 4), save_every=5)
    train(model(), Rows(), recipe, Hooked(), out=tmp_path / "run")
    assert log == ["in", 1, 2, "out", "in", 3, 4, "out", "in", 5, "out", "in", 6, "out"]
    log.clear()
    failing = Hooked()
    failing.fails = 2
    with pytest.raises(KeyError):
        train(model(), Rows(), recipe, failing)
    assert log == ["in", 1, 2, "out"]


def test_updated_gets_the_values_before_the_step_and_may_undo_it():
    net = model()
    start = weights(net)

    class Freeze(Method):
        def updated(self, model, previous):
            name = "model.layers.0.mlp.up_proj.weight"
            assert equal(previous, self.expected)
            dict(model.named_parameters())[name].copy_(previous[name])
            self.expected = weights(model)

    method = Freeze()
    method.expected = start
    after = trained(RECIPE, method, net=net)
    assert torch.equal(after["model.layers.0.mlp.up_proj.weight"], start["model.layers.0.mlp.up_proj.weight"])
    assert not torch.equal(
        after["model.layers.1.mlp.up_proj.weight"], start["model.layers.1.mlp.up_proj.weight"]
    )


def test_gradients_are_seen_whole_and_before_clipping():
    norms = []

    class Norm(Method):
        def gradients(self, model):
            norms.append(sum(p.grad.square().sum().item() for p in model.parameters()) ** 0.5)

    for accumulation in (1, 4):
        trained(replace(RECIPE, steps=1, clip=1e-3, accumulation=accumulation), Norm())
    assert norms[0] == pytest.approx(norms[1], rel=1e-12) and norms[0] > 0.1


def test_what_before_adds_is_trained_and_what_it_freezes_is_not():
    class Adapter(Method):
        def before(self, model, domain):
            model.requires_grad_(False)
            model.model.layers[0].extra = nn.Parameter(torch.zeros(12, dtype=torch.float64))

        def loss(self, model, batch, loss):
            return loss + (model.model.layers[0].extra - 1).square().sum()

    net = model()
    start = weights(net)
    after = trained(RECIPE, Adapter(), net=net)
    extra = after.pop("model.layers.0.extra")
    assert equal(after, start) and (extra > 0.01).all()


def test_the_mode_of_the_model_comes_back_also_after_an_error():
    class Broken(Method):
        def gradients(self, model):
            raise RuntimeError("broken")

    net = model().eval()
    with pytest.raises(RuntimeError, match="broken"):
        train(net, Rows(), RECIPE, Broken())
    assert not net.training


# ---------------------------------------------------------------------- data
def test_every_pass_reads_every_row_once_in_its_own_order():
    order = Order(rows=10, batch_size=4, seed=3)
    read = [pair for step in range(5) for pair in zip(order(step)[0], order(step)[1].tolist(), strict=True)]
    first, second = ([row for number, row in read if number == wanted] for wanted in (0, 1))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert Order(10, 4, 3)(3)[1].tolist() == order(3)[1].tolist()  # asked for out of turn
    assert [pair[1] for pair in read[:10]] != Order(10, 10, 4)(0)[1].tolist()


def test_split_loses_and_repeats_nothing():
    batch = Rows(7).batch(torch.arange(7))
    parts = split(batch, 3)
    assert [len(part["labels"]) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), batch["input_ids"])


def test_masked_language_modelling_hides_by_row_not_by_position_in_the_step():
    recipe = replace(RECIPE, steps=3)
    hide = Masked(mask_id=2, vocabulary=VOCAB, share=0.3)
    data = Rows(holes=False)
    runs = [
        trained(replace(recipe, accumulation=n), objective=hide, data=data, net=model("roberta"))
        for n in (1, 4)
    ]
    assert farthest(*runs) < 1e-12
    batch = data.batch(torch.arange(4))
    keys = [row_key(0, 0, row) for row in range(4)]
    whole = hide.prepare(batch, keys)
    alone = hide.prepare(data.batch(torch.tensor([2])), keys[2:3])
    assert torch.equal(whole["input_ids"][2:3], alone["input_ids"])
    assert not torch.equal(
        whole["input_ids"], hide.prepare(batch, [row_key(0, 1, row) for row in range(4)])["input_ids"]
    )


def test_what_is_hidden():
    data = Rows(200, 100, holes=False)
    data.ids[:, 0] = 0
    data.labels[:, -1] = IGNORED
    batch = data.batch(torch.arange(200))
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][:, -3:] = 0
    found = Masked(mask_id=2, vocabulary=VOCAB, share=0.15, special=(0,)).prepare(
        batch, [row_key(7, 0, row) for row in range(200)]
    )
    target = found["labels"] != IGNORED
    assert not target[:, 0].any() and not target[:, -3:].any()
    assert torch.equal(found["labels"][target], batch["input_ids"][target])
    assert torch.equal(found["input_ids"][~target], batch["input_ids"][~target])
    assert target.double().mean().item() == pytest.approx(0.15 * 0.96, abs=0.01)
    hidden, kept = found["input_ids"][target] == 2, found["input_ids"][target] == batch["input_ids"][target]
    assert hidden.double().mean().item() == pytest.approx(0.8 + 0.1 / VOCAB, abs=0.03)
    assert kept.double().mean().item() == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.03)


def test_uniform_numbers_are_uniform_and_unrelated():
    rows = torch.tensor([row_key(0, 0, row) - (1 << 63) for row in range(50)])[:, None]
    found = torch.stack([uniform(rows, torch.arange(400)[None], stream) for stream in range(2)])
    assert found.min() >= 0 and found.max() < 1
    assert found.mean().item() == pytest.approx(0.5, abs=0.01) and found.var().item() == pytest.approx(
        1 / 12, abs=0.002
    )
    flat = [found[0, 0], found[0, 1], found[1, 0], found[0, 0].roll(1), found[0, 0].roll(7)]
    correlation = torch.corrcoef(torch.stack(flat)) - torch.eye(5, dtype=torch.float64)
    assert correlation.abs().max() < 0.2


# ---------------------------------------------------------------------- precision, checkpoints, refusals
def test_bfloat16_keeps_float32_weights_and_another_run_follows():
    recipe = replace(RECIPE, precision="bfloat16")
    net = lambda: model(dtype=torch.float32)  # noqa: E731
    if not bfloat16_runs("cpu"):
        with pytest.raises(BadInput, match="precision='float32'"):
            trained(recipe, net=net())
        return
    exact = trained(RECIPE, net=net())
    rough = trained(recipe, net=net())
    assert all(p.dtype == torch.float32 for p in rough.values())
    assert 0 < farthest(exact, rough) < 0.05
    assert equal(exact, trained(RECIPE, net=net()))  # nothing of the other precision is left in the process


def test_checkpoints_open_with_from_pretrained(tmp_path):
    net = model(dtype=torch.float32)
    kept = {}
    recipe = replace(RECIPE, checkpoints=(5, 0, 2))

    def look(net, step):
        kept[step] = weights(net)
        return {"seen": step * 10}

    history = train(net, Rows(), recipe, out=tmp_path, at_checkpoint=look)
    assert history.checkpoints == [{"step": step, "seen": step * 10} for step in (0, 2, 5)]
    for step in (0, 2, 5):
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / f"step{step}")
        assert equal(weights(opened), kept[step])
    assert equal(kept[0], weights(model(dtype=torch.float32))) and equal(kept[5], weights(net))
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.glob(".step*"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_looking_at_a_checkpoint_changes_nothing():
    net = lambda: model("gpt2", dropout=0.2, dtype=torch.float32)  # noqa: E731

    def look(net, step):
        torch.manual_seed(0)
        torch.rand(5)

    recipe = replace(RECIPE, checkpoints=(1, 2))
    assert equal(trained(recipe, net=net()), trained(recipe, net=net(), at_checkpoint=look))


def test_history_and_progress():
    told = []
    recipe = replace(RECIPE, steps=7, log_every=3)
    every = train(model(), Rows(), replace(RECIPE, steps=7, log_every=1))
    history = train(model(), Rows(), recipe, progress=lambda *what: told.append(what))
    assert [row["step"] for row in history.steps] == [3, 6, 7]
    losses = [row["loss"] for row in every.steps]
    expected = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [row["loss"] for row in history.steps] == pytest.approx(expected, rel=1e-6)
    assert [what[:2] for what in told] == [(3, 7), (6, 7), (7, 7)]
    assert (
        told[0][2].startswith(f"loss {expected[0]:.3f}, ")
        and "tokens/s" in told[0][2]
        and "left" in told[0][2]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"warmup_steps": 6}, "warmup_steps"),
        ({"final_share": 1.5}, "final_share"),
        ({"accumulation": 9}, "accumulation"),
        ({"schedule": "cosinus"}, "cosine, linear, constant"),
        ({"precision": "fp8"}, "float32, bfloat16"),
        ({"checkpoints": (6,)}, "0 to 5"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"clip": -1.0}, "clip"),
        ({"save_every": -1}, "save_every"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
)
def test_wrong_recipes_are_refused(change, message):
    with pytest.raises(BadInput, match=message) as caught:
        replace(RECIPE, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [{"save_every": 1}, {"checkpoints": tuple(range(51))}])
def test_nothing_is_written_of_a_loss_that_is_not_finite(tmp_path, kept):
    """Also where the next row of the history is far away."""
    recipe = replace(RECIPE, learning_rate=1e6, clip=0.0, steps=50, weight_decay=10.0, log_every=50, **kept)
    with pytest.raises(BadInput, match=r"expected a finite loss; got (nan|inf) by step"):
        train(model(), Rows(), recipe, out=tmp_path)
    files = [*tmp_path.rglob("*.safetensors")]
    assert files and all(t.isfinite().all() for f in files for t in load_file(f).values())


def test_runs_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match=r"at least as many rows.* 8; got 7 in region"):
        train(model(), Domain("region", Rows(7)), RECIPE)
    with pytest.raises(BadInput, match="lower learning_rate"):
        train(model(), Rows(), replace(RECIPE, learning_rate=1e6, clip=0.0, steps=50, weight_decay=10.0))
    with pytest.raises(BadInput, match="all parameters frozen"):
        train(model().requires_grad_(False), Rows(), RECIPE)
    empty = Rows()
    empty.labels[:] = IGNORED
    with pytest.raises(BadInput, match="none in step 1"):
        train(model(), empty, RECIPE)
