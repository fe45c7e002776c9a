"""DAS: learning a domain while what mattered before is hard to move, and is told apart from what is new."""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from kemem.continual.contrast import (
    Passed,
    base_path,
    contrastive_loss,
    draws,
    drops,
    last_hidden,
    mispaired,
    present,
    representation,
    restored,
)
from kemem.continual.gates import SITES, Units, gated, ones
from kemem.continual.importance import (
    DESCRIBED,
    NORMALISATIONS,
    Importance,
    Measuring,
    Released,
    domain_importance,
    emax,
    general_importance,
    normalised,
    random_importance,
)
from kemem.continual.softmask import (
    PLACEMENTS,
    columns_fit,
    mask_gradients_,
    mask_update_,
    multipliers,
)
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import Batch, Causal, Objective, causal, mix
from kemem.training import Domain, Method

CONTRASTS = ("full", "domain", "none")
TWIN = 4  # what the seed of the contrast's dropout is mixed with; 0 to 3 are those of measuring


@dataclass(eq=False)
class DAS(Method):
    """Soft-masking and contrast: Ke et al. 2023, "Continual Pre-training of Language Models".

    Before the first domain I0, the importance of every head and neuron for general knowledge, is measured by a proxy;
    after each domain t its importance It for that. Each is normalised; the elementwise maximum of all so far is what
    is known. In every domain (in the first with I0)
        loss = L + weight * L_con,    the change of what produces a unit times 1 - I
    L being the domain's own loss. The modules `importance`, `softmask` and `contrast` have the equations.

    normalisation: one of NORMALISATIONS. placement: of the mask: on the "update", weight decay included, or on the
    "gradient", where AdamW undoes nearly all of it by dividing by the size of gradients.
    soft_mask: without it the contrast has no previous view either. initialisation: whether there is an I0.
    contrast: "full", "domain" or "none". In "domain" the full view and its twin have all gates at 1 - I: a guess at an
    ablation that the paper names. detach: no gradient through the previous view.
    importance: "own"; "random", drawn anew after each domain and not normalised; or a function (model, domain) ->
    `Units`, asked before the first domain and after each. objective: the one that training is given.
    samples, batch_size: of each measuring, see `Measuring`. noise: of the proxy, where a model has no dropout.
    before_activation: memories are gated where the authors do it, in measuring and in the contrast.
    others: settings that are no numbers, as a text by which a resumed run is told from another; filled in.

    Passes of each text a step: 3 where ids are not corrupted, for then the loss's own pass is the full view; 4 where
    they are; one less in models without dropout, where the twin is the same.
    The contrast's negatives are the texts of one micro-batch on one device, so it depends on how a step is cut; all
    else does not. weight = 0 (or no contrast) with importances of 0 (or no soft mask) is plain training bit for bit.

    Differs from the paper in the mask's placement and in tanh_clip, both settings; from the released code also in what
    `Released` lists.
    """

    normalisation: str = "tanh_clip"
    placement: str = "update"
    soft_mask: bool = True
    initialisation: bool = True
    contrast: str = "full"
    weight: float = 1.0
    temperature: float = 0.05
    detach: bool = False
    importance: str | Importance = "own"
    objective: Objective = causal
    samples: int | float = 1000
    batch_size: int = 16
    noise: float = 0.1
    before_activation: bool = False
    seed: int = 0
    released: Released = DESCRIBED
    others: str = field(default="", repr=False)
    known: Units | None = field(default=None, init=False, repr=False)
    """The importances so far, in [0, 1]; None before the first."""
    domains: int = field(default=0, init=False, repr=False)
    """How many were finished."""
    _masks: dict[str, Tensor] | None = field(default=None, init=False, repr=False)
    _passed: Passed = field(default_factory=Passed, init=False, repr=False)
    _drops: bool = field(default=False, init=False, repr=False)
    _at: tuple[int, int] = field(default=(0, 0), init=False, repr=False)

    def __post_init__(self) -> None:
        for name, known in (
            ("normalisation", NORMALISATIONS),
            ("placement", PLACEMENTS),
            ("contrast", CONTRASTS),
        ):
            self._refuse(name, getattr(self, name) not in known, f"one of {', '.join(known)}")
        self._refuse("weight", not 0 <= self.weight < math.inf, "0 or more")
        self._refuse("temperature", not 0 < self.temperature < math.inf, "above 0")
        self._refuse("noise", not 0 <= self.noise < 1, "a share, in [0, 1)")
        named = isinstance(self.importance, str)
        self._refuse(
            "importance", named and self.importance not in ("own", "random"), "own, random or a function"
        )
        missing = self.contrast == "domain" and not self.soft_mask
        self._refuse("contrast", missing, "full or none without a soft mask, for nothing is measured then")
        self._how(0)
        given = self.importance if named else getattr(self.importance, "__qualname__", repr(self.importance))
        given = re.sub(r" at 0x[0-9a-f]+", "", str(given))  # an address is another one in the next process
        self.others = f"importance={given}, {self.released}"
        # Set on the instance and only where needed: the loop copies all weights at every step of a method that
        # overrides `updated`.
        if self.soft_mask and self.placement == "update":
            vars(self)["updated"] = self._updated

    def _refuse(self, name: str, wrong: bool, expected: str) -> None:
        if wrong:
            raise BadInput(
                f"expected {name} to be {expected}; got {getattr(self, name)!r}; change this setting."
            )

    @classmethod
    def as_released(cls, **changes: Any) -> DAS:
        """The method as the released code runs it, all of DEFECTS and its numbers; `changes` are other settings.

        Gated families need before_activation=False and models without dropout see no two views in its contrast.
        """
        switches = Released(**{switch.name: True for switch in fields(Released)})
        numbers = {"samples": 10_000, "batch_size": 100, "temperature": 0.05, "weight": 1.0, "detach": False}
        others = {"normalisation": "paper_abs", "placement": "gradient", "before_activation": True}
        return cls(**{**numbers, **others, "released": switches, **changes})

    # ------------------------------------------------------------------ once a domain
    def before(self, model: nn.Module, domain: Domain) -> None:
        memories = Memories(model)
        base_path(model)
        with gated(model, ones(memories), before_activation=self.before_activation):
            pass  # what cannot be is refused before anything is measured
        if self.released.head_columns:
            columns_fit(memories)
        self._masks, self._drops = None, drops(model)
        if self.soft_mask and self.initialisation and self.domains == 0 and self.known is None:
            self.known = self._measured(model, domain, general=True)

    def after(self, model: nn.Module, domain: Domain) -> None:
        self._masks = None
        self.domains += 1
        if self.soft_mask:
            found = self._measured(model, domain, general=False)
            self.known = found if self.known is None else emax(self.known, found)

    def _measured(self, model: nn.Module, domain: Domain, *, general: bool) -> Units:
        how = self._how(self.domains)
        if self.importance == "random":
            return random_importance(model, how.seed)
        if not isinstance(self.importance, str):
            found = self.importance(model, domain)
        elif general:
            found = general_importance(model, domain.blocks, self.noise, how)
        else:
            found = domain_importance(model, domain.blocks, self.objective, how)
        return normalised(found, self.normalisation)

    def _how(self, number: int) -> Measuring:
        """number: of the domains finished, so that no two draw alike."""
        seed = mix(self.seed, number)
        return Measuring(self.samples, self.batch_size, seed, self.before_activation, self.released)

    # ------------------------------------------------------------------ once a step
    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        """Makes the masks, and keeps what passes where the loss's own pass is a view of the contrast."""
        if self._masks is None:  # not before: a run that is resumed gets `known` back after that
            spared = self.known if self.soft_mask else None
            columns = self.released.head_columns
            self._masks = {} if spared is None else multipliers(model, spared, head_columns=columns)
        if self.weight and self.contrast == "full" and isinstance(self.objective, Causal):
            return self._passed.watching(model)
        return nullcontext()

    def rows(self, step: int, batch: Batch) -> Batch:
        self._at = (step, 0)
        return batch

    def loss(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        step, part = self._at
        self._at = (step, part + 1)
        if (step, part) == (1, 0):
            self._fits(batch)
        if not self.weight or self.contrast == "none":
            return loss
        seen = self._passed.take(batch)
        # initial_seed is what the loop seeded this step with: it tells runs and processes apart
        numbers = (self.seed, TWIN, step, part, torch.initial_seed())
        with draws(loss.device, *numbers):
            full, twin, previous = self._views(model, batch, seen)
        self._passed.take(batch)  # those passes were watched too: let go of them
        if self.released.other_sentences:
            full, twin = mispaired(full, twin)
        return loss + self.weight * contrastive_loss(full, twin, previous, self.temperature)

    def _views(
        self, model: nn.Module, batch: Batch, seen: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        clean, tokens = restored(batch), present(batch)

        def view(gates: Units | None = None) -> Tensor:
            placed = {"before_activation": self.before_activation}
            with nullcontext() if gates is None else gated(model, gates, **placed):
                return representation(last_hidden(model, clean), tokens)

        known = self.known if self.soft_mask else None
        own = None
        if known is not None and self.contrast == "domain":
            own = known.map(lambda importance: 1 - importance)
        full = view(own) if seen is None else representation(seen, tokens)
        twin = view(own) if self._drops else full
        if known is None:
            return full, twin, None
        with torch.no_grad() if self.detach else nullcontext():
            return full, twin, view(known)

    def _fits(self, batch: Batch) -> None:
        corrupted = not torch.equal(restored(batch)["input_ids"], batch["input_ids"])
        if corrupted and isinstance(self.objective, Causal):
            raise BadInput(
                "expected objective to be the one that training is given; got the causal one, but the batch's ids are "
                "not its labels; give the masked objective to both."
            )

    def gradients(self, model: nn.Module) -> None:
        if self.placement == "gradient":
            mask_gradients_(model, self._masks or {})

    def _updated(self, model: nn.Module, previous: dict[str, Tensor]) -> None:
        mask_update_(model, previous, self._masks or {})

    # ------------------------------------------------------------------ a run that is broken off
    def state(self) -> dict[str, Tensor]:
        known = {} if self.known is None else self.known.tensors()
        return {"domains": torch.tensor(self.domains), **known}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.domains = int(state["domains"])
        if SITES[0] in state:
            self.known = Units(*(state[site] for site in SITES))


ABLATIONS: dict[str, dict[str, Any]] = {
    "without soft mask": {"soft_mask": False},
    "random": {"importance": "random"},
    "without initialisation": {"initialisation": False},
    "without contrast": {"contrast": "none"},
    "domain-specific": {"contrast": "domain"},
}
"""Settings of the paper's ablations."""

DEFECTS: dict[str, dict[str, Any]] = {
    **{switch.name: {"released": Released(**{switch.name: True})} for switch in fields(Released)},
    "absolute": {"normalisation": "paper_abs"},
    "gradient": {"placement": "gradient"},
}
"""Settings that turn on what the released code does differently, each alone."""
