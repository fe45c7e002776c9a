"""What a revision of a hub model stands for: one branch, found by its beginning, and the commit it has now.

Models and tokenizers are found by it alike.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from huggingface_hub import HfApi, constants

from kemem.errors import BadInput

COMMIT = re.compile(r"[0-9a-f]{40}")
_STEP = re.compile(r"step[-_]?(\d+)")


def branches(name: str) -> dict[str, str]:
    """The commit of each branch and tag, from the hub."""
    found = again(lambda: HfApi().list_repo_refs(name))
    return {reference.name: reference.target_commit for reference in (*found.tags, *found.branches)}


def kept(name: str) -> dict[str, str]:
    """The commit of each branch and tag that something was fetched of before."""
    folder = cache(name) / "refs"
    return {p.relative_to(folder).as_posix(): p.read_text().strip() for p in folder.rglob("*") if p.is_file()}


def chosen(name: str, revision: str, names: Iterable[str], *, default: str | None = None) -> str:
    """The one name that is this revision, or begins with it and a "-". Refused: none (unless default), several."""
    found = [one for one in names if one == revision] or [
        one for one in names if one.startswith(f"{revision}-")
    ]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(sorted(found)[:5])
        raise BadInput(
            f"expected one revision of {name}; got {revision!r}, which begins {some}; give one whole."
        )
    if default is not None:
        return default
    wanted, steps = step(revision), [one for one in names if step(one) is not None]
    if wanted is None or not steps:
        hint = f"it has {', '.join(sorted(names)[:5])}"
    else:
        near = sorted(steps, key=lambda one: (abs((step(one) or 0) - wanted), one))[:3]
        hint = f"the nearest of {len(steps)} are {', '.join(near)}"
    raise BadInput(f"expected a revision of {name}; got {revision!r}, with which none begins; {hint}.")


def step(branch: str) -> int | None:
    """The step of training that a branch names, if any."""
    found = _STEP.search(branch)
    return int(found[1]) if found else None


def resolved(name: str, revision: str | None) -> tuple[str, str]:
    """The branch or tag that a revision is, and its commit now; of a commit itself, twice that."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision, revision
    known = branches(name) if revision is not None else {}
    if revision is None or (revision not in known and re.fullmatch(r"refs/.*|[0-9a-f]{7,39}", revision)):
        return revision or "main", again(lambda: HfApi().model_info(name, revision=revision)).sha or ""
    branch = chosen(name, revision, known)
    return branch, known[branch]


def unfetched(source: str) -> BadInput:
    return BadInput(
        f"expected {source} to be a folder, or a model of the hub fetched before; got no such "
        "folder and no network; check the name, or connect."
    )


def reachable(seconds: float = 3.0) -> bool:
    """Whether the hub answers at all; `huggingface_hub` would ask for half a minute before saying no."""
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True  # only the proxy knows
    address = urlparse(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=seconds).close()
    except OSError:
        return False
    return True


def status(error: BaseException | None) -> int | None:
    """Of the hub's answer, if the error is one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def cache(name: str) -> Path:
    """Where `huggingface_hub` keeps a model: refs/<branch>, snapshots/<commit>/<file>, blobs/<hash>."""
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def silent(error: Exception) -> bool:
    """Whether the hub did not answer, or not to the question: what was fetched before may be taken."""
    asked = status(error)
    return asked is None or asked >= 500 or asked == 429


def passing(error: Exception) -> bool:
    """Whether to fetch once more what `huggingface_hub` gave up at once: a wrong size, a reset, a broken answer."""
    size = type(error) is OSError and error.errno is None
    return size or (status(error) or 0) >= 500 or type(error).__name__ == "ReadError"


def again(ask: Callable[[], Any]) -> Any:
    """The hub's answer to a question that `huggingface_hub` puts once: put twice if the first failure may pass."""
    try:
        return ask()
    except Exception as error:  # whatever the network or a proxy can raise
        if not passing(error):
            raise
    return ask()
