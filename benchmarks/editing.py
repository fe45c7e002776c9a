"""MEMIT against the procedure as released: target vectors and keys of 256 requests, on equal threads and losses.

An OLMo-shaped model of about 10 M parameters with a vocabulary of 50,000 and random weights; prompts as long as those
of CounterFact, behind five prefixes of ten tokens. The released procedure is timed on fewer requests, per request.
"""

import time
from collections.abc import Iterator

import torch
from transformers import OlmoConfig, OlmoForCausalLM

from benchmarks.ratio import Ratio
from kemem.editing import memit, published, solve, targets
from kemem.editing.moments import key_moments
from kemem.editing.prompts import Contexts
from kemem.memory import Memories

REQUESTS, SERIAL = 256, 8
VALUES, KEYS = 20.0, 5.0  # bounds of the design, section 7
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


def ratios(*, repeats: int = 5, device: str = "cpu") -> Iterator[Ratio]:
    memories, of = model(device), requests(REQUESTS)
    search = targets.Search(steps=10)

    def seconds(run) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for p in memories.model.parameters():
        p.requires_grad_(False)
    fast, single, keys = [], [], []
    rows = [row for c in of[:64] for row in c.rows]
    moments = key_moments(memories.model, rows, LAYERS)
    z = targets.values(memories, of, LAYERS[-1], targets.Search(steps=2)).z
    phases: dict[int, dict[str, float]] = {}
    for turn in range(min(repeats, 3)):
        own = of[turn * SERIAL : (turn + 1) * SERIAL]
        slow, found = [], []
        slow.append(
            seconds(lambda: found.extend(published.target(memories, c, LAYERS[-1], search) for c in own))
        )  # noqa: B023
        one = seconds(lambda: [targets.values(memories, [c], LAYERS[-1], search) for c in own])  # noqa: B023
        kept = []
        batch = seconds(lambda: kept.append(targets.values(memories, of, LAYERS[-1], search)))  # noqa: B023
        for (vector, loss, _), i in zip(found, range(turn * SERIAL, (turn + 1) * SERIAL), strict=True):
            assert abs(loss - kept[0].losses[i]) < 1e-3 * loss, "losses differ: what is timed is not the same"
            assert (vector - kept[0].z[i]).norm() < 1e-3 * vector.norm()
        fast.append((slow[0] / SERIAL) / (batch / REQUESTS))
        single.append((slow[0] / SERIAL) / (one / SERIAL))
        layered = seconds(lambda: [published.keys(memories, of, layer, LAYERS[-1]) for layer in LAYERS])
        spent: dict[str, float] = {}

        def solver(layer, K, R):
            return solve.closed_form(K, R, moments[layer], weight=15_000.0, factor=moments.factor(layer))

        memit.spread(memories, of, z, LAYERS, solver, seconds=spent)
        keys.append(layered / spent["keys"])
        phases[turn] = {"values": batch, **spent}
    yield Ratio("target vectors: requests a second, batched / as released", tuple(fast), VALUES, "at least")
    yield Ratio("the same one request at a time", tuple(single), 1.0, "at least")
    yield Ratio("keys of all layers: as released / in one sweep", tuple(keys), KEYS, "at least")
    told = ", ".join(f"{name} {value:.2f} s" for name, value in phases[0].items())
    print(f"seconds for {REQUESTS} requests, 10 steps, layers {LAYERS}: {told}")
