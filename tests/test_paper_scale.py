"""Part 1 at paper scale against a hub on loopback: the chapters as they are, with tiny models under the real names.

Sizes are data, so that they are made smaller here; the models' and data sets' names, branches, files and schemas are
those of the hub, and the clients are unmodified.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from conftest import tiny
from hub_server import Hub, contents
from whole_chapter import cells

from kemem import evaluation, harness
from kemem.corpora import train_tokenizer
from kemem.corpora.catalogue import CATALOGUE
from kemem.entropy.passages import GROUPS
from kemem.studies import (
    acquiring,
    arms,
    decay,
    memories,
    pretraining,
    resuscitating,
    robustness,
    setup,
    stages,
)

OLMO = "allenai/OLMo-1B-hf"
STEPS = {117850: "494B", 369000: "1547B", 554000: "2323B", 738020: "3094B"}
PROSE = "the of a model cell was found in patients with heart old city river writes book of their name"
WORDS = PROSE.split()


def prose(seed: int, words: int = 60) -> str:
    draws = random.Random(seed)
    return " ".join(draws.choice(WORDS) for _ in range(words)).capitalize() + "."


def jsonl(field: str, begin: int, count: int = 160) -> bytes:
    return "".join(
        json.dumps({"id": str(i), field: prose(i)}) + "\n" for i in range(begin, begin + count)
    ).encode()


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny OLMo at the paper's four steps, each with other weights, and a tokenizer of its own."""
    tokenizer = train_tokenizer([prose(i) for i in range(100)], 300)
    made, place = {}, tmp_path_factory.mktemp("olmo")
    for seed, (step, tokens) in enumerate(STEPS.items()):
        folder = place / f"step{step}-tokens{tokens}"
        tiny("olmo", vocab=300, seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[folder.name] = folder
    made["main"] = made[folder.name]
    return made


def released(folder: Path) -> str:
    """The authors' two files of passages, with fewer of them."""
    folder.mkdir()
    for number, name in enumerate(GROUPS.values()):
        found = [
            {
                "train_context": prose(900 + 10 * number + i),
                "paraphrases": [prose(1000 + 10 * i + j, 40) for j in range(9)],
                **{
                    f"{kind}_{side}": [text, text]
                    for kind in ("mem", "gen", "hard_gen")
                    for side, text in (("input", "the old city"), ("target", "river"))
                },
            }
            for i in range(3)
        ]
        (folder / name).write_text(json.dumps(found))
    return str(folder)


@pytest.fixture
def hub(branches: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("KEMEM_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("KEMEM_WORKERS", "1")
    matplotlib.use("Agg")
    with Hub() as served:
        served.model(OLMO, branches)
        served.dataset("elsewhere/dolma", {"main": {"a.jsonl": jsonl("text", 0)}})
        listing = f"{served.endpoint}/datasets/elsewhere/dolma/resolve/main/a.jsonl\n"
        pinned(served, "dolma", {f"urls/{CATALOGUE['dolma'].config}.txt": listing})
        pinned(served, "pubmed", {"chunk/pubmed23n0001.jsonl": jsonl("content", 1000)})
        readme = "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/c4-train.*\n---\n"
        pinned(served, "c4", {"README.md": readme, "en/c4-train.00000-of-01024.json": jsonl("text", 2000)})
        served.reach(monkeypatch, tmp_path / "home")
        yield served
    setup.read.cache_clear()  # corpora are read once a process; those of the next hub are others
    setup._packed.cache_clear()


def pinned(served: Hub, name: str, files: dict[str, Any]) -> None:
    entry = CATALOGUE[name]
    assert entry.hub and entry.revision
    served.dataset(entry.hub, {"main": {"README.md": "emptied since"}})
    served.repositories["datasets", entry.hub].commits[entry.revision] = contents(files)


def benchmarks(model: Any, tok: Any, tasks: harness.Loaded, *, batch_size: int) -> dict[str, float]:
    """Stands in for the evaluation harness, which is optional and has its own tests: one question a task."""
    asked = [f"the old {word} is" for word, _ in zip(WORDS, tasks, strict=False)]
    return {
        name: evaluation.cloze(
            model, tok, [prompt], [("found", "patients")], [0], batch_size=batch_size
        ).accuracy
        for name, prompt in zip(tasks, asked, strict=True)
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sizes of paper scale, smaller: what is read and asked stays what it is."""
    model = pretraining.SCALES["paper"]
    assert isinstance(model, pretraining.Pretrained)
    shape = model.setup.with_(corpus="hub:dolma:limit=160", length=48, layers=2, width=12, memories=20)
    tiny_model = replace(model, setup=shape, held_out=400, written=3)
    monkeypatch.setitem(pretraining.SCALES, "paper", tiny_model)
    monkeypatch.setitem(stages.SCALES, "paper", stages.Sizes(16, 48, (4, 8)))
    sweep = decay.SCALES["smoke"]
    monkeypatch.setitem(decay.SCALES, "paper", replace(sweep, base=sweep.base.with_(steps=6), points=2))
    monkeypatch.setattr(
        stages, "OLMO_TEXTS", {name: f"hub:{name.lower()}:limit=120" for name in stages.OLMO_TEXTS}
    )
    monkeypatch.setitem(
        memories.SIZES, "paper", {"length": 24, "instances": 4, "removed": 3, "ranks": (1, 4)}
    )
    monkeypatch.setattr(harness, "load", lambda names, include: harness.Loaded(dict.fromkeys(names)))
    monkeypatch.setattr(harness, "accuracies", benchmarks)
    whole = acquiring.SCALES["paper"]
    base = replace(
        whole.base, model=tiny_model, corpus="hub:pubmed:limit=160", paraphrased=2, once=2, slots=2, interval=2,
        rows=6, held_out=400, instances=6, source=released(tmp_path / "passages"), precision="float32",
    )  # fmt: skip
    few = replace(whole, base=base, stages=whole.stages[1:3], published=None)
    monkeypatch.setitem(acquiring.SCALES, "paper", few)
    monkeypatch.setitem(arms.SCALES, "paper", arms.Sizes(base, (0,), few.stages))
    monkeypatch.setitem(robustness.NEAR, "paper", "hub:c4:limit=160")
    monkeypatch.setattr(resuscitating, "LATE", resuscitating.SMOKE)  # of each kind of arm one


# ---------------------------------------------------------------------- chapters
def test_chapter_01_looks_at_the_published_model(hub: Hub, small: None, monkeypatch) -> None:
    found = cells("01", monkeypatch, scale="paper")
    assert (found["v"]["layers"], found["v"]["memories"]) == (2, 20)
    assert max(found["v"]["identity"]) < 1e-5
    assert found["row"].provenance["checkpoints"] == "given"


def test_chapter_02_looks_at_its_stages_and_trains_nothing(hub: Hub, small: None, monkeypatch) -> None:
    found = cells("02", monkeypatch, scale="paper")
    assert [s["step"] for s in found["seen"]] == list(STEPS) and found["history"] == []
    assert len({s["loss"]["dolma"] for s in found["seen"]}) == 4
    assert hub.asked("GET", "model.safetensors") == 4


def test_chapter_03_measures_its_entropy_on_three_texts(hub: Hub, small: None, monkeypatch) -> None:
    found = cells("03", monkeypatch, scale="paper")
    assert found["about"].revisions == tuple(f"step{step}" for step in STEPS)


def test_chapter_03_measures_the_larger_model_at_the_stages_of_the_papers_figure(
    hub: Hub, small: None, branches: dict[str, Path], monkeypatch
) -> None:
    name, steps = "allenai/OLMo-7B-hf", (118000, 278000, 369000, 557000)
    folders = [folder for branch, folder in branches.items() if branch != "main"]
    hub.model(name, {f"step{n}-tokens{n // 226}B": place for n, place in zip(steps, folders, strict=True)})
    found = cells("03", monkeypatch, scale="paper", model=name)
    assert found["about"].revisions == tuple(f"step{step}" for step in steps)
    measured = [s["entropy"] for s in found["row"].values["stages"]]
    assert len(set(measured)) == 4 and found["row"].settings["model"] == name


def test_chapters_04_and_05_tell_it_the_released_passages(hub: Hub, small: None, monkeypatch) -> None:
    found = cells("04", monkeypatch, scale="paper")
    assert found["v"]["steps"] == 4 and found["v"]["passages"] == 4
    found = cells("05", monkeypatch, scale="paper")
    (rows,) = found["recorded"].values()
    assert [row.settings["step"] for row in rows] == [369000, 554000]
    assert set(rows[0].values["before"]["tasks"]) == set(harness.SIX)


def test_chapters_06_and_07_change_one_thing_and_wake_memories(hub: Hub, small: None, monkeypatch) -> None:
    found = cells("06", monkeypatch, scale="paper", stage=pretraining.SCALES["paper"].stages[2])
    assert tuple(found["recorded"]) == robustness.PUBLISHED
    found = cells("07", monkeypatch, scale="paper")
    assert set(found["recorded"]) == {"last", "50 %", "75 %"}
