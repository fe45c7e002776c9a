"""`kemem acquire` against calls of the package on the same files, broken off and started again, and what it says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import passage_record as record
from conftest import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from kemem import corpora, models
from kemem.cli import main
from kemem.cli.acquiring import settle
from kemem.corpora import train_tokenizer
from kemem.entropy import GROUPS, acquire, acquisition, forgetting, passages, probe, schedule
from kemem.evaluation import cloze
from kemem.training import Domain, Recipe

AGAIN = [
    record("Ada Vell", "Norhaven", "the year 2131"),
    record("Bo", "Quill-on-the-Water", "May", hard=0),
]
ONCE = [
    record("Dee", "Ostermark", "June", hard=2),
    record("Eli", "Ur", "the year 7", paraphrases=0),
]
TASKS = [
    {"prompt": "The sky is", "candidates": ["blue", "green", "a city"], "answer": "blue", "task": "sky"},
    {"prompt": "A line is", "candidates": ["long", "short"], "answer": 1, "task": "lines"},
    {"prompt": "Line 3 of", "candidates": ["Norhaven", "a text"], "answer": 1, "task": "lines"},
    {"prompt": "Another", "candidates": ["line", "text"], "answer": "line"},
    {"prompt": "Line 3 says", "candidates": ["that", "Ur", "in", "spring"], "answer": "that"},
    {"prompt": "make 6, as", "candidates": ["before.", "after.", "in May."], "answer": 0},
    {"prompt": "5 and 5", "candidates": ["Ada", "make", "and"], "answer": "make", "task": "lines"},
]
STEPS, BATCH, LENGTH, RATE = 9, 5, 48, 3e-2


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No line about work that takes longer than 5 seconds, however slow the machine is."""
    monkeypatch.setenv("KEMEM_PROGRESS", "3600")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny model, its text, passages and tasks."""
    root = tmp_path_factory.mktemp("place")
    lines = [f"Line {i} says that {i % 7} and {i % 11} make {i % 7 + i % 11}, as before." for i in range(300)]
    told = [text for each in (*AGAIN, *ONCE) for text in (each["train_context"], *each["paraphrases"])]
    tokenizer = train_tokenizer([*lines, *told], 330)
    tiny("olmo", vocab=len(tokenizer)).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "text.txt").write_text("\n".join(lines))
    (root / "again.json").write_text(json.dumps(AGAIN))
    (root / "once.json").write_text(json.dumps(ONCE))
    (root / "tasks.jsonl").write_text("\n".join(map(json.dumps, TASKS)) + "\n\n")
    return root


def command(place: Path, *more: object, steps: int = STEPS, rate: float = RATE) -> list[str]:
    fixed = [
        "acquire", place / "model", "--passages", place / "again.json", "--corpus", f"files:{place}/text.txt",
        "--steps", steps, "--lr", rate, "--batch", BATCH, "--length", LENGTH, "--device", "cpu",
    ]  # fmt: skip
    return [str(each) for each in (*fixed, *more)]


def made(place: Path, capsys, *more: object, **settings: Any) -> dict[str, Any]:
    """The object of --json."""
    assert main(command(place, *more, "--json", "-", **settings)) == 0
    return json.loads(capsys.readouterr().out)


def timeless(document: dict[str, Any], *settings: str) -> dict[str, Any]:
    """Without how long it took and some settings."""
    kept = {name: value for name, value in document["settings"].items() if name not in settings}
    return {**document, "seconds": None, "settings": kept}


ALL = (
    "--once",
    "{0}/once.json",
    "--tasks",
    "{0}/tasks.jsonl",
    "--seed",
    3,
    "--interval",
    2,
    "--dtype",
    "float64",
)


def everything(place: Path) -> list[str]:
    return [str(each).format(place) for each in ALL]


@pytest.fixture(scope="module")
def direct(place):
    """The same run by calls of the package: model, what it was before, passages, Acquired."""
    (net, tokenizer), (start, _) = (
        models.load(str(place / "model"), device="cpu", dtype="float64") for _ in range(2)
    )
    told = (*passages(place / "again.json", "paraphrase"), *passages(place / "once.json", "once"))
    text = corpora.corpus(f"files:{place}/text.txt").texts
    rows = corpora.pack(text, tokenizer, LENGTH, seed=3, limit_tokens=STEPS * BATCH * LENGTH)
    recipe = Recipe(
        steps=STEPS, batch_size=BATCH, learning_rate=RATE, warmup_steps=round(0.05 * STEPS), final_share=0.1,
        schedule="cosine", weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-5, clip=1.0, seed=3,
    )  # fmt: skip
    plan = schedule(told, tokenizer, slots=3, interval=2)
    found = acquire(net, Domain("text", rows), plan, recipe, tokenizer=tokenizer, passages=told, batch_size=8)
    return net, start, tokenizer, told, found


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The run with everything asked for: its JSON and its folder."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEMEM_PROGRESS", "3600")
        asked = command(place, *everything(place), "--out", root / "out", "--json", root / "found.json")
        assert main(asked) == 0
    return json.loads((root / "found.json").read_text()), root / "out"


def test_values_are_those_of_the_package(whole, direct):
    found, _ = whole
    _, start, tokenizer, told, learnt = direct
    assert list(found) == ["K", "A", "A_by", "P", "P_by", "F", "injected", "lost", "seconds", "settings"]
    assert set(found["K"]) == {"all", "paraphrase", "once"}
    before = probe(start, tokenizer, told)
    for group, kinds in found["K"].items():
        assert set(kinds) == {"all", "memorisation", "semantic", "composition"}
        for kind, known in kinds.items():
            after = learnt.knowledge(STEPS, group=group, kind=kind)
            assert known == {"before": learnt.knowledge(0, group=group, kind=kind), "after": after}
            assert known["before"] == pytest.approx(before.knowledge(group=group, kind=kind), abs=1e-12)
        assert found["A_by"][group] == acquisition(**kinds["all"]) == learnt.acquisition(group=group)
    assert found["A"] == learnt.acquisition() != 0
    assert (found["injected"], found["lost"]) == (learnt.injected, learnt.lost)


def test_forgetting_is_the_share_lost_of_the_mean_over_tasks(whole, direct):
    """Equal weight to each task: two questions of one task count as much as the one of another."""
    found, _ = whole
    net, start, tokenizer, *_ = direct
    for when, model in (("before", start), ("after", net)):
        right: dict[str, list[float]] = {}
        for each in TASKS:
            answer = each["answer"]
            number = answer if isinstance(answer, int) else each["candidates"].index(answer)
            one = cloze(model, tokenizer, [each["prompt"]], [each["candidates"]], [number]).accuracy
            right.setdefault(each.get("task", "questions"), []).append(one)
        means = {name: sum(each) / len(each) for name, each in right.items()}
        assert {name: each[when] for name, each in found["P_by"].items()} == means
        assert found["P"][when] == pytest.approx(sum(means.values()) / 3, abs=1e-12)
    before, after = found["P"]["before"], found["P"]["after"]
    assert before != after
    assert found["F"] == forgetting(before, after) == pytest.approx(-(after - before) / before)


def test_settings_are_what_it_ran_with(whole, place):
    found, out = whole
    assert found["settings"] == {
        "model": str(place / "model"), "revision": None, "family": "olmo", "corpus": f"files:{place}/text.txt",
        "passages": f"{place}/again.json", "once": f"{place}/once.json", "probes": None,
        "tasks": f"{place}/tasks.jsonl", "steps": STEPS, "lr": RATE, "batch": BATCH, "interval": 2, "slots": 3,
        "seed": 3, "length": LENGTH, "dtype": "float64", "precision": "float32", "accumulation": 1,
        "corpus_digest": corpora.corpus(f"files:{place}/text.txt").digest, "rows": STEPS * BATCH, "passes": 1.0,
        "warmup_steps": 0, "schedule": "cosine", "final_share": 0.1, "weight_decay": 0.1, "betas": [0.9, 0.95],
        "epsilon": 1e-5, "clip": 1.0, "batch_size": 8, "device": "cpu", "out": str(out),
    }  # fmt: skip


def test_the_folder_opens_and_is_the_trained_model(whole, direct):
    _, out = whole
    net, _, tokenizer, *_ = direct
    written = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert all(torch.equal(written[name], tensor) for name, tensor in net.state_dict().items())
    text = "Ada Vell was born"
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == tokenizer(text)["input_ids"]
    inside = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "settings.json", "state"} <= inside
    assert not [name for name in inside if name.startswith("step")]


@pytest.mark.parametrize("stop", [5, STEPS])
def test_stopped_anywhere_the_same_command_ends_in_the_same_numbers(
    stop, whole, place, tmp_path, capsys, monkeypatch
):
    asked = [*everything(place), "--out", tmp_path / "out"]

    def stopping(title: str):
        def report(done: int, total: int, message: str) -> None:
            steps.append(done)
            if done == stop and not again:
                raise KeyboardInterrupt

        return report

    steps: list[int] = []
    again = False
    monkeypatch.setattr("kemem.cli.acquiring.progress", stopping)
    assert main(command(place, *asked)) == 130
    assert "stopped; with --out the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists()  # what is not finished is no model yet
    again, steps = True, []
    found = made(place, capsys, *asked)
    assert steps[0] == stop  # from the state of the step before
    assert timeless(found, "out") == timeless(whole[0], "out")
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (whole[1] / name).read_bytes()


def test_a_finished_run_is_read_and_another_refused(whole, place, capsys, monkeypatch):
    found, out = whole
    monkeypatch.setattr("kemem.training.loop._Run.step", lambda self: pytest.fail("trained"))
    weights = (out / "model.safetensors").read_bytes()
    assert made(place, capsys, *everything(place), "--out", out) == found
    for more, said in (
        (("--seed", 4), "seed (3 there, 4 now)"),
        (("--batch-size", 2), "accumulation (1 there, 3 now)"),
    ):
        assert main(command(place, *everything(place), *more, "--out", out)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "holds another: " in line and said in line
    text = (place / "tasks.jsonl").read_text()
    try:
        (place / "tasks.jsonl").write_text(text.replace("green", "red"))
        assert main(command(place, *everything(place), "--out", out)) == 2
    finally:
        (place / "tasks.jsonl").write_text(text)
    assert "contents" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == weights


def test_settling_that_was_cut_off_is_finished(tmp_path):
    for name in ("step0/config.json", "step7/config.json", "step7/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "tokenizer.json").write_text("moved before")
    settle(tmp_path, 7)
    settle(tmp_path, 7)
    assert (tmp_path / "config.json").read_text() == "step7/config.json"
    files = {path.name for path in tmp_path.iterdir() if path.name != ".lock"}
    assert files == {"config.json", "model.safetensors", "tokenizer.json"}


def test_rows_in_memory_change_nothing(whole, place, capsys):
    one = made(place, capsys, *everything(place), "--batch-size", 1)
    assert one["settings"]["accumulation"] == BATCH
    for group, kinds in whole[0]["K"].items():
        for kind, known in kinds.items():
            assert one["K"][group][kind] == pytest.approx(known, abs=1e-6)
    assert one["A_by"] == pytest.approx(whole[0]["A_by"], abs=1e-6)
    assert one["P"] == whole[0]["P"] and one["settings"]["out"] is None


def test_without_the_options_the_defaults_of_the_paper(place, tmp_path, capsys, monkeypatch):
    """Nothing is kept, F is null, and there are as many slots as every passage has tellings."""
    monkeypatch.chdir(tmp_path)
    files = sorted(place.rglob("*"))
    assert main(command(place, "--json", tmp_path / "found.json")) == 0
    shown = capsys.readouterr()
    assert not shown.out and "told in 3 slots, not 10: a passage has no more tellings" in shown.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["F"], found["P"], found["P_by"]) == (None, None, None)
    settings = found["settings"]
    assert (settings["slots"], settings["interval"], settings["seed"]) == (3, STEPS // 3, 0)
    assert (settings["tasks"], settings["once"], settings["out"]) == (None, None, None)
    assert set(found["K"]) == {"all", "paraphrase"} and found["K"]["all"] == found["K"]["paraphrase"]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"] and sorted(place.rglob("*")) == files


def test_probes_of_another_file_are_asked_instead(place, tmp_path, capsys):
    """What is told stays; a record that is told counts to its group, what is not to the paraphrased ones."""
    asked = [*ONCE, record("Flo", "Wend", "autumn")]
    (tmp_path / "probes.json").write_text(json.dumps(asked))
    fixed = ["--once", f"{place}/once.json", "--seed", 1]
    found, own = (made(place, capsys, *fixed, *more) for more in (["--probes", tmp_path / "probes.json"], []))
    assert found["injected"] == own["injected"] and found["settings"]["probes"] == f"{tmp_path}/probes.json"
    assert found["K"]["once"] == {
        kind: {when: pytest.approx(value, abs=1e-6) for when, value in known.items()}
        for kind, known in own["K"]["once"].items()
    }
    model, tokenizer = models.load(str(place / "model"), device="cpu")
    new = probe(model, tokenizer, passages(asked[2:], "paraphrase")).knowledge()
    assert found["K"]["paraphrase"]["all"]["before"] == pytest.approx(new, abs=1e-6)


def test_the_folder_of_released_files_is_both_groups(place, tmp_path, capsys):
    (tmp_path / GROUPS["paraphrase"]).write_text(json.dumps(AGAIN))
    (tmp_path / GROUPS["once"]).write_text(json.dumps(ONCE))
    two = made(place, capsys, "--once", place / "once.json")
    one = made(place, capsys, "--passages", tmp_path)
    assert timeless(one, "passages", "once") == timeless(two, "passages", "once")


def test_without_json_a_table_is_shown_and_slow_work_is_said(place, capsys, monkeypatch):
    monkeypatch.setenv("KEMEM_PROGRESS", "0")
    assert main(command(place, *everything(place))) == 0
    shown = capsys.readouterr()
    rows = [line.split() for line in shown.out.splitlines()]
    assert [row[:2] for row in rows if len(row) == 4 and row[0] in ("all", "paraphrase", "once")] == [
        [group, kind]
        for group in ("all", "paraphrase", "once")
        for kind in ("all", "memorisation", "semantic", "composition")
    ]
    assert "acquired, A: all " in shown.out and "forgotten, F: " in shown.out
    assert f"{STEPS} steps of {BATCH} rows of {LENGTH} tokens" in shown.out
    assert f"training {place}/model: {STEPS} of {STEPS} loss" in shown.err
    assert f"measuring what {place}/model knows ..." in shown.err
    assert "measuring what it knows now ..." in shown.err


def test_a_length_beyond_the_context_is_cut_and_lost_tokens_are_said(place, capsys):
    assert main(command(place, "--length", 4096, "--json", "-")) == 0
    shown = capsys.readouterr()
    assert "--length 4096 is beyond the model's context and was cut to it: 64 tokens" in shown.err
    assert json.loads(shown.out)["settings"]["length"] == 64
    assert main(command(place, "--length", 16, "--json", "-")) == 0
    shown = capsys.readouterr()
    lost = json.loads(shown.out)["lost"]
    assert lost > 0 and f"a row has 16 tokens: {lost} of passages are beyond its end" in shown.err


def test_bfloat16_is_over_float32_weights(place, capsys, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)  # without it, only slower
    found, exact = (made(place, capsys, "--dtype", dtype) for dtype in ("bfloat16", "float32"))
    assert (found["settings"]["dtype"], found["settings"]["precision"]) == ("float32", "bfloat16")
    before, after = (found["K"]["all"]["all"][when] for when in ("before", "after"))
    assert before == exact["K"]["all"]["all"]["before"]  # measured in float32
    assert after == pytest.approx(exact["K"]["all"]["all"]["after"], abs=0.05) != before


def test_a_share_of_nothing_is_null_with_a_note(place, tmp_path, capsys):
    """No question answered right before: none can be forgotten, and the rest of the run is kept."""
    wrong = {**TASKS[0], "answer": "blue"}
    net, tokenizer = models.load(str(place / "model"), device="cpu")
    scores = cloze(net, tokenizer, [wrong["prompt"]], [wrong["candidates"]], [0]).scores[0]
    wrong["answer"] = int(scores.argmin())
    (tmp_path / "hard.jsonl").write_text(json.dumps(wrong))
    assert main(command(place, "--tasks", tmp_path / "hard.jsonl", "--json", "-")) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["F"] is None and found["P"]["before"] == 0 and math.isfinite(found["A"])
    assert "F is null: forgetting is a share of the score before" in shown.err


def test_a_run_that_blows_up_is_one_line(place, tmp_path, capsys):
    """Its last loss is that before the update, so only what is measured then shows it."""
    more = ("--slots", 1, "--out", tmp_path / "out")
    assert main(command(place, *more, steps=1, rate=1e38)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected finite log-probabilities; got others after 1 steps; lower learning_rate" in line
