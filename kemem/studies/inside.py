"""Chapter 06: passages told inside pretraining, at several stages of one unbroken schedule.

The paper could only ask in continual learning, whose optimizer and rate start anew. Here one run of pretraining is told
other passages at each stage, for as many steps as an arm of continual learning has, and nothing else of it changes.
Which set of passages belongs to which stage rotates with the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from kemem import corpora, entropy, models
from kemem.corpora import specs
from kemem.entropy import Passage, passages
from kemem.errors import BadInput
from kemem.objective import Batch
from kemem.runs import Row, Store
from kemem.studies import arms, findings, pool
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.robustness import smaller
from kemem.studies.setup import tokenizer, train
from kemem.training import Domain, Method

STUDY, VERSION = "inside", 1
CHAPTER = "06_rivals"


@dataclass(frozen=True)
class Inside:
    """Pretraining that is told passages from each of these shares of its schedule on."""

    model: Pretraining
    stages: tuple[float, ...] = (0.2, 0.5, 0.75, 0.95)
    paraphrased: int = 6
    once: int = 12
    slots: int = 10
    interval: int = 20
    seed: int = 0

    @property
    def window(self) -> int:
        """Steps over which a stage's passages are told."""
        return self.slots * self.interval

    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(round(share * self.model.setup.steps) for share in self.stages)


@dataclass(frozen=True)
class Windows(Method):
    """Plain training, told one schedule after another: each from its own step on, for `length` steps."""

    starts: tuple[int, ...]
    schedules: tuple[entropy.Schedule, ...]
    length: int
    digests: tuple[str, ...] = ()
    _told: tuple[entropy.Injection, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", tuple(s.digest for s in self.schedules))
        object.__setattr__(self, "_told", tuple(entropy.Injection(s) for s in self.schedules))

    def before(self, model: nn.Module, domain: Domain) -> None:
        for told in self._told:
            told.before(model, domain)

    def rows(self, step: int, batch: Batch) -> Batch:
        for start, told in zip(self.starts, self._told, strict=True):
            if start < step <= start + self.length:
                return told.rows(step - start, batch)
        return batch


SCALES: dict[str, Inside] = {
    "smoke": Inside(smaller("smoke"), (0.2, 0.5), paraphrased=2, once=4, slots=2, interval=3),
    "laptop": Inside(smaller("laptop")),
    "gpu": Inside(smaller("gpu"), paraphrased=12, once=20, interval=10),
}


def settings(scale: str, seed: int = 0) -> Inside:
    return replace(SCALES[scale], model=smaller(scale, seed), seed=seed)


def sets(s: Inside) -> list[tuple[Passage, ...]]:
    """The passages of each stage: disjoint, from the model's own world, dealt out anew for each seed."""
    world = next(corpora.world(part)[0] for part in specs(s.model.setup.corpus) if part.scheme == "world")
    each, count = s.paraphrased + s.once, len(s.stages)
    if world.fictional < each * count:
        raise BadInput(
            f"expected {each * count} fictional passages; the world has {world.fictional}; ask for fewer."
        )
    records = world.fictional_knowledge(each * count, paraphrases=s.slots - 1, brief=True)
    parts = [records[i * each : (i + 1) * each] for i in range(count)]
    turned = [parts[(i + s.seed) % count] for i in range(count)]
    return [
        (*passages(part[: s.paraphrased], "paraphrase"), *passages(part[s.paraphrased :], "once"))
        for part in turned
    ]


def run(lab: Lab, s: Inside, recorded: bool = False) -> Row:
    """The row of one pretraining run: K of every stage's passages before and after each window, and at the end."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        tok = tokenizer(lab, s.model.setup)
        told = sets(s)
        plans = tuple(entropy.schedule(part, tok, slots=s.slots, interval=s.interval) for part in told)
        ends = [start + s.window for start in s.starts]
        if any(end > after for end, after in zip(ends, (*s.starts[1:], s.model.setup.steps), strict=True)):
            raise BadInput("expected windows that end before the next begins; shorten the interval.")
        moments = tuple(sorted({*s.starts, *ends, s.model.setup.steps}))

        def look(model: nn.Module, step: int) -> dict[str, Any]:
            found = [entropy.probe(model, tok, part) for part in told]
            return {
                "K": [each.knowledge() for each in found],
                "K as released": [each.knowledge("row_mean") for each in found],
            }

        _, history, found = train(
            lab, s.model.setup, lab.store.folder(STUDY, VERSION, s), keep=moments, at_checkpoint=look,
            method=Windows(s.starts, plans, s.window),
        )  # fmt: skip
        provenance.update(found)
        return {
            "moments": history.checkpoints, "starts": list(s.starts), "ends": ends,
            "rates": [s.model.setup.recipe().rate(start) for start in s.starts],
        }  # fmt: skip

    return lab.store.row(
        STUDY, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


def table(lab: Lab) -> list[Row]:
    """One row a seed, recorded; none at paper scale, where pretraining is others' work."""
    if lab.scale not in SCALES:
        return []
    return pool.rows(lab, [(run, (settings(lab.scale, seed), True)) for seed in arms.SCALES[lab.scale].seeds])


def finished(store: Store, scale: str) -> list[Row]:
    if scale not in SCALES:
        return []
    rows = [
        store.find(STUDY, VERSION, settings(scale, seed), recorded=True) for seed in arms.SCALES[scale].seeds
    ]
    return [row for row in rows if row is not None] if all(rows) else []


def acquired(row: Row) -> list[float]:
    """A of each stage's passages over its window."""
    return [entropy.acquisition(*_window(row, i, i)) for i in range(len(row.values["starts"]))]


def drifted(row: Row) -> list[float]:
    """The same of passages that are told later, mean over them; there are none in the last window."""
    count = len(row.values["starts"])
    return [
        sum(entropy.acquisition(*_window(row, i, j)) for j in range(i + 1, count)) / (count - 1 - i)
        for i in range(count - 1)
    ]


def kept(row: Row) -> list[float]:
    """A of each stage's passages from before its window to the end of pretraining: what is left of it."""
    last = row.values["moments"][-1]["K"]
    return [entropy.acquisition(_window(row, i, i)[0], last[i]) for i in range(len(row.values["starts"]))]


def _window(row: Row, window: int, told: int) -> tuple[float, float]:
    """K of the passages of stage `told` before and after a window."""
    by_step = {m["step"]: m["K"] for m in row.values["moments"]}
    return by_step[row.values["starts"][window]][told], by_step[row.values["ends"][window]][told]


def results(store: Store, scale: str) -> dict[str, Result]:
    """A over the window and what is left at the end, of the first and last stage, by name."""
    rows = finished(store, scale)
    if not rows:
        return {}
    one = rows[0]
    origin = {"study": STUDY, "digest": one.digest, "origin": one.origin, **one.provenance}
    found: dict[str, Result] = {}
    for name, of in (("A", acquired), ("kept", kept)):
        for place, i in (("first", 0), ("last", -1)):
            mean = findings.change([of(row)[i] for row in rows]).mean
            found[f"inside.{name}.{place}"] = Result(100 * mean, "%", origin)
    return found
