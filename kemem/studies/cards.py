"""Cards by name: what their makers publish, for forecasts of hours and shares of what was possible (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

from kemem.errors import BadInput

MFU = 0.35
"""Share of a card's products a second that a forecast takes for granted; what was had is in the provenance of rows."""


@dataclass(frozen=True)
class Card:
    """Dense matrix products a second in TFLOP/s by the number type of their factors, and memory in GB (1e9 bytes)."""

    name: str
    half: float
    """Of bfloat16; of float16, which is not used here, where `bfloat16` is False."""
    single: float
    tf32: float | None
    """Of float32 rounded to TF32; None before NVIDIA's Ampere."""
    double: float
    memory: float
    bfloat16: bool = True

    def peak(self, precision: str) -> float:
        """FLOP/s at this precision, "bfloat16", "tf32", "float32" or "float64"; what a card lacks, in float32."""
        of = {"bfloat16": self.half if self.bfloat16 else None, "tf32": self.tf32, "float64": self.double}
        return 1e12 * (of.get(precision) or self.single)


CARDS = {
    card.name: card
    for card in (
        Card("H200", 989.0, 67.0, 494.5, 67.0, 141.0), Card("H100", 989.0, 67.0, 494.5, 67.0, 80.0),
        Card("A100", 312.0, 19.5, 156.0, 19.5, 80.0), Card("L40S", 362.0, 91.6, 183.0, 91.6 / 64, 48.0),
        Card("L4", 121.0, 30.3, 60.0, 30.3 / 64, 24.0), Card("A10", 125.0, 31.2, 62.5, 31.2 / 64, 24.0),
        Card("V100", 125.0, 15.7, None, 7.8, 32.0, bfloat16=False),
        Card("T4", 65.0, 8.1, None, 8.1 / 32, 16.0, bfloat16=False),
    )
}  # fmt: skip
"""NVIDIA's data sheets: without sparsity, the SXM form where there are two. float64: with tensor cores where there are
such; where a sheet is silent, the share of float32 that the whitepapers of these architectures give."""
DEFAULT = "H100"


def card(name: str) -> Card:
    """The card of this name, in any case of letters. Refuses others, listing the known."""
    found = CARDS.get(name.upper())
    if found is None:
        raise BadInput(f"a card is one of {', '.join(CARDS)}; got {name!r}; choose the one that is nearest.")
    return found
