"""ROME, Meng et al. 2022: one fact after another written into one feed-forward layer, so that it holds exactly."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem.editing.edit import Edit, editable, value_deltas
from kemem.editing.facts import Request
from kemem.editing.memit import prepared, wanted
from kemem.editing.moments import Moments, invertible
from kemem.editing.prompts import PLAIN
from kemem.editing.stepping import Beginning
from kemem.editing.targets import Progress, Search, values
from kemem.errors import BadInput

KEYS = ("as_released", "averaged", "plain")


@dataclass(frozen=True)
class ROME:
    """Writes requests into the feed-forward layer `layer`, each into the model as edited by those before it.

    Meng et al. 2022, eq. 2, with k the key of the bare prompt, k* the plain mean over all contexts, C the second moment
    of ordinary keys, and q the key at which the new value is to stand:
        Delta = (v* - W q) u^T / (u^T q),   so that (W + Delta) q = v*
    W q is the layer's whole output, its bias with it; v* what that output is to be after the bare prompt.
    key: "as_released" mixes two, u = C^-1 k* and q = k, as the released code does; "averaged" has k* in both places,
    which is r-ROME, Gupta et al. 2024 ("Rebuilding ROME"); "plain" has k in both, their p-ROME.
    search: of the released code for GPT-2 XL. The paper lists a KL weight of 1e2 and a decay of 1.5e-3 instead.
    Differs from the released code in contexts, which are those given: there they are 21, the bare prompt and 10 texts
    of 5 and 10 of 10 tokens sampled from the end-of-text token; MEMIT's are 6.
    """

    layer: int
    search: Search = field(default_factory=partial(Search, steps=20, clamp=4.0))
    key: str = "as_released"

    def __post_init__(self) -> None:
        if self.key not in KEYS:
            raise BadInput(
                f"expected key to be one of {', '.join(KEYS)}; got {self.key!r}; choose one of these."
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
        """The sum of all updates. templates: contexts of a prompt, the bare one first. targets: v*, where known."""
        memories, layer = editable(model), self.layer
        of = prepared(memories, tokenizer, requests, templates, (layer,))
        invertible(moments.checked(memories, (layer,)), (layer,))
        seconds = {"values": 0.0, "keys": 0.0, "solve": 0.0}
        if targets is not None:  # one of another shape is refused
            wanted(memories, of, layer, self.search, targets, batch_size, None, seconds)

        # keys stand below the values that are written, so those of all requests stay as they are while it is edited
        start = time.perf_counter()
        per = len(of[0].rows)
        rows = Beginning(memories, [row for c in of for row in c.to_subject], batch_size=batch_size * per)
        keys = rows.coefficients(layer).double()[rows.index.view(len(of), per)]  # [N P M]
        plain, mean = keys[:, 0], keys.mean(1)
        seconds["keys"] = time.perf_counter() - start
        used = mean if self.key == "averaged" else plain
        turned = plain if self.key == "plain" else mean
        u = torch.cholesky_solve(turned.T, moments.factor(layer).to(turned)).T  # C^-1 k, [N M]

        total = torch.zeros(memories.width, memories.count, dtype=torch.float64, device=keys.device)
        told: dict[str, list[Tensor]] = {"targets": [], "passes": [], "losses": []}
        for i, c in enumerate(of):
            with Edit(value_deltas(memories, {layer: total})).applied(model):
                start = time.perf_counter()
                weight, bias = memories.values(layer).double(), memories.bias(layer)
                now, there = (weight @ k if bias is None else weight @ k + bias for k in (plain[i], used[i]))
                if targets is None:
                    found = values(memories, [c], layer, self.search, origin=now[None])
                    told["passes"].append(found.passes)
                    told["losses"].append(found.losses)
                v = found.z if targets is None else targets[i : i + 1]
                told["targets"].append(v)
                between = time.perf_counter()
                lacking = v[0].to(there) - there
            total += torch.outer(lacking, u[i] / (u[i] @ used[i]))
            seconds["values"] += between - start
            seconds["solve"] += time.perf_counter() - between
            if progress is not None:
                progress(i + 1, len(of), "requests")
        notes = {name: torch.cat(parts) for name, parts in told.items() if parts}
        return Edit(value_deltas(memories, {layer: total}), seconds, notes)


r_rome = partial(ROME, key="averaged")
