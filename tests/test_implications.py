"""What follows from an edit: triples against the world's own table, losses by full passes, shares by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kemem import editing
from kemem.claims import CLAIMS
from kemem.claims.ledger import verdict
from kemem.editing import MEMIT, Judge, Search
from kemem.runs import Row, Store
from kemem.studies import bench, factual, implications, relations
from kemem.studies.evidence import relations as told
from kemem.studies.implications import Implications
from kemem.studies.lab import Lab
from kemem.world import RELATIONS, World
from kemem.world.relation import KINDS
from kemem.world.values import COMPOSITIONS

ROOT = Path(__file__).resolve().parents[1]
EDITOR = MEMIT((0, 1), 6.0, Search(steps=4, clamp=1.5))
S = Implications(
    factual.settings("smoke"), layers=EDITOR.layers, weight=EDITOR.weight, clamp=1.5, facts=1, texts=40
)


def quick(layers, weight, search):
    return MEMIT(layers, weight, replace(search, steps=EDITOR.search.steps))


@pytest.fixture(scope="module")
def world():
    return World(100)


@pytest.fixture(scope="module")
def truth(world):
    """The table of the world: relation -> subject -> objects."""
    found = {}
    for fact in world.facts(stated=None):
        found.setdefault(fact.relation, {})[fact.subject] = fact.objects
    return found


@pytest.fixture(scope="module")
def followed(world):
    requests = editing.requests(world.counterfact(None, 0))
    return [(r, {c.way: c for c in implications.consequences(world, r)}) for r in requests]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The row, made with a model of which every bit is compared before and after."""
    lab = Lab("smoke", Store(tmp_path_factory.mktemp("implications")), ROOT)
    usual, seen = factual.model, []

    def watched(*given, **keywords):
        model, tok = usual(*given, **keywords)
        seen.append((model, {name: t.clone() for name, t in model.state_dict().items()}))
        return model, tok

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factual, "model", watched)
        patch.setattr(implications, "MEMIT", quick)
        return lab, implications.run(lab, S), seen


@pytest.fixture(scope="module")
def at():
    lab = Lab("smoke", Store(ROOT / "nowhere"), ROOT)
    return bench.opened(lab, S.model, S.layers, texts=S.texts, seed=S.seed)


def loss(at, prompt, answer):
    """-log p, nats a token, by full passes."""
    ids = at.tok(prompt)["input_ids"]
    target = at.tok(" " + answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = at.model(input_ids=torch.tensor([[*ids, *target]])).logits[0].log_softmax(-1)
    return -sum(float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(target)) / len(target)


# ---------------------------------------------------------------------- what follows
def test_a_fact_read_from_its_object(followed, truth):
    seen = set()
    for r, ways in followed:
        row = RELATIONS[r.relation]
        own = [c for way, c in ways.items() if way in implications.REVERSED]
        assert len(own) == (row.inverse is not None and r.subject not in truth[row.inverse][r.new]), r
        for c in own:
            seen.add(c.way)
            assert c.way == row.kind and c.request.subject == r.new and c.request.new == r.subject
            assert c.request.relation == row.inverse
            assert c.request.true == truth[row.inverse][r.new][0] != r.subject
            prompt, answer = c.turned
            assert r.true in prompt and answer == r.subject
            assert answer in truth[row.inverse][r.true], "true before, and false if the request were true"
            cloze = [t[:-1].rstrip() for t in RELATIONS[row.inverse].templates if t.endswith("_")]
            assert c.request.prompt == cloze[0] and prompt == cloze[0].replace("{}", r.true)
    assert seen == set(implications.REVERSED)


def test_the_end_of_a_chain(followed, truth):
    country = {name: objects[0] for name, objects in truth["region_country"].items()}
    region = {name: objects[0] for name, objects in truth["city_region"].items()}
    cities = regions = 0
    for r, ways in followed:
        c = ways.get("chain")
        if r.relation == "city_region":
            moves = country[r.new] != country[r.true]
            assert (c is not None) == moves
            if c is not None:
                cities += 1
                assert (c.request.subject, c.request.new, c.request.true) == (
                    r.subject,
                    country[r.new],
                    country[r.true],
                )
        elif r.relation == "region_country":
            regions += c is not None
            inside = [name for name, where in region.items() if where == r.subject]
            assert (c is None) == (not inside)
            if c is not None:
                assert c.request.subject in inside
                assert (c.request.new, c.request.true) == (r.new, country[r.subject])
        else:
            assert c is None
        if c is not None:
            assert c.request.relation == "city_country" and c.turned is None
            assert truth["city_country"][c.request.subject] == (c.request.true,)
    assert cities and regions


def test_what_takes_a_second_fact(followed, truth):
    count = 0
    for r, ways in followed:
        expected = []
        for first, second, text in COMPOSITIONS:
            if first == r.relation and len(truth[first][r.subject]) == 1:
                old, new = (truth[second].get(o, ()) for o in (r.true, r.new))
                if len(old) == len(new) == 1 and old != new:
                    expected.append((text[:-1].rstrip(), new[0], old[0]))
        c = ways.get("two steps")
        if c is None:
            assert not expected
            continue
        count += 1
        assert (c.request.prompt, c.request.new, c.request.true) == expected[0]
        assert c.request.subject == r.subject and c.request.text.startswith(expected[0][0].split("{}")[0])
    assert count > 20


def test_as_many_of_each_way_as_are_wanted(followed, world):
    requests = [r for r, _ in followed]
    before = {way: [0] * (way == "chain") for way in implications.WAYS}
    kept = implications.planned(world, requests, before, 2)
    ways = [c.way for _, c in kept]
    assert {way: ways.count(way) for way in implications.WAYS} == {
        way: 1 if way == "chain" else 2 for way in implications.WAYS
    }
    firsts = [(r, ways["inverse"]) for r, ways in followed if "inverse" in ways][:2]
    assert [(r, c) for r, c in kept if c.way == "inverse"] == firsts


# ---------------------------------------------------------------------- single edits
def test_a_known_fact_needs_no_neighbours(at):
    found, asked = implications.known(at, S, "inflection")
    records = editing.requests(at.world.counterfact(None, 0, kind="inflection", part="reported"))
    expected = []
    for r in records:
        ids = at.tok(r.text)["input_ids"]
        for token in at.tok(" " + r.true, add_special_tokens=False)["input_ids"]:
            with torch.no_grad():
                if int(at.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) != token:
                    break
            ids = [*ids, token]
        else:
            expected.append(r)
    assert found == expected and asked == len(records) and not any(r.neighbours for r in found) and found


def test_scores_by_kind_are_those_of_the_editor(rows, at):
    _, row, _ = rows
    for kind in ("plain", "inflection"):
        r = implications.known(at, S, kind)[0][0]
        own = row.values["kinds"][kind]
        assert own["facts"] == own["after"]["n"]["ES"] == 1 <= own["known"] <= own["asked"]
        edit = EDITOR(at.model, at.tok, [r], at.moments, templates=at.templates)
        before = Judge(at.tok, [r])(at.model)
        with edit.applied(at.model):
            after = Judge(at.tok, [r])(at.model)
        for score in implications.SHOWN:
            for when, scores in (("before", before), ("after", after)):
                expected = scores.mean(score)
                told = own[when][score]
                assert told is expected is None or told == pytest.approx(expected, abs=1e-6), (kind, score)
    assert row.values["kinds"]["inflection"]["after"]["S"] is None
    empty = [kind for kind in KINDS if not row.values["kinds"][kind]["facts"]]
    assert all(row.values["kinds"][kind]["after"]["ES"] is None for kind in empty)


@pytest.mark.parametrize("way", ["inverse", "two steps"])
def test_losses_around_an_edit_by_full_passes(rows, at, way):
    """The consequence after the fact was written, after it was itself, and after both were, with the editor's call."""
    (found,) = [each for each in rows[1].values["examples"] if each["way"] == way]
    kinds = [r for kind in KINDS for r in implications.known(at, S, kind)[0]]
    r, c = next(
        (r, c) for r in kinds for c in implications.consequences(at.world, r)
        if c.way == way and [r.text, r.true, r.new] == found["fact"]
    )  # fmt: skip
    assert found["follows"] == [c.request.text, c.request.true, c.request.new]
    asked = [
        (r.text, r.new),
        (r.text, r.true),
        (c.request.text, c.request.new),
        (c.request.text, c.request.true),
    ]
    asked += [c.turned] if c.turned else []
    assert len(asked) == (5 if way == "inverse" else 4)
    assert found["losses"]["before"] == pytest.approx([loss(at, *own) for own in asked], abs=1e-8)
    for when, requests in (("after", [r]), ("own", [c.request]), ("both", [r, c.request])):
        edit = EDITOR(at.model, at.tok, requests, at.moments, templates=at.templates)
        with edit.applied(at.model):
            expected = [loss(at, *own) for own in asked]
        assert found["losses"][when] == pytest.approx(expected, abs=1e-5), when
    assert found["losses"]["own"] != pytest.approx(found["losses"]["both"], abs=1e-3)


def test_the_model_is_bit_for_bit_as_it_was(rows):
    ((model, before),) = rows[2]
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], t) for n, t in after.items())


# ---------------------------------------------------------------------- numbers
def case(before, after, own=(3.0, 1.0, 0.5, 2.0), both=(0.1, 1.0, 2.0, 2.5)):
    return {"losses": {"before": before, "after": after, "own": list(own), "both": list(both)}}


CASES = [
    case([3.0, 0.2, 4.0, 0.5, 0.7], [0.1, 2.0, 0.4, 0.5, 0.9]),  # follows
    case([3.0, 0.2, 4.0, 0.5, 0.3], [0.1, 2.0, 3.0, 0.5, 0.3]),  # becomes likelier, no more
    case([3.0, 0.2, 0.4, 0.5], [2.5, 2.0, 0.6, 0.6], own=(3.0, 1.0, 2.0, 2.0)),  # was likelier; a tie; not written
    case([3.0, 0.2, 1.4, 0.5], [0.5, 2.0, 1.0, 0.6], both=(2.0, 1.0, 2.0, 2.5)),
]  # fmt: skip


def test_a_way_in_numbers():
    found = implications.summary(CASES)
    means = {name: own[0] for name, own in found.items() if name != "facts"}
    assert found["facts"] == 4
    assert means == {
        "before": 25.0, "after": 25.0, "own": 75.0, "both": 100.0, "written": 75.0, "written with": 75.0,
        "change": 0.0, "gained": pytest.approx((3.6 + 1.0 - 0.2 + 0.4) / 4), "turned": pytest.approx(-0.1),
    }  # fmt: skip
    assert found["gained"][2] == 4 and found["turned"][2] == 2
    spread = torch.tensor([3.6, 1.0, -0.2, 0.4], dtype=torch.float64).std(correction=0).item()
    assert found["gained"][1] == pytest.approx(1.96 * spread / 2)
    assert found["before"][1] == pytest.approx(196 * (0.25 * 0.75) ** 0.5 / 2)
    nothing = implications.summary([])
    assert nothing["facts"] == 0 and nothing["change"] == nothing["turned"] == [None, None, 0]


def faked(**changes):
    ways = {way: implications.summary([]) for way in implications.WAYS}
    for way, (mean, count) in changes.items():
        ways[way] = {**ways[way], "change": [mean, None, count]}
    kinds = {kind: {"after": dict.fromkeys(("S", "ES", "PS", "NS"))} for kind in KINDS}
    return Row("implications", 1, {"facts": 2}, {"ways": ways, "kinds": kinds}, {}, "recorded")


def test_reversed_questions_of_all_kinds_count_by_their_number():
    assert implications.reversed_change(faked(inverse=(10.0, 3), order=(-2.0, 1), chain=(90.0, 9))) == (
        7.0,
        4,
    )
    assert implications.reversed_change(faked(chain=(90.0, 9))) is None
    draws = [faked(inverse=(10.0, 3), order=(-2.0, 1)), faked(inverse=(4.0, 2))]
    assert implications.over(draws, "inverse", "change") == 7.0
    assert implications.over(draws, "order", "change") == -2.0
    assert implications.over(draws, "chain", "change") is None


def test_evidence_on_reversed_facts(monkeypatch):
    draws = [faked(inverse=(m, 3), order=(n, 1)) for m, n in ((1.0, 2.0), (0.0, 4.0), (2.0, 0.0))]
    nowhere = Store(ROOT / "nowhere")
    monkeypatch.setattr(implications, "finished", lambda store, scale: draws)
    whole, kinds = told.reverse(nowhere, "laptop")
    assert whole.series == {"reversed questions": (1.25, 1.0, 1.5)} and kinds.on != whole.on
    assert kinds.series == {"inverse": (1.0, 0.0, 2.0), "order": (2.0, 4.0, 0.0)}
    claim = CLAIMS["review.reverse-fact"]
    assert verdict(claim, whole, "laptop").verdict == "holds"
    monkeypatch.setattr(implications, "finished", lambda store, scale: [*draws[:2], faked()])
    assert told.reverse(nowhere, "laptop") == []


def test_numbers_for_prose(rows, monkeypatch):
    lab, row, _ = rows
    assert implications.results(lab.store, "smoke") == {} == implications.results(lab.store, "elsewhere")
    monkeypatch.setattr(implications, "settings", lambda scale, seed=0, **_: replace(S, seed=seed))
    found = implications.results(lab.store, "smoke")
    ways = row.values["ways"]
    for way in ("inverse", "two steps"):
        for name in ("before", "after", "own", "both", "gained"):
            assert found[f"implied.{way}.{name}"].value == ways[way][name][0]
    assert found["implied.plain.ES"].value == row.values["kinds"]["plain"]["after"]["ES"]
    assert found["implied.reversed.facts"].value == sum(ways[w]["facts"] for w in implications.REVERSED)
    assert json.loads(json.dumps(row.values)) == row.values
    assert all(own["facts"] <= S.facts for own in ways.values())
    monkeypatch.setattr(implications, "seeds", lambda scale: (0, 1))
    assert implications.finished(lab.store, "smoke") == [], "one of two draws is missing"


def test_settings_by_scale():
    smoke, laptop = implications.settings("smoke"), implications.settings("laptop", seed=1)
    assert (smoke.facts, laptop.facts, laptop.seed) == (2, 16, 1)
    assert laptop.model == implications.settings("laptop").model, "one model for all draws of facts"
    assert relations.seeds("laptop") == (0, 1, 2)
