"""What a model knows of passages: how probable it finds what their probes leave out (Kim et al. 2025, B.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kemem.entropy.passages import GROUPS, KINDS, Passage, span_of
from kemem.errors import BadInput
from kemem.evaluation import Targets

REDUCTIONS = ("target_mean", "row_mean")
DEVICE_BATCH = 16  # rows of a batch of the released evaluator
ALL = "all"


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


class Prepared:
    """Probes of passages cut into tokens and laid out in batches: what every model may be asked, without a model.

    Called with a model it is `probe`, as often as wanted; where a run is measured many times, the text is read once.
    Arguments and what is refused: as in `probe`.
    """

    def __init__(
        self,
        tokenizer: Any,
        passages: Sequence[Passage],
        *,
        batch_size: int = 64,
        device_batch: int = DEVICE_BATCH,
    ) -> None:
        if device_batch < 1:
            raise BadInput(
                f"device_batch must be at least 1; got {device_batch}; {DEVICE_BATCH} is as released."
            )
        asked = [
            (group, kind, number, pair)
            for group in GROUPS
            for kind in KINDS
            for number, passage in enumerate(passages)
            if passage.group == group
            for pair in passage.probes.get(kind, ())
        ]
        if not asked:
            raise BadInput(
                "expected passages with probes; got none; read them with `kemem.entropy.passages`."
            )
        spans = [
            span_of(tokenizer, pair, f"{kind} of passage {number + 1}") for _, kind, number, pair in asked
        ]
        row: list[int] = []
        for _, together in groupby(zip(asked, spans, strict=True), key=lambda pair: pair[0][:2]):
            lengths = [len(span.ids) for _, span in together]
            for start in range(0, len(lengths), device_batch):
                part = lengths[start : start + device_batch]
                row += [max(part) - 1] * len(part)
        self._targets = Targets(spans, batch_size=batch_size)
        self._tokens = torch.tensor([len(span.target) for span in spans])
        self._row = torch.tensor(row)
        self._passage = torch.tensor([number for _, _, number, _ in asked])
        self._groups = tuple(group for group, *_ in asked)
        self._kinds = tuple(kind for _, kind, *_ in asked)

    def __call__(self, model: nn.Module) -> Probes:
        return Probes(
            sums=self._targets(model, mean=False),
            tokens=self._tokens,
            row=self._row,
            passage=self._passage,
            groups=self._groups,
            kinds=self._kinds,
        )


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
    return Prepared(tokenizer, passages, batch_size=batch_size, device_batch=device_batch)(model)
