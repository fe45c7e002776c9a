"""Rows of earlier domains, kept and read again: in the place of new ones (`Replay`), or beside them (`DERpp`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kemem import trace
from kemem.continual.contrast import base_path, last_hidden, mode, present
from kemem.continual.fisher import drawn, fitting
from kemem.errors import BadInput
from kemem.objective import Batch, Causal, Objective, causal, mix
from kemem.training import Domain, Method

KEPT, READ, CORRUPTION = range(3)  # what a seed is mixed with, so that no two uses share their draws
AT_ONCE = 16  # rows whose hidden states are taken together


class Buffer:
    """Some rows of every domain so far, on the CPU.

    They are drawn at a domain's end, uniformly and without replacement: what a reservoir holds of a text read once.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._ready: dict[str, Tensor] = {}

    def keep(self, name: str, rows: Batch) -> None:
        self._kept[name] = {key: tensor.cpu() for key, tensor in rows.items()}

    def begin(self, domain: Domain) -> None:
        """Makes the rows of all domains but this one ready to be drawn. Refused: rows that could not be one batch."""
        earlier = [rows for name, rows in self._kept.items() if name != domain.name]
        like = {name: tensor.shape[1:] for name, tensor in domain.blocks.batch(torch.tensor([0])).items()}
        for rows in earlier:
            found = {name: rows[name].shape[1:] for name in rows if name in like}
            if found != like:
                raise BadInput(
                    f"expected rows of one shape in all domains; got {_said(found)} and, in {domain.name}, "
                    f"{_said(like)}; cut all texts to one length."
                )
        self._ready = (
            {name: torch.cat([rows[name] for rows in earlier]) for name in earlier[0]} if earlier else {}
        )

    def __len__(self) -> int:
        return len(self._ready["input_ids"]) if self._ready else 0

    def draw(self, count: int, *numbers: int) -> dict[str, Tensor]:
        """Rows that follow from `numbers`; each of the buffer's is as likely, and may come twice."""
        generator = torch.Generator().manual_seed(mix(*numbers) >> 1)
        chosen = torch.randint(len(self), (count,), generator=generator)
        return {name: tensor[chosen] for name, tensor in self._ready.items()}


@dataclass(eq=False)
class Replay(Method):
    """A share of every step's rows is old: drawn from rows kept of each earlier domain, in the place of new ones.

    So a step costs what it did, and of the new domain less is read. Where share * batch_size is no whole number, steps
    take turns. What is hidden of an old row by a masked objective is drawn anew each time.

    share: in [0, 1); 0 is plain training bit for bit, as is the first domain. kept: rows of each domain.
    """

    share: float = 0.1
    kept: int = 1000
    seed: int = 0
    domains: int = field(default=0, init=False, repr=False)
    """How many were finished."""
    _buffer: Buffer = field(default_factory=Buffer, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or self.kept < 1:
            raise BadInput(
                f"expected a share in [0, 1) of each step, and at least 1 row kept of each domain; got {self.share} "
                f"and {self.kept}; 0.1 reads one old row in ten."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        self._buffer.begin(domain)

    def rows(self, step: int, batch: Batch) -> Batch:
        size = len(batch["input_ids"])
        count = int(step * self.share * size) - int((step - 1) * self.share * size)
        if not count or not len(self._buffer):
            return batch
        old = self._buffer.draw(count, self.seed, READ, self.domains, step)
        return {name: torch.cat([tensor[:-count], old[name].to(tensor)]) for name, tensor in batch.items()}

    def after(self, model: nn.Module, domain: Domain) -> None:
        rows = drawn(len(domain.blocks), self.kept, mix(self.seed, KEPT, self.domains))
        self._buffer.keep(domain.name, domain.blocks.batch(rows))
        self.domains += 1


@dataclass(eq=False)
class DERpp(Method):
    """Dark experience replay: old rows read beside the new ones, and answered as the model of then did.

    Buzzega et al. 2020 (DER++), as Ke et al. 2023 use it:
        L(new) + alpha * mean (h - h_then)^2 + beta * L(old)
    with h the final hidden states [T D] of an old row's uncorrupted text, in training mode, and h_then those of the
    model at the end of its domain, in evaluation mode. Each step draws rows once, for both terms.

    alpha, beta, read: the released code does not say; these are ours. kept: rows of each domain, with their hidden
    states; the paper has 100 chunks of 164 tokens. read: old rows a step; 0: as many as new ones. objective: the one
    that training is given. With alpha and beta 0, and in the first domain, it is plain training bit for bit.
    Every micro-batch reads all old rows of its step, so that a step may be cut at will: cut it little. Where texts are
    corrupted, an old row passes once for each term.

    Differs from Buzzega et al., who draw other rows for each term, and keep scores.
    """

    alpha: float = 0.5
    beta: float = 0.5
    kept: int = 100
    read: int = 0
    seed: int = 0
    objective: Objective = causal
    domains: int = field(default=0, init=False, repr=False)
    """How many were finished."""
    _buffer: Buffer = field(default_factory=Buffer, init=False, repr=False)
    _old: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _corrupted: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _unseen: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if not all(0 <= weight < math.inf for weight in (self.alpha, self.beta)):
            raise BadInput(
                f"expected alpha and beta of 0 or more; got {self.alpha} and {self.beta}; both 0 is plain training."
            )
        if self.kept < 1 or self.read < 0:
            raise BadInput(
                f"expected at least 1 row kept of each domain and read of 0 or more; got {self.kept} and {self.read}; "
                "read=0 reads as many old rows as new ones."
            )

    def before(self, model: nn.Module, domain: Domain) -> None:
        base_path(model)
        self._unseen = True
        self._buffer.begin(domain)

    def rows(self, step: int, batch: Batch) -> Batch:
        if len(self._buffer):
            count = self.read or len(batch["input_ids"])
            self._old = self._buffer.draw(count, self.seed, READ, self.domains, step)
            keys = [mix(self.seed, CORRUPTION, self.domains, step, row) for row in range(count)]
            text = {name: tensor for name, tensor in self._old.items() if name != "hidden"}
            self._corrupted = dict(self.objective.prepare(text, keys))
        return batch

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        if self._unseen:
            fitting(self.objective, batch)
            self._unseen = False
        if not len(self._buffer) or not (self.alpha or self.beta):
            return loss
        old, corrupted = (
            {name: tensor.to(loss.device) for name, tensor in rows.items()}
            for rows in (self._old, self._corrupted)
        )
        then = old.pop("hidden")
        seen: list[Tensor] = []
        with torch.random.fork_rng([loss.device] if loss.device.type == "cuda" else []):
            if self.beta:
                keep = {base_path(model): lambda output: seen.append(output[0])}
                with trace.observe(model, keep, side="output"):
                    loss = loss + self.beta * self.objective(model, corrupted)
            if self.alpha:
                whole = seen and isinstance(self.objective, Causal)  # nothing was hidden: one pass is enough
                now = seen[0] if whole else last_hidden(model, old)
                loss = loss + self.alpha * _squares(now, then, old)
        return loss

    def after(self, model: nn.Module, domain: Domain) -> None:
        device = next(model.parameters()).device
        rows = drawn(len(domain.blocks), self.kept, mix(self.seed, KEPT, self.domains))
        text = domain.blocks.batch(rows)
        hidden = []
        with mode(model, training=False), torch.no_grad():
            for part in torch.arange(len(rows)).split(AT_ONCE):
                some = {name: tensor[part].to(device) for name, tensor in text.items()}
                hidden.append(last_hidden(model, some).cpu())
        self._buffer.keep(domain.name, {**text, "hidden": torch.cat(hidden)})
        self.domains += 1


def _squares(now: Tensor, then: Tensor, batch: Batch) -> Tensor:
    """Mean over tokens and features of the squared difference."""
    wide = torch.promote_types(now.dtype, torch.float32)
    found = F.mse_loss(now.to(wide), then.to(wide), reduction="none").mean(-1)  # [B T]
    tokens = present(batch)
    return found.mean() if tokens is None else (found * tokens).sum() / tokens.sum().clamp(min=1)


def _said(shapes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
