"""Invented words and names: readable, unique, none inside another."""

from collections.abc import Iterable, Iterator, Sequence

from kemem.world.draws import Draws


def each(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONSETS = each("b d f g h k l m n p r s t v z br dr gr kr pr tr bl fl gl kl pl st sk")
VOWELS = each("a e i o u")
CODAS = (*each("l m n r s k t nd rn lm"), *[""] * 8)

# The last syllable tells a reader what kind of thing a word names; it tells nothing about its facts.
ENDINGS = {
    "given": each("a o en is or ina eth ian"),
    "family": each("man ner dal vik sten mark over ley win ard"),
    "city": each("ton burg mar nova ford heim grad polis"),
    "company": each("ex on ix ora um ax"),
    "university": each("ius orn al ean"),
    "country": each("ia land stan eria ovia"),
    "region": each("shire vale ania wald moor"),
    "language": each("ish ese ic"),
    "currency": each("ar in ola"),
    "dish": each("elle otto eki ush"),
    "work": each("ora il une ask"),
    "noun": each("ig op ut eb"),
    "verb": each("ick ump ob aff"),
}

# The second word of a name; the first one is invented.
SECOND = {
    "city": each("Bay Falls Hill Bridge Harbour Cross Wells Gate Ridge Ferry"),
    "company": each("Group House Works Brothers Union Trust Partners Limited Stores Line"),
}

# The first word of a name whose second one is invented.
SHARED_FIRST = {
    "city": each("New Old Upper Lower Great Little North South East West Port Fort"),
    "company": each(
        "First United Royal General Modern Northern Eastern Global Central National Western Allied"
    ),
    "work": each("Silver Broken Silent Golden Hidden Distant Burning Frozen Crooked Empty Gentle Hollow"),
}

TITLE_FIRST = each(
    """Silver Broken Silent Golden Hidden Distant Burning Frozen Crooked Empty Gentle Hollow Iron Last Lonely
    Lost Narrow Painted Pale Quiet Red Restless Sacred Scarlet Secret Seventh Shining Sleeping Stolen Sunken
    Tall Unseen Velvet Wandering White Wild Winter Wooden Yellow Young"""
)
TITLE_SECOND = each(
    """Harp Lantern Garden River Mirror Door Bell Crown Feather Key Orchard Letter Anchor Arrow Basket Bottle
    Candle Castle Clock Cloud Coat Compass Dancer Desert Dragon Dream Drum Engine Falcon Fire Forest Fountain
    Fox Glove Hammer Horse Island Ladder Lion Mask Meadow Mill Moon Mountain Needle Night Owl Palace Pearl
    Pilgrim Rain Ring Road Rose Sailor Shadow Shore Song Stair Storm Sword Tower Window Wolf"""
)

SHIFTED = {"a": "e", "e": "i", "i": "o", "o": "u", "u": "a"}


def pieces(word: str) -> set[str]:
    return {word[i:j] for i in range(len(word)) for j in range(i + 1, len(word) + 1)}


class Words:
    """Gives out invented words; none stands inside another, nor inside a word of `english`."""

    def __init__(self, draws: Draws, english: Iterable[str]):
        self.draws, self.given = draws, set()
        self.inside: set[str] = set().union(*(pieces(word.lower()) for word in english))

    def claim(self, word: str, kin: str = "") -> bool:
        """Reserve a word if it is free; it may contain its `kin`, the word it is a form of."""
        parts = pieces(word)
        if word in self.inside or (parts & self.given) - {kin}:
            return False
        self.given.add(word)
        self.inside |= parts
        return True

    def word(self, kind: str) -> str:
        """One free word, lower case: one or two syllables and the ending of its kind."""
        draws = self.draws
        syllables = 1
        for attempt in range(10_000):
            if attempt % 50 == 49:  # the short words are running out
                syllables = 2
            body = "".join(
                draws.choice(ONSETS) + draws.choice(VOWELS) + draws.choice(CODAS) for _ in range(syllables)
            )
            ending = draws.choice(ENDINGS[kind])
            if ending[0] in VOWELS and body[-1] in VOWELS:
                body += draws.choice("lmnrtvd")
            elif ending[0] not in VOWELS and body[-2] not in VOWELS and body[-1] not in VOWELS:
                body = body[:-1]
            if self.claim(body + ending):
                return body + ending
        raise AssertionError(f"no free word left of kind {kind}")

    def words(self, kind: str, count: int) -> list[str]:
        return [self.word(kind) for _ in range(count)]

    def names(self, kind: str, count: int) -> list[str]:
        return [word.capitalize() for word in self.words(kind, count)]

    def inflected(self, kind: str, suffix: str, irregular: bool) -> tuple[str, str]:
        """An invented noun or verb and its form: lemma + suffix, or a changed vowel where irregular."""
        while True:
            lemma = self.word(kind)
            form = lemma + suffix
            if irregular:
                last = max(i for i, letter in enumerate(lemma) if letter in SHIFTED)
                form = lemma[:last] + SHIFTED[lemma[last]] + lemma[last + 1 :]
            if self.claim(form, kin=lemma):
                return lemma, form


def capacity(firsts: Sequence[object], seconds: Sequence[object]) -> int:
    """How many pairs may be asked for: drawn by rejection, a quarter of them stays free."""
    return len(firsts) * len(seconds) * 3 // 4


def pairs(
    draws: Draws, firsts: Sequence[str], seconds: Sequence[str], count: int
) -> Iterator[tuple[str, str]]:
    """Distinct pairs, the first of which use up every word: later pairs are new, their words are not."""
    assert count <= capacity(firsts, seconds)
    seen: set[tuple[str, str]] = set()
    while len(seen) < count:
        i = len(seen)
        if i < max(len(firsts), len(seconds)):
            pair = firsts[i % len(firsts)], seconds[i % len(seconds)]
        else:
            pair = draws.choice(firsts), draws.choice(seconds)
        if pair not in seen:
            seen.add(pair)
            yield pair
