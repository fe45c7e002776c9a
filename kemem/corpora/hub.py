"""`hub:NAME[@REVISION][/CONFIG][:field=text,split=train,limit=10000]`: data sets of the hub, as a stream.

NAME is `owner/name`, a short name of `kemem.corpora.catalogue`, or a local folder (a path that begins with `/`, `./`,
`../`, `~` or `$KEMEM_DATA`): one with data files, or one written by `save_to_disk`. A revision is resolved to a commit
before anything is read, and what was read is kept on this machine (`kemem.corpora.kept`), for the next time and
without a network.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from kemem.corpora import kept, shards
from kemem.corpora.catalogue import CATALOGUE, Entry
from kemem.corpora.fetch import PATIENCE, Patience, busy, persevere, reason, unreachable
from kemem.corpora.files import expanded, field_of
from kemem.corpora.spec import LIMIT, Options, Part, Source, count, known, options
from kemem.errors import BadInput

_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>[\w.-]+))?")
_LOCAL = ("/", "./", "../", "~", "$")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
    chosen = {"config": match["config"], **chosen}
    if match["name"] in CATALOGUE:
        return _catalogued(CATALOGUE[match["name"]], match["revision"], chosen)
    return Source(match["name"], revision=match["revision"], **chosen)


def _catalogued(entry: Entry, revision: str | None, chosen: dict[str, Any]) -> Source:
    """The data set of a short name; what was given counts more than what the catalogue says."""
    if entry.hub is None:
        raise BadInput(
            f"hub:{entry.name} must be on the hub; got a data set that is at {entry.place}; {entry.remedy}."
        )
    config = chosen.pop("config") or entry.config
    usual = {"split": entry.split, "field": entry.field}
    listing = entry.listing.format(config=config) if entry.listing else None
    return Source(
        entry.hub, revision=revision or entry.revision, config=config, listing=listing, **{**usual, **chosen}
    )


def versions(wanted: Source, patience: Patience = PATIENCE) -> dict[str, str]:
    """The commit that the revision stands for now, by name of the data set; nothing for a folder.

    Where the hub cannot be reached, the commit it stood for when last asked, with a warning.
    """
    if wanted.local:
        return {}
    if wanted.revision and _COMMIT.fullmatch(wanted.revision):
        return {wanted.name: wanted.revision}
    from huggingface_hub import HfApi

    try:
        # without a network one request, not the minute of retries that `datasets` makes
        commit = persevere(
            lambda: HfApi().dataset_info(wanted.name, revision=wanted.revision).sha, patience, (busy,)
        )
    except Exception as error:  # whatever the network or a proxy can raise
        before = kept.remembered(wanted.name).get(str(wanted.revision))
        if before is None or not (busy(error) or unreachable(error)):
            raise _refusal(wanted, error) from None
        warnings.warn(
            f"hub:{wanted.name} could not be asked ({reason(error)}); taking what {wanted.revision or 'main'} was "
            f"when last asked, {before[:12]}",
            stacklevel=2,
        )
        return {wanted.name: before}
    if commit:
        kept.remember(wanted.name, wanted.revision, commit)
    return {wanted.name: commit} if commit else {}


def texts(wanted: Source, revision: str | None = None, patience: Patience = PATIENCE) -> Iterator[str]:
    """Texts as they stream in. Anything that stops the stream becomes one line that says what to do."""

    def text(record: Any, number: int) -> str:
        return field_of(record, wanted.field, f"hub:{wanted.name}, record {number}")

    return _kept(wanted, revision, wanted.field, text, patience)


def records(wanted: Source, revision: str | None = None, patience: Patience = PATIENCE) -> Iterator[Any]:
    """Whole records as they stream in, at most `limit` of them; stopped as `texts` are."""
    return _kept(wanted, revision, None, lambda record, _: record, patience)


def _kept(
    wanted: Source,
    revision: str | None,
    field: str | None,
    pick: Callable[[Any, int], Any],
    patience: Patience,
) -> Iterator[Any]:
    """What is kept on this machine, as far as it reaches; then what streams in, which is kept in turn."""
    commit = revision or versions(wanted, patience).get(wanted.name)
    if wanted.local or commit is None:
        return _limited(wanted, _picked(_streamed(wanted, commit, (0, 0), patience), pick))
    path = kept.place(wanted.name, commit, wanted.config, wanted.split, field, wanted.listing)
    have = kept.found(path)
    if have is not None and (have.ended or (wanted.limit is not None and have.records >= wanted.limit)):
        return _limited(wanted, iter(have))
    return _keeping(wanted, commit, path, have, pick, patience)


def _limited(wanted: Source, values: Iterator[Any]) -> Iterator[Any]:
    return values if wanted.limit is None else islice(values, wanted.limit)


def _picked(streamed: Iterator[Any], pick: Callable[[Any, int], Any]) -> Iterator[Any]:
    found = (record for _, record in streamed if record is not shards.BORDER)
    return (pick(record, number) for number, record in enumerate(found, start=1))


def _keeping(
    wanted: Source, commit: str, path: Path, have: kept.Kept | None, pick: Callable[[Any, int], Any],
    patience: Patience,
) -> Iterator[Any]:  # fmt: skip
    writer = kept.Writer(path)
    number, at, ended = 0, have.at if have else (0, 0), False
    try:
        for value in have or ():
            writer.add(value)
            number += 1
            yield value
        for after, record in _streamed(wanted, commit, at, patience):
            if record is shards.BORDER:
                at = after
                continue
            value = pick(record, number + 1)
            writer.add(value)
            number, at = number + 1, after
            yield value
            if number == wanted.limit:
                return
        ended = True
    finally:  # also where the reader stops or the network fails: what came so far is kept
        if ended or number > (have.records if have else 0):
            writer.settle(ended, at)
        else:
            writer.drop()


def _streamed(wanted: Source, commit: str | None, at: tuple[int, int], patience: Patience) -> Iterator[Any]:
    try:
        yield from shards.stream(wanted, commit, at, patience)
    except BadInput:
        raise
    except Exception as error:  # as above, and whatever a file format can raise
        raise _refusal(wanted, error) from None


def _refusal(wanted: Source, error: Exception) -> BadInput:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    name = wanted.name
    if "GatedRepoError" in kinds:
        return BadInput(
            f"hub:{name} must be open to you; got that its owner asks for consent; give it on the page of the data "
            "set, then `hf auth login`."
        )
    if "RepositoryNotFoundError" in kinds:
        short = f"; short names are {', '.join(CATALOGUE)}" if "/" not in name else ""
        return BadInput(
            f"hub:{name} must be a data set that can be read; got none of this name that is open; check the name, or "
            f"`hf auth login` for a private one{short}."
        )
    if "RevisionNotFoundError" in kinds and wanted.revision:
        return BadInput(
            f"hub:{name} must have the revision that is asked for; got {wanted.revision!r}; take {_revisions(name)}."
        )
    return BadInput(
        f"hub:{name} must be a data set that can be read; got {reason(error)}; "
        "check name, revision, config, split and network, or use files:PATH with a local copy."
    )


def _revisions(name: str) -> str:
    from huggingface_hub import HfApi

    with suppress(Exception):  # then they are not named
        found = HfApi().list_repo_refs(name, repo_type="dataset")
        names = [ref.name for ref in (*found.branches, *found.tags)]
        return f"one of {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}, or a commit"
    return "a branch, tag or commit that it has"
