"""Who and what there is in a world: entities of every type, in three splits that share words but no name."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from kemem.world import names
from kemem.world.draws import Draws
from kemem.world.facts import Group
from kemem.world.relation import SPLITS
from kemem.world.relations import ROWS
from kemem.world.values import COMPOSITIONS, LEADS, OPENINGS, OTHER_OPENINGS, PRONOUNS, VALUES

CAST = {"person": 2, "city": 1, "company": 1, "work": 1}  # the entities of one fictional passage
LEAST = 4  # held-out entities of a type, so that each has alternatives
IRREGULAR = 5  # one invented noun or verb in so many
SUFFIX = {"noun": "s", "verb": "ed"}
FORM = {"noun": "plural", "verb": "past"}


class Population:
    """Entities from three numbers. Names of people, cities, companies and books are pairs of words.

    The trained names use every word of the pairs, so that a held-out or fictional name is a new pair of
    words that a model has met. shared: how many words of a pair stand in several names, see `World`, for so many
    fictional casts as `casts` says.
    """

    def __init__(self, people: int, held_out: int, seed: int, *, shared: int = 0, casts: int = 0):
        self.seed = seed
        countries = min(12, max(4, people // 25))
        self.counts = {
            "person": people, "city": max(10, people // 5), "company": max(6, people // 8),
            "work": max(8, 3 * people // 10), "country": countries, "region": 2 * countries,
            "language": min(14, max(6, people // 20)), "university": max(4, people // 20),
            "dish": max(6, people // 10), "noun": max(8, people * 3 // 20), "verb": max(6, people // 10),
        }  # fmt: skip
        self.spare = {type_: max(LEAST, n * held_out // people) for type_, n in self.counts.items()}
        self.forms: dict[str, str] = {}  # lemma -> form of the invented nouns and verbs
        taken = set().union(*names.SHARED_FIRST.values()) if shared == 1 else set()
        words = names.Words(Draws(seed, "words"), english() | taken)
        self._single = self._singles(words)
        if shared:
            self._pairs = {
                type_: self._few(words, type_, casts) if shared == 2 else self._own(words, type_)
                for type_ in CAST
            }
        else:
            self._pairs = self._many(words)

    def _many(self, words: names.Words) -> dict[str, tuple[list[str], list[str]]]:
        """The words of the pairs, in proportion to the names: most of the first ones stand in one or two."""
        people, count = self.counts["person"], self.counts
        titles, companies = count["work"], count["company"]
        return {
            "person": (words.names("given", max(12, people * 4 // 10)),
                       words.names("family", max(16, people * 9 // 10))),
            "city": (words.names("city", max(10, 3 * count["city"] // 4)), names.SECOND["city"]),
            "company": (words.names("company", companies), names.SECOND["company"][:companies]),
            "work": (names.TITLE_FIRST[: max(6, titles // 2)],
                     names.TITLE_SECOND[: max(8, titles * 6 // 10)]),
        }  # fmt: skip

    def _few(self, words: names.Words, type_: str, casts: int) -> tuple[list[str], list[str]]:
        """As few words as the names of a type need: several names have either word of one in common."""
        wanted = self.counts[type_] + self.spare[type_] + CAST[type_] * casts
        first = len(names.TITLE_FIRST) if type_ == "work" else wanted
        second = {"work": len(names.TITLE_SECOND), "person": wanted}.get(type_) or len(names.SECOND[type_])
        side = 2
        while names.capacity(range(min(side, first)), range(min(side, second))) < wanted and side < wanted:
            side += 1
        first, second = min(side, first), min(side, second)
        if type_ == "person":
            return words.names("given", first), words.names("family", second)
        if type_ == "work":
            return list(names.TITLE_FIRST[:first]), list(names.TITLE_SECOND[:second])
        return words.names(type_, first), list(names.SECOND[type_][:second])

    def _own(self, words: names.Words, type_: str) -> tuple[list[str], list[str]]:
        """First words that many names of a type have in common; of trained names each has a last word of its own."""
        count = self.counts[type_]
        if type_ == "person":
            return words.names("given", len(names.SHARED_FIRST["city"])), words.names("family", count)
        return list(names.SHARED_FIRST[type_]), words.names(type_, count)

    def _singles(self, words: names.Words) -> dict[str, list[str]]:
        """Entities named by one word."""
        count, spare = self.counts, self.spare
        made = {type_: words.names(type_, count[type_]) for type_ in ("country", "region", "language")}
        made["currency"] = words.words("currency", count["country"])
        made["university"] = [f"{word} University" for word in words.names("university", count["university"])]
        made["dish"] = words.words("dish", count["dish"] + spare["dish"])
        for type_, suffix in SUFFIX.items():
            odd = Draws(self.seed, "irregular", type_)
            forms = [
                words.inflected(type_, suffix, odd.below(IRREGULAR) == 0)
                for _ in range(count[type_] + spare[type_])
            ]
            self.forms.update(forms)
            made[type_] = [lemma for lemma, _ in forms]
        return made

    @property
    def room(self) -> int:
        """How many fictional casts there are names for."""
        return min(
            (names.capacity(*self._pairs[type_]) - self.counts[type_] - self.spare[type_]) // size
            for type_, size in CAST.items()
        )

    def groups(self, casts: int) -> dict[str, list[Group]]:
        """The groups of each split: one of trained, one of held-out entities, one for each fictional cast."""
        members: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
        for type_, words in self._pairs.items():
            sizes = self.counts[type_], self.spare[type_], CAST[type_] * casts
            form = "The {} {}" if type_ == "work" else "{} {}"
            pairs = names.pairs(Draws(self.seed, "names", type_), *words, sum(sizes))
            made = [form.format(*pair) for pair in pairs]
            for split, size in zip(SPLITS, sizes, strict=True):
                members[split][type_], made = made[:size], made[size:]
        for type_, made in self._single.items():
            count = self.counts.get(type_, len(made))
            members["trained"][type_] = made[:count]
            if made[count:]:
                members["held_out"][type_] = made[count:]
        fictional = [
            {type_: members["fictional"][type_][n * i : n * (i + 1)] for type_, n in CAST.items()}
            for i in range(casts)
        ]
        return {
            "trained": [Group("trained", "trained", members["trained"])],
            "held_out": [Group("held_out", "held_out", members["held_out"])],
            "fictional": [Group("fictional", f"fictional {i}", cast) for i, cast in enumerate(fictional)],
        }

    def objects(self, trained: Group) -> Mapping[str, Sequence[str]]:
        """What any fact may take as object, by type: trained entities and values."""
        forms = {
            form: [self.forms[lemma] for lemma in trained.members[type_]] for type_, form in FORM.items()
        }
        return {**VALUES, **trained.members, **forms}

    @cached_property
    def words(self) -> list[str]:
        """The words of all names, in order."""
        words = {word for pools in self._pairs.values() for pool in pools for word in pool}
        words |= {word for made in self._single.values() for name in made for word in name.split()}
        return sorted(words | set(self.forms.values()) | {"The"})


def english() -> set[str]:
    """Every word of templates, values and phrases that is not invented."""
    texts = [text for row in ROWS for text in (*row.templates, *row.questions, *row.join)]
    for lists in (VALUES, OPENINGS, PRONOUNS):
        texts += [text for list_ in lists.values() for text in list_]
    texts += [text[0].lower() + text[1:] for row in ROWS for text in row.templates]  # behind a lead
    texts += [*LEADS, *OTHER_OPENINGS, *(text for *_, text in COMPOSITIONS)]
    texts += [*names.TITLE_FIRST, *names.TITLE_SECOND, *names.SECOND["city"], *names.SECOND["company"]]
    return {word.strip(".,:?") for text in texts for word in text.split()} - {"{}", "_"} | {"University"}
