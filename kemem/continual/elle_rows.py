"""What a step of ELLE reads: new rows, remembered ones, and in front of each the prompt of its domain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kemem import trace
from kemem.continual import beside
from kemem.objective import IGNORED, Batch, mix
from kemem.training import Domain, Method


@dataclass(frozen=True, eq=False)
class Kept:
    """Rows that are remembered of a domain."""

    name: str
    rows: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.rows["input_ids"])

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {name: tensor[indices] for name, tensor in self.rows.items()}


@dataclass(eq=False)
class Remembering(Method):
    """Training on one domain, a share of whose rows are replaced by remembered ones, each behind its domain's prompt.

    Which rows of older domains are read follows from (seed, step) alone, every domain being as likely. Their number is
    share x rows of a step, over the steps exactly. A prompt takes the place of a row's first token, which is no target.
    In the row it stands as a token number behind the vocabulary, so that rows of different domains may share a
    micro-batch.

    place: of the domain among all, by which its prompt is named. vocabulary: the number that prompts begin at.
    """

    older: Sequence[Kept]
    place: int
    share: float
    prompts: bool
    vocabulary: int
    seed: int

    def rows(self, step: int, batch: Batch) -> Batch:
        size = len(batch["input_ids"])
        count = _whole(step * self.share * size) - _whole((step - 1) * self.share * size) if self.older else 0
        if not count and not self.prompts:
            return batch
        changed = {name: tensor.clone() for name, tensor in batch.items()}
        places = torch.full((size,), self.place)
        for row in range(size - count, size):
            places[row] = mix(self.seed, self.place, step, row, 0) % len(self.older)
            kept = self.older[int(places[row])]
            number = mix(self.seed, self.place, step, row, 1) % len(kept)
            for name, tensor in kept.batch(torch.tensor([number])).items():
                changed[name][row] = tensor[0]
        if self.prompts:
            changed["input_ids"][:, 0] = self.vocabulary + places
            changed["labels"][:, 0] = IGNORED  # a masked objective then leaves the place alone
        return changed

    @contextmanager
    def during(self, model: Any, domain: Domain) -> Iterator[None]:
        if not self.prompts:
            yield
            return
        behind: list[Tensor] = []  # of the pass that runs: how far its tokens are behind the vocabulary

        def read(ids: Tensor) -> Tensor:
            behind[:] = [ids - self.vocabulary]
            return torch.where(ids < self.vocabulary, ids, 0)

        def put(vectors: Tensor) -> Tensor:
            every = torch.cat([prompt(model, place).weight for place in range(self.place + 1)])
            found = every[behind[0].clamp(min=0)].to(vectors.dtype)
            return torch.where((behind[0] >= 0)[..., None], found, vectors)

        path = embeddings(model)
        with trace.replace(model, {path: read}, side="input"), trace.replace(model, {path: put}):
            yield


@contextmanager
def behind_prompt(model: Any, place: int) -> Iterator[None]:
    """Within the block, every pass reads rows whose first token is the prompt of the domain at this place."""

    def put(vectors: Tensor) -> Tensor:
        own = prompt(model, place).weight.to(vectors.dtype)
        return torch.cat([own.expand(len(vectors), 1, -1), vectors[:, 1:]], 1)

    with trace.replace(model, {embeddings(model): put}):
        yield


def add_prompt_(model: Any, place: int, seed: int) -> None:
    """Puts the prompt of a domain beside the model: one vector, drawn as widely spread as the embeddings are."""
    table = model.get_input_embeddings().weight.detach()
    draws = torch.Generator().manual_seed(mix(seed, place) >> 1)
    new = nn.Embedding.from_pretrained(
        torch.randn(1, table.shape[1], generator=draws) * table.float().std().cpu(), freeze=False
    )
    beside.add_(model, f"prompt{place}", new)


def prompt(model: nn.Module, place: int) -> Any:
    return beside.module(model, f"prompt{place}")


def embeddings(model: Any) -> str:
    """Path of the module that turns token numbers into vectors."""
    table = model.get_input_embeddings()
    return next(path for path, module in model.named_modules() if module is table)


def _whole(number: float) -> int:
    return math.floor(number + 1e-9)  # 0.1 x 30 may be rounded to below 3
