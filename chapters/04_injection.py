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
# (ch-injection)=
# # Injecting knowledge, and asking for it
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Tell a model something that nobody has ever told it, at known steps of its training, and measure how much of it arrives: the passages, the probes, the schedule, and the two numbers $K$ and $A$. \
# **You need.** {doc}`02_pretraining` for the model and its world. \
# **Paper.** Kim et al. {cite}`kim2025knowledge`, section 4.1, appendices B.1, B.2 and B.4.1; the passages come from Chang et al. {cite}`chang2024acquire`. \
# **Reading time.** About 20 minutes.
#
# ```{runtime} 04_injection
# ```
# :::
#
# Whether a model *acquires* knowledge can only be seen on knowledge that it cannot have had. Web text does not offer any: whatever we ask, the model may have read it. So the authors tell it fiction. Passages about people, places and events that do not exist are
# put into ordinary training text, and the model is asked about them before and after.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the model and of the order of the data
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
learning_rate = None  # peak rate of continual learning; None: that of pretraining, as in the paper

# %%
from kemem import book, entropy, plot
from kemem.studies import acquiring, outcomes

lab = book.open_chapter("04_injection", globals())
settings = acquiring.settings(
    scale, seed=seed, **({} if learning_rate is None else {"learning_rate": learning_rate})
)

# %% [markdown]
# ## A passage and its probes
#
# Here is one of the passages for the model of {doc}`02_pretraining`, in the schema in which the authors publish theirs. Its people, its company and its book belong to the model's own world, so that every phrasing is familiar, but no text has ever named them.

# %% tags=["hide-input"]
told = acquiring.fictional(settings)
first = told[0]
print(first.context)
print()
print("told again:", first.paraphrases[0])

# %% tags=["hide-input"]
plot.table(
    [
        (kind, plot.plain(f"{given} ..."), plot.plain(target))
        for kind, probes in first.probes.items()
        for given, target in probes
    ],
    ("kind", "the model reads", "and should go on"),
)

# %% [markdown]
# Three kinds of questions, from easy to hard. *Memorisation*: the sentence stands in the passage. *Semantic*: the same fact, in words that no telling uses. *Composition*: two facts of the passage must be joined, and no sentence says the answer.
#
# Two groups of passages. Those of the group *paraphrase* are told in every slot of the schedule, in other words each time. Those of the group *once* are told a single time. The authors have 70 of the first kind and 60 of the second, with fifteen probes each.

# %% tags=["hide-input"]
groups = {group: [p for p in told if p.group == group] for group in ("paraphrase", "once")}
plot.table(
    [
        (
            group,
            len(found),
            settings.slots if group == "paraphrase" else 1,
            sum(len(asked) for p in found for asked in p.probes.values()),
        )
        for group, found in groups.items()
    ],
    ("group", "passages", "told", "probes"),
)

# %% [markdown]
# ## How well does it know them?
#
# A probe is an input $x$ and a target $y$ of $|y|$ tokens. What the model knows is how likely it thinks the target,
#
# ```{math}
# :label: eq-probe
# \ell(x, y) = \frac{1}{|y|} \sum_{j=1}^{|y|} \ln p_\theta(y_j \mid x, y_{<j}) ,
# ```
#
# in nats a token: 0 would be certainty. $K$ is its mean over the probes of a passage, then over passages, so that each passage counts once:
#
# ```{math}
# :label: eq-knowledge
# K(\theta) = \frac{1}{|W|} \sum_{w \in W} \frac{1}{|Q_w|} \sum_{(x, y) \in Q_w} \ell(x, y) .
# ```

# %%
book.source(entropy.Probes.knowledge)

# %% [markdown]
# :::{warning}
# The released code computes something else. It sets the loss of the input and of the padding to zero, and then takes the mean over the *whole padded row*, zeros included. A probe's value thus depends on the longest probe of its batch, and $K$ comes out about ten times too close to 0. The published $K$
# between $-0.27$ and $-0.71$ are of this kind. Here that reduction is `row_mean`, kept for comparison only; `target_mean` is {eq}`eq-probe`.
# :::
#
# ## When is what told?
#
# The released schedule has ten slots. Every so many steps, the next slot is told: the $k$-th telling of every *paraphrase* passage, and the next tenth of the *once* passages. At step $s$, with the interval $i$ and $n$ slots, it is slot
#
# ```{math}
# :label: eq-slot
# k(s) = \Bigl( \bigl(\tfrac{s}{i} - 1\bigr) \bmod n \Bigr) + 1 \qquad \text{where } s \bmod i = 0 .
# ```
#
# A passage is put *before* the text of a row of that step's batch, and the row is cut back to its length. Nothing but the end-of-text token separates the two.

# %%
book.source(entropy.Injection.rows)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-injection-schedule", "caption": "The learning rate of continual learning and the steps at which a slot is told (dots). The last slot is told in the very last step, so some passages are asked about right after they were read."}, "image": {"alt": "The learning rate over the steps rises briefly and falls along a cosine to a tenth; dots at equal distances along it mark the steps that tell a slot, the last one at the end."}}
recipe = settings.recipe()
steps = list(range(settings.interval, settings.steps + 1, settings.interval))
with plot.figure(height=2.6) as axes:
    axes.plot(
        range(1, settings.steps + 1),
        [recipe.rate(s) for s in range(settings.steps)],
        color="#777777",
        label="learning rate",
    )
    axes.plot(
        steps,
        [recipe.rate(s - 1) for s in steps],
        linestyle="none",
        marker="o",
        color=plot.COLOURS[1],
        label="a slot is told",
    )
    axes.set(xlabel="step", ylabel="rate", title="What is told when")
    axes.legend()

# %% [markdown]
# So the tellings are not alike: the first slot meets the highest rate, the last one a tenth of it, and the *once* passages of the first slot have the whole rest of the run to be forgotten, those of the last slot none. The averages below hide this; {numref}`fig-injection-course` does not.
#
# ## A run, watched
#
# The last stage of the model learns on, on text of *another* world, with the passages injected. This run was computed for this page, and {doc}`05_acquisition` uses it too.

# %%
row = acquiring.run(lab, settings)
v = row.values
print(
    f"{v['steps']} steps, {v['passages']} passages, {v['injected']:,} tokens told, of which {v['lost']:,} were cut away; {row.origin} row {row.digest}"
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-injection-course", "caption": "K over the run by kind of probe: passages told in every slot (left) and passages told once (right). Vertical lines: a slot is told."}, "image": {"alt": "Two panels over steps with three curves each, for memorisation, semantic and composition probes. In the left panel the curves rise step by step with each telling; in the right one they rise less and later."}}
with plot.figure(columns=2, height=3.2, sharey=True) as panels:
    for axes, group in zip(panels, groups, strict=True):
        for s in steps:
            axes.axvline(s, color="#dddddd", linewidth=1, zorder=0)
        for i, kind in enumerate(first.probes):
            found = [p for p in v["probes"] if (p["group"], p["kind"]) == (group, kind)]
            plot.series(
                axes,
                [p["step"] for p in found],
                [p["target_mean"] for p in found],
                kind,
                origin=row.origin,
                index=i,
            )
        axes.set(xlabel="step", title=f"told {'in every slot' if group == 'paraphrase' else 'once'}")
    panels[0].set(ylabel="K (nats a token)")
    panels[0].legend()

# %% [markdown]
# ## How much was acquired?
#
# *Acquisition* relates the change of $K$ to where it began,
#
# ```{math}
# :label: eq-acquisition
# A = \frac{K_\text{after} - K_\text{before}}{|K_\text{before}|} .
# ```
#
# The paper prints the denominator without the bars. Since $K$ is negative, an improvement would then be a negative $A$; the tables have it positive, so this is what was meant. $A$ is 1 when everything has become certain.

# %% tags=["hide-input"]
plot.table(
    [
        (
            group,
            kind,
            *(
                f"{outcomes.knowledge(row, when, group=group, kind=kind):.3f}"
                for when in ("before", "after")
            ),
            *(
                f"{100 * outcomes.acquired(row, group=group, kind=kind, reduction=reduction):.1f} %"
                for reduction in ("target_mean", "row_mean")
            ),
        )
        for group in ("paraphrase", "once")
        for kind in ("all", *first.probes)
    ],
    ("group", "probes", "K before", "K after", "A", "A as released"),
)

# %% [markdown]
# What is told in every slot is acquired to {result}`injection.paraphrase.all|.0f`, what is told once to {result}`injection.once.all|.0f`; where two facts must be joined, of what was told in every slot, it is {result}`injection.paraphrase.composition|.0f`. Look at the last two before you call a model that
# recites the passages knowledgeable.
#
# ## The published passages
#
# The same code reads the authors' own passages, and with OLMo's tokenizer it must build the very schedule that they trained with. That schedule was released as lists of token numbers, so it can be compared token for token:

# %% tags=["hide-input"]
published = acquiring.published(lab)
if published is None:
    print(f"At the scale {scale!r} the published files are not read.")
else:
    p = published.values
    print(
        f"{p['equal']} of {p['told']} tellings in {p['slots']} slots are equal, token for token; {p['tokens']:,} tokens; {published.origin} row {published.digest}"
    )

# %% [markdown]
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | passages | 130, written by GPT-4 | from the model's own world, in the same schema and shorter, since its context is short |
# | new domain | abstracts of PubMed | text of another world |
# | tellings | the passage and nine paraphrases | the same |
# | probes | five of each kind | five, five, and three compositions |
# | rows told | 76 of 128 | fewer rows, about as large a share |
# | $K$ | the mean over padded rows | the mean over the target; the other beside it |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-slot
# With ten slots told every 30 steps for 900 steps, which slot is told in step 450? How often is a *once* passage told?
# ```
#
# ```{solution-start} ex-slot
# :class: dropdown
# ```

# %%
plan = entropy.Schedule(tuple(((slot,),) for slot in range(1, 11)), interval=30)
print("slot", plan.told(450)[0][0])
assert plan.told(450)[0][0] == 5
assert sum(plan.told(s) == plan.told(30) for s in range(1, 901)) == 3

# %% [markdown]
# Step 450 is the fifteenth that tells something, and $15 \bmod 10 = 5$. In 900 steps the ten slots are told three times, so "once" is three times: this is what happens in the paper's runs of three epochs.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-row-mean
# Two probes have targets of one token, with log-probability $-2$ each; with the input they are 6 and 11 tokens long. What is each under `row_mean` if they are in one batch, and if each is alone?
# ```
#
# ```{solution-start} ex-row-mean
# :class: dropdown
# ```

# %%
together = [-2 / (11 - 1), -2 / (11 - 1)]
alone = [-2 / (6 - 1), -2 / (11 - 1)]
print("together", together, "alone", alone)
assert together[0] != alone[0]

# %% [markdown]
# The first one doubles its value by losing its neighbour. A number that depends on who sits beside it is no property of the model.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Only fiction shows acquisition. Probes of three kinds ask for words, for meaning, and for two facts joined.
# - $K$ is a mean log-probability, 0 at best; $A$ is its relative improvement. The released code dilutes $K$ by padding; $A$ keeps its sign, and not its size.
# - What is told when matters: rates differ by slot, and the last slot is told in the last step.
