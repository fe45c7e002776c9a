"""Models bigger than a card, or than memory: their blocks stay on the disk, and one is in memory at a time.

    model, tokenizer = stream("allenai/OLMo-7B-hf", device="cuda", dtype="bfloat16")

is a model of `transformers` like any other to whoever calls it: embeddings, final norm and head are in memory, blocks
are read from the safetensors files as they run (`kemem.models.paging`). It can be measured, traced and edited, with the
numbers that it has in memory; it cannot be trained, copied or changed in place.
"""

from __future__ import annotations

import copy
import json
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
)

from kemem import trace
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.models.paging import Pages, Shards
from kemem.models.places import named_device, named_dtype
from kemem.models.reading import UNREADABLE, _Source
from kemem.models.shape import MASKED
from kemem.progress import quiet_transformers

KEPT = 2**30  # bytes of streams between the blocks of a sweep
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def stream(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    head: bool = True,
    attention: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """`kemem.models.load`, but for the blocks, which are read as they run: the model, and its tokenizer or None.

    Memory: embeddings, norm and head, one block, and what the pass itself needs. The blocks are not read here, but
    their names and sizes are checked. Refused: what `load` refuses, and files that are cut or altered, also later.
    """
    place, kind = named_device(device), named_dtype(dtype, device)
    source = _Source(name, revision)
    config = source.config()
    masked = config.model_type in MASKED and not config.is_decoder
    auto = (AutoModelForMaskedLM if masked else AutoModelForCausalLM) if head else AutoModel
    own = {"add_pooling_layer": False} if masked and not head else {}
    if attention:
        own["attn_implementation"] = attention
    try:
        with quiet_transformers(), torch.device("meta"):
            outline = auto.from_config(copy.deepcopy(config), dtype=kind, **own)
    except UNREADABLE as error:
        raise source.refusal(error) from error
    memories = Memories(outline)
    folder = Path(source.whole())
    blocks = trace.module(outline, memories.blocks_path)
    # without blocks it is a small model, whose other weights transformers reads as it always does; where blocks have
    # tables of their own (GPT-J's positions), one of them shows what is in these
    short = copy.deepcopy(config)
    short.num_hidden_layers = int(any(True for _ in blocks.buffers()))
    try:
        with quiet_transformers():
            model, report = auto.from_pretrained(
                folder, config=short, dtype=kind, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True, **own,
            )  # fmt: skip
    except UNREADABLE as error:
        raise source.refusal(error) from error
    if lacking := sorted(map(str, [*report["missing_keys"], *report.get("mismatched_keys", ())])):
        raise BadInput(
            f"expected all weights of a {config.model_type} model in {source}; got {len(lacking)} missing or of "
            f"another shape, {lacking[0]} first; give a complete model."
        )
    if place.type == "cpu":  # transformers maps the file, which may change: these are to be their own
        for kept in model.parameters():
            kept.data = kept.data.clone()
    model.to(place).eval().requires_grad_(False)
    _put(model, memories.blocks_path, blocks, config)
    pages = Pages(model, memories.blocks_path, Shards(_weights(folder)), place)
    model.pages = model.base_model.pages = pages
    model.save_pretrained = _saver(model)
    return model, source.tokenizer()


def streamed(model: nn.Module) -> Pages | None:
    """The blocks of a model that are on the disk; None of a model in memory."""
    found = getattr(model, "pages", None)
    return found if isinstance(found, Pages) else None


def save(model: nn.Module, folder: str | Path) -> None:
    """A streamed model with the edits that lie over it, as a folder that `from_pretrained` opens.

    The files are copied, and only edited tensors are written, in the number type that they have there: stream the
    model in that type for an edit to be saved to the last bit. The tokenizer is not saved.
    """
    pages = streamed(model)
    if pages is None:
        raise BadInput(
            "expected a model whose blocks are on the disk; got one in memory; use save_pretrained."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(file.parent.resolve() == folder.resolve() for file in pages.shards.marks):
        raise BadInput(f"expected another folder than that of the model; got {folder}; give a new one.")
    names = {file.name for file in pages.shards.marks}
    if other := sorted(
        path.name for path in folder.glob("*.safetensors*") if path.name not in {*names, INDEX}
    ):
        raise BadInput(
            f"expected a folder without other weights; got {other[0]} in {folder}, which would be read in place of "
            "these; give a new one."
        )
    pages.shards.check(pages.shards.marks)
    for file in pages.shards.marks:
        shutil.copyfile(file, folder / file.name)
    if (index := file.parent / INDEX).is_file() and file.name != WEIGHTS:
        shutil.copyfile(index, folder / INDEX)
    for stored, tensor in pages.edited():
        pages.shards.overwrite(folder, stored, tensor)
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def sweep(
    memories: Memories,
    calls: Sequence[Mapping[str, Any]],
    *,
    stop: int | None = None,
    before: Callable[[int], object] = lambda call: None,
    after: Callable[[int, Any], object] = lambda call, output: None,
    done: Callable[[int], object] = lambda blocks: None,
) -> None:
    """Many passes of the base model side by side, block by block, so that each block is read once for all of them.

    calls: what the base model is called with, one pass each. stop: the number of blocks that run, by default all.
    before(i): pass i goes through a block next, whose hooks run then. after(i, output): pass i is through, with what
    the base model puts out: normalised, and meant for the head only where all blocks ran. done(n): n blocks have run.
    Between blocks the streams of all passes are kept. The numbers are those of one pass after the other.
    """
    model, path = memories.model, memories.blocks_path
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if len(kinds) > 1:
        raise BadInput(
            f"expected layers of one kind of attention, to run by themselves; got {', '.join(sorted(kinds))}; take a "
            "model without sliding windows, or load it without streaming."
        )
    base = getattr(model, model.base_model_prefix, model)
    stop = memories.layers if stop is None else stop
    above, _, name = path.rpartition(".")
    holder = trace.module(model, above)
    whole = getattr(holder, name)
    streams: list[Tensor | None] = [None] * len(calls)
    try:
        for layer in range(stop):
            setattr(holder, name, whole[layer : layer + 1])
            for i, call in enumerate(calls):
                before(i)
                output, streams[i] = _through(base, model, f"{path}.0", call, streams[i])
                if layer + 1 == stop:
                    streams[i] = None
                    after(i, output)
                del output
            done(layer + 1)
    finally:
        setattr(holder, name, whole)


def together(tokens: Sequence[int], memories: Memories, bytes: int = KEPT) -> Iterator[range]:
    """Passes of so many tokens [each rows x length] that one sweep takes: as many as keep their streams in `bytes`."""
    weight = memories.model.get_input_embeddings().weight
    most, begin, held = max(1, bytes // (memories.width * weight.element_size())), 0, 0
    for number, count in enumerate(tokens):
        if held and held + count > most:
            yield range(begin, number)
            begin, held = number, 0
        held += count
    if held:
        yield range(begin, len(tokens))


@contextmanager
def head_alone(model: PreTrainedModel, outputs: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block, what the model does after its base model, as a function: hidden [1 N D] -> logits [1 N V].

    outputs: what the base model returned. The model's own forward runs, with a base model that hands it the hidden
    states given instead of computing them: so whatever the family does there (BERT's transform, a bias, a scale, a
    cap) is done, without a row a family.
    """
    base = model.base_model
    own = base.__dict__.get("forward")  # set where something (accelerate, say) has wrapped this one module

    def logits(hidden: Tensor) -> Tensor:
        base.forward = lambda *_, **__: type(outputs)(last_hidden_state=hidden)
        return model(input_ids=None).logits

    try:
        yield logits
    finally:
        if own is not None:
            base.forward = own
        else:
            base.__dict__.pop("forward", None)


def _through(
    base: nn.Module, model: nn.Module, path: str, call: Mapping[str, Any], stream: Tensor | None
) -> tuple[Any, Tensor]:
    """The base model with one block, which is given `stream` instead of what the embeddings give."""
    left: list[Tensor] = []
    entering = {} if stream is None else {path: lambda _: stream}
    with (
        trace.replace(model, entering, side="input"),
        trace.observe(model, {path: left.append}, side="output"),
    ):
        output = base(**call)
    return output, left[0]


def _weights(folder: Path) -> list[Path]:
    """The files with the weights: one, or those that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    named = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return [folder / file for file in sorted(set(named.values()))]


def _put(model: PreTrainedModel, path: str, blocks: nn.Module, config: Any) -> None:
    """Gives a model without blocks these, and the sizes of one that has them."""
    above, _, name = path.rpartition(".")
    holder = trace.module(model, above)
    # one block at most, read to see what is in tables that are computed and not in the files
    for shown in getattr(holder, name):
        for place, table in shown.named_buffers():
            inner, _, attribute = place.rpartition(".")
            for block in blocks:
                setattr(block.get_submodule(inner), attribute, table)
    setattr(holder, name, blocks.eval().requires_grad_(False))
    # of all modules one: what is set in it later, such as eager attention, holds for all
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = model.config
    model.config.num_hidden_layers = config.num_hidden_layers


def _saver(model: nn.Module) -> Callable[[str | Path], None]:
    weak = weakref.ref(model)

    def save_pretrained(save_directory: str | Path) -> None:
        save(weak(), save_directory)

    return save_pretrained
