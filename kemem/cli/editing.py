"""`kemem edit`: facts rewritten in a model's weights, and what that did to it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.editors import (
    BY_KEYS,
    METHODS,
    WEIGHTED,
    by_layer,
    editor_of,
    layer_list,
    mend,
    ordinary,
    published_layers,
    read_templates,
    read_values,
    show,
    write_values,
)
from kemem.cli.measuring import LONGEST
from kemem.cli.options import Device, Json, at_least, check_corpus, one_of, place
from kemem.cli.resuscitating import check_out, write
from kemem.cli.terminal import check_json, guarded, note, patience, progress, quiet_libraries, write_json
from kemem.errors import BadInput


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
        str,
        typer.Option(
            metavar="SPEC", help="ordinary text: docstrings, world, files:PATH or hub:NAME, joined by +"
        ),
    ] = "docstrings",
    instances: Annotated[int, typer.Option(help="how many texts of it, from the first")] = 1000,
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
) -> None:
    """Rewrite facts in MODEL: score, edit, score again, write.

    --json writes one object: method, n, layers, seconds (by phase: moments, values, keys, solve, scores), before and
    after (ES, PS, NS, S and their magnitudes and accuracies in percent; null where the records have no such prompts),
    update_norm (by layer), dropped (records left out by --conflicts
    first) and settings. Contexts are sampled from the model itself: the bare prompt and five texts of 10 tokens.
    """
    one_of("--method", method, METHODS)
    one_of("--conflicts", conflicts, ("none", "first"))
    if count is not None and count < 1:
        raise BadInput(f"expected -n to be 1 or more; got {count}; give a larger number.")
    at_least(1, instances=instances, length=length, batch_size=batch_size)
    if weight is not None and not weight > 0:
        raise BadInput(f"expected --weight above 0; got {weight}; 15000 is as released.")
    limits = (
        ("--templates", templates, BY_KEYS),
        ("--values", values, BY_KEYS),
        ("--save-values", save_values, BY_KEYS),
        ("--moments", moments, BY_KEYS),
        ("--weight", weight, WEIGHTED),
    )
    for option, given, methods in limits:
        if given is not None and method not in methods:
            raise BadInput(f"expected {option} with one of {', '.join(methods)}; got {method}; leave it out.")
    chosen = None if layers is None else layer_list(layers, method)
    check_json(json)
    if save_values is not None and (save_values.is_dir() or not save_values.resolve().parent.is_dir()):
        raise BadInput(
            f"expected --save-values to name a file in a folder that exists; got {save_values}; correct it."
        )
    if out is not None:
        check_out(out)
    from kemem import editing, models
    from kemem.memory import Memories

    quiet_libraries()
    one_of("--dtype", dtype, tuple(models.DTYPES))
    device = place(device, dtype)
    reads_text = (method in BY_KEYS and moments is None) or method == "mend"
    if reads_text:
        check_corpus(corpus)
    records = editing.requests(requests)
    if count is not None and count > len(records):
        raise BadInput(f"expected -n up to {len(records)}, the records of {requests}; got {count}; lower it.")
    first = records[:count]
    asked = editing.without_conflicts(first, keep=conflicts)
    editing.check(asked)
    others = records[len(first) :]
    if method == "mend" and not others:
        raise BadInput(
            "expected records beyond the first N, to train the networks of mend on; got none; lower -n."
        )
    contexts = None if templates is None else read_templates(templates)
    given_values = None if values is None else read_values(values)
    known = None if moments is None else editing.read_moments(moments)
    if dropped := len(first) - len(asked):
        note(f"records left out, as they contradict an earlier one: {dropped}.")
    name = f"{model} at {revision}" if revision else model
    with patience(f"loading {name}"):
        net, tokenizer = models.load(model, revision=revision, device=device, dtype=dtype)
    if tokenizer is None:
        raise BadInput(f"expected a tokenizer beside the weights of {name}; got none; save it there.")
    memories = editing.editable(net) if method in BY_KEYS else Memories(net)
    chosen = chosen or published_layers(method, memories.layers)
    editing.prepared(memories, tokenizer, asked, contexts or (editing.PLAIN,), chosen)
    if known is not None:
        known.checked(memories, chosen)
    report = progress(method)
    seconds: dict[str, float] = {}
    judge = editing.Judge(tokenizer, asked, batch_size=4 * batch_size)

    def timed(phase: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
        return found

    before = timed("scores", lambda: judge(net, progress=progress("scores before")).summary())
    rows = ordinary(net, tokenizer, corpus, instances, length, LONGEST) if reads_text else []
    more: dict[str, Any] = {}
    if method in BY_KEYS:
        if known is None:
            known = timed(
                "moments",
                lambda: editing.key_moments(
                    net, rows, chosen, batch_size=batch_size, progress=progress("moments")
                ),
            )
        more = {"templates": contexts or editing.sampled(net, tokenizer, seed=seed), "targets": given_values}
    if method == "mend":
        editor = timed("training", lambda: mend(net, tokenizer, others, rows, chosen, seed))
    else:
        editor = editor_of(method, chosen, weight)
    made = editor(net, tokenizer, asked, known, batch_size=batch_size, progress=report, **more)
    for phase, spent in made.seconds.items():
        seconds[phase] = seconds.get(phase, 0.0) + spent
    made.apply_(net)
    after = timed("scores", lambda: judge(net, progress=progress("scores after")).summary())
    if save_values is not None:
        write_values(save_values, made.notes["targets"])
    if out is not None:
        write(out, net, tokenizer)
    settings = {
        "model": model, "revision": revision, "requests": requests, "conflicts": conflicts, "seed": seed,
        "corpus": corpus if reads_text else None, "texts": len(rows), "templates": more.get("templates"),
        "moments_tokens": known.tokens if known is not None else None, "dtype": dtype, "editor": repr(editor),
    }  # fmt: skip
    document = {
        "method": method, "n": len(asked), "dropped": dropped, "layers": list(chosen), "seconds": seconds,
        "before": before, "after": after, "update_norm": by_layer(memories, made.norms), "settings": settings,
        "out": None if out is None else str(out),
    }  # fmt: skip
    if json is not None:
        write_json(document, json)
    else:
        show(document)
