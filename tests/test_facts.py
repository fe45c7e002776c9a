"""Requests and known facts: read from records written out here, refused where they are malformed or conflict."""

import gzip
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kemem.editing.facts import KnownFact, Request, check, conflicts, filled, mention, without_conflicts
from kemem.editing.readers import known_facts, requests
from kemem.errors import BadInput
from kemem.world import World

REAL = pytest.mark.skipif(
    not os.environ.get("KEMEM_DATA"),
    reason="needs the published files: set KEMEM_DATA to the folder with them",
)
ORIGINALS, REBUILT = "counterfact/counterfact_500.json", "counterfact/counterfact_rebuilt.json.gz"
FLATTENED, QUESTIONS = "counterfact/counterfact-edit.json", "zsre/zsre_mend_train-500.json"
COUNTS = {ORIGINALS: 500, REBUILT: 10_000, FLATTENED: 10_000, QUESTIONS: 500}

ORIGINAL: dict[str, Any] = {
    "case_id": 20952,
    "pararel_idx": 5151,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "relation_id": "P30",
        "target_new": {"str": "Antarctica", "id": "Q51"},
        "target_true": {"str": "Africa", "id": "Q15"},
        "subject": "Angola",
    },
    "paraphrase_prompts": ["Words. Angola belongs to", "Angola is a part of"],
    "neighborhood_prompts": ["Ghana is in", "Mali is in", "Chad is in"],
    "attribute_prompts": ["Ross Island is located in"],
    "generation_prompts": ["Around Angola", "Around Angola"],
}
FLAT: dict[str, Any] = {
    "case_id": 14,
    "prompt": "The mother tongue of Go is",
    "target_new": "French",
    "subject": "Go",
    "ground_truth": "Korean",
    "rephrase_prompt": "Where Go is from, people speak",
    "locality_prompt": "Kwon, speaker of",
    "locality_ground_truth": "Korean",
}
QUESTION: dict[str, Any] = {
    "subject": "UniFirst",
    "src": "What is made by UniFirst, UniFirst of old?",
    "pred": "rope",
    "rephrase": "What does UniFirst make?",
    "alt": "drones",
    "answers": ["uniform", "coat"],
    "loc": "nq question: who plays walter",
    "loc_ans": "John Goodman",
    "cond": "rope >> drones || What is made by UniFirst?",
}
KNOWN: dict[str, Any] = {
    "known_id": 7,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica.",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}


def changed(record: dict[str, Any], path: str, *value: Any) -> dict[str, Any]:
    """A copy with one field, of dotted path, put to a value, or left out."""
    copy = json.loads(json.dumps(record))
    *outer, last = path.split(".")
    inside = copy
    for name in outer:
        inside = inside[name]
    if value:
        inside[last] = value[0]
    else:
        del inside[last]
    return copy


def request(case_id: int | str = 0, **parts: Any) -> Request:
    return Request(case_id, **{"prompt": "{} is in", "subject": "Ur", "new": "Oslo", **parts})


# ---------------------------------------------------------------------- one record of each schema
def test_original_counterfact():
    assert requests([ORIGINAL]) == (
        Request(
            case_id=20952,
            prompt="{} is located in",
            subject="Angola",
            new="Antarctica",
            true="Africa",
            relation="P30",
            paraphrases=("Words. Angola belongs to", "Angola is a part of"),
            neighbours=("Ghana is in", "Mali is in", "Chad is in"),
            attributes=("Ross Island is located in",),
            generation=("Around Angola", "Around Angola"),
            locality=(),
            new_id="Q51",
        ),
    )


def test_flat_counterfact_takes_the_other_prompt_for_a_neighbour_where_it_has_the_true_object():
    near = Request(
        case_id=14,
        prompt="The mother tongue of {} is",
        subject="Go",
        new="French",
        true="Korean",
        paraphrases=("Where Go is from, people speak",),
        neighbours=("Kwon, speaker of",),
    )
    assert requests([FLAT]) == (near,)
    (far,) = requests([changed(FLAT, "locality_ground_truth", "Thai")])
    assert (far.neighbours, far.locality) == ((), (("Kwon, speaker of", "Thai"),))
    (unknown,) = requests([changed(FLAT, "ground_truth")])
    assert (unknown.true, unknown.locality) == (None, (("Kwon, speaker of", "Korean"),))


def test_zsre_asks_for_its_first_answer_and_replaces_the_first_mention():
    assert requests([QUESTION, changed(QUESTION, "answers", ["a"])]) == tuple(
        Request(
            case_id=number,
            prompt="What is made by {}, UniFirst of old?",
            subject="UniFirst",
            new=new,
            true=None,
            paraphrases=("What does UniFirst make?",),
            locality=(("nq question: who plays walter?", "John Goodman"),),
        )
        for number, new in ((0, "uniform"), (1, "a"))
    )


def test_known_fact():
    prompt = "Vinson Massif is located in the continent of"
    want = KnownFact(7, prompt, "Vinson Massif", "Antarctica", "P30")
    assert known_facts([KNOWN]) == (want,)
    bare = changed(changed(KNOWN, "known_id"), "relation_id")
    assert known_facts([KNOWN, bare])[1] == KnownFact(1, prompt, "Vinson Massif", "Antarctica")


def test_what_is_optional_may_be_absent_empty_or_null():
    families = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
    for value in ((), ([],), (None,)):
        record = ORIGINAL
        for field in families:
            record = changed(record, field, *value)
        (found,) = requests([record])
        assert found.paraphrases == found.neighbours == found.attributes == found.generation == ()
    for path in ("relation_id", "target_true", "target_new.id"):
        (found,) = requests([changed(ORIGINAL, f"requested_rewrite.{path}", None)])
        assert [found.relation, found.true, found.new_id].count(None) == 1
    (found,) = requests([changed(changed(FLAT, "rephrase_prompt"), "locality_prompt", "")])
    assert (found.paraphrases, found.neighbours, found.locality) == ((), (), ())
    (found,) = requests([changed(changed(QUESTION, "rephrase", ""), "loc")])
    assert (found.paraphrases, found.locality) == ((), ())


def test_case_ids_are_kept_or_counted_from_0_over_the_whole_file():
    own = [changed(ORIGINAL, "case_id", n) for n in (5, "b")]
    assert [r.case_id for r in requests(own)] == [5, "b"]
    bare = [
        changed(changed(ORIGINAL, "case_id"), "requested_rewrite.relation_id", name)
        for name in ("P1", "P2", "P1")
    ]
    assert [r.case_id for r in requests(bare, relation="P1")] == [0, 2]
    assert [r.case_id for r in requests(bare, relation="P1", limit=1)] == [0]
    assert [r.case_id for r in requests(bare, limit=2)] == [0, 1]


def test_a_schema_that_is_given_is_not_guessed():
    both = {**FLAT, **QUESTION, "src": "By whom is Go made?", "subject": "Go"}
    assert requests([both])[0].new == "uniform"
    assert requests([both], schema="zsre") == requests([both])
    assert requests([both], schema="easyedit")[0].new == "French"


# ---------------------------------------------------------------------- where records come from
RECORDS = [ORIGINAL, changed(changed(ORIGINAL, "case_id", 3), "requested_rewrite.subject", "Élisée 中文")]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl", "a.JSONL.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files(tmp_path, monkeypatch, name, mark):
    lines = "\r\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS) + "\n\n"
    text = mark + (lines if "jsonl" in name.lower() else json.dumps(RECORDS))
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert requests(tmp_path / name) == requests(str(tmp_path / name)) == requests(RECORDS)
    monkeypatch.setenv("KEMEM_DATA", str(tmp_path))
    assert requests(f"$KEMEM_DATA/{name}", limit=1) == requests(iter(RECORDS))[:1]


def test_a_data_set_of_the_hub(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    assert requests(f"hub:{tmp_path}") == requests(RECORDS)
    with pytest.raises(BadInput, match="at most 2, all there are of hub:"):
        requests(f"hub:{tmp_path}", limit=3)


# ---------------------------------------------------------------------- bad input
REWRITE = "requested_rewrite"
MALFORMED = {
    "not an object": ([ORIGINAL, "text"], {}, "must be an object; got str in number 1"),
    "no rewrite": ([ORIGINAL, changed(ORIGINAL, REWRITE)], {}, "'requested_rewrite'.*no such field in case 20952"),
    "rewrite is text": ([ORIGINAL, changed(ORIGINAL, REWRITE, "x")], {}, "'requested_rewrite'.*got str in case"),
    "no prompt": ([changed(ORIGINAL, f"{REWRITE}.prompt")], {}, "'prompt'.*requested_rewrite of case 20952"),
    "no subject": ([changed(ORIGINAL, f"{REWRITE}.subject")], {}, "'subject'.*requested_rewrite of case 20952"),
    "prompt is a list": ([changed(ORIGINAL, f"{REWRITE}.prompt", ["{}"])], {}, "'prompt' must be a string; got list"),
    "no target": ([changed(ORIGINAL, f"{REWRITE}.target_new")], {}, "'target_new'.*no such field.*case 20952"),
    "target is text": ([changed(ORIGINAL, f"{REWRITE}.target_new", "x")], {}, "'target_new'.*got str.*case 20952"),
    "target of no text": ([changed(ORIGINAL, f"{REWRITE}.target_new.str")], {}, "'str'.*target_new.*case 20952"),
    "true is text": ([changed(ORIGINAL, f"{REWRITE}.target_true", "x")], {}, "'target_true'.*got str.*case 20952"),
    "true of no text": ([changed(ORIGINAL, f"{REWRITE}.target_true.str")], {}, "'str'.*target_true.*case 20952"),
    "id is a number": ([changed(ORIGINAL, f"{REWRITE}.target_new.id", 5)], {}, "'id'.*got int.*case 20952"),
    "relation is a number": ([changed(ORIGINAL, f"{REWRITE}.relation_id", 5)], {}, "'relation_id'.*got int"),
    "prompts are text": ([changed(ORIGINAL, "attribute_prompts", "x")], {}, "'attribute_prompts'.*list.*got str"),
    "a prompt is null": ([changed(ORIGINAL, "generation_prompts", ["x", None])], {},
                         "'generation_prompts'.*NoneType in case 20952, number 2"),
    "half a character": ([changed(ORIGINAL, "generation_prompts", ["x", "\ud800"])], {}, "surrogate.*number 2"),
    "case is true": ([changed(ORIGINAL, "case_id", True)], {}, "'case_id' must be a number or a name; got bool"),
    "case is a list": ([changed(ORIGINAL, "case_id", [1])], {}, "'case_id'.*got list in record number 0"),
    "flat without target": ([FLAT, changed(FLAT, "target_new")], {}, "'target_new'.*in case 14"),
    "flat without subject": ([changed(FLAT, "subject")], {}, "'subject'.*in case 14"),
    "flat without an answer": ([changed(FLAT, "locality_ground_truth")], {}, "'locality_ground_truth'.*in case 14"),
    "no answer": ([QUESTION, changed(QUESTION, "answers", [])], {}, "'answers'.*got none in record number 1"),
    "answer is a number": ([changed(QUESTION, "answers", [5])], {}, "'answers'.*got int in record number 0"),
    "no question": ([QUESTION, changed(QUESTION, "src")], {}, "'src'.*in record number 1"),
    "no unrelated answer": ([changed(QUESTION, "loc_ans")], {}, "'loc_ans'.*in record number 0"),
    "no records": ([], {}, "got none; give at least one"),
    "other schema": ([KNOWN], {}, "counterfact: requested_rewrite; zsre.*got known_id, subject.*; convert"),
    "empty record": ([{}], {}, "known schema.*got dict"),
    "wrong schema": ([ORIGINAL], {"schema": "zsre"}, "'subject'.*in case 20952"),
    "no such schema": ([ORIGINAL], {"schema": "mend"}, "one of counterfact, zsre, easyedit; got 'mend'"),
    "limit of 0": ([ORIGINAL], {"limit": 0}, "limit of at least 1; got 0"),
    "limit above all": ([ORIGINAL], {"limit": 2}, "limit of at most 1, all there are; got 2"),
    "limit above those of the relation": (RECORDS, {"limit": 3, "relation": "P30"}, "at most 2"),
    "no such relation": ([ORIGINAL], {"relation": "P31"}, "relation of these records, P30; got 'P31'"),
    "no relation at all": ([FLAT], {"relation": "P31"}, "which name none; got 'P31'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_records_are_refused(name):
    records, given_, message = MALFORMED[name]
    with pytest.raises(BadInput, match=message) as refused:
        requests(records, **given_)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["prompt", "subject", "attribute"])
def test_malformed_known_facts_are_refused(field):
    with pytest.raises(BadInput, match=f"'{field}'.*in known fact 7"):
        known_facts([KNOWN, changed(KNOWN, field)])
    with pytest.raises(BadInput, match=f"'{field}'.*got int in record number 1"):
        known_facts([KNOWN, changed(changed(KNOWN, field, 5), "known_id")])
    with pytest.raises(BadInput, match="limit of at most 1, all there are; got 2"):
        known_facts([KNOWN], limit=2)


FILES = {
    "not there": ("b.json", None, "No such file.*b.json"),
    "a folder": ("b.json", "folder", "directory.*b.json"),
    "other ending": ("b.csv", b"[]", "ends in .json, .json.gz, .jsonl, .jsonl.gz; got .*b.csv"),
    "not JSON": ("b.json", b"[{]", "must be JSON; got .* at character 2 in .*b.json"),
    "not UTF-8": ("b.json", b'["\xff"]', "must be JSON; got .*b.json"),
    "deep": ("b.json", b"[" * 100_000, "must be JSON; got .*b.json"),
    "not a list": ("b.json", b"{}", "list of records; got dict in .*b.json"),
    "empty list": ("b.json", b"[]", "got none of .*b.json"),
    "empty": ("b.jsonl", b"\n", "got none of .*b.jsonl"),
    "a bad line": ("b.jsonl", json.dumps(ORIGINAL).encode() + b"\n\n{x}\n", "at character 1 in .*b.jsonl, line 3"),
    "a bad record": ("b.jsonl", b'{"case_id": 3, "requested_rewrite": 5}', "got int in case 3 of .*b.jsonl"),
    "no archive": ("b.json.gz", b"[]", "archive must be whole; got .*b.json.gz"),
    "half an archive": ("b.json.gz", gzip.compress(json.dumps(RECORDS).encode())[:-20], "archive.*b.json.gz"),
    "a damaged archive": ("b.jsonl.gz", gzip.compress(b"x")[:10] + b"\xff" * 20, "archive.*b.jsonl.gz"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_read_are_refused(tmp_path, name):
    file, content, message = FILES[name]
    if content == "folder":
        (tmp_path / file).mkdir()
    elif content is not None:
        (tmp_path / file).write_bytes(content)
    for read in (requests, known_facts):
        if (name, read) == ("a bad record", known_facts):
            continue
        with pytest.raises(BadInput, match=message) as refused:
            read(tmp_path / file)
        assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------- at edit time
def test_loading_leaves_to_check_what_cannot_be_edited():
    for case_id, record, count in (
        (20952, changed(ORIGINAL, "requested_rewrite.prompt", "It is located in"), 0),
        (20952, changed(ORIGINAL, "requested_rewrite.prompt", "{} and {} are in"), 2),
        (14, changed(FLAT, "subject", "Kwon"), 0),
        (14, changed(FLAT, "subject", "go"), 0),
        (14, changed(FLAT, "prompt", "The {} of Go is"), 2),
        (0, changed(QUESTION, "subject", "Uni First"), 0),
        (0, changed(QUESTION, "subject", ""), 0),
    ):
        (found,) = requests([record])
        assert found.prompt.count("{}") == count
        with pytest.raises(BadInput, match=f"got {count} in case {case_id}: ") as refused:
            check([found])
        assert "\n" not in str(refused.value)
    check(requests(RECORDS))
    check(requests([FLAT]))
    check(requests([QUESTION]))


def test_check_refuses_empty_subjects_and_targets():
    check([request()])
    with pytest.raises(BadInput, match="requests to edit; got none"):
        check([])
    with pytest.raises(BadInput, match="expected a subject; got an empty one in case x"):
        check([request(), request("x", subject=" ")])
    with pytest.raises(BadInput, match="expected a new target; got an empty one in case 5"):
        check([request(), request(5, new="")])


def test_braces_are_text_but_for_the_first_pair():
    assert filled("a {x} {} b {", "{}") == "a {x} {} b {"
    assert filled("{} and {}", "{}s") == "{}s and {}"
    assert request(prompt="{x} of {} is", subject="{0}").text == "{x} of {0} is"


# ---------------------------------------------------------------------- mentions
letters = st.text("aA b,'é_中{}", max_size=12)


@settings(deadline=None)
@given(letters, letters)
def test_a_mention_is_of_whole_words_where_there_is_one(prompt, subject):
    name = subject.strip()
    words = re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", prompt)
    anywhere = re.search(re.escape(name), prompt)
    want = (words or anywhere or None) if name else None
    assert mention(prompt, subject) == (want.start() if want else -1)


def test_a_mention_inside_a_word_yields_to_one_outside():
    assert mention("Also Al is", "Al ") == 5
    assert mention("Alfa is", "Al") == 0
    assert mention("Al's Al", "Al") == 0
    assert mention("Also", "al") == -1
    assert (
        requests([changed(changed(FLAT, "prompt", "Got by Go is"), "subject", "Go ")])[0].prompt
        == "Got by {} is"
    )


@settings(deadline=None)
@given(letters, letters.filter(str.strip), letters)
def test_a_flat_prompt_filled_is_the_prompt_again(before, subject, after):
    (found,) = requests([{**FLAT, "prompt": before + subject + after, "subject": subject}])
    if "{}" not in before + subject + after:
        assert found.prompt.count("{}") == 1
        assert found.text == before + subject + after
        assert found.subject == subject.strip()


# ---------------------------------------------------------------------- conflicts
asked = st.fixed_dictionaries(
    {
        "case_id": st.integers(0, 99),
        "subject": st.sampled_from(["Ur", "Ur ", "Oz"]),
        "relation": st.sampled_from([None, "P1", "P2"]),
        "prompt": st.sampled_from(["{} is in", "{} lies in"]),
        "new": st.sampled_from(["a", "a ", "b", "c"]),
    }
)


def same(a: Request, b: Request) -> bool:
    """Of one subject and relation."""
    alike = a.relation == b.relation if a.relation or b.relation else a.prompt == b.prompt
    return alike and a.subject.split() == b.subject.split()


@settings(deadline=None)
@given(st.lists(asked, max_size=8))
def test_conflicts_are_those_of_a_loop_over_pairs(parts):
    some = [request(**each) for each in parts]
    want = []
    for j, later in enumerate(some):
        first = next(i for i in range(j + 1) if same(some[i], later))
        if some[first].new.split() != later.new.split():
            want.append((first, j))
    place = {id(r): i for i, r in enumerate(some)}
    assert [(place[id(a)], place[id(b)]) for a, b in conflicts(some)] == want
    kept = without_conflicts(some, keep="first")
    assert [place[id(r)] for r in kept] == [i for i in range(len(some)) if i not in [j for _, j in want]]
    assert all(a.new.split() == b.new.split() for a in kept for b in kept if same(a, b))
    if want:
        a, b = (some[i].case_id for i in want[0])
        with pytest.raises(BadInput, match=f"got two in cases {a} and {b}"):
            without_conflicts(some)
    else:
        assert without_conflicts(some) == some


def test_the_first_of_a_conflict_is_kept():
    a, b, again, c = (request(n, relation="P1", new=new) for n, new in enumerate(("x", "y", "x ", "z")))
    assert conflicts([a, b, again, c]) == [(a, b), (a, c)]
    assert without_conflicts([a, b, again, c], keep="first") == [a, again]
    assert without_conflicts([c, b, a], keep="first") == [c]
    assert not conflicts([a, request(7, relation="P2", new="y"), request(8, subject="Oz", relation="P1")])
    with pytest.raises(BadInput, match="keep to be none or first; got 'last'"):
        without_conflicts([a], keep="last")
    many = [request(n, new=str(n)) for n in range(9)]
    with pytest.raises(BadInput, match="0 and 1, 0 and 2, 0 and 3, 0 and 4, 0 and 5 and 3 more; leave"):
        without_conflicts(many)


# ---------------------------------------------------------------------- the world's own
def test_records_of_a_world_are_read_by_the_same_functions():
    world = World(people=40, seed=1)
    records = world.counterfact(20)
    found = requests(records)
    check(found)
    for r, record in zip(found, records, strict=True):
        rewrite = record["requested_rewrite"]
        assert (r.case_id, r.prompt, r.subject) == (record["case_id"], rewrite["prompt"], rewrite["subject"])
        assert (r.new, r.new_id) == (rewrite["target_new"]["str"], rewrite["target_new"]["id"])
        assert (r.true, r.relation) == (rewrite["target_true"]["str"], rewrite["relation_id"])
        assert [*r.paraphrases] == record["paraphrase_prompts"]
        assert [*r.neighbours] == record["neighborhood_prompts"]
        assert [*r.attributes] == record["attribute_prompts"]
        assert [*r.generation] == record["generation_prompts"]
    records = world.zsre(20)
    found = requests(records)
    check(found)
    for number, (r, record) in enumerate(zip(found, records, strict=True)):
        assert (r.case_id, r.text, r.subject) == (number, record["src"], record["subject"])
        assert (r.new, r.true, r.paraphrases) == (record["answers"][0], None, (record["rephrase"],))
        assert r.locality == ((record["loc"] + "?", record["loc_ans"]),)
    records = world.known_facts(20)
    for k, record in zip(known_facts(records), records, strict=True):
        assert (k.known_id, k.prompt, k.subject) == (record["known_id"], record["prompt"], record["subject"])
        assert (k.attribute, k.relation) == (record["attribute"], record["relation_id"])


# ---------------------------------------------------------------------- the published files
@cache
def published(name: str) -> tuple[Request, ...]:
    return requests(f"$KEMEM_DATA/{name}")


@cache
def raw(name: str) -> list[dict[str, Any]]:
    data = (Path(os.environ["KEMEM_DATA"]) / name).read_bytes()
    return json.loads(gzip.decompress(data) if name.endswith(".gz") else data)


@REAL
@pytest.mark.parametrize("name", [ORIGINALS, REBUILT])
def test_published_counterfact(name):
    found, records = published(name), raw(name)
    assert len(found) == COUNTS[name]
    check(found)
    rewrites = [record["requested_rewrite"] for record in records]
    assert [(r.case_id, len(r.neighbours), len(r.generation)) for r in found] == [
        (record["case_id"], len(record["neighborhood_prompts"]), len(record["generation_prompts"]))
        for record in records
    ]
    assert [(r.prompt, r.subject, r.new, r.new_id, r.relation) for r in found] == [
        (
            each["prompt"],
            each["subject"],
            each["target_new"]["str"],
            each["target_new"]["id"],
            each["relation_id"],
        )
        for each in rewrites
    ]


@REAL
def test_published_flat_counterfact_has_the_requests_of_the_rebuilt_one():
    found, records = published(FLATTENED), raw(FLATTENED)
    assert len(found) == COUNTS[FLATTENED]
    check(found)  # so each prompt has its subject
    assert [(r.case_id, r.text, r.true) for r in found] == [
        (record["case_id"], record["prompt"], record["ground_truth"]) for record in records
    ]
    assert all(len(r.paraphrases) == len(r.neighbours) == 1 and not r.locality for r in found)
    assert [(r.case_id, r.prompt, r.subject, r.new, r.true) for r in found] == [
        (r.case_id, r.prompt, r.subject, r.new, r.true) for r in published(REBUILT)
    ]


@REAL
def test_published_zsre():
    found, records = published(QUESTIONS), raw(QUESTIONS)
    assert len(found) == COUNTS[QUESTIONS]
    check(found)
    assert [(r.case_id, r.text, r.new) for r in found] == [
        (number, record["src"], record["answers"][0]) for number, record in enumerate(records)
    ]
    asked = [question for r in found for question, _ in r.locality]
    assert len(asked) == 500 and all(q.startswith("nq question: ") and q.endswith("?") for q in asked)
    assert not conflicts(found)


@REAL
def test_published_conflicts():
    """The rebuilt file asks of 126 subjects and relations for two objects or more: 202 requests too many."""
    (pair,) = conflicts(published(ORIGINALS))
    assert pair[0].subject == pair[1].subject and pair[0].relation == pair[1].relation
    objects: dict[tuple[str, str], set[str]] = {}
    for record in raw(REBUILT):
        rewrite = record["requested_rewrite"]
        of = objects.setdefault((rewrite["subject"], rewrite["relation_id"]), set())
        of.add(rewrite["target_new"]["str"])
    conflicted = {key for key, of in objects.items() if len(of) > 1}
    found = conflicts(published(REBUILT))
    assert {(a.subject, a.relation) for a, _ in found} == conflicted and len(conflicted) == 126
    assert len({id(first) for first, _ in found}) == 126
    assert len(found) == 202 and len(without_conflicts(published(REBUILT), keep="first")) == 9_798
    with pytest.raises(BadInput, match="and 197 more"):
        without_conflicts(published(REBUILT))


@REAL
def test_published_known_facts_and_relations():
    found = known_facts("$KEMEM_DATA/counterfact/known_1000.json")
    assert len(found) == 1_209 and all(mention(k.prompt, k.subject) >= 0 for k in found)
    source = f"$KEMEM_DATA/{ORIGINALS}"
    records = [r for r in raw(ORIGINALS) if r["requested_rewrite"]["relation_id"] == "P30"]
    assert [r.case_id for r in requests(source, relation="P30")] == [r["case_id"] for r in records]
    with pytest.raises(BadInput, match=r"P30, .*; got 'P0'"):
        requests(source, relation="P0")
