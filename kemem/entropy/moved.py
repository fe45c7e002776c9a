"""How unevenly learning changes memories: sizes of the change of every key and value since a start."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from kemem.entropy.coefficients import effective_share, layer_entropy
from kemem.errors import BadInput
from kemem.memory import Memories


@dataclass(frozen=True, eq=False, repr=False)
class Updates:
    """What `updates` found. Tensors are on the CPU in float64.

    keys: Euclidean norm of the change of each memory's key: its row of `up`, in gated families also that of the gate,
    with their biases where there are any, as one vector. values: of its value, a column of the last projection.
    """

    keys: Float[Tensor, "L M"]
    values: Float[Tensor, "L M"]

    def __repr__(self) -> str:
        layers, memories = self.keys.shape
        return (
            f"Updates(of {layers} x {memories} memories; keys {self.keys.mean():.3g}, values "
            f"{self.values.mean():.3g} on average)"
        )

    def effective_share(self) -> dict[str, Float[Tensor, " L"]]:
        """Equally changed memories of the same entropy as a share of all M, of "keys" and "values": in [1 / M, 1].

        exp(H) / M with H = - sum_i p_i ln p_i and p_i = |change i| / sum_j |change j|, as `layer_entropy` has it of
        usage. 1: every memory of the layer changed equally much; 1 / M: one alone changed.
        Refused: a layer without any change.
        """
        sizes = self._moved()
        # one layer at a time, as a model of that layer alone
        return {n: effective_share(layer_entropy(s)[:, None], s.shape[-1]) for n, s in sizes.items()}

    def rank_with(self, usage: Float[Tensor, "L M"]) -> dict[str, Float[Tensor, " L"]]:
        """Spearman's rank correlation, over the memories of each layer, of "keys" and of "values" with usage.

        Ties share their mean rank. By A.1 of Kim et al. 2025 what is used more changes more: above 0 for values.
        Usage that is level but for rounding, as after `reparameterise_`, has only the ranks of its rounding.
        Refused: usage of another size, not finite or the same for a whole layer; a layer without any change, or
        changed equally much everywhere.
        """
        if usage.shape != self.keys.shape or not torch.isfinite(usage).all():
            size, got = list(self.keys.shape), list(usage.shape)
            raise BadInput(
                f"usage must be finite numbers {size}, one a memory; got {got if got != size else 'NaN or infinity'}; "
                "measure a model of this very size."
            )
        usage = usage.detach().cpu().double()
        return {n: _spearman(s, usage, n) for n, s in self._moved().items()}

    def table(self, usage: Float[Tensor, "L M"] | None = None) -> list[dict[str, Any]]:
        """A row a layer: mean change and effective share of keys and values; with usage also their rank with it."""
        ranks = {} if usage is None else self.rank_with(usage)
        columns = {
            **{f"{n}_mean": s.mean(-1) for n, s in self._moved().items()},
            **{f"{n}_effective_share": share for n, share in self.effective_share().items()},
            **{f"{n}_rank_with_usage": rank for n, rank in ranks.items()},
        }
        return [{"layer": i, **{n: float(c[i]) for n, c in columns.items()}} for i in range(len(self.keys))]

    def _moved(self) -> dict[str, Float[Tensor, "L M"]]:
        sizes = {"keys": self.keys, "values": self.values}
        for name, size in sizes.items():
            if (still := (size.amax(-1) == 0).nonzero()).numel():
                raise BadInput(
                    f"expected {name} of every layer to have changed; got those of layer {int(still[0])} as at the "
                    "start; train them, or copy the start before training (a detached clone of each parameter)."
                )
        return sizes


def updates(model: nn.Module, start: Mapping[str, Tensor]) -> Updates:
    """How far each memory's key and value are from where they were at the start. The model is left as it is.

    start: a copy of the weights by name, {name: p.detach().clone() for name, p in model.named_parameters()}; only
    those of the feed-forward layers are looked at. Differences are taken in float64.
    Refused: a start that lacks one of them or has it in another shape; weights that are not finite or offloaded.
    """
    now, then = Memories(model), Memories(_with(model, start))
    keys, values = [], []
    for layer in range(now.layers):
        pairs = list(zip(_key_parts(now, layer), _key_parts(then, layer), strict=True))
        keys.append(torch.stack([_squares(a, b, dim=1) for a, b in pairs]).sum(0).sqrt())
        values.append(_squares(now.values(layer), then.values(layer), dim=0).sqrt())
    found = Updates(torch.stack(keys), torch.stack(values))
    if not (torch.isfinite(found.keys).all() and torch.isfinite(found.values).all()):
        raise BadInput(
            "expected finite weights; got NaN or infinity in keys or values; lower the learning rate."
        )
    return found


def _key_parts(memories: Memories, layer: int) -> Iterator[Float[Tensor, "M _"]]:
    """What makes a memory's coefficient, each a matrix with a memory a row."""
    yield memories.keys(layer)
    if (bias := memories.key_bias(layer)) is not None:
        yield bias[:, None]
    if memories.gated:
        yield memories.gates(layer)
        if (bias := memories.gate_bias(layer)) is not None:
            yield bias[:, None]


def _squares(a: Tensor, b: Tensor, *, dim: int) -> Float[Tensor, " M"]:
    return (a.double() - b.to(a.device).double()).square().sum(dim).cpu()


def _with(model: nn.Module, start: Mapping[str, Tensor]) -> nn.Module:
    """The model's modules around the weights of the start, which are not copied: so they are oriented as its own."""
    memories = Memories(model)
    wanted = _feed_forward(memories)
    replaced: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        given = start.get(name)
        if name in wanted and (given is None or given.shape != parameter.shape):
            got = "none" if given is None else f"one {list(given.shape)}"
            raise BadInput(
                f"expected start to have {name!r} {list(parameter.shape)}; got {got}; copy the named_parameters of "
                "this very model before training."
            )
        if name in wanted and "meta" in (parameter.device.type, given.device.type):
            raise BadInput(
                "expected weights in memory, whose change can be read; got offloaded ones; load the model without "
                "device_map."
            )
        fitting = given is not None and given.shape == parameter.shape
        replaced[id(parameter)] = nn.Parameter(given.detach(), requires_grad=False) if fitting else parameter
    return copy.deepcopy(model, replaced)  # what stands in the memo is taken as the copy


def _feed_forward(memories: Memories) -> set[str]:
    """Names of the parameters that memories are made of."""
    found = set()
    for layer in range(memories.layers):
        up, down = memories.up_path(layer), memories.down_path(layer)
        gate = memories.gate_path(layer) or up
        found |= {f"{path}.weight" for path in (up, gate, down)}
        found |= {f"{up}.bias"} if memories.key_bias(layer) is not None else set()
        found |= {f"{gate}.bias"} if memories.gated and memories.gate_bias(layer) is not None else set()
    return found


def _spearman(sizes: Float[Tensor, "L M"], usage: Float[Tensor, "L M"], name: str) -> Float[Tensor, " L"]:
    for what, each in ((name, sizes), ("usage", usage)):
        if (level := (each == each[:, :1]).all(-1).nonzero()).numel():
            raise BadInput(
                f"a rank correlation needs {what} that differ; got the same for all memories of layer "
                f"{int(level[0])}; compare with another usage, or leave ranks out."
            )
    ranks = [stats.spearmanr(a, b).statistic for a, b in zip(sizes.numpy(), usage.numpy(), strict=True)]
    return torch.tensor(ranks, dtype=torch.float64)
