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
# (ch-forgetting)=
# # Forgetting, seen
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Train a model on one domain after another, watch it forget, put numbers to it, and find out where in the weights it happens and how far simple theory foresees it. \
# **You need.** {doc}`02_pretraining` for the model; {doc}`01_memories` for keys and values; derivatives. \
# **Paper.** Ke et al. {cite}`ke2023continual`, sections 1, 3 and 4 (setting and measures; the rows One, Pool and NCL of table 2). Training on domains goes back to Gururangan et al. {cite}`gururangan2020dont`, the Fisher information as a guard to Kirkpatrick et al. {cite}`kirkpatrick2017overcoming`. \
# **Reading time.** About 30 minutes.
#
# ```{runtime} 08_forgetting
# ```
# :::
#
# The chapters before this one asked what a model takes in from a few new passages. These ask what becomes of a model that is never finished: it reads all text of one field, then all text of the next, and the earlier text is gone. The plain way is to go on with pretraining. It is cheap, and it forgets. Before the next two chapters try to prevent that, this one looks at it.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the order of the data, in the runs that are computed live
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
learning_rate = None  # of the live runs; None: the one that the trials of plain training chose

# %%
import dataclasses
import itertools

from kemem import book, claims, continual, plot
from kemem.studies import budget, courses, interference, landscape, standing

lab = book.open_chapter("08_forgetting", globals())
z = interference.bounds(scale, device=lab.card)
tried = budget.tried(lab, z)
made = budget.chosen(tried)
rate = learning_rate or made["ncl"].rate
print(f"{len(tried)} trials; learning rate of the live runs: {rate:g}")

# %% [markdown]
# ## The setting
#
# There are domains $D_1, \ldots, D_n$: large texts without labels. They come one at a time, and each is gone when it was read. One model goes through all of them. It should know every domain in the end, it should not lose what it knew before the first, and nobody will tell it which domain a question is from.
#
# Ours are small, and chosen so that they differ by different amounts. Three are the docstrings of one package each. Of docstrings the model has read a sample in pretraining, so this kind of text is not new to it. One is a country of an invented world, with other people and places than those of the world that it knows. This is how they begin:

# %%
found = interference.run(lab, interference.settings(scale, rate=rate, seed=seed, dtype=dtype, device=lab.card))
v = found.values
if lab.drift(found):
    print(f"The text of this run is {lab.drift(found)}; its numbers differ from the recorded ones for that reason alone.")

# %% tags=["hide-input"]
for name in v["names"]:
    print(f"{name}: {' '.join(v['samples'][name].split())} ...\n")

# %% [markdown]
# Each domain has text that is held out, by which it is judged, and an *end task*: a classification of texts of that domain, with a few labels. The paper fine-tunes a copy of the model for each end task. Here a linear probe reads the mean of the last hidden states, which is quicker and shows what the model itself has made of the text. The last column is what always giving the most frequent answer would score.

# %% tags=["hide-input"]
plot.table(
    [
        (
            name, plot.plain(task["name"]), task["classes"], f"{task['train']} / {task['test']}",
            plot.plain(" ".join(task["text"].split())[:70]) + " ...", plot.plain(task["label"]), f"{task['always']:.0f}",
        )
        for name, task in ((name, v["tasks"][name]) for name in v["names"] if name in v["tasks"])
    ],
    ("domain", "end task", "classes", "to learn from / to test", "an example", "its label", "one answer always (%)"),
) if v["tasks"] else print("no end tasks: their files ($KEMEM_DATA) are not at hand")  # fmt: skip

# %% [markdown]
# ## The matrix
#
# After every domain the model is asked for *all* of them, those to come included. Let $L_{ij}$ be the loss on held-out text of domain $i$ after training on domain $j$, in nats a token, and $L_{i0}$ that of the model at the start. Four numbers are read off this matrix. The first is what one cares about:
#
# ```{math}
# :label: eq-course-average
# \text{average} = \frac{1}{n} \sum_{i=1}^{n} L_{in} .
# ```
#
# It says how good the model is at the end, and nothing of why. *Forgetting* is how much of a domain is lost from when it was learned to the end. The last domain is left out, since nothing came after it:
#
# ```{math}
# :label: eq-course-forgetting
# F = \frac{1}{n-1} \sum_{i=1}^{n-1} \left( L_{in} - L_{ii} \right) .
# ```
#
# A negative $F$ means that later domains helped earlier ones, which is called backward transfer. The paper has the same formula with scores of end tasks, where more is better, and so with the sign turned. *Forward transfer* is how much a domain gains from those before it, while it was not read itself:
#
# ```{math}
# :label: eq-course-forward
# \text{forward} = \frac{1}{n-1} \sum_{i=2}^{n} \left( L_{i0} - L_{i,i-1} \right) ,
# ```
#
# and *learned* is what training on a domain brings to that domain:
#
# ```{math}
# :label: eq-course-learned
# \text{learned} = \frac{1}{n} \sum_{i=1}^{n} \left( L_{i,i-1} - L_{ii} \right) .
# ```
#
# All four are means over domains and not over tokens, so that a large domain does not speak for the others. The package computes the second like this:

# %%
book.source(continual.Course.forgetting.fget)

# %% [markdown]
# Why four? Because each by itself can be had for nothing. A model that learns nothing forgets nothing. A model that forgets everything may have learned a great deal. The exercises show that the average is made of the other three.
#
# ## One course
#
# Now plain training on this machine: the domains in turn, a fresh optimizer for each, the recipe of the paper (AdamW, a short warm-up, a linear fall of the rate, no weight decay). In the paper's table this is NCL, naive continual learning. On the way each domain's loss is measured again and again.

# %%
every = max(1, z.base.steps // 8)
settings = budget.one(z, "ncl", budget.Setting(rate), seed=seed, every=every)
row = courses.run(lab, dataclasses.replace(settings, dtype=dtype or settings.dtype))
live, steps = courses.course(row), z.base.steps
names = live.names

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-course-watched", "caption": "Held-out loss of each domain while the domains are learned one after the other; thin lines are the borders, and above stands what is being learned. Each curve falls steeply where its own domain is read. What it does elsewhere is forgetting, or transfer. Grey: general text, like that of pretraining."}, "image": {"alt": "Curves of the held-out loss of each domain over the steps of training, with vertical lines where one domain ends and the next begins; each curve falls in its own section and moves, mostly upwards, in others. Grey points show general text at the borders."}}
seen = row.values["watched"]
x = [names.index(w["domain"]) * steps + w["step"] for w in seen] + [len(names) * steps]
with plot.figure(height=3.8) as axes:
    for i, name in enumerate(names):
        plot.series(axes, x, [w["loss"][i] for w in seen] + [live.loss[i][-1]], name, origin=row.origin, index=i, markevery=2)
    borders = [steps * j for j in range(len(names) + 1)]
    axes.plot(borders, live.general, color="#777777", marker="x", linestyle=":", label="general text")
    for j, name in enumerate(names):
        axes.axvline(borders[j], color="#999999", linewidth=0.8)
        axes.text(borders[j] + steps / 2, 1.0, name, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=8)
    low, high = axes.get_ylim()
    axes.set(xlabel="steps", ylabel="held-out loss (nats a token)", title="Plain training, domain after domain", ylim=(low, high + 0.08 * (high - low)))
    axes.legend(fontsize=7, ncols=2, loc="upper right", bbox_to_anchor=(1, 0.92))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-course-matrix", "caption": "The matrix of the same course: rows are domains, columns say after which domain they were asked for. Colours are the difference to the model at the start: purple is better, orange worse. On the diagonal, framed, each domain has just been read; to its right is what became of it; to its left, what domains did to one that was not read yet."}, "image": {"alt": "Heat map with a row for each domain and one for general text, and columns for the start and after each domain, with the held-out loss written in each cell; cells on the diagonal are framed."}}
matrix = [[start, *after] for start, after in zip(live.before, live.loss, strict=True)] + [live.general]
change = [[x - line[0] for x in line] for line in matrix]
most = max(abs(x) for line in change for x in line) or 1.0
with plot.figure(height=3.4) as axes:
    axes.grid(False)
    axes.imshow(change, cmap="PuOr_r", vmin=-1.8 * most, vmax=1.8 * most, aspect="auto")
    for i, line in enumerate(matrix):
        for j, loss in enumerate(line):
            framed = {"edgecolor": "black", "facecolor": "none", "pad": 3} if j == i + 1 else None
            axes.text(j, i, f"{loss:.2f}", ha="center", va="center", fontsize=9, bbox=framed)
    axes.set(
        xticks=range(len(names) + 1), xticklabels=["start", *names], yticks=range(len(names) + 1),
        yticklabels=[*names, "general text"], xlabel="after training on", title="Held-out loss (nats a token)",
    )  # fmt: skip


# %% [markdown]
# The four numbers, from the matrix, beside those that the package computes:


# %%
def read_off(before, L):
    n = len(L)
    given = [[start, *line] for start, line in zip(before, L, strict=True)]  # given[i][j] is L_ij, j from 0
    return {
        "average": sum(given[i][n] for i in range(n)) / n,
        "forgetting": sum(given[i][n] - given[i][i + 1] for i in range(n - 1)) / (n - 1),
        "forward": sum(given[i][0] - given[i][i] for i in range(1, n)) / (n - 1),
        "learned": sum(given[i][i] - given[i][i + 1] for i in range(n)) / n,
    }


numbers = read_off(live.before, live.loss)
for name, of in {"average": "average", "forgetting": "forgetting", "forward": "forward_transfer", "learned": "learned"}.items():
    assert abs(numbers[name] - getattr(live, of)) < 1e-9
plot.table([(name, f"{value:.3f}") for name, value in numbers.items()], ("this course", "nats a token"))

# %% [markdown]
# ## Forgotten, or only moved away?
#
# The word says that something of a domain was there and is gone. The matrix can check this, for it also has domains that were *not read yet*. They cannot be forgotten. If their loss rises by as much while another domain is read, then what is lost is not what was learned of a domain, but something that many texts share. For each domain that is learned: the change of its own loss, the mean change of those read before, of those still to come, and of general text.


# %% tags=["hide-input"]
def mean(found):
    return sum(found) / len(found)


def told(found):
    return f"{mean(found):+.3f}".replace("-", "\N{MINUS SIGN}") if found else "none"


moved = [[b - a for a, b in itertools.pairwise(line)] for line in matrix]
plot.table(
    [
        (name, told([moved[j][j]]), told([moved[i][j] for i in range(j)]),
         told([moved[i][j] for i in range(j + 1, len(names))]), told([moved[-1][j]]))
        for j, name in enumerate(names)
    ],
    ("while learning", "its own loss (nats)", "domains read before", "domains not read yet", "general text"),
)  # fmt: skip

# %% [markdown]
# Read the row of the invented country. In the study further down, which begins with the same two domains, its text raises the first domain's loss by {result}`interference.Sumstan.rise|.2f`, and that of the two packages which the model has *not* been trained on by {result}`interference.Sumstan.rise.transformers|.2f` and {result}`interference.Sumstan.rise.pandas|.2f`. So a rate of forgetting measures two things together: what is special to a
# domain, and the drift of the whole model towards the text that it reads. And look at the next rows: docstrings of another package change the loss of the first one again, without a word of it being read. What was only moved away can come back.
#
# ## What would be possible
#
# Two other ways to spend the same steps say what to expect. **One** trains a specialist for each domain, always from the start, and judges each by its own: nothing can be forgotten, nothing can be transferred, and there are as many models as domains. **Pool** mixes all domains and trains once, as long as the sequence takes: the order is gone. In the paper both are references and no rivals, since the one needs to be told the domain and the other needs all
# text at once.

# %%
book.source(continual.specialists)

# %% [markdown]
# Each of the three had a few trials of its learning rate on validation text, with one seed and in one order, and one more beyond an end of the range where the best lay there. It was then run with all seeds in all orders. In brackets: the lowest and the highest run.

# %%
rows = budget.table(lab, budget.contest(z, made))
print(f"{len(rows)} courses: {len(z.orders)} orders, {len(z.seeds)} seeds")
origin = next(iter(rows.values())).origin


# %% tags=["hide-input"]
def each(name, quantity, order=None, of=standing.QUANTITIES):
    """A quantity of all courses of a method, or of those in one order."""
    own = [courses.course(row) for (n, o, _), row in rows.items() if n == name and order in (None, o)]
    return [x for x in (of[quantity][0](course) for course in own) if x is not None]


def spread(found, digits=2):
    if not found:
        return "none"
    middle, low, high = (f"{x:.{digits}f}".replace("-", "\N{MINUS SIGN}") for x in (mean(found), min(found), max(found)))
    return middle if len(found) == 1 or low == high else f"{middle} ({low} to {high})"


LABELS = {"one": "One", "pool": "Pool", "ncl": "NCL, plain training"}
SHOWN = ("average", "learned", "forgetting", "forward", "general", "task")
plot.table(
    [("untouched model", *(spread(each("ncl", q, of=standing.BEFORE), 1 if q == "task" else 2) if q in standing.BEFORE else "" for q in SHOWN))]
    + [(label, *(spread(each(name, q), 1 if q == "task" else 2) for q in SHOWN)) for name, label in LABELS.items()],
    ("nats a token, end tasks in %", "average", "learned", "forgetting", "forward", "general text at the end", "end tasks"),
)  # fmt: skip

# %% [markdown]
# In this table *learned* and *forgetting* say little of Pool: all its columns are one. What counts is the first column.
#
# ### Does the order matter?
#
# The second order is the first one turned round. The average can hide much, so the table also has the loss of each domain at the end.


# %% tags=["hide-input"]
def at_the_end(order, name):
    own = [courses.course(row) for (n, o, _), row in rows.items() if (n, o) == ("ncl", order)]
    return [course.loss[course.names.index(name)][-1] for course in own]


plot.table(
    [
        (
            ", ".join(next(courses.course(row) for (n, o, _), row in rows.items() if (n, o) == ("ncl", order)).names),
            *(spread(each("ncl", q, order)) for q in ("average", "learned", "forgetting", "forward")),
            *(spread(at_the_end(order, name)) for name in names),
        )
        for order in range(len(z.orders))
    ],
    ("order of plain training", "average", "learned", "forgetting", "forward", *(f"{name} at the end" for name in names)),
)  # fmt: skip

# %% [markdown]
# ## Learning against forgetting
#
# How fast should plain training learn? The learning rate is the first knob, and it turns two things at once. Here are all trials of it.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-course-trade", "caption": "Trials of plain training on validation text, one seed. Left: what each learning rate learns of a domain, against what is forgotten later; both in nats a token, written beside each point is the rate. Right: the average loss at the end against the rate; filled: the one that was chosen. Below the dotted line is better than no training."}, "image": {"alt": "Two panels. Left, points for learning rates in the plane of learned against forgetting, rising to the right. Right, the average loss at the end against the learning rate on a logarithmic axis, with a dotted line for the untouched model."}}
plain = sorted((of.rate, courses.course(r)) for (name, of), r in tried.items() if name == "ncl")
with plot.figure(columns=2, height=3.4) as (left, right):
    left.plot([c.learned for _, c in plain], [c.forgetting for _, c in plain], **plot.look(origin, 0))
    for of, c in plain:
        left.annotate(f"{of:g}", (c.learned, c.forgetting), xytext=(5, -9), textcoords="offset points", fontsize=8)
    left.margins(x=0.2, y=0.12)
    left.set(xlabel="learned (nats a token)", ylabel="forgetting (nats a token)", title=f"The trade ({origin})")
    right.plot([of for of, _ in plain], [c.average for _, c in plain], **plot.look(origin, 0))
    right.plot(*next([[of], [c.average]] for of, c in plain if of == made["ncl"].rate), "o", color=plot.COLOURS[0], markersize=7)
    right.axhline(mean(plain[0][1].before), color="#777777", linestyle=":", linewidth=1.2)
    right.set(xscale="log", xlabel="learning rate", ylabel="average at the end (nats)", title="What comes of it")

# %% [markdown]
# A faster rate learns more and forgets more, and neither of the two is wanted for itself. The best average comes at a slow one: {result}`budget.ncl.rate|g` was chosen for the sequence, {result}`budget.one.rate|g` for specialists, who have nothing to lose. (Where the best is the slowest that was tried, a slower one may be better still; but at some point nothing is learned either.) Any method that claims to forget less must therefore be compared at its own best rate: whoever lowers the rate forgets less too. {doc}`10_methods` looks for the settings of every method by one rule for this reason.
#
# ## Does it help the end tasks?
#
# Lower loss is not the aim of the paper; better end tasks are. Its first claim about training on domains is that it helps them at all ({claim}`das.8`): the specialist of each domain against the untouched model.


# %% tags=["hide-input"]
def tasks(name, domain):
    """Of a domain's end task in every course of a method: before, and at the end, each specialist by its own."""
    own = [courses.course(row) for (n, _, _), row in rows.items() if n == name]
    places = [(course, course.names.index(domain)) for course in own]
    before = [course.task_before[i] for course, i in places]
    after = [course.task[i][i if course.own else -1] for course, i in places]
    return [[x for x in each_ if x is not None] for each_ in (before, after)]


plot.table(
    [
        (domain, spread(tasks("one", domain)[0], 1), *(spread(tasks(name, domain)[1], 1) for name in LABELS))
        for domain in names
    ],
    ("end task (%)", "untouched model", *LABELS.values()),
)

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["das.8"])

# %% [markdown]
# The tests are small, as the table of tasks says, and a probe on a model of this size is a weak reader. Differences of a few points between single rows mean nothing.
#
# ## Why does it forget?
#
# Now to the weights. A model learns the first domain, and from there, each time anew, one of two others: the invented country, which is unlike the first, and docstrings of another package, which are like it. Let $\theta_1$ be the weights after the first domain, $\theta_2$ those after the second, and $d = \theta_2 - \theta_1$.
#
# ### Do the gradients disagree?
#
# The first suspicion is that the domains pull in opposite directions. A small step along $-g_2$, the negative gradient of the second domain's loss, changes the first domain's loss by
#
# ```{math}
# :label: eq-interference-step
# L_1(\theta - \eta g_2) - L_1(\theta) = -\eta \, g_1 \cdot g_2 + O(\eta^2) ,
# ```
#
# so the sign of $g_1 \cdot g_2$ says whether learning the one helps or harms the other, at first. The cosine is this product without the lengths. A gradient on a few thousand tokens is noisy, and noise makes any cosine small. So every text is cut into two halves, and cosines are between halves. On the diagonal a text meets its own other half: that is how large a cosine can be here.

# %%
book.source(landscape.cosines)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-interference-cosines", "caption": "Cosines between the gradients of held-out losses over all parameters, at four places: at the start, after the first domain, and after a second one of two. On the diagonal, one half of a text with its other half, which is the most that noise allows. Below zero a small step for one text would harm the other."}, "image": {"alt": "Four heat maps, at the start, after the first domain and after each of two second ones, with a row and a column for each domain and for general text and the cosine written in each cell."}}
texts = v["names"]
short = [name.replace(" text", "") for name in texts]
pairs = {pair["second"]: pair for pair in v["pairs"]}
WHEN = {"start": "at the start", "first": f"after {texts[0]}"} | {second: f"after {texts[0]}, {second}" for second in pairs}
with plot.figure(columns=2, rows=2, height=3.4, squeeze=False) as grid:
    for axes in grid.flat[len(WHEN) :]:
        axes.set_axis_off()
    for axes, (when, title) in zip(grid.flat, WHEN.items(), strict=False):
        table = v["cosines"][when]["all"]
        axes.grid(False)
        axes.imshow(table, cmap="PuOr", vmin=-1.6, vmax=1.6)
        for i, line in enumerate(table):
            for j, cosine in enumerate(line):
                axes.text(j, i, f"{cosine:.2f}", ha="center", va="center", fontsize=8)
        axes.set(xticks=range(len(texts)), yticks=range(len(texts)), yticklabels=short, title=title[0].upper() + title[1:])
        axes.set_xticklabels(short, rotation=40, ha="right")

# %% [markdown]
# The same by kind of parameter, for the first domain with each of the two that come second: *FFN keys* is all that makes the coefficients of memories (keys and gates), *FFN values* are the memories themselves ({doc}`01_memories`). The embeddings are here the output's projection too.

# %% tags=["hide-input"]
GROUPS = [kind for kind in landscape.KINDS if kind in v["parameters"]["kinds"]]
EARLY = {when: WHEN[when] for when in ("start", "first")}
plot.table(
    [
        (group if group != "all" else "all parameters", *(f"{v['cosines'][when][group][0][texts.index(second)]:.2f}" for second in pairs for when in EARLY))
        for group in ("all", *GROUPS)
    ],
    (f"cosine with {texts[0]}", *(f"{second}, {label}" for second in pairs for label in EARLY.values())),
)  # fmt: skip

# %% [markdown]
# After the first domain, the cosine between its gradient and that of the country is {result}`interference.first.cosine.Sumstan|.2f`, with docstrings of the other package it is {result}`interference.first.cosine.transformers|.2f`, and one half of the first domain's text has {result}`interference.first.cosine.sympy|.2f` with its other half. At this place the domains do not disagree. They hardly have anything to do with each other: what is still to be learned of one is at right angles to what is still to be learned of the other, even where the two are of one kind.
# The conflict that one might expect is not there.
#
# Now the lower left panel, after the country has been read. The gradients of the first domain and of the other packages, at right angles before, have cosines of {result}`interference.Sumstan.cosine.transformers|.2f` and {result}`interference.Sumstan.cosine.pandas|.2f`, and with general text it is {result}`interference.Sumstan.cosine.general text|.2f`. All of them point the same way: back. A series for the gradient says how: $\nabla L_1(\theta_1 + d) \approx g + H d$. What is new is $H d$, the pull against the way that was gone, and texts that are alike have a curvature that is alike. That is why a domain that was moved away comes back with any text of its kind, and it is the drift of the last section seen in the weights.
#
# So the way there began without a conflict and ended with a loss. There are two ways in which this can be. AdamW does not step along the gradient: it divides every coordinate by the size of its own gradients, so coordinates in which gradients are tiny move as far as others. And where the slope is nothing, the curvature is all there is.
#
# ### Can the rise be foreseen?
#
# Let the weights move by $d$. Taylor's series of the first domain's loss around $\theta_1$, with the gradient $g$ and the Hessian $H$ there, begins
#
# ```{math}
# :label: eq-interference-taylor
# L_1(\theta_1 + d) - L_1(\theta_1) \approx g \cdot d + \tfrac{1}{2}\, d^{\top} H d .
# ```
#
# $H$ has as many rows as the model has parameters. Elastic weight consolidation (EWC, {cite}`kirkpatrick2017overcoming`; the next chapters run it) rests on a stand-in that can be stored. Let $g_k$ be the gradient of the mean loss $\ell_k$ of text $k$ of $N$, and $T$ its number of tokens to predict, the same for all here. The log-probability of the text is $-T \ell_k$. Where the model is right about the text, the expected curvature of minus the log-probability is the
# *Fisher information* $\mathbb{E}[(T g_k)(T g_k)^{\top}]$. Divided by $T$, to be the curvature of the mean loss, and with only the diagonal kept:
#
# ```{math}
# :label: eq-interference-fisher
# d^{\top} H d \;\approx\; \frac{T}{N} \sum_{k} (g_k \cdot d)^2 \;\approx\; T \sum_i F_i\, d_i^2 , \qquad F_i = \frac{1}{N} \sum_k g_{k,i}^2 .
# ```
#
# So $F$ here *stands for the curvature*; it is not the curvature. There are three steps of faith: the series is cut after two terms, the Hessian becomes the Fisher of a model that is not quite right, and the Fisher becomes its diagonal. Each can be checked by itself, since $g_k \cdot d$ and $d^{\top} H d$ need only derivatives along one direction, which are exact and cheap.

# %%
book.source(landscape.Forecast.__call__)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-interference-forecast", "caption": "The rise of the first domain's held-out loss while a second one is learned (blue, measured), and what is foreseen from derivatives before its first step for the way that the weights have come by then: the slope alone; slope and diagonal Fisher, as in EWC; slope and whole Fisher; slope and true curvature. The better a curve follows the blue one, the more can be known beforehand."}, "image": {"alt": "A panel for each second domain: rise of the first domain's loss over the steps on the second, measured and by four forecasts."}}
FORECASTS = {"slope": "slope", "diagonal": "+ diagonal Fisher", "fisher": "+ whole Fisher", "curvature": "+ true curvature"}
with plot.figure(columns=len(pairs), height=3.6, squeeze=False) as grid:
    for axes, (second, pair) in zip(grid[0], pairs.items(), strict=True):
        at = [0, *(step["step"] for step in pair["path"])]
        axes.plot(at, [0.0, *(step["loss"][0] - pair["ends"][0][0] for step in pair["path"])], label="measured", **plot.look(found.origin, 0))
        for index, (name, label) in enumerate(FORECASTS.items(), 1):
            y = [0.0, *(interference.forecasts(step)[name] for step in pair["path"])]
            axes.plot(at, y, color=plot.COLOURS[index], linestyle=":", label=label, marker=plot.MARKERS[index], markersize=3)
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.set(xlabel=f"steps on {second}", ylabel=f"rise for {texts[0]} (nats a token)", title=f"{texts[0]}, then {second}")
    grid[0][0].legend(fontsize=7)


# %% tags=["hide-input"]
def signed(x, digits=3):
    return f"{x:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


last = {second: (pair["path"][-1], pair["ends"][1][0] - pair["ends"][0][0]) for second, pair in pairs.items()}
plot.table(
    [("measured", *(signed(rise) for _, rise in last.values()))]
    + [(label, *(signed(interference.forecasts(step)[name]) for step, _ in last.values())) for name, label in FORECASTS.items()]
    + [("EWC's penalty alone, F of training text", *(signed(interference.forecasts(step)["ewc"]) for step, _ in last.values()))],
    ("rise at the end (nats a token)", *last),
)  # fmt: skip

# %% [markdown]
# For the country the loss rises by {result}`interference.Sumstan.rise|.3f`. The slope alone foresees {result}`interference.Sumstan.slope|.3f`; with the true curvature it is {result}`interference.Sumstan.curvature|.3f`, with the whole Fisher in its place {result}`interference.Sumstan.fisher|.3f`, with the diagonal {result}`interference.Sumstan.diagonal|.3f`. For the other package: {result}`interference.transformers.rise|.3f` measured, {result}`interference.transformers.slope|.3f` by the slope,
# {result}`interference.transformers.curvature|.3f` with the curvature, {result}`interference.transformers.fisher|.3f` and {result}`interference.transformers.diagonal|.3f` with the two Fishers.
#
# Take the three steps of faith one by one. *Two terms of the series*: the true curvature foresees a good part of the rise, though the weights went a long way; what is missing is beyond any quadratic. *Fisher for Hessian*: with the factor $T$ in its place the whole Fisher is of the size of the curvature for the country; for the other package it is well above it, for the model is not right about these texts, and the squares of what still pulls on single texts are counted as if they were curvature. *The diagonal*: the true curvature is {result}`interference.Sumstan.ratio|.0f` times what the diagonal makes of it for the country, and {result}`interference.transformers.ratio|.0f` times for the other package. Parameters act together. $d^{\top} H d$ has a term for every pair of them, and training moves all of them in
# concert towards one kind of text; a diagonal knows only what each would do alone.
#
# A word on units. $F$ is of mean losses of *texts*, and the curvature of the loss is about $T$ times as large, with $T$ = {result}`interference.tokens|.0f` here. By {eq}`eq-interference-fisher` the strength at which EWC's penalty is the forecast itself is $T$; the strengths that are used in practice are far larger. Now there is a reason for that, and an exercise comes back to it.
#
# ### Where does it sit?
#
# After the second domain, take one group of parameters and put it back to $\theta_1$; everything else stays. How much of the first domain's loss comes back, and how much of the second's is given up? If forgetting sat in one place and learning in another, one group would bring back much and cost little.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-interference-groups", "caption": "One group of parameters is put back to its weights before the second domain. Blue: by how much the first domain's loss falls again; orange: by how much the second's rises. Above the thin line groups by kind, below it by layer. A group with much blue and little orange would be worth protecting."}, "image": {"alt": "A panel for each second domain with two horizontal bars for each group of parameters: what comes back of the first domain's loss, and what is given up of the second's."}}
groups = [*GROUPS, *v["parameters"]["layers"]]
with plot.figure(columns=len(pairs), height=4.4, squeeze=False, sharey=True) as grid:
    for axes, (second, pair) in zip(grid[0], pairs.items(), strict=True):
        end = pair["ends"][1]
        back = [end[0] - pair["put back"][group][0] for group in groups]
        given = [pair["put back"][group][1] - end[1] for group in groups]
        places = range(len(groups))
        axes.set_axisbelow(True)
        axes.barh([y - 0.2 for y in places], back, height=0.4, color=plot.COLOURS[0], label=f"{texts[0]} comes back")
        axes.barh([y + 0.2 for y in places], given, height=0.4, color=plot.COLOURS[1], label="second is given up")
        axes.axhline(len(GROUPS) - 0.5, color="#999999", linewidth=0.8)
        axes.axvline(0, color="#555555", linewidth=0.8)
        axes.set(yticks=places, yticklabels=groups, xlabel="nats a token", title=f"{texts[0]}, then {second}")
    grid[0][0].invert_yaxis()
    grid[0][0].legend(fontsize=7)


# %% tags=["hide-input"]
def shares(pair, group):
    """In % of the rise and of what was learned: come back and given up when put back; done when moved alone."""
    (one, two), (one_end, two_end) = pair["ends"]
    back, alone = pair["put back"][group], pair["alone"][group]
    parts = ((one_end - back[0], one_end - one), (back[1] - two_end, two - two_end), (alone[0] - one, one_end - one), (two - alone[1], two - two_end))
    return tuple("none" if abs(of) < 0.02 else f"{100 * part / of:.0f}".replace("-", "\N{MINUS SIGN}") for part, of in parts)


plot.table(
    [
        (second, group, f"{v['parameters']['kinds' if group in GROUPS else 'layers'][group]:,}", *shares(pair, group))
        for second, pair in pairs.items()
        for group in groups
    ],
    ("second domain", "group", "parameters", "put back: comes back (% of the rise)", "given up (% of what was learned)", "moved alone: rise (%)", "learned (%)"),
)  # fmt: skip

# %% [markdown]
# Percentages of a rise or gain that is next to nothing are left out. After the country, putting the values of all feed-forward layers back brings back {result}`interference.Sumstan.back.FFN values|.0f` of the rise and gives up {result}`interference.Sumstan.given.FFN values|.0f` of what was learned; the keys {result}`interference.Sumstan.back.FFN keys|.0f` and {result}`interference.Sumstan.given.FFN keys|.0f`; attention {result}`interference.Sumstan.back.attention|.0f`
# and {result}`interference.Sumstan.given.attention|.0f`; the embeddings {result}`interference.Sumstan.back.embeddings|.0f` and {result}`interference.Sumstan.given.embeddings|.0f`.
#
# These do not add up to a hundred, and that is the point. Moved alone, with everything else as it was at $\theta_1$, the kinds do {result}`interference.Sumstan.alone.rise.FFN values|.0f` (values), {result}`interference.Sumstan.alone.rise.FFN keys|.0f` (keys), {result}`interference.Sumstan.alone.rise.attention|.0f` (attention) and {result}`interference.Sumstan.alone.rise.embeddings|.0f` (embeddings) of the rise, {result}`interference.Sumstan.alone.rise|.0f` together; and of what is learned {result}`interference.Sumstan.alone.learned|.0f` together.
# A sum far below a hundred means that the parts need each other, one far above means that they can stand in for each other. Forgetting is what the parts do *together*, as a curvature would have it; learning is what each can do nearly as well without the others.
#
# ### Halfway between
#
# The straight line between the two weights,
#
# ```{math}
# :label: eq-interference-line
# \theta(\alpha) = (1 - \alpha)\, \theta_1 + \alpha\, \theta_2 ,
# ```
#
# costs nothing but a few evaluations. At $\alpha = 0$ the model knows the first domain, at $\alpha = 1$ the second. Is there a point between them that is better *for both on average* than either end? It would be a way to forget less that needs no old text, no importance and no extra loss: averaging of weights. Any method of the next chapters has to be better than that.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-interference-line", "caption": "Both losses along the straight line between the weights before (0) and after (1) the second domain, and their mean; the star is its lowest point. Dotted: slope and true curvature at 0 continued, the best that a quadratic could know of the first domain's loss on this line."}, "image": {"alt": "A panel for each second domain: the loss of the first and of the second domain and their mean along the line between the weights, with a star at the lowest mean and a dotted parabola for the first domain."}}
with plot.figure(columns=len(pairs), height=3.6, squeeze=False) as grid:
    for axes, (second, pair) in zip(grid[0], pairs.items(), strict=True):
        a, one, two = (list(column) for column in zip(*pair["line"], strict=True))
        both = [(x + y) / 2 for x, y in zip(one, two, strict=True)]
        for index, (y, label) in enumerate(((one, texts[0]), (two, second), (both, "mean of both"))):
            plot.series(axes, a, y, label, origin=found.origin, index=index, markersize=3)
        step, start = pair["path"][-1], pair["ends"][0][0]
        slope = sum(step["slope"].values())
        axes.plot(a, [start + slope * x + step["curvature"] * x * x for x in a], color="#777777", linestyle=":", label="quadratic")
        best, *losses = interference.best(pair)
        axes.plot([best], [mean(losses)], marker="*", markersize=12, color="black", linestyle="none")
        axes.set(xlabel="α, share of the way", ylabel="held-out loss (nats a token)", title=f"{texts[0]}, then {second}")
    grid[0][0].legend(fontsize=7)

# %% tags=["hide-input"]
plot.table(
    [
        (
            second, *(f"{mean(end):.3f}" for end in pair["ends"]), f"{mean(interference.best(pair)[1:]):.3f}",
            f"{interference.best(pair)[0]:.1f}", *(f"{x:.3f}" for x in interference.best(pair)[1:]),
        )
        for second, pair in pairs.items()
    ],
    ("second domain", "mean of both before", "after", "at the best point", "α there", f"{texts[0]} there", "second domain there"),
)  # fmt: skip

# %% [markdown]
# Halfway to the country, {result}`interference.Sumstan.half.learned|.0f` of it are learned and {result}`interference.Sumstan.half.rise|.0f` of the rise have come: the one loss falls steeply at first and then less and less, the other rises slowly at first and then more and more. That is the same asymmetry as with the groups, and the reason why doing a little less can pay. The lowest mean of both losses is at {result}`interference.Sumstan.line.share|.0f` of the way, {result}`interference.Sumstan.line.gain|.3f` below the better end; for the other package at
# {result}`interference.transformers.line.share|.0f`, {result}`interference.transformers.line.gain|.3f` below. The point was picked on the text by which it is judged, among as many as the figure has, so the gain is an upper bound.
#
# ## From an earlier stage?
#
# The first part of this book ends with advice: a model late in pretraining has become rigid, so begin continual learning from the middle ({claim}`entropy.7`). Its own test is a few passages in a stream of familiar text ({doc}`05_acquisition`, {doc}`06_rivals`). A sequence of domains is a harder one. The same plain training from earlier stages of the same model, first order, all seeds:

# %%
older = interference.staged(scale, device=lab.card)
begun = budget.table(lab, budget.starts(older, budget.chosen(budget.tried(lab, older))))
if older.base.model != z.base.model:
    print(f"{z.base.model.name} was published at its end alone; the stages are those of {older.base.model.name}.")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-course-stages", "caption": "Plain training over the domains, begun at earlier stages of pretraining. Left: average loss over the domains before any of them (dotted) and at the end. Right: what is learned of a domain, and what is forgotten. Mean over seeds, band from lowest to highest."}, "image": {"alt": "Two panels against the share of pretraining at which the sequence begins: average loss before and at the end, and learned and forgetting."}}
stages = [f"{share:g}" for share in older.stages]


def at_stages(of):
    return [[of(courses.course(begun[stage, 0, seed_])) for stage in stages] for seed_ in older.aside]


at = [100 * share for share in older.stages]
with plot.figure(columns=2, height=3.4) as (left, right):
    left.plot(at, [mean(own) for own in zip(*at_stages(lambda c: mean(c.before)), strict=True)], color="#777777", linestyle=":", label="before")
    plot.spread(left, at, at_stages(lambda c: c.average), "at the end", origin=origin)
    plot.spread(right, at, at_stages(lambda c: c.learned), "learned", origin=origin)
    plot.spread(right, at, at_stages(lambda c: c.forgetting), "forgetting", origin=origin, index=1)
    for axes, label, title in ((left, "average over domains (nats)", "The end"), (right, "nats a token", "The way")):
        axes.set(xlabel="share of pretraining at the start (%)", ylabel=label, title=title)
        axes.legend(fontsize=7)

# %% tags=["hide-input"]
plot.table(
    [
        (f"{100 * share:.0f} %", *(spread([of(courses.course(begun[f"{share:g}", 0, s])) for s in older.aside]) for of in (
            lambda c: mean(c.before), lambda c: c.average, lambda c: c.learned, lambda c: c.forgetting, lambda c: c.general[-1])))
        for share in older.stages
    ],
    ("begun at", "average before", "average at the end", "learned", "forgetting", "general text at the end"),
)  # fmt: skip

# %% [markdown]
# From half of the schedule the average at the end is {result}`budget.start.0.5.average|.3f`, with {result}`budget.start.0.5.learned|.3f` learned and {result}`budget.start.0.5.forgetting|.3f` forgotten; from the end of pretraining it is {result}`budget.start.1.average|.3f`, with {result}`budget.start.1.learned|.3f` and {result}`budget.start.1.forgetting|.3f`. From a fifth of the schedule: {result}`budget.start.0.2.average|.3f`, {result}`budget.start.0.2.learned|.3f`
# and {result}`budget.start.0.2.forgetting|.3f`. Two warnings about reading this. A start that is worse has more to learn, so a larger *learned* is no sign of a more plastic model; compare the ends. And the learning rate was chosen for the last stage.
#
# In the recorded rows the latest start ends best, and by far. It also learns most of each domain when it comes, although it has least left to learn, and it forgets most. So for whole domains, and with a rate chosen for the last stage, this model gives no reason to begin from the middle. What the first part found for a few passages told a few times need not hold for text of a domain, most of which is language and not facts.
#
# ## What to conclude
#
# *Plain training is a trade.* It takes the average over the domains from {result}`budget.untouched.average|.2f` to {result}`budget.ncl.average|.2f`, learns {result}`budget.ncl.learned|.2f` of each domain when it comes, and forgets {result}`budget.ncl.forgetting|.2f` of it later. Specialists reach {result}`budget.one.average|.2f`, all text at once {result}`budget.pool.average|.2f`. The distance between these and plain training is what the methods of {doc}`10_methods` have to win back; all of it is there to be won by
# a single model, as Pool shows.
#
# *A rate of forgetting is not a measure of forgetting alone.* Domains that were never read lose too: {result}`interference.Sumstan.rise.transformers|.2f` and {result}`interference.Sumstan.rise.pandas|.2f`, beside {result}`interference.Sumstan.rise|.2f` for the one that was. Most of what moves is common to these texts. It comes back when text of that kind comes back, so a single number at the end depends on what happened to be last.
#
# *It is not a conflict of gradients.* After the first domain its gradient is at right angles to those of the domains to come. What harms is the curvature, along a direction in which the slope said nothing; and once the harm is done, the gradients of all that was harmed agree.
#
# *The diagonal is a poor forecast.* Of a rise of {result}`interference.Sumstan.rise|.2f` slope and true curvature foresee {result}`interference.Sumstan.curvature|.2f`, slope and diagonal Fisher {result}`interference.Sumstan.diagonal|.2f`. A penalty on the diagonal can still be useful if it is made strong enough. It then no longer forecasts anything; it holds the weights back.
#
# *Forgetting is joint, learning is not.* No kind of parameter and no layer holds the forgetting by itself; moved one at a time and added up, the kinds do {result}`interference.Sumstan.alone.rise|.0f` of it, but {result}`interference.Sumstan.alone.learned|.0f` of the learning. Going only a part of the way, with some of the weights or with all of them, gives up less than it saves, down to a point. With the other package as the second domain the two are {result}`interference.transformers.alone.rise|.0f` and {result}`interference.transformers.alone.learned|.0f`. These are two pairs of domains in one run.
#
# *Going a part of the way is a free baseline.* The best point between the weights before and after the country is {result}`interference.Sumstan.line.gain|.3f` better for both on average than the better end, and {result}`interference.transformers.line.gain|.3f` for the other package.
#
# ## What we tried
#
# The trials of plain training are shown above; these are those of the two references, on validation text. An asterisk marks what was chosen.

# %% tags=["hide-input"]
plot.table(
    [
        (
            budget.TRIED[name].label,
            "; ".join(
                f"{of.rate:g}: {courses.course(r).average:.3f}" + (r" \*" if of == made[name] else "")
                for (n, of), r in tried.items()
                if n == name
            ),
        )
        for name in z.names
    ],
    ("method", "trials: learning rate: average at the end (nats a token)"),
)

# %% [markdown]
# The four domains and the two orders were set before any trial. How many steps and rows a domain gets was settled by what a laptop can do, after a few courses of plain training and of other methods that were longer; they forgot in the same way, and more. In the study of the weights nothing was tuned, and the domains that come second are the next two of the course.
#
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | model | RoBERTa, which fills in masked tokens | {doc}`02_pretraining`'s model, which predicts the next token; {doc}`10_methods` has both |
# | domains | six: reviews of restaurants, phones and cameras, papers of three fields | four small ones: docstrings of three packages and an invented country |
# | how new they are | RoBERTa may have read any of it | a sample of docstrings was read in pretraining, the country was not |
# | score | $F_1$ (mean over classes) and accuracy of a copy fine-tuned for each end task | held-out loss; beside it a linear probe for each end task |
# | forgetting | of scores, from fine-tuned copies | of held-out loss, the same formula with its sign turned; of end tasks too |
# | learning rate | one for all | trials for each method |
# | orders | a main one; five in the appendix | two, three seeds each |
# | domains not read yet | not shown | measured, as a control |
# | why it forgets | not asked | gradients, forecasts, groups, line |
#
# The forecast differs from EWC in one thing: EWC leaves out the slope, because at the end of training on a domain its gradient should vanish. On held-out text it does not.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-course-identity
# Show that the average is made of the other three numbers. Let $\bar L_0$ be the mean of $L_{i0}$ over the domains. What does the identity say about a method that lowers forgetting and nothing else?
# ```
#
# ```{solution-start} ex-course-identity
# :class: dropdown
# ```

# %%
n = len(names)
net = numbers["forward"] - numbers["forgetting"]
rebuilt = mean(live.before) - numbers["learned"] - (n - 1) / n * net
print(f"average {numbers['average']:.4f}, from the other three {rebuilt:.4f}")
assert abs(rebuilt - numbers["average"]) < 1e-9

# %% [markdown]
# Go along a row of the matrix: $L_{in} = L_{i0} - (L_{i0} - L_{i,i-1}) - (L_{i,i-1} - L_{ii}) + (L_{in} - L_{ii})$. The mean over the domains is
#
# ```{math}
# :label: eq-course-identity
# \text{average} = \bar L_0 - \text{learned} - \tfrac{n-1}{n} \left( \text{forward} - F \right) ,
# ```
#
# since the first domain has no forward transfer and the last is not forgotten. A method that lowers $F$ wins exactly as much as it does not lose in learning and forward transfer. With a low enough learning rate $F$ is nearly zero, and so is everything else.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-course-strength
# EWC adds $\tfrac{\lambda}{2} \sum_i F_i d_i^2$ to the loss of the second domain, and the released code of the paper has $\lambda = 5000$. With which $\lambda$ is the penalty the forecast of {eq}`eq-interference-fisher`, so that the model minimises (by that forecast) the sum of both losses? How many times that is the released one here, and why might so much be needed?
# ```
#
# ```{solution-start} ex-course-strength
# :class: dropdown
# ```

# %%
step = v["pairs"][0]["path"][-1]
forecast = interference.forecasts(step)["ewc"]  # T/2 sum F d^2
halved = forecast / (v["tokens"] / 2)  # sum F d^2
assert abs(v["tokens"] / 2 * halved - forecast) < 1e-9
print(f"T = {v['tokens']:.0f}; 5000 is {5000 / v['tokens']:.0f} times as much")
print(f"penalty at the end of the second domain: {forecast:.4f} nats at T, {5000 / 2 * halved:.2f} at 5000")

# %% [markdown]
# With $\lambda = T$. A larger one weighs the first domain more than the second, by the forecast. But if the diagonal foresees only a part of the rise ({numref}`fig-interference-forecast`), then a penalty that is to stand for all of it has to be larger by the inverse of that part. A strength that was found by trials makes up for what the diagonal leaves out.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-course-bowls
# Suppose both losses are parabolas on the line of {eq}`eq-interference-line`, with their lowest points at the two ends: $L_1 = a \alpha^2$, $L_2 = b (1 - \alpha)^2$. Where is the lowest mean, and how far below the better end? Can the best point ever be an end? Look at {numref}`fig-interference-line`: which of the assumptions fails there?
# ```
#
# ```{solution-start} ex-course-bowls
# :class: dropdown
# ```


# %%
def lowest(a, b):
    alpha = b / (a + b)
    return alpha, (a * alpha**2 + b * (1 - alpha) ** 2) / 2


for a, b in ((1, 1), (1, 4), (1, 100)):
    alpha, mean_there = lowest(a, b)
    least = min((a * (k / 1000) ** 2 + b * (1 - k / 1000) ** 2) / 2 for k in range(1001))
    print(f"a = {a}, b = {b}: best at {alpha:.2f}, {mean_there:.3f}; ends {b / 2:.2f} and {a / 2:.2f}")
    assert abs(least - mean_there) < 1e-4 and mean_there < min(a, b) / 2

# %% [markdown]
# At $\alpha = b / (a + b)$, where the mean is $\tfrac{1}{2} \tfrac{ab}{a+b}$. That is always below both ends, $\tfrac{a}{2}$ and $\tfrac{b}{2}$: two bowls always have a better point between them, though with $b$ much larger than $a$ it lies next to the second end. On the real line the first domain's lowest point need not be at $\alpha = 0$ (its slope there is not zero on held-out text), the second's need not be at $\alpha = 1$ (training has stopped, not arrived), and neither curve has to be a parabola.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Ask for all domains after each, those to come included. The matrix has the average, forgetting, forward transfer and what is learned; the average is made of the others.
# - The learning rate trades learning for forgetting. Compare methods each at its own best.
# - Domains that were not read yet are the control: if they lose as much, it is not memory of a domain that is lost.
# - Specialists and all at once say what is possible; the order of domains says how much of a result is chance.
# - Slope and curvature along the way that the weights went can be measured exactly. The diagonal Fisher is a stand-in, with the length of a text as its factor.
# - Put groups of parameters back, and try the mean of the weights, before building a method.
