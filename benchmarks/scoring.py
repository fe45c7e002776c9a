"""Scores of edits: all records and prompts in batches, against one record at a time, the same numbers from both."""

from collections.abc import Iterator

import torch
from transformers import OlmoConfig, OlmoForCausalLM

from benchmarks.ratio import Ratio, seconds
from kemem.corpora import train_tokenizer
from kemem.editing import Judge, requests
from kemem.world import World

RECORDS, SERIAL = 256, 16
BOUND = 1.0  # batched is to be the faster of the two; the design names no factor


def ratios(*, repeats: int = 5, device: str = "cpu") -> Iterator[Ratio]:
    world = World(people=300)
    tok = train_tokenizer(world.documents(2000), 2048)
    torch.manual_seed(0)
    model = OlmoForCausalLM(
        OlmoConfig(
            vocab_size=50_000, hidden_size=160, intermediate_size=640, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=0,
            pad_token_id=1,
        )
    ).to(device).eval()  # fmt: skip
    records = requests(world.counterfact(RECORDS, 0))[:RECORDS]
    values = []
    for turn in range(repeats):
        own = records[turn * SERIAL % RECORDS :][:SERIAL]
        alone, together = [], []
        slow = seconds(lambda own=own, into=alone: into.extend(Judge(tok, [r])(model) for r in own), device)
        fast = seconds(lambda into=together: into.append(Judge(tok, records)(model)), device)
        begin = records.index(own[0])
        for i, one in enumerate(alone):
            one_by_one, batched = one.values["EM"][0], together[0].values["EM"][begin + i]
            if one_by_one is None or batched is None or abs(one_by_one - batched) > 1e-5:
                raise AssertionError(
                    f"record {begin + i} scores otherwise: what is timed is not the same work"
                )
        values.append((slow / len(own)) / (fast / len(records)))
    yield Ratio(
        "scores of edits: records a second, batched / one at a time", tuple(values), BOUND, "at least"
    )
