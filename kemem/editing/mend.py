"""MEND, Mitchell et al. 2022: a small network that was trained to turn the gradient of a fact into an edit."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kemem import trace
from kemem.editing.edit import Edit
from kemem.editing.facts import Request
from kemem.editing.finetune import chosen, parameters, plain, predicting, target_losses
from kemem.editing.memit import prepared
from kemem.editing.moments import Moments
from kemem.editing.prompts import PLAIN, Contexts
from kemem.editing.targets import Progress
from kemem.errors import BadInput
from kemem.evaluation import evaluating
from kemem.families import matrix

CHUNKS = ("all", "last")
LOSSES = ("each", "chunk")
FILES = ("networks.json", "networks.safetensors")


class LowRank(nn.Module):
    """y = x + relu(scale_p * (U V x + b) + shift_p) for weight p; y = x until trained: U, b, shift are 0, scale is 1.

    The slope of relu at 0 is 1 here: with 0, as usual, nothing would ever be learned.
    """

    def __init__(self, size: int, rank: int, weights: int, generator: torch.Generator) -> None:
        super().__init__()
        rank = min(rank, size)
        self.U = nn.Parameter(torch.zeros(size, rank))
        self.V = nn.Parameter(torch.randn(rank, size, generator=generator))
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(weights, size))
        self.shift = nn.Parameter(torch.zeros(weights, size))

    def forward(self, x: Float[Tensor, "T Z"], weight: int) -> Float[Tensor, "T Z"]:
        """y of each token, by the scale and shift of weight number `weight`."""
        inner = x @ self.V.T @ self.U.T + self.bias
        return x + (self.scale[weight] * inner + self.shift[weight]).clamp(min=0)


class Transform(nn.Module):
    """(x, delta) of a token to what takes their place, for all weights of one shape.

    Both in one vector, z-scored by the mean and deviation of the tokens that `learn` was shown; as they are before it
    saw two, or where `normalise` is off. What comes out is not scaled back: that is the rate's to learn.
    """

    def __init__(
        self, x: int, delta: int, weights: int, rank: int, normalise: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.sizes, self.normalise = [x, delta], normalise
        self.layers = nn.ModuleList(LowRank(x + delta, rank, weights, generator) for _ in range(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(x + delta, dtype=torch.float64))
        self.register_buffer(
            "squares", torch.zeros(x + delta, dtype=torch.float64)
        )  # of distances to the mean

    @torch.no_grad()
    def learn(self, x: Float[Tensor, "T X"], delta: Float[Tensor, "T Y"]) -> None:
        """Adds tokens to the mean and deviation, as if all had been seen at once (Chan et al. 1979)."""
        if not len(x):
            return
        new = torch.cat([x, delta], 1).double()
        count = self.count + len(new)
        apart = new.mean(0) - self.mean
        self.squares += (new - new.mean(0)).square().sum(0)
        self.squares += apart.square() * self.count * len(new) / count
        self.mean += apart * len(new) / count
        self.count.copy_(count)

    def forward(
        self, x: Float[Tensor, "T X"], delta: Float[Tensor, "T Y"], weight: int
    ) -> tuple[Float[Tensor, "T X"], Float[Tensor, "T Y"]]:
        """What takes the place of x and delta of each token, for weight number `weight`."""
        both = torch.cat([x, delta], 1)
        if self.normalise and self.count >= 2:
            deviation = (self.squares / (self.count - 1)).sqrt().to(both)
            both = (both - self.mean.to(both)) / (deviation + 1e-7)
        for layer in self.layers:
            both = layer(both, weight)
        x, delta = both.split(self.sizes, 1)
        return x, delta


class Networks(nn.Module):
    """What MEND learns: a `Transform` for each shape of weight, shared by the weights of that shape; a rate for each.

    weights: of each edited parameter its name, inputs and outputs. rate: where the rates lr_p begin.

    The update of a weight, delta being the gradient of the loss at its output,
        Delta = lr_p sum_t delta~_t x~_t^T    is added,
    so it descends where lr_p is below 0: untrained and not normalised it is a gradient step of size -lr_p. Differs
    from the authors' code, whose rates begin at +1e-4, uphill, and have their sign learned.
    """

    def __init__(
        self,
        weights: Mapping[str, Sequence[int]],
        *,
        rank: int = 1920,
        rate: float = -1e-4,
        normalise: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not weights or rank < 1:
            got = f"{len(weights)} weights and rank {rank}"
            raise BadInput(f"expected weights to edit and a rank of 1 or more; got {got}; give more.")
        self.weights = {name: (int(x), int(y)) for name, (x, y) in weights.items()}
        self.rank, self.normalise = rank, normalise
        generator = torch.Generator().manual_seed(seed)
        self.place: dict[str, tuple[str, int]] = {}  # of a weight its network, and its number in it
        self.transforms = nn.ModuleDict()
        for x, y in dict.fromkeys(self.weights.values()):
            names = [name for name, shape in self.weights.items() if shape == (x, y)]
            self.place.update({name: (f"{x}x{y}", number) for number, name in enumerate(names)})
            self.transforms[f"{x}x{y}"] = Transform(x, y, len(names), rank, normalise, generator)
        self.rates = nn.Parameter(torch.full((len(weights),), float(rate)))

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[int], **settings: Any) -> "Networks":
        """For the up and down projections of these layers. Published: the last three layers.

        A gate is left as it is, but where a family fuses it with up.
        """
        memories = predicting(model)
        paths = [path(layer) for layer in layers for path in (memories.up_path, memories.down_path)]
        shapes = {path: matrix(trace.module(model, path)).shape for path in paths}
        networks = cls({f"{path}.weight": (x, y) for path, (y, x) in shapes.items()}, **settings)
        return networks.to(next(model.parameters()).device)

    def update(self, name: str, x: Float[Tensor, "T X"], delta: Float[Tensor, "T Y"]) -> Float[Tensor, "Y X"]:
        """What some tokens add to a weight, as [outputs inputs], in the networks' precision. Has a gradient."""
        shape, number = self.place[name]
        x, delta = self.transforms[shape](x.to(self.rates), delta.to(self.rates), number)
        return self.rates[list(self.weights).index(name)] * (delta.T @ x)

    def fitting(self, model: nn.Module) -> None:
        """Refuses a model that has not the weights these were made for."""
        for name, (x, y) in self.weights.items():
            if (got := tuple(matrix(trace.module(model, _path(name))).shape)) != (y, x):
                raise BadInput(
                    f"expected {name!r} to have {y} outputs and {x} inputs; got {got[0]} and {got[1]}; take the model "
                    "that the networks were trained for."
                )

    def save(self, folder: Path) -> None:
        """Writes the settings as JSON and the tensors as safetensors into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        said = {"weights": self.weights, "rank": self.rank, "normalise": self.normalise}
        save_file({k: v.contiguous().cpu() for k, v in self.state_dict().items()}, folder / FILES[1])
        (folder / FILES[0]).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Networks":
        """What `save` has written, on the CPU. Refused: a folder without it, or with something else."""
        try:
            networks = cls(**json.loads((folder / FILES[0]).read_text(encoding="utf-8")))
            # assigned, so that they are in the precision they were kept in
            networks.load_state_dict(load_file(folder / FILES[1]), assign=True)
        except (OSError, SafetensorError, RuntimeError, TypeError, AttributeError, ValueError) as error:
            fault = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise BadInput(
                f"expected trained networks in {folder}; got {fault}; give a folder that Networks.save wrote."
            ) from None
        return networks


@dataclass(frozen=True)
class MEND:
    """Edits by networks that were trained for the model, see `kemem.editing.mend_training`: many requests in one shot.

    chunks: "all", the update of many requests is the sum over all of them; "last", as released: requests are read
        `chunk` at a time, what is kept of a chunk is overwritten by the next, and only the last one counts, such as
        16 of 10,000.
    loss: "each", the factors of a request are those it has alone; "chunk", as released: those of the mean loss over
        the target tokens of its chunk.
    """

    networks: Networks
    chunks: str = "all"
    loss: str = "each"
    chunk: int = 128

    def __post_init__(self) -> None:
        chosen("chunks", self.chunks, CHUNKS)
        chosen("loss", self.loss, LOSSES)
        if self.chunk < 1:
            raise BadInput(f"expected chunks of 1 request or more; got {self.chunk}; published is 128.")

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        requests: Sequence[Request],
        moments: Moments | None = None,
        *,
        templates: Sequence[str] = (PLAIN,),
        batch_size: int = 32,
        progress: Progress | None = None,
        seed: int = 0,
    ) -> Edit:
        """The update of all requests, and in its notes how many of them counted. batch_size: requests at a time."""
        memories = predicting(model)
        self.networks.fitting(model)
        of = prepared(memories, tokenizer, requests, (PLAIN,), ())
        start = time.perf_counter()
        parts = [of[begin : begin + self.chunk] for begin in range(0, len(of), self.chunk)]
        counted = parts if self.chunks == "all" else parts[-1:]
        total = sum(map(len, counted))
        sums: dict[str, Tensor] = {}
        done = 0
        for part in counted:
            shares = _shares(part, self.loss)
            for begin in range(0, len(part), batch_size):
                some = slice(begin, begin + batch_size)
                found = factors(model, list(self.networks.weights), *plain(part[some]), shares[some])
                for name, (x, delta) in found.items():
                    update = self.networks.update(name, x, delta)
                    sums[name] = sums[name] + update if name in sums else update
                done += len(part[some])
                if progress is not None:
                    progress(done, total, f"{done} of {total} requests")
        deltas = {name: stored(model, name, update) for name, update in sums.items()}
        return Edit(deltas, {"updates": time.perf_counter() - start}, {"requests": total})


def factors(
    model: nn.Module,
    names: Sequence[str],
    rows: Sequence[Sequence[int]],
    begins: Sequence[int],
    shares: Sequence[float] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the gradient of some weights is made of: of each, x [T X] and delta [T Y], a row for every token.

    The loss is the sum of the rows' mean -log p of their target tokens, each times its share, 1 unless given. x enters
    the linear map, delta is the gradient of the loss at its output, and its weight's gradient as [outputs inputs] is
    sum_t delta_t x_t^T. Tokens of which either is all 0 add nothing and are left out.
    """
    paths = {name: _path(name) for name in names}
    x: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}
    weights = parameters(model)
    weights |= {
        name: weights[name].requires_grad_() for name in names
    }  # so that their outputs have a gradient
    entering = {
        path: lambda tensor, path=path: x.__setitem__(path, tensor.detach()) for path in paths.values()
    }
    leaving = {path: lambda tensor, path=path: out.__setitem__(path, tensor) for path in paths.values()}
    with (
        evaluating(model),
        torch.enable_grad(),
        trace.observe(model, entering, side="input"),
        trace.observe(model, leaving, side="output"),
    ):
        losses = target_losses(model, weights, rows, begins)
        loss = losses.sum() if shares is None else losses @ losses.new_tensor(list(shares))
        slopes = dict(zip(out, torch.autograd.grad(loss, list(out.values())), strict=True))
    found = {}
    for name, path in paths.items():
        pair = x[path].flatten(0, -2), slopes[path].flatten(0, -2)
        kept = (pair[0] != 0).any(1) & (pair[1] != 0).any(1)
        found[name] = (pair[0][kept], pair[1][kept])
    return found


def stored(model: nn.Module, name: str, update: Float[Tensor, "Y X"]) -> Tensor:
    """An update as its weight is stored: Conv1D keeps [inputs outputs]."""
    if isinstance(trace.module(model, _path(name)), Conv1D):
        update = update.T
    return update.to(model.get_parameter(name).dtype).contiguous()


def _path(name: str) -> str:
    return name.removesuffix(".weight")


def _shares(part: Sequence[Contexts], loss: str) -> list[float]:
    """What each request's loss counts."""
    tokens = [len(c.rows[0]) - c.begins[0] for c in part]
    return [1.0 if loss == "each" else count / sum(tokens) for count in tokens]
