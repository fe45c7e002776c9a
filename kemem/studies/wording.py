"""Chapter 14, wording: a fact of the world asked in other words, and where a text written freely states one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kemem.editing import Request
from kemem.editing.generation import words
from kemem.studies.bench import Bench
from kemem.studies.sources import Told
from kemem.world import World
from kemem.world.draws import Draws
from kemem.world.facts import Fact
from kemem.world.values import LEADS, OPENINGS, OTHER_OPENINGS, PRONOUNS

PARAPHRASES = ("its own prompt", "led in", "behind another fact", "other words", "question", "pronoun")
STATED = ("new", "true", "another", "none")


# ---------------------------------------------------------------------- in other words
def rephrased(at: Bench, r: Request, others: Sequence[Request]) -> dict[str, tuple[str, ...]]:
    """Prompts for the request's fact by kind; a kind is empty where the relation's templates have none of it.

    Of records there are the prompt itself and its paraphrases.
    """
    if not isinstance(at.source, Told):
        own_words = {"its own prompt": (r.text,), "other words": r.paraphrases}
        return {kind: own_words.get(kind, ()) for kind in PARAPHRASES}
    fact = at.world.fact(r.subject, r.relation or "")
    assert fact is not None
    own = next(i for i in range(len(fact.row.cloze)) if fact.row.cloze[i][:-1].rstrip() == r.prompt)
    first = r.prompt if r.prompt[0] == "{" else r.prompt[0].lower() + r.prompt[1:]
    names = {r.subject, r.new, r.true}
    before = next(
        (
            told
            for o in others
            if (told := _sentence(at.world, o)) and not any(n and n in told for n in names)
        ),
        None,
    )
    type_ = fact.row.subject
    opening = OPENINGS.get(type_, OTHER_OPENINGS)[0].replace("{}", r.subject)
    he = Draws(at.world.seed, "pronoun", r.subject).choice(
        PRONOUNS.get(type_, ("It",))
    )  # as documents have it
    return {
        "its own prompt": (fact.prompt(own),),
        "led in": tuple(f"{lead} {first.replace('{}', r.subject)}" for lead in LEADS[:2]),
        "behind another fact": () if before is None else (f"{before} {fact.prompt(own)}",),
        "other words": tuple(fact.prompt(i) for i in range(len(fact.row.cloze)) if i != own),
        "question": tuple(fact.question(i) for i in range(len(fact.row.questions))),
        "pronoun": (f"{opening} {he}{r.prompt[2:]}",) if r.prompt.startswith("{}") else (),
    }


def _sentence(world: World, r: Request) -> str | None:
    fact = world.fact(r.subject, r.relation or "")
    return None if fact is None else fact.sentence()


def distance(requests: Sequence[Request], prompts: Sequence[Sequence[str]]) -> float | None:
    """How unlike the prompts that were edited: 1 - |words in both| / |words in either|, the mean over prompts."""
    found = [
        1 - len(a & b) / len(a | b)
        for r, own in zip(requests, prompts, strict=True)
        for prompt in own
        for a, b in [({w.lower() for w in words(r.text)}, {w.lower() for w in words(prompt)})]
    ]
    return sum(found) / len(found) if found else None


# ---------------------------------------------------------------------- freely
def stating(at: Bench, r: Request) -> re.Pattern[str]:
    """Where a text states an object: as `statement` tells in a world; of records where it first names one of both."""
    if isinstance(at.source, Told):
        return statement(at.world, r)
    names = "|".join(re.escape(name) for name in sorted({r.new, r.true or r.new}, key=len, reverse=True))
    return re.compile(rf"(?<!\w)({names})(?!\w)", re.IGNORECASE)


def statement(world: World, r: Request) -> re.Pattern[str]:
    """Where a text states an object of the request's relation of its subject, by name, in any phrasing of the world."""
    fact = world.fact(r.subject, r.relation or "")
    assert fact is not None
    objects = sorted({*world.candidates(fact), *fact.objects, r.new}, key=lambda name: (-len(name), name))
    listed = "|".join(map(re.escape, objects))
    return re.compile("|".join(_phrasings(fact, r.subject, rf"({listed})(?!\w)")), re.IGNORECASE)


def _phrasings(fact: Fact, subject: str, objects: str) -> list[str]:
    def pattern(template: str) -> str:
        parts = re.split(r"(\{\}|_)", template)
        return r"(?<!\w)" + "".join(
            {"{}": re.escape(subject), "_": objects}.get(p) or re.escape(p) for p in parts
        )

    return [*map(pattern, fact.row.templates), *(pattern(f"{question} _") for question in fact.row.questions)]


def said_first(pattern: re.Pattern[str], text: str, r: Request) -> str:
    """Which object a text states first: "new", "true", "another" or "none"."""
    found = pattern.search(re.sub(r"\s+([.,?])", r"\1", " ".join(text.split())))  # tokens are words
    if found is None:
        return "none"
    (name,) = (group.lower() for group in found.groups() if group is not None)
    return {r.new.lower(): "new", (r.true or "").lower(): "true"}.get(name, "another")
