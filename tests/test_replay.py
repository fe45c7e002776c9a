"""Rows of earlier domains read again: which ones, how often, and what is asked of them."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch import nn

from kemem.continual import Held, learn
from kemem.continual.replay import CORRUPTION, READ, Buffer, DERpp, Replay
from kemem.errors import BadInput
from kemem.models import Shape, build
from kemem.objective import IGNORED, Masked, causal, mix
from kemem.training import Domain, Method, Recipe, Together, train

VOCAB = 61
HIDE = Masked(3, VOCAB, 0.4)
RECIPE = Recipe(steps=3, batch_size=4, learning_rate=1e-2, warmup_steps=1, save_every=1, log_every=1)


class Rows:
    """Rows of random tokens, those of domain d below 10 (d + 1) + 4; padded: some of them not full."""

    def __init__(self, domain: int = 0, rows: int = 9, length: int = 8, padded: bool = False) -> None:
        generator = torch.Generator().manual_seed(domain)
        self.ids = torch.randint(10 * domain + 4, 10 * domain + 14, (rows, length), generator=generator)
        self.mask, self.padded = torch.ones_like(self.ids), padded
        if padded:
            for row in range(rows):
                self.mask[row, length - row % (length - 1) :] = 0

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        ids, mask = self.ids[indices], self.mask[indices]
        found = {"input_ids": ids, "labels": ids.where(mask.bool(), IGNORED)}
        return {**found, "attention_mask": mask} if self.padded else found


def domain(number: int, **options) -> Domain:
    return Domain(f"domain{number}", Rows(number, **options))


def objective_of(family: str):
    return HIDE if family in ("roberta", "bert") else causal


def net(family: str = "gpt_neox", dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    sizes = {"layers": 1, "width": 8, "memories": 12, "heads": 2, "vocab": VOCAB, "context": 16}
    return build(Shape(family, **sizes, dropout=dropout), seed=1).to(dtype)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[n] - b[n]).abs().max()) for n in b)


def taught(
    method: Method | None, recipe: Recipe = RECIPE, *, family="gpt_neox", dropout=0.0, domains=2, **options
):
    """The weights after some domains in a row, with calls of `train` alone."""
    model = net(family, dropout, options.pop("dtype", torch.float64))
    for place in range(domains):
        seeded = replace(recipe, seed=place)
        train(model, domain(place, **options), seeded, method, objective=objective_of(family))
    return weights(model)


def after(method: Method, *numbers: int, model: nn.Module | None = None, **options) -> Method:
    """The method when these domains are over, without a step of training."""
    model = model or net()
    for number in numbers:
        method.before(model, domain(number, **options))
        method.after(model, domain(number, **options))
    return method


def of_domain(ids: torch.Tensor) -> list[int]:
    """Which domain every row is of."""
    return ((ids[:, 0] - 4) // 10).tolist()


# ---------------------------------------------------------------------- replay
@pytest.mark.parametrize(("share", "size"), [(0.25, 8), (0.1, 8), (0.5, 3), (0.9, 4), (0.01, 10)])
def test_the_share_of_old_rows_is_kept_to_over_the_steps(share, size):
    method, old = after(Replay(share=share, kept=5), 0), 0
    method.before(net(), domain(1))
    for step in range(1, 101):
        given = domain(1).blocks.batch(torch.arange(size) % 9)
        before = {name: tensor.clone() for name, tensor in given.items()}
        batch = method.rows(step, given)
        assert same(given, before)  # the data's own memory is left alone
        count = of_domain(batch["input_ids"]).count(0)
        old += count
        assert batch["input_ids"].shape == (size, 8) and abs(count - share * size) < 1
        assert torch.equal(batch["input_ids"][: size - count], given["input_ids"][: size - count])
        assert abs(old - share * size * step) <= 1
    assert old > 0


def test_rows_are_drawn_from_all_earlier_domains_and_never_from_the_present_one():
    method = after(Replay(share=0.5, kept=4), 0, 1, 2)
    method.before(net(), domain(2))  # a finished domain that is begun again: its own rows stay out
    found, rows = [], set()
    for step in range(1, 200):
        ids = method.rows(step, domain(2).blocks.batch(torch.arange(4)))["input_ids"][2:]
        found += of_domain(ids)
        rows |= {tuple(row) for row in ids.tolist()}
    assert abs(found.count(0) - found.count(1)) < 80 and found.count(0) + found.count(1) == 398
    known = [{tuple(row) for row in Rows(number).ids.tolist()} for number in range(2)]
    assert [len(rows & own) for own in known] == [4, 4]  # of nine, the four kept


def test_what_is_read_follows_from_step_and_seed_alone():
    def read(step: int, **settings) -> torch.Tensor:
        method = after(Replay(share=0.5, kept=6, **settings), 0)
        method.before(net(), domain(1))
        return method.rows(step, domain(1).blocks.batch(torch.arange(8)))["input_ids"]

    method = after(Replay(share=0.5, kept=6), 0)
    method.before(net(), domain(1))
    state = torch.random.get_rng_state()
    for step in (3, 1, 3, 2):
        again = method.rows(step, domain(1).blocks.batch(torch.arange(8)))["input_ids"]
        assert torch.equal(again, read(step))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(read(1), read(2)) and not torch.equal(read(1), read(1, seed=1))


def test_an_old_row_is_corrupted_like_a_new_one():
    seen = []

    class Watch(Method):
        def loss(self, model, batch, loss):
            seen.append(batch)
            return loss

    replay = after(Replay(share=0.5, kept=3), 0, model=net("roberta"))
    recipe = replace(RECIPE, steps=8)
    train(net("roberta"), domain(1), recipe, Together((replay, Watch())), objective=HIDE)
    hidden = 0
    for batch in seen:
        chosen = batch["labels"] != IGNORED
        clean = batch["input_ids"].where(~chosen, batch["labels"])
        assert of_domain(clean) == [1, 1, 0, 0]
        hidden += int((chosen & (batch["input_ids"] == 3))[2:].sum())
    assert 0.3 * 0.8 < hidden / (8 * 2 * 8) < 0.5 * 0.8
    masks = {tuple((batch["labels"] != IGNORED)[2:].flatten().tolist()) for batch in seen}
    assert len(masks) == 8  # drawn anew for every step


def test_replay_is_training_on_those_rows():
    """A step of it is a step of plain training on rows put together by hand."""
    method = after(Replay(share=0.5, kept=6), 0)
    method.before(net(), domain(1))
    one = replace(RECIPE, steps=1)
    ours, theirs, seen = net(), net(), []

    class Watch(Method):
        def loss(self, model, batch, loss):
            seen.append(batch)
            return loss

    drawn = method.rows(1, domain(1).blocks.batch(torch.arange(4)))["input_ids"][2:]
    train(ours, domain(1), one, Together((method, Watch())))
    given = Rows(1, rows=4)
    given.ids = seen[0]["input_ids"]
    assert torch.equal(given.ids[2:], drawn) and of_domain(given.ids) == [1, 1, 0, 0]
    train(theirs, given, one)
    assert distance(weights(ours), weights(theirs)) < 1e-12


def test_less_is_forgotten_of_what_is_read_again():
    """Two domains that contradict each other: what follows a token in one does not in the other."""
    held = []
    for place in range(2):
        data = Rows(0, rows=10, length=2)
        data.ids = torch.stack([torch.arange(10) + 4, (torch.arange(10) + 3 * place + 1) % 10 + 4], 1)
        held.append(Held(f"domain{place}", data, data))
    recipe = replace(RECIPE, steps=40, learning_rate=3e-2)
    plain, replayed, held_on = (
        learn(net(), held, method, recipe).forgetting
        for method in (None, Replay(share=0.5), DERpp(alpha=0.5, beta=1.0))
    )
    assert plain > 2 and replayed < 0.6 * plain and held_on < 0.6 * plain


# ---------------------------------------------------------------------- DER++
def old_of(method: DERpp, step: int, count: int, *, model: nn.Module) -> dict[str, torch.Tensor]:
    """The rows that a step reads, found by what `rows` is documented to draw."""
    return method._buffer.draw(count, method.seed, READ, method.domains, step)


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.3), (0.7, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize(
    ("family", "padded"), [("llama", True), ("gpt2", False), ("roberta", True), ("gpt_neox", True)]
)
def test_the_terms_are_those_written_out(family, padded, alpha, beta):
    model, objective = tiny(family, layers=1, dtype=torch.float64), objective_of(family)
    method = DERpp(alpha, beta, kept=6, read=3, objective=objective)
    after(method, 0, model=model, padded=padded)
    kept = weights(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(
                0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype)
            )
    now = weights(model)
    method.before(model, domain(1, padded=padded))
    given = domain(1, padded=padded).blocks.batch(torch.arange(4))
    assert method.rows(5, given) is given
    old = old_of(method, 5, 3, model=model)
    inputs = {name: tensor for name, tensor in old.items() if name not in ("labels", "hidden")}
    hidden = {}
    for name, own in (("then", kept), ("now", now)):
        model.load_state_dict(own, strict=False)
        hidden[name] = model(**inputs, output_hidden_states=True).hidden_states[-1].detach()
    torch.testing.assert_close(old["hidden"][inputs.get("attention_mask", inputs["input_ids"]) > 0],
                               hidden["then"][inputs.get("attention_mask", inputs["input_ids"]) > 0])  # fmt: skip
    squares = []
    for row in range(3):
        for t in range(8):
            if not padded or old["attention_mask"][row, t]:
                squares += (hidden["now"][row, t] - hidden["then"][row, t]).square().tolist()
    text = {name: tensor for name, tensor in old.items() if name != "hidden"}
    corrupted = objective.prepare(text, [mix(0, CORRUPTION, 1, 5, row) for row in range(3)])
    again = objective(model, corrupted).item()
    new = objective.prepare(given, list(range(4)))
    found = method.loss(model, new, torch.tensor(2.0, dtype=torch.float64)).item()
    bound = 1e-5 if family == "llama" else 1e-9  # llama's norms compute in float32
    assert found == pytest.approx(2 + alpha * sum(squares) / len(squares) + beta * again, rel=bound)
    assert sum(squares) / len(squares) > 1e-4 and again > 1
    assert (objective is HIDE) == (not torch.equal(corrupted["input_ids"], old["input_ids"]))


def test_hidden_states_are_kept_as_the_model_gave_them_at_the_domains_end():
    dropping, still = net("gpt2", dropout=0.4, dtype=torch.float32), net("gpt2", dtype=torch.float32)
    state = torch.random.get_rng_state()
    method = after(DERpp(kept=20), 0, model=dropping.train())
    assert torch.equal(state, torch.random.get_rng_state()) and dropping.training
    method.before(dropping, domain(1))
    old = method._buffer.draw(30, 1)
    expected = still(input_ids=old["input_ids"], output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(old["hidden"], expected, rtol=0, atol=1e-6)
    assert not old["hidden"].requires_grad and len(method._buffer) == 9  # all rows, for there are not more


def test_a_step_reads_as_many_old_rows_as_new_ones_unless_told():
    for read, expected in ((0, 4), (3, 3)):
        method = after(DERpp(read=read), 0)
        method.before(net(), domain(1))
        method.rows(1, domain(1).blocks.batch(torch.arange(4)))
        first = method._old["input_ids"]
        method.rows(2, domain(1).blocks.batch(torch.arange(4)))
        assert len(first) == expected and not torch.equal(first, method._old["input_ids"])


# ---------------------------------------------------------------------- laws of both
NULL = {
    "share 0": lambda: Replay(share=0.0),
    "alpha and beta 0": lambda: DERpp(0.0, 0.0),
    "DER++ with an empty buffer": DERpp,
    "replay with an empty buffer": lambda: Replay(share=0.9),
}


@pytest.mark.parametrize("name", NULL)
def test_the_null_setting_is_plain_training_bit_for_bit_with_dropout(name):
    recipe = replace(RECIPE, accumulation=2)
    given = {"family": "gpt2", "dropout": 0.3, "dtype": torch.float32, "domains": 1 if "empty" in name else 2}
    plain = taught(None, recipe, **given)
    assert same(taught(NULL[name](), recipe, **given), plain)
    if "empty" not in name:
        for method in (Replay(share=0.3), DERpp(0.1, 0.0), DERpp(0.0, 0.1)):
            assert not same(taught(method, recipe, **given), plain)


def test_the_loops_own_draws_are_those_of_plain_training():
    """What DER++ draws for its further passes does not move the dropout of a later micro-batch."""
    drawn = []

    class Watch(Method):
        def loss(self, model, batch, loss):
            drawn[-1].append(torch.random.get_rng_state())
            return loss

    for methods in ((Watch(),), (Watch(), DERpp()), (Watch(), Replay(share=0.5))):
        drawn.append([])
        given = {"family": "gpt2", "dropout": 0.3}
        taught(Together(methods), replace(RECIPE, accumulation=2), **given)
    assert all(torch.equal(a, b) for other in drawn[1:] for a, b in zip(drawn[0], other, strict=True))


@pytest.mark.parametrize("family", ["llama", "roberta"])
@pytest.mark.parametrize(
    "make", [lambda o: Replay(share=0.4), lambda o: DERpp(objective=o)], ids=["replay", "DER++"]
)
def test_accumulation_leaves_the_step_as_it_is_and_a_seed_repeats_it(make, family):
    whole, cut = (replace(RECIPE, batch_size=8, steps=2, accumulation=n) for n in (1, 4))
    given, method = {"family": family, "padded": True}, lambda: make(objective_of(family))
    expected = taught(method(), whole, **given)
    assert distance(taught(method(), cut, **given), expected) < 1e-8
    assert same(taught(method(), whole, **given), expected)
    assert distance(taught(None, whole, **given), expected) > 1e-4


@pytest.mark.parametrize("make", [lambda: Replay(share=0.3), DERpp], ids=["replay", "DER++"])
def test_killed_and_resumed_it_ends_in_the_same_numbers(make, tmp_path):
    class Stop(Method):
        def __init__(self):
            self.left = 5

        def gradients(self, model):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    domains = [Held(f"d{place}", Rows(place), Rows(place, 3)) for place in range(2)]
    dropping = lambda: net("gpt2", 0.2, torch.float32)  # noqa: E731
    once, again = dropping(), dropping()
    expected = learn(once, domains, Together((make(), Method())), RECIPE)
    Stop.__qualname__ = "Method"
    with pytest.raises(KeyboardInterrupt):
        learn(dropping(), domains, Together((make(), Stop())), RECIPE, out=tmp_path)
    assert learn(again, domains, Together((make(), Method())), RECIPE, out=tmp_path).loss == expected.loss
    assert same(weights(again), weights(once))


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("method", [Replay(share=0.5), DERpp()])
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"length": 6},
            r"rows of one shape in all domains; got input_ids \[8\].* and, in domain1, input_ids \[6\]",
        ),
        (
            {"padded": True},
            r"one shape.*in domain1, input_ids \[8\], labels \[8\], attention_mask \[8\]; cut all",
        ),
    ],
)
def test_rows_of_another_shape_are_refused_before_the_first_step(method, other, said):
    after(method, 0)
    with pytest.raises(BadInput, match=said):
        train(net(), domain(1, **other), RECIPE, method)


def test_another_objective_than_that_of_training_is_refused():
    with pytest.raises(
        BadInput, match="expected objective to be the one that training is given; got the causal"
    ):
        train(net("roberta"), domain(0), RECIPE, DERpp(), objective=HIDE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Replay(share=1.0), r"expected a share in \[0, 1\)"),
        (lambda: Replay(kept=0), "at least 1 row kept of each domain; got 0.1 and 0"),
        (lambda: DERpp(-1.0), "alpha and beta of 0 or more; got -1.0 and 0.5"),
        (lambda: DERpp(0.5, float("nan")), "alpha and beta of 0 or more"),
        (lambda: DERpp(kept=0), "at least 1 row kept"),
        (lambda: DERpp(read=-1), "read of 0 or more; got 100 and -1"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()


def test_a_new_buffer_is_empty():
    buffer = Buffer()
    buffer.begin(domain(0))
    assert len(buffer) == 0
