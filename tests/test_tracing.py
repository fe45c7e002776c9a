"""Causal tracing against plain torch hooks, one part and one draw of the noise at a time, in float64."""

import math
from statistics import fmean, stdev

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from kemem.corpora import train_tokenizer
from kemem.editing import effects, tracing
from kemem.editing.effects import Restored, Runs, standard_noise
from kemem.editing.facts import KnownFact
from kemem.editing.places import Place
from kemem.editing.tracing import Mean, around, buckets, noise_scale, suggested_layers, trace
from kemem.errors import BadInput
from kemem.evaluation import evaluating

CAUSAL = ("gpt2", "gptj", "gpt_neox", "olmo", "llama", "qwen2", "olmo2")
LAMA = ("model.embed_tokens", "model.layers.{}", "mlp", "self_attn")
# what is hooked here: whole modules, in OLMo2 the norms through which both outputs join the stream
PATHS = {
    "gpt2": ("transformer.wte", "transformer.h.{}", "mlp", "attn"),
    "gptj": ("transformer.wte", "transformer.h.{}", "mlp", "attn"),
    "gpt_neox": ("gpt_neox.embed_in", "gpt_neox.layers.{}", "mlp", "attention"),
    **dict.fromkeys(("olmo", "llama", "qwen2"), LAMA),
    "olmo2": ("model.embed_tokens", "model.layers.{}", "post_feedforward_layernorm", "post_attention_layernorm"),
}  # fmt: skip
PROMPTS = (
    ("The tower of Pisa lies in the land", "tower of Pisa"),  # first, middle and last token of a subject
    ("Rome lies in", "Rome"),  # one token, and it is the first
    ("They speak in Old France", "Old France"),  # nothing after it
    ("In Spain they live", "Spain"),
)
SHORT = ("In Old France they live", "Old France")
WORDS = " ".join(prompt for prompt, _ in PROMPTS) + " Italy Europe English water fire stone"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS], 61, unit="word")


def model_of(family, tokenizer, **changes):
    changes = {"layers": 3, "dtype": torch.float64, **changes}
    return tiny(family, vocab=len(tokenizer), **changes)


def known(model, tokenizer, prompts=PROMPTS) -> list[KnownFact]:
    """Facts whose attribute is what the model says; special tokens, which it cannot be, are never likely."""
    head = model.get_output_embeddings()
    if head.bias is None:
        head.register_parameter("bias", torch.nn.Parameter(torch.zeros(len(head.weight)).to(head.weight)))
    with torch.no_grad():
        head.bias[:4] = -100.0
        found = []
        for number, (prompt, subject) in enumerate(prompts):
            logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
            found.append(KnownFact(number, prompt, subject, tokenizer.decode([int(logits.argmax())])))
    return found


# ---------------------------------------------------------------------- by plain hooks
class Plain:
    """The same from torch's own hooks: what a run gives with some outputs set, and the outputs it had."""

    def __init__(self, model, tokenizer, fact, family):
        self.model = model
        self.embedding, block, *inside = PATHS[family]
        self.paths = {"state": block, "mlp": f"{block}.{inside[0]}", "attention": f"{block}.{inside[1]}"}
        self.layers = model.config.num_hidden_layers
        words = tokenizer.convert_ids_to_tokens(tokenizer(fact.prompt)["input_ids"])
        self.ids = tokenizer.convert_tokens_to_ids(words)
        subject = fact.subject.split()
        self.first = next(i for i in range(len(words)) if words[i : i + len(subject)] == subject)
        self.last = self.first + len(subject) - 1
        self.answer = tokenizer.convert_tokens_to_ids(fact.attribute)

    def run(self, noise=None, puts=()):
        """puts: (kind, layer, token, value). The probability of the answer, and outputs [T D] by kind and layer."""
        seen, handles = {}, []

        def corrupt(_, __, output):
            output = output.clone()
            if noise is not None:
                output[0, self.first : self.last + 1] += noise
            return output

        def hook(kind, layer):
            def put(_, __, output):
                tensor = (output[0] if isinstance(output, tuple) else output).clone()
                for k, at, token, value in puts:
                    if (k, at) == (kind, layer):
                        tensor[0, token] = value
                seen[kind, layer] = tensor[0]
                return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

            return put

        handles.append(self.model.get_submodule(self.embedding).register_forward_hook(corrupt))
        for kind, path in self.paths.items():
            for layer in range(self.layers):
                module = self.model.get_submodule(path.format(layer))
                handles.append(module.register_forward_hook(hook(kind, layer)))
        with torch.no_grad():
            logits = self.model(torch.tensor([self.ids])).logits[0, -1].tolist()
        for handle in handles:
            handle.remove()
        top = max(logits)
        return math.exp(logits[self.answer] - top) / sum(math.exp(x - top) for x in logits), seen

    def traced(self, noise, window):
        """Clean and corrupted probability, indirect effects by (kind, token, layer), those severed by (kind, layer)."""
        clean, states = self.run()
        base, corrupted = zip(*(self.run(n) for n in noise), strict=True)
        maps, severed = {}, {}
        n = self.layers
        for layer in range(n):
            low, high = max(0, layer - window // 2), min(n, layer + window // 2)  # window is even here
            for token in range(len(self.ids)):
                for kind, own in (
                    ("state", [layer]),
                    ("mlp", range(low, high)),
                    ("attention", range(low, high)),
                ):
                    puts = [(kind, at, token, states[kind, at][token]) for at in own]
                    maps[kind, token, layer] = fmean(
                        self.run(each, puts)[0] - p for each, p in zip(noise, base, strict=True)
                    )
            for kind in ("mlp", "attention"):
                found = []
                for each, p, run in zip(noise, base, corrupted, strict=True):
                    puts = [(kind, at, self.last, run[kind, at][self.last]) for at in range(n)]
                    puts.append(("state", layer, self.last, states["state", layer][self.last]))
                    found.append(self.run(each, puts)[0] - p)
                severed[kind, layer] = fmean(found)
        return clean, fmean(base), maps, severed


@pytest.mark.parametrize(("family", "square"), [*((family, False) for family in CAUSAL), ("gpt2", True)])
def test_every_effect_is_that_of_plain_hooks(family, square, tokenizer):
    model = model_of(family, tokenizer, square=square)
    facts = known(model, tokenizer, [SHORT, PROMPTS[2]] if square else [SHORT])
    found = trace(model, tokenizer, facts, samples=2, window=2, noise=0.7, seed=5, batch_size=7)
    assert len(found.traces) == len(facts)
    for fact, own in zip(facts, found.traces, strict=True):
        plain = Plain(model, tokenizer, fact, family)
        assert (own.fact, own.place) == (fact, Place(tuple(plain.ids), plain.first, plain.last))
        asked = effects.Question(fact, own.place, plain.answer)
        noise = 0.7 * standard_noise(asked, 2, model.config.hidden_size, 5)
        clean, corrupted, maps, severed = plain.traced(noise, window=2)
        assert own.clean == pytest.approx(clean, abs=1e-10)
        assert own.corrupted == pytest.approx(corrupted, abs=1e-10)
        for kind in ("state", "mlp", "attention"):
            assert own.indirect[kind].shape == (len(plain.ids), 3)
        for (kind, token, layer), effect in maps.items():
            assert own.indirect[kind][token, layer].item() == pytest.approx(effect, abs=1e-10)
        for (kind, layer), effect in severed.items():
            assert own.severed[kind][layer].item() == pytest.approx(effect, abs=1e-10)
        assert max(abs(effect) for effect in maps.values()) > 1e-3  # there was something to agree on
        assert any(abs(severed["mlp", at] - maps["state", plain.last, at]) > 1e-5 for at in range(2))


def test_windows_of_ten_are_those_of_the_paper():
    for layers in (12, 48):
        for layer in range(layers):
            assert list(around(layer, 10, layers)) == list(range(max(0, layer - 5), min(layers, layer + 5)))
    assert [list(around(layer, 1, 3)) for layer in range(3)] == [[0], [1], [2]]
    assert list(around(4, 3, 9)) == [3, 4, 5]


# ---------------------------------------------------------------------- what must hold
@pytest.mark.parametrize("family", CAUSAL)
def test_restoring_everything_is_the_clean_run_and_nothing_the_corrupted_one(family, tokenizer):
    model = model_of(family, tokenizer)
    runs = Runs(model, batch_size=5)
    for asked in effects.questions(tokenizer, known(model, tokenizer, [SHORT])):
        every = range(len(asked.place))
        with evaluating(model):
            clean = runs.clean(asked)
            run = runs.corrupted(clean, standard_noise(asked, 3, 12, 0))
            whole = [Restored("state", (layer,), every) for layer in range(3)]
            subject = range(asked.place.first, asked.place.last + 1)
            # before the subject nothing differs
            whole.append(Restored("state", (0,), range(asked.place.first, len(every))))
            p = runs.restored(run, [*whole, Restored("state", (), ())])
            partly = runs.restored(run, [Restored("state", (2,), subject)])
        assert (p[:4] - clean.probability).abs().max() < 1e-12
        assert (p[4] - run.probabilities).abs().max() < 1e-12
        assert (run.probabilities - clean.probability).abs().max() > 1e-3
        # after the last layer only the last token counts
        assert (partly[0] - run.probabilities).abs().max() < 1e-12


def test_without_noise_nothing_has_an_effect(tokenizer):
    model = model_of("gptj", tokenizer)
    found = trace(model, tokenizer, known(model, tokenizer, [SHORT]), samples=2, noise=0.0)
    assert found.clean == pytest.approx(found.corrupted, abs=1e-14)
    for each in found.traces:
        tensors = [*each.indirect.values(), *each.severed.values()]
        assert max(tensor.abs().max().item() for tensor in tensors) < 1e-12


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *(("mlp", family) for family in CAUSAL),
        ("attention", "gpt2"),
        ("attention", "gptj"),
        ("attention", "olmo2"),
    ],
)
def test_severing_what_gives_nothing_changes_nothing(kind, family, tokenizer):
    model = model_of(family, tokenizer)
    _, block, mlp, attention = PATHS[family]
    if family == "olmo2":
        mlp, attention = LAMA[2:]
    with torch.no_grad():
        for layer in range(3):
            silent = model.get_submodule(f"{block.format(layer)}.{mlp if kind == 'mlp' else attention}")
            for name, parameter in silent.named_parameters():
                if any(
                    part in name for part in ("c_proj", "fc_out", "dense", "down_proj", "o_proj", "out_proj")
                ):
                    parameter.zero_()
    facts = known(model, tokenizer, [PROMPTS[2], SHORT])
    ends, goes_on = trace(model, tokenizer, facts, samples=2, noise=1.0).traces
    for each in (ends, goes_on):
        assert (each.severed[kind] - each.plain).abs().max() < 1e-12
    assert ends.plain.abs().max() > 1e-6  # without attention nothing passes from one token to the next
    assert (goes_on.plain.abs().max() > 1e-6) == (kind == "mlp")


def test_severing_acts_above_the_restored_layer_only(tokenizer):
    model = model_of("llama", tokenizer)
    for each in trace(model, tokenizer, known(model, tokenizer, [SHORT]), samples=2, noise=1.0).traces:
        for severed in each.severed.values():
            assert severed[-1] == pytest.approx(each.plain[-1].item(), abs=1e-12)
            assert (severed - each.plain)[0].abs() > 1e-6


def test_batches_change_nothing(tokenizer):
    model = model_of("gpt_neox", tokenizer)
    facts = known(model, tokenizer, PROMPTS[1:2])
    one = trace(model, tokenizer, facts, samples=2, window=2, batch_size=1)
    for batch_size in (3, 1000):
        same(one, trace(model, tokenizer, facts, samples=2, window=2, batch_size=batch_size))


def same(one, two, *, tolerance=1e-10):
    assert len(one.traces) == len(two.traces)
    for a, b in zip(one.traces, two.traces, strict=True):
        assert a.fact == b.fact
        assert a.clean == pytest.approx(b.clean, abs=tolerance)
        assert a.corrupted == pytest.approx(b.corrupted, abs=tolerance)
        for x, y in zip(
            (*a.indirect.values(), *a.severed.values()),
            (*b.indirect.values(), *b.severed.values()),
            strict=True,
        ):
            assert (x - y).abs().max() <= tolerance


def test_a_fact_has_its_numbers_whatever_stands_beside_it(tokenizer):
    model = model_of("olmo", tokenizer)
    facts = known(model, tokenizer, PROMPTS[1:3])
    every = trace(model, tokenizer, facts, samples=2, noise=0.9, seed=3)
    turned = trace(model, tokenizer, facts[::-1], samples=2, noise=0.9, seed=3)
    assert [each.fact for each in turned.traces] == facts[::-1]
    part = trace(model, tokenizer, facts[1:], samples=2, noise=0.9, seed=3)
    by_id = {each.fact.known_id: each for each in every.traces}
    for each in (*part.traces, *turned.traces):
        assert torch.equal(each.indirect["mlp"], by_id[each.fact.known_id].indirect["mlp"])
        assert torch.equal(each.severed["mlp"], by_id[each.fact.known_id].severed["mlp"])
    other = trace(model, tokenizer, facts, samples=2, noise=0.9, seed=4)
    assert all(a.corrupted != b.corrupted for a, b in zip(every.traces, other.traces, strict=True))


def test_noise_is_gaussian_and_follows_from_seed_and_text(tokenizer):
    one, two, *_ = effects.questions(tokenizer, [KnownFact(0, *pair, "Italy") for pair in PROMPTS])
    drawn = standard_noise(one, 500, 40, 0)
    assert drawn.shape == (500, 3, 40) and drawn.dtype == torch.float64
    assert drawn.mean().abs() < 0.02 and abs(drawn.std() - 1) < 0.02
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, standard_noise(one, 500, 40, 0))
    assert not torch.equal(drawn, standard_noise(one, 500, 40, 1))
    assert not torch.equal(drawn[:, :1], standard_noise(two, 500, 40, 0))


def test_float32_and_training_mode(tokenizer):
    """Float32 is near float64; the model keeps its mode, its weights and no hook."""
    exact = model_of("gpt2", tokenizer)
    facts = known(exact, tokenizer, [SHORT])
    expected = trace(exact, tokenizer, facts, samples=2, window=2, noise=0.5)
    model = exact.float().train()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    same(trace(model, tokenizer, facts, samples=2, window=2, noise=0.5), expected, tolerance=1e-5)
    assert model.training and all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------------- which facts, and how much noise
def test_noise_is_scaled_by_all_subject_tokens(tokenizer):
    model = model_of("gpt2", tokenizer)
    facts = known(model, tokenizer)
    facts.append(KnownFact(9, "Europe lies in", "Europe", "nothing"))  # not known, and counted all the same
    rows = [
        model.transformer.wte.weight[tokenizer.convert_tokens_to_ids(word)].tolist()
        for fact in facts
        for word in fact.subject.split()
    ]
    expected = 3 * stdev([number for row in rows for number in row])
    assert noise_scale(model, tokenizer, facts) == pytest.approx(expected, abs=1e-12)
    assert noise_scale(model, tokenizer, facts, factor=0.5) == pytest.approx(expected / 6, abs=1e-12)
    own = trace(model, tokenizer, facts[3:], samples=1)
    assert len(own.traces) == 1 and own.noise == noise_scale(model, tokenizer, facts[3:])


def test_what_the_model_does_not_know_is_left_out_and_counted(tokenizer):
    model = model_of("qwen2", tokenizer)
    facts = known(model, tokenizer)
    wrong = [
        KnownFact("w", f.prompt, f.subject, "water" if f.attribute != "water" else "fire") for f in facts
    ]
    steps = []
    found = trace(
        model, tokenizer, [wrong[0], facts[1], wrong[2], facts[3]], samples=1, noise=1.0,
        progress=lambda done, total, message: steps.append((done, total, message)),
    )  # fmt: skip
    assert [each.fact.known_id for each in found.traces] == [1, 3]
    assert found.read == 4 and found.known_share == 0.5
    assert steps[0] == (1, 4, "facts, 0 known") and steps[-1] == (4, 4, "facts, 2 known")
    assert repr(found).startswith("Traces(2 of 4 facts; total effect ")
    with pytest.raises(BadInput, match=r"facts that the model knows; got 4, .* in none"):
        trace(model, tokenizer, wrong, samples=1)


def test_the_first_token_of_the_attribute_is_the_answer():
    tokenizer = train_tokenizer([WORDS] * 3, 300)
    (asked,) = effects.questions(tokenizer, [KnownFact(0, "Rome lies in ", "Rome", " Qzy")])
    assert tokenizer.decode(asked.place.ids) == "Rome lies in"
    assert tokenizer.decode([asked.answer]) == tokenizer.decode(tokenizer(" Qzy")["input_ids"][:1])
    assert len(tokenizer(" Qzy")["input_ids"]) > 1
    (quoted,) = effects.questions(tokenizer, [KnownFact(0, "Rome lies in", "Rome", '"Q')])
    assert quoted.answer == tokenizer(' "Q')["input_ids"][0]


def test_special_tokens_stand_before_the_prompt_and_never_after_it(tokenizer):
    model = model_of("llama", tokenizer)
    around_text = train_tokenizer([WORDS], 61, unit="word")
    first, last = around_text.convert_ids_to_tokens([0, 1])
    around_text.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, 0), (last, 1)]
    )
    (asked,) = effects.questions(around_text, [KnownFact(0, *PROMPTS[0], "Italy")])
    bare = tuple(tokenizer(PROMPTS[0][0])["input_ids"])
    assert asked.place == Place((0, *bare), 2, 4) and asked.answer == tokenizer("Italy")["input_ids"][0]
    with torch.no_grad():
        word = around_text.decode([int(model(torch.tensor([[0, *bare]])).logits[0, -1, 4:].argmax()) + 4])
        model.lm_head.weight[:4] = 0.0
    fact = KnownFact(0, *PROMPTS[0], word)
    with torch.no_grad():
        expected = model(torch.tensor([[0, *bare]])).logits[0, -1].softmax(-1).max().item()
    (own,) = trace(model, around_text, [fact], samples=1, noise=1.0).traces
    assert own.clean == pytest.approx(expected, abs=1e-12)
    assert (own.indirect["state"][:2] == 0).all() and (own.indirect["state"][2] != 0).any()


# ---------------------------------------------------------------------- averages
@pytest.mark.parametrize(
    ("length", "first", "last", "expected"),
    [
        (
            9,
            1,
            3,
            "- first_subject middle_subject last_subject first_subsequent further further further last",
        ),
        (5, 0, 1, "first_subject last_subject first_subsequent further last"),
        (4, 0, 0, "last_subject first_subsequent further last"),
        (3, 0, 0, "last_subject first_subsequent last"),
        (2, 0, 0, "last_subject last"),
        (1, 0, 0, "last_subject"),
        (6, 2, 5, "- - first_subject middle_subject middle_subject last_subject"),
    ],
)
def test_every_token_from_the_subject_on_has_one_role(length, first, last, expected):
    found = buckets(Place(tuple(range(length)), first, last))
    roles = ["-"] * length
    for name, own in found.items():
        assert len(own)
        for token in own:
            assert roles[token] == "-"
            roles[token] = name
    assert roles == expected.split()
    assert list(found) == [name for name in tracing.BUCKETS if name in found]


def test_averages_and_intervals_are_over_facts(tokenizer):
    model = model_of("llama", tokenizer)
    found = trace(model, tokenizer, known(model, tokenizer), samples=2, window=2, noise=0.8)
    assert [len(each.place) for each in found.traces] == [8, 3, 5, 4]
    by_role = {}
    for each in found.traces:
        for name, own in buckets(each.place).items():
            rows = [each.indirect["mlp"][token].tolist() for token in own]
            by_role.setdefault(name, []).append([fmean(column) for column in zip(*rows, strict=True)])
    result = found.effects("mlp")
    assert list(result) == list(tracing.BUCKETS)
    assert [result[name].facts for name in result] == [2, 1, 4, 3, 1, 3]
    quantile = {2: 12.706204736174698, 3: 4.302652729749464, 4: 3.1824463052837078}  # Student's t, 97.5 %
    for name, rows in by_role.items():
        for layer, column in enumerate(zip(*rows, strict=True)):
            assert result[name].value[layer].item() == pytest.approx(fmean(column), abs=1e-12)
            if len(column) > 1:
                half = quantile[len(column)] * stdev(column) / math.sqrt(len(column))
                assert result[name].half[layer].item() == pytest.approx(half, rel=1e-9)
            else:
                assert result[name].half is None
    assert found.clean == pytest.approx(fmean(each.clean for each in found.traces))
    assert found.corrupted == pytest.approx(fmean(each.corrupted for each in found.traces))
    for kind in ("mlp", "attention"):
        for layer in range(3):
            expected = fmean(each.severed[kind][layer].item() for each in found.traces)
            assert found.severed[kind].value[layer].item() == pytest.approx(expected, abs=1e-12)
    gaps = [(each.plain - each.severed["mlp"]).tolist() for each in found.traces]
    for layer, column in enumerate(zip(*gaps, strict=True)):
        assert found.gap.value[layer].item() == pytest.approx(fmean(column), abs=1e-12)
        half = quantile[4] * stdev(column) / 2
        assert found.gap.half[layer].item() == pytest.approx(half, rel=1e-6, abs=1e-12)
    assert found.severed["plain"].value.tolist() == found.effects("state")["last_subject"].value.tolist()
    assert found.layers == suggested_layers(found.gap)


def test_total_effect_is_direct_and_indirect(tokenizer):
    model = model_of("gpt2", tokenizer)
    fact = known(model, tokenizer)[0]
    (own,) = trace(model, tokenizer, [fact], samples=2, noise=0.8).traces
    plain = Plain(model, tokenizer, fact, "gpt2")
    states = plain.run()[1]
    asked = effects.Question(fact, own.place, plain.answer)
    noise = 0.8 * standard_noise(asked, 2, 12, 0)
    kept = fmean(plain.run(n, [("state", 1, 3, states["state", 1][3])])[0] for n in noise)
    assert own.direct("state")[3, 1].item() == pytest.approx(plain.run()[0] - kept, abs=1e-10)
    assert own.total == pytest.approx(plain.run()[0] - fmean(plain.run(n)[0] for n in noise), abs=1e-10)
    assert repr(own).startswith(f"Trace('{fact.prompt}': {own.clean:.3f}")


def test_severed_paths_are_left_out_on_request(tokenizer):
    model = model_of("gpt2", tokenizer)
    facts = known(model, tokenizer, [SHORT])
    found = trace(model, tokenizer, facts, samples=1, noise=1.0, severed=False)
    whole = trace(model, tokenizer, facts, samples=1, noise=1.0)
    (a,), (b,) = found.traces, whole.traces
    for kind in ("state", "mlp", "attention"):
        assert (a.indirect[kind] - b.indirect[kind]).abs().max() < 1e-12
    assert list(found.severed) == ["plain"]
    with pytest.raises(BadInput, match="severed=True"):
        _ = found.layers


# ---------------------------------------------------------------------- which layers to edit
def curve(*values, half=None):
    value = torch.tensor(values, dtype=torch.float64)
    return Mean(value, None if half is None else torch.tensor(half, dtype=torch.float64), 9)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (curve(0.1, 0.5, 0.9, 1.0, 0.6, 0.4, 0.0), (1, 2, 3, 4)),  # half of the peak is enough
        (curve(1.0, 0.4, 0.0), (0,)),
        (curve(0.0, 0.1, 1.0), (2,)),
        (curve(0.8, 0.2, 0.9, 1.0, 0.2), (2, 3)),  # a second hill is another run
        (curve(0.8, 0.9, 1.0, 0.7, half=[0.1, 1.0, 0.1, 0.1]), (2, 3)),  # an interval that holds 0 ends it
        (curve(0.8, 0.9, 1.0, 0.7, half=[2.0] * 4), (2,)),  # nothing sure: the highest alone
        (curve(-0.3, -0.1, -0.2), (1,)),  # no gap at all
        (curve(0.0, 0.0), (0,)),
        (curve(0.7), (0,)),
    ],
)
def test_layers_are_those_around_the_largest_gap(gap, expected):
    assert suggested_layers(gap) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=12),
    st.floats(0.1, 10),
)
def test_layers_are_one_run_that_holds_the_peak_whatever_the_scale(points, scale):
    values, half = zip(*points, strict=True)
    found = suggested_layers(curve(*values, half=half))
    assert found == tuple(range(found[0], found[-1] + 1))
    peak = max(values)
    assert values.index(peak) in found
    for layer in set(found) - {values.index(peak)}:
        assert values[layer] >= peak / 2 and values[layer] > half[layer]
    for beside in (found[0] - 1, found[-1] + 1):
        assert not 0 <= beside < len(values) or values[beside] < peak / 2 or values[beside] <= half[beside]
    doubled = suggested_layers(curve(*(2 * v for v in values), half=[2 * h for h in half]))
    assert doubled == found


# ---------------------------------------------------------------------- refused
def fact(**changes):
    return KnownFact(
        **{"known_id": 7, "prompt": "Rome lies in", "subject": "Rome", "attribute": "Italy", **changes}
    )


@pytest.mark.parametrize(
    ("facts", "changes", "said"),
    [
        ([], {}, "expected facts to trace; got none"),
        ([fact()], {"samples": 0}, "expected samples to be 1 or more; got 0"),
        ([fact()], {"window": 0}, "expected window to be 1 or more; got 0"),
        ([fact()], {"batch_size": 0}, "expected batch_size to be 1 or more; got 0"),
        ([fact()], {"noise": -0.1}, "noise to be 0 or more, and finite; got -0.1"),
        ([fact()], {"noise": math.nan}, "got nan"),
        ([fact(subject="Paris")], {}, "names its subject 'Paris'; got 'Rome lies in' of case 7"),
        ([fact(attribute=" ")], {}, "got an empty one in fact 7"),
        ([fact(), fact(prompt="Rome lies in " * 30)], {}, "context of 64 tokens; got 90 in fact 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_refused_before_any_run(facts, changes, said, tokenizer, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a model ran")

    model = model_of("gpt2", tokenizer)
    monkeypatch.setattr(model, "forward", never)
    with pytest.raises(BadInput) as error:
        trace(model, tokenizer, facts, **changes)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_masked_models_are_refused_with_the_reason(family, tokenizer):
    with pytest.raises(BadInput, match=f"got {family}, which fills in masked ones, so that no prompt has"):
        trace(tiny(family, vocab=len(tokenizer)), tokenizer, [fact()])
    with pytest.raises(BadInput, match="got GPT2Model, without one"):
        trace(tiny("gpt2", vocab=len(tokenizer)).transformer, tokenizer, [fact()])


def test_a_tokenizer_that_reads_a_prompt_otherwise_is_refused(tokenizer):
    other = train_tokenizer([WORDS], 61, unit="word")
    first = other.convert_ids_to_tokens([0])[0]
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {first}", special_tokens=[(first, 0)]
    )
    (asked,) = effects.questions(other, [fact()])
    assert asked.place.ids == tuple(tokenizer("Rome lies in")["input_ids"])
