"""One model over several processes: the losses of one process, states that re-shard, and one line where it fails."""

import json
import os
import socket
import subprocess
import sys

import pytest
import sharded_run
import torch
from conftest import tiny
from safetensors.torch import load_file

from kemem.errors import BadInput
from kemem.training import Method, Recipe, sharding, train
from kemem.training.processes import Processes

ONE = Processes(torch.device("cpu"))


def launched(folder, what="plain", seeds=("0", "0")):
    """Exit statuses of two processes, and what each of them told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank, seed in enumerate(seeds):
        place = {
            "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "SEED": seed, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-W", "ignore", sharded_run.__file__, str(folder), what]
        running.append(
            subprocess.Popen(command, env={**os.environ, **place}, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=300)[1] for process in running]
    told = [folder / f"told{rank}-{what}.json" for rank in range(len(seeds))]
    found = [json.loads(path.read_text()) if path.is_file() else None for path in told]
    return [process.returncode for process in running], found, errors


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process: its folder and its losses."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, sharded_run.run(folder / "run")


def same_weights(here, there):
    for step in (3, 6):
        one, other = (
            load_file(folder / "run" / f"step{step}" / "model.safetensors") for folder in (here, there)
        )
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-10, atol=1e-12)


def test_two_processes_with_half_of_the_weights_each_take_the_steps_of_one(tmp_path, alone):
    statuses, told, errors = launched(tmp_path)
    assert statuses == [0, 0], errors
    for losses in told:
        assert losses == pytest.approx(alone[1], rel=1e-6)  # a row adds up in float32
    same_weights(tmp_path, alone[0])
    rows = json.loads((tmp_path / "run" / "state" / "step6.json").read_text())["body"]["history"][
        "checkpoints"
    ]
    there = json.loads((alone[0] / "run" / "state" / "step6.json").read_text())["body"]["history"][
        "checkpoints"
    ]
    assert [row["step"] for row in rows] == [3, 6]
    assert [row["sum"] for row in rows] == pytest.approx([row["sum"] for row in there], rel=1e-9)


def test_a_killed_process_is_said_in_one_line_and_the_run_goes_on_in_one(tmp_path, alone):
    statuses, told, _ = launched(tmp_path, "killed")
    assert statuses == [2, 9]
    assert told[0] == (
        "expected all 2 processes of this run to go on; got one that ended; see its own message, and run this again: "
        f"it goes on from the last state in {tmp_path / 'run'}."
    )
    assert (tmp_path / "run" / "state" / "step2.json").is_file()
    assert not (tmp_path / "run" / "step6").exists()
    assert sharded_run.run(tmp_path / "run") == pytest.approx(alone[1], rel=1e-6)  # a row adds up in float32
    same_weights(tmp_path, alone[0])


def test_a_run_that_was_stopped_in_one_process_goes_on_in_two(tmp_path, alone):
    assert sharded_run.run(tmp_path / "run", last=5) == []
    assert sorted(p.name for p in (tmp_path / "run" / "state").glob("*.json")) == ["step3.json", "step4.json"]
    statuses, told, errors = launched(tmp_path)
    assert statuses == [0, 0], errors
    assert told[0] == told[1] == pytest.approx(alone[1], rel=1e-6)  # a row adds up in float32
    same_weights(tmp_path, alone[0])


def test_processes_that_begin_with_other_weights_are_refused(tmp_path):
    statuses, told, _ = launched(tmp_path, seeds=("0", "1"))
    assert statuses == [2, 2]
    assert set(told) == {
        "expected the same first weights in all 2 processes; got others in some; build the model with one seed, or "
        "load it from one folder."
    }
    assert not (tmp_path / "run" / "state").exists()


class Looking(Method):
    def gradients(self, model):
        pass


def test_a_method_that_looks_into_weights_is_refused_before_anything(tmp_path):
    recipe = Recipe(steps=1, batch_size=2, learning_rate=1e-2)
    with pytest.raises(
        BadInput, match=r"expected plain training.*; got Looking, .* in gradients; train without sharding"
    ):
        train(tiny("olmo"), sharded_run.Rows(), recipe, Looking(), out=tmp_path / "run", sharded=True)
    assert not (tmp_path / "run" / "state").exists()
    sharding.check(Method())


def test_in_one_process_nothing_is_in_parts():
    model = tiny("olmo")
    before = dict(model.named_parameters())
    sharding.shard_(model, ONE)
    assert all(p is before[name] for name, p in model.named_parameters())
    tensor = torch.arange(6.0)
    assert sharding.part_of(tensor, torch.zeros(6)) is tensor
    assert torch.equal(sharding.gathered({"a": tensor}, ONE)["a"], tensor)


def test_a_part_without_targets_gets_some_so_that_its_pass_is_made():
    ids = torch.tensor([[4, 5, 6]])
    batch = {"input_ids": ids, "labels": torch.tensor([[-100, 9, -100]])}
    assert sharding.with_targets(batch)["labels"].tolist() == [[4, 9, 6]]
    assert batch["labels"].tolist() == [[-100, 9, -100]]
