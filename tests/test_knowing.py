"""Chapter 11's studies on the shipped smoke model and at tiny sizes, against loops that know nothing of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kemem.editing.facts import KnownFact
from kemem.editing.tracing import BUCKETS, noise_scale, trace
from kemem.errors import BadInput
from kemem.runs import MissingRow, Row, Store
from kemem.studies import factual, knowing, tracing
from kemem.studies.knowing import Answered
from kemem.studies.lab import Lab
from kemem.studies.questions import draw
from kemem.studies.sources import Told
from kemem.world import RELATIONS, Fact

ROOT = Path(__file__).resolve().parents[1]
ASKED = replace(knowing.settings("smoke"), facts=10, implied=3, held_out=4, examples=1)
TRACED = replace(tracing.settings("smoke"), facts=5, samples=2, paired=1, noises=4)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return Lab("smoke", Store(tmp_path_factory.mktemp("knowing")), ROOT)


@pytest.fixture(scope="module")
def read(here):
    """The model, its tokenizer and its world."""
    return *factual.model(here, ASKED.model), factual.world(ASKED.model)


@pytest.fixture(scope="module")
def asked(here):
    return knowing.run(here, ASKED)


@pytest.fixture(scope="module")
def traced(here):
    return tracing.run(here, TRACED)


@torch.no_grad()
def goes_on(model, ids, count):
    """Greedily, every token from a whole forward pass of a single text."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def hand(model, tok, fact):
    """Whether each phrasing goes on with the object, and what is written."""
    found = []
    for k in range(len(fact.row.cloze)):
        ids = tok(fact.prompt(k))["input_ids"]
        whole = tok(f"{fact.prompt(k)} {fact.object}")["input_ids"]
        assert whole[: len(ids)] == ids
        written = goes_on(model, ids, len(whole) - len(ids) + 4)
        found.append((written[: len(whole) - len(ids)] == whole[len(ids) :], tok.decode(written)))
    return found


# ---------------------------------------------------------------------- what is asked
def test_groups_are_what_a_reader_of_the_documents_could_know(read):
    _, _, world = read
    groups = knowing.grouped(world)
    text = " ".join(world.documents(600))
    named = {group: sum(f.subject in text for f in facts) / len(facts) for group, facts in groups.items()}
    assert named["told"] == named["implied"] == 1
    held = [f for f in groups["held_out"] if f.kind != "inflection"]  # short words stand within others
    assert held and not any(f" {f.subject} " in text for f in held)
    assert all(f.stated for f in groups["told"]) and not any(f.stated for f in groups["implied"])
    every = world.facts("trained", stated=None)
    assert Counter(len(f.objects) == 1 for f in every)[True] == len(groups["told"]) + len(groups["implied"])


def test_the_sample_is_the_first_by_hash_and_a_longer_one_begins_with_it(read):
    facts = knowing.grouped(read[2])["told"]
    few, more = knowing.sampled(facts, 5), knowing.sampled(facts[::-1], 50)
    assert few == more[:5]
    keys = {draw(f.subject, f.relation) for f in few}
    assert all(draw(f.subject, f.relation) > max(keys) for f in facts if f not in few)
    assert len(knowing.sampled(facts, 10**6)) == len(facts)


def test_accuracy_is_what_loops_over_single_prompts_find(read, asked):
    model, tok, world = read
    for group, count in (("told", 10), ("implied", 3), ("held_out", 4)):
        facts = knowing.sampled(knowing.grouped(world)[group], count)
        right = [[ok for ok, _ in hand(model, tok, fact)] for fact in facts]
        found = asked.values["groups"][group]
        assert found["facts"] == count and found["questions"] == sum(map(len, right))
        assert found["right"] == pytest.approx(sum(sum(r) / len(r) for r in right) / count, abs=1e-12)
        assert found["all"] == sum(map(all, right)) / count
        assert found["none"] == sum(not any(r) for r in right) / count
        assert found["phrasings"] == [sum(r[k] for r in right) / count for k in range(3)]
        by_kind = asked.values["kinds"][group]
        assert sum(own["facts"] for own in by_kind.values()) == count
        for kind, own in by_kind.items():
            shares = [sum(r) / len(r) for f, r in zip(facts, right, strict=True) if f.kind == kind]
            assert own["right"] == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    told = asked.values["groups"]["told"]
    assert asked.values["groups"]["held_out"]["right"] < told["right"] and 0 < told["right"] < 1


def test_what_is_said_begins_what_the_model_writes(read):
    model, tok, world = read
    facts = knowing.sampled(knowing.grouped(world)["told"], 3)
    for size in (2, 128):
        for fact, found in zip(facts, knowing.ask(model, tok, world, facts, batch_size=size), strict=True):
            for said, outcome, (right, text) in zip(
                found.said, found.outcomes, hand(model, tok, fact), strict=True
            ):
                assert (outcome == "right") == right and (said == fact.object or not right)
                assert text.strip().startswith(said)
                if outcome == "same type":
                    types = {world.entities[said].type} if said in world.entities else set()
                    values = {o for f in world.facts() if f.row.object == fact.row.object for o in f.objects}
                    assert fact.row.object in types or said in values


def test_names_are_whole_words_and_the_longest():
    names = {"Al", "Al Bo", "Bo", "1880"}
    assert knowing.named(" Al Bo.", names) == "Al Bo"
    assert knowing.named(" Al Bob.", names) == "Al"
    assert knowing.named(" Alma was, well.", names) == "Alma was"
    assert knowing.named(" 1880s", names) == "1880s"
    assert knowing.named(" nobody. Bo", names) == "nobody"


def test_only_order_has_other_true_objects(read):
    _, _, world = read
    for fact in world.facts(kind="order") + world.facts(kind="symmetric"):
        year = "born_year" if fact.row.subject == "person" else "company_founded"
        before = fact.relation.endswith("before")
        for name in (n for n, e in world.entities.items() if e.type == fact.row.subject):
            own, other = world.fact(fact.subject, year), world.fact(name, year)
            holds = fact.kind == "order" and own is not None and other is not None
            if holds:
                a, b = int(own.object), int(other.object)
                holds = a < b if before else a > b
            assert knowing.true_too(world, fact, name) is holds
    assert not knowing.true_too(world, fact, "no name")


# ---------------------------------------------------------------------- what is counted
SAID = st.lists(
    st.lists(st.sampled_from(["right", "true too", "same type", "something else"]), min_size=3, max_size=4),
    min_size=1,
    max_size=12,
)


@given(SAID)
def test_summary_counts(outcomes):
    fact = Fact("a", "born_in", ("b",), "plain", "trained", "reported")
    answered = [Answered(fact, tuple(o[:6] for o in own), tuple(own)) for own in outcomes]
    found = knowing.summary(answered)
    n, counts = len(outcomes), Counter(o for own in outcomes for o in own)
    shares = torch.tensor([own.count("right") / len(own) for own in outcomes], dtype=torch.float64)
    assert found["right"] == pytest.approx(float(shares.mean()), abs=1e-12)
    assert found["half"] == pytest.approx(1.96 * float(shares.std(correction=0)) / n**0.5, abs=1e-12)
    full = sum(own.count("right") == len(own) for own in outcomes)
    never = sum("right" not in own for own in outcomes)
    assert (found["all"], found["none"]) == (full / n, never / n)
    assert found["all"] + found["some"] + found["none"] == pytest.approx(1)
    assert found["alike"] == sum(len(set(own)) == 1 for own in outcomes) / n
    first = sum(own[0] == "right" for own in outcomes)
    assert found["kept"] == (full / first if first else None)
    assert {name: share for name, share in found["outcomes"].items() if share} == {
        name: count / counts.total() for name, count in counts.items()
    }
    wrong = counts.total() - counts["right"]
    typed = counts["true too"] + counts["same type"]
    assert found["type_right"] == (typed / wrong if wrong else None)


def test_quartiles_hold_every_fact_once_the_rare_first(read, asked):
    _, _, world = read
    facts = [
        Answered(f, ("x",) * 3, ("right",) * 3) for f in knowing.sampled(knowing.grouped(world)["told"], 10)
    ]
    parts = knowing.quartiles(world, facts)
    assert [len(p) for p in parts] == [2, 3, 2, 3]
    assert sorted(id(a) for p in parts for a in p) == sorted(map(id, facts))
    ranges = [[world.frequency(a.fact.subject) for a in p] for p in parts]
    assert all(max(a) <= min(b) for a, b in pairwise(ranges)) and min(ranges[0]) > 0
    rows = asked.values["quartiles"]
    assert [own["facts"] for own in rows] == [2, 3, 2, 3] and asked.values["documents"] == 3000
    assert [own["documents"] for own in rows] == pytest.approx([3000 * sum(r) / len(r) for r in ranges])


def test_a_table_answers_what_it_holds_and_rules_the_rest(read, asked):
    _, _, world = read
    assert asked.values["table"]["cells"] == {"told": 1, "implied": 0, "held_out": 0}
    assert asked.values["table"]["with rules"] == {"told": 1, "implied": 1, "held_out": 0}
    told = knowing.grouped(world)["told"]
    assert asked.values["cells"] == len({(f.subject, f.relation) for f in told}) == len(told)
    sample = knowing.sampled(told, 10)
    links = sum(RELATIONS[f.relation].inverse is not None for f in sample)
    chains = sum(f.relation == "city_region" for f in sample)  # tells the country as well
    assert asked.values["follows"] == (links + chains) / 10


# ---------------------------------------------------------------------- tracing
def test_the_window_is_the_papers_share():
    for scale in factual.SCALES:
        s = tracing.settings(scale)
        assert s.window == max(1, int(10 * s.model.setup.layers / 48 + 0.5))
    assert tracing.settings("smoke", facts=7, window=3).window == 3
    assert tracing.settings("smoke", facts=7).facts == 7


def test_traced_facts_are_told_of_the_tuning_part_and_said_in_full(read, traced):
    model, tok, world = read
    tuning = {f.prompt(0): f for f in world.facts(part="tuning")}
    reported = {f.prompt(0) for f in world.facts(part="reported")}
    assert len(traced.values["facts"]) == 5
    for each in traced.values["facts"]:
        fact = tuning[each["prompt"]]
        assert each["prompt"] not in reported and each["attribute"] == fact.object
        assert hand(model, tok, fact)[0][0], "the whole object is said"
        tokens = Counter(
            tok(f"{f.prompt()} {o}")["input_ids"][len(tok(f.prompt())["input_ids"])]
            for f in world.facts(relation=fact.relation)
            for o in f.objects
        )
        ids = tok(each["prompt"])["input_ids"]
        mine = tok(f"{each['prompt']} {fact.object}")["input_ids"][len(ids)]
        assert tokens[mine] <= 0.5 * tokens.total()
    assert traced.values["asked"] + traced.values["left_out"] == len(world.facts(part="tuning"))
    assert 5 <= traced.values["known"] <= traced.values["asked"]
    kept, out = tracing.telling(tok, Told(world), 1.0, 0)
    assert (len(kept), out) == (len(tuning), 0)


def facts_of(world, traced):
    tuning = {f.prompt(0): f for f in world.facts(part="tuning")}
    return [
        KnownFact(i, each["prompt"], tuning[each["prompt"]].subject, each["attribute"])
        for i, each in enumerate(traced.values["facts"])
    ]


def agrees(row, direct):
    assert row["facts"] == len(direct.traces) and row["suggested"] == list(direct.layers)
    assert (row["clean"], row["corrupted"]) == pytest.approx((direct.clean, direct.corrupted), abs=1e-9)
    for kind in ("state", "mlp", "attention"):
        expected = direct.effects(kind)
        assert row["effects"][kind].keys() == expected.keys()
        for role, own in expected.items():
            assert row["effects"][kind][role]["value"] == pytest.approx(own.value.tolist(), abs=1e-9)
            assert row["effects"][kind][role]["facts"] == own.facts
    for name, own in direct.severed.items():
        assert row["severed"][name]["value"] == pytest.approx(own.value.tolist(), abs=1e-9)
    assert row["gap"]["value"] == pytest.approx(direct.gap.value.tolist(), abs=1e-9)
    assert (row["gap"]["half"] is None) == (direct.gap.half is None)


def test_the_row_is_trace_called_directly_of_all_and_of_each_draw(read, traced):
    model, tok, world = read
    facts = facts_of(world, traced)
    scale = noise_scale(model, tok, facts)
    assert traced.values["noise"] == pytest.approx(scale)
    agrees(traced.values["whole"], trace(model, tok, facts, samples=2, window=1, batch_size=17))
    cuts = (0, 1, 3, 5)
    for row, (a, b) in zip(traced.values["draws"], pairwise(cuts), strict=True):
        agrees(row, trace(model, tok, facts[a:b], samples=2, window=1, noise=scale))
    assert all(0 <= layer < 4 for own in traced.values["draws"] for layer in own["suggested"])


def test_effects_add_up_and_end_at_nothing(traced):
    whole = traced.values["whole"]
    states = whole["effects"]["state"]
    assert set(states) <= set(BUCKETS)
    assert states["last"]["value"][-1] == pytest.approx(whole["clean"] - whole["corrupted"], abs=1e-9)
    assert states["last_subject"]["value"][-1] == pytest.approx(0, abs=1e-9)
    assert whole["severed"]["plain"]["value"] == states["last_subject"]["value"]
    for name in ("clean", "corrupted"):
        assert whole[name] == pytest.approx(sum(f[name] for f in traced.values["facts"]) / 5)


def test_own_noise_is_two_runs_that_share_nothing(read, traced):
    """In the last layer restoring does nothing, so that both variances follow from the corrupted runs alone."""
    from kemem.editing.effects import questions, standard_noise

    model, tok, world = read
    same, own = (traced.values["pairing"][name] for name in ("same", "own"))
    assert same[-1] < 1e-18 and len(same) == 4
    (asked,) = questions(tok, facts_of(world, traced)[:1])
    table = model.get_input_embeddings().weight
    noise = traced.values["noise"] * standard_noise(asked, 8, table.shape[1], 1)
    p = []
    for each in noise:
        embedded = table[list(asked.place.ids)].detach().clone()
        embedded[asked.place.first : asked.place.last + 1] += each
        with torch.no_grad():
            logits = model(inputs_embeds=embedded[None]).logits[0, -1]
        p.append(float(torch.softmax(logits, -1)[asked.answer]))
    here, there = torch.tensor(p[:4]).double(), torch.tensor(p[4:]).double()
    assert own[-1] == pytest.approx(float((here - there).var()), rel=1e-4)


def test_contrasts_by_hand():
    states = {"last_subject": [0.1, 0.5, 0.3, 0.2, 0.4, 0.0], "last": [0.0, 0.1, 0.1, 0.2, 0.9, 0.9]}
    found = {
        "effects": {"state": {role: {"value": v} for role, v in states.items()}},
        "severed": {"mlp": {"value": [0.1] * 6}, "attention": {"value": [0.1, 0.4, 0.1, 9, 9, 9]}},
        "suggested": [1, 2],
    }
    assert tracing.early_or_middle(6) == 4 and tracing.early_or_middle(4) == 3
    assert list(tracing.contrasts(found).values()) == pytest.approx([0.5 - 0.4, 0.5 - 0.2, 0.1])


def test_too_few_or_too_many_facts_are_refused(here):
    with pytest.raises(BadInput, match="expected 3 facts to trace, or more; got 2"):
        tracing.run(here, replace(TRACED, facts=2))
    with pytest.raises(BadInput, match="as many as the model knows; got 1000"):
        tracing.run(here, replace(TRACED, facts=1000))


# ---------------------------------------------------------------------- what prose may quote
def test_results_are_the_rows_numbers(monkeypatch, here, asked, traced):
    monkeypatch.setattr(knowing, "settings", lambda scale, **_: ASKED)
    monkeypatch.setattr(tracing, "settings", lambda scale, **_: TRACED)
    known, found = (
        {name: result.value for name, result in module.results(here.store, "smoke").items()}
        for module in (knowing, tracing)
    )
    groups, whole = asked.values["groups"], traced.values["whole"]
    assert known["knowing.told.right"] == 100 * groups["told"]["right"]
    assert known["knowing.held_out.none"] == 100 * groups["held_out"]["none"]
    assert known["knowing.quartile 4.right"] == 100 * asked.values["quartiles"][3]["right"]
    assert known["knowing.told.plain.all"] == 100 * asked.values["kinds"]["told"]["plain"]["all"]
    assert known["knowing.table.with rules.implied"] == 100
    assert known["knowing.seconds.asking"] > 0
    assert found["tracing.total"] == pytest.approx(100 * (whole["clean"] - whole["corrupted"]))
    values = whole["effects"]["mlp"]["last_subject"]["value"]
    assert found["tracing.mlp.last_subject"] == 100 * max(values)
    assert values[found["tracing.mlp.last_subject.layer"]] == max(values)
    assert (found["tracing.first"], found["tracing.last"]) == (whole["suggested"][0], whole["suggested"][-1])
    assert found["tracing.known"] == 100 * traced.values["known"] / traced.values["asked"]
    assert found["tracing.pairing"] >= 0
    for module in (knowing, tracing):
        assert module.results(here.store, "elsewhere") == {}
        assert module.results(Store(here.store.live / "empty"), "smoke") == {}


@pytest.mark.parametrize(("module", "settings"), [(knowing, ASKED), (tracing, TRACED)])
def test_a_row_that_replay_lacks_is_an_error(tmp_path, module, settings):
    replay = Lab("smoke", Store(tmp_path, tmp_path / "records", mode="replay"), ROOT)
    with pytest.raises(MissingRow, match=module.STUDY):
        module.run(replay, settings)


def test_rows_are_read_again(here, asked, traced):
    again = knowing.run(here, ASKED), tracing.run(here, TRACED)
    assert all(isinstance(row, Row) for row in again)
    assert [row.values for row in again] == [asked.values, traced.values]
