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
# (ch-resuscitation)=
# # Waking idle memories
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Intervene: make a late model use memories that it hardly uses, then let it learn, and see whether it learns more and loses less; and find out whether entropy is what did it. \
# **You need.** {doc}`05_acquisition` for $A$, $F$ and both ends; {doc}`01_memories` for what a gate is. \
# **Paper.** Kim et al. {cite}`kim2025knowledge`, section 4.3 with algorithm 1, figure 5, appendices B.6, B.7 and B.8 (figures 15 to 18). \
# **Reading time.** About 25 minutes.
#
# ```{runtime} 07_resuscitation
# ```
# :::
#
# Correlation cannot tell entropy from everything else that moves along pretraining ({doc}`06_rivals`). An intervention can. The paper takes the final model, raises the memories that are used least, and continues as before. If low entropy is what hinders, a model with raised entropy should learn better.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the model and of the order of the data, in the runs that are computed live
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
fraction = 0.5  # p of algorithm 1: the share of the memories of each layer that is lifted
gain = 2.0  # q of algorithm 1: what they are lifted to, in units of the layer's mean usage
stage = 1.0  # share of the schedule from which the live runs start

# %%
from kemem import book, claims, plot
from kemem.studies import arms, lifting, outcomes, resuscitating

lab = book.open_chapter("07_resuscitation", globals())
BASELINE, lift = resuscitating.BASELINE, resuscitating.lift

# %% [markdown]
# ## Algorithm 1
#
# Let $\bar c_i$ be the usage of memory $i$ of a layer with $M$ memories ({doc}`03_entropy_decay`). Take the share $p$ of the memories with the least usage, and multiply their keys so that each is brought to $q$ times the layer's mean:
#
# ```{math}
# :label: eq-multiplier
# u_i = \begin{cases} \dfrac{q}{\bar c_i} \cdot \dfrac{1}{M} \sum_{k=1}^{M} \bar c_k & \text{if } \bar c_i \le t_p , \\ 1 & \text{otherwise,} \end{cases}
# \qquad k^{\text{up}}_i \leftarrow u_i \, k^{\text{up}}_i ,
# ```
#
# with $t_p$ the quantile at $p$. In a gated layer the coefficient is $\operatorname{silu}(\text{gate}) \cdot \text{up}$, which is linear in the up half, so $c_i$ becomes exactly $u_i c_i$ *for the same input of the layer*. That holds in the first layer. Behind it the input has changed too, and usage has to be measured again.
#
# Two things to notice before running anything. The edit is not gentle: a memory that was hardly used because it would only disturb is now among the loudest. And with $q$ above one the order is turned round: the idle half ends above the mean, the busy half stays where it was.

# %%
found = lifting.run(
    lab, lifting.settings(scale, seed=seed, share=stage, fraction=fraction, gain=gain)
)
starts = found.values["starts"]
print(
    f"{found.values['idle']} of {found.values['memories']} memories lifted, the most by a factor of "
    f"{found.values['largest_factor']:.0f}"
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-lifting-usage", "caption": "Usage of the memories of the first and of the last layer, in units of the layer's mean, in the order of their usage before the edit. Dashed: what the factors of the algorithm predict for an unchanged input. Where the curve after the edit leaves the prediction, the layer's input has changed."}, "image": {"alt": "Two panels, first and last layer: usage of memories before lifting, as predicted, and as measured after lifting, against the rank of the memory."}}
with plot.figure(columns=2, height=3.2) as panels:
    layers = len(found.values["usage"]["before"])
    for axes, layer in ((panels[0], 0), (panels[1], layers - 1)):
        for index, (name, label) in enumerate((("before", "before"), ("after", "after lifting"))):
            plot.series(
                axes, found.values["places"], found.values["usage"][name][layer], label, index=index,
                origin=found.origin, markevery=8,
            )  # fmt: skip
        axes.plot(
            found.values["places"], found.values["usage"]["predicted"][layer], color="#555555",
            linestyle="--", linewidth=1, label="predicted",
        )  # fmt: skip
        axes.set(
            xlabel="rank of the memory (share of all)", ylabel="usage (layer's mean = 1)", yscale="log",
            title=f"Layer {layer}",
        )  # fmt: skip
    panels[0].legend()

# %% [markdown]
# ## What it costs before anything is learnt
#
# The paper does not print entropy after the edit, nor what the edited model can still do. Both can simply be measured. The third row is a control that no paper has: the same factors on the keys, and *their inverses on the values*. Each memory then writes what it wrote before, so the model
# computes exactly the same function; only the split between coefficient and value has moved. Its entropy is that of the lifted usage all the same. Knowledge entropy is not a property of what a model does alone, but of how its weights divide the work.


# %% tags=["hide-input"]
def solved(start):
    return 100 * sum(start["tasks"].values()) / len(start["tasks"])


plot.table(
    [
        (
            name,
            f"{start['entropy']:.2f}",
            f"{100 * start['effective_share']:.0f} %",
            f"{solved(start):.1f} %",
            f"{outcomes.own_loss(start):.2f}",
        )
        for name, start in ((name, starts[name]) for name in ("unchanged", "lifted", "same function"))
    ],
    (
        "start",
        "H (nats)",
        "effective share of memories",
        "P, questions right",
        "loss on its own world (nats a token)",
    ),
)

# %% [markdown]
# ## Learning from a lifted model
#
# Now both models learn the same text with the same passages. Which number shows whether it helped? $A$ and $F$ are relative to a start ({eq}`eq-acquisition`, {eq}`eq-forgetting`), and the edit has damaged the start. The paper measures them from the *edited* model: what the edit broke and learning
# repairs then counts as acquired, and what the edit broke can no longer be forgotten. So there are three ways to look, and we show all: the end itself ($K$ and $P$), $A$ and $F$ from the unchanged checkpoint, and $A$ and $F$ as published.

# %%
plain = arms.run(lab, arms.settings(scale, seed=seed, share=stage))
lifted = arms.run(
    lab,
    arms.settings(scale, seed=seed, share=stage, edit="lift", fraction=fraction, gain=gain),
)

# %% tags=["hide-input"]
QUANTITIES = {
    "K": "K at the end (nats)",
    "P": "P at the end (%)",
    "A": "A, unchanged start (%)",
    "F": "F, unchanged start (%)",
    "A as published": "A, as published (%)",
    "F as published": "F, as published (%)",
}


def cell(value):
    return "not defined" if value is None else f"{value:.2f}"


plot.table(
    [
        (name, *(cell(resuscitating.QUANTITIES[quantity](row, plain)) for quantity in QUANTITIES))
        for name, row in (("unchanged", plain), ("lifted", lifted))
    ],
    ("start", *QUANTITIES.values()),
)

# %% [markdown]
# One run is one run. The rest of the chapter rests on recorded ones: every arm below from the last stage of {result}`waking.models` models with different seeds, each arm beside plain learning from the same checkpoint with the same data in the same order. What is shown is the *difference* to plain learning, model by model: its mean and in brackets the interval over the models.

# %%
recorded = resuscitating.table(lab)
last = recorded["last"]
print(
    f"{sum(len(rows) for named in recorded.values() for rows in named.values())} recorded runs, "
    f"{len(last)} arms from the last stage"
)


# %% tags=["hide-input"]
def gain(rows, plain, quantity):
    change = resuscitating.gained(rows, plain, quantity)
    return "not defined" if change is None else change.short(3 if quantity == "K" else 1)


def gains_table(group, names):
    return plot.table(
        [
            (
                name,
                resuscitating.entropies(group[name], group[BASELINE])[0].short(),
                *(gain(group[name], group[BASELINE], quantity) for quantity in QUANTITIES),
            )
            for name in names
            if name in group
        ],
        (
            "arm, less plain learning",
            "H of the start (nats)",
            *(label.replace("(%)", "(points)") for label in QUANTITIES.values()),
        ),
    )


gains_table(last, [lift(q) for q in resuscitating.GAINS])

# %% [markdown]
# ## How high, and how many
#
# The paper varies $q$ at $p$ of one half (figure 5) and $p$ at $q$ of one (figure 15).


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-lifting-sweeps", "caption": "A (left) and F (right) of lifted models, less those of plain learning, against q (top) and p (bottom); paper: figures 5 and 15, of which only directions are printed. Circles: from the unchanged start. Squares: as published, from the edited one. Mean over models, band from lowest to highest."}, "image": {"alt": "Four panels. Change of acquisition and of forgetting against the gain q, and against the fraction p, each measured from the unchanged and from the edited start."}}
def band(axes, x, names, quantity, label, index):
    rows = [resuscitating.gains(last[name], last[BASELINE], quantity) for name in names]
    if None not in rows:
        plot.spread(axes, x, list(zip(*rows, strict=True)), label, index=index)


with plot.figure(columns=2, rows=2, height=2.9) as grid:
    sweeps = (
        ("q", [q for q in resuscitating.GAINS if lift(q) in last], lambda q: lift(q)),
        ("p", [p for p in resuscitating.FRACTIONS if lift(1.0, p) in last], lambda p: lift(1.0, p)),
    )
    for row, (axis, x, name) in zip(grid, sweeps, strict=True):
        for axes, letter in zip(row, ("A", "F"), strict=True):
            for index, (quantity, label) in enumerate(
                ((letter, "from the unchanged start"), (f"{letter} as published", "as published"))
            ):
                band(axes, x, [name(value) for value in x], quantity, label, index)
            axes.axhline(0, color="#999999", linewidth=1)
            axes.set(xlabel=axis, ylabel="points", title=f"Change of {letter} against {axis}")
    grid[0][0].legend(loc="upper left")

# %% tags=["hide-input"]
gains_table(last, [lift(1.0, p) for p in resuscitating.FRACTIONS])

# %% [markdown]
# ## From earlier stages
#
# The authors find that lifting helps late models and hurts early ones (figures 16 and 17).

# %% tags=["hide-input"]
stages = {name: group for name, group in recorded.items() if name not in ("ungated",)}
plot.table(
    [
        (
            "100 %" if place == "last" else place,
            name,
            *(gain(group[name], group[BASELINE], quantity) for quantity in ("K", "P", "A", "F")),
        )
        for place, group in stages.items()
        for name in (lift(q) for q in resuscitating.GAINS)
        if name in group
    ],
    ("stage", "arm, less plain learning", "K at the end (nats)", "P at the end (points)", "A (points)", "F (points)"),
)

# %% [markdown]
# ## Is it entropy?
#
# These comparisons separate a raised entropy from what else the edit does.
#
# - **Shuffled.** The very same factors, dealt out at random among the memories of a layer. As violent an edit, but not aimed at idle memories.
# - **Same function.** The factors on the keys and their inverses on the values: entropy rises, and the model is as it was, nothing is damaged.
# - **Half of the layers.** The same edit in the first or the last half of them only.
# - **Attention.** Softmax attention divided by a temperature (figure 18): a start that is disturbed elsewhere. Constant, and falling to one over the run as the released code has it.
# - **Waking on the way.** A gentler method of our own: the weights stay as they are, and during learning each memory's update is scaled by $s_i \propto (\bar c_i)^{-\alpha}$ with mean one in each layer, so that idle memories learn faster and busy ones slower with the same budget. The update is scaled, not the gradient, whose size AdamW would divide out again.

# %% tags=["hide-input"]
gains_table(
    last,
    [
        lift(2.0),
        "shuffled, q 2",
        "same function, q 2",
        *(f"{half}, q 2" for half in resuscitating.HALVES),
        *(f"T {t:g}" for t in resuscitating.TEMPERATURES),
        "T 2, cooled",
        *(f"wake {s:g}" for s in resuscitating.STRENGTHS),
    ],
)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-lifting-entropy", "caption": "Arms from the last stage: what each adds to the entropy of the start, and what it adds to K (left) and P (right) at the end, mean over models. If entropy were the cause, they would lie along a rising line. The shuffled arm is left out; it lies far below on the left."}, "image": {"alt": "Two scatter plots, a point for each arm and a colour for each kind of arm: change of knowledge entropy at the start against the change of K, and of P, at the end of learning."}}
KINDS = {
    "lifted": ("p ", *resuscitating.HALVES),
    "same function": ("same",),
    "attention temperature": ("T ",),
    "waking on the way": ("wake",),
}
with plot.figure(columns=2, height=3.4) as panels:
    for axes, quantity, unit in ((panels[0], "K", "nats"), (panels[1], "P", "points")):
        for index, (kind, marks) in enumerate(KINDS.items()):
            names = [name for name in last if name.startswith(marks)]
            x = [resuscitating.entropies(last[name], last[BASELINE])[0].mean for name in names]
            y = [resuscitating.gained(last[name], last[BASELINE], quantity).mean for name in names]
            axes.plot(x, y, label=kind, **{**plot.look("recorded", index), "linestyle": "none"})
        axes.axhline(0, color="#999999", linewidth=1)
        axes.set(
            xlabel="change of H of the start (nats)", ylabel=f"change of {quantity} at the end ({unit})",
            title=f"Entropy and {quantity}",
        )  # fmt: skip
    panels[0].legend()

# %% [markdown]
# ## Entropy on the way
#
# What is left of the raised entropy when the run is over? Plain learning moves $H$ too.

# %% tags=["hide-input"]
plot.table(
    [
        (name, *(change.short() for change in resuscitating.entropies(last[name], last[BASELINE])))
        for name in last
    ],
    ("arm", "H of the start, less the checkpoint's (nats)", "H at the end, less plain learning's (nats)", "H at the end (nats)"),
)

# %% [markdown]
# ## Without a gate
#
# In an ungated model an activation stands between key and coefficient, and a factor on the key does not come out as a factor on the coefficient. There only the *value* can be multiplied exactly: what the memory writes is lifted, while usage and entropy of the first layer do not move at all. A GPT-2-shaped
# model, pretrained on the same text along the same schedule:

# %% tags=["hide-input"]
without = recorded.get("ungated", {})  # none at paper scale
gains_table(without, [name for name in without if name != BASELINE])

# %% [markdown]
# ## What holds here
#
# The claims: lifting the idle half to the mean or above helps the final model ({claim}`entropy.10`), half the mean harms it ({claim}`entropy.11`), a lifted model stays below an unchanged one of similar entropy ({claim}`entropy.12`), larger shares help up to a point ({claim}`entropy.23`), later
# stages profit more ({claim}`entropy.24`), and attention is not the place ({claim}`entropy.25`). Where $A$ and $F$ are judged, the first line measures them from the unchanged checkpoint; the second, as published, from the edited one. Two more come from the reviews: that the apparent gain is
# mostly a damaged start ({claim}`review.damaged-start`), and that some of the layers are not enough ({claim}`review.layer-subset`).

# %% tags=["hide-input"]
claims.table(
    lab,
    *(claims.CLAIMS[f"entropy.{number}"] for number in (10, 11, 12, 23, 24, 25)),
    *(claims.CLAIMS[f"review.{name}"] for name in ("damaged-start", "layer-subset")),
)

# %% [markdown]
# ## What to conclude
#
# *The edit does what it promises, and learning undoes most of it.* At $q$ of two the start has {result}`waking.p 0.5, q 2.H|+.2f` more entropy than the checkpoint. But plain learning raises entropy as well, and at the end the difference is {result}`waking.p 0.5, q 2.end H|+.2f`.
#
# *Seen from the unchanged checkpoint no gain in what is acquired can be seen.* $K$ at the end changes by {result}`waking.p 0.5, q 1.K|+.3f`, {result}`waking.p 0.5, q 2.K|+.3f` and {result}`waking.p 0.5, q 3.K|+.3f` for $q$ of one, two and three. Measured as published, from the edited model, $A$ rises by
# {result}`waking.p 0.5, q 1.A as published|+.1f`, {result}`waking.p 0.5, q 2.A as published|+.1f` and {result}`waking.p 0.5, q 3.A as published|+.1f`: the harder the edit, the lower the start, and the better any end looks.
#
# *The shuffled edit shows it plainly.* Dealt out at random, the same factors wreck the start. Measured as published this is the best arm of all, $A$ by {result}`waking.shuffled, q 2.A as published|+.0f`; at the end it is the worst, $K$ by {result}`waking.shuffled, q 2.K|+.2f` and $P$ by {result}`waking.shuffled, q 2.P|+.1f`. A
# measure that prefers it measures damage. The comparison also says something good about algorithm 1: idle memories can be made loud at far less cost than memories picked at random.
#
# *Entropy by itself shows no effect here.* The arm with the same function has as much more entropy, {result}`waking.same function, q 2.H|+.2f`, from weights that compute exactly what the checkpoint computes. It ends where plain learning ends, as far as three models can tell: $K$ by {result}`waking.same function, q 2.K|+.3f`, $P$ by
# {result}`waking.same function, q 2.P|+.1f`. Entropy depends on how a memory's strength is split between key and value, and learning, at this scale and with AdamW, does not care much for the split.
#
# *What helped a little was mild.* Updates scaled towards idle memories, with nothing edited, kept {result}`waking.wake 1.P|+.1f` of $P$ at full strength, with $K$ unchanged ({result}`waking.wake 1.K|+.3f`); the mildest lifting, $q$ of one half, kept {result}`waking.p 0.5, q 0.5.P|+.1f`; and so did attention at a temperature of
# two, {result}`waking.T 2.P|+.1f`, which has nothing to do with memories. The table says how sure that is: three models, and many arms to choose from.
#
# ## What we tried
#
# Nothing of this chapter was tuned: $p$, $q$, the temperatures and the strengths of waking were written down before any of these arms was run, and every arm that was run is shown. The run is shorter than that of {doc}`05_acquisition` ({result}`rivals.steps`, {result}`rivals.passages` passages), because there are so many.
#
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | model | OLMo-1B | stages of {doc}`02_pretraining`'s model, three seeds |
# | usage for algorithm 1 | two thousand texts of Dolma | training texts of the model's own corpus |
# | start of $A$ and $F$ | the edited model | the unchanged one; the edited one beside it |
# | controls | attention temperature | that, shuffled factors, and factors that leave the function as it is |
# | ungated models | none | a GPT-2-shaped one, value side |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-half
# With $q$ of one half the paper speaks of making inactive memories more inactive. Usage in a layer is $1, 2, 3, 10$. What does algorithm 1 do with $p$ of one half and $q$ of one half, and does entropy fall?
# ```
#
# ```{solution-start} ex-half
# :class: dropdown
# ```

# %%
import torch

from kemem import entropy

usage = torch.tensor([[1.0, 2.0, 3.0, 10.0]])
factors = entropy.multiplier(usage, 0.5, 0.5)
before, after = (float(entropy.layer_entropy(u).sum()) for u in (usage, usage * factors))
print("factors", factors[0].tolist(), f"entropy {before:.3f} -> {after:.3f} nats")
assert after > before and (factors >= 1).all()

# %% [markdown]
# Half of the mean is two here, so one memory is doubled and the other stays. Nothing becomes less active, and entropy *rises*. Whether $q$ of one half concentrates usage depends on how uneven it was.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-gauge
# Can entropy be brought to its bound $L \ln M$ without changing what the model computes?
# ```
#
# ```{solution-start} ex-gauge
# :class: dropdown
# ```

# %%
from kemem import models

tok = models.Shape("olmo", layers=2, width=16, memories=24, heads=2, context=16, vocab=64)
model = models.build(tok, None, seed=0).double()
ids = [list(range(k, k + 16)) for k in range(8)]
logits = model(torch.tensor(ids)).logits
seen = entropy.measure(model, ids, length=16, pad_id=0, next_token=False)
with torch.no_grad():
    entropy.reparameterise_(model, entropy.multiplier(seen.usage, 1.0, 1.0))
again = entropy.measure(model, ids, length=16, pad_id=0, next_token=False)
print(f"{seen.entropy:.4f} -> {again.entropy:.4f} nats, bound {again.bound:.4f}")
assert torch.allclose(logits, model(torch.tensor(ids)).logits) and abs(again.entropy - again.bound) < 1e-9

# %% [markdown]
# Yes, in every gated model, with $p$ and $q$ of one and the inverse factors on the values. So a statement about entropy as a *cause* must say by which change of the weights it is raised.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Algorithm 1 lifts the keys of the least used memories. It is exact in the first layer of a gated model; behind it, measure again.
# - An edited start is a damaged start. Show the ends, and $A$ and $F$ from the unchanged checkpoint; as published they reward damage, the more the worse.
# - Two controls decide what an edit shows: the same factors dealt out at random, and the same factors undone on the values, which raise entropy and leave the function alone.
# - Here no sign was found that a higher knowledge entropy at the start makes a model acquire more or forget less; for forgetting the intervals are wide. What keeps a little more of the old is to let idle memories learn faster.
