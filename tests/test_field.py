"""Chapter 14's comparison: readers on rows that are made up, defects and costs on the smoke model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kemem import claims, editing, runs, trace
from kemem.editing import MEND, FineTune, Judge
from kemem.memory import Memories
from kemem.runs import MissingRow, Store
from kemem.studies import factual, field, grids, many, methods, parts, released
from kemem.studies.evidence import field as readers
from kemem.studies.field import Setting
from kemem.studies.lab import Lab
from kemem.studies.many import NONE, Benches
from kemem.studies.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
SMOKE = factual.settings("smoke")
WIDE = field.Field(
    SMOKE, counts=(1, 6, 10, 32, 64, 100), few=(1, 10, 64, 100), tuning=60, least=64, one_by_one=70, zsre=20, written=5,
    layers=(0, 1),
    mend_layers=(2, 3), mend_steps=1, mend_rank=4, mend_asked=30, mend_skipped=10, chunk=3, tried=8, texts=60,
    names=("MEMIT", "AlphaEdit", "ROME", "FT-W", "FT-L", "MEND"),
)  # fmt: skip
SCORES = ("S", "ES", "PS", "NS", "NS+", "NM", "rewrite_acc", "paraphrase_acc", "S_tokens", *many.TOKENS)


NAMES = WIDE.names
FIRST = {name: Setting(METHODS[name].values[1]) for name in NAMES}


def number(name: str, count: int, seed: int, score: str) -> float:
    """Made up: another one for each of all."""
    return (sum(map(ord, name)) * 7 + 13 * count + 3 * seed + 5 * sum(map(ord, score))) % 97 + seed / 8


def values(name: str, count: int, seed: int, written: int) -> dict:
    def side(name: str) -> dict:
        texts = {score: 100 + number(name, count, seed, score) for score in ("GE", "RS")} if written else None
        return {score: number(name, count, seed, score) for score in (*SCORES, "nats")} | {"texts": texts}

    return {"facts": count, "before": side("before"), "after": side(name), "norm": 0.0, "seconds": {}}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A store with every row of a wide comparison at the smoke scale, made up; and what was chosen."""
    store = Store(tmp_path_factory.mktemp("wide"))

    def put(s: many.Many) -> None:
        made = values(s.method, s.count, s.seed, s.written)
        if (
            s.part == "tuning"
        ):  # the second value is the best, and the sixth as good with less left of neighbours
            place = METHODS[s.method].values.index(s.value)
            made["after"] |= {"S": 50.0 if place in (1, 5) else 10.0 + place, "NM": 9.0 - place}
            if s.clamp == 2.0:  # a clamp that is better than the other one
                made["after"]["S"] += 1.0
        store.row(many.STUDY, many.VERSION, s, lambda _: made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(field, "sizes", lambda scale, **_: WIDE)
        patch.setattr(released, "sizes", lambda scale, **_: WIDE)
        with pytest.MonkeyPatch.context() as quick:
            quick.setattr(runs, "origin", dict)  # where rows come from is not looked at
            *most, last = field.tuning(WIDE).values()
            for s in most:
                put(s)
            assert field.settings(store, "smoke") == {}  # one trial is still missing
            put(last)
            chosen = field.settings(store, "smoke")
            for grid in (field.contest(WIDE, chosen), field.questions(WIDE, chosen)):
                for s in grid.values():
                    put(s)
        yield store, chosen


# ---------------------------------------------------------------------- what is run
def test_every_method_is_tried_as_often_on_tuning_facts():
    z = replace(WIDE, names=tuple(METHODS))
    grid = field.tuning(z)
    for name, method in METHODS.items():
        own = [of for other, of in grid if other == name]
        assert own == [(value, clamp) for clamp in method.clamps or (1.0,) for value in method.values]
        assert bool(method.clamps) == (name in ("MEMIT", "PMET", "EMMET", "AlphaEdit")) and len(own) == 8
    for (name, of), s in grid.items():
        assert (s.method, s.value, s.clamp, s.part, s.count, s.blocks) == (name, *of, "tuning", 60, 1)
        assert (s.mend is None) == (name != "MEND") and (s.mend is None or s.mend.rate == of.value)
    assert [of.value for _, of in field.tuning(replace(WIDE, tried=2, names=("FT-W",)))] == [2e-3, 4e-2]
    few = [of for _, of in field.tuning(replace(WIDE, tried=2, names=("MEMIT",)))]
    assert few == [(METHODS["MEMIT"].values[2], clamp) for clamp in (1.0, 2.0)]


def test_the_best_on_tuning_facts_is_taken(wide):
    _, chosen = wide
    made = {**FIRST, **{name: Setting(FIRST[name].value, 2.0) for name in ("MEMIT", "AlphaEdit")}}
    assert chosen == {NONE: Setting(0.0)} | made


def test_what_is_run_of_each_method(wide):
    _, chosen = wide
    grid = field.contest(WIDE, chosen)
    for (name, count, seed), s in grid.items():
        assert (s.method, s.count, s.seed, s.part) == (name, count, seed, "reported")
        assert (s.value, s.clamp) == chosen[name]
        assert s.blocks == -(-64 // count) and s.written == {64: 5, 100: 5}.get(count, 0)
        assert s.mend == (field.trained(WIDE, chosen["MEND"].value) if name == "MEND" else None)
    slow = {name for name, method in METHODS.items() if method.one_by_one}
    assert slow == {"ROME", "r-ROME"}
    for name in (NONE, *NAMES):
        assert {seed for other, _, seed in grid if other == name} == {0, 1, 2}
        own = [n for other, n, seed in grid if other == name and seed == 0]
        run = [n for n in WIDE.counts if name in WIDE.followed or n in WIDE.few]
        assert own == [n for n in run if name not in slow or n <= 70] and own[0] == 1
    asked = field.questions(WIDE, chosen)
    assert {name for name, _ in asked} == {"MEMIT", "FT-W", NONE, "MEND", "ROME"} and len(asked) == 15
    assert all((s.records, s.count, s.blocks) == ("zsre", 20, 1) for s in asked.values())


# ---------------------------------------------------------------------- readers
def test_scores_by_count_and_seed(wide):
    store, chosen = wide
    rows = grids.finished(store, field.contest(WIDE, chosen))
    assert field.counts(rows, "ROME") == [1, 6, 10, 32, 64] and field.counts(rows, "FT-W") == list(
        WIDE.counts
    )
    assert field.counts(rows, "FT-L") == [1, 10, 64, 100]
    assert field.scores(rows, "FT-W", 32, "ES") == [number("FT-W", 32, seed, "ES") for seed in range(3)]
    assert field.scores(rows, "FT-L", 64, "GE") == [100 + number("FT-L", 64, seed, "GE") for seed in range(3)]
    assert field.scores(rows, "FT-W", 32, "GE") == [] == field.scores(rows, "ROME", 100, "ES")
    assert field.mean([]) is None and field.mean([1.0, 2.0]).mean == 1.5


def test_numbers_for_prose(wide):
    store, _ = wide
    found = field.results(store, "smoke")
    for name, count, score in (("MEMIT", 64, "PS"), ("ROME", 10, "S"), (NONE, 100, "nats")):
        mean = sum(number(name, count, seed, score) for seed in range(3)) / 3
        assert found[f"field.{name}.{count}.{score}"].value == pytest.approx(mean)
    mean = sum(number("ROME", 20, seed, "S_tokens") for seed in range(3)) / 3
    assert found["field.zsre.ROME.S_tokens"].value == pytest.approx(mean)
    assert found["field.FT-L.value"].value == METHODS["FT-L"].values[1]
    assert found["field.FT-L.value"].unit == "radius" and "field.ROME.100.S" not in found
    assert field.results(Store(store.live / "empty"), "smoke") == {} == field.results(store, "elsewhere")


def test_a_missing_row_is_computed_only_where_there_are_no_records(wide, tmp_path, monkeypatch):
    store, chosen = wide
    grid = field.questions(WIDE, chosen)
    ran = []
    row = next(iter(grids.finished(store, grid).values()))
    monkeypatch.setattr(many, "run", lambda benches, s: (ran.append(benches.lab.store.computes), row)[1])
    lab = Lab("smoke", store, ROOT)
    assert grids.table(lab, grid, Benches(lab)) == grids.finished(store, grid) and not ran
    more = {"new": replace(next(iter(grid.values())), count=21)}
    assert grids.finished(store, more) == {}
    grids.table(lab, more, Benches(lab))
    (tmp_path / "records").mkdir()
    recorded = Lab("smoke", Store(tmp_path / "live", tmp_path / "records"), ROOT)
    grids.table(recorded, more, Benches(recorded))
    assert ran == [True, False]


def test_evidence_by_hand(wide):
    store, _ = wide

    def n(name, count, score):
        return tuple(number(name, count, seed, score) for seed in range(3))

    def less(a, b, more=0.0):
        return pytest.approx([x - y + more for x, y in zip(a, b, strict=True)])

    def series(claim):
        (first, *_) = readers.EVIDENCE[claim](store, "smoke")
        assert first.rows and not first.note
        return first.series

    order = ("MEMIT", "FT-W", NONE, "MEND", "ROME")
    assert list(series("memit.1").items()) == [(name, n(name, 20, "S_tokens")) for name in order]
    two = series("memit.2")
    assert two["Efficacy less 95"] == less(n("MEMIT", 20, "rewrite_tokens"), (95, 95, 95))
    assert two["Paraphrase less Efficacy, plus 8"] == less(
        n("MEMIT", 20, "paraphrase_tokens"), n("MEMIT", 20, "rewrite_tokens"), 8
    )
    three = series("memit.3")
    apart = [abs(a - b) for a, b in zip(*(n(x, 20, "locality_tokens") for x in ("MEMIT", NONE)), strict=True)]
    assert three["1 less the distance, MEMIT"] == less((1, 1, 1), apart)
    assert three["2 less Specificity, ROME"] == less((2, 2, 2), n("ROME", 20, "locality_tokens"))
    order = ("MEMIT", "FT-W", "ROME", "MEND")
    assert list(series("memit.4").items()) == [(name, n(name, 64, "S")) for name in order]
    five = series("memit.5")
    assert five["ES, FT-W less MEMIT"] == less(n("FT-W", 100, "ES"), n("MEMIT", 100, "ES"))
    assert five["NS, MEMIT less FT-W, less 20"] == less(n("MEMIT", 100, "NS"), n("FT-W", 100, "NS"), -20)
    half = [(100 + x) / 2 for x in n(NONE, 100, "GE")]
    assert five["half of the unedited GE less FT-W"] == less(half, n("FT-W", 100, "GE"), -100)
    six = series("memit.6")
    ratio = [(100 + a) / (100 + b) for a, b in zip(n("MEMIT", 100, "GE"), n(NONE, 100, "GE"), strict=True)]
    assert six["1 less the distance of GE in %"] == pytest.approx([1 - 100 * abs(x - 1) for x in ratio])
    assert six["RS less the unedited"] == less(n("MEMIT", 100, "RS"), n(NONE, 100, "RS"))
    nine = series("memit.9")
    assert nine["S, 10 less 32"] == less(n("ROME", 10, "S"), n("ROME", 32, "S"))
    for score in ("ES", "PS", "NS"):
        end = [5 - abs(x - 50) for x in n("ROME", 64, score)]
        assert nine[f"5 less the distance of {score} from 50"] == pytest.approx(end)
    ten = series("memit.10")
    assert ten["ES, 6 less 1"] == less(n("MEND", 6, "ES"), n("MEND", 1, "ES"))
    far = [abs(a - b) for a, b in zip(n("MEND", 100, "ES"), n("before", 100, "ES"), strict=True)]
    assert ten["distance of ES from the unedited, less 1"] == less(far, (1, 1, 1))
    eleven = series("memit.11")
    assert len(eleven) == 6
    for count in (1, 6, 10):
        assert eleven[f"PS at {count}, ROME less MEMIT"] == less(
            n("ROME", count, "PS"), n("MEMIT", count, "PS")
        )
        assert eleven[f"NS at {count}, MEMIT less ROME"] == less(
            n("MEMIT", count, "NS"), n("ROME", count, "NS")
        )
    assert readers.EVIDENCE.keys() <= claims.CLAIMS.keys()
    for claim in set(readers.EVIDENCE) - {"memit.17"}:
        assert readers.EVIDENCE[claim](store, "elsewhere") == []
        for each in readers.EVIDENCE[claim](store, "smoke"):
            assert claims.verdict(claims.CLAIMS[claim], each, "smoke").seeds == 3


def test_evidence_of_defects_and_of_cost(wide):
    store, chosen = wide
    assert readers.EVIDENCE["memit.17"](store, "smoke") == []
    for seed in range(3):
        small = {str(n): {"ES": 90.0 - 10 * n - seed} for n in (1, 6)}
        ends = {"MEND as released": dict.fromkeys((*released.SHOWN, "counted"), 20.0 + seed)}
        store.row(
            released.RELEASED, 1, released.released_settings(WIDE, chosen, seed=seed),
            lambda _, v={"facts": 9, "several": 0, "switches": ends, "small": small, "losses": {}}: v,
        )  # fmt: skip
        seconds = {name: {"all": 2.0**i + seed} for i, name in enumerate(released.TIMED)}
        seconds["MEMIT"]["values"] = 3.0
        made = {"facts": 9, "seconds": seconds, "before": {"moments": 1.0 + seed}, "steps": 7}
        store.row(released.COST, 1, released.cost_settings(WIDE, chosen, seed=seed), lambda _, v=made: v)
    _, faulty = readers.EVIDENCE["memit.10"](store, "smoke")
    assert faulty.series["ES, 6 less 1"] == (-50.0,) * 3
    before = [number("before", 100, seed, "ES") for seed in range(3)]
    far = [abs(20 + seed - before[seed]) - 1 for seed in range(3)]
    assert faulty.series["distance of ES from the unedited, less 1"] == pytest.approx(far)
    (timed,) = readers.EVIDENCE["memit.17"](store, "smoke")
    assert list(timed.series) == [
        "FT-W less MEND", "MEMIT less FT-W", "ROME less MEMIT", "share of MEMIT's targets in %, less 80",
    ]  # fmt: skip
    assert [v[0] for v in timed.series.values()] == [1.0, 2.0, 4.0, pytest.approx(-5.0)]
    assert timed.series["share of MEMIT's targets in %, less 80"][1] == pytest.approx(100 * 3 / 5 - 80)
    found = released.results(store, "smoke")
    assert found["field.cost.ROME.all"].value == 9.0 and found["field.cost.moments"].value == 2.0
    assert found["field.released.MEND as released.ES"].value == 21.0


def test_settings_chosen_at_the_largest_count_of_all_stand_beside_the_others(wide, monkeypatch):
    """The last value and the widest clamp are best there; r-ROME is left out."""
    store, usual = wide
    monkeypatch.setattr(runs, "origin", dict)
    assert (
        field.settings(store, "smoke", load=True) == {}
        and len(readers.EVIDENCE["memit.4"](store, "smoke")) == 1
    )
    tried = field.tuning(WIDE, 64)
    assert {s.count for s in tried.values()} == {64} and {s.part for s in tried.values()} == {"tuning"}
    more = field.tuning(replace(WIDE, names=tuple(METHODS)), 64)
    assert {name for name, _ in more} == METHODS.keys() - {"r-ROME"}
    last = {name: Setting(max(of.value for other, of in tried if other == name)) for name in NAMES}
    heavy = {name: of._replace(clamp=2.0) if name in field.CLAMPED else of for name, of in last.items()}
    for (name, of), s in tried.items():
        made = values(name, 64, 0, 0)
        made["after"] |= {"S": of.value + of.clamp / 1e4, "NM": 0.0}
        store.row(many.STUDY, many.VERSION, s, lambda _, v=made: v)
    chosen = field.settings(store, "smoke", load=True)
    assert chosen == {NONE: Setting(0.0), **heavy} and field.settings(store, "smoke") == usual
    for (name, count, seed), s in field.loaded(WIDE, chosen).items():
        assert (s.value, s.clamp, s.count, s.blocks, s.written) == (*chosen[name], 64, 1, 5) and count == 64
        made = values(name, 99, seed, 5)
        store.row(many.STUDY, many.VERSION, s, lambda _, v=made: v)
    one, two = readers.EVIDENCE["memit.4"](store, "smoke")
    assert one.on != two.on and list(two.series) == ["MEMIT", "FT-W", "ROME", "MEND"]
    for name, found in two.series.items():
        assert found == tuple(number(name, 99, seed, "S") for seed in range(3))
        assert one.series[name] == tuple(number(name, 64, seed, "S") for seed in range(3))
    assert (
        len(readers.EVIDENCE["memit.5"](store, "smoke")) == 1
    )  # it is about a count that not all were given
    mean = sum(number("ROME", 99, seed, "PS") for seed in range(3)) / 3
    found = field.results(store, "smoke")
    assert found["field.ROME.load.PS"].value == pytest.approx(mean)
    assert found["field.ROME.load.value"].value == heavy["ROME"].value


# ---------------------------------------------------------------------- defects and costs, on the smoke model
@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab("smoke", Store(tmp_path_factory.mktemp("field")), ROOT)


@pytest.fixture(scope="module")
def benches(lab):
    return Benches(lab)


CHOSEN = {
    NONE: Setting(0.0), "MEMIT": Setting(10.0, 2.0), "ROME": Setting(1.5), "FT-W": Setting(1e-3),
    "MEND": Setting(1e-3), "FT": Setting(2e-3),
}  # fmt: skip
# made at import, before the sizes of the scale are replaced
SMALL = replace(field.sizes("smoke"), counts=(1, 4), least=4, chunk=3, mend_rank=2, texts=20)


@pytest.fixture(scope="module")
def found(benches):
    return released.released(benches, released.released_settings(SMALL, CHOSEN)).values


def test_switches_are_the_editors_that_they_name(benches, found):
    s = released.released_settings(SMALL, CHOSEN)
    at, requests = benches.at(s.facts), benches.requests(s.facts)
    net = methods.networks(benches.lab, at, s.mend)
    by_hand = {
        "FT-W as described": (FineTune((1,), "feed_forward", "as_released", decay="power_law", rate=1e-3), 4),
        "FT-W as released": (FineTune((1,), "block", "as_released", rate=1e-3), 4),
        "MEND, the last chunk": (lambda m, t, r, *_, **__: MEND(net)(m, t, r[3:]), 1),
        "MEND as released": (MEND(net, "last", "chunk", 3), 1),
        "MEND as described": (lambda m, t, r, *_, **__: MEND(net, chunk=1)(m, t, r), 4),
    }
    assert len(found["switches"]) == 8 and found["facts"] == 4 == len(requests)
    for name, (editor, counted) in by_hand.items():
        with editor(at.model, at.tok, requests, at.moments, templates=at.templates).applied(at.model):
            scores = Judge(at.tok, requests, prefixed=True)(at.model)
        own = found["switches"][name]
        assert own["counted"] == counted, name
        for score in ("S", "ES", "PS", "NS", "NS+", "NM"):
            wanted = scores.S if score == "S" else scores.mean(score)
            assert own[score] == pytest.approx(wanted, abs=1e-6), (name, score)
    assert found["switches"]["FT-W as described"]["NM"] != found["switches"]["FT-W as released"]["NM"]


def test_small_counts_are_blocks_of_their_own(benches, found):
    s = released.released_settings(SMALL, CHOSEN)
    at, requests = benches.at(s.facts), benches.requests(s.facts)
    assert s.small == ((1, 4),)
    right = []
    for r in requests:
        edit = MEND(methods.networks(benches.lab, at, s.mend), "last", "chunk", 3)(at.model, at.tok, [r])
        with edit.applied(at.model):
            right.append(Judge(at.tok, [r])(at.model).values["EM"][0] > 0)
    assert found["small"]["1"]["ES"] == pytest.approx(25 * sum(right)) and found["small"]["1"]["counted"] == 4


def test_long_objects_are_those_of_several_tokens(benches, found):
    s = released.released_settings(SMALL, CHOSEN)
    every = many.counterfact(benches.at(s.facts), s.facts)
    at = benches.at(s.facts)
    own = released.long(at, every)
    assert 4 <= len(own) < len(every) and found["several"] == 4 and set(found["losses"]) == {"FT", "FT-M"}
    for r in every:
        ids = at.tok(f" {r.new}", add_special_tokens=False)["input_ids"]
        assert (r in own) == (len(ids) > 1)
    requests = own[:4]
    losses = {"FT": "as_released", "FT-M": "as_described"}
    for name, loss in losses.items():
        with FineTune((1,), loss=loss, rate=2e-3)(at.model, at.tok, requests).applied(at.model):
            scores = Judge(at.tok, requests)(at.model)
        assert found["losses"][name]["NM"] == pytest.approx(scores.mean("NM"), abs=1e-6)
    assert found["losses"]["FT"]["NM"] != pytest.approx(found["losses"]["FT-M"]["NM"])


def test_nothing_is_kept_between_timings(benches, monkeypatch):
    """Each timing searches for every target; the model is bit for bit as it was."""
    from kemem.editing import memit, rome

    model = benches.at(field.facts(SMALL, 4)).model
    before = {name: p.clone() for name, p in model.state_dict().items()}
    sought = []
    for module in (memit, rome):
        usual = module.values
        monkeypatch.setattr(
            module, "values", lambda m, of, *a, u=usual, **k: (sought.append(len(of)), u(m, of, *a, **k))[1]
        )
    s = replace(released.cost_settings(SMALL, CHOSEN), steps=1)
    row = released.cost(benches, s).values
    assert sought == [1, 4, 1, 1, 1, 1, 1]  # MEMIT's first fact, then all; ROME's first, then each
    assert row["facts"] == 4 and list(row["seconds"]) == sorted(released.TIMED)
    for name, seconds in row["seconds"].items():
        phases = [x for phase, x in seconds.items() if phase != "all"]
        assert 0 < math.fsum(phases) <= seconds["all"], name
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert set(row["before"]) == {"moments and prefixes", "training MEND, a step"}


def test_missing_rows_are_errors_in_replay(tmp_path):
    store = Store(tmp_path / "live", tmp_path / "records", mode="replay")
    lab = Lab("smoke", store, ROOT)
    with pytest.raises(MissingRow):
        grids.table(lab, field.tuning(SMALL), Benches(lab))
    with pytest.raises(MissingRow):
        released.released(Benches(lab), released.released_settings(SMALL, CHOSEN))


def test_networks_learn_from_no_fact_that_is_tried(benches):
    z = field.Field(SMOKE, **field.SIZES["smoke"])
    tried = benches.requests(next(s for (name, _), s in field.tuning(z).items() if name == "MEMIT"))
    at, s = benches.at(field.facts(z, 1)), field.trained(z, 1e-4)
    taught = editing.requests(at.world.counterfact(s.asked, s.seed, part="tuning"))[s.skipped :]
    told = {(r.subject, r.relation) for r in taught}
    assert len(told) == 20 and len(tried) == 6 and not told & {(r.subject, r.relation) for r in tried}


# ---------------------------------------------------------------------- PMET's two parts
def test_what_a_target_says_with_one_part_alone(benches):
    """Against one context after another; the output as it is changes nothing, that of another request does."""
    s = parts.Parts(field.facts(SMALL, 4), 1.0, (1.0, 4.0))
    at, requests = benches.at(s.facts), benches.requests(s.facts)
    of = editing.contexts(at.tok, requests, at.templates)
    own, outputs = [], []
    for c in of:
        found = []
        for row, begin in zip(c.rows, c.begins, strict=True):
            with torch.no_grad():
                logits = at.model(input_ids=torch.tensor([row])).logits[0].double()
            said = [logits[i - 1].log_softmax(-1)[row[i]].item() for i in range(begin, len(row))]
            found.append(sum(said) / len(said))
        own.append(math.exp(sum(found) / len(found)))
        path = Memories(at.model).down_path(1)
        with trace.record(at.model, [path]) as kept, torch.no_grad():
            at.model(input_ids=torch.tensor([c.rows[0]]))
        outputs.append(kept[path][0][0, c.subjects[0]])
    assert parts.said(at, requests, 1, None).tolist() == pytest.approx(own, rel=1e-5)
    bare = replace(at, templates=("{}",))
    plain, same, other = (
        parts.said(bare, requests, 1, v) for v in (None, torch.stack(outputs), torch.stack(outputs[::-1]))
    )
    torch.testing.assert_close(same, plain, rtol=1e-5, atol=0)
    assert ((other - plain).abs() / plain > 1e-3).any()
    values = parts.run(benches, s).values
    assert values["facts"] == 4 and list(values["clamps"]) == ["1", "4"]
    for found in values["clamps"].values():
        assert (
            all(0 < found[step] < 1 for step in parts.STEPS) and found["both"] >= found["feed-forward alone"]
        )
