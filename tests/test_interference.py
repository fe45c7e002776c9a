"""Why plain training forgets: groups of parameters, derivatives and forecasts against autograd and exact cases."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import FAMILIES, tiny, tokens
from torch import nn

from kemem import evaluation
from kemem.continual import Held
from kemem.objective import causal
from kemem.runs import Store
from kemem.studies import budget, courses, interference
from kemem.studies.lab import Lab
from kemem.studies.landscape import (
    KINDS,
    OUTSIDE,
    Forecast,
    between,
    cosines,
    curvature,
    gradient,
    halves,
    holding,
    kinds,
    layers,
    slopes,
    weights_of,
)
from kemem.studies.trials import Tried

ROOT = Path(__file__).resolve().parents[1]


class Rows:
    """Rows of given tokens."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.ids[indices].clone()}


TEXT = Rows(tokens(5, 8))


def drawn(model: nn.Module, size: float = 0.02, seed: int = 5) -> dict[str, torch.Tensor]:
    """A random direction in the space of the model's parameters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in model.named_parameters()
    }


def moved(model: nn.Module, direction: dict[str, torch.Tensor], far: float) -> dict[str, torch.Tensor]:
    return {name: p.detach() + far * direction[name] for name, p in model.named_parameters()}


def dot(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum((a[name] * b[name]).sum().item() for name in a)


# ---------------------------------------------------------------------- groups
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_hold_every_parameter_once(family):
    model = tiny(family)
    every = [name for name, _ in model.named_parameters()]
    for groups in (kinds(model), layers(model)):
        assert sorted(name for names in groups.values() for name in names) == sorted(every)
        assert all(groups.values())
    assert set(kinds(model)) <= set(KINDS) and {"embeddings", "attention", "FFN keys", "FFN values"} <= set(
        kinds(model)
    )
    assert list(layers(model)) == ["layer 0", "layer 1", OUTSIDE]


@pytest.mark.parametrize(
    ("family", "where"),
    [
        ("olmo", {
            "model.embed_tokens.weight": "embeddings", "lm_head.weight": "embeddings",
            "model.layers.1.self_attn.o_proj.weight": "attention", "model.layers.0.mlp.gate_proj.weight": "FFN keys",
            "model.layers.0.mlp.up_proj.weight": "FFN keys", "model.layers.1.mlp.down_proj.weight": "FFN values",
        }),
        ("gpt2", {
            "transformer.wte.weight": "embeddings", "transformer.wpe.weight": "embeddings",
            "transformer.h.0.attn.c_attn.bias": "attention", "transformer.h.1.mlp.c_fc.bias": "FFN keys",
            "transformer.h.1.mlp.c_proj.weight": "FFN values", "transformer.h.0.attn.c_proj.weight": "attention",
            "transformer.ln_f.weight": "norms and head", "transformer.h.0.ln_1.bias": "norms and head",
        }),
        ("roberta", {
            "roberta.embeddings.position_embeddings.weight": "embeddings",
            "roberta.embeddings.LayerNorm.weight": "norms and head",
            "roberta.encoder.layer.0.attention.output.dense.weight": "attention",
            "roberta.encoder.layer.0.intermediate.dense.weight": "FFN keys",
            "roberta.encoder.layer.1.output.dense.bias": "FFN values",
            "roberta.encoder.layer.1.output.LayerNorm.weight": "norms and head",
            "lm_head.dense.weight": "norms and head",
        }),
    ],
)  # fmt: skip
def test_each_parameter_is_of_its_kind(family, where):
    found = {name: kind for kind, names in kinds(tiny(family)).items() for name in names}
    assert {name: found[name] for name in where} == where


def test_each_layer_has_all_that_stands_in_it():
    found = layers(tiny("olmo", layers=11))
    sizes = {len(names) for group, names in found.items() if group != OUTSIDE}
    assert sizes == {7} and found[OUTSIDE] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert all(f"layers.{i}." in name for i in range(11) for name in found[f"layer {i}"])


def test_an_output_that_is_the_embedding_is_one_parameter():
    model = tiny("olmo", tie_word_embeddings=True)
    assert kinds(model)["embeddings"] == ["model.embed_tokens.weight"]
    assert "norms and head" not in kinds(model), "OLMo's norms have no parameters"


@pytest.mark.parametrize("family", ["olmo", "gpt2", "roberta"])
def test_putting_back_every_group_is_the_old_model(family):
    model = tiny(family)
    old, loss = weights_of(model), evaluation.loss(model, TEXT)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(moved(model, drawn(model, 0.3), 1.0)[name])
    new, risen = weights_of(model), evaluation.loss(model, TEXT)
    assert risen != loss
    for groups in (kinds(model), layers(model)):
        with holding(model, {name: old[name] for names in groups.values() for name in names}):
            assert evaluation.loss(model, TEXT) == loss
        assert all(torch.equal(p, new[name]) for name, p in model.named_parameters())
        for names in groups.values():
            with holding(model, {name: old[name] for name in names}):
                kept = weights_of(model)
            assert all(torch.equal(kept[n], old[n] if n in names else new[n]) for n in kept)


def test_weights_are_given_back_after_a_failure():
    model = tiny("olmo")
    old = weights_of(model)
    with pytest.raises(ZeroDivisionError), holding(model, moved(model, drawn(model), 1.0)):
        raise ZeroDivisionError
    assert all(torch.equal(p, old[name]) for name, p in model.named_parameters())


def test_a_line_has_its_ends():
    model = tiny("gpt2")
    a, b = weights_of(model), moved(model, drawn(model), 1.0)
    for share, end in ((0.0, a), (1.0, b)):
        assert all(torch.equal(tensor, end[name]) for name, tensor in between(a, b, share).items())
    middle = between(a, b, 0.5)
    assert all(torch.allclose(middle[name], (a[name] + b[name]) / 2) for name in a)


# ---------------------------------------------------------------------- derivatives
@pytest.mark.parametrize(("family", "exact"), [("olmo", 1e-5), ("gpt2", 1e-9)])
def test_gradients_and_their_cosines_are_those_written_out(family, exact):
    """OLMo's norms compute in float32 whatever the model's dtype."""
    model = tiny(family, dtype=torch.float64).train()
    halves_ = []
    for ids in (TEXT.ids[0::2], TEXT.ids[1::2]):
        model.zero_grad()
        scores = model.eval()(input_ids=ids).logits[:, :-1].log_softmax(-1)
        (-scores.gather(2, ids[:, 1:, None]).mean()).backward()
        halves_.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.train()
    found = halves(model, TEXT)
    assert model.training
    for own, wanted in zip(found, halves_, strict=True):
        assert all(torch.allclose(own[name], wanted[name], rtol=exact, atol=exact) for name in wanted)
    for names in kinds(model).values():
        u, v = (torch.cat([half[name].flatten() for name in names]) for half in halves_)
        assert cosines([found], names)[0][0] == pytest.approx(
            (u @ v / u.norm() / v.norm()).item(), rel=exact, abs=exact
        )
    whole, parts = gradient(model, TEXT), [gradient(model, TEXT, of=[row]) for row in range(5)]
    assert all(torch.allclose(whole[n], sum(p[n] for p in parts) / 5, atol=exact) for n in whole)


def test_cosines_of_different_texts_are_means_over_halves():
    axes = [{"w": torch.tensor(v)} for v in ([1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 1.0])]
    table = cosines([(axes[0], axes[1]), (axes[2], axes[3])], ["w"])
    half = 0.5**0.5
    assert table[0][0] == pytest.approx(0.0) and table[1][1] == pytest.approx(0.0, abs=1e-12)
    for found in (table[0][1], table[1][0]):
        assert found == pytest.approx((half - half + half + half) / 4)


@pytest.mark.parametrize(
    ("family", "far", "near"), [("olmo", 0.1, 0.02), ("gpt2", 1e-3, 1e-4), ("roberta", 1e-3, 1e-4)]
)
def test_slope_and_curvature_are_differences_of_the_loss(family, far, near):
    model = tiny(family, dtype=torch.float64)
    d = drawn(model)
    each = slopes(model, TEXT, d)
    assert each.mean().item() == pytest.approx(dot(gradient(model, TEXT), d), rel=near / 10)
    one = Rows(TEXT.ids[3:4])
    up, down = (model_loss(model, one, moved(model, d, t)) for t in (far, -far))
    assert each[3].item() == pytest.approx((up - down) / (2 * far), rel=near)
    gradients = []
    for t in (far, -far):
        with holding(model, moved(model, d, t)):
            gradients.append(gradient(model, TEXT))
    assert curvature(model, TEXT, d) == pytest.approx(
        (dot(gradients[0], d) - dot(gradients[1], d)) / (2 * far), rel=near
    )


def model_loss(model: nn.Module, rows: Rows, weights: dict[str, torch.Tensor]) -> float:
    with holding(model, weights):
        return evaluation.loss(model, rows)


# ---------------------------------------------------------------------- forecasts
class Unigram(nn.Module):
    """The same scores at every place: what the Fisher information says of it is exact where it fits best."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.scores.expand(*input_ids.shape, -1))


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_the_fisher_stands_for_the_curvature_where_the_model_is_right(targets):
    """All texts of so many tokens, each as frequent as the model says: then T E[g g^T] = H, and the slope is 0."""
    frequent = (0, 1, 2, 2)  # probabilities 1/4, 1/4, 1/2
    model = Unigram(torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log())
    texts = Rows(torch.tensor([(0, *text) for text in itertools.product(frequent, repeat=targets)]))
    forecast = Forecast.at(model, Held("all", texts, texts), causal, len(texts))
    start = weights_of(model)
    d = {"scores": torch.tensor([0.3, -0.2, 0.05], dtype=torch.float64)}
    with holding(model, moved(model, d, 1.0)):
        found = forecast(model, start, {"all": ["scores"]})
        risen = evaluation.loss(model, texts)
    p = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    bent = (p * d["scores"] ** 2).sum() - (p * d["scores"]).sum() ** 2
    assert forecast.tokens == targets
    assert found["slope"]["all"] == pytest.approx(0.0, abs=1e-12)
    assert found["curvature"] == pytest.approx(bent.item() / 2, rel=1e-9)
    assert found["fisher"] == pytest.approx(found["curvature"], rel=1e-9)
    diagonal = (p * (1 - p) * d["scores"] ** 2).sum().item() / 2
    assert found["diagonal"]["all"] == pytest.approx(diagonal, rel=1e-6)
    assert found["ewc"]["all"] == pytest.approx(diagonal, rel=1e-6)
    assert risen - evaluation.loss(model, texts) == pytest.approx(found["curvature"], rel=0.05)


def test_what_is_left_of_the_rise_is_of_third_order():
    model = tiny("gpt2", dtype=torch.float64)
    held, start = Held("text", TEXT, TEXT), weights_of(model)
    forecast = Forecast.at(model, held, causal, 5)
    before, groups, left = evaluation.loss(model, TEXT), kinds(model), []
    for far in (0.02, 0.01):
        with holding(model, moved(model, drawn(model), far)):
            found, risen = forecast(model, start, groups), evaluation.loss(model, TEXT) - before
        assert set(found["slope"]) == set(groups)
        left.append(risen - sum(found["slope"].values()) - found["curvature"])
    assert left[0] / left[1] == pytest.approx(8, rel=0.1)


# ---------------------------------------------------------------------- the row
@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab("smoke", Store(tmp_path_factory.mktemp("interference")), ROOT)


@pytest.fixture(scope="module")
def row(lab):
    return interference.run(lab, interference.settings("smoke", rate=1e-3))


def test_the_row_has_the_ends_of_its_line_and_of_its_path(row):
    v = row.values
    (pair,) = v["pairs"]
    start, end = pair["ends"]
    line = {share: losses for share, *losses in pair["line"]}
    assert line[0.0] == start and line[1.0] == end and len(line) == 3
    assert start == [v["after"][0], v["after"][1]] and end == [pair["losses"][0], pair["losses"][1]]
    assert pair["path"][-1]["loss"] == end
    for groups in v["parameters"].values():
        assert sum(groups.values()) == sum(v["parameters"]["kinds"].values())
        assert groups.keys() <= pair["put back"].keys() and groups.keys() <= pair["alone"].keys()
    names = [*v["names"]]
    assert names[-1] == interference.GENERAL
    for tables in v["cosines"].values():
        assert tables.keys() == {"all", *v["parameters"]["kinds"]}
        for table in tables.values():
            assert [len(line) for line in table] == [len(names)] * len(names)
            assert all(-1 <= x <= 1 for line in table for x in line)


def test_it_is_the_course_of_plain_training_looked_at(lab, row):
    """Nothing that is looked at changes what is learned: losses are those of the course, to the last bit."""
    s = interference.settings("smoke", rate=1e-3)
    found = courses.course(courses.run(lab, replace(s.course, part="test")))
    (pair,) = row.values["pairs"]
    assert found.before == row.values["before"][:-1]
    assert [found.loss[i][0] for i in range(2)] == row.values["after"][:-1]
    assert [found.loss[i][1] for i in range(2)] == pair["ends"][1] == pair["losses"][:-1]
    assert found.general == [row.values["before"][-1], row.values["after"][-1], pair["losses"][-1]]


def test_a_row_is_stable_and_its_numbers_have_names(lab, row, monkeypatch):
    for path in (lab.store.live / interference.STUDY).glob("*.json"):
        path.unlink()
    again = interference.run(lab, interference.settings("smoke", rate=1e-3))
    assert again.values == row.values and again is not row
    monkeypatch.setattr(budget, "finished", lambda store, grid: {})
    usual = interference.bounds("smoke")
    tried = {**usual.trials, "ncl": Tried("NCL", rates=(1e-3,))}
    monkeypatch.setattr(interference, "bounds", lambda scale, device=None: replace(usual, trials=tried))
    found = interference.results(lab.store, "smoke")
    (pair,) = again.values["pairs"]
    start, end = pair["ends"]
    assert found["interference.Sumstan.rise"].value == pytest.approx(end[0] - start[0])
    assert found["interference.Sumstan.learned"].value == pytest.approx(start[1] - end[1])
    back = found["interference.Sumstan.back.attention"]
    assert back.unit == "%"
    assert back.value == pytest.approx(
        100 * (end[0] - pair["put back"]["attention"][0]) / (end[0] - start[0])
    )
    step = pair["path"][-1]
    assert found["interference.Sumstan.curvature"].value == pytest.approx(
        sum(step["slope"].values()) + step["curvature"]
    )
    assert interference.results(lab.store, "gpu") == {}
