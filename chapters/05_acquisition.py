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
# (ch-acquisition)=
# # Acquisition and forgetting along pretraining
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Start continual learning from every stage of one pretraining run, and see whether later stages take in less and lose more. \
# **You need.** {doc}`04_injection` for the passages, $K$ and $A$; {doc}`03_entropy_decay` for $H$. \
# **Paper.** Kim et al. {cite}`kim2025knowledge`, section 4.2, tables 1 and 2 (baseline), figures 4, 11 and 12, appendices B.2 and B.3. \
# **Reading time.** About 20 minutes.
#
# ```{runtime} 05_acquisition
# ```
# :::
#
# This is the paper's central claim. A model late in its schedule knows more; but give both an early and a late one the same new text, and the late one acquires less of it and forgets more of what it knew. Entropy is offered as the reason. Here the claim is tested first; what
# else could explain it is a question for afterwards.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the model and of the order of the data, in the run that is computed live
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
stages = (1.0,)  # shares of the schedule from which models learn on live; every stage is in the records
lr = None  # peak rate of continual learning; None: the study's own
batch = None  # rows of a step; None: the study's own
epochs = 1  # how often the passages are told

# %%
from kemem import book, claims, plot, runs
from kemem.studies import acquiring, outcomes, realpassages, tables

lab = book.open_chapter("05_acquisition", globals())
changes = (
    {"epochs": epochs}
    | ({} if lr is None else {"learning_rate": lr})
    | ({} if batch is None else {"rows": batch})
)

# %% [markdown]
# ## The protocol
#
# From each stage, the optimizer starts afresh: warm-up, cosine to a tenth, the same text in the same order, the same passages at the same steps ({doc}`04_injection`). The only thing that differs is the weights one begins with. Two things are measured before and after.
#
# *Knowledge of the passages*, $K$, and its improvement $A$ ({eq}`eq-acquisition`). And *end tasks*: what the model could do before. The paper averages the accuracy $P$ over six public benchmarks; here $P$ is the share of questions on the model's own world that it answers right, averaged over kinds of
# questions. *Forgetting* is the share that is lost:
#
# ```{math}
# :label: eq-forgetting
# F = - \frac{P_\text{after} - P_\text{before}}{P_\text{before}} .
# ```
#
# The runs below come from {result}`acquiring.models` models that were pretrained with different seeds, each taken at {result}`acquiring.stages` stages. They were recorded; the last stage of the first model was learnt on live.

# %%
recorded = acquiring.along(lab)
live = {
    share: acquiring.run(lab, acquiring.settings(scale, seed=seed, share=share, **changes))
    for share in stages
}
shares = [100 * share for share in acquiring.SCALES[scale].stages]
print(f"recorded: {sum(map(len, recorded.values()))} runs of {len(recorded)} models; live: {len(live)}")
named = {
    f"model {s}, stage {share:.0f} %": row
    for s, rows in recorded.items()
    for share, row in zip(shares, rows, strict=True)
}
for line in runs.differences(named, ("versions", "commit", "device")):
    print("the recorded rows differ in", line)

# %% [markdown]
# ## What each stage takes in, and what it loses


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-acquisition-stages", "caption": "Acquisition (left) and forgetting (right) against the stage that learning starts from (paper: figure 4). Lines: mean of the recorded models, band from lowest to highest. Filled: this run. Stars: OLMo-1B on PubMed, from the paper's table 1; its A is the released one, which is diluted by padding, so compare directions."}, "image": {"alt": "Two panels against the share of the pretraining schedule. Left, acquisition in percent; right, forgetting in percent; our mean curve with its band, one live point, and four published values in each."}}
def percent(of, rows):
    return [None if of(row) is None else 100 * of(row) for row in rows]


with plot.figure(columns=2, height=3.4) as panels:
    for axes, of, printed, title in (
        (panels[0], outcomes.acquired, tables.KIM["baseline"].acquisition, "Acquisition A"),
        (panels[1], outcomes.forgot, tables.KIM["baseline"].forgetting, "Forgetting F"),
    ):
        runs_ = [percent(of, rows) for rows in recorded.values()]
        if all(value is not None for run in runs_ for value in run):
            plot.spread(axes, shares, runs_, "this book", index=0, origin=recorded[0][0].origin)
        for share, row in live.items():
            if of(row) is not None:
                plot.series(axes, [100 * share], [100 * of(row)], "this run", index=1, origin=row.origin)
        plot.published_points(axes, [100 * s for s in tables.STAGES], printed, "OLMo-1B")
        axes.set(xlabel="stage (% of the schedule)", ylabel="%", title=title)
        axes.legend()


# %% tags=["hide-input"]
def cell(values, digits=1):
    known = [v for v in values if v is not None]
    return (
        "not defined"
        if not known
        else f"{sum(known) / len(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"
    )


at = {share: [rows[i] for rows in recorded.values()] for i, share in enumerate(shares)}
plot.table(
    [
        (
            f"{share:.0f} %",
            cell(percent(outcomes.acquired, rows)),
            cell(percent(outcomes.forgot, rows)),
            cell([row.values["before"]["entropy"] for row in rows], 2),
            cell([row.values["after"]["entropy"] for row in rows], 2),
        )
        for share, rows in at.items()
    ],
    ("stage", "A (%), mean and range over models", "F (%)", "H before (nats)", "H after (nats)"),
)

# %% [markdown]
# ## Where they start and where they end
#
# $A$ and $F$ are relative: they can change because the end is another, or because the beginning is. The paper shows both ends in its figure 12. Before learning, later stages are better at everything they were trained for; the question is what is left of that.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-acquisition-ends", "caption": "K of the passages and P of the end tasks before (circles) and after (squares) continual learning, against the stage (paper: figure 12). Mean of the recorded models, band from lowest to highest."}, "image": {"alt": "Two panels against the stage. Left, K before and after learning; right, the share of end-task questions answered right before and after learning."}}
with plot.figure(columns=2, height=3.2) as panels:
    for i, when in enumerate(("before", "after")):
        plot.spread(
            panels[0],
            shares,
            [[outcomes.knowledge(row, when) for row in rows] for rows in recorded.values()],
            when,
            index=i,
            origin=recorded[0][0].origin,
        )
        plot.spread(
            panels[1],
            shares,
            [[100 * outcomes.performance(row, when) for row in rows] for rows in recorded.values()],
            when,
            index=i,
            origin=recorded[0][0].origin,
        )
    panels[0].set(
        xlabel="stage (% of the schedule)", ylabel="K (nats a token)", title="Knowledge of the passages"
    )
    panels[1].set(xlabel="stage (% of the schedule)", ylabel="P (%)", title="End tasks")
    panels[0].legend()

# %% [markdown]
# ## Told often, told once

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-acquisition-groups", "caption": "Acquisition by group of passages against the stage (paper: figure 11)."}, "image": {"alt": "Two curves of acquisition against the stage, one for passages told in every slot and one for passages told once."}}
with plot.figure(height=3.0) as axes:
    for i, (group, name) in enumerate((("paraphrase", "told in every slot"), ("once", "told once"))):
        plot.spread(
            axes,
            shares,
            [[100 * outcomes.acquired(row, group=group) for row in rows] for rows in recorded.values()],
            name,
            index=i,
            origin=recorded[0][0].origin,
        )
    axes.axhline(0, color="#999999", linewidth=1)
    axes.set(xlabel="stage (% of the schedule)", ylabel="A (%)", title="Acquisition by group")
    axes.legend()

# %% [markdown]
# ## Does entropy predict it?
#
# The paper correlates $H$ with $A$ and with $F$ over stages, and reports 0.94 and −0.96. Stages of one run are not independent: whatever moves steadily along a run correlates with everything else that does, the number of the stage included. So the correlation is taken
# within each model, and the interval is over models (of Fisher's $z$); beside entropy stand two quantities that nobody would call a cause, the stage itself and the loss.

# %% tags=["hide-input"]
plot.table(
    [
        (name, *("not defined" if change is None else str(change) for change in found.values()))
        for name, found in outcomes.correlations(recorded).items()
    ],
    (
        "correlation over stages with",
        "A: mean over models, 95 % interval",
        "F: mean over models, 95 % interval",
    ),
)

# %% [markdown]
# ## The authors' passages, on real text
#
# All of this is about worlds of ours. Does the protocol run on the paper's own material? A model of the same shape was trained on novels through OLMo's tokenizer, with some text about a world of twenty people so that it can be asked end tasks; then it read PubMed abstracts, with
# {result}`real passages.last.passages|.0f` of the released passages put in as released. Two stages of one small model: enough to see that everything fits together, and which way it goes, and not enough for a verdict. No claim rests on it.

# %% tags=["hide-input"]
plot.table(
    realpassages.table(realpassages.rows(lab)) or [("not recorded at this scale", *6 * ("",))],
    ("learning from", "K before", "K after", "A (%)", "P before (%)", "P after (%)", "F (%)"),
)

# %% [markdown]
# From the early stage to the last one $A$ goes from {result}`real passages.early.A|.0f` to {result}`real passages.last.A|.0f` and $F$ from {result}`real passages.early.F|.0f` to {result}`real passages.last.F|.0f`: both in the paper's direction, the first of them against what our worlds show above. Before one makes
# much of it: the early model has hardly begun to know its world, answering {result}`real passages.early.P before|.0f` of its questions before and {result}`real passages.early.P after|.0f` after, so it has little to forget. Both end at nearly the same $K$, {result}`real passages.early.K after|.2f` and {result}`real passages.last.K after|.2f`, so $A$ shows the starts here as well, the other
# way round. And {result}`real passages.last.cut|,.0f` of the passages were cut, as they are longer than this small model's context.

# %% [markdown]
# ## What holds here
#
# The claims: later stages acquire less ({claim}`entropy.5`) and forget more ({claim}`entropy.6`); after learning, those from the middle end best ({claim}`entropy.7`), though before learning later ones were better ({claim}`entropy.8`); entropy goes with
# both ({claim}`entropy.9`); and what is told often is acquired better than what is told once ({claim}`entropy.22`). Each verdict is computed from the rows by its rule, which {doc}`../pages/claims` states.

# %% tags=["hide-input"]
claims.table(lab, *(claims.CLAIMS[f"entropy.{number}"] for number in (5, 6, 7, 8, 9, 22)))

# %% [markdown]
# ## Why is it so here?
#
# Look at the two ends before the ratio. From the stage at a fifth of the schedule to the last one, $K$ before learning goes from {result}`acquiring.K before.early|.2f` to {result}`acquiring.K before.last|.2f`: the more a model has learnt of its own world, the *less* likely it finds what a passage will say of
# somebody it has never heard of, because it expects someone it knows. $K$ after learning goes from {result}`acquiring.K after.early|.2f` to {result}`acquiring.K after.last|.2f`. So acquisition, which divides by the start, moves from {result}`acquiring.A.early|.0f` to
# {result}`acquiring.A.last|.0f`, and most of that is the denominator and the lower start. In the paper the starts hardly differ from stage to stage (derived from its tables: by less than a hundredth of a nat, diluted), so there the ratio shows the ends.
#
# Forgetting moves as the paper says, from {result}`acquiring.F.early|.0f` to {result}`acquiring.F.last|.0f`. Here too the start matters: a model that knows more has more to lose. What is left afterwards goes from {result}`acquiring.P after.early|.0f` to {result}`acquiring.P after.last|.0f` of the questions.
#
# Entropy goes with all of this, as does everything that moves steadily along the run; the table of correlations cannot tell them apart, and that is what it shows. Interventions can: {doc}`06_rivals` takes the rivals away one by one, {doc}`07_resuscitation` changes entropy itself.
#
# ## What we tried
#
# The recipe is the paper's, scaled: the rate is the peak of pretraining, ten slots, the passages in the same order. Before the runs were recorded, three trial runs of one model were looked at: its last stage at this rate and at a quarter of it, and its stage at a fifth. At the quarter the last stage acquired and forgot
# a little less. The paper's rule was kept. The first choice of the new domain was a larger world; it shared names with too many of the passages, and a smaller one took its place before anything was recorded.
#
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | start | stages of OLMo-1B and 7B | stages of {doc}`02_pretraining`'s model, three seeds |
# | new domain | PubMed, one pass | text of another world, less than one pass |
# | rate | that of pretraining's peak | see above |
# | $P$ | six benchmarks | questions on the model's own world |
# | runs | one for each stage | three for each stage, each from a model of its own |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-relative
# Two models end at the same $K$ of $-2$ nats. One began at $-4$, the other at $-5$. Which has the larger $A$? Which would you rather use?
# ```
#
# ```{solution-start} ex-relative
# :class: dropdown
# ```

# %%
from kemem import entropy

print(f"{entropy.acquisition(-4, -2):.2f} and {entropy.acquisition(-5, -2):.2f}")
assert entropy.acquisition(-5, -2) > entropy.acquisition(-4, -2)

# %% [markdown]
# The second has the larger $A$, because it knew less before. They end equal. This is why {numref}`fig-acquisition-ends` belongs beside {numref}`fig-acquisition-stages`.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-monotone
# Ten stages, and two quantities that both rise from stage to stage, in unrelated ways. How large can you expect their correlation to be?
# ```
#
# ```{solution-start} ex-monotone
# :class: dropdown
# ```

# %%
import numpy

draw = numpy.random.default_rng(0)
pairs = [[numpy.sort(draw.random(10)) for _ in range(2)] for _ in range(1000)]
found = [numpy.corrcoef(a, b)[0, 1] for a, b in pairs]
print(f"mean {numpy.mean(found):.2f}, and nine in ten are above {numpy.quantile(found, 0.1):.2f}")
assert numpy.mean(found) > 0.9

# %% [markdown]
# Above 0.9, although neither knows of the other. A correlation over the stages of one run says that both move steadily, and little more.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - From every stage of three models, the same recipe, the same text, the same passages: what differs is where learning starts.
# - $A$ and $F$ are ratios to a start that itself changes with the stage. Show both ends, always.
# - Here later stages forget more on average, as in the paper. They do not acquire less: their relative gain is larger, because they begin lower, and entropy goes with acquisition in the *opposite* direction. The table of verdicts says how sure each of these is.
# - A correlation over the stages of one run is nearly certain to be large. It is no evidence of a cause.
