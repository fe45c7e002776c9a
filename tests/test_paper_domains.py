"""Part 2 at paper scale against a hub on loopback: chapters and command as they are, with tiny models."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import tiny
from hub_server import Hub, contents
from whole_chapter import cells

from kemem.continual import domains
from kemem.continual.end_tasks import EndTask, Example
from kemem.continual.finetuning import FineTuning
from kemem.continual.published_tasks import PUBLISHED
from kemem.corpora import train_tokenizer
from kemem.corpora.catalogue import CATALOGUE
from kemem.errors import BadInput
from kemem.runs import Store
from kemem.studies import (
    budget,
    checkpoints,
    courses,
    domain_sizes,
    growing,
    interference,
    looking,
    masking,
    moving,
    pairing,
    setup,
    units,
)
from kemem.studies.lab import Lab
from kemem.studies.pretraining import Pretrained

ROBERTA, OLMO = "FacebookAI/roberta-base", "allenai/OLMo-1B-hf"
STEPS = {117850: "494B", 369000: "1547B", 554000: "2323B", 738020: "3094B"}
PROSE = "the of a model cell was found in patients heart food phone film camera city river good bad works"
WORDS = PROSE.split()
SHORT = ("yelp", "acl", "ml-arxiv", "amazon", "pubmed", "imdb")


def prose(seed: int, words: int = 50) -> str:
    draws = random.Random(seed)
    return " ".join(draws.choice(WORDS) for _ in range(words)).capitalize() + "."


def texts(begin: int, count: int = 120) -> list[str]:
    return [prose(i) for i in range(begin, begin + count)]


def parquet(records: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    return file.getvalue()


def readme(config: str, **splits: str) -> str:
    files = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits.items())
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"


def data(name: str, begin: int) -> dict[str, Any]:
    """The files of a data set as its owner lays them out."""
    entry = CATALOGUE[name]
    records = [{entry.field: text} for text in texts(begin)]
    if name == "pubmed":
        return {"chunk/pubmed23n0001.jsonl": "".join(json.dumps(r) + "\n" for r in records).encode()}
    if name == "imdb":
        paths = {s: f"plain_text/{s}-00000-of-00001.parquet" for s in ("train", "unsupervised")}
        halves = {paths["train"]: parquet(records[:60]), paths["unsupervised"]: parquet(records[60:])}
        return {"README.md": readme("plain_text", **paths), **halves}
    if entry.config:
        path = f"{entry.config}/train-00000-of-00001.parquet"
        return {"README.md": readme(entry.config, train=path), path: parquet(records)}
    return {"data/train-00000-of-00001.parquet": parquet(records)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """A tiny RoBERTa, with dropout, and a tiny OLMo at the paper's four steps, each with a tokenizer."""
    place = tmp_path_factory.mktemp("made")
    tokenizer = train_tokenizer([prose(i) for i in range(100)], 300)
    roberta = tiny("roberta", vocab=len(tokenizer), pad_token_id=tokenizer.pad_token_id or 1)
    roberta.config.hidden_dropout_prob = roberta.config.attention_probs_dropout_prob = 0.1
    found: dict[str, dict[str, Path]] = {ROBERTA: {"main": place / "roberta"}, OLMO: {}}
    roberta.save_pretrained(place / "roberta")
    tokenizer.save_pretrained(place / "roberta")
    for seed, (step, tokens) in enumerate(STEPS.items()):
        folder = place / f"step{step}-tokens{tokens}"
        tiny("olmo", vocab=len(tokenizer), seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[OLMO][folder.name] = folder
    found[OLMO]["main"] = folder
    return found


@pytest.fixture
def hub(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("KEMEM_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("KEMEM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("KEMEM_WORKERS", "1")
    monkeypatch.delenv("KEMEM_DATA", raising=False)
    matplotlib.use("Agg")
    with Hub() as served:
        for name, branches in made.items():
            served.model(name, branches)
        for number, name in enumerate(SHORT):
            pinned(served, name, data(name, 1000 * (number + 1)))
        path = "20231101.en/train-00000-of-00001.parquet"
        text = parquet([{"text": text} for text in texts(9000)])
        pinned(served, "wikipedia", {"README.md": readme("20231101.en", train=path), path: text})
        served.dataset(
            "elsewhere/dolma",
            {"main": {"a.jsonl": "".join(json.dumps({"text": t}) + "\n" for t in texts(8000))}},
        )
        listing = f"{served.endpoint}/datasets/elsewhere/dolma/resolve/main/a.jsonl\n"
        pinned(served, "dolma", {f"urls/{CATALOGUE['dolma'].config}.txt": listing})
        served.reach(monkeypatch, tmp_path / "home")
        yield served
    for cached in (setup.read, setup._packed, courses.source):
        cached.cache_clear()
    courses._ROWS.clear()


def pinned(served: Hub, name: str, files: dict[str, Any]) -> None:
    entry = CATALOGUE[name]
    assert entry.hub
    served.dataset(entry.hub, {"main": {"README.md": "emptied since"} if entry.revision else files})
    if entry.revision:
        served.repositories["datasets", entry.hub].commits[entry.revision] = contents(files)


def smaller(masked: bool, names: tuple[str, ...], domains: int = 2) -> budget.Budget:
    """The comparison at paper scale with other numbers: what is read, learned and asked stays what it is."""
    z = domain_sizes._paper(masked, "cpu")
    s = z.base
    shape = s.model.setup.with_(
        corpus=re.sub(r"limit=\d+", "limit=120", s.model.setup.corpus), layers=2, width=12, memories=20, heads=3,
        vocabulary=300, length=32,
    )  # fmt: skip
    specs = tuple(re.sub(r"limit=\w+", "limit=120", spec) for spec in s.domains[:domains])
    base = replace(
        s, model=replace(s.model, setup=shape), domains=specs, steps=2, rows=4, accumulation=2, length=32,
        test_tokens=128, examples=(20, 20), asked_length=24, precision="float32", learning_rate=1e-2,
    )  # fmt: skip
    parts = ("without-contrast",) if masked else ()
    return replace(
        z, base=base, measured=4, orders=(tuple(range(domains)),), seeds=(0,), names=names, parts=parts,
        defects=("gradient",) if masked else (),
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {False: ("ncl", "one", "pool", "das"), True: ("ncl", "one", "pool", "hat", "das")}
    monkeypatch.setitem(domain_sizes._SIZES, "paper", lambda masked, device: smaller(masked, names[masked]))
    monkeypatch.setitem(
        interference.SIZES, "paper", {"seconds": (1,), "at": (1, 2), "shares": (0.0, 0.5, 1.0), "samples": 6}
    )
    for kind in (units.Measured, units.Shared, masking.Coursed, moving.Moved, pairing.Contrasted):
        monkeypatch.setitem(kind.sized, "paper", kind.sized["smoke"])
    monkeypatch.setitem(looking.SEEDS, "paper", (0,))
    growth = {
        **growing._SIZES["smoke"],
        "grown": {"depth": {"blocks": 1}, "memories": {"memories": 4}, "width": {"width": 4, "heads": 1}},
    }
    monkeypatch.setitem(growing._SIZES, "paper", growth)


# ---------------------------------------------------------------------- chapters
def test_chapter_08_forgets_with_roberta_and_starts_from_stages_of_olmo(
    hub, small, monkeypatch, capsys
) -> None:
    found = cells("08", monkeypatch, scale="paper", device="cpu")
    said = capsys.readouterr().out
    assert f"{ROBERTA} was published at its end alone; the stages are those of {OLMO}." in said
    assert "no end tasks: their files ($KEMEM_DATA) are not at hand" in said
    assert found["names"] == ["yelp", "acl"] and found["row"].provenance["checkpoints"] == "given"
    begun = [row for (_, _, seed), row in found["begun"].items() if seed == 0]
    assert len(begun) == 4 and len({tuple(row.values["before"]) for row in begun}) == 4
    read = [one.path for one in hub.requests if "OLMo" in one.path and "safetensors" in one.path]
    assert len({path.split("/resolve/")[1].split("/")[0] for path in read}) == 4
    assert found["v"]["tasks"] == {} and found["rows"]["ncl", 0, 0].values["task"] == [[None] * 2] * 2


def test_chapter_09_takes_das_apart_on_both(hub, small, monkeypatch) -> None:
    found = cells("09", monkeypatch, scale="paper", device="cpu")
    assert found["course"]["masked"].values["names"] == ["yelp", "acl"]
    assert found["pairs"]["masked"].values["drops"] and not found["pairs"]["causal"].values["drops"]
    assert set(found["broken"]["masked"][0]) == {"gradient"} and found["broken"]["causal"][0] == {}


def test_chapter_10_compares_all_on_both(hub, small, monkeypatch) -> None:
    found = cells("10", monkeypatch, scale="paper", device="cpu")
    assert {name for name, _, _ in found["rows"]} == {"ncl", "one", "pool", "das"}
    assert {name for name, _, _ in found["filled"]} == {"ncl", "one", "pool", "hat", "das"}
    assert found["published"] == {} and len(found["grown"]) == 9


# ---------------------------------------------------------------------- what a row is made of
def test_a_model_is_the_hubs_and_so_is_its_tokenizer(hub, tmp_path) -> None:
    lab = Lab("paper", Store(tmp_path / "own"), tmp_path, device="cpu")
    model, tok, found = checkpoints.load(lab, smaller(True, ("ncl",)).base.model, 500_000)
    assert (found.origin, model.config.model_type, tok.name_or_path) == ("given", "roberta", ROBERTA)
    causal = smaller(False, ("ncl",)).base.model
    weights = [checkpoints.load(lab, causal, step)[0].lm_head.weight for step in causal.steps]
    assert causal.steps == tuple(STEPS) and len({float(w.detach().sum()) for w in weights}) == 4
    with pytest.raises(BadInput, match="is taken at the steps"):
        checkpoints.load(lab, causal, 1000)
    assert isinstance(domain_sizes.ROBERTA, Pretrained) and torch.is_tensor(weights[0])


def test_domains_of_the_hub_have_the_published_tasks_of_their_field(hub, monkeypatch) -> None:
    spec = "hub:pubmed:limit=120"
    bare = domains.hub(spec)
    assert (bare.name, bare.task) == ("pubmed", None) and len(bare.corpus) == 120
    assert domains.hub("hub:imdb:limit=120").task is None
    assert set(domains.ENDS.values()) == set(PUBLISHED) and set(domains.ENDS) < set(CATALOGUE)
    monkeypatch.setenv("KEMEM_DATA", "/nowhere")
    asked: list[str] = []
    monkeypatch.setattr(domains, "published", lambda name: asked.append(name))
    for name in SHORT:
        domains.hub(f"hub:{name}:limit=4")
    assert asked == ["restaurants", "acl_arc", "scierc", "chemprot"]
    assert courses.source.__wrapped__(spec, "validation").task is None
    assert courses.source.__wrapped__(spec, "test").name == "pubmed"


def test_end_tasks_are_fine_tuned_for_as_many_epochs_as_in_the_released_code() -> None:
    s = domain_sizes.sizes("paper", masked=True).base
    for name, task in PUBLISHED.items():
        how = s.ends(EndTask(name, ("a", "b"), *((Example("x", "a"), Example("y", "b")),) * 2))
        assert isinstance(how, FineTuning) and (how.epochs, how.length) == (task.epochs, 164)
        assert (how.learning_rate, how.batch_size, how.weight_decay) == (3e-5, 16, 0.01)
    recipe = s.recipe()
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate, recipe.epsilon) == (2580, 248, 1e-4, 1e-6)
    assert (recipe.warmup_steps, recipe.schedule, recipe.weight_decay, recipe.clip) == (
        258,
        "linear",
        0.0,
        0.0,
    )
    assert recipe.accumulation == 4 and recipe.steps * recipe.batch_size // 1000 == 639  # 640,000 chunks


# ---------------------------------------------------------------------- the command
def test_kemem_adapt_reads_model_and_domains_of_the_hub(hub, tmp_path) -> None:
    command = [
        sys.executable, "-c", "import sys; from kemem.cli import main; sys.exit(main())", "adapt", ROBERTA, "--domains",
        "hub:yelp:limit=120,hub:ml-arxiv:limit=120", "--method", "das", "--steps", "2", "--batch-size", "4",
        "--json", str(tmp_path / "told.json"), "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    environment = hub.environment(tmp_path / "own", KEMEM_CACHE=str(tmp_path / "cached"))
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["method"] == "das" and len(told["loss"]) == 2 and all(len(row) == 2 for row in told["loss"])
    assert all(x is not None for row in told["loss"] for x in row) and told["task"] is None
    assert {
        "forgetting",
        "average",
        "general_loss",
        "seconds",
        "parameters_added",
        "per_seed",
        "settings",
    } <= set(told)
