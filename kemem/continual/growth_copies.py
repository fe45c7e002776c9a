"""Which unit of a grown model is a copy of which old one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kemem.errors import BadInput

WAYS = ("random", "first")


@dataclass(frozen=True, eq=False)
class Copies:
    """A map f of the units of a grown model on the old ones: unit i is a copy of source[i], and new or an old one."""

    source: Int[Tensor, " N"]
    new: Bool[Tensor, " N"]

    @property
    def old(self) -> int:
        """How many units there were."""
        return int((~self.new).sum())

    @property
    def count(self) -> Int[Tensor, " N"]:
        """For each unit, how many there are of its kind: c_f(i), itself among them."""
        return torch.bincount(self.source)[self.source]

    def each(self, size: int) -> Copies:
        """The same for units of `size` consecutive rows, as heads are."""
        rows = self.source[:, None] * size + torch.arange(size)
        return Copies(rows.flatten(), self.new.repeat_interleave(size))


def copied(old: int, new: int, way: str, generator: torch.Generator) -> Copies:
    """A map of `new` units on `old` ones, the first `old` of them themselves.

    way: "random" copies units in a random order, "first" from the first on; none a second time before each has been
    copied once. So a whole multiple has equally many of all, without which no norm is preserved.

    Differs from the authors' code, which draws every source anew: doubling then leaves some units alone and copies
    others twice, and norms change.
    """
    if way not in WAYS:
        raise BadInput(f"expected copies to be one of {', '.join(WAYS)}; got {way!r}; choose one of these.")
    rounds = [torch.arange(old)]
    while sum(map(len, rounds)) < new:
        rounds.append(torch.randperm(old, generator=generator) if way == "random" else torch.arange(old))
    return Copies(torch.cat(rounds)[:new], torch.arange(new) >= old)


def joined(parts: Sequence[Copies]) -> Copies:
    """One map of parts that lie one after the other, as in a fused projection."""
    starts = [sum(part.old for part in parts[:i]) for i in range(len(parts))]
    source = torch.cat([part.source + start for part, start in zip(parts, starts, strict=True)])
    return Copies(source, torch.cat([part.new for part in parts]))
