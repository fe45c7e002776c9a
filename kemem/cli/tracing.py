"""`kemem trace`: at which tokens and layers a model comes by the facts it knows, and which layers to edit."""

import math
from typing import Annotated, Any

import typer

from kemem.cli.measuring import check_family
from kemem.cli.options import Device, Json, LayoutFile, Paged, at_least, laid_out, one_of, opened, place
from kemem.cli.terminal import check_json, guarded, note, patience, progress, quiet_libraries, write_json
from kemem.errors import BadInput


@guarded("nothing was written; run the same command again")
def trace(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a local folder, or a name on the hub")],
    facts: Annotated[
        str, typer.Option(metavar="FILE", help="JSON of facts: known_id, prompt, subject, attribute")
    ],
    revision: Annotated[
        str | None,
        typer.Option(metavar="R", help="branch, tag or commit; of a local folder a sub-folder"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="facts that are read, from the first")] = None,
    samples: Annotated[int, typer.Option(help="draws of the noise for every fact")] = 10,
    window: Annotated[int, typer.Option(help="layers of MLP or attention that are restored together")] = 10,
    noise: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="standard deviation of the noise; by default 3 times that of the embeddings of subjects",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="the noise follows from it")] = 0,
    json: Json = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16")] = "float32",
    batch_size: Annotated[int, typer.Option(help="prompts in one forward pass")] = 128,
    paged: Paged = False,
    layout: LayoutFile = None,
) -> None:
    """Trace where MODEL comes by the facts it knows: corrupt the subject, restore a part, see what comes back.

    A record of FILE is {"known_id", "prompt", "subject", "attribute"}, as in known_1000. A fact is used if the
    most probable next token of its prompt is the first token of its attribute; p is the probability of that
    token. The subject's embeddings are corrupted by noise. The indirect effect of a part is the p that it
    brings back when it alone takes its clean value: the state after one layer, or the outputs of a window of
    MLPs or attention layers. With paths severed, the MLP (or attention) outputs at the last token of the subject
    stay corrupted; where that takes most away are the layers to edit.

    --json writes one object: model, revision, family, facts (read), facts_used, clean, corrupted (mean p),
    effects and intervals (half-widths at 95 %, null of one fact), severed, gap, layers (from 0, to edit), noise,
    samples, window, seed. effects[state, mlp, attention][role] is a list over layers; roles are first_subject,
    middle_subject, last_subject, first_subsequent, further, last, where a fact has such a token: the one token
    of a subject is its last. severed[plain, mlp, attention] are effects of the state at last_subject, by layer.
    gap is plain less mlp severed, with its mean and interval.
    """
    at_least(1, limit=limit, samples=samples, window=window, batch_size=batch_size)
    at_least(0, seed=seed)
    if noise is not None and not 0 <= noise < math.inf:
        raise BadInput(f"expected --noise to be 0 or more; got {noise}; leave it out for 3 times the spread.")
    check_json(json)
    from kemem import models
    from kemem.editing import effects, tracing
    from kemem.editing.readers import known_facts

    quiet_libraries()
    one_of("--dtype", dtype, tuple(models.DTYPES))
    device = place(device, dtype)
    asked = known_facts(facts, limit=limit)
    name = f"{model} at {revision}" if revision else model
    config, tokenizer = models.described(model, revision=revision)
    family = config.model_type
    laid_out(layout, model, revision)
    check_family(family, "abs")
    if family in models.MASKED:
        raise BadInput(
            f"expected a model that predicts the next token; got {family}, which fills in masked ones; choose "
            "another model."
        )
    if tokenizer is None:
        raise BadInput(f"expected a tokenizer beside the weights of {name}; got none; save it there.")
    effects.questions(tokenizer, asked, longest=getattr(config, "max_position_embeddings", None))
    with patience(f"loading {name}"):
        net, tokenizer = opened(paged)(model, revision=revision, device=device, dtype=dtype)
    found = tracing.trace(
        net, tokenizer, asked, samples=samples, window=window, noise=noise, seed=seed,
        batch_size=batch_size, progress=progress(name),
    )  # fmt: skip
    if left := found.read - len(found.traces):
        note(f"facts left out, as the model does not know them: {left} of {found.read}.")
    document = {
        "model": model, "revision": revision, "family": family, "facts": found.read,
        "facts_used": len(found.traces), "clean": found.clean, "corrupted": found.corrupted,
        **_effects(found), "layers": list(found.layers), "noise": found.noise, "samples": samples,
        "window": window, "seed": seed,
    }  # fmt: skip
    if json is not None:
        write_json(document, json)
    else:
        show(document)


def _effects(found: Any) -> dict[str, Any]:
    means = {kind: found.effects(kind) for kind in ("state", "mlp", "attention")}
    return {
        "effects": {k: {role: m.value.tolist() for role, m in own.items()} for k, own in means.items()},
        "intervals": {k: {role: _half(m) for role, m in own.items()} for k, own in means.items()},
        "severed": {name: m.value.tolist() for name, m in found.severed.items()},
        "gap": {"mean": found.gap.value.tolist(), "interval": _half(found.gap)},
    }


def _half(mean: Any) -> list[float] | None:
    return None if mean.half is None else mean.half.tolist()


def show(document: dict[str, Any]) -> None:
    """The highest average effect of every role of a token, and the severed paths by layer, as tables for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    name = f"{document['model']} at {document['revision']}" if document["revision"] else document["model"]
    print(f"{name} ({document['family']}): {document['facts_used']} of {document['facts']} facts are known")
    print(f"probability {document['clean']:.4f}, {document['corrupted']:.4f} with the subject corrupted")
    best = Table(box=SIMPLE, title="highest indirect effect, at its layer", title_justify="left")
    best.add_column("token")
    kinds = document["effects"]
    for kind in kinds:
        best.add_column(kind, justify="right", no_wrap=True)
    for role in kinds["state"]:
        peaks = ((max(own[role]), own[role].index(max(own[role]))) for own in kinds.values())
        best.add_row(role.replace("_", " "), *(f"{effect:+.4f} at {layer}" for effect, layer in peaks))
    paths = Table(box=SIMPLE, title="state at the last token of the subject", title_justify="left")
    for head in ("layer", "effect", "MLP severed", "attention severed", "gap"):
        paths.add_column(head, justify="right", no_wrap=True)
    halves = document["gap"]["interval"]
    for layer, values in enumerate(zip(*document["severed"].values(), strict=True)):
        gap = f"{document['gap']['mean'][layer]:+.4f}"
        spread = "" if halves is None else f" ± {halves[layer]:.4f}"
        paths.add_row(str(layer), *(f"{value:+.4f}" for value in values), f"{gap}{spread}")
    Console().print(best, paths)
    print("layers to edit", *document["layers"])
    print(
        f"noise {document['noise']:.4g}, {document['samples']} samples, window {document['window']}, "
        f"seed {document['seed']}; layers from 0"
    )
