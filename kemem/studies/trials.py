"""Chapter 10: what is tried of each method that learns domains in a row, by one rule for all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kemem.studies.courses import Value

FULL = (3e-4, 1e-3)
"""Learning rates where the whole model learns and a setting of the method's own is tried with each."""
BESIDE = (3e-3, 1e-2)
"""The same where only modules beside the model learn."""
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Rates on which a search goes on."""


@dataclass(frozen=True)
class Setting:
    """What is chosen of a method."""

    rate: float
    changes: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True)
class Tried:
    """What is tried of a method: each value of a setting of its own with each learning rate; or rates alone.

    further: values below and above those, which are tried where the best lies at that end; None where there is none.
    """

    label: str
    """As the chapter names it."""
    setting: str = ""
    values: tuple[Value, ...] = ()
    rates: tuple[float, ...] = FULL
    further: tuple[Value | None, Value | None] = (None, None)

    def trials(self) -> list[Setting]:
        if not self.setting:
            return [Setting(rate) for rate in self.rates]
        return [self.at(rate, value) for value in self.values for rate in self.rates]

    def at(self, rate: float, value: Value) -> Setting:
        return Setting(rate, ((self.setting, value),))

    def beyond(self, best: Setting) -> list[Setting]:
        """Where the best of `trials` lies at an end: a rate beyond it, and a value beyond it, each by itself."""
        found = []
        if best.rate == min(self.rates):
            found.append(replace(best, rate=max(rate for rate in LADDER if rate < best.rate)))
        if best.rate == max(self.rates):
            found.append(replace(best, rate=min(rate for rate in LADDER if rate > best.rate)))
        for value, end in zip(self.further, (self.values[:1], self.values[-1:]), strict=True):
            if value is not None and best.changes == ((self.setting, *end),):
                found.append(self.at(best.rate, value))
        return found


TRIED: dict[str, Tried] = {
    "ncl": Tried("NCL", rates=(1e-4, 2e-4, 3e-4, 1e-3)),
    "one": Tried("One", rates=(6e-4, 1e-3, 2e-3, 3e-3)),
    "pool": Tried("Pool", rates=(1e-3, 2e-3, 3e-3, 6e-3)),
    "ewc": Tried("EWC", "strength", (5000.0, 50_000.0), further=(500.0, 500_000.0)),
    "kd": Tried("KD", "strength", (1.0, 10.0), further=(0.1, 100.0)),
    "replay": Tried("replay", "share", (0.25, 0.5), further=(0.1, 0.75)),
    "derpp": Tried("DER++", "beta", (0.5, 1.0), further=(0.25, 2.0)),
    "das": Tried("DAS", "normalisation", ("tanh_clip", "rank")),
    "hat": Tried("HAT", "sparsity", (0.1, 0.75), further=(0.0, 3.0)),
    "hat-all": Tried("HAT-All", "sparsity", (0.1, 0.75), further=(0.0, 3.0)),
    "hat-adapter": Tried("HAT-Adapter", "sparsity", (0.1, 0.75), BESIDE, (0.0, 3.0)),
    "supsup": Tried("SupSup", rates=(3e-3, 1e-2, 3e-2, 1e-1)),
    "adapter-sequential": Tried("adapter, sequential", "reduction", (1, 4), BESIDE, (None, 16)),
    "adapter-parallel": Tried("adapter, parallel", "reduction", (1, 4), BESIDE, (None, 16)),
    "adapters-one": Tried("One, adapters", "reduction", (1, 4), BESIDE, (None, 16)),
    "prompt": Tried("prompt", "tokens", (8, 24), (1e-2, 1e-1), (4, 32)),
    "lora": Tried("LoRA", "rank", (4, 16), (1e-3, 3e-3), (2, 48)),
    "demix": Tried("DEMIX", "reduction", (1, 4), BESIDE, (None, 16)),
    "bcl": Tried("BCL", "reduction", (1, 4), BESIDE, (None, 16)),
    "classic": Tried("CLASSIC", "reduction", (1, 4), BESIDE, (None, 16)),
    "cpt": Tried("CPT", "placement", ("parallel", "sequential"), BESIDE),
    "elle": Tried("ELLE", "replay", (0.25, 0.5), further=(0.1, 0.75)),
    "woken": Tried("waking", "fraction", (0.25, 0.5), further=(0.1, 0.75)),
}
"""Each with four trials, and one or two more where the best of these lies at an end."""
SQUARE: dict[str, Tried] = {
    f"{name}, {by}": Tried(f"{what}, {by}", "strength", values, further=further)
    for by in ("parameter", "unit")
    for name, what, values, further in (
        ("ewc", "penalty", (5000.0, 50_000.0), (500.0, 500_000.0)),
        ("fisher-mask", "mask", (0.8, 1.0), (0.5, None)),
    )
}
"""One importance, the Fisher information, by parameter or averaged over units, as a penalty or as a mask."""


def of_rates(
    full: tuple[float, ...], beside: tuple[float, ...], prompt: tuple[float, ...]
) -> dict[str, Tried]:
    """Trials of learning rates alone, with each method's own settings as they begin.

    full: where the whole model learns; beside: where modules beside it do; prompt: where vectors before the text do.
    """
    rates = {"prompt": prompt} | dict.fromkeys(MODULES, beside)
    return {
        name: Tried(tried.label, rates=rates.get(name, full)) for name, tried in {**TRIED, **SQUARE}.items()
    }


MODULES = (
    "hat-adapter", "supsup", "adapter-sequential", "adapter-parallel", "adapters-one", "lora", "demix", "bcl",
    "classic", "cpt",
)  # fmt: skip
"""Methods with which only modules beside the model learn, or masks of its weights."""
ON_CARD = of_rates((1e-4, 3e-4), (1e-3, 3e-3), (1e-2, 1e-1))
"""Two trials each, for models about a hundred times as large."""
PUBLISHED = of_rates((1e-4,), (1e-4,), (1e-4,))
"""The one rate of the released code of Ke et al. 2023 for all methods, with their own settings as they begin."""
