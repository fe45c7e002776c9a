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
# (ch-knowledge-base)=
# # A language model as a knowledge base, and where it looks a fact up
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Ask a table and a model the same questions, and see what each of them knows. Then look inside the model while it answers: which tokens and which layers carry a fact, and so where an edit might take hold. \
# **You need.** {doc}`01_memories` for the feed-forward layer as a memory; {doc}`02_pretraining` for how a model comes to know a world. \
# **Paper.** Meng et al. {cite}`meng2023memit`, sections 3 and 4.1, appendix A, figure 3, for the choice of layers; Meng et al. {cite}`meng2022locating`, section 2, for causal tracing; Petroni et al. {cite}`petroni2019language` for the question. \
# **Reading time.** About 25 minutes.
#
# ```{runtime} 11_knowledge_base
# ```
# :::
#
# A company moves its head office. In a table that is one cell: find the row, write the new city, done. A language model that has read the old address a hundred times knows it too, but nowhere in the model is there a cell. If we want to correct a model as one corrects a table, two things have to be known first: *what* does it know, and *where* is that in the weights? This chapter measures both on a model whose every fact we
# know, because we wrote the world that it has read of.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the model that has read of the world, and of the noise
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the model's own, which is all that this chapter uses
batch_size = None  # rows through the model at once; None: 128
facts = None  # how many facts are traced; None: the scale's own
window = None  # feed-forward or attention layers restored together; None: the paper's share of the layers
model = None  # a published model, at the scale paper: a name of kemem.studies.factual.PUBLISHED; None: its own

# %%
from kemem import book, claims, plot
from kemem.studies import factual, knowing, tracing

lab = book.open_chapter("11_knowledge_base", globals())
base = factual.chosen(lab, seed=seed)

# %% [markdown]
# ## Asking both
#
# A fact is a subject, a relation and an object. The table holds one cell for each fact that the documents tell. The model gets a *cloze* prompt, a sentence that stops just before the object ("The birthplace of ... is"), and goes on greedily, always with the likeliest token. It is right if it says the whole object: every token of it is the likeliest one. Each relation has three phrasings or more that end with the object, and the
# model has read all of them, mixed. Only facts with a single object are asked.
#
# Three groups of facts are asked. *Told* facts stand in the documents. *Implied* facts do not, but follow from told ones: who is married to whom is told in one direction only, say. *Held-out* facts are about people, towns and words that no document names. They are the control. Nobody can know them, so what is right among them was guessed.

# %%
asked = knowing.run(lab, knowing.settings(scale, seed=seed, model=base))
groups, cells = asked.values["groups"], asked.values["table"]
if not factual.has_table(base):
    print(f"What is implied or held out, and what the table answers: {factual.NO_TABLE}.")
print(f"{asked.values['cells']} cells in the table; {asked.values['parameters']} weights in the model")

# %% tags=["hide-input"]
NAMES = {"told": "told", "implied": "implied, not told", "held_out": "held out"}


def percent(share):
    return "none" if share is None else f"{100 * share:.0f} %"


plot.table(
    [
        (
            NAMES[group],
            found["facts"],
            percent(cells["cells"].get(group)),
            percent(cells["with rules"].get(group)),
            f"{percent(found['right'])} ± {100 * found['half']:.0f}",
        )
        for group, found in ((name, groups[name]) for name in NAMES if name in groups)
    ],
    ("facts", "asked", "table", "table with rules", "model, mean over phrasings (95 %)"),
)

# %% [markdown]
# The table is right wherever it has a cell, and silent where it has none. It does not know that marriage goes both ways. That is a rule, and a rule must be written once, by hand, for each relation; with the rules of the world all implied facts are found. The model has no rules written into it.
#
# The model is right on {result}`knowing.told.right|.0f` of told facts, {result}`knowing.implied.right|.0f` of implied ones and {result}`knowing.held_out.right|.0f` of held-out ones. The last number is what guessing brings: some relations have few possible objects, and some objects are common. Knowledge is what lies above it.
#
# ### By kind of fact

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-knowing-kinds", "caption": "Share of told facts of which the model says the whole object, by kind of fact, in each of the first phrasings of its relation. Grey crosses: held-out facts of the same kind, mean over phrasings, where there are any: what guessing brings. In brackets the number of told facts asked."}, "image": {"alt": "A dot plot. Kinds of facts on the vertical axis, share answered rightly on the horizontal one, a marker for each phrasing and a grey cross for held-out facts."}}
kinds = asked.values["kinds"]["told"]
order = sorted(kinds, key=lambda kind: kinds[kind]["right"])
with plot.figure(height=3.8) as axes:
    for k, label in enumerate(("first phrasing", "second", "third")):
        axes.plot(
            [100 * kinds[kind]["phrasings"][k] for kind in order], range(len(order)),
            label=f"{label} ({asked.origin})", **{**plot.look(asked.origin, k), "linestyle": "none"},
        )  # fmt: skip
    control = asked.values["kinds"]["held_out"]
    present = [(100 * control[kind]["right"], y) for y, kind in enumerate(order) if kind in control]
    axes.plot([x for x, _ in present], [y for _, y in present], "x", color="#555555", label="held out, guessed")
    axes.set_yticks(range(len(order)), [f"{kind} ({kinds[kind]['facts']})" for kind in order])
    axes.set(xlabel="answered rightly (%)", xlim=(-3, 103), title="What the model knows, by kind of fact")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2)

# %% [markdown]
# Kinds differ in two ways at once: in how hard they are to remember, and in how easy they are to guess. A country or a small number comes from a short list, the name of a spouse does not. So read each dot against the cross beside it, not against the dots above and below.
#
# ### The same fact in other words
#
# A table has no paraphrases. It is asked by subject and relation, and there is one cell. For a model every phrasing is another text. Does it know the fact, or the sentence?

# %% tags=["hide-input"]
plot.table(
    [
        (
            NAMES[group],
            *(percent(found[key]) for key in ("all", "some", "none", "alike", "kept")),
        )
        for group, found in ((name, groups[name]) for name in NAMES if name in groups)
    ],
    (
        "facts",
        "right in all phrasings",
        "in some",
        "in none",
        "same answer in all, right or not",
        "right in the first phrasing: also in all others",
    ),
)

# %% tags=["hide-input"]
plot.table(
    [
        (
            own["sort"],
            plot.plain(own["prompt"] + " ..."),
            plot.plain(own["object"]),
            plot.plain(" / ".join(own["said"])),
        )
        for own in asked.values["examples"]
    ],
    ("sort", "first phrasing", "object", "said in each phrasing"),
)

# %% [markdown]
# {result}`knowing.told.all|.0f` of told facts are right in every phrasing, {result}`knowing.told.some|.0f` in some only. Of the facts that the model answers rightly when asked in the first way, {result}`knowing.told.kept|.0f` are right in all others too. One right answer therefore does not show that a fact is known. The chapters on editing ask in other words for the same reason.
#
# ### What a wrong answer is

# %% tags=["hide-input"]
plot.table(
    [
        (NAMES[group], found["questions"], *(percent(found["outcomes"][what]) for what in knowing.OUTCOMES), percent(found["type_right"]))
        for group, found in ((name, groups[name]) for name in NAMES if name in groups)
    ],
    ("facts", "questions", "right", "another true object", "false, right type", "something else", "right type, of those not right"),
)  # fmt: skip

# %% [markdown]
# Of the wrong answers on told facts {result}`knowing.told.type_right|.0f` name something of the right type: a town for a town, a year for a year. The same holds of {result}`knowing.held_out.type_right|.0f` of those on subjects that the model has never read of. The model learns the relation, what kind of thing comes here, apart from the fact. It also does not say that it does not know. A table does: it has no cell. (*Another true object*
# concerns order alone: somebody has many people who are younger, and documents tell of one.)
#
# ### How often one reads of it
#
# Subjects are drawn by Zipf's law, so that a few of them fill many documents and most fill few. Told facts in four equal parts, by how often documents are about their subject:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-knowing-frequency", "caption": "Share of told facts answered rightly (mean over phrasings, with its 95 % interval) and right in all phrasings, by how many of the documents are about the subject: four equal parts of the facts, at the mean number of each part."}, "image": {"alt": "Two curves over the expected number of documents about a subject, on a logarithmic axis: share of facts right on average, with error bars, and share right in all phrasings."}}
parts = asked.values["quartiles"]
documents = [own["documents"] for own in parts]
with plot.figure(height=3.2) as axes:
    plot.series(
        axes, documents, [100 * own["right"] for own in parts], "mean over phrasings", origin=asked.origin
    )
    axes.errorbar(
        documents, [100 * own["right"] for own in parts], [100 * own["half"] for own in parts],
        color=plot.COLOURS[0], linestyle="none", capsize=3,
    )  # fmt: skip
    plot.series(
        axes,
        documents,
        [100 * own["all"] for own in parts],
        "right in all phrasings",
        origin=asked.origin,
        index=1,
    )
    axes.set_xscale("log")
    axes.set_xticks(documents, [f"{value:.0f}" for value in documents])
    axes.minorticks_off()
    axes.set(
        xlabel="documents about the subject (expected, logarithmic)", ylabel="answered rightly (%)",
        ylim=(-3, 103), title="Facts that are read more often",
    )  # fmt: skip
    axes.legend()

# %% [markdown]
# From the rarest to the most frequent quarter the share goes from {result}`knowing.quartile 1.right|.0f` to {result}`knowing.quartile 4.right|.0f`. A row of a table that is looked up once a year is as right as one that is looked up every day; a memory that is trained is not.
#
# ### What an update costs
#
# In the table an update is one cell, and it is as good as the table's rules: a changed cell leaves {result}`knowing.follows|.2f` others wrong on average, those that follow from it. In the model it is unclear what to change. None of its {result}`knowing.parameters` weights belongs to one fact. One could write the new fact into the documents and train again; or find the place at which the fact is looked up, and change that. The rest of the
# chapter looks for the place.
#
# ## Causal tracing
#
# The idea is that of an experiment on a machine that you cannot take apart: break it, mend one part, and see how much comes back. Take a fact that the model knows. Run the prompt; let $p(o)$ be the probability of the first token $o$ of the object. Run it again with Gaussian noise added to the embeddings of the *subject's* tokens, so that the model no longer knows whom it is asked about; the probability drops to $p_*(o)$. Now run it with the same noise once more, but put
# the clean output of one part of the model back, at one token $t$ and layer $l$:
#
# ```{math}
# :label: eq-tracing
# \underbrace{p(o) - p_*(o)}_{\text{total effect}} \;=\; \underbrace{\bigl[p_{*,\,\text{restored } (t, l)}(o) - p_*(o)\bigr]}_{\text{indirect effect of the part}} \;+\; \underbrace{\bigl[p(o) - p_{*,\,\text{restored } (t, l)}(o)\bigr]}_{\text{direct effect}} .
# ```
#
# If the indirect effect is large, this part alone carries enough of the fact to bring the answer back. Parts are of three sorts: the state after a block, the output of the feed-forward layer, and that of attention. The last two are restored in a window of neighbouring layers, as one layer's share is small. All numbers are averages over facts and over samples of the noise.
#
# The model must know the fact, or there is nothing to trace: only facts whose whole object it says are taken. They come from the part of the world that is set aside for *tuning*, because what is read off here, the layers to edit, is a choice; the editors will be judged on other facts. And as one token's probability is measured, that token must tell objects apart. Facts of relations in which more than half of all objects begin with the
# same token are left out: a model that has lost the subject still says it.

# %%
found = tracing.run(lab, tracing.settings(scale, seed=seed, facts=facts, window=window, model=base))
whole = found.values["whole"]
print(
    f"{whole['facts']} facts traced of {found.values['known']} known and {found.values['asked']} asked "
    f"({found.values['left_out']} left out)"
)
print(
    f"noise {found.values['noise']:.3f}, window {found.values['window']} of {found.values['layers']} layers; "
    f"clean {100 * whole['clean']:.1f} %, corrupted {100 * whole['corrupted']:.1f} %"
)

# %% [markdown]
# The noise has three times the standard deviation of the embeddings of subject tokens, as in the paper. The object's first token falls from {result}`tracing.clean|.1f` to {result}`tracing.corrupted|.1f`: {result}`tracing.total|.1f` is the most that any part can bring back.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tracing-maps", "caption": "Average indirect effect in points of probability, by role of the token (rows) and layer (columns), of the state after a block, and of feed-forward and attention outputs in a window of layers around it. One colour scale for all three. In brackets the facts that have such a token. Meng et al. 2022 show the same three maps of GPT-2 XL."}, "image": {"alt": "Three heat maps side by side with token roles as rows and layers as columns: states, feed-forward outputs, and attention outputs; brighter cells restore more of the answer."}}
ROLES = {
    "first_subject": "subject, first", "middle_subject": "subject, middle", "last_subject": "subject, last",
    "first_subsequent": "first after it", "further": "further", "last": "prompt's last",
}  # fmt: skip
TITLES = {"state": "State", "mlp": "Feed-forward", "attention": "Attention"}
effects = whole["effects"]
roles = [role for role in ROLES if role in effects["state"]]
maps = {kind: [[100 * v for v in effects[kind][role]["value"]] for role in roles] for kind in TITLES}
low, high = (pick(v for rows in maps.values() for row in rows for v in row) for pick in (min, max))
with plot.figure(columns=3, height=3.0, sharey=True) as panels:
    for axes, (kind, title) in zip(panels, TITLES.items(), strict=True):
        image = axes.imshow(maps[kind], cmap="cividis", vmin=min(0, low), vmax=high, aspect="auto")
        axes.set(xlabel="layer", title=title)
        axes.set_xticks(range(found.values["layers"]))
        axes.grid(False)
    panels[0].set_yticks(range(len(roles)), [f"{ROLES[r]} ({effects['state'][r]['facts']})" for r in roles])
    panels[0].figure.colorbar(image, ax=panels, label="indirect effect (points)", shrink=0.9)

# %% [markdown]
# Two places can be expected to light up. At the *last token of the prompt*, in late layers, the answer is about to be said: restoring the last state there restores everything, because nothing comes after it. This is no discovery. The other place is the finding of Meng et al.: the *last token of the subject*, in early and middle layers. That is where a causal model has read the whole name for the first time. Here its largest effect is
# {result}`tracing.state.last_subject|.1f`, at layer {result}`tracing.state.last_subject.layer` (counted from zero). Compare the two maps on the right: at the subject's last token the feed-forward layers bring back at most {result}`tracing.mlp.last_subject|.1f` and attention {result}`tracing.attention.last_subject|.1f`; at the prompt's last token they bring back {result}`tracing.mlp.last|.1f` and {result}`tracing.attention.last|.1f`.
# Attention has to carry what was found at the subject to where the answer is said.
#
# ## Through which layers?
#
# A restored state acts through everything above it. To see which parts pass it on, Meng et al. {cite}`meng2023memit` *sever* them: restore the state at the subject's last token at layer $l$, and hold the outputs of all feed-forward layers at that token at what they are in the corrupted run. What is lost by this went through the feed-forward layers above $l$. The same with attention is the comparison. The gap
#
# ```{math}
# :label: eq-gap
# g(l) = \mathrm{IE}(l) - \mathrm{IE}_{\text{feed-forward severed}}(l)
# ```
#
# says how much of the state's effect still needs the memories above layer $l$. Where it has closed, the memories have been read. So the layers with a gap are those that an edit may want to write to.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tracing-severed", "caption": "Left: average indirect effect of the state at the subject's last token, by layer, with nothing severed, with the feed-forward outputs held at their corrupted values, and with attention held so. Right: the gap that severing the feed-forward layers leaves, paired by fact. Bands: 95 % intervals over facts. Grey: the layers that are suggested for editing. Counterpart of figure 3 of Meng et al. 2023, in which the gap closes after layer 8 of GPT-J's 28."}, "image": {"alt": "Left: three curves over layers, plain effect, feed-forward severed and attention severed, with bands. Right: the gap between the plain and the feed-forward severed curve with its band and the suggested layers shaded grey."}}
def banded(axes, own, label, index):
    layers, value, half = range(len(own["value"])), own["value"], own["half"]
    plot.series(axes, layers, [100 * v for v in value], label, origin=found.origin, index=index)
    if half is not None:
        ends = ([100 * (v + sign * h) for v, h in zip(value, half, strict=True)] for sign in (-1, 1))
        axes.fill_between(layers, *ends, color=plot.COLOURS[index], alpha=0.15, linewidth=0)


suggested = whole["suggested"]
with plot.figure(columns=2, height=3.3) as panels:
    labels = {"plain": "nothing severed", "mlp": "feed-forward severed", "attention": "attention severed"}
    for index, (name, label) in enumerate(labels.items()):
        banded(panels[0], whole["severed"][name], label, index)
    banded(panels[1], whole["gap"], "gap", 3)
    panels[1].axvspan(
        suggested[0] - 0.4, suggested[-1] + 0.4, color="#999999", alpha=0.22, linewidth=0, label="suggested"
    )
    panels[0].set(ylabel="indirect effect (points)", title="Severed paths")
    panels[1].set(ylabel="points", title="What feed-forward layers pass on")
    for axes, place in zip(panels, ("lower left", "upper right"), strict=True):
        axes.axhline(0, color="#999999", linewidth=1)
        axes.set(xlabel="layer of the restored state", xticks=range(found.values["layers"]))
        axes.legend(loc=place)

# %%
print(
    "suggested layers",
    suggested,
    "of all facts; by draw",
    [own["suggested"] for own in found.values["draws"]],
)

# %% [markdown]
# Meng et al. choose the layers by eye. Here a rule does it, fixed before it was applied: around the largest gap, all neighbouring layers in which the gap is at least half as large and its interval lies above zero, and always at least the layer of the largest gap. It suggests layers {result}`tracing.first` to {result}`tracing.last`, counted from zero; the largest gap is {result}`tracing.gap|.1f` of a total of {result}`tracing.total|.1f`. The printed line repeats the rule on three disjoint draws of the facts. Where they disagree,
# or where the band of the gap holds zero, the suggestion is weak.
#
# One detail matters when you read this off. A state is what *leaves* layer $l$. Severing acts in the layers *above* $l$ only, as the restored state has its own layer's memory in it already. A gap at $l$ thus says that memories from $l + 1$ on are at work, and an edit of layer $l$ can still reach them.
#
# ### Is this where one should edit?
#
# Not necessarily. Tracing says where the *right answer comes from* when the subject is noise. Editing asks where a change of the weights can put *another answer*. Hase et al. {cite}`hase2023localization` traced fact by fact and edited layer by layer. They found that how well an edit takes depends on the layer, but hardly on where tracing had located the fact. So we use tracing as Meng et al. do, to choose a range once,
# and do not rest anything on it: a later chapter simply edits other layers, and compares.
#
# ## What holds here
#
# The claim ({claim}`memit.16`) has three parts. At the subject's last token early or middle layers restore more than late ones; more than any other token does; and what is lost with the feed-forward layers severed is more than what is lost with attention severed. *Early or middle* are the layers whose middle lies in the first two thirds of the model. Other tokens compete within the same layers, as the last token wins in late ones by
# construction. Each number should be above zero:

# %% tags=["hide-input"]
draws = [tracing.contrasts(own) for own in found.values["draws"]]
plot.table(
    [
        (name, f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}"), ", ".join(f"{100 * d[name]:+.1f}".replace("-", "\N{MINUS SIGN}") for d in draws))
        for name, value in tracing.contrasts(whole).items()
    ],
    ("contrast at the subject's last token", "all facts (points)", "each draw of facts (points)"),
)  # fmt: skip

# %% tags=["hide-input"]
claims.table(lab, claims.CLAIMS["memit.16"])

# %% [markdown]
# ## What to conclude
#
# *A model is a table that guesses.* Trained for long enough it gives {result}`knowing.told.right|.0f` of what it was told, in nearly any wording, and whether the subject is read about often or seldom makes little difference by then: {result}`knowing.quartile 1.right|.0f` against {result}`knowing.quartile 4.right|.0f` from the rarest to the most frequent quarter. Where it knows nothing it
# answers all the same, mostly by type, and never says so.
#
# *Guessing has to be measured.* {result}`knowing.held_out.right|.0f` of held-out facts are answered "rightly" with nothing known. Without this control the kinds of facts could not be compared at all.
#
# *Consequences are not looked up.* Of facts that follow from others by a rule that a table can be given, the model says {result}`knowing.implied.right|.0f`.
#
# *There are two sites, as in the papers.* Early, the fact is in the state at the subject's last token, which brings back up to {result}`tracing.state.last_subject|.1f` of {result}`tracing.total|.1f`; late, in the state at the last token of the prompt. Between them attention carries it over: its output at the last token restores up to {result}`tracing.attention.last|.1f` on its own, in layer {result}`tracing.attention.last.layer`.
#
# *One feed-forward layer does most of the lookup.* What that of layer {result}`tracing.mlp.last_subject.layer` puts out at the subject's last token restores {result}`tracing.mlp.last_subject|.1f` by itself, nearly as much as the whole state. Hence severing the feed-forward layers *above* a restored state costs little, {result}`tracing.lost without MLP less lost without attention|.1f` more than severing attention:
# in a model of so few layers there is not much left to sever. The rule names layer {result}`tracing.first`. As a gap there says that memories above it are at work too, the next chapters write into that layer and the one above it, and one of them compares other layers.
#
# ## What we tried
#
# *Where a model looks up a fact depends on the names it has read.* In a first world most words of a name stood in one or two names, and the fact was read from all words of a subject. In a second one neither word of a name told who it was, and the model gathered both at the end of the prompt before it looked anything up: restoring the subject's last token brought back little, and edits
# there did not carry over to other phrasings. In the world of this chapter the last word of a name is its own, and longer training made the lookup sharper. With four layers in place of six the lookup moved to the end of the prompt again.
#
# A first version of the tracing took every fact whose first token the model says, as the tracing code of Meng et al. does. Among them were objects whose first token most objects of the relation share: the corrupted model said it too, sometimes with more confidence than the clean one, and the averages were diluted. Hence the rule that the first token must tell objects apart, and that the whole object must be said. Neither the noise nor the rule for the layers was tuned.
#
# ## What differs from the paper
#
# | | papers | here |
# | --- | --- | --- |
# | model | GPT-2 XL, GPT-J, GPT-NeoX | a small one that has read of nothing but one world |
# | facts | common knowledge that the model may have met anywhere | facts of that world, with the documents counted |
# | known means | the one predicted token is the whole attribute | every token of the object is the likeliest |
# | window | ten of the $48$ layers of GPT-2 XL | the same share, at least one: {result}`tracing.window` of {result}`tracing.layers` |
# | noise samples | ten, drawn alike for every prompt | each fact draws its own; the same for all its parts |
# | layers chosen | by eye | by a rule, with intervals |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-total-effect
# The total effect is the sum of direct and indirect effect ({eq}`eq-tracing`). Compute both for the state at the subject's last token in each layer, from the averages above. Does the sum over layers of indirect effects give the total effect as well?
# ```
#
# ```{solution-start} ex-total-effect
# :class: dropdown
# ```

# %%
total = whole["clean"] - whole["corrupted"]
indirect = whole["effects"]["state"]["last_subject"]["value"]
restored = [whole["corrupted"] + effect for effect in indirect]
direct = [whole["clean"] - p for p in restored]
for layer, (i, d) in enumerate(zip(indirect, direct, strict=True)):
    print(f"layer {layer}: indirect {100 * i:+6.1f}, direct {100 * d:+6.1f}, sum {100 * (i + d):.1f}")
assert all(abs(i + d - total) < 1e-12 for i, d in zip(indirect, direct, strict=True))
assert abs(indirect[-1]) < 1e-6 and abs(sum(indirect) - total) > 1e-3

# %% [markdown]
# In each layer the two add up to the total effect, as the restored probability cancels. Across layers nothing has to add up. The states of two layers are not two shares of one cake: the later one is computed from the earlier one, so that much of what one brings back the other brings back as well. In the last layer the indirect effect is zero: nothing reads that state any more, as the answer is read at another token.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-common-noise
# Why must the restored run have the *same* noise as the corrupted run it is compared with? Show it first with the variance of a difference, then in the row.
# ```
#
# ```{solution-start} ex-common-noise
# :class: dropdown
# ```

# %%
import statistics

corrupted = [0.10, 0.40, 0.20, 0.50]  # p* in four samples of the noise
brought_back = [p + 0.2 for p in corrupted]  # a part that always brings back 20 points
same = [a - b for a, b in zip(brought_back, corrupted, strict=True)]
own = [a - b for a, b in zip(brought_back, reversed(corrupted), strict=True)]  # another sample as its base
print(f"same noise: {statistics.mean(same):.2f} ± {statistics.stdev(same):.2f}")
print(f"own noise:  {statistics.mean(own):.2f} ± {statistics.stdev(own):.2f}")
assert statistics.stdev(same) < 1e-12 < statistics.stdev(own)
assert abs(statistics.mean(same) - statistics.mean(own)) < 1e-12

pairs = found.values["pairing"]
for layer, (a, b) in enumerate(zip(pairs["same"], pairs["own"], strict=True)):
    print(
        f"layer {layer}: standard deviation of one sample {100 * a**0.5:.1f} with the same noise, {100 * b**0.5:.1f} with its own (points)"
    )
assert pairs["same"][-1] < 1e-9 < pairs["own"][-1]

# %% [markdown]
# $\operatorname{Var}(X - Y) = \operatorname{Var} X + \operatorname{Var} Y - 2 \operatorname{Cov}(X, Y)$. A sample of the noise that spares the subject lifts both probabilities, one that hits it hard lowers both. With the same noise this shared part cancels; with noise of its own it adds up. The mean is the same either way. How much is gained depends on how much of the noise is still there after restoring: least where the restored state mends nearly everything, for then it
# has little left to share, and all of it in the last layer, where restoring changes nothing and the effect is exactly zero in every sample. In this row the variance with noise of its own is at least {result}`tracing.pairing|.1f` as large.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - A table answers what it holds and is silent otherwise; a model answers everything, by type where it does not know.
# - Ask in all phrasings, ask for whole objects, and ask about what cannot be known. Each of the three changes the picture.
# - Causal tracing breaks the subject and mends one part. The indirect effect is what that part alone brings back.
# - Severed paths tell through which layers a state acts. From the gap a rule reads off the layers to edit.
# - Where a fact is read off need not be where it is best written. That is to be tested by editing.
