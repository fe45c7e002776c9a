"""A compiled loss is the loss, and where nothing can be compiled training says so and goes on."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import tiny

from kemem.corpora.packing import Blocks
from kemem.training import Recipe, train

ROOT = Path(__file__).resolve().parents[1]
ROWS = torch.randint(3, 61, (32, 16), dtype=torch.int32, generator=torch.Generator().manual_seed(0))


def losses(**settings) -> list[float]:
    recipe = Recipe(steps=4, batch_size=8, learning_rate=1e-3, log_every=1, **settings)
    return [row["loss"] for row in train(tiny("olmo"), Blocks(ROWS, torch.zeros_like(ROWS)), recipe).steps]


def test_training_goes_on_where_nothing_can_be_compiled(monkeypatch):
    asked = []

    def no_compiler(loss):
        def fails(*arguments):
            asked.append(arguments)
            raise RuntimeError("no C compiler was found\nand more")

        return fails

    expected = losses()
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(
        RuntimeWarning, match=r"does not work here \(RuntimeError: no C compiler was found\); training"
    ):
        assert losses(compile=True) == expected
    assert len(asked) == 1


def test_an_error_of_the_loss_itself_is_the_one_that_is_seen(monkeypatch):
    from kemem.training.compiling import Compiled

    def loss(model):
        raise MemoryError("the loss's own")

    monkeypatch.setattr(torch, "compile", lambda loss: loss)
    with pytest.raises(MemoryError, match="own"), warnings.catch_warnings():
        warnings.simplefilter("error")
        Compiled(loss)(None)


def test_a_later_error_is_not_taken_for_a_lack_of_a_compiler(monkeypatch):
    from kemem.training.compiling import Compiled

    calls = iter([torch.tensor(1.0), ValueError("later")])

    def once_well(*_):
        found = next(calls)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(torch, "compile", lambda loss: once_well)
    compiled = Compiled(lambda: torch.tensor(2.0))
    assert compiled() == 1.0
    with pytest.raises(ValueError, match="later"):
        compiled()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++; none is found here")
def test_compiled_losses_are_those_of_the_loss():
    """In a process of its own: compilers leave threads behind."""
    script = (
        "import sys, warnings; sys.path[:0] = ['tests', '.']\n"
        "from test_compiling import losses\n"
        "warnings.simplefilter('error', RuntimeWarning)\n"
        "print(*losses(), *losses(compile=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found = [float(word) for word in done.stdout.split()]
    assert found[4:] == pytest.approx(found[:4], rel=1e-5) and found[3] < found[0]
