"""Low-rank updates of a frozen model's projections, by the peft library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kemem import trace
from kemem.continual import beside
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.objective import mix
from kemem.training import Domain, Method

PARTS = ("attention", "feed_forward")
ADAPTER = "default"  # what peft calls the only update in each of its layers


@dataclass(eq=False)
class LoRA(Method):
    """The model is frozen and a low-rank update of its projections learns instead.

    Hu et al. 2022:  W + (alpha / rank) B A        A [rank in], drawn by peft;  B [out rank], 0 at first
    for every projection of the attention and of the feed-forward layer (one update where a family fuses several in one
    matrix). parts: "attention", "feed_forward", or both with a comma between. All domains share one set, or have one
    each; a domain without one of its own is shown with the newest.

    The library peft computes the layers. They replace the model's own only while it is trained or used: outside of
    `during` and `at` it is the bare model with A and B beside it (`lora`, or `lora0`, `lora1`, ... in `model.beside`),
    so that a folder saved on the way opens with from_pretrained. Inside of them `Memories` refuses the model, whose
    projections are then no plain matrices. `merge_` writes an update into the weights.
    Refused: without peft; a rank below 1; what is no part.
    """

    rank: int = 8
    alpha: float = 16.0
    parts: str = ",".join(PARTS)
    per_domain: bool = False
    seed: int = 0
    _sets: beside.Sets = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadInput(f"expected a rank of at least 1; got {self.rank}; 8 is usual.")
        asked = self.parts.split(",")
        if not set(asked) <= set(PARTS) or len(set(asked)) < len(asked):
            raise BadInput(
                f"expected parts among {', '.join(PARTS)}; got {self.parts!r}; name one, or both with a comma."
            )
        self._sets = beside.Sets("lora", each=self.per_domain)

    def before(self, model: nn.Module, domain: Domain) -> None:
        self._sets.begin(model, domain.name, lambda number: self._new(model, number))

    def _new(self, model: nn.Module, number: int) -> nn.ModuleDict:
        places = projections(Memories(model), tuple(self.parts.split(",")))
        return updates(model, places, self.rank, self.alpha, mix(self.seed, number))

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        return self.at(model, domain)

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        layers = self._sets.of(model, domain.name)
        return nullcontext() if layers is None else worn(model, layers)

    def after(self, model: nn.Module, domain: Domain) -> None:
        self._sets.end()

    def merge_(self, model: nn.Module, domain: Domain) -> None:
        """Writes into the weights what `at` shows for this domain, and takes every update away from beside the model.

        Logits stay as they were under `at`, up to rounding in the dtype of the weights; `at` then shows the model as
        it is. Refused: before the first domain.
        """
        layers = self._sets.of(model, domain.name)
        if layers is None:
            raise BadInput("expected a LoRA that was trained; got one before its first domain; train it.")
        with worn(model, layers):
            for layer in layers.children():
                layer.merge()
        self._sets.drop_(model)


def projections(memories: Memories, parts: tuple[str, ...] = PARTS) -> list[str]:
    """Paths of the linear maps of every block, fused ones once."""
    layout = memories.layout
    heads = ("query", "key", "value", "output") if layout.qkv is None else ("qkv", "output")
    found: dict[str, None] = {}
    for layer in range(memories.layers):
        if "attention" in parts:
            attention = memories.attention_path(layer)
            found |= dict.fromkeys(f"{attention}.{getattr(layout, name)}" for name in heads)
        if "feed_forward" in parts:
            gate = memories.gate_path(layer)
            own = [memories.up_path(layer), *([] if gate is None else [gate]), memories.down_path(layer)]
            found |= dict.fromkeys(own)
    return list(found)


def updates(model: nn.Module, places: list[str], rank: int, alpha: float, seed: int) -> nn.ModuleDict:
    """peft's layers for some linear maps, without the maps themselves: their paths with / for a dot are their names."""
    try:
        import peft
    except ImportError as error:
        raise BadInput("expected the library peft for LoRA; got none; pip install peft.") from error

    linear = {path.replace(".", "/"): trace.module(model, path) for path in places}
    transposed = {isinstance(module, Conv1D) for module in linear.values()}
    assert len(transposed) == 1, "a family keeps its matrices one way"
    trained = {p: p.requires_grad for p in model.parameters()}
    layers = nn.ModuleDict(linear)  # peft sees these and nothing else of the model
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(linear), fan_in_fan_out=transposed.pop()
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed >> 1)
        peft.inject_adapter_in_model(config, layers, ADAPTER)
    for layer in layers.values():
        del layer.base_layer
    for p, flag in trained.items():  # peft froze them
        p.requires_grad_(flag)
    return layers


@contextmanager
def worn(model: nn.Module, layers: nn.Module) -> Iterator[None]:
    """Within the block the layers stand in the model, around its own projections."""
    kept: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
    try:
        for name, layer in layers.named_children():
            parent, _, own = name.replace("/", ".").rpartition(".")
            holder = trace.module(model, parent)
            linear = getattr(holder, own)
            kept.append((holder, own, linear, layer))
            layer.base_layer = linear
            setattr(holder, own, layer)
        yield
    finally:
        for holder, own, linear, layer in kept:
            setattr(holder, own, linear)
            del layer.base_layer
