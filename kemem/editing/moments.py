"""The second moment of keys on ordinary text: what a layer already stores, as far as an editor must know it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kemem.editing.stepping import excerpt
from kemem.errors import BadInput
from kemem.evaluation import evaluating, padded
from kemem.memory import Memories
from kemem.models.streaming import streamed, sweep, together

Progress = Callable[[int, int, str], None]
NAME = "layer.{}"


@dataclass(frozen=True)
class Moments:
    """Uncentred second moments E[k k^T] of keys, [M M] in float64, of some layers; `tokens` they are the mean over.

    `tokens` is 0 where a file does not say. The Cholesky factor of a layer is computed once and kept.
    """

    of: Mapping[int, Float[Tensor, "M M"]]
    tokens: int = 0
    _factors: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getitem__(self, layer: int) -> Float[Tensor, "M M"]:
        if layer not in self.of:
            known = ", ".join(map(str, sorted(self.of)))
            raise BadInput(
                f"expected moments of layer {layer}; got those of {known}; measure that layer too."
            )
        return self.of[layer]

    def factor(self, layer: int) -> Float[Tensor, "M M"] | None:
        """Lower Cholesky factor of a layer's moment; None where it is not positive definite."""
        if layer not in self._factors:
            found, fault = torch.linalg.cholesky_ex(self[layer])
            self._factors[layer] = found if not fault else torch.empty(0)
        return self._factors[layer] if len(self._factors[layer]) else None

    def checked(self, memories: Memories, layers: Sequence[int]) -> "Moments":
        """Itself; refused where a layer is lacking, of another size, asymmetric or not finite."""
        for layer in layers:
            moment, size = self[layer], memories.count
            if tuple(moment.shape) != (size, size):
                raise BadInput(
                    f"expected moments of shape {(size, size)}, one row and column a memory; got "
                    f"{tuple(moment.shape)} for layer {layer}; measure them on this model."
                )
            scale = moment.abs().max()
            if not torch.isfinite(scale) or (moment - moment.T).abs().max() > 1e-4 * scale:
                raise BadInput(
                    f"expected symmetric, finite moments; got others for layer {layer}; measure them anew."
                )
            if (moment.diagonal() < 0).any():
                raise BadInput(
                    f"expected moments that are positive definite; got a square below 0 for layer {layer}; "
                    "measure them anew."
                )
        return self

    def save(self, file: Path) -> None:
        """As safetensors, one tensor `layer.<l>` each, in float64."""
        tensors = {NAME.format(layer): moment.contiguous().cpu() for layer, moment in self.of.items()}
        save_file(tensors, file, metadata={"tokens": str(self.tokens)})


def read_moments(file: Path) -> Moments:
    """Moments from safetensors with one tensor `layer.<l>` each."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = {name: name.removeprefix("layer.") for name in opened.keys()}  # noqa: SIM118 (no mapping)
            wrong = [name for name, number in names.items() if not (name != number and number.isdecimal())]
            if wrong or not names:
                raise BadInput(
                    f"expected tensors named layer.<l> in {file}; got {', '.join(wrong[:3]) or 'none'}; "
                    "write them with Moments.save."
                )
            of = {int(number): opened.get_tensor(name).double() for name, number in names.items()}
            return Moments(of, int((opened.metadata() or {}).get("tokens", 0)))
    except (OSError, SafetensorError) as error:
        fault = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BadInput(f"expected moments as safetensors in {file}; got {fault}; check the path.") from None


def key_moments(
    model: nn.Module,
    rows: Iterable[Sequence[int]],
    layers: Sequence[int],
    *,
    batch_size: int = 16,
    snapshots: Sequence[int] = (),
    snapshot: Callable[[int, Moments], object] | None = None,
    progress: Progress | None = None,
) -> Moments:
    """E[k k^T] of the keys of some layers over all tokens of these rows, in one pass through the model.

    Meng et al. 2023, eq. 13:  C = 1/n sum_t k_t k_t^T, not centred; the editor multiplies it by its weight lambda.
    Products are summed in float64; blocks above the last layer do not run. Every token counts once, padding never.
    Where blocks stay on the disk, each is read once for as many batches as a gigabyte of their streams holds.
    rows: token ids of texts, cut to the model's context, special ones as the reader wants them. snapshots: numbers of
    rows after which `snapshot(tokens, moments so far)` is called, rising.
    Differs from the released code, which runs layer by layer, sums in float32, and reads 100,000 articles.
    """
    memories = Memories(model)
    layers = sorted(set(layers))
    for layer in layers:
        memories.block_path(layer)
    sums = {
        layer: torch.zeros(memories.count, memories.count, dtype=torch.float64, device=_summing(model))
        for layer in layers
    }
    mask = torch.empty(0)
    tokens = done = 0

    def add(layer: int, keys: Float[Tensor, "B T M"]) -> None:
        if layer in sums:
            own = keys[mask].to(sums[layer].device, torch.float64)
            sums[layer] += own.T @ own

    kept, stop = list(rows), layers[-1] + 1
    order = _grouped([len(row) for row in kept], batch_size, snapshots)
    with evaluating(model) as device, memories.coefficients(add):
        for group in _together(memories, order, kept, snapshots):
            batches = [tuple(t.to(device) for t in padded([kept[i] for i in part])) for part in group]
            count = sum(map(len, group))

            def begin(number: int, batches: Sequence[Any] = batches) -> None:
                nonlocal mask
                mask = batches[number][1].bool()

            def tell(blocks: int, count: int = count, before: tuple[int, int] = (done, tokens)) -> None:
                if progress is not None:
                    rows, read = before
                    progress(rows + count * blocks // stop, len(kept), f"moments over {read:,} tokens")

            _passed(memories, [ids for ids, _ in batches], stop, begin, tell)
            tokens += sum(int(own.sum()) for _, own in batches)
            done += count
            tell(0, before=(done, tokens))
            if done in snapshots and snapshot is not None:
                snapshot(tokens, Moments({layer: found / tokens for layer, found in sums.items()}, tokens))
    if not tokens:
        raise BadInput("expected text with tokens to measure keys on; got none; give more text.")
    return Moments({layer: found / tokens for layer, found in sums.items()}, tokens)


def _passed(
    memories: Memories,
    batches: Sequence[Tensor],
    stop: int,
    begin: Callable[[int], None],
    tell: Callable[[int], None],
) -> None:
    """Token ids through the first `stop` blocks: one batch after the other, or, from the disk, side by side."""
    if streamed(memories.model) is not None:
        calls = [{"input_ids": ids, "use_cache": False} for ids in batches]
        sweep(memories, calls, stop=stop, before=begin, done=tell)
        return
    with excerpt(memories, 0, stop) as base:
        for number, ids in enumerate(batches):
            begin(number)
            base(input_ids=ids, use_cache=False)


def _together(
    memories: Memories, order: Sequence[list[int]], rows: Sequence[Sequence[int]], borders: Sequence[int]
) -> Iterator[list[list[int]]]:
    """Batches that go through the model at once: one; from the disk as many as there is room for, up to a border."""
    if streamed(memories.model) is None:
        yield from ([part] for part in order)
        return
    done, held = 0, list[list[int]]()
    for part in order:
        held.append(part)
        done += len(part)
        if done in borders or done == len(rows):
            sizes = [len(own) * max(len(rows[i]) for i in own) for own in held]
            yield from (held[each.start : each.stop] for each in together(sizes, memories))
            held = []


def invertible(moments: Moments, layers: Sequence[int]) -> None:
    """Refuses moments without an inverse, where an editor meets its targets exactly, before a long search."""
    for layer in layers:
        if moments.factor(layer) is None:
            raise BadInput(
                f"expected moments that are positive definite; got others for layer {layer}; measure them on more "
                "tokens than the layer has memories."
            )


def _summing(model: nn.Module) -> torch.device:
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device  # mps has no float64


def _grouped(lengths: Sequence[int], size: int, borders: Sequence[int]) -> list[list[int]]:
    """Rows in batches of like length, no batch reaching over a border."""
    parts = []
    edges = [0, *borders, len(lengths)]
    for start, stop in pairwise(edges):
        own = sorted(range(start, stop), key=lambda i: lengths[i])
        parts += [own[i : i + size] for i in range(0, len(own), size)]
    return parts


def text_rows(tokenizer: Any, texts: Iterable[str], count: int, length: int) -> list[list[int]]:
    """The first `count` texts with a token, as ids with the tokenizer's default special tokens, cut to `length`."""
    rows: list[list[int]] = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        if ids:
            rows.append(ids)
        if len(rows) == count:
            break
    return rows


def distance(found: Moments, reference: Moments) -> dict[int, float]:
    """How far moments are from a reference, |C - R| / |R| in Frobenius norm, by layer."""
    return {
        layer: ((found[layer] - reference[layer]).norm() / reference[layer].norm()).item()
        for layer in reference.of
    }


def effective_rank(moment: Float[Tensor, "M M"]) -> float:
    """tr(C)^2 / |C|^2: how many directions keys spread over evenly; between 1 and M."""
    return (moment.trace().square() / moment.square().sum()).item()
