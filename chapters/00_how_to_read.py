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
# **Reading time.** About 8 minutes.
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
# ## Four scales, one code path
#
# | scale | runs on | for |
# | --- | --- | --- |
# | `smoke` | any processor, seconds a chapter | tests; its numbers mean nothing |
# | `laptop` | two cores, no network | what you see here, and what `make book` runs |
# | `gpu` | one accelerator | the recorded results shown beside |
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
#   with the book: sweeps that take longer than a reader wants to wait, and everything from a GPU.
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
# These are the parameters of all chapters:
#
# ```{parameters}
# ```
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
