"""Evidence from domains learned in a row: chapters 08 to 10. One number a seed, each a mean over the orders it ran in.

The score of a method is minus its mean held-out loss over the domains at the end; beside it stand end tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kemem.runs import Row, Store
from kemem.studies import budget, courses, growing, looking, units
from kemem.studies.budget import TRIED, Budget
from kemem.studies.evidence.record import Evidence, Reader, evidence

RIVALS = (
    "pool", "untouched", "one", "adapters-one", "prompt", "ncl", "adapter-sequential", "demix", "bcl", "classic", "kd",
    "ewc", "derpp", "hat", "hat-all", "hat-adapter",
)  # fmt: skip
"""The sixteen rows of the paper's main table beside DAS."""
SINGLE = ("pool", "untouched", "one", "adapters-one", "prompt")
"""Those that see no sequence, or keep a module for each domain, and so have no rate of forgetting there."""
PARTS = {
    "without-initialisation": "initialisation", "without-soft-mask": "mask", "random": "importance",
    "without-contrast": "contrast", "domain-specific": "full contrast",
}  # fmt: skip
UNIT, POINTS = "nats a token", "points"


@dataclass(frozen=True)
class Seed:
    """All courses of one seed, by arm and order."""

    rows: Mapping[tuple[str, int], Row]

    def mean(self, name: str, of: Callable[[Row], float | None], orders: Sequence[int]) -> float:
        """Over orders; the untouched model is what any course began with."""
        own = [row for (arm, order), row in self.rows.items() if arm == name and order in orders]
        found = [x for x in map(of, own) if x is not None]
        if not found or len(found) != len(own):
            raise LookupError(name)
        return sum(found) / len(found)


Of = Callable[[str], float]
Measure = Callable[[Of, Of], dict[str, float]]
"""(score of an arm, its rate of forgetting) -> quantities by name"""
Grids = tuple[Callable[[Budget, budget.Settings], dict[budget.Place, courses.Learning]], ...]


def _label(name: str) -> str:
    return TRIED[name].label if name in TRIED else name.replace("-", " ")


# ---------------------------------------------------------------------- numbers of rows
def _loss(row: Row) -> float:
    return -courses.course(row).average


def _lost(row: Row) -> float:
    return courses.course(row).forgetting


def _task(row: Row) -> float | None:
    return courses.course(row).task_average


def _task_lost(row: Row) -> float | None:
    return courses.course(row).task_forgetting


def untouched(row: Row) -> float:
    """Minus the mean loss over the domains before any training."""
    return -sum(row.values["before"]) / len(row.values["before"])


def untouched_task(row: Row) -> float | None:
    scores = [score for score in row.values["task_before"] if score is not None]
    return sum(scores) / len(scores) if scores else None


def seeds(
    store: Store, scale: str, grids: Grids, names: Sequence[str], *, masked: bool = False, first: bool = False
) -> list[Seed]:
    """One a seed, with the arms of these grids; none where a trial or a row is missing.

    names: of methods that are asked for, as far as they were compared. first: only in the first order.
    """
    if scale not in budget.SCALES:
        return []
    z = budget.sizes(scale, masked=masked)
    known = tuple(name for name in z.names if name in names)
    z = replace(z, names=known, square=(), orders=z.orders[:1] if first else z.orders)
    made = budget.chosen(budget.trials_of(store, z))
    if not made:
        return []
    rows = budget.finished(store, {k: s for grid in grids for k, s in grid(z, made).items()})
    found = [
        Seed({(n, order): row for (n, order, seed), row in rows.items() if seed == own}) for own in z.seeds
    ]
    return found if rows else []


def _measured(
    own: Sequence[Seed], measure: Measure, on: str, *, task: bool = False, orders: Sequence[int] = range(9)
) -> list[Evidence]:
    """Evidence of one kind of score; none where a seed lacks an arm that is asked for."""
    score, lost, first = (_task, _task_lost, untouched_task) if task else (_loss, _lost, untouched)
    values, asked = [], set()
    for each in own:

        def scored(name: str, each: Seed = each) -> float:
            arm, of = ("ncl", first) if name == "untouched" else (name, score)
            found = each.mean(arm, of, orders)
            asked.add(arm)
            return found

        def forgot(name: str, each: Seed = each) -> float:
            found = each.mean(name, lost, orders)
            asked.add(name)
            return found

        try:
            found = measure(scored, forgot)
        except LookupError:
            return []
        if not found:  # of end tasks, where no domain has one
            return []
        values.append(found)
    rows = [
        row for each in own for (arm, order), row in each.rows.items() if arm in asked and order in orders
    ]
    return [evidence(on, values, rows, POINTS if task else UNIT)] if values else []


def _reader(
    measure: Measure,
    names: Sequence[str],
    grids: Grids | None = None,
    *,
    first: bool = False,
    task_first: bool = False,
) -> Reader:
    """Held-out loss of the causal model, its end tasks, and the model that fills in masked tokens.

    first: only in the first order, in which all arms of the claim ran.
    """

    def read(store: Store, scale: str) -> list[Evidence]:
        orders = (0,) if first else range(9)
        causal, filling = (
            seeds(store, scale, grids or CONTEST, names, masked=masked, first=first)
            for masked in (False, True)
        )
        found = [
            _measured(causal, measure, "held-out loss of the domains", orders=orders),
            _measured(causal, measure, "end tasks of the domains", task=True, orders=orders),
            _measured(filling, measure, "held-out loss, a model that fills in masked tokens", orders=orders),
            _measured(
                filling, measure, "end tasks, a model that fills in masked tokens", task=True, orders=orders
            ),
        ]
        if task_first:
            found = [found[1], found[0], found[3], found[2]]
        return [one for each in found for one in each] if found[0] else []

    return read


# ---------------------------------------------------------------------- quantities of claims
def best(score: Of, lost: Of) -> dict[str, float]:
    """Claim 1. A model that has only some of the rivals is compared with those."""
    return {f"DAS less {_label(name)}": score("das") - score(name) for name in RIVALS if _has(score, name)}


def _has(of: Of, name: str) -> bool:
    try:
        of(name)
    except LookupError:
        return False
    return True


def pooled(score: Of, lost: Of) -> dict[str, float]:
    """Claim 2."""
    return {"DAS less Pool": score("das") - score("pool")}


def kept(score: Of, lost: Of) -> dict[str, float]:
    """Claim 3."""
    others = [name for name in RIVALS if name not in SINGLE and _has(score, name)]
    return {
        "FR of DAS": lost("das"),
        **{f"FR of DAS less {_label(name)}": lost("das") - lost(name) for name in others},
        "- FR of NCL": -lost("ncl"),
    }


def protected(score: Of, lost: Of) -> dict[str, float]:
    """Claim 4."""
    return {
        **{f"{_label(name)} less NCL": score(name) - score("ncl") for name in ("kd", "ewc", "derpp")},
        "FR of NCL less DER++": lost("ncl") - lost("derpp"),
    }


def transferring(score: Of, lost: Of) -> dict[str, float]:
    """Claim 5."""
    return {f"{_label(name)} less NCL": score(name) - score("ncl") for name in ("bcl", "classic", "demix")}


def whole(score: Of, lost: Of) -> dict[str, float]:
    """Claim 6."""
    pairs = (("one", "prompt"), ("one", "adapters-one"), ("ncl", "adapter-sequential"))
    return {f"{_label(a)} less {_label(b)}": score(a) - score(b) for a, b in pairs}


def isolated(score: Of, lost: Of) -> dict[str, float]:
    """Claim 7."""
    return {
        "HAT less the untouched model": score("hat") - score("untouched"),
        "HAT-All less HAT": score("hat-all") - score("hat"),
    }


def adapted(score: Of, lost: Of) -> dict[str, float]:
    """Claim 8."""
    return {"One less the untouched model": score("one") - score("untouched")}


def every_part(score: Of, lost: Of) -> dict[str, float]:
    """Claim 9."""
    return {label: score("das") - score(name) for name, label in PARTS.items()}


def initialised(score: Of, lost: Of) -> dict[str, float]:
    """Claim 10."""
    names = {"without-initialisation": "without initialisation", "random": "random importance"}
    return {f"FR {label}": lost(name) for name, label in names.items()} | {
        f"FR {label} less DAS": lost(name) - lost("das") for name, label in names.items()
    }


def stood_in(score: Of, lost: Of) -> dict[str, float]:
    """Claim 11, with the text of pretraining itself, which the authors did not have."""
    gain = score("stand-in-kl") - score("stand-in-loss")
    return {
        "divergence less loss, both on the text of pretraining": gain,
        "the same less the distance to divergence on the domain": gain
        - abs(score("stand-in-kl") - score("das")),
    }


def beside(score: Of, lost: Of) -> dict[str, float]:
    """Of reviews: modules that read what a sublayer reads, against modules behind it."""
    return {"adapters, parallel less sequential": score("adapter-parallel") - score("adapter-sequential")}


def plugged(score: Of, lost: Of) -> dict[str, float]:
    return {"CPT, parallel less sequential": score("parallel, masks") - score("sequential, masks")}


def by_unit(score: Of, lost: Of) -> dict[str, float]:
    """Of reviews."""
    return {"DAS less EWC": score("das") - score("ewc")}


def parallel(store: Store, scale: str) -> list[Evidence]:
    found = seeds(store, scale, CONTEST, ("adapter-parallel", "adapter-sequential"))
    more = seeds(store, scale, (budget.plugins,), ("cpt",))
    adapters = _measured(found, beside, "held-out loss of the domains")
    return adapters and [*adapters, *_measured(more, plugged, "the same of CPT, with as many parameters")]


def general(store: Store, scale: str) -> list[Evidence]:
    """Of reviews: loss on general text at the end, HAT against plain training and the untouched model."""
    values, used = [], []
    for each in seeds(store, scale, CONTEST, ("hat", "ncl")):
        if not any(name == "hat" for name, _ in each.rows):
            return []
        hat, plain = (
            each.mean(name, lambda row: row.values["general"][-1], range(9)) for name in ("hat", "ncl")
        )
        before = each.mean("ncl", lambda row: row.values["general"][0], range(9))
        values.append({"HAT less NCL": hat - plain, "HAT less the untouched model": hat - before})
        used += [row for (name, _), row in each.rows.items() if name in ("hat", "ncl")]
    return [evidence("loss on general text", values, used, UNIT)] if values else []


def told_apart(store: Store, scale: str) -> list[Evidence]:
    """Of reviews: ELLE's domains under another domain's prompt, less under their own. Depth grows, as in the paper."""
    if scale not in budget.SCALES:
        return []
    found = []
    for arm, on in (("depth", "ELLE growing deeper"), ("not grown", "ELLE without growth")):
        own = [store.find(growing.STUDY, growing.VERSION, s, recorded=True)
               for (name, _), s in growing.grid(scale).items() if name == arm]  # fmt: skip
        rows = [row for row in own if row is not None]
        rises = [growing.misled(row, "wrong") for row in rows]
        if len(rows) < len(own) or None in rises:
            return []
        found.append(
            evidence(on, [{"wrong less right prompt": x} for x in rises if x is not None], rows, UNIT)
        )
    return found


def alike(store: Store, scale: str) -> list[Evidence]:
    """Claim 12: heads' importances for general knowledge over domains; the paper's kind of model first."""
    found = []
    for masked, on in ((True, "a model that fills in masked tokens"), (False, "a causal model")):
        values = [
            {
                f"cosine less that of unrelated scores, {name}": own[f"{key}, more"]
                for name, key in LIKENESS.items()
            }
            for own in units.alike(store, scale, masked=masked)
        ]
        if values:
            rows = [
                row
                for seed in looking.seeds(scale)
                if (row := store.find(units.IMPORTANCE, units.VERSION, looking.settings(
                    units.Measured, scale, masked=masked, seed=seed), recorded=True)) is not None
            ]  # fmt: skip
            found.append(evidence(f"importance of heads, {on}", values, rows, ""))
    return found


LIKENESS = {"raw": "raw", "normalised as released": "paper_abs"}
CONTEST: Grids = (budget.contest,)
PARTED: Grids = (budget.contest, budget.parts)
EVIDENCE: dict[str, Reader] = {
    "das.1": _reader(best, ("das", *RIVALS)),
    "das.2": _reader(pooled, ("das", "pool")),
    "das.3": _reader(kept, ("das", *RIVALS)),
    "das.4": _reader(protected, ("ncl", "kd", "ewc", "derpp")),
    "das.5": _reader(transferring, ("ncl", "bcl", "classic", "demix")),
    "das.6": _reader(whole, ("one", "prompt", "adapters-one", "ncl", "adapter-sequential")),
    "das.7": _reader(isolated, ("hat", "hat-all", "ncl")),
    "das.8": _reader(adapted, ("one", "ncl"), task_first=True),
    "das.9": _reader(every_part, ("das",), PARTED, first=True),
    "das.10": _reader(initialised, ("das",), PARTED, first=True),
    "das.11": _reader(stood_in, ("das",), PARTED, first=True),
    "das.12": alike,
    "review.parallel-adapters": parallel,
    "review.unit-importance": _reader(by_unit, ("das", "ewc")),
    "review.isolation-general": general,
    "review.elle-prompts": told_apart,
}
