"""Data sets of a hub on loopback, read by the clients as they are: formats, short names, faults, what is kept."""

import gzip
import io
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hub_server import Hub, contents

from kemem.corpora import catalogue, corpus, hub, kept, stream
from kemem.corpora.catalogue import CATALOGUE
from kemem.corpora.spec import Part
from kemem.editing.readers import requests
from kemem.entropy.passages import passages
from kemem.errors import BadInput

DATA = os.environ.get("KEMEM_DATA")
REAL = pytest.mark.skipif(not DATA, reason="KEMEM_DATA is not set: no real data at hand")
pytestmark = pytest.mark.filterwarnings("ignore:waiting")
Records = list[dict[str, Any]]


# ---------------------------------------------------------------------- a hub, its files, a reader
@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that somebody wanted to wait; nobody does."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:
    monkeypatch.setenv("KEMEM_CACHE", str(tmp_path / "kept"))
    with Hub() as found:
        found.reach(monkeypatch, tmp_path / "home")
        yield found


def numbered(begin: int, end: int) -> Records:
    return [{"id": i, "text": f"Text number {i}, {'and more ' * 20}."} for i in range(begin, end)]


def jsonl(records: Records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def listed(records: Records) -> bytes:
    return json.dumps(records).encode()


def parquet(records: Records) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file, row_group_size=10)
    return file.getvalue()


def framed(records: Records) -> bytes:
    """Two frames of zst one after the other."""
    half = len(records) // 2
    return zstandard.compress(jsonl(records[:half])) + zstandard.compress(jsonl(records[half:]))


FORMATS = {
    "jsonl": jsonl,
    "json": listed,
    "jsonl.gz": lambda records: gzip.compress(jsonl(records)),
    "jsonl.zst": framed,
    "parquet": parquet,
}
ALL = [record["text"] for record in numbered(0, 60)]


def shards(ending: str) -> dict[str, bytes]:
    """60 records in two files."""
    return {f"data/train-{i}.{ending}": FORMATS[ending](numbered(30 * i, 30 * i + 30)) for i in range(2)}


def read(spec: str) -> tuple[list[str], str]:
    """The texts that come, and what is said where they end early."""
    texts = []
    try:
        for text in stream(spec):
            texts.append(text)
    except BadInput as error:
        assert "\n" not in str(error)
        return texts, str(error)
    return texts, ""


def asked(served: Hub, end: str = "") -> int:
    return sum(one.path.endswith(end) for one in served.requests)


# ---------------------------------------------------------------------- formats
@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_records_of_all_files_in_order(ending: str, served: Hub) -> None:
    served.dataset("owner/name", {"main": shards(ending)})
    found = corpus("hub:owner/name")
    assert list(found.texts) == ALL
    assert found.versions == {"owner/name": served.commit("owner/name", kind="datasets")}
    assert list(hub.records(hub.source(Part("hub", "owner/name:limit=31")))) == numbered(0, 31)


README = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: other
  data_files: other/*.json.gz
---
"""


def test_configuration_split_field_and_revision_are_those_of_the_spec(served: Hub) -> None:
    packed = FORMATS["jsonl.gz"]
    files = {
        "README.md": README,
        "en/c4-train.00000-of-00002.json.gz": packed(numbered(0, 3)),
        "en/c4-train.00001-of-00002.json.gz": packed(numbered(3, 6)),
        "en/c4-validation.00000-of-00001.json.gz": packed(numbered(6, 8)),
        "other/a.json.gz": packed([{"body": "else"}]),
    }
    later = {**files, "other/a.json.gz": packed([{"body": "later"}])}
    served.dataset("owner/name", {"main": later, "old": files}, tags={"v1": "old"})
    assert read("hub:owner/name/en") == (ALL[:6], "")
    assert read("hub:owner/name/en:split=validation") == (ALL[6:8], "")
    assert read("hub:owner/name/en:split=train+validation,limit=7") == (ALL[:7], "")
    assert read("hub:owner/name@v1/other:field=body") == (["else"], "")
    assert read("hub:owner/name/other:field=body") == (["later"], "")
    assert "'body'; got id, text in hub:owner/name, record 1" in read("hub:owner/name/en:field=body")[1]
    texts, said = read("hub:owner/name/en:split=dev")
    assert not texts and "got 'dev'; take one of train, validation" in said
    assert "'fr' not found" in read("hub:owner/name/fr")[1]


def test_what_is_not_there_is_said_with_what_is(served: Hub) -> None:
    served.dataset("owner/name", {"main": shards("jsonl"), "v2": {}}, tags={"v1": "main"})
    said = read("hub:owner/name@v3")[1]
    assert "got 'v3'; take one of main, v2, v1, or a commit" in said
    assert "got none of this name that is open" in read("hub:owner/other")[1]
    assert f"short names are {', '.join(CATALOGUE)}" in read("hub:c5")[1]
    assert "is at https://rome.baulab.info/data/dsets/zsre_mend_eval.json" in read("hub:zsre")[1]


# ---------------------------------------------------------------------- short names
def real(path: str, count: int) -> Records:
    """The first records of a file of the data folder."""
    if not DATA:
        pytest.skip("KEMEM_DATA is not set: no real data at hand")
    opened = gzip.open if path.endswith(".gz") else open
    with opened(f"{DATA}/{path}", "rt", encoding="utf-8") as file:
        if ".jsonl" in path:
            return [json.loads(line) for line in itertools.islice(file, count)]
        return json.load(file)[:count]


def configured(name: str, path: str) -> str:
    return f"---\nconfigs:\n- config_name: {name}\n  data_files:\n  - split: train\n    path: {path}\n---\n"


def layout(name: str, served: Hub) -> tuple[dict[str, Any], list[str]]:
    """The files of a data set as its owner lays them out, and the texts that are to be read of them."""
    lines = numbered(0, 4)
    texts = [record["text"] for record in lines]
    packed = FORMATS["jsonl.gz"](lines)
    if name in ("dolma", "dolma-sample"):
        served.dataset("elsewhere/dolma", {"main": {"a.json.gz": packed, "b.json.gz": packed}})
        begin = f"{served.endpoint}/datasets/elsewhere/dolma/resolve/main"
        listing = f"{begin}/a.json.gz\n{begin}/b.json.gz\n"
        files = {f"urls/{CATALOGUE[name].config}.txt": listing, "dolma.py": "raise SystemExit('run')"}
        return files, texts + texts
    if name == "c4":
        return {
            "README.md": configured("en", "en/c4-train.*"),
            "en/c4-train.00000-of-01024.json.gz": packed,
        }, texts
    if name == "pubmed":
        found = [{"content": r["text"], "title": "t"} for r in real("domains/pubmed_abstracts.jsonl.gz", 4)]
        return {"chunk/pubmed23n0001.jsonl": jsonl(found)}, [record["content"] for record in found]
    if name == "fictional-knowledge":
        found = real("fictional_knowledge/fictional_knowledge.json", 4)
        return {"fictional_knowledge.json": listed(found)}, [record["train_context"] for record in found]
    if name == "wikitext":
        found = real("pretrain/wikitext2_raw_test.jsonl.gz", 3)
        path = "wikitext-103-raw-v1/train-00000-of-00001.parquet"
        readme = configured("wikitext-103-raw-v1", "wikitext-103-raw-v1/train-*")
        return {"README.md": readme, path: parquet(found)}, [record["text"] for record in found]
    if name == "ml-arxiv":
        return {
            "data/train-00000-of-00001-52427cf3bce60f12.parquet": parquet([{"abstract": t} for t in texts])
        }, texts
    if name == "amazon":
        path = "amazon_polarity/train-00000-of-00004.parquet"
        readme = configured("amazon_polarity", "amazon_polarity/train-*")
        return {"README.md": readme, path: parquet([{"content": t} for t in texts])}, texts
    if name == "imdb":
        paths = [f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "unsupervised")]
        files = "".join(
            f"  - split: {split}\n    path: {path}\n"
            for split, path in zip(("train", "unsupervised"), paths, strict=True)
        )
        readme = f"---\nconfigs:\n- config_name: plain_text\n  data_files:\n{files}---\n"
        return {
            "README.md": readme,
            **dict(zip(paths, (parquet(lines[:2]), parquet(lines[2:])), strict=True)),
        }, texts
    if name in ("wikipedia", "yelp"):
        config = str(CATALOGUE[name].config)
        path = f"{config}/train-00000-of-00001.parquet"
        return {"README.md": configured(config, f"{config}/train-*"), path: parquet(lines)}, texts
    assert name == "acl"
    found = [{"acl_id": "O02-2002", "abstract": "", "full_text": text} for text in texts]
    return {"acl-publication-info.74k.v2.parquet": parquet(found)}, texts


SHORT = [name for name, entry in CATALOGUE.items() if entry.hub and name != "counterfact"]


@pytest.mark.parametrize("name", SHORT)
def test_a_short_name_is_read_at_its_commit(name: str, served: Hub) -> None:
    entry = CATALOGUE[name]
    files, texts = layout(name, served)
    assert entry.hub
    if entry.revision:
        served.dataset(entry.hub, {"main": {"README.md": "emptied since"}})
        served.repositories["datasets", entry.hub].commits[entry.revision] = contents(files)
    else:
        served.dataset(entry.hub, {"main": files})
    found = corpus(f"hub:{name}:limit=6")
    assert list(found.texts) == texts[:6]
    assert found.versions == {entry.hub: entry.revision or served.commit(entry.hub, kind="datasets")}


def test_what_is_written_out_counts_more_than_the_catalogue() -> None:
    dolma = CATALOGUE["dolma"]
    assert hub.source(Part("hub", "dolma")) == hub.Source(
        "allenai/dolma", revision=dolma.revision, config="v1_5-sample", listing="urls/v1_5-sample.txt"
    )
    assert hub.source(Part("hub", "dolma@main/v1_7:limit=5")) == hub.Source(
        "allenai/dolma", revision="main", config="v1_7", listing="urls/v1_7.txt", limit=5
    )
    assert hub.source(Part("hub", "pubmed:field=contents,split=test")) == hub.Source(
        "MedRAG/pubmed", revision=CATALOGUE["pubmed"].revision, field="contents", split="test"
    )


@REAL
def test_counterfact_by_its_short_name_in_parquet(served: Hub) -> None:
    records = real("counterfact/counterfact_500.json", 8)
    files = {
        "data/train-00000-of-00001.parquet": parquet(records[:5]),
        "data/test-00000-of-00001.parquet": parquet(records[5:]),
    }
    served.dataset("azhx/counterfact", {"main": files})
    assert requests("hub:counterfact") == requests(records)
    assert requests("hub:counterfact", limit=6) == requests(records[:6])


@REAL
@pytest.mark.parametrize(
    ("path", "ending"),
    [("zsre/zsre_mend_train-500.json", "jsonl.gz"), ("counterfact/counterfact-edit.json", "json"),
     ("counterfact/counterfact_500.json", "jsonl.zst")],
)  # fmt: skip
def test_requests_in_each_schema(path: str, ending: str, served: Hub) -> None:
    records = real(path, 6)
    served.dataset("owner/facts", {"main": {f"facts.{ending}": FORMATS[ending](records)}})
    assert requests("hub:owner/facts") == requests(records)


@REAL
def test_fictional_knowledge_as_on_the_hub_and_as_released(served: Hub) -> None:
    own = real("fictional_knowledge/fictional_knowledge.json", 72)
    again = real("fictional_knowledge/fictional_knowledge_paraphrased.json", 72)
    name = "kaist-ai/fictional-knowledge"
    served.dataset(
        name, {"main": {"fictional_knowledge.json": listed(own)}, "told": {"a.json": listed(again)}}
    )
    found = passages(f"hub:{name}")
    assert [(p.context, p.paraphrases, p.group) for p in found] == [
        (record["train_context"], (), "paraphrase" if i < 70 else "once") for i, record in enumerate(own)
    ]
    assert passages(f"hub:{name}@told") == (
        *passages(again[:70], "paraphrase"), *passages(again[70:], "once")
    )  # fmt: skip


# ---------------------------------------------------------------------- faults
@pytest.mark.parametrize(
    ("ending", "kind", "fault", "ours"),
    [
        ("jsonl", "drop", {}, []),  # the client asks again by itself
        ("jsonl", "drop", {"times": 7}, [1]),
        ("parquet", "drop", {"times": 7}, [1]),
        ("jsonl", "429", {"seconds": 7, "times": 2}, [7, 7]),
        ("jsonl", "500", {"times": 2}, [1, 2]),
        ("parquet", "short", {}, []),
        ("parquet", "etag", {}, []),
    ],
)
def test_a_fault_that_passes_costs_no_record(
    ending: str, kind: str, fault: dict[str, Any], ours: list[float], served: Hub, waits: list[float]
) -> None:
    served.dataset("owner/name", {"main": shards(ending)}).fault(f"train-1.{ending}", kind, **fault)
    assert read("hub:owner/name") == (ALL, "")
    for one in ours:
        assert one in waits
    assert sum(waits) < 60


@pytest.mark.parametrize(
    ("ending", "kind", "fault", "said"),
    [
        ("jsonl", "drop", {"times": None}, "Server Disconnected after 0 records; try again later"),
        (
            "jsonl",
            "429",
            {"times": None, "seconds": 9},
            "(it asks to wait 9 s) after 0 records; try again later",
        ),
        ("jsonl", "429", {"times": None, "seconds": 3600}, "(it asks to wait 3600 s)"),
        ("jsonl", "404", {"times": None}, "check name, revision and network"),
        ("jsonl", "short", {"times": None, "after": 0}, "its last byte does not come"),
        ("parquet", "short", {"times": None}, "damaged or cut off"),
        ("jsonl", "etag", {"times": None}, "of ETag"),
        ("parquet", "etag", {"times": None}, "of ETag"),
    ],
)
def test_a_fault_that_stays_is_one_line_and_loses_nothing(
    ending: str, kind: str, fault: dict[str, Any], said: str, served: Hub, waits: list[float]
) -> None:
    served.dataset("owner/name", {"main": shards(ending)}).fault(f"train-1.{ending}", kind, **fault)
    texts, message = read("hub:owner/name")
    assert texts == ALL[:30]
    assert f"data/train-1.{ending} of hub:owner/name must be" in message and said in message
    assert sum(waits) < 300 and (fault.get("seconds") != 3600 or not waits)
    served.faults.clear()
    before = served.asked("HEAD", f"train-0.{ending}")
    assert read("hub:owner/name") == (ALL, "")
    assert served.asked("HEAD", f"train-0.{ending}") == before == 1  # it goes on in the second file


@pytest.mark.parametrize(
    ("ending", "number"), [*((ending, 1) for ending in FORMATS), ("jsonl.gz", 0), ("jsonl.zst", 0)]
)
def test_a_file_cut_off_in_the_repository_is_named(ending: str, number: int, served: Hub) -> None:
    files = shards(ending)
    path = f"data/train-{number}.{ending}"
    files[path] = files[path][: len(files[path]) - 25]
    served.dataset("owner/name", {"main": files})
    texts, message = read("hub:owner/name")
    whole = 15 if ending == "jsonl.zst" else 0  # the frame before the one that is cut is read as it comes
    assert texts == ALL[: 30 * number + whole]
    assert path in message and "owner/name" in message


@pytest.mark.parametrize(("ending", "count"), [("jsonl", 70), ("jsonl.zst", 60)])
def test_a_stream_that_breaks_inside_a_file_goes_on_at_its_record(
    ending: str, count: int, served: Hub, waits: list[float]
) -> None:
    draw = random.Random(0)
    texts = [f"{i} {draw.randbytes(120_000).hex()}" for i in range(count)]  # more than is read at once
    data = FORMATS[ending]([{"text": text} for text in texts])
    served.dataset("owner/name", {"main": {f"train.{ending}": data}})
    coming = stream("hub:owner/name")
    first = [next(coming) for _ in range(3)]
    served.fault(f"train.{ending}", "drop", times=7)  # six are those that the client tries by itself
    same = [*first, *coming] == texts
    assert same and 1 in waits and served.faults[0].times == 0
    assert served.asked("HEAD", f"train.{ending}") == 2  # it was opened again


def test_an_api_that_is_busy_is_asked_again(served: Hub, waits: list[float]) -> None:
    served.dataset("owner/name", {"main": shards("jsonl")})
    served.fault("revision/", "500", times=2).fault("tree/", "429", seconds=3)
    assert read("hub:owner/name") == (ALL, "")
    assert waits[:2] == [1, 2]


def test_a_listed_file_elsewhere_is_resumed_or_refused(served: Hub, waits: list[float]) -> None:
    entry = CATALOGUE["dolma"]
    files, texts = layout("dolma", served)
    served.dataset("allenai/dolma", {"main": files})
    served.repositories["datasets", "allenai/dolma"].commits[str(entry.revision)] = contents(files)
    served.fault("b.json.gz", "drop", times=2, after=0)
    assert read("hub:dolma") == (texts, "") and waits == [1, 2]
    kept.place(
        "allenai/dolma", str(entry.revision), entry.config, "train", "text", "urls/v1_5-sample.txt"
    ).unlink()
    served.fault("b.json.gz", "drop", times=None, after=0)
    found, message = read("hub:dolma")
    assert found == texts[:4] and "b.json.gz must be a file whose bytes can be read" in message


# ---------------------------------------------------------------------- what is kept
def test_what_was_read_is_not_asked_for_again(served: Hub) -> None:
    served.dataset("owner/name", {"main": shards("jsonl")})
    commit = served.commit("owner/name", kind="datasets")
    assert read("hub:owner/name:limit=40") == (ALL[:40], "")
    served.requests.clear()
    assert read("hub:owner/name:limit=25") == (ALL[:25], "")
    assert [one.path for one in served.requests] == ["/api/datasets/owner/name"]  # what main stands for
    assert read(f"hub:owner/name@{commit}:limit=40") == (ALL[:40], "")
    assert len(served.requests) == 1
    assert read("hub:owner/name") == (ALL, "")  # goes on in the second file
    assert asked(served, "train-1.jsonl") > 0
    before = len(served.requests)
    assert read("hub:owner/name:limit=all") == (ALL, "")  # that these are all is known
    assert len(served.requests) == before + 1


def test_without_a_network_what_is_kept_is_used(served: Hub) -> None:
    served.dataset("owner/name", {"main": shards("jsonl")})
    assert read("hub:owner/name") == (ALL, "")
    served.__exit__()
    with pytest.warns(UserWarning, match="taking what main was when last asked"):
        found = corpus("hub:owner/name:limit=45")
    assert list(found.texts) == ALL[:45] and set(found.versions) == {"owner/name"}
    texts, said = read("hub:owner/other")
    assert not texts and "files:PATH" in said


def test_a_reader_that_stops_leaves_what_it_read(served: Hub) -> None:
    served.dataset("owner/name", {"main": shards("parquet")})
    texts = stream("hub:owner/name")
    assert [next(texts) for _ in range(12)] == ALL[:12]
    texts.close() if hasattr(texts, "close") else None
    del texts
    (file,) = (kept.folder() / "records" / "owner--name").iterdir()
    found = kept.found(file)
    assert found is not None and list(found) == ALL[:12] and not found.ended and found.at == (0, 12)
    assert read("hub:owner/name") == (ALL, "")


@pytest.mark.parametrize("damage", ["a byte", "cut", "lines"])
def test_kept_records_that_were_altered_are_read_anew(damage: str, served: Hub) -> None:
    served.dataset("owner/name", {"main": shards("jsonl")})
    assert read("hub:owner/name") == (ALL, "")
    (file,) = (kept.folder() / "records" / "owner--name").iterdir()
    data = file.read_bytes()
    if damage == "lines":
        lines = gzip.decompress(data).splitlines(keepends=True)
        file.write_bytes(gzip.compress(b"".join([*lines[:10], *lines[11:]])))
    else:
        file.write_bytes(data[:-40] if damage == "cut" else data[:99] + bytes([data[99] ^ 1]) + data[100:])
    with pytest.warns(UserWarning, match="were altered or cut"):
        assert read("hub:owner/name") == (ALL, "")
    kept_now = kept.found(file)
    assert kept_now is not None and kept_now.records == 60


def test_a_folder_that_cannot_be_written_stops_no_reading(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KEMEM_CACHE", str(tmp_path / "file"))
    served.dataset("owner/name", {"main": shards("jsonl")})
    with pytest.warns(UserWarning, match="is not kept in .* set KEMEM_CACHE to another folder"):
        assert read("hub:owner/name") == (ALL, "")


def test_records_are_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "records.jsonl.gz"
    writer = kept.Writer(path)
    writer.add({"text": "é", "more": [1, None]})
    assert not path.exists() and kept.found(path) is None
    writer.settle(False, (3, 1))
    found = kept.found(path)
    assert found is not None and (list(found), found.at) == ([{"text": "é", "more": [1, None]}], (3, 1))
    for value, most in (({"bytes": b"no JSON"}, 99), ({"text": "x" * 90}, 99)):
        monkeypatch.setattr(kept, "MOST", most)
        dropped = kept.Writer(path)
        dropped.add(value)
        dropped.settle(True, (9, 9))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert list(kept.found(path) or ()) == [{"text": "é", "more": [1, None]}]


def test_the_folder_is_below_the_cache_of_hugging_face(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    assert kept.folder().name == "kept"
    monkeypatch.delenv("KEMEM_CACHE")
    assert kept.folder() == Path(constants.HF_HOME) / "kemem"


def test_a_process_of_its_own_reaches_the_hub_by_its_environment(tmp_path: Path) -> None:
    code = (
        "import sys; from kemem.corpora import corpus\n"
        "found = corpus(sys.argv[1]); print(len(found), found.digest, found.versions)"
    )
    with Hub() as found:
        found.dataset("owner/name", {"main": shards("jsonl.gz")})
        environment = found.environment(tmp_path / "home", PYTHONPATH=str(Path(__file__).parents[1]))
        environment.pop("KEMEM_CACHE", None)
        done = subprocess.run(
            [sys.executable, "-c", code, "hub:owner/name:limit=50"], env=environment, capture_output=True,
            text=True, timeout=120,
        )  # fmt: skip
        commit = found.commit("owner/name", kind="datasets")
    digest = type(corpus("world:people=20,documents=3"))("", tuple(ALL[:50])).digest
    assert done.stdout.split("\n")[0] == f"50 {digest} {{'owner/name': '{commit}'}}", done.stderr
    assert list((tmp_path / "home" / "kemem" / "records" / "owner--name").iterdir())


# ---------------------------------------------------------------------- the catalogue
def test_the_table_has_a_row_of_equal_cells_for_each_data_set() -> None:
    head, rule, *rows = catalogue.table().splitlines()
    assert [row.split("`")[1] for row in rows] == list(CATALOGUE)
    assert {line.count(" | ") for line in (head, rule, *rows)} == {6} and "None" not in catalogue.table()
    assert "| `c4` | `allenai/c4`, `en`, `train` | 364,868,892 | 829 GB of text; 1,024 files |" in rows[2]
    assert "| unknown | unknown |" in rows[list(CATALOGUE).index("zsre")]
    assert len(catalogue.notes().splitlines()) == len(rows)


def test_entries_say_where_they_are_and_at_which_commit() -> None:
    for entry in CATALOGUE.values():
        assert "/" not in entry.name and entry.stated.startswith("https://")
        assert (entry.hub is None) == bool(entry.place and entry.remedy)
        assert entry.hub is None or entry.hub.count("/") == 1
        assert entry.revision is None or (len(entry.revision) == 40 and int(entry.revision, 16))
        assert not entry.fields or entry.hub is None or entry.field in (*entry.fields, "text")


def test_the_page_shows_the_catalogue() -> None:
    page = (Path(__file__).parents[1] / "pages" / "data.md").read_text(encoding="utf-8")
    assert all(f"```{{catalogue}} {part}\n```" in page for part in ("table", "notes"))
