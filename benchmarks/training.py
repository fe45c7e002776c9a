"""Tokens per second of `kemem.train` against `transformers.Trainer`: same model, batch, schedule and precision."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from unittest import mock

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from benchmarks.ratio import Ratio, interleaved
from kemem import arithmetic
from kemem.models import Shape, build
from kemem.studies import cost
from kemem.training import Recipe, bfloat16_runs, train

BOUND = 1.0  # of issue 2: at least as fast as the Trainer
PAIRS = 3  # a repeat is their median
CPU = (
    (Shape(layers=3, width=64, memories=512, vocab=2048, context=96), 40),
    (Shape(layers=4, width=96, memories=384, vocab=4096, context=128), 24),
    (Shape(layers=6, width=128, memories=512, vocab=2048, context=128), 16),
)
CUDA = ((Shape(layers=12, width=512, memories=2048, heads=8, vocab=16384, context=512), 60),)
# of the design, section 7: the least share of a card's arithmetic, by millions of parameters
MFU = (
    (Shape(layers=12, width=512, memories=2048, heads=8, vocab=16384, context=512), 128, 0.35),
    (Shape(layers=18, width=1024, memories=4096, heads=16, vocab=16384, context=1024), 32, 0.45),
)
ROWS = {"cpu": 16, "cuda": 64}


class Rows(torch.utils.data.Dataset):
    """Random tokens, as `train` reads them and as the Trainer does."""

    def __init__(self, rows: int, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, shape.vocab, (rows, shape.context), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[row], "labels": self.ids[row]}

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        return {"input_ids": self.ids[rows], "labels": self.ids[rows]}


def ours(shape: Shape, data: Rows, recipe: Recipe, device: str) -> Callable[[], object]:
    model = build(shape).to(device)
    return lambda: train(model, data, recipe)


def theirs(shape: Shape, data: Rows, recipe: Recipe, device: str, folder: str) -> Callable[[], object]:
    """The Trainer at its best for this task: fused AdamW, no saving, nothing logged before the end."""
    model = build(shape).to(device)
    settings = TrainingArguments(
        output_dir=folder,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type="cosine",
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        max_grad_norm=recipe.clip,
        optim="adamw_torch_fused",
        bf16=recipe.precision == "bfloat16",
        torch_compile=recipe.compile,
        use_cpu=device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=device != "cpu",
        remove_unused_columns=False,
    )

    def run() -> object:
        trainer = Trainer(model=model, args=settings, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        return trainer.train()

    return run


def ratio(
    shape: Shape, steps: int, precision: str, device: str, *, fast: bool = True, compiled: bool = False
) -> float:
    rows = ROWS[device]
    recipe = Recipe(steps, rows, 1e-3, warmup_steps=2, precision=precision, log_every=steps, compile=compiled)
    data = Rows(rows * 8, shape)
    plain = mock.patch.object(arithmetic, "fast", lambda device: nullcontext())
    with tempfile.TemporaryDirectory() as folder, nullcontext() if fast else plain:
        return interleaved(
            theirs(shape, data, recipe, device, folder),
            ours(shape, data, recipe, device),
            pairs=PAIRS,
            device=device,
        )


def ratios(*, repeats: int = 5, device: str = "cpu") -> Iterator[Ratio]:
    cases = [(shape, steps, "float32", True) for shape, steps in (CPU if device == "cpu" else CUDA)]
    if device == "cpu":
        cases.append((*CPU[0], "float32", False))
    if bfloat16_runs(device):
        cases += [
            (shape, steps, "bfloat16", True) for shape, steps in (CPU[-1:] if device == "cpu" else CUDA)
        ]
    for shape, steps, precision, fast in cases:
        values = tuple(ratio(shape, steps, precision, device, fast=fast) for _ in range(repeats))
        size = f"{shape.layers} x {shape.width} x {shape.memories}, {ROWS[device]} x {shape.context}, {precision}"
        note = "" if fast else "PyTorch's own products on both sides"
        yield Ratio(f"training tokens/s, kemem / Trainer ({size})", values, BOUND, "at least", note)
    if device.startswith("cuda"):
        yield from utilisation(repeats, device)


def utilisation(repeats: int, device: str) -> Iterator[Ratio]:
    """MFU of training in bfloat16, compiled, without the steps in which it is compiled; none on an unknown card."""
    limit = cost.peak(torch.cuda.get_device_name(device), "bfloat16")
    for shape, rows, bound in MFU if limit and bfloat16_runs(device) else ():
        data, model = Rows(rows * 8, shape), build(shape).to(device)
        size = sum(p.numel() for p in model.parameters())
        each = cost.flops_per_token(size, shape.layers, shape.width, shape.context)
        values = []
        for _ in range(repeats):
            recipe = Recipe(60, rows, 1e-3, warmup_steps=2, precision="bfloat16", log_every=20, compile=True)
            seen = train(model, data, recipe).steps
            spent = seen[-1]["seconds"] - seen[0]["seconds"]  # the first 20 steps compile
            tokens = seen[-1]["tokens"] - seen[0]["tokens"]
            values.append(tokens * each / spent / limit)
        name = f"MFU of training, {size / 1e6:.0f} million parameters, {rows} x {shape.context}, bfloat16"
        yield Ratio(name, tuple(values), bound, "at least")
