"""Random prefixes: texts of a model's own behind which a prompt is read, so that a key holds in any context."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kemem.editing.generation import continued, drawn
from kemem.editing.places import leading
from kemem.editing.prompts import PLAIN

WORDS = ("The", "Therefore", "Because", "I", "You")


def sampled(
    model: nn.Module,
    tokenizer: Any,
    *,
    words: Sequence[str] = WORDS,
    length: int = 10,
    top_k: int = 5,
    seed: int = 0,
) -> tuple[str, ...]:
    """Templates: the bare prompt, and behind each of these words a text that the model goes on with from it.

    Meng et al. 2023, app. B.3: one text a word, of `length` tokens with its own, drawn from the `top_k` likeliest
    tokens; braces become spaces, and ". {}" is added.
    Differs from the released code in being drawn from a seed, anew for every model, and not kept for the process.
    """
    start = leading(tokenizer)
    rows = [(*start, *tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words]
    draws = torch.rand(len(rows), length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def choose(scores: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        return drawn(scores, draws[list(numbers), step], top_k)

    counts = [max(0, length + len(start) - len(row)) for row in rows]
    found = continued(model, rows, counts, choose)
    texts = [
        tokenizer.decode([*row[len(start) :], *own], skip_special_tokens=True)
        for row, own in zip(rows, found, strict=True)
    ]
    return (PLAIN, *(text.replace("{", " ").replace("}", " ") + ". {}" for text in texts))
