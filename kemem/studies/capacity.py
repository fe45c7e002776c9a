"""Chapter 13, capacity: what a layer can still take up as facts grow in number, from its keys alone and as measured.

One row: of the first n facts that the model knows, for a grid of n up to all, which share of what they lack the ridge
solution leaves unwritten. Another checks MEMIT as a reader has written it out, against the editor itself.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kemem import editing, models
from kemem.editing import MEMIT, Moments, Search, effective_rank
from kemem.editing.edit import Edit, value_deltas
from kemem.editing.memit import spread
from kemem.editing.moments import invertible
from kemem.editing.prompts import Contexts
from kemem.editing.stepping import Beginning
from kemem.memory import Memories
from kemem.runs import Row
from kemem.studies import many
from kemem.studies.association import relative
from kemem.studies.many import Benches, Many

STUDY, VERSION = "capacity", 1
ALGORITHM = "algorithm"
CHAPTER = "13_thousands"
ROWS = {STUDY: VERSION, ALGORITHM: VERSION}
Written = Callable[
    [Memories, Sequence[Contexts], Tensor, tuple[int, ...], float, Moments], Mapping[int, Tensor]
]
"""MEMIT written out: (memories, contexts, z [N D], layers, weight, moments) -> what each layer's values get added."""


@dataclass(frozen=True)
class Capacity:
    """Counts of facts below all that are known, which are added; of few, as many blocks as score `least` of them."""

    of: Many
    """Model, layers, weight, clamp and draw of facts, as of a row of MEMIT. Its own count is not looked at."""
    counts: tuple[int, ...]
    weights: tuple[float, ...]
    """At which unwritten shares are told, beside that of `of`."""
    least: int = 64
    most: int | None = None
    """Facts at most; None: all that the model knows."""
    seed: int = 0


@dataclass(frozen=True)
class Algorithm:
    """MEMIT by a reader's own function on the first `of.count` facts, in float64; `source` is a digest of its text."""

    of: Many
    source: str
    seed: int = 0


def editor(s: Many) -> MEMIT:
    return MEMIT(s.layers, s.value, Search(clamp=s.clamp))


def blocks_of(count: int, least: int) -> int:
    """How many blocks of `count` facts it takes to have `least` of them."""
    return max(1, math.ceil(least / count))


def up_to(counts: Sequence[int], known: int, least: int) -> list[int]:
    """Those counts for which enough facts are known, and all known ones as the last."""
    return [n for n in counts if n < known and n * blocks_of(n, least) <= known] + [known]


# ---------------------------------------------------------------------- from the keys alone
def dimension(keys: Float[Tensor, "M N"], moment: Float[Tensor, "M M"], weight: float) -> float:
    """tr K^T (lambda C + K K^T)^-1 K = sum_i e_i / (e_i + lambda), e_i the eigenvalues of K^T C^-1 K.

    How many directions the update can write freely in, between 0 and min(N, M): the N facts share it, so that
    1 - dimension / N of what they lack stays unwritten on average.
    """
    return _taken(_sizes(keys, moment), weight)


def _taken(sizes: Tensor, weight: float) -> float:
    return (sizes / (sizes + weight)).sum().item()


def _sizes(keys: Tensor, moment: Tensor) -> Float[Tensor, " R"]:
    """The eigenvalues of K^T C^-1 K that can be above 0."""
    lower = torch.linalg.cholesky(moment.double())
    G = torch.linalg.solve_triangular(lower, keys.double(), upper=False)  # keys with C whitened away
    return torch.linalg.eigvalsh(G.T @ G if G.shape[1] < G.shape[0] else G @ G.T).clamp(min=0)


def isotropic(count: int, memories: int, weight: float, size: float = 1.0) -> float:
    """The unwritten share of keys without any structure, of which nothing but number and length is known.

    Leave one key out: what it misses is 1 / (1 + k^T (lambda C + K' K'^T)^-1 k), where K' are the others. For keys
    that point anywhere, once C is whitened away, that quadratic form is near its mean, so that the share u solves
        u = 1 / (1 + g (M - (N - 1)(1 - u)) / lambda).
    size: g = k^T C^-1 k / M, which is 1 for ordinary keys. Exact for N = 1; as lambda vanishes 0 up to N = M, and
    1 - M / N beyond.
    """
    a, others = size / weight, count - 1
    b = 1 + a * (memories - others)
    root = math.sqrt(b * b + 4 * a * others)
    return 2 / (b + root) if b > 0 else (root - b) / (2 * a * others)


def whole(shares: Sequence[float]) -> float:
    """What all layers together leave, lowest first, if each leaves `shares` of its part and none disturbs the next.

    Layer i of L is asked for 1 / (L - i) of what is lacking there: prod_i (1 - (1 - u_i) / (L - i)).
    """
    return math.prod(1 - (1 - u) / (len(shares) - i) for i, u in enumerate(shares))


# ---------------------------------------------------------------------- in the model
@dataclass
class Seen:
    """What a sweep through the layers saw: keys and, at each layer, what was lacking above the highest one."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    lacking: dict[int, Tensor] = field(default_factory=dict)
    deltas: dict[int, Tensor] = field(default_factory=dict)


def swept(
    memories: Memories, of: Sequence[Contexts], z: Tensor, s: Many, moments: Moments, *, write: bool = True
) -> Seen:
    """MEMIT's sweep, looked at; write=False leaves every layer as it is."""
    seen = Seen()

    def solve(layer: int, K: Tensor, R: Tensor) -> Tensor:
        seen.keys[layer], seen.lacking[layer] = K, R * (len(s.layers) - len(seen.lacking))
        if not write:
            return torch.zeros(len(R), len(K), dtype=R.dtype, device=R.device)
        return editing.closed_form(K, R, moments[layer], weight=s.value)

    seen.deltas = spread(memories, of, z, s.layers, solve)
    return seen


def lacking(memories: Memories, of: Sequence[Contexts], z: Tensor, layer: int) -> Float[Tensor, "D N"]:
    """What the stream above a layer lacks of z at each bare prompt's subject, by the weights as they are."""
    rows = Beginning(memories, [c.to_subject[0] for c in of])
    return (z - rows.outputs(layer, rows.index)).double().T


def run(benches: Benches, s: Capacity) -> Row:
    """The row: by count of facts, what stays unwritten from keys alone and as measured, and what old keys bear."""
    lab = benches.lab

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = benches.at(s.of)
        invertible(at.moments, s.of.layers)
        provenance["moments"] = {"tokens": at.moments.tokens}
        requests = many.counterfact(at, s.of)[: s.most]
        z, _ = many.targets(at, editor(s.of), requests)
        of, memories = editing.contexts(at.tok, requests, at.templates), Memories(at.model)
        before = swept(memories, of, z, s.of, at.moments, write=False)
        counts = up_to(s.counts, len(requests), s.least)
        points = []
        for done, count in enumerate(counts):
            parts = [slice(b * count, (b + 1) * count) for b in range(blocks_of(count, s.least))]
            found = [
                {**foreseen(before, part, s, at.moments), **measured(memories, of[part], z[part], s, at.moments)}
                for part in parts if part.stop <= len(of)
            ]  # fmt: skip
            points.append({"count": count, "blocks": len(found), **_means(found)})
            if lab.progress is not None:
                lab.progress(done + 1, len(counts), f"capacity, {count} facts")
        return {
            "known": len(requests), "subjects": len({r.subject for r in requests}), "memories": memories.count,
            "width": memories.width, "rank": [effective_rank(at.moments[layer]) for layer in s.of.layers],
            "points": points,
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def foreseen(before: Seen, part: slice, s: Capacity, moments: Moments) -> dict[str, Any]:
    """From the unedited model: by layer the dimension, the share that is left unwritten (also by weight), the length
    and spread of keys; of all layers what is left by keys alone, by keys and residuals, and of keys without structure.
    """
    names = ("dimension", "unwritten", "by_weight", "size", "rank")
    layers: dict[str, list[Any]] = {name: [] for name in names}
    rest = start = before.lacking[s.of.layers[0]][:, part]
    bare = []
    for i, layer in enumerate(s.of.layers):
        K, C = before.keys[layer][:, part], moments[layer]
        M, N = K.shape
        sizes = _sizes(K, C)
        layers["dimension"].append(_taken(sizes, s.of.value))
        layers["unwritten"].append(1 - layers["dimension"][-1] / N)
        layers["by_weight"].append([1 - _taken(sizes, x) / N for x in s.weights])
        layers["size"].append(sizes.sum().item() / N / M)
        layers["rank"].append(effective_rank(K @ K.T))
        bare.append(isotropic(N, M, s.of.value, layers["size"][-1]))
        asked = rest / (len(s.of.layers) - i)
        rest = rest - editing.closed_form(K, asked, C, weight=s.of.value) @ K
    return {
        **layers, "keys": whole(layers["unwritten"]), "isotropic": whole(bare),
        "residuals": (rest.norm() / start.norm()).item(),
    }  # fmt: skip


def measured(
    memories: Memories, of: Sequence[Contexts], z: Tensor, s: Capacity, moments: Moments
) -> dict[str, Any]:
    """After the edit: |z - h| of what it was, and by layer what old keys bear, tr(D C D^T) / tr(W C W^T)."""
    seen = swept(memories, of, z, s.of, moments)
    with Edit(value_deltas(memories, seen.deltas)).applied(memories.model):
        after = lacking(memories, of, z, s.of.layers[-1])
    cost = []
    for layer, delta in seen.deltas.items():
        W, C = memories.values(layer).double(), moments[layer]
        cost.append((((delta @ C) * delta).sum() / ((W @ C) * W).sum()).item())
    before = seen.lacking[s.of.layers[0]]
    return {"left": (after.norm() / before.norm()).item(), "disturbance": cost}


def _means(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each number its mean over blocks, lists place by place."""

    def mean(values: Sequence[Any]) -> Any:
        if isinstance(values[0], list):
            return [mean(own) for own in zip(*values, strict=True)]
        return math.fsum(values) / len(values)

    return {name: mean([each[name] for each in found]) for name in found[0]}


# ---------------------------------------------------------------------- the algorithm, written out
def algorithm(benches: Benches, s: Many, write: Written, *parts: Callable[..., Any]) -> Row:
    """The row: how far a written-out MEMIT is from the editor, layer by layer, and how the lack shrinks on the way.

    The text of the function, and of the `parts` it calls, belongs to the row: another one is checked anew.
    """
    text = "\n".join(inspect.getsource(function).strip() for function in (write, *parts))
    source = hashlib.sha256(text.encode()).hexdigest()[:16]
    of_row = Algorithm(replace(s, dtype="float64"), source, seed=s.seed)
    lab = benches.lab

    def compute(_: dict[str, Any]) -> dict[str, Any]:
        s = of_row.of
        at, requests = benches.at(s), benches.requests(s)
        memories, of = Memories(at.model), editing.contexts(at.tok, requests, at.templates)
        z, _ = many.targets(at, editor(s), requests)
        kept = {name: p.detach().clone() for name, p in at.model.named_parameters()}
        with torch.no_grad():
            found = write(memories, of, z, s.layers, s.value, at.moments)
        same = all(torch.equal(p, kept[name]) for name, p in at.model.named_parameters())
        if not same:  # the bench is used again
            at.model.load_state_dict(kept, strict=False)
        edit = editor(s)(at.model, at.tok, requests, at.moments, templates=at.templates, targets=z)
        own = value_deltas(memories, found)
        whole_range = tuple(range(s.layers[-1] + 1))
        at.measure(whole_range)
        ranges = {"critical": s.layers, "highest": s.layers[-1:], "all up to it": whole_range}
        return {
            "facts": len(requests), "restored": same,
            "layers": [
                {
                    "layer": layer, "distance": relative(own[name], edit.deltas[name]),
                    "size": edit.norms[name] / memories.values(layer).norm().item(),
                }
                for layer in s.layers
                for name in (f"{memories.down_path(layer)}.weight",)
            ],
            "lacking": {
                name: _path(memories, of, z, replace(s, layers=own), at.moments) for name, own in ranges.items()
            },
        }  # fmt: skip

    return lab.store.row(ALGORITHM, VERSION, of_row, compute, device=models.named_device(lab.device).type)


def _path(
    memories: Memories, of: Sequence[Contexts], z: Tensor, s: Many, moments: Moments
) -> list[dict[str, int | float]]:
    """|z - h| in units of what it was, before the first layer is written and after each."""
    seen = swept(memories, of, z, s, moments)
    with Edit(value_deltas(memories, seen.deltas)).applied(memories.model):
        last = lacking(memories, of, z, s.layers[-1])
    sizes = [own.norm().item() for own in (*seen.lacking.values(), last)]
    return [
        {"layer": layer, "lacking": size / sizes[0]}
        for layer, size in zip((s.layers[0] - 1, *s.layers), sizes, strict=True)
    ]
