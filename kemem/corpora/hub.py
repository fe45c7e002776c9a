"""`hub:NAME[@REVISION][/CONFIG][:field=text,split=train,limit=10000]`: data sets of the hub, as a stream.

NAME is `owner/name`, or a local folder (a path that begins with `/`, `./`, `../`, `~` or `$KEMEM_DATA`): one
with data files, or one written by `save_to_disk`. A revision is resolved to a commit before anything is read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kemem.corpora.files import expanded, field_of
from kemem.corpora.spec import Options, Part, count, known, options
from kemem.errors import BadInput

LIMIT = 10_000  # texts read unless asked otherwise: many data sets of the hub fit on no disk
_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>[\w.-]+))?")
_LOCAL = ("/", "./", "../", "~", "$")


@dataclass(frozen=True)
class Source:
    """A data set of the hub, or a folder; which part of it and how many texts (None: all)."""

    name: str
    local: bool = False
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    field: str = "text"
    limit: int | None = LIMIT


def source(part: Part) -> Source:
    """What a spec asks for. Refused: an unknown option, a name that is neither owner/name nor a path."""
    place, given = part.rest, Options()
    head, colon, tail = part.rest.rpartition(":")
    if colon and "/" not in tail.partition("=")[0]:
        place, given = head, options(Part("hub", tail))
    known(part, given, ("field", "split", "limit", "config"))
    if given.names:
        raise BadInput(f"options of hub are key=value, joined by ','; got {given.names[0]!r}.")
    chosen: dict[str, Any] = {key: value for key, value in given.values.items() if key != "limit"}
    limit = given.values.get("limit", str(LIMIT))
    chosen["limit"] = None if limit == "all" else count(part, "limit", limit)
    if place.startswith(_LOCAL):
        return Source(str(expanded(place)), local=True, **chosen)
    match = _NAME.fullmatch(place)
    if not match:
        raise BadInput(
            f"hub:NAME is owner/name[@revision][/config] or a path that begins with / or ./; got {place!r}."
        )
    return Source(match["name"], revision=match["revision"], **{"config": match["config"], **chosen})


def versions(wanted: Source) -> dict[str, str]:
    """The commit that the revision stands for now, by name of the data set; nothing for a folder."""
    if wanted.local:
        return {}
    from huggingface_hub import HfApi

    try:
        # one request, without the minute of retries that `datasets` makes where there is no network
        commit = HfApi().dataset_info(wanted.name, revision=wanted.revision).sha
    except Exception as error:  # whatever the network or a proxy can raise
        raise _refusal(wanted, error) from None
    return {wanted.name: commit} if commit else {}


def texts(wanted: Source, revision: str | None = None) -> Iterator[str]:
    """Texts as they stream in. Anything that stops the stream becomes one line that says what to do."""
    for number, record in enumerate(records(wanted, revision), start=1):
        yield field_of(record, wanted.field, f"hub:{wanted.name}, record {number}")


def records(wanted: Source, revision: str | None = None) -> Iterator[Any]:
    """Whole records as they stream in, at most `limit` of them; stopped as `texts` are."""
    found = _records(wanted, revision or wanted.revision)
    number = 0
    while wanted.limit is None or number < wanted.limit:
        try:
            record = next(found)
        except StopIteration:
            return
        except Exception as error:  # as above, and whatever a file format can raise
            raise _refusal(wanted, error) from None
        number += 1
        yield record


def _records(wanted: Source, revision: str | None) -> Iterator[Any]:
    try:
        import datasets
    except ImportError:
        raise BadInput(
            "hub: needs the package datasets, which is not installed; pip install datasets."
        ) from None
    folder = Path(wanted.name)
    if wanted.local and not folder.is_dir():
        raise BadInput(f"hub:PATH must name a folder that exists; got {folder}.")
    try:
        if wanted.local and any((folder / file).exists() for file in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(wanted.name)
            return iter(saved[wanted.split] if isinstance(saved, datasets.DatasetDict) else saved)
        return iter(
            datasets.load_dataset(
                wanted.name, wanted.config, split=wanted.split, revision=revision, streaming=True
            )
        )
    except Exception as error:
        raise _refusal(wanted, error) from None


def _refusal(wanted: Source, error: Exception) -> BadInput:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return BadInput(
        f"hub:{wanted.name} must be a data set that can be read; got {reason}; "
        "check name, revision, config, split and network, or use files:PATH with a local copy."
    )
