"""Facts without the memories of their own keys and changes: against weights that are cut by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from kemem import entropy, evaluation, trace
from kemem.editing.places import leading, place
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import agreement, fact_silencing, many, silencing
from kemem.studies import desk as desks
from kemem.studies.checkpointed import MIXTURE
from kemem.studies.fact_silencing import ALONE, UNWRITTEN
from kemem.studies.lab import Lab

ROOT = Path(__file__).resolve().parents[1]
DRAW = 1


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab("smoke", Store(tmp_path_factory.mktemp("facts")), ROOT)


@pytest.fixture(scope="module")
def desk(lab):
    return desks.Desk(lab)


@pytest.fixture(scope="module")
def asked(desk):
    (s,) = desks.harboured(desk.z, desk.z.settings[0]).values()
    return s


@pytest.fixture(scope="module")
def at(desk, asked):
    return desk.stages.bench(asked.step)


@pytest.fixture(scope="module")
def facts(desk, at):
    return desk.stages.drawn()[DRAW]


@pytest.fixture(scope="module")
def read(desk, at):
    """Usage and mean coefficients on the draw's own rows."""
    rows = desk.stages.rows(MIXTURE)[DRAW]
    usage = entropy.measure(at.model, rows, length=rows.length, next_token=False).usage
    return usage, silencing.means(at.model, rows)


@pytest.fixture(scope="module")
def row(desk, asked):
    return fact_silencing.run(desk.stages, asked)


def key(at, r, layer):
    memories, where = Memories(at.model), place(at.tok, r.prompt, r.subject)
    ids = torch.tensor([where.ids[: where.last + 1]])
    with torch.no_grad(), trace.record(at.model, [memories.down_path(layer)], side="input") as seen:
        at.model(ids)
    return seen[memories.down_path(layer)][0][0, -1].double()


def nats(model, at, r, objects):
    """log p of the object after the prompt, one token at a time."""
    span = evaluation.encode_all(at.tok, [(r.text, f" {objects}")], start=leading(at.tok))[0]
    with torch.no_grad():
        logs = model(torch.tensor([span.ids])).logits[0].double().log_softmax(-1)
    return sum(float(logs[i - 1, span.ids[i]]) for i in range(span.begin, len(span.ids)))


def cut(at, which):
    """A copy of the model without these memories."""
    model = copy.deepcopy(at.model)
    with torch.no_grad():
        for layer, chosen in enumerate(which):
            Memories(model).values(layer)[:, chosen] = 0
    return model


def top(own):
    return torch.zeros(len(own), dtype=torch.bool).index_fill(
        0, own.topk(round(0.1 * len(own))).indices, True
    )


def test_a_fact_is_asked_without_the_top_of_its_own_key_and_the_next_one_by_it(at, facts, row):
    lost = {"own": 0.0, "other": 0.0}
    for number, r in enumerate(facts):
        following = facts[(number + 1) % len(facts)]
        layers = range(Memories(at.model).layers)
        model = cut(at, [top(key(at, r, layer).abs()) for layer in layers])
        for whose, own in (("own", r), ("other", following)):
            lost[whose] += (nats(at.model, at, own, own.true) - nats(model, at, own, own.true)) / len(facts)
    for whose, value in lost.items():
        found = row.values["known"]["zero"]["key"][DRAW][whose]["nats"]
        assert sum(found) / len(found) == pytest.approx(value, abs=1e-4)
    assert abs(lost["own"] - lost["other"]) > 1e-4
    assert row.values["facts"] == len(row.values["rewritten"]) * len(facts)


def test_held_at_its_mean_a_memory_adds_the_same_everywhere(at, facts, read, row):
    usage, fill = read
    total = 0.0
    for r in facts:
        which = torch.stack([top(own) for own in usage])
        with silencing.silenced(at.model, which, fill):
            total += nats(at.model, at, r, r.true) / len(facts)
    before = sum(nats(at.model, at, r, r.true) for r in facts) / len(facts)
    found = row.values["known"]["mean"]["usage"][DRAW]["own"]["nats"]
    assert sum(found) / len(found) == pytest.approx(before - total, abs=1e-4)


def test_a_fact_is_compared_with_itself(row):
    """By usage all facts of a draw choose the same memories, so that nothing is left of any fact's difference."""
    same, own = (fact_silencing.more(row, "zero", name, "nats") for name in ("usage", "key"))
    assert same.mean == same.low == same.high == 0.0 and same.seeds == row.values["facts"]
    assert own.low is not None and own.low < own.mean
    lost = {whose: fact_silencing.lost(row, "zero", "key", whose, "nats") for whose in ("own", "other")}
    gap = (sum(lost["own"]) - sum(lost["other"])) / row.values["facts"]
    assert own.mean == pytest.approx(gap, rel=1e-12)


def test_one_facts_columns_are_those_that_memit_writes_for_it(at, facts, read):
    found = fact_silencing.by_fact(at, facts, read[0], 0.1, 0)
    bare = replace(at, templates=("{}",))  # no prefixes before the prompt: the key is the bare one
    for number, r in enumerate(facts[:2]):
        for layer in range(Memories(at.model).layers):
            setting = desks.Setting((layer,), 10.0, 1.0)
            edit = many.write(bare, "MEMIT", setting.editor(), [r])
            column = fact_silencing.changes(at.model, edit, (layer,))[layer].norm(dim=0)
            assert torch.equal(found["update"][number, layer], top(column))
    special = key(at, facts[0], 1).abs() / read[0][1]
    assert torch.equal(found["key / usage"][0, 1], top(special))
    assert all(mask.sum(-1).eq(round(0.1 * mask.shape[-1])).all() for mask in found.values())
    again, other = (
        fact_silencing.by_fact(at, facts, read[0], 0.1, seed)[silencing.RANDOM] for seed in (0, 1)
    )
    assert torch.equal(found[silencing.RANDOM], again) and not torch.equal(again, other)


def test_what_is_left_of_an_edit_is_that_of_weights_changed_by_hand(at, asked, facts, read):
    weights = {name: p.clone() for name, p in at.model.named_parameters()}
    setting = replace(asked.setting, layers=(0, 1))
    found = fact_silencing.written(at, facts, setting, *read, 0.1, 5)
    assert all(torch.equal(p, weights[name]) for name, p in at.model.named_parameters())

    edit = many.write(at, "MEMIT", setting.editor(), facts)
    edited = copy.deepcopy(at.model)
    edit.apply_(edited)
    deltas = [
        Memories(edited).values(layer).detach().double() - Memories(at.model).values(layer).detach().double()
        for layer in (0, 1)
    ]

    def asked_of(model):
        return sum(nats(model, at, r, r.new) for r in facts) / len(facts)

    def part(*masks):
        model = copy.deepcopy(at.model)
        with torch.no_grad():
            for layer, (delta, mask) in enumerate(zip(deltas, masks, strict=True)):
                Memories(model).values(layer).add_((delta * mask).float())
        return asked_of(model)

    tops = [top(delta.norm(dim=0)) for delta in deltas]
    left = {way: own["update"]["nats"] for way, own in found["left"].items()}
    assert found["after"]["nats"] == pytest.approx(asked_of(edited), abs=1e-4)
    assert found["before"]["nats"] == pytest.approx(asked_of(at.model), abs=1e-4)
    assert left[ALONE] == pytest.approx(part(*tops), abs=1e-4)
    assert left[UNWRITTEN] == pytest.approx(part(*(~mask for mask in tops)), abs=1e-4)
    with torch.no_grad():
        for layer, mask in enumerate(tops):
            Memories(edited).values(layer)[:, mask] = 0
    assert left["zero"] == pytest.approx(asked_of(edited), abs=1e-4)
    assert len({round(value, 6) for value in (*left.values(), found["after"]["nats"])}) == 5
    lengths = [
        delta.norm(dim=0) * torch.stack([key(at, r, layer).abs() for r in facts]).mean(0)
        for layer, delta in enumerate(deltas)
    ]
    inside = sum(float(own[mask].sum()) for own, mask in zip(lengths, tops, strict=True))
    assert found["held"]["update"] == pytest.approx(
        inside / sum(float(own.sum()) for own in lengths), rel=1e-4
    )


def test_only_layers_that_were_written_to_are_silenced_after_an_edit(at, asked, facts, read):
    found = fact_silencing.written(at, facts, replace(asked.setting, layers=(1,)), *read, 0.1, 5)
    edited = copy.deepcopy(at.model)
    many.write(at, "MEMIT", replace(asked.setting, layers=(1,)).editor(), facts).apply_(edited)
    with torch.no_grad():
        Memories(edited).values(1)[:, agreement.top(read[0], 0.1)[1]] = 0
    wanted = sum(nats(edited, at, r, r.new) for r in facts) / len(facts)
    assert found["left"]["zero"]["usage"]["nats"] == pytest.approx(wanted, abs=1e-4)


def test_numbers_for_prose_are_means_over_facts_and_over_draws():
    def draw(*own):
        return {
            "own": {"said": list(own), "nats": [2.0, 4.0]},
            "other": {"said": [0.0, 0.0], "nats": [1.0, 1.0]},
        }

    known = {"mean": {"key": [draw(1.0, 0.0), draw(1.0, 1.0)]}}
    each = {
        "before": {"said": 0.0, "nats": -9.0},
        "after": {"said": 1.0, "nats": -0.5},
        "held": {"update": 0.25},
    }
    rewritten = [{**each, "left": {"mean": {"update": {"said": said, "nats": -1.0}}}} for said in (0.5, 0.75)]
    row = Row("", 1, {}, {"facts": 4, "known": known, "rewritten": rewritten}, {}, "live")
    found = fact_silencing.numbers("last", row)
    assert found["fact.last.mean.key.own"][:2] == (75.0, "%")
    assert found["fact.last.mean.key.other.nats"][:2] == (1.0, "nats")
    assert found["fact.last.mean.key.more"][:2] == (75.0, "points")
    half = stats.t.ppf(0.975, 3) * 0.5 / 2  # a standard deviation of 0.5 over four pairs
    assert found["fact.last.mean.key.more.low"][0] == pytest.approx(100 * (0.75 - half))
    assert found["fact.last.mean.key.more.draws"][0] == 75.0
    over_draws = (
        stats.t.ppf(0.975, 1) * math.sqrt(0.125) / math.sqrt(2)
    )  # of the draws' means, a half and one
    assert found["fact.last.mean.key.more.draws.high"][0] == pytest.approx(100 * (0.75 + over_draws))
    assert found["rewritten.last.mean.update"][:2] == (62.5, "%")
    assert found["rewritten.last.after"][0] == 100.0 and found["rewritten.last.before"][0] == 0.0
    assert found["rewritten.last.update.held"][0] == 25.0
