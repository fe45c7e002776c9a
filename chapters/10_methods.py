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
# (ch-methods)=
# # The field: every method on one budget
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Give every way of learning domains in a row the same text, the same steps and trials by the same rule; see what each protects and what it pays for it; and judge the paper's comparisons by that. \
# **You need.** {doc}`08_forgetting` for domains in a row and for the numbers of a course; {doc}`09_das` for importance, masks and contrast; {doc}`07_resuscitation` for waking. \
# **Paper.** Ke et al. {cite}`ke2023continual`, section 4 with table 2. EWC is that of Kirkpatrick et al. {cite}`kirkpatrick2017overcoming`, one model a domain is domain-adaptive pretraining {cite}`gururangan2020dont`, CPT that of Ke et al. {cite}`ke2022continual`, ELLE that of Qin et al. {cite}`qin2022elle`. HAT is by Serra et al. {cite}`serra2018overcoming`, SupSup by Wortsman et al. {cite}`wortsman2020supermasks`, DER++ by Buzzega et al. {cite}`buzzega2020dark`, adapters by Houlsby et al. {cite}`houlsby2019parameter`, prompts by Lester et al. {cite}`lester2021power`, LoRA by Hu et al. {cite}`hu2022lora`, DEMIX after Gururangan et al. {cite}`gururangan2022demix`, BCL and CLASSIC by Ke et al. {cite}`ke2021adapting,ke2021classic`. \
# **Reading time.** About 40 minutes.
#
# ```{runtime} 10_methods
# ```
# :::
#
# There are dozens of ways to learn without forgetting, and each was the best one in the paper that proposed it. Part of that is the budget: an author's own method is tuned with care, and a rival runs with settings from somewhere else. So here every method gets the same chances, and everything it costs is written beside what it achieves: memory, time, parameters, and whether somebody must say at the end which domain a text is from.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the order of the data and of the methods' own draws, in the runs that are computed live
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
steps = 20  # of the live courses on each domain; at most as many as in the recorded ones

# %%
import dataclasses
import math

import torch

from kemem import book, claims, plot
from kemem.continual import taskmasks
from kemem.studies import budget, courses, findings, footprint, growing, standing

lab = book.open_chapter("10_methods", globals())
z = budget.sizes(scale, device=lab.card)

# %% [markdown]
# ## The budget
#
# *The same text.* The domains of {doc}`08_forgetting`, learned in two orders, from the same model, with as many steps of as many tokens on each. A method that reads old text again does so in the place of new text, or pays for it in time.
#
# *The same chances.* Every method has four trials: two learning rates with two values of the setting that matters most, or four learning rates where it has no such setting. Where the best of the four lies at an end of what was tried, the search goes on by one step beyond that end, for the rate and for the setting. Trials are judged by the mean loss over all domains at the end, on *validation* text, in one order with one seed. The best one is then run with all seeds in both orders and judged on test text, which no trial has seen. Methods that train small modules beside the model need larger learning rates, and get larger ones.

# %%
tried = budget.tried(lab, z)
made = budget.chosen(tried)
names = [name for name in budget.TRIED if name in made]
print(f"{len(tried)} trials of {len(names)} methods, and of {len(made) - len(names)} arms of a later section")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-methods-trials", "caption": "Every trial: mean loss over all domains at the end, on validation text, by the learning rate of the trial; a method a line, and ringed the trial that was chosen. Triangles at the right lie beyond the axis. A long line is a method that depends on its tuning: another paper with less luck would have found it bad."}, "image": {"alt": "A line of points for each method along the mean loss in nats a token; the colour of a point is the learning rate of the trial, and one point a line is ringed."}}
final = {(name, of): courses.course(row).average for (name, of), row in tried.items() if name in names}
place = {name: i for i, name in enumerate(sorted(names, key=lambda name: final[name, made[name]]))}
edge = min(final.values()) + 1.1
with plot.figure(width=6.0, height=1.2 + 0.29 * len(names)) as axes:
    for marker, inside in (("o", True), (">", False)):
        points = [(min(x, edge), place[name], math.log10(of.rate)) for (name, of), x in final.items() if (x < edge) == inside]
        if points:
            x, y, rates = zip(*points, strict=True)
            drawn = axes.scatter(x, y, c=rates, marker=marker, vmin=-4, vmax=-1, cmap="viridis", s=34, zorder=3)
    axes.scatter(
        [min(edge, final[name, made[name]]) for name in place], list(place.values()), s=110, facecolors="none",
        edgecolors="#D55E00", linewidths=1.6, zorder=4,
    )  # fmt: skip
    axes.set(
        yticks=list(place.values()), yticklabels=[budget.TRIED[name].label for name in place],
        xlabel="mean loss at the end, validation (nats a token)", title=f"Trials ({next(iter(tried.values())).origin})",
    )  # fmt: skip
    axes.invert_yaxis()
    bar = axes.figure.colorbar(drawn, ax=axes, location="top", shrink=0.7, aspect=30, ticks=[-4, -3, -2, -1])
    bar.set_label("learning rate, power of ten")

# %% [markdown]
# Two warnings. Four to six trials are few, and one step beyond an end is one step. And all trials are of *these* domains and *this* model: what is chosen is a fair start here, not a recommendation.
#
# ## A tour of the field
#
# All methods below share the loop of {doc}`02_pretraining`. Each changes one or two of its moments: the loss, the rows that are read, the update, or which parameters there are. So the tour is short: what is protected, the equation, and the line of the package that is the equation.
#
# ### Penalties: do not leave the place
#
# *EWC* protects parameters that mattered. After each domain it measures how much the loss would change with each parameter $\theta_i$, the diagonal $F_i$ of the Fisher information, and from then on pulls it back to its value $\theta^*_i$ of that time:
#
# ```{math}
# :label: eq-methods-ewc
# L + \frac{\lambda}{2} \sum_i F_i \left( \theta_i - \theta^*_i \right)^2 .
# ```
#
# ```python
# return loss + 0.5 * self.strength * torch.stack(terms).sum()
# ```
#
# It costs two further copies of all parameters, and a pass over a sample of each domain. *Distillation* (KD) protects what the model says and not its weights: a copy $f^*$ from before the domain reads the same new text, and the model must stay close to it in the sense of
#
# ```{math}
# :label: eq-methods-kd
# L + \lambda \, \mathrm{KL}\bigl( \operatorname{softmax} f^*(x) \,\|\, \operatorname{softmax} f(x) \bigr) .
# ```
#
# ```python
# return temperature**2 * (p.exp() * (p - q)).sum(-1)
# ```
#
# It needs no old text. But $x$ is *new* text: how the model answers old text is not asked.
#
# ### Replay: read some of it again
#
# *Replay* protects the old text itself. A share $\rho$ of the rows of every step is drawn from rows that were kept, so that a step reads
#
# ```{math}
# :label: eq-methods-replay
# (1 - \rho) \, B \text{ new rows} + \rho \, B \text{ old rows.}
# ```
#
# ```python
# return {name: torch.cat([tensor[:-count], old[name].to(tensor)]) for name, tensor in batch.items()}
# ```
#
# A step costs what it did; less is read of the new domain; and text must be kept, which licences or privacy may forbid. *DER++* keeps fewer rows, and with them the hidden states $h^*$ that the model had then, so that an old row is not only read again but also answered as before:
#
# ```{math}
# :label: eq-methods-der
# L(\text{new}) + \alpha \, \overline{(h - h^*)^2} + \beta \, L(\text{old}) .
# ```
#
# ```python
# loss = loss + self.alpha * _squares(now, then, old)
# ```
#
# Its old rows come on top of the new ones, which about doubles the time.
#
# ### Isolation: a place of its own for each domain
#
# *HAT* opens for domain $t$ some units of the model (heads, memories, outputs) by a gate with a learned number $e$ for each unit, and later holds the weights that join units in use:
#
# ```{math}
# :label: eq-methods-hat
# m_t = \sigma(s \, e_t), \qquad s = \frac{1}{s_{\max}} + \Bigl( s_{\max} - \frac{1}{s_{\max}} \Bigr) \frac{b - 1}{B - 1}, \qquad
# \Delta w_{ij} \leftarrow \bigl( 1 - \min(m_i, m_j) \bigr) \Delta w_{ij} ,
# ```
#
# with $m_i$ and $m_j$ the maxima over earlier domains at both ends of the weight.
#
# ```python
# return 1 / smax + (smax - 1 / smax) * (step - 1) / max(1, steps - 1)
# ```
#
# At the first step $b$ of $B$ every gate is half open, at the last it is open or shut ({numref}`fig-methods-ideas`, left). A steep $\sigma$ has hardly any gradient, so the gradient of $e$ is *compensated*:
#
# ```{math}
# :label: eq-methods-compensation
# g_e \leftarrow g_e \, \frac{s_{\max}}{s} \, \frac{\cosh(s e) + 1}{\cosh(e) + 1} .
# ```
#
# ```python
# return (smax / s) * (torch.cosh((s * e).clamp(-COSH, COSH)) + 1) / (torch.cosh(e) + 1)
# ```
#
# HAT was made for networks that learn everything from nothing. Here the gates shut about half of a model that was already trained, at the first step of the first domain. *HAT-All* trains in the same way and uses all units in the end. *SupSup* goes to the end of this road: weights never change, and each domain learns which of them to use, a bit for each weight:
#
# ```{math}
# :label: eq-methods-supsup
# y = (W \odot m_t) \, x + b, \qquad m_t = 1 \text{ where } \text{score}_t \ge 0 .
# ```
#
# ```python
# return (score >= 0).to(score.dtype)
# ```
#
# Nothing can be forgotten, nothing is handed on, and without a domain's name one has to guess its mask.
#
# ### Modules beside the model
#
# The model is frozen, so general knowledge is safe as long as the modules can be taken away; something small learns. An *adapter* is a narrow layer behind a sublayer with output $y$ and input $x$, or parallel to it:
#
# ```{math}
# :label: eq-methods-adapter
# y \leftarrow y + U \operatorname{relu}(D\,y) \quad \text{(sequential)}, \qquad y \leftarrow y + U \operatorname{relu}(D\,x) \quad \text{(parallel)} .
# ```
#
# ```python
# return self.up(torch.relu(self.down(x)))
# ```
#
# A *prompt* is a few trained vectors in front of every row, with a cost in length, and *LoRA* is an update of low rank, $W + \frac{\alpha}{r} B A$. One set for all domains can forget like a model. One set for each domain cannot, but then somebody must say which to use.
#
# ### A module a domain, with something in common
#
# *DEMIX* starts the adapters of a new domain as a copy of those that read it best so far:
#
# ```{math}
# :label: eq-methods-demix
# \text{adapter}_t \leftarrow \text{adapter}_k, \qquad k = \arg\min_{k < t} L_k(D_t) .
# ```
#
# ```python
# return min(losses, key=losses.__getitem__)
# ```
#
# It is the one method here that can also do without a name at test time, by a posterior over its experts as the text goes on (`DEMIX.mixture`). *CPT* shares a larger plugin among all domains, each under binary masks as in HAT, $m_2 \odot \operatorname{relu}(U (m_1 \odot \operatorname{relu}(D\,x)))$, sequential or parallel.
#
# ### Made for transfer
#
# *BCL* lets each domain make a capsule $u_i$ of three numbers at each place and mixes those that agree, by routing in three rounds:
#
# ```{math}
# :label: eq-methods-bcl
# v = \operatorname{squash}\Bigl( \sum_i c_i u_i \Bigr), \qquad c = \operatorname{softmax}_i(b), \qquad b_i \leftarrow b_i + u_i \cdot v .
# ```
#
# ```python
# s = (b.softmax(0)[..., None] * u).sum(0)
# ```
#
# *CLASSIC* draws the mean hidden state of a text towards a mixture of what the masks of earlier domains make of it, by a contrast. Both stand on adapters under HAT's masks. CLASSIC reads each text once more, and once without gradient for every earlier domain.
#
# ### Growth
#
# *ELLE* adds capacity before each domain. A unit that is copied is read by its readers in equal parts, so that sums stay what they were: with $c_j$ copies of unit $j$, and $f(i)$ the unit that $i$ is a copy of,
#
# ```{math}
# :label: eq-methods-growth
# W^{\text{out}}_{i \cdot} \leftarrow W^{\text{out}}_{f(i) \cdot} , \qquad W^{\text{in}}_{\cdot i} \leftarrow \frac{W^{\text{in}}_{\cdot f(i)}}{c_{f(i)}} .
# ```
#
# ```python
# tensor /= units.count.view(along).to(tensor.device)
# ```
#
# Then it *recovers* on remembered text, replays some of it while it learns the new domain, and puts a prompt of the domain in front of each row. It has a section of its own below.
#
# ### Masks that are soft, and waking
#
# *DAS* ({doc}`09_das`) takes from HAT that units are what is protected, and from EWC that protection has degrees: the update of what produces a unit is multiplied by $1 - I$.
#
# ```python
# parameter.copy_(torch.lerp(previous[name], parameter, mask.to(parameter.dtype)))
# ```
#
# And *waking* is part 1's medicine, Algorithm 1 of {doc}`07_resuscitation` before each domain: it protects nothing, and is to make room.
#
# ### Two ideas, drawn
#
# Penalties and masks look alike, and are not. Take one parameter at $0$ that a new domain wants at $1$, with loss $(\theta - 1)^2 / 2$. Under a penalty it goes to $1 / (1 + \lambda F)$ and stays there, however long one trains. Under a mask it goes all the way, only later: a mask bounds the *speed*, a penalty the *distance*.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-methods-ideas", "caption": "Left: HAT's gate over its number e, at the first step of a domain, early, in the middle, and at the last. Right: one parameter under a penalty and under a mask, by steps of gradient descent. Both are the equations above, with nothing measured."}, "image": {"alt": "Two panels. Left: sigmoid gates that become steeper with the step. Right: the parameter under a penalty stops short of its goal, under a mask it reaches it later than without."}}
e = torch.linspace(-0.5, 0.5, 201)


def walked(rate, pull=0.0, left=1.0, count=60):
    """theta after each step; pull: lambda F of a penalty; left: 1 - I of a mask."""
    path = [0.0]
    for _ in range(count):
        gradient = (path[-1] - 1) + pull * path[-1]
        path.append(path[-1] - left * rate * gradient)
    return path


with plot.figure(columns=2, height=3.3) as panels:
    for index, step in enumerate((1, 2, 5, 40)):
        s = taskmasks.steepness(step, 40, 400.0)
        panels[0].plot(e, torch.sigmoid(s * e), color=plot.COLOURS[index], label=f"step {step}: s = {s:.3g}")
    panels[0].set(xlabel="e", ylabel="gate m", title="HAT's gate")
    panels[0].legend(loc="upper left")
    ways = {"plain": {}, "penalty, λF = 1": {"pull": 1.0}, "mask, 1 − I = 0.2": {"left": 0.2}}
    for index, (label, way) in enumerate(ways.items()):
        panels[1].plot(walked(0.1, **way), color=plot.COLOURS[index], label=label)
    panels[1].set(xlabel="steps", ylabel="θ", title="Distance and speed")
    panels[1].legend(loc="lower right")

# %% [markdown]
# ## The contest, here and now
#
# Three of them on this machine: plain training (NCL), replay and DAS, with what the trials chose for each, in the first order, with fewer steps than the recorded courses. What a domain's loss does when the next one is learned can be read off the lines: down in its own column, and up after it.

# %%
least = min(steps, z.base.steps)
live = {
    name: courses.run(
        lab,
        dataclasses.replace(
            budget.one(z, name, made[name], seed=seed), steps=least, examples=(60, 40), dtype=dtype or z.base.dtype
        ),
    )
    for name in ("ncl", "replay", "das")
    if name in made
}
for row in live.values():
    if lab.drift(row):
        print("This run reads", lab.drift(row))


# %% tags=["hide-input"]
def label_of(name):
    return budget.TRIED[name].label if name in budget.TRIED else "untouched model"


learned_in = courses.course(next(iter(live.values()))).names
plot.table(
    [
        (label_of(name), domain, f"{course.before[i]:.3f}", *(f"{loss:.3f}" for loss in course.loss[i]))
        for name, course in ((name, courses.course(row)) for name, row in live.items())
        for i, domain in enumerate(course.names)
    ],
    (f"{least} steps, loss in nats a token", "on", "before", *(f"after {domain}" for domain in learned_in)),
)  # fmt: skip

# %% [markdown]
# ## The contest
#
# Now all of them, recorded, with all steps, seeds and orders. Every number is the mean over seeds; what a seed gives is its mean over both orders; after ± stands half of the interval that holds the mean at ninety-five in a hundred.

# %%
rows = budget.table(lab, budget.contest(z, made))
origin = next(iter(rows.values())).origin
print(f"{len(rows)} courses; seeds: {len(z.seeds)}, orders: {len(z.orders)}")


# %% tags=["hide-input"]
def by_seed(found, name, value):
    """One number a seed: the mean over orders. Empty where a course has none."""
    own = {}
    for (arm, _, seed), row in found.items():
        if arm == name:
            own.setdefault(seed, []).append(value(courses.course(row)))
    numbers = list(own.values())
    return [] if any(None in each for each in numbers) else [sum(each) / len(each) for each in numbers]


def cell(numbers, digits=3):
    if not numbers:
        return "none"
    change = findings.change(numbers)
    text = f"{change.mean:.{digits}f}"
    if change.low is not None:
        text += f" ± {change.high - change.mean:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def less(found, name, than, value):
    """By seed, a number of one arm less that of another."""
    return [a - b for a, b in zip(by_seed(found, name, value), by_seed(found, than, value), strict=True)]


LOSSES = ("average", "forgetting", "learned", "forward")
value = {name: of for name, (of, _) in standing.QUANTITIES.items()}
ranked = sorted(names, key=lambda name: sum(by_seed(rows, name, value["average"])))
before = {name: by_seed(rows, "ncl", of) for name, (of, _) in standing.BEFORE.items()}
plot.table(
    [("untouched model", cell(before["average"]), "", "", "", "")]
    + [
        (
            label_of(name), cell(by_seed(rows, name, value["average"])),
            cell(less(rows, name, "ncl", value["average"])) if name != "ncl" else "",
            *(cell(by_seed(rows, name, value[q])) if name != "pool" else "" for q in LOSSES[1:]),
        )
        for name in ranked
    ],
    ("nats a token", "average at the end", "less NCL's", "forgetting F", "learned", "forward transfer"),
)  # fmt: skip

# %% [markdown]
# Lower averages are better. Pool has no first and last domain, so only its average means something. A method with modules or masks for each domain shows a domain that is still to come with those of the latest one. This makes its forward transfer low and what it learned high; only both together can be compared with other methods, as further below.
#
# What all this did to text of *no* domain, and what it is worth for the end tasks:

# %% tags=["hide-input"]
plot.table(
    [("untouched model", cell(before["general"]), cell(before["task"], 1), "")]
    + [
        (
            label_of(name), cell(by_seed(rows, name, value["general"])), cell(by_seed(rows, name, value["task"]), 1),
            cell(by_seed(rows, name, value["task.forgetting"]), 1) if name != "pool" else "",
        )
        for name in ranked
    ],
    ("", "general text at the end (nats a token)", "end tasks (%)", "their forgetting (points)"),
)  # fmt: skip

# %% [markdown]
# Methods with modules or masks for each domain read an end task with those of its domain, and general text with those of the latest. Of One, general text is the mean over its models.
#
# ### Why it comes out so
#
# A low average can be had in two ways: learn much, or lose little. The average is exactly made of these. Let $\bar L_0$ be the mean loss of the domains before anything, $G$ how far it has fallen for each by the end of its *own* training (with what earlier domains gave it), $F$ forgetting and $n$ the number of domains. Then
#
# ```{math}
# :label: eq-methods-average
# \text{average} = \bar L_0 - G + \frac{n - 1}{n} F , \qquad G = \text{learned} + \frac{n - 1}{n} \, \text{forward transfer} .
# ```
#
# So in a plane of $G$ and $F$ all courses with the same average lie on a straight line.


# %% tags=["hide-input"]
GROUPS = {
    "the whole model learns": ("ncl", "ewc", "kd", "replay", "derpp", "das", "elle", "woken"),
    "modules shared by all": ("adapter-sequential", "adapter-parallel", "lora"),
    "something for each domain": (
        "hat", "hat-all", "hat-adapter", "supsup", "adapters-one", "prompt", "demix", "bcl", "classic", "cpt",
    ),
    "no sequence": ("one", "pool"),
}  # fmt: skip
KIND = {name: i for i, group in enumerate(GROUPS.values()) for name in group}


def fallen(course):
    """G of the equation: how far a domain's loss is down at the end of its own training, the mean."""
    return sum(b - course.loss[i][i] for i, b in enumerate(course.before)) / len(course.before)


def named_points(axes, points):
    """Points (x, y, label, look) with their labels in a column at the right, a thin line to each."""
    ordered = sorted(points, key=lambda point: point[1], reverse=bool(axes.yaxis_inverted()))
    for place, (x, y, label, look) in enumerate(ordered):
        axes.plot([x], [y], **{**look, "linestyle": "none", "markersize": 6})
        axes.annotate(
            label, (x, y), xytext=(1.06, (place + 0.5) / len(ordered)), textcoords="axes fraction", va="center",
            fontsize=10, color=look["color"], annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "linewidth": 0.6, "color": look["color"], "alpha": 0.6, "relpos": (0, 0.5),
                "shrinkA": 1, "shrinkB": 3,
            },
        )  # fmt: skip


def mean(numbers):
    return sum(numbers) / len(numbers)


def equal_averages(axes, start, share, levels):
    """Lines of equal average in the plane of G and F, each with its value where it enters from the left or below."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for level in levels:
        line = [(level - start + x) / share for x in (left, right)]
        axes.plot((left, right), line, color="#bbbbbb", linewidth=0.8, zorder=0)
        x, y = (left, line[0]) if line[0] > bottom else (share * bottom + start - level, bottom)
        if y < top and x < right:
            axes.text(x, y, f" {level:.1f}", color="#666666", fontsize=9, va="bottom", clip_on=True)
    axes.set(xlim=(left, right), ylim=(bottom, top))


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-methods-plane", "caption": "Forgetting against how far each domain's loss had fallen by the end of its own training, means over orders and seeds. Grey lines: equal average at the end, with its value; better is down and to the right. Methods far off (HAT, HAT-All) are left out, they are in the table. Filled: the live courses, which are shorter and in one order. Blue circles: the whole model learns; orange squares: modules shared by all; green triangles: something for each domain; purple diamonds: no sequence."}, "image": {"alt": "Scatter of methods: fall of the loss by the end of a domain's own training against forgetting, with diagonal grey lines of equal average and a label for each method."}}
count = len(z.base.domains)
start = mean(before["average"])
points = []
for name in ranked:
    average = mean(by_seed(rows, name, value["average"]))
    if average < start + 0.3:
        x, y = (mean(by_seed(rows, name, of)) for of in (fallen, value["forgetting"]))
        points.append((x, y, label_of(name), plot.look(origin, KIND[name])))
for name, row in live.items():
    course = courses.course(row)
    points.append((fallen(course), course.forgetting, f"{label_of(name)}, live", plot.look("live", KIND[name])))
with plot.figure(width=5.6, height=6.4) as axes:
    named_points(axes, points)
    ys = [y for _, y, _, _ in points]
    axes.set(
        xlabel="fall of the loss by the end of own training (nats a token)", ylabel="forgetting F (nats a token)",
        title="Learned and kept", ylim=(min(ys) - 0.05, max(ys) + 0.05),
    )  # fmt: skip
    share = (count - 1) / count
    ends = [start - x + share * y for x, y, _, _ in points]
    levels = [i / 10 for i in range(math.floor(10 * min(ends)), math.ceil(10 * max(ends)) + 1)]
    equal_averages(axes, start, share, levels)

# %% [markdown]
# ### What it costs
#
# *Time* is seconds of training and measuring relative to plain training; while it was measured two courses ran side by side, so take it as a rough factor. *Kept* is what a method holds beside the model while it learns the second domain, counted array by array in a short run here: copies of the model, importances, old rows with their hidden states. Replay's buffer is larger than a domain, so *all* old text is kept. One and Pool hold nothing of this kind, but a model for each domain and all text. *Added* are parameters that were not there before, after all
# domains. *Passes* are those of a step: with gradient, and behind the plus without. The last column says whether the method must be told which domain a text is from.


# %% tags=["hide-input"]
COSTS = {  # passes a step, and whether somebody must name the domain at test time
    "ncl": ("1", "no"), "one": ("1", "yes"), "pool": ("1", "no"), "ewc": ("1", "no"), "kd": ("2 + 1", "no"),
    "replay": ("1", "no"), "derpp": ("2", "no"), "das": ("2; 3 with dropout", "no"), "hat": ("1", "yes"),
    "hat-all": ("1", "no"), "hat-adapter": ("1", "yes"), "supsup": ("1", "yes, or guessed"),
    "adapter-sequential": ("1", "no"), "adapter-parallel": ("1", "no"), "adapters-one": ("1", "yes"),
    "prompt": ("1, longer", "yes"), "lora": ("1", "no"), "demix": ("1", "yes, or mixed"), "bcl": ("1", "yes"),
    "classic": ("2 + earlier domains", "yes"), "cpt": ("1", "yes"), "elle": ("1, recovery", "better with"),
    "woken": ("1", "no"),
}  # fmt: skip


def seconds(course):
    return sum(course.seconds)


# %% tags=["hide-input", "nbval-ignore-output"]
held = footprint.table(lab, z, made)
plain_time = mean(by_seed(rows, "ncl", seconds))
one_row = {name: rows[name, 0, z.seeds[0]] for name in names}
plot.table(
    [
        (
            label_of(name), f"{mean(by_seed(rows, name, seconds)) / plain_time:.1f}",
            f"{held[name].values['bytes'] / footprint.MIB:.2f}" if name in held else "", f"{sum(one_row[name].values['added']):,}", *COSTS[name],
        )
        for name in ranked
    ],
    ("", "time, in that of NCL", "kept (MiB)", "parameters added", "passes a step", "domain named at test time"),
)  # fmt: skip

# %% [markdown]
# ## Beside the paper
#
# The paper's main table has the mean score of six end tasks and its forgetting rate, for a model more than a hundred times as large. Units differ, so only the order can be compared: methods that stand high there should stand low in loss here, or high in end tasks.

# %% tags=["hide-input"]
from scipy import stats


def ours(name, quantity):
    """Of a row of the paper, our number, higher is better for all but forgetting; None where there is none."""
    if growing.COUNTERPART[name] == "untouched" and not before[quantity]:
        return None
    if growing.COUNTERPART[name] == "untouched":
        return mean(before[quantity]) * (-1 if quantity == "average" else 1)
    found = by_seed(rows, growing.COUNTERPART[name], value[quantity])
    return mean(found) * (-1 if quantity == "average" else 1) if found else None


both = [name for name, own in growing.COUNTERPART.items() if own in names or own == "untouched"]
sequences = [name for name in both if growing.PUBLISHED[name][1] is not None]
PAIRS = {
    "average score with average loss": (0, both, "average"),
    "average score with end tasks": (0, both, "task"),
    "forgetting of scores with that of loss": (1, sequences, "forgetting"),
    "forgetting of scores with that of end tasks": (1, sequences, "task.forgetting"),
}


def agreement(column, compared, quantity):
    pairs = [(growing.PUBLISHED[n][column], x) for n in compared if (x := ours(n, quantity)) is not None]
    if len(pairs) < 3:
        return f"{len(pairs)} methods only"
    found = stats.spearmanr(*zip(*pairs, strict=True))
    return f"{found.statistic:+.2f} (p = {found.pvalue:.2f}, {len(pairs)} rows)".replace("-", "\N{MINUS SIGN}")


plot.table(
    [(pair, agreement(*asked)) for pair, asked in PAIRS.items()], ("published with ours", "Spearman's rank correlation")
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-methods-published", "caption": "Above: average score in the paper's table against average loss here, with the loss turned so that better is up on both axes. Below: forgetting rate there against forgetting here. HAT and HAT-All lie far outside and are left out above. Colours and marks as in the figure before."}, "image": {"alt": "Two scatter plots with a label for each method: published average MF1 against our average loss, and published forgetting rate against our forgetting."}}
with plot.figure(rows=2, width=5.6, height=4.6) as panels:
    for axes, (column, compared, quantity) in zip(panels, (PAIRS["average score with average loss"], PAIRS["forgetting of scores with that of loss"]), strict=True):
        points = [
            (growing.PUBLISHED[name][column], x, name, plot.look(origin, KIND.get(growing.COUNTERPART[name], 5)))
            for name in compared
            if (x := ours(name, quantity)) is not None and (column or growing.PUBLISHED[name][0] > 70)
        ]
        named_points(axes, points)
    panels[0].set(xlabel="published average MF1 (%)", ylabel=f"− average loss, {origin} (nats)", title="Averages")
    panels[1].set(xlabel="published FR in MF1 (points)", ylabel=f"F, {origin} (nats a token)", title="Forgetting")

# %% [markdown]
# ## The same, filling in masked tokens
#
# The paper's model sees what stands on both sides of a gap. A model of that kind, RoBERTa-shaped and with dropout, on the same domains in one order, with trials of its own by the same rule; fewer methods, since each course takes longer. It is also the one by which the next section goes.

# %% tags=["hide-input"]
SQUARE = ("average", "forgetting", "learned", "general")
filling = budget.sizes(scale, masked=True, device=lab.card)
filling_made = budget.chosen(budget.tried(lab, filling))
filled = budget.table(lab, budget.contest(filling, filling_made))
plot.table(
    [
        (label_of(name), f"{filling_made[name].rate:g}", *(cell(by_seed(filled, name, value[q])) if name != "pool" or q in ("average", "general") else "" for q in SQUARE), cell(by_seed(filled, name, value["task"]), 1))
        for name in sorted(filling.names, key=lambda name: mean(by_seed(filled, name, value["average"])))
    ],
    ("nats a masked token", "learning rate", "average at the end", "forgetting F", "learned", "general text", "end tasks (%)"),
)  # fmt: skip

# %% [markdown]
# ## Real domains, real end tasks
#
# So far text was what this machine has, and end tasks were made from it. Four of the paper's domains come with text and labels that can be had: reviews of restaurants, papers on computational linguistics, papers on artificial intelligence, and medical abstracts. Their end tasks are those of the paper, with its splits: the sentiment of an aspect in a review (SemEval), why a paper is cited (ACL-ARC), how two terms are related (SciERC), and what a chemical does to a protein (ChemProt). Most sentences of ACL-ARC also stand in the papers that are learned, without labels.
#
# Here the model that fills in masked tokens learns, for it is the paper's kind. Nothing was chosen on these domains: settings are what trials with that model chose on the domains above. One order, and one seed, so there are no intervals; the score is that of the published task, of a linear classifier on the frozen model.

# %% tags=["hide-input"]
published = budget.table(lab, budget.published(scale, filling_made, device=lab.card))
last = {name: courses.course(row) for (name, _, _), row in published.items()}


def scores(course):
    """The end task of each domain when all are learned; of a model for each domain, its own."""
    return [course.task[i][i if course.own else -1] for i in range(len(course.names))]


def beside_paper(name, course):
    """A row of the table; of Pool, which has no first and last domain, nothing is forgotten."""
    lost = (f"{course.forgetting:.3f}", f"{course.task_forgetting:.1f}") if name != "pool" else ("", "")
    label = label_of(name) if name in budget.TRIED else f"DAS {name.replace('-', ' ')}"
    ends = (f"{x:.1f}" for x in scores(course))
    lost = [text.replace("-", "\N{MINUS SIGN}") for text in lost]
    return label, f"{course.average:.3f}", lost[0], f"{course.task_average:.1f}", lost[1], *ends


def untouched(course):
    ends = course.task_before
    return "untouched model", f"{mean(course.before):.3f}", "", f"{mean(ends):.1f}", "", *(f"{x:.1f}" for x in ends)


plot.table(
    [untouched(last["ncl"]), *(beside_paper(*item) for item in sorted(last.items(), key=lambda item: item[1].average))],
    ("", "average loss at the end (nats a masked token)", "forgetting F", "end tasks (%)", "their forgetting (points)", *last["ncl"].names),
) if last else print("not at this scale")  # fmt: skip

# %% [markdown]
# *By loss* the methods can be told apart. Plain training brings the four domains from {result}`budget.real.untouched.average|.2f` to {result}`budget.real.ncl.average|.2f` nats a masked token and forgets {result}`budget.real.ncl.forgetting|.2f`; all domains at once end at {result}`budget.real.pool.average|.2f`, a model for each at {result}`budget.real.one.average|.2f`, replay at {result}`budget.real.replay.average|.2f`. EWC forgets {result}`budget.real.ewc.forgetting|.2f` of the domains, but most of all methods on *general* text: {result}`budget.real.untouched.general|.2f` before, {result}`budget.real.ewc.general|.2f` after, with plain training {result}`budget.real.ncl.general|.2f`: what came before the first domain it does not protect, and its rate is the larger one. DAS forgets {result}`budget.real.das.forgetting|.2f` and, at the rate that its trials chose, learns less, so it ends at {result}`budget.real.das.average|.2f`.
#
# *By end tasks* they cannot. The untouched model scores {result}`budget.real.untouched.task|.1f`, and what was learned moves that to {result}`budget.real.ncl.task|.1f` (NCL), {result}`budget.real.das.task|.1f` (DAS) or {result}`budget.real.pool.task|.1f` (Pool). On ACL-ARC and SciERC that is little more than the largest class alone would score. A model of this size, which has read technical documentation and a made-up world, has nothing to say on chemicals and proteins that a classifier could find. The machinery is the paper's, its splits, scores and order of things; its comparison needs a model that knows English.
#
# ## Which claims hold
#
# *The winner.* DAS has the best average of all ({claim}`das.1`), and is no worse than training on all domains together ({claim}`das.2`), for it keeps unlike domains from disturbing each other; with it later domains even help earlier ones, while plain training forgets ({claim}`das.3`). Remember what Pool is: it never has to forget, and it reads every domain as often as a sequence does.

# %% tags=["hide-input"]
claims.table(lab, *(claims.CLAIMS[f"das.{n}"] for n in (1, 2, 3)))

# %% [markdown]
# *Methods against forgetting* end below plain training in the paper, KD, EWC and DER++ alike, and DER++ forgets even more ({claim}`das.4`). Mind the learning rate before believing either verdict. NCL's own trials ended at {result}`budget.ncl.rate|g`: where nothing holds the model, a small rate is the only protection, and with it little is learned. A method that protects can afford a larger one.

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["das.4"])

# %% [markdown]
# *Methods for transfer* among adapters end below plain training too ({claim}`das.5`), and *training the whole model* beats prompts and adapters, with one domain and with many ({claim}`das.6`).

# %% tags=["hide-input"]
claims.table(lab, *(claims.CLAIMS[f"das.{n}"] for n in (5, 6)))

# %% [markdown]
# *A place for each domain inside the model*, HAT, ends below a model that saw no domain at all, and below that when all units are used in the end ({claim}`das.7`). This is what one expects from the equation alone: gates that begin half open halve every unit that a trained model relies on, and a domain of few steps cannot rebuild it.

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["das.7"])

# %% [markdown]
# A review adds that isolation keeps each domain but loses *general* knowledge ({claim}`review.isolation-general`).

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["review.isolation-general"])

# %% [markdown]
# ## The unit or the mask?
#
# That protecting whole units is better than protecting single parameters has been said in a review of the paper ({claim}`review.unit-importance`), by comparing DAS with EWC.

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["review.unit-importance"])

# %% [markdown]
# But DAS differs from EWC in two things at once: it protects *units* and not parameters, and by a *mask* and not by a penalty. Which of the two matters? One importance, the Fisher information, in all four ways: of single parameters or averaged over what belongs to a unit, as a penalty ({eq}`eq-methods-ewc`) or as a factor $1 - I$ on the update, $I$ being the rank of $F$. Each arm had its own trials.


# %%
squared = budget.table(lab, budget.square(z, made))
arms = list(dict.fromkeys(name for name, _, _ in squared))

# %% tags=["hide-input"]
first = {key: row for key, row in rows.items() if key[1] == 0}  # the same order as that of these arms
plot.table(
    [
        (budget.SQUARE[name].label, f"{made[name].rate:g}", *(cell(by_seed(squared, name, value[q])) for q in SQUARE))
        for name in arms
    ]
    + [
        (label_of(name), f"{made[name].rate:g}", *(cell(by_seed(first, name, value[q])) for q in SQUARE))
        for name in ("das", "ncl")
    ],
    ("first order, nats a token", "learning rate", "average", "forgetting F", "learned", "general text at the end"),
)  # fmt: skip


# %% tags=["hide-input"]
def effects(quantity):
    """By seed: what a mask changes against a penalty, and a unit against a parameter, each as a mean of two pairs."""
    numbers = {name: by_seed(squared, name, value[quantity]) for name in arms}
    if len(numbers) < 4:
        return {}
    p, m, pu, mu = (numbers[n] for n in ("ewc, parameter", "fisher-mask, parameter", "ewc, unit", "fisher-mask, unit"))
    of = list(zip(p, m, pu, mu, strict=True))
    return {
        "mask in place of penalty": [(m - p + mu - pu) / 2 for p, m, pu, mu in of],
        "unit in place of parameter": [(pu - p + mu - m) / 2 for p, m, pu, mu in of],
        "both together, beyond their sum": [mu - m - pu + p for p, m, pu, mu in of],
    }


EFFECTS = {q: effects(q) for q in SQUARE}
plot.table(
    [(what, *(cell(EFFECTS[q][what]) for q in SQUARE)) for what in EFFECTS["average"]],
    ("change, nats a token", "average", "forgetting F", "learned", "general text at the end"),
) if EFFECTS["average"] else print("not all four arms at this scale")

# %% [markdown]
# Read the lines by their intervals: one that holds zero says nothing. A change below zero is good for the average, for forgetting and for general text.
#
# ## Plugins beside or behind
#
# CPT's authors found plugins that read a sublayer's *input* better than ones that read its output ({claim}`review.parallel-adapters`). They also mask them by domain. Both choices crossed, with as many parameters in all:

# %% tags=["hide-input"]
plugged = budget.table(lab, budget.plugins(z, made))
plot.table(
    [
        (
            name, f"{sum(plugged[name, 0, z.aside[0]].values['added']):,}",
            *(cell(by_seed(plugged, name, value[q])) for q in ("average", "forgetting", "learned", "forward")),
        )
        for name in dict.fromkeys(name for name, _, _ in plugged)
    ],
    ("CPT, first order, nats a token", "parameters added", "average", "forgetting F", "learned", "forward transfer"),
) if plugged else print("not at this scale")  # fmt: skip

# %% [markdown]
# Every arm has the learning rate that was chosen for the better placement. Masks add the few numbers $e$ of each domain. With them what an earlier domain computes stays as it was, and less is left for later ones; without them the plugins are one larger adapter, which forgets.
#
# The same question of plain adapters, which have no masks and here different sizes, each the best of its trials:

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["review.parallel-adapters"])

# %% [markdown]
# ## What growing is worth
#
# ELLE promises *efficiency*: lower loss for the same arithmetic. So we count it, recovery and replayed rows included:
#
# ```{math}
# :label: eq-methods-flops
# \text{FLOPs} = \sum_{\text{domains}} \bigl( 6 P + 12 \, L D T \bigr) \left( \text{tokens of recovery} + \text{tokens of learning} \right) ,
# ```
#
# with $P$ the entries of all matrices at that time (six operations each: two in the pass forward, four backward), $L$ layers, $D$ the width of attention and $T$ the length of a row. Tables that are only looked up do not count.
#
# The arms: nothing of ELLE; replay and prompts without growth; the same with as many more steps as growth in depth costs, which reads more new text too; and growth by a block, by memories, or by width before each later domain, with and without recovery. A block has as many parameters as the memories; width is grown before two of the domains, for as much arithmetic in all. One learning rate serves all of them, {result}`growing.rate|g`, and replay is a quarter of the rows.

# %%
grown = growing.table(lab, scale)
kinds = list(growing.sizes(scale, device=lab.card).grown)
print(f"{len(grown)} courses of {len(growing.arms(scale))} arms")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-methods-growing", "caption": "Loss over all domains at the end, against the arithmetic of the whole course: means over seeds, bars from the lowest to the highest. The line joins the model that does not grow with the one that does not grow and learns for longer: growth pays where a point is below the line. Circles: growth without recovery; squares: growth with it, or no growth."}, "image": {"alt": "Scatter of nine arms of ELLE: teraflops of training against mean loss at the end, with a line between the two arms without growth."}}
palette = {"plain": 6, "not grown": 5, "longer": 5} | {kind: i for i, kind in enumerate(kinds)}
grown_origin = next(iter(grown.values())).origin
points = []
with plot.figure(width=5.6, height=4.6) as axes:
    for name in growing.arms(scale):
        x, y = mean(growing.of(grown, name, "flops")), growing.of(grown, name, "average")
        kind, _, still = name.partition(", ")
        look = {**plot.look(grown_origin, palette[kind]), "marker": "o" if still else "s"}
        axes.vlines(x, min(y), max(y), color=look["color"], linewidth=1)
        points.append((x, mean(y), name, look))
    ends = {name: (x, y) for x, y, name, _ in points}
    axes.plot(*zip(ends["not grown"], ends["longer"], strict=True), color="#999999", linewidth=1, zorder=0)
    named_points(axes, points)
    axes.set(xlabel="training (TFLOP)", ylabel="average at the end (nats a token)", title=f"Loss and arithmetic ({grown_origin})")

# %% tags=["hide-input"]
plot.table(
    [
        (
            name, f"{mean(growing.of(grown, name, 'flops')):.3g}", f"{mean(growing.of(grown, name, 'parameters')):,.0f}",
            *(cell(growing.of(grown, name, q)) for q in ("average", "forgetting", "learned", "general")),
        )
        for name in growing.arms(scale)
    ],
    ("arm", "TFLOP", "parameters at the end", "average (nats a token)", "forgetting F", "learned", "general text"),
)  # fmt: skip

# %% [markdown]
# ### Is the function kept?
#
# Growth by memories splits what a memory writes among its copies ({eq}`eq-methods-growth`), so the function stays exactly, but for the small noise that lets copies grow apart. Width splits sums as well, but the norms between take means over the width, and means stay only if every unit is copied equally often. A block that comes twice adds twice. So measure it: right after growth, the largest change of a score, and the divergence from the model before, on remembered text; then how much higher the loss of the domains seen so far
# is when learning begins, right after growth or after recovery.

# %% tags=["hide-input"]
plot.table(
    [
        (
            name, *(cell(growing.of(grown, name, q), digits) for q, digits in (("logits", 2), ("divergence", 4))),
            cell(growing.of(grown, name, "broken"), 4),
        )
        for kind in kinds
        for name in (f"{kind}, not recovered", kind)
    ],
    ("arm", "largest change of a score", "divergence (nats)", "rise of the loss when learning begins (nats a token)"),
)

# %% [markdown]
# Recovery reads old text, and so would help even where nothing was broken. The row of memories *with* recovery shows how much of it is that.
#
# ### Does the prompt help?
#
# That the prompts keep domains apart is said in a review ({claim}`review.elle-prompts`). Every row was read behind the prompt of its domain. At the end the loss is asked for with the right prompt, with that of another domain, and with none:

# %% tags=["hide-input"]
plot.table(
    [
        (name, cell(growing.of(grown, name, "average")), *(cell(growing.of(grown, name, q), 4) for q in ("wrong", "none")))
        for name in growing.arms(scale)
        if growing.of(grown, name, "wrong")
    ],
    ("arm", "right prompt (nats a token)", "rise with a wrong one", "rise with none"),
)

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["review.elle-prompts"])

# %% [markdown]
# A prompt is one vector that has learned for one domain's steps. If a wrong one costs nothing, the prompts carry no knowledge of the domain; if none costs as much as a wrong one, the model has only got used to there being something in front; and where the last column is below zero, the domain would be better served without any prompt.
#
# ## Waking, in a row
#
# {doc}`07_resuscitation` asked whether waking idle memories makes room. A sequence is where room should matter most. Before each domain the idle memories are lifted, by the usage on the domain to come; then training is plain.

# %% tags=["hide-input"]
WAKING = ("average", "forgetting", "learned", "general")
plot.table(
    [(label_of(name), f"{made[name].rate:g}", *(cell(by_seed(rows, name, value[q])) for q in WAKING)) for name in ("ncl", "woken") if name in made]
    + ([("waking, less NCL", "", *(cell(less(rows, "woken", "ncl", value[q])) for q in WAKING))] if "woken" in made else []),
    ("nats a token", "learning rate", "average", "forgetting F", "learned", "general text at the end"),
)  # fmt: skip

# %% [markdown]
# ## What to conclude
#
# *The order of the averages.* Untouched, the model stands at {result}`budget.untouched.average|.3f`. Plain training in a row ends at {result}`budget.ncl.average|.3f`, DAS at {result}`budget.das.average|.3f`, EWC at {result}`budget.ewc.average|.3f`, KD at {result}`budget.kd.average|.3f`, replay at {result}`budget.replay.average|.3f` and DER++ at {result}`budget.derpp.average|.3f`; one model a domain at
# {result}`budget.one.average|.3f`, one set of adapters a domain at {result}`budget.adapters-one.average|.3f`, and all domains together at {result}`budget.pool.average|.3f`.
#
# *What is paid for it.* Forgetting is {result}`budget.ncl.forgetting|+.3f` with plain training, {result}`budget.das.forgetting|+.3f` with DAS, {result}`budget.ewc.forgetting|+.3f` with EWC and {result}`budget.replay.forgetting|+.3f` with replay; learned is {result}`budget.ncl.learned|.3f`, {result}`budget.das.learned|.3f`, {result}`budget.ewc.learned|.3f` and {result}`budget.replay.learned|.3f`. {numref}`fig-methods-plane` has the rest.
#
# *Isolation.* HAT ends at {result}`budget.hat.average|.3f` and HAT-All at {result}`budget.hat-all.average|.3f`; HAT inside adapters, where half-open gates shut nothing that was there, at {result}`budget.hat-adapter.average|.3f`, and SupSup, whose masks begin fully open, at {result}`budget.supsup.average|.3f`.
#
# *General text*, {result}`budget.untouched.general|.3f` at first, ends at {result}`budget.ncl.general|.3f` with plain training, {result}`budget.das.general|.3f` with DAS and {result}`budget.replay.general|.3f` with replay. Replay protects what it has kept, and nobody kept text of before the first domain; DAS is the one method here that measures what mattered then.
#
# *End tasks* stand at {result}`budget.untouched.task|.1f` untouched, {result}`budget.ncl.task|.1f` after plain training, {result}`budget.das.task|.1f` with DAS, {result}`budget.replay.task|.1f` with replay, {result}`budget.pool.task|.1f` with Pool. Look at the intervals before ranking methods by them. A claim on end tasks and a claim on loss are two claims.
#
# *Unit or mask.* The penalty ends at {result}`budget.square.ewc, parameter.average|.3f` by parameter and {result}`budget.square.ewc, unit.average|.3f` by unit, the mask at {result}`budget.square.fisher-mask, parameter.average|.3f` and {result}`budget.square.fisher-mask, unit.average|.3f`. The table of effects says which of the two choices can be told from chance.
#
# *Growth.* With {result}`growing.depth.flops|.2f` and a block more for each domain ELLE ends at {result}`growing.depth.average|.3f`; the model that does not grow at {result}`growing.not grown.average|.3f` with {result}`growing.not grown.flops|.2f`, and at {result}`growing.longer.average|.3f` with {result}`growing.longer.flops|.2f`. Memories end at {result}`growing.memories.average|.3f`, width at {result}`growing.width.average|.3f`. The wrong prompt costs {result}`growing.depth.wrong|+.4f`, none
# {result}`growing.depth.none|+.4f`.
#
# *Waking* ends at {result}`budget.woken.average|.3f`, with forgetting of {result}`budget.woken.forgetting|+.3f` and {result}`budget.woken.learned|.3f` learned, beside {result}`budget.ncl.average|.3f`, {result}`budget.ncl.forgetting|+.3f` and {result}`budget.ncl.learned|.3f` of plain training.
#
# *If you may keep text*, compare with replay first: it is a line of code. *If you may not, and somebody names the domain*, give each domain adapters of its own. What is left for one model, without old text and without names, is where EWC and DAS belong, and there the plane of {numref}`fig-methods-plane` is the comparison that matters, not one number.
#
# ## What we tried
#
# Every trial with its loss on validation text; an asterisk marks what was chosen.


# %% tags=["hide-input"]
def trial(name, of):
    changes = "".join(f", {value:g}" if isinstance(value, float | int) else f", {value}" for _, value in of.changes)
    mark = r" \*" if of == made[name] else ""
    return f"{of.rate:g}{changes}: {courses.course(tried[name, of]).average:.3f}{mark}"


TRIED = {**budget.TRIED, **budget.SQUARE}
plot.table(
    [
        (
            TRIED[name].label, f"rate, {TRIED[name].setting}" if TRIED[name].setting else "rate",
            "; ".join(trial(name, of) for other, of in tried if other == name),
        )
        for name in made
    ],
    ("method", "settings", "trials: loss (nats a token)"),
)

# %% [markdown]
# Before the trials there were a few runs to see what a laptop can do, with more steps on each domain and a few of the methods; from them come the ranges of the rates. At first trials ended with the four. Several of the best then lay at an end of their range, so the search was made to go on, by the rule above and for every method; what had been run with other settings by then was run anew.
#
# Importances of EWC and DAS are measured on a part of a domain's rows, to save time. Prompts have fewer vectors than the paper's, for prompt and row must fit into the model's context together; and rows are that much shorter, in training and in judging, which raises the loss by itself.
#
# Nothing was chosen on test text. The study of growth has no trials of its own: its learning rate is the larger of the two that ELLE was tried with, its share of replay the smaller, both taken after a look at ELLE's trials on validation text.
#
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | model | RoBERTa, masked tokens, dropout | a small OLMo, next token, no dropout; its own model with masked tokens in {doc}`09_das` |
# | domains | six, of reviews and papers | four: docstrings of three packages, and a country of an invented world |
# | judged by | fine-tuning on an end task | loss on held-out text; end tasks beside it |
# | settings of rivals | partly from their papers | trials by one rule: four for each, one or two more where the best lay at an end |
# | orders and seeds | one order in the table, seeds of fine-tuning | two orders, seeds of the whole course |
# | DER++'s weights, replay's share | not in the released code | chosen by trials |
# | HAT under AdamW | gradients are masked | updates are masked |
# | BCL, DEMIX, DER++, EWC, prompts | do not run as released | written from the description |
# | ELLE | left out: it did not converge from RoBERTa | grown from the pretrained model, with a section of its own |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-methods-average
# Derive {eq}`eq-methods-average` and check it on the live courses. What do learned and forward transfer alone say about the average?
# ```
#
# ```{solution-start} ex-methods-average
# :class: dropdown
# ```

# %%
for name, row in live.items():
    course = courses.course(row)
    share = (len(course.names) - 1) / len(course.names)
    G = course.learned + share * course.forward_transfer
    lost = share * course.forgetting
    made_of = mean(course.before) - G + lost
    print(f"{label_of(name)}: {course.average:.4f} = {mean(course.before):.4f} - {G:.4f} {'+' if lost >= 0 else '-'} {abs(lost):.4f}")
    assert abs(made_of - course.average) < 1e-9 and abs(G - fallen(course)) < 1e-9

# %% [markdown]
# Add and subtract $L_{ii}$: the mean of $L_{iT}$ is the mean of $L_{ii}$ plus that of $L_{iT} - L_{ii}$, which is $F$ but for the last domain, whose difference is zero. And $L_{i0} - L_{ii}$ falls in two parts, before its own training (forward transfer, none for the first domain) and by it. Alone they say nothing of what was lost again.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-methods-compensation
# HAT multiplies the gradient of $e$ by {eq}`eq-methods-compensation`. Show that what is left is $s_{\max}$ times the gradient that a gate $\sigma(e)$ would have had. What would a unit with $e = 1$ get at $s = 20$ without it?
# ```
#
# ```{solution-start} ex-methods-compensation
# :class: dropdown
# ```

# %%
e = torch.linspace(-0.4, 0.4, 9, dtype=torch.float64, requires_grad=True)
steep, flat, smax = 20.0, 1.0, 400.0
gradients = [torch.autograd.grad(torch.sigmoid(s * e).sum(), e)[0] for s in (steep, flat)]
compensated = gradients[0] * taskmasks.compensation(e.detach(), steep, smax)
far = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
lone = torch.autograd.grad(torch.sigmoid(steep * far), far)[0]
print(f"at e = 1 and s = 20 the gradient of the gate is {float(lone):.1e}")
assert torch.allclose(compensated, smax * gradients[1]) and lone < 1e-7

# %% [markdown]
# The derivative of $\sigma(s e)$ is $\frac{s}{2} / (\cosh(s e) + 1)$. The factor cancels what depends on $s$ and puts $s_{\max}$ and $\cosh e$ in its place. Without it a gate that has once moved away from zero would stay where it is from the middle of the domain on.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-methods-bounds
# A domain is learned for ever longer. Where does one parameter end under a penalty of $\lambda F = 4$, and where under a mask of $1 - I = 0.2$? For which number of steps are both as far? (Loss $(\theta - 1)^2 / 2$, plain gradient descent with rate $0.1$.)
# ```
#
# ```{solution-start} ex-methods-bounds
# :class: dropdown
# ```

# %%
penalty, mask = walked(0.1, pull=4.0, count=400), walked(0.1, left=0.2, count=400)
passed = next(n for n in range(1, 400) if mask[n] > penalty[n])
print(f"after 400 steps {penalty[-1]:.3f} and {mask[-1]:.3f}; the mask passes the penalty at step {passed}")
assert abs(penalty[-1] - 1 / 5) < 1e-9 and mask[-1] > 0.999
assert abs(1 - mask[passed] - (1 - 0.02) ** passed) < 1e-12 and (1 - 0.02) ** passed < 0.8

# %% [markdown]
# At $1 / (1 + \lambda F) = 0.2$, and at $1$. The mask leaves $0.98^n$ of the way after $n$ steps. So with few steps both protect, and a comparison at one length of training is a comparison at that length. Only $I = 1$ protects for ever.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Give every method the same text and steps, look for its settings by the same rule, choose on other text, and show all trials.
# - The average is what one had, less what was learned, plus what was lost. Look at both parts.
# - Write the bill beside the score: text or copies that are kept, passes, parameters, and who names the domain.
# - Replay needs old text, modules a name; penalties and masks neither. They are answers to different questions.
# - A penalty bounds how far a parameter goes, a mask how fast.
# - Growth is to be compared at equal arithmetic, and its copies with the function before them.
