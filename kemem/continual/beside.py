"""Modules beside a model: parameters of a method's own that are trained, saved and moved with the model.

They live under `model.beside`, so that the loop finds them in `named_parameters` and a state dict holds them. What they
do to a pass is the method's own affair: it hooks them in with `kemem.trace` for as long as `during` or `at` last, and
outside of these the model computes what it did before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from kemem.errors import BadInput

NAME = "beside"


def add_(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Puts a module beside the model, on its device and in its dtype, and returns it. Refused: a name twice."""
    shelf = model._modules.get(NAME)
    if shelf is None:
        shelf = nn.ModuleDict()
        model.add_module(NAME, shelf)
    assert isinstance(shelf, nn.ModuleDict)
    if name in shelf:
        raise BadInput(
            f"expected a new name for a module beside the model; got {name!r} again; take it as it is."
        )
    first = next(model.parameters())
    shelf[name] = module.to(first.device, first.dtype)
    return shelf[name]


def present(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules beside the model, in the order they were added."""
    shelf = model._modules.get(NAME)
    return tuple(shelf) if isinstance(shelf, nn.ModuleDict) else ()


def module(model: nn.Module, name: str) -> nn.Module:
    """The module of this name. Refused: a name that is not there."""
    shelf = model._modules.get(NAME)
    if not isinstance(shelf, nn.ModuleDict) or name not in shelf:
        raise BadInput(
            f"expected a module beside the model; got {name!r}; there are {', '.join(present(model)) or 'none'}."
        )
    return shelf[name]


def drop_(model: nn.Module, name: str | None = None) -> None:
    """Takes one module, or all, away from beside the model; without them it is the model it was."""
    if name is not None:
        module(model, name)
        del model._modules[NAME][name]
    if name is None or not present(model):
        model._modules.pop(NAME, None)


def train_only_(model: nn.Module, parts: Iterable[nn.Module | nn.Parameter]) -> Callable[[], None]:
    """Freezes all parameters but those of the parts given. What is returned puts everything back as it was."""
    before = {p: p.requires_grad for p in model.parameters()}
    for p in before:
        p.requires_grad_(False)
    for part in parts:
        for p in [part] if isinstance(part, nn.Parameter) else part.parameters():
            p.requires_grad_(True)

    def back() -> None:
        for p, trained in before.items():
            p.requires_grad_(trained)

    return back


class Sets:
    """Which module beside the model serves which domain: one for all, or one each; strangers get the newest.

    kind: its name in `model.beside`, or what its name begins with where each domain has one: kind0, kind1, ... in the
    order of the domains. What a domain is called does not matter: names of modules may not hold a dot, those of
    domains may.
    """

    def __init__(self, kind: str, *, each: bool) -> None:
        self.kind, self.each = kind, each
        self.names: list[str] = []
        self._back: Callable[[], None] | None = None

    def begin(
        self,
        model: nn.Module,
        name: str,
        make: Callable[[int], nn.Module],
        also: Iterable[nn.Module | nn.Parameter] = (),
    ) -> nn.Module:
        """The module of a domain, made by make(number) where there is none. Until `end`, only it and `also` learn."""
        self.end()
        if name not in self.names:
            if self.each or not self.names:
                add_(
                    model, f"{self.kind}{len(self.names)}" if self.each else self.kind, make(len(self.names))
                )
            self.names.append(name)
        found = self.of(model, name)
        assert found is not None
        self._back = train_only_(model, [found, *also])
        return found

    def of(self, model: nn.Module, name: str) -> nn.Module | None:
        """The module that a domain is shown with; None before the first domain."""
        if not self.names:
            return None
        place = self.names.index(name) if name in self.names else len(self.names) - 1
        return module(model, f"{self.kind}{place}" if self.each else self.kind)

    def end(self) -> None:
        if self._back is not None:
            self._back()
            self._back = None

    def drop_(self, model: nn.Module) -> None:
        """Takes all of them away from beside the model, as if no domain had been seen."""
        self.end()
        for name in [f"{self.kind}{place}" for place in range(len(self.names))] if self.each else [self.kind]:
            drop_(model, name)
        self.names.clear()
