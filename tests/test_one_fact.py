"""Chapter 12's studies, tiny: pairs by numpy alone, single edits by the editors themselves, a search by hooks."""

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

from kemem import editing
from kemem.editing import MEMIT, ROME, Judge, Search
from kemem.editing.finetune import FineTune
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import association, bench, factual, one_target, single_edits
from kemem.studies.lab import Lab, Result

ROOT = Path(__file__).resolve().parents[1]
PAIRS = association.Association(
    memories=5, width=3, old=11, weights=(0.02, 1.0, 11.0, 4000.0), draws=2, seed=4
)
EDITS = single_edits.Edits(
    factual.settings("smoke"), weights=(1.0, 10.0), clamps=(0.5, 2.0), rates=(6e-4, 2e-3), radii=(5e-3, 2e-2),
    asked=(12, 12), facts=(1, 2), texts=40,
)  # fmt: skip
TARGET = one_target.Target(EDITS, weight=3.0, steps=(1, 2, 3), requests=3, fact=1, tokens=3)
LAYER = EDITS.layers[-1]
STUDIES = (association, single_edits, one_target)


@pytest.fixture(scope="module")
def opened():
    """The lab's model with its moments and prefixes, which no test may change."""
    lab = Lab("smoke", Store(ROOT / "nowhere"), ROOT)
    return bench.opened(lab, EDITS.model, EDITS.layers, texts=EDITS.texts, dtype=EDITS.dtype, seed=EDITS.seed)


@pytest.fixture(scope="module")
def requests(opened):
    return bench.known(opened, "reported", 12, 3)[0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """All three rows, made with a model of which every bit is compared before and after."""
    folder = tmp_path_factory.mktemp("one_fact")
    lab = Lab("smoke", Store(folder), ROOT)
    usual, seen = factual.model, []

    def watched(*given, **keywords):
        model, tok = usual(*given, **keywords)
        seen.append((model, {name: t.clone() for name, t in model.state_dict().items()}))
        return model, tok

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factual, "model", watched)
        found = {
            "pairs": association.run(lab, PAIRS), "edits": single_edits.run(lab, EDITS),
            "target": one_target.run(lab, TARGET),
        }  # fmt: skip
    return {**found, "lab": lab, "seen": seen}


# ---------------------------------------------------------------------- a memory of pairs
def test_one_pair_by_numpy_alone(rows):
    """Least squares by lstsq, ROME by the Lagrangian's own equations, MEMIT by weighted rows, costs pair by pair."""
    keys, values, k, v = (t.numpy() for t in association.pairs(PAIRS, 0))
    n = keys.shape[1]
    assert keys.shape == (5, 11) and values.shape == (3, 11) and k.shape == (5, 1) and v.shape == (3, 1)
    W = numpy.linalg.lstsq(keys.T, values.T, rcond=None)[0].T
    r = v - W @ k

    def judged(delta):
        missing = numpy.linalg.norm(r - delta @ k) / numpy.linalg.norm(r)
        cost = sum(float(((delta @ keys[:, i]) ** 2).sum()) for i in range(n)) / n / float((r**2).sum())
        return {"missing": pytest.approx(missing, abs=1e-9), "cost": pytest.approx(cost, rel=1e-9)}

    C = sum(numpy.outer(keys[:, i], keys[:, i]) for i in range(n)) / n
    whole = numpy.block([[C, k], [k.T, numpy.zeros((1, 1))]])
    rome = numpy.stack([numpy.linalg.solve(whole, [0, 0, 0, 0, 0, float(x)])[:5] for x in r[:, 0]])
    found = rows["pairs"].values
    assert found["rome"] == judged(rome)
    for point, weight in zip(found["soft"], PAIRS.weights, strict=True):
        a = numpy.concatenate([k.T, math.sqrt(weight / n) * keys.T])
        b = numpy.concatenate([r.T, numpy.zeros((n, 3))])
        delta = numpy.linalg.lstsq(a, b, rcond=None)[0].T
        share = numpy.linalg.norm(delta) / numpy.linalg.norm(rome)
        assert point == {"weight": weight, "share": pytest.approx(share, rel=1e-9), **judged(delta)}
    for point, portion in zip(found["gradient"], PAIRS.portions, strict=True):
        delta = portion * r @ k.T / (k.T @ k)
        assert point == {"portion": portion, **judged(delta)}
    assert found["gradient"][0]["missing"] == pytest.approx(1 - PAIRS.portions[0])
    checks = found["checks"]
    assert checks["size"] == pytest.approx((k.T @ numpy.linalg.inv(C) @ k).item())
    step = r @ k.T / (k.T @ k)
    costs = [float(((d @ keys) ** 2).sum()) for d in (step, rome)]
    assert checks["gradient"] == pytest.approx(costs[0] / costs[1])
    assert checks["vanishing"] == pytest.approx(1e-9 / checks["size"], rel=1e-3)
    assert max(checks[name] for name in ("identity", "normal", "refit")) < 1e-9
    assert found["draws"][0] == checks != found["draws"][1] and len(found["draws"]) == 2


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 500), memories=st.integers(2, 12), width=st.integers(1, 12), power=st.floats(-2, 5)
)
def test_what_follows_of_the_identity(seed, memories, width, power):
    s = association.Association(memories, width, old=4 * memories, weights=(10**power,), seed=seed)
    found = association.one_pair(s, 0)
    (soft,), size = found["soft"], found["checks"]["size"]
    ratio = size / 10**power
    assert soft["missing"] == pytest.approx(1 / (1 + ratio), abs=1e-8)
    assert soft["cost"] == pytest.approx((ratio / (1 + ratio)) ** 2 / size, rel=1e-6)
    assert found["checks"]["gradient"] >= 1 - 1e-9 and found["checks"]["identity"] < 1e-8


@pytest.mark.parametrize("wrong", ["closed_form", "equality"])
def test_the_identity_sees_a_wrong_solver(monkeypatch, wrong):
    right = getattr(editing, wrong)
    monkeypatch.setattr(editing, wrong, lambda *given, **keywords: 1.001 * right(*given, **keywords))
    checks = association.one_pair(PAIRS, 0)["checks"]
    assert checks["identity"] == pytest.approx(1e-3, rel=0.01)
    assert wrong == "equality" or checks["refit"] > 1e-6


# ---------------------------------------------------------------------- facts that are known
def test_a_known_fact_is_one_that_the_model_says(opened, requests):
    """Token by token with full passes, over the records as they come."""
    kept = []
    for r in editing.requests(opened.world.counterfact(12, 0, part="reported")):
        if not r.neighbours:  # there is no NS of it
            continue
        ids = opened.tok(r.text)["input_ids"]
        for token in opened.tok(" " + r.true, add_special_tokens=False)["input_ids"]:
            with torch.no_grad():
                if opened.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax() != token:
                    break
            ids = [*ids, token]
        else:
            kept.append(r)
    found, count = bench.known(opened, "reported", 12, 2)
    assert found == kept[:2] and count == len(kept) and requests == kept[:3]
    with pytest.raises(BadInput, match=rf"99 reported facts that the model knows; got {count} of 12"):
        bench.known(opened, "reported", 12, 99)


# ---------------------------------------------------------------------- single edits
def test_scores_of_single_edits_are_those_of_the_editors(rows, opened, requests):
    """Each method at the value that was chosen, by the editor's own call, one fact after the other."""
    one = {"templates": opened.templates}
    makers = {
        "ROME": lambda x: ROME(LAYER, Search(steps=20, clamp=x)),
        "r-ROME": lambda x: ROME(LAYER, Search(steps=20, clamp=x), "averaged"),
        "MEMIT, one layer": lambda x: MEMIT((LAYER,), x), "MEMIT": lambda x: MEMIT((0, 1), x),
        "FT": lambda x: FineTune.ft(LAYER, rate=x), "FT-L": lambda x: FineTune.ft_l(LAYER, x, rate=x),
    }  # fmt: skip
    methods = rows["edits"].values["methods"]
    assert set(methods) == set(makers) == set(single_edits.SETTING)
    weights = dict(opened.model.named_parameters())
    for name in ("MEMIT", "r-ROME", "FT-L"):
        own, scores, norms = methods[name], [], []
        for r in requests[:2]:
            edit = makers[name](own["value"])(opened.model, opened.tok, [r], opened.moments, **one)
            with edit.applied(opened.model):
                scores.append(Judge(opened.tok, [r], prefixed=True)(opened.model))
            changed = math.sqrt(sum(float((d**2).sum()) for d in edit.deltas.values()))
            norms.append(changed / math.hypot(*(weights[n].detach().norm().item() for n in edit.deltas)))
        for score in ("ES", "PS", "NS", "NS+", "EM", "PM", "NM", "NM+"):
            assert own[score] == pytest.approx(sum(s.mean(score) for s in scores) / 2, abs=1e-8), score
        three = [own[score] for score in ("ES", "PS", "NS")]
        assert own["S"] == pytest.approx(3 / sum(1 / x for x in three) if all(three) else 0.0)
        assert own["norm"] == pytest.approx(sum(norms) / 2)
        assert own["seconds"] > 0


def test_every_method_is_tried_as_often_and_the_best_on_tuning_facts_is_taken(rows):
    values = rows["edits"].values
    tried = values["tried"]
    for name in single_edits.SETTING:
        own = [t for t in tried if t["method"] == name]
        (chosen,) = (t for t in own if t["chosen"])
        assert len(own) == 2 and values["methods"][name]["value"] == chosen["value"]
        assert (chosen["S"], chosen["NM"]) == max((t["S"], t["NM"]) for t in own)
    expected = {
        "ROME": EDITS.clamps, "r-ROME": EDITS.clamps, "MEMIT": EDITS.weights, "MEMIT, one layer": EDITS.weights,
        "FT": EDITS.rates, "FT-L": EDITS.radii,
    }  # fmt: skip
    assert {n: tuple(t["value"] for t in tried if t["method"] == n) for n in expected} == expected
    assert values["unedited"]["norm"] == 0 == values["unedited"]["ES"]


def test_the_best_trial():
    def trial(S, NM):
        return {"S": S, "NM": NM}

    assert single_edits.best({1.0: trial(50.0, 3.0), 2.0: trial(60.0, 1.0), 3.0: trial(60.0, 2.0)}) == 3.0
    assert single_edits.best({1.0: trial(None, None), 2.0: trial(0.0, -1.0), 3.0: trial(0.0, 4.0)}) == 3.0


def test_facts_for_trials_are_not_reported(opened):
    parts = [bench.known(opened, part, 12, 2)[0] for part in ("tuning", "reported")]
    tuning, reported = ({(r.subject, r.relation) for r in part} for part in parts)
    assert not tuning & reported


def test_a_target_is_searched_for_once(opened, requests, monkeypatch):
    """What is found for one weight serves the next, with its seconds; another clamp or fact is another search."""
    from kemem.editing import memit, rome

    counted = []
    for module in (memit, rome):
        usual = module.values
        monkeypatch.setattr(module, "values", lambda *a, u=usual, **k: (counted.append(1), u(*a, **k))[1])
    at = replace(opened, targets={})
    quick = Search(steps=2)
    first, second = (single_edits.maker(at, MEMIT((LAYER,), x, quick))(requests[0]) for x in (1.0, 5.0))
    assert len(counted) == 1 and second.seconds["values"] == first.seconds["values"] > 0
    alone = MEMIT((LAYER,), 5.0, quick)(at.model, at.tok, requests[:1], at.moments, templates=at.templates)
    assert all(torch.equal(d, alone.deltas[n]) for n, d in second.deltas.items())
    counted.clear()
    single_edits.maker(at, MEMIT((0, LAYER), 5.0, quick))(requests[0])
    assert not counted, "the target stands above the highest layer, so it is the same"
    for key in ("as_released", "averaged"):
        single_edits.maker(at, ROME(LAYER, quick, key))(requests[0])
    assert len(counted) == 1, "ROME's stands elsewhere, and does not hang on its key"
    single_edits.maker(at, ROME(LAYER, replace(quick, clamp=0.1)))(requests[0])
    single_edits.maker(at, MEMIT((LAYER,), 1.0, quick))(requests[1])
    assert len(counted) == 3


# ---------------------------------------------------------------------- the two defects
def naive_keys(at, r):
    (of,) = editing.contexts(at.tok, [r], at.templates)
    down = naive_editing.down(at.model, LAYER)
    return torch.stack([
        naive_editing.at(at.model, down, row, last, "input")
        for row, last in zip(of.rows, of.subjects, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("key", ["as_released", "averaged", "plain"])
def test_what_a_key_of_rome_misses(opened, requests, key):
    """Equation by equation from the keys that torch's own hooks see."""
    search = Search(steps=3)
    found = single_edits.one_key(opened, requests[:2], ROME(LAYER, search, key))
    C, W = opened.moments[LAYER], naive_editing.down(opened.model, LAYER).weight.detach()
    missing = []
    for r in requests[:2]:
        keys = naive_keys(opened, r)
        bare, mean = keys[0], keys.mean(0)
        edit = ROME(LAYER, search, key)(
            opened.model, opened.tok, [r], opened.moments, templates=opened.templates
        )
        goal = edit.notes["targets"][0]
        u = torch.linalg.inv(C) @ (bare if key == "plain" else mean)
        q = mean if key == "averaged" else bare
        delta = torch.outer(goal - W @ q, u) / (u @ q)
        missing.append([
            float((goal - (W + delta) @ at).norm() / (goal - W @ at).norm()) for at in (bare, mean)
        ])  # fmt: skip
    for place, i in (("bare", 0), ("mean", 1)):
        expected = sum(m[i] for m in missing) / 2
        assert found["missing"][place] == pytest.approx(expected, rel=1e-6, abs=1e-9), place
    assert found["missing"]["mean" if key == "averaged" else "bare"] < 1e-9
    assert found["missing"]["bare" if key == "averaged" else "mean"] > 0.01


def test_contexts_are_weighed_as_released_or_evenly(opened, requests):
    r = requests[0]
    released, even = (single_edits.weighted(opened, r, MEMIT((LAYER,), 7.0), each) for each in (False, True))
    own = MEMIT((LAYER,), 7.0)(opened.model, opened.tok, [r], opened.moments, templates=opened.templates)
    (name,) = own.deltas
    assert torch.allclose(released.deltas[name], own.deltas[name], rtol=1e-8, atol=1e-12)
    keys = naive_keys(opened, r)
    (of,) = editing.contexts(opened.tok, [r], opened.templates)
    h = naive_editing.at(opened.model, naive_editing.block(opened.model, LAYER), of.rows[0], of.subjects[0])
    k, lacking = keys.mean(0), own.notes["targets"][0] - h
    delta = torch.outer(lacking, k) @ torch.linalg.inv(7.0 * opened.moments[LAYER] + torch.outer(k, k))
    assert torch.allclose(even.deltas[name], delta, rtol=1e-7, atol=1e-10)
    assert not torch.allclose(even.deltas[name], released.deltas[name], rtol=1e-3)


# ---------------------------------------------------------------------- one fact, closely
@pytest.mark.parametrize("clamp", [0.3, math.inf])
def test_a_search_step_by_step_is_the_naive_one(opened, requests, clamp):
    of = editing.contexts(opened.tok, requests, opened.templates)[1]
    path = one_target.steps(Memories(opened.model), of, LAYER, Search(clamp=clamp), (1, 3))
    h = naive_editing.at(opened.model, naive_editing.block(opened.model, LAYER), of.rows[0], of.subjects[0])
    limit = clamp if math.isfinite(clamp) else 1e9
    for point, count in zip(path, (1, 3), strict=True):
        z, passes, loss = naive_editing.target(opened.model, of, LAYER, Search(clamp=limit, steps=count))
        assert point["passes"] == passes == count
        assert point["loss"] == pytest.approx(loss, rel=1e-8)
        assert point["length"] == pytest.approx(float((z - h).norm() / h.norm()), rel=1e-8)
        assert 0 < point["probability"] < 1
    assert math.isinf(clamp) or path[-1]["length"] == pytest.approx(clamp)


def test_a_search_that_stops_is_shown_where_it_stops(opened, requests):
    of = editing.contexts(opened.tok, requests, opened.templates)[0]
    path = one_target.steps(Memories(opened.model), of, LAYER, Search(stop=1e9), (1, 4, 9))
    assert [p["passes"] for p in path] == [1, 1], "done before its first step, so nothing more is looked at"


def test_what_is_said_before_and_after(rows, opened, requests):
    values, r = rows["target"].values, requests[1]
    assert (values["prompt"], values["true"], values["new"]) == (r.text, r.true, r.new)
    edit = MEMIT((LAYER,), 3.0)(opened.model, opened.tok, [r], opened.moments, templates=opened.templates)

    def goes_on(text):
        ids = opened.tok(text)["input_ids"]
        for _ in range(3):
            with torch.no_grad():
                ids = [*ids, int(opened.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        return opened.tok.decode(ids[-3:])

    prompts = [r.text, *r.paraphrases, r.neighbours[0]]
    assert [text["prompt"] for text in values["texts"]] == prompts
    assert [text["before"] for text in values["texts"]] == [goes_on(p) for p in prompts]
    with edit.applied(opened.model):
        assert [text["after"] for text in values["texts"]] == [goes_on(p) for p in prompts]


def test_cosines_of_keys(rows, opened, requests):
    keys = [naive_keys(opened, r) for r in requests]
    bare = torch.stack([own[0] for own in keys])
    for name, own in (("cosines", keys[1]), ("other_subjects", bare)):
        expected = [[float(torch.cosine_similarity(a, b, dim=0)) for b in own] for a in own]
        assert torch.allclose(torch.tensor(rows["target"].values[name]), torch.tensor(expected), atol=1e-6)


def test_targets_found_together_are_those_found_alone(rows, opened, requests, monkeypatch):
    (found,) = rows["target"].values["together"].values()
    assert len(found["batched"]) == len(found["reversed"]) == 3
    assert max(found["batched"] + found["reversed"]) < 1e-9 and found["stops"] == 1.0
    usual = editing.values

    def dependent(memories, of, *given, **keywords):
        values = usual(memories, of, *given, **keywords)
        if len(of) == 1:
            return values
        factor = torch.tensor([1.01, 1.0, 1.0], dtype=values.z.dtype)[:, None]
        return replace(values, z=factor * values.z, passes=values.passes + torch.tensor([0, 1, 0]))

    monkeypatch.setattr(editing, "values", dependent)
    of = editing.contexts(opened.tok, requests, opened.templates)
    found = one_target.together(opened.model, of, LAYER, torch.float64)
    assert found["batched"] == pytest.approx([0.01, 0, 0], abs=1e-9)
    assert found["reversed"] == pytest.approx([0.01 / 1.01, 0, 0.01], abs=1e-9)
    assert found["stops"] == pytest.approx(2 / 3)


def test_single_precision_comes_and_goes_without_a_trace(opened, requests):
    model = opened.model
    kept = model.float().state_dict()
    kept = {name: t.clone() for name, t in kept.items()}
    of = editing.contexts(opened.tok, requests[:2], opened.templates)
    one_target.together(model, of, LAYER, torch.float64)
    assert all(t.dtype == kept[n].dtype and torch.equal(t, kept[n]) for n, t in model.state_dict().items())
    model.double()


def test_the_identity_on_the_models_own_keys(rows, opened, requests):
    values = rows["target"].values
    assert max(values["identity"]) < 1e-9 and len(values["identity"]) == 3
    C = torch.linalg.inv(opened.moments[LAYER])
    sizes = []
    for r in requests:
        keys = naive_keys(opened, r)
        k = keys[0] / 2 + keys[1:].mean(0) / 2
        sizes.append(float(k @ C @ k))
    assert values["sizes"] == pytest.approx([x / len(C) for x in sizes], rel=1e-7)
    assert values["vanishing"] == pytest.approx([1e-9 / x for x in sizes], rel=1e-2)


def test_the_model_is_bit_for_bit_as_it_was(rows):
    assert len(rows["seen"]) == 2
    for model, before in rows["seen"]:
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], t) and before[n].dtype == t.dtype for n, t in after.items())


# ---------------------------------------------------------------------- sizes, and numbers for prose
def test_settings_by_scale():
    smoke, laptop = single_edits.settings("smoke"), single_edits.settings("laptop")
    assert smoke.facts == (3, 4) and laptop.facts == (12, 24) and smoke.layers == laptop.layers == (0, 1)
    for s in (smoke, laptop):
        assert len({len(v) for v in (s.weights, s.clamps, s.rates, s.radii)}) == 1, "as many trials of each"
    assert single_edits.settings("smoke", facts=2).facts == (3, 2)
    assert one_target.settings("smoke").weight == smoke.weights[1]
    assert one_target.settings("smoke", weight=0.5, seed=3) == replace(
        one_target.settings("smoke", seed=3), weight=0.5
    )
    with pytest.raises(BadInput, match="scales"):
        single_edits.settings("elsewhere")


def results(store, scale):
    found = [module.results(store, scale) for module in STUDIES]
    assert sum(map(len, found)) == len(found[0] | found[1] | found[2])
    return found[0] | found[1] | found[2]


def test_numbers_for_prose(rows, monkeypatch):
    store: Store = rows["lab"].store
    assert results(store, "smoke") == {}, "of other settings"
    monkeypatch.setattr(association, "settings", lambda scale: PAIRS)
    monkeypatch.setattr(single_edits, "settings", lambda scale: EDITS)
    monkeypatch.setattr(one_target, "settings", lambda scale: TARGET)
    found = results(store, "smoke")
    pairs, edits, target = (rows[name].values for name in ("pairs", "edits", "target"))
    gradient = [draw["gradient"] for draw in pairs["draws"]]
    cosines = target["cosines"]
    apart = [cosines[i][j] for i in range(6) for j in range(6) if i != j]
    expected = {
        "association.rome.cost": pairs["rome"]["cost"],
        "association.gradient.least": min(gradient), "association.gradient.most": max(gradient),
        "association.identity": max(draw["identity"] for draw in pairs["draws"]),
        "single.tuning.known": edits["known"]["tuning"], "single.reported.asked": 12, "single.reported.used": 2,
        "single.unedited.NS": edits["unedited"]["NS"],
        "single.MEMIT, one layer.ES": edits["methods"]["MEMIT, one layer"]["ES"],
        "single.ROME.norm": 100 * edits["methods"]["ROME"]["norm"],
        "single.ROME averaged.missing.bare": 100 * edits["keys"]["averaged"]["missing"]["bare"],
        "single.contexts as printed.EM": edits["contexts"]["as printed"]["EM"],
        "target.free.length": target["search"]["free"][-1]["length"],
        "target.clamped.probability": 100 * target["search"]["clamped"][-1]["probability"],
        "target.before": 100 * target["search"]["free"][0]["probability"],
        "target.cosine.bare": sum(cosines[0][1:]) / 5,
        "target.cosine.prefixed": (sum(apart) - 2 * sum(cosines[0][1:])) / 20,
        "target.cosine.contexts": sum(apart) / 30, "target.size": sum(target["sizes"]) / 3,
        "target.identity": max(target["identity"]), "target.float64.stops": 100.0,
    }  # fmt: skip
    assert {name: found[name].value for name in expected} == pytest.approx(expected)
    origins = {"association": "pairs", "single": "edits", "target": "target"}
    for name, result in found.items():
        assert isinstance(result, Result) and math.isfinite(result.value)
        assert result.provenance["digest"] == rows[origins[name.split(".")[0]]].digest
    assert results(store, "elsewhere").keys() == {n for n in found if n.startswith("association")}


def test_rows_are_plain_json(rows):
    for name, module in zip(("pairs", "edits", "target"), STUDIES, strict=True):
        row: Row = rows[name]
        assert json.loads(json.dumps(row.values)) == row.values
        assert (row.study, row.version) == (module.STUDY, module.VERSION)
    assert rows["edits"].values["known"]["reported"] >= 2
