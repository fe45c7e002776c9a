"""`kemem pretrain`: a model of the book, trained on a text of one's own, into a folder of checkpoints."""

import json as encoding
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.options import SCALES, Device, Json, at_least, check_corpus, one_of, place
from kemem.cli.terminal import (
    check_json,
    guarded,
    note,
    patience,
    progress,
    quiet_libraries,
    write_json,
    write_whole,
)
from kemem.errors import BadInput

SETTINGS = "settings.json"
DTYPES = ("float32", "float64", "bfloat16")


@guarded("the same command goes on from the last saved state")
def pretrain(
    scale: Annotated[str, typer.Option(help=f"sizes of everything: {SCALES}")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="folder of the checkpoints, new or of this very run")
    ],
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="docstrings, world, files:PATH or hub:NAME, joined by +; default: the scale's",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="every random choice follows from it")] = 0,
    json: Json = None,
    device: Device = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float64, or bfloat16 over float32 weights; by default the scale's own"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="rows in memory at a time; the step keeps its rows, in several passes")
    ] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="of several processes each keeps a part of the weights")
    ] = False,
) -> None:
    """Train the model of chapter 02 at a scale. Stopped or killed, the same command goes on where it was.

    On several devices: torchrun --nproc-per-node N --no-python kemem pretrain ... (or accelerate launch);
    each process reads its share of a step's rows.

    Checkpoints are the folders DIR/step<N>, so `kemem entropy DIR --revision step<N>` measures one.

    --json writes one object: model (DIR), scale, seed, corpus, corpus_digest, device, dtype, precision,
    steps, tokens, parameters, vocabulary, passes (over the text), time_constants (of AdamW's decay),
    seconds, asked (facts of the world, by kind), checkpoints, history. checkpoints is a list, one object
    each: revision, step, tokens, loss (held out, of each part of the corpus), known (share of the facts, by
    kind), written (how the model goes on). history is a list of step, loss, lr, tokens, seconds.
    """
    at_least(1, batch_size=batch_size)
    at_least(0, seed=seed)
    if dtype is not None:
        one_of("--dtype", dtype, DTYPES)
    check_json(json)
    from kemem.runs import Store
    from kemem.studies import lab as labs
    from kemem.studies import pretraining, setup

    quiet_libraries()
    one_of("--scale", scale, labs.SCALES)
    if corpus is not None:
        check_corpus(corpus)
    device = place(device, dtype)
    settings = chosen(scale, corpus=corpus, seed=seed, device=device, dtype=dtype, batch_size=batch_size)
    with claimed(out, settings, pretraining.VERSION):
        lab = labs.Lab(scale, Store(out), out, device=device, progress=progress(f"{out}"))
        with patience(f"reading {settings.setup.corpus} and cutting it into tokens"):
            watch = pretraining.Watch(lab, settings)
            setup.blocks(lab, settings.setup, settings.setup.corpus, "train")
        _, history, found = setup.train(
            lab, settings.setup, out, keep=settings.steps, at_checkpoint=watch.stage, sharded=sharded
        )
    document = {
        "model": str(out), "scale": scale, "seed": seed, "corpus": settings.setup.corpus,
        "corpus_digest": found["corpus"]["digest"], "device": device, "dtype": settings.setup.dtype,
        "precision": settings.setup.precision, "steps": settings.setup.steps, "tokens": settings.setup.tokens,
        "parameters": found["parameters"], "vocabulary": found["vocabulary"], "passes": found["passes"],
        "time_constants": settings.setup.recipe().time_constants, "seconds": history.steps[-1]["seconds"],
        "asked": watch.asked,
        "checkpoints": [{"revision": f"step{stage['step']}", **stage} for stage in history.checkpoints],
        "history": history.steps,
    }  # fmt: skip
    if json is not None:
        write_json(document, json)
    else:
        show(document)


def chosen(
    scale: str, *, corpus: str | None, seed: int, device: str, dtype: str | None, batch_size: int | None
) -> Any:
    """The scale's settings with what was asked for; float32 where its bfloat16 has no hardware."""
    from dataclasses import replace

    from kemem.studies import pretraining
    from kemem.training import bfloat16_runs

    settings = pretraining.settings(scale, seed=seed, corpus=corpus, device=device)
    setup = settings.setup
    if dtype == "bfloat16":
        setup = setup.with_(dtype="float32", precision="bfloat16")
    elif dtype is not None:
        setup = setup.with_(dtype=dtype, precision="float32")
    elif setup.dtype == "float64" and device == "mps":
        raise BadInput(
            f"scale {scale} needs a device with float64; got mps; add --device cpu or --dtype float32."
        )
    if setup.precision == "bfloat16" and not bfloat16_runs(device):
        if dtype is not None:
            raise BadInput(f"expected a device that computes in bfloat16; got {device}; use --dtype float32.")
        note(f"{device} does not compute in bfloat16: this trains in float32, more slowly.")
        setup = setup.with_(precision="float32")
    if batch_size is not None:
        setup = setup.with_(accumulation=-(-setup.rows // batch_size))
    return replace(settings, setup=setup)


@contextmanager
def claimed(out: Path, settings: Any, version: int) -> Iterator[None]:
    """Within the block the folder is this run's. Refused before it has saved anything, it leaves it as it was."""
    existed, there = out.is_dir(), {*out.iterdir()} if out.is_dir() else set()
    fresh = claim(out, settings, version)
    try:
        yield
    except BadInput:
        if fresh and not saved(out):
            for entry in {*out.iterdir()} - there:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            if not existed:
                out.rmdir()
        raise


def saved(out: Path) -> bool:
    """Whether a run has left something to go on from."""
    return any(out.glob("step*")) or any(out.glob("state/step*"))


def claim(out: Path, settings: Any, version: int) -> bool:
    """Marks a new or empty folder as that of this run, and says so. Refuses one that holds anything else, saying what.

    A run that has saved nothing yet gives way: its command may have been mistaken.
    """
    from kemem.runs import canonical

    if out.exists() and not out.is_dir():
        raise BadInput(f"expected --out to be a folder; got the file {out}; name a folder.")
    here = {"version": version, **canonical(settings)}
    path = out / SETTINGS
    if path.is_file():
        try:
            there = encoding.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise BadInput(
                f"expected the settings of a run in {path}; got a damaged file; choose another --out."
            )
        if there == here:
            return False
        if saved(out):
            raise BadInput(
                f"expected --out to be empty or to hold this very run; {out} holds another: "
                f"{_differing(there, here)}; choose another folder or delete this one."
            )
    elif out.is_dir():
        inside = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
        if inside:
            raise BadInput(
                f"expected --out to be a new or empty folder; {out} holds {inside[0]!r}; choose another."
            )
    fresh = not path.is_file()
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, encoding.dumps(here, indent=1) + "\n")
    return fresh


def _differing(there: dict[str, Any], here: dict[str, Any]) -> str:
    old, new = ({**each, "setup": None, **each.get("setup", {})} for each in (there, here))
    names = (name for name in {**old, **new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} ({old.get(name)!r} there, {new.get(name)!r} now)" for name in names)


def show(document: dict[str, Any]) -> None:
    """The checkpoints as a table for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    stages = document["checkpoints"]
    table = Table(box=SIMPLE)
    table.add_column("revision")
    table.add_column("tokens", justify="right")
    parts, kinds = list(stages[0]["loss"]), list(stages[0]["known"])
    for part in parts:
        table.add_column(f"loss, {part}", justify="right")
    if kinds:
        table.add_column("facts known", justify="right")
    for stage in stages:
        right = sum(stage["known"][kind] * document["asked"][kind] for kind in kinds)
        known = [f"{right / sum(document['asked'].values()):.0%}"] if kinds else []
        losses = (f"{stage['loss'][part]:.3f}" for part in parts)
        table.add_row(stage["revision"], f"{stage['tokens']:,}", *losses, *known)
    print(f"{document['parameters']:,} parameters, trained for {document['seconds']:.0f} s")
    Console().print(table)
    print(f"measure one: kemem entropy {document['model']} --revision {stages[-1]['revision']}")
