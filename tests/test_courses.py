"""Courses over domains against calls of the package written out, and the grids of the comparison on one budget."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kemem import corpora, entropy, models, runs
from kemem.continual import DAS, Held, Probing, Prompt, asked, domains, learn, pooled, specialists
from kemem.continual.importance import Measuring, domain_importance, emax, general_importance, normalised
from kemem.continual.sequence import Mixed
from kemem.corpora import pack
from kemem.memory import Memories
from kemem.objective import Masked, causal
from kemem.runs import Row, Store
from kemem.studies import budget, checkpoints, courses, pretraining
from kemem.studies.courses import Learning
from kemem.studies.lab import Lab
from kemem.studies.setup import Dropped, Setup, objective
from kemem.studies.trials import SQUARE, TRIED, Setting, Tried
from kemem.training import Domain, Method, Recipe, train

ROOT = Path(__file__).resolve().parents[1]
CAUSAL, MASKED = (budget.sizes("smoke", masked=masked) for masked in (False, True))
PACKAGE, PLACE = CAUSAL.base.domains


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    """One store for all: the two models are trained once, and a course that two tests ask for is run once."""
    folder = tmp_path_factory.mktemp("courses")
    return Lab("smoke", Store(folder / "store"), folder, device="cpu")


def loaded(lab: Lab, s: Learning) -> tuple[Any, Any, Any]:
    """A fresh model, its tokenizer and its objective."""
    model, tok, _ = checkpoints.load(lab, s.model, s.step, dtype=s.dtype)
    if s.model.setup.family == "olmo":
        return model, tok, causal
    return model, tok, Masked(tok.mask_token_id, len(tok), special=tuple(sorted(tok.all_special_ids)))


def rows(text: corpora.Corpus, part: str, tok: Any, s: Learning, limit: int, length: int) -> Any:
    return pack(text.part(part), tok, length, limit_tokens=limit)


def by_hand(lab: Lab, s: Learning, method: Any, go: Any = learn, length: int | None = None) -> Any:
    """The course of these settings by calls of the package."""
    model, tok, goal = loaded(lab, s)
    length = length or s.length
    sources = [domains.package("networkx", parts=("validation", "test")), domains.named(PLACE)]
    most = s.steps * s.rows * s.length
    lists = [
        Held(
            each.name,
            rows(each.corpus, "train", tok, s, most, length),
            rows(each.corpus, s.part, tok, s, s.test_tokens, length),
        )
        for each in sources
    ]
    recipe = Recipe(
        steps=s.steps, batch_size=s.rows, learning_rate=s.learning_rate, warmup_steps=round(0.1 * s.steps),
        final_share=1 / s.steps, schedule="linear", weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-6, clip=0.0,
        seed=s.seed,
    )  # fmt: skip
    tasks = {each.name: each.task.limited(*s.examples) for each in sources if each.task is not None}
    ask = asked(tasks, Probing(length=s.asked_length), tok) if s.part == "test" else None
    beside = rows(corpora.corpus(s.model.setup.corpus), s.part, tok, s, s.test_tokens, length)
    return go(model, lists, method, recipe, objective=goal, general=beside, ask=ask)


def own(lab: Lab, s: Learning) -> list[Any]:
    """The domains of a course as it holds them."""
    _, tok, _ = loaded(lab, s)
    return [courses.rows_of(spec, tok, s.length, s) for spec in s.domains]


def same(row: Row, course: Any) -> None:
    for name in ("names", "before", "loss", "general", "task_before", "task", "added", "own"):
        assert row.values[name] == getattr(course, name), name


# ---------------------------------------------------------------------- a row
@pytest.mark.parametrize("method", ["ncl", "das", "one", "pool", "masked das"])
def test_a_row_is_a_call_of_the_package_bit_for_bit(lab, method):
    """With as many steps as it takes to warm up, another seed than 0 and all end tasks."""
    z = MASKED if method.startswith("masked") else CAUSAL
    s = replace(z.base, method=method.split()[-1], steps=6, seed=2, learning_rate=3e-3)
    goal = loaded(lab, s)[2]
    made, go = {
        "ncl": (None, learn), "das": (DAS(objective=goal, seed=2), learn), "one": (Method, specialists),
        "pool": (None, pooled),
    }[s.method]  # fmt: skip
    expected = by_hand(lab, s, made, go)
    row = courses.run(lab, s)
    same(row, expected)
    found = courses.course(row)
    assert found.own == (method == "one") and row.values["names"] == ["networkx", "Sumstan"]
    for name in ("average", "forgetting", "forward_transfer", "learned", "task_average", "task_forgetting"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.learned != 0 and found.task_average is not None
    assert row.values["parameters"] == sum(p.numel() for p in loaded(lab, s)[0].parameters())
    corpus = row.provenance["corpus"]
    assert set(corpus) == {"spec", "digest", "versions"} and "networkx" in corpus["versions"]


def test_rows_leave_room_for_a_prompt(lab):
    s = replace(CAUSAL.base, method="prompt", changes=(("tokens", 20),), part="validation")
    same(courses.run(lab, s), by_hand(lab, s, Prompt(tokens=20), length=s.length - 20))


def test_what_settings_are_chosen_by_is_no_text_of_the_test(lab):
    test = replace(CAUSAL.base)
    trial = replace(test, part="validation")
    _, tok, _ = loaded(lab, test)
    for spec, judged, tried in zip(test.domains, own(lab, test), own(lab, trial), strict=True):
        text = domains.named(spec).corpus
        assert not set(text.part("test")) & set(text.part("validation"))
        expected = rows(text, "validation", tok, trial, trial.test_tokens, trial.length)
        assert torch.equal(tried.test.ids, expected.ids) and not torch.equal(
            tried.test.ids[:1], judged.test.ids[:1]
        )
        assert torch.equal(tried.train.ids, judged.train.ids)
        assert len(judged.train) <= test.steps * test.rows and judged.test.tokens <= test.test_tokens
    found, other = courses.run(lab, trial), courses.run(lab, test)
    same(found, by_hand(lab, trial, None))
    assert found.digest != other.digest and found.values["general"][0] != other.values["general"][0]
    assert found.values["task"] == [[None, None]] * 2 and other.values["task"][0][0] is not None


@pytest.mark.parametrize("z", [CAUSAL, MASKED], ids=["causal", "masked, with dropout"])
def test_who_is_watched_learns_the_same(lab, z):
    plain = replace(z.base, steps=4, part="validation")
    watched, unwatched = courses.run(lab, replace(plain, every=2)).values, courses.run(lab, plain).values
    assert {**watched, "watched": [], "seconds": None} == {**unwatched, "seconds": None}
    seen = watched["watched"]
    assert [(x["domain"], x["step"]) for x in seen] == [
        (name, step) for name in ("networkx", "Sumstan") for step in (0, 2)
    ]
    assert seen[0]["loss"] == watched["before"]
    assert seen[2]["loss"] == [row[0] for row in watched["loss"]]
    losses = [tuple(x["loss"]) for x in seen] + [tuple(row[-1] for row in watched["loss"])]
    assert len(set(losses)) == 5


# ---------------------------------------------------------------------- methods that stand beside the named ones
def test_waking_nothing_is_plain_training(lab):
    s = replace(MASKED.base, part="validation")  # with dropout
    plain, still, woken = (
        courses.run(lab, replace(s, method=name, changes=changes)).values
        for name, changes in (("ncl", ()), ("woken", (("fraction", 0.0),)), ("woken", ()))
    )
    assert still["loss"] == plain["loss"] and still["general"] == plain["general"]
    assert woken["loss"] != plain["loss"] and woken["before"] == plain["before"]


def test_waking_multiplies_memories_that_idle_on_the_domain_to_come(lab):
    s = CAUSAL.base
    model, _, _ = loaded(lab, s)
    first, second = (Domain(each.name, each.train) for each in own(lab, s))
    start = copy.deepcopy(model.state_dict())
    woken = courses.Woken(fraction=0.25, gain=0.8, texts=5)
    for domain in (first, second):  # once before each
        usage = entropy.measure(model, domain.blocks.ids[:5].long(), next_token=False).usage
        factors = entropy.multiplier(usage, 0.25, 0.8)
        assert (factors != 1).sum(-1).tolist() == [10, 10]  # of 40
        expected = {
            layer: Memories(model).keys(layer) * factors[layer][:, None] for layer in range(len(factors))
        }
        woken.before(model, domain)
        for layer, keys in expected.items():
            assert torch.equal(Memories(model).keys(layer), keys)
    moved = {name for name, p in model.state_dict().items() if not torch.equal(p, start[name])}
    assert moved == {f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(2)}


@pytest.mark.parametrize(("by", "z"), [("kl", CAUSAL), ("loss", CAUSAL), ("kl", MASKED), ("loss", MASKED)])
def test_a_stand_in_measures_the_text_of_pretraining_first(lab, by, z, monkeypatch):
    s = replace(z.base, method="das-stand-in", variant=by, changes=(("normalisation", "rank"),))
    model, tok, goal = loaded(lab, s)
    lists = [Domain(each.name, each.train) for each in own(lab, s)]
    general = rows(
        corpora.corpus(s.model.setup.corpus), "train", tok, s, s.steps * s.rows * s.length, s.length
    )
    asked_of: list[tuple[str, Any, Measuring]] = []

    def noted(name: str, function: Any) -> Any:
        def called(model: Any, data: Any, *more: Any, how: Any = None) -> Any:
            how = how or more[-1]
            asked_of.append((name, data, how))
            return function(model, data, *(m for m in more if m is not how), how=how)

        return called

    for name, function in (("general", general_importance), ("domain", domain_importance)):
        monkeypatch.setattr(courses, f"{name}_importance", noted(name, function))
    given = courses.named.Given(s.steps, s.length, goal, s.seed)
    das = courses.method(s, given, general)
    das.before(model, lists[0])
    (kind, data, how), *_ = asked_of
    assert kind == ("general" if by == "kl" else "domain") and data is general
    if by == "kl":
        first = general_importance(model, general, how=how)
    else:
        first = domain_importance(model, general, goal, how)
    first = normalised(first, "rank")
    for site, known in das.known.tensors().items():
        assert torch.equal(known, first.tensors()[site])
    plain = DAS(objective=goal, normalisation="rank")
    plain.before(model, lists[0])
    assert not torch.equal(das.known.intermediate, plain.known.intermediate)
    expected = first
    for place, domain in enumerate(lists):
        das.after(model, domain)
        das.before(model, domain)  # asks for nothing after the first
        assert len(asked_of) == place + 2
        kind, data, how = asked_of[-1]
        assert kind == "domain" and data is domain.blocks
        expected = emax(expected, normalised(domain_importance(model, domain.blocks, goal, how), "rank"))
        assert torch.equal(das.known.intermediate, expected.intermediate)
    assert len({how.seed for _, _, how in asked_of}) == 3


def test_a_stand_in_reads_as_many_rows_as_are_set(lab, monkeypatch):
    s = replace(CAUSAL.base, method="das-stand-in", variant="loss", changes=(("samples", 3),))
    model, _, goal = loaded(lab, s)
    read: list[int] = []
    measure = domain_importance

    def noted(model: Any, data: Any, objective: Any, how: Measuring) -> Any:
        read.append(len(how.rows(len(data))))
        return measure(model, data, objective, how)

    monkeypatch.setattr(courses, "domain_importance", noted)
    domain = Domain("first", own(lab, s)[0].train)
    das = courses.method(s, courses.named.Given(s.steps, s.length, goal), domain.blocks)
    das.before(model, domain)
    das.after(model, domain)
    assert read == [3, 3]


def test_adapters_of_its_own_keep_what_a_domain_had(lab):
    changes = (("reduction", 4),)
    alone, shared = (
        courses.course(courses.run(lab, budget.one(CAUSAL, name, Setting(3e-2, changes), part="validation")))
        for name in ("adapters-one", "adapter-sequential")
    )
    assert [row[-1] for row in alone.loss] == [row[i] for i, row in enumerate(alone.loss)]
    assert alone.forgetting == 0 and not alone.own
    assert shared.loss[0][1] != shared.loss[0][0]
    assert alone.added == [alone.added[0]] * 2 and shared.added == [alone.added[0], 0]


# ---------------------------------------------------------------------- every method
NAMES = [
    *(("causal", name) for name in (*TRIED, *SQUARE)),
    *(("masked", name) for name in budget.sizes("laptop", masked=True).names),
]


def made(z: budget.Budget, s: Learning) -> Method:
    """The method of a row."""
    goal = Masked(4, 512) if z is MASKED else causal
    return courses.method(s, courses.named.Given(s.steps, s.length, goal, s.seed, 24), Mixed([]))


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_every_method_runs_as_it_is_tried(lab, kind, name):
    z, tried = MASKED if kind == "masked" else CAUSAL, {**TRIED, **SQUARE}[name]
    of = tried.trials()[-1]
    s = budget.one(z, name, of, part="validation")
    assert s.learning_rate == of.rate and s.model is z.base.model
    method = made(z, s)
    for key, value in of.changes:
        assert getattr(method, key) == value
    values = courses.run(lab, s).values
    losses = [x for row in values["loss"] for x in row]
    assert len(losses) == 4 and all(map(math.isfinite, losses + values["general"]))
    assert losses != [x for x in values["before"] for _ in range(2)]


def test_every_method_has_as_many_trials():
    for tried in (*TRIED.values(), *SQUARE.values()):
        trials = tried.trials()
        assert len(set(trials)) == 4 == len(trials), tried.label
        assert {of.rate for of in trials} == set(tried.rates)
        assert {dict(of.changes).get(tried.setting) for of in trials} == set(tried.values or (None,))
    assert len({tried.label for tried in (*TRIED.values(), *SQUARE.values())}) == len(TRIED) + len(SQUARE)
    for z in (budget.sizes("laptop"), budget.sizes("laptop", masked=True)):
        count = [sum(name == other for other, _ in budget.tuning(z)) for name in (*z.names, *z.square)]
        assert set(count) == {4}


def test_what_of_a_name_is_told_to_the_method():
    for name, by in (("ewc, unit", "unit"), ("ewc, parameter", "parameter"), ("fisher-mask, unit", "unit")):
        method = made(CAUSAL, budget.one(CAUSAL, name, SQUARE[name].trials()[0]))
        assert method.by == by and method.samples == CAUSAL.measured
        assert type(method).__name__ == ("EWC" if name.startswith("ewc") else "FisherMask")
    assert made(CAUSAL, budget.one(CAUSAL, "das", Setting(1e-3))).samples == CAUSAL.measured
    assert made(CAUSAL, budget.one(CAUSAL, "adapters-one", Setting(1e-3))).per_domain
    assert not made(CAUSAL, budget.one(CAUSAL, "adapter-sequential", Setting(1e-3))).per_domain
    assert made(CAUSAL, budget.one(CAUSAL, "hat-all", Setting(1e-3))).evaluate == "all"


# ---------------------------------------------------------------------- what is chosen, and the grids
def row_of(loss: list[list[float]], **more: Any) -> Row:
    names = [str(i) for i in range(len(loss))]
    values = {
        "names": names, "before": [9.0] * len(loss), "loss": loss, "general": [], "task_before": [], "task": [],
        "added": [], "own": False, "seconds": [], **more,
    }  # fmt: skip
    return Row(courses.STUDY, courses.VERSION, {}, values, {}, "live")


def test_the_lowest_loss_at_the_end_is_chosen():
    a, b, c = Setting(1e-3), Setting(2e-3), Setting(1e-3, (("strength", 5.0),))
    found = budget.chosen(
        {
            ("ncl", a): row_of([[1.0, 5.0], [1.0, 5.0]]),  # lowest when learned, not at the end
            ("ncl", b): row_of([[4.0, 4.0], [9.0, 5.0]]),
            ("ewc", c): row_of([[1.0, 4.0], [1.0, 3.0]]),
            ("ewc", a): row_of([[2.0, 3.0], [1.0, 4.0]]),  # as low: the first stays
            ("one", a): row_of([[3.0, 1.0], [1.0, 3.0]], own=True),
            ("one", b): row_of([[2.0, 9.0], [9.0, 2.0]], own=True),
        }
    )
    assert found == {"ncl": b, "ewc": c, "one": b}


def test_settings_are_there_when_all_trials_are(tmp_path):
    z = CAUSAL
    store, trials = Store(tmp_path), budget.tuning(z)
    for number, s in enumerate(trials.values()):
        assert budget.settings(store, "smoke") == budget.finished(store, trials) == {}
        loss = [[float(9 - number)] * 2] * 2
        store.row(courses.STUDY, courses.VERSION, s, lambda _, loss=loss: row_of(loss).values)
    last = dict(trials.keys())  # the later, the lower
    assert budget.settings(store, "smoke") == last and set(last) == {*z.names, *z.square}
    assert budget.settings(store, "gpu") == {}


def test_a_search_goes_on_beyond_the_end_that_is_best():
    tried = Tried("", "strength", (1.0, 10.0), (3e-4, 1e-3), further=(0.1, None))
    assert tried.beyond(tried.at(3e-4, 1.0)) == [tried.at(1e-4, 1.0), tried.at(3e-4, 0.1)]
    assert tried.beyond(tried.at(1e-3, 10.0)) == [tried.at(3e-3, 10.0)]
    alone = Tried("", rates=(6e-4, 1e-3, 2e-3))
    assert [alone.beyond(Setting(rate)) for rate in alone.rates] == [[Setting(3e-4)], [], [Setting(3e-3)]]
    for tried in (*TRIED.values(), *SQUARE.values()):
        for of in tried.trials():
            assert not set(tried.beyond(of)) & set(tried.trials()) and len(tried.beyond(of)) <= 2


def test_settings_wait_for_the_trials_beyond(tmp_path, monkeypatch):
    z = replace(CAUSAL, names=("ncl", "ewc"), square=("fisher-mask, unit",), tried=4)
    monkeypatch.setattr(budget, "sizes", lambda scale, masked=False: z)
    store, trials = Store(tmp_path), budget.tuning(z)
    low = {"ncl": Setting(2e-4), "ewc": Setting(1e-3, (("strength", 5000.0),))}
    low["fisher-mask, unit"] = Setting(3e-4, (("strength", 0.8),))

    def write(s: Learning, loss: float) -> Row:
        return store.row(courses.STUDY, courses.VERSION, s, lambda _: row_of([[loss] * 2] * 2).values)

    first = {key: write(s, 1.0 if low[key[0]] == key[1] else 2.0) for key, s in trials.items()}
    further = budget.beyond(z, first)
    assert set(further) == {
        ("ewc", Setting(3e-3, (("strength", 5000.0),))), ("ewc", Setting(1e-3, (("strength", 500.0),))),
        ("fisher-mask, unit", Setting(1e-4, (("strength", 0.8),))),
        ("fisher-mask, unit", Setting(3e-4, (("strength", 0.5),))),
    }  # fmt: skip
    assert all(s == budget.one(z, name, of, part="validation") for (name, of), s in further.items())
    assert budget.trials(store, "smoke") == {} == budget.settings(store, "smoke")
    best = ("ewc", Setting(1e-3, (("strength", 500.0),)))
    for key, s in further.items():
        write(s, 0.5 if key == best else 3.0)
    assert set(budget.trials(store, "smoke")) == {*trials, *further}
    assert budget.settings(store, "smoke") == {**low, "ewc": best[1]}
    assert budget.beyond(replace(z, tried=2), first) == {}


def test_trials_are_of_one_seed_in_one_order_on_text_of_no_test():
    for z in (CAUSAL, MASKED, budget.sizes("laptop"), budget.sizes("laptop", masked=True)):
        trials = budget.tuning(z)
        assert {s.part for s in trials.values()} == {"validation"} and {s.seed for s in trials.values()} == {
            0
        }
        assert {s.domains for s in trials.values()} == {tuple(z.base.domains[i] for i in z.orders[0])}
        assert len({runs.digest("courses", 1, s) for s in trials.values()}) == len(trials)
        for (name, of), s in trials.items():
            assert s == budget.one(z, name, of, part="validation")


def chosen_first(z: budget.Budget) -> dict[str, Setting]:
    """Of each method another than the first trial."""
    return {name: {**TRIED, **SQUARE}[name].trials()[1] for name in (*z.names, *z.square)}


@pytest.mark.parametrize("z", [budget.sizes("laptop"), budget.sizes("laptop", masked=True), CAUSAL, MASKED])
def test_grids_hold_every_arm_with_every_seed(z):
    of = chosen_first(z)
    found = budget.contest(z, of)
    assert set(found) == {(n, o, k) for n in z.names for o in range(len(z.orders)) for k in z.seeds}
    for (name, order, seed), s in found.items():
        assert s == budget.one(z, name, of[name], seed=seed, order=order) and s.part == "test"
        assert s.domains == tuple(z.base.domains[i] for i in z.orders[order])
    arms = {
        budget.parts: {*z.parts, "stand-in-kl", "stand-in-loss"}, budget.defects: set(z.defects),
        budget.importances: {*z.importances, *(f"{x:g}" for x in z.shares), *z.normalisations},
        budget.square: set(z.square), budget.starts: {f"{share:g}" for share in z.stages},
    }  # fmt: skip
    for grid, names in arms.items():
        rows = grid(z, of)
        assert set(rows) == {(name, 0, seed) for name in names for seed in z.seeds}, grid
        assert len({runs.digest("courses", 1, s) for s in rows.values()}) == len(rows)
        for (_, _, seed), s in rows.items():
            assert (s.seed, s.part, s.domains) == (seed, "test", z.base.domains)
            assert s.step in s.model.steps
    assert len({s.step for s in budget.starts(z, of).values()}) == len(z.stages)


def test_arms_of_das_are_das_as_chosen_but_for_one_thing():
    z = replace(CAUSAL, normalisations=("rank", "paper_abs"), shares=(0.5,))
    of = {**chosen_first(z), "das": Setting(5e-4, (("normalisation", "rank"),))}
    whole = made(z, budget.one(z, "das", of["das"]))
    for grid in (budget.parts, budget.importances):
        for (name, _, _), s in grid(z, of).items():
            assert s.learning_rate == 5e-4
            arm = made(z, s)
            differ = {
                key for key in ("normalisation", "importance", "samples", "contrast", "soft_mask", "initialisation")
                if getattr(arm, key) != getattr(whole, key)
            }  # fmt: skip
            expected = {
                "without-contrast": {"contrast"}, "stand-in-kl": {"importance"}, "stand-in-loss": {"importance"},
                "magnitude": {"importance"}, "0.5": {"samples"}, "rank": set(), "paper_abs": {"normalisation"},
            }  # fmt: skip
            assert differ == expected[name], name


DEFECTS = budget.sizes("laptop", masked=True).defects


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_there_whatever_was_chosen(name):
    z = replace(CAUSAL, defects=(name,))
    of = {"das": Setting(5e-4, (("normalisation", "rank"),))}
    (s,) = budget.defects(z, of).values()
    arm = made(z, s)
    everything = name == "as-released"
    assert arm.normalisation == ("paper_abs" if name == "absolute" or everything else "rank")
    assert arm.placement == ("gradient" if name == "gradient" or everything else "update")
    for switch, on in vars(arm.released).items():
        assert on == (switch == name or everything), switch


def test_plugins_are_cpt_four_times():
    z = budget.sizes("laptop")
    found = budget.plugins(z, chosen_first(z))
    assert len(found) == 4 * len(z.seeds)
    settings = {name: dict(s.changes) for (name, _, _), s in found.items()}
    assert settings == {
        f"{placement}, {said}": {"placement": placement, "task_masks": masks}
        for placement in ("parallel", "sequential")
        for said, masks in (("masks", True), ("no masks", False))
    }
    assert {s.learning_rate for s in found.values()} == {chosen_first(z)["cpt"].rate}
    assert budget.plugins(CAUSAL, {}) == {}


def test_a_table_has_the_rows_of_its_grid(lab, monkeypatch):
    monkeypatch.setenv("KEMEM_WORKERS", "1")
    s = budget.one(CAUSAL, "ncl", Setting(1e-3), part="validation")
    grid = {"first": s, "second": replace(s, seed=5)}
    found = budget.table(lab, grid)
    assert list(found) == list(grid) and found["second"].values["loss"] != found["first"].values["loss"]
    for name, row in found.items():
        assert row.digest == runs.digest(courses.STUDY, courses.VERSION, grid[name])
    assert {name: row.values for name, row in budget.finished(lab.store, grid).items()} == {
        name: row.values for name, row in found.items()
    }


# ---------------------------------------------------------------------- setups with dropout
SIZES: dict[str, Any] = {
    "corpus": "world:people=20,documents=300", "vocabulary": 320, "layers": 1, "width": 8, "memories": 12, "heads": 2,
    "length": 32, "rows": 4, "steps": 6, "learning_rate": 1e-2, "weight_decay": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_dropout_of_a_setup_reaches_the_model(family):
    ids = torch.arange(4, 20)[None]
    for setup, drops in ((Setup(**SIZES, family=family), False), (Dropped(**SIZES, family=family), True)):
        model = models.build(setup.shape(320)).train()
        first, second = (model(input_ids=ids).logits for _ in range(2))
        assert torch.equal(first, second) != drops
        rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == {0.1 if drops else 0.0}
    assert Dropped(**SIZES, dropout=0.3).shape(320).dropout == 0.3


def test_the_objective_is_that_of_the_family(lab):
    model, tok, _ = loaded(lab, MASKED.base)
    goal = objective(MASKED.base.model.setup, tok)
    assert isinstance(goal, Masked) and (goal.mask_id, goal.vocabulary) == (tok.mask_token_id, len(tok))
    assert set(goal.special) == set(tok.all_special_ids) and goal.special == tuple(sorted(set(goal.special)))
    assert model.config.vocab_size == len(tok) and tok.convert_ids_to_tokens(goal.mask_id) == tok.mask_token
    assert objective(CAUSAL.base.model.setup, tok) is causal


def test_setups_without_dropout_keep_their_rows():
    """The model that is shipped is found by its digest: a field more would hide it."""
    recipe = json.loads((ROOT / "records/checkpoints/pretraining-laptop/recipe.json").read_text())
    assert (
        runs.digest(pretraining.STUDY, pretraining.VERSION, pretraining.settings("laptop"))
        == recipe["digest"]
    )
    plain, dropped = (runs.canonical(kind(**SIZES)) for kind in (Setup, Dropped))
    assert dropped == {**plain, "dropout": 0.1}


def test_a_masked_model_is_trained_by_its_own_objective(lab):
    """Chapter 02's training of it, by hand."""
    s = MASKED.base.model
    model, tok, goal = loaded(lab, MASKED.base)
    fresh = models.build(s.setup.shape(len(tok)), tok, seed=s.setup.seed).to(torch.float64)
    data = pack(corpora.corpus(s.setup.corpus).part("train"), tok, s.setup.length)
    train(fresh, data, s.setup.recipe(s.steps), objective=goal)
    for name, p in fresh.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name
