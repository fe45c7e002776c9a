"""Imports point downwards: read from the source, so that nothing has to be installed or executed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the top. A module imports from its own package, or from floors below; the papers never import each other.
FLOORS = [
    {"__main__"},
    {"book", "cli"},
    {"claims"},
    {"studies"},
    {"entropy", "continual", "editing"},
    {"training", "evaluation", "harness", "corpora", "models", "runs", "plot"},
    {"fitting"},
    {"world", "memory", "objective"},
    {"families", "trace", "progress", "arithmetic", "provenance", "spans", "commits"},
    {"errors"},
]
SIDEWAYS = {("cli", "book")}  # `kemem run` runs a chapter
ONLY_IN_THE_BOOK = {
    "papermill",
    "jupytext",
    "nbformat",
    "nbclient",
    "IPython",
    "sphinx",
    "docutils",
    "typer",
    "yaml",
}
WHERE_USED = {"datasets", "zstandard"}  # inside the function that needs them
ONE_PLACE = {"accelerate": "training"}

FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}


def sources() -> list[Path]:
    return sorted((ROOT / "kemem").rglob("*.py"))


def part(path: Path) -> str:
    """The top-level name in the package that a file belongs to."""
    relative = path.relative_to(ROOT / "kemem")
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Absolute name, line, and whether it stands at the top of the file, for each import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) in top


def arrows(path: Path) -> Iterator[tuple[str, str, int]]:
    """(importer, imported, line) between the top-level names of the package."""
    own = part(path)
    for name, line, _ in imports(path):
        pieces = name.split(".")
        if pieces[0] == "kemem" and len(pieces) > 1 and pieces[1] in FLOOR and pieces[1] != own:
            yield own, pieces[1], line


def wrong(own: str, other: str) -> bool:
    return FLOOR[other] <= FLOOR[own] and (own, other) not in SIDEWAYS


def test_every_module_has_a_floor():
    names = {part(path) for path in sources()} - {"__init__"}
    assert names <= FLOOR.keys(), f"say on which floor they stand: {sorted(names - FLOOR.keys())}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT / "kemem")))
def test_imports_point_downwards(path):
    if part(path) == "__init__":
        return
    found = [
        f"{path.name}:{line}: {own} imports {other}" for own, other, line in arrows(path) if wrong(own, other)
    ]
    assert not found, found


def test_inside_a_package_imports_have_no_cycle():
    graph: dict[str, set[str]] = {}
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sources()}
    for name, path in names.items():
        for target, _, top in imports(path):
            if not top:
                continue
            for candidate in (target, target.rsplit(".", 1)[0]):
                if candidate in names and candidate != name:
                    graph.setdefault(name, set()).add(candidate)
                    break
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"imports in a circle: {' -> '.join([*trail, name])}"
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT / "kemem")))
def test_the_package_runs_without_notebooks(path):
    """Notebook and page tools only in book/ and cli; large optional libraries only where they are used."""
    for name, line, top in imports(path):
        library = name.split(".")[0]
        at = f"{path.relative_to(ROOT)}:{line}: {library}"
        if library in ONLY_IN_THE_BOOK:
            assert part(path) in ("book", "cli"), at
        if library in WHERE_USED:
            assert not top, f"{at} at the top of the file"
        if library in ONE_PLACE:
            assert part(path) == ONE_PLACE[library], at


def test_chapters_call_the_book_the_studies_and_figures():
    """A chapter's own code is calls and figures: anything it defines is short."""
    for path in sorted((ROOT / "chapters").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno
                assert length <= 20, f"{path.name}:{node.lineno}: {node.name} belongs into the package"


def test_the_check_sees_a_wrong_arrow(tmp_path, monkeypatch):
    monkeypatch.setattr("test_layering.ROOT", tmp_path)
    module = tmp_path / "kemem" / "trace.py"
    module.parent.mkdir()
    module.write_text("def f():\n    from kemem.memory import Memories\n    return Memories\n")
    assert [wrong(own, other) for own, other, _ in arrows(module)] == [True]
