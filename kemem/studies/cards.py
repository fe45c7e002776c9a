"""Cards by name: what their makers publish, for forecasts of hours and shares of what was possible (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

from kemem.errors import BadInput

MFU = 0.35
"""Share of a card's products a second that a forecast takes for granted; what was had is in the provenance of rows."""


@dataclass(frozen=True)
class Card:
    """Dense matrix products a second in TFLOP/s, of 16-bit and of 32-bit floats, and memory in GB (1e9 bytes)."""

    name: str
    half: float
    single: float
    memory: float
    bfloat16: bool = True
    """Whether its 16-bit products may be of bfloat16; else they are of float16, which is not used here."""

    def peak(self, precision: str) -> float:
        """FLOP/s for training at this precision, "bfloat16" or "float32" (or "float64", taken as the latter)."""
        return 1e12 * (self.half if precision == "bfloat16" and self.bfloat16 else self.single)


CARDS = {
    card.name: card
    for card in (
        Card("H200", 989.0, 67.0, 141.0), Card("H100", 989.0, 67.0, 80.0), Card("A100", 312.0, 19.5, 80.0),
        Card("L40S", 362.0, 91.6, 48.0), Card("L4", 121.0, 30.3, 24.0), Card("A10", 125.0, 31.2, 24.0),
        Card("V100", 125.0, 15.7, 32.0, bfloat16=False), Card("T4", 65.0, 8.1, 16.0, bfloat16=False),
    )
}  # fmt: skip
"""NVIDIA's data sheets: without sparsity, float32 without TF32, the SXM form where there are two."""
DEFAULT = "H100"


def card(name: str) -> Card:
    """The card of this name, in any case of letters. Refuses others, listing the known."""
    found = CARDS.get(name.upper())
    if found is None:
        raise BadInput(f"a card is one of {', '.join(CARDS)}; got {name!r}; choose the one that is nearest.")
    return found
