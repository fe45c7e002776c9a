"""Chapter 09's numbers against plain loops: gates, nulls, movement under a mask, the contrast, what variants add."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny, tokens
from scipy import stats
from torch.nn import functional as F

from kemem import trace
from kemem.continual import DAS, Course, Units
from kemem.continual.contrast import last_hidden
from kemem.continual.gates import SITES
from kemem.continual.importance import Measuring, domain_importance
from kemem.continual.softmask import multipliers
from kemem.corpora import Blocks
from kemem.memory import Memories
from kemem.objective import Masked, causal, mix
from kemem.runs import Row, Store
from kemem.studies import budget, courses, looking, masking, moving, nulls, pairing, units, variants
from kemem.studies.lab import Lab
from kemem.training import Domain, Recipe, train
from kemem.training.order import Order

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab("smoke", Store(tmp_path_factory.mktemp("units")), ROOT)


def asked(kind, *, masked=False, **changes):
    return looking.settings(kind, "smoke", masked=masked, **changes)


def scores(count=3, layers=2, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(layers, size, generator=generator, dtype=torch.float64) ** 3 for _ in range(count)]


def doubles(found):
    return torch.tensor(found, dtype=torch.float64)


def everywhere(scores):
    return Units(scores, scores, scores)


# ---------------------------------------------------------------------- likeness and its null
def plain_cosine(a, b):
    a, b = a.flatten().tolist(), b.flatten().tolist()
    dot, lengths = math.fsum(x * y for x, y in zip(a, b, strict=True)), (math.hypot(*a), math.hypot(*b))
    return dot / (lengths[0] * lengths[1])


def test_the_mean_over_pairs_is_the_mean_of_each_with_the_others():
    found = scores(4)
    by_domain = [
        sum(plain_cosine(a, b) for j, b in enumerate(found) if j != i) / 3 for i, a in enumerate(found)
    ]
    assert nulls.mean_cosine(found) == pytest.approx(sum(by_domain) / 4, rel=1e-12)


def test_unrelated_scores_are_all_shuffles_within_layers():
    a, b = scores(2, layers=2, size=3)
    ways = list(itertools.permutations(range(3)))
    every = [
        plain_cosine(torch.stack([a[0][list(p)], a[1][list(q)]]), torch.stack([b[0][list(r)], b[1][list(s)]]))
        for p, q, r, s in itertools.product(ways, repeat=4)
    ]
    assert nulls.unrelated_cosine([a, b]) == pytest.approx(sum(every) / len(every), rel=1e-10)
    assert abs(nulls.unrelated_cosine([a, b]) - nulls.mean_cosine([a, b])) > 1e-3


def test_shuffles_stay_within_layers_and_have_that_mean():
    generator = torch.Generator().manual_seed(1)
    found = scores(3, layers=3, size=4)
    drawn = nulls.shuffled(found, 4000, generator)
    assert drawn.shape == (4000,) and drawn.std() > 0.01
    assert float(drawn.mean()) == pytest.approx(
        nulls.unrelated_cosine(found), abs=float(4 * drawn.std() / 4000**0.5)
    )
    apart = [torch.zeros(2, 4, dtype=torch.float64) for _ in range(2)]
    for layer, score in enumerate(apart):
        score[layer] = torch.arange(1.0, 5.0)
    assert nulls.shuffled(apart, 50, generator).abs().max() < 1e-12


def test_normal_scores_have_the_null_of_the_sheet():
    drawn = torch.randn(6, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = nulls.likeness([everywhere(each) for each in drawn], "heads")
    assert found["paper_abs"] == pytest.approx(0.79, abs=0.02)
    assert found["paper_abs, unrelated"] == pytest.approx(found["paper_abs"], abs=0.02)
    assert abs(found["rank"]) < 0.1


def test_ranks_are_within_layers():
    a = torch.tensor([[1.0, 2.0, 3.0], [100.0, 300.0, 200.0], [5.0, 5.0, 5.0]])
    b = torch.tensor([[7.0, 8.0, 9.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    wanted = (1.0 + stats.spearmanr([100, 300, 200], [3, 2, 1]).statistic) / 2  # the flat layer says nothing
    assert nulls.within(a, b) == pytest.approx(wanted)
    assert nulls.within(a[2:], b[2:]) == 0.0


def test_differing_takes_off_the_null():
    found = nulls.differing({"raw": 0.9, "raw, unrelated": 0.6, "rank": 0.2})
    assert found["raw, more"] == pytest.approx(0.3) and set(found) == {
        "raw",
        "raw, unrelated",
        "raw, more",
        "rank",
    }


def test_heads_are_measured_by_what_they_put_out(lab):
    """The row's importance for a domain, without gates: the slice of a head times the gradient that reaches it."""
    s = asked(units.Measured)
    row = units.importance(lab, s)
    at = looking.opened(lab, s, {}, count=1)
    model, data = at.model, at.domains[0].train
    memories = Memories(model)
    paths = [f"{memories.attention_path(layer)}.{memories.layout.output}" for layer in range(memories.layers)]
    total = torch.zeros(memories.layers, memories.heads, dtype=torch.float64)
    read = Measuring(s.samples, seed=s.seed).rows(len(data))
    assert len(read) == row.values["texts"] == 6
    for text in read:
        seen = {path: [] for path in paths}
        with trace.observe(model, {path: seen[path].append for path in paths}):
            loss = causal(model, data.batch(text[None]))
        found = torch.autograd.grad(loss, [seen[path][0] for path in paths])
        for layer, (path, gradient) in enumerate(zip(paths, found, strict=True)):
            product = (seen[path][0] * gradient).view(*gradient.shape[:2], memories.heads, -1)
            total[layer] += product.sum((0, 1, 3)).abs().detach()
    assert torch.allclose(doubles(row.values["heads"]["domain"][0]), total / len(read), rtol=1e-8)


def test_rows_at_all_seeds_are_evidence(lab, monkeypatch):
    assert units.alike(Store(lab.store.live / "none"), "smoke", masked=False) == []
    assert units.alike(lab.store, "gpu") == [] and units.results(lab.store, "gpu") == {}
    monkeypatch.setitem(looking.SEEDS, "smoke", (0, 1))
    rows = units.importances(lab, masked=False)
    found = units.alike(lab.store, "smoke", masked=False)
    assert len(found) == 2 and found[0] != found[1]
    for one, row in zip(found, rows, strict=True):
        heads = [doubles(each) for each in row.values["heads"]["general"]]
        assert one["raw"] == pytest.approx(plain_cosine(*heads))
        assert one["raw, more"] == pytest.approx(one["raw"] - nulls.unrelated_cosine(heads))
    same = [plain_cosine(*(doubles(row.values["heads"]["general"][i]) for row in rows)) for i in range(2)]
    assert units.again(rows) == pytest.approx(sum(same) / 2) and units.again(rows[:1]) == 1.0
    results = units.results(lab.store, "smoke")
    assert results["units.causal.general.heads.raw"].value == pytest.approx(
        (found[0]["raw"] + found[1]["raw"]) / 2
    )
    assert results["units.seeds"].value == 2 and "units.masked.general.heads.raw" not in results


def test_all_rows_are_as_good_as_all_rows(lab):
    row = units.share(lab, asked(units.Shared, shares=(0.25, 1.0))).values
    assert row["texts"] == [3, 12] and row["rows"] == 12
    for site in SITES:  # no dropout and no corruption: the order of texts alone differs
        assert row["ranks"]["domain"][site][1] == pytest.approx(1.0)
    assert row["ranks"]["domain"]["intermediate"][0] < 1
    assert row["ranks"]["general"]["intermediate"][1] < 1  # other noise


# ---------------------------------------------------------------------- masks
def test_spared_by_hand():
    raw = torch.tensor([[0.0, 1.0, 2.0, 9.0]], dtype=torch.float64)
    found = units.spared([everywhere(raw)])
    std = math.sqrt((9 + 4 + 1 + 36) / 3)
    absolute = [math.tanh(abs(x - 3) / std) for x in (0, 1, 2, 9)]
    own = found["paper_abs"]["heads"]
    assert own["below"] == pytest.approx(sum(absolute[:3]) / 3) and own["above"] == pytest.approx(absolute[3])
    assert own["wrong"] == pytest.approx(sum(absolute[:3]) / sum(absolute))
    assert own["rank"] == pytest.approx(stats.spearmanr([0, 1, 2, 9], absolute).statistic)
    assert found["tanh_clip"]["heads"]["wrong"] == 0 and found["rank"]["output"]["mean"] == pytest.approx(0.5)


def test_masks_fill_by_the_larger_number():
    first = torch.tensor([[0.0, 1.0, 2.0], [5.0, 4.0, 3.0]], dtype=torch.float64)
    second = torch.tensor([[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]], dtype=torch.float64)
    found = masking.filled([everywhere(first), everywhere(second)], "rank")["output"]
    assert found["mean"] == pytest.approx([0.5, (1 + 0.5 + 1 + 1 + 0.5 + 0) / 6])
    assert found["free"] == pytest.approx([2 / 6, 1 / 6])


def test_sorted_curves_have_their_ends_and_unit_mean():
    found = torch.rand(2, 63, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curves = masking.sorted_by_layer(found)
    for curve, layer in zip(curves, found, strict=True):
        assert len(curve) == masking.QUANTILES and curve == sorted(curve, reverse=True)
        assert curve[0] == pytest.approx(float(layer.max() / layer.mean()), rel=1e-3)
        assert curve[-1] == pytest.approx(float(layer.min() / layer.mean()), rel=1e-3)


@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_what_is_kept_is_what_das_measures(family):
    ids = tokens(12, 8)
    domain = Domain("one", Blocks(ids, torch.zeros_like(ids)))
    goal = Masked(mask_id=4, vocabulary=61, share=0.3) if family == "roberta" else causal
    recipe = Recipe(steps=2, batch_size=4, learning_rate=1e-2)
    found = []
    own = masking.Own(goal, 6, 3)
    for importance in ({}, {"importance": own}):
        method = DAS(objective=goal, samples=6, seed=3, **importance)
        model = tiny(family, dtype=torch.float64)
        for _ in range(2):
            train(model, domain, recipe, method, objective=goal)
        found.append(method.known.tensors())
    assert len(own.kept) == 3
    assert all(torch.equal(found[0][site], found[1][site]) for site in SITES)
    last = masking.filled(own.kept, "tanh_clip")
    for site in SITES:
        assert last[site]["mean"][-1] == pytest.approx(float(found[0][site].mean()), rel=1e-12)
        assert last[site]["mean"] == sorted(last[site]["mean"])


def test_a_course_is_watched(lab):
    row = masking.run(lab, asked(masking.Coursed)).values
    assert row["names"] == ["networkx", "Sumstan"] and len(row["loss"]) == len(row["before"]) == 2
    assert len(row["heads"]) == len(row["output"]) == len(row["intermediate"]) == 3
    assert all(len(own["mean"]) == 3 for sites in row["filled"].values() for own in sites.values())
    assert row["loss"][0][0] != row["before"][0]


# ---------------------------------------------------------------------- movement
def plain_way(at, s, masks, *, epsilon, placement, steps):
    """Movement by a plain loop with torch's own AdamW; the model has no dropout."""
    start = {name: p.detach().clone() for name, p in at.model.named_parameters()}
    optimizer = torch.optim.AdamW(at.model.parameters(), lr=s.learning_rate, eps=epsilon, weight_decay=0.0)
    data = at.domains[0].train
    order = Order(len(data), s.batch, s.seed)
    for step in range(steps):
        _, rows = order(step)
        causal(at.model, data.batch(rows)).backward()
        before = {name: p.detach().clone() for name, p in at.model.named_parameters()}
        if placement == "gradient":
            for name, mask in masks.items():
                at.model.get_parameter(name).grad *= mask
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            if placement == "update":
                for name, mask in masks.items():
                    p = at.model.get_parameter(name)
                    p.copy_(before[name] + mask * (p - before[name]))
    moved = {name: (p.detach() - start[name]) for name, p in at.model.named_parameters()}
    with torch.no_grad():
        for name, p in at.model.named_parameters():
            p.copy_(start[name])
    return moved


def test_movement_is_that_of_a_plain_loop(lab):
    s = asked(moving.Moved)
    row = moving.movement(lab, s).values
    at = looking.opened(lab, s, {}, count=1)
    masks = multipliers(at.model, moving.scattered(Memories(at.model), s.values, s.seed))
    at.model.train()
    ways = {
        "update": (1e-6, "update", 2), "one step": (1e-6, "update", 1), 1e-6: (1e-6, "gradient", 2),
        1e-2: (1e-2, "gradient", 2),
    }  # fmt: skip
    for name, (epsilon, placement, steps) in ways.items():
        held, free = (
            plain_way(at, s, masks, epsilon=epsilon, placement=how, steps=steps) for how in (placement, "")
        )
        for i, value in enumerate(s.values):
            squares = [0.0, 0.0]
            for parameter, mask in masks.items():
                entries = torch.isclose(
                    mask.double(), torch.tensor(1 - value).double(), atol=1e-6, rtol=0
                ).expand(free[parameter].shape)
                for k, way in enumerate((held, free)):
                    squares[k] += float(way[parameter][entries].square().sum())
            found = row[name][i] if isinstance(name, str) else row["gradient"][f"{name:g}"][i]
            assert found == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-5), (name, value)
    assert row["one step"] == pytest.approx([1 - value for value in s.values], rel=1e-8)
    assert row["gradient"]["1e-06"][2] > 0.5 > 0.2 > row["update"][2]
    assert row["sgd"] == pytest.approx([1 - value for value in s.values], rel=0.1)


def test_importances_are_dealt_out_evenly():
    memories = Memories(tiny("olmo"))
    values = (0.0, 0.5, 0.9)
    for site, found in moving.scattered(memories, values, 0).tensors().items():
        counts = [int((found == value).sum()) for value in values]
        assert sum(counts) == found.numel() and max(counts) - min(counts) <= 1, site
    one, two = (moving.scattered(memories, values, seed).output for seed in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize(("value", "epsilon"), [(0.5, 1e-8), (0.99, 1e-4), (0.999, 1e-2)])
def test_the_estimate_is_exact_for_a_constant_gradient(value, epsilon):
    ways = []
    for factor in (1 - value, 1.0):
        w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([w], lr=1e-3, eps=epsilon, weight_decay=0.0)
        for _ in range(50):
            w.grad = torch.full_like(w, factor * 3e-4)
            optimizer.step()
        ways.append(w.item())
    assert moving.predicted(value, 3e-4, epsilon) == pytest.approx(ways[0] / ways[1], rel=1e-9)


# ---------------------------------------------------------------------- the contrast
def test_both_ways_to_pair_by_plain_sums():
    full, twin, previous = (torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i in range(3))
    found = pairing.compared(full, twin, previous, 0.5)

    def loss(anchors, positives, more):
        total = 0.0
        for n, anchor in enumerate(anchors):
            terms = [
                math.exp(F.cosine_similarity(anchor, other, dim=0) / 0.5) for other in [*positives, *more]
            ]
            total -= math.log(terms[n] / sum(terms)) / len(anchors)
        return total

    tiled = [*full, *twin]  # the batch twice, then read in twos
    wrong = tiled[0::2], tiled[1::2]
    assert found["twins"] == pytest.approx(loss(full, twin, previous), rel=1e-5)
    assert found["twins alone"] == pytest.approx(loss(full, twin, []), rel=1e-5)
    assert found["mispaired"] == pytest.approx(loss(*wrong, previous), rel=1e-5)
    assert found["mispaired alone"] == pytest.approx(loss(*wrong, []), rel=1e-5)
    own = [float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(full, twin, strict=True)]
    assert found["cosine of twins"] == pytest.approx(sum(own) / 4, rel=1e-5)
    other = [
        float(F.cosine_similarity(a, b, dim=0))
        for i, a in enumerate(full)
        for j, b in enumerate(twin)
        if i != j
    ]
    assert found["cosine of others"] == pytest.approx(sum(other) / 12, rel=1e-5)
    shut = [float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(*wrong, strict=True)]
    assert found["cosine of mispaired"] == pytest.approx(sum(shut) / 4, rel=1e-5)


@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_views_are_those_of_training(family):
    model = tiny(family, dtype=torch.float64)
    ids = tokens(3, 7)
    batch = {"input_ids": ids, "labels": ids}
    nothing = moving.scattered(Memories(model), (1.0,), 0)
    full, twin, previous = pairing.views(model, batch, nothing, 5)
    assert not model.training and not full.requires_grad
    plain = last_hidden(model, batch).mean(1)
    if family == "olmo":  # no dropout: the twin is the view itself, and all gates at one change nothing
        assert torch.equal(full, twin) and torch.allclose(full, plain) and torch.equal(previous, full)
    else:
        assert not torch.allclose(full, twin) and not torch.allclose(full, plain)
    again = pairing.views(model, batch, nothing, 5)
    assert torch.equal(again[0], full) and torch.equal(again[1], twin)
    half = pairing.views(model, batch, nothing.map(lambda one: 0.5 * one), 5)
    assert torch.equal(half[0], full) and not torch.allclose(half[2], previous)


@pytest.mark.parametrize("masked", [True, False])
def test_smoke_rows_are_the_same_again(lab, masked, tmp_path):
    s = asked(pairing.Contrasted, masked=masked)
    first = pairing.contrast(lab, s).values
    second = pairing.contrast(replace(lab, store=Store(tmp_path)), s).values if not masked else None
    assert first["drops"] == masked and first["candidates"] == 8
    if second is not None:
        assert second == pytest.approx(first)
        assert first["cosine of twins"] == pytest.approx(1.0)
    else:
        assert 0.9 < first["cosine of twins"] < 1 and first["twins"] < first["mispaired"]


# ---------------------------------------------------------------------- variants
def told(average: float, learned: float = 0.0) -> Row:
    """Of two domains that end at this loss; the first was at half of it."""
    course = Course(["a", "b"], [9.0, 9.0], [[average / 2, average], [9.0, average]], [1.0])
    assert course.average == average and course.forgetting == average / 2
    return Row("courses", 1, {}, courses.told(course), {}, "live")


def test_variants_stand_beside_plain_das_seed_by_seed():
    plain = {("das", 0, seed): told(4.0 + seed) for seed in range(2)}
    rows = {("off", 0, seed): told(6.0 + 2 * seed) for seed in range(2)}
    found, whole = variants.less(rows, plain)
    assert found == {
        "off": {
            "average": pytest.approx([2.0, 3.0]),
            "forgetting": pytest.approx([1.0, 1.5]),
            "learned": pytest.approx([-1.5, -2.25]),
        }
    }
    assert whole["average"] == [4.0, 5.0]


def test_only_the_trials_of_das_are_asked_for(tmp_path):
    z = budget.sizes("laptop", masked=True)
    tried = budget.tuning(variants.alone(z))
    assert len(tried) == 4 and {s.method for s in tried.values()} == {"das"}
    made = {"das": next(iter(tried))[1]}
    whole = variants.plain_das(z, made)
    contest = budget.contest(z, dict.fromkeys(z.names, made["das"]))
    assert len(whole) == 3 and all(contest[place] == s for place, s in whole.items())
    assert variants.finished(Store(tmp_path), "smoke", masked=True, grid="defect") == ({}, {})


def test_importance_of_other_seeds_reads_other_texts(lab):
    """The mean over half of the rows depends on which; all rows would not."""
    at = looking.opened(lab, asked(units.Measured), {}, count=1)
    data = at.domains[0].train
    half = [domain_importance(at.model, data, at.goal, Measuring(6, seed=seed)).output for seed in (0, 1)]
    whole = [
        domain_importance(at.model, data, at.goal, Measuring(12, seed=mix(seed, 1))).output for seed in (0, 1)
    ]
    assert not torch.allclose(*half) and torch.allclose(*whole)
