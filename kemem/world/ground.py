"""What there is in a world, and what is true of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kemem.errors import BadInput
from kemem.world.checks import known, whole
from kemem.world.draws import Draws
from kemem.world.facts import Builder, Fact, Group, Truth, facts_of, follow
from kemem.world.population import Population
from kemem.world.relation import KINDS, PARTS, SPLITS
from kemem.world.relations import RELATIONS
from kemem.world.values import COMPOSITIONS, HOME


@dataclass(frozen=True)
class Entity:
    name: str
    type: str
    split: str


@dataclass(frozen=True)
class Composition:
    """A prompt whose target follows from two facts: the object of the first is the subject of the second."""

    prompt: str
    target: str
    facts: tuple[Fact, Fact]


class GroundTruth:
    """Entities and facts in three splits: trained (told by documents), held-out and fictional (by none)."""

    def __init__(self, population: Population, casts: int):
        self._population, self.seed = population, population.seed
        self._groups: dict[str, list[Group]] = population.groups(casts)

    @cached_property
    def entities(self) -> dict[str, Entity]:
        """Every entity by its name."""
        return {
            name: Entity(name, type_, split)
            for split, groups in self._groups.items()
            for group in groups
            for type_, members in group.members.items()
            for name in members
        }

    @cached_property
    def _of_type(self) -> dict[tuple[str, str], list[str]]:
        """Names by type and split."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, entity in self.entities.items():
            found.setdefault((entity.type, entity.split), []).append(name)
        return found

    def entity(self, name: str) -> Entity:
        if name not in self.entities:
            raise BadInput(f"{name!r} is no entity of this world; `world.entities` has their names.")
        return self.entities[name]

    def cast(self, index: int) -> dict[str, tuple[str, ...]]:
        """The entities of one fictional passage, by type."""
        group = self._groups["fictional"][whole("cast", index, 0, len(self._groups["fictional"]) - 1)]
        return {type_: tuple(names) for type_, names in group.members.items()}

    @cached_property
    def _known(self) -> Truth:
        """What is true of the trained entities."""
        trained = self._groups["trained"][0]
        objects = self._population.objects(trained)
        return Builder(self.seed, objects, self._population.forms, {}).truth(trained)

    @cached_property
    def _objects(self) -> Mapping[str, Sequence[str]]:
        """What a fact may take as object, by type: trained entities, and values that trained facts have."""
        used = {o for subjects in self._known.values() for objects in subjects.values() for o in objects}
        return {
            type_: [name for name in pool if name in used or name in self.entities]
            for type_, pool in self._population.objects(self._groups["trained"][0]).items()
        }

    @cached_property
    def _facts(self) -> dict[str, list[Fact]]:
        builder = Builder(self.seed, self._objects, self._population.forms, self._known)
        facts: dict[str, list[Fact]] = {split: [] for split in SPLITS}
        for split, groups in self._groups.items():
            for group in groups:
                true = self._known if split == "trained" else builder.truth(group)
                facts[split] += facts_of(self.seed, group, true)
        return facts

    @cached_property
    def _told(self) -> dict[str, list[Fact]]:
        """Stated facts by subject, of every split."""
        told: dict[str, list[Fact]] = {}
        for split in SPLITS:
            for fact in self.facts(split):
                told.setdefault(fact.subject, []).append(fact)
        return told

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], Fact]:
        return {(f.subject, f.relation): f for split in SPLITS for f in self._facts[split]}

    @cached_property
    def _by_object(self) -> dict[tuple[str, str], list[Fact]]:
        found: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts("trained"):
            for object_ in fact.objects:
                found.setdefault((fact.relation, object_), []).append(fact)
        return found

    def facts(
        self, split: str = "trained", *, relation: str | None = None, kind: str | None = None,
        part: str | None = None, stated: bool | None = True,
    ) -> list[Fact]:  # fmt: skip
        """Facts in a fixed order.

        stated: True for those that documents tell, False for those that only follow from them, None for
        both. Held-out and fictional facts are marked alike, though no document tells them.
        """
        known("split", split, SPLITS)
        asked = (("relation", relation, RELATIONS), ("kind", kind, KINDS), ("part", part, PARTS))
        for name, value, values in asked:
            if value is not None:
                known(name, value, values)
        return [
            fact
            for fact in self._facts[split]
            if (relation is None or fact.relation == relation)
            and (kind is None or fact.kind == kind)
            and (part is None or fact.part == part)
            and (stated is None or fact.stated == stated)
        ]

    def fact(self, subject: str, relation: str) -> Fact | None:
        """The fact with this subject and relation, stated or not, of any split."""
        known("relation", relation, RELATIONS)
        return self._by_key.get((self.entity(subject).name, relation))

    def candidates(self, fact: Fact) -> list[str]:
        """Strings of the type of the object: the true ones, and others all of which are false."""
        row = fact.row
        pool = self._objects[row.object]
        if fact.object in self.entities:  # names of the same split, which are as familiar as the true one
            same = self._of_type[row.object, self.entities[fact.object].split]
            pool = same if len(same) > len(fact.objects) + 1 else [*same, *pool]
        elif fact.object not in pool:  # the form of a held-out word
            pool = [*pool, *fact.objects]
        barred = {fact.subject}
        if row.kind == "order":  # what would be true too though nobody says so, and what is not known
            barred |= {name for name in pool if self._in_order(fact, name) is not False}
        elif row.source == "draw":
            excluded = (self._by_key.get((fact.subject, step)) for step in row.chain)
            barred.update(object_ for near in excluded if near for object_ in near.objects)
        return [name for name in pool if name in fact.objects or name not in barred]

    def choices(self, fact: Fact, count: int = 4, *, seed: int = 0) -> tuple[list[str], int]:
        """A multiple-choice question: strings to end `fact.prompt()` with, and the place of the true one."""
        draws = Draws(self.seed, "choices", seed, fact.subject, fact.relation)
        false = [name for name in self.candidates(fact) if name not in fact.objects]
        options = draws.shuffled(false)[: whole("count", count, 2) - 1]
        place = draws.below(len(options) + 1)
        return [*options[:place], draws.choice(fact.objects), *options[place:]], place

    def _in_order(self, fact: Fact, name: str) -> bool | None:
        """Whether a relation of order holds between the subject and a name; None without a date."""
        forward = fact.row if fact.row.chain else RELATIONS[fact.row.inverse]
        years = [self._by_key.get((n, forward.chain[0])) for n in (fact.subject, name)]
        if fact.row is not forward:
            years.reverse()
        return None if None in years else int(years[0].object) < int(years[1].object)

    def neighbours(self, fact: Fact, object: str | None = None) -> list[Fact]:
        """Other stated trained facts with the same relation and object (default: any object of the fact)."""
        found: dict[str, Fact] = {}
        for object_ in fact.objects if object is None else (object,):
            found.update({near.subject: near for near in self._by_object.get((fact.relation, object_), ())})
        found.pop(fact.subject, None)
        return list(found.values())

    def stands(self, fact: Fact, object: str) -> bool:
        """Whether this object, not one of the fact's own, has `neighbours`: without listing them."""
        return (fact.relation, object) in self._by_object

    def compositions(self, name: str) -> list[Composition]:
        """Prompts about an entity that two facts with one object each answer together."""
        found = []
        for first, second, template in COMPOSITIONS:
            near = self._by_key.get((self.entity(name).name, first))
            far = self._by_key.get((near.object, second)) if near and len(near.objects) == 1 else None
            if near and far and len(far.objects) == 1:
                found.append(Composition(template.replace("{}", name)[:-1].rstrip(), far.object, (near, far)))
        return found

    def implied(self, fact: Fact, object: str | None = None) -> list[tuple[str, str, str]]:
        """What follows from a fact, or from it with another object, alone or with facts of the trained world:
        (subject, relation, object) of the inverse, and of chains that begin with the fact."""
        told = fact.objects if object is None else (object,)
        found = [(o, fact.row.inverse, fact.subject) for o in told if fact.row.inverse]
        for row in RELATIONS.values():
            if row.source == "chained" and row.chain[0] == fact.relation:
                ends = [follow(o, row.chain[1:], {}, self._known) for o in told]
                found += [(fact.subject, row.name, end[0]) for end in ends if end]
        return found

    def place(self, name: str) -> tuple[str, ...]:
        """Where an entity belongs: (region, country), (country,), or () if nowhere."""
        type_ = self.entity(name).type
        while type_ in HOME and type_ != "region":
            fact = self._by_key.get((name, HOME[type_]))
            if fact is None:
                return ()
            name, type_ = fact.object, fact.row.object
        if type_ == "region":
            return (name, self._by_key[name, HOME[type_]].object)
        return (name,) if type_ == "country" else ()
