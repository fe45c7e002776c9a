"""How well an edit took: what a model makes of a fact, of other words for it, and of facts that were to stay.

All by teacher forcing: a target is scored after its prompt, each token after the right ones before it. Whether the
model says it by itself, and what it writes, is in `kemem.editing.generation`.
"""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kemem.editing.facts import Request, check
from kemem.editing.places import leading
from kemem.errors import BadInput
from kemem.evaluation import Span, encode_all, evaluating, padded
from kemem.objective import Batch, logits_of

SUCCESS = ("ES", "PS", "NS")
TOKENS = ("rewrite_tokens", "paraphrase_tokens", "locality_tokens")


@dataclass(frozen=True, repr=False)
class Scores:
    """What `Judge` found: of each name a value a record, in the order of the requests, None where it has none.

    With l(target) = mean over its tokens of -log p, and a record's value the mean over its prompts of one kind
    (Meng et al. 2023, sec. 5.2 and app. B.2):

        ES, PS      share of [l(new) < l(true)]: the rewrite prompt; its paraphrases
        NS          share of [l(true) < l(new)]: the neighbours
        EM, PM, NM  the same as differences of exp(-l), such as exp(-l(new)) - exp(-l(true)) for EM
        NS+, NM+    NS and NM with the edit stated before every neighbour's prompt (CounterFact+, Hoelscher-
                    Obermaier et al. 2023); None unless asked for
        rewrite_acc, paraphrase_acc, neighbourhood_acc     every token the likeliest; of new, new and true
        rewrite_tokens, paraphrase_tokens, locality_tokens share of tokens that are the likeliest; of new, new
                    and the answers in `locality`: the efficacy, paraphrase and specificity of zsRE

    All in 0..1, magnitudes in -1..1. A tie is no success, whichever way. A record without prompts of a kind has None,
    and so has one without `true` where that is compared; a magnitude is None where the model gives no number.
    """

    case_ids: tuple[int | str, ...]
    values: Mapping[str, tuple[float | None, ...]]

    def mean(self, name: str) -> float | None:
        """Over the records that have one, x 100; None where none has."""
        return average(self.values[name])[0]

    @property
    def S(self) -> float | None:
        """The harmonic mean of ES, PS and NS; None where one is missing."""
        return harmonic(map(self.mean, SUCCESS))

    @property
    def S_tokens(self) -> float | None:
        """The same of rewrite_tokens, paraphrase_tokens and locality_tokens: the score of zsRE."""
        return harmonic(map(self.mean, TOKENS))

    def summary(self) -> dict[str, Any]:
        """Every average x 100, S and S_tokens, and by name under `interval` and `n`, see `average`: for JSON."""
        both = {"S": self.S, "S_tokens": self.S_tokens}
        return {"records": len(self.case_ids), **both, **averages(self.values)}

    def __repr__(self) -> str:
        shown, whole = [*SUCCESS, *(["NS+"] if self.mean("NS+") is not None else [])], self.S
        if self.mean("ES") is None:
            shown, whole = TOKENS, self.S_tokens
        told = ", ".join(f"{name} {_told(*average(self.values[name])[:2])}" for name in shown)
        return f"Scores(S {_told(whole)}: {told}; {len(self.case_ids)} records)"


def score(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    *,
    batch_size: int = 64,
    prefixed: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Scores:
    """The scores of a model on the requests, edited or not; see `Scores` for what they are, `Judge` for the rest."""
    return Judge(tokenizer, requests, batch_size=batch_size, prefixed=prefixed)(model, progress=progress)


class Judge:
    """Requests cut into tokens and laid out once, and scored as often as a model is asked: before an edit and after.

    Targets follow their prompts after one space, as token ids that are never decoded, behind the special tokens
    that the tokenizer puts first by default. Whatever begins another text is not read again: two targets of one
    token after the same prompt are two entries of one distribution.

    In half precision many scores tie, which a model in float32 tells apart.

    batch_size: texts at a time. prefixed: NS+ and NM+ as well, at the price of longer prompts once more.
    Differs from the authors' code, where zsRE's targets are decoded token by token and cut into tokens again, and
    where ties of the likeliest token count as right.
    """

    def __init__(
        self, tokenizer: Any, requests: Sequence[Request], *, batch_size: int = 64, prefixed: bool = False
    ) -> None:
        check(requests)
        start = leading(tokenizer)
        pairs: list[tuple[str, str]] = []
        cases: list[int | str] = []  # of each pair

        def ask(prompt: str, *targets: str | None) -> tuple[int | None, ...]:
            asked: list[int | None] = []
            for target in targets:
                asked.append(None if target is None else len(pairs))
                if target is not None:
                    pairs.append((prompt, f" {target.strip()}"))
            return tuple(asked)

        self._case_ids = tuple(r.case_id for r in requests)
        self._records = []
        for r in requests:
            near = () if r.true is None else r.neighbours
            stated = tuple(f"{r.text.rstrip(' ')} {r.new.strip()}. {prompt}" for prompt in near)
            self._records.append(
                {
                    "rewrite": [ask(r.text, r.new, r.true)],
                    "paraphrase": [ask(prompt, r.new, r.true) for prompt in r.paraphrases],
                    "neighbour": [ask(prompt, r.new, r.true) for prompt in near],
                    "stated": [ask(prompt, r.new, r.true) for prompt in stated] if prefixed else [],
                    "locality": [ask(prompt, answer) for prompt, answer in r.locality],
                }
            )
            cases += [r.case_id] * (len(pairs) - len(cases))
        spans = encode_all(tokenizer, pairs, start=start)
        self._readings = Readings(spans, batch_size=batch_size, cases=cases)

    def __call__(self, model: nn.Module, *, progress: Callable[[int, int], object] | None = None) -> Scores:
        """The scores of a model as it is now. progress: called with the texts read and their number."""
        losses, right = (found.tolist() for found in self._readings(model, progress=progress))
        found = [_valued(record, losses, right) for record in self._records]
        return Scores(self._case_ids, {name: tuple(own[name] for own in found) for name in found[0]})


def _valued(
    record: Mapping[str, list[tuple[int | None, ...]]], losses: Sequence[float], right: Sequence[float]
) -> dict[str, float | None]:
    """The values of one record: losses and shares of right tokens are looked up by the number of a question."""
    values: dict[str, float | None] = {}
    rows = (("rewrite", "E", ""), ("paraphrase", "P", ""), ("neighbour", "N", ""), ("stated", "N", "+"))
    for kind, letter, plus in rows:
        pairs = [(losses[new], losses[true]) for new, true in record[kind] if true is not None]
        if letter == "N":
            pairs = [(true, new) for new, true in pairs]
        magnitude = _mean(math.exp(-wanted) - math.exp(-other) for wanted, other in pairs)
        values[f"{letter}S{plus}"] = _mean(wanted < other for wanted, other in pairs)
        values[f"{letter}M{plus}"] = None if magnitude is None or math.isnan(magnitude) else magnitude
    for kind, name, which in (("rewrite", "", 0), ("paraphrase", "", 0), ("neighbour", "hood", 1)):
        values[f"{kind}{name}_acc"] = _mean(right[asked[which]] == 1 for asked in record[kind])
    for kind in ("rewrite", "paraphrase", "locality"):
        values[f"{kind}_tokens"] = _mean(right[asked[0]] for asked in record[kind])
    return values


class Readings:
    """Prompts with targets, in padded batches of like lengths, laid out once: each target's loss and right tokens.

    Only what predicts a target passes the model's head, where the model lets one choose: with a large vocabulary
    and a small width the head is most of the work. cases: by which names texts are told in a refusal.
    """

    def __init__(
        self, spans: Sequence[Span], *, batch_size: int = 64, cases: Sequence[int | str] | None = None
    ) -> None:
        if batch_size < 1:
            raise BadInput(f"expected a batch of at least one text; got {batch_size}; 64 is usual.")
        self._counts = torch.tensor([len(span.target) for span in spans], dtype=torch.float64)
        texts: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for text, number in _gathered([span.ids[:-1] for span in spans]):  # the last token predicts nothing
            texts[text].append(number)
        rows = sorted(texts, key=lambda text: (len(text), text))
        self.texts = len(rows)
        longest = max(range(len(spans)), key=lambda number: len(spans[number].ids))
        self._longest = len(spans[longest].ids), longest if cases is None else cases[longest]
        self._batches = []
        for begin in range(0, len(rows), batch_size):
            part = rows[begin : begin + batch_size]
            wanted = [
                (row, place, token, number)
                for row, text in enumerate(part)
                for number in texts[text]
                for place, token in enumerate(spans[number].target, spans[number].begin - 1)
            ]
            *places, tokens, numbers = torch.tensor(wanted).T
            places, which = torch.unique(torch.stack(places), dim=1, return_inverse=True)
            self._batches.append((*padded(part), places, which, tokens, numbers))

    def __call__(
        self, model: nn.Module, *, progress: Callable[[int, int], object] | None = None
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Of each target the mean of -log p over its tokens, in nats, and the share that are the likeliest token.

        Float64 on the CPU. A tie for the likeliest is not right. Refused: texts longer than the model's context.
        """
        limit = context(model)
        length, case = self._longest
        if limit is not None and length - 1 > limit:  # the last token is not read
            raise BadInput(
                f"expected prompts with targets within the model's context of {limit} tokens; got {length} in case "
                f"{case}; leave the record out."
            )
        losses, right = torch.zeros_like(self._counts), torch.zeros_like(self._counts)
        done = 0
        with evaluating(model) as device:
            for ids, mask, places, which, tokens, numbers in self._batches:
                batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
                loss, likeliest = _read(model, batch, places, which.to(device), tokens.to(device))
                losses.index_add_(0, numbers, loss)
                right.index_add_(0, numbers, likeliest.double())
                done += len(ids)
                if progress is not None:
                    progress(done, self.texts)
        return losses / self._counts, right / self._counts


def _gathered(texts: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Of each text a text that begins with it, and its number: one that is read anyway wherever there is one."""
    last: tuple[int, ...] = ()
    for number in sorted(range(len(texts)), key=texts.__getitem__, reverse=True):
        # in the order of words, what begins with a text comes right after it
        if last[: len(texts[number])] != texts[number]:
            last = texts[number]
        yield last, number


def _read(
    model: nn.Module, batch: Batch, places: Tensor, which: Tensor, tokens: Tensor
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """-log p of tokens[i] at (row, place) number which[i] of `places` [2 P], and whether it is the likeliest there."""
    first, end = int(places[1].min()), batch["input_ids"].shape[1]
    row, place = places.to(tokens.device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits = logits_of(model, {**batch, "logits_to_keep": torch.arange(first, end, device=row.device)})
    else:
        logits = logits_of(model, batch)[:, first:]
    logits = logits[row, place - first]  # [P V]
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    own, best = logits[which, tokens], logits.amax(-1)
    alone = (logits == best[:, None]).sum(-1) == 1
    # subtracted in float64: what differs in the model's scores must not be rounded to a tie
    loss = logits.logsumexp(-1)[which].cpu().double() - own.cpu().double()
    return loss, ((own == best[which]) & alone[which]).cpu()


def context(model: nn.Module) -> int | None:
    """The most tokens that a model reads, None where its configuration names no bound."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def average(values: Iterable[float | None]) -> tuple[float | None, float | None, int]:
    """Mean x 100 over what is not None, half its 95 % interval, and how many there are; None where too few.

    The interval is 1.96 std / sqrt(n), as in the paper's tables, std with n below the fraction; not from one value.
    """
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    count = len(known)
    spread = known.std(correction=0).item() / math.sqrt(count) if count > 1 else None
    mean = 100 * known.mean().item() if count else None
    return mean, None if spread is None else 196 * spread, count


def averages(values: Mapping[str, Iterable[float | None]]) -> dict[str, Any]:
    """Of each name its average, and by name under `interval` and `n` the other two numbers of `average`."""
    found = {name: average(own) for name, own in values.items()}
    mean, interval, count = ({name: own[i] for name, own in found.items()} for i in range(3))
    return {**mean, "interval": interval, "n": count}


def harmonic(values: Iterable[float | None]) -> float | None:
    """n / sum_i (1 / x_i); 0 where one is 0, None where one is missing."""
    known = list(values)
    if any(value is None for value in known):
        return None
    return len(known) / sum(1 / value for value in known) if all(known) else 0.0


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _told(mean: float | None, interval: float | None = None) -> str:
    if mean is None:
        return "none"
    return f"{mean:.1f}" if interval is None else f"{mean:.1f} ± {interval:.1f}"
