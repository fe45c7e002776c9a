"""Part 3 with a published model and records: GPT-J by its name, CounterFact and Wikipedia of a hub on loopback, zsRE
and known facts of a folder; all tiny, in the real schemas and layouts. The chapters themselves run, sizes shrunk."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import tiny
from hub_server import Hub, contents
from paper_chapter import TINY, shrink
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kemem import editing
from kemem.corpora.catalogue import CATALOGUE
from kemem.errors import BadInput
from kemem.runs import Store, digest
from kemem.studies import (
    association,
    critique,
    factual,
    field,
    implications,
    knowing,
    many,
    methods,
    one_target,
    parts,
    relations,
    released,
    sequence,
    setup,
    single_edits,
    thousands,
    tracing,
)  # fmt: skip
from kemem.studies.lab import SCALES, Lab
from kemem.studies.questions import draw
from kemem.studies.sources import Records, Told
from kemem.world import World

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore")
WORLD = World(people=40, seed=3)


def parquet(records: list[dict]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, bytes], bytes, Path]:
    """A folder of the model, files of CounterFact, an article file, and a folder in place of KEMEM_DATA."""
    place = tmp_path_factory.mktemp("paper")
    requests = WORLD.counterfact(150)
    articles = WORLD.documents(300)
    core = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "<unk>": 1, "<pad>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [*articles, *WORLD.vocabulary()]
    names = dict.fromkeys(w for t in texts for w, _ in core.pre_tokenizer.pre_tokenize_str(t))
    vocabulary = {"<|endoftext|>": 0, "<unk>": 1, "<pad>": 2} | {w: i for i, w in enumerate(names, 3)}
    core.model = models.WordLevel(vocabulary, unk_token="<unk>")
    tok = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    s = TINY.setup
    model = tiny(
        "gptj",
        width=s.width,
        memories=s.memories,
        layers=s.layers,
        heads=s.heads,
        vocab=len(tok),
        context=s.length,
    )
    model.save_pretrained(place / "model")
    tok.save_pretrained(place / "model")
    half = len(requests) // 2
    files = {
        "data/train-00000-of-00001.parquet": parquet(requests[:half]),
        "data/test-00000-of-00001.parquet": parquet(requests[half:]),
    }
    data = place / "data"
    known = []
    for i, record in enumerate(WORLD.known_facts(200)):  # the model knows what it says anyway
        ids = torch.tensor([tok(record["prompt"])["input_ids"]])
        said = tok.decode(model(input_ids=ids).logits[0, -1].argmax())
        known.append({**record, "attribute": said, "prediction": f" {said}", "relation_id": f"P{i % 4}"})
    for name, records in (
        ("counterfact/known_1000.json", known),
        ("zsre/zsre_mend_eval.json", WORLD.zsre(30)),
    ):
        (data / name).parent.mkdir(parents=True)
        (data / name).write_text(json.dumps(records), encoding="utf-8")
    wiki = parquet(
        [{"id": str(i), "url": "", "title": f"{i}", "text": text} for i, text in enumerate(articles)]
    )
    return place / "model", files, wiki, data


@pytest.fixture
def hub(made, monkeypatch, tmp_path):
    """The hub, the folder of files, and the scale's sizes made small."""
    folder, files, wiki, data = made
    monkeypatch.setenv("KEMEM_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("KEMEM_DATA", str(data))
    shrink(monkeypatch.setitem)
    setup.read.cache_clear()
    setup._packed.cache_clear()
    with Hub() as served:
        served.reach(monkeypatch, tmp_path / "home")
        served.model(TINY.name, {"main": folder})
        served.dataset("azhx/counterfact", {"main": files})
        entry = CATALOGUE["wikipedia"]
        whole = {
            "README.md": f"---\nconfigs:\n- config_name: {entry.config}\n  data_files: {entry.config}/train-*\n---\n",
            f"{entry.config}/train-00000-of-00001.parquet": wiki,
        }
        served.dataset(entry.hub, {"main": whole})
        served.repositories["datasets", entry.hub].commits[entry.revision] = contents(whole)
        yield served


# ---------------------------------------------------------------------- settings at every scale
MADE = {"MEMIT": field.Setting(1.0), "ROME": field.Setting(2.0), "FT-W": field.Setting(0.1), "MEND": field.Setting(0.1),
        "PMET": field.Setting(1.0), "FT": field.Setting(0.1)}  # fmt: skip
SETTINGS = {
    "knowing": knowing.settings, "tracing": tracing.settings, "single_edits": single_edits.settings,
    "one_target": one_target.settings, "association": association.settings, "thousands": thousands.settings,
    "relations": relations.settings, "implications": implications.settings, "field": field.sizes,
    "critique": lambda scale: critique.settings(scale, MADE), "sequence": lambda scale: sequence.grid(scale, MADE),
    "released": lambda scale: released.released_settings(field.sizes(scale), MADE),
    "cost": lambda scale: released.cost_settings(field.sizes(scale), MADE),
    "parts": lambda scale: parts.settings(field.sizes(scale), MADE),
}  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", SETTINGS)
def test_every_study_of_part_3_has_settings_at_every_scale(study, scale):
    found = SETTINGS[study](scale)
    assert digest(study, 1, next(iter(found.values())) if isinstance(found, dict) else found)
    assert scale in thousands.SEEDS and scale in sequence.SIZES


@pytest.mark.parametrize("scale", SCALES)
def test_layers_and_counts_suit_the_model(scale):
    s, z = thousands.settings(scale), field.sizes(scale)
    layers, memories = s.model.setup.layers, s.model.setup.memories
    for own in (s.layers, z.layers, z.mend_layers, *factual.where(s.model).values()):
        assert own and set(own) <= set(range(layers))
    assert s.counts[-1] <= 1.3 * memories and z.together <= z.one_by_one and z.counts[-1] <= 10_000
    assert max(thousands.spans(s).values(), key=max)[-1] < layers
    assert all(mark % own.batch == 0 for own in sequence.grid(scale, MADE).values() for mark in own.marks)


def test_the_published_settings_are_those_of_the_sheet():
    s = thousands.settings("paper")
    assert (s.layers, s.tried, s.clamp, s.clamps) == ((3, 4, 5, 6, 7, 8), (15_000.0,), 0.75, (0.75,))
    assert s.load == 10_000 and s.model.setup.memories == 16_384
    z = field.sizes("paper")
    trials = field.tuning(z)
    assert {name for name, _ in trials} == set(methods.METHODS) and len(trials) == len(methods.METHODS)
    assert trials["MEMIT", field.Setting(15_000.0, 0.75)].layers == s.layers
    own = single_edits.trials(single_edits.settings("paper"))
    assert (
        own["ROME"][4.0].layer == 5
        and own["FT"][5e-4].layers == (21,)
        and own["MEMIT"][15_000.0].layers == s.layers
    )
    other = factual.settings("paper", name="openai-community/gpt2-xl")
    assert thousands.settings("paper", model=other).tried == (20_000.0,) and factual.critical(other) == (
        13,
        14,
        15,
        16,
        17,
    )
    for scale, name in (("paper", "gpt2"), ("laptop", factual.GPT_J.name)):
        with pytest.raises(BadInput, match="expected one of EleutherAI/gpt-j-6b"):
            factual.settings(scale, name=name)


# ---------------------------------------------------------------------- records in place of a world
def test_records_are_read_once_in_parts_that_share_nothing(hub):
    source = factual.source(TINY)
    assert isinstance(source, Records) and isinstance(factual.source(factual.settings("smoke")), Told)
    every = editing.requests(WORLD.counterfact(150))
    kept = [r for r in editing.without_conflicts(every, keep="first") if r.neighbours and r.paraphrases]
    assert list(source.requests(None, 0)) == kept
    tuning, reported = (source.requests(None, 0, part=part) for part in ("tuning", "reported"))
    assert {r.case_id for r in tuning} | {r.case_id for r in reported} == {r.case_id for r in kept}
    assert not {r.case_id for r in tuning} & {r.case_id for r in reported} and len(tuning) < len(reported)
    again = source.requests(5, 1, part="reported")
    assert again != reported[:5] and again == source.requests(9, 1, part="reported")[:5]
    relation = reported[0].relation
    assert {r.relation for r in source.requests(None, 0, relation=relation)} == {relation}
    assert len(source.questions(0)) == 30 and source.questions(2) != source.questions(0)
    assert len(source.known(0)) == 200 and len(list(source.told())) == 200 and not source.references(reported)
    assert list(source.texts(4)) == WORLD.documents(4)
    for wanted in ({"count": 4000}, {"count": 1, "relation": "P0"}):
        with pytest.raises(BadInput, match="ask for fewer") as caught:
            source.requests(wanted["count"], 0, relation=wanted.get("relation"))
        assert "\n" not in str(caught.value)


def test_requests_of_records_are_edited_whether_they_are_known_or_not(hub, tmp_path):
    lab = Lab("paper", Store(tmp_path / "store"), ROOT)
    benches = many.Benches(lab)
    s = thousands.one(thousands.settings("paper"), (15_000.0, 0.75), 3, written=0)
    at = benches.at(s)
    assert at.where["ROME"] == (5,) and sorted(at.moments.of) == list(range(10))  # small enough to have all
    said = editing.generated_success(at.model, at.tok, [replace(r, new=r.true) for r in benches.requests(s)])
    assert not any(said) and len(said) == 3
    made = methods.made(lab, at, "ROME", 4.0, s.layers)
    assert made.layer == 5 and methods.made(lab, at, "MEMIT", 1.0, s.layers).layers == s.layers
    with pytest.raises(BadInput, match="got records"):
        _ = at.world
    with pytest.raises(BadInput, match="expected a model of a world"):
        factual.world(TINY)


def test_moments_of_a_large_model_are_measured_where_they_are_asked_for(hub, tmp_path, monkeypatch):
    benches = many.Benches(Lab("paper", Store(tmp_path / "store"), ROOT))
    s = thousands.one(thousands.settings("paper"), (15_000.0, 0.75), 3, written=0)
    whole = benches.at(s).moments
    monkeypatch.setattr(many, "MOMENTS", 0)
    few = many.Benches(benches.lab)
    assert sorted(few.at(s).moments.of) == list(s.layers)
    assert sorted(few.at(replace(s, layers=(0, 4))).moments.of) == [0, *s.layers]
    for layer in (0, *s.layers):
        assert torch.allclose(few.at(s).moments[layer], whole[layer], rtol=1e-12, atol=1e-14)


def test_what_records_are_asked_by_hand(hub, tmp_path):
    lab = Lab("paper", Store(tmp_path / "store"), ROOT)
    row = knowing.run(lab, knowing.settings("paper")).values
    told = row["groups"]["told"]
    assert set(row["groups"]) == {"told"} and told["facts"] == 20 and told["questions"] == 60
    model, tok = factual.model(lab, TINY)
    asked = sorted(factual.source(TINY).requests(None, 0), key=lambda r: draw(r.subject, r.relation))[:20]
    right = []
    for r in asked:
        for prompt in (r.text, *r.paraphrases[:2]):
            ids = tok(prompt)["input_ids"]
            answer = tok(f" {r.true}")["input_ids"]
            for token in answer:
                if int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) != token:
                    break
                ids.append(token)
            else:
                right.append(r)
    assert told["right"] == pytest.approx(len(right) / 60)


# ---------------------------------------------------------------------- the chapters
@pytest.mark.parametrize(
    "number", [*("11", "12"), *(pytest.param(n, marks=pytest.mark.slow) for n in ("13", "14"))]
)
def test_chapters_run_with_a_published_model_and_records(number, hub, made, tmp_path):
    more = {
        "KEMEM_DATA": str(made[3]),
        "KEMEM_STORE": str(tmp_path / "store"),
        "KEMEM_CACHE": str(tmp_path / "own"),
    }
    environment = hub.environment(tmp_path / "other", MPLBACKEND="Agg", PYTHONPATH=str(ROOT), **more)
    for name in ("KEMEM_REPLAY", "KEMEM_RECORD", "KEMEM_TRAIN"):
        environment.pop(name, None)
    command = [sys.executable, str(ROOT / "tests" / "paper_chapter.py"), number]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (factual.NO_TABLE in done.stdout) == (number in ("11", "13"))
    assert hub.asked("GET", "model.safetensors") == 1
