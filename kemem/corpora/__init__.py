"""Texts to train on and to measure with: named by a line, split by hash, tokenised, packed."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from kemem.corpora import docstrings, dolma, files, hub
from kemem.corpora.packing import Blocks, Instances, instances, pack
from kemem.corpora.spec import Part, count, known, number, options, specs
from kemem.corpora.tokenizer import load_tokenizer, train_tokenizer
from kemem.errors import BadInput
from kemem.progress import Progress
from kemem.world import World

__all__ = [
    "Blocks", "Corpus", "Instances", "corpus", "instances", "load_tokenizer", "pack", "specs", "stream",
    "train_tokenizer",
]  # fmt: skip

PARTS = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class Corpus:
    """Documents under the name they were asked for.

    versions: what the text depends on besides the spec, for provenance: versions of packages, commits of
    data sets.
    """

    spec: str
    texts: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Corpus({self.spec!r}, {len(self):,} texts, {self.characters:,} characters, {self.digest})"

    @cached_property
    def characters(self) -> int:
        return sum(map(len, self.texts))

    @cached_property
    def digest(self) -> str:
        """16 hex digits over all texts in order: equal for equal text, whatever it was called."""
        state = hashlib.sha256()
        for text in self.texts:
            data = text.encode()
            state.update(len(data).to_bytes(8, "little") + data)
        return state.hexdigest()[:16]

    def part(self, name: str) -> list[str]:
        """The documents of "train", "validation", "test" (90, 5 and 5 in a hundred) or "all".

        Where a document goes depends on its own text alone: neither order nor mixture nor limit moves it.
        """
        if name not in PARTS:
            raise BadInput(f"a part of a corpus is one of {', '.join(PARTS)}; got {name!r}.")
        return [text for text in self.texts if name == "all" or _part_of(text) == name]


def _part_of(text: str) -> str:
    hundredth = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    return "train" if hundredth < 90 else "validation" if hundredth < 95 else "test"


def corpus(spec: str) -> Corpus:
    """Read a corpus; how specs are written stands in `kemem.corpora.spec`. Refused: a part without text."""
    versions: dict[str, str] = {}
    texts = tuple(text for part in specs(spec) for text in _told(part, _texts(part, versions)))
    return Corpus(spec.strip(), texts, versions)


def stream(spec: str) -> Iterator[str]:
    """The texts of a corpus in its order, each read when it is asked for: the first ones of a file of any size.

    Refused as by `corpus`, but for damage in what is never read. Files that do not exist are refused at once.
    """
    parts = specs(spec)
    for part in parts:
        if part.scheme == "files":
            files.files(part.rest)
        if part.scheme == "dolma-order":
            dolma.order(part)
    return chain.from_iterable(_texts(part, {}) for part in parts)


def _told(part: Part, texts: Iterator[str]) -> Iterator[str]:
    """The texts; how many have come is shown where they come over a network and that takes long."""
    limit = hub.source(part).limit if part.scheme == "hub" else None
    if limit is None:
        yield from texts
        return
    progress = Progress(f"hub:{part.rest}"[:40])
    try:
        for number, text in enumerate(texts, start=1):
            if number % 50 == 0:
                progress(number, limit, "records")
            yield text
    finally:
        progress.close()


def _texts(part: Part, versions: dict[str, str]) -> Iterator[str]:
    empty = True
    for text in _READERS[part.scheme](part, versions):
        empty = empty and not text.strip()
        yield text
    if empty:
        raise BadInput(f"a corpus must hold text; got none in {part.scheme}:{part.rest}.")


def _docstrings(part: Part, versions: dict[str, str]) -> Iterable[str]:
    given = options(part)
    known(part, given, ("limit",))
    packages = given.names or docstrings.PACKAGES
    limit = count(part, "limit", given.values["limit"]) if "limit" in given.values else None
    for package in packages:
        docstrings.folder(package)
    versions.update(docstrings.versions(packages))
    found = docstrings.texts(packages)
    return found if limit is None else _spread(list(found), limit)


def _spread(texts: list[str], limit: int) -> list[str]:
    """`limit` of the texts, in their order and spread over all: a larger limit only adds to them."""
    # those of lowest hash; one of its own, independent of the split
    hashes = [hashlib.sha256(b"spread:" + text.encode()).digest() for text in texts]
    lowest = sorted(range(len(texts)), key=hashes.__getitem__)[:limit]
    return [texts[i] for i in sorted(lowest)]


def world(part: Part) -> tuple[World, int, int]:
    """The world of a part of a spec, and the number and seed of its documents.

    Its options are those of `World`, and `documents` and `sample` for the latter two.
    """
    given = options(part)
    known(part, given, (*inspect.signature(World).parameters, "documents", "sample"))
    if given.names:
        raise BadInput(f"options of world are key=value, joined by ','; got {given.names[0]!r}.")
    settings = {key: number(part, key, value) for key, value in given.values.items()}
    documents, sample = settings.pop("documents", 12_000), settings.pop("sample", 0)
    if not isinstance(documents, int) or documents < 1 or not isinstance(sample, int):
        raise BadInput(f"documents (1 or more) and sample of world are whole numbers; got {part.rest!r}.")
    return World(**settings), documents, sample


def _world(part: Part, versions: dict[str, str]) -> Iterable[str]:
    found, documents, sample = world(part)
    return found.documents(documents, seed=sample)


def _files(part: Part, versions: dict[str, str]) -> Iterable[str]:
    return files.texts(part.rest)


def _hub(part: Part, versions: dict[str, str]) -> Iterable[str]:
    wanted = hub.source(part)
    commits = hub.versions(wanted)
    versions.update(commits)
    return hub.texts(wanted, commits.get(wanted.name))


def _dolma(part: Part, versions: dict[str, str]) -> Iterable[str]:
    return dolma.texts(dolma.order(part), versions)


_READERS = {"docstrings": _docstrings, "world": _world, "files": _files, "hub": _hub, "dolma-order": _dolma}
