"""What a row of part 3 or of chapter 15 takes to compute: `kemem.studies.work` for edits, traces and what is compared.

What depends on texts is taken from the numbers below, which are those of this book's texts, rounded up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from kemem.studies.methods import ATTENTION, METHODS
from kemem.studies.operations import QUESTION, Algebra, Moments, Part, Work
from kemem.studies.pretraining import Pretraining, sources
from kemem.studies.setup import Setup

SCORED = 40 * 16
"""Tokens of all prompts by which one edited fact is scored."""
SOUGHT = 25 * 6 * 24
"""Tokens of a search for one target: passes, contexts, tokens of each."""
PROMPTED = SOUGHT // (25 * 6)
"""Tokens of a prompt and its object."""
TRACED = 30 * 16 * 3
"""Runs of one token and layer of a traced fact, times kinds of state, for one sample; of QUESTION / 8 tokens."""
FITTED = 25
"""Passes of fine-tuning, on the bare prompt."""
DOCUMENT = 64
"""Tokens of a document of the world."""
SETS = 16
"""Of memories that chapter 15 takes out, for each draw."""
BY_FACT = 5 * 2 * 2
"""Sets, ways and facts asked, of every fact whose own memories it takes out."""
LEFT = 6 * 4
"""Sets and ways by which it asks what is left of an edit."""


def _bench(s: Any, *, shared: bool = False) -> Work:
    """What is read when a model is opened to be edited: documents for the moments of keys.

    shared: by all rows of many facts, which then take the moments of every layer.
    """
    setup = s.model.setup
    of = ("bench", s.model, s.texts, s.dtype, s.seed) if shared else None
    tokens, layers = s.texts * min(DOCUMENT, setup.length), setup.layers if shared else len(s.layers)
    return [
        Part("forward", setup, tokens, shared=of and ("read", *of)),
        Moments(layers, setup.memories, tokens, shared=of and ("moments", *of)),
    ]


def edited(
    s: Any,
    facts: int,
    blocks: int = 1,
    *,
    editors: int = 1,
    sought: int = SOUGHT,
    shared: Hashable = None,
    before: Part | None = None,
) -> Work:
    """`facts` facts in all, written by each of so many editors in so many blocks, and scored before and after.

    sought: tokens of what is done for one fact. shared: as of `Part`, the search for targets. before: what is asked of
    the unedited model, if not scores alone.
    """
    setup = s.model.setup
    return [
        Part("targets", setup, editors * facts * sought, shared=shared),
        Part("forward", setup, editors * facts * SCORED),
        before or Part("forward", setup, facts * SCORED),
        Algebra(len(s.layers), setup.memories, max(1, facts // blocks), blocks * editors),
    ]


def _many(s: Any) -> Work:
    setup, facts = s.model.setup, s.count * s.blocks
    other = s.model.held_out + s.written * 100 * setup.length  # GE and RS, token by token
    same = (s.model, s.part, s.records, s.relations, s.dtype, s.seed, s.texts, s.count, s.blocks, s.written)
    before = Part("forward", setup, facts * SCORED + other, shared=("before", *same))
    always = [*_bench(s, shared=True), Part("forward", setup, other)]
    if s.method == "none":
        return [*always, Part("forward", setup, facts * SCORED), before]
    own = METHODS.get(s.method)
    if own is not None and not own.clamps and not own.one_by_one:  # gradients on the prompts, and no search
        passes = 1 if s.method == "MEND" else FITTED
        return [*always, *edited(s, facts, s.blocks, sought=passes * PROMPTED, before=before)]
    searched = None if own and own.one_by_one else _searched(s)
    return [*always, *edited(s, facts, s.blocks, shared=searched, before=before)]


def _searched(s: Any) -> Hashable:
    """What searches for targets have in common, as `many.targets` keeps them: no setting of what follows."""
    kind = s.method if s.method in ("PMET", ATTENTION) else "MEMIT"
    return (kind, s.model, s.part, s.records, s.relations, s.layers[-1], s.clamp, s.texts, s.dtype, s.seed)


def _of_facts(editors: int) -> Callable[[Any], Work]:
    return lambda s: [*_bench(s.facts, shared=True), *edited(s.facts, s.facts.count, editors=editors)]


def _as_released(s: Any) -> Work:
    """Six ways of fine-tuning and four of a trained network, none of which searches."""
    sought = (6 * FITTED + 4) * PROMPTED
    return [*_bench(s.facts, shared=True), *edited(s.facts, s.facts.count, editors=10, sought=sought // 10)]


def _sequence(s: Any) -> Work:
    looks = sum(s.marks) * SCORED  # after each mark all facts so far
    return [
        *_bench(s.facts, shared=True), *edited(s.facts, s.facts.count, s.facts.count // s.batch),
        Part("forward", s.facts.model.setup, looks),
    ]  # fmt: skip


def _capacity(s: Any) -> Work:
    known = s.most or 2 * max(s.counts)
    return [
        *_bench(s.of, shared=True),
        *edited(s.of, known, shared=_searched(s.of)),
        Algebra(len(s.of.layers), s.of.model.setup.memories, known, 2 * len(s.counts)),
    ]


def traced(setup: Setup, runs: int) -> Part:
    """So many samples of noise, of all facts together, each with every state restored."""
    return Part("forward", setup, runs * TRACED * setup.layers * QUESTION // 96)


def _tracing(s: Any) -> Work:
    return [traced(s.model.setup, s.facts * s.samples + s.paired * s.noises)]


def _knowing(s: Any) -> Work:
    return [Part("forward", s.model.setup, (s.facts + s.implied + s.held_out) * 3 * QUESTION)]


def _hardness(s: Any) -> Work:
    tokens = s.most * (s.count * (s.others + 2) * QUESTION + s.traced * s.samples * TRACED)
    return [*_bench(s), Part("forward", s.model.setup, tokens)]


def _implications(s: Any) -> Work:
    return [*_bench(s), *edited(s, 12 * s.facts, 12)]


def _single(s: Any) -> Work:
    tuning, reported = s.facts
    tried = len(s.weights) + len(s.clamps) + 2 * len(s.rates) + len(s.radii)
    return [*_bench(s), *edited(s, tuning * tried + 5 * reported, tuning * tried + 5 * reported)]


def _one_target(s: Any) -> Work:
    return [*_bench(s.edits), *edited(s.edits, 2 * s.requests)]


@dataclass(frozen=True)
class _Editing:
    """What `edited` asks of settings."""

    model: Pretraining
    layers: tuple[int, ...]


def _compared(of: Any) -> Work:
    """What is read when a stage of chapter 15 is opened: text for the moments of keys."""
    setup = of.model.setup
    tokens = of.ordinary * setup.length
    return [Part("forward", setup, tokens), Moments(setup.layers, setup.memories, tokens)]


def _notions(s: Any) -> Work:
    """Per draw: usage and two importances on the mixture, one on each part, and an edit of each layer by itself."""
    of, setup = s.of, s.of.model.setup
    rows, facts = of.draws * of.rows * setup.length, of.draws * of.subjects
    alone = [
        each
        for layer in range(setup.layers)
        for each in edited(_Editing(of.model, (layer,)), facts, of.draws)
    ]
    read = Part("forward", setup, rows + facts * QUESTION)
    return [*_compared(of), read, Part("training", setup, (3 + len(sources(setup.corpus))) * rows), *alone]


def _silencing(s: Any) -> Work:
    """The notions' sets and some others, by every draw, taken out in two ways; and each layer as a whole."""
    of, setup = s.of.of, s.of.of.model.setup
    each = len(sources(setup.corpus)) * of.rows * setup.length + s.facts * QUESTION
    return [*_notions(s.of), Part("forward", setup, 2 * (SETS * of.draws + setup.layers) * each)]


def _fact_silencing(s: Any) -> Work:
    """Of each draw usage and means; every fact without its own memories; and an edit, looked at in parts."""
    of, setup = s.of, s.of.model.setup
    facts = of.draws * of.subjects
    asked = 2 * facts * PROMPTED  # the object scored, and said token by token
    return [
        *_compared(of), Part("forward", setup, 2 * of.draws * of.rows * setup.length),
        Part("forward", setup, (BY_FACT + LEFT) * asked),
        *edited(_Editing(of.model, s.setting.layers), facts, of.draws),
    ]  # fmt: skip


def _editability(s: Any) -> Work:
    """Targets are sought once for a last layer and clamp: no weight changes them, nor do layers below."""
    settings = getattr(s, "settings", None) or (s.setting,)
    found = [
        edited(
            _Editing(s.of.model, x.layers), s.count * s.blocks, s.blocks,
            shared=(type(s).__name__, s.of, s.step, s.seed, x.layers[-1], x.clamp),
        )
        for x in settings
    ]  # fmt: skip
    return [*_compared(s.of), *(part for each in found for part in each)]


def _rescaling(s: Any) -> Work:
    rows = s.of.draws * s.of.rows * s.of.model.setup.length
    once = [
        *_compared(s.of), Part("training", s.of.model.setup, 2 * rows),
        *edited(_Editing(s.of.model, s.setting.layers), s.count),
    ]  # fmt: skip
    return 3 * once


ROWS: dict[str, Callable[[Any], Work]] = {
    "many_edits": _many, "capacity": _capacity, "algorithm": lambda s: _many(s.of), "sequence": _sequence,
    "critique": _of_facts(4), "as_released": _as_released, "editing_cost": _of_facts(4), "pmet_parts": _of_facts(3),
    "tracing": _tracing, "knowing": _knowing, "hardness": _hardness, "implications": _implications,
    "single_edits": _single, "one_target": _one_target, "notions": _notions, "silencing": _silencing,
    "fact_silencing": _fact_silencing,
    "editability": _editability, "editability_trials": _editability, "rescaling": _rescaling,
}  # fmt: skip
"""By study."""
