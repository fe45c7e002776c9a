"""Measuring a model whose blocks stay on the disk: many batches go through each block while it is in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from kemem.entropy.batches import Batch
from kemem.entropy.prediction import chunked_entropies, vocabulary
from kemem.entropy.sums import Sums
from kemem.models.streaming import head_alone, sweep


class GroupSums(Sums):
    """The sums of `Sums` over some batches at once, each block read once, and added up in the same order."""

    def add_all(self, batches: Sequence[Batch], done: Callable[[int], object]) -> None:
        """done(n): all batches are through n blocks."""
        now: list[Batch] = []

        def usage(layer: int, *parts: Tensor) -> None:
            self._add_usage(now[0], layer, *parts)

        def attention(layer: int, weights: Tensor) -> None:
            self._add_attention(now[0], layer, weights)

        def begin(number: int) -> None:
            now[:] = [batches[number]]

        with ExitStack() as stack:
            stack.enter_context(self.watch(usage))
            if self.wants_attention:
                stack.enter_context(self.memories.attention(attention))
            sweep(
                self.memories,
                list(map(_call, batches)),
                before=begin,
                after=self._predicted(batches),
                done=done,
            )

    def _predicted(self, batches: Sequence[Batch]) -> Callable[[int, Any], None]:
        """What adds the entropy of a batch's predictions, given what the base model puts out."""
        model = self.memories.model

        def add(number: int, outputs: Any) -> None:
            if not self.wants_next_token:
                return
            with head_alone(model, outputs) as logits:
                for (hidden,), weight in batches[number].pieces(outputs.last_hidden_state):
                    found = chunked_entropies(logits, hidden, vocabulary(model)).to(self._next_token)
                    self._next_token.add_(found.sum(), alpha=weight)

        return add


def _call(batch: Batch) -> dict[str, Any]:
    told = {"attention_mask": batch.mask, "position_ids": batch.positions}
    told = {name: value for name, value in told.items() if value is not None}
    return {"input_ids": batch.ids, "use_cache": False, **told}


def groups(
    windows: Iterable[list[list[Tensor]]], size: int, marks: Iterable[int]
) -> Iterator[list[list[Tensor]]]:
    """Batches of rows, `size` together; fewer where a mark comes between, and at the end."""
    ends, held, seen = set(marks), [], 0
    for window in windows:
        for batch in window:
            held.append(batch)
            seen += len(batch)
            if len(held) == size or seen in ends:
                yield held
                held = []
    if held:
        yield held
