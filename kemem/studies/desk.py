"""Chapter 15: what is compared at each scale, and the rows of all its studies, recorded or live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kemem.errors import BadInput
from kemem.runs import Row
from kemem.studies import (
    acquiring,
    editability,
    fact_silencing,
    factual,
    notions,
    pretraining,
    rescaling,
    silencing,
    stages,
    tracing,
)
from kemem.studies.checkpointed import Compared, Stages
from kemem.studies.editability import Setting, Trials, Written
from kemem.studies.fact_silencing import Asked
from kemem.studies.lab import Lab
from kemem.studies.notions import Notions
from kemem.studies.rescaling import Rescaling
from kemem.studies.silencing import Silenced
from kemem.studies.tracing import Tracing

ROWS = {
    notions.STUDY: notions.VERSION, silencing.STUDY: silencing.VERSION, editability.STUDY: editability.VERSION,
    editability.TRIALS: editability.VERSION, rescaling.STUDY: rescaling.VERSION,
    fact_silencing.STUDY: fact_silencing.VERSION,
}  # fmt: skip
SHOWN = ("usage", "contribution", "general", "loss", "key", "update", "written")
"""The notions, those of the loss on a part of the text apart."""


@dataclass(frozen=True)
class Sizes:
    """What is compared at a scale. shares: of the schedule; the first is the first stage that knows enough facts."""

    of: Compared
    facts: int
    """Written at every stage, in blocks of `count`."""
    tuning: int
    count: int
    settings: tuple[Setting, ...]
    traced: Tracing
    silenced: tuple[int, ...]
    """Steps at which memories are silenced."""
    silencing_facts: int = 160
    other: Compared | None = None
    """A second model, at its end: with other layers, other memories and another tokenizer."""
    seeds: tuple[int, ...] = (0,)
    """Of the objects that are written."""


def grid(
    layers: Sequence[tuple[int, ...]], weights: Sequence[float], clamps: Sequence[float]
) -> tuple[Setting, ...]:
    return tuple(Setting(own, w, c) for own in layers for w in weights for c in clamps)


def _smoke() -> Sizes:
    """The model of chapter 02 knows no fact at this scale, so any are written."""
    model = pretraining.settings("smoke")
    of = Compared(model, model.setup.at((0.5, 1.0)), known=False, draws=3, rows=6, subjects=3, ordinary=40)
    return Sizes(
        of, 6, 3, 3, grid(((0,), (0, 1)), (10.0,), (1.0,)),
        Tracing(factual.settings("smoke"), facts=3, samples=2, paired=1, noises=4), of.steps[-1:],
        silencing_facts=3, seeds=(0,),
    )  # fmt: skip


def _laptop() -> Sizes:
    model, other = pretraining.settings("laptop"), factual.settings("laptop")
    steps = model.setup.at((0.2, 0.35, 0.5, 0.75, 1.0))
    settings = grid(((0,), (1,), (2,), (3,), (0, 1)), (1.0, 3.0, 10.0, 30.0, 100.0, 300.0), (1.0, 2.0))
    return Sizes(
        Compared(model, steps), 96, 48, 24, settings, Tracing(model, facts=48), (steps[0], steps[-1]),
        other=Compared(other, other.steps), seeds=(0, 1, 2),
    )  # fmt: skip


def _gpu() -> Sizes:
    """Untried: layers are the lowest third, as for part 3's model, and each layer by itself."""
    model, other = pretraining.settings("gpu"), factual.settings("gpu")
    steps = model.setup.at((0.35, 0.5, 0.75, 1.0))
    each = tuple((layer,) for layer in range(model.setup.layers))
    settings = grid(
        (*each, factual.critical(model)), factual.weighed(model, (3.0, 10.0, 30.0, 100.0)), (1.0,)
    )
    return Sizes(
        Compared(model, steps, rows=128, subjects=32, ordinary=4000), 256, 128, 64, settings,
        Tracing(model, facts=96), (steps[0], steps[-1]), other=Compared(other, other.steps), seeds=(0, 1, 2),
    )  # fmt: skip


SCALES = {"smoke": _smoke, "laptop": _laptop, "gpu": _gpu}


def sizes(scale: str) -> Sizes:
    """Refused: a scale at which no model of ours has learned facts."""
    if scale not in SCALES:
        raise BadInput(
            "three papers on one model need checkpoints that know a world of facts, of which there are some at the "
            f"scales {', '.join(SCALES)}; got {scale!r}; choose one of these."
        )
    return SCALES[scale]()


# ---------------------------------------------------------------------- rows
@dataclass
class Desk:
    """The rows of a scale. The notions at the last stage and the rescaled weights are live; all else is recorded."""

    lab: Lab
    z: Sizes = field(init=False)
    stages: Stages = field(init=False)
    other: Stages | None = field(init=False)

    def __post_init__(self) -> None:
        self.z = sizes(self.lab.scale)
        self.stages = Stages(self.lab, self.z.of)
        self.other = None if self.z.other is None else Stages(self.lab, self.z.other)

    def notions(self, share: float | None = None) -> dict[int, Row]:
        """By stage. share: of a layer's memories, its top ones, in the live row."""
        asked, last = noted(self.z), self.z.of.steps[-1]
        if share is not None:
            asked[last] = replace(asked[last], share=share)
        return {step: notions.run(self.stages, s, recorded=step != last) for step, s in asked.items()}

    def second(self) -> Row | None:
        """The notions in the other model."""
        if self.other is None or self.z.other is None:
            return None
        return notions.run(self.other, Notions(self.z.other, self.z.other.steps[-1]), recorded=True)

    def silenced(self) -> dict[int, Row]:
        return {step: silencing.run(self.stages, s, recorded=True) for step, s in quiet(self.z).items()}

    def by_fact(self, made: Setting) -> dict[int, Row]:
        """What known and rewritten facts lose without the memories of their own keys and changes."""
        asked = harboured(self.z, made)
        return {step: fact_silencing.run(self.stages, s, recorded=True) for step, s in asked.items()}

    def trials(self) -> dict[int, Row]:
        return {step: editability.tried(self.stages, s, recorded=True) for step, s in trials(self.z).items()}

    def written(self, made: Mapping[int, Setting]) -> dict[int, list[Row]]:
        """By stage a row for each draw of objects."""
        return {
            step: [editability.written(self.stages, s, recorded=True) for s in each]
            for step, each in writing(self.z, made).items()
        }

    def rescaled(self, made: Setting, *, seed: int = 0, spread: float | None = None) -> Row:
        """seed, spread: of the factors that are drawn."""
        asked = rescale(self.z, made, seed)
        return rescaling.run(self.stages, asked if spread is None else replace(asked, spread=spread))

    def entropy(self) -> Row:
        """The stages of chapter 03, in one row with those before them."""
        about = stages.subject(self.lab.scale, model=self.z.of.model)
        return stages.recorded(self.lab, about.settings(**stages.extras(about)))

    def traced(self) -> Row:
        found = self.lab.store.find(tracing.STUDY, tracing.VERSION, self.z.traced, recorded=True)
        return found or tracing.run(self.lab, self.z.traced)

    def learning(self) -> dict[int, list[Row]]:
        """Chapter 05's runs of continual learning from the compared stages, by step a row for each model."""
        found: dict[int, list[Row]] = {}
        for rows in acquiring.along(self.lab).values():
            for row in rows:
                found.setdefault(row.settings["step"], []).append(row)
        return {step: found[step] for step in self.z.of.steps}


def noted(z: Sizes) -> dict[int, Notions]:
    return {step: Notions(z.of, step, kept=step == z.of.steps[-1]) for step in z.of.steps}


def quiet(z: Sizes) -> dict[int, Silenced]:
    return {step: Silenced(Notions(z.of, step), facts=z.silencing_facts) for step in z.silenced}


def harboured(z: Sizes, made: Setting) -> dict[int, Asked]:
    return {step: Asked(z.of, step, made) for step in z.silenced}


def trials(z: Sizes) -> dict[int, Trials]:
    return {step: Trials(z.of, step, z.settings, z.count, z.tuning // z.count) for step in z.of.steps}


def writing(z: Sizes, made: Mapping[int, Setting]) -> dict[int, list[Written]]:
    return {
        step: [Written(z.of, step, made[step], z.count, z.facts // z.count, seed) for seed in z.seeds]
        for step in z.of.steps
    }


def rescale(z: Sizes, made: Setting, seed: int = 0) -> Rescaling:
    return Rescaling(z.of, z.of.steps[-1], made, z.count, seed=seed)
