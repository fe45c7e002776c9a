"""What a command says and how it ends: notes and progress, one line for an error, files written whole."""

import functools
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from kemem.errors import BadInput

PATIENCE = 5.0  # seconds after which silence makes a user wonder


def note(text: str) -> None:
    """One line on standard error."""
    print(f"kemem: {' '.join(text.split())}", file=sys.stderr, flush=True)


def guarded(stopped: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command its ways to fail: one line each, and an exit status. `stopped` is said after Ctrl-C."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def guard(*arguments: Any, **options: Any) -> Any:
            try:
                with _own_warnings():
                    return command(*arguments, **options)
            except BadInput as error:
                note(str(error))
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                note(f"stopped; {stopped}.")
                raise typer.Exit(130) from None
            except OSError as error:
                reason = error.strerror or str(error) or type(error).__name__
                place = f" for {error.filename}" if error.filename else ""
                note(
                    f"expected files and network to work; got: {reason}{place}; see to it and run this again."
                )
                raise typer.Exit(2) from None
            except Exception as error:
                if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                    raise
                note("the device is out of memory; run this again with a smaller --batch-size.")
                raise typer.Exit(2) from None

        return guard

    return decorate


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Warnings of this package as notes; those of libraries are for developers, and are left out."""
    package = str(Path(__file__).resolve().parents[1])

    def show(message: Any, category: Any, filename: str, *rest: Any, **more: Any) -> None:
        if filename.startswith(package):
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


def quiet_libraries() -> None:
    """Messages of `transformers` below errors are off: what a user must know, a command says itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()


# ---------------------------------------------------------------------- progress
class Lines:
    """Progress where standard error is a file or a pipe: a line every few seconds, none if done before."""

    def __init__(self, title: str, *, every: float) -> None:
        self.title, self.every = title, every
        self.next = time.monotonic() + every

    def __call__(self, done: int, total: int, message: str = "") -> None:
        now = time.monotonic()
        if now >= self.next:
            self.next = now + self.every
            note(f"{self.title}: {done} of {total} {message}".rstrip())


def progress(title: str) -> Callable[[int, int, str], None]:
    """A reporter for what may take over 5 seconds. $KEMEM_PROGRESS: seconds between lines, if not 5."""
    from kemem.progress import Progress

    if sys.stderr.isatty():
        return Progress(title, patience=PATIENCE)
    return Lines(title, every=_patience())


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Says what is being done when it is not done after 5 seconds."""
    timer = threading.Timer(_patience(), note, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _patience() -> float:
    given = os.environ.get("KEMEM_PROGRESS", "")
    try:
        return float(given) if given else PATIENCE
    except ValueError:
        raise BadInput(
            f"KEMEM_PROGRESS is a number of seconds; got {given!r}; correct or unset it."
        ) from None


# ---------------------------------------------------------------------- files
def check_json(place: str | None) -> None:
    """Refuses a place for JSON where nothing could be written once the work is done."""
    if place in (None, "-"):
        return
    path = Path(place).expanduser()
    if path.is_dir():
        raise BadInput(f"expected --json to name a file, or -; got the folder {place}; name a file in it.")
    if not path.parent.is_dir():
        raise BadInput(f"expected --json in a folder that exists; got {place}; create {path.parent} first.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"expected --json where it may be written; got {place}; choose another place.")


def write_json(document: Any, place: str) -> None:
    """To standard output for "-", else to a file, which is written whole or left as it was."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if place == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_whole(Path(place).expanduser(), text)


def write_whole(path: Path, text: str) -> None:
    path = path.resolve()  # the file that a link names is replaced, not the link
    if path.exists() and not path.is_file():  # /dev/stdout, a named pipe
        path.write_text(text, encoding="utf-8")
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
