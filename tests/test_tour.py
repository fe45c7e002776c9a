"""The tour of chapter 00: rows of other chapters, run shorter, and what is read off them."""

import math
from pathlib import Path

import pytest

from kemem.runs import Row, Store
from kemem.studies import arms, courses, many, pretraining, tour, tracing
from kemem.studies.lab import Lab


def test_everything_is_done_to_one_model_and_the_larger_scales_have_the_laptops_tour():
    stops = tour.settings("laptop", seed=3)
    models = [stops.plain.learning.model, stops.woken.learning.model, stops.traced.model, stops.edited.model]
    assert (
        models + [course.model for course in stops.domains.values()] == [pretraining.settings("laptop")] * 6
    )
    assert stops.plain.learning.step == stops.domains["DAS"].step == stops.plain.learning.model.steps[-1]
    assert tour.settings("gpu", seed=3) == tour.settings("paper", seed=3) == stops


def test_runs_that_are_compared_differ_in_one_thing():
    stops = tour.settings("laptop")
    changed = {name for name in vars(stops.plain) if getattr(stops.plain, name) != getattr(stops.woken, name)}
    assert changed == {"edit", "fraction"}
    plain, das = stops.domains["plain"], stops.domains["DAS"]
    assert {name for name in vars(plain) if getattr(plain, name) != getattr(das, name)} == {
        "method",
        "changes",
    }


def test_the_site_of_a_trace_is_its_largest_effect_but_for_the_last_token():
    effects = {"last": [0.9, 0.9], "last_subject": [0.1, 0.5], "further": [0.2, 0.3]}
    flat = {name: [0.0, 0.0] for name in effects}
    values = {"effects": {"state": effects, "mlp": {**flat, "further": [0.0, 0.25]}, "attention": flat}}
    whole = {
        kind: {token: {"value": numbers} for token, numbers in own.items()}
        for kind, own in values["effects"].items()
    }
    found = tour.sites(Row("tracing", 1, {}, {"whole": {"effects": whole}}, {}, "live"))
    assert found["state"] == ("last_subject", 1, 50.0)
    assert found["mlp"] == ("further", 1, 25.0)
    assert found["attention"][2] == 0.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab("smoke", Store(tmp_path_factory.mktemp("tour")), Path(__file__).parents[1])


def test_numbers_for_prose_are_those_of_the_rows(lab):
    stops = tour.settings("smoke")
    assert tour.results(lab.store, "smoke") == {}
    learnt, domains = tour.learning(lab, stops), tour.domains(lab, stops)
    edited = many.run(many.Benches(lab), stops.edited)
    traced = tracing.run(lab, stops.traced)
    found = tour.results(lab.store, "smoke")
    assert found["tour.plain.entropy"].value == sum(learnt["as it is"].values["before"]["layers"])
    assert found["tour.woken.entropy"].value > found["tour.plain.entropy"].value
    for name, row in domains.items():
        (first, later), before = row.values["loss"], row.values["before"]
        # of each domain what its own training took off; of the first what the second put back on
        learned = ((before[0] - first[0]) + (first_before(row) - later[1])) / 2
        assert found[f"tour.{name}.learned"].value == pytest.approx(learned, abs=1e-12)
        assert found[f"tour.{name}.forgetting"].value == pytest.approx(first[1] - first[0], abs=1e-12)
    used = [math.exp(nats) for nats in learnt["as it is"].values["before"]["layers"]]
    assert (found["tour.used.least"].value, found["tour.used.most"].value) == (min(used), max(used))
    assert max(used) <= found["tour.memories"].value
    assert found["tour.edit.ES.after"].value == edited.values["after"]["ES"]
    assert found["tour.edit.facts"].value == stops.edited.count
    whole = traced.values["whole"]
    assert found["tour.trace.total"].value == pytest.approx(100 * (whole["clean"] - whole["corrupted"]))
    assert found["tour.trace.facts"].value == stops.traced.facts
    assert found["tour.trace.state"].value == tour.sites(traced)["state"][2]
    rows = {row.digest for row in (*learnt.values(), *domains.values(), edited, traced)}
    assert {number.provenance["digest"] for number in found.values()} == rows
    assert {row.study for row in learnt.values()} == {arms.STUDY}
    assert {row.study for row in domains.values()} == {courses.STUDY}


def first_before(row):
    """Loss of the second domain when its own training begins: after the first one."""
    return row.values["loss"][1][0]
