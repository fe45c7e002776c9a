"""The files around the package say the same as each other, and nothing of the machine they were written on."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    """Files of the repository: those git knows or would add."""
    asked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if asked.returncode:
        pytest.skip("not a git checkout")
    return [p for name in asked.stdout.decode().split("\0") if name and (p := ROOT / name).is_file()]


def requirements() -> dict[str, Requirement]:
    """Everything that pyproject.toml asks for, the extras too."""
    project = PROJECT["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def test_environment_says_the_same_as_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *plain, last = environment["dependencies"]
    assert environment["name"] == PROJECT["project"]["name"]
    python = Requirement(next(line for line in plain if line.startswith("python")))
    asked = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert str(min(python.specifier, key=str)).endswith(asked.split(".")[-1]) or f">={asked}" in str(
        python.specifier
    )
    assert f">={asked}" in str(python.specifier)
    # whatever else the package needs comes from pyproject.toml itself, at the tested versions
    assert last["pip"] == ["-c constraints.txt", "-e .[book,test]"]
    assert {line for line in plain if not line.startswith("python")} == {"pip", "git", "make"}
    assert {"book", "test"} <= PROJECT["project"]["optional-dependencies"].keys()


def test_makefile_installs_what_environment_installs():
    assert "pip install --quiet -c constraints.txt -e '.[book,test]'" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )


def test_constraints_are_plain_versions_inside_the_ranges():
    pinned = constraints()
    for name, line in pinned.items():
        (specifier,) = line.specifier
        assert specifier.operator == "==" and "+" not in specifier.version and line.url is None, str(line)
        if name in requirements():
            assert specifier.version in requirements()[name].specifier, (
                f"{line} is outside {requirements()[name]}"
            )
    extras = PROJECT["project"]["optional-dependencies"]
    needed = [*PROJECT["project"]["dependencies"], *extras["book"], *extras["test"]]
    missing = {canonicalize_name(Requirement(line).name) for line in needed} - pinned.keys()
    assert not missing, f"constraints.txt lacks {sorted(missing)}"


def test_jupyter_book_stays_below_2():
    assert "2.0" not in requirements()["jupyter-book"].specifier


def test_nothing_names_a_machine():
    """No home folder, no folder of a checkout, no host of a package index but the public one."""
    here = "|".join(re.escape(str(folder)) for folder in (ROOT.parent, Path.home()) if len(str(folder)) > 1)
    hosts = (
        r"(?:--index-url|--extra-index-url|--find-links)[ =](?!https://(?:pypi\.org|download\.pytorch\.org)/)"
    )
    pattern = re.compile(rf"(?<![\w}}\]).*/])(?:{here}|/home/\w+|/Users/\w+)/|{hosts}")
    found = []
    for path in tracked():
        if path.suffix in {".safetensors", ".png", ".gz", ".zst"} or path == Path(__file__):
            continue
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{i}: {match.group()}")
    assert not found, found


def test_citation_is_complete_and_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert {
        "cff-version",
        "message",
        "title",
        "authors",
        "version",
        "date-released",
        "license",
    } <= citation.keys()
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert citation["title"].startswith(project["name"])
    for work in citation["references"]:
        assert re.fullmatch(r"10\.\d+/\S+", work["doi"]) and work["authors"] and work["year"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {project['version']}" in changelog
    package = (ROOT / "kemem" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{project["version"]}"' in package


def test_every_reference_can_be_found():
    """Each entry of the bibliography has a DOI, or says where else it is."""
    for entry in re.split(r"\n(?=@)", (ROOT / "references.bib").read_text(encoding="utf-8"))[1:]:
        key = re.match(r"@\w+\{([\w:-]+),", entry)
        assert key, entry[:60]
        assert re.search(r"\b(doi|howpublished|institution) = \{[^}]+\}", entry), key.group(1)
        for field in ("title", "author", "year"):
            assert re.search(rf"\b{field} = \{{", entry), f"{key.group(1)} has no {field}"


def test_licences_say_what_they_cover():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    text = (ROOT / "LICENSE-TEXT.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text and "https://creativecommons.org/licenses/by/4.0/" in text


def test_readme_lists_every_module_and_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "kemem").iterdir()):
        if path.name.startswith("_") or not (path.suffix == ".py" or (path / "__init__.py").is_file()):
            continue
        name = path.name if path.suffix else f"{path.name}/"
        assert re.search(rf"^  {re.escape(name)} +\S", readme, re.MULTILINE), (
            f"the tree in README.md lacks {name}"
        )
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    documented = set(re.findall(r"`make ([a-z-]+)", readme))
    assert documented <= set(targets), documented - set(targets)
    assert {"setup", "book", "html", "test", "test-gpu", "stress", "bench", "record", "smoke"} <= documented


def test_shipped_files_are_small():
    """20 MB of checkpoints in all, and no other file that a clone would feel."""
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in tracked()}
    checkpoints = sum(size for path, size in sizes.items() if path.parts[:2] == ("records", "checkpoints"))
    assert checkpoints <= 20 * 2**20
    large = {
        str(p): s for p, s in sizes.items() if s > 2 * 2**20 and p.parts[:2] != ("records", "checkpoints")
    }
    assert not large, large


def test_workflow_runs_what_a_reader_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8"))
    steps = {name: json.dumps(job["steps"]) for name, job in workflow["jobs"].items()}
    assert ".ci/run" in steps["test"] and "make book" in steps["book"] and "make html" in steps["pages"]
    assert (
        workflow["jobs"]["links"]["continue-on-error"]
        and workflow["jobs"]["plain-sphinx"]["continue-on-error"]
    )
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
