"""Staying close to the model as it was before a domain, in what it says and not in its weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem.continual.contrast import last_hidden, present, restored
from kemem.continual.fisher import fitting
from kemem.errors import BadInput
from kemem.objective import IGNORED, Batch, Objective, causal, logits_of
from kemem.training import Domain, Method

OF = {"hidden": last_hidden, "logits": logits_of}
"""What is compared: final hidden states, as if they were scores of D classes, or the scores of the vocabulary."""


@dataclass(eq=False)
class KD(Method):
    """Knowledge distillation from the model as it was before the domain, on the domain's own text.

    Ke et al. 2023, "KD":  L + strength * KL(teacher || student), both softmax(z / temperature) at each token of the
    text before any corruption, times temperature^2. The teacher is a copy of the model when a domain begins, in
    evaluation mode; in the first domain it is the model as it was given. Of a row the mean over its tokens counts, and
    rows count as in the loss, by their target tokens, so that a step may be cut at will.

    of: z, one of OF. objective: the one that training is given. strength = 0 is plain training bit for bit.
    A step has one more pass with gradient and one without, both without the head where z is hidden.

    Differs from the released code, whose softmax is over the positions of a text instead of the features, whose
    divergence is that from the student, summed over the text, and whose teacher has dropout.
    """

    strength: float = 1.0
    temperature: float = 1.0
    of: str = "hidden"
    objective: Objective = causal
    _teacher: nn.Module | None = field(default=None, init=False, repr=False)
    _unseen: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf or not 0 < self.temperature < math.inf:
            raise BadInput(
                "expected a strength of 0 or more and a temperature above 0; got "
                f"{self.strength} and {self.temperature}; 1 and 1 are the paper's."
            )
        if self.of not in OF:
            raise BadInput(f"expected of to be one of {', '.join(OF)}; got {self.of!r}; choose one of these.")

    def before(self, model: nn.Module, domain: Domain) -> None:
        self._unseen = True
        self._teacher = copy.deepcopy(model).eval() if self.strength else None

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        if self._teacher is None:
            return loss
        if self._unseen:
            fitting(self.objective, batch)
            self._unseen = False
        clean, read = restored(batch), OF[self.of]
        with torch.no_grad():
            taught = read(self._teacher, clean)
        with torch.random.fork_rng([loss.device] if loss.device.type == "cuda" else []):
            own = read(model, clean)
        found = divergence(taught, own, self.temperature)  # [B T]
        tokens = present(batch)
        if tokens is None:
            rows = found.mean(1)
        else:
            rows = (found * tokens).sum(1) / tokens.sum(1).clamp(min=1)
        weights = (self.objective.targets(batch) != IGNORED).sum(1)
        return loss + self.strength * (rows * weights).sum() / weights.sum().clamp(min=1)

    def after(self, model: nn.Module, domain: Domain) -> None:
        self._teacher = None


def divergence(
    teacher: Float[Tensor, "B T V"], student: Float[Tensor, "B T V"], temperature: float
) -> Float[Tensor, "B T"]:
    """temperature^2 KL(softmax(teacher / temperature) || softmax(student / temperature)) at each position, in nats."""
    wide = torch.promote_types(student.dtype, torch.float32)
    p, q = ((x.to(wide) / temperature).log_softmax(-1) for x in (teacher, student))
    return temperature**2 * (p.exp() * (p - q)).sum(-1)
