"""Soft prompts: a few trained vectors in front of every row, before a frozen model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.continual import beside
from kemem.errors import BadInput
from kemem.objective import mix
from kemem.training import Domain, Method


@dataclass(eq=False)
class Prompt(Method):
    """The model is frozen and `tokens` vectors of width D learn instead, put before the embeddings of each row.

    Lester et al. 2021; in Ke et al. 2023 "DAP-Prompt", 100 of them a domain. They begin as the embeddings of random
    tokens of the vocabulary, drawn by `seed`. A domain without a prompt of its own is shown with the newest one.
    `prompt` in `model.beside`, or `prompt0`, `prompt1`, ... in the order of the domains.

    Other modules of a model change nothing at first; a prompt always does, since it is text that was not there. Only
    with tokens = 0 is it the frozen model, which then has nothing to train.
    Refused: a row that does not fit into the model's context behind its prompt.
    """

    tokens: int = 100
    per_domain: bool = True
    seed: int = 0
    _sets: beside.Sets = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise BadInput(f"expected a prompt of 0 tokens or more; got {self.tokens}; 100 is usual.")
        self._sets = beside.Sets("prompt", each=self.per_domain)

    def before(self, model: nn.Module, domain: Domain) -> None:
        row = domain.blocks.batch(torch.zeros(1, dtype=torch.long))["input_ids"].shape[1]
        fitting(model, self.tokens, row)
        own = self._sets.begin(model, domain.name, lambda number: self._new(model, number))
        own.requires_grad_(self.tokens > 0)

    def _new(self, model: nn.Module, number: int) -> nn.Embedding:
        words = model.get_input_embeddings().weight.detach()
        generator = torch.Generator().manual_seed(mix(self.seed, number) >> 1)
        drawn = torch.randint(len(words), (self.tokens,), generator=generator)
        # a table of embeddings and not a bare matrix: the recipe's weight decay then treats it as one
        return nn.Embedding.from_pretrained(words[drawn.to(words.device)].clone(), freeze=False)

    def during(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        return self.at(model, domain)

    def at(self, model: nn.Module, domain: Domain) -> AbstractContextManager[object]:
        found = self._sets.of(model, domain.name)
        if not self.tokens or found is None:
            return nullcontext()
        return prompted(model, found.weight)

    def after(self, model: nn.Module, domain: Domain) -> None:
        self._sets.end()


@contextmanager
def prompted(model: nn.Module, prompt: Float[Tensor, "P D"]) -> Iterator[None]:
    """Within the block every pass reads the prompt before each row, and gives the scores of the row's places alone.

    The base model is given P more tokens a row. Their embeddings are put aside for the prompt, positions count on
    behind it, and of the last hidden state the first P places are cut off before the head sees it: logits are [B T V],
    beside the labels they belong to. An attention mask and position ids are extended where given. Text that continues
    a cache (`past_key_values`) finds the prompt in it.
    Hidden states are cut as well; attention weights are not.
    Refused: a row that does not fit into the context, masks that are not [B T], a prompt within a prompt.
    """
    base, longer = model.base_model, _Longer(model, prompt)
    words = model.get_input_embeddings()
    path = next(name for name, found in model.named_modules() if found is words)
    # A hook keeps lengths, which is what makes hooks safe; lengths change here, so the one call in question is wrapped.
    before, call = vars(base).get("forward"), base.forward
    if isinstance(getattr(before, "longer", None), _Longer):
        raise BadInput("expected one prompt at a time; got one within another; leave the block of the first.")
    names = list(inspect.signature(call).parameters)

    def forward(*args: Any, **given: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **given}
        cut = longer.inputs(given)
        return longer.cut(call(**given), cut)

    forward.longer = longer
    base.forward = forward
    try:
        with trace.replace(model, {path: longer.embeddings}):
            yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


class _Longer:
    """Makes the inputs of a pass P places longer, and its outputs shorter again."""

    def __init__(self, model: nn.Module, prompt: Tensor) -> None:
        self.model, self.prompt, self.length = model, prompt, len(prompt)
        self.due = False  # whether the next embeddings are those of a row with places for the prompt
        self.filler = 1 if model.config.pad_token_id == 0 else 0  # padding would have a position of its own

    def inputs(self, given: dict[str, Any]) -> int:
        """Changes the arguments of a pass; how many places are to be cut off afterwards."""
        mask, places = given.get("attention_mask"), given.get("position_ids")
        cache = given.get("past_key_values")
        continued = cache is not None and cache.get_seq_length() > 0
        if mask is not None:
            if mask.ndim != 2:
                raise BadInput(
                    f"expected an attention mask [B T] beside a prompt; got {list(mask.shape)}; give one or none."
                )
            given["attention_mask"] = torch.cat([mask.new_ones(len(mask), self.length), mask], 1)
        if places is not None:
            given["position_ids"] = places + self.length if continued else self.places(places, mask)
        if continued:
            return 0
        for name in ("input_ids", "inputs_embeds", "token_type_ids"):
            if given.get(name) is not None:
                given[name] = self.extended(name, given[name])
        self.due = given.get("input_ids") is not None
        return self.length

    def extended(self, name: str, row: Tensor) -> Tensor:
        fitting(self.model, self.length, row.shape[1])
        if name == "inputs_embeds":
            return torch.cat([self.prompt.to(row.dtype).expand(len(row), -1, -1), row], 1)
        first = self.filler if name == "input_ids" else 0
        return torch.cat([row.new_full((len(row), self.length), first), row], 1)

    def places(self, places: Tensor, mask: Tensor | None) -> Tensor:
        """Position ids with the prompt's in front: from the row's first one on, and the row's behind them."""
        seen = places if mask is None else places.masked_fill(mask == 0, places.max())
        first = seen.amin(1, keepdim=True)
        front = first + torch.arange(self.length, device=places.device)
        return torch.cat([front, places.expand_as(seen) + self.length], 1)

    def embeddings(self, found: Tensor) -> Tensor:
        if not self.due:
            return found
        self.due = False  # GPT-2 looks up token types in the same table, after the tokens
        prompt = self.prompt.to(found.dtype).expand(len(found), -1, -1)
        return torch.cat([prompt, found[:, self.length :]], 1)

    def cut(self, output: Any, places: int) -> Any:
        if isinstance(output, tuple):
            return output[0][:, places:], *output[1:]
        output.last_hidden_state = output.last_hidden_state[:, places:]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(state[:, places:] for state in output.hidden_states)
        return output


def fitting(model: nn.Module, prompt: int, row: int) -> None:
    """Refuses a prompt and a row that are longer together than the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None:
        return
    words = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    # a table of positions may keep the first places for padding, as RoBERTa's does
    kept = [m.padding_idx for m in tables if m.num_embeddings == context and m.padding_idx is not None]
    context -= max(kept, default=-1) + 1
    if prompt + row > context:
        raise BadInput(
            f"expected prompt and row to fit in the model's context of {context} tokens; got {prompt} and {row}; "
            "give a prompt of fewer tokens, or shorter rows."
        )
