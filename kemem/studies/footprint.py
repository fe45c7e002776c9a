"""Chapter 10: what each method holds in memory while it learns a second domain, beside the model and its optimizer.

Counted are all arrays that a method reaches: importances, anchors, teachers, rows that it keeps, masks. Parameters that
it put beside the model are counted apart; the text of the domain at hand is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from inspect import isroutine
from typing import Any

import numpy
from torch import Tensor, nn

from kemem.continual import named
from kemem.continual.finetuning import longest
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import budget, checkpoints, courses
from kemem.studies.budget import Budget, Setting
from kemem.studies.lab import Lab, Result
from kemem.studies.setup import in_pieces, objective
from kemem.training import Domain, Method, train

STUDY, VERSION = "footprint", 1
CHAPTER = "10_methods"
MIB = 2**20


@dataclass(frozen=True)
class Footprint:
    """A method on two domains, a few steps on each."""

    course: courses.Learning
    rows: int
    """Of the first domain, as many as a course reads: what is kept of it is counted as it is there."""


def settings(z: Budget, name: str, of: Setting) -> Footprint:
    """Refused where the comparison has one domain."""
    full = budget.one(z, name, of)
    return Footprint(replace(full, domains=full.domains[:2], steps=1), full.steps * full.rows)


def run(lab: Lab, s: Footprint) -> Row:
    """bytes: held while the second domain is learned; added: parameters beside the model by then; model: its own."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        course = s.course
        model, tok, found = checkpoints.load(lab, course.model, course.step, dtype=course.dtype)
        provenance["checkpoints"] = found.origin
        goal = objective(course.model.setup, tok)
        given = named.Given(
            course.steps, longest(model, course.length), goal, course.seed, Memories(model).width
        )
        length = course.length
        if course.method in named.LEARNERS:
            length = min(length, named.available(course.method, given, **dict(course.changes)))
        wide = replace(course, steps=max(1, s.rows // course.rows))
        held = [courses.rows_of(spec, tok, length, wide) for spec in course.domains]
        own = courses.method(course, given, held[0].train)
        size = sum(p.numel() for p in model.parameters())
        seen: list[Domain] = []
        counted: list[int] = []
        watch(own, model, counted)
        for each in held:
            train(model, each.domain, in_pieces(lab, course.recipe()), own, objective=goal, earlier=seen)
            seen.append(each.domain)
        return {
            "bytes": counted[-1], "model": size,
            "added": sum(p.numel() for p in model.parameters()) - size,
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute)


def watch(method: Method, model: nn.Module, counted: list[int]) -> None:
    """Notes what the method holds when it has learned a domain, before it does what it does then."""
    after = method.after

    def noting(net: nn.Module, domain: Domain) -> None:
        counted.append(held_bytes(method, net, domain))
        after(net, domain)

    vars(method)["after"] = noting


def held_bytes(method: Method, model: nn.Module, domain: Domain) -> int:
    """Bytes of all arrays that a method reaches, each counted once; those of the model and of the domain left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    own |= {pointer for pointer, _ in _arrays(domain.blocks, set())}
    return sum(dict(found for found in _arrays(vars(method), set()) if found[0] not in own).values())


def _arrays(thing: Any, seen: set[int]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of every tensor and array below."""
    if id(thing) in seen or isroutine(thing) or isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()
    elif isinstance(thing, numpy.ndarray):
        base = thing if thing.base is None or not isinstance(thing.base, numpy.ndarray) else thing.base
        yield base.__array_interface__["data"][0], base.nbytes
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _arrays(value, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from _arrays(value, seen)
    elif isinstance(thing, nn.Module):
        for tensor in (*thing.parameters(), *thing.buffers()):
            yield from _arrays(tensor, seen)
    elif hasattr(thing, "__dict__"):
        yield from _arrays(vars(thing), seen)


def table(lab: Lab, z: Budget, made: budget.Settings) -> dict[str, Row]:
    """By method, of those that learn domains in turn."""
    names = [n for n in z.names if n not in named.LEARNERS or named.LEARNERS[n].schedule == "sequence"]
    return {name: run(lab, settings(z, name, made[name])) for name in names}


def results(store: Store, scale: str) -> dict[str, Result]:
    """`footprint.<method>`: MiB held; none where trials or rows are missing."""
    made = budget.settings(store, scale)
    if not made:
        return {}
    z = budget.sizes(scale)
    found = {}
    for name in z.names:
        row = store.find(STUDY, VERSION, settings(z, name, made[name]))
        if row is not None:
            origin = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
            found[f"footprint.{name}"] = Result(row.values["bytes"] / MIB, "MiB", origin)
    return found
