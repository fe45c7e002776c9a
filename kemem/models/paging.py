"""Blocks that stay in safetensors files: read when they run, dropped when the next one does.

Every parameter of such a block is an empty one, of the meta device, but while the block is held. Reading is the only
thing that takes memory: of one block at a time, and of single tensors in a backward pass, which finds the weights it
needs by name instead of keeping them alive.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from kemem.errors import BadInput
from kemem.models.shards import Shards, Stored

NONE: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Slot:
    """A parameter of a block: where it stands in the model and the files; `empty` stands there when it is not held."""

    block: nn.Module
    module: nn.Module
    attribute: str
    name: str
    stored: Stored
    empty: nn.Parameter


class Copied(Tensor):
    """A copy of weights that are on the disk, or a view of it. To change it in place would change nothing: refused."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Copied)]
        with torch._C.DisableTorchFunctionSubclass():
            before = [each._version for each in given]
            found = function(*args, **(kwargs or {}))
            if any(each._version != version for each, version in zip(given, before, strict=True)):
                raise BadInput(
                    "expected weights in memory, to change them in place; got a copy of those on the disk; load the "
                    "model without streaming, or lay an Edit over it."
                )
            places = {each.untyped_storage().data_ptr() for each in given}
            view = type(found) is Tensor and found.untyped_storage().data_ptr() in places
            return found.as_subclass(cls) if view else found


class Pages:
    """The blocks of one model, of which one is held at a time: that which ran last.

    `deltas`: what is laid over the weights that are read, by the parameter's name. Blocks are read, never trained: a
    block whose weights were put there or changed by anything else is refused at its next pass.
    """

    def __init__(self, model: nn.Module, path: str, shards: Shards, device: torch.device) -> None:
        self.shards, self.device = shards, device
        self.deltas: dict[str, tuple[Tensor, ...]] = {}
        self.slots: dict[nn.Module, list[Slot]] = {}
        # with the version, which tells of changes in place
        self._held: dict[Slot, tuple[nn.Parameter, int]] = {}
        self._storages: dict[int, Slot] = {}
        base = getattr(model, "base_model_prefix", "")
        blocks = model.get_submodule(path)
        for number, block in enumerate(blocks):
            self.slots[block] = []
            for inner, module in block.named_modules():
                for attribute, empty in module.named_parameters(recurse=False):
                    name = ".".join(part for part in (path, str(number), inner, attribute) if part)
                    stored = shards.named(name, empty.shape, base)
                    self.slots[block].append(Slot(block, module, attribute, name, stored, empty))
                module.pages = weakref.ref(self)
            block.forward = _paged(block, self)

    def __deepcopy__(self, _: Any) -> Any:
        raise BadInput(
            "expected a model in memory, to copy it; got one whose blocks stay on the disk; load it without streaming, "
            "or stream it twice."
        )

    def hold(self, block: nn.Module) -> None:
        """Reads a block, if it is not the one that is held already, and drops that."""
        slots = self.slots[block]
        if self._held and next(iter(self._held)).block is block:
            self._check(slots)
            return
        self.release()
        self._check(slots)
        for slot, tensor in zip(slots, self._read(slots), strict=True):
            own = nn.Parameter(tensor, requires_grad=False)
            setattr(slot.module, slot.attribute, own)
            self._held[slot] = own, own._version
            self._storages[own.untyped_storage().data_ptr()] = slot

    def release(self) -> None:
        """Drops the block that is held."""
        slots = list(self._held)
        try:
            self._check(slots)
        finally:
            for slot in slots:
                setattr(slot.module, slot.attribute, slot.empty)
            self._held, self._storages = {}, {}

    def _check(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            wanted, version = self._held.get(slot, (slot.empty, slot.empty._version))
            found = slot.module._parameters.get(slot.attribute)
            if found is not wanted or found._version != version or slot.empty.requires_grad:
                raise BadInput(
                    f"expected {slot.name} as it is on the disk; got it replaced, changed in place or asked for a "
                    "gradient, as in training; lay an Edit over the model, or load it without streaming."
                )

    def _read(
        self, slots: Sequence[Slot], deltas: Mapping[str, tuple[Tensor, ...]] | None = None
    ) -> list[Tensor]:
        laid = self.deltas if deltas is None else deltas
        found = self.shards.read([(slot.stored, slot.empty.dtype) for slot in slots], self.device)
        for slot, tensor in zip(slots, found, strict=True):
            for delta in laid.get(slot.name, NONE):
                tensor += delta.to(tensor.device, tensor.dtype)
        return found

    # ------------------------------------------------------------------ what others ask for
    def module(self, module: nn.Module) -> nn.Module:
        """A projection of some block with its weights, as they are now, in copies that refuse to be changed."""
        slots = [slot for own in self.slots.values() for slot in own if slot.module is module]
        tensors = [
            self._held[s][0].detach().clone() if s in self._held else self._read([s])[0] for s in slots
        ]
        own = {
            slot.attribute: tensor.as_subclass(Copied) for slot, tensor in zip(slots, tensors, strict=True)
        }
        found = copy.copy(module)
        found.__dict__["_parameters"] = {**module._parameters, **own}
        return found

    def edited(self) -> Iterator[tuple[Stored, Tensor]]:
        """The tensors that something is laid over, one at a time, with where they are stored."""
        for slot in (slot for own in self.slots.values() for slot in own):
            if self.deltas.get(slot.name, NONE):
                yield slot.stored, self._read([slot])[0]

    def lay(self, deltas: Mapping[nn.Parameter, Tensor]) -> Callable[[], None]:
        """Adds to the weights of some parameters from now on; gives what takes it back."""
        slots = self._slots_of(deltas)
        for slot, delta in zip(slots, deltas.values(), strict=True):
            self.deltas[slot.name] = (*self.deltas.get(slot.name, NONE), delta)
        self._forget(slots)

        def lift() -> None:
            for slot, delta in zip(slots, deltas.values(), strict=True):
                laid = list(self.deltas[slot.name])
                del laid[max(i for i, each in enumerate(laid) if each is delta)]
                self.deltas[slot.name] = tuple(laid) or NONE
            self._forget(slots)

        return lift

    def _slots_of(self, parameters: Iterable[nn.Parameter]) -> list[Slot]:
        known = {id(slot.empty): slot for own in self.slots.values() for slot in own}
        known |= {id(own): slot for slot, (own, _) in self._held.items()}
        found = [known.get(id(parameter)) for parameter in parameters]
        if None in found:
            raise BadInput(
                "expected an edit of blocks of this model; got one of a part that is kept in memory; load the model "
                "without streaming."
            )
        return found

    def _forget(self, slots: Sequence[Slot]) -> None:
        if any(slot in self._held for slot in slots):
            self.release()

    # ------------------------------------------------------------------ the backward pass
    @contextmanager
    def running(self, block: nn.Module) -> Iterator[None]:
        """Within the block of code, this block is held, and a graph that is made keeps none of its weights."""
        self.hold(block)
        kept = saved_tensors_hooks(self._pack, self._unpack) if torch.is_grad_enabled() else nullcontext()
        with kept:
            yield

    def _pack(self, tensor: Tensor) -> Any:
        slot = self._storages.get(tensor.untyped_storage().data_ptr())
        if slot is None:
            return tensor
        laid = {slot.name: self.deltas.get(slot.name, NONE)}
        return slot, laid, tensor.size(), tensor.stride(), tensor.storage_offset()

    def _unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        slot, laid, *view = kept
        held = slot in self._held and self.deltas.get(slot.name, NONE) is laid[slot.name]
        tensor = self._held[slot][0].detach() if held else self._read([slot], laid)[0]
        return tensor.as_strided(*view)


def _paged(block: nn.Module, pages: Pages) -> Callable[..., Any]:
    """The block's forward pass, with its weights read first. Refers to both weakly, so that no circle keeps them."""
    inner, weak = weakref.WeakMethod(block.forward), weakref.ref(pages)

    @wraps(type(block).forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        own = inner()
        with weak().running(own.__self__):
            return own(*args, **kwargs)

    return forward
