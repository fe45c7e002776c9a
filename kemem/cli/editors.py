"""What `kemem edit` makes of its options: an editor by name, layers, and what it reads from files."""

import json
import math
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from kemem.cli.terminal import note, patience, progress
from kemem.errors import BadInput

METHODS = ("memit", "rome", "r-rome", "ft", "ft-l", "ft-w", "mend", "emmet", "pmet", "alphaedit")
BY_KEYS = (
    "memit",
    "rome",
    "r-rome",
    "emmet",
    "pmet",
    "alphaedit",
)  # those that read moments, templates and values
WEIGHTED = ("memit", "emmet", "pmet")
ONE_LAYER = ("rome", "r-rome", "ft", "ft-l", "ft-w")
PUBLISHED = 28, {"rome": (5, 5), "r-rome": (5, 5), "emmet": (5, 5), "ft": (21, 21), "ft-l": (0, 0), "ft-w": (21, 21),
                 "mend": (25, 27), "memit": (3, 8), "pmet": (3, 8), "alphaedit": (3, 8)}  # fmt: skip
RADIUS = 5e-4  # of FT-L, as published for GPT-2 XL
STEPS, RANK = 200, 256  # of training MEND's networks where none are given, far less than published


def layer_list(given: str, method: str) -> tuple[int, ...]:
    """Layers as they were typed, such as 3,4,5; refused where they do not ascend, or are too many for the method."""
    try:
        layers = tuple(int(part) for part in given.split(","))
    except ValueError:
        raise BadInput(f"expected --layers as numbers, such as 3,4,5; got {given!r}; count from 0.") from None
    if any(a >= b for a, b in pairwise(layers)) or layers[0] < 0:
        raise BadInput(f"expected --layers that ascend; got {given}; give each once, the lowest first.")
    if method in ONE_LAYER and len(layers) > 1:
        raise BadInput(f"expected one layer for {method}; got {given}; choose one of them.")
    return layers


def published_layers(method: str, layers: int) -> tuple[int, ...]:
    """Where the method's layers are in GPT-J, in proportion to a model of so many layers."""
    of, known = PUBLISHED
    first, last = (min(layers - 1, round(layer * layers / of)) for layer in known[method])
    return tuple(range(first, last + 1))


def editor_of(method: str, layers: tuple[int, ...], weight: float | None) -> Any:
    """An editor as released, at these layers; MEND is made once there are networks."""
    from kemem import editing

    given = {} if weight is None else {"weight": weight}
    one = layers[0]
    makers: dict[str, Callable[[], Any]] = {
        "memit": lambda: editing.MEMIT(layers, **given),
        "pmet": lambda: editing.PMET(layers, **given),
        "emmet": lambda: editing.EMMET(layers, **given),
        "alphaedit": lambda: editing.AlphaEdit(layers),
        "rome": lambda: editing.ROME(one),
        "r-rome": lambda: editing.ROME(one, key="averaged"),
        "ft": lambda: editing.FineTune.ft(one),
        "ft-l": lambda: editing.FineTune.ft_l(one, RADIUS),
        "ft-w": lambda: editing.FineTune.ft_w(one, released=True),
    }
    return makers[method]()


def mend(
    net: Any,
    tokenizer: Any,
    others: Sequence[Any],
    rows: Sequence[list[int]],
    layers: Sequence[int],
    seed: int,
) -> Any:
    """MEND with networks trained on other requests, the edits of which are to leave ordinary text alone."""
    from kemem import editing

    networks = editing.Networks.of(net, layers, rank=RANK, seed=seed)
    editing.train_(
        networks, net, tokenizer, others, TokenRows(rows), editing.Training(steps=STEPS, network_rate=1e-4, seed=seed),
        progress=progress("training networks"),
    )  # fmt: skip
    return editing.MEND(networks)


class TokenRows:
    """Texts as token ids, as `kemem.evaluation` reads them."""

    def __init__(self, rows: Sequence[list[int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Any) -> dict[str, Any]:
        from kemem.evaluation import padded

        ids, mask = padded([self.rows[i] for i in indices.tolist()])
        return {"input_ids": ids, "attention_mask": mask}


def ordinary(
    net: Any, tokenizer: Any, corpus: str, instances: int, length: int | None, longest: int
) -> list[list[int]]:
    """The first texts of a corpus as token ids, cut to `length`, or to what is usual and the model's context."""
    from kemem.corpora import stream
    from kemem.editing import text_rows

    context = getattr(net.config, "max_position_embeddings", None)
    used = min(n for n in (length or longest, context) if n is not None)
    if length is not None and used < length:
        note(f"--length {length} is beyond the model's context and was cut to it: {used} tokens.")
    with patience(f"reading {corpus}"):
        rows = text_rows(tokenizer, stream(corpus), instances, used)
    if not rows:
        raise BadInput(f"expected ordinary text with tokens; got none in {corpus}; give another --corpus.")
    return rows


def read_templates(file: Path) -> tuple[str, ...]:
    """Contexts from a JSON list of strings with one {} each, of which the first is "{}"."""
    from kemem.editing import check_templates

    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fault = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BadInput(
            f"expected --templates as a JSON list of strings; got {fault} in {file}; correct it."
        ) from None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise BadInput(
            f'expected --templates as a JSON list of strings; got something else in {file}; write ["{{}}"].'
        )
    check_templates(found)
    return tuple(found)


def read_values(file: Path) -> Any:
    """Target vectors: the tensor `z` of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)["z"]
    except (OSError, SafetensorError, KeyError) as error:
        fault = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BadInput(
            f"expected --values as safetensors with a tensor z; got {fault} in {file}; write it with --save-values."
        ) from None


def write_values(file: Path, targets: Any) -> None:
    """Target vectors, in the precision they were found in."""
    from safetensors.torch import save_file

    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        save_file({"z": targets.detach().cpu().contiguous()}, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def by_layer(memories: Any, norms: dict[str, float]) -> dict[str, float]:
    """Frobenius norm of what is added, by layer: over all parameters of a block."""
    blocks = {layer: memories.block_path(layer) + "." for layer in range(memories.layers)}
    sums: dict[str, float] = {}
    for name, norm in norms.items():
        layer = next(str(layer) for layer, path in blocks.items() if name.startswith(path))
        sums[layer] = math.hypot(sums.get(layer, 0.0), norm)
    return sums


def show(document: dict[str, Any]) -> None:
    """Scores before and after as a table for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    names = ("ES", "PS", "NS", "S", "rewrite_tokens", "paraphrase_tokens", "locality_tokens", "S_tokens")
    shown = [name for name in names if document["after"].get(name) is not None]
    table = Table(box=SIMPLE)
    for head in ("", *shown):
        table.add_column(head, justify="right", no_wrap=True)
    for when in ("before", "after"):
        numbers = (document[when].get(name) for name in shown)
        table.add_row(when, *("" if n is None else f"{n:.1f}" for n in numbers))
    print(f"{document['method']}, {document['n']} requests, layers {', '.join(map(str, document['layers']))}")
    Console().print(table)
    print("seconds", *(f"{name} {value:.1f}" for name, value in document["seconds"].items()))
    for name, value in document["update_norm"].items():
        print(f"added to layer {name}: norm {value:.4g}")
