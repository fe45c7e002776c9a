"""Models of the hub, through the unmodified clients and a hub on loopback: revisions, checks, faults, commands."""

import http.client
import io
import json
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import tiny, tokens
from hub_server import Hub
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kemem.errors import BadInput
from kemem.models import branches, convert, described, family, fetch, load
from kemem.models import hub as module

OLMO = "allenai/OLMo-1B-hf"
STEPS = ("step1000-tokens4B", "step117850-tokens494B", "step738020-tokens3094B")
WORDS = ("<s>", "<pad>", "</s>", "<unk>", "the", "in", "was", "of", "is", "born", "a", "city", "works")
SMALL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> dict[str, Path]:
    """Folders of a tiny OLMo at each of its published branches, no two with the same weights."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
    made, place = {}, tmp_path_factory.mktemp("stages")
    for seed, branch in enumerate(("main", *STEPS)):
        tiny("olmo", seed=seed).save_pretrained(place / branch)
        tokenizer.save_pretrained(place / branch)
        made[branch] = place / branch
    return made


@pytest.fixture
def hub(stages, monkeypatch, tmp_path):
    """A hub with these branches, to which the clients of this process go; no client waits."""
    with Hub(page=3, most=500) as served:
        served.model(OLMO, stages, tags={"v1": "main"})
        served.reach(monkeypatch, tmp_path / "home")
        served.slept = []
        monkeypatch.setattr(time, "sleep", served.slept.append)
        yield served


def weights(place, name="model.safetensors") -> bytes:
    return (Path(place) / name).read_bytes()


def refused(match, act, *args, **options) -> str:
    with pytest.raises(BadInput, match=match) as caught:
        act(*args, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


# ---------------------------------------------------------------------- revisions
@pytest.mark.parametrize(
    ("revision", "branch"),
    [
        (None, "main"),
        ("main", "main"),
        ("v1", "main"),
        ("step1000", STEPS[0]),
        ("step117850", STEPS[1]),
        (STEPS[2], STEPS[2]),
    ],
)
def test_a_revision_is_found_by_its_beginning(hub, stages, revision, branch):
    assert weights(fetch(OLMO, revision=revision)) == weights(stages[branch])
    assert family(OLMO, revision=revision) == "olmo"


def test_a_commit_is_used_as_it_is(hub, stages):
    commit = hub.commit(OLMO, STEPS[1])
    assert weights(fetch(OLMO, revision=commit)) == weights(stages[STEPS[1]])
    assert not hub.asked("GET", "/refs")
    assert fetch(OLMO, revision=commit[:9]).name == commit
    hub.model(OLMO, {"refs/pr/7": stages[STEPS[0]]})
    assert fetch(OLMO, revision="refs/pr/7").name == hub.commit(OLMO, STEPS[0])


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("step738000", f"the nearest of 3 are {STEPS[2]}, {STEPS[1]}, {STEPS[0]}."),
        ("step100", f"the nearest of 3 are {STEPS[0]}, {STEPS[1]}, {STEPS[2]}."),
        (
            "step7380",
            f"the nearest of 3 are {STEPS[0]}, {STEPS[1]}, {STEPS[2]}.",
        ),  # not the beginning step7380|20
        ("final", f"it has main, {STEPS[0]}, {STEPS[1]}, {STEPS[2]}, v1."),
    ],
)
def test_a_revision_that_is_not_there_is_refused_with_those_nearby(hub, revision, said):
    line = refused("expected a revision of", load, OLMO, revision=revision, device="cpu")
    assert line == f"expected a revision of {OLMO}; got {revision!r}, with which none begins; {said}"
    assert not hub.asked("HEAD", "config.json")


def test_a_beginning_of_two_branches_is_refused(hub, stages):
    hub.model(OLMO, {"step1000-tokens5B": stages["main"]})
    refused(
        "which begins step1000-tokens4B, step1000-tokens5B; give one whole", fetch, OLMO, revision="step1000"
    )
    assert weights(fetch(OLMO, revision="step1000-tokens5B")) == weights(stages["main"])


TOKENIZERS = """
import sys
from kemem.corpora import load_tokenizer
from kemem.errors import BadInput
for revision in (None, "step1000", "step9000", "step8000"):
    try:
        print("bern" in load_tokenizer(sys.argv[1], revision=revision).get_vocab())
    except BadInput as error:
        print(error)
"""


def test_a_tokenizer_is_found_by_the_beginning_of_a_revision_too(hub, stages, tmp_path):
    changed = {path.name: path for path in stages["main"].iterdir()}
    text = (stages["main"] / "tokenizer.json").read_text().replace('"born"', '"bern"')
    hub.model(OLMO, {"step9000-tokens3B": {**changed, "tokenizer.json": text}})

    def told():
        ran = subprocess.run(
            [sys.executable, "-c", TOKENIZERS, OLMO],
            env=hub.environment(tmp_path / "other"), capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert not ran.returncode, ran.stderr
        return ran.stdout.splitlines()

    *found, line = told()
    assert found == ["False", "False", "True"]
    assert line.startswith(
        f"expected a revision of {OLMO}; got 'step8000', with which none begins; the nearest"
    )


def test_branches_are_listed_by_their_step(hub, stages):
    more = ("step9000-tokens100B", "step20000-tokens84B")
    hub.model(OLMO, dict.fromkeys(more, stages["main"]))
    assert branches(OLMO) == (STEPS[0], *more, *STEPS[1:])
    fetch(OLMO, revision="step117850")
    hub.__exit__()
    assert branches(OLMO) == (STEPS[1],)


def test_all_files_are_of_one_commit(hub, stages):
    snapshot = module.Snapshot(OLMO, "main")
    snapshot.configuration()
    hub.model(OLMO, {"main": stages[STEPS[0]]})  # somebody pushes between the configuration and the weights
    assert weights(snapshot.whole()) == weights(stages["main"])
    assert weights(fetch(OLMO)) == weights(stages[STEPS[0]])


# ---------------------------------------------------------------------- reading
@pytest.mark.parametrize(
    ("name", "kind", "branch", "revision"),
    [
        ("EleutherAI/pythia-1.4b", "gpt_neox", "step143000", "step143000"),
        ("EleutherAI/gpt-j-6b", "gptj", "float16", "float16"),
        ("allenai/OLMo-2-0425-1B", "olmo2", "stage1-step1000-tokens3B", "stage1-step1000"),
        ("roberta-base", "roberta", "main", None),
        ("gpt2-xl", "gpt2", "main", None),
    ],
)
def test_a_model_of_the_hub_is_read_as_it_was(hub, tmp_path, name, kind, branch, revision):
    model = tiny(kind)
    model.save_pretrained(tmp_path / "made")
    hub.model(name, {"main": tmp_path / "made", branch: tmp_path / "made"})
    found, tokenizer = load(name, revision=revision, device="cpu")
    ids = tokens(1, 9)
    assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)
    assert tokenizer is None and type(found) is type(model)


def test_only_what_is_needed_is_asked_for(hub, stages):
    more = {
        "README.md": "read",
        "pytorch_model.bin": b"pickled",
        "onnx/model.onnx": b"graph",
        "model.pt": b"again",
    }
    files = {path.name: path for path in stages["main"].iterdir()}
    hub.model(OLMO, {"main": {**files, **more, "consolidated.safetensors": b"again"}})
    hub.requests.clear()
    assert family(OLMO) == "olmo"
    fetched = {one.path.rsplit("/", 1)[1] for one in hub.requests if "/resolve/" in one.path}
    assert fetched == {"config.json"}
    config, tokenizer = described(OLMO)
    assert (config.hidden_size, tokenizer("born the")["input_ids"], tokenizer.name_or_path) == (
        12,
        [9, 4],
        OLMO,
    )
    assert not hub.asked("GET", "model.safetensors")
    found, _ = load(OLMO, device="cpu")
    assert not found.training and hub.asked("GET", "model.safetensors") == 1
    fetched = {one.path.rsplit("/", 1)[1] for one in hub.requests if "/resolve/" in one.path}
    assert fetched == SMALL | {"model.safetensors"}
    known = ("/refs", "/tree/", "/resolve/", "/api/models/" + OLMO)
    assert all(any(part in one.path for part in known) for one in hub.requests)
    assert not any("discussions" in one.path for one in hub.requests)
    before = hub.asked("HEAD", "")
    load(OLMO, device="cpu")
    assert hub.asked("HEAD", "") == before and hub.asked("GET", "model.safetensors") == 1


def test_weights_in_parts_are_those_that_the_index_names(hub, stages, tmp_path):
    model = tiny("olmo", seed=5)
    model.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    files = {path.name: path for path in (tmp_path / "parts").iterdir()}
    parts = sorted(name for name in files if name.startswith("model-"))
    assert len(parts) > 2
    hub.model("a/parts", {"main": {**files, "model-00009-of-00009.safetensors": b"of another split"}})
    found, _ = load("a/parts", device="cpu")
    ids = tokens(1, 9)
    assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not hub.asked("GET", "model-00009-of-00009.safetensors")
    del files[parts[1]]
    hub.model("a/parts", {"main": files})
    refused(f"all parts of the weights in a/parts; got no {parts[1]}", fetch, "a/parts")
    hub.model("a/parts", {"main": {**files, "model.safetensors.index.json": "{}"}})
    refused("got no weight_map in its index", fetch, "a/parts")


def test_repositories_without_what_is_read_are_refused(hub, stages):
    refused("got no such model there, or a private one", load, "nobody/nothing", device="cpu")
    refused(
        "got no such model there, or a private one", load, "nobody/nothing", revision="main", device="cpu"
    )
    refused("got no such model there", fetch, "no spaces/in it")
    config = (stages["main"] / "config.json").read_bytes()
    hub.model("a/pickled", {"main": {"config.json": config, "pytorch_model.bin": b"0"}})
    refused("weights as safetensors in a/pickled; got pytorch_model.bin", load, "a/pickled", device="cpu")
    hub.model("a/bare", {"main": {"config.json": config}})
    refused("weights as safetensors in a/bare; got none", fetch, "a/bare")
    hub.model("a/data", {"main": {"README.md": "no model"}})
    refused("a repository without a config.json", load, "a/data", device="cpu")
    refused("a repository without a config.json", fetch, "a/data")
    hub.model("a/own", {"main": {"config.json": '{"model_type": "evil", "auto_map": {"AutoConfig": "x.Y"}}'}})
    refused("got 'evil'; kemem reads", load, "a/own", device="cpu")
    files = {path.name: path for path in stages["main"].iterdir()}
    hub.model("a/odd", {"main": {**files, "tokenizer.json": "{"}})
    refused("a tokenizer that opens in a/odd", load, "a/odd", device="cpu")


def test_what_was_fetched_is_found_without_a_network(hub, stages):
    load(OLMO, revision="step1000", device="cpu")
    family(OLMO, revision="step117850")
    commit = hub.commit(OLMO, STEPS[0])
    hub.__exit__()
    for revision in ("step1000", STEPS[0], commit):
        found, tokenizer = load(OLMO, revision=revision, device="cpu")
        assert weights(fetch(OLMO, revision=revision)) == weights(stages[STEPS[0]])
        assert tokenizer is not None and found.config.hidden_size == 12
    assert family(OLMO, revision="step117850") == "olmo"
    lacking = ("step117850", "step738020", None, "0" * 40, "../refs")  # of the first: its weights
    for revision in lacking:
        refused("no such folder and no network", load, OLMO, revision=revision, device="cpu")


@pytest.mark.parametrize("status", ["500", "429"])
def test_a_hub_that_fails_for_longer_is_told_and_done_without(hub, stages, status):
    load(OLMO, revision="step1000", device="cpu")
    hub.fault("/refs", status, times=None)
    with pytest.warns(UserWarning, match="the hub did not answer: .* at step1000 is read as fetched before"):
        found, _ = load(OLMO, revision="step1000", device="cpu")
    assert found.config.hidden_size == 12
    refused(
        f"expected the hub to send .* at step738020; got status {status}", fetch, OLMO, revision="step738020"
    )


def test_a_hub_that_says_no_is_believed(hub):
    load(OLMO, revision="step1000", device="cpu")
    hub.fault("/refs", "404", times=None)
    refused("got 'step1000', which the hub does not have", load, OLMO, revision="step1000", device="cpu")


# ---------------------------------------------------------------------- faults
W, C = "model.safetensors", "config.json"
FAULTS = {  # what goes wrong, then either what is refused, or None where it is fetched all the same
    "weights dropped once": ((W, "drop", 1), None),
    "weights dropped always": ((W, "drop", None), "expected the hub to send .*; got RemoteProtocolError"),
    "weights cut once": ((W, "short", 1), None),
    "weights cut always": ((W, "short", None), "expected the hub to send .* file should be of size"),
    "weights altered once": ((W, "corrupt", 1), None),
    "weights altered always": (
        (W, "corrupt", None),
        "expected model.safetensors .* another content, 3 times",
    ),
    "ETag of other weights once": ((W, "etag", 1), None),
    "ETag of other weights always": (
        (W, "etag", None),
        "expected model.safetensors .* another content, 3 times",
    ),
    "too many requests twice": ((W, "429", 2), None),
    "too many requests always": ((W, "429", None), "got status 429; wait some minutes, and run this again"),
    "weights answered with 500 once": ((W, "500", 1), None),
    "weights answered with 500 always": ((W, "500", None), "got status 500; wait, or see to the network"),
    "weights gone": (
        (W, "404", None),
        "expected a revision of .*; got 'step1000', which the hub does not have",
    ),
    "configuration altered once": ((C, "corrupt", 1), None),
    "configuration altered always": ((C, "corrupt", None), "expected config.json .* another content"),
    "configuration cut once": ((C, "short", 1), None),
    "configuration dropped once": ((C, "drop", 1), None),
    "configuration 500 once": ((C, "500", 1), None),
    "tokenizer altered always": (
        ("tokenizer.json", "corrupt", None),
        "expected tokenizer.json .* another content",
    ),
    "branches 500 once": (("/refs", "500", 1), None),
    "branches 500 always": (("/refs", "500", None), "got status 500"),
    "branches 429": (("/refs", "429", 1), "got status 429; wait some minutes"),
    "files 500 once": (("/tree/", "500", 1), None),
    "files 429 once": (("/tree/", "429", 1), None),
    "revision gone": (("/tree/", "404", None), "expected a revision of .*; got 'step1000', which the hub"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_ends_in_the_right_bytes_or_in_one_line(hub, stages, tmp_path, case):
    """And nothing is left that a second run would trust: after the fault it reads the right bytes."""
    (end, kind, times), said = FAULTS[case]
    hub.fault(end, kind, times=times, after=90, seconds=7)
    right = {path.name: path.read_bytes() for path in stages[STEPS[0]].iterdir()}
    if said is None:
        found, _ = load(OLMO, revision="step1000", device="cpu")
        assert torch.equal(found.lm_head.weight, tiny("olmo", seed=1).lm_head.weight)
        assert not hub.faults[0].times  # it did happen
        assert kind != "429" or 8.0 in hub.slept  # as long as the hub asked for, and a second
    else:
        refused(said, load, OLMO, revision="step1000", device="cpu")
    cache = tmp_path / "home" / "hub"
    for path in cache.glob("models--*/snapshots/*/*"):
        assert path.read_bytes() == right[path.name], path.name
    assert {path.read_bytes() for path in cache.glob("models--*/blobs/*")} <= set(right.values())
    assert not list(cache.rglob("*.incomplete"))
    hub.faults.clear()
    place = fetch(OLMO, revision="step1000")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        name: right[name] for name in SMALL | {W}
    }
    hub.__exit__()
    assert weights(fetch(OLMO, revision="step1000")) == right[W]


def test_a_dropped_connection_goes_on_where_it_ended(hub, stages, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fault(W, "drop", after=3500)
    assert weights(fetch(OLMO, revision="step1000")) == weights(stages[STEPS[0]])
    assert [one.range for one in hub.requests if one.path.endswith(W) and one.method == "GET"] == [
        None,
        "bytes=3000-",
    ]


def test_whole_parts_are_not_fetched_again(hub, tmp_path):
    tiny("olmo").save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    hub.model("a/parts", {"main": tmp_path / "parts"})
    *whole, last = sorted(path.name for path in (tmp_path / "parts").glob("model-*"))
    hub.fault(last, "drop", times=None)
    refused("expected the hub to send", fetch, "a/parts")
    hub.faults.clear()
    fetch("a/parts")
    assert [hub.asked("GET", name) for name in whole] == [1] * len(whole)


def test_files_are_checked_even_if_the_process_ended_before(hub, stages, monkeypatch):
    hub.fault(W, "corrupt")
    with monkeypatch.context() as killed:
        killed.setattr(module.Snapshot, "_wrong", lambda *_, **__: sys.exit("killed"))
        with pytest.raises(SystemExit):
            fetch(OLMO, revision="step1000")
        killed.setattr(module.Snapshot, "_wrong", lambda *_, **__: ())
        place = fetch(OLMO, revision="step1000")
    assert weights(place) != weights(stages[STEPS[0]])  # whole, and wrong
    assert weights(fetch(OLMO, revision="step1000")) == weights(stages[STEPS[0]])


def test_a_file_that_was_altered_later_is_fetched_anew(hub, stages):
    blob = (fetch(OLMO, revision="step1000") / W).resolve()

    def alter():
        blob.write_bytes(bytes(len(weights(stages[STEPS[0]]))))

    alter()
    assert weights(fetch(OLMO, revision="step1000")) == weights(stages[STEPS[0]])
    alter()
    hub.__exit__()
    refused("no such folder and no network", load, OLMO, revision="step1000", device="cpu")
    assert not blob.exists()


def test_files_seen_before_are_not_read_through_again(hub, monkeypatch):
    fetch(OLMO)
    monkeypatch.setattr(module, "_hash", lambda path, kind: pytest.fail("read"))
    fetch(OLMO)


# ---------------------------------------------------------------------- a folder of one's own
def test_a_model_is_pinned_to_a_folder(hub, stages, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert fetch(OLMO, revision="step1000", folder=folder) == folder
    assert {path.name for path in folder.iterdir()} == SMALL | {W, "fetched.json"}
    assert weights(folder) == weights(stages[STEPS[0]])
    record = json.loads((folder / "fetched.json").read_text())
    assert (record["model"], record["revision"]) == (OLMO, STEPS[0])
    assert record["commit"] == hub.commit(OLMO, STEPS[0])
    assert set(record["sha256"]) == SMALL | {W}
    asked = hub.asked("GET", W)
    fetch(OLMO, revision="step1000", folder=str(folder))
    assert hub.asked("GET", W) == asked == 1
    refused(f"to be free, or to hold {OLMO} at step738020", fetch, OLMO, revision="step738020", folder=folder)
    load(str(folder), device="cpu")
    (folder / W).write_bytes(b"altered")
    refused("got it with model.safetensors altered", fetch, OLMO, revision="step1000", folder=folder)
    (folder / "fetched.json").unlink()
    refused("got something else", fetch, OLMO, revision="step1000", folder=folder)
    assert weights(folder) == b"altered"


@pytest.mark.parametrize("kind", ["drop", "short", "corrupt"])
def test_a_folder_appears_when_it_is_complete(hub, stages, tmp_path, kind):
    folder = tmp_path / "mine"
    more = {path.name: path for path in stages["main"].iterdir()} | {"added_tokens.json": "{}"}
    hub.model(OLMO, {"begun": more})
    hub.fault(W, kind, times=None)
    refused("expected", fetch, OLMO, revision="begun", folder=folder)
    assert not folder.exists() and (tmp_path / ".mine.part" / "added_tokens.json").is_file()
    hub.faults.clear()
    fetch(OLMO, revision="step738020", folder=folder)  # another one than was begun
    assert weights(folder) == weights(stages[STEPS[2]])
    assert {path.name for path in folder.iterdir()} == SMALL | {W, "fetched.json"}
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {"mine"}


def test_a_disk_that_is_too_small_is_told_before(hub, tmp_path, monkeypatch):
    family(OLMO)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: usage(10**9, 10**9 - 9000, 9000))
    line = refused("0.00 GB free in .*; free some space, or set HF_HOME", fetch, OLMO)
    assert line.startswith("expected 0.00 GB") and not hub.asked("GET", W)
    refused("0.00 GB free in", fetch, OLMO, folder=tmp_path / "mine")
    assert not (tmp_path / "mine").exists() and not hub.asked("GET", W)


def test_a_disk_that_fails_is_one_line(hub, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "snapshot_download", full)
    refused(
        "to write allenai/OLMo-1B-hf to the cache .*; got: No space left on device; free some space",
        fetch,
        OLMO,
    )


def test_a_native_checkpoint_of_the_hub_is_converted(hub, tmp_path):
    from test_native import native, write

    model = tiny("olmo")
    folder = write(tmp_path / "native", native(model), "named", config="config.json", weight_tying=False)
    hub.model("allenai/OLMo-1B", {"step20000-tokens84B": folder})
    refused("got 'hf_olmo'; kemem reads", load, "allenai/OLMo-1B", revision="step20000", device="cpu")
    found, _ = load(
        str(convert(fetch("allenai/OLMo-1B", revision="step20000"), tmp_path / "hf")), device="cpu"
    )
    ids = tokens(1, 9)
    assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)


# ---------------------------------------------------------------------- what is shown
class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, "\r"), (io.StringIO, "\n")])
def test_a_download_shows_where_it_is_once_it_takes_long(monkeypatch, stream, shown):
    for wait, visible in ((3600.0, False), (1e-9, True)):
        monkeypatch.setattr(module, "PATIENCE", wait)
        bar = module.Bar(total=4, file=stream(), desc="parts", mininterval=0)
        bar.update(2)
        bar.refresh()
        text = bar.fp.getvalue()
        assert ("2/4" in text) == visible and (shown in text or not visible)
        bar.close()


# ---------------------------------------------------------------------- the command
COMMANDS = """
import json, sys
from kemem.cli import main
name, local, place = sys.argv[1:]
corpus = ["--corpus", "world:people=30", "--instances", "6", "--device", "cpu", "--json"]
steps = ["--revision", "step1000", "--revision", "step738020"]
codes = [main(["entropy", name, *steps, *corpus, place + "/hub.json"])]
steps = ["--revision", "step1000-tokens4B", "--revision", "step738020-tokens3094B"]
codes += [main(["entropy", local, *steps, *corpus, place + "/local.json"])]
print("refused next", file=sys.stderr)
codes += [main(["entropy", name, "--revision", "step738000", *corpus, place + "/none.json"])]
print(json.dumps(codes))
"""


def test_the_command_measures_revisions_of_the_hub(stages, tmp_path):
    with Hub() as hub:
        hub.model(OLMO, stages)
        ran = subprocess.run(
            [sys.executable, "-c", COMMANDS, OLMO, str(stages["main"].parent), str(tmp_path)],
            env=hub.environment(tmp_path / "home"), capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert json.loads(ran.stdout.splitlines()[-1]) == [0, 0, 2], ran.stderr
        assert hub.asked("GET", W) == 2
        asked = [hub.commit(OLMO, STEPS[0]), hub.commit(OLMO, STEPS[2])]
    measured, local = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("hub", "local"))
    assert [row["revision"] for row in measured] == ["step1000", "step738020"]
    assert [row["commit"] for row in measured] == asked and not any(row["commit"] for row in local)
    for row, other in zip(measured, local, strict=True):
        changed = {"model", "revision", "commit"}
        assert {k: v for k, v in row.items() if k not in changed} == {
            k: v for k, v in other.items() if k not in changed
        }
    assert measured[0]["entropy"] != measured[1]["entropy"]
    (line,) = ran.stderr.split("refused next\n")[1].splitlines()
    assert line.startswith(
        f"kemem: expected a revision of {OLMO}; got 'step738000', with which none begins; the"
    )
    assert not (tmp_path / "none.json").exists()


# ---------------------------------------------------------------------- the hub of these tests
def test_the_hub_serves_ranges_as_a_hub_does(stages):
    with Hub() as hub:
        hub.dataset("a/b", {"main": {"x.txt": "0123456789"}})
        line = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=5)

        def get(**headers):
            line.request("GET", "/datasets/a/b/resolve/main/x.txt", headers=headers)
            answer = line.getresponse()
            return answer.status, answer.read(), answer.headers

        status, body, headers = get()
        assert (status, body, headers["X-Repo-Commit"]) == (
            200,
            b"0123456789",
            hub.commit("a/b", kind="datasets"),
        )
        tag = headers["ETag"]
        assert get(Range="bytes=2-4")[:2] == (206, b"234")
        assert get(Range="bytes=7-")[2]["Content-Range"] == "bytes 7-9/10"
        assert get(Range="bytes=-3")[:2] == (206, b"789")
        assert get(Range="bytes=10-")[0] == 416
        assert get(**{"Range": "bytes=2-4", "If-Range": tag})[0] == 206
        assert get(**{"Range": "bytes=2-4", "If-Range": '"other"'})[:2] == (200, b"0123456789")
        assert get(**{"If-None-Match": tag})[0] == 304
        line.close()
