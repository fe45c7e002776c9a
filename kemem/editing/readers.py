"""Readers of published facts: CounterFact in two schemas, zsRE, and the known facts of causal tracing."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kemem.corpora import hub, specs
from kemem.corpora.files import expanded, field_of
from kemem.editing.facts import KnownFact, Request, mention
from kemem.errors import BadInput

EXTENSIONS = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
SCHEMAS = {  # and the fields by which the first record tells which one it is
    "counterfact": ("requested_rewrite",),
    "zsre": ("src", "answers"),
    "easyedit": ("prompt", "target_new"),
}


def requests(
    source: str | Path | Iterable[Any],
    *,
    schema: str | None = None,
    limit: int | None = None,
    relation: str | None = None,
) -> tuple[Request, ...]:
    """Facts to be rewritten, in a published schema: a JSON list, JSON lines, the hub, or records.

    counterfact is the original of Meng et al. 2022; easyedit its flat one, with one paraphrase and one other
    prompt: a neighbour where its answer is the fact's own, else locality. zsre is that of Mitchell et al. 2022 as
    Meng et al. 2023 read it: the question goes on with the first of the answers, its own answer being unknown, and
    the unrelated question gets its question mark. easyedit and zsre write the prompt out, and its first mention of
    the subject becomes the {}; where it has none, the prompt stays without, for `check` to refuse.
    A path may begin with `$KEMEM_DATA`, and end in .gz. hub:NAME is as for a corpus, limit=all for more than 10,000.
    schema: recognised by the first record, unless given. A record without a case_id gets its number, from 0.
    relation: only its facts; limit: only the first of them.
    Refused, with case and field: a record with a field that is missing or of another type; what is not JSON; a
    relation that no record has; a limit above what there is. Requests that conflict are not: see `conflicts`.
    """
    _bounded(limit)
    if schema is not None and schema not in SCHEMAS:
        raise BadInput(
            f"expected a schema, one of {', '.join(SCHEMAS)}; got {schema!r}; choose one of these."
        )
    records, where = _records(source)
    read = _READERS[schema or _recognised(records[0], where)]
    found = [read(*_named(record, i, "case_id", "case", where)) for i, record in enumerate(records)]
    if relation is not None:
        known = sorted({r.relation for r in found if r.relation is not None})
        found = [r for r in found if r.relation == relation]
        if not found:
            raise BadInput(
                f"expected a relation of these records, {', '.join(known) or 'which name none'}; got {relation!r}"
                f"{where}; choose one that they have, or all."
            )
    return _first(found, limit, where)


def known_facts(source: str | Path | Iterable[Any], *, limit: int | None = None) -> tuple[KnownFact, ...]:
    """Facts for causal tracing, in the schema known_1000 of Meng et al. 2022. source, limit, refused: `requests`.

    That they are known is measured, not believed.
    """
    _bounded(limit)
    records, where = _records(source)
    named = (_named(record, i, "known_id", "known fact", where) for i, record in enumerate(records))
    found = [
        KnownFact(
            known_id,
            prompt=field_of(record, "prompt", place),
            subject=field_of(record, "subject", place),
            attribute=field_of(record, "attribute", place),
            relation=_optional(record, "relation_id", place),
        )
        for record, known_id, place in named
    ]
    return _first(found, limit, where)


# One record of each schema


def _counterfact(record: dict[str, Any], case_id: int | str, place: str) -> Request:
    rewrite = _object(record, "requested_rewrite", place)
    inside = f"requested_rewrite of {place}"
    new = _object(rewrite, "target_new", inside)
    true = _object(rewrite, "target_true", inside) if rewrite.get("target_true") is not None else None
    return Request(
        case_id,
        prompt=field_of(rewrite, "prompt", inside),
        subject=field_of(rewrite, "subject", inside),
        new=field_of(new, "str", f"target_new of {inside}"),
        true=None if true is None else field_of(true, "str", f"target_true of {inside}"),
        relation=_optional(rewrite, "relation_id", inside),
        paraphrases=_texts(record, "paraphrase_prompts", place),
        neighbours=_texts(record, "neighborhood_prompts", place),
        attributes=_texts(record, "attribute_prompts", place),
        generation=_texts(record, "generation_prompts", place),
        new_id=_optional(new, "id", f"target_new of {inside}"),
    )


def _easyedit(record: dict[str, Any], case_id: int | str, place: str) -> Request:
    subject = field_of(record, "subject", place).strip()
    true = _optional(record, "ground_truth", place)
    other = _pair(record, "locality_prompt", "locality_ground_truth", place)
    near = all(answer == true for _, answer in other)
    return Request(
        case_id,
        prompt=_template(field_of(record, "prompt", place), subject),
        subject=subject,
        new=field_of(record, "target_new", place),
        true=true,
        paraphrases=_some(_optional(record, "rephrase_prompt", place)),
        neighbours=tuple(prompt for prompt, _ in other) if near else (),
        locality=() if near else other,
    )


def _zsre(record: dict[str, Any], case_id: int | str, place: str) -> Request:
    subject = field_of(record, "subject", place).strip()
    answers = _texts(record, "answers", place)
    if not answers:
        raise BadInput(f"the field 'answers' must be a list with an answer; got none in {place}.")
    other = _pair(record, "loc", "loc_ans", place)
    return Request(
        case_id,
        prompt=_template(field_of(record, "src", place), subject),
        subject=subject,
        new=answers[0],
        paraphrases=_some(_optional(record, "rephrase", place)),
        locality=tuple((f"{question}?", answer) for question, answer in other),
    )


_READERS: dict[str, Callable[[dict[str, Any], int | str, str], Request]] = {
    "counterfact": _counterfact,
    "zsre": _zsre,
    "easyedit": _easyedit,
}


def _template(prompt: str, subject: str) -> str:
    begin = mention(prompt, subject)
    return prompt if begin < 0 else f"{prompt[:begin]}{{}}{prompt[begin + len(subject) :]}"


# Fields


def _named(
    record: Any, number: int, field: str, kind: str, where: str
) -> tuple[dict[str, Any], int | str, str]:
    """A record, its own identifier or number, and how it is told in a message."""
    if not isinstance(record, dict):
        got = type(record).__name__
        raise BadInput(f"a record must be an object; got {got} in number {number} (from 0){where}.")
    own = record.get(field)
    if own is not None and (isinstance(own, bool) or not isinstance(own, int | str)):
        raise BadInput(
            f"the field {field!r} must be a number or a name; got {type(own).__name__} in record number {number} "
            f"(from 0){where}."
        )
    told = f"record number {number} (from 0)" if own is None else f"{kind} {own}"
    return record, number if own is None else own, f"{told}{where}"


def _object(record: Mapping[str, Any], field: str, place: str) -> dict[str, Any]:
    if not isinstance(found := record.get(field), dict):
        got = type(found).__name__ if field in record else "no such field"
        raise BadInput(f"the field {field!r} must be an object; got {got} in {place}.")
    return found


def _optional(record: Mapping[str, Any], field: str, place: str) -> str | None:
    return None if record.get(field) is None else field_of(record, field, place)


def _some(text: str | None) -> tuple[str, ...]:
    return (text,) if text else ()


def _pair(record: Mapping[str, Any], prompt: str, answer: str, place: str) -> tuple[tuple[str, str], ...]:
    asked = _optional(record, prompt, place)
    return ((asked, field_of(record, answer, place)),) if asked else ()


def _texts(record: Mapping[str, Any], field: str, place: str) -> tuple[str, ...]:
    texts = record.get(field)
    if texts is None:
        return ()
    if not isinstance(texts, list | tuple):
        raise BadInput(f"the field {field!r} must be a list of texts; got {type(texts).__name__} in {place}.")
    try:
        "".join(texts).encode()  # of all at once: there are ten thousand records with thirty
    except (TypeError, UnicodeEncodeError):
        for i, text in enumerate(texts, start=1):
            field_of({field: text}, field, f"{place}, number {i}")
    return tuple(texts)


# Sources


def _records(source: str | Path | Iterable[Any]) -> tuple[list[Any], str]:
    """At least one record, and how messages name their source: of a file or data set, or nothing."""
    if isinstance(source, str) and source.startswith("hub:"):
        (part,) = specs(source)
        found, where = list(hub.records(hub.source(part))), f" of {source}"
    elif isinstance(source, str | Path):
        file = expanded(str(source))
        found, where = list(_of_file(file)), f" of {file}"
    else:
        found, where = list(source), ""
    if not found:
        raise BadInput(f"expected records of facts; got none{where}; give at least one.")
    return found, where


def _of_file(file: Path) -> Iterator[Any]:
    if not file.name.lower().endswith(EXTENSIONS):
        raise BadInput(
            f"expected a file of facts that ends in {', '.join(EXTENSIONS)}; got {file}; rename it."
        )
    try:
        data = file.read_bytes()
        if file.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(
            f"an archive must be whole; got {error} in {file}; copy or download it again."
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(
            f"a file of facts must be readable; got {reason} for {file}; check the path."
        ) from None
    if file.name.lower().removesuffix(".gz").endswith(".jsonl"):
        lines = enumerate(data.split(b"\n"), start=1)
        yield from (_parsed(line, f"{file}, line {i}", i == 1) for i, line in lines if line.strip())
        return
    records = _parsed(data, str(file), True)
    if not isinstance(records, list):
        got = type(records).__name__
        raise BadInput(f"a file of facts must hold a list of records; got {got} in {file}; write [...].")
    yield from records


def _parsed(data: bytes, place: str, begins: bool) -> Any:
    try:
        found = json.loads(data.decode("utf-8-sig" if begins else "utf-8"))
    except json.JSONDecodeError as error:
        fault = f"{error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:  # what is not UTF-8, a number of thousands of digits
        fault = str(error).splitlines()[0]
    else:
        return found
    raise BadInput(f"records of facts must be JSON; got {fault} in {place}; copy it again.")


def _recognised(record: Any, where: str) -> str:
    fields = list(record) if isinstance(record, dict) else []
    for schema, own in SCHEMAS.items():
        if set(own) <= set(fields):
            return schema
    told = "; ".join(f"{schema}: {', '.join(own)}" for schema, own in SCHEMAS.items())
    got = ", ".join(map(str, fields[:8])) or type(record).__name__
    raise BadInput(f"expected a record of a known schema ({told}); got {got}{where}; convert it.")


def _bounded(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise BadInput(f"expected a limit of at least 1; got {limit}; leave it out to read all.")


def _first(found: list[Any], limit: int | None, where: str) -> tuple[Any, ...]:
    if limit is not None and limit > len(found):
        raise BadInput(
            f"expected a limit of at most {len(found)}, all there are{where}; got {limit}; ask for fewer."
        )
    return tuple(found[:limit])
