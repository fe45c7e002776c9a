"""Part 3 at every scale: settings that are there, a large enough model and world, and work that is done in pieces."""

import weakref
from dataclasses import replace

import pytest
import torch

from kemem import editing, models
from kemem.editing import memit, stepping
from kemem.memory import Memories
from kemem.runs import Store
from kemem.spans import Span, encode, encode_all
from kemem.studies import bench, factual, setup
from kemem.studies.lab import Lab
from kemem.world import World

GPU = factual.SCALES["gpu"]
CARD = 990e12  # dense bfloat16 FLOP/s of an H200


def editable(world):
    """Reported facts that somebody shares, by subject."""
    return [f for f in world.facts(part="reported") if world.neighbours(f)]


@pytest.fixture(scope="module")
def large():
    return factual.world(GPU)


# ---------------------------------------------------------------------- the model and its world
def test_the_gpu_model_has_a_hundred_million_parameters_and_trains_in_minutes(large):
    words = len(large.vocabulary())
    assert words < GPU.setup.vocabulary  # every name is a token
    with torch.device("meta"):
        model = models.build(GPU.setup.shape(words))
    parameters = sum(p.numel() for p in model.parameters())
    s = GPU.setup
    assert parameters == words * s.width + s.layers * (3 * s.memories + 4 * s.width) * s.width
    assert parameters >= 100e6
    assert 5 * 60 < 6 * parameters * s.tokens / (0.35 * CARD) < 10 * 60
    assert s.precision == "bfloat16" and s.compile and s.dtype == "float32"  # edits are of float32 weights


def test_the_gpu_world_has_ten_thousand_facts_to_edit_with_room_for_those_that_are_not_known(large):
    facts = editable(large)
    assert len(facts) > 20_000 and len({f.subject for f in facts}) > 9_000
    tuning = [f for f in large.facts(part="tuning") if large.neighbours(f)]
    assert len(tuning) > 8_000  # trials are made on up to 5000 of them
    tokens = GPU.setup.tokens / len(large.facts())
    laptop = factual.SCALES["laptop"]
    assert tokens > laptop.setup.tokens / len(factual.world(laptop).facts())


def test_a_small_card_gets_a_model_of_its_own(monkeypatch):
    monkeypatch.setattr(factual, "small_card", lambda device: device == "cuda")
    assert factual.settings("gpu", device="cpu").setup == GPU.setup
    small = factual.settings("gpu", seed=3, device="cuda").setup
    assert small == factual.SMALL_CARD.setup.with_(seed=3) and small.precision == "float32"
    assert factual.settings("laptop", device="cuda").setup == factual.SCALES["laptop"].setup
    assert len(factual.world(factual.SMALL_CARD).vocabulary()) < small.vocabulary


@pytest.mark.parametrize(
    ("layers", "written"), [(4, (0, 1)), (6, (0, 1)), (8, (0, 1, 2)), (28, tuple(range(10)))]
)
def test_the_layers_that_are_written_begin_in_the_first_third(layers, written):
    model = replace(GPU, setup=GPU.setup.with_(layers=layers))
    assert factual.critical(model) == written
    assert factual.last(model) == tuple(range(layers))[-3:]


def test_weights_are_those_of_the_laptop_to_a_memory():
    assert factual.weighed(factual.SCALES["laptop"], (0.3, 10.0, 3000.0)) == (0.3, 10.0, 3000.0)
    assert factual.weighed(GPU, (10.0,)) == (120.0,)


# ---------------------------------------------------------------------- names of a large world
def test_every_name_of_a_large_world_is_a_token(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "TOKENIZER_CHARACTERS", 2000)
    lab = Lab("smoke", Store(tmp_path), tmp_path)
    s = factual.SCALES["smoke"].setup.with_(corpus="world:people=20,documents=300")
    texts = setup.read(s.corpus).part("train")
    for vocabulary, whole in ((2048, False), (4096, True)):
        tok = setup.tokenizer(lab, s.with_(vocabulary=vocabulary))
        assert (tok.unk_token_id not in {i for own in tok(texts)["input_ids"] for i in own}) is whole


# ---------------------------------------------------------------------- work in pieces
def test_records_are_made_with_one_look_through_all_facts(monkeypatch):
    world = World(people=40, seed=1)
    facts, asked = type(world).facts, []
    monkeypatch.setattr(type(world), "facts", lambda self, *a, **k: asked.append(1) or facts(self, *a, **k))
    wanted = world.counterfact(40)
    few = len(asked)
    asked.clear()
    assert world.counterfact(20) == wanted[:20] and len(asked) <= few <= 4


def test_an_object_stands_in_a_relation_where_it_has_neighbours():
    world = World(people=30, seed=2)
    for fact in world.facts(kind="order")[:10] + world.facts()[::9]:
        for name in [o for o in world.candidates(fact) if o not in fact.objects]:
            assert world.stands(fact, name) == bool(world.neighbours(fact, name))


def test_texts_cut_together_are_those_cut_alone(monkeypatch):
    monkeypatch.setattr("kemem.spans.AT_ONCE", 3)
    texts = World(people=20).documents(60)
    for unit, vocabulary in (("bytes", 300), ("word", 400)):
        tok = setup.train_tokenizer(texts, vocabulary, unit=unit)
        words = texts[0].split()
        pairs = [
            (" ".join(words[:i]), w) for i in range(1, 12) for w in (words[i], f" {words[i]}", "Paris", ".")
        ]

        def alone(prompt, target, tok=tok):
            bare, tail = prompt.rstrip(" "), target.lstrip(" ")
            tail = f" {tail}" if tail != target or tail[:1].isalnum() else tail
            first, whole = (tok(t, add_special_tokens=False)["input_ids"] for t in (bare, bare + tail))
            if whole[: len(first)] != first or len(whole) == len(first):
                whole = first + tok(tail, add_special_tokens=False)["input_ids"]
            return Span((7, *whole), 1 + len(first))

        assert encode_all(tok, pairs, start=(7,)) == [alone(*pair) for pair in pairs]
        assert encode(tok, *pairs[5]) == encode_all(tok, pairs)[5]


def test_keys_are_averaged_some_requests_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(20, 5, generator=generator)
    number = torch.randint(0, 20, (11, 4), generator=generator)
    share = editing.prompts.shares(4)
    whole = torch.stack([(share[:, None] * keys[own].double()).sum(0) for own in number], 1)
    for size in (3, 512):
        monkeypatch.setattr(memit, "AT_ONCE", size)
        assert torch.allclose(memit.averaged(keys, number, share), whole, rtol=1e-12, atol=1e-12)


def test_no_layer_of_all_rows_is_held(monkeypatch):
    """The coefficients of all tokens of a part of the rows are gone before the next part is read."""
    model = models.build(models.Shape(layers=2, width=8, memories=12, heads=2, context=16, vocab=30)).eval()
    rows = stepping.Beginning(Memories(model), [[1, 2, 3, 4], [5, 6], [7, 8, 9], [3, 1]], batch_size=2)
    held, through = [], stepping.Beginning._through

    def watched(self, *given, **named):
        out, own = through(self, *given, **named)
        if own is not None:
            held.append((weakref.ref(own), sum(one() is not None for one, _ in held)))
        return out, own

    monkeypatch.setattr(stepping.Beginning, "_through", watched)
    assert rows.coefficients(1).shape == (4, 12)
    assert [alive for _, alive in held] == [0, 1]  # the last one is let go when the next is there


def test_an_accelerator_is_filled_as_the_model_allows():
    shapes = {
        (256, 512): GPU.setup.shape(100),
        (36, 72): models.Shape("gptj", layers=28, width=64, memories=16_384, heads=4, context=32, vocab=50),
        (32, 64): models.Shape(layers=80, width=64, memories=28_672, heads=4, context=32, vocab=50),
    }
    for wanted, shape in shapes.items():
        with torch.device("meta"):
            model = models.build(shape)
        assert bench.together(model, None) == wanted and bench.together(model, 5) == (5, 5)
    assert bench.together(torch.nn.Linear(2, 2), None) == (32, 64)
