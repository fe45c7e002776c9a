"""Methods by name: each is made as its own class would be, and what it cannot be is refused with what it can."""

import json
from dataclasses import fields, replace

import pytest
from conftest import tiny, tokens

from kemem.continual import named
from kemem.continual.adapters import Adapter
from kemem.continual.cpt import CPT
from kemem.continual.das import DAS
from kemem.continual.elle import ELLE
from kemem.continual.ewc import EWC
from kemem.continual.hat import HAT
from kemem.continual.importance import Released
from kemem.continual.named import (
    IMPORTANCES,
    LEARNERS,
    OF_A_RUN,
    SCHEDULES,
    Given,
    available,
    learner,
    length,
    method,
    settings_of,
    valued,
)
from kemem.continual.prompts import Prompt
from kemem.continual.pruning import AccumulatedGradient, LotteryTicket, Magnitude
from kemem.continual.supsup import SupSup
from kemem.errors import BadInput
from kemem.objective import Masked, causal
from kemem.training import Domain, Method, Recipe, train

NAMES = [
    "ncl", "one", "pool", "ewc", "kd", "replay", "derpp", "hat", "hat-all", "hat-adapter", "supsup",
    "adapter-sequential", "adapter-parallel", "prompt", "lora", "demix", "bcl", "classic", "cpt", "elle", "das",
]  # fmt: skip
HIDE = Masked(mask_id=4, vocabulary=61)
RUN = Given(steps=12, context=512, objective=HIDE, seed=7, width=48)


def test_all_names_are_there_and_nothing_else():
    assert list(LEARNERS) == NAMES
    assert {name for name in NAMES if LEARNERS[name].schedule != "sequence"} == {"one", "pool"}
    assert {LEARNERS[name].schedule for name in NAMES} == set(SCHEDULES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_its_class_with_what_the_run_tells_it(name):
    made, again = method(name, RUN), method(name, RUN)
    assert type(made) is LEARNERS[name].kind and made is not again
    told = {"steps": 12, "objective": HIDE, "seed": 7}
    known = {field.name for field in fields(made) if field.init} if type(made) is not Method else set()
    for key in known & set(OF_A_RUN):
        assert getattr(made, key) == told[key], key
    usual = LEARNERS[name].settings(RUN)
    for key in known - set(OF_A_RUN) - {"others"}:
        assert getattr(made, key) == usual.get(key, learner(name).names()[key]), key


def test_some_by_hand():
    found = method("adapter-parallel", RUN)
    assert isinstance(found, Adapter) and (found.placement, found.reduction) == ("parallel", 16)
    assert method("adapter-sequential", RUN).placement == "sequential"
    assert isinstance(method("hat-all", RUN), HAT) and method("hat-all", RUN).evaluate == "all"
    assert method("hat", RUN).evaluate == "mask"
    assert isinstance(found := method("elle", RUN), ELLE) and (found.blocks, found.recovery_steps) == (1, 2)
    assert method("elle", replace(RUN, steps=2)).recovery_steps == 1
    assert isinstance(found := method("prompt", RUN), Prompt) and found.tokens == 100
    assert method("prompt", replace(RUN, context=64)).tokens == 16
    assert method("ewc", RUN, strength=2.0).strength == 2.0 != EWC().strength


@pytest.mark.parametrize(
    "name", ["hat-adapter", "adapter-sequential", "adapter-parallel", "demix", "bcl", "classic"]
)
def test_adapters_have_a_unit_in_the_narrowest_model(name):
    """16 as in the paper, less where the model is narrower than that."""
    widths = {0: 16, 4: 4, 12: 12, 16: 16, 768: 16}
    assert {w: method(name, replace(RUN, width=w)).reduction for w in widths} == widths
    assert method(name, RUN, reduction=3).reduction == 3
    rows = type(
        "Rows",
        (),
        {"__len__": lambda _: 4, "batch": lambda _, i: dict.fromkeys(("input_ids", "labels"), ids[i])},
    )()
    ids = tokens(4, 8)
    made = method(name, Given(steps=1, context=64, width=4))
    net = tiny("olmo", width=4, heads=1, layers=1)
    train(net, Domain("a", rows), Recipe(steps=1, batch_size=2, learning_rate=1e-2), made)


# ---------------------------------------------------------------------- variants and importances
def test_variants_of_das_are_its_ablations_and_defects():
    found = learner("das").variants
    assert {
        "without-soft-mask",
        "random",
        "without-initialisation",
        "without-contrast",
        "domain-specific",
    } < set(found)
    assert {"absolute", "gradient", "as-released", *(f.name for f in fields(Released))} < set(found)
    assert method("das", RUN, variant="without-soft-mask").soft_mask is False
    assert method("das", RUN, variant="random").importance == "random"
    assert method("das", RUN, variant="signed").released == Released(signed=True)
    released = method("das", RUN, variant="as-released")
    assert (released.normalisation, released.placement) == ("paper_abs", "gradient")
    assert all(getattr(released.released, f.name) for f in fields(Released))
    assert method("das", RUN, variant="without-contrast", weight=0.5).weight == 0.5
    assert (
        method("das", RUN, variant="without-contrast", contrast="domain").contrast == "domain"
    )  # what is asked wins
    for variant in found:
        assert isinstance(method("das", RUN, variant=variant), DAS)


def test_importances_of_das():
    kinds = {"magnitude": Magnitude, "gradient": AccumulatedGradient, "lottery": LotteryTicket}
    assert set(IMPORTANCES) == set(kinds)
    for name, kind in kinds.items():
        made = method("das", RUN, importance=name)
        assert isinstance(made.importance, kind) and kind.__name__ in settings_of(made)["importance"]
    assert method("das", RUN, importance="gradient").importance.objective == HIDE
    ticket = method("das", RUN, importance="lottery").importance
    assert (ticket.objective, ticket.seed) == (HIDE, 7)
    for name in ("own", "random"):
        assert method("das", RUN, importance=name).importance == name
    with pytest.raises(
        BadInput, match="an importance of own, random, magnitude, gradient, lottery; got 'size'"
    ):
        method("das", RUN, importance="size")


# ---------------------------------------------------------------------- length
def test_length_is_that_of_the_paper_or_what_the_context_leaves():
    for context, row in {1 << 20: 164, 512: 164, 164: 164, 163: 163, 64: 64, 2: 2}.items():
        assert length("das", replace(RUN, context=context)) == row
    assert available("das", RUN) == 512
    # the prompt stands in the context too: 100 of it, or a quarter
    for context, row in {512: 164, 264: 164, 200: 150, 64: 48}.items():
        assert length("prompt", replace(RUN, context=context)) == row, context
    assert available("prompt", RUN) == 412 and available("prompt", RUN, tokens=12) == 500
    assert length("prompt", replace(RUN, context=64), tokens=60) == 4
    for name, context, more in (("ncl", 1, {}), ("prompt", 64, {"tokens": 63})):
        with pytest.raises(BadInput, match=f"room for text beside {name}; got {context} tokens"):
            length(name, replace(RUN, context=context), **more)


# ---------------------------------------------------------------------- settings
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_typed_as_it_is_shown_is_that_setting(name):
    made, plain = method(name, RUN), learner(name).plain()
    assert not set(plain) & {*OF_A_RUN, "others"}
    for key in plain:
        value = getattr(made, key)
        typed = valued(name, key, str(value))
        assert typed == value and type(typed) is type(value), key
    json.dumps(settings_of(made))
    own = {key: value for key, value in settings_of(made).items() if key in plain}
    assert settings_of(method(name, RUN, **own)) == settings_of(made)


@pytest.mark.parametrize(
    ("name", "key", "text", "value"),
    [
        ("das", "weight", "3", 3.0), ("das", "weight", "5e-1", 0.5), ("das", "soft_mask", "False", False),
        ("das", "soft_mask", "true", True), ("das", "samples", "20", 20), ("das", "samples", "0.1", 0.1),
        ("das", "normalisation", "rank", "rank"), ("lora", "rank", "4", 4), ("elle", "blocks", "2", 2),
        ("elle", "blocks", "2,1,0", "2,1,0"), ("replay", "share", "0", 0.0), ("ewc", "strength", "+1e3", 1000.0),
        ("hat-adapter", "reduction", "8", 8), ("bcl", "reduction", "-8", -8),
    ],
)  # fmt: skip
def test_values_have_the_kind_that_the_setting_is_declared_with(name, key, text, value):
    found = valued(name, key, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "key", "text", "said"),
    [
        ("das", "weight", "much", "expected weight of das to be a number; got 'much'"),
        ("das", "weight", "nan", "to be a number; got 'nan'"),
        ("das", "weight", "inf", "to be a number; got 'inf'"),
        ("das", "samples", "many", "to be a number; got 'many'"),
        ("das", "soft_mask", "1", "expected soft_mask of das to be true or false; got '1'"),
        ("lora", "rank", "8.5", "expected rank of lora to be a whole number; got '8.5'"),
        ("lora", "rank", "--8", "to be a whole number; got '--8'"),
        (
            "lora",
            "rang",
            "8",
            "expected a setting of lora, one of rank, alpha, parts, per_domain; got 'rang'",
        ),
        ("ncl", "rank", "8", "expected a setting of ncl, one of none; got 'rank'"),
        ("das", "seed", "8", "got 'seed'"),
        ("hat", "steps", "8", "got 'steps'"),
        ("das", "released", "signed", "got 'released'"),
        ("das", "others", "x", "got 'others'"),
    ],
)
def test_what_is_no_value_is_refused(name, key, text, said):
    with pytest.raises(BadInput, match=said.replace("(", r"\(")):
        valued(name, key, text)


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(BadInput, match=f"one of {', '.join(NAMES)}; got 'gem'"):
        learner("gem")
    with pytest.raises(
        BadInput, match=r"a variant of das, one of without-soft-mask, random, .*; got 'without'"
    ):
        method("das", RUN, variant="without")
    with pytest.raises(BadInput, match="a variant of ewc, none, for it has no variants; got 'random'"):
        method("ewc", RUN, variant="random")
    with pytest.raises(BadInput, match="settings of kd, strength, temperature, of; got warmth; leave it out"):
        method("kd", RUN, warmth=3)
    with pytest.raises(BadInput, match="settings of pool, of which it has none; got share"):
        method("pool", RUN, share=0.1)


def test_what_is_told_of_a_method_are_all_its_settings():
    found = settings_of(method("das", RUN, weight=0.25))
    assert (
        found["weight"] == 0.25
        and found["seed"] == 7
        and found["released"].startswith("Released(signed=False")
    )
    assert "objective" not in found and "others" not in found and "known" not in found
    assert settings_of(Method()) == {}
    assert settings_of(method("cpt", RUN)) == {
        field.name: getattr(CPT(steps=12, seed=7), field.name) for field in fields(CPT) if field.init
    }
    assert settings_of(method("supsup", RUN)) == {"start": SupSup().start}
    assert named.Given(1, 2).objective == causal
