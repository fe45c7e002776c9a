"""What a chapter would take, against arithmetic of its own and against operations that torch counts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny
from test_contents import lab
from torch.utils.flop_counter import FlopCounterMode

from kemem import models
from kemem.cli import main
from kemem.errors import BadInput
from kemem.runs import Store
from kemem.studies import contents, factual, pretraining
from kemem.studies.asking import Asking, Claiming, Failures
from kemem.studies.cards import CARDS, card
from kemem.studies.forecast import STAND_INS, forecast, memory, once, seconds
from kemem.studies.many import Many
from kemem.studies.operations import Algebra, Part, parameters, trained
from kemem.studies.sweeping import work
from kemem.studies.work import HUB, ROWS
from kemem.studies.work_of_edits import SOUGHT


def test_training_of_chapter_02_is_6_n_d_to_the_digit(tmp_path):
    found = forecast([(lab("02", Store(tmp_path), scale="laptop"), "02")], card("H100"))
    (model,) = found.trained
    matrices = 2048 * 96 + 4 * (4 * 96 * 96 + 3 * 96 * 384)  # embedding, tied; attention; gate, up, down
    tokens = 4000 * 16 * 96
    assert model["parameters"] == matrices == 786_432 and model["tokens"] == tokens
    assert model["flops"] == found.flops["training"] == 6 * 786_432 * tokens
    inside = 12 * 4 * 96 * 96 * tokens  # 12 L D T tokens
    forward = found.flops["forward"] // (2 * 786_432)
    assert found.flops["attention"] == inside + 4 * 4 * 96 * 96 * forward
    assert found.missing == 3 and found.there == 0 and found.fetched == []


@pytest.mark.parametrize(("family", "rel"), [("olmo", 0.02), ("gpt2", 0.15)])
def test_a_step_costs_what_torch_counts(family, rel):
    """Of GPT-2 a little less: its table of positions and its biases are parameters in no product."""
    setup = pretraining.SCALES["smoke"].setup.with_(family=family, vocabulary=320)
    model = models.build(setup.shape(320)).double()
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 320, (4, setup.length))
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, labels=ids).loss.backward()
    said = Part("training", setup, ids.numel()).flops
    assert sum(said.values()) == pytest.approx(counted.get_total_flops(), rel=rel)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=ids)
    said = Part("forward", setup, ids.numel()).flops
    assert sum(said.values()) == pytest.approx(counted.get_total_flops(), rel=rel)


def test_parameters_are_counted_without_weights():
    assert (
        parameters(HUB["allenai/OLMo-1B-hf"]) == 1_176_764_416
    )  # 50304 x 2048 + 16 (4 x 2048^2 + 3 x 2048 x 8192)


def test_seconds_are_those_of_the_card_or_of_the_steps():
    setup = HUB["allenai/OLMo-1B-hf"].with_(precision="bfloat16")
    long = Part("training", setup, 10**9, 10)
    flops = 6 * 1_176_764_416 * 10**9 + 12 * 16 * 2048 * 2048 * 10**9
    assert seconds(long, card("h100")) == pytest.approx(flops / (989e12 * 0.35))
    assert seconds(long, card("t4")) == pytest.approx(flops / (8.1e12 * 0.35))  # it has no bfloat16
    assert seconds(Part("training", setup, 1000, 500), card("h100")) == 5.0
    assert Algebra(2, 30, 5, 3).flops == {"algebra": 3 * 2 * (9000 + 4 * 900 * 5)}


def test_memory_is_states_and_activations():
    setup = pretraining.LAPTOP
    state, row = 16 * 786_432, 4 * (12 * 96 + 4 * 384) * 4 + 8 * 2048
    assert memory(trained(setup)) == state + 16 * 96 * row
    once = (12 * 96 + 4 * 384) * 4 + 8 * 2048
    assert memory(Part("forward", setup, 10**9)) == 4 * 786_432 + 32 * 96 * once


def test_every_row_of_every_chapter_has_its_work(tmp_path):
    for number in contents.CHAPTERS:
        store = Asking(Store(tmp_path), STAND_INS)
        for row in contents.asked(lab(number, store), number, store):
            work = ROWS[row.study](row.settings)
            assert work is not None
            assert all(n >= 0 for part in work for n in part.flops.values()), row.study


def test_targets_that_rows_have_in_common_are_searched_for_once():
    """As `many.targets` keeps them: by clamp and highest layer, not by weight; a larger row has those of a smaller."""
    model = factual.settings("gpu")
    row = Many(model, "MEMIT", 10.0, 100, (0, 1), written=0)
    heavier, further, more = replace(row, value=30.0), replace(row, clamp=2.0), replace(row, count=250)

    def sought(*rows: Many) -> int:
        parts = once(part for each in rows for part in ROWS["many_edits"](each))
        return sum(part.tokens for part in parts if getattr(part, "kind", "") == "targets")

    each = sought(row)
    assert each == 100 * SOUGHT
    assert sought(row, heavier) == each and sought(row, further) == 2 * each
    assert sought(row, more) == sought(more, row, heavier) == 250 * SOUGHT
    assert sought(row, replace(row, method="EMMET")) == each < sought(row, replace(row, method="PMET"))
    fitted, networks = replace(row, method="FT-W"), replace(row, method="MEND")
    assert sought(row, fitted) == each + 100 * 25 * 24 and sought(networks) == 100 * 24


def test_moments_and_scores_that_rows_have_in_common_are_made_once():
    model = factual.settings("gpu")
    row = Many(model, "MEMIT", 10.0, 100, (0, 1), written=0, texts=500)
    heavier, fewer = replace(row, value=30.0), replace(row, count=50)

    def total(kind: str, *rows: Many) -> int:
        return sum(
            part.flops.get(kind, 0) for part in once(p for each in rows for p in ROWS["many_edits"](each))
        )

    setup = model.setup
    assert total("moments", row) == 2 * setup.layers * setup.memories**2 * 500 * 64
    assert total("moments", row, heavier, fewer) == total("moments", row)
    assert total("moments", row, replace(row, texts=400)) == pytest.approx(1.8 * total("moments", row))
    scored, ordinary, read = 2 * parameters(setup) * np.array([100 * 40 * 16, model.held_out, 500 * 64])
    assert total("forward", row) == 2 * (scored + ordinary) + read
    assert total("forward", row, heavier) == 3 * (scored + ordinary) + read
    assert total("forward", row, fewer) == 3 * scored + 4 * ordinary + read
    assert total("forward", replace(row, method="none")) == 2 * (scored + ordinary) + read


def test_the_whole_book_on_one_card_is_an_hour(tmp_path):
    """At the share of the card's peak that is taken for granted; what a card has is in the provenance of rows."""
    own = [(n, lab(n, Store(tmp_path), scale="gpu")) for n in contents.CHAPTERS]
    found = forecast([(lab, number) for number, lab in own], card("H200"))
    assert 30 * 60 < found.seconds < 60 * 60
    assert found.missing > 500 and found.memory < 80e9, "an H100 has room for it"
    assert found.flops["training"] > found.flops["targets"] > found.flops["moments"] > 1e15


def test_what_is_there_is_not_forecast_again(tmp_path):
    """After chapter 02 was computed chapter 01 needs no model any more, and chapter 02 nothing."""
    store = Claiming(Store(tmp_path), Failures(tmp_path / "failed"))
    before = forecast([(lab("01", Store(tmp_path)), "01")], card("H100"))
    assert len(before.trained) == 1
    work([(lab("02", store), "02")], store)
    assert forecast([(lab("01", Store(tmp_path)), "01")], card("H100")).trained == []
    found = forecast([(lab("02", Store(tmp_path)), "02")], card("H100"))
    assert (found.there, found.missing, found.trained, sum(found.flops.values())) == (3, 0, [], 0)


def test_two_seeds_share_no_model_and_one_seed_twice_does(tmp_path):
    one, two = (lab("02", Store(tmp_path), seed=seed) for seed in (0, 1))
    assert len(forecast([(one, "02"), (two, "02")], card("H100")).trained) == 2
    assert len(forecast([(one, "02"), (one, "02")], card("H100")).trained) == 1


def test_the_command_prints_a_table_or_json_and_runs_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["run", "03", "--scale", "paper", "--dry-run", "--card", "a100", "--json", "-"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["card"]["name"] == "A100" and said["rows"]["missing"] == 56
    (model,) = [each for each in said["fetch"] if each["kind"] == "model"]
    assert (model["revisions"], model["bytes"]) == (4, 4 * 4 * 1_176_764_416)
    assert [each["bytes"] for each in said["fetch"] if each["name"] == "hub:c4"] == [828_589_180_707]
    assert main(["run", "08", "--scale", "smoke", "-p", "seed=0,1", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "08_forgetting at scale smoke: 0 rows are there" in out and "chosen from rows of courses" in out
    assert "6 N tokens" in out and not (tmp_path / "store").exists()


def test_stages_of_a_model_of_others_are_counted_once_each(tmp_path):
    """Chapter 05 at paper scale begins at the paper's four stages, chapter 01 looks at the last."""
    for number, stages in (("01", 1), ("05", 4)):
        found = forecast([(lab(number, Store(tmp_path), scale="paper"), number)], card("H100"))
        (model,) = [each for each in found.fetched if each["kind"] == "model"]
        assert (model["revisions"], model["bytes"]) == (stages, 4 * stages * 1_176_715_264)  # 50280 tokens
        assert found.trained == []


def test_rows_on_models_of_unknown_size_are_named_and_not_called_free(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path / "store"))
    tiny("olmo").save_pretrained(tmp_path / "run" / "step3")
    assert main(["run", "03", "--dry-run", "-p", f"model={tmp_path / 'run'}", "--scale", "smoke"]) == 0
    said = "not reckoned below: rows of entropy, on a model whose sizes are not known here, and its weights"
    assert said in capfd.readouterr().out
    assert main(["run", "02", "--dry-run", "--scale", "smoke"]) == 0
    assert "not reckoned" not in capfd.readouterr().out


def test_the_larger_model_of_the_paper_is_forecast_without_a_network(tmp_path, monkeypatch):
    """32 layers of 4 attention and 3 feed-forward matrices, and two of the vocabulary; no other weights."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "allenai/OLMo-7B-hf"
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 50304 * 4096
    assert parameters(HUB[name]) == weights == 6_888_095_744
    asked = lab("03", Store(tmp_path), scale="paper", model=name)
    found = forecast([(asked, "03")], card("H100"))
    (model,) = [each for each in found.fetched if each["kind"] == "model"]
    assert (model["name"], model["revisions"], model["bytes"]) == (name, 4, 4 * 4 * weights)
    assert (
        found.seconds > 4 * 2048 * 2048 * 2 * 6.6e9 / 67e12
    )  # in float32, attention and other readings apart


def test_cards_are_found_by_name():
    assert card("h200") is CARDS["H200"] and CARDS["T4"].peak("bfloat16") == 8.1e12
    with pytest.raises(BadInput, match=r"a card is one of H200.*got 'B1'"):
        card("B1")
