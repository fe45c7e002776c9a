"""What a model says next, of many batches of embeddings; where its blocks stay on the disk, side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem.memory import Memories
from kemem.models.streaming import head_alone, streamed, sweep, together


def next_token(model: nn.Module, embedded: Float[Tensor, "B T D"]) -> Float[Tensor, "B V"]:
    """Probabilities of the token after the last one; at least in float32."""
    return _shares(model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits)


def answers(
    memories: Memories,
    sizes: Sequence[int],
    given: Callable[[int], Tensor],
    begin: Callable[[int], object],
    answer: int,
) -> Float[Tensor, " N"]:
    """The probability of one token after every row of some batches; float64 on the CPU, one batch after the other.

    sizes: of each batch its rows x tokens. given(i): its embeddings. begin(i): batch i goes on now, whose hooks run
    then: once in memory, and before every block from the disk, where each block is read once for as many batches as
    there is room for.
    """
    model, found = memories.model, list[Tensor]()
    if streamed(model) is None:
        for number in range(len(sizes)):
            begin(number)
            found.append(next_token(model, given(number))[:, answer])
        return torch.cat(found).cpu().double()
    for group in together(sizes, memories):
        calls = [{"inputs_embeds": given(number), "use_cache": False} for number in group]

        def turn(number: int, first: int = group.start) -> None:
            begin(first + number)

        def read(number: int, output: Any) -> None:
            with head_alone(model, output) as logits:
                found.append(_shares(logits(output.last_hidden_state[:, -1:]))[:, answer])

        sweep(memories, calls, before=turn, after=read)
    return torch.cat(found).cpu().double()


def _shares(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B V"]:
    logits = logits[:, -1]
    return torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
