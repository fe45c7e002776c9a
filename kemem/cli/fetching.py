"""`kemem fetch` and `kemem convert`: models and data of the hub on this machine, and native OLMo made readable."""

import gzip
import hashlib
import json as plain
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli.options import Json, at_least, one_of
from kemem.cli.resuscitating import check_out
from kemem.cli.terminal import check_json, guarded, note, patience, progress, quiet_libraries, write_json
from kemem.errors import BadInput

KINDS = ("model", "data")
RECORDS, RECORD = "records.jsonl.gz", ".fetched.json"  # hidden: `datasets` reads every other file of a folder


@guarded("what is whole is kept; run the same command again")
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="owner/name on the hub; of data also a short name, as in hub:c4, with its options",
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="R", help="branch, tag or commit, or how one branch of a model begins (step1000)"
        ),
    ] = None,
    kind: Annotated[str, typer.Option(help="model or data")] = "model",
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a folder for it, instead of the cache; new or empty")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="records of data, from the first; by default 10000, as of hub: corpora")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="only list the steps of a model's training, by their branches")
    ] = False,
    json: Json = None,
) -> None:
    """Download a model or data of the hub at one commit, checked against the hub's hashes.

    What was fetched before is not fetched again, nor after an interruption. Without --to a model lies in the cache of
    huggingface_hub, where its name finds it, and data in that of kemem, where hub:NAME finds them. With --to a model
    is a folder of its own, and data are DIR/records.jsonl.gz, one record a line, which hub:DIR reads without a
    network. fetched.json in the folder, of data .fetched.json, holds commit and hashes.

    --json writes one object. A model: kind, name, revision (as asked), commit, folder, files (bytes by name). Data:
    kind, name, revision, commit, config, split, field (null for whole records), records, folder. With --list: name,
    branches, a list of branch and step.
    """
    one_of("--kind", kind, KINDS)
    at_least(1, limit=limit)
    check_json(json)
    wrong = {"--limit": kind == "model" and limit is not None, "--list": kind == "data" and listed}
    for option in (option for option, given in wrong.items() if given):
        other = "data" if option == "--limit" else "model"
        raise BadInput(f"expected {option} with --kind {other}; got {kind}; leave one of them out.")
    if listed and (to or revision):
        raise BadInput(
            f"expected --list alone; got {'--to' if to else '--revision'} too; leave one of them out."
        )
    if Path(name).expanduser().is_dir():
        raise BadInput(
            f"expected a name on the hub; got the folder {name}, which is here already; give a name."
        )
    quiet_libraries()
    found = steps(name) if listed else (model if kind == "model" else data)(name, revision, to, limit)
    if json is not None:
        write_json(found, json)
    elif listed:
        for each in found["branches"]:
            print(each["branch"])
    else:
        print(found["folder"])


def steps(name: str) -> dict[str, Any]:
    """The branches of a model that are steps of its training."""
    from kemem import commits, models

    branches = [{"branch": one, "step": commits.step(one)} for one in models.branches(name)]
    if not branches:
        note(f"{name} has no branches that are steps of its training.")
    return {"name": name, "branches": branches}


def model(name: str, revision: str | None, to: Path | None, _: int | None = None) -> dict[str, Any]:
    """A model's files, in the cache or a folder."""
    from kemem import models

    commit = models.commit(name, revision=revision)
    folder = models.fetch(name, revision=revision, folder=to)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    files.pop("fetched.json", None)
    return {
        "kind": "model", "name": name, "revision": revision, "commit": commit, "folder": str(folder), "files": files,
    }  # fmt: skip


def data(name: str, revision: str | None, to: Path | None, limit: int | None) -> dict[str, Any]:
    """Records of a data set, kept where hub:NAME finds them, or written to a folder."""
    from dataclasses import replace

    from kemem.corpora import hub, kept
    from kemem.corpora.spec import Part

    if to is not None:
        check_out(to)
    wanted = hub.source(Part("hub", name))
    if wanted.local:
        raise BadInput(f"expected a name on the hub; got the path {name}; give owner/name or a short name.")
    wanted = replace(
        wanted, revision=revision or wanted.revision, **({} if limit is None else {"limit": limit})
    )
    with patience(f"asking the hub for {name}"):
        commit = hub.versions(wanted).get(wanted.name)
    tell, count = progress(f"fetching {name}"), 0
    if to is None:
        first = next(hub.records(replace(wanted, limit=1), commit), None)
        text = isinstance(first, dict) and isinstance(first.get(wanted.field), str)
        for _ in (hub.texts if text else hub.records)(wanted, commit):
            count += 1
            tell(count, wanted.limit or count, "records")
        folder, field = kept.place(wanted.name, commit or "").parent, wanted.field if text else None
    else:
        folder, field = to, None
        to.mkdir(parents=True, exist_ok=True)
        count = _written(hub.records(wanted, commit), to, wanted, commit, tell)
    if not count:
        raise BadInput(f"expected records in hub:{name}; got none; see its configurations and splits.")
    return {
        "kind": "data", "name": wanted.name, "revision": wanted.revision, "commit": commit, "config": wanted.config,
        "split": wanted.split, "field": field, "records": count, "folder": str(folder),
    }  # fmt: skip


def _written(records: Any, folder: Path, wanted: Any, commit: str | None, tell: Any) -> int:
    """The records as lines, beside their place and then renamed: whole or not at all."""
    part, count = folder / f".{RECORDS}.part", 0
    try:
        with part.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as lines:
            for record in records:
                lines.write(_line(record, wanted.name))
                count += 1
                tell(count, wanted.limit or count, "records")
        told = {
            "data": wanted.name, "revision": wanted.revision, "commit": commit, "config": wanted.config,
            "split": wanted.split, "records": count, "sha256": {RECORDS: hashlib.sha256(part.read_bytes()).hexdigest()},
        }  # fmt: skip
        (folder / RECORD).write_text(plain.dumps(told, indent=1) + "\n", encoding="utf-8")
        os.replace(part, folder / RECORDS)
    finally:
        part.unlink(missing_ok=True)
    return count


def _line(record: Any, name: str) -> bytes:
    try:
        return plain.dumps(record, ensure_ascii=False).encode() + b"\n"
    except (TypeError, ValueError):
        raise BadInput(
            f"expected records of text and numbers in hub:{name}; got others, such as dates or images; read them as "
            "a corpus, which takes one field."
        ) from None


@guarded("nothing was written; run the same command again")
def convert(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="a folder with config.yaml and model.pt, or a name on the hub"),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of the converted model, new or empty")],
    revision: Annotated[
        str | None,
        typer.Option(metavar="R", help="of a name on the hub: branch, tag or commit, or how a branch begins"),
    ] = None,
    json: Json = None,
) -> None:
    """Convert a native OLMo checkpoint to a folder that from_pretrained and all commands open.

    Number by number the same, in the same type; nothing is loaded by pickle. A name on the hub is fetched first.

    --json writes one object: model, revision, commit (of the hub, else null), family, parameters, dtype, out.
    """
    check_json(json)
    check_out(out)
    from kemem import models

    quiet_libraries()
    folder, commit = Path(model).expanduser(), None
    if not folder.is_dir():
        commit = models.commit(model, revision=revision)
        folder = models.fetch(model, revision=revision)
    elif revision is not None:
        raise BadInput(
            f"expected --revision of a name on the hub; got {revision!r} of the folder {model}; name "
            "the folder below it."
        )
    with patience(f"converting {model}"):
        target = models.convert(folder, out)
    config, _ = models.described(str(target))
    document = {
        "model": model, "revision": revision, "commit": commit, "family": config.model_type,
        "parameters": _numbers(target), "dtype": str(config.dtype).removeprefix("torch."), "out": str(out),
    }  # fmt: skip
    if json is not None:
        write_json(document, json)
    else:
        print(out)


def _numbers(folder: Path) -> int:
    """How many numbers the weights of a folder hold."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            total += sum(prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    return total
