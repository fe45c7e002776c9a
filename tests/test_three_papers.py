"""Chapter 15's numbers against scipy, weights changed by hand and plain loops."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny, tokens
from scipy import stats

from kemem import entropy, trace
from kemem.corpora import Blocks
from kemem.editing import MEMIT, Judge, Search
from kemem.editing.places import place
from kemem.errors import BadInput
from kemem.evaluation import loss
from kemem.memory import Memories
from kemem.objective import causal
from kemem.runs import Row, Store, canonical
from kemem.studies import (
    agreement,
    editability,
    factual,
    many,
    notions,
    rescaling,
    silencing,
    three_papers,
)
from kemem.studies import desk as desks
from kemem.studies.checkpointed import MIXTURE, Compared, Stages, knowing, length
from kemem.studies.lab import Lab

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab("smoke", Store(tmp_path_factory.mktemp("papers")), ROOT)


@pytest.fixture(scope="module")
def desk(lab):
    return desks.Desk(lab)


@pytest.fixture(scope="module")
def stages(desk):
    return desk.stages


@pytest.fixture(scope="module")
def measured(desk, stages):
    s = desks.noted(desk.z)[desk.z.of.steps[-1]]
    return s, notions.measured(stages, s)


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------- agreement
def spearman(a, b):
    return float(stats.spearmanr(a.numpy(), b.numpy()).statistic)


def by_hand(a, b, draws):
    """Spearman's correction of the mean rank correlation across draws, mean over layers."""
    layers = []
    for layer in range(a.shape[1]):

        def across(x, y, layer=layer):
            found = [spearman(x[s, layer], y[t, layer]) for s, t in itertools.permutations(draws, 2)]
            return sum(found) / len(found)

        layers.append((across(a, b), across(a, a), across(b, b)))
    raw = sum(r for r, _, _ in layers) / len(layers)
    return raw, sum(r / math.sqrt(x * y) for r, x, y in layers) / len(layers)


def noisy(latent, noise, seed):
    return latent + noise * drawn(4, *latent.shape, seed=seed)


def test_agreement_is_spearmans_within_layers_corrected_across_draws():
    latent = drawn(3, 30)
    a, b = noisy(latent, 0.5, 1), noisy(latent.square(), 0.3, 2)
    found = agreement.agreement(a, b)
    raw, corrected = by_hand(a, b, range(4))
    assert found.raw == pytest.approx(raw, rel=1e-12)
    assert found.corrected == pytest.approx(corrected, rel=1e-12)
    left = [by_hand(a, b, [d for d in range(4) if d != out])[1] for out in range(4)]
    error = math.sqrt(3 / 4 * sum((x - sum(left) / 4) ** 2 for x in left))
    half = stats.t.ppf(0.975, 3) * error
    assert (found.low, found.high) == pytest.approx((corrected - half, corrected + half), rel=1e-10)


def test_the_correction_finds_two_measures_of_one_thing_to_be_one():
    latent = drawn(2, 400)
    found = agreement.agreement(noisy(latent, 1.0, 3), noisy(latent, 1.0, 4))
    assert found.raw < 0.6 and found.corrected == pytest.approx(1, abs=0.05)
    assert found.ceiling == pytest.approx(found.raw, abs=0.05)
    other = agreement.agreement(noisy(latent, 1.0, 3), noisy(drawn(2, 400, seed=9), 1.0, 4))
    assert abs(other.corrected) < 0.15


def test_ties_and_measures_that_tell_nothing():
    a = torch.tensor([[[1.0, 1.0, 2.0, 3.0, 0.0]], [[1.0, 1.0, 2.0, 3.0, 0.0]]])
    b = torch.tensor([[[5.0, 1.0, 1.0, 4.0, 4.0]], [[5.0, 1.0, 1.0, 4.0, 4.0]]])
    assert agreement.agreement(a, b).raw == pytest.approx(spearman(a[0, 0], b[0, 0]), rel=1e-12)
    flat = agreement.agreement(a, torch.ones_like(b))
    assert flat.raw == 0 and flat.corrected is None and flat.low is None


def test_partial_is_the_correlation_of_what_is_left():
    rng = np.random.default_rng(0)
    z = rng.normal(size=500)
    x, y = z + rng.normal(size=500), -0.5 * z + rng.normal(size=500)
    left = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    r = np.corrcoef(np.stack([x, y, z]))
    assert agreement.partial(r[0, 1], r[0, 2], r[1, 2]) == pytest.approx(np.corrcoef(*left)[0, 1], rel=1e-9)
    assert agreement.partial(0.5, 1.0, 0.3) is None


def test_the_top_is_a_share_of_each_layer():
    a = drawn(3, 2, 20)
    mask = agreement.top(a, 0.1)
    assert mask.sum(-1).eq(2).all()
    assert (a[mask].view(3, 2, 2).amin(-1) > a.masked_fill(mask, -1).amax(-1)).all()
    b = drawn(3, 2, 20, seed=1)
    tops = [
        [{*own[s, layer].topk(2).indices.tolist()} for layer in range(2)] for own in (a, b) for s in range(3)
    ]
    pairs = [
        len(tops[s][layer] & tops[3 + t][layer])
        for s in range(3)
        for t in range(3)
        if s != t
        for layer in range(2)
    ]
    assert agreement.shared(a, b, 0.1) == pytest.approx(sum(pairs) / len(pairs) / 2, rel=1e-12)
    same = a[:1].expand(3, -1, -1)
    assert agreement.shared(same, same, 0.1) == 1


# ---------------------------------------------------------------------- silencing
@pytest.mark.parametrize("family", ["olmo", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("square", [False, True])
def test_silencing_is_taking_columns_out_of_the_values(family, square):
    model = tiny(family, square=square, dtype=torch.float64)
    memories, ids = Memories(model), tokens(3, 10)
    which = drawn(memories.layers, memories.count) < 0.3
    fill = drawn(memories.layers, memories.count, seed=1) - 0.5
    cut = copy.deepcopy(model)
    for layer in range(memories.layers):
        with torch.no_grad():
            Memories(cut).values(layer)[:, which[layer]] = 0
    with torch.no_grad(), silencing.silenced(model, which):
        assert torch.allclose(model(ids).logits, cut(ids).logits, atol=1e-12)

    # a memory that is held at its mean adds the same vector everywhere
    def adding(layer):
        return lambda out: out + memories.values(layer) @ (which[layer] * fill[layer])

    added = {memories.down_path(layer): adding(layer) for layer in range(memories.layers)}
    with torch.no_grad(), trace.replace(cut, added):
        wanted = cut(ids).logits
    with torch.no_grad(), silencing.silenced(model, which, fill):
        assert torch.allclose(model(ids).logits, wanted, atol=1e-12)
    with torch.no_grad(), silencing.silenced(model, which & False):
        inside = model(ids).logits
    assert torch.equal(inside, model(ids).logits)


def test_means_are_over_all_tokens():
    model = tiny("olmo", dtype=torch.float64)
    ids = tokens(5, 10)
    rows, memories = Blocks(ids, torch.zeros_like(ids)), Memories(model)
    with torch.no_grad(), trace.record(model, [memories.down_path(1)], side="input") as seen:
        model(ids)
    (c,) = seen[memories.down_path(1)]
    found = silencing.means(model, rows, batch_size=2)
    assert torch.allclose(found[1], c.flatten(0, 1).mean(0), rtol=1e-9)


def test_what_is_silenced_is_the_top_of_each_notion_and_what_is_special_to_one():
    found = {name: drawn(2, 1, 40, seed=i) + 0.1 for i, name in enumerate(("usage", "key", "loss, world"))}
    sets = silencing.chosen(found, 0.1, 0)
    assert set(sets) == {*found, "key / usage", silencing.LEAST, silencing.RANDOM}
    assert all(mask.sum(-1).eq(4).all() for mask in sets.values())
    ratio = found["key"] / found["usage"]
    assert torch.equal(sets["key / usage"], agreement.top(ratio, 0.1))
    assert (
        found["usage"][sets[silencing.LEAST]].view(2, -1).amax(-1) <= found["usage"].quantile(0.11, -1)[:, 0]
    ).all()
    again, other = (silencing.chosen(found, 0.1, seed)[silencing.RANDOM] for seed in (0, 1))
    assert torch.equal(sets[silencing.RANDOM], again) and not torch.equal(again, other)


def test_a_row_of_silencing_is_what_the_cut_model_loses(desk, stages, measured):
    step, asked = next(iter(desks.quiet(desk.z).items()))
    row = silencing.run(stages, replace(asked, facts=0))
    at, found = stages.bench(step), measured[1]
    text = stages.rows("world")[-1]
    before = loss(at.model, text)
    cut = copy.deepcopy(at.model)
    for layer, own in enumerate(found["usage"][1]):
        worst = own.topk(round(0.1 * len(own))).indices
        with torch.no_grad():
            Memories(cut).values(layer)[:, worst] = 0
    assert row.values["lost"]["zero"]["usage"][1]["world"] == pytest.approx(
        loss(cut, text) - before, rel=1e-9
    )
    assert row.values["before"]["world"] == pytest.approx(before, rel=1e-12)
    whole = copy.deepcopy(at.model)
    with torch.no_grad():
        Memories(whole).values(1).zero_()
    assert row.values["layers"]["zero"][1]["world"] == pytest.approx(loss(whole, text) - before, rel=1e-9)
    share = (found["contribution"][0] * agreement.top(found["key"], 0.1)[0]).sum(-1) / found["contribution"][
        0
    ].sum(-1)
    assert row.values["contribution"]["key"][0] == pytest.approx(float(share.mean()), rel=1e-9)


def test_facts_are_missed_that_no_key_was_measured_on(desk, stages):
    step, asked = next(iter(desks.quiet(desk.z).items()))
    at = stages.bench(step)
    ask = silencing.Ask(stages, at, asked)
    taken = {r.subject for draw in stages.drawn() for r in draw}
    assert len(ask.facts) == asked.facts and taken.isdisjoint(r.subject for r in ask.facts)
    assert all(r.new == r.true for r in ask.facts)
    assert set(ask(at.model).values()) == {0.0} and set(ask.before) == {"world", "docstrings", "facts"}


def test_what_is_lost_is_told_as_points_and_nats(desk, lab):
    z = desk.z
    (s,) = desks.quiet(z).values()
    lost = {"mean": {"key": [{"world": 0.5, "facts": -0.25}, {"world": 1.5, "facts": -0.75}]}}
    lab.store.row(
        silencing.STUDY,
        silencing.VERSION,
        s,
        lambda _: {"lost": lost, "facts": 4, "contribution": {"key": [0.2, 0.4]}},
        recorded=True,
    )
    found = three_papers.results(lab.store, "smoke")
    assert found["papers.silenced.last.mean.key.world"].value == 1.0
    assert found["papers.silenced.last.mean.key.facts"].value == 50.0
    assert found["papers.silenced.last.mean.key.facts"].unit == "points"
    assert found["papers.silenced.last.key.share"].value == pytest.approx(30.0)


# ---------------------------------------------------------------------- what is compared
def test_rows_of_a_draw_are_no_others_and_one_part_is_left(stages):
    parts = stages.rows(MIXTURE)
    assert len(parts) == stages.of.draws + 1
    seen = [tuple(row) for part in parts for row in part.ids.tolist()]
    assert len(set(seen)) == len(seen)


def test_draws_of_facts_share_no_subject(stages):
    draws = stages.drawn()
    subjects = [r.subject for draw in draws for r in draw]
    assert [len(draw) for draw in draws] == [stages.of.subjects] * stages.of.draws
    assert len(set(subjects)) == len(subjects)
    every = stages.common("reported")
    count = len({r.subject for r in every}) // 2 + 1
    assert 2 * count <= len(every)  # facts there are, but not subjects
    with pytest.raises(BadInput, match=f"expected facts of {2 * count} subjects"):
        Stages(stages.lab, replace(stages.of, draws=2, subjects=count)).drawn()


def test_facts_are_the_same_whatever_is_written(stages):
    a, b = (
        {(r.subject, r.relation, r.true): r.new for r in stages.common("reported", seed=seed)}
        for seed in (0, 1)
    )
    both = [
        fact for fact in a if fact in b
    ]  # a text may be too long for the context with another object in it
    assert len(both) > 10 and both == [fact for fact in b if fact in a]
    assert [a[fact] for fact in both] != [b[fact] for fact in both]
    a = stages.facts(6)
    _, tok = stages.model(stages.of.steps[0])
    assert max(length(tok, r) for r in a) <= stages.of.model.setup.length
    with pytest.raises(BadInput, match="expected 100000 reported facts that all compared stages know; got"):
        stages.facts(100_000)


def test_facts_that_must_be_known_are_said_by_every_stage(lab):
    model = factual.settings("smoke")
    strict = Stages(lab, Compared(model, model.steps, draws=2, subjects=2, ordinary=20))
    own, free = strict.common("reported"), Stages(lab, replace(strict.of, known=False)).common("reported")
    net, tok = strict.model(model.steps[-1])
    assert 0 < len(own) < len(free)
    assert {(r.subject, r.relation) for r in own} == {
        (r.subject, r.relation) for r in knowing(net, tok, free)
    }


def test_stages_that_were_not_kept_are_refused():
    model = factual.settings("smoke")
    with pytest.raises(BadInput, match="expected stages among the steps 1500; got 7"):
        Compared(model, (7,))
    with pytest.raises(BadInput, match="two draws or more"):
        Compared(model, model.steps, draws=1)
    with pytest.raises(BadInput, match="smoke, laptop, gpu; got 'paper'"):
        desks.sizes("paper")


# ---------------------------------------------------------------------- notions
def coefficients(model, ids, layer):
    memories = Memories(model)
    with torch.no_grad(), trace.record(model, [memories.down_path(layer)], side="input") as seen:
        model(ids)
    return seen[memories.down_path(layer)][0]


def test_usage_and_importance_are_those_of_plain_loops(stages, measured):
    s, found = measured
    model, draw = stages.bench(s.step).model, 2
    ids = stages.rows(MIXTURE)[draw].ids.long()
    memories = Memories(model)
    usage = coefficients(model, ids, 1).abs().mean((0, 1))
    assert torch.allclose(found["usage"][draw, 1], usage, rtol=1e-9)
    assert torch.allclose(found["contribution"][draw, 1], usage * memories.values(1).norm(dim=0), rtol=1e-9)
    # dL/dg = sum_t c_t dL/dc_t, one text at a time
    total = torch.zeros(memories.count, dtype=torch.float64)
    for row in ids:
        kept = []
        with trace.observe(model, {memories.down_path(1): kept.append}):
            value = causal(model, {"input_ids": row[None], "labels": row[None]})
        (c,) = kept
        total += (c * torch.autograd.grad(value, c)[0]).sum((0, 1)).abs() / len(ids)
    assert torch.allclose(found["loss"][draw, 1], total, rtol=1e-6)
    assert "loss, world" in found and not torch.equal(found["loss, world"], found["loss"])


def test_keys_are_the_coefficients_at_the_subjects_last_token(stages, measured):
    s, found = measured
    at, draw = stages.bench(s.step), 1
    keys = []
    for r in stages.drawn()[draw]:
        where = place(at.tok, r.prompt, r.subject)
        ids = torch.tensor([where.ids[: where.last + 1]])
        keys.append(coefficients(at.model, ids, 0)[0, -1])
    K = torch.stack(keys)
    assert torch.allclose(found["key"][draw, 0], K.abs().mean(0), rtol=1e-7)
    assert torch.allclose(
        found["key, centred"][draw, 0], (K - K.mean(0)).abs().mean(0), rtol=1e-7, atol=1e-12
    )
    white = (np.linalg.inv(at.moments[0].numpy()) @ K.T.numpy() ** 1) ** 2
    assert np.allclose(found["key, whitened"][draw, 0], np.sqrt(white.mean(1)), rtol=1e-5)


def test_columns_are_those_of_the_edit(stages, measured):
    s, found = measured
    at, draw = stages.bench(s.step), 0
    edit = many.write(at, "MEMIT", MEMIT((1,), s.weight, Search(clamp=s.clamp)), stages.drawn()[draw])
    (delta,) = edit.deltas.values()  # [D M], as a linear layer stores it
    assert delta.shape == (Memories(at.model).width, Memories(at.model).count)
    assert torch.allclose(found["update"][draw, 1], delta.square().sum(0).sqrt(), rtol=1e-9)
    assert torch.allclose(found["written"], found["update"] * found["key"], rtol=1e-12)


def test_a_row_of_notions_is_their_agreement(desk, stages, measured):
    s, found = measured
    row = notions.run(stages, s)
    pair = notions.of_pair(row, "key", "usage")
    assert pair == notions.of_pair(row, "usage", "key")
    assert pair["corrected"] == pytest.approx(by_hand(found["usage"], found["key"], range(3))[1], rel=1e-9)
    assert len(row.values["pairs"]) == math.comb(len(found), 2)
    sums = found["loss"].sum(-1)
    shares = (sums / sums.sum(-1, keepdim=True)).mean(0)
    assert row.values["layers"]["loss"] == pytest.approx(shares.tolist(), rel=1e-9)
    units = torch.tensor(row.values["units"]["usage"])
    assert units.mean(-1).tolist() == pytest.approx([1.0] * len(units), rel=1e-3)
    of = [notions.of_pair(row, *p)["layers"] for p in (("key", "loss"), ("key", "usage"), ("loss", "usage"))]
    each = [agreement.partial(*(own[layer] for own in of)) for layer in range(2)]
    assert notions.given(row, "key", "loss", "usage") == pytest.approx(sum(each) / 2, rel=1e-12)


# ---------------------------------------------------------------------- editing
def test_scores_of_blocks_are_those_of_all_their_records(desk, stages):
    step, setting = desk.z.of.steps[-1], desk.z.settings[0]
    at, facts = stages.bench(step), stages.facts(6)
    before = {name: p.clone() for name, p in at.model.named_parameters()}
    each = editability.after(at, facts, setting, 3)
    assert all(torch.equal(p, before[name]) for name, p in at.model.named_parameters())
    found = editability.scored(each)
    for begin in (0, 3):
        own = facts[begin : begin + 3]
        with many.write(at, "MEMIT", setting.editor(), own).applied(at.model):
            assert Judge(at.tok, own)(at.model).values == each[begin // 3].values
    NS = [v for own in each for v in own.values["NS"]]
    assert found["NS"] == pytest.approx(100 * sum(NS) / 6, rel=1e-12)
    assert found["S"] == 0 or found["S"] == pytest.approx(stats.hmean([found[n] for n in ("ES", "PS", "NS")]))
    unedited = [Judge(at.tok, facts)(at.model)]
    assert editability.kept(unedited, each) == pytest.approx(100 * sum(NS) / sum(unedited[0].values["NS"]))


def test_keys_and_moments_are_told_by_their_inverse(desk, stages):
    at, facts = stages.bench(desk.z.of.steps[-1]), stages.facts(6)
    found = editability.keys(at, facts, 0)
    C = at.moments[0].numpy()
    K = torch.stack(
        [
            coefficients(at.model, torch.tensor([w.ids[: w.last + 1]]), 0)[0, -1]
            for w in (place(at.tok, r.prompt, r.subject) for r in facts)
        ]
    ).numpy()
    G = K @ np.linalg.inv(C) @ K.T
    assert found["size"] == pytest.approx(np.trace(G) / 6 / len(C), rel=1e-5)
    sizes = np.sqrt(np.diag(G))
    cosines = (G / sizes / sizes[:, None])[~np.eye(6, dtype=bool)]
    assert found["alike"] == pytest.approx(cosines.mean(), rel=1e-4)
    assert found["rank"] == pytest.approx(np.trace(C) ** 2 / (C**2).sum() / len(C), rel=1e-9)
    spread = np.diag(C)
    assert found["diagonal"] == pytest.approx(spread.sum() ** 2 / (spread**2).sum() / len(C), rel=1e-9)


def test_the_best_setting_is_that_of_the_mean_over_stages():
    settings = desks.sizes("smoke").settings

    def tried(*S):
        return Row(
            "", 1, canonical({"settings": settings}), {"scores": [{"S": own} for own in S]}, {}, "live"
        )

    whole, each = editability.best({30: tried(10.0, 30.0), 60: tried(50.0, None)})
    assert whole == settings[0] and each == {30: settings[1], 60: settings[0]}


# ---------------------------------------------------------------------- rescaled weights
def test_what_belongs_to_the_function_stays_and_what_does_not_goes(desk, stages):
    s = desks.rescale(desk.z, desk.z.settings[0])
    row = rescaling.run(stages, s)
    for name in (rescaling.LEVEL, rescaling.RANDOM):
        own = row.values[name]
        changed = own["changed"]
        assert max(changed["contribution"], changed["loss"], changed["written"], own["effect"]) < 1e-9
        assert min(changed["usage"], changed["key"], changed["update"]) > 0.1
        for score in ("S", "ES", "PS", "NS"):
            assert own[score] == row.values[rescaling.AS_TRAINED][score]
    assert row.values[rescaling.LEVEL]["entropy"] == pytest.approx(
        row.values[rescaling.LEVEL]["bound"], rel=1e-12
    )
    assert row.values[rescaling.AS_TRAINED]["rank"] > row.values[rescaling.RANDOM]["rank"]


def test_memits_update_of_rescaled_keys_is_the_update_with_columns_divided():
    K, R, C = drawn(12, 5) - 0.5, drawn(4, 5, seed=1) - 0.5, drawn(12, 40, seed=2) - 0.5
    C = C @ C.T / 40
    f = drawn(12, seed=3) + 0.2
    plain = R @ K.T @ torch.linalg.inv(7 * C + K @ K.T)
    K2, C2 = f[:, None] * K, f[:, None] * C * f
    assert torch.allclose(R @ K2.T @ torch.linalg.inv(7 * C2 + K2 @ K2.T), plain / f, rtol=1e-8)


def test_factors_level_usage_exactly():
    usage = drawn(2, 16) + 0.1
    s = desks.rescale(desks.sizes("smoke"), desks.sizes("smoke").settings[0])
    found = rescaling.factors(usage, s)
    level = usage * found[rescaling.LEVEL]
    assert torch.allclose(level, usage.mean(-1, keepdim=True).expand_as(level), rtol=1e-6)
    assert (found[rescaling.AS_TRAINED] == 1).all() and (found[rescaling.RANDOM] > 0).all()
    assert float(entropy.layer_entropy(level).sum()) == pytest.approx(2 * math.log(16), rel=1e-6)


# ---------------------------------------------------------------------- together
def learnt(before, after, tasks):
    probes = [
        {"step": step, "group": "all", "kind": "all", "target_mean": value}
        for step, value in ((0, before), (9, after))
    ]
    ends = {when: {"tasks": {"a": p}} for when, p in zip(("before", "after"), tasks, strict=True)}
    return Row("", 1, {}, {"probes": probes, "steps": 9, **ends}, {}, "live")


def edited(ES, kept, nats):
    scores = {"S": None, "ES": ES, "PS": 1.0, "NS": 2.0}
    return Row(
        "", 1, {}, {"after": scores, "kept": kept, "nats": {"world": nats, "docstrings": 0.0}}, {}, "live"
    )


def test_stages_are_followed_by_their_steps():
    measured = [
        {"revision": f"step{step}", "effective_share": share}
        for step, share in ((10, 0.9), (20, 0.8), (30, 0.7))
    ]
    path = three_papers.along(
        Row("", 1, {}, {"stages": measured}, {}, "live"),
        {20: [learnt(-4.0, -3.0, (0.5, 0.4))], 30: [learnt(-4.0, -2.0, (0.5, 0.5))]},
        {20: [edited(50.0, 90.0, 0.1), edited(60.0, 90.0, 0.1)], 30: [edited(80.0, 80.0, 0.4)]},
    )
    assert path["share"] == [[80.0], [70.0]]
    assert path["A"] == [[pytest.approx(25.0)], [pytest.approx(50.0)]]
    assert path["F"] == [[pytest.approx(20.0)], [pytest.approx(0.0)]]
    assert path["ES"] == [[50.0, 60.0], [80.0]] and path["S"] == [[0.0, 0.0], [0.0]]
    going = three_papers.with_share(path)
    assert path["K"] == [[-3.0], [-2.0]]
    assert going["ES"] == going["world"] == pytest.approx(-1) and going["kept"] == pytest.approx(1)
    assert going["ES, stage"] == pytest.approx(1) and going["S"] == 0


def test_a_verdict_is_read_off_an_interval():
    told = {(0.85, 1.1): "nearly one", (0.8, 0.9): "related", (0.1, 0.9): "related", (-0.1, 0.2): "undecided",
            (0.0, 0.3): "undecided", (-0.9, -0.1): "opposed", (None, None): "undecided"}  # fmt: skip
    assert {ends: three_papers.verdict(*ends) for ends in told} == told


def test_numbers_for_prose_are_those_of_the_rows(lab, desk):
    rows = desk.notions()
    found = three_papers.results(lab.store, "smoke")
    first, last = rows.values()
    for when, row in (("first", first), ("last", last)):
        pair = notions.of_pair(row, "usage", "update")
        assert found[f"papers.{when}.usage.update"].value == pair["corrected"]
        assert found[f"papers.{when}.usage.update.shared"].value == 100 * pair["shared"]
    both = sorted(notions.of_pair(row, "usage", "key")["corrected"] for row in rows.values())
    assert [found[f"papers.{end}.usage.key"].value for end in ("least", "most")] == both
    assert three_papers.results(lab.store, "paper") == {}
