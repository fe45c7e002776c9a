"""`kemem fetch` and `kemem convert` against a hub on loopback, through the unmodified clients."""

import gzip
import hashlib
import json
import shlex
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny, tokens
from hub_server import Hub
from test_hub_models import OLMO, STEPS, W, stages, weights  # noqa: F401 (a fixture)
from test_native import native, write

from kemem.cli import main
from kemem.corpora import stream
from kemem.editing import requests
from kemem.models import load

RECORDS = [{"id": i, "body": f"Text number {i}, and more of it."} for i in range(40)]


@pytest.fixture
def hub(stages, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("KEMEM_CACHE", str(tmp_path / "kept"))
    with Hub(most=500) as served:
        served.model(OLMO, stages, tags={"v1": "main"})
        lines, half = ("".join(json.dumps(r) + "\n" for r in own) for own in (RECORDS, RECORDS[:20]))
        served.dataset("owner/texts", {"main": {"train.jsonl": lines}, "old": {"train.jsonl": half}})
        served.reach(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(time, "sleep", lambda _: None)
        yield served


def told(command: str, capfd, tmp_path, status: int = 0):
    """The JSON document of a command, or what it said on standard error."""
    place = tmp_path / "told.json"
    given = command.replace("@", str(tmp_path))
    assert main(shlex.split(f"{given} --json {place}")) == status, capfd.readouterr().err
    shown = capfd.readouterr()
    return json.loads(place.read_text()) if not status else shown.err


# ---------------------------------------------------------------------- models
def test_a_model_is_fetched_to_the_cache_by_the_beginning_of_a_revision(hub, stages, capfd, tmp_path):  # noqa: F811
    found = told(f"fetch {OLMO} --revision step1000", capfd, tmp_path)
    assert (found["name"], found["revision"], found["commit"]) == (
        OLMO,
        "step1000",
        hub.commit(OLMO, STEPS[0]),
    )
    folder = Path(found["folder"])
    assert weights(folder) == weights(stages[STEPS[0]])
    assert found["files"][W] == len(weights(folder)) and "config.json" in found["files"]
    hub.__exit__()
    assert told(f"fetch {OLMO} --revision step1000", capfd, tmp_path)["folder"] == str(folder)
    load(OLMO, revision="step1000", device="cpu")


def test_a_model_is_fetched_to_a_folder_that_says_what_it_is(hub, stages, capfd, tmp_path):  # noqa: F811
    assert main(shlex.split(f"fetch {OLMO} --revision step738020 --to {tmp_path}/new/mine")) == 0
    assert capfd.readouterr().out == f"{tmp_path}/new/mine\n"
    record = json.loads((tmp_path / "new" / "mine" / "fetched.json").read_text())
    assert record["revision"] == STEPS[2] and record["commit"] == hub.commit(OLMO, STEPS[2])
    assert record["sha256"][W] == hashlib.sha256(weights(stages[STEPS[2]])).hexdigest()
    load(str(tmp_path / "new" / "mine"), device="cpu")


def test_a_drop_is_gone_on_from_and_a_wrong_file_never_kept(hub, stages, capfd, tmp_path):  # noqa: F811
    hub.fault(W, "drop", after=1000)
    assert told(f"fetch {OLMO} --to @/mine", capfd, tmp_path)["commit"] == hub.commit(OLMO)
    assert weights(tmp_path / "mine") == weights(stages["main"])
    hub.fault(W, "corrupt", times=None)
    line = told(f"fetch {OLMO} --revision step1000 --to @/other", capfd, tmp_path, 2)
    assert line.startswith(f"kemem: expected {W} of {OLMO} at step1000") and line.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_steps_are_listed_in_their_order(hub, capfd, tmp_path):
    assert told(f"fetch {OLMO} --list", capfd, tmp_path) == {
        "name": OLMO,
        "branches": [{"branch": one, "step": int(one[4:].partition("-")[0])} for one in STEPS],
    }
    assert main(["fetch", OLMO, "--list"]) == 0
    assert capfd.readouterr().out.split() == list(STEPS)
    hub.model("owner/plain", {"main": {"config.json": "{}"}})
    assert main(["fetch", "owner/plain", "--list"]) == 0
    assert "has no branches that are steps" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"fetch {OLMO} --revision step7", "with which none begins; the nearest of 3 are"),
        ("fetch nobody/nothing", "got no such model there"),
        ("fetch nobody/nothing --kind data", "hub:nobody/nothing must be a data set"),
        ("fetch owner/texts --kind data --revision v9", "must have the revision that is asked for; got 'v9'"),
        ("fetch zsre --kind data", "must be on the hub; got a data set that is at"),
        ("convert nobody/nothing --out @/new", "got no such model there"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(command, said, hub, capfd, tmp_path):
    line = told(command, capfd, tmp_path, 2)
    assert line.startswith("kemem: ") and said in line and line.count("\n") == 1
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------- data
def test_data_are_kept_where_a_corpus_finds_them(hub, capfd, tmp_path):
    found = told("fetch owner/texts:field=body --kind data --limit 30", capfd, tmp_path)
    assert (found["records"], found["field"], found["commit"]) == (
        30,
        "body",
        hub.commit("owner/texts", kind="datasets"),
    )
    hub.__exit__()
    with pytest.warns(UserWarning, match="when last asked"):
        texts = list(stream("hub:owner/texts:field=body,limit=30"))
    assert texts == [record["body"] for record in RECORDS[:30]]


def test_data_are_written_to_a_folder_that_is_read_without_a_network(hub, capfd, tmp_path):
    found = told("fetch owner/texts --kind data --to @/data", capfd, tmp_path)
    assert found["records"] == 40 and found["field"] is None and found["folder"] == f"{tmp_path}/data"
    hub.__exit__()
    file = tmp_path / "data" / "records.jsonl.gz"
    assert [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()] == RECORDS
    record = json.loads((tmp_path / "data" / ".fetched.json").read_text())
    assert record["sha256"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert record["commit"] == hub.commit("owner/texts", kind="datasets")
    assert list(stream(f"hub:{tmp_path}/data:field=body")) == [record["body"] for record in RECORDS]


def test_data_of_a_revision_and_facts(hub, capfd, tmp_path):
    fact = {"subject": "Rome", "prompt": "Rome lies in", "target_new": "Spain", "ground_truth": "Italy"}
    hub.dataset("owner/facts", {"main": {"train.jsonl": json.dumps(fact) + "\n"}})
    assert told("fetch owner/facts --kind data --to @/facts", capfd, tmp_path)["records"] == 1
    (request,) = requests(str(tmp_path / "facts" / "records.jsonl.gz"))
    assert (request.prompt, request.new) == ("{} lies in", "Spain")
    old = told("fetch owner/texts --kind data --revision old --to @/old", capfd, tmp_path)
    assert old["records"] == 20 and old["commit"] == hub.commit("owner/texts", "old", kind="datasets")


def test_data_that_break_off_leave_no_half_file(hub, capfd, tmp_path):
    hub.fault("train.jsonl", "500", times=None)
    line = told("fetch owner/texts --kind data --to @/data", capfd, tmp_path, 2)
    assert line.splitlines()[-1].startswith("kemem: hub:owner/texts") and "train.jsonl" in line
    assert not list((tmp_path / "data").iterdir())


# ---------------------------------------------------------------------- native checkpoints
def test_a_native_checkpoint_is_converted_from_a_folder_and_from_the_hub(hub, capfd, tmp_path):
    model = tiny("olmo")
    folder = write(tmp_path / "native", native(model), "named", config="config.json", weight_tying=False)
    hub.model("allenai/OLMo-1B", {"main": folder, "step20000-tokens84B": folder})
    found = told(f"convert {folder} --out @/one", capfd, tmp_path)
    assert (found["commit"], found["family"], found["out"]) == (None, "olmo", f"{tmp_path}/one")
    assert found["parameters"] == sum(p.numel() for p in model.parameters()) and found["dtype"] == "float32"
    other = told("convert allenai/OLMo-1B --revision step20000 --out @/two", capfd, tmp_path)
    assert other["commit"] == hub.commit("allenai/OLMo-1B", "step20000-tokens84B")
    ids = tokens(1, 9)
    for name in ("one", "two"):
        net, _ = load(str(tmp_path / name), device="cpu")
        assert torch.equal(net(input_ids=ids).logits, model(input_ids=ids).logits)
