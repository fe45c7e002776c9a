"""Files of a run: checkpoints in Hugging Face layout, and the state from which a killed run goes on.

    out/step<N>/                    a checkpoint: weights as safetensors, configuration, tokenizer
    out/state/step<N>.safetensors   weights, moments of the optimizer, state of the method
    out/state/step<N>.json          checksum, history, settings; written last, so it makes a state exist

Everything is written beside its place, flushed to the disk and renamed. The last two states are kept: one
that turns out to be altered is named, and the one before it, or the beginning, is used. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kemem.errors import BadInput

GENERATIONS = 2


@dataclass(frozen=True)
class State:
    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]


def write_state(folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Adds a state to `folder`; the older of more than two goes once the new one is safe."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step{step}.safetensors"
        part = path.with_name(path.name + ".part")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
        body = {**record, "step": step, "sha256": _checksum(part)}
        path.with_suffix(".json").unlink(missing_ok=True)  # of the same step: it knows other tensors
        _settle(part, path)
        _write_text(
            path.with_suffix(".json"), json.dumps({"body": body, "sha256": _digest(body)}, allow_nan=False)
        )
        for old in _steps(folder)[GENERATIONS:]:
            (folder / f"step{old}.json").unlink()
        known = {f"step{s}{ending}" for s in _steps(folder) for ending in (".json", ".safetensors")}
        for path in folder.glob("step*"):
            if path.name not in known:
                path.unlink()


def read_state(folder: Path, fits: Callable[[dict[str, Any]], None]) -> State | None:
    """The newest whole state, or None. An altered one is named in a warning; `fits` may refuse its record."""
    for step in _steps(folder):
        path = folder / f"step{step}.json"
        try:
            whole = json.loads(path.read_text())
            body = whole["body"]
            sound = whole["sha256"] == _digest(body) and body["step"] == step
            sound = sound and _checksum(path.with_suffix(".safetensors")) == body["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            warnings.warn(
                f"the saved state {path} was altered or cut; going back to the one before it", stacklevel=4
            )
            path.unlink(missing_ok=True)
            continue
        fits(body)
        return State(step, load_file(path.with_suffix(".safetensors")), body)
    return None


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a new folder and puts it in the place of `folder` in one rename."""
    part, old = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "old"))
    with explained(folder):
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        for path in part.rglob("*"):
            if path.is_file():
                _flush(path)
        if folder.exists():
            folder.rename(old)
        _settle(part, folder)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds `out` for this process; a second run in the same folder waits, then finds the work done."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing to hold it with
        yield
        return
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / ".lock", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # the system lets go of it when the process dies
        yield
    finally:
        os.close(handle)


@contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turns a failure of the disk into one line that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = getattr(error, "errno", None)
        if code is None:  # safetensors has the number in its text only
            found = re.search(r"os error (\d+)", str(error))
            code = int(found.group(1)) if found else None
        if code is None:
            raise
        remedy = "free some space" if code in (errno.ENOSPC, errno.EDQUOT) else "make the folder writable"
        raise BadInput(
            f"expected to write to {place}; got: {os.strerror(code)}; {remedy} and start again: "
            "the run goes on from its last state."
        ) from error


def _steps(folder: Path) -> list[int]:
    """Steps of the states in a folder, newest first."""
    found = (re.fullmatch(r"step(\d+)\.json", path.name) for path in folder.glob("step*.json"))
    return sorted((int(match.group(1)) for match in found if match), reverse=True)


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    _settle(part, path)


def _settle(part: Path, path: Path) -> None:
    if part.is_file():
        _flush(part)
    os.replace(part, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; a rename might get there first."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
