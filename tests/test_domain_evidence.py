"""Evidence and numbers of domains in a row: arithmetic on rows made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from kemem.claims import CLAIMS
from kemem.runs import Row, Store
from kemem.studies import budget, courses, standing
from kemem.studies.evidence import domains
from kemem.studies.evidence.domains import EVIDENCE, PARTS, RIVALS, Seed
from kemem.studies.lab import Lab

ROOT = Path(__file__).resolve().parents[1]


def row(end, first=None, *, own=False, task=(60.0, 80.0), before=4.0):
    """Two domains; the first ends at `end` and was `first` when it was learned; the second ends at 1."""
    first = end if first is None else first
    values = {
        "names": ["a", "b"], "before": [before, before + 1], "loss": [[first, end], [3.0, 1.0]],
        "general": [2.0, 2.5, 3.0], "task_before": [50.0, None], "task": [[70.0, task[0]], [None, task[1]]],
        "added": [0, 0], "own": own, "seconds": [1.0, 1.0],
    }  # fmt: skip
    return Row("courses", 1, {}, values, {}, "recorded")


def test_a_seed_is_the_mean_over_its_orders_and_untouched_is_before():
    seed = Seed({("ncl", 0): row(2.0, 1.0), ("ncl", 1): row(3.0, 2.5), ("das", 0): row(1.5)})
    assert seed.mean("ncl", domains._loss, (0, 1)) == pytest.approx(-((2 + 1) / 2 + (3 + 1) / 2) / 2)
    assert seed.mean("ncl", domains._lost, (0, 1)) == pytest.approx((1.0 + 0.5) / 2)
    assert seed.mean("ncl", domains._lost, (0,)) == pytest.approx(1.0)
    assert seed.mean("ncl", domains.untouched, (0, 1)) == pytest.approx(-4.5)
    assert seed.mean("ncl", domains._task, (0,)) == pytest.approx(70.0)
    assert seed.mean("ncl", domains._task_lost, (0,)) == pytest.approx(10.0)
    assert seed.mean("ncl", domains.untouched_task, (0, 1)) == pytest.approx(50.0)
    with pytest.raises(LookupError):
        seed.mean("ewc", domains._loss, (0,))


def test_evidence_is_one_number_a_seed_and_end_tasks_are_in_points():
    own = [
        Seed({("ncl", 0): row(2.0 + k), ("das", 0): row(1.0 + k, 1.5 + k, task=(65.0, 81.0))})
        for k in range(3)
    ]
    (found,) = domains._measured(own, domains.best, "x")
    assert found.series == {
        "DAS less untouched": pytest.approx([-(1 + k + 1) / 2 + 4.5 for k in range(3)]),
        "DAS less NCL": pytest.approx([0.5] * 3),
    }
    assert found.unit == "nats a token"
    (tasks,) = domains._measured(own, domains.best, "x", task=True)
    assert tasks.series["DAS less NCL"] == pytest.approx([3.0] * 3) and tasks.unit == "points"
    assert (
        len(found.rows) == 6
        and len(domains._measured(own, lambda score, lost: {"x": score("das")}, "x")[0].rows) == 3
    )
    (kept,) = domains._measured(own, domains.kept, "x")
    assert kept.series["FR of DAS"] == pytest.approx([-0.5] * 3)
    assert kept.series["FR of DAS less NCL"] == pytest.approx([-0.5] * 3)
    assert kept.series["- FR of NCL"] == pytest.approx([0.0] * 3)
    assert domains._measured(own, domains.pooled, "x") == []  # no Pool among the rows


def score(**values):
    def of(name):
        if name not in values:
            raise LookupError(name)
        return values[name]

    return of


def test_quantities_of_claims():
    loss = {name: -float(i) for i, name in enumerate(RIVALS)} | {"das": 0.5}
    loss |= {name: -float(i) for i, name in enumerate(PARTS)}
    loss |= {"stand-in-kl": 0.4, "stand-in-loss": 0.1}
    lost = {name: i / 10 for i, name in enumerate(loss)}
    of, fr = ((lambda name, own=own: own[name]) for own in (loss, lost))
    assert len(domains.best(of, fr)) == 16 and min(domains.best(of, fr).values()) == 0.5
    assert domains.pooled(of, fr) == {"DAS less Pool": 0.5}
    kept = domains.kept(of, fr)
    assert len(kept) == 13 and kept["- FR of NCL"] == -lost["ncl"]
    assert kept["FR of DAS less HAT"] == lost["das"] - lost["hat"]
    protected = domains.protected(of, fr)
    assert protected["FR of NCL less DER++"] == lost["ncl"] - lost["derpp"]
    assert protected["KD less NCL"] == loss["kd"] - loss["ncl"] and len(protected) == 4
    assert len(domains.transferring(of, fr)) == 3
    assert domains.transferring(of, fr)["BCL less NCL"] == loss["bcl"] - loss["ncl"]
    assert domains.whole(of, fr)["One less One, adapters"] == loss["one"] - loss["adapters-one"]
    assert domains.isolated(of, fr) == {
        "HAT less the untouched model": loss["hat"] - loss["untouched"],
        "HAT-All less HAT": loss["hat-all"] - loss["hat"],
    }
    assert domains.adapted(of, fr) == {"One less the untouched model": loss["one"] - loss["untouched"]}
    assert domains.every_part(of, fr)["mask"] == 0.5 - loss["without-soft-mask"]
    starting = domains.initialised(of, fr)
    assert starting["FR random importance"] == lost["random"] and len(starting) == 4
    assert starting["FR random importance less DAS"] == lost["random"] - lost["das"]
    first, second = domains.stood_in(of, fr).values()
    assert first == pytest.approx(0.3) and second == pytest.approx(0.3 - 0.1)


def test_claims_with_evidence_are_those_of_domains():
    assert EVIDENCE.keys() <= CLAIMS.keys() and len(EVIDENCE) == 16


def test_without_rows_there_is_neither_evidence_nor_a_number(tmp_path):
    store = Store(tmp_path, None, mode="run")
    for scale in ("smoke", "laptop", "gpu"):
        assert all(read(store, scale) == [] for read in EVIDENCE.values())
        assert standing.results(store, scale) == {}


def test_means_are_over_orders_and_seeds():
    rows = {
        ("ncl", 0, 0): row(2.0, 1.0),
        ("ncl", 1, 0): row(4.0, 2.0),
        ("one", 0, 0): row(9.0, 2.0, own=True),
    }
    found = standing.means(rows, standing.QUANTITIES)
    assert found["ncl.average"][0] == pytest.approx((1.5 + 2.5) / 2)
    assert found["ncl.forgetting"][0] == pytest.approx(1.5)
    assert found["ncl.general"][0] == 3.0 and found["one.general"][0] == pytest.approx(2.75)
    assert found["one.average"][0] == pytest.approx(1.5) and found["one.forgetting"][0] == 0
    assert found["ncl.task"][:2] == (pytest.approx(70.0), "%")
    before = standing.means(rows, standing.BEFORE)
    assert (
        before["ncl.average"][0] == 4.5 and before["ncl.task"][0] == 50.0 and before["ncl.general"][0] == 2.0
    )


def test_forward_transfer_and_learned_are_those_of_the_course():
    course = courses.course(row(2.0, 1.0))
    found = standing.means({("ncl", 0, 0): row(2.0, 1.0)}, standing.QUANTITIES)
    assert found["ncl.forward"][0] == course.forward_transfer == pytest.approx(5 - 3)
    assert found["ncl.learned"][0] == course.learned == pytest.approx(((4 - 1) + (3 - 1)) / 2)


def test_results_of_a_whole_smoke_table(tmp_path):
    """Every arm of every grid that the scale has, once; the names that prose may use."""
    lab = Lab("smoke", Store(tmp_path, None, mode="run"), ROOT)
    z = budget.sizes("smoke")
    made = budget.chosen(budget.table(lab, budget.tuning(z)))
    rows = budget.table(lab, budget.contest(z, made))
    found = standing.results(lab.store, "smoke")
    own = [courses.course(row).average for (name, _, _), row in rows.items() if name == "das"]
    assert found["budget.das.average"].value == pytest.approx(sum(own) / len(own))
    assert found["budget.das.average"].unit == "nats a token"
    assert found["budget.ewc.rate"].value == made["ewc"].rate
    assert found["budget.untouched.average"].value == pytest.approx(
        sum(sum(r.values["before"]) / 2 for (n, _, _), r in rows.items() if n == "ncl") / 2
    )
    assert not any(name.startswith(("budget.part.", "budget.masked.")) for name in found)
