"""SupSup, Wortsman et al. 2020: the weights never change, and each domain learns which of them to use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from kemem import trace
from kemem.continual import beside
from kemem.errors import BadInput
from kemem.families import matrix, offset
from kemem.memory import Memories
from kemem.objective import Batch, logits_of
from kemem.training import Domain, Method


class _Kept(torch.autograd.Function):
    """1 where a score is at least 0, else 0; its derivative is taken to be 1 everywhere (straight through)."""

    @staticmethod
    def forward(context: Any, score: Tensor) -> Tensor:
        return (score >= 0).to(score.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def kept(score: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The mask of a score, 1 where it is 0 or more; backwards as if it were the score itself."""
    found = _Kept.apply(score)
    assert isinstance(found, Tensor)
    return found


@dataclass(eq=False)
class SupSup(Method):
    """A mask of each domain on every weight matrix of the blocks; weights, norms, embeddings and head stay frozen.

        y = (W (x) m_t) x + b,   m_t = 1 where score_t >= 0      the score's gradient is that of W (x) m_t times W

    Nothing is shared that could change, so nothing is ever forgotten, and nothing is handed on. A domain is shown under
    its own mask, one not seen yet under the latest, or `guess` asks the model which mask fits a text.

    start: every score's first value. Above 0 all weights are used at first, so that the function is the model's, and
    about start / rate steps pass before a first one is dropped. Scores lie beside the model as vectors, which the
    recipe's decay leaves alone; a bit each is all that is needed of them once a domain has ended.
    Differs from the paper, which draws scores, because it looks for subnetworks of random weights and here the weights
    are trained. A masked product is made in place of the plain one, which is made as well: a third more time.
    """

    start: float = 0.01
    tasks: list[str] = field(default_factory=list, init=False, repr=False)
    _back: Callable[[], None] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.start >= 0:
            raise BadInput(
                f"expected a start of 0 or more, where weights are used; got {self.start}; 0.01 is ten steps at 1e-3."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        sizes = [matrix(linear).numel() for linear in linears(model).values()]
        fresh = nn.ParameterList(nn.Parameter(torch.full((size,), self.start)) for size in sizes)
        own = beside.add_(model, f"scores{len(self.tasks)}", fresh)
        self.tasks.append(domain.name)
        self._back = beside.train_only_(model, [own])

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        own = scores(model, len(self.tasks) - 1)
        return masked(model, lambda place: kept(own[place]))

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        if not self.tasks:
            return nullcontext()
        seen = domain.name in self.tasks
        own = scores(model, self.tasks.index(domain.name) if seen else len(self.tasks) - 1)
        return masked(model, lambda place: kept(own[place].detach()))

    def after(self, model: nn.Module, domain: Domain) -> None:
        assert self._back is not None, "before comes first"
        self._back()
        for score in scores(model, len(self.tasks) - 1):
            score.requires_grad_(False)

    def guess(self, model: nn.Module, batch: Batch) -> str:
        """The domain whose mask would lower the entropy of the model's predictions fastest; see `slopes`."""
        return self.tasks[int(self.slopes(model, batch).argmin())]

    def slopes(self, model: nn.Module, batch: Batch) -> Float[Tensor, " n"]:
        """How the entropy of predictions changes with the share of each domain's mask in a mixture, from one pass.

        Wortsman et al. 2020, section 3.3:  dH/da_t at a_t = 1/n, with weights W (x) sum_t a_t m_t. H is the mean over
        tokens of the entropy of the prediction, in nats; padding does not count.
        """
        if not self.tasks:
            raise BadInput("expected a method that has learned a domain; got none; train it first.")
        every = [scores(model, task) for task in range(len(self.tasks))]
        shares = torch.full((len(every),), 1 / len(every), requires_grad=True)

        def mixed(place: int) -> Tensor:
            masks = torch.stack([kept(own[place].detach()) for own in every])
            return shares.to(masks) @ masks

        with torch.enable_grad(), masked(model, mixed):
            likely = logits_of(model, batch).log_softmax(-1)
        entropy = -(likely.exp() * likely).sum(-1)  # [B T]
        tokens = (
            batch["attention_mask"].to(entropy) if "attention_mask" in batch else torch.ones_like(entropy)
        )
        return torch.autograd.grad((entropy * tokens).sum() / tokens.sum(), shares)[0]


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear map inside of the blocks, by path."""
    blocks = Memories(model).blocks_path
    inside = trace.module(model, blocks).named_modules()
    return {f"{blocks}.{name}": module for name, module in inside if isinstance(module, nn.Linear | Conv1D)}


def scores(model: nn.Module, task: int) -> Sequence[nn.Parameter]:
    found = beside.module(model, f"scores{task}")
    assert isinstance(found, nn.ParameterList)
    return list(found)


@contextmanager
def masked(model: nn.Module, mask: Callable[[int], Tensor]) -> Iterator[None]:
    """Within the block linear map i of `linears` multiplies by W (x) mask(i), a vector in the order of [out in]."""
    waiting: dict[str, Tensor] = {}  # what entered, until the product is made

    def keep(path: str) -> Callable[[Tensor], None]:
        return lambda x: waiting.__setitem__(path, x)

    def product(path: str, place: int, linear: nn.Module) -> Callable[[Tensor], Tensor]:
        def made(_: Tensor) -> Tensor:
            weight = matrix(linear)
            return F.linear(waiting.pop(path), weight * mask(place).view(weight.shape), offset(linear))

        return made

    every = linears(model)
    functions = {path: product(path, place, linear) for place, (path, linear) in enumerate(every.items())}
    with ExitStack() as stack:
        stack.callback(waiting.clear)
        stack.enter_context(trace.observe(model, {path: keep(path) for path in every}, side="input"))
        stack.enter_context(trace.replace(model, functions, side="output"))
        yield
