"""Claims of Meng et al., "Mass-Editing Memory in a Transformer" (MEMIT).

ES, PS, NS: efficacy, paraphrase and neighbourhood success in %; S: their harmonic mean; GE: entropy of generated
n-grams, times 100; RS: similarity to reference texts, times 100; n: edits made at once. Numbers are of GPT-J and
10,000 edits unless said. Tolerances where the paper says "about" are ours.
"""

from __future__ import annotations

from typing import Any

from kemem.claims.ledger import Claim
from kemem.claims.rules import FALLS, RISES, Order, Rule, Sign, Value

LOOKUP, ONE, MANY, FIELD = ("11_knowledge_base",), ("12_one_fact",), ("13_thousands",), ("14_field",)
TABLE_1, TABLE_2 = "section 5.2.1; table 1", "section 5.2.2; table 2"


def _claim(number: int, where: str, statement: str, quantity: str, rule: Rule, **rest: Any) -> Claim:
    return Claim(f"memit.{number}", 3, "meng2023memit", where, statement, quantity, rule, **rest)


CLAIMS = (
    _claim(
        1, TABLE_1,
        "On zsRE the score falls from MEMIT over fine-tuning, no edit and MEND to ROME.",
        "Score of MEMIT, FT-W, no edit, MEND, ROME", Order(FALLS),
        published={"Score: MEMIT": 50.7, "FT-W": 42.1, "none": 26.4, "MEND": 20.0, "ROME": 2.6}, chapters=FIELD,
    ),
    _claim(
        2, TABLE_1,
        "On zsRE nearly every edit of MEMIT takes, and paraphrases follow within about 7 points.",
        "Efficacy less 95; Paraphrase less Efficacy, plus 8",
        Sign(RISES), published={"Efficacy": 96.7, "Paraphrase": 89.7}, chapters=FIELD,
    ),
    _claim(
        3, TABLE_1,
        "On zsRE MEMIT leaves unrelated answers as they were, within a point, while ROME destroys them.",
        "1 less the distance of MEMIT's Specificity from the unedited; 2 less ROME's Specificity",
        Sign(RISES), published={"Specificity: none": 27.0, "MEMIT": 26.6, "ROME": 0.9}, chapters=FIELD,
    ),
    _claim(
        4, TABLE_2,
        "On CounterFact the score falls from MEMIT over fine-tuning and ROME to MEND, which is near no edit.",
        "S of MEMIT, FT-W, ROME, MEND", Order(FALLS),
        published={"S: MEMIT": 85.8, "FT-W": 67.6, "ROME": 50.3, "MEND": 23.1, "none": 22.4}, chapters=FIELD,
    ),
    _claim(
        5, TABLE_2,
        "Fine-tuning writes the facts no worse than MEMIT, but at the cost of their neighbours and of fluent "
        "text.",
        "ES of FT-W less that of MEMIT; NS of MEMIT less that of FT-W, less 20; half of the unedited GE less "
        "that of FT-W",
        Sign(RISES),
        published={
            "ES: FT-W": 99.4, "ES: MEMIT": 98.9, "NS: FT-W": 46.9, "NS: MEMIT": 73.7, "GE: FT-W": 293.9,
            "GE: none": 622.4,
        },
        chapters=FIELD,
    ),
    _claim(
        6, TABLE_2,
        "After MEMIT text is as fluent as before, within one per cent, and nearer to what is told of the new "
        "object.",
        "1 less the distance of GE from the unedited in %; RS less that of the unedited",
        Sign(RISES), published={"GE: none": 622.4, "GE: MEMIT": 619.9, "RS: none": 29.4, "RS: MEMIT": 40.1},
        chapters=FIELD,
    ),
    _claim(
        7, TABLE_2,
        "MEMIT costs neighbouring facts about 10 points.",
        "NS of MEMIT less that of the unedited model", Value(-10.0, 5.0), published={"NS: none": 83.5, "MEMIT": 73.7},
        chapters=MANY,
    ),
    _claim(
        8, TABLE_2,
        "A model three times as large is edited nearly as well, and far better than not at all.",
        "on GPT-NeoX, S of MEMIT less that of the unedited model; 6 less how far S lies below that on GPT-J",
        Sign(RISES), published={"S: GPT-NeoX": 23.7, "GPT-NeoX, MEMIT": 82.0, "GPT-J, MEMIT": 85.8},
        needs="edits on two models, one three times as large as the other (part 3)",
    ),
    _claim(
        9, TABLE_2 + "; figure 5",
        "ROME made one edit after another breaks down between 10 and 32 edits and ends at chance.",
        "S at n = 10 less S at n = 32; 5 less the distance of ES, of PS and of NS from 50 at the largest n",
        Sign(RISES), published={"ES": 50.2, "PS": 50.4, "NS": 50.2}, chapters=FIELD,
    ),
    _claim(
        10, TABLE_2 + "; figure 5",
        "MEND loses efficacy by 6 edits already, and thousands of them have no effect.",
        "ES at n = 6 less ES at n = 1; distance of ES from the unedited at the largest n, less 1",
        Sign(FALLS), published={"ES: MEND": 15.7, "none": 15.2},
        chapters=FIELD,
    ),
    _claim(
        11, "section 5.2.2; figure 5",
        "With few edits ROME generalises better than MEMIT and is less specific.",
        "at n of 10 or less, PS of ROME less that of MEMIT, and NS of MEMIT less that of ROME",
        Sign(RISES), chapters=FIELD,
    ),
    _claim(
        12, "appendix F.3; figure 13",
        "The more the old memory weighs, the better neighbours and fluency and the worse efficacy and "
        "paraphrases; in between the score is best.",
        "rank correlation with the weight: NS, GE, and ES and PS with their sign turned; best S less S at each"
        " end",
        Sign(RISES), published={"best weight, about": 10_000}, chapters=MANY,
    ),
    _claim(
        13, "appendix F.1 and F.2; figures 11 and 12",
        "Spreading an edit over more of the critical layers is better in every score, and editing late layers "
        "or attention is much worse.",
        "ES, PS and NS: all critical layers less one; S: critical layers less late layers, and less attention",
        Sign(RISES), chapters=MANY,
    ),
    _claim(
        14, "section 5.3; figure 6",
        "MEMIT scores above fine-tuning and MEND in each relation.",
        "by relation, S of MEMIT less that of FT-W, and less that of MEND",
        Sign(RISES), published={"relations": 27, "cases in each, at least": 300},
        chapters=MANY,
    ),
    _claim(
        15, "section 5.4, appendix D; figure 7",
        "Facts of two relations edited together score about as the two do on average.",
        "S of the mixture less the mean of its two relations, for each pair",
        Value(0.0, 5.0), published={"pairs": 4, "edits at most": 700}, chapters=MANY,
    ),
    _claim(
        16, "section 4.1, appendix A; figure 3",
        "Restoring early or middle layers at the subject's last token restores the answer most, and does so "
        "through the feed-forward layers that follow, not through attention.",
        "indirect effect at the subject's last token: best early or middle layer less best late one, less best"
        " other token; effect that is lost with feed-forward severed less that with attention severed, up to "
        "the last edited layer",
        Sign(RISES), published={"GPT-J: gap closes after layer": 8},
        chapters=LOOKUP,
    ),
    _claim(
        17, "appendix B",
        "In time for many edits MEND is the cheapest, then fine-tuning, MEMIT and ROME; most of MEMIT's goes "
        "into its target vectors.",
        "seconds, each less the one before, in the order MEND, FT-W, MEMIT, ROME; share of MEMIT's spent on "
        "targets in %, less 80",
        Sign(RISES),
        published={
            "seconds: MEND": 98.25, "FT-W": 1716.21, "MEMIT, targets": 23546.65, "MEMIT, the rest": 3226.35,
            "ROME": 44248.26,
        },
        chapters=FIELD,
    ),
    _claim(
        18, "section 4.3, appendix B.4",
        "The target vector of a fact does not depend on the facts that are edited with it.",
        "largest relative difference of targets between batches and orders",
        Value(0.0, 1e-4), chapters=ONE,
    ),
    _claim(
        19, "section 4.2 (follows from its equations)",
        "A single edit by MEMIT is ROME's edit shrunk by a known factor, and as the old memory's weight goes "
        "to zero the key yields its target exactly.",
        "relative distance: from the shrunk edit, and of the written value from its target at a vanishing "
        "weight",
        Value(0.0, 1e-6), chapters=ONE,
    ),
)  # fmt: skip
