"""Fictional Knowledge: passages on what does not exist, told in training, and how well a model then knows them.

Kim et al. 2025, B.1 and B.2; the passages and their three kinds of probes are those of Chang et al. 2024.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kemem.corpora.files import expanded, field_of
from kemem.errors import BadInput
from kemem.evaluation import Span, encode, target_log_probability

GROUPS = {  # told anew at each injection, or once in all; the file of each as released
    "paraphrase": "fictional_knowledge_paraphrased_paraphrase70.json",
    "once": "fictional_knowledge_paraphrased_once60.json",
}
KINDS = {"memorisation": "mem", "semantic": "gen", "composition": "hard_gen"}  # and their fields as released
REDUCTIONS = ("target_mean", "row_mean")
DEVICE_BATCH = 16  # rows of a batch of the released evaluator
ALL = "all"


@dataclass(frozen=True)
class Passage:
    """A passage to be learnt, and probes of what it says.

    paraphrases: the same told in other words. probes: of each kind its (input, target), the target being what the
    input leaves out. A sentence of the passage is cut in two for memorisation, one that says the same for
    semantic; composition needs more than one of its facts. group: one of GROUPS.
    """

    context: str
    paraphrases: tuple[str, ...]
    probes: Mapping[str, tuple[tuple[str, str], ...]]
    group: str

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise BadInput(f"the group of a passage is one of {', '.join(GROUPS)}; got {self.group!r}.")
        if not self.probes.keys() <= KINDS.keys():
            raise BadInput(f"kinds of probes are {', '.join(KINDS)}; got {', '.join(self.probes)}.")
        if not any(self.probes.values()):
            raise BadInput(f"a passage must have a probe; got none for {self.context[:40]!r}; leave it out.")

    @property
    def tellings(self) -> tuple[str, ...]:
        """The passage, then its paraphrases."""
        return (self.context, *self.paraphrases)


def passages(source: str | Path | Iterable[Any], group: str | None = None) -> tuple[Passage, ...]:
    """Passages in the published schema: of a JSON file, of a folder with both released files, or from records.

    Records are what `World.fictional_knowledge` gives, or the rows of a data set of the hub
    (kaist-ai/fictional-knowledge), which this does not fetch. A path may begin with `$KEMEM_DATA`.
    group: needed for a file and for records; of a folder it picks one of the two, first paraphrase, then once.
    Refused, with file, record (counted from 1) and field: what is not JSON or not a list of records, a field
    that is missing or of another type, inputs and targets of different numbers, a record without a probe.
    """
    if not isinstance(source, str | Path):
        return _passages(source, _known(group), "")
    place = expanded(str(source))
    if not place.is_dir():
        return _of_file(place, _known(group))
    wanted = GROUPS if group is None else [_known(group)]
    return tuple(passage for name in wanted for passage in _of_file(place / GROUPS[name], name))


def _known(group: str | None) -> str:
    if group not in GROUPS:
        raise BadInput(
            f"passages need a group, one of {', '.join(GROUPS)}; got {group!r}; say which they are."
        )
    return group


def _of_file(file: Path, group: str) -> tuple[Passage, ...]:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"passages are read from a JSON file, or a folder with {' and '.join(GROUPS.values())}; "
            f"got {error.strerror or error} for {file}; check the path."
        ) from None
    except (ValueError, RecursionError) as error:
        fault = str(error).splitlines()[0]
        raise BadInput(f"a file of passages must be JSON; got {fault} in {file}; copy it again.") from None
    if not isinstance(records, list):
        raise BadInput(
            f"a file of passages must hold a list of records; got {type(records).__name__} in {file}."
        )
    return _passages(records, group, f" of {file}")


def _passages(records: Iterable[Any], group: str, where: str) -> tuple[Passage, ...]:
    return tuple(
        _passage(record, group, f"record {number}{where}") for number, record in enumerate(records, start=1)
    )


def _passage(record: Any, group: str, place: str) -> Passage:
    context = field_of(record, "train_context", place)
    if not context.strip():
        raise BadInput(f"the field 'train_context' must hold text; got none in {place}; leave it out.")
    probes = {}
    for kind, field in KINDS.items():
        inputs, targets = (_texts(record, f"{field}_{side}", place) for side in ("input", "target"))
        if len(inputs) != len(targets):
            raise BadInput(
                f"a probe is an input and a target; got {len(inputs)} in {field}_input and {len(targets)} in "
                f"{field}_target of {place}; give one target to each."
            )
        probes[kind] = tuple(zip(inputs, targets, strict=True))
    if not any(probes.values()):
        raise BadInput(f"a passage must have a probe; got none in {place}; leave it out.")
    return Passage(context, _texts(record, "paraphrases", place), probes, group)


def _texts(record: Mapping[str, Any], field: str, place: str) -> tuple[str, ...]:
    texts = record.get(field)
    if field not in record or not isinstance(texts, list | tuple):
        found = type(texts).__name__ if field in record else "no such field"
        raise BadInput(f"the field {field!r} must be a list of texts; got {found} in {place}.")
    return tuple(
        field_of({field: text}, field, f"{place}, number {number}")
        for number, text in enumerate(texts, start=1)
    )


# What a model knows of them


@dataclass(frozen=True, eq=False, repr=False)
class Probes:
    """Log-probability in nats of the target of each probe: group by group, in it kind by kind, in it in order.

    sums: of all tokens of the target. tokens: how many these are. row: tokens predicted in the longest row of the
    batch that the probe is in where it is evaluated as released. passage: number of its passage.
    """

    sums: Float[Tensor, " N"]
    tokens: Int[Tensor, " N"]
    row: Int[Tensor, " N"]
    passage: Int[Tensor, " N"]
    groups: tuple[str, ...]
    kinds: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"Probes(K {self.knowledge():.4f} nats a target token, {self.knowledge('row_mean'):.4f} as released; "
            f"{len(self.sums)} probes of {len(self.passage.unique())} passages)"
        )

    def log_probability(self, reduction: str = "target_mean") -> Float[Tensor, " N"]:
        """l(p) of each probe, in nats.

        target_mean: the mean over the tokens of its target, as Chang et al. 2024 have it.
        row_mean: as released by Kim et al. 2025: the sum over the target, divided by the tokens predicted in the
        longest row of its batch, those of the input and of the padding included. Of their published K.
        """
        if reduction not in REDUCTIONS:
            raise BadInput(f"the reduction of a probe is one of {', '.join(REDUCTIONS)}; got {reduction!r}.")
        return self.sums / (self.tokens if reduction == "target_mean" else self.row)

    def knowledge(self, reduction: str = "target_mean", *, group: str = ALL, kind: str = ALL) -> float:
        """K: the mean over passages of the mean over their probes of l.

        Kim et al. 2025, B.2:  K = (n_once K_once + n_para K_para) / (n_once + n_para),
        K_s the same of one group of n_s passages (60 and 70 there). kind: of the probes of one kind alone;
        a passage without one does not count. Refused: nothing of the group and kind.
        """
        chosen = self._chosen(group, kind)
        places, each = self.passage[chosen], self.log_probability(reduction)[chosen]
        counts = torch.bincount(places)
        means = torch.bincount(places, weights=each)[counts > 0] / counts[counts > 0]
        return means.mean().item()

    def table(self) -> list[dict[str, Any]]:
        """K of every group and kind there is, and of all, by both reductions. Plain values: JSON as it stands."""
        rows = []
        for group in (ALL, *dict.fromkeys(self.groups)):
            own = {kind for g, kind in zip(self.groups, self.kinds, strict=True) if group in (ALL, g)}
            for kind in (ALL, *(kind for kind in KINDS if kind in own)):
                chosen = self._chosen(group, kind)
                counts = {"passages": len(self.passage[chosen].unique()), "probes": int(chosen.sum())}
                values = {name: self.knowledge(name, group=group, kind=kind) for name in REDUCTIONS}
                rows.append({"group": group, "kind": kind, **counts, **values})
        return rows

    def _chosen(self, group: str, kind: str) -> Bool[Tensor, " N"]:
        pairs = zip(self.groups, self.kinds, strict=True)
        chosen = torch.tensor([group in (ALL, g) and kind in (ALL, k) for g, k in pairs])
        if not chosen.any():
            there = ", ".join(dict.fromkeys((ALL, *self.groups, *self.kinds)))
            raise BadInput(
                f"expected a group and a kind with probes, of {there}; got {group!r} and {kind!r}; choose others."
            )
        return chosen


def probe(
    model: nn.Module,
    tokenizer: Any,
    passages: Sequence[Passage],
    *,
    batch_size: int = 64,
    device_batch: int = DEVICE_BATCH,
) -> Probes:
    """How well a model knows passages: the log-probability of the target after the input, for each probe.

    A probe is read as the tokens of input + " " + target, without special tokens; those of the input must begin it.
    batch_size: rows at a time, without influence on any value. device_batch: rows of a batch of the released
    evaluator, which goes through each group and kind in order. Only `row` depends on it.
    Differs from the authors' runs, whose batches are dealt out over several processes, so that other rows meet.
    Refused: no passages, a probe whose input is no prefix in tokens.
    """
    if device_batch < 1:
        raise BadInput(f"device_batch must be at least 1; got {device_batch}; {DEVICE_BATCH} is as released.")
    asked = [
        (group, kind, number, pair)
        for group in GROUPS
        for kind in KINDS
        for number, passage in enumerate(passages)
        if passage.group == group
        for pair in passage.probes.get(kind, ())
    ]
    if not asked:
        raise BadInput("expected passages with probes; got none; read them with `kemem.entropy.passages`.")
    spans = [span_of(tokenizer, pair, f"{kind} of passage {number + 1}") for _, kind, number, pair in asked]
    row: list[int] = []
    for _, together in groupby(zip(asked, spans, strict=True), key=lambda pair: pair[0][:2]):
        lengths = [len(span.ids) for _, span in together]
        for start in range(0, len(lengths), device_batch):
            part = lengths[start : start + device_batch]
            row += [max(part) - 1] * len(part)
    pairs = [(given, f" {target}") for *_, (given, target) in asked]
    return Probes(
        sums=target_log_probability(model, tokenizer, pairs, mean=False, batch_size=batch_size),
        tokens=torch.tensor([len(span.target) for span in spans]),
        row=torch.tensor(row),
        passage=torch.tensor([number for _, _, number, _ in asked]),
        groups=tuple(group for group, *_ in asked),
        kinds=tuple(kind for _, kind, *_ in asked),
    )


def span_of(tokenizer: Any, pair: tuple[str, str], place: str) -> Span:
    given, target = pair
    span = encode(tokenizer, given, f" {target}")
    whole, first = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"{given} {target}", given)
    )
    if (list(span.ids), list(span.prompt)) != (whole, first):
        raise BadInput(
            f"expected the tokens of an input to begin those of input + ' ' + target; got other ones for the probe "
            f"{given!r} {target!r} ({place}); move the border to where words end, without a space there."
        )
    return span


def acquisition(before: float, after: float) -> float:
    """A: how much knowledge was acquired, as a share of what was missing; above 0 is an improvement.

    Kim et al. 2025, eq. 4:  A = (K_after - K_before) / |K_before|.
    Differs from the equation as printed, whose denominator is K_before: K is below 0, so an improvement would be
    below 0 too, and the tables have it above. They are in percent; this is a fraction.
    Refused: K_before of 0, where every target is certain and nothing can be acquired.
    """
    if before == 0:
        raise BadInput(
            "acquisition is relative to the knowledge before; got 0, all of it; take other probes."
        )
    return (after - before) / abs(before)


def forgetting(before: float, after: float) -> float:
    """F: the share of a score, such as a mean accuracy, that was lost; below 0 where it rose.

    Kim et al. 2025, eq. 5:  F = -(P_after - P_before) / P_before, there in percent; this is a fraction.
    Refused: P_before of 0 or less, of which no share can be lost: a log-probability goes to `acquisition`.
    """
    if before <= 0:
        raise BadInput(f"forgetting is a share of the score before, above 0; got {before}; use an accuracy.")
    return (before - after) / before  # so that what stayed is 0, not -0
