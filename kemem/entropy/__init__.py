"""Paper 1, Kim et al. 2025: Knowledge Entropy Decay during Language Model Pretraining
Hinders New Knowledge Acquisition."""

from kemem.entropy.acquisition import Acquired, Injection, Schedule, acquire, schedule
from kemem.entropy.attention import attention_entropy
from kemem.entropy.coefficients import (
    COEFFICIENTS,
    deficit,
    effective_memories,
    effective_share,
    layer_entropy,
)
from kemem.entropy.measure import PADDINGS, Measurement, measure
from kemem.entropy.moved import Updates, updates
from kemem.entropy.passages import GROUPS, KINDS, Passage, acquisition, forgetting, passages
from kemem.entropy.prediction import prediction_entropy
from kemem.entropy.probing import REDUCTIONS, Prepared, Probes, probe
from kemem.entropy.resuscitation import (
    Against,
    against,
    idle,
    multiplier,
    reparameterise_,
    resuscitate_,
    resuscitated,
)
from kemem.entropy.temperature import CoolAttention, attention_temperature
from kemem.entropy.waking import WakeIdle

__all__ = [
    "COEFFICIENTS",
    "GROUPS",
    "KINDS",
    "PADDINGS",
    "REDUCTIONS",
    "Acquired",
    "Against",
    "CoolAttention",
    "Injection",
    "Measurement",
    "Passage",
    "Prepared",
    "Probes",
    "Schedule",
    "Updates",
    "WakeIdle",
    "acquire",
    "acquisition",
    "against",
    "attention_entropy",
    "attention_temperature",
    "deficit",
    "effective_memories",
    "effective_share",
    "forgetting",
    "idle",
    "layer_entropy",
    "measure",
    "multiplier",
    "passages",
    "prediction_entropy",
    "probe",
    "reparameterise_",
    "resuscitate_",
    "resuscitated",
    "schedule",
    "updates",
]
