"""The contents of chapters against the chapters: what is computed from the one is just what the other reads."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kemem.book.parameters import check, declared
from kemem.book.places import chapters, checkout
from kemem.errors import BadInput
from kemem.runs import MissingRow, Row, Store
from kemem.studies import contents, domain_sizes
from kemem.studies.asking import Asking, Claiming, Failures, Pending, Unfinished
from kemem.studies.contents.cells import functions
from kemem.studies.lab import Lab
from kemem.studies.sweeping import work

ROOT = checkout()
SOURCES = {path.stem.split("_")[0]: path for path in chapters(ROOT)}
QUICK = ("01", "02", "04", "05")


def lab(number: str, store: Store, **given: object) -> Lab:
    p = check(declared(SOURCES[number]), {"scale": "smoke", **given})
    return Lab(p["scale"], store, ROOT, device="cpu", parameters=p, dtype=p.get("dtype"))


@pytest.mark.parametrize(
    "numbers",
    [QUICK, *(pytest.param((n,), marks=pytest.mark.slow) for n in contents.CHAPTERS if n not in QUICK)],
    ids=" ".join,
)
def test_chapters_read_just_what_their_contents_compute(numbers, tmp_path):
    """None misses a row, and no row is there that none of them reads."""
    store = Claiming(Store(tmp_path), Failures(tmp_path / "work" / "failed"))
    work([(lab(number, store), number) for number in numbers], store)
    assert list(store.failures) == []
    computed = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*-v*.json"))
    assert len(computed) == len(store.claims.computed) >= len(numbers)
    program = Path(__file__).with_name("replayed_chapter.py")
    ran = subprocess.run([sys.executable, program, tmp_path, *numbers], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == computed


def test_batches_go_on_as_rows_are_there(tmp_path):
    """Chapter 08 asks for its trials; when they are there, for what hangs on the settings they choose."""
    store = Claiming(Store(tmp_path), Failures(tmp_path / "work" / "failed"))
    own = lab("08", Store(tmp_path))
    given = contents.batches(own, "08")
    first = next(given)
    assert {row.settings.part for row in first} == {"validation"} and len(first) == 6
    assert list(tmp_path.glob("courses/*")) == [] and not store.claims.computed
    assert next(given, None) is None  # nobody computed them, so nothing further can be known


def test_stand_ins_let_choices_be_foreseen(tmp_path):
    own = lab("14", Store(tmp_path))
    plain = contents.asked(own, "14", Asking(own.store))
    zero = {"after": {"S": 0.0, "NM": 0.0}}
    store = Asking(own.store, {"many_edits": lambda settings: zero})
    all_rows = contents.asked(own, "14", store)
    assert len(plain) == 20 and len(all_rows) > 40 and store.assumed == {"many_edits"}
    assert {row.study for row in all_rows} > {"many_edits", "sequence", "critique"}


def test_the_values_of_a_pending_row_cannot_be_used():
    row = Row("s", 1, {}, Pending("row"), {}, "live")
    for use in (lambda v: v["a"], len, bool, list, float, lambda v: v.a, lambda v: 1 in v, lambda v: v == 1):
        with pytest.raises(Unfinished, match="row"):
            use(row.values)


def test_a_row_that_fails_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    """In chapter 02 one study fails; all others are there. Started again, the failed one alone is computed."""

    def broken(*_, **__):
        raise BadInput("expected a fact; got none; tell one.")

    told: list[tuple[str, str]] = []
    with monkeypatch.context() as patch:
        patch.setattr("kemem.studies.checkpoints.load", broken)
        store = Claiming(
            Store(tmp_path),
            Failures(tmp_path / "failed"),
            failed=lambda study, name, error: told.append((study, str(error))),
        )
        own = lab("02", store)
        work([(own, "02")], store)
    assert [row.study for row in store.claims.computed] == ["texts", "pretraining"]
    assert told == [("entropy", "expected a fact; got none; tell one.")]
    (kept,) = Failures(tmp_path / "failed")
    assert (kept["study"], kept["kind"]) == ("entropy", "BadInput")
    again = Claiming(Store(tmp_path), Failures(tmp_path / "other"))
    work([(own, "02")], again)
    assert [row.study for row in again.claims.computed] == ["entropy"]


def test_functions_of_a_chapter_have_its_text():
    memit, read = functions(SOURCES["13"], "memit", "read")
    text = SOURCES["13"].read_text(encoding="utf-8")
    assert inspect.getsource(memit) in text and inspect.getsource(read).startswith("def read(memories")
    assert memit.__globals__["torch"].linalg.solve
    with pytest.raises(BadInput, match="to define nothing_such"):
        functions(SOURCES["13"], "nothing_such")


def test_scales_without_sizes_are_refused_in_the_words_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(domain_sizes, "SCALES", ("smoke", "laptop"))
    p = check(declared(SOURCES["08"]), {"scale": "paper"})
    with pytest.raises(BadInput, match="got 'paper'"):
        contents.steps(Lab("paper", Store(tmp_path), ROOT, parameters=p), "08")


def test_a_reader_of_a_store_in_a_sweep_computes_nothing(tmp_path):
    store = Claiming(Store(tmp_path), Failures(tmp_path / "failed"))
    with pytest.raises(MissingRow):
        store.reader().row("s", 1, {"x": 1}, lambda provenance: 1)
    assert replace(lab("01", store), store=store.reader()).store.pooled is False
