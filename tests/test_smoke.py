"""The smoke notebooks are a net: a wrong coefficient, mask or schedule turns them red. Each is tried, on a copy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("kemem", "chapters", "tests/smoke", "pyproject.toml")

MISTAKES = {
    "coefficients are squared": (
        "03",
        "kemem/entropy/coefficients.py",
        '"abs": torch.abs',
        '"abs": torch.square',
    ),
    "padding is counted": ("03", "kemem/entropy/batches.py", "tensor[row, start:stop]", "tensor[row]"),
    "the prompt is scored with its target": (
        "04",
        "kemem/evaluation.py",
        "targets[row, spans[i].begin - 1 : end - 1] = ids[row, spans[i].begin : end]",
        "targets[row, : end - 1] = ids[row, 1:end]",
    ),
    "the optimizer forgets faster": (
        "02",
        "kemem/training/optimizer.py",
        "betas=recipe.betas,",
        "betas=(0.9, 0.9),",
    ),
    "weights do not decay": (
        "03",
        "kemem/training/optimizer.py",
        '"weight_decay": recipe.weight_decay}',
        '"weight_decay": 0.0}',
    ),
    "the schedule ends too low": (
        "02",
        "kemem/training/recipe.py",
        "0.5 * (1 + math.cos",
        "0.45 * (1 + math.cos",
    ),
}


@pytest.fixture
def copy(tmp_path):
    """A copy of what a smoke notebook needs, to make a mistake in."""
    for name in NAMES:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, target)
    return tmp_path


def nbval(folder: Path, chapter: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from pathlib import Path; from kemem.book import build; "
        "sys.exit(build.validate([Path(sys.argv[1])], {'KEMEM_STORE': sys.argv[2]}))"
    )
    command = [
        sys.executable,
        "-c",
        program,
        str(folder / f"tests/smoke/{chapter}.ipynb"),
        str(folder / "store"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_a_mistake_turns_a_smoke_notebook_red(copy, mistake):
    chapters = [MISTAKES[mistake][0]] if mistake else sorted({chapter for chapter, *_ in MISTAKES.values()})
    if mistake:
        _, name, right, wrong = MISTAKES[mistake]
        path = copy / name
        text = path.read_text(encoding="utf-8")
        assert text.count(right) == 1, f"{name} no longer says {right!r}: write this mistake anew"
        path.write_text(text.replace(right, wrong), encoding="utf-8")
    for chapter in chapters:
        ran = nbval(copy, chapter)
        if mistake:
            assert ran.returncode == 1 and re.search(r"\d+ failed", ran.stdout), ran.stdout[-2000:]
            assert "mismatch" in ran.stdout or "AssertionError" in ran.stdout, ran.stdout[-2000:]
        else:
            assert ran.returncode == 0 and re.search(r"\d+ passed", ran.stdout), ran.stdout[-2000:]
