"""Chapter 15: the same function written down in other weights, and which of the notions notice.

Multiply the key of a memory by a factor and divide its value by it: the model computes what it did. What is a property
of the function cannot change by it. One row, in float64: each notion and an edit by MEMIT in three such models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kemem import editing, entropy, evaluation, models
from kemem.continual.importance import Measuring, domain_importance
from kemem.editing import Request
from kemem.editing.scores import SUCCESS, Judge
from kemem.memory import Memories
from kemem.objective import causal, mix
from kemem.runs import Row
from kemem.studies import bench, many
from kemem.studies.bench import Bench
from kemem.studies.checkpointed import MIXTURE, Compared, Stages
from kemem.studies.critique import bare_keys
from kemem.studies.editability import Setting
from kemem.studies.notions import lengths
from kemem.studies.nulls import within
from kemem.studies.sources import Told

STUDY, VERSION = "rescaling", 1
AS_TRAINED, LEVEL, RANDOM = WEIGHTS = ("as trained", "all used alike", "at random")


@dataclass(frozen=True)
class Rescaling:
    """spread: the standard deviation of the logarithms of random factors."""

    of: Compared
    step: int
    setting: Setting
    count: int = 24
    spread: float = 1.0
    seed: int = 0


def factors(usage: Float[Tensor, "L M"], s: Rescaling) -> dict[str, Float[Tensor, "L M"]]:
    """What keys are multiplied by and values divided by, in each of the models."""
    generator = torch.Generator().manual_seed(mix(s.seed, 4) >> 1)
    random = torch.randn(usage.shape, generator=generator, dtype=torch.float64).mul(s.spread).exp()
    return {
        AS_TRAINED: torch.ones_like(random),
        LEVEL: entropy.multiplier(usage, 1.0, 1.0).double(),
        RANDOM: random,
    }


def run(stages: Stages, s: Rescaling) -> Row:
    """The row: of each model entropy, loss, the edit's scores; and how its notions differ from the trained model's."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        stages.say(provenance)
        # a model of its own, in float64: what is exactly alike should look so
        net, tok = stages.model(s.step)
        net.double()
        at = bench.made(net, tok, Told(stages.world), s.setting.layers, stages.ordinary, seed=s.of.seed)
        facts = stages.facts(s.count)
        own = stages.rows(MIXTURE)[0]
        usage = entropy.measure(net, own, length=own.length, next_token=False).usage
        weights = {name: p.detach().clone() for name, p in net.named_parameters()}
        seen: dict[str, Look] = {}
        for name, own_factors in factors(usage, s).items():
            with torch.no_grad():
                for key, p in net.named_parameters():
                    p.copy_(weights[key])
                entropy.reparameterise_(net, own_factors)
            moments = editing.key_moments(net, at.rows, s.setting.layers)
            again = Bench(net, tok, at.source, at.templates, moments, at.rows)
            seen[name] = Look(stages, again, facts, s)
            if stages.lab.progress is not None:
                stages.lab.progress(len(seen), 3, f"weights {name}")
        first = seen[AS_TRAINED]
        return {name: each.told(first) for name, each in seen.items()}

    place = models.named_device(stages.lab.device).type
    return stages.lab.store.row(STUDY, VERSION, s, compute, device=place)


class Look:
    """A model as it is now: its notions, and one edit with its scores."""

    def __init__(self, stages: Stages, at: Bench, facts: Sequence[Request], s: Rescaling) -> None:
        own, other, free = (stages.rows(MIXTURE)[i] for i in (0, 1, -1))
        found = entropy.measure(at.model, own, length=own.length, next_token=False)
        self.entropy, self.bound = found.entropy, found.bound
        self.nats = evaluation.loss(at.model, free)
        layer = s.setting.layers[0]
        memories = Memories(at.model)
        before = memories.values(layer).double().clone()
        edit = many.write(at, "MEMIT", s.setting.editor(), facts)
        key = bare_keys(at, facts, layer)  # [N M]
        with edit.applied(at.model):
            added = memories.values(layer).double() - before
            self.scores = Judge(at.tok, facts)(at.model).summary()
        self.effect = added @ key.T  # what the facts' tokens get, [D N]
        self.notions = {
            "usage": found.usage.double(),
            "contribution": found.usage.double() * lengths(at),
            # on other rows than usage, as accidents of the text would be shared
            "loss": domain_importance(
                at.model, other, causal, Measuring(len(other), seed=s.seed)
            ).intermediate.cpu(),
            "key": key.abs().mean(0, keepdim=True).cpu(),
            "update": added.norm(dim=0)[None].cpu(),
            "written": (added.norm(dim=0) * key.abs().mean(0))[None].cpu(),
        }

    def told(self, first: Look) -> dict[str, Any]:
        """changed: |notion - that of the first| / |that of the first|. rank: correlation of usage with importance."""
        changed = {name: relative(own, first.notions[name]) for name, own in self.notions.items()}
        return {
            "entropy": self.entropy, "bound": self.bound, "nats": self.nats,
            **{name: self.scores[name] for name in ("S", *SUCCESS)},
            "changed": changed, "effect": relative(self.effect, first.effect),
            "rank": within(self.notions["usage"], self.notions["loss"]),
            "rank, contribution": within(self.notions["contribution"], self.notions["loss"]),
        }  # fmt: skip


def relative(found: Tensor, first: Tensor) -> float:
    return float((found - first).norm() / first.norm())
