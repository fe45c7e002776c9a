"""From texts to tensors: blocks without padding for training, single instances for measuring."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kemem.errors import BadInput

_BATCH = 1 << 18  # characters tokenised at a time: enough for all threads, little lost where a limit is met


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of T tokens cut out of one stream of documents, each followed by the end of text.

    document: number of the document a token belongs to, counted from 0 in each block, so that borders are
    known; the end of text belongs to the document it ends. dropped: tokens of the last, incomplete block.
    skipped: texts without a token.
    """

    ids: Int[Tensor, "N T"]
    document: Int[Tensor, "N T"]
    dropped: int = 0
    skipped: int = 0

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    def batch(self, indices: Sequence[int] | Int[Tensor, "B"]) -> dict[str, Int[Tensor, "B T"]]:
        """`input_ids` and `labels` of these blocks; the labels are the inputs, the loss shifts them."""
        ids = self.ids[torch.as_tensor(indices, dtype=torch.long)].long()
        return {"input_ids": ids, "labels": ids.clone()}

    def subset(self, count: int, *, seed: int = 0) -> "Blocks":
        """That many blocks, drawn without replacement; all of them where there are not more."""
        chosen = permutation(len(self), seed)[:count]
        return Blocks(self.ids[chosen], self.document[chosen])


@dataclass(frozen=True)
class Instances:
    """Token ids of single texts, none empty. skipped: texts without a token. cut: texts that were longer."""

    ids: list[list[int]]
    skipped: int = 0
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))


def permutation(count: int, seed: int) -> list[int]:
    """The numbers below count in an order that depends on the seed and on nothing else, on any machine."""
    return sorted(range(count), key=lambda i: hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=8).digest())


def pack(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    seed: int = 0,
    limit_tokens: int | None = None,
) -> Blocks:
    """Texts in shuffled order as one stream of tokens, cut into blocks of `length`; the tail is dropped.

    Special tokens spelled out in a text are read as ordinary text, so that an end of text is always a border.
    limit_tokens: stop reading once the stream is that long. Refused: fewer tokens than one block, a tokenizer
    without an end of text.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise BadInput("packing needs a tokenizer with an end of text; got none; set tokenizer.eos_token.")
    if length < 2:
        raise BadInput(f"a block must have at least 2 tokens; got {length}.")
    stream: list[numpy.ndarray] = []
    lengths: list[int] = []
    total = skipped = 0
    for ids in _encoded((texts[i] for i in permutation(len(texts), seed)), tokenizer, plain=True):
        if not ids:
            skipped += 1
            continue
        stream.append(numpy.array([*ids, end], dtype=numpy.int32))
        lengths.append(len(ids) + 1)
        total += lengths[-1]
        if limit_tokens is not None and total >= limit_tokens:
            break
    used = total if limit_tokens is None else min(total, limit_tokens)
    count = used // length
    if not count:
        raise BadInput(
            f"a corpus must fill at least one block of {length} tokens; got {used} in {len(lengths)} texts; "
            "use more text or shorter blocks."
        )
    kept = count * length
    ids = torch.from_numpy(numpy.concatenate(stream)[:kept]).view(count, length)
    number = numpy.repeat(numpy.arange(len(lengths), dtype=numpy.int32), lengths)[:kept]
    document = torch.from_numpy(number).view(count, length)
    return Blocks(ids, document - document[:, :1], dropped=used - kept, skipped=skipped)


def instances(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int, *, limit: int | None = None
) -> Instances:
    """One text, one instance: its first `length` tokens, without special tokens.

    limit: how many instances; texts without a token are skipped and counted and do not use it up.
    Refused: no text with a token.
    """
    if length < 1:
        raise BadInput(f"an instance must have at least 1 token; got a length of {length}.")
    if limit is not None and limit < 1:
        raise BadInput(f"at least 1 instance must be asked for; got {limit}.")
    kept: list[list[int]] = []
    skipped = cut = 0
    for ids in _encoded(texts, tokenizer, plain=False):
        if not ids:
            skipped += 1
            continue
        cut += len(ids) > length
        kept.append(ids[:length])
        if limit is not None and len(kept) == limit:
            break
    if not kept:
        raise BadInput(f"at least one text must have a token; got {skipped} texts, none with a token.")
    return Instances(kept, skipped, cut)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, plain: bool) -> Iterator[list[int]]:
    """Token ids of each text, without special tokens; plain: without those that the text spells out, too."""
    spelled = {"split_special_tokens": True} if plain else {}
    for batch in _batches(texts):
        yield from tokenizer(
            batch,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **spelled,
        )["input_ids"]
