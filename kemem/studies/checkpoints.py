"""The stages of chapter 02's model on disk: computed here, or shipped with the book in half precision."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from kemem import models
from kemem.errors import BadInput
from kemem.runs import digest
from kemem.studies.lab import Lab
from kemem.studies.pretraining import STUDY, VERSION, Pretrained, Pretraining, Watch, folder, given, run
from kemem.studies.setup import train


@dataclass(frozen=True)
class Checkpoint:
    """A stage of the model on disk. Shipped ones are in half precision."""

    path: Path
    step: int
    origin: str
    """live: trained here; shipped: it came with the book; given: others trained it."""


def checkpoint(lab: Lab, s: Pretraining, step: int) -> Checkpoint:
    """A stage of the model: computed here if it was, else shipped with the book, else trained now."""
    if step not in s.steps:
        raise BadInput(f"this model was kept at the steps {', '.join(map(str, s.steps))}; got {step}.")
    path = folder(lab, s) / f"step{step}"
    if not (path / "config.json").is_file() and not lab.retrain:
        found = _shipped(lab, s, step)
        if found is not None:
            return found
    lock = lab.store.live / "locks" / f"train-{folder(lab, s).name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # rows made side by side ask for stages of one model
        if not (path / "config.json").is_file():
            train(lab, s.setup, folder(lab, s), keep=s.steps, at_checkpoint=Watch(lab, s).stage)
    return Checkpoint(path, step, "live")


def there(lab: Lab, s: Pretraining) -> bool:
    """Whether the end of the training is on disk: nothing has to be trained for it."""
    last = s.steps[-1]
    if (folder(lab, s) / f"step{last}" / "config.json").is_file():
        return True
    return not lab.retrain and _shipped(lab, s, last) is not None


def left(lab: Lab, s: Pretraining) -> float:
    """Share of the training that is still to be done, by the last state that was saved."""
    if there(lab, s):
        return 0.0
    kept = [int(path.stem.removeprefix("step")) for path in (folder(lab, s) / "state").glob("step*.json")]
    return 1 - max(kept, default=0) / s.setup.steps


def load(
    lab: Lab, s: Pretraining, step: int, *, dtype: str | None = None
) -> tuple[nn.Module, Any, Checkpoint]:
    """A stage of the model, its tokenizer, and where they came from."""
    if isinstance(s, Pretrained):
        model, tok = given(lab, s, step, dtype or s.setup.dtype)
        return model, tok, Checkpoint(Path(s.name), step, "given")
    found = checkpoint(lab, s, step)
    model, tok = models.load(str(found.path), device=lab.device, dtype=dtype or s.setup.dtype)
    return model, tok, found


def _shipped(lab: Lab, s: Pretraining, step: int) -> Checkpoint | None:
    for recipe in sorted(lab.shipped.glob("*/recipe.json")):
        document = json.loads(recipe.read_text(encoding="utf-8"))
        path = recipe.parent / f"step{step}"
        if document["digest"] != digest(STUDY, VERSION, s) or str(step) not in document["sha256"]:
            continue
        weights = path / "model.safetensors"
        if not weights.is_file() or sha256(weights.read_bytes()).hexdigest() != document["sha256"][str(step)]:
            raise BadInput(
                f"the shipped checkpoint {path} is not what its recipe says (checksum); check it out again."
            )
        return Checkpoint(path, step, "shipped")
    return None


def ship(lab: Lab, s: Pretraining, name: str) -> Path:
    """Write the stages of a finished run, in half precision, with recipe and checksums, among the records."""
    target = lab.shipped / name
    if target.exists():
        shutil.rmtree(target)
    sums = {}
    for step in s.steps:
        model, tok = models.load(str(folder(lab, s) / f"step{step}"), device="cpu", dtype="float32")
        place = target / f"step{step}"
        model.to(torch.float16).save_pretrained(place)
        tok.save_pretrained(place)
        sums[str(step)] = sha256((place / "model.safetensors").read_bytes()).hexdigest()
    row = run(lab, s)
    document = {
        "digest": row.digest,
        "study": STUDY,
        "settings": row.settings,
        "sha256": sums,
        "provenance": row.provenance,
    }
    (target / "recipe.json").write_text(
        json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    return target
