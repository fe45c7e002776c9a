"""Where the files of a data set are, and how each is read from any of its records on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kemem.corpora import files
from kemem.corpora.fetch import Patience, Stream, busy, opened, reason, unreachable
from kemem.corpora.spec import Source
from kemem.errors import BadInput

HUB = "hf://"


@dataclass(frozen=True)
class Shard:
    """One file. name: as messages tell it. url: where it is, if on the hub. read: its records from this one on."""

    name: str
    url: str | None
    read: Callable[[int], Iterator[Any]]


def located(wanted: Source, commit: str | None, patience: Patience) -> list[Shard]:
    """The files of a data set in their order, as `datasets` finds them.

    Refused: a folder or a split that is not there; a file that cannot be read at all, by its name.
    """
    import datasets

    if wanted.listing:
        return _listed(wanted, commit, patience)
    place = Path(wanted.name)
    if wanted.local and not place.is_dir():
        raise BadInput(f"hub:PATH must name a folder that exists; got {place}.")
    if wanted.local and any((place / name).exists() for name in ("dataset_dict.json", "state.json")):
        saved = datasets.load_from_disk(wanted.name)
        part = saved[wanted.split] if isinstance(saved, datasets.DatasetDict) else saved
        return [Shard(wanted.name, None, lambda done: islice(iter(part), done, None))]
    builder = datasets.load_dataset_builder(wanted.name, wanted.config, revision=commit)
    known = builder.config.data_files or {}
    return [
        shard
        for split in wanted.split.split("+")
        for shard in _of_split(wanted, builder, split.strip(), known)
    ]


def _of_split(wanted: Source, builder: Any, split: str, known: Any) -> list[Shard]:
    if known and split not in (*known, "all"):
        there = ", ".join(map(str, known))
        raise BadInput(
            f"hub:{wanted.name} must have the split that is asked for; got {split!r}; take one of {there}."
        )
    urls = [str(url) for url in known.get(split, ())]
    if urls and all(url.endswith((".jsonl.zst", ".json.zst")) for url in urls):
        return [_lines(wanted, url) for url in urls]
    try:
        whole = builder.as_streaming_dataset(split=split)
    except Exception as error:
        if not known or busy(error) or unreachable(error):
            raise
        # its fields are read off the first file
        first = Shard(_named(wanted, str(next(iter(known.values()))[0])), None, iter)
        raise refused(wanted, first, 0, error) from None
    if not urls or whole.num_shards != len(urls):
        return [Shard(f"split {split}", None, lambda done: iter(whole.skip(done)))]

    def reader(number: int) -> Callable[[int], Iterator[Any]]:
        one = whole.shard(num_shards=len(urls), index=number)
        return lambda done: iter(one.skip(done) if done else one)

    return [
        Shard(_named(wanted, url), url if url.startswith(HUB) else None, reader(number))
        for number, url in enumerate(urls)
    ]


def _named(wanted: Source, url: str) -> str:
    """A file by its path in the data set."""
    if url.startswith(HUB):
        return url.partition("@")[2].partition("/")[2] or url
    return url.removeprefix(f"{Path(wanted.name).absolute()}/") if wanted.local else url


def _lines(wanted: Source, url: str) -> Shard:
    """A packed file of JSON lines, on the hub or on this machine."""
    told = f"hub:{wanted.name}/{_named(wanted, url)}"

    def read(done: int) -> Iterator[Any]:
        if url.startswith(HUB):
            with hub_files().open(url, "rb") as raw:
                yield from islice(files.objects(raw, told), done, None)
        else:
            with Path(url).open("rb") as raw:
                yield from islice(files.objects(raw, told), done, None)

    return Shard(_named(wanted, url), url if url.startswith(HUB) else None, read)


def _listed(wanted: Source, commit: str | None, patience: Patience) -> list[Shard]:
    """Files that lie elsewhere, at the addresses that a file of the data set lists, as those of Dolma."""
    from huggingface_hub import hf_hub_download

    listing = hf_hub_download(wanted.name, str(wanted.listing), repo_type="dataset", revision=commit)
    urls = [line.strip() for line in Path(listing).read_text(encoding="utf-8").splitlines() if line.strip()]

    def reader(url: str) -> Callable[[int], Iterator[Any]]:
        def read(done: int) -> Iterator[Any]:
            raw = io.BufferedReader(Stream(opened(url, patience)), 1 << 20)
            yield from islice(files.objects(raw, url), done, None)

        return read

    return [Shard(url, None, reader(url)) for url in urls]


def hub_files() -> Any:
    """The files of the hub, at the address where `datasets` finds them."""
    from datasets import config
    from huggingface_hub import HfFileSystem

    return HfFileSystem(endpoint=config.HF_ENDPOINT, token=None)


def refused(wanted: Source, shard: Shard, done: int, error: Exception) -> BadInput:
    """The line for a file that could not be read further than `done` records."""
    if busy(error) or unreachable(error):
        remedy = "try again later: what was read is kept"
    elif getattr(error, "response", None) is not None:
        remedy = "check name, revision and network"
    else:
        remedy = "it is damaged or cut off: tell its owner, or take another revision"
    return BadInput(
        f"the file {shard.name} of hub:{wanted.name} must be readable to its end; got {reason(error)} after "
        f"{done:,} records; {remedy}."
    )
