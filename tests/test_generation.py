"""What edited models write, against transformers' own generation, one text at a time, and counts made by hand."""

import json
import math
from collections import Counter
from functools import cache

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kemem.editing.facts import Request
from kemem.editing.generation import (
    TfIdf,
    cosine,
    entropy,
    generate,
    generated_success,
    greedy,
    reference_scores,
    words,
)
from kemem.editing.scores import score
from kemem.errors import BadInput

FAMILIES = ("gpt2", "olmo", "llama")
SIZE = 61


@cache
def tokenizer(first: bool = False):
    """Words w3 to w60, as many as the tiny models have tokens; with <s> before a text where `first`."""
    table = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", *(f"w{i}" for i in range(3, SIZE))])}
    made = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if first:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<pad>"
    )


@cache
def model(family: str):
    return tiny(family, dtype=torch.float64, seed=2)


def text(ids) -> str:
    return " ".join(f"w{i}" for i in ids)


def after(own, ids) -> torch.Tensor:
    """The model's scores for the token after `ids`, from one pass of its own."""
    with torch.no_grad():
        return own(input_ids=torch.tensor([list(ids)])).logits[0, -1]


def by_transformers(own, ids, count: int) -> tuple[int, ...]:
    own.generation_config.eos_token_id = None  # the end of a text does not stop it
    given = torch.tensor([ids])
    out = own.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False, pad_token_id=1
    )
    return tuple(out[0, len(ids) :].tolist())


# ---------------------------------------------------------------------- the likeliest tokens
PROMPTS = [(5, 9, 12), (7,), (20, 21, 22, 23, 24, 25, 26), (5, 9, 13), (30, 40)]
COUNTS = [6, 1, 4, 0, 11]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_likeliest_continuation_is_that_of_transformers(family, batch_size):
    own = model(family)
    expected = [by_transformers(own, ids, n) if n else () for ids, n in zip(PROMPTS, COUNTS, strict=True)]
    assert greedy(own, PROMPTS, COUNTS, batch_size=batch_size) == expected
    assert len(set(expected[4])) > 1  # a model that repeats one token would hide a shift


@pytest.mark.parametrize("family", FAMILIES)
def test_success_is_to_say_the_new_object_at_once(family):
    """And the same as every token the likeliest under teacher forcing."""
    own, first = model(family), family == "llama"
    start = [0] if first else []
    asked, expected = [], []
    for number, ids in enumerate(PROMPTS):
        said = by_transformers(own, [*start, *ids], 1 + number)
        other = (*said[:-1], 3 if said[-1] != 3 else 4)
        for case, new in enumerate((said, other)):
            if min(new) > 2:  # what is no special token
                prompt = text(ids[:-1]) + " {}"
                asked.append(Request(10 * number + case, prompt, f"w{ids[-1]}", text(new)))
                expected.append(case == 0)
    found = [generated_success(own, tokenizer(first), asked, batch_size=size) for size in (1, 3, 64)]
    assert found == [tuple(expected)] * 3 and len(expected) > 6 and True in expected and False in expected
    assert tuple(map(float, expected)) == score(own, tokenizer(first), asked).values["rewrite_acc"]


def test_no_room_for_the_object_is_refused():
    asked = [Request("far", "{} " + "w3 " * 62, "w5", "w6 w7")]
    with pytest.raises(BadInput, match="context of 64 tokens; got 65 in case far"):
        generated_success(model("gpt2"), tokenizer(), asked)


# ---------------------------------------------------------------------- drawn texts
def request(case_id, *prompts, **more) -> Request:
    return Request(case_id, "{} w3", "w4", "w5", generation=prompts, **more)


LONG = text(range(3, 15))
ASKED = (
    request(1, "w7 w8", "w7 w8", LONG),
    request("b", "w9"),
    request(3),
    request(4, "w7 w8", text(range(3, 60))),
)


def ids_of(written: str, first: bool) -> list[int]:
    return tokenizer(first)(written)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_the_same_alone_and_in_a_batch(family):
    own, first = model(family), family == "llama"
    whole = [generate(own, tokenizer(first), ASKED, length=24, batch_size=size) for size in (2, 64)]
    assert whole[0] == whole[1]
    for i, r in enumerate(ASKED):
        lone = generate(own, tokenizer(first), [r], length=24)
        assert (lone.texts[0], lone.tokens[0]) == (whole[0].texts[i], whole[0].tokens[i])
    assert generate(own, tokenizer(first), ASKED, length=24, seed=1).texts != whole[0].texts
    same = whole[0].texts[0]
    assert same[0] != same[1] and whole[0].texts[3][0] not in same  # a repeated prompt is another sample
    start = int(first)
    assert whole[0].tokens == ((22 - start, 22 - start, 12 - start), (23 - start,), (), (22 - start, 0))
    assert whole[0].texts[3][1] == text(range(3, 60))


@pytest.mark.parametrize("top_k", [1, 3])
def test_every_token_is_one_of_the_likeliest(top_k):
    """Special tokens are drawn like others, but not shown: their texts are left out here."""
    own = model("olmo")
    asked = [request(i, f"w{3 + i}") for i in range(12)]
    found = generate(own, tokenizer(), asked, length=12, top_k=top_k)
    ranks = Counter()
    for (written,) in found.texts:
        ids = ids_of(written, False)
        if len(ids) == 12:
            for place in range(1, 12):
                ranks[int((after(own, ids[:place]) > after(own, ids[:place])[ids[place]]).sum())] += 1
    assert set(ranks) == set(range(top_k)) and ranks.total() > 50
    if top_k == 1:
        likeliest = greedy(own, [(3 + i,) for i in range(12)], [11] * 12)
        shown = [text(i for i in (3 + k, *ids) if i > 2) for k, ids in enumerate(likeliest)]
        assert [written for (written,) in found.texts] == shown


def test_tokens_are_drawn_by_their_probability():
    """Of 600 texts, each share within three standard errors of that of the three likeliest together."""
    own = model("gpt2")
    asked = [request(i, "w17 w30") for i in range(600)]
    found = Counter(written for (written,) in generate(own, tokenizer(), asked, length=3, top_k=3).texts)
    best = after(own, (17, 30)).topk(3)
    for token, p in zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True):
        assert abs(found[f"w17 w30 w{token}"] / 600 - p) < 3 * math.sqrt(p * (1 - p) / 600)
    assert found.total() == sum(found[f"w17 w30 w{i}"] for i in best.indices.tolist()) == 600


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_cuts_texts(family):
    """Learned positions end with the context: texts of all lengths beside each other stay within."""
    found = generate(model(family), tokenizer(), ASKED)
    assert found.tokens == ((62, 62, 52), (63,), (), (62, 7))
    assert found.summary()["tokens"] == 308 and found.summary()["texts"] == 6


def test_what_cannot_be_generated_is_refused():
    with pytest.raises(BadInput, match="top_k to be at least 1; got 0"):
        generate(model("olmo"), tokenizer(), ASKED, top_k=0)
    with pytest.raises(BadInput, match="length to be at least 1"):
        generate(model("olmo"), tokenizer(), ASKED, length=0)
    with pytest.raises(BadInput, match="got none in case 5"):
        generate(model("olmo"), tokenizer(), [request(5, " ")])
    with pytest.raises(BadInput, match="got none"):
        generate(model("olmo"), tokenizer(), [])


# ---------------------------------------------------------------------- entropy
def test_words():
    assert words("He didn't -- say: well-known, 'so' \n 3.5") == [
        "He", "didn't", "-", "-", "say", ":", "well-known", ",", "'", "so", "'", "3", ".", "5",
    ]  # fmt: skip
    assert words(" \n") == []


def test_entropy_by_hand():
    """a b a b a: pairs ab 2, ba 2, one bit; triples aba 2, bab 1."""
    triples = math.log2(3) - 2 / 3
    assert entropy("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * triples) / 2)
    assert entropy("a b c d e") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)
    assert entropy("a a a a") == entropy("a b") == entropy("") == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_entropy_against_loops(row):
    total = 0.0
    for size, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]
        total += weight * -sum(
            grams.count(g) / len(grams) * math.log2(grams.count(g) / len(grams)) for g in set(grams)
        )
    assert entropy(" ".join(row)) == pytest.approx(total / 2, abs=1e-12)


def test_entropies_are_means_over_texts_and_none_without():
    found = generate(model("olmo"), tokenizer(), ASKED, length=30)
    for own, value in zip(found.texts, found.entropies, strict=True):
        assert value == (pytest.approx(sum(map(entropy, own)) / len(own)) if own else None)
    told = found.summary()
    known = [value for value in found.entropies if value is not None]
    assert told["GE"] == pytest.approx(100 * sum(known) / 3) and told["n"] == {"GE": 3, "RS": 0}
    assert told["RS"] is None and "RS none; 6 texts" in repr(found)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


# ---------------------------------------------------------------------- references
def test_weights_by_hand():
    """Of three texts "red" stands in two, "sun" in one, "a" is too short, "moon" in none."""
    weights = TfIdf(["A red sun. Red!", "red sea", "blue sky"])
    red, sun = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    assert weights.rarity == pytest.approx({"red": red, "sun": sun, "sea": sun, "blue": sun, "sky": sun})
    norm = math.hypot(2 * red, sun)
    assert weights("red moon RED a sun") == pytest.approx({"red": 2 * red / norm, "sun": sun / norm})
    assert weights("moon") == {}
    assert cosine(weights("red sun"), weights("sea red red")) == pytest.approx(
        2 * red**2 / math.hypot(red, sun) / math.hypot(2 * red, sun)
    )
    assert cosine(weights("moon"), weights("sea")) == 0.0
    assert cosine(weights("sky sea"), weights("sea sky")) == pytest.approx(1)


def test_references_are_found_by_relation_and_object():
    texts = {("P1", "Q7"): ["red sun", "red sea"], ("P1", "w5"): ["blue sky"], ("P2", "w5"): []}
    asked = [
        request(1, "x", relation="P1", new_id="Q7"),
        request(2, "x", relation="P1"),
        request(3, "x", relation="P1", new_id="Q8"),  # none of its own: by name
        request(4, "x", relation="P2"),
        request(5, "x"),
        request(6, relation="P1"),
    ]
    written = [["red", "sun sea"], ["blue", "red"], ["sky blue"], ["blue"], ["blue"], []]
    found = reference_scores(asked, written, texts)
    weights = TfIdf(["red sun", "red sea", "blue sky"])
    whole = weights("red sun red sea")
    assert found == (
        pytest.approx(cosine(weights("red sun sea"), whole)),
        pytest.approx(cosine(weights("blue red"), weights("blue sky"))),
        pytest.approx(1.0),
        None,
        None,
        None,
    )
    with pytest.raises(BadInput, match="got one text"):
        reference_scores(asked, written, {("P1", "Q7"): "red sun"})


def test_texts_are_scored_against_their_references():
    asked = [request(1, "w7 w8", relation="r"), request(2, "w9", relation="other")]
    found = generate(
        model("olmo"), tokenizer(), asked, length=20, references={("r", "w5"): ["w7 w8 w10", "w11"]}
    )
    weights = TfIdf(["w7 w8 w10", "w11"])
    expected = cosine(weights(found.texts[0][0]), weights("w7 w8 w10 w11"))
    assert found.references == (pytest.approx(expected), None) and 0 < expected < 1
    assert found.summary()["RS"] == pytest.approx(100 * expected) and found.summary()["n"]["RS"] == 1


def test_progress_is_told():
    told = []
    generate(model("olmo"), tokenizer(), ASKED, length=40, batch_size=2, progress=lambda *a: told.append(a))
    assert told == [(3, 6), (5, 6), (6, 6)]
