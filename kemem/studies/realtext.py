"""Chapter 03: two more models, trained on novels and abstracts through OLMo's own tokenizer, and their entropy.

Their rows are recorded, since few readers have the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kemem.runs import Row, Store
from kemem.studies import pool, pretraining, stages
from kemem.studies.lab import Lab, Result
from kemem.studies.pretraining import Pretraining
from kemem.studies.setup import Setup

STUDY, VERSION, CHAPTER = stages.STUDY, stages.VERSION, stages.CHAPTER

NOVELS = "files:$KEMEM_DATA/pretrain/novels_100_english.jsonl.gz"
PUBMED = "files:$KEMEM_DATA/domains/pubmed_abstracts.jsonl.gz"
OTHERS = {  # read by neither model in training
    "Wikipedia": "files:$KEMEM_DATA/pretrain/squad_contexts.jsonl.gz",
    "speeches": "files:$KEMEM_DATA/pretrain/presidential_speeches.jsonl.gz",
}
REAL_TEXT = Pretraining(
    pretraining.LAPTOP.with_(
        corpus=f"{NOVELS}+{PUBMED}",
        tokenizer="$KEMEM_DATA/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json",
        vocabulary=50280,
        steps=800,
        weight_decay=3.6,
    ),
    prompts=("He looked at her and",),
)
REAL: dict[str, dict[str, Pretraining]] = {
    "laptop": {
        "weight decay": REAL_TEXT,
        "no weight decay": replace(REAL_TEXT, setup=REAL_TEXT.setup.with_(weight_decay=0.0)),
    },
}
"""Models trained on novels and abstracts, by scale; their rows are recorded, since few readers have the files."""


def settings(scale: str) -> dict[str, dict[str, stages.Measured]]:
    """Arm -> text -> what is measured: two seen kinds of text (their held-out part) and two unseen ones."""
    sizes = stages.SCALES[scale]
    found: dict[str, dict[str, stages.Measured]] = {}
    for name, model in REAL.get(scale, {}).items():
        common = stages.Measured(
            model, tuple(f"step{step}" for step in model.steps), "", instances=sizes.instances, length=sizes.length,
            attention=True,
        )  # fmt: skip
        found[name] = {
            "novels": replace(common, corpus=NOVELS),
            "PubMed abstracts": replace(common, corpus=PUBMED),
            **{text: replace(common, corpus=spec, part="all") for text, spec in OTHERS.items()},
        }
    return found


def rows(lab: Lab) -> dict[str, dict[str, Row]]:
    """Their rows, recorded; empty at scales that have none."""
    asked = settings(lab.scale)
    # arms innermost: neighbours in the pool then wait for different models to be trained, not for one
    places = [(name, text) for text in next(iter(asked.values()), {}) for name in asked]
    found = dict(
        zip(places, pool.rows(lab, [(stages.recorded, (asked[n][t],)) for n, t in places]), strict=True)
    )
    return {name: {text: found[name, text] for text in texts} for name, texts in asked.items()}


def time_constants(rows: Mapping[str, Row]) -> float:
    """Of AdamW's decay, over the run of the one model of ours that these rows measure."""
    (found,) = {Setup(**row.settings["model"]["setup"]).recipe().time_constants for row in rows.values()}
    return found


# ---------------------------------------------------------------------- numbers for prose
def results(store: Store, scale: str) -> dict[str, Result]:
    """Late change of H of each arm on each text, by name: `real.weight decay.novels`."""
    found: dict[str, Result] = {}
    for name, asked in settings(scale).items():
        for text, one in asked.items():
            row = store.find(STUDY, VERSION, one, recorded=True)
            if row is not None:
                provenance = {"study": STUDY, "digest": row.digest, "origin": row.origin, **row.provenance}
                found[f"real.{name}.{text}"] = Result(stages.late(row), "nats", provenance)
    return found
