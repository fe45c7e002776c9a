"""Loss, probabilities and ranks against sums written out, one text at a time."""

import math

import pytest
import torch
from conftest import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kemem import evaluation
from kemem.errors import BadInput
from kemem.objective import IGNORED, Masked

CAUSAL = ("olmo", "olmo2", "llama", "qwen2", "qwen3", "gpt2", "gptj", "gpt_neox")
TEXTS = [
    "Ada Lovelace was born in London. Ada Lovelace worked with Charles Babbage.",
    "Emmy Noether was born in Erlangen and worked in Göttingen, later in Bryn Mawr.",
]


@pytest.fixture(scope="module")
def tokenizer():
    """A small byte-level tokenizer, as the book trains them: many words are several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


@pytest.fixture(scope="module", params=CAUSAL)
def model(request):
    return tiny(request.param, vocab=300, dtype=torch.float64)


@pytest.fixture(scope="module")
def olmo():
    return tiny("olmo", vocab=300, dtype=torch.float64)


def rounding(model) -> float:
    """GPT-J's attention computes in float32 whatever the model's type."""
    return 1e-5 if model.config.model_type == "gptj" else 1e-9


class Rows:
    """Rows with different numbers of target tokens."""

    def __init__(self, rows: int = 7, length: int = 9) -> None:
        self.ids = torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(0))
        self.labels = self.ids.clone()
        for row in range(rows):
            self.labels[row, 2 + row :] = IGNORED

    def __len__(self):
        return len(self.ids)

    def batch(self, indices):
        return {"input_ids": self.ids[indices], "labels": self.labels[indices]}


def alone(model, ids: list[int], begin: int) -> float:
    """Sum of log p of ids[begin:], each after what stands before it, from separate passes without padding."""
    total = 0.0
    for place in range(begin, len(ids)):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
        total += (scores[ids[place]] - scores.exp().sum().log()).item()
    return total


# ---------------------------------------------------------------------- loss
def test_loss_counts_every_target_token_once(olmo):
    data = Rows()
    sums, count, means = 0.0, 0, []
    for row in range(len(data)):
        known = 2 + row if 2 + row < 9 else 9
        own = alone(olmo, data.ids[row, :known].tolist(), 1)
        sums, count, means = sums - own, count + known - 1, [*means, -own / (known - 1)]
    expected = sums / count
    assert evaluation.loss(olmo, data) == pytest.approx(expected, abs=1e-10)
    assert evaluation.loss(olmo, data, batch_size=2) == pytest.approx(expected, abs=1e-10)
    assert abs(sum(means) / len(means) - expected) > 1e-3  # a mean of means is something else
    assert evaluation.loss(olmo, data, limit=1) == pytest.approx(means[0], abs=1e-10)


def test_loss_of_a_model_that_knows_nothing_is_the_log_of_the_vocabulary():
    model = tiny("olmo", vocab=300)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert evaluation.loss(model, Rows()) == pytest.approx(math.log(300), abs=1e-6)


def test_loss_of_a_masked_model_depends_on_the_seed_alone():
    model = tiny("roberta", vocab=300)
    hide = Masked(mask_id=2, vocabulary=300, share=0.5)
    found = [evaluation.loss(model, Rows(), objective=hide, batch_size=size) for size in (1, 3, 7)]
    assert found[1:] == pytest.approx(found[:1] * 2, abs=1e-5)
    assert abs(evaluation.loss(model, Rows(), objective=hide, seed=1) - found[0]) > 1e-3


def test_a_text_without_targets_is_refused(olmo):
    data = Rows()
    data.labels[:] = IGNORED
    with pytest.raises(BadInput, match="7 rows without any"):
        evaluation.loss(olmo, data)


# ---------------------------------------------------------------------- targets
PAIRS = [
    ("Ada Lovelace was born in", "London"),
    ("Ada", "Lovelace was born in Göttingen"),
    ("Emmy Noether, who worked in Bryn Mawr, was born in", "Erlangen"),
    ("Ada worked with", " Charles"),
    ("Ada worked with Babbage", "."),
]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_target_probabilities_are_those_of_each_text_alone(model, tokenizer, batch_size):
    """Padded beside texts of other lengths, in every causal family."""
    sums = evaluation.target_log_probability(model, tokenizer, PAIRS, mean=False, batch_size=batch_size)
    means = evaluation.target_log_probability(model, tokenizer, PAIRS, batch_size=batch_size)
    assert sums.dtype == torch.float64
    for (prompt, target), found, mean in zip(PAIRS, sums, means, strict=True):
        first = tokenizer(prompt)["input_ids"]
        whole = tokenizer(prompt + ("" if target in (".", " Charles") else " ") + target)["input_ids"]
        assert whole[: len(first)] == first
        expected = alone(model, whole, len(first))
        assert found.item() == pytest.approx(expected, abs=rounding(model))
        assert mean.item() == pytest.approx(expected / (len(whole) - len(first)), abs=rounding(model))


def test_a_start_stands_before_every_prompt(olmo, tokenizer):
    end = tokenizer.eos_token_id
    found = evaluation.target_log_probability(olmo, tokenizer, PAIRS[:1], mean=False, start=[end])
    first = tokenizer(PAIRS[0][0])["input_ids"]
    whole = tokenizer(" ".join(PAIRS[0]))["input_ids"]
    assert found.item() == pytest.approx(alone(olmo, [end, *whole], 1 + len(first)), abs=1e-9)
    empty = evaluation.target_log_probability(olmo, tokenizer, [("", "London")], mean=False, start=[end])
    assert empty.item() == pytest.approx(alone(olmo, [end, *tokenizer("London")["input_ids"]], 1), abs=1e-9)


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("born in", "London", "born in London"),
        ("born in ", "London", "born in London"),
        ("born in", " London", "born in London"),
        ("born in ", " London", "born in London"),
        ("born in", ".", "born in."),
        ("born in ", "(London)", "born in (London)"),
        ("in the year", "1815", "in the year 1815"),
    ],
)
def test_prompt_and_target_are_joined_by_one_space(tokenizer, prompt, target, text):
    span = evaluation.encode(tokenizer, prompt, target)
    assert tokenizer.decode(span.ids) == text
    assert list(span.prompt) == tokenizer(prompt.rstrip())["input_ids"]
    assert tokenizer.decode(span.target).strip() == target.strip()


def test_the_prompt_does_not_depend_on_what_follows(tokenizer):
    """ "Lovela" + "ce" would be merged across the border: the two sides are cut apart instead."""

    class Merging:
        def __call__(self, texts, add_special_tokens):
            assert not add_special_tokens
            table = {"a": [1], ".": [2], "a.": [9]}
            return {"input_ids": [table[text] for text in texts]}

    span = evaluation.encode(Merging(), "a", ".")
    assert span.prompt == (1,) and span.target == (2,)


def test_empty_sides_are_refused(tokenizer):
    with pytest.raises(BadInput, match="without a token"):
        evaluation.encode(tokenizer, "born in", "")
    with pytest.raises(BadInput, match="got none"):
        evaluation.encode(tokenizer, "", "London")


# ---------------------------------------------------------------------- candidates
PROMPTS = [
    "Ada Lovelace was born in",
    "Ada worked with",
    "Emmy Noether, who was later in Bryn Mawr, worked in",
]
CANDIDATES = [
    ["London", "Erlangen", "Göttingen"],
    ["Charles Babbage", "Emmy"],
    ["Göttingen", "London", "Mawr", "E"],
]


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_candidates_score_as_their_targets_do(model, tokenizer, batch_size, mean):
    """Prompts are read once and remembered; each score is that of the whole text read anew."""
    found = evaluation.cloze(
        model, tokenizer, PROMPTS, CANDIDATES, [0, 1, 2], mean=mean, batch_size=batch_size
    )
    assert found.scores.shape == (3, 4)
    for row, (prompt, words) in enumerate(zip(PROMPTS, CANDIDATES, strict=True)):
        pairs = [(prompt, word) for word in words]
        expected = evaluation.target_log_probability(model, tokenizer, pairs, mean=mean)
        torch.testing.assert_close(found.scores[row, : len(words)], expected, rtol=0, atol=rounding(model))
        assert (found.scores[row, len(words) :] == -torch.inf).all()
        order = sorted(range(len(words)), key=lambda i: -expected[i].item())
        assert found.rank[row].item() == 1 + order.index([0, 1, 2][row])
    assert found.accuracy == pytest.approx((found.rank == 1).sum().item() / 3)


def test_candidates_of_one_token_and_a_start(olmo, tokenizer):
    found = evaluation.cloze(olmo, tokenizer, ["Ada was"], [["."]], [0], start=[tokenizer.eos_token_id])
    pairs = [("Ada was", ".")]
    expected = evaluation.target_log_probability(olmo, tokenizer, pairs, start=[tokenizer.eos_token_id])
    assert found.scores.item() == pytest.approx(expected.item(), abs=1e-9)


def test_ties_count_against_the_right_answer(olmo, tokenizer):
    found = evaluation.cloze(olmo, tokenizer, ["Ada was"], [["born", "born"]], [0])
    assert found.rank.tolist() == [2] and found.accuracy == 0.0


def test_wrong_questions_are_refused(olmo, tokenizer):
    with pytest.raises(BadInput, match="3 prompts, 2 lists and 3 answers"):
        evaluation.cloze(olmo, tokenizer, PROMPTS, CANDIDATES[:2], [0, 0, 0])
    with pytest.raises(BadInput, match="among 2 candidates; got 2"):
        evaluation.cloze(olmo, tokenizer, PROMPTS[1:2], CANDIDATES[1:2], [2])


# ---------------------------------------------------------------------- samples, modes
def test_samples(olmo, tokenizer):
    ids = tokenizer("Ada was born")["input_ids"]
    for _ in range(6):
        with torch.no_grad():
            ids.append(olmo(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    before = torch.random.get_rng_state()
    assert "Ada was born" + evaluation.sample(olmo, tokenizer, "Ada was born", tokens=6) == expected
    drawn = [evaluation.sample(olmo, tokenizer, "Ada", tokens=8, seed=s, temperature=1.0) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(BadInput, match="context of 64 tokens"):
        evaluation.sample(olmo, tokenizer, "Ada", tokens=64)


def test_dropout_is_off_and_every_mode_comes_back(tokenizer):
    model = tiny("gpt2", vocab=300, resid_pdrop=0.5).train()
    model.transformer.h[0].eval()
    first = evaluation.loss(model, Rows())
    assert evaluation.loss(model, Rows()) == first
    assert model.training and not model.transformer.h[0].training and model.transformer.h[1].mlp.training
    with pytest.raises(RuntimeError), evaluation.evaluating(model):
        raise RuntimeError
    assert model.training and not model.transformer.h[0].mlp.training
    with evaluation.evaluating(model):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
