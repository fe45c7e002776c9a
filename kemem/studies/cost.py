"""What training costs in arithmetic, and how much of a card's arithmetic it gets (MFU)."""

from __future__ import annotations

import re

from kemem.runs import Row
from kemem.studies.cards import CARDS

PEAK = {name: 1e12 * card.half for name, card in CARDS.items()}
"""Dense 16-bit matrix products a second, in FLOP/s, of a card whose name has this word; from NVIDIA's data sheets."""


def flops_per_token(parameters: int, layers: int, width: int, length: int) -> int:
    """Floating-point operations that one token costs in training, forward and backward.

        6 P + 12 L D T

    P parameters, each in one product forward and two backward, two operations each; an embedding that is also the
    output projection (as in all models trained here) is counted once, as the latter. 12 L D T is attention: scores
    and sums over T keys, counted without the half that a causal mask would allow to leave out. Norms, activations
    and the softmax are not counted.
    """
    return 6 * parameters + 12 * layers * width * length


def peak(device: str, precision: str) -> float | None:
    """The card's FLOP/s at this precision; None for a processor, an unknown card, or float32, which has many rates."""
    if precision != "bfloat16":
        return None
    words = set(re.split(r"[\s-]+", device))
    return next((rate for name, rate in PEAK.items() if name in words), None)


def training(row: Row) -> dict[str, float | None]:
    """Of chapter 02's row: tokens a second, FLOP a token, FLOP/s, and MFU = FLOP/s over the card's peak (or None)."""
    setup, found = row.settings["setup"], row.values
    seconds = row.provenance.get("training_seconds", row.provenance["seconds"])
    each = flops_per_token(found["parameters"], setup["layers"], setup["width"], setup["length"])
    speed = found["tokens"] / seconds
    limit = peak(row.provenance["device"], setup["precision"])
    return {
        "tokens_per_second": speed, "flops_per_token": each, "flops_per_second": speed * each,
        "mfu": None if limit is None else speed * each / limit,
    }  # fmt: skip
