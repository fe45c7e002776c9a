"""Named domains: their text is what the corpora give, their end tasks what they say, and nothing tested is trained."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter

import pytest
import torch

from kemem.continual.domains import (
    PHRASINGS,
    REAL,
    Source,
    countries,
    docstrings_by_module,
    held,
    named,
    overlap,
    package,
    real,
    region,
)
from kemem.continual.end_tasks import Example
from kemem.continual.sequence import checked
from kemem.corpora import Corpus, corpus, docstrings, pack, train_tokenizer
from kemem.errors import BadInput
from kemem.training import Recipe
from kemem.world import World

FILES = pytest.mark.skipif(
    not os.environ.get("KEMEM_DATA"),
    reason="needs the published files: set KEMEM_DATA to the folder with them",
)
WORLD = World(people=60, seed=1)


# ---------------------------------------------------------------------- packages
def source_of(*texts: str) -> str:
    return "\n".join(f'def f{i}():\n    """{text}"""' for i, text in enumerate(texts))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A package of a few files: a, a.b, c (a file), tests; one docstring stands in two modules."""
    texts = {
        name: [f"Of {name} number {i}. " + "word " * 50 for i in range(count)]
        for name, count in {"a/one": 90, "a/b/two": 150, "c": 110}.items()
    }
    texts["c"] += texts["a/one"][:1]
    texts["a/tests/three"] = ["Not to be seen. " + "word " * 50]
    texts["d/rare"] = ["Rare. " + "word " * 50]
    for name, own in texts.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source_of(*own))
    monkeypatch.setattr(docstrings, "folder", lambda name: tmp_path)
    monkeypatch.setattr(docstrings, "versions", lambda names: dict.fromkeys(names, "1"))
    return texts


def test_modules_are_folders_and_files_below_the_package(small):
    found = dict(docstrings_by_module("numpy"))
    assert list(found) == list(docstrings.texts(["numpy"]))
    assert Counter(found.values()) == {"a": 240, "c": 110, "d": 1}
    assert found[small["a/one"][0].strip()] == "a"  # and not c, where it stands again
    deeper = Counter(dict(docstrings_by_module("numpy", 2)).values())
    assert deeper == {"a.one": 90, "a.b": 150, "c": 110, "d.rare": 1}


def test_the_task_of_a_package(small):
    source = package("numpy", parts=("validation", "test"))
    modules = dict(docstrings_by_module("numpy"))
    task = source.task
    assert (source.name, source.spec) == ("numpy", "docstrings:numpy")
    assert task.classes == ("a", "c")  # d has one text, so it cannot be both learned and tested
    assert [x.text for x in task.train] == [t for t in source.corpus.part("train") if modules[t] != "d"]
    held_back = source.corpus.part("validation") + source.corpus.part("test")
    assert [x.text for x in task.test] == [t for t in held_back if modules[t] != "d"]
    assert all(x.label == modules[x.text] for x in (*task.train, *task.test))
    assert package("numpy", depth=2, classes=2, parts=("validation", "test")).task.classes == ("a.b", "c")
    with pytest.raises(BadInput, match="two classes or more"):
        package("numpy", classes=1)


def test_an_installed_package_is_the_corpus_of_its_name():
    source = package("matplotlib")
    assert source.corpus.digest == corpus("docstrings:matplotlib").digest
    assert source.corpus.versions == corpus("docstrings:matplotlib,limit=1").versions
    assert not {x.text for x in source.task.test} & set(source.corpus.part("train"))
    counts = list(source.task.counts("train").values())
    assert len(counts) == 5 and counts == sorted(counts, reverse=True)


# ---------------------------------------------------------------------- a world
def test_countries_by_what_is_told_of_them():
    names = countries(WORLD, 3)
    told = [sum(WORLD.place(f.subject)[-1:] == (name,) for f in WORLD.facts()) for name in names]
    assert len(names) == 3 and told == sorted(told, reverse=True)
    assert all(WORLD.entity(name).type == "country" for name in names)


@pytest.mark.parametrize("kind", ["country", "region"])
def test_the_task_of_a_region(kind):
    place = countries(WORLD, 1)[0]
    if kind == "region":
        inside = Counter(
            at[0] for f in WORLD.facts() if len(at := WORLD.place(f.subject)) == 2 and at[1] == place
        )
        place = inside.most_common(1)[0][0]
    source = region(WORLD, place, documents=200, sample=3, classes=4)
    task = source.task
    assert list(source.corpus.texts) == WORLD.documents(200, seed=3, within=place)
    assert len(task.classes) == 4
    assert len(set(task.counts("train").values())) == len(set(task.counts("test").values())) == 1
    assert len(task.train) == PHRASINGS * len(task.test)
    sentences = {}
    for fact in WORLD.facts():
        if place in WORLD.place(fact.subject):
            for i in range(len(fact.row.templates)):
                sentences[fact.sentence(i)] = (fact, i)
    learned = {sentences[x.text][0] for x in task.train}
    tested = {sentences[x.text][0] for x in task.test}
    assert not learned & tested
    for part, phrasings in ((task.train, set(range(PHRASINGS))), (task.test, {PHRASINGS})):
        assert {sentences[x.text][1] for x in part} == phrasings
        assert all(sentences[x.text][0].relation == x.label for x in part)
    often = Counter(f.relation for f in WORLD.facts() if place in WORLD.place(f.subject))
    assert min(often[name] for name in task.classes) >= max(
        count for name, count in often.items() if name not in task.classes
    )
    assert len(task.test) == 4 * (min(often[name] for name in task.classes) // 2)


def test_the_domains_of_a_world_share_its_words_and_no_subject():
    first, second = (region(WORLD, name, documents=50) for name in countries(WORLD, 2))
    assert not set(first.corpus.texts) & set(second.corpus.texts)
    assert not {x.text for x in first.task.train} & {x.text for x in second.task.train}
    assert region(WORLD, first.name, documents=50) == first


def test_places_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match="within"):
        region(WORLD, "Atlantis", documents=5)
    tiny = World(people=20, seed=0)
    few = countries(tiny, 100)[-1]
    told = Counter(f.relation for f in tiny.facts() if few in tiny.place(f.subject))
    assert sum(count > 1 for count in told.values()) < 2
    with pytest.raises(
        BadInput, match=f"got '{few}', which is too small; take one of {countries(tiny, 1)[0]}"
    ):
        region(tiny, few, documents=5)


# ---------------------------------------------------------------------- by name
def test_a_line_names_a_domain(tmp_path, small):
    place = countries(WORLD, 1)[0]
    source = named(f" world:people=60,seed=1,within={place},documents=40 ")
    assert source == region(WORLD, place, documents=40)
    assert named(source.spec) == source and named(source.spec).corpus.texts == source.corpus.texts
    assert named("docstrings:numpy") == package("numpy")
    plain = named("docstrings:numpy,limit=50")
    assert plain.task is None and len(plain.corpus) == 50
    file = tmp_path / "own.txt"
    file.write_text("one\ntwo\n")
    own = named(f"files:{file}+world:people=60,documents=3")
    assert own.task is None and len(own.corpus) == 5
    assert re.fullmatch(r"[\w.,=+-]+", own.name), "a folder may be called so"
    for spec, said in (
        ("world:people=60,within=Atlantis", "Atlantis"),
        ("world:peeple=60,within=x", "peeple"),
        ("pubmeds", "a corpus is"),
        ("files:", "followed by a path"),
    ):
        with pytest.raises(BadInput, match=said):
            named(spec)
    with pytest.raises(BadInput, match="pubmed, acl, ai, restaurants, electronics, books, movies; got 'x'"):
        real("x")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KEMEM_DATA", str(tmp_path))
    folder = tmp_path / "domains" / "end_tasks" / "citation_intent"
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        rows = [{"text": f"{part} sentence {i}.", "label": "ab"[i % 2]} for i in range(40)]
        (folder / f"{part}.txt").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "domains"


def test_a_published_domain_has_its_published_task(data):
    lines = "".join(json.dumps({"text": f"Paper {i}. Train sentence {i}."}) + "\n" for i in range(30))
    (data / "acl_papers.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    source = named("acl")
    assert (source.name, source.spec) == ("acl", "files:$KEMEM_DATA/domains/acl_papers.jsonl.gz")
    assert source.corpus == corpus(source.spec) and source.task.name == "acl_arc"
    assert (len(source.task.train), len(source.task.test)) == (
        38,
        82,
    )  # 40 x (1 - 0.9) is a little below 4, as in the authors' code
    assert overlap([x.text for x in source.task.train], source.corpus.texts) == 28 / 38


# ---------------------------------------------------------------------- in blocks
def test_a_domain_in_blocks_keeps_its_parts_apart():
    texts = tuple(f"document {i} says {'a b c d e f g h '[: 2 * (i % 8)]}" for i in range(300))
    source = Source("own", Corpus("own", texts))
    tokenizer = train_tokenizer(texts, 400, unit="word")
    made = held(source, tokenizer, 16, seed=5)
    for blocks, part in ((made.train, "train"), (made.test, "test")):
        expected = pack(source.corpus.part(part), tokenizer, 16, seed=5)
        assert torch.equal(blocks.ids, expected.ids)
        numbers = {text.split()[1] for text in source.corpus.part(part)}
        words = set(tokenizer.convert_ids_to_tokens(blocks.ids.flatten().tolist()))
        assert {word for word in words if word.isdigit()} <= numbers
    assert made.name == "own" and len(held(source, tokenizer, 16, limit_tokens=64).train) == 4
    fewer = held(source, tokenizer, 16, limit_tokens=64, test_tokens=32)
    assert (len(fewer.train), len(fewer.test)) == (4, 2)
    with pytest.raises(BadInput, match="at least one block of 9999 tokens"):
        held(source, tokenizer, 9999)
    with pytest.raises(BadInput, match=r"own again; leave out or rename it"):
        checked([made, made], Recipe(steps=1, batch_size=1, learning_rate=1e-3))


# ---------------------------------------------------------------------- what of a task stands in the text
def test_overlap_by_hand():
    documents = ["He said: it -- works (see Figure 3).", "Nothing here."]
    assert overlap(["It works", "see figure 3 .", "works here"], documents) == pytest.approx(2 / 3)
    assert overlap(["3 Nothing"], documents) == 0.0, "a text never spans two documents"
    with pytest.raises(BadInput, match="texts to look for; got none"):
        overlap([], documents)


@FILES
def test_most_of_acl_arc_stands_in_the_text_of_acl():
    source = real("acl")
    sentences = [x.text for x in (*source.task.train, *source.task.test)][::40]
    assert 0.8 < overlap(sentences, source.corpus.texts) < 0.97
    assert overlap(sentences, source.corpus.part("train")) > 0.7


@FILES
@pytest.mark.parametrize("name", ["ai", "restaurants", "books"])
def test_published_domains_open(name):
    source = real(name)
    assert source.name == name and REAL[name][0] in source.spec
    assert len(source.corpus.part("train")) > 2000 and isinstance(source.task.test[0], Example)
    if name == "books":
        assert [x.text for x in source.task.train] == source.corpus.part("train")
    else:
        assert overlap([x.text for x in source.task.test[:100]], source.corpus.texts) <= 0.02
