"""Arms with one thing changed: one tiny run of each against the parts it is made of, and what follows by arithmetic."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy
import pytest
import torch
from conftest import tiny, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_acquiring import LEARNING as ONE_LAYER
from test_acquiring import TINY, lab

from kemem import entropy
from kemem.corpora import instances
from kemem.errors import BadInput
from kemem.runs import Row, Store, canonical
from kemem.studies import (
    acquiring,
    arms,
    checkpoints,
    lifting,
    outcomes,
    pool,
    pretraining,
    realtext,
    resuscitating,
    robustness,
    stages,
)
from kemem.studies.arms import Arm
from kemem.studies.evidence import EVIDENCE
from kemem.studies.findings import Change
from kemem.studies.robustness import BASELINE, explains
from kemem.studies.setup import read, spread

MODEL = pretraining.Pretraining(TINY.with_(layers=2), stages=(0.0, 1.0), held_out=400, facts=8, written=2)
LEARNING = replace(ONE_LAYER, model=MODEL, tasks=8)
TEXTS = 12
PLAIN = Arm(LEARNING, LEARNING.corpus, texts=TEXTS)
OWN = "world:people=40,documents=300,sample=1"
CHANGED = {
    "plain": PLAIN,
    "lift": replace(PLAIN, edit="lift", fraction=0.5, gain=2.0),
    "same function": replace(PLAIN, edit="same function", fraction=0.5, gain=2.0),
    "wake": replace(PLAIN, wake=1.0),
    "T 2": replace(PLAIN, temperature=2.0),
    "cooled": replace(PLAIN, temperature=2.0, cooled=True),
    "SGD": replace(PLAIN, optimizer="sgd"),
    "own world": replace(PLAIN, learning=replace(LEARNING, corpus=OWN)),
}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    here = lab(tmp_path_factory.mktemp("arms"))
    return here, {name: arms.run(here, arm) for name, arm in CHANGED.items()}


@pytest.fixture(scope="module")
def lifted(learnt):
    here, _ = learnt
    return lifting.run(here, lifting.Lifting(LEARNING, 0.5, 2.0, texts=TEXTS))


def interval(values):
    """scipy's own, without our arithmetic."""
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return pytest.approx((float(numpy.mean(values)), float(found.low), float(found.high)))


def seen(change):
    return change.mean, change.low, change.high


def start(row) -> dict:
    return row.values["before"]


# ---------------------------------------------------------------------- a run
def test_nothing_changed_is_continual_learning_as_in_chapter_05(learnt):
    here, rows = learnt
    plain, expected = rows["plain"], acquiring.run(here, LEARNING)
    assert {r["step"] for r in plain.values["probes"]} == {0, 6}
    assert {r["step"] for r in expected.values["probes"]} == {0, 3, 6}
    for when in ("before", "after"):
        assert plain.values[when] == expected.values[when], "tasks, losses and entropy, bit for bit"
    for step in (0, 6):
        both = ([r for r in row.values["probes"] if r["step"] == step] for row in (plain, expected))
        assert next(both) == next(both)
    assert plain.values["loss"] == expected.values["losses"][-1]["loss"]
    assert (plain.values["steps"], plain.values["passages"]) == (6, 6)
    assert plain.provenance["corpus"]["spec"] == LEARNING.corpus


def test_idle_memories_of_the_first_layer_are_used_as_asked_when_measured_again(learnt):
    here, _ = learnt
    s = CHANGED["lift"]
    model, tok, _ = checkpoints.load(here, MODEL, 6)
    texts = spread(read(TINY.corpus).part("train"), TEXTS)
    ids = instances(texts, tok, TINY.length, limit=TEXTS).ids

    def usage():
        return entropy.measure(
            model, ids, batch_size=32, pad_id=stages.padding_id(tok), next_token=False
        ).usage

    before = usage()
    torch.testing.assert_close(
        arms.usage_of(here, MODEL.setup, TEXTS, model, tok), before, rtol=1e-12, atol=0
    )
    arms.changed(model, before, s)
    first, again = before[0], usage()[0]
    idle = first.argsort()[:12]  # half of 24
    busy = first.argsort()[12:]
    torch.testing.assert_close(again[idle], 2 * first.mean().expand(12), rtol=1e-9, atol=0)
    torch.testing.assert_close(again[busy], first[busy], rtol=1e-12, atol=0)


def test_the_same_function_begins_with_the_same_tasks_and_losses_and_another_entropy(learnt):
    _, rows = learnt
    plain, same = start(rows["plain"]), start(rows["same function"])
    assert same["tasks"] == plain["tasks"]
    assert same["loss"] == pytest.approx(plain["loss"], abs=1e-10)
    k = [outcomes.knowledge(rows[name], "before") for name in ("plain", "same function")]
    assert k[1] == pytest.approx(k[0], abs=1e-10)
    assert same["entropy"] - plain["entropy"] > 0.01
    assert start(rows["lift"])["loss"]["world"] != pytest.approx(plain["loss"]["world"], abs=1e-6)


def test_a_change_of_learning_is_seen_at_the_end_and_not_at_the_start(learnt):
    _, rows = learnt
    plain = rows["plain"]
    for name in ("wake", "cooled", "SGD"):
        assert start(rows[name]) == start(plain), name
    assert start(rows["own world"])["tasks"] == start(plain)["tasks"]
    for name in set(CHANGED) - {"plain"}:
        moved = abs(outcomes.knowledge(rows[name], "after") - outcomes.knowledge(plain, "after"))
        assert moved > 1e-6 and rows[name].values["after"]["entropy"] != plain.values["after"]["entropy"], (
            name
        )
    for name in ("wake", "SGD", "own world"):
        assert outcomes.knowledge(rows[name], "before") == outcomes.knowledge(plain, "before"), name
    assert start(rows["T 2"])["loss"]["world"] != start(plain)["loss"]["world"], (
        "a constant T is looked at too"
    )


def test_a_temperature_that_falls_is_probed_as_it_is_when_the_run_begins(learnt):
    """Tasks, losses and entropy of its start are those of the checkpoint; K of the start is that at T = 2."""
    _, rows = learnt
    cooled, constant = (outcomes.knowledge(rows[name], "before") for name in ("cooled", "T 2"))
    assert cooled == constant != outcomes.knowledge(rows["plain"], "before")


def test_passages_do_not_follow_the_corpus(learnt):
    here, rows = learnt
    model, tok, _ = checkpoints.load(here, MODEL, 6)
    told = acquiring.fictional(LEARNING)
    with pytest.raises(BadInput, match="that the new domain does not contradict"):
        acquiring.fictional(CHANGED["own world"].learning)
    k = entropy.probe(model, tok, told).knowledge()
    assert outcomes.knowledge(rows["own world"], "before") == pytest.approx(k, abs=1e-12)
    assert rows["own world"].provenance["corpus"]["spec"] == OWN


def test_updates_by_hand(learnt):
    moved = entropy.Updates(
        keys=torch.tensor([[1.0, 1.0, 2.0, 4.0]], dtype=torch.float64),
        values=torch.tensor([[3.0, 2.0, 1.0, 0.5]], dtype=torch.float64),
    )
    found = arms._concentration(moved, torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64))
    h = sum(-p * math.log(p) for p in (1 / 8, 1 / 8, 1 / 4, 1 / 2))
    assert found["share of keys"] == pytest.approx([math.exp(h) / 4])
    assert found["rank of values"] == pytest.approx([-1.0])
    assert found["rank of keys"] == pytest.approx([3 / math.sqrt(10)])  # ranks 1.5, 1.5, 3, 4 with 1, 2, 3, 4
    updates = learnt[1]["plain"].values["updates"]
    assert set(updates) == {f"{a} of {b}" for a in ("share", "rank") for b in ("keys", "values")}
    assert all(len(each) == 2 for each in updates.values())
    assert all(1 / 24 < v <= 1 for name in ("keys", "values") for v in updates[f"share of {name}"])


# ---------------------------------------------------------------------- the start, weight by weight
def edited(edit: str, *, seed: int = 0, layers: str = "all", arm_seed: int = 0, family: str = "olmo"):
    """Weights before and after an edit of a tiny model of three layers, and Algorithm 1's factors."""
    model = tiny(family, layers=3, dtype=torch.float64)
    usage = entropy.measure(model, [*tokens(3, 14)], batch_size=4, next_token=False).usage
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    s = Arm(replace(LEARNING, seed=seed), "", edit, 0.5, 2.0, layers, seed=arm_seed)
    arms.changed(model, usage, s)
    ordered = usage.sort(-1).values
    threshold = (ordered[:, 9:10] + ordered[:, 10:11]) / 2  # the median of 20
    factors = torch.where(usage <= threshold, 2 * usage.mean(-1, keepdim=True) / usage, 1.0)
    return before, dict(model.named_parameters()), factors


def applied(before, after, layer: int) -> torch.Tensor:
    """By what each row of `up` was multiplied."""
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    ratio = after[name] / before[name]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-12, atol=0)
    return ratio[:, 0].detach()


def differing(before, after) -> set[str]:
    return {name for name, p in after.items() if not torch.equal(p, before[name])}


UP = {f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)}
DOWN = {name.replace("up", "down") for name in UP}


def test_no_edit_leaves_every_weight():
    before, after, _ = edited("")
    assert differing(before, after) == set()


def test_a_lift_multiplies_keys_by_the_factors_of_algorithm_1():
    before, after, factors = edited("lift")
    assert differing(before, after) == UP
    for layer in range(3):
        torch.testing.assert_close(applied(before, after, layer), factors[layer], rtol=1e-12, atol=0)


def test_a_shuffled_lift_deals_out_the_same_factors_by_the_seed_of_learning():
    before, after, factors = edited("shuffled lift")
    assert differing(before, after) == UP
    for layer in range(3):
        found = applied(before, after, layer)
        torch.testing.assert_close(found.sort().values, factors[layer].sort().values, rtol=1e-12, atol=0)
        assert not torch.allclose(found, factors[layer]), "dealt out anew"
    again, other = edited("shuffled lift", arm_seed=5)[1], edited("shuffled lift", seed=1)[1]
    assert differing(after, again) == set() and differing(after, other) == UP


def test_the_same_function_divides_values_by_what_keys_are_multiplied_by():
    before, after, factors = edited("same function")
    assert differing(before, after) == UP | DOWN
    for layer in range(3):
        torch.testing.assert_close(applied(before, after, layer), factors[layer], rtol=1e-12, atol=0)
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        torch.testing.assert_close(after[name] * factors[layer], before[name], rtol=1e-12, atol=1e-15)


def test_halves_leave_the_other_layers_bit_for_bit_and_cover_all():
    before, whole, _ = edited("lift")
    _, first, _ = edited("lift", layers="first half")
    _, last, _ = edited("lift", layers="last half")
    one, other = differing(before, first), differing(before, last)
    assert one == {n for n in UP if "layers.2" not in n} and other == UP - one
    assert all(torch.equal(whole[name], (first if name in one else last)[name]) for name in UP)
    for count in range(1, 7):
        halves = [[arms.LAYERS[half](i, count) for i in range(count)] for half in resuscitating.HALVES]
        assert all(a != b for a, b in zip(*halves, strict=True))
        assert sum(halves[0]) - sum(halves[1]) == count % 2, "the middle layer is of the first half"


def test_without_a_gate_the_values_are_lifted():
    before, after, factors = edited("lift", family="gpt2")
    name = "transformer.h.0.mlp.c_proj.weight"
    assert differing(before, after) == {name.replace("0", str(i)) for i in range(3)}
    torch.testing.assert_close(after[name], before[name] * factors[0][:, None], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"edit": "raise"}, "an edit is one of .* got 'raise'"),
        ({"layers": "middle"}, "layers are one of .* got 'mid"),
    ],
)
def test_unknown_edits_and_layers_are_refused_in_one_line(wrong, said):
    with pytest.raises(BadInput, match=said) as refused:
        replace(PLAIN, **wrong)
    assert "\n" not in str(refused.value)


def test_arms_of_a_scale():
    s = arms.settings("laptop", seed=2, share=0.5, wake=0.5, epochs=3, texts=7)
    assert (s.learning.step, s.learning.seed, s.learning.model.setup.seed, s.seed) == (2000, 2, 2, 2)
    assert (s.wake, s.texts, s.learning.epochs, s.learning.steps) == (0.5, 7, 3, 600)
    assert s.learning.learning_rate == 4e-3 and s.told == s.learning.corpus
    with pytest.raises(BadInput, match=r"arms .* have sizes at the scales .* got 'huge'"):
        arms.settings("huge")
    for model in (None, robustness.smaller("laptop")):
        with pytest.raises(BadInput, match="a stage is one of the shares"):
            arms.settings("laptop", share=0.3, model=model)


# ---------------------------------------------------------------------- lifted, nothing learnt
def entropy_of(curve) -> float:
    p = numpy.array(curve) / numpy.sum(curve)
    return float(-(p * numpy.log(p)).sum())


def test_the_entropy_that_a_lift_is_to_have_is_measured_again(lifted):
    usage, foretold = lifted.values["usage"], lifted.values["predicted_entropy"]
    assert len(foretold) == 2
    assert lifted.values["places"] == pytest.approx([(i + 0.5) / 24 for i in range(24)], abs=1e-6)
    assert entropy_of(usage["after"][0]) == pytest.approx(foretold[0], abs=1e-9)
    assert entropy_of(usage["after"][1]) != pytest.approx(foretold[1], abs=1e-9), "its input is another one"
    for layer in range(2):
        before = numpy.array(usage["before"][layer])
        assert (numpy.diff(before) >= 0).all() and before.mean() == pytest.approx(1.0)
        expected = numpy.where(numpy.arange(24) < 12, 2.0, before)
        assert usage["predicted"][layer] == pytest.approx(expected, rel=1e-9)
        assert usage["same"][layer] == pytest.approx(expected, rel=1e-9)
        assert entropy_of(usage["same"][layer]) == pytest.approx(foretold[layer], abs=1e-9)
    assert (lifted.values["idle"], lifted.values["memories"]) == (24, 48)
    least = min(curve[0] for curve in usage["before"])
    assert lifted.values["largest_factor"] == pytest.approx(2 / least, rel=1e-9)


def test_starts_without_learning_are_those_of_the_arms(learnt, lifted):
    _, rows = learnt
    for name, arm in (("unchanged", "plain"), ("lifted", "lift"), ("same function", "same function")):
        found, expected = lifted.values["starts"][name], start(rows[arm])
        assert found["tasks"] == expected["tasks"], name
        for key in ("loss", "layers"):
            assert found[key] == pytest.approx(expected[key], abs=1e-10), (name, key)
    unchanged, same = (lifted.values["starts"][name] for name in ("unchanged", "same function"))
    assert same["tasks"] == unchanged["tasks"] and same["loss"] == pytest.approx(unchanged["loss"], abs=1e-10)


def test_numbers_of_a_lift_for_prose(tmp_path):
    assert lifting.results(Store(tmp_path), "paper") == lifting.results(Store(tmp_path), "smoke") == {}
    begin = {"entropy": 7.5, "tasks": {"a": 0.25, "b": 0.75}, "loss": {"world": 1.5, "new domain": 3.0}}
    values = {"largest_factor": 40.0, "starts": {"lifted": begin}}
    Store(tmp_path).row(lifting.STUDY, lifting.VERSION, lifting.settings("smoke"), lambda _: values)
    found = lifting.results(Store(tmp_path), "smoke")
    said = {name: result.value for name, result in found.items()}
    assert said == {
        "lifting.largest": 40.0, "lifting.lifted.H": 7.5, "lifting.lifted.P": 50.0, "lifting.lifted.loss": 1.5,
    }  # fmt: skip


# ---------------------------------------------------------------------- other settings
def flat(value, name=""):
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, each in value.items() for k, v in flat(each, f"{name}.{key}".strip(".")).items()}


DIFFER = {
    BASELINE: set(),
    "batch x 5": {"learning.rows", "learning.interval"},
    "rate x 2.5": {"learning.learning_rate"},
    "rate / 4": {"learning.learning_rate"},
    "3 epochs": {"learning.epochs"},
    "own world": {"learning.corpus"},
    "smaller model": {f"learning.model.setup.{n}" for n in ("layers", "width", "memories")},
    "equal ratio": {"learning.learning_rate"},
    "SGD": {"optimizer", "learning.learning_rate", "learning.weight_decay"},
}


@pytest.mark.parametrize("share", arms.SCALES["laptop"].stages)
@pytest.mark.parametrize("name", robustness.names("laptop"))
def test_one_factor_differs_from_the_baseline(name, share):
    base, other = (flat(canonical(robustness.SETTINGS[n]("laptop", 1, share))) for n in (BASELINE, name))
    assert base.keys() == other.keys()
    assert {key for key in base if base[key] != other[key]} == DIFFER[name]


def test_factors_are_what_their_names_say():
    base, batch, more, less, thrice = (
        robustness.SETTINGS[n]("laptop", 0, 1.0).learning
        for n in (BASELINE, "batch x 5", "rate x 2.5", "rate / 4", "3 epochs")
    )
    sgd = robustness.SETTINGS["SGD"]("laptop", 0, 1.0).learning
    shrinks = sgd.learning_rate * sgd.weight_decay
    assert shrinks == pytest.approx(base.learning_rate * base.weight_decay, rel=1e-12), "as much a step"
    assert batch.rows == 5 * base.rows and batch.rows * batch.steps == base.rows * base.steps
    assert batch.slots == base.slots, "as many tellings"
    assert more.learning_rate == 2.5 * base.learning_rate and 4 * less.learning_rate == base.learning_rate
    assert thrice.steps == 3 * base.steps


@pytest.mark.parametrize("share", arms.SCALES["laptop"].stages)
def test_an_equal_ratio_goes_on_at_the_rate_that_pretraining_had(share):
    found = robustness.SETTINGS["equal ratio"]("laptop", 0, share).learning.learning_rate
    steps, warm, peak = 4000, 200, 4e-3
    done = (share * steps - warm) / (steps - warm)
    assert found == pytest.approx(peak * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2), rel=1e-12)
    assert share < 1 or found == pytest.approx(peak / 10)


def test_passages_are_the_same_in_all_settings():
    asked = {n: robustness.SETTINGS[n]("laptop", 0, 1.0) for n in robustness.SETTINGS}
    read_ = {  # all that passages depend on
        (s.told, s.learning.model.setup.corpus, s.learning.paraphrased, s.learning.once, s.learning.slots)
        for s in asked.values()
    }
    assert len(read_) == 1
    base = acquiring.fictional(asked[BASELINE].learning)
    assert len(base) == 30
    for s in asked.values():
        assert acquiring.fictional(replace(s.learning, corpus=s.told)) == base


def test_an_arm_at_smoke_scale_is_one_of_those_at_laptop_scale():
    assert set(robustness.names("smoke")) <= set(robustness.names("laptop")) == set(DIFFER)


# ---------------------------------------------------------------------- numbers from made-up rows
def values(k, p, h=(9.0, 8.0), loss=1.0, updates=None) -> dict:
    """Of a row: K, P and entropy before and after; the loss on the new domain at the start."""
    probes = [
        {"step": s, "group": "all", "kind": "all", "target_mean": v, "row_mean": v}
        for s, v in zip((0, 9), k, strict=True)
    ]
    ends = [
        {
            "tasks": {"a": 0.5 * mean, "b": 1.5 * mean},
            "entropy": e,
            "loss": {"world": 2.0, "new domain": loss},
        }
        for mean, e in zip(p, h, strict=True)
    ]
    return {
        "before": ends[0], "after": ends[1], "probes": probes, "steps": 9, "passages": 30, "updates": updates or {},
    }  # fmt: skip


def row(*of, name="", **more) -> Row:
    return Row("arms", 1, {"name": name}, values(*of, **more), {}, "live")


def outcome(values_) -> dict[int, list[Row]]:
    """Seed -> stages, of rows that hold one number."""
    return {
        seed: [Row("arms", 1, {}, {"v": v}, {}, "live") for v in each] for seed, each in enumerate(values_)
    }


def v(row_):
    return row_.values["v"]


def test_gaps_are_last_less_first_seed_by_seed():
    rows = outcome([[1.0, 50.0, 4.0], [2.0, -50.0, 3.5], [0.0, 0.0, 5.0]])
    assert robustness.gaps(rows, v) == [3.0, 1.5, 5.0]
    assert seen(robustness.gap(rows, v)) == interval([3.0, 1.5, 5.0])
    base = outcome([[0.0, 1.0], [0.0, 2.0], [0.0, 2.5]])
    assert seen(robustness.gap_less(rows, base, v)) == interval([2.0, -0.5, 2.5])


def test_a_seed_without_an_outcome_is_left_out_of_both():
    rows, base = outcome([[None, 9.0], [0.0, 2.0], [0.0, 4.0]]), outcome([[0.0, 7.0], [0.0, 1.0], [0.0, 1.5]])
    assert robustness.gaps(rows, v) == [2.0, 4.0]
    assert seen(robustness.gap_less(rows, base, v)) == interval([1.0, 2.5])
    assert seen(robustness.gap_less(base, rows, v)) == interval([-1.0, -2.5])
    assert robustness.gap(outcome([[None, 1.0]]), v) is None
    assert robustness.gap_less(rows, outcome([[None, 1.0]]), v) is None


whole = st.integers(-50, 50).map(float)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(whole, min_size=2, max_size=4), min_size=2, max_size=4), whole)
def test_a_constant_added_to_all_outcomes_changes_no_gap(each, constant):
    rows = outcome(each)
    moved = outcome([[x + constant for x in stages_] for stages_ in each])
    assert robustness.gap(rows, v) == robustness.gap(moved, v)
    assert robustness.gap_less(rows, moved, v).mean == 0


def test_the_slope_over_domains_is_that_of_a_line():
    losses = {
        "near": ((1.0, 1.5), (2.0, 2.0)),
        "far": ((2.0, 2.5), (2.5, 3.0)),
        "other": ((4.0, 3.0), (3.5, 5.0)),
    }
    a = {"near": ((5.0, 2.0), (1.0, 1.0)), "far": ((7.0, 3.0), (1.5, 4.0)), "other": ((6.0, 9.0), (1.0, 3.0))}
    domains = [
        {
            seed: [
                Row("arms", 1, {}, {"before": {"loss": {"new domain": x}}, "v": y}, {}, "live")
                for x, y in zip(losses[name][seed], a[name][seed], strict=True)
            ]
            for seed in range(2)
        }
        for name in losses
    ]
    slopes = [
        numpy.mean([
            numpy.polyfit([losses[n][seed][i] for n in losses], [a[n][seed][i] for n in losses], 1)[0]
            for i in range(2)
        ])
        for seed in range(2)
    ]  # fmt: skip
    assert seen(robustness.within_stage(domains, v)) == interval(slopes)
    for seed in range(2):
        domains[0][seed][0].values["v"] = None
    left = [
        numpy.polyfit([losses[n][seed][1] for n in losses], [a[n][seed][1] for n in losses], 1)[0]
        for seed in range(2)
    ]
    assert seen(robustness.within_stage(domains, v)) == interval(left), "a stage where one answered nothing"


def test_concentration_is_the_mean_over_layers():
    rows = {
        seed: [
            row((-2, -1), (0.5, 0.4), updates={"share of values": [0.1 + seed, 0.3 + i]}) for i in range(2)
        ]
        for seed in range(2)
    }
    found = robustness.concentration(rows, "share of values")
    assert found[0] == pytest.approx([0.2, 0.7]) and found[1] == pytest.approx([0.7, 1.2])


def turned(change: Change) -> Change:
    low = None if change.low is None else -change.high
    return Change(-change.mean, low, None if change.low is None else -change.low, change.seeds)


@pytest.mark.parametrize(
    ("left", "less", "said"),
    [
        ((9.0, 7.0, 11.0), (-1.0, -3.0, 1.0), "survives"),
        ((15.0, 13.0, 17.0), (5.0, 3.0, 7.0), "survives"),
        ((5.0, 3.0, 7.0), (-5.0, -7.0, -3.0), "in part"),
        ((1.0, -1.0, 3.0), (-9.0, -11.0, -7.0), "explained"),
        ((-2.0, -3.0, -1.0), (-12.0, -14.0, -10.0), "explained"),
        ((2.0, -3.0, 7.0), (-8.0, -20.0, 4.0), "undecided"),
        ((5.0, None, None), (-5.0, None, None), "undecided"),
    ],
)
def test_what_an_arm_without_a_rival_says_of_it(left, less, said):
    a, b = Change(*left, 3), Change(*less, 3)
    assert explains(a, b) == explains(turned(a), turned(b)) == said, "also where the gap is below 0"
    assert explains(None, b) == explains(a, None) == "undecided"


def test_settings_of_which_a_row_is_missing_are_left_out(tmp_path):
    store = Store(tmp_path)
    assert robustness.finished(store, "smoke") == robustness.finished(store, "paper") == {}
    a = {0.5: (-2.0, -1.0), 1.0: (-2.0, -1.5)}  # K
    for name in robustness.names("smoke"):
        for share in (0.5, 1.0):
            if (name, share) != ("SGD", 1.0):
                ranks = {"rank of values": [0.25 * share, 0.75 * share]}
                put = values(a[share], (0.5, 0.4) if share == 1.0 else (0.5, 0.45), updates=ranks)
                store.row(
                    arms.STUDY, arms.VERSION, robustness.SETTINGS[name]("smoke", 0, share), lambda _, p=put: p
                )
    found = robustness.finished(store, "smoke")
    assert set(found) == set(robustness.SMOKE) - {"SGD"}
    assert [r.settings["learning"]["step"] for r in found[BASELINE][0]] == [30, 60]
    numbers = {name: result.value for name, result in robustness.results(store, "smoke").items()}
    assert numbers["rivals.own world.A"] == pytest.approx(-25.0)  # 25 % less 50 %
    assert numbers["rivals.baseline.F"] == pytest.approx(10.0)  # 20 % less 10 %
    assert (numbers["rivals.settings"], numbers["rivals.steps"], numbers["rivals.passages"]) == (4, 9, 30)
    assert numbers["rivals.baseline.rank"] == pytest.approx(0.375)  # 0.25 and 0.5, each a mean over layers
    assert numbers["rivals.baseline.K before"] == -2.0 and numbers["rivals.baseline.K after"] == -1.5
    assert numbers["rivals.baseline.P before"] == 50.0 and numbers[
        "rivals.baseline.P after"
    ] == pytest.approx(40.0)
    assert not any("SGD" in name for name in numbers)


# ---------------------------------------------------------------------- woken
def test_what_is_asked_at_laptop_scale():
    asked = resuscitating.asked("laptop")
    assert {group: len(named) for group, named in asked.items()} == {
        "last": 18, "20 %": 2, "50 %": 5, "75 %": 5, "ungated": 3,
    }  # fmt: skip
    assert list(asked["20 %"]) == [BASELINE, "p 0.5, q 2"]
    for group in ("50 %", "75 %"):
        assert list(asked[group]) == [BASELINE, *(f"p 0.5, q {q}" for q in ("0.5", "1", "2", "3"))]
    assert list(asked["ungated"]) == [BASELINE, "p 0.5, q 1", "p 0.5, q 2"]
    gains, temperatures = ["0.5", "1", "2", "3"], ["1.5", "2", "3"]
    assert set(asked["last"]) == {
        BASELINE, *(f"p 0.5, q {q}" for q in gains), *(f"p {p}, q 1" for p in ("0.25", "0.75", "0.9")),
        *(f"T {t}" for t in temperatures), "T 2, cooled", "shuffled, q 2", "same function, q 2", "wake 0.5", "wake 1",
        "first half, q 2", "last half, q 2",
    }  # fmt: skip
    one = asked["75 %"]["p 0.5, q 3"](2)
    assert (one.learning.step, one.learning.seed, one.edit, one.fraction, one.gain) == (
        3000,
        2,
        "lift",
        0.5,
        3.0,
    )
    cooled = asked["last"]["T 2, cooled"](0)
    assert (cooled.temperature, cooled.cooled, cooled.edit, cooled.learning.step) == (2.0, True, "", 4000)
    assert (
        asked["last"]["wake 0.5"](1).wake == 0.5 and asked["last"]["last half, q 2"](0).layers == "last half"
    )
    assert asked["last"][BASELINE](1) == robustness.SETTINGS[BASELINE]("laptop", 1, 1.0), (
        "one row for both chapters"
    )
    every = [make(seed) for named in asked.values() for make in named.values() for seed in range(3)]
    assert len(set(map(repr, every))) == 33 * 3, "no arm stands twice"


def test_what_is_asked_at_smoke_scale():
    asked = resuscitating.asked("smoke")
    assert {group: list(named) for group, named in asked.items()} == {
        "last": list(resuscitating.SMOKE), "50 %": [BASELINE, "p 0.5, q 2"], "ungated": [BASELINE, "p 0.5, q 1"],
    }  # fmt: skip
    assert asked["50 %"][BASELINE](0).learning.step == 30


@pytest.mark.parametrize("scale", ["smoke", "laptop", "gpu"])
def test_the_ungated_model_has_as_many_weights_in_its_memories(scale):
    ungated, gated = resuscitating.ungated(scale, 1).setup, robustness.smaller(scale, 1).setup
    assert (ungated.family, ungated.seed) == ("gpt2", 1)
    assert 2 * ungated.memories == 3 * gated.memories
    same = {k: x for k, x in canonical(ungated).items() if k not in ("family", "memories")}
    assert same == {k: x for k, x in canonical(gated).items() if k not in ("family", "memories")}


def test_gains_are_against_both_starts():
    plain = [row((-2.0, -1.0), (0.50, 0.40)), row((-4.0, -3.0), (0.60, 0.45))]
    woken = [row((-2.5, -0.5), (0.40, 0.42)), row((-5.0, -3.5), (0.50, 0.30))]
    expected = {
        "A": [75.0 - 50.0, 12.5 - 25.0],
        "F": [16.0 - 20.0, 50.0 - 25.0],
        "K": [0.5, -0.5],
        "P": [2.0, -15.0],
        "A as published": [80.0 - 50.0, 30.0 - 25.0],
        "F as published": [-5.0 - 20.0, 40.0 - 25.0],
    }
    assert expected.keys() == resuscitating.QUANTITIES.keys()
    for quantity, each in expected.items():
        assert resuscitating.gains(woken, plain, quantity) == pytest.approx(each), quantity
        assert seen(resuscitating.gained(woken, plain, quantity)) == interval(each), quantity
        assert resuscitating.gains(plain, plain, quantity) == [0.0, 0.0]
    silent = [row((-2.5, -0.5), (0.0, 0.42)), woken[1]]
    assert resuscitating.gained(silent, plain, "F as published") is None
    assert resuscitating.gains(silent, plain, "F") == pytest.approx(expected["F"]), (
        "the changed start is not asked"
    )
    for quantity in ("F", "F as published"):
        assert resuscitating.gains(woken, [silent[0], plain[1]], quantity) is None
    assert resuscitating.gains(woken, [silent[0], plain[1]], "P") is not None


def test_entropies_at_the_start_and_at_the_end():
    of = ((-2.0, -1.0), (0.5, 0.4))
    plain = [row(*of, h=(9.0, 8.0)), row(*of, h=(9.5, 8.0))]
    woken = [row(*of, h=(10.0, 8.5)), row(*of, h=(11.0, 9.5))]
    begin, end, level = resuscitating.entropies(woken, plain)
    assert seen(begin) == interval([1.0, 1.5]) and seen(end) == interval([0.5, 1.5])
    assert seen(level) == interval([8.5, 9.5])


def test_woken_arms_of_which_rows_are_there(tmp_path):
    store = Store(tmp_path)
    for named in resuscitating.asked("smoke").values():
        for name, make in named.items():
            if name != "T 2":
                k = -0.5 if "q 2" in name else -1.0
                put = values((-2.0, k), (0.5, 0.4), h=(9.5 if "q 2" in name else 9.0, 8.0))
                store.row(arms.STUDY, arms.VERSION, make(0), lambda _, p=put: p)
    found = resuscitating.finished(store, "smoke")
    assert set(found["last"]) == set(resuscitating.SMOKE) - {"T 2"} and set(found) == {
        "last",
        "50 %",
        "ungated",
    }
    numbers = {name: result.value for name, result in resuscitating.results(store, "smoke").items()}
    assert numbers["waking.p 0.5, q 2.K"] == pytest.approx(0.5)
    assert numbers["waking.50 %.p 0.5, q 2.A"] == pytest.approx(25.0)
    assert numbers["waking.p 0.5, q 2.H"] == 0.5 and numbers["waking.wake 1.H"] == 0.0
    assert numbers["waking.models"] == 1
    assert resuscitating.finished(store, "paper") == resuscitating.results(store, "paper") == {}


# ---------------------------------------------------------------------- rows of the stages, side by side
def test_jobs_of_all_seeds_come_back_in_their_places(tmp_path, monkeypatch):
    asked = []

    def rows(lab_, jobs):
        asked.extend(jobs)
        return [
            Row("entropy", 1, canonical(arguments[0]), i, {}, "live") for i, (_, arguments) in enumerate(jobs)
        ]

    monkeypatch.setattr(pool, "rows", rows)
    here = replace(lab(tmp_path), scale="laptop")
    headline = stages.of_all_seeds(here)
    assert [r.settings["model"]["seed"] for r in headline] == [0, 1, 2]
    assert all(r.settings["attention"] and r.settings["marks"] for r in headline)
    assert all(function is stages.recorded for function, _ in asked)
    seeds = [arguments[0].model.seed for _, arguments in asked]
    assert seeds == [0, 1, 2] * (len(asked) // 3), "neighbours wait for different models"
    found = {(s.corpus, s.coefficient, s.attention, s.seed) for _, (s,) in asked}
    about = stages.subject("laptop")
    assert len(found) == 3 * (1 + len(about.corpora) + len(stages.readings(about)) - 1), (
        "a reading is the text's own"
    )

    asked.clear()
    real = realtext.rows(here)
    for arm, texts in realtext.settings("laptop").items():
        for text, one in texts.items():
            assert real[arm][text].settings == canonical(one)
    assert [s.model.setup.weight_decay for _, (s,) in asked] == [3.6, 0.0] * 4
    assert realtext.rows(lab(tmp_path)) == {}


# ---------------------------------------------------------------------- evidence
SEEDS, SHARES = (0, 1, 2), (0.2, 0.5, 0.75, 1.0)


def drawn(*place) -> tuple[tuple[float, float], tuple[float, float]]:
    """K and P of a made-up row, before and after."""
    some = random.Random(repr(place)).uniform
    return (some(-3, -2), some(-2, -1)), (some(0.5, 0.7), some(0.2, 0.5))


class Made:
    """Made-up rows of both chapters, and A, F, K, P of them in percent and nats by plain arithmetic."""

    def __init__(self, **other):
        self.other = other

    def numbers(self, *place):
        return self.other.get(repr(place), drawn(*place))

    def settings(self):
        return {
            name: {
                seed: [
                    row(*self.numbers(name, share, seed), name=f"{name} {share} {seed}") for share in SHARES
                ]
                for seed in SEEDS
            }
            for name in robustness.SETTINGS
        }

    def woken(self):
        return {
            group: {
                name: [row(*self.numbers(group, name, seed), name=f"{group} {name} {seed}") for seed in SEEDS]
                for name in named
            }
            for group, named in resuscitating.asked("laptop").items()
        }

    def A(self, *place):
        (before, after), _ = self.numbers(*place)
        return 100 * (after - before) / -before

    def F(self, *place):
        _, (before, after) = self.numbers(*place)
        return 100 * (1 - after / before)

    def K(self, *place):
        return self.numbers(*place)[0][1]

    def P(self, *place):
        return 100 * self.numbers(*place)[1][1]

    def gain(self, quantity, name, seed, group="last"):
        """With the change less without."""
        ((k0, _), (p0, _)), here, there = (
            self.numbers(group, BASELINE, seed),
            (group, name, seed),
            (group, BASELINE, seed),
        )
        if quantity.endswith("as published"):
            of = {"A": self.A, "F": self.F}[quantity[0]]
            return of(*here) - of(*there)
        k, p = self.K(*here) - self.K(*there), self.P(*here) - self.P(*there)
        return {"A": 100 * k / -k0, "F": -p / p0, "K": k, "P": p}[quantity]


def patched(monkeypatch, made: Made, without=()) -> Made:
    def woken(store, scale):
        rows = made.woken() if scale == "laptop" else {}
        return {g: {n: r for n, r in named.items() if (g, n) not in without} for g, named in rows.items()}

    def settings_(store, scale):
        return {n: r for n, r in made.settings().items() if scale == "laptop" and n not in without}

    monkeypatch.setattr(robustness, "finished", settings_)
    monkeypatch.setattr(resuscitating, "finished", woken)
    return made


def check(evidence, expected: dict) -> None:
    """expected: name -> number of a seed."""
    assert set(evidence.series) == set(expected)
    for name, of in expected.items():
        assert evidence.series[name] == pytest.approx([of(seed) for seed in SEEDS], abs=1e-9), name


def percent(share) -> str:
    return f"{round(100 * share)} %"


EMPTY = Store("nowhere")


def test_evidence_of_claim_16(monkeypatch):
    m = patched(monkeypatch, Made())
    (found,) = EVIDENCE["entropy.16"](EMPTY, "laptop")
    expected = {}
    for name in ("batch x 5", "rate x 2.5", "3 epochs", "own world", "smaller model", "rate / 4"):
        if name != "rate / 4":
            expected[f"A, {name}"] = lambda s, n=name: m.A(n, 1.0, s) - m.A(n, 0.2, s)
        expected[f"F turned, {name}"] = lambda s, n=name: m.F(n, 0.2, s) - m.F(n, 1.0, s)
    check(found, expected)
    assert len(found.rows) == len(set(found.rows)) == 6 * 4 * 3


@pytest.mark.parametrize(
    ("claim", "name", "signs"),
    [
        ("entropy.18", "rate x 2.5", {"A": 1, "F": -1}), ("entropy.19", "rate / 4", {"F": 1}),
        ("entropy.20", "3 epochs", {"A": 1, "F": 1}), ("entropy.17", "batch x 5", {"A": 1, "F": 1}),
    ],
)  # fmt: skip
def test_evidence_of_a_setting_less_the_baseline(monkeypatch, claim, name, signs):
    m = patched(monkeypatch, Made())
    (found,) = EVIDENCE[claim](EMPTY, "laptop")
    check(found, {
        f"{q} at {percent(share)}": lambda s, q=q, x=share, k=sign: k * (
            getattr(m, q)(name, x, s) - getattr(m, q)(BASELINE, x, s)
        )
        for q, sign in signs.items() for share in SHARES
    })  # fmt: skip


def test_a_collapsed_stage_of_the_larger_batch_is_left_out(monkeypatch):
    lost = ((-2.0, -3.5), (0.5, 0.1))  # A is -75 %
    at = {repr(("batch x 5", 1.0, seed)): lost for seed in SEEDS} | {repr(("batch x 5", 0.5, 0)): lost}
    m = patched(monkeypatch, Made(**at))
    (found,) = EVIDENCE["entropy.17"](EMPTY, "laptop")
    assert set(found.series) == {f"{q} at {p} %" for q in "AF" for p in (20, 50, 75)}, (
        "one seed alone is no collapse"
    )
    less = [m.A("batch x 5", 0.5, s) - m.A(BASELINE, 0.5, s) for s in SEEDS]
    assert found.series["A at 50 %"] == pytest.approx(less) and less[0] < -75
    patched(monkeypatch, Made(**{repr(("batch x 5", x, s)): lost for x in SHARES for s in SEEDS}))
    assert EVIDENCE["entropy.17"](EMPTY, "laptop") == []


def test_evidence_of_claim_21(monkeypatch):
    m = patched(monkeypatch, Made())
    far, near = BASELINE, "own world"
    (found,) = EVIDENCE["entropy.21"](EMPTY, "laptop")

    def fall(name, s):
        return m.A(name, 0.2, s) - m.A(name, 1.0, s)

    expected = {"fall of A": lambda s: fall(far, s) - fall(near, s)}
    for x in SHARES:
        expected |= {
            f"{q} at {percent(x)}": lambda s, q=q, x=x: getattr(m, q)(far, x, s) - getattr(m, q)(near, x, s)
            for q in ("A", "K", "P")
        }
        expected[f"F turned at {percent(x)}"] = lambda s, x=x: m.F(near, x, s) - m.F(far, x, s)
    check(found, expected)


def test_evidence_of_more_to_lose(monkeypatch):
    m = patched(monkeypatch, Made())
    (found,) = EVIDENCE["review.more-to-lose"](EMPTY, "laptop")

    check(found, {"rise of F": lambda s: m.F(BASELINE, 1.0, s) - m.F(BASELINE, 0.2, s)})


@pytest.mark.parametrize(("claim", "gains"), [("entropy.10", ("1", "2", "3")), ("entropy.11", ("0.5",))])
def test_evidence_of_claims_10_and_11(monkeypatch, claim, gains):
    m = patched(monkeypatch, Made())
    main, published = EVIDENCE[claim](EMPTY, "laptop")
    names = [f"p 0.5, q {q}" for q in gains]
    check(main, {
        f"{q}{' turned' if q == 'F' else ''}, {n}": lambda s, n=n, q=q: (-1 if q == "F" else 1) * m.gain(q, n, s)
        for n in names for q in (("A", "F", "K", "P") if claim == "entropy.10" else ("A", "F"))
    })  # fmt: skip
    expected = {f"A as published, {n}": lambda s, n=n: m.gain("A as published", n, s) for n in names}
    expected |= {f"F as published turned, {n}": lambda s, n=n: -m.gain("F as published", n, s) for n in names}
    check(published, expected)
    assert "as published" in published.on and "as published" not in main.on
    assert len(main.rows) == 3 * (1 + len(names))


def test_evidence_of_claim_12(monkeypatch):
    m = patched(monkeypatch, Made())
    (found,) = EVIDENCE["entropy.12"](EMPTY, "laptop")
    check(found, {
        f"{q}, {n}": lambda s, q=q, n=n: getattr(m, q)("last", n, s) - getattr(m, q)("50 %", BASELINE, s)
        for q in ("K", "P") for n in ("p 0.5, q 1", "p 0.5, q 2")
    })  # fmt: skip


def test_evidence_of_claim_23(monkeypatch):
    m = patched(monkeypatch, Made())
    for found, q in zip(EVIDENCE["entropy.23"](EMPTY, "laptop"), ("A", "A as published"), strict=True):
        check(found, {
            f"p 0.5 less p {p}": lambda s, p=p, q=q: m.gain(q, "p 0.5, q 1", s) - m.gain(q, f"p {p}, q 1", s)
            for p in ("0.25", "0.9")
        })  # fmt: skip


def test_evidence_of_claim_24(monkeypatch):
    m = patched(monkeypatch, Made())
    (found,) = EVIDENCE["entropy.24"](EMPTY, "laptop")

    def gain(q, group, s):
        return m.gain(q, "p 0.5, q 2", s, group)

    expected = {}
    for q in ("K", "P"):
        for a, b in pairwise(("20 %", "50 %", "75 %", "last")):
            expected[f"{q}, {b} less {a}"] = lambda s, q=q, a=a, b=b: gain(q, b, s) - gain(q, a, s)
        for g in ("20 %", "50 %"):
            expected[f"{q} turned, {g}"] = lambda s, q=q, g=g: -gain(q, g, s)
    check(found, expected)


def test_evidence_of_claim_25(monkeypatch):
    m = patched(monkeypatch, Made())
    for found, end in zip(EVIDENCE["entropy.25"](EMPTY, "laptop"), ("", " as published"), strict=True):
        less = {
            (q, t): lambda s, q=q, t=t, end=end: m.gain(q + end, "p 0.5, q 2", s) - m.gain(q + end, f"T {t}", s)
            for q in "AF" for t in ("1.5", "2", "3")
        }  # fmt: skip
        expected = {f"A{end}, T {t}": of for (q, t), of in less.items() if q == "A"}
        expected |= {
            f"F{end} turned, T {t}": lambda s, of=of: -of(s) for (q, t), of in less.items() if q == "F"
        }
        check(found, expected)


def test_evidence_of_a_damaged_start_and_of_subsets_of_layers(monkeypatch):
    m = patched(monkeypatch, Made())
    names = [f"p 0.5, q {q}" for q in ("1", "2", "3")]
    (found,) = EVIDENCE["review.damaged-start"](EMPTY, "laptop")
    expected = {f"A, {n}": lambda s, n=n: m.gain("A as published", n, s) - m.gain("A", n, s) for n in names}
    expected |= {
        f"F turned, {n}": lambda s, n=n: m.gain("F", n, s) - m.gain("F as published", n, s) for n in names
    }
    check(found, expected)
    (found,) = EVIDENCE["review.layer-subset"](EMPTY, "laptop")
    check(found, {
        h: lambda s, h=h: m.gain("A", "p 0.5, q 2", s) - m.gain("A", f"{h}, q 2", s)
        for h in ("first half", "last half")
    })  # fmt: skip


def test_a_damaged_start_alone_moves_what_is_published_and_nothing_else(monkeypatch):
    """The same end from a lower start: by the authors' A and F it gains, by ours nothing."""
    same = {}
    for seed in SEEDS:
        (k0, k1), (p0, p1) = drawn("last", BASELINE, seed)
        for q in ("1", "2", "3"):
            same[repr(("last", f"p 0.5, q {q}", seed))] = ((k0 - 0.5, k1), (0.9 * p0, p1))
    patched(monkeypatch, Made(**same))
    main, published = EVIDENCE["entropy.10"](EMPTY, "laptop")
    assert all(each == pytest.approx([0.0] * 3, abs=1e-9) for each in main.series.values())
    assert all(min(each) > 1 for each in published.series.values())
    (damaged,) = EVIDENCE["review.damaged-start"](EMPTY, "laptop")
    assert all(min(each) > 1 for each in damaged.series.values()), (
        "above 0 says that the damage helps the numbers"
    )


NEEDS = {
    "entropy.10": ("last", "p 0.5, q 3"), "entropy.11": ("last", "p 0.5, q 0.5"), "entropy.12": ("50 %", BASELINE),
    "entropy.16": "smaller model", "entropy.17": BASELINE, "entropy.18": "rate x 2.5", "entropy.19": "rate / 4",
    "entropy.20": "3 epochs", "entropy.21": "own world", "entropy.23": ("last", "p 0.9, q 1"),
    "entropy.24": ("20 %", "p 0.5, q 2"), "entropy.25": ("last", "T 1.5"),
    "review.damaged-start": ("last", "p 0.5, q 1"), "review.layer-subset": ("last", "first half, q 2"),
    "review.more-to-lose": BASELINE,
}  # fmt: skip


@pytest.mark.parametrize("claim", NEEDS)
def test_without_a_row_that_it_needs_a_claim_has_no_evidence(monkeypatch, claim):
    assert all(EVIDENCE[claim](EMPTY, scale) == [] for scale in ("smoke", "paper"))
    patched(monkeypatch, Made(), without=[NEEDS[claim]])
    assert EVIDENCE[claim](EMPTY, "laptop") == []
    patched(monkeypatch, Made(), without=[("last", "wake 1"), "SGD"])
    assert EVIDENCE[claim](EMPTY, "laptop"), "what it does not need may be missing"


@pytest.mark.parametrize("claim", ["entropy.17", "entropy.18", "entropy.10"])
def test_an_empty_store_has_no_evidence(claim):
    assert EVIDENCE[claim](EMPTY, "laptop") == []


def test_a_model_that_answered_nothing_has_nothing_to_forget(monkeypatch):
    silent = ((-2.0, -1.0), (0.0, 0.2))
    patched(monkeypatch, Made(**{repr((BASELINE, 0.5, 1)): silent}))
    assert EVIDENCE["entropy.18"](EMPTY, "laptop") == EVIDENCE["entropy.21"](EMPTY, "laptop") == []
    assert EVIDENCE["entropy.16"](EMPTY, "laptop"), "it is not of the baseline"
    patched(monkeypatch, Made(**{repr(("last", "p 0.5, q 1", 1)): silent}))
    assert len(EVIDENCE["entropy.10"](EMPTY, "laptop")) == 1, (
        "only what is measured from the changed start is gone"
    )
    assert EVIDENCE["review.damaged-start"](EMPTY, "laptop") == []
    patched(monkeypatch, Made(**{repr(("last", BASELINE, 1)): silent}))
    assert EVIDENCE["entropy.10"](EMPTY, "laptop") == EVIDENCE["entropy.25"](EMPTY, "laptop") == []


def test_evidence_of_what_is_special_about_entropy(monkeypatch, tmp_path):
    shares = acquiring.SCALES["laptop"].stages
    steps = [round(4000 * share) for share in shares]
    some = random.Random(0).uniform
    k = {seed: [(some(-3, -2), some(-2, -1)) for _ in shares] for seed in SEEDS}
    models = [
        {
            share: Row("acquisition", 1, {"step": step, "seed": seed}, values(pair, (0.5, 0.4)), {}, "live")
            for share, step, pair in zip(shares, steps, k[seed], strict=True)
        }
        for seed in SEEDS
    ]
    monkeypatch.setattr(acquiring, "finished", lambda store, scale: models if scale == "laptop" else [])
    store, measured = Store(tmp_path), {}
    for seed in SEEDS:
        assert EVIDENCE["review.entropy-is-special"](store, "laptop") == [], "a seed of chapter 03 is missing"
        about = stages.subject("laptop", seed=seed)
        measured[seed] = {
            revision: {"entropy": some(8, 9), "attention": [some(1, 2), some(1, 2)], "next_token": some(2, 3)}
            for revision in about.revisions
        }
        put = {"stages": list(measured[seed].values())}
        store.row(
            stages.STUDY,
            stages.VERSION,
            about.settings(**stages.extras(about)),
            lambda _, p=put: p,
            recorded=True,
        )
    (found,) = EVIDENCE["review.entropy-is-special"](store, "laptop")

    def r(seed, of):
        a = [(after - before) / -before for before, after in k[seed]]
        return numpy.corrcoef([of(measured[seed][f"step{step}"]) for step in steps], a)[0, 1]

    check(found, {
        "H less attention entropy": lambda s: r(s, lambda p: p["entropy"]) - r(s, lambda p: math.fsum(p["attention"])),
        "H less next-token entropy": lambda s: r(s, lambda p: p["entropy"]) - r(s, lambda p: p["next_token"]),
    })  # fmt: skip
    assert len(found.rows) == 3 * (1 + len(shares))
    assert EVIDENCE["review.entropy-is-special"](store, "paper") == []


def test_the_same_factors_in_every_layer_are_the_same_multiset():
    """Of the arms as they are asked: the control has the lift's own fraction and gain."""
    asked = resuscitating.asked("laptop")["last"]
    lift = asked["p 0.5, q 2"](1)
    for name in ("shuffled, q 2", "same function, q 2", "first half, q 2", "last half, q 2"):
        other = asked[name](1)
        changed = {k for k, x in flat(canonical(lift)).items() if flat(canonical(other))[k] != x}
        assert changed in ({"edit"}, {"layers"}), name
    assert Counter(make(1).edit for make in asked.values())["lift"] == 9
