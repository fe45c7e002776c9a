"""Cost of an arm of continual learning with injected and probed passages, against plain training of the same steps."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.ratio import Ratio, interleaved
from kemem import entropy, training
from kemem.runs import Store
from kemem.studies import acquiring, checkpoints
from kemem.studies.lab import Lab
from kemem.studies.setup import blocks

BOUND = 1.1  # of issue 3
ROOT = Path(__file__).resolve().parents[1]


def ratio(device: str) -> float:
    """The laptop arm, two of its ten slots long: probed before, at each injection and at the end, as often as there."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab("laptop", Store(folder), ROOT, device=device)
        s = replace(acquiring.settings("laptop"), slots=2)
        model, tok, _ = checkpoints.load(lab, s.model, s.step)
        told = acquiring.fictional(acquiring.settings("laptop"))
        plan = entropy.schedule(told, tok, slots=2, interval=s.interval)
        domain = training.Domain(s.corpus, blocks(lab, s.model.setup, s.corpus, "train"))
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        def plain() -> None:
            model.load_state_dict(start)
            training.train(model, domain, s.recipe())

        def arm() -> None:
            model.load_state_dict(start)
            entropy.acquire(model, domain, plan, s.recipe(), tokenizer=tok, passages=told)

        return interleaved(arm, plain, pairs=3, device=device)


def ratios(*, repeats: int = 5, device: str = "cpu") -> Iterator[Ratio]:
    values = tuple(ratio(device) for _ in range(min(repeats, 3)))
    yield Ratio("continual learning with passages and probes / plain training", values, BOUND, "at most")
