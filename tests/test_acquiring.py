"""The study of chapters 04 and 05: one run against the parts it is made of, and its numbers against arithmetic."""

from __future__ import annotations

import gzip
import itertools
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from kemem import entropy, harness
from kemem.errors import BadInput
from kemem.runs import Row, Store
from kemem.studies import (
    acquiring,
    checkpoints,
    outcomes,
    pretraining,
    realpassages,
    realtext,
    robustness,
    tables,
)
from kemem.studies.lab import Lab
from kemem.studies.setup import Setup
from kemem.world import World

ROOT = Path(__file__).resolve().parents[1]

TINY = Setup(
    corpus="world:people=40,documents=300", vocabulary=512, layers=1, width=16, memories=24, heads=2, length=64, rows=4,
    steps=6, learning_rate=1e-2, weight_decay=0.1, dtype="float64",
)  # fmt: skip
MODEL = pretraining.Pretraining(TINY, stages=(0.0, 1.0), held_out=400, facts=8, written=2)
LEARNING = acquiring.Learning(
    MODEL, 6, "world:people=20,seed=1,documents=200", paraphrased=2, once=4, slots=2, interval=3, rows=4,
    learning_rate=1e-2, tasks=16, held_out=500, instances=4,
)  # fmt: skip


def lab(folder: Path, **keywords) -> Lab:
    return Lab("smoke", Store(folder / "store"), folder, **keywords)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    here = lab(tmp_path_factory.mktemp("learnt"))
    return here, acquiring.run(here, LEARNING)


def test_a_run_is_what_its_parts_say(learnt):
    here, row = learnt
    model, tok, _ = checkpoints.load(here, MODEL, 6)
    told = acquiring.fictional(LEARNING)
    before = entropy.probe(model, tok, told)
    assert outcomes.knowledge(row, "before") == pytest.approx(before.knowledge(), abs=1e-12)
    plan = entropy.schedule(told, tok, slots=2, interval=3)
    assert row.values["injected"] == plan.tokens and row.values["lost"] == plan.lost(6, 4, 64)
    assert {r["step"] for r in row.values["probes"]} == {0, 3, 6} and row.values["steps"] == 6
    assert set(row.values["before"]["loss"]) == {"world", "new domain"}
    assert row.values["before"]["entropy"] == pytest.approx(math.fsum(row.values["before"]["layers"]))
    assert row.values["after"]["entropy"] != row.values["before"]["entropy"]
    assert row.provenance["corpus"]["spec"] == LEARNING.corpus


def test_another_rate_is_another_row_and_the_batch_size_is_not(learnt):
    here, row = learnt
    cut = acquiring.run(lab(here.root / "cut", batch_size=2), LEARNING)
    assert cut.digest == row.digest
    assert outcomes.knowledge(cut, "after") == pytest.approx(outcomes.knowledge(row, "after"), abs=1e-9)
    other = acquiring.run(here, replace(LEARNING, learning_rate=1e-3))
    assert other.digest != row.digest
    assert abs(outcomes.knowledge(other, "after") - outcomes.knowledge(row, "after")) > 1e-4


def test_numbers_of_a_row(learnt):
    _, row = learnt
    k = [outcomes.knowledge(row, when) for when in ("before", "after")]
    assert outcomes.acquired(row) == pytest.approx((k[1] - k[0]) / -k[0])
    kinds = row.values["after"]["tasks"]
    assert outcomes.performance(row, "after") == pytest.approx(sum(kinds.values()) / len(kinds))
    tasks = {"before": {"tasks": {"a": 0.5, "b": 0.3}}, "after": {"tasks": {"a": 0.2, "b": 0.4}}}
    made = Row("acquisition", 1, {}, tasks, {}, "live")
    assert outcomes.forgot(made) == pytest.approx(0.25)
    made.values["before"]["tasks"] = {"a": 0.0}
    assert outcomes.forgot(made) is None, "of nothing nothing is forgotten"


def test_passages_are_fiction_in_both_worlds():
    told = acquiring.fictional(acquiring.settings("laptop"))
    assert [p.group for p in told].count("paraphrase") == 20 and len(told) == 60
    own, new = World(people=100), World(people=40, seed=1)
    trained = {n for n, e in own.entities.items() if e.split != "fictional"}
    for passage in told:
        assert len(passage.tellings) == 10
        for asked in passage.probes.values():
            for given, _ in asked:
                assert not any(name in given for name in new.entities), given
                assert sum(name in given for name in trained) == 0, given
    with pytest.raises(BadInput, match=r"got .* that the new domain does not contradict"):
        acquiring.fictional(replace(acquiring.settings("laptop"), once=400))


def test_settings_follow_the_paper_where_they_can():
    s = acquiring.settings("laptop")
    assert s.learning_rate == s.model.setup.learning_rate, "its rate is the peak of pretraining"
    recipe = s.recipe()
    assert recipe.warmup_steps == 15 and recipe.betas == (0.9, 0.95) and recipe.final_share == 0.1
    assert acquiring.settings("laptop", share=0.5, seed=2).step == 2000
    with pytest.raises(BadInput, match="a stage is one of the shares"):
        acquiring.settings("laptop", share=0.3)
    with pytest.raises(BadInput, match="sizes at the scales"):
        acquiring.settings("huge")


def test_at_paper_scale_they_are_the_papers_own():
    s = acquiring.settings("paper", share=369_000 / 738_020)
    assert (s.steps, s.rows, s.model.setup.length) == (1600, 128, 1024) and s.step == 369_000
    assert s.steps * s.rows * s.model.setup.length == 209_715_200
    assert (s.learning_rate, s.recipe().warmup_steps, s.recipe().precision) == (4e-4, 80, "bfloat16")
    assert s.model.at(s.step) == "step369000" and s.harness == tuple(harness.SIX)
    batch = robustness.SETTINGS["batch x 16"]("paper", 0, 1.0).learning
    assert (batch.steps, batch.rows) == (100, 2048)
    more, less = (robustness.SETTINGS[name]("paper", 0, 1.0).learning for name in ("rate x 2.5", "rate / 4"))
    assert (more.learning_rate, less.learning_rate) == pytest.approx((1e-3, 1e-4))


def test_a_missing_harness_is_told_before_a_model_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setattr(checkpoints, "load", lambda *_: pytest.fail("a model was read"))
    here = Lab("paper", Store(tmp_path), tmp_path)
    with pytest.raises(BadInput, match="expected the lm-evaluation-harness"):
        acquiring.run(here, acquiring.settings("paper"))


def test_the_starts_behind_the_printed_tables_agree():
    """All five settings began at the same checkpoints, so the starts derived from each must be the same."""
    before = numpy.array([printed.knowledge_before for printed in tables.KIM.values()])
    assert numpy.ptp(before, axis=0).max() < 0.003 and before[0] == pytest.approx(
        [-0.375, -0.372, -0.372, -0.371], abs=1e-3
    )
    scores = numpy.array([printed.performance_before for printed in tables.KIM.values()])
    assert numpy.ptp(scores, axis=0).max() < 0.25 and scores[0] == pytest.approx(
        [60.3, 62.7, 63.6, 64.6], abs=0.05
    )


def test_correlations_are_taken_within_a_model():
    def row(h, a, f, step):
        before = {"entropy": h, "loss": {"world": 1.0 / step}, "tasks": {"x": 0.5}}
        after = {"tasks": {"x": 0.5 * (1 - f)}}
        probes = [
            {"step": s, "group": "all", "kind": "all", "target_mean": k, "row_mean": k}
            for s, k in ((0, -1.0), (5, -1.0 + a))
        ]
        values = {"before": before, "after": after, "probes": probes, "steps": 5}
        return Row("acquisition", 1, {"step": step}, values, {}, "live")

    models = {
        seed: [row(10 + 5 * seed - i, 0.5 - 0.1 * i + 0.01 * seed, 0.1 * i, i + 1) for i in range(4)]
        for seed in range(3)
    }
    found = outcomes.correlations(models)
    # pooled over models with different levels of H this would be far from 1
    assert found["entropy H"]["A"].mean == pytest.approx(1.0) and found["entropy H"][
        "F"
    ].mean == pytest.approx(-1.0)
    assert found["stage"]["A"].mean == pytest.approx(-1.0) and found["stage"]["A"].seeds == 3


@pytest.mark.skipif(not os.environ.get("KEMEM_DATA"), reason="KEMEM_DATA is not set")
@pytest.mark.parametrize(
    ("paraphrased", "once"), [(5, 4), pytest.param(70, 60, marks=pytest.mark.slow)], ids=["some", "all 130"]
)
def test_real_text_and_real_passages_end_to_end(tmp_path, paraphrased, once):
    def part(spec, lines):
        whole = Path(spec.removeprefix("files:").replace("$KEMEM_DATA", os.environ["KEMEM_DATA"]))
        with gzip.open(whole, "rt", encoding="utf-8") as file:
            (tmp_path / whole.stem).write_text("".join(itertools.islice(file, lines)), encoding="utf-8")
        return f"files:{tmp_path / whole.stem}"

    novels, pubmed = part(realtext.NOVELS, 20), part(realtext.PUBMED, 400)
    setup = realtext.REAL_TEXT.setup.with_(
        corpus=novels,
        layers=1,
        width=16,
        memories=32,
        heads=2,
        length=128,
        rows=4,
        steps=6,
        learning_rate=1e-2,
    )
    model = pretraining.Pretraining(setup, stages=(0.0, 1.0), held_out=2000, written=2, prompts=("He",))
    s = acquiring.Learning(
        model, 6, pubmed, paraphrased=paraphrased, once=once, slots=2, interval=2, rows=12, learning_rate=2e-2,
        held_out=2000, instances=4, source="$KEMEM_DATA/fictional_knowledge",
    )  # fmt: skip
    row = acquiring.run(lab(tmp_path), s)
    assert row.values["passages"] == paraphrased + once and row.values["lost"] > 0
    assert row.values["before"]["tasks"] == {}, "novels hold no world to ask about"
    found = {(r["group"], r["kind"]): r["probes"] for r in row.values["probes"] if r["step"] == 0}
    assert found["all", "all"] == 15 * (paraphrased + once) and found["once", "composition"] == 5 * once
    assert outcomes.knowledge(row, "after") > outcomes.knowledge(row, "before") + 0.05


def test_the_recorded_run_on_real_text_is_told_as_its_rows_are(tmp_path):
    assert realpassages.rows(lab(tmp_path)) == {} and realpassages.results(Store(tmp_path), "smoke") == {}
    store = Store(tmp_path, ROOT / "records" / "laptop", mode="replay")
    found = realpassages.rows(Lab("laptop", store, ROOT))
    told = realpassages.results(store, "laptop")
    assert list(found) == ["early", "last"] and [row.settings["step"] for row in found.values()] == [
        200,
        1000,
    ]
    for name, row in found.items():
        assert row.settings["source"] == acquiring.Published.folder and row.values["passages"] == 130
        first, last = (
            next(r["target_mean"] for r in row.values["probes"]
                 if (r["step"], r["group"], r["kind"]) == (step, "all", "all"))
            for step in (0, row.values["steps"])
        )  # fmt: skip
        before, after = (
            sum(row.values[when]["tasks"].values()) / len(row.values[when]["tasks"])
            for when in ("before", "after")
        )
        assert told[f"real passages.{name}.A"].value == pytest.approx(100 * (last - first) / -first)
        assert told[f"real passages.{name}.F"].value == pytest.approx(100 * (before - after) / before)
        line = next(line for line in realpassages.table(found) if line[0].startswith(name))
        assert line[1:3] == (f"{first:.2f}", f"{last:.2f}") and line[4:6] == (
            f"{100 * before:.0f}",
            f"{100 * after:.0f}",
        )
