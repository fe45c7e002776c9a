"""Devices and number types by the names a user gives them."""

from __future__ import annotations

import torch

from kemem.errors import BadInput

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DEVICES = ("auto", "cpu", "cuda", "mps")


def accelerator() -> str | None:
    """The name of the accelerator that this torch can use, of whatever maker: "cuda", "mps", "xpu"..."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def named_device(name: str) -> torch.device:
    """auto: CUDA where there is one, else Apple's, else the CPU; an accelerator of another maker only by its name."""
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name not in ("auto", *present) and name == accelerator():
        return torch.device(name)
    if name == "auto":
        return torch.device(next(kind for kind, here in present.items() if here))
    if name not in present:
        raise BadInput(f"expected a device; got {name!r}; choose one of {', '.join(DEVICES)}.")
    if not present[name]:
        known = " or ".join(kind for kind, here in present.items() if here)
        raise BadInput(f"expected a device that this machine has; got {name!r}; use {known}, or auto.")
    return torch.device(name)


def named_dtype(name: str, device: str = "cpu") -> torch.dtype:
    """The number type of this name; float64 is refused for a device that lacks it."""
    if name not in DTYPES:
        raise BadInput(f"expected a number type; got {name!r}; choose one of {', '.join(DTYPES)}.")
    if name == "float64" and named_device(device).type == "mps":
        raise BadInput(
            "expected a number type that the device has; got float64 on mps, which lacks it; "
            "take the device cpu or the type float32."
        )
    return DTYPES[name]
