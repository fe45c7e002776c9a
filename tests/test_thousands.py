"""Chapter 13's first studies, tiny: grids and choices on made-up rows, capacity against plain inverses and hooks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import naive_editing
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kemem import editing
from kemem.claims import CLAIMS, verdict
from kemem.editing import MEMIT, Search, closed_form
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import capacity, factual, many, methods, thousands
from kemem.studies.capacity import Capacity
from kemem.studies.evidence import thousands as says
from kemem.studies.lab import Lab
from kemem.studies.many import Many

ROOT = Path(__file__).resolve().parents[1]
MODEL = factual.settings("smoke")
S = thousands.Thousands(
    MODEL,
    layers=(0, 1),
    counts=(1, 2, 4),
    least=4,
    most=7,
    at=4,
    weights=(1.0, 30.0, 500.0),
    written=1,
    texts=60,
)
ONE = Many(MODEL, "MEMIT", 10.0, 3, (0, 1), clamp=1.5, texts=60)
EDITOR = MEMIT((0, 1), 10.0, Search(clamp=1.5))
ROOM = Capacity(ONE, counts=(1, 2, 50), weights=(3.0, 200.0), least=4, most=5)


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    return many.Benches(Lab("smoke", Store(tmp_path_factory.mktemp("store")), ROOT))


@pytest.fixture(scope="module")
def room(benches):
    """The row on capacity, made with a model of which every bit is compared before and after."""
    model = benches.at(ONE).model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    row = capacity.run(benches, ROOM)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    return row


# ---------------------------------------------------------------------- grids
def test_few_facts_are_written_in_blocks_and_the_last_row_writes_all():
    grid = thousands.scaling(S, (10.0, 1.5), 7)
    assert {n: (m.count, m.blocks) for n, m in grid.items()} == {1: (1, 4), 2: (2, 2), 4: (4, 1), 7: (7, 1)}
    assert all(
        (m.method, m.value, m.clamp, m.layers, m.part) == ("MEMIT", 10.0, 1.5, (0, 1), "reported")
        for m in grid.values()
    )
    assert list(thousands.scaling(S, (10.0, 1.0), 4)) == [1, 2, 4], (
        "as many as are known are not written twice"
    )
    assert list(thousands.scaling(S, (10.0, 1.0), 3)) == [3], (
        "with one at a time four facts are wanted, and three known"
    )
    assert thousands.scaling(S, (10.0, 1.0), 3)[3].blocks == 1
    laptop = thousands.settings("laptop")
    grid = thousands.scaling(laptop, (1.0, 1.0), 1700)
    assert list(grid) == [1, 4, 16, 64, 128, 312, 512, 1700]
    assert all(m.count * m.blocks == 64 for n, m in grid.items() if n <= 64)


@given(count=st.integers(1, 300), least=st.integers(1, 100))
def test_blocks_are_no_more_than_it_takes(count, least):
    blocks = capacity.blocks_of(count, least)
    assert count * blocks >= least and (blocks == 1 or count * (blocks - 1) < least)


def test_weights_span_four_decades_and_hold_the_tried_ones():
    for scale in ("smoke", "laptop"):
        s = thousands.settings(scale)
        grid = thousands.weights(s, 2.0)
        tried = thousands.trials(s)
        assert (
            list(grid) == sorted(grid)
            and len(grid) >= (7 if scale == "laptop" else 6)
            and max(grid) / min(grid) >= 1e4
        )
        assert {x for x, _ in tried} == set(methods.METHODS["MEMIT"].values) <= set(list(grid)[1:-1])
        assert {clamp for _, clamp in tried} == {1.0} and {m.clamp for m in grid.values()} == {2.0}
        assert {m.part for m in tried.values()} == {"tuning"} and {m.part for m in grid.values()} == {
            "reported"
        }
        assert {m.count for m in (*grid.values(), *tried.values())} == {s.at}
        assert all(m.value == x for x, m in grid.items())
        tried |= thousands.clampings(s, 30.0)
        assert len(tried) == 7 and all((m.value, m.clamp) == x for x, m in tried.items()), "one is in both"
        assert all(m.written > 0 for m in grid.values()), "GE is wanted of them"
    assert thousands.settings("laptop").at * 8 == factual.SCALES["laptop"].setup.memories


def test_ranges_of_layers():
    wide = replace(S, model=replace(MODEL, setup=MODEL.setup.with_(layers=8)), layers=(1, 2, 3))
    found = thousands.spans(wide)
    ranges = {name: span for name, span in found.items() if not name.startswith("layer ")}
    assert ranges == {
        "critical": (1, 2, 3), "highest 1": (3,), "highest 2": (2, 3), "early": (0, 1, 2), "middle": (2, 3, 4),
        "late": (4, 5, 6), "all but the last": (0, 1, 2, 3, 4, 5, 6),
    }  # fmt: skip
    assert [found[f"layer {i}"] for i in range(8)] == [(i,) for i in range(8)] and len(found) == 15
    grid = thousands.layers(wide, (7.0, 1.5))
    assert {name: m.layers for name, m in grid.items() if name != "attention"} == found and {
        (m.value, m.clamp) for m in grid.values()
    } == {(7.0, 1.5)}
    assert grid["critical"] == thousands.one(wide, (7.0, 1.5), wide.at), (
        "the row that the sweeps of weights and counts have"
    )


def test_attention_is_written_in_the_critical_layers():
    grid = thousands.layers(S, (3.0, 1.0))
    assert grid["attention"] == replace(grid["critical"], method=methods.ATTENTION, written=0)


def test_the_published_load_is_the_nearest_count():
    laptop = thousands.settings("laptop")
    assert laptop.load == 312 and 312 in laptop.counts
    assert abs(312 / laptop.model.setup.memories - 10_000 / 16_384) < 1e-3


# ---------------------------------------------------------------------- made-up rows
def made(value, before=None, *, count=4, **rest):
    """A row of `many` in which every score of the edited model is `value`, save those named."""
    names = ("S", "ES", "PS", "NS", "NS+", "EM", "PM", "NM", "nats")

    def side(x, **own):
        scores = {name: own.get(name, x) for name in names}
        return {**scores, "texts": {"GE": own.get("GE", x), "RS": x}}

    values = {
        "facts": count, "before": side(value if before is None else before), "after": side(value, **rest),
        "seconds": {"values": 8.0, "solve": 2.0},
    }  # fmt: skip
    return Row(many.STUDY, many.VERSION, {}, values, {}, "live")


def test_the_choice_of_a_weight():
    a, b, c, d = (1.0, 1.0), (2.0, 1.0), (2.0, 0.5), (3.0, 1.0)
    rows = {a: made(50.0, NM=3.0), b: made(60.0, NM=1.0), c: made(60.0, NM=2.0), d: made(60.0, NM=None)}
    assert thousands.chosen(rows) == c
    assert thousands.chosen({a: made(None), b: made(0.0, NM=-5.0), c: made(0.0, NM=-4.0)}) == a
    assert thousands.chosen({a: made(None), b: made(0.1, NM=-5.0)}) == b


def test_reading_rows():
    rows = {1: made(50.0, 20.0, GE=600.0), 2: made(40.0, 30.0)}
    assert thousands.curve(rows, "ES") == [50.0, 40.0] and thousands.curve(rows, "PS", "before") == [
        20.0,
        30.0,
    ]
    assert thousands.curve(rows, "GE") == [600.0, 40.0] and thousands.curve(rows, "nats") == [50.0, 40.0]
    assert thousands.seconds(rows[1]) == {"values": 2.0, "keys": 0.0, "solve": 0.5}
    silent = replace(rows[1], values={**rows[1].values, "after": {**rows[1].values["after"], "texts": None}})
    assert thousands.score(silent, "GE") is None and thousands.score(silent, "GE", "before") == 20.0


def test_draws_side_by_side():
    """Places are those of the first draw; one that is shorter, or lacks a number, is left out."""

    def drawn(*scores):
        rows = {float(i): made(x, 1.0) for i, x in enumerate(scores)}
        return thousands.Sweeps({}, 1.0, 1.0, made(1.0), {}, rows, {}, 1, {}, {})

    draws = [drawn(5.0, 6.0), drawn(7.0, 8.0), drawn(7.0, None), drawn(1.0)]
    assert thousands.across(draws, "weights", "ES") == ([0.0, 1.0], [[5.0, 6.0], [7.0, 8.0]])
    assert thousands.across(draws, "weights", "ES", "before") == ([0.0, 1.0], [[1.0, 1.0]] * 3)


def filled(folder, s, answer, *, known=7):
    """A store with every row of the sweeps; answer(many) -> row."""
    store = Store(folder)
    point = {
        "keys": 0.5, "isotropic": 0.25, "residuals": 0.75, "left": 1.0, "unwritten": [0.1, 0.2], "rank": [1.0, 2.0],
        "disturbance": [0.3, 0.4], "dimension": [5.0, 6.0],
    }  # fmt: skip

    def held(c):
        points = [{"count": n, **point, "left": n / 100} for n in capacity.up_to(c.counts, known, c.least)]
        values = {
            "known": known, "subjects": 6, "memories": 128, "width": 48, "rank": [1.0, 3.0], "points": points,
        }  # fmt: skip
        return store.row(capacity.STUDY, capacity.VERSION, c, lambda _: values)

    def edited(m):
        return store.row(many.STUDY, many.VERSION, m, lambda _: answer(m).values)

    return store, thousands.gathered(s, edited, held)


def answer(m):
    """S peaks at weight 30 and clamp 1.5; NS falls with the count; everything else moves one way with the weight."""
    close = -abs(math.log(m.value / 30.0)) - abs(m.clamp - 1.5) - 0.1 * len(m.layers) + 0.01 * m.seed
    level = 50 + close + (5 if m.layers == S.layers else 0)
    return made(
        level, 90.0, count=m.count * m.blocks, NS=70.0 - m.count + math.log(m.value), GE=600.0 + m.value + m.seed,
        ES=90.0 - m.value / 10 + 2 * (len(m.layers) - 2), PS=80.0 - m.value / 10 + 3 * (len(m.layers) - 2),
    )  # fmt: skip


def test_sweeps_are_gathered_from_finished_rows_and_from_nothing_else(stored):
    store, found = stored
    assert (found.weight, found.clamp) == (30.0, 1.5) and list(found.scaling) == [1, 2, 4, 7]
    assert {r.settings["value"] for r in (*found.scaling.values(), *found.layers.values())} == {30.0}
    every = (*found.scaling.values(), *found.weights.values(), *found.layers.values())
    assert {r.settings["clamp"] for r in every} == {1.5} == {found.capacity.settings["of"]["clamp"]}
    assert [r.settings["clamp"] for r in found.trials.values()] == [1.0] * 4 + [0.75, 1.5, 2.0]
    assert found.capacity.settings["of"]["value"] == 30.0
    again = thousands.finished(store, S)
    assert [r.digest for r in again.rows] == [r.digest for r in found.rows]
    more = len(found.layers) + len(found.loaded) + len(found.heavy)
    assert len(found.rows) == len({r.digest for r in found.rows}) < 7 + 1 + 4 + 3 + more
    for missing in (
        found.trials[30.0, 1.5],
        found.capacity,
        found.scaling[7],
        found.weights[500.0],
        found.layers["late"],
    ):
        (file,) = (
            f for f in (store.live / missing.study).glob("*.json")
            if json.loads(f.read_text())["settings"] == missing.settings
        )  # fmt: skip
        text = file.read_text()
        file.unlink()
        assert thousands.finished(store, S) is None
        file.write_text(text)
    assert thousands.finished(store, S) is not None


def test_results_name_what_prose_may_quote(tmp_path, monkeypatch, stored):
    monkeypatch.setattr(thousands, "settings", lambda scale, **_: S)
    store, found = stored
    told = thousands.results(store, "smoke")
    assert (
        told["thousands.weight"].value == 30.0
        and told["thousands.clamp"].value == 1.5
        and told["thousands.known"].value == 7
    )
    assert (
        told["thousands.all.NS"].value == pytest.approx(63.0 + math.log(30)) == told["thousands.n 7.NS"].value
    )
    assert told["thousands.all.NS before"].value == 90.0
    assert (
        told["thousands.first.NS"].value == pytest.approx(69.0 + math.log(30))
        and told["thousands.at"].value == 4
    )
    assert told["capacity.first.left"].value == pytest.approx(1.0)
    assert told["thousands.weight 500.ES"].value == 40.0 and told["thousands.weight 500.ES"].unit == "%"
    assert (
        told["thousands.late.S"].value == pytest.approx(49.8)
        and told["thousands.weight 500.GE"].value == 1100.0
    )
    assert told["thousands.n 1.values"].value == 2000.0 and told["thousands.n 1.values"].unit == "ms"
    assert told["capacity.all.left"].value == pytest.approx(7.0) == told["capacity.n 7.left"].value
    assert told["capacity.n 2.unwritten"].value == pytest.approx(20.0) and told["capacity.rank"].value == 3.0
    assert told["capacity.n 2.left"].provenance["digest"] == found.capacity.digest
    assert (
        thousands.results(Store(tmp_path / "empty"), "smoke") == {} == thousands.results(store, "elsewhere")
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Rows of three draws, with the sweeps of the first."""
    folder = tmp_path_factory.mktemp("three")
    found = [filled(folder, replace(S, seed=seed), answer) for seed in (0, 1, 2)]
    return found[0]


@pytest.fixture
def three(stored, monkeypatch):
    monkeypatch.setattr(thousands, "SEEDS", {"smoke": (0, 1, 2)})
    monkeypatch.setattr(thousands, "settings", lambda scale, *, seed=0: replace(S, seed=seed))
    return stored[0]


def test_evidence_on_claims_7_and_12(three):
    seven, heavier = says.EVIDENCE["memit.7"](three, "smoke")
    # of the weights at that load 10 and 100, at clamps 1.0 and 1.5, the nearest to 30 and 1.5
    assert (
        heavier.series == {"NS": pytest.approx((66.0 + math.log(10) - 90.0,) * 3)}
        and "chosen at" in heavier.on
    )
    assert S.load == 4  # of the counts given that with most facts to a memory
    assert seven.series == {"NS": pytest.approx((66.0 + math.log(30) - 90.0,) * 3)} and len(seven.rows) == 3
    assert verdict(CLAIMS["memit.7"], seven, "smoke").verdict == "fails", (
        "more than twenty points are too many"
    )
    (twelve,) = says.EVIDENCE["memit.12"](three, "smoke")
    assert list(twelve.series)[:4] == [
        "rank of NS",
        "rank of GE",
        "rank of ES, sign turned",
        "rank of PS, sign turned",
    ]
    assert all(twelve.series[name] == pytest.approx((1.0,) * 3) for name in list(twelve.series)[:4])
    assert twelve.series["S at the chosen weight less S at the least"] == pytest.approx((math.log(30),) * 3)
    assert twelve.series["S at the chosen weight less S at the greatest"] == pytest.approx(
        (math.log(50 / 3),) * 3
    )
    assert verdict(CLAIMS["memit.12"], twelve, "smoke").verdict == "holds"
    assert says.EVIDENCE["memit.12"](three, "elsewhere") == []


def test_without_a_row_or_a_number_there_is_no_evidence(tmp_path, monkeypatch, three):
    assert says.EVIDENCE["memit.12"](Store(tmp_path / "empty"), "smoke") == []
    monkeypatch.setattr(thousands, "SEEDS", {"smoke": (0, 1, 2, 3)})
    assert says.EVIDENCE["memit.7"](three, "smoke") == [], "a draw is missing"
    silent = made(40.0, GE=None)
    sweeps = thousands.Sweeps(
        {}, 3.0, 1.0, made(1.0), {}, {1.0: silent, 3.0: silent, 50.0: silent}, {}, 1, {}, {}
    )
    assert says.weighed(sweeps) is None


def test_claim_13_looks_at_attention_too(three, tmp_path):
    def poor(m):
        return made(10.0 + m.seed, count=4) if m.method == methods.ATTENTION else answer(m)

    for seed in (0, 1, 2):
        store, found = filled(tmp_path / "attention", replace(S, seed=seed), poor)
    (thirteen,) = says.EVIDENCE["memit.13"](store, "smoke")
    whole, one = (answer(many_of(found.layers[name])) for name in ("critical", "highest 1"))
    seed = 2
    for name in ("ES", "PS", "NS"):
        expected = whole.values["after"][name] - one.values["after"][name]
        assert thirteen.series[f"{name}: all critical less one"][seed] == pytest.approx(expected)
    assert thirteen.series["S: critical less late"] == pytest.approx((5.0,) * 3)
    assert thirteen.series["S: critical less attention"] == pytest.approx(
        tuple(44.8 - 0.99 * s for s in range(3))
    )
    assert len(thirteen.rows) == 3 * len({row.digest for row in found.layers.values()})


def many_of(row):
    kept = {name: row.settings[name] for name in ("method", "value", "count", "blocks", "seed")}
    return Many(MODEL, layers=tuple(row.settings["layers"]), **kept)


# ---------------------------------------------------------------------- capacity by plain arithmetic
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 500), memories=st.integers(1, 9), count=st.integers(1, 14), power=st.floats(-2, 3))
def test_dimension_is_what_the_update_takes_up(seed, memories, count, power):
    """By the inverse, and by what the solver really leaves of a residual in every direction."""
    draw = torch.Generator().manual_seed(seed)
    K = torch.randn(memories, count, generator=draw, dtype=torch.float64)
    old = torch.randn(memories, 3 * memories + 4, generator=draw, dtype=torch.float64)
    C, weight = old @ old.T / old.shape[1], 10**power
    P = K.T @ torch.linalg.inv(weight * C + K @ K.T) @ K
    d = capacity.dimension(K, C, weight)
    assert d == pytest.approx(P.diagonal().sum().item(), rel=1e-7, abs=1e-9)
    assert 0 < d < min(memories, count) + 1e-9
    every = torch.eye(count, dtype=torch.float64)  # each fact lacks something of its own
    left = every - closed_form(K, every, C, weight=weight) @ K
    assert left.diagonal().mean().item() == pytest.approx(1 - d / count, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 2000), memories=st.integers(2, 600), power=st.floats(-3, 4), size=st.floats(0.3, 3)
)
def test_keys_without_structure_leave_the_root_of_an_equation(count, memories, power, size):
    weight = 10**power
    u = capacity.isotropic(count, memories, weight, size)
    assert 0 < u < 1
    parts = weight, size * memories, size * (count - 1) * (1 - u)
    assert u * (parts[0] + parts[1] - parts[2]) == pytest.approx(weight, abs=1e-9 * sum(parts))


def test_keys_without_structure_are_foreseen():
    """Of random keys; one alone is exact, and beyond the number of memories a share must stay unwritten."""
    draw = torch.Generator().manual_seed(3)
    M = 200
    old = torch.randn(M, M, generator=draw, dtype=torch.float64)
    C = old @ old.T / M + 0.1 * torch.eye(M, dtype=torch.float64)
    lower = torch.linalg.cholesky(C)
    for count, weight in ((20, 30.0), (150, 30.0), (200, 10.0), (500, 100.0)):
        K = lower @ torch.randn(M, count, generator=draw, dtype=torch.float64)
        expected = 1 - capacity.dimension(K, C, weight) / count
        assert capacity.isotropic(count, M, weight) == pytest.approx(expected, abs=0.01)
    assert capacity.isotropic(1, M, 50.0, 2.0) == pytest.approx(1 / (1 + 2.0 * M / 50.0))
    assert capacity.isotropic(100, M, 1e-9) < 1e-9
    assert capacity.isotropic(801, M, 1e-9) == pytest.approx(1 - M / 800, rel=1e-4)


def test_what_several_layers_leave():
    """Two layers: the first writes all of its half, the second a third of what is left."""
    assert capacity.whole([0.0, 2 / 3]) == pytest.approx(1 / 2 * 2 / 3)
    assert capacity.whole([0.25]) == 0.25 and capacity.whole([1.0, 1.0, 1.0]) == 1.0
    assert capacity.whole([0.0] * 5) == 0.0


def test_counts_up_to_all_known():
    assert capacity.up_to((1, 4, 16), 9, 4) == [1, 4, 9]
    assert capacity.up_to((1, 4, 16), 16, 4) == [1, 4, 16]
    assert capacity.up_to((3, 8), 11, 7) == [3, 8, 11] and capacity.up_to((3, 8), 8, 7) == [8]


# ---------------------------------------------------------------------- capacity of the model
@torch.no_grad()
def naive(at, requests, z, layers):
    """Keys of each layer [M N] and what is lacking above the last [D N], by torch's own hooks, a row at a time."""
    of = editing.contexts(at.tok, requests, at.templates)
    keys = {}
    for layer in layers:
        down = naive_editing.down(at.model, layer)
        columns = []
        for c in of:
            own = [
                naive_editing.at(at.model, down, row, last, "input")
                for row, last in zip(c.rows, c.subjects, strict=True)
            ]
            columns.append(own[0] / 2 + sum(own[1:]) / 2 / (len(own) - 1))
        keys[layer] = torch.stack(columns, 1)
    block = naive_editing.block(at.model, layers[-1])
    h = torch.stack([naive_editing.at(at.model, block, c.rows[0], c.subjects[0]) for c in of])
    return keys, (z - h).T


def test_capacity_by_plain_inverses(benches, room):
    at, v = benches.at(ONE), room.values
    requests = many.counterfact(at, ONE)[:5]
    assert v["known"] == 5 and v["subjects"] == len({r.subject for r in requests})
    assert (v["memories"], v["width"]) == (128, 48)
    assert [(p["count"], p["blocks"]) for p in v["points"]] == [(1, 4), (2, 2), (5, 1)]
    z, _ = many.targets(at, EDITOR, requests)
    point = v["points"][2]
    keys, lack = naive(at, requests, z, (0, 1))
    weight, rest = 10.0, lack
    for layer in (0, 1):
        K, C = keys[layer], at.moments[layer]
        P = K.T @ torch.linalg.inv(weight * C + K @ K.T) @ K
        assert point["dimension"][layer] == pytest.approx(P.trace().item(), rel=1e-8)
        assert point["unwritten"][layer] == pytest.approx((1 - P.diagonal()).mean().item(), rel=1e-7)
        for x, share in zip(ROOM.weights, point["by_weight"][layer], strict=True):
            other = K.T @ torch.linalg.inv(x * C + K @ K.T) @ K
            assert share == pytest.approx((1 - other.diagonal()).mean().item(), rel=1e-7)
        sizes = [(K[:, i] @ torch.linalg.inv(C) @ K[:, i]).item() / 128 for i in range(5)]
        assert point["size"][layer] == pytest.approx(sum(sizes) / 5, rel=1e-7)
        values = torch.linalg.svdvals(K) ** 2
        assert point["rank"][layer] == pytest.approx((values.sum() ** 2 / (values**2).sum()).item(), rel=1e-8)
        rest = rest - rest / (2 - layer) @ P
    first, second = point["unwritten"]
    assert point["keys"] == pytest.approx((1 + first) / 2 * second)
    assert point["isotropic"] == pytest.approx(
        capacity.whole([capacity.isotropic(5, 128, 10.0, g) for g in point["size"]])
    )
    assert point["residuals"] == pytest.approx((rest.norm() / lack.norm()).item(), rel=1e-7)


def test_what_is_left_and_what_old_keys_bear_are_those_of_the_editor(benches, room):
    at = benches.at(ONE)
    requests = many.counterfact(at, ONE)[:5]
    z, _ = many.targets(at, EDITOR, requests)
    left, cost = [], []
    for part in (slice(0, 2), slice(2, 4)):
        edit = EDITOR(at.model, at.tok, requests[part], at.moments, templates=at.templates, targets=z[part])
        _, before = naive(at, requests[part], z[part], (0, 1))
        own = []
        for layer, delta in zip((0, 1), edit.deltas.values(), strict=True):
            W, C = naive_editing.down(at.model, layer).weight.detach(), at.moments[layer]
            own.append((torch.trace(delta @ C @ delta.T) / torch.trace(W @ C @ W.T)).item())
        cost.append(own)
        with edit.applied(at.model):
            _, after = naive(at, requests[part], z[part], (0, 1))
        left.append((after.norm() / before.norm()).item())
    point = room.values["points"][1]
    assert point["left"] == pytest.approx(sum(left) / 2, rel=1e-7)
    assert point["disturbance"] == pytest.approx(numpy.mean(cost, axis=0).tolist(), rel=1e-7)


# ---------------------------------------------------------------------- the algorithm written out
def plainly(memories, of, z, layers, weight, moments):
    deltas, before = {}, {layer: memories.values(layer).clone() for layer in layers}
    for done, layer in enumerate(layers):
        columns, streams = [], []
        for c in of:
            own = [
                naive_editing.at(
                    memories.model, naive_editing.down(memories.model, layer), row, last, "input"
                )
                for row, last in zip(c.rows, c.subjects, strict=True)
            ]
            columns.append(own[0] / 2 + sum(own[1:]) / 2 / (len(own) - 1))
            block = naive_editing.block(memories.model, layers[-1])
            streams.append(naive_editing.at(memories.model, block, c.rows[0], c.subjects[0]))
        K, R = torch.stack(columns, 1), (z - torch.stack(streams)).T / (len(layers) - done)
        deltas[layer] = R @ K.T @ torch.linalg.inv(weight * moments[layer] + K @ K.T)
        memories.values(layer).add_(deltas[layer])
    for layer in layers:
        memories.values(layer).copy_(before[layer])
    return deltas


def wrong(
    memories, of, z, layers, weight, moments
):  # leaves the model changed, and asks each layer for too much
    deltas = plainly(memories, of, z, layers, weight, moments)
    memories.values(layers[0]).add_(1.0)
    return {layer: 1.01 * delta for layer, delta in deltas.items()}


def test_the_algorithm_written_out_is_the_editor(benches):
    model = benches.at(replace(ONE, dtype="float64")).model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    row = capacity.algorithm(benches, ONE, plainly)
    v = row.values
    assert [each["layer"] for each in v["layers"]] == [0, 1] and v["facts"] == 3 and v["restored"] is True
    assert all(each["distance"] < 1e-9 and each["size"] > 1e-3 for each in v["layers"])
    off = capacity.algorithm(benches, ONE, wrong)
    assert off.digest != row.digest, "another text is another row"
    assert [each["distance"] for each in off.values["layers"]] == [pytest.approx(0.01)] * 2
    assert off.values["restored"] is False
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()), (
        "put back all the same"
    )
    assert off.values["lacking"] == v["lacking"]


def test_how_the_lack_shrinks_from_layer_to_layer(benches):
    at, s = benches.at(replace(ONE, dtype="float64")), replace(ONE, dtype="float64")
    path = capacity.algorithm(benches, ONE, plainly).values["lacking"]
    assert [p["layer"] for p in path["critical"]] == [-1, 0, 1] and [p["layer"] for p in path["highest"]] == [
        0,
        1,
    ]
    requests = benches.requests(s)
    z, _ = many.targets(at, EDITOR, requests)
    edit = EDITOR(at.model, at.tok, requests, at.moments, templates=at.templates, targets=z)
    sizes = [naive(at, requests, z, (0, 1))[1].norm()]
    first = editing.Edit(dict(list(edit.deltas.items())[:1]))
    for some in (first, edit):
        with some.applied(at.model):
            sizes.append(naive(at, requests, z, (0, 1))[1].norm())
    assert [p["lacking"] for p in path["critical"]] == pytest.approx(
        [(x / sizes[0]).item() for x in sizes], rel=1e-7
    )
    assert path["critical"] == path["all up to it"] and Memories(at.model).count == 128


# ---------------------------------------------------------------------- all of it
def test_rank_of_constant_scores_is_none():
    assert says.rank([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == 0.0
    assert says.rank([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 9.0]) == pytest.approx(
        stats.spearmanr(range(4), [1, 3, 2, 9])[0]
    )
