"""Run by test_sharding.py in several processes at once, as torchrun would start them, and once alone."""

import json
import os
import sys
from pathlib import Path

import torch
from two_processes import Rows

from kemem.errors import BadInput
from kemem.models import Shape, build
from kemem.training import Recipe, train

SHAPE = Shape(layers=2, width=8, memories=12, heads=2, vocab=128)


class Halves(Rows):
    """In some steps the second process has no target at all."""

    def batch(self, indices):
        found = super().batch(indices)
        if len(indices) == 6 and int(indices[0]) % 2:
            found["labels"][3:] = -100
        return found


class Stop(Exception):
    """Thrown to stop a run in the middle."""


def run(
    out: Path, *, steps: int = 6, dtype: str = "float64", last: int | None = None, kill: bool = False
) -> list[float]:
    """Losses of a sharded run. last: the step at which it stops; kill: the second process ends there at once."""
    torch.set_num_threads(1)
    model = build(SHAPE, seed=int(os.environ.get("SEED", "0"))).to(getattr(torch, dtype))
    recipe = Recipe(
        steps=steps, batch_size=6, learning_rate=1e-2, checkpoints=(3, steps), save_every=2, log_every=1
    )

    def seen(done: int, *_: object) -> None:
        if done == last:
            raise Stop

    def at(model: torch.nn.Module, step: int) -> dict[str, float]:
        if kill and step == 3 and os.environ.get("RANK") == "1":
            os._exit(9)
        with torch.no_grad():
            return {"sum": model(input_ids=torch.arange(6)[None]).logits.sum().item()}

    try:
        found = train(model, Halves(), recipe, out=out, sharded=True, at_checkpoint=at, progress=seen)
    except Stop:
        return []
    return [row["loss"] for row in found.steps]


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2]
    told = Path(sys.argv[1]) / f"told{os.environ['RANK']}-{what}.json"
    try:
        losses = run(folder / "run", kill=what == "killed")
        told.write_text(json.dumps(losses))
    except BadInput as error:
        told.write_text(json.dumps(str(error)))
        os._exit(2)  # the processes left have nobody to say goodbye to
