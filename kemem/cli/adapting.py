"""`kemem adapt`: a model that learns domains one after another, by DAS or a method beside it, and what it forgets."""

import json as encoding
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.courses import forget, keep, mean, numbers, settle, show
from kemem.cli.domains import (
    asking,
    check_specs,
    general_rows,
    objective_of,
    outline,
    places,
    read,
    rows,
    split_specs,
)
from kemem.cli.options import Device, Json, LayoutFile, at_least, check_corpus, laid_out, one_of, place
from kemem.cli.pretraining import DTYPES, claim
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

VERSION = 1
WORK = Path("state", "steps")  # in DIR; `claim` takes what is called state/step... for saved work
TASKS = ("probe", "finetune", "none")
UNLIMITED = 1 << 20  # tokens, of a model that names no context


@guarded("with --out the same command goes on from the last saved state")
def adapt(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a local folder, or a name on the hub")],
    domains: Annotated[
        str,
        typer.Option(
            metavar="SPEC,SPEC",
            help="two or more: docstrings:PACKAGE, world:..,within=PLACE, files:PATH, hub:NAME, or one of pubmed, acl, "
            "ai, restaurants, electronics, books, movies",
        ),
    ],
    method: Annotated[str, typer.Option(metavar="NAME", help="how it learns; an unknown name lists them")],
    variant: Annotated[
        str, typer.Option(metavar="V", help="of das: an ablation, or a defect of the released code")
    ] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of the method; may be repeated"),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(metavar="2,1,3", help="of learning, by place in --domains; default: as given"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="how many runs, with --seed, --seed + 1, ...")] = 1,
    seed: Annotated[int, typer.Option(help="of the order of rows, dropout and the method's draws")] = 0,
    steps: Annotated[int, typer.Option(help="optimizer steps on each domain; the paper has 2580")] = 200,
    lr: Annotated[float, typer.Option(help="learning rate at its peak; as in the paper")] = 1e-4,
    batch: Annotated[int, typer.Option(help="rows of a step; the paper has 248")] = 16,
    length: Annotated[
        int | None,
        typer.Option(help="tokens of a row; by default 164, or what the model's context leaves if less"),
    ] = None,
    general: Annotated[
        str | None, typer.Option(metavar="SPEC", help="a corpus of no domain, for what is lost of all else")
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="how domains' end tasks are put: probe, finetune (slow), or none")
    ] = "probe",
    limit: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="of a domain, to train on; by default what its steps read"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="R", help="branch, tag or commit; of a local folder a sub-folder")
    ] = None,
    layout: LayoutFile = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder of the trained model, new or of this very run"),
    ] = None,
    json: Json = None,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, float64, or bfloat16 over float32 weights")
    ] = "float32",
    batch_size: Annotated[
        int, typer.Option(help="rows in memory at a time; the step keeps its rows, in several passes")
    ] = 16,
) -> None:
    """Train MODEL on domains one after another, and measure after each of them what it knows of all.

    NAME is ncl (plain training), one (a model for each domain), pool (all domains at once), ewc, kd, replay, derpp,
    hat, hat-all, hat-adapter, supsup, adapter-sequential, adapter-parallel, prompt, lora, demix, bcl, classic, cpt,
    elle or das. Each begins with its own settings, which stand in the JSON and which --set changes, as in --set
    strength=500; a key that is not known lists them. Variants of das, and --set importance= magnitude, gradient,
    lottery or random, are its ablations.

    AdamW as in the paper: epsilon 1e-6, no decay, no clipping, a tenth of the steps to warm up, then straight down to a
    last step that still counts, anew for each domain. Families that fill in masked tokens are trained so, others to
    predict the next one. Which texts are read is the same for all seeds: nine in ten documents to learn from, one in
    twenty to judge by (at most 50,000 tokens). Each seed starts from MODEL anew.

    End tasks come with packages, with places of a world and with named domains: at most 1,000 examples to learn from
    and 1,000 to test with, published ones whole. probe reads them off the frozen model by logistic regression; finetune
    trains a copy, with the paper's 3e-5, which is little for a small model.

    With --out, DIR is a folder that from_pretrained opens, with the tokenizer: DIR itself, with several seeds
    DIR/seed<k>, and of one a folder for each domain in it. A LoRA is merged (where each domain has its own, the last);
    other modules beside the model are in the file, but from_pretrained leaves them out. A command that was stopped or
    killed goes on where it was.

    --json writes one object: domains (names, in the order of learning), method, loss, before, task, task_before,
    forgetting, average, forward_transfer, general_loss, seconds, parameters_added, per_seed, settings. loss[i][j] is
    the loss of domain i after training on domain j, in nats a token of held-out text; before[i] that before any. Of
    pool all columns are equal, of one column j is the specialist of domain j, whose own losses are on the diagonal.
    task is likewise, in per cent (null without any end task). forgetting: mean rise of a domain's loss from its own
    column to the last; average: mean of the last column; forward_transfer: mean fall of a domain's loss by those before
    it. Each specialist of one is judged by its own domain: there average is the mean of the diagonal, and forgetting
    and forward_transfer are 0. general_loss holds before, and after: one for each column (null without --general).
    seconds and parameters_added are of each domain. All are means over seeds; per_seed has the same of each.
    """
    at_least(1, seeds=seeds, steps=steps, batch=batch, limit=limit, batch_size=batch_size)
    at_least(2, length=length)
    at_least(0, seed=seed)
    if not 0 < lr < math.inf:
        raise BadInput(f"expected --lr to be a number above 0; got {lr}; the paper has 1e-4.")
    one_of("--tasks", tasks, TASKS)
    one_of("--dtype", dtype, DTYPES)
    check_json(json)
    from kemem import corpora, models
    from kemem.continual import learn, named, pooled, specialists
    from kemem.continual.finetuning import longest
    from kemem.continual.sequence import checked
    from kemem.memory import Memories
    from kemem.training import Recipe, bfloat16_runs
    from kemem.training.state import alone

    quiet_libraries()
    learner = named.learner(method, variant)
    own = typed(method, changes or ())
    specs = split_specs(domains)
    check_specs(specs)
    chosen = places(order, len(specs))
    specs = [specs[i] for i in chosen]
    if general is not None:
        check_corpus(general)
    device = place(device, dtype)
    if dtype == "bfloat16" and not bfloat16_runs(device):
        raise BadInput(f"expected a device that computes in bfloat16; got {device}; use --dtype float32.")
    name = f"{model} at {revision}" if revision else model
    config, tokenizer = models.described(model, revision=revision)
    laid_out(layout, model, revision)
    shape = outline(config)
    if tokenizer is None:
        raise BadInput(f"expected a tokenizer beside the weights of {name}; got none; save it there.")
    objective = objective_of(config, tokenizer)
    known = named.Given(steps, longest(shape, UNLIMITED), objective, seed, Memories(shape).width)

    def fresh(seed: int) -> Any:
        return named.method(method, replace(known, seed=seed), variant=variant, **own)

    of_method = named.settings_of(fresh(seed))  # refuses settings before anything is read
    most = named.available(method, known, **own)
    row = min(length or named.LONGEST, most)
    if length is not None and row < length:
        note(f"--length {length} is beyond what {method} leaves of the model's context: {row} tokens.")
    if limit is not None and limit < batch * row:
        raise BadInput(
            f"expected --limit to be what a step reads or more, {batch * row} tokens; got {limit}; raise it."
        )
    recipe = Recipe(  # the rate falls to 1 / steps and not to 0, at which the last step, or a single one, does nothing
        steps=steps, batch_size=batch, learning_rate=lr, accumulation=-(-batch // min(batch, batch_size)),
        warmup_steps=round(0.1 * steps), final_share=1 / steps, schedule="linear", weight_decay=0.0, betas=(0.9, 0.999),
        epsilon=1e-6, clip=0.0, precision="bfloat16" if dtype == "bfloat16" else "float32",
        save_every=max(1, steps // 10), checkpoints=(steps,) if out and learner.schedule == "one" else (),
    )  # fmt: skip
    weights = "float32" if dtype == "bfloat16" else dtype
    with patience(f"reading {', '.join(specs)}"):
        sources = read(specs, tasks=tasks != "none")
        beside = None if general is None else corpora.corpus(general)
    settings = {
        "model": model, "revision": revision, "family": config.model_type, "method": method, "variant": variant,
        "of_method": of_method, "schedule": learner.schedule, "domains": specs, "order": [i + 1 for i in chosen],
        "digests": [source.corpus.digest for source in sources], "general": general,
        "general_digest": beside and beside.digest, "tasks": tasks,
        "end_tasks": [None if source.task is None else repr(source.task) for source in sources], "seeds": seeds,
        "seed": seed, "steps": steps, "lr": lr, "batch": batch, "length": row, "limit": limit or steps * batch * row,
        "objective": repr(objective), "dtype": weights, "precision": recipe.precision,
        "accumulation": recipe.accumulation,
    }  # fmt: skip
    if out is not None:
        forget(out / WORK)
        claim(out, settings, VERSION)
    with patience("cutting the domains into tokens"):
        held = [rows(source, tokenizer, row, settings["limit"]) for source in sources]
        asked = None if beside is None else general_rows(beside, tokenizer, row)
    checked(held, recipe)
    go: Callable[..., Any] = {"sequence": learn, "pool": pooled, "one": specialists}[learner.schedule]

    def one(seed: int) -> dict[str, Any]:
        """The run of a seed, or what is kept of it."""
        work = out and out / WORK / f"seed{seed}"
        record = work and work.with_suffix(".json")
        if record and work and record.is_file():
            shutil.rmtree(work, ignore_errors=True)  # killed just before it was removed
            return encoding.loads(record.read_text(encoding="utf-8"))
        with patience(f"loading {name}"):
            net, _ = models.load(model, revision=revision, device=device, dtype=weights)
        made = fresh(seed)
        learning = (lambda: fresh(seed)) if learner.schedule == "one" else made
        with reporting(name if seeds == 1 else f"{name}, seed {seed}") as said:
            course = go(
                net, held, learning, replace(recipe, seed=seed), objective=objective, general=asked, out=work,
                ask=asking(tasks, sources, tokenizer, row, seed), batch_size=batch_size, progress=said,
            )  # fmt: skip
        found = numbers(course, seed)
        if out and work and record:
            target = out if seeds == 1 else out / f"seed{seed}"
            if learner.schedule == "one":
                settle(work, target, course.names, steps, tokenizer)
            else:
                keep(net, tokenizer, made, held[-1].domain, work, target)
            write_whole(record, encoding.dumps(found, indent=1, allow_nan=False) + "\n")
            shutil.rmtree(work)
        return found

    with nullcontext() if out is None else alone(out):
        per_seed = [one(seed + k) for k in range(seeds)]
    settings |= {
        "rows": [len(each.train) for each in held], "test_rows": [len(each.test) for each in held],
        "general_rows": asked and len(asked), "warmup_steps": recipe.warmup_steps, "schedule_of_rate": recipe.schedule,
        "final_share": recipe.final_share, "weight_decay": recipe.weight_decay, "betas": list(recipe.betas),
        "epsilon": recipe.epsilon, "clip": recipe.clip, "batch_size": batch_size, "device": device,
        "out": out and str(out),
    }  # fmt: skip
    document = {
        "domains": [each.name for each in held], "method": method,
        **{key: mean([each[key] for each in per_seed]) for key in per_seed[0] if key != "seed"},
        "parameters_added": per_seed[0]["parameters_added"], "per_seed": per_seed, "settings": settings,
    }  # fmt: skip
    if json is not None:
        write_json(document, json)
    else:
        show(document)


def typed(method: str, given: Sequence[str]) -> dict[str, int | float | str]:
    """Settings as they were typed, key=value each."""
    from kemem.continual.named import valued

    found: dict[str, int | float | str] = {}
    for item in given:
        key, _, text = (part.strip() for part in item.partition("="))
        if not key or not text or key in found:
            raise BadInput(f"expected --set key=value, each key once; got {item!r}; correct it.")
        found[key] = valued(method, key, text)
    return found


@contextmanager
def reporting(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Progress of training, and a line where what comes before, between and after takes long."""
    with ExitStack() as measuring:
        measuring.enter_context(patience(f"measuring what {title} knows"))
        report = progress(f"training {title}")

        def said(done: int, total: int, message: str) -> None:
            measuring.close()
            report(done, total, message)
            if done == total:
                measuring.enter_context(patience("measuring what it knows now"))

        yield said
