"""A loss compiled where the machine can compile, and the loss itself where it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[..., Tensor]


class Compiled:
    """`loss` by `torch.compile`, which shows in its first call whether it works here: it asks for a C compiler, and on
    a card for Triton. Where that call fails and `loss` itself does not, a warning says so and `loss` is called from
    then on: the same numbers but for rounding, later."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.called: Loss = torch.compile(loss)
        self.works = False

    def __call__(self, *arguments: object) -> Tensor:
        if self.works:
            return self.called(*arguments)
        try:
            found = self.called(*arguments)
        except Exception as error:
            found = self.loss(*arguments)  # whose own error, a lack of memory say, is the one to be seen
            self.called = self.loss
            reason = next(iter(str(error).strip().splitlines()), "")
            warnings.warn(
                f"torch.compile does not work here ({type(error).__name__}: {reason[:200]}); training goes on without "
                "it, more slowly.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.works = True
        return found
