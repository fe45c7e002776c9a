"""Chapter 03, second half: what drives the decay.

A row is a small model trained and measured on the way, one a setting and seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from kemem import entropy, evaluation, models
from kemem.corpora import instances
from kemem.runs import Row, Store
from kemem.studies import findings, pool, pretraining
from kemem.studies.lab import Lab, Result
from kemem.studies.setup import Setup, blocks, read, tokenizer, train
from kemem.studies.stages import padding_id, stage

STUDY = "decay"
VERSION = 1
CHAPTER = "03_entropy_decay"


@dataclass(frozen=True)
class Sizes:
    """The sweep at a scale: seeds, the base arm, and at how many stages, spread evenly, an arm is measured."""

    seeds: tuple[int, ...]
    base: Setup
    points: int
    arms: tuple[str, ...] | None = None
    """Arms of the sweep; None: all."""


BASE = pretraining.LAPTOP.with_(
    corpus="world:people=100,documents=16000", vocabulary=1024, layers=3, width=48, memories=192, heads=3, steps=1000,
    weight_decay=1.0,
)  # fmt: skip
SMALL = pretraining.SCALES["smoke"].setup.with_(corpus="world:people=40,documents=400", steps=24, rows=4)
SMOKE_ARMS = ("base", "no weight decay", "weight decay / 4", "weight decay x 4", "ungated (GPT-2)")
SCALES: dict[str, Sizes] = {
    "smoke": Sizes((0, 1), SMALL, 5, SMOKE_ARMS),
    "laptop": Sizes((0, 1, 2), BASE, 20),
    # small models take the time that starting their kernels takes: one of each, eight times the laptop's text a step
    "gpu": Sizes((0,), BASE.with_(rows=128), 20),
    "paper": Sizes((0, 1, 2), BASE, 20),
}


@dataclass(frozen=True)
class Arm:
    """One small training run that is measured on its way, on held-out text of its own corpus."""

    setup: Setup
    points: int
    instances: int = 64
    seed: int = 0


def arms(scale: str) -> dict[str, Setup]:
    """The sweep: one factor at a time around the base, and three pairs that hold one product fixed."""
    base = SCALES[scale].base
    rate, decay, steps = base.learning_rate, base.weight_decay, base.steps
    return {
        "base": base,
        "no weight decay": base.with_(weight_decay=0.0),
        "weight decay / 4": base.with_(weight_decay=decay / 4),
        "weight decay x 4": base.with_(weight_decay=decay * 4),
        "rate / 2": base.with_(learning_rate=rate / 2),
        "rate x 2": base.with_(learning_rate=rate * 2),
        "rate / 2, decay x 2": base.with_(learning_rate=rate / 2, weight_decay=decay * 2),
        "constant rate": base.with_(schedule="constant"),
        "steps x 2.5": base.with_(steps=round(2.5 * steps)),
        "steps x 2.5, no weight decay": base.with_(steps=round(2.5 * steps), weight_decay=0.0),
        "steps x 2.5, decay x 4": base.with_(steps=round(2.5 * steps), weight_decay=decay * 4),
        "width x 1/2": base.with_(width=base.width // 2, memories=base.memories // 2),
        "width x 2": base.with_(width=base.width * 2, memories=base.memories * 2, heads=base.heads * 2),
        "layers x 2": base.with_(layers=2 * base.layers),
        "docstrings": base.with_(corpus=DOCSTRINGS[scale == "smoke"]),
        "ungated (GPT-2)": base.with_(family="gpt2", memories=base.memories * 3 // 2),
    }


DOCSTRINGS = ("docstrings:limit=8000", "docstrings:networkx,limit=120")
SAME_MODEL = (
    "base", "no weight decay", "weight decay / 4", "weight decay x 4", "rate / 2", "rate x 2", "rate / 2, decay x 2",
    "constant rate", "steps x 2.5", "steps x 2.5, no weight decay", "steps x 2.5, decay x 4",
)  # fmt: skip
"""Arms of the base's family, shape and text: only the optimizer's numbers differ."""
LIVE = "no weight decay"  # with the base from the records, the arm that answers the chapter's question


def arm(lab: Lab, setup: Setup, seed: int, *, recorded: bool = True) -> Row:
    """Train one arm and measure it on the way: layer entropies, next-token entropy and held-out loss at each point."""
    s = _settings(SCALES[lab.scale], setup, seed)

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        tok = tokenizer(lab, s.setup)
        texts = read(s.setup.corpus).part("test")
        chosen = instances(texts, tok, s.setup.length, limit=s.instances)
        held_out = blocks(lab, s.setup, s.setup.corpus, "test", limit=12_000)

        def look(model: nn.Module, step: int) -> dict[str, Any]:
            found = entropy.measure(
                model, chosen.ids, batch_size=lab.batch_size or 32, pad_id=padding_id(tok), length=s.setup.length,
                attention=True,
            )  # fmt: skip
            return stage(found) | {"loss": evaluation.loss(model, held_out, batch_size=lab.batch_size or 32)}

        shares = tuple(i / s.points for i in range(s.points + 1))
        keep = s.setup.at((0.0, 0.02, *shares))
        # an arm takes a minute or two, so it keeps no checkpoints: a killed sweep goes on with the arm it was at
        _, history, found = train(lab, s.setup, None, keep=keep, at_checkpoint=look)
        provenance.update(found)
        recipe = s.setup.recipe()
        rates = [recipe.rate(i) * recipe.weight_decay for i in range(recipe.steps)]
        return {
            "points": [point | {"time_constants": math.fsum(rates[: point["step"]])} for point in history.checkpoints],
            "parameters": found["parameters"], "layers": s.setup.layers, "memories": s.setup.memories,
            "time_constants": recipe.time_constants,
        }  # fmt: skip

    return lab.store.row(
        STUDY, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


def sweep(lab: Lab) -> dict[str, list[Row]]:
    """The arms of this scale by name, recorded, one row a seed; what is missing is computed side by side."""
    sizes = SCALES[lab.scale]
    chosen = {n: setup for n, setup in arms(lab.scale).items() if sizes.arms is None or n in sizes.arms}
    jobs = [(arm, (setup, seed)) for setup in chosen.values() for seed in sizes.seeds]
    found = iter(pool.rows(lab, jobs))
    return {name: [next(found) for _ in sizes.seeds] for name in chosen}


def finished(store: Store, scale: str) -> dict[str, list[Row]]:
    """The arms whose seeds are all there, one row a seed; nothing is computed."""
    sizes = SCALES[scale]
    found: dict[str, list[Row]] = {}
    for name, setup in arms(scale).items():
        rows = [
            store.find(STUDY, VERSION, _settings(sizes, setup, seed), recorded=True) for seed in sizes.seeds
        ]
        if (sizes.arms is None or name in sizes.arms) and all(rows):
            found[name] = [row for row in rows if row is not None]
    return found


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Change of entropy of each arm whose seeds are all there, by the arm's name, and what it goes with."""
    rows = finished(store, scale)
    found: dict[str, Result] = {}
    for name, seeds in rows.items():
        change = findings.change(_changes(seeds))
        origin = {"study": STUDY, "digest": seeds[0].digest, "origin": seeds[0].origin, **seeds[0].provenance}
        found[f"decay.{name}"] = Result(change.mean, "nats", origin)
        found[f"decay.{name}.time_constants"] = Result(seeds[0].values["time_constants"], "", origin)
    verdicts = {name: findings.falls(findings.change(_changes(seeds))) for name, seeds in rows.items()}
    if rows:
        first = next(iter(rows.values()))[0]
        origin = {"study": STUDY, "digest": first.digest, "origin": first.origin, **first.provenance}
        found["decay.arms"] = Result(len(rows), "", origin)
        for verdict, word in (("holds", "fall"), ("fails", "rise"), ("undecided", "undecided")):
            found[f"decay.{word}"] = Result(sum(v == verdict for v in verdicts.values()), "", origin)
        same = {name: seeds for name, seeds in rows.items() if name in SAME_MODEL}
        if len(same) > 2:
            for factor, (rank, _) in findings.drivers(same).items():
                found[f"decay.rank.{factor}"] = Result(rank, "", origin)
    return found


def _settings(sizes: Sizes, setup: Setup, seed: int) -> Arm:
    return Arm(setup.with_(seed=seed), sizes.points, seed=seed)


def _changes(rows: list[Row]) -> list[float]:
    return [findings.late(row.values["points"], "entropy") for row in rows]
