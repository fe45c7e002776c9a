"""Passages told inside pretraining, and which stage of a schedule is the best start: tiny runs and made-up rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_acquiring import TINY, lab

from kemem import entropy
from kemem.corpora import specs, world
from kemem.errors import BadInput
from kemem.runs import Row, Store, canonical
from kemem.studies import arms, checkpoints, inside, midstage, pretraining, resuscitating, robustness
from kemem.studies.inside import Inside, Windows

SETUP = TINY.with_(steps=12)
MODEL = pretraining.Pretraining(SETUP, stages=(1 / 6, 1 / 2), held_out=400, facts=8, written=2)
TOLD = Inside(MODEL, (1 / 6, 1 / 2), paraphrased=1, once=3, slots=2, interval=2)  # steps 3 to 6, and 7 to 10


def interval(values):
    """scipy's own, without our arithmetic."""
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return pytest.approx((float(numpy.mean(values)), float(found.low), float(found.high)))


# ---------------------------------------------------------------------- windows
def batch():
    ids = torch.arange(100, 140).view(4, 10)
    return {"input_ids": ids, "labels": ids.clone()}


FIRST = entropy.Schedule((((1, 2, 3), (4, 5)), ((6, 7),)), interval=3)
SECOND = entropy.Schedule((((11, 12),), ((13,), (14, 15, 16), (17,))), interval=3)


@pytest.mark.parametrize("second", [10, 11, 30], ids=["at once", "a step later", "later"])
def test_windows_tell_their_passages_and_nothing_else(second):
    method = Windows((4, second), (FIRST, SECOND), 6)
    expected = {  # step -> what its rows begin with
        7: FIRST.slots[0], 10: FIRST.slots[1], second + 3: SECOND.slots[0], second + 6: SECOND.slots[1],
    }  # fmt: skip
    for step in range(1, 50):
        plain = batch()
        found = method.rows(step, plain)
        told = expected.get(step, ())
        for row in range(4):
            front = list(told[row]) if row < len(told) else []
            for name in ("input_ids", "labels"):
                assert found[name][row].tolist() == (front + batch()[name][row].tolist())[:10], (step, row)
        assert torch.equal(plain["input_ids"], batch()["input_ids"]), "the data's own memory is left alone"


def test_windows_are_told_apart_by_what_they_tell():
    one, other = Windows((4, 10), (FIRST, SECOND), 6), Windows((4, 10), (SECOND, FIRST), 6)
    assert one.digests == (FIRST.digest, SECOND.digest) == other.digests[::-1]
    assert one.digests != other.digests


# ---------------------------------------------------------------------- sets of passages
def texts(passages) -> set[str]:
    return {p.context for p in passages}


def test_sets_are_disjoint_and_rotate_with_the_seed():
    s = replace(TOLD, stages=(0.2, 0.5, 0.8), once=2)
    each = [[frozenset(texts(part)) for part in inside.sets(replace(s, seed=seed))] for seed in range(4)]
    for sets in each:
        assert all(len(part) == 3 for part in sets) and len(frozenset.union(*sets)) == 9
    assert each[3] == each[0]
    for stage in range(3):
        assert len({each[seed][stage] for seed in range(3)}) == 3, "every set meets every stage"
    for part in inside.sets(s):
        assert [p.group for p in part] == ["paraphrase", "once", "once"]
        assert all(len(p.tellings) == s.slots for p in part)


@pytest.mark.parametrize("scale", ["smoke", "laptop", "gpu"])
def test_a_scale_asks_for_no_more_than_its_world_has_and_its_windows_fit(scale):
    s = inside.settings(scale, seed=1)
    own = next(world(part)[0] for part in specs(s.model.setup.corpus) if part.scheme == "world")
    assert len(s.stages) * (s.paraphrased + s.once) <= own.fictional
    ends = [start + s.window for start in s.starts]
    assert all(a <= b for a, b in zip(ends, (*s.starts[1:], s.model.setup.steps), strict=True))
    assert (s.seed, s.model.setup.seed) == (1, 1) and s.model == robustness.smaller(scale, 1)


def test_more_passages_than_there_are_and_windows_that_overlap_are_refused(told):
    with pytest.raises(BadInput, match=r"expected 80 fictional passages; the world has 17"):
        inside.sets(replace(TOLD, once=39))
    for wrong in (replace(TOLD, interval=3), replace(TOLD, stages=(1 / 6, 5 / 6))):
        with pytest.raises(BadInput, match=r"windows that end before the next begins; shorten the interval"):
            inside.run(told[0], wrong)


# ---------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def told(tmp_path_factory):
    here = lab(tmp_path_factory.mktemp("inside"))
    return here, inside.run(here, TOLD)


def test_a_run_is_pretraining_until_something_is_told(told):
    here, row = told
    assert [m["step"] for m in row.values["moments"]] == [2, 6, 10, 12]
    assert (row.values["starts"], row.values["ends"]) == ([2, 6], [6, 10])
    moments = {m["step"]: m for m in row.values["moments"]}
    for step in (2, 6):
        model, tok, _ = checkpoints.load(here, MODEL, step)
        plain = [entropy.probe(model, tok, part) for part in inside.sets(TOLD)]
        k = [each.knowledge() for each in plain]
        if step == 2:
            assert moments[2]["K"] == pytest.approx(k, abs=1e-12)
            assert moments[2]["K as released"] == pytest.approx(
                [p.knowledge("row_mean") for p in plain], abs=1e-12
            )
        else:
            assert all(abs(a - b) > 1e-6 for a, b in zip(moments[6]["K"], k, strict=True))
    peak = SETUP.learning_rate  # 12 steps, the first of which warms up
    rates = [peak * (0.1 + 0.9 * (1 + math.cos(math.pi * start / 11)) / 2) for start in (2, 6)]
    assert row.values["rates"] == pytest.approx(rates, rel=1e-12)
    assert row.provenance["corpus"]["spec"] == SETUP.corpus


def test_another_seed_is_another_row_of_the_same_windows(told):
    here, row = told
    other = inside.run(here, replace(TOLD, seed=1))
    assert other.digest != row.digest
    first, turned = row.values["moments"][0]["K"], other.values["moments"][0]["K"]
    assert turned == pytest.approx(first[::-1], abs=1e-12), "the same sets, at other stages"
    assert inside.acquired(other) != pytest.approx(inside.acquired(row)[::-1], abs=1e-6)


# ---------------------------------------------------------------------- its numbers
def windows(shift: float = 0.0) -> dict:
    """K of three sets at the ends of three windows, of which the first two touch, and at the end."""
    k = {10: (-4.0, -5.0, -8.0), 20: (-1.0 + shift, -4.0, -6.0), 30: (-1.5, -2.0, -6.0), 40: (-1.8, -2.2, -5.0),
         50: (-1.9, -2.5, -1.0), 60: (-2.0, -3.0, -1.5)}  # fmt: skip
    moments = [{"step": step, "K": list(each)} for step, each in k.items()]
    return {"moments": moments, "starts": [10, 20, 40], "ends": [20, 30, 50]}


def test_what_is_acquired_kept_and_drifts_by_hand():
    row = Row("inside", 1, {}, windows(), {}, "live")
    assert inside.acquired(row) == pytest.approx([3 / 4, 2 / 4, 4 / 5])
    assert inside.kept(row) == pytest.approx([2 / 4, 1 / 4, 3.5 / 5])
    assert inside.drifted(row) == pytest.approx([(1 / 5 + 2 / 8) / 2, 0.0])


def test_numbers_of_windows_for_prose(tmp_path):
    store = Store(tmp_path)
    assert inside.finished(store, "smoke") == inside.finished(store, "paper") == []
    assert inside.results(store, "smoke") == {}
    for seed, shift in zip(range(3), (0.0, 0.4, -0.4), strict=True):
        assert inside.finished(store, "laptop") == [], "all seeds or none"
        store.row(
            inside.STUDY, inside.VERSION, inside.settings("laptop", seed), lambda _, x=shift: windows(x)
        )
    assert len(inside.finished(store, "laptop")) == 3
    found = {name: result.value for name, result in inside.results(store, "laptop").items()}
    assert found == pytest.approx(
        {"inside.A.first": 75.0, "inside.A.last": 80.0, "inside.kept.first": 50.0, "inside.kept.last": 70.0}
    )


# ---------------------------------------------------------------------- the best start of a schedule
def start(
    steps: int, step: int, k: float, p: float = 0.5, h: float = 8.0, loss: float = 2.0, schedule="cosine"
):
    """A row of an arm from one stage of a schedule of 20 warm-up steps in a hundred."""
    setup = canonical(TINY.with_(steps=steps, schedule=schedule, warmup_share=0.2, learning_rate=0.02))
    probes = [{"step": 9, "group": "all", "kind": "all", "target_mean": k}]
    values = {
        "before": {"entropy": h, "loss": {"world": loss}}, "after": {"tasks": {"a": p}}, "probes": probes, "steps": 9,
    }  # fmt: skip
    return Row("arms", 1, {"learning": {"step": step, "model": {"setup": setup}}}, values, {}, "live")


def test_shares_and_rates_of_a_stage():
    one = start(1000, 350, 0.0)
    assert midstage.share(one) == 0.35
    assert midstage.rate(one) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 150 / 800)) / 2)
    assert midstage.rate(start(1000, 1000, 0.0)) == pytest.approx(0.1)
    assert midstage.rate(start(1000, 350, 0.0, schedule="constant")) == 1.0
    assert midstage.rate(start(1000, 100, 0.0)) == pytest.approx(0.5), "half of the warm-up"


def schedules() -> midstage.Found:
    """The best start has H = 6 in every schedule, at 20, 50 and 80 %: K is -1 there, and falls by 0.1 a step of H."""
    found: midstage.Found = {}
    asked = {  # steps, number of the best stage, shares
        "long": (1000, 1, (0.2, 0.5, 0.8)), "short": (500, 0, (0.2, 0.6, 0.8)), "flat": (1000, 2, (0.3, 0.5, 0.8)),
    }  # fmt: skip
    for name, (steps, best, shares) in asked.items():
        found[name] = {
            seed: [
                start(
                    steps, round(share * steps), -1 - 0.1 * (seed + 1) * abs(i - best), 0.3 + 0.05 * i,
                    h=6.0 + best - i, loss=3.0 - i,
                )
                for i, share in enumerate(shares)
            ]
            for seed in range(2)
        }  # fmt: skip
    return found


def test_a_predictor_that_is_the_same_at_every_best_start_has_no_regret():
    rows = schedules()
    assert midstage.regrets(rows, "K", "entropy H") == [0.0] * 6
    # half of the schedule: the best of "long", one stage beside that of the two others
    assert midstage.regrets(rows, "K", None) == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.1, 0.2])
    # P rises with the stage everywhere, so its share and its loss are those of the last stage
    for predictor in ("share of the schedule", "loss on its own world"):
        assert midstage.regrets(rows, "P", predictor) == pytest.approx([0.0] * 6)
    assert midstage.regrets(rows, "P", None) == pytest.approx([5.0] * 6)
    assert midstage.best(rows, "K") == {"long": [0.5] * 2, "short": [0.2] * 2, "flat": [0.8] * 2}
    assert midstage.best(rows, "P") == {name: [0.8, 0.8] for name in rows}


def test_a_predictor_is_taken_from_the_other_schedules_alone():
    rows = schedules()
    # best shares 0.5, 0.2, 0.8: sought are 0.5 in "long", 0.65 in "short" (so 0.6) and 0.35 in "flat" (so 0.3)
    expected = [0.0, 0.0, 0.1, 0.2, 0.2, 0.4]
    assert midstage.regrets(rows, "K", "share of the schedule") == pytest.approx(expected)
    # the loss is 3, 2, 1 at the three stages, at the best ones 2, 3, 1: sought are 2, 1.5 and 2.5
    for name, stage, loss in (("short", 1, 1.6), ("flat", 0, 2.6)):  # without a tie
        for each in rows[name].values():
            each[stage].values["before"]["loss"]["world"] = loss
    assert midstage.regrets(rows, "K", "loss on its own world") == pytest.approx(expected)


def test_predictions_are_in_the_order_of_their_regret():
    found = midstage.predictions(schedules(), "K")
    assert {p.predictor for p in found} == {midstage.HALF, *midstage.PREDICTORS}
    means = [p.regret.mean for p in found]
    assert means == sorted(means)
    by_name = {p.predictor: p.regret for p in found}
    assert by_name["entropy H"].mean == means[0] == 0.0
    half = by_name[midstage.HALF]
    assert (half.mean, half.low, half.high) == interval([0.0, 0.0, 0.1, 0.2, 0.1, 0.2])


whole = st.integers(-20, 20).map(float)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(whole, min_size=3, max_size=3), min_size=2, max_size=3), whole)
def test_regrets_are_never_below_zero_and_know_no_level(each, level):
    steps = (200, 500, 800)

    def rows(more):
        return {
            str(i): {
                0: [start(1000, step, k + more, h=step / 100) for step, k in zip(steps, ks, strict=True)]
            }
            for i, ks in enumerate(each)
        }

    for predictor in (None, *midstage.PREDICTORS):
        found = midstage.regrets(rows(0.0), "K", predictor)
        assert min(found) >= 0 and len(found) == len(each)
        assert midstage.regrets(rows(level), "K", predictor) == found


def test_what_is_asked_is_one_model_along_three_schedules():
    for seed in range(2):
        found = midstage.schedules("laptop", seed)
        whole, short, flat = (found[n].setup for n in ("cosine", "cosine, half as long", "constant rate"))
        assert whole == robustness.smaller("laptop", seed).setup
        assert short == whole.with_(steps=2000) and flat == whole.with_(schedule="constant")
    asked = midstage._asked("laptop")
    assert {name: list(seeds) for name, seeds in asked.items()} == {name: [0, 1, 2] for name in found}
    for name, seeds in asked.items():
        steps = [800, 1400, 2000, 3000, 4000] if "half" not in name else [400, 700, 1000, 1500, 2000]
        for seed, each in seeds.items():
            assert [arm.learning.step for arm in each] == steps
            assert all(arm.learning.model == midstage.schedules("laptop", seed)[name] for arm in each)
            assert all(
                (arm.learning.seed, arm.edit, arm.wake, arm.temperature) == (seed, "", 0.0, 1.0)
                for arm in each
            )
    shared = robustness.SETTINGS["smaller model"]("laptop", 1, 0.5)
    assert asked["cosine"][1][2] == shared, "one row for both"
    assert resuscitating.ungated("laptop").setup.steps == 4000
    assert list(midstage.schedules("smoke")) == ["cosine", "cosine, half as long"]


def test_all_rows_of_the_schedules_or_none(tmp_path):
    store = Store(tmp_path)
    asked = midstage._asked("smoke")
    rows = [(arm, share) for seeds in asked.values() for each in seeds.values() for arm, share in
            zip(each, midstage.STAGES["smoke"], strict=True)]  # fmt: skip
    for arm, share in rows:
        assert midstage.finished(store, "smoke") == {} == midstage.results(store, "smoke")
        put = start(60, 30, -2.0 + share if share < 1 else -2.0, 0.4 if share == 0.5 else 0.25).values
        store.row(arms.STUDY, arms.VERSION, arm, lambda _, p=put: p)
    found = midstage.finished(store, "smoke")
    assert midstage.best(found, "K") == {"cosine": [0.5], "cosine, half as long": [0.5]}
    assert midstage.finished(store, "paper") == {}
    numbers = {name: result.value for name, result in midstage.results(store, "smoke").items()}
    assert numbers["midstage.schedules"] == 2 and numbers[f"midstage.K.{midstage.HALF}"] == 0.0
    assert numbers["midstage.P.share of the schedule"] == 0.0
    # H is the same at all stages, so the first is chosen: 20 %
    assert numbers["midstage.K.entropy H"] == pytest.approx(0.3)
    assert numbers["midstage.P.entropy H"] == pytest.approx(15.0)
