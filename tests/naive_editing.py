"""MEMIT as plainly as it can be written: one request, one prompt, one token at a time, with torch's own hooks.

What tests compare the package with: nothing here is shared with it but the data that both are given.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kemem.editing.prompts import Contexts
from kemem.editing.targets import Search

WIDTH, MEMORIES = 12, 20
CAUSAL = ("olmo", "llama", "qwen2", "gpt2", "gptj", "gpt_neox")
BLOCK = {
    "olmo": "model.layers.{}", "llama": "model.layers.{}", "qwen2": "model.layers.{}", "gpt2": "transformer.h.{}",
    "gptj": "transformer.h.{}", "gpt_neox": "gpt_neox.layers.{}",
}  # fmt: skip
DOWN = {
    "olmo": "mlp.down_proj", "llama": "mlp.down_proj", "qwen2": "mlp.down_proj", "gpt2": "mlp.c_proj",
    "gptj": "mlp.fc_out", "gpt_neox": "mlp.dense_4h_to_h",
}  # fmt: skip


def tolerance(family: str, usual: float = 1e-10) -> float:
    """transformers' GPT-J computes attention in float32, whatever it is given: rounding then hangs on padding."""
    return max(usual, 1e-5) if family == "gptj" else usual


def block(model: nn.Module, layer: int) -> nn.Module:
    return model.get_submodule(BLOCK[model.config.model_type].format(layer))


def down(model: nn.Module, layer: int) -> nn.Module:
    return block(model, layer).get_submodule(DOWN[model.config.model_type])


def drawn_contexts(count: int = 7, seed: int = 0, vocab: int = 61) -> list[Contexts]:
    """Requests of all lengths: subjects of 1 or 2 tokens, targets of 1 to 3, each bare and behind two prefixes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocab, (size,), generator=generator).tolist())

    found = []
    for i in range(count):
        subject, tail, target = draw(1 + i % 2), draw(2), draw(1 + i % 3)
        rows, begins, last = [], [], []
        for prefix in (0, 3, 5):
            rows.append(draw(prefix) + subject + tail + target)
            begins.append(prefix + len(subject) + 2)
            last.append(prefix + len(subject) - 1)
        found.append(Contexts(tuple(rows), tuple(begins), tuple(last), subject))
    return found


@torch.no_grad()
def at(model: nn.Module, module: nn.Module, row: Sequence[int], token: int, side: str = "output") -> Tensor:
    """What enters or leaves a module at one token of one row."""
    seen: list[Any] = []
    if side == "input":
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    else:
        handle = module.register_forward_hook(lambda _, __, out: seen.append(out))
    model(input_ids=torch.tensor([row]))
    handle.remove()
    (found,) = seen
    return (found[0] if isinstance(found, tuple) else found)[0, token].clone()


def target(model: nn.Module, c: Contexts, layer: int, search: Search) -> tuple[Tensor, int, float]:
    """One target vector by full sequences, full logits and torch's Adam; the forward passes and the last loss."""
    origin: list[Tensor] = []

    def logits(row: Sequence[int], token: int, delta: Tensor) -> Tensor:
        def add(_: nn.Module, __: Any, out: Any) -> Any:
            stream = (out[0] if isinstance(out, tuple) else out).clone()
            if not origin:
                origin.append(stream[0, token].detach().clone())
            stream[0, token] = stream[0, token] + delta
            return (stream, *out[1:]) if isinstance(out, tuple) else stream

        handle = block(model, layer).register_forward_hook(add)
        found = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        handle.remove()
        return found

    delta = torch.zeros(model.get_input_embeddings().weight.shape[1], dtype=model.dtype, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.rate)
    usual = None
    essence = (*c.essence, 5, 6)  # what follows the subject cannot reach back
    for step in range(search.steps):
        adam.zero_grad()
        nll = 0.0
        for row, begin, last in zip(c.rows, c.begins, c.subjects, strict=True):
            said = logits(row, last, delta)
            nll = nll - sum(said[i - 1, row[i]] for i in range(begin, len(row))) / (len(row) - begin)
        now = logits(essence, len(c.essence) - 1, delta)[len(c.essence) - 1]
        usual = now.detach() if usual is None else usual
        loss = nll / len(c.rows) + search.kl * (now.exp() * (now - usual)).sum()
        loss = loss + search.decay * delta.norm() / origin[0].norm() ** 2
        if loss < search.stop or step == search.steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        adam.step()
        with torch.no_grad():
            most = search.clamp * origin[0].norm()
            if delta.norm() > most:
                delta *= most / delta.norm()
    return (origin[0] + delta).detach(), step + 1, loss.item()


@torch.no_grad()
def key(model: nn.Module, c: Contexts, layer: int) -> Tensor:
    """The bare prompt weighs 1/2, the others share 1/2."""
    own = [
        at(model, down(model, layer), row, last, "input").double()
        for row, last in zip(c.rows, c.subjects, strict=True)
    ]
    return own[0] if len(own) == 1 else own[0] / 2 + sum(own[1:]) / (len(own) - 1) / 2


@torch.no_grad()
def memit_(
    model: nn.Module, of: Sequence[Contexts], z: Tensor, layers: Sequence[int], moments: Any, weight: float
) -> dict[int, Tensor]:
    """Sheet section 2.6 in float64, written into the model; gives the deltas [D M]."""
    deltas = {}
    for i, layer in enumerate(layers):
        K = torch.stack([key(model, c, layer) for c in of], 1)
        H = torch.stack(
            [at(model, block(model, layers[-1]), c.rows[0], c.subjects[0]).double() for c in of], 1
        )
        R = (z.double().T - H) / (len(layers) - i)
        deltas[layer] = R @ K.T @ torch.linalg.inv(weight * moments[layer] + K @ K.T)
        stored = down(model, layer).weight
        stored += (deltas[layer].T if model.config.model_type == "gpt2" else deltas[layer]).to(stored.dtype)
    return deltas
