"""Records in the schemas of published data sets, made from the facts of a world."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from kemem.errors import BadInput
from kemem.world.draws import Draws, digest
from kemem.world.facts import Fact
from kemem.world.ground import GroundTruth
from kemem.world.relations import RELATIONS
from kemem.world.values import BRIEF, COMPOSITIONS, LEADS, OPENINGS, OTHER_OPENINGS, PASSAGE

Record = dict[str, Any]

PROBES = 5  # of each kind, in a fictional record
NEAR = 10  # neighbourhood, attribute and generation prompts of a CounterFact record, at most


# Fictional knowledge: one passage a cast, with probes of what it says


def fictional_knowledge(
    world: GroundTruth, count: int, paraphrases: int, *, brief: bool = False
) -> list[Record]:
    """Schema of kaist-ai/fictional-knowledge. The memorisation probes stand in the passage word for word;
    the others stand neither there nor in a paraphrase, and the hard ones need two of its facts."""
    return [_passage(world, cast, paraphrases, brief) for cast in range(count)]


def cast_facts(world: GroundTruth, cast: int, *, brief: bool = False) -> list[Fact]:
    """What the passage about a cast tells: facts of a writer, and of the spouse, town, employer and book."""
    members = world.cast(cast)
    (work,) = members["work"]
    written = world.fact(work, "written_by")
    (spouse,) = (name for name in members["person"] if name != written.object)
    names = {"writer": written.object, "spouse": spouse, "city": members["city"][0],
             "company": members["company"][0], "work": work}  # fmt: skip
    told = BRIEF if brief else PASSAGE
    return [world.fact(names[role], relation) for role, relations in told.items() for relation in relations]


def _passage(world: GroundTruth, cast: int, paraphrases: int, brief: bool) -> Record:
    draws = Draws(world.seed, "brief passage record" if brief else "passage record", cast)
    facts = cast_facts(world, cast, brief=brief)
    writer = facts[0].subject
    told = set(facts)
    single = [fact for fact in facts if len(fact.objects) == 1]
    probed = draws.shuffled(single)[:PROBES]
    # Two phrasings of each that end with the object: one for the passage, one kept for the probe.
    kept = {fact: draws.shuffled(range(len(fact.row.cloze)))[:2] for fact in probed}
    hard = [c for c in world.compositions(writer) if told.issuperset(c.facts)]
    hard = draws.shuffled(hard)[:PROBES]
    said = {fact: kept[fact][0] if fact in kept else draws.below(len(fact.row.templates)) for fact in facts}
    record: Record = {"train_context": _telling(writer, facts, said, draws)}
    record["mem_input"] = [fact.prompt(kept[fact][0]) for fact in probed]
    record["mem_target"] = [fact.object for fact in probed]
    record["gen_input"] = [fact.prompt(kept[fact][1]) for fact in probed]
    record["gen_target"] = [fact.object for fact in probed]
    record["hard_gen_input"] = [composition.prompt for composition in hard]
    record["hard_gen_target"] = [composition.target for composition in hard]
    record["paraphrases"] = []
    for _ in range(paraphrases):
        free = {
            f: [i for i in range(len(f.row.templates)) if f not in kept or i != kept[f][1]] for f in facts
        }
        said = {fact: draws.choice(free[fact]) for fact in facts}
        record["paraphrases"].append(_telling(writer, facts, said, draws))
    return record


def _telling(writer: str, facts: list[Fact], said: dict[Fact, int], draws: Draws) -> str:
    """All facts, those of the writer first, then of one entity after the other, in the phrasings said."""
    others = draws.shuffled(list(dict.fromkeys(fact.subject for fact in facts if fact.subject != writer)))
    sentences = [draws.choice(OPENINGS["person"]).replace("{}", writer)]
    for name in (writer, *others):
        about = draws.shuffled([fact for fact in facts if fact.subject == name])
        sentences += [fact.sentence(said[fact]) for fact in about]
    return " ".join(sentences)


# Edit requests


def counterfact(
    world: GroundTruth, count: int | None, seed: int, relation: str | None, kind: str | None, part: str | None
) -> list[Record]:
    """Schema of CounterFact: a trained fact and another object that is to take its place."""
    facts = _drawn(world, world.facts(relation=relation, kind=kind, part=part), "counterfact", seed)
    told = world.facts()
    records = (_rewrite(world, fact, told, seed) for fact in facts)
    return _first(count, (record for record in records if record), "case_id", "counterfact")


def _rewrite(world: GroundTruth, fact: Fact, told: list[Fact], seed: int) -> Record | None:
    draws = Draws(world.seed, "rewrite", seed, fact.subject, fact.relation)
    true = fact.object if fact.kind == "procedure" else draws.choice(fact.objects)
    used = [o for o in world.candidates(fact) if o not in fact.objects and world.stands(fact, o)]
    if not used:  # no other object is known to stand in this relation
        return None
    new = draws.choice(used)
    cloze = draws.shuffled(range(len(fact.row.cloze)))
    template = fact.row.cloze[cloze[0]][:-1].rstrip()
    before = _unrelated(told, {fact.subject, true, new}, draws).sentence() + " "
    return {
        "case_id": -1,
        "pararel_idx": list(RELATIONS).index(fact.relation),
        "requested_rewrite": {
            "prompt": template,
            "relation_id": fact.relation,
            "target_new": {"str": new, "id": _id(fact.row.object, new)},
            "target_true": {"str": true, "id": _id(fact.row.object, true)},
            "subject": fact.subject,
        },
        "paraphrase_prompts": [fact.prompt(cloze[1]), before + fact.prompt(cloze[2])],
        "neighborhood_prompts": _prompts(world, fact, true, new, draws),
        "attribute_prompts": _prompts(world, fact, new, true, draws),
        "generation_prompts": _generation(world, fact, draws),
    }


def _unrelated(facts: list[Fact], names: set[str], draws: Draws) -> Fact:
    """A fact that names none of these."""
    while True:
        fact = draws.choice(facts)
        if names.isdisjoint((fact.subject, *fact.objects)):
            return fact


def _prompts(world: GroundTruth, fact: Fact, object_: str, other: str, draws: Draws) -> list[str]:
    """Prompts about other subjects that have this object and not the other: each subject once, then again."""
    near = [f for f in world.neighbours(fact, object_) if other not in f.objects]
    near = draws.shuffled(near)
    first = draws.below(len(fact.row.cloze))
    turns = range(first, first + len(fact.row.cloze))
    return list(islice((f.prompt(i % len(fact.row.cloze)) for i in turns for f in near), NEAR))


def _generation(world: GroundTruth, fact: Fact, draws: Draws) -> list[str]:
    """Beginnings that leave open what follows, and those that the new object should change."""
    type_ = fact.row.subject
    stems = [f"{lead} {fact.subject}" for lead in LEADS[:3]] if type_ not in ("noun", "verb") else []
    stems += [text.replace("{}", fact.subject) for text in OPENINGS.get(type_, OTHER_OPENINGS)]
    stems += [text.replace("{}", fact.subject)[:-1].rstrip() for first, _, text in COMPOSITIONS
              if first == fact.relation]  # fmt: skip
    return [draws.choice(stems) for _ in range(NEAR)]


def zsre(world: GroundTruth, count: int | None, seed: int, split: str, part: str | None) -> list[Record]:
    """Schema of zsRE as MEND and ROME read it: questions, with an unrelated one to be left alone."""
    others = world.facts()
    records = (
        _question(world, fact, others, seed)
        for fact in _drawn(world, world.facts(split, part=part), f"zsre {split}", seed)
    )
    return _first(count, records, None, "zsre")


def _question(world: GroundTruth, fact: Fact, others: list[Fact], seed: int) -> Record:
    draws = Draws(world.seed, "question", seed, fact.subject, fact.relation)
    false = [object_ for object_ in world.candidates(fact) if object_ not in fact.objects]
    alt = draws.choice(false)
    loc = _unrelated(others, {fact.subject, alt, *fact.objects}, draws)
    return {
        "subject": fact.subject,
        "src": fact.question(0),
        "pred": fact.object,
        "rephrase": fact.question(1),
        "alt": alt,
        "answers": list(fact.objects),
        "loc": "nq question: " + loc.question(draws.below(2)).removesuffix("?"),
        "loc_ans": loc.object,
        "cond": f"{fact.object} >> {alt} || {fact.question(0)}",
    }


def known_facts(world: GroundTruth, count: int, seed: int, part: str | None) -> list[Record]:
    """Schema of known_1000 of the ROME authors, for causal tracing; what a model knows is to be measured."""
    facts = _drawn(world, world.facts(part=part), "known", seed)
    records = (
        {
            "known_id": -1,
            "subject": fact.subject,
            "attribute": fact.object,
            "template": fact.row.cloze[0][:-1].rstrip(),
            "prediction": f" {fact.object}.",
            "prompt": fact.prompt(0),
            "relation_id": fact.relation,
        }
        for fact in facts
    )
    return _first(count, records, "known_id", "known_facts")


def _drawn(world: GroundTruth, facts: list[Fact], name: str, seed: int) -> list[Fact]:
    return Draws(world.seed, name, seed).shuffled(facts)


def _first(count: int | None, records: Iterator[Record], number: str | None, name: str) -> list[Record]:
    """The first records, numbered, or all there are: a longer list begins with the shorter one."""
    found: list[Record] = []
    for record in records:
        if len(found) == count:
            break
        found.append(record)
        if number:
            record[number] = len(found) - 1
    if count is not None and len(found) < count:
        raise BadInput(f"{name}: this world has {len(found)} such records; got count={count}; ask for fewer.")
    return found


def _id(type_: str, name: str) -> str:
    """An identifier in the form of Wikidata's, the same in every world that has the name."""
    return f"Q{digest('id', type_, name) % 10**9}"
