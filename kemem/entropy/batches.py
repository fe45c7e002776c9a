"""Token ids in rows of one length, and which positions of them count."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from kemem.errors import BadInput

WINDOW = 16  # batches read ahead and sorted by length, so that rows of one batch are of similar length


@dataclass(frozen=True)
class Batch:
    """Instances in rows of one length. Position t of row n counts with weight `weights[n]` where `spans[n]` holds it.

    mask, positions: what the model must be told; None where it needs neither.
    """

    ids: Int[Tensor, "B T"]
    spans: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    mask: Int[Tensor, "B T"] | None = None
    positions: Int[Tensor, "B T"] | None = None

    @property
    def full(self) -> bool:
        """Every position of every row counts, so all with one weight."""
        return all(span == (0, self.ids.shape[1]) for span in self.spans)

    def pieces(self, *tensors: Tensor) -> Iterator[tuple[tuple[Tensor, ...], float]]:
        """The positions that count of tensors [B T ...], as few pieces [n ...] as their weights allow, with the weight.

        Slices, not products with a mask: what stands at padding may be anything, infinity included, and costs nothing.
        """
        if self.full:
            yield tuple(tensor.flatten(0, 1) for tensor in tensors), self.weights[0]
            return
        for row, ((start, stop), weight) in enumerate(zip(self.spans, self.weights, strict=True)):
            yield tuple(tensor[row, start:stop] for tensor in tensors), weight


class Reader:
    """Instances as ids on the CPU: checked, cut to `length`, without the empty ones, which are counted."""

    def __init__(self, instances: Any, *, vocabulary: int, length: int | None) -> None:
        self.vocabulary, self.length = vocabulary, length
        self.skipped = self.cut = self.tokens = 0
        rows = getattr(instances, "ids", instances)  # blocks and tokenised corpora keep theirs in `ids`
        self.total = len(rows) if hasattr(rows, "__len__") else None
        self._rows: Iterable[Tensor] = map(self._checked, rows)
        if isinstance(rows, (Sequence, Tensor)):
            self._rows = list(self._rows)  # all at hand: a wrong id is said before the first forward pass

    def __iter__(self) -> Iterator[Int[Tensor, " T"]]:
        for row in self._rows:
            if not len(row):
                self.skipped += 1
                continue
            if self.length is not None and len(row) > self.length:
                self.cut += 1
                row = row[: self.length]
            self.tokens += len(row)
            yield row

    def _checked(self, ids: Any) -> Int[Tensor, " T"]:
        try:
            row = torch.as_tensor(ids, dtype=torch.long, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            row = None
        if row is None or row.ndim != 1:
            raise BadInput(
                f"each instance must be a list of token ids; got {str(ids)[:40]!r}; "
                "tokenise the text first, one list an instance."
            )
        if len(row):
            low, high = (int(bound) for bound in row.aminmax())
            if low < 0 or high >= self.vocabulary:
                raise BadInput(
                    f"token ids must be in 0..{self.vocabulary - 1}, the model's vocabulary; "
                    f"got {low if low < 0 else high}; use the tokenizer that the model was trained with."
                )
        return row


def windows(
    rows: Iterable[Tensor], batch_size: int, marks: Iterable[int] = (), *, pad: bool = True
) -> Iterator[list[list[Tensor]]]:
    """Rows read ahead, cut into batches of similar length (of one length if not pad). None straddles a mark."""
    ends, held = set(marks), []
    for seen, row in enumerate(rows, start=1):
        held.append(row)
        if len(held) == WINDOW * batch_size or seen in ends:
            yield list(_batches(held, batch_size, pad))
            held = []
    if held:
        yield list(_batches(held, batch_size, pad))


def _batches(rows: list[Tensor], batch_size: int, pad: bool) -> Iterator[list[Tensor]]:
    # The longest first: memory that suffices for it suffices for all.
    rows = sorted(rows, key=len, reverse=True)
    for _, alike in groupby(rows, key=lambda row: pad or len(row)):
        together = list(alike)
        for start in range(0, len(together), batch_size):
            yield together[start : start + batch_size]


class Padder:
    """Rows to a Batch, for one model. `mask`: only real tokens count; `include`: every position of `length` does."""

    def __init__(
        self,
        model: nn.Module,
        *,
        causal: bool,
        pad_id: int | None,
        padding: str,
        side: str,
        length: int | None,
    ) -> None:
        self.include, self.side, self.causal = padding == "include", side, causal
        self.length = length
        home = model.get_input_embeddings().weight.device
        self.device = (
            torch.device("cpu") if home.type == "meta" else home
        )  # meta: offloaded, fetched where used
        counted = counted_positions(model)
        self.own_positions = counted is not None
        if self.include:
            assert pad_id is not None and length is not None
            self.fill = pad_id
        elif counted is not None:
            self.fill = counted  # RoBERTa numbers its positions by the ids that are not this one
        else:  # what stands at padding is left out, so any id will do; transformers warns at the pad id
            self.fill = 1 if getattr(model.config, "pad_token_id", None) == 0 else 0

    def __call__(self, rows: list[Tensor]) -> Batch:
        lengths = [len(row) for row in rows]
        longest = self.length if self.include else max(lengths)
        starts = [0 if self.side == "right" else longest - length for length in lengths]
        ids = torch.full((len(rows), longest), self.fill, dtype=torch.long)
        spans = tuple((start, start + length) for start, length in zip(starts, lengths, strict=True))
        for row, (start, stop), target in zip(rows, spans, ids, strict=True):
            target[start:stop] = row
        sent = self._sent(ids)
        if self.include:  # as released: the model is not told either
            return Batch(sent, ((0, longest),) * len(rows), (1 / longest,) * len(rows))
        weights = tuple(1 / length for length in lengths)
        if min(lengths) == longest or (self.side == "right" and self.causal):
            return Batch(sent, spans, weights)  # what stands after the last token never reaches it
        mask = torch.zeros_like(ids)
        for (start, stop), target in zip(spans, mask, strict=True):
            target[start:stop] = 1
        if self.side == "right" or self.own_positions:
            return Batch(sent, spans, weights, self._sent(mask))
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        return Batch(sent, spans, weights, self._sent(mask), self._sent(positions))

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def counted_positions(model: nn.Module) -> int | None:
    """The padding id of a model that counts its own positions, from that id + 1 on (RoBERTa); None for all others."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.padding_idx
    return None


def context(model: nn.Module) -> int | None:
    """The longest text the model takes, in tokens; None where its configuration does not say."""
    longest = getattr(model.config, "max_position_embeddings", None)
    counted = counted_positions(model)
    return longest if longest is None or counted is None else longest - counted - 1
