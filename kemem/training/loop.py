"""The only training loop of the package."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kemem import arithmetic
from kemem.errors import BadInput
from kemem.objective import Objective, causal, mix, row_key
from kemem.progress import Reporter, quiet_transformers
from kemem.training import sharding
from kemem.training.compiling import Compiled
from kemem.training.identity import fingerprint, identity, same
from kemem.training.method import Method, overrides
from kemem.training.optimizer import moments, optimizer_of, restore_moments
from kemem.training.order import Order, split
from kemem.training.processes import Processes, processes
from kemem.training.recipe import Domain, History, Recipe, Rows, bfloat16_runs
from kemem.training.state import State, alone, read_state, write_folder, write_state

DRAWS = 2  # what the seed of dropout is mixed with (0: order of the data, 1: draws a row)

AtCheckpoint = Callable[[nn.Module, int], dict[str, Any] | None]


def train(
    model: nn.Module,
    data: Domain | Rows,
    recipe: Recipe,
    method: Method | None = None,
    *,
    out: Path | str | None = None,
    tokenizer: Any = None,
    objective: Objective = causal,
    at_checkpoint: AtCheckpoint | None = None,
    progress: Reporter | None = None,
    earlier: Sequence[Domain] = (),
    device: torch.device | str | None = None,
    sharded: bool = False,
) -> History:
    """Trains `model` in place and returns what was seen on the way.

    With `out`, checkpoints go to out/step<N>/ (Hugging Face layout) and the state to resume from to
    out/state/. The same call, made again after a kill with the model as it was at first, goes on where it
    was and ends in
    the same numbers: on a CPU bit for bit, with the same number of threads. A finished run is read, not
    repeated.

    A step reads `recipe.batch_size` rows, in an order that follows from (seed, pass over the data) alone.
    Each micro-batch counts by its share of the step's target tokens over all processes, so neither
    accumulation nor the number of processes changes the step. Dropout, and whatever else draws from torch's
    generators, is seeded anew at every step from (seed, step, process). The caller's generators are left as
    they were.

    at_checkpoint: called at every checkpoint, in evaluation mode and with the model as `method.at` shows it;
    the row it returns joins the history, and is not asked for again after a kill.
    device: where it is trained, and the model stays; by default where the model is.
    sharded: of several processes each keeps a part of the weights (`kemem.training.sharding`), which the
    model has ever after; a killed run may go on with another number of them. In one process it has no effect.
    Refused: fewer rows than a step reads, a loss that is not finite, an `out` that holds another run; if
    sharded, a method that looks into weights, and processes that begin with different ones.
    """
    device = next(model.parameters()).device if device is None else torch.device(device)
    if recipe.precision == "bfloat16" and not bfloat16_runs(device):
        raise BadInput(f"expected a device that computes in bfloat16; got {device}; set precision='float32'.")
    domain = data if isinstance(data, Domain) else Domain("data", data)
    out = None if out is None else Path(out)
    with ExitStack() as stack:
        shared = stack.enter_context(processes(device))
        if out is not None and shared.main:
            stack.enter_context(alone(out))
        shared.wait()
        stack.enter_context(_own_draws(shared.device))
        stack.callback(model.train, model.training)
        if not (sharded and shared.count > 1):  # else it goes to the device in parts
            model.to(shared.device)
        run = _Run(model, domain, recipe, method or Method(), objective, shared, out, tokenizer, sharded)
        with shared.explained(out):
            return run(at_checkpoint, progress, earlier)


class _Run:
    """One call of `train`: what its moments share."""

    def __init__(
        self,
        model: nn.Module,
        domain: Domain,
        recipe: Recipe,
        method: Method,
        objective: Objective,
        shared: Processes,
        out: Path | None,
        tokenizer: Any,
        sharded: bool,
    ) -> None:
        self.sharded = sharded
        self.model, self.domain, self.recipe, self.method = model, domain, recipe, method
        self.objective, self.shared, self.out, self.tokenizer = objective, shared, out, tokenizer
        self.forward = Compiled(objective.__call__) if recipe.compile else objective
        self.fast = nullcontext() if recipe.compile else arithmetic.fast(shared.device)
        self.history = History()
        self.done, self.tokens, self.seconds = 0, 0, 0.0
        self.losses: list[float] = []  # of the steps since the last row, summed over the processes
        self.fresh: list[Tensor] = []  # the same, not yet read from the device

    def __call__(
        self, at_checkpoint: AtCheckpoint | None, progress: Reporter | None, earlier: Sequence[Domain]
    ) -> History:
        recipe, was_training = self.recipe, self.model.training
        self.begin(earlier)
        state = None
        if self.out is not None:
            state = read_state(
                self.out / "state", lambda found: same(found["identity"], self.identity, self.out)
            )
        if state is not None:
            self.restore(state)
        self.model.train()
        if state is None and 0 in recipe.checkpoints:
            self.checkpoint(at_checkpoint)
        told = self.teller(progress)
        while self.done < recipe.steps:
            with self.method.during(self.model, self.domain):
                self.stretch(told)
            if self.done in recipe.checkpoints:
                self.checkpoint(at_checkpoint)
            self.save(finished=self.done == recipe.steps)
        self.model.train(was_training)
        self.seed(recipe.steps)
        self.method.after(self.model, self.domain)
        return self.history

    def begin(self, earlier: Sequence[Domain]) -> None:
        """The method's moments before the first step, then the optimizer of what is to be trained."""
        model, recipe = self.model, self.recipe
        self.seed(-1)
        if self.sharded:
            sharding.check(self.method)
        else:
            self.shared.broadcast_([*model.parameters(), *model.buffers()])
        start = fingerprint(model.named_parameters()) if self.out is not None or self.sharded else ""
        if self.sharded:
            sharding.agreed(start, self.shared)
            sharding.shard_(model, self.shared)
        self.method.before(model, self.domain)
        self.data = self.method.batches([*earlier, self.domain])
        if len(self.data) < recipe.batch_size:
            raise BadInput(
                f"expected at least as many rows of text as a step reads, {recipe.batch_size}; got "
                f"{len(self.data)} in {self.domain.name}; give more text or a smaller batch_size."
            )
        if recipe.batch_size < self.shared.count * recipe.accumulation:
            raise BadInput(
                f"expected a row for every micro-batch; got a batch_size of {recipe.batch_size} for "
                f"{self.shared.count} processes with {recipe.accumulation} micro-batches each; raise it."
            )
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise BadInput(
                "expected something to train; got a model with all parameters frozen; unfreeze some."
            )
        self.order = Order(len(self.data), recipe.batch_size, recipe.seed)
        self.optimizer = optimizer_of(model, recipe)
        if self.out is not None:
            self.identity = identity(
                recipe, self.domain.name, self.data, self.objective, self.method,
                start=start, processes=0 if self.sharded else self.shared.count,
            )  # fmt: skip

    def stretch(self, told: Callable[[dict[str, Any]], None]) -> None:
        """Steps up to the next one after which something is kept: a checkpoint or the state."""
        recipe = self.recipe
        seconds, began = self.seconds, time.perf_counter()
        while True:
            self.step()
            self.seconds = seconds + time.perf_counter() - began
            last = self.done == recipe.steps
            if last or self.done % recipe.rows_every == 0:
                told(self.row())
            due = recipe.save_every and self.done % recipe.save_every == 0
            if last or due or self.done in recipe.checkpoints:
                return

    def teller(self, progress: Reporter | None) -> Callable[[dict[str, Any]], None]:
        """Reports a row of the history: loss, speed since this call began or was resumed, and time left."""
        first, tokens, seconds = self.done, self.tokens, self.seconds

        def told(row: dict[str, Any]) -> None:
            if progress is None or not self.shared.main:
                return
            passed = self.seconds - seconds
            left = passed * (self.recipe.steps - self.done) / (self.done - first)
            speed = (self.tokens - tokens) / passed
            message = f"loss {row['loss']:.3f}, {speed:,.0f} tokens/s, {left:.0f} s left"
            progress(self.done, self.recipe.steps, message)

        return told

    def step(self) -> None:
        """One optimizer step."""
        recipe, model, method, device = self.recipe, self.model, self.method, self.shared.device
        self.seed(self.done)
        passes, rows = self.order(self.done)
        keys = [row_key(recipe.seed, number, row) for number, row in zip(passes, rows.tolist(), strict=True)]
        batch = self.objective.prepare(method.rows(self.done + 1, self.data.batch(rows)), keys)
        targets = self.objective.count(batch)
        if targets == 0:
            raise BadInput(
                f"expected tokens to predict; got none in step {self.done + 1} of {self.domain.name}; "
                "are all labels -100?"
            )
        own = slice(self.shared.index * recipe.accumulation, (self.shared.index + 1) * recipe.accumulation)
        total = torch.zeros((), device=device)
        for part in split(batch, self.shared.count * recipe.accumulation)[own]:
            share = self.objective.count(part) / targets
            if share == 0 and not self.sharded:
                continue
            if share == 0:
                part = sharding.with_targets(part)
            part = {name: tensor.to(device, non_blocking=True) for name, tensor in part.items()}
            with self.fast, self.autocast():
                loss = self.forward(model, part)
                whole = method.loss(model, part, loss)
            (whole * share).backward()
            total += loss.detach() * share
        self.fresh.append(total)
        parameters = list(self.parameters.values())
        if not self.sharded:
            self.shared.sum_gradients_(parameters)
        method.gradients(model)
        if recipe.clip:
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.done)
        if overrides(method, "updated"):
            previous = {name: p.detach().clone() for name, p in self.parameters.items()}
            self.optimizer.step()
            with torch.no_grad():
                method.updated(model, previous)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.tokens += (
            int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
        )

    def autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.shared.device.type, torch.bfloat16)

    def seed(self, step: int) -> None:
        torch.manual_seed(mix(self.recipe.seed, DRAWS, step + 1, self.shared.index) >> 1)

    def row(self) -> dict[str, Any]:
        """Adds a row to the history: the mean loss since the one before."""
        self.read_losses()
        loss = math.fsum(self.losses) / len(self.losses)
        row = {
            "step": self.done,
            "loss": loss,
            "lr": self.recipe.rate(self.done - 1),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }
        self.losses.clear()
        self.history.steps.append(row)
        return row

    def read_losses(self) -> None:
        """Reads the losses of the last steps from the device: the loop waits for it here and nowhere else.

        Refuses one that is not finite, and so before any of it is written.
        """
        if self.fresh:
            self.losses += self.shared.sum_(torch.stack(self.fresh)).tolist()
            self.fresh.clear()
        if lost := [loss for loss in self.losses if not math.isfinite(loss)]:
            raise BadInput(
                f"expected a finite loss; got {lost[0]} by step {self.done} of {self.domain.name}; lower "
                f"learning_rate ({self.recipe.learning_rate:g}), clip more or warm up longer."
            )

    def checkpoint(self, at_checkpoint: AtCheckpoint | None) -> None:
        """Writes out/step<N>/ and asks for its row."""
        self.read_losses()
        if self.out is not None:
            weights = self.gathered() if self.sharded else None
            if self.shared.main:
                write_folder(self.out / f"step{self.done}", lambda folder: self.write_model(folder, weights))
        row: dict[str, Any] = {"step": self.done}
        if at_checkpoint is not None:
            self.model.eval()
            with self.method.at(self.model, self.domain):
                row |= at_checkpoint(self.model, self.done) or {}
            self.model.train()
        self.history.checkpoints.append(row)

    def gathered(self) -> dict[str, Tensor]:
        """What a checkpoint of a model in parts holds, tied weights once; in the first process."""
        kept = self.model.state_dict()
        once = {name: kept[name] for name, _ in _weights(self.model) if name in kept}
        return sharding.gathered(once, self.shared)

    def write_model(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        with quiet_transformers():
            self.model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)

    def save(self, *, finished: bool) -> None:
        """Writes the state to resume from; that of a finished run needs no moments of the optimizer."""
        if self.out is None:
            return
        self.read_losses()
        tensors = {f"model.{name}": tensor for name, tensor in _weights(self.model)}
        tensors |= {f"method.{name}": tensor for name, tensor in self.method.state().items()}
        if not finished:
            tensors |= moments(self.optimizer, self.parameters)
        if self.sharded:
            tensors = sharding.gathered(tensors, self.shared)
        if self.shared.main:
            record = {
                "identity": self.identity,
                "tokens": self.tokens,
                "seconds": self.seconds,
                "losses": self.losses,
                "history": self.history.json(),
            }
            write_state(self.out / "state", self.done, tensors, record)
        self.shared.wait()

    def restore(self, state: State) -> None:
        record, tensors = state.record, state.tensors
        self.done, self.tokens, self.seconds = state.step, record["tokens"], record["seconds"]
        self.losses, self.history = record["losses"], History(**record["history"])
        with torch.no_grad():
            for name, tensor in _weights(self.model):
                tensor.copy_(sharding.part_of(tensors[f"model.{name}"], tensor))
        restore_moments(self.optimizer, self.parameters, tensors)
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith("method.")}
        self.method.restore({n.removeprefix("method."): t.to(self.shared.device) for n, t in kept.items()})


def _own_draws(device: torch.device) -> AbstractContextManager[None]:
    """Gives the caller back its random generators at the end: the processor's and, with CUDA, the device's."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer once, tied ones under their first name."""
    return [*model.named_parameters(), *model.named_buffers()]
