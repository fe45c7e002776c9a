"""Tables that the papers print, as numbers: shown beside ours, never fitted, never mixed with rows."""

from __future__ import annotations

from dataclasses import dataclass

STAGES = (118 / 738, 369 / 738, 554 / 738, 1.0)
"""Kim et al. 2025: steps 118k, 369k, 554k, 738k of OLMo-1B, as shares of the last."""


@dataclass(frozen=True)
class Printed:
    """A row of tables 1 and 2 of Kim et al. 2025, at STAGES. A, F and P in percent; K and P after the run."""

    setting: str
    acquisition: tuple[float, ...]
    forgetting: tuple[float, ...]
    knowledge: tuple[float, ...]
    performance: tuple[float, ...]

    @property
    def knowledge_before(self) -> tuple[float, ...]:
        """K before the run, which is not printed: K / (1 - A), A being relative to |K before|."""
        return tuple(k / (1 - a / 100) for k, a in zip(self.knowledge, self.acquisition, strict=True))

    @property
    def performance_before(self) -> tuple[float, ...]:
        """P before the run, which is not printed: P / (1 - F)."""
        return tuple(p / (1 - f / 100) for p, f in zip(self.performance, self.forgetting, strict=True))


KIM = {
    "baseline": Printed(
        "batch 128, rate 4e-4, 1 epoch", (25.2, 24.8, 21.4, 18.8), (10.5, 12.9, 17.0, 19.5),
        (-0.281, -0.280, -0.293, -0.301), (54.0, 54.6, 52.8, 52.0),
    ),
    "batch x 16": Printed(
        "batch 2048", (8.9, 7.8, 1.0, -92.2), (2.2, 3.5, 5.5, 44.9),
        (-0.342, -0.344, -0.368, -0.714), (59.0, 60.5, 60.1, 35.6),
    ),
    "rate x 2.5": Printed(
        "rate 1e-3", (17.3, 15.7, 10.7, 5.0), (16.7, 20.3, 23.0, 23.5),
        (-0.310, -0.314, -0.332, -0.353), (50.3, 49.9, 49.0, 49.4),
    ),
    "rate / 4": Printed(
        "rate 1e-4", (21.6, 23.0, 23.7, 22.6), (2.4, 3.2, 4.6, 7.3),
        (-0.294, -0.287, -0.284, -0.287), (58.9, 60.7, 60.6, 59.9),
    ),
    "3 epochs": Printed(
        "3 epochs", (28.8, 28.0, 25.9, 24.5), (14.8, 17.4, 20.1, 23.1),
        (-0.267, -0.268, -0.276, -0.280), (51.4, 51.7, 50.8, 49.7),
    ),
}  # fmt: skip
"""Tables 1 and 2: continual learning on PubMed, one factor changed at a time."""
