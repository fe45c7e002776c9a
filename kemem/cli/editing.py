"""`kemem edit`: facts rewritten in a model's weights, and what that did to it."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.editors import (
    BY_KEYS,
    METHODS,
    PHASES,
    by_layer,
    check_moments,
    check_options,
    check_values,
    counted,
    editor_of,
    layer_list,
    mend,
    ordinary,
    outline,
    published_layers,
    read_templates,
    read_values,
    settings_of,
    write_values,
)
from kemem.cli.measuring import LONGEST
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
from kemem.cli.resuscitating import check_out, write
from kemem.cli.terminal import check_json, guarded, note, patience, quiet_libraries, write_json
from kemem.errors import BadInput

TEXTS = 1000  # of ordinary text, unless told


@guarded("nothing was written; run the same command again")
def edit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a local folder, or a name on the hub")],
    requests: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="JSON in the schema of CounterFact, EasyEdit or zsRE; also jsonl, gz"
        ),
    ],
    method: Annotated[str, typer.Option(metavar="NAME", help=", ".join(METHODS))] = "memit",
    relation: Annotated[
        str | None, typer.Option(metavar="R", help="records of this relation alone, such as P30")
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", metavar="N", help="the first N records; by default all")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="L,L", help="layers from 0, ascending; by default where GPT-J's are, in proportion"
        ),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(metavar="W", help="lambda, of the old keys; as released")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="R", help="branch, tag or commit; of a local folder a sub-folder")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="ordinary text: docstrings, the default, world, files:PATH or hub:NAME, joined by +",
        ),
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help=f"how many texts of it, from the first; by default {TEXTS}")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help=f"tokens of a text that are read; by default {LONGEST}, or the model's context if shorter"
        ),
    ] = None,
    moments: Annotated[
        Path | None, typer.Option(metavar="FILE", help="key moments: safetensors, one [M, M] layer.<l> each")
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='contexts: a JSON list of strings with one {}, "{}" first'),
    ] = None,
    values: Annotated[
        Path | None, typer.Option(metavar="FILE", help="target vectors: safetensors, z [N, D]")
    ] = None,
    save_values: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the target vectors there")
    ] = None,
    conflicts: Annotated[
        str,
        typer.Option(
            help="of records that ask for two objects of one fact: none refuses, first keeps the first"
        ),
    ] = "none",
    seed: Annotated[int, typer.Option(help="of the sampled contexts, and of training")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the edited model, new or empty")
    ] = None,
    json: Json = None,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, float64, bfloat16 or float16; also what is written")
    ] = "float32",
    batch_size: Annotated[
        int, typer.Option(help="requests at a time; prompts are scored 4 times as many")
    ] = 16,
    paged: Paged = False,
    layout: LayoutFile = None,
) -> None:
    """Rewrite facts in MODEL: score, edit, score again, write.

    Without --templates contexts are sampled from the model itself: the bare prompt, and five texts of 10 tokens before
    it. mend trains its networks on the records beyond the first N. With --stream the folder keeps the number types of
    the model's own files, whatever --dtype is.

    --json writes one object: method, n (records edited), dropped (left out by --conflicts first), layers, seconds (by
    phase: moments, values, keys, solve, scores, 0 where there was none; and contexts, training, updates), before and
    after (ES, PS, NS, S, magnitudes and accuracies in percent; null where no record has such prompts), update_norm (by
    layer), settings, out.
    """
    one_of("--method", method, METHODS)
    one_of("--conflicts", conflicts, ("none", "first"))
    if count is not None and count < 1:
        raise BadInput(f"expected -n to be 1 or more; got {count}; give a larger number.")
    at_least(1, instances=instances, length=length, batch_size=batch_size)
    at_least(0, seed=seed)
    check_options(method, weight, {
        "--moments": moments, "--templates": templates, "--values": values, "--save-values": save_values,
        "--weight": weight, "--corpus": corpus, "--instances": instances, "--length": length,
    })  # fmt: skip
    if paged and method not in BY_KEYS:
        raise BadInput(
            f"expected a method that works by keys with --stream ({', '.join(BY_KEYS)}); got {method}, which trains; "
            "leave --stream out."
        )
    chosen = None if layers is None else layer_list(layers, method)
    check_json(json)
    check_save(save_values)
    if out is not None:
        check_out(out)
    from kemem import editing, models
    from kemem.corpora.files import expanded

    quiet_libraries()
    one_of("--dtype", dtype, tuple(models.DTYPES))
    device = place(device, dtype)
    reads_text = (method in BY_KEYS and moments is None) or method == "mend"
    spec = (corpus or "docstrings") if reads_text else None
    if spec is not None:
        check_corpus(spec)
    contexts = None if templates is None else read_templates(templates)
    given_values = None if values is None else read_values(values)
    records = editing.requests(requests, relation=relation)
    if count is not None and count > len(records):
        raise BadInput(f"expected -n up to {len(records)}, the records of {requests}; got {count}; lower it.")
    first = records[:count]
    asked = editing.without_conflicts(first, keep=conflicts)
    editing.check(asked)
    others = editing.without_conflicts(records[len(first) :], keep="first") if method == "mend" else []
    if method == "mend" and not others:
        raise BadInput(
            "expected records beyond the first N, to train the networks of mend on; got none; lower -n."
        )
    name = f"{model} at {revision}" if revision else model
    config, tokenizer = models.described(model, revision=revision)
    laid_out(layout, model, revision)
    sizes = outline(config, method)
    if tokenizer is None:
        raise BadInput(f"expected a tokenizer beside the weights of {name}; got none; save it there.")
    chosen = chosen or published_layers(method, sizes.layers)
    editing.prepared(sizes, tokenizer, asked, contexts or (editing.PLAIN,), chosen)
    if others:
        editing.prepared(sizes, tokenizer, others, (editing.PLAIN,), ())
    judge = editing.Judge(tokenizer, asked, batch_size=4 * batch_size)
    if given_values is not None:
        check_values(given_values, len(asked), sizes.width)
    elif method == "pmet" and chosen[-1] == 0:
        raise BadInput(
            "expected a highest layer of 1 or more for pmet, which starts from what the one below puts out; got 0; "
            "add layer 1."
        )
    seconds = dict.fromkeys(PHASES, 0.0)

    def timed(phase: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
        return found

    known = None
    if moments is not None:
        file = expanded(str(moments))
        known = timed("moments", lambda: check_moments(editing.read_moments(file), sizes, chosen, method))
    if dropped := len(first) - len(asked):
        note(f"records left out, as they contradict an earlier one: {dropped}.")
    with patience(f"loading {name}"):
        net, tokenizer = opened(paged)(model, revision=revision, device=device, dtype=dtype)
    if method in BY_KEYS and contexts is None:
        with patience("sampling contexts"):
            contexts = timed("contexts", lambda: editing.sampled(net, tokenizer, seed=seed))
        editing.prepared(sizes, tokenizer, asked, contexts, chosen)  # they may leave a prompt no room
    before = timed("scores", lambda: judge(net, progress=counted("scores before", "texts")).summary())
    rows = [] if spec is None else ordinary(net, tokenizer, spec, instances or TEXTS, length, LONGEST)
    if method in BY_KEYS and known is None:
        reading = counted("moments", "texts")
        known = timed(
            "moments", lambda: editing.key_moments(net, rows, chosen, batch_size=batch_size, progress=reading)
        )
        check_moments(known, sizes, chosen, method)
    if method == "mend":
        editor = timed("training", lambda: mend(net, tokenizer, others, rows, chosen, seed))
    else:
        editor = editor_of(method, chosen, weight)
    more = {"templates": contexts, "targets": given_values} if method in BY_KEYS else {}
    made = editor(net, tokenizer, asked, known, batch_size=batch_size, progress=counted(method), **more)
    for phase, spent in made.seconds.items():
        seconds[phase] = seconds.get(phase, 0.0) + spent
    norms = by_layer(sizes, made.norms, chosen)
    made.apply_(net)
    after = timed("scores", lambda: judge(net, progress=counted("scores after", "texts")).summary())
    if save_values is not None:
        write_values(save_values, made.notes["targets"])
    if out is not None:
        write(out, net, tokenizer)
    settings = {
        "model": model, "revision": revision, "family": config.model_type, "requests": requests,
        "relation": relation, "conflicts": conflicts, "seed": seed, "templates": contexts, "corpus": spec,
        "texts": len(rows), "moments": None if moments is None else str(moments),
        "moments_tokens": (known.tokens or None) if known is not None else None,
        "values": None if values is None else str(values), "dtype": dtype, "editor": settings_of(editor),
    }  # fmt: skip
    document = {
        "method": method, "n": len(asked), "dropped": dropped, "layers": list(chosen), "seconds": seconds,
        "before": before, "after": after, "update_norm": norms, "settings": settings,
        "out": None if out is None else str(out),
    }  # fmt: skip
    if json is not None:
        write_json(document, json)
    else:
        show(document)


def check_save(file: Path | None) -> None:
    """Refuses a place for target vectors where nothing could be written once the work is done."""
    if file is None:
        return
    if file.is_dir() or not file.resolve().parent.is_dir():
        raise BadInput(
            f"expected --save-values to name a file in a folder that exists; got {file}; correct it."
        )
    if not os.access(file.resolve().parent, os.W_OK):
        raise BadInput(f"expected --save-values where it may be written; got {file}; choose another place.")


def show(document: dict[str, Any]) -> None:
    """Scores before and after as a table for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    names = ("ES", "PS", "NS", "S", "rewrite_tokens", "paraphrase_tokens", "locality_tokens", "S_tokens")
    shown = [name for name in names if document["after"].get(name) is not None]
    table = Table(box=SIMPLE)
    for head in ("", *shown):
        table.add_column(head, justify="right", no_wrap=True)
    for when in ("before", "after"):
        numbers = (document[when].get(name) for name in shown)
        table.add_row(when, *("" if n is None else f"{n:.1f}" for n in numbers))
    print(f"{document['method']}, {document['n']} requests, layers {', '.join(map(str, document['layers']))}")
    Console().print(table)
    print("seconds", *(f"{name} {value:.1f}" for name, value in document["seconds"].items()))
    for name, value in document["update_norm"].items():
        print(f"added to layer {name}: norm {value:.4g}")
