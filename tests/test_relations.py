"""Chapter 13's relations, tiny: predictors by plain loops and hooks, rules by other arithmetic, grids by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import naive_editing
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kemem.claims import CLAIMS
from kemem.claims.ledger import verdict
from kemem.editing import MEMIT
from kemem.editing.effects import questions, standard_noise
from kemem.errors import BadInput
from kemem.runs import Row, Store
from kemem.studies import (
    explaining,
    factual,
    field,
    hardness,
    implications,
    many,
    methods,
    relations,
    thousands,
)
from kemem.studies.evidence import relations as told
from kemem.studies.lab import Lab
from kemem.studies.methods import Trained

ROOT = Path(__file__).resolve().parents[1]
MODEL = factual.settings("smoke")
OF = hardness.Hardness(MODEL, layers=(0, 1), count=2, most=2, others=2, traced=2, samples=2, texts=40)
GRID = relations.Grid(
    OF, Trained(MODEL, (2, 3), 1e-3, steps=1, rank=4, asked=30, skipped=20), clamp=1.5, least=1, sizes=(2, 500),
    pairs=(("born_in", "city_region"),),
)  # fmt: skip


def quick(layers, weight, _, search):
    return MEMIT(layers, weight, replace(search, steps=4))


@pytest.fixture(scope="module")
def benches():
    return many.Benches(Lab("smoke", Store(ROOT / "nowhere"), ROOT))


@pytest.fixture(scope="module")
def requests(benches):
    return benches.requests(hardness.written(OF, ("works_for",), 3))


@pytest.fixture(scope="module")
def at(benches):
    return benches.at(hardness.written(OF, (), 1))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    lab = Lab("smoke", Store(tmp_path_factory.mktemp("relations")), ROOT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relations, "settings", lambda scale, seed=0, **_: GRID)
        patch.setitem(methods.METHODS, "MEMIT", replace(methods.METHODS["MEMIT"], make=quick))
        found = relations.run(lab, "smoke")
    return lab, found


def loss(at, prompt, answer):
    """-log p, nats a token, by full passes."""
    ids = at.tok(prompt)["input_ids"]
    target = at.tok(" " + answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = at.model(input_ids=torch.tensor([[*ids, *target]])).logits[0].log_softmax(-1)
    return -sum(float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(target)) / len(target)


# ---------------------------------------------------------------------- what relations are like
def test_an_objects_prior_is_read_after_subjects_of_which_neither_object_is_true(at, requests):
    found = []
    for r in requests:
        for fact in at.world.facts(relation=r.relation):
            if fact.subject != r.subject and r.new not in fact.objects and r.true not in fact.objects:
                prompt = r.prompt.replace("{}", fact.subject)
                found.append(loss(at, prompt, r.true) - loss(at, prompt, r.new))
    assert len(found) > len(requests)
    assert hardness.prior(at, requests, 1000, 0) == pytest.approx(sum(found) / len(found), abs=1e-9)
    assert hardness.prior(at, requests, 1, 0) in [
        pytest.approx(sum(some) / 3, abs=1e-9) for some in combinations(found, 3)
    ]
    assert hardness.prior(at, requests, 0, 0) is None


def test_certainty_candidates_and_length(at, requests):
    found = hardness.plain(at, requests)
    assert found["certainty"] == pytest.approx(-sum(loss(at, r.text, r.true) for r in requests) / 3, abs=1e-9)
    lengths = [len(at.tok(" " + r.new, add_special_tokens=False)["input_ids"]) for r in requests]
    assert found["length"] == pytest.approx(sum(lengths) / 3)
    rivals = [len(at.world.candidates(at.world.fact(r.subject, r.relation))) for r in requests]
    assert found["candidates"] == pytest.approx(sum(map(math.log, rivals)) / 3) and min(rivals) > 1


def test_likeness_of_keys_is_that_of_hooks_and_an_inverse(at, requests):
    s = replace(OF, others=3)
    near, among = [], []
    for layer in s.layers:
        inverse = torch.linalg.inv(at.moments[layer])

        def key(prompt, subject, layer=layer):
            text = prompt[: prompt.index("{}")] + subject
            ids = at.tok(text)["input_ids"]
            return naive_editing.at(
                at.model, naive_editing.down(at.model, layer), ids, len(ids) - 1, side="input"
            ).double()

        def cosine(a, b, inverse=inverse):
            return float(a @ inverse @ b / (a @ inverse @ a).sqrt() / (b @ inverse @ b).sqrt())

        own = [key(r.prompt, r.subject) for r in requests]
        for r, k in zip(requests, own, strict=True):
            facts = [
                f
                for f in at.world.facts()
                if f.relation == r.relation and r.true in f.objects and f.subject != r.subject
            ][:3]
            near.append(sum(cosine(k, key(r.prompt, f.subject)) for f in facts) / len(facts))
        among += [cosine(a, b) for a, b in combinations(own, 2)]
    found = hardness.overlap(at, requests, s)
    assert found["neighbours"] == pytest.approx(sum(near) / len(near), abs=1e-7)
    assert found["subjects"] == pytest.approx(sum(among) / len(among), abs=1e-7)


def test_the_share_of_the_trace_at_the_subjects_last_token(at, requests):
    """States put back one at a time by torch's own hooks."""
    model, last, whole = at.model, 0.0, 0.0
    for each in questions(at.tok, [hardness.traced(r) for r in requests[:2]]):
        ids = torch.tensor([each.place.ids])
        noise = 0.7 * standard_noise(each, OF.samples, model.config.hidden_size, OF.seed)
        embedded = model.get_input_embeddings()(ids).detach()

        def p(inputs, answer=each.answer):
            with torch.no_grad():
                return float(model(inputs_embeds=inputs).logits[0, -1].softmax(-1)[answer])

        noisy = []
        for sample in noise:
            own = embedded.clone()
            own[0, each.place.first : each.place.last + 1] += sample
            noisy.append(own)
        base = sum(map(p, noisy)) / OF.samples
        for token in range(each.place.first, len(each.place)):
            for layer in OF.layers:
                block = naive_editing.block(model, layer)
                clean = naive_editing.at(model, block, each.place.ids, token)

                def put(module, given, output, token=token, clean=clean):
                    (output[0] if isinstance(output, tuple) else output)[0, token] = clean
                    return output

                handle = block.register_forward_hook(put)
                effect = max(0.0, sum(map(p, noisy)) / OF.samples - base)
                handle.remove()
                whole += effect
                last += effect if token == each.place.last else 0.0
    assert 0 < last < whole
    assert hardness.site(at, requests[:2], OF, 0.7) == pytest.approx(last / whole, abs=1e-7)
    assert hardness.site(at, requests[:2], OF, 0.0) == 0.0


def test_relations_with_enough_known_facts(rows):
    assert hardness.enough({"a": 3, "b": 9, "c": 2, "d": 3}, 3, 2) == ["b", "a"]
    assert hardness.enough({"a": 3, "b": 9, "c": 2, "d": 3}, 3, 9) == ["b", "a", "d"]
    with pytest.raises(BadInput, match="a relation with 10 known facts"):
        hardness.enough({"a": 3, "b": 9}, 10, 2)
    values = rows[1][0].hardness.values
    counts = values["known"]["reported"]
    assert sorted(values["relations"]) == sorted(sorted(counts, key=lambda n: (-counts[n], n))[:2])
    assert all(set(own) == set(relations.PREDICTORS) for own in values["relations"].values())


# ---------------------------------------------------------------------- a rule
def test_rank_correlation_and_its_interval():
    x, y = [1.0, 5.0, 2.0, 2.0, 9.0, 7.0, 0.0], [3.0, 4.0, 1.0, 2.0, 8.0, 8.0, 1.5]
    r, low, high = explaining.correlation(x, y)
    assert r == pytest.approx(stats.spearmanr(x, y).statistic)
    half = 1.96 * math.sqrt((1 + r**2 / 2) / 4)
    assert math.atanh(low) == pytest.approx(math.atanh(r) - half)
    assert math.atanh(high) == pytest.approx(math.atanh(r) + half)
    assert explaining.correlation(x, [1.0] * 7) == (0.0, None, None)
    assert explaining.correlation(x[:4], x[:4])[1:] == (None, None)
    assert explaining.correlation(x, [-v for v in x])[0] == pytest.approx(-1)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(3, 9), k=st.integers(1, 5), penalty=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_ridge_is_least_squares_with_more_rows(n, k, penalty, seed):
    draw = np.random.default_rng(seed)
    X, Y, new = draw.normal(2, 3, (n, k)), draw.normal(size=(n, 2)), draw.normal(size=(4, k))
    Z = (X - X.mean(0)) / np.sqrt(((X - X.mean(0)) ** 2).mean(0))
    rows = np.concatenate([Z, math.sqrt(penalty * n) * np.eye(k)])
    aims = np.concatenate([Y - Y.mean(0), np.zeros((k, 2))])
    b = np.linalg.lstsq(rows, aims, rcond=None)[0]
    expected = Y.mean(0) + (new - X.mean(0)) / X.std(0) @ b
    assert explaining.fitted(X, Y, penalty)(new) == pytest.approx(expected, abs=1e-8)


def test_halves_are_fitted_and_tried_one_by_one():
    draw = np.random.default_rng(3)
    X, y = draw.normal(size=(9, 2)), draw.normal(size=9)
    fits, ranks = explaining.halved(X, y[:, None], times=5, penalty=0.5, seed=7)
    again = np.random.default_rng(7)
    for fit, rank in zip(fits[:, 0], ranks[:, 0], strict=True):
        order = again.permutation(9)
        a, b = order[:4], order[4:]
        guess = explaining.fitted(X[a], y[a, None], 0.5)(X[b])[:, 0]
        mean = sum(y[i] for i in a) / 4
        left = sum((y[i] - g) ** 2 for i, g in zip(b, guess, strict=True))
        assert fit == pytest.approx(1 - left / sum((y[i] - mean) ** 2 for i in b))
        assert rank == pytest.approx(stats.spearmanr(guess, y[b]).statistic)


def test_a_planted_rule_is_found_and_noise_is_not():
    draw = np.random.default_rng(0)
    X = draw.normal(size=(16, 3))
    rule = explaining.explained(X, X @ [1.0, -2.0, 0.5], times=40, shuffles=99, penalty=0.01)
    assert rule["R2"]["median"] > 0.9 and rule["rank"]["median"] > 0.9
    assert rule["R2"]["p"] == rule["rank"]["p"] == 0.01, "above all that was dealt out at random"
    noise = explaining.explained(X, draw.normal(size=16), times=40, shuffles=99)
    assert noise["R2"]["p"] > 0.05 and noise["R2"]["median"] < 0.2
    for own in (*rule.values(), *noise.values()):
        assert own["first"] == own["halves"][0] and own["median"] == pytest.approx(np.median(own["halves"]))
        high = sum(c >= own["median"] - 1e-12 for c in own["chance"])
        assert own["p"] == pytest.approx((1 + high) / 100)
    again = explaining.explained(X, X @ [1.0, -2.0, 0.5], times=40, shuffles=99, penalty=0.01)
    assert again == rule


def test_the_strongest_of_many_predictors_pays_for_having_been_chosen():
    draw = np.random.default_rng(1)
    X, y = draw.normal(size=(7, 4)), draw.normal(size=7)
    y = y + 1.2 * X[:, 2]
    best, p = explaining.strongest(X, y, shuffles=60, seed=5)

    def largest(y):
        return max(abs(stats.spearmanr(X[:, i], y).statistic) for i in range(4))

    again = np.random.default_rng(5)
    drawn = [largest(again.permutation(y)) for _ in range(60)]
    assert best == int(np.argmax([abs(stats.spearmanr(X[:, i], y).statistic) for i in range(4)]))
    assert p == pytest.approx((1 + sum(d >= largest(y) - 1e-12 for d in drawn)) / 61)


# ---------------------------------------------------------------------- grids
def row(S=None, ES=50.0, PS=50.0, NS=50.0, **known):
    harmonic = 3 / (1 / ES + 1 / PS + 1 / NS) if S is None else S
    values = {"after": {"S": harmonic, "ES": ES, "PS": PS, "NS": NS}, **known}
    return Row(many.STUDY, 1, {"count": 2}, values, {}, "recorded")


def test_what_is_asked_for():
    known = {"reported": {"born_in": 9, "city_region": 2, "plays": 7}, "tuning": {"born_in": 1, "plays": 5}}
    own = Row(
        "hardness", 1, {"count": 2}, {"known": known, "relations": {"born_in": {}, "plays": {}}}, {}, "live"
    )
    asked = []
    relations.gathered(GRID, own, lambda s: (asked.append(s), row())[1])
    seen = {(s.method, s.part, s.relations, s.count) for s in asked}
    expected = {(m, "reported", (n,), 2) for m in relations.METHODS for n in ("born_in", "plays")}
    expected |= {("MEMIT", "tuning", ("born_in",), 1), ("MEMIT", "tuning", ("plays",), 2)}
    expected |= {("MEMIT", "reported", ("born_in", "plays"), 2)}
    expected |= {
        ("MEMIT", "reported", names, 2)
        for names in (("born_in", "city_region"), ("born_in",), ("city_region",))
    }
    assert seen == expected, "as many facts of each as of the mixture, and none of which too few are known"
    for s in asked:
        assert s.blocks == 1 and s.value == dict(zip(relations.METHODS, GRID.values, strict=True))[s.method]
        assert s.layers == (GRID.mend.layers if s.method == "MEND" else OF.layers)
        assert s.clamp == (1.5 if s.method == "MEMIT" else 1.0)
        assert (s.mend is not None) == (s.method == "MEND") and s.texts == OF.texts
    few = relations.gathered(replace(GRID, least=2), own, lambda s: row())
    assert set(few.tuning) == {"plays"}

    apart = relations.gathered(
        replace(GRID, sizes=(2, 4), pairs=(("plays", "city_region"), ("born_in", "plays"))),
        own,
        lambda s: row(),
    )
    assert set(apart.pairs) == {("plays", "city_region", 2), ("born_in", "plays", 2), ("born_in", "plays", 4)}


def test_settings_by_scale():
    smoke, laptop = relations.settings("smoke"), relations.settings("laptop", seed=2)
    assert (smoke.hardness.count, laptop.hardness.count) == (4, 24)
    assert laptop.hardness.seed == 2 and laptop.hardness.model == relations.settings("laptop").hardness.model
    assert laptop.mend == relations.settings("laptop").mend, "networks are trained once for all draws"
    assert all(n % 2 == 0 for g in (smoke, laptop) for n in g.sizes)
    assert all(name in relations_of_the_world() for pair in laptop.pairs for name in pair)
    assert relations.seeds("smoke") == (0,) and relations.seeds("laptop") == (0, 1, 2)


def relations_of_the_world():
    from kemem.world import RELATIONS

    return RELATIONS


@given(st.lists(st.tuples(*[st.floats(1, 100)] * 3), min_size=1, max_size=5))
def test_facts_taken_together_score_at_least_the_mean(each):
    rows = [row(ES=a, PS=b, NS=c) for a, b, c in each]
    means = [sum(own) / len(each) for own in zip(*each, strict=True)]
    assert relations.pooled(rows) == pytest.approx(3 / sum(1 / m for m in means))
    assert relations.pooled(rows) >= sum(map(relations.score, rows)) / len(rows) - 1e-9


def seen(memit, others, tuning, mixed, pairs):
    names = list(memit)
    values = {
        "relations": {
            n: {p: float(i + j) for j, p in enumerate(relations.PREDICTORS)} for i, n in enumerate(names)
        }
    }
    return relations.Seen(
        Row("hardness", 1, {"count": 2}, values, {}, "recorded"),
        {"MEMIT": {n: row(S) for n, S in memit.items()},
         **{m: {n: row(S) for n in memit} for m, S in others.items()}},
        {n: row(S) for n, S in tuning.items()}, row(mixed), {k: tuple(row(S) for S in v) for k, v in pairs.items()},
    )  # fmt: skip


DRAWS = [
    seen({"a": 90.0, "b": 60.0, "c": 50.0}, {"FT-W": 40.0, "MEND": 20.0}, {"a": 70.0, "b": 80.0}, 80.0,
         {("a", "b", 2): (75.0, 90.0, 60.0), ("a", "b", 8): (70.0, 90.0, 60.0)}),
    seen({"a": 92.0, "b": 61.0}, {"FT-W": 45.0, "MEND": 25.0}, {"a": 72.0, "b": 90.0}, 81.0,
         {("a", "b", 2): (75.0, 90.0, 60.0)}),
]  # fmt: skip


def test_evidence_by_hand():
    assert relations.shared(DRAWS) == ["a", "b"] and relations.extremes(DRAWS) == ("b", "a")
    (by_method,) = told.methods_by_relation(DRAWS)
    assert by_method.series == {
        "less FT-W, a": (50.0, 47.0), "less FT-W, b": (20.0, 16.0), "less MEND, a": (70.0, 67.0),
        "less MEND, b": (40.0, 36.0),
    }  # fmt: skip
    mean, pooled = told.mixtures(DRAWS)
    assert mean.series == {"a with b, 2 facts": (0.0, 0.0)}, "the largest that every draw has"
    assert pooled.series == {"a with b, 2 facts": (75.0 - 50.0,) * 2} and pooled.on != mean.on
    alike, together = told.alike(DRAWS)
    assert alike.series["one relation less many"] == pytest.approx(((90 + 60 + 50) / 3 - 80, 76.5 - 81))
    assert together.series["one relation less many"] == pytest.approx((50.0 - 80, 50.0 - 81))
    (hard,) = told.hard(DRAWS)
    assert hard.series == {"b less a": (-30.0, -31.0)}, (
        "chosen on tuning facts, whatever the reported ones say"
    )
    assert told.hard([replace(DRAWS[0], tuning={"a": row(1.0)})]) == []
    assert told.mixtures([replace(DRAWS[0], pairs={})]) == []


def test_a_table_of_means():
    names, X, y = relations.table(DRAWS)
    assert names == ["a", "b"] and y.tolist() == [91.0, 60.5]
    assert X[:, 0].tolist() == [0.0, 1.0] and X.shape == (2, len(relations.PREDICTORS))
    missing = DRAWS[0].hardness.values["relations"] | {"b": dict.fromkeys(relations.PREDICTORS)}
    gap = replace(DRAWS[0], hardness=replace(DRAWS[0].hardness, values={"relations": missing}))
    assert relations.table([gap, DRAWS[1]])[0] == ["a"]


def test_rows_of_a_scale_from_the_run_to_the_verdict(rows, monkeypatch):
    lab, found = rows
    monkeypatch.setattr(relations, "settings", lambda scale, seed=0, **_: GRID)
    (again,) = relations.finished(lab.store, "smoke")
    assert again == found[0] and relations.finished(lab.store, "elsewhere") == ()
    (names, _, y), own = relations.table(found), found[0].alone["MEMIT"]
    assert len(names) == 2 and y.tolist() == [own[n].values["after"]["S"] for n in names]
    for name, each in own.items():
        assert set(each.values["after"]["relations"]) == {name} and each.values["facts"] == 2
    assert set(found[0].many.values["after"]["relations"]) == set(own)
    ((a, b, n), (mix, *alone)), *rest = found[0].pairs.items()
    assert not rest and (a, b, n) == ("born_in", "city_region", 2)
    assert {k: v["facts"] for k, v in mix.values["after"]["relations"].items()} == {a: 1, b: 1}
    numbers = relations.results(lab.store, "smoke")
    less = relations.score(mix) - sum(map(relations.score, alone)) / 2
    assert numbers["relations.born_in with city_region, 2"].value == pytest.approx(less)
    assert numbers["relations.FT-W.most"].value == max(map(relations.score, found[0].alone["FT-W"].values()))
    assert numbers["relations.relations"].value == 2 and "relations.rule.R2" not in numbers
    assert json.loads(json.dumps(found[0].hardness.values)) == found[0].hardness.values
    for claim in ("memit.14", "memit.15", "review.similar-facts", "review.hard-relations"):
        for evidence in told.EVIDENCE[claim](lab.store, "smoke"):
            assert verdict(CLAIMS[claim], evidence, "smoke").verdict == "undecided", "one draw of facts"
        assert told.EVIDENCE[claim](Store(lab.store.live / "none"), "smoke") == []


def test_recorded_rows_are_taken_but_for_those_that_are_live(rows, monkeypatch, tmp_path):
    recorded, found = rows
    lab = Lab("smoke", Store(tmp_path, recorded.store.live), ROOT)
    computed = []

    def run(benches, s):
        computed.append(s)
        return row(S=1.0)

    monkeypatch.setattr(relations, "settings", lambda scale, seed=0, **_: GRID)
    monkeypatch.setattr(many, "run", run)
    (again,) = relations.run(lab, "smoke", live=1)
    most = max(found[0].alone["MEMIT"], key=found[0].hardness.values["known"]["reported"].__getitem__)
    assert set(computed) == {relations.asked(GRID, (most,), OF.count)}
    assert relations.score(again.alone["MEMIT"][most]) == 1.0
    assert again.many.values == found[0].many.values and again.many.origin == "recorded"
    computed.clear()
    assert (
        relations.table(relations.run(lab, "smoke", live=0))[0] == relations.table(found)[0] and not computed
    )


def test_settings_are_those_chosen_on_tuning_facts():
    """What relations and implications are written with is what chapter 13 chose, among the committed rows."""
    store = Store(ROOT / "nowhere", ROOT / "records" / "laptop", mode="replay")
    found = thousands.finished(store, thousands.settings("laptop"))
    g, follow = relations.settings("laptop"), implications.settings("laptop")
    assert (found.weight, found.clamp) == (g.values[0], g.clamp) == (follow.weight, follow.clamp)
    for name, value in zip(relations.METHODS[1:], g.values[1:], strict=True):
        trials = {
            x: store.find(many.STUDY, many.VERSION, s)
            for (other, x), s in field.tuning(field.sizes("laptop")).items()
            if other == name
        }
        assert value == max(trials, key=lambda x: trials[x].values["after"]["S"] or 0.0).value
