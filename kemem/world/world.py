"""A small world that knows the truth, and the documents that tell it: how often, and in which words."""

from functools import cached_property

from kemem.errors import BadInput
from kemem.world import records
from kemem.world.checks import known, whole
from kemem.world.draws import Draws, Zipf
from kemem.world.ground import Entity, GroundTruth
from kemem.world.population import LEAST, Population, english
from kemem.world.text import Writer

SMALLEST, LARGEST = 20, 8000


class World(GroundTruth):
    """A world of invented people, places, companies, books and words, fixed by its arguments alone.

    people: trained people, 20 to 8,000; everything else grows with them. At 200 about 1,900 facts are told.
    zipf: an entity of rank r is the subject of a document with probability proportional to 1 / r^zipf.
    held_out: further people whom no document names (default: a fifth), with other entities in proportion.
    fictional: casts of fictional passages (default: 130, fewer in small worlds), named by no document.
    shared_names: of the two words of the name of a person, city, company or book, how many stand in several names. 0
    (default): many of either stand in one or two; 1: the first does, the last is the name's own; 2: both do.
    """

    def __init__(
        self, people: int = 200, seed: int = 0, *, zipf: float | int = 0.6, held_out: int | None = None,
        fictional: int | None = None, shared_names: int = 0,
    ):  # fmt: skip
        self.people = whole("people", people, SMALLEST, LARGEST)
        whole("seed", seed, 0)
        self.held_out = (
            max(LEAST, people // 5) if held_out is None else whole("held_out", held_out, LEAST, people)
        )
        if isinstance(zipf, bool) or not isinstance(zipf, int | float) or not 0 <= zipf <= 4:
            raise BadInput(f"zipf must be an exponent from 0 to 4; got {zipf!r}; 0.6 is the default.")
        self.zipf = float(zipf)
        self.shared_names = whole("shared_names", shared_names, 0, 2)
        casts = min(130, people) if fictional is None else whole("fictional", fictional, 0)
        population = Population(people, self.held_out, seed, shared=shared_names, casts=casts)
        room = population.room
        self.fictional = (
            min(130, people, room) if fictional is None else whole("fictional", fictional, 0, room)
        )
        super().__init__(population, self.fictional)

    def __repr__(self) -> str:
        return (
            f"World(people={self.people}, seed={self.seed}, zipf={self.zipf}, held_out={self.held_out}, "
            f"fictional={self.fictional}"
            f"{f', shared_names={self.shared_names}' if self.shared_names else ''})"
        )

    # How often, and in which words

    @cached_property
    def _ranked(self) -> list[str]:
        """Trained subjects, the most frequent first."""
        trained = [n for n, e in self.entities.items() if e.split == "trained" and n in self._told]
        return Draws(self.seed, "rank").shuffled(trained)

    @cached_property
    def _laws(self) -> dict[str | None, tuple[list[str], Zipf]]:
        """The law by which subjects are drawn: of the whole world (None), of each region and country."""
        inside: dict[str | None, list[str]] = {None: self._ranked}
        for name in self._ranked:
            for place in self.place(name):
                inside.setdefault(place, []).append(name)
        return {place: (list_, Zipf(len(list_), self.zipf)) for place, list_ in inside.items()}

    def frequency(self, entity: str | Entity) -> float:
        """Expected share of the documents whose subject is this entity; 0 for those that are never told."""
        name = self.entity(entity.name if isinstance(entity, Entity) else entity).name
        return self._frequencies.get(name, 0.0)

    @cached_property
    def _frequencies(self) -> dict[str, float]:
        names, law = self._laws[None]
        return {name: law.share(i) for i, name in enumerate(names)}

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self._told, {n: (e.type, e.split) for n, e in self.entities.items()}, self.seed)

    def documents(self, count: int, *, seed: int = 0, within: str | None = None) -> list[str]:
        """Passages of 40 to 115 words about trained entities, or about those of one region or country.

        Document i depends on the world, `seed`, `within` and i alone: a longer list begins with a shorter.
        """
        whole("count", count, 0)
        if within is not None:
            known("within", within, [place for place in self._laws if place is not None])
        names, law = self._laws[within]
        key = (self.seed, "document", seed, within or "")
        written = []
        for i in range(count):
            draws = Draws(*key, i)
            written.append(self._writer.document(names[law.draw(draws)], draws))
        return written

    def passages(self, name: str, count: int = 1, *, seed: int = 0) -> list[str]:
        """Documents about one entity of any split: reference texts, or the telling of what was held out."""
        whole("count", count, 0)
        if self.entity(name).name not in self._told:
            raise BadInput(f"{name!r} is only an object in this world; nothing can be told about it.")
        return [self._writer.document(name, Draws(self.seed, "passage", name, seed, i)) for i in range(count)]

    def vocabulary(self) -> list[str]:
        """Every word that a text of this world can hold, held-out and fictional included; no punctuation."""
        lower = english()
        capitals = {word[:1].upper() + word[1:] for word in lower}
        return sorted(lower | capitals | set(self._population.words))

    # Records in published schemas

    def fictional_knowledge(self, count: int, *, paraphrases: int = 9, brief: bool = False) -> list[dict]:
        """Passages on the fictional casts, with probes. brief: of eight sentences instead of twenty-five."""
        return records.fictional_knowledge(
            self, whole("count", count, 0, self.fictional), whole("paraphrases", paraphrases, 0), brief=brief
        )

    def counterfact(
        self, count: int | None, seed: int = 0, *, relation: str | None = None, kind: str | None = None,
        part: str | None = None,
    ) -> list[dict]:  # fmt: skip
        """Requests in the schema of CounterFact; count: None for all there are."""
        return records.counterfact(self, _number(count), seed, relation, kind, part)

    def zsre(
        self, count: int | None, seed: int = 0, *, split: str = "trained", part: str | None = None
    ) -> list[dict]:
        """Questions in the schema of zsRE; count: None for all there are."""
        return records.zsre(self, _number(count), seed, split, part)

    def known_facts(self, count: int, seed: int = 0, *, part: str | None = None) -> list[dict]:
        return records.known_facts(self, whole("count", count, 0), seed, part)


def _number(count: int | None) -> int | None:
    return None if count is None else whole("count", count, 0)
