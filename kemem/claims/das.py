"""Claims of Ke et al., "Continual Pre-training of Language Models" (DAS).

MF1: macro-F1 in % (micro-F1 for ChemProt), as a mean over six end tasks; FR: forgetting rate, mean loss of a domain's
score by the end of the sequence in points, negative where later domains helped. Published numbers are means over five
seeds of fine-tuning; their spread could not be read. At our scales the score is minus the held-out loss, and beside it
what a linear probe of the domains' end tasks finds; for claim 8, which is about end tasks alone, the probe comes first.
"""

from __future__ import annotations

from typing import Any

from kemem.claims.ledger import Claim
from kemem.claims.rules import FALLS, RISES, Rule, Sign

FORGETTING, PARTS, FIELD = ("08_forgetting",), ("09_das",), ("10_methods",)


def _claim(number: int, where: str, statement: str, quantity: str, rule: Rule, **rest: Any) -> Claim:
    return Claim(f"das.{number}", 2, "ke2023continual", where, statement, quantity, rule, **rest)


CLAIMS = (
    _claim(
        1, "section 4.2; table 2",
        "DAS has a higher average score than every baseline.",
        "average score of DAS less that of each other method",
        Sign(RISES),
        published={
            "MF1: DAS": 77.93, "NCL": 76.36, "DAP-RoBERTa": 76.40, "accuracy: DAS": 81.91,
            "accuracy: NCL": 80.77, "accuracy: DAP-RoBERTa": 80.89,
        },
        chapters=FIELD,
    ),
    _claim(
        2, "section 4.2; table 2",
        "Learning domains in turn with DAS is at least as good as learning all of them at once.",
        "average score of DAS less that of Pool", Sign(RISES), published={"MF1: DAS": 77.93, "Pool": 77.25},
        chapters=FIELD,
    ),
    _claim(
        3, "section 4.2; table 2",
        "With DAS later domains help earlier ones, more than with any baseline, while plain training forgets.",
        "FR of DAS, FR of DAS less that of each other method, and FR of plain training with its sign turned",
        Sign(FALLS), published={"FR in MF1: DAS": -1.09, "NCL": 1.14, "FR in accuracy: DAS": -0.60}, chapters=FIELD,
    ),
    _claim(
        4, "section 4.2; table 2",
        "Methods made only against forgetting end below plain training, and replay from a small buffer even "
        "forgets more.",
        "average score of KD, EWC and DER++ less that of NCL; FR of NCL less that of DER++",
        Sign(FALLS),
        published={
            "MF1: NCL": 76.36, "KD": 75.17, "EWC": 74.84, "DER++": 75.51, "FR: KD": -0.07, "FR: EWC": 0.02,
            "FR: DER++": 2.36, "FR: NCL": 1.14,
        },
        chapters=FIELD,
    ),
    _claim(
        5, "section 4.2; table 2",
        "Adapter methods made for transfer end below plain training too.",
        "average score of BCL, CLASSIC and DEMIX less that of NCL",
        Sign(FALLS), published={"MF1: NCL": 76.36, "BCL": 75.78, "CLASSIC": 74.63, "DEMIX": 74.70}, chapters=FIELD,
    ),
    _claim(
        6, "section 4.2; table 2",
        "Training the whole model on a domain is better than training prompts or adapters beside it, one "
        "domain or many.",
        "average score: DAP-RoBERTa less DAP-Prompt, DAP-RoBERTa less DAP-Adapter, NCL less NCL-Adapter",
        Sign(RISES),
        published={
            "MF1: DAP-RoBERTa": 76.40, "DAP-Prompt": 74.98, "DAP-Adapter": 74.60, "NCL": 76.36,
            "NCL-Adapter": 74.05,
        },
        chapters=FIELD,
    ),
    _claim(
        7, "section 4.2; table 2",
        "Giving each domain parameters of its own inside the model ends below a model that saw no domain at "
        "all.",
        "average score of HAT less that of the untouched model, and of HAT with all features less that of HAT",
        Sign(FALLS), published={"MF1: RoBERTa": 73.64, "HAT": 66.80, "HAT-All": 59.93, "FR: HAT-All": 3.23},
        chapters=FIELD,
    ),
    _claim(
        8, "section 4.2; table 2",
        "Training on a domain's text improves its end task on average, though not every one.",
        "average score of DAP-RoBERTa less that of RoBERTa",
        Sign(RISES), published={"MF1, average": 2.76, "AI": 7.99, "Camera": 5.57, "Phone": -1.16}, chapters=FORGETTING,
    ),
    _claim(
        9, "section 4.2; table 4", "Every part of DAS raises the average score.",
        "average score of DAS less that without initialisation, without the mask, with random importance, "
        "without contrast, and with domain-specific contrast",
        Sign(RISES),
        published={
            "MF1: initialisation": 0.98, "mask": 0.74, "importance": 1.21, "contrast": 1.42,
            "full contrast": 0.91,
        },
        chapters=PARTS,
    ),
    _claim(
        10, "section 4.2; table 4",
        "Protecting general knowledge from the start is what keeps DAS from forgetting: without it, or with "
        "random importance, there is forgetting.",
        "FR without initialisation and with random importance, each by itself and less that of DAS",
        Sign(RISES), published={"FR: DAS": -1.09, "without initialisation": 0.70, "random": 0.45}, chapters=PARTS,
    ),
    _claim(
        11, "section 4.2; table 3",
        "As a stand-in for the original corpus, the divergence of two noisy passes finds better units to "
        "protect than the training loss, and on which text it is taken hardly matters.",
        "average score with the divergence less with the loss, both on Wikipedia; that gain less the distance "
        "between divergence on Wikipedia and on domain text",
        Sign(RISES), published={"MF1: Wikipedia, KL": 77.75, "Wikipedia, MLM": 76.39, "domain, KL (DAS)": 77.93},
        chapters=PARTS,
    ),
    _claim(
        12, "section 4.2",
        "Which heads matter to general knowledge is found alike from the text of any domain.",
        "mean cosine of a domain's importance of heads with that of the others, less the same of unrelated "
        "scores normalised alike",
        Sign(RISES),
        published={
            "cosine: Restaurant": 0.92, "ACL": 0.91, "AI": 0.91, "Phone": 0.91, "PubMed": 0.89, "Camera": 0.92,
        },
        chapters=PARTS,
    ),
)  # fmt: skip
