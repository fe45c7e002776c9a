"""A model whose blocks stay on the disk gives the numbers of the same model in memory, in a part of its memory."""

import copy
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from conftest import tiny, tokens
from safetensors.torch import load_file, save_file
from test_rome import asked, words
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from kemem import entropy, trace
from kemem.editing import MEMIT, ROME, Edit, FineTune, key_moments, tracing
from kemem.editing.edit import value_deltas
from kemem.editing.facts import KnownFact
from kemem.editing.targets import Search
from kemem.entropy import measure
from kemem.errors import BadInput
from kemem.memory import Memories
from kemem.models import load
from kemem.models.shards import Shards
from kemem.models.streaming import save, stream, streamed, sweep, together

BOUND = {"float32": 1e-6, "float64": 1e-10}
TEXTS = [tokens(length, seed=length).tolist() for length in (12, 3, 9, 12, 1, 7, 12, 5)]
EDITABLE = ("olmo", "gpt2", "gpt_neox")
SEARCH = Search(steps=4, rate=0.3, clamp=2.0)


def near(found, wanted, bound: float = 1e-6) -> bool:
    found, wanted = (torch.as_tensor(each, dtype=torch.float64) for each in (found, wanted))
    return bool((found - wanted).abs().max() <= bound * wanted.abs().max())


def written(place: Path, family: str = "llama", *, shards: bool = False, **changes) -> str:
    size = {"max_shard_size": "6KB"} if shards else {}
    tiny(family, **{"layers": 3, **changes}).save_pretrained(place, **size)
    assert len(list(place.glob("*.safetensors"))) > 1 if shards else True
    return str(place)


def both(folder: str, dtype: str = "float64", **settings):
    """The model in memory, and the same streamed."""
    return tuple(open_(folder, device="cpu", dtype=dtype, **settings)[0] for open_ in (load, stream))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return written(tmp_path_factory.mktemp("llama"))


# ---------------------------------------------------------------------- the same numbers
@pytest.mark.parametrize(("dtype", "tied", "shards"), [("float32", True, False), ("float64", False, True)])
def test_measurements_are_those_of_the_model_in_memory(family, dtype, tied, shards, tmp_path):
    square = tied == (family in ("gpt2", "olmo2"))  # as many memories as the model is wide
    folder = written(tmp_path, family, shards=shards, square=square, tie_word_embeddings=tied)
    whole, model = both(folder, dtype)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is table) == tied
    with torch.no_grad():
        ids = tokens(2, 9)
        assert near(model(input_ids=ids).logits, whole(input_ids=ids).logits, BOUND[dtype])
    wanted, found = (
        measure(each, TEXTS, batch_size=2, attention=True, marks=(5,), group=2) for each in (whole, model)
    )
    for name in ("usage", "layers", "entropy", "next_token_entropy", "attention"):
        assert near(getattr(found, name), getattr(wanted, name), BOUND[dtype]), name
    assert near(found.snapshots[5], wanted.snapshots[5], BOUND[dtype])
    assert (found.tokens, found.instances) == (wanted.tokens, wanted.instances) == (61, 8)


def test_a_model_without_its_head_and_names_without_the_base_model(tmp_path):
    folder = written(tmp_path / "a", "gpt2", tie_word_embeddings=True)
    shutil.copytree(folder, tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    tensors["h.0.attn.bias"] = torch.ones(4, 4, dtype=torch.bool)  # a table of older versions: no weight
    save_file(tensors, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    ids = tokens(2, 9)
    for place in (folder, str(tmp_path / "b")):
        for head in (True, False):
            whole, model = both(place, head=head)
            with torch.no_grad():
                assert near(model(input_ids=ids)[0], whole(input_ids=ids)[0], 1e-12)
            assert near(measure(model, TEXTS).usage, measure(whole, TEXTS).usage, 1e-12)


def test_attention_and_masks_are_set_as_asked(folder):
    _, model = both(folder, attention="eager")
    assert {
        module.config._attn_implementation for module in model.modules() if hasattr(module, "config")
    } == {"eager"}
    assert model.config.num_hidden_layers == len(model.model.layers) == 3
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_progress_counts_whole_instances_up_to_all(folder):
    told = []
    measure(
        both(folder)[1], TEXTS, batch_size=2, group=3, progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (8, 8) and told == sorted(told) and len(told) > 4


@pytest.mark.parametrize("family", ["olmo", "gpt2", "llama", "olmo2"])
def test_traces_are_those_of_the_model_in_memory(family, tmp_path):
    tokenizer = words()
    models = both(written(tmp_path, family, layers=2, vocab=len(tokenizer)))
    with torch.no_grad():
        said = int(models[0](input_ids=torch.tensor([[10, 53, 7]])).logits[0, -1].argmax())
    fact = KnownFact(0, "w10 w53 w7", "w10", tokenizer.decode([said]))
    wanted, found = (
        tracing.trace(model, tokenizer, [fact], samples=2, window=2, batch_size=5) for model in models
    )
    assert near(found.corrupted, wanted.corrupted, 1e-10)
    for kind, map_ in wanted.traces[0].indirect.items():
        assert near(found.traces[0].indirect[kind], map_, 1e-10)


@pytest.mark.parametrize("family", EDITABLE)
def test_edits_are_those_of_the_model_in_memory(family, tmp_path):
    tokenizer = words()
    folder = written(tmp_path, family, layers=4, vocab=len(tokenizer), shards=family == "olmo")
    found = []
    for model in both(folder):
        moments = key_moments(model, [*TEXTS, *tokens(9, 6, seed=1).tolist()], (1, 2))
        memit = MEMIT((1, 2), weight=10.0, search=SEARCH)(model, tokenizer, asked(3), moments)
        rome = ROME(1, SEARCH)(model, tokenizer, asked(2), moments)
        assert memit.deltas.keys() == {f"{Memories(model).down_path(layer)}.weight" for layer in (1, 2)}
        found.append([moments.of[1], moments.of[2], *memit.deltas.values(), *rome.deltas.values()])
    assert all(near(mine, wanted, 1e-9) for wanted, mine in zip(*found, strict=True))


# ---------------------------------------------------------------------- in a part of the memory
def alive(work) -> int:
    """The most bytes of tensors that torch had made and not yet freed, of those made within `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def deep(place: Path, family: str, shards: bool = False) -> str:
    """Twelve layers, with more than nine tenths of the parameters in them."""
    return written(place, family, shards=shards, layers=12, width=24, memories=192, heads=3)


def parts(model) -> tuple[int, int, int]:
    """Bytes of all parameters of a model in memory, of those outside its blocks, and of one block."""
    whole = sum(p.nbytes for p in model.parameters())
    blocks = model.get_submodule(Memories(model).blocks_path)
    inside = sum(p.nbytes for p in blocks.parameters())
    return whole, whole - inside, sum(p.nbytes for p in blocks[0].parameters())


@pytest.mark.parametrize("family", ["olmo", "gpt2", "gpt_neox", "llama", "olmo2"])
def test_twelve_layers_are_measured_in_less_than_a_third_of_their_bytes(family, tmp_path):
    folder = deep(tmp_path, family, shards=family in ("gpt2", "olmo2"))
    memory, model = both(folder, "float32")
    whole, outside, block = parts(memory)
    assert outside < 0.1 * whole
    assert streamed(model).shards.read_bytes == 0  # opened without reading a block
    kept = sum(p.nbytes for p in model.parameters() if not p.is_meta)
    found = []
    working = alive(lambda: found.append(measure(model, TEXTS, batch_size=1)))
    assert kept == outside and block < working
    assert kept + working < whole / 3
    wanted = measure(memory, TEXTS, batch_size=1)
    assert near(found[0].entropy, wanted.entropy) and near(found[0].layers, wanted.layers)
    assert near(found[0].next_token_entropy, wanted.next_token_entropy)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_more_than_one_block_is_ever_there(family, tmp_path):
    memory, model = both(deep(tmp_path, family), "float32")
    _, outside, block = parts(memory)
    held: list[int] = []

    def count(_) -> None:
        held.append(sum(p.nbytes for p in model.parameters() if not p.is_meta))

    paths = map(Memories(model).down_path, range(12))
    with trace.observe(model, dict.fromkeys(paths, count)), torch.no_grad():
        model(input_ids=tokens(1, 5))
    assert held == [outside + block] * 12


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_gradient_through_all_blocks_keeps_none_of_them(family, tmp_path):
    models = both(deep(tmp_path, family), "float32")
    whole = parts(models[0])[0]
    given = models[0].get_input_embeddings()(tokens(1, 3)).detach()
    slopes = []

    def slope(model) -> None:
        stream = given.clone().requires_grad_(True)
        loss = model(inputs_embeds=stream, use_cache=False).logits.square().sum()
        slopes.extend(torch.autograd.grad(loss, stream))

    slope(models[0])
    assert alive(lambda: slope(models[1])) < whole / 3
    assert near(slopes[1], slopes[0])
    assert streamed(models[1]).shards.read_bytes > 1.5 * 0.9 * whole  # forward, and again backward


def test_bytes_read_do_not_grow_with_the_batches(folder):
    def read(count: int, **settings) -> int:
        model = stream(folder, device="cpu")[0]
        measure(model, TEXTS[:1] * count, batch_size=1, **settings)
        return streamed(model).shards.read_bytes

    once = read(1)
    assert read(12) == read(12, group=12) == once
    assert read(12, group=6) - once == (read(12, group=3) - once) / 3 > once / 2


def bytes_read(model, work) -> int:
    before = streamed(model).shards.read_bytes
    work()
    return streamed(model).shards.read_bytes - before


@pytest.mark.parametrize("family", EDITABLE)
def test_key_moments_read_each_block_once(family, tmp_path, monkeypatch):
    whole, model = both(written(tmp_path, family, layers=4))
    rows, parts_of = TEXTS * 3, ({}, {})
    blocks = whole.get_submodule(Memories(whole).blocks_path)
    two = sum(p.nbytes for block in blocks[:2] for p in block.parameters()) // 2  # float32 in the files
    found = []

    def work(each, kept, **settings):
        return key_moments(
            each,
            rows,
            (0, 1),
            batch_size=3,
            snapshots=(7, 24),
            snapshot=lambda n, m: kept.update({n: m}),
            **settings,
        )

    wanted = work(whole, parts_of[0])
    told = []
    assert bytes_read(model, lambda: found.append(key_moments(model, rows, (0, 1), batch_size=3))) == two
    assert (
        bytes_read(
            model, lambda: found.append(work(model, parts_of[1], progress=lambda *a: told.append(a[0])))
        )
        == 2 * two
    )
    assert told == sorted(told) and told[-1] == 24
    for each in found:
        assert each.tokens == wanted.tokens and all(
            near(each[layer], wanted[layer], 1e-12) for layer in (0, 1)
        )
    assert parts_of[0].keys() == parts_of[1].keys()
    assert all(near(parts_of[1][n][1], parts_of[0][n][1], 1e-12) for n in parts_of[0])
    room = 2 * 3 * 12 * 12 * 8  # bytes of the streams of two batches of three rows of 12 tokens
    monkeypatch.setattr("kemem.editing.moments.together", lambda *given: together(*given, bytes=room))
    assert bytes_read(model, lambda: found.append(key_moments(model, rows, (0, 1), batch_size=3))) > 2 * two
    assert near(found[-1][1], wanted[1], 1e-12)


def test_traces_read_each_block_once_for_all_parts(tmp_path):
    tokenizer = words()
    folder = written(tmp_path, "llama", layers=3, vocab=len(tokenizer))
    memory, model = both(folder)
    once = sum(p.nbytes for p in memory.model.layers.parameters()) // 2
    with torch.no_grad():
        said = int(memory(input_ids=torch.tensor([[10, 53, 7]])).logits[0, -1].argmax())
    fact = KnownFact(0, "w10 w53 w7", "w10", tokenizer.decode([said]))

    def work() -> None:
        tracing.trace(model, tokenizer, [fact], samples=2, window=2, batch_size=5)

    assert bytes_read(model, work) == 3 * once  # clean, corrupted, and all parts that are restored


@pytest.mark.parametrize(("tokens_", "room", "wanted"), [
    ([4, 4, 4], 8, [range(2), range(2, 3)]),
    ([9, 1, 1], 4, [range(1), range(1, 3)]),
    ([], 4, []),
    ([3], 1, [range(1)]),
])  # fmt: skip
def test_passes_go_together_while_there_is_room(folder, tokens_, room, wanted):
    memories = Memories(load(folder, device="cpu")[0])
    assert list(together(tokens_, memories, bytes=room * 12 * 4)) == wanted


def test_a_model_that_is_dropped_is_gone(folder):
    model = both(folder)[1]
    measure(model, TEXTS)
    weak = [weakref.ref(each) for each in (model, streamed(model), model.model.layers[0])]
    del model
    assert [each() for each in weak] == [None] * 3  # at once: no circle waits for a collection


# ---------------------------------------------------------------------- weights, when they are asked for
def test_memories_are_read_when_asked_for(family, tmp_path):
    whole, model = both(written(tmp_path, family))
    mine, wanted = Memories(model), Memories(whole)
    assert repr(mine) == repr(wanted) and streamed(model).shards.read_bytes == 0
    streamed(model).hold(model.get_submodule(mine.block_path(1)))  # this one is there, the others are not
    for layer in range(3):
        names = ["values", "keys", "bias", "key_bias", *(["gates", "gate_bias"] if wanted.gated else [])]
        for name in names:
            found, true = getattr(mine, name)(layer), getattr(wanted, name)(layer)
            assert (found is None) == (true is None)
            assert found is None or (torch.equal(found, true) and not found.requires_grad)
        for name, true in wanted.head(layer, 2).items():
            assert torch.equal(mine.head(layer, 2)[name], true)


def test_copies_of_weights_refuse_to_be_changed(folder):
    whole, model = both(folder)
    memories = Memories(model)
    streamed(model).hold(model.model.layers[1])
    changes = (
        lambda part: part.mul_(2),
        lambda part: part.T[0].zero_(),
        lambda part: part.__setitem__(0, 1.0),
        lambda part: part.copy_(part + 1),
        lambda part: torch.add(part, 1, out=part),
    )
    for change in changes:
        for part in (memories.values(0), memories.keys(1), memories.head(2, 0)["query"]):
            with pytest.raises(BadInput, match="a copy of those on the disk"):
                change(part)
    with pytest.raises(BadInput, match="a copy of those on the disk"):
        entropy.resuscitate_(model, torch.full((3, 20), 2.0))
    assert type(memories.values(0) @ torch.ones(20, dtype=torch.float64)) is torch.Tensor
    assert torch.equal(memories.values(0), Memories(whole).values(0))


# ---------------------------------------------------------------------- edits
def edit_of(model, seed: int = 0, layers: tuple[int, ...] = (0, 2)) -> Edit:
    memories = Memories(model)
    generator = torch.Generator().manual_seed(seed)
    shape = memories.width, memories.count
    return Edit(value_deltas(memories, {layer: torch.randn(shape, generator=generator) for layer in layers}))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_lies_over_what_is_read_while_it_is_applied(family, tmp_path):
    whole, model = both(written(tmp_path, family))
    ids = tokens(2, 9)

    @torch.no_grad()
    def same() -> bool:
        logits = (each(input_ids=ids).logits for each in (model, whole))
        parts = (Memories(each).values(2) for each in (model, whole))
        return near(*logits, 1e-12) and torch.equal(*parts)

    with torch.no_grad():
        before = model(input_ids=ids).logits
    one, two = edit_of(whole), edit_of(whole, 1, (2,))
    with one.applied(whole), one.applied(model):
        assert same()
        with two.applied(whole), two.applied(model), one.applied(whole), one.applied(model):
            assert same()
        assert same()
        with torch.no_grad():
            assert not near(model(input_ids=ids).logits, before)
    assert torch.equal(Memories(model).values(2), Memories(whole).values(2))  # of the block that ran last
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    with pytest.raises(KeyError), one.applied(model):
        raise KeyError
    assert same()


def test_a_gradient_is_by_the_weights_of_its_own_pass(folder):
    whole, model = both(folder)
    edit = edit_of(whole, layers=(1, 2))
    slopes = []
    for each in (whole, model):
        stream = torch.ones(1, 4, 12, dtype=torch.float64, requires_grad=True)
        with edit.applied(each):
            loss = each(inputs_embeds=stream, use_cache=False).logits.square().sum()
            if each is whole:
                slopes.extend(torch.autograd.grad(loss, stream))
        if each is model:  # the edit is off again
            slopes.extend(torch.autograd.grad(loss, stream))
    assert near(slopes[1], slopes[0], 1e-12)


@pytest.mark.parametrize(("dtype", "shards"), [("float32", True), ("bfloat16", False)])
def test_a_saved_edit_is_that_of_the_model_in_memory(shards, dtype, tmp_path):
    tiny("gpt2", layers=3, dtype=getattr(torch, dtype)).save_pretrained(
        tmp_path / "from", **({"max_shard_size": "4KB"} if shards else {})
    )
    whole, model = both(str(tmp_path / "from"), dtype)
    for each in (whole, model):
        edit_of(whole).apply_(each)
        edit_of(whole, 1, (1, 2)).apply_(each)
    model.save_pretrained(tmp_path / "to")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "to", dtype=getattr(torch, dtype))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    for file in (tmp_path / "from").iterdir():
        assert (tmp_path / "to" / file.name).stat().st_size == file.stat().st_size, file.name
    save(both(str(tmp_path / "from"), dtype)[1], tmp_path / "same")
    for file in (tmp_path / "from").glob("*.safetensors*"):
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()


def test_weights_that_would_be_read_in_place_of_the_saved_ones_are_refused(tmp_path):
    written(tmp_path / "from", "gpt2", shards=True)
    written(tmp_path / "other", "gpt2", seed=5)
    _, model = both(str(tmp_path / "from"))
    before = (tmp_path / "other" / "model.safetensors").read_bytes()
    with pytest.raises(BadInput, match=r"without other weights; got model\.safetensors"):
        save(model, tmp_path / "other")
    assert (tmp_path / "other" / "model.safetensors").read_bytes() == before
    save(model, tmp_path / "to")
    save(model, tmp_path / "to")  # of the same names: written anew


def test_an_edit_of_what_is_kept_in_memory_is_refused(folder):
    whole, model = both(folder)
    edit = Edit({"lm_head.weight": torch.ones(61, 12)})
    for work in (edit.apply_, lambda each: edit.applied(each).__enter__()):
        with pytest.raises(BadInput, match="a part that is kept in memory"):
            work(model)
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)


# ---------------------------------------------------------------------- refused
def altered(folder: Path, change) -> None:
    """Rewrites the head of a file of weights."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    change(head)
    text = json.dumps(head).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def without(folder: Path, name: str) -> None:
    """Rewrites a file of weights without one of them."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-40]), "."),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:500]), "."),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "."),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes() + b"x"), "."),
        (lambda d: without(d, DOWN), f"expected {DOWN} in the weights"),
        (lambda d: altered(d, lambda head: head[DOWN].update(shape=[20, 12])), f"expected {DOWN} of shape"),
        (lambda d: altered(d, lambda head: head[DOWN].update(dtype="F16")), "."),
        (lambda d: without(d, "model.norm.weight"), "expected all weights of a llama"),
        (lambda d: (d / "model.safetensors").unlink(), "expected weights as safetensors"),
        (lambda d: (d / "config.json").unlink(), "without a config.json"),
    ],
)
def test_weights_that_cannot_be_read_are_refused_in_one_line(change, said, tmp_path):
    change(Path(written(tmp_path)))
    with pytest.raises(BadInput, match=said) as refused:
        stream(str(tmp_path), device="cpu")
    text = str(refused.value)
    assert "\n" not in text and text.startswith("expected") and text.count(";") >= 2 and str(tmp_path) in text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda data: data[:-8], "got .* bytes instead of"),
        (lambda data: data + b"x", "got .* bytes instead of"),
        (lambda data: data[:20], "a part of its head"),
        (lambda data: data.replace(b'"F32"', b'"F16"'), "of another number type"),
        (lambda data: data[:8] + b"x" + data[9:], "got another head"),
    ],
)
def test_the_files_are_checked_here_too(data, said, tmp_path):
    file = Path(written(tmp_path)) / "model.safetensors"
    file.write_bytes(data(file.read_bytes()))
    with pytest.raises(BadInput, match=said):
        Shards([file]).named(DOWN, (12, 20), "model")


def test_a_shard_that_is_missing_or_cut_is_named(tmp_path):
    written(tmp_path, shards=True)
    file = max(tmp_path.glob("*.safetensors"))
    data = file.read_bytes()
    file.write_bytes(data[:-8])
    with pytest.raises(BadInput, match="expected"):
        stream(str(tmp_path), device="cpu")
    file.unlink()
    with pytest.raises(BadInput, match="expected"):
        stream(str(tmp_path), device="cpu")
    file.write_bytes(data)
    assert stream(str(tmp_path), device="cpu")[0].config.num_hidden_layers == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-8]),
        lambda file: file.write_bytes(file.read_bytes()[::-1]),
        lambda file: file.unlink(),
    ],
)
def test_a_file_that_changes_while_the_model_is_there_is_refused(change, tmp_path):
    model = both(written(tmp_path))[1]
    measure(model, TEXTS)
    change(tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"expected whole, unchanged weights in .*model\.safetensors; got "):
        measure(model, TEXTS)
    with pytest.raises(BadInput, match="expected whole, unchanged weights"):
        Memories(model).values(0)
    with pytest.raises(BadInput, match="expected whole, unchanged weights"):
        save(model, tmp_path / "to")


def test_what_would_train_copy_or_replace_is_refused(folder):
    tokenizer, ids = words(), tokens(1, 5)
    model = both(folder)[1]
    with pytest.raises(BadInput, match="as in training"):
        FineTune.ft(1)(model, tokenizer, asked(2))
    with pytest.raises(BadInput, match="stream it twice"):
        copy.deepcopy(model)
    with pytest.raises(BadInput, match="got one in memory; use save_pretrained"):
        save(both(folder)[0], "anywhere")
    with torch.no_grad():
        model(input_ids=ids)
        model.model.layers[2].mlp.down_proj.weight.mul_(2)
        with pytest.raises(
            BadInput, match=r"expected model.layers.2.mlp.down_proj.weight as it is on the disk"
        ):
            model(input_ids=ids)
        assert near(model(input_ids=ids).logits, both(folder)[0](input_ids=ids).logits)  # read anew
    with pytest.raises(BadInput, match="as it is on the disk"):
        model.requires_grad_(True)(input_ids=ids)
    model = both(folder)[1]
    model.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(torch.ones(12, 20), requires_grad=False)
    with pytest.raises(BadInput, match="as it is on the disk; got it replaced"):
        model(input_ids=ids)


def test_layers_of_two_kinds_of_attention_are_not_run_by_themselves(tmp_path):
    kinds = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}
    folder = written(tmp_path, "qwen2", layers=2, sliding_window=3, max_window_layers=1, **kinds)
    whole, model = both(folder)
    ids = tokens(2, 9)
    with torch.no_grad():
        assert near(model(input_ids=ids).logits, whole(input_ids=ids).logits, 1e-12)
    with pytest.raises(BadInput, match="expected layers of one kind of attention"):
        measure(model, TEXTS)


# ---------------------------------------------------------------------- many passes side by side
@pytest.mark.parametrize(("open_", "stop"), [(load, None), (stream, 2), (stream, None)])
def test_a_sweep_is_one_pass_after_the_other(open_, stop, tmp_path):
    model = open_(written(tmp_path, "gptj"), device="cpu", dtype="float64")[0]
    memories = Memories(model)
    calls = [{"input_ids": tokens(2, n, seed=n), "use_cache": False} for n in (5, 9)]
    seen, now, out, blocks = {}, [], {}, []

    def begin(i: int) -> None:
        now[:] = [i]

    with torch.no_grad(), memories.coefficients(lambda layer, c: seen.update({(now[0], layer): c.clone()})):
        sweep(memories, calls, stop=stop, before=begin, after=out.__setitem__, done=blocks.append)
        swept, seen = seen, {}
        for i, call in enumerate(calls):
            begin(i)
            wanted = model.base_model(**call).last_hidden_state
            assert stop or near(out[i].last_hidden_state, wanted, 1e-12)
    assert blocks == list(range(1, (stop or 3) + 1)) and out.keys() == {0, 1}
    assert swept.keys() == {(i, layer) for i in (0, 1) for layer in range(stop or 3)}
    assert all(torch.equal(swept[key], seen[key]) for key in swept)
    assert len(model.get_submodule(memories.blocks_path)) == 3
