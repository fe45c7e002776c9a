"""What `make` calls: run the chapters, render the book, write records and smoke notebooks, check the notebooks."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from kemem.book import reuse, slices
from kemem.book.apart import STORES
from kemem.book.notebooks import differences
from kemem.book.places import chapters
from kemem.book.run import Execution, execute_all, load, save
from kemem.errors import BadInput

PAGES = ("_config.yml", "_toc.yml", "references.bib", "CHANGELOG.md", "CITATION.cff", "pages", "static")
EXECUTIONS = "executions.json"
JUPYTER_BOOK = (sys.executable, "-c", "from jupyter_book.cli.main import main; main()")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # sums in one order, also on machines with another number of cores
CANARY = (
    "myst-nb>=1.4", "myst-parser>=5", "sphinx-book-theme", "sphinx-external-toc", "sphinxcontrib-bibtex",
    "sphinx-design", "sphinx-copybutton", "sphinx-togglebutton", "sphinx-thebe", "sphinx-comments",
    "sphinx-multitoc-numbering", "sphinx-exercise", "sphinx-proof", "sphinxext-opengraph",
)  # fmt: skip


def build(root: Path, *, scale: str = "laptop") -> int:
    """Run the chapters in mode run, into _build/book, and render what was run. The tracked tree stays as it is.

    A chapter is not run again while all it depends on is as it was.
    """
    stage = root / "_build" / "book"
    folder, sources = stage / "chapters", chapters(root)
    held = reuse.unchanged(root, folder, sources, scale)
    for path in stage.glob("*"):
        if path != folder:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob("*"):
        if path.stem not in held:
            path.unlink()
    ran = execute_all(
        [source for source in sources if source.stem not in held], folder,
        parameters={} if scale == "laptop" else {"scale": scale},
    )  # fmt: skip
    if held:
        print(f"unchanged since they were run: {', '.join(held)}", file=sys.stderr)
    executions = sorted([*held.values(), *ran], key=lambda execution: execution.chapter)
    save(executions, stage / EXECUTIONS)
    reuse.remember(folder, executions, {p.stem: reuse.fingerprint(root, p, scale) for p in sources})
    if _failed(executions):
        return 1
    _stage_pages(root, stage)
    return _render(stage, root, environment={"KEMEM_BOOK_SCALE": scale})


def html(root: Path, *, out: Path | None = None, builder: str = "html") -> int:
    """Render the committed notebooks strictly, from clean."""
    stage = _stage_committed(root, out or root / "_build")
    return _render(stage, out or root, builder=builder, environment={"KEMEM_REPLAY": "1"})


def record(root: Path, *, scale: str = "laptop", only: list[str] | None = None) -> int:
    """Compute what the records of a scale lack, then write chapters/*.ipynb from the records alone."""
    wanted = _chosen(root, only)
    (root / "records" / scale).mkdir(parents=True, exist_ok=True)
    if scale in slices.SLICED:
        chosen = [word for number in only or () for word in ("--only", number)]
        if status := slices.loop(["--scale", scale, *chosen]):
            return status
        return written(root, only=only)
    with tempfile.TemporaryDirectory() as scratch:
        computed = execute_all(
            wanted, Path(scratch), parameters={"scale": scale}, environment={"KEMEM_RECORD": "1"}
        )
        if _failed(computed):
            return 1
    return written(root, only=only)


def written(root: Path, *, only: list[str] | None = None) -> int:
    """Write chapters/*.ipynb from the records alone."""
    shown = execute_all(_chosen(root, only), root / "chapters", environment={"KEMEM_REPLAY": "1"})
    return int(_failed(shown))


def smoke(root: Path, *, only: list[str] | None = None) -> int:
    """Write tests/smoke/NN.ipynb: every chapter at smoke scale, each computed from an empty store.

    A table of claims shows what rows are there: with one store for all it would show what other chapters had done.
    """
    done = []
    for chapter in _chosen(root, only):
        with tempfile.TemporaryDirectory() as empty:
            done += execute_all(
                [chapter], root / "tests" / "smoke", name="{number}", parameters={"scale": "smoke"},
                environment={"KEMEM_STORE": empty, **ONE_THREAD},
            )  # fmt: skip
    return int(_failed(done))


def measure(root: Path, *, scale: str = "laptop", only: list[str] | None = None) -> int:
    """What each chapter costs a reader: run from an empty store, recorded arms read from the records.

    The cost of chapters that are not among `only` stays as it was.
    """
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as scratch:
        done = execute_all(
            _chosen(root, only),
            Path(scratch),
            parameters={"scale": scale},
            environment={"KEMEM_STORE": empty},
        )
    if _failed(done):
        return 1
    place = root / "records" / scale / EXECUTIONS
    costs = {each.chapter: each for each in (*load(place), *done)}
    save([costs[path.stem] for path in chapters(root) if path.stem in costs], place)
    return 0


def _chosen(root: Path, only: list[str] | None) -> list[Path]:
    """The chapters with these numbers, or all where none are named."""
    known = {path.stem.split("_")[0]: path for path in chapters(root)}
    for number in only or ():
        if number not in known:
            raise BadInput(
                f"expected numbers of chapters, of {', '.join(known)}; got {number!r}; choose one of these."
            )
    return [path for number, path in known.items() if not only or number in only]


def canary(root: Path) -> int:
    """The committed notebooks on the newest Sphinx, without the wrapper: the way out, should Jupyter Book 1.x end.

    A virtual environment of its own sees the packages of this one behind its newer Sphinx. Jupyter Book writes the
    settings down as a conf.py; its own two extensions are taken out.
    """
    stage = _stage_committed(root, root / "_build" / "canary")
    newest = root / "_build" / "canary" / "venv"
    python = newest / "bin" / "python"
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(newest)],
        [str(python), "-m", "pip", "install", "--quiet", "sphinx>=8.2", "docutils", *CANARY],
    ]
    for step in steps:
        if subprocess.run(step).returncode:
            return 1
    (folder,) = newest.glob("lib/python*/site-packages")
    (folder / "behind.pth").write_text(
        "\n".join([*site.getsitepackages(), str(root)]) + "\n", encoding="utf-8"
    )
    written = subprocess.run([*JUPYTER_BOOK, "config", "sphinx", str(stage)], stdout=subprocess.DEVNULL)
    if written.returncode:
        return written.returncode
    settings = stage / "conf.py"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub(r"'(jupyter_book|sphinx_jupyterbook_latex)',? ?", "", text), encoding="utf-8")
    target = root / "_build" / "canary" / "html"
    return subprocess.run(
        [str(python), "-m", "sphinx", "-q", "-E", "-b", "html", str(stage), str(target)],
        env={**os.environ, "KEMEM_REPLAY": "1", "KEMEM_BOOK_STAGE": str(stage)},
    ).returncode


def check(root: Path) -> int:
    """Both notebooks of every chapter are current, and run again to the outputs they hold.

    The committed ones in replay, exact on any machine; the smoke ones computed from an empty store each, so that a
    wrong coefficient, mask or solver shows.
    """
    stale = []
    for source in chapters(root):
        for notebook in (source.with_suffix(".ipynb"), smoke_notebook(root, source)):
            stale += differences(source, notebook) if notebook.is_file() else [f"{notebook.name} is missing"]
    if stale:
        print(
            "\n".join([*stale, "run `make record` and `make smoke`, then look at what changed"]),
            file=sys.stderr,
        )
        return 1
    shown = validate([p.with_suffix(".ipynb") for p in chapters(root)], {"KEMEM_REPLAY": "1"})
    with tempfile.TemporaryDirectory() as empty:
        computed = validate([smoke_notebook(root, p) for p in chapters(root)], {STORES: empty})
    return shown or computed


def smoke_notebook(root: Path, source: Path) -> Path:
    return root / "tests" / "smoke" / f"{source.stem.split('_')[0]}.ipynb"


def validate(notebooks: list[Path], environment: dict[str, str], *, processes: int = 2) -> int:
    """nbval: execute notebooks and compare every output with the stored one. The exit status of pytest."""
    command = [
        sys.executable, "-m", "pytest", "--nbval", "--nbval-cell-timeout", "120", "-q", "-p", "no:cacheprovider",
        "-p", "kemem.book.apart", "-o", "addopts=", "-o", "norecursedirs=",
        "-n", str(min(processes, len(notebooks))), "--dist", "loadfile",
        *map(str, notebooks),
    ]  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if k not in ("KEMEM_REPLAY", "KEMEM_RECORD", "KEMEM_TRAIN")}
    return subprocess.run(command, env={**clean, **ONE_THREAD, **environment}).returncode


def _stage_committed(root: Path, folder: Path) -> Path:
    """A folder with the committed notebooks and everything else that a page is made of."""
    missing = [p.stem for p in chapters(root) if not p.with_suffix(".ipynb").is_file()]
    if missing:
        raise BadInput(
            f"every chapter needs its executed notebook; got none of {', '.join(missing)}; run `make record`."
        )
    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    for source in chapters(root):
        _copy(source.with_suffix(".ipynb"), stage / "chapters" / f"{source.stem}.ipynb")
    _stage_pages(root, stage)
    return stage


def _stage_pages(root: Path, stage: Path) -> None:
    for name in PAGES:
        if (root / name).exists():
            _copy(root / name, stage / name)
    _settings(stage / "_config.yml")


def _failed(executions: list[Execution]) -> bool:
    return any(not e.passed for e in executions)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _render(stage: Path, out: Path, *, environment: dict[str, str], builder: str = "html") -> int:
    """Jupyter Book over a stage that holds the executed chapters. From clean, since a second build hides warnings."""
    for folder in (builder, ".doctrees"):
        shutil.rmtree(out / "_build" / folder, ignore_errors=True)
    strict = ["-n", "-W", "--keep-going"] if builder == "html" else []
    command = [
        *JUPYTER_BOOK, "build", str(stage), "--path-output", str(out),
        "--all", "-q", "--builder", builder, *strict,
    ]  # fmt: skip
    ran = subprocess.run(
        command, env={**os.environ, "KEMEM_BOOK_STAGE": str(stage), **environment}, stdout=subprocess.DEVNULL
    )
    index = out / "_build" / builder / "index.html"
    if ran.returncode:
        print("the book was not rendered: see the lines above", file=sys.stderr)
    elif builder == "html":
        print(f"the book is in {index}\nopen it with: {sys.executable} -m webbrowser -t {index.as_uri()}")
    return ran.returncode


def _settings(path: Path) -> None:
    """Buttons that need a repository are on where one is named: in _config.yml, or by the GitHub workflow."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    repository = settings.setdefault("repository", {})
    if not repository.get("url") and os.environ.get("GITHUB_REPOSITORY"):
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        repository["url"] = f"{server}/{os.environ['GITHUB_REPOSITORY']}"
    if repository.get("url"):
        settings.setdefault("html", {}).update(
            use_repository_button=True, use_issues_button=True, use_edit_page_button=True
        )
        settings["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
    else:
        del settings["repository"]
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
