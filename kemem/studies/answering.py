"""What a model says to a fact in each of its phrasings, and what that is: a fact of a world, or of records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from torch import nn

from kemem.editing.places import leading
from kemem.evaluation import encode_all
from kemem.studies.tracing import greedy
from kemem.world import Fact

OUTCOMES = ("right", "true too", "same type", "something else")


@dataclass(frozen=True)
class Recorded:
    """A fact of records: its prompts that end with the object. Its kind is its relation."""

    subject: str
    relation: str
    object: str
    prompts: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.relation

    def prompt(self, paraphrase: int = 0) -> str:
        return self.prompts[paraphrase]


@dataclass(frozen=True)
class Answered:
    """What a model said to a fact in each of its phrasings, and what that is: one of OUTCOMES."""

    fact: Fact | Recorded
    said: tuple[str, ...]
    outcomes: tuple[str, ...]

    @property
    def right(self) -> tuple[bool, ...]:
        return tuple(outcome == "right" for outcome in self.outcomes)


def answered(
    model: nn.Module,
    tokenizer: Any,
    facts: Sequence[Any],
    judged: Callable[[Any, str], tuple[str, str]],
    *,
    batch_size: int = 128,
) -> list[Answered]:
    """Asks for each fact in every phrasing that ends with its object, and lets the model go on greedily.

    An answer is right if its first tokens are those of " " + object, however the text goes on. judged: of a fact and
    another text which answer it is, and what that is.
    """
    if not facts:
        return []
    phrasings = [prompts(fact) for fact in facts]
    pairs = [(text, f" {fact.object}") for fact, own in zip(facts, phrasings, strict=True) for text in own]
    flat = encode_all(tokenizer, pairs, start=leading(tokenizer))
    longest = 1 + max(len(span.target) for span in flat)  # what follows tells where a name ends
    written = greedy(model, [span.prompt for span in flat], longest, batch_size=batch_size)
    asked = iter(zip(flat, written, strict=True))
    found = []
    for fact, own in zip(facts, phrasings, strict=True):
        said, outcomes = [], []
        for _ in own:
            span, ids = next(asked)
            if tuple(ids[: len(span.target)]) == span.target:
                answer, what = fact.object, "right"
            else:
                answer, what = judged(fact, tokenizer.decode(ids))
            said.append(answer)
            outcomes.append(what)
        found.append(Answered(fact, tuple(said), tuple(outcomes)))
    return found


def prompts(fact: Fact | Recorded) -> tuple[str, ...]:
    """Every phrasing that ends with the object."""
    if isinstance(fact, Recorded):
        return fact.prompts
    return tuple(fact.prompt(k) for k in range(len(fact.row.cloze)))


def named(text: str, names: AbstractSet[str]) -> str:
    """The longest of the names with which a text begins, as whole words; else its words up to a stop or comma."""
    text = text.strip()
    begins = [
        name for name in names if text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()
    ]
    return max(begins, key=len) if begins else text.split(".")[0].split(",")[0].strip()
