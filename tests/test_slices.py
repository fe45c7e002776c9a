"""Records in slices: on a machine without Jupyter, stopped before the end and gone on with, and what they cost."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from test_contents import lab

from kemem import provenance
from kemem.book import build, session, slices
from kemem.book.metering import OutOfTime, Slice, mfu
from kemem.book.places import checkout
from kemem.errors import BadInput
from kemem.runs import Store
from kemem.studies import contents, pretraining
from kemem.studies.asking import Busy, Failures
from kemem.studies.cards import card
from kemem.studies.operations import Moments, Part, parameters

BARE = """
import sys

REFUSED = {"papermill", "jupytext", "nbformat", "nbclient", "IPython", "ipykernel", "jupyter_client", "datasets",
           "zstandard", "sphinx", "docutils", "submitit", "beartype"}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in REFUSED else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
from pathlib import Path
from kemem.book import slices
root, out = map(Path, sys.argv[1:])
sys.exit(slices.run(root, "smoke", minutes=5, out=out, only=("01", "04"), price=3.0))
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout of which nothing but the chapters is there."""
    place = tmp_path / "checkout"
    place.mkdir()
    (place / "chapters").symlink_to(checkout() / "chapters")
    for name in ("KEMEM_REPLAY", "KEMEM_RECORD", "KEMEM_TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path / "store"))
    return place


def archived(out: Path) -> list[str]:
    with tarfile.open(out / "records-smoke.tar.gz") as archive:
        return archive.getnames()


def rows(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.glob("records/smoke/*/*.json")}


def test_a_machine_without_jupyter_writes_records(root, tmp_path):
    """Rows go to records/ and, as one archive, to the folder that comes back; models stay in the store."""
    ran = subprocess.run(
        [sys.executable, "-c", BARE, root, tmp_path / "out"], capture_output=True, text=True, cwd=checkout()
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert {path.split("/")[2] for path in rows(root)} == {"memories", "acquisition"}
    assert list((tmp_path / "store").glob("smoke/*/*.json")) == []
    assert list((tmp_path / "store" / "smoke" / "work" / "pretraining").glob("*/step60/model.safetensors"))
    with tarfile.open(tmp_path / "out" / "records-smoke.tar.gz") as archive:
        assert set(archive.getnames()) == rows(root)
    lines = json.loads((tmp_path / "out" / "slice-smoke.json").read_text())
    assert [line["study"] for line in lines] == ["memories", "acquisition"]
    assert all(line["cost"] == pytest.approx(3 * line["seconds"] / 3600) for line in lines)
    assert "cost 0.0" in ran.stderr and "2 rows in" in ran.stderr and "0 missing" in ran.stderr


def test_a_slice_stops_and_the_next_goes_on(root, monkeypatch, capfd):
    """Here a slice is over when two rows are done. Rows of another machine count as if they were its own."""
    monkeypatch.setattr(Slice, "left", property(lambda self: 100.0 if len(self.lines) < 2 else 0.0))
    seen = []
    while (status := slices.run(root, "smoke", only=("02", "04"))) == slices.MORE:
        seen.append(rows(root))
        elsewhere = root.parent / f"store{len(seen)}"  # of the next machine, which has no models yet
        monkeypatch.setenv("KEMEM_STORE", str(elsewhere))
    assert status == slices.DONE
    assert [len(each) for each in seen] == [2] and len(rows(root)) == 4
    said = capfd.readouterr().err
    assert [said.count(f"kemem: {study} ") for study in ("texts", "pretraining", "acquisition")] == [1, 1, 1]


def test_training_goes_on_in_the_next_slice(root, monkeypatch):
    """It is stopped in the middle; the row is that of a run which was not, and most steps are not made twice."""
    plain = slices.run(root, "smoke", only=("02",))
    whole = {path: json.loads((root / path).read_text())["values"] for path in rows(root)}
    for path in whole:
        (root / path).unlink()
    monkeypatch.setenv("KEMEM_STORE", str(root.parent / "second"))
    told: list[int] = []

    def stop(self, done, total, message=""):
        if "loss" in message:
            told.append(done)
            if done >= 30:
                raise OutOfTime

    with monkeypatch.context() as patch:
        patch.setattr(session.Terminal, "__call__", stop)
        assert slices.run(root, "smoke", only=("02",)) == slices.MORE
    monkeypatch.setattr(session.Terminal, "__call__", lambda self, done, *_: told.append(-done))
    assert slices.run(root, "smoke", only=("02",)) == plain == slices.DONE
    again = {path: json.loads((root / path).read_text())["values"] for path in rows(root)}
    assert again.keys() == whole.keys()
    for path in whole:
        for values in (whole[path], again[path]):
            for row in values.get("history", ()):
                row.pop("seconds")
    assert again == whole
    first = next(-done for done in told if done < 0)
    assert first > 20


def test_what_a_killed_slice_finished_is_in_the_archive(root, tmp_path, monkeypatch):
    """And so is what a slice finished whose contents cannot be counted at its end."""
    monkeypatch.setattr(slices, "ARCHIVED", 0.0)
    told, out = [], tmp_path / "out"

    def killed(*_):
        told.extend(archived(out))
        raise KeyboardInterrupt

    monkeypatch.setattr(slices, "_missing", killed)
    monkeypatch.setattr(Slice, "left", property(lambda self: 100.0 if len(self.lines) < 1 else 0.0))
    with pytest.raises(KeyboardInterrupt):
        slices.run(root, "smoke", only=("02",), out=out)
    assert len(told) == 1 and set(told) == rows(root)


def test_what_failed_in_a_slice_that_ended_early_comes_last_in_the_next(root, monkeypatch):
    """A row that fails always would else be begun first in every slice."""
    begun: list[str] = []
    begin = Slice.begin
    monkeypatch.setattr(Slice, "begin", lambda self, *of: (begun.append(of[0]), begin(self, *of))[1])
    names: dict[str, str] = {}
    has = Failures.has
    monkeypatch.setattr(Failures, "has", lambda self, *of: (names.update([of]), has(self, *of))[1])
    assert slices.run(root, "smoke", only=("02",)) == slices.DONE
    assert begun[0] == "texts" and len(begun) == 3
    for row in rows(root):
        (root / row).unlink()
    monkeypatch.setenv("KEMEM_STORE", str(root.parent / "second"))
    failed = Failures(root.parent / "second" / "smoke" / "work" / "slices" / "failed")
    failed.add("texts", names["texts"], ValueError("then"))
    begun.clear()
    assert slices.run(root, "smoke", only=("02",)) == slices.DONE
    assert begun[-1] == "texts" and len(begun) == 3 and not failed.folder.exists()


def test_a_step_that_raises_is_told_and_counted(root, tmp_path, monkeypatch, capfd):
    """The other rows of the slice are in the archive, and the slice ends as one that failed."""
    steps = contents.steps

    def broken(lab, number):
        def raising():
            raise BadInput("expected something else")

        return [*steps(lab, number), raising]

    monkeypatch.setattr(contents, "steps", broken)
    assert slices.run(root, "smoke", only=("02",), out=tmp_path / "out") == slices.FAILED
    said = capfd.readouterr().err
    assert "chapter 02 BadInput failed: BadInput: expected something else" in said and "1 failed" in said
    assert set(archived(tmp_path / "out")) == rows(root) != set()


def test_rows_that_no_more_fit_are_not_waited_for(tmp_path, monkeypatch):
    """But those that another process is at are."""
    waited: list[float] = []
    monkeypatch.setattr("kemem.book.metering.time.sleep", waited.append)
    own = Slice(lab("01", Store(tmp_path)), minutes=9.0, price=None, card=card("H100"))
    own.began -= 350
    with pytest.raises(Busy):
        own.begin("pretraining", pretraining.SCALES["gpu"])
    own.wait(0.1, 2)
    assert waited == [0.1]
    with pytest.raises(Busy):
        own.begin("pretraining", pretraining.SCALES["gpu"])
    with pytest.raises(OutOfTime):
        own.wait(0.1, 1)


def test_a_model_that_is_named_twice_is_trained_once(tmp_path):
    s = pretraining.SCALES["gpu"]
    own = Slice(lab("01", Store(tmp_path)), minutes=9.0, price=None, card=card("H100"))
    assert len(own.of("unknown", (s, (s,)))) == len(own.of("unknown", (s,))) == 1


def test_a_copy_without_history_has_the_commit_it_was_told(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "kemem" / "provenance.py"))
    (tmp_path / "kemem").mkdir()
    monkeypatch.setenv("KEMEM_COMMIT", "0123456789ab")
    assert provenance.commit() == "0123456789ab"
    monkeypatch.delenv("KEMEM_COMMIT")
    assert provenance.commit() is None


def test_the_alarm_ends_a_row_that_goes_on():
    with pytest.raises(OutOfTime), slices._until(0.01):
        while True:
            pass


def test_a_row_that_does_not_fit_is_put_off(tmp_path):
    """But not one that fits into no slice: it is begun, and its training goes on in the next."""
    s = pretraining.SCALES["gpu"]
    own = Slice(lab("01", Store(tmp_path)), minutes=9.0, price=None, card=card("H100"))
    own.began -= 350  # 150 s are left of 500
    flops = 6 * parameters(s.setup) * s.setup.tokens + 12 * 10 * 512 * 512 * s.setup.tokens
    assert 150 < flops / (989e12 * 0.35) < 0.8 * 500
    with pytest.raises(Busy, match="pretraining would take"):
        own.begin("pretraining", s)
    longer = pretraining.Pretraining(s.setup.with_(steps=8000))
    own.begin("pretraining", longer)
    own.began -= 300
    with pytest.raises(OutOfTime):
        own.begin("pretraining", s)


def test_mfu_is_the_needed_share_of_what_was_possible():
    setup = pretraining.SCALES["gpu"].setup
    part = Part("training", setup, 10**9)
    flops = 6 * parameters(setup) * 10**9 + 12 * 10 * 512 * 512 * 10**9
    assert mfu([part], 2.0, card("H200")) == pytest.approx(flops / (2 * 989e12))
    forward = Part("forward", setup, 10**9)  # measured in TF32, where a card has it
    assert mfu([forward], 1.0, card("H200")) == pytest.approx(flops / 3 / 494.5e12)
    assert mfu([forward], 1.0, card("V100")) == pytest.approx(flops / 3 / 15.7e12)
    keys = Moments(8, 8192, 10**6)  # in float64
    assert mfu([keys], 2.0, card("H200")) == pytest.approx(2 * 8 * 8192**2 * 1e6 / (2 * 67e12))


def test_slices_are_called_until_nothing_is_left(monkeypatch):
    statuses, commands = [3, 3, 0], []

    class Ran:
        def __init__(self, command):
            commands.append(command)
            self.returncode = statuses.pop(0)

    monkeypatch.setattr(slices.subprocess, "run", Ran)
    assert slices.main(["--scale", "smoke", "--all", "--only", "02"]) == 0
    assert len(commands) == 3 and commands[0][-4:] == ["--scale", "smoke", "--only", "02"]


def test_make_record_goes_by_slices_at_the_gpu_scale(root, monkeypatch):
    asked = []
    monkeypatch.setattr(slices, "loop", lambda options: asked.append(options) or 0)
    monkeypatch.setattr(
        build, "execute_all", lambda wanted, folder, **more: asked.append((folder.name, more)) or []
    )
    assert build.record(root, scale="gpu", only=["02"]) == 0
    assert asked == [
        ["--scale", "gpu", "--only", "02"], ("chapters", {"environment": {"KEMEM_REPLAY": "1"}}),
    ]  # fmt: skip


def test_wrong_words_are_refused(root, capfd):
    with pytest.raises(BadInput, match="expected numbers of chapters"):
        slices.run(root, "smoke", only=("77",))
    with pytest.raises(BadInput, match="sizes at the scale paper"):
        slices.run(root, "paper", only=("15",))
    assert "chapter 15 is left out: three papers on one model" in capfd.readouterr().err


def test_a_word_cut_short_is_refused(capfd):
    """`--al` would be taken for --all, and each slice of it would begin slices of its own."""
    with pytest.raises(SystemExit) as ended:
        slices.main(["--scale", "smoke", "--al"])
    assert ended.value.code == 2 and "unrecognized arguments: --al" in capfd.readouterr().err


def test_rows_of_an_older_version_are_computed_anew_when_recording(root, monkeypatch):
    (root / "records" / "gpu").mkdir(parents=True)
    assert session.open_store(root, "gpu").keep_stale
    monkeypatch.setenv("KEMEM_RECORD", "1")
    assert not session.open_store(root, "gpu").keep_stale
