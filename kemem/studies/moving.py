"""Chapter 09: how far parameters move under a mask of known values, on the gradient and on the update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kemem.continual import DAS, Units
from kemem.continual.gates import ones
from kemem.continual.softmask import multipliers
from kemem.memory import Memories
from kemem.objective import mix
from kemem.runs import Row, Store
from kemem.studies import looking
from kemem.studies.lab import Lab, Result
from kemem.studies.looking import MODELS, Looking, opened, settings
from kemem.training import Domain, Method, Recipe, train

CHAPTER = "09_das"
STUDY = "unit_movement"
VERSION = 1


@dataclass(frozen=True)
class Moved(Looking):
    """How far parameters move in so many steps on the first domain, where units have these importances at random."""

    values: tuple[float, ...] = (0.0, 0.5, 0.9, 0.99, 0.999)
    epsilons: tuple[float, ...] = (1e-8, 1e-6, 1e-4, 1e-2)
    steps: int = 20
    batch: int = 8
    learning_rate: float = 1e-3
    sgd_rate: float = 0.01
    sized: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"rows": 12, "epsilons": (1e-6, 1e-2), "steps": 2, "batch": 4},
        "gpu": {"rows": 1000, "batch": 16, "learning_rate": 3e-4},
        "paper": {"rows": 2000, "batch": 62, "learning_rate": 1e-4},
    }


@dataclass(frozen=True)
class Given:
    """Importances that were not measured."""

    units: Units

    def __call__(self, model: nn.Module, domain: Domain) -> Units:
        return self.units


@dataclass(eq=False)
class Gradients(Method):
    """Plain training, watched: the mean square of the gradients of some parameters."""

    names: tuple[str, ...]
    seen: list[float] = field(default_factory=list)

    def gradients(self, model: nn.Module) -> None:
        found = [model.get_parameter(name).grad for name in self.names]
        own = [g.double() for g in found if g is not None]
        self.seen.append(sum(float((g**2).sum()) for g in own) / sum(g.numel() for g in own))


def movement(lab: Lab, s: Moved) -> Row:
    """How far parameters move under a mask, in units of how far the same ones move without it, by importance."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = opened(lab, s, provenance, count=1)
        units = scattered(Memories(at.model), s.values, s.seed)
        masks = multipliers(at.model, units)
        start = {name: p.detach().clone() for name, p in at.model.named_parameters()}

        def moved(recipe: Recipe, method: Method) -> dict[str, Tensor]:
            with torch.no_grad():
                for name, p in at.model.named_parameters():
                    p.copy_(start[name])
            train(at.model, at.domains[0].domain, recipe, method, objective=at.goal)
            after = dict(at.model.named_parameters())
            return {name: (after[name].detach() - start[name]).double() for name in masks}

        def held(recipe: Recipe, placement: str, plain: dict[str, Tensor]) -> list[float]:
            given: Any = Given(units)
            method = DAS(
                importance=given,
                normalisation="none",
                contrast="none",
                placement=placement,
                objective=at.goal,
            )
            return ratios(moved(recipe, method), plain, masks, s.values)

        adam = Recipe(
            steps=s.steps, batch_size=s.batch, learning_rate=s.learning_rate, warmup_steps=0, schedule="constant",
            weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-6, clip=0.0, seed=s.seed,
        )  # fmt: skip
        watch = Gradients(tuple(masks))
        plain = moved(adam, watch)
        told: dict[str, Any] = {
            "values": list(s.values),
            "rms": math.sqrt(sum(watch.seen) / len(watch.seen)),
            "update": held(adam, "update", plain),
        }
        one = replace(adam, steps=1)
        told["one step"] = held(one, "update", moved(one, Method()))
        told["gradient"] = {}
        for epsilon in s.epsilons:
            recipe = replace(adam, epsilon=epsilon)
            told["gradient"][f"{epsilon:g}"] = held(recipe, "gradient", moved(recipe, Method()))
        descent = replace(adam, optimizer="sgd", learning_rate=s.sgd_rate)
        told["sgd"] = held(descent, "gradient", moved(descent, Method()))
        return told

    return looking.row(lab, STUDY, VERSION, s, compute)


def scattered(memories: Memories, values: Sequence[float], seed: int) -> Units:
    """Each of the values for about as many units of every site, dealt out at random."""
    generator = torch.Generator().manual_seed(mix(seed, 2) >> 1)
    table = torch.tensor(values, dtype=torch.float64)

    def dealt(one: Tensor) -> Tensor:
        order = torch.randperm(one.numel(), generator=generator) % len(values)
        return table[order].view(one.shape).to(one.device)

    return ones(memories).map(dealt)


def ratios(
    moved: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    values: Iterable[float],
) -> list[float]:
    """For each importance, |change with the mask| / |change without it| over the entries that it masks."""
    found = []
    for value in values:
        squares = [0.0, 0.0]
        for name, mask in masks.items():
            own = ((mask.double() - (1 - value)).abs() < 1e-6).expand_as(plain[name])
            for i, change_of in enumerate((moved, plain)):
                squares[i] += float((change_of[name][own] ** 2).sum())
        found.append(math.sqrt(squares[0] / squares[1]))
    return found


def predicted(value: float, gradient: float, epsilon: float) -> float:
    """|change| under AdamW of a weight whose gradient is always as large, less what a mask of the gradient leaves.

    (1 - I) g / ((1 - I) g + eps), in units of g / (g + eps).
    """
    left = (1 - value) * gradient
    return left / (left + epsilon) * (gradient + epsilon) / gradient


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Shares of the way: `units.masked.movement.gradient.1e-06.0.9`, `units.causal.movement.update.0.5`, and so on."""
    if scale not in looking.SCALES:
        return {}
    found: dict[str, Result] = {}
    for name, masked in MODELS.items():
        row = store.find(STUDY, VERSION, settings(Moved, scale, masked=masked))
        if row:
            arms = {**{f"gradient.{e}": r for e, r in row.values["gradient"].items()}}
            arms |= {arm: row.values[arm] for arm in ("update", "one step", "sgd")}
            for arm, own in arms.items():
                for value, ratio in zip(row.values["values"], own, strict=True):
                    found[f"units.{name}.movement.{arm}.{value:g}"] = Result(ratio, "", looking.origin(row))
            found[f"units.{name}.movement.rms"] = Result(row.values["rms"], "", looking.origin(row))
    return found
