"""Questions to a model on facts of the world its corpus tells of, with the candidates that could be the answer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from kemem import corpora
from kemem.corpora import specs


@dataclass(frozen=True)
class Question:
    """A fact with one object, its first cloze prompt, and every object of that type."""

    subject: str
    relation: str
    prompt: str
    answer: str
    candidates: tuple[str, ...]


def questions(spec: str, count: int, *, most: int = 24) -> dict[str, list[Question]]:
    """Questions on reported facts of the corpus's world, by kind of fact. Empty where the corpus holds no world.

    About `count` in all, spread evenly over the kinds and drawn by hash; at most `most` candidates each, likewise.
    """
    world = next((corpora.world(part)[0] for part in specs(spec) if part.scheme == "world"), None)
    if world is None:
        return {}
    kinds: dict[str, list[Any]] = defaultdict(list)
    for fact in world.facts("trained", part="reported"):
        if len(fact.objects) == 1:
            kinds[fact.kind].append(fact)
    share = max(1, count // len(kinds))
    found: dict[str, list[Question]] = {}
    for kind, facts in sorted(kinds.items()):
        for fact in sorted(facts, key=lambda f: draw(f.subject, f.relation))[:share]:
            answer = fact.objects[0]
            others = sorted(
                (c for c in world.candidates(fact) if c != answer), key=lambda c: draw(fact.subject, c)
            )
            question = Question(
                fact.subject, fact.relation, fact.prompt(0), answer, (answer, *others[: most - 1])
            )
            found.setdefault(kind, []).append(question)
    return found


def draw(*words: str) -> bytes:
    """A key that orders words by hash: the same on every machine, and unrelated to what they mean."""
    return sha256(" ".join(words).encode()).digest()
