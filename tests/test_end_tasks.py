"""End tasks: scores against counts by hand, what is refused, the published splits against the published table."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kemem.continual.end_tasks import EndTask, Example, accuracy, by_part, f1, shares
from kemem.continual.published_tasks import (
    PUBLISHED,
    REVIEWS,
    aspects,
    labelled,
    moved,
    published,
    reviews,
)
from kemem.corpora import Corpus
from kemem.errors import BadInput

REAL = pytest.mark.skipif(
    not os.environ.get("KEMEM_DATA"),
    reason="needs the published files: set KEMEM_DATA to the folder with them",
)


def examples(*labels: str) -> tuple[Example, ...]:
    return tuple(Example(f"text {number}", label) for number, label in enumerate(labels))


# ---------------------------------------------------------------------- scores
def by_counting(labels, answers) -> dict[str, float]:
    """The four numbers of every class, counted one example and one class at a time."""
    scores, sums = {}, [0, 0, 0]
    for name in sorted({*labels, *answers}):
        both = wrongly = missed = 0
        for label, answer in zip(labels, answers, strict=True):
            if answer == name and label == name:
                both += 1
            elif answer == name:
                wrongly += 1
            elif label == name:
                missed += 1
        precision = both / (both + wrongly) if both + wrongly else 0.0
        recall = both / (both + missed) if both + missed else 0.0
        scores[name] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        sums = [a + b for a, b in zip(sums, (both, wrongly, missed), strict=True)]
    precision, recall = sums[0] / (sums[0] + sums[1]), sums[0] / (sums[0] + sums[2])
    return {
        "macro": sum(scores.values()) / len(scores),
        "micro": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "accuracy": sums[0] / len(labels),
    }


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=30))
def test_scores_are_those_of_precision_and_recall(pairs):
    labels, answers = zip(*pairs, strict=True)
    expected = by_counting(labels, answers)
    assert f1(labels, answers) == pytest.approx(100 * expected["macro"], abs=1e-12)
    assert f1(labels, answers, average="micro") == pytest.approx(100 * expected["micro"], abs=1e-12)
    assert accuracy(labels, answers) == pytest.approx(100 * expected["accuracy"], abs=1e-12)
    assert f1(labels, answers, average="micro") == pytest.approx(accuracy(labels, answers), abs=1e-12)


def test_scores_by_hand():
    labels, answers = ["a", "a", "a", "b"], ["a", "a", "b", "b"]
    # a: 2 of 2 answers, 2 of 3 labels: 0.8.  b: 1 of 2 answers, 1 of 1 label: 2/3
    assert f1(labels, answers) == pytest.approx(100 * (0.8 + 2 / 3) / 2)
    assert accuracy(labels, answers) == f1(labels, answers, average="micro") == 75.0
    # a class that is answered and never right counts with 0, one that stands nowhere does not count
    assert f1(["a", "a"], ["a", "c"]) == pytest.approx(100 * (2 / 3) / 2)
    assert f1(["a"], ["a"]) == 100.0


def test_a_task_scores_by_its_own_metric():
    train, test = examples("a", "b"), examples("a", "a", "a", "b")
    answers = ["a", "a", "b", "b"]
    assert EndTask("t", ("a", "b"), train, test).score(answers) == f1(["a", "a", "a", "b"], answers)
    assert EndTask("t", ("a", "b"), train, test, "micro_f1").score(answers) == 75.0
    with pytest.raises(BadInput, match="an answer for each label"):
        EndTask("t", ("a", "b"), train, test).score(answers[1:])


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ("a", "b", "c")}, "'t' needs a training example of every class; got none of 'c'"),
        ({"classes": ("a",)}, "two classes or more, each once; got a"),
        ({"classes": ("a", "b", "a")}, "two classes or more, each once; got a, b, a"),
        ({"train": examples("a", "b", "c")}, "labels among a, b; got 'c' in train example 3"),
        ({"test": examples("a", "d")}, "labels among a, b; got 'd' in test example 2"),
        ({"train": (Example(" \n", "a"), Example("x", "b"))}, "not empty; got none in train example 1"),
        ({"test": ()}, "examples to test with; got none"),
        ({"metric": "f1"}, "one of macro_f1, micro_f1; got 'f1'"),
        ({"untrained": ("a",)}, "untrained classes without training examples; got a"),
    ],
)
def test_a_task_that_cannot_be_is_refused(change, said):
    fields = {"classes": ("a", "b"), "train": examples("a", "b"), "test": examples("a", "b")}
    with pytest.raises(BadInput, match=re.escape(said)):
        EndTask("t", **{**fields, **change})


def test_a_class_nobody_can_learn_must_be_named():
    test = examples("a", "b", "c")
    task = EndTask("t", ("a", "b", "c"), examples("a", "b"), test, "micro_f1", ("c",))
    assert task.counts("train") == {"a": 1, "b": 1, "c": 0}
    assert task.score(["a", "b", "b"]) == pytest.approx(100 * 2 / 3)
    with pytest.raises(BadInput, match="got none of 'c'"):
        EndTask("t", ("a", "b", "c"), examples("a", "b"), test)


# ---------------------------------------------------------------------- fewer examples
@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.data())
def test_shares_are_whole_and_in_proportion(counts, data):
    total = data.draw(st.integers(len(counts), sum(counts)))
    found = list(shares(counts, total, [str(i) for i in range(len(counts))]).values())
    assert sum(found) == total and all(1 <= f <= c for f, c in zip(found, counts, strict=True))
    exact = [total * c / sum(counts) for c in counts]
    if min(exact) >= 1:  # no class is kept alive by a place that others have to give
        assert all(abs(f - e) < 1 + 1e-9 for f, e in zip(found, exact, strict=True))


def test_shares_by_hand():
    assert shares([60, 30, 10], 10, ["a", "b", "c"]) == {"a": 6, "b": 3, "c": 1}
    assert shares([98, 1, 1], 10, ["a", "b", "c"]) == {"a": 8, "b": 1, "c": 1}


def test_limits_keep_the_shares_and_the_order():
    labels = random.Random(0).choices("abc", (6, 3, 1), k=200)
    task = EndTask("t", ("a", "b", "c"), examples(*labels), examples(*labels))
    small = task.limited(50, 20, seed=1)
    assert (len(small.train), len(small.test)) == (50, 20)
    for part, size in (("train", 50), ("test", 20)):
        for name, count in small.counts(part).items():
            assert abs(count - size * labels.count(name) / 200) < 1
        chosen = getattr(small, part)
        assert list(chosen) == [x for x in getattr(task, part) if x in set(chosen)]
    assert small == task.limited(50, 20, seed=1) != task.limited(50, 20, seed=2)
    assert task.limited(50).test == task.test and task.limited(test=20).train == task.train
    assert task.limited(500, 200) == task
    with pytest.raises(BadInput, match="an example of each of 3 classes in train; got a limit of 2"):
        task.limited(2)


def test_a_part_of_a_corpus_is_a_task():
    texts = tuple(f"{'even' if i % 2 == 0 else 'odd'} {i}" for i in range(400))
    corpus = Corpus("texts", texts)
    task = by_part("t", corpus, lambda text: text.split()[0], ("even", "odd"))
    assert [x.text for x in task.train] == corpus.part("train")
    assert [x.text for x in task.test] == corpus.part("test")
    assert all(x.label == x.text.split()[0] for x in (*task.train, *task.test))
    both = by_part("t", corpus, lambda text: text.split()[0], ("even", "odd"), ("validation", "test"))
    assert [x.text for x in both.test] == corpus.part("validation") + corpus.part("test")
    with pytest.raises(BadInput, match="parts to test with are validation and test; got train"):
        by_part("t", corpus, lambda text: "even", ("even", "odd"), ("train",))


# ---------------------------------------------------------------------- the authors' split
def test_the_first_examples_of_each_class_are_moved():
    labels = ["a", "b", "a", "c", "a", "b", "a", "a", "a", "a"]
    train = [Example(f"train {i}", label) for i, label in enumerate(labels)]
    left, test = moved(train, examples("a"), 0.4)  # int(10 x 0.6 // 3) = 2 of each; c has only one
    assert [x.text for x in left] == ["train 4", "train 6", "train 7", "train 8", "train 9"]
    assert [x.text for x in test] == ["text 0", "train 0", "train 2", "train 1", "train 5", "train 3"]
    assert moved(train, examples("a"), 1.0) == (train, list(examples("a")))


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder like the published one, with small files."""
    monkeypatch.setenv("KEMEM_DATA", str(tmp_path))
    folder = tmp_path / "domains" / "end_tasks"
    for part, labels in (("train", "aaaaaaabbbbbbc"), ("dev", "ab"), ("test", "abc")):
        rows = [{"text": f"{part} {i}", "label": label} for i, label in enumerate(labels)]
        write(folder / "chemprot", f"{part}.txt", rows)
    return tmp_path / "domains"


def test_dev_joins_test_and_rare_classes_are_emptied(data):
    task = published("chemprot")  # int(14 x 0.5 // 3) = 2
    assert (len(task.train), len(task.test)) == (9, 10) and task.metric == "micro_f1"
    assert task.classes == ("a", "b", "c") and task.untrained == ("c",)
    assert [x.text for x in task.test[:5]] == ["test 0", "test 1", "test 2", "dev 0", "dev 1"]
    assert [x.text for x in task.train] == [f"train {i}" for i in (2, 3, 4, 5, 6, 9, 10, 11, 12)]
    fewer = published("chemprot", keep_untrained=False)
    assert fewer.classes == ("a", "b") and fewer.untrained == () and len(fewer.test) == 8
    assert fewer.train == task.train


def test_reviews_are_cut_as_their_domain_is(data):
    rows = [{"text": f"review {i}", "label": ("pos", "neg")[i % 3 == 0]} for i in range(300)]
    (data / REVIEWS["books"]).write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    )
    corpus = Corpus("reviews", tuple(row["text"] for row in rows))
    task = reviews("books")
    assert [x.text for x in task.train] == corpus.part("train")
    assert [x.text for x in task.test] == corpus.part("test")
    assert {x.text: x.label for x in task.train}.items() <= {r["text"]: r["label"] for r in rows}.items()
    assert [x.text for x in reviews("books", parts=("validation",)).test] == corpus.part("validation")


def test_an_aspect_stands_before_its_sentence_and_in_it(tmp_path):
    file = tmp_path / "reviews.seg"
    file.write_text("The $T$ was cold , and $T$ it stayed .\nsoup \nNegative\nGood $T$ .\nwine\nPositive\n\n")
    assert aspects(file) == [
        Example("The soup  was cold , and soup  it stayed .", "Negative", "soup"),
        Example("Good wine .", "Positive", "wine"),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"text": "a", "label": "b"}\n{"text": "a"\n', 2),
        ('{"text": "a"}\n', 1),
        ('{"text": "a", "label": "b"}\n\n{"text": "a", "label": "b"}\n', 2),
        ('{"text": 3, "label": "b"}\n', 1),
        ('{"text": " ", "label": "b"}\n', 1),
        ('["a", "b"]\n', 1),
    ],
)
def test_a_malformed_line_is_named(tmp_path, text, line):
    file = tmp_path / "train.txt"
    file.write_text(text)
    with pytest.raises(BadInput, match=rf"{re.escape(str(file))}, line {line}\b"):
        labelled(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The $T$ .\nsoup\nNegative\nThe soup .\nsoup\nNegative\n", "line 4"),
        ("The $T$ .\n \nNegative\n", "line 1"),
        ("The $T$ .\nsoup\nNegative\nThe $T$ .\nsoup\n", "got 2 in .*, line 4; is it cut off"),
    ],
)
def test_a_malformed_record_of_three_lines_is_named(tmp_path, text, said):
    file = tmp_path / "train.seg"
    file.write_text(text)
    with pytest.raises(BadInput, match=said):
        aspects(file)


def test_damaged_and_missing_files_are_named(tmp_path, monkeypatch, data):
    file = tmp_path / "train.txt.gz"
    file.write_bytes(gzip.compress(b'{"text": "a", "label": "b"}\n' * 50)[:-12])
    with pytest.raises(BadInput, match="a whole archive"):
        labelled(file)
    (tmp_path / "train.txt").write_bytes(b'{"text": "a", "label": "b"}\n\xff\n')
    with pytest.raises(BadInput, match=r"UTF-8; .*train.txt, line 2"):
        labelled(tmp_path / "train.txt")
    with pytest.raises(BadInput, match=r"needs the file .*citation_intent.*, which is not there"):
        published("acl_arc")
    with pytest.raises(BadInput, match="among restaurants, acl_arc, scierc, chemprot; got 'ag_news'"):
        published("ag_news")
    with pytest.raises(BadInput, match="electronics, books, movies; got 'phones'"):
        reviews("phones")
    monkeypatch.delenv("KEMEM_DATA")
    with pytest.raises(BadInput, match="KEMEM_DATA, which is not set"):
        published("chemprot")


# ---------------------------------------------------------------------- the files themselves
TABLE = {  # Ke et al. 2023, their table of data sets: train, test, classes
    "restaurants": (3452, 1120, 3),
    "acl_arc": (1520, 421, 6),
    "scierc": (2260, 2388, 7),
    "chemprot": (2667, 7398, 13),
}


@REAL
@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_published_table(name):
    """All but the training set of restaurants, whose 3,452 do not follow from the 3,608 in the file."""
    task = published(name)
    train, test, classes = TABLE[name]
    assert len(task.train) == (3608 if name == "restaurants" else train)
    assert (len(task.test), len(task.classes)) == (test, classes)
    assert len(task.untrained) == (6 if name == "chemprot" else 0)
    assert all(x.about and x.about in x.text for x in task.train) == (name == "restaurants")


@REAL
def test_what_the_split_of_chemprot_leaves_nobody_can_learn():
    task = published("chemprot")
    lost = sum(task.counts("test")[name] for name in task.untrained)
    assert lost == 852
    best = [x.label if x.label not in task.untrained else "INHIBITOR" for x in task.test]
    assert task.score(best) == pytest.approx(88.48, abs=0.01)
    assert len(published("chemprot", keep_untrained=False).test) == 7398 - 852
    assert task.counts("train")["INHIBITOR"] == 1642 - 160


@REAL
@pytest.mark.parametrize(("name", "count"), [("electronics", 5708), ("books", 5845), ("movies", 2000)])
def test_reviews_have_two_classes_and_a_split(name, count):
    every = reviews(name, parts=("validation", "test"))
    assert len(every.train) + len(every.test) == count and len(every.classes) == 2
    assert not {x.text for x in every.train} & {x.text for x in every.test}
    assert 0.88 < len(every.train) / count < 0.92
    assert min(Counter(x.label for x in every.test).values()) > 80
