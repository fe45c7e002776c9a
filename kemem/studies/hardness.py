"""Chapter 13: what facts of one relation are like, before any is written: what could tell how hard they are to write.

One row a draw of facts: how many facts of each relation the model knows, and the predictors of those with enough.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kemem import editing, models
from kemem.editing import KnownFact, Request
from kemem.editing.effects import Restored, Runs, questions, standard_noise
from kemem.editing.facts import filled
from kemem.editing.moments import invertible
from kemem.editing.places import leading, place
from kemem.editing.scores import Readings
from kemem.editing.stepping import Beginning
from kemem.errors import BadInput
from kemem.evaluation import encode, evaluating
from kemem.memory import Memories
from kemem.runs import Row
from kemem.studies import bench, many
from kemem.studies.bench import Bench
from kemem.studies.many import Benches, Many
from kemem.studies.methods import Trained
from kemem.studies.pretraining import Pretraining
from kemem.world.draws import Draws

STUDY, VERSION = "hardness", 1
PREDICTORS = {
    "prior": "how likely the new object is for other subjects",
    "certainty": "how sure the model is of the true object",
    "candidates": "number of possible objects (log)",
    "length": "tokens of the new object",
    "neighbours": "likeness of keys to neighbours' keys",
    "subjects": "likeness of the edited keys to each other",
    "site": "share of the traced effect at the subject's last token",
}


@dataclass(frozen=True)
class Hardness:
    """What relations are like, measured on the facts that are then written; those the model knows enough facts of."""

    model: Pretraining
    layers: tuple[int, ...] = (0, 1)
    count: int = 24
    """Facts of a relation that are written, and that it must have among the reported ones that the model knows."""
    most: int = 24
    """Relations at most: those of which the most facts are known."""
    others: int = 8
    """Other subjects after which an object's prior is read, and neighbours whose keys are compared, for each fact."""
    traced: int = 6
    samples: int = 4
    texts: int = 2000
    dtype: str | None = None
    seed: int = 0


def written(
    s: Hardness, relations: tuple[str, ...], count: int, part: str = "reported", method: str = many.NONE,
    value: float = 0.0, mend: Trained | None = None, clamp: float = 1.0,
) -> Many:  # fmt: skip
    """A row on facts of these relations, as many from each; by default nothing is written."""
    layers = mend.layers if mend else s.layers
    return Many(
        s.model, method, value, count, layers, clamp=clamp, part=part, relations=relations, texts=s.texts, mend=mend,
        dtype=s.dtype, seed=s.seed,
    )  # fmt: skip


def measured(benches: Benches, s: Hardness) -> Row:
    """The row: how many facts of each relation the model knows, and the predictors of those with enough of them."""
    lab = benches.lab

    def compute(provenance: dict[str, Any]) -> dict[str, Any]:
        at = benches.at(written(s, (), 1))
        provenance["moments"] = {"tokens": at.moments.tokens}
        invertible(at.moments, s.layers)
        counts = {part: counted(at, part, s.seed) for part in ("tuning", "reported")}
        names = enough(counts["reported"], s.count, s.most)
        facts = {name: benches.requests(written(s, (name,), s.count)) for name in names}
        noise = editing.noise_scale(at.model, at.tok, [traced(r) for own in facts.values() for r in own])
        found = {}
        for done, (name, own) in enumerate(facts.items()):
            found[name] = {
                "prior": prior(at, own, s.others, s.seed), **plain(at, own), **overlap(at, own, s),
                "site": site(at, own[: s.traced], s, noise),
            }  # fmt: skip
            if lab.progress is not None:
                lab.progress(done + 1, len(facts), f"what facts of {name} are like")
        return {"known": counts, "relations": found}

    return lab.store.row(STUDY, VERSION, s, compute, device=models.named_device(lab.device).type)


def counted(at: Bench, part: str, seed: int) -> dict[str, int]:
    """Facts that the model says by itself, by relation."""
    asked = at.source.requests(None, seed, part=part)
    return dict(sorted(Counter(r.relation or "" for r in bench.said(at, asked)).items()))


def enough(counts: Mapping[str, int], least: int, most: int) -> list[str]:
    """Names of the relations with `least` known facts or more, those with the most first; refused where none has."""
    names = [n for n in sorted(counts, key=lambda n: (-counts[n], n)) if counts[n] >= least][:most]
    if not names:
        raise BadInput(f"expected a relation with {least} known facts; got none; compare fewer facts.")
    return names


def prior(at: Bench, requests: Sequence[Request], others: int, seed: int) -> float | None:
    """Mean of log p(new) - log p(true), nats a token, in the request's words about subjects that neither is true of."""
    start = leading(at.tok)
    spans = []
    for r in requests:
        facts = Draws(at.world.seed, "prior", seed, r.subject, r.relation).shuffled(
            at.world.facts(relation=r.relation)
        )
        drawn = [f for f in facts if f.subject != r.subject and not {r.new, r.true} & set(f.objects)]
        for f in drawn[:others]:
            text = filled(r.prompt, f.subject)
            spans += [encode(at.tok, text, f" {o}", start=start) for o in (r.new, r.true or "")]
    if not spans:
        return None
    new, true = Readings(spans)(at.model)[0].view(-1, 2).T
    return (true - new).mean().item()


def plain(at: Bench, requests: Sequence[Request]) -> dict[str, float]:
    """log p of the true object, nats a token; log of how many objects there are; tokens of the new one: means."""
    start = leading(at.tok)
    true = [encode(at.tok, r.text, f" {r.true}", start=start) for r in requests]
    new = [encode(at.tok, r.text, f" {r.new}", start=start) for r in requests]
    facts = [at.world.fact(r.subject, r.relation or "") for r in requests]
    rivals = [math.log(len(at.world.candidates(fact))) for fact in facts if fact is not None]
    return {
        "certainty": -Readings(true)(at.model)[0].mean().item(),
        "candidates": math.fsum(rivals) / len(rivals),
        "length": sum(len(span.target) for span in new) / len(new),
    }


def overlap(at: Bench, requests: Sequence[Request], s: Hardness) -> dict[str, float]:
    """Mean cosine of keys a, b in the metric of the editor, a C^-1 b / (|a| |b|) with |a|^2 = a C^-1 a.

    neighbours: of a subject's key with those of subjects that share its true object, mean over facts; subjects: of
    the facts' own keys with each other, mean over pairs. Both on average over the edited layers.
    """
    memories = Memories(at.model)
    rows, owner = [], []
    for number, r in enumerate(requests):
        fact = at.world.fact(r.subject, r.relation or "")
        near = at.world.neighbours(fact, r.true)[: s.others] if fact is not None else []
        for subject in (r.subject, *(f.subject for f in near)):
            read = place(at.tok, r.prompt, subject, case_id=r.case_id)
            rows.append(read.ids[: read.last + 1])
            owner.append(number)
    own = [i for i, number in enumerate(owner) if number not in owner[:i]]
    begin = Beginning(memories, rows)
    near_by, apart = [], []
    for layer in s.layers:
        keys = begin.coefficients(layer).double()[begin.index]
        white = torch.linalg.solve_triangular(at.moments.factor(layer), keys.T, upper=False).T
        white = torch.nn.functional.normalize(white, dim=-1)
        cosines = white @ white.T
        for i in own:
            group = [j for j, number in enumerate(owner) if number == owner[i] and j != i]
            near_by.append(cosines[i, group].mean().item())
        pairs = cosines[own][:, own]
        apart.append(((pairs.sum() - pairs.trace()) / (len(own) * (len(own) - 1))).item())
    return {"neighbours": math.fsum(near_by) / len(near_by), "subjects": math.fsum(apart) / len(apart)}


def traced(r: Request) -> KnownFact:
    return KnownFact(r.case_id, r.text, r.subject, r.true or "", r.relation)


def site(at: Bench, requests: Sequence[Request], s: Hardness, noise: float) -> float:
    """Of what states of the edited layers bring back at each token from the subject on, the share at its last token.

    Effects are those of causal tracing, on average over the noise; what is below 0 counts as nothing. The share is
    one of sums over facts and layers, 0 where nothing is brought back.
    """
    runs = Runs(at.model)
    last = whole = 0.0
    with evaluating(at.model):
        for each in questions(at.tok, [traced(r) for r in requests]):
            clean = runs.clean(each)
            drawn = noise * standard_noise(each, s.samples, runs.memories.width, s.seed)
            run = runs.corrupted(clean, drawn)
            tokens = range(each.place.first, len(each.place))
            parts = [Restored("state", (layer,), (token,)) for token in tokens for layer in s.layers]
            effects = (runs.restored(run, parts).mean(1) - run.probabilities.mean()).clamp(min=0)
            effects = effects.view(len(tokens), len(s.layers)).sum(1)
            last += effects[each.place.last - each.place.first].item()
            whole += effects.sum().item()
    return last / whole if whole else 0.0
