"""`kemem run CHAPTER --on ...`: the rows of a chapter by several processes, here, a GPU each, or as Slurm jobs.

All of them do the same (`kemem.studies.sweeping`): they ask for what the chapter asks for, and compute what no other is
at. So this module only starts them, tells what they tell, and ends them.

    local:N                 N processes on this machine's cores
    gpus                    one process for each GPU that is visible
    slurm:KEY=VALUE,...     jobs of Slurm through submitit: partition, account, qos, jobs, minutes, gpus, cpus, memory
                            (GB), folder (of logs); cluster=local runs them here, to try it out
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kemem.book.session import open_lab
from kemem.errors import BadInput
from kemem.runs import Row
from kemem.studies import contents
from kemem.studies.asking import Asking, Claiming, Failures
from kemem.studies.lab import Lab
from kemem.studies.sweeping import work

KINDS = "local:N, gpus, or slurm:partition=NAME,jobs=N,..."
WORDS = {"partition": "slurm_partition", "account": "slurm_account", "qos": "slurm_qos"}
NUMBERS = {"minutes": "timeout_min", "gpus": "gpus_per_node", "cpus": "cpus_per_task", "memory": "mem_gb"}
OWN = ("jobs", "cluster", "folder")
JOBS, MINUTES = 4, 240
EVERY = 10.0  # seconds between lines of how far it is


@dataclass(frozen=True)
class Place:
    """Where the processes run. kind: local, gpus or slurm; count: of processes; options: of Slurm jobs."""

    kind: str
    count: int
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Task:
    """What every process is told: chapter, its parameters in each combination, and where failures are noted."""

    root: str
    number: str
    parameters: tuple[Mapping[str, Any], ...]
    failures: str

    def labs(self, title: str = "") -> list[tuple[Lab, str]]:
        """title: what stands before lines of progress."""
        return [(open_lab(Path(self.root), each, title=title), self.number) for each in self.parameters]


def place(text: str) -> Place:
    """The place that a word names; refuses what is not one, before anything runs."""
    kind, _, rest = text.partition(":")
    if kind == "local" and rest.isdecimal() and int(rest) > 0:
        return Place(kind, int(rest))
    if text == "gpus":
        import torch

        if count := torch.cuda.device_count():
            return Place(text, count)
        raise BadInput("expected a GPU for --on gpus; got none that is visible; take local:N.")
    if kind == "slurm" and rest:
        return _slurm(rest)
    raise BadInput(f"--on is {KINDS}; got {text!r}.")


def _slurm(text: str) -> Place:
    known = (*WORDS, *NUMBERS, *OWN)
    options: dict[str, str] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if key not in known or not equals or not value:
            raise BadInput(f"--on slurm: takes KEY=VALUE of {', '.join(known)}; got {item!r}.")
        if key in (*NUMBERS, "jobs") and not (value.isdecimal() and int(value)):
            raise BadInput(f"{key} of --on slurm: is a whole number, 1 or more; got {value!r}.")
        options[key] = value
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise BadInput(
            "Slurm jobs need the package submitit, which is not installed; run `pip install submitit`."
        ) from None
    return Place("slurm", int(options.get("jobs", JOBS)), options)


# ---------------------------------------------------------------------- one process
def process(task: Task, label: str = "", *, parent: int | None = None) -> int:
    """Compute what this process can; the number of rows it did. parent: ends when that process is no more."""
    labs, label = task.labs(label), f"[{label}] " if label else ""

    def alive(*_: Any) -> None:
        if parent is not None and os.getppid() != parent:
            raise SystemExit("the process that started this one has ended")

    def wait(seconds: float) -> None:
        alive()
        time.sleep(seconds)

    def told(row: Row, settings: Any) -> None:
        _say(f"{label}{row.study} {row.digest}: {row.provenance.get('seconds', 0):.0f} s")

    def failed(study: str, name: str, error: Exception) -> None:
        _say(f"{label}{study} {name} failed: {type(error).__name__}: {' '.join(str(error).split())}")

    store = Claiming(labs[0][0].store, Failures(Path(task.failures)), begin=alive, told=told, failed=failed)
    work(labs, store, wait=wait)
    return len(store.claims.computed)


def _here(task: Task, index: int, place: Place, parent: int) -> None:
    """A process of this machine, from its first line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if place.kind == "gpus":
        every = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = every[index] if index < len(every) and every[0] else str(index)
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.count))
    process(task, str(index + 1), parent=parent)


# ---------------------------------------------------------------------- all of them
def sweep(root: Path, number: str, parameters: Sequence[Mapping[str, Any]], where: Place) -> list[str]:
    """Compute a chapter's rows in a place; what went wrong, a line each. Ctrl-C and SIGTERM end all processes.

    parameters: of the chapter, checked, one mapping a combination; of one scale, as a scale has one store.
    """
    if len({each["scale"] for each in parameters}) > 1:
        raise BadInput("a sweep has one scale; got several; run one after the other.")
    lab = open_lab(root, parameters[0])
    if lab.replay:
        raise BadInput("KEMEM_REPLAY is set, in which nothing is computed; unset it for --on.")
    folder = lab.store.live / "work" / "sweeps" / f"{time.time_ns():x}-{os.getpid()}"
    task = Task(str(root), number, tuple(dict(each) for each in parameters), str(folder))
    contents.steps(lab, number)  # a scale without sizes is refused here
    with _terminated():
        run = _jobs if where.kind == "slurm" else _processes
        run(task, where, lambda: _say(_far(task)))
    failures = [
        f"{each['study']} {each['row']}: {each['kind']}: {each['error']}" for each in Failures(folder)
    ]
    there, missing = _count(task)
    _say(f"{there} rows are there, {missing} are missing, {len(failures)} failed")
    shutil.rmtree(folder, ignore_errors=True)
    if missing and not failures:
        failures.append(f"{missing} rows are missing, whose processes ended early; run this again.")
    return failures


def _processes(task: Task, where: Place, look: Callable[[], None]) -> None:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_here, args=(task, i, where, os.getpid())) for i in range(where.count)]
    try:
        for each in started:
            each.start()
        _watch(lambda: any(each.is_alive() for each in started), look)
    finally:
        for each in started:
            if each.is_alive():
                each.terminate()
        for each in started:
            if each.pid is not None:
                each.join()
    for i, each in enumerate(started, 1):
        if each.exitcode:
            _say(f"[{i}] ended with status {each.exitcode}; the others went on")


def _jobs(task: Task, where: Place, look: Callable[[], None]) -> None:
    import submitit

    options = dict(where.options or {})
    folder = Path(options.get("folder") or Path(task.failures).parent / "logs").expanduser()
    executor = submitit.AutoExecutor(folder=folder, cluster=options.get("cluster"))
    slurm = executor.cluster == "slurm"
    asked: dict[str, Any] = {"timeout_min": MINUTES, "name": f"kemem-{task.number}"}
    asked |= {own: options[key] for key, own in WORDS.items() if key in options and slurm}
    asked |= {own: int(options[key]) for key, own in NUMBERS.items() if key in options}
    executor.update_parameters(**asked)
    started = [executor.submit(process, task, str(i + 1)) for i in range(where.count)]
    _say(f"jobs {', '.join(job.job_id for job in started)}; their logs are in {folder}")
    try:
        _watch(lambda: not all(job.done() for job in started), look)
    finally:
        for job in started:
            if not job.done():
                job.cancel()
    for job in started:
        if error := job.exception():
            _say(f"job {job.job_id} ended early: {' '.join(str(error).split())[:300]}")


def _watch(running: Callable[[], bool], look: Callable[[], None]) -> None:
    last = time.monotonic()
    while running():
        time.sleep(0.1)
        if time.monotonic() - last > EVERY:
            look()
            last = time.monotonic()


def _count(task: Task) -> tuple[int, int]:
    """Rows that are there and that are missing, of those that can be asked for by now."""
    asked: dict[str, bool] = {}
    for lab, number in task.labs():
        rows = contents.asked(lab, number, Asking(lab.store), failing=True)
        asked |= {row.digest: row.row is not None for row in rows}
    return sum(asked.values()), len(asked) - sum(asked.values())


def _far(task: Task) -> str:
    there, missing = _count(task)
    return f"{there} of {there + missing} rows that are known by now"


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM as an exception, so that what was started is ended too."""

    def ended(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    try:
        before = signal.signal(signal.SIGTERM, ended)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
