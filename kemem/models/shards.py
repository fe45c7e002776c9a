"""Tensors in safetensors files, one at a time: found by name, read into memory of their own, overwritten in a copy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from kemem.errors import BadInput

KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its name there, and where its bytes begin and end."""

    file: Path
    name: str
    dtype: torch.dtype | None  # None: not of a model's weights
    shape: tuple[int, ...]
    begin: int
    end: int


class Shards:
    """The tensors of some safetensors files. `read_bytes`: what was read so far, as it lies in the files.

    Refused: files that are cut or altered, already here, and files that change after this.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.read_bytes = 0
        self.marks = {file: _mark(file) for file in files}
        self.stored = {each.name: each for file in self.marks for each in _contents(file)}

    def named(self, name: str, shape: Sequence[int], base: str) -> Stored:
        """What a parameter of the model is here; its name may be without that of the base model, or have it."""
        for candidate in (name, name.removeprefix(f"{base}."), f"{base}.{name}"):
            if (found := self.stored.get(candidate)) is not None:
                if found.shape != tuple(shape):
                    raise BadInput(
                        f"expected {name} of shape {list(shape)} in {found.file}; got {list(found.shape)}; give "
                        "weights and a configuration of one model."
                    )
                if found.dtype is None or math.prod(shape) * found.dtype.itemsize != found.end - found.begin:
                    raise _altered(
                        found.file, f"{found.end - found.begin} bytes for {name}, of another number type"
                    )
                return found
        folder = next(iter(self.marks)).parent
        raise BadInput(f"expected {name} in the weights in {folder}; got none; give a complete model.")

    def read(self, wanted: Sequence[tuple[Stored, torch.dtype]], device: torch.device) -> list[Tensor]:
        """These tensors, in these number types.

        Read and not mapped: a mapped file would stand in the process as a whole, and may be shared by many tensors.
        """
        self.check({each.file for each, _ in wanted})
        found = []
        with ExitStack() as stack:
            opened: dict[Path, BinaryIO] = {}
            for each, dtype in wanted:
                if each.file not in opened:
                    opened[each.file] = stack.enter_context(open(each.file, "rb", buffering=0))
                opened[each.file].seek(each.begin)
                tensor = torch.empty(each.shape, dtype=each.dtype)
                if _fill(opened[each.file], tensor) != each.end - each.begin:
                    raise _altered(each.file, "a file that ends early")
                found.append(tensor.to(device=device, dtype=dtype))
                self.read_bytes += each.end - each.begin
        return found

    def overwrite(self, folder: Path, stored: Stored, tensor: Tensor) -> None:
        """Puts other numbers in the place of a tensor, in a copy of its file in `folder`."""
        with open(folder / stored.file.name, "r+b") as copied:
            copied.seek(stored.begin)
            copied.write(_bytes(tensor.to("cpu", stored.dtype).contiguous()))

    def check(self, files: Iterable[Path]) -> None:
        """Refuses files that are no longer those that were opened."""
        for file in files:
            if _mark(file) != self.marks[file]:
                raise _altered(file, "a file that was changed since")


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def _fill(file: BinaryIO, tensor: Tensor) -> int:
    """Reads into a tensor until it is full or the file ends; gives the number of bytes."""
    room, done = _bytes(tensor), 0
    while done < len(room) and (more := file.readinto(room[done:])):  # a system reads 2 GB at a time at most
        done += more
    return done


def _mark(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise _altered(file, error.strerror) from None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _contents(file: Path) -> Iterator[Stored]:
    """What the head of a safetensors file lists: 8 bytes with its length, JSON, then the tensors to the end."""
    try:
        with open(file, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            start, whole = 8 + size, file.stat().st_size
            if start > whole:
                raise _altered(file, f"{whole} bytes, a part of its head")
            listed = json.loads(opened.read(size))
        listed.pop("__metadata__", None)
        found = [
            Stored(file, name, KINDS.get(each["dtype"]), tuple(each["shape"]), start + begin, start + end)
            for name, each in listed.items()
            for begin, end in (each["data_offsets"],)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise _altered(file, getattr(error, "strerror", None) or "another head") from None
    end = max((each.end for each in found), default=start)
    if end != whole:
        raise _altered(file, f"{whole} bytes instead of {end}")
    yield from found


def _altered(file: Path, what: str) -> BadInput:
    return BadInput(
        f"expected whole, unchanged weights in {file}; got {what}; bring the file again, and load anew."
    )
