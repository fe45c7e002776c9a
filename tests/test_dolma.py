"""Dolma in the order of training: pieces by index, against numpy over the same files put together."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from hub_server import Hub
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kemem.corpora import corpus, dolma, kept, specs
from kemem.corpora.dolma import Order, order, texts, tokens
from kemem.corpora.fetch import Patience
from kemem.corpora.spec import Part
from kemem.errors import BadInput

DATA = os.environ.get("KEMEM_DATA")
LENGTH = 8
SIZES = (
    5 * LENGTH,
    3 * LENGTH + 5,
    LENGTH - 1,
    4 * LENGTH,
)  # tokens a file; two have a rest, one is nothing else
VOCABULARY = 400


pytestmark = pytest.mark.filterwarnings("ignore:waiting")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEMEM_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return tmp_path


def arrays(sizes: tuple[int, ...] = SIZES) -> list[numpy.ndarray]:
    draw = numpy.random.default_rng(0)
    return [draw.integers(0, VOCABULARY, size, dtype=numpy.uint16) for size in sizes]


def written(
    folder: Path, parts: list[numpy.ndarray], indices: Any, *, header: bool = False
) -> dict[str, Path]:
    """Files as a training run has them: memory maps, or what numpy.save writes."""
    named = {f"part-{i}.npy": part for i, part in enumerate(parts)}
    named["global_indices.npy"] = numpy.asarray(indices, dtype=numpy.uint32)
    for name, array in named.items():
        if header:
            numpy.save(folder / name, array)
        else:
            memory = numpy.memmap(folder / name, dtype=array.dtype, mode="w+", shape=array.shape)
            memory[:] = array
            memory.flush()
    return {name: folder / name for name in named}


def pieces(parts: list[numpy.ndarray]) -> numpy.ndarray:
    """All pieces of a run, in their order: each file cut without its rest, all put together."""
    return numpy.concatenate([part[: len(part) // LENGTH * LENGTH].reshape(-1, LENGTH) for part in parts])


INDICES = numpy.random.default_rng(1).permutation(12)


@pytest.fixture
def served() -> Iterator[Hub]:
    with Hub() as found:
        yield found


def remote(served: Hub, files: dict[str, Path], **more: Any) -> Order:
    """The order of a run whose files are all behind URLs; small ones as they are, tokens by way of another host."""
    begin = f"{served.endpoint}/datasets/owner/run/resolve/main"
    listing = "".join(f"{begin}/{name}\n" for name in files if name.startswith("part"))
    served.dataset("owner/run", {"main": {**files, "files.txt": listing}})
    settings = {"instances": len(INDICES), "length": LENGTH, **more}
    return Order(f"{begin}/global_indices.npy", f"{begin}/files.txt", **settings)


def local(folder: Path, files: dict[str, Path], **more: Any) -> Order:
    listing = folder / "files.txt"
    listing.write_text("".join(f"{path}\n" for name, path in files.items() if name.startswith("part")))
    settings = {"instances": len(INDICES), "length": LENGTH, **more}
    return Order(str(files["global_indices.npy"]), str(listing), **settings)


# ---------------------------------------------------------------------- pieces
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("place", ["here", "there"])
def test_pieces_are_those_of_the_memory_maps(header: bool, place: str, folder: Path, served: Hub) -> None:
    parts = arrays()
    files = written(folder, parts, INDICES, header=header)
    wanted = local(folder, files) if place == "here" else remote(served, files)
    versions: dict[str, str] = {}
    found = tokens(wanted, versions)
    assert found.dtype == numpy.uint16 and numpy.array_equal(found, pieces(parts)[INDICES])
    assert set(versions) >= {wanted.indices, wanted.files} and len(versions) == 5  # one file has no piece
    assert numpy.array_equal(tokens(Order(**{**vars(wanted), "first": 3, "instances": 4})), found[3:7])


def test_without_rests_a_piece_stands_at_index_times_length(folder: Path, served: Hub) -> None:
    parts = arrays((3 * LENGTH, 5 * LENGTH, 4 * LENGTH))
    found = tokens(remote(served, written(folder, parts, INDICES)))
    whole = numpy.concatenate(parts)
    for row, index in zip(found, INDICES, strict=True):
        assert numpy.array_equal(row, whole[index * LENGTH : (index + 1) * LENGTH])


def test_no_more_is_fetched_than_is_asked_for(folder: Path, served: Hub) -> None:
    parts = arrays((1000 * LENGTH, 1000 * LENGTH))
    wanted = remote(served, written(folder, parts, [1500, 7, 999, *range(5000)]), instances=3)
    assert numpy.array_equal(tokens(wanted), pieces(parts)[[1500, 7, 999]])
    ranges = [one.range or "bytes=0-9999999" for one in served.requests]
    sizes = [
        int(end) - int(begin) + 1
        for begin, _, end in (r.removeprefix("bytes=").partition("-") for r in ranges)
    ]
    assert (
        max(sizes) < 300 and sum(sizes) < 1200
    )  # two lists, two headers, three pieces, each asked and redirected


@pytest.mark.parametrize("fault", ["drop", "429", "short"])
def test_a_fault_that_passes_is_waited_for(fault: str, folder: Path, served: Hub) -> None:
    parts = arrays()
    wanted = remote(served, written(folder, parts, INDICES))
    served.fault("part-3.npy", fault, after=0, times=2, seconds=3)
    waits: list[float] = []
    found = tokens(wanted, patience=Patience(wait=waits.append))
    assert numpy.array_equal(found, pieces(parts)[INDICES])
    assert len(waits) == 2 and max(waits) == (3 if fault == "429" else 2 if waits[0] != waits[1] else 1)


def test_what_was_fetched_is_kept_until_the_rest_comes(folder: Path, served: Hub) -> None:
    parts = arrays((40 * LENGTH, 10 * LENGTH))
    wanted = remote(served, written(folder, parts, range(50)), instances=50)
    steps: list[tuple[int, int]] = []

    def report(step: int, total: int, message: str) -> None:
        steps.append((step, total))
        if step == 32:
            served.fault("part-1.npy", "500", times=None)

    with pytest.raises(BadInput, match=r"part-1\.npy must be a file whose bytes can be read") as caught:
        tokens(wanted, report=report)
    assert "\n" not in str(caught.value) and steps == [(32, 50)]
    (entry,) = (kept.folder() / "dolma-order").iterdir()
    row = 2 * LENGTH + 16
    assert (entry / "pieces.part").stat().st_size == 40 * row and not (entry / "pieces").exists()
    served.faults.clear()
    served.requests.clear()
    assert numpy.array_equal(tokens(wanted, report=report), pieces(parts))
    assert served.asked("GET", "/resolve/main/part-0.npy") == 0  # these are kept
    served.requests.clear()
    assert numpy.array_equal(tokens(wanted), pieces(parts)) and not served.requests
    assert {file.name for file in entry.iterdir()} - {".lock"} == {"pieces", "plan.json"}


@pytest.mark.parametrize("where", [3, 20 * (2 * LENGTH + 16) + 2 * LENGTH + 1])
def test_kept_pieces_that_were_altered_are_fetched_anew(where: int, folder: Path, served: Hub) -> None:
    parts = arrays((50 * LENGTH,))
    wanted = remote(served, written(folder, parts, range(50)), instances=50)
    expected = tokens(wanted)
    (file,) = (kept.folder() / "dolma-order").glob("*/pieces")
    data = bytearray(file.read_bytes())
    data[where] ^= 1
    file.write_bytes(data)
    served.requests.clear()
    with pytest.warns(UserWarning, match="altered or cut"):
        assert numpy.array_equal(tokens(wanted), expected)
    assert served.asked("GET", "/resolve/main/part-0.npy") == (
        51 if where == 3 else 31
    )  # and what it is, once


def test_a_file_that_changes_meanwhile_is_refused(folder: Path, served: Hub) -> None:
    parts = arrays((50 * LENGTH,))
    files = written(folder, parts, range(50))
    wanted = remote(served, files, instances=50)

    def report(step: int, total: int, message: str) -> None:
        served.dataset("owner/run", {"main": {"part-0.npy": files["part-0.npy"].read_bytes() + b"more"}})

    with pytest.raises(BadInput, match="another file than before"):
        tokens(wanted, report=report)


def test_a_list_here_that_changes_is_read_again(folder: Path) -> None:
    parts = arrays()
    files = written(folder, parts, INDICES)
    assert numpy.array_equal(tokens(local(folder, files)), pieces(parts)[INDICES])
    files = written(folder, parts, INDICES[::-1])
    os.utime(files["global_indices.npy"], ns=(1, 1))
    assert numpy.array_equal(tokens(local(folder, files)), pieces(parts)[INDICES[::-1]])


def test_what_cannot_be_read_is_refused(folder: Path, served: Hub) -> None:
    files = written(folder, arrays(), INDICES)
    wanted = local(folder, files)

    def refused(**changes: Any) -> str:
        with pytest.raises(BadInput) as caught:
            tokens(Order(**{**vars(wanted), **changes}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "got 0 to 13 of 12 in" in refused(instances=13)
    assert "got No such file or directory" in refused(indices=str(folder / "none.npy"))
    served.dataset("owner/run", {"main": {}})
    assert "404" in refused(indices=f"{served.endpoint}/datasets/owner/run/resolve/main/none.npy")
    (folder / "list.txt").write_text("part-0.npy\npart-1.bin\n")
    assert "got 'part-1.bin'" in refused(files=str(folder / "list.txt"))
    (folder / "list.txt").write_text("# none\n")
    assert "got 'none'" in refused(files=str(folder / "list.txt"))
    written(folder, [], [0, 12])
    assert "below the 12 pieces of 8 tokens that all files have; got 12" in refused(instances=2)


CONFIGURATION = """
evaluators:
  - label: small
    data:
      datasets:
        c4:
          - r2://olmo-data/eval-data/c4.npy
      paths:
        - r2://olmo-data/eval-data/no.npy
data:
  pad_direction: right
  paths:
    - r2://olmo-data/preprocessed/part-000-00000.npy
    # left out
    - 'https://elsewhere/part-001-00000.npy'
  timeout: 0
  others:
    - r2://olmo-data/no.npy
max_duration: 5
"""


def test_files_of_a_configuration_are_those_it_was_trained_on(folder: Path) -> None:
    (folder / "run.yaml").write_text(CONFIGURATION)
    found, version = dolma.listed(str(folder / "run.yaml"))
    assert found == [
        "https://olmo-data.org/preprocessed/part-000-00000.npy", "https://elsewhere/part-001-00000.npy"
    ]  # fmt: skip
    assert version.startswith("modified ")


# ---------------------------------------------------------------------- text
def words(count: int, **named: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `count` words w0, w1, ..., some of which are named otherwise."""
    own = {number: name for name, number in named.items()}
    core = Tokenizer(models.WordLevel({own.get(i, f"w{i}"): i for i in range(count)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_a_corpus_by_its_line(folder: Path) -> None:
    words(VOCABULARY).save_pretrained(folder / "words")
    parts = arrays()
    wanted = local(folder, written(folder, parts, INDICES))
    spec = f"dolma-order:{wanted.indices},files={wanted.files},tokenizer={folder}/words,length=8,instances=5"
    found = corpus(spec)
    expected = pieces(parts)[INDICES[:5]]
    assert list(found.texts) == [" ".join(f"w{token}" for token in row) for row in expected]
    assert found.versions[wanted.indices].startswith("modified ")
    both = corpus(f"world:people=20,documents=3+{spec}")
    assert both.texts[3:] == found.texts
    small = folder / "small"
    words(100).save_pretrained(small)
    with pytest.raises(BadInput, match=r"one of 100 entries in .* and token"):
        corpus(spec.replace("/words", "/small"))


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("indices.npy", "dolma-order:INDICES,files=LIST"),
        ("files=a.txt", "dolma-order:INDICES,files=LIST"),
        ("a.npy,b.npy,files=a.txt", "dolma-order:INDICES,files=LIST"),
        ("a.npy,files=a.txt,size=3", "files, tokenizer, instances, first, length; got 'size'"),
        ("a.npy,files=a.txt,instances=0", "at least 1; got '0'"),
    ],
)
def test_what_a_line_may_not_say(rest: str, said: str) -> None:
    with pytest.raises(BadInput, match="dolma-order") as caught:
        corpus(f"dolma-order:{rest}")
    assert said in str(caught.value)


def test_a_line_and_what_it_means() -> None:
    (part,) = specs("dolma-order:https://a/b+c.npy,files=https://a/d.yaml,first=2048")
    assert part == Part("dolma-order", "https://a/b+c.npy,files=https://a/d.yaml,first=2048")
    assert order(part) == Order(
        "https://a/b+c.npy", "https://a/d.yaml", "allenai/OLMo-1B-hf", 2048, 2048, 2048
    )
    with pytest.raises(BadInput, match="followed by the place of its indices"):
        specs("dolma-order:")


@pytest.mark.skipif(not DATA, reason="KEMEM_DATA is not set: no tokenizer of OLMo at hand")
def test_the_end_of_a_document_is_the_one_of_the_training_data(folder: Path) -> None:
    """The tokenizer of the hub has it as 50279; the native file has swapped it with the mark of an address."""
    hub = Path(f"{DATA}/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json")
    core = Tokenizer.from_file(str(hub))
    row = numpy.array([*core.encode("First.").ids, 50279, *core.encode("Second, of the next").ids, 0])
    row = row.astype(numpy.uint16)
    files = written(folder, [row], [0])
    wanted = local(folder, files, instances=1, length=len(row), tokenizer=str(hub))
    assert list(texts(wanted)) == ["First.<|endoftext|>Second, of the next|||IP_ADDRESS|||"]
    assert core.encode(next(texts(wanted)), add_special_tokens=False).ids == row.tolist()
    native = json.loads(hub.read_text(encoding="utf-8"))
    for token in native["added_tokens"]:
        token["id"] = {0: 50279, 50279: 0}.get(token["id"], token["id"])
    vocabulary = native["model"]["vocab"]
    for name in ("<|endoftext|>", "|||IP_ADDRESS|||"):
        if name in vocabulary:
            vocabulary[name] = {0: 50279, 50279: 0}[vocabulary[name]]
    (folder / "native.json").write_text(json.dumps(native))
    with pytest.raises(BadInput, match=r"as id 50279, .* got '\|\|\|IP_ADDRESS\|\|\|'"):
        next(texts(local(folder, files, instances=1, length=len(row), tokenizer=str(folder / "native.json"))))
