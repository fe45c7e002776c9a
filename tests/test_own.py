"""Chapter 16: what a reader brings, from any folder, against the functions that the rows are made of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny

from kemem import entropy
from kemem.cli.chapter import values
from kemem.corpora import train_tokenizer
from kemem.editing import requests as read_requests
from kemem.editing import score
from kemem.errors import BadInput
from kemem.families import LAYOUTS
from kemem.models import load
from kemem.runs import Store
from kemem.studies import own, own_checks, own_rows
from kemem.studies.lab import Lab

TEXTS = ["The tower of Pisa lies in Italy", "", "Rome lies in Europe", "In Spain they live in Old France"] * 6
FACTS = [
    ("Rome lies in", "Rome", "Spain"),
    ("The tower of Pisa lies in", "tower of Pisa", "France"),
    ("They live in Old France in", "Old France", "water"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Stages of a model that knows the first two facts, whatever it knows; a text; requests."""
    root = tmp_path_factory.mktemp("own")
    tok = train_tokenizer([*TEXTS, "They water fire stone"], 61, unit="word")
    records = []
    for step in (20, 3):
        model = tiny("llama", vocab=len(tok), layers=3, seed=step, dtype=torch.float64)
        model.save_pretrained(root / "run" / f"step{step}")
        tok.save_pretrained(root / "run" / f"step{step}")
    model = load(str(root / "run"), revision="step20", device="cpu", dtype="float64")[0]
    for number, (prompt, subject, new) in enumerate(FACTS):
        with torch.no_grad():
            order = model(torch.tensor([tok(prompt)["input_ids"]])).logits[0, -1].argsort(descending=True)
        words = [w for w in tok.convert_ids_to_tokens(order.tolist()) if w.isalpha()]
        likely = tok.convert_ids_to_tokens(int(order[0])) == words[0]
        records.append({
            "case_id": number, "prompt": prompt, "subject": subject, "target_new": new,
            "ground_truth": words[0] if number < 2 and likely else words[-1],
            "rephrase_prompt": prompt,
            "locality": {"neighborhood": {"prompt": "Pisa lies in", "ground_truth": words[1]}},
        })  # fmt: skip
    (root / "facts.json").write_text(json.dumps(records))
    (root / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS if t))
    for family in ("bert", "olmo2", "gpt2"):
        tiny(family, vocab=len(tok)).save_pretrained(root / family)
        tok.save_pretrained(root / family)
    (root / "torn.json").write_text("{")
    (root / "layout.json").write_text('{"block": "model.blocks.{}", "up": "u", "down": "d"}')
    shutil.copytree(root / "gpt2", root / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / "mute" / name).unlink(missing_ok=True)
    return root


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(
        scale="smoke", store=Store(tmp_path / "store"), root=Path(own.__file__).parents[2], device="cpu"
    )


def brought(lab, place, **changes) -> own.Given:
    mine = {"model": f"{place}/run", "text": f"{place}/texts.jsonl", "requests": f"{place}/facts.json"}
    return own.given(lab, **{**mine, **changes})


def test_entropies_are_those_of_measure_at_each_stage(lab, place):
    g = brought(lab, place, instances=5)
    assert g.revisions == ("step3", "step20") and g.texts == tuple(t for t in TEXTS if t)[:5]
    row = own_rows.entropies(lab, g)
    for revision, found in zip(g.revisions, row.values["stages"], strict=True):
        net, tok = load(f"{place}/run", revision=revision, device="cpu", dtype="float64")
        ids = [tok(t, add_special_tokens=False)["input_ids"] for t in g.texts]
        wanted = entropy.measure(net, ids, attention=True)
        assert found["layers"] == pytest.approx(wanted.layers.tolist(), rel=1e-7)
        assert found["revision"] == revision and found["next_token"] == pytest.approx(
            wanted.next_token_entropy
        )
        nats = [net(x := torch.tensor([own]), labels=x).loss.item() * (len(own) - 1) for own in ids]
        assert found["loss"] == pytest.approx(sum(nats) / sum(len(own) - 1 for own in ids), rel=1e-6)
    assert brought(lab, place, revisions="step20").revisions == ("step20",)
    assert brought(lab, place, revisions=["step20", "step3"]).revisions == ("step20", "step3")
    assert [own_rows.place(name, 7.0) for name in ("step20", "main")] == [20.0, 7.0]


def test_rows_know_the_content_and_not_the_name(lab, place, tmp_path):
    row = own_rows.entropies(lab, brought(lab, place))
    shutil.copytree(place / "run", tmp_path / "moved")
    shutil.copy(place / "texts.jsonl", tmp_path / "other.jsonl")
    again = own_rows.entropies(
        lab, brought(lab, place, model=f"{tmp_path}/moved", text=f"{tmp_path}/other.jsonl")
    )
    assert again.digest == row.digest
    tiny("llama", vocab=61, layers=3, seed=9, dtype=torch.float64).save_pretrained(
        tmp_path / "moved" / "step3"
    )
    changed = brought(lab, place, model=f"{tmp_path}/moved")
    assert changed.identities[0] != brought(lab, place).identities[0]
    assert changed.identities[1] == brought(lab, place).identities[1]
    assert own_rows.stages_of(changed) != own_rows.stages_of(brought(lab, place))


def test_known_facts_are_traced_and_requests_are_written(lab, place):
    g = brought(lab, place)
    looked = own_rows.traced(lab, g)
    net, tok = load(f"{place}/run", revision="step20", device="cpu", dtype="float64")
    for fact, asked in zip(g.facts, looked.values["asked"], strict=True):
        with torch.no_grad():
            p = net(torch.tensor([tok(fact.prompt)["input_ids"]])).logits[0, -1].softmax(-1)
        own_p = p[tok(fact.attribute)["input_ids"][0]].item()
        assert asked["p"] == pytest.approx(own_p, rel=1e-6)
        assert asked["known"] == (own_p == p.max().item())
    assert looked.values["known"] == sum(asked["known"] for asked in looked.values["asked"])
    layers = own_rows.layers(g, looked)
    assert layers == (tuple(looked.values["suggested"]) if looked.values["known"] else (0, 1))
    written = own_rows.edited(lab, brought(lab, place, weight=2.0), (1,))
    assert [t["weight"] for t in written.values["tried"]] == [2.0]
    before = score(net, tok, read_requests(f"{place}/facts.json")).summary()
    assert written.values["before"]["ES"] == pytest.approx(before["ES"])
    assert own_rows.best(written) == written.values["tried"][0]
    assert "ES" in own_rows.headline(written)
    several = own_rows.edited(lab, g, (1,)).values["tried"]
    assert [t["weight"] for t in several] == [share * 20 for share in own_rows.SHARES]


def test_what_cannot_be_traced_or_edited_is_said_and_the_rest_runs(lab, place):
    bare = brought(lab, place, requests=None)
    assert (
        bare.requests == ()
        and own_rows.traced(lab, bare) is None
        and own_rows.edited(lab, bare, (0,)) is None
    )
    assert bare.untraceable == bare.uneditable == "No requests were brought."
    masked = brought(lab, place, model=f"{place}/bert", text=f"{place}/texts.jsonl", requests=None)
    assert "fills in masked" in masked.untraceable and "fills in masked" in masked.uneditable
    measured = own_rows.entropies(lab, masked).values
    assert measured["layers"] == 2 and "loss" not in measured["stages"][0]
    normed = brought(lab, place, model=f"{place}/olmo2")
    assert not normed.untraceable and "normalises" in normed.uneditable
    assert brought(lab, place, layers=[0, 2]).layers == (0, 2)
    assert own_rows.layers(brought(lab, place, layers=[2]), None) == (2,)
    assert own_rows.layers(bare, None) == (0, 1)


def test_the_checklist_tells_one_model_from_another(lab, place):
    llama = {what: here for what, here, _ in own_checks.checklist(brought(lab, place))}
    gpt2 = {what: here for what, here, _ in own_checks.checklist(brought(lab, place, model=f"{place}/gpt2"))}
    assert llama["feed-forward layer"] == "gated, silu" and gpt2["feed-forward layer"] == "ungated, gelu_new"
    assert llama["number type of the files"] == "float64" and llama["context"] == "64"
    normed = {
        what: then for what, _, then in own_checks.checklist(brought(lab, place, model=f"{place}/olmo2"))
    }
    assert normed["norm behind it"] == "is not edited by keys"


WRONG = {
    "model": ({"model": "@/nowhere"}, "expected a folder with a model"),
    "no tokenizer": ({"model": "@/mute"}, "expected a tokenizer beside the weights"),
    "revision": ({"revisions": "step7"}, "got revision 'step7'; choose one of step3, step20"),
    "revisions twice": ({"revisions": "step3 step3"}, "revisions are names, each once"),
    "no revision": ({"revisions": " "}, "revisions are names, each once"),
    "text": ({"text": "@/none.jsonl"}, "exists; got @/none.jsonl"),
    "text by a name like a scheme": ({"text": "worlds.jsonl"}, "exists; got worlds.jsonl"),
    "text of another kind": ({"text": "@/run"}, "got none in @/run"),
    "requests": ({"requests": "@/none.json"}, "@/none.json"),
    "requests that do not parse": ({"requests": "@/torn.json"}, "@/torn.json"),
    "layout": ({"layout": "@/none.json"}, "expected a layout as JSON in @/none.json"),
    "layout that does not fit": (
        {"model": "@/gpt2", "layout": "@/layout.json"},
        "got 'gpt2', which has another one",
    ),
    "layer": ({"layers": [9]}, "a layer in 0..2; got 9"),
    "layers": ({"layers": [2, 1]}, "expected layers that ascend; got [2, 1]"),
    "layers by name": ({"layers": "all"}, "layers are whole numbers"),
    "weight": ({"weight": 0}, "weight is a number above 0; got 0"),
    "facts": ({"facts": 0}, "facts is a number of requests, 1 or more; got 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_before_any_weights_are_read(case, lab, place, monkeypatch):
    monkeypatch.setattr("kemem.families.LAYOUTS", dict(LAYOUTS))
    monkeypatch.setattr("kemem.models.load", lambda *_, **__: pytest.fail("weights were read"))
    changes, said = WRONG[case]
    changes = {n: v.replace("@", str(place)) if isinstance(v, str) else v for n, v in changes.items()}
    with pytest.raises(BadInput) as error:
        brought(lab, place, **changes)
    assert said.replace("@", str(place)) in str(error.value) and "\n" not in str(error.value)


def test_a_subject_that_is_not_in_its_prompt_is_refused(lab, place, tmp_path):
    record = json.loads((place / "facts.json").read_text())[0] | {"subject": "Paris"}
    (tmp_path / "facts.json").write_text(json.dumps([record]))
    with pytest.raises(BadInput, match="'Paris'"):
        brought(lab, place, requests=f"{tmp_path}/facts.json")


def test_run_hands_places_over_from_where_it_was_called(place, monkeypatch):
    monkeypatch.chdir(place)
    given = values(
        ["model=run", "text=texts.jsonl", "requests=facts.json", "revisions=step3 step20", "layout=1"]
    )
    assert given["model"] == [f"{place}/run"] and given["text"] == [f"{place}/texts.jsonl"]
    assert given["revisions"] == ["step3 step20"] and given["layout"] == ["1"]
    assert values(["text=hub:c4:limit=5,split=train"]) == {"text": ["hub:c4:limit=5,split=train"]}
    assert values(["model=gpt2-xl"]) == {"model": ["gpt2-xl"]}
