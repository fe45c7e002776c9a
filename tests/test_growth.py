"""Growth against the function it should keep, tensor by tensor against plain loops, and through the disk."""

import copy
from types import MethodType

import pytest
import torch
from conftest import FAMILIES, MASKED, tiny, tokens
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, GenerationConfig

from kemem import models
from kemem.continual import beside
from kemem.continual.growth import Difference, flops_per_token, growth_error, scores
from kemem.continual.growth_copies import copied
from kemem.continual.growth_depth import grow_depth_
from kemem.continual.growth_width import grow_width_
from kemem.errors import BadInput
from kemem.families import LAYOUTS
from kemem.memory import Memories
from kemem.models import Shape, build
from kemem.training import Recipe, train

TEXT = {"input_ids": tokens(3, 14)}


def exact_(model: nn.Module) -> nn.Module:
    """Norms in the model's own dtype: OLMo's, Llama's and Qwen's compute in float32 whatever it is."""

    def norm(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "weight"):
            return nn.functional.layer_norm(x, x.shape[-1:], None, None, 1e-5)
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("Norm") and not isinstance(module, nn.LayerNorm):
            module.forward = MethodType(norm, module)
    return model


def error(before: nn.Module, after: nn.Module, text=TEXT) -> float:
    return growth_error(exact_(copy.deepcopy(before)), exact_(copy.deepcopy(after)), text).logits


def bound(family: str) -> float:
    return 1e-5 if family == "gptj" else 1e-12  # GPT-J's attention computes in float32


def pair(family: str, **options) -> tuple[nn.Module, nn.Module]:
    """A model in float64 and a copy of it to grow."""
    model = tiny(family, **options).double()
    return model, copy.deepcopy(model)


# ---------------------------------------------------------------------- width
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_doubling_keeps_the_function(family, tied):
    before, after = pair(family, tie_word_embeddings=tied)
    kept = after
    grow_width_(after, width=24, memories=40, heads=6, untie=True)
    grown = Memories(after)
    assert after is kept and (grown.width, grown.count, grown.heads) == (24, 40, 6)
    assert grown.kv_heads == 2 * Memories(before).kv_heads
    assert error(before, after) < bound(family)
    assert growth_error(before, after, TEXT).logits < 1e-5  # and as it is, whatever its norms compute in
    tied_now = after.get_output_embeddings().weight is after.get_input_embeddings().weight
    assert tied_now == (tied and family != "olmo") == after.config.tie_word_embeddings


@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "gpt_neox", "roberta"])
@pytest.mark.parametrize("way", ["random", "first"])
def test_tripling_keeps_the_function_where_all_sizes_are_one(family, way):
    """As many memories and tokens in the vocabulary as the width is: shapes tell nothing apart."""
    before, after = pair(family, square=True, vocab=12, tie_word_embeddings=way == "random")
    text = {"input_ids": tokens(3, 14, vocab=12)}
    maps = grow_width_(after, width=36, memories=36, heads=9, copies=way, untie=True, seed=3)
    assert error(before, after, text) < 1e-12
    assert set(maps.residual.count.tolist()) == {3}
    assert maps.memories[0].source.equal(maps.memories[1].source) == (way == "first")


@pytest.mark.parametrize(
    ("family", "sizes", "options"),
    [
        ("olmo", {"heads": 5, "memories": 33}, {}),
        ("olmo2", {"heads": 6}, {}),
        ("llama", {"heads": 6, "memories": 21}, {"width": 24, "heads": 4, "kv_heads": 2}),
        ("qwen3", {"heads": 6, "memories": 50}, {}),
        ("gpt2", {"memories": 29}, {}),
        ("gpt_neox", {"memories": 29}, {}),
        ("roberta", {"memories": 31}, {}),
        ("gpt2", {"width": 24, "heads": 6, "memories": 47}, {}),
        ("roberta", {"width": 24, "heads": 6}, {}),
        ("llama", {"width": 24}, {}),
    ],
)
def test_memories_and_heads_grow_by_any_number(family, sizes, options):
    """A tied OLMo too, since nothing that it reads is divided; and each side alone, heads keeping their size."""
    tied = family != "llama"
    before, after = pair(family, tie_word_embeddings=tied, **options)
    old = Memories(before)
    maps = grow_width_(after, **sizes, seed=5)
    new = Memories(after)
    assert error(before, after) < 1e-12
    assert new.width == sizes.get("width", old.width) and new.count == sizes.get("memories", old.count)
    assert new.heads == sizes.get("heads", old.heads) and len(maps.kv_heads[0].source) == new.kv_heads
    assert new.head(0, 0)["query"].shape[0] == old.head(0, 0)["query"].shape[0]
    assert after.config.tie_word_embeddings == tied


def test_nothing_asked_is_nothing_done(family):
    before, after = pair(family, tie_word_embeddings=True)
    grow_width_(after, heads=3, memories=20)
    found, wanted = dict(after.named_parameters()), dict(before.named_parameters())
    assert found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert after.config.to_dict() == before.config.to_dict()


@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "roberta"])
def test_an_uneven_width_is_an_error_and_said(family):
    before, after = pair(family)
    grow_width_(
        after, width=16 if family != "llama" else 15, heads=4 if family in ("gpt2", "roberta") else None
    )
    found = growth_error(before, after, TEXT)
    assert found.logits > 1e-2 and found.divergence > 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_each_entry_by_hand(family):
    """f, c and the two rules written out for every entry of three kinds of matrix and a norm's gain."""
    before, after = pair(family, tie_word_embeddings=True)
    maps = grow_width_(after, width=24, memories=27, heads=6, seed=1)
    f, m = maps.residual.source.tolist(), maps.memories[1].source.tolist()
    assert f[:12] == [*range(12)] and sorted(f[12:]) == [*range(12)] and m[:20] == [*range(20)]
    c, k = [f.count(j) for j in f], [m.count(j) for j in m]
    assert set(k) == {1, 2}
    old, new = Memories(before), Memories(after)
    keys, values = old.keys(1), old.values(1)
    assert new.keys(1).equal(
        torch.tensor([[keys[m[i], f[j]] / c[j] for j in range(24)] for i in range(27)]).double()
    )
    assert new.values(1).equal(
        torch.tensor([[values[f[i], m[j]] / k[j] for j in range(27)] for i in range(24)]).double()
    )
    table, grown = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert grown.equal(table[:, f])
    if (bias := old.key_bias(1)) is not None:
        assert new.key_bias(1).equal(bias[m]) and new.bias(1).equal(old.bias(1)[f])
    last = {"llama": "model.norm", "gpt2": "transformer.ln_f", "roberta": "lm_head.layer_norm"}[family]
    for name, p in before.get_submodule(last).named_parameters():
        assert after.get_submodule(last).get_parameter(name).equal(p[f] / 2)  # the head is tied: c is here
    own = {"llama": "input_layernorm", "gpt2": "ln_1", "roberta": "output.LayerNorm"}[family]
    inner = f"{old.block_path(0)}.{own}"
    assert after.get_submodule(inner).weight.equal(before.get_submodule(inner).weight[f])


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("olmo", {}),
        ("llama", {"width": 24, "heads": 6, "kv_heads": 2}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("roberta", {}),
    ],
)
def test_copied_heads_look_where_their_originals_look(family, options):
    before, after = pair(family, attention="eager", **options)
    old, patterns = Memories(before), {}
    maps = grow_width_(after, width=2 * old.width, heads=2 * old.heads, seed=2)
    assert after.config._attn_implementation == "eager"
    for name, model in (("before", before), ("after", after)):
        found: dict[int, torch.Tensor] = {}
        with Memories(exact_(model)).attention(found.__setitem__):
            scores(model, TEXT)
        patterns[name] = found
    for layer in range(old.layers):
        wanted = patterns["before"][layer][:, maps.heads[layer].source]
        assert torch.allclose(patterns["after"][layer], wanted, atol=1e-6, rtol=0)
        different = patterns["before"][layer][:, 0] - patterns["before"][layer][:, -1]
        assert different.abs().max() > 1e-3  # else a wrong map would pass
    group = old.heads // old.kv_heads
    assert all(h.source[::group].div(group, rounding_mode="floor").equal(k.source)
               for h, k in zip(maps.heads, maps.kv_heads, strict=True))  # fmt: skip


def newly(name: str, old: torch.Size, new: torch.Size, family: str) -> torch.Tensor:
    """Which entries of a grown parameter are new, by shapes alone; fused parts follow each other."""
    mask = torch.zeros(new, dtype=torch.bool)
    for dim, (a, b) in enumerate(zip(old, new, strict=True)):
        parts = 3 if "c_attn" in name and dim == len(old) - 1 else 1
        along = torch.cat([torch.arange(b // parts) >= a // parts] * parts)
        mask |= along.view(-1, *[1] * (len(old) - dim - 1))
    return mask


@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "roberta"])
def test_noise_is_on_copies_alone_unless_everywhere(family):
    before, bare = pair(family, layers=1, vocab=300)
    sizes = {"width": 24, "memories": 33, "heads": 6, "seed": 4}
    noisy, everywhere = copy.deepcopy(before), copy.deepcopy(before)
    grow_width_(bare, **sizes)
    grow_width_(noisy, **sizes, noise=0.01)
    grow_width_(everywhere, **sizes, noise=0.01, noise_everywhere=True)
    drawn = []
    for name, p in bare.named_parameters():
        mask = newly(name, before.get_parameter(name).shape, p.shape, family)
        change = noisy.get_parameter(name) - p
        assert (change[~mask] == 0).all() and (change[mask] != 0).all(), name
        drawn.append(change[mask])
        assert ((everywhere.get_parameter(name) - p) != 0).all(), name
    values = torch.cat(drawn)
    assert values.std().item() == pytest.approx(0.01, rel=0.05) and abs(values.mean()) < 1e-3
    assert growth_error(before, noisy, TEXT).logits > 0


def test_copies_are_even_and_follow_from_the_seed():
    def drawn(old, new, way="random", seed=0):
        return copied(old, new, way, torch.Generator().manual_seed(seed))

    for new in (7, 8, 13, 14, 20, 21, 22):
        found = drawn(7, new)
        assert found.source[:7].tolist() == [*range(7)] and found.old == 7 and len(found.source) == new
        counts = torch.bincount(found.source, minlength=7)
        assert counts.max() - counts.min() <= 1
        assert found.count.tolist() == [counts[j] for j in found.source]
    assert drawn(7, 17, "first").source[7:].tolist() == [*range(7), 0, 1, 2]
    assert drawn(7, 14).source.equal(drawn(7, 14).source)
    assert not drawn(7, 14).source.equal(drawn(7, 14, seed=1).source)
    with pytest.raises(BadInput, match="random, first"):
        drawn(7, 9, "last")
    a, b = tiny("llama"), tiny("llama")
    for model in (a, b):
        grow_width_(model, width=18, memories=31, noise=0.1, seed=9)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_embeddings_beside_a_model_grow_with_it():
    model = tiny("olmo")
    kept = beside.add_(model, "prompt0", nn.Embedding(1, 12))
    vector = kept.weight.detach().clone()
    maps = grow_width_(model, width=24)
    assert beside.module(model, "prompt0") is kept and kept.embedding_dim == 24
    assert kept.weight.equal(vector[:, maps.residual.source]) and kept.weight.requires_grad
    grow_depth_(model, blocks=1)
    assert beside.module(model, "prompt0").weight.equal(vector[:, maps.residual.source])
    beside.add_(model, "adapter", nn.Linear(24, 2))
    for grow in (lambda: grow_width_(model, width=48), lambda: grow_depth_(model, blocks=1)):
        with pytest.raises(BadInput, match="'adapter'"):
            grow()


# ---------------------------------------------------------------------- depth
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in MASKED])
def test_zeroed_copies_keep_the_function(family):
    before, after = pair(family, layers=3, tie_word_embeddings=True)
    origins = grow_depth_(after, blocks=4, zeroed=True, seed=1)
    assert growth_error(before, after, TEXT).logits < 1e-12 and len(origins) == Memories(after).layers == 7
    assert growth_error(before, after, TEXT).logits == 0 or family == "gptj"
    del after
    after = copy.deepcopy(before)
    grow_depth_(after, blocks=1, seed=1)
    found = growth_error(before, after, TEXT)
    assert found.logits > 1e-3 and found.divergence > 0


@pytest.mark.parametrize("family", ["olmo", "gpt2", "roberta"])
@pytest.mark.parametrize("pick", ["random", "last"])
def test_a_copy_stands_behind_its_original(family, pick):
    before, after = pair(family, layers=3)
    assert grow_depth_(after, blocks=1, pick="last") == (0, 1, 2, 2)
    origins = grow_depth_(after, blocks=1, pick=pick, seed=1, origins=(0, 1, 2, 2))
    assert origins in ((0, 0, 1, 2, 2), (0, 1, 1, 2, 2)) and (pick == "random" or origins[2] == 1)
    prefix = Memories(before).blocks_path
    for layer, origin in enumerate(origins):
        ours, theirs = (dict(m.named_parameters()) for m in (after.get_submodule(f"{prefix}.{layer}"),
                                                             before.get_submodule(f"{prefix}.{origin}")))  # fmt: skip
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    by_hand = copy.deepcopy(before).eval()
    blocks = by_hand.get_submodule(prefix)
    twice = nn.ModuleList([blocks[origin] for origin in origins])
    by_hand.get_submodule(prefix.rpartition(".")[0]).register_module(prefix.rpartition(".")[2], twice)
    if family != "gpt2":
        by_hand.config.num_hidden_layers = len(twice)
    assert growth_error(by_hand, after, TEXT).logits < 1e-12


def test_every_block_is_copied_before_one_is_copied_again():
    model = tiny("olmo", layers=3)
    origins: tuple[int, ...] = ()
    for step in range(1, 10):
        origins = grow_depth_(model, blocks=1, seed=step, origins=origins)
        counts = [origins.count(origin) for origin in sorted(set(origins))]
        began = 3 if step <= 3 else 6 if step <= 9 else 12
        assert len(counts) == began and set(counts) <= {1, 2} and sum(counts) == 3 + step
    once = tiny("olmo", layers=3)
    assert len(set(grow_depth_(once, blocks=9, seed=0))) == 6
    firsts = {grow_depth_(tiny("olmo", layers=3), blocks=1, seed=seed) for seed in range(12)}
    assert firsts == {(0, 0, 1, 2), (0, 1, 1, 2), (0, 1, 2, 2)}


# ---------------------------------------------------------------------- what surrounds growth
def test_a_grown_model_goes_through_the_disk(family, tmp_path):
    model = tiny(family, tie_word_embeddings=True)
    grow_depth_(model, blocks=1)
    width = 24 if family in ("gpt2", "gptj", "roberta", "bert", "gpt_neox") else 18
    grow_width_(model, width=width, memories=25, heads=6 if width == 24 else None, untie=True)
    model.save_pretrained(tmp_path)
    found, _ = models.load(str(tmp_path), device="cpu")
    assert torch.equal(scores(found, TEXT), scores(model, TEXT))
    assert Memories(found).layers == 3 and Memories(found).width == width and Memories(found).count == 25
    old, new = model.config.to_dict(), found.config.to_dict()
    for name in ("architectures", "dtype", "_name_or_path"):
        old.pop(name), new.pop(name)
    assert old == new


@pytest.mark.parametrize("family", ["olmo", "gpt2", "roberta"])
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_what_has_nothing_to_do_with_sizes_stays(family, mode):
    model = tiny(family, attention="eager", dtype=torch.bfloat16).train(mode)
    frozen = next(name for name, _ in model.named_parameters() if Memories(model).block_path(1) in name)
    model.get_parameter(frozen).requires_grad_(False)
    model.generation_config = GenerationConfig(max_new_tokens=7)
    state = torch.random.get_rng_state()
    buffers = dict(model.named_buffers())
    grow_width_(model, width=24, memories=40, heads=6, noise=0.1)
    grow_depth_(model, blocks=1, pick="last")
    assert torch.equal(state, torch.random.get_rng_state())
    assert {p.dtype for p in model.parameters()} == {
        torch.bfloat16
    } and model.generation_config.max_new_tokens == 7
    assert {module.training for module in model.modules()} == {
        mode
    } and model.config._attn_implementation == "eager"
    copied_too = frozen.replace(Memories(model).block_path(1), Memories(model).block_path(2))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [frozen, copied_too]
    assert all(torch.equal(b, buffers[n]) and b.dtype == buffers[n].dtype for n, b in model.named_buffers())


@pytest.mark.parametrize("family", ["olmo", "gpt2"])
def test_it_trains_on(family):
    class Rows:
        def __len__(self) -> int:
            return 8

        def batch(self, indices):
            ids = tokens(8, 12, seed=1)[indices]
            return {"input_ids": ids, "labels": ids.clone()}

    model = build(Shape(family, layers=1, width=12, memories=20, heads=3, vocab=61))
    grow_width_(model, width=24, memories=40, heads=6, noise=0.01, untie=True)
    grow_depth_(model, blocks=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    history = train(model, Rows(), Recipe(steps=12, batch_size=8, learning_rate=1e-2))
    assert history.steps[-1]["loss"] < history.steps[0]["loss"] - 0.2
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_model_without_a_head_grows():
    model = tiny("gpt2").transformer.double()
    before = copy.deepcopy(model)
    maps = grow_width_(model, width=24, heads=6)
    with torch.no_grad():
        old, new = (m.eval()(**TEXT).last_hidden_state for m in (before, model))
    assert torch.allclose(new, old[..., maps.residual.source], atol=1e-12, rtol=0)
    assert isinstance(AutoModel.from_config(model.config), type(model))


def test_the_error_is_that_of_a_plain_loop():
    before, after = tiny("gpt2").double(), tiny("gpt2", seed=1).double()
    mask = torch.ones(3, 14, dtype=torch.long)
    mask[0, 9:] = 0
    text = {**TEXT, "attention_mask": mask, "labels": TEXT["input_ids"]}
    found = growth_error(before, after, text)
    p, q = scores(before, text), scores(after, text)
    largest, total, count = 0.0, 0.0, 0
    for row in range(3):
        for place in range(9 if row == 0 else 14):
            a, b = p[row, place].softmax(-1), q[row, place].softmax(-1)
            total += sum(float(x * (x / y).log()) for x, y in zip(a, b, strict=True))
            largest, count = max(largest, float((p[row, place] - q[row, place]).abs().max())), count + 1
    assert found.logits == pytest.approx(largest, rel=1e-12) and found.divergence == pytest.approx(
        total / count
    )
    assert found == growth_error(p, after, text)  # scores kept from before will do
    other = {**text, "input_ids": torch.where(mask.bool(), text["input_ids"], 5)}
    assert growth_error(before, after, other).divergence == pytest.approx(found.divergence, abs=1e-12)
    assert growth_error(before, before, TEXT) == Difference(0.0, 0.0)


def test_operations_are_those_that_torch_counts(family):
    model = tiny(family, attention="eager", tie_word_embeddings=family in ("olmo", "roberta"))
    text = {"input_ids": tokens(2, 10)}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**text)
    counted = counter.get_total_flops()
    angles = sum(2 * 10 * b.numel() for n, b in model.named_buffers() if n.endswith("rotary_emb.inv_freq"))
    assert counted - flops_per_token(model, 10) * 20 in (
        0,
        angles,
    )  # some versions multiply these as matrices
    grow_width_(model, width=24, heads=6, untie=True)
    assert flops_per_token(model, 10) > 2 * counted / 20
    with pytest.raises(BadInput, match="at least one token"):
        flops_per_token(model, 0)


def test_what_cannot_grow_is_refused_and_left_alone(monkeypatch):
    cases = [
        ("olmo", {"tie_word_embeddings": True}, {"width": 24}, "say untie=True"),
        ("olmo", {}, {"width": 11}, "at least the present 12; got 11"),
        ("olmo", {}, {"memories": 0}, "at least the present 20; got 0"),
        ("gpt2", {}, {"heads": 2}, "at least the present 3"),
        ("gpt2", {}, {"width": 24}, "give width=12"),
        ("gpt2", {}, {"heads": 6}, "give width=24"),
        ("gpt2", {}, {"width": 16}, "sizes that 'gpt2' can have; got"),
        ("roberta", {}, {"width": 24, "heads": 4}, "give width=16"),
        ("llama", {"width": 24, "heads": 6, "kv_heads": 2}, {"heads": 8, "width": 48}, "groups of 3"),
        ("llama", {}, {"width": 16}, "not a multiple of the number of attention heads"),
        ("gpt2", {}, {"memories": 30, "noise": -1.0}, "noise"),
        ("gpt2", {}, {"memories": 30, "copies": "all"}, "random, first"),
    ]
    for family, options, sizes, said in cases:
        before, model = pair(family, **options)
        with pytest.raises(BadInput, match=said) as caught:
            grow_width_(model, **sizes)
        assert "\n" not in str(caught.value)
        assert growth_error(before, model, TEXT).logits == 0 and str(model.config) == str(before.config)
    depth = [
        ("roberta", {}, {"blocks": 1, "zeroed": True}, "norm behind the residual"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {"blocks": 1}, "scale_attn_by_inverse_layer_idx"),
        ("olmo", {}, {"blocks": 0}, "at least one block"),
        ("olmo", {}, {"blocks": 1, "pick": "first"}, "random, last"),
        ("olmo", {}, {"blocks": 1, "origins": (0, 1, 1)}, "each of 2 blocks; got 3"),
    ]
    for family, options, settings, said in depth:
        with pytest.raises(BadInput, match=said):
            grow_depth_(tiny(family, **options), **settings)
    monkeypatch.setitem(LAYOUTS, "mistral", LAYOUTS["llama"])
    model = tiny("llama")
    model.config.model_type = "mistral"
    with pytest.raises(BadInput, match="'mistral'; the known ones are olmo"):
        grow_width_(model, memories=30)
