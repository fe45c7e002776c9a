"""Paper 2, Ke et al. 2023: Continual Pre-training of Language Models (DAS), and the systems beside it.

A way of learning is a `kemem.training.Method` in a file of its own; `learn` runs any of them over several domains.
"""

from kemem.continual.adapters import Adapter
from kemem.continual.bcl import BCL
from kemem.continual.classic import CLASSIC
from kemem.continual.cpt import CPT
from kemem.continual.das import DAS
from kemem.continual.demix import DEMIX
from kemem.continual.distillation import KD
from kemem.continual.elle import ELLE
from kemem.continual.ewc import EWC, FisherMask
from kemem.continual.finetuning import FineTuning, Probing, asked
from kemem.continual.gates import Units, gated
from kemem.continual.hat import HAT
from kemem.continual.hat_adapter import HATAdapter
from kemem.continual.lora import LoRA
from kemem.continual.prompts import Prompt
from kemem.continual.replay import DERpp, Replay
from kemem.continual.sequence import Course, Held, learn, pooled, specialists
from kemem.continual.supsup import SupSup

__all__ = [
    "BCL",
    "CLASSIC",
    "CPT",
    "DAS",
    "DEMIX",
    "ELLE",
    "EWC",
    "HAT",
    "KD",
    "Adapter",
    "Course",
    "DERpp",
    "FineTuning",
    "FisherMask",
    "HATAdapter",
    "Held",
    "LoRA",
    "Probing",
    "Prompt",
    "Replay",
    "SupSup",
    "Units",
    "asked",
    "gated",
    "learn",
    "pooled",
    "specialists",
]
