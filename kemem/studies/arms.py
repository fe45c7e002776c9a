"""One run of continual learning with one thing changed: its start, its attention, its optimizer or its updates.

Chapters 06 and 07 are made of such arms. A row holds what the model knew, could and looked like at the (changed) start
and at the end, and how evenly the run changed its memories.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kemem import entropy, models, training
from kemem.corpora import instances
from kemem.errors import BadInput
from kemem.runs import Row
from kemem.studies import acquiring, checkpoints
from kemem.studies.lab import Lab
from kemem.studies.learning import Learning, Watch, fictional
from kemem.studies.setup import Setup, blocks, in_pieces, read, spread
from kemem.studies.stages import padding_id

STUDY = "arms"
VERSION = 1
LAYERS: dict[str, Callable[[int, int], bool]] = {
    "all": lambda layer, count: True,
    "first half": lambda layer, count: 2 * layer < count,
    "last half": lambda layer, count: 2 * layer >= count,
}
EDITS = ("", "lift", "shuffled lift", "same function")
"""What is done to the weights at the start: nothing; Algorithm 1; its factors dealt out anew among the memories of each
layer; its factors on the keys and their inverses on the values, which leaves the function of the model as it is."""


@dataclass(frozen=True)
class Arm:
    """A run from a stage with one thing changed. Nothing changed: continual learning as in chapter 05."""

    learning: Learning
    told: str
    """The new domain that passages must not contradict: the same passages whatever `learning.corpus` is."""
    edit: str = ""
    fraction: float = 0.0
    gain: float = 1.0
    layers: str = "all"
    """Which layers are edited: all, the first half, or the last half."""
    temperature: float = 1.0
    """Of attention, during learning and when the model is looked at."""
    cooled: bool = False
    """The temperature falls linearly to 1 over the run."""
    wake: float = 0.0
    """Strength of `kemem.entropy.WakeIdle`."""
    optimizer: str = "adamw"
    texts: int = 128
    """Training texts of the stage's own corpus on which usage is measured for the edit."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.edit not in EDITS:
            raise BadInput(f"an edit is one of {', '.join(map(repr, EDITS))}; got {self.edit!r}.")
        if self.layers not in LAYERS:
            raise BadInput(f"layers are one of {', '.join(LAYERS)}; got {self.layers!r}.")


def run(lab: Lab, s: Arm, recorded: bool = False) -> Row:
    """The row of one arm."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        of = s.learning
        tasks = of.end_tasks()
        model, tok, found = checkpoints.load(lab, of.model, of.step)
        provenance["checkpoints"] = found.origin
        text = read(of.corpus)
        provenance["corpus"] = {"spec": of.corpus, "digest": text.digest, "versions": text.versions}
        usage = usage_of(lab, of.model.setup, s.texts, model, tok)
        changed(model, usage, s)
        if s.edit:
            usage = usage_of(lab, of.model.setup, s.texts, model, tok)
        told = fictional(replace(of, corpus=s.told))
        watch = Watch(lab, of, tok, tasks)
        plan = entropy.schedule(told, tok, slots=of.slots, interval=of.interval)
        data = blocks(lab, of.model.setup, of.corpus, "train")
        recipe = in_pieces(lab, replace(of.recipe(), optimizer=s.optimizer, checkpoints=(of.steps,)))
        with _attention(model, s):
            first = watch(model)
            start = {name: p.detach().clone() for name, p in model.named_parameters()}
            learnt = entropy.acquire(
                model, training.Domain(of.corpus, data), plan, recipe, tokenizer=tok, passages=told,
                method=_method(s, usage, of.steps), progress=lab.progress, batch_size=2 * (lab.batch_size or 32),
            )  # fmt: skip
            last = watch(model)
        moved = entropy.updates(model, start)
        provenance["passes"] = round(of.steps * of.rows * of.model.setup.length / data.tokens, 3)
        return {
            "before": first, "after": last, "probes": learnt.rows, "steps": of.steps, "passages": len(told),
            "updates": _concentration(moved, usage), "loss": learnt.history.steps[-1]["loss"],
        }  # fmt: skip

    return lab.store.row(
        STUDY, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


def changed(model: nn.Module, usage: Tensor, s: Arm) -> None:
    """The start of the arm, in place."""
    if not s.edit:
        return
    factors = entropy.multiplier(usage, s.fraction, s.gain)
    if s.edit == "shuffled lift":
        draws = torch.Generator().manual_seed(s.learning.seed)
        factors = torch.stack([layer[torch.randperm(len(layer), generator=draws)] for layer in factors])
    edited = [LAYERS[s.layers](layer, len(factors)) for layer in range(len(factors))]
    factors = torch.where(torch.tensor(edited)[:, None], factors, 1.0)
    with torch.no_grad():
        edit = entropy.reparameterise_ if s.edit == "same function" else entropy.resuscitate_
        edit(model, factors)


def _attention(model: nn.Module, s: Arm) -> Any:
    return nullcontext() if s.cooled else entropy.attention_temperature(model, s.temperature)


def _method(s: Arm, usage: Tensor, steps: int) -> training.Method | None:
    if s.wake:
        return entropy.WakeIdle(usage, s.wake)
    return entropy.CoolAttention(s.temperature, steps) if s.cooled else None


def usage_of(lab: Lab, own: Setup, count: int, model: nn.Module, tok: Any) -> Tensor:
    """Usage of the memories on `count` training texts of a model's own corpus, [L M]: what an edit starts from."""
    texts = spread(read(own.corpus).part("train"), count)
    ids = instances(texts, tok, own.length, limit=count).ids
    return entropy.measure(
        model,
        ids,
        batch_size=lab.batch_size or 32,
        pad_id=padding_id(tok),
        length=own.length,
        next_token=False,
    ).usage


def _concentration(moved: entropy.Updates, usage: Tensor) -> dict[str, list[float]]:
    """By layer: share of memories that the change is effectively spread over, and its rank correlation with usage."""
    shares, ranks = moved.effective_share(), moved.rank_with(usage)
    return {
        f"{what} of {part}": [float(v) for v in found[part]]
        for what, found in (("share", shares), ("rank", ranks))
        for part in ("keys", "values")
    }


# ---------------------------------------------------------------------- sizes
@dataclass(frozen=True)
class Sizes:
    """The arms of a scale: what is learnt on, from the last stage of the first seed, and what the rest is."""

    base: Learning
    seeds: tuple[int, ...]
    stages: tuple[float, ...]


def _sizes(scale: str, stages: tuple[float, ...], **changes: Any) -> Sizes:
    of = acquiring.SCALES[scale]
    return Sizes(replace(of.base, **changes), of.seeds, stages)


# shorter than chapter 05's run, since there are hundreds: 10 slots of 20 steps of 16 rows, 30 passages
SCALES: dict[str, Sizes] = {
    "smoke": _sizes("smoke", (0.5, 1.0)),
    "laptop": _sizes(
        "laptop", (0.2, 0.5, 0.75, 1.0), paraphrased=10, once=20, interval=20, rows=16, held_out=6000
    ),
    # one model, and half of chapter 05's steps and of its rows: some sixty arms in five minutes
    "gpu": _sizes("gpu", (0.2, 0.5, 1.0), interval=8, rows=64, held_out=50_000, tasks=400, instances=128),
    "paper": _sizes("paper", acquiring.SCALES["paper"].stages),
}  # fmt: skip


def settings(scale: str, *, seed: int = 0, share: float = 1.0, model: Any = None, **changes: Any) -> Arm:
    """The arm of a stage. model: another one than chapter 02's, its settings; changes: of `Arm` and of `Learning`."""
    if scale not in SCALES:
        raise BadInput(
            f"arms of continual learning have sizes at the scales {', '.join(SCALES)}; got {scale!r}."
        )
    base = SCALES[scale].base
    plain = acquiring.settings(scale, seed=seed, share=share).model if model is None else model
    (step,) = plain.setup.at((share,))
    if step not in plain.steps:
        shares = ", ".join(f"{s:g}" for s in plain.stages)
        raise BadInput(f"a stage is one of the shares {shares} of the schedule; got {share:g}.")
    of_arm = {name: changes.pop(name) for name in list(changes) if name in Arm.__dataclass_fields__}
    learning = replace(base, model=plain, step=step, seed=seed, **changes)
    return Arm(learning, base.corpus, seed=seed, **of_arm)
