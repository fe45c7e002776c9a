"""The world knows the truth, tells it in the shares it says, and keeps its splits apart."""

import ast
import json
import math
import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kemem.world
from kemem.errors import BadInput
from kemem.world import KINDS, PARTS, RELATIONS, SPLITS, World
from kemem.world.draws import Draws, Zipf
from kemem.world.facts import follow
from kemem.world.records import cast_facts

# What World(60, seed=3) tells, on every machine. If these change, so does every recorded result.
TOLD = "b2d2caa8aed670ea"
RECORDS = "a7c9930222be02b9"


@pytest.fixture(scope="module")
def world() -> World:
    return World(60, seed=3)


@pytest.fixture(scope="module")
def texts(world) -> list[str]:
    return world.documents(700)


def digest(*texts: str) -> str:
    return sha256("\n".join(texts).encode()).hexdigest()[:16]


def words(text: str) -> set[str]:
    return {word.strip(".,:?") for word in text.split()}


def everything(world: World) -> list:
    return [fact for split in SPLITS for fact in world.facts(split, stated=None)]


# Determinism


def test_splitmix64_reference_stream():
    draws = Draws("any")
    draws.state = 0
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [draws.bits() for _ in range(3)] == expected


def test_documents_are_pinned(world):
    assert digest(*world.documents(300)) == TOLD


def test_records_are_pinned(world):
    made = [world.fictional_knowledge(5), world.counterfact(20), world.zsre(20), world.known_facts(20)]
    assert digest(json.dumps(made)) == RECORDS


@pytest.mark.parametrize("salt", ["1", "77"])
def test_a_bare_python_with_another_hash_seed_tells_the_same(salt):
    """Run without the rest of the package (and so without torch), whatever order its sets come in."""
    code = """if True:
        import sys, types
        package = types.ModuleType("kemem")
        package.__path__ = [sys.argv[1]]
        sys.modules["kemem"] = package
        from hashlib import sha256
        from kemem.world import World
        print(sha256("\\n".join(World(60, seed=3).documents(300)).encode()).hexdigest()[:16])
        print([name for name in ("torch", "numpy", "random") if name in sys.modules])
    """
    folder = str(Path(kemem.world.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code, folder],
        env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout.split("\n")[:2] == [TOLD, "[]"], run.stderr


def test_the_package_needs_nothing_but_python():
    allowed = sys.stdlib_module_names - {"random", "time", "uuid", "secrets"} | {"kemem"}
    for path in Path(kemem.world.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
                assert name.split(".")[:2] in (["kemem", "errors"], ["kemem", "world"]) or "kemem" not in name


def test_a_longer_list_begins_with_a_shorter(world):
    assert world.documents(40)[:15] == world.documents(15)
    assert world.documents(12, seed=5)[:4] == world.documents(4, seed=5)
    assert world.counterfact(30, 2)[:10] == world.counterfact(10, 2)
    assert world.zsre(30, 2)[:10] == world.zsre(10, 2)
    assert world.fictional_knowledge(6)[:2] == world.fictional_knowledge(2)
    assert world.documents(0) == []


def test_seeds_change_the_text(world):
    assert world.documents(20) != world.documents(20, seed=1)
    assert world.documents(20) != World(60, seed=4).documents(20)
    assert world.counterfact(20) != world.counterfact(20, 1)


# The table


def test_table_is_well_formed():
    assert {row.kind for row in RELATIONS.values()} == set(KINDS)
    for row in RELATIONS.values():
        cloze = row.cloze
        assert len(row.templates) >= 4, row.name
        assert len(cloze) >= 3, f"{row.name}: a rewrite needs a prompt and two paraphrases"
        assert cloze == row.templates[: len(cloze)], f"{row.name}: prompts come first"
        assert len(set(row.templates)) == len(row.templates)
        assert len(set(row.questions)) == 2
        for template in row.templates:
            assert template.count("{}") == template.count("_") == 1, (row.name, template)
        for question in row.questions:
            assert question.count("{}") == 1 and question.endswith("?") and "_" not in question
        if row.linked:
            back = RELATIONS[row.inverse]
            assert (back.inverse, back.subject, back.object) == (row.name, row.object, row.subject)
            for template in row.templates:
                assert template.index("{}") < template.index("_"), f"{row.name} tells its inverse: {template}"


def test_a_prompt_belongs_to_one_relation():
    """Otherwise what follows it would be open, and a cloze could not be scored."""
    for row in RELATIONS.values():
        for prompt in row.cloze:
            stem = prompt[:-1]
            for other in RELATIONS.values():
                if other.subject == row.subject:
                    for template in other.templates:
                        assert template == prompt or not template.startswith(stem), (prompt, template)


# Names and splits


def check_names(world: World):
    by_type: dict[str, list[str]] = {}
    for entity in world.entities.values():
        by_type.setdefault(entity.type, []).append(entity.name)
    members = [n for groups in world._groups.values() for g in groups for m in g.members.values() for n in m]
    assert len(members) == len(set(members)), "one name, one entity"
    for names in by_type.values():
        text = "\n".join(names)
        for name in names:
            assert text.count(name) == 1, f"{name!r} stands inside another name of its type"
    forms = world._population.forms
    assert len(set(forms.values())) == len(forms)
    assert not set(forms.values()) & set(world.entities)


def check_splits(world: World, told: str):
    for entity in world.entities.values():
        if entity.split != "trained":
            assert entity.name not in told, f"{entity} is told"
            assert world.frequency(entity) == 0
    for fact in world.facts():
        for name in (fact.subject, *fact.objects):
            assert name not in world.entities or world.entities[name].split == "trained"
    for split in SPLITS:
        for fact in world.facts(split, stated=None):
            assert fact.split == world.entities[fact.subject].split == split


def test_names(world):
    check_names(world)


def test_splits_are_disjoint_and_only_the_trained_is_told(world, texts):
    check_splits(world, "\n".join(texts))
    sizes = Counter(entity.split for entity in world.entities.values())
    assert sizes["held_out"] > 12 and sizes["fictional"] == world.fictional * 5


def test_new_names_are_made_of_known_words(world, texts):
    """A word-level vocabulary of the documents covers the fictional passages."""
    names = {n for n, e in world.entities.items() if e.split == "trained"}
    trained_words = set().union(*(name.split() for name in names))
    for entity in world.entities.values():
        if entity.split != "trained" and entity.type in ("person", "city", "company", "work"):
            assert set(entity.name.split()) <= trained_words, entity
    told = {o for fact in world.facts() for o in fact.objects} | {fact.subject for fact in world.facts()}
    for fact in world.facts("held_out") + world.facts("fictional"):
        for object_ in fact.objects:
            if fact.kind != "inflection" and object_ not in told:
                assert set(object_.split()) <= trained_words, fact
    seen = set().union(*map(words, world.documents(1500)))
    for record in world.fictional_knowledge(10):
        for text in (record["train_context"], *record["gen_input"], *record["mem_target"]):
            assert words(text) <= seen


def test_vocabulary_holds_every_word(world, texts):
    vocabulary = set(world.vocabulary())
    told = set().union(*map(words, texts))
    for record in world.fictional_knowledge(4):
        for prompt in record["hard_gen_input"] + record["gen_input"]:
            told |= words(prompt)
        told |= set().union(*map(words, [record["train_context"], *record["paraphrases"]]))
    for name, entity in world.entities.items():
        if entity.split == "held_out" and world.entities[name].type in ("person", "dish", "noun", "verb"):
            told |= words(world.passages(name)[0])
    assert told <= vocabulary


# Facts


def check_consistency(world: World):
    true = {(f.subject, f.relation): f for f in everything(world)}
    linked = 0
    for fact in everything(world):
        row = fact.row
        assert len(set(fact.objects)) == len(fact.objects) and fact.subject not in fact.objects
        assert row.least <= len(fact.objects) and (row.source == "inverted" or len(fact.objects) <= row.most)
        if row.inverse:
            for object_ in fact.objects:
                back = true[object_, row.inverse]
                assert fact.subject in back.objects, (fact, back)
                assert (back.part, back.split) == (fact.part, fact.split)
                linked += 1
        if row.kind == "order":
            year = "born_year" if row.name.startswith("born") else "company_founded"
            mine, other = (int(true[n, year].object) for n in (fact.subject, fact.object))
            assert mine < other if row.name.endswith("before") else mine > other
        if row.kind == "inflection":
            assert fact.object != fact.subject
    assert linked > 50
    for city in (n for n, e in world.entities.items() if e.type == "city"):
        region = true[city, "city_region"].object
        country = true[region, "region_country"].object
        assert true[city, "city_country"].objects == (country,)
        assert world.place(city) == (region, country)
    for fact in world.facts(relation="capital"):
        assert true[fact.object, "city_country"].object == fact.subject


def test_facts_are_consistent(world):
    check_consistency(world)


def test_default_world_has_the_size_small_models_can_learn():
    world = World()
    assert 1500 <= len(world.facts()) <= 2000
    assert {fact.kind for fact in world.facts()} == set(KINDS)
    assert 1500 <= len(world.vocabulary()) <= 2500
    assert all(len(world.facts(relation=name)) >= 5 for name in RELATIONS)
    assert len(world.facts("held_out")) > 200


def test_what_is_not_stated_is_not_told_but_follows(world, texts):
    told = "\n".join(texts)
    stated = {(f.subject, f.relation): f for f in world.facts()}
    silent = world.facts(stated=False)
    assert len(silent) > 15 and {f.kind for f in silent} == {"symmetric", "inverse", "order", "containment"}
    for fact in silent:
        for i in range(len(fact.row.templates)):
            for object_ in fact.objects:
                assert fact.sentence(i, object_).removesuffix(".") not in told
        if fact.kind == "containment":
            path = {r: {s: f.objects for (s, x), f in stated.items() if x == r} for r in fact.row.chain}
            assert follow(fact.subject, fact.row.chain, path, {}) == fact.objects
        elif fact.kind == "order":
            forward = fact.row if fact.row.chain else RELATIONS[fact.row.inverse]
            assert all((name, forward.chain[0]) in stated for name in (fact.subject, *fact.objects))
        else:
            for object_ in fact.objects:
                assert fact.subject in stated[object_, fact.row.inverse].objects


def test_parts_are_a_partition(world):
    facts = World(200, seed=1).facts()
    counts = Counter(fact.part for fact in facts)
    assert set(counts) == set(PARTS)
    assert abs(counts["tuning"] / len(facts) - 0.3) < 0.05
    tuning, reported = (set(world.facts(part=part)) for part in PARTS)
    assert not tuning & reported and tuning | reported == set(world.facts())


def test_words_are_inflected_by_rule_with_exceptions():
    world = World(250, seed=2)
    for relation, suffix in (("plural", "s"), ("past", "ed")):
        facts = world.facts(relation=relation)
        regular = [fact for fact in facts if fact.object == fact.subject + suffix]
        odd = [fact for fact in facts if fact not in regular]
        assert 0 < len(odd) < len(regular)
        for fact in odd:  # one vowel has changed
            assert len(fact.object) == len(fact.subject)
            assert sum(a != b for a, b in zip(fact.object, fact.subject, strict=True)) == 1


def test_prompt_and_sentence(world):
    for fact in everything(world):
        for i in range(len(fact.row.cloze)):
            assert fact.prompt(i) == fact.prompt(i).strip() and fact.subject in fact.prompt(i)
            for object_ in fact.objects:
                assert fact.sentence(i, object_) == f"{fact.prompt(i)} {object_}."
            for known in range(1, len(fact.objects)):
                start = fact.prompt(i, given=known)
                assert fact.sentence(i).startswith(f"{start} {fact.objects[known]}")
        for i in range(len(fact.row.templates)):
            sentence = fact.sentence(i)
            assert (
                all(name in sentence for name in (fact.subject, *fact.objects))
                and sentence[0].upper() == sentence[0]
            )
    steps = world.facts(kind="procedure")[0]
    a, b, c = steps.objects[0], steps.objects[1], steps.objects[-1]
    assert f"first {a}, then {b}" in steps.sentence() and steps.sentence().endswith(f" and finally {c}.")


def check_candidates(world: World):
    true = {(f.subject, f.relation): f.objects for f in everything(world)}
    year = {n: int(o[0]) for (n, r), o in true.items() if r in ("born_year", "company_founded")}
    for fact in everything(world):
        candidates = world.candidates(fact)
        assert set(fact.objects) <= set(candidates) and len(set(candidates)) == len(candidates)
        assert len(candidates) > len(fact.objects), fact
        assert fact.subject not in candidates
        false = set(candidates) - set(fact.objects)
        if fact.kind == "order":
            sign = 1 if fact.relation.endswith("before") else -1
            assert all(sign * (year[n] - year[fact.subject]) <= 0 for n in false)
        if fact.relation == "speaks":
            assert false.isdisjoint(true.get((fact.subject, "native_language"), ()))


def test_candidates(world):
    check_candidates(world)


def test_choices(world):
    places = Counter()
    for fact in world.facts()[::3]:
        options, place = world.choices(fact)
        assert 2 <= len(options) <= 4 and len(set(options)) == len(options)
        assert [option in fact.objects for option in options] == [i == place for i in range(len(options))]
        assert set(options) <= set(world.candidates(fact))
        places[place] += 1
    assert min(places[i] for i in range(4)) > len(world.facts()) / 3 / 8
    assert len(world.choices(world.facts(relation="occupation")[0], 6, seed=1)[0]) == 6


def test_neighbours_are_those_that_share_relation_and_object(world):
    facts = world.facts()
    found = 0
    for fact in facts[::7] + world.facts("held_out")[::9]:
        expected = {
            f.subject for f in facts
            if f.relation == fact.relation and f is not fact and set(f.objects) & set(fact.objects)
        }  # fmt: skip
        near = world.neighbours(fact)
        assert {f.subject for f in near} == expected and len(near) == len(expected)
        for f in world.neighbours(fact, fact.object):
            assert fact.object in f.objects
        found += len(near)
    assert found > 100


def test_what_an_edit_implies(world):
    marriage = world.facts(relation="married_to")[0]
    other = next(name for name in world.candidates(marriage) if name != marriage.object)
    assert world.implied(marriage, other) == [(other, "married_to", marriage.subject)]
    lies = world.facts(relation="city_region")[0]
    region = next(name for name in world.candidates(lies) if name != lies.object)
    country = world.fact(region, "region_country").object
    assert world.implied(lies, region) == [(lies.subject, "city_country", country)]
    assert world.implied(world.facts(relation="genre")[0]) == []


# Text


def test_documents_look_as_promised(texts):
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 40 and max(lengths) <= 115
    assert len(set(texts)) == len(texts)
    for text in texts[:300]:
        sentences = text.replace("? ", "?_").split(". ")
        assert len(set(sentences)) == len(sentences), text
        assert not set("{}_") & set(text)


def test_every_stated_fact_is_told():
    """In 2,500 documents of the smallest world each fact is met, and in more than one wording."""
    world = World(20, seed=3)
    told = "\n".join(world.documents(2500))
    for fact in world.facts():
        object_ = fact.objects[0]
        ways = sum(
            fact.sentence(i, object_).split(".")[0][1:] in told for i in range(len(fact.row.templates))
        )
        assert ways >= 2 or len(fact.objects) > 1, fact


def test_subjects_follow_zipf():
    law = Zipf(300, 0.6)
    draws = Draws("zipf test")
    seen = Counter(law.draw(draws) for _ in range(30_000))
    assert abs(sum(law.share(i) for i in range(300)) - 1) < 1e-12
    x = [math.log(rank + 1) for rank in range(300)]
    y = [math.log(seen[rank] + 0.5) for rank in range(300)]
    mean_x, mean_y = sum(x) / 300, sum(y) / 300
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )
    assert abs(slope + 0.6) < 0.05
    chi = sum((seen[i] - 30_000 * law.share(i)) ** 2 / (30_000 * law.share(i)) for i in range(300))
    assert abs(chi - 299) < 4 * math.sqrt(2 * 299)


def test_frequencies_are_those_of_the_documents():
    world = World(20, seed=1, zipf=1.2)
    shares = {name: world.frequency(name) for name in world.entities}
    assert abs(sum(shares.values()) - 1) < 1e-9
    ranked = sorted((share for share in shares.values() if share), reverse=True)
    for rank in (2, 5, 20):
        assert ranked[0] / ranked[rank - 1] == pytest.approx(rank**1.2, rel=1e-9)
    # Half of the documents open by naming their subject.
    opened = Counter()
    for text in world.documents(1500):
        opening = text.split(". ")[0]
        if opening.startswith(("This page is about ", "Here is a short ", "Many ")):
            opened[max((n for n in shares if n in opening), key=len)] += 1
    total = sum(opened.values())
    assert abs(total - 750) < 4 * math.sqrt(375)
    for name, share in shares.items():
        assert abs(opened[name] - total * share) <= 4.5 * math.sqrt(total * share) + 1e-9, name


def test_documents_of_a_place_are_about_that_place(world):
    country = next(
        n for n, e in world.entities.items() if e.type == "country" and len(world._laws[n][0]) > 10
    )
    subjects = set(world._laws[country][0])
    assert all(country in world.place(name) for name in subjects)
    for text in world.documents(60, within=country):
        assert any(name in text for name in subjects)
    assert world.documents(5, within=country) != world.documents(5)
    regions = {n for n, e in world.entities.items() if e.type == "region" and world.place(n)[1] == country}
    inside = set().union(*(set(world._laws[r][0]) for r in regions if r in world._laws))
    assert inside <= subjects


def test_passages_tell_any_split(world):
    for split in SPLITS:
        name = world.facts(split)[0].subject
        first, second = world.passages(name, 2)
        assert name in first and name in second and first != second


# Records


def check_fictional(world: World, count: int, brief: bool = False):
    for i, record in enumerate(world.fictional_knowledge(count, brief=brief)):
        text = record["train_context"]
        told = cast_facts(world, i, brief=brief)
        writer = told[0].subject
        known = {c.prompt: c for c in world.compositions(writer)}
        for kind, number in (("mem", 5), ("gen", 5), ("hard_gen", 3 if brief else 5)):
            assert len(set(record[f"{kind}_input"])) == len(record[f"{kind}_target"]) == number
        assert record["gen_target"] == record["mem_target"]
        sentences = text.removesuffix(".").split(". ")
        for prompt, target in zip(record["mem_input"], record["mem_target"], strict=True):
            assert f"{prompt} {target}" in sentences
        for passage in (text, *record["paraphrases"]):
            for prompt in record["gen_input"] + record["hard_gen_input"]:
                assert prompt not in passage
            for fact in told:  # every telling is complete
                sentences = passage.removesuffix(".").split(". ")
                assert any(all(n in s for n in (fact.subject, *fact.objects)) for s in sentences), fact
        for prompt, target in zip(record["hard_gen_input"], record["hard_gen_target"], strict=True):
            near, far = known[prompt].facts
            assert near in told and far in told
            assert (near.subject, near.objects, far.objects) == (writer, (far.subject,), (target,))
        for fact in told:
            for name in (fact.subject, *fact.objects):
                others = {
                    n for j in range(world.fictional) if j != i for m in world.cast(j).values() for n in m
                }
                assert name not in others
        assert len({text, *record["paraphrases"]}) == 10


def test_fictional_knowledge(world):
    check_fictional(world, 8)
    check_fictional(world, 8, brief=True)
    long, short = (
        world.fictional_knowledge(1, brief=b)[0]["train_context"].count(". ") for b in (False, True)
    )
    assert (long, short) == (24, 7)
    assert len(world.fictional_knowledge(1, paraphrases=2)[0]["paraphrases"]) == 2


def test_counterfact(world):
    records = world.counterfact(200, seed=1)
    assert [record["case_id"] for record in records] == list(range(200))
    asked = [(r["requested_rewrite"]["subject"], r["requested_rewrite"]["relation_id"]) for r in records]
    assert len(set(asked)) == 200, "no two requests conflict"
    with_neighbours = 0
    for record in records:
        request = record["requested_rewrite"]
        subject, relation = request["subject"], request["relation_id"]
        fact = world.fact(subject, relation)
        new, true = request["target_new"]["str"], request["target_true"]["str"]
        assert true in fact.objects and new not in fact.objects and new in world.candidates(fact)
        assert request["target_new"]["id"] != request["target_true"]["id"]
        assert request["prompt"].count("{}") == 1
        prompts = [request["prompt"].format(subject), *record["paraphrase_prompts"]]
        ends = [p.split(". ")[-1] for p in prompts]
        assert len(set(ends)) == 3 and all(subject in end for end in ends)
        clozes = {fact.prompt(i) for i in range(len(fact.row.cloze))}
        assert set(ends) <= clozes
        for name, object_, other in (("neighborhood", true, new), ("attribute", new, true)):
            prompts = record[f"{name}_prompts"]
            assert len(prompts) <= 10 and len(set(prompts)) == len(prompts)
            near = [f for f in world.neighbours(fact, object_) if other not in f.objects]
            assert bool(prompts) == bool(near)
            assert set(prompts) <= {f.prompt(i) for f in near for i in range(len(f.row.cloze))}
        with_neighbours += bool(record["neighborhood_prompts"])
        assert len(record["generation_prompts"]) == 10
        assert all(subject in prompt for prompt in record["generation_prompts"])
    assert with_neighbours > 100


def test_counterfact_can_be_narrowed(world):
    assert {r["requested_rewrite"]["relation_id"] for r in world.counterfact(9, relation="genre")} == {
        "genre"
    }
    kinds = {RELATIONS[r["requested_rewrite"]["relation_id"]].kind for r in world.counterfact(9, kind="date")}
    assert kinds == {"date"}
    tuning = world.counterfact(30, part="tuning")
    for record in tuning:
        request = record["requested_rewrite"]
        assert world.fact(request["subject"], request["relation_id"]).part == "tuning"


@pytest.mark.parametrize("split", SPLITS)
def test_zsre(world, split):
    for record in world.zsre(40, split=split):
        facts = [
            f for f in world.facts(split) if f.subject == record["subject"] and f.question() == record["src"]
        ]
        assert len(facts) == 1 and list(facts[0].objects) == record["answers"]
        assert record["rephrase"] == facts[0].question(1) != record["src"]
        assert record["src"].count(record["subject"]) == 1
        assert record["alt"] in world.candidates(facts[0]) and record["alt"] not in record["answers"]
        assert record["pred"] == record["answers"][0]
        assert record["cond"] == f"{record['pred']} >> {record['alt']} || {record['src']}"
        asked = record["loc"].removeprefix("nq question: ") + "?"
        assert any(
            asked in (f.question(0), f.question(1)) and f.object == record["loc_ans"] for f in world.facts()
        )
        assert record["subject"] not in asked


def test_known_facts(world):
    for i, record in enumerate(world.known_facts(30)):
        fact = world.fact(record["subject"], record["relation_id"])
        assert record["known_id"] == i and record["attribute"] == fact.object
        assert record["prompt"] == record["template"].format(record["subject"])


def schema(record):
    """Keys and types, down to the items of lists."""
    if isinstance(record, dict):
        return {key: schema(value) for key, value in record.items()}
    return [schema(record[0])] if isinstance(record, list) and record else type(record).__name__


def test_schemas_are_the_published_ones(world):
    if "KEMEM_DATA" not in os.environ:
        pytest.skip("KEMEM_DATA is unset: the published files are not at hand")
    data = Path(os.environ["KEMEM_DATA"])

    def published(name: str) -> list[dict]:
        return json.loads((data / name).read_text(encoding="utf-8"))

    fictional = published("fictional_knowledge/fictional_knowledge_paraphrased_paraphrase70.json")
    for record in world.fictional_knowledge(3):
        assert schema(record) == schema(fictional[0])
        assert {k: len(v) for k, v in record.items() if isinstance(v, list)} == {
            k: len(v) for k, v in fictional[0].items() if isinstance(v, list)
        }
    rewrite = next(r for r in world.counterfact(20) if r["neighborhood_prompts"] and r["attribute_prompts"])
    assert schema(rewrite) == schema(published("counterfact/counterfact_500.json")[0])
    assert schema(world.zsre(1)[0]) == schema(published("zsre/zsre_mend_train-500.json")[0])
    ours = schema(world.known_facts(1)[0])
    theirs = schema(published("counterfact/known_1000.json")[0])
    assert ours == {key: theirs[key] for key in ours}


# Over worlds


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(people=st.integers(20, 60), seed=st.integers(0, 2**40))
def test_every_world_keeps_the_laws(people, seed):
    world = World(people, seed)
    check_names(world)
    check_splits(world, "\n".join(world.documents(60)))
    check_consistency(world)
    check_fictional(world, 2)
    assert world.counterfact(10) and world.zsre(10)


@settings(max_examples=2, deadline=None)
@given(
    people=st.integers(20, 60), seed=st.integers(0, 2**40), count=st.integers(0, 25), more=st.integers(0, 25)
)
def test_documents_of_every_world_are_prefixes(people, seed, count, more):
    world = World(people, seed)
    assert world.documents(count + more)[:count] == World(people, seed).documents(count)


# Names that share their words


def named(world: World, type_: str, *splits: str) -> list[tuple[str, str]]:
    names = [n for n, e in world.entities.items() if e.type == type_ and e.split in (splits or SPLITS)]
    return [(first, last) for *_, first, last in (name.split() for name in names)]


@pytest.mark.parametrize("type_", ["person", "city", "company", "work"])
@pytest.mark.parametrize("people, casts", [(20, 0), (60, None)])
def test_shared_names(type_, people, casts):
    one, two = (World(people, seed=5, fictional=casts, shared_names=k) for k in (1, 2))
    trained = named(one, type_, "trained")
    assert len({last for _, last in trained}) == len(trained)  # the last word alone tells whose it is
    assert len({first for first, _ in named(one, type_)}) <= 12
    assert {last for _, last in named(one, type_)} == {
        last for _, last in trained
    }  # others are of known words
    several = named(two, type_)
    for place in (0, 1):
        assert len(several) / len({pair[place] for pair in several}) > 1.4
    for world in (one, two):
        assert len(set(named(world, type_))) == len(named(world, type_))
        assert {word for pair in named(world, type_) for word in pair} <= set(world.vocabulary())


def test_shared_names_leave_other_worlds_alone(world):
    same = World(60, seed=3, shared_names=0)
    assert same.documents(20) == world.documents(20) and "shared" not in repr(same)
    assert repr(World(20, shared_names=2)).endswith("shared_names=2)")


def test_all_records_there_are(world):
    """Without a number, as many as with the largest one that is not refused."""
    everyone = world.counterfact(None, relation="born_in")
    assert world.counterfact(len(everyone), relation="born_in") == everyone
    with pytest.raises(BadInput, match=f"this world has {len(everyone)} such records"):
        world.counterfact(len(everyone) + 1, relation="born_in")
    assert len(world.zsre(None, split="held_out")) == len(world.facts("held_out"))


# Refusals


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda w: World(19), "people must be a whole number, from 20 to 8000; got 19."),
        (lambda w: World(40, -1), "seed must be a whole number, 0 or more; got -1."),
        (lambda w: World(40, zipf=-0.1), "zipf must be an exponent from 0 to 4; got -0.1"),
        (lambda w: World(40, zipf=float("nan")), "zipf must be an exponent"),
        (lambda w: World(40, held_out=3), "held_out must be a whole number, from 4 to 40; got 3."),
        (lambda w: World(40, fictional=9999), "fictional must be a whole number, from 0 to"),
        (lambda w: World(40, shared_names=3), "shared_names must be a whole number, from 0 to 2; got 3."),
        (lambda w: w.documents(-1), "count must be a whole number, 0 or more; got -1."),
        (lambda w: w.documents(3, within="Atlantis"), "unknown within 'Atlantis'; known: "),
        (lambda w: w.facts("test"), "unknown split 'test'; known: trained, held_out, fictional."),
        (lambda w: w.facts(relation="eats"), "unknown relation 'eats'; known: born_in, "),
        (lambda w: w.facts(kind="sad"), "unknown kind 'sad'; known: plain, "),
        (lambda w: w.facts(part="half"), "unknown part 'half'; known: tuning, reported."),
        (lambda w: w.fact("Nobody", "born_in"), "'Nobody' is no entity of this world"),
        (lambda w: w.frequency("Nobody"), "'Nobody' is no entity of this world"),
        (lambda w: w.cast(10**6), "cast must be a whole number, from 0 to"),
        (lambda w: w.passages(w.facts(relation="currency")[0].object), "nothing can be told about it"),
        (lambda w: w.choices(w.facts()[0], 1), "count must be a whole number, 2 or more; got 1."),
        (lambda w: w.counterfact(10**6), "ask for fewer"),
        (lambda w: w.counterfact(1, relation="eats"), "unknown relation 'eats'"),
        (lambda w: w.zsre(-2), "count must be a whole number"),
        (lambda w: w.zsre(2, split="all"), "unknown split 'all'"),
        (lambda w: w.known_facts(10**6), "ask for fewer"),
        (lambda w: w.fictional_knowledge(10**6), "count must be a whole number, from 0 to"),
        (lambda w: w.fictional_knowledge(1, paraphrases=-1), "paraphrases must be a whole number"),
        (lambda w: w.facts()[0].prompt(9), "paraphrase must be 0..2 for a prompt of 'born_in'; got 9."),
        (lambda w: w.facts()[0].prompt(0, given=1), "given must leave an object to be told, 0..0; got 1."),
        (lambda w: w.facts()[0].sentence(-1), "paraphrase must be 0..4 for 'born_in'; got -1."),
    ],
)
def test_refusals_are_one_line(world, call, said):
    with pytest.raises(BadInput) as caught:
        call(world)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@given(st.integers(0, 200) | st.integers(1000, 5000), st.text(max_size=8))
def test_a_list_is_shuffled_by_the_draws_of_its_stream(count, key):
    """Fisher and Yates, one draw for each item but the first, from the last; the stream goes on after them."""
    at_once, one_by_one = Draws("shuffle", key), Draws("shuffle", key)
    expected = list(range(count))
    for i in range(count - 1, 0, -1):
        j = one_by_one.below(i + 1)
        expected[i], expected[j] = expected[j], expected[i]
    assert at_once.shuffled(range(count)) == expected
    assert at_once.bits() == one_by_one.bits()
