"""ELLE against its arithmetic: FLOPs by hand, the null, what growth changes, and rows that come out the same twice."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from kemem import claims, evaluation
from kemem.continual import ELLE, Held
from kemem.runs import Row, Store
from kemem.studies import budget, cost, courses, growing
from kemem.studies.lab import Lab
from kemem.training import Domain, Method


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("growing")
    return Lab("smoke", Store(folder / "store"), folder)


@pytest.fixture(scope="module")
def rows(lab: Lab) -> dict[str, Row]:
    return {name: growing.run(lab, s) for name, s in growing.arms("smoke").items()}


def again(lab: Lab, s: courses.Learning) -> dict:
    """Values of a row computed anew beside the model that is there already; how long it took is left out."""
    values = growing._course(lab, s, {})
    return {name: value for name, value in values.items() if name != "seconds"}


class Nothing:
    """Rows that nobody reads."""

    def __len__(self) -> int:
        return 0

    def batch(self, indices):
        raise AssertionError


def row(**values) -> Row:
    return Row("growing", 1, {}, values, {}, "live")


# ---------------------------------------------------------------------- arithmetic
def test_flops_are_those_of_recovery_and_of_learning_at_the_sizes_of_the_time():
    tokens = [{"recovery": 0, "learning": 5}, {"recovery": 3, "learning": 5}, {"recovery": 2, "learning": 5}]
    assert growing.flops([10, 20, 30], tokens) == [50, 50 + 160, 50 + 160 + 210]


def test_flops_of_a_row_by_hand(rows):
    setup = growing.sizes("smoke").base.model.setup
    width, length = setup.width, 48
    block = 4 * width**2 + 3 * width * setup.memories  # query, key, value, output; gate, up, down
    head = setup.vocabulary * width

    def per_token(layers: int, matrices: int) -> int:
        return 6 * matrices + 12 * layers * width * length

    two, three = per_token(2, 2 * block + head), per_token(3, 3 * block + head)
    step = 4 * length
    assert rows["plain"].values["flops"] == [3 * step * two, 6 * step * two]
    assert rows["depth"].values["flops"] == [3 * step * two, 3 * step * two + (3 + 2) * step * three]
    assert rows["depth, not recovered"].values["flops"] == [3 * step * two, 3 * step * (two + three)]
    wider = per_token(2, 2 * (4 * width**2 + 3 * width * (setup.memories + 32)) + head)
    assert rows["memories, not recovered"].values["flops"][1] == 3 * step * (two + wider)
    begun = rows["plain"].values["begun"][0]
    assert begun["per_token"] == cost.flops_per_token(begun["parameters"], 2, width, length)


def test_the_longer_course_takes_as_much_as_growing_in_depth_with_recovery():
    z = growing.sizes("laptop")
    setup, width = z.base.model.setup, z.base.model.setup.width
    block = 4 * width**2 + 3 * width * setup.memories
    added = z.grown["memories"]["memories"]
    assert 3 * width * setup.layers * added == block  # as many parameters

    def per_token(layers: int) -> int:
        return 6 * (layers * block + setup.vocabulary * width) + 12 * layers * width * z.base.length

    learning, recovery = (
        z.base.steps * z.base.rows,
        z.recovery["recovery_steps"] * z.recovery["recovery_rows"],
    )
    rows = [learning + (recovery if place else 0) for place in range(4)]
    deep = sum(count * per_token(setup.layers + place) for place, count in enumerate(rows))
    longer = 4 * z.longer * z.base.rows * per_token(setup.layers)
    assert longer == pytest.approx(deep, rel=0.01)


# ---------------------------------------------------------------------- the null, and what is the same
def test_without_any_part_it_is_the_course_of_plain_training(lab, rows):
    plain = courses.run(lab, replace(growing.sizes("smoke").base, method="ncl"))
    for name in ("before", "loss", "general"):
        assert rows["plain"].values[name] == plain.values[name]
    assert rows["plain"].values["grown"] == {} and rows["plain"].values["misled"] == {}
    assert growing.broken(rows["plain"]) == [0.0]


def test_before_the_first_growth_all_arms_with_the_same_steps_are_one(rows):
    first = {
        name: [line[0] for line in found.values["loss"]]
        for name, found in rows.items()
        if name not in ("plain", "longer")
    }
    assert len(first) == 7 and all(column == first["depth"] for column in first.values())
    assert first["depth"] != [line[0] for line in rows["plain"].values["loss"]]
    for kind in growing.sizes("smoke").grown:
        assert rows[kind].values["grown"] == rows[f"{kind}, not recovered"].values["grown"]
        assert growing.broken(rows[kind]) != growing.broken(rows[f"{kind}, not recovered"])


def test_a_row_comes_out_the_same_twice(lab, rows):
    s = growing.arms("smoke")["depth"]
    found = {name: value for name, value in rows["depth"].values.items() if name != "seconds"}
    assert again(lab, s) == found


# ---------------------------------------------------------------------- what growth changes
def test_memories_keep_the_function_but_for_noise_and_blocks_do_not(lab, rows):
    (noisy,) = rows["memories"].values["grown"].values()
    (deep,) = rows["depth"].values["grown"].values()
    assert 0 < noisy["divergence"] < 0.1 * deep["divergence"]
    s = growing.arms("smoke")["memories, not recovered"]
    (exact,) = again(lab, replace(s, changes=(*s.changes, ("noise", 0.0))))["grown"].values()
    assert exact["logits"] < 1e-10


def test_what_breaks_is_the_rise_of_the_domains_seen():
    loss = [[2.0, 2.5, 9.0], [4.0, 3.0, 9.0], [5.0, 4.5, 9.0]]
    found = row(loss=loss, begun=[{"seen": []}, {"seen": [2.3]}, {"seen": [2.6, 3.5]}])
    assert growing.broken(found) == pytest.approx([0.3, (0.1 + 0.5) / 2])
    assert growing.so_far(found) == pytest.approx([2.0, 2.75, 9.0])


def test_the_wrong_prompt_is_asked_for_and_put_back():
    class Own(ELLE):
        def at(self, model, domain):
            asked.append((self.shown, domain.name))
            return Method().at(model, domain)

    asked: list = []
    losses = iter(range(100))
    rows = Nothing()
    domains = [Domain("a", rows), Domain("b", rows)]
    held = [Held(d.name, rows, rows) for d in domains]
    misled = growing.Misled(lambda model, held: float(next(losses)), held)
    method, model = Own(), nn.Identity()
    assert misled(model, Method(), domains) == [None, None] and not misled.found
    assert misled(model, method, domains) == [None, None] and method.shown == "right"
    assert asked == [("wrong", "a"), ("wrong", "b"), ("none", "a"), ("none", "b")]
    assert misled.found == {"wrong": [[0.0, 1.0]], "none": [[2.0, 3.0]]}
    assert misled(model, Own(prompts=False), domains) == [None, None] and len(misled.found["wrong"]) == 1


def test_rises_by_another_prompt(rows):
    found = rows["depth"]
    ends = [own[-1] for own in found.values["misled"]["none"]]
    assert growing.misled(found, "none") == pytest.approx(
        sum(ends) / 2 - sum(line[-1] for line in found.values["loss"]) / 2
    )
    assert growing.misled(found, "none") != 0 and growing.misled(rows["plain"], "none") is None


# ---------------------------------------------------------------------- the chapter
ROOT = Path(__file__).resolve().parents[1]


def test_lines_quoted_in_the_chapter_stand_in_the_package():
    chapter = (ROOT / "chapters" / f"{growing.CHAPTER}.py").read_text(encoding="utf-8")
    package = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "kemem" / "continual").glob("*.py")
    )
    there = {line.strip() for line in package.splitlines()}
    quoted = [
        line.removeprefix("#").strip()
        for block in re.findall(r"# ```python\n(.*?)# ```", chapter, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(quoted) >= 10 and set(quoted) <= there, set(quoted) - there


def test_published_rows_have_a_counterpart():
    assert growing.PUBLISHED.keys() == growing.COUNTERPART.keys()
    assert set(growing.COUNTERPART.values()) <= {*budget.TRIED, "untouched"}
    published = claims.CLAIMS["das.1"].published
    assert (
        growing.PUBLISHED["DAS"][0] == published["MF1: DAS"]
        and growing.PUBLISHED["NCL"][0] == published["NCL"]
    )
    assert growing.PUBLISHED["DER++"][1] == claims.CLAIMS["das.4"].published["FR: DER++"]


# ---------------------------------------------------------------------- numbers for prose
def test_results_are_means_of_all_rows_or_nothing(lab, rows, tmp_path, monkeypatch):
    assert growing.results(Store(tmp_path / "empty"), "smoke") == {}
    assert growing.results(lab.store, "paper") == {}
    found = growing.results(lab.store, "smoke")
    assert found["growing.plain.average"].value == pytest.approx(courses.course(rows["plain"]).average)
    assert found["growing.depth.flops"].value == rows["depth"].values["flops"][-1] / 1e12
    assert "growing.plain.divergence" not in found and "growing.width.wrong" in found
    assert found["growing.seeds"].value == 1
    monkeypatch.setattr(evaluation, "loss", None)  # nothing is computed
    assert growing.table(lab, "smoke").keys() == growing.grid("smoke").keys()
