"""What an edited model writes: whether it says the new object by itself, how varied its texts are, and how near to
texts about that object (Meng et al. 2023, sec. 5.2 and app. B.2: generation entropy and reference score)."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kemem.editing.facts import Request, check
from kemem.editing.places import leading
from kemem.editing.scores import averages, context
from kemem.errors import BadInput
from kemem.evaluation import encode_all, evaluating, padded
from kemem.objective import mix

Choice = Callable[
    [Float[Tensor, "B V"], Sequence[int], int], Int[Tensor, " B"]
]  # scores, numbers of texts, step
References = Mapping[tuple[str, str], Sequence[str]]


def generated_success(
    model: nn.Module, tokenizer: Any, requests: Sequence[Request], *, batch_size: int = 64
) -> tuple[bool, ...]:
    """Of each request, whether the model goes on from its prompt with the new object, by the likeliest token each.

    The first tokens count, as many as the object has. By induction over them this is `rewrite_acc` of
    `kemem.editing.scores`, ties apart: a continuation leaves the object at the first token that is not the
    likeliest. It is stricter than ES, and than shares of tokens (`rewrite_tokens`).
    Refused: prompts that leave no room for the object in the model's context.
    """
    check(requests)
    start = leading(tokenizer)
    spans = encode_all(tokenizer, [(r.text, f" {r.new.strip()}") for r in requests], start=start)
    limit = context(model)
    for r, span in zip(requests, spans, strict=True):
        if limit is not None and len(span.ids) > limit:
            raise BadInput(
                f"expected a prompt and object within the model's context of {limit} tokens; got {len(span.ids)} "
                f"in case {r.case_id}; leave the record out."
            )
    prompts, counts = [span.prompt for span in spans], [len(span.target) for span in spans]
    found = greedy(model, prompts, counts, batch_size=batch_size)
    return tuple(own == span.target for own, span in zip(found, spans, strict=True))


@dataclass(frozen=True, repr=False)
class Generations:
    """Texts that a model wrote, of each request one for each of its generation prompts, which they begin with.

    tokens: how many were generated of each, 0 where the prompt alone is as long as asked. entropies, references:
    of each request GE and RS, None where it has no prompts or no reference texts. RS in 0..1, GE in bits.
    """

    case_ids: tuple[int | str, ...]
    texts: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    entropies: tuple[float | None, ...]
    references: tuple[float | None, ...]

    def summary(self) -> dict[str, Any]:
        """GE and RS x 100 as in the paper's tables, intervals and n as in `Scores.summary`, texts and tokens."""
        return {
            "records": len(self.case_ids),
            "texts": sum(map(len, self.texts)),
            "tokens": sum(map(sum, self.tokens)),
            **averages({"GE": self.entropies, "RS": self.references}),
        }

    def __repr__(self) -> str:
        found = self.summary()
        told = ", ".join(
            f"{name} none" if found[name] is None else f"{name} {found[name]:.1f}" for name in ("GE", "RS")
        )
        return f"Generations({told}; {found['texts']} texts, {found['tokens']} tokens generated)"


def generate(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    *,
    references: References | None = None,
    length: int = 100,
    top_k: int = 5,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], object] | None = None,
) -> Generations:
    """Texts of `length` tokens in all, prompt included, drawn from the `top_k` likeliest tokens; their GE and RS.

    The end of a text does not stop it. Where the model's context is shorter, that is the length. A text's draws hang
    on the seed, the case_id and the place of its prompt, so that neither the batch nor other requests change them.

    references: (relation, new_id), or (relation, new), to texts about such an object. RS is the TF-IDF cosine of a
    request's texts joined and its references joined, weighted by all the references given.
    progress: called with the texts written and their number.
    Differs from the authors' code in what a word is (see `words`), in weights fitted on the references at hand
    instead of a published vocabulary, and in the draws, which there come from one unseeded stream.
    """
    check(requests)
    for name, value in (("length", length), ("top_k", top_k), ("batch_size", batch_size)):
        if value < 1:
            raise BadInput(f"expected {name} to be at least 1; got {value}; the paper has 100 tokens, top 5.")
    start = leading(tokenizer)
    limit = context(model)
    length = length if limit is None else min(length, limit)
    prompts, draws = [], []
    for r in requests:
        for i, prompt in enumerate(r.generation):
            prompts.append((*start, *tokenizer(prompt.rstrip(" "), add_special_tokens=False)["input_ids"]))
            if not prompts[-1]:
                raise BadInput(f"expected a text to continue; got none in case {r.case_id}; correct it.")
            key = mix(seed, int(sha256(str(r.case_id).encode()).hexdigest()[:16], 16), i)
            # all of them, whatever the prompt's length, so that a draw is told by its place alone
            own = torch.rand(length, generator=torch.Generator().manual_seed(key >> 1), dtype=torch.float64)
            draws.append(own)

    def choose(scores: Float[Tensor, "B V"], numbers: Sequence[int], step: int) -> Int[Tensor, " B"]:
        return drawn(scores, torch.stack([draws[i][step] for i in numbers]), top_k)

    counts = [max(0, length - len(ids)) for ids in prompts]
    written = continued(model, prompts, counts, choose, batch_size=batch_size, progress=progress)
    wholes = ([*ids[len(start) :], *own] for ids, own in zip(prompts, written, strict=True))
    texts = _by_request(requests, [tokenizer.decode(ids, skip_special_tokens=True) for ids in wholes])
    return Generations(
        tuple(r.case_id for r in requests),
        texts,
        _by_request(requests, counts),
        tuple(sum(map(entropy, own)) / len(own) if own else None for own in texts),
        reference_scores(requests, texts, references or {}),
    )


def _by_request(requests: Sequence[Request], values: Iterable[Any]) -> tuple[tuple[Any, ...], ...]:
    """One value for each generation prompt, in a row, put together by request."""
    left = iter(values)
    return tuple(tuple(islice(left, len(r.generation))) for r in requests)


def drawn(scores: Float[Tensor, "B V"], draws: Float[Tensor, " B"], top_k: int) -> Int[Tensor, " B"]:
    """One of the likeliest tokens of each row, by a number in [0, 1): the one in whose share of their sum it falls."""
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    best = scores.topk(min(top_k, scores.shape[1]))
    reached = best.values.softmax(-1).cumsum(-1)
    place = (reached[:, :-1] <= draws.to(reached)[:, None]).sum(-1)  # the last one takes what rounding leaves
    return best.indices.gather(1, place[:, None])[:, 0]


def greedy(
    model: nn.Module, prompts: Sequence[tuple[int, ...]], counts: Sequence[int], *, batch_size: int = 64
) -> list[tuple[int, ...]]:
    """The counts[i] tokens by which the model goes on after prompt i, each the likeliest."""
    return continued(model, prompts, counts, lambda scores, *_: scores.argmax(-1), batch_size=batch_size)


def continued(
    model: nn.Module,
    prompts: Sequence[tuple[int, ...]],
    counts: Sequence[int],
    choose: Choice,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], object] | None = None,
) -> list[tuple[int, ...]]:
    """As many tokens as counts[i] after prompt i, each chosen from the scores that follow those before.

    Prompts of like lengths stand together, padded on the right: what is written later takes the positions of its own
    text, and the padding between is never looked at, so that a text is what it would be alone.
    """
    found: list[tuple[int, ...]] = [()] * len(prompts)
    order = sorted((i for i in range(len(prompts)) if counts[i]), key=lambda i: (len(prompts[i]), -counts[i]))
    done = len(prompts) - len(order)
    with evaluating(model) as device:
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            ids, mask = (tensor.to(device) for tensor in padded([prompts[i] for i in part]))
            lengths = mask.sum(1)
            wanted = torch.tensor([counts[i] for i in part], device=device)
            read = model(input_ids=ids, attention_mask=mask, use_cache=True)
            scores = read.logits[torch.arange(len(part), device=device), lengths - 1]
            chosen = [choose(scores, part, 0)]
            for step in range(1, int(wanted.max())):
                mask = torch.cat([mask, mask.new_ones(len(part), 1)], 1)
                # a text that is done goes on in place, so that it never leaves the context; nobody reads it
                places = lengths + (wanted - 2).clamp(max=step - 1)
                read = model(
                    input_ids=chosen[-1][:, None],
                    attention_mask=mask,
                    position_ids=places[:, None],
                    past_key_values=read.past_key_values,
                    use_cache=True,
                )
                chosen.append(choose(read.logits[:, -1], part, step))
            for i, own in zip(part, torch.stack(chosen, 1).tolist(), strict=True):
                found[i] = tuple(own[: counts[i]])
            done += len(part)
            if progress is not None:
                progress(done, len(prompts))
    return found


# ---------------------------------------------------------------------- variety
def words(text: str) -> list[str]:
    """Runs of letters and digits, with apostrophes and hyphens inside them, and every other sign by itself.

    Differs from the authors' code, where NLTK also cuts "don't" into "do" and "n't", and keeps "..." whole.
    """
    return re.findall(r"\w+(?:[-'’]\w+)*|[^\w\s]", text)


def entropy(text: str) -> float:
    """How little a text repeats itself, in bits: ((2/3) H2 + (4/3) H3) / 2, of its pairs and triples of words.

    H_n = - sum_g f(g) log2 f(g), f(g) the share of n-gram g. Bounds: 0, as for a text too short to have any, and
    for n words about log2 n. The factor 1/2, which the paper's eq. 27 lacks, is that of its code and numbers.
    """
    return (2 / 3 * _entropy(words(text), 2) + 4 / 3 * _entropy(words(text), 3)) / 2


def _entropy(row: Sequence[str], size: int) -> float:
    counts = Counter(zip(*(row[i:] for i in range(size)), strict=False))
    total = counts.total()
    return sum((count / total * math.log2(total / count) for count in counts.values()), 0.0)


# ---------------------------------------------------------------------- nearness to texts about the new object
class TfIdf:
    """How much the words of a text tell, by the texts that it was fitted on.

        weight(w) = (how often w stands in the text) * (ln((1 + n) / (1 + n_w)) + 1)

    n texts, of which n_w hold w; then scaled to length 1. Words are in lower case, of two signs or more; those in
    none of the n texts do not count.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        holding = Counter(word for text in texts for word in set(_lower(text)))
        self.rarity = {word: math.log((1 + len(texts)) / (1 + n)) + 1 for word, n in holding.items()}

    def __call__(self, text: str) -> dict[str, float]:
        """Weight by word; empty where the text holds no word of those it was fitted on."""
        found = {w: n * self.rarity[w] for w, n in Counter(_lower(text)).items() if w in self.rarity}
        norm = math.sqrt(sum(value**2 for value in found.values()))
        return {word: value / norm for word, value in found.items()}


def _lower(text: str) -> list[str]:
    return re.findall(r"\w\w+", text.lower())


def cosine(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Of two texts as `TfIdf` gives them, in 0..1."""
    return sum((value * b.get(word, 0.0) for word, value in a.items()), 0.0)


def reference_scores(
    requests: Sequence[Request], texts: Sequence[Sequence[str]], references: References
) -> tuple[float | None, ...]:
    """RS of each request: how near its texts, joined, are to the references of its object, joined; see `generate`."""
    for key, own in references.items():
        if isinstance(own, str):
            raise BadInput(f"expected a list of reference texts for {key}; got one text; put it in a list.")
    weights = TfIdf([text for own in references.values() for text in own])
    vectors: dict[tuple[str, str], dict[str, float]] = {}

    def scored(r: Request, own: Sequence[str]) -> float | None:
        key = next((k for k in _keys(r) if references.get(k)), None)
        if key is None or not own:
            return None
        if key not in vectors:
            vectors[key] = weights(" ".join(references[key]))
        return cosine(weights(" ".join(own)), vectors[key])

    return tuple(scored(r, own) for r, own in zip(requests, texts, strict=True))


def _keys(r: Request) -> Iterable[tuple[str, str]]:
    """By which names the reference texts of a request may be filed, the surest first."""
    if r.relation is not None:
        if r.new_id is not None:
            yield r.relation, r.new_id
        yield r.relation, r.new.strip()
