"""What reviews of the three papers say or ask beyond the papers themselves, put as claims that a test can settle."""

from __future__ import annotations

from kemem.claims.das import FIELD
from kemem.claims.entropy import RIVALS, WAKING
from kemem.claims.ledger import Claim
from kemem.claims.memit import MANY
from kemem.claims.rules import RISES, Sign, Value

KIM, KE, MENG = "kim2025knowledge", "ke2023continual", "meng2023memit"
ICLR, REVIEW = "ICLR reviews", "review that this book starts from"

CLAIMS = (
    Claim(
        "review.entropy-is-special", 1, KIM, ICLR,
        "Knowledge entropy tells how much a checkpoint will acquire better than attention or next-token "
        "entropy does.",
        "correlation over stages with A: of H less that of attention entropy, less that of next-token entropy",
        Sign(RISES), chapters=RIVALS,
    ),
    Claim(
        "review.more-to-lose", 1, KIM, ICLR,
        "Later checkpoints forget more only because they have more to lose.",
        "rise of F, which divides by what there was to lose, from the first stage to the last, in points",
        Value(0.0, 5.0), chapters=RIVALS,
    ),
    Claim(
        "review.damaged-start", 1, KIM, f"{ICLR}; figure 5",
        "Lifting memories seems to help mostly because it damages the checkpoint that acquisition and "
        "forgetting are measured from.",
        "gain in A and in F against the changed start less the same gain against the unchanged one",
        Sign(RISES), chapters=WAKING,
    ),
    Claim(
        "review.layer-subset", 1, KIM, f"{ICLR}; section 6",
        "Lifting memories in some of the layers is not enough: it gains less than lifting them in all.",
        "A against the unchanged start: all layers less each subset",
        Sign(RISES), chapters=WAKING,
    ),
    Claim(
        "review.parallel-adapters", 2, "ke2022continual", REVIEW,
        "Adapters beside a sublayer, reading what it reads, do better than adapters behind it.",
        "average score of parallel less that of sequential adapters",
        Sign(RISES), chapters=FIELD,
    ),
    Claim(
        "review.unit-importance", 2, KE, REVIEW,
        "Protecting whole units, as DAS does, keeps more at the same gain than protecting single parameters, "
        "as EWC does.",
        "average score of DAS less that of EWC at its best strength",
        Sign(RISES), published={"MF1: DAS": 77.93, "EWC": 74.84}, chapters=FIELD,
    ),
    Claim(
        "review.isolation-general", 2, KE, REVIEW,
        "Isolating parameters by domain keeps each domain but loses general knowledge.",
        "loss on general text after the sequence: HAT less plain training, and less the untouched model",
        Sign(RISES), published={"MF1: HAT": 66.80, "RoBERTa": 73.64}, chapters=FIELD,
    ),
    Claim(
        "review.elle-prompts", 2, "qin2022elle", REVIEW,
        "A learned prompt for each domain, as in ELLE, keeps domains apart: the right prompt serves a domain "
        "better than another's.",
        "loss on a domain's text: under other domains' prompts less under its own",
        Sign(RISES), chapters=FIELD,
    ),
    Claim(
        "review.similar-facts", 3, MENG, REVIEW,
        "MEMIT works as well on facts that are alike as on facts that are not.",
        "S on facts of one relation less S on as many facts of many relations",
        Value(0.0, 5.0), chapters=MANY,
    ),
    Claim(
        "review.hard-relations", 3, MENG, REVIEW,
        "Some relations are hard to edit whatever the subject: relations differ by more than facts of one "
        "relation do.",
        "S of the easiest less that of the hardest relation on fresh facts, chosen on others",
        Sign(RISES), chapters=MANY,
    ),
    Claim(
        "review.reverse-fact", 3, MENG, REVIEW,
        "Rewriting a fact does not rewrite its reverse, which needs an edit of its own.",
        "change of success on reversed questions after the edit, in points",
        Value(0.0, 5.0), chapters=MANY,
    ),
)  # fmt: skip
