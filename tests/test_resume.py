"""A run that is killed, or whose files are altered, ends where an unbroken one does, or says why not."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import killed_run
import pytest
import torch
from safetensors.torch import load_file

from kemem.errors import BadInput
from kemem.models import Shape, build
from kemem.training import Method, Recipe, state, train

MOMENTS = int(os.environ.get("KEMEM_STRESS", "1"))  # `make stress` kills at ten
RECIPE = Recipe(steps=12, batch_size=4, learning_rate=1e-2, save_every=3, checkpoints=(6,), log_every=2)


def timeless(history: dict) -> dict:
    """A history without what no two runs share: how long it took."""
    steps = [{name: value for name, value in row.items() if name != "seconds"} for row in history["steps"]]
    return {**history, "steps": steps}


def assert_same(found, expected) -> None:
    (history, weights), (wanted, reference) = found, expected
    assert weights.keys() == reference.keys()
    assert all(torch.equal(weights[name], reference[name]) for name in weights)
    assert timeless(history) == timeless(wanted)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return killed_run.run(tmp_path_factory.mktemp("unbroken"))


# ---------------------------------------------------------------------- kill -9
def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, killed_run.__file__, str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_and_started_again_it_ends_in_the_same_numbers(tmp_path, unbroken, moment):
    """SIGKILL once the run says a step drawn from a seed, a little later too: while it computes or writes."""
    draw = random.Random(moment)
    last, pause = draw.randrange(3, killed_run.STEPS - 30), draw.random() * 0.02
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= last:
            threading.Event().wait(pause)
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    saved = [int(path.stem.removeprefix("step")) for path in (tmp_path / "run" / "state").glob("step*.json")]
    said: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kill leaves nothing that looks altered
        found = killed_run.run(tmp_path, say=lambda step, total, message: said.append(step))
    assert_same(found, unbroken)
    assert said[0] > max(saved, default=0)  # it went on, it did not begin again
    for step in (0, 60, 130):
        assert (tmp_path / "run" / f"step{step}" / "model.safetensors").is_file()
    assert not list((tmp_path / "run").rglob("*.part"))


# ---------------------------------------------------------------------- stopping in the process
class Stop(Exception):
    pass


class StopAt(Method):
    """Plain training that breaks off after some step; without a step, exactly plain training."""

    def __init__(self, step: int | None = None) -> None:
        self.left = step

    def gradients(self, model) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stop


def run(folder: Path, stop: int | None = None, *, recipe: Recipe = RECIPE, seed: int = 0, rows=None):
    model = build(Shape(layers=1, width=8, memories=12, heads=2, vocab=64), seed=seed)
    history = train(model, rows or killed_run.Rows(), recipe, StopAt(stop), out=folder)
    return history.json(), {name: p.detach().clone() for name, p in model.named_parameters()}


def broken_off(folder: Path, stop: int) -> None:
    with pytest.raises(Stop):
        run(folder, stop)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7, 11])
def test_broken_off_anywhere_it_ends_the_same(tmp_path, whole, stop):
    broken_off(tmp_path, stop)
    assert_same(run(tmp_path), whole)


def test_resuming_does_not_redo_what_was_saved(tmp_path, whole):
    broken_off(tmp_path, 11)
    steps = []

    class Count(StopAt):
        def loss(self, model, batch, loss):
            steps.append(1)
            return loss

    Count.__qualname__ = "StopAt"
    model = build(Shape(layers=1, width=8, memories=12, heads=2, vocab=64))
    train(model, killed_run.Rows(), RECIPE, Count(), out=tmp_path)
    assert len(steps) == 3  # 9 of 12 were saved


def test_a_method_takes_up_its_own_state(tmp_path):
    class Average(killed_run.Average, StopAt):
        def __init__(self, step=None):
            StopAt.__init__(self, step)

    def run(folder, stop=None):
        model = build(Shape("gpt2", layers=1, width=8, memories=12, heads=2, vocab=64))
        train(model, killed_run.Rows(), RECIPE, Average(stop), out=folder)
        return model.transformer.ln_f.weight.detach()

    with pytest.raises(Stop):
        run(tmp_path / "broken", 8)
    assert torch.equal(run(tmp_path / "broken"), run(tmp_path / "whole"))


def test_a_finished_run_is_read_and_not_repeated(tmp_path, whole):
    run(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = run(tmp_path, stop=0)  # would break off at its first step
    assert_same(again, whole)
    assert again[0]["steps"][-1]["seconds"] == run(tmp_path)[0]["steps"][-1]["seconds"]
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert all(name.startswith("model.") for name in load_file(tmp_path / "state" / "step12.safetensors"))


def test_the_state_is_two_generations_without_pickles(tmp_path):
    broken_off(tmp_path, 11)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["step6.json", "step6.safetensors", "step9.json", "step9.safetensors"]
    record = json.loads((tmp_path / "state" / "step9.json").read_text())["body"]
    assert record["step"] == 9 and len(record["sha256"]) == 64 and record["identity"]["learning_rate"] == 0.01
    assert [row["step"] for row in record["history"]["steps"]] == [2, 4, 6, 8] and len(record["losses"]) == 1


def test_a_checkpoint_is_a_state_to_resume_from(tmp_path):
    recipe = Recipe(steps=12, batch_size=4, learning_rate=1e-2, checkpoints=(6,), log_every=2)
    with pytest.raises(Stop):
        run(tmp_path, 8, recipe=recipe)
    assert [path.name for path in (tmp_path / "state").glob("*.json")] == ["step6.json"]


# ---------------------------------------------------------------------- altered files
def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter_history(path: Path) -> None:
    """Still JSON, and still what was computed, but for one number."""
    document = json.loads(path.read_text())
    document["body"]["history"]["steps"][0]["loss"] += 1
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("step9.safetensors", flip),
        ("step9.safetensors", cut),
        ("step9.safetensors", Path.unlink),
        ("step9.json", cut),
        ("step9.json", alter_history),
    ],
)
def test_an_altered_state_is_named_and_the_one_before_is_used(tmp_path, whole, name, change):
    broken_off(tmp_path, 11)
    change(tmp_path / "state" / name)
    with pytest.warns(UserWarning, match=r"step9\.json was altered or cut") as caught:
        found = run(tmp_path)
    assert len([w for w in caught if "altered" in str(w.message)]) == 1
    assert_same(found, whole)


def test_with_all_states_altered_it_begins_again(tmp_path, whole):
    broken_off(tmp_path, 11)
    flip(tmp_path / "state" / "step9.safetensors")
    flip(tmp_path / "state" / "step6.safetensors")
    with pytest.warns(UserWarning, match=r"altered") as caught:
        broken_off(tmp_path, 4)
    assert len([w for w in caught if "altered" in str(w.message)]) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was altered is gone, and what came after it is whole
        broken_off(tmp_path, 0)
        assert [path.name for path in (tmp_path / "state").glob("*.json")] == ["step3.json"]
        assert_same(run(tmp_path), whole)


def test_what_a_kill_leaves_half_written_is_passed_over_in_silence(tmp_path, whole):
    """Tensors without their record, a part of a file, a part of a checkpoint: no state was lost."""
    broken_off(tmp_path, 10)
    states = tmp_path / "state"
    (states / "step10.safetensors").write_bytes(b"half")
    (states / "step10.json.part").write_text("{")
    (tmp_path / ".step6.part").mkdir()
    (tmp_path / ".step6.part" / "model.safetensors").write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(tmp_path)
    assert_same(found, whole)
    assert sorted(path.name for path in states.glob("step1*")) == ["step12.json", "step12.safetensors"]


# ---------------------------------------------------------------------- another run, a full disk
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"recipe": Recipe(12, 4, 2e-2, save_every=3, checkpoints=(6,), log_every=2)},
            r"learning_rate \(0.01 there, 0.02 now\)",
        ),
        ({"seed": 1}, "first weights"),
        (
            {"rows": type("Fewer", (killed_run.Rows,), {"__len__": lambda self: 29})()},
            r"rows \(30 there, 29 now\)",
        ),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, other, message):
    broken_off(tmp_path, 7)
    with pytest.raises(BadInput, match=message) as caught:
        run(tmp_path, **other)
    assert "choose another folder" in str(caught.value) and "\n" not in str(caught.value)


def test_saving_more_often_is_the_same_run(tmp_path, whole):
    broken_off(tmp_path, 7)
    often = Recipe(12, 4, 1e-2, save_every=1, checkpoints=(6,), log_every=2)
    assert_same(run(tmp_path, recipe=often), whole)


@pytest.mark.parametrize("what", ["state", "record", "checkpoint"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, whole, monkeypatch, what):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_file(tensors, path):
        if what == "state" and "step9" in str(path):
            path.write_bytes(b"half")
            raise full
        return original(tensors, path)

    def flush(path):
        if (what == "record" and "step9.json" in str(path)) or (
            what == "checkpoint" and ".step6" in str(path)
        ):
            raise full
        return original_flush(path)

    original, original_flush = state.save_file, state._flush
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", save_file)
        patch.setattr(state, "_flush", flush)
        with pytest.raises(
            BadInput, match="No space left on device; free some space and start again"
        ) as caught:
            run(tmp_path)
    assert "\n" not in str(caught.value)
    assert_same(run(tmp_path), whole)


def test_a_full_disk_as_safetensors_tells_it(tmp_path):
    """The Rust library has the number of the error in its text only; /dev/full is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    from safetensors import SafetensorError

    with pytest.raises(BadInput, match="free some space"), state.explained(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), state.explained(tmp_path):
        raise SafetensorError("something else")
    with (
        pytest.raises(BadInput, match="free some space"),
        state.explained(tmp_path),
        open("/dev/full", "w") as file,
    ):
        file.write("x")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="make the folder writable"):
        run(tmp_path / "file" / "run")


def test_a_second_run_in_the_same_folder_waits_and_reads(tmp_path, whole):
    """Two processes that want the same run: one computes it, the other takes what it finds."""
    results, begun, let = [], threading.Event(), threading.Event()

    class Slow(StopAt):
        def gradients(self, model):
            begun.set()
            let.wait(60)

    Slow.__qualname__ = "StopAt"

    def first():
        model = build(Shape(layers=1, width=8, memories=12, heads=2, vocab=64))
        train(model, killed_run.Rows(), RECIPE, Slow(), out=tmp_path)

    def second():
        results.append(run(tmp_path, stop=0))

    one = threading.Thread(target=first)
    one.start()
    assert begun.wait(60)
    two = threading.Thread(target=second)
    two.start()
    two.join(0.2)
    assert two.is_alive() and not results
    let.set()
    one.join(60)
    two.join(60)
    assert_same(results[0], whole)
