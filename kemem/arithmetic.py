"""Faster float32: on processors at the same precision, on graphics cards, where that was allowed, in fewer bits.

On a CPU two things cost small models a third of their time, and neither is arithmetic that is needed.

1. PyTorch multiplies float32 matrices with MKL, which leaves the AVX-512 units of AMD processors idle.
oneDNN, in the same binary, uses them, but PyTorch asks it only where reduced precision was allowed
(`torch.backends.mkldnn.matmul.fp32_precision`). On processors without AMX oneDNN computes such a product in
full float32 all the same. `products` says whether that is so here, by trying.
2. The C library gives every large freed block back to the system and asks for it again in the next step; each
   page is then cleared anew. `keep_memory` tells it to hold on.

Results differ from MKL's by rounding only (the order of sums), as they do between two processors.

On a card, factors of products may be rounded to TF32, ten bits after the first instead of 23, and summed in float32:
seven times as many products a second on an H100. A factor then is off by 5e-4 at most, so it is done outside training
runs alone (for scores, entropies, traces, searches for targets, the steps of fine-tuning on one fact), and only where
`allow_tf32` was called, as the book does at its larger scales. Moments, factorisations and solutions are float64 and
know nothing of it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PROBES = ((64, 64, 64), (256, 64, 512), (512, 512, 64), (256, 256, 256))  # rows, inner side, columns
TENSOR_CORES = 8  # compute capability from which on a card has TF32
EXACT = 1e-5  # of the largest entry: float32 is at 1e-6 there, bfloat16 at 3e-3


_allowed = False


def fast(device: torch.device, *, tf32: bool = False) -> AbstractContextManager[object]:
    """All of it while a `with` block lasts (memory: from then on); nothing on devices where it brings nothing.

    On a CPU, around a forward pass is enough: the derivatives of a product go the way it went. May be entered again.
    tf32: whether results may be those of TF32, on a card and where `allow_tf32` was called.
    """
    if device.type == "cuda" and tf32 and _allowed:
        return _tf32()
    if device.type != "cpu":
        return nullcontext()
    keep_memory()
    return Products() if products() else nullcontext()


def allow_tf32(allowed: bool = True) -> None:
    """Whether from now on this process may take TF32 for float32 products on a card, outside training runs."""
    global _allowed
    _allowed = allowed


def precision(device: torch.device) -> str:
    """What float32 products are computed in, outside training runs: "float32" or "tf32"."""
    able = device.type == "cuda" and _allowed and torch.cuda.get_device_capability(device)[0] >= TENSOR_CORES
    return "tf32" if able else "float32"


@cache
def products() -> bool:
    """Whether oneDNN can be asked for float32 products on this processor and gives them in float32."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.backends.mkldnn, "matmul"):
        return False
    if not torch.cpu._is_avx512_supported():
        return False  # PyTorch would go on using MKL
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in PROBES:
        a, b = (torch.randn(shape, generator=generator) for shape in ((rows, inner), (inner, columns)))
        exact = a.double() @ b.double()
        with _onednn():
            error = ((a @ b).double() - exact).abs().max() / exact.abs().max()
        if error > EXACT:
            return False
    return True


class Products(TorchFunctionMode):
    """Sends the float32 products of linear layers to oneDNN, forward and backward; all else runs as it did.

    The permission is given around each product alone: attention kernels become several times slower by it.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.linear and not kwargs and _ours(args[0]) and _ours(args[1]) and args[1].ndim == 2:
            x, weight, *bias = args
            out = _Product.apply(x.reshape(-1, x.shape[-1]), weight.t(), *bias)
            return out.view(*x.shape[:-1], weight.shape[0])
        if function is torch.addmm and not kwargs and _ours(args[1]) and _ours(args[2]):  # Conv1D of GPT-2
            return _Product.apply(args[1], args[2], args[0])
        return function(*args, **kwargs)


class _Product(torch.autograd.Function):
    """a @ b (+ bias) and its derivatives, by oneDNN."""

    generate_vmap_rule = True  # so that torch.func (gradients an example) works inside

    @staticmethod
    def forward(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        with _onednn():
            return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        context.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b = context.saved_tensors
        to_a = to_b = None
        with _onednn():
            if context.needs_input_grad[0]:
                to_a = torch.mm(gradient, b.t())
            if context.needs_input_grad[1]:  # in the layout of b, which may be a transposed weight
                to_b = torch.mm(a.t(), gradient) if b.is_contiguous() else torch.mm(gradient.t(), a).t()
        wants_bias = len(context.needs_input_grad) > 2 and context.needs_input_grad[2]
        return to_a, to_b, gradient.sum(0) if wants_bias else None


def _ours(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


@contextmanager
def _tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def _onednn() -> Iterator[None]:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"  # a permission; `products` has seen that it is not used
    try:
        yield
    finally:
        matmul.fp32_precision = before


def keep_memory() -> bool:
    """Asks the C library (glibc only) to keep freed memory for this process instead of returning it.

    Costs that memory, up to what was once in use. Cannot be taken back; changes no number.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))
