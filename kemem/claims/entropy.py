"""Claims of Kim et al., "Knowledge Entropy Decay during Language Model Pretraining Hinders New Knowledge Acquisition".

A: acquisition, F: forgetting, both in %, with |K| and P of the start as their base; K: mean log-probability of probes;
P: mean accuracy on six tasks in %; H: knowledge entropy in nats. CL: continual learning. Stages of the published tables
are 118, 369, 554 and 738 thousand steps of OLMo-1B.
"""

from __future__ import annotations

from typing import Any

from kemem.claims.ledger import Claim, Number
from kemem.claims.rules import FALLS, RISES, Agreement, Order, Rule, Sign, Trend
from kemem.studies.tables import KIM

DECAY, LEARNING = ("03_entropy_decay",), ("05_acquisition",)
RIVALS, WAKING = ("06_rivals",), ("07_resuscitation",)
TABLE_1 = "section 4.2; table 1"


def _claim(number: int, where: str, statement: str, quantity: str, rule: Rule, **rest: Any) -> Claim:
    return Claim(f"entropy.{number}", 1, "kim2025knowledge", where, statement, quantity, rule, **rest)


def _axis(low: Number, high: Number, of: str = "") -> dict[str, tuple[Number, ...]]:
    """What is printed of a figure without numbers: where its axis begins and ends."""
    return {f"axis range{of and ', '}{of}": (low, high)}


# by stage, from tables 1 and 2
A, F = {"A": KIM["baseline"].acquisition}, {"F": KIM["baseline"].forgetting}
K, P = {"K": KIM["baseline"].knowledge}, {"P": KIM["baseline"].performance}


def _setting(name: str, printed: str) -> dict[str, tuple[float, ...]]:
    return {f"A, {printed}": KIM[name].acquisition, f"F, {printed}": KIM[name].forgetting}


BATCH, HIGH_RATE = _setting("batch x 16", "batch 2048"), _setting("rate x 2.5", "rate 1e-3")
LOW_RATE, EPOCHS = _setting("rate / 4", "rate 1e-4"), _setting("3 epochs", "3 epochs")

CLAIMS = (
    _claim(
        1, "section 3.3; figure 2",
        "On text of its own training corpus, a model's knowledge entropy falls from each stage of pretraining "
        "to the next.",
        "H at 20, 50, 75 and 100 % of the schedule, in nats",
        Order(FALLS), published=_axis(143.6, 144.0, "1B") | _axis(297.0, 297.6, "7B"), chapters=DECAY,
    ),
    _claim(
        2, "appendix A.2; figure 8",
        "Every layer's entropy falls, and that of the last layer falls most.",
        "change of each layer's H after the first stage, and that of the last layer less that of each other, "
        "in nats",
        Sign(FALLS), published=_axis(8.88, 9.00, "1B, a layer") | _axis(9.12, 9.30, "7B, a layer"), chapters=DECAY,
    ),
    _claim(
        3, "section 3.4, appendix A.3; figure 3",
        "Attention entropy falls as well, and more steeply before the first stage than after it.",
        "change after the first stage, and slope before it less slope after, in nats (a schedule)",
        Sign(FALLS), published=_axis(40, 70), chapters=DECAY,
    ),
    _claim(
        4, "section 3.4, appendix A.4; figure 3",
        "The entropy of the next-token prediction falls as well.",
        "change after the first stage, in nats a token", Sign(FALLS), published=_axis(2.4, 2.8), chapters=DECAY,
    ),
    _claim(
        5, f"{TABLE_1}, baseline; figure 4",
        "The later the checkpoint from which continual learning starts, the less of what is new it acquires.",
        "A at each stage", Order(FALLS), published=A, chapters=LEARNING,
    ),
    _claim(
        6, f"{TABLE_1}, baseline; figure 4",
        "The later the checkpoint from which continual learning starts, the more of its abilities it loses.",
        "F at each stage", Order(RISES), published=F, chapters=LEARNING,
    ),
    _claim(
        7,
        "section 4.2; table 2, baseline; figures 4 and 12",
        "After continual learning, those that began in the middle of pretraining end best and those that began"
        " at its end worst.",
        "K and P at the end of CL: middle stage less first, middle less last, first less last",
        Sign(RISES), published=K | P, chapters=LEARNING,
    ),
    _claim(
        8,
        "appendix B; figure 12; derived from tables 1 and 2",
        "Before continual learning the order is the other way round: later checkpoints know more and solve "
        "more tasks.",
        "K and P before CL, each stage less the one before",
        Sign(RISES), published={"K before": (-0.375, -0.372, -0.372, -0.371), "P before": (60.3, 62.7, 63.6, 64.6)},
        chapters=LEARNING,
    ),
    _claim(
        9, "section 4.2, footnote 11",
        "Among checkpoints of one model, more knowledge entropy goes with more acquisition and with less "
        "forgetting.",
        "Pearson correlation over stages: of H with A, and of H with F with its sign turned",
        Sign(RISES), published={"r(H, A)": 0.94, "r(H, F)": -0.96}, chapters=LEARNING,
    ),
    _claim(
        10, "section 4.3; figure 5",
        "Lifting the less used half of the memories of the final checkpoint to the mean of their layer or "
        "above makes it acquire more and forget less, and end no worse.",
        "with the change less without, from the unchanged start: A, F with its sign turned, K and P at the end",
        Sign(RISES),
        published={"unchanged: A": 18.8, "unchanged: F": 19.5, "unchanged: K": -0.301, "unchanged: P": 52.0},
        chapters=WAKING,
    ),
    _claim(
        11, "section 4.3; figure 5",
        "Setting them to half of that mean makes it acquire less and forget more.",
        "with the change less without: A, and F with its sign turned",
        Sign(FALLS), chapters=WAKING,
    ),
    _claim(
        12, "section 4.3",
        "A lifted final checkpoint still ends below an unchanged one whose knowledge entropy is about the "
        "same.",
        "K and P at the end: lifted final stage less unchanged middle stage",
        Sign(FALLS), chapters=WAKING,
    ),
    _claim(
        13, "appendix A.2; figure 7",
        "The direction in which knowledge entropy moves is the same on other kinds of text.",
        "change of H after the first stage on each text, in nats",
        Agreement(), published=_axis(143.3, 143.9), chapters=DECAY,
    ),
    _claim(
        14, "appendix A.2; figure 9",
        "The direction is the same when negative coefficients are set to zero instead of losing their sign.",
        "change of H after the first stage under each reading of the coefficient, in nats",
        Agreement(), published=_axis(143.2, 144.0), chapters=DECAY,
    ),
    _claim(
        15, "appendix A.2; figure 6",
        "Knowledge entropy tends to fall over the checkpoints of Pythia too.",
        "H at each checkpoint, in nats", Trend(FALLS), published=_axis(143.4, 143.7),
        needs="checkpoints of Pythia from the hub, in three sizes at least to stand for seeds; the axis of the"
        " figure fits a model of 16 layers and not the one that is named",
    ),
    _claim(
        16,
        "section 4.2, appendix B.4.2; tables 1 and 2; figure 4",
        "That late checkpoints acquire less and forget more holds with a larger batch, a higher rate, more "
        "epochs, another corpus and a larger model; with a lower rate it holds of forgetting alone.",
        "last stage less first in each setting: A (not at the lower rate), and F with its sign turned",
        Sign(FALLS), published=BATCH | HIGH_RATE | EPOCHS | LOW_RATE, chapters=RIVALS,
    ),
    _claim(
        17, f"{TABLE_1}, batch 2048",
        "A larger batch acquires less and forgets less, unless it collapses.",
        "A and F at each stage but one that collapses: batch 2048 less batch 128",
        Sign(FALLS), published=A | F | BATCH, chapters=RIVALS,
    ),
    _claim(
        18, f"{TABLE_1}, rate 1e-3",
        "A higher learning rate acquires less and forgets more.",
        "A, and F with its sign turned, at each stage: rate 1e-3 less 4e-4",
        Sign(FALLS), published=A | F | HIGH_RATE, chapters=RIVALS,
    ),
    _claim(
        19, f"{TABLE_1}, rate 1e-4",
        "A lower learning rate forgets less, whatever the stage.",
        "F at each stage: rate 1e-4 less 4e-4", Sign(FALLS), published=F | LOW_RATE, chapters=RIVALS,
    ),
    _claim(
        20, f"{TABLE_1}, 3 epochs", "More epochs acquire more and forget more.",
        "A and F at each stage: 3 epochs less 1", Sign(RISES), published=A | F | EPOCHS, chapters=RIVALS,
    ),
    _claim(
        21, "appendix B.4.2; figure 13",
        "How much less the last checkpoint acquires than the first is more on biomedical abstracts than on web"
        " text, though the abstracts leave the model better off at every stage.",
        "fall of A from first to last stage on PubMed less that on C4; A, F with its sign turned, K and P on "
        "PubMed less on C4",
        Sign(RISES), published={"change of A, PubMed": -6.4, "C4": -3.4}, chapters=RIVALS,
    ),
    _claim(
        22, "appendix B.3; figure 11",
        "What is injected ten times in changing words is acquired better at every stage than what is injected "
        "once, and from the last checkpoint the latter is lost.",
        "A of paraphrased less A of single injections at each stage; A of single ones at the last with its "
        "sign turned",
        Sign(RISES), published=_axis(0, 40, "A") | _axis(-0.400, -0.200, "K"), chapters=LEARNING,
    ),
    _claim(
        23, "appendix B.6; figure 15",
        "Lifting a larger share of the memories to the mean helps more, but lifting nine tenths hurts.",
        "A with half of them lifted less A with fewer, and less A with nine tenths",
        Sign(RISES), chapters=WAKING,
    ),
    _claim(
        24, "appendix B.7; figures 16 and 17",
        "Lifting half of the memories to twice the mean helps the more the later the checkpoint, and at early "
        "ones it ends worse.",
        "K and P at the end, with the change less without: each stage less the one before, and the first two "
        "with their sign turned",
        Sign(RISES), chapters=WAKING,
    ),
    _claim(
        25, "appendix B.8; figure 18",
        "Softening attention by a temperature acquires less than lifting memories, and forgets more.",
        "lifting (half, to twice the mean) less temperature, for 1.5 to 3.0: A, and F with its sign turned",
        Sign(RISES), published={"temperatures": (1.5, 3.0)}, chapters=WAKING,
    ),
    _claim(
        26, "appendix B.5; figure 14",
        "Over as many tokens as Pythia read, acquisition still rises with the stage, as it does at the "
        "beginning of OLMo.",
        "A at each checkpoint of Pythia", Trend(RISES), published={"OLMo-1B turns at about (steps)": 118_000},
        needs="continual learning from checkpoints of Pythia: models from the hub and a GPU",
    ),
)  # fmt: skip
