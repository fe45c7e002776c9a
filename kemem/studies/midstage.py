"""Chapter 06: what "mid-stage" is. The best start for continual learning, over schedules of two lengths and shapes.

The paper says that models from the middle of pretraining are the best starts, and means half of the schedule. Whether
the share is what matters, or the entropy, the loss or the rate there, shows where schedules differ: each of them is
taken from all schedules but one, and has to find the best start of the one left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kemem.runs import Row, Store
from kemem.studies import arms, pool
from kemem.studies.arms import Arm, settings
from kemem.studies.findings import Change, change
from kemem.studies.lab import Lab, Result
from kemem.studies.outcomes import knowledge, own_loss, performance
from kemem.studies.pretraining import Pretraining
from kemem.studies.robustness import smaller
from kemem.studies.setup import Setup

CHAPTER = "06_rivals"
STUDY, VERSION = arms.STUDY, arms.VERSION
ROWS: dict[str, int] = {}  # its rows are those of `arms`, which chapter 06 declares
# at paper scale none: nobody trains that model again along other schedules
STAGES = {"smoke": (0.2, 0.5, 1.0), "laptop": (0.2, 0.35, 0.5, 0.75, 1.0), "gpu": (0.2, 0.5, 0.75, 1.0)}
HALF = "half of the schedule"


def schedules(scale: str, seed: int = 0) -> dict[str, Pretraining]:
    """One model, pretrained along a cosine, one of half the length, and at a constant rate; none where none is."""
    if scale not in STAGES:
        return {}
    whole = smaller(scale, seed)
    found = {
        "cosine": whole,
        "cosine, half as long": replace(whole, setup=whole.setup.with_(steps=whole.setup.steps // 2)),
        "constant rate": replace(whole, setup=whole.setup.with_(schedule="constant")),
    }
    return {name: found[name] for name in list(found)[: 2 if scale == "smoke" else 3]}


def _asked(scale: str) -> dict[str, dict[int, list[Arm]]]:
    return {
        name: {
            seed: [
                settings(scale, seed=seed, share=share, model=schedules(scale, seed)[name])
                for share in STAGES[scale]
            ]
            for seed in arms.SCALES[scale].seeds
        }
        for name in schedules(scale)
    }


Found = dict[str, dict[int, list[Row]]]
"""Schedule -> seed -> rows in the order of the stages."""


def table(lab: Lab) -> Found:
    """All runs, recorded; what is missing is computed side by side."""
    wanted = _asked(lab.scale)
    # seeds innermost: neighbours in the pool then wait for different models to be trained, not for one
    places = [
        (name, seed, i)
        for i in range(len(STAGES.get(lab.scale, ())))
        for name, seeds in wanted.items()
        for seed in seeds
    ]
    jobs = [(arms.run, (wanted[name][seed][i], True)) for name, seed, i in places]
    found = dict(zip(places, pool.rows(lab, jobs), strict=True))
    return {
        name: {seed: [found[name, seed, i] for i in range(len(each))] for seed, each in seeds.items()}
        for name, seeds in wanted.items()
    }


def finished(store: Store, scale: str) -> Found:
    """All of them or none; nothing is computed."""
    if scale not in arms.SCALES:
        return {}
    found: Found = {}
    for name, seeds in _asked(scale).items():
        for seed, each in seeds.items():
            rows = [store.find(STUDY, VERSION, one, recorded=True) for one in each]
            whole = [row for row in rows if row is not None]
            if len(whole) < len(rows):
                return {}
            found.setdefault(name, {})[seed] = whole
    return found


# ---------------------------------------------------------------------- what predicts the best start
def share(row: Row) -> float:
    of = row.settings["learning"]
    return of["step"] / of["model"]["setup"]["steps"]


def rate(row: Row) -> float:
    """Of pretraining when it reached the stage, as a share of its peak."""
    recipe = Setup(**row.settings["learning"]["model"]["setup"]).recipe()
    return recipe.rate(row.settings["learning"]["step"] - 1) / recipe.learning_rate


OUTCOMES: dict[str, Callable[[Row], float]] = {
    "K": lambda row: knowledge(row, "after"),
    "P": lambda row: 100 * performance(row, "after"),
}
"""By which a start is best: what is known of the passages, and of the model's own world, at the end."""
PREDICTORS: dict[str, Callable[[Row], float]] = {
    "share of the schedule": share,
    "entropy H": lambda row: row.values["before"]["entropy"],
    "loss on its own world": lambda row: own_loss(row.values["before"]),
    "rate, as a share of the peak": rate,
}


@dataclass(frozen=True)
class Prediction:
    """What choosing by a predictor costs against the best start: one number a seed and schedule left out."""

    predictor: str
    regret: Change


def regrets(rows: Found, outcome: str, predictor: str | None) -> list[float]:
    """Outcome of the best start less that of the chosen one, for each schedule left out and seed.

    The predictor's value at the best start, averaged over seeds of the other schedules, is sought among the stages of
    the one left out. None: half of the schedule, whatever the others say.
    """
    of = OUTCOMES[outcome]
    found = []
    for name, seeds in rows.items():
        for each in seeds.values():
            if predictor is None:
                chosen = min(each, key=lambda row: abs(share(row) - 0.5))
            else:
                read = PREDICTORS[predictor]
                best = [
                    read(max(other, key=of))
                    for n, others in rows.items()
                    if n != name
                    for other in others.values()
                ]
                target = sum(best) / len(best)
                chosen = min(each, key=lambda row: abs(read(row) - target))
            found.append(max(map(of, each)) - of(chosen))
    return found


def predictions(rows: Found, outcome: str) -> list[Prediction]:
    """All predictors and half of the schedule, the least regret first."""
    names: list[tuple[str, str | None]] = [(HALF, None), *((name, name) for name in PREDICTORS)]
    found = [Prediction(name, change(regrets(rows, outcome, predictor))) for name, predictor in names]
    return sorted(found, key=lambda p: p.regret.mean)


def best(rows: Found, outcome: str) -> dict[str, list[float]]:
    """The share of the schedule at which the best start lies, for each schedule, one a seed."""
    of = OUTCOMES[outcome]
    return {name: [share(max(each, key=of)) for each in seeds.values()] for name, seeds in rows.items()}


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Mean regret of each predictor, by outcome, and the number of schedules."""
    rows = finished(store, scale)
    if not rows:
        return {}
    one = next(iter(next(iter(rows.values())).values()))[0]
    origin = {"study": STUDY, "digest": one.digest, "origin": one.origin, **one.provenance}
    found = {"midstage.schedules": Result(len(rows), "", origin)}
    for outcome in OUTCOMES:
        for each in predictions(rows, outcome):
            unit = "nats" if outcome == "K" else "points"
            found[f"midstage.{outcome}.{each.predictor}"] = Result(each.regret.mean, unit, origin)
    return found
