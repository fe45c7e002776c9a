"""Tokenizers and packing: nothing is lost but the tail, borders are where documents end, seeds decide."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from kemem.corpora import Blocks, instances, load_tokenizer, pack, packing, train_tokenizer
from kemem.corpora import tokenizer as tokenizers_of_kemem
from kemem.corpora.packing import permutation
from kemem.errors import BadInput

TEXTS = [
    f"The {colour} house of {name} stands in {place}; it has {n} rooms and costs {n * 7} crowns."
    for n, colour in enumerate(("red", "blue", "white", "green"), start=3)
    for name in ("Anna", "Boris", "Carla")
    for place in ("Aberlow", "Cresthaven", "Dunmoor")
]
BPE = train_tokenizer(TEXTS, 340)
WORDS = train_tokenizer(TEXTS, 60, unit="word")
END = BPE.eos_token_id

documents = st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=12)


# --- tokenizers


def test_special_tokens_have_the_first_ids() -> None:
    for tokenizer in (BPE, WORDS):
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 1, 2)
        assert tokenizer.bos_token_id == tokenizer.eos_token_id
        assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|padding|>", "<mask>"]
    assert len(BPE) == 340 and BPE.unk_token is None
    assert len(WORDS) <= 60 and WORDS.unk_token_id == 3


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
@settings(max_examples=300, deadline=None)
def test_byte_level_tokens_give_every_text_back(text: str) -> None:
    ids = BPE(text, add_special_tokens=False)["input_ids"]
    assert BPE.decode(ids) == text


def test_frequent_text_is_short() -> None:
    ids = BPE(TEXTS[0])["input_ids"]
    assert len(ids) < len(TEXTS[0]) / 3
    assert max(ids) >= 3 + 256  # merges are used, not bytes alone


def test_words_are_whole_and_strange_ones_unknown() -> None:
    ids = WORDS("The red house of Zebulon", add_special_tokens=False)["input_ids"]
    assert WORDS.convert_ids_to_tokens(ids) == ["The", "red", "house", "of", "<unk>"]


@pytest.mark.parametrize("unit", ["bytes", "word"])
def test_training_twice_gives_the_same_tokenizer(unit: str) -> None:
    size = 320 if unit == "bytes" else 20  # less than there is to learn, so that ties are broken
    first, second = (train_tokenizer(iter(TEXTS), size, unit=unit) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first) == size


def test_a_tokenizer_survives_saving(tmp_path: Path) -> None:
    for tokenizer in (BPE, WORDS):
        tokenizer.save_pretrained(tmp_path)
        for found in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
            assert found(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
            assert found.special_tokens_map == tokenizer.special_tokens_map
            assert found.decode(found(" a  b .")["input_ids"]) == tokenizer.decode(
                tokenizer(" a  b .")["input_ids"]
            )


def test_a_file_of_the_tokenizers_package(tmp_path: Path) -> None:
    file = tmp_path / "any.json"
    BPE.backend_tokenizer.save(str(file))
    found = load_tokenizer(str(file))
    assert found(TEXTS)["input_ids"] == BPE(TEXTS)["input_ids"]
    assert (found.eos_token_id, found.pad_token_id, found.mask_token_id) == (0, 1, 2)
    assert found.unk_token is None


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: train_tokenizer(TEXTS, 258), "at least 259 entries; got 258"),
        (lambda: train_tokenizer(TEXTS, 4, unit="word"), "at least 5 entries; got 4"),
        (lambda: train_tokenizer([], 400), "got none"),
        (lambda: train_tokenizer(["", " \n"], 400, unit="word"), "got none"),
        (lambda: train_tokenizer(TEXTS, 400, unit="letters"), "bytes, word; got 'letters'"),
    ],
)
def test_what_is_not_trained(ask: Callable[[], object], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        ask()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def refusal(name: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_tokenizer(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.json").write_text('{"text": "no tokenizer"}')
    assert "bad.json could not be read" in refusal(str(tmp_path / "bad.json"))
    assert "does not exist" in refusal(str(tmp_path / "none"))
    assert "does not exist" in refusal("none.json")
    (tmp_path / "empty").mkdir()
    assert "was not loaded" in refusal(str(tmp_path / "empty"))
    monkeypatch.setattr("kemem.commits.HfApi", Away)
    assert "owner/name was not loaded: no route to host" in refusal("owner/name")


class Hub:
    """Stands in for the network: two branches, each with a commit."""

    def list_repo_refs(self, name: str) -> object:
        refs = [
            type("Ref", (), {"name": one, "target_commit": f"commit of {one}"})
            for one in ("main", "step1000-tokens4B")
        ]
        return type("Refs", (), {"tags": [], "branches": refs})()


class Away:
    """No network."""

    def list_repo_refs(self, name: str) -> object:
        raise ConnectionError("no route\nto host")

    def model_info(self, name: str, *, revision: str | None) -> object:
        raise ConnectionError("no route\nto host")


@pytest.mark.parametrize(
    ("api", "revision", "asked"),
    [
        (Hub, "main", {"revision": "commit of main", "local_files_only": False}),
        (Hub, "step1000", {"revision": "commit of step1000-tokens4B", "local_files_only": False}),
        (Away, "main", {"revision": "main", "local_files_only": True}),
    ],
)
def test_the_hub_is_pinned_and_without_it_the_cache_serves(
    api: type, revision: str, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Auto:
        @staticmethod
        def from_pretrained(*names: str, **more: object) -> PreTrainedTokenizerFast:
            calls.append((*names, more))
            return BPE

    monkeypatch.setattr("kemem.commits.HfApi", api)
    monkeypatch.setattr(tokenizers_of_kemem, "AutoTokenizer", Auto)
    assert load_tokenizer("owner/name", revision=revision) is BPE
    assert calls == [("owner/name", asked)]


# --- packing


def stream(blocks: Blocks) -> list[int]:
    return blocks.ids.flatten().tolist()


def expected(texts: list[str], seed: int) -> list[list[int]]:
    """Tokens of each document with its end, in the order of the seed; documents without a token left out."""
    ids = [
        BPE(texts[i], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for i in permutation(len(texts), seed)
    ]
    return [[*document, END] for document in ids if document]


@given(documents, st.integers(2, 9), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_blocks_are_the_stream_and_only_the_tail_is_lost(texts: list[str], length: int, seed: int) -> None:
    whole = expected(texts, seed)
    flat = [token for document in whole for token in document]
    if len(flat) < length:
        with pytest.raises(BadInput, match=f"one block of {length} tokens; got {len(flat)} in {len(whole)}"):
            pack(texts, BPE, length, seed=seed)
        return
    blocks = pack(texts, BPE, length, seed=seed)
    assert blocks.ids.shape == blocks.document.shape == (len(flat) // length, length)
    assert stream(blocks) == flat[: blocks.tokens]
    assert blocks.dropped == len(flat) - blocks.tokens < length
    assert blocks.skipped == len(texts) - len(whole)
    assert (blocks.length, len(blocks)) == (length, len(flat) // length)


@given(documents, st.integers(2, 9))
@settings(max_examples=100, deadline=None)
def test_borders_stand_behind_each_end_of_text(texts: list[str], length: int) -> None:
    if sum(map(len, expected(texts, 0))) < length:
        return
    blocks = pack(texts, BPE, length)
    for ids, document in zip(blocks.ids.tolist(), blocks.document.tolist(), strict=True):
        assert document[0] == 0
        for before, token, after in zip(document, ids, document[1:], strict=False):
            assert after - before == (token == END)


def test_an_end_of_text_spelled_out_is_no_border() -> None:
    text = "Then <|endoftext|> and <mask> appear. "
    blocks = pack([text, text], BPE, 8)
    assert (blocks.ids == END).sum() + (blocks.dropped > 0) == 2
    assert not (blocks.ids == BPE.mask_token_id).any()
    assert BPE.decode(stream(blocks)).startswith(text + "<|endoftext|>" + text[:4])


def test_the_seed_decides_the_order_and_nothing_else() -> None:
    first, again, other = (pack(TEXTS, BPE, 16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.ids, again.ids) and torch.equal(first.document, again.document)
    assert not torch.equal(first.ids, other.ids)
    for blocks in (first, other):
        ends = [i for i, token in enumerate(stream(blocks)) if token == END]
        found = [BPE.decode(stream(blocks)[a + 1 : b]) for a, b in zip([-1, *ends], ends, strict=False)]
        assert set(found) <= set(TEXTS) and len(set(found)) >= len(TEXTS) - 1


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permutation(8, 0) == [3, 7, 5, 4, 2, 6, 0, 1]
    assert sorted(permutation(500, 3)) == list(range(500))
    assert permutation(500, 3) != permutation(500, 4)


def test_batches_of_the_tokenizer_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, single = pack(TEXTS, BPE, 16), instances(TEXTS, BPE, 16)
    monkeypatch.setattr(packing, "_BATCH", 200)
    assert torch.equal(pack(TEXTS, BPE, 16).ids, whole.ids)
    assert instances(TEXTS, BPE, 16) == single


def test_a_limit_of_tokens_reads_no_further() -> None:
    blocks, whole = pack(TEXTS, BPE, 16, limit_tokens=100), pack(TEXTS, BPE, 16)
    assert (len(blocks), blocks.dropped) == (6, 4)
    assert torch.equal(blocks.ids, whole.ids[:6])
    assert len(pack(TEXTS, BPE, 16, limit_tokens=10**9)) == len(whole)
    with pytest.raises(BadInput, match="one block of 16 tokens; got 15"):
        pack(TEXTS, BPE, 16, limit_tokens=15)


def test_batches_are_what_a_causal_model_takes() -> None:
    blocks = pack(TEXTS, BPE, 16)
    assert blocks.ids.dtype == torch.int32
    batch = blocks.batch([3, 0])
    assert torch.equal(batch["input_ids"], blocks.ids[[3, 0]].long())
    assert torch.equal(batch["labels"], batch["input_ids"]) and batch["labels"].dtype == torch.int64
    assert torch.equal(blocks.batch(torch.tensor([3, 0]))["input_ids"], batch["input_ids"])
    batch["labels"][:] = -100
    assert (batch["input_ids"] >= 0).all() and (blocks.ids >= 0).all()


def test_a_subset_is_drawn_by_its_seed() -> None:
    blocks = pack(TEXTS, BPE, 16)
    some, more, other = blocks.subset(5), blocks.subset(9), blocks.subset(5, seed=1)
    rows = {tuple(row) for row in blocks.ids.tolist()}
    assert len(some) == 5 and {tuple(row) for row in some.ids.tolist()} <= rows
    assert torch.equal(some.ids, more.ids[:5]) and torch.equal(some.document, more.document[:5])
    assert not torch.equal(some.ids, other.ids)
    assert len(blocks.subset(10**6)) == len(blocks)


def bert(folder: Path) -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(str(folder / "vocab.txt"))


def test_a_tokenizer_with_a_separator_only(tmp_path: Path) -> None:
    tokenizer = bert(tmp_path)
    blocks = pack(["one two", "three"], tokenizer, 5)
    assert sorted(stream(blocks)) == sorted([5, 6, 3, 7, 3])
    assert (blocks.ids == 3).sum() == 2  # [SEP] ends each document, and [CLS] begins none


def test_what_is_not_packed() -> None:
    bare = Tokenizer(models.WordLevel({"one": 0}, unk_token="one"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(BadInput, match="end of text"):
        pack(["one"], PreTrainedTokenizerFast(tokenizer_object=bare), 2)
    with pytest.raises(BadInput, match="at least 2 tokens; got 1"):
        pack(TEXTS, BPE, 1)
    with pytest.raises(BadInput, match="got 0 in 0 texts"):
        pack([], BPE, 4)


# --- instances


@given(documents, st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_an_instance_is_the_beginning_of_its_text(texts: list[str], length: int) -> None:
    ids = [BPE(text, add_special_tokens=False)["input_ids"] for text in texts]
    if not any(ids):
        with pytest.raises(BadInput, match=f"got {len(texts)} texts"):
            instances(texts, BPE, length)
        return
    found = instances(texts, BPE, length)
    assert found.ids == [each[:length] for each in ids if each]
    assert found.skipped == sum(not each for each in ids)
    assert found.cut == sum(len(each) > length for each in ids)
    assert len(found) + found.skipped == len(texts)
    assert found.tokens == sum(min(len(each), length) for each in ids)


def test_a_limit_of_instances_counts_no_empty_text() -> None:
    found = instances(iter(["", "one", "two", "three"]), BPE, 8, limit=2)
    assert (len(found), found.skipped) == (2, 1)
    assert [BPE.decode(ids) for ids in found.ids] == ["one", "two"]


def test_instances_have_no_special_tokens_and_no_types(tmp_path: Path) -> None:
    tokenizer = bert(tmp_path)
    assert "token_type_ids" in tokenizer("one") and tokenizer("one")["input_ids"] == [2, 5, 3]
    assert instances(["one two", "", "three"], tokenizer, 8).ids == [[5, 6], [7]]


@pytest.mark.parametrize(("length", "limit", "said"), [(0, None, "got a length of 0"), (4, 0, "got 0")])
def test_what_is_no_instance(length: int, limit: int | None, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        instances(TEXTS, BPE, length, limit=limit)


# --- the real tokenizer


DATA = os.environ.get("KEMEM_DATA")


@pytest.mark.skipif(not DATA, reason="KEMEM_DATA is not set: no real data at hand")
def test_the_tokenizer_of_olmo() -> None:
    found = load_tokenizer(f"{DATA}/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json")
    assert (len(found), found.eos_token_id, found.pad_token_id) == (50280, 50279, 1)
    text = "Knowledge entropy decays:  H(θ) falls from 17.1 to 16.4 nats.\n\n    def f(): pass"
    assert found.decode(found(text)["input_ids"]) == text
    blocks = pack([text] * 30, found, 32)
    assert (blocks.ids == 50279).sum() in (29, 30)
    assert instances([text], found, 4).ids == [found(text, add_special_tokens=False)["input_ids"][:4]]
