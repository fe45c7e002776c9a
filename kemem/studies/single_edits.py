"""Chapter 12, single edits: facts that part 3's model knows, written by several editors, the model restored in between.

One row: trials of every method on tuning facts, the chosen ones on reported facts, and two defects switched: the key
that ROME takes, and how MEMIT weighs a key's contexts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kemem import editing, models
from kemem.editing import MEMIT, ROME, Edit, Judge, Request, Search
from kemem.editing.edit import value_deltas
from kemem.editing.finetune import FineTune
from kemem.editing.prompts import Contexts, shares
from kemem.editing.rome import KEYS
from kemem.editing.scores import Scores
from kemem.editing.stepping import Beginning
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import factual
from kemem.studies.association import told
from kemem.studies.bench import Bench, known, opened
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining

STUDY, VERSION = "single_edits", 1
CHAPTER = "12_one_fact"
MEMIT_ONE = "MEMIT, one layer"
SETTING = {
    "ROME": "clamp", "r-ROME": "clamp", MEMIT_ONE: "weight", "MEMIT": "weight", "FT": "rate", "FT-L": "radius",
}  # fmt: skip
"""What is tried of each method, as often as of every other."""
SHOWN = ("S", "ES", "PS", "NS", "NS+", "EM", "PM", "NM", "NM+")
Editor = ROME | MEMIT | FineTune


@dataclass(frozen=True)
class Edits:
    """Single edits of facts that the model knows: trials on tuning facts, what is reported on others."""

    model: Pretraining
    layers: tuple[int, ...] = (0, 1)
    """Written by MEMIT; all that write one layer take the last of them."""
    weights: tuple[float, ...] = (5.0, 50.0, 500.0)
    search: Search = field(default_factory=Search)
    """Of MEMIT's targets; their clamp is tried in chapter 13."""
    clamps: tuple[float, ...] = (1.0, 2.0, 4.0)
    rates: tuple[float, ...] = (5e-4, 1.5e-3, 5e-3)
    radii: tuple[float, ...] = (1e-2, 2e-2, 4e-2)
    asked: tuple[int, int] = (200, 200)
    """Facts of the tuning and of the reported part that the model is asked; those it knows are edited."""
    facts: tuple[int, int] = (12, 24)
    texts: int = 2000
    """Documents over which the second moment of keys is measured."""
    dtype: str | None = None
    seed: int = 0


SIZES: dict[str, dict[str, Any]] = {
    "laptop": {"clamps": (2.0, 4.0, 8.0), "search": Search(clamp=2.0)},
    "smoke": {"weights": (1.0, 10.0, 100.0), "asked": (24, 24), "facts": (3, 4), "texts": 100},
    "gpu": {
        "clamps": (2.0, 4.0, 8.0), "search": Search(clamp=2.0), "rates": (1e-4, 5e-4, 1.5e-3),
        "radii": (1e-3, 5e-3, 2e-2), "facts": (12, 48), "texts": 10_000,
    },
    # as published: one value of each, so that there is nothing to try
    "paper": {
        "clamps": (4.0,), "rates": (5e-4,), "radii": (5e-5,), "asked": (2, 100), "facts": (2, 100), "texts": 4000,
    },
}  # fmt: skip
TRIED = (1.0, 10.0, 100.0)
"""Weights on the laptop; elsewhere as many keys to a memory, unless a scale has its own."""


def settings(
    scale: str, *, seed: int = 0, facts: int | None = None, dtype: str | None = None,
    model: Pretraining | None = None,
) -> Edits:  # fmt: skip
    """facts: how many are reported on, where the scale's number is not wanted. model: the scale's own unless given."""
    model = model or factual.settings(scale, seed=seed)
    sizes = {"weights": factual.weighed(model, TRIED), **SIZES.get(scale, {})}
    found = Edits(model, factual.critical(model), dtype=dtype, seed=seed, **sizes)
    return found if facts is None else replace(found, facts=(found.facts[0], facts))


def trials(s: Edits) -> dict[str, dict[float, Editor]]:
    """Of each method the editors that are tried, by the value of the setting that is tried."""
    one = s.layers[-1]

    def rome(key: str) -> dict[float, Editor]:
        return {x: ROME(alone(s, "ROME"), Search(steps=20, clamp=x), key) for x in s.clamps}

    return {
        "ROME": rome("as_released"),
        "r-ROME": rome("averaged"),
        MEMIT_ONE: {x: MEMIT((one,), x, s.search) for x in s.weights},
        "MEMIT": {x: MEMIT(s.layers, x, s.search) for x in s.weights},
        "FT": {x: FineTune.ft(alone(s, "FT"), rate=x) for x in s.rates},
        "FT-L": {x: FineTune.ft_l(alone(s, "FT-L"), x, rate=x) for x in s.radii},
    }


def alone(s: Edits, name: str) -> int:
    """The layer of an editor that writes one: the highest of MEMIT's, unless it was published with another."""
    return factual.where(s.model).get(name, s.layers)[-1]


def judged(at: Bench, requests: Sequence[Request], make: Callable[[Request], Edit]) -> dict[str, Any]:
    """Scores of single edits, each in the model as it was; the mean size of an update, and seconds it took.

    norm: |Delta| / |W| over the weights that are changed.
    """
    found: dict[str, list[float | None]] = defaultdict(list)
    norms, seconds = [], 0.0
    weights = dict(at.model.named_parameters())
    for r in requests:
        edit = make(r)
        seconds += math.fsum(edit.seconds.values())
        with edit.applied(at.model):
            own = Judge(at.tok, [r], prefixed=True)(at.model)
        for name, (value,) in own.values.items():
            found[name].append(value)
        before = math.hypot(*(weights[name].detach().double().norm().item() for name in edit.deltas), 0.0)
        norms.append(math.hypot(*edit.norms.values(), 0.0) / before if before else 0.0)
    scores = Scores(tuple(r.case_id for r in requests), {n: tuple(v) for n, v in found.items()}).summary()
    return {
        **{name: scores[name] for name in SHOWN},
        "interval": {name: scores["interval"].get(name) for name in SHOWN[1:]},
        "norm": math.fsum(norms) / len(norms), "seconds": seconds / len(requests),
    }  # fmt: skip


def best(found: Mapping[float, Mapping[str, Any]]) -> float:
    """The value with the highest S, and among equals the one whose neighbours keep most of their probability."""
    return max(found, key=lambda x: (found[x]["S"] or 0.0, found[x]["NM"] or 0.0))


def run(lab: Lab, s: Edits) -> Row:
    """The row: every trial on tuning facts, the chosen ones on reported facts, and the two defects switched."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = opened(lab, s.model, s.layers, texts=s.texts, dtype=s.dtype, seed=s.seed)
        provenance["moments"] = {"tokens": at.moments.tokens}
        (tuning, first), (reported, second) = (
            known(at, part, *counts, seed=s.seed)
            for part, *counts in zip(("tuning", "reported"), s.asked, s.facts, strict=True)
        )
        tried, chosen = [], {}
        methods = trials(s)
        for done, (name, editors) in enumerate(methods.items()):
            found = {x: judged(at, tuning, maker(at, editor)) for x, editor in editors.items()}
            chosen[name] = best(found)
            tried += [
                {"method": name, "value": x, "chosen": x == chosen[name], **own} for x, own in found.items()
            ]
            if lab.progress is not None:
                lab.progress(done + 1, len(methods) + 1, f"tried {name}")
        final = {
            name: {"value": x, **judged(at, reported, maker(at, methods[name][x]))}
            for name, x in chosen.items()
        }
        search, one = Search(steps=20, clamp=chosen["ROME"]), methods[MEMIT_ONE][chosen[MEMIT_ONE]]
        memories = Memories(at.model)
        return {
            "known": {"tuning": first, "reported": second}, "memories": memories.count,
            "unedited": judged(at, reported, lambda _: Edit({})), "tried": tried, "methods": final,
            "keys": {key: one_key(at, reported, ROME(alone(s, "ROME"), search, key)) for key in KEYS},
            "contexts": {
                name: judged(at, reported, lambda r, even=even: weighted(at, r, one, even))
                for name, even in (("as released", False), ("as printed", True))
            },
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def maker(at: Bench, editor: Editor) -> Callable[[Request], Edit]:
    """Edits one request; a target is searched for once, and its seconds are those of every edit that takes it."""

    def make(r: Request) -> Edit:
        if isinstance(editor, FineTune):
            return editor(at.model, at.tok, [r])
        layer = editor.layer if isinstance(editor, ROME) else editor.layers[-1]
        name = (r, isinstance(editor, ROME), layer, editor.search)
        z, seconds = at.targets.get(name, (None, 0.0))
        edit = editor(at.model, at.tok, [r], at.moments, templates=at.templates, targets=z)
        if z is None:
            at.targets[name] = edit.notes["targets"], edit.seconds["values"]
            return edit
        return replace(edit, seconds={**edit.seconds, "values": seconds})

    return make


def context_keys(at: Bench, of: Contexts, layer: int) -> Float[Tensor, "P M"]:
    """The keys of a request's subject, a row a context, the bare prompt first; float64."""
    rows = Beginning(Memories(at.model), of.to_subject)
    return rows.coefficients(layer).double()[rows.index]


def one_key(at: Bench, requests: Sequence[Request], editor: ROME) -> dict[str, Any]:
    """ROME with one of its keys: scores, and how much of v* is missing at the bare key and at the mean one."""
    memories = Memories(at.model)
    missing = []

    def make(r: Request) -> Edit:
        edit = maker(at, editor)(r)
        (of,) = editing.contexts(at.tok, [r], at.templates)
        keys = context_keys(at, of, editor.layer)
        both = torch.stack([keys[0], keys.mean(0)], 1)  # [M 2]
        bias = memories.bias(editor.layer)
        goal = edit.notes["targets"][0].double() - (0.0 if bias is None else bias.double())
        before = goal[:, None] - memories.values(editor.layer).double() @ both
        with edit.applied(at.model):
            after = goal[:, None] - memories.values(editor.layer).double() @ both
        missing.append((after.norm(dim=0) / before.norm(dim=0)).tolist())
        return edit

    scores = judged(at, requests, make)
    bare, mean = (math.fsum(part) / len(part) for part in zip(*missing, strict=True))
    return {**scores, "missing": {"bare": bare, "mean": mean}}


def weighted(at: Bench, r: Request, editor: MEMIT, even: bool) -> Edit:
    """MEMIT on its one layer with the key's contexts weighed evenly, as in the paper's eq. 19, or as released."""
    memories, (layer,) = Memories(at.model), editor.layers
    of = editing.contexts(at.tok, [r], at.templates)
    keys = context_keys(at, of[0], layer)
    share = torch.full((len(keys),), 1 / len(keys)).to(keys) if even else shares(len(keys)).to(keys)
    z = maker(at, editor)(r).notes["targets"]
    stream = Beginning(memories, of[0].to_subject[:1]).outputs(layer, torch.tensor([0]))
    lacking = (z - stream).double().T
    delta = editing.closed_form(keys.T @ share[:, None], lacking, at.moments[layer], weight=editor.weight)
    return Edit(value_deltas(memories, {layer: delta}))


def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of the scale's row, by name, where it is finished."""
    row = store.find(STUDY, VERSION, settings(scale)) if scale in factual.SCALES else None
    if row is None:
        return {}
    found: dict[str, tuple[float | int, str, Row]] = {}
    v = row.values
    asked = row.settings["asked"]
    for i, part in enumerate(("tuning", "reported")):
        found[f"single.{part}.known"] = (v["known"][part], "facts", row)
        found[f"single.{part}.asked"] = (asked[i], "facts", row)
        found[f"single.{part}.used"] = (row.settings["facts"][i], "facts", row)
    kinds = {"unedited": v["unedited"], **v["methods"]}
    kinds |= {f"ROME {key}": own for key, own in v["keys"].items()}
    kinds |= {f"contexts {key}": own for key, own in v["contexts"].items()}
    for name, own in kinds.items():
        for score in SHOWN:
            if own[score] is not None:
                found[f"single.{name}.{score}"] = (own[score], "%", row)
        found[f"single.{name}.norm"] = (100 * own["norm"], "%", row)
    for key, own in v["keys"].items():
        for place, missing in own["missing"].items():
            found[f"single.ROME {key}.missing.{place}"] = (100 * missing, "%", row)
    found["single.memories"] = (v["memories"], "memories", row)
    return told(found)
