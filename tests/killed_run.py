"""Run by test_resume.py in a process of its own, to be killed: trains a model and says its steps."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from kemem.models import Shape, build
from kemem.training import Method, Recipe, train

STEPS = 200


class Rows:
    def __len__(self) -> int:
        return 30

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        ids = (torch.arange(8)[None] * 7 + indices[:, None] * 5) % 50 + 3
        return {"input_ids": ids, "labels": ids.clone()}


class Average(Method):
    """Carries something of its own from step to step, and uses it."""

    def before(self, model: torch.nn.Module, domain: Any) -> None:
        self.mean = torch.zeros(8)

    def updated(self, model: torch.nn.Module, previous: dict[str, torch.Tensor]) -> None:
        weight = model.transformer.ln_f.weight
        self.mean = 0.9 * self.mean + 0.1 * weight
        weight.sub_(0.01 * self.mean)

    def state(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.mean = state["mean"]


def look(model: torch.nn.Module, step: int) -> dict[str, float]:
    return {"weight": float(model.transformer.ln_f.weight.detach().sum())}


def run(folder: Path, *, say: Any = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Dropout, a method with a state, checkpoints, steps across passes, saves between two rows."""
    torch.set_num_threads(1)
    shape = Shape("gpt2", layers=1, width=8, memories=12, heads=2, vocab=64, context=16, dropout=0.2)
    model = build(shape)
    recipe = Recipe(
        steps=STEPS, batch_size=4, accumulation=2, learning_rate=1e-2, warmup_steps=9, log_every=3,
        checkpoints=(0, 60, 130), save_every=17,
    )  # fmt: skip
    history = train(model, Rows(), recipe, Average(), out=folder / "run", at_checkpoint=look, progress=say)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if name != "lm_head.weight"}
    return history.json(), weights


if __name__ == "__main__":
    target = Path(sys.argv[1])
    rows, _ = run(target, say=lambda step, total, message: print(step, flush=True))
    (target / "result.json").write_text(json.dumps(rows))
