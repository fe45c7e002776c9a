"""Sizes of chapters 08 to 10 at every scale: settings, parameters by hand, the arithmetic of a scale, recorded rows."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_contents import lab as opened

from kemem import models
from kemem.continual import learn, named
from kemem.errors import BadInput
from kemem.runs import Store, canonical
from kemem.studies import (
    budget,
    checkpoints,
    courses,
    domain_sizes,
    footprint,
    growing,
    interference,
    lab,
    looking,
    masking,
    moving,
    operations,
    pairing,
    pretraining,
    standing,
    units,
    variants,
    work,
)
from kemem.studies.cards import MFU, card
from kemem.studies.courses import OnCard
from kemem.studies.forecast import forecast, seconds
from kemem.studies.lab import Lab
from kemem.studies.setup import objective
from kemem.studies.trials import SQUARE, TRIED
from kemem.training import bfloat16_runs

ROOT = Path(__file__).resolve().parents[1]
KINDS = (units.Measured, units.Shared, masking.Coursed, moving.Moved, pairing.Contrasted)
ISSUE = (
    "ncl", "one", "pool", "ewc", "kd", "replay", "derpp", "hat", "adapter-sequential", "adapter-parallel", "prompt",
    "lora", "cpt", "elle", "das",
)  # fmt: skip
SCALES = ("smoke", "laptop", "gpu", "paper")


def first(z: budget.Budget) -> dict[str, budget.Setting]:
    return {name: z.trials[name].trials()[0] for name in (*z.names, *z.square)}


def context(setup: Any) -> int:
    return setup.length


# ---------------------------------------------------------------------- settings at every scale
def test_the_scales_are_those_of_the_book():
    assert domain_sizes.SCALES == budget.SCALES == looking.SCALES == SCALES
    assert set(interference.SIZES) == set(SCALES) == set(growing._SIZES)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_a_comparison_is_one_that_can_be_run(scale, masked):
    z = budget.sizes(scale, masked=masked)
    s, count = z.base, len(z.base.domains)
    assert count >= 2 and len(set(s.domains)) == count
    assert all(sorted(order) == list(range(count)) for order in z.orders)
    assert {"ncl", "one", "pool", "ewc", "das"} <= set(z.names) <= set(TRIED) and set(z.square) <= set(SQUARE)
    if masked is (scale == "paper") and scale != "smoke":
        assert set(ISSUE) <= set(z.names)
    assert (s.model.setup.family in models.MASKED) is masked and s.step == s.model.steps[-1]
    assert s.length <= context(s.model.setup) and s.asked_length <= context(s.model.setup)
    assert z.aside and set(z.aside) <= set(z.seeds)
    assert scale == "smoke" or 1 <= z.measured <= s.steps * s.rows
    made = first(z)
    trials = budget.tuning(z)
    for name in (*z.names, *z.square):
        own = [of for other, of in trials if other == name]
        assert len(own) == len(set(own)) == min(z.tried, len(z.trials[name].trials()))
        assert z.trials[name].label == {**TRIED, **SQUARE}[name].label
        method = budget.one(z, name, made[name]).method
        if method in named.LEARNERS:
            given = named.Given(s.steps, s.length, width=s.model.setup.width)
            changes = dict(budget.one(z, name, made[name]).changes)
            assert named.available(method, given, **changes) >= 32
    grids = {kind: grid(z, made) for kind, grid in standing.GRIDS.items()}
    assert len(grids[""]) == len(z.names) * len(z.orders) * len(z.seeds)
    assert len(grids["part."]) == (len(z.parts) + 2) * len(z.seeds)
    for grid in (trials, *grids.values()):
        for row in grid.values():
            assert set(row.domains) == set(s.domains) and row.step in row.model.steps
            assert row.recipe().steps == row.steps  # refuses what is no recipe
            canonical(row)  # refuses what is no row


@pytest.mark.parametrize("scale", SCALES)
def test_the_look_at_the_weights_lies_within_its_course(scale):
    s = interference.settings(scale)
    assert s == interference.settings(scale, rate=s.course.learning_rate)
    assert s.course == budget.one(interference.bounds(scale), "ncl", budget.Setting(s.course.learning_rate))
    assert min(s.at) >= 1 and max(s.at) == s.course.steps
    assert all(1 <= place < len(s.course.domains) for place in s.seconds) and {0.0, 0.5, 1.0} <= set(s.shares)
    assert 1 <= s.samples <= s.course.steps * s.course.rows
    assert s.course.test_tokens // s.course.length >= 2  # two halves


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_looked_at_has_enough_rows(kind, scale, masked):
    s = looking.settings(kind, scale, masked=masked)
    assert (s.model, s.domains) == (lambda b: (b.model, b.domains))(budget.sizes(scale, masked=masked).base)
    assert s.length <= context(s.model.setup)
    read = {"samples": 1, "batch": getattr(s, "batches", 1)}
    assert all(getattr(s, name, 0) * times <= s.rows for name, times in read.items())
    assert set(kind.sized) <= set(SCALES) and canonical(s)
    for changes in kind.sized.values():
        assert set(changes) <= set(inspect.signature(kind).parameters)


@pytest.mark.parametrize("scale", SCALES)
def test_growth_is_compared_at_equal_arithmetic(scale):
    """FLOP of the arms from the sizes that they grow to; `longer` is to match what growth in depth takes."""
    z, arms = growing.sizes(scale), growing.arms(scale)
    setup, s = z.base.model.setup, z.base
    assert set(arms) == {
        "plain",
        "not grown",
        "longer",
        *z.grown,
        *(f"{kind}, not recovered" for kind in z.grown),
    }
    assert all(canonical(row) for row in growing.grid(scale).values())
    if scale == "smoke":
        return
    width, memories, layers, head = setup.width, setup.memories, setup.layers, setup.vocabulary * setup.width
    block = 4 * width**2 + 3 * width * memories

    def per_token(more: int) -> float:
        return 6 * (head + (layers + more) * block) + 12 * (layers + more) * width * s.length

    recovery = z.recovery["recovery_steps"] * z.recovery["recovery_rows"]
    grown = sum((s.steps * s.rows + recovery * (k > 0)) * per_token(k) for k in range(len(s.domains)))
    assert z.longer * s.rows * len(s.domains) * per_token(0) == pytest.approx(grown, rel=0.02)
    more = z.grown["memories"]["memories"] * 3 * width * layers
    assert more == pytest.approx(block, rel=0.01)


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_held_is_counted_of_every_method_in_turn(scale):
    z = budget.sizes(scale)
    for name, of in first(z).items():
        s = footprint.settings(z, name, of)
        assert s.course.steps == 1 and len(s.course.domains) == 2 and s.rows == z.base.steps * z.base.rows


def test_real_domains_are_those_with_published_tasks():
    assert budget.real("smoke") is None
    for scale, count in (("laptop", 4), ("gpu", 6)):
        z = budget.real(scale)
        assert z is not None and len(z.base.domains) == count
        assert set(domain_sizes.REAL) <= set(z.base.domains)
        chosen = budget.sizes(scale, masked=True)
        assert z.base.model == chosen.base.model and not set(z.base.domains) & set(chosen.base.domains)
        assert set(z.names) <= set(chosen.names), "nothing is chosen on these domains"
        grid = budget.published(scale, first(chosen))
        assert {name for name, _, _ in grid} == {*z.names, *z.parts}
    assert (
        budget.published("gpu", {})
        == {}
        == budget.published("smoke", first(budget.sizes("smoke", masked=True)))
    )


@pytest.mark.parametrize("read", [budget.sizes, interference.settings, growing.sizes])
def test_a_scale_that_is_none_is_refused(read):
    with pytest.raises(BadInput, match=r"at the scales smoke, laptop, gpu.*; got 'huge'"):
        read("huge")


# ---------------------------------------------------------------------- a card
class Card(SimpleNamespace):
    pass


@pytest.mark.parametrize(
    ("gib", "bfloat16", "small"), [(140, True, False), (15, True, True), (40, False, True)]
)
def test_a_small_card_gets_smaller_models(monkeypatch, gib, bfloat16, small):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card(total_memory=gib * 2**30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bfloat16)
    for masked in (False, True):
        usual, found = (budget.sizes("gpu", masked=masked, device=device).base for device in (None, "cuda"))
        assert (found != usual) is small
        assert found.precision == ("bfloat16" if bfloat16 else "float32")
        for s in (
            interference.settings("gpu", device="cuda").course if not masked else found,
            looking.settings(units.Measured, "gpu", masked=masked, device="cuda"),
            next(iter(growing.grid("gpu", device="cuda").values())) if not masked else found,
        ):
            assert s.model == found.model
    of = {name: z.trials()[0] for name, z in budget.sizes("gpu", masked=True).trials.items()}
    rows = budget.published("gpu", of, device="cuda")
    assert {s.model for s in rows.values()} == {budget.sizes("gpu", masked=True, device="cuda").base.model}
    assert budget.sizes("laptop", device="cuda") == budget.sizes("laptop")


def test_a_course_on_a_card_is_that_course_in_16_bits():
    s = OnCard(pretraining.settings("smoke"), 60, ("a", "b"), steps=8, rows=8, accumulation=4)
    plain = courses.Learning(s.model, s.step, s.domains, steps=8, rows=8)
    assert s.recipe() == replace(plain.recipe(), precision="bfloat16", accumulation=4)
    assert set(canonical(s)) - set(canonical(plain)) == {"precision", "accumulation"}


@pytest.mark.skipif(not bfloat16_runs("cpu"), reason="this processor does not multiply bfloat16")
@pytest.mark.parametrize(("method", "rate"), [("ncl", 0.1), ("das", 0.01), ("ewc", 0.1)])
def test_16_bits_of_a_weight_are_those_after_the_last_step(tmp_path, method, rate):
    """Autocast around a course must keep no copies: training in it takes the steps that it takes without it."""
    here = Lab("smoke", Store(tmp_path / "store"), tmp_path, device="cpu")
    base = budget.sizes("smoke").base
    names = ("model", "step", "domains", "steps", "rows", "length", "test_tokens", "examples", "asked_length")
    s = OnCard(
        **{name: getattr(base, name) for name in names}, method=method, dtype="float32", learning_rate=rate
    )
    s = replace(s, steps=6, rows=4, part="validation", changes=(("samples", 8),) if method != "ncl" else ())
    row = courses.run(here, s)
    model, tok, _ = checkpoints.load(here, s.model, s.step, dtype=s.dtype)
    goal = objective(s.model.setup, tok)
    held = [courses.rows_of(spec, tok, s.length, s) for spec in s.domains]
    made = courses.method(s, named.Given(s.steps, s.length, goal, 0, 24))
    expected = learn(model, held, made, s.recipe(), objective=goal)  # measured and judged in float32
    for found, right in zip(row.values["loss"], expected.loss, strict=True):
        assert found == pytest.approx(right, abs=0.02)
    moved = abs(expected.loss[0][0] - expected.before[0])
    assert moved > 0.1, "else there is nothing to see"


# ---------------------------------------------------------------------- parameters and arithmetic
def causal_parameters(s: Any) -> int:
    """OLMo: tied embeddings; query, key, value, output; gate, up, down; norms without parameters."""
    return s.vocabulary * s.width + s.layers * (4 * s.width**2 + 3 * s.width * s.memories)


def masked_parameters(s: Any) -> int:
    """RoBERTa: tied words, positions (two more than tokens, and the padding's), one type; biases and norms."""
    w = s.width
    tables = (s.vocabulary + s.length + 2 + 1 + 2) * w  # and the norm of the embeddings
    layer = 4 * (w**2 + w) + 2 * w * s.memories + s.memories + w + 4 * w
    head = w**2 + w + 2 * w + s.vocabulary
    return tables + s.layers * layer + head


@pytest.mark.parametrize("scale", ["laptop", "gpu"])
def test_parameters_by_hand(scale):
    causal, masked = (budget.sizes(scale, masked=m).base.model for m in (False, True))
    assert operations.parameters(causal.setup) == causal_parameters(causal.setup)
    found, expected = operations.parameters(masked.setup), masked_parameters(masked.setup)
    assert found == pytest.approx(
        expected, abs=4 * masked.setup.width
    )  # the padding's id moves the positions
    if scale == "gpu":
        assert 45e6 < operations.parameters(causal.setup) < 55e6
        assert found == pytest.approx(operations.parameters(causal.setup), rel=0.25)
        assert masked.setup.corpus == causal.setup.corpus and masked.setup.dropout == 0.1


def test_passes_of_das_are_those_of_its_chapter():
    causal, masked = (budget.sizes("gpu", masked=m) for m in (False, True))
    das = [budget.one(z, "das", budget.Setting(1e-4)) for z in (causal, masked)]
    assert [work.passes(s) for s in das] == [2.0, 4.0]
    assert work.passes(replace(das[1], variant="without-contrast")) == 1.0


def test_work_of_a_course_by_hand():
    z = budget.sizes("gpu")
    s = budget.one(z, "ncl", budget.Setting(1e-4), part="validation")
    n, count = causal_parameters(s.model.setup), len(s.domains)
    train, look = work.ROWS["courses"](s)
    assert train.flops["training"] == 6 * n * s.steps * s.rows * 164 * count
    told = (count + 1) * s.test_tokens + count * sum(s.examples) * s.asked_length
    assert look.flops["forward"] == 2 * n * (count + 1) * told
    h200 = card("H200")
    assert seconds(look, h200) == pytest.approx(sum(look.flops.values()) / (989e12 * MFU))
    (_, slow) = work.ROWS["courses"](replace(s, precision="float32"))
    assert seconds(slow, h200) == pytest.approx(sum(look.flops.values()) / (67e12 * MFU))


MINUTES = 20


def test_all_of_part_two_on_one_card_is_a_matter_of_minutes(tmp_path):
    """By arithmetic at 35 % of the card's peak, and 10 ms a step at least; the causal model is chapter 02's."""
    found = forecast([(opened(n, Store(tmp_path), scale="gpu"), n) for n in ("08", "09", "10")], card("H200"))
    causal, masked = sorted(found.trained, key=lambda model: model["family"])
    assert (causal["family"], masked["family"]) == ("olmo", "roberta")
    minutes = found.seconds / 60 - causal["hours"] * 60
    assert 5 < minutes < MINUTES, "a bound on nothing, or too much"
    assert found.rows["courses"][1] > 100 and found.memory < 141e9
    assert not any(model["parameters"] > 70e6 for model in found.trained)


# ---------------------------------------------------------------------- rows that are recorded
def test_recorded_rows_of_the_laptop_are_found_again():
    records = ROOT / "records" / "laptop"
    store = Store(records / "nowhere", records, mode="replay")
    for masked, trials in ((False, 147), (True, 31)):
        z = budget.sizes("laptop", masked=masked)
        found = budget.trials(store, "laptop", masked=masked)
        assert len(found) == trials
        made = budget.chosen(found)
        for grid in standing.GRIDS.values():
            asked = grid(z, made)
            assert len(budget.finished(store, asked)) == len(asked)
        assert variants.finished(store, "laptop", masked=masked, grid="part")[0]
        for kind, study in (
            (units.Measured, units.IMPORTANCE), (units.Shared, units.SHARES), (masking.Coursed, masking.STUDY),
            (moving.Moved, moving.STUDY), (pairing.Contrasted, pairing.STUDY),
        ):  # fmt: skip
            live = study not in (units.IMPORTANCE, units.SHARES)
            s = looking.settings(kind, "laptop", masked=masked)
            assert live or store.find(study, 1, s, recorded=True) is not None
    assert len(budget.finished(store, budget.published("laptop", made))) == 11
    rows = {k: store.find(growing.STUDY, 1, s, recorded=True) for k, s in growing.grid("laptop").items()}
    assert len(rows) == 27 and None not in rows.values()


def test_data_of_the_card_is_there():
    """Text of every domain fills the rows that a step reads, of the smallest too."""
    if not os.environ.get("KEMEM_DATA"):
        pytest.skip("KEMEM_DATA is not set: no real data at hand")
    s = budget.real("gpu").base
    text = courses.source("restaurants", "test").corpus  # the smallest
    characters = sum(map(len, text.part("train")))
    assert characters / 6 > 2 * s.rows * s.length  # a token of English has fewer than six


def test_scales_of_the_lab():
    assert set(SCALES) <= set(lab.SCALES)
