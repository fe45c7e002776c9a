"""Tokenizers: trained on the corpus at hand, or loaded."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kemem import commits
from kemem.corpora.files import expanded
from kemem.errors import BadInput

END, PADDING, MASK, UNKNOWN = "<|endoftext|>", "<|padding|>", "<mask>", "<unk>"
UNITS = ("bytes", "word")


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, unit: str = "bytes") -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` entries, the same each time it is trained on the same texts.

    unit "bytes": byte-level BPE, which gives every text back unchanged. unit "word": the most frequent words
    and signs, for toy models; the others become `<unk>`. Ids 0, 1, 2 are end of text, padding and mask.
    Refused: a vocabulary too small for the alphabet, no text.
    """
    special = [END, PADDING, MASK]
    if unit == "bytes":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        smallest = len(special) + len(alphabet)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif unit == "word":
        special = [*special, UNKNOWN]
        core = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        smallest = len(special) + 1
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=special, show_progress=False
        )
    else:
        raise BadInput(f"the unit of a tokenizer is one of {', '.join(UNITS)}; got {unit!r}.")
    if vocab_size < smallest:
        raise BadInput(f"a vocabulary of {unit} needs at least {smallest} entries; got {vocab_size}.")
    texts = iter(texts)
    if (first := next((text for text in texts if text.strip()), None)) is None:
        raise BadInput("a tokenizer is trained on text; got none; pass a corpus that is not empty.")
    core.train_from_iterator(chain([first], texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END,
        eos_token=END,
        pad_token=PADDING,
        mask_token=MASK,
        unk_token=UNKNOWN if unit == "word" else None,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer from a JSON file of the `tokenizers` package, a local folder, or the hub.

    revision: of the hub, a branch, tag or commit, or the beginning of one branch ("step1000" of
    "step1000-tokens4B"), as for models. A JSON file names no roles, so end of text, padding and mask are found by
    their customary names. One of the hub that was loaded before is found again without a network. A path may begin
    with `$KEMEM_DATA`. Refused: a revision that is not there, with those nearby.
    """
    place = expanded(name)
    if place.is_file():
        return _from_json(place)
    folder = place.is_dir()
    if not folder and (place.is_absolute() or name.startswith((".", "~")) or name.endswith(".json")):
        raise BadInput(f"a tokenizer is a JSON file, a folder or a name on the hub; {name} does not exist.")
    commit = reason = None
    if not folder:
        try:
            # one request first: without a network, loading retries for a minute before it looks at its cache
            commit = commits.resolved(name, revision)[1]
        except BadInput:
            raise
        except Exception as error:  # whatever the network or a proxy can raise
            reason = error
            known = commits.kept(name)
            if revision is not None and known:
                revision = known.get(commits.chosen(name, revision, known, default=revision), revision)
    try:
        found = AutoTokenizer.from_pretrained(
            str(place) if folder else name, revision=commit or revision, local_files_only=commit is None
        )
        if len(found) <= len(found.all_special_tokens):  # transformers 5.0 makes one up for an empty folder
            raise ValueError("it has no vocabulary")
        return found
    except Exception as error:  # as above, and whatever is wrong with the files
        reason = " ".join(str(reason or error).split())[:160] or type(error).__name__
        raise BadInput(
            f"a tokenizer is a JSON file, a folder or a name on the hub; {name} was not loaded: {reason}."
        ) from None


def _from_json(file: Path) -> PreTrainedTokenizerFast:
    try:
        core = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"a tokenizer file is JSON of the tokenizers package; {file} could not be read: {reason}."
        ) from None
    roles = {
        "eos_token": (END, "</s>", "[SEP]"),
        "pad_token": (PADDING, "<|pad|>", "<pad>", "[PAD]"),
        "mask_token": (MASK, "[MASK]"),
        "unk_token": (UNKNOWN, "[UNK]"),
    }
    found = {
        role: next((name for name in names if core.token_to_id(name) is not None), None)
        for role, names in roles.items()
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **found)
