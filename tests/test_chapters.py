"""Every chapter has what a reader was promised, and its notebooks are its own.

That the notebooks *run* to the outputs they hold is checked by nbval, in `make test-notebooks`.
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from kemem.book import coverage, notebooks, places
from kemem.book.build import smoke_notebook
from kemem.book.parameters import declared
from kemem.studies.lab import SCALES

ROOT = Path(__file__).resolve().parents[1]
SOURCES = places.chapters(ROOT)
STUDIED = [path for path in SOURCES if path.stem[:2] >= "02"]


def ids(path: Path) -> str:
    return path.stem


def prose(path: Path) -> str:
    """The Markdown of a chapter."""
    return "\n\n".join(cell.source for cell in notebooks.convert(path).cells if cell.cell_type == "markdown")


def test_there_are_chapters():
    """Numbered without a gap."""
    assert [path.stem[:2] for path in SOURCES] == [f"{i:02}" for i in range(len(SOURCES))]


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_committed_notebooks_are_their_sources(path):
    for notebook in (path.with_suffix(".ipynb"), smoke_notebook(ROOT, path)):
        assert notebook.is_file(), f"{notebook.name} is missing: run `make record` and `make smoke`"
        assert notebooks.differences(path, notebook) == []


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_committed_notebooks_are_normalised_and_small(path):
    for notebook in (path.with_suffix(".ipynb"), smoke_notebook(ROOT, path)):
        text = notebook.read_text(encoding="utf-8")
        assert len(text) < 2**20, f"{notebook.name} is {len(text) / 2**20:.1f} MiB"
        stored = nbformat.reads(text, as_version=4)
        assert nbformat.writes(notebooks.normalise(stored)) + "\n" == text
        assert "widget-state" not in text and "application/vnd.jupyter.widget" not in text


def test_smoke_notebooks_were_computed_at_smoke_scale():
    for path in SOURCES:
        stored = nbformat.read(smoke_notebook(ROOT, path), as_version=4)
        injected = [c.source for c in stored.cells if "injected-parameters" in c.metadata.get("tags", [])]
        assert len(injected) == 1 and 'scale = "smoke"' in injected[0], path.stem


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_parameters_are_documented_and_shared_names_mean_the_same(path):
    found = declared(path)
    assert {"scale", "seed", "device", "dtype"} <= found.keys()
    assert (
        found["scale"].default == "laptop"
        and found["seed"].default == 0
        and found["device"].default == "auto"
    )
    assert all(scale in found["scale"].meaning for scale in SCALES)


OWN = {
    "02": {"corpus", "instances", "coefficient", "model"},
    "03": {"corpus", "instances", "coefficient", "model"},
    "05": {"stages", "lr", "batch", "epochs"},
    "16": {"model", "revisions", "text", "requests", "layers", "weight", "layout"},
}


@pytest.mark.parametrize("number", OWN)
def test_chapters_take_the_parameters_they_promise(number):
    (path,) = (p for p in SOURCES if p.stem.startswith(number))
    assert OWN[number] <= declared(path).keys()


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_a_chapter_opens_before_it_computes(path):
    """The first code after the parameters imports and opens; nothing else runs on unchecked parameters."""
    cells = [c for c in notebooks.convert(path).cells if c.cell_type == "code"]
    assert "parameters" in cells[0].metadata["tags"]
    assert f'lab = book.open_chapter("{path.stem}", globals())' in cells[1].source
    before = cells[1].source.split("lab =")[0]
    assert all(re.match(r"(from|import) |#|$", line) for line in before.splitlines()), before


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_a_chapter_has_its_parts(path):
    text = prose(path)
    for part in (
        "**Goal.**",
        "**You need.**",
        "**Paper.**",
        "**Reading time.**",
        "```{runtime} " + path.stem,
    ):
        assert part in text, f"the card lacks {part}"
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert any(h.startswith("What differs from the paper") for h in headings), headings
    assert "Exercises" in headings and headings[-1] == "Summary", headings
    exercises = set(re.findall(r"```\{exercise\}[^\n]*\n:label: ([\w-]+)", text))
    solutions = set(re.findall(r"```\{solution-start\} ([\w-]+)", text))
    assert exercises and exercises == solutions, exercises ^ solutions
    assert text.count("```{solution-start}") == text.count("```{solution-end}")


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem[:2] >= "01"], ids=ids)
def test_a_solution_is_tested(path):
    """At least one solution computes something and asserts what the text says of it."""
    inside, tested = False, False
    for cell in notebooks.convert(path).cells:
        if cell.cell_type == "markdown":
            marks = re.findall(r"solution-(start|end)", cell.source)
            inside = marks[-1] == "start" if marks else inside
        elif inside and "assert " in cell.source:
            tested = True
    assert tested


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_every_figure_has_name_caption_and_alternative_text(path):
    stored = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    for i, cell in enumerate(stored.cells):
        images = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if not images:
            continue
        settings = cell.metadata.get("mystnb", {})
        assert len(images) == 1, f"cell {i} shows {len(images)} images"
        assert settings.get("figure", {}).get("name", "").startswith("fig-"), f"cell {i}"
        assert len(settings["figure"].get("caption", "")) > 20, f"cell {i}"
        assert len(settings.get("image", {}).get("alt", "")) > 40, f"cell {i}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem[:2] >= "01"], ids=ids)
def test_equations_are_numbered_and_referred_to(path):
    text = prose(path)
    defined = re.findall(r"^:label: (eq-[\w-]+)$", text, re.MULTILINE)
    assert defined and len(defined) == text.count("```{math}"), "an equation has no label"
    assert len(set(defined)) == len(defined)


def test_numbers_in_prose_come_from_rows():
    """A sentence of a chapter on a study does not type a measured entropy: it uses the result role."""
    for path in STUDIED:
        assert "{result}`" in prose(path), f"{path.stem} quotes no result"
        typed = re.findall(r"\d+\.\d{2,} nats", re.sub(r"\{result\}`[^`]*`", "", prose(path)))
        assert not typed, f"{path.stem}: {typed}"


def test_the_coverage_page_is_complete():
    found = coverage.faults(coverage.entries(ROOT), coverage.labels(ROOT))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("paper", "kind", "numbers"),
    [
        ("kim2025knowledge", "figure", " ".join(map(str, range(1, 19)))),
        ("kim2025knowledge", "table", "1 2"),
        ("kim2025knowledge", "algorithm", "1"),
        ("kim2025knowledge", "section", "1 2 3 3.1 3.2 3.3 3.4 4 4.1 4.2 4.3 5 6"),
        ("kim2025knowledge", "appendix", "A A.1 A.2 A.3 A.4 B B.1 B.2 B.3 B.4 B.4.1 B.4.2 B.5 B.6 B.7 B.8"),
        ("ke2023continual", "table", "1 2 3 4 5"),
        ("ke2023continual", "figure", "1"),
        ("meng2023memit", "figure", " ".join(map(str, range(1, 14)))),
        ("meng2023memit", "table", "1 2"),
        ("meng2023memit", "algorithm", "1"),
    ],
)
def test_the_coverage_page_leaves_nothing_out(paper, kind, numbers):
    found = [e.number for e in coverage.entries(ROOT) if (e.paper, e.kind) == (paper, kind)]
    assert found == numbers.split()


def test_the_api_pages_name_every_public_module_once():
    described = re.findall(
        r"^\.\. automodule:: (\S+)",
        "\n".join(p.read_text() for p in (ROOT / "pages" / "api").glob("*.rst")),
        re.MULTILINE,
    )
    assert len(set(described)) == len(described)
    package = ROOT / "kemem"
    public = {f"kemem.{p.stem}" for p in package.glob("[a-z]*.py")}
    public |= {f"kemem.{p.parent.name}" for p in package.glob("*/__init__.py")}
    public |= {f"kemem.{p.parent.name}.{p.stem}" for p in package.glob("studies/[a-z]*.py")}
    assert public <= set(described), sorted(public - set(described))
    pages = {p.stem for p in (ROOT / "pages" / "api").glob("*.rst")}
    assert pages == set(re.findall(r"pages/api/(\w+)", (ROOT / "_toc.yml").read_text(encoding="utf-8")))


def test_all_chapters_are_in_the_table_of_contents():
    listed = re.findall(r"chapters/(\w+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert listed == [path.stem for path in SOURCES]


def test_papermill_from_another_folder_is_refused_an_unknown_parameter(tmp_path):
    """The plain command only warns of a name it does not know; the chapter refuses it before anything runs."""
    notebook = ROOT / "chapters" / f"{SOURCES[0].stem}.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        "out.ipynb",
        "-p",
        "scale",
        "smoke",
        "-p",
        "nosuch",
        "1",
    ]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode != 0
    last = [line for line in ran.stderr.splitlines() if line.startswith("BadInput: ")]
    assert len(last) == 1 and "nosuch" in last[0] and "scale, seed, device, dtype" in last[0]
