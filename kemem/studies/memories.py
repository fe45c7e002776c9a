"""Chapter 01: the feed-forward layers of a trained model, read as memories.

One row: equation 1 checked on the live model, how many memories carry an output, what single memories fire on, which
tokens they write, and whether removing one does what its value says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import entropy, models, trace
from kemem.corpora import instances
from kemem.memory import Memories
from kemem.runs import Row, Store
from kemem.studies import checkpoints, pretraining
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import read, spread

STUDY = "memories"
VERSION = 1
CHAPTER = "01_memories"


@dataclass(frozen=True)
class Looking:
    """What is looked at: the last stage of chapter 02's model on held-out text."""

    model: Pretraining
    instances: int = 192
    length: int = 96
    shown: int = 2
    """Memories a layer of which contexts and tokens are shown: the most selective ones."""
    contexts: int = 5
    tokens: int = 6
    removed: int = 48
    """Memories a layer that are removed, each at the place where it fires most."""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    dtype: str = "float32"
    seed: int = 0


SIZES = {
    "smoke": {"instances": 24, "length": 48, "removed": 8, "dtype": "float64"},
    "gpu": {"length": 512, "instances": 48},
    "paper": {"length": 256, "instances": 24},  # all coefficients are kept: three gigabytes
}


def settings(scale: str, *, seed: int = 0, dtype: str | None = None, device: str | None = None) -> Looking:
    changes = {**SIZES.get(scale, {}), **({} if dtype is None else {"dtype": dtype})}
    return Looking(pretraining.settings(scale, seed=seed, device=device), seed=seed, **changes)


def run(lab: Lab, s: Looking) -> Row:
    """The chapter's row: everything it shows, texts included."""

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        model, tok, found = checkpoints.load(lab, s.model, s.model.steps[-1], dtype=s.dtype)
        text = read(s.model.setup.corpus)
        provenance["corpus"] = {"spec": text.spec, "digest": text.digest, "versions": text.versions}
        provenance["checkpoints"] = found.origin
        long = [
            t for t in text.part("test") if len(t) >= 3 * s.length
        ]  # a token has about four letters, at least
        rows = instances(spread(long, 2 * s.instances), tok, s.length).ids
        ids = torch.tensor([row for row in rows if len(row) == s.length][: s.instances])
        fired = coefficients(model, ids)
        memories = Memories(model)
        shown = {layer: selective(fired[layer], s.shown) for layer in range(memories.layers)}
        return {
            "layers": memories.layers, "memories": memories.count, "width": memories.width, "tokens": ids.numel(),
            "identity": identity(model, ids[:8]),
            "negative": [float((c < 0).double().mean()) for c in fired],
            "carried": carried(memories, fired, s.ranks),
            "entropies": [entropies(c) for c in fired],
            "shown": [
                {
                    "layer": layer, "memory": int(i), "contexts": contexts(tok, ids, fired[layer][..., i], s.contexts),
                    "writes": writes(model, tok, layer, int(i), fired[layer][..., i], s.tokens),
                }
                for layer, chosen in shown.items() for i in chosen
            ],
            "promoted": [promoted(model, ids, layer, fired[layer]) for layer in range(memories.layers)],
            "removed": [removal(model, ids, layer, fired[layer], s.removed) for layer in range(memories.layers)],
        }  # fmt: skip

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def coefficients(model: nn.Module, ids: Tensor, *, batch: int = 32) -> list[Float[Tensor, "N T M"]]:
    """The coefficients of every layer at every token of some texts, on the CPU. For few texts: it keeps them all."""
    memories = Memories(model)
    kept: list[list[Tensor]] = [[] for _ in range(memories.layers)]
    device = next(model.parameters()).device
    with torch.no_grad(), memories.coefficients(lambda layer, c: kept[layer].append(c.cpu())):
        for rows in ids.split(batch):
            model(rows.to(device))
    return [torch.cat(c) for c in kept]


def identity(model: nn.Module, ids: Tensor) -> list[float]:
    """Equation 1 on a running model: largest error of sum_i c_i v_i (+ bias) against what the layer put out.

    Summed memory by memory, so that it is not the model's own matrix product; relative to the largest output.
    """
    memories = Memories(model)
    places = [memories.down_path(layer) for layer in range(memories.layers)]
    with torch.no_grad(), trace.record(model, places, side="input") as c, trace.record(model, places) as out:
        model(ids.to(memories.values(0).device))
    errors = []
    for layer, place in enumerate(places):
        coefficients, output = c[place][0], out[place][0]  # [N T M], [N T D]
        written = torch.zeros_like(output)
        for i in range(memories.count):
            written += coefficients[..., i, None] * memories.values(layer)[:, i]  # c_i v_i
        if (bias := memories.bias(layer)) is not None:
            written += bias
        errors.append(float((written - output).abs().max() / output.abs().max()))
    return errors


def carried(memories: Memories, fired: list[Tensor], ranks: tuple[int, ...]) -> dict[str, list[float]]:
    """Share of an output that its k largest coefficients leave out, by layer: mean of |rest| / |output| over tokens."""
    table: dict[str, list[float]] = {}
    for layer, c in enumerate(fired):
        values = memories.values(layer).cpu()
        flat = c.flatten(0, 1)[::7].to(values.dtype)  # every seventh token is enough for a mean
        order = flat.abs().argsort(-1, descending=True)
        whole = flat @ values.T
        for k in (k for k in ranks if k <= c.shape[-1]):
            part = torch.zeros_like(flat).scatter(-1, order[:, :k], flat.gather(-1, order[:, :k]))
            rest = (whole - part @ values.T).norm(dim=-1) / whole.norm(dim=-1)
            table.setdefault(str(k), []).append(float(rest.mean()))
    return table


def entropies(c: Float[Tensor, "N T M"]) -> dict[str, float]:
    """Entropy of the mean use of memories, and mean entropy of the use at one token: two different things."""
    use = c.abs().double()
    return {
        "of_mean": float(entropy.layer_entropy(use.mean((0, 1)))),
        "mean_of": float(entropy.layer_entropy(use).mean()),
    }


def selective(c: Float[Tensor, "N T M"], count: int) -> list[int]:
    """Memories used at least as much as the median whose twenty strongest firings stand highest above their mean."""
    use = c.flatten(0, 1).abs()  # [NT M]
    mean = use.mean(0)
    peak = use.topk(min(20, len(use)), dim=0).values.mean(0) / mean
    peak[mean < mean.median()] = 0.0
    return peak.topk(min(count, len(peak))).indices.tolist()


def strongest(c: Float[Tensor, "N T"], count: int) -> list[tuple[int, int]]:
    """(text, place) of the strongest firings of one memory, one a text, none at the last token."""
    values, places = c[:, :-1].abs().max(1)
    rows = values.topk(min(count, len(values))).indices.tolist()
    return [(row, int(places[row])) for row in rows]


def contexts(tok: Any, ids: Tensor, c: Float[Tensor, "N T"], count: int) -> list[dict[str, Any]]:
    """Where a memory fires most: the text before, the token it fires on, the token that follows."""
    found = []
    for row, place in strongest(c, count):
        before = ids[row, max(0, place - 8) : place].tolist()
        found.append({
            "before": _plain(tok.decode(before)), "at": _plain(tok.decode([int(ids[row, place])])),
            "next": _plain(tok.decode([int(ids[row, place + 1])])), "coefficient": float(c[row, place]),
        })  # fmt: skip
    return found


def lens(model: nn.Module, layer: int) -> Float[Tensor, "V M"]:
    """What each value writes if it went straight to the vocabulary: W_U v_i, less its mean over tokens."""
    direct = model.get_output_embeddings().weight.detach() @ Memories(model).values(layer)
    return (direct - direct.mean(0)).cpu()


def writes(
    model: nn.Module, tok: Any, layer: int, memory: int, c: Float[Tensor, "N T"], count: int
) -> list[str]:
    """The tokens that a memory raises most where it fires most (a negative coefficient turns its value round)."""
    row, place = strongest(c, 1)[0]
    scores = lens(model, layer)[:, memory] * torch.sign(c[row, place])
    return [_plain(tok.decode([int(i)])) for i in scores.topk(count).indices]


def promoted(
    model: nn.Module, ids: Tensor, layer: int, c: Float[Tensor, "N T M"], *, top: int = 10, places: int = 20
) -> dict[str, float]:
    """How often the token that really follows is among the `top` that the firing memory writes, and by chance.

    Over all memories at their strongest firings; chance: the same places with the next memory's value in its stead.
    """
    scores = lens(model, layer)  # [V M]
    hits = {1: scores.topk(top, dim=0).indices, -1: (-scores).topk(top, dim=0).indices}  # [top M]
    found = {"hit": 0, "chance": 0, "asked": 0}
    count = c.shape[-1]
    for memory in range(count):
        for row, place in strongest(c[..., memory], places):
            following = int(ids[row, place + 1])
            sign = 1 if c[row, place, memory] > 0 else -1
            found["hit"] += int((hits[sign][:, memory] == following).any())
            found["chance"] += int((hits[sign][:, (memory + 1) % count] == following).any())
            found["asked"] += 1
    return {"hit": found["hit"] / found["asked"], "chance": found["chance"] / found["asked"]}


def removal(
    model: nn.Module, ids: Tensor, layer: int, c: Float[Tensor, "N T M"], count: int
) -> dict[str, list[float]]:
    """Remove single memories where they fire most: the change of a logit that the value foretells, and the one seen.

    Foretold: -c_i (W_U v_i)_t at the token t that the memory raises most, with the final norm taken as fixed. The final
    norm's scale is that of the unchanged pass: exact for what goes straight to the output, blind to later layers.
    """
    memories = Memories(model)
    scores, device = lens(model, layer), next(model.parameters()).device
    place_of = memories.down_path(layer)
    peaks = c.flatten(0, 1).abs().max(0).values
    foretold, seen = [], []
    for memory in peaks.topk(min(count, len(peaks))).indices.tolist():
        ((row, place),) = strongest(c[..., memory], 1)
        text = ids[row : row + 1, : place + 1].to(device)
        strength = float(c[row, place, memory])
        token = int((scores[:, memory] * strength).argmax())

        def without(coefficients: Tensor, memory: int = memory) -> Tensor:
            changed = coefficients.clone()
            changed[:, -1, memory] = 0
            return changed

        norm = memories.block_path(0).rpartition(".layers")[0] + ".norm"
        with torch.no_grad():
            with trace.record(model, [norm], side="input") as final:
                before = model(text).logits[0, -1].double()
            with trace.replace(model, {place_of: without}, side="input"):
                after = model(text).logits[0, -1].double()
        stream = final[norm][0][0, -1].double()
        scale = (stream - stream.mean()).square().mean().sqrt()
        foretold.append(float(-strength * scores[token, memory] / scale))
        change = (after - before) - (after - before).mean()
        seen.append(float(change[token]))
    return {"foretold": foretold, "seen": seen}


def _plain(text: str) -> str:
    return text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def results(store: Store, scale: str) -> dict[str, Result]:
    """Numbers of the scale's row, by name."""
    row = store.find(STUDY, VERSION, settings(scale))
    if row is None:
        return {}
    v = row.values
    numbers: dict[str, tuple[Any, str]] = {
        "identity": (max(v["identity"]), ""),
        "negative": (100 * sum(v["negative"]) / len(v["negative"]), "%"),
        "hit.last": (100 * v["promoted"][-1]["hit"], "%"),
        "chance.last": (100 * v["promoted"][-1]["chance"], "%"),
        "agreement.first": (agreement(v["removed"][0]), ""),
        "agreement.last": (agreement(v["removed"][-1]), ""),
        "tokens": (v["tokens"], "tokens"),
    }
    provenance = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
    return {f"memories.{k}": Result(value, unit, provenance) for k, (value, unit) in numbers.items()}


def agreement(removed: dict[str, list[float]]) -> float:
    """Correlation of the foretold and the seen changes."""
    both = torch.tensor([removed["foretold"], removed["seen"]], dtype=torch.float64)
    return float(torch.corrcoef(both)[0, 1])
