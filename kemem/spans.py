"""Prompts with their targets as token ids, many at once: a tokenizer's call costs more than the text that it cuts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kemem.errors import BadInput

AT_ONCE = 4096  # texts a call: what a tokenizer gives back holds far more than ids


@dataclass(frozen=True)
class Span:
    """Token ids of a prompt and its target, and where the target begins."""

    ids: tuple[int, ...]
    begin: int

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.begin]

    @property
    def target(self) -> tuple[int, ...]:
        return self.ids[self.begin :]


def encode(tokenizer: Any, prompt: str, target: str, *, start: Sequence[int] = ()) -> Span:
    """Cuts prompt and target into tokens, the prompt's being an exact prefix of the whole.

    They are joined by one space where either side has one or the target opens with a letter or digit. The
    space belongs to the target, as byte-level tokenizers have it in running text (" Paris", not "Paris").
    Where the tokenizer would merge across the border each side is cut by itself: what a prompt is must not
    depend on what follows. No special tokens are added but `start`.
    """
    return encode_all(tokenizer, [(prompt, target)], start=start)[0]


def encode_all(tokenizer: Any, pairs: Sequence[tuple[str, str]], *, start: Sequence[int] = ()) -> list[Span]:
    """`encode` of each (prompt, target), every text that occurs cut once, thousands of texts a call."""
    cut = [_joined(prompt, target) for prompt, target in pairs]
    ids = _ids(tokenizer, dict.fromkeys(text for bare, tail in cut for text in (bare, bare + tail) if text))
    ids[""] = []
    apart = [not _continues(ids[bare], ids[bare + tail]) for bare, tail in cut]
    alone = _ids(
        tokenizer, dict.fromkeys(tail for (_, tail), own in zip(cut, apart, strict=True) if own and tail)
    )
    alone[""] = []
    found = []
    for (prompt, target), (bare, tail), own in zip(pairs, cut, apart, strict=True):
        first = ids[bare]
        whole = first + alone[tail] if own else ids[bare + tail]
        if len(whole) == len(first):
            raise BadInput(
                f"expected a target to score after {prompt!r}; got {target!r}, without a token; give text."
            )
        if not first and not start:
            raise BadInput(
                f"expected a prompt before {target!r}; got none; give one, or `start` with a first token."
            )
        found.append(Span((*start, *whole), len(start) + len(first)))
    return found


def _joined(prompt: str, target: str) -> tuple[str, str]:
    bare, tail = prompt.rstrip(" "), target.lstrip(" ")
    spaced = bare != prompt or tail != target or tail[:1].isalnum()
    return bare, f" {tail}" if bare and tail and spaced else tail


def _continues(first: Sequence[int], whole: Sequence[int]) -> bool:
    return len(whole) > len(first) and whole[: len(first)] == first


def _ids(tokenizer: Any, texts: Iterable[str]) -> dict[str, list[int]]:
    asked, found = list(texts), {}
    for begin in range(0, len(asked), AT_ONCE):
        part = asked[begin : begin + AT_ONCE]
        found.update(zip(part, tokenizer(part, add_special_tokens=False)["input_ids"], strict=True))
    return found
