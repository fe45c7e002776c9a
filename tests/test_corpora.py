"""Corpora: what a spec reads, how it is split, and what is said when it cannot be read."""

import ast
import builtins
import gzip
import hashlib
import inspect
import io
import itertools
import json
import os
import sys
import time
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kemem.corpora import Corpus, corpus, docstrings, files, hub, specs, stream
from kemem.corpora.spec import Part, options
from kemem.errors import BadInput


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test reads of a hub is kept for nobody else."""
    monkeypatch.setenv("KEMEM_CACHE", str(tmp_path / "kept of the hub"))


LINES = ["First line.", "  Second, with a euro sign: €", "Third\u2028one line still"]
TEXTS = ["One text.\nOf two lines.", "", "A third: \u00e9\u4e2d\U0001f40d"]


def refusal(spec: str) -> str:
    """The message with which a spec is refused: one line, and not empty."""
    with pytest.raises(BadInput) as caught:
        corpus(spec)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()


PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


# --- specs


def test_specs_of_a_mixture() -> None:
    assert specs("docstrings") == (Part("docstrings"),)
    assert specs("world:people=30+docstrings:numpy,limit=3+files:/a") == (
        Part("world", "people=30"),
        Part("docstrings", "numpy,limit=3"),
        Part("files", "/a"),
    )


@pytest.mark.parametrize(
    ("spec", "paths"),
    [
        ("files:/a+b/c++.txt", ["/a+b/c++.txt"]),
        ("files:/a+worldly.txt", ["/a+worldly.txt"]),
        ("files:/a+b.txt+files:/c+d.txt", ["/a+b.txt", "/c+d.txt"]),
        ("files:/a++world", ["/a+world"]),
        ("files:/c++/x.txt+files:d", ["/c++/x.txt", "d"]),
    ],
)
def test_a_plus_in_a_path_joins_nothing(spec: str, paths: list[str]) -> None:
    assert [part.rest for part in specs(spec)] == paths


def test_options_of_a_part() -> None:
    found = options(Part("docstrings", "numpy, scipy,limit=3"))
    assert (found.names, found.values) == (("numpy", "scipy"), {"limit": "3"})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "docstrings, world, files:PATH or hub:NAME"),
        ("novels", "docstrings, world, files:PATH or hub:NAME"),
        ("./novels.txt", "write files:./novels.txt"),
        ("docstrings+novels", "'docstrings+novels'"),
        ("docstrings:", "followed by options"),
        ("files:", "followed by a path"),
        ("hub: ", "followed by a name"),
        ("docstrings:numpy,,scipy", "'numpy,,scipy'"),
        ("docstrings:limit=", "'limit='"),
        ("docstrings:limit=3,limit=4", "'limit' twice"),
        ("docstrings:limit=0", "at least 1; got '0'"),
        ("docstrings:limit=many", "at least 1; got 'many'"),
        ("docstrings:size=3", "limit; got 'size'"),
        ("docstrings:os", "numpy, scipy, sympy, pandas, networkx, matplotlib, torch, transformers; got 'os'"),
        ("world:colour=3", "people, seed"),
        ("world:people", "key=value"),
        ("world:people=some", "must be a number; got 'some'"),
        ("world:people=1", "got 1"),
        ("world:documents=0", "documents (1 or more)"),
        ("world:documents=1.5", "documents (1 or more)"),
        ("hub:a b", "owner/name"),
        ("hub:a/b:size=3", "field, split, limit, config; got 'size'"),
        ("hub:a/b:limit=few", "at least 1; got 'few'"),
        ("hub:a/b:text", "key=value"),
    ],
)
def test_what_a_spec_may_not_say(spec: str, said: str) -> None:
    assert said in refusal(spec)


# --- the corpus and its parts


def test_digest_depends_on_the_texts_and_their_borders_alone() -> None:
    def digest(*texts: str) -> str:
        return Corpus("any", texts).digest

    assert digest("a", "b") == Corpus("other", ("a", "b")).digest
    assert (
        len({digest("a", "b"), digest("b", "a"), digest("ab"), digest("a", "b", ""), digest("a", "c")}) == 5
    )
    size = (5).to_bytes(8, "little")
    assert digest("Düne") == hashlib.sha256(size + "Düne".encode()).hexdigest()[:16]


def test_parts_are_disjoint_complete_and_of_the_right_size() -> None:
    texts = tuple(f"document {i}" for i in range(20_000))
    whole = Corpus("any", texts)
    parts = {name: whole.part(name) for name in ("train", "validation", "test")}
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    assert whole.part("all") == list(texts)
    # 4 standard deviations of a binomial count
    assert abs(len(parts["train"]) - 18_000) < 170
    assert abs(len(parts["validation"]) - 1_000) < 125
    assert abs(len(parts["test"]) - 1_000) < 125


@given(st.lists(st.text(max_size=20), min_size=1, max_size=40), st.data())
@settings(max_examples=40, deadline=None)
def test_the_part_of_a_document_depends_on_it_alone(texts: list[str], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(texts), min_size=1))
    for name in ("train", "validation", "test"):
        there = set(Corpus("all", tuple(texts)).part(name))
        assert set(Corpus("some", tuple(some)).part(name)) == there & set(some)


def test_the_split_is_the_recorded_one() -> None:
    # changing the split would make every shipped checkpoint's test set part of its training text
    whole = Corpus("", tuple(map(str, range(60))))
    assert whole.part("validation") == ["26", "47", "50", "56"]
    assert whole.part("test") == ["8", "19"]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(BadInput, match="train, validation, test, all; got 'dev'"):
        Corpus("any", ("a",)).part("dev")


# --- docstrings


def parsed(file: Path) -> set[str]:
    """The long docstrings that `ast` and `inspect` find in a file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text and len(inspect.cleandoc(text)) > docstrings.SHORTEST:
                found.add(inspect.cleandoc(text))
    return found


def squeezed(texts: set[str]) -> set[str]:
    """Without blanks at line ends, where versions of `inspect.cleandoc` differ."""
    return {"\n".join(line.rstrip() for line in text.split("\n")).strip() for text in texts}


@pytest.mark.parametrize(("package", "stride"), [("networkx", 8), ("torch", 24)])
def test_docstrings_are_those_that_ast_finds(package: str, stride: int) -> None:
    root = docstrings.folder(package)
    sources = sorted(root.rglob("*.py"))[::stride]
    expected, found = set(), set()
    for file in sources:
        try:
            expected |= squeezed(parsed(file))
        except SyntaxError:  # written for a later Python
            continue
        found |= squeezed(
            {
                text
                for text in map(docstrings.cleaned, docstrings.literals(file.read_bytes()))
                if len(text) > docstrings.SHORTEST
            }
        )
    assert len(expected) > 100
    assert len(expected ^ found) <= 0.005 * len(expected), expected ^ found


LONG = "word " * 60


@pytest.mark.parametrize(
    "source",
    [
        f'"""{LONG}"""',
        f'# a comment with """ in it\n\n"""{LONG}"""\nimport os\n',
        f'class A:\n    """{LONG}"""\n',
        f"def f(a, b):\n    r'''{LONG}'''\n    return 1\n",
        'async def f(\n    a=")",  # it\'s: (\n    b="""x""",\n) -> "int":  # why\n\n'
        f'    # first\n    """{LONG}"""; x = 1\n',
        f'class A:\n    x = 1\n\n    def f(self):\n\t"""{LONG}"""\n'.replace("\t", "        "),
        f'if True:\n    def f():\n        """{LONG}"""\n',
        f'def f():\r\n    """{LONG}"""\r\n',
    ],
)
def test_literals_that_are_docstrings(source: str) -> None:
    assert list(docstrings.literals(source.encode())) == [LONG]
    assert (
        ast.get_docstring(next(n for n in ast.walk(ast.parse(source)) if documented(n)), clean=False) == LONG
    )


def documented(node: ast.AST) -> bool:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node) is not None


@pytest.mark.parametrize(
    "source",
    [
        f'x = """{LONG}"""\n',
        f'import os\n"""{LONG}"""\n',
        f'def f():\n    x = 1\n    """{LONG}"""\n',
        f'def f():\n    return g(\n        """{LONG}"""\n    )\n',
        f'def f():\n    """{LONG}""".strip()\n',
        f'def f():\n    f"""{LONG}"""\n',
        f'def f():\n    b"""{LONG}"""\n',
        f'if True:\n    """{LONG}"""\n',
        f'x = {{\n    "key":\n        """{LONG}"""\n}}\n',
        f"x = '''\ndef f():\n    \"\"\"{LONG}\"\"\"\n'''\n",
        f'def f():\n    # """{LONG}"""\n    pass\n',
        f'def f():\n    """{LONG[:100]}"""\n',
    ],
)
def test_literals_that_are_not_docstrings(source: str) -> None:
    ast.parse(source)
    assert list(docstrings.literals(source.encode())) == []


def test_escapes_stand_for_what_they_mean() -> None:
    source = 'def f():\n    """' + LONG + 'tab\\tquote\\""""\n\ndef g():\n    r"""' + LONG + '\\alpha"""\n'
    assert list(docstrings.literals(source.encode())) == [LONG + 'tab\tquote"', LONG + "\\alpha"]
    assert list(docstrings.literals(('"""' + LONG + '\\ud800"""').encode())) == []


@given(st.text(alphabet="ab \t\n", max_size=60))
@settings(max_examples=200, deadline=None)
def test_cleaned_is_cleandoc(text: str) -> None:
    squeeze = [line.rstrip() for line in inspect.cleandoc(text).strip().split("\n")]
    assert [line.rstrip() for line in docstrings.cleaned(text).split("\n")] == squeeze


def test_docstrings_of_packages_and_their_provenance() -> None:
    whole = corpus("docstrings:networkx")
    assert len(whole) > 500 and all(len(text) > 200 for text in whole.texts)
    assert len(set(whole.texts)) == len(whole)
    assert whole == corpus("docstrings:networkx")
    assert set(whole.versions) == {"networkx"}
    both = corpus("docstrings:networkx,matplotlib")
    assert both.texts[: len(whole)] == whole.texts and len(both) > len(whole) + 500
    assert any("shortest path" in text for text in whole.texts)


def test_a_limit_spreads_and_a_larger_one_adds() -> None:
    whole = list(corpus("docstrings:networkx").texts)
    few, more = (list(corpus(f"docstrings:networkx,limit={n}").texts) for n in (50, 200))
    assert (len(few), len(more)) == (50, 200)
    assert set(few) < set(more) < set(whole)
    assert few == [text for text in whole if text in set(few)]
    assert whole.index(few[-1]) > len(whole) // 2 > whole.index(few[0])
    # the split of a limited corpus is still 90/5/5: 4 standard deviations
    assert abs(len(Corpus("", tuple(more)).part("train")) - 180) < 17


def test_a_package_is_read_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in order of their folders, the tests left out, each text once, what is not UTF-8 skipped."""
    package = tmp_path / "unrunnable"
    for name, content in {
        "__init__.py": f'"""{LONG}init"""\nraise SystemExit("imported")\n',
        "b/c.py": f'"""{LONG}c"""\n',
        "b/tests/test_c.py": f'"""{LONG}test"""\n',
        "b.py": f'"""{LONG}b"""\n\n\ndef f():\n    """{LONG}init"""\n',
        "d.txt": f'"""{LONG}d"""\n',
        "e.py": f'def broken(:\n    """{LONG}e"""\n',
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    (package / "latin.py").write_bytes(f'"""{LONG}\xe9"""\n'.encode("latin-1"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docstrings, "PACKAGES", ("unrunnable",))
    assert [text.split()[-1] for text in docstrings.texts(("unrunnable",))] == ["init", "c", "b", "e"]


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = docstrings.importlib.util.find_spec
    monkeypatch.setattr(docstrings.importlib.util, "find_spec", lambda n: None if n == "sympy" else find(n))
    assert "pip install sympy" in refusal("docstrings")
    assert len(corpus("docstrings:networkx,limit=3")) == 3


# --- world


def test_world_takes_the_options_of_the_world() -> None:
    from kemem.world import World

    found = corpus("world:people=20,documents=40,seed=3,sample=1,zipf=0.5")
    assert list(found.texts) == World(people=20, seed=3, zipf=0.5).documents(40, seed=1)
    assert found.digest != corpus("world:people=20,documents=40,seed=4,sample=1,zipf=0.5").digest


def test_a_mixture_is_the_documents_of_its_parts(tmp_path: Path) -> None:
    (tmp_path / "a+b.txt").write_text("one\ntwo\n")
    world = corpus("world:people=20,documents=40")
    both = corpus(f"world:people=20,documents=40+files:{tmp_path}/a+b.txt+docstrings:networkx,limit=3")
    assert both.texts[:42] == (*world.texts, "one", "two")
    assert len(both) == 45 and set(both.versions) == {"networkx"}


# --- files


@pytest.mark.parametrize("packer", PACKERS)
def test_files_of_every_kind(tmp_path: Path, packer: str) -> None:
    text = tmp_path / f"a.txt{packer}"
    text.write_bytes(PACKERS[packer](("\n".join([LINES[0], "", " \t", *LINES[1:]]) + "\r\n\n").encode()))
    assert list(corpus(f"files:{text}").texts) == LINES
    lines = tmp_path / f"b.JSONL{packer}"
    lines.write_bytes(PACKERS[packer](jsonl(TEXTS) + b"\n"))
    assert list(corpus(f"files:{lines}").texts) == TEXTS
    assert list(corpus(f"files:{tmp_path}").texts) == LINES + TEXTS


def test_a_folder_is_read_in_order_without_what_is_no_text(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsonl.txt", ".hidden.txt", "notes.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "e.txt").write_text("deeper")
    assert list(corpus(f"files:{tmp_path}").texts) == ["a.txt", "b.txt", "c.jsonl.txt"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\nsecond")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(["third"]))
    assert list(corpus(f"files:{tmp_path}").texts) == ["first", "second", "third"]


@pytest.mark.parametrize("packer", [".gz", ".zst"])
def test_archives_of_several_members(tmp_path: Path, packer: str) -> None:
    file = tmp_path / f"a.txt{packer}"
    file.write_bytes(PACKERS[packer](b"one\ntw") + PACKERS[packer](b"o\n") + PACKERS[packer](b"three"))
    assert list(corpus(f"files:{file}").texts) == ["one", "two", "three"]


@given(st.lists(st.binary(max_size=12), max_size=8))
@settings(max_examples=200, deadline=None)
def test_lines_out_of_chunks_are_those_of_the_whole(chunks: list[bytes]) -> None:
    chunks = [chunk.replace(b"\x00", b"\n") for chunk in chunks]
    assert list(files._split(iter(chunks))) == list(io.BytesIO(b"".join(chunks)))


def test_a_stream_ends_where_its_reader_stops(tmp_path: Path) -> None:
    """The bad line is never met by who takes the two lines before it: files are not read whole."""
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xff\n")
    stream = files.texts(str(tmp_path / "a.txt"))
    assert [next(stream), next(stream)] == ["one", "two"]
    with pytest.raises(BadInput, match="line 3"):
        next(stream)


def test_paths_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setenv("KEMEM_DATA", str(tmp_path))
    found = corpus("files:$KEMEM_DATA/a.txt")
    assert (found.spec, found.texts) == ("files:$KEMEM_DATA/a.txt", ("one",))
    assert corpus("files:$KEMEM_DATA").texts == ("one",)
    monkeypatch.delenv("KEMEM_DATA")
    assert "KEMEM_DATA, which is not set" in refusal("files:$KEMEM_DATA/a.txt")


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "got none"),
        ("a.txt", b"\n \n\t\n", "got none"),
        ("a.jsonl", b"\n", "got none"),
        ("a.jsonl", b'{"text": ""}\n{"text": " "}\n', "got none"),
        ("a.txt", b"fine\n\xe9t\xe9\n", "byte 0xe9 in {file}, line 2"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": "\xff"}\n', "byte 0xff in {file}, line 3"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "half\n', "{file}, line 2"),
        ("a.jsonl", b'{"text": "fine"}\nplain\n', "{file}, line 2: Expecting value at column 1"),
        ("a.jsonl", b'{"text": "fine"}\n["text"]\n', "got list in {file}, line 2"),
        ("a.jsonl", b'{"text": "fine"}\n{"body": "x"}\n', "got body in {file}, line 2"),
        ("a.jsonl", b'{"text": "fine"}\n{}\n', "got no field in {file}, line 2"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": null}\n', "got NoneType in {file}, line 2"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogate pair in {file}, line 1"),
        ("a.jsonl", b"[" * 100_000, "{file}, line 1"),
        ("a.jsonl", b"9" * 10_000, "{file}, line 1"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, packer: str, name: str, content: bytes, said: str) -> None:
    file = tmp_path / (name + packer)
    file.write_bytes(PACKERS[packer](content))
    assert said.format(file=file) in refusal(f"files:{file}")


@pytest.mark.parametrize("packer", [".gz", ".zst"])
def test_damaged_archives(tmp_path: Path, packer: str) -> None:
    file = tmp_path / f"a.txt{packer}"
    lines = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(30_000)]
    whole = PACKERS[packer]("\n".join(lines).encode())
    for kept in (len(whole) * 2 // 3, len(whole) - 1, 3):
        file.write_bytes(whole[:kept])
        message = refusal(f"files:{file}")
        assert str(file) in message and "cut off after line" in message
    checked = zstandard.ZstdCompressor(write_checksum=True).compress("\n".join(lines).encode())
    whole = checked if packer == ".zst" else whole
    file.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    assert "damaged" in refusal(f"files:{file}")
    file.write_bytes("\n".join(lines).encode())
    assert "damaged" in refusal(f"files:{file}")


def test_places_without_text(tmp_path: Path) -> None:
    assert f"got {tmp_path}/none.txt" in refusal(f"files:{tmp_path}/none.txt")
    assert ".jsonl.zst; got none in" in refusal(f"files:{tmp_path}")
    (tmp_path / "a.csv").write_text("one")
    assert ".jsonl.zst; got" in refusal(f"files:{tmp_path}/a.csv")
    (tmp_path / "b.txt").write_text("one")
    assert "a folder that exists" in refusal(f"files:{tmp_path}/b.txt/c.txt")


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    file.chmod(0)
    assert "Permission denied" in refusal(f"files:{file}")


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As if the package were not installed."""
    original = builtins.__import__

    def importing(wanted: str, *rest: object, **more: object) -> object:
        if wanted.partition(".")[0] == name:
            raise ImportError(name)
        return original(wanted, *rest, **more)

    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", importing)


def test_packages_that_are_not_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt.zst"
    file.write_bytes(PACKERS[".zst"](b"one"))
    with monkeypatch.context() as patch:
        without(patch, "zstandard")
        assert "pip install zstandard" in refusal(f"files:{file}")
    with monkeypatch.context() as patch:
        without(patch, "datasets")
        assert "pip install datasets" in refusal(f"hub:{tmp_path}")


# --- hub


@pytest.mark.parametrize(
    ("rest", "wanted"),
    [
        ("allenai/c4", hub.Source("allenai/c4")),
        ("allenai/c4/en:limit=5", hub.Source("allenai/c4", config="en", limit=5)),
        ("a/b@1f3c/en", hub.Source("a/b", revision="1f3c", config="en")),
        ("squad@main:split=validation,field=context,limit=all",
         hub.Source("squad", revision="main", split="validation", field="context", limit=None)),
        ("a/b:config=20220301.en,split=train", hub.Source("a/b", config="20220301.en")),
        ("/data/a:b/c", hub.Source("/data/a:b/c", local=True)),
    ],
)  # fmt: skip
def test_names_of_data_sets(rest: str, wanted: hub.Source) -> None:
    assert hub.source(Part("hub", rest)) == wanted


def test_a_local_folder_goes_through_the_same_reader(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "test.jsonl").write_bytes(jsonl(["for testing"]))
    assert list(corpus(f"hub:{tmp_path}").texts) == TEXTS
    assert list(corpus(f"hub:{tmp_path}:split=test").texts) == ["for testing"]
    assert list(corpus(f"hub:{tmp_path}:limit=2").texts) == TEXTS[:2]
    assert corpus(f"hub:{tmp_path}").digest == corpus(f"files:{tmp_path}/train.jsonl").digest
    assert "the field 'body'; got id, text in" in refusal(f"hub:{tmp_path}:field=body")
    assert "must be a string; got int" in refusal(f"hub:{tmp_path}:field=id")
    assert "split" in refusal(f"hub:{tmp_path}:split=dev")


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"text": TEXTS})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "two")
    assert list(corpus(f"hub:{tmp_path}/one").texts) == TEXTS
    assert list(corpus(f"hub:{tmp_path}/two:split=test").texts) == TEXTS[:1]
    assert "dev" in refusal(f"hub:{tmp_path}/two:split=dev")


def test_folders_without_a_data_set(tmp_path: Path) -> None:
    assert "exists" in refusal(f"hub:{tmp_path}/none")
    assert str(tmp_path) in refusal(f"hub:{tmp_path}")
    (tmp_path / "train.jsonl").write_text('{"text": "fine"}\nnot json\n')
    assert str(tmp_path) in refusal(f"hub:{tmp_path}")


class Builder:
    """Stands in for what `datasets` finds: one file, or one stream of unknown files."""

    def __init__(self, records: object) -> None:
        self.records, self.num_shards = records, 0
        self.config = type("Config", (), {"data_files": None})()

    def as_streaming_dataset(self, split: str) -> object:
        self.split = split
        return self

    def skip(self, count: int) -> object:
        return itertools.islice(self.records() if callable(self.records) else self.records, count, None)


class Hub:
    """Stands in for the network: one data set with two commits."""

    def dataset_info(self, name: str, *, revision: str | None) -> object:
        if name != "owner/name":
            raise ConnectionError("[Errno -2] Name or service not known\nsecond line")
        return type("Info", (), {"sha": {"main": "c0ffee", None: "c0ffee", "old": "decade"}[revision]})()


def test_a_revision_is_pinned_to_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    asked = []

    def load(name: str, config: str | None, **more: object) -> Builder:
        asked.append((name, config, more))
        return Builder([{"text": f"text {i}"} for i in range(5)])

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    found = corpus("hub:owner/name@old/en:limit=3")
    assert found.texts == ("text 0", "text 1", "text 2")
    assert found.versions == {"owner/name": "decade"}
    assert asked == [("owner/name", "en", {"revision": "decade"})]
    assert corpus("hub:owner/name").versions == {"owner/name": "c0ffee"}
    message = refusal("hub:owner/other")
    assert "Name or service not known second line" in message and "files:PATH" in message


@pytest.mark.filterwarnings("ignore:waiting")
def test_a_network_lost_in_the_middle_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def records() -> object:
        yield from ({"text": "one"}, {"text": "two"})
        raise ConnectionResetError("peer went away\nwith a second line")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder(records))
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert "peer went away with a second line after 2 records" in refusal("hub:owner/name")
    assert waits == [1, 2, 4, 8, 16]


# --- the real data


DATA = os.environ.get("KEMEM_DATA")


@pytest.mark.skipif(not DATA, reason="KEMEM_DATA is not set: no real data at hand")
@pytest.mark.parametrize(
    ("path", "count"),
    [("domains/pubmed_abstracts.jsonl.gz", 7020), ("pretrain/squad_contexts.jsonl.gz", 911)],
)
def test_real_text(path: str, count: int) -> None:
    found = corpus(f"files:$KEMEM_DATA/{path}")
    assert len(found) == count and found.characters > 500 * count


def test_a_stream_reads_no_further_than_it_is_asked(tmp_path):
    whole, broken = tmp_path / "a.txt", tmp_path / "b.jsonl"
    whole.write_text("one\n\ntwo\nthree\n")
    broken.write_text('{"text": "four"}\nthis is no JSON\n')
    spec = f"files:{whole}+files:{broken}"
    texts = stream(spec)
    assert [next(texts) for _ in range(4)] == ["one", "two", "three", "four"]
    with pytest.raises(BadInput, match=r"b\.jsonl, line 2"):
        next(texts)
    assert list(stream(f"files:{whole}")) == list(corpus(f"files:{whole}").texts)
    with pytest.raises(BadInput, match="exists"):
        stream(f"files:{whole}+files:{tmp_path / 'absent.txt'}")  # before the first text is read
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(BadInput, match="must hold text"):
        list(stream(f"files:{tmp_path / 'blank.txt'}"))
