"""What chapter 16 would take with what a reader brings: counted on the models themselves, and as the command says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny
from test_contents import lab

from kemem import models
from kemem.cli import main
from kemem.corpora import train_tokenizer
from kemem.runs import Store
from kemem.studies import own, own_rows
from kemem.studies.asking import Asked
from kemem.studies.cards import card
from kemem.studies.forecast import _models, forecast
from kemem.studies.operations import parameters
from kemem.studies.work_of_edits import SCORED, SOUGHT
from kemem.studies.work_of_own import ROWS, setup_of

TEXTS = ["The tower of Pisa lies in Italy", "Rome lies in Europe", "They live in Old France"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model of several families, each with a tokenizer, and three texts."""
    root = tmp_path_factory.mktemp("brought")
    tok = train_tokenizer(TEXTS, 40, unit="word")
    for family in ("llama", "gpt2", "bert", "gptj"):
        tiny(family, vocab=len(tok)).save_pretrained(root / family)
        tok.save_pretrained(root / family)
    (root / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return root


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_parameters_are_those_of_the_model_with_its_projection(family, place, tmp_path):
    g = own.given(lab("16", Store(tmp_path)), model=f"{place}/{family}", text=f"{place}/texts.jsonl")
    net, _ = models.load(f"{place}/{family}", device="cpu", dtype="float32")
    head = net.get_output_embeddings()
    extra = 0 if head.bias is None else head.bias.numel()  # GPT-J's alone; it is not worth a formula
    assert parameters(setup_of(g)) == sum(p.numel() for p in net.parameters()) - extra


def test_the_example_has_three_rows_of_known_arithmetic(tmp_path):
    found = forecast([(lab("16", Store(tmp_path), scale="laptop"), "16")], card("H100"))
    assert found.rows == {"own_stages": [0, 1], "own_traces": [0, 1], "own_edits": [0, 1]}
    assert found.assumed == ["own_traces"] and found.trained == found.fetched == []
    n, weights, facts, read = 786_432, 5, 20, 160 * 96
    layers = 2  # of the paper's 3 to 8 of 28, in proportion to 4: round(12 / 28), round(32 / 28)
    traced = facts * 4 * 30 * 16 * 3 * 4
    scored = (weights + 1) * facts * SCORED
    assert found.flops["forward"] == 2 * n * (2 * 8 * read + traced + read + scored)
    assert found.flops["targets"] == 4 * n * facts * SOUGHT
    assert found.flops["moments"] == layers * 2 * 384**2 * read
    assert found.flops["algebra"] == weights * layers * (384**3 // 3 + 4 * 384**2 * facts)
    assert found.seconds > 0 and found.memory > 4 * n


def test_what_is_only_measured_is_forecast_as_that(place, tmp_path):
    brought = {"model": f"{place}/bert", "text": f"{place}/texts.jsonl"}
    found = forecast([(lab("16", Store(tmp_path), **brought), "16")], card("H100"))
    assert found.rows == {"own_stages": [0, 1]} and set(found.flops) == {"forward", "attention"}
    net, _ = models.load(f"{place}/bert", device="cpu", dtype="float64")
    n, length = sum(p.numel() for p in net.parameters()), own.SCALES["smoke"].length
    assert found.flops["forward"] == pytest.approx(
        2 * n * len(TEXTS) * length, rel=0.05
    )  # its pooler for its head


def test_layers_and_weights_that_are_given_are_those_that_are_counted(tmp_path):
    own_lab = lab("16", Store(tmp_path), scale="laptop", layers=[1], weight=2.0)
    found = forecast([(own_lab, "16")], card("H100"))
    assert found.flops["algebra"] == 384**3 // 3 + 4 * 384**2 * 20
    assert found.flops["targets"] == 4 * 786_432 * 20 * SOUGHT


def test_weights_of_the_hub_are_fetched_once_for_every_row(place, tmp_path):
    g = own.given(lab("16", Store(tmp_path)), model=f"{place}/llama", text=f"{place}/texts.jsonl")
    hub = replace(g, model="someone/model", revisions=("step1", "step2"), identities=("a", "b"))
    rows = [
        Asked("own_stages", 1, own_rows.stages_of(hub), False, None),
        Asked("own_traces", 1, own_rows.looked_of(hub), False, None),
    ]
    (model,) = _models(rows)
    assert (model["name"], model["revisions"]) == ("someone/model", 2)
    assert model["bytes"] == 2 * 4 * parameters(setup_of(g))
    assert _models(rows[1:])[0]["revisions"] == 1
    assert _models([replace(rows[0], settings=own_rows.stages_of(g))]) == []


def test_settings_tell_their_row_by_content_alone(place, tmp_path):
    g = own.given(lab("16", Store(tmp_path)), model=f"{place}/llama", text=f"{place}/texts.jsonl")
    moved = replace(g, model="elsewhere")
    assert own_rows.stages_of(g) == own_rows.stages_of(moved)
    digests = {Asked("own_stages", 1, own_rows.stages_of(each), False, None).digest for each in (g, moved)}
    assert len(digests) == 1 and set(ROWS) == set(own_rows.ROWS)


def test_the_command_forecasts_the_example_and_runs_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: pytest.fail("weights were read"))
    assert main(["run", "16", "--scale", "smoke", "--dry-run", "--json", "-"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["rows"] == {
        "there": 0,
        "missing": 3,
        "by_study": {"own_stages": [0, 1], "own_traces": [0, 1], "own_edits": [0, 1]},
    }
    assert said["flops"]["all"] > 1e10 and said["hours"] > 0
    assert main(["run", "16", "--scale", "smoke", "--dry-run"]) == 0
    assert "where these are missing the first trial, or what is usual, is taken" in capfd.readouterr().out
