"""What a model knows of a text: its loss, the probability of targets, their rank among candidates, samples.

Padding never counts, every module's mode is given back, and no gradients are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kemem import arithmetic
from kemem.errors import BadInput
from kemem.objective import IGNORED, Objective, causal, logits_of, row_key, token_losses
from kemem.spans import Span, encode, encode_all


@runtime_checkable
class Rows(Protocol):
    """Numbered rows of text. `kemem.corpora.Blocks` is one."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode, without gradients, for as long as the block lasts. Gives the model's device."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), arithmetic.fast(device, tf32=True):
            yield device
    finally:
        for module, mode in modes.items():
            module.training = mode


def loss(
    model: nn.Module,
    blocks: Rows,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    objective: Objective = causal,
    seed: int = 0,
) -> float:
    """Mean loss over all target tokens of the text, in nats; its exponential is the perplexity.

    Every target token counts once, however rows are filled or grouped. Summed in float64.
    limit: rows read, from the first. seed: of what a masked objective hides.
    """
    rows = len(blocks) if limit is None else min(limit, len(blocks))
    total, count = 0.0, 0
    with evaluating(model) as device:
        for start in range(0, rows, batch_size):
            indices = torch.arange(start, min(start + batch_size, rows))
            keys = [row_key(seed, 0, row) for row in indices.tolist()]
            batch = objective.prepare(blocks.batch(indices), keys)
            found = objective.count(batch)
            if found:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                losses = token_losses(logits_of(model, batch), objective.targets(batch))
                total += losses.cpu().sum(dtype=torch.float64).item()
                count += found
    if count == 0:
        raise BadInput(f"expected text with tokens to predict; got {rows} rows without any; give more text.")
    return total / count


def target_log_probability(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    mean: bool = True,
    start: Sequence[int] = (),
    batch_size: int = 64,
) -> Float[Tensor, " N"]:
    """log p(target | prompt) in nats of each (prompt, target), float64 on the CPU.

    mean: divided by the number of target tokens, so that short and long targets compare; otherwise the sum.
    start: token ids before every prompt, such as the end of text that precedes each document in packed
    training. How the two texts are joined and cut: `encode`.
    """
    spans = encode_all(tokenizer, pairs, start=start)
    return Targets(spans, batch_size=batch_size)(model, mean=mean)


class Targets:
    """Prompts with their targets in padded batches, laid out once and scored as often as a model is asked.

    Like lengths stand together, so that there is little padding.
    """

    def __init__(self, spans: Sequence[Span], *, batch_size: int = 64) -> None:
        order = sorted(range(len(spans)), key=lambda i: len(spans[i].ids))
        self._batches = []
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            ids, mask = padded([spans[i].ids for i in part])
            targets = torch.full_like(ids, IGNORED)
            for row, i in enumerate(part):
                end = len(spans[i].ids)
                targets[row, spans[i].begin - 1 : end - 1] = ids[row, spans[i].begin : end]
            self._batches.append((part, ids, mask, targets))

    def __call__(self, model: nn.Module, *, mean: bool = True) -> Float[Tensor, " N"]:
        """log p(target | prompt) in nats of each, float64 on the CPU; see `target_log_probability`."""
        result = torch.zeros(sum(len(part) for part, *_ in self._batches), dtype=torch.float64)
        with evaluating(model) as device:
            for part, ids, mask, targets in self._batches:
                batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
                losses = token_losses(logits_of(model, batch), targets.to(device)).cpu().double()
                result[part] = -losses.sum(1) / ((targets != IGNORED).sum(1) if mean else 1)
        return result


@dataclass(frozen=True)
class Cloze:
    """Candidates for a blank: the score of each (log-probability, nats) and the place of the right one.

    Where prompts have different numbers of candidates, the missing ones score -inf.
    """

    scores: Float[Tensor, "N C"]
    answers: Int[Tensor, " N"]

    @property
    def rank(self) -> Int[Tensor, " N"]:
        """1 for the right answer on top. Ties count against it: a model that knows nothing must not win."""
        own = self.scores.gather(1, self.answers[:, None])
        return (self.scores >= own).sum(1)

    @property
    def accuracy(self) -> float:
        """Share of blanks whose right answer scores above every other candidate."""
        return (self.rank == 1).double().mean().item()


def cloze(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    answers: Sequence[int],
    *,
    mean: bool = True,
    start: Sequence[int] = (),
    batch_size: int = 32,
) -> Cloze:
    """Scores every candidate after its prompt, as `target_log_probability` does, reading each prompt once.

    answers: place of the right one in each list of candidates. batch_size: prompts at a time.
    """
    counts = len(prompts), len(candidates), len(answers)
    if len(set(counts)) > 1 or not counts[0]:
        raise BadInput(
            "expected a list of candidates and an answer for each prompt, and a prompt; "
            "got {} prompts, {} lists and {} answers; give one of each.".format(*counts)
        )
    groups = []
    for prompt, words, answer in zip(prompts, candidates, answers, strict=True):
        if not 0 <= answer < len(words):
            raise BadInput(
                f"expected the place of an answer among {len(words)} candidates; got {answer}; count from 0."
            )
        groups.append([encode(tokenizer, prompt, word, start=start) for word in words])
    order = sorted(range(len(groups)), key=lambda i: groups[i][0].begin)
    scores = torch.full((len(groups), max(map(len, groups))), -torch.inf, dtype=torch.float64)
    with evaluating(model) as device:
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            spans = [span for i in part for span in groups[i]]
            rows = [row for row, i in enumerate(part) for _ in groups[i]]
            sums = _after_prompts(
                model, [groups[i][0].prompt for i in part], rows, [s.target for s in spans], device
            )
            found = sums / torch.tensor([len(s.target) for s in spans]) if mean else sums
            for i, own in zip(part, found.split([len(groups[i]) for i in part]), strict=True):
                scores[i, : len(own)] = own
    return Cloze(scores, torch.tensor(answers))


def _after_prompts(
    model: nn.Module,
    prompts: Sequence[tuple[int, ...]],
    rows: Sequence[int],
    targets: Sequence[tuple[int, ...]],
    device: torch.device,
) -> Float[Tensor, " N"]:
    """Sum of log p of each target after prompt number rows[i]; the prompts are read once and remembered."""
    ids, mask = (tensor.to(device) for tensor in padded(prompts))
    read = model(input_ids=ids, attention_mask=mask, use_cache=True)
    lengths = mask.sum(1)
    last = read.logits[torch.arange(len(ids), device=device), lengths - 1]
    chosen = torch.tensor(rows, device=device)
    first = torch.tensor([target[0] for target in targets], device=device)
    result = -token_losses(last[chosen][:, None], first[:, None])[:, 0].cpu().double()
    if max(map(len, targets)) == 1:
        return result
    given, given_mask = (
        tensor.to(device) for tensor in padded([target[:-1] or target for target in targets])
    )
    following, _ = padded([target[1:] or target for target in targets])
    for row, target in enumerate(targets):
        following[row, len(target) - 1 :] = IGNORED
    cache = read.past_key_values
    cache.batch_select_indices(chosen)
    places = lengths[chosen][:, None] + torch.arange(given.shape[1], device=device)
    scores = model(
        input_ids=given,
        attention_mask=torch.cat([mask[chosen], given_mask], 1),
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    ).logits
    return result - token_losses(scores, following.to(device)).cpu().double().sum(1)


def sample(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    *,
    tokens: int = 32,
    seed: int = 0,
    temperature: float = 0.0,
) -> str:
    """How the model goes on: by the likeliest token at temperature 0, otherwise drawn from `seed`."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and len(ids) + tokens > context:
        raise BadInput(
            f"expected prompt and continuation to fit in the model's context of {context} tokens; got "
            f"{len(ids)} and {tokens}; shorten one of them."
        )
    drawn = (
        {"do_sample": True, "temperature": temperature, "top_k": 0}
        if temperature > 0
        else {"do_sample": False}
    )
    with evaluating(model) as device, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        given = torch.tensor([ids], device=device)
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            **drawn,
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Ids and mask, padded on the right: a causal model then reads each row as if it were alone."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.view(len(rows), longest), (torch.arange(longest) < lengths[:, None]).long()
