"""One fact, read three ways: clean, with its subject corrupted, and corrupted with clean states put back.

Meng et al. 2022 (Locating and Editing Factual Associations in GPT), section 2, and 2023, section 3. With o the token
that answers the prompt, p its probability after the clean prompt, p* after the corrupted one, on average over
samples of the noise:

    total     = p[o]                    - p*[o]
    indirect  = p*[o | part restored]   - p*[o]                     what the part alone brings back
    direct    = p[o]                    - p*[o | part restored]     what corruption takes although the part is clean

so total = direct + indirect. In the terms of mediation analysis (Pearl 2001) with the part as mediator: `indirect` is
the natural indirect effect of taking the corruption back, `direct` the natural direct effect of the corruption, each
with its sign turned so that above 0 the clean run is the more probable one.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kemem import trace
from kemem.editing.facts import KnownFact
from kemem.editing.passes import answers, next_token
from kemem.editing.places import Place, found, leading
from kemem.errors import BadInput
from kemem.evaluation import encode
from kemem.memory import Memories
from kemem.models import MASKED
from kemem.world.draws import digest

KINDS = ("state", "mlp", "attention")


@dataclass(frozen=True)
class Question:
    """A fact in tokens: its prompt, where its subject stands, and the token that answers it."""

    fact: KnownFact
    place: Place
    answer: int


def questions(tokenizer: Any, facts: Sequence[KnownFact], *, longest: int | None = None) -> list[Question]:
    """The facts as they are asked. The answer is the first token of the attribute, after the prompt and a space.

    longest: the model's context, in tokens. Refused, by known_id: a prompt that is longer, or does not name its
    subject; an attribute without a token; no facts.
    """
    if not facts:
        raise BadInput("expected facts to trace; got none; give at least one.")
    start = leading(tokenizer)
    return [_question(tokenizer, fact, start, longest) for fact in facts]


def _question(tokenizer: Any, fact: KnownFact, start: tuple[int, ...], longest: int | None) -> Question:
    if not fact.attribute.strip():
        raise BadInput(
            f"expected an attribute; got an empty one in fact {fact.known_id}; leave the record out."
        )
    read = found(tokenizer, fact.prompt, fact.subject, case_id=fact.known_id)
    span = encode(tokenizer, fact.prompt, f" {fact.attribute.lstrip()}", start=start)
    if read.ids[: span.begin] != span.prompt or read.last >= span.begin:
        raise BadInput(
            f"expected a tokenizer that reads a prompt alike with and without special tokens; got another in fact "
            f"{fact.known_id}; leave the record out."
        )
    if longest is not None and span.begin > longest:
        raise BadInput(
            f"expected prompts within the model's context of {longest} tokens; got {span.begin} in fact "
            f"{fact.known_id}; leave the record out."
        )
    # tokens after the text, such as </s>, would stand where the answer is read
    return Question(fact, Place(span.prompt, read.first, read.last), span.target[0])


class Restored(NamedTuple):
    """A part of the corrupted run that takes its values from the clean one: the outputs of `kind` in some layers.

    kind: "state" (of the block), "mlp" or "attention". severed: "mlp" or "attention", whose outputs at the last token
    of the subject are held in every layer at what they are in the corrupted run, so that what a restored state brings
    back does not pass through them: of use with "state" alone, and in the layers above it.
    """

    kind: str
    layers: Sequence[int]
    tokens: Sequence[int]
    severed: str | None = None


@dataclass(frozen=True, eq=False)
class Clean:
    """The clean run. probability: of the answer. known: no token is more probable. outputs: by kind and layer."""

    question: Question
    embedded: Float[Tensor, "T D"]
    probability: float
    known: bool
    outputs: Mapping[str, tuple[Float[Tensor, "T D"], ...]]


@dataclass(frozen=True, eq=False)
class Corrupted:
    """The corrupted runs, S of them. held: outputs of mlp and attention at the subject's last token, by layer."""

    clean: Clean
    embedded: Float[Tensor, "S T D"]
    probabilities: Float[Tensor, " S"]
    held: Mapping[str, tuple[Float[Tensor, "S D"], ...]]


class Runs:
    """Runs of a model on one fact at a time: `clean`, `corrupted`, `restored`. Within `evaluation.evaluating`.

    What an `mlp` gives is the output of its last projection: where a family normalises that before it joins the stream
    (OLMo2), restoring the one restores the other, because the norm looks at each token alone. The same holds for the
    attention module. batch_size: prompts in one forward pass, which changes numbers by rounding only.
    Refused: masked models, and models without a head.
    """

    def __init__(self, model: nn.Module, *, batch_size: int = 128) -> None:
        self.memories = memories = traceable(model)
        self.model, self.batch_size = model, batch_size
        layers = range(memories.layers)
        self.paths = {
            "state": tuple(map(memories.block_path, layers)),
            "mlp": tuple(map(memories.down_path, layers)),
            "attention": tuple(map(memories.attention_path, layers)),
        }

    def clean(self, question: Question) -> Clean:
        embedded = self.embedded(question.place.ids)
        with trace.record(self.model, [path for own in self.paths.values() for path in own]) as seen:
            p = next_token(self.model, embedded[None])[0]
        outputs = {kind: tuple(seen[path][0][0] for path in own) for kind, own in self.paths.items()}
        known = int(p.argmax()) == question.answer
        return Clean(question, embedded, p[question.answer].item(), known, outputs)

    def corrupted(self, clean: Clean, noise: Float[Tensor, "S n D"]) -> Corrupted:
        """noise: what is added to the embeddings of the subject's n tokens, for each sample."""
        place = clean.question.place
        embedded = clean.embedded.repeat(len(noise), 1, 1)
        embedded[:, place.first : place.last + 1] += noise.to(embedded)
        kept: dict[str, list[Tensor]] = defaultdict(list)

        def keep(path: str) -> Callable[[Tensor], None]:
            return lambda output: kept[path].append(output[:, place.last].clone())

        watched = {path: keep(path) for kind in ("mlp", "attention") for path in self.paths[kind]}
        with trace.observe(self.model, watched, side="output"):
            found = [self._answers(part, clean) for part in embedded.split(self.batch_size)]
        held = {
            kind: tuple(torch.cat(kept[path]) for path in self.paths[kind]) for kind in ("mlp", "attention")
        }
        return Corrupted(clean, embedded, torch.cat(found), held)

    def restored(self, run: Corrupted, parts: Sequence[Restored]) -> Float[Tensor, "N S"]:
        """Probability of the answer with each of the parts restored, in each sample; float64 on the CPU."""
        samples, total = len(run.embedded), len(parts) * len(run.embedded)
        changes: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}  # of the batch that is running
        cells = [
            range(begin, min(begin + self.batch_size, total)) for begin in range(0, total, self.batch_size)
        ]

        def begin(number: int) -> None:
            changes.clear()
            rows = [(parts[cell // samples], cell % samples) for cell in cells[number]]
            changes.update(self._changes(run, rows))

        def given(number: int) -> Tensor:
            return run.embedded[[cell % samples for cell in cells[number]]]

        functions = {path: partial(_put, changes, path) for own in self.paths.values() for path in own}
        sizes = [len(own) * run.embedded.shape[1] for own in cells]
        with trace.replace(self.model, functions):
            found = answers(self.memories, sizes, given, begin, run.clean.question.answer)
        return found.view(len(parts), samples)

    def embedded(self, ids: Sequence[int]) -> Float[Tensor, "T D"]:
        """What the token embedding gives, before any positions are added."""
        table = self.model.get_input_embeddings()
        return table(torch.tensor(ids, device=next(table.parameters()).device))

    def _changes(
        self, run: Corrupted, rows: Sequence[tuple[Restored, int]]
    ) -> dict[str, list[tuple[Tensor, Tensor, Tensor]]]:
        """For each module that is changed: rows, tokens, and what to put there; a row is a part and a sample."""
        restore, hold = defaultdict(list), defaultdict(list)
        for row, (part, sample) in enumerate(rows):
            for layer in part.layers:
                restore[part.kind, layer] += [(row, token, token) for token in part.tokens]
            if part.severed is not None:
                for layer in range(self.memories.layers):
                    hold[part.severed, layer].append((row, run.clean.question.place.last, sample))
        puts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for cells, source in ((restore, run.clean.outputs), (hold, run.held)):
            for (kind, layer), places in cells.items():
                values = source[kind][layer]
                row, token, which = torch.tensor(places, device=values.device).T
                puts[self.paths[kind][layer]].append((row, token, values[which]))
        return puts

    def _answers(self, embedded: Float[Tensor, "B T D"], clean: Clean) -> Float[Tensor, " B"]:
        return next_token(self.model, embedded)[:, clean.question.answer].cpu().double()


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """One fact: the probability of its answer, and the indirect effect of every part, on average over the noise.

    indirect: by "state" (the output of one block), "mlp" and "attention" (of a window of layers around one). Before
    the subject it is 0, as what stands there reads the same in both runs. severed: of the state at the subject's last
    token, with the outputs of "mlp" or "attention" at that token held at their corrupted values.
    """

    fact: KnownFact
    place: Place
    clean: float
    corrupted: float
    indirect: Mapping[str, Float[Tensor, "T L"]]
    severed: Mapping[str, Float[Tensor, " L"]]

    def __repr__(self) -> str:
        return f"Trace({self.fact.prompt!r}: {self.clean:.3f}, corrupted {self.corrupted:.3f})"

    @property
    def total(self) -> float:
        return self.clean - self.corrupted

    def direct(self, kind: str) -> Float[Tensor, "T L"]:
        """What the corruption takes although the part is clean: total - indirect."""
        return self.total - self.indirect[kind]

    @property
    def plain(self) -> Float[Tensor, " L"]:
        """Indirect effect of the state at the subject's last token, with nothing severed."""
        return self.indirect["state"][self.place.last]


def standard_noise(asked: Question, samples: int, width: int, seed: int) -> Float[Tensor, "S n D"]:
    """Of standard deviation 1, the same on every device and in every dtype."""
    generator = torch.Generator().manual_seed(digest(seed, asked.fact.prompt, asked.fact.subject))
    shape = (samples, asked.place.last + 1 - asked.place.first, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def traceable(model: nn.Module) -> Memories:
    """The memories of a model that predicts the next token; masked models, and those without a head, are refused."""
    memories = Memories(model)
    if memories.family in MASKED:
        raise BadInput(
            f"expected a model that predicts the next token; got {memories.family}, which fills in masked ones, so "
            "that no prompt has a next token to trace; choose another model."
        )
    if model.get_output_embeddings() is None:
        raise BadInput(
            f"expected a model with a head over its vocabulary; got {type(model).__name__}, without one; load it "
            "with AutoModelForCausalLM."
        )
    return memories


def _put(changes: Mapping[str, Sequence[tuple[Tensor, Tensor, Tensor]]], path: str, output: Tensor) -> Tensor:
    for rows, tokens, values in changes.get(path, ()):
        output = output.index_put((rows, tokens), values)
    return output
