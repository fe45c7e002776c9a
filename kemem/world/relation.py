"""What a relation is: the columns of the table in relations.py."""

from dataclasses import dataclass

KINDS = (
    "plain", "several", "date", "number", "containment", "order", "symmetric", "inverse", "inflection",
    "procedure",
)  # fmt: skip
SPLITS = ("trained", "held_out", "fictional")
PARTS = ("tuning", "reported")


@dataclass(frozen=True)
class Relation:
    """One relation. `source` names the rule (facts.py) that chooses the objects, `chain` what it follows."""

    name: str
    kind: str
    subject: str
    object: str
    templates: tuple[str, ...]
    questions: tuple[str, ...]
    source: str = "draw"
    share: float = 1.0  # of the subjects that have a fact of this relation
    least: int = 1  # objects of a fact
    most: int = 1
    chain: tuple[str, ...] = ()
    inverse: str | None = None
    stated: float = 1.0  # share of the facts that documents may tell; the others only follow from those
    join: tuple[str, str] = (", ", " and ")
    local: bool = False  # in a fictional passage, the object is one of its own entities

    @property
    def cloze(self) -> tuple[str, ...]:
        """The templates that end with the object."""
        return tuple(template for template in self.templates if template.endswith("_"))

    @property
    def linked(self) -> bool:
        """Whether the object has a fact about the subject in turn."""
        return self.inverse is not None


def row(name: str, kind: str, types: str, templates: str, questions: str, **more) -> Relation:
    """A row of the table; `types` is "subject > object", one template or question a line."""
    subject, object_ = types.split(" > ")
    lines = [line.strip() for line in templates.strip().splitlines()]
    asked = [line.strip() for line in questions.strip().splitlines()]
    return Relation(name, kind, subject, object_, tuple(lines), tuple(asked), **more)
