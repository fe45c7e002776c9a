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
# (ch-das)=
# # DAS, step by step
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Take one method apart that wants both: to learn a new domain and to keep what was known. Each equation beside the line that computes it, each part shown on a real model, and what the released code does instead of what the paper says. \
# **You need.** {doc}`08_forgetting` for what is to be prevented and how it is counted; {doc}`01_memories` for the coefficient of a memory. \
# **Paper.** Ke et al. {cite}`ke2023continual`, section 3 with figure 1; section 4.2 with tables 3 and 4; their released code. \
# **Reading time.** About 35 minutes.
#
# ```{runtime} 09_das
# ```
# :::
#
# Training on a domain moves every weight, also those on which old knowledge rests. One remedy is to hold weights back. But whoever holds back everything learns nothing. So a method has to know *which* parts matter for what was known before, and how much.
#
# DAS (**D**omain-**a**daptive pre-training by **S**oft-masking) answers in three steps. It asks how much each head and each neuron *matters*, by a gradient. It lets training move what matters *less*, by a factor between zero and one. And it adds a loss that tells what is *new* in the representation of a text apart from what was there.
#
# All the steps are simple. That makes it a good method to learn from, and a good method to ask what really happens: the paper, its code and the optimizer do not always agree, and this chapter measures what of that matters.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the texts that are read, of dropout and of the order of the data, in the rows that are computed live
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the model's own
samples = None  # texts of a domain on which importance is measured live; None: the scale's own number
steps = None  # of the live course on each domain; None: the scale's own number

# %%
import torch

from kemem import book, claims, models, plot, trace
from kemem.studies import budget, looking, masking, moving, nulls, pairing, units, variants

lab = book.open_chapter("09_das", globals())

# %% [markdown]
# ## Where the gates stand
#
# A *unit* is one attention head or one neuron. DAS looks at three sites of every block, and imagines a gate at each unit: a number by which its output is multiplied.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-gates", "caption": "The three gated sites of a block: each head, each memory at its coefficient, and each output unit of the feed-forward layer before it joins the residual stream. The gates are one and stay one; only their gradient is used."}, "image": {"alt": "Two rows of boxes. Attention: query, key, value lead to heads, a gate, the output projection and the residual sum. Feed-forward: first projection, memories, a gate, last projection, a second gate, the residual sum."}}
from itertools import pairwise

GATE = "⊗ g"
CHAINS = {
    1.0: ((0.07, "query, key\nvalue"), (0.32, "heads"), (0.49, GATE), (0.71, "output\nprojection"), (0.96, "+")),
    0.0: (
        (0.07, "first\nprojection"), (0.30, "memories"), (0.46, GATE), (0.64, "last\nprojection"), (0.82, GATE),
        (0.96, "+"),
    ),
}  # fmt: skip
with plot.figure(height=2.6) as axes:
    for y, chain in CHAINS.items():
        for (x, _), (then, _) in pairwise(chain):
            axes.annotate("", (then - 0.03, y), (x, y), arrowprops={"arrowstyle": "->", "color": "#555555"}, zorder=1)
        for x, text in chain:
            colour = "#f6c9a0" if text == GATE else "#dbe8f4"
            axes.text(
                x, y, text, ha="center", va="center", fontsize=11, zorder=2,
                bbox={"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "#444444"},
            )  # fmt: skip
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.6, 1.6), title="Gates in a block: attention above, feed-forward below")
    axes.axis("off")

# %% [markdown]
# A gate is *virtual*: it is one, it is never trained, the model with gates computes what the model computes. But it has a gradient, and that is what it is for. Let $o_t$ be what a unit puts out at position $t$, and $\hat o_t = g\, o_t$. By the chain rule
#
# ```{math}
# :label: eq-das-gate
# \frac{\partial L}{\partial g} = \sum_t o_t \, \frac{\partial L}{\partial \hat o_t} .
# ```
#
# A unit whose gradient is zero could be turned down a little without any loss. The next cell computes both sides on a tiny model, for the memories of its first layer: with gates on the left, and on the right from what passes through the model.

# %%
from kemem.continual.gates import gated, ones
from kemem.memory import Memories
from kemem.objective import causal

tiny = models.build(
    models.Shape("olmo", layers=2, width=16, memories=24, heads=2, context=12, vocab=64), seed=0
).double()
memories = Memories(tiny)
ids = torch.randint(64, (5, 12), generator=torch.Generator().manual_seed(0))
batch = {"input_ids": ids, "labels": ids}

gates = ones(memories).map(lambda one: one.requires_grad_())
with gated(tiny, gates):
    loss = causal(tiny, batch)
left = torch.autograd.grad(loss, gates.intermediate)[0][0]  # dL/dg, of layer 0

passed = []
with trace.observe(tiny, {memories.down_path(0): passed.append}):
    loss = causal(tiny, batch)
o = passed[0]  # coefficients [texts, positions, memories]
right = (o * torch.autograd.grad(loss, o)[0]).sum((0, 1))
assert torch.allclose(left, right)
print(f"{len(left)} memories: both sides agree")

# %% [markdown]
# ## Importance
#
# The importance of a unit is the mean size of that gradient, over texts:
#
# ```{math}
# :label: eq-das-importance
# I = \frac{1}{N} \sum_{n=1}^{N} \left| \frac{\partial L(x_n)}{\partial g} \right| .
# ```
#
# Where the bars stand matters. A unit may help with one text and disturb another; with the sum inside the bars the two would cancel, and a busy unit would look idle. So each text needs a gradient of its own. A loop over texts is the definition; the package gives each text of a batch its own gates, so that one backward pass is enough.

# %%
from kemem.continual.importance import domain_importance
from kemem.corpora import Blocks

by_hand = torch.zeros(memories.layers, memories.count, dtype=torch.float64)
for text in ids:
    gates = ones(memories).map(lambda one: one.requires_grad_())
    with gated(tiny, gates):
        loss = causal(tiny, {"input_ids": text[None], "labels": text[None]})
    by_hand += torch.autograd.grad(loss, gates.intermediate)[0].abs() / len(ids)

texts = Blocks(ids, torch.zeros_like(ids))
assert torch.allclose(by_hand, domain_importance(tiny, texts, causal).intermediate)
print("a loop over texts and one pass with a gate for every text agree")

# %% [markdown]
# Which loss? There are two uses, and two losses.
#
# *What matters to a domain* is measured after it was learned, with the loss by which it was learned: of the masked tokens, or of the next token.
#
# *What matters to general knowledge* has to be measured before the first domain, and there the text is missing: what the model was pretrained on is not at hand. Plain loss on the domain's text would measure the domain. The paper's way out is a proxy. Two passes of one text through the same model, with different dropout, disagree a little; a unit by which the disagreement can be
# changed a lot is one that the model's predictions lean on:
#
# ```{math}
# :label: eq-das-proxy
# L(x) = \operatorname{KL}\bigl( f_1(x) \,\Vert\, f_2(x) \bigr) ,
# ```
#
# with $f_1$ and $f_2$ the predictions of the two passes. No label enters. But *dropout must be on*: without it both passes are one pass, the divergence is zero wherever the gates stand, and so is its gradient. Many causal models have no dropout at all; there the outputs of the sublayers are dropped in these passes only.

# %%
from kemem.continual.importance import disagreement, general_importance
from kemem.objective import logits_of

with torch.no_grad():
    quiet = [logits_of(tiny, batch) for _ in range(2)]
print("without dropout, two passes disagree by", float(disagreement(*quiet, None).sum()), "nats")
proxy = general_importance(tiny, texts, noise=0.1)
print("with it, units have an importance:", bool((proxy.intermediate > 0).all()))

# %% [markdown]
# ## What importance looks like
#
# Now the models of this part: one that fills in masked tokens, RoBERTa-shaped and with dropout as in the paper, and the causal one of {doc}`02_pretraining`. A short course of DAS over all domains runs on each, live. What it measures is kept.


# %%
def settings(kind, **chosen):
    return looking.settings(kind, scale, seed=seed, dtype=dtype, device=lab.card, **chosen)


course = {
    name: masking.run(lab, settings(masking.Coursed, masked=masked, samples=samples, steps=steps))
    for name, masked in looking.MODELS.items()
}
measured = ["general", *course["masked"].values["names"]]
print(f"{len(course)} models, {len(measured)} importances each: {', '.join(measured)}")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-heads", "caption": "Importance of every head, a row a layer and a column a head, each picture in units of its largest value. First column: for general knowledge, before any domain. Then for each domain, after it was learned. Top: the masked model; below: the causal one."}, "image": {"alt": "Two rows of small heat maps, layers by heads: general knowledge and each domain, for the masked model above and the causal model below."}}
def heat(axes, values, title=""):
    values = torch.tensor(values)
    axes.imshow(values / values.max(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
    axes.grid(False)


with plot.figure(columns=len(measured), rows=2, height=1.6) as grid:
    for panels, (name, row) in zip(grid, course.items(), strict=True):
        for axes, values, what in zip(panels, row.values["heads"], measured, strict=True):
            heat(axes, values, what)
        panels[0].set(ylabel=f"{name}\nlayer", xlabel="head", yticks=range(len(row.values["heads"][0])))

# %% [markdown]
# Heads differ, and so do layers. And where two pictures of a row look alike: is that a finding, or would any two such pictures? We come back to that question with numbers.
#
# Memories are too many for a map. Sorted by importance, they say how evenly it is spread:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-memories", "caption": "Importances of the memories of the first and the last layer, sorted, in units of the layer's mean. Circles and squares: for general knowledge; triangles and diamonds: for the first domain, after it was learned. A flat line would mean that all memories matter alike."}, "image": {"alt": "Two panels, masked and causal model: sorted importances of memories against their rank as a share, for general knowledge and the first domain, in the first and the last layer, on a logarithmic axis."}}
with plot.figure(columns=2, height=3.0, sharey=True) as panels:
    for axes, (name, row) in zip(panels, course.items(), strict=True):
        found = row.values["intermediate"]
        for index, (place, layer) in enumerate(((0, 0), (0, -1), (1, 0), (1, -1))):
            y = found[place][layer]
            x = [i / (len(y) - 1) for i in range(len(y))]
            label = f"{measured[place]}, {'first' if layer == 0 else 'last'} layer"
            axes.plot(x, y, label=label, **plot.look(row.origin, index), markevery=5)
        axes.set(xlabel="rank (share of memories)", title=f"{name} ({row.origin})", yscale="log")
    panels[0].set(ylabel="importance (layer's mean = 1)")
    panels[0].legend(fontsize=7)

# %% [markdown]
# The output units of the feed-forward layers, ordered by their importance for general knowledge. If a domain's picture fades from left to right in the same way, it leans on the same units:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-output", "caption": "Output units of the masked model, a row a layer, from the most to the least important for general knowledge; in units of the layer's mean, at most three. First picture: general knowledge. Below: each domain, in the same order of units."}, "image": {"alt": "Stacked heat maps of layers by output units. All are sorted by the first one, general knowledge, which fades from left to right; below it are the domains in the same order of units."}}
kept = [torch.tensor(each) for each in course["masked"].values["output"]]
order = kept[0].argsort(-1, descending=True)
with plot.figure(rows=len(kept), height=0.95) as panels:
    for axes, values, what in zip(panels, kept, measured, strict=True):
        shown = (values / values.mean(-1, keepdim=True)).gather(-1, order).clamp(max=3)
        heat(axes, shown.tolist(), what)
        axes.set(ylabel="layer", yticks=range(len(values)))
    panels[-1].set(xlabel="output units, by importance for general knowledge")

# %% [markdown]
# ## From scores to a mask
#
# Gradients have no scale of their own; a mask needs numbers between zero and one. In every layer the scores become $z = (I - \text{mean})/\text{std}$ and then
#
# ```{math}
# :label: eq-das-normalise
# \text{released: } |\tanh z| , \qquad
# \text{here: } \max(0, \tanh z) , \qquad
# \text{or the rank, as a share.}
# ```
#
# The paper says that the result is read as a number between zero and one; the code takes the absolute value. Look at what that does to a unit far *below* the mean.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-normalise", "caption": "What the three normalisations make of the same scores: the output units of the last layer of the masked model, for general knowledge. Left of the dotted line are units of less than average importance; the absolute value protects them the more the less important they are."}, "image": {"alt": "Mask value against importance in units of the mean: max(0, tanh) is zero below the mean and rises above it, the absolute value has a V shape with its minimum at the mean, rank rises throughout."}}
from kemem.continual.gates import SITES, Units
from kemem.continual.importance import normalised

looked = {
    name: units.importance(lab, settings(units.Measured, masked=masked, samples=samples))
    for name, masked in looking.MODELS.items()
}
scores = torch.tensor([sorted(looked["masked"].values["example"])], dtype=torch.float64)
NAMES = {"tanh_clip": "max(0, tanh z)", "paper_abs": "|tanh z|", "rank": "rank"}
with plot.figure(height=3.0) as axes:
    for index, (how, label) in enumerate(NAMES.items()):
        mask = normalised(Units(scores, scores, scores), how).output[0]
        x, y = (scores[0] / scores.mean()).tolist(), mask.tolist()
        plot.series(axes, x, y, label, index=index, origin=looked["masked"].origin, markevery=3)
    axes.axvline(1, color="#555555", linestyle=":")
    axes.set(xlabel="importance (layer's mean = 1)", ylabel="mask value I", title="Three readings of one score")
    axes.legend()

# %% [markdown]
# On all the importances of each model, as means over the three sites: how large masks are, how large below and above the layer's mean, what share of all protection goes to units below the mean, and how importance and mask go together (rank correlation within layers).

# %% tags=["hide-input"]
SHOWN = {"mean": "mean mask", "below": "below the mean", "above": "above it", "wrong": "spent below (%)", "rank": "rank correlation"}


def over_sites(row, how, key):
    value = looking.mean(row.values["spared"][how][site][key] for site in SITES)
    return f"{100 * value:.0f}" if key == "wrong" else f"{value:.2f}"


plot.table(
    [
        (name, label, *(over_sites(row, how, key) for key in SHOWN))
        for name, row in looked.items()
        for how, label in NAMES.items()
    ],
    ("model", "normalisation", *SHOWN.values()),
)

# %% [markdown]
# ## What fills up
#
# After each domain its normalised importances join what was known, by the larger of the two numbers:
#
# ```{math}
# :label: eq-das-emax
# I^{(\le t)} = \max\bigl( I^{(\le t-1)}, I^{(t)} \bigr) , \qquad I^{(\le 0)} = I^{(0)} ,
# ```
#
# with $I^{(0)}$ that of general knowledge. The maximum never falls. Every domain can only take more of the model away from those that follow, so the question is how fast.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-filling", "caption": "The mean mask of each site before the first domain (general knowledge alone) and after each, with the three normalisations on the same scores of the live course, which itself was run with max(0, tanh z)."}, "image": {"alt": "Six panels, three sites for each of two models: mean mask value against the number of domains learned, a curve for each normalisation; all rise."}}
with plot.figure(columns=3, rows=2, height=2.3, sharey=True, sharex=True) as grid:
    for panels, (name, row) in zip(grid, course.items(), strict=True):
        for axes, site in zip(panels, SITES, strict=True):
            for index, (how, label) in enumerate(NAMES.items()):
                y = row.values["filled"][how][site]["mean"]
                axes.plot(range(len(y)), y, label=label, **plot.look(row.origin, index))
            axes.set(ylim=(0, 1), title=f"{name}, {site}", xticks=range(len(measured)))
            axes.title.set_size(9)
        panels[0].set(ylabel="mean mask")
    for axes in grid[1]:
        axes.set(xlabel="domains learned")
    grid[0][0].legend(fontsize=7)

# %% [markdown]
# ## Is general knowledge the same from any text?
#
# The proxy {eq}`eq-das-proxy` reads the text of a *domain* and is to say what matters to knowledge of *everything*. The paper checks that it does not depend on the domain: it measures the proxy's importance of heads on every domain's text, and reports the mean cosine of each with the others, all near $0.9$ ({claim}`das.12`). That looks like a lot.
#
# How much is a lot? Cosines of vectors without negative entries cannot be near zero. The mean of the cosine over all ways to shuffle the units *within* their layers can be written down; with $\bar a_l$ the mean of $a$ in layer $l$ of $U$ units,
#
# ```{math}
# :label: eq-das-null
# \mathbb{E} \cos(a, b) = \frac{1}{\lVert a \rVert \lVert b \rVert} \sum_l U \, \bar a_l \, \bar b_l .
# ```
#
# Shuffled scores know nothing of each other. What they reach is the zero of this scale; two measurements on the text of *one* domain, with other rows and other dropout, are its upper end. And ranks within layers have a null of zero of their own. The last column of the table draws many such shuffles and counts how many agree as well as the real scores: small numbers mean that the agreement is no accident.

# %%
alike = {name: units.importances(lab, masked=masked) for name, masked in looking.MODELS.items()}
print(", ".join(f"{name}: {len(rows)} measurements of {rows[0].values['texts']} texts a domain" for name, rows in alike.items()))


# %% tags=["hide-input"]
def likeness(rows, proxy, key, site="heads"):
    return [nulls.differing(row.values["likeness"][proxy][site])[key] for row in rows]


KEYS = ("raw", "raw, unrelated", "raw, more", "paper_abs", "paper_abs, unrelated", "paper_abs, more", "rank")
PROXY = {"general": "general knowledge", "domain": "the domain"}
plot.table(
    [
        (
            name, label, *(f"{looking.mean(likeness(rows, proxy, key)):.2f}" for key in KEYS),
            f"{units.again(rows, proxy):.2f}",
            f"{100 * looking.mean(row.values['shuffled'][proxy]['reached'] for row in rows):.1f}",
        )
        for name, rows in alike.items()
        for proxy, label in PROXY.items()
    ],
    ("model", "heads' importance for", "cosine, raw", "unrelated", "more", "cosine, |tanh z|", "unrelated", "more", "rank",
     "same text again, raw", "shuffles that reach |tanh z| (%)"),
)  # fmt: skip


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-alike", "caption": "Mean cosine of the heads' importances from the texts of different domains, a point a seed; the bar is what unrelated scores reach, normalised alike. Stars: what the paper prints for RoBERTa, one a domain; whether of raw or of normalised scores is not said. What counts is the distance from the bar."}, "image": {"alt": "Points along the cosine axis for both models, for importances for general knowledge and for the domain, raw and normalised, each with a bar for unrelated scores; stars for the published cosines."}}
lines = [(name, proxy, key) for name in alike for proxy in PROXY for key in ("raw", "paper_abs")]
with plot.figure(height=0.9 + 0.38 * len(lines)) as axes:
    for place, (name, proxy, key) in enumerate(lines):
        seen = likeness(alike[name], proxy, key)
        null = looking.mean(likeness(alike[name], proxy, f"{key}, unrelated"))
        axes.plot(seen, [place] * len(seen), **{**plot.look(alike[name][0].origin, 0), "linestyle": "none"})
        axes.plot([null, null], [place - 0.32, place + 0.32], color="#D55E00", linewidth=2.5)
    printed = list(claims.CLAIMS["das.12"].published.values())
    plot.published_points(axes, printed, [-1] * len(printed), "RoBERTa")
    labels = [f"{name}, {proxy}, {NAMES.get(key, key)}" for name, proxy, key in lines]
    axes.set(
        yticks=[-1, *range(len(lines))], yticklabels=["paper, general", *labels], xlabel="mean cosine over pairs of domains",
        title="Alike, and how alike anything would be",
    )  # fmt: skip
    axes.invert_yaxis()

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["das.12"])

# %% [markdown]
# The other two sites, by rank within layers, where unrelated scores have zero:

# %% tags=["hide-input"]
plot.table(
    [
        (name, label, *(variants.said(likeness(rows, proxy, "rank", site), 2) for site in SITES))
        for name, rows in alike.items()
        for proxy, label in PROXY.items()
    ],
    ("model", "importance for", *(f"{site}, rank" for site in SITES)),
)

# %% [markdown]
# ## How many texts does it take?
#
# Importance is a mean over texts, and a pass over all of them is the most expensive thing that DAS does once a domain. A share of the rows, against all rows:

# %%
parts = {name: units.shares(lab, masked=masked) for name, masked in looking.MODELS.items()}
print(", ".join(f"{name}: {rows[0].values['rows']} rows" for name, rows in parts.items()))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-shares", "caption": "Rank correlation, within layers, of importances from a share of a domain's rows with those from all of them; mean over seeds, with a band from the lowest to the highest. The share is a part of all rows, so at one half some agreement is by construction; the dropout of the proxy is drawn anew."}, "image": {"alt": "Four panels, two models by two losses: rank correlation against the share of rows on a logarithmic axis, a curve for each of the three sites."}}
with plot.figure(columns=2, rows=2, height=2.5, sharey=True, sharex=True) as grid:
    for panels, (name, rows) in zip(grid, parts.items(), strict=True):
        for axes, (proxy, label) in zip(panels, PROXY.items(), strict=True):
            x = [texts / rows[0].values["rows"] for texts in rows[0].values["texts"]]
            for index, site in enumerate(SITES):
                runs = [row.values["ranks"][proxy][site] for row in rows]
                plot.spread(axes, x, runs, site, origin=rows[0].origin, index=index)
            axes.set(xscale="log", title=f"{name}: {label}")
            axes.set_xticks(x, [f"{100 * share:.0f}" for share in x])
            axes.minorticks_off()
        panels[0].set(ylabel="rank correlation")
    for axes in grid[1]:
        axes.set(xlabel="share of the rows (%)")
    grid[0][0].legend(fontsize=7)

# %% [markdown]
# ## The soft mask
#
# What is known is protected while the next domain is learned. The forward pass stays as it is, so that old knowledge can be used; only learning is held back. As the paper has it,
#
# ```{math}
# :label: eq-das-softmask
# \nabla_{\text{unit}} \leftarrow (1 - I) \, \nabla_{\text{unit}} .
# ```
#
# What a unit's parameters are is a matter of orientation, and worth a table, for a transposed mask still runs:
#
# | unit | what is multiplied |
# | --- | --- |
# | head | its rows of query, key and value, with their biases; its columns of the output projection |
# | memory | its row of the first projection, or of both where there is a gate, with its bias |
# | output unit | its row of the last projection, with its bias |
#
# Embeddings, norms and the last projection to the vocabulary always learn freely.
#
# ### On the gradient, or on the update?
#
# Then comes the optimizer. AdamW divides each parameter's step by the size of *its own* gradients. A mask that is constant over a domain scales both the gradient and its size. For a parameter whose gradients have the size $\gamma$ all the time, and with Adam's $\epsilon$, the step with the mask is to the step without as
#
# ```{math}
# :label: eq-das-adam
# \frac{(1-I)\,\gamma}{(1-I)\,\gamma + \epsilon} / \frac{\gamma}{\gamma + \epsilon}
# \;\approx\; 1 \quad\text{as long as}\quad (1-I)\,\gamma \gg \epsilon .
# ```
#
# The factor cancels. What is left of the mask comes from $\epsilon$, a number that nobody chose for this purpose. There are two ways out: an optimizer that does not divide, or a mask on what the optimizer *did*,
#
# ```{math}
# :label: eq-das-update
# w \leftarrow w_{\text{old}} + (1 - I)\,(w_{\text{new}} - w_{\text{old}}) ,
# ```
#
# which is `mask_update_` in `kemem.continual.softmask`, and what this book's DAS does unless told otherwise.
#
# Measured: every unit gets one of five importances at random; the model learns for some steps without a mask, then from the same start with it. How far did the masked entries go, as a share of how far the same entries went without?

# %%
moved = {
    name: moving.movement(lab, settings(moving.Moved, masked=masked))
    for name, masked in looking.MODELS.items()
}
for name, row in moved.items():
    print(f"{name}: gradients of the masked parameters have a root mean square of {row.values['rms']:.0e}")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-movement", "caption": "How far parameters move under the mask, as a share of their way without it, against what the mask leaves of them, 1 - I; both axes logarithmic. Black: exactly 1 - I. The mask on the update and plain gradient descent lie on it. With AdamW and the mask on the gradient it depends on epsilon; dotted, the estimate for a gradient that is always as large as the measured root mean square."}, "image": {"alt": "Two panels, masked and causal model. Movement ratio against 1 - I: the update mask and SGD follow the diagonal; AdamW with the gradient masked stays near one for small epsilon and approaches the diagonal for large epsilon."}}
with plot.figure(columns=2, height=3.6, sharey=True) as panels:
    for axes, (name, row) in zip(panels, moved.items(), strict=True):
        left = [1 - value for value in row.values["values"]]
        axes.plot(left, left, color="#000000", linewidth=1, label="1 − I")
        by_epsilon = sorted(row.values["gradient"].items(), key=lambda pair: float(pair[0]))
        arms = {f"gradient, ε {e}": y for e, y in by_epsilon}
        arms |= {"update": row.values["update"], "SGD, gradient": row.values["sgd"]}
        for index, (label, y) in enumerate(arms.items()):
            axes.plot(left, y, label=label, **plot.look(row.origin, index))
        for index, (epsilon, _) in enumerate(by_epsilon):
            y = [moving.predicted(v, row.values["rms"], float(epsilon)) for v in row.values["values"]]
            axes.plot(left, y, ":", color=plot.COLOURS[index], linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="1 − I", title=f"{name} ({row.origin})")
    panels[0].set(ylabel="way with the mask / without")
    panels[0].legend(fontsize=7)


# %% tags=["hide-input"]
def ratios(values):
    return [f"{value:.3f}" for value in values]


plot.table(
    [
        (name, label, *ratios(own))
        for name, row in moved.items()
        for label, own in (
            ("exactly", [1 - value for value in row.values["values"]]),
            ("update, one step", row.values["one step"]),
            ("update, all steps", row.values["update"]),
            ("SGD, gradient", row.values["sgd"]),
            *((f"AdamW, gradient, ε {e}", row.values["gradient"][e]) for e in sorted(row.values["gradient"], key=float)),
        )
    ],
    ("model", "mask on", *(f"I = {value:g}" for value in row.values["values"])),
)

# %% [markdown]
# Over one step the mask on the update leaves $1 - I$ exactly. Over several the ways drift apart a little, in both directions, for where some parts are held the gradients of all parts become others; with plain descent it is the same.
#
# ## The contrast
#
# The mask protects what was known, and the new domain has to live beside it. DAS adds a loss that pushes the representation of a text away from what the *known* part of the model makes of it. Of each text $n$ of a batch there are three views, each a mean of the last hidden states over positions: the full one $f_n$; its twin $f_n^{+}$, the same text under another dropout mask; and $p_n$, from a
# pass in which every unit is multiplied by its importance so far, "what was known". With cosines $s(\cdot,\cdot)$ and a temperature $\tau$,
#
# ```{math}
# :label: eq-das-contrast
# L_{\text{con}} = - \frac{1}{N} \sum_n \log
# \frac{e^{s(f_n, f_n^{+})/\tau}}{\sum_j \bigl( e^{s(f_n, f_j^{+})/\tau} + e^{s(f_n, p_j)/\tau} \bigr)} .
# ```
#
# The full view is to be like its twin, unlike those of other texts, and unlike the known part of any.
#
# The released code makes the pairs by tiling the batch and reading it in twos. What comes out as a pair is *text $2i$ with text $2i+1$*: two different sentences. The true twin, where it appears at all, is a negative. On the same batches, before any training:

# %%
pairs = {
    name: pairing.contrast(lab, settings(pairing.Contrasted, masked=masked, samples=samples))
    for name, masked in looking.MODELS.items()
}

# %% tags=["hide-input"]
LOSSES = ("twins", "mispaired", "twins alone", "mispaired alone")
COSINES = ("cosine of twins", "cosine of mispaired", "cosine of others", "cosine with previous")
plot.table(
    [
        (key, *(f"{row.values[key]:.2f}" if key in LOSSES else f"{row.values[key]:.3f}" for row in pairs.values()))
        for key in (*LOSSES, *COSINES)
    ],
    ("", *(f"{name} ({'dropout' if row.values['drops'] else 'no dropout'})" for name, row in pairs.items())),
)

# %% [markdown]
# The losses are in nats; "alone" leaves the known part out of the sum. Guessing among all candidates would cost the logarithm of their number.
#
# *Without dropout there is no twin.* Two passes are one pass, the twin is the view itself, its cosine is one and has no gradient. What remains of {eq}`eq-das-contrast` is the denominator alone: texts are pushed apart from each other and from what was known. That is said plainly here because it is what happens in our causal model, and in every causal model trained without dropout.
#
# ## One domain, end to end
#
# Now everything is there. One domain of DAS is this list; each line names where it is in `kemem.continual`.
#
# - *Before the first domain only:* `general_importance(model, text)`, then `normalised`: that is $I^{(0)}$. (`DAS.before`)
# - *Before training:* `multipliers(model, known)`, for every parameter what is left of its change. (`DAS.during`)
# - *Each step:* the usual pass and loss; a pass for the twin; a pass gated by what is known; the loss plus `contrastive_loss`. (`DAS.loss`)
# - *Each step, after backward:* with the mask on the gradient, `mask_gradients_`. (`DAS.gradients`)
# - *Each step, after the optimizer:* with the mask on the update, `mask_update_`. (`DAS.updated`)
# - *After training:* `domain_importance(model, text)`, `normalised`, and `emax` with what was known. (`DAS.after`)
#
# A causal model needs three passes a step, for its own loss already sees the whole text; a masked one four, because the text that it is trained on is corrupted and the contrast wants it whole. Without dropout it is one less.
#
# The live course from above, by its losses:


# %% tags=["hide-input"]
def trodden(row, i):
    losses = row.values["loss"][i]
    before = row.values["before"][i] if i == 0 else losses[i - 1]
    held = row.values["filled"]["tanh_clip"]
    return (f"{before:.3f}", f"{losses[i]:.3f}", f"{losses[-1]:.3f}", *(f"{held[site]['mean'][i]:.2f}" for site in SITES))


plot.table(
    [
        (name, domain, *trodden(row, i))
        for name, row in course.items()
        for i, domain in enumerate(row.values["names"])
    ],
    ("model", "domain", "before it (nats a token)", "after it", "in the end", *(f"mask in it, {site}" for site in SITES)),
)

# %% [markdown]
# ## As described, as released
#
# Reading the released code shows places where it differs from the paper. We made each a switch, and ran DAS with each one alone and with all of them, on both models. They were written for a model with masked tokens. In the causal one, which has no dropout, the twin in the contrast is the view itself, and there are no masked tokens for `uncorrupted`, which is left out:
#
# | switch | what the released code does |
# | --- | --- |
# | `gradient` | masks the gradient under AdamW, see above |
# | `other_sentences` | pairs other texts in the contrast, see above |
# | `no_dropout` | measures the proxy in evaluation mode: two equal passes, and what is left is rounding |
# | `absolute` | protects units far below the mean, see above |
# | `signed` | sums gradients of texts with their signs |
# | `unzeroed` | never sets gradients of gates to zero between batches, so early batches count more often |
# | `uncorrupted` | measures a domain's importance on text in which nothing is hidden: the answer can be copied |
# | `over_positions` | takes the proxy's softmax over the positions of a text, of hidden states |
# | `head_columns` | masks input columns of query, key and value in place of a head's rows |
# | `first_rows` | reads the first texts of a domain in place of random ones |
#
# Which of them were on when the paper's tables were made cannot be known. The differences below are to plain DAS as this book has it, seed by seed: mean and interval.

# %%
compared = {name: budget.sizes(scale, masked=masked, device=lab.card) for name, masked in looking.MODELS.items()}
broken = {name: variants.beside(lab, z, "defect") for name, z in compared.items()}
for name, (found, plain) in broken.items():
    print(f"{name} model: {len(found)} variants beside plain DAS, {len(plain['average'])} seeds each")


# %% tags=["hide-input"]
def variants_table(found, plain, first):
    return plot.table(
        [
            ("plain DAS itself", *(f"{looking.mean(values):.3f}".replace("-", "−") for values in plain.values())),
            *((name, *(variants.said(own[quantity]) for quantity in plain)) for name, own in found.items()),
        ],
        (first, "average loss (nats a token)", "forgetting (nats a token)", "learned (nats a token)"),
    )


variants_table(*broken["masked"], "masked model, less plain DAS")

# %% tags=["hide-input"]
variants_table(*broken["causal"], "causal model, less plain DAS") if broken["causal"][0] else print("not at this scale")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-released", "caption": "DAS with each defect of the released code alone, and with all: average loss over domains at the end, and forgetting, less those of plain DAS. Above the masked model, below the causal one. Small marks are seeds, large ones their mean. Left of the line is better than plain DAS."}, "image": {"alt": "Four panels of points, a row for each switch: change of average loss and of forgetting against plain DAS, with a vertical line at zero, for the masked model above and the causal one below."}}
def strip(panels, found, quantities=("average", "forgetting")):
    for axes, quantity in zip(panels, quantities, strict=True):
        for place, own in enumerate(found.values()):
            seen = own[quantity]
            axes.plot(seen, [place] * len(seen), "o", color=plot.COLOURS[0], markerfacecolor="white", markersize=4)
            axes.plot([looking.mean(seen)], [place], "D", color=plot.COLOURS[1], markersize=6)
        axes.axvline(0, color="#999999", linewidth=1)
        axes.set(xlabel="nats a token", title=f"Change of {quantity}", ylim=(len(found) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=4)
    panels[0].set(yticks=range(len(found)), yticklabels=list(found))


def strips(both, height):
    shown = {name: found for name, (found, _) in both.items() if found}
    with plot.figure(columns=2, rows=len(shown), height=height, squeeze=False) as grid:
        for panels, (name, found) in zip(grid, shown.items(), strict=True):
            strip(panels, found)
            panels[0].set(ylabel=name)
            panels[1].set_yticks(range(len(found)), [])


strips(broken, 1.0 + 0.26 * len(broken["masked"][0]))

# %% [markdown]
# ## Parts left out
#
# The paper leaves out one part at a time. Every part is to raise the average ({claim}`das.9`). Without the first importance, or with random ones, there is to be forgetting ({claim}`das.10`). And as a stand-in for the text of pretraining the divergence is to find better units than the plain loss ({claim}`das.11`): here the first importance is measured on the text that the model was really pretrained on, with either
# loss (`stand-in-kl`, `stand-in-loss`).

# %%
removed = {name: variants.beside(lab, z, "part") for name, z in compared.items()}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-das-parts", "caption": "DAS with a part left out, less plain DAS. Above the masked model, below the causal one. Right of the line the part was of use."}, "image": {"alt": "Four panels of points, a row for each part that is left out: change of average loss and of forgetting for the masked model and for the causal one."}}
strips(removed, 2.7)

# %% tags=["hide-input"]
variants_table(*removed["masked"], "masked model, less plain DAS")

# %% tags=["hide-input"]
variants_table(*removed["causal"], "causal model, less plain DAS")

# %% tags=["hide-input"]
claims.table(lab, *(claims.CLAIMS[f"das.{number}"] for number in (9, 10, 11)))

# %% [markdown]
# ## Other importances
#
# If a mask over units is a good idea, is it this importance that makes it so? Pruning has measures of its own: the length of the weights that produce a unit (`magnitude`), the accumulated gradient of its gate (`gradient`, which differs from DAS in general knowledge alone), and the share of its weights that survive a lottery ticket's pruning (`lottery`). Beside them: DAS's own from a share of the rows, and
# with the other normalisations.

# %%
others = variants.beside(lab, compared["causal"], "importance")

# %% tags=["hide-input"]
variants_table(*others, "causal model, less plain DAS") if others[0] else print("not at this scale")

# %% [markdown]
# ## What to conclude
#
# *The mask belongs on the update.* With AdamW, $\epsilon = 10^{-6}$ and the mask on the gradient, parameters with $I = 0.9$ still go {result}`units.masked.movement.gradient.1e-06.0.9|.2f` of their way in the masked model and {result}`units.causal.movement.gradient.1e-06.0.9|.2f` in the causal one, where {eq}`eq-das-softmask` says a tenth. On the update they go
# {result}`units.masked.movement.update.0.9|.2f` and {result}`units.causal.movement.update.0.9|.2f`. Whoever scales gradients under an optimizer that divides by them has to check what is left.
#
# *What the mask spends its protection on depends on a detail.* With the absolute value {result}`units.masked.mask.paper_abs.wrong|.0%` of all protection goes to units of less than average importance (causal: {result}`units.causal.mask.paper_abs.wrong|.0%`), and mask and importance have a rank correlation of {result}`units.masked.mask.paper_abs.rank|.2f` within layers (causal:
# {result}`units.causal.mask.paper_abs.rank|.2f`).
#
# *A high cosine is not yet a finding.* Heads' importances for general knowledge from different domains have a mean cosine of {result}`units.masked.general.heads.paper_abs|.2f` in the masked model after the released normalisation; unrelated scores have {result}`units.masked.general.heads.paper_abs, unrelated|.2f`. Raw: {result}`units.masked.general.heads.raw|.2f` against
# {result}`units.masked.general.heads.raw, unrelated|.2f`. Rank correlation within layers, which has a null of zero: {result}`units.masked.general.heads.rank|.2f` for heads, {result}`units.masked.general.intermediate.rank|.2f` for memories and {result}`units.masked.general.output.rank|.2f` for output units; in the causal model {result}`units.causal.general.heads.rank|.2f`,
# {result}`units.causal.general.intermediate.rank|.2f` and {result}`units.causal.general.output.rank|.2f`. Two measurements on one text have a raw cosine of {result}`units.masked.general.again|.2f` (causal: {result}`units.causal.general.again|.2f`).
#
# *The mask fills.* With $\max(0, \tanh z)$ the mean mask of memories goes from {result}`units.masked.filled.tanh_clip.intermediate.mean.first|.2f` to {result}`units.masked.filled.tanh_clip.intermediate.mean.last|.2f` over the live course of the masked model; with the absolute value it would go from {result}`units.masked.filled.paper_abs.intermediate.mean.first|.2f` to
# {result}`units.masked.filled.paper_abs.intermediate.mean.last|.2f`.
#
# *With other sentences as pairs it is another loss.* On the same batches of the masked model the contrast with true twins is {result}`units.masked.contrast.twins|.2f`, and with the released pairs {result}`units.masked.contrast.mispaired|.2f`.
#
# *Do the defects matter in the end?* With the mask on the gradient forgetting changes by {result}`units.masked.defect.gradient.forgetting|+.3f` in the masked model and by {result}`units.causal.defect.gradient.forgetting|+.3f` in the causal one: about what it changes by without any mask. With other sentences as pairs the average loss changes by {result}`units.masked.defect.other_sentences.average|+.3f` (causal: {result}`units.causal.defect.other_sentences.average|+.3f`) and forgetting by
# {result}`units.masked.defect.other_sentences.forgetting|+.3f` (causal: {result}`units.causal.defect.other_sentences.forgetting|+.3f`); with the absolute value the average by {result}`units.masked.defect.absolute.average|+.3f` (causal: {result}`units.causal.defect.absolute.average|+.3f`); with everything as released the average by {result}`units.masked.defect.as-released.average|+.3f` (causal: {result}`units.causal.defect.as-released.average|+.3f`) and forgetting by {result}`units.masked.defect.as-released.forgetting|+.3f`
# (causal: {result}`units.causal.defect.as-released.forgetting|+.3f`). Positive numbers are worse. The tables have the intervals, and they decide which of these can be told from chance.
#
# *Do the parts?* Without the mask forgetting changes by {result}`units.masked.part.without-soft-mask.forgetting|+.3f` (causal: {result}`units.causal.part.without-soft-mask.forgetting|+.3f`) and what is learned by {result}`units.masked.part.without-soft-mask.learned|+.3f` (causal: {result}`units.causal.part.without-soft-mask.learned|+.3f`). Without the contrast the
# average loss changes by {result}`units.masked.part.without-contrast.average|+.3f` (causal: {result}`units.causal.part.without-contrast.average|+.3f`). With random importances it changes by {result}`units.masked.part.random.average|+.3f` (causal: {result}`units.causal.part.random.average|+.3f`): that is how much it matters *which* units are held.
#
# *In short*, as recorded. In both models the mask on the gradient is next to no mask; the absolute value holds more units, so that less is forgotten and less is learned, and the average is worse; other sentences as pairs loosen the contrast, so that more is learned and more forgotten, which costs the causal model, whose twins are exact, more than any part that is left out. The other defects change hardly anything. Whether the *parts* are worth it depends on how much there is to hold. The causal model forgets much, and for it mask and contrast both improve the average. The
# masked model learns at a lower rate, which its own trials chose, and forgets little; there both cost more in learning than they save, and the average is better without them. The first importance does nothing of note in either. Random importances forget less and learn less: they are larger on average, so the comparison with them is one of *how much* is held as well as of *which*.
#
# ## What we tried
#
# DAS had the trials that every method of {doc}`10_methods` had: its learning rate and its normalisation were chosen on validation text, for each model by itself, and all variants above run with what was chosen for plain DAS. A defect might do better with settings of its own. The other numbers of DAS, the weight of the contrast, its temperature and the noise of the proxy, are those of the released
# code and were not tried. The rows on importances, on movement and on the contrast have no choices in them but the sizes; the live course has a fixed rate and fewer steps than the comparison.
#
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | model | RoBERTa-base | a RoBERTa-shaped model of a few layers, and a causal one |
# | mask | on the gradient | on the update; the gradient is a switch |
# | normalisation | read as a number between zero and one; in code the absolute value | what is below the mean gets zero; the other two are settings |
# | proxy | divergence of two passes; in code of hidden states, over positions, without dropout | divergence of predictions over the vocabulary, with dropout |
# | gate of a memory | in code before the activation | at the coefficient; the other is a setting |
# | weight and temperature of the contrast | could not be read | those of the released code |
# | likeness of importances | cosine | cosine, what unrelated scores have, and ranks |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-two-heads
# A layer has two heads, with importances $a > b$. What does $|\tanh z|$ make of them? And $\max(0, \tanh z)$?
# ```
#
# ```{solution-start} ex-two-heads
# :class: dropdown
# ```

# %%
for a, b in ((1.0, 0.9), (1.0, 1e-6)):
    two = torch.tensor([[a, b]], dtype=torch.float64)
    by = {how: normalised(Units(two, two, two), how).heads[0] for how in ("paper_abs", "tanh_clip")}
    print({how: [round(x, 3) for x in mask.tolist()] for how, mask in by.items()})
    assert torch.allclose(by["paper_abs"], torch.full_like(by["paper_abs"], 0.5**0.5).tanh())
    assert by["tanh_clip"][1] == 0

# %% [markdown]
# With two units $z$ is $\pm 1/\sqrt{2}$ whatever the scores are. The absolute value gives both heads the same protection and has forgotten everything that was measured; any two such layers have a cosine of one. The other reading protects the more important head, always by the same amount. A mask over few units knows little more than their order.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-das-adam
# A parameter has the same gradient $\gamma = 10^{-4}$ in every step. It is trained with AdamW for two hundred steps, once with and once without a mask of $I = 0.99$ on the gradient, at $\epsilon = 10^{-8}$ and at $\epsilon = 10^{-4}$. What does {eq}`eq-das-adam` predict, and what happens?
# ```
#
# ```{solution-start} ex-das-adam
# :class: dropdown
# ```


# %%
def way(factor, epsilon, gradient=1e-4, steps=200):
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=1e-3, eps=epsilon, weight_decay=0.0)
    for _ in range(steps):
        w.grad = torch.full_like(w, factor * gradient)
        optimizer.step()
    return abs(w.item())


for epsilon in (1e-8, 1e-4):
    seen, said = way(0.01, epsilon) / way(1.0, epsilon), moving.predicted(0.99, 1e-4, epsilon)
    print(f"epsilon {epsilon:.0e}: {seen:.3f} of the way, predicted {said:.3f}, meant 0.010")
    assert abs(seen - said) < 1e-6

# %% [markdown]
# With a constant gradient the estimate is exact. At the small $\epsilon$ nearly nothing is held back; at the large one the mask acts, but the unmasked parameter is slowed down too, since $\epsilon$ is as large as its gradient.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-null
# Draw scores of six domains at random: twelve layers of twelve heads, normal and independent. What is the mean cosine of $|\tanh z|$, and what of the signed $\tanh z$?
# ```
#
# ```{solution-start} ex-null
# :class: dropdown
# ```

# %%
drawn = torch.randn(6, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
absolute = [normalised(Units(each, each, each), "paper_abs").heads for each in drawn]
signed = [((each - each.mean(-1, keepdim=True)) / each.std(-1, keepdim=True)).tanh() for each in drawn]
found = nulls.mean_cosine(absolute), nulls.unrelated_cosine(absolute), nulls.mean_cosine(signed)
print(f"absolute {found[0]:.2f}, by equation {found[1]:.2f}; signed {found[2]:.2f}")
assert abs(found[0] - found[1]) < 0.03 and found[0] > 0.75 and abs(found[2]) < 0.05

# %% [markdown]
# Nothing has to do with anything, and the cosine is nearly $0.8$: that is where the scale of the published numbers begins, if they are of normalised scores. With its sign left in, the same score has a null of zero.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - The gradient of a gate that is always one says how much a unit matters; per text, and in size, before the mean is taken.
# - General knowledge is measured without its text, by how much the model disagrees with itself under dropout. Without dropout there is nothing to measure.
# - A cosine of importances has to be held against that of unrelated ones, which is far from zero.
# - A soft mask on gradients is nearly undone by an optimizer that divides by them. On the update it is exact.
# - The contrast needs true twins, and a model with dropout to have any.
# - What a paper describes and what its code runs are two methods. Both can be run, and compared.
