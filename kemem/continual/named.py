"""Every way of learning domains by its name, with the settings that it has where nobody says otherwise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from kemem.continual.adapters import Adapter
from kemem.continual.bcl import BCL
from kemem.continual.classic import CLASSIC
from kemem.continual.cpt import CPT
from kemem.continual.das import ABLATIONS, DAS, DEFECTS
from kemem.continual.demix import DEMIX
from kemem.continual.distillation import KD
from kemem.continual.elle import ELLE
from kemem.continual.ewc import EWC
from kemem.continual.hat import HAT
from kemem.continual.hat_adapter import HATAdapter
from kemem.continual.importance import Released
from kemem.continual.lora import LoRA
from kemem.continual.prompts import Prompt
from kemem.continual.pruning import AccumulatedGradient, LotteryTicket, Magnitude
from kemem.continual.replay import DERpp, Replay
from kemem.continual.supsup import SupSup
from kemem.errors import BadInput
from kemem.objective import Objective, causal
from kemem.training import Method

LONGEST = 164  # tokens of a row, as in Ke et al. 2023
PROMPT = 100  # of a prompt, there
REDUCTION = 16  # of an adapter, there
SCHEDULES = ("sequence", "one", "pool")
OF_A_RUN = ("steps", "objective", "seed")  # fields of `Given` that methods have as settings


@dataclass(frozen=True)
class Given:
    """What a run knows and methods may need.

    steps: of one domain. context: tokens that the model can read. width: of the model; 0 where it is not known.
    """

    steps: int
    context: int
    objective: Objective = causal
    seed: int = 0
    width: int = 0


def _nothing(_: Given) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Learner:
    """A method, the settings it begins with, and how it goes through domains.

    schedule: "sequence", "one" (a model for each domain) or "pool" (all of them at once). variants: further settings
    by name. room: the setting that says how many tokens of the context it needs for itself, if it needs any.
    """

    kind: type[Method]
    settings: Callable[[Given], Mapping[str, Any]] = _nothing
    schedule: str = "sequence"
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    room: str = ""

    def names(self) -> dict[str, Any]:
        """The settings that it takes from a run or a reader, with their defaults (MISSING where there is none)."""
        return {f.name: f.default for f in fields(self.kind) if f.init} if is_dataclass(self.kind) else {}

    def plain(self) -> dict[str, int | float | str]:
        """Those that a reader may choose and can type: numbers or texts that are not the run's."""
        known = {name: value for name, value in self.names().items() if name not in OF_A_RUN}
        shown = {f.name for f in fields(self.kind) if f.repr} if is_dataclass(self.kind) else set()
        return {n: value for n, value in known.items() if isinstance(value, int | float | str) and n in shown}


def _prompt(given: Given) -> dict[str, Any]:
    return {"tokens": min(PROMPT, given.context // 4)}


def _reduced(given: Given, **others: Any) -> dict[str, Any]:
    return {"reduction": min(REDUCTION, given.width or REDUCTION), **others}


IMPORTANCES: dict[str, Callable[[Given], Any]] = {
    "magnitude": lambda given: Magnitude(),
    "gradient": lambda given: AccumulatedGradient(objective=given.objective),
    "lottery": lambda given: LotteryTicket(objective=given.objective, seed=given.seed),
}
"""Importances of units from pruning, which may stand in for DAS's own."""
LEARNERS: dict[str, Learner] = {
    "ncl": Learner(Method),
    "one": Learner(Method, schedule="one"),
    "pool": Learner(Method, schedule="pool"),
    "ewc": Learner(EWC),
    "kd": Learner(KD),
    "replay": Learner(Replay),
    "derpp": Learner(DERpp),
    "hat": Learner(HAT),
    "hat-all": Learner(HAT, lambda _: {"evaluate": "all"}),
    "hat-adapter": Learner(HATAdapter, _reduced),
    "supsup": Learner(SupSup),
    "adapter-sequential": Learner(Adapter, lambda given: _reduced(given, placement="sequential")),
    "adapter-parallel": Learner(Adapter, lambda given: _reduced(given, placement="parallel")),
    "prompt": Learner(Prompt, _prompt, room="tokens"),
    "lora": Learner(LoRA),
    "demix": Learner(DEMIX, _reduced),
    "bcl": Learner(BCL, _reduced),
    "classic": Learner(CLASSIC, _reduced),
    "cpt": Learner(CPT),
    "elle": Learner(ELLE, lambda given: {"blocks": 1, "recovery_steps": max(1, given.steps // 5)}),
    "das": Learner(
        DAS, variants={
            **{name.replace(" ", "-"): changes for name, changes in {**ABLATIONS, **DEFECTS}.items()},
            "as-released": {
                **DEFECTS["absolute"], **DEFECTS["gradient"],
                "released": Released(**{f.name: True for f in fields(Released)}),
            },
        },
    ),
}  # fmt: skip


def learner(name: str, variant: str = "") -> Learner:
    """The learner of this name. Refused: an unknown one, or a variant that it does not have; the known are listed."""
    if name not in LEARNERS:
        raise BadInput(f"expected a method, one of {', '.join(LEARNERS)}; got {name!r}; choose one of these.")
    found = LEARNERS[name]
    if variant and variant not in found.variants:
        known = f"one of {', '.join(found.variants)}" if found.variants else "none, for it has no variants"
        raise BadInput(f"expected a variant of {name}, {known}; got {variant!r}; change it.")
    return found


def method(name: str, given: Given, *, variant: str = "", **changes: Any) -> Method:
    """A new method of this name. changes: settings in place of those it begins with.

    Refused: what `learner` refuses, and a setting that it does not have.
    """
    found = learner(name, variant)
    known = found.names()
    if strange := [key for key in changes if key not in known]:
        having = ", ".join(found.plain()) or "of which it has none"
        raise BadInput(f"expected settings of {name}, {having}; got {', '.join(strange)}; leave it out.")
    told = {key: getattr(given, key) for key in OF_A_RUN if key in known}
    settings = {**told, **found.settings(given), **found.variants.get(variant, {}), **changes}
    importance = settings.get("importance")
    if isinstance(importance, str) and importance != known["importance"] and importance != "random":
        if importance not in IMPORTANCES:
            several = ", ".join((known["importance"], "random", *IMPORTANCES))
            raise BadInput(f"expected an importance of {several}; got {importance!r}; choose one of these.")
        settings["importance"] = IMPORTANCES[importance](given)
    return found.kind(**settings)


def settings_of(made: Method) -> dict[str, int | float | str]:
    """The settings of a method, but for the objective; those that are no numbers or texts as Python writes them."""
    own = fields(made) if is_dataclass(made) else ()
    values = {f.name: getattr(made, f.name) for f in own if f.init and f.repr and f.name != "objective"}
    return {n: value if isinstance(value, int | float | str) else repr(value) for n, value in values.items()}


def available(name: str, given: Given, **changes: Any) -> int:
    """Tokens of the context that the method leaves for text. Refused: fewer than two."""
    found = learner(name)
    room = {**found.settings(given), **changes}.get(found.room, 0)
    if given.context - room < 2:
        raise BadInput(
            f"expected a context with room for text beside {name}; got {given.context} tokens, of which it takes "
            f"{room}; take a longer one."
        )
    return given.context - room


def length(name: str, given: Given, **changes: Any) -> int:
    """Tokens of a row: as many as in the paper, or what the context leaves where that is less."""
    return min(LONGEST, available(name, given, **changes))


def valued(name: str, key: str, text: str) -> int | float | str | bool:
    """A setting's value from a text, of the kind that its default is of. Refused: a text that is no such value."""
    known = learner(name).plain()
    if key not in known:
        raise BadInput(
            f"expected a setting of {name}, one of {', '.join(known) or 'none'}; got {key!r}; leave it out."
        )
    default, kinds = known[key], _kinds(name, key)
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise _unlike(name, key, "true or false", text)
        return text.lower() == "true"
    if "int" in kinds and re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    if "float" in kinds:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    if "str" in kinds:
        return text
    raise _unlike(name, key, "a number" if "float" in kinds else "a whole number", text)


def _kinds(name: str, key: str) -> set[str]:
    """Which kinds of values a setting is declared to take."""
    (declared,) = (f.type for f in fields(learner(name).kind) if f.name == key)  # type: ignore[arg-type]
    return {part.strip() for part in str(getattr(declared, "__name__", declared)).split("|")}


def _unlike(name: str, key: str, kind: str, text: str) -> BadInput:
    return BadInput(f"expected {key} of {name} to be {kind}; got {text!r}; correct it.")
