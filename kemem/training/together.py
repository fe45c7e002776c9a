"""Several ways of learning in one run."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from kemem.errors import BadInput
from kemem.objective import Batch
from kemem.training.method import Method, overrides, settings
from kemem.training.recipe import Domain


@dataclass(eq=False)
class Together(Method):
    """Several methods as one: every moment is passed to each of them, in the order given.

    `rows` and `loss` are chained: each method is given what the one before returned. What one does to gradients or
    to the step's update, the next one finds done; `previous` is the same for all. `during` and `at` enter all, and
    leave them in reverse. Only one may choose `batches`. Without a method it is plain training bit for bit, with one
    that method.

    members: what tells a run from one with other methods when it is resumed; filled in before the first step.
    Refused: two methods that choose the data to train on.
    """

    methods: Sequence[Method]
    members: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.methods = tuple(self.methods)
        choosing = [method for method in self.methods if overrides(method, "batches")]
        if len(choosing) > 1:
            names = " and ".join(type(method).__qualname__ for method in choosing)
            raise BadInput(
                f"expected at most one method that chooses the data to train on; got {len(choosing)}: {names}; "
                "leave out all but one."
            )
        # Set on the instance and only where asked for: the loop copies all weights at every step of a method that
        # overrides `updated`, and a Together inside another one is judged by the same rule.
        if choosing:
            vars(self)["batches"] = choosing[0].batches
        if any(overrides(method, "updated") for method in self.methods):
            vars(self)["updated"] = self._updated

    def before(self, model: nn.Module, domain: Domain) -> None:
        for method in self.methods:
            method.before(model, domain)
        self.members = " + ".join(_named(method) for method in self.methods)

    def rows(self, step: int, batch: Batch) -> Batch:
        for method in self.methods:
            batch = method.rows(step, batch)
        return batch

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        for method in self.methods:
            loss = method.loss(model, batch, loss)
        return loss

    def gradients(self, model: nn.Module) -> None:
        for method in self.methods:
            method.gradients(model)

    def _updated(self, model: nn.Module, previous: dict[str, Tensor]) -> None:
        for method in self.methods:
            method.updated(model, previous)

    def after(self, model: nn.Module, domain: Domain) -> None:
        for method in self.methods:
            method.after(model, domain)

    @contextmanager
    def during(self, model: nn.Module, domain: Domain) -> Iterator[None]:
        with ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.during(model, domain))
            yield

    @contextmanager
    def at(self, model: nn.Module, domain: Domain) -> Iterator[None]:
        with ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.at(model, domain))
            yield

    def state(self) -> dict[str, Tensor]:
        return {
            f"{place}.{name}": tensor.clone()  # two may hold one tensor, and safetensors writes none twice
            for place, method in enumerate(self.methods)
            for name, tensor in method.state().items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        for place, method in enumerate(self.methods):
            prefix = f"{place}."
            own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
            method.restore({name.removeprefix(prefix): tensor for name, tensor in own.items()})


def _named(method: Method) -> str:
    own = ", ".join(f"{name}={value!r}" for name, value in settings(method).items())
    return f"{type(method).__qualname__}({own})"
