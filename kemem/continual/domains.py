"""Domains to learn one after another: named text, and an end task that asks what was learned from it.

    docstrings:scipy                         a package; the task: which of its modules a docstring belongs to
    world:people=300,seed=0,within=Kirovia   a country or region of a world; the task: what a sentence tells
    pubmed acl ai restaurants                those of Ke et al. 2023, as far as they can be had, with their end tasks
    electronics books movies                 reviews; the task: positive or negative

and any other corpus (`kemem.corpora.spec`), without a task. Texts are split 90/5/5 by document hash as everywhere.
Where a task is made of the documents themselves, its test examples come from parts that are not trained on.

Published tasks come from elsewhere, and their texts may stand in the domain, unlabelled. By the note that comes with
the data 94 % of the sentences of ACL-ARC stand in the text of `acl`, which holds the very papers they were taken from.
`overlap`, which forgives nothing but case, spaces and signs, finds 90 % of them there, and of 400 of the test 80 % in
the part that is trained on; of 400 of the test of restaurants 0.5 %, of ChemProt and SciERC none.
"""

from __future__ import annotations

import inspect
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kemem import corpora
from kemem.continual.end_tasks import EndTask, Example, by_part
from kemem.continual.published_tasks import FOLDER, PUBLISHED, REVIEWS, published, reviews
from kemem.continual.sequence import Held
from kemem.corpora import Corpus, corpus, docstrings, pack
from kemem.corpora.packing import permutation
from kemem.corpora.spec import Part, options, specs
from kemem.errors import BadInput
from kemem.world import Fact, World

REAL = {
    "pubmed": ("pubmed_abstracts.jsonl.gz", "chemprot"),
    "acl": ("acl_papers.jsonl.gz", "acl_arc"),
    "ai": ("ai_papers.jsonl.gz", "scierc"),
    "restaurants": ("restaurant_reviews.jsonl.gz", "restaurants"),
    **{name: (file, name) for name, file in REVIEWS.items()},
}
ENDS = {"yelp": "restaurants", "acl": "acl_arc", "ml-arxiv": "scierc", "pubmed": "chemprot"}
"""Data sets of the hub by their short names, and the published tasks of their fields."""
PHRASINGS = (
    3  # of a relation, which sentences to learn from are told in; those to test with take the next one
)


@dataclass(frozen=True)
class Source:
    """A domain before it is tokenised: its documents, and its end task where it has one."""

    name: str
    corpus: Corpus
    task: EndTask | None = None

    @property
    def spec(self) -> str:
        """The line by which `named` finds these documents again."""
        return self.corpus.spec


def held(
    source: Source, tokenizer: Any, length: int, *, limit_tokens: int | None = None, test_tokens: int | None = None,
    seed: int = 0,
) -> Held:  # fmt: skip
    """The domain in blocks of `length` tokens: its train part to learn from, its test part to be judged by.

    limit_tokens, test_tokens: of each, at most. Which documents these are depends on the seed.
    Refused: less text than one block in either part.
    """
    train, test = (
        pack(source.corpus.part(part), tokenizer, length, seed=seed, limit_tokens=limit)
        for part, limit in (("train", limit_tokens), ("test", test_tokens))
    )
    return Held(source.name, train, test)


def named(spec: str) -> Source:
    """The domain of one line, as above. Refused as by `kemem.corpora.corpus`, and an unknown country or region."""
    spec = spec.strip()
    if spec in REAL:
        return real(spec)
    parts = specs(spec)
    if len(parts) == 1:
        given = options(parts[0]) if parts[0].scheme in ("docstrings", "world") else None
        if given and parts[0].scheme == "docstrings" and len(given.names) == 1 and not given.values:
            return package(given.names[0])
        if given and "within" in given.values:
            rest = {key: value for key, value in given.values.items() if key != "within"}
            bare = Part("world", ",".join([*given.names, *(f"{key}={value}" for key, value in rest.items())]))
            world, documents, sample = corpora.world(bare)
            return region(world, given.values["within"], documents=documents, sample=sample)
    return Source(re.sub(r"[^\w.,=+-]+", "_", spec), corpus(spec))


def real(name: str, *, parts: Sequence[str] = ("test",)) -> Source:
    """One of REAL, from `$KEMEM_DATA`. parts: of `published_tasks.reviews`; the published tests stay as they are."""
    if name not in REAL:
        raise BadInput(f"expected a domain among {', '.join(REAL)}; got {name!r}; take one of these.")
    file, task = REAL[name]
    made = published(task) if task in PUBLISHED else reviews(task, parts=parts)
    return Source(name, corpus(f"files:{FOLDER}/{file}"), made)


def hub(spec: str) -> Source:
    """A data set of the hub under its short name, with the published end task of its field where its files are there.

    Without `$KEMEM_DATA`, and for a data set that is none of ENDS, there is no task.
    """
    (part,) = specs(spec)
    name = re.split(r"[@:]", part.rest)[0]
    task = published(ENDS[name]) if name in ENDS and "KEMEM_DATA" in os.environ else None
    return Source(name.rpartition("/")[2], corpus(spec), task)


def package(name: str, *, classes: int = 5, depth: int = 1, parts: Sequence[str] = ("test",)) -> Source:
    """The docstrings of a package, and the task to say which of its modules one belongs to.

    A module is what lies `depth` folders or files below the package: `stats` for scipy/stats/_morestats.py at 1. The
    `classes` most frequent ones are asked for, as frequent as they are: some packages keep most text in one. parts:
    where test examples come from, a twentieth of all texts each; take ("validation",) to choose settings by.
    A docstring that stands in several modules counts for the first. Refused: fewer than two modules with text to test.
    """
    modules = dict(docstrings_by_module(name, depth))
    texts = Corpus(f"docstrings:{name}", tuple(modules), docstrings.versions([name]))
    seen = Counter(modules[text] for text in texts.part("train"))
    tested = {modules[text] for part in parts for text in texts.part(part)}
    kept = sorted((module for module in seen if module in tested), key=lambda m: (-seen[m], m))[:classes]
    return Source(name, texts, by_part(f"modules of {name}", texts, modules.get, kept, parts))


def docstrings_by_module(name: str, depth: int = 1) -> Iterator[tuple[str, str]]:
    """Every text of `docstrings:NAME`, in its order, with the module it stands in."""
    root = docstrings.folder(name)
    inside = {file: file.relative_to(root).parts for file in root.rglob("*.py")}
    seen: set[str] = set()
    for file in sorted(inside, key=inside.__getitem__):
        if "tests" in inside[file]:
            continue
        module = ".".join(inside[file][:depth]).removesuffix(".py").removesuffix(".__init__")
        for text in map(docstrings.cleaned, docstrings.literals(file.read_bytes())):
            if len(text) > docstrings.SHORTEST and text not in seen:
                seen.add(text)
                yield text, module


def countries(world: World, count: int) -> list[str]:
    """Those of a world that most facts are about, the most told first. Few are large: the rest have a few cities."""
    told = Counter(place[-1] for fact in world.facts() if (place := world.place(fact.subject)))
    return sorted(told, key=lambda name: (-told[name], name))[:count]


def region(
    world: World, place: str, *, documents: int = 3000, sample: int = 0, classes: int = 8
) -> Source:  # fmt: skip
    """Documents about the entities of one country or region, and the task to say which relation a sentence tells.

    Domains of one world share its words and phrasings and differ in whom they are about. The classes are the `classes`
    relations with most facts there, all exactly as frequent. The facts of each are drawn apart into two halves: those
    to learn from are told in the first PHRASINGS phrasings of the relation, those to test with in the next one, so that
    no fact and few of the words are met again: told in the same phrasings, a bag of words would give the answer away.
    All these sentences may stand in the documents, unlabelled.
    Refused: a place with fewer than two relations that have two facts.
    """
    world.documents(0, within=place)  # refuses an unknown place
    told: dict[str, list[Fact]] = {}
    for fact in world.facts():
        if place in world.place(fact.subject):
            told.setdefault(fact.relation, []).append(fact)
    kept = sorted((name for name in told if len(told[name]) > 1), key=lambda name: (-len(told[name]), name))
    if len(kept) < 2:
        raise BadInput(
            f"expected a place with facts of two relations; got {place!r}, which is too small; take one of "
            f"{', '.join(countries(world, 4))}."
        )
    texts = tuple(world.documents(documents, seed=sample, within=place))
    kept = kept[:classes]
    half = len(told[kept[-1]]) // 2
    train, test = [], []
    for name in kept:
        drawn = [told[name][i] for i in permutation(len(told[name]), world.seed)[: 2 * half]]
        train += [Example(fact.sentence(i), name) for fact in drawn[:half] for i in range(PHRASINGS)]
        test += [Example(fact.sentence(PHRASINGS), name) for fact in drawn[half:]]
    task = EndTask(f"relations of {place}", tuple(kept), tuple(train), tuple(test))
    settings = {name: getattr(world, name) for name in inspect.signature(World).parameters}
    settings |= {"documents": documents, "sample": sample, "within": place}
    spec = "world:" + ",".join(f"{name}={value}" for name, value in settings.items())
    return Source(place, Corpus(spec, texts), task)


def overlap(texts: Sequence[str], documents: Sequence[str]) -> float:
    """Share of the texts that stand in the documents, letter by letter; case, spaces and signs left out."""
    if not texts:
        raise BadInput("expected texts to look for; got none; give those of a task.")
    everything = "\n".join(map(_letters, documents))
    return sum(_letters(text) in everything for text in texts) / len(texts)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())
