"""The end tasks of Ke et al. 2023, read from `$KEMEM_DATA/domains`, and reviews whose split is made here.

    split ("dataloader/data.py" of the authors' code)
        dev joins test; then, class by class, the first k = int(N (1 - r) // C) training examples of the class join it
        too, or as many as it has. N: training examples before, C: classes, r: the share that is to be kept.

What the published table gives (train / test) and what this makes of the files:

    chemprot      2,667 / 7,398   the same. Six of 13 classes lose all training examples; see `published`
    acl_arc       1,520 /   421   the same
    scierc        2,260 / 2,388   the same
    restaurants   3,452 / 1,120   3,608 / 1,120: the 3,452 cannot be derived from this file, which holds no split
    phone, camera                 are cut by product in the authors' copy, which is not at hand: left out

So the first three are the published tasks, example for example, and the fourth is on its test alone.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kemem.continual.end_tasks import EndTask, Example, by_part
from kemem.corpora import Corpus
from kemem.corpora.files import expanded, field_of
from kemem.errors import BadInput

FOLDER = "$KEMEM_DATA/domains"
PLACEHOLDER = "$T$"


@dataclass(frozen=True)
class Published:
    """Where a task stands, and how the authors cut, score and fine-tune it.

    kept: the r of the split; 1 leaves train and test as they are. epochs: of their fine-tuning.
    """

    folder: str
    kept: float
    epochs: int
    metric: str = "macro_f1"


PUBLISHED = {
    "restaurants": Published("semeval14_restaurants", 1.0, 5),
    "acl_arc": Published("citation_intent", 0.9, 10),
    "scierc": Published("sciie-relation-extraction", 0.7, 5),
    "chemprot": Published("chemprot", 0.5, 10, "micro_f1"),
}
REVIEWS = {
    "electronics": "electronics_reviews.jsonl.gz",
    "books": "books_reviews.jsonl.gz",
    "movies": "movie_reviews.jsonl.gz",
}


def published(name: str, *, keep_untrained: bool = True) -> EndTask:
    """One of PUBLISHED in the authors' split.

    The split takes every training example of ChemProt's six rarest classes, 852 of whose examples (11.5 %) stand in the
    test. The authors' code keeps them there and a head of 13 outputs, so they are lost to every model and no micro-F1
    can exceed 88.5 %. Kept here likewise, unless keep_untrained is False, which drops these classes with their test
    examples and makes another task. The other three tasks have no such class.
    Refused: files that are not there, and a malformed line, named with its file.
    """
    if name not in PUBLISHED:
        raise BadInput(f"expected an end task among {', '.join(PUBLISHED)}; got {name!r}; take one of these.")
    row = PUBLISHED[name]
    folder = expanded(f"{FOLDER}/end_tasks/{row.folder}")
    if name == "restaurants":
        train, test = (
            aspects(folder / file) for file in ("Restaurants_Train.xml.seg", "Restaurants_Test_Gold.xml.seg")
        )
    else:
        train, dev, test = (labelled(folder / f"{part}.txt") for part in ("train", "dev", "test"))
        train, test = moved(train, [*test, *dev], row.kept)
    classes = sorted({example.label for example in (*train, *test)})
    untrained = sorted(set(classes) - {example.label for example in train})
    if not keep_untrained:
        classes = [name for name in classes if name not in untrained]
        test = [example for example in test if example.label in classes]
        untrained = []
    return EndTask(name, tuple(classes), tuple(train), tuple(test), row.metric, tuple(untrained))


def moved(
    train: Sequence[Example], test: Sequence[Example], kept: float
) -> tuple[list[Example], list[Example]]:
    """The authors' split: what is left of train, and test with the first examples of each class of train behind it."""
    classes = sorted({example.label for example in train})
    count = int(len(train) * (1 - kept) // len(classes))
    taken: list[int] = []
    for name in classes:
        taken += [i for i, example in enumerate(train) if example.label == name][:count]
    gone = set(taken)
    return [x for i, x in enumerate(train) if i not in gone], [*test, *(train[i] for i in taken)]


def reviews(name: str, *, parts: Sequence[str] = ("test",)) -> EndTask:
    """Positive or negative: the reviews of REVIEWS, which come with a label and without a split.

    Cut as the texts of the domain are, by the sha256 of the text (see `Corpus.part`): training examples are the reviews
    that the domain is trained on, test examples are not among them. parts: where test examples come from; take
    ("validation",) to choose settings by.
    """
    if name not in REVIEWS:
        raise BadInput(f"expected reviews of {', '.join(REVIEWS)}; got {name!r}; take one of these.")
    file = f"{FOLDER}/{REVIEWS[name]}"
    labels = {example.text: example.label for example in labelled(expanded(file))}
    corpus = Corpus(f"files:{file}", tuple(labels))
    return by_part(name, corpus, labels.get, sorted(set(labels.values())), parts)


def labelled(file: Path) -> list[Example]:
    """A file of one JSON object a line, with the fields text and label; .gz or plain."""
    found = []
    for number, line in lines(file):
        place = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except ValueError:
            raise BadInput(
                f"a line must be one JSON object with a text and a label; got {line[:40]!r} in {place}."
            ) from None
        text, label = (field_of(record, field, place) for field in ("text", "label"))
        if not text.strip() or not label.strip():
            raise BadInput(f"an example must have a text and a label; got an empty one in {place}.")
        found.append(Example(text, label))
    return found


def aspects(file: Path) -> list[Example]:
    """SemEval-2014: three lines a record, a sentence with `$T$` for the aspect, the aspect, its polarity.

    The aspect is put back into its sentence, and stands before it again as what is asked about.
    """
    found: list[Example] = []
    waiting: list[tuple[int, str]] = []
    for number, line in lines(file):
        waiting.append((number, line))
        if len(waiting) < 3:
            continue
        (_, sentence), (_, aspect), (_, polarity) = waiting
        if PLACEHOLDER not in sentence or not aspect.strip() or not polarity.strip():
            raise BadInput(
                f"a record must be a sentence with {PLACEHOLDER}, an aspect and a polarity, a line each; "
                f"got {sentence[:40]!r}, {aspect[:40]!r}, {polarity[:40]!r} in {file}, line {waiting[0][0]}."
            )
        found.append(Example(sentence.replace(PLACEHOLDER, aspect), polarity.strip(), aspect.strip()))
        waiting = []
    if waiting:
        raise BadInput(
            f"a record must have three lines; got {len(waiting)} in {file}, line {waiting[0][0]}; is it cut off?"
        )
    return found


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text, without their ends; trailing empty ones are left out."""
    if not file.is_file():
        raise BadInput(f"an end task needs the file {file}, which is not there; set KEMEM_DATA to the data.")
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = data.decode("utf-8")
    except (EOFError, OSError, zlib.error) as error:
        raise BadInput(f"{file} must be a whole archive; got {error}; copy or download it again.") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise BadInput(f"a task must be UTF-8; got another byte in {file}, line {number}.") from None
    yield from enumerate(text.rstrip("\n").split("\n") if text.strip() else [], start=1)
