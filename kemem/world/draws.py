"""Random draws that are the same on every machine and in every version of Python."""

from bisect import bisect_right
from collections.abc import Sequence
from decimal import Decimal
from hashlib import sha256
from typing import TypeVar, no_type_check

T = TypeVar("T")
WORD = (1 << 64) - 1
STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def digest(*key: str | int) -> int:
    """64 bits of the sha256 of a key; parts are kept apart, so ("ab", "c") differs from ("a", "bc")."""
    return int.from_bytes(sha256("\x1f".join(map(str, key)).encode()).digest()[:8], "big")


@no_type_check  # hundreds of calls a document: the checks that tests switch on would cost more than all else
class Draws:
    """A stream of draws named by its key (splitmix64, Steele, Lea and Flood 2014).

    Streams with different keys are independent, so that adding a relation or a document changes no other.
    """

    __slots__ = ("state",)

    def __init__(self, *key: str | int):
        self.state = digest(*key)

    def bits(self) -> int:
        """The next 64 bits."""
        self.state = z = (self.state + STEP) & WORD
        z = ((z ^ (z >> 30)) * FIRST) & WORD
        z = ((z ^ (z >> 27)) * SECOND) & WORD
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """A whole number in [0, n); the bias of n / 2^64 is far below anything measured."""
        return (self.bits() * n) >> 64

    def unit(self) -> float:
        """A multiple of 2^-53 in [0, 1): exact in any double."""
        return (self.bits() >> 11) / (1 << 53)

    def choice(self, items: Sequence[T]) -> T:
        return items[(self.bits() * len(items)) >> 64]

    def skewed(self, items: Sequence[T]) -> T:
        """The smaller of two positions: the first items are common, the last ones rare."""
        return items[min(self.below(len(items)), self.below(len(items)))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        mixed, state = list(items), self.state
        for i in range(
            len(mixed) - 1, 0, -1
        ):  # `below(i + 1)`, written out: most draws of a document are these
            state = (state + STEP) & WORD
            z = ((state ^ (state >> 30)) * FIRST) & WORD
            z = ((z ^ (z >> 27)) * SECOND) & WORD
            j = ((z ^ (z >> 31)) * (i + 1)) >> 64
            mixed[i], mixed[j] = mixed[j], mixed[i]
        self.state = state
        return mixed


class Zipf:
    """Positions 0..n-1 drawn with probability proportional to (position + 1) ** -exponent.

    The weights are whole numbers computed in decimal arithmetic: the power function of the C library may
    differ in its last bit from one machine to the next.
    """

    def __init__(self, n: int, exponent: float):
        power = -Decimal(str(exponent))
        total, self.edges = 0, []
        for rank in range(1, n + 1):
            total += int(Decimal(rank) ** power * (1 << 48))
            self.edges.append(total)

    def draw(self, draws: Draws) -> int:
        return bisect_right(self.edges, draws.below(self.edges[-1]))

    def share(self, position: int) -> float:
        below = self.edges[position - 1] if position else 0
        return (self.edges[position] - below) / self.edges[-1]
