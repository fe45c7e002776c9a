"""Everything about a training run that is a number: `Recipe`, its schedule, and what a run leaves behind."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from kemem.errors import BadInput

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW or SGD, linear warm-up, a decay of the rate, clipping by the global norm.

    A step reads `batch_size` rows over all processes, each in `accumulation` micro-batches. `weight_decay`
    acts on matrices; norms and biases never decay, embeddings (also when tied to the last projection) only
    if asked.
    """

    steps: int
    batch_size: int
    learning_rate: float
    accumulation: int = 1
    warmup_steps: int = 0
    final_share: float = 0.1
    """Rate of the last step as a share of the peak."""
    schedule: str = "cosine"
    optimizer: str = "adamw"
    """One of OPTIMIZERS. "sgd" takes betas[0] as its momentum and has no use for betas[1] and epsilon."""
    weight_decay: float = 0.1
    """Taken from a weight itself at the step's rate, in both optimizers, and never from its gradient."""
    decay_embeddings: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    clip: float = 1.0
    """Largest global norm of the gradients; 0 leaves them as they are."""
    seed: int = 0
    """Order of the data and dropout; the weights are drawn elsewhere (`kemem.models.build`)."""
    precision: str = "float32"
    compile: bool = False
    checkpoints: tuple[int, ...] = ()
    """Number of steps done at which a checkpoint is kept; 0 is the model before training."""
    save_every: int = 0
    """Steps between two saves of the resume state besides those at checkpoints; 0: only there."""
    log_every: int = 0
    """Steps between two rows of the history; 0: about 200 rows a run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "checkpoints", tuple(sorted(set(self.checkpoints))))
        for name in ("steps", "batch_size", "accumulation"):
            self._refuse(name, getattr(self, name) < 1, "at least 1")
        for name in ("learning_rate", "epsilon"):
            self._refuse(name, not 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("warmup_steps", "weight_decay", "clip", "save_every", "log_every"):
            self._refuse(name, not 0 <= getattr(self, name) < math.inf, "0 or more")
        self._refuse("final_share", not 0 <= self.final_share <= 1, "a share, in [0, 1]")
        self._refuse(
            "betas", len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)"
        )
        self._refuse("warmup_steps", self.warmup_steps > self.steps, f"at most steps, {self.steps}")
        self._refuse(
            "accumulation", self.accumulation > self.batch_size, f"at most batch_size, {self.batch_size}"
        )
        self._refuse("schedule", self.schedule not in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        self._refuse("optimizer", self.optimizer not in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        self._refuse("precision", self.precision not in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        outside = not all(0 <= step <= self.steps for step in self.checkpoints)
        self._refuse("checkpoints", outside, f"numbers of steps done, 0 to {self.steps}")

    def _refuse(self, name: str, wrong: bool, expected: str) -> None:
        if wrong:
            raise BadInput(
                f"expected {name} to be {expected}; got {getattr(self, name)!r}; change the recipe."
            )

    def rate(self, step: int) -> float:
        """Learning rate of the step after `step` finished ones; the last step has final_share x the peak."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step + 1 - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done
        return self.learning_rate * (self.final_share + (1 - self.final_share) * left)

    @property
    def time_constants(self) -> float:
        """How often the decay could forget a weight: sum over the steps of rate x weight_decay.

        A weight without gradient shrinks by exp(-time_constants) over the run.
        """
        return self.weight_decay * math.fsum(self.rate(step) for step in range(self.steps))

    @property
    def rows_every(self) -> int:
        return self.log_every or max(1, self.steps // 200)


@runtime_checkable
class Rows(Protocol):
    """Training data: numbered rows, read by number. `kemem.corpora.Blocks` is one."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """indices [B] -> {"input_ids": [B T], "labels": [B T], ...}, labels of -100 being no target."""
        ...


@dataclass(frozen=True)
class Domain:
    """Named text to learn from, one of a sequence in continual pre-training."""

    name: str
    blocks: Rows


@dataclass
class History:
    """What a run saw of itself. Plain numbers only, so it is JSON as it stands.

    steps: rows of step, loss, lr, tokens, seconds. loss is the mean since the row before of the objective
    alone, in nats; tokens and seconds count from the start of the run, over all processes.
    checkpoints: rows of step and of what `at_checkpoint` returned.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)

    def json(self) -> dict[str, list[dict[str, Any]]]:
        return asdict(self)


def bfloat16_runs(device: torch.device | str) -> bool:
    """Whether this device multiplies bfloat16 in hardware, so that `precision="bfloat16"` pays."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    asked = None if kind == "mps" else getattr(getattr(torch, kind, None), "is_bf16_supported", None)
    return asked is not None and asked()
