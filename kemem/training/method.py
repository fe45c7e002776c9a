"""The moments at which a way of learning may differ from plain training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass

from torch import Tensor, nn

from kemem.objective import Batch
from kemem.training.recipe import Domain, Rows


class Method:
    """Plain (continual) pre-training; other methods override the moments they need.

    In the order they come, for each domain: `before`, `batches`; around the steps `during`; for each step `rows`,
    `loss` (once a micro-batch), `gradients`, `updated`; at checkpoints and in evaluation `at`; `after`.
    """

    def before(self, model: nn.Module, domain: Domain) -> None:
        """Once a domain, before the optimizer is built: importance, buffers, parameters added or frozen."""

    def batches(self, domains: Sequence[Domain]) -> Rows:
        """Which data to train on; `domains` are those seen so far, the present one last."""
        return domains[-1].blocks

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        """The model as it is while it is trained on a domain: what has to hook into its passes.

        Left before every checkpoint, where `at` takes its place, and entered again after it.
        """
        return nullcontext()

    def rows(self, step: int, batch: Batch) -> Batch:
        """Once a step, the rows it reads over all processes, before they are cut into micro-batches: other text.

        step: of the one about to be taken, counted from 1. Every process asks for the same rows, and a run that
        resumes asks again, so what is returned must follow from the arguments alone. `batch` may be the data's
        own memory: change a copy.
        """
        return batch

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        """Once a micro-batch: penalties, replay, contrast. May run further passes of the model.

        `loss` is the mean over the micro-batch's target tokens. What is returned is weighted by the
        micro-batch's share of the step's target tokens, so a penalty added here counts once a step, however
        the step is cut.
        """
        return loss

    def gradients(self, model: nn.Module) -> None:
        """Once a step: all micro-batches and processes are summed in `.grad`, nothing is clipped yet."""

    def updated(self, model: nn.Module, previous: dict[str, Tensor]) -> None:
        """Once a step, after the optimizer: masks of the update, clamps.

        previous: the value before the step of every parameter that has a gradient; only kept when overridden.
        """

    def after(self, model: nn.Module, domain: Domain) -> None:
        """Once a domain, at its end: Fisher, memory of examples."""

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        """The model as it is to be used on a domain: its mask, its adapter, its prompt."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """What changed in the method since `before` and must survive a kill; the model is kept anyway."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave, when a run is resumed in the middle of a domain; `before` has run."""


def overrides(method: Method, moment: str) -> bool:
    return getattr(type(method), moment) is not getattr(Method, moment) or moment in vars(method)


def settings(method: Method) -> dict[str, int | float | str]:
    """Numbers and texts that a method was given: what of it tells two runs apart. Tensors are compared by `restore`."""
    if not is_dataclass(method):
        return {}
    given = {field.name: getattr(method, field.name) for field in fields(method) if field.init}
    return {name: value for name, value in given.items() if isinstance(value, int | float | str)}
