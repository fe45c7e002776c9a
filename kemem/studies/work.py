"""What a row takes to compute, from its settings alone: the operations of each study's rows.

What a row trains or reads as its settings say is exact; what depends on texts (the tokens of a question, the prompts by
which an edit is scored) is taken from the numbers below, which are those of this book's texts, rounded up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from kemem.models import MASKED
from kemem.studies.methods import ATTENTION, METHODS
from kemem.studies.operations import Algebra, Part, Work, trained
from kemem.studies.pretraining import Pretraining, sources
from kemem.studies.setup import Setup

QUESTION = 12 * 8
"""Tokens of a question on a fact, with its candidates."""
PROBED = 15 * 2 * 20
"""Tokens of all probes of a passage, scored before and after."""
SCORED = 40 * 16
"""Tokens of all prompts by which one edited fact is scored."""
SOUGHT = 25 * 6 * 24
"""Tokens of a search for one target: passes, contexts, tokens of each."""
TRACED = 30 * 16 * 3
"""Runs of one token and layer of a traced fact, times kinds of state, for one sample; of QUESTION / 8 tokens."""
FITTED = 25
"""Passes of fine-tuning, on the bare prompt."""
SETS = 16
"""Of memories that chapter 15 takes out, for each draw."""
PASSES = {"kd": 4 / 3, "derpp": 2.0, "classic": 2.0, "bcl": 1.5, "elle": 1.5}
"""Training passes a step of methods that need more than one; of DAS see `passes`."""


def _watched(s: Pretraining) -> int:
    """Tokens at one stage of pretraining: held-out text of each part, questions, and what is written."""
    texts = len(sources(s.setup.corpus)) * s.held_out
    return texts + s.facts * QUESTION + (1 + len(s.prompts)) * s.written * s.setup.length


def _pretraining(s: Any) -> Work:  # its training is counted with the models
    return [Part("forward", s.setup, len(s.steps) * _watched(s))]


def _entropy(s: Any) -> Work:
    setup = s.model.setup if isinstance(s.model, Pretraining) else HUB.get(s.model)
    tokens = len(s.revisions) * s.instances * s.length
    return [] if setup is None else [Part("forward", setup, tokens)]


def _decay(s: Any) -> Work:
    each = s.instances * s.setup.length + 12_000
    return [trained(s.setup), Part("forward", s.setup, (s.points + 1) * each)]


def _inside(s: Any) -> Work:
    told = len(s.stages) * (s.paraphrased + s.once) * PROBED // 2
    return [trained(s.model.setup), Part("forward", s.model.setup, (2 * len(s.stages) + 1) * told)]


def _looks(s: Any) -> int:
    """Tokens at one look of chapters 04 to 07 at a model."""
    setup = s.model.setup
    texts = (len(sources(setup.corpus)) + 1) * s.held_out
    return texts + s.instances * setup.length + s.tasks * QUESTION


def _acquisition(s: Any) -> Work:
    setup = s.model.setup
    probes = (s.epochs * s.slots + 1) * (s.paraphrased + s.once) * PROBED // 2
    return [
        Part("training", setup, s.steps * s.rows * setup.length, s.steps * s.recipe().accumulation),
        Part("forward", setup, 2 * _looks(s) + probes),
    ]


def _arms(s: Any) -> Work:
    usage = (2 if s.edit else 1) * s.texts * s.learning.model.setup.length
    return [*_acquisition(s.learning), Part("forward", s.learning.model.setup, usage)]


def _lifting(s: Any) -> Work:
    setup = s.learning.model.setup
    return [Part("forward", setup, 3 * (_looks(s.learning) + s.texts * setup.length))]


def passes(s: Any) -> float:
    """Training passes of a step. DAS adds one for what is known, one for a twin, one where its text is corrupted."""
    if s.method not in ("das", "das-stand-in"):
        return PASSES.get(s.method, 1.0)
    drops, masked = getattr(s.model.setup, "dropout", 0.0) > 0, s.model.setup.family in MASKED
    return 1.0 + (s.variant != "without-contrast") * (1.0 + drops + masked)


def _courses(s: Any) -> Work:
    setup, n = s.model.setup, len(s.domains)
    steps = n * s.steps
    changes = dict(s.changes)
    measured = changes.get("samples", 0) if s.method in ("ewc", "das", "fisher-mask") else 0
    samples = int(measured if isinstance(measured, int) else measured * s.steps * s.rows) * s.length
    looks = (n + 1) * ((n + 1) * s.test_tokens + n * sum(s.examples) * s.asked_length)
    watched = steps // s.every * n * s.test_tokens if s.every else 0
    learnt = round(passes(s) * steps * s.rows * s.length)
    precision = getattr(s, "precision", "")
    return [
        Part("training", setup, learnt + (n + 1) * samples, steps, precision),
        Part("forward", setup, looks + watched, precision=precision),
    ]


def _footprint(s: Any) -> Work:
    return _courses(s.course)


def _units(s: Any) -> Work:
    """Importances: a pass forward and two backward over the samples, of general knowledge and of each domain."""
    setup, n = s.model.setup, len(s.domains)
    samples = getattr(s, "samples", s.rows)
    steps = getattr(s, "steps", 0) * (
        n if hasattr(s, "test_tokens") else 2 * len(getattr(s, "epsilons", ())) + 5
    )
    batch = getattr(s, "batch", 0)
    return [Part("training", setup, (2 * n * samples + steps * batch) * s.length, steps)]


def _interference(s: Any) -> Work:
    of = s.course
    setup, places = of.model.setup, len(s.seconds)
    looks = places * (len(s.shares) + len(s.at) + 3 * setup.layers) * (len(of.domains) + 1) * of.test_tokens
    steps = (1 + places) * of.steps
    return [Part("training", setup, steps * of.rows * of.length, steps), Part("forward", setup, looks)]


def _memories(s: Any) -> Work:
    setup = s.model.setup
    removed = setup.layers * s.removed * 2 * s.length
    return [Part("forward", setup, s.instances * s.length + removed)]


def _bench(s: Any) -> Part:
    """What is read when a model is opened to be edited: documents for the moments of keys."""
    return Part("forward", s.model.setup, s.texts * s.model.setup.length)


def edited(
    s: Any, facts: int, blocks: int = 1, *, editors: int = 1, sought: int = SOUGHT, shared: Hashable = None
) -> Work:
    """`facts` facts in all, written by each of so many editors in so many blocks, and scored before and after.

    sought: tokens of what is done for one fact. shared: as of `Part`, the search for targets.
    """
    setup = s.model.setup
    return [
        Part("targets", setup, editors * facts * sought, shared=shared),
        Part("forward", setup, (editors + 1) * facts * SCORED),
        Algebra(len(s.layers), setup.memories, max(1, facts // blocks), blocks * editors),
    ]


def _many(s: Any) -> Work:
    written = 2 * s.written * 100 * s.model.setup.length  # GE and RS, token by token
    other = [Part("forward", s.model.setup, s.model.held_out + written)]
    if s.method == "none":
        return [Part("forward", s.model.setup, s.count * s.blocks * SCORED), *other]
    own, facts = METHODS.get(s.method), s.count * s.blocks
    if own is not None and not own.clamps and not own.one_by_one:  # gradients on the prompts, and no search
        passes = 1 if s.method == "MEND" else FITTED
        return [*edited(s, facts, s.blocks, sought=passes * SOUGHT // (25 * 6)), *other]
    return [*edited(s, facts, s.blocks, shared=None if own and own.one_by_one else _searched(s)), *other]


def _searched(s: Any) -> Hashable:
    """What searches for targets have in common, as `many.targets` keeps them: no setting of what follows."""
    kind = s.method if s.method in ("PMET", ATTENTION) else "MEMIT"
    return (kind, s.model, s.part, s.records, s.relations, s.layers[-1], s.clamp, s.texts, s.dtype, s.seed)


def _of_facts(editors: int) -> Callable[[Any], Work]:
    return lambda s: edited(s.facts, s.facts.count, editors=editors)


def _sequence(s: Any) -> Work:
    return edited(s.facts, s.facts.count, s.facts.count // s.batch)


def _capacity(s: Any) -> Work:
    known = s.most or 2 * max(s.counts)
    return [
        *edited(s.of, known, shared=_searched(s.of)),
        Algebra(len(s.of.layers), s.of.model.setup.memories, known, 2 * len(s.counts)),
    ]


def _tracing(s: Any) -> Work:
    setup = s.model.setup
    runs = s.facts * s.samples + s.paired * s.noises
    return [Part("forward", setup, runs * TRACED * setup.layers * QUESTION // 96)]


def _knowing(s: Any) -> Work:
    return [Part("forward", s.model.setup, (s.facts + s.implied + s.held_out) * 3 * QUESTION)]


def _hardness(s: Any) -> Work:
    tokens = s.most * (s.count * (s.others + 2) * QUESTION + s.traced * s.samples * TRACED)
    return [_bench(s), Part("forward", s.model.setup, tokens)]


def _implications(s: Any) -> Work:
    return [_bench(s), *edited(s, 12 * s.facts, 12)]


def _single(s: Any) -> Work:
    tuning, reported = s.facts
    tried = len(s.weights) + len(s.clamps) + 2 * len(s.rates) + len(s.radii)
    return [_bench(s), *edited(s, tuning * tried + 5 * reported, tuning * tried + 5 * reported)]


def _one_target(s: Any) -> Work:
    return [_bench(s.edits), *edited(s.edits, 2 * s.requests)]


@dataclass(frozen=True)
class _Editing:
    """What `edited` asks of settings."""

    model: Pretraining
    layers: tuple[int, ...]


def _compared(of: Any) -> Part:
    """What is read when a stage of chapter 15 is opened: text for the moments of keys."""
    return Part("forward", of.model.setup, of.ordinary * of.model.setup.length)


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
    return [_compared(of), read, Part("training", setup, (3 + len(sources(setup.corpus))) * rows), *alone]


def _silencing(s: Any) -> Work:
    """The notions' sets and some others, by every draw, taken out in two ways; and each layer as a whole."""
    of, setup = s.of.of, s.of.of.model.setup
    each = len(sources(setup.corpus)) * of.rows * setup.length + s.facts * QUESTION
    return [*_notions(s.of), Part("forward", setup, 2 * (SETS * of.draws + setup.layers) * each)]


def _editability(s: Any) -> Work:
    settings = getattr(s, "settings", None) or (s.setting,)
    found = (edited(_Editing(s.of.model, x.layers), s.count * s.blocks, s.blocks) for x in settings)
    return [_compared(s.of), *(part for each in found for part in each)]


def _rescaling(s: Any) -> Work:
    rows = s.of.draws * s.of.rows * s.of.model.setup.length
    once = [
        _compared(s.of), Part("training", s.of.model.setup, 2 * rows),
        *edited(_Editing(s.of.model, s.setting.layers), s.count),
    ]  # fmt: skip
    return 3 * once


def _nothing(_: Any) -> Work:
    return []


ROWS: dict[str, Callable[[Any], Work]] = {
    "texts": _nothing, "association": _nothing, "published_passages": _nothing,
    "pretraining": _pretraining, "entropy": _entropy, "decay": _decay, "inside": _inside, "memories": _memories,
    "acquisition": _acquisition, "arms": _arms, "lifting": _lifting, "courses": _courses, "growing": _courses,
    "footprint": _footprint, "interference": _interference, "unit_importance": _units, "unit_shares": _units,
    "unit_course": _units, "unit_movement": _units, "unit_contrast": _units, "many_edits": _many,
    "capacity": _capacity, "algorithm": lambda s: _many(s.of), "sequence": _sequence, "critique": _of_facts(4),
    "as_released": _of_facts(10), "editing_cost": _of_facts(4), "pmet_parts": _of_facts(3), "tracing": _tracing,
    "knowing": _knowing, "hardness": _hardness, "implications": _implications, "single_edits": _single,
    "one_target": _one_target, "notions": _notions, "silencing": _silencing, "editability": _editability,
    "editability_trials": _editability, "rescaling": _rescaling,
    # of what a reader brings the settings know the content alone
    "own_stages": _nothing, "own_traces": _nothing, "own_edits": _nothing,
}  # fmt: skip
"""By study."""
HUB = {
    "allenai/OLMo-1B-hf": Setup(
        corpus="", vocabulary=50304, layers=16, width=2048, memories=8192, heads=16, length=2048, steps=738_020,
        rows=2048, learning_rate=4e-4, weight_decay=0.1,
    ),
}  # fmt: skip
"""Shapes of models of the hub that settings name by a word alone."""


def within(settings: Any) -> Iterator[Any]:
    """Every dataclass among some settings, the outermost first."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        yield settings
        for each in dataclasses.fields(settings):
            yield from within(getattr(settings, each.name))
    elif isinstance(settings, (list, tuple)):
        for one in settings:
            yield from within(one)
