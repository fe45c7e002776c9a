"""The prompts an editor reads for a request: its own, the same behind random prefixes, and the subject alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kemem.editing.facts import Request
from kemem.editing.places import leading, place
from kemem.errors import BadInput
from kemem.evaluation import encode

PLAIN = "{}"
ESSENCE = "{} is a"  # what a subject is, whatever is said of it: where an edit should change little


@dataclass(frozen=True)
class Contexts:
    """Of one request: each context's tokens with the target's, where the target begins, where the subject ends.

    essence: the tokens of ESSENCE up to the subject's last one.
    """

    rows: tuple[tuple[int, ...], ...]
    begins: tuple[int, ...]
    subjects: tuple[int, ...]
    essence: tuple[int, ...]

    @property
    def to_subject(self) -> tuple[tuple[int, ...], ...]:
        """The contexts up to the subject's last token; what follows cannot reach it."""
        return tuple(row[: last + 1] for row, last in zip(self.rows, self.subjects, strict=True))


def contexts(
    tokenizer: Any,
    requests: Sequence[Request],
    templates: Sequence[str] = (PLAIN,),
    *,
    longest: int | None = None,
) -> list[Contexts]:
    """The contexts of every request. longest: the model's context, in tokens; longer ones are refused by case_id."""
    check_templates(templates)
    start = leading(tokenizer)
    found = []
    for r in requests:
        rows, begins, subjects = [], [], []
        for template in templates:
            prompt = template.replace("{}", r.prompt, 1)
            text = prompt.replace("{}", r.subject, 1)
            span = encode(tokenizer, text, " " + r.new.strip(), start=start)
            last = place(tokenizer, prompt, r.subject, case_id=r.case_id).last
            if last >= span.begin:
                raise BadInput(
                    f"expected the subject before the target; got them in one token in case {r.case_id}; leave it out."
                )
            if longest is not None and len(span.ids) > longest:
                raise BadInput(
                    f"expected prompt and target within the model's context of {longest} tokens; got "
                    f"{len(span.ids)} in case {r.case_id}; leave it out, or take shorter templates."
                )
            rows.append(span.ids)
            begins.append(span.begin)
            subjects.append(last)
        alone = place(tokenizer, ESSENCE, r.subject, case_id=r.case_id)
        found.append(Contexts(tuple(rows), tuple(begins), tuple(subjects), alone.ids[: alone.last + 1]))
    return found


def check_templates(templates: Sequence[str]) -> None:
    """Refuses templates without one {} each, or whose first is not the bare prompt."""
    if not templates or templates[0] != PLAIN:
        raise BadInput(f'expected templates that begin with "{{}}"; got {list(templates[:1])}; put it first.')
    for template in templates:
        if template.count("{}") != 1:
            raise BadInput(
                f"expected one {{}} in a template; got {template.count('{}')} in {template!r}; correct it."
            )


def shares(count: int) -> Float[Tensor, " P"]:
    """What each of `count` contexts weighs in a key: the bare prompt 1/2, the others together as much; 1 if alone.

    Meng et al. 2023 average within two groups, the bare prompt and the random prefixes, and then the two means. The
    paper's eq. 19 has a plain mean.
    """
    if count == 1:
        return torch.ones(1, dtype=torch.float64)
    return torch.tensor([0.5] + [0.5 / (count - 1)] * (count - 1), dtype=torch.float64)
