"""Reading models from the hub or a folder, and saying in one line why one cannot be read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import errors
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
)

from kemem import commits
from kemem.errors import BadInput
from kemem.models.hub import Snapshot
from kemem.models.places import named_device, named_dtype
from kemem.models.shape import FAMILIES, MASKED
from kemem.progress import quiet_transformers

UNREADABLE = (
    OSError, ValueError, KeyError, RuntimeError, ImportError, ArithmeticError, SafetensorError,
    errors.StrictDataclassError,
)  # fmt: skip
"""What `transformers` raises where a folder's configuration or weights are not as they should be."""

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

    revision: a branch, tag or commit on the hub, or the beginning of one branch ("step1000" of
    "step1000-tokens4B"); in a local folder a sub-folder, as `train` writes its checkpoints. head=False leaves
    out the projection to the vocabulary. attention: "sdpa", "eager", as in `transformers`.
    Only safetensors are read, and no code of a model's authors runs. Of the hub, all files are
    of one commit, and as it describes them. Refused: a missing folder or revision, a folder without a model, a
    family that `transformers` does not know, weights that lack a part of the model.
    """
    place, kind = named_device(device), named_dtype(dtype, device)
    source = _Source(name, revision)
    config = source.config()
    masked = config.model_type in MASKED and not config.is_decoder
    loader = (AutoModelForMaskedLM if masked else AutoModelForCausalLM) if head else AutoModel
    folder = source.whole()
    extra: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if masked and not head:
        extra["add_pooling_layer"] = False  # the pooler belongs to a task that is not ours
    try:
        with quiet_transformers():
            model, report = loader.from_pretrained(
                folder, config=config, dtype=kind, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True, **extra,
            )  # fmt: skip
    except UNREADABLE as error:
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


def branches(name: str) -> tuple[str, ...]:
    """The branches of a hub model that are steps of its training, by their number; offline, those fetched before."""
    with _said(name, None):
        found = commits.branches(name) if commits.reachable() else commits.kept(name)
    steps = {one: commits.step(one) for one in found}
    return tuple(one for number, one in sorted((n, one) for one, n in steps.items() if n is not None))


def fetch(name: str, *, revision: str | None = None, folder: str | Path | None = None) -> Path:
    """A model's files from the hub, all of one commit and checked; the folder they lie in.

    revision: as in `load`. folder: where they are to lie instead of the cache; it appears when it is complete,
    with `fetched.json` beside them: model, branch, commit and hashes. What was fetched before is not fetched again,
    nor after an interruption. Only safetensors, configuration and tokenizer come, no second copy of the weights.
    Refused: a name or revision that is not there, weights in another format, too small a disk, content that is not
    what the hub says it is, a folder with something else in it.
    """
    with _said(name, revision):
        snapshot = Snapshot(name, revision)
        return snapshot.whole() if folder is None else snapshot.pinned(Path(folder).expanduser().absolute())


def family(name: str, *, revision: str | None = None) -> str:
    """The family of a model ("olmo", "gpt2", ...), from its configuration alone."""
    return _Source(name, revision).config().model_type


def commit(name: str, *, revision: str | None = None) -> str | None:
    """The commit of the hub that a revision of a model stands for now; None of a local folder.

    What is loaded by it afterwards is that one, also where somebody pushes in between.
    """
    source = _Source(name, revision)
    return None if source.local else source.snapshot.commit


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
        folder = Path(name).expanduser()
        self.local = bool(name) and folder.is_dir()
        if self.local:
            self.place = str(_inside(folder, revision))
            return
        if not name or folder.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise BadInput(
                f"expected a folder with a model, or a name on the hub; got {name!r}, which is neither; "
                "check the path."
            )
        with _said(name, revision):
            self.snapshot = Snapshot(name, revision)
            self.place = str(self.snapshot.configuration())

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}" if self.revision else self.name

    def whole(self) -> str:
        """The folder, with the weights in it."""
        if not self.local:
            with _said(self.name, self.revision):
                self.snapshot.whole()
        return self.place

    def config(self) -> Any:
        try:
            return AutoConfig.from_pretrained(self.place, trust_remote_code=False)
        except (*UNREADABLE, TypeError, AttributeError) as error:
            raise self.refusal(error) from error

    def tokenizer(self) -> Any:
        if not self.local:
            with _said(self.name, self.revision):
                self.snapshot.small()
        if not any((Path(self.place) / file).is_file() for file in TOKENIZERS):
            return None
        try:
            found = AutoTokenizer.from_pretrained(self.place, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise BadInput(
                f"expected a tokenizer that opens in {self}; got {_line(error)}; replace it."
            ) from error
        found.name_or_path = self.place if self.local else self.name
        return found

    def refusal(self, error: Exception) -> BadInput:
        """What to say of a model that `transformers` could not open."""
        text = _line(error)
        unknown = self.unknown_family()
        if unknown:
            known = ", ".join(sorted(FAMILIES))
            return BadInput(
                f"expected a model of a known family in {self}; got {unknown!r}; kemem reads {known}."
            )
        if isinstance(error, OSError) and "safetensors" in text and "config.json" not in text:
            return BadInput(
                f"expected weights as safetensors in {self}; got none; write them with save_pretrained first."
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
        if (folder / "model.pt").is_file():
            hint = "it is one of OLMo's own: kemem.models.convert writes it anew"
        raise BadInput(f"expected a folder with a model; got {folder} without a config.json; {hint}.")
    return folder


def _stages(folder: Path) -> list[str]:
    """Sub-folders that hold a model, in the order of the numbers in their names."""
    return sorted((path.parent.name for path in folder.glob("*/config.json")), key=_by_number)


def _by_number(name: str) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, name))
    return (int(digits) if digits else -1, name)


@contextmanager
def _said(name: str, revision: str | None) -> Iterator[None]:
    """Turns what the network, a proxy or the disk raise while a model is fetched into one line."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(_reason(name, revision, error)) from error


def _reason(name: str, revision: str | None, error: Exception) -> str:
    source = f"{name} at {revision}" if revision else name
    if isinstance(error, errors.GatedRepoError):
        return (
            f"expected leave to fetch {source}; got a model whose terms you have not accepted; accept them on its "
            "page, and log in with `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return (
            f"expected {source} to be a folder or a model on the hub; got no such model there, or a private one; "
            "check the name, or log in with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"expected a revision of {name}; got {revision!r}, which the hub does not have; see its branches."
        )
    number = None if isinstance(error, ConnectionError | TimeoutError) else getattr(error, "errno", None)
    if number is not None:
        full = number in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "make it writable"
        return (
            f"expected to write {source} to the cache or folder; got: {os.strerror(number)}; {remedy}, or set "
            "HF_HOME to another folder, and run this again."
        )
    asked = commits.status(error) or commits.status(error.__cause__)
    what = f"status {asked}" if asked else f"{type(error).__name__}: {_line(error)}"
    remedy = "wait some minutes" if asked == 429 else "wait, or see to the network"
    return (
        f"expected the hub to send {source}; got {what}; {remedy}, and run this again: whole files are kept."
    )


def _line(error: Exception) -> str:
    """The beginning of a message, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."
