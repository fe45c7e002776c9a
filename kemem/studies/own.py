"""Chapter 16: a model, a text and requests that the reader brings, looked at together before anything runs.

Who brings nothing gets what an own folder looks like: the checkpoints that come with the book, and two files that are
written here. Rows know what was given by its content, not by its name: a folder that moved is found again, one that
changed is measured anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from kemem import corpora, editing, models
from kemem.corpora.files import expanded
from kemem.corpora.spec import SCHEMES
from kemem.editing import Request
from kemem.editing.facts import KnownFact
from kemem.entropy.batches import context
from kemem.errors import BadInput
from kemem.families import read_layout, register
from kemem.memory import Memories
from kemem.models import MASKED
from kemem.progress import quiet_transformers
from kemem.runs import canonical
from kemem.studies import factual, pretraining
from kemem.studies.lab import Lab


@dataclass(frozen=True)
class Sizes:
    """How much of what is brought is read, unless the reader says otherwise."""

    texts: int
    length: int
    facts: int
    samples: int
    dtype: str = "float32"


SCALES = {
    "smoke": Sizes(24, 48, 4, 2, "float64"),  # rounded outputs are then the same on every processor
    "laptop": Sizes(160, 96, 20, 4),
    "gpu": Sizes(2048, 1024, 100, 10),
    "paper": Sizes(2048, 2048, 1000, 10),
}
EXAMPLE = {"smoke": ("step0", "step1400", "step4000")}  # of the example's stages; all at other scales


@dataclass(frozen=True)
class Given:
    """What was brought, checked. identities: of each revision what tells its content from any other."""

    model: str
    revisions: tuple[str, ...]
    identities: tuple[str, ...]
    family: str
    config: Any
    tok: Any
    outline: Memories
    """The last revision's, without weights."""
    texts: tuple[str, ...]
    requests: tuple[Request, ...]
    length: int
    samples: int
    layers: tuple[int, ...] | None
    weight: float | None
    seed: int
    dtype: str

    @property
    def longest(self) -> int | None:
        return context(self.outline.model)

    @property
    def facts(self) -> list[KnownFact]:
        """What the requests say is true now: what can be traced, if the model knows it."""
        return [KnownFact(r.case_id, r.text, r.subject, r.true, r.relation) for r in self.requests if r.true]

    @property
    def untraceable(self) -> str:
        """Why nothing can be traced; "" where it can."""
        if self.family in MASKED:
            return f"{self.family} fills in masked tokens: no prompt has a next one to trace."
        if not self.requests:
            return "No requests were brought."
        return "" if self.facts else "No request says what is true now, so there is no fact to trace."

    @property
    def uneditable(self) -> str:
        """Why nothing can be written by keys; "" where it can."""
        if self.family in MASKED:
            return f"{self.family} fills in masked tokens, and is not edited by keys."
        if not self.requests:
            return "No requests were brought."
        if self.outline.layout.norm != "none":
            return (
                f"{self.family} normalises what its feed-forward layers put out; fine-tune it instead (ft-l)."
            )
        return ""

    def digest(self, what: Any) -> str:
        return sha256(json.dumps(canonical(what), sort_keys=True).encode()).hexdigest()[:16]


def given(
    lab: Lab,
    *,
    model: str | None = None,
    revisions: str | Sequence[str] | None = None,
    text: str | None = None,
    requests: str | None = None,
    layout: str | None = None,
    instances: int | None = None,
    facts: int | None = None,
    layers: Any = None,
    weight: float | int | None = None,
    seed: int = 0,
    dtype: str | None = None,
) -> Given:
    """What the reader brings, or the example. Refused, each in one line: whatever could not be measured, traced or
    edited later, but for faults of the weights.

    Of a model without text docstrings are read; without requests nothing is traced or edited.
    """
    _numbers(facts=facts, weight=weight)
    sizes = SCALES[lab.scale]
    if model is None:
        own = example(lab, sizes)
        text, requests = text or str(own["text"]), requests or str(own["requests"])
    place = str(own["model"] if model is None else model)
    names = _revisions(revisions) or (EXAMPLE.get(lab.scale, ()) if model is None else ())
    names = names or models.revisions(place)
    config, tok = [models.described(place, revision=name or None) for name in names][-1]
    if tok is None:
        raise BadInput(f"expected a tokenizer beside the weights of {place}; got none; save it there.")
    outline = _outline(config, layout)
    longest = context(outline.model)
    found = Given(
        model=place, revisions=names, identities=tuple(identity(place, name) for name in names),
        family=outline.family, config=config, tok=tok, outline=outline,
        texts=_texts(text or "docstrings", instances or sizes.texts),
        requests=_requests(requests, facts or sizes.facts),
        length=sizes.length if longest is None else min(sizes.length, longest), samples=sizes.samples,
        layers=_layers(layers, outline), weight=None if weight is None else float(weight),
        seed=seed, dtype=dtype or sizes.dtype,
    )  # fmt: skip
    if (
        found.requests and found.family not in MASKED
    ):  # a subject that is not found, a prompt that is too long
        editing.contexts(tok, found.requests, longest=longest)
    return found


def _numbers(facts: Any, weight: Any) -> None:
    if facts is not None and (not isinstance(facts, int) or facts < 1):
        raise BadInput(f"facts is a number of requests, 1 or more; got {facts!r}.")
    if weight is not None and not (isinstance(weight, int | float) and 0 < weight < float("inf")):
        raise BadInput(f"weight is a number above 0; got {weight!r}; leave it out to see several.")


def _outline(config: Any, layout: str | None) -> Memories:
    """The memories of a model of this configuration, without weights."""
    if layout is not None:
        register(config.model_type, read_layout(expanded(layout)))
    with torch.device("meta"), quiet_transformers():
        return Memories(AutoModel.from_config(config, trust_remote_code=False))


def _revisions(asked: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names separated by blanks or commas, or a list."""
    if asked is None:
        return ()
    names = asked.replace(",", " ").split() if isinstance(asked, str) else list(asked)
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise BadInput(
            f"revisions are names, each once, such as 'step1000 step2000'; got {asked!r}; leave them out for all."
        )
    return tuple(names)


def _texts(spec: str, count: int) -> tuple[str, ...]:
    """The first texts that are not empty, of a file or of any corpus."""
    named = any(spec == scheme or spec.startswith((f"{scheme}:", f"{scheme}+")) for scheme in SCHEMES)
    whole = spec if named else f"files:{spec}"  # a bare path
    texts = tuple(islice((text for text in corpora.stream(whole) if text.strip()), count))
    if not texts:
        raise BadInput(f"text must hold at least one text; got none in {spec}; give another file.")
    return texts


def _requests(source: str | None, count: int) -> tuple[Request, ...]:
    if source is None:
        return ()
    asked = editing.without_conflicts(editing.requests(source)[:count], keep="first")
    editing.check(asked)
    return tuple(asked)


def _layers(asked: Any, memories: Memories) -> tuple[int, ...] | None:
    if asked is None:
        return None
    layers = (asked,) if isinstance(asked, int) else tuple(asked)
    if not all(isinstance(layer, int) and layer >= 0 for layer in layers):
        raise BadInput(f"layers are whole numbers, the lowest first, such as [3, 4]; got {asked!r}.")
    for layer in editing.MEMIT(layers).layers:
        memories.block_path(layer)
    return layers


def identity(model: str, revision: str = "") -> str:
    """What tells the content of a model from any other: of the hub its commit, of a folder a hash of its files."""
    if (commit := models.commit(model, revision=revision or None)) is not None:
        return commit
    folder = Path(model).expanduser() / revision
    state = sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".txt", ".model") and file.is_file():
            state.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as opened:
                while block := opened.read(1 << 24):
                    state.update(block)
    return state.hexdigest()[:40]


# ---------------------------------------------------------------------- who brings nothing
def example(lab: Lab, sizes: Sizes) -> dict[str, Path]:
    """An own folder as it might be: stages of a model, a text and requests, the last two written to the run store.

    The text is of the model's world, which is the same on every machine; so are the facts, one of each subject.
    """
    world = factual.world(pretraining.settings("laptop"))
    folder = lab.store.live / "work" / "own" / lab.scale
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) for text in world.documents(sizes.texts)]
    records, subjects = [], set()
    for record in world.counterfact(None, 0, part="reported"):
        subject = record["requested_rewrite"]["subject"]
        if subject not in subjects and len(records) < sizes.facts:
            subjects.add(subject)
            records.append(record)
    files = {
        "text": (folder / "texts.jsonl", "\n".join(lines) + "\n"),
        "requests": (folder / "requests.json", json.dumps(records, indent=1) + "\n"),
    }
    for path, content in files.values():
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            part = path.with_name(
                f".{path.name}.{os.getpid()}"
            )  # beside its place: another process may be reading
            part.write_text(content, encoding="utf-8")
            os.replace(part, path)
    return {"model": lab.shipped / "pretraining-laptop", **{name: path for name, (path, _) in files.items()}}
