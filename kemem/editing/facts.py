"""Facts: what is asked of an editor, and what a model is asked about it before and after."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kemem.errors import BadInput


@dataclass(frozen=True)
class Request:
    """One fact to be rewritten: `prompt`, filled with `subject`, is to go on with `new`, no longer with `true`.

    prompt: a template with one {}. case_id: the number or name by which faults are told. relation: a name such as
    P30; two requests with one subject and relation and different `new` conflict. true: None where unknown.
    What it is judged by, each empty where a record has none: paraphrases, prompts that say the same in other words;
    neighbours, prompts about other subjects of which `true` holds; attributes, prompts about subjects of which `new`
    holds; generation, texts to be continued; locality, (prompt, answer) of unrelated facts that must stay.
    new_id: the object's identifier, by which reference texts are found.
    """

    case_id: int | str
    prompt: str
    subject: str
    new: str
    true: str | None = None
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    locality: tuple[tuple[str, str], ...] = ()
    new_id: str | None = None

    @property
    def text(self) -> str:
        """The prompt about the subject, to be continued by the object."""
        return filled(self.prompt, self.subject)


@dataclass(frozen=True)
class KnownFact:
    """A fact for causal tracing: a model that knows it continues `prompt`, which names `subject`, with `attribute`."""

    known_id: int | str
    prompt: str
    subject: str
    attribute: str
    relation: str | None = None


def filled(template: str, subject: str) -> str:
    """The template with its first {} replaced; braces elsewhere are text like any other."""
    return template.replace("{}", subject, 1)


def mention(prompt: str, subject: str) -> int:
    """Where a prompt first names its subject, as words of their own if it does so anywhere; -1 where it does not.

    Spaces around the subject are none of its own: "Al " is named in "Also Al, born", from character 5.
    """
    if not (name := subject.strip()):
        return -1
    first = begin = prompt.find(name)
    while begin >= 0:
        end = begin + len(name)
        if not (prompt[begin - 1 : begin].isalnum() or prompt[end : end + 1].isalnum()):
            return begin
        begin = prompt.find(name, begin + 1)
    return first


def check(requests: Sequence[Request]) -> None:
    """Refuses, by case_id, requests that cannot be edited: no or two {}, an empty subject or target."""
    if not requests:
        raise BadInput("expected requests to edit; got none; give at least one.")
    for r in requests:
        if (count := r.prompt.count("{}")) != 1:
            raise BadInput(
                f"expected a prompt with one {{}} for the subject {r.subject!r}; got {count} in case {r.case_id}: "
                f"{r.prompt!r}; correct the record, or leave it out."
            )
        for name, text in (("subject", r.subject), ("new target", r.new)):
            if not text.strip():
                raise BadInput(
                    f"expected a {name}; got an empty one in case {r.case_id}; leave the record out."
                )


def conflicts(requests: Iterable[Request]) -> list[tuple[Request, Request]]:
    """Pairs that ask for two objects of one subject and relation: the later one with the first it contradicts.

    A relation is its name, or where a record names none, its prompt. Requests that agree do not conflict.
    """
    first: dict[tuple[str, str], Request] = {}
    found = []
    for r in requests:
        before = first.setdefault((r.subject.strip(), r.relation or r.prompt), r)
        if before.new.strip() != r.new.strip():
            found.append((before, r))
    return found


def without_conflicts(requests: Sequence[Request], *, keep: str = "none") -> list[Request]:
    """The requests, of which no two conflict. keep: "none" refuses those that do, "first" drops the later ones."""
    if keep not in ("none", "first"):
        raise BadInput(f"expected keep to be none or first; got {keep!r}; choose one of these.")
    found = conflicts(requests)
    if found and keep == "none":
        named = ", ".join(f"{a.case_id} and {b.case_id}" for a, b in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise BadInput(
            f"expected one object for a subject and relation; got two in cases {named}{more}; leave one of each "
            "out, or keep the first with --conflicts first."
        )
    dropped = {id(later) for _, later in found}
    return [r for r in requests if id(r) not in dropped]
