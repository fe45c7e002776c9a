"""Tasks of the lm-evaluation-harness: written, refused, and asked with the numbers of sums written out."""

import json
import random
import sys

import pytest
import torch
import yaml
from conftest import passage_record, tiny
from tqdm import tqdm

from kemem import harness, models
from kemem.cli import main
from kemem.corpora import train_tokenizer
from kemem.entropy import forgetting
from kemem.errors import BadInput
from kemem.evaluation import target_log_probability

WORDS = [
    "blue",
    "green",
    "violet",
    "a",
    "city",
    "seven",
    "thousand",
    "ships",
    "Norhaven",
    "long",
    "2131-05-06",
]
SKY = [("The sky is", ["blue", "green", "a city"], "blue"), ("The ship ", [" long", "short "], 1)]
DATES = [("Ada came on", ["2131-05-06", "2131-05-07"], 0), ("Bo came on", ["2019-01-02", "2131-05-06"], 1)]


def asked(count: int = 40) -> list[tuple[str, list[str], int]]:
    """Questions whose candidates differ in their numbers of tokens and of characters."""
    draw = random.Random(0)
    found = []
    for number in range(count):
        candidates = {" ".join(draw.sample(WORDS, draw.randint(1, 6))) for _ in range(5)}
        prompt = f"Line {number} says that {' '.join(draw.sample(WORDS, 4))} is"
        found.append((prompt, sorted(candidates), draw.randrange(len(candidates))))
    return found


# ---------------------------------------------------------------------- what needs no harness
@pytest.mark.parametrize("missing", ["lm_eval", "lm_eval.tasks"])
def test_a_missing_harness_is_said_in_one_line(missing, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    for tasks in (None, ["sciq"]):
        with pytest.raises(
            BadInput, match=r"no package lm_eval; pip install 'kemem\[harness\]'\.$"
        ) as refused:
            harness.accuracies(torch.nn.Linear(1, 1), None, tasks)
        assert "\n" not in str(refused.value)
    command = "acquire {0}/none --passages {0}/p.json --corpus files:{0}/t.txt --steps 2 --lr 1 --batch 1"
    (tmp_path / "t.txt").write_text("A line.\n")
    (tmp_path / "p.json").write_text(json.dumps([passage_record("Ada", "Ur", "May")]))
    for tasks in ("harness:sciq", tmp_path):
        assert main([*command.format(tmp_path).split(), "--tasks", str(tasks)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("kemem: ") and "pip install 'kemem[harness]'" in said and said.count("\n") == 1


def test_a_written_task_says_how_the_harness_is_to_ask(tmp_path):
    path = harness.write_task(tmp_path / "new", "sky", SKY)
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert path == (tmp_path / "new" / "sky.yaml").resolve()
    assert (task["task"], task["output_type"], task["num_fewshot"]) == ("sky", "multiple_choice", 0)
    assert [each["metric"] for each in task["metric_list"]] == ["acc", "acc_norm"]
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert task["dataset_kwargs"]["data_files"]["test"] == str(path.with_suffix(".jsonl"))
    assert [line["prompt"] for line in lines] == ["The sky is", "The ship"]
    assert [[text.strip() for text in line["candidates"]] for line in lines] == [
        ["blue", "green", "a city"],
        ["long", "short"],
    ]
    assert [line["answer"] for line in lines] == [0, 1]


@pytest.mark.parametrize(
    ("name", "questions", "said"),
    [
        ("a,b", SKY, "the name of a task"),
        ("../up", SKY, "the name of a task"),
        ("sky", [], "a question for the task sky; got none"),
        ("sky", [*SKY, ("It is", ["one"], 0)], "as question 3"),
        ("sky", [("It is", ["one", "one "], 0)], "as question 1"),
        ("sky", [("It is", ["one", " "], 0)], "as question 1"),
        ("sky", [("It is", ["one", "two"], "three")], "'three' as question 1"),
        ("sky", [("It is", ["one", "two"], 2)], "2 as question 1"),
        ("sky", [("It is", ["one", "two"], True)], "True as question 1"),
        ("sky", [(" ", ["one", "two"], 0)], "' '"),
    ],
)
def test_what_is_no_task_is_refused_before_anything_is_written(name, questions, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        harness.write_task(tmp_path / "new", name, questions)
    assert not (tmp_path / "new").exists()


def test_performance_gives_each_task_the_same_weight():
    assert harness.performance({"sciq": 0.5, "piqa": 0.75, "sky": 1.0}) == pytest.approx(0.75)
    with pytest.raises(BadInput, match="accuracy of a task"):
        harness.performance({})


def test_the_six_tasks_have_the_metrics_of_the_paper():
    """Length-normalised where the paper's evaluator is, and plain accuracy of whatever else is asked."""
    normalised = {name for name in harness.SIX if harness.metric_of(name) == "acc_norm"}
    assert normalised == {"piqa", "hellaswag", "openbookqa"}
    assert harness.SIX.keys() - normalised == {"sciq", "winogrande", "arc_easy"}
    assert harness.metric_of("sky") == "acc"


def test_python_s_generator_and_the_terminal_are_given_back():
    """Not seen through `accuracies`: the check of types in these tests draws from that generator, too."""
    started = vars(tqdm)["__init__"]
    state = random.getstate()
    with pytest.raises(KeyError), harness._apart():
        random.random()
        assert tqdm([1]).disable
        raise KeyError
    assert random.getstate() == state and vars(tqdm)["__init__"] is started


# ---------------------------------------------------------------------- with the harness
@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The harness, whose questions are kept in a folder of this test alone."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'kemem[harness]'")
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"{prompt} {text}" for prompt, candidates, _ in asked() for text in candidates]
    return train_tokenizer(texts, 330)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny("olmo", vocab=len(tokenizer), dtype=torch.float64)


def by_hand(model, tokenizer, questions, *, per_character: bool) -> list[bool]:
    """Whether the candidate with the largest sum of log p, or that sum per character, is the right one."""
    right = []
    for prompt, candidates, answer in questions:
        sums = target_log_probability(model, tokenizer, [(prompt, each) for each in candidates], mean=False)
        if per_character:
            sums = sums / torch.tensor([len(each) for each in candidates])
        right.append(sums.argmax().item() == answer)
    return right


@pytest.mark.parametrize("batch_size", [1, 7])
def test_accuracy_is_that_of_sums_written_out(installed, model, tokenizer, tmp_path, batch_size, capfd):
    """`acc` under a name of its own, and `acc_norm` under that of a task for which the paper takes it."""
    for name in ("lines", "piqa"):
        harness.write_task(tmp_path, name, asked())
    found = harness.accuracies(model, tokenizer, include=tmp_path, batch_size=batch_size)
    plain = by_hand(model, tokenizer, asked(), per_character=False)
    normalised = by_hand(model, tokenizer, asked(), per_character=True)
    assert found == {"lines": sum(plain) / 40, "piqa": sum(normalised) / 40}
    assert plain != normalised and 0 < sum(plain) < 40 and found["lines"] != found["piqa"]
    first = harness.accuracies(model, tokenizer, ["lines"], include=tmp_path, limit=9)
    assert first == {"lines": sum(plain[:9]) / 9}
    assert harness.performance(found) == pytest.approx((sum(plain) + sum(normalised)) / 80)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_punctuation_mark_has_a_space_before_it(installed, model, tokenizer, tmp_path):
    """As the harness joins them; `kemem.evaluation` has none there, so the ids are spelt out."""
    questions = [(f"Line {i} says that", ["?! a", "(blue) city", "."], i % 3) for i in range(12)]
    harness.write_task(tmp_path, "marks", questions)
    right = []
    for prompt, candidates, answer in questions:
        sums = []
        for text in candidates:
            first, whole = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {text}")["input_ids"]
            with torch.no_grad():
                log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(log_p[t - 1, whole[t]].item() for t in range(len(first), len(whole))))
        right.append(max(range(3), key=sums.__getitem__) == answer)
    assert harness.accuracies(model, tokenizer, include=tmp_path) == {"marks": sum(right) / 12}


def test_dates_stay_texts(installed, model, tokenizer, tmp_path):
    harness.write_task(tmp_path, "dates", DATES)
    expected = sum(by_hand(model, tokenizer, DATES, per_character=False)) / 2
    assert harness.accuracies(model, tokenizer, include=tmp_path) == {"dates": expected}


def test_nothing_is_changed_by_measuring(installed, model, tokenizer, tmp_path):
    harness.write_task(tmp_path, "sky", SKY)
    bare = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    model.train()
    model.lm_head.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    harness.accuracies(model, bare, include=tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert bare.pad_token is None
    assert model.training and model.model.training and not model.lm_head.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()


def test_questions_once_loaded_are_asked_again_whatever_the_file_says_now(
    installed, model, tokenizer, tmp_path
):
    harness.write_task(tmp_path, "lines", asked())
    loaded = harness.load(include=tmp_path)
    before = harness.accuracies(model, tokenizer, loaded)
    harness.write_task(tmp_path, "lines", [(prompt, words, 0) for prompt, words, _ in asked()])
    again = harness.load(include=tmp_path)
    assert harness.accuracies(model, tokenizer, loaded) == before
    assert loaded.digest != again.digest
    harness.write_task(tmp_path / "moved", "lines", asked())
    assert harness.load(include=tmp_path / "moved").digest == loaded.digest


def test_what_cannot_be_asked_is_refused_in_one_line(installed, tmp_path):
    def refused(*arguments, **options) -> str:
        with pytest.raises(BadInput) as error:
            harness.accuracies(torch.nn.Linear(1, 1), None, *arguments, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "got " + str(tmp_path / "none") in refused(include=tmp_path / "none")
    assert "got none" in refused(include=tmp_path)
    path = harness.write_task(tmp_path, "sky", SKY)
    assert "which has sky; got 'sea'" in refused(["sky", "sea"], include=tmp_path)
    assert "which has sky; got 'sciq'" in refused(["sciq"], include=tmp_path)
    text = path.read_text()
    path.write_text(text.replace("  - metric: acc\n", "  - metric: acc_bytes\n"))
    assert "reports acc; got sky, of type multiple_choice with acc_bytes" in refused(include=tmp_path)
    path.write_text(text)
    path.with_suffix(".jsonl").unlink()
    assert "the questions of sky; got: " in refused(include=tmp_path)


@pytest.mark.slow
def test_a_misspelt_task_of_the_harness_is_told_its_neighbours(installed):
    with pytest.raises(BadInput, match=r"such as .*piqa.*; got 'piqq'"):
        harness.load(["piqq"])


@pytest.mark.parametrize("named", [False, True])
def test_the_command_forgets_as_the_harness_says(installed, named, tmp_path, monkeypatch, capsys):
    """A folder of tasks, and names, for which the harness's own folder is exchanged for it: F and P of --json."""
    monkeypatch.setenv("KEMEM_PROGRESS", "3600")
    lines = [f"{prompt} {candidates[place]}." for prompt, candidates, place in asked(30)]
    record = passage_record("Ada Vell", "Norhaven", "the year 2131")
    told = [record["train_context"], *record["paraphrases"]]
    tokenizer = train_tokenizer([*lines, *told], 330)
    tiny("olmo", vocab=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(lines * 4))
    (tmp_path / "passages.json").write_text(json.dumps([record]))
    for name in ("lines", "piqa"):
        harness.write_task(tmp_path / "tasks", name, asked())
    if named:
        tasks, load = "harness:lines,piqa", harness.load
        monkeypatch.setattr(
            harness, "load", lambda names, include=None: load(names, include=tmp_path / "tasks")
        )
    else:
        tasks = str(tmp_path / "tasks")
    capsys.readouterr()
    command = [
        "acquire", tmp_path / "model", "--passages", tmp_path / "passages.json", "--corpus",
        f"files:{tmp_path}/text.txt", "--steps", 6, "--lr", 3e-2, "--batch", 4, "--length", 40, "--slots", 2,
        "--tasks", tasks, "--out", tmp_path / "out", "--device", "cpu", "--json", "-",
    ]  # fmt: skip
    assert main([str(each) for each in command]) == 0
    captured = capsys.readouterr()
    assert "%|" not in captured.err  # no bars of the harness
    found = json.loads(captured.out)
    for when, folder in (("before", "model"), ("after", "out")):
        net, own = models.load(str(tmp_path / folder), device="cpu")
        right = [sum(by_hand(net, own, asked(), per_character=each)) / 40 for each in (False, True)]
        assert {name: each[when] for name, each in found["P_by"].items()} == dict(
            zip(("lines", "piqa"), right, strict=True)
        )
        assert found["P"][when] == pytest.approx(sum(right) / 2)
    assert found["F"] == forgetting(found["P"]["before"], found["P"]["after"]) and found["P"]["before"] > 0
    assert found["settings"]["tasks"] == tasks
