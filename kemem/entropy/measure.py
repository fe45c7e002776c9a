"""Knowledge entropy of a model on a text, with attention and prediction entropy, in one forward pass.

Nothing is kept but sums: one layer's coefficients (and attention weights) are alive at a time, so memory does not grow
with the number of layers or of instances.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from kemem import trace
from kemem.entropy.attention import eager
from kemem.entropy.batches import WINDOW, Padder, Reader, context, windows
from kemem.entropy.coefficients import COEFFICIENTS, effective_share, layer_entropy
from kemem.entropy.layerwise import GroupSums, groups
from kemem.entropy.prediction import has_head, vocabulary
from kemem.entropy.sums import Sums
from kemem.errors import BadInput
from kemem.evaluation import evaluating
from kemem.memory import Memories
from kemem.models.streaming import streamed

PADDINGS = ("mask", "include")
SIDES = ("right", "left")


@dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """What `measure` found. Tensors are on the CPU in float64, entropies in nats.

    usage: mean magnitude of each memory's coefficient (padding="include": its mean sum over a row, as released).
    layers: entropy of each layer; entropy: their sum; bound: L ln M; effective_share: exp(entropy / L) / M.
    next_token_entropy: mean over positions, then over instances; None without a language-model head.
    attention: of each head, likewise; attention_entropy: mean over heads, summed over layers. None unless asked for.
    tokens, instances: what was read, without padding. skipped: empty instances. cut: instances longer than `length`.
    snapshots: usage after each of `marks` instances.
    """

    usage: Float[Tensor, "L M"]
    layers: Float[Tensor, " L"]
    entropy: float
    bound: float
    effective_share: float
    next_token_entropy: float | None
    attention: Float[Tensor, "L H"] | None
    attention_entropy: float | None
    tokens: int
    instances: int
    skipped: int
    cut: int
    length: int | None
    coefficient: str
    padding: str
    snapshots: dict[int, Float[Tensor, "L M"]] = field(default_factory=dict)

    def __repr__(self) -> str:
        layers, memories = self.usage.shape
        return (
            f"Measurement(entropy {self.entropy:.4f} of at most {self.bound:.4f} nats, effective share "
            f"{self.effective_share:.1%} of {layers} x {memories} memories; {self.coefficient}, {self.padding}; "
            f"{self.tokens} tokens, {self.instances} instances)"
        )


def measure(
    model: nn.Module,
    instances: Any,
    *,
    batch_size: int = 8,
    pad_id: int | None = None,
    coefficient: str = "abs",
    padding: str = "mask",
    length: int | None = None,
    attention: bool = False,
    next_token: bool = True,
    marks: Sequence[int] = (),
    side: str = "right",
    group: int = WINDOW,
    progress: Callable[[int, int | None], object] | None = None,
) -> Measurement:
    """Knowledge entropy of the model on tokenised instances (Kim et al. 2025, eq. 2), and what one pass gives besides.

    C = 1/N sum_n 1/T_n sum_t |c_nt|: the mean over the tokens of an instance, then over instances; likewise for
    attention (eq. 3) and next-token entropy (A.4). Padding changes nothing: its positions are left out. In float64,
    where ten digits are asked for, texts of different lengths are not even put in one batch: eager attention (GPT-J
    has no other) takes its softmax in float32 whatever the model, where padding changes the order of a sum, and
    what masks it in float64 overflows there.

    instances: lists of token ids, or something that keeps them in `ids` (blocks, a tensor [N T]). Empty ones are
    skipped, those beyond `length` cut to it; both are counted. length: None, or more than the context, means the
    context. coefficient: one of COEFFICIENTS. attention: also the entropy of attention, by eager attention during
    this call. marks: numbers of instances after which to keep the usage so far. group: batches that go together
    through a model whose blocks stay on the disk (`kemem.models.stream`), so that every block is read once for all of
    them; their streams [B T D] are kept meanwhile, on the model's device. progress: called with the instances done,
    of such a model the same work in whole instances, and their total, None where unknown.

    padding="include" is the authors' code instead of eq. 2: every instance is padded with `pad_id` to `length`
    (2,048 there), the model is not told, and all positions count. Usage is then their sum, as released, whose scale
    the entropy ignores.

    Refused: no instance with a token, ids outside the vocabulary, "relu-gate" where the family has no gate.
    """
    memories = Memories(model)
    if not isinstance(model, PreTrainedModel):
        raise BadInput(
            f"expected a model of transformers, with embeddings that are known; got {type(model).__name__}; of a "
            "module of your own collect Memories(model, layout=...).coefficients, and use layer_entropy."
        )
    longest = context(model)
    _check(
        memories,
        batch_size=batch_size,
        pad_id=pad_id,
        coefficient=coefficient,
        padding=padding,
        length=length,
        group=group,
        side=side,
    )
    if longest is not None:
        length = longest if length is None else min(length, longest)
    if pad_id is None:
        pad_id = getattr(model.config, "pad_token_id", None)
    if padding == "include" and (length is None or pad_id is None):
        missing = "length" if length is None else "pad_id"
        raise BadInput(
            f"padding='include' counts the padding, so it needs {missing}; got none, and the model's configuration "
            f"has none; give {missing}."
        )
    reader = Reader(instances, vocabulary=vocabulary(model), length=length)
    padder = Padder(model, causal=_causal(memories), pad_id=pad_id, padding=padding, side=side, length=length)
    paged = streamed(model) is not None
    sums = (GroupSums if paged else Sums)(
        memories, coefficient, attention=attention, next_token=next_token and has_head(model)
    )
    pad = padding == "include" or model.get_input_embeddings().weight.dtype != torch.float64
    scale = length if padding == "include" else 1
    done, snapshots = 0, {}

    def tell(instances: int, more: int = 0, blocks: int = 0) -> None:
        if progress is not None:
            progress(instances + more * blocks // memories.layers + reader.skipped, reader.total)

    with evaluating(model), eager(model) if attention else nullcontext():
        for rows in groups(windows(reader, batch_size, marks, pad=pad), group if paged else 1, marks):
            count = sum(map(len, rows))
            if paged:
                sums.add_all(list(map(padder, rows)), partial(tell, done, count))
            else:
                sums.add(padder(rows[0]))
            done += count
            tell(done)
            if done in marks:
                snapshots[done] = sums.usage(done) * scale
    if not done:
        raise BadInput(
            f"the text needs at least one instance with a token; got {reader.skipped} empty ones; give other text."
        )

    usage = sums.usage(done) * scale
    layers = layer_entropy(usage)
    heads = sums.attention(done)
    return Measurement(
        usage=usage,
        layers=layers,
        entropy=float(layers.sum()),
        bound=memories.layers * math.log(memories.count),
        effective_share=float(effective_share(layers, memories.count)),
        next_token_entropy=sums.next_token(done),
        attention=heads,
        attention_entropy=None if heads is None else float(heads.mean(-1).sum()),
        tokens=reader.tokens,
        instances=done,
        skipped=reader.skipped,
        cut=reader.cut,
        length=length,
        coefficient=coefficient,
        padding=padding,
        snapshots=snapshots,
    )


def _causal(memories: Memories) -> bool:
    """Whether no token sees a later one; False where it cannot be told, which costs a mask and no more."""
    if memories.layout.attention is None:
        return False
    paths: Iterable[str] = map(memories.attention_path, range(memories.layers))
    return all(
        any(getattr(module, "is_causal", False) for module in trace.module(memories.model, path).modules())
        for path in paths
    )


def _check(
    memories: Memories,
    *,
    batch_size: int,
    pad_id: int | None,
    coefficient: str,
    padding: str,
    length: int | None,
    group: int,
    side: str,
) -> None:
    for name, value, known in (
        ("coefficient", coefficient, COEFFICIENTS),
        ("padding", padding, PADDINGS),
        ("side", side, SIDES),
    ):
        if value not in known:
            raise BadInput(f"{name} must be one of {', '.join(known)}; got {value!r}; choose one of these.")
    for name, number in (("batch_size", batch_size), ("length", length), ("group", group)):
        if number is not None and number < 1:
            raise BadInput(f"{name} must be at least 1; got {number}; give a positive number.")
    if coefficient == "relu-gate" and not memories.gated:
        raise BadInput(
            f"coefficient 'relu-gate' needs a gated feed-forward layer; got {memories.family!r}, which has none; "
            "choose abs or relu."
        )
    size = vocabulary(memories.model)
    if pad_id is not None and not 0 <= pad_id < size:
        raise BadInput(
            f"pad_id must be in 0..{size - 1}, the model's vocabulary; got {pad_id}; use a token of the model."
        )
