"""Paper 1, Kim et al. 2025: Knowledge Entropy Decay during Language Model Pretraining
Hinders New Knowledge Acquisition."""

from kemem.entropy.attention import attention_entropy
from kemem.entropy.coefficients import (
    COEFFICIENTS,
    deficit,
    effective_memories,
    effective_share,
    layer_entropy,
)
from kemem.entropy.measure import PADDINGS, Measurement, measure
from kemem.entropy.prediction import prediction_entropy

__all__ = [
    "COEFFICIENTS",
    "PADDINGS",
    "Measurement",
    "attention_entropy",
    "deficit",
    "effective_memories",
    "effective_share",
    "layer_entropy",
    "measure",
    "prediction_entropy",
]
