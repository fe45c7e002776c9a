"""What a slice of records took: when it ends, what each of its rows cost, and how much of the card it used."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from kemem.runs import Row
from kemem.studies import checkpoints
from kemem.studies.asking import Busy
from kemem.studies.cards import CARDS, Card
from kemem.studies.forecast import seconds
from kemem.studies.lab import Lab
from kemem.studies.operations import Moments, Part, Work, trained
from kemem.studies.pretraining import Pretrained, Pretraining
from kemem.studies.work import ROWS, within

RESERVE = 40.0
"""Seconds before the end in which nothing is computed: for the start of Python, and for the archive."""
FITS = 0.8
"""Of a slice: a row that takes longer is begun whenever its turn comes."""


class OutOfTime(BaseException):
    """The slice is over. No Exception, so that nothing takes it for a row that failed."""


@dataclass
class Slice:
    """One slice: what it computed, when it ends, and what its hours cost."""

    lab: Lab
    minutes: float
    price: float | None
    card: Card | None
    say: Callable[[str], None] = print
    began: float = field(default_factory=time.monotonic)
    lines: list[dict[str, Any]] = field(default_factory=list)
    _work: Work = field(default_factory=list)
    _sought: dict[Hashable, int] = field(default_factory=dict)
    """Tokens of what rows have in common and this process has done."""
    _late: set[str] = field(default_factory=set)
    """Rows that were put off since the last wait, because they do not fit any more."""

    @property
    def whole(self) -> float:
        return max(0.0, 60 * self.minutes - RESERVE)

    @property
    def left(self) -> float:
        return self.whole - (time.monotonic() - self.began)

    def begin(self, study: str, settings: Any) -> None:
        """Before a row: one that fits into a slice, but not into what is left of this one, is put off."""
        if self.left <= 0:
            raise OutOfTime
        self._work = self.of(study, settings)
        expected = sum(seconds(part, self.card) for part in self._work) if self.card is not None else 0.0
        if self.left < expected <= FITS * self.whole:
            self._late.add(f"{study} {settings!r}")
            raise Busy(f"{study} would take {expected:.0f} s, and {self.left:.0f} s are left")

    def of(self, study: str, settings: Any) -> Work:
        """What a row takes now, with the training of models that it begins with, as far as that is to be done."""
        found = self._fresh(ROWS[study](settings) or []) if study in ROWS else []
        models = dict.fromkeys(each for each in within(settings) if isinstance(each, Pretraining))
        for each in models:  # once each, however often settings name it
            if not isinstance(each, Pretrained) and study != "inside":
                share = checkpoints.left(self.lab, each)
                found += [trained(each.setup.with_(steps=round(share * each.setup.steps)))] if share else []
        return found

    def _fresh(self, work: Work) -> Work:
        """Without what an earlier row of this process has done of it."""
        return [
            replace(part, tokens=max(0, part.tokens - self._sought.get(part.shared, 0)))
            if isinstance(part, (Part, Moments)) and part.shared is not None
            else part
            for part in work
        ]

    def told(self, row: Row, settings: Any) -> None:
        for part in self._work:
            if isinstance(part, (Part, Moments)) and part.shared is not None:
                self._sought[part.shared] = self._sought.get(part.shared, 0) + part.tokens
        spent = row.provenance.get("seconds", 0.0)
        flops = sum(sum(part.flops.values()) for part in self._work)
        line = {
            "study": row.study, "digest": row.digest, "seconds": spent, "flops": flops,
            "mfu": None if self.card is None else mfu(self._work, spent, self.card),
            "cost": None if self.price is None else self.price * spent / 3600,
        }  # fmt: skip
        self.lines.append(line)
        share = "MFU not given" if line["mfu"] is None else f"MFU {100 * line['mfu']:.1f} %"
        cost = "" if line["cost"] is None else f", cost {line['cost']:.3f}"
        self.say(f"{row.study} {row.digest}: {spent:.1f} s, {flops:.2e} FLOP, {share}{cost}")

    def wait(self, pause: float, rows: int = 1) -> None:
        """So many rows are put off: to the next slice, which is not waited for, or another process is at them."""
        if self.left <= 60 or len(self._late) >= rows:
            raise OutOfTime
        self._late.clear()
        time.sleep(pause)


def mfu(work: Work, spent: float, card: Card) -> float | None:
    """Of the products that the card could have made in this time the share that the row needed, by the forecast."""
    if not spent:
        return None
    return sum(sum(part.flops.values()) / card.peak(part.numbers) for part in work) / spent


def device_card(lab: Lab) -> Card | None:
    """The card that this runs on, by its name; None on a processor or on a card that is not listed."""
    import torch

    from kemem import models

    if models.named_device(lab.device).type != "cuda":
        return None
    words = set(re.split(r"[\s-]+", torch.cuda.get_device_name()))
    return next((card for name, card in CARDS.items() if name in words), None)
