"""Causal tracing: at which tokens and layers does a model come by a fact that it knows?

Meng et al. 2022 (Locating and Editing Factual Associations in GPT), section 2, for the maps over tokens and layers;
2023, section 3 and figure 3, for the severed paths, by which the layers to be edited are chosen. What the effects
are: `kemem.editing.effects`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from kemem.editing.effects import KINDS, Corrupted, Question, Restored, Runs, Trace, questions, standard_noise
from kemem.editing.facts import KnownFact
from kemem.editing.places import Place
from kemem.errors import BadInput
from kemem.evaluation import evaluating
from kemem.progress import Reporter


@dataclass(frozen=True)
class Mean:
    """Mean over facts, and half the width of its 95 % interval (Student's t; None of a single fact)."""

    value: Float[Tensor, " L"]
    half: Float[Tensor, " L"] | None
    facts: int


@dataclass(frozen=True, eq=False, repr=False)
class Traces:
    """The traces of the facts that a model knows, of `read` that it was asked, and their averages."""

    traces: tuple[Trace, ...]
    read: int
    noise: float
    samples: int
    window: int
    seed: int

    def __repr__(self) -> str:
        return (
            f"Traces({len(self.traces)} of {self.read} facts; total effect {self.clean - self.corrupted:.3f})"
        )

    @property
    def known_share(self) -> float:
        return len(self.traces) / self.read

    @property
    def clean(self) -> float:
        """Mean probability of the answer in the clean run."""
        return math.fsum(each.clean for each in self.traces) / len(self.traces)

    @property
    def corrupted(self) -> float:
        return math.fsum(each.corrupted for each in self.traces) / len(self.traces)

    def effects(self, kind: str) -> dict[str, Mean]:
        """Average indirect effect by role of the token. Each fact that has such a token counts once."""
        rows: dict[str, list[Tensor]] = {}
        for each in self.traces:
            for name, tokens in buckets(each.place).items():
                rows.setdefault(name, []).append(each.indirect[kind][list(tokens)].mean(0))
        return {name: mean(torch.stack(rows[name])) for name in BUCKETS if name in rows}

    @cached_property
    def severed(self) -> dict[str, Mean]:
        """At the subject's last token: "plain", and with "mlp" or "attention" severed, where that was traced."""
        return {
            "plain": mean(torch.stack([each.plain for each in self.traces])),
            **{k: mean(torch.stack([t.severed[k] for t in self.traces])) for k in self.traces[0].severed},
        }

    @cached_property
    def gap(self) -> Mean:
        """What passes through the MLPs: the plain effect minus that with MLPs severed, paired by fact."""
        if not self.traces[0].severed:
            raise BadInput("expected traces with severed paths; got none; trace with severed=True.")
        return mean(torch.stack([each.plain - each.severed["mlp"] for each in self.traces]))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to edit, from 0: `suggested_layers` of the gap."""
        return suggested_layers(self.gap)


def trace(
    model: nn.Module,
    tokenizer: Any,
    facts: Sequence[KnownFact],
    *,
    samples: int = 10,
    window: int = 10,
    noise: float | None = None,
    seed: int = 0,
    severed: bool = True,
    batch_size: int = 128,
    progress: Reporter | None = None,
) -> Traces:
    """Indirect effects of every state, and of windows of MLPs and of attention, on the facts that a model knows.

    Known is a fact whose answer, the first token of " " + attribute, is the model's most probable next token; the
    others are left out and counted. The subject is corrupted by Gaussian noise on its token embeddings, `samples`
    times, by the same noise for every part restored. A window around layer l holds max(0, l - 5) .. min(L, l + 5) - 1
    at the width of 10. noise: its standard deviation, by default that of `noise_scale`, which looks at all facts.
    A fact's noise follows from `seed` and its text, so its numbers do not depend on the others for a given `noise`,
    nor, but for rounding, on batch_size: how many prompts one forward pass reads.
    Differs from Meng et al., whose 10 samples are drawn alike for every prompt, and who keep a fact only if the one
    token predicted is the whole attribute.
    Refused: masked models, prompts beyond the context, facts of which the model knows none.
    """
    for name, number in (("samples", samples), ("window", window), ("batch_size", batch_size)):
        if number < 1:
            raise BadInput(f"expected {name} to be 1 or more; got {number}; give a larger number.")
    runs = Runs(model, batch_size=batch_size)
    asked = questions(tokenizer, facts, longest=getattr(model.config, "max_position_embeddings", None))
    scale = _scale(runs, asked, 3.0) if noise is None else noise
    if not 0 <= scale < math.inf:
        raise BadInput(f"expected noise to be 0 or more, and finite; got {scale}; leave it out for 3 std.")
    traced = []
    with evaluating(model):
        for done, each in enumerate(asked, start=1):
            clean = runs.clean(each)
            if clean.known:
                drawn = scale * standard_noise(each, samples, runs.memories.width, seed)
                traced.append(_traced(runs, runs.corrupted(clean, drawn), window, severed))
            if progress is not None:
                progress(done, len(asked), f"facts, {len(traced)} known")
    if not traced:
        raise BadInput(
            f"expected facts that the model knows; got {len(asked)}, of which it goes on with the attribute in none; "
            "give others, or another model."
        )
    return Traces(tuple(traced), len(asked), float(scale), samples, window, seed)


def noise_scale(model: nn.Module, tokenizer: Any, facts: Sequence[KnownFact], factor: float = 3.0) -> float:
    """How far the subject is to be moved: factor x the standard deviation of the embeddings of subject tokens.

    Over all numbers of all subject tokens, as they stand in the prompts of all facts, before positions are added.
    """
    return _scale(Runs(model), questions(tokenizer, facts), factor)


BUCKETS = ("first_subject", "middle_subject", "last_subject", "first_subsequent", "further", "last")


def buckets(place: Place) -> dict[str, range]:
    """The tokens of a prompt by their role, from its subject on, each in one. Roles without a token are absent.

    The only token of a subject is its last, the only one after it the prompt's last; a prompt that ends with its
    subject has neither `last` nor others after it.
    """
    first, last, end = place.first, place.last, len(place) - 1
    found = (
        range(first, min(first + 1, last)),
        range(first + 1, last),
        range(last, last + 1),
        range(last + 1, min(last + 2, end)),
        range(last + 2, end),
        range(max(last + 1, end), end + 1),
    )
    return {name: tokens for name, tokens in zip(BUCKETS, found, strict=True) if tokens}


def around(layer: int, window: int, layers: int) -> range:
    """The layers of a window centred on one: of an even width one more below it than above."""
    return range(max(0, layer - window // 2), min(layers, layer + window - window // 2))


def mean(rows: Float[Tensor, "N L"]) -> Mean:
    n = len(rows)
    if n < 2:
        return Mean(rows.mean(0), None, n)
    half = float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n) * rows.std(0)
    return Mean(rows.mean(0), half, n)


def suggested_layers(gap: Mean) -> tuple[int, ...]:
    """The layers to edit: where the effect of the state at the subject's last token passes through MLPs above it.

    Meng et al. 2023 choose by eye the layers in which the gap is large. Here they are the run of layers around the
    largest gap in which each has at least half of it, and an interval above 0 where there is one. Always at least the
    layer of the largest gap itself, the first of equals, so look at its interval before trusting it.
    """
    value = gap.value
    low = value if gap.half is None else value - gap.half
    peak = int(value.argmax())
    large = ((value >= value[peak] / 2) & (low > 0)).tolist()
    first = last = peak
    while first > 0 and large[first - 1]:
        first -= 1
    while last + 1 < len(large) and large[last + 1]:
        last += 1
    return tuple(range(first, last + 1))


def _scale(runs: Runs, asked: Sequence[Question], factor: float) -> float:
    with torch.no_grad():
        ids = [id for each in asked for id in each.place.ids[each.place.first : each.place.last + 1]]
        return factor * runs.embedded(ids).cpu().double().std().item()


def _traced(runs: Runs, run: Corrupted, window: int, severed: bool) -> Trace:
    """All parts of one fact, in one list, so that the last batch alone is not full."""
    place, layers = run.clean.question.place, runs.memories.layers
    tokens = range(place.first, len(place))
    widths = {"state": 1, "mlp": window, "attention": window}
    parts = [
        Restored(kind, around(layer, widths[kind], layers), (token,))
        for kind in KINDS
        for token in tokens
        for layer in range(layers)
    ]
    cut = ("mlp", "attention") if severed else ()
    parts += [Restored("state", (layer,), (place.last,), kind) for kind in cut for layer in range(layers)]
    corrupted = run.probabilities.mean()
    effects = runs.restored(run, parts).mean(1) - corrupted
    maps = effects[: len(KINDS) * len(tokens) * layers].view(len(KINDS), len(tokens), layers)
    before = torch.zeros(place.first, layers, dtype=maps.dtype)
    rest = effects[maps.numel() :].view(len(cut), layers)
    return Trace(
        fact=run.clean.question.fact,
        place=place,
        clean=run.clean.probability,
        corrupted=corrupted.item(),
        indirect={kind: torch.cat([before, own]) for kind, own in zip(KINDS, maps, strict=True)},
        severed=dict(zip(cut, rest, strict=True)),
    )
