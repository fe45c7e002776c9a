"""Facts: what is true of a group of entities, chosen by the rules that the table of relations names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kemem.errors import BadInput
from kemem.world.draws import Draws, digest
from kemem.world.relation import Relation
from kemem.world.relations import RELATIONS, ROWS

Truth = dict[str, dict[str, tuple[str, ...]]]  # relation -> subject -> objects

TUNING = 3  # of 10 facts, this many are in the tuning part


def listed(objects: Sequence[str], join: tuple[str, str] = (", ", " and ")) -> str:
    """One, two or more strings as a phrase: a; a and b; a, b and c."""
    return join[0].join(objects[:-1]) + join[1] + objects[-1] if len(objects) > 1 else objects[0]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Fact:
    """One subject and relation with all objects that make it true, in the order in which they are told.

    part: "tuning" or "reported"; a fact and its inverse are always in the same part.
    stated: whether documents may tell it; a fact that is not stated follows from others that are.
    """

    subject: str
    relation: str
    objects: tuple[str, ...]
    kind: str
    split: str
    part: str
    stated: bool = True

    @property
    def object(self) -> str:
        return self.objects[0]

    @property
    def row(self) -> Relation:
        return RELATIONS[self.relation]

    def prompt(self, paraphrase: int = 0, *, given: int = 0) -> str:
        """Text that ends just before the object (no space after it); `given` objects are told already."""
        cloze = self.row.cloze
        if not 0 <= paraphrase < len(cloze):
            raise BadInput(
                f"paraphrase must be 0..{len(cloze) - 1} for a prompt of {self.relation!r}; got {paraphrase}."
            )
        if not 0 <= given < len(self.objects):
            raise BadInput(f"given must leave an object to be told, 0..{len(self.objects) - 1}; got {given}.")
        text = capital(cloze[paraphrase].replace("{}", self.subject)[:-1])
        if given:
            last = given == len(self.objects) - 1
            text += self.row.join[0].join(self.objects[:given]) + self.row.join[last]
        return text.rstrip()

    def sentence(self, paraphrase: int = 0, object: str | None = None) -> str:
        """The fact in one of its phrasings, with all its objects or with another one."""
        templates = self.row.templates
        if not 0 <= paraphrase < len(templates):
            raise BadInput(
                f"paraphrase must be 0..{len(templates) - 1} for {self.relation!r}; got {paraphrase}."
            )
        told = listed(self.objects, self.row.join) if object is None else object
        return capital(templates[paraphrase].replace("{}", self.subject).replace("_", told)) + "."

    def question(self, paraphrase: int = 0) -> str:
        return self.row.questions[paraphrase].replace("{}", self.subject)


@dataclass(frozen=True)
class Group:
    """Entities among which facts are chosen: all trained ones, all held-out ones, or those of one passage."""

    split: str
    name: str
    members: Mapping[str, Sequence[str]]  # type -> names


class Builder:
    """Chooses the objects of every fact of a group.

    common: type -> names that any fact may take as object (trained entities, and values).
    known: what is true of the trained group; chains run on into it.
    forms: lemma -> form.
    """

    def __init__(
        self, seed: int, common: Mapping[str, Sequence[str]], forms: Mapping[str, str], known: Truth
    ):
        self.seed, self.common, self.forms, self.known = seed, common, forms, known
        self.rules: dict[str, Callable] = {
            "draw": self.draw, "paired": self.paired, "inverted": self.inverted, "chained": self.chained,
            "member": self.member, "assigned": self.assigned, "ordered": self.ordered, "formed": self.formed,
        }  # fmt: skip

    def truth(self, group: Group) -> Truth:
        true: Truth = {}
        for relation in ROWS:
            subjects = group.members.get(relation.subject, ())
            found = self.rules[relation.source](relation, group, subjects, true)
            # In the order of the subjects, whatever rule found them.
            true[relation.name] = {name: found[name] for name in subjects if name in found}
        return true

    def pool(self, relation: Relation, group: Group) -> Sequence[str]:
        """Objects to draw from. Linked relations stay inside the group: their inverses do too."""
        own = group.members.get(relation.object)
        if own and (relation.linked or (relation.local and group.split == "fictional")):
            return own
        return self.common[relation.object]

    def holds(self, relation: Relation, group: Group, draws: Draws) -> bool:
        return group.split == "fictional" or draws.unit() < relation.share

    def draw(self, relation, group, subjects, true):
        found = {}
        pool = self.pool(relation, group)
        for name in subjects:
            draws = Draws(self.seed, "fact", relation.name, name)
            if not self.holds(relation, group, draws):
                continue
            count = relation.least + draws.below(relation.most - relation.least + 1)
            taken = [x for step in relation.chain for x in true[step].get(name, ())]
            chosen: list[str] = []
            while len(chosen) < count:
                object_ = draws.skewed(pool) if relation.most == 1 else draws.choice(pool)
                if object_ not in taken and object_ not in chosen:
                    chosen.append(object_)
            found[name] = tuple(chosen)
        return found

    def paired(self, relation, group, subjects, true):
        found = {}
        mixed = Draws(self.seed, "pairs", relation.name, group.name).shuffled(subjects)
        for a, b in zip(mixed[::2], mixed[1::2], strict=False):
            if self.holds(relation, group, Draws(self.seed, "pair", relation.name, a, b)):
                found[a], found[b] = (b,), (a,)
        return found

    def ordered(self, relation, group, subjects, true):
        found = {}
        year = {name: int(objects[0]) for name, objects in true[relation.chain[0]].items()}
        dated = [name for name in subjects if name in year]
        mixed = Draws(self.seed, "pairs", relation.name, group.name).shuffled(dated)
        for a, b in zip(mixed[::2], mixed[1::2], strict=False):
            early, late = sorted((a, b), key=year.get)
            # Both directions are to have a false candidate: somebody not later, and somebody not earlier.
            open_ = any(year[c] <= year[early] for c in dated if c != early) and any(
                year[c] >= year[late] for c in dated if c != late
            )
            draws = Draws(self.seed, "pair", relation.name, a, b)
            if open_ and year[early] != year[late] and self.holds(relation, group, draws):
                found[early] = (late,)
        return found

    def inverted(self, relation, group, subjects, true):
        found: dict[str, list[str]] = {}
        for name, objects in true[relation.inverse].items():
            for object_ in objects:
                found.setdefault(object_, []).append(name)
        return {name: tuple(objects) for name, objects in found.items()}

    def chained(self, relation, group, subjects, true):
        found = {}
        for name in subjects:
            reached = follow(name, relation.chain, true, self.known)
            if reached:
                found[name] = reached
        return found

    def member(self, relation, group, subjects, true):
        """One of those that point to the subject: a capital lies in its own country."""
        found = {}
        for name in subjects:
            inside = [member for member, objects in true[relation.chain[0]].items() if name in objects]
            if inside:
                found[name] = (Draws(self.seed, "fact", relation.name, name).choice(inside),)
        return found

    def assigned(self, relation, group, subjects, true):
        """Every subject has an object of its own."""
        pool = Draws(self.seed, "assigned", relation.name).shuffled(self.pool(relation, group))
        return {name: (object_,) for name, object_ in zip(subjects, pool, strict=False)}

    def formed(self, relation, group, subjects, true):
        return {name: (self.forms[name],) for name in subjects}


def follow(name: str, chain: Sequence[str], true: Truth, known: Truth) -> tuple[str, ...]:
    """The objects at the end of a chain of relations; empty where it breaks off."""
    reached: tuple[str, ...] = (name,)
    for step in chain:
        objects = true.get(step, {}).get(reached[0]) or known.get(step, {}).get(reached[0])
        if not objects:
            return ()
        reached = objects
    return reached


def facts_of(seed: int, group: Group, true: Truth) -> list[Fact]:
    return [
        Fact(name, relation, objects, RELATIONS[relation].kind, group.split,
             part(seed, RELATIONS[relation], name, objects),
             stated(seed, RELATIONS[relation], name, objects))
        for relation, subjects in true.items() for name, objects in subjects.items()
    ]  # fmt: skip


def part(seed: int, relation: Relation, name: str, objects: Sequence[str]) -> str:
    """By hash. What a fact shares with its inverse decides, so that both fall on the same side."""
    key = (relation.name, name)
    if relation.kind == "symmetric":
        key = (relation.name, *sorted((name, objects[0])))
    elif relation.source == "inverted":
        key = (relation.inverse, name)
    elif relation.linked:
        key = (relation.name, objects[0])
    return "tuning" if digest(seed, "part", *key) % 10 < TUNING else "reported"


def stated(seed: int, relation: Relation, name: str, objects: Sequence[str]) -> bool:
    """Of a symmetric pair one direction is always told."""
    key = sorted((name, objects[0])) if relation.kind == "symmetric" else [name]
    draws = Draws(seed, "stated", relation.name, *key)
    if draws.unit() < relation.stated:
        return True
    return relation.kind == "symmetric" and name == draws.choice(key)
