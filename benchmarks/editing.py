"""MEMIT against the procedure as released: target vectors and keys of 256 requests, on equal threads and losses.

An OLMo-shaped model of about 10 M parameters with a vocabulary of 50,000 and random weights; prompts as long as those
of CounterFact, behind five prefixes of ten tokens. The released procedure is timed on fewer requests, per request.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import OlmoConfig, OlmoForCausalLM

from benchmarks.ratio import Ratio, seconds
from kemem.editing import memit, published, solve, targets
from kemem.editing.moments import Moments, key_moments
from kemem.editing.prompts import Contexts
from kemem.memory import Memories

REQUESTS, SERIAL, STEPS, REPEATS = 256, 8, 10, 3
VALUES, KEYS = {"cpu": 20.0, "cuda": 50.0}, 5.0  # bounds of the design, section 7
LAYERS = (1, 2, 3)


def model(device: str) -> Memories:
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=50_000, hidden_size=160, intermediate_size=640, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=2,
    )  # fmt: skip
    return Memories(OlmoForCausalLM(config).to(device).eval())


def requests(count: int, vocabulary: int = 50_000) -> list[Contexts]:
    """Subjects of 2 to 5 tokens, 3 to 7 after them, targets of 1 or 2; prefixes of 10 tokens and a full stop."""
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (size,), generator=generator).tolist())

    prefixes = [(), *(draw(11) for _ in range(5))]
    found = []
    for i in range(count):
        subject, tail, target = draw(2 + i % 4), draw(3 + i % 5), draw(1 + i % 2)
        rows = tuple(prefix + subject + tail + target for prefix in prefixes)
        begins = tuple(len(row) - len(target) for row in rows)
        last = tuple(len(prefix) + len(subject) - 1 for prefix in prefixes)
        found.append(Contexts(rows, begins, last, subject))
    return found


def targets_of(
    memories: Memories, of: list[Contexts], own: list[int], device: str
) -> tuple[float, float, float]:
    """Seconds a request: as released, ours one at a time, ours in batches. The losses and vectors must agree."""
    search, layer = targets.Search(steps=STEPS), LAYERS[-1]
    released: list[tuple[Tensor, float, int]] = []
    slow = seconds(
        lambda: released.extend(published.target(memories, of[i], layer, search) for i in own), device
    )
    one = seconds(lambda: [targets.values(memories, [of[i]], layer, search) for i in own], device)
    found: list[targets.Values] = []
    batch = seconds(lambda: found.append(targets.values(memories, of, layer, search)), device)
    for i, (vector, loss, passes) in zip(own, released, strict=True):
        same = abs(loss - found[0].losses[i].item()) < 1e-3 * loss and passes == found[0].passes[i]
        if not same or (vector - found[0].z[i]).norm() > 1e-3 * vector.norm():
            raise AssertionError(f"request {i} ends elsewhere: what is timed is not the same work")
    return slow / len(own), one / len(own), batch / len(of)


def ratios(*, repeats: int = 5, device: str = "cpu") -> Iterator[Ratio]:
    memories, of = model(device), requests(REQUESTS)
    for p in memories.model.parameters():
        p.requires_grad_(False)
    moments = key_moments(memories.model, [row for c in of[:64] for row in c.rows], LAYERS)
    z = targets.values(memories, of, LAYERS[-1], targets.Search(steps=2)).z

    def solver(layer: int, K: Tensor, R: Tensor) -> Tensor:
        return solve.closed_form(K, R, moments[layer], weight=15_000.0, factor=moments.factor(layer))

    def layered() -> None:
        for layer in LAYERS:
            published.keys(memories, of, layer, LAYERS[-1])

    batched, single, keys, spent = [], [], [], {}
    for turn in range(min(repeats, REPEATS)):
        slow, one, batch = targets_of(memories, of, [turn * SERIAL + i for i in range(SERIAL)], device)
        batched.append(slow / batch)
        single.append(slow / one)
        phases: dict[str, float] = {}
        whole = seconds(layered, device)
        memit.spread(memories, of, z, LAYERS, solver, seconds=phases)
        keys.append(whole / phases["keys"])
        spent = spent or {"values": batch * len(of), **phases}
    yield Ratio(
        "target vectors: requests a second, batched / as released", tuple(batched), VALUES[torch.device(device).type],
        "at least",
    )  # fmt: skip
    yield Ratio("target vectors: one request at a time / as released", tuple(single), None, "at least")
    yield Ratio("keys of all layers: as released / in one sweep", tuple(keys), KEYS, "at least")
    yield from growth(memories, of, moments, spent, device)


def growth(
    memories: Memories, of: list[Contexts], moments: Moments, spent: dict[str, float], device: str
) -> Iterator[Ratio]:
    """Seconds of each phase at REQUESTS, and the exponent with which they grow from a quarter of them on."""
    part = of[: REQUESTS // 4]
    few: dict[str, float] = {}
    z: list[Tensor] = []
    search = targets.Search(steps=STEPS)
    few["values"] = seconds(lambda: z.append(targets.values(memories, part, LAYERS[-1], search).z), device)
    memit.spread(
        memories, part, z[0], LAYERS,
        lambda layer, K, R: solve.closed_form(K, R, moments[layer], weight=15_000.0, factor=moments.factor(layer)),
        seconds=few,
    )  # fmt: skip
    for phase, value in spent.items():
        power = math.log(value / few[phase]) / math.log(REQUESTS / len(part))
        yield Ratio(
            f"{phase}: seconds for {REQUESTS} requests", (value,), None, "at most", f"grows as N^{power:.2f}"
        )
