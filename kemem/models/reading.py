"""Reading models from the hub or a folder, and saying in one line why one cannot be read."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
)

from kemem.errors import BadInput
from kemem.models.places import named_device, named_dtype
from kemem.models.shape import FAMILIES, MASKED
from kemem.progress import quiet_transformers

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    head: bool = True,
    attention: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A model in evaluation mode and its tokenizer (None without one), from the hub or a local folder.

    revision: a branch, tag or commit on the hub; in a local folder a sub-folder, as `train` writes its
    checkpoints. head=False leaves out the projection to the vocabulary. attention: "sdpa", "eager", as in
    `transformers`. Only safetensors are read, and no code of a model's authors runs. Refused: a missing
    folder or revision, a folder without a model, a family that `transformers` does not know, weights that
    lack a part of the model.
    """
    place, kind = named_device(device), named_dtype(dtype, device)
    source = _Source(name, revision)
    config = source.config()
    masked = config.model_type in MASKED and not config.is_decoder
    loader = (AutoModelForMaskedLM if masked else AutoModelForCausalLM) if head else AutoModel
    extra: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if masked and not head:
        extra["add_pooling_layer"] = False  # the pooler belongs to a task that is not ours
    try:
        with quiet_transformers():
            model, report = loader.from_pretrained(
                source.place, config=config, dtype=kind, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True, **extra, **source.options,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise source.refusal(error) from error
    lacking = sorted(map(str, [*report["missing_keys"], *report.get("mismatched_keys", ())]))
    if lacking:
        raise BadInput(
            f"expected all weights of a {config.model_type} model in {source}; got {len(lacking)} missing or "
            f"of another shape, {lacking[0]} first; give a complete model."
        )
    return model.to(place).eval(), source.tokenizer()


def revisions(name: str) -> tuple[str, ...]:
    """The stages of a model in a local folder: its sub-folders that hold one, by the numbers in their names.

    Of a folder that is itself a model, and of a hub name: "", the one that is read without naming any.
    """
    folder = Path(name).expanduser()
    whole = not folder.is_dir() or (folder / "config.json").is_file()
    return ("",) if whole else tuple(_stages(folder)) or ("",)


def family(name: str, *, revision: str | None = None) -> str:
    """The family of a model ("olmo", "gpt2", ...), from its configuration alone."""
    return _Source(name, revision).config().model_type


def described(name: str, *, revision: str | None = None) -> tuple[Any, Any]:
    """The configuration of a model and its tokenizer (None without one), without reading its weights.

    Refused: what `load` refuses too, but for faults of the weights.
    """
    source = _Source(name, revision)
    return source.config(), source.tokenizer()


class _Source:
    """A place that models are read from: a folder, or a name on the hub at a revision."""

    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.revision = name, revision
        self.options: dict[str, Any] = {}
        folder = Path(name).expanduser()
        self.local = bool(name) and folder.is_dir()
        self.place = str(_inside(folder, revision)) if self.local else name
        if self.local:
            return
        if not name or folder.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise BadInput(
                f"expected a folder with a model, or a name on the hub; got {name!r}, which is neither; "
                "check the path."
            )
        if revision is not None:
            self.options["revision"] = revision
        if not _reachable():
            self.options["local_files_only"] = True  # what was fetched before can be read all the same

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}" if self.revision else self.name

    def config(self) -> Any:
        try:
            return AutoConfig.from_pretrained(self.place, trust_remote_code=False, **self.options)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.refusal(error) from error

    def tokenizer(self) -> Any:
        if self.local and not any((Path(self.place) / file).is_file() for file in TOKENIZERS):
            return None
        try:
            return AutoTokenizer.from_pretrained(self.place, trust_remote_code=False, **self.options)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not self.local:
                return None
            raise BadInput(
                f"expected a tokenizer that opens in {self}; got {_line(error)}; replace it."
            ) from error

    def refusal(self, error: Exception) -> BadInput:
        """What to say of a model that `transformers` could not open."""
        text = _line(error)
        unknown = self.unknown_family() if self.local else "does not recognize this architecture" in text
        if unknown:
            known = ", ".join(sorted(FAMILIES))
            what = repr(unknown) if isinstance(unknown, str) else "a family that transformers does not know"
            return BadInput(f"expected a model of a known family in {self}; got {what}; kemem reads {known}.")
        if isinstance(error, OSError) and "safetensors" in text and "config.json" not in text:
            return BadInput(
                f"expected weights as safetensors in {self}; got none; write them with save_pretrained first."
            )
        if isinstance(error, OSError) and not self.local:
            if "local_files_only" in self.options:
                return BadInput(
                    f"expected {self} to be a folder, or a model of the hub fetched before; got no such "
                    "folder and no network; check the name, or connect."
                )
            if self.revision is not None and "revision" in text.lower():
                return BadInput(
                    f"expected a revision of {self.name}; got {self.revision!r}; see its branches."
                )
            return BadInput(
                f"expected {self} to be a folder or a model on the hub; got {text}; check the name."
            )
        return BadInput(
            f"expected a model that opens in {self}; got {type(error).__name__}: {text}; replace it."
        )

    def unknown_family(self) -> str | None:
        """The family that a local configuration names, where `transformers` has none of that name."""
        try:
            named = json.loads((Path(self.place) / "config.json").read_text())["model_type"]
            AutoConfig.for_model(named)
        except (OSError, KeyError, TypeError):
            return None
        except ValueError as error:
            return None if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(named)
        return None


def _inside(folder: Path, revision: str | None) -> Path:
    """The folder of a revision, checked to hold a model."""
    stages = _stages(folder)
    if revision is not None:
        if revision not in stages:
            known = f"choose one of {', '.join(stages)}" if stages else "it has none: leave the revision out"
            raise BadInput(
                f"expected a sub-folder of {folder} with a model; got revision {revision!r}; {known}."
            )
        return folder / revision
    if not (folder / "config.json").is_file():
        hint = f"give a revision: {', '.join(stages)}" if stages else "give one written by save_pretrained"
        raise BadInput(f"expected a folder with a model; got {folder} without a config.json; {hint}.")
    return folder


def _stages(folder: Path) -> list[str]:
    """Sub-folders that hold a model, in the order of the numbers in their names."""
    return sorted((path.parent.name for path in folder.glob("*/config.json")), key=_by_number)


def _by_number(name: str) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, name))
    return (int(digits) if digits else -1, name)


def _reachable(seconds: float = 3.0) -> bool:
    """Whether the hub answers at all; `huggingface_hub` would ask for half a minute before saying no."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True  # only the proxy knows
    address = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=seconds).close()
    except OSError:
        return False
    return True


def _line(error: Exception) -> str:
    """The beginning of a message, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."
