"""`kemem trace`: its document is what the library measures, and what cannot be served is one line, status 2."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from conftest import tiny

from kemem import models
from kemem.cli import main
from kemem.corpora import train_tokenizer
from kemem.editing.facts import KnownFact
from kemem.editing.tracing import trace

PROMPTS = (
    ("They speak in Old France", "Old France"),
    ("Rome lies in", "Rome"),
    ("In Spain they live", "Spain"),
)
WORDS = " ".join(prompt for prompt, _ in PROMPTS) + " Italy Europe English water fire stone"
KEYS = [
    "model", "revision", "family", "facts", "facts_used", "clean", "corrupted", "effects", "intervals", "severed",
    "gap", "layers", "noise", "samples", "window", "seed",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with models, and facts of which the first three are known to `model` and the last is not."""
    root = tmp_path_factory.mktemp("place")
    tokenizer = train_tokenizer([WORDS], 61, unit="word")
    model = tiny("gpt_neox", vocab=len(tokenizer), layers=3, dtype=torch.float64)
    records = []
    with torch.no_grad():
        for number, (prompt, subject) in enumerate(PROMPTS):
            logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
            word = tokenizer.decode([int(logits.argmax())])
            records.append({"known_id": number, "prompt": prompt, "subject": subject, "attribute": word})
    other = "water" if records[0]["attribute"] != "water" else "fire"
    unknown = {**records[0], "known_id": 3, "attribute": other}
    for name, own in {
        "facts.json": [*records, unknown],
        "one.json": records[1:2],
        "unknown.json": [unknown],
        "none.json": [],
        "subjectless.json": [records[0], {**records[1], "subject": "Paris"}],
        "fieldless.json": [{key: value for key, value in records[0].items() if key != "attribute"}],
        "silent.json": [{**records[0], "attribute": " "}],
        "long.json": [{**records[1], "prompt": "Rome lies in " * 30}],
        "object.json": {"facts": 3},
    }.items():
        (root / name).write_text(json.dumps(own))
    (root / "torn.json").write_text("[{")
    for name in ("model", "run/step1", "speechless"):
        model.save_pretrained(root / name)
        if name != "speechless":
            tokenizer.save_pretrained(root / name)
    for family in ("bert", "roberta"):
        tiny(family, vocab=len(tokenizer)).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    (root / "opt").mkdir()
    (root / "opt" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    (root / "empty").mkdir()
    return root


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setenv("KEMEM_PROGRESS", "3600")


def traced(place: Path, *arguments: object, model="model", facts="facts.json") -> dict:
    file = place / "found.json"
    command = ["trace", place / model, "--facts", place / facts, "--device", "cpu", "--dtype", "float64"]
    assert main([*map(str, [*command, "--json", file, *arguments])]) == 0
    return json.loads(file.read_text())


def test_with_the_blocks_on_the_disk_a_trace_is_the_same(place, capsys):
    asked = ("--samples", 2, "--window", 1, "--seed", 3)
    plain, streamed = (traced(place, *asked, *more) for more in ((), ("--stream",)))
    for what in ("state", "mlp", "attention"):
        for role, effects in plain["effects"][what].items():
            assert streamed["effects"][what][role] == pytest.approx(effects, abs=1e-10), (what, role)
    assert streamed["clean"] == pytest.approx(plain["clean"], rel=1e-10)
    assert (streamed["facts_used"], streamed["layers"]) == (plain["facts_used"], plain["layers"])


def test_the_document_is_what_the_library_measures(place, capsys):
    found = traced(place, "--samples", 2, "--window", 2, "--seed", 3, "--batch-size", 7)
    assert list(found) == KEYS
    said = capsys.readouterr()
    assert said.err == "kemem: facts left out, as the model does not know them: 1 of 4.\n" and not said.out
    net, tokenizer = models.load(str(place / "model"), dtype="float64", device="cpu")
    facts = [KnownFact(**record) for record in json.loads((place / "facts.json").read_text())]
    own = trace(net, tokenizer, facts, samples=2, window=2, seed=3)
    given = {
        "model": str(place / "model"), "revision": None, "family": "gpt_neox", "facts": 4, "facts_used": 3,
        "samples": 2, "window": 2, "seed": 3, "layers": list(own.layers),
    }  # fmt: skip
    assert {key: found[key] for key in given} == given
    assert found["noise"] == pytest.approx(own.noise, rel=1e-12)
    assert found["clean"] == pytest.approx(own.clean, abs=1e-10)
    assert found["corrupted"] == pytest.approx(own.corrupted, abs=1e-10)
    assert abs(found["clean"] - found["corrupted"]) > 1e-3
    assert list(found["effects"]) == list(found["intervals"]) == ["state", "mlp", "attention"]
    for kind, roles in found["effects"].items():
        expected = own.effects(kind)
        assert list(roles) == list(found["intervals"][kind]) == list(expected)
        assert list(roles) == ["first_subject", "last_subject", "first_subsequent", "last"]
        for role, values in roles.items():
            assert values == pytest.approx(expected[role].value.tolist(), abs=1e-10)
            half = found["intervals"][kind][role]
            if expected[role].facts == 1:
                assert half is None
            else:
                assert half == pytest.approx(expected[role].half.tolist(), abs=1e-9)
    assert list(found["severed"]) == ["plain", "mlp", "attention"]
    for name, values in found["severed"].items():
        assert values == pytest.approx(own.severed[name].value.tolist(), abs=1e-10)
    assert found["severed"]["plain"] == found["effects"]["state"]["last_subject"]
    less = [a - b for a, b in zip(found["severed"]["plain"], found["severed"]["mlp"], strict=True)]
    assert found["gap"]["mean"] == pytest.approx(less, abs=1e-12)
    assert found["gap"]["interval"] == pytest.approx(own.gap.half.tolist(), abs=1e-9)


def test_options_reach_the_measurement(place, capsys):
    found = traced(place, "--limit", 2, "--samples", 1, "--noise", 0, "--revision", "step1", model="run")
    assert (found["facts"], found["facts_used"], found["revision"]) == (2, 2, "step1")
    assert found["noise"] == 0 and found["window"] == 10
    assert found["clean"] == pytest.approx(found["corrupted"], abs=1e-12)
    assert not capsys.readouterr().err


def test_one_fact_has_no_intervals(place):
    found = traced(place, "--samples", 1, facts="one.json")
    assert found["facts_used"] == 1 and found["gap"]["interval"] is None
    assert all(half is None for own in found["intervals"].values() for half in own.values())
    assert len(found["layers"]) >= 1


def test_without_json_it_is_a_table(place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    command = f"trace {place}/model --samples 1 --device cpu --dtype float64 --facts {place}/"
    assert main(shlex.split(f"{command}facts.json")) == 0
    shown = capsys.readouterr().out
    found = traced(place, "--samples", 1)
    assert f"{place}/model (gpt_neox): 3 of 4 facts are known" in shown
    assert f"probability {found['clean']:.4f}, {found['corrupted']:.4f} with the subject corrupted" in shown
    for role, values in found["effects"]["mlp"].items():
        (line,) = (row for row in shown.splitlines() if row.strip().startswith(role.replace("_", " ") + "  "))
        assert f"{max(values):+.4f} at {values.index(max(values))}" in line
    for layer in range(3):
        (line,) = (row for row in shown.splitlines() if row.split()[:1] == [str(layer)])
        own = [f"{found['severed'][name][layer]:+.4f}" for name in ("plain", "mlp", "attention")]
        gap = [f"{found['gap']['mean'][layer]:+.4f}", "±", f"{found['gap']['interval'][layer]:.4f}"]
        assert line.split()[1:] == [*own, *gap]
    assert f"layers to edit {' '.join(map(str, found['layers']))}" in shown
    assert main(shlex.split(f"{command}one.json")) == 0
    assert "±" not in capsys.readouterr().out


def test_json_on_standard_output_and_ctrl_c(place, capsys, monkeypatch):
    command = shlex.split(f"trace {place}/model --facts {place}/one.json --samples 1 --device cpu --json -")
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["facts"] == 1

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kemem.editing.tracing.trace", stop)
    assert main(command) == 130
    assert capsys.readouterr().err == "kemem: stopped; nothing was written; run the same command again.\n"


GOOD = "trace {0}/model --facts {0}/facts.json"
OF = "trace {0}/model --facts {0}/"
TABLE = {
    "no model": ("trace --facts {0}/facts.json", "Missing argument 'MODEL'; see kemem trace --help"),
    "no facts named": ("trace {0}/model", "Missing option '--facts'"),
    "unknown option": (f"{GOOD} --corpus docstrings", "No such option: --corpus"),
    "no samples": (f"{GOOD} --samples 0", "--samples to be 1 or more; got 0"),
    "no window": (f"{GOOD} --window 0", "--window to be 1 or more; got 0"),
    "no limit": (f"{GOOD} --limit 0", "--limit to be 1 or more; got 0"),
    "no batch": (f"{GOOD} --batch-size 0", "--batch-size to be 1 or more; got 0"),
    "negative seed": (f"{GOOD} --seed -1", "--seed to be 0 or more; got -1"),
    "negative noise": (f"{GOOD} --noise -1", "expected --noise to be 0 or more; got -1.0"),
    "noise that is no number": (f"{GOOD} --noise nan", "got nan"),
    "noise without end": (f"{GOOD} --noise inf", "got inf"),
    "unknown dtype": (f"{GOOD} --dtype float8", "got 'float8'"),
    "unknown device": (f"{GOOD} --device tpu", "got 'tpu'; choose one of auto, cpu, cuda, mps"),
    "json nowhere": (f"{GOOD} --json {{0}}/nowhere/a.json", "create {0}/nowhere first"),
    "facts missing": (f"{OF}nowhere.json", "nowhere.json"),
    "facts that do not parse": (f"{OF}torn.json", "torn.json"),
    "facts that are no list": (f"{OF}object.json", "object.json"),
    "fact without a field": (f"{OF}fieldless.json", "'attribute'"),
    "no facts": (f"{OF}none.json", "got none"),
    "more than there are": (f"{GOOD} --limit 5", "got 5"),
    "prompt without its subject": (
        f"{OF}subjectless.json",
        "names its subject 'Paris'; got 'Rome lies in' of case 1",
    ),
    "attribute without text": (f"{OF}silent.json", "got"),
    "prompt beyond the context": (f"{OF}long.json", "context of 64 tokens; got 90 in fact 1"),
    "model missing": (GOOD.replace("{0}/model", "{0}/nowhere"), "expected a folder with a model"),
    "not a model": (GOOD.replace("{0}/model", "{0}/empty"), "{0}/empty without a config.json"),
    "revision missing": (
        GOOD.replace("{0}/model", "{0}/run --revision step7"),
        "got revision 'step7'; choose one of step1",
    ),
    "layout missing": (
        f"{GOOD} --layout {{0}}/nowhere.json",
        "a layout as JSON in {0}/nowhere.json; got: No such",
    ),
    "unknown family": (GOOD.replace("{0}/model", "{0}/opt"), "expected a model of a known family (olmo,"),
    "masked model": (
        GOOD.replace("{0}/model", "{0}/bert"),
        "predicts the next token; got bert, which fills in masked ones",
    ),
    "other masked model": (GOOD.replace("{0}/model", "{0}/roberta"), "got roberta, which fills in masked"),
    "no tokenizer": (GOOD.replace("{0}/model", "{0}/speechless"), "expected a tokenizer beside the weights"),
}


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_one_line_before_any_weights_are_read(case, place, capfd, monkeypatch):
    def never(*_, **__):
        raise AssertionError("long work began")

    monkeypatch.setattr("kemem.models.load", never)
    refused(*TABLE[case], place, capfd)


def test_facts_of_which_none_is_known_are_one_line(place, capfd):
    refused(f"{OF}unknown.json --samples 1", "facts that the model knows; got 1, of which", place, capfd)


def refused(command: str, said: str, place: Path, capfd) -> None:
    assert main(shlex.split(command.replace("{0}", str(place)))) == 2
    shown = capfd.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("kemem: ") and said.replace("{0}", str(place)) in lines[0]
    assert len(lines[0]) < 600 and not shown.out
