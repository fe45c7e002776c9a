"""A loss around the weights of a model: groups of parameters, gradients, slopes and curvature, and what they forecast.

Chapter 08 asks with these why a domain is forgotten. All are of text as it is evaluated: no dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from kemem.continual import Held
from kemem.continual.contrast import mode
from kemem.continual.fisher import fisher
from kemem.memory import Memories
from kemem.objective import IGNORED, Batch, Objective, causal, row_key, token_losses
from kemem.training import Rows

KINDS = ("embeddings", "attention", "FFN keys", "FFN values", "norms and head")
OUTSIDE = "outside the layers"
Weights = dict[str, Tensor]


# ---------------------------------------------------------------------- groups of parameters, and weights
def kinds(model: nn.Module) -> dict[str, list[str]]:
    """KINDS of a model's parameters, each parameter in one; kinds that it has not are left out.

    Keys are all that makes coefficients, a gate's projection too. The output's projection counts as an embedding, for
    it is the same tensor where the two are tied. A norm or bias inside attention or feed-forward goes with it.
    """
    memories, found = Memories(model), {kind: [] for kind in KINDS}
    inside: dict[str, str] = {}
    for layer in range(memories.layers):
        inside[memories.attention_path(layer)] = "attention"
        inside |= {p: "FFN keys" for p in (memories.up_path(layer), memories.gate_path(layer)) if p}
        inside[memories.down_path(layer)] = "FFN values"
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    tables |= {id(head.weight)} if head is not None else set()
    for name, parameter in model.named_parameters():
        own = {kind for path, kind in inside.items() if name.startswith(f"{path}.")}
        kind = "embeddings" if id(parameter) in tables else next(iter(own), "norms and head")
        found[kind].append(name)
    return {kind: names for kind, names in found.items() if names}


def layers(model: nn.Module) -> dict[str, list[str]]:
    """The parameters of each layer, and those of none."""
    memories = Memories(model)
    found: dict[str, list[str]] = {f"layer {layer}": [] for layer in range(memories.layers)} | {OUTSIDE: []}
    for name, _ in model.named_parameters():
        of = [i for i in range(memories.layers) if name.startswith(f"{memories.block_path(i)}.")]
        found[f"layer {of[0]}" if of else OUTSIDE].append(name)
    return found


def weights_of(model: nn.Module) -> Weights:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Writes these parameters into the model."""
    with torch.no_grad():
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)


@contextmanager
def holding(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with these parameters for as long as the block lasts."""
    own = {name: model.get_parameter(name).detach().clone() for name in weights}
    put(model, weights)
    try:
        yield
    finally:
        put(model, own)


def between(a: Weights, b: Weights, share: float) -> Weights:
    """(1 - share) a + share b; a and b themselves at 0 and 1."""
    return {name: torch.lerp(a[name], b[name], share) for name in a}


# ---------------------------------------------------------------------- derivatives
def batches(
    model: nn.Module, rows: Rows, goal: Objective, of: Sequence[int] | None = None, size: int = 16
) -> Iterator[Batch]:
    """Rows by number, or all, as the model is asked for them in evaluation."""
    device = next(model.parameters()).device
    for part in torch.tensor(range(len(rows)) if of is None else of).split(size):
        batch = goal.prepare(rows.batch(part), [row_key(0, 0, row) for row in part.tolist()])
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def gradient(
    model: nn.Module, rows: Rows, goal: Objective = causal, of: Sequence[int] | None = None
) -> Weights:
    """Of the mean loss over the target tokens of these rows, in evaluation mode."""
    named = dict(model.named_parameters())
    total, count = {name: torch.zeros_like(p) for name, p in named.items()}, 0
    with mode(model, training=False), torch.enable_grad():
        for batch in batches(model, rows, goal, of):
            targets = goal.count(batch)
            found = torch.autograd.grad(goal(model, batch) * targets, list(named.values()), allow_unused=True)
            for name, own in zip(named, found, strict=True):
                if own is not None:
                    total[name] += own
            count += targets
    return {name: tensor / count for name, tensor in total.items()}


def halves(model: nn.Module, rows: Rows, goal: Objective = causal) -> tuple[Weights, Weights]:
    """The gradients of the even and of the odd rows."""
    return gradient(model, rows, goal, range(0, len(rows), 2)), gradient(
        model, rows, goal, range(1, len(rows), 2)
    )


def cosines(found: Sequence[tuple[Weights, Weights]], names: Sequence[str]) -> list[list[float]]:
    """cos(g_i, g_j) of gradients over the parameters named, each pair of different halves of text.

    Of i and j the mean over the four pairs of halves; of i with itself one half with the other, which is what noise
    leaves of a cosine of 1.
    """
    flat = [torch.cat([half[name].double().flatten() for name in names]) for both in found for half in both]
    vectors = torch.stack([v / v.norm().clamp(min=1e-300) for v in flat])
    own = (vectors @ vectors.T).view(len(found), 2, len(found), 2)
    table = own.mean((1, 3))
    for i in range(len(found)):
        table[i, i] = own[i, 0, i, 1]
    return table.tolist()


def text_losses(model: nn.Module, goal: Objective, batch: Batch) -> Callable[[Weights], Float[Tensor, " B"]]:
    """The mean loss of each text as a function of the model's parameters."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets = goal.targets(batch)

    def losses(weights: Weights) -> Tensor:
        logits = functional_call(model, weights, (), {**inputs, "use_cache": False}).logits
        return token_losses(logits, targets).sum(1) / (targets != IGNORED).sum(1).clamp(min=1)

    return losses


def slopes(model: nn.Module, rows: Rows, direction: Weights, goal: Objective = causal) -> Float[Tensor, " N"]:
    """d/dt L_n(theta + t direction) at t = 0 of the mean loss of each text n, by forward differentiation; float64."""
    at = {name: p.detach() for name, p in model.named_parameters()}
    found = []
    with mode(model, training=False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch in batches(model, rows, goal):
            found.append(jvp(text_losses(model, goal, batch), (at,), (direction,))[1].double().cpu())
    return torch.cat(found)


def curvature(model: nn.Module, rows: Rows, direction: Weights, goal: Objective = causal) -> float:
    """direction^T H direction, H the Hessian of the mean over texts of their mean losses: differentiated twice."""
    at = {name: p.detach() for name, p in model.named_parameters()}
    t = torch.zeros_like(next(iter(at.values())).flatten()[0], requires_grad=True)
    total = 0.0
    with mode(model, training=False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch in batches(model, rows, goal):
            moved = {name: p + t * direction[name] for name, p in at.items()}
            loss = text_losses(model, goal, batch)(moved).sum()
            (once,) = torch.autograd.grad(loss, t, create_graph=True)
            total += torch.autograd.grad(once, t)[0].item()
    return total / len(rows)


@dataclass(frozen=True)
class Forecast:
    """The rise of a domain's loss when the weights move by d, from what is known where they start.

        slope      g.d                             g: gradient of the loss, by kind of parameter
        diagonal   T/2 sum_i F_i d_i^2             F: diagonal Fisher of its held-out texts, by kind
        ewc        the same                        F of its training texts
        fisher     T/2 1/N sum_n (g_n.d)^2         the whole Fisher; g_n: gradient of the mean loss of text n
        curvature  1/2 d^T H d                     H: the Hessian, for which the three above stand

    T, the targets of a text: a text of T tokens has the log-probability -T L_n, the information in which is
    E[(T g_n)^2], and its curvature is T times that of L.
    """

    held: Held
    goal: Objective
    tokens: float
    slope: Weights
    diagonal: Weights
    ewc: Weights

    @classmethod
    def at(cls, model: nn.Module, held: Held, goal: Objective, samples: int) -> Forecast:
        """From the model's present weights."""
        count = sum(goal.count(batch) for batch in batches(model, held.test, goal))
        own, earlier = (
            fisher(model, rows, samples=most, objective=goal)
            for rows, most in ((held.test, len(held.test)), (held.train, samples))
        )
        return cls(held, goal, count / len(held.test), gradient(model, held.test, goal), own, earlier)

    def __call__(
        self, model: nn.Module, start: Weights, groups: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        """Of the model as it is now; start: the weights it had at `at`."""
        d = {name: p.detach() - start[name] for name, p in model.named_parameters()}

        def by(of: Weights, power: int, factor: float) -> dict[str, float]:
            parts = {n: factor * (of[n].double() * d[n].double() ** power).sum().item() for n in d}
            return {group: sum(parts[n] for n in names) for group, names in groups.items()}

        with holding(model, start):
            each = slopes(model, self.held.test, d, self.goal)
            bent = curvature(model, self.held.test, d, self.goal)
        half = self.tokens / 2
        return {
            "slope": by(self.slope, 1, 1.0), "diagonal": by(self.diagonal, 2, half), "ewc": by(self.ewc, 2, half),
            "fisher": half * each.square().mean().item(), "curvature": bent / 2,
        }  # fmt: skip
