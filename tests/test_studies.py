"""The studies against independent arithmetic, and the rules of the verdicts."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny

from kemem import entropy, runs, studies
from kemem.corpora import train_tokenizer
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import checkpoints, decay, findings, memories, pool, pretraining, realtext, stages
from kemem.studies.lab import Lab, Result
from kemem.studies.setup import Setup


def lab(folder: Path, **keywords) -> Lab:
    return Lab("smoke", Store(folder / "store"), folder, **keywords)


# ---------------------------------------------------------------------- chapter 01
@pytest.mark.parametrize("family", ["olmo", "gpt2", "gpt_neox"])
def test_equation_one_is_summed_memory_by_memory(family):
    model = tiny(family, dtype=torch.float64)
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    assert max(memories.identity(model, ids)) < 1e-12
    with torch.no_grad():  # a wrong bias or value is seen
        Memories(model).values(0)[:, 0] += 1.0
    assert max(memories.identity(model, ids)) < 1e-12, (
        "the model itself was edited, so the identity must still hold"
    )


def test_identity_sees_a_layer_that_adds_something(monkeypatch):
    model = tiny("olmo", dtype=torch.float64)
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    path = Memories(model).down_path(1)
    handle = model.get_submodule(path).register_forward_hook(lambda m, a, out: out + 0.1)
    errors = memories.identity(model, ids)
    handle.remove()
    assert errors[0] < 1e-12 and errors[1] > 1e-3


def test_what_is_left_out_shrinks_to_nothing():
    model = tiny("olmo", dtype=torch.float64)
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(1))
    fired = memories.coefficients(model, ids)
    count = Memories(model).count
    table = memories.carried(Memories(model), fired, (1, count // 2, count))
    for layer in range(2):
        lost = [table[str(k)][layer] for k in (1, count // 2, count)]
        assert lost[0] > lost[1] > lost[2] and lost[2] < 1e-12


def test_entropy_of_the_mean_exceeds_the_mean_entropy():
    c = torch.randn(3, 5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = memories.entropies(c)
    p = c.abs().mean((0, 1))
    p = p / p.sum()
    assert found["of_mean"] == pytest.approx(-float((p * p.log()).sum()), abs=1e-12)
    q = c.abs() / c.abs().sum(-1, keepdim=True)
    assert found["mean_of"] == pytest.approx(-float((q * q.log()).sum(-1).mean()), abs=1e-12)
    assert found["of_mean"] > found["mean_of"]


def test_strongest_firings_are_one_a_text_and_never_the_last_token():
    c = torch.zeros(3, 4)
    c[0, 1], c[1, 2], c[2, 3], c[2, 0] = -5.0, 3.0, 9.0, 1.0
    assert memories.strongest(c, 3) == [(0, 1), (1, 2), (2, 0)]


def test_removal_agrees_with_the_value_in_a_model_of_one_layer():
    model = tiny("olmo", layers=1, dtype=torch.float64)
    # small values: what is foretold takes the final norm as fixed, which holds to first order in the change
    Memories(model).values(0).mul_(1e-4)
    ids = torch.randint(3, 60, (6, 9), generator=torch.Generator().manual_seed(3))
    fired = memories.coefficients(model, ids)
    found = memories.removal(model, ids, 0, fired[0], 8)
    assert memories.agreement(found) > 0.9
    foretold, seen = torch.tensor(found["foretold"]), torch.tensor(found["seen"])
    print(float((foretold - seen).norm() / seen.norm()))
    assert float((foretold - seen).norm() / seen.norm()) < 0.5


# ---------------------------------------------------------------------- chapter 02
def test_questions_hold_the_truth_once_and_are_fixed():
    spec = "world:people=40,documents=50+docstrings:networkx,limit=5"
    asked = pretraining.questions(spec, 40)
    assert asked == pretraining.questions(spec, 40)
    assert len(asked) > 4
    for questions in asked.values():
        for q in questions:
            assert q.candidates.count(q.answer) == 1 and len(q.candidates) <= 24
            assert q.subject in q.prompt and not q.prompt.endswith(" ")
    assert pretraining.questions("docstrings:networkx", 40) == {}


def test_parts_of_a_corpus_have_short_names():
    spec = "world:people=40+docstrings:networkx+files:/data/pretrain/novels.jsonl.gz"
    assert list(pretraining.sources(spec)) == ["world", "docstrings", "novels"]
    assert pretraining.sources(spec)["novels"] == "files:/data/pretrain/novels.jsonl.gz"


def test_every_scale_is_a_setup_that_can_be_built(tmp_path):
    for scale, s in pretraining.SCALES.items():
        assert s.steps[-1] == s.setup.steps and s.steps == tuple(sorted(set(s.steps))), scale
        assert s.setup.recipe(s.steps).time_constants > 0
        assert s.setup.shape(s.setup.vocabulary).width == s.setup.width
    with pytest.raises(KeyError):
        pretraining.settings("huge")
    with pytest.raises(BadInput, match="scale is one of"):
        Lab("huge", Store(tmp_path), tmp_path)


def test_a_model_that_others_trained_is_taken_as_it_is(tmp_path):
    model = tiny("gpt2")
    model.save_pretrained(tmp_path / "given")
    s = pretraining.Pretrained(TINY, stages=(1.0,), name=str(tmp_path / "given"))
    with pytest.raises(BadInput, match="expected a tokenizer beside the weights"):
        checkpoints.load(lab(tmp_path), s, 6)
    train_tokenizer(["some words to learn from"] * 4, 300).save_pretrained(tmp_path / "given")
    found, tok, place = checkpoints.load(lab(tmp_path), s, 6)
    assert place.origin == "given" and tok("words")["input_ids"]
    for mine, theirs in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.double(), rtol=0, atol=0)  # in the setup's own type
    with pytest.raises(BadInput, match="is taken at the steps 6; got 3"):
        checkpoints.load(lab(tmp_path), s, 3)


TINY = Setup(
    corpus="world:people=20,documents=300", vocabulary=320, layers=1, width=8, memories=12, heads=2, length=32, rows=4,
    steps=6, learning_rate=1e-2, weight_decay=0.1, dtype="float64",
)  # fmt: skip


def test_a_stage_is_live_then_shipped_then_refused_when_altered(tmp_path):
    s = pretraining.Pretraining(TINY, stages=(0.0, 1.0), held_out=400, facts=8, written=2)
    here = lab(tmp_path)
    first = checkpoints.checkpoint(here, s, 6)  # trains
    assert first.origin == "live" and (first.path / "model.safetensors").is_file()
    pretraining.run(here, s)
    target = checkpoints.ship(here, s, "tiny")
    document = json.loads((target / "recipe.json").read_text())
    assert set(document["sha256"]) == {"0", "6"}

    elsewhere = Lab("smoke", Store(tmp_path / "other"), tmp_path)
    found = checkpoints.checkpoint(elsewhere, s, 6)
    assert found.origin == "shipped" and found.path == target / "step6"
    live, _, _ = checkpoints.load(here, s, 6)
    shipped, _, _ = checkpoints.load(elsewhere, s, 6)
    for a, b in zip(live.parameters(), shipped.parameters(), strict=True):
        torch.testing.assert_close(b, a.half().double(), rtol=0, atol=0)

    assert checkpoints.checkpoint(replace(elsewhere, retrain=True), s, 6).origin == "live"
    third = Lab("smoke", Store(tmp_path / "third"), tmp_path)
    weights = target / "step6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BadInput, match="checksum"):
        checkpoints.checkpoint(third, s, 6)
    with pytest.raises(BadInput, match="kept at the steps 0, 6"):
        checkpoints.checkpoint(here, s, 5)


# ---------------------------------------------------------------------- chapter 03
def test_a_measured_stage_is_what_measure_says(tmp_path):
    s = pretraining.Pretraining(TINY, stages=(0.0, 1.0), held_out=400, facts=8, written=2)
    here = lab(tmp_path)
    asked = stages.Measured(
        s,
        ("step0", "step6"),
        TINY.corpus,
        instances=6,
        length=20,
        attention=True,
        marks=(2, 4),
        dtype="float64",
    )
    row = stages.measured(here, asked)
    model, tok, _ = checkpoints.load(here, s, 6)
    everything = stages.read(TINY.corpus).part("test")
    texts = [everything[i * len(everything) // 6] for i in range(6)]
    assert len(everything) > 6
    layers, token = [], []
    for text in texts:
        ids = torch.tensor([tok(text, add_special_tokens=False)["input_ids"][:20]])
        kept = []
        with torch.no_grad(), Memories(model).coefficients(lambda layer, c: kept.append(c[0].abs().mean(0))):  # noqa: B023
            logits = model(ids).logits[0]
        layers.append(torch.stack(kept))
        p = logits.softmax(-1)
        token.append(float(-(p * p.log()).sum(-1).mean()))
    use = torch.stack(layers).mean(0)
    p = use / use.sum(-1, keepdim=True)
    last = row.values["stages"][-1]
    # not to the last digit: rotary angles are float32 in transformers, and differ with the length of a batch
    assert last["layers"] == pytest.approx((-(p * p.log()).sum(-1)).tolist(), abs=1e-8)
    assert last["next_token"] == pytest.approx(sum(token) / len(token), abs=1e-8)
    assert set(last["marks"]) == {"2", "4"} and "marks" not in row.values["stages"][0]
    assert row.values["bound"] == pytest.approx(math.log(12))
    assert len(last["attention"]) == 1


def test_a_subject_can_be_any_folder(tmp_path):
    s = pretraining.Pretraining(TINY, stages=(0.0, 1.0), held_out=400, facts=8, written=2)
    here = lab(tmp_path)
    folder = checkpoints.checkpoint(here, s, 6).path.parent
    text = tmp_path / "mine.txt"
    text.write_text("\n".join(["The birthplace of somebody is somewhere."] * 5))
    about = stages.subject("smoke", model=str(folder), corpus=f"files:{text}", instances=2, dtype="float64")
    assert about.revisions == ("step0", "step6") and about.places == (0.0, 6.0)
    row = stages.measured(here, replace(about.settings(), part="all"))
    assert [stage["revision"] for stage in row.values["stages"]] == ["step0", "step6"]
    assert stages.readings(about) == entropy.COEFFICIENTS


def points(values, layers=None):
    steps = range(len(values))
    return [
        {
            "step": i, "entropy": float(v), "layers": layers[i] if layers else [v / 2, v / 2], "next_token": -float(v),
            "attention": [float(v)], "time_constants": i,
        }
        for i, v in zip(steps, values, strict=True)
    ]  # fmt: skip


def test_the_interval_is_students():
    from scipy import stats

    values = [1.0, 2.0, 4.5]
    found = findings.change(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert findings.change([2.0]).low is None


def test_the_late_change_begins_at_a_fifth_of_the_schedule():
    assert (
        findings.late(points([9, 1, 2, 3, 4, 5]), "entropy") == 4
    )  # of 5 steps, the first at or after 20 % is step 1
    assert findings.late_layers(points([1, 2, 5], [[1.0, 1.0], [2.0, 3.0], [5.0, 7.0]])) == [3, 4]


def test_results_name_their_row(tmp_path):
    store = Store(tmp_path)
    assert studies.results(store, "smoke") == {}
    s = pretraining.settings("smoke")
    content = {
        "parameters": 5, "tokens": 7, "vocabulary": 3, "time_constants": 0.5, "asked": {"plain": 3, "date": 1},
        "stages": [
            {"loss": {"world": 3.0}, "known": {"plain": 0.0, "date": 0.0}},
            {"loss": {"world": 1.0}, "known": {"plain": 1.0, "date": 0.0}},
        ],
    }  # fmt: skip

    def compute(provenance):
        provenance["passes"] = 1.5
        return content

    row = store.row(pretraining.STUDY, pretraining.VERSION, s, compute)
    found = studies.results(store, "smoke")
    assert found["pretraining.known.last"] == Result(75.0, "%", found["pretraining.known.last"].provenance)
    assert found["pretraining.loss.world"].value == 1.0
    assert (
        found["pretraining.known.last"].provenance["digest"]
        == row.digest
        == runs.digest(pretraining.STUDY, pretraining.VERSION, s)
    )


# ---------------------------------------------------------------------- what the place changes, and what it must not
def test_a_batch_size_changes_the_passes_and_not_the_numbers(tmp_path):
    s = pretraining.Pretraining(TINY, stages=(0.0, 1.0), held_out=400, facts=8, written=2)
    rows = []
    for size in (None, 1, 3):
        here = lab(tmp_path / str(size), batch_size=size)
        rows.append(pretraining.run(here, s))
        measured = stages.measured(here, stages.Measured(s, ("step6",), TINY.corpus, instances=5, length=20))
        assert measured.values["stages"][0]["entropy"] == pytest.approx(
            stages.measured(lab(tmp_path / "None"), stages.Measured(s, ("step6",), TINY.corpus, instances=5, length=20))
            .values["stages"][0]["entropy"], abs=1e-6,
        )  # fmt: skip
    assert len({row.digest for row in rows}) == 1
    losses = [[h["loss"] for h in row.values["history"]] for row in rows]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and losses[2] == pytest.approx(losses[0], abs=1e-6)


class Card:
    def __init__(self, gib):
        self.total_memory = int(gib * 2**30)


@pytest.mark.parametrize(
    ("gib", "bfloat16", "small"), [(79, True, False), (23, True, False), (15, True, True), (23, False, True)]
)
def test_a_small_card_gets_the_smaller_model(monkeypatch, gib, bfloat16, small):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card(gib))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bfloat16)
    chosen = pretraining.settings("gpu", device="cuda")
    assert (chosen == pretraining.SMALL_CARD) is small
    if small:
        assert chosen.setup.precision == "float32" and not chosen.setup.compile
        assert chosen.setup.tokens < pretraining.SCALES["gpu"].setup.tokens
    assert pretraining.settings("laptop", device="cuda") == pretraining.SCALES["laptop"], "it fits every card"
    assert (
        pretraining.settings("gpu") == pretraining.SCALES["gpu"] == pretraining.settings("gpu", device="cpu")
    )


def test_other_text_than_recorded_is_said(tmp_path):
    records = tmp_path / "records" / "smoke"
    settings = {"text": "docstrings"}

    def make(mode, digest, version):
        def compute(provenance):
            provenance["corpus"] = {"digest": digest, "versions": {"numpy": version, "scipy": "1.0"}}
            return {}

        folder = Store(tmp_path / "store", records if mode == "record" else None, mode=mode)
        return folder.row("study", 1, settings, compute)

    recorded = make("record", "aaaa", "2.0")
    here = lab(tmp_path)
    assert here.drift(recorded) == "", "a recorded row is what it is"
    assert here.drift(make("run", "bbbb", "2.1")) == "other text than recorded (numpy 2.1)"
    assert Lab("smoke", Store(tmp_path / "x"), tmp_path / "elsewhere").drift(make("run", "bbbb", "2.1")) == ""
    (tmp_path / "store" / "study").joinpath(next((tmp_path / "store" / "study").iterdir()).name).unlink()
    assert here.drift(make("run", "aaaa", "2.0")) == ""


def test_drivers_count_arms_and_not_seeds():
    from scipy import stats

    arms, taus, ends = {}, (0.0, 2.0, 1.0, 4.0), (5.0, 4.0, 4.5, 1.0)
    for i, (tau, end) in enumerate(zip(taus, ends, strict=True)):
        seeds = []
        for d in (-0.1, 0.1):
            found = points([9, 6, 5, 5, 5, end + d])
            for p in found:
                p["loss"] = 3.0
            content = {"points": found, "time_constants": tau}
            setup = {"weight_decay": float(i), "learning_rate": 1e-3, "steps": 5}
            seeds.append(Row("decay", 1, {"setup": setup}, content, {}, "live"))
        arms[str(i)] = seeds
    found = findings.drivers(arms)
    expected = stats.spearmanr(taus, [e - 6 for e in ends])
    assert found["time constants"] == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert found["time constants"][0] == pytest.approx(-1.0)
    assert set(found) == {"time constants", "weight decay"}, "what is the same in all arms goes with nothing"


def test_the_late_change_of_stages_begins_where_the_papers_do():
    asked = {"revisions": ["step0", "step40", "step200"], "model": {"setup": {"rows": 5, "length": 1000}}}
    row = Row("entropy", 1, asked, {"stages": [{"entropy": h} for h in (9.0, 4.0, 5.5)]}, {}, "live")
    assert stages.late(row) == 1.5
    assert stages.millions(row) == [0.0, 0.2, 1.0]


# ---------------------------------------------------------------------- real text, where it is at hand
@pytest.mark.skipif(not os.environ.get("KEMEM_DATA"), reason="KEMEM_DATA is not set")
def test_an_olmo_learns_from_real_text_through_olmos_tokenizer(tmp_path):
    specs = []
    for spec, lines in (
        (realtext.NOVELS, 30),
        (realtext.PUBMED, 400),
    ):  # a part of each, for the sake of time
        whole = Path(spec.removeprefix("files:").replace("$KEMEM_DATA", os.environ["KEMEM_DATA"]))
        with gzip.open(whole, "rt", encoding="utf-8") as file:
            (tmp_path / whole.stem).write_text("".join(itertools.islice(file, lines)), encoding="utf-8")
        specs.append(f"files:{tmp_path / whole.stem}")
    novels, pubmed = specs
    setup = realtext.REAL_TEXT.setup.with_(
        corpus=f"{novels}+{pubmed}", layers=2, width=16, memories=48, heads=2, length=48, rows=8, steps=30,
        learning_rate=2e-2,
    )  # fmt: skip
    s = pretraining.Pretraining(setup, stages=(0.0, 1.0), held_out=2000, written=4, prompts=("He looked",))
    here = lab(tmp_path)
    row = pretraining.run(here, s)
    assert row.values["vocabulary"] == 50280
    first, last = row.values["stages"][0]["loss"], row.values["stages"][-1]["loss"]
    assert set(first) == {"novels_100_english", "pubmed_abstracts"}
    for name in first:
        assert first[name] == pytest.approx(math.log(50280), abs=0.2) and last[name] < first[name] - 1.5
    found = stages.measured(
        here, stages.Measured(s, ("step0", "step30"), novels, instances=8, length=32, attention=True)
    )
    start, end = (stage["entropy"] for stage in found.values["stages"])
    assert found.values["bound"] == pytest.approx(2 * math.log(48))
    assert 0 < end < start < found.values["bound"]


# ---------------------------------------------------------------------- rows side by side
def small_arms(count):
    return [(decay.arm, (TINY.with_(learning_rate=1e-2 * (i + 1)), 0)) for i in range(count)]


@pytest.mark.slow
def test_rows_made_side_by_side_are_those_made_in_a_row(tmp_path, monkeypatch):
    alone, together = lab(tmp_path / "a"), lab(tmp_path / "b")
    monkeypatch.setenv("KEMEM_WORKERS", "1")
    expected = pool.rows(alone, small_arms(3))
    monkeypatch.setenv("KEMEM_WORKERS", "2")
    pool.rows(together, small_arms(1))
    found = pool.rows(together, small_arms(3))
    assert [row.values["points"][-1]["loss"] for row in found] == pytest.approx(
        [row.values["points"][-1]["loss"] for row in expected], abs=1e-9
    )
    assert [row.digest for row in found] == [row.digest for row in expected]


def test_rows_that_exist_start_no_process(tmp_path, monkeypatch):
    here = lab(tmp_path)
    expected = [function(here, *arguments) for function, arguments in small_arms(2)]
    monkeypatch.setenv("KEMEM_WORKERS", "2")
    monkeypatch.setattr(pool, "ProcessPoolExecutor", None)
    assert pool.rows(here, small_arms(2)) == expected
    with pytest.raises(runs.MissingRow):
        decay.arm(replace(here, store=here.store.reader()), TINY.with_(learning_rate=0.5), 0)
    monkeypatch.setenv("KEMEM_WORKERS", "none")
    with pytest.raises(BadInput, match="KEMEM_WORKERS is a whole number"):
        pool.rows(here, small_arms(3))


# ---------------------------------------------------------------------- cost
def test_operations_a_token_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    from kemem.models import Shape, build
    from kemem.studies import cost

    shape = Shape(layers=2, width=16, memories=48, heads=2, vocab=64, context=32)
    model = build(shape)
    model.set_attn_implementation("eager")
    ids = torch.arange(32).view(1, 32)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    parameters = sum(p.numel() for p in model.parameters())
    found = 32 * cost.flops_per_token(parameters, 2, 16, 32)
    assert found == pytest.approx(
        counter.get_total_flops(), rel=0.03
    )  # the first layer needs no gradient of its input


@pytest.mark.parametrize(
    ("device", "precision", "rate"),
    [
        ("NVIDIA H200", "bfloat16", 989e12), ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA L4", "bfloat16", 121e12), ("NVIDIA L40S", "bfloat16", 362e12),
        ("Tesla T4", "float32", None), ("cpu", "bfloat16", None),
    ],
)  # fmt: skip
def test_peaks_are_those_of_the_card_named(device, precision, rate):
    from kemem.studies import cost

    assert cost.peak(device, precision) == rate


def test_mfu_is_arithmetic_over_the_cards(tmp_path):
    from kemem.studies import cost

    setup = {"layers": 2, "width": 8, "length": 16, "precision": "bfloat16"}
    found = Row("pretraining", 1, {"setup": setup}, {"parameters": 1000, "tokens": 5000},
                {"device": "NVIDIA H200", "seconds": 10.0, "training_seconds": 2.0}, "recorded")  # fmt: skip
    spent = cost.training(found)
    assert spent["flops_per_token"] == 6000 + 12 * 2 * 8 * 16
    assert spent["mfu"] == pytest.approx(2500 * spent["flops_per_token"] / 989e12)
