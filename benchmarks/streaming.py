"""A model whose blocks stay on the disk against the same model in memory: the memory it needs, and the time."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.entropy import blocks, forget_peak, olmo, repeated, resident
from benchmarks.ratio import Ratio
from kemem import models
from kemem.entropy import measure
from kemem.models.streaming import stream, streamed

WIDTH, MEMORIES, LAYERS, VOCABULARY = 512, 2048, 12, 4096  # blocks hold 96 % of the parameters
OPEN = {"streamed": stream, "in memory": models.load}


def ratios(*, repeats: int = 5, device: str = "cpu") -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory() as folder:
        olmo(WIDTH, MEMORIES, LAYERS, vocabulary=VOCABULARY).save_pretrained(folder, max_shard_size="100MB")
        name = f"streamed / in memory, {LAYERS} layers, width {WIDTH}"

        def opened(kind: str) -> PreTrainedModel:
            return OPEN[kind](folder, device=device)[0]

        if device == "cpu":
            ours, theirs = peak("streamed", folder), peak("in memory", folder)
            note = f"({ours:.0f} MB, {theirs:.0f} MB)"
            yield Ratio(f"memory of opening and measuring, {name}", (ours / theirs,), 1 / 3, "at most", note)

        sides = [opened(kind) for kind in OPEN]
        for count, length, bound in ((16, 128, 1.25), (4, 512, 1.25), (1, 32, None)):
            ids = blocks(sides[1], 4 * count, length)
            works = (partial(measure, side, ids, batch_size=4, next_token=False) for side in sides)
            values = repeated(repeats, *works, device, pairs=5)
            yield Ratio(
                f"time of measuring, {count} batches of 4 x {length}, {name}", values, bound, "at most"
            )

        pages = streamed(sides[0])
        read = []
        for count in (1, 16):
            before = pages.shards.read_bytes
            measure(sides[0], blocks(sides[0], 4 * count, 16), batch_size=4, next_token=False)
            read.append(pages.shards.read_bytes - before)
        yield Ratio("bytes read for 16 batches / for 1, streamed", (read[1] / read[0],), 1, "at most")


def peak(kind: str, folder: str) -> float:
    """Megabytes that a process needs for opening a model and measuring it, beyond the libraries."""
    command = [sys.executable, "-m", "benchmarks.streaming", kind, folder]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=tuple(OPEN))
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    small = olmo(64, 64, 1, vocabulary=64)
    measure(small, blocks(small, 1, 8))  # what the libraries allocate once
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        OPEN[asked.kind](folder, device="cpu")
    forget_peak()
    before = resident("VmRSS")
    model, _ = OPEN[asked.kind](str(asked.folder), device="cpu")
    measure(model, blocks(model, 16, 128), batch_size=4, next_token=False)
    print(resident("VmHWM") - before)
