"""Execute chapters with papermill: progress on the terminal, the notebook under its name only when it succeeded."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import papermill
import psutil
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from kemem.book.notebooks import convert, normalise, write
from kemem.book.parameters import check, declared


def kernel_reached_by_files(folder: str) -> type[AsyncKernelManager]:
    """Kernels that talk through files in `folder` instead of TCP ports, where the system can: two that start at
    once cannot take the same port, and nobody else can listen.
    """

    class Kernel(AsyncKernelManager):
        def __init__(self, **keywords: Any) -> None:
            reach = {"transport": "ipc", "ip": str(Path(folder) / "k")} if os.name == "posix" else {}
            super().__init__(**reach | keywords)

    return Kernel


@dataclass(frozen=True)
class Execution:
    """One chapter that was run: wall time with the start of the kernel, and the most memory the kernel held."""

    chapter: str
    scale: str
    seconds: float
    peak_memory_mib: int
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is None


def execute(
    source: Path,
    target: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Execution:
    """Run a chapter into `target`, normalised. A failed one is kept as NAME.failed.ipynb, never as NAME.ipynb.

    Parameters are checked before a kernel starts. The kernel's folder is the target's: chapters find the checkout
    by themselves.
    """
    given = dict(parameters or {})
    values = check(declared(source), given)
    target.parent.mkdir(parents=True, exist_ok=True)
    plain, failed = target.with_suffix(".source.ipynb"), target.with_suffix(".failed.ipynb")
    write(convert(source), plain)
    failed.unlink(missing_ok=True)
    start, error = time.perf_counter(), None
    try:
        with (
            tempfile.TemporaryDirectory(prefix="kemem-") as folder,
            _environment(environment or {}),
            _quiet(),
            peak_memory() as peak,
        ):
            notebook = papermill.execute_notebook(
                str(plain), str(failed), parameters=given, kernel_name="python3", cwd=str(target.parent),
                progress_bar=False, log_output=False, kernel_manager_class=kernel_reached_by_files(folder),
            )  # fmt: skip
        write(normalise(notebook), target)
        failed.unlink()
    except PapermillExecutionError as caught:
        error = f"cell {caught.cell_index}: {caught.ename}: {caught.evalue}"
    except DeadKernelError:
        error = "no cell of its own: the kernel died, most often for want of memory; run again, it goes on where it was"
    finally:
        plain.unlink(missing_ok=True)
    return Execution(source.stem, str(values["scale"]), round(time.perf_counter() - start, 1), peak(), error)


def execute_all(
    sources: list[Path],
    folder: Path,
    *,
    name: str = "{stem}",
    parameters: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Execution]:
    """Run chapters one after the other into `folder`, one line each; the rest still run where one fails."""
    executions = []
    for i, source in enumerate(sources, 1):
        _say(f"chapter {source.stem} ({i} of {len(sources)}) ...")
        stem = name.format(stem=source.stem, number=source.stem.split("_")[0])
        done = execute(source, folder / f"{stem}.ipynb", parameters=parameters, environment=environment)
        executions.append(done)
        if done.passed:
            _say(f"chapter {source.stem}: {done.seconds:.0f} s")
        else:
            kept = folder / f"{stem}.failed.ipynb"
            _say(f"chapter {source.stem} failed in {done.error}\n    the notebook so far: {kept}")
    return executions


@contextlib.contextmanager
def peak_memory(every: float = 0.25) -> Iterator[Callable[[], int]]:
    """The most memory, in MiB, that one process below this one held meanwhile, as seen every quarter of a second."""
    most, ended = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(every):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: round(most / 2**20)
    finally:
        ended.set()
        watcher.join()


def save(executions: list[Execution], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(e) for e in executions], indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> list[Execution]:
    if not path.is_file():
        return []
    return [Execution(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _environment(names: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the kernels started meanwhile, and put back what was there."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Papermill logs each start and end, and warns of kernel details; one line a chapter is enough."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
