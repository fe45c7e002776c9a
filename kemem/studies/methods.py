"""Part 3's editors by name: what is tried of each, as often as of every other, and how each takes many requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from filelock import FileLock

from kemem import editing
from kemem.editing import EMMET, MEMIT, MEND, PMET, ROME, AlphaEdit, Edit, FineTune, Moments, Networks, Search
from kemem.editing.projections import Projections, projection_moments
from kemem.errors import BadInput
from kemem.runs import digest
from kemem.studies.bench import Bench
from kemem.studies.lab import Lab
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import blocks

Editor = Callable[..., Edit]
FREE = 0.5  # share of a key's directions that AlphaEdit may write in: the published threshold is in a model's own units


@dataclass(frozen=True)
class Method:
    """An editor as this book runs it: the setting that is tried, its values, and how it is made at some layers."""

    setting: str
    values: tuple[float, ...]
    make: Callable[[tuple[int, ...], float, Moments, Search], Editor] | None
    one_by_one: bool = False
    """Published for one request: the next is written into the model as those before have left it."""
    clamps: tuple[float, ...] = ()
    """Of those that set targets: how far a target may move what it is set for, in lengths of it, as tried."""


def _rome(key: str) -> Callable[..., Editor]:
    return lambda layers, x, *_: ROME(layers[-1], Search(steps=20, clamp=x), key)


WEIGHTS = (10.0, 30.0, 100.0, 300.0)
TARGET_CLAMPS = (0.75, 1.0, 1.5, 2.0)
PAIRED = (1.0, 2.0)  # tried with every weight: the two depend on each other
OWN_CLAMPS = (2.0, 6.0)  # PMET's targets are of the feed-forward's output, which is shorter than the stream
CLAMPS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
RATES = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
METHODS: dict[str, Method] = {
    "MEMIT": Method("weight", WEIGHTS, lambda layers, x, _, search: MEMIT(layers, x, search), clamps=PAIRED),
    "PMET": Method(
        "weight", (0.1, 1.0, 10.0, 100.0), lambda layers, x, _, search: PMET(layers, x, own(search)),
        clamps=OWN_CLAMPS,
    ),
    "EMMET": Method(
        "weight", WEIGHTS, lambda layers, x, _, search: EMMET(layers, x, search=search), clamps=PAIRED
    ),
    "AlphaEdit": Method(
        "ridge", (0.1, 1.0, 10.0, 100.0),
        lambda layers, x, moments, search: AlphaEdit(layers, free(moments, layers), x, search),
        clamps=PAIRED,
    ),
    "ROME": Method("clamp", CLAMPS, _rome("as_released"), one_by_one=True),
    "r-ROME": Method("clamp", CLAMPS, _rome("averaged"), one_by_one=True),
    "FT": Method("rate", RATES, lambda layers, x, *_: FineTune.ft(layers[-1], rate=x)),
    "FT-L": Method("radius", tuple(10 * x for x in RATES), lambda layers, x, *_: FineTune.ft_l(layers[-1], x, rate=x)),
    "FT-W": Method("rate", RATES, lambda layers, x, *_: FineTune.ft_w(layers[-1], rate=x)),
    "FT-M": Method("rate", RATES, lambda layers, x, *_: FineTune.ft_m(layers[-1], rate=x)),
    "MEND": Method("network rate", (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3), None),
}  # fmt: skip
"""Of those that set targets four values, each with two clamps of the targets; of every other eight values. MEND's
networks are trained for it: its setting is how fast they learn."""
ATTENTION = "MEMIT, attention"  # of ablations alone: MEMIT written into what attention puts out


def own(search: Search) -> Search:
    """PMET's search, its targets clamped as MEMIT's are."""
    return replace(PMET((1,)).search, clamp=search.clamp)


def free(moments: Moments, layers: Sequence[int]) -> float:
    """The mean square of keys below which the share FREE of all directions of these layers lies."""
    sizes = torch.cat([torch.linalg.eigvalsh(moments[layer].double()) for layer in layers])
    return sizes.quantile(FREE).item()


@dataclass(frozen=True)
class Trained:
    """How MEND's networks are trained, on requests of the tuning part beyond those that settings are chosen on."""

    model: Pretraining
    layers: tuple[int, ...]
    rate: float
    steps: int = 300
    rank: int = 64
    asked: int = 400
    skipped: int = 128
    """Tuning requests, the first ones, that the networks do not see."""
    dtype: str | None = None
    seed: int = 0


def networks(lab: Lab, at: Bench, s: Trained) -> Networks:
    """MEND's networks, trained once for a model and settings, and kept beside the runs."""
    folder = lab.store.live / "work" / "mend" / digest("mend", 1, asdict(s))[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return Networks.load(folder).to(next(at.model.parameters()).device)
        made = Networks.of(at.model, s.layers, rank=s.rank, seed=s.seed)
        requests = at.source.requests(s.asked, s.seed, part="tuning")[s.skipped :]
        text = blocks(lab, s.model.setup, s.model.setup.corpus, "train", limit=200_000)
        told = lab.progress
        editing.train_(
            made, at.model, at.tok, requests, text,
            editing.Training(steps=s.steps, network_rate=s.rate, rates_rate=1e-3, seed=s.seed),
            progress=told and (lambda done, total, message: told(done, total, f"training MEND, {message}")),
        )  # fmt: skip
        made.save(folder)
    return made


def made(
    lab: Lab, at: Bench, name: str, value: float, layers: tuple[int, ...], *, clamp: float = 1.0,
    of: Trained | None = None,
) -> Editor:  # fmt: skip
    """The editor of this name with its setting at a value. clamp: of targets; of: how MEND's networks are trained."""
    if name == ATTENTION:
        if layers not in at.attention:
            at.attention[layers] = projection_moments(at.model, at.rows, layers)
        return Projections(layers, at.attention[layers], value, Search(clamp=clamp))
    method = METHODS[name]
    if method.make is None:
        if of is None:
            raise BadInput("expected how MEND's networks are trained; got nothing; give `Trained` settings.")
        return MEND(networks(lab, at, of))
    layers = at.where.get(name, layers)
    if method.clamps or method.one_by_one:  # what gradients write needs no moments
        at.measure(layers)
    return method.make(layers, value, at.moments, Search(clamp=clamp))
