"""Questions with candidates, the end tasks of `kemem acquire`: a line each, or as the evaluation harness has them."""

import json as encoding
from typing import Any

from kemem.cli.terminal import patience
from kemem.errors import BadInput

UNNAMED = "questions"  # the task of questions that name none
HARNESS = "harness:"

Task = list[tuple[str, list[str], int]]  # prompt, candidates, place of the right one


def read_tasks(source: str) -> dict[str, Any]:
    """Questions by the name of their task. Refused, with file and line: what is no question.

    Of harness:NAME,NAME and of a folder a `kemem.harness.Loaded`: how these are asked is the harness's affair.
    """
    from kemem.corpora.files import expanded, field_of

    if source.startswith(HARNESS):
        from kemem import harness

        with patience("reading the tasks"):
            return harness.load([name.strip() for name in source.removeprefix(HARNESS).split(",")])
    file = expanded(source)
    if file.is_dir():
        from kemem import harness

        with patience("reading the tasks"):
            return harness.load(include=file)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise BadInput(
            f"expected --tasks to be a jsonl file; got {error.strerror or error} for {file}; check the path."
        ) from None
    except UnicodeDecodeError:
        raise BadInput(f"expected --tasks in UTF-8; got other bytes in {file}; convert the file.") from None
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        at = f"{file}, line {number}"
        try:
            record = encoding.loads(line)
        except (ValueError, RecursionError) as error:
            fault = str(error).splitlines()[0]
            raise BadInput(f"a line of --tasks must be one JSON object; got {fault} in {at}.") from None
        prompt = field_of(record, "prompt", at)
        candidates = _candidates(record, at)
        task = field_of(record, "task", at) if "task" in record else UNNAMED
        tasks.setdefault(task, []).append((prompt, candidates, _answer(record, candidates, at)))
    if not tasks:
        raise BadInput(f"expected --tasks to hold a question; got none in {file}; add some.")
    return tasks


def _candidates(record: dict[str, Any], at: str) -> list[str]:
    found = record.get("candidates")
    texts = isinstance(found, list) and all(isinstance(each, str) for each in found)
    if not texts or len(found) < 2 or len(set(found)) < len(found):
        got = encoding.dumps(found)[:60] if "candidates" in record else "no such field"
        raise BadInput(f"the field 'candidates' must be two or more different texts; got {got} in {at}.")
    return found


def _answer(record: dict[str, Any], candidates: list[str], at: str) -> int:
    found = record.get("answer")
    if isinstance(found, str) and found in candidates:
        return candidates.index(found)
    if type(found) is int and 0 <= found < len(candidates):  # a bool is an int, too
        return found
    got = encoding.dumps(found)[:60] if "answer" in record else "no such field"
    raise BadInput(
        f"the field 'answer' must be one of the candidates, or its place, 0 to {len(candidates) - 1}; "
        f"got {got} in {at}."
    )


def plain(questions: dict[str, Any] | None) -> dict[str, Task]:
    """Those that this package asks itself: none of the harness's."""
    return {name: task for name, task in (questions or {}).items() if isinstance(task, list)}


def identity(questions: dict[str, Any] | None) -> Any:
    """What tells these questions from others."""
    return getattr(questions, "digest", questions)


def answers(net: Any, tokenizer: Any, questions: dict[str, Any], batch_size: int) -> dict[str, float]:
    """Of each task the share of its questions answered right."""
    from kemem.evaluation import cloze

    if not plain(questions):
        from kemem import harness

        return harness.accuracies(net, tokenizer, questions, batch_size=batch_size)
    return {
        name: cloze(net, tokenizer, *map(list, zip(*task, strict=True)), batch_size=batch_size).accuracy
        for name, task in questions.items()
    }
