"""New knowledge put into training at set steps, and how much of it a model takes in (Kim et al. 2025, section 4).

A step whose number is a multiple of the interval reads passages instead of the beginning of its first rows. What is
told, and when, depends on the number of the step alone: a killed run that resumes tells the same.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kemem.entropy.passages import Passage, acquisition
from kemem.entropy.prediction import vocabulary
from kemem.entropy.probing import ALL, DEVICE_BATCH, Prepared
from kemem.errors import BadInput
from kemem.objective import Batch
from kemem.progress import Reporter
from kemem.training import Domain, History, Method, Recipe, Rows, Together, train
from kemem.training.loop import AtCheckpoint

Told = tuple[tuple[int, ...], ...]  # token ids of passages


@dataclass(frozen=True)
class Schedule:
    """What is told when: the next slot every `interval` steps, and after the last one the first again.

    slots: token ids of the passages of each, the end of text included.
    """

    slots: tuple[Told, ...]
    interval: int

    def __post_init__(self) -> None:
        if not self.slots:
            raise BadInput("a schedule must have at least 1 slot; got none; the paper has 10.")
        if self.interval < 1:
            raise BadInput(f"interval must be at least 1 step; got {self.interval}; the paper has 160.")

    def __repr__(self) -> str:
        return (
            f"Schedule({len(self.slots)} slots, every {self.interval} steps, "
            f"{sum(map(len, self.slots))} passages, {self.tokens:,} tokens, {self.digest})"
        )

    @property
    def tokens(self) -> int:
        """Of all slots together."""
        return sum(len(ids) for told in self.slots for ids in told)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of what is told when."""
        return hashlib.sha256(json.dumps([self.interval, self.slots]).encode()).hexdigest()[:16]

    def told(self, step: int) -> Told:
        """What step number `step`, counted from 1, is told: slot (step / interval) mod n, where 0 is slot n."""
        number, between = divmod(step, self.interval)
        return self.slots[(number - 1) % len(self.slots)] if number and not between else ()

    def steps(self, total: int) -> range:
        """The steps of a run of `total` that are told something. Refused: a run that ends before the first."""
        if self.interval > total:
            raise BadInput(
                f"expected an interval within the run; got {self.interval} steps of {total}; shorten it or train "
                "for longer."
            )
        return range(self.interval, total + 1, self.interval)

    def lost(self, total: int, rows: int, length: int) -> int:
        """Tokens cut away over a run of `total` steps that read `rows` rows of `length` tokens."""
        groups = (ids for step in self.steps(total) for ids in grouped(self.told(step), rows))
        return sum(max(0, len(ids) - length) for ids in groups)


def schedule(
    passages: Sequence[Passage], tokenizer: Any, *, slots: int = 10, interval: int = 160
) -> Schedule:
    """The schedule of the paper: passages of the group "paraphrase" are told in every slot, the others in one.

    Slot k holds the k-th telling of each of the former (the passage itself in the first, then its paraphrases), in
    order, then the k-th of `slots` equal parts of the others; where they cannot be equal, the first ones have one
    more. Each is its tokens, without special tokens, and the end of text.
    From the released files it is the released one, token for token.
    Refused: a passage with fewer tellings than slots, a tokenizer without an end of text.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise BadInput(
            "a passage ends with the end of text; got a tokenizer without; set tokenizer.eos_token."
        )
    if slots < 1:
        raise BadInput(f"a schedule must have at least 1 slot; got {slots}; the paper has 10.")
    again = [passage for passage in passages if passage.group == "paraphrase"]
    once = [passage.context for passage in passages if passage.group == "once"]
    for number, passage in enumerate(again, start=1):
        if len(passage.tellings) < slots:
            raise BadInput(
                f"expected a telling for each of {slots} slots; got {len(passage.tellings)} of paraphrase passage "
                f"{number}; ask for fewer slots or more paraphrases."
            )
    texts = [
        [*(passage.tellings[slot] for passage in again), *part]
        for slot, part in enumerate(_parts(once, slots))
    ]
    ids = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in slot] for slot in texts]
    return Schedule(tuple(tuple((*one, end) for one in slot) for slot in ids), interval)


def grouped(told: Told, rows: int) -> Told:
    """What is told in one row each: a passage, or, where there are fewer rows than passages, neighbours joined."""
    return told if len(told) <= rows else tuple(tuple(chain.from_iterable(p)) for p in _parts(told, rows))


def _parts(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Neighbours together in `count` parts; the first ones have one more where they cannot be equal."""
    share, more = divmod(len(items), count)
    borders = [i * share + min(i, more) for i in range(count + 1)]
    return [items[start:stop] for start, stop in pairwise(borders)]


@dataclass(frozen=True)
class Injection(Method):
    """Plain training, told the passages of a schedule.

    Passage i is put before row i of a step's batch, and the row cut back to its length: what was at its end is lost,
    and nothing separates the two but the end of text. All tokens of a passage are targets. Where the batch has fewer
    rows than there are passages, `grouped` joins them; `Schedule.lost` counts what is then cut away of them.
    """

    schedule: Schedule
    digest: str = ""
    """Of the schedule, filled in: what tells a run from one with another schedule when it is resumed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", self.schedule.digest)

    def before(self, model: PreTrainedModel, domain: Domain) -> None:
        """Refuses a schedule whose tokens the model does not have."""
        highest = max((max(ids) for told in self.schedule.slots for ids in told), default=0)
        if highest >= vocabulary(model):
            raise BadInput(
                f"token ids must be below {vocabulary(model)}, the model's vocabulary; got {highest} in a passage; "
                "make the schedule with the tokenizer that the model was trained with."
            )

    def rows(self, step: int, batch: Batch) -> Batch:
        told = self.schedule.told(step)
        if not told:
            return batch
        known = ("input_ids", "labels", "attention_mask")
        if other := [name for name in batch if name not in known]:
            raise BadInput(
                f"passages can be put into {', '.join(known)} of a batch; got {other[0]}; leave it out."
            )
        length = batch["input_ids"].shape[1]
        new = {name: tensor.clone() for name, tensor in batch.items()}
        for row, group in enumerate(grouped(told, len(batch["input_ids"]))):
            ids = torch.tensor(group)
            for name, tensor in new.items():
                front = torch.ones_like(ids) if name == "attention_mask" else ids
                tensor[row] = torch.cat([front, batch[name][row]])[:length]
        return new


@dataclass(frozen=True, repr=False)
class Acquired:
    """What a model took in over a run.

    history: of the run; its checkpoints hold what was measured. injected: tokens of the passages told. lost: those
    of them that were cut away.
    """

    history: History
    injected: int
    lost: int

    def __repr__(self) -> str:
        return (
            f"Acquired(A {self.acquisition():.1%}, as released {self.acquisition('row_mean'):.1%}; "
            f"{self.injected:,} tokens told, {self.lost:,} of them lost)"
        )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """K in nats, a row for each moment, group and kind ("all" among them); `Probes.table`. JSON as it stands."""
        return [{"step": kept["step"], **row} for kept in self.history.checkpoints for row in kept["probes"]]

    def knowledge(
        self, step: int, reduction: str = "target_mean", *, group: str = ALL, kind: str = ALL
    ) -> float:
        """K after `step` steps. Refused: what was not measured."""
        for row in self.rows:
            if (row["step"], row["group"], row["kind"]) == (step, group, kind):
                return row[reduction]
        steps = ", ".join(str(step) for step in self.steps)
        raise BadInput(
            f"expected what was measured, after {steps} steps; got {step}, {group!r}, {kind!r}; choose one of these."
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """When it was measured, in steps done."""
        return tuple(kept["step"] for kept in self.history.checkpoints)

    def acquisition(self, reduction: str = "target_mean", *, group: str = ALL, kind: str = ALL) -> float:
        """A over the whole run, a fraction (`kemem.entropy.acquisition`)."""
        first, last = (
            self.knowledge(step, reduction, group=group, kind=kind)
            for step in (self.steps[0], self.steps[-1])
        )
        return acquisition(first, last)


def acquire(
    model: PreTrainedModel,
    blocks: Domain | Rows,
    schedule: Schedule,
    recipe: Recipe,
    *,
    tokenizer: Any,
    passages: Sequence[Passage],
    method: Method | None = None,
    out: Path | str | None = None,
    at_checkpoint: AtCheckpoint | None = None,
    progress: Reporter | None = None,
    batch_size: int = 64,
    device_batch: int = DEVICE_BATCH,
) -> Acquired:
    """Trains `model` in place on `blocks`, tells it the schedule, and measures what it knows of `passages`.

    Measured before the first step, after the last, and in between at `recipe.checkpoints`, or where it has none
    after every step that is told something.
    method: a way of learning beside the telling, such as `WakeIdle`. Its moments come after those of `Injection`, and
    the model is measured as its `at` shows it.
    out: as in `kemem.training.train`, so each of these moments is a checkpoint kept there. at_checkpoint: what else
    to measure then; its rows are in `history.checkpoints`.
    batch_size, device_batch: as in `probe`.
    Refused: an interval longer than the run, passages without probes, weights that give a probe no finite
    probability, what `train` refuses.
    """
    told = schedule.steps(recipe.steps)
    moments = (0, *(recipe.checkpoints or told), recipe.steps)
    prepared = Prepared(tokenizer, passages, batch_size=batch_size, device_batch=device_batch)

    def measured(model: nn.Module, step: int) -> dict[str, Any]:
        found = prepared(model)
        if not found.sums.isfinite().all():  # the loss of the last step is that before its update
            raise BadInput(
                f"expected finite log-probabilities; got others after {step} steps; lower learning_rate "
                f"({recipe.learning_rate:g}) or warm up longer."
            )
        other = at_checkpoint(model, step) if at_checkpoint is not None else None
        return {**(other or {}), "probes": found.table()}

    domain = blocks if isinstance(blocks, Domain) else Domain("data", blocks)
    history = train(
        model,
        domain,
        replace(recipe, checkpoints=moments),
        Injection(schedule) if method is None else Together((Injection(schedule), method)),
        out=out,
        tokenizer=tokenizer,
        at_checkpoint=measured,
        progress=progress,
    )
    length = domain.blocks.batch(torch.tensor([0]))["input_ids"].shape[1]
    return Acquired(
        history,
        injected=sum(len(ids) for step in told for ids in schedule.told(step)),
        lost=schedule.lost(recipe.steps, recipe.batch_size, length),
    )
