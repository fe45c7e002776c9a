"""One expert a domain, begun as the nearest earlier one; text of unknown domain is read by all, weighted as it goes on.

Gururangan et al. 2022, with adapters for experts as in Ke et al. 2023, under whom it is called DEMIX.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kemem import evaluation
from kemem.continual.adapters import Adapter
from kemem.errors import BadInput
from kemem.objective import IGNORED, Objective, causal, logits_of, mix, row_key, token_losses
from kemem.training import Domain, Method, Rows

WEIGHT = 0.3  # of the newest row in a prior that is updated, as the authors have it


@dataclass(eq=False)
class DEMIX(Method):
    """The model is frozen and each domain has adapters of its own, begun as a copy of the nearest domain's.

    nearest: whose adapters give the lowest loss on `sample` rows of the new domain, drawn by `seed`; the first domain
    begins as `Adapter` does. So it starts from an earlier function and not from the bare model's. A domain without
    adapters of its own is shown with the newest; `mixture` asks all of them.

    objective: what the model is trained for, by which nearness is measured.
    Differs from Gururangan et al., whose experts replace feed-forward layers of a model pre-trained with them.
    Refused: what `Adapter` refuses; a sample of no row.
    """

    reduction: int = 16
    placement: str = "sequential"
    sample: int = 64
    seed: int = 0
    objective: Objective = causal
    parents: dict[str, str | None] = field(default_factory=dict, init=False, repr=False)
    """Of each domain, the one whose adapters it began with; None for the first."""
    _adapters: Adapter = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise BadInput(f"expected a sample of at least 1 row; got {self.sample}; 64 is usual.")
        self._adapters = Adapter(self.reduction, self.placement, per_domain=True, seed=self.seed)

    def before(self, model: nn.Module, domain: Domain) -> None:
        if domain.name in self.parents:
            self._adapters.before(model, domain)
            return
        parent = self.nearest(model, domain)
        self._adapters.before(model, domain)
        if parent is not None:
            own, its = (self._adapters.stack(model, name) for name in (domain.name, parent))
            assert own is not None and its is not None
            own.load_state_dict(its.state_dict())
        self.parents[domain.name] = parent

    def nearest(self, model: nn.Module, domain: Domain) -> str | None:
        """Name of the earlier domain whose adapters have the lowest loss on a sample of this one; None without any.

        Of equal ones the earliest.
        """
        if len(self.parents) < 2:
            return next(iter(self.parents), None)
        generator = torch.Generator().manual_seed(mix(self.seed, len(self.parents)) >> 1)
        drawn = torch.randperm(len(domain.blocks), generator=generator)[: self.sample]
        part = _Part(domain.blocks, drawn)
        losses = {}
        for name in self.parents:
            with self._adapters.at(model, Domain(name, domain.blocks)):
                losses[name] = evaluation.loss(model, part, objective=self.objective)
        return min(losses, key=losses.__getitem__)

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        return self._adapters.during(model, domain)

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        return self._adapters.at(model, domain)

    def after(self, model: nn.Module, domain: Domain) -> None:
        self._adapters.after(model, domain)

    def mixture(
        self,
        model: nn.Module,
        text: Rows,
        *,
        prior: Float[Tensor, " K"] | None = None,
        updating: bool = False,
        batch_size: int = 32,
        seed: int = 0,
    ) -> Mixture:
        """What the K experts make of text of unknown domain, together and alone. See `posterior`.

        prior: of the domains, in the order they were learned; None: all alike. updating: after each row it moves
        towards the mean of the posterior over the row's targets,  prior <- 0.7 prior + 0.3 mean,  as in the authors'
        code; theirs does so a batch at a time. With a masked objective the hidden tokens are taken from left to right,
        each posterior having seen those before. seed: of what a masked objective hides.
        Refused: before the first domain, a prior that is none over these domains, text without a target.
        """
        names = list(self.parents)
        prior = _checked(prior, len(names))
        alone, together, seen, count = torch.zeros(len(names), dtype=torch.float64), 0.0, prior * 0, 0
        for losses, targets in self._losses(model, text, names, batch_size, seed):
            for row, own in zip(losses.unbind(1), targets, strict=True):
                if not own.any():
                    continue
                row = row[:, own]  # [K, targets of the row]
                weights = posterior(row, prior)
                together -= float(torch.logsumexp(weights.log() - row, 0).sum())
                alone += row.sum(1)
                seen += weights.sum(1)
                count += row.shape[1]
                if updating:
                    prior = (1 - WEIGHT) * prior + WEIGHT * weights.mean(1)
        if not count:
            raise BadInput(
                f"expected text with tokens to predict; got {len(text)} rows without any; give more."
            )
        return Mixture(names, together / count, alone / count, seen / count, prior)

    def _losses(
        self, model: nn.Module, text: Rows, names: list[str], batch_size: int, seed: int
    ) -> Iterator[tuple[Float[Tensor, "K B T"], Bool[Tensor, "B T"]]]:
        """A batch at a time: what each expert loses at every place, float64, and which places are targets."""
        with evaluation.evaluating(model) as device:
            for start in range(0, len(text), batch_size):
                indices = torch.arange(start, min(start + batch_size, len(text)))
                keys = [row_key(seed, 0, row) for row in indices.tolist()]
                batch = self.objective.prepare(text.batch(indices), keys)
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                targets = self.objective.targets(batch)
                found = []
                for name in names:
                    with self._adapters.at(model, Domain(name, text)):
                        found.append(token_losses(logits_of(model, batch), targets).cpu().double())
                yield torch.stack(found), (targets != IGNORED).cpu()


@dataclass(frozen=True)
class Mixture:
    """What K experts make of a text. Losses in nats a token.

    loss: of the mixed predictions. alone: of each expert by itself. posterior: mean over targets. prior: as it was
    left behind, the one given unless it was updated.
    """

    names: list[str]
    loss: float
    alone: Float[Tensor, " K"]
    posterior: Float[Tensor, " K"]
    prior: Float[Tensor, " K"]


def posterior(losses: Float[Tensor, "K T"], prior: Float[Tensor, " K"]) -> Float[Tensor, "K T"]:
    """How likely each of K experts is to have written a row, given what stands before each of its tokens.

    Gururangan et al. 2022, section 5.1:  P(k | x_<t)  ~  P(k) prod_{s<t} P_k(x_s | x_<s)
    losses: - log P_k of each token, nats. Columns sum to 1; the first is the prior. The mixed prediction
    sum_k P(k | x_<t) P_k(x_t | x_<t) then has, over a row, the likelihood  sum_k P(k) P_k(x).
    """
    before = losses.cumsum(1) - losses
    return torch.softmax(prior.to(losses)[:, None].log() - before, 0)


def _checked(prior: Tensor | None, count: int) -> Tensor:
    if not count:
        raise BadInput("expected experts to mix; got none before the first domain; train on one.")
    if prior is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    prior = prior.detach().cpu().double()
    if len(prior) != count or (prior < 0).any() or abs(float(prior.sum()) - 1) > 1e-6:
        raise BadInput(
            f"expected a prior over {count} domains, of sum 1; got {prior.tolist()}; give one share for each."
        )
    return prior


@dataclass(frozen=True)
class _Part:
    """Some rows of a text."""

    text: Rows
    chosen: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return self.text.batch(self.chosen[indices])
