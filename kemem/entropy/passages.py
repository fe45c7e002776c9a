"""Fictional Knowledge: passages on what does not exist, told in training, and what is asked about them.

Kim et al. 2025, B.1 and B.2; the passages and their three kinds of probes are those of Chang et al. 2024.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kemem.corpora import hub, specs
from kemem.corpora.files import expanded, field_of
from kemem.errors import BadInput
from kemem.evaluation import Span, encode

GROUPS = {  # told anew at each injection, or once in all; the file of each as released
    "paraphrase": "fictional_knowledge_paraphrased_paraphrase70.json",
    "once": "fictional_knowledge_paraphrased_once60.json",
}
PARAPHRASED = 70  # passages told anew at each injection, the first ones of all 130
KINDS = {"memorisation": "mem", "semantic": "gen", "composition": "hard_gen"}  # and their fields as released


@dataclass(frozen=True)
class Passage:
    """A passage to be learnt, and probes of what it says.

    paraphrases: the same told in other words. probes: of each kind its (input, target), the target being what the
    input leaves out. A sentence of the passage is cut in two for memorisation, one that says the same for
    semantic; composition needs more than one of its facts. group: one of GROUPS.
    """

    context: str
    paraphrases: tuple[str, ...]
    probes: Mapping[str, tuple[tuple[str, str], ...]]
    group: str

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise BadInput(f"the group of a passage is one of {', '.join(GROUPS)}; got {self.group!r}.")
        if not self.probes.keys() <= KINDS.keys():
            raise BadInput(f"kinds of probes are {', '.join(KINDS)}; got {', '.join(self.probes)}.")
        if not any(self.probes.values()):
            raise BadInput(f"a passage must have a probe; got none for {self.context[:40]!r}; leave it out.")

    @property
    def tellings(self) -> tuple[str, ...]:
        """The passage, then its paraphrases."""
        return (self.context, *self.paraphrases)


def passages(source: str | Path | Iterable[Any], group: str | None = None) -> tuple[Passage, ...]:
    """Passages in the published schema: a JSON file, a folder with both released files, the hub, or records.

    Records are what `World.fictional_knowledge` gives. A path may begin with `$KEMEM_DATA`. hub:NAME is a data set
    of the hub or a local folder of one, as for a corpus; hub:fictional-knowledge is that of the authors, whose records
    have no field `paraphrases`: such a passage has none.
    group: needed for a file and for records; of a folder it picks one of the two, first paraphrase, then once. So it
    does of a data set: the first PARAPHRASED records are those of the one, the others of the other, as released.
    Refused, with file, record (counted from 1) and field: what is not JSON or not a list of records, a field
    that is missing or of another type, inputs and targets of different numbers, a record without a probe.
    """
    if not isinstance(source, str | Path):
        return _passages(source, _known(group), "")
    if str(source).startswith("hub:"):
        return _of_hub(str(source), None if group is None else _known(group))
    place = expanded(str(source))
    if not place.is_dir():
        return _of_file(place, _known(group))
    wanted = GROUPS if group is None else [_known(group)]
    return tuple(passage for name in wanted for passage in _of_file(place / GROUPS[name], name))


def _known(group: str | None) -> str:
    if group not in GROUPS:
        raise BadInput(
            f"passages need a group, one of {', '.join(GROUPS)}; got {group!r}; say which they are."
        )
    return group


def _of_hub(source: str, group: str | None) -> tuple[Passage, ...]:
    (part,) = specs(source)
    # those of the hub, as first published, have no field `paraphrases`: they are told in their own words alone
    found = [{"paraphrases": [], **record} for record in hub.records(hub.source(part))]
    parts = {"paraphrase": slice(PARAPHRASED), "once": slice(PARAPHRASED, None)}
    wanted = parts if group is None else {group: parts[group]}
    return tuple(
        p for name, of in wanted.items() for p in _passages(found[of], name, f" of {source}, {name}")
    )


def _of_file(file: Path, group: str) -> tuple[Passage, ...]:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"passages are read from a JSON file, or a folder with {' and '.join(GROUPS.values())}; "
            f"got {error.strerror or error} for {file}; check the path."
        ) from None
    except (ValueError, RecursionError) as error:
        fault = str(error).splitlines()[0]
        raise BadInput(f"a file of passages must be JSON; got {fault} in {file}; copy it again.") from None
    if not isinstance(records, list):
        raise BadInput(
            f"a file of passages must hold a list of records; got {type(records).__name__} in {file}."
        )
    return _passages(records, group, f" of {file}")


def _passages(records: Iterable[Any], group: str, where: str) -> tuple[Passage, ...]:
    return tuple(
        _passage(record, group, f"record {number}{where}") for number, record in enumerate(records, start=1)
    )


def _passage(record: Any, group: str, place: str) -> Passage:
    context = field_of(record, "train_context", place)
    if not context.strip():
        raise BadInput(f"the field 'train_context' must hold text; got none in {place}; leave it out.")
    probes = {}
    for kind, field in KINDS.items():
        inputs, targets = (_texts(record, f"{field}_{side}", place) for side in ("input", "target"))
        if len(inputs) != len(targets):
            raise BadInput(
                f"a probe is an input and a target; got {len(inputs)} in {field}_input and {len(targets)} in "
                f"{field}_target of {place}; give one target to each."
            )
        probes[kind] = tuple(zip(inputs, targets, strict=True))
    if not any(probes.values()):
        raise BadInput(f"a passage must have a probe; got none in {place}; leave it out.")
    return Passage(context, _texts(record, "paraphrases", place), probes, group)


def _texts(record: Mapping[str, Any], field: str, place: str) -> tuple[str, ...]:
    texts = record.get(field)
    if field not in record or not isinstance(texts, list | tuple):
        found = type(texts).__name__ if field in record else "no such field"
        raise BadInput(f"the field {field!r} must be a list of texts; got {found} in {place}.")
    return tuple(
        field_of({field: text}, field, f"{place}, number {number}")
        for number, text in enumerate(texts, start=1)
    )


def span_of(tokenizer: Any, pair: tuple[str, str], place: str) -> Span:
    """A probe as the tokens of input + " " + target. Refused, with its place: one whose input does not begin them."""
    given, target = pair
    whole, first = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"{given} {target}", given)
    )
    # then `encode` would cut the very same texts
    clean = not given.endswith(" ") and target[:1] not in ("", " ")
    if clean and first and len(whole) > len(first) and list(whole[: len(first)]) == list(first):
        return Span(tuple(whole), len(first))
    span = encode(tokenizer, given, f" {target}")
    if (list(span.ids), list(span.prompt)) != (whole, first):
        raise BadInput(
            f"expected the tokens of an input to begin those of input + ' ' + target; got other ones for the probe "
            f"{given!r} {target!r} ({place}); move the border to where words end, without a space there."
        )
    return span


def acquisition(before: float, after: float) -> float:
    """A: how much knowledge was acquired, as a share of what was missing; above 0 is an improvement.

    Kim et al. 2025, eq. 4:  A = (K_after - K_before) / |K_before|.
    Differs from the equation as printed, whose denominator is K_before: K is below 0, so an improvement would be
    below 0 too, and the tables have it above. They are in percent; this is a fraction.
    Refused: K_before of 0, where every target is certain and nothing can be acquired.
    """
    if before == 0:
        raise BadInput(
            "acquisition is relative to the knowledge before; got 0, all of it; take other probes."
        )
    return (after - before) / abs(before)


def forgetting(before: float, after: float) -> float:
    """F: the share of a score, such as a mean accuracy, that was lost; below 0 where it rose.

    Kim et al. 2025, eq. 5:  F = -(P_after - P_before) / P_before, there in percent; this is a fraction.
    Refused: P_before of 0 or less, of which no share can be lost: a log-probability goes to `acquisition`.
    """
    if before <= 0:
        raise BadInput(f"forgetting is a share of the score before, above 0; got {before}; use an accuracy.")
    return (before - after) / before  # so that what stayed is 0, not -0
