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
# (ch-thousands)=
# # Writing thousands
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Write many facts at once: the whole algorithm of MEMIT, line by line; how it holds up as the facts grow in number; how many a layer can take, worked out beforehand and then measured; what makes a fact hard to write; and what an edit does to all that follows from the fact. \
# **You need.** {doc}`12_one_fact` for the update of one fact and for how a target is found; {doc}`11_knowledge_base` for which layers matter. \
# **Paper.** Meng et al. {cite}`meng2023memit`, section 4.3 with algorithm 1, section 5.2.2 with figure 5, sections 5.3 and 5.4 with figures 6 and 7, appendices F.1 to F.3 (figures 11 to 13). \
# **Reading time.** About 50 minutes.
#
# ```{runtime} 13_thousands
# ```
# :::
#
# One fact can be written by solving one equation ({doc}`12_one_fact`). But whoever keeps a model up to date has lists, not facts. Writing them one after another is slow, and each edit disturbs those before it. So let us write the whole list in one step, and ask what gives way first as the list grows.
#
# Three things can give way. The new facts may not be written fully. They may be written, but only in the words of the request. Or old facts may suffer. The scores tell these apart: **ES** and **PS** look at the new facts, plainly and in other words, **NS** at old facts of the same kind, and **S** is their harmonic mean.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the draw of facts, of their new objects and of the model's own prefixes
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
most = None  # the most facts that are written at once on this machine, more being recorded; None: what the study says
model = None  # a published model, at the scale paper: a name of kemem.studies.factual.PUBLISHED; None: its own

# %%
import math

import torch

from kemem import book, claims, plot, trace
from kemem.studies import capacity, explaining, factual, findings, hardness, implications, many, relations, thousands

lab = book.open_chapter("13_thousands", globals())
base = factual.chosen(lab)

# %% [markdown]
# All facts are ones that the model says by itself before the edit: {result}`thousands.known` of the reported part, on {result}`thousands.subjects` subjects. Its layers have {result}`thousands.memories` memories each. Two things have to be set, the weight $\lambda$ of the old memory and the clamp of the targets ({doc}`12_one_fact`); both are chosen on facts of the tuning part, which are not reported on. Facts come in an order in which each subject comes
# once before any comes twice: requests on one subject have nearly one key, and an edit can write there only the mean of what they ask.

# %%
s = thousands.settings(scale, seed=seed, dtype=dtype, model=base)
sweeps = thousands.run(lab, s, most=thousands.LIVE if most is None else most)
draws = [sweeps] + [
    thousands.run(lab, thousands.settings(scale, seed=other, dtype=dtype, model=base), recorded=True)
    for other in thousands.SEEDS[scale]
    if other != seed
]
room = sweeps.capacity.values
print(
    f"{room['known']} facts that the model knows, {room['memories']} memories a layer, "
    f"layers {', '.join(map(str, s.layers))}; lambda = {sweeps.weight:g}, clamp {sweeps.clamp:g}"
)

# %% [markdown]
# ## Many facts, one layer
#
# In {eq}`eq-association-soft` one new pair was weighed against the old memory. With $N$ new pairs nothing changes but the number of columns. Let $K$ be the new keys, one column each, and $R$ what the layer lacks at each of them. The same derivative gives
#
# ```{math}
# :label: eq-thousands-joint
# \min_{\Delta} \lVert R - \Delta K \rVert^2 + \lambda \operatorname{tr} \Delta C \Delta^{\top}
# \quad\Longrightarrow\quad
# \Delta = R K^{\top} (\lambda C + K K^{\top})^{-1} .
# ```
#
# This is *not* the sum of $N$ single edits. The inverse knows all keys: where two facts have similar keys, it finds the one change that serves both, instead of writing the common part twice.
#
# ## Many facts, several layers
#
# In GPT-J tracing finds a range of layers that carry a fact, not one, and MEMIT writes into all of them; in our model it is the lowest one and the next ({doc}`11_knowledge_base`). The target $z_i$ is set at the output $h_i^L$ of the highest layer $L$ of the range; it is found as in {eq}`eq-one-fact-target`, before any weight changes. Then the layers are written from the lowest up. What layer $l$ is asked for is
# its share of what is lacking *now*:
#
# ```{math}
# :label: eq-thousands-spread
# r_i^{l} = \frac{z_i - h_i^{L}}{L - l + 1} .
# ```
#
# With three layers the first writes a third, the second half of what remains, the last all of the rest. If each wrote its share fully, all would write equally much. What a lower layer misses, the higher ones are asked for. And since the keys of the next layer are read from the model *as changed so far*, it writes for the inputs that it will get.
#
# Here is the whole algorithm, a row of tokens at a time. `contexts` holds for each request its tokens up to the subject's last one: bare, and behind a few texts. `moments` is $C$ of each layer.


# %%
def read(memories, rows, layer, top):
    """The keys of a layer, and the stream above block `top`, at the last token of each row."""
    keys, streams = [], []
    below = {memories.down_path(layer): lambda entering: keys.append(entering[0, -1])}
    above = {memories.block_path(top): lambda leaving: streams.append(leaving[0, -1])}
    with (
        trace.observe(memories.model, below, side="input"),
        trace.observe(memories.model, above, side="output"),
    ):
        for row in rows:
            memories.model(input_ids=torch.tensor([row], device=memories.model.device))
    return torch.stack(keys), torch.stack(streams)


def memit(memories, contexts, z, layers, weight, moments):
    """What is added to the values of each layer; the model is put back."""
    deltas, before = {}, {layer: memories.values(layer).clone() for layer in layers}
    for done, layer in enumerate(layers):  # from the lowest up
        seen = [read(memories, c.to_subject, layer, layers[-1]) for c in contexts]
        others = len(seen[0][0]) - 1
        share = torch.tensor([1 / 2] + [1 / 2 / others] * others).to(z)  # the bare prompt counts half
        K = torch.stack([share @ keys for keys, _ in seen], dim=1)  # [M N]
        H = torch.stack([streams[0] for _, streams in seen], dim=1)  # [D N], bare prompts
        R = (z.T - H) / (len(layers) - done)  # this layer's share of what is lacking
        A = weight * moments[layer] + K @ K.T  # [M M]
        deltas[layer] = torch.linalg.solve(A, K @ R.T).T  # R K^T A^-1, as A is symmetric
        memories.values(layer).add_(deltas[layer])  # the next layer sees it
    for layer in layers:
        memories.values(layer).copy_(before[layer])
    return deltas


# %% [markdown]
# Does it do what the package's editor does? That one reads all rows in batches and in a single sweep upwards, and solves by a Cholesky factor. The check runs in `float64` on a few facts.

# %%
few = thousands.one(s, (sweeps.weight, sweeps.clamp), 8, written=0)
checked = capacity.algorithm(many.Benches(lab), few, memit, read)
for each in checked.values["layers"]:
    print(
        f"layer {each['layer']}: differs from the editor's by less than 1e-6 of its size: {each['distance'] < 1e-6}; "
        f"|Delta| / |W| = {each['size']:.3f}"
    )
print(f"{checked.values['facts']} facts; the model is bit for bit as it was: {checked.values['restored']}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-thousands-spread", "caption": "What the stream above the highest edited layer still lacks of its targets, in units of what it lacked before, as layer after layer is written. Dashed: if each layer wrote its share fully. Each curve begins one layer below the first that it writes. Where it lies above the dashed line, less arrived than was asked for."}, "image": {"alt": "Share of the residual that is still lacking against the number of layers written, for the critical layers, for the highest of them alone, and for all layers up to it; a dashed line falls evenly to zero."}}
SPANS = {"critical": "critical layers", "highest": "highest alone", "all up to it": "all layers up to it"}
with plot.figure(height=3.2) as axes:
    shown = []
    for index, (name, label) in enumerate(SPANS.items()):
        path = checked.values["lacking"][name]
        if path in shown:  # the critical layers may begin with the first
            continue
        shown.append(path)
        plot.series(
            axes, [p["layer"] for p in path], [100 * p["lacking"] for p in path], label, index=index,
            origin=checked.origin,
        )  # fmt: skip
    ends = checked.values["lacking"]["critical"]
    axes.plot(
        [ends[0]["layer"], ends[-1]["layer"]], [100, 0], color="#555555", linestyle="--", linewidth=1,
        label="shares written fully",
    )  # fmt: skip
    axes.set(
        xlabel="last layer that was written", ylabel="lacking (% of before)", title="The residual, layer by layer",
        ylim=(0, None),
    )  # fmt: skip
    ticks = sorted({p["layer"] for path in shown for p in path})
    axes.set_xticks(ticks, ["none" if tick < 0 else str(tick) for tick in ticks])
    axes.legend()

# %% [markdown]
# ## How it scales
#
# Now the number of facts grows. As in the paper, few facts are written in several blocks, so that as many are scored: each block is written into the unedited model, scored, and taken back. The last number is all facts that the model knows.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-thousands-scaling", "caption": "Scores of MEMIT against the number of facts that are written at once. Above: the new facts, plainly (ES) and in other words (PS). Below: old facts (NS) and the harmonic mean (S); dotted: NS before any edit. Bands: lowest to highest of the draws of facts. Stars: what the paper prints for GPT-J and ten thousand facts; it prints no numbers of its curves."}, "image": {"alt": "Two panels with a logarithmic axis of facts: above efficacy and paraphrase success, below neighbourhood success and the harmonic mean with the unedited neighbourhood success as a dotted line. Stars at ten thousand facts mark the published numbers."}}
def drawn(axes, grid, name, index):
    places, curves = thousands.across(draws, grid, name)
    if not curves:
        return
    origins = [row.origin for row in getattr(sweeps, grid).values()]
    for origin in dict.fromkeys(origins):
        own = [(x, y) for x, y, of in zip(places, curves[0], origins, strict=True) if of == origin]
        plot.series(axes, *zip(*own, strict=True), name, index=index, origin=origin)
    band = list(zip(*curves, strict=True))
    axes.fill_between(
        places, [min(c) for c in band], [max(c) for c in band], color=plot.COLOURS[index], alpha=0.15, linewidth=0
    )  # fmt: skip


PUBLISHED = {
    "ES": claims.CLAIMS["memit.5"].published["ES: MEMIT"],
    "NS": claims.CLAIMS["memit.7"].published["MEMIT"],
    "S": claims.CLAIMS["memit.4"].published["S: MEMIT"],
}
with plot.figure(rows=2, height=2.8, sharex=True) as panels:
    for axes, names in zip(panels, (("ES", "PS"), ("NS", "S")), strict=True):
        for index, name in enumerate(names):
            drawn(axes, "scaling", name, index)
            if name in PUBLISHED:
                axes.plot(
                    [10_000], [PUBLISHED[name]], "*", color=plot.COLOURS[index], markersize=9,
                    label=f"{name} (published)",
                )  # fmt: skip
        axes.set(xscale="log", ylabel="success (%)", ylim=(0, 102))
    before = thousands.curve(sweeps.scaling, "NS", "before")
    panels[1].plot(list(sweeps.scaling), before, color="#555555", linestyle=":", label="NS, unedited")
    for axes, title in zip(panels, ("New facts", "Old facts, and S"), strict=True):
        axes.set(title=title)
        axes.legend(loc="lower left")
    panels[1].set(xlabel="facts written at once")


# %% tags=["hide-input"]
def cell(row, name, when="after"):
    value = thousands.score(row, name, when)
    return "none" if value is None else f"{value:.2f}" if name == "nats" else f"{value:.1f}"


COLUMNS = ("S", "ES", "PS", "NS", "NS+", "NM", "GE", "RS", "nats")
UNITS = {"GE": "", "RS": "", "nats": " a token"}


def scores_table(rows, first, columns=COLUMNS):
    """Scores after the edits by whatever names the rows."""
    return plot.table(
        [(str(name), *(cell(row, column) for column in columns)) for name, row in rows.items()],
        (first, *(f"{c}{UNITS.get(c, ' (%)')}" for c in columns)),
    )


scores_table({f"{count}": row for count, row in sweeps.scaling.items()}, "facts at once")

# %% [markdown]
# NS+ asks the old facts with the edit stated before. NM is the difference of the probabilities themselves. GE is the entropy of what the model writes on the subjects, RS how much that resembles what is told of the new object's other subjects, and the last column is the loss on ordinary text. Before any edit, on the facts of the last row:

# %% tags=["hide-input"]
last = list(sweeps.scaling.values())[-1]
plot.table(
    [("before", *(cell(last, c, "before") for c in COLUMNS)), ("after", *(cell(last, c) for c in COLUMNS))],
    ("all facts", *(f"{c}{UNITS.get(c, ' (%)')}" for c in COLUMNS)),
)

# %% [markdown]
# Up to an eighth of the memories nearly all goes well: {result}`thousands.n 64.ES|.0f` of the new facts are taken, and {result}`thousands.n 64.PS|.0f` of their paraphrases. Old facts give way first: NS falls from {result}`thousands.n 1.NS|.1f` with one fact to {result}`thousands.n 16.NS|.1f` with sixteen and {result}`thousands.n 64.NS|.1f` with sixty-four, and NS+ faster still. Then everything
# bends at once, between a quarter of the memories and all of them, and with more facts than memories the scores are near those of a coin. Ordinary text tells it earlier than any of them: its loss is {result}`thousands.n 64.nats|.2f` a token at sixty-four facts, of {result}`thousands.n 64.nats before|.2f` before, and {result}`thousands.n 312.nats|.1f` at the load of the paper. That load, as many
# facts to a memory as ten thousand are to those of GPT-J, is far beyond what this model bears: S is {result}`thousands.n 312.S|.0f` there, far below the star of the paper.
#
# From one fact at a time to all of them, ES goes from {result}`thousands.first.ES|.1f` to {result}`thousands.all.ES|.1f`, PS from {result}`thousands.first.PS|.1f` to {result}`thousands.all.PS|.1f`, and NS from {result}`thousands.first.NS|.1f` to {result}`thousands.all.NS|.1f`, where the unedited model has {result}`thousands.all.NS before|.1f`.
#
# ## How many facts fit
#
# Can we know beforehand when the curve bends? What the update leaves unwritten is in {eq}`eq-thousands-joint` already. Put $\Delta$ in: of $R$ there remains $R - \Delta K = R (I - P)$ with $P = K^{\top} (\lambda C + K K^{\top})^{-1} K$. So fact $i$ keeps the share $1 - P_{ii}$ of its own residual unwritten, whatever the residual is, and on average over the facts
#
# ```{math}
# :label: eq-thousands-dimension
# u = 1 - \frac{d}{N} , \qquad d = \operatorname{tr} P = \sum_{j} \frac{e_j}{e_j + \lambda} ,
# ```
#
# where $e_j$ are the eigenvalues of $K^{\top} C^{-1} K$. We call $d$ the *effective dimension*: the number of directions in which the layer can be written freely. Each direction counts one where the new keys are strong against the weighted old ones, and nothing where they are weak. There are at most $M$ directions, so $d$ stops growing at $M$ at the
# latest, and from there on $u$ must grow.
#
# Note what is *not* in it. The width $D$ of the stream drops out: every coordinate of the value is a regression of its own, over the same keys. A layer's capacity is a matter of its $M$ memories, not of its $D M$ weights.
#
# What if we know of the keys only how many there are? Suppose they point anywhere once $C$ is divided out, with $k^{\top} C^{-1} k = g M$, where $g$ is one for ordinary keys. Leave one key out: it meets all others through $k^{\top} (\lambda C + K' K'^{\top})^{-1} k$, and for a key that points anywhere this is near its mean, $g \, (M - d') / \lambda$, where
# $d'$ is the dimension that the others take. That closes the circle:
#
# ```{math}
# :label: eq-thousands-isotropic
# u = \frac{1}{1 + \dfrac{g}{\lambda} \bigl( M - (N - 1)(1 - u) \bigr)} .
# ```
#
# For $N = 1$ this is the $\frac{1}{1 + s}$ of {doc}`12_one_fact`. As $\lambda$ vanishes, $u$ is zero up to $N = M$ and $1 - M / N$ beyond: a hard wall. With $\lambda$ the wall becomes a slope.
#
# Over several layers, each is asked for $\frac{1}{L - l + 1}$ of what is lacking. If no layer disturbed the keys of the next, there would remain
#
# ```{math}
# :label: eq-thousands-whole
# \prod_{l} \Bigl( 1 - \frac{1 - u_l}{L - l + 1} \Bigr) .
# ```
#
# And what do the old keys bear? Their mean squared change, in units of the mean square of what the layer gives them:
#
# ```{math}
# :label: eq-thousands-disturbance
# \frac{\operatorname{tr} \Delta C \Delta^{\top}}{\operatorname{tr} W C W^{\top}} .
# ```

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-thousands-capacity", "caption": "Top: the share of what the facts lacked that is left unwritten. From below: keys without any structure, the keys as they are, keys and residuals of the unedited model, and as measured in the edited one. Middle: what old keys bear in each written layer. Bottom: the scores. Vertical lines: dotted, the memories of a layer; dash-dotted, the subjects of all facts."}, "image": {"alt": "Three panels over the number of facts on a logarithmic axis: the share left unwritten by three predictions and as measured, the change of old keys by layer, and the scores ES, PS and NS."}}
points, counts = room["points"], [p["count"] for p in room["points"]]
LEFT = {
    "isotropic": "foreseen, any keys",
    "keys": "foreseen, these keys",
    "residuals": "foreseen, keys and residuals",
    "left": "measured",
}
with plot.figure(rows=3, height=2.5, sharex=True) as panels:
    for index, (name, label) in enumerate(LEFT.items()):
        plot.series(
            panels[0], counts, [100 * p[name] for p in points], label, index=index, origin=sweeps.capacity.origin
        )  # fmt: skip
    for index, layer in enumerate(s.layers):
        plot.series(
            panels[1], counts, [100 * p["disturbance"][index] for p in points], f"layer {layer}", index=index,
            origin=sweeps.capacity.origin,
        )  # fmt: skip
    for index, name in enumerate(("ES", "PS", "NS")):
        drawn(panels[2], "scaling", name, index)
    for axes, title, unit in zip(
        panels,
        ("Left unwritten", "What old keys bear", "Scores"),
        ("% of the residual", "% of old outputs", "success (%)"),
        strict=True,
    ):
        axes.axvline(room["memories"], color="#999999", linestyle=":", linewidth=1)
        axes.axvline(room["subjects"], color="#999999", linestyle="-.", linewidth=1)
        axes.set(xscale="log", title=title, ylabel=unit)
        axes.legend(fontsize=7.5)
    panels[1].set(yscale="log")
    panels[2].set(xlabel="facts written at once")

# %% tags=["hide-input"]
plot.table(
    [
        (
            f"{p['count']}", f"{p['rank'][-1]:.1f}", f"{p['dimension'][-1]:.1f}", f"{p['size'][-1]:.2f}",
            f"{100 * p['unwritten'][-1]:.1f}", *(f"{100 * p[name]:.1f}" for name in LEFT),
        )
        for p in points
    ],
    (
        "facts", "effective rank of the keys", "effective dimension d", "g of the keys",
        "unwritten by the highest layer (%)", *(f"{label} (%)" for label in LEFT.values()),
    ),
)  # fmt: skip

# %% [markdown]
# The table is of the highest layer, save its last four columns. The *effective rank* is $(\operatorname{tr} K K^{\top})^2 / \lVert K K^{\top} \rVert^2$: over how many directions the keys spread evenly. Ordinary keys of that layer have {result}`capacity.rank|.1f`.
#
# What is left unwritten explains only part of the bend. At the paper's load a quarter of the residuals is left ({result}`capacity.n 312.left|.0f`), of which the keys alone foresee less than half: {result}`capacity.n 312.residuals|.0f` with their residuals. But ES has fallen by a third by then. The middle panel shows the rest: old outputs of the highest layer change by {result}`capacity.n 64.disturbance|.0f` of
# their own mean square at sixty-four facts, and by {result}`capacity.n 312.disturbance|.0f` at the paper's load. Then the layer's ordinary answers are small beside what was added to them, for the new subjects too, whose keys share directions with everybody's: {result}`capacity.n 312.rank|.0f` of effective rank for so many keys. Not room runs out first but the peace between facts.
#
# With all facts at once, keys without structure would leave {result}`capacity.all.isotropic|.1f`, these keys {result}`capacity.all.keys|.1f` by {eq}`eq-thousands-dimension`, keys and residuals together {result}`capacity.all.residuals|.1f`, and {result}`capacity.all.left|.1f` were measured. The difference between the first two is what structure
# makes: subjects that share words have keys that are alike, and from {result}`thousands.subjects` facts on, subjects come again. The third differs from the second where residuals are larger in the directions that are hard to write, and because in a ratio of lengths large residuals count for more. The last differs from the third by what the layers do to one another.
#
# The weight decides where the slope lies. From the keys alone, for one layer:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-thousands-room", "caption": "The share that the highest edited layer leaves unwritten, from its keys alone, by the number of facts and for each weight of the old memory. Dark curves: the old memory weighs much."}, "image": {"alt": "Curves of the unwritten share against the number of facts on a logarithmic axis, one for each weight lambda, those of large weights above those of small ones."}}
import matplotlib

with plot.figure(height=3.2) as axes:
    colours = matplotlib.colormaps["cividis_r"]
    for index, x in enumerate(s.weights):
        axes.plot(
            counts, [100 * p["by_weight"][-1][index] for p in points], marker=plot.MARKERS[index % 8],
            color=colours(0.15 + 0.85 * index / max(1, len(s.weights) - 1)), label=f"λ = {x:g}",
        )  # fmt: skip
    axes.axvline(room["memories"], color="#999999", linestyle=":", linewidth=1)
    axes.set(
        xscale="log", xlabel="facts written at once", ylabel="left unwritten (%)",
        title=f"Room in layer {s.layers[-1]} ({sweeps.capacity.origin})",
    )  # fmt: skip
    axes.legend(ncols=2)

# %% [markdown]
# How does the paper's own case look in these units? GPT-J has $M = 16\,384$ memories a layer. Its ten thousand facts are $N = 0.6 \, M$, and its $\lambda = 15\,000$ is $0.9 \, M$. So the paper's curve ends before the wall. An exercise below works out what is left there.
#
# ## The weight of the old memory
#
# Now {result}`thousands.at`, and $\lambda$ over four decades. A heavy old memory protects old facts and hinders new ones. The paper finds that NS and GE rise with $\lambda$, that ES and PS fall, and that S is best in between.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-thousands-weights", "caption": "Scores against the weight of the old memory. Above: ES, PS, NS and S. Below: GE, the entropy of what is written. Bands: lowest to highest of the draws of facts. The dotted line is the weight that was chosen on tuning facts."}, "image": {"alt": "Two panels with a logarithmic axis of lambda: above the four success scores, below the entropy of generated text; a vertical dotted line marks the chosen weight."}}
with plot.figure(rows=2, height=2.8, sharex=True) as panels:
    for index, name in enumerate(("ES", "PS", "NS", "S")):
        drawn(panels[0], "weights", name, index)
    drawn(panels[1], "weights", "GE", 0)
    for axes, unit, title in zip(panels, ("success (%)", "GE"), ("Scores", "Fluency"), strict=True):
        axes.axvline(sweeps.weight, color="#999999", linestyle=":", linewidth=1)
        axes.set(xscale="log", ylabel=unit, title=title)
        axes.legend()
    panels[1].set(xlabel="weight λ of the old memory")

# %% [markdown]
# Here NS rises with the weight and ES and PS fall, as in the paper, but only from about a fifth of the memories on; below, nothing moves. GE does not rise: it moves by one or two in a hundred, and not in one direction. $S$ has no peak but a plateau that ends: a light old memory costs nothing at this number of facts, since the new keys are few against the memories, and what old facts suffer is set by the clamp. A heavy one stops the writing: at
# $\lambda$ of three thousand ES is {result}`thousands.weight 3000.ES|.0f`.
#
# The weight that was chosen on tuning facts is {result}`thousands.weight|g`, which is to be read against {result}`thousands.memories` memories, with a clamp of {result}`thousands.clamp|g`. With it S is {result}`thousands.critical.S|.1f` on the reported facts.
#
# All of this is at {result}`thousands.at`. Is the best weight the same when there are more facts? At the load of the paper the trials were made once more, on tuning facts, with heavier old memories and both clamps, and the curve of {numref}`fig-thousands-scaling` was drawn again with what was best there.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-thousands-heavy", "caption": "The harmonic mean S by the number of facts, with weight and clamp chosen on few facts (as everywhere else in this chapter) and with those chosen at the load of the paper. Bands: lowest to highest of the draws of facts."}, "image": {"alt": "Two curves of S against the number of facts on a logarithmic axis: the one with the setting for few facts falls earlier and further than the one with the setting for many."}}
with plot.figure(height=3.0) as axes:
    shown = (("scaling", "chosen on few facts"), ("heavy", "chosen at the load of the paper"))
    for index, (grid, label) in enumerate(shown):
        places, found = thousands.across(draws, grid, "S")
        band = list(zip(*found, strict=True))
        plot.series(axes, places, found[0], label, index=index, origin=sweeps.published.origin)
        axes.fill_between(
            places, [min(c) for c in band], [max(c) for c in band], color=plot.COLOURS[index], alpha=0.15, linewidth=0
        )  # fmt: skip
    axes.set(
        xscale="log", xlabel="facts written at once", ylabel="S (%)", ylim=(0, 102), title="One setting does not fit all"
    )  # fmt: skip
    axes.legend(loc="lower left")

# %% tags=["hide-input"]
scores_table(
    {f"λ = {x:g}, clamp {c:g}": row for (x, c), row in sweeps.loaded.items()},
    f"{sweeps.load} tuning facts", ("S", "ES", "PS", "NS", "NS+", "NM", "nats"),
)  # fmt: skip

# %% [markdown]
# ## Which layers
#
# The same facts, the same weight and clamp, other layers. For each range the targets are found anew, above its highest layer; only the first rows of the table share theirs, because they end at the same layer. "Late" and "all but the last" end one block below the last: what the last block puts out at the subject is read by no later token, so nothing that is
# written there can change what the model says further on in the sentence. Its row among the single layers shows that.

# %% tags=["hide-input"]
spans = thousands.spans(s)
named = {name: row for name, row in sweeps.layers.items() if not name.startswith("layer ")}


def told(name):
    where = spans.get(name)
    return name if where is None else f"{name}: {', '.join(map(str, where))}"


scores_table(
    {told(name): row for name, row in named.items()}, "layers", ("S", "ES", "PS", "NS", "NS+", "NM", "nats")
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-thousands-layers", "caption": "All facts of the sweep written into one layer alone, by layer. Dashed: S with all critical layers."}, "image": {"alt": "Scores ES, PS, NS and S against the single layer that is written, with a dashed line at the S of the critical layers together."}}
with plot.figure(height=3.2) as axes:
    alone = {
        int(name.removeprefix("layer ")): row for name, row in sweeps.layers.items() if name not in named
    }
    origin = next(iter(alone.values())).origin
    for index, name in enumerate(("ES", "PS", "NS", "S")):
        found = thousands.curve(alone, name)
        kept = [(layer, y) for layer, y in zip(alone, found, strict=True) if y is not None]
        plot.series(axes, [x for x, _ in kept], [y for _, y in kept], name, index=index, origin=origin)
    whole = thousands.score(sweeps.layers["critical"], "S")
    axes.axhline(whole, color=plot.COLOURS[3], linestyle="--", linewidth=1, label="S, critical layers")
    axes.set(xlabel="layer", ylabel="success (%)", title="One layer alone", ylim=(0, 102), xticks=list(alone))
    axes.legend()

# %% [markdown]
# With the same targets, two layers are better here than the higher one alone in every score: the lower one takes half of the way, and the change that each needs is smaller. But the *lower* one alone, with targets of its own, does as well as both. So it is less the number of layers that counts than having the first among them, where tracing put the lookup; the further up, the less is written and the
# less of it reaches other phrasings.
#
# All critical layers have S {result}`thousands.critical.S|.1f`, the highest of them alone {result}`thousands.highest 1.S|.1f`, late layers {result}`thousands.late.S|.1f`. The paper also writes into attention: with its output projections in the same layers as the memory, S is {result}`thousands.attention.S|.1f`.
#
# ## What it costs
#
# Milliseconds a fact, by what they go into: the search for targets, reading keys, and solving. Targets depend on neither weight nor count, and are searched for once; the table counts them with what the search took.

# %% tags=["hide-input", "nbval-ignore-output"]
plot.table(
    [
        (f"{count}", *(f"{1000 * spent:.2f}" for spent in thousands.seconds(row).values()))
        for count, row in sweeps.scaling.items()
    ],
    (
        f"facts at once ({last.origin})",
        *(f"{phase} (ms a fact)" for phase in ("targets", "keys", "solving")),
    ),
)

# %% [markdown]
# Solving takes one factor of an $M \times M$ matrix for a layer, however many facts there are, or of an $N \times N$ one where there are few. So what solving costs need not grow in proportion to the facts.

# %% [markdown]
# ## What makes a fact hard to write?
#
# An average over facts hides which of them were hard. The authors split their scores by relation (figure 6) and find large differences: some relations lose their neighbours, others are not written at all. They give no cause, and a review asks for one. A cause would be worth having. Whoever knows beforehand which facts are hard can check those, write them in
# smaller batches, or weigh the old memory more.
#
# So we write the facts of one relation at a time, as many of each, by three methods, and look at the differences. Then we ask whether anything that can be measured *before* the edit tells how it will go.

# %%
by_relation = relations.run(lab, scale, seed=seed, live=6, model=base) if factual.has_table(base) else ()
if not by_relation:
    print(f"What a relation is like and what follows from a fact: {factual.NO_TABLE}.")
else:
    names = sorted(
        relations.shared(by_relation),
        key=lambda name: sum(relations.score(each.alone["MEMIT"][name]) for each in by_relation),
    )
    draws = f"{len(by_relation)} draws of facts" if len(by_relation) > 1 else "one draw of facts"
    print(f"{len(names)} relations, {by_relation[0].hardness.settings['count']} facts of each, {draws}")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-relations-scores", "caption": "S of facts of one relation, written at once by three methods; reported facts, as many of each relation. Mean over draws of facts; bars are intervals over draws, where there is more than one."}, "image": {"alt": "For each relation, in the order of MEMIT's score, three points with intervals: the score S after edits by MEMIT, by fine-tuning with weight decay and by MEND."}}
def plotted(axes, place, values, index, label):
    """A mean with its interval, at a height."""
    seen = findings.change(values)
    bars = None if seen.low is None else [[seen.mean - seen.low], [seen.high - seen.mean]]
    axes.errorbar(
        [seen.mean], [place], xerr=bars, color=plot.COLOURS[index], marker=plot.MARKERS[index], linestyle="none", label=label
    )


def said(name):
    return name.replace("_", " ")


if by_relation:
    with plot.figure(height=1.4 + 0.34 * len(names)) as axes:
        for index, method in enumerate(relations.METHODS):
            for row, name in enumerate(names):
                scores = [relations.score(each.alone[method][name]) for each in by_relation]
                plotted(axes, row + 0.2 * (1 - index), scores, index, f"{method} ({draws})" if row == 0 else None)
        axes.set(
            yticks=range(len(names)), yticklabels=[said(name) for name in names], xlabel="S (%)", xlim=(0, 105),
            title="Facts of one relation, by method",
        )  # fmt: skip
        axes.figure.legend(loc="outside lower center", ncols=2)

# %% [markdown]
# Differences between relations could be chance: each point rests on {result}`relations.facts` facts. So the easiest and the hardest relation were chosen on *other* facts, those that are kept for tuning, and are compared on the reported ones. The easiest was *{result}`relations.easiest`*, with an S of {result}`relations.easiest.S|.0f` on
# reported facts; the hardest *{result}`relations.hardest`*, with {result}`relations.hardest.S|.0f`.
#
# Over relations, MEMIT's S goes from {result}`relations.MEMIT.least|.0f` to {result}`relations.MEMIT.most|.0f`. Fine-tuning, with {result}`relations.FT-W.mean|.0f` on average, is not merely lower, it is uneven: how well it does depends on the relation far more. MEND has {result}`relations.MEND.mean|.0f`.
#
# ## Could it have been known before?
#
# Seven things that can be measured on the unedited model are candidates. Each has a reason to matter.
#
# - *Prior.* After other subjects, is the new object likelier than the old one? If the model likes to say it anyway, it should be easy to write, and hard to keep from spreading.
# - *Certainty.* The surer the model is of the true object, the more has to be overcome.
# - *Candidates* and *length.* With more possible objects each is rarer; an object of several tokens has to be right in each.
# - *Likeness of keys.* A key like those of other subjects drags their answers along. What counts is likeness as the editor sees it, in the metric of what the layer has stored:
#
# ```{math}
# :label: eq-key-likeness
# \cos_C(a, b) = \frac{a^{\top} C^{-1} b}{\sqrt{a^{\top} C^{-1} a} \, \sqrt{b^{\top} C^{-1} b}} ,
# \qquad C = \operatorname{E}[k k^{\top}] .
# ```
#
# Under it two keys are alike when they share what is *unusual* among keys. It is measured with neighbours, which share the true object, and between the edited facts themselves.
#
# - *Site.* Causal tracing says where a fact is read. If it is not at the subject's last token, an edit there writes beside the place.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-relations-predictors", "caption": "What is measured before the edit against S after it, a point for each relation. Means over draws of facts. In each title the rank correlation; an interval is in the table below."}, "image": {"alt": "Seven small scatter plots, one for each predictor, with a point for each relation: predictor across, score S of MEMIT up."}}
if by_relation:
    told, X, S = relations.table(by_relation)
    SHORT = {
        "prior": "prior (nats a token)", "certainty": "log p of the true object (nats)", "candidates": "objects (log)",
        "length": "tokens of the new object", "neighbours": "cosine with neighbours' keys",
        "subjects": "cosine of edited keys", "site": "share of trace at the last token",
    }  # fmt: skip
    with plot.figure(columns=2, rows=4, height=2.2) as grid:
        panels = list(grid.flat)
        for column, (axes, (name, label)) in enumerate(zip(panels, SHORT.items(), strict=False)):
            axes.plot(X[:, column], S, "o", color=plot.COLOURS[0])
            rank = explaining.correlation(X[:, column], S)[0]
            axes.set(xlabel=label, ylabel="S (%)", title=f"{name}: {rank:+.2f}".replace("-", "\N{MINUS SIGN}"))
        panels[-1].set_axis_off()

# %% tags=["hide-input"]
best, chance = explaining.strongest(X, S) if by_relation else (None, None)


def ranked(column, response):
    r, low, high = explaining.correlation(X[:, column], response)
    ends = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    return f"{r:+.2f}{ends}".replace("-", "\N{MINUS SIGN}")


responses = {}
if by_relation:
    responses = {"S": S, **{name: relations.table(by_relation, name)[2] for name in ("ES", "PS", "NS")}}
plot.table(
    [
        (hardness.PREDICTORS[name], *(ranked(column, own) for own in responses.values()))
        for column, name in enumerate(hardness.PREDICTORS)
    ],
    ("measured before, over relations", *(f"rank correlation with {name}" for name in responses)),
) if by_relation else None

# %% [markdown]
# The strongest of seven is strong by choice alone. How strong would the strongest be, had the scores been dealt out at random among the relations?

# %% tags=["hide-input"]
if by_relation:
    print(
        f"strongest for S: {list(hardness.PREDICTORS)[best]}; with scores dealt out at random one of the seven is as strong "
        f"in {100 * chance:.0f} % of all cases"
    )

# %% [markdown]
# ## A rule, and its trial
#
# A correlation that was looked for on all relations explains nothing yet. A rule should hold for relations that it has not seen. So the relations are cut in two halves. On one half a ridge regression is fitted to the standardised predictors $z_r$,
#
# ```{math}
# :label: eq-hardness-ridge
# \min_{b} \; \sum_{r \in \text{half}} \bigl( S_r - \bar S - b^{\top} z_r \bigr)^2 + \alpha \, n \lVert b \rVert^2 ,
# ```
#
# where $n$ relations are fitted and $\alpha$ was fixed before any score was seen. On the other half it is asked for its guesses. $R^2$ compares them with the plainest guess, the mean of the fitted half: above zero the rule is better than knowing nothing. One cut could be lucky, so all of this is done for many random cuts; and because even many cuts
# share the same few relations, all cuts are made once more with the scores dealt out at random.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-relations-rule", "caption": "A rule fitted on half of the relations and tried on the other half. Bars: the median over cuts, for scores dealt out at random among the relations, many times. Line: the same median for the true scores."}, "image": {"alt": "Two histograms of what chance gives, of out-of-half R squared and of rank correlation, each with a vertical line where the true scores lie."}}
if by_relation:
    rule = explaining.explained(X, S)
    with plot.figure(columns=2, height=3.0) as panels:
        for axes, (name, label) in zip(
            panels, (("R2", "R² on the other half"), ("rank", "rank correlation")), strict=True
        ):
            axes.hist(rule[name]["chance"], bins=24, color="#999999", label="scores dealt out at random")
            axes.axvline(rule[name]["median"], color=plot.COLOURS[1], label="true scores")
            axes.set(xlabel=f"{label} (median of cuts)", ylabel="random deals", title=label)
        panels[0].legend()

# %% [markdown]
# Over cuts the median of $R^2$ is {result}`relations.rule.R2|.2f` (the cut that was fixed beforehand: {result}`relations.rule.R2.first|.2f`), where chance gives {result}`relations.rule.R2.chance|.2f`; of the rank correlation {result}`relations.rule.rank|.2f`, where chance gives {result}`relations.rule.rank.chance|.2f`. A random deal does as well in a share
# of {result}`relations.rule.R2.p|.2f` and {result}`relations.rule.rank.p|.2f` of all cases.
#
# So the rule holds for relations that it has not seen, if weakly: it puts them in order far better than chance would, but says little of how large the differences are. What it leans on is overlap. The strongest predictor by itself is *{result}`relations.best`*, and random scores yield as strong a one in a share of {result}`relations.best.p|.3f` of all deals: where the subjects of a relation have keys like those
# of their neighbours, what is written for one is read by the other. The place of the lookup, which tracing sees, tells nothing here.
#
# ## Two relations at once
#
# Do facts disturb each other more when they are alike? The authors mix two relations, half of each, and find a score near the mean of the two alone (section 5.4). Their pairs are of a person's place and language, of work and language, of two relations with one kind of object, and of two about one kind of subject. Ours are chosen in the same way.
#
# There is a trap in "the mean of the two". S is a harmonic mean, and harmonic means are concave: take two halves, average their ES, PS and NS and only then form S, and it is never below the mean of the two S.
#
# ```{math}
# :label: eq-pooled-score
# S\!\left( \tfrac{1}{2}(x + y) \right) \;\ge\; \tfrac{1}{2} \bigl( S(x) + S(y) \bigr) ,
# \qquad x, y = (\text{ES}, \text{PS}, \text{NS}) .
# ```
#
# So a mixture in which nothing disturbs anything scores *above* the mean. The fair comparison is with both halves taken together. Both are shown.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-relations-mixtures", "caption": "Two relations written at once, half of each, beside as many facts of each alone: S of the mixture, the mean of both alone as in the paper, and S of both alone taken together. Mean over draws of facts, with intervals where there is more than one draw."}, "image": {"alt": "For each pair of relations and number of facts three points: the score of the mixture, the mean of both relations alone, and the score of both taken together."}}
if by_relation:
    pairs = [key for key in by_relation[0].pairs if all(key in each.pairs for each in by_relation)]
    SERIES = {
        "mixture": lambda rows: relations.score(rows[0]),
        "mean of both alone": lambda rows: sum(map(relations.score, rows[1:])) / 2,
        "both alone, taken together": lambda rows: relations.pooled(rows[1:]),
    }
    with plot.figure(height=1.6 + 0.5 * len(pairs)) as axes:
        for index, (label, of) in enumerate(SERIES.items()):
            for row, key in enumerate(pairs):
                values = [of(each.pairs[key]) for each in by_relation]
                plotted(axes, row + 0.2 * (1 - index), values, index, f"{label} ({draws})" if row == 0 else None)
        axes.set(
            yticks=range(len(pairs)), yticklabels=[f"{said(a)},\n{said(b)}: {n} facts" for a, b, n in pairs], xlabel="S (%)",
            title="Two relations at once",
        )  # fmt: skip
        axes.figure.legend(loc="outside lower center", ncols=2)

# %% [markdown]
# The other end of the same question: facts of *one* relation against as many facts of all of them by turns. Alone a relation has {result}`relations.MEMIT.mean|.1f` on average; as many facts of all relations together have {result}`relations.many|.1f`. Here too the table of claims has both comparisons.
#
# Most mixtures lie above the mean of their two relations, as they should where nothing disturbs anything.
#
# ## What follows from a fact
#
# A fact does not stand alone. Whoever is employed by a company is on its staff; a city in another region may be in another country; the older is not the younger. A person who learns one learns the other. What does an edit do?
#
# One fact at a time is written, by MEMIT, and the model is put back in between. Before and after, two questions are asked: the fact itself, and one whose answer *follows*. The world of {doc}`11_knowledge_base` has a table of what follows from what:
#
# - **inverse, symmetric, order**: the same fact, read from its object. *A works for B* makes *B employs A* true.
# - **chain**: *city, region, country*. Another region can mean another country.
# - **two steps**: one question about two facts. *The region of the birthplace of A* changes with the birthplace.
#
# As with any edit, success means that the answer that follows is likelier than the one that was true. As controls the consequence is written by *an edit of its own*, and fact and consequence *together*: if these succeed and the fact alone does not, the editor could have written it, but nothing told it to.

# %%
following = implications.draws(lab, scale, seed=seed, model=base) if factual.has_table(base) else []
if following:
    print(
        f"edits with something that follows, {draws}: "
        + ", ".join(f"{way} {sum(row.values['ways'][way]['facts'] for row in following)}" for way in implications.WAYS)
    )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-implications", "caption": "Single edits by MEMIT: how often the answer that follows is likelier than the one that was true. Before, after the fact was written, after the consequence had an edit of its own, and after both were written together. Mean over draws of facts; bars are intervals over draws, or over facts where there is one draw."}, "image": {"alt": "For each way in which something follows from a fact, four points: success on the implied question before the edit, after it, after an edit of its own, and after both edits together."}}
if following:
    WHEN = {"before": "before", "after": "after the fact", "own": "an edit of its own", "both": "both together"}
    asked = [way for way in implications.WAYS if any(row.values["ways"][way]["facts"] for row in following)]
    with plot.figure(height=1.6 + 0.5 * len(asked)) as axes:
        for index, (when, label) in enumerate(WHEN.items()):
            for row, way in enumerate(asked):
                found = [own.values["ways"][way][when] for own in following if own.values["ways"][way]["facts"]]
                place, name = row + 0.18 * (1.5 - index), label if row == 0 else None
                if len(found) > 1:
                    plotted(axes, place, [mean for mean, _, _ in found], index, name)
                else:
                    ((mean, half, _),) = found
                    axes.errorbar(
                        [mean], [place], xerr=half, color=plot.COLOURS[index], marker=plot.MARKERS[index], linestyle="none",
                        label=name,
                    )  # fmt: skip
        axes.set(yticks=range(len(asked)), yticklabels=asked, xlabel="success (%)", xlim=(-4, 104), title="What follows from an edited fact")
        axes.figure.legend(loc="outside lower center", ncols=2)


# %% [markdown]
# Success turns over only where the order of two probabilities does. Smaller movements show in the probabilities themselves: of the answer that follows, and for reversed questions of the one that has become *false*, the old object's.


# %% tags=["hide-input"]
def moved(way, name):
    value = implications.over(following, way, name)
    return "none" if value is None else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def share(way, name):
    return f"{implications.over(following, way, name):.0f} %"


plot.table(
    [
        (way, share(way, "written"), share(way, "before"), share(way, "after"), moved(way, "gained"), moved(way, "turned"))
        for way in asked
    ],
    (
        "what follows", "the fact is written", "what follows, before", "what follows, after",
        "log p of what follows, change (nats a token)", "log p of the old reverse, change (nats a token)",
    ),
) if following else None  # fmt: skip

# %% [markdown]
# One of each:


# %% tags=["hide-input"]
def chances(each, place):
    return " to ".join(f"{100 * math.exp(-each['losses'][when][place]):.0f} %" for when in ("before", "after"))


plot.table(
    [
        (
            each["way"], plot.plain(f"{each['fact'][0]} ... {each['fact'][2]}"), chances(each, 0),
            plot.plain(f"{each['follows'][0]} ... {each['follows'][2]}"), chances(each, 2),
        )
        for each in following[0].values["examples"]
    ],
    ("what follows", "written", "its probability", "so it should be", "its probability"),
) if following else None  # fmt: skip

# %% [markdown]
# ## Kinds of knowledge
#
# The paper edits facts of the form *subject, relation, object*, nearly all of them about people and places. Is anything different about years, numbers, word forms or the steps of a recipe? Each kind, written singly; where no other subject shares an object, as with word forms, there are no neighbours and no NS.


# %% tags=["hide-input"]
def scored(kind, when, name):
    found = [row.values["kinds"][kind][when][name] for row in following]
    known = [value for value in found if value is not None]
    return f"{sum(known) / len(known):.0f} %" if known else "none"


kinds = following[0].values["kinds"] if following else {}
plot.table(
    [
        (
            kind, sum(row.values["kinds"][kind]["facts"] for row in following),
            f"{kinds[kind]['known']} of {kinds[kind]['asked']}", *(scored(kind, "after", name) for name in ("ES", "PS", "NS")),
            scored(kind, "before", "NS"),
        )
        for kind in kinds
        if kinds[kind]["facts"]
    ],
    ("kind", "facts edited, all draws", "known, first draw", "ES", "PS", "NS", "NS before"),
) if following else None  # fmt: skip

# %% [markdown]
# ## What holds here
#
# From the paper: what MEMIT costs the neighbours ({claim}`memit.7`), what the weight does ({claim}`memit.12`), what the layers do ({claim}`memit.13`), MEMIT above fine-tuning and MEND in each relation ({claim}`memit.14`), and a mixture near the mean of its two relations ({claim}`memit.15`). From the reviews: that facts which are alike are written as well as others
# ({claim}`review.similar-facts`), that some relations are hard whatever the subject ({claim}`review.hard-relations`), and that the reverse of a fact needs an edit of its own ({claim}`review.reverse-fact`). For the weight, S "in between" is that at the weight chosen on tuning facts; the best of the shown points would lie above both ends merely for having been picked. Where a
# mixture is compared, the first line takes the mean of scores, as the paper does; the second takes the facts together.

# %% tags=["hide-input"]
claims.table(
    lab,
    *(claims.CLAIMS[f"memit.{number}"] for number in (7, 12, 13, 14, 15)),
    *(claims.CLAIMS[f"review.{name}"] for name in ("similar-facts", "hard-relations", "reverse-fact")),
)

# %% [markdown]
# ## What to conclude
#
# *With few facts everything holds.* Up to sixteen at once ES, PS and NS all are above nine in ten; with sixty-four, an eighth of the memories, NS alone is not. Beyond a quarter of the memories the model gives way.
#
# *A setting is right for a number of facts.* With few, a light old memory does no harm. At the load of the paper it does: with what was chosen there, $\lambda$ of {result}`thousands.heavy.weight|g`, S is {result}`thousands.heavy 312.S|.0f` in place of {result}`thousands.n 312.S|.0f`, and the neighbours go from {result}`thousands.heavy 312.NS before|.0f` to {result}`thousands.heavy 312.NS|.0f`. In units of $M$ that weight
# is near the paper's own. Whoever edits many should choose on many.
#
# *Layers matter more than their number.* Late layers have S {result}`thousands.late.S|.0f`, attention in the early ones {result}`thousands.attention.S|.0f` with the worst NS of all, {result}`thousands.attention.NS|.0f`.
#
# *Many facts are one regression.* {eq}`eq-thousands-joint` writes all of them together; the twenty-odd lines above are the whole method, and agree with the editor.
#
# *Capacity can be worked out before anything is written.* It takes the keys of the new subjects, the second moment of the old ones and $\lambda$. The effective dimension of all facts in the highest layer is {result}`capacity.all.dimension|.0f`, of {result}`thousands.memories` memories; this layer leaves {result}`capacity.all.unwritten|.0f` of what
# it is asked for, and all layers together {result}`capacity.all.left|.0f`.
#
# *The old memory pays in the same currency.* The mean squared change of old outputs in the highest layer is {result}`capacity.first.disturbance|.2g` for the fewest facts and {result}`capacity.all.disturbance|.2g` for all, while NS goes from {result}`thousands.first.NS|.1f` to {result}`thousands.all.NS|.1f`.
#
# *What follows from a fact is not written with it, unless the question names the subject.* Over {result}`implied.reversed.facts` reversed questions success changes by {result}`implied.reversed.change|+.1f`, although an edit of their own writes {result}`implied.inverse.own|.0f` of the inverse ones. At the end of a chain it changes by {result}`implied.chain.change|+.1f`, in two steps by
# {result}`implied.two steps.change|+.1f`.
#
# Why should a reversed question behave differently from a question in two steps? The edit changes what is found under one key, that of the subject. A question that names the subject finds it. A reversed question names the *object*, whose key is another one, and nothing was written there. The same holds for chains: the end of the chain is stored under the
# city's own name, so that a question on its country finds both what was stored there and what the edit has put beside it.
#
# *Kinds of knowledge differ in form more than in content.* Years and numbers are written like any other fact: PS {result}`implied.date.PS|.0f` and {result}`implied.number.PS|.0f`, of {result}`implied.plain.PS|.0f` for plain ones. Word forms have {result}`implied.inflection.PS|.0f`, and the steps of a recipe, of several words in a fixed order, {result}`implied.procedure.PS|.0f`.
#
# ## What we tried
#
# Four weights, and at the best of them four clamps, on tuning facts. The highest S is taken, and among equals the higher NM. They are made once, for one draw, and hold for all draws of reported facts. Nothing else was tuned; the layers are those of {doc}`11_knowledge_base`.

# %% tags=["hide-input"]
plot.table(
    [
        (
            f"λ = {weight:g}, clamp {clamp:g}",
            *(cell(row, name) for name in ("S", "ES", "PS", "NS", "NM")),
            "chosen" if (weight, clamp) == (sweeps.weight, sweeps.clamp) else "",
        )
        for (weight, clamp), row in sweeps.trials.items()
    ],
    ("setting", "S (%)", "ES (%)", "PS (%)", "NS (%)", "NM (%)", ""),
)

# %% [markdown]
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | model | GPT-J | the model of {doc}`11_knowledge_base`, small and trained on an invented world |
# | facts | the first ten thousand of CounterFact | those that the model says by itself before the edit, up to all of them |
# | against the memories of a layer | up to $0.6 \, M$ | {result}`thousands.known` facts for {result}`thousands.memories` memories |
# | weight | one, $0.9 \, M$ | chosen from four values on tuning facts, at one number of facts |
# | clamp | $0.75$ | chosen from four values likewise |
# | targets | one search after another | all in batches |
# | ranges of layers | weight not said to be tuned anew | weight and clamp that were chosen for the critical layers |
# | late layers | up to the last | up to the last but one, since nothing reads the last at the subject |
# | attention | edited too, at settings that are not told | the same targets, weight and layers as for the feed-forward |
# | relations | those of CounterFact with three hundred facts or more | those of which the model knows {result}`relations.facts` reported facts |
# | facts | in CounterFact, whether known or not | only those that the model says by itself |
# | hard relations | named, from the figure | chosen on tuning facts, tested on others; a rule tried on the other half |
# | mixtures | against the mean of both scores | that, and against both taken together |
# | other kinds of knowledge | left out | dates, numbers, containment, order, symmetric and inverse relations, word forms, procedures |
# | consequences | none | reversed, chained and in two steps, with an edit of their own as control |
#
#
# ## Exercises
#
# ```{exercise}
# :label: ex-blocks
# Two lists of facts are written into one layer, the second after the first, both with {eq}`eq-thousands-joint` and the same $\lambda C$. Is the result that of writing both at once? If not, what must be changed for the second list so that it is?
# ```
#
# ```{solution-start} ex-blocks
# :class: dropdown
# ```

# %%
generator = torch.Generator().manual_seed(0)


def matrix(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def update(residual, keys, old):
    """old: lambda C, and whatever else is to be kept."""
    return residual @ keys.T @ torch.linalg.inv(old + keys @ keys.T)


keys, wanted, text = matrix(12, 9), matrix(5, 9), matrix(12, 60)  # the layer gives nothing yet
old = 2.0 * text @ text.T / 60
first, second = slice(0, 5), slice(5, 9)
together = update(wanted, keys, old)

W = update(wanted[:, first], keys[:, first], old)
forgetful = W + update(wanted[:, second] - W @ keys[:, second], keys[:, second], old)
mindful = W + update(
    wanted[:, second] - W @ keys[:, second], keys[:, second], old + keys[:, first] @ keys[:, first].T
)
missing = {
    name: ((wanted - delta @ keys)[:, first].norm() / wanted[:, first].norm()).item()
    for name, delta in (("together", together), ("second list forgets", forgetful), ("minds", mindful))
}
print({name: f"{value:.3f} of the first list missing" for name, value in missing.items()})
assert torch.allclose(mindful, together) and not torch.allclose(forgetful, together, rtol=0.05)
assert missing["second list forgets"] > missing["together"]

# %% [markdown]
# No. The second update does not know that the first list is now something to be kept: its keys are not in $C$. Add $K_1 K_1^{\top}$ to $\lambda C$, and the two steps are the one. This is recursive least squares. In a model it holds layer by layer only as far as keys and targets stay what they were.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-room
# Take GPT-J's numbers, $M = 16\,384$, $\lambda = 15\,000$ and six layers, and suppose that the keys of ten thousand subjects had no structure and ordinary length. Which share of the residuals would stay unwritten? And for a hundred facts? Check {eq}`eq-thousands-isotropic` on random keys of a smaller layer first.
# ```
#
# ```{solution-start} ex-room
# :class: dropdown
# ```

# %%
M, N, weight = 300, 180, 270.0  # the same proportions
keys = matrix(M, N)
unwritten = (
    (torch.eye(N) - keys.T @ torch.linalg.inv(weight * torch.eye(M) + keys @ keys.T) @ keys).diag().mean()
)
foreseen = capacity.isotropic(N, M, weight)
print(f"one small layer: {unwritten:.3f}, foreseen {foreseen:.3f}")
assert abs(unwritten - foreseen) < 0.01

six = {facts: capacity.whole([capacity.isotropic(facts, 16_384, 15_000.0)] * 6) for facts in (1, 100, 10_000)}
print({facts: f"{100 * share:.0f} % unwritten" for facts, share in six.items()})
assert six[1] < six[100] < six[10_000] < 0.3

# %% [markdown]
# Even one fact is not written fully, since $\lambda$ is nearly $M$; ten thousand leave somewhat more. By this estimate GPT-J with six layers is still far from its wall at the paper's largest number. Keys of real subjects have structure, so that more may stay unwritten; and a target need not be reached fully for the new object to become likelier than the old one.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-pooled
# Two relations have the scores $\text{ES}, \text{PS}, \text{NS}$ of $100, 100, 20$ and $40, 40, 100$ percent. What is the mean of their S, and what S has a mixture in which every fact does just as well as alone?
# ```
#
# ```{solution-start} ex-pooled
# :class: dropdown
# ```


# %%
def harmonic(scores):
    return len(scores) / sum(1 / score for score in scores)


one, other = (100, 100, 20), (40, 40, 100)
mean = (harmonic(one) + harmonic(other)) / 2
both = harmonic([(a + b) / 2 for a, b in zip(one, other, strict=True)])
print(f"mean of both {mean:.1f}, both taken together {both:.1f}")
assert both - mean > 15

# %% [markdown]
# A mixture can gain more than ten points on the mean without any fact doing better. The two relations fail in opposite ways here, and averaging hides both failures before the harmonic mean can punish them.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Many facts are written as one regression: what matters is the keys of the new facts and the second moment of the old ones.
# - Over several layers each is asked for its share of what is lacking by then, from the lowest up, and reads its keys from the model as changed so far.
# - The effective dimension $d$ of the new keys says how much of $N$ facts a layer can take: the share $1 - d / N$ stays unwritten. It is bounded by the number of memories, not by the number of weights.
# - Read $\lambda$ and $N$ in units of $M$.
# - Writing lists one after another is not writing them together, unless the keys of the first are added to what is to be kept.
