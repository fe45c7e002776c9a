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
# (ch-rivals)=
# # Other settings, other explanations
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** See whether what {doc}`05_acquisition` found depends on its recipe, and hold knowledge entropy against everything else that changes along a run: the rate that is warmed up again, how well the new text fits already, what AdamW does to a gradient, and the knowledge a model starts with. \
# **You need.** {doc}`05_acquisition` for $A$, $F$ and the protocol; {doc}`03_entropy_decay` for $H$. \
# **Paper.** Kim et al. {cite}`kim2025knowledge`, section 4.2, tables 1 and 2, appendices A.1 and B.4 (figures 10 and 13); the limits of section 6. \
# **Reading time.** About 25 minutes.
#
# ```{runtime} 06_rivals
# ```
# :::
#
# Late models acquire and forget differently from early ones. Entropy differs too, and so do a dozen other things. This chapter changes one of them at a time.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the model and of the order of the data, in the run that is computed live
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
setting = "equal ratio"  # the arm that is computed live, one of the settings below
stage = 1.0  # share of the schedule from which it starts

# %%
from kemem import book, claims, errors, plot
from kemem.studies import arms, inside, midstage, outcomes, robustness, tables

lab = book.open_chapter("06_rivals", globals())
BASELINE = robustness.BASELINE
if setting not in robustness.SETTINGS:
    raise errors.BadInput(f"setting is one of {', '.join(robustness.SETTINGS)}; got {setting!r}.")

# %% [markdown]
# ## The same question in other settings
#
# The protocol is that of {doc}`05_acquisition`, with a shorter run: {result}`rivals.steps`, {result}`rivals.passages` passages, the same ones in every arm. The paper changes batch, rate, number of epochs, corpus and model size; each has its counterpart here.
#
# | setting | paper | here |
# | --- | --- | --- |
# | batch | sixteen times the rows, a sixteenth of the steps | five times the rows, a fifth of the steps |
# | rate | two and a half times, and a quarter | the same factors |
# | epochs | three | three: every slot is told three times |
# | corpus | web text, nearer to what was pretrained on | new documents of the model's *own* world |
# | model | 7B instead of 1B | a smaller model, same text and schedule; not at `paper` scale, where 7B would need several cards to learn |
#
# One arm is computed now; all are in the records, for every stage and three models.

# %%
shown = robustness.SETTINGS[setting](lab.scale, seed, stage)
row = arms.run(lab, shown)
print(f"live: {setting}, from {100 * stage:.0f} % of the schedule")
print(f"A {100 * outcomes.acquired(row):.1f} %, H {row.values['before']['entropy']:.2f} nats at the start")
recorded = robustness.table(lab)
print(f"recorded: {sum(len(r) for each in recorded.values() for r in each.values())} runs in {len(recorded)} settings")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-rivals-settings", "caption": "Acquisition (top) and forgetting (bottom) against the stage that learning starts from, in each setting (paper: tables 1 and 2, figure 13). Lines: mean over models, band from lowest to highest; grey: the baseline. Stars: OLMo-1B in the paper's setting of that kind, where it prints one."}, "image": {"alt": "Two rows of small panels, one column a setting: acquisition and forgetting in percent against the share of the schedule, with the baseline in grey and published values as stars."}}
shares = [100 * share for share in arms.SCALES[lab.scale].stages]
PRINTED = {"batch x 5": "batch x 16", **{name: name for name in ("batch x 16", "rate x 2.5", "rate / 4", "3 epochs")}}
robust = [
    name
    for name in ("batch x 5", "batch x 16", "rate x 2.5", "rate / 4", "3 epochs", "own world", "C4", "smaller model")
    if name in recorded
]


def percent(of, each):
    values = [[of(r) for r in rows] for rows in each.values()]
    return None if any(v is None for run in values for v in run) else [[100 * v for v in run] for run in values]


with plot.figure(columns=len(robust), rows=2, width=1.8 * max(3, len(robust)), height=3.0, sharex=True, squeeze=False) as grid:
    for column, name in enumerate(robust):
        for line, (of, letter) in enumerate(((outcomes.acquired, "A"), (outcomes.forgot, "F"))):
            axes = grid[line][column]
            base, own = percent(of, recorded[BASELINE]), percent(of, recorded[name])
            if base is not None:
                axes.plot(shares, [sum(v) / len(v) for v in zip(*base, strict=True)], color="#999999", linewidth=2)
            if own is not None:
                plot.spread(axes, shares, own, name, index=0)
            if name in PRINTED:
                printed = tables.KIM[PRINTED[name]]
                values = printed.acquisition if letter == "A" else printed.forgetting
                pairs = [(100 * s, v) for s, v in zip(tables.STAGES, values, strict=True) if v > -50]
                plot.published_points(axes, *zip(*pairs, strict=True), "OLMo-1B")
            if line == 0:
                axes.set(title=name)
            else:
                axes.set(xlabel="stage (%)")
            if column == 0:
                axes.set(ylabel=f"{letter} (%)")


# %% tags=["hide-input"]
def text(change, digits=1):
    return "not defined" if change is None else change.short(digits, 100)


plot.table(
    [
        (
            name,
            *(text(robustness.gap(each, of)) for of in (outcomes.acquired, outcomes.forgot)),
            *(text(robustness.gap_less(each, recorded[BASELINE], of)) for of in (outcomes.acquired, outcomes.forgot)),
        )
        for name, each in recorded.items()
    ],
    (
        "setting",
        "A, last stage less first (points)",
        "F, last less first (points)",
        "gap of A, less the baseline's",
        "gap of F, less the baseline's",
    ),
)

# %% [markdown]
# The claims of the tables: the direction holds in other settings ({claim}`entropy.16`); a larger batch takes in and loses less ({claim}`entropy.17`), a higher rate takes in less and loses more ({claim}`entropy.18`), a lower one loses less ({claim}`entropy.19`), more epochs do more of both ({claim}`entropy.20`), and the gap
# is wider on text that is farther from what was pretrained on ({claim}`entropy.21`).

# %% tags=["hide-input"]
claims.table(lab, *(claims.CLAIMS[f"entropy.{number}"] for number in (16, 17, 18, 19, 20, 21)))

# %% [markdown]
# ## What else could explain it
#
# ### The rate is warmed up again
#
# Continual learning restarts at the peak rate of pretraining. For an early stage that changes little: the rate was near its peak anyway. For the last stage it is a jump of ten times. So a late model does not only have lower entropy, it is also hit harder. In the arm *equal ratio* each stage goes on at the rate that pretraining had when it reached it, and the jump is gone.
#
# ### How well the new text fits already
#
# A model that predicts a text well has less to learn from it and less reason to change. At a fixed stage all domains meet the same weights, hence the same $H$; only the fit differs. If outcomes differ between domains at the same stage, fit matters on its own.

# %% tags=["hide-input"]
domains = [recorded[name] for name in (BASELINE, "own world") if name in recorded]
names = ("another world", "its own world")[: len(domains)]
plot.table(
    [
        (
            name,
            *(
                f"{sum(rows[i].values['before']['loss']['new domain'] for rows in each.values()) / len(each):.2f}"
                for i in range(len(shares))
            ),
            *(
                f"{100 * sum(outcomes.acquired(rows[i]) for rows in each.values()) / len(each):.0f} %"
                for i in range(len(shares))
            ),
        )
        for name, each in zip(names, domains, strict=True)
    ],
    ("new text", *(f"loss on it at {s:.0f} % (nats)" for s in shares), *(f"A at {s:.0f} %" for s in shares)),
)

# %% tags=["hide-input"]
if len(domains) > 1:
    for letter, of in (("A", outcomes.acquired), ("F", outcomes.forgot)):
        slope = robustness.within_stage(domains, of)
        print(f"{letter}, points a nat of loss on the new text, at a fixed stage: {text(slope)}")

# %% [markdown]
# ### What the optimizer makes of a gradient
#
# The paper's mechanism (appendix A.1): the gradient of a value is its coefficient times what comes from above,
#
# ```{math}
# :label: eq-value-gradient
# \frac{\partial \mathcal L}{\partial v_i} = c_i \, \frac{\partial \mathcal L}{\partial \operatorname{FFN}(x)} ,
# ```
#
# so where few memories carry the usage, few take the update. That is true of gradients. AdamW divides each weight's gradient by its own typical size, so what is left of $c_i$ in the *update* must be measured. For each run: the rank correlation, over memories, of usage at the start with how far each
# value has moved; and the share of memories over which the change is effectively spread, exp of the entropy of the sizes over $M$. Beside it the same with plain momentum SGD, which divides by nothing.

# %% tags=["hide-input"]
rows_ = []
for name in (BASELINE, "equal ratio", "SGD"):
    if name in recorded:
        for what in ("rank of values", "rank of keys", "share of values", "share of keys"):
            each = robustness.concentration(recorded[name], what)
            means = [sum(column) / len(column) for column in zip(*each, strict=True)]
            rows_.append((name, what, *(f"{m:.2f}" for m in means)))
plot.table(rows_, ("setting", "rank correlation with usage, or effective share", *(f"{s:.0f} %" for s in shares)))

# %% [markdown]
# ### Other entropies, and more to lose
#
# Reviewers of the paper asked two more things. Attention and next-token entropy fall along pretraining as well: does knowledge entropy go with acquisition more closely than they do ({claim}`review.entropy-is-special`)? And do later models forget more only because they have more to lose ({claim}`review.more-to-lose`)? $F$
# divides by what there was; were it only that, $F$ would not rise.

# %% tags=["hide-input"]
claims.table(lab, *(claims.CLAIMS[f"review.{name}"] for name in ("entropy-is-special", "more-to-lose")))

# %% [markdown]
# ### Which explanation survives
#
# The gap between the first and the last stage in the baseline, and in each arm that takes one rival away. *Survives*: without the rival the gap is as good as unchanged, so the rival does not explain it. *Explained*: without it the gap is smaller, and gone. The rule looks at intervals over models only. New text of the model's own world is left out of $F$: nothing is forgotten there, the model goes on learning what it is asked.

# %% tags=["hide-input"]
plot.table(
    [
        (
            rival,
            name,
            letter,
            text(robustness.gap(recorded[BASELINE], of)),
            text(robustness.gap(recorded[name], of)),
            robustness.explains(
                robustness.gap(recorded[name], of), robustness.gap_less(recorded[name], recorded[BASELINE], of)
            ),
        )
        for rival, name, letter, of in (
            ("the rate is warmed up again", "equal ratio", "A", outcomes.acquired),
            ("the rate is warmed up again", "equal ratio", "F", outcomes.forgot),
            ("the new text is strange to the model", "own world", "A", outcomes.acquired),
            ("AdamW's normalisation", "SGD", "A", outcomes.acquired),
            ("AdamW's normalisation", "SGD", "F", outcomes.forgot),
        )
        if name in recorded
    ],
    ("rival", "arm without it", "", "gap of the baseline (points)", "gap without it (points)", "the gap"),
)

# %% [markdown]
# ## Inside pretraining
#
# The authors name it as their first limit: everything was measured in continual learning, whose optimizer and rate start anew. A small model can simply be pretrained again. Here one run is told other passages at each of four stages, for as many steps as the arms above, and nothing else of it changes: same
# text, same schedule, same optimizer state. Which passages belong to which stage rotates with the seed.

# %%
unbroken = inside.table(lab)
starts = ", ".join(map(str, unbroken[0].values["starts"])) if unbroken else "none: others trained the model"
print(f"{len(unbroken)} recorded runs of pretraining, told at the steps {starts}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-rivals-inside", "caption": "Passages told inside pretraining: acquisition over the steps in which they are told, what is left of it at the end of pretraining, and over the same steps the change of passages that nobody has told yet. Mean over models, band from lowest to highest."}, "image": {"alt": "Acquisition against the stage at which passages are told inside pretraining, with what is left at the end and with the drift of untold passages."}}
with plot.figure(height=3.2) as axes:
    told = [100 * share for share in inside.SCALES[lab.scale].stages] if unbroken else []
    for index, (of, label) in enumerate(
        ((inside.acquired, "while they are told"), (inside.kept, "left at the end"), (inside.drifted, "not told yet"))
    ):
        values = [[100 * v for v in of(r)] for r in unbroken]
        if values:
            plot.spread(axes, told[: len(values[0])], values, label, index=index)
    axes.axhline(0, color="#999999", linewidth=1)
    axes.set(xlabel="stage at which they are told (% of the schedule)", ylabel="A (%)", title="Told inside pretraining")
    if unbroken:
        axes.legend()

# %% [markdown]
# ## What is the middle?
#
# The advice of the paper is to start from the middle, and the middle is half of the schedule. But OLMo has one schedule. Is it the share of the schedule that matters, or the entropy, the loss, or the rate that a model has there? They come apart when schedules differ: here one cosine, one half as long, and a constant
# rate. Each candidate is read off the best starts of two schedules and has to find the best start of the third; what it loses against the true best is its *regret*.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-rivals-midstage", "caption": "K of the passages and P of the end tasks at the end of continual learning, against the share of the schedule that learning starts from, for three schedules of pretraining. Mean over models, band from lowest to highest."}, "image": {"alt": "Two panels, K and P at the end of continual learning against the share of the schedule, with one curve for each of three schedules."}}
schedules = midstage.table(lab)
with plot.figure(columns=2, height=3.2) as panels:
    for axes, outcome, unit in ((panels[0], "K", "nats a token"), (panels[1], "P", "%")):
        for index, (name, seeds) in enumerate(schedules.items()):
            x = [100 * midstage.share(r) for r in next(iter(seeds.values()))]
            values = [[midstage.OUTCOMES[outcome](r) for r in each] for each in seeds.values()]
            plot.spread(axes, x, values, name, index=index)
        axes.set(xlabel="stage (% of its schedule)", ylabel=f"{outcome} at the end ({unit})", title=f"{outcome} at the end")
    if schedules:
        panels[0].legend()

# %% tags=["hide-input"]
plot.table(
    [
        (f"{outcome} at the end", each.predictor, each.regret.short(3))
        for outcome in midstage.OUTCOMES
        for each in (midstage.predictions(schedules, outcome) if schedules else ())
    ],
    ("best by", "predicted by", "regret: nats for K, points for P; all runs as independent"),
)

# %% [markdown]
# ## What to conclude
#
# *The rise of forgetting is the rate that is warmed up again.* From the first to the last stage $F$ rises by {result}`rivals.baseline.F|+.1f` in the baseline. When each stage goes on at the rate it had, it changes by {result}`rivals.equal ratio.F|+.1f`: on average later models then forget less, though three models cannot settle that side. That the gap shrinks is beyond its interval. Nothing comes for free: at a tenth of the rate the last stage
# also takes in less, and ends at a $K$ of {result}`rivals.equal ratio.K after|.2f` instead of {result}`rivals.baseline.K after|.2f`, with {result}`rivals.equal ratio.P after|.0f` of its questions right instead of {result}`rivals.baseline.P after|.0f`. But that is a choice along one trade, open to every model, and no sign that late models have lost the ability to learn.
#
# *AdamW turns the mechanism round, and it makes no difference.* Under SGD the paper's argument can be seen: the memories that are used most move most, with a rank correlation of {result}`rivals.SGD.rank|.2f`. Under AdamW, with which both the paper's models and ours are trained, it is
# {result}`rivals.baseline.rank|.2f`: what is used most moves *least*, and the change is spread almost evenly. Yet the two gaps are alike, {result}`rivals.SGD.A|+.1f` and {result}`rivals.baseline.A|+.1f` of $A$, {result}`rivals.SGD.F|+.1f` and {result}`rivals.baseline.F|+.1f` of $F$. If concentrated updates were the cause, they should not be.
#
# *Forgetting follows how strange the new text is.* At a fixed stage, where $H$ is the same, a nat more of loss on the new text costs about {result}`rivals.fit.F|.0f` of $F$, and changes $A$ by {result}`rivals.fit.A|+.1f`.
#
# *The rise of acquisition is mostly the start.* From every stage the run ends at nearly the same $K$; what differs is where it begins ({doc}`05_acquisition`). The paper's models all begin at nearly the same $K$, so there $A$ shows the ends.
#
# *The middle is not a share, and not an entropy.* Where the best start lies differs from schedule to schedule ({numref}`fig-rivals-midstage`): with a constant rate, what a model keeps is best from the very end. Of the candidates the loss on the model's own world finds the best start of an unseen schedule with the least regret,
# {result}`midstage.K.loss on its own world|.3f` of $K$ and {result}`midstage.P.loss on its own world|.1f` of $P$; half of the schedule costs {result}`midstage.K.half of the schedule|.3f` and {result}`midstage.P.half of the schedule|.1f`, entropy {result}`midstage.K.entropy H|.3f` and {result}`midstage.P.entropy H|.1f`. The
# differences between the first three are within their intervals.
#
# *Told inside pretraining, every stage takes in about as much.* $A$ over the steps in which passages are told is {result}`inside.A.first|.0f` at the first of the four stages and {result}`inside.A.last|.0f` at the last, although the rate has fallen to about a tenth by then. What fades is what was told early: at the end of
# pretraining {result}`inside.kept.first|.0f` of the first telling's gain is left, because thousands of steps of other text have passed over it.
#
# ## What we tried
#
# Two numbers of this chapter were chosen by looking at single runs of the last stage of the first model, before anything was recorded. The rate of SGD: at AdamW's own coefficient of decay it shrank all weights, because decay is multiplied by the rate and SGD's is large; so the coefficient was set for the same decay a step. Then a rate of three
# tenths brought the loss on the new text closest to where AdamW brings it, a tenth less close. And the length of the run: a third of the tokens of {doc}`05_acquisition`'s, so that all arms fit. Nothing else was tried, and every arm that was run is shown.
#
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | runs | one for each stage and setting | three, each from a model of its own |
# | passages | all of them | fewer, and a shorter run |
# | pretraining with passages inside | none | one run a seed, four stages |
# | schedules | one | three |
# | corpora by perplexity (figure 10) | entities of PubMed and C4, by another model | the loss on each text |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-adam
# Two weights have gradients that always differ by a factor of a hundred. How much do their first AdamW updates differ? And those of SGD?
# ```
#
# ```{solution-start} ex-adam
# :class: dropdown
# ```

# %%
import torch

moved = {}
for name, make in (
    ("AdamW", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0)),
    ("SGD", lambda p: torch.optim.SGD(p, lr=0.1)),
):
    weights = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = make([weights])
    weights.grad = torch.tensor([0.01, 1.0], dtype=torch.float64)
    optimizer.step()
    first, second = weights.detach()
    moved[name] = float(second / first)
    print(f"{name}: the second moves {moved[name]:.2f} times as far")
assert abs(moved["AdamW"] - 1) < 1e-3 and abs(moved["SGD"] - 100) < 1e-6

# %% [markdown]
# AdamW's do not differ at all. A coefficient that scales the gradient of a value does not scale its update, as long as it scales it steadily.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-jump
# A cosine from the peak to a tenth of it. By which factor does the rate jump when learning restarts at the peak, from 20 %, 50 % and 100 % of the schedule?
# ```
#
# ```{solution-start} ex-jump
# :class: dropdown
# ```

# %%
from kemem.training import Recipe

recipe = Recipe(steps=1000, batch_size=1, learning_rate=1.0)
jumps = [1 / recipe.rate(round(share * 1000) - 1) for share in (0.2, 0.5, 1.0)]
print(", ".join(f"{jump:.1f}" for jump in jumps))
assert abs(jumps[-1] - 10) < 1e-9 and jumps[0] < 1.2

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Summary
#
# - Change one thing at a time. The gap in forgetting between early and late models is gone when the rate is not warmed up again; it stays under SGD, with a higher rate, with more epochs and in a smaller model; with a larger batch and with a lower rate three models cannot tell.
# - The gradient argument for entropy is right about gradients. AdamW's updates go the other way, and the outcome is the same.
# - Where a schedule should be left depends on the schedule. The loss is as good a guide as any of the candidates.
# - None of the explanations needs entropy. Whether entropy can do anything by itself is the next chapter's question.
