"""What surrounds a chapter: its parameters, its lab, its notebook, and the pages made from rows."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml

from kemem import book
from kemem.book import build, coverage, docstrings, notebooks, parameters, places, run, session, status
from kemem.errors import BadInput
from kemem.runs import Store
from kemem.studies.lab import Lab, Result

HEAD = """# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-test)=
# # A chapter
#
# ## With a heading, and signs!

# %% tags=["parameters"]
scale = "laptop"  # one of the four
seed = 0  # a whole number
gain = 1.0  # a number
corpus = None  # a corpus; None: the scale's own

"""


def chapter(folder: Path, code: str, name: str = "07_test") -> Path:
    path = folder / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + code, encoding="utf-8")
    return path


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one chapter, in place of the one that these tests belong to."""
    chapter(tmp_path / "chapters", "# %%\nprint(scale)\n")
    (tmp_path / "pyproject.toml").touch()
    for module in (session, coverage, status):
        if hasattr(module, "checkout"):
            monkeypatch.setattr(module, "checkout", lambda: tmp_path)
    for name in ("KEMEM_REPLAY", "KEMEM_RECORD", "KEMEM_TRAIN", "KEMEM_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


# ---------------------------------------------------------------------- parameters
def test_parameters_are_read_from_the_source(tmp_path):
    found = parameters.declared(chapter(tmp_path, "# %%\nother = 3\n"))
    assert [(p.name, p.default) for p in found.values()] == [
        ("scale", "laptop"), ("seed", 0), ("gain", 1.0), ("corpus", None),
    ]  # fmt: skip
    assert found["gain"].meaning == "a number"


@pytest.mark.parametrize("line", ["late = 1\n", "made = print()  # not a literal\n", "a, b = 1, 2  # two\n"])
def test_a_parameter_without_meaning_or_value_is_a_fault_of_the_chapter(tmp_path, line):
    source = chapter(tmp_path, "")
    source.write_text(source.read_text().replace("seed = 0  # a whole number\n", line))
    with pytest.raises((AssertionError, ValueError)):
        parameters.declared(source)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scael": "smoke"}, ["scale, seed, gain, corpus", "scael"]),
        ({"scale": "huge"}, ["smoke, laptop, gpu, paper", "'huge'"]),
        ({"scale": 3}, ["str", "3"]),
        ({"seed": -1}, ["0 or more", "-1"]),
        ({"seed": 1.5}, ["int", "1.5"]),
        ({"seed": True}, ["int", "True"]),
        ({"seed": "0"}, ["int", "'0'"]),
        ({"gain": "much"}, ["float", "'much'"]),
        ({"gain": float("nan")}, ["finite", "nan"]),
        ({"corpus": "nowhere"}, ["nowhere"]),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(tmp_path, given, words):
    known = parameters.declared(chapter(tmp_path, ""))
    with pytest.raises(BadInput) as refused:
        parameters.check(known, given)
    message = str(refused.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_right_parameters_are_taken_over_the_defaults(tmp_path):
    known = parameters.declared(chapter(tmp_path, ""))
    given = {"scale": "smoke", "gain": 2, "corpus": "world:people=20"}
    assert parameters.check(known, given) == {
        "scale": "smoke",
        "seed": 0,
        "gain": 2,
        "corpus": "world:people=20",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "gpu"), ("dtype", "fp8"), ("coefficient", "max"), ("instances", 0), ("padding", "no")],
)
def test_parameters_that_chapters_share_are_checked_by_name(name, value):
    known = {name: parameters.Parameter(name, None, "of any type here")}
    with pytest.raises(BadInput, match=name):
        parameters.check(known, {name: value})


# ---------------------------------------------------------------------- the lab of a chapter
def test_a_chapter_opens_with_its_parameters(checkout):
    names = {
        "scale": "smoke",
        "seed": 3,
        "gain": 1.0,
        "corpus": None,
        "book": book,
        "_i1": "x",
        "In": [""],
        "Out": {},
    }
    lab = book.open_chapter("07_test", names)
    assert isinstance(lab, Lab) and lab.scale == "smoke" and lab.parameters["seed"] == 3
    assert lab.store.mode == "run" and lab.store.live == checkout / ".kemem" / "smoke"
    assert lab.store.records is None and lab.root == checkout and not lab.retrain


def test_a_name_that_is_no_parameter_is_refused(checkout):
    with pytest.raises(BadInput, match="sede"):
        book.open_chapter("07_test", {"scale": "smoke", "sede": 1})


def test_the_readers_own_names_are_fine_when_the_cell_runs_again(checkout):
    names = {"scale": "smoke", "lab": book.open_chapter("07", {"scale": "smoke"}), "figure": 1}
    assert book.open_chapter("07", names).scale == "smoke"
    with pytest.raises(BadInput, match="huge"):
        book.open_chapter("07", names | {"scale": "huge"})


def test_modes_and_folders_come_from_the_environment(checkout, monkeypatch):
    (checkout / "records" / "laptop").mkdir(parents=True)
    assert session.open_store(checkout, "laptop").records == checkout / "records" / "laptop"
    monkeypatch.setenv("KEMEM_STORE", str(checkout / "elsewhere"))
    monkeypatch.setenv("KEMEM_REPLAY", "1")
    store = session.open_store(checkout, "gpu")
    assert store.mode == "replay" and store.keep_stale and store.live == checkout / "elsewhere" / "gpu"
    monkeypatch.setenv("KEMEM_RECORD", "1")
    with pytest.raises(BadInput, match="KEMEM_REPLAY"):
        session.open_store(checkout, "laptop")
    monkeypatch.setenv("KEMEM_REPLAY", "0")
    monkeypatch.setenv("KEMEM_TRAIN", "all")
    lab = book.open_chapter("07", {})
    assert lab.store.mode == "record" and lab.retrain


def test_an_unknown_chapter_is_refused_with_the_known_ones(checkout):
    with pytest.raises(BadInput, match="07_test"):
        places.chapter(checkout, "99")
    assert places.chapter(checkout, "07") == places.chapter(checkout, "07_test")


def test_an_installation_without_a_checkout_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "__file__", str(tmp_path / "site-packages" / "kemem" / "book" / "places.py"))
    with pytest.raises(BadInput, match="checkout"):
        places.checkout()


def test_progress_stays_out_of_the_outputs(capfd):
    said = session.Terminal("03", every=1000.0)
    for done in range(1, 5):
        said(done, 4, f"loss {done}")
    out, err = capfd.readouterr()
    assert out == "" and err == "[03] 1/4 loss 1\n[03] 4/4 loss 4\n"


# ---------------------------------------------------------------------- notebooks
def test_conversion_is_the_same_each_time_and_one_change_moves_one_id(tmp_path):
    source = chapter(tmp_path, "# %%\nprint(1)\n\n# %%\nprint(1)\n\n# %%\nprint(2)\n")
    first, again = notebooks.convert(source), notebooks.convert(source)
    assert nbformat.writes(first) == nbformat.writes(again)
    ids = [cell.id for cell in first.cells]
    assert len(set(ids)) == len(ids)
    source.write_text(source.read_text().replace("print(2)", "print(3)"))
    changed = [cell.id for cell in notebooks.convert(source).cells]
    assert [a != b for a, b in zip(ids, changed, strict=True)] == [False] * (len(ids) - 1) + [True]


def test_a_run_leaves_no_trace_but_its_outputs(tmp_path):
    marks = 'tags=["hide-input"] mystnb={"figure": {"name": "fig-z", "caption": "c"}, "a": 1}'
    source = chapter(tmp_path, f"# %% {marks}\nprint(scale)\nprint(seed)\n")
    done = run.execute(source, tmp_path / "out" / "07.ipynb", parameters={"scale": "smoke", "seed": 4})
    assert done.passed and done.scale == "smoke" and done.seconds > 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["07.ipynb"]
    notebook = nbformat.read(tmp_path / "out" / "07.ipynb", as_version=4)
    text = nbformat.writes(notebook)
    assert all(word not in text for word in ("papermill", "start_time", "ExecuteTime", str(tmp_path)))
    injected = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1 and "hide-input" in injected[0].metadata["tags"]
    assert notebook.cells[-1].outputs == [{"output_type": "stream", "name": "stdout", "text": "smoke\n4\n"}]
    assert notebooks.differences(source, tmp_path / "out" / "07.ipynb") == []


def test_a_chapter_that_fails_never_stands_under_its_name(tmp_path):
    source = chapter(tmp_path, "# %%\nprint('so far')\n\n# %%\n1 / 0\n\n# %%\nprint('never')\n")
    target = tmp_path / "07.ipynb"
    target.write_text("the last good one")
    done = run.execute(source, target)
    assert not done.passed and "ZeroDivisionError" in done.error
    assert target.read_text() == "the last good one"
    kept = target.with_suffix(".failed.ipynb")
    assert any("ZeroDivisionError" in line for line in notebooks.differences(source, kept))
    with pytest.raises(BadInput):
        run.execute(source, target, parameters={"nosuch": 1})


def test_a_kernel_that_dies_is_said(tmp_path):
    source = chapter(tmp_path, "# %%\nimport os, signal\n\nos.kill(os.getpid(), signal.SIGKILL)\n")
    done = run.execute(source, tmp_path / "07.ipynb")
    assert not done.passed and "kernel died" in done.error and not (tmp_path / "07.ipynb").exists()
    assert [p.name for p in tmp_path.glob("*.source.ipynb")] == []


def test_stale_notebooks_are_found(tmp_path):
    source = chapter(tmp_path, "# %%\nprint(1)\n")
    path = tmp_path / "07.ipynb"
    notebooks.write(notebooks.convert(source), path)
    assert all("never executed" in line for line in notebooks.differences(source, path))
    before = source.read_text()
    for old, new in (
        ("print(1)", "print(2)"),
        ("# A chapter", "# Another chapter"),
        ("# %%\nprint", '# %% tags=["x"]\nprint'),
    ):
        source.write_text(before.replace(old, new))
        assert any("not what 07_test.py says" in line for line in notebooks.differences(source, path)), new
    source.write_text(before + "\n# %%\nprint(3)\n")
    assert any("has 3 cells" in line for line in notebooks.differences(source, path))


def test_pieces_of_a_stream_are_joined():
    pieces = [
        nbformat.v4.new_output("stream", name=n, text=t)
        for n, t in (("stdout", "a"), ("stdout", "b"), ("stderr", "c"))
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("f()", outputs=pieces)])
    outputs = notebooks.normalise(notebook).cells[0].outputs
    assert [(o.name, o.text) for o in outputs] == [("stdout", "ab"), ("stderr", "c")]


# ---------------------------------------------------------------------- pages
def test_labels_figures_and_headings_can_be_pointed_to(tmp_path):
    figure = '# %% mystnb={"figure": {"name": "fig-x", "caption": "c"}, "image": {"alt": "a"}}\nprint(1)\n'
    chapter(tmp_path / "chapters", figure)
    known = coverage.labels(tmp_path)
    assert {"ch-test", "fig-x", "07_test#with-a-heading-and-signs"} <= known.keys()
    assert known["fig-x"] == "07: {numref}`fig-x`"


def entry(**changes: str) -> coverage.Entry:
    given = {
        "paper": "p",
        "kind": "figure",
        "number": "1",
        "title": "t",
        "where": "ch",
        "why": "",
        "source": "text",
    }
    return coverage.Entry(**given | changes)


@pytest.mark.parametrize(
    ("listed", "fault"),
    [
        ([entry(where="gone")], "no chapter defines"),
        ([entry(where="")], "needs a label or a reason"),
        ([entry(why="not yet: soon")], "not both"),
        ([entry(where="", why="later")], "begins with"),
        ([entry(), entry(title="u")], "listed 2 times"),
        ([entry(kind="photograph")], "unknown kind"),
    ],
)
def test_faults_of_the_coverage_list_are_found(listed, fault):
    assert any(fault in line for line in coverage.faults(listed, {"ch": ""}))
    assert coverage.faults([entry(), entry(number="2", where="", why="not run: no data")], {"ch": ""}) == []


def test_status_tells_rows_apart(checkout):
    store = Store(checkout / "live", checkout / "records" / "laptop", mode="record")
    store.row("07_test", 1, {"seed": 0}, lambda provenance: {"x": 1})
    line = next(
        line for line in status.part("records", checkout, None, live=False).splitlines() if "07_test" in line
    )
    assert "| laptop | 1 |" in line and "current" in line
    assert "not executed yet" in status.part("notebooks", checkout, None, live=False)
    assert "nothing was run" in status.part("run", checkout, checkout, live=False)
    run.save([run.Execution("07_test", "laptop", 12.0, 300)], checkout / status.EXECUTIONS)
    text = status.part("run", checkout, checkout, live=True)
    assert "12 s" in text and "300 MiB" in text and "passed" in text
    run.save([run.Execution("07_test", "gpu", 7200.0, 300)], checkout / "records" / "gpu" / status.EXECUTIONS)
    assert "2.0 h" in status.part("cost", checkout, None, live=False)


def test_a_stale_row_is_called_stale(checkout, monkeypatch):
    store = Store(checkout / "live", checkout / "records" / "gpu", mode="record")
    store.row("study", 1, {"seed": 0}, lambda provenance: {"x": 1})
    monkeypatch.setattr(status, "studies", lambda: {"study": ("07_test", 2)})
    assert "1 of 1 stale" in status.part("records", checkout, None, live=False)


def test_a_number_in_prose_is_formatted_and_tells_its_origin():
    from kemem.book.sphinx_ext import provenance, show

    row = {
        "study": "decay",
        "digest": "0123456789abcdef",
        "seed": 0,
        "device": "cpu",
        "seconds": 12.4,
        "commit": None,
    }
    result = Result(-2.345, "nats", row)
    assert show(result, ".2f") == "\N{MINUS SIGN}2.35\N{NO-BREAK SPACE}nats" or show(
        result, ".2f"
    ).startswith("\N{MINUS SIGN}2.3")
    assert show(Result(98.2, "%", row), ".0f") == "98%"
    assert provenance(result) == "study decay, row 0123456789abcdef, seed 0, cpu, 12 s"


def test_numbers_and_equations_on_a_page(tmp_path, monkeypatch):
    """A small site with the book's own extensions: the number carries its row, an unknown name is a warning."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    from kemem.book import sphinx_ext

    row = {"study": "decay", "digest": "0123456789abcdef", "seed": 0}
    monkeypatch.setattr(sphinx_ext, "_results", lambda scale: {"decay.end": Result(-2.345, "nats", row)})
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_parser', 'kemem.book.sphinx_ext', 'kemem.book.mathml']\n"
        "html_math_renderer = 'mathml'\nmyst_enable_extensions = ['dollarmath']\n"
    )
    (tmp_path / "index.md").write_text(
        "# Page\n\nThe end is {result}`decay.end|.1f`, not {result}`decay.start|.1f` or {result}`decay.end|.1q`.\n\n"
        "```{math}\n:label: eq-x\nx = \\ln 2\n```\n\nBy {eq}`eq-x`, $y = 1$. And $\\nosuchcommand$.\n"
    )
    warnings = io.StringIO()
    out, trees = tmp_path / "out", tmp_path / "trees"
    with docutils_namespace():  # what a build registers is forgotten after it
        app = Sphinx(tmp_path, tmp_path, out, trees, "html", status=None, warning=warnings, freshenv=True)
        app.build()
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'title="study decay, row 0123456789abcdef, seed 0" tabindex="0"' in page or (
        'tabindex="0" title="study decay, row 0123456789abcdef, seed 0"' in page
    )
    assert "\N{MINUS SIGN}2.3\N{NO-BREAK SPACE}nats</abbr>" in page
    assert page.count("<math ") == 2 and '<span class="eqno">(1)' in page
    said = warnings.getvalue()
    assert "no result is called 'decay.start'; known are decay.end" in said
    assert "cannot be written as '.1q'" in said and "cannot be written as MathML" in said


def test_what_another_scale_lacks_is_the_number_of_the_laptop_and_says_so(monkeypatch):
    from docutils import nodes

    from kemem.book import sphinx_ext

    row = {"study": "decay", "digest": "0123456789abcdef"}
    laptop = {"both": Result(1.0, "nats", row), "seeds": Result(0.5, "", row), "none": Result(2.0, "", row)}
    smoke = {"both": Result(3.0, "nats", row), "none": Result("no", "", row)}
    known = {("laptop", False): laptop, ("laptop", True): laptop, ("smoke", False): smoke}
    monkeypatch.setattr(sphinx_ext, "_results", lambda scale, *, recorded=False: known[scale, recorded])
    reporter = SimpleNamespace(error=lambda text, line: nodes.system_message(text))
    inliner = SimpleNamespace(
        reporter=reporter, problematic=lambda raw, text, _: nodes.problematic(raw, text)
    )

    def shown(key: str, scale: str) -> tuple[str, str]:
        monkeypatch.setenv("KEMEM_BOOK_SCALE", scale)
        (node,), said = sphinx_ext.result_role("result", key, f"{key}|.1f", 1, inliner)
        return node.astext(), said[0][0].astext() if said else node["origin"]

    from_row = "study decay, row 0123456789abcdef"
    gap = "\N{NO-BREAK SPACE}"
    assert shown("both", "laptop") == (f"1.0{gap}nats", from_row)
    assert shown("both", "smoke") == (f"3.0{gap}nats", from_row)
    for key, text in (("seeds", "0.5 (laptop)"), ("none", "2.0 (laptop)")):
        assert shown(key, "smoke") == (text, f"not found at scale smoke; {from_row}")
    assert shown("x", "smoke") == ("x", "no result is called 'x'; known are both, none.")
    assert shown("x", "laptop") == ("x", "no result is called 'x'; known are both, none, seeds.")


def test_every_number_of_the_prose_is_in_the_records():
    """So that a book of any scale has one to show."""
    from kemem.book import sphinx_ext

    known = sphinx_ext._results("laptop", recorded=True)
    asked = {
        role.partition("|")[::2]
        for source in (Path(__file__).parents[1] / "chapters").glob("*.py")
        for role in re.findall(r"\{result\}`([^`]+)`", source.read_text())
    }
    assert len(asked) > 400
    for key, form in asked:
        assert sphinx_ext.show(known[key], form)


def test_docstrings_become_restructured_text():
    lines = [
        "Entropy of `usage`.",
        "",
        "Kim et al., equation 2:",
        "    H = - sum_i p_i log p_i,  with |c| * 2",
        "Bounds: 0 and log M*.",
        "",
        "usage: mean |c|, `>= 0`",
        "    and not all zero",
        "length, limit: whole numbers",
    ]
    text = "\n".join(docstrings.restructured(lines))
    assert "Entropy of ``usage``." in text
    assert "\n::\n\n        H = - sum_i p_i log p_i,  with |c| * 2" in text
    assert r"log M\*." in text
    assert (
        "- ``usage``: mean \\|c\\|, ``>= 0``\n  and not all zero\n- ``length``, ``limit``: whole numbers"
        in text
    )


def test_equations_become_mathml():
    from kemem.book.mathml import convert

    text = convert(r"H = -\sum_i p_i \ln p_i", block=True)
    assert (
        text.startswith("<math ") and 'display="block"' in text and "<munder" in text and "alttext=" in text
    )
    assert re.search(r'<mo [^>]*lspace="0.167em" rspace="0.167em"[^>]*>ln</mo>\s*<msub>', text)
    assert 'rspace="0"' in convert(r"\exp(x)")
    with pytest.raises(Exception, match="Unknown"):
        convert(r"\nosuchcommand")


def test_buttons_that_need_a_repository_wait_for_one(tmp_path, monkeypatch):
    settings = tmp_path / "_config.yml"

    def written() -> dict:
        settings.write_text("repository: {url: '', branch: main}\nhtml: {use_repository_button: false}\n")
        build._settings(settings)
        return yaml.safe_load(settings.read_text())

    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert "repository" not in written() and "launch_buttons" not in written()
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/kemem")
    monkeypatch.delenv("GITHUB_SERVER_URL", raising=False)
    assert written()["repository"]["url"] == "https://github.com/someone/kemem"
    assert written()["html"]["use_repository_button"] and "colab_url" in written()["launch_buttons"]


def test_executions_are_kept_as_written(tmp_path):
    done = [run.Execution("07_test", "smoke", 1.5, 100, "cell 3: ValueError: x")]
    run.save(done, tmp_path / "deep" / "e.json")
    assert run.load(tmp_path / "deep" / "e.json") == done and run.load(tmp_path / "none.json") == []
    assert json.loads((tmp_path / "deep" / "e.json").read_text())[0]["chapter"] == "07_test"


# ---------------------------------------------------------------------- chapters that need not be run again
@pytest.fixture
def built(tmp_path, monkeypatch):
    """A checkout in small, a store, and one chapter that was run."""
    from kemem.book import reuse
    from kemem.book.run import Execution

    root, folder = tmp_path / "root", tmp_path / "root" / "_build" / "book" / "chapters"
    for name, text in {
        "chapters/00_a.py": "1", "chapters/01_b.py": "2", "kemem/x.py": "y = 1", "records/laptop/s/aa-v1.json": "{}",
        "store/laptop/s/bb-v1.json": "{}", "_build/book/chapters/00_a.ipynb": "notebook",
        "_build/book/chapters/01_b.ipynb": "notebook",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setenv("KEMEM_STORE", str(root / "store"))
    monkeypatch.delenv("KEMEM_TRAIN", raising=False)
    sources = sorted((root / "chapters").glob("*.py"))
    done = [
        Execution("00_a", "laptop", 1.5, 10),
        Execution("01_b", "laptop", 2.5, 10, "cell 3: ValueError: no"),
    ]
    reuse.remember(folder, done, {p.stem: reuse.fingerprint(root, p, "laptop") for p in sources})
    return root, lambda scale="laptop": reuse.unchanged(root, folder, sources, scale)


def test_what_passed_and_is_unchanged_is_not_run_again(built):
    _, held = built
    assert list(held()) == ["00_a"], "a chapter that failed is run again"
    assert held()["00_a"].seconds == 1.5 and held("smoke") == {}


@pytest.mark.parametrize(
    "name",
    ["chapters/00_a.py", "kemem/x.py", "records/laptop/s/aa-v1.json", "store/laptop/s/bb-v1.json", "kemem/sub/new.py",
     "store/laptop/s/new-v2.json"],
)  # fmt: skip
def test_whatever_changes_makes_it_run_again(built, name):
    root, held = built
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("changed")
    assert held() == {}


def test_lost_notebooks_stores_and_notes_make_it_run_again(built, monkeypatch):
    root, held = built
    folder = root / "_build" / "book" / "chapters"
    notes = (folder / "executed.json").read_text()
    for broken in ("", "[]", '{"00_a": 3}'):
        (folder / "executed.json").write_text(broken)
        assert held() == {}
    (folder / "executed.json").write_text(notes)
    assert list(held()) == ["00_a"]
    monkeypatch.setenv("KEMEM_TRAIN", "all")
    assert held() == {}, "train all means all"
    monkeypatch.delenv("KEMEM_TRAIN")
    (folder / "00_a.ipynb").unlink()
    assert held() == {}


def test_a_build_runs_what_changed_and_keeps_the_rest(built, monkeypatch):
    from kemem.book import build, reuse
    from kemem.book.run import Execution

    root, _ = built
    folder = root / "_build" / "book" / "chapters"
    asked = []

    def execute_all(sources, target, **_):
        asked.append([p.stem for p in sources])
        for source in sources:
            (target / f"{source.stem}.ipynb").write_text("new")
        return [Execution(source.stem, "laptop", 3.0, 20) for source in sources]

    monkeypatch.setattr(build, "execute_all", execute_all)
    monkeypatch.setattr(build, "_stage_pages", lambda *_: None)
    monkeypatch.setattr(build, "_render", lambda *_, **__: 0)
    (folder.parent / "pages").mkdir()
    (folder / "old.ipynb").write_text("of a chapter that is gone")
    assert build.build(root) == 0
    assert (
        asked == [["01_b"]] and not (folder / "old.ipynb").exists() and not (folder.parent / "pages").exists()
    )
    assert (folder / "00_a.ipynb").read_text() == "notebook" and (folder / "01_b.ipynb").read_text() == "new"
    assert build.build(root) == 0 and asked == [["01_b"], []]
    (root / "kemem" / "x.py").write_text("y = 2")
    assert build.build(root) == 0 and asked[-1] == ["00_a", "01_b"]
    assert reuse.unchanged(root, folder, sorted((root / "chapters").glob("*.py")), "laptop").keys() == {
        "00_a",
        "01_b",
    }
