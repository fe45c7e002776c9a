"""Target vectors: what the stream should be at a subject's last token for the model to say the new object there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kemem import arithmetic
from kemem.editing.prompts import Contexts
from kemem.editing.stepping import Ending, head_of
from kemem.errors import BadInput
from kemem.memory import Memories

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Search:
    """How a target vector is looked for. Defaults are those of GPT-J in Meng et al. 2023.

    steps: forward passes at most; the last one moves nothing. rate: of Adam. clamp: the added vector is at most this
    long, in lengths of the stream it is added to. kl: weight of staying with the model's own next token after the bare
    subject. decay: weight of |delta| / |h|^2. stop: loss below which a request is done.
    """

    steps: int = 25
    rate: float = 0.5
    clamp: float = 0.75
    kl: float = 0.0625
    decay: float = 0.5
    stop: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadInput(f"expected a search of 1 step or more; got {self.steps}; give more.")
        for name in ("rate", "clamp"):
            if not getattr(self, name) > 0:
                raise BadInput(f"expected {name} above 0; got {getattr(self, name)}; give a positive number.")


@dataclass(frozen=True)
class Values:
    """Found target vectors: z [N D]; of each the stream it starts from, its loss, how many forward passes it took.

    z = origin + delta. probability: of the new object, its tokens' geometric mean over contexts, at the last pass.
    """

    z: Float[Tensor, "N D"]
    origin: Float[Tensor, "N D"]
    losses: Float[Tensor, " N"]
    passes: Int[Tensor, " N"]
    probability: Float[Tensor, " N"]


def values(
    memories: Memories,
    of: Sequence[Contexts],
    layer: int,
    search: Search = Search(),
    *,
    origin: Float[Tensor, "N D"] | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Values:
    """Target vectors of all requests, at the output of block `layer` and the subject's last token.

    Meng et al. 2023, eq. 4, with the terms of the released code:
        z = h + argmin_delta  mean_j -log p(o* | x_j + p; h += delta) + kl KL + decay |delta| / |h|^2
    One Adam for all requests is one for each: their losses add up and share no variable. Only the blocks above
    `layer` run, on the tokens from the subject's last one on, and logits are computed where they are read; each is
    exact (see `Ending`). A request whose loss is below `stop` before a step is done, and leaves the batch.
    The KL term is read right after the bare subject, where the released code has it: " is a" cannot reach back.
    origin: what delta is added to, and what its length is measured against: by default the stream h, with ROME the
    feed-forward's output, which is a part of it. batch_size: requests at a time.
    """
    memories.block_path(layer)

    def make(part: list[int]) -> Batch:
        return Batch(memories, [of[i] for i in part], layer, search, None if origin is None else origin[part])

    return searched(memories, of, make, batch_size, progress)


def searched(
    memories: Memories,
    of: Sequence[Contexts],
    make: Callable[[list[int]], "Batch"],
    batch_size: int,
    progress: Progress | None,
) -> Values:
    """What batches of like length find, in the order of the requests; the model is frozen meanwhile."""
    order = sorted(range(len(of)), key=lambda i: sum(map(len, of[i].rows)))
    parts: list[Values] = []
    device = next(memories.model.parameters()).device
    with _still(memories.model), arithmetic.fast(device, tf32=True):
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            parts.append(make(part).run())
            if progress is not None:
                progress(begin + len(part), len(order), "target vectors")
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return Values(
        *(torch.cat([getattr(p, name) for p in parts])[back] for name in Values.__dataclass_fields__)
    )


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, no parameter asking for a gradient, for as long as the block lasts."""
    asking = [p for p in model.parameters() if p.requires_grad]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for p in asking:
            p.requires_grad_(False)
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


class Batch:
    """Some requests that are searched together; row r of the passes belongs to request owner[r].

    After `leave` only some requests are left, numbered anew; `origin` keeps all.
    """

    def __init__(
        self,
        memories: Memories,
        of: Sequence[Contexts],
        layer: int,
        search: Search,
        origin: Float[Tensor, "N D"] | None,
    ) -> None:
        self.memories, self.search = memories, search
        count, per = len(of), len(of[0].rows)
        rows = [row[:-1] for c in of for row in c.rows] + [
            c.essence for c in of
        ]  # nothing follows the last token
        begins = [last for c in of for last in c.subjects] + [len(c.essence) - 1 for c in of]
        self.ending = Ending(memories, layer, rows, begins)
        stream = self.ending.stream
        number = torch.arange(count, device=stream.device)
        self.owner = torch.cat([number.repeat_interleave(per), number])
        self.essence = number + count * per
        # where the logits of each target token are read: a row, a token of its ending, the token itself, its weight
        spots = [
            (i * per + j, at - c.subjects[j] - 1, row[at], 1 / (len(row) - c.begins[j]) / per)
            for i, c in enumerate(of)
            for j, row in enumerate(c.rows)
            for at in range(c.begins[j], len(row))
        ]
        rows_, tokens, targets, weights = zip(*spots, strict=True)
        self.row, self.token, self.target = (
            torch.tensor(part, device=stream.device) for part in (rows_, tokens, targets)
        )
        self.weight = torch.tensor(weights, device=stream.device, dtype=stream.dtype)
        self.origin = stream[number * per, 0] if origin is None else origin.to(stream)
        self.usual: Tensor | None = None  # log p after the bare subject, before anything is added

    def run(self) -> Values:
        search, origin = self.search, self.origin
        delta, first, second = (torch.zeros_like(origin) for _ in range(3))
        length = origin.norm(dim=1)
        losses, probability = torch.zeros_like(length), torch.zeros_like(length)
        passes = torch.zeros(len(origin), dtype=torch.long)
        active = torch.arange(len(origin), device=origin.device)
        for step in range(1, search.steps + 1):
            added = delta[active].requires_grad_(True)
            heard, strayed = self._losses(added)
            loss = heard + search.kl * strayed + search.decay * added.norm(dim=1) / length[active].square()
            losses[active], probability[active] = loss.detach(), heard.detach().neg().exp()
            passes[active.cpu()] = step
            going = loss.detach() >= search.stop
            if step == search.steps or not going.any():
                break
            (slope,) = torch.autograd.grad(loss.sum(), added)
            if not going.all():
                self.leave(going)
                active, slope = active[going], slope[going]
            first[active] = 0.9 * first[active] + 0.1 * slope
            second[active] = 0.999 * second[active] + 0.001 * slope.square()
            mean, square = first[active] / (1 - 0.9**step), second[active] / (1 - 0.999**step)
            new = delta[active] - search.rate * mean / (square.sqrt() + 1e-8)
            most = search.clamp * length[active, None]
            delta[active] = new * (most / new.norm(dim=1, keepdim=True)).clamp(max=1)
        return Values(origin + delta, origin, losses, passes, probability)

    def _losses(self, added: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Of each request the mean -log p of its target, and the KL divergence after the bare subject."""
        stream = self.ending.stream
        first = stream[:, 0] + added[self.owner]
        ended = self.ending(torch.cat([first[:, None], stream[:, 1:]], 1))
        head = head_of(self.memories.model)
        said = head(ended[self.row, self.token]).log_softmax(-1).gather(1, self.target[:, None])[:, 0]
        heard = torch.zeros_like(added[:, 0]).index_add(0, self.owner[self.row], -self.weight * said)
        now = head(ended[self.essence, 0]).log_softmax(-1)
        if self.usual is None:
            self.usual = now.detach()
        return heard, (now.exp() * (now - self.usual)).sum(-1)

    def leave(self, going: Bool[Tensor, " N"]) -> None:
        """Drops the rows of all requests but those that go on."""
        rows = going[self.owner].nonzero()[:, 0]
        new = torch.full((len(self.owner),), -1, device=rows.device)  # a row's number, from that before
        new[rows] = torch.arange(len(rows), device=rows.device)
        spots = going[self.owner[self.row]]
        self.row, self.token, self.target, self.weight = (
            new[self.row[spots]], self.token[spots], self.target[spots], self.weight[spots]
        )  # fmt: skip
        self.essence = new[self.essence[going]]
        self.owner = (going.long().cumsum(0) - 1)[self.owner[rows]]
        self.ending = self.ending.chosen(rows)
        self.usual = None if self.usual is None else self.usual[going]
