"""Chapters 08 to 10: what a scale of part 2 costs in arithmetic, and in seconds on a card, before it is run.

    training       passes x (6 P + 12 L D T) x tokens       P parameters, see `kemem.studies.cost`
    measuring      a third of a pass forward, a whole one where a gradient is taken

A course multiplies in its precision; what looks into weights multiplies in float32, which on a card is another rate.
A small model leaves a card waiting for its next kernel, so passes are counted too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from kemem import models
from kemem.studies import budget, growing, interference, looking, masking, moving, pairing, units
from kemem.studies.budget import Budget, Setting
from kemem.studies.cost import flops_per_token
from kemem.studies.courses import Learning
from kemem.studies.pretraining import Pretrained, Pretraining

PASSES: Mapping[str, float] = {
    "kd": 4 / 3, "derpp": 2.0, "hat": 1.2, "prompt": 1.4, "classic": 3.0, "elle": 1.4, "lottery": 2.0,
}  # fmt: skip
"""Passes forward and backward of a step, where they are not one; of DAS see `passes`."""


@dataclass(frozen=True)
class Work:
    """FLOP in 16 bits, FLOP in float32, and passes through a model, each a third where it goes forward only."""

    half: int | float = 0.0
    single: int | float = 0.0
    passes: int | float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.half + other.half, self.single + other.single, self.passes + other.passes)

    def __mul__(self, times: int | float) -> Work:
        return Work(self.half * times, self.single * times, self.passes * times)

    def seconds(self, half: float, single: float, each: float) -> float:
        """At these rates in FLOP/s, or of starting the kernels with `each` seconds a pass where that takes longer."""
        return max(self.half / half + self.single / single, self.passes * each)


@lru_cache(maxsize=32)
def parameters(s: Pretraining) -> int:
    """Numbers that a model has, tied ones once; counted without making it."""
    with torch.device("meta"):
        model = models.build(s.setup.shape(s.setup.vocabulary))
    return sum(p.numel() for p in model.parameters())


def per_token(s: Pretraining, length: int) -> int:
    """FLOP of one token in training, forward and backward."""
    return flops_per_token(parameters(s), s.setup.layers, s.setup.width, length)


def pretraining(s: Pretraining) -> Work:
    """Of making the model, which chapter 02 does for the causal one; nothing where others made it."""
    if isinstance(s, Pretrained):
        return Work()
    work = s.setup.tokens * per_token(s, s.setup.length)
    half = s.setup.precision == "bfloat16"
    return Work(work if half else 0.0, 0.0 if half else work, 0.0 if s.setup.compile else s.setup.steps)


def passes(s: Learning) -> float:
    """Passes forward and backward of a step."""
    if s.method not in ("das", "das-stand-in"):
        return PASSES.get(s.method, 1.0)
    drops = getattr(s.model.setup, "dropout", 0.0) > 0
    masked = s.model.setup.family in models.MASKED
    contrast = s.variant != "without-contrast"
    return 1.0 + contrast * (1 + drops + masked)


def course(s: Learning) -> Work:
    """Of one row of `courses`: training, what is measured of each domain, and every time that the model is judged."""
    count, each = len(s.domains), per_token(s.model, s.length)
    tokens = s.steps * s.rows * s.length
    found = of_kind(s, passes(s) * each * tokens * count, passes(s) * s.steps * count)
    changes = dict(s.changes)
    if "samples" in changes:
        rows = float(changes["samples"])
        rows *= s.steps * s.rows if isinstance(changes["samples"], float) else 1
        found += of_kind(s, (count + 2) * rows * s.length * each, (count + 2) * math.ceil(rows / 16))
    return found + judged(s)


def of_kind(s: Learning, flop: int | float, passes: int | float) -> Work:
    """Work in the precision of a course."""
    half = getattr(s, "precision", "float32") == "bfloat16"
    return Work(flop if half else 0.0, 0.0 if half else flop, passes)


def judged(s: Learning) -> Work:
    """Losses of all domains and of general text, and end tasks, before the first domain and after each."""
    count, each = len(s.domains), per_token(s.model, s.length) / 3
    rows = (count + 1) * math.ceil(s.test_tokens / s.length)
    examples = 0 if s.part == "validation" else count * sum(s.examples)
    tokens = rows * s.length + examples * s.asked_length
    return of_kind(s, each * tokens, (rows / 32 + examples / 64) / 3) * (count + 1)


def contest(z: Budget) -> dict[str, Work]:
    """Of all that is run of a comparison, by what it is; settings that trials choose are taken to be the first."""
    made = {name: z.trials[name].trials()[0] for name in (*z.names, *z.square)}
    grids = {
        "trials": budget.tuning(z), "contest": budget.contest(z, made), "parts": budget.parts(z, made),
        "defects": budget.defects(z, made), "importances": budget.importances(z, made),
        "square": budget.square(z, made), "plugins": budget.plugins(z, made), "starts": budget.starts(z, made),
    }  # fmt: skip
    return {name: total(course(s) for s in grid.values()) for name, grid in grids.items()}


def total(works: Iterable[Work]) -> Work:
    found = Work()
    for work in works:
        found += work
    return found


def elle(scale: str, device: str | None = None) -> Work:
    """Of chapter 10's study of growth; what grows is counted by `PASSES`."""
    z = growing.sizes(scale, device=device)
    found = total(course(s) for s in growing.grid(scale, device=device).values())
    recovered = sum(name in z.grown for name, _ in growing.grid(scale, device=device)) * (
        len(z.base.domains) - 1
    )
    steps, rows = (int(z.recovery[f"recovery_{name}"]) for name in ("steps", "rows"))  # type: ignore[arg-type]
    work = steps * rows * z.base.length * per_token(z.base.model, z.base.length)
    return found + of_kind(z.base, work, steps) * recovered


def interfering(scale: str, device: str | None = None) -> Work:
    """Of chapter 08's look at the weights."""
    s = interference.settings(scale, device=device)
    of = s.course
    each, texts = per_token(of.model, of.length), len(of.domains) + 1
    rows = math.ceil(of.test_tokens / of.length)
    learned = course(replace(of, domains=of.domains[:1])) * (1 + len(s.seconds))
    gradients = (2 + len(s.seconds)) * texts * rows
    forecasts = len(s.seconds) * len(s.at) * rows * 5  # forward over forward, and twice backward
    fishers = rows + s.samples
    groups = 2 * (of.model.setup.layers + 6) + len(s.shares) + 3
    losses = len(s.seconds) * groups * 2 * rows / 3
    read = gradients + forecasts + fishers + losses
    return learned + Work(0.0, read * of.length * each, read / 16)


def importances(scale: str, device: str | None = None) -> Work:
    """Of chapter 09's looks at importances, masks and the contrast."""
    found = Work()
    for masked in looking.MODELS.values():
        for seed in looking.seeds(scale):
            measured = looking.settings(units.Measured, scale, masked=masked, seed=seed, device=device)
            parts = looking.settings(units.Shared, scale, masked=masked, seed=seed, device=device)
            texts = min(measured.samples, measured.rows) * len(measured.domains)
            shared = parts.rows * (1 + sum(parts.shares))
            each = per_token(measured.model, measured.length)
            found += Work(0.0, 3 * (texts + shared) * measured.length * each, 3 * (texts + shared) / 16)
        coursed = looking.settings(masking.Coursed, scale, masked=masked, device=device)
        moved = looking.settings(moving.Moved, scale, masked=masked, device=device)
        pairs = looking.settings(pairing.Contrasted, scale, masked=masked, device=device)
        each = per_token(coursed.model, coursed.length)
        arms = 2 * (len(moved.epsilons) + 3)
        steps = 4 * len(coursed.domains) * coursed.steps + arms * moved.steps
        rows = 4 * len(coursed.domains) * coursed.steps * coursed.batch + arms * moved.steps * moved.batch
        rows += (
            2 * (len(coursed.domains) + 1) * coursed.samples + 2 * pairs.samples + pairs.batch * pairs.batches
        )
        found += Work(0.0, rows * coursed.length * each, steps + rows / 16)
    return found


def part_two(scale: str, device: str | None = None) -> dict[str, Work]:
    """All of chapters 08 to 10 at a scale, by what it is; the causal model is chapter 02's and left out."""
    found: dict[str, Work] = {}
    for name, masked in looking.MODELS.items():
        z = budget.sizes(scale, masked=masked, device=device)
        found |= {f"{name}, {what}": work for what, work in contest(z).items()}
        if masked:
            found["masked, pretraining"] = pretraining(z.base.model)
            made: dict[str, Setting] = {n: z.trials[n].trials()[0] for n in (*z.names, *z.square)}
            grid = budget.published(scale, made, device=device)
            found["masked, real domains"] = total(course(s) for s in grid.values())
    found["growing"], found["interference"] = elle(scale, device), interfering(scale, device)
    found["importances"] = importances(scale, device)
    return found
