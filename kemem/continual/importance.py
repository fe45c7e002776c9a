"""How much each head and neuron matters, for a domain or for what the model knew before the first one.

Ke et al. 2023, eq. 3:  I_l = 1/N sum_n | dL(x_n, y_n) / dg_l |,  g_l the virtual gates at 1, N texts. L is

    of a domain            the loss it is learned by
    of general knowledge   KL( f1(x) || f2(x) ), f1 and f2 two passes of one text under two dropout masks: a proxy,
                           since the text that the model was trained on first is not at hand

Importances of several domains are brought to [0, 1], layer by layer, and joined by their elementwise maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kemem import arithmetic
from kemem.continual.contrast import draws, drops, last_hidden, mode, noisy, present
from kemem.continual.gates import Units, gated, ones
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import IGNORED, Batch, Objective, causal, logits_of, mix, token_losses
from kemem.training import Domain, Rows

Importance = Callable[[nn.Module, Domain], Units]
"""(model, domain) -> importances, a number >= 0 a unit: what may stand in for DAS's own."""

Losses = Callable[[nn.Module, Batch], Float[Tensor, " B"]]
"""(model, batch) -> the loss of every text in it."""

NORMALISATIONS = ("tanh_clip", "paper_abs", "rank", "none")
CHOICE, CORRUPTION, DROPOUT, RANDOM = range(
    4
)  # what a seed is mixed with, so that no two uses share their draws


@dataclass(frozen=True)
class Released:
    """Where the released code differs from the paper in ways that change results; each is off unless asked for.

    signed: gradients of texts are summed with their signs; the paper takes each text's absolute value.
    unzeroed: gradients of gates are not set to zero between batches, so batch k of K counts K - k + 1 times.
    no_dropout: the two passes of the proxy are in evaluation mode. They agree, and what is left is rounding.
    over_positions: the proxy's softmax is over the positions of a text, of last hidden states and not of scores.
    uncorrupted: a masked objective's labels with ids that hide nothing, so the answer can be copied.
    first_rows: the first rows of a domain instead of random ones.
    head_columns: heads mask the input columns of query, key and value instead of their rows, and the output's bias.
    other_sentences: positives of the contrast are other texts, see `kemem.continual.contrast.mispaired`.
    """

    signed: bool = False
    unzeroed: bool = False
    no_dropout: bool = False
    over_positions: bool = False
    uncorrupted: bool = False
    first_rows: bool = False
    head_columns: bool = False
    other_sentences: bool = False


DESCRIBED = Released()


@dataclass(frozen=True)
class Measuring:
    """How an importance is measured. samples: texts, a number (at most all are used) or a share in (0, 1] as a float.

    before_activation: as of `kemem.continual.gates.gated`.
    """

    samples: int | float = 1000
    batch_size: int = 16
    seed: int = 0
    before_activation: bool = False
    released: Released = DESCRIBED

    def __post_init__(self) -> None:
        share = isinstance(self.samples, float)
        if not (0 < self.samples <= 1 if share else self.samples >= 1):
            raise BadInput(
                "expected samples to be a whole number, at least 1, or a share as a float in (0, 1]; got "
                f"{self.samples!r}; 1000 are a thousand texts, 0.1 is a tenth of them."
            )
        if self.batch_size < 1:
            raise BadInput(f"expected batch_size to be at least 1; got {self.batch_size}; raise it.")

    def rows(self, count: int) -> Int[Tensor, " N"]:
        """Which of `count` rows are read: drawn from the seed, in the data's order."""
        number = (
            max(1, round(self.samples * count))
            if isinstance(self.samples, float)
            else min(count, self.samples)
        )
        if self.released.first_rows:
            return torch.arange(number)
        generator = torch.Generator().manual_seed(mix(self.seed, CHOICE) >> 1)
        return torch.randperm(count, generator=generator)[:number].sort().values


USUAL = Measuring()


# ---------------------------------------------------------------------- what is measured
def domain_importance(
    model: nn.Module, data: Rows, objective: Objective = causal, how: Measuring = USUAL
) -> Units:
    """Importance for a domain, by the mean loss over each text's target tokens, in evaluation mode. In float64."""

    def batch(rows: Tensor) -> Batch:
        read = data.batch(rows)
        keys = [mix(how.seed, CORRUPTION, row) for row in rows.tolist()]
        prepared = objective.prepare(read, keys)
        return {**prepared, "input_ids": read["input_ids"]} if how.released.uncorrupted else prepared

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        targets = objective.targets(batch)
        found = token_losses(logits_of(model, batch), targets)
        return found.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)

    with mode(model, training=False):
        return _mean_gradient(model, len(data), batch, losses, how)


def general_importance(model: nn.Module, data: Rows, noise: float = 0.1, how: Measuring = USUAL) -> Units:
    """Importance for what the model knows, by its own disagreement with itself on any text. In float64.

    L = 1/T sum_t KL(p1(. | x, t) || p2(. | x, t)) over the vocabulary, T the tokens of the text. Both passes have the
    same gates, and each its own dropout. noise: what the outputs of the blocks' sublayers are dropped with, in these
    passes only, where a model has no dropout of its own. Refused: none of the two, for two equal passes say nothing.
    """
    if not 0 <= noise < 1:
        raise BadInput(f"expected noise to be a share, in [0, 1); got {noise}; 0.1 is usual.")
    own, silent = drops(model), how.released.no_dropout
    if not (own or noise or silent):
        raise BadInput(
            "expected dropout in the model or noise, for the proxy needs two passes that differ; got neither; "
            "set noise=0.1."
        )
    needs_noise = not own and not silent

    positions = how.released.over_positions
    predicted = last_hidden if positions else logits_of

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        first, second = (predicted(model, batch) for _ in range(2))
        return disagreement(first, second, present(batch), over_positions=positions)

    with mode(model, training=not silent), noisy(model, noise) if needs_noise else nullcontext():
        return _mean_gradient(model, len(data), data.batch, losses, how)


def random_importance(model: nn.Module, seed: int) -> Units:
    """Uniform on [0, 1] for every unit: the ablation in which nothing was measured."""
    generator = torch.Generator().manual_seed(mix(seed, RANDOM) >> 1)
    return ones(Memories(model)).map(
        lambda one: torch.rand(one.shape, generator=generator, dtype=torch.float64).to(one.device)
    )


def disagreement(
    first: Float[Tensor, "B T V"],
    second: Float[Tensor, "B T V"],
    tokens: Tensor | None,
    *,
    over_positions: bool = False,
) -> Float[Tensor, " B"]:
    """KL(softmax(first) || softmax(second)) of each text in nats: mean over its tokens.

    over_positions: softmax over T instead, summed over what is then V independent distributions, as released.
    """
    keep = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device) if tokens is None else tokens
    first, second = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (first, second))
    if over_positions:
        first, second = (x.masked_fill(~keep[..., None], -torch.inf).log_softmax(1) for x in (first, second))
        # padding has log 0 on both sides and adds nothing
        first, second = (x.masked_fill(~keep[..., None], 0) for x in (first, second))
        return (first.exp() * (first - second)).sum((1, 2))
    first, second = first.log_softmax(-1), second.log_softmax(-1)
    at_tokens = (first.exp() * (first - second)).sum(-1) * keep
    return at_tokens.sum(1) / keep.sum(1).clamp(min=1)


# ---------------------------------------------------------------------- gradients of gates
def gate_gradients(
    model: nn.Module, batch: Batch, losses: Losses, *, before_activation: bool = False
) -> Units:
    """dL_n/dg at g = 1 for every text n of the batch, [B L U]: one backward pass, the gates being each text's own."""
    gates = ones(Memories(model), len(batch["input_ids"])).map(lambda one: one.requires_grad_())
    with torch.enable_grad(), gated(model, gates, before_activation=before_activation):
        total = losses(model, batch).sum()  # texts do not meet, so each one's gates see its own loss alone
    return Units(*torch.autograd.grad(total, list(gates.tensors().values())))


def _mean_gradient(
    model: nn.Module, count: int, batch: Callable[[Tensor], Batch], losses: Losses, how: Measuring
) -> Units:
    """The mean over the texts that are read of |dL_n/dg|, or what the released code has instead."""
    device, total, weight = next(model.parameters()).device, None, 0
    parts = how.rows(count).split(how.batch_size)
    for number, rows in enumerate(parts):
        read = {name: tensor.to(device) for name, tensor in batch(rows).items()}
        with draws(device, how.seed, DROPOUT, number), arithmetic.fast(device):
            found = gate_gradients(model, read, losses, before_activation=how.before_activation)
        times = len(parts) - number if how.released.unzeroed else 1
        found = found if how.released.signed else found.map(torch.abs)
        sums = found.map(lambda g, k=times: k * g.sum(0, dtype=torch.float64))
        total = sums if total is None else total.map(torch.add, sums)
        weight += times * len(rows)
    assert total is not None, "a run without text is refused before"
    return total.map(lambda summed: summed / weight)


# ---------------------------------------------------------------------- over layers and domains
def normalised(importance: Units, how: str) -> Units:
    """Importances brought to [0, 1] within each layer. `how` is one of NORMALISATIONS; z = (I - mean) / std.

    "tanh_clip"   max(0, tanh z): protects what is above the layer's mean, more the farther it is
    "paper_abs"   |tanh z|: what the authors do. What is far below the mean counts like what is far above it
    "rank"        the share of the layer's other units that are less important
    "none"        as they are; refused outside [0, 1]
    In a layer whose units are all equal none is more important than another, and all get 0 (but for "none").
    """
    if how not in NORMALISATIONS:
        raise BadInput(
            f"expected a normalisation of {', '.join(NORMALISATIONS)}; got {how!r}; choose one of these."
        )
    for site, found in importance.tensors().items():
        if not torch.isfinite(found).all():
            raise BadInput(
                f"expected finite importances; got NaN or infinity in {site}; look at the model's loss."
            )
        if how == "none" and not ((found >= 0) & (found <= 1)).all():
            raise BadInput(
                f"expected importances in [0, 1]; got {found.min():.3g} to {found.max():.3g} in {site}; "
                "normalise them, for instance by rank."
            )
    return importance.map({"none": torch.clone, "rank": _rank}.get(how) or _tanh(how))


def _rank(found: Float[Tensor, "L U"]) -> Float[Tensor, "L U"]:
    less = torch.searchsorted(found.sort(-1).values, found.contiguous())
    return less.to(found.dtype) / max(1, found.shape[-1] - 1)


def _tanh(how: str) -> Callable[[Tensor], Tensor]:
    def squashed(found: Tensor) -> Tensor:
        far = found - found.mean(-1, keepdim=True)
        variance = (far**2).sum(-1, keepdim=True) / max(1, found.shape[-1] - 1)
        equal = found.amax(-1, keepdim=True) == found.amin(-1, keepdim=True)  # also a layer of one unit
        z = torch.where(equal, 0, far / variance.sqrt()).tanh()
        return z.abs() if how == "paper_abs" else z.clamp(min=0)

    return squashed


def emax(*importances: Units) -> Units:
    """The elementwise maximum: what was important to any stays important. Order does not matter."""
    return reduce(lambda a, b: a.map(torch.maximum, b), importances)
