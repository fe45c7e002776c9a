"""Facts told as documents: several sentences about one or two entities, in varied words."""

from collections.abc import Mapping, Sequence

from kemem.world.draws import Draws
from kemem.world.facts import Fact, capital, listed
from kemem.world.relations import RELATIONS
from kemem.world.values import LEADS, OPENINGS, OTHER_OPENINGS, PRONOUNS

SHORTEST, LONGEST = 40, 115  # words of a document
FEW, COMPANY = 3, 3  # an entity with fewer facts than FEW is told with up to COMPANY others of its type
TOLD = 3  # objects named at once, of those of a fact with many
QUESTION, LEAD, PRONOUN = 1 / 12, 1 / 6, 1 / 8  # shares of the sentences


class Writer:
    """Writes passages from facts by subject; `types` gives the type and split of every entity."""

    def __init__(self, facts: Mapping[str, Sequence[Fact]], types: Mapping[str, tuple[str, str]], seed: int):
        self.facts, self.types = facts, types
        self.related: dict[str, list[str]] = {}
        self.alike: dict[tuple[str, str], list[str]] = {}
        self.pronouns: dict[str, str] = {}
        for name, told in facts.items():
            near = (object_ for fact in told for object_ in fact.objects)
            self.related[name] = [o for o in dict.fromkeys(near) if o in facts and o != name]
            self.alike.setdefault(types[name], []).append(name)
            self.pronouns[name] = Draws(seed, "pronoun", name).choice(PRONOUNS.get(types[name][0], ("It",)))

    def document(self, subject: str, draws: Draws) -> str:
        """40 to 115 words about a subject, and half the time about one that it is related to."""
        goal = SHORTEST + draws.below(LONGEST - SHORTEST - 15)
        cast = self.cast(subject, draws)
        said: list[str] = []
        if draws.below(2):
            opening = draws.choice(OPENINGS.get(self.types[subject][0], OTHER_OPENINGS))
            said.append(opening.replace("{}", subject))
        words = said[0].count(" ") + 1 if said else 0
        turn = 0
        while True:
            # Facts of the first, then of the second; when all are told, again in other words.
            name = cast[turn % len(cast)]
            facts = draws.shuffled(self.facts[name])
            if turn == 0 and len(cast) > 1:
                facts = facts[: 2 + draws.below(4)]
            turn += 1
            again = False  # the sentence before was about the same entity
            for fact in facts:
                sentence = self.sentence(fact, draws, pronoun=again)
                if sentence in said:
                    continue
                words += sentence.count(" ") + 1
                if words > LONGEST:
                    return " ".join(said)
                said.append(sentence)
                if words >= goal:
                    return " ".join(said)
                again = True

    def cast(self, subject: str, draws: Draws) -> list[str]:
        if len(self.facts[subject]) < FEW:
            others = draws.shuffled(self.alike[self.types[subject]])[:COMPANY]
            return [subject, *(name for name in others if name != subject)]
        if self.related[subject] and draws.below(2):
            return [subject, draws.choice(self.related[subject])]
        return [subject]

    def sentence(self, fact: Fact, draws: Draws, *, pronoun: bool = False) -> str:
        """The fact in one of its phrasings; sometimes led in, with a pronoun, or as question and answer."""
        row = RELATIONS[fact.relation]
        objects: Sequence[str] = fact.objects
        if len(objects) > 1 and row.kind != "procedure":
            objects = draws.shuffled(objects)[:TOLD]
        told = listed(objects, row.join)
        style = draws.unit()
        if style < QUESTION:
            return draws.choice(row.questions).replace("{}", fact.subject) + " " + told + "."
        template = draws.choice(row.templates)
        if style < QUESTION + LEAD:
            body = template if template[0] in "{_" else template[0].lower() + template[1:]
            body = body.replace("{}", fact.subject).replace("_", told)
            return draws.choice(LEADS) + " " + body + "."
        if pronoun and template[0] == "{" and style > 1 - PRONOUN:
            return self.pronouns[fact.subject] + template[2:].replace("_", told) + "."
        return capital(template.replace("{}", fact.subject).replace("_", told)) + "."
