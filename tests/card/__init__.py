"""A device beside the CPU for machines without one: what a GPU refuses is refused, and nothing needs to be fast.

    python -m pytest -p card tests/test_gpu.py        # with tests/ on the path
    python -m card kemem.book.slices --scale smoke --device card

`load` compiles card.cpp once a machine and names the device "card". It changes torch for the whole process, so tests
use it in processes of their own (tests/test_card.py).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import types
from contextlib import nullcontext
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
import torch.utils.cpp_extension

NAME = "card"
SOURCE = Path(__file__).with_name("card.cpp")


def compiler() -> str | None:
    """The C++ compiler of this machine."""
    return shutil.which(os.environ.get("CXX", "c++"))


@cache
def load() -> ctypes.CDLL:
    """The device, compiled where this source was not compiled yet for this torch, and made known to torch."""
    library = ctypes.CDLL(str(_compiled()))
    library.card_waits.restype = ctypes.c_int64
    library.card_register()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    # without it Module.to makes new parameters on such devices, and two names of one weight become two weights
    torch.__future__.set_swap_module_params_on_conversion(True)
    return library


def waits() -> int:
    """How often the CPU has waited for the device so far: numbers read, tensors copied to the CPU."""
    return load().card_waits()


def _compiled() -> Path:
    identity = f"{torch.__version__} {sys.platform} {SOURCE.read_text()}"
    target = Path(tempfile.gettempdir()) / f"kemem-card-{sha256(identity.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    place = Path(torch.__file__).parent
    flags = ["-O1", "-shared", "-fPIC", "-std=c++20", "-w"]
    include = [f"-I{path}" for path in torch.utils.cpp_extension.include_paths()]
    libraries = [f"-L{place / 'lib'}", f"-Wl,-rpath,{place / 'lib'}", "-ltorch_cpu", "-lc10"]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder, "card.so")
        command = [compiler() or "c++", *flags, *include, str(SOURCE), "-o", str(fresh), *libraries]
        subprocess.run(command, check=True)
        os.replace(fresh, target)
    return target


def _module() -> types.ModuleType:
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.device = lambda index: nullcontext()
    module.is_bf16_supported = lambda: True
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.manual_seed_all = lambda seed: None
    module.synchronize = lambda device=None: None
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    return module


load()
