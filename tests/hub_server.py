"""A hub on loopback: repositories of models and data sets, served as the hub serves them, faults on request.

    with Hub() as hub:
        hub.model("allenai/OLMo-1B-hf", {"main": folder, "step1000-tokens4B": other}, tags={"v1": "main"})
        hub.dataset("kaist-ai/fictional-knowledge", {"main": {"data/train.jsonl": b'{"text": "a"}\\n'}})
        hub.fault("model.safetensors", "drop", after=1000)  # once; times=None: for ever
        subprocess.run([...], env=hub.environment(tmp_path / "home"))  # a client in a process of its own
        hub.reach(monkeypatch, tmp_path / "home")  # or the clients of this process
        assert hub.asked("GET", "model.safetensors") == 2

The content of a branch is a folder, or {path: bytes, text or file}. Two branches of equal content are one commit.
`hub.commit(name, branch)` is its hash. A second call for a branch moves it; the old commit stays. Large files (by
their ending, as in a repository's .gitattributes) are kept under their sha256 and served by another host name, to
which the hub redirects; small ones have their git hash as ETag. Faults, by the end of a file's path:

    drop      the connection ends after `after` bytes of the body
    short     the body is cut to `after` bytes, and its declared length with it
    corrupt   a byte of the body is another one
    etag      the ETag is that of another content
    429, 500, 404   these statuses; 429 with `Retry-After: seconds`, 404 as for a revision that is not there;
              of an API answer too: fault("/refs", "500"), fault("tree/", "429")
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (
    *(".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".npy", ".arrow", ".parquet"),
    *(".gz", ".zst", ".zip", ".7z", ".model"),
)
DATE = "2026-01-01T00:00:00.000Z"
Content = dict[str, bytes]


@dataclass
class Fault:
    end: str  # of the path of a file or an API answer
    kind: str
    times: int | None
    after: int
    seconds: int


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None


@dataclass
class Repository:
    kind: str  # models or datasets
    name: str
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Content] = field(default_factory=dict)

    def found(self, revision: str) -> str | None:
        """The commit of a branch, tag or pull request, or of (the beginning of) its own hash."""
        named = {**self.branches, **self.tags}
        short = [commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)]
        return named.get(revision) or (short[0] if len(short) == 1 else None)


class Hub:
    """See the module. most: requests answered before it says 503, so that no client asks for ever."""

    def __init__(self, *, page: int = 1000, most: int = 5000) -> None:
        self.page, self.most = page, most
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.sockets: set[socket.socket] = set()
        self.server: ThreadingHTTPServer | None = None

    # ------------------------------------------------------------------ what is served
    def model(self, name: str, branches: dict[str, Any], *, tags: dict[str, str] | None = None) -> Hub:
        return self._add("models", name, branches, tags)

    def dataset(self, name: str, branches: dict[str, Any], *, tags: dict[str, str] | None = None) -> Hub:
        return self._add("datasets", name, branches, tags)

    def commit(self, name: str, branch: str = "main", *, kind: str = "models") -> str:
        return self.repositories[kind, name].branches[branch]

    def fault(self, end: str, kind: str, *, times: int | None = 1, after: int = 100, seconds: int = 0) -> Hub:
        known = ("drop", "short", "corrupt", "etag", "429", "500", "404")
        if kind not in known:
            raise ValueError(f"one of {known}; got {kind!r}")
        self.faults.append(Fault(end, kind, times, after, seconds))
        return self

    def _add(self, kind: str, name: str, branches: dict[str, Any], tags: dict[str, str] | None) -> Hub:
        repository = self.repositories.setdefault((kind, name), Repository(kind, name))
        for branch, given in branches.items():
            content = contents(given)
            digest = hashlib.sha1(f"{kind} {name}".encode())
            for path in sorted(content):
                digest.update(path.encode() + b"\0" + hashlib.sha256(content[path]).digest())
            repository.commits[digest.hexdigest()] = content
            repository.branches[branch] = digest.hexdigest()
        for tag, branch in (tags or {}).items():
            repository.tags[tag] = repository.branches[branch]
        return self

    # ------------------------------------------------------------------ how clients come here
    def __enter__(self) -> Hub:
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Ends connections that clients keep open too: nobody is served after this."""
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()
        with self.lock:
            for one in self.sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        assert self.server is not None
        return self.server.server_address[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Of a process whose clients come here and keep what they fetch in `home`."""
        own = ("HF_", "HUGGING", "TRANSFORMERS_", "http_proxy", "https_proxy", "all_proxy", "no_proxy")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(own) and not name.lower().startswith(own)
        }
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**kept, **settings, "NO_PROXY": "127.0.0.1,localhost", **more}

    def reach(self, monkeypatch: Any, home: Path) -> None:
        """The clients of this process come here: their settings, which they read from the environment at import."""
        import datasets.config
        import huggingface_hub.constants as constants

        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HOME", str(home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.endpoint)
        monkeypatch.setattr(
            datasets.config,
            "HUB_DATASETS_URL",
            self.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}",
        )
        monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(home))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(home / "modules"))

    def asked(self, method: str, end: str) -> int:
        """How often: by method and the end of the path, without its query."""
        with self.lock:
            return sum(one.method == method and one.path.endswith(end) for one in self.requests)


def contents(given: Any) -> Content:
    """The files of a branch, from a folder or from {path: bytes, text or file}."""
    if isinstance(given, dict):
        found = {}
        for path, value in given.items():
            found[path] = value.read_bytes() if isinstance(value, Path) else value
        return {path: value.encode() if isinstance(value, str) else value for path, value in found.items()}
    folder = Path(given)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def described(path: str, content: bytes) -> dict[str, Any]:
    """A file as the API lists it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
        entry["oid"] = git_hash(pointer.encode())
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return entry


class Missing(Exception):
    """What is not there: RepoNotFound, RevisionNotFound or EntryNotFound."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.hub.lock:
            self.hub.sockets.add(self.connection)

    def finish(self) -> None:
        with self.hub.lock:
            self.hub.sockets.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(parts.path)
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, path, self.headers.get("Range")))
            beyond = len(self.hub.requests) > self.hub.most
        if beyond:
            return self.send(503, b"more requests than a test needs")
        try:
            if self.status_fault(path):
                return None
            if parts.path.startswith("/api/"):
                return self.api(parts.path, body)
            return self.file(parts.path)
        except Missing as error:
            what, commit = error.args
            return self.missing(what, {"X-Repo-Commit": commit} if commit else {})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # ------------------------------------------------------------------ faults
    def faulty(self, path: str, *kinds: str) -> Fault | None:
        """The first fault of these kinds for a path, used up by one."""
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.kind in kinds and fault.times != 0 and (path.endswith(fault.end)):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def status_fault(self, path: str) -> bool:
        named = re.sub(r"^(/api/.*/(?:tree|revision|paths-info)/).*", r"\1", path)
        fault = self.faulty(path, "429", "500", "404") or self.faulty(named, "429", "500", "404")
        if fault is None:
            return False
        if fault.kind == "404":
            self.missing("RevisionNotFound", {})
        else:
            headers = {"Retry-After": str(fault.seconds)} if fault.kind == "429" else {}
            self.send(int(fault.kind), b"{}", headers)
        return True

    # ------------------------------------------------------------------ the API
    def api(self, path: str, body: bytes) -> None:
        kind, _, rest = path.removeprefix("/api/").partition("/")
        repository, rest = self.repository(kind, rest)
        action, _, rest = rest.partition("/")
        revision, _, inside = rest.partition("/")
        revision, inside = unquote(revision) or "main", unquote(inside)
        if action == "refs":
            return self.json(self.refs(repository))
        if action not in ("", "revision", "tree", "paths-info", "commits"):
            raise Missing("EntryNotFound", None)
        commit = self.resolved(repository, revision)
        files = repository.commits[commit]
        if action in ("", "revision"):
            return self.json(self.info(repository, commit))
        if action == "commits":
            entry = {"id": commit, "title": "files", "message": "", "date": DATE, "authors": []}
            return self.json([entry])
        if action == "tree":
            return self.tree(files, commit, inside)
        wanted = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        found = [self.entry(files, one.strip("/"), commit) for one in wanted.get("paths", [])]
        return self.json([one for one in found if one])

    def refs(self, repository: Repository) -> dict[str, Any]:
        def listed(named: dict[str, str], place: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"{place}{n}", "targetCommit": commit} for n, commit in named.items()]

        heads = {n: c for n, c in repository.branches.items() if not n.startswith("refs/")}
        asked = {n: c for n, c in repository.branches.items() if n.startswith("refs/")}
        found = {"branches": listed(heads, "refs/heads/"), "tags": listed(repository.tags, "refs/tags/")}
        requests = {"pullRequests": listed(asked, "")} if "include_prs" in self.query else {}
        return {**found, "converts": [], **requests}

    def info(self, repository: Repository, commit: str) -> dict[str, Any]:
        whole = "blobs" in self.query
        siblings: list[dict[str, Any]] = []
        for path, content in sorted(repository.commits[commit].items()):
            entry = described(path, content)
            sizes = {"size": entry["size"], "blobId": entry["oid"]} if whole else {}
            if whole and "lfs" in entry:
                sizes["lfs"] = {"sha256": entry["lfs"]["oid"], **entry["lfs"]}
            siblings.append({"rfilename": path, **sizes})
        told = {"_id": "0", "id": repository.name, "sha": commit, "siblings": siblings, "tags": []}
        told |= {"lastModified": DATE, "createdAt": DATE, "author": repository.name.partition("/")[0]}
        return told | {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0}

    def tree(self, files: Content, commit: str, inside: str) -> None:
        inside = inside.strip("/")
        if inside in files:
            return self.json([self.entry(files, inside, commit)])
        within = [path for path in files if not inside or path.startswith(inside + "/")]
        if inside and not within:
            raise Missing("EntryNotFound", commit)
        depth = inside.count("/") + 1 if inside else 0
        folders = {
            "/".join(pieces[:n])
            for pieces in (path.split("/") for path in within)
            for n in range(depth + 1, len(pieces))
        }
        listed = sorted({*within, *folders})
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            listed = [path for path in listed if path.count("/") == depth]
        start = int(self.query.get("cursor", ["0"])[0])
        page = int(self.query.get("limit", [self.hub.page])[0])
        headers = {}
        if start + page < len(listed):
            kept = {name: value[0] for name, value in self.query.items()} | {"cursor": start + page}
            query = "&".join(f"{name}={quote(str(value))}" for name, value in kept.items())
            address = f"{self.hub.endpoint}{urlsplit(self.path).path}?{query}"
            headers["Link"] = f'<{address}>; rel="next"'
        entries = [self.entry(files, path, commit) for path in listed[start : start + page]]
        return self.json(entries, headers)

    def entry(self, files: Content, path: str, commit: str) -> dict[str, Any] | None:
        """A file or folder as the API lists it, or None."""
        if path in files:
            found = described(path, files[path])
        elif any(other.startswith(path + "/") for other in files):
            found = {"type": "directory", "path": path, "size": 0, "oid": git_hash(path.encode())}
        else:
            return None
        if self.query.get("expand", ["false"])[0].lower() in ("true", "1"):
            found["lastCommit"] = {"id": commit, "title": "files", "date": DATE}
        return found

    # ------------------------------------------------------------------ files
    def file(self, path: str) -> None:
        elsewhere = path.startswith("/large/")
        rest = path.removeprefix("/large").lstrip("/")
        kind = "datasets" if rest.startswith("datasets/") else "models"
        repository, rest = self.repository(kind, rest.removeprefix("datasets/"))
        action, _, rest = rest.partition("/")
        revision, _, name = rest.partition("/")
        name = unquote(name)
        if action != "resolve":
            raise Missing("EntryNotFound", None)
        commit = self.resolved(repository, unquote(revision))
        if name not in repository.commits[commit]:
            raise Missing("EntryNotFound", commit)
        content = repository.commits[commit][name]
        entry = described(name, content)
        tag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        if not elsewhere and self.faulty(name, "etag"):
            tag = hashlib.new("sha256" if "lfs" in entry else "sha1", b"another content").hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if "lfs" in entry and not elsewhere:
            prefix = "datasets/" if kind == "datasets" else ""
            place = f"/large/{prefix}{repository.name}/resolve/{commit}/{quote(name)}"
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{tag}"'}
            away = {"Location": f"http://localhost:{self.hub.port}{place}"}
            return self.send(302, b"", headers | linked | away)
        return self.part(name, content, headers)

    def part(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """The content, or the range of it that was asked for; with the faults of a body."""
        if self.headers.get("If-None-Match") == headers["ETag"]:
            return self.send(304, b"", headers)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            first, last = asked.groups()
            start = int(first) if first else max(0, len(content) - int(last))
            end = min(int(last), len(content) - 1) if first and last else len(content) - 1
            if start > end:
                return self.send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            ranged = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
            return self.body(name, content[start : end + 1], headers | ranged, 206)
        return self.body(name, content, headers, 200)

    def body(self, name: str, content: bytes, headers: dict[str, str], status: int) -> None:
        fault = self.faulty(name, "drop", "short", "corrupt") if self.command == "GET" else None
        if fault and fault.kind == "corrupt":
            content = bytes([content[0] ^ 255]) + content[1:]
        if fault and fault.kind == "short":
            content = content[: fault.after]
        ends = fault.after if fault and fault.kind == "drop" else None
        return self.send(status, content, headers, ends=ends)

    # ------------------------------------------------------------------ answers
    def repository(self, kind: str, rest: str) -> tuple[Repository, str]:
        """The repository that a path begins with, and what follows its name."""
        pieces = rest.split("/")
        for count in (2, 1):
            found = self.hub.repositories.get((kind, unquote("/".join(pieces[:count]))))
            if found is not None:
                return found, "/".join(pieces[count:])
        raise Missing("RepoNotFound", None)

    def resolved(self, repository: Repository, revision: str) -> str:
        commit = repository.found(revision)
        if commit is None:
            raise Missing("RevisionNotFound", None)
        return commit

    def missing(self, what: str, headers: dict[str, str]) -> None:
        status = 401 if what == "RepoNotFound" else 404  # to those who are not logged in, it might be private
        self.send(status, b'{"error": "not found"}', {"X-Error-Code": what, **headers})

    def json(self, document: Any, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self.send(200, json.dumps(document).encode(), kind | (headers or {}))

    def send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, *, ends: int | None = None
    ) -> None:
        """Headers and body; the connection is ended after `ends` bytes of it."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(content if ends is None else content[:ends])
        if ends is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
