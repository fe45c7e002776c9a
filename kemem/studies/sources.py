"""Where part 3's facts come from: a world, which knows what is true, or records that others made of facts.

Both give requests, questions, known facts and ordinary text. A world has a table of all that is true as well: who else
has an object, what follows from a fact, which objects there are. Records have no more than their own prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Protocol, runtime_checkable

from kemem import corpora, editing
from kemem.editing import KnownFact, Request
from kemem.editing.readers import known_facts
from kemem.errors import BadInput
from kemem.studies.pretraining import Pretrained
from kemem.world import World
from kemem.world.draws import Draws, digest
from kemem.world.facts import TUNING


@dataclass(frozen=True)
class Published(Pretrained):
    """A model that others trained and edited, how they edited it, and the records by which it is asked."""

    requests: str = "hub:counterfact:limit=all"
    """In the schema of CounterFact; this and the next two as `kemem.editing.requests` takes them."""
    questions: str = "$KEMEM_DATA/zsre/zsre_mend_eval.json"
    """In the schema of zsRE: on no page of the hub, see `kemem.corpora.catalogue`."""
    known: str = "$KEMEM_DATA/counterfact/known_1000.json"
    """Facts for causal tracing, in the schema known_1000."""
    critical: tuple[int, ...] = ()
    """Layers that MEMIT writes, as published, ..."""
    weight: float = 15_000.0
    """... and the weight of the old memory."""
    where: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Layers of editors that were published with others."""


@runtime_checkable
class Source(Protocol):
    """What studies ask of either. `asks`: whether only facts are edited that the model says by itself."""

    asks: bool

    def requests(
        self, count: int | None, seed: int, *, part: str | None = None, relation: str | None = None
    ) -> Sequence[Request]:
        """Facts to be rewritten, the first `count` in an order drawn by `seed`. part: tuning, reported or both."""
        ...

    def questions(self, seed: int) -> Sequence[Request]:
        """Of zsRE, on what the model has not been told."""
        ...

    def known(self, seed: int) -> Sequence[KnownFact]:
        """Facts for causal tracing; which of them the model knows is to be asked."""
        ...

    def told(self) -> Iterator[tuple[str, str, str]]:
        """Every relation, prompt and object that known facts are told apart by."""
        ...

    def texts(self, count: int) -> Iterable[str]:
        """Ordinary text, for the moments of keys."""
        ...

    def references(self, requests: Sequence[Request]) -> Mapping[tuple[str, str], list[str]]:
        """Texts on others of whom the new object is true, by relation and object."""
        ...


class Told:
    """Facts of a world that the model has read of."""

    asks = True

    def __init__(self, world: World) -> None:
        self.world = world

    def requests(
        self, count: int | None, seed: int, *, part: str | None = None, relation: str | None = None
    ) -> Sequence[Request]:
        return editing.requests(self.world.counterfact(count, seed, part=part, relation=relation))

    def questions(self, seed: int) -> Sequence[Request]:
        return editing.requests(self.world.zsre(None, seed, split="held_out"))

    def known(self, seed: int) -> Sequence[KnownFact]:
        count = len(self.world.facts("trained", part="tuning"))
        return known_facts(self.world.known_facts(count, seed, part="tuning"))

    def told(self) -> Iterator[tuple[str, str, str]]:
        for fact in self.world.facts("trained"):
            for object_ in fact.objects:
                yield fact.relation, fact.prompt(), object_

    def texts(self, count: int) -> Iterable[str]:
        return self.world.documents(count)

    def references(self, requests: Sequence[Request]) -> Mapping[tuple[str, str], list[str]]:
        """Of each up to four passages."""
        found: dict[tuple[str, str], list[str]] = {}
        for r in requests:
            fact = self.world.fact(r.subject, r.relation or "")
            if fact is not None and (r.relation, r.new) not in found:
                near = self.world.neighbours(fact, r.new)[:4]
                found[fact.relation, r.new] = [text for f in near for text in self.world.passages(f.subject)]
        return found


class Records:
    """Published records. Of two that conflict the first counts; three of ten are the tuning part, by hash.

    Requests are edited whether the model knows them or not, as in Meng et al. 2023. They stand as in their file for
    seed 0, and shuffled for any other.
    """

    asks = False

    def __init__(self, s: Published) -> None:
        self.settings = s

    @cached_property
    def _requests(self) -> list[Request]:
        found = editing.without_conflicts(editing.requests(self.settings.requests), keep="first")
        return [r for r in found if r.paraphrases and r.neighbours and r.true is not None]

    def requests(
        self, count: int | None, seed: int, *, part: str | None = None, relation: str | None = None
    ) -> Sequence[Request]:
        found = [
            r for r in self._requests
            if (part is None or self._part(r) == part) and (relation is None or r.relation == relation)
        ]  # fmt: skip
        if len(found) < (count or 1):
            of = f" of {relation}" if relation else ""
            raise BadInput(
                f"expected {count or 1} {part or ''} requests{of} in {self.settings.requests}; got {len(found)}; ask "
                "for fewer."
            )
        return self._ordered(found, seed)[:count]

    @staticmethod
    def _part(r: Request) -> str:
        return "tuning" if digest("part", r.relation or "", r.subject) % 10 < TUNING else "reported"

    @staticmethod
    def _ordered(found: Sequence[Request], seed: int) -> list[Request]:
        return Draws("records", seed).shuffled(found) if seed else list(found)

    def questions(self, seed: int) -> Sequence[Request]:
        return self._ordered(editing.requests(self.settings.questions, schema="zsre"), seed)

    @cached_property
    def _known(self) -> Sequence[KnownFact]:
        return known_facts(self.settings.known)

    def known(self, seed: int) -> Sequence[KnownFact]:
        return Draws("known", seed).shuffled(self._known) if seed else self._known

    def told(self) -> Iterator[tuple[str, str, str]]:
        for fact in self._known:
            yield fact.relation or "", fact.prompt, fact.attribute

    def texts(self, count: int) -> Iterable[str]:
        return islice(corpora.stream(self.settings.setup.corpus), count)

    def references(self, requests: Sequence[Request]) -> Mapping[tuple[str, str], list[str]]:
        """None: those of CounterFact are not to be had."""
        return {}
