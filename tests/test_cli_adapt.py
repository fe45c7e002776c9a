"""`kemem adapt` against calls of the package on the same domains, broken off and started again, and what it refuses."""

import gzip
import hashlib
import json
import math
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from kemem import corpora, evaluation, models
from kemem.cli import main
from kemem.cli.adapting import adapt
from kemem.cli.courses import mean, numbers, settle
from kemem.cli.domains import TESTED, places, split_specs
from kemem.continual import Course, learn, pooled
from kemem.continual.domains import REAL, held, named
from kemem.continual.finetuning import FineTuning, Probing, asked
from kemem.continual.named import LEARNERS, Given, method, settings_of
from kemem.corpora import train_tokenizer
from kemem.errors import BadInput
from kemem.objective import Causal, Masked
from kemem.training import History, Method, Recipe

STEPS, BATCH, LENGTH, RATE = 3, 4, 16, 3e-2
RECIPE = Recipe(
    steps=STEPS, batch_size=BATCH, learning_rate=RATE, warmup_steps=round(0.1 * STEPS), final_share=1 / STEPS,
    schedule="linear", weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-6, clip=0.0,
)  # fmt: skip
LINES = {
    "sums": [
        f"Line {i} says that {i % 7} and {i % 11} make {i % 7 + i % 11}, as before." for i in range(200)
    ],
    "towns": [
        f"In {1000 + i} the town of Number {i * 7 % 13} built {i % 5} towers and a wall." for i in range(200)
    ],
    "meals": [f"Take {i % 9} eggs and {i % 4} cups of flour, wait {i} minutes." for i in range(200)],
}
PLACES = [f"world:people=60,seed=1,documents=150,within={name}" for name in ("Drareria", "Tatovia")]
KEYS = [
    "domains", "method", "loss", "before", "task", "task_before", "forgetting", "average", "forward_transfer",
    "general_loss", "seconds", "parameters_added", "per_seed", "settings",
]  # fmt: skip


made_once = cache(named)


def source(spec: str) -> Any:
    return made_once(spec) if spec in PLACES else named(spec)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No line about work that takes longer than 5 seconds, however slow the machine is. Worlds are made once."""
    monkeypatch.setenv("KEMEM_PROGRESS", "3600")
    monkeypatch.setattr("kemem.continual.domains.named", source)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with tiny models and the text of three domains."""
    root = tmp_path_factory.mktemp("place")
    tokenizer = train_tokenizer([line for lines in LINES.values() for line in lines], 330)
    for family in ("olmo", "llama", "roberta", "gpt2"):  # the last two with dropout
        tiny(family, vocab=len(tokenizer)).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    tiny("olmo", vocab=len(tokenizer), context=8).save_pretrained(root / "short")
    tokenizer.save_pretrained(root / "short")
    tiny("roberta", vocab=len(tokenizer)).save_pretrained(root / "maskless")
    maskless = AutoTokenizer.from_pretrained(root / "olmo")
    maskless.mask_token = None
    maskless.save_pretrained(root / "maskless")
    tiny("olmo").save_pretrained(root / "speechless")
    (root / "opt").mkdir()
    (root / "opt" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    (root / "other").mkdir()
    (root / "other" / "thesis.tex").write_text("mine")
    for name, lines in LINES.items():
        (root / f"{name}.txt").write_text("\n".join(lines))
    (root / "copy.txt").write_text("\n".join(LINES["sums"]))
    (root / "brief.txt").write_text("\n".join(LINES["meals"][:3]))
    (root / "few.txt").write_text("\n".join(LINES["meals"][:60]))
    (root / "latin.txt").write_bytes("naïve\n".encode("latin-1"))
    return root


def files(place: Path, *names: str) -> str:
    return ",".join(f"files:{place}/{name}.txt" for name in names or ("sums", "towns"))


def command(
    place: Path, *more: object, model: str = "olmo", name: str = "ncl", domains: str = ""
) -> list[str]:
    fixed = [
        "adapt", place / model, "--domains", domains or files(place), "--method", name, "--steps", STEPS, "--lr", RATE,
        "--batch", BATCH, "--length", LENGTH, "--device", "cpu",
    ]  # fmt: skip
    return [str(each) for each in (*fixed, *more)]


def made(place: Path, capsys, *more: object, **settings: Any) -> dict[str, Any]:
    """The object of --json."""
    assert main(command(place, *more, "--json", "-", **settings)) == 0
    return json.loads(capsys.readouterr().out)


def timeless(value: Any) -> Any:
    """Without how long it took and where it was written."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in ("seconds", "out")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def opened(folder: Path, auto: Any = AutoModelForCausalLM) -> Any:
    return auto.from_pretrained(folder, dtype="auto").eval()


def texts(place: Path, specs: list[str], model: str = "olmo") -> list[Any]:
    """The rows of domains, by calls of the package."""
    tokenizer = AutoTokenizer.from_pretrained(place / model)
    limit = STEPS * BATCH * LENGTH
    return [held(source(spec), tokenizer, LENGTH, limit_tokens=limit, test_tokens=TESTED) for spec in specs]


# ---------------------------------------------------------------------- the numbers
ALL = (
    "--order 2,1 --seeds 2 --seed 3 --general files:{0}/meals.txt --dtype float64 --set samples=6 --set weight=0.5 "
    "--batch-size 3"
)


def everything(place: Path) -> tuple[dict[str, Any], list[str]]:
    """DAS on a model with dropout, on two places of a world with their end tasks, with all that can be asked for."""
    return {"model": "gpt2", "name": "das", "domains": ",".join(PLACES)}, shlex.split(ALL.format(place))


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The run with everything asked for: its JSON and its folder."""
    root = tmp_path_factory.mktemp("whole")
    settings, more = everything(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEMEM_PROGRESS", "3600")
        patch.setattr("kemem.continual.domains.named", source)
        asked = command(place, *more, "--out", root / "out", "--json", root / "found.json", **settings)
        assert main(asked) == 0
    return json.loads((root / "found.json").read_text()), root / "out"


@pytest.fixture(scope="module")
def direct(place) -> list[tuple[Course, Any]]:
    """The same by calls of the package: a course and the trained model of each seed."""
    specs = PLACES[::-1]
    domains = texts(place, specs, "gpt2")
    found = []
    for seed in (3, 4):
        net, tokenizer = models.load(str(place / "gpt2"), device="cpu", dtype="float64")
        general = corpora.pack(corpora.corpus(f"files:{place}/meals.txt").part("test"), tokenizer, LENGTH)
        das = method("das", Given(STEPS, 64, seed=seed), samples=6, weight=0.5)
        tasks = {each.name: each.task for each in map(source, specs)}
        course = learn(
            net, domains, das, replace(RECIPE, seed=seed, accumulation=2), general=general, batch_size=3,
            ask=asked(tasks, Probing(length=LENGTH), tokenizer),
        )  # fmt: skip
        found.append((course, net))
    return found


def test_values_are_those_of_the_package(whole, direct):
    found, _ = whole
    assert list(found) == KEYS and found["method"] == "das" and found["domains"] == ["Tatovia", "Drareria"]
    for each, seed, (course, _) in zip(found["per_seed"], (3, 4), direct, strict=True):
        assert each["seed"] == seed
        assert (each["loss"], each["before"]) == (course.loss, course.before)
        assert (each["task"], each["task_before"]) == (course.task, course.task_before)
        assert each["general_loss"] == {"before": course.general[0], "after": course.general[1:]}
        for name in ("forgetting", "average", "forward_transfer"):
            assert each[name] == getattr(course, name), name
        assert each["parameters_added"] == course.added == [0, 0] and len(each["seconds"]) == 2
    assert found["per_seed"][0]["loss"] != found["per_seed"][1]["loss"]


def test_what_is_above_the_seeds_is_their_mean(whole):
    found, _ = whole
    first, second = found["per_seed"]
    close = {"rel": 1e-14, "abs": 1e-14}
    for name in ("loss", "task"):
        for i in range(2):
            for j in range(2):
                value = (first[name][i][j] + second[name][i][j]) / 2
                assert found[name][i][j] == pytest.approx(value, **close)
    for name in ("forgetting", "average", "forward_transfer"):
        assert found[name] == pytest.approx((first[name] + second[name]) / 2, **close)
    loss, before = found["loss"], found["before"]
    assert found["forgetting"] == pytest.approx(loss[0][1] - loss[0][0], abs=1e-12)
    assert found["average"] == pytest.approx((loss[0][1] + loss[1][1]) / 2, abs=1e-12)
    assert found["forward_transfer"] == pytest.approx(before[1] - loss[1][0], abs=1e-12)
    assert before == pytest.approx(first["before"]) and found["task_before"] == pytest.approx(
        first["task_before"]
    )
    after = [
        (a + b) / 2 for a, b in zip(*(each["general_loss"]["after"] for each in (first, second)), strict=True)
    ]
    assert found["general_loss"]["after"] == pytest.approx(after, **close)
    assert mean([None, None]) is None and mean([[1, None], [3, None]]) == [2, None]


def test_settings_are_what_it_ran_with(whole, place):
    found, out = whole
    sources = [source(spec) for spec in PLACES[::-1]]
    das = method("das", Given(STEPS, 64, seed=3), samples=6, weight=0.5)
    domains = texts(place, PLACES[::-1], "gpt2")
    general = corpora.corpus(f"files:{place}/meals.txt")
    assert found["settings"] == {
        "model": str(place / "gpt2"), "revision": None, "family": "gpt2", "method": "das", "variant": "",
        "of_method": settings_of(das), "schedule": "sequence", "domains": PLACES[::-1], "order": [2, 1],
        "digests": [each.corpus.digest for each in sources], "general": f"files:{place}/meals.txt",
        "general_digest": general.digest, "tasks": "probe", "end_tasks": [repr(each.task) for each in sources],
        "seeds": 2, "seed": 3, "steps": STEPS, "lr": RATE, "batch": BATCH, "length": LENGTH,
        "limit": STEPS * BATCH * LENGTH, "objective": "Causal()", "dtype": "float64", "precision": "float32",
        "accumulation": 2, "rows": [12, 12], "test_rows": [len(each.test) for each in domains],
        "general_rows": found["settings"]["general_rows"], "warmup_steps": 0, "schedule_of_rate": "linear",
        "final_share": 1 / STEPS, "weight_decay": 0.0, "betas": [0.9, 0.999], "epsilon": 1e-6, "clip": 0.0,
        "batch_size": 3, "device": "cpu", "out": str(out),
    }  # fmt: skip
    assert found["settings"]["of_method"]["samples"] == 6 and found["settings"]["general_rows"] > 3


def test_the_folders_open_and_are_the_trained_models(whole, direct):
    _, out = whole
    for seed, (_, net) in zip((3, 4), direct, strict=True):
        written = opened(out / f"seed{seed}").state_dict()
        assert all(torch.equal(written[name], tensor) for name, tensor in net.state_dict().items())
        assert AutoTokenizer.from_pretrained(out / f"seed{seed}")("A wall")["input_ids"]
    inside = sorted(str(path.relative_to(out)) for path in (out / "state").rglob("*") if path.is_file())
    assert inside == ["state/steps/seed3.json", "state/steps/seed4.json"]  # no work is left


def test_a_seed_alone_is_the_same_seed_among_others(whole, place, capsys):
    settings, more = everything(place)
    one = made(place, capsys, *more, "--seeds", 1, "--seed", 4, **settings)
    assert timeless(one["per_seed"]) == timeless(whole[0]["per_seed"][1:])
    assert one["settings"]["out"] is None


def test_the_order_is_that_of_learning(place, capsys):
    specs = ["sums", "towns", "meals"]
    one = made(place, capsys, "--order", "3, 1,2", domains=files(place, *specs))
    two = made(place, capsys, domains=files(place, "meals", "sums", "towns"))
    assert one["settings"].pop("order") == [3, 1, 2] and two["settings"].pop("order") == [1, 2, 3]
    assert timeless(one) == timeless(two)
    assert [name.rpartition("_")[2] for name in one["domains"]] == ["meals.txt", "sums.txt", "towns.txt"]
    assert one["settings"]["domains"] == files(place, "meals", "sums", "towns").split(",")


# ---------------------------------------------------------------------- every method
@pytest.mark.parametrize("name", LEARNERS)
def test_every_method_runs_on_an_olmo_and_leaves_a_model_that_opens(name, place, tmp_path, capsys):
    assert (
        main(
            command(
                place, "--steps", 2, "--out", tmp_path, "--json", tmp_path.with_suffix(".json"), name=name
            )
        )
        == 0
    )
    said = capsys.readouterr().err
    found = json.loads(tmp_path.with_suffix(".json").read_text())
    assert list(found) == KEYS and found["task"] is found["task_before"] is found["general_loss"] is None
    assert [len(row) for row in found["loss"]] == [2, 2]
    assert all(0 < loss < 20 for row in found["loss"] for loss in row)
    assert [len(found[key]) for key in ("before", "seconds", "parameters_added")] == [2, 2, 2]
    assert all(isinstance(added, int) for added in found["parameters_added"])
    last = texts(place, files(place).split(","))[-1].test
    folder = tmp_path / found["domains"][-1] if name == "one" else tmp_path
    net = opened(folder)
    assert AutoTokenizer.from_pretrained(folder)("A wall")["input_ids"]
    if "without the modules beside the model" in said:
        assert name not in ("ncl", "one", "pool", "ewc", "kd", "replay", "derpp", "lora", "das")
        assert (
            opened(folder).num_parameters()
            < sum(found["parameters_added"]) + opened(place / "olmo").num_parameters()
        )
    else:
        assert evaluation.loss(net, last) == pytest.approx(found["loss"][1][1], abs=1e-5)
        assert name == "lora" or not sum(found["parameters_added"])
    assert sorted(path.name for path in (tmp_path / "state" / "steps").iterdir()) == ["seed0.json"]


def test_the_manual_names_every_method():
    manual = " ".join(adapt.__doc__.split())
    listed = manual[manual.index("NAME is ") : manual.index(" Each begins")].removeprefix("NAME is ")
    bare = re.sub(r" \([^)]*\)", "", listed).rstrip(".").replace(" or ", ", ")
    assert bare.split(", ") == list(LEARNERS)


def test_pool_has_one_column(place, capsys):
    found = made(place, capsys, "--general", f"files:{place}/meals.txt", name="pool")
    assert all(len(set(row)) == 1 for row in found["loss"]) and found["forgetting"] == 0
    assert len(set(found["general_loss"]["after"])) == 1 and len(found["general_loss"]["after"]) == 2
    assert found["seconds"][0] == found["seconds"][1] and found["parameters_added"] == [0, 0]
    net, _ = models.load(str(place / "olmo"), device="cpu")
    course = pooled(net, texts(place, files(place).split(",")), Method(), RECIPE, batch_size=16)
    assert found["loss"] == course.loss


def test_one_has_a_specialist_a_column(place, tmp_path, capsys):
    specs = files(place, "sums", "towns", "meals").split(",")
    one = made(place, capsys, "--seeds", 2, "--out", tmp_path / "out", domains=",".join(specs), name="one")
    row = made(place, capsys, "--seeds", 2, domains=",".join(specs))
    domains = texts(place, specs)
    for k in range(2):
        losses = one["per_seed"][k]["loss"]
        assert [each[0] for each in losses] == [each[0] for each in row["per_seed"][k]["loss"]]
        assert [each[1:] for each in losses] != [each[1:] for each in row["per_seed"][k]["loss"]]
        for j, name in enumerate(one["domains"]):
            net = opened(tmp_path / "out" / f"seed{k}" / name)
            found = [evaluation.loss(net, each.test, batch_size=16) for each in domains]
            assert found == pytest.approx([each[j] for each in losses], abs=1e-6)
    assert not list((tmp_path / "out").rglob("step*[0-9]"))
    for each in (one, *one["per_seed"]):  # judged by their own domains
        assert each["average"] == pytest.approx(sum(each["loss"][i][i] for i in range(3)) / 3, abs=1e-12)
        assert each["forgetting"] == each["forward_transfer"] == 0
    assert one["average"] != pytest.approx(sum(each[2] for each in one["loss"]) / 3, abs=1e-3)
    assert row["forgetting"] != 0 and row["forward_transfer"] != 0


def test_a_lora_is_merged(place, tmp_path, capsys):
    """The folder has the function on all domains, and the model's own parameters alone."""
    found = made(
        place, capsys, "--set", "rank=2", "--out", tmp_path / "out", "--dtype", "float64", name="lora"
    )
    assert found["settings"]["of_method"]["rank"] == 2 and found["parameters_added"][0] > 0
    net, start = opened(tmp_path / "out"), opened(place / "olmo")
    assert net.state_dict().keys() == start.state_dict().keys()
    losses = [evaluation.loss(net, each.test) for each in texts(place, files(place).split(","))]
    assert losses == pytest.approx([row[1] for row in found["loss"]], abs=1e-10)


def test_a_masked_model_fills_in(place, tmp_path, capsys):
    found = made(place, capsys, "--out", tmp_path / "out", "--set", "samples=6", model="roberta", name="das")
    net, tokenizer = models.load(str(place / "roberta"), device="cpu")
    hide = Masked(tokenizer.mask_token_id, len(tokenizer), special=(0, 1, 2))
    das = method("das", Given(STEPS, 64, hide), samples=6)
    domains = texts(place, files(place).split(","), "roberta")
    assert found["loss"] == learn(net, domains, das, RECIPE, objective=hide, batch_size=16).loss
    assert found["settings"]["objective"] == repr(hide) != repr(Causal())
    written = opened(tmp_path / "out", AutoModelForMaskedLM)
    assert evaluation.loss(written, domains[1].test, objective=hide) == pytest.approx(
        found["loss"][1][1], abs=1e-5
    )


def test_a_variant_and_an_importance_are_what_is_run(place, capsys):
    plain, bare, size = (
        made(place, capsys, *more, "--set", "samples=6", name="das")
        for more in ((), ("--variant", "without-contrast"), ("--set", "importance=magnitude"))
    )
    assert len({json.dumps(each["loss"]) for each in (plain, bare, size)}) == 3
    assert bare["settings"]["of_method"]["contrast"] == "none"
    assert size["settings"]["of_method"]["importance"] == "Magnitude()"
    null = made(place, capsys, "--variant", "without-contrast", "--set", "soft_mask=false", name="das")
    assert null["loss"] == made(place, capsys)["loss"]  # nothing is left but plain training


def test_end_tasks_are_put_as_asked(place, capsys, monkeypatch):
    """null where no domain has one or none is asked for; fine-tuned with the seed; few examples of many."""
    monkeypatch.setattr("kemem.cli.domains.EXAMPLES", 20)
    mixed = f"{PLACES[0]},{files(place, 'sums')}"
    assert made(place, capsys, "--tasks", "none", domains=mixed)["task"] is None
    found = made(place, capsys, "--tasks", "finetune", "--seed", 5, domains=mixed)
    assert found["task"][1] == [None, None] and found["task_before"][1] is None
    assert (
        "20 / 20 examples" in found["settings"]["end_tasks"][0] and found["settings"]["end_tasks"][1] is None
    )
    net, tokenizer = models.load(str(place / "olmo"), device="cpu")
    how = FineTuning(length=LENGTH, seed=5)
    task = source(PLACES[0]).task.limited(20, 20)
    course = learn(
        net, texts(place, mixed.replace(",files", "\nfiles").split("\n")), None, replace(RECIPE, seed=5), batch_size=16,
        ask=asked({"Drareria": task}, how, tokenizer),
    )  # fmt: skip
    assert found["task"] == course.task and found["task_before"] == course.task_before


# ---------------------------------------------------------------------- broken off
@pytest.mark.parametrize("stop", [2, STEPS, 3 * STEPS, 4 * STEPS])
def test_stopped_anywhere_the_same_command_ends_in_the_same_numbers(
    stop, whole, place, tmp_path, capsys, monkeypatch
):
    """stop: reports until then; two seeds of two domains have 4 x STEPS."""
    settings, more = everything(place)
    left, steps = [stop], []

    def stopping(title: str):
        def report(done: int, total: int, message: str) -> None:
            steps.append(done)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        return report

    monkeypatch.setattr("kemem.cli.adapting.progress", stopping)
    asked = (*more, "--out", tmp_path / "out")
    assert main(command(place, *asked, **settings)) == 130
    assert "stopped; with --out the same command goes on" in capsys.readouterr().err
    first = len(steps)
    found = made(place, capsys, *asked, **settings)
    # the step that was broken off is made again, no other
    assert first == stop and len(steps) == 4 * STEPS + 1
    assert timeless(found) == timeless(whole[0])
    for path in whole[1].rglob("*.safetensors"):
        assert (tmp_path / "out" / path.relative_to(whole[1])).read_bytes() == path.read_bytes()
    assert not [path for path in (tmp_path / "out" / "state" / "steps").iterdir() if path.is_dir()]


def test_a_finished_run_is_read_and_another_refused(whole, place, capsys, monkeypatch):
    found, out = whole
    settings, more = everything(place)
    monkeypatch.setattr("kemem.models.load", lambda *_, **__: pytest.fail("loaded"))
    weights = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    assert made(place, capsys, *more, "--out", out, **settings) == found
    (out / "state" / "steps" / "seed3").mkdir()  # killed just before it was removed
    assert made(place, capsys, *more, "--out", out, **settings) == found
    assert not (out / "state" / "steps" / "seed3").exists()
    for changed, said in (
        (("--seed", 9), "seed (3 there, 9 now)"),
        (("--batch-size", 1), "accumulation (2 there, 4 now)"),
        (("--order", "1,2"), "domains ("),
        (("--set", "temperature=0.1"), "of_method"),
    ):
        assert main(command(place, *more, *changed, "--out", out, **settings)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "holds another: " in line and said in line
    assert weights == {path: path.read_bytes() for path in out.rglob("*.safetensors")}


def test_text_that_changed_under_its_name_is_another_run(place, tmp_path, capsys):
    for name in ("sums", "towns"):
        (tmp_path / f"{name}.txt").write_text("\n".join(LINES[name]))
    asked = {"domains": files(tmp_path)}
    made(place, capsys, "--out", tmp_path / "out", **asked)
    (tmp_path / "towns.txt").write_text("\n".join(LINES["towns"][1:]))
    assert main(command(place, "--out", tmp_path / "out", **asked)) == 2
    assert "holds another: digests" in capsys.readouterr().err


def test_a_command_that_was_mistaken_gives_way(place, tmp_path, capsys):
    """The method refuses the model before the first step, so nothing is saved: another command may have the folder."""
    wrong = ("--set", "reduction=13", "--out", tmp_path / "out")
    assert main(command(place, *wrong, name="adapter-sequential")) == 2
    assert "expected a reduction of at most the model's width, 12; got 13" in capsys.readouterr().err
    made(place, capsys, "--out", tmp_path / "out", name="adapter-sequential")
    assert (tmp_path / "out" / "config.json").exists()


def test_moving_specialists_that_was_cut_off_is_finished(tmp_path, place):
    tokenizer = AutoTokenizer.from_pretrained(place / "olmo")
    for name in ("0-a/step7/config.json", "1-b/step7/config.json", "1-b/step7/model.safetensors"):
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_text(name)
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "model.safetensors").write_text("moved before")
    for _ in range(2):
        settle(tmp_path / "work", tmp_path / "out", ["a", "b"], 7, tokenizer)
    for name, weights in (("a", "moved before"), ("b", "1-b/step7/model.safetensors")):
        assert (tmp_path / "out" / name / "model.safetensors").read_text() == weights
        assert (tmp_path / "out" / name / "config.json").exists() and (
            tmp_path / "out" / name / "tokenizer.json"
        ).exists()
    assert not list((tmp_path / "work").rglob("step7"))


# ---------------------------------------------------------------------- what is said
def test_without_json_tables_are_shown_and_slow_work_is_said(place, capsys, monkeypatch):
    monkeypatch.setenv("KEMEM_PROGRESS", "0")
    settings, more = everything(place)
    assert main(command(place, *more, **settings)) == 0
    shown = capsys.readouterr()
    cells = [line.split() for line in shown.out.splitlines()]
    rows = [row for row in cells if row[1:2] in (["Tatovia"], ["Drareria"])]
    assert [row[:2] for row in rows] == [["1", "Tatovia"], ["2", "Drareria"]] * 2  # losses and end tasks
    assert all(len(row) == 5 and all(map(float, row[2:4])) for row in rows[:2])
    for said in (
        "average: ",
        "forgetting: ",
        "forward transfer: ",
        "general loss: ",
        "das: 3 steps of 4 rows of 16",
    ):
        assert said in shown.out
    for said in (
        "reading world:", "cutting the domains into tokens ...", "loading ", "gpt2, seed 3 knows ...",
        f"seed 4: {STEPS} of {STEPS} Drareria (2 of 2): loss", "measuring what it knows now ...",
    ):  # fmt: skip
        assert said in shown.err, said


def test_a_length_beyond_the_context_is_cut(place, capsys):
    for name, row in (("ncl", 64), ("prompt", 48)):
        assert main(command(place, "--length", 99, "--json", "-", name=name)) == 0
        shown = capsys.readouterr()
        assert f"--length 99 is beyond what {name} leaves of the model's context: {row} tokens" in shown.err
        assert json.loads(shown.out)["settings"]["length"] == row
    default = [
        each for each in command(place, "--json", "-", name="prompt") if each not in ("--length", str(LENGTH))
    ]
    assert main(default) == 0
    shown = capsys.readouterr()
    assert not shown.err and json.loads(shown.out)["settings"]["length"] == 48


def test_a_limit_is_that_of_every_domain_and_a_tenth_of_the_steps_warms_up(place, capsys):
    found = made(place, capsys, "--limit", 5 * BATCH * LENGTH + 7, "--steps", 10)["settings"]
    assert found["rows"] == [20, 20] and found["limit"] == 5 * BATCH * LENGTH + 7
    assert (found["warmup_steps"], found["final_share"]) == (1, 0.1)


def test_bfloat16_is_over_float32_weights(place, capsys, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)  # without it, only slower
    found, exact = (made(place, capsys, "--dtype", dtype) for dtype in ("bfloat16", "float32"))
    assert (found["settings"]["dtype"], found["settings"]["precision"]) == ("float32", "bfloat16")
    assert found["before"] == exact["before"]  # measured in float32
    assert 0 < abs(found["average"] - exact["average"]) < 0.1


def test_a_run_that_blows_up_is_one_line(place, capsys):
    """The loss of a step is that before the update, so only what is measured after the last one shows it."""
    assert main(command(place, "--steps", 1, "--lr", 1e38)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "finite loss" in line and "lower" in line


def ended(names: list[str], seconds: list[float], **changes: Any) -> Course:
    """A course with these seconds of training, of which the histories know 3 each."""
    square = [[1.0] * len(names) for _ in names]
    rows = [History([{"step": 1, "seconds": 3.0}]) for _ in seconds]
    none = [[None] * len(names) for _ in names]
    fixed = {"loss": square, "seconds": seconds, "added": [4] * len(seconds), "histories": rows, "task": none}
    return Course(names, [2.0] * len(names), **{**fixed, "task_before": none[0], **changes})


def test_seconds_of_a_run_that_is_resumed_and_of_one_for_all_domains():
    """Reading a finished run takes no time, so its history tells; a run for two domains counts half for each."""
    assert numbers(ended(["a", "b"], [5.0, 0.1]), 0)["seconds"] == [5.0, 3.0]
    found = numbers(ended(["a", "b"], [5.0], general=[7.0, 8.0]), 0)
    assert (found["seconds"], found["parameters_added"]) == ([2.5, 2.5], [2, 2])
    assert found["general_loss"] == {"before": 7.0, "after": [8.0, 8.0]}


@pytest.mark.parametrize(
    "changes", [{"loss": [[1.0, 2.0], [math.nan, 2.0]]}, {"general": [1.0, math.inf, 1.0]}]
)
def test_losses_that_are_no_numbers_are_refused(changes):
    with pytest.raises(BadInput, match="expected finite losses; got others with seed 3; lower --lr"):
        numbers(ended(["a", "b"], [5.0, 0.1], **changes), 3)


def test_a_single_step_is_one(place, capsys):
    """A rate that falls to 0 over one step would be 0."""
    found = made(place, capsys, "--steps", 1, "--lr", 1e-2)
    assert found["before"][0] - found["loss"][0][0] > 1e-3 and found["settings"]["final_share"] == 1


# ---------------------------------------------------------------------- the line of domains
PATHS = ["/a/b.txt", "a,b.txt", "$KEMEM_DATA/x y.jsonl.gz", "movies.txt", "x,acl.txt", "worlds,world.txt"]


@st.composite
def spec(draw) -> str:
    """A spec as people write them, with the commas that they may hold."""
    options = st.lists(st.sampled_from(["limit=3000", "numpy", "scipy"]), min_size=1, max_size=3, unique=True)
    world = st.lists(
        st.sampled_from(["people=30", "seed=0", "within=A Place"]), min_size=1, max_size=3, unique=True
    )
    parts = [
        st.just("docstrings"), options.map(lambda o: "docstrings:" + ",".join(o)), st.just("world"),
        world.map(lambda o: "world:" + ",".join(o)),
        st.sampled_from(PATHS).map(lambda path: f"files:{path}"),
        st.sampled_from(["owner/name", "name@v1/config:field=text,split=train,limit=10"]).map(lambda n: f"hub:{n}"),
    ]  # fmt: skip
    if draw(st.booleans()):
        return draw(st.sampled_from(list(REAL)))
    return "+".join(draw(st.lists(st.one_of(parts), min_size=1, max_size=2)))


@settings(max_examples=50, deadline=None)
@given(st.lists(spec(), min_size=1, max_size=5), st.sampled_from([",", ", "]))
def test_specs_that_are_joined_are_split_again(specs, comma):
    assert split_specs(comma.join(specs)) == specs


def test_specs_by_hand():
    line = "docstrings:numpy,scipy,limit=3000,docstrings:torch, world:people=3,within=A,pubmed,world,files:a,b.txt,ai"
    assert split_specs(line) == [
        "docstrings:numpy,scipy,limit=3000", "docstrings:torch", "world:people=3,within=A", "pubmed", "world",
        "files:a,b.txt", "ai",
    ]  # fmt: skip
    assert split_specs("numpy,scipy") == ["numpy,scipy"]


def test_places():
    assert places(None, 3) == (0, 1, 2) and places("3,1, 2", 3) == (2, 0, 1)


# ---------------------------------------------------------------------- what cannot be served
ON = "{0}/olmo --domains files:{0}/sums.txt,files:{0}/towns.txt --method ncl --batch 4 --length 16"
OF = "--method ncl --batch 4 --length 16 {0}/olmo --domains"
DAS = ON.replace("ncl", "das")
TABLE = {
    "no model": ("--domains world,docstrings --method ncl", "Missing argument 'MODEL'; see kemem adapt --help"),
    "no domains": ("{0}/olmo --method ncl", "Missing option '--domains'"),
    "no method": ("{0}/olmo --domains world,docstrings", "Missing option '--method'"),
    "layout missing": (f"{OF} world,docstrings --layout {{0}}/none.json", "a layout as JSON in {0}/none.json; got: No"),
    "one domain": (f"{OF} files:{{0}}/sums.txt", "two domains or more, one after another; got files:"),
    "a domain twice": (
        f"{OF} files:{{0}}/sums.txt,files:{{0}}/towns.txt,files:{{0}}/sums.txt", "sums.txt', which is given twice"
    ),
    "a domain under two names": (
        f"{OF} files:{{0}}/sums.txt,files:{{0}}/copy.txt", "copy.txt', which is the text of two; leave one"
    ),
    "a place twice": (
        f"{OF} {PLACES[1]},world:people=60,seed=1,documents=20,within=Tatovia",
        "'Tatovia', which is the name of two",
    ),
    "unknown method": (ON.replace("ncl", "gem"), "one of ncl, one, pool, ewc, kd, replay, derpp, hat, hat-all"),
    "unknown variant": (f"{DAS} --variant without", "a variant of das, one of without-soft-mask, random"),
    "variant of another": (f"{ON} --variant random", "a variant of ncl, none, for it has no variants; got 'random'"),
    "unknown setting": (f"{DAS} --set warmth=3", "a setting of das, one of normalisation, placement"),
    "setting of the run": (f"{DAS} --set seed=3", "got 'seed'"),
    "setting of another": (f"{ON} --set weight=3", "a setting of ncl, one of none; got 'weight'"),
    "setting without a value": (f"{DAS} --set weight", "expected --set key=value, each key once; got 'weight'"),
    "setting twice": (f"{DAS} --set weight=1 --set weight=2", "each key once; got 'weight=2'"),
    "value of a wrong kind": (f"{DAS} --set weight=much", "weight of das to be a number; got 'much'"),
    "value out of range": (f"{DAS} --set weight=-1", "expected weight to be 0 or more; got -1.0"),
    "value that is no choice": (f"{DAS} --set importance=size", "own, random, magnitude, gradient, lottery"),
    "capsules beside": (f"{ON.replace('ncl', 'bcl')} --set placement=parallel", "expected sequential adapters"),
    "order without a place": (f"{ON} --order 1", "each place from 1 to 2 once, such as 2,1; got '1'"),
    "order with one twice": (f"{ON} --order 1,1", "got '1,1'"),
    "order from 0": (f"{ON} --order 0,1", "got '0,1'"),
    "order that is no number": (f"{ON} --order a,b", "got 'a,b'"),
    "no seeds": (f"{ON} --seeds 0", "--seeds to be 1 or more; got 0"),
    "negative seed": (f"{ON} --seed -1", "--seed to be 0 or more; got -1"),
    "0 steps": (f"{ON} --steps 0", "--steps to be 1 or more; got 0"),
    "rate of 0": (f"{ON} --lr 0", "expected --lr to be a number above 0; got 0.0; the paper has 1e-4"),
    "rate that is no number": (f"{ON} --lr nan", "got nan"),
    "rate without end": (f"{ON} --lr inf", "got inf"),
    "0 rows": (f"{ON} --batch 0", "--batch to be 1 or more; got 0"),
    "rows of one token": (f"{ON} --length 1", "--length to be 2 or more; got 1"),
    "no batch": (f"{ON} --batch-size 0", "--batch-size to be 1 or more; got 0"),
    "no text to train on": (f"{ON} --limit 0", "--limit to be 1 or more; got 0"),
    "limit below a step": (f"{ON} --limit 63", "expected --limit to be what a step reads or more, 64 tokens; got 63"),
    "unknown way with tasks": (f"{ON} --tasks ask", "probe, finetune, none; got 'ask'"),
    "unknown dtype": (f"{ON} --dtype float16", "float32, float64, bfloat16; got 'float16'"),
    "bfloat16 without hardware": (f"{ON} --dtype bfloat16", "computes in bfloat16; got cpu"),
    "unknown device": (f"{ON} --device tpu", "got 'tpu'; choose one of auto, cpu, cuda, mps"),
    "json nowhere": (f"{ON} --json {{0}}/nowhere/a.json", "create {0}/nowhere first"),
    "unknown corpus": (f"{OF} world,wiki", "got 'world,wiki'"),
    "unknown corpus first": (f"{OF} wiki,world", "each a corpus (docstrings, world, files:PATH or hub:NAME) or one of"),
    "a path alone": (f"{OF} {{0}}/sums.txt,world", "write files:{0}/sums.txt for a file"),
    "named domain without data": (f"{OF} pubmed,world", "KEMEM_DATA, which is not set"),
    "corpus missing": (f"{OF} world,files:{{0}}/nowhere.txt", "must name a file or a folder that exists"),
    "corpus not UTF-8": (f"{OF} files:{{0}}/sums.txt,files:{{0}}/latin.txt", "latin.txt"),
    "package that is not read": (f"{OF} files:{{0}}/sums.txt,docstrings:rich", "got 'rich'"),
    "place that is not there": (
        f"{OF} files:{{0}}/sums.txt,world:people=20,documents=9,within=Rome", "unknown within 'Rome'"
    ),
    "general missing": (f"{ON} --general files:{{0}}/nowhere.txt", "must name a file or a folder that exists"),
    "general of no corpus": (f"{ON} --general wiki", "got 'wiki'"),
    "general too short": (f"{ON} --general files:{{0}}/brief.txt", "the test part of --general files:{0}/brief.txt: a"),
    "domain shorter than a block": (
        f"{OF} files:{{0}}/sums.txt,files:{{0}}/brief.txt", "brief.txt: a corpus must fill"
    ),
    "domain shorter than a batch": (
        f"{OF} files:{{0}}/sums.txt,files:{{0}}/few.txt --batch 400", "at least 400 rows to train on"
    ),
    "model missing": (ON.replace("{0}/olmo", "{0}/nowhere"), "expected a folder with a model"),
    "revision missing": (f"{ON} --revision step7", "got revision 'step7'; it has none"),
    "unknown family": (ON.replace("{0}/olmo", "{0}/opt"), "expected a model of a known family (olmo,"),
    "no tokenizer": (ON.replace("{0}/olmo", "{0}/speechless"), "expected a tokenizer beside the weights"),
    "no mask token": (ON.replace("{0}/olmo", "{0}/maskless"), "a tokenizer with a mask token, for roberta fills in"),
    "no room beside a prompt": (
        f"{ON.replace('{0}/olmo', '{0}/short').replace('ncl', 'prompt')} --set tokens=7",
        "room for text beside prompt; got 8 tokens, of which it takes 7",
    ),
    "out is a file": (f"{ON} --out {{0}}/sums.txt", "got the file {0}/sums.txt"),
    "out holds something": (f"{ON} --out {{0}}/other", "{0}/other holds 'thesis.tex'"),
    "out is the model": (f"{ON} --out {{0}}/olmo", "{0}/olmo holds"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_one_line_before_any_weights_are_read(case, place, capfd, monkeypatch):
    monkeypatch.setattr("kemem.models.load", lambda *_, **__: pytest.fail("weights were read"))
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.delenv("KEMEM_DATA", raising=False)
    refused(*TABLE[case], place, capfd)


def test_an_end_task_with_a_class_without_example_is_refused(place, tmp_path, capfd, monkeypatch):
    """Reviews of which all bad ones are in the test part: nothing to learn "bad" from."""
    monkeypatch.setattr("kemem.models.load", lambda *_, **__: pytest.fail("weights were read"))
    monkeypatch.setenv("KEMEM_DATA", str(tmp_path))
    (tmp_path / "domains").mkdir()

    def part(text: str) -> str:
        hundredth = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
        return "train" if hundredth < 90 else "validation" if hundredth < 95 else "test"

    lines = [{"text": text, "label": "bad" if part(text) == "test" else "good"} for text in LINES["sums"]]
    with gzip.open(tmp_path / "domains" / "books_reviews.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, lines)))
    command = f"{OF} books,files:{{0}}/towns.txt"
    refused(command, "'books' needs a training example of every class; got none of 'bad'", place, capfd)


def test_a_method_that_the_model_cannot_have_is_refused_before_a_step(place, capfd, monkeypatch):
    """Its own `before` says so, when the weights are there."""
    monkeypatch.setattr("kemem.training.loop._Run.step", lambda self: pytest.fail("trained"))
    wide = ON.replace("ncl", "hat-adapter") + " --set reduction=13"
    refused(wide, "reduction of at most the model's width, 12; got 13", place, capfd)
    released = ON.replace("ncl", "das").replace("{0}/olmo", "{0}/llama") + " --variant head_columns"
    refused(released, "each with a key and value of its own", place, capfd)


def refused(command: str, said: str, place: Path, capfd) -> None:
    asked = ["adapt", *shlex.split(command.replace("{0}", str(place)))]
    assert main([*asked, *([] if "--device" in asked else ["--device", "cpu"])]) == 2
    shown = capfd.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, lines
    said = said.replace("{0}", str(place))
    assert lines[0].startswith("kemem: ") and said in lines[0] and len(lines[0]) < 900, lines[0]
    assert not shown.out
