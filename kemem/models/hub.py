"""Models of the hub: a revision found by its beginning, pinned to one commit, fetched, checked and kept.

The commit is known before anything is fetched: configuration, weights and tokenizer are of one state of the
repository. What is fetched lies in the cache of `huggingface_hub`, where other programs find it too, or in a folder
of one's own. `huggingface_hub` resumes and looks at sizes; hashes are looked at here, before a file is first read.
Errors of the network and the disk leave this module as they are: `kemem.models.reading` says them in one line.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging
from tqdm import tqdm

from kemem.commits import COMMIT, cache, chosen, kept, passing, reachable, resolved, silent, unfetched
from kemem.errors import BadInput
from kemem.progress import Progress

BESIDE = (
    *(
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    ),
    *("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json"),
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
RECORD = "fetched.json"
ATTEMPTS = 3
PATIENCE = 5.0  # seconds before a bar is shown


class Snapshot:
    """A model of the hub at one commit; its files are fetched when they are asked for.

    branch: of the hub, or a tag, that the revision was found to be. commit: its hash. online: whether the hub
    answered; where it did not, what was fetched before is found.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name, self.revision, self.online = name, revision, reachable()
        if self.online:
            try:
                self.branch, self.commit = resolved(name, revision)
                return
            except Exception as error:  # whatever the network or a proxy can raise
                if isinstance(error, BadInput) or not silent(error):
                    raise
                try:
                    self._find_kept()
                except BadInput:
                    raise error from None
            warnings.warn(f"the hub did not answer: {self} is read as fetched before.", stacklevel=2)
        self._find_kept()

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}" if self.revision else self.name

    @property
    def place(self) -> Path:
        return cache(self.name) / "snapshots" / self.commit

    @cached_property
    def files(self) -> dict[str, tuple[int, str]]:
        """Size and hash by name; the hash is sha256 of a large file, git's of a small one, "" without the hub."""
        if not self.online:
            return {path.name: (path.stat().st_size, "") for path in self.place.iterdir() if path.is_file()}
        listed = HfApi().list_repo_tree(self.name, revision=self.commit)
        found = [file for file in listed if isinstance(file, RepoFile)]
        return {file.path: (file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in found}

    def configuration(self) -> Path:
        """The folder with the configuration in it, which is all that `family` needs."""
        return self._bring(self._beside()[:1])

    def small(self, into: Path | None = None) -> Path:
        """The folder (of the cache, or `into`) with the configuration and the tokenizer in it."""
        return self._bring(self._beside(), into)

    def whole(self, into: Path | None = None) -> Path:
        """The folder with the weights in it too."""
        self.small(into)
        return self._bring(self._weights(into), into)

    def pinned(self, folder: Path) -> Path:
        """All files in a folder of their own, which is filled beside its place and then renamed."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            self._check_present(folder)
            return folder
        part = self.whole(folder.with_name(f".{folder.name}.part"))
        names = self._beside() + self._weights(part)
        for path in part.iterdir():
            if path.is_dir():
                shutil.rmtree(path)  # what huggingface_hub notes of a download
            elif path.name not in names:
                path.unlink()  # of another revision, begun here and not finished
        hashes = {name: _hash(part / name, "sha256") for name in names}
        record = {"model": self.name, "revision": self.branch, "commit": self.commit, "sha256": hashes}
        (part / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
        return folder

    def _check_present(self, folder: Path) -> None:
        """A folder that was filled before must hold this commit unchanged."""
        what = "something else"
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            record = json.loads((folder / RECORD).read_text())
            if (record["model"], record["commit"]) == (self.name, self.commit):
                what = f"it without {RECORD}'s hashes"
                lost = (n for n, h in record["sha256"].items() if _hash(folder / n, "sha256") != h)
                what = next((f"it with {name} altered" for name in lost), "")
        if what:
            raise BadInput(
                f"expected {folder} to be free, or to hold {self}; got {what}; give another folder."
            )

    def _beside(self) -> list[str]:
        """The names of the files beside the weights, the configuration first."""
        if BESIDE[0] not in self.files:
            raise BadInput(
                f"expected a model in {self}; got a repository without a {BESIDE[0]}; check the name."
            )
        return [name for name in BESIDE if name in self.files]

    def _weights(self, into: Path | None) -> list[str]:
        """The names of the files with the weights: one, or those that the index names."""
        if WEIGHTS in self.files:
            return [WEIGHTS]
        if INDEX not in self.files:
            if not self.online:
                raise unfetched(str(self))
            others = [name for name in self.files if name.endswith((".bin", ".pt", ".h5", ".msgpack"))]
            raise BadInput(
                f"expected weights as safetensors in {self}; got {others[0] if others else 'none'}; "
                "take a revision that has them, or write them with save_pretrained first."
            )
        index = self._bring([INDEX], into) / INDEX
        try:
            parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            lost = next((name for name in parts if name not in self.files), None)
        except (ValueError, KeyError, AttributeError, TypeError):
            parts, lost = [], "weight_map in its index"
        if lost and not self.online:
            raise unfetched(str(self))
        if lost:
            raise BadInput(
                f"expected all parts of the weights in {self}; got no {lost}; take another revision."
            )
        return [INDEX, *parts]

    def _bring(self, names: Sequence[str], into: Path | None = None) -> Path:
        """Those files in the cache, or `into`, each with its right content: wrong ones are fetched anew."""
        place = into or self.place
        for attempt in range(1, ATTEMPTS + 1):
            lacking = [name for name in names if not (place / name).is_file()]
            try:
                if lacking:
                    self._download(lacking, place, into)
                wrong = list(self._wrong(names, place, cached=into is None))
            except Exception as error:  # as above
                if attempt == ATTEMPTS or not passing(error):
                    raise
                continue
            if not wrong:
                break
        else:
            raise BadInput(
                f"expected {wrong[0]} of {self} as the hub describes it; got another content, {ATTEMPTS} times; "
                "nothing of it is kept: try again later, or from another network."
            )
        if into is None and self.online and self.branch != self.commit:
            _note(cache(self.name) / "refs" / self.branch, self.commit)
        return place

    def _download(self, names: Sequence[str], place: Path, into: Path | None) -> None:
        if not self.online:
            raise unfetched(str(self))
        need, disk = sum(self.files[name][0] for name in names), place
        while not disk.exists():
            disk = disk.parent
        free = shutil.disk_usage(disk).free
        if need > free:
            raise BadInput(
                f"expected {need / 1e9:,.2f} GB free in {disk} for {self}; got {free / 1e9:,.2f} GB; "
                "free some space, or set HF_HOME to a folder on a larger disk."
            )
        patterns = [glob.escape(name) for name in names]
        with _bars() as bars:
            snapshot_download(
                self.name, revision=self.commit, local_dir=into, allow_patterns=patterns, tqdm_class=bars
            )

    def _wrong(self, names: Sequence[str], place: Path, *, cached: bool) -> Iterator[str]:
        """Files whose content is not what the hub says: deleted. In the cache, marks tell of those seen before."""
        total, done = sum((place / name).stat().st_size for name in names), 0
        bar = Progress(f"checking {self}")
        for name in names:
            path = place / name
            blob = path.resolve() if cached else path
            facts, mark = blob.stat(), cache(self.name) / ".checked" / blob.name
            line = f"{facts.st_size} {facts.st_mtime_ns}"
            if not (cached and mark.is_file() and mark.read_text() == line):
                # the name of a large file's blob is the hash that came with the file, beside the listing's
                given = {self.files[name][1], blob.name if len(blob.name) == 64 else ""} - {""}
                if any(_hash(blob, "sha256" if len(one) == 64 else "git") != one for one in given):
                    for each in {path, blob}:
                        each.unlink()
                    yield name
                elif cached and given:
                    _note(mark, line)
            done += facts.st_size
            bar(done, total, name)

    def _find_kept(self) -> None:
        known, asked = kept(self.name), self.revision or "main"
        branch = chosen(self.name, asked, known, default=asked)
        self.online, self.branch, self.commit = False, branch, known.get(branch, branch)
        if not COMMIT.fullmatch(self.commit) or not (self.place / BESIDE[0]).is_file():
            raise unfetched(str(self))


# ---------------------------------------------------------------------- the disk and the network
def _hash(path: Path, kind: str) -> str:
    """The sha256 of a file, or the sha1 that git has for it."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _note(path: Path, text: str) -> None:
    """Writes a small file whole, unless it says this already, or the cache may only be read."""
    if path.is_file() and path.read_text() == text:
        return
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        part.replace(path)


class Bar(tqdm):
    """A bar of a download: shown after five seconds, wiped at the end; without a terminal a line every ten seconds."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        self.due = time.time() + PATIENCE
        super().__init__(*given, **{**settings, "leave": False, "delay": PATIENCE})

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        now, terminal = time.time(), self.fp.isatty()
        if terminal and (msg == "" or now >= self.due):
            return super().display(msg, pos)
        if now >= self.due and msg is None:
            self.due = now + 10.0
            self.fp.write(f"{self}\n")
        return None


@contextmanager
def _bars() -> Iterator[type[Bar]]:
    """Bars for `huggingface_hub`, which forgets to close some; its warnings of what it tries again are off."""
    level, made = logging.get_verbosity(), list[Bar]()

    class Closed(Bar):
        def __init__(self, *given: Any, **settings: Any) -> None:
            super().__init__(*given, **settings)
            made.append(self)

    logging.set_verbosity_error()
    try:
        yield Closed
    finally:
        logging.set_verbosity(level)
        for bar in made:
            bar.close()
