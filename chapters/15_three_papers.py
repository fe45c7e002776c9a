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
# (ch-three-papers)=
# # The same models through three papers
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Put one set of checkpoints before all three papers, and ask whether they mean the same when they say where knowledge is. \
# **You need.** {doc}`03_entropy_decay` for usage and entropy, {doc}`05_acquisition` for acquisition and forgetting, {doc}`09_das` for importance, {doc}`11_knowledge_base` for traces, {doc}`12_one_fact` and {doc}`13_thousands` for keys, updates and scores. What is used of them is said again in a line. \
# **Paper.** Kim et al. {cite}`kim2025knowledge`, section 3; Ke et al. {cite}`ke2023continual`, section 3; Meng et al. {cite}`meng2023memit`, sections 3 and 4. The comparison is ours: we know of no published one. \
# **Reading time.** About 30 minutes.
#
# ```{runtime} 15_three_papers
# ```
# :::
#
# Each of the three papers points at memories of a feed-forward layer and says: here. Kim et al. look at the memories that *work*, on average over text. Ke et al. at those *with which the loss would change*. Meng et al. at those that *answer to the subject of a fact*, whose values one rewrites to change it. All three look at the same tensor, the coefficient of a memory. Do they see the same thing in it?
#
# The question has a second half. Kim et al. find that a model late in its training takes in new knowledge less well, and that it uses its memories less evenly. Writing with MEMIT is another way of putting knowledge in. Is a late model harder to *edit* as well?
#
# Agreement is easy to produce and easy to overrate. Two noisy measures look less alike than they are; two measures that share a factor look alike without meaning the same; and two that agree can both be wrong. So this chapter goes in four steps: ranks with their noise ceiling, what is shared by construction, what is missed when memories are silenced, and what stays when the same function is written in other weights.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the factors by which weights are rescaled at random
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the model's own, which is all that this chapter uses
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
share = None  # of a layer's memories that count as its top in the live row; None: a tenth
spread = None  # standard deviation of the logarithms of the random factors; None: one

# %%
from kemem import book, plot
from kemem.studies import agreement, desk, editability, looking, notions, rescaling, silencing, three_papers

lab = book.open_chapter("15_three_papers", globals())
papers = desk.Desk(lab)
steps = papers.z.of.steps
print(f"stages at the steps {', '.join(map(str, steps))}; {papers.z.facts} facts, known at every one of them")

# %% [markdown]
# ## One model, one set of facts
#
# The model is that of {doc}`02_pretraining`, which has read of a world and of docstrings. An edit can only be judged on facts that the model says by itself. So the first stage is the first that knows enough of them, and all {result}`papers.stages` stages are asked for the *same* {result}`papers.facts` facts, each known at every stage. Otherwise a late stage would be judged on the harder facts that only it has learned.
#
# What the words below mean. The *mixture* is the text that the model has learned, the world and docstrings together. The *effective share* is $\exp(\frac{1}{L} \sum_l H_l) / M$: the share of memories that would give the layers' mean entropy if they were all used alike. $A$ and $F$ are what learning on by gradient brings and costs, each relative to its start ({doc}`05_acquisition`). An *edit* asks the model to say new objects for a *block* of facts that are written at once, and is taken back after it is scored. *Efficacy* ES is the share of these facts whose new object is then likelier than the old, PS the same of the question in other words, NS the share of questions on other subjects that keep their object likelier, and $S$ the harmonic mean of the three ({doc}`13_thousands`). The *weight* is MEMIT's $\lambda$, and its *clamp* says how far from the state a target may lie, in lengths of the state ({doc}`12_one_fact`). A *trace* makes the subject unreadable and restores one state at a time ({doc}`11_knowledge_base`).
#
# ## Three notions
#
# Let $c_{t}$ be the coefficients of a layer at token $t$, $v_i$ the value of memory $i$, $k_f$ the coefficients at the last token of the subject of fact $f$, and $\Delta$ what MEMIT adds to the values for some facts. Then
#
# ```{math}
# :label: eq-papers-notions
# \text{usage}_i &= \operatorname{mean}_t |c_{t,i}| & \text{(Kim et al.)} \\
# \text{importance}_i &= \operatorname{mean}_x \Bigl| \sum_t c_{t,i} \frac{\partial L(x)}{\partial c_{t,i}} \Bigr| & \text{(Ke et al.)} \\
# \text{key}_i &= \operatorname{mean}_f |k_{f,i}| , \qquad \text{update}_i = \lVert \Delta_{:,i} \rVert & \text{(Meng et al.)}
# ```
#
# The second line is the gradient of a virtual gate ({eq}`eq-das-gate`). Its loss $L$ has two readings. For *general* knowledge it is the divergence of two passes with noise, since our model, as most causal ones, has no dropout (a tenth of what each sublayer gives is dropped in these passes only). For a domain it is the loss on its text.
#
# Two products belong to the comparison. *Contribution* is usage times $|v_i|$: the length of what a memory adds to the stream. *Written* is update times key: the length of what the changed value adds at a subject.

# %%
import inspect

print(inspect.getdoc(notions.measured))

# %% [markdown]
# Everything is measured on {result}`papers.facts.drawn` facts of different subjects and on held-out text, in four disjoint draws of both. The row of the last stage is computed in your own copy of the book, and recorded in the published one; the other stages are recorded in both.
#
# For a layer, *key, centred* is the same of $k$ less its mean over the facts, and *key, whitened* that of $C^{-1} k$, where $C$ is the mean of $c\,c^{\top}$ over ordinary text. For this comparison MEMIT writes the facts of a draw into one layer at a time, always with one weight and clamp.

# %%
rows = papers.notions(share)
last = rows[steps[-1]]
print(f"{len(last.values['names'])} notions of {len(rows)} stages; the last is {last.origin}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-papers-scatter", "caption": "Every memory of the first and of the last layer at the last stage: three notions against usage, all in units of the layer's mean, both axes logarithmic."}, "image": {"alt": "Three scatter plots against usage on logarithmic axes, for the first and the last layer: importance for general knowledge rises along the diagonal, keys rise with much scatter, update columns fall."}}
units = last.values["units"]
layers = {"first layer": 0, "last layer": -1}
TITLES = {"general": "Importance, general", "key": "Key", "update": "Update"}
with plot.figure(columns=3, height=3.0) as panels:
    for axes, name in zip(panels, TITLES, strict=True):
        for index, (label, layer) in enumerate(layers.items()):
            axes.plot(
                units["usage"][layer], units[name][layer], ".", markersize=3, alpha=0.6, color=plot.COLOURS[index],
                label=label,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="usage (layer's mean = 1)", title=TITLES[name])
    panels[0].set(ylabel="measure (layer's mean = 1)")
    panels[0].legend(fontsize=7)

# %% [markdown]
# ## How much agreement could be seen at all?
#
# A rank correlation of two noisy measures is too small. If $r_{aa}$ is the correlation of a measure with itself, measured again on other text or facts, then the most that could be seen is $\sqrt{r_{aa} r_{bb}}$, the *ceiling*, and the correlation of what is measured without its noise is
#
# ```{math}
# :label: eq-papers-corrected
# \rho_{ab} = \frac{r_{ab}}{\sqrt{r_{aa}\, r_{bb}}} .
# ```
#
# Here $r_{ab}$ always compares one draw of $a$ with *another* draw of $b$: on the same draw the two would share its accidents. All correlations are within layers, so that a layer that is large in both adds nothing; then the mean over layers. Intervals come from leaving out one draw at a time.

# %%
book.source(agreement.agreement)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-papers-matrix", "caption": "Corrected rank correlations within layers, mean over layers. Left: the last stage of the model of chapter 02. Right: the model of part 3, with more layers, more memories and whole words as tokens."}, "image": {"alt": "Two square heat maps of correlations between usage, contribution, general importance, loss importance, key, update and written, from blue for minus one over white to red for one. Usage, contribution and both importances form a deep red block, keys are a paler red with them, and updates are blue against usage, contribution and both importances; against keys they are blue on the left and near white on the right. Written is pale against all but keys and updates."}}
second = papers.second()
shown = {"chapter 02, last stage": last} | ({"part 3's model": second} if second else {})


def matrix(row):
    return [
        [1.0 if a == b else notions.of_pair(row, a, b)["corrected"] for b in desk.SHOWN] for a in desk.SHOWN
    ]


def cells(axes, values):
    shown = axes.imshow([[0.0 if v is None else v for v in line] for line in values], cmap="RdBu_r", vmin=-1, vmax=1)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if x != y and value is not None:
                colour = "white" if abs(value) > 0.7 else "black"
                axes.text(x, y, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xticks(range(len(desk.SHOWN)), desk.SHOWN, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(desk.SHOWN)), desk.SHOWN, fontsize=8)
    axes.grid(False)
    return shown


with plot.figure(columns=len(shown), height=3.9, squeeze=False) as panels:
    for axes, (name, row) in zip(panels[0], shown.items(), strict=True):
        scale_of = cells(axes, matrix(row))
        axes.set_title(f"{name} ({row.origin})", fontsize=9)
    bar = axes.figure.colorbar(scale_of, ax=panels[0].tolist(), shrink=0.7, ticks=(-1, 0, 1))
    bar.set_label("corrected rank correlation", fontsize=8)

# %% tags=["hide-input"]
PAIRS = (
    ("usage", "general"), ("usage", "loss"), ("usage", "key"), ("general", "key"), ("usage", "update"),
    ("general", "update"), ("key", "update"), ("key", "written"),
)  # fmt: skip


def number(value, digits=2):
    return "none" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def line(pair):
    return (
        f"{number(pair['corrected'])} [{number(pair['low'])}, {number(pair['high'])}]", number(pair["raw"]),
        number(pair["ceiling"]), f"{100 * pair['shared']:.0f}",
    )  # fmt: skip


plot.table(
    [
        (f"{a}, {b}", *line(pair := notions.of_pair(last, a, b)), three_papers.verdict(pair["low"], pair["high"]))
        for a, b in PAIRS
    ],
    ("notions, last stage", "corrected (95 %)", "seen", "ceiling", "top tenth shared (%)", "by rule"),
)

# %% [markdown]
# The last column is a rule, fixed for all pairs: *nearly one* where the whole interval is above $0.8$, *related* above zero, *opposed* below, else *undecided*. By chance a tenth of the top tenth would be shared.
#
# Usage and general importance are nearly one measure here ({result}`papers.last.usage.general|.2f`), most so in the first layer ({result}`papers.last.usage.general.layer 0|.2f`) and least in the last ({result}`papers.last.usage.general.layer 3|.2f`). Their top tenths share {result}`papers.last.usage.general.shared|.0f`, where usage on other text shares {result}`papers.last.usage.again.shared|.0f` with itself. Usage and keys are related ({result}`papers.last.usage.key|.2f`). And the memories that MEMIT changes most are those that usage and importance rank low: the correlation of update with usage is {result}`papers.last.usage.update|.2f`, with general importance {result}`papers.last.general.update|.2f`, and with the keys {result}`papers.last.key.update|.2f`. With keys the sign depends on the model (in the second {result}`papers.second.key.update|.2f`), and among memories that are used alike MEMIT writes more where the key is larger, as a table below shows. The top tenths of usage and update share {result}`papers.last.usage.update.shared|.1f`, where chance would share ten.
#
# ## Along training

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-papers-stages", "caption": "Corrected rank correlations over the stages, with their 95 % intervals. Dotted: zero."}, "image": {"alt": "Five curves over training tokens: usage with general importance near one throughout, usage with key and general with key below it, usage with update and key with update below zero."}}
FOLLOWED = (("usage", "general"), ("usage", "key"), ("general", "key"), ("key", "update"), ("usage", "update"))
setup = papers.z.of.model.setup
read = [step * setup.rows * setup.length / 1e6 for step in steps]
with plot.figure(height=3.4) as axes:
    for index, (a, b) in enumerate(FOLLOWED):
        each = [notions.of_pair(row, a, b) for row in rows.values()]
        plot.series(axes, read, [p["corrected"] for p in each], f"{a}, {b}", index=index, origin=rows[steps[0]].origin)
        if last.origin != rows[steps[0]].origin:
            axes.plot(read[-1:], [each[-1]["corrected"]], **plot.look(last.origin, index))
        ends = [[p[end] for p in each] for end in ("low", "high")]
        axes.fill_between(read, *ends, color=plot.COLOURS[index], alpha=0.15, linewidth=0)
    axes.axhline(0, color="#555555", linestyle=":", linewidth=1)
    axes.set(xlabel="tokens read (millions)", ylabel="corrected correlation", ylim=(-1.05, 1.05), title="Agreement by stage")
    axes.legend(fontsize=7, loc="center right", framealpha=1.0)

# %% [markdown]
# The signs are there at every stage. Over all of them usage and general importance have between {result}`papers.least.usage.general|.2f` and {result}`papers.most.usage.general|.2f`, usage and key between {result}`papers.least.usage.key|.2f` and {result}`papers.most.usage.key|.2f`, usage and update between {result}`papers.least.usage.update|.2f` and {result}`papers.most.usage.update|.2f`.
#
# What does change is the loss on the two kinds of text: the rankings of memories by importance for one and for the other agree with {result}`papers.first.loss, world.loss, docstrings|.2f` at the first stage, {result}`papers.most.loss, world.loss, docstrings|.2f` at most, and {result}`papers.last.loss, world.loss, docstrings|.2f` at the end.
#
# ## What is shared by construction
#
# Before reading meaning into these numbers, look at {eq}`eq-papers-notions` again. Importance *contains* $c$: a memory that is never used has none. Keys *are* coefficients, at certain tokens. And the update has the moment of all keys in it, with $C = \mathbb{E}[c\,c^{\top}]$ and the residual $R$:
#
# ```{math}
# :label: eq-papers-update
# \Delta = R K^{\top} \bigl( \lambda C + K K^{\top} \bigr)^{-1} .
# ```
#
# If $C$ were diagonal and $\lambda$ large, column $i$ would be $R\,k_{:,i} / (\lambda\, \mathbb{E}[c_i^2])$: divided by the *square* of what the memory does anyway. MEMIT is built to write where it disturbs least. So it *has* to avoid what is used. To see how much of the update is this and nothing else, take keys alone, whitened, $C^{-1}k$, without any target: their correlation with the update's columns is {result}`papers.last.key, whitened.update|.2f`. Where MEMIT writes follows from $C$ and from the keys; what is to be written plays next to no part.
#
# And importance with keys? Take out what both share with usage (the partial correlation, of corrected ones, by layer and then the mean):

# %% tags=["hide-input"]
AFTER = (("general", "key"), ("loss", "key"), ("general", "update"), ("key", "update"), ("contribution", "general"))
plot.table(
    [
        (f"{a}, {b}", *(cell for row in shown.values() for cell in (
            number(notions.of_pair(row, a, b)["corrected"]), number(notions.given(row, a, b, "usage"))
        )))
        for a, b in AFTER
    ],
    ("notions", *(cell for name in shown for cell in (name, "given usage"))),
)  # fmt: skip

# %% [markdown]
# With usage given, {result}`papers.last.general.key.given usage|.2f` is left of the {result}`papers.last.general.key|.2f` between general importance and keys, and importance by the loss even turns against keys ({result}`papers.last.loss.key.given usage|.2f`). The two papers agree because both read how much a memory works. That is a finding, but a smaller one than the first number suggests.
#
# ## Which layers?
#
# The model has few layers, so this is a picture and no correlation. Beside the notions, three things that are causal: how much of the answer comes back when one layer's output is restored in a trace of known facts ({doc}`11_knowledge_base`), what is lost when a whole feed-forward layer is held at its mean, and how well MEMIT writes into this layer alone (best of its trials on tuning facts).

# %%
trials = papers.trials()
made, own_best = editability.best(trials)
traced, silent, entropies = papers.traced(), papers.silenced(), papers.entropy()
print(f"chosen on tuning facts: layers {made.layers}, weight {made.weight:g}, clamp {made.clamp:g}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-papers-layers", "caption": "Layer by layer at the last stage. Deficit of entropy from ln M; the layer's share of all importance; effect of restoring its feed-forward output in a trace, at the last token of the subject and of the prompt; facts no longer said with the layer held at its mean; score S of MEMIT written into it alone, the best of its trials."}, "image": {"alt": "Five panels over layers, bars but for two panels of lines: the deficit is largest in the first layer and falls from layer to layer; importance is largest in the first layer, least in the second and rises again; the trace is near zero at the subject's last token and a few points at the prompt's last token in the two upper layers; most facts are lost without the first layer, fewest without the third; S is high in the first layer and low in all others."}}
import math

at = list(range(setup.layers))
deficit = [math.log(setup.memories) - h for h in last.values["entropy"]]
effect = traced.values["whole"]["effects"]["mlp"]
missed = [-100 * own["facts"] for own in silent[steps[-1]].values["layers"]["mean"]]
score = {}
for setting, found in zip(papers.z.settings, trials[steps[-1]].values["scores"], strict=True):
    if len(setting.layers) == 1:
        score[setting.layers[0]] = max(score.get(setting.layers[0], 0.0), found["S"] or 0.0)
with plot.figure(columns=5, height=2.6) as panels:
    panels[0].bar(at, deficit, color=plot.COLOURS[0])
    for index, name in enumerate(("general", "loss")):
        panels[1].plot(at, [100 * v for v in last.values["layers"][name]], label=name, **plot.look(last.origin, index))
    for index, (role, label) in enumerate((("last_subject", "subject's last"), ("last", "prompt's last"))):
        if role in effect:
            value = [100 * v for v in effect[role]["value"]]
            panels[2].plot(range(len(value)), value, label=label, **plot.look(traced.origin, index))
    panels[3].bar(at, missed, color=plot.COLOURS[1])
    panels[4].bar(list(score), list(score.values()), color=plot.COLOURS[2])
    titles = ("Deficit (nats)", "Importance (%)", "Trace (points)", "Facts lost (points)", "S, edited (%)")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_axisbelow(True)
        axes.set(xlabel="layer")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(at)
    for axes in panels[1:3]:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]), top=1.45 * axes.get_ylim()[1])
        axes.legend(fontsize=7)

# %% [markdown]
# Every layer had the same trials, all weights with all clamps. Within these, editing does well in the first layer and badly in all others: {result}`papers.tuned.0|.0f` there, {result}`papers.tuned.1|.0f`, {result}`papers.tuned.2|.0f` and {result}`papers.tuned.3|.0f` in those above. Lighter weights do not help them. The first layer is also the one whose loss is felt most. But the trace *of feed-forward outputs* does not point to it. Of {result}`papers.traced.total|.0f` in all, the feed-forward outputs at the subject's last token bring back at most {result}`papers.traced.mlp.last_subject|.1f`; the *state* there brings back {result}`papers.traced.state.last_subject|.0f`, after layer {result}`papers.traced.state.last_subject.layer`, and what carries it on is attention at the prompt's last token in layer {result}`papers.traced.attention.last.layer` ({result}`papers.traced.attention.last|.0f`).
# So the trace of states does point to the subject's last token behind the first layer, where MEMIT writes. But a restored state has the clean embedding of the name in it, which was not separated here from what the layer adds, and the output of this layer alone brings back next to nothing. MEMIT writes there all the same, and well. Hase et al. {cite}`hase2023localization` found such a dissociation: where a fact is traced to and where it can be written are two questions. Why not in the layers above? The attention that reads the subject most stands before the feed-forward layer of its own block, and so before all that is written from there on.
#
# ## What is missed
#
# So far, measures were compared with measures. A memory in which something lives should be missed when it is gone. So we silence the top tenth of every layer by each notion, in two ways: the coefficient is set to zero, or held at its mean, which leaves alone what is always there. Then we ask for the loss on held-out text of both kinds, and for facts about subjects that no key was measured on. Each notion gives four sets, one a draw; random sets are the comparison, and so are the *least* used memories.
#
# Three further sets are ratios, of what is special to one measure: importance for the world over importance for docstrings, the other way round, and keys over usage.

# %%
for step, row in silent.items():
    nats = ", ".join(f"{name} {value:.2f}" for name, value in row.values["before"].items() if name != "facts")
    print(f"step {step}, nothing silenced: {nats} nats a token; {row.values['facts']} facts are asked")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-papers-silenced", "caption": "The top tenth of each layer silenced by each notion, at the last stage: by how much the loss on either text rises, and the share of facts that the model no longer says. Small marks are draws, diamonds their mean. Dotted: random memories, held at their mean."}, "image": {"alt": "Three panels of points, a row for each set of memories: rise of the loss on world text, rise on docstrings, facts lost. Usage, contribution, general and world importance cost most on world text; docstring importance costs most on docstrings; update, whitened keys and the least used cost almost nothing. On text a set costs a little more when it is set to zero, on facts when it is held at its mean."}}
row = silent[steps[-1]]
lost = row.values["lost"]["mean"]
sets = [*last.values["names"], *(name for name in lost if " / " in name), silencing.RANDOM, silencing.LEAST]
RISE = "rise of loss (nats a token)"
QUANTITIES = {"world": ("Text of the world", RISE), "docstrings": ("Docstrings", RISE), "facts": ("Facts", "lost (points)")}
WAYS = {"mean": "held at its mean", "zero": "set to zero"}


def named(name):
    """A set in words: what is special to one measure is its share over the other's."""
    one, over, other = (part.removeprefix("loss, ") for part in name.partition(" / "))
    if over and name.startswith("loss, "):
        return f"{one} over {other} (importance)"
    if name.startswith("loss"):
        return "importance by loss" if name == "loss" else f"importance, {one}"
    return f"{one} over {other}" if over else {"general": "importance, general"}.get(name, name)


with plot.figure(columns=3, height=0.9 + 0.24 * len(sets), sharey=True) as panels:
    for axes, (key, (title, unit)) in zip(panels, QUANTITIES.items(), strict=True):
        times = -100 if key == "facts" else 1
        for index, (way, label) in enumerate(WAYS.items()):
            for place, name in enumerate(sets):
                own = [times * v for v in silencing.lost_by(row, way, name)[key]]
                y = place + (0.18 if index else -0.18)
                axes.plot(own, [y] * len(own), "o", color=plot.COLOURS[index], markerfacecolor="white", markersize=3)
                axes.plot([looking.mean(own)], [y], "D", color=plot.COLOURS[index], markersize=4.5, label="" if place else label)
        chance = times * looking.mean(silencing.lost_by(row, "mean", silencing.RANDOM)[key])
        axes.axvline(chance, color="#555555", linestyle=":", linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(unit, fontsize=8)
    panels[0].set(yticks=range(len(sets)), yticklabels=[named(name) for name in sets], ylim=(len(sets) - 0.4, -0.6))
    panels[2].legend(fontsize=7, loc="lower right")

# %% tags=["hide-input"]
FEW = ("usage", "general", "key", "key / usage", "loss, world / loss, docstrings", "loss, docstrings / loss, world", "update",
       "random", "usage, least")  # fmt: skip
# stages say different facts, so these are told of the last one alone
ASKED = [(step, key) for step in silent for key in QUANTITIES if key != "facts" or step == steps[-1]]


def gone(row, name, key):
    own = silencing.lost_by(row, "mean", name)[key]
    return f"{0.0 - 100 * looking.mean(own):.0f}" if key == "facts" else number(looking.mean(own))


plot.table(
    [
        (named(name), *(gone(silent[step], name, key) for step, key in ASKED),
         f"{100 * looking.mean(row.values['contribution'][name]):.0f}")
        for name in FEW
        if name in sets
    ],
    ("held at its mean", *(f"step {step}: {key} ({'points' if key == 'facts' else 'nats'})" for step, key in ASKED),
     "share of contribution (%)"),
)  # fmt: skip

# %% [markdown]
# *Usage and importance find what is missed.* Without the top tenth by usage the loss on world text rises by {result}`papers.silenced.last.mean.usage.world|.1f`, by general importance {result}`papers.silenced.last.mean.general.world|.1f`, and the share of facts that are said falls by {result}`papers.silenced.last.mean.usage.facts|.0f` and {result}`papers.silenced.last.mean.general.facts|.0f`. Random memories cost {result}`papers.silenced.last.mean.random.world|.2f` and {result}`papers.silenced.last.mean.random.facts|.0f`. Part of this is size: of the summed lengths of what a layer's memories add to the stream, the top tenth by usage has {result}`papers.silenced.last.usage.share|.0f`, random ones {result}`papers.silenced.last.random.share|.0f`, the top by update {result}`papers.silenced.last.update.share|.0f` (the last column). But size is not all: what is special to docstrings has {result}`papers.silenced.last.loss, docstrings / loss, world.share|.0f`, no more than random memories, and is missed on its text.
#
# *Keys find it too, but less well*: {result}`papers.silenced.last.mean.key.world|.1f` and {result}`papers.silenced.last.mean.key.facts|.0f`. And what is special to subjects, keys over usage, is not where facts of other subjects are missed most: it costs {result}`papers.silenced.last.mean.key / usage.facts|.0f` on facts, beside {result}`papers.silenced.last.mean.loss, world / loss, docstrings.facts|.0f` for what is special to the world by the loss.
#
# *Where MEMIT's columns are largest, nothing is missed.* The top tenth by update costs {result}`papers.silenced.last.mean.update.world|.2f` on world text and {result}`papers.silenced.last.mean.update.facts|.1f` on facts, less than random memories and hardly more than the least used ones ({result}`papers.silenced.last.mean.usage, least.world|.2f`). By update *times key*, which says where the change acts at a subject, it is otherwise: these memories cost {result}`papers.silenced.last.mean.written.world|.2f` and {result}`papers.silenced.last.mean.written.facts|.0f`, well above chance.
#
# *Importance for a domain knows its domain.* The top by docstrings over world costs docstrings {result}`papers.silenced.last.mean.loss, docstrings / loss, world.docstrings|.2f` and the world {result}`papers.silenced.last.mean.loss, docstrings / loss, world.world|.2f`; the other way round it is {result}`papers.silenced.last.mean.loss, world / loss, docstrings.docstrings|.2f` and {result}`papers.silenced.last.mean.loss, world / loss, docstrings.world|.2f`. This double dissociation is the strongest evidence for any of the notions here. It is there at the first stage as well: {result}`papers.silenced.first.mean.loss, docstrings / loss, world.docstrings|.2f` and {result}`papers.silenced.first.mean.loss, docstrings / loss, world.world|.2f`, the other way round {result}`papers.silenced.first.mean.loss, world / loss, docstrings.docstrings|.2f` and {result}`papers.silenced.first.mean.loss, world / loss, docstrings.world|.2f`. Late, most sets cost more nats on the text that they matter to, as there is more to lose. Facts are not compared between the stages, as each is asked for those that it says.
#
# ## A fact's own memories
#
# So far the facts that chose the memories were not asked themselves. A key is measured at the subject of a fact: is it *this* fact that is missed without its top? Each of the {result}`papers.facts.drawn` facts chooses a tenth of every layer by its own key, by its key over usage, and by what MEMIT would write to this layer for it alone. For one fact that needs no target: {eq}`eq-papers-update` then has one column $k$, and the change is a multiple of $C^{-1} k$ (here of the bare prompt's key, without the prefixes that an edit averages over). Held at their means, these memories are taken from the fact that chose them and, for comparison, from the next fact of the draw.
#
# Then MEMIT rewrites the facts of each draw, and we look for what it wrote. Of the changed layer, the top tenth by each measure of the *change* is treated in two ways: the change is taken out of these memories, or left in these alone. Here *written*, update times key, is measured at the very subjects that are asked.

# %%
by_fact = papers.by_fact(made)
facts_row = by_fact[steps[-1]]
print(f"{facts_row.values['facts']} facts in {len(facts_row.values['rewritten'])} draws; {facts_row.origin} row {facts_row.digest}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-papers-own", "caption": "Facts without their own memories, at the last stage. Left: share of facts no longer said when the top tenth of each layer, chosen by the fact itself or by another, is held at its mean; bars are 95 % intervals over facts of the difference, drawn at the fact's own mark; by usage all facts choose the same. Right: rewritten facts of which the new object is still said when the change is taken out of a tenth of the edited layer, or left in this tenth alone; small marks are draws. Dotted: the whole edit."}, "image": {"alt": "Left: points for five ways to choose memories. By usage almost all facts are lost. By key the fact that chose loses more often than another fact; by key over usage the same at a lower level; by update and at random hardly any is lost. Right: taking the change out of the tenth with the largest update times key loses most of the rewritten facts, and left alone it keeps more of them than any other tenth; the tenth with the largest update alone does little."}}
from kemem.studies import fact_silencing

CHOSEN = {"usage": "usage", "key": "key", "key / usage": "key over usage", "update": "update", "random": "random"}
WITHIN = {"written": "update × key", "key": "key", "update": "update", "usage": "usage", "usage, least": "usage, least", "random": "random"}
with plot.figure(columns=2, height=3.0) as (left, right):
    for place, name in enumerate(CHOSEN):
        of_both = {whose: 100 * looking.mean(fact_silencing.lost(facts_row, "mean", name, whose, "said")) for whose in ("own", "other")}
        more = fact_silencing.more(facts_row, "mean", name)
        left.plot([of_both["other"]], [place], "o", color=plot.COLOURS[1], markerfacecolor="white", label="" if place else "by another fact")
        half = 100 * (more.high - more.mean)
        left.errorbar([of_both["own"]], [place], xerr=[[half], [half]], fmt="D", color=plot.COLOURS[0], label="" if place else "by the fact itself")
    left.set(yticks=range(len(CHOSEN)), yticklabels=CHOSEN.values(), ylim=(len(CHOSEN) - 0.5, -0.5), xlim=(-8, 103),
             xlabel="known facts no longer said (%)", title=f"Chosen by a fact ({facts_row.origin})")
    left.legend(fontsize=7, loc="lower right")
    for place, name in enumerate(WITHIN):
        for index, (way, label) in enumerate(((fact_silencing.UNWRITTEN, "taken out of"), (fact_silencing.ALONE, "left in"))):
            each = [100 * v for v in fact_silencing.left(facts_row, way, name, "said")]
            y = place + (0.15 if index else -0.15)
            right.plot(each, [y] * len(each), "o", color=plot.COLOURS[index + 2], markerfacecolor="white", markersize=3)
            right.plot([looking.mean(each)], [y], "D", color=plot.COLOURS[index + 2], label="" if place else label)
    right.axvline(100 * looking.mean([each["after"]["said"] for each in facts_row.values["rewritten"]]), color="#555555", linestyle=":", linewidth=1)
    right.set(yticks=range(len(WITHIN)), yticklabels=WITHIN.values(), ylim=(len(WITHIN) + 0.9, -0.5), xlim=(-8, 103),
              xlabel="rewritten facts still said (%)", title="The change by parts")
    right.legend(fontsize=7, loc="lower right", ncols=2)

# %% [markdown]
# *Known facts.* Without the top tenth by its own key a fact is lost in {result}`papers.fact.last.mean.key.own|.0f` of cases, without that by another fact's key in {result}`papers.fact.last.mean.key.other|.0f`: {result}`papers.fact.last.mean.key.more|.0f` more, with an interval from {result}`papers.fact.last.mean.key.more.low|.0f` to {result}`papers.fact.last.mean.key.more.high|.0f`. Set to zero, the difference is {result}`papers.fact.last.zero.key.more|.0f` ({result}`papers.fact.last.zero.key.more.low|.0f` to {result}`papers.fact.last.zero.key.more.high|.0f`); at the first stage, held at the mean, {result}`papers.fact.first.mean.key.more|.0f` ({result}`papers.fact.first.mean.key.more.low|.0f` to {result}`papers.fact.first.mean.key.more.high|.0f`). So keys do say something of *their* fact. But most of what they cost is common to all facts, and at the last stage usage costs a fact more on average ({result}`papers.fact.last.mean.usage.own|.0f`) than its own key; at the first it is the other way round ({result}`papers.fact.first.mean.usage.own|.0f` beside {result}`papers.fact.first.mean.key.own|.0f`). By key over usage the difference is {result}`papers.fact.last.mean.key / usage.more|.0f` ({result}`papers.fact.last.mean.key / usage.more.low|.0f` to {result}`papers.fact.last.mean.key / usage.more.high|.0f`).
#
# And the memories whose values MEMIT would change most for a fact are not where the fact *is*: without them {result}`papers.fact.last.mean.update.own|.0f` of the facts that chose them are lost.
#
# *Rewritten facts.* After the edit {result}`papers.rewritten.last.after|.0f` of the new objects are said. Take the change out of the tenth of the layer where it is *largest*, and the new objects are still said in {result}`papers.rewritten.last.change taken out.update|.0f`, no less often than with random memories ({result}`papers.rewritten.last.change taken out.random|.0f`); take it out where update *times key* is largest, and it is {result}`papers.rewritten.last.change taken out.written|.0f`. Left in this tenth alone the change is enough for {result}`papers.rewritten.last.change left alone.written|.0f`, in the tenth with the largest columns for {result}`papers.rewritten.last.change left alone.update|.0f`. Of the summed lengths of what single memories newly add at the subjects, the first tenth holds {result}`papers.rewritten.last.written.held|.0f`, the second {result}`papers.rewritten.last.update.held|.0f`, no more than its share. So the notion *update* does not tell where an edit lives; *written* does, and its top tenth is in good part that of the keys (they share {result}`papers.last.key.written.shared|.0f`). What works of an edit is found among the memories that answer to its subjects, where a small change of a value is enough, and it is spread widely even there.
#
# ## Is a late model harder to edit?
#
# Now the second half of the question. Layers, weight and clamp of MEMIT have {result}`papers.trials` trials at every stage on {result}`papers.tuning` tuning facts; one setting, the best on average over stages, serves all. Then the {result}`papers.facts` reported facts, in blocks of {result}`papers.count`, with three draws of what is to be written. Entropy is that of {doc}`03_entropy_decay`, on other text than the notions above; acquisition and forgetting are those of {doc}`05_acquisition`, from these stages. They are means over three models, of which the first is the one that all else here is measured on.

# %%
edits, learnt = papers.written(dict.fromkeys(steps, made)), papers.learning()
path = three_papers.along(entropies, learnt, edits)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-papers-edits", "caption": "Four looks at the same stages. Top left: effective share of memories (entropy). Top right: acquisition A and forgetting F when the model goes on learning by gradient, band over three models, of which the others are not looked at in the other panels. Below left: scores of MEMIT on the same facts, band over three draws of what is written. Below right: what an edit of a block costs on other text."}, "image": {"alt": "Four panels over training tokens. The effective share falls and turns up a little at the end; acquisition and forgetting both rise; efficacy, paraphrase and the joint score S rise, neighbourhood dips a little and then rises; the cost on world text and on docstrings rises."}}
LOOKS = {
    "Effective share (%)": {"share": "entropy"},
    "Learning on by gradient (%)": {"A": "acquisition A", "F": "forgetting F"},
    "Written by MEMIT (%)": {"ES": "ES", "PS": "PS", "NS": "NS", "S": "S"},
    "Cost elsewhere (nats a token)": {"world": "world", "docstrings": "docstrings"},
}
models = learnt[steps[-1]][0], "models"
OF = {"share": (entropies, "models"), "A": models, "F": models}
with plot.figure(columns=2, rows=2, height=2.7, sharex=True) as panels:
    for axes, (title, quantities) in zip(panels.flat, LOOKS.items(), strict=True):
        for index, (name, label) in enumerate(quantities.items()):
            if all(path[name]) and len({len(own) for own in path[name]}) == 1:
                runs = list(zip(*path[name], strict=True))
                row, what = OF.get(name, (edits[steps[-1]][0], "draws"))
                plot.spread(axes, read, runs, label, origin=row.origin, index=index, of=what)
        axes.set(title=title)
        axes.legend(fontsize=7)
    for axes in panels[1]:
        axes.set(xlabel="tokens read (millions)")

# %% tags=["hide-input"]
going = three_papers.with_share(path)
plot.table(
    [
        (label, *(number(looking.mean(each), 2 if name in ("K", "world", "docstrings") else 1) if each else "none" for each in path[name]),
         number(going.get(name)), number(going.get(f"{name}, stage")))
        for name, label in three_papers.QUANTITIES.items()
    ],
    ("mean", *(f"step {step}" for step in steps), "rank correlation with the share", "rank correlation with the stage"),
)  # fmt: skip

# %% tags=["hide-input"]
plot.table(
    [
        (f"step {step}", f"{scores[papers.z.settings.index(made)]['S'] or 0.0:.1f}", f"{max(s['S'] or 0.0 for s in scores):.1f}",
         f"weight {own.weight:g}, clamp {own.clamp:g}, layers {', '.join(map(str, own.layers))}")
        for step, own in own_best.items()
        for scores in [trials[step].values["scores"]]
    ],
    ("S on tuning facts (%)", "one setting for all", "best of its own", "which"),
)  # fmt: skip

# %% [markdown]
# No: it is *easier*. From the first of these stages to the last $S$ goes from {result}`papers.written.first.S|.1f` to {result}`papers.written.last.S|.1f` (a change of {result}`papers.written.change.S|+.1f`, from {result}`papers.written.change.S.low|+.1f` to {result}`papers.written.change.S.high|+.1f` over draws of what is written), efficacy from {result}`papers.written.first.ES|.1f` to {result}`papers.written.last.ES|.1f`, although the model is surer of what it is to give up: before the edit the probability of the true object was above that of the new one by {result}`papers.written.first.true|.0f` at first and by {result}`papers.written.last.true|.0f` at the end. The effective share went from {result}`papers.share.first|.1f` to {result}`papers.share.last|.1f` meanwhile, by way of {result}`papers.share.least|.1f`.
#
# It is not the setting: the last table shows that a setting of its own would help the first stage a little and the others not at all.
#
# Two qualifications. Neighbours score better late because more of them were *known* late: {result}`papers.written.first.NS.before|.1f` and {result}`papers.written.last.NS.before|.1f` before any edit. Of what it was, NS keeps {result}`papers.written.first.kept|.1f` and {result}`papers.written.last.kept|.1f`: no gain. And the price elsewhere rises: a block of edits costs {result}`papers.written.first.world|.2f` on other text of the world at the first stage and {result}`papers.written.last.world|.2f` at the last, on docstrings {result}`papers.written.first.docstrings|.3f` and {result}`papers.written.last.docstrings|.3f`. A late model takes the edit better and is hurt more by it.
#
# Acquisition by gradient rises as well over these stages of our models, where the paper's falls ({doc}`05_acquisition` says why: the later model knows less of the new passages at the start). What does get worse with the stage is forgetting. But acquisition is a ratio to a start that falls: what the model knows of the passages *afterwards*, $K$ in the table, is no better late than early. So gradient learning ends no better late and forgets more; MEMIT writes more surely and costs more elsewhere. What the lower entropy does to either, stages cannot tell.
#
# Could it be shown, if it did? Five stages of one schedule are five points on one line. Everything that changes in training changes along it, and a correlation with entropy is a correlation with the stage. That is why the table has both columns, and why the next section does not look at stages at all.
#
# ## The same function in other weights
#
# There is a way to change entropy and nothing else. Multiply row $i$ of the matrix that makes the coefficients by $f_i$ (in our gated layers the one behind no activation, so this is exact) and divide the value of memory $i$ by it: $c_i$ becomes $f_i c_i$, $v_i$ becomes $v_i / f_i$, and the model computes what it did. What do the notions do? With $F = \operatorname{diag}(f)$, MEMIT's keys become $FK$, the moment $FCF$, and
#
# ```{math}
# :label: eq-papers-rescaled
# \Delta' = R\,(FK)^{\top} \bigl( \lambda F C F + F K K^{\top} F \bigr)^{-1}
# = R K^{\top} \bigl( \lambda C + K K^{\top} \bigr)^{-1} F^{-1} = \Delta F^{-1} ,
# \qquad \Delta' F k = \Delta k .
# ```
#
# What the edit *does* is the same for every $f$. So is importance, since $c\, \partial L / \partial c$ has the factor in it once above and once below. Usage is multiplied by $f$, and entropy becomes whatever one likes. In double precision: the model as trained; with factors that make all memories of a layer work equally; and with random factors.

# %%
rescaled = papers.rescaled(made, seed=seed, spread=spread)
models = {name: rescaled.values[name] for name in rescaling.WEIGHTS}

# %% tags=["hide-input"]
KEPT = {name: name for name in ("usage", "key", "update", "contribution", "loss", "written")} | {"loss": "importance by the loss"}


def changed(value):
    return "no" if value < 1e-6 else f"by {100 * value:.0f} %"


plot.table(
    [
        ("entropy (nats)", *(f"{own['entropy']:.2f}" for own in models.values())),
        ("loss on the mixture (nats)", *(f"{own['nats']:.4f}" for own in models.values())),
        ("ES, PS, NS of an edit (%)", *(" / ".join(f"{own[s]:.1f}" for s in ("ES", "PS", "NS")) for own in models.values())),
        ("what the edit adds at the subjects changed", *(changed(own["effect"]) for own in models.values())),
        *((f"{KEPT[name]} changed", *(changed(own["changed"][name]) for own in models.values())) for name in KEPT),
        ("usage with importance by the loss, rank", *(number(own["rank"]) for own in models.values())),
        ("contribution with importance by the loss, rank", *(number(own["rank, contribution"]) for own in models.values())),
    ],
    ("weights", *models),
)  # fmt: skip

# %% [markdown]
# The same function has an entropy of {result}`papers.rescaled.as trained.entropy|.2f`, {result}`papers.rescaled.all used alike.entropy|.2f` or {result}`papers.rescaled.at random.entropy|.2f`, as one likes, and takes the edit in exactly the same way. It is not a matter of statistics: *entropy by itself cannot make a model harder to edit by MEMIT*. Whatever goes with it along the stages has another cause.
#
# And the agreement of usage with importance (by the loss, on the same text), {result}`papers.rescaled.as trained.rank|.2f` as trained, is {result}`papers.rescaled.all used alike.rank|.2f` where all memories are used alike. It is a fact about how training distributes a product over its two factors, here with weight decay on both, and not about what the function needs. Contribution, usage times $|v|$, does not notice, and agrees with importance as well as usage does in the trained weights. Whoever wants to compare models by how they spread their work should prefer it.
#
# Learning by gradient *does* notice: the gradient of a value is multiplied by $f$, that of its key divided. Chapter {doc}`07_resuscitation` learns from such models.
#
# ## What to conclude
#
# *Do the three notions agree?* Two do, the third in part. Usage and importance for general knowledge are nearly one ranking in the first model ({result}`papers.last.usage.general|.2f`) and related in the second ({result}`papers.second.usage.general|.2f`); in the first, where memories were silenced, both find what it cannot do without. Keys follow usage at a distance ({result}`papers.last.usage.key|.2f`; {result}`papers.second.usage.key|.2f` in the second model), and what they share with importance is mostly usage in the first model ({result}`papers.last.general.key.given usage|.2f` is left of {result}`papers.last.general.key|.2f`), and less so in the second ({result}`papers.second.general.key.given usage|.2f` of {result}`papers.second.general.key|.2f`). The update goes the other way ({result}`papers.last.usage.update|.2f`; {result}`papers.second.usage.update|.2f`).
#
# *What it means for Kim et al.* Usage is a cheap stand-in for importance in trained weights. But it belongs to the weights and not to the function; contribution is the safer number. And nothing here supports the step from entropy to "takes in knowledge less well" for edits: the late model takes them better, at a higher price elsewhere, and entropy by itself cannot matter to them.
#
# *What it means for Ke et al.* The divergence of two noisy passes finds what usage finds, at the price of backward passes. What usage of the mixture cannot do is tell its two kinds of text apart: importance by the loss on each does, and silencing shows that it is right. Usage on each text by itself was not measured.
#
# *What it means for Meng et al.* A key says which memories answer to a subject, an update where there is room. Memories whose values change most are missed least: by text, by facts of other subjects, and by the very facts that are to be rewritten. Where an edit then works is told by update times key. DAS would mostly protect memories that MEMIT hardly changes; but what works of an edit is partly in them (written with general importance: {result}`papers.last.general.written|.2f`, and {result}`papers.second.general.written|.2f` in the second model). Whether the two go together on one model would have to be tried. It was not, here.
#
# ## What we tried
#
# The first version measured the moments of keys on documents of the world alone. Docstrings were then not protected, and late edits cost the mixture several times as much; moments are now measured on the text that the model has learned. At first the layers above had trials at one weight only and no weight was lighter than the first layer needs; now every layer has the whole grid, which changed no choice. Whether a fact loses more by its own key than by another was first judged over the draws, whose interval at the last stage goes from {result}`papers.fact.last.mean.key.more.draws.low|.0f` to {result}`papers.fact.last.mean.key.more.draws.high|.0f`; as each fact chooses its own memories, facts and not draws are what the interval should be over. The pairs were then first two facts without the same memories; now they are one fact without its own and without another's. Nothing was tuned but MEMIT's setting, on tuning facts, with the same trials at each stage.
#
# ## Limits
#
# One small model with one seed of pretraining (but for acquisition and forgetting), and one more at its end. Rows of text are disjoint within the mixture and within each part, but mixture and parts are cut from the same held-out documents: some text by which a set was chosen on the mixture is asked again in a part. Intervals are over draws of text and facts, not over models. The facts are those that the first stage knows already, the easier ones. In the second model usage, both importances and keys go together too, though less, and the update avoids what is used. Other signs are not the same, as that of keys with the update ({result}`papers.last.key.update|.2f` and {result}`papers.second.key.update|.2f`): what rests on these holds for one model only. Memories were silenced in the first model alone, and sets of memories differ in how much they take away, which the last column of their table shows. A key is silenced at every token and not at the subject alone, so what a fact loses by it may also be lost elsewhere in its question.
#
# ## What differs from the papers
#
# | | papers | here |
# | --- | --- | --- |
# | usage | texts of pretraining, mean over tokens and then texts | rows of packed held-out text |
# | general importance | RoBERTa with its own dropout | a causal model; a tenth of each sublayer's output is dropped in these passes |
# | keys | the bare prompt and random prefixes | the bare prompt; prefixes when an edit is made |
# | where MEMIT writes | a range of layers, by tracing | the layer that trials on tuning facts chose; for the notion, each layer alone |
# | stages | Kim et al.: from one sixth of the schedule on | from one fifth on, where enough facts are known |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-ceiling
# Two measures of one and the same latent number, each with noise of its own as large as the number: what rank correlation is seen, and what does {eq}`eq-papers-corrected` make of it?
# ```
#
# ```{solution-start} ex-ceiling
# :class: dropdown
# ```

# %%
import torch

draw = torch.Generator().manual_seed(0)
latent = torch.randn(2, 400, generator=draw, dtype=torch.float64)
a, b = (latent + torch.randn(4, 2, 400, generator=draw, dtype=torch.float64) for _ in range(2))
seen = agreement.agreement(a, b)
print(f"seen {seen.raw:.2f}, ceiling {seen.ceiling:.2f}, corrected {seen.corrected:.2f}")
assert seen.raw < 0.6 and abs(seen.corrected - 1) < 0.05

# %% [markdown]
# Half of the variance is noise, so about half of the correlation is left. Without the correction one would call two perfect measures of one thing "moderately related".
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-rescaled
# Show {eq}`eq-papers-rescaled` on random matrices, and that the length of $\Delta$'s columns, the notion *update*, is *not* kept, while *written* is.
# ```
#
# ```{solution-start} ex-rescaled
# :class: dropdown
# ```

# %%
K, R = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (12, 4))
old = torch.randn(12, 60, generator=draw, dtype=torch.float64)
C = old @ old.T / 60
f = torch.rand(12, generator=draw, dtype=torch.float64) + 0.2


def update(K, C, weight=10.0):
    return torch.linalg.solve(weight * C + K @ K.T, K @ R.T).T


plain, other = update(K, C), update(f[:, None] * K, f[:, None] * C * f)
assert torch.allclose(other @ (f[:, None] * K), plain @ K)  # what it does
assert not torch.allclose(other.norm(dim=0), plain.norm(dim=0))  # update
assert torch.allclose(other.norm(dim=0) * f * K.abs().mean(1), plain.norm(dim=0) * K.abs().mean(1))  # written
print("the edit is the same, its columns are not")

# %% [markdown]
# The columns are divided by $f$, the keys multiplied. Every statement about "where an edit writes" that looks at the columns alone is a statement about the scale in which training left the memories.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Compare notions across draws, within layers, against their ceiling; then take out what they share by construction.
# - Usage and DAS's general importance are closely related, in one of two models nearly one ranking; keys follow usage; MEMIT's update avoids it.
# - Silencing adds what correlation cannot show: what is used or important is missed, what is written to most is not, not even by the facts that are to be rewritten. By update times key it is.
# - A fact is lost more often without its own key's memories than without another's; what an edit wrote is found by update times key, not by update.
# - The late model is edited better and hurt more. Entropy by itself cannot be the reason: the same function can have any.
# - Where a fact's feed-forward outputs are traced to, where its memories are missed and where it can be written need not be one place.
