"""Scores of edits against one text at a time, read token by token, and against models whose scores stand by hand."""

import json
import math
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from kemem.editing.facts import Request
from kemem.editing.readers import requests
from kemem.editing.scores import Judge, Readings, Scores, average, harmonic, score
from kemem.errors import BadInput
from kemem.evaluation import Span

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
FULL = Request(
    case_id=7,
    prompt="{} was born in",
    subject="Ada Lovelace",
    new="Göttingen",
    true="London",
    relation="P19",
    paraphrases=("Unrelated. The home of Ada Lovelace is", "Ada came from"),
    neighbours=("Emmy Noether worked in", "Charles Babbage was born in", "Emmy was born in"),
)
REQUESTS = (
    FULL,
    Request(8, "The friend of {} is", "Ada", "Emmy", "Charles Babbage", neighbours=("The friend of Emmy is",)),
    Request(9, "{} is in", "Bryn Mawr", "L", "G", paraphrases=("Bryn Mawr lies near",)),
    Request("q1", "Where is {}?", "Bryn Mawr", "in London, near Erlangen", paraphrases=("Bryn Mawr is?",),
            neighbours=("a prompt that nothing is asked about",),
            locality=(("who was Emmy?", "Noether"), ("who was Ada?", "a friend of Charles"))),
)  # fmt: skip
PAIRS = (("rewrite", "E"), ("paraphrase", "P"), ("neighbourhood", "N"))


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level, so that most words are several tokens."""
    return byte_level()


def byte_level(*, first: bool = False):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [" ".join((r.text, r.new, r.true or "", *r.paraphrases, *r.neighbours)) for r in REQUESTS]
    made.train_from_iterator(texts * 3, trainer)
    if first:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def word_level(words: str):
    table = {word: i for i, word in enumerate([*SPECIAL.values(), "<unk>", *words.split()])}
    made = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **SPECIAL)


class Chain(nn.Module):
    """Its scores for the next word hang on the last one alone: log p where given, elsewhere far below."""

    def __init__(self, tokenizer, following: dict[str, dict[str, float]]):
        super().__init__()
        size = len(tokenizer)
        table = torch.full((size, size), -1e9, dtype=torch.float64)
        for word, own in following.items():
            for after, p in own.items():
                (here,), (there,) = (tokenizer(w)["input_ids"] for w in (word, after))
                table[here, there] = math.log(p)
        self.table = nn.Parameter(table)
        self.read = 0

    def forward(self, input_ids, attention_mask, use_cache):
        self.read += len(input_ids)
        return SimpleNamespace(logits=self.table[input_ids])


def alone(model, prompt: list[int], target: list[int]) -> tuple[float, list[bool]]:
    """-log p a token, and of each token whether it is above all others, from one pass a token without padding."""
    loss, right, ids = 0.0, [], list(prompt)
    for token in target:
        with torch.no_grad():
            scores = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
        loss -= scores[token].item()
        right.append(bool((scores < scores[token]).sum() == len(scores) - 1))
        ids.append(token)
    return loss / len(target), right


def expected(model, tokenizer, r: Request, *, prefixed: bool) -> dict[str, float | None]:
    """The values of one record, in loops."""

    def ask(prompt: str, target: str) -> tuple[float, list[bool]]:
        after = tokenizer(" " + target, add_special_tokens=False)["input_ids"]
        return alone(model, tokenizer(prompt)["input_ids"], after)

    def mean(values: list) -> float | None:
        return sum(values) / len(values) if values else None

    subject = r.prompt.replace("{}", r.subject)
    prompts = {"rewrite": [subject], "paraphrase": list(r.paraphrases), "neighbourhood": list(r.neighbours)}
    found: dict[str, float | None] = {}
    for kind, letter in PAIRS:
        new = [ask(prompt, r.new) for prompt in prompts[kind]]
        old = [ask(prompt, r.true) for prompt in prompts[kind]] if r.true is not None else []
        if kind != "neighbourhood":
            found[f"{kind}_acc"] = mean([all(right) for _, right in new])
            found[f"{kind}_tokens"] = mean([sum(right) / len(right) for _, right in new])
        else:
            found["neighbourhood_acc"] = mean([all(right) for _, right in old])
            new, old = old, new if r.true is not None else []
        both = list(zip(new, old, strict=False))
        found[f"{letter}S"] = mean([a[0] < b[0] for a, b in both])
        found[f"{letter}M"] = mean([math.exp(-a[0]) - math.exp(-b[0]) for a, b in both])
    stated = [f"{subject} {r.new}. {p}" for p in r.neighbours] if prefixed and r.true is not None else []
    both = [(ask(prompt, r.true)[0], ask(prompt, r.new)[0]) for prompt in stated]
    found["NS+"] = mean([a < b for a, b in both])
    found["NM+"] = mean([math.exp(-a) - math.exp(-b) for a, b in both])
    kept = [ask(prompt, answer)[1] for prompt, answer in r.locality]
    found["locality_tokens"] = mean([sum(right) / len(right) for right in kept])
    return found


def same(found: Scores, wanted: list[dict[str, float | None]], tolerance: float = 1e-10) -> None:
    for name in found.values:
        for own, by_hand in zip(found.values[name], wanted, strict=True):
            assert own == (None if by_hand[name] is None else pytest.approx(by_hand[name], abs=tolerance)), (
                name
            )
    assert found.values.keys() == wanted[0].keys()


# ---------------------------------------------------------------------- against one text at a time
@pytest.mark.parametrize("family", ["gpt2", "olmo", "llama"])
def test_scores_are_those_of_each_text_alone(family):
    """Whatever stands beside a text in its batch; llama's tokenizer puts <s> first."""
    tokenizer = byte_level(first=family == "llama")
    model = tiny(family, vocab=320, dtype=torch.float64, seed=3)
    tokens = [len(tokenizer(" " + r.new, add_special_tokens=False)["input_ids"]) for r in REQUESTS]
    assert min(tokens) == 1 and max(tokens) > 6
    wanted = [expected(model, tokenizer, r, prefixed=True) for r in REQUESTS]
    for batch_size in (1, 3, 64):
        same(score(model, tokenizer, REQUESTS, batch_size=batch_size, prefixed=True), wanted)
    assert (tokenizer("a")["input_ids"][0] == 0) == (family == "llama")


def test_a_record_has_none_of_what_it_lacks(tokenizer):
    found = score(tiny("olmo", vocab=320), tokenizer, REQUESTS).values
    assert [value is None for value in found["PS"]] == [False, True, False, True]
    assert [value is None for value in found["NS"]] == [False, False, True, True]
    assert [value is None for value in found["ES"]] == [False, False, False, True]
    assert [value is None for value in found["neighbourhood_acc"]] == [False, False, True, True]
    assert [value is None for value in found["locality_tokens"]] == [True, True, True, False]
    assert None not in found["rewrite_acc"] and set(found["NS+"]) == {None}


def test_a_judge_scores_the_model_as_it_is_now(tokenizer):
    model = tiny("gpt2", vocab=320, dtype=torch.float64)
    judge = Judge(tokenizer, REQUESTS)
    before = judge(model)
    assert judge(model) == before
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.add_(1.0)
    assert judge(model) == score(model, tokenizer, REQUESTS) != before


@cache
def small():
    return tiny("olmo", vocab=12, dtype=torch.float64)


IDS = st.lists(st.integers(3, 5), min_size=1, max_size=4).map(tuple)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=6), st.integers(1, 4))
def test_texts_that_begin_others_are_read_with_them(pairs, batch_size):
    """Of few tokens, so that many texts begin others, or are the same."""
    model = small()
    readings = Readings(
        [Span(prompt + target, len(prompt)) for prompt, target in pairs], batch_size=batch_size
    )
    losses, right = readings(model)
    for (prompt, target), loss, share in zip(pairs, losses.tolist(), right.tolist(), strict=True):
        own, hits = alone(model, list(prompt), list(target))
        assert loss == pytest.approx(own, abs=1e-10)
        assert share == pytest.approx(sum(hits) / len(hits))
    texts = {prompt + target[:-1] for prompt, target in pairs}
    assert readings.texts == sum(not any(b[: len(a)] == a != b for b in texts) for a in texts)


# ---------------------------------------------------------------------- by hand
WORDS = "Ada is in at near of rome paris new york city x ? ."
PLACE = Request(
    1, "{} is in", "Ada", "rome", "paris", paraphrases=("Ada is at", "x at"), neighbours=("x near", "of")
)


def test_scores_by_hand():
    tokenizer = word_level(WORDS)
    model = Chain(
        tokenizer,
        {
            "in": {"rome": 0.5, "paris": 0.25, "x": 0.25},
            "at": {"rome": 0.25, "paris": 0.5, "x": 0.25},
            "near": {"rome": 0.125, "paris": 0.25, "x": 0.625},
            "of": {"rome": 0.25, "paris": 0.5, "x": 0.25},
        },
    )
    found = score(model, tokenizer, [PLACE])
    by_hand = {
        "ES": 1, "EM": 0.25, "PS": 0, "PM": -0.25, "NS": 1, "NM": (0.125 + 0.25) / 2, "rewrite_acc": 1,
        "paraphrase_acc": 0, "neighbourhood_acc": 0.5, "rewrite_tokens": 1, "paraphrase_tokens": 0,
    }  # fmt: skip
    for name, value in by_hand.items():
        assert found.values[name] == (pytest.approx(value),), name
    assert found.S == 0.0 and found.mean("EM") == pytest.approx(25)
    assert model.read == 5  # two targets of one token after a prompt are one text


def test_a_tie_is_no_success():
    """Neither for the new object nor for the old one, nor as the likeliest token."""
    tokenizer = word_level(WORDS)
    equal = {"rome": 0.4, "paris": 0.4, "x": 0.2}
    found = score(
        Chain(tokenizer, dict.fromkeys(("in", "at", "near", "of"), equal)), tokenizer, [PLACE]
    ).values
    for name in ("ES", "PS", "NS", "EM", "rewrite_acc", "neighbourhood_acc", "rewrite_tokens"):
        assert found[name] == (0.0,), name


def test_a_difference_below_the_rounding_of_a_loss_is_no_tie():
    """Both losses are 10 and more, of which float32 keeps six digits after the point."""
    tokenizer = word_level(WORDS)
    model = Chain(tokenizer, {"in": {"x": 1.0, "rome": math.exp(-17), "paris": math.exp(-17 - 3e-6)}}).float()
    table = model.table.data[tokenizer("in")["input_ids"]]
    table[0, tokenizer("x")["input_ids"]] = 17.0
    table[0, tokenizer("rome")["input_ids"]] = 1e-7
    table[0, tokenizer("paris")["input_ids"]] = 0.0
    model.table.data[tokenizer("in")["input_ids"]] = table
    assert score(model, tokenizer, [Request(1, "{} is in", "Ada", "rome", "paris")]).values["ES"] == (1.0,)
    assert score(model, tokenizer, [Request(1, "{} is in", "Ada", "paris", "rome")]).values["ES"] == (0.0,)


def test_targets_of_different_lengths_compare_by_their_mean():
    """Of 0.3 and 0.9 * 0.8 * 0.1 the second is less likely, and has the higher mean."""
    tokenizer = word_level(WORDS)
    chain = {
        "in": {"rome": 0.3, "new": 0.1, "x": 0.6},
        "new": {"york": 0.9, "x": 0.1},
        "york": {"city": 0.8, "x": 0.2},
    }
    model = Chain(tokenizer, chain)
    found = score(model, tokenizer, [Request(1, "{} is in", "Ada", "new york city", "rome")])
    assert found.values["EM"] == (pytest.approx((0.9 * 0.8 * 0.1) ** (1 / 3) - 0.3),)
    assert found.values["ES"] == (1.0,) and (0.9 * 0.8 * 0.1) < 0.3
    assert found.values["rewrite_acc"] == (0.0,)
    assert found.values["rewrite_tokens"] == (pytest.approx(2 / 3),)


def test_zsre_by_hand():
    """Shares of tokens, first over a target's, then over a record's, then over records."""
    tokenizer = word_level(WORDS)
    model = Chain(
        tokenizer,
        {
            "?": {"new": 0.6, "rome": 0.4},
            "new": {"york": 0.9, "x": 0.1},
            "york": {"x": 0.9, "city": 0.1},
            "of": {"paris": 1.0},
        },
    )
    asked = [
        Request(1, "{} is ?", "Ada", "new york city", paraphrases=("is ?",), locality=(("x of", "rome"),)),
        Request(
            2, "x {} ?", "Ada", "rome", paraphrases=("of",), locality=(("x of", "paris"), ("x ?", "new york"))
        ),
    ]
    found = score(model, tokenizer, asked)
    assert found.values["rewrite_tokens"] == pytest.approx((2 / 3, 0))
    assert found.values["paraphrase_tokens"] == pytest.approx((2 / 3, 0))
    assert found.values["locality_tokens"] == pytest.approx((0, 1))
    assert found.S_tokens == pytest.approx(3 / (3 / 100 * 2 + 1 / 50)) and found.S is None
    told = found.summary()
    assert told["ES"] is None and told["n"]["ES"] == 0 and told["interval"]["ES"] is None
    assert repr(found) == (
        "Scores(S 37.5: rewrite_tokens 33.3 ± 46.2, paraphrase_tokens 33.3 ± 46.2, locality_tokens 50.0 ± 69.3; "
        "2 records)"
    )


def test_the_edit_is_stated_before_the_neighbours():
    """The model repeats what stands before the full stop... where it is: "rome . x near"."""
    tokenizer = word_level(WORDS)
    model = tiny("gpt2", vocab=len(tokenizer), dtype=torch.float64)
    found = score(model, tokenizer, [PLACE], prefixed=True).values
    ids = {word: tokenizer(word)["input_ids"][0] for word in ("rome", "paris")}
    wins, differences = [], []
    for text in ("Ada is in rome . x near", "Ada is in rome . of"):
        with torch.no_grad():
            p = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].softmax(-1)
        wins.append((p[ids["paris"]] > p[ids["rome"]]).item())
        differences.append((p[ids["paris"]] - p[ids["rome"]]).item())
    assert found["NS+"] == (sum(wins) / 2,) and found["NM+"] == (
        pytest.approx(sum(differences) / 2, abs=1e-12),
    )
    assert found["NM+"] != found["NM"]
    assert "NS+" in repr(score(model, tokenizer, [PLACE], prefixed=True))


def test_a_model_that_gives_no_numbers_has_no_success():
    tokenizer = word_level(WORDS)
    model = Chain(tokenizer, {})
    model.table.data.fill_(torch.nan)
    found = score(model, tokenizer, [PLACE])
    told = found.summary()
    assert told["ES"] == told["NS"] == told["rewrite_acc"] == told["S"] == 0.0
    assert told["EM"] is None and told["n"]["EM"] == 0
    json.dumps(told, allow_nan=False)


# ---------------------------------------------------------------------- averages
def test_averages_and_intervals():
    assert average([1.0, 0.0, None, 1.0, 1.0]) == (
        pytest.approx(75),
        pytest.approx(196 * math.sqrt(3) / 4 / 2),
        4,
    )
    assert average([0.5, None]) == (50.0, None, 1)
    assert average([None]) == average([]) == (None, None, 0)
    assert average([0.25, 0.25]) == (25.0, 0.0, 2)


def test_harmonic_means():
    assert harmonic([100.0, 50.0, 25.0]) == pytest.approx(300 / 7)
    assert harmonic([40.0] * 3) == pytest.approx(40)
    assert harmonic([90.0, 0.0, 80.0]) == 0.0
    assert harmonic([90.0, None, 80.0]) is None


def test_the_summary_averages_records_and_leaves_out_those_without(tokenizer):
    values = {"ES": (1.0, 0.0, 1.0), "PS": (0.5, None, 1.0), "NS": (None, None, 0.2)}
    made = Scores((1, 2, "c"), {**values, "NS+": (None,) * 3, "rewrite_tokens": (1.0,) * 3,
                               "paraphrase_tokens": (None,) * 3, "locality_tokens": (None,) * 3})  # fmt: skip
    told = made.summary()
    assert (told["ES"], told["PS"], told["NS"]) == pytest.approx((200 / 3, 75, 20))
    assert (told["n"]["ES"], told["n"]["PS"], told["n"]["NS"], told["n"]["NS+"]) == (3, 2, 1, 0)
    assert told["S"] == pytest.approx(3 / (3 / 200 + 1 / 75 + 1 / 20)) and told["S_tokens"] is None
    assert (
        told["interval"]["PS"] == pytest.approx(196 * 0.25 / math.sqrt(2)) and told["interval"]["NS"] is None
    )
    assert repr(made) == "Scores(S 38.3: ES 66.7 ± 53.3, PS 75.0 ± 34.6, NS 20.0; 3 records)"
    whole = score(tiny("olmo", vocab=320), tokenizer, REQUESTS).summary()
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole and whole["records"] == 4


# ---------------------------------------------------------------------- refusals, progress
def test_what_cannot_be_scored_is_refused(tokenizer):
    with pytest.raises(BadInput, match="got none"):
        Judge(tokenizer, [])
    with pytest.raises(BadInput, match="got 0 in case 3"):
        Judge(tokenizer, [Request(3, "no place", "Ada", "London")])
    with pytest.raises(BadInput, match="at least one text; got 0"):
        Judge(tokenizer, REQUESTS, batch_size=0)
    with pytest.raises(BadInput, match=r"context of 8 tokens; got \d+ in case 7"):
        score(tiny("gpt2", vocab=320, context=8), tokenizer, REQUESTS)


def test_progress_is_told(tokenizer):
    told = []
    judge = Judge(tokenizer, REQUESTS, batch_size=4)
    judge(tiny("olmo", vocab=320), progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] and [done for done, _ in told[:2]] == [4, 8]


# ---------------------------------------------------------------------- real records
DATA = os.environ.get("KEMEM_DATA")


@pytest.mark.skipif(not DATA, reason="KEMEM_DATA is not set: no real data at hand")
def test_real_records():
    """Eight of CounterFact and eight of zsRE, by the tokenizer of OLMo and a random model."""
    folder = Path(DATA)
    file = folder / "tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    model = tiny("olmo", vocab=len(tokenizer), dtype=torch.float64)
    asked = [
        *requests(folder / "counterfact/counterfact_500.json", limit=8),
        *requests(folder / "zsre/zsre_mend_train-500.json", limit=8),
    ]
    found = score(model, tokenizer, asked)
    told = found.summary()
    assert told["n"]["ES"] == told["n"]["PS"] == told["n"]["NS"] == told["n"]["locality_tokens"] == 8
    assert told["n"]["rewrite_tokens"] == 16 and 0 < told["NS"] < 100
    for i in (0, 9):
        wanted = expected(model, tokenizer, asked[i], prefixed=False)
        for name, own in found.values.items():
            assert own[i] == (None if wanted[name] is None else pytest.approx(wanted[name], abs=1e-9)), name
