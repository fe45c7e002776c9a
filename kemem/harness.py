"""The papers' end tasks as EleutherAI's lm-evaluation-harness asks them, of a model in memory.

Kim et al. 2025, appendix B.2: P is the mean zero-shot accuracy over six public tasks, F the share of it that is
lost. The harness is optional and large (`pip install 'kemem[harness]'`), so it is imported where it is used. Its
own tasks are fetched from the network when first asked; a folder of local ones (`write_task`) needs none.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kemem.errors import BadInput

PLAIN = "acc"  # argmax over candidates of the sum of log p
SIX: Mapping[str, str] = MappingProxyType(
    {
        "sciq": PLAIN,
        "winogrande": PLAIN,
        "piqa": "acc_norm",  # that sum divided by the candidate's number of characters
        "openbookqa": "acc_norm",
        "hellaswag": "acc_norm",
        "arc_easy": PLAIN,
    }
)
"""The tasks of P by the harness's name, and the metric of each.

Differs from the authors' code, where the evaluator inside OLMo's training asks the validation splits throughout:
the harness asks the test split where there is one for it, in sciq, openbookqa and arc_easy.
"""

_YAML = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: "{{{{candidates | map('trim') | list}}}}"
doc_to_target: answer
target_delimiter: " "
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_ASKED = ("description", "doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter", "output_type")


class Loaded(dict[str, Any]):
    """Tasks of the harness by name, with their questions: so that two measurements ask the same."""

    @property
    def digest(self) -> str:
        """Changes with any question of a task and with how it is asked, not with where the task lies."""
        total = sha256()
        for name, task in sorted(self.items()):
            config = task.dump_config()
            for part in (name, {field: config.get(field) for field in _ASKED}, *task.eval_docs):
                total.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
        return total.hexdigest()


def write_task(
    folder: str | Path, name: str, questions: Iterable[tuple[str, Sequence[str], int | str]]
) -> Path:
    """Writes a task of the harness, `name`.yaml with `name`.jsonl beside it, and gives the path of the first.

    questions: prompt, candidates, and the right one or its place from 0. The harness joins prompt and candidate
    by one space, always (`kemem.evaluation.encode` puts none before punctuation), so those at the border are
    dropped here. Files of that name are replaced; the questions' full path is in the YAML, as the harness wants.
    """
    folder = Path(folder).expanduser().resolve()
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII):
        raise BadInput(
            f"expected the name of a task to be a letter, then letters, digits, _, - or .; got {name!r}; "
            "choose another."
        )
    lines = [_record(number, *question) for number, question in enumerate(questions, start=1)]
    if not lines:
        raise BadInput(f"expected a question for the task {name}; got none; give some.")
    folder.mkdir(parents=True, exist_ok=True)
    data, task = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    data.write_text("".join(lines), encoding="utf-8")
    file = json.dumps(str(data), ensure_ascii=False)  # a JSON string is a YAML string
    task.write_text(_YAML.format(name=json.dumps(name), file=file), encoding="utf-8")
    return task


def _record(number: int, prompt: str, candidates: Sequence[str], answer: int | str) -> str:
    texts = [candidate.strip() for candidate in candidates]
    place = list(candidates).index(answer) if answer in candidates else answer
    right = type(place) is int and 0 <= place < len(texts)
    if not prompt.strip() or len(texts) < 2 or not all(texts) or len(set(texts)) < len(texts) or not right:
        raise BadInput(
            "expected a prompt, two or more different candidates, and one of them or its place from 0; got "
            f"{prompt!r}, {list(candidates)!r} and {answer!r} as question {number}; correct it."
        )
    # a space before each, which the YAML takes off: were all of them dates, they would be read as times
    record = {"prompt": prompt.rstrip(" "), "candidates": [f" {text}" for text in texts], "answer": place}
    return json.dumps(record, ensure_ascii=False) + "\n"


def load(tasks: Iterable[str] | None = None, *, include: str | Path | None = None) -> Loaded:
    """Tasks of the harness, questions read: all of the folder `include`, or SIX, unless named.

    With `include` that folder is all there is: no task of the harness's own is known, and none is fetched.
    Refused: a missing harness, an unknown task, one whose questions cannot be read, and one without candidates
    or the metric that is to be reported of it.
    """
    if isinstance(tasks, Loaded):
        return tasks
    task_manager = _harness("lm_eval.tasks").TaskManager
    folder = None if include is None else Path(include).expanduser()
    if folder is not None and not folder.is_dir():
        raise BadInput(f"expected a folder with tasks of the harness; got {folder}; check the path.")
    with _apart():
        manager = task_manager(include_path=folder, include_defaults=folder is None)
        known = manager.all_subtasks
        names = list(dict.fromkeys(tasks if tasks is not None else SIX if folder is None else known))
        if not names:
            raise BadInput(f"expected tasks of the harness; got none in {folder or 'the list'}; name some.")
        for name in names:
            if name not in known:
                raise BadInput(f"expected {_known(name, known, folder)}; got {name!r}; choose one of these.")
        found = Loaded()
        for name in names:
            try:
                found |= manager.load([name])["tasks"]
            except Exception as error:  # whatever the network, a file format or a template can raise
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                raise BadInput(
                    f"expected to read the questions of {name}; got: {reason}; see to the network or the file."
                ) from None
    for name, task in found.items():
        metric = metric_of(name)
        if task.OUTPUT_TYPE != "multiple_choice" or metric not in task.aggregation():
            raise BadInput(
                f"expected a task with candidates that reports {metric}; got {name}, of type "
                f"{task.OUTPUT_TYPE} with {', '.join(task.aggregation())}; leave it out."
            )
    return found


def _known(name: str, known: Sequence[str], folder: Path | None) -> str:
    if folder is None:  # thousands
        near = get_close_matches(name, known, n=5) or sorted(SIX)
        return f"a task of the harness, such as {', '.join(near)}"
    return f"a task of {folder}, which has {', '.join(known) or 'none'}"


def metric_of(task: str) -> str:
    """What is reported of a task: the paper's metric of the six, plain accuracy of all others."""
    return SIX.get(task, PLAIN)


def accuracies(
    model: Any,
    tokenizer: Any,
    tasks: Iterable[str] | None = None,
    *,
    include: str | Path | None = None,
    batch_size: int = 16,
    limit: int | None = None,
) -> dict[str, float]:
    """Of each task the share of its questions answered right without examples, by `metric_of`.

    model: one of `transformers`, where it is. tasks, include: as in `load`, or what it gave. batch_size: rows
    read at a time. limit: questions of each task, from the first. Model, tokenizer and the state of the global
    random generators are as before afterwards.

    As the harness has it: special tokens before a prompt where the tokenizer adds them, a prompt beyond the
    model's context is cut from the left, and of equal candidates the first wins.
    """
    loaded = load(tasks, include=include)
    harness = _harness("lm_eval.evaluator")
    wrapper = _harness("lm_eval.models.huggingface").HFLM
    task_manager = _harness("lm_eval.tasks").TaskManager
    modes = {module: module.training for module in model.modules()}
    with _apart():
        try:
            found = harness.simple_evaluate(
                # a copy of the tokenizer: the harness gives it a token for padding where it has none
                wrapper(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=batch_size),
                tasks=list(loaded.values()),
                task_manager=task_manager(include_defaults=False),  # reading all of its own takes seconds
                num_fewshot=0,
                limit=limit,
                bootstrap_iters=0,
                log_samples=False,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                fewshot_random_seed=None,
            )
        finally:  # the harness leaves a model in evaluation mode
            for module, mode in modes.items():
                module.training = mode
    if found is None:
        raise BadInput("expected one process to ask the harness's tasks; got several; start it without them.")
    return {name: float(found["results"][name][f"{metric_of(name)},none"]) for name in loaded}


def performance(accuracies: Mapping[str, float]) -> float:
    """P: the mean over tasks of the share answered right. Each task counts once, however many its questions."""
    if not accuracies:
        raise BadInput("expected the accuracy of a task; got none; measure some.")
    return sum(accuracies.values()) / len(accuracies)


def _harness(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or "lm_eval"
        raise BadInput(
            f"expected the lm-evaluation-harness; got no package {missing.split('.')[0]}; "
            "pip install 'kemem[harness]'."
        ) from None


@contextmanager
def _apart() -> Iterator[None]:
    """Keeps the harness's bars, those of `datasets` and its log below errors off the terminal.

    It also draws names from Python's global generator, which is given back as it was.
    """
    from tqdm.std import tqdm

    own, started = vars(tqdm)["__init__"], tqdm.__init__
    log = logging.getLogger("lm_eval")
    level, drawn = log.level, random.getstate()

    def silent(bar: Any, *arguments: Any, **options: Any) -> None:
        started(bar, *arguments, **{**options, "disable": True})

    tqdm.__init__ = silent
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        tqdm.__init__ = own
        log.setLevel(level)
        random.setstate(drawn)
