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
# (ch-your-own)=
# # Your own checkpoints
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** Take a model, a text and a list of facts of your own, and get the book's figures for them: entropy along your checkpoints, where a fact is looked up, what an edit does. Then do it for a kind of model that this book has never seen. \
# **You need.** {doc}`03_entropy_decay`, {doc}`11_knowledge_base` and {doc}`13_thousands` for what the figures mean; a folder written by `save_pretrained`, or a name on the hub. \
# **Paper.** None of its own: equation 2 of Kim et al. {cite}`kim2025knowledge`, figures 2 and 3 and equation 14 of Meng et al. {cite}`meng2023memit`, for other models than theirs. \
# **Reading time.** About 20 minutes.
#
# ```{runtime} 16_your_own
# ```
# :::
#
# Whoever trains models has a folder full of checkpoints and a question about them. This chapter is one notebook for that. Four things can be brought, each in a form that is common anyway, and all of them go into the cell below or onto the command line:
#
# | parameter | what it is |
# | --- | --- |
# | `model` | a folder in the layout of `transformers`, or one whose sub-folders are stages of a model, or a name on the hub |
# | `revisions` | which stages: names of sub-folders or branches, separated by blanks; the beginning of a branch is enough (`step1000`) |
# | `text` | lines of jsonl with a field `text`, or a txt file with a text a line, or any corpus that {doc}`../pages/data` knows, such as `hub:c4` |
# | `requests` | facts to be rewritten, as JSON in the schema of CounterFact, EasyEdit or zsRE, or a set of the hub, `hub:counterfact` |
#
# ```bash
# kemem run 16 -p model=my_model -p revisions="step1000 step9000" -p text=texts.jsonl -p requests=facts.json
# ```
#
# Nothing has to be brought: with nothing given the example of the book is shown, and so this page says what to expect. With a `model` of yours the texts are docstrings unless you name others, and without `requests` it is measured, and nothing is traced or edited.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # of the noise in traces and of the model's own prefixes in edits
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory
model = None  # a folder or hub name; None: the checkpoints of chapter 02 that come with the book
revisions = None  # its stages to look at, separated by blanks; None: all sub-folders, of a hub name the main branch
text = None  # a file of texts, or any corpus; None: docstrings, or with no model text of the world that the book's has read
requests = None  # a JSON file of facts; None: nothing is traced or edited, or with no model some of that world
instances = None  # how many of the texts, the first ones; None: the scale's own
facts = None  # how many of the requests, the first ones; None: the scale's own
layers = None  # to edit, as a list; None: those that tracing points to
weight = None  # lambda of the edit; None: several are tried
layout = None  # a JSON file that says where a model of another family keeps its memories

# %%
from kemem import book, plot
from kemem.studies import own, own_checks, own_rows, tour

lab = book.open_chapter("16_your_own", globals())
mine = own.given(
    lab, model=model, revisions=revisions, text=text, requests=requests, layout=layout, instances=instances,
    facts=facts, layers=layers, weight=weight, seed=seed, dtype=dtype,
)  # fmt: skip

# %% [markdown]
# Everything is looked at before anything runs: the model's configuration, its tokenizer, the stages, the texts, the requests, and that each subject is found in its prompt. What cannot be measured is refused here, in one line that says what to do. This is what was brought:

# %%
print(f"{mine.outline}, {len(mine.revisions)} stages: {' '.join(mine.revisions) or 'the model itself'}")
print(f"{len(mine.texts)} texts, the first of them: {mine.texts[0][:64]} ...")
for request in mine.requests[:1]:
    print(f"{len(mine.requests)} requests, the first of them: {request.text} ... {request.true} -> {request.new}")

# %% [markdown]
# A line of the text is an object with a field `text`. A request in the shortest schema, that of EasyEdit, is one as well:
#
# ```python
# {"text": "Ada Byron was born in Rome. Her mother tongue is Italian."}
# {"prompt": "Ada Byron was born in", "subject": "Ada Byron", "target_new": "Paris", "ground_truth": "Rome"}
# ```
#
# `ground_truth` is what the model is believed to say now. Without it a fact can be written but not traced. Prompts in other words and about other subjects, which CounterFact has for every record, are what an edit is judged by; without them only its efficacy is known.
#
# Rows of this chapter know all of this by its *content*: move the folder, and finished rows are found again; train another epoch into it, and they are computed anew.
#
# ## What to look out for
#
# Most wrong numbers from a new model are not errors of arithmetic but of reading: a tokenizer that is not the model's, a missing first token, a space too few. This list is read from the configuration and the tokenizer.

# %%
plot.table(own_checks.checklist(mine), ("of this model", "here", "what follows"))

# %% [markdown]
# - **A space before a word.** In most vocabularies " Paris" and "Paris" are different tokens, and only the first occurs in running text. What is scored here always opens with a space, and prompts end without one. Write your prompts and objects without spaces at their ends.
# - **The first token.** Some models have never read a text without a special token in front, and say strange things when they must. Prompts get what the tokenizer puts there by default. Texts for entropy are read without, as in the paper.
# - **Number types.** Half precision halves the memory and leaves about three digits of a coefficient. Compare stages in one type only, and use `float32` where small differences matter; the sums are in `float64` in any case.
# - **Activations without zeros.** SiLU and GELU never give exactly zero, so every memory works at least a little and its usage is positive. After a ReLU some memories may never work on your text at all. Entropy does not mind, as $0 \ln 0 = 0$, but such a memory has no factor that would wake it ({doc}`07_resuscitation`): measure on more text.
# - **What cannot be done.** A mixture of experts is refused: which expert a token reaches is not a coefficient. Families that normalise the output of the feed-forward layer (`olmo2`) can be measured and traced, but not edited by keys; models that fill in masked tokens (`bert`, `roberta`) can only be measured. Quantised weights are refused, since they are not what the layer multiplies by; merge adapters before you save.
# - **Few texts.** A mean over few tokens looks more concentrated than it is. Look at {numref}`fig-entropy-convergence` before you believe a difference, and compare stages on the same texts.
#
# ## Entropy along the checkpoints
#
# The definition is that of {doc}`03_entropy_decay`: the coefficients' magnitudes are averaged over the tokens of a text and over texts, and the entropy of their shares is summed over layers,
#
# ```{math}
# :label: eq-own-entropy
# H(\theta) = - \sum_{l=1}^{L} \sum_{i=1}^{M} p^{(l)}_i \ln p^{(l)}_i , \qquad p^{(l)}_i = \frac{\bar C^{(l)}_i}{\sum_k \bar C^{(l)}_k} .
# ```
#
# ```bash
# kemem entropy my_model --revision step1000 --revision step9000 --corpus files:texts.jsonl --attention --json entropy.json
# ```

# %%
measured = own_rows.entropies(lab, mine)
seen, bound = measured.values["stages"], measured.values["bound"]
print(f"at most {bound:.2f} nats; {measured.origin} row {measured.digest}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-entropy", "caption": "What your checkpoints look like: the effective share of memories (left) and the deficit of each layer from ln M (right), along the stages. Here: the model of chapter 02 that comes with the book, on text of its made-up world."}, "image": {"alt": "Two panels over the stages of a model: the effective share of memories in percent, which falls from the untrained model on and rises a little at the last stage, and the deficit of each layer in nats, one curve a layer, the first layer's far above the others."}}
import math

places = [own_rows.place(stage["revision"], i) for i, stage in enumerate(seen)]
limit = math.log(measured.values["memories"])
with plot.figure(columns=2, height=3.2) as (left, right):
    plot.series(left, places, [100 * s["effective_share"] for s in seen], "all layers", origin=measured.origin)
    left.set(xlabel="stage (number in its name)", ylabel="effective share (%)", title="Along the checkpoints")
    for layer in range(measured.values["layers"]):
        plot.series(right, places, [limit - s["layers"][layer] for s in seen], f"layer {layer}", origin=measured.origin, index=layer)
    right.set(xlabel="stage (number in its name)", ylabel="deficit (nats)", title="Layer by layer")
    right.legend(fontsize=7)

# %% tags=["hide-input"]
plot.table(
    [
        (s["revision"] or "as it is", f"{s['entropy']:.3f}", f"{bound - s['entropy']:.3f}", f"{100 * s['effective_share']:.1f} %",
         f"{s['loss']:.2f}" if "loss" in s else "", f"{s['next_token']:.2f}" if "next_token" in s else "",
         f"{sum(s['attention']):.2f}" if "attention" in s else "")
        for s in seen
    ],
    ("stage", "H (nats)", "deficit (nats)", "effective share", "loss (nats a token)", "next-token entropy (nats)", "attention entropy (nats)"),
)  # fmt: skip

# %% [markdown]
# The effective share goes from {result}`own.share.first|.1f`, untrained, to {result}`own.share.last|.1f` at the last stage. Look at the loss first: if it is no lower than a model's that has learned nothing, the logarithm of the vocabulary, the text is not read as the model reads it, and no other number of this page means anything. How to read yours: the first fall, from random weights on, is learning itself. The paper's claim is about what comes after, and this book found that it depends on how long and with how much weight decay a model is trained ({doc}`03_entropy_decay`). If you have several seeds, draw all of them before you speak of a trend: `-p model=run_a,run_b` makes a notebook for each.
#
# ## Where a fact is looked up
#
# A request says what is true now. Does the model know it? A fact counts as known if the most probable token after the prompt is the first of the object.

# %%
looked = own_rows.traced(lab, mine)
if looked is None:
    print(mine.untraceable)
else:
    print(f"{looked.values['known']} of {len(looked.values['asked'])} facts are known; {looked.origin} row {looked.digest}")

# %% tags=["hide-input"]
plot.table(
    [
        (plot.plain(f["prompt"]), plot.plain(f["true"]), f"{100 * f['p']:.1f} %", "yes" if f["known"] else "no")
        for f in (looked.values["asked"] if looked else [])[:12]
    ],
    ("prompt", "believed to be", "probability of its first token", "known"),
)

# %% [markdown]
# Known facts are traced as in {doc}`11_knowledge_base`: noise on the subject makes the answer improbable, and one clean state at a time is restored.
#
# ```bash
# kemem trace my_model --revision step9000 --facts known.json --json trace.json
# ```
#
# The command reads its facts in the schema of the published ones: `known_id`, `prompt`, `subject`, `attribute`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-trace", "caption": "Where the facts that the model knows are looked up. Left: how much of the answer's probability comes back when the state behind one layer is restored at one token. Right: the same at the subject's last token, as it is, and with all feed-forward or all attention outputs there held at their corrupted values. Where the curve without feed-forward layers lies far below the plain one, the effect passes through them: these are the layers to edit."}, "image": {"alt": "Left: heat map of tokens of the question by their role against layers, restored probability in points, large at the subject's last token in early layers and at the question's last token in late ones. Right: three curves over layers, of the plain effect and of the effects with feed-forward layers or attention severed."}}
if looked and looked.values["known"]:
    state, severed = looked.values["effects"]["state"], looked.values["severed"]
    roles = [role for role in tour.ROLES if role in state]
    with plot.figure(columns=2, height=3.0) as (left, right):
        points = [[100 * x for x in state[role]["value"]] for role in roles]
        shown = left.imshow(points, cmap="cividis", aspect="auto")
        left.set(xlabel="layer", title=f"State restored ({looked.origin})", yticks=range(len(roles)), yticklabels=[tour.ROLES[role] for role in roles])
        left.set_xticks(range(0, len(points[0]), max(1, len(points[0]) // 8)))
        left.grid(False)
        left.figure.colorbar(shown, ax=left, label="points of probability")
        for i, (name, label) in enumerate((("plain", "plain"), ("mlp", "without feed-forward"), ("attention", "without attention"))):
            plot.series(right, range(len(points[0])), [100 * x for x in severed[name]["value"]], label, origin=looked.origin, index=i)
        right.set(xlabel="layer", ylabel="points of probability", title="At the subject's last token", xticks=range(0, len(points[0]), max(1, len(points[0]) // 8)))
        right.legend(fontsize=7)

# %% [markdown]
# Of {result}`own.asked` facts of the example the model knows {result}`own.known`. What does it say about editing? The layers to write to are those through which the effect at the subject's last token passes: the run of layers around the largest gap between the plain effect and the one with feed-forward layers severed. Where no fact is known, or none could be traced, the layers of the paper's GPT-J are taken in proportion. Look at the figure before you trust either, and set `layers` where you see better. The example shows why: its model is so shallow that hardly anything of the effect passes through later feed-forward layers, and the gap is small everywhere. The map on the left does not decide it either, as a state that is restored behind the first layer contains the name's own embedding ({doc}`15_three_papers`): try the layers.

# %%
chosen = own_rows.layers(mine, looked)
print("layers to edit:", *chosen)

# %% [markdown]
# ## An edit
#
# MEMIT writes all requests at once. With keys $K$, what is lacking at them $R$, and the second moment $C$ of keys on *your* text,
#
# ```{math}
# :label: eq-own-edit
# \Delta = R K^{\top} \left( \lambda C + K K^{\top} \right)^{-1} .
# ```
#
# The weight $\lambda$ is how many ordinary keys the old memory counts as. The published value was tuned for one model and carries over to no other, but in units of the number of memories $M$ it can be read: at $\lambda = M$ an ordinary key gets half of what it lacks ({doc}`12_one_fact`). So several shares of $M$ are tried here, with the same target vectors. The command takes $\lambda$ itself: below it is a tenth of the example's $M$.
#
# ```bash
# kemem edit my_model --revision step9000 --requests facts.json --layers 0 --weight 38.4 --corpus files:texts.jsonl --out edited --json edit.json
# ```

# %%
written = own_rows.edited(lab, mine, chosen)
if written is None:
    print(mine.uneditable)
else:
    told = written.values
    print(f"{told['requests']} requests; keys on {told['tokens']:,} tokens for {told['memories']} memories; {written.origin} row {written.digest}")
    if told["tokens"] < 4 * told["memories"]:
        print("few tokens for so many memories: the moments are not to be trusted, bring more text")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-edit", "caption": "What an edit does, by the weight of the old memory in units of the number of memories M. Efficacy: the new object is more probable than the old one. Paraphrase: so it is in other words. Neighbourhood: other subjects keep theirs. Dotted: the same scores before."}, "image": {"alt": "Scores in percent against the weight lambda over M on a logarithmic axis: efficacy and paraphrase fall where the weight becomes large, neighbourhood rises."}}
NAMES = {
    "ES": "efficacy", "PS": "paraphrase", "NS": "neighbourhood", "rewrite_tokens": "rewrite, tokens",
    "paraphrase_tokens": "paraphrase, tokens", "locality_tokens": "locality, tokens",
}  # fmt: skip
if written is not None:
    scores = [name for name in own_rows.headline(written) if name in NAMES]
    with plot.figure(height=3.2) as axes:
        for i, name in enumerate(scores):
            plot.series(axes, [t["weight"] / told["memories"] for t in told["tried"]], [t[name] for t in told["tried"]], NAMES[name], origin=written.origin, index=i)
            axes.axhline(told["before"][name], color=plot.COLOURS[i], linestyle=":", linewidth=1)
        axes.set(xscale="log", ylim=(-3, 103), xlabel="λ / M", ylabel="score (%)", title="Before (dotted) and after")
        axes.legend()

# %% tags=["hide-input"]
kept = own_rows.best(written) if written else None
plot.table(
    [
        (NAMES.get(name, "all together (harmonic mean)"), f"{told['before'][name]:.1f}", f"{kept[name]:.1f}")
        for name in (own_rows.headline(written) if written else ())
    ],
    ("score (%)", "before", "after" if kept is None else f"after, λ = {kept['weight']:.4g}"),
)

# %% [markdown]
# In the example, efficacy goes from {result}`own.ES.before|.0f` to {result}`own.ES.after|.0f`, and the neighbours pay for it: {result}`own.NS.before|.0f` to {result}`own.NS.after|.0f`. The weight in this table is the one with the best score, chosen on the very requests that are scored. That is fine for a look and wrong for a paper: choose it on some requests, and report others.
#
# Scores compare probabilities. What does the model *write*?

# %% tags=["hide-input"]
plot.table(
    [
        (plot.plain(r.text), plot.plain(r.new), plot.plain(before), plot.plain(after))
        for r, before, after in zip(mine.requests, told["said"] if kept else [], kept["written"] if kept else [], strict=False)
    ],
    ("prompt", "asked for", "goes on, before", "goes on, after"),
)

# %% [markdown]
# ## A family that is not listed
#
# The package knows the module paths of ten families and guesses at none. Another one is refused:

# %%
import torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

from kemem import Layout, Memories, entropy, register
from kemem.errors import BadInput
from kemem.fitting import fitted

config = CONFIG_MAPPING["stablelm"](
    vocab_size=128, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
)  # fmt: skip
torch.manual_seed(seed)
other = AutoModelForCausalLM.from_config(config).double().eval()
try:
    Memories(other)
except BadInput as error:
    print(error)

# %% [markdown]
# What is missing is a *layout*: the names of a few modules, which `print(model)` shows. Five or six of them are enough.

# %%
print(other.model.layers[0].mlp)
theirs = Layout(
    block="model.layers.{}",  # the list of blocks
    up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj",  # the feed-forward layer
    activation="mlp.act_fn", attention="self_attn",
)  # fmt: skip
print(Memories(other, layout=theirs))

# %% [markdown]
# A wrong path or a size that does not fit is refused at once. But two things no size shows: which of two equally large projections is the gate, and whether something stands between the feed-forward layer and the stream. {py:func}`kemem.fitting.fitted` looks at them in one pass: the coefficients must be what the layout's weights and activation make of the input, and what is added to the layer's output must arrive in the stream. Here gate and up are swapped:

# %%
swapped = Layout(
    block="model.layers.{}", up="mlp.gate_proj", gate="mlp.up_proj", down="mlp.down_proj", activation="mlp.act_fn",
)  # fmt: skip
ids = torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(seed)).tolist()
for name, candidate in (("theirs", theirs), ("swapped", swapped)):
    try:
        print(f"{name}: {fitted(other, candidate, ids=ids)}")
    except BadInput as error:
        print(f"{name}: {error}")

# %% [markdown]
# Registered once, the layout holds for everything that takes a model of this family: entropy, waking, tracing, editing, the methods of part two.

# %%
register("stablelm", theirs)
found = entropy.measure(other, ids)
print(f"{found.entropy:.2f} of at most {found.bound:.2f} nats")
waken = entropy.multiplier(found.usage, fraction=0.5, gain=1.0)
with entropy.resuscitated(other, waken):
    print(f"{entropy.measure(other, ids).entropy:.2f} nats with idle memories woken")

# %% [markdown]
# For the commands and for this chapter the same names stand in a small JSON file:
#
# ```bash
# echo '{"block": "model.layers.{}", "up": "mlp.up_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj",
#        "activation": "mlp.act_fn", "attention": "self_attn"}' > layout.json
# kemem entropy my_model --layout layout.json --corpus files:texts.jsonl
# kemem run 16 -p model=my_model -p layout=layout.json -p text=texts.jsonl
# ```
#
# A module that is not of `transformers` at all has memories too, as long as its last projection is linear: `Memories(net, layout=...)` gives keys, values and, within its `coefficients`, what passes between them. `measure` and the editors need the rest of a language model around it.
#
# ## Models that are larger
#
# - **From the hub**, at one commit and checked, into a folder that this chapter then reads: `kemem fetch EleutherAI/pythia-160m --revision step1000 --to pythia/step1000`. All its steps: `kemem fetch EleutherAI/pythia-160m --list`.
# - **Native OLMo checkpoints** are converted first: `kemem convert step1000-unsharded --out my_olmo`.
# - **Larger than memory**: the commands take `--stream`, which keeps the blocks on the disk and reads each as it runs.
# - **On a card**: `kemem run 16 --scale gpu -p model=...` reads more text, more requests and longer contexts.
#
# ## What differs from the papers
#
# | | papers | here |
# | --- | --- | --- |
# | model | OLMo, GPT-J, GPT-NeoX | any of ten families, and others by a layout |
# | text for entropy and for key moments | Dolma; Wikipedia | yours, the same for both |
# | text of this page | held out | documents that the model has read: it shows the form, and is no measurement |
# | layers to edit | chosen by eye from a figure | the run of layers around the largest gap, or yours |
# | weight $\lambda$ | tuned for each model | shares of $M$, all shown |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-own-mistake
# You measure a checkpoint with the tokenizer of another model whose vocabulary is no larger. No error is raised. Would you see it in the entropy? Which line of the list above might show it, and what surely does? Try it on the example: give every token of the vocabulary the number of another.
# ```
#
# ```{solution-start} ex-own-mistake
# :class: dropdown
# ```

# %%
from kemem.corpora import instances as cut

example = own.given(lab)  # the book's own, whatever was brought
net, tok = own_rows.opened(lab, example, -1)
right = cut(example.texts[:24], tok, example.length).ids
dealt = torch.randperm(len(tok), generator=torch.Generator().manual_seed(1)).tolist()
wrong = [[dealt[i] for i in row] for row in right]
told = {}
for name, rows in (("right", right), ("wrong", wrong)):
    told[name] = entropy.measure(net, rows), own_rows.text_loss(net, rows)
    print(f"{name} tokens: entropy {told[name][0].entropy:.2f} nats, loss {told[name][1]:.2f} nats a token")
print(f"a guess among all {len(tok)} tokens: {math.log(len(tok)):.2f} nats a token")
assert told["wrong"][1] > math.log(len(tok)) > told["right"][1] + 3

# %% [markdown]
# The entropy is that of a model that might well exist: with wrong tokens it is lower, by as much as it changes over hundreds of steps of training, and one could take this for a finding. Nothing in it says that the text was gibberish to the model. The share of unknown tokens may be high with a real tokenizer of another model; here it is not. The loss is what surely shows it: it is worse than a guess among all tokens. And none of the model's facts would be known. Look at the loss on a text it must know before anything else.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-own-layout
# Write the layout of a model of your own, or of `phi` in `transformers`, whose feed-forward layer has no gate. What does `fitted` say if you leave out the activation, and what if you name the wrong one of two?
# ```
#
# ```{solution-start} ex-own-layout
# :class: dropdown
# ```

# %%
config = CONFIG_MAPPING["phi"](
    vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4,
)  # fmt: skip
torch.manual_seed(seed)
phi = AutoModelForCausalLM.from_config(config).double().eval()
ungated = {"block": "model.layers.{}", "up": "mlp.fc1", "down": "mlp.fc2"}
for activation in (None, "self_attn.dense", "mlp.activation_fn"):
    try:
        memories = fitted(phi, Layout(**ungated, activation=activation), ids=ids)
        print(memories)
    except BadInput as error:
        print(error)
assert not memories.gated

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Summary
#
# - A folder or hub name, its stages, a text and requests are enough for the figures of three parts of this book; each can be left out, and the rest still runs.
# - Check the reading before the results: tokenizer, first token, spaces, number type, and whether the model knows what you ask it.
# - Weights and layers do not carry over from one model to another. Read $\lambda$ in units of the number of memories, trace before you edit, and choose on other requests than you report.
# - A family that is not listed takes a layout of a few names; one pass tells whether it is right.
