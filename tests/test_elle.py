"""ELLE over short sequences of domains: growth, recovery, replay and prompts, each against what it promises."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import tiny, tokens
from torch import nn

from kemem import models
from kemem.continual import beside, elle
from kemem.continual.elle import ELLE
from kemem.continual.elle_rows import Kept, Remembering, add_prompt_, behind_prompt, embeddings
from kemem.continual.growth import growth_error, scores
from kemem.continual.growth_depth import grow_depth_
from kemem.continual.growth_width import grow_width_
from kemem.continual.sequence import Held, learn
from kemem.errors import BadInput
from kemem.evaluation import loss
from kemem.memory import Memories
from kemem.models import Shape, build
from kemem.objective import Causal, Masked, causal, mix
from kemem.training import Domain, Method, Recipe, train

VOCAB, LENGTH = 61, 10
MASKED = Masked(mask_id=3, vocabulary=VOCAB, share=0.3, special=(0, 1, 2))
RECIPE = Recipe(steps=2, batch_size=8, learning_rate=5e-3, warmup_steps=1, log_every=1)
GROWTH = {"blocks": 1, "width": 12, "memories": 7, "heads": 3}
SHORT = {"recovery_steps": 2, "recovery_rows": 4, "remembered": 9}


class Rows:
    """Rows in which one token in four, from the third on, is the domain's own."""

    def __init__(self, own: int = 0, rows: int = 24, length: int = LENGTH) -> None:
        self.ids = tokens(rows, length, seed=own)
        self.ids[:, 2::4] = 50 + own

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices], "labels": self.ids[indices].clone()}


DOMAINS = [Held(f"domain.{i}", Rows(i), Rows(i, rows=6)) for i in range(4)]


def model(family: str = "olmo", *, dtype: torch.dtype = torch.float32, **sizes) -> nn.Module:
    shape = Shape(
        family,
        **{"layers": 1, "width": 12, "memories": 20, "heads": 3, "vocab": VOCAB, "context": 32, **sizes},
    )
    return build(shape, seed=1).to(dtype)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def course(
    method: Method, family: str = "olmo", count: int = 2, recipe: Recipe = RECIPE, net=None, **options
):
    """A model after some domains, and what became of it."""
    net = net or model(family)
    if family == "roberta":
        options["objective"] = MASKED
    return net, learn(net, DOMAINS[:count], method, recipe, **options)


def settings(family: str) -> dict:
    return {**GROWTH, **SHORT, "objective": MASKED if family == "roberta" else causal}


# ---------------------------------------------------------------------- laws
@pytest.mark.parametrize("family", ["olmo", "gpt2", "roberta"])
def test_without_growth_replay_and_prompts_it_is_plain_training(family):
    nets = [model(family, dropout=0.1) for _ in range(2)]
    _, plain = course(Method(), family, net=nets[0])
    _, null = course(ELLE(replay=0.0, prompts=False, recovery_steps=5), family, net=nets[1])
    assert equal(weights(nets[0]), weights(nets[1]))
    assert plain.loss == null.loss and plain.added == null.added == [0, 0]


def test_each_part_does_something():
    plain, _ = course(Method(), "gpt2")
    for part in ({"replay": 0.3}, {"prompts": True}, {"blocks": 1}, {"width": 12, "heads": 3}):
        net, _ = course(ELLE(**{"replay": 0.0, "prompts": False, "recovery_steps": 0, **part}), "gpt2")
        assert not equal(weights(plain), weights(net)), part


@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_how_a_step_is_cut_does_not_matter(family):
    found = []
    for accumulation in (1, 4):
        method = ELLE(**settings(family), replay=0.3)
        recipe = replace(RECIPE, accumulation=accumulation)
        net, _ = course(method, family, recipe=recipe, net=model(family, dtype=torch.float64))
        found.append(weights(net))
    one, four = found
    assert all(torch.allclose(one[name], four[name], rtol=1e-6, atol=1e-9) for name in one)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "roberta"])
def test_the_same_seed_is_the_same_run(family):
    """With as many memories as width at first, and dropout on."""
    runs = []
    for seed in (0, 0, 1)[: 3 if family == "llama" else 2]:
        net = model(family, memories=12, dropout=0.1)
        net, done = course(ELLE(**settings(family), seed=seed), family, net=net)
        runs.append(weights(net))
        grown = Memories(net)
        assert (grown.width, grown.count, grown.heads, grown.layers) == (24, 19, 6, 2)
        assert done.added[0] == 12 and done.added[1] > 1000  # a prompt; growth and a prompt
    assert equal(runs[0], runs[1]) and not any(equal(runs[0], other) for other in runs[2:])


class Stop(Exception):
    pass


class Breaking(ELLE):
    """Breaks off at some step of some domain; without one it is ELLE."""

    left: int | None = None

    def gradients(self, model) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stop


def in_three_domains(folder, left: int | None = None, method: Breaking | None = None):
    method = method or Breaking(**{**GROWTH, **SHORT, "blocks": "1,0", "width": "0,12", "heads": "0,3"})
    method.left = left
    net = model("gpt2", dropout=0.1)
    return method, *course(method, "gpt2", count=3, recipe=replace(RECIPE, save_every=1), net=net, out=folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return in_three_domains(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize(("stop", "again"), [(3, True), (5, False)], ids=["same-object", "another-object"])
def test_killed_and_resumed_it_ends_the_same(tmp_path, unbroken, stop, again):
    """In the second and in the third domain; growth and recovery of a finished domain come again."""
    _, whole, wanted = unbroken
    assert [Memories(whole).layers, Memories(whole).width] == [2, 24]
    broken = Breaking(**{**GROWTH, **SHORT, "blocks": "1,0", "width": "0,12", "heads": "0,3"})
    with pytest.raises(Stop):
        in_three_domains(tmp_path, stop, broken)
    _, net, found = in_three_domains(tmp_path, method=broken if again else None)
    assert equal(weights(net), weights(whole)) and found.loss == wanted.loss


# ---------------------------------------------------------------------- growth and recovery
@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_growth_is_that_of_the_functions(family):
    """Before recovery, which is switched off, and before any step of the second domain."""
    net, by_hand = model(family), None
    method = ELLE(
        **{**settings(family), "recovery_steps": 0},
        prompts=False,
        seed=5,
        noise=0.02,
        zeroed=family == "olmo",
    )
    domains = [held.domain for held in DOMAINS]
    objective = MASKED if family == "roberta" else causal
    train(net, domains[0], RECIPE, method, objective=objective)
    by_hand = copy.deepcopy(net)
    method.before(net, domains[1])
    seed = mix(5, 0, 1)
    grow_depth_(by_hand, blocks=1, seed=seed, zeroed=family == "olmo")
    grow_width_(by_hand, width=24, memories=27, heads=6, seed=seed, noise=0.02, untie=True)
    assert equal(weights(net), weights(by_hand))
    assert method.grown.keys() == {"domain.1"} and method.grown["domain.1"].logits > 0


def test_growth_that_keeps_the_function_is_told_as_such():
    method = ELLE(**{**GROWTH, **SHORT, "memories": 20}, zeroed=True, noise=0.0, prompts=False)
    course(method, "gpt2", count=3)
    assert method.grown.keys() == {"domain.1", "domain.2"}  # twice, then by a half: no longer even
    assert method.grown["domain.1"].logits < 1e-5 < method.grown["domain.2"].logits
    uneven = ELLE(**{**GROWTH, **SHORT, "width": 4, "heads": 1}, noise=0.0)
    course(uneven, "gpt2")
    assert uneven.grown["domain.1"].logits > 1e-3


def test_a_number_for_each_domain():
    method = ELLE(blocks="1,0,2", memories=5, **SHORT)
    net, sizes = model(), []
    for held in DOMAINS:
        train(net, held.domain, RECIPE, method)
        sizes.append((Memories(net).layers, Memories(net).count))
    assert sizes == [(1, 20), (2, 25), (2, 30), (4, 35)]
    assert [len(origins) for _, origins in sorted(method._origins.items())] == [2, 2, 4]


def test_recovery_reads_what_is_remembered_and_nothing_else(monkeypatch):
    calls, own = [], Causal()

    def spy(net, data, recipe, method, **options):
        class Spying(Remembering):
            def rows(self, step, batch):
                calls[-1]["rows"].append(super().rows(step, batch)["input_ids"])
                return super().rows(step, batch)

        assert options == {"objective": own} and options["objective"] is own
        calls.append({"data": data, "recipe": recipe, "rows": []})
        return train(net, data, recipe, Spying(**vars(method)), **options)

    monkeypatch.setattr(elle, "train", spy)
    given = {
        "recovery_steps": 5,
        "recovery_rows": 8,
        "remembered": 11,
        "recovery_rate": 1e-3,
        "objective": own,
    }
    method, net = ELLE(blocks=1, replay=0.25, **given), model()
    for held in DOMAINS[:3]:
        train(net, held.domain, RECIPE, method)
    assert [len(call["rows"]) for call in calls] == [5, 5]
    for place, call in enumerate(calls):
        kept = [method._kept[i].rows["input_ids"][:, 1:].tolist() for i in range(place + 1)]
        assert all(len(rows) == 11 for rows in kept)
        read = [(row[0] - VOCAB, row[1:]) for batch in call["rows"] for row in batch.tolist()]
        assert all(rest in kept[which] for which, rest in read)  # each behind the prompt of its own domain
        assert sum(which < place for which, _ in read) == (10 if place else 0)  # a quarter, of older ones
        assert call["recipe"].steps == 5 and call["recipe"].learning_rate == 1e-3
    assert method.recovered.keys() == {f"domain.{i}" for i in (1, 2)}
    assert len({mix(call["recipe"].seed) for call in calls}) == 2


def test_recovery_undoes_what_growth_did():
    """Uneven growth with much noise hurts; training on remembered text brings the first domain back."""
    losses = {}
    for steps in (0, 25):
        method = ELLE(
            width=8,
            heads=2,
            noise=0.3,
            recovery_steps=steps,
            recovery_rate=1e-2,
            remembered=24,
            prompts=False,
        )
        net = model("gpt2")
        train(net, DOMAINS[0].domain, replace(RECIPE, steps=30), method)
        before = loss(net, DOMAINS[0].test)
        method.before(net, DOMAINS[1].domain)
        losses[steps] = loss(net, DOMAINS[0].test) - before
    assert losses[0] > 0.3 and losses[25] < 0.5 * losses[0]


def test_generators_are_left_alone():
    """What `before` does, recovery with dropout too, is not seen by the draws of the loop."""
    method = ELLE(**GROWTH, **SHORT)
    net = model("gpt2", dropout=0.3)
    train(net, DOMAINS[0].domain, RECIPE, method)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    method.before(net.train(), DOMAINS[1].domain)
    assert torch.equal(state, torch.random.get_rng_state()) and net.training
    assert "domain.1" in method.recovered and all(p.grad is None for p in net.parameters())


# ---------------------------------------------------------------------- replay
def test_a_share_of_the_rows_is_remembered():
    kept = [Kept(f"d{i}", Rows(i, rows=5).batch(torch.arange(5))) for i in (1, 2)]
    reading = Remembering(kept, 2, 0.1, False, VOCAB, 7)
    batch = Rows(3).batch(torch.arange(6))
    own, counts, drawn = batch["input_ids"].tolist(), [], set()
    for step in range(1, 201):
        found = reading.rows(step, batch)
        fresh = [i for i, row in enumerate(found["input_ids"].tolist()) if row not in own]
        assert fresh == [*range(6 - len(fresh), 6)] and torch.equal(found["labels"], found["input_ids"])
        for i in fresh:
            source = [
                (d, r)
                for d in (0, 1)
                for r in range(5)
                if torch.equal(kept[d].rows["input_ids"][r], found["input_ids"][i])
            ]
            drawn.update(source)
            assert len(source) == 1
        counts.append(len(fresh))
        assert torch.equal(found["input_ids"], reading.rows(step, batch)["input_ids"])
    assert sum(counts) == 120 and set(counts) == {0, 1} and sum(counts[:5]) == 3 and sum(counts[:10]) == 6
    assert len(drawn) == 10  # every row of every domain comes up
    many = Remembering(kept, 2, 0.29, False, VOCAB, 7).rows(1, Rows(3, rows=100).batch(torch.arange(100)))
    assert (
        sum(row not in Rows(3, rows=100).ids.tolist() for row in many["input_ids"].tolist()) == 29
    )  # not 28.99...
    assert (
        batch["input_ids"].tolist() == own and reading.rows(1, batch) is batch
    )  # the data's own memory is not touched
    assert Remembering([], 0, 0.5, False, VOCAB, 7).rows(1, batch) is batch


def test_what_is_remembered():
    method = ELLE(remembered=7, prompts=False, replay=0.0)
    course(method, count=3)
    assert [kept.name for kept in method._kept] == ["domain.0", "domain.1", "domain.2"]
    for kept, held in zip(method._kept, DOMAINS, strict=False):
        rows = [held.train.ids.tolist().index(row) for row in kept.rows["input_ids"].tolist()]
        assert len(set(rows)) == 7 and rows == sorted(rows)
    kept = []
    for seed, order in ((0, 0), (0, 1), (1, 1)):  # it follows from the method's seed alone
        method = ELLE(remembered=7, seed=seed)
        train(model(), DOMAINS[0].domain, replace(RECIPE, seed=order), method)
        kept.append(method._kept[0].rows["input_ids"])
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])
    method.remembered = 700
    method.after(model(), DOMAINS[1].domain)
    assert len(method._kept[1]) == 24


# ---------------------------------------------------------------------- prompts
@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "roberta"])
def test_a_prompt_is_a_vector_in_the_place_of_the_first_token(family):
    """Rows of three domains in one pass, against embeddings put together by hand; gradients reach each prompt."""
    net = tiny(family).double()
    for place in range(3):
        add_prompt_(net, place, seed=4)
    drawn = torch.cat([beside.module(net, f"prompt{place}").weight for place in range(3)])
    assert len(set(drawn[:, 0].tolist())) == 3
    assert 0.3 < drawn.std() / net.get_input_embeddings().weight.std() < 2
    reading = Remembering((), 2, 0.0, True, VOCAB, 0)
    plain = {"input_ids": tokens(3, LENGTH), "labels": tokens(3, LENGTH)}
    batch = reading.rows(1, plain)
    assert batch["input_ids"][:, 0].tolist() == [VOCAB + 2] * 3 and set(batch["labels"][:, 0].tolist()) == {
        -100
    }
    assert torch.equal(batch["input_ids"][:, 1:], plain["input_ids"][:, 1:])
    assert torch.equal(batch["labels"][:, 1:], plain["labels"][:, 1:])
    batch["input_ids"][:, 0] = torch.tensor([VOCAB, 7, VOCAB + 1])
    table = net.get_input_embeddings().weight
    vectors = table[plain["input_ids"]].detach().clone()
    vectors[1, 0] = table[7]
    for row, place in ((0, 0), (2, 1)):
        vectors[row, 0] = beside.module(net, f"prompt{place}").weight[0]
    wanted = net(inputs_embeds=vectors.detach()).logits
    with reading.during(net, Domain("", Rows())):
        found = net(input_ids=batch["input_ids"]).logits
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    found.square().sum().backward()
    moved = [beside.module(net, f"prompt{place}").weight.grad.abs().max() > 0 for place in range(3)]
    assert moved == [True, True, False]
    with behind_prompt(net, 1):
        alone = net(input_ids=plain["input_ids"]).logits
    vectors[:, 0] = beside.module(net, "prompt1").weight
    assert torch.allclose(alone, net(inputs_embeds=vectors.detach()).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["olmo", "roberta"])
def test_which_prompt_is_shown(family):
    options = {**settings(family), "blocks": 0, "memories": 0}
    method = ELLE(**options)
    net = model(family)
    text = {"input_ids": tokens(2, LENGTH, seed=9)}
    domains = [held.domain for held in DOMAINS]

    def known() -> list[torch.Tensor]:
        """What the model says behind each prompt."""
        found = []
        for place in range(len(method._names)):
            with behind_prompt(net, place):
                found.append(scores(net, text))
        return found

    def shown(domain: int) -> int | None:
        """The prompt that `at` shows, told by what the model says."""
        with method.at(net, domains[domain]):
            found = scores(net, text)
        (place,) = (place for place, said in enumerate([*every, bare]) if torch.equal(found, said))
        return place if place < len(every) else None

    bare, every = scores(net, text), known()
    assert shown(0) is None  # before any domain
    wanted = {
        "right": [[0, 0, 0], [0, 1, 1], [0, 1, 2]],
        "wrong": [[None, None, None], [1, 0, 0], [2, 0, 1]],
        "none": [[None] * 3] * 3,
    }
    for step in range(3):
        train(net, domains[step], RECIPE, method, objective=options["objective"])
        bare, every = scores(net, text), known()
        for name, rows in wanted.items():
            method.shown = name
            assert [shown(i) for i in range(3)] == rows[step], (name, step)
        method.shown = "right"
    assert beside.present(net) == ("prompt0", "prompt1", "prompt2")
    assert len({beside.module(net, f"prompt{i}").weight[0, 0].item() for i in range(3)}) == 3
    off = ELLE(prompts=False)
    train(off_net := model(), domains[0], RECIPE, off)
    with off.at(off_net, domains[0]):
        assert not beside.present(off_net)


def test_prompts_grow_with_the_model_and_learn():
    method = ELLE(**GROWTH, **SHORT, noise=0.0)
    net = model()
    train(net, DOMAINS[0].domain, RECIPE, method)
    fresh = model()
    add_prompt_(fresh, 0, mix(0, 2))
    learned = beside.module(net, "prompt0").weight.detach().clone()
    assert not torch.equal(learned, beside.module(fresh, "prompt0").weight)
    method.recovery_steps = 0
    method.before(net, DOMAINS[1].domain)
    first, second = (beside.module(net, f"prompt{i}").weight for i in (0, 1))
    assert torch.equal(first[:, :12], learned) and set(first[0, 12:].tolist()) == set(learned[0].tolist())
    assert second.shape == (1, 24) and first.requires_grad and second.requires_grad


def test_a_masked_objective_leaves_prompts_alone():
    reading = Remembering((), 0, 0.0, True, VOCAB, 0)
    batch = reading.rows(1, Rows(rows=64).batch(torch.arange(64)))
    hidden = replace(MASKED, share=0.9).prepare(batch, list(range(64)))
    assert (hidden["input_ids"][:, 0] == VOCAB).all() and (hidden["labels"][:, 0] == -100).all()
    assert (hidden["labels"][:, 1:] != -100).sum() > 400


@pytest.mark.parametrize("family", ["olmo", "gpt2"])
def test_a_checkpoint_is_read_without_its_prompts(tmp_path, family):
    net, _ = course(ELLE(**GROWTH, **SHORT), family)
    net.save_pretrained(tmp_path)
    found, _ = models.load(str(tmp_path), device="cpu")
    text = {"input_ids": tokens(2, LENGTH)}
    assert torch.equal(scores(found, text), scores(net, text)) and not beside.present(found)
    assert embeddings(found) in ("model.embed_tokens", "transformer.wte")
    assert growth_error(net, found, text).logits == 0


# ---------------------------------------------------------------------- refusals
def test_what_is_refused():
    for wrong, said in (
        ({"blocks": -1}, "blocks to be 0 or more"), ({"width": "2,x"}, "'2,x'"), ({"heads": "1,-1"}, "heads"),
        ({"replay": 1.0}, r"in \[0, 1\)"), ({"remembered": 0}, "at least 1 row"),
        ({"shown": "left"}, "right, wrong, none"), ({"recovery_steps": -1}, "0 or more"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said) as caught:
            ELLE(**wrong)
        assert "\n" not in str(caught.value)
    net = model("gpt2")
    before = weights(net)
    for wrong in ({"width": 12}, {"width": "12,4", "heads": "3,0"}):
        with pytest.raises(BadInput, match="heads"):  # at once, not when the second domain begins
            train(net, DOMAINS[0].domain, RECIPE, ELLE(**wrong))
        assert equal(weights(net), before)
    longer = [DOMAINS[0], Held("longer", Rows(1, length=12), Rows(1, length=12))]
    with pytest.raises(BadInput, match=r"one length"):
        learn(net, longer, ELLE(), RECIPE)
