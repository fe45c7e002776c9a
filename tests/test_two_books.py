"""Two readers make the book at once, from a clone each, with one store: both finish, and no row is computed twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kemem.runs import _load

ROOT = Path(__file__).resolve().parents[1]
# what a process runs when it starts: every row that it writes is a line in a log, whole because it is short
WATCHED = """
import os
import kemem.runs as runs

written = runs._write


def logged(path, document):
    written(path, document)
    with open(os.environ["KEMEM_LOG"], "a") as log:
        log.write(f"{path.parent.name}/{path.name}\\n")


runs._write = logged
"""


def clone(place: Path) -> Path:
    """The files of this checkout that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes((ROOT / name).read_bytes())
    return place


@pytest.mark.slow
def test_two_books_at_once_share_a_store(tmp_path: Path) -> None:
    start, log = tmp_path / "start", tmp_path / "log"
    start.mkdir()
    (start / "sitecustomize.py").write_text(WATCHED)
    running = []
    for name in ("first", "second"):
        place = clone(tmp_path / name)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(start), str(place))), "KEMEM_STORE": str(tmp_path / "store"),
            "KEMEM_LOG": str(log), "KEMEM_WORKERS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "kemem.book", "build", "--scale", "smoke"]
        with open(tmp_path / f"{name}.log", "w") as output:
            running.append(
                subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT)
            )
    codes = [process.wait() for process in running]
    said = "\n".join((tmp_path / f"{name}.log").read_text()[-2000:] for name in ("first", "second"))
    assert codes == [0, 0], said
    for name in ("first", "second"):
        pages = list((tmp_path / name / "_build").rglob("14_field.html"))
        assert pages, said
    times = Counter(log.read_text().split())
    assert times and set(times.values()) == {1}, [name for name, count in times.items() if count > 1]
    files = list((tmp_path / "store" / "smoke").glob("*/*-v*.json"))
    assert {f"{path.parent.name}/{path.name}" for path in files} == set(times)
    assert all(_load(path) is not None for path in files)
    assert not list((tmp_path / "store").rglob("*.tmp"))
