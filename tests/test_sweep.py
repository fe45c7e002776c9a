"""Sweeps: several processes at one store, interrupted and started twice; what they are told and what they tell."""

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from test_contents import SOURCES, lab

from kemem.book import sweep
from kemem.book.places import checkout
from kemem.cli import main
from kemem.errors import BadInput
from kemem.runs import Store
from kemem.studies import contents
from kemem.studies.asking import Claiming, Failures
from kemem.studies.sweeping import work

FORK = multiprocessing.get_context("fork")  # rows of these tests use no torch
TRIALS, RUNS = 6, 4


def row(own, marks, trial, hang="", **more):
    """A row that leaves a mark each time it is computed, and if it is to hang does so."""

    def compute(provenance):
        if "base" in more:  # it begins with another row, and is put off while that is being computed
            row(own, marks, more["base"])
        with open(marks / str(trial), "a") as file:
            file.write("x")
        while str(trial) == hang:
            signal.pause()
        return {"score": trial if isinstance(trial, int) else 0}

    return own.store.row("toy", 1, {"trial": trial, **more}, compute)


def toy(own, p, *, marks, hang=""):
    """Trials, of which the best is chosen; runs with what was chosen, which share a base."""

    def chosen():
        found = [row(own, marks, trial, hang) for trial in range(TRIALS)]
        return max(each.values["score"] for each in found)

    def runs():
        best = chosen()
        return [row(own, marks, f"run {best} {i}", hang, base="base") for i in range(RUNS)]

    return [chosen, runs]


def worked(folder, marks, hang=""):
    contents.CHAPTERS["99"] = functools.partial(toy, marks=marks, hang=hang)
    store = Claiming(Store(folder), Failures(folder / "work" / "failed"))
    work([(lab("00", store), "99")], store)


def started(folder, marks, hang=""):
    process = FORK.Process(target=worked, args=(folder, marks, hang))
    process.start()
    return process


@pytest.fixture
def marks(tmp_path):
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def computed(marks):
    return {path.name: len(path.read_text()) for path in marks.iterdir()}


ALL = {*map(str, range(TRIALS)), "base", *(f"run {TRIALS - 1} {i}" for i in range(RUNS))}


@pytest.mark.filterwarnings("ignore:.*fork")
def test_two_sweeps_at_once_compute_every_row_once(tmp_path, marks):
    every = [started(tmp_path / "store", marks) for _ in range(4)]
    for process in every:
        process.join()
    assert [process.exitcode for process in every] == [0] * 4
    assert computed(marks) == dict.fromkeys(ALL, 1)
    assert len(list((tmp_path / "store" / "toy").glob("*.json"))) == len(ALL)


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("hang", ["3", f"run {TRIALS - 1} 2"])
def test_a_killed_process_leaves_its_row_to_the_others(tmp_path, marks, hang):
    """One is killed in a row; others, at work and started later, go on without it and compute nothing twice."""
    killed = started(tmp_path / "store", marks, hang)
    while not (marks / hang).exists():
        killed.join(0.01)  # ends at once if the process does
        assert killed.is_alive()
    other = started(tmp_path / "store", marks)
    os.kill(killed.pid, signal.SIGKILL)
    for process in (killed, other, late := started(tmp_path / "store", marks)):
        process.join()
    assert (killed.exitcode, other.exitcode, late.exitcode) == (-signal.SIGKILL, 0, 0)
    assert computed(marks) == {**dict.fromkeys(ALL, 1), hang: 2}


def test_a_row_that_begins_with_a_busy_one_is_put_off(tmp_path, marks, monkeypatch):
    """While another process is at the base, runs are put off, and whatever is free is computed."""
    folder = tmp_path / "store"
    monkeypatch.setitem(contents.CHAPTERS, "99", functools.partial(toy, marks=marks))
    store = Claiming(Store(folder), Failures(folder / "failed"))
    name = store._name("toy", {"trial": "base"})
    (folder / "locks").mkdir(parents=True)
    held = FileLock(folder / "locks" / f"toy-{name}.lock")
    held.acquire()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            held.release()

    work([(lab("00", store), "99")], store, wait=wait)
    assert waits == [0.1, 0.2, 0.4] and len(store.claims.computed) == len(ALL) - 1
    assert computed(marks)["base"] == 1 and list(store.failures) == []


def test_a_sweep_in_this_process(tmp_path, monkeypatch, capfd):
    """What fails is told row by row, the rest is computed, and the command ends with 1; then it goes on."""
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path))
    monkeypatch.setattr(sweep, "_processes", lambda task, where, look: sweep.process(task, "1"))

    def broken(*_, **__):
        raise BadInput("expected weights; got none; train some.")

    command = ["run", "02", "--scale", "smoke", "--on", "local:2", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("kemem.studies.checkpoints.load", broken)
        assert main(command) == 1
    said = capfd.readouterr().err
    assert (
        "[1] pretraining" in said and "[1] entropy" in said and "failed: BadInput: expected weights" in said
    )
    assert "2 rows are there, 1 are missing, 1 failed" in said
    assert not (tmp_path / "out").exists()  # the chapter itself would have failed
    chosen = [{**lab("02", Store(tmp_path)).parameters, "seed": seed} for seed in (0, 1)]
    assert sweep.sweep(checkout(), "02", chosen, sweep.Place("local", 2)) == []
    assert "5 rows are there, 0 are missing" in capfd.readouterr().err
    assert len(list(tmp_path.glob("smoke/pretraining/*.json"))) == 2
    assert list(tmp_path.glob("smoke/work/sweeps/*")) == []


def test_processes_end_with_the_one_that_started_them(tmp_path, monkeypatch):
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path))
    task = sweep.Task(str(checkout()), "02", (lab("02", Store(tmp_path)).parameters,), str(tmp_path / "f"))
    with pytest.raises(SystemExit, match="has ended"):
        sweep.process(task, parent=-1)
    assert list(tmp_path.glob("smoke/*/*.json")) == []


# what a process runs when it starts: after its first row it tells its number and waits for a signal
WAITING = """
import os
import signal
import sys
import kemem.runs as runs

written = runs._write
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started deaf to it


def waiting(path, document):
    written(path, document)
    print("waits:", os.getpid(), file=sys.stderr, flush=True)
    while True:
        signal.pause()


runs._write = waiting
"""


@pytest.mark.parametrize(
    ("by", "status", "said"),
    [(signal.SIGINT, 130, "stopped; "), (signal.SIGTERM, 128 + signal.SIGTERM, "")],
)
def test_a_sweep_that_is_stopped_takes_its_processes_along(tmp_path, by, status, said):
    """Ctrl-C goes to all processes of a terminal, SIGTERM to the first: none is left, and what was done is kept."""
    (tmp_path / "sitecustomize.py").write_text(WAITING)
    store = tmp_path / "store"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(checkout()))), "KEMEM_STORE": str(store)
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "kemem", "run", "02", "--scale", "smoke", "--on", "local:1"],
        env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as sweeping:  # fmt: skip
        worker = next((line for line in sweeping.stderr if line.startswith("waits:")), "")
        assert worker, "it ended before its first row"
        (os.killpg if by == signal.SIGINT else os.kill)(sweeping.pid, by)
        told = sweeping.stderr.read()  # until nobody is left who could write
    assert (sweeping.returncode, told.count("Traceback")) == (status, 0), told
    assert said in told
    with pytest.raises(ProcessLookupError):
        os.kill(int(worker.split()[1]), 0)
    (file,) = store.glob("smoke/*/*-v*.json")
    assert json.loads(file.read_text())["study"] == file.parent.name
    locks = list(store.rglob("*.lock"))
    for lock in locks:
        with FileLock(lock, timeout=0):
            pass
    assert locks and not list(store.rglob("*.tmp"))


def test_places():
    assert sweep.place("local:3") == sweep.Place("local", 3)
    for wrong, said in (
        ("local", "--on is local:N"), ("local:x", "got 'local:x'"), ("slurm:", "--on is"),
        ("slurm:jobs=0", "1 or more"), ("slurm:queue=a", "takes KEY=VALUE of partition"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            sweep.place(wrong)


def test_jobs_of_submitit(tmp_path, monkeypatch, capfd):
    """Its local executor starts processes of their own, as Slurm would on other machines."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path))
    where = sweep.place(f"slurm:cluster=local,jobs=2,minutes=5,folder={tmp_path / 'logs'}")
    assert where.count == 2
    assert sweep.sweep(checkout(), "02", [lab("02", Store(tmp_path)).parameters], where) == []
    assert "3 rows are there, 0 are missing, 0 failed" in capfd.readouterr().err
    told = "".join(path.read_text() for path in (tmp_path / "logs").glob("*.err"))
    assert told.count("] pretraining ") == told.count("] texts ") == told.count("] entropy ") == 1


@pytest.mark.slow
def test_the_command_with_processes_of_its_own(tmp_path, monkeypatch, capfd):
    """Two processes and then the notebook, which computes nothing more but what is its own."""
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path / "store"))
    command = ["run", "01", "--scale", "smoke", "--on", "local:2", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "1 rows are there, 0 are missing" in capfd.readouterr().err
    assert (tmp_path / "out" / f"{SOURCES['01'].stem}_scale-smoke.ipynb").is_file()


def test_the_parameters_are_of_one_scale(tmp_path):
    one = {"scale": "smoke"}, {"scale": "laptop"}
    with pytest.raises(BadInput, match="one scale"):
        sweep.sweep(Path(tmp_path), "02", one, sweep.Place("local", 1))
