"""The only training loop: a `Recipe` of numbers, a `Method` of moments (`Together`: several), and `train`."""

from kemem.objective import Causal, Masked, Objective, causal
from kemem.training.loop import train
from kemem.training.method import Method
from kemem.training.recipe import Domain, History, Recipe, Rows, bfloat16_runs
from kemem.training.together import Together

__all__ = [
    "Causal",
    "Domain",
    "History",
    "Masked",
    "Method",
    "Objective",
    "Recipe",
    "Rows",
    "Together",
    "bfloat16_runs",
    "causal",
    "train",
]
