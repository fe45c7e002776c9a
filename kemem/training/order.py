"""Which rows a step reads, and how it is cut into micro-batches."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from kemem.objective import Batch, mix

ORDER = 0  # what the seed of the order is mixed with, so that no other use of a run's seed shares its numbers


class Order:
    """Pass after pass over the rows, each in its own order, which follows from (seed, number of the pass).

    A step may begin in one pass and end in the next, so every pass reads every row once.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        assert rows >= batch_size, "a step then touches two passes at most"
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.passes: dict[int, Int[Tensor, "N"]] = {}

    def __call__(self, step: int) -> tuple[list[int], Int[Tensor, "B"]]:
        """For each row of a step the number of its pass and of the row."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        numbers = places // self.rows
        first, last = int(numbers[0]), int(numbers[-1])
        if last not in self.passes:
            self.passes = {number: self.shuffled(number) for number in {first, last}}
        rows = torch.where(
            numbers == first, self.passes[first][places % self.rows], self.passes[last][places % self.rows]
        )
        return numbers.tolist(), rows

    def shuffled(self, number: int) -> Int[Tensor, "N"]:
        generator = torch.Generator().manual_seed(mix(self.seed, ORDER, number) >> 1)
        return torch.randperm(self.rows, generator=generator)


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch cut along its rows into `parts`, whose sizes differ by one row at most."""
    cut = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
    return [{name: pieces[part] for name, pieces in cut.items()} for part in range(parts)]
