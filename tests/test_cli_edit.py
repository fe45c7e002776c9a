"""`kemem edit`: what it adds is section 2.6 in float64, its document is true of its folder, bad input is one line."""

import json
import math
import os
import shlex
from pathlib import Path

import naive_editing as naive
import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from kemem.cli import main
from kemem.cli.editors import BY_KEYS, METHODS, published_layers
from kemem.corpora import train_tokenizer
from kemem.editing.prompts import Contexts

FAMILIES = ("gpt2", "gptj", "gpt_neox", "olmo", "llama")
KEYS = [
    "method", "n", "dropped", "layers", "seconds", "before", "after", "update_norm", "settings", "out",
]  # fmt: skip
PHASES = ["moments", "values", "keys", "solve", "scores"]
WORDS = "Rome Paris Old Town France Spain Upper Silesia born lives speaks in was is a the Today, they say. It"
FACTS = (
    ("Ada Byron", "{} was born in", "Rome", "Old Town"),
    ("Carl of Upper Silesia", "{} lives in", "Upper Silesia", "Paris"),
    ("Bo Dahlen", "Today {} speaks", "Old Town", "Spain"),
    ("Eva Quirinus", "It was {} in", "Xy", "France"),
)
TEMPLATES = ("{}", "They say. {}", "Today, in the town. {}")


def record(number: int, subject: str, prompt: str, new: str, true: str, **changes) -> dict:
    """One fact in the schema of CounterFact."""
    near = [f"{prompt.replace('{}', name)}" for name in ("Bo", "Rome")]
    rewrite = {
        "prompt": prompt, "subject": subject, "relation_id": f"P{number}", "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
    }  # fmt: skip
    return {
        "case_id": 40 + number, "requested_rewrite": {**rewrite, **changes},
        "paraphrase_prompts": [f"They say. {prompt.replace('{}', subject)}"], "neighborhood_prompts": near,
    }  # fmt: skip


def records() -> list[dict]:
    return [record(number, *fact) for number, fact in enumerate(FACTS)]


def moments(size: int, seed: int, least: float = 0.1) -> torch.Tensor:
    """A second moment whose directions have mean squares from `least` to 3."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    found = (basis * torch.linspace(least, 3, size, dtype=torch.float64)) @ basis.T
    return (found + found.T) / 2


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS, *(" ".join(fact).replace("Xy", "") for fact in FACTS)], 345)


@pytest.fixture(scope="module")
def opening(tokenizer):
    """The same with a first token before every text, as Llama has one."""
    core = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|padding|>", bos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer, opening) -> Path:
    """A folder with models and all that is given to the command."""
    root = tmp_path_factory.mktemp("place")
    for family in FAMILIES:
        for square in (False, True):
            name = root / f"{family}{'-square' * square}"
            tiny(family, vocab=len(tokenizer), square=square, context=96).save_pretrained(name)
            (opening if family == "llama" else tokenizer).save_pretrained(name)
    for name, family, changes in (
        ("olmo2", "olmo2", {}), ("bert", "bert", {}), ("one", "gpt2", {"layers": 1}),
        ("short", "gpt2", {"context": 8}), ("narrow", "gpt2", {"context": 16}),
    ):  # fmt: skip
        tiny(family, vocab=len(tokenizer), **changes).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    tiny("gpt2", vocab=len(tokenizer)).save_pretrained(root / "speechless")
    (root / "opt").mkdir()
    (root / "opt" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    for name, size, least in (("moments", 20, 0.1), ("square", 12, 0.1), ("free", 20, 1e-3)):
        of = {f"layer.{i}": moments(size, i, least) for i in (0, 1)}
        save_file(of, root / f"{name}.safetensors")
    save_file(
        {f"layer.{i}": torch.eye(20) - 0.11 * torch.ones(20, 20) for i in (0, 1)}, root / "hollow.safetensors"
    )
    save_file({"layer.0": torch.eye(20)}, root / "lowest.safetensors")
    save_file({"layer.0": torch.eye(20).cumsum(0), "layer.1": torch.eye(20)}, root / "crooked.safetensors")
    generator = torch.Generator().manual_seed(5)
    save_file({"z": torch.randn(4, 12, generator=generator)}, root / "z.safetensors")
    save_file({"z": torch.full((4, 12), torch.nan)}, root / "nan.safetensors")
    (root / "full").mkdir()
    (root / "full" / "thesis.tex").write_text("mine")
    (root / "text.txt").write_text("\n".join(WORDS.split() + [WORDS] * 3))
    for name, content in contents().items():
        (root / name).write_text(json.dumps(content))
    (root / "torn.json").write_text("[{")
    (root / "torn.safetensors").write_bytes(b"\xff" * 40)
    return root


def contents() -> dict:
    """Requests and templates, sound and not."""
    every = records()
    bare = [{k: v for k, v in r.items() if not k.endswith("_prompts")} for r in every]
    subject, prompt, _, true = FACTS[1]
    other = record(1, subject, prompt, "Spain", true)
    flat = {"prompt": "It lives in", "subject": "Rome", "target_new": "Paris", "ground_truth": "Spain"}
    return {
        "facts.json": every,
        "three.json": every[:3],
        "bare.json": bare,
        "unlike.json": [*every[:2], {**other, "case_id": 77}, every[3]],
        "no-place.json": [record(0, "Ada Byron", "She was born in", "Rome", "Paris")],
        "two-places.json": [record(0, "Ada Byron", "{} and {} live in", "Rome", "Paris")],
        "absent.json": [flat],
        "targetless.json": [record(0, "Ada Byron", "{} was born in", " ", "Paris")],
        "endless.json": [record(0, "Ada Byron", "{} was born in", "Rome " * 120, "Paris")],
        "object.json": {"facts": every},
        "none.json": [],
        "untrained.json": [*every[:3], record(3, "Ada Byron", "She was", "Rome", "Paris")],
        "templates.json": TEMPLATES,
        "bare-template.json": ["{}"],
        "behind.json": ["They say. {}", "{}"],
        "gapless.json": ["{}", "They say."],
        "twice.json": ["{}", "{} {}"],
        "numbers.json": ["{}", 3],
        "spacious.json": ["{}", "Today they say. " * 40 + "{}"],
    }


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setenv("KEMEM_PROGRESS", "3600")


def edited(place: Path, file: Path, command: str) -> dict:
    """The document of `kemem edit`; {0} in the command is the folder with what is given."""
    given = shlex.split(command.replace("{0}", str(place)))
    assert main(["edit", *given, "--device", "cpu", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


# ---------------------------------------------------------------------- the update
def read(tokenizer, prompt: str, subject: str, new: str, templates=TEMPLATES) -> Contexts:
    """A request's rows, by whole texts; the subject's last token is the one that brings in its last character."""
    rows, begins, last = [], [], []
    for template in templates:
        text = template.replace("{}", prompt).replace("{}", subject)
        rows.append(tuple(tokenizer(f"{text} {new}")["input_ids"]))
        begins.append(len(tokenizer(text)["input_ids"]))
        assert rows[-1][: begins[-1]] == tuple(tokenizer(text)["input_ids"])
        end = text.index(subject) + len(subject)
        said = [len(tokenizer.decode(rows[-1][: i + 1], skip_special_tokens=True)) for i in range(begins[-1])]
        last.append(next(i for i, length in enumerate(said) if length >= end))
    return Contexts(tuple(rows), tuple(begins), tuple(last), ())


@pytest.mark.parametrize("square", [False, True], ids=["M", "M=D"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_added_is_the_closed_form_in_float64(family, square, place, tmp_path):
    model = place / f"{family}{'-square' * square}"
    file = place / ("square.safetensors" if square else "moments.safetensors")
    found = edited(place, tmp_path / "a.json", (
        f"{model} --requests {{0}}/facts.json --method memit --templates {{0}}/templates.json --moments {file} "
        f"--values {{0}}/z.safetensors --layers 0,1 --weight 5 --out {tmp_path}/out"
    ))  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert (tokenizer("Rome")["input_ids"][0] == 0) == (family == "llama")
    of = [read(tokenizer, prompt, subject, new) for subject, prompt, new, _ in FACTS]
    assert {len(c.rows[0]) - c.begins[0] for c in of} == {1, 2, 3}
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    C = {int(name.removeprefix("layer.")): tensor for name, tensor in load_file(file).items()}
    wanted = naive.memit_(plain, of, load_file(place / "z.safetensors")["z"], (0, 1), C, 5.0)

    before, after = weights(model), weights(tmp_path / "out")
    down = {f"{naive.BLOCK[family].format(i)}.{naive.DOWN[family]}.weight": i for i in (0, 1)}
    assert before.keys() == after.keys() and down.keys() <= before.keys()
    for name, weight in before.items():
        if name not in down:
            assert torch.equal(after[name], weight), name
            continue
        added, own = after[name].double() - weight.double(), wanted[down[name]]
        own = own.T if family == "gpt2" else own
        assert (added - own).norm() < 1e-4 * own.norm() and own.norm() > 0.1
        assert found["update_norm"][str(down[name])] == pytest.approx(own.norm().item(), rel=1e-4)
    assert list(found["update_norm"]) == ["0", "1"] and found["layers"] == [0, 1]
    assert found["settings"]["editor"]["weight"] == 5 and found["settings"]["templates"] == list(TEMPLATES)


def test_with_the_blocks_on_the_disk_an_edit_is_the_same(place, tmp_path):
    command = (
        "{0}/llama --requests {0}/facts.json --method memit --templates {0}/templates.json --layers 0,1 "
        f"--moments {{0}}/moments.safetensors -n 2 --out {tmp_path}"
    )
    plain = edited(place, tmp_path / "a.json", f"{command}/a")
    streamed = edited(place, tmp_path / "b.json", f"{command}/b --stream")
    before, own, other = weights(place / "llama"), weights(tmp_path / "a"), weights(tmp_path / "b")
    changed = [name for name in own if not torch.equal(own[name], before[name])]
    assert len(changed) == 2 and own.keys() == other.keys()
    for name, weight in own.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-6 if name in changed else 0)
    assert streamed["update_norm"] == pytest.approx(plain["update_norm"], rel=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "b")("Rome")["input_ids"][0] == 0


@pytest.mark.parametrize("method", ["memit", "rome", "pmet"])
def test_values_that_were_saved_give_the_same_folder(method, place, tmp_path):
    command = (
        f"{{0}}/llama --requests {{0}}/facts.json --method {method} --templates {{0}}/templates.json "
        f"--moments {{0}}/moments.safetensors -n 2 --layers 1 --out {tmp_path}"
    )
    searched = edited(place, tmp_path / "a.json", f"{command}/a --save-values {tmp_path}/z.safetensors")
    z = load_file(tmp_path / "z.safetensors")
    assert list(z) == ["z"] and z["z"].shape == (2, 12)
    again = edited(place, tmp_path / "b.json", f"{command}/b --values {tmp_path}/z.safetensors")
    assert searched["seconds"]["values"] > 0 and searched["update_norm"]["1"] > 1e-5
    assert again["update_norm"] == searched["update_norm"] and again["after"] == searched["after"]
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# ---------------------------------------------------------------------- every method, and its document
def losses(model, tokenizer, prompt: str, *targets: str) -> list[float]:
    """Of each target the mean of -log p over its tokens, in float64, one text at a time."""
    found = []
    for target in targets:
        begin, row = len(tokenizer(prompt)["input_ids"]), tokenizer(f"{prompt} {target}")["input_ids"]
        with torch.no_grad():
            said = model(torch.tensor([row])).logits[0].log_softmax(-1)
        found.append(-sum(said[i - 1, row[i]].item() for i in range(begin, len(row))) / (len(row) - begin))
    return found


def scored(folder: Path, tokenizer, asked: list[dict]) -> dict[str, float]:
    """ES, PS, NS by plain loops over the records."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    shares: dict[str, list[float]] = {"ES": [], "PS": [], "NS": []}
    for r in asked:
        rewrite = r["requested_rewrite"]
        pair = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
        own = rewrite["prompt"].replace("{}", rewrite["subject"])
        for name, prompts in (
            ("ES", [own]),
            ("PS", r["paraphrase_prompts"]),
            ("NS", r["neighborhood_prompts"]),
        ):
            both = [losses(model, tokenizer, prompt, *pair) for prompt in prompts]
            wins = [(true < new) if name == "NS" else (new < true) for new, true in both]
            shares[name].append(100 * sum(wins) / len(wins))
    return {name: sum(values) / len(values) for name, values in shares.items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_edits_and_tells_of_it(method, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kemem.cli.editors.STEPS", 1)
    given = {"alphaedit": "--moments {0}/free.safetensors"}.get(method)
    given = given or ("" if method.startswith("ft") else "--corpus files:{0}/text.txt --instances 30")
    found = edited(place, tmp_path / "a.json", (
        f"{{0}}/gpt_neox --requests {{0}}/facts.json --method {method} -n 2 {given} --out {tmp_path}/out --seed 1"
    ))  # fmt: skip
    said = capsys.readouterr()
    assert not said.out and not said.err
    assert list(found) == KEYS and (found["method"], found["n"], found["dropped"]) == (method, 2, 0)
    assert found["layers"] == list(published_layers(method, 2)) and max(found["layers"]) < 2
    extra = {"mend": ["training", "updates"]}.get(method, ["contexts"] if method in BY_KEYS else ["training"])
    assert sorted(found["seconds"]) == sorted(PHASES + extra)
    spent = {name for name, seconds in found["seconds"].items() if seconds > 0}
    assert spent == {*(PHASES if method in BY_KEYS else ["scores"]), *extra}
    net, tokenizer = place / "gpt_neox", AutoTokenizer.from_pretrained(tmp_path / "out")
    for when, folder in (("before", net), ("after", tmp_path / "out")):
        own = found[when]
        assert {name: own[name] for name in ("ES", "PS", "NS")} == pytest.approx(
            scored(folder, tokenizer, records()[:2])
        )
        three = [own["ES"], own["PS"], own["NS"]]
        harmonic = 3 / sum(1 / share for share in three) if all(three) else 0
        assert own["S"] == pytest.approx(harmonic) and own["records"] == 2
        assert own["locality_tokens"] is None and own["S_tokens"] is None
    first, second = weights(net), weights(tmp_path / "out")
    squares = dict.fromkeys(found["update_norm"], 0.0)
    assert list(squares) == [str(layer) for layer in found["layers"]]
    for name, weight in first.items():
        if (moved := (second[name] - weight).double().square().sum().item()) > 0:
            squares[name.split("layers.")[1].split(".")[0]] += moved
    norms = {layer: math.sqrt(square) for layer, square in squares.items()}
    assert found["update_norm"] == pytest.approx(norms, rel=1e-3) and min(norms.values()) > 1e-6
    assert found["settings"]["templates"] is None or len(found["settings"]["templates"]) == 6


def test_the_defaults_of_a_method_are_within_any_model():
    for method in METHODS:
        for layers in range(1, 60):
            chosen = published_layers(method, layers)
            assert chosen and chosen[0] >= 0 and chosen[-1] < layers
            assert chosen == tuple(range(chosen[0], chosen[-1] + 1))
    assert published_layers("memit", 28) == (3, 4, 5, 6, 7, 8)
    assert (published_layers("rome", 28), published_layers("ft", 28)) == ((5,), (21,))


def test_records_without_prompts_score_null(place, tmp_path):
    command = "{0}/gpt2 --requests {0}/bare.json --method ft-l"
    found = edited(place, tmp_path / "a.json", command)
    for when in ("before", "after"):
        assert found[when]["ES"] is not None
        assert [found[when][name] for name in ("PS", "NS", "S", "PM", "NM", "paraphrase_acc")] == [None] * 6
    assert found["out"] is None and found["n"] == 4


def test_conflicts_drop_the_later_record_and_count_it(place, tmp_path, capsys):
    found = edited(
        place, tmp_path / "a.json", "{0}/gpt2 --requests {0}/unlike.json --method ft --conflicts first"
    )
    assert (found["n"], found["dropped"], found["before"]["records"]) == (3, 1, 3)
    assert capsys.readouterr().err == "kemem: records left out, as they contradict an earlier one: 1.\n"
    early = edited(place, tmp_path / "a.json", "{0}/gpt2 --requests {0}/unlike.json --method ft -n 2")
    assert (early["n"], early["dropped"]) == (2, 0)


def test_mend_trains_on_the_records_beyond_the_first_though_they_conflict(place, tmp_path, monkeypatch):
    monkeypatch.setattr("kemem.cli.editors.STEPS", 1)
    monkeypatch.setattr("kemem.cli.editors.RANK", 3)
    found = edited(place, tmp_path / "a.json", (
        "{0}/gpt2 --requests {0}/unlike.json --method mend -n 1 --layers 1 --corpus files:{0}/text.txt"
    ))  # fmt: skip
    assert found["n"] == 1 and list(found["update_norm"]) == ["1"]
    assert found["settings"]["editor"]["networks"] == {"rank": 3, "steps": 1}


def test_one_relation_alone(place, tmp_path):
    found = edited(
        place, tmp_path / "a.json", "{0}/gpt2 --requests {0}/facts.json --method ft-w --relation P2"
    )
    assert found["n"] == 1 and found["settings"]["relation"] == "P2"


def test_without_json_it_is_a_table(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    command = "{0}/gpt2 --requests {0}/facts.json --method ft --layers 1"
    assert main(["edit", *shlex.split(command.replace("{0}", str(place))), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    found = edited(place, tmp_path / "a.json", command)
    assert "ft, 4 requests, layers 1" in shown
    for when in ("before", "after"):
        (line,) = (line for line in shown.splitlines() if line.split()[:1] == [when])
        assert line.split()[1:5] == [f"{found[when][name]:.1f}" for name in ("ES", "PS", "NS", "S")]
    assert f"added to layer 1: norm {found['update_norm']['1']:.4g}" in shown


def test_every_line_about_progress_says_what_it_counts(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KEMEM_PROGRESS", "0")
    monkeypatch.setattr("kemem.cli.editors.STEPS", 1)
    said = {}
    text, kept = "--corpus files:{0}/text.txt --layers 0,1", "--moments {0}/moments.safetensors"
    given = {"memit": text, "rome": f"{kept} --templates {{0}}/bare-template.json", "ft": "", "mend": text}
    for method, options in given.items():
        edited(
            place,
            tmp_path / "a.json",
            f"{{0}}/gpt2 --requests {{0}}/facts.json --method {method} -n 2 {options}",
        )
        said[method] = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ...")]
    assert {
        "kemem: memit: 2 of 2 target vectors", "kemem: memit: 2 of 2 layers, layer 1",
    } <= set(said["memit"])  # fmt: skip
    for when in ("before", "after"):
        (line,) = (line for line in said["memit"] if line.startswith(f"kemem: scores {when}: "))
        done, _, total, unit = line.split()[3:]
        assert done == total and unit == "texts"
    assert any(line.startswith("kemem: moments: 16 of") and " texts, " in line for line in said["memit"])
    assert "kemem: rome: 1 of 2 requests" in said["rome"]
    assert any(line.startswith("kemem: ft: 1 of 25 epochs, epoch 1, loss ") for line in said["ft"])
    assert "kemem: mend: 2 of 2 requests" in said["mend"]
    assert any(line.startswith("kemem: training networks: 1 of 1 steps, loss ") for line in said["mend"])


# ---------------------------------------------------------------------- folders and data
def test_from_any_folder_and_through_the_data_folder(place, tmp_path, monkeypatch):
    monkeypatch.setenv("KEMEM_DATA", str(place))
    monkeypatch.chdir(tmp_path)
    os.symlink(place / "olmo", tmp_path / "model")
    given = "--templates '$KEMEM_DATA/templates.json' --moments '$KEMEM_DATA/moments.safetensors' --layers 0"
    command = f"edit model --requests '$KEMEM_DATA/facts.json' --values '$KEMEM_DATA/z.safetensors' {given}"
    assert main([*shlex.split(command), "--out", "out", "--json", "a.json", "--device", "cpu"]) == 0
    assert json.loads(Path("a.json").read_text())["n"] == 4
    monkeypatch.delenv("KEMEM_DATA")
    there = f"{place}/olmo --requests {place}/facts.json --values {place}/z.safetensors"
    edited(
        place, tmp_path / "b.json", f"{there} {given.replace('$KEMEM_DATA', str(place))} --out {tmp_path}/b"
    )
    first, second = weights(tmp_path / "out"), weights(tmp_path / "b")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


DATA = os.environ.get("KEMEM_DATA")


@pytest.mark.skipif(not DATA, reason="KEMEM_DATA is not set: no real data at hand")
def test_real_records_with_a_real_tokenizer(tmp_path):
    file = Path(DATA) / "tokenizers" / "allenai_gpt-neox-olmo-dolma-v1_5.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    tiny("olmo", vocab=len(tokenizer) + 8, context=128).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = f"{tmp_path}/model --requests '$KEMEM_DATA/counterfact/counterfact_500.json' --method ft -n 2"
    found = edited(tmp_path, tmp_path / "a.json", f"{command} --out {tmp_path}/out")
    assert found["n"] == 2 and all(found["before"]["n"][name] == 2 for name in ("ES", "PS", "NS"))
    asked = json.loads((Path(DATA) / "counterfact" / "counterfact_500.json").read_text())[:2]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    wins, magnitudes = [], []
    for r in (each["requested_rewrite"] for each in asked):
        own = r["prompt"].replace("{}", r["subject"])
        new, true = losses(model, tokenizer, own, r["target_new"]["str"], r["target_true"]["str"])
        wins.append(new < true)
        magnitudes.append(math.exp(-new) - math.exp(-true))
    assert found["after"]["ES"] == 50 * sum(wins)
    assert found["after"]["EM"] == pytest.approx(50 * sum(magnitudes), rel=1e-3)


# ---------------------------------------------------------------------- what cannot be served
ON = "{0}/gpt2 --requests {0}/facts.json"
FILES = f"{ON} --moments {{0}}/moments.safetensors"
OF = "{0}/gpt2 --requests {0}/"
TABLE = {
    "no model": ("--requests {0}/facts.json", "Missing argument 'MODEL'; see kemem edit --help"),
    "no requests named": ("{0}/gpt2", "Missing option '--requests'"),
    "a method that trains, streamed": (f"{ON} --method ft --stream", "works by keys with --stream (memit, rome,"),
    "unknown method": (f"{ON} --method serac", "memit, rome, r-rome, ft, ft-l, ft-w, mend, emmet, pmet, alphaedit"),
    "no place in a prompt": (f"{OF}no-place.json", "got 0 in case 40"),
    "two places in a prompt": (f"{OF}two-places.json", "got 2 in case 40"),
    "subject absent": (f"{OF}absent.json", "one {} for the subject 'Rome'; got 0 in case 0"),
    "empty target": (f"{OF}targetless.json", "expected a new target; got an empty one in case 40"),
    "target beyond the context": (f"{OF}endless.json", "context of 96 tokens"),
    "prompt beyond the context": ("{0}/short --requests {0}/facts.json --method ft", "context of 8 tokens"),
    "templates beyond the context": (f"{FILES} --templates {{0}}/spacious.json", "take shorter templates"),
    "unknown relation": (f"{ON} --relation P99", "P0, P1, P2, P3; got 'P99'"),
    "unknown layer": (f"{FILES} --layers 0,2", "expected a layer in 0..1; got 2"),
    "unknown layer of ft": (f"{ON} --method ft --layers 7", "expected a layer in 0..1; got 7"),
    "layers that descend": (f"{ON} --layers 1,0", "--layers that ascend; got 1,0"),
    "a layer twice": (f"{ON} --layers 1,1", "--layers that ascend; got 1,1"),
    "a layer below 0": (f"{ON} --layers=-1,1", "--layers that ascend; got -1,1"),
    "layers that are no numbers": (f"{ON} --layers 3-8", "--layers as numbers, such as 3,4,5; got '3-8'"),
    "two layers of rome": (f"{ON} --method rome --layers 0,1", "one layer for rome; got 0,1"),
    "two layers of ft": (f"{ON} --method ft-w --layers 0,1", "one layer for ft-w; got 0,1"),
    "pmet at layer 0": (f"{FILES} --method pmet --layers 0", "highest layer of 1 or more for pmet"),
    "pmet of one layer by default": (
        "{0}/one --requests {0}/facts.json --method pmet", "highest layer of 1 or more for pmet"
    ),
    "moments of another shape": (f"{ON} --moments {{0}}/square.safetensors", "shape (20, 20)"),
    "moments without an inverse": (f"{ON} --moments {{0}}/hollow.safetensors", "moments that are positive definite"),
    "alphaedit without squares": (
        f"{ON} --method alphaedit --moments {{0}}/hollow.safetensors", "moments without negative squares"
    ),
    "moments of another layer": (f"{ON} --moments {{0}}/lowest.safetensors", "moments of layer 1; got those of 0"),
    "moments that are asymmetric": (f"{ON} --moments {{0}}/crooked.safetensors", "symmetric, finite moments"),
    "moments under other names": (f"{ON} --moments {{0}}/z.safetensors", "tensors named layer.<l>"),
    "moments missing": (f"{ON} --moments {{0}}/nowhere.safetensors", "expected moments as safetensors in"),
    "moments torn": (f"{ON} --moments {{0}}/torn.safetensors", "expected moments as safetensors in"),
    "moments and text": (f"{FILES} --corpus world", "got --moments and --corpus; leave one of them out"),
    "moments and number of texts": (f"{FILES} --instances 5", "got --moments and --instances"),
    "olmo2": ("{0}/olmo2 --requests {0}/facts.json", "got 'olmo2', which normalises it"),
    "bert": ("{0}/bert --requests {0}/facts.json", "got bert, which fills in masked ones, and normalises"),
    "bert, fine-tuned": ("{0}/bert --requests {0}/facts.json --method ft", "got bert, which fills in masked ones"),
    "layout missing": (f"{ON} --layout {{0}}/nowhere.json", "a layout as JSON in {0}/nowhere.json; got: No such"),
    "unknown family": ("{0}/opt --requests {0}/facts.json", "expected a model of a known family (olmo,"),
    "model missing": ("{0}/nowhere --requests {0}/facts.json", "expected a folder with a model"),
    "revision missing": (f"{ON} --revision step7", "got revision 'step7'"),
    "no tokenizer": ("{0}/speechless --requests {0}/facts.json", "expected a tokenizer beside the weights"),
    "requests missing": (f"{OF}nowhere.json", "nowhere.json; check the path"),
    "requests torn": (f"{OF}torn.json", "records of facts must be JSON"),
    "requests that are no list": (f"{OF}object.json", "must hold a list of records; got dict"),
    "no requests": (f"{OF}none.json", "expected records of facts; got none"),
    "requests of no schema": (f"{OF}templates.json", "expected a record of a known schema"),
    "no records": (f"{ON} -n 0", "expected -n to be 1 or more; got 0"),
    "too many records": (f"{ON} -n 5", "expected -n up to 4"),
    "records that conflict": (f"{OF}unlike.json", "two in cases 41 and 77; leave one of each out"),
    "unknown way with conflicts": (f"{ON} --conflicts last", "none, first; got 'last'"),
    "weight of 0": (f"{ON} --weight 0", "expected --weight to be a number above 0; got 0.0"),
    "weight that is no number": (f"{ON} --weight nan", "got nan"),
    "weight without end": (f"{ON} --weight inf", "got inf"),
    "weight of rome": (f"{ON} --method rome --weight 5", "--weight with one of memit, emmet, pmet; got rome"),
    "weight of alphaedit": (f"{ON} --method alphaedit --weight 5", "--weight with one of memit, emmet, pmet"),
    "templates of ft": (f"{ON} --method ft --templates {{0}}/templates.json", "expected --templates with one of"),
    "values of mend": (f"{ON} --method mend -n 2 --values {{0}}/z.safetensors", "expected --values with one of"),
    "values kept of ft": (f"{ON} --method ft-l --save-values {{0}}/new", "expected --save-values with one of"),
    "moments of mend": (
        f"{ON} --method mend -n 2 --moments {{0}}/moments.safetensors", "expected --moments with one of"
    ),
    "text of ft": (f"{ON} --method ft --corpus world", "expected --corpus with one of"),
    "length of ft": (f"{ON} --method ft --length 9", "expected --length with one of"),
    "templates missing": (f"{ON} --templates {{0}}/nowhere.json", "nowhere.json"),
    "templates torn": (f"{ON} --templates {{0}}/torn.json", "--templates as a JSON list of strings; got"),
    "templates that are no list": (f"{ON} --templates {{0}}/object.json", "--templates as a JSON list of strings"),
    "templates that are no texts": (f"{ON} --templates {{0}}/numbers.json", "--templates as a JSON list of strings"),
    "the bare template behind": (f"{ON} --templates {{0}}/behind.json", 'begin with "{}"'),
    "a template without a place": (f"{ON} --templates {{0}}/gapless.json", "got 0 in 'They say.'"),
    "a template with two": (f"{ON} --templates {{0}}/twice.json", "got 2 in '{} {}'"),
    "values missing": (f"{ON} --values {{0}}/nowhere.safetensors", "--values as safetensors with a tensor z"),
    "values torn": (f"{ON} --values {{0}}/torn.safetensors", "--values as safetensors with a tensor z"),
    "values under another name": (f"{ON} --values {{0}}/lowest.safetensors", "got tensors named layer.0"),
    "values of other requests": (f"{FILES} -n 3 --values {{0}}/z.safetensors", "shape (3, 12), a target vector"),
    "values that are no numbers": (f"{FILES} --values {{0}}/nan.safetensors", "some that are not finite"),
    "values kept nowhere": (f"{ON} --save-values {{0}}/nowhere/z", "--save-values to name a file in a folder"),
    "values kept in a folder": (f"{ON} --save-values {{0}}/full", "--save-values to name a file in a folder"),
    "mend without others": (f"{ON} --method mend", "expected records beyond the first N"),
    "mend with one that is none": (f"{OF}untrained.json --method mend -n 3", "got 0 in case 43"),
    "out that is not empty": (f"{ON} --out {{0}}/full", "{0}/full holds 'thesis.tex'"),
    "out that is a file": (f"{ON} --out {{0}}/facts.json", "expected --out to be a folder"),
    "json nowhere": (f"{ON} --json {{0}}/nowhere/a.json", "create {0}/nowhere first"),
    "corpus missing": (f"{ON} --corpus files:{{0}}/nowhere.txt", "must name a file or a folder that exists"),
    "unknown corpus": (f"{ON} --corpus wiki", "wiki"),
    "no texts": (f"{ON} --instances 0", "--instances to be 1 or more; got 0"),
    "no batch": (f"{ON} --batch-size 0", "--batch-size to be 1 or more; got 0"),
    "negative seed": (f"{ON} --seed -1", "--seed to be 0 or more; got -1"),
    "unknown dtype": (f"{ON} --dtype float8", "got 'float8'"),
    "unknown device": (f"{ON} --device tpu", "got 'tpu'"),
    "data folder not set": ("{0}/gpt2 --requests $KEMEM_DATA/a.json", "KEMEM_DATA, which is not set"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_one_line_before_any_weights_are_read(case, place, capfd, monkeypatch):
    def never(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("kemem.models.load", never)
    monkeypatch.delenv("KEMEM_DATA", raising=False)
    refused(*TABLE[case], place, capfd)


def test_moments_of_too_little_text_are_refused_before_the_search(place, tmp_path, capfd, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a search began")

    monkeypatch.setattr("kemem.editing.memit.values", never)
    (tmp_path / "text.txt").write_text("Rome")
    refused(f"{ON} --corpus files:{tmp_path}/text.txt", "measure them on more tokens", place, capfd)


def test_contexts_that_leave_no_room_are_refused_before_any_scores(place, capfd, monkeypatch):
    monkeypatch.setattr("kemem.editing.Judge.__call__", lambda *_, **__: pytest.fail("scores were taken"))
    command = "{0}/narrow --requests {0}/facts.json -n 1 --moments {0}/moments.safetensors"
    refused(command, "take shorter templates", place, capfd)


def test_ctrl_c_leaves_nothing(place, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kemem.editing.finetune.FineTune.__call__", stop)
    command = f"edit {ON} --method ft --out {tmp_path}/out --json {tmp_path}/a.json --device cpu"
    assert main(shlex.split(command.replace("{0}", str(place)))) == 130
    assert capsys.readouterr().err == "kemem: stopped; nothing was written; run the same command again.\n"
    assert not list(tmp_path.iterdir())


def refused(command: str, said: str, place: Path, capfd) -> None:
    asked = ["edit", *shlex.split(command.replace("{0}", str(place)))]
    assert main([*asked, *([] if "--device" in asked else ["--device", "cpu"])]) == 2
    shown = capfd.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("kemem: ") and said.replace("{0}", str(place)) in lines[0], lines[0]
    assert len(lines[0]) < 600 and not shown.out
