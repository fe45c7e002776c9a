"""Many edits in a row of their own: its facts, its scores and the editors it names are what they are by themselves."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kemem import editing, evaluation
from kemem.editing import Judge, Request, Search
from kemem.errors import BadInput
from kemem.runs import Store
from kemem.studies import factual, many, methods
from kemem.studies.lab import Lab
from kemem.studies.setup import blocks

ROOT = Path(__file__).parents[1]
MODEL = factual.settings("smoke")
SMALL = many.Many(MODEL, "MEMIT", 10.0, 3, (0, 1), blocks=2, texts=60)


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    return many.Benches(Lab("smoke", Store(tmp_path_factory.mktemp("many")), ROOT))


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_row_is_what_its_blocks_score_by_themselves(benches):
    at, requests = benches.at(SMALL), benches.requests(SMALL)
    before = bits(at.model)
    row = many.run(benches, SMALL).values
    assert all(torch.equal(tensor, before[name]) for name, tensor in at.model.state_dict().items())

    values = {"ES": [], "PS": [], "NS": []}
    text = blocks(benches.lab, MODEL.setup, MODEL.setup.corpus, "test", limit=MODEL.held_out)
    for number, own in enumerate((requests[:3], requests[3:])):
        edit = editing.MEMIT((0, 1), 10.0)(
            at.model, at.tok, own, at.moments, templates=at.templates,
            targets=editing.values(
                many.Memories(at.model), editing.contexts(at.tok, own, at.templates), 1, Search(clamp=1.0)
            ).z,
        )  # fmt: skip
        with edit.applied(at.model):
            scores = Judge(at.tok, own)(at.model)
            nats = evaluation.loss(at.model, text)
        if number == 0:
            assert row["after"]["nats"] == pytest.approx(nats, abs=1e-9)
        for name, found in values.items():
            found += scores.values[name]
    for name, found in values.items():
        assert row["after"][name] == pytest.approx(100 * sum(found) / len(found), abs=1e-9)
    by = row["after"]["relations"]
    assert {name: own["facts"] for name, own in by.items()} == Counter(r.relation for r in requests)
    mean = sum(own["facts"] * own["PS"] for own in by.values()) / 6
    assert mean == pytest.approx(row["after"]["PS"], abs=1e-9)
    assert row["facts"] == 6 and row["norm"] > 0 and set(row["seconds"]) == {"values", "keys", "solve"}


def test_nothing_written_changes_nothing(benches):
    row = many.run(benches, replace(SMALL, method=many.NONE, value=0.0, written=1)).values
    assert row["before"] == row["after"] and row["norm"] == 0.0 and row["after"]["texts"]["GE"] > 0


def test_facts_are_known_and_of_the_part_that_is_asked(benches):
    at = benches.at(SMALL)
    requests = benches.requests(replace(SMALL, count=8, blocks=1))
    assert requests[:6] == benches.requests(SMALL)
    said = editing.generated_success(at.model, at.tok, [replace(r, new=r.true) for r in requests])
    assert all(said)
    reported = {(f.subject, f.relation) for f in at.world.facts(part="reported")}
    assert {(r.subject, r.relation) for r in requests} <= reported
    two = benches.requests(replace(SMALL, relations=("born_in", "occupation"), count=2, blocks=1))
    assert Counter(r.relation for r in two) == {"born_in": 1, "occupation": 1}
    asked = benches.requests(replace(SMALL, records="zsre", count=4, blocks=1))
    known = {(f.subject, f.object) for f in at.world.facts("held_out")}
    assert all((r.subject, r.new) in known and r.locality for r in asked)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=20))
def test_every_subject_comes_once_before_any_comes_again(pairs):
    requests = [
        Request(case_id=i, prompt="{} is", subject=subject, new=str(object_))
        for i, (subject, object_) in enumerate(pairs)
    ]
    found = many.spread(requests)
    assert [r.case_id for r in found] == list(range(len(pairs)))
    assert Counter((r.subject, r.new) for r in found) == Counter((r.subject, r.new) for r in requests)
    subjects, seen = [r.subject for r in found], Counter()
    for subject in subjects:
        assert all(
            seen[other] >= seen[subject] for other in set(subjects) if subjects.count(other) > seen[subject]
        )
        seen[subject] += 1


@pytest.mark.parametrize(
    "name", [*(name for name, method in methods.METHODS.items() if method.make), methods.ATTENTION]
)
def test_every_editor_is_made_and_leaves_the_model_as_it_was(benches, name):
    at = benches.at(SMALL)
    before = bits(at.model)
    value = 10.0 if name == methods.ATTENTION else methods.METHODS[name].values[1]
    editor = methods.made(benches.lab, at, name, value, (0, 1), clamp=1.5)
    requests = benches.requests(SMALL)[:2]
    edit = many.write(at, name, editor, requests)
    assert edit.deltas and all(torch.equal(t, before[n]) for n, t in at.model.state_dict().items())
    search = getattr(editor, "search", None)
    if name not in ("ROME", "r-ROME") and search is not None:
        assert search.clamp == 1.5
    layers = {int(path.split(".layers.")[1].split(".")[0]) for path in edit.deltas}
    several = ("MEMIT", "PMET", "EMMET", "AlphaEdit", methods.ATTENTION)
    assert layers == ({0, 1} if name in several else {1})
    assert all(("self_attn" in path) == (name == methods.ATTENTION) for path in edit.deltas)


def test_targets_are_found_once_and_serve_every_editor_that_sets_them_in_the_stream(benches):
    at, requests = benches.at(SMALL), benches.requests(SMALL)[:3]
    memit = methods.made(benches.lab, at, "MEMIT", 10.0, (0, 1), clamp=0.9)
    alpha = methods.made(benches.lab, at, "AlphaEdit", 1.0, (0, 1), clamp=0.9)
    first, seconds = many.targets(at, memit, requests)
    held = len(at.targets)
    again, same = many.targets(at, alpha, requests[::-1])
    assert len(at.targets) == held and torch.equal(again, first.flip(0)) and seconds == pytest.approx(same)
    other, _ = many.targets(at, methods.made(benches.lab, at, "MEMIT", 10.0, (0,), clamp=0.9), requests)
    assert len(at.targets) == held + 3 and not torch.equal(other, first)


def test_half_of_the_directions_are_free(benches):
    moments = benches.at(SMALL).moments
    limit = methods.free(moments, (0, 1))
    sizes = torch.cat([torch.linalg.eigvalsh(moments[layer].double()) for layer in (0, 1)])
    assert (sizes < limit).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_networks_are_trained_once(benches):
    at = benches.at(SMALL)
    of = methods.Trained(MODEL, (2, 3), 1e-4, steps=2, rank=4, asked=30, skipped=10)
    first, second = (methods.networks(benches.lab, at, of) for _ in range(2))
    other = methods.networks(benches.lab, at, replace(of, steps=1))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same) and any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_references_tell_of_others_with_the_new_object(benches):
    at, requests = benches.at(SMALL), benches.requests(SMALL)
    found = at.source.references(requests)
    for r in requests:
        of = [f for f in at.world.facts(relation=r.relation) if r.new in f.objects and f.subject != r.subject]
        assert len(found[r.relation, r.new]) == min(4, len(of))
        assert all(any(f.subject in text for f in of) for text in found[r.relation, r.new])


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"method": "SERAC"}, "expected a method, one of none, MEMIT, PMET"),
        ({"records": "mquake"}, "expected records of counterfact or zsre; got 'mquake'"),
        ({"count": 0}, "expected facts and blocks; got 0 in 2 blocks"),
        ({"count": 4000}, "expected 8000 reported facts to edit; got"),
        ({"records": "zsre", "relations": ("born_in",)}, "expected questions of all relations"),
        ({"method": "MEND", "value": 1e-4}, "expected how MEND's networks are trained"),
    ],
)
def test_refusals_are_one_line(benches, changes, said):
    with pytest.raises(BadInput) as caught:
        many.run(benches, replace(SMALL, **changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)
