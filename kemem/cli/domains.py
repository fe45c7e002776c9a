"""Domains as `kemem adapt` is given them: cut out of one line, put in order, read, and cut into rows of tokens."""

import re
from collections.abc import Sequence
from typing import Any

from kemem.cli.options import check_corpus
from kemem.errors import BadInput

TESTED = 50_000  # tokens of a text that a model is judged by, at most
EXAMPLES = 1000  # of an end task that is made of documents: to learn from, and as many to test with


# ---------------------------------------------------------------------- what was typed
def split_specs(text: str) -> list[str]:
    """Specs that were joined by commas, which they hold themselves: cut where behind a comma a new one begins.

    It begins with a scheme (one with a colon, or docstrings or world alone) or is a domain of `REAL`. A path that has
    such a comma in it cannot be given here.
    """
    from kemem.continual.domains import REAL

    begins = rf"(?:files|hub):|(?:docstrings|world)\s*(?:[:+,]|$)|(?:{'|'.join(REAL)})\s*(?:,|$)"
    return [spec.strip() for spec in re.split(rf",(?=\s*(?:{begins}))", text)]


def check_specs(specs: Sequence[str]) -> None:
    """Refuses what can be seen without reading: no corpus, a file that is not there, too few, one twice."""
    from kemem.continual.domains import FOLDER, REAL
    from kemem.corpora.spec import SCHEMES

    for spec in specs:
        if re.split(r"[:+]", spec)[0] not in (*SCHEMES, *REAL):
            remedy = f"write files:{spec} for a file" if re.search(r"[./\\]", spec) else "correct it"
            raise BadInput(
                "expected domains, each a corpus (docstrings, world, files:PATH or hub:NAME) or one of "
                f"{', '.join(REAL)}; got {spec!r}; {remedy}."
            )
        check_corpus(f"files:{FOLDER}/{REAL[spec][0]}" if spec in REAL else spec)
    if len(specs) < 2:
        raise BadInput(
            f"expected two domains or more, one after another; got {', '.join(specs)} alone; add one."
        )
    _once(specs, "is given twice")


def places(order: str | None, count: int) -> tuple[int, ...]:
    """The order of learning, such as 2,1,3, as places from 0. Refused: what is no permutation of 1..count."""
    if order is None:
        return tuple(range(count))
    found = tuple(part.strip() for part in order.split(","))
    if sorted(found) != sorted(str(place) for place in range(1, count + 1)):
        raise BadInput(
            f"expected --order to have each place from 1 to {count} once, such as "
            f"{','.join(map(str, range(count, 0, -1)))}; got {order!r}; correct it."
        )
    return tuple(int(place) - 1 for place in found)


# ---------------------------------------------------------------------- what is read
def read(specs: Sequence[str], *, tasks: bool) -> list[Any]:
    """A `Source` of each spec, without its end task where tasks are not asked for. Refused: one text twice."""
    from dataclasses import replace

    from kemem.continual.domains import named
    from kemem.continual.published_tasks import PUBLISHED

    found = []
    for spec in specs:
        source = named(spec)
        task = source.task if tasks else None
        if task is not None and task.name not in PUBLISHED:
            task = task.limited(EXAMPLES, EXAMPLES)
        found.append(replace(source, task=task))
    _once([source.name for source in found], "is the name of two")
    _once([source.corpus.digest for source in found], "is the text of two", [source.name for source in found])
    return found


def _once(keys: Sequence[str], what: str, names: Sequence[str] | None = None) -> None:
    for place, key in enumerate(keys):
        if key in keys[:place]:
            name = (names or keys)[place]
            raise BadInput(f"expected each domain once; got {name!r}, which {what}; leave one of them out.")


def rows(source: Any, tokenizer: Any, length: int, limit: int) -> Any:
    """A source in rows of `length` tokens, the same for every seed. limit: tokens to train on, at most."""
    from kemem.continual.domains import held

    try:
        return held(source, tokenizer, length, limit_tokens=limit, test_tokens=TESTED)
    except BadInput as error:
        raise BadInput(f"{source.name}: {error}") from error


def general_rows(text: Any, tokenizer: Any, length: int) -> Any:
    """The test part of a corpus of no domain, by which is judged what is lost of everything else."""
    from kemem.corpora import pack

    try:
        return pack(text.part("test"), tokenizer, length, limit_tokens=TESTED)
    except BadInput as error:
        raise BadInput(f"the test part of --general {text.spec}: {error}") from error


def asking(how: str, sources: Sequence[Any], tokenizer: Any, length: int, seed: int) -> Any:
    """What `learn` asks of end tasks, by "probe" or "finetune"; None where no domain has one."""
    from kemem.continual.finetuning import FineTuning, Probing, asked
    from kemem.continual.published_tasks import PUBLISHED

    tasks = {source.name: source.task for source in sources if source.task is not None}
    if not tasks:
        return None
    if how == "probe":
        return asked(tasks, Probing(length=length), tokenizer)

    def tuned(model: Any, tokenizer: Any, task: Any, method: Any = None, domain: Any = None) -> Any:
        own = FineTuning(length=length, seed=seed)
        if task.name in PUBLISHED:
            own = FineTuning(PUBLISHED[task.name].epochs, length=length, seed=seed)
        return own(model, tokenizer, task, method, domain)

    return asked(tasks, tuned, tokenizer)


# ---------------------------------------------------------------------- the model that reads it
def outline(config: Any) -> Any:
    """A model of this configuration without weights, for its sizes. Refused: an unknown family."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    from kemem.cli.measuring import check_family
    from kemem.progress import quiet_transformers

    check_family(config.model_type, "abs")
    auto = AutoModelForMaskedLM if fills_in(config) else AutoModelForCausalLM
    with torch.device("meta"), quiet_transformers():
        return auto.from_config(config, trust_remote_code=False)


def fills_in(config: Any) -> bool:
    """Whether a model fills in masked tokens instead of predicting the next one."""
    from kemem.models import MASKED

    return config.model_type in MASKED and not config.is_decoder


def objective_of(config: Any, tokenizer: Any) -> Any:
    """What a model of this configuration is trained for. Refused: masking without a token for it."""
    from kemem.objective import Masked, causal

    if not fills_in(config):
        return causal
    if tokenizer.mask_token_id is None:
        raise BadInput(
            f"expected a tokenizer with a mask token, for {config.model_type} fills in masked ones; got one without; "
            "set tokenizer.mask_token and save it."
        )
    special = tuple(sorted(set(tokenizer.all_special_ids)))
    return Masked(tokenizer.mask_token_id, min(len(tokenizer), config.vocab_size), special=special)
