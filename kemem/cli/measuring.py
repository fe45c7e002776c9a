"""`kemem entropy`: knowledge entropy of a model, or of several revisions of it, on one text."""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import typer

from kemem.cli.options import (
    Device,
    Json,
    LayoutFile,
    Paged,
    at_least,
    check_corpus,
    laid_out,
    one_of,
    opened,
    place,
)
from kemem.cli.terminal import check_json, guarded, note, patience, progress, quiet_libraries, write_json
from kemem.errors import BadInput

LONGEST = 2048  # tokens of an instance, as in the paper


@guarded("run the same command again")
def entropy(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a local folder, or a name on the hub")],
    revision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R",
            help="branch, tag or commit, or how one branch begins (step1000); of a local folder a sub-folder; "
            "may be repeated",
        ),
    ] = None,
    corpus: Annotated[
        str, typer.Option(metavar="SPEC", help="docstrings, world, files:PATH or hub:NAME, joined by +")
    ] = "docstrings",
    instances: Annotated[int, typer.Option(help="how many texts of the corpus, from the first")] = 512,
    length: Annotated[
        int | None,
        typer.Option(
            help=f"tokens of a text that are read; by default {LONGEST}, or the model's context if shorter"
        ),
    ] = None,
    coefficient: Annotated[
        str, typer.Option(help="abs: |c|; relu: max(c, 0); relu-gate: |relu(gate) x up|, gated models only")
    ] = "abs",
    padding: Annotated[
        str,
        typer.Option(
            help="mask: only real tokens count; include: padding up to --length counts, as released"
        ),
    ] = "mask",
    attention: Annotated[bool, typer.Option("--attention", help="also the entropy of attention")] = False,
    json: Json = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16")] = "float32",
    batch_size: Annotated[int, typer.Option(help="texts in one forward pass")] = 8,
    paged: Paged = False,
    layout: LayoutFile = None,
) -> None:
    """Knowledge entropy of MODEL on a text, with next-token and attention entropy, all in nats.

    A text is an instance: a non-empty line of a txt file, the field `text` of a line of jsonl. It is read
    without special tokens and cut to --length; means are over the tokens of an instance, then over instances.

    --json writes a list, one object a revision: model, revision, commit (of the hub; null of a folder), family,
    layers (entropy of each), entropy (their sum), bound (L ln M), effective_share (exp(entropy / L) / M),
    next_token_entropy (null without a language-model head), attention_entropy (sum over layers of the mean over
    heads; null unless --attention),
    tokens, corpus, coefficient, padding.
    """
    one_of("--padding", padding, ("mask", "include"))
    one_of("--coefficient", coefficient, ("abs", "relu", "relu-gate"))
    at_least(1, instances=instances, length=length, batch_size=batch_size)
    check_json(json)
    from kemem import models
    from kemem.corpora import stream

    quiet_libraries()
    one_of("--dtype", dtype, tuple(models.DTYPES))
    device = place(device, dtype)
    check_corpus(corpus)
    wanted: list[str | None] = list(revision or [None])
    for each in wanted:
        laid_out(layout, model, each)
        check_family(models.family(model, revision=each), coefficient)
    texts: Prefix | None = None
    rows: list[dict[str, Any]] = []
    complete = False
    try:
        for each in wanted:
            name = f"{model} at {each}" if each else model
            commit = models.commit(model, revision=each)
            with patience(f"loading {name}"):
                net, tokenizer = opened(paged)(model, revision=commit or each, device=device, dtype=dtype)
            if tokenizer is None:
                raise BadInput(f"expected a tokenizer beside the weights of {name}; got none; save it there.")
            texts = texts or Prefix(stream(corpus))
            found = measured(
                net, tokenizer, texts, instances=instances, length=length, batch_size=batch_size,
                coefficient=coefficient, padding=padding, attention=attention, title=name,
                say=note if not rows else lambda _: None,
            )  # fmt: skip
            rows.append(
                {
                    "model": model,
                    "revision": each,
                    "commit": commit,
                    "family": net.config.model_type,
                    "layers": found.layers.tolist(),
                    "entropy": found.entropy,
                    "bound": found.bound,
                    "effective_share": found.effective_share,
                    "next_token_entropy": found.next_token_entropy,
                    "attention_entropy": found.attention_entropy,
                    "tokens": found.tokens,
                    "corpus": corpus,
                    "coefficient": coefficient,
                    "padding": padding,
                }
            )
            del net
        complete = True
    finally:
        if rows and not complete:
            note(f"measured before it ended: {len(rows)} of {len(wanted)} revisions.")
        if rows and json is not None:
            write_json(rows, json)
        elif rows:
            show(rows)


class Prefix:
    """Texts that are read once and may be gone through again: no more of a corpus is read than was asked for."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._rest, self._read = texts, list[str]()

    def __iter__(self) -> Iterator[str]:
        yield from self._read
        for text in self._rest:
            self._read.append(text)
            yield text


def check_family(family: str, coefficient: str) -> None:
    """What `Memories` and `measure` would refuse too, before any weights are read."""
    from kemem.families import known

    layout = known(family)
    if coefficient == "relu-gate" and layout.gate is None and layout.fused is None:
        raise BadInput(
            f"coefficient relu-gate needs a gated model; got {family!r}, which has no gate; use abs or relu."
        )


def measured(
    net: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    instances: int,
    length: int | None,
    batch_size: int,
    coefficient: str,
    padding: str,
    attention: bool,
    title: str = "",
    say: Callable[[str], None] = note,
) -> Any:
    """One model measured on the first `instances` texts that have a token. `say` gets what was left out."""
    from kemem import corpora
    from kemem import entropy as measures
    from kemem.entropy.batches import context

    longest = context(net)
    asked = length if length is not None else LONGEST
    used = asked if longest is None else min(asked, longest)
    if length is not None and used < length:
        say(f"--length {length} is beyond the model's context and was cut to it: {used} tokens.")
    with patience(f"reading texts for {title}"):
        chosen = corpora.instances(texts, tokenizer, used, limit=instances)
    if chosen.skipped:
        say(f"texts skipped, as they have no token: {chosen.skipped}.")
    if chosen.cut:
        say(f"texts cut to {used} tokens: {chosen.cut} of {len(chosen)}.")
    report = progress(title)
    return measures.measure(
        net, chosen.ids, batch_size=batch_size, coefficient=coefficient, padding=padding, length=used,
        pad_id=_pad_id(net, tokenizer) if padding == "include" else None, attention=attention,
        progress=lambda done, total: report(done, total or len(chosen), "instances"),
    )  # fmt: skip


def _pad_id(net: Any, tokenizer: Any) -> int | None:
    """The token that padding="include" counts: the tokenizer's, else the model's, else the end of text."""
    known = (tokenizer.pad_token_id, getattr(net.config, "pad_token_id", None), tokenizer.eos_token_id)
    return next((number for number in known if number is not None), None)


def show(rows: list[dict[str, Any]]) -> None:
    """The measurements as a table for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    names = {"next_token_entropy": "next token", "attention_entropy": "attention"}
    shown = ["entropy", *(key for key in names if any(row[key] is not None for row in rows))]
    table = Table(box=SIMPLE)
    table.add_column("revision")
    for head in (*(names.get(key, key) for key in shown), "effective share", "tokens"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        nats = ("" if row[key] is None else f"{row[key]:.4f}" for key in shown)
        table.add_row(row["revision"] or "", *nats, f"{row['effective_share']:.2%}", f"{row['tokens']:,}")
    print(f"{first['model']} ({first['family']}) on {first['corpus']}")
    Console().print(table)
    for row in rows:
        print("layers", row["revision"] or "", *(f"{entropy:.4f}" for entropy in row["layers"]))
    print(
        f"in nats, at most {first['bound']:.4f}; "
        f"coefficient {first['coefficient']}, padding {first['padding']}"
    )
