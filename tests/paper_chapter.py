"""Runs the code of a chapter at paper scale, its published model and sizes made small: `paper_chapter.py NUMBER`.

In a process of its own, as a reader's kernel is: with the clients' settings from the environment, and without the
checks of types that the tests switch on.
"""

import sys
from dataclasses import replace
from pathlib import Path

from kemem.studies import (
    critique,
    factual,
    field,
    knowing,
    one_target,
    sequence,
    single_edits,
    thousands,
    tracing,
)

TINY = replace(
    factual.GPT_J,
    setup=factual.GPT_J.setup.with_(
        corpus="hub:wikipedia:limit=300", layers=10, width=12, memories=32, heads=3, length=64
    ),
    held_out=400,
    where=tuple((name, own if own == (5,) else (9,)) for name, own in factual.GPT_J.where),
)  # fmt: skip
SIZES = {
    (knowing, "facts"): 20, (tracing, "facts"): 3, (tracing, "samples"): 2, (tracing, "paired"): 1,
    (tracing, "noises"): 2, (single_edits, "asked"): (2, 3), (single_edits, "facts"): (2, 3),
    (single_edits, "texts"): 60, (one_target, "requests"): 3, (thousands, "counts"): (1, 2, 4),
    (thousands, "least"): 2, (thousands, "most"): 6, (thousands, "at"): 3, (thousands, "texts"): 60,
    (thousands, "written"): 1, (field, "counts"): (1, 3), (field, "few"): (1, 3), (field, "tuning"): 3,
    (field, "least"): 2, (field, "one_by_one"): 3, (field, "zsre"): 3, (field, "switched"): 3, (field, "written"): 1,
    (field, "names"): ("MEMIT", "PMET", "EMMET", "ROME", "FT-W", "MEND"),
    (field, "chunk"): 2, (field, "mend_rank"): 4, (field, "mend_steps"): 1, (field, "mend_asked"): 12,
    (field, "mend_skipped"): 4, (field, "texts"): 60, (critique, "others"): 6, (critique, "length"): 24,
    (sequence, "batch"): 2, (sequence, "marks"): (2, 4), (sequence, "names"): ("MEMIT", "ROME"),
}  # fmt: skip


def shrink(put=lambda table, name, value: table.__setitem__(name, value)) -> None:
    """Makes the scale small; put: how a table is changed."""
    put(factual.SCALES, "paper", TINY)
    for (module, name), value in SIZES.items():
        put(module.SIZES.setdefault("paper", {}), name, value)


if __name__ == "__main__":
    shrink()
    (source,) = (Path(__file__).resolve().parents[1] / "chapters").glob(f"{sys.argv[1]}_*.py")
    code = source.read_text(encoding="utf-8").replace('scale = "laptop"', 'scale = "paper"')
    exec(compile(code, str(source), "exec"), {})
