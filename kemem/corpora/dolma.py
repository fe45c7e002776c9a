"""`dolma-order:INDICES,files=LIST`: what OLMo was trained on, in the order in which it saw it.

INDICES is `global_indices.npy` of a run: uint32, one number an instance, in order. LIST names the files of tokens, one
a line, or is the configuration of the run, whose `data: paths:` are taken. Both, and the files, may be paths or URLs;
`r2://olmo-data/` stands for the public address of that store. Further options, and what they are unless given:

    instances=2048, first=0       how many, from which on; so by default the first batch of the 1B and 7B runs
    length=2048                   tokens of an instance
    tokenizer=allenai/OLMo-1B-hf  which turns them into text

A file of tokens is uint16 without a header (one with a header of numpy is read too). Instance i is the i-th piece of
`length` tokens; pieces are counted through all files in turn, and what is left at the end of a file is no piece. So it
stands at i * length of all tokens put together where every file is a multiple of `length`, and only there.

The tokens become text, which is not cleaned up, and are tokenised again by whoever measures, as in the code of Kim et
al. 2025. They end documents with id 50279, which is `<|endoftext|>` in the tokenizer of the hub and `|||IP_ADDRESS|||`
in the native file of the same vocabulary: that one is refused.

Only the pieces that are asked for are fetched, and kept (`kemem.corpora.kept`): a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from kemem.corpora import kept, pieces
from kemem.corpora.fetch import PATIENCE, Patience, opened
from kemem.corpora.spec import Part, count, known, options
from kemem.corpora.tokenizer import END, load_tokenizer
from kemem.errors import BadInput
from kemem.progress import Progress, Reporter

END_ID = 50279  # of a document, in the training data of OLMo
STORE = ("r2://olmo-data/", "https://olmo-data.org/")
_INDEX = numpy.dtype("<u4")


@dataclass(frozen=True)
class Order:
    """Which instances of which run. indices, files: places of both lists."""

    indices: str
    files: str
    tokenizer: str = "allenai/OLMo-1B-hf"
    instances: int = 2048
    first: int = 0
    length: int = 2048


def order(part: Part) -> Order:
    """What a spec asks for. Refused: an unknown option, no list of files, more than one list of indices."""
    given = options(part)
    known(part, given, ("files", "tokenizer", "instances", "first", "length"))
    if len(given.names) != 1 or "files" not in given.values:
        raise BadInput(
            f"dolma-order is written dolma-order:INDICES,files=LIST, both a path or URL; got {part.rest!r}."
        )
    numbers = {
        key: count(part, key, given.values[key]) for key in ("instances", "length") if key in given.values
    }
    if (first := given.values.get("first", "0")) != "0":
        numbers["first"] = count(part, "first", first)
    words = {key: given.values[key] for key in ("files", "tokenizer") if key in given.values}
    return Order(given.names[0], **words, **numbers)


def texts(
    wanted: Order,
    versions: dict[str, str] | None = None,
    *,
    patience: Patience = PATIENCE,
    report: Reporter | None = None,
) -> Iterator[str]:
    """The instances as text, in order. versions: is told those of the lists, for provenance."""
    tokenizer = load_tokenizer(wanted.tokenizer)
    _check_end(tokenizer, wanted.tokenizer)
    rows = tokens(wanted, versions, patience=patience, report=report)
    if rows.max() >= len(tokenizer):
        raise BadInput(
            f"the tokenizer of dolma-order must know every token; got one of {len(tokenizer):,} entries in "
            f"{wanted.tokenizer} and token {rows.max():,}; take that of the training data."
        )
    for ids in rows:
        yield tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _check_end(tokenizer: Any, name: str) -> None:
    if len(tokenizer) <= END_ID:  # another vocabulary, of other data than OLMo's
        return
    own = tokenizer.convert_ids_to_tokens(END_ID)
    if own != END:
        raise BadInput(
            f"the tokenizer of dolma-order must have {END} as id {END_ID}, as the training data have; got {own!r} in "
            f"{name}; take allenai/OLMo-1B-hf, not the file of the native repository."
        )


def tokens(
    wanted: Order,
    versions: dict[str, str] | None = None,
    *,
    patience: Patience = PATIENCE,
    report: Reporter | None = None,
) -> numpy.ndarray:
    """Token ids of the instances, as uint16, one row each; fetched where they are not kept yet.

    Refused: indices beyond the list or the files, places that cannot be read, a folder that cannot be written.
    """
    from filelock import FileLock

    key = hashlib.sha256(
        repr((wanted.indices, wanted.files, wanted.instances, wanted.first, wanted.length)).encode()
    )
    folder = kept.folder() / "dolma-order" / key.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # a second process waits, then finds the pieces
            plan = pieces.kept_plan(folder, lambda: _plan(wanted, patience))
            if versions is not None:
                versions.update(plan["versions"])
            report = report or Progress("tokens of Dolma")
            return pieces.fetched(folder, plan["pieces"], wanted.length, patience, report)
    except OSError as error:
        raise BadInput(
            f"dolma-order keeps what it fetches in {folder}; got {error.strerror or error}; set {kept.VARIABLE} to a "
            "folder with space."
        ) from None


def _plan(wanted: Order, patience: Patience) -> dict[str, Any]:
    indices = opened(wanted.indices, patience)
    numbers = _indices(wanted, indices)
    places, version = listed(wanted.files, patience)
    plan = pieces.plan(numbers, places, wanted.length, patience)
    return {**plan, "versions": {wanted.indices: indices.version, wanted.files: version, **plan["versions"]}}


def _indices(wanted: Order, source: Any) -> numpy.ndarray:
    begin = pieces.header(source)
    start = begin + wanted.first * _INDEX.itemsize
    stop = start + wanted.instances * _INDEX.itemsize
    if stop > source.size:
        raise BadInput(
            f"dolma-order must be asked for instances that its indices have; got {wanted.first:,} to "
            f"{wanted.first + wanted.instances:,} of {(source.size - begin) // _INDEX.itemsize:,} in {wanted.indices}."
        )
    return numpy.frombuffer(source.read(start, stop), _INDEX).astype(numpy.int64)


def listed(place: str, patience: Patience = PATIENCE) -> tuple[list[str], str]:
    """The files of tokens that a list names, or the `data: paths:` of a configuration, in their order; its version."""
    source = opened(place, patience)
    try:
        lines = source.read(0, source.size).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise BadInput(f"a list of files must be UTF-8; got another byte in {place}.") from None
    if "data:" in (line.rstrip() for line in lines):
        lines = list(_of_configuration(lines))
    found = [re.sub(r"^- ", "", line.strip()).strip("'\" ") for line in lines]
    found = [name for name in found if name and not name.startswith("#")]
    wrong = next((name for name in found if not name.endswith(".npy")), None)
    if wrong or not found:
        raise BadInput(
            f"a list of files must name files of tokens that end in .npy, one a line; got {wrong or 'none'!r} in "
            f"{place}."
        )
    return [name.replace(*STORE, 1) if name.startswith(STORE[0]) else name for name in found], source.version


def _of_configuration(lines: list[str]) -> Iterator[str]:
    """The items under `paths:` of `data:`, without those of files to test on, which stand elsewhere."""
    outer = inner = ""
    for line in lines:
        item = line.strip()
        if not line.startswith((" ", "-", "#")) and item:
            outer, inner = item, ""
        elif not item.startswith(("-", "#")) and item:
            inner = item
        elif item.startswith("-") and (outer, inner) == ("data:", "paths:"):
            yield item
