"""Chapter 10: what growing is worth, ELLE's loss against the arithmetic it takes.

    FLOPs of a domain = 3 f (recovery tokens + learning tokens),  f = `kemem.continual.growth.flops_per_token`
                      = (6 P + 12 L D T) tokens,                  P entries of all matrices, L layers, D = heads x size

with the sizes that the model has by then. Rows that replay puts in the place of new ones are among the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Any

from torch import nn

from kemem import evaluation, models
from kemem.continual import ELLE, Held, growth, learn
from kemem.continual.elle import SHOWN
from kemem.corpora import pack
from kemem.runs import Row, Store
from kemem.studies import budget, checkpoints, courses, pool
from kemem.studies.association import told
from kemem.studies.courses import Learning, Value
from kemem.studies.lab import Lab, Result
from kemem.studies.setup import in_pieces, objective, read
from kemem.training import Domain, Method

STUDY, VERSION = "growing", 1
CHAPTER = "10_methods"

PUBLISHED: dict[str, tuple[float, float | None]] = {
    "Pool": (77.25, None), "RoBERTa": (73.64, None), "DAP-RoBERTa": (76.40, None), "DAP-Adapter": (74.60, None),
    "DAP-Prompt": (74.98, None), "NCL": (76.36, 1.14), "NCL-Adapter": (74.05, 0.15), "DEMIX": (74.70, 0.74),
    "BCL": (75.78, -0.06), "CLASSIC": (74.63, 0.44), "KD": (75.17, -0.07), "EWC": (74.84, 0.02),
    "DER++": (75.51, 2.36), "HAT": (66.80, -0.13), "HAT-All": (59.93, 3.23), "HAT-Adapter": (74.63, -0.23),
    "DAS": (77.93, -1.09),
}  # fmt: skip
"""Average MF1 and forgetting rate of every row of the main table, in points; None where it has none."""
# Ke et al. 2023, section 4.2, table 2: means over six end tasks and five seeds of fine-tuning; no spread is printed.
COUNTERPART = {
    "Pool": "pool", "RoBERTa": "untouched", "DAP-RoBERTa": "one", "DAP-Adapter": "adapters-one", "DAP-Prompt": "prompt",
    "NCL": "ncl", "NCL-Adapter": "adapter-sequential", "DEMIX": "demix", "BCL": "bcl", "CLASSIC": "classic", "KD": "kd",
    "EWC": "ewc", "DER++": "derpp", "HAT": "hat", "HAT-All": "hat-all", "HAT-Adapter": "hat-adapter", "DAS": "das",
}  # fmt: skip
"""What stands for it in `budget.TRIED`; "untouched" is the model before any domain."""

PLAIN: dict[str, Value] = {"recovery_steps": 0, "replay": 0.0, "prompts": False}
"""ELLE without any of its parts is plain training."""


@dataclass(frozen=True)
class Sizes:
    """Growth of ELLE at a scale. A block has as many parameters as the memories; of width nearly as much arithmetic."""

    base: Learning
    longer: int
    """Steps on each domain with which a model that does not grow takes as much arithmetic as one that does."""
    grown: Mapping[str, Mapping[str, Value]]
    recovery: Mapping[str, Value]
    replay: float = 0.25
    """Share of old rows: the least of those that are tried in the contest; a tenth in the paper."""
    seeds: tuple[int, ...] = (0, 1, 2)


_SIZES: dict[str, dict[str, Any]] = {
    "smoke": {
        "longer": 4, "recovery": {"recovery_steps": 2, "recovery_rows": 4}, "seeds": (0,),
        "grown": {"depth": {"blocks": 1}, "memories": {"memories": 32}, "width": {"width": 12, "heads": 1}},
    },
    "laptop": {
        "longer": 72, "recovery": {"recovery_steps": 10, "recovery_rows": 16},
        "grown": {
            "depth": {"blocks": 1}, "memories": {"memories": 128}, "width": {"width": "24,0,24", "heads": "1,0,1"}
        },
    },
    "gpu": {
        "longer": 50, "recovery": {"recovery_steps": 8, "recovery_rows": 64}, "seeds": (0,), "rate": 3e-4,
        "grown": {
            "depth": {"blocks": 1}, "memories": {"memories": 273}, "width": {"width": "0,64,64", "heads": "0,1,1"}
        },
    },
    "paper": {
        "longer": 3190, "recovery": {"recovery_steps": 258, "recovery_rows": 248}, "seeds": (0,),
        "grown": {
            "depth": {"blocks": 1}, "memories": {"memories": 683},
            "width": {"width": "128,0,128,128,128", "heads": "1,0,1,1,1"},
        },
    },
}  # fmt: skip
"""rate: of learning, where it is another one than a course's."""


def sizes(scale: str, *, device: str | None = None) -> Sizes:
    """device: of `budget.sizes`. Refused: scales at which no domains are learned in a row."""
    base = replace(budget.sizes(scale, device=device).base, method="elle")
    own = dict(_SIZES[scale])
    return Sizes(replace(base, learning_rate=own.pop("rate", base.learning_rate)), **own)


def arms(scale: str, *, device: str | None = None) -> dict[str, Learning]:
    """Nothing of ELLE; all but growth, also for longer; growth of each kind, with and without recovery."""
    z = sizes(scale, device=device)

    def arm(steps: int = z.base.steps, **changes: Value) -> Learning:
        return replace(z.base, steps=steps, changes=tuple(changes.items()))

    still: dict[str, Value] = {"recovery_steps": 0, "replay": z.replay}
    found = {"plain": arm(**PLAIN), "not grown": arm(**still), "longer": arm(z.longer, **still)}
    for kind, grown in z.grown.items():
        found[kind] = arm(**grown, **{**still, **z.recovery})
        found[f"{kind}, not recovered"] = arm(**grown, **still)
    return found


def grid(scale: str, *, device: str | None = None) -> dict[tuple[str, int], Learning]:
    """By arm and seed."""
    seeds, asked = sizes(scale, device=device).seeds, arms(scale, device=device)
    return {(name, seed): replace(s, seed=seed) for name, s in asked.items() for seed in seeds}


# ---------------------------------------------------------------------- one course
@dataclass(eq=False)
class Started(ELLE):
    """ELLE, looked at between growth with its recovery and the first step on a domain."""

    loss_of: Callable[[nn.Module, Held], float] = field(default=lambda model, held: math.nan, repr=False)
    held: Sequence[Held] = field(default=(), repr=False)
    length: int = 2
    begun: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)

    def before(self, model: nn.Module, domain: Domain) -> None:
        super().before(model, domain)
        losses = []
        for held in self.held[: len(self.begun)]:
            with self.at(model, held.domain):
                losses.append(self.loss_of(model, held))
        self.begun.append(
            {
                "seen": losses,
                "parameters": sum(p.numel() for p in model.parameters()),
                "per_token": 3 * growth.flops_per_token(model, self.length),
            }
        )


@dataclass
class Misled:
    """Asked instead of end tasks: the loss of every domain with the wrong prompt in front, and with none."""

    loss_of: Callable[[nn.Module, Held], float]
    held: Sequence[Held]
    found: dict[str, list[list[float]]] = field(default_factory=dict)

    def __call__(self, model: nn.Module, method: Method, domains: Sequence[Domain]) -> list[float | None]:
        if isinstance(method, ELLE) and method.prompts:
            for method.shown in SHOWN[1:]:
                losses = []
                for held, domain in zip(self.held, domains, strict=True):
                    with method.at(model, domain):
                        losses.append(self.loss_of(model, held))
                self.found.setdefault(method.shown, []).append(losses)
            method.shown = SHOWN[0]
        return [None] * len(domains)


def run(lab: Lab, s: Learning, recorded: bool = False) -> Row:
    """The row of one course.

    begun, of each domain: loss of those seen before it after growth and recovery, parameters, FLOPs per token read.
    flops: all up to the end of each domain. grown: what growth changed of the function. misled: as `loss` of a course.
    """

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        return _course(lab, s, provenance)

    return lab.store.row(
        STUDY, VERSION, s, compute, recorded=recorded, device=models.named_device(lab.device).type
    )


def _course(lab: Lab, s: Learning, provenance: dict[str, Any]) -> dict[str, Any]:
    model, tok, found = checkpoints.load(lab, s.model, s.step, dtype=s.dtype)
    provenance["checkpoints"] = found.origin
    goal, batch_size = objective(s.model.setup, tok), lab.batch_size or 32
    sources = [courses.source(spec, s.part) for spec in s.domains]
    provenance["corpus"] = {
        each.spec: {"digest": each.corpus.digest, "versions": each.corpus.versions} for each in sources
    }
    held = [courses.rows_of(spec, tok, s.length, s) for spec in s.domains]
    general = pack(read(s.model.setup.corpus).part(s.part), tok, s.length, limit_tokens=s.test_tokens)

    def loss_of(model: nn.Module, held: Held) -> float:
        return evaluation.loss(model, held.test, batch_size=batch_size, objective=goal)

    changes: dict[str, Any] = dict(s.changes)
    method = Started(**changes, seed=s.seed, objective=goal, loss_of=loss_of, held=held, length=s.length)
    misled = Misled(loss_of, held)
    with s.products(models.named_device(lab.device)):
        course = learn(
            model, held, method, in_pieces(lab, s.recipe()), objective=goal, general=general, ask=misled,
            batch_size=batch_size, progress=lab.progress,
        )  # fmt: skip
    read_tokens = [
        {
            "recovery": tokens_of(method.recovered.get(name)),
            "learning": tokens_of(history),
        }
        for name, history in zip(course.names, course.histories, strict=True)
    ]
    return {
        **courses.told(course),
        "begun": method.begun,
        "tokens": read_tokens,
        "flops": flops([each["per_token"] for each in method.begun], read_tokens),
        "grown": {name: asdict(difference) for name, difference in method.grown.items()},
        "misled": {shown: [list(row) for row in zip(*by, strict=True)] for shown, by in misled.found.items()},
    }


def tokens_of(history: Any) -> int:
    """Tokens that a run read, 0 of none."""
    return history.steps[-1]["tokens"] if history is not None else 0


def flops(per_token: Sequence[int], tokens: Sequence[Mapping[str, int]]) -> list[int]:
    """Floating-point operations of training up to the end of each domain."""
    return list(accumulate(each * sum(read.values()) for each, read in zip(per_token, tokens, strict=True)))


# ---------------------------------------------------------------------- what rows say
def table(lab: Lab, scale: str) -> dict[tuple[str, int], Row]:
    """The rows of the grid: recorded, or computed where this scale has no records."""
    asked = grid(scale, device=lab.card)
    return dict(zip(asked, pool.rows(lab, [(run, (s, True)) for s in asked.values()]), strict=True))


def so_far(row: Row) -> list[float]:
    """Mean loss of the domains seen by the end of each, the curve that goes with `flops`."""
    loss = row.values["loss"]
    return [sum(loss[i][place] for i in range(place + 1)) / (place + 1) for place in range(len(loss))]


def broken(row: Row) -> list[float]:
    """Of each domain but the first: rise of the mean loss of those seen by growth and recovery before it."""
    loss = row.values["loss"]
    return [
        sum(now - loss[i][place - 1] for i, now in enumerate(begun["seen"])) / place
        for place, begun in enumerate(row.values["begun"])
        if place
    ]


def misled(row: Row, shown: str) -> float | None:
    """Rise of the mean loss at the end where the prompt in front is wrong, or none; None without prompts."""
    if shown not in row.values["misled"]:
        return None
    ends = [own[-1] for own in row.values["misled"][shown]]
    return sum(ends) / len(ends) - courses.course(row).average


QUANTITIES: dict[str, tuple[Callable[[Row], float | None], str]] = {
    "average": (lambda row: courses.course(row).average, "nats/token"),
    "forgetting": (lambda row: courses.course(row).forgetting, "nats/token"),
    "learned": (lambda row: courses.course(row).learned, "nats/token"),
    "general": (lambda row: row.values["general"][-1], "nats/token"),
    "flops": (lambda row: row.values["flops"][-1] / 1e12, "TFLOP"),
    "parameters": (lambda row: float(row.values["begun"][-1]["parameters"]), "parameters"),
    "broken": (lambda row: mean(broken(row)), "nats/token"),
    "divergence": (
        lambda row: mean([each["divergence"] for each in row.values["grown"].values()]),
        "nats",
    ),
    "logits": (lambda row: max((each["logits"] for each in row.values["grown"].values()), default=None), ""),
    "wrong": (lambda row: misled(row, "wrong"), "nats/token"),
    "none": (lambda row: misled(row, "none"), "nats/token"),
}
"""By name: of a row, and its unit. broken: means over growths; wrong, none: rises by such a prompt."""


def mean(found: Sequence[float]) -> float | None:
    return math.fsum(found) / len(found) if found else None


def of(rows: Mapping[tuple[str, int], Row], arm: str, quantity: str) -> list[float]:
    """A quantity of an arm, one number a seed; empty where the arm has none."""
    read_off, _ = QUANTITIES[quantity]
    each = [read_off(row) for (name, _), row in rows.items() if name == arm]
    return [x for x in each if x is not None]


def results(store: Store, scale: str) -> dict[str, Result]:
    """Means over seeds: `growing.depth.average`, `growing.width, not recovered.divergence`."""
    if scale not in budget.SCALES:
        return {}
    asked = grid(scale)
    found = {key: store.find(STUDY, VERSION, s, recorded=True) for key, s in asked.items()}
    rows = {key: row for key, row in found.items() if row is not None}
    if len(rows) < len(asked):
        return {}
    first = {name: row for (name, _), row in reversed(rows.items())}
    numbers: dict[str, tuple[float | int, str, Row]] = {
        "growing.seeds": (len(sizes(scale).seeds), "seeds", first["plain"]),
        "growing.rate": (sizes(scale).base.learning_rate, "", first["plain"]),
    }
    for name in arms(scale):
        for quantity, (_, unit) in QUANTITIES.items():
            if (value := mean(of(rows, name, quantity))) is not None:
                numbers[f"growing.{name}.{quantity}"] = (value, unit, first[name])
    return told(numbers)
