"""How language models store, lose and rewrite knowledge: the package under the book.

One tensor carries all of it: the input of a block's last feed-forward projection, called memory coefficient
(Kim et al. 2024), key (Meng et al. 2023) or unit (Ke et al. 2023). `Memories(model)` shows it in any model; the
rest is arithmetic.

Letters in shapes: B batch, T token, L layer, D model width, M memories per layer, H heads, d width of a head,
V vocabulary, N instances or facts.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_HOME = {
    "LAYOUTS": "kemem.families",
    "BadInput": "kemem.errors",
    "Domain": "kemem.training",
    "History": "kemem.training",
    "Layout": "kemem.families",
    "Memories": "kemem.memory",
    "Method": "kemem.training",
    "Recipe": "kemem.training",
    "Shape": "kemem.models",
    "build": "kemem.models",
    "corpus": "kemem.corpora",
    "load": "kemem.models",
    "register": "kemem.families",
    "train": "kemem.training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Public names are fetched when first asked for: importing torch takes seconds, `kemem --help` should not."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
