"""`kemem resuscitate`: a model whose least used memories are woken by an edit of its weights, as a new folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.measuring import LONGEST, Prefix, check_family, measured
from kemem.cli.options import Device, Json, LayoutFile, at_least, check_corpus, laid_out, one_of, place
from kemem.cli.terminal import check_json, guarded, note, patience, quiet_libraries, write_json
from kemem.errors import BadInput


@guarded("nothing was written; run the same command again")
def resuscitate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a local folder, or a name on the hub")],
    fraction: Annotated[
        float, typer.Option(metavar="P", help="share of each layer's memories that is woken, 0 to 1")
    ],
    gain: Annotated[
        float, typer.Option(metavar="Q", help="usage they are brought to, in means of their layer; above 0")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of the new model, new or empty")],
    corpus: Annotated[
        str, typer.Option(metavar="SPEC", help="docstrings, world, files:PATH or hub:NAME, joined by +")
    ] = "docstrings",
    revision: Annotated[
        str | None,
        typer.Option(metavar="R", help="branch, tag or commit; of a local folder a sub-folder"),
    ] = None,
    instances: Annotated[int, typer.Option(help="how many texts of the corpus, from the first")] = 512,
    length: Annotated[
        int | None,
        typer.Option(
            help=f"tokens of a text that are read; by default {LONGEST}, or the model's context if shorter"
        ),
    ] = None,
    json: Json = None,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, float64, bfloat16 or float16; also what is written")
    ] = "float32",
    batch_size: Annotated[int, typer.Option(help="texts in one forward pass")] = 8,
    layout: LayoutFile = None,
) -> None:
    """Wake the idle memories of MODEL: measure, multiply, measure again, write.

    The usage of every memory is measured on a text, as by `kemem entropy`. The share --fraction of each layer
    that is used least is then multiplied by --gain x mean usage / its usage; --fraction 0 changes nothing. In
    gated models this scales the rows of `up`, so coefficients; where there is no gate it scales the values, so
    what a memory writes. DIR is a folder that from_pretrained and `kemem entropy` open, with the tokenizer.

    --json writes one object: model, revision, family, fraction, gain, scaled (up, or values without a gate),
    selected (how many memories of each layer), bound (L ln M), corpus, tokens, before, after, out. before and
    after hold layers (entropy of each), entropy (their sum), effective_share (exp(entropy / L) / M) and
    next_token_entropy (null without a language-model head), all in nats.
    """
    if not 0 <= fraction <= 1:
        raise BadInput(f"expected --fraction to be a share, 0 to 1; got {fraction}; for 50 percent give 0.5.")
    if not 0 < gain < float("inf"):
        raise BadInput(f"expected --gain to be a number above 0; got {gain}; 1 is the mean usage of a layer.")
    at_least(1, instances=instances, length=length, batch_size=batch_size)
    check_json(json)
    check_out(out)
    from kemem import entropy, models
    from kemem.corpora import stream
    from kemem.memory import Memories

    quiet_libraries()
    one_of("--dtype", dtype, tuple(models.DTYPES))
    device = place(device, dtype)
    check_corpus(corpus)
    family = models.family(model, revision=revision)
    laid_out(layout, model, revision)
    check_family(family, "abs")
    name = f"{model} at {revision}" if revision else model
    with patience(f"loading {name}"):
        net, tokenizer = models.load(model, revision=revision, device=device, dtype=dtype)
    if tokenizer is None:
        raise BadInput(f"expected a tokenizer beside the weights of {name}; got none; save it there.")
    gated = Memories(net).gated
    if not gated:
        note(
            f"{family} has no gate: values are scaled, so what a memory writes, and not its own coefficient."
        )
    texts = Prefix(stream(corpus))

    def on_text(title: str, say: Callable[[str], None]) -> Any:
        return measured(
            net, tokenizer, texts, instances=instances, length=length, batch_size=batch_size,
            coefficient="abs", padding="mask", attention=False, title=title, say=say,
        )  # fmt: skip

    before = on_text(f"{name} before", note)
    entropy.resuscitate_(net, entropy.multiplier(before.usage, fraction, gain))
    after = on_text(f"{name} after", lambda _: None)
    write(out, net, tokenizer)
    document = {
        "model": model, "revision": revision, "family": family, "fraction": fraction, "gain": gain,
        "scaled": "up" if gated else "values", "selected": entropy.idle(before.usage, fraction).sum(-1).tolist(),
        "bound": before.bound, "corpus": corpus, "tokens": before.tokens,
        "before": _row(before), "after": _row(after), "out": str(out),
    }  # fmt: skip
    if json is not None:
        write_json(document, json)
    else:
        show(document)


def check_out(out: Path) -> None:
    """Refuses a place for the model where it could not be written, or would replace something."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"expected --out to be a folder; got the file {out}; name a folder.")
    inside = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if inside:
        raise BadInput(
            f"expected --out to be a new or empty folder; {out} holds {inside[0]!r}; choose another."
        )
    above = next(folder for folder in out.resolve().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise BadInput(f"expected --out where it may be written; got {out}; choose another place.")


def write(out: Path, net: Any, tokenizer: Any) -> None:
    """The model and its tokenizer as one folder, whole or not at all."""
    from kemem.progress import quiet_transformers
    from kemem.training.state import write_folder

    def fill(folder: Path) -> None:
        with quiet_transformers():
            net.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    with patience(f"writing {out}"):
        write_folder(out.resolve(), fill)


def _row(found: Any) -> dict[str, Any]:
    return {
        "layers": found.layers.tolist(),
        "entropy": found.entropy,
        "effective_share": found.effective_share,
        "next_token_entropy": found.next_token_entropy,
    }


def show(document: dict[str, Any]) -> None:
    """Entropies before and after as a table for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    table.add_column("")
    names = {"entropy": "entropy", "next_token_entropy": "next token"}
    shown = [key for key in names if document["before"][key] is not None]
    for head in (*(names[key] for key in shown), "effective share"):
        table.add_column(head, justify="right", no_wrap=True)
    for when in ("before", "after"):
        row = document[when]
        table.add_row(when, *(f"{row[key]:.4f}" for key in shown), f"{row['effective_share']:.2%}")
    name = f"{document['model']} at {document['revision']}" if document["revision"] else document["model"]
    print(f"{name} ({document['family']}) on {document['corpus']}, {document['tokens']:,} tokens")
    print(f"fraction {document['fraction']:g}, gain {document['gain']:g}, {document['scaled']} scaled")
    Console().print(table)
    for when in ("before", "after"):
        print("layers", when, *(f"{entropy:.4f}" for entropy in document[when]["layers"]))
    print("memories selected", *document["selected"])
    print(f"in nats, at most {document['bound']:.4f}; written to {document['out']}")
