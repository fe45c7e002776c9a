"""What `kemem adapt` leaves behind of a course over domains: models in folders, numbers, tables."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kemem.cli.terminal import note
from kemem.errors import BadInput


# ---------------------------------------------------------------------- what is kept
def forget(work: Path) -> None:
    """Takes away work that was broken off before it saved anything: its command may have been mistaken."""
    if not any(work.rglob("*.json")):
        shutil.rmtree(work, ignore_errors=True)


def keep(net: Any, tokenizer: Any, made: Any, last: Any, work: Path, target: Path) -> None:
    """The trained model in `target`, with what the method can write into its weights written there."""
    from kemem.continual import beside
    from kemem.progress import quiet_transformers
    from kemem.training.state import write_folder

    if hasattr(made, "merge_"):
        made.merge_(net, last)

    def fill(folder: Path) -> None:
        with quiet_transformers():
            net.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    write_folder(work / "model", fill)
    move(work / "model", target)
    if names := beside.present(net):
        note(
            f"from_pretrained opens {target} without the modules beside the model, {', '.join(names)}; "
            "the weights file holds them under beside."
        )


def settle(work: Path, target: Path, names: Sequence[str], steps: int, tokenizer: Any) -> None:
    """The specialists, from their last checkpoints to a folder each. Killed on the way, a second call goes on."""
    for i, name in enumerate(names):
        trained = work / f"{i}-{name}" / f"step{steps}"
        tokenizer.save_pretrained(target / name)
        if trained.is_dir():
            move(trained, target / name)


def move(folder: Path, target: Path) -> None:
    """All files of a folder to another, the configuration last: with it a folder is a model."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, target / file.name)
    folder.rmdir()


# ---------------------------------------------------------------------- what is found
def numbers(course: Any, seed: int) -> dict[str, Any]:
    """A course as JSON has it. A run for several domains at once counts in equal parts for each."""
    spent = [
        max(seconds, history.steps[-1]["seconds"])  # of a run that is resumed only the second knows all
        for seconds, history in zip(course.seconds, course.histories, strict=True)
    ]
    shared = len(course.names) // len(spent)
    tested = any(score is not None for score in course.task_before)
    found = {
        "seed": seed, "loss": course.loss, "before": course.before, "task": course.task if tested else None,
        "task_before": course.task_before if tested else None, "forgetting": course.forgetting,
        "average": course.average, "forward_transfer": course.forward_transfer,
        "general_loss": {
            "before": course.general[0], "after": [x for x in course.general[1:] for _ in range(shared)],
        } if course.general else None,
        "seconds": [round(x / shared, 3) for x in spent for _ in range(shared)],
        "parameters_added": [x // shared for x in course.added for _ in range(shared)],
    }  # fmt: skip
    if not all(map(math.isfinite, [x for row in course.loss for x in row] + course.general)):
        raise BadInput(f"expected finite losses; got others with seed {seed}; lower --lr.")
    return found


def mean(found: Sequence[Any]) -> Any:
    """The mean over seeds of a number, or of each number in a list or an object; null stays null."""
    first = found[0]
    if isinstance(first, dict):
        return {key: mean([each[key] for each in found]) for key in first}
    if isinstance(first, list):
        return [mean(each) for each in zip(*found, strict=True)]
    return None if first is None else math.fsum(found) / len(found)


def show(document: dict[str, Any]) -> None:
    """Losses and scores of every domain, before and after each, as tables for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    settings, names = document["settings"], document["domains"]
    print(
        f"{settings['model']} ({settings['family']}), {document['method']}: {settings['steps']} steps of "
        f"{settings['batch']} rows of {settings['length']} tokens on each domain, {settings['seeds']} runs, "
        f"{sum(document['seconds']) * settings['seeds']:.0f} s"
    )
    for key, before, what in (
        ("loss", "before", "nats a token"),
        ("task", "task_before", "per cent, end task"),
    ):
        if document[key] is not None:
            table = Table(box=SIMPLE)
            table.add_column("", no_wrap=True)
            table.add_column(what, no_wrap=True, overflow="ellipsis")
            for head in ("before", *(f"after {i + 1}" for i in range(len(names)))):
                table.add_column(head, justify="right", no_wrap=True)
            for i, each in enumerate(names):
                found = (document[before][i], *document[key][i])
                table.add_row(str(i + 1), each, *("" if x is None else f"{x:.4g}" for x in found))
            Console().print(table)
    for key in ("average", "forgetting", "forward_transfer"):
        print(f"{key.replace('_', ' ')}: {document[key]:.4f}")
    if (general := document["general_loss"]) is not None:
        print(
            f"general loss: {general['before']:.4f}, then {', '.join(f'{x:.4f}' for x in general['after'])}"
        )
    if settings["out"]:
        print(f"written to {settings['out']}")
