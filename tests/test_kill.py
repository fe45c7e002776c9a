"""kill -9 in the middle of `kemem pretrain` and of a chapter, at moments drawn from a seed.

The same command, given again, ends in the same numbers as a run that nobody disturbed.

One moment each by default; ten with KEMEM_STRESS=10, or where stress tests are selected by `-m`.
"""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kemem.book.places import checkout
from kemem.cli import main
from kemem.runs import Store
from kemem.studies import pretraining
from kemem.studies.lab import Lab

KEMEM = Path(sys.executable).with_name("kemem")
TEXT = "".join(
    f"Line {i} says that {i % 7} and {i % 11} make {i % 7 + i % 11}, as before.\n" for i in range(1200)
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "moment" in metafunc.fixturenames:
        wanted = "stress" in re.sub(r"not\s+stress", "", metafunc.config.getoption("markexpr") or "")
        count = int(os.environ.get("KEMEM_STRESS", "10" if wanted else "1"))
        marks = [pytest.mark.stress] if wanted else []
        moments = [pytest.param(i, marks=marks if i == 0 else pytest.mark.stress) for i in range(count)]
        metafunc.parametrize("moment", moments)


def draw(name: str, moment: int, first: int, last: int) -> int:
    """A whole number from first to last, both included, the same on every machine."""
    number = int.from_bytes(hashlib.sha256(f"{name} {moment}".encode()).digest()[:8], "big")
    return first + number % (last - first + 1)


def start(command: list[Any], **environment: str) -> subprocess.Popen[str]:
    """A command on one thread, as the tests are, whose standard error can be read."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        list(map(str, command)), env=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process and to the kernel that it started, if it started one."""
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        each.kill()
    process.communicate()


def weights(folder: Path) -> dict[str, bytes]:
    """The weights of all checkpoints of a run, byte for byte."""
    return {path.parent.name: path.read_bytes() for path in folder.glob("step*/model.safetensors")}


def timeless(value: Any) -> Any:
    """A document without what a clock told it."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in ("seconds", "model")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------- kemem pretrain
@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A folder with text.txt, and a finished run on it in model/, described in model.json."""
    place = tmp_path_factory.mktemp("unbroken")
    (place / "text.txt").write_text(TEXT)
    assert main(pretrain(place, place / "model")) == 0
    return place


def pretrain(place: Path, out: Path) -> list[str]:
    corpus = f"files:{place / 'text.txt'}+world:people=20,documents=100"
    command = ["pretrain", "--scale", "smoke", "--corpus", corpus, "--out", str(out), "--device", "cpu"]
    return [*command, "--json", f"{out}.json"]


def test_a_killed_training_run_ends_as_an_unbroken_one(moment, unbroken, tmp_path, capfd, monkeypatch):
    out = tmp_path / "model"
    last = draw("pretrain", moment, 2, 57)  # of 60 steps, each of which says a line
    process = start([KEMEM, *pretrain(unbroken, out)], KEMEM_PROGRESS="0")
    assert process.stderr is not None
    lines = (line for line in process.stderr if " of 60 loss " in line)
    assert len(list(itertools.islice(lines, last))) == last, "it ended before it was killed"
    kill(process)
    assert not Path(f"{out}.json").exists()
    saved = max(int(path.stem.removeprefix("step")) for path in out.glob("state/step*.json"))
    assert 0 <= saved < 60

    monkeypatch.setenv("KEMEM_PROGRESS", "0")
    capfd.readouterr()
    assert main(pretrain(unbroken, out)) == 0
    assert first_step(capfd.readouterr().err) == saved + 1, "it did not go on from where it was"
    assert weights(out) == weights(unbroken / "model") and len(weights(out)) == 5
    found, expected = (json.loads(Path(f"{path}.json").read_text()) for path in (out, unbroken / "model"))
    assert timeless(found) == timeless(expected)


def first_step(said: str) -> int:
    found = re.search(r"(\d+) of 60 loss ", said)
    assert found, said
    return int(found.group(1))


# ---------------------------------------------------------------------- a chapter
@pytest.fixture(scope="module")
def row(tmp_path_factory) -> tuple[dict[str, Any], Path, int]:
    """What chapter 02 computes at smoke scale, here by calling its study: the row, its folder, the files written."""
    store = tmp_path_factory.mktemp("store")
    lab = Lab("smoke", Store(store / "smoke"), checkout(), device="cpu", retrain=True)
    settings = pretraining.settings("smoke")
    found = pretraining.run(lab, settings)
    return timeless(found.values), pretraining.folder(lab, settings), len(list(files(store)))


def files(folder: Path) -> Iterator[Path]:
    """Files that are whole: those still being written have a name that begins with a dot, or ends in .part."""
    for place, folders, names in os.walk(folder):  # passes over what is renamed meanwhile, where rglob raises
        for path in (Path(place) / name for name in (*folders, *names)):
            if not any(p.startswith(".") or p.endswith(".part") for p in path.relative_to(folder).parts):
                yield path


def test_a_killed_chapter_ends_as_an_unbroken_one(moment, row, tmp_path, monkeypatch):
    values, folder, written = row
    store = tmp_path / "store"
    command = ["run", "02", "--scale", "smoke", "--device", "cpu", "--out", str(tmp_path / "out")]
    many = draw("chapter", moment, 1, written - 8)
    process = start([KEMEM, *command], KEMEM_STORE=str(store), KEMEM_TRAIN="all")
    seen: set[Path] = set()
    while len(seen) < many:
        seen |= set(files(store)) if store.is_dir() else set()
        try:
            process.wait(0.005)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"it ended before it was killed: {process.communicate()[1]}")
    kill(process)
    assert not list(store.glob("smoke/pretraining/*.json")), "the row was finished before the kill"

    for name, value in (("KEMEM_STORE", str(store)), ("KEMEM_TRAIN", "all"), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    assert main(command) == 0
    (file,) = store.glob("smoke/pretraining/*.json")
    assert timeless(json.loads(file.read_text())["values"]) == values
    assert weights(next(store.glob("smoke/work/pretraining/*"))) == weights(folder)
    assert [path.name for path in (tmp_path / "out").glob("*.failed.ipynb")] == []
