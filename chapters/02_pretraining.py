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
# (ch-pretraining)=
# # A model you can watch being trained
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Train a small language model from nothing, keep it at stages along its schedule, and see what it learns
# first, what later, and what never. \
# **You need.** {doc}`01_memories`, and an idea of what a learning rate is. \
# **Paper.** Kim et al. {cite}`kim2025knowledge`, sections 3.2 and 4.1 (models and stages). \
# **Reading time.** About 20 minutes.
#
# ```{runtime} 02_pretraining
# ```
# :::
#
# The paper of part 1 asks how a model changes *while* it is trained. It could do so because one family of models, OLMo
# {cite}`groeneveld2024olmo`, was published with hundreds of its intermediate checkpoints. A laptop cannot repeat that
# training, but it can run a complete one of its own: same architecture, same optimizer, same shape of schedule, every
# stage kept. All later chapters of part 1 start from the model that is trained on this page.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # draws the weights and the order of the data
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
corpus = None  # a corpus as in chapter 00, docstrings or files:PATH for instance; None: the scale's own
instances = None  # blocks of held-out text per part of the corpus; None: the scale's own
coefficient = "abs"  # how the work of a memory is read at the end of the page: abs, relu or relu-gate
model = None  # family to train, gpt2 or llama for instance; None: olmo

# %%
from kemem import book, plot
from kemem.studies import cost, pretraining, stages

lab = book.open_chapter("02_pretraining", globals())
settings = pretraining.settings(
    scale, seed=seed, corpus=corpus, dtype=dtype, family=model, instances=instances, device=lab.card
)
setup = settings.setup

# %% [markdown]
# ## What it reads
#
# Two kinds of text, because each can show what the other cannot.
#
# **`docstrings`** is real English: the documentation inside the scientific Python packages that this book needs anyway.
# It is on every machine that can run the book, it needs no download, and nobody wrote it to make our point. But nobody
# can say what is *true* in it, and another version of a package has another text.
#
# **`world`** is made up, and that is its use. A seeded generator invents people, towns, companies, books and words, decides
# what is true of them, and writes short passages about it in several phrasings. Some entities are told of often and many
# rarely: the frequency of the entity of rank $r$ falls as $r^{-s}$, Zipf's law. Since we know the truth, we can ask the model for
# it. Entities that are held out never occur in any text, and every fact belongs either to a *tuning* set (for choices) or to
# a *reported* set (for numbers). This page reports.

# %% tags=["hide-input"]
samples = pretraining.texts(lab, settings)
for name, text in samples.values["samples"].items():
    print(f"{name}: {text}\n")

# %% [markdown]
# Every document goes to training, validation or test by a hash of its own text, 90, 5 and 5 in a hundred, so no
# shuffle and no later change of the corpus can move a test document into training. A byte-level BPE tokenizer is trained on the
# training part. Documents follow one another in one stream, each closed by an end-of-text token, and the stream is cut into
# blocks: no padding, every position is a target.
#
# ## What it is
#
# An OLMo {cite}`groeneveld2024olmo` in all but size: pre-norm transformer, LayerNorm without parameters, rotary positions, SwiGLU
# feed-forward layers {cite}`shazeer2020glu` with four memories for each unit of width, no biases, the embedding reused as the
# output projection. The weights are drawn from the seed.

# %%
row = pretraining.run(lab, settings)
v = row.values
if lab.drift(row):
    print(f"The text of this run is {lab.drift(row)}; its numbers differ from the recorded ones for that reason alone.")
plot.table(
    [
        ("layers L", setup.layers, 16),
        ("width D", setup.width, 2048),
        ("memories a layer M", setup.memories, 8192),
        ("parameters", f"{v['parameters'] / 1e6:.2f} million", "1.18 billion"),
        ("tokens read", f"{v['tokens'] / 1e6:.2f} million", "3.1 trillion"),
        ("time constants of weight decay", f"{v['time_constants']:.1f}", "16"),
    ],
    ("", "this model", "OLMo-1B"),
)

# %% [markdown]
# The last line needs a word. AdamW {cite}`loshchilov2019decoupled` shrinks every weight by $\eta_t\lambda$ at every step, besides following the
# gradient. A weight that gets no gradient is multiplied, over a whole run, by
#
# ```{math}
# :label: eq-time-constants
# \prod_t (1 - \eta_t \lambda) \approx e^{-\tau}, \qquad \tau = \lambda \sum_t \eta_t .
# ```
#
# $\tau$ counts how often the optimizer *could* have forgotten the weights it was given at first. It is a better clock for a slow
# process than the number of steps, and it can be the same for a small and a large model; {doc}`03_entropy_decay` shows how much
# depends on it. OLMo-1B was trained for about 16 of these time constants, and the weight decay of this model is chosen so that it is too.
#
# ## The loop
#
# Linear warm-up, a cosine to a tenth of the peak, AdamW with $\beta = (0.9, 0.95)$, clipping at a global norm of 1. It can be killed at any
# moment and goes on, bit for bit, where it was. The whole call is
#
# ```python
# model = kemem.models.build(shape, tokenizer, seed=0)
# history = kemem.training.train(model, blocks, recipe, out=folder)
# ```
#
# and `folder/step<N>` then opens with `transformers.AutoModelForCausalLM.from_pretrained`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-pretraining-loss", "caption": "Training loss, and loss on held-out text of each kind at the stages that are kept (markers). Below: the learning rate."}, "image": {"alt": "Two panels over training tokens. Above, the training loss falls steeply at first and then slowly, with the held-out losses of the two kinds of text beside it. Below, the learning rate rises linearly and falls along a cosine to a tenth of its peak."}}
history, seen = v["history"], v["stages"]
with plot.figure(rows=2, height=2.2, sharex=True, gridspec_kw={"height_ratios": [3, 1]}) as (above, below):
    above.plot([h["tokens"] / 1e6 for h in history], [h["loss"] for h in history], color="#aaaaaa", linewidth=1, label="training batches")
    for i, name in enumerate(seen[0]["loss"]):
        plot.series(above, [s["tokens"] / 1e6 for s in seen], [s["loss"][name] for s in seen], f"held-out {name}", origin=row.origin, index=i, drift=lab.drift(row))
    above.set(ylabel="loss (nats a token)", title="Loss over training")
    above.legend()
    below.plot([h["tokens"] / 1e6 for h in history], [h["lr"] for h in history], color="black")
    below.set(xlabel="tokens read (millions)", ylabel="rate")

# %% tags=["hide-input"]
plot.table(
    [(s["step"], f"{s['tokens'] / 1e6:.2f}", *(f"{loss:.2f}" for loss in s["loss"].values())) for s in seen],
    ("step", "million tokens", *(f"loss, {name}" for name in seen[0]["loss"])),
)

# %% [markdown]
# How much of the machine did that use? A token costs about
#
# ```{math}
# :label: eq-training-flops
# 6P + 12\,L\,D\,T \quad \text{floating-point operations}
# ```
#
# in training: every one of the $P$ parameters takes part in one product forward and two backward, two operations each, and attention adds its scores and sums over $T$ keys. Times the tokens a second this is the arithmetic that was
# done; over what a card can do at most it is the *model FLOPs utilisation* (MFU) {cite}`chowdhery2023palm`, given where that maximum is known.

# %% tags=["hide-input", "nbval-ignore-output"]
spent = cost.training(row) if history else {}
plot.table(
    [
        ("device", row.provenance["device"]),
        ("tokens a second", f"{spent['tokens_per_second']:,.0f}"),
        ("operations a token", f"{spent['flops_per_token'] / 1e6:,.1f} million"),
        ("operations a second", f"{spent['flops_per_second'] / 1e9:,.1f} billion"),
        ("MFU", "not given: no maximum is published for it" if spent["mfu"] is None else f"{100 * spent['mfu']:.1f} %"),
    ]
    if spent
    else [("trained by its authors", "not measured")],
    ("", f"this model ({row.origin})"),
)

# %% [markdown]
# ## What it knows, and when
#
# A language model can lower its loss a long way without knowing a single fact: first the frequencies of tokens, then spelling, then
# grammar and the phrasing of the templates, and only then who was born where. To see facts we must ask for facts. Each question is a sentence
# of the world cut just before its last words,
#
# > *The mother tongue of Gava Velmark is* \_\_\_
#
# and the model scores every candidate $a$ of the right type (up to two dozen) by the mean log-probability of its tokens,
#
# ```{math}
# :label: eq-cloze
# s(a) = \frac{1}{|a|}\sum_{j=1}^{|a|} \log p_\theta(a_j \mid \text{prompt}, a_{<j}) .
# ```
#
# The fact counts as known if the truth has the highest score. Guessing would find roughly one in the number of candidates.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-pretraining-known", "caption": "Share of facts of the world that the model ranks first among the candidates, by kind of fact, at each stage."}, "image": {"alt": "One curve for each kind of fact over training tokens: the share of questions answered right, from near chance at the first stage to its value at the last."}}
kinds = list(seen[-1]["known"])
with plot.figure(height=3.6) as axes:
    for i, kind in enumerate(kinds):
        plot.series(axes, [s["tokens"] / 1e6 for s in seen], [100 * s["known"][kind] for s in seen], f"{kind}, {v['asked'][kind]} asked", origin=row.origin, index=i)
    axes.set(xlabel="tokens read (millions)", ylabel="known (%)", title="Facts known over training", ylim=(-2, 102))
    if kinds:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

# %% tags=["hide-input"]
plot.table(
    [(kind, v["asked"][kind], *(f"{100 * s['known'][kind]:.0f} %" for s in seen)) for kind in kinds],
    ("kind of fact", "asked", *(f"step {s['step']}" for s in seen)),
)

# %% [markdown]
# Read {numref}`fig-pretraining-known` beside {numref}`fig-pretraining-loss`. At the start the model knows {result}`pretraining.known.first|.0f` of the facts
# (chance), at the end {result}`pretraining.known.last|.0f`. The two curves have different shapes: much of the fall of the loss comes before most of
# the facts.
#
# ## What it writes
#
# The same prompts at every stage, always the likeliest token. Early on the model repeats what is frequent; then sentences appear whose form is right and whose
# content is not; facts come last.

# %% tags=["hide-input"]
for s in seen:
    print(f"step {s['step']}")
    for text in s["written"]:
        print(f"    {text.strip()!r}")

# %% [markdown]
# ## What comes next
#
# The stages differ in more than what they know. The next chapter asks how widely each of them uses its memories; a first look, as a share of all memories:

# %% tags=["hide-input"]
about = stages.subject(scale, model=settings, coefficient=coefficient)
used = about.row(lab)
plot.table(
    [(s["revision"], f"{100 * s['effective_share']:.1f} %") for s in used.values["stages"]],
    ("stage", f"effective share of memories ({coefficient})"),
)

# %% [markdown]
# ## Use the checkpoints yourself
#
# Every stage is an ordinary folder. From a shell, `kemem pretrain` makes such a run with your own corpus, and `kemem entropy` measures it:
#
# ```bash
# kemem pretrain --scale laptop --corpus files:my_texts.jsonl.gz --out my_model
# kemem entropy my_model --revision step200 --revision step4000
# ```
#
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | model | OLMo-1B and 7B, trained by their authors | the same architecture, a few hundred thousand parameters, trained on this page |
# | data | Dolma {cite}`soldaini2024dolma`, each text once | docstrings and an invented world; passes over the text are in {doc}`../pages/status` |
# | batch | 4 million tokens | a few thousand |
# | rate and decay | small rate, $\lambda = 0.1$, for 738 thousand steps | larger rate and decay for fewer steps, so that $\tau$ is of the same order |
# | stages | 118k, 369k, 554k, 738k steps: 16, 50, 75, 100 % | shares of the schedule from 0 to 100 %, the paper's among them |
# | knowledge | downstream tasks | facts whose truth we made |
#
# :::{warning}
# Most of the text is artificial, and repeats itself by design. What is said here of *facts* is said of this world; whether it carries over to web text is a
# question for the `gpu` and `paper` scales.
# :::
#
# ## Exercises
#
# ```{exercise}
# :label: ex-time-constants
# How many time constants does this run last if the weight decay is halved and the number of steps doubled? And if the schedule were constant at the peak rate?
# ```
#
# ```{solution-start} ex-time-constants
# :class: dropdown
# ```

# %%
recipe = setup.recipe()
changed = setup.with_(weight_decay=setup.weight_decay / 2, steps=2 * setup.steps).recipe()
constant = setup.with_(schedule="constant").recipe()
print(f"ratio with half the decay and twice the steps: {changed.time_constants / recipe.time_constants:.2f}")
print(f"ratio with a constant rate: {constant.time_constants / recipe.time_constants:.2f}")
assert abs(changed.time_constants / recipe.time_constants - 1) < 0.02

# %% [markdown]
# The product $\lambda \sum_t \eta_t$ does not change when one factor halves and the other doubles. A constant rate lasts longer, because the cosine averages to
# little more than half of the peak.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-own-corpus
# Run this chapter on text of your own: `papermill chapters/02_pretraining.ipynb mine.ipynb -p scale smoke -p corpus files:my_texts.txt`. Which figure loses its meaning, and why?
# ```
#
# ```{solution-start} ex-own-corpus
# :class: dropdown
# ```
#
# {numref}`fig-pretraining-known`: without the world there is no truth to ask for, so no question is asked and the figure has no curve.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - A complete training run, with every stage kept, fits on a laptop.
# - AdamW's clock is $\tau = \lambda \sum_t \eta_t$; it lets a small run and a large one be compared.
# - The loss falls first for reasons that have nothing to do with facts. To see knowledge, ask for it.
# - The next chapter opens the stages of this model and asks how widely each of them uses its memories.
