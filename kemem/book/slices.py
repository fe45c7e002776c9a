"""Records of a scale in slices of some minutes, on a machine that needs nothing but the package: no Jupyter.

    python -m kemem.book.slices --scale gpu --minutes 9 --price 3 --out DIR
    python -m kemem.book.slices --scale gpu --all

asks for the contents of all chapters in their order and computes what records/<scale> lacks. It stops by itself before
the minutes are over, and the next call goes on; --all makes the calls. Finished rows are in records/, models and the
states of their training in the store ($KEMEM_STORE, or .kemem). DIR gets one archive of all rows of the scale, written
anew as rows are finished: unpacked in a checkout (`tar -xzf records-gpu.tar.gz`) it is the records of that checkout, so
that a slice on another machine goes on from it. Rows that failed are tried again when all others are done.

Exit status: 0 when nothing is missing, 3 when there is more to do, 1 when all that is left has failed, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kemem.book.metering import OutOfTime, Slice, device_card
from kemem.book.parameters import check, declared
from kemem.book.places import chapters, checkout
from kemem.book.session import open_lab
from kemem.errors import BadInput
from kemem.runs import Row
from kemem.studies import contents
from kemem.studies.asking import Asking, Claiming, Failures
from kemem.studies.lab import SCALES, Lab
from kemem.studies.sweeping import work

SLICED = ("gpu", "paper")
"""Scales that `make record` computes in slices."""
DONE, FAILED, MORE = 0, 1, 3
MINUTES = 9.0
ARCHIVED = 30.0  # seconds after which --out is written anew


# ---------------------------------------------------------------------- a slice
def run(
    root: Path,
    scale: str,
    *,
    minutes: float = MINUTES,
    out: Path | None = None,
    only: Sequence[str] = (),
    price: float | None = None,
    device: str = "auto",
) -> int:
    """One slice; its exit status. Refuses an unknown chapter."""
    before = {name: os.environ.get(name) for name in ("KEMEM_RECORD", "KEMEM_REPLAY")}
    os.environ["KEMEM_RECORD"] = "1"
    os.environ.pop("KEMEM_REPLAY", None)
    try:
        return _run(root, _labs(root, scale, only, device), minutes, out, price)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _run(
    root: Path, asked: list[tuple[Lab, str]], minutes: float, out: Path | None, price: float | None
) -> int:
    lab = asked[0][0]
    own = Slice(lab, minutes, price, device_card(lab), _say)
    assert lab.store.records is not None
    lab.store.records.mkdir(parents=True, exist_ok=True)
    start = time.time()

    def failed(study: str, name: str, error: Exception) -> None:
        _say(f"{study} {name} failed: {type(error).__name__}: {' '.join(str(error).split())}")

    saved = time.monotonic()

    def told(row: Row, settings: Any) -> None:
        nonlocal saved
        own.told(row, settings)
        # for a slice that is killed before its end
        if out is not None and time.monotonic() - saved > ARCHIVED:
            with suppress(OSError):  # the end of the slice says it
                write(lab.store.records, out, own.lines)
            saved = time.monotonic()

    failures = Failures(lab.store.live / "work" / "slices" / "failed")
    earlier = list(failures)  # in slices that ended early
    store = Claiming(lab.store, failures, begin=own.begin, told=told, failed=failed)

    def wait(pause: float) -> None:
        own.wait(pause, len(store.claims.waiting))

    ended = False
    try:
        with _until(own.left):
            work(asked, store, wait=wait)
            if earlier:  # when all else is done
                failures.forget(earlier)
                work(asked, store, wait=wait)
    except OutOfTime:
        ended = True
    if out is not None:
        write(lab.store.records, out, own.lines)
    missing = _missing(asked)
    count = len(list(failures))
    if not ended:
        shutil.rmtree(failures.folder, ignore_errors=True)
    cost = "" if price is None else f", cost {price * (time.monotonic() - own.began) / 3600:.2f} by the hour"
    spent = (time.monotonic() - own.began) / 60
    _say(
        f"slice: {len(own.lines)} rows in {spent:.1f} minutes{cost}; {missing} missing by now, {count} failed"
    )
    if not ended:
        return FAILED if missing or count else DONE
    if not own.lines and not _moved(lab.store.live, start):
        _say("no row was finished and no training moved on; give the slice more --minutes")
        return FAILED
    return MORE


def _labs(root: Path, scale: str, only: Sequence[str], device: str) -> list[tuple[Lab, str]]:
    """The chapters that have sizes at this scale; which have none is told."""
    known = {path.stem.split("_")[0]: path for path in chapters(root)}
    for number in only:
        if number not in known:
            raise BadInput(f"expected numbers of chapters, of {', '.join(known)}; got {number!r}.")
    found = []
    for number in only or [number for number in known if number in contents.CHAPTERS]:
        names = declared(known[number])
        given = {"scale": scale, **({"device": device} if "device" in names else {})}
        lab = open_lab(root, check(names, given), title=number)
        try:
            contents.steps(lab, number)
        except BadInput as error:
            _say(f"chapter {number} is left out: {error}")
        else:
            found.append((lab, number))
    if not found:
        raise BadInput(f"expected chapters that have sizes at the scale {scale}; got none.")
    return found


def _missing(asked: list[tuple[Lab, str]]) -> int:
    """Rows that are missing, of those that can be asked for by now."""
    rows = {
        row.digest: row.row
        for lab, number in asked
        for row in contents.asked(lab, number, Asking(lab.store), failing=True)
    }
    return sum(row is None for row in rows.values())


def _moved(live: Path, start: float) -> bool:
    """Whether a training saved its state since then."""
    return any(path.stat().st_mtime >= start for path in live.glob("work/*/*/state/step*.json"))


@contextmanager
def _until(left: float) -> Iterator[None]:
    """OutOfTime after so many seconds, again each second until it is heard; where there is no alarm, between rows."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def over(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write(records: Path, out: Path, lines: list[dict[str, Any]]) -> None:
    """All rows of the scale as one archive, and what this slice computed, in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    place = out / f"records-{records.name}.tar.gz"
    part = place.with_name(f"{place.name}.part")
    with tarfile.open(part, "w:gz") as archive:
        for path in sorted(records.glob("*/*.json")):
            archive.add(path, f"records/{records.name}/{path.relative_to(records)}")
    os.replace(part, place)
    (out / f"slice-{records.name}.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------- all slices
def loop(options: Sequence[str]) -> int:
    """Slices with these options of the command, each a process of its own, until nothing is left; the last status."""
    while True:
        status = subprocess.run([sys.executable, "-m", "kemem.book.slices", *options]).returncode
        if status != MORE:
            return status


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,  # `loop` takes --all away by its whole name
        prog="python -m kemem.book.slices",
        description=(__doc__ or "").split("\n\n")[0],
    )
    parser.add_argument("--scale", default="gpu", choices=SCALES)
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="of this slice; it stops before they are over"
    )
    parser.add_argument("--out", type=Path, help="a folder for an archive of all rows of the scale")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NN", help="a chapter; may be repeated"
    )
    parser.add_argument("--price", type=float, help="of an hour on this machine, in any currency")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--all", action="store_true", help="slice after slice, until nothing is left to do")
    p = parser.parse_args(arguments)
    if p.minutes <= 0:
        parser.error(f"expected --minutes above 0; got {p.minutes:g}")
    if p.all:
        given = list(sys.argv[1:] if arguments is None else arguments)
        return loop([each for each in given if each != "--all"])
    try:
        return run(
            checkout(), p.scale, minutes=p.minutes, out=p.out, only=p.only, price=p.price, device=p.device
        )
    except BadInput as error:
        _say(str(error))
        return 2


def _say(text: str) -> None:
    print(f"kemem: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
