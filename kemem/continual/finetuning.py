"""What a model is worth to an end task: fine-tuned on it, a copy for each task, or read by a linear probe.

Both look at the mean of the last hidden states over the tokens of a text, with the model as a method shows it on the
domain (its mask, its adapter, its prompt). The model that is given stays as it was, bit for bit, and so do torch's
random generators.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from kemem import arithmetic
from kemem.continual.end_tasks import EndTask, Example, accuracy, f1
from kemem.continual.sequence import Asked
from kemem.corpora.packing import permutation
from kemem.errors import BadInput
from kemem.evaluation import evaluating, padded
from kemem.objective import mix
from kemem.training import Domain, Method

LENGTH = 164  # tokens of a text, as in Ke et al. 2023


@dataclass(frozen=True)
class Score:
    """Of one model on the test of one task. All in per cent; score is the one that the task names."""

    score: float
    macro_f1: float
    accuracy: float
    predictions: tuple[str, ...]


@runtime_checkable
class How(Protocol):
    """A way to put a model to an end task: `FineTuning(...)` or `Probing(...)`. Without a method: the bare model."""

    def __call__(
        self, model: nn.Module, tokenizer: Any, task: EndTask,
        method: Method | None = None, domain: Domain | None = None,
    ) -> Score: ...  # fmt: skip


@dataclass(frozen=True)
class FineTuning:
    """A copy of the model, all of it and a linear head on top, is trained on the task; the last epoch is scored.

    Recipe of Ke et al. 2023: AdamW (epsilon 1e-6, decay on everything), rate falling linearly to 0 without warm-up, no
    clipping, no choice of an epoch. epochs: theirs stand in `published_tasks.PUBLISHED`. learning_rate: theirs, for
    RoBERTa-base; small models want more. Differs from their head: RoBERTa's own, two layers on the first token, which a
    causal model cannot have since its first token has read nothing.
    Refused: a copy whose answers are not finite.
    """

    epochs: int = 5
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    batch_size: int = 16
    length: int = LENGTH
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(self, "epochs", "learning_rate", "batch_size", "length")

    def __call__(
        self, model: nn.Module, tokenizer: Any, task: EndTask,
        method: Method | None = None, domain: Domain | None = None,
    ) -> Score:  # fmt: skip
        length = longest(model, self.length)
        train, test = (encoded(tokenizer, part, length) for part in (task.train, task.test))
        answers = torch.tensor([task.classes.index(example.label) for example in task.train])
        device = next(model.parameters()).device
        own = copy.deepcopy(model).requires_grad_(True)
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            arithmetic.fast(device),
            shown(own, method, domain),
        ):
            torch.manual_seed(mix(self.seed, len(train)) >> 1)
            head = nn.Linear(own.config.hidden_size, len(task.classes)).to(next(own.parameters()))
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            self._train(own.train(), head, train, answers.to(device))
            with torch.no_grad():
                logits = head(features(own, test, batch_size=2 * self.batch_size).to(head.weight))
        if not torch.isfinite(logits).all():
            raise BadInput(
                f"expected finite scores on {task.name!r}; got {logits.abs().max():g}; lower learning_rate "
                f"({self.learning_rate:g})."
            )
        return scored(task, [task.classes[i] for i in logits.argmax(1).tolist()])

    def _train(
        self, model: nn.Module, head: nn.Linear, texts: Sequence[Sequence[int]], answers: Tensor
    ) -> None:
        parameters = [*model.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(
            parameters, self.learning_rate, eps=1e-6, weight_decay=self.weight_decay
        )
        starts = range(0, len(texts), self.batch_size)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.epochs * len(starts))
        for epoch in range(self.epochs):
            order = permutation(len(texts), mix(self.seed, epoch))
            for start in starts:
                rows = order[start : start + self.batch_size]
                found = head(pooled(model, [texts[i] for i in rows]))
                F.cross_entropy(found, answers[rows]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                decay.step()


@dataclass(frozen=True)
class Probing:
    """What can be read off the model as it is: multinomial logistic regression on its frozen features.

        min_W,b  1/N sum_n -log softmax(W x_n + b)[y_n] + strength / 2 |W|^2

    x: features with mean 0 and standard deviation 1 over the training examples. Solved in float64 to its one minimum,
    so nothing is drawn. It needs one pass over the texts instead of three for each epoch, and asks another question:
    what is there, not what can be learned from there. Classes without a training example are never answered.
    """

    strength: float = 0.01
    batch_size: int = 64
    length: int = LENGTH

    def __post_init__(self) -> None:
        _positive(self, "strength", "batch_size", "length")

    def __call__(
        self, model: nn.Module, tokenizer: Any, task: EndTask,
        method: Method | None = None, domain: Domain | None = None,
    ) -> Score:  # fmt: skip
        length = longest(model, self.length)
        with shown(model, method, domain):
            train, test = (
                features(model, encoded(tokenizer, part, length), batch_size=self.batch_size).cpu()
                for part in (task.train, task.test)
            )
        train, test = standardised(train, test)
        classes = [name for name in task.classes if name not in task.untrained]
        answers = torch.tensor([classes.index(example.label) for example in task.train])
        weight, bias = regression(train, answers, len(classes), self.strength)
        return scored(task, [classes[i] for i in (test @ weight.T + bias).argmax(1).tolist()])


def standardised(
    train: Float[Tensor, "N D"], test: Float[Tensor, "K D"]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "K D"]]:
    """Both moved and scaled so that train has mean 0 and standard deviation 1; what is constant there becomes 0."""
    center, spread = train.mean(0), train.std(0, unbiased=False)
    scale = torch.where(spread > 0, spread, 1.0)
    return (train - center) / scale, (test - center) / scale


def regression(
    x: Float[Tensor, "N D"], answers: Tensor, classes: int, strength: float
) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
    """Weights and biases of the logistic regression of `Probing`, by L-BFGS from 0. In float64."""
    points, count = x.double().numpy(), len(x)
    wanted = numpy.eye(classes)[answers.numpy()]

    def loss(flat: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        weight = flat.reshape(classes, -1)
        scores = points @ weight[:, :-1].T + weight[:, -1]
        scores -= scores.max(1, keepdims=True)
        logs = scores - numpy.log(numpy.exp(scores).sum(1, keepdims=True))
        off = (numpy.exp(logs) - wanted) / count  # derivative by the scores
        slope = numpy.column_stack([off.T @ points + strength * weight[:, :-1], off.sum(0)])
        penalty = strength / 2 * (weight[:, :-1] ** 2).sum()
        return float(penalty - (logs * wanted).sum() / count), slope.ravel()

    found = minimize(
        loss, numpy.zeros(classes * (points.shape[1] + 1)), jac=True, method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 4000, "gtol": 1e-8, "ftol": 1e-14, "maxcor": 20},
    )  # fmt: skip
    flat = torch.from_numpy(found.x.reshape(classes, -1))
    return flat[:, :-1], flat[:, -1]


def asked(tasks: Mapping[str, EndTask], how: How, tokenizer: Any) -> Asked:
    """What `sequence.learn` calls: each domain's end task by its name, in per cent; None where it has none.

    Refused, before anything is trained: a task of no domain.
    """

    def ask(model: nn.Module, method: Method, domains: Sequence[Domain]) -> list[float | None]:
        names = [domain.name for domain in domains]
        if strange := [name for name in tasks if name not in names]:
            raise BadInput(
                f"expected end tasks of {', '.join(names)}; got one of {', '.join(strange)}; name a domain."
            )
        return [
            how(model, tokenizer, tasks[domain.name], method, domain).score if domain.name in tasks else None
            for domain in domains
        ]

    return ask


def shown(model: nn.Module, method: Method | None, domain: Domain | None) -> AbstractContextManager[object]:
    """The model as a method shows it on a domain; the bare model where either is missing."""
    return nullcontext() if method is None or domain is None else method.at(model, domain)


def longest(model: nn.Module, length: int = LENGTH) -> int:
    """Tokens that can be read at a time: `length`, or the model's context where that is less."""
    whole: Any = model
    context = getattr(whole.config, "max_position_embeddings", None)
    if context is None:
        return length
    words = whole.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    # a table of positions may keep its first places for padding, as RoBERTa's does
    kept = [m.padding_idx for m in tables if m.num_embeddings == context and m.padding_idx is not None]
    return min(length, context - max(kept, default=-1) - 1)


def encoded(tokenizer: Any, examples: Sequence[Example], length: int) -> list[list[int]]:
    """Token ids, cut to `length`, with the special tokens that the tokenizer puts around a text.

    What is asked about comes first, with the tokenizer's separator (or its end of text) behind it.
    Refused: a text without a token.
    """
    separator = tokenizer.sep_token or tokenizer.eos_token
    if separator is None and any(example.about for example in examples):
        raise BadInput("expected a tokenizer with a separator; got one without; set tokenizer.sep_token.")
    texts = [f"{x.about} {separator}{x.text}" if x.about else x.text for x in examples]
    found = tokenizer(texts, truncation=True, max_length=length, verbose=False)["input_ids"]
    for ids, example in zip(found, examples, strict=True):
        if not ids:
            raise BadInput(f"expected texts with tokens; got {example.text[:40]!r}; leave it out.")
    return found


def pooled(model: nn.Module, texts: Sequence[Sequence[int]]) -> Float[Tensor, "B D"]:
    """Mean of the last hidden states over the tokens of each text, padding left out."""
    device = next(model.parameters()).device
    ids, mask = (tensor.to(device) for tensor in padded(texts))
    base: Any = getattr(model, "base_model", model)  # without the language-model head, which is not needed
    states = base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    states = states[:, -ids.shape[1] :]  # a prompt of a method's own stands before the text
    weight = mask[..., None].to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


def features(
    model: nn.Module, texts: Sequence[Sequence[int]], *, batch_size: int = 64
) -> Float[Tensor, "N D"]:
    """The mean state of every text, in evaluation mode, float64; like lengths are read together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with evaluating(model):
        found = [
            pooled(model, [texts[i] for i in order[start : start + batch_size]]).double()
            for start in range(0, len(order), batch_size)
        ]
    return torch.cat(found)[torch.tensor(order).argsort()]


def scored(task: EndTask, predictions: Sequence[str]) -> Score:
    return Score(
        task.score(predictions), f1(task.labels, predictions), accuracy(task.labels, predictions),
        tuple(predictions),
    )  # fmt: skip


def _positive(settings: object, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise BadInput(f"expected {name} above 0; got {getattr(settings, name)}; raise it.")
