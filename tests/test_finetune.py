"""Fine-tuning against torch's Adam run by hand, one text and one token at a time."""

import copy
import inspect

import naive_editing as naive
import pytest
import torch
from conftest import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from kemem.editing.facts import Request
from kemem.editing.finetune import FineTune, chosen, power_law, predicting, target_losses
from kemem.errors import BadInput

SAID = "the a capital of is in was born who what Ada Bo Cy Dee Eve Fay Rome Oslo Bern red green blue , . ?"
WORDS = SAID.split()
REQUESTS = (
    Request(1, "{} was born in", "Ada", "Rome", paraphrases=("the capital of Ada is", "Ada is in")),
    Request(2, "who is {} ? the", "Bo Cy", "red green blue", paraphrases=("what is Bo Cy ? a",)),
    Request(3, "the capital of {} is", "Cy", "Oslo ,"),
    Request(4, "{} is", "Dee", "blue"),
    Request(5, "in the , {} is in a", "Eve Fay", "green of Bern ."),
)
DOWN = {**naive.DOWN, "olmo2": "mlp.down_proj"}
BLOCK = {**naive.BLOCK, "olmo2": "model.layers.{}"}
OTHERS = {"gpt2": ("mlp.c_fc",), "gptj": ("mlp.fc_in",), "gpt_neox": ("mlp.dense_h_to_4h",)}  # beside down
GATED = ("mlp.gate_proj", "mlp.up_proj")
ALWAYS = {"skip": 0.0, "stop": 0.0}


def words(*, first: bool = False) -> PreTrainedTokenizerFast:
    """A word is a token, so that targets are of 1 to 4; `first` puts <s> before every text."""
    table = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if first:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", pad_token="<pad>"
    )


def cut(request: Request, first: bool = False) -> tuple[list[int], list[int]]:
    """Prompt and target as ids, by splitting at spaces."""
    ids = [
        [WORDS.index(w) + 4 for w in text.split()]
        for text in (request.prompt.replace("{}", request.subject), request.new)
    ]
    return [0] * first + ids[0], ids[1]


def by_hand(model: nn.Module, request: Request, loss: str) -> torch.Tensor:
    """-log p of a target, the mean over its tokens, from one full text without padding."""
    prompt, target = cut(request)
    said = model(input_ids=torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    total = 0.0
    for i, token in enumerate(target):
        at = len(prompt) - 1 + (i if loss == "as_described" else 0)
        total = total - said[at, token]
    return total / len(target)


def trained_by_hand(
    model: nn.Module, names: list[str], way: FineTune, decay: float = 0.0
) -> dict[str, torch.Tensor]:
    """What plain Adam adds to the named weights."""
    model = copy.deepcopy(model)
    for name, p in model.named_parameters():
        p.requires_grad_(name in names)
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    adam = torch.optim.Adam([model.get_parameter(name) for name in names], lr=way.rate, weight_decay=decay)
    for _ in range(way.epochs):
        for begin in range(0, len(REQUESTS), way.batch):
            part = REQUESTS[begin : begin + way.batch]
            adam.zero_grad()
            loss = sum(by_hand(model, r, way.loss) for r in part) / len(part)
            if loss.item() < way.skip:
                continue
            loss.backward()
            adam.step()
            if way.radius is not None:
                for name in names:
                    apart = model.get_parameter(name).data - before[name]
                    model.get_parameter(name).data = before[name] + apart.clip(-way.radius, way.radius)
    return {name: model.get_parameter(name).detach() - before[name] for name in names}


def named(model: nn.Module, family: str, part: str, layer: int) -> list[str]:
    block = BLOCK[family].format(layer)
    paths = {
        "down": (f"{block}.{DOWN[family]}",),
        "feed_forward": [f"{block}.{path}" for path in (DOWN[family], *OTHERS.get(family, GATED))],
        "block": (block,),
    }[part]
    return [
        name for name, _ in model.named_parameters() if any(name.startswith(f"{path}.") for path in paths)
    ]


def state(model: nn.Module):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(edit, wanted, tolerance):
    assert edit.deltas.keys() == {name for name, delta in wanted.items() if delta.any()}
    for name, delta in edit.deltas.items():
        assert (delta - wanted[name]).abs().max() <= tolerance, name


# ---------------------------------------------------------------------- steps
@pytest.mark.parametrize("loss", ["as_released", "as_described"])
@pytest.mark.parametrize("part", ["down", "feed_forward", "block"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "olmo", "olmo2", "gpt_neox"])
def test_the_first_steps_are_those_of_adam_run_by_hand(family, part, loss):
    model = tiny(family, dtype=torch.float64, square=part == "down", layers=3)
    way = FineTune((1,), part=part, loss=loss, rate=1e-2, epochs=2, batch=2, decay=0.05, **ALWAYS)
    names = named(model, family, part, 1)
    edit = way(model, words(), REQUESTS)
    assert edit.notes["steps"] == 6 and len(edit.notes["losses"]) == 2
    # of a gradient near 0 Adam takes the sign, which GPT-J's float32 attention may turn
    same(edit, trained_by_hand(model, names, way, 0.05), 1e-4 if family == "gptj" else 1e-9)


def test_several_layers_are_trained_together():
    model = tiny("llama", dtype=torch.float64, layers=3)
    way = FineTune((0, 2), rate=1e-2, epochs=2, batch=3, **ALWAYS)
    names = named(model, "llama", "down", 0) + named(model, "llama", "down", 2)
    same(way(model, words(), REQUESTS), trained_by_hand(model, names, way), 1e-9)


def test_a_layer_whose_number_begins_with_another_is_left_alone():
    model = tiny("gpt2", layers=12)
    edit = FineTune((1,), part="block", epochs=1, **ALWAYS)(model, words(), REQUESTS[:1])
    assert {name.split(".h.")[1].split(".")[0] for name in edit.deltas} == {"1"}


@pytest.mark.parametrize(("batch", "batch_size"), [(5, 2), (4, 3), (2, 1)])
def test_how_many_are_read_at_a_time_changes_nothing(batch, batch_size):
    model = tiny("qwen2", dtype=torch.float64)
    way = FineTune.ft_m(0, rate=1e-2, epochs=2, batch=batch, **ALWAYS)
    one, other = (way(model, words(), REQUESTS, batch_size=size) for size in (64, batch_size))
    for name, delta in one.deltas.items():
        assert (delta - other.deltas[name]).abs().max() < 1e-9
    assert one.notes["losses"] == pytest.approx(other.notes["losses"], abs=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "olmo"])
def test_weights_never_leave_the_ball_and_reach_its_border(family):
    model = tiny(family, dtype=torch.float64)
    way = FineTune.ft_l(0, 3e-3, rate=2e-3, epochs=6, batch=2, **ALWAYS)
    edit = way(model, words(), REQUESTS)
    wanted = trained_by_hand(model, named(model, family, "down", 0), way)
    same(edit, wanted, 1e-9)  # put back after each step, not once at the end
    largest = [delta.abs().max().item() for delta in edit.deltas.values()]
    assert max(largest) <= 3e-3 + 1e-15 and max(largest) > 3e-3 - 1e-15
    free = FineTune.ft(0, rate=2e-3, epochs=6, batch=2, **ALWAYS)(model, words(), REQUESTS)
    assert max(delta.abs().max().item() for delta in free.deltas.values()) > 6e-3


def test_training_makes_the_model_say_it_and_stops():
    model = tiny("olmo2")
    with torch.no_grad():
        model.lm_head.weight *= 4  # the stream is normalised before it: a small head cannot be sure
    asked = (REQUESTS[0], REQUESTS[3])
    edit = FineTune((0, 1), part="block", rate=5e-2, epochs=60)(model, words(), asked)
    losses = edit.notes["losses"]
    assert losses[0] > 3 and losses[-1] < 1e-2 <= losses[-2] and len(losses) < 60
    before = [by_hand(model, r, "as_described").item() for r in asked]
    with edit.applied(model):
        after = [by_hand(model, r, "as_described").item() for r in asked]
    assert sum(before) / 2 == pytest.approx(losses[0], rel=1e-4) and max(after) < 0.05


# ---------------------------------------------------------------------- losses
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "olmo", "gptj"])
def test_both_losses_are_those_of_single_texts(family, first):
    model = tiny(family, dtype=torch.float64)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    rows = [cut(r, first) for r in REQUESTS]
    found = {}
    for loss in ("as_released", "as_described"):
        given_ = [prompt + target for prompt, target in rows], [len(prompt) for prompt, _ in rows]
        found[loss] = target_losses(model, weights, *given_, loss=loss)
        for i, (prompt, target) in enumerate(rows):
            total = 0.0
            for place, token in enumerate(target):
                heard = prompt if loss == "as_released" else prompt + target[:place]
                logits = model(input_ids=torch.tensor([heard])).logits[0, -1]
                total += (logits.exp().sum().log() - logits[token]).item()
            assert found[loss][i].item() == pytest.approx(total / len(target), rel=naive.tolerance(family))
    apart = (found["as_released"] - found["as_described"]).abs()
    assert (apart[[0, 3]] < naive.tolerance(family)).all() and (apart[[1, 2, 4]] > 1e-3).all()


@pytest.mark.parametrize("first", [False, True])
def test_the_loss_of_the_first_epoch_is_the_mean_over_requests_and_special_tokens_come_first(first):
    model = tiny("llama", dtype=torch.float64)
    for loss in ("as_released", "as_described"):
        way = FineTune((0,), loss=loss, batch=2, epochs=1, skip=1e9)  # batches of 2, 2 and 1
        (found,) = way(model, words(first=first), REQUESTS).notes["losses"]
        rows = [cut(r, first) for r in REQUESTS]
        weights = {name: p.detach() for name, p in model.named_parameters()}
        wanted = target_losses(model, weights, [p + t for p, t in rows], [len(p) for p, _ in rows], loss=loss)
        assert found == pytest.approx(wanted.mean().item(), rel=1e-10)


# ---------------------------------------------------------------------- rules
def test_a_step_below_the_limit_is_left_out():
    model = tiny("gpt2", dtype=torch.float64)
    own = [by_hand(model, r, "as_described").item() for r in REQUESTS]
    order = sorted(range(5), key=own.__getitem__)
    low, high = REQUESTS[order[0]], REQUESTS[order[-1]]
    between = (own[order[0]] + own[order[-1]]) / 2
    way = FineTune((0,), batch=1, epochs=1, rate=1e-9, skip=between, stop=0.0)
    both, alone = way(model, words(), (low, high)), way(model, words(), (high,))
    assert both.notes["steps"] == alone.notes["steps"] == 1
    assert all(torch.equal(delta, alone.deltas[name]) for name, delta in both.deltas.items())
    assert both.notes["losses"][0] == pytest.approx((own[order[0]] + own[order[-1]]) / 2, rel=1e-9)
    none = way(model, words(), (low,))
    assert none.notes["steps"] == 0 and none.deltas == {}


def test_training_ends_with_the_first_epoch_whose_mean_is_below_the_limit():
    model = tiny("gpt2", dtype=torch.float64)
    told = []
    free = FineTune((0,), batch=2, epochs=6, rate=1e-2, **ALWAYS)(model, words(), REQUESTS)
    losses = free.notes["losses"]
    assert len(losses) == 6 and losses[2] < losses[1] < losses[0]
    way = FineTune((0,), batch=2, epochs=6, rate=1e-2, skip=0.0, stop=(losses[1] + losses[2]) / 2)
    edit = way(model, words(), REQUESTS, progress=lambda *said: told.append(said))
    assert edit.notes["losses"] == losses[:3] and edit.notes["steps"] == 9  # its own steps are taken
    assert [said[:2] for said in told] == [(1, 6), (2, 6), (6, 6)]


# ---------------------------------------------------------------------- variants
def test_the_power_law():
    assert power_law(10_000) == pytest.approx(3.9e-4, abs=5e-6)
    assert power_law(1) == pytest.approx(2.718281828459045**0.15589562)
    assert power_law(1_000) / power_law(100) == pytest.approx(10**-0.87028798)


@pytest.mark.parametrize("family", ["gptj", "olmo"])
def test_what_each_variant_trains(family):
    model = tiny(family, dtype=torch.float64)
    short = {"epochs": 1, "batch": 5, **ALWAYS}
    for way, part, decay in (
        (FineTune.ft(1, **short), "down", 0.0),
        (FineTune.ft_m(1, **short), "down", 0.0),
        (FineTune.ft_l(1, 1e-3, **short), "down", 0.0),
        (FineTune.ft_w(1, **short), "feed_forward", power_law(5)),
        (FineTune.ft_w(1, released=True, **short), "block", 0.0),
    ):
        edit = way(model, words(), REQUESTS)
        assert edit.deltas.keys() == set(named(model, family, part, 1))
        assert edit.notes["decay"] == decay and way.layers == (1,)
        same(edit, trained_by_hand(model, named(model, family, part, 1), way, decay), 1e-4)
    assert FineTune.ft_w(1).loss == FineTune.ft(1).loss == FineTune.ft_l(1, 1.0).loss == "as_released"
    assert FineTune.ft_m(1).loss == FineTune.ft_w(1, loss="as_described").loss == "as_described"
    published = FineTune.ft(1)
    assert (published.rate, published.epochs, published.batch) == (5e-4, 25, 64)
    assert (published.skip, published.stop) == (1e-2, 1e-2)
    assert FineTune.ft_w(1, decay=5e-4).decay == 5e-4


# ---------------------------------------------------------------------- the model
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(broken):
    model = tiny("gpt2", tie_word_embeddings=True)
    wanted = FineTune.ft_w(1, epochs=2)(model, words(), REQUESTS).deltas
    model.train()
    model.transformer.h[0].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    model.transformer.h[1].mlp.c_fc.weight.grad = torch.ones_like(model.transformer.h[1].mlp.c_fc.weight)
    before = state(model)
    modes = [module.training for module in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    def stop(step, total, message):
        if broken:
            raise KeyboardInterrupt

    try:
        found = FineTune.ft_w(1, epochs=2)(model, words(), REQUESTS, progress=stop).deltas
        assert not broken and all(torch.equal(found[name], delta) for name, delta in wanted.items())
    except KeyboardInterrupt:
        assert broken
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert asked == [p.requires_grad for p in model.parameters()]
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert p.grad is None if grad is None else torch.equal(p.grad, grad)


def test_weights_of_16_bits_are_trained_in_32():
    model = tiny("olmo", dtype=torch.bfloat16)
    edit = FineTune.ft_m(0, epochs=3, rate=1e-5, batch=2, **ALWAYS)(model, words(), REQUESTS, batch_size=1)
    (delta,) = edit.deltas.values()
    assert (
        delta.dtype == torch.float32 and 1e-5 < delta.abs().max() < 1e-4
    )  # lost beside weights of 0.4 in bfloat16
    before = state(model)
    with edit.applied(model):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_takes_what_every_editor_takes():
    names = list(inspect.signature(FineTune.__call__).parameters)
    assert names[1:5] == ["model", "tokenizer", "requests", "moments"]
    model = tiny("gpt2")
    way = FineTune.ft(0, epochs=1)
    one = way(model, words(), REQUESTS, None, templates=("{}", "who . {}"), seed=3)
    assert all(torch.equal(d, one.deltas[n]) for n, d in way(model, words(), REQUESTS).deltas.items())


# ---------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layers": ()}, "layers, each once"),
        ({"layers": (1, 1)}, "layers, each once"),
        ({"part": "up"}, "part to be one of down"),
        ({"loss": "last"}, "loss to be one of as_released"),
        ({"decay": "law"}, "decay to be one of power_law"),
        ({"decay": -1.0}, "decay of 0 or more"),
        ({"radius": 0.0}, "radius above 0"),
        ({"batch": 0}, "batch above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        FineTune(**{"layers": (0,), **wrong})


def test_models_and_requests_that_cannot_be_trained_are_refused():
    way = FineTune.ft(2)
    with pytest.raises(BadInput, match=r"layer in 0\.\.1"):
        way(tiny("gpt2"), words(), REQUESTS)
    with pytest.raises(BadInput, match="predicts the next token"):
        predicting(tiny("bert"))
    with pytest.raises(BadInput, match="with its head"):
        predicting(tiny("olmo").model)
    with pytest.raises(BadInput, match="requests to edit"):
        FineTune.ft(0)(tiny("gpt2"), words(), [])
    broken = tiny("gpt2")
    broken.transformer.h[0].mlp.c_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(BadInput, match="take a rate below"):
        FineTune.ft(0)(broken, words(), REQUESTS)
    with pytest.raises(BadInput, match="one of a, b"):
        chosen("it", "c", ("a", "b"))
