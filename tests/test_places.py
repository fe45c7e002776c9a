"""Where a subject stands in the tokens of its prompt, against counts of bytes and letters that use no offsets.

The tokenizers are real ones of three kinds, trained here: byte-level BPE, BPE with "▁" for spaces, WordPiece.
"""

import json
import os
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kemem.corpora import load_tokenizer
from kemem.editing.facts import filled, mention
from kemem.editing.places import found, leading, place, shifts
from kemem.editing.readers import requests
from kemem.errors import BadInput

REAL = pytest.mark.skipif(
    not os.environ.get("KEMEM_DATA"),
    reason="needs the published files: set KEMEM_DATA to the folder with them",
)
LETTERS = "abgelnorstwyALUWk0éñÉ中文😀'{}(),.?-_:ﬁ"
SAID = [
    "Angola's capital, Luanda, is in Angola.",
    "Where was Go Hyeon-jeong born? The café of Élisée Reclus is {} in Angola, too.",
    "The mother tongue of José Ñandú is Spanish. In Angola's west they say so.",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


# ---------------------------------------------------------------------- tokenizers
def byte_level(
    normalizer=None, *, before: bool = False, trim: bool = True, prefix: bool = False
) -> Tokenizer:
    """GPT-2, or with NFC OLMo and Qwen; with before, one that puts <s> first as Llama 3 does."""
    core = Tokenizer(models.BPE())
    if normalizer:
        core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trimmed = processors.ByteLevel(trim_offsets=trim, add_prefix_space=prefix)
    core.post_processor = processors.Sequence([trimmed, begins("<s> $A")]) if before else trimmed
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(SAID * 3, trained(trainers.BpeTrainer, initial_alphabet=alphabet))
    return core


def metaspace(*, normalised: bool) -> Tokenizer:
    """Llama 2: <s> first, then ▁ before the text; unknown letters as bytes; words may merge with what follows."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if normalised:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.post_processor = begins("<s> $A")
    core.train_from_iterator(
        ["Angola's capital, Luanda, is in Angola. Where was Go born?"] * 3,
        trained(trainers.BpeTrainer, special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]),
    )
    return core


def word_piece() -> Tokenizer:
    """BERT: lower case without accents, [CLS] and [SEP] around."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = begins("<s> $A </s>")
    core.decoder = decoders.WordPiece()
    alphabet = sorted(set(unicodedata.normalize("NFD", LETTERS).lower()))
    words = [f"{a}{''.join(alphabet)}" for a in alphabet]  # every letter within a word
    core.train_from_iterator(SAID + words, trained(trainers.WordPieceTrainer, initial_alphabet=alphabet))
    return core


def begins(form: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=form, special_tokens=[("<s>", 1), ("</s>", 2)])


def trained(trainer: Callable, **settings_):
    return trainer(**{"vocab_size": 420, "special_tokens": SPECIAL, "show_progress": False, **settings_})


CORES: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "bytes, <s>": lambda: byte_level(before=True),
    "bytes, NFC, offsets with spaces": lambda: byte_level(normalizers.NFC(), trim=False),
    "bytes, NFC, <s>": lambda: byte_level(normalizers.NFC(), before=True),
    "bytes, space before": lambda: byte_level(prefix=True),
    "metaspace by normaliser": lambda: metaspace(normalised=True),
    "metaspace by cutting": lambda: metaspace(normalised=False),
    "word pieces": word_piece,
}


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=CORES[kind](), unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


# ---------------------------------------------------------------------- the same without offsets
def units(kind: str, text: str) -> bytes | str:
    """What the tokens of a text are made of, in order, other than a space put before it."""
    if kind.startswith("bytes"):
        return (unicodedata.normalize("NFC", text) if "NFC" in kind else text).encode()
    if kind.startswith("metaspace"):
        return text.encode()
    bare = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return "".join(bare.lower().split())


BYTE = {letter: byte for byte, letter in enumerate(
    chr(b if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else 256 + sum(
        not (33 <= c <= 126 or 161 <= c <= 172 or c >= 174) for c in range(b)
    )) for b in range(256)
)}  # fmt: skip


def unit(kind: str, token: str) -> bytes | str:
    """What one token is made of; nothing for a special one."""
    if token in SPECIAL:
        return "" if kind == "word pieces" else b""
    if kind.startswith("bytes"):
        return bytes(BYTE[letter] for letter in token)
    if kind.startswith("metaspace"):
        fallback = len(token) == 6 and token.startswith("<0x")
        return bytes([int(token[3:5], 16)]) if fallback else token.replace("▁", " ").encode()
    return token.removeprefix("##") if len(token) > 2 else token


def counted(kind: str, before: str, subject: str, after: str) -> tuple[list[str], int, int, int]:
    """All tokens, the first and last of the subject, and how many units were put before the text."""
    text = (before + subject + after).rstrip(" ")
    tokens = tokenizer(kind).convert_ids_to_tokens(tokenizer(kind)(text)["input_ids"])
    parts = [unit(kind, token) for token in tokens]
    whole = parts[0][:0].join(parts)
    assume(whole[-len(units(kind, text)) :] == units(kind, text))  # no letter that it does not know
    extra = len(whole) - len(units(kind, text))
    lead = before + subject[: len(subject) - len(subject.lstrip())]
    begin = extra + len(units(kind, lead))
    end = extra + len(units(kind, before + subject.rstrip()))
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    # the smallest run of tokens that holds the first unit of the subject, and that which holds its last
    first = next(i for i, n in enumerate(ends) if n > begin)
    return tokens, first, next(i for i, n in enumerate(ends) if n >= end), extra


subjects = st.one_of(
    st.sampled_from(["Angola", " Angola ", "Go Hyeon-jeong", "Élisée", "中文", "e\u0301", "café", "cafe\u0301", "{}",
                     "A{}b", "😀", "a", "Angola'", "Jose\u0301 N\u0303andu\u0301", "각", "각", "ΐ"]),
    st.text(LETTERS + " \u0301\u0303\u0323", min_size=1, max_size=9),
).filter(lambda s: s.strip() and not unicodedata.combining(s.strip()[0]))  # fmt: skip
befores = st.sampled_from(
    [
        "",
        "In ",
        "The mother tongue of ",
        "(",
        "中",
        "Words {a}. ",
        "Angola ",
        "é",
        "😀 ",
        "cafe\u0301 ",
        "x  ",
    ]
)
afters = st.sampled_from(
    ["", " ", " is in", "'s capital", ", the", ")", "n", " Angola", "中", "  is", "?", "{ }"]
)


@pytest.mark.parametrize("kind", CORES)
@given(before=befores, subject=subjects, after=afters, twice=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_subject_is_where_its_units_are(kind, before, subject, after, twice):
    if twice and "{}" not in subject:
        before, after = f"{subject} and {before}", f"{after} of {subject}"
    got = place(tokenizer(kind), f"{before}{{}}{after}", subject)
    tokens, first, last, extra = counted(kind, before, subject, after)
    assert tokenizer(kind).convert_ids_to_tokens(list(got.ids)) == tokens
    assert got.last == last
    # at the very beginning, what a tokenizer puts before the text may count as the subject's
    assert got.first == first or (extra and not before.strip() and 0 <= first - got.first <= 1)
    assert 0 <= got.first <= got.last < len(got) == len(tokens)


@pytest.mark.parametrize("kind", CORES)
@given(rows=st.lists(st.tuples(befores, subjects, afters), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_padding_moves_a_place_by_its_shift(kind, rows):
    tok = tokenizer(kind)
    places = [place(tok, f"{before}{{}}{after}", subject) for before, subject, after in rows]
    texts = [filled(f"{before}{{}}{after}", subject).rstrip(" ") for before, subject, after in rows]
    for side in ("left", "right"):
        tok.padding_side = side
        padded = tok(texts, padding=True)
        moved = shifts([len(p) for p in places], side)
        for p, by, ids, mask in zip(
            places, moved, padded["input_ids"], padded["attention_mask"], strict=True
        ):
            assert ids[by : by + len(p)] == list(p.ids)
            assert mask == [0] * by + [1] * len(p) + [0] * (len(ids) - by - len(p))
            assert ids[by + p.last] == p.ids[p.last]


def test_shifts():
    assert shifts([3, 7, 5], "left") == [4, 0, 2]
    assert shifts([3, 7, 5], "right") == [0, 0, 0]
    assert shifts([], "left") == []
    with pytest.raises(BadInput, match="on the left or right; got 'middle'"):
        shifts([3], "middle")


# ---------------------------------------------------------------------- one by one
def spelled(kind: str, template: str, subject: str) -> list[str]:
    got = place(tokenizer(kind), template, subject)
    return tokenizer(kind).convert_ids_to_tokens(list(got.ids[got.first : got.last + 1]))


def test_a_character_of_several_tokens_is_read_at_the_last_of_them():
    tok = tokenizer("bytes")
    got = place(tok, "In {} is", "😀")
    assert got.last - got.first == 3 and tok.decode(got.ids[got.first : got.last + 1]) == "😀"
    assert spelled("metaspace by cutting", "In {} is", "中") == ["<0xE4>", "<0xB8>", "<0xAD>"]


def test_a_token_that_runs_on_is_the_subject_s():
    (whole,) = spelled("metaspace by normaliser", "{}'s capital", "Angola")
    assert whole.startswith("▁Angola'")
    assert spelled("word pieces", "In {}s", "Angola")[-1] != "##s"


def test_special_tokens_are_counted_and_never_taken():
    for kind in CORES:
        got = place(tokenizer(kind), "{}", "Angola")
        taken = tokenizer(kind).convert_ids_to_tokens(list(got.ids[got.first : got.last + 1]))
        assert "Angola".lower() in "".join(taken).lower().replace("##", "") and not {*taken} & {*SPECIAL}
        assert got.first == len(leading(tokenizer(kind)))
    assert place(tokenizer("word pieces"), "{}", "Angola").ids[-1] == 2  # </s> stays


def test_a_subject_put_first_or_last_or_twice():
    kind = "bytes, <s>"
    assert place(tokenizer(kind), "{} is in Angola", "Angola").last < place(
        tokenizer(kind), "Angola is in {}", "Angola").first  # fmt: skip
    end = place(tokenizer(kind), "Angola is in {}  ", "Angola  ")
    assert end.last == len(end) - 1


def test_leading():
    assert {kind: leading(tokenizer(kind)) for kind in CORES} == {
        kind: (1,) if "<s>" in kind or kind.startswith(("metaspace", "word")) else () for kind in CORES
    }
    core = Tokenizer(models.BPE())
    core.post_processor = begins("<s> $A")
    core.train_from_iterator(["xyz"], trained(trainers.BpeTrainer))
    with pytest.raises(BadInput, match="special tokens stand around a text"):
        leading(PreTrainedTokenizerFast(tokenizer_object=core))  # does not know the letter a


# ---------------------------------------------------------------------- prompts that name the subject
@pytest.mark.parametrize("kind", ["bytes, NFC, <s>", "metaspace by normaliser", "word pieces"])
@given(before=befores, subject=subjects, after=afters)
@settings(max_examples=60, deadline=None)
def test_found_is_place_at_the_mention(kind, before, subject, after):
    prompt = before + subject + after
    begin, name = mention(prompt, subject), subject.strip()
    assume("{}" not in prompt)
    template = f"{prompt[:begin]}{{}}{prompt[begin + len(name) :]}"
    assert found(tokenizer(kind), prompt, subject) == place(tokenizer(kind), template, name)


def test_found_takes_the_first_mention_and_leaves_spaces_out():
    tok = tokenizer("bytes")
    assert found(tok, "In Angola, Angola is", " Angola ") == place(tok, "In {}, Angola is", "Angola")
    assert found(tok, "Also A is", "A") == place(tok, "Also {} is", "A")
    assert found(tok, "{}s of {}", "{}s ") == place(tok, "{} of {}", "{}s")


# ---------------------------------------------------------------------- bad input
class Slow:
    is_fast = False


def test_what_has_no_place_is_refused():
    tok = tokenizer("bytes")
    lossy = tokenizer("word pieces")
    for message, ask in {
        "one {} for the subject; got none of case 7: 'It is in'": lambda: place(
            tok, "It is in", "Ur", case_id=7
        ),
        "one {} for the subject; got none: 'It is in'": lambda: place(tok, "It is in", "Ur"),
        "expected a subject; got an empty one of case 0;": lambda: place(tok, "{} is", "  ", case_id=0),
        "names its subject 'Ur'; got 'It is in' of case 7;": lambda: found(tok, "It is in", "Ur", case_id=7),
        "names its subject ' '; got 'It is in';": lambda: found(tok, "It is in", " "),
        "a fast one; got Slow;": lambda: place(Slow(), "{} is", "Ur"),
        "got '\\u200b' of case 9, without one": lambda: place(lossy, "{} is", "\u200b", case_id=9),
        "got '\\u200b' of case 8, without one": lambda: found(lossy, "\u200b is", "\u200b", case_id=8),
    }.items():
        with pytest.raises(BadInput) as refused:
            ask()
        assert message in str(refused.value) and "\n" not in str(refused.value)


# ---------------------------------------------------------------------- the published prompts
@REAL
def test_published_prompts_in_the_tokens_of_olmo():
    """By decoding: up to the last token the subject is whole, one token before it is not.

    The flat file has the prompts of the rebuilt one, written out.
    """
    tok = load_tokenizer("$KEMEM_DATA/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json")
    folder = Path(os.environ["KEMEM_DATA"]) / "counterfact"
    asked = [
        (place(tok, r.prompt, r.subject, case_id=r.case_id), r.prompt.partition("{}")[0], r.subject)
        for name in ("counterfact/counterfact_500.json", "zsre/zsre_mend_train-500.json")
        for r in requests(f"$KEMEM_DATA/{name}")
    ]
    for name in ("counterfact-edit.json", "known_1000.json"):
        asked += [
            (found(tok, r["prompt"], r["subject"]), r["prompt"].partition(r["subject"])[0], r["subject"])
            for r in json.loads((folder / name).read_text(encoding="utf-8"))
        ]
    assert len(asked) == 500 + 500 + 10_000 + 1_209
    wholes = tok.batch_decode([p.ids[: p.last + 1] for p, *_ in asked])
    shorter = tok.batch_decode([p.ids[: p.last] for p, *_ in asked])
    for (_, before, subject), whole, short in zip(asked, wholes, shorter, strict=True):
        want = unicodedata.normalize("NFC", before + subject.rstrip())
        assert whole.startswith(want) and not short.startswith(want)
