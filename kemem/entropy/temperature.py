"""Attention made flatter by a temperature: the intervention that resuscitation is compared with."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import mul, truediv

import torch
from torch import Tensor, nn

from kemem import trace
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.training import Domain, Method

# The number of an attention module that scores depend on, and what divides scores by T: all families of transformers
# multiply by `scaling`, GPT-J divides by `scale_attn`.
SCALES: dict[str, Callable[[float, float], float]] = {"scaling": truediv, "scale_attn": mul}


@contextmanager
def attention_temperature(model: nn.Module, temperature: float) -> Iterator[None]:
    """Within the block, every layer's attention is softmax(scores / T); afterwards as before, bit for bit.

    Kim et al. 2025, B.8. T > 1 flattens attention, T = 1 leaves it as it is, T < 1 sharpens it. Eager and other
    implementations alike, as all of them read the same number.
    Refused: a family whose attention does not hold that number.
    """
    _check(temperature)
    memories = Memories(model)
    places = [_scale(memories, layer) for layer in range(memories.layers)]
    try:
        for module, name, before in places:
            setattr(module, name, SCALES[name](before, temperature))
        yield
    finally:
        for module, name, before in places:
            setattr(module, name, before)


def _check(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise BadInput(
            f"temperature must be a number above 0; got {temperature}; above 1 flattens attention, 1 is as it was."
        )


def _scale(memories: Memories, layer: int) -> tuple[nn.Module, str, float]:
    """Where a layer keeps the scale of its scores: module, name, value."""
    path = memories.attention_path(layer)
    found = [
        (module, name, getattr(module, name))
        for module in trace.module(memories.model, path).modules()
        for name in SCALES
        if isinstance(getattr(module, name, None), float)
    ]
    if len(found) != 1:
        raise BadInput(
            f"attention temperature needs one number that scales the scores ({' or '.join(SCALES)}); got "
            f"{len(found)} of them in {path!r} of {memories.family!r}; this family keeps its scale elsewhere."
        )
    return found[0]


@dataclass(eq=False)
class CoolAttention(Method):
    """Training with an attention temperature that falls linearly to 1, as the authors' code does unless told not to.

    Step k of n = steps, from 0, learns at T = 1 + (temperature - 1) (1 - k / n); a checkpoint is evaluated at the T of
    the step that would come next, the last one at 1. temperature = 1 is plain training bit for bit. For a constant T
    train inside `attention_temperature`; do so with T = 1 where a run that fails must not leave its model changed.
    """

    temperature: float
    steps: int
    _model: nn.Module | None = field(default=None, init=False, repr=False)
    _held: ExitStack = field(default_factory=ExitStack, init=False, repr=False)
    _done: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self.temperature)
        if self.steps < 1:
            raise BadInput(f"steps must be at least 1; got {self.steps}; give those of the recipe.")

    def before(self, model: nn.Module, domain: Domain) -> None:
        self._model = model
        self._hold(0)

    def gradients(self, model: nn.Module) -> None:
        self._hold(self._done + 1)  # nothing more of this step looks at attention

    def after(self, model: nn.Module, domain: Domain) -> None:
        self._held.close()

    def state(self) -> dict[str, Tensor]:
        return {"done": torch.tensor(self._done)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._hold(int(state["done"]))

    def _hold(self, done: int) -> None:
        assert self._model is not None, "before comes first"
        self._done = done
        self._held.close()
        left = max(0.0, 1 - done / self.steps)
        self._held.enter_context(attention_temperature(self._model, 1 + (self.temperature - 1) * left))
