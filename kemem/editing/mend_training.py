"""Training MEND's networks: an edit by the prompt should hold for its paraphrases and leave other text alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from kemem.editing.facts import Request
from kemem.editing.finetune import parameters, plain, predicting, target_losses
from kemem.editing.memit import prepared
from kemem.editing.mend import Networks, factors, stored
from kemem.editing.places import leading
from kemem.editing.prompts import PLAIN
from kemem.editing.targets import Progress
from kemem.errors import BadInput
from kemem.evaluation import Rows, Span, encode, evaluating
from kemem.objective import IGNORED, causal, logits_of


@dataclass(frozen=True)
class Training:
    """How networks are trained; defaults are those of the networks that Meng et al. 2023 compare with.

    steps: of Adam, each on the mean gradient of `accumulate` edits of one request. network_rate, rates_rate: step size
    of the networks, and of the rates lr_p. clip: norm to which the gradient is cut. edit, stay: weights of the two
    terms of the loss. texts: rows of other text an edit is held against. seed: of what is drawn.

    Differs from the authors' training, which also validates every 5,000 edits and ends 20,000 after the best.
    """

    steps: int
    accumulate: int = 10
    network_rate: float = 1e-6
    rates_rate: float = 1e-4
    clip: float = 100.0
    edit: float = 0.1
    stay: float = 1.0
    texts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "clip", "texts"):
            if not getattr(self, name) > 0:
                raise BadInput(f"expected {name} above 0; got {getattr(self, name)}; give a positive number.")


@dataclass(frozen=True)
class Trained:
    """Of each step, means over its edits: the loss, -log p of the target afterwards, KL divergence on other text."""

    losses: Float[Tensor, " S"]
    edits: Float[Tensor, " S"]
    strays: Float[Tensor, " S"]


def train_(
    networks: Networks,
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    text: Rows,
    settings: Training,
    *,
    progress: Progress | None = None,
) -> Trained:
    """Trains networks in place, on edits of a model that stays as it is.

    Mitchell et al. 2022:  L = edit * -log p(target | paraphrase; W + Delta) + stay * KL(p(.; W) || p(.; W + Delta)).
    Delta is the update by the request's own prompt, the paraphrase is drawn from the request's, or the prompt itself
    where it has none; the divergence is a mean over the tokens of other text that predict one. Requests and rows of
    text come in drawn orders, every one once before any comes again. Edits are never written into the model.
    """
    memories = predicting(model)
    networks.fitting(model)
    of = prepared(memories, tokenizer, requests, (PLAIN,), ())
    if not len(text):
        raise BadInput("expected other text for an edit to leave alone; got no rows; give more text.")
    heard = _paraphrases(tokenizer, requests, getattr(model.config, "max_position_embeddings", None))
    generator = torch.Generator().manual_seed(settings.seed)
    edits, others = _Order(len(of), generator), _Order(len(text), generator)
    network = list(networks.transforms.parameters())
    groups = [
        {"params": network, "lr": settings.network_rate},
        {"params": [networks.rates], "lr": settings.rates_rate},
    ]
    adam = torch.optim.Adam(groups)
    seen = torch.zeros(settings.steps, 3, dtype=torch.float64)
    for step in range(settings.steps):
        adam.zero_grad()
        for _ in range(settings.accumulate):
            (number,) = edits.take(1)
            said = plain([of[number]])
            among = heard[number] or [Span(said[0][0], said[1][0])]
            target = among[int(torch.randint(len(among), (), generator=generator))]
            changed = edited(networks, model, *said)
            nll, kl = _terms(model, changed, target, text.batch(torch.tensor(others.take(settings.texts))))
            loss = settings.edit * nll + settings.stay * kl
            (loss / settings.accumulate).backward()
            seen[step] += torch.tensor([loss.item(), nll.item(), kl.item()]) / settings.accumulate
        if not math.isfinite(seen[step, 0]):
            raise BadInput(
                f"expected a loss that is a number; got {seen[step, 0]:.3g} in step {step + 1}; take lower rates."
            )
        nn.utils.clip_grad_norm_([*network, networks.rates], settings.clip)
        adam.step()
        if progress is not None:
            progress(step + 1, settings.steps, f"loss {seen[step, 0]:.3g}")
    adam.zero_grad()
    return Trained(*seen.T)


def edited(
    networks: Networks, model: nn.Module, rows: Sequence[Sequence[int]], begins: Sequence[int]
) -> dict[str, Tensor]:
    """The model's parameters with the update by some requests added, which has a gradient; the tokens are learned."""
    weights = parameters(model)
    for name, (x, delta) in factors(model, list(networks.weights), rows, begins).items():
        networks.transforms[networks.place[name][0]].learn(x, delta)
        weights[name] = weights[name] + stored(model, name, networks.update(name, x, delta))
    return weights


def _terms(
    model: nn.Module, changed: Mapping[str, Tensor], target: Span, batch: Mapping[str, Tensor]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """-log p of a target, the mean over its tokens; and how far other text's next tokens have strayed."""
    with evaluating(model) as device:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        counted = causal.targets(batch) != IGNORED
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        before = _log(logits_of(model, batch)[counted])
        with torch.enable_grad():
            nll = target_losses(model, changed, [target.ids], [target.begin])[0]
            given = {**inputs, "use_cache": False}
            after = _log(functional_call(model, dict(changed), (), given).logits[counted])
            return nll, (before.exp() * (before - after)).sum(-1).mean()


def _log(logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _paraphrases(tokenizer: Any, requests: Sequence[Request], longest: int | None) -> list[list[Span]]:
    """Of each request its paraphrases with the new target, as tokens."""
    start = leading(tokenizer)
    found = [
        [encode(tokenizer, said, " " + r.new.strip(), start=start) for said in r.paraphrases]
        for r in requests
    ]
    for r, spans in zip(requests, found, strict=True):
        most = max((len(span.ids) for span in spans), default=0)
        if longest is not None and most > longest:
            raise BadInput(
                f"expected paraphrases within the model's context of {longest} tokens; got {most} in case "
                f"{r.case_id}; leave it out."
            )
    return found


class _Order:
    """Numbers below `count` in drawn orders, one after the other."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator
        self.left: list[int] = []

    def take(self, number: int) -> list[int]:
        while len(self.left) < number:
            self.left += torch.randperm(self.count, generator=self.generator).tolist()
        taken, self.left = self.left[:number], self.left[number:]
        return taken
