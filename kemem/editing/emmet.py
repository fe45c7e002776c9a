"""EMMET, Gupta et al. 2024: many facts at once, each of which is to hold exactly, as ROME asks of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from kemem.editing.edit import Edit, editable, value_deltas
from kemem.editing.facts import Request
from kemem.editing.memit import ascending, prepared, spread, wanted
from kemem.editing.moments import Moments, invertible
from kemem.editing.prompts import PLAIN
from kemem.editing.solve import equality
from kemem.editing.targets import Progress, Search
from kemem.errors import BadInput


@dataclass(frozen=True)
class EMMET:
    """Writes requests into the feed-forward layers `layers`, usually one, under equality constraints.

    Gupta et al. 2024 ("A Unified Framework for Model Editing"), with the terms of the released code:
        Delta = R (K^T C'^-1 K + ridge I)^-1 K^T C'^-1,   C' = weight C
    For one request the ridge is left out, so that it holds exactly; then the weight cancels. For more, keys that are
    alike would make the bracket singular; with ridge = 1 the update is MEMIT's, with 0 every request holds exactly.
    Targets, keys and the sharing over several layers are MEMIT's. Defaults are the released ones of GPT-J, layer 5.
    Refused: more requests than memories without a ridge.
    """

    layers: tuple[int, ...]
    weight: float = 10_000.0
    ridge: float = 0.1
    search: Search = field(default_factory=Search)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", ascending(self.layers))
        if not self.weight > 0 or not self.ridge >= 0:
            raise BadInput(
                f"expected a weight above 0 and a ridge of 0 or more; got {self.weight} and {self.ridge}; give such."
            )

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        requests: Sequence[Request],
        moments: Moments,
        *,
        templates: Sequence[str] = (PLAIN,),
        targets: Float[Tensor, "N D"] | None = None,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Edit:
        """templates: contexts of a prompt, the bare one first. targets: z, where they are known."""
        memories = editable(model)
        of = prepared(memories, tokenizer, requests, templates, self.layers)
        invertible(moments.checked(memories, self.layers), self.layers)
        ridge = self.ridge if len(of) > 1 else 0.0
        if len(of) > memories.count and ridge == 0:
            raise BadInput(
                f"expected no more requests than a layer has memories, {memories.count}; got {len(of)}; give fewer, "
                "or a ridge."
            )
        seconds: dict[str, float] = {}
        z, notes = wanted(memories, of, self.layers[-1], self.search, targets, batch_size, progress, seconds)

        def solve(layer: int, K: Tensor, R: Tensor) -> Tensor:
            return equality(K, R, self.weight * moments[layer], ridge=ridge)

        deltas = spread(
            memories, of, z, self.layers, solve, batch_size=batch_size, seconds=seconds, progress=progress
        )
        return Edit(value_deltas(memories, deltas), seconds, notes)
