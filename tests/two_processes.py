"""Run by test_training.py in several processes at once, as a launcher would start them, and once alone."""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kemem.models import Shape, build
from kemem.training import Method, Recipe, train


class Rows:
    """Every row has its own number of target tokens; the second half of a step has far fewer."""

    def __len__(self) -> int:
        return 12

    def batch(self, indices):
        ids = torch.arange(8)[None] * 7 + indices[:, None] * 5 % 50 + 3
        labels = ids.clone()
        for row, number in enumerate(indices.tolist()):
            labels[row, 2 + number % 7 :] = -100
        return {"input_ids": ids, "labels": labels}


class Watched(Method):
    """A penalty, so that counting it twice shows."""

    def loss(self, model, batch, loss):
        return loss + 0.1 * model.model.embed_tokens.weight.square().sum()


def run(out: Path | None, dtype: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of a run, in as many processes as there are."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    shape = Shape(layers=2, width=8, memories=12, heads=2, vocab=128)
    net = build(shape, seed=rank).to(getattr(torch, dtype))  # those of the first process count
    recipe = Recipe(
        steps=4, batch_size=6, accumulation=1 if out is None else 2, learning_rate=1e-2, checkpoints=(4,)
    )
    history = train(net, Rows(), recipe, Watched(), out=out)
    return [row["loss"] for row in history.steps], {
        name: p.detach().clone() for name, p in net.named_parameters()
    }


def read(path: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """What a process left behind."""
    return json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for kind in ("float64", "float32"):
        losses, weights = run(folder / kind, kind)
        place = folder / f"process{os.environ['RANK']}-{kind}"
        save_file(weights, place.with_suffix(".safetensors"))
        place.with_suffix(".json").write_text(json.dumps(losses))
