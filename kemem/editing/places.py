"""Where in its tokens a prompt names its subject: the place at which facts are read and written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kemem.editing.facts import filled, mention
from kemem.errors import BadInput


@dataclass(frozen=True)
class Place:
    """A prompt as tokens, special ones included, and the span of its subject: ids[first] to ids[last]."""

    ids: tuple[int, ...]
    first: int
    last: int

    def __len__(self) -> int:
        return len(self.ids)


def leading(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that a tokenizer puts before a text by default, such as Llama's <s>; () where none."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for begin in range(len(whole) - len(bare) + 1 if bare else 0):  # of no token, anything would be around it
        if whole[begin : begin + len(bare)] == bare:
            return tuple(whole[:begin])
    raise BadInput(
        "expected a tokenizer whose special tokens stand around a text; got one that changes the text."
    )


def place(tokenizer: Any, template: str, subject: str, *, case_id: int | str | None = None) -> Place:
    """The template about the subject as tokens, and where the subject stands in them.

    By the tokenizer's own character offsets, so exact whatever it merges or adds: the last token of the subject is
    the last one that holds a part of its last character; what precedes it, a space or a special token, moves
    nothing. A token that runs on beyond the subject counts as its own. Meng et al. 2023 cut prompt and subject
    apart and count, which holds where the tokenizer merges nothing across that border and adds no first token.
    Differs in nothing where both hold.
    """
    of = "" if case_id is None else f" of case {case_id}"
    begin = template.find("{}")
    if begin < 0:
        raise BadInput(
            f"expected a prompt with one {{}} for the subject; got none{of}: {template!r}; correct it."
        )
    if not subject.strip():
        raise BadInput(f"expected a subject; got an empty one{of}; leave the record out.")
    start = begin + len(subject) - len(subject.lstrip())
    end = begin + len(subject.rstrip())
    text = filled(template, subject).rstrip(" ")
    return Place(*_spanned(tokenizer, text, start, end, of))


def found(tokenizer: Any, prompt: str, subject: str, *, case_id: int | str | None = None) -> Place:
    """As `place`, for a prompt that names the subject, where `mention` has it. Refused where it does not."""
    of = "" if case_id is None else f" of case {case_id}"
    begin = mention(prompt, subject)
    if begin < 0:
        raise BadInput(
            f"expected a prompt that names its subject {subject!r}; got {prompt!r}{of}; correct one."
        )
    return Place(*_spanned(tokenizer, prompt.rstrip(" "), begin, begin + len(subject.strip()), of))


def _spanned(tokenizer: Any, text: str, start: int, end: int, of: str) -> tuple[tuple[int, ...], int, int]:
    if not getattr(tokenizer, "is_fast", False):
        raise BadInput(
            f"expected a tokenizer that tells character offsets, a fast one; got {type(tokenizer).__name__}; "
            "load the model with its tokenizer.json."
        )
    read = tokenizer(text, return_offsets_mapping=True, padding=False, truncation=False)
    # special tokens span 0 to 0, so they hold nothing of a subject
    inside = [i for i, (a, b) in enumerate(read["offset_mapping"]) if a < end and b > start]
    if not inside:
        raise BadInput(
            f"expected a subject with a token; got {text[start:end]!r}{of}, without one; correct it."
        )
    return tuple(read["input_ids"]), inside[0], inside[-1]


def shifts(lengths: Sequence[int], side: str) -> list[int]:
    """How far padding to the longest moves every row: 0 where it is put on the right."""
    if side not in ("left", "right"):
        raise BadInput(f"expected padding on the left or right; got {side!r}; choose one of these.")
    return [max(lengths) - n if side == "left" else 0 for n in lengths]
