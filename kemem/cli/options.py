"""Options that all commands share, and the checks that need no model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.terminal import note
from kemem.errors import BadInput

SCALES = "smoke, laptop, gpu or paper"

Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or mps; float64 runs on the cpu where mps is chosen")
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="write one JSON document there; - for standard output"),
]
Paged = Annotated[
    bool,
    typer.Option(
        "--stream", help="keep the blocks on the disk, each read as it runs: for models beyond memory"
    ),
]

LayoutFile = Annotated[
    Path | None,
    typer.Option(
        "--layout",
        metavar="FILE",
        help="where a model of a family that is not listed keeps its memories: JSON with the fields of kemem.Layout",
    ),
]


def laid_out(file: Path | None, model: str, revision: str | None) -> None:
    """Makes a model's family known by the layout in a file, if there is one; refused where it does not fit."""
    if file is None:
        return
    import torch
    from transformers import AutoModel

    from kemem import models
    from kemem.families import read_layout, register
    from kemem.memory import Memories
    from kemem.progress import quiet_transformers

    layout = read_layout(file)
    config, _ = models.described(model, revision=revision)
    with torch.device("meta"), quiet_transformers():
        outline = AutoModel.from_config(config, trust_remote_code=False)
    Memories(outline, layout=layout)
    register(config.model_type, layout)


def opened(paged: bool) -> Callable[..., tuple[Any, Any]]:
    """What opens a model: in memory, or with its blocks on the disk."""
    from kemem import models
    from kemem.models import streaming

    return streaming.stream if paged else models.load


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise BadInput(
            f"expected {name} to be one of {', '.join(known)}; got {value!r}; choose one of these."
        )


def at_least(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"expected {option} to be {least} or more; got {number}; give a larger number.")


def check_corpus(spec: str) -> None:
    """Refuses a spec that is written wrongly or names a file that is not there; the texts are read later."""
    from kemem.corpora import files, specs

    for part in specs(spec):
        if part.scheme == "files":
            files.files(part.rest)


def place(device: str, dtype: str | None) -> str:
    """The device by its own name; refuses one that this machine does not have."""
    from kemem import models

    found = models.named_device(device).type
    if found == "mps" and dtype == "float64":
        note("mps has no float64: this runs on the cpu.")
        return "cpu"
    return found
