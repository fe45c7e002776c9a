"""How language models store, lose and rewrite knowledge: the package under the book.

One tensor carries all of it: the input of a block's last feed-forward projection, called memory coefficient (Kim et al.
2024), key (Meng et al. 2023) or unit (Ke et al. 2023). `Memories(model)` shows it in any model; the rest is arithmetic.

Letters in shapes: B batch, T token, L layer, D model width, M memories per layer, H heads, d width of a head,
V vocabulary, N instances or facts.
"""

from kemem import entropy
from kemem.corpora import corpus
from kemem.errors import BadInput
from kemem.memory import LAYOUTS, Layout, Memories
from kemem.models import Shape, build, load
from kemem.training import Domain, History, Method, Recipe, train

__version__ = "0.1.0"
__all__ = [
    "LAYOUTS",
    "BadInput",
    "Domain",
    "History",
    "Layout",
    "Memories",
    "Method",
    "Recipe",
    "Shape",
    "build",
    "corpus",
    "entropy",
    "load",
    "train",
]
