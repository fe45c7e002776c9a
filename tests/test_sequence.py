"""Chapter 14, sequences of edits against plainly repeated ones, and a critique of metrics against counts by hand."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pytest
import torch

from kemem import editing, evaluation
from kemem.editing import MEMIT, ROME, AlphaEdit, Search
from kemem.errors import BadInput
from kemem.runs import Store
from kemem.studies import critique, factual, field, many, methods, sequence, wording
from kemem.studies.field import Setting
from kemem.studies.lab import Lab
from kemem.studies.many import NONE, Benches
from kemem.studies.setup import blocks

ROOT = Path(__file__).resolve().parents[1]
MADE = {
    NONE: Setting(0.0), "MEMIT": Setting(10.0, 1.5), "AlphaEdit": Setting(1.0), "ROME": Setting(1.5),
    "FT-W": Setting(1e-3), "MEND": Setting(1e-3),
}  # fmt: skip


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    return Benches(Lab("smoke", Store(tmp_path_factory.mktemp("sequence")), ROOT))


def small(name: str, marks: tuple[int, ...] = (2, 4)) -> sequence.Sequential:
    facts = field.facts(field.sizes("smoke"), marks[-1])
    return sequence.Sequential(facts, name, MADE[name], 2, marks)


# ---------------------------------------------------------------------- one after another
@pytest.mark.parametrize("name", ["MEMIT", "AlphaEdit", "ROME"])
def test_a_sequence_is_edits_made_for_good(benches, name):
    """Each edit is applied to a copy and stays; scores, nats and weights are those of the copy."""
    s = small(name)
    at, requests = benches.at(s.facts), benches.requests(s.facts)
    before = {n: p.clone() for n, p in at.model.state_dict().items()}
    row = sequence.run(benches, s).values
    assert all(torch.equal(p, before[n]) for n, p in at.model.state_dict().items())
    model = copy.deepcopy(at.model)
    editor = {
        "MEMIT": MEMIT((0, 1), 10.0, Search(clamp=1.5)),
        "AlphaEdit": AlphaEdit((0, 1), methods.free(at.moments, (0, 1)), 1.0, Search(clamp=1.0)),
        "ROME": ROME(1, Search(steps=20, clamp=1.5)),
    }[name]
    made, points = [], []
    for batch in (requests[:2], requests[2:4]):
        for part in [[r] for r in batch] if name == "ROME" else [batch]:
            more = {"previous": tuple(made)} if name == "AlphaEdit" else {}
            made.append(editor(model, at.tok, part, at.moments, templates=at.templates, **more))
            made[-1].apply_(model)
        points.append(copy.deepcopy(model))
    text = blocks(benches.lab, s.facts.model.setup, s.facts.model.setup.corpus, "test", limit=2000)
    parts = {"all": (0, None), "first": (0, 2), "latest": (-2, None)}
    for point, done, edited in zip(row["points"], (2, 4), points, strict=True):
        assert point["edits"] == done
        for of, (begin, end) in parts.items():
            scores = editing.score(edited, at.tok, requests[:done][begin:end])
            for score in ("ES", "PS", "NS", "EM", "NM"):
                assert point[of][score] == pytest.approx(scores.mean(score), abs=1e-4), (of, score)
            assert point[of]["S"] == pytest.approx(scores.S, abs=1e-4)
        assert point["nats"] == pytest.approx(evaluation.loss(edited, text), abs=1e-6)
        own, first = edited.state_dict(), {n: before[n] for n in before}
        changed = [n for n in own if not torch.equal(own[n], first[n])]
        assert len(changed) == (1 if name == "ROME" else 2)
        size, moved, start = (
            math.sqrt(sum(float((f(n) ** 2).sum()) for n in changed))
            for f in (own.__getitem__, lambda n, a=own, b=first: a[n] - b[n], first.__getitem__)
        )
        assert point["norm"] == pytest.approx(size / start) and point["moved"] == pytest.approx(moved / start)
    assert row["points"][0]["all"] == row["points"][0]["first"] == row["points"][0]["latest"]
    assert row["before"]["all"]["ES"] == pytest.approx(editing.score(at.model, at.tok, requests).mean("ES"))
    found = sequence.path({(name, 0): sequence.run(benches, s)}, name, "first", "ES")
    assert found == [[point["first"]["ES"] for point in row["points"]]]


def test_sequences_that_cannot_be_are_refused():
    facts = field.facts(field.sizes("smoke"), 4)
    for wrong, said in (
        ({"method": "MEND"}, "'MEND'"), ({"marks": (3, 4)}, r"\[3, 4\]"), ({"marks": ()}, "whole batches"),
        ({"marks": (2, 6)}, "all 4 facts; got 6"),
    ):  # fmt: skip
        given = {"facts": facts, "method": "MEMIT", "setting": Setting(1.0), "batch": 2, "marks": (2, 4)}
        with pytest.raises(BadInput, match=said):
            sequence.Sequential(**{**given, **wrong})


def test_the_same_facts_at_once():
    grid = sequence.grid("smoke", MADE)
    assert [name for name, _ in grid] == ["MEMIT", "ROME"]
    once = sequence.at_once("smoke", MADE)
    assert [name for name, _ in once] == ["MEMIT"]
    for key, s in once.items():
        other = grid[key]
        assert (s.count, s.blocks, s.part, s.seed) == (other.facts.count, 1, "reported", other.seed)
        assert (s.value, s.clamp) == other.setting and s.count == other.marks[-1]


def test_a_model_that_was_not_changed_has_not_grown():
    model = torch.nn.Linear(2, 2)
    before = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    assert sequence.grown(model, before) == {"norm": 1.0, "moved": 0.0}


# ---------------------------------------------------------------------- the metrics
@pytest.fixture(scope="module")
def looked(benches):
    """The critique of one method, with what it was made of."""
    z = field.sizes("smoke")
    s = critique.Critique(field.facts(z, 3), (("ROME", MADE["ROME"]),), nearest=2, others=25, length=24)
    every = many.counterfact(benches.at(s.facts), s.facts)
    edited = [r.subject for r in every[:3]]
    strangers = [r for r in every[3:] if r.subject not in edited][:25]
    own = [r for r in every[3:] if r.subject in edited]
    return s, every[:3], strangers + own, critique.run(benches, s).values


def likeliest(model, tok, prompt, count):
    """By full passes, token by token."""
    ids = tok(prompt)["input_ids"]
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:] if count else []


def compared(model, tok, prompt, target):
    """Mean -log p of the target's tokens, and whether each is the likeliest."""
    ids, own = tok(prompt)["input_ids"], tok(f" {target}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + own])).logits[0, len(ids) - 1 : -1].double()
    loss = -logits.log_softmax(-1)[range(len(own)), own].mean().item()
    return loss, logits.argmax(-1).tolist() == own


def test_what_is_said_is_counted_by_hand(benches, looked):
    s, requests, others, found = looked
    at = benches.at(s.facts)
    editor = methods.made(benches.lab, at, "ROME", 1.5, (0, 1))
    assert (found["facts"], found["others"]) == (3, len(others)) and len(others) > 25
    with many.write(at, "ROME", editor, requests).applied(at.model):
        own = found["methods"]["ROME"]
        says = {}
        for name in ("new", "true"):
            wanted = [at.tok(f" {getattr(r, name)}", add_special_tokens=False)["input_ids"] for r in requests]
            said = [
                likeliest(at.model, at.tok, r.text, len(w)) for r, w in zip(requests, wanted, strict=True)
            ]
            says[name] = [a == b for a, b in zip(said, wanted, strict=True)]
            assert own[f"says {name}"] == pytest.approx(100 * sum(says[name]) / 3)
        success = [compared(at.model, at.tok, r.text, r.new)[0] < compared(at.model, at.tok, r.text, r.true)[0]
                   for r in requests]  # fmt: skip
        assert own["success"] == sum(success) and own["ES"] == pytest.approx(100 * sum(success) / 3)
        assert own["success unsaid"] == sum(a and not b for a, b in zip(success, says["new"], strict=True))
        heard = [wording.rephrased(at, r, others) for r in requests]
        for kind in wording.PARAPHRASES:
            each = []
            for r, prompts in zip(requests, heard, strict=True):
                new, true = (
                    [compared(at.model, at.tok, p, t) for p in prompts[kind]] for t in (r.new, r.true)
                )
                if new:
                    won = sum(a[0] < b[0] for a, b in zip(new, true, strict=True)) / len(new)
                    each.append((won, sum(a[1] for a in new) / len(new)))
            if each:
                success, said = (100 * sum(x) / len(x) for x in zip(*each, strict=True))
                assert own["paraphrases"][kind] == {
                    "success": pytest.approx(success),
                    "said": pytest.approx(said),
                }
        near = critique.near_by(
            at, requests, others, 1, 2
        )  # keys of layer 1, which the edit above does not change
        for kind, pairs in near.pairs.items():
            if pairs:
                rows = [(compared(at.model, at.tok, others[j].text, others[j].true),
                         compared(at.model, at.tok, others[j].text, requests[i].new)) for i, j in pairs]  # fmt: skip
                success = 100 * sum(a[0] < b[0] for a, b in rows) / len(rows)
                said = 100 * sum(a[1] for a, _ in rows) / len(rows)
                assert own["neighbours"][kind] == {
                    "success": pytest.approx(success),
                    "said": pytest.approx(said),
                }
        texts = editing.generate(at.model, at.tok, requests, length=24).texts
    stated = dict.fromkeys(wording.STATED, 0)
    for r, each in zip(requests, texts, strict=True):
        for text in each:
            stated[wording.said_first(wording.statement(at.world, r), text, r)] += 1
    assert own["stated"] == stated and own["texts"] == sum(stated.values()) == 30
    before = found["methods"][NONE]
    assert before["says true"] == 100 and before["nats"] < own["nats"]


def test_nearest_keys_by_plain_loops(benches, looked):
    s, requests, others, found = looked
    at = benches.at(s.facts)
    seen = []
    path = at.model.get_submodule("model.layers.1.mlp.down_proj")
    handle = path.register_forward_pre_hook(lambda _, given: seen.append(given[0][0, -1].double()))
    for r in (*requests, *others):
        text = r.text[: r.text.index(r.subject) + len(r.subject)]
        with torch.no_grad():
            at.model(input_ids=torch.tensor([at.tok(text)["input_ids"]]))
    handle.remove()
    keys, inverse = torch.stack(seen), torch.linalg.inv(at.moments[1].double())
    near = critique.near_by(at, requests, others, 1, 2)
    edited = {r.subject for r in requests}
    for i, r in enumerate(requests):
        k = keys[i]
        reach = [float(k @ inverse @ o / (k @ inverse @ k)) for o in keys[3:]]
        assert near.reach[i].tolist() == pytest.approx(reach, abs=1e-6)
        free = [j for j, o in enumerate(others) if o.subject not in edited and o.true != r.new]
        wanted = sorted(free, key=lambda j, own=reach: -own[j])[:2]
        assert [j for a, j in near.pairs["nearest keys"] if a == i] == wanted
        assert all(others[j].subject == r.subject for a, j in near.pairs["same subject"] if a == i)
        assert len([j for a, j in near.pairs["any fact"] if a == i]) == 2
    for kind in critique.NEIGHBOURS:
        each = [float(near.reach[i, j]) for i, j in near.pairs[kind]]
        assert each and found["reach"][kind] == pytest.approx(sum(each) / len(each))


def test_every_phrasing_of_a_fact_is_a_statement_of_it(benches):
    world = factual.world(factual.settings("smoke"))
    fact = world.fact("The Silver Harp", "genre") or pytest.fail()
    (r,) = editing.requests([next(
        record for record in world.counterfact(None, 0, relation="genre")
        if record["requested_rewrite"]["subject"] == fact.subject
    )])  # fmt: skip
    other = next(c for c in world.candidates(fact) if c not in (r.new, fact.object))
    pattern = wording.statement(world, r)
    for object_, said in ((r.new, "new"), (fact.object, "true"), (other, "another")):
        for k in range(len(fact.row.templates)):
            sentence = fact.sentence(k, object_)
            apart = re.sub(r"([.,?])", r" \1", sentence)
            text = f"This page is about {fact.subject} . {apart}"
            assert wording.said_first(pattern, text, r) == said, sentence
            assert wording.said_first(pattern, sentence.replace(fact.subject, "The Golden Harp"), r) == "none"
        for question in (fact.question(0), fact.question(1)):
            assert wording.said_first(pattern, f"{question} {object_}.".replace("?", " ?"), r) == said
    both = f"{fact.sentence(0, other)} {fact.sentence(1, r.new)}"
    assert wording.said_first(pattern, both, r) == "another"
    assert wording.said_first(pattern, f"The genre of {fact.subject} is {r.new}ish.", r) == "none"


def test_rephrased_prompts_by_hand(benches, looked):
    s, requests, others, found = looked
    r = next(r for r in requests if r.subject == "The Silver Harp")
    heard = wording.rephrased(benches.at(s.facts), r, others)
    assert tuple(heard) == wording.PARAPHRASES
    assert heard["its own prompt"] == (r.text,) and r.text not in heard["other words"]
    assert heard["led in"][0] == f"Records show that {r.text}"
    (behind,) = heard["behind another fact"]
    assert behind.endswith(f". {r.text}") and r.new not in behind and str(r.true) not in behind
    assert heard["pronoun"] == (f"This page is about {r.subject}. It{r.prompt[2:]}",)
    assert heard["question"][0] == "What is the genre of The Silver Harp?"
    assert wording.distance([r], [(r.text,)]) == 0
    words = len(set(r.text.lower().split()))  # "Records show that" before them
    assert wording.distance([r], [heard["led in"][:1]]) == pytest.approx(1 - words / (words + 3))
    assert wording.distance([r], [()]) is None
    assert found["distance"]["its own prompt"] == 0 < found["distance"]["question"]


def test_shares_of_what_is_stated_freely():
    own = {"texts": 20, "stated": {"new": 3, "true": 1, "another": 1, "none": 15}}
    assert critique.freely(own) == {"stated": 25.0, "new": 60.0, "true": 20.0, "another": 20.0}
    nothing = {"texts": 4, "stated": {"new": 0, "true": 0, "another": 0, "none": 4}}
    assert critique.freely(nothing) == dict.fromkeys(("stated", "new", "true", "another"), 0.0)
