"""Reaching inside a running model: the only hooks of the package.

A place is named by the model's own dotted path ("model.layers.3.mlp.down_proj"). Each function is a context
manager that hooks the modules named, and removes its hooks on the way out, also after an exception.

    observe   calls back with the tensor itself while the pass runs, and keeps nothing
    record    keeps a copy of every tensor that passed
    replace   puts another tensor in its place

`side` is "input" (the first positional argument, or `hidden_states` where a block passes it by name) or
"output". Of an output that is a tuple, the first element is meant: most blocks of transformers 5 return a
plain tensor, GPT-J's a tuple, attention modules a pair (output, weights).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from kemem.errors import BadInput

SIDES = ("input", "output")


def module(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path; "" is the model. A wrong path is refused, with the part that exists."""
    found = model
    parts = path.split(".") if path else []
    for depth, part in enumerate(parts):
        child = getattr(found, part, None)
        if not isinstance(child, nn.Module):
            names = [name for name, _ in found.named_children()]
            listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no modules"
            where = repr(".".join(parts[:depth])) if depth else "the model"
            raise BadInput(
                f"expected the path of a module of {type(model).__name__}; got {path!r}, but {where} holds "
                f"{listed}; name one of these, or one that model.named_modules() lists."
            )
        found = child
    return found


@contextmanager
def observe(
    model: nn.Module,
    callbacks: Mapping[str, Callable[[Any], object]],
    *,
    side: str = "input",
    element: int = 0,
) -> Iterator[None]:
    """Within the block, each callback is called with what enters (or leaves) its module, at every call of it.

    The tensor is the running pass's own, neither copied nor detached; what the callback returns is ignored.
    Under gradient checkpointing a module runs, and calls back, twice. `element` picks another one of a tuple
    output; that may be None (attention weights that were not computed).
    """

    def watch(callback: Callable[[Any], object]) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            callback(_first(args, kwargs)[1])

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            callback(output[element] if isinstance(output, tuple) else output)

        return before if side == "input" else after

    with _hooked(model, {path: watch(callback) for path, callback in callbacks.items()}, side):
        yield


@contextmanager
def record(
    model: nn.Module, paths: Iterable[str], *, side: str = "output"
) -> Iterator[dict[str, list[Tensor]]]:
    """Within the block, keeps what every module named gave (or got): path -> a list, one tensor a call.

    Detached copies, because a module may work in place on what another one gave (OLMo's `clip_qkv` does).
    For long texts use `observe`, which keeps nothing.
    """
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str) -> Callable[[Tensor], None]:
        return lambda tensor: seen[path].append(tensor.detach().clone())

    with observe(model, {path: keep(path) for path in seen}, side=side):
        yield seen


@contextmanager
def replace(
    model: nn.Module, functions: Mapping[str, Callable[[Tensor], Tensor]], *, side: str = "output"
) -> Iterator[None]:
    """Within the block, what enters (or leaves) each module is replaced by function(tensor), of equal shape.

    Weights are untouched, gradients flow through the function, other elements of a tuple pass unchanged.
    """

    def change(path: str, function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def changed(old: Tensor) -> Tensor:
            new = function(old)
            if not isinstance(new, Tensor) or new.shape != old.shape:
                got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
                raise BadInput(
                    f"expected a tensor of shape {tuple(old.shape)} for the {side} of {path!r}; got {got}; "
                    "return the changed tensor from the function."
                )
            return new

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            name, old = _first(args, kwargs)
            if name is None:
                return (changed(old), *args[1:]), kwargs
            return args, {**kwargs, name: changed(old)}

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

        return before if side == "input" else after

    with _hooked(model, {path: change(path, function) for path, function in functions.items()}, side):
        yield


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any]:
    """The tensor a module was called on, and its name where it was passed by name."""
    if args:
        return None, args[0]
    if "hidden_states" in kwargs:
        return "hidden_states", kwargs["hidden_states"]
    raise BadInput(
        "expected a module called on a positional tensor or on hidden_states; got the arguments "
        f"{', '.join(sorted(kwargs)) or 'none'}; take its output, or a module inside it."
    )


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., Any]], side: str) -> Iterator[None]:
    if side not in SIDES:
        raise BadInput(f"expected side to be one of {', '.join(SIDES)}; got {side!r}; choose one of these.")
    # all paths are looked up before any hook is set: a wrong one leaves the model as it was
    places = [(module(model, path), hook) for path, hook in hooks.items()]
    with ExitStack() as stack:
        for place, hook in places:
            if side == "input":
                handle = place.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                handle = place.register_forward_hook(hook)
            stack.callback(handle.remove)
        yield
