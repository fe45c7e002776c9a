"""The same numbers on a CUDA device as on the CPU: `pytest -m gpu`, run first wherever there is one.

Where there is none test_card.py runs these tests with KEMEM_TEST_DEVICE=card, the device beside the CPU of tests/card.
"""

import os
from contextlib import contextmanager
from dataclasses import replace

import naive_editing
import pytest
import torch
from conftest import tiny

from kemem import arithmetic, editing, evaluation, models
from kemem.continual import Held, learn, named
from kemem.editing import memit
from kemem.entropy import (
    Injection,
    Schedule,
    WakeIdle,
    attention_temperature,
    measure,
    multiplier,
    resuscitate_,
)  # fmt: skip
from kemem.entropy.batches import Padder
from kemem.entropy.sums import Sums
from kemem.memory import Memories
from kemem.models.streaming import stream
from kemem.objective import Masked, causal
from kemem.runs import Store
from kemem.studies import (
    checkpoints,
    courses,
    interference,
    looking,
    masking,
    moving,
    pairing,
    pretraining,
    units,
)
from kemem.studies.lab import Lab
from kemem.training import Method, Recipe, bfloat16_runs, train

DEVICE = os.environ.get("KEMEM_TEST_DEVICE", "cuda")
CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not CUDA, reason="needs a CUDA device; torch sees none here"),
]
only_cuda = pytest.mark.skipif(not CUDA, reason="about TF32, which CUDA devices have")
TEXTS = ((5, 1, 12, 3, 12, 26, 4), 61)


def texts() -> list[list[int]]:
    lengths, vocabulary = TEXTS
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def both(family, dtype, **settings):
    """The measurement on the CPU in float32, and on the device in dtype, on a model whose layers differ by size."""
    model = tiny(family, width=48, memories=80)
    expected = measure(model, texts(), batch_size=4, **settings)
    return expected, measure(model.to(DEVICE, dtype), texts(), batch_size=4, **settings)


@pytest.mark.parametrize("side", ["right", "left"])
def test_entropy_in_float32_is_that_of_the_cpu(family, side):
    expected, found = both(family, torch.float32, attention=True, side=side)
    assert found.usage.device.type == "cpu" and found.usage.dtype == torch.float64
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.attention, expected.attention, rtol=0, atol=1e-4)
    assert found.next_token_entropy == pytest.approx(expected.next_token_entropy, abs=1e-4)
    assert (found.tokens, found.instances) == (expected.tokens, expected.instances)


@only_cuda
def test_entropy_with_tf32_is_near_that_of_the_cpu(family):
    """Where that was allowed: factors of ten bits, so errors of a thousandth at most, and not none."""
    plain = both(family, torch.float32)[1]
    arithmetic.allow_tf32()
    try:
        expected, found = both(family, torch.float32)
        assert arithmetic.precision(torch.device(DEVICE)) in ("tf32", "float32")
    finally:
        arithmetic.allow_tf32(False)
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=2e-3)
    assert found.next_token_entropy == pytest.approx(expected.next_token_entropy, abs=2e-3)
    rounds = torch.cuda.get_device_capability()[0] >= arithmetic.TENSOR_CORES
    assert torch.equal(found.usage, plain.usage) != rounds


def test_entropy_in_float64_is_that_of_the_cpu(family):
    model = tiny(family, dtype=torch.float64)
    expected = measure(model, texts(), batch_size=4)
    found = measure(model.to(DEVICE), texts(), batch_size=4)
    # rotary angles and eager softmax stay in float32
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=1e-7)


def test_entropy_in_bfloat16_is_near_that_in_float32(family):
    if DEVICE == "cuda" and not torch.cuda.is_bf16_supported():
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


@contextmanager
def never_waiting():
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        import card

        before = card.waits()
        yield
        assert card.waits() == before


def test_a_batch_is_measured_without_waiting_for_the_device(monkeypatch):
    """But for once in transformers, which looks at the positions for several texts in a row of a batch."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    model = tiny("olmo", width=48, memories=80).to(DEVICE)
    sums = Sums(Memories(model), "abs", attention=False, next_token=True)
    padder = Padder(model, causal=True, pad_id=None, padding="mask", side="right", length=None)
    rows = [torch.tensor(ids) for ids in texts()]
    with torch.no_grad():
        sums.add(padder(rows))  # the first pass may build what later ones reuse
        with never_waiting():
            sums.add(padder(rows))
    assert sums.usage(14).isfinite().all()


@pytest.mark.parametrize("name", ["olmo", "gpt2"])
def test_a_model_on_the_disk_is_measured_on_the_device(name, tmp_path):
    """Blocks read from the disk one by one to the device: entropies, and a gradient through all of them."""
    tiny(name, width=48, memories=80, layers=3).save_pretrained(tmp_path)
    whole, _ = models.load(str(tmp_path), device="cpu", dtype="float32")
    model, _ = stream(str(tmp_path), device=DEVICE, dtype="float32")
    expected, found = (measure(each, texts(), batch_size=4, attention=True) for each in (whole, model))
    torch.testing.assert_close(found.layers, expected.layers, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.attention, expected.attention, rtol=0, atol=1e-4)
    gradients = []
    for each, device in ((whole, "cpu"), (model, DEVICE)):
        rows = (
            each.get_input_embeddings()(torch.tensor([[3, 4, 5, 6]], device=device)).detach().requires_grad_()
        )
        each(inputs_embeds=rows).logits[0, -1, 7].backward()
        gradients.append(rows.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------- training, evaluation, injection, resuscitation
class Rows:
    """Random rows of text, the same on every device."""

    def __init__(self, count=24, length=12):
        self.ids = torch.randint(3, 61, (count, length), generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.ids)

    def batch(self, indices):
        ids = self.ids[indices]
        return {"input_ids": ids, "labels": ids.clone()}


CAUSAL = ("olmo", "olmo2", "llama", "qwen2", "qwen3", "gpt2", "gptj", "gpt_neox")
RECIPE = Recipe(steps=6, batch_size=8, learning_rate=1e-3, warmup_steps=2, log_every=1, checkpoints=(3,))


def trained(name, device, dtype=torch.float64, **keywords):
    model = tiny(name, dtype=dtype).to(device)
    return model, train(
        model, Rows(), keywords.pop("recipe", RECIPE), keywords.pop("method", Method()), **keywords
    )


@pytest.mark.parametrize("name", CAUSAL)
def test_training_in_float64_takes_the_same_steps(name):
    expected, before = trained(name, "cpu")
    found, after = trained(name, DEVICE)
    # rotary angles are computed in float32 on each device
    assert [r["loss"] for r in after.steps] == pytest.approx([r["loss"] for r in before.steps], abs=1e-5)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(
            found.state_dict()[key].cpu(), value, rtol=0, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_accumulation_on_the_device_is_one_batch():
    whole, _ = trained("olmo", DEVICE)
    cut, _ = trained("olmo", DEVICE, recipe=replace(RECIPE, accumulation=4))
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)


def test_a_run_broken_off_on_the_device_goes_on_as_it_was(tmp_path):
    class Stop(Exception):
        pass

    class Break(Method):
        def gradients(self, model):
            self.done = getattr(self, "done", 0) + 1
            if self.done == 5:
                raise Stop

    whole, _ = trained("olmo", DEVICE, torch.float32, out=tmp_path / "whole")
    with pytest.raises(Stop):
        model = tiny("olmo").to(DEVICE)
        train(model, Rows(), RECIPE, Break(), out=tmp_path / "broken")
    again, _ = trained("olmo", DEVICE, torch.float32, out=tmp_path / "broken", method=Break())
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)  # atomics of a card add in any order


def test_bfloat16_training_follows_float32():
    if not bfloat16_runs(DEVICE):
        pytest.skip("this device does not multiply bfloat16")
    _, exact = trained("olmo", DEVICE, torch.float32)
    _, mixed = trained("olmo", DEVICE, torch.float32, recipe=replace(RECIPE, precision="bfloat16"))
    assert [r["loss"] for r in mixed.steps] == pytest.approx([r["loss"] for r in exact.steps], abs=0.03)


@pytest.mark.parametrize("name", CAUSAL)
def test_losses_are_those_of_the_cpu(name):
    model = tiny(name)
    expected = evaluation.loss(model, Rows())
    assert evaluation.loss(model.to(DEVICE), Rows()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["olmo", "llama", "gpt2", "gpt_neox"])
def test_resuscitation_is_that_of_the_cpu(name):
    usage = measure(tiny(name), texts(), batch_size=4).usage
    factors = multiplier(usage, 0.5, 1.0)
    expected, found = tiny(name), tiny(name).to(DEVICE)
    resuscitate_(expected, factors)
    resuscitate_(found, factors)
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-6, atol=0)
    with attention_temperature(expected, 2.0), attention_temperature(found, 2.0):
        ours, theirs = (measure(m, texts(), batch_size=4, attention=True) for m in (expected, found))
    torch.testing.assert_close(theirs.attention, ours.attention, rtol=0, atol=1e-4)


def test_injected_passages_are_read_on_the_device_as_on_the_cpu():
    plan = Schedule((((5, 6, 7, 2), (8, 9, 2)), ((10, 11, 12, 2),)), interval=2)
    _, before = trained("olmo", "cpu", method=Injection(plan))
    found, after = trained("olmo", DEVICE, method=Injection(plan))
    plain, _ = trained("olmo", DEVICE)
    assert [r["loss"] for r in after.steps] == pytest.approx([r["loss"] for r in before.steps], abs=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), found.parameters(), strict=True))


def test_waking_scales_updates_on_the_device():
    usage = measure(tiny("olmo", dtype=torch.float64), texts()).usage
    expected, _ = trained("olmo", "cpu", method=WakeIdle(usage, 1.0))
    found, _ = trained("olmo", DEVICE, method=WakeIdle(usage, 1.0))
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-5)


def edited(family: str, device: str) -> dict[int, torch.Tensor]:
    """MEMIT end to end on a device: moments, target vectors, keys, solve."""
    model = tiny(family, layers=3, dtype=torch.float64).to(device)
    memories, of, layers = Memories(model), naive_editing.drawn_contexts(), (0, 1)
    C = editing.key_moments(model, texts(), layers)
    z = editing.values(memories, of, layers[-1], editing.Search(steps=6, rate=0.3, clamp=3.0)).z

    def solve(layer: int, K: torch.Tensor, R: torch.Tensor) -> torch.Tensor:
        return editing.closed_form(K, R, C[layer], weight=3.0)

    return memit.spread(memories, of, z, layers, solve)


@pytest.mark.parametrize("family", naive_editing.CAUSAL)
def test_an_edit_is_that_of_the_cpu(family):
    expected, found = edited(family, "cpu"), edited(family, DEVICE)
    for layer, delta in expected.items():
        # rotary angles stay in float32, and so does GPT-J's attention
        torch.testing.assert_close(found[layer].cpu(), delta, rtol=1e-3, atol=1e-4 * delta.abs().max().item())


# ---------------------------------------------------------------------- domains one after another
LEARNED = (
    "ncl",
    "ewc",
    "kd",
    "replay",
    "derpp",
    "das",
    "hat",
    "elle",
    "adapter-sequential",
    "prompt",
    "lora",
    "cpt",
)


def course(name: str, family: str, device: str):
    """Two domains in float64 by a method, judged on both; dropout 0, so that nothing is drawn on the device."""
    model = tiny(family, dtype=torch.float64).to(device)
    goal = Masked(3, 61, special=(0, 1, 2)) if family == "roberta" else causal
    given = named.Given(3, 24, goal, width=12)
    changes = {"noise": 0.0, "initialisation": False} if name == "das" else {}
    changes |= {"samples": 8} if name in ("das", "ewc") else {}
    made = named.method(name, given, **changes)
    text = [Shifted(0), Shifted(7)]
    held = [Held(f"d{i}", rows, rows) for i, rows in enumerate(text)]
    recipe = Recipe(steps=3, batch_size=8, learning_rate=1e-3, weight_decay=0.0, clip=0.0)
    return model, learn(model, held, made, recipe, objective=goal, general=text[0])


class Shifted(Rows):
    """Other rows for each domain."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.ids = (self.ids - 3 + by) % 58 + 3


@pytest.mark.parametrize("family", ["olmo", "roberta"])
@pytest.mark.parametrize("name", LEARNED)
def test_domains_in_a_row_are_learned_as_on_the_cpu(name, family):
    if name in ("elle", "prompt") and family == "roberta":
        pytest.skip("these are made for models whose positions are not a table")
    expected, before = course(name, family, "cpu")
    found, after = course(name, family, DEVICE)
    for ours, theirs in zip(after.loss, before.loss, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert after.general == pytest.approx(before.general, abs=1e-4) and after.added == before.added
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(
            found.state_dict()[key].cpu(), value, rtol=0, atol=1e-3, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", ["ncl", "ewc", "das", "elle"])
def test_a_course_in_16_bits_follows_float32(name):
    """As at gpu scale: autocast around training, measuring and judging."""
    if not bfloat16_runs(DEVICE):
        pytest.skip("this device does not multiply bfloat16")
    losses = []
    for precision in ("float32", "bfloat16"):
        s = courses.OnCard(
            pretraining.settings("smoke"), 60, ("a", "b"), steps=3, rows=8, precision=precision
        )
        model = tiny("olmo").to(DEVICE)
        made = named.method(
            name, named.Given(3, 24, width=12), **({"samples": 8} if name in ("ewc", "das") else {})
        )
        held = [Held(f"d{i}", Shifted(7 * i), Shifted(7 * i)) for i in range(2)]
        with s.products(torch.device(DEVICE)):
            losses.append(learn(model, held, made, s.recipe()).loss)
    for exact, mixed in zip(*losses, strict=True):
        assert mixed == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("kind", [units.Measured, masking.Coursed, moving.Moved, pairing.Contrasted])
def test_what_chapter_09_looks_at_is_computed_on_the_device(kind, tmp_path):
    """In one process with the CPU's row: the models are those of smoke, trained once and in float64."""
    run = {units.Measured: units.importance, masking.Coursed: masking.run, moving.Moved: moving.movement}
    asked = looking.settings(kind, "smoke", masked=False)
    of = run.get(kind, pairing.contrast)
    labs = [Lab("smoke", Store(tmp_path / "store"), tmp_path, device=device) for device in ("cpu", DEVICE)]
    checkpoints.checkpoint(labs[0], asked.model, asked.step)
    expected = of(labs[0], asked).values
    for path in (tmp_path / "store").glob("unit_*/*.json"):
        path.unlink()
    assert of(labs[1], asked).values.keys() == expected.keys()


def test_chapter_08_looks_at_weights_on_the_device(tmp_path):
    asked = interference.settings("smoke")
    labs = [Lab("smoke", Store(tmp_path / "store"), tmp_path, device=device) for device in ("cpu", DEVICE)]
    expected = interference.run(labs[0], asked).values
    for path in (tmp_path / "store" / interference.STUDY).glob("*.json"):
        path.unlink()
    found = interference.run(labs[1], asked).values
    assert found["after"] == pytest.approx(expected["after"], abs=1e-4)
    for ours, theirs in zip(found["pairs"], expected["pairs"], strict=True):
        assert ours["path"][-1]["curvature"] == pytest.approx(
            theirs["path"][-1]["curvature"], rel=0.05, abs=1e-4
        )
