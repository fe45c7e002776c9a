"""What would break on a GPU, found without one: chapters and methods on the device beside the CPU of tests/card."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX", "c++")


def on_card(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process that has the device."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    env = (
        os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        | environment
    )
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=ROOT, text=True, capture_output=True, timeout=1500
    )


@pytest.fixture(scope="module", autouse=True)
def compiled():
    if shutil.which(COMPILER) is None:
        pytest.skip("needs a C++ compiler, for the device beside the CPU")
    done = on_card("-c", "import card")
    assert done.returncode == 0, done.stderr


REFUSED = """
import os, sys
import card, torch
here, there = torch.ones(2, 2, device="card"), torch.ones(2, 2)
for name, call in {
    "mixed": lambda: here + there,
    "product": lambda: here @ there,
    "list": lambda: torch.cat([here, there]),
    "array": lambda: here.numpy(),
    "drawn": lambda: torch.rand(2, device="card", generator=torch.Generator()),
    "chosen": lambda: torch.nn.functional.embedding(torch.tensor([0]), here),
}.items():
    try:
        call()
    except (RuntimeError, TypeError):
        print(name)
before = card.waits()
(here * 2).sum()
assert card.waits() == before
assert (here * 2).sum().item() == 8 and card.waits() == before + 1
assert (here + 1).cpu().tolist() == [[2, 2], [2, 2]] and here[torch.tensor([0])].shape == (1, 2)
weight = torch.nn.Linear(2, 2).to("card").weight
(weight * here).sum().backward()
assert weight.grad.device == here.device and weight.grad.cpu().tolist() == [[1, 1], [1, 1]]
sys.stdout.flush()
os._exit(0)  # a thread of the device may still be letting go of the graph, and Python does not wait for it
"""


def test_the_device_refuses_what_a_gpu_refuses():
    done = on_card("-c", REFUSED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["mixed", "product", "list", "array", "drawn", "chosen"]


def test_the_tests_of_a_gpu_pass_on_it():
    done = on_card(
        "-m", "pytest", "-q", "-p", "card", "-p", "no:cacheprovider", "-m", "gpu", "tests/test_gpu.py",
        KEMEM_TEST_DEVICE="card",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout and " failed" not in done.stdout


COMMANDS = {
    "trace": "",
    "edit": "",
    # left out: what names the CPU, or equals it to the last bit
    "acquire": "not settings_are and not folder_opens",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_tests_of_a_command_pass_on_it(command):
    done = on_card(
        "-m", "pytest", "-q", "-p", "card", "-p", "card.everywhere", "-p", "no:cacheprovider",
        f"tests/test_cli_{command}.py", "-k", COMMANDS[command],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout and " failed" not in done.stdout


EVERYTHING = """
import sys
from pathlib import Path
import card
from kemem.book import slices
sys.exit(slices.run(Path(sys.argv[1]), "smoke", minutes=20, device="card"))
"""


def test_every_chapter_runs_on_it(tmp_path):
    """All rows of the book at smoke scale in one slice, as `make record SCALE=gpu` computes those of the gpu scale."""
    (tmp_path / "records").mkdir()
    (tmp_path / "chapters").symlink_to(ROOT / "chapters")
    (tmp_path / "records" / "checkpoints").symlink_to(ROOT / "records" / "checkpoints")
    done = on_card("-c", EVERYTHING, str(tmp_path), KEMEM_STORE=str(tmp_path / "store"), KEMEM_REPLAY="")
    assert done.returncode == 0, [
        line for line in done.stderr.splitlines() if "failed" in line
    ] or done.stderr[-3000:]
    rows = [json.loads(path.read_text()) for path in (tmp_path / "records" / "smoke").glob("*/*.json")]
    assert len(rows) > 200
    elsewhere = {row["study"] for row in rows if row["provenance"]["device"] != "card"}
    assert elsewhere == {"association", "footprint", "texts"}  # algebra in float64, counting, reading
    assert {row["study"] for row in rows} >= {
        "pretraining",
        "arms",
        "courses",
        "growing",
        "many_edits",
        "notions",
    }
