# %% [markdown]
# ## What makes a fact hard to write?
#
# An average over facts hides which of them were hard. The authors split their scores by relation (figure 6) and find large differences: some relations lose their neighbours, others are not written at all. They give no cause, and a review asks for one. A cause would be worth having. Whoever knows beforehand which facts are hard can check those, write them in
# smaller batches, or weigh the old memory more.
#
# So we write the facts of one relation at a time, as many of each, by three methods, and look at the differences. Then we ask whether anything that can be measured *before* the edit tells how it will go.

# %%
import math

from kemem.studies import explaining, findings, hardness, implications, relations

by_relation = relations.run(lab, scale, seed=seed, live=6)
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


with plot.figure(height=1.4 + 0.34 * len(names)) as axes:
    for index, method in enumerate(relations.METHODS):
        for row, name in enumerate(names):
            scores = [relations.score(each.alone[method][name]) for each in by_relation]
            plotted(axes, row + 0.2 * (1 - index), scores, index, f"{method} ({draws})" if row == 0 else None)
    axes.set(
        yticks=range(len(names)), yticklabels=[said(name) for name in names], xlabel="S (%)",
        title="Facts of one relation, by method",
    )  # fmt: skip
    axes.figure.legend(loc="outside lower center", ncols=2)

# %% [markdown]
# Differences between relations could be chance: each point rests on {result}`relations.facts` facts. So the easiest and the hardest relation were chosen on *other* facts, those that are kept for tuning, and are compared on the reported ones. The easiest was *{result}`relations.easiest`*, with an S of {result}`relations.easiest.S|.0f` on
# reported facts; the hardest *{result}`relations.hardest`*, with {result}`relations.hardest.S|.0f`.
#
# <!-- LEAD: one sentence on the spread of MEMIT over relations, {result}`relations.MEMIT.least|.0f` to {result}`relations.MEMIT.most|.0f`, and whether MEMIT lies above the others in every relation, when the laptop rows are there. -->
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
best, chance = explaining.strongest(X, S)


def ranked(column, response):
    r, low, high = explaining.correlation(X[:, column], response)
    ends = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    return f"{r:+.2f}{ends}".replace("-", "\N{MINUS SIGN}")


responses = {"S": S, **{name: relations.table(by_relation, name)[2] for name in ("ES", "PS", "NS")}}
plot.table(
    [
        (hardness.PREDICTORS[name], *(ranked(column, own) for own in responses.values()))
        for column, name in enumerate(hardness.PREDICTORS)
    ],
    ("measured before, over relations", *(f"rank correlation with {name}" for name in responses)),
)

# %% [markdown]
# The strongest of seven is strong by choice alone. How strong would the strongest be, had the scores been dealt out at random among the relations?

# %% tags=["hide-input"]
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
# <!-- LEAD: one sentence that says whether the rule holds for the other half, by these two shares, and which predictor it leans on. If neither share is small: say that nothing measured before the edit was found to tell which relation is hard, with this many relations. -->
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
# <!-- LEAD: one sentence on what the mixtures show, when the laptop rows are there. -->
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
following = implications.draws(lab, scale, seed=seed)
print(
    f"edits with something that follows, {draws}: "
    + ", ".join(f"{way} {sum(row.values['ways'][way]['facts'] for row in following)}" for way in implications.WAYS)
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-implications", "caption": "Single edits by MEMIT: how often the answer that follows is likelier than the one that was true. Before, after the fact was written, after the consequence had an edit of its own, and after both were written together. Mean over draws of facts; bars are intervals over draws, or over facts where there is one draw."}, "image": {"alt": "For each way in which something follows from a fact, four points: success on the implied question before the edit, after it, after an edit of its own, and after both edits together."}}
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
)  # fmt: skip

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
)  # fmt: skip

# %% [markdown]
# ## Kinds of knowledge
#
# The paper edits facts of the form *subject, relation, object*, nearly all of them about people and places. Is anything different about years, numbers, word forms or the steps of a recipe? Each kind, written singly; where no other subject shares an object, as with word forms, there are no neighbours and no NS.


# %% tags=["hide-input"]
def scored(kind, when, name):
    found = [row.values["kinds"][kind][when][name] for row in following]
    known = [value for value in found if value is not None]
    return f"{sum(known) / len(known):.0f} %" if known else "none"


kinds = following[0].values["kinds"]
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
)  # fmt: skip

# %% [markdown]
# ## What holds here, by relation and by consequence
#
# MEMIT above fine-tuning and MEND in each relation ({claim}`memit.14`), a mixture near the mean of its two relations ({claim}`memit.15`); and from the reviews, that facts which are alike are written as well as others ({claim}`review.similar-facts`), that some relations are hard whatever the subject ({claim}`review.hard-relations`), and that the reverse of a
# fact needs an edit of its own ({claim}`review.reverse-fact`). Where a mixture is compared, the first line takes the mean of scores, as the paper does; the second takes the facts together.

# %% tags=["hide-input"]
claims.table(
    lab,
    *(claims.CLAIMS[name] for name in ("memit.14", "memit.15")),
    *(claims.CLAIMS[f"review.{name}"] for name in ("similar-facts", "hard-relations", "reverse-fact")),
)

# %% [markdown]
# <!-- LEAD: to be joined with "What to conclude" of the first half.
# 1. Spread over relations: {result}`relations.MEMIT.least|.0f` to {result}`relations.MEMIT.most|.0f`; easiest and hardest on fresh facts; FT-W {result}`relations.FT-W.mean|.0f` and MEND {result}`relations.MEND.mean|.0f` on average.
# 2. Predictors: the strongest, {result}`relations.best` with p {result}`relations.best.p|.2f`; the rule on the other half.
# 3. Mixtures: which pair departs from the mean, and whether it still does with both taken together.
# 4. Consequences: change on reversed questions {result}`implied.reversed.change|+.1f` points over {result}`implied.reversed.facts` questions; chain {result}`implied.chain.change|+.1f`, two steps {result}`implied.two steps.change|+.1f`; an edit of its own {result}`implied.inverse.own|.0f` for inverse.
#    If "two steps" moves and "inverse" does not, the reason is the place of the edit: a question that names the subject reads the edited key, one that names the object does not.
# 5. Kinds: which lose PS; {result}`implied.date.PS|.0f`, {result}`implied.number.PS|.0f`, {result}`implied.procedure.PS|.0f` against {result}`implied.plain.PS|.0f`.
# -->
#
# Why should a reversed question behave differently from a question in two steps? The edit changes what is found under one key, that of the subject. A question that names the subject finds it. A reversed question names the *object*, whose key is another one, and nothing was written there. The same holds for chains: the end of the chain is stored under the
# city's own name, so that a question on its country finds both what was stored there and what the edit has put beside it.
#
# ## What differs from the paper, for relations
#
# | | paper | here |
# | --- | --- | --- |
# | relations | those of CounterFact with three hundred facts or more | those of which the model knows {result}`relations.facts` reported facts |
# | facts | in CounterFact, whether known or not | only those that the model says by itself |
# | hard relations | named, from the figure | chosen on tuning facts, tested on others; a rule tried on the other half |
# | mixtures | against the mean of both scores | that, and against both taken together |
# | other kinds of knowledge | left out | dates, numbers, containment, order, symmetric and inverse relations, word forms, procedures |
# | consequences | none | reversed, chained and in two steps, with an edit of their own as control |
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
