"""Passages told in training at set steps, and what is known of them, against arithmetic written out here.

Run as a script it is a run to be killed: `python test_acquisition.py FOLDER STEP`.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import passage_record as record
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kemem.corpora import load_tokenizer, train_tokenizer
from kemem.entropy import (
    GROUPS,
    KINDS,
    Acquired,
    CoolAttention,
    Injection,
    Passage,
    Prepared,
    Probes,
    Schedule,
    WakeIdle,
    acquire,
    acquisition,
    attention_temperature,
    forgetting,
    passages,
    probe,
    schedule,
)
from kemem.entropy.passages import PARAPHRASED, span_of
from kemem.errors import BadInput
from kemem.evaluation import encode, target_log_probability
from kemem.models import Shape, build
from kemem.objective import Causal
from kemem.training import Domain, Method, Recipe, Together, train
from kemem.world import World

VOCAB = 300
RELEASED = pytest.mark.skipif(
    not os.environ.get("KEMEM_DATA"),
    reason="needs the released files: set KEMEM_DATA to the folder with them",
)


RECORDS = [
    record("Ada Vell", "Norhaven", "the year 2131"),
    record("Bo", "Quill-on-the-Water", "May", hard=0),
    record("Cy Adabel Marrow", "Ur", "spring", hard=3),
]
ONCE = [
    record("Dee", "Ostermark", "June", hard=2),
    record("Eli Quist", "Ur", "the year 7", hard=0, paraphrases=0),
]
TOLD = (*passages(RECORDS, "paraphrase"), *passages(ONCE, "once"))


def made_tokenizer():
    texts = [text for passage in TOLD for text in passage.tellings]
    return train_tokenizer(texts * 3, VOCAB)


made_once = cache(made_tokenizer)


@pytest.fixture(scope="module")
def tokenizer():
    return made_once()


class Rows:
    """Rows of random tokens, handed out as views of one tensor."""

    def __init__(self, rows: int = 24, length: int = 40) -> None:
        self.ids = torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        ids = self.ids[indices]
        return {"input_ids": ids, "labels": ids}


def small(dtype: torch.dtype = torch.float64, family: str = "olmo", **sizes: Any) -> nn.Module:
    shape = Shape(
        family,
        **{"layers": 1, "width": 12, "memories": 20, "heads": 3, "vocab": VOCAB, "context": 64, **sizes},
    )
    return build(shape, seed=1).to(dtype)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---------------------------------------------------------------------- passages
def test_passages_from_records_a_file_and_a_folder(tmp_path, monkeypatch):
    first = TOLD[0]
    assert first.tellings == (
        "Ada Vell was born in Norhaven. She came in the year 2131.",
        "Norhaven, the year 2131: Ada Vell, telling 1.",
        "Norhaven, the year 2131: Ada Vell, telling 2.",
    )
    assert first.probes["memorisation"][1] == ("She came in", "the year 2131")
    assert first.probes["semantic"] == (("The home of Ada Vell is", "Norhaven"),)
    assert first.probes["composition"] == (("Who came to Norhaven was", "Ada Vell"),)
    assert [passage.group for passage in TOLD] == ["paraphrase"] * 3 + ["once"] * 2
    for group, records in (("paraphrase", RECORDS), ("once", ONCE)):
        (tmp_path / GROUPS[group]).write_text(json.dumps(records))
    assert passages(tmp_path) == TOLD and passages(tmp_path, "once") == TOLD[3:]
    assert passages(tmp_path / GROUPS["once"], "paraphrase") == passages(ONCE, "paraphrase")
    monkeypatch.setenv("KEMEM_DATA", str(tmp_path))
    assert passages("$KEMEM_DATA") == TOLD
    assert passages(f"$KEMEM_DATA/{GROUPS['once']}", "once") == TOLD[3:]
    assert passages([], "once") == ()


def test_passages_of_a_data_set_of_the_hub(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="a data set of the hub is read through it")
    (tmp_path / "train.json").write_text(json.dumps([*RECORDS, *ONCE]))
    monkeypatch.setattr(sys.modules["kemem.entropy.passages"], "PARAPHRASED", len(RECORDS))
    assert passages(f"hub:{tmp_path}") == TOLD
    assert passages(f"hub:{tmp_path}", "once") == TOLD[3:]
    assert passages(f"hub:{tmp_path}:limit=2", "paraphrase") == TOLD[:2]
    (tmp_path / "train.json").write_text(json.dumps([{"train_context": "No probes."}]))
    with pytest.raises(BadInput, match="mem_input") as error:
        passages(f"hub:{tmp_path}")
    assert "paraphrase" in one_line(error.value)


@RELEASED
def test_the_first_seventy_of_all_passages_are_those_told_again():
    folder = Path(os.environ["KEMEM_DATA"]) / "fictional_knowledge"
    every = json.loads((folder / "fictional_knowledge_paraphrased.json").read_text(encoding="utf-8"))
    contexts = [record["train_context"] for record in every]
    assert contexts == [passage.context for passage in passages(folder)]
    assert sum(passage.group == "paraphrase" for passage in passages(folder)) == PARAPHRASED


def test_passages_of_a_world(tokenizer):
    records = World(people=20, seed=3).fictional_knowledge(3, paraphrases=9)
    found = passages(records, "paraphrase")
    assert [len(passage.tellings) for passage in found] == [10] * 3
    for passage, own in zip(found, records, strict=True):
        assert passage.context == own["train_context"]
        for kind, field in (("memorisation", "mem"), ("semantic", "gen"), ("composition", "hard_gen")):
            assert passage.probes[kind] == tuple(
                zip(own[f"{field}_input"], own[f"{field}_target"], strict=True)
            )
            for pair in passage.probes[kind]:
                assert tokenizer.decode(span_of(tokenizer, pair, "").ids) == " ".join(pair)


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in RECORDS[0].items() if name != field}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        *((without(name), f"'{name}'.*record 2") for name in RECORDS[0]),
        ({**RECORDS[0], "train_context": " "}, "'train_context' must hold text.*record 2"),
        ({**RECORDS[0], "gen_target": []}, "1 in gen_input and 0 in gen_target of record 2"),
        ({**RECORDS[0], "mem_input": "She"}, "'mem_input' must be a list of texts; got str in record 2"),
        ({**RECORDS[0], "mem_target": ["x", 3]}, "'mem_target' must be a string; got int in record 2.*number 2"),
        ({**RECORDS[0], "paraphrases": None}, "'paraphrases' must be a list of texts; got NoneType"),
        ({**without("x"), **{f"{f}_{s}": [] for f in KINDS.values() for s in ("input", "target")}},
         "must have a probe; got none in record 2"),
        (["not a record"], "must be an object.*list in record 2"),
    ],
)  # fmt: skip
def test_wrong_records_are_refused(bad, message, tmp_path):
    with pytest.raises(BadInput, match=message) as caught:
        passages([RECORDS[0], bad], "once")
    one_line(caught.value)
    (tmp_path / "own.json").write_text(json.dumps([RECORDS[0], bad]))
    with pytest.raises(BadInput, match=f"{message.split('record 2')[0]}.*own.json"):
        passages(tmp_path / "own.json", "once")


def test_wrong_files_and_groups_are_refused(tmp_path):
    file = tmp_path / "own.json"
    for text, message in (("[{", "must be JSON; got"), ('{"a": 1}', "a list of records; got dict"),
                          ("[" * 100_000, "must be JSON"), ("", "must be JSON")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(BadInput, match=message) as caught:
            passages(str(file), "once")
        assert "own.json" in one_line(caught.value)
    file.write_bytes(b'["\xff"]')
    with pytest.raises(BadInput, match="must be JSON"):
        passages(file, "once")
    with pytest.raises(BadInput, match=r"No such file.*paraphrase70\.json"):
        passages(tmp_path)
    with pytest.raises(BadInput, match=r"No such file.*missing\.json"):
        passages(tmp_path / "missing.json", "once")
    for group in (None, "twice"):
        with pytest.raises(BadInput, match="one of paraphrase, once"):
            passages(RECORDS, group)
    with pytest.raises(BadInput, match="one of paraphrase, once; got 'twice'"):
        passages(tmp_path, "twice")
    for change, message in (({"group": "twice"}, "paraphrase, once"), ({"probes": {"odd": ()}}, "memorisation"),
                            ({"probes": {}}, "must have a probe")):  # fmt: skip
        with pytest.raises(BadInput, match=message):
            replace(TOLD[0], **change)


# ---------------------------------------------------------------------- the schedule
class Words:
    """One token a word, numbered as they come; the end of text is 0."""

    eos_token_id = 0

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [self.numbers.setdefault(word, len(self.numbers) + 1) for word in text.split()]}


def passage(name: str, group: str, paraphrases: int) -> Passage:
    tellings = tuple(f"{name} telling {i}" for i in range(2, paraphrases + 2))
    return Passage(f"{name} telling 1", tellings, {"semantic": (("a", "b"),)}, group)


@given(again=st.integers(0, 5), once=st.integers(0, 12), slots=st.integers(1, 6), spare=st.integers(0, 2))
def test_slots_are_the_tellings_and_the_parts(again, once, slots, spare):
    words = Words()
    mixed = [passage(f"once{i}", "once", 0) for i in range(once)]
    mixed += [passage(f"again{i}", "paraphrase", slots - 1 + spare) for i in range(again)]
    found = schedule(mixed, words, slots=slots, interval=7)
    texts = {number: word for word, number in words.numbers.items()}
    told = [[" ".join(texts[i] for i in ids[:-1]) for ids in slot] for slot in found.slots]
    assert all(ids[-1] == 0 for slot in found.slots for ids in slot) and found.interval == 7
    singles = []
    for k, slot in enumerate(told, start=1):
        assert slot[:again] == [f"again{i} telling {k}" for i in range(again)]
        singles.append(slot[again:])
    assert [text for part in singles for text in part] == [f"once{i} telling 1" for i in range(once)]
    sizes = [len(part) for part in singles]
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1
    if once % slots == 0:
        each = once // slots
        for k, part in enumerate(singles, start=1):
            assert part == [f"once{i} telling 1" for i in range(each * (k - 1), each * k)]
    assert found.tokens == 4 * (again * slots + once)


@given(slots=st.integers(1, 11), interval=st.integers(1, 7), total=st.integers(1, 200))
def test_steps_are_those_of_the_released_loop(slots, interval, total):
    made = Schedule(tuple(((k,),) for k in range(1, slots + 1)), interval)
    expected = {}
    for step in range(1, total + 1):
        if step % interval == 0:
            expected[step] = ((step // interval) % slots) or slots
    assert {step: made.told(step)[0][0] for step in range(total + 1) if made.told(step)} == expected
    if interval <= total:
        assert list(made.steps(total)) == list(expected)
    else:
        with pytest.raises(BadInput, match=f"got {interval} steps of {total}; shorten it") as caught:
            made.steps(total)
        one_line(caught.value)


def test_the_tenth_slot_falls_on_the_last_step_and_epochs_repeat():
    made = Schedule(tuple(((k,),) for k in range(1, 11)), 160)
    assert [made.told(step)[0][0] for step in made.steps(1600)] == list(range(1, 11))
    assert made.told(1600) == made.told(3200) == ((10,),) and made.told(1760) == ((1,),)
    assert made.told(0) == made.told(159) == made.told(161) == ()


@pytest.fixture(scope="module")
def released():
    """Passages and tokenizer of the authors."""
    tokenizer = load_tokenizer("$KEMEM_DATA/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json")
    return passages("$KEMEM_DATA/fictional_knowledge"), tokenizer


@RELEASED
def test_the_released_files_give_the_released_schedule(released):
    """All 10 slots of 76 passages, token for token."""
    made = schedule(*released)
    folder = Path(os.environ["KEMEM_DATA"]) / "fictional_knowledge"
    theirs = json.loads((folder / "paraphrase70-once60split.json").read_text())
    assert [len(slot) for slot in made.slots] == [76] * 10
    assert [[list(ids) for ids in slot] for slot in made.slots] == [theirs[str(k)] for k in range(1, 11)]
    assert made.tokens == 271_407 and made.interval == 160
    assert made.lost(1600, 128, 1024) == 0


@RELEASED
def test_the_released_probes_are_prefixes(released):
    found, tokenizer = released
    pairs = [pair for passage in found for asked in passage.probes.values() for pair in asked]
    spans = [span_of(tokenizer, pair, "") for pair in pairs]
    assert len(spans) == 1950 and max(len(span.ids) for span in spans) == 88
    assert {len(span.target) for span in spans} <= set(range(1, 15))


def test_wrong_schedules_are_refused(tokenizer):
    for make, message in (
        (lambda: schedule(TOLD, tokenizer, slots=4), "each of 4 slots; got 3 of paraphrase passage 1"),
        (lambda: schedule(TOLD, tokenizer, slots=0), "at least 1 slot; got 0"),
        (lambda: schedule(TOLD, tokenizer, slots=3, interval=0), "at least 1 step; got 0"),
        (lambda: Schedule((), 3), "at least 1 slot; got none"),
        (
            lambda: schedule(TOLD, type("Endless", (Words,), {"eos_token_id": None})()),
            "set tokenizer.eos_token",
        ),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            make()
        one_line(caught.value)
    beyond = Injection(Schedule((((5, VOCAB),),), 1))
    with pytest.raises(BadInput, match=f"below {VOCAB}.* got {VOCAB}"):
        beyond.before(small(), Domain("data", Rows()))
    Injection(Schedule((((5, VOCAB - 1),),), 1)).before(small(), Domain("data", Rows()))


# ---------------------------------------------------------------------- injection
def batch_of(ids: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    labels = torch.tensor(ids)
    labels[-1, -1] = -100
    return {"input_ids": torch.tensor(ids), "labels": labels}


def test_passages_stand_before_the_first_rows():
    told = Injection(Schedule((((7, 8, 0),), ((7, 0), (9, 9, 9, 9, 9, 0))), 2))
    batch = batch_of([[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]])
    kept = {name: tensor.clone() for name, tensor in batch.items()}
    assert told.rows(1, batch) is batch and told.rows(3, batch) is batch
    first, second = told.rows(2, batch), told.rows(4, batch)
    assert first["input_ids"].tolist() == [[7, 8, 0, 11], [21, 22, 23, 24], [31, 32, 33, 34]]
    assert first["labels"].tolist() == [[7, 8, 0, 11], [21, 22, 23, 24], [31, 32, 33, -100]]
    assert second["input_ids"].tolist() == [[7, 0, 11, 12], [9, 9, 9, 9], [31, 32, 33, 34]]
    assert all(torch.equal(batch[name], kept[name]) for name in kept)
    assert told.schedule.lost(4, 3, 4) == 2 and told.schedule.lost(3, 3, 4) == 0
    masked = {**batch, "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])}
    assert told.rows(2, masked)["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert told.rows(4, masked)["attention_mask"][0].tolist() == [1, 1, 1, 1]
    with pytest.raises(BadInput, match="got token_type_ids") as caught:
        told.rows(2, {**batch, "token_type_ids": batch["input_ids"]})
    one_line(caught.value)


def test_with_few_rows_neighbours_are_joined():
    told = Injection(Schedule((((1, 0), (2, 2, 0), (3, 0), (4, 0), (5, 5, 5, 5, 0)),), 1))
    found = told.rows(1, batch_of([[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26]]))
    assert found["input_ids"].tolist() == [[1, 0, 2, 2, 0, 3], [4, 0, 5, 5, 5, 5]]
    assert told.schedule.lost(1, 2, 6) == 2
    assert told.schedule.lost(3, 2, 6) == 6  # the slot is told in each of three steps


@given(
    told=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), max_size=9),
    rows=st.integers(1, 6),
    length=st.integers(2, 12),
)
def test_injection_is_list_arithmetic(told, rows, length):
    made = Injection(Schedule((tuple(map(tuple, told)),), 1))
    numbers = count(1000)
    before = [[next(numbers) for _ in range(length)] for _ in range(rows)]
    found = made.rows(1, {"input_ids": torch.tensor(before), "labels": torch.tensor(before)})
    groups: list[list[int]] = [list(ids) for ids in told]
    if len(told) > rows:
        groups = [[] for _ in range(rows)]
        left = [list(ids) for ids in told]
        for row in range(rows):
            take = -(-len(left) // (rows - row))  # what is left, spread over the rows that are left
            groups[row] = [token for ids in left[:take] for token in ids]
            left = left[take:]
        assert not left
    expected = [list(row) for row in before]
    for row, group in enumerate(groups):
        expected[row] = (group + before[row])[:length]
    assert found["input_ids"].tolist() == found["labels"].tolist() == expected
    kept = sum(token < 1000 for row in expected for token in row)
    assert made.schedule.lost(1, rows, length) == sum(map(len, told)) - kept


# ---------------------------------------------------------------------- how it enters training
RECIPE = Recipe(steps=7, batch_size=8, learning_rate=1e-2, log_every=1)


def trained(recipe: Recipe, method: Method | None = None, net: nn.Module | None = None, **options: Any):
    net = small() if net is None else net
    train(net, Rows(), recipe, method, **options)
    return weights(net)


def test_the_moment_sees_the_whole_step_once_and_before_anything_else():
    seen, prepared = [], []

    class Look(Method):
        def rows(self, step, batch):
            seen.append((step, tuple(batch["input_ids"].shape)))
            return {name: torch.full_like(tensor, 5) for name, tensor in batch.items()}

    class Prepare(Causal):
        def prepare(self, batch, keys):
            prepared.append(batch["input_ids"].unique().tolist())
            return batch

    trained(replace(RECIPE, steps=3, accumulation=4), Look(), objective=Prepare())
    assert seen == [(1, (8, 40)), (2, (8, 40)), (3, (8, 40))] and prepared == [[5]] * 3


def test_the_model_trains_on_what_is_told(tokenizer):
    """Every batch the model reads, gathered from its micro-batches, against the rows of plain training."""
    made = schedule(TOLD, tokenizer, slots=3, interval=2)

    def read(method: type[Method], *given: Any) -> list[torch.Tensor]:
        parts: list[torch.Tensor] = []

        class Read(method):
            def loss(self, model, batch, loss):
                assert torch.equal(batch["labels"], batch["input_ids"])
                parts.append(batch["input_ids"])
                return loss

        trained(replace(RECIPE, accumulation=2), Read(*given))
        return [torch.cat(parts[i : i + 2]) for i in range(0, len(parts), 2)]

    plain, told = read(Method), read(Injection, made)
    for step, (before, after) in enumerate(zip(plain, told, strict=True), start=1):
        expected = before.clone()
        if step % 2 == 0:
            for row, ids in enumerate(made.slots[step // 2 - 1]):
                expected[row] = torch.cat([torch.tensor(ids), before[row]])[:40]
        assert torch.equal(after, expected)


@pytest.mark.parametrize("accumulation", [2, 3, 8])
@pytest.mark.parametrize("batch_size", [8, 3])  # with 3 rows the 5 passages of a slot are joined
def test_accumulation_leaves_the_step_as_it_is(tokenizer, accumulation, batch_size):
    made = Injection(schedule(TOLD, tokenizer, slots=1, interval=2))
    recipe = replace(RECIPE, steps=4, batch_size=batch_size)
    accumulation = min(accumulation, batch_size)
    whole, cut = (trained(replace(recipe, accumulation=n), made) for n in (1, accumulation))
    assert max((whole[name] - cut[name]).abs().max().item() for name in whole) < 1e-12
    assert not equal(whole, trained(recipe))


def test_without_passages_it_is_plain_training_bit_for_bit(tokenizer):
    nothing = Injection(schedule((), tokenizer, slots=10, interval=1))
    net = lambda: small(torch.float32, "gpt2", dropout=0.2)  # noqa: E731
    assert equal(trained(RECIPE, nothing, net()), trained(RECIPE, None, net()))
    late = Injection(schedule(TOLD, tokenizer, slots=3, interval=8))  # a run that ends before it
    assert equal(trained(RECIPE, late, net()), trained(RECIPE, None, net()))


# ---------------------------------------------------------------------- a run that is killed
SAVED = Recipe(steps=12, batch_size=6, accumulation=2, learning_rate=1e-2, save_every=2, log_every=1)


def run(
    folder: Path, kill: int | None = None, *, interval: int = 3
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Acquisition with dropout: told at 3, 6, 9 and 12, saved at even steps and where measured."""
    torch.set_num_threads(1)
    tokenizer = made_tokenizer()
    net = small(torch.float32, "gpt2", dropout=0.2)

    def progress(step: int, total: int, message: str) -> None:
        if step == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    found = acquire(
        net, Rows(), schedule(TOLD, tokenizer, slots=3, interval=interval), SAVED, tokenizer=tokenizer,
        passages=TOLD, out=folder, progress=progress,
    )  # fmt: skip
    steps = [{name: v for name, v in row.items() if name != "seconds"} for row in found.history.steps]
    return {**asdict(found), "history": {"steps": steps, "checkpoints": found.history.checkpoints}}, weights(
        net
    )


def test_killed_in_the_middle_it_ends_in_the_same_numbers(tmp_path):
    """SIGKILL after step 8: the state of step 6 or 8 goes on to the injection of step 9."""
    command = [sys.executable, __file__, str(tmp_path / "killed"), "8"]
    process = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, timeout=120)
    assert process.returncode == -signal.SIGKILL
    saved = sorted(path.stem for path in (tmp_path / "killed" / "state").glob("step*.json"))
    assert saved == ["step4", "step6"]
    found, expected = run(tmp_path / "killed"), run(tmp_path / "whole")
    assert equal(found[1], expected[1]) and found[0] == expected[0]
    with pytest.raises(BadInput, match=r"method\.digest"):
        run(tmp_path / "whole", interval=6)


@pytest.mark.parametrize("stop", [0, 2, 3, 5, 6])
def test_broken_off_anywhere_it_ends_the_same(tmp_path, tokenizer, stop):
    made = schedule(TOLD, tokenizer, slots=3, interval=3)

    class Stop(Injection):
        def gradients(self, model):
            if left and not left.pop():
                raise InterruptedError

    Stop.__qualname__ = "Injection"
    recipe = replace(RECIPE, save_every=1)
    left: list[int] = []
    whole = trained(recipe, Stop(made))
    left = [0, *[1] * stop]
    with pytest.raises(InterruptedError):
        trained(recipe, Stop(made), out=tmp_path)
    assert equal(trained(recipe, Injection(made), out=tmp_path), whole)


# ---------------------------------------------------------------------- what is known
ASKED = [
    (number, group, kind, pair)
    for group in ("paraphrase", "once")
    for kind in ("memorisation", "semantic", "composition")
    for number, told in enumerate(TOLD)
    if told.group == group
    for pair in told.probes[kind]
]


def own_loss(net: nn.Module, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[float, int]:
    """transformers' own loss of a padded batch, with labels of -100 on inputs and padding, and its target tokens."""
    whole = [tokenizer(f"{text} {target}", add_special_tokens=False)["input_ids"] for text, target in pairs]
    borders = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text, _ in pairs]
    longest = max(map(len, whole))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in whole])
    labels = torch.tensor(
        [[-100] * border + row[border:] + [-100] * (longest - len(row))
         for row, border in zip(whole, borders, strict=True)]
    )  # fmt: skip
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in whole])
    with torch.no_grad():
        loss = net(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
    return loss, int((labels != -100).sum())


@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "gptj", "gpt_neox"])
def test_probes_are_what_the_loss_of_transformers_says(family, tokenizer):
    """Its loss is taken in float32 whatever the model, so it has 7 digits; GPT-J's attention is in float32 too."""
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        net = tiny(family, vocab=VOCAB, layers=1, dtype=dtype)
        found = probe(net, tokenizer, TOLD)
        bound = max(bound, 1e-5) if family == "gptj" else bound
        means, sums = found.log_probability(), found.sums
        for i, (number, group, kind, pair) in enumerate(ASKED):
            assert (found.passage[i].item(), found.groups[i], found.kinds[i]) == (number, group, kind)
            loss, tokens = own_loss(net, tokenizer, [pair])
            assert means[i].item() == pytest.approx(-loss, rel=bound)
            assert found.tokens[i].item() == tokens
        for start in range(0, len(ASKED), 4):  # the same loss over a padded batch
            loss, tokens = own_loss(net, tokenizer, [pair for *_, pair in ASKED[start : start + 4]])
            assert sums[start : start + 4].sum().item() == pytest.approx(-loss * tokens, rel=bound)
        again = probe(net, tokenizer, TOLD, batch_size=3)
        torch.testing.assert_close(again.sums, sums, rtol=bound, atol=0)
        assert len(found.sums) == len(ASKED)


@pytest.mark.parametrize("device_batch", [1, 2, 16])
def test_row_mean_is_the_mean_over_the_padded_row(tokenizer, device_batch):
    """As released: losses of each batch, 0 off the target, then the mean of every row to the end of the padding."""
    net = tiny("olmo", vocab=VOCAB, dtype=torch.float64)
    found = probe(net, tokenizer, TOLD, device_batch=device_batch)
    expected = []
    for group, kind in dict.fromkeys((group, kind) for _, group, kind, _ in ASKED):
        pairs = [pair for _, g, k, pair in ASKED if (g, k) == (group, kind)]
        while pairs:
            part, pairs = pairs[:device_batch], pairs[device_batch:]
            whole = [
                tokenizer(f"{text} {target}", add_special_tokens=False)["input_ids"] for text, target in part
            ]
            borders = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text, _ in part]
            longest = max(map(len, whole))
            ids = torch.tensor([row + [1] * (longest - len(row)) for row in whole])
            with torch.no_grad():
                scores = net(input_ids=ids).logits[:, :-1].log_softmax(-1)
            each = scores.gather(2, ids[:, 1:, None])[..., 0]
            for line, row, border in zip(each, whole, borders, strict=True):
                line[: border - 1] = 0
                line[len(row) - 1 :] = 0
                expected.append(line.mean().item())
    assert found.log_probability("row_mean").tolist() == pytest.approx(expected, rel=1e-9)
    assert found.log_probability("target_mean").tolist() != pytest.approx(expected, rel=1e-2)


def test_probes_are_target_log_probabilities(tokenizer):
    net = tiny("llama", vocab=VOCAB, dtype=torch.float64)
    pairs = [(text, f" {target}") for *_, (text, target) in ASKED]
    for mean in (True, False):
        expected = target_log_probability(net, tokenizer, pairs, mean=mean)
        found = probe(net, tokenizer, TOLD)
        assert torch.equal(found.log_probability() if mean else found.sums, expected)


@pytest.mark.parametrize(("batch_size", "device_batch"), [(64, 16), (3, 2), (1, 1)])
def test_prepared_once_it_asks_every_model_the_same(tokenizer, batch_size, device_batch):
    """Two models of different families and precisions, one in training mode, in turns."""
    sizes = {"batch_size": batch_size, "device_batch": device_batch}
    prepared = Prepared(tokenizer, TOLD, **sizes)
    nets = [tiny("olmo", vocab=VOCAB).train(), tiny("gpt2", vocab=VOCAB, seed=1, dtype=torch.float64)]
    for net in nets * 2:
        found, expected = vars(prepared(net)), vars(probe(net, tokenizer, TOLD, **sizes))
        for name, value in expected.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(found[name], value), name
    assert nets[0].training


@given(given=st.text("Ada y'-2", max_size=8), target=st.text("Vel 1.", max_size=5))
@settings(max_examples=80, deadline=None)
def test_a_probe_is_cut_as_every_target_is(given, target):
    """Or refused, where that is not its tokens; spaces on either side of the border among them."""
    cut = made_once()
    whole, first = (cut(text, add_special_tokens=False)["input_ids"] for text in (f"{given} {target}", given))
    try:
        expected = encode(cut, given, f" {target}")
        if (list(expected.ids), list(expected.prompt)) != (whole, first):
            expected = None
    except BadInput:
        expected = None
    if expected is None:
        with pytest.raises(BadInput):
            span_of(cut, (given, target), "here")
    else:
        assert span_of(cut, (given, target), "here") == expected


def test_a_run_cuts_its_probes_once(tokenizer):
    class Counting:
        calls = 0

        def __call__(self, *given: Any, **options: Any) -> Any:
            self.calls += 1
            return tokenizer(*given, **options)

    alone, over_a_run = Counting(), Counting()
    probe(small(), alone, TOLD)
    made = schedule(TOLD, tokenizer, slots=3, interval=1)
    found = acquire(small(), Rows(), made, replace(RECIPE, steps=4), tokenizer=over_a_run, passages=TOLD)
    assert over_a_run.calls == alone.calls and len(found.steps) == 5


def test_knowledge_is_weighted_by_passages():
    """Two passages of one group and three of the other, with different numbers of probes."""
    values = [(0, "paraphrase", "memorisation", -4.0), (0, "paraphrase", "memorisation", -2.0),
              (1, "paraphrase", "memorisation", -6.0), (0, "paraphrase", "semantic", -9.0),
              (2, "once", "semantic", -1.0), (3, "once", "semantic", -2.0), (4, "once", "semantic", -8.0),
              (4, "once", "composition", -4.0)]  # fmt: skip
    found = Probes(
        sums=torch.tensor([2 * value for *_, value in values], dtype=torch.float64),
        tokens=torch.full((8,), 2),
        row=torch.full((8,), 20),
        passage=torch.tensor([number for number, *_ in values]),
        groups=tuple(group for _, group, _, _ in values),
        kinds=tuple(kind for _, _, kind, _ in values),
    )
    para, once = (-15 / 3 + -6) / 2, (-1 - 2 - 6) / 3
    assert found.knowledge(group="paraphrase") == pytest.approx(para)
    assert found.knowledge(group="once") == pytest.approx(once)
    assert found.knowledge() == pytest.approx((2 * para + 3 * once) / 5)
    assert found.knowledge("row_mean") == pytest.approx((2 * para + 3 * once) / 50)
    assert found.knowledge(kind="semantic") == pytest.approx((-9 - 1 - 2 - 8) / 4)
    assert found.knowledge(group="paraphrase", kind="memorisation") == pytest.approx((-3 - 6) / 2)
    table = {(row["group"], row["kind"]): row for row in found.table()}
    assert json.loads(json.dumps(found.table())) == found.table()
    assert list(table) == [
        ("all", "all"), ("all", "memorisation"), ("all", "semantic"), ("all", "composition"),
        ("paraphrase", "all"), ("paraphrase", "memorisation"), ("paraphrase", "semantic"),
        ("once", "all"), ("once", "semantic"), ("once", "composition"),
    ]  # fmt: skip
    assert (table["once", "all"]["passages"], table["once", "all"]["probes"]) == (3, 4)
    assert table["all", "all"]["row_mean"] == pytest.approx(found.knowledge("row_mean"))
    assert "K -4.0000" in repr(found) and "8 probes of 5 passages" in repr(found)
    for call, message in (
        (lambda: found.knowledge("mean"), "target_mean, row_mean; got 'mean'"),
        (lambda: found.knowledge(group="twice"), "got 'twice' and 'all'"),
        (
            lambda: found.knowledge(group="paraphrase", kind="composition"),
            "got 'paraphrase' and 'composition'",
        ),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            call()
        one_line(caught.value)


def test_the_weights_of_the_paper():
    """60 passages at -1 and 70 at -3, each with its 15 probes."""
    groups = ("paraphrase",) * 1050 + ("once",) * 900
    sums = torch.cat([torch.full((1050,), -3.0), torch.full((900,), -1.0)]).double()
    ones = torch.ones(1950, dtype=torch.long)
    found = Probes(sums, ones, ones, torch.arange(130).repeat_interleave(15), groups, ("semantic",) * 1950)
    assert found.knowledge() == pytest.approx((60 * -1 + 70 * -3) / 130)


def test_probes_that_cannot_be_are_refused(tokenizer):
    net = tiny("olmo", vocab=VOCAB)

    class Merging:
        def __call__(self, text, add_special_tokens):
            known = {"a": [1], " b": [2], "a b": [9, 2]}
            return {"input_ids": known[text] if isinstance(text, str) else [known[each] for each in text]}

    merged = Passage("a b", (), {"semantic": (("a", "b"),)}, "once")
    spaced = Passage("a b", (), {"semantic": (("Ada ", "Vell"),)}, "once")
    for told, cut, place in (((merged,), Merging(), 1), ((*TOLD, spaced), tokenizer, 6)):
        with pytest.raises(BadInput, match=rf"\(semantic of passage {place}\)") as caught:
            probe(net, cut, told)
        one_line(caught.value)
    with pytest.raises(BadInput, match="got none"):
        probe(net, tokenizer, ())
    with pytest.raises(BadInput, match="device_batch must be at least 1; got 0"):
        probe(net, tokenizer, TOLD, device_batch=0)


# ---------------------------------------------------------------------- acquired and forgotten
def test_acquisition_and_forgetting_are_those_of_the_tables():
    """Table 1, baseline: K from -0.371 to -0.301 is 18.8 %, P from 64.6 to 52.0 is 19.5 %."""
    assert acquisition(-0.371, -0.301) == pytest.approx(0.188, abs=2e-3)
    assert acquisition(-0.371, -0.714) == pytest.approx(-0.922, abs=5e-3)
    assert forgetting(64.6, 52.0) == pytest.approx(0.195, abs=1e-3)
    assert forgetting(50.0, 60.0) == pytest.approx(-0.2)


@given(before=st.floats(-20, -1e-3), after=st.floats(-20, 0))
def test_acquisition_is_positive_where_knowledge_rose(before, after):
    found = acquisition(before, after)
    assert (found > 0) == (after > before) and found <= 1
    assert before + found * -before == pytest.approx(after, abs=1e-9)


@pytest.mark.parametrize(("share", "before"), [(acquisition, 0.0), (forgetting, 0.0), (forgetting, -1.0)])
def test_a_share_of_nothing_is_refused(share, before):
    with pytest.raises(BadInput, match="got") as caught:
        share(before, -1.0)
    one_line(caught.value)


LEARN = Recipe(steps=24, batch_size=5, learning_rate=1e-2)  # every row of a step is told something


@pytest.fixture(scope="module")
def acquired(tokenizer) -> tuple[Acquired, nn.Module, list[int]]:
    net = small(torch.float32, width=24)
    looked: list[int] = []

    def look(model: nn.Module, step: int) -> dict[str, Any]:
        assert not model.training
        looked.append(step)
        return {"seen": step}

    made = schedule(TOLD, tokenizer, slots=1, interval=2)
    found = acquire(net, Rows(length=64), made, LEARN, tokenizer=tokenizer, passages=TOLD, at_checkpoint=look)
    return found, net, looked


def test_a_run_acquires_what_it_is_told(acquired, tokenizer):
    found, net, looked = acquired
    assert found.steps == tuple(looked) == tuple(range(0, 25, 2))
    assert [row["seen"] for row in found.history.checkpoints] == looked
    now, start = (probe(one, tokenizer, TOLD) for one in (net, small(torch.float32, width=24)))
    for reduction in ("target_mean", "row_mean"):
        assert found.knowledge(24, reduction) == now.knowledge(reduction)
        assert found.knowledge(0, reduction, group="once") == start.knowledge(reduction, group="once")
        expected = acquisition(start.knowledge(reduction), now.knowledge(reduction))
        assert found.acquisition(reduction) == expected > 0.1
    made = schedule(TOLD, tokenizer, slots=1, interval=2)
    assert found.injected == 12 * made.tokens and found.lost == 0
    assert json.loads(json.dumps(found.rows)) == found.rows and len(found.rows) == 13 * 12
    assert "lost" in repr(found)
    for choice in ({"step": 3}, {"step": 0, "group": "twice"}):
        with pytest.raises(BadInput, match="expected what was measured, after 0, 2") as caught:
            found.knowledge(**choice)
        one_line(caught.value)


def test_training_on_other_text_acquires_less(acquired, tokenizer):
    nothing = schedule((), tokenizer, interval=2)
    recipe, net = replace(LEARN, checkpoints=(7,)), small(torch.float32, width=24)
    found = acquire(net, Rows(length=64), nothing, recipe, tokenizer=tokenizer, passages=TOLD)
    assert found.steps == (0, 7, 24) and found.injected == found.lost == 0
    assert found.acquisition() < acquired[0].acquisition() - 0.05


def test_a_method_learns_beside_the_telling(tokenizer, tmp_path):
    """Without effect it changes no number; with one it is what `train` makes of both, measured as `at` shows it."""
    made, usage = schedule(TOLD, tokenizer, slots=3, interval=2), torch.linspace(0.1, 2, 20)[None]
    net = lambda: small(torch.float32, vocab=VOCAB)  # noqa: E731

    def learned(method: Method | None, **options: Any) -> tuple[list[Any], dict[str, torch.Tensor]]:
        model = net()
        return acquire(
            model, Rows(), made, RECIPE, tokenizer=tokenizer, passages=TOLD, method=method, **options
        ).rows, weights(model)

    plain, still, woken = (learned(method) for method in (None, WakeIdle(usage, 0.0), WakeIdle(usage, 1.0)))
    assert plain[0] == still[0] and equal(plain[1], still[1]) and not equal(plain[1], woken[1])
    assert equal(woken[1], trained(RECIPE, Together((Injection(made), WakeIdle(usage, 1.0))), net()))
    first = next(row for row in learned(CoolAttention(3.0, 7))[0] if row["step"] == 0)
    with attention_temperature(model := net(), 3.0):
        assert first["target_mean"] == probe(model, tokenizer, TOLD).knowledge()
    learned(WakeIdle(usage, 1.0), out=tmp_path)
    with pytest.raises(BadInput, match=r"strength=1\.0.*strength=0\.5") as caught:
        learned(WakeIdle(usage, 0.5), out=tmp_path)
    one_line(caught.value)


def test_what_is_lost_is_counted(tokenizer):
    made = schedule(TOLD, tokenizer, slots=3, interval=1)
    recipe = Recipe(steps=3, batch_size=2, learning_rate=1e-3)
    found = acquire(small(), Rows(length=20), made, recipe, tokenizer=tokenizer, passages=TOLD)
    expected = 0
    for slot in made.slots:
        middle = (len(slot) + 1) // 2
        expected += sum(max(0, sum(map(len, half)) - 20) for half in (slot[:middle], slot[middle:]))
    assert found.lost == expected > 0 and found.injected == made.tokens


def test_a_run_that_ends_before_it_is_told_is_refused(tokenizer):
    made = schedule(TOLD, tokenizer, slots=3, interval=9)
    with pytest.raises(BadInput, match="got 9 steps of 7"):
        acquire(small(), Rows(), made, RECIPE, tokenizer=tokenizer, passages=TOLD)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
