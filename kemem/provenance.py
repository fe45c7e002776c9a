"""Where a number came from: commit, library versions, device, seconds and peak memory of what computed it."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import kemem

COMMIT = "KEMEM_COMMIT"
LIBRARIES = ("kemem", "torch", "transformers", "tokenizers", "numpy")


def commit() -> str | None:
    """The git commit of this checkout, with + when tracked files differ from it.

    Outside a checkout what $KEMEM_COMMIT says, for a copy of one that left its history behind; else None.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        ask = {"cwd": root, "capture_output": True, "text": True, "timeout": 20}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **ask)
        if head.returncode:
            return os.environ.get(COMMIT) or None
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "kemem"], **ask
        ).stdout.strip()
        return head.stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT) or None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found.setdefault("kemem", kemem.__version__)  # in a copy that is not installed
    return found


def origin() -> dict[str, Any]:
    return {
        "commit": commit(),
        "versions": versions(),
        "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


@contextlib.contextmanager
def measured(provenance: dict[str, Any], device: str = "cpu") -> Iterator[None]:
    """Adds device, seconds and peak memory (MiB: on CUDA of the device, else of the process) to `provenance`."""
    import torch

    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_peak()
    start = time.perf_counter()
    yield
    provenance["seconds"] = round(provenance.get("seconds", 0.0) or time.perf_counter() - start, 2)
    if cuda:
        provenance["device"] = torch.cuda.get_device_name()
        provenance["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    else:
        provenance["device"] = device
        provenance["threads"] = torch.get_num_threads()
        provenance["peak_memory_mib"] = _peak()


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 1024)
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 1024))
    except ImportError:  # Windows
        return None
