"""Chapter 15: are the memories that answer to a fact, or that it was written to, those without which it is gone?

`kemem.studies.silencing` asks facts that nothing was chosen by. Here those are asked that chose: each fact by its own
key, beside another fact; and facts that MEMIT has rewritten, by the change itself. One row, of one stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kemem import editing, entropy, evaluation, models
from kemem.editing import Edit, Request
from kemem.editing.edit import value_deltas
from kemem.editing.places import leading
from kemem.memory import Memories
from kemem.objective import mix
from kemem.runs import Row
from kemem.studies import agreement, findings, many
from kemem.studies.bench import Bench
from kemem.studies.checkpointed import MIXTURE, Compared, Stages
from kemem.studies.critique import bare_keys
from kemem.studies.editability import Setting, mean
from kemem.studies.silencing import LEAST, RANDOM, WAYS, means, relative, silenced

STUDY, VERSION = "fact_silencing", 1
UNWRITTEN, ALONE = "change taken out", "change left alone"
"""What else is done to memories of an edited layer: their values as before the edit, or all the others'."""

Lost = dict[str, float]
Each = dict[str, list[float]]


@dataclass(frozen=True)
class Asked:
    """One stage, how its facts are rewritten, and the share of a layer's memories that is silenced."""

    of: Compared
    step: int
    setting: Setting
    share: float = 0.1
    seed: int = 0


class Say:
    """Facts laid out once: how likely a model is to say each object, and whether it does."""

    def __init__(self, tok: Any, facts: Sequence[Request]) -> None:
        self.tok, self.facts = tok, facts
        pairs = [(r.text, f" {r.new}") for r in facts]
        self.spans = evaluation.encode_all(tok, pairs, start=leading(tok))
        self.targets = evaluation.Targets(self.spans)

    def __call__(self, model: nn.Module) -> Lost:
        """said: the share of the facts whose object the model goes on with; nats: mean log-probability of objects."""
        said = editing.generated_success(model, self.tok, self.facts)
        return {"said": sum(said) / len(said), "nats": float(self.targets(model, mean=False).mean())}


def run(stages: Stages, s: Asked, recorded: bool = False) -> Row:
    """The row: of known facts what each loses by way and set, of rewritten ones what is left; lists over draws."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        stages.say(provenance)
        at = stages.bench(s.step)
        texts = stages.rows(MIXTURE)[:-1]
        read = [entropy.measure(at.model, t, length=t.length, next_token=False).usage.cpu() for t in texts]
        fills = [means(at.model, t) for t in texts]
        draws = stages.drawn()
        known: dict[str, dict[str, list[dict[str, Each]]]] = {way: {} for way in WAYS}
        rewritten: list[dict[str, Any]] = []
        for draw, facts in enumerate(draws):
            seed = mix(s.seed, draw) >> 1
            for way, sets in looked_up(at, facts, read[draw], fills[draw], s.share, seed).items():
                for name, lost in sets.items():
                    known[way].setdefault(name, []).append(lost)
            rewritten.append(written(at, facts, s.setting, read[draw], fills[draw], s.share, seed))
            if stages.lab.progress is not None:
                stages.lab.progress(draw + 1, len(draws), f"facts silenced at step {s.step}")
        return {"facts": sum(map(len, draws)), "known": known, "rewritten": rewritten}

    place = models.named_device(stages.lab.device).type
    return stages.lab.store.row(STUDY, VERSION, s, compute, recorded=recorded, device=place)


# ---------------------------------------------------------------------- facts that the model knows
def looked_up(
    at: Bench,
    facts: Sequence[Request],
    usage: Float[Tensor, "L M"],
    fill: Float[Tensor, "L M"],
    share: float,
    seed: int,
) -> dict[str, dict[str, dict[str, Each]]]:
    """By way and set what each fact loses without its own memories (`own`), and the next fact by the same (`other`).

    nats: of the true object. said: 1 where it is no longer said, 0 where it still is.
    """
    right = [replace(r, new=r.true or r.new) for r in facts]
    sets = by_fact(at, facts, usage, share, seed)
    asks = [Say(at.tok, [own]) for own in right]
    before = [ask(at.model) for ask in asks]
    found: dict[str, dict[str, dict[str, Each]]] = {}
    for way, value in zip(WAYS, (None, fill), strict=True):
        found[way] = {}
        for name, masks in sets.items():
            lost: dict[str, Each] = {whose: {"said": [], "nats": []} for whose in ("own", "other")}
            for number, which in enumerate(masks):
                following = (number + 1) % len(facts)
                with silenced(at.model, which, value):
                    for whose, asked in (("own", number), ("other", following)):
                        now = asks[asked](at.model)
                        for key, what in now.items():
                            lost[whose][key].append(before[asked][key] - what)
            found[way][name] = lost
    return found


def by_fact(
    at: Bench, facts: Sequence[Request], usage: Float[Tensor, "L M"], share: float, seed: int
) -> dict[str, Bool[Tensor, "N L M"]]:
    """For each fact what of every layer is silenced.

    key: the top of |k|, its key. key / usage: of what is special to it. update: of the columns that MEMIT would write
    for it by itself: of one fact the change is r (lambda C + k k^T)^-1 k, which is C^-1 k but for its length. usage,
    random: the same number of memories, chosen by nothing of the fact.
    """
    layers = range(len(usage))
    keys = torch.stack([bare_keys(at, facts, layer).cpu() for layer in layers])  # [L N M]
    moments = torch.stack([at.moments[layer].cpu() for layer in layers])
    key = keys.abs().transpose(0, 1)  # [N L M]
    update = torch.linalg.solve(moments, keys.mT).mT.abs().transpose(0, 1)
    dealt = torch.rand(key.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = {
        "key": key, "key / usage": relative(key) / relative(usage), "update": update,
        "usage": usage.expand_as(key), RANDOM: dealt,
    }  # fmt: skip
    return {name: agreement.top(own, share) for name, own in scores.items()}


# ---------------------------------------------------------------------- facts that were rewritten
def written(
    at: Bench,
    facts: Sequence[Request],
    setting: Setting,
    usage: Float[Tensor, "L M"],
    fill: Float[Tensor, "L M"],
    share: float,
    seed: int,
) -> dict[str, Any]:
    """One draw of facts rewritten by MEMIT, and what is left of it without the top of the layers it wrote to.

    before, after: of the edit, the new objects said and their nats. left: by way and set the same afterwards. held:
    the share of update times key, the length of what each changed column adds at the subjects, that lies in a set.
    """
    new, memories = Say(at.tok, facts), Memories(at.model)
    before = new(at.model)
    edit = many.write(at, "MEMIT", setting.editor(), facts)
    deltas = changes(at.model, edit, setting.layers)
    layers = torch.tensor(setting.layers)
    key = torch.stack([bare_keys(at, facts, layer).abs().mean(0).cpu() for layer in setting.layers])
    update = torch.stack([deltas[layer].norm(dim=0).cpu() for layer in setting.layers])
    dealt = torch.rand(key.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = {
        "update": update, "written": update * key, "key": key, "usage": usage[layers], LEAST: -usage[layers],
        RANDOM: dealt,
    }  # fmt: skip
    left: dict[str, dict[str, Lost]] = {way: {} for way in (*WAYS, UNWRITTEN, ALONE)}
    held = {}
    for name, own in scores.items():
        which = torch.zeros(usage.shape, dtype=torch.bool)
        which[layers] = agreement.top(own, share)
        for way, value in zip(WAYS, (None, fill), strict=True):
            left[way][name] = within(at.model, new, edit.applied, partial(silenced, which=which, fill=value))
        for way, kept in ((UNWRITTEN, ~which), (ALONE, which)):
            part = {layer: delta * kept[layer].to(delta.device) for layer, delta in deltas.items()}
            left[way][name] = within(at.model, new, Edit(value_deltas(memories, part)).applied)
        held[name] = float((scores["written"] * which[layers]).sum() / scores["written"].sum())
    return {"before": before, "after": within(at.model, new, edit.applied), "left": left, "held": held}


def changes(model: nn.Module, edit: Edit, layers: Sequence[int]) -> dict[int, Float[Tensor, "D M"]]:
    """What an edit adds to the values of some layers, in float64."""
    memories = Memories(model)
    before = {layer: memories.values(layer).double().clone() for layer in layers}
    with edit.applied(model):
        return {layer: memories.values(layer).double() - own for layer, own in before.items()}


def within(model: nn.Module, ask: Say, *changed: Callable[[nn.Module], Any]) -> Lost:
    """What is asked of a model while all of these are so."""
    with ExitStack() as stack:
        for change in changed:
            stack.enter_context(change(model))
        return ask(model)


# ---------------------------------------------------------------------- read off a row
def lost(row: Row, way: str, name: str, whose: str, key: str) -> list[float]:
    """Of known facts, one after another."""
    return [value for draw in row.values["known"][way][name] for value in draw[whose][key]]


def more(row: Row, way: str, name: str, key: str = "said", *, draws: bool = False) -> findings.Change:
    """By how much more a fact loses without its own memories than without another's, with an interval over facts.

    What is taken from `other[i]` are the memories of fact i, and the fact is the next one of its draw.
    draws: over draws of facts instead, the mean of each.
    """
    each = [
        [own - draw["other"][key][i - 1] for i, own in enumerate(draw["own"][key])]
        for draw in row.values["known"][way][name]
    ]
    return findings.change([mean(own) for own in each] if draws else [v for own in each for v in own])


def left(row: Row, way: str, name: str, key: str) -> list[float]:
    """Of rewritten facts, by draw."""
    return [own["left"][way][name][key] for own in row.values["rewritten"]]


def numbers(when: str, row: Row) -> dict[str, tuple[float, str, Row]]:
    """`fact.*`: what facts lose without their own memories; `rewritten.*`: what is said of them after an edit."""
    found: dict[str, tuple[float, str, Row]] = {}
    for way, sets in row.values["known"].items():
        for name in sets:
            for whose in ("own", "other"):
                said, nats = (mean(lost(row, way, name, whose, key)) for key in ("said", "nats"))
                found[f"fact.{when}.{way}.{name}.{whose}"] = 100 * said, "%", row
                found[f"fact.{when}.{way}.{name}.{whose}.nats"] = nats, "nats", row
            for over, gap in (("", more(row, way, name)), (".draws", more(row, way, name, draws=True))):
                for key, value in (("", gap.mean), (".low", gap.low), (".high", gap.high)):
                    if value is not None:
                        found[f"fact.{when}.{way}.{name}.more{over}{key}"] = 100 * value, "points", row
    draws = row.values["rewritten"]
    for state in ("before", "after"):
        found[f"rewritten.{when}.{state}"] = (
            100 * mean([own[state]["said"] for own in draws]),
            "%",
            row,
        )
    for way, sets in draws[0]["left"].items():
        for name in sets:
            said = mean(left(row, way, name, "said"))
            found[f"rewritten.{when}.{way}.{name}"] = 100 * said, "%", row
    for name in draws[0]["held"]:
        share = mean([own["held"][name] for own in draws])
        found[f"rewritten.{when}.{name}.held"] = 100 * share, "%", row
    return found
