"""Paper 3, Meng et al. 2023: Mass-Editing Memory in a Transformer."""

from kemem.editing.alphaedit import AlphaEdit
from kemem.editing.edit import Edit, editable
from kemem.editing.emmet import EMMET
from kemem.editing.facts import KnownFact, Request, check, conflicts, without_conflicts
from kemem.editing.finetune import FineTune
from kemem.editing.generation import Generations, generate, generated_success
from kemem.editing.memit import MEMIT, prepared
from kemem.editing.mend import MEND, Networks
from kemem.editing.mend_training import Training, train_
from kemem.editing.moments import Moments, distance, effective_rank, key_moments, read_moments, text_rows
from kemem.editing.places import Place, place
from kemem.editing.pmet import PMET
from kemem.editing.prefixes import sampled
from kemem.editing.prompts import PLAIN, check_templates, contexts
from kemem.editing.readers import known_facts, requests
from kemem.editing.rome import ROME
from kemem.editing.scores import Judge, Scores, score
from kemem.editing.sequential import in_batches
from kemem.editing.solve import closed_form, equality
from kemem.editing.targets import Search, Values, values
from kemem.editing.tracing import Traces, noise_scale, suggested_layers, trace

__all__ = [
    "EMMET",
    "MEMIT",
    "MEND",
    "PLAIN",
    "PMET",
    "ROME",
    "AlphaEdit",
    "Edit",
    "FineTune",
    "Generations",
    "Judge",
    "KnownFact",
    "Moments",
    "Networks",
    "Place",
    "Request",
    "Scores",
    "Search",
    "Traces",
    "Training",
    "Values",
    "check",
    "check_templates",
    "closed_form",
    "conflicts",
    "contexts",
    "distance",
    "editable",
    "effective_rank",
    "equality",
    "generate",
    "generated_success",
    "in_batches",
    "key_moments",
    "known_facts",
    "noise_scale",
    "place",
    "prepared",
    "read_moments",
    "requests",
    "sampled",
    "score",
    "suggested_layers",
    "text_rows",
    "trace",
    "train_",
    "values",
    "without_conflicts",
]
