"""The files of a data set, read one after the other, each from the record where it was left.

`datasets` finds them and reads them as a stream. Added to it: a stream that breaks goes on at the record where it
was; waits have an end; a file that is not the one its commit lists, or is cut off, is refused by its name. Files in zst
are read here, since `datasets` ends without a word where one is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from kemem.corpora.fetch import PATIENCE, Patience, Tries, broken, busy, persevere, unreachable
from kemem.corpora.located import Shard, hub_files, located, refused
from kemem.corpora.spec import Source
from kemem.errors import BadInput

_BRISK = {  # of `datasets`: by default it waits up to half an hour before it says anything
    "STREAMING_READ_MAX_RETRIES": 1,
    "STREAMING_OPEN_MAX_RETRIES": 1,
    "STREAMING_READ_RETRY_INTERVAL": 0,
    "STREAMING_OPEN_RETRY_INTERVAL": 0,
    "STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL": 0,
    "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL": 0,
}
_MISSING = object()
BORDER = object()  # between files


def stream(
    wanted: Source, commit: str | None, at: tuple[int, int] = (0, 0), patience: Patience = PATIENCE
) -> Iterator[tuple[tuple[int, int], Any]]:
    """Records of all files, each with the place to go on at after it: number of the file, and of its records read.

    After the last of a file comes BORDER, with the place where the next one begins.
    Refused, with the name of the file: what cannot be read after all tries, is damaged, or is not what its commit
    lists.
    """
    found = _persevering(wanted, commit, patience)
    for number, shard in islice(enumerate(found), at[0], None):
        done = at[1] if number == at[0] else 0
        for record in _unbroken(wanted, shard, done, patience):
            done += 1
            yield (number, done), record
        yield (number + 1, 0), BORDER


def _unbroken(wanted: Source, shard: Shard, done: int, patience: Patience) -> Iterator[Any]:
    """The records of a file from number `done` on, reopened where it breaks: no record twice, none left out."""
    tries, damaged = Tries(patience), False
    while True:
        try:
            if shard.url:
                _checked(wanted, shard)
            records = shard.read(done)
            while (record := _next(records)) is not _MISSING:
                tries, damaged = Tries(patience), False
                done += 1
                yield record
            if shard.url:
                _whole(shard.url)
            return
        except BadInput:
            if damaged or not shard.url:
                raise
            damaged = True
        except Exception as error:  # whatever the network, a proxy or a file format can raise
            if damaged or busy(error) or unreachable(error):
                try:
                    tries.again(error, busy, unreachable)
                except Exception:
                    raise refused(wanted, shard, done, error) from None
            damaged = True  # once more at once: bytes may have been lost on the way


@contextmanager
def _brisk() -> Iterator[None]:
    """Waiting and telling is done here, where both have an end; settings of `datasets` are put back."""
    from datasets import config, logging

    own = {name: getattr(config, name) for name in _BRISK if hasattr(config, name)}
    level = logging.get_verbosity()
    for name in own:
        setattr(config, name, _BRISK[name])
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        for name, value in own.items():
            setattr(config, name, value)


def _next(records: Iterator[Any]) -> Any:
    with _brisk():
        return next(records, _MISSING)


def _persevering(wanted: Source, commit: str | None, patience: Patience) -> list[Shard]:
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise BadInput(
            "hub: needs the package datasets, which is not installed; pip install datasets."
        ) from None
    with _brisk():
        # not where nothing is reached at all: without a network the answer comes at once
        return persevere(lambda: located(wanted, commit, patience), patience, (busy, broken))


# ---------------------------------------------------------------------- whether it is the right one
def _checked(wanted: Source, shard: Shard) -> None:
    """Refuses a file whose ETag or size is not what the commit lists: a stale proxy, or a copy that is cut off."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    hub = hub_files()
    place, listed = hub.resolve_path(shard.url), hub.info(shard.url)
    served = get_hf_file_metadata(
        hf_hub_url(
            place.repo_id,
            place.path_in_repo,
            repo_type="dataset",
            revision=place.revision,
            endpoint=hub.endpoint,
        )
    )
    tag = (listed.get("lfs") or {}).get("sha256") or listed.get("blob_id")
    for what, expected, got in (("ETag", tag, served.etag), ("size", listed["size"], served.size)):
        if expected is not None and got is not None and expected != got:
            raise BadInput(
                f"the file {shard.name} of hub:{wanted.name} must be the one that its commit lists, of {what} "
                f"{expected}; got {got}; a proxy or mirror gives another: empty it, or use another endpoint."
            )


def _whole(url: str) -> None:
    """Asks for the last byte of a file that seems to be read: an answer without it was cut short unnoticed."""
    hub = hub_files()
    size = hub.info(url)["size"]
    if size and len(hub.cat_file(url, start=size - 1, end=size)) != 1:
        raise EOFError("its last byte does not come")
