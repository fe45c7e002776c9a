"""AlphaEdit, Fang et al. 2025: many facts at once, in directions that ordinary keys leave free."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem.editing.edit import Edit, editable, value_deltas
from kemem.editing.facts import Request
from kemem.editing.memit import ascending, prepared, spread, wanted
from kemem.editing.moments import Moments
from kemem.editing.prompts import PLAIN
from kemem.editing.targets import Progress, Search
from kemem.errors import BadInput
from kemem.memory import Memories

THRESHOLDS = {"as_released": 2e-2, "as_described": 1e-2}


@dataclass(frozen=True)
class AlphaEdit:
    """Writes requests into the feed-forward layers `layers`, where keys of ordinary text do not reach.

    Fang et al. 2025, with K the new keys, Kp those of all batches before, P the projection on the directions in which
    the second moment C of ordinary keys has a singular value below `threshold`:
        (P (K K^T + Kp Kp^T) + ridge I) X = P K R^T,   Delta = X^T
    threshold: a number in the units of C, which depend on the model, "as_released" 2e-2 or "as_described" 1e-2.
    ridge: what the new values pay for length; 10 in the released code. Targets, keys and the sharing over layers are
    MEMIT's, to whose batches run one after another this is an alternative: see `kemem.editing.sequential.in_batches`.
    P = U U^T and X lies in its range, so X = U Y is solved for, of which the matrix is symmetric:
        (U^T (K K^T + Kp Kp^T) U + ridge I) Y = U^T K R^T
    Differs from the released code in being solved so, and in float64. U of a layer is computed once for an editor and
    its moments.
    """

    layers: tuple[int, ...]
    threshold: float | str = "as_released"
    ridge: float = 10.0
    search: Search = field(default_factory=Search)
    remembers: ClassVar[bool] = True  # takes `previous`

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", ascending(self.layers))
        object.__setattr__(self, "_free", {})  # by layer a moment and its U: no setting, so no field
        if isinstance(self.threshold, str) and self.threshold not in THRESHOLDS:
            raise BadInput(
                f"expected threshold to be a number or one of {', '.join(THRESHOLDS)}; got {self.threshold!r}; "
                "choose one of these."
            )
        if not self.ridge > 0:
            raise BadInput(f"expected a ridge above 0; got {self.ridge}; 10 is usual.")

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        requests: Sequence[Request],
        moments: Moments,
        *,
        templates: Sequence[str] = (PLAIN,),
        targets: Float[Tensor, "N D"] | None = None,
        previous: Sequence[Edit] = (),
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Edit:
        """templates: contexts of a prompt, the bare one first. targets: z, where they are known.

        previous: the edits already in the model, as this editor made them; of each only notes["keys"] is read, by layer
        the new keys [N M] of its batch, one a row. These are the keys of the model after that edit as well: a layer's
        keys depend on what is below it, which was written before they were read.
        """
        memories = editable(model)
        of = prepared(memories, tokenizer, requests, templates, self.layers)
        moments.checked(memories, self.layers)
        before = {layer: self._before(memories, previous, layer) for layer in self.layers}
        free = {layer: self._space(moments, layer) for layer in self.layers}
        seconds: dict[str, float] = {}
        z, notes = wanted(memories, of, self.layers[-1], self.search, targets, batch_size, progress, seconds)
        keys: dict[int, Tensor] = {}

        def solve(layer: int, K: Tensor, R: Tensor) -> Tensor:
            keys[layer] = K.T.contiguous()
            U = free[layer].to(K)
            known = U.T @ torch.cat([K, before[layer].to(K).T], 1)  # [F N], F directions are free
            A = known @ known.T + self.ridge * torch.eye(len(known)).to(K)
            Y = torch.cholesky_solve((U.T @ K) @ R.T, torch.linalg.cholesky(A))
            return (U @ Y).T

        deltas = spread(
            memories, of, z, self.layers, solve, batch_size=batch_size, seconds=seconds, progress=progress
        )
        return Edit(value_deltas(memories, deltas), seconds, {**notes, "keys": keys})

    def _before(self, memories: Memories, previous: Sequence[Edit], layer: int) -> Float[Tensor, "N M"]:
        found = [torch.empty(0, memories.count, dtype=torch.float64)]
        for edit in previous:
            own = edit.notes.get("keys", {}).get(layer)
            if own is None or own.shape[1:] != (memories.count,):
                got = "no keys" if own is None else f"keys of shape {tuple(own.shape)}"
                raise BadInput(
                    f"expected earlier edits that note the keys of layer {layer}, {memories.count} numbers each; got "
                    f"{got}; give edits that this editor made of this model."
                )
            found.append(own.to(found[0]))
        return torch.cat(found)

    def _space(self, moments: Moments, layer: int) -> Float[Tensor, "M F"]:
        moment = moments[layer]
        kept = self._free.get(layer)
        if kept is None or kept[0] is not moment:
            kept = self._free[layer] = (moment, free_directions(moment, self.threshold))
        return kept[1]


def free_directions(
    moment: Float[Tensor, "M M"], threshold: float | str = "as_released"
) -> Float[Tensor, "M F"]:
    """U: orthonormal directions, one a column, in which the mean square of ordinary keys is below a threshold.

    Refused: a threshold that leaves none.
    """
    limit = THRESHOLDS[threshold] if isinstance(threshold, str) else threshold
    size, directions = torch.linalg.eigh(moment.double())
    found = directions[:, size.abs() < limit]
    if not found.shape[1]:
        raise BadInput(
            f"expected directions in which keys have a mean square below {limit:g}; got none, the least is "
            f"{size.abs().min():.3g}; give a higher threshold, in the units of this model's keys."
        )
    return found
