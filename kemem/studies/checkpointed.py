"""Chapter 15: the checkpoints of one model that are compared, opened once, and the facts that all of them know.

Facts are judged by what a model says before an edit as well as after it. So that a difference between stages is none of
the facts, every stage is asked for the same ones, and each of them is known at every stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from kemem import editing
from kemem.corpora import Blocks
from kemem.editing import Request
from kemem.editing.places import leading
from kemem.errors import BadInput
from kemem.evaluation import encode
from kemem.studies import bench, checkpoints, factual, many, pretraining
from kemem.studies.bench import Bench
from kemem.studies.lab import Lab
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import blocks, read
from kemem.studies.sources import Told
from kemem.world import World

MIXTURE = "mixture"


@dataclass(frozen=True)
class Compared:
    """Stages of one model, and the text and facts that they are all looked at with."""

    model: Pretraining
    steps: tuple[int, ...]
    known: bool = True
    """Whether facts must be known: said by every one of these stages, unedited. False: any facts are taken."""
    draws: int = 4
    """Of text, and of facts: disjoint ones, by whose differences an error is told."""
    rows: int = 64
    """Of text in a draw."""
    subjects: int = 16
    """In a draw of facts: one fact of each, and no subject in two draws."""
    ordinary: int = 600
    """Rows of training text, all kinds of it, over which moments of keys are measured."""
    seed: int = 0

    def __post_init__(self) -> None:
        missing = [step for step in self.steps if step not in self.model.steps]
        if missing or not self.steps:
            raise BadInput(
                f"expected stages among the steps {', '.join(map(str, self.model.steps))}; got "
                f"{', '.join(map(str, missing)) or 'none'}; choose of those."
            )
        if self.draws < 2:
            raise BadInput(f"expected two draws or more, to tell an error by; got {self.draws}; ask for two.")


@dataclass
class Stages:
    """The compared stages, opened when they are asked for; one model is in memory at a time, its bench with it."""

    lab: Lab
    of: Compared
    _benches: dict[int, Bench] = field(default_factory=dict, init=False, repr=False)
    _known: dict[str, list[Request]] = field(default_factory=dict, init=False, repr=False)
    _asked: dict[tuple[str, int], list[Request]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def world(self) -> World:
        return factual.world(self.of.model)

    @cached_property
    def sources(self) -> dict[str, str]:
        """The model's own corpus and, where that is a mixture, its parts, by short names."""
        parts = pretraining.sources(self.of.model.setup.corpus)
        return {MIXTURE: self.of.model.setup.corpus, **parts}

    def say(self, provenance: dict[str, Any]) -> None:
        """What a row is told of the text behind it."""
        text = read(self.of.model.setup.corpus)
        provenance["corpus"] = {
            "spec": self.of.model.setup.corpus,
            "digest": text.digest,
            "versions": text.versions,
        }

    def model(self, step: int) -> tuple[nn.Module, Any]:
        net, tok, _ = checkpoints.load(self.lab, self.of.model, step)
        return net, tok

    def bench(self, step: int) -> Bench:
        """What an edit needs of a stage: its moments in all layers, and contexts of its own."""
        if step not in self._benches:
            self._benches.clear()
            net, tok = self.model(step)
            layers = range(self.of.model.setup.layers)
            self._benches[step] = bench.made(
                net, tok, Told(self.world), layers, self.ordinary, seed=self.of.seed
            )
        return self._benches[step]

    @cached_property
    def ordinary(self) -> list[list[int]]:
        """Rows of the text that the model has learned, at even distances."""
        every = blocks(self.lab, self.of.model.setup, self.sources[MIXTURE], "train").ids
        count = min(self.of.ordinary, len(every))
        return every[torch.arange(count) * len(every) // count].tolist()

    def rows(self, name: str) -> list[Blocks]:
        """Disjoint rows of held-out text, `draws` parts of it and one more, which nothing is chosen on."""
        every = blocks(self.lab, self.of.model.setup, self.sources[name], "test")
        parts = self.of.draws + 1
        if len(every) < parts:
            raise BadInput(
                f"expected {parts} rows of {name} or more, a part for each draw; got {len(every)}; give more text."
            )
        found = []
        for part in range(parts):
            chosen = torch.arange(part, len(every), parts)[: self.of.rows]
            found.append(Blocks(every.ids[chosen], every.document[chosen]))
        return found

    def common(self, part: str, *, seed: int = 0) -> list[Request]:
        """Facts that all compared stages know, each subject once first. seed: of the objects that are to be written.

        Facts and their order are those of the settings' own seed, but for those that no longer fit the context.
        """
        if part not in self._known:
            asked = self.asked(part, self.of.seed)
            if self.of.known:
                for step in self.of.steps:
                    net, tok = self.model(step)
                    asked = knowing(net, tok, asked)
            self._known[part] = asked
        own = {(r.subject, r.relation): r for r in self.asked(part, seed)}
        order = [(r.subject, r.relation) for r in many.spread(self._known[part])]
        return [replace(own[fact], case_id=i) for i, fact in enumerate(order) if fact in own]

    def asked(self, part: str, seed: int) -> list[Request]:
        """Requests of a part that can be scored in full, whether known or not: with others to score by, and short."""
        if (part, seed) not in self._asked:
            _, tok = self.model(self.of.steps[-1])
            longest = self.of.model.setup.length
            self._asked[part, seed] = [
                r
                for r in editing.requests(self.world.counterfact(None, seed, part=part))
                if r.neighbours and r.paraphrases and length(tok, r) <= longest
            ]
        return self._asked[part, seed]

    def facts(self, count: int, part: str = "reported", *, seed: int = 0) -> list[Request]:
        """The first `count` of them; refused where there are fewer."""
        found = self.common(part, seed=seed)
        if len(found) < count:
            raise BadInput(
                f"expected {count} {part} facts that all compared stages know; got {len(found)}; ask for fewer, or "
                "leave out the earliest stage."
            )
        return found[:count]

    def drawn(self) -> list[list[Request]]:
        """The draws of facts: `subjects` of them each, of different subjects."""
        seen: set[str] = set()
        own = []
        for r in self.common("reported"):
            if r.subject not in seen:
                seen.add(r.subject)
                own.append(r)
        wanted = self.of.draws * self.of.subjects
        if len(own) < wanted:
            raise BadInput(
                f"expected facts of {wanted} subjects that all compared stages know; got {len(own)}; ask for fewer."
            )
        return [own[draw : wanted : self.of.draws] for draw in range(self.of.draws)]


def length(tok: Any, r: Request) -> int:
    """Tokens of the longest text that a request is scored by."""
    prompts = (r.text, *r.paraphrases, *r.neighbours)
    texts = [(prompt, f" {target}") for prompt in prompts for target in (r.new, r.true or "")]
    return max(len(encode(tok, *text, start=leading(tok)).ids) for text in texts)


def knowing(model: nn.Module, tok: Any, requests: Sequence[Request]) -> list[Request]:
    """Those whose true object the model says by itself, every token of it the likeliest."""
    if not requests:
        return []
    said = editing.generated_success(model, tok, [replace(r, new=r.true or "") for r in requests])
    return [r for r, says in zip(requests, said, strict=True) if says]
