"""What a row takes to compute, from its settings alone: the operations of each study's rows.

What a row trains or reads as its settings say is exact; what depends on texts (the tokens of a question, the prompts by
which an edit is scored) is taken from the numbers below, which are those of this book's texts, rounded up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from kemem.models import MASKED
from kemem.studies import work_of_edits, work_of_own
from kemem.studies.operations import QUESTION, Part, Work, trained
from kemem.studies.pretraining import Pretraining, sources
from kemem.studies.setup import Setup, Untied

PROBED = 15 * 2 * 20
"""Tokens of all probes of a passage, scored before and after."""
PASSES = {"kd": 4 / 3, "derpp": 2.0, "classic": 2.0, "bcl": 1.5, "elle": 1.5}
"""Training passes a step of methods that need more than one; of DAS see `passes`."""


def _watched(s: Pretraining) -> int:
    """Tokens at one stage of pretraining: held-out text of each part, questions, and what is written."""
    texts = len(sources(s.setup.corpus)) * s.held_out
    return texts + s.facts * QUESTION + (1 + len(s.prompts)) * s.written * s.setup.length


def _pretraining(s: Any) -> Work:  # its training is counted with the models
    return [Part("forward", s.setup, len(s.steps) * _watched(s))]


def _entropy(s: Any) -> Work | None:
    setup = s.model.setup if isinstance(s.model, Pretraining) else HUB.get(s.model)
    tokens = len(s.revisions) * s.instances * s.length
    return None if setup is None else [Part("forward", setup, tokens)]


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


def _nothing(_: Any) -> Work:
    return []


ROWS: dict[str, Callable[[Any], Work | None]] = {
    "texts": _nothing, "association": _nothing, "published_passages": _nothing,
    "pretraining": _pretraining, "entropy": _entropy, "decay": _decay, "inside": _inside, "memories": _memories,
    "acquisition": _acquisition, "arms": _arms, "lifting": _lifting, "courses": _courses, "growing": _courses,
    "footprint": _footprint, "interference": _interference, "unit_importance": _units, "unit_shares": _units,
    "unit_course": _units, "unit_movement": _units, "unit_contrast": _units, **work_of_edits.ROWS, **work_of_own.ROWS,
}  # fmt: skip
"""By study. None: of these settings it cannot be told, as they name a model whose sizes are not known here."""
HUB = {
    "allenai/OLMo-1B-hf": Setup(
        corpus="", vocabulary=50304, layers=16, width=2048, memories=8192, heads=16, length=2048, steps=738_020,
        rows=2048, learning_rate=4e-4, weight_decay=0.1,
    ),
    "allenai/OLMo-7B-hf": Untied(
        corpus="", vocabulary=50304, layers=32, width=4096, memories=11008, heads=32, length=2048, steps=557_000,
        rows=2160, learning_rate=3e-4, weight_decay=0.1,
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
