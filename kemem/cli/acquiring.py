"""`kemem acquire`: a model trained on a text into which passages are put, and how much of them it takes in."""

import json as encoding
import math
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.options import Device, Json, at_least, check_corpus, one_of, place
from kemem.cli.pretraining import DTYPES, claim
from kemem.cli.tasks import Task, answers, identity, plain, read_tasks
from kemem.cli.terminal import check_json, guarded, note, patience, progress, quiet_libraries, write_json
from kemem.errors import BadInput

VERSION = 1
LONGEST = 1024  # tokens of a row, as in the paper
SLOTS = 10


@guarded("with --out the same command goes on from the last saved state")
def acquire(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a local folder, or a name on the hub")],
    passages: Annotated[
        str,
        typer.Option(metavar="FILE", help="JSON of passages told anew in every slot, or the released folder"),
    ],
    corpus: Annotated[
        str, typer.Option(metavar="SPEC", help="docstrings, world, files:PATH or hub:NAME, joined by +")
    ],
    steps: Annotated[int, typer.Option(help="optimizer steps")],
    lr: Annotated[float, typer.Option(help="learning rate at its peak; the paper has 4e-4")],
    batch: Annotated[int, typer.Option(help="rows of a step; the paper has 128")],
    once: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSON of passages told once: in one slot each")
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="JSON whose probes are asked; by default those of what is told"),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="jsonl of questions, for what is forgotten; or tasks of the lm-evaluation-harness, as "
            "harness:NAME,NAME or a folder of its YAML",
        ),
    ] = None,
    interval: Annotated[
        int | None, typer.Option(help="steps from one slot to the next; by default steps / slots")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(help=f"by default {SLOTS}, or as many tellings as every passage has if fewer"),
    ] = None,
    seed: Annotated[int, typer.Option(help="every random choice follows from it")] = 0,
    length: Annotated[
        int | None,
        typer.Option(help=f"tokens of a row; by default {LONGEST}, or the model's context if shorter"),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="R", help="branch, tag or commit; of a local folder a sub-folder"),
    ] = None,
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
    ] = 8,
) -> None:
    """Train MODEL on a text, tell it passages on the way, and measure what it takes in and what it forgets.

    Slot k, told after k x --interval steps, holds the k-th telling of every passage of --passages and the k-th
    part of those of --once; each stands before a row of the step. AdamW as in the paper: 5 % of the steps
    warm up, a cosine goes down to 10 % of --lr, weight decay 0.1. The files hold records as published:
    train_context, paraphrases, and input and target of the probes mem, gen and hard_gen. Of --probes, a
    record whose train_context is told counts to the group of that passage.

    A line of --tasks is {"prompt": text, "candidates": [texts], "answer": one of them or its place from 0},
    and "task": name where there are several. P is the mean over tasks of the share answered right. The paper's
    P is --tasks harness:sciq,winogrande,piqa,openbookqa,hellaswag,arc_easy, after pip install 'kemem[harness]';
    the harness cuts a prompt beyond the model's context from the left, a FILE with one is refused.

    With --out, DIR is a folder that from_pretrained and `kemem entropy` open, with the tokenizer; a command
    that was stopped or killed goes on where it was. Without --out nothing is kept.

    --json writes one object: K, A, A_by, P, P_by, F, injected, lost, seconds, settings. K[group][probe] holds
    before and after, the mean log-probability of a target token in nats; groups are all, paraphrase, once,
    probes all, memorisation, semantic, composition, where there are any. A is the share of |K| before that
    was acquired, A_by the same of each group. P holds before and after, P_by those of each task, F the share
    of P lost; null without --tasks. injected: tokens told; lost: those of them beyond the end of a row.
    """
    at_least(1, steps=steps, batch=batch, interval=interval, slots=slots, batch_size=batch_size)
    at_least(2, length=length)
    at_least(0, seed=seed)
    if not 0 < lr < math.inf:
        raise BadInput(f"expected --lr to be a number above 0; got {lr}; the paper has 4e-4.")
    one_of("--dtype", dtype, DTYPES)
    check_json(json)
    from kemem import corpora, entropy, models
    from kemem.training import Domain, Recipe, bfloat16_runs

    quiet_libraries()
    device = place(device, dtype)
    if dtype == "bfloat16" and not bfloat16_runs(device):
        raise BadInput(f"expected a device that computes in bfloat16; got {device}; use --dtype float32.")
    check_corpus(corpus)
    told = read_passages(passages, once)
    asked = told if probes is None else read_probes(probes, told)
    questions = None if tasks is None else read_tasks(tasks)
    name = f"{model} at {revision}" if revision else model
    config, tokenizer = models.described(model, revision=revision)
    if config.model_type in models.MASKED:
        raise BadInput(
            f"expected a model that predicts the next token; got {config.model_type}, which fills in masked "
            "ones; choose another model."
        )
    if tokenizer is None:
        raise BadInput(f"expected a tokenizer beside the weights of {name}; got none; save it there.")
    context = getattr(config, "max_position_embeddings", None)
    check_lengths(tokenizer, asked, plain(questions), context)
    row = min(length or LONGEST, context or math.inf)
    count = slots or min([SLOTS, *(len(each.tellings) for each in told if each.group == "paraphrase")])
    if interval is None and steps < count:
        raise BadInput(
            f"expected --steps to be at least the number of slots, {count}; got {steps}; train for longer or "
            "give fewer --slots."
        )
    plan = entropy.schedule(told, tokenizer, slots=count, interval=interval or steps // count)
    plan.steps(steps)  # refuses an interval longer than the run
    recipe = Recipe(
        steps=steps, batch_size=batch, learning_rate=lr, accumulation=-(-batch // min(batch, batch_size)),
        warmup_steps=round(0.05 * steps), weight_decay=0.1, epsilon=1e-5, seed=seed,
        precision="bfloat16" if dtype == "bfloat16" else "float32", checkpoints=(0,),
        save_every=max(1, steps // 10),
    )  # fmt: skip
    weights = "float32" if dtype == "bfloat16" else dtype
    settings = {
        "model": model, "revision": revision, "family": config.model_type, "corpus": corpus,
        "passages": passages, "once": once, "probes": probes, "tasks": tasks, "steps": steps, "lr": lr,
        "batch": batch, "interval": plan.interval, "slots": count, "seed": seed, "length": row,
        "dtype": weights, "precision": recipe.precision, "accumulation": recipe.accumulation,
    }  # fmt: skip
    if out is not None:
        # the files may be others by now under the same names
        contents = {
            "passages": _digest(told),
            "probes": _digest(asked),
            "tasks": _digest(identity(questions)),
        }
        claim(out, {**settings, "contents": contents}, VERSION)
    with patience(f"reading {corpus} and cutting it into tokens"):
        text = corpora.corpus(corpus)
        blocks = corpora.pack(text.texts, tokenizer, row, seed=seed, limit_tokens=steps * batch * row)
    if len(blocks) < batch:
        raise BadInput(
            f"expected at least as many rows of text as a step reads, {batch}; got {len(blocks)} of {row} "
            f"tokens in {corpus}; give more text, a smaller --batch or a shorter --length."
        )
    if length is not None and row < length:
        note(f"--length {length} is beyond the model's context and was cut to it: {row} tokens.")
    if slots is None and count < SLOTS:
        note(f"told in {count} slots, not {SLOTS}: a passage has no more tellings.")
    if beyond := plan.lost(steps, batch, row):
        note(f"a row has {row} tokens: {beyond} of passages are beyond its end, and lost.")
    with patience(f"loading {name}"):
        net, _ = models.load(model, revision=revision, device=device, dtype=weights)
    title = f"training {name}"
    with ExitStack() as measuring:  # says so where it takes long, before the first step and after the last
        measuring.enter_context(patience(f"measuring what {name} knows"))
        report = progress(title)

        def said(done: int, total: int, message: str) -> None:
            measuring.close()
            report(done, total, message)
            if done == total:
                measuring.enter_context(patience("measuring what it knows now"))

        def answered(net: Any, step: int) -> dict[str, Any]:
            return {"tasks": questions and answers(net, tokenizer, questions, batch_size)}

        learnt = entropy.acquire(
            net, Domain(corpus, blocks), plan, recipe, tokenizer=tokenizer, passages=asked, out=out,
            at_checkpoint=answered, progress=said, batch_size=batch_size,
        )  # fmt: skip
    if out is not None:
        settle(out, steps)
    settings |= {
        "corpus_digest": text.digest, "rows": len(blocks), "passes": round(steps * batch / len(blocks), 3),
        "warmup_steps": recipe.warmup_steps, "schedule": recipe.schedule, "final_share": recipe.final_share,
        "weight_decay": recipe.weight_decay, "betas": list(recipe.betas), "epsilon": recipe.epsilon,
        "clip": recipe.clip, "batch_size": batch_size, "device": device, "out": out and str(out),
    }  # fmt: skip
    document = {**found(learnt, steps), "settings": settings}
    if json is not None:
        write_json(document, json)
    else:
        show(document)


# ---------------------------------------------------------------------- what is read
def read_passages(source: str, once: str | None) -> tuple[Any, ...]:
    """What is told: a file of paraphrased passages and one of those told once, or the folder with both."""
    told = _records("--passages", source)
    if once is None:
        return told
    from kemem import entropy
    from kemem.corpora.files import expanded

    if expanded(source).is_dir():
        raise BadInput(
            f"expected --once beside a file of passages; got the folder {source}, which has its own; "
            "leave --once out or name a file in --passages."
        )
    return (*told, *entropy.passages(once, "once"))


def read_probes(source: str, told: tuple[Any, ...]) -> tuple[Any, ...]:
    """Passages that are only asked for, in the groups of those told that they are."""
    groups = {passage.context: passage.group for passage in told}
    return tuple(
        replace(passage, group=groups.get(passage.context, passage.group))
        for passage in _records("--probes", source)
    )


def _records(option: str, source: str) -> tuple[Any, ...]:
    from kemem import entropy
    from kemem.corpora.files import expanded

    found = entropy.passages(source, None if expanded(source).is_dir() else "paraphrase")
    if not found:
        raise BadInput(f"expected {option} to hold a passage; got an empty list in {source}; add some.")
    return found


def check_lengths(tokenizer: Any, asked: Any, questions: dict[str, Task], context: int | None) -> None:
    """Refuses a probe or a question that cannot be read, or not within the model's context."""
    from kemem.entropy.passages import span_of
    from kemem.evaluation import encode

    spans = [
        (given, span_of(tokenizer, (given, target), f"{kind} of passage {number}"))
        for number, passage in enumerate(asked, start=1)
        for kind, pairs in passage.probes.items()
        for given, target in pairs
    ]
    spans += [
        (prompt, encode(tokenizer, prompt, candidate))
        for task in questions.values()
        for prompt, candidates, _ in task
        for candidate in candidates
    ]
    for text, span in spans:
        if context is not None and len(span.ids) > context:
            raise BadInput(
                f"expected probes and questions within the model's context of {context} tokens; got "
                f"{len(span.ids)} in that which begins {text[:40]!r}; shorten it or leave it out."
            )


def _digest(value: Any) -> str:
    from kemem.runs import canonical

    return sha256(encoding.dumps(canonical(value)).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- what is found
def found(learnt: Any, steps: int) -> dict[str, Any]:
    """The numbers of a run, as JSON has them."""
    from kemem.entropy import acquisition, forgetting

    when = {0: "before", steps: "after"}
    known: dict[str, dict[str, dict[str, float]]] = {}
    for row in learnt.rows:
        known.setdefault(row["group"], {}).setdefault(row["kind"], {})[when[row["step"]]] = row["target_mean"]
    by_group = {group: _share("A", acquisition, **kinds["all"]) for group, kinds in known.items()}
    by_task: dict[str, dict[str, float]] = {}
    for kept in learnt.history.checkpoints:
        for name, accuracy in (kept["tasks"] or {}).items():
            by_task.setdefault(name, {})[when[kept["step"]]] = accuracy
    right = {
        moment: math.fsum(each[moment] for each in by_task.values()) / len(by_task)
        for moment in when.values()
        if by_task
    }
    return {
        "K": known, "A": by_group["all"], "A_by": by_group, "P": right or None, "P_by": by_task or None,
        "F": _share("F", forgetting, **right) if right else None, "injected": learnt.injected,
        "lost": learnt.lost, "seconds": learnt.history.steps[-1]["seconds"],
    }  # fmt: skip


def _share(
    letter: str, formula: Callable[[float, float], float], before: float, after: float
) -> float | None:
    try:
        return formula(before, after)
    except BadInput as error:  # after a long run all else is worth having
        note(f"{letter} is null: {error}")
        return None


def settle(out: Path, steps: int) -> None:
    """Moves the trained model from its checkpoint to DIR itself; that before training is as it was given.

    The configuration last: with it a folder is a model. Killed on the way, the same command moves the rest.
    """
    from kemem.training.state import alone

    with alone(out):
        trained = out / f"step{steps}"
        if trained.is_dir():
            for file in sorted(trained.iterdir(), key=lambda file: file.name == "config.json"):
                os.replace(file, out / file.name)
        for stage in (trained, out / "step0"):
            shutil.rmtree(stage, ignore_errors=True)


def show(document: dict[str, Any]) -> None:
    """What was known before and after as a table for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    settings = document["settings"]
    table = Table(box=SIMPLE)
    for head in ("passages", "probes"):
        table.add_column(head)
    for head in ("K before", "K after"):
        table.add_column(head, justify="right", no_wrap=True)
    for group, kinds in document["K"].items():
        for kind, known in kinds.items():
            table.add_row(group, kind, f"{known['before']:.4f}", f"{known['after']:.4f}")
    name = f"{settings['model']} at {settings['revision']}" if settings["revision"] else settings["model"]
    print(
        f"{name} ({settings['family']}) on {settings['corpus']}: {settings['steps']} steps of "
        f"{settings['batch']} rows of {settings['length']} tokens, {document['seconds']:.0f} s"
    )
    print(
        f"told every {settings['interval']} steps, {settings['slots']} slots: {document['injected']:,} tokens, "
        f"{document['lost']:,} of them lost"
    )
    Console().print(table)
    shares = (
        f"{group} {'-' if share is None else f'{share:.1%}'}" for group, share in document["A_by"].items()
    )
    print("acquired, A:", ", ".join(shares))
    if document["P"] is not None:
        lost = "-" if document["F"] is None else f"{document['F']:.1%}"
        print(f"forgotten, F: {lost}; right {document['P']['before']:.1%}, then {document['P']['after']:.1%}")
    print("K in nats a target token" + (f"; written to {settings['out']}" if settings["out"] else ""))
