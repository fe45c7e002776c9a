"""The run store: identity, reuse, staleness, damage, sharing between processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemem import runs
from kemem.errors import BadInput


@dataclass(frozen=True)
class Settings:
    width: int = 3
    rate: float = 0.1
    layers: tuple[int, ...] = (1, 2)
    seed: int = 7


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_canonical_survives_json(value):
    form = runs.canonical(value)
    assert json.loads(json.dumps(form)) == form
    assert runs.canonical(form) == form


def test_identity_covers_study_version_and_settings():
    base = runs.digest("a", 1, Settings())
    assert base == runs.digest("a", 1, {"seed": 7, "layers": [1, 2], "rate": 0.1, "width": 3})
    others = {
        runs.digest("b", 1, Settings()),
        runs.digest("a", 2, Settings()),
        runs.digest("a", 1, Settings(rate=0.10000000000000002)),
    }
    assert base not in others and len(others) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_carry_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        runs.canonical({"x": value})
    with pytest.raises(TypeError, match="plain JSON"):
        runs.canonical({1, 2})


def test_a_row_is_computed_once_and_carries_its_origin(tmp_path):
    calls = []

    def compute(provenance):
        provenance["corpus"] = {"digest": "abc"}
        calls.append(1)
        return {"entropy": 1.25}

    store = runs.Store(tmp_path)
    first = store.row("study", 1, Settings(), compute)
    second = runs.Store(tmp_path).row("study", 1, Settings(), compute)
    assert calls == [1]
    assert first.values == second.values == {"entropy": 1.25}
    assert second.origin == "live" and not second.stale
    assert second.provenance["seed"] == 7 and second.provenance["corpus"] == {"digest": "abc"}
    assert second.provenance["seconds"] >= 0 and second.provenance["peak_memory_mib"] > 0
    assert set(second.provenance["versions"]) >= {"python", "torch", "transformers"}
    assert second.digest == runs.digest("study", 1, Settings())


def test_modes(tmp_path):
    records, live = tmp_path / "records", tmp_path / "live"
    recorder = runs.Store(live, records, mode="record")
    recorder.row("s", 1, Settings(), lambda p: 1)
    assert recorder.row("s", 1, Settings(), lambda p: 2).values == 1

    run = runs.Store(live, records)
    assert run.row("s", 1, Settings(), lambda p: 3).values == 3, (
        "a live arm is computed even where a record exists"
    )
    assert run.row("s", 1, Settings(), lambda p: 4, recorded=True).values == 1, "a recorded arm is read"
    with pytest.raises(runs.MissingRow, match="make record"):
        run.row("s", 1, Settings(width=9), lambda p: 5, recorded=True)

    replay = runs.Store(live, records, mode="replay")
    row = replay.row("s", 1, Settings(), lambda p: 6)
    assert (row.values, row.origin) == (1, "recorded")
    with pytest.raises(runs.MissingRow, match="not among the records"):
        replay.row("s", 1, Settings(width=9), lambda p: 7)

    alone = runs.Store(tmp_path / "empty")  # no records at all: a recorded arm is computed
    assert alone.row("s", 1, Settings(), lambda p: 8, recorded=True).values == 8


def test_an_older_version_is_stale(tmp_path):
    records, live = tmp_path / "records", tmp_path / "live"
    runs.Store(live, records, mode="record").row("s", 1, Settings(), lambda p: "old")
    with pytest.raises(runs.MissingRow, match="older version"):
        runs.Store(live, records, mode="replay").row("s", 2, Settings(), lambda p: "new")
    kept = runs.Store(live, records, mode="replay", keep_stale=True).row("s", 2, Settings(), lambda p: "new")
    assert kept.values == "old" and kept.stale and "stale" in repr(kept)
    fresh = runs.Store(live, records, mode="record").row("s", 2, Settings(), lambda p: "new")
    assert fresh.values == "new" and not fresh.stale


@pytest.mark.parametrize("harm", ["altered", "cut", "empty", "binary", "no number", "too large", "deep"])
def test_a_damaged_row_is_said_and_recomputed(tmp_path, harm):
    store = runs.Store(tmp_path)
    store.row("s", 1, Settings(), lambda p: {"entropy": 1.0})
    (path,) = (tmp_path / "s").glob("*.json")
    text = path.read_bytes()
    path.write_bytes(
        {
            "altered": text.replace(b"1.0", b"2.0"),
            "cut": text[: len(text) // 2],
            "empty": b"",
            "binary": b"\xff\xfe",
            "no number": text.replace(b"1.0", b"NaN"),
            "too large": text.replace(b"1.0", b"1e999"),
            "deep": b"[" * 100_000,
        }[harm]
    )
    with pytest.warns(UserWarning, match="damaged or was altered"):
        row = store.row("s", 1, Settings(), lambda p: {"entropy": 3.0})
    assert row.values == {"entropy": 3.0}
    assert store.find("s", 1, Settings()).values == {"entropy": 3.0}


def test_a_failing_study_leaves_nothing_behind(tmp_path):
    store = runs.Store(tmp_path)

    def compute(provenance):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.row("s", 1, Settings(), compute)
    assert store.find("s", 1, Settings()) is None
    assert store.row("s", 1, Settings(), lambda p: 1).values == 1


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = runs.Store(tmp_path)
    store.row("s", 1, Settings(seed=1), lambda p: 1)
    monkeypatch.setattr(runs.os, "replace", full)
    with pytest.raises(BadInput, match="KEMEM_STORE"):
        store.row("s", 1, Settings(), lambda p: 1)
    monkeypatch.undo()
    assert not list((tmp_path / "s").glob(".*.tmp"))
    assert store.find("s", 1, Settings(seed=1)).values == 1


def test_two_processes_compute_a_row_once(tmp_path):
    script = f"""
import os
from pathlib import Path
from kemem.runs import Store
def compute(provenance):
    with open({str(tmp_path / "calls")!r}, "a") as f: f.write("x")
    return os.getpid()
rows = [Store({str(tmp_path / "store")!r}).row("s", 1, {{"n": n}}, compute).values for n in range(20)]
print(rows)
"""
    root = Path(__file__).resolve().parents[1]
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    outputs = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert (tmp_path / "calls").read_text() == "x" * 20


def test_differences_names_what_differs(tmp_path):
    store = runs.Store(tmp_path)

    def with_corpus(name):
        def compute(provenance):
            provenance["corpus"] = name
            return 1

        return compute

    a, b, c = (store.row("s", 1, Settings(seed=i), with_corpus(x)) for i, x in enumerate("aab"))
    assert runs.differences({"a": a, "b": b}) == []
    (line,) = runs.differences({"a": a, "b": b, "c": c})
    assert line.startswith("corpus:") and '"b" in c' in line


def test_wrong_mode_is_refused(tmp_path):
    with pytest.raises(BadInput, match="run, replay, record"):
        runs.Store(tmp_path, mode="live")
    with pytest.raises(BadInput, match="needs a folder of records"):
        runs.Store(tmp_path, mode="replay")
