"""What `kemem edit` makes of its options: an editor by name, layers, and what it reads from files."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from kemem.cli.terminal import note, patience, progress
from kemem.errors import BadInput

METHODS = ("memit", "rome", "r-rome", "ft", "ft-l", "ft-w", "mend", "emmet", "pmet", "alphaedit")
BY_KEYS = ("memit", "rome", "r-rome", "emmet", "pmet", "alphaedit")  # by moments, templates and values
READERS = (*BY_KEYS, "mend")  # of ordinary text
WEIGHTED = ("memit", "emmet", "pmet")
ONE_LAYER = ("rome", "r-rome", "ft", "ft-l", "ft-w")
PUBLISHED = 28, {"rome": (5, 5), "r-rome": (5, 5), "emmet": (5, 5), "ft": (21, 21), "ft-l": (0, 0), "ft-w": (21, 21),
                 "mend": (25, 27), "memit": (3, 8), "pmet": (3, 8), "alphaedit": (3, 8)}  # fmt: skip
PHASES = ("moments", "values", "keys", "solve", "scores")
RADIUS = 5e-4  # of FT-L, as published for GPT-2 XL
STEPS, RANK = 200, 256  # of training MEND's networks where none are given, far less than published


def check_options(method: str, weight: float | None, given: Mapping[str, Any]) -> None:
    """Refuses options that the method has no use for, two sources of moments, and a weight that weighs nothing."""
    uses = {"--weight": WEIGHTED, "--corpus": READERS, "--instances": READERS, "--length": READERS}
    used = {option for option, value in given.items() if value is not None}
    for option in given:
        methods = uses.get(option, BY_KEYS)
        if option in used and method not in methods:
            raise BadInput(f"expected {option} with one of {', '.join(methods)}; got {method}; leave it out.")
        if option in used and methods is READERS and "--moments" in used:
            raise BadInput(
                f"expected moments of a file or of text; got --moments and {option}; leave one of them out."
            )
    if weight is not None and not 0 < weight < math.inf:
        raise BadInput(f"expected --weight to be a number above 0; got {weight}; 15000 is as released.")


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


def outline(config: Any, method: str) -> Any:
    """The layers and sizes of a model from its configuration, without weights; refused where it cannot be edited so."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    from kemem.cli.measuring import check_family
    from kemem.editing import editable
    from kemem.memory import Memories
    from kemem.models import MASKED
    from kemem.progress import quiet_transformers

    family = config.model_type
    check_family(family, "abs")
    auto = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    with torch.device("meta"), quiet_transformers():
        net = auto.from_config(config, trust_remote_code=False)
    if family in MASKED:
        more = ", and normalises what its feed-forward layers put out" if method in BY_KEYS else ""
        raise BadInput(
            f"expected a model that predicts the next token; got {family}, which fills in masked ones{more}; choose "
            "another model."
        )
    if method in BY_KEYS:
        return editable(net)
    return Memories(net)


def check_moments(moments: Any, sizes: Any, layers: Sequence[int], method: str) -> Any:
    """The moments themselves; refused where they are another model's, or no second moments at all."""
    import torch

    from kemem.editing.moments import invertible

    moments.checked(sizes, layers)
    if method != "alphaedit":
        invertible(moments, layers)
        return moments
    for layer in layers:  # which writes where ordinary keys have no part, so 0 is well, and less is no square
        moment = moments[layer]
        nearly = 1e-6 * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        if torch.linalg.cholesky_ex(moment + nearly).info:
            raise BadInput(
                f"expected moments without negative squares; got others for layer {layer}; measure them anew."
            )
    return moments


def check_values(values: Any, requests: int, width: int) -> None:
    """Refuses target vectors of other requests or another model."""
    if tuple(values.shape) != (requests, width):
        raise BadInput(
            f"expected --values of shape {(requests, width)}, a target vector for each request; got "
            f"{tuple(values.shape)}; give those of the same requests and model."
        )
    if not values.isfinite().all():
        raise BadInput("expected --values that are numbers; got some that are not finite; find them anew.")


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
        progress=counted("training networks", "steps"),
    )  # fmt: skip
    return editing.MEND(networks)


def settings_of(editor: Any) -> dict[str, Any]:
    """What an editor was told, for JSON; of MEND's networks how they were made."""
    told: dict[str, Any] = {"name": type(editor).__name__}
    for each in fields(editor):
        value = getattr(editor, each.name)
        if each.name == "networks":
            value = {"rank": value.rank, "steps": STEPS}
        told[each.name] = asdict(value) if is_dataclass(value) else value
    return told


def counted(title: str, unit: str = "") -> Callable[..., None]:
    """A reporter whose lines say what is counted: "memit: 2 of 6 layers, layer 4"."""
    report = progress(title)

    def tell(done: int, total: int, message: str = "") -> None:
        more = message.removeprefix(f"{done} of {total} ")
        what = unit or {"layer": "layers", "epoch": "epochs"}.get(more.split(" ")[0], "")
        report(done, total, ", ".join(filter(None, (what, more))))

    return tell


class TokenRows:
    """Texts as token ids, as `kemem.evaluation` reads them."""

    def __init__(self, rows: Sequence[list[int]]) -> None:
        self.rows = [row for row in rows if len(row) > 1]  # one token predicts nothing

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Any) -> dict[str, Any]:
        from kemem.evaluation import padded
        from kemem.objective import IGNORED

        ids, mask = padded([self.rows[i] for i in indices.tolist()])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


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
    from kemem.corpora.files import expanded
    from kemem.editing import check_templates

    file = expanded(str(file))
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

    from kemem.corpora.files import expanded

    file = expanded(str(file))
    try:
        found = load_file(file)
        if "z" in found:
            return found["z"]
        fault = f"tensors named {', '.join(sorted(found)[:3])}" if found else "no tensor"
    except (OSError, SafetensorError) as error:
        fault = getattr(error, "strerror", None) or str(error).splitlines()[0]
    raise BadInput(
        f"expected --values as safetensors with a tensor z; got {fault} in {file}; write it with --save-values."
    )


def write_values(file: Path, targets: Any) -> None:
    """Target vectors, in the precision they were found in."""
    from safetensors.torch import save_file

    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        save_file({"z": targets.detach().cpu().contiguous()}, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def by_layer(memories: Any, norms: Mapping[str, float], layers: Sequence[int]) -> dict[str, float]:
    """Frobenius norm of what is added, by layer: over all parameters of a block. Refused: what is no number."""
    sums = dict.fromkeys(layers, 0.0)
    for layer in layers:
        for name, norm in norms.items():
            if name.startswith(memories.block_path(layer) + "."):
                sums[layer] = math.hypot(sums[layer], norm)
        if not math.isfinite(sums[layer]):
            raise BadInput(
                f"expected an update of finite numbers; got others for layer {layer}; take --dtype float32, or other "
                "moments."
            )
    return {str(layer): norm for layer, norm in sums.items()}
