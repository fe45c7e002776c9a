"""ELLE (Qin et al. 2022): the model grows before each domain, recovers on remembered text, then reads some of it on."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kemem.continual.elle_rows import Kept, Remembering, add_prompt_, behind_prompt
from kemem.continual.growth import Difference, growth_error, scores
from kemem.continual.growth_depth import grow_depth_
from kemem.continual.growth_width import grow_width_
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import Batch, Objective, causal, mix
from kemem.training import Domain, History, Method, Recipe, train

GROWING = ("blocks", "width", "memories", "heads")
SHOWN = ("right", "wrong", "none")
PROBE = 8  # remembered rows by which growth is judged


@dataclass(eq=False)
class ELLE(Method):
    """Growth, recovery, replay and domain prompts.

    Qin et al. 2022. Before each domain but the first:
      1. growth, by `blocks`, then by `width`, `memories` and `heads` (see `grow_depth_` and `grow_width_`);
      2. if it grew, function-recovering warm-up: `recovery_steps` of training on remembered text alone, that of the
         domain before with the share `replay` of older ones;
    then training on the domain, the share `replay` of its rows replaced by remembered ones. Every row begins with its
    domain's prompt, one learned vector. At the end `remembered` rows of the domain are kept.

    blocks, width, memories, heads: how many are added each time; a text such as "2,2,1,1" has a number for each domain
    after the first, and 0 is added after them. Growth that a model refuses is refused before the first domain. A tied
    head without a place for growth's factor gets weights of its own (OLMo's). Without growth, replay and prompts this
    is plain training bit for bit. Everything follows from the seed, so that a run that resumes repeats growth and
    recovery and ends in the same numbers.

    shown: the prompt that `at` puts in front, and that may be set between evaluations: "right", that of the domain (of
    one not seen yet: the latest); "wrong", that of the domain before it (of the first: the latest; none as long as
    there is one domain); or "none". objective: that of the run, for recovery. grown: of each domain, what growth
    changed before recovery, on rows remembered of the domain before; recovered: the history of recovery.

    Differs from the authors' code: the prompt takes the place of the first token instead of standing behind it and
    pushing out the last, so that losses with the right, the wrong and no prompt are over the same targets; it is no
    symbol of the vocabulary; old domains are drawn equally often, not by how fast their loss falls; rows are replayed
    and not whole micro-batches; noise is on new entries only, unless `noise_everywhere`.
    `at` is for passes that begin at the beginning of a row, not for those that go on from a cache. Checkpoints on the
    disk hold the prompts, but `kemem.models.load` leaves out what is beside a model.
    """

    blocks: int | str = 0
    width: int | str = 0
    memories: int | str = 0
    heads: int | str = 0
    pick: str = "random"
    zeroed: bool = False
    copies: str = "random"
    noise: float = 0.01
    noise_everywhere: bool = False
    recovery_steps: int = 100
    recovery_rows: int = 16
    recovery_rate: float = 5e-4
    replay: float = 0.1
    remembered: int = 256
    prompts: bool = True
    shown: str = "right"
    seed: int = 0
    objective: Objective = causal
    grown: dict[str, Difference] = field(default_factory=dict, init=False, repr=False)
    recovered: dict[str, History] = field(default_factory=dict, init=False, repr=False)
    _kept: list[Kept] = field(default_factory=list, init=False, repr=False)
    _origins: dict[int, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)
    _names: list[str] = field(default_factory=list, init=False, repr=False)
    _reading: Remembering | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in GROWING:
            self._added(name, 1)
        for name, wrong, expected in (
            ("replay", not 0 <= self.replay < 1, "a share of the rows, in [0, 1)"),
            ("remembered", self.remembered < 1, "at least 1 row"),
            ("recovery_steps", self.recovery_steps < 0, "0 or more"),
            ("shown", self.shown not in SHOWN, f"one of {', '.join(SHOWN)}"),
        ):
            if wrong:
                raise BadInput(f"expected {name} to be {expected}; got {getattr(self, name)!r}; change it.")

    def before(self, model: Any, domain: Domain) -> None:
        known = [kept.name for kept in self._kept]
        place = known.index(domain.name) if domain.name in known else len(known)
        self._kept, self._names = self._kept[:place], [*known[:place], domain.name]  # again: from there on
        self._fits(domain)
        if place == 0:
            self._try(model)
        elif any(self._added(name, place) for name in GROWING):
            probe = self._kept[-1].batch(torch.arange(min(PROBE, len(self._kept[-1]))))
            before = scores(model, probe)
            self._grow_(model, place)
            self.grown[domain.name] = growth_error(before, model, probe)
            if self.recovery_steps:
                self.recovered[domain.name] = self._recover_(model, place)
        if self.prompts:
            add_prompt_(model, place, mix(self.seed, 2))
        self._reading = self._remembering(model, self._kept, place, mix(self.seed, 3))

    def _try(self, model: nn.Module) -> None:
        """Grows a copy of the model as often as the settings say, so that a refusal comes before long work."""
        texts = [given for name in GROWING if isinstance(given := getattr(self, name), str)]
        places = range(1, 1 + max([1, *(len(text.split(",")) for text in texts)]))
        if any(self._added(name, place) for name in GROWING for place in places):
            trial = copy.deepcopy(model)
            for place in places:
                self._grow_(trial, place)

    def _grow_(self, model: nn.Module, place: int) -> None:
        """Grows the model as it does before the domain at this place, counted from 0."""
        seed, origins = mix(self.seed, 0, place), self._origins.get(place - 1, ())
        if blocks := self._added("blocks", place):
            origins = grow_depth_(
                model, blocks=blocks, pick=self.pick, seed=seed, zeroed=self.zeroed, origins=origins
            )
        self._origins[place] = origins
        now = Memories(model)
        sizes = {"width": now.width, "memories": now.count, "heads": now.heads}
        if any(self._added(name, place) for name in sizes):
            grow_width_(
                model, **{name: size + self._added(name, place) for name, size in sizes.items()}, seed=seed,
                copies=self.copies, noise=self.noise, noise_everywhere=self.noise_everywhere, untie=True,
            )  # fmt: skip

    def _recover_(self, model: nn.Module, place: int) -> History:
        """Function-recovering warm-up, with an optimizer and random numbers of its own."""
        last = self._kept[-1]
        recipe = Recipe(
            steps=self.recovery_steps, batch_size=min(self.recovery_rows, len(last)),
            learning_rate=self.recovery_rate, warmup_steps=self.recovery_steps // 10, seed=mix(self.seed, 1, place),
        )  # fmt: skip
        reading = self._remembering(model, self._kept[:-1], place - 1, mix(self.seed, 4))
        return train(model, Domain(last.name, last), recipe, reading, objective=self.objective)

    def _remembering(self, model: Any, older: list[Kept], place: int, seed: int) -> Remembering:
        vocabulary = model.get_input_embeddings().num_embeddings
        return Remembering(older if self.replay else (), place, self.replay, self.prompts, vocabulary, seed)

    def rows(self, step: int, batch: Batch) -> Batch:
        assert self._reading is not None, "before comes first"
        return self._reading.rows(step, batch)

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        assert self._reading is not None, "before comes first"
        return self._reading.during(model, domain)

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        count = len(self._names)
        place = self._names.index(domain.name) if domain.name in self._names else count - 1
        if self.shown == "wrong":
            place = (place - 1) % count if count > 1 else -1
        if not self.prompts or self.shown == "none" or place < 0:
            return nullcontext()
        return behind_prompt(model, place)

    def after(self, model: nn.Module, domain: Domain) -> None:
        """Keeps rows of the domain, drawn without replacement."""
        draws = torch.Generator().manual_seed(mix(self.seed, 5, len(self._kept)) >> 1)
        chosen = torch.randperm(len(domain.blocks), generator=draws)[: self.remembered]
        rows = domain.blocks.batch(chosen.sort().values)
        self._kept.append(Kept(domain.name, {name: tensor.clone() for name, tensor in rows.items()}))

    def _added(self, name: str, place: int) -> int:
        """How much of it is added before the domain at this place, counted from 0."""
        given = getattr(self, name)
        try:
            each = [given] * place if isinstance(given, int) else [int(part) for part in given.split(",")]
            if min(each) < 0:
                raise ValueError
        except ValueError:
            raise BadInput(
                f"expected {name} to be 0 or more, or a number for each domain after the first, such as '2,2,1,1'; "
                f"got {given!r}; change it."
            ) from None
        return each[place - 1] if place <= len(each) else 0

    def _fits(self, domain: Domain) -> None:
        """Refuses rows that cannot stand in one batch with those remembered."""
        row = domain.blocks.batch(torch.tensor([0]))
        for kept in self._kept:
            found, now = ({name: tuple(t.shape[1:]) for name, t in rows.items()} for rows in (kept.rows, row))
            if found != now:
                raise BadInput(
                    f"expected rows like those remembered of {kept.name}, {found}; got {now} in {domain.name}; cut all "
                    "domains to one length."
                )
