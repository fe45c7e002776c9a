"""The commands, with what they say and write. `kemem entropy` is held against plain hooks in float64."""

import ast
import errno
import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zstandard
from conftest import FAMILIES, GATED, MASKED, tiny
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from kemem.cli import main
from kemem.cli.chapter import combinations, file_name, values
from kemem.cli.comparison import differences
from kemem.cli.measuring import check_family
from kemem.cli.options import SCALES
from kemem.cli.pretraining import chosen, claim
from kemem.corpora import train_tokenizer
from kemem.errors import BadInput
from kemem.studies.lab import SCALES as KNOWN

TEXTS = (
    "The capital of a country is a city.",
    "A short one.",
    "Memories are written by the last projection of a layer, each of them a vector; keys decide how much.",
    "x",
    "Entropy counts how many are used, and it is at most the logarithm of their number.",
)
KEYS = [
    "model", "revision", "commit", "family", "layers", "entropy", "bound", "effective_share", "next_token_entropy",
    "attention_entropy", "tokens", "corpus", "coefficient", "padding",
]  # fmt: skip
DOWN = {
    **dict.fromkeys(("olmo", "olmo2", "llama", "qwen2", "qwen3"), "mlp.down_proj"),
    **dict.fromkeys(MASKED, "output.dense"),
    "gpt2": "mlp.c_proj",
    "gptj": "mlp.fc_out",
    "gpt_neox": "mlp.dense_4h_to_h",
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """save(family) -> a folder with a tiny model of it and the tokenizer."""
    made = {}

    def save(family: str, **changes) -> Path:
        key = (family, *sorted(changes.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            tiny(family, vocab=len(tokenizer), **changes).save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return made[key]

    return save


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "five.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return f"files:{path}"


def measured(model: Path | str, *arguments: object, place: Path) -> dict:
    """The one object of `kemem entropy MODEL ... --json`."""
    file = place / "found.json"
    assert main(["entropy", str(model), *map(str, arguments), "--device", "cpu", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    return row


def by_hooks(
    model: Path,
    texts=TEXTS,
    *,
    length: int = 64,
    magnitude=torch.abs,
    pad: int | None = None,
    attention=False,
) -> dict:
    """The same from torch's own hooks in float64, one text after the other, so that nothing is padded.

    pad: the token with which every text is filled up to `length`, all positions then counting. attention:
    look at its weights too, which transformers computes by another function, in it at one place in float32.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    family = config["model_type"]
    auto = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    net = auto.from_pretrained(
        model, dtype=torch.float64, **({"attn_implementation": "eager"} if attention else {})
    )
    names = [
        name
        for name, _ in net.named_modules()
        if name.endswith(DOWN[family])
        and "attention.output" not in name
        and ".layer" in f".{name}".replace(".h.", ".layer.")
    ]
    seen: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda module, given: seen.__setitem__(name, given[0][0])

    for name in names:
        net.get_submodule(name).register_forward_pre_hook(keep(name))
    usage, prediction, spread, tokens = 0.0, 0.0, 0.0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:length]
        tokens += len(ids)
        ids = ids if pad is None else ids + [pad] * (length - len(ids))
        with torch.no_grad():
            out = net(torch.tensor([ids]), output_attentions=attention)
        usage = usage + torch.stack([magnitude(seen[name]).mean(0) for name in names]) / len(texts)
        log_p = torch.log_softmax(out.logits[0], -1)
        prediction += float(-(log_p.exp() * log_p).sum(-1).mean()) / len(texts)
        if attention:
            heads = torch.stack(out.attentions)[:, 0]  # [L H T T]
            spread += float(torch.special.entr(heads).sum(-1).mean(-1).mean(1).sum()) / len(texts)
    share = usage / usage.sum(1, keepdim=True)
    layers = [float(-sum(p * math.log(p) for p in row if p > 0)) for row in share.tolist()]
    return {
        "layers": layers,
        "next_token": prediction,
        "attention": spread if attention else None,
        "tokens": tokens,
        "memories": share.shape[1],
    }


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No line about work that takes longer than 5 seconds, however slow the machine is."""
    monkeypatch.setenv("KEMEM_PROGRESS", "3600")


# ---------------------------------------------------------------------- kemem entropy
@pytest.mark.parametrize("square", [False, True], ids=["M", "M=D"])
@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_is_that_of_plain_hooks(family, square, folder, corpus, tmp_path):
    """Three texts of different lengths in a batch are padded in float32; float64 agrees to ten digits."""
    model = folder(family, square=square)
    for dtype, attention, tolerance in (
        ("float32", True, 1e-5),
        ("float64", False, 1e-10),
        ("float64", True, 1e-10),
    ):
        expected = by_hooks(model, attention=attention)
        asked = ["--attention"] * attention
        row = measured(model, "--corpus", corpus, "--dtype", dtype, "--batch-size", 3, *asked, place=tmp_path)
        assert list(row) == KEYS
        assert row["layers"] == pytest.approx(expected["layers"], abs=tolerance)
        assert row["entropy"] == pytest.approx(sum(expected["layers"]), abs=tolerance)
        assert row["next_token_entropy"] == pytest.approx(expected["next_token"], abs=tolerance)
        assert row["attention_entropy"] == pytest.approx(expected["attention"], abs=tolerance)
    memories, layers = expected["memories"], len(expected["layers"])
    assert row["bound"] == pytest.approx(layers * math.log(memories), abs=1e-12)
    assert row["effective_share"] == pytest.approx(math.exp(row["entropy"] / layers) / memories, abs=1e-12)
    given = {
        "model": str(model),
        "revision": None,
        "commit": None,
        "family": family,
        "tokens": expected["tokens"],
        "corpus": corpus,
    }
    assert {key: row[key] for key in given} == given
    assert (row["coefficient"], row["padding"]) == ("abs", "mask")


def test_with_the_blocks_on_the_disk_entropy_is_the_same(folder, corpus, tmp_path):
    asked = ("--corpus", corpus, "--attention", "--dtype", "float64", "--batch-size", 2)
    for family in ("olmo", "gpt2"):
        plain, streamed = (
            measured(folder(family), *asked, *more, place=tmp_path) for more in ((), ("--stream",))
        )
        assert streamed.pop("layers") == pytest.approx(plain.pop("layers"), rel=1e-12)
        numbers = ("entropy", "effective_share", "next_token_entropy", "attention_entropy")
        assert [streamed.pop(n) for n in numbers] == pytest.approx([plain.pop(n) for n in numbers], rel=1e-12)
        assert streamed == plain


def test_attention_is_null_when_not_asked_for(folder, corpus, tmp_path):
    row = measured(folder("olmo"), "--corpus", corpus, place=tmp_path)
    assert row["attention_entropy"] is None and row["next_token_entropy"] > 0


def test_coefficients_and_padding_as_released(folder, corpus, tmp_path):
    model = folder("llama")
    row = measured(model, "--corpus", corpus, "--coefficient", "relu", "--dtype", "float64", place=tmp_path)
    assert row["layers"] == pytest.approx(by_hooks(model, magnitude=torch.relu)["layers"], abs=1e-10)
    assert row["coefficient"] == "relu"
    gated = measured(model, "--corpus", corpus, "--coefficient", "relu-gate", place=tmp_path)
    assert gated["layers"] != pytest.approx(row["layers"], abs=1e-3)
    row = measured(
        model,
        "--corpus",
        corpus,
        "--padding",
        "include",
        "--length",
        40,
        "--dtype",
        "float64",
        place=tmp_path,
    )
    assert row["layers"] == pytest.approx(by_hooks(model, length=40, pad=1)["layers"], abs=1e-10)
    assert row["padding"] == "include"


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_tokenizer_with_special_tokens_and_types_changes_nothing(
    family, folder, tokenizer, corpus, tmp_path
):
    """GPT-2 would add token_type_ids to its embeddings without a word."""
    core = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <mask>", special_tokens=[("<|endoftext|>", 0), ("<mask>", 2)]
    )
    typed = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|padding|>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    plain, model = folder(family), tmp_path / "typed"
    tiny(family, vocab=len(tokenizer)).save_pretrained(model)
    typed.save_pretrained(model)
    said = AutoTokenizer.from_pretrained(model)("A short one.")
    assert "token_type_ids" in said and said["input_ids"][0] == 0
    found, expected = (
        measured(place, "--corpus", corpus, "--dtype", "float64", place=tmp_path) for place in (model, plain)
    )
    assert {**found, "model": None} == {**expected, "model": None}


def test_every_kind_of_file_gives_the_same(folder, corpus, tmp_path):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    plain = "\n\n".join(TEXTS).encode()  # empty lines are no instances
    for name, data in (
        ("a.txt", plain), ("b.txt.gz", gzip.compress(plain)), ("c.txt.zst", zstandard.compress(plain)),
        ("d.jsonl.gz", gzip.compress(lines)), ("e.jsonl.zst", zstandard.compress(lines)),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
    model = folder("gpt2")
    expected = {**measured(model, "--corpus", corpus, place=tmp_path), "corpus": None}
    for file in sorted(tmp_path.glob("?.*")):
        row = measured(model, "--corpus", f"files:{file}", place=tmp_path)
        assert row["corpus"] == f"files:{file}"
        assert {**row, "corpus": None} == expected


def test_the_first_instances_in_order_of_the_file(folder, corpus, tmp_path):
    model = folder("olmo")
    row = measured(model, "--corpus", corpus, "--instances", 2, "--dtype", "float64", place=tmp_path)
    assert row["layers"] == pytest.approx(by_hooks(model, TEXTS[:2])["layers"], abs=1e-10)


def test_a_length_beyond_the_context_is_cut_with_a_note(folder, corpus, tmp_path, capsys):
    model = folder("gptj")  # its context is 64
    row = measured(model, "--corpus", corpus, "--length", 4096, place=tmp_path)
    assert (
        "--length 4096 is beyond the model's context and was cut to it: 64 tokens" in capsys.readouterr().err
    )
    assert row == measured(model, "--corpus", corpus, "--length", 64, place=tmp_path)
    assert "beyond" not in capsys.readouterr().err


def test_short_lengths_cut_texts_and_say_how_many(folder, corpus, tmp_path, capsys):
    model = folder("olmo")
    row = measured(model, "--corpus", corpus, "--length", 3, "--dtype", "float64", place=tmp_path)
    assert "texts cut to 3 tokens: 4 of 5" in capsys.readouterr().err
    assert row["layers"] == pytest.approx(by_hooks(model, length=3)["layers"], abs=1e-10)
    assert row["tokens"] == 13


def test_texts_without_a_token_are_skipped_and_counted(folder, corpus, tmp_path, capsys):
    gaps = tmp_path / "gaps.jsonl"
    gaps.write_text(
        '{"text": ""}\n' + "".join(json.dumps({"text": text}) + '\n{"text": ""}\n' for text in TEXTS)
    )
    row = measured(folder("olmo"), "--corpus", f"files:{gaps}", "--instances", 5, place=tmp_path)
    assert "texts skipped, as they have no token: 5" in capsys.readouterr().err
    expected = measured(folder("olmo"), "--corpus", corpus, place=tmp_path)
    assert {**row, "corpus": None} == {**expected, "corpus": None}


@pytest.fixture
def stages(tmp_path, tokenizer) -> Path:
    for seed, name in enumerate(("step20", "step100")):
        tiny("olmo", vocab=len(tokenizer), seed=seed).save_pretrained(tmp_path / "run" / name)
        tokenizer.save_pretrained(tmp_path / "run" / name)
    return tmp_path / "run"


def test_revisions_of_a_folder_are_its_sub_folders(stages, corpus, tmp_path, capsys):
    command = ["entropy", str(stages), "--revision", "step20", "--revision", "step100", "--corpus", corpus]
    assert main([*command, "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)  # nothing but JSON there
    assert [row["revision"] for row in rows] == ["step20", "step100"]
    for row in rows:
        alone = measured(stages / row["revision"], "--corpus", corpus, place=tmp_path)
        assert row == {**alone, "model": str(stages), "revision": row["revision"]}


def test_without_json_a_table_is_shown(stages, corpus, tmp_path, capsys):
    row = measured(stages / "step20", "--corpus", corpus, place=tmp_path)
    assert not capsys.readouterr().out
    assert main(["entropy", str(stages), "--revision", "step20", "--corpus", corpus]) == 0
    shown = capsys.readouterr().out
    for number in (f"{row['entropy']:.4f}", f"{row['effective_share']:.2%}", f"{row['layers'][1]:.4f}"):
        assert number in shown


def test_what_was_measured_before_a_failure_is_kept(stages, corpus, tmp_path, capsys):
    (stages / "step100" / "model.safetensors").write_bytes(b"no weights")
    file = tmp_path / "found.json"
    command = ["entropy", str(stages), "--revision", "step20", "--revision", "step100", "--corpus", corpus]
    assert main([*command, "--json", str(file)]) == 2
    assert [row["revision"] for row in json.loads(file.read_text())] == ["step20"]
    said = capsys.readouterr().err
    assert "1 of 2 revisions" in said and said.splitlines()[-1].startswith("kemem: expected a model")


def test_float64_moves_to_the_cpu_where_the_device_has_none(folder, corpus, capsys, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    for device in ("mps", "auto"):
        command = [
            "entropy",
            str(folder("olmo")),
            "--corpus",
            corpus,
            "--dtype",
            "float64",
            "--device",
            device,
        ]
        assert main([*command, "--json", "-"]) == 0
        said = capsys.readouterr()
        assert "runs on the cpu" in said.err and json.loads(said.out)[0]["tokens"] > 0


def test_the_installed_command_works_from_any_folder(folder, corpus, tmp_path):
    kemem = Path(sys.executable).with_name("kemem")
    command = [kemem, "entropy", folder("gpt_neox"), "--corpus", corpus, "--json", "-", "--device", "cpu"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads(ran.stdout)
    expected = measured(folder("gpt_neox"), "--corpus", corpus, place=tmp_path)
    assert row["layers"] == pytest.approx(expected["layers"], abs=1e-6)


# ---------------------------------------------------------------------- endings
def test_ctrl_c_ends_with_130_and_one_line(folder, corpus, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kemem.entropy.measure", stop)
    assert main(["entropy", str(folder("olmo")), "--corpus", corpus]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "kemem: stopped; run the same command again."


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.ENOSPC])
def test_a_lost_network_or_a_full_disk_is_one_line(number, folder, corpus, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(number, "as the system says it")

    monkeypatch.setattr("kemem.models.load", fail)
    model = folder("olmo")
    capsys.readouterr()  # what writing it said
    assert main(["entropy", str(model), "--corpus", corpus]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kemem: ") and "as the system says it" in line


def test_json_is_written_whole_or_not_at_all(folder, corpus, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "found.json"
    file.write_text("before")
    monkeypatch.setattr("kemem.cli.terminal.os.replace", full)
    assert main(["entropy", str(folder("olmo")), "--corpus", corpus, "--json", str(file)]) == 2
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]
    assert "No space left" in capsys.readouterr().err


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("kemem 0.")
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("entropy", "pretrain", "run"))


def test_help_does_not_wait_for_heavy_libraries():
    """At the top of its modules only typer, the errors and the standard library are imported."""
    allowed = {*sys.stdlib_module_names, "typer"}
    for path in (Path(__file__).resolve().parents[1] / "kemem" / "cli").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                light = name.partition(".")[0] in allowed or name.startswith(("kemem.cli", "kemem.errors"))
                assert light, f"{path.name} imports {name}"


def test_scales_named_in_the_help_are_those_that_exist():
    assert tuple(SCALES.replace(" or ", ", ").split(", ")) == KNOWN


# ---------------------------------------------------------------------- kemem pretrain
@pytest.fixture(scope="module")
def own_text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("own") / "text.txt"
    lines = (
        f"Line {i} says that {i % 7} and {i % 11} make {i % 7 + i % 11}, as before." for i in range(1200)
    )
    path.write_text("\n".join(lines))
    return f"files:{path}"


def test_pretrain_on_own_text_then_measure_a_checkpoint(own_text, tmp_path, capsys):
    out, file = tmp_path / "deep" / "model", tmp_path / "found.json"
    command = [
        "pretrain",
        "--scale",
        "smoke",
        "--corpus",
        own_text,
        "--seed",
        "3",
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    assert main([*command, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    names = [stage["revision"] for stage in found["checkpoints"]]
    assert names[0] == "step0" and sorted(names) == sorted(path.name for path in out.glob("step*"))
    assert (found["model"], found["seed"], found["corpus"], found["scale"]) == (
        str(out),
        3,
        own_text,
        "smoke",
    )
    losses = [stage["loss"]["text"] for stage in found["checkpoints"]]
    assert losses[-1] < losses[0] - 0.3
    row = measured(out, "--revision", names[-1], "--corpus", own_text, "--instances", 20, place=tmp_path)
    assert row["revision"] == names[-1] and row["family"] == "olmo" and 0 < row["effective_share"] < 1
    capsys.readouterr()
    assert main(command) == 0  # finished: read, not repeated
    shown = capsys.readouterr().out
    assert f"trained for {found['seconds']:.0f} s" in shown and f"{losses[-1]:.3f}" in shown


def test_a_run_that_saved_nothing_gives_way(tmp_path):
    """A mistaken command has then lost nothing; one that saved a state is refused, with what differs."""
    first, second = (
        chosen("smoke", corpus=None, seed=seed, device="cpu", dtype=None, batch_size=None) for seed in (1, 2)
    )
    claim(tmp_path / "model", first, 1)
    claim(tmp_path / "model", second, 1)
    claim(tmp_path / "model", second, 1)
    (tmp_path / "model" / "step0").mkdir()
    claim(tmp_path / "model", second, 1)
    with pytest.raises(BadInput, match=r"holds another: seed \(2 there, 1 now\)"):
        claim(tmp_path / "model", first, 1)


def test_batch_size_bounds_memory_and_keeps_the_step(tmp_path):
    whole = chosen("smoke", corpus=None, seed=0, device="cpu", dtype=None, batch_size=None).setup
    parts = chosen("smoke", corpus=None, seed=0, device="cpu", dtype=None, batch_size=3).setup
    assert (whole.rows, whole.accumulation) == (8, 1)
    assert (parts.rows, parts.accumulation) == (8, 3)  # rows of 3, 3 and 2


def test_bfloat16_of_a_scale_falls_back_where_there_is_no_hardware(monkeypatch, capsys):
    monkeypatch.setattr("kemem.training.bfloat16_runs", lambda device: False)
    found = chosen("gpu", corpus=None, seed=0, device="cpu", dtype=None, batch_size=None).setup
    assert (found.precision, found.dtype) == ("float32", "float32")
    assert "does not compute in bfloat16" in capsys.readouterr().err
    monkeypatch.setattr("kemem.training.bfloat16_runs", lambda device: True)
    found = chosen("smoke", corpus=None, seed=0, device="cpu", dtype="bfloat16", batch_size=None).setup
    assert (found.precision, found.dtype) == ("bfloat16", "float32")


# ---------------------------------------------------------------------- kemem run
SMALL = '''# ---
# jupyter: {kernelspec: {name: python3, display_name: Python 3, language: python}}
# ---

# %% tags=["parameters"]
scale = "laptop"  # sizes
seed = 0  # where chance begins
gain = 1.0  # a factor

# %%
print("the same in all")
print(f"score {gain / (2 - seed):.3f} of 7 ({scale})")
'''  # fmt: skip


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout with one small chapter, in the place of this one."""
    root = tmp_path / "checkout"
    (root / "chapters").mkdir(parents=True)
    (root / "chapters" / "07_small.py").write_text(SMALL)
    monkeypatch.setattr("kemem.book.places.checkout", lambda: root)
    return root


def test_run_makes_a_notebook_a_combination_and_a_page(checkout, capsys):
    assert main(["run", "07", "--scale", "smoke", "-p", "seed=0,1,2", "-p", "gain=3"]) == 1
    said = capsys.readouterr()
    folder = checkout / "_build" / "runs" / "07_small"
    names = [file_name("07_small", {"seed": seed, "gain": 3, "scale": "smoke"}) for seed in (0, 1, 2)]
    made = [folder / f"{names[0]}.ipynb", folder / f"{names[1]}.ipynb", folder / f"{names[2]}.failed.ipynb"]
    page = folder / "comparison.md"
    assert sorted(folder.iterdir()) == sorted([*made, page])
    assert said.out.split() == [str(path) for path in (*made, page)]
    assert said.err.count("ZeroDivisionError") == 1 and said.err.count("...") == 3
    lines = page.read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if "[07_small_" in line]
    assert [row[:3] for row in rows] == [["0", "3", "smoke"], ["1", "3", "smoke"], ["2", "3", "smoke"]]
    assert [row[3] for row in rows] == [f"[{path.name}]({path.name})" for path in made]
    assert all(float(row[4]) > 0 for row in rows)
    assert [row[-1] == "finished" for row in rows] == [True, True, False]
    assert "| printed | seed = 0 | seed = 1 |" in lines
    assert "| score … of … (smoke) | 1.500 7 | 3.000 7 |" in lines
    assert "Lines that differ; 1 more are the same in all." in lines


def test_run_refuses_in_one_line_outside_a_checkout(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "kemem.book.places.__file__", str(tmp_path / "site-packages" / "kemem" / "book" / "places.py")
    )
    assert main(["run", "03", "--scale", "smoke"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kemem: a chapter needs a checkout")


def test_values_of_parameters():
    assert values(["seed=0,1,2", "gain=1,2.5"]) == {"seed": [0, 1, 2], "gain": [1, 2.5]}
    assert values(["layers=[1,2],[3]", "model=None", "on=true", "name=a b"]) == {
        "layers": [[1, 2], [3]], "model": [None], "on": [True], "name": ["a b"],
    }  # fmt: skip
    several = values(["corpus=world:people=3,documents=4,docstrings:numpy,scipy,files:/a,b", "corpus=world"])
    assert several == {
        "corpus": ["world:people=3,documents=4", "docstrings:numpy,scipy", "files:/a,b", "world"]
    }


def test_combinations_are_all_and_each_has_its_own_name():
    found = combinations(values(["seed=0,1", "gain=1,2", "corpus=world:people=3,world:people=4"]))
    assert len(found) == 8 and found[0] == {"seed": 0, "gain": 1, "corpus": "world:people=3"}
    names = {file_name("03_x", each) for each in found} | {file_name("03_x", {"corpus": "world-people=3"})}
    assert len(names) == 9 and all("/" not in name for name in names)


def test_differences_of_printed_lines():
    first = {("a", 0): "loss 1.25 after 3 steps", ("a", 1): "fine", ("b", 0): "holds"}
    second = {("a", 0): "loss -2e-3 after 3 steps", ("a", 1): "fine", ("b", 0): "fails", ("b", 1): "new"}
    rows, equal = differences([first, second])
    assert equal == 1
    assert rows == [["loss … after … steps", "1.25 3", "-2e-3 3"], ["", "holds", "fails"], ["", "", "new"]]


def test_gated_families_are_told_from_their_rows():
    for family in FAMILIES:
        if family in GATED:
            check_family(family, "relu-gate")
        else:
            with pytest.raises(BadInput, match="relu-gate needs a gated model"):
                check_family(family, "relu-gate")
