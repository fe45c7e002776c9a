# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-how-to-read)=
# # How to read, run and cite this book
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Know what the numbers in this book are, where each of them comes from, and how to make them yourself. \
# **You need.** Nothing but a shell, if you want to run it. \
# **Paper.** None; the three papers are listed below. \
# **Reading time.** About 12 minutes.
#
# ```{runtime} 00_how_to_read
# ```
# :::
#
# A language model reads text once, keeps something of it in its weights, and later has to keep more. This book is about
# that keeping: how a model stores knowledge, why it stops taking in more, and how what it stores can be protected or
# rewritten. It follows three papers, with one laboratory for all of them.
#
# | part | paper | question |
# | --- | --- | --- |
# | 1 | {cite:t}`kim2025knowledge` | How widely does a model use its memories, and what does that cost? |
# | 2 | {cite:t}`ke2023continual` | How is a new domain learned without losing the old? |
# | 3 | {cite:t}`meng2023memit` | How are thousands of facts rewritten at once? |
#
# They have one thing in common. The input of the last projection of a feed-forward layer is the *memory coefficient* of
# the first paper, the unit that the second one protects, and the *key* of the third. {doc}`01_memories` shows it, and
# everything after is arithmetic on it. What of each paper is here, and what is not yet, is listed in
# {doc}`../pages/coverage`.
#
# ## Three ways to read
#
# - **On a screen, running nothing.** All results are in the pages. Fold out the code where you want it.
# - **With the notebook.** Every page can be downloaded as the notebook it was made from, from the download button on top.
#   A notebook needs the package and the records beside it, so open it in a checkout (below). On a hosted notebook service,
#   clone the repository there, run `pip install -e '.[book]'` in it, and restart the kernel.
# - **By running it.** Python 3.11 or newer, `make` and `git` are enough, and two processor cores:
#
# ```bash
# make book     # set up, run every chapter, render; says where the book is
# make test     # set up, and check everything that must hold
# ```
#
# `make book` trains the models of this book on your machine. Nothing is downloaded but Python packages. When it is stopped
# it can be started again, and goes on where it was.
#
# ## On a hosted notebook or a rented GPU
#
# A machine with a GPU and a shell is enough, Colab's included. Clone the repository, set it up, and run a chapter on the card:
#
# ```bash
# git clone URL kemem && cd kemem        # where you found this book
# make setup                             # on Debian and Ubuntu after: apt install python3-venv
# .venv/bin/kemem run 03 --device cuda   # the sizes of a laptop, computed on the card
# .venv/bin/kemem run 16 --scale gpu     # more texts and facts
# ```
#
# What another chapter would read, compute and need at a scale is said by `kemem run 03 --scale gpu --dry-run`, and nothing is run; the larger models of part one read novels and abstracts from the folder that `KEMEM_DATA` names. Finished rows are kept in the folder that `KEMEM_STORE` names, so point it at a disk that outlives the machine: a session that ends is then gone on with, not begun again. Instead of `make setup`, a hosted notebook may install into its own Python: `pip install -e '.[book]'`, then restart the kernel. In a notebook put `!` before each command, but write `%cd kemem` for `cd` and `%env` for settings of the environment, as every `!` has a shell of its own.
#
# ## Four scales, one code path
#
# | scale | runs on | for |
# | --- | --- | --- |
# | `smoke` | any processor, seconds a chapter | tests; its numbers mean nothing |
# | `laptop` | two cores, no network | what you see here, and what `make book` runs |
# | `gpu` | one accelerator | larger models; {doc}`../pages/status` tells which of its rows are recorded |
# | `paper` | the authors' models and corpora, from the hub | researchers with hours and disks to spare |
#
# A scale is a set of sizes: layers, widths, steps, texts. The code is the same. A result that holds at one scale may fail at
# another, and that is one of the things we look for, so each figure says which scale it shows.
#
# ## Live and recorded
#
# Every result is a *row*: settings, values, and where they come from. Rows come in two kinds, told apart in every figure.
#
# - **Live** rows (filled markers, solid lines) were computed by the run that made this page.
# - **Recorded** rows (open markers, dashed lines) were computed earlier, on the machine named in them, and are committed
#   with the book: sweeps that take longer than a reader wants to wait, and whatever was run on a GPU.
#
# The copy of the book that is published shows committed notebooks, whose rows are all in the records. Your own copy, made
# with `make book`, shows your rows. A number in the text carries its origin with it: hover over one with a dotted underline,
# or reach it with the tab key, and it tells its study, row, seed, commit and device. Such a number is never typed. It is read from a row when the
# page is made, and a name that no row has stops the build. {doc}`../pages/status` lists all rows that this copy rests on.
#
# :::{admonition} Your numbers may differ
# :class: important
# Rows of the made-up `world` are the same text on every machine, but another processor, thread count or version of PyTorch
# adds up numbers in another order, and training enlarges such a difference. Expect the last digits to move, and single curves
# to wander by about as much as two seeds differ. The corpus `docstrings` also changes with the versions of the packages it is
# read from; a chapter says so where it happens. What we conclude has to survive this: conclusions rest on signs and orders
# over at least three seeds, not on third digits.
# :::
#
# ## Parameters
#
# Each chapter begins with a cell of parameters, this one too. Change them in the notebook, or from outside with papermill, from any
# folder:
#
# ```bash
# .venv/bin/papermill chapters/03_entropy_decay.ipynb mine.ipynb -p scale smoke -p seed 1
# .venv/bin/kemem run 03 --scale smoke -p seed=0,1,2
# ```
#
# The second form makes one notebook for each seed and a page that compares them.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # a whole number, 0 or more; every random choice follows from it
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own

# %%
from kemem import book

lab = book.open_chapter("00_how_to_read", globals())

# %% [markdown]
# This call looks at the parameters before anything else happens. A name that is no parameter of the chapter is refused, since
# papermill itself would only warn, and so is a value that cannot be:

# %%
from kemem.errors import BadInput

for mistaken in ({"sede": 1}, {"scale": "enormous"}, {"seed": -1}):
    try:
        book.open_chapter("00_how_to_read", mistaken)
    except BadInput as error:
        print(error)

# %% [markdown]
# :::{dropdown} The parameters of all chapters
# ```{parameters}
# ```
# :::
#
# Two environment variables say where things are: `KEMEM_STORE`, the folder of live rows and checkpoints (`.kemem` in the
# checkout unless you say otherwise), and `KEMEM_DATA`, a folder of text of your own that a corpus such as
# `files:$KEMEM_DATA/novels.jsonl.gz` is read from. Two more change what is done: `KEMEM_REPLAY=1` reads every row from the records and
# computes nothing, and `KEMEM_TRAIN=all` trains again what chapters otherwise take from the small checkpoints that come with
# the book.
#
# ## A row, looked at
#
# This is all there is to a result. Here it is the entropy of a thousand throws of a die, $-\sum_i p_i \ln p_i$ over the faces
# seen, which is at most $\ln 6$ and reaches it when all faces come up equally often. The next chapters replace the die by the memories of
# a model.

# %%
from collections import Counter
from math import log
from random import Random

settings = {"faces": 6, "throws": 1000, "seed": seed}


def entropy(provenance):
    die = Random(settings["seed"])
    seen = Counter(die.randrange(settings["faces"]) for _ in range(settings["throws"]))
    shares = [count / settings["throws"] for count in seen.values()]
    return {"entropy": -sum(p * log(p) for p in shares), "bound": log(settings["faces"])}


row = lab.store.row("00_how_to_read", 1, settings, entropy)
print(f"row {row.digest}: entropy {row.values['entropy']:.4f} nats of at most {row.values['bound']:.4f}")

# %% [markdown]
# The first call computes the row and stores it. Any later call with the same settings, in this run or another, finds it. The digest
# in its name is over the study, its version and its settings, so that no result is mistaken for another.

# %%
again = lab.store.row("00_how_to_read", 1, settings, entropy)
print("found again:", again.values == row.values)

# %% [markdown]
# A row that was damaged, or edited by hand, no longer fits its checksum: it is reported and computed again, never used.
#
# ## Five ideas in five minutes
#
# Before the parts begin, the whole book in short. We take the small model that {doc}`02_pretraining` trains: it has read docstrings of programs, and documents about a made-up world. Five things are done to it, each a short run of what a later chapter does at length. After each stands what this run shows. One run proves nothing, so nothing is judged here; that is what the other chapters are for.

# %%
from math import exp

from kemem import plot
from kemem.studies import courses, many, tour, tracing

stops = tour.settings(scale, seed=seed, dtype=dtype)

# %% [markdown]
# *One: how widely does it use its memories?* A feed-forward layer is a set of memories, and every token uses each of them more or less. How evenly the use is spread is the *knowledge entropy* of a layer; that of the model is the sum. Of a layer its exponential is a number of memories: as many as would give this entropy if they were all used alike ({doc}`01_memories`, {doc}`03_entropy_decay`).

# %%
learned = tour.learning(lab, stops)
as_it_is = learned["as it is"].values
in_use = [exp(nats) for nats in as_it_is["before"]["layers"]]
print(f"knowledge entropy: {as_it_is['before']['entropy']:.2f} nats")
print(f"of {stops.plain.learning.model.setup.memories} memories a layer, as if in use:", *(f"{n:.0f}" for n in in_use))

# %% [markdown]
# At the end of its training this model uses its memories unevenly, most so in the first layer: as if {result}`tour.used.least|.0f` of the {result}`tour.memories` there were in use, and at most {result}`tour.used.most|.0f` in any layer.
#
# *Two: what does it take in, and what does it lose?* Now the model reads text of another world, with passages on people who do not exist mixed in. $K$ is the mean log-probability of the words that hold the facts of these passages, in nats a token: it is below zero and should rise. $P$ is the share of questions on its *own* world that it answers, mean over kinds of questions: it should stay ({doc}`04_injection`, {doc}`05_acquisition`).

# %%
from kemem.studies.outcomes import knowledge, performance

for name, row in learned.items():
    K, P = ([of(row, when) for when in ("before", "after")] for of in (knowledge, performance))
    H = row.values["before"]["entropy"]
    print(f"{name}: entropy at the start {H:.2f} nats, K {K[0]:.2f} -> {K[1]:.2f}, P {P[0]:.0%} -> {P[1]:.0%}")

# %% [markdown]
# The first line is the model as it is. It takes the passages in: $K$ goes from {result}`tour.plain.K.before|.2f` to {result}`tour.plain.K.after|.2f`. And it pays for them: of the questions on its own world it answered {result}`tour.plain.P.before|.0f` before and {result}`tour.plain.P.after|.0f` afterwards. This is forgetting; nothing here protects what was known.
#
# *Three: can idle memories be woken?* The second line is the same run, but the half of the memories that were used least were made as loud as the mean one first. The entropy rises by construction, from {result}`tour.plain.entropy|.2f` to {result}`tour.woken.entropy|.2f`. The change costs something at the start, where $K$ is {result}`tour.woken.K.before|.2f`, and after the run $K$ is {result}`tour.woken.K.after|.2f`, beside {result}`tour.plain.K.after|.2f` without waking. Whether such a gain holds over seeds, and against making *other* memories louder, is the question of {doc}`07_resuscitation`.
#
# *Four: can a new domain be learned without losing the old one?* A *domain* is text of one kind. Here there are two, read one after the other: documentation of `sympy`, a library for algebra, and then documents of a new made-up world. They are read by plain training, and by DAS, the method of part two, which measures how important each unit of the model is for what it knows and changes it the less, the more important it is ({doc}`08_forgetting`, {doc}`09_das`, {doc}`10_methods`). *Learned* is by how much the loss on a domain falls while it is read, mean over the two; *forgotten* is by how much the loss on the first has risen again at the end.

# %%
for name, row in tour.domains(lab, stops).items():
    course = courses.course(row)
    print(f"{name}: learned {course.learned:.2f} nats a token, forgotten of {course.names[0]} {course.forgetting:.2f}")

# %% [markdown]
# DAS forgets {result}`tour.DAS.forgetting|.2f` instead of {result}`tour.plain.forgetting|.2f`, and learns {result}`tour.DAS.learned|.2f` instead of {result}`tour.plain.learned|.2f`. It also learned less here, and who learns nothing forgets nothing. So both numbers count, and {doc}`10_methods` draws them against each other.
#
# *Five: where is a fact looked up, and can it be rewritten there?* Make the subject of a question unreadable, then restore the model's inner state at one place at a time: where the answer comes back, it passed through ({doc}`11_knowledge_base`). Then write other answers for some facts into a layer that trials on other facts chose, all at once, in closed form ({doc}`12_one_fact`, {doc}`13_thousands`, {doc}`14_field`). The two need not be the same place: {doc}`15_three_papers` asks it of one model in several ways.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-read-trace", "caption": "Causal tracing of a few facts: how much of the answer's probability comes back when the state of one layer is restored at one token of the question. Rows are the tokens of a question in their order: the first, middle and last of its subject, the first token after it, further ones, and the last of the question. Two places are to be expected: the subject's last token in early layers, and the last token of the question in late ones, where the answer is already there."}, "image": {"alt": "Heat map of tokens of the question, by their role, against layers: restored probability in points. It is large at the subject's last token in the first layer, and at the question's last token from the second layer on, most in the last."}}
traced = tracing.run(lab, stops.traced)
state = traced.values["whole"]["effects"]["state"]
roles = [role for role in tour.ROLES if role in state]
with plot.figure(width=4.6, height=3.0) as axes:
    shown = axes.imshow([[100 * x for x in state[role]["value"]] for role in roles], cmap="cividis", aspect="auto")
    axes.set(
        xticks=range(traced.values["layers"]), yticks=range(len(roles)), yticklabels=[tour.ROLES[role] for role in roles],
        xlabel="layer", title=f"State restored ({traced.origin})",
    )  # fmt: skip
    axes.grid(False)
    axes.figure.colorbar(shown, ax=axes, label="points of probability")

# %% [markdown]
# Before the question's last token the most comes back at the subject, in layer {result}`tour.trace.state.layer` counted from zero: {result}`tour.trace.state|.0f` of {result}`tour.trace.total|.0f`, in {result}`tour.trace.facts` facts. Now the edit.

# %%
written = many.run(many.Benches(lab), stops.edited).values
for score, what in (("ES", "new answer likelier"), ("PS", "also in other words"), ("NS", "other subjects keep theirs")):
    print(f"{what}: {written['before'][score]:.0f} % before, {written['after'][score]:.0f} % after")

# %% [markdown]
# All {result}`tour.edit.facts` facts are rewritten, in the words they were given in and in others ({result}`tour.edit.PS.after|.0f`). Of questions on *other* subjects {result}`tour.edit.NS.before|.0f` had their own answer likelier before, {result}`tour.edit.NS.after|.0f` have now; so few facts leave a wide margin. The numbers pull against each other: an edit that reaches other words may also reach its neighbours.
# How the edit is made was chosen by trials on other facts, and the best of eighteen is taken: into the first layer or the first two, with one of three weights for what the layer held before, and one of three *clamps*, which say how far the edit may push the model's state.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-other-row
# Which of these changes makes another row: another seed, another device, a new version of PyTorch?
# ```
#
# ```{solution-start} ex-other-row
# :class: dropdown
# ```

# %%
from kemem.runs import digest

other = digest("00_how_to_read", 1, {**settings, "seed": seed + 1})
print("another seed is another row:", other != row.digest)
assert other != row.digest

# %% [markdown]
# Only the seed. It is a setting: something one *asks for*. The device and the versions are provenance: something that *was so*. They
# are kept in the row, and a figure that joins rows with different provenance says in what they differ.
#
# ```{solution-end}
# ```
#
# ## How to cite
#
# Cite the paper whose result you use, and this book for the reproduction. `CITATION.cff` in the repository has all fields; the
# GitHub button "Cite this repository" reads it.
#
# ```bibtex
# @software{kemem,
#   title   = {kemem: how a language model stores knowledge, why it stops taking in more, and how to change what it stores},
#   author  = {{The kemem authors}},
#   year    = {2026},
#   version = {0.1.0},
#   license = {MIT (code), CC-BY-4.0 (text)}
# }
# ```
#
# The text and figures are under CC BY 4.0, the code is under MIT. Published numbers are quoted with their source. No code, figure or data
# set of the papers' authors is part of this book.
#
# ## What differs from the papers
#
# Everything here is written anew, from the papers and from what their released code does. Where the two disagree, the book offers
# both and shows the difference: `as_described` and `as_released`. Each chapter ends with a table of its deviations. At laptop scale
# the largest one is always the same: the models have a few hundred thousand parameters where the papers' have a billion and more. A claim that
# fails at our scale is shown as failing, with the likely reason.
#
# ## Summary
#
# - Every number comes from a row, every row says where it is from, and you can compute it yourself.
# - One code path runs at four scales; figures tell live from recorded.
# - Unknown parameters and values that cannot be are refused before anything runs.
