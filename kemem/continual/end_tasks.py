"""End tasks: texts with labels that a model of a domain is put to, and the scores of what it answers.

With n_tp, n_fp, n_fn the right, the wrongly given and the missed answers of a class c,

    F1_c      2 n_tp / (2 n_tp + n_fp + n_fn)
    macro-F1  mean of F1_c over the classes that stand in the labels or in the answers
    micro-F1  the same fraction of sums over all classes; with one label a text it equals the accuracy

as scikit-learn defines both, which the authors' code calls (Ke et al. 2023: macro-F1 and accuracy, but for ChemProt
micro-F1 alone, which then enters both averages).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from kemem.corpora import Corpus
from kemem.corpora.packing import permutation
from kemem.errors import BadInput
from kemem.objective import mix

METRICS = ("macro_f1", "micro_f1")


@dataclass(frozen=True)
class Example:
    """A text with its label. about: what of the text is asked about (an aspect term), read before it."""

    text: str
    label: str
    about: str = ""


@dataclass(frozen=True)
class EndTask:
    """Classification of texts, one label each, with a score in per cent.

    untrained: classes of which only test examples exist. Nobody can learn them, so these count as wrong, as in the
    authors' split of ChemProt. Elsewhere that would be an oversight, so they must be named.
    Refused: a class without a training example that is not named, a label that is no class, a text that is empty, no
    test example.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str = "macro_f1"
    untrained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("classes", "train", "test", "untrained"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if self.metric not in METRICS:
            raise BadInput(f"the metric of an end task is one of {', '.join(METRICS)}; got {self.metric!r}.")
        if len(set(self.classes)) < 2 or len(set(self.classes)) != len(self.classes):
            raise self._refused("two classes or more, each once", ", ".join(self.classes) or "none")
        for part in ("train", "test"):
            for number, example in enumerate(getattr(self, part), start=1):
                if not example.text.strip():
                    raise self._refused("texts that are not empty", f"none in {part} example {number}")
                if example.label not in self.classes:
                    known = ", ".join(self.classes)
                    raise self._refused(
                        f"labels among {known}", f"{example.label!r} in {part} example {number}"
                    )
        if not self.test:
            raise self._refused("examples to test with", "none")
        without = [name for name in self.classes if not self.counts("train")[name]]
        for name in without:
            if name not in self.untrained:
                raise self._refused(
                    "a training example of every class",
                    f"none of {name!r}",
                    "add one, or leave the class out",
                )
        if wrong := [name for name in self.untrained if name not in without]:
            raise self._refused("untrained classes without training examples", ", ".join(wrong))

    def __repr__(self) -> str:
        sizes = f"{len(self.train):,} / {len(self.test):,} examples"
        return f"EndTask({self.name!r}: {len(self.classes)} classes, {sizes}, {self.metric})"

    def _refused(self, expected: str, got: str, do: str = "correct the task") -> BadInput:
        return BadInput(f"the end task {self.name!r} needs {expected}; got {got}; {do}.")

    @cached_property
    def _counts(self) -> dict[str, Counter[str]]:
        return {part: Counter(x.label for x in getattr(self, part)) for part in ("train", "test")}

    def counts(self, part: str) -> dict[str, int]:
        """Examples of each class in "train" or "test", those of absent classes being 0."""
        return {name: self._counts[part][name] for name in self.classes}

    @property
    def labels(self) -> list[str]:
        """The right answers of the test."""
        return [example.label for example in self.test]

    def score(self, predictions: Sequence[str]) -> float:
        """By the task's own metric, in per cent."""
        return f1(self.labels, predictions, average=self.metric.removesuffix("_f1"))

    def limited(self, train: int | None = None, test: int | None = None, *, seed: int = 0) -> EndTask:
        """The task with at most so many examples, each class keeping its share as nearly as whole numbers can.

        Drawn by the seed, in the order they stood in; every class keeps an example. None: all of them.
        Refused: fewer than there are classes.
        """
        parts = {"train": train, "test": test}
        return replace(
            self, **{p: self._drawn(p, limit, seed) for p, limit in parts.items() if limit is not None}
        )

    def _drawn(self, part: str, limit: int, seed: int) -> tuple[Example, ...]:
        examples = getattr(self, part)
        present = {name: count for name, count in self.counts(part).items() if count}
        if limit < len(present):
            raise self._refused(
                f"an example of each of {len(present)} classes in {part}", f"a limit of {limit}"
            )
        if limit >= len(examples):
            return examples
        chosen: set[int] = set()
        for place, (name, share) in enumerate(shares(list(present.values()), limit, list(present)).items()):
            own = [i for i, example in enumerate(examples) if example.label == name]
            chosen.update(own[i] for i in permutation(len(own), mix(seed, place))[:share])
        return tuple(example for i, example in enumerate(examples) if i in chosen)


def by_part(
    name: str,
    corpus: Corpus,
    label: Callable[[str], str | None],
    classes: Sequence[str],
    parts: Sequence[str] = ("test",),
) -> EndTask:
    """An end task on the documents of a corpus: those of its train part to learn from, of other `parts` to test with.

    label: of a document; those of which it is no class are left out. Refused: "train" among the parts.
    """
    if not parts or not set(parts) <= {"validation", "test"}:
        raise BadInput(f"parts to test with are validation and test; got {', '.join(parts) or 'none'}.")
    found = {
        part: tuple(Example(text, own) for text in corpus.part(part) if (own := label(text)) in classes)
        for part in ("train", *parts)
    }
    test = tuple(example for part in parts for example in found[part])
    return EndTask(name, tuple(classes), found["train"], test)


def shares(counts: Sequence[int], total: int, names: Sequence[str]) -> dict[str, int]:
    """`total` places for classes of so many members, in proportion and at least one each; the sum is exact.

    A place goes to the class that is furthest below its share, in turn; ties to the first.
    """
    whole, given = sum(counts), [1] * len(counts)
    for _ in range(total - len(counts)):
        lacks = [
            total * c / whole - g if g < c else -float("inf") for c, g in zip(counts, given, strict=True)
        ]
        given[lacks.index(max(lacks))] += 1
    return dict(zip(names, given, strict=True))


def f1(labels: Sequence[str], predictions: Sequence[str], *, average: str = "macro") -> float:
    """F1 in per cent: "macro" over the classes that stand in labels or predictions, or "micro"."""
    right, given, asked = _tallies(labels, predictions)
    if average == "micro":
        return 100 * 2 * sum(right.values()) / (sum(given.values()) + sum(asked.values()))
    found = [2 * right[name] / (given[name] + asked[name]) for name in sorted(given.keys() | asked.keys())]
    return 100 * sum(found) / len(found)


def accuracy(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of right answers, in per cent."""
    right, _, asked = _tallies(labels, predictions)
    return 100 * sum(right.values()) / sum(asked.values())


def _tallies(
    labels: Sequence[str], predictions: Sequence[str]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By class: how often it was rightly answered, how often answered at all, and how often it was right."""
    if len(labels) != len(predictions) or not labels:
        raise BadInput(
            f"expected an answer for each label, and a label; got {len(predictions)} and {len(labels)}; "
            "answer every test example once."
        )
    right = Counter(label for label, answer in zip(labels, predictions, strict=True) if label == answer)
    return right, Counter(predictions), Counter(labels)
