"""Chapter 09: importances of units by DAS, on the text of each domain and from shares of it, and masks made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch

from kemem.continual import Units
from kemem.continual.gates import SITES
from kemem.continual.importance import Measuring, domain_importance, general_importance, normalised
from kemem.objective import mix
from kemem.runs import Row, Store
from kemem.studies import looking
from kemem.studies.lab import Lab, Result
from kemem.studies.looking import HOW, MODELS, Looking, mean, opened, rounded, seeds, settings
from kemem.studies.nulls import beaten, cosine, differing, likeness, within

CHAPTER = "09_das"
IMPORTANCE, SHARES = "unit_importance", "unit_shares"
VERSION = 1
ROWS = dict.fromkeys((IMPORTANCE, SHARES), VERSION)

PROXIES = ("general", "domain")


@dataclass(frozen=True)
class Measured(Looking):
    """Importances on the text of every domain, all of the same model. samples: rows of each that are read."""

    samples: int = 200
    draws: int = 2000
    """Of scores shuffled within their layers."""
    sized: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"rows": 12, "samples": 6, "draws": 50},
        "gpu": {"rows": 400, "samples": 200},
        "paper": {"rows": 10_000, "samples": 1000},
    }


@dataclass(frozen=True)
class Shared(Looking):
    """Importances on the first domain from shares of its rows, and from all."""

    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    sized: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"rows": 12, "shares": (0.25, 0.5)},
        "gpu": {"rows": 300},
        "paper": {"rows": 10_000},
    }


# ---------------------------------------------------------------------- importances side by side
def importance(lab: Lab, s: Measured, recorded: bool = False) -> Row:
    """The row of importances of one model and seed: for general knowledge and for each domain, on its text."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = opened(lab, s, provenance)
        how = Measuring(s.samples, seed=s.seed)
        found = {
            "general": [general_importance(at.model, held.train, how=how) for held in at.domains],
            "domain": [domain_importance(at.model, held.train, at.goal, how) for held in at.domains],
        }
        generator = torch.Generator().manual_seed(mix(s.seed, 1) >> 1)
        return {
            "names": [held.name for held in at.domains],
            "texts": len(how.rows(min(len(held.train) for held in at.domains))),
            "heads": {proxy: [units.heads.tolist() for units in each] for proxy, each in found.items()},
            "likeness": {
                proxy: {site: likeness(each, site) for site in SITES} for proxy, each in found.items()
            },
            "shuffled": {
                proxy: beaten([units.heads.cpu() for units in each], s.draws, generator)
                for proxy, each in found.items()
            },
            "spared": spared([*found["general"], *found["domain"]]),
            "example": rounded(found["general"][0].output[-1]),
        }

    return looking.row(lab, IMPORTANCE, VERSION, s, compute, recorded=recorded)


def spared(found: Sequence[Units]) -> dict[str, dict[str, dict[str, float]]]:
    """Normalisation -> site -> what masks are like on the same scores, mean over all of them.

    below, above: mean mask of the units below and above their layer's mean importance. wrong: of the sum of all masks
    the share that lies on units below. rank: correlation of importance and mask within layers.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for how in HOW:
        for site in SITES:
            each = []
            for units in found:
                raw, mask = getattr(units, site), getattr(normalised(units, how), site)
                less = raw < raw.mean(-1, keepdim=True)
                total = float(mask.sum())
                each.append(
                    {
                        "mean": float(mask.mean()),
                        "below": float(mask[less].mean()) if less.any() else 0.0,
                        "above": float(mask[~less].mean()),
                        "wrong": float(mask[less].sum()) / total if total else 0.0,
                        "rank": within(raw.cpu(), mask.cpu()),
                    }
                )
            table.setdefault(how, {})[site] = {key: mean(one[key] for one in each) for key in each[0]}
    return table


def importances(lab: Lab, *, masked: bool) -> list[Row]:
    """The rows at all seeds."""
    return [
        importance(lab, settings(Measured, lab.scale, masked=masked, seed=seed, device=lab.card), True)
        for seed in seeds(lab.scale)
    ]


def alike(store: Store, scale: str, *, masked: bool = True) -> list[dict[str, float]]:
    """For claim das.12, of every seed: how alike the heads' importances for general knowledge are over domains.

    raw, paper_abs, tanh_clip: mean cosine; NAME, unrelated: of unrelated scores; NAME, more: the difference. rank: the
    mean rank correlation within layers. Empty where a row is missing; nothing is computed.
    """
    if scale not in looking.SCALES:
        return []
    asked = [settings(Measured, scale, masked=masked, seed=seed) for seed in seeds(scale)]
    rows = [store.find(IMPORTANCE, VERSION, s, recorded=True) for s in asked]
    if None in rows:
        return []
    return [differing(row.values["likeness"]["general"]["heads"]) for row in rows if row is not None]


def again(rows: Sequence[Row], proxy: str = "general") -> float:
    """Mean cosine of two measurements on the text of one domain, other rows and other dropout: the most to be had.

    Of raw heads, over domains and pairs of seeds. 1 where there is one seed.
    """
    each = [[torch.tensor(heads) for heads in row.values["heads"][proxy]] for row in rows]
    pairs = [cosine(a, b) for one, two in combinations(each, 2) for a, b in zip(one, two, strict=True)]
    return mean(pairs) if pairs else 1.0


# ---------------------------------------------------------------------- from a share of the rows
def share(lab: Lab, s: Shared, recorded: bool = False) -> Row:
    """How well importance from a share of a domain's rows orders the units as that from all rows does."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = opened(lab, s, provenance, count=1)
        data = at.domains[0].train

        def measured(proxy: str, samples: float, number: int) -> Units:
            how = Measuring(samples, seed=mix(s.seed, number))
            if proxy == "general":
                return general_importance(at.model, data, how=how)
            return domain_importance(at.model, data, at.goal, how)

        ranks: dict[str, dict[str, list[float]]] = {}
        for proxy in PROXIES:
            whole = measured(proxy, 1.0, 0)
            parts = [measured(proxy, part, number) for number, part in enumerate(s.shares, 1)]
            ranks[proxy] = {
                site: [within(getattr(part, site).cpu(), getattr(whole, site).cpu()) for part in parts]
                for site in SITES
            }
        texts = [len(Measuring(part).rows(len(data))) for part in s.shares]
        return {"rows": len(data), "texts": texts, "ranks": ranks}

    return looking.row(lab, SHARES, VERSION, s, compute, recorded=recorded)


def shares(lab: Lab, *, masked: bool) -> list[Row]:
    return [
        share(lab, settings(Shared, lab.scale, masked=masked, seed=seed, device=lab.card), True)
        for seed in seeds(lab.scale)
    ]


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of chapter 09: `units.masked.general.heads.raw`, `units.masked.mask.rank.wrong`, and so on."""
    if scale not in looking.SCALES:
        return {}
    found: dict[str, Result] = {}
    for name, masked in MODELS.items():
        found |= _likeness(store, scale, name, masked)
    return found


def _likeness(store: Store, scale: str, name: str, masked: bool) -> dict[str, Result]:
    """Means over seeds of what `alike` has, of the other sites and of the shares of rows."""
    found: dict[str, Result] = {}
    asked = [settings(Measured, scale, masked=masked, seed=seed) for seed in seeds(scale)]
    rows = [row for s in asked if (row := store.find(IMPORTANCE, VERSION, s, recorded=True))]
    if len(rows) == len(asked):
        origin = looking.origin(rows[0])
        for proxy in PROXIES:
            for site in SITES:
                each = [differing(row.values["likeness"][proxy][site]) for row in rows]
                for key in each[0]:
                    value = mean(one[key] for one in each)
                    found[f"units.{name}.{proxy}.{site}.{key}"] = Result(value, "", origin)
            found[f"units.{name}.{proxy}.again"] = Result(again(rows, proxy), "", origin)
        for how in HOW:
            for key in rows[0].values["spared"][how]["output"]:
                value = mean(row.values["spared"][how][site][key] for row in rows for site in SITES)
                found[f"units.{name}.mask.{how}.{key}"] = Result(value, "", origin)
        found["units.seeds"] = Result(len(rows), "", origin)
        found["units.texts"] = Result(rows[0].values["texts"], "", origin)
    asked_shares = [settings(Shared, scale, masked=masked, seed=seed) for seed in seeds(scale)]
    parts = [row for s in asked_shares if (row := store.find(SHARES, VERSION, s, recorded=True))]
    if len(parts) == len(asked_shares):
        for i, part in enumerate(asked_shares[0].shares):
            for proxy in PROXIES:
                for site in SITES:
                    value = mean(row.values["ranks"][proxy][site][i] for row in parts)
                    key = f"units.{name}.share.{part:g}.{proxy}.{site}"
                    found[key] = Result(value, "", looking.origin(parts[0]))
    return found
