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
# (ch-memories)=
# # Feed-forward layers are memories
#
# :::{admonition} This chapter
# :class: tip
# **Goal.** See that a feed-forward layer is a table of key-value memories: check the equation on a running model, look up what single
# memories fire on and which tokens they write, and remove some. \
# **You need.** Matrix products, and what a transformer layer is. \
# **Paper.** Kim et al. {cite}`kim2025knowledge`, section 3.1 and appendix A.1; the view is that of Geva et al. {cite}`geva2021transformer`. \
# **Reading time.** About 20 minutes.
#
# ```{runtime} 01_memories
# ```
# :::
#
# Most of the weights of a language model are in its feed-forward layers, and much of what it knows is too. All three papers of this book look
# at the same tensor inside them. Kim et al. call it the memory coefficient, Meng et al. the key $k$ whose value they rewrite, and Ke et al. gate
# it to see which units matter. This chapter says what that tensor is, and looks at it until it is familiar.

# %% tags=["parameters"]
scale = "laptop"  # sizes of everything: smoke, laptop, gpu or paper
seed = 0  # that of the model that is looked at
device = "auto"  # auto, cpu, cuda or mps
dtype = None  # float32, bfloat16 or float64; None: the scale's own
batch_size = None  # rows through the model at once; None: what each study says, which needs little memory

# %%
from kemem import book, plot
from kemem.studies import memories

lab = book.open_chapter("01_memories", globals())
settings = memories.settings(scale, seed=seed, dtype=dtype, device=lab.card)
row = memories.run(lab, settings)
v = row.values
print(f"{v['layers']} layers of {v['memories']} memories, each a vector of {v['width']} numbers; {row.origin} row {row.digest}")

# %% [markdown]
# ## Equation 1
#
# The feed-forward layer of the first transformers maps the representation $x \in \mathbb{R}^D$ of one token to
#
# ```{math}
# :label: eq-ffn
# \mathrm{FFN}(x) = f(x K^\top)\, V = \sum_{i=1}^{M} c_i\, v_i ,
# \qquad c_i = f(x \cdot k_i) .
# ```
#
# Row $k_i$ of the first matrix is a *key*: its product with $x$ says how well the input matches. $f$ keeps the good matches. Row $v_i$ of the second
# matrix is a *value*: what is written into the residual stream. And $c_i$, the *coefficient*, says how much of it. That is a lookup in a soft
# table of $M$ entries, which Sukhbaatar et al. {cite}`sukhbaatar2019augmenting` and Geva et al. {cite}`geva2021transformer` read as a memory.
#
# OLMo and most models since have gated layers {cite}`shazeer2020glu`: two first matrices instead of one, a gate $G$ and the keys $K$, with
#
# ```{math}
# :label: eq-gated
# c = \mathrm{silu}(G x) \odot (K x) .
# ```
#
# The sum over $c_i v_i$ stays as it was. In every architecture the coefficient is simply *what enters the last projection*, and that is how this book reads it:
# one hook on that projection, over the unmodified model of `transformers`.
#
# ```python
# memories = kemem.Memories(model)            # knows where each family keeps its projections
# with memories.coefficients(callback):       # callback(layer, c) with c of shape [B T M]
#     model(ids)
# ```
#
# Is {eq}`eq-ffn` really what the model computes? Take the coefficients of some tokens, sum $c_i v_i$ memory by memory, and compare with what the layer put out.

# %%
book.source(memories.identity)

# %% tags=["hide-input"]
plot.table(
    [(layer, "yes" if error < 1e-5 else "no") for layer, error in enumerate(v["identity"])],
    ("layer", "equal to 1 in 100,000 of the largest output"),
)

# %% [markdown]
# ## How many memories carry one output?
#
# All $M$ coefficients are different from zero: silu never is exactly 0. But are they all needed? Keep the $k$ largest at each token, drop the others, and see what share of
# the output vector is lost.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-memories-carried", "caption": "What is lost of a layer's output if only the k largest coefficients of each token are kept (mean over tokens of the length of the rest over the length of the whole)."}, "image": {"alt": "One falling curve per layer: the share of the output that is lost against the number of memories kept, on a logarithmic axis. Some layers need few memories for most of the output, others many."}}
with plot.figure() as axes:
    for layer in range(v["layers"]):
        kept = sorted(int(k) for k in v["carried"])
        plot.series(axes, kept, [100 * v["carried"][str(k)][layer] for k in kept], f"layer {layer}", origin=row.origin, index=layer)
    axes.set(xscale="log", xlabel="memories kept at each token", ylabel="lost (% of the output)", title="How many memories carry an output", ylim=(0, None))
    axes.legend()

# %% [markdown]
# A token does not use a handful of memories, nor all alike. Keep two different questions apart, because the next chapters live on the difference:
#
# - how widely does *one token* spread its work over the memories of a layer?
# - how widely is the work spread *over a whole text*?
#
# Each token may use few memories and yet every memory may be somebody's. With $\bar c$ the mean of $|c|$ over tokens and $H$ the entropy of what is normalised to sum 1,
# $H(\bar c) \ge \overline{H(c)}$ always, since entropy is concave. Knowledge entropy ({doc}`03_entropy_decay`) is the left one.

# %% tags=["hide-input"]
plot.table(
    [
        (layer, f"{e['of_mean']:.2f}", f"{e['mean_of']:.2f}", f"{2.718281828 ** e['of_mean']:.0f}", f"{2.718281828 ** e['mean_of']:.0f}")
        for layer, e in enumerate(v["entropies"])
    ],
    ("layer", "H of the mean use", "mean H of single tokens", "effective memories, text", "effective memories, token"),
)

# %% [markdown]
# "Effective memories" is $e^{H}$: that many equally used memories would have the same entropy.
#
# ## The sign
#
# With a ReLU, coefficients are positive and a value can only be added. A gated coefficient can be negative: {result}`memories.negative|.0f` of them are, here.
# Then the memory writes $-v_i$, the opposite of its value. The paper takes $|c_i|$ as the amount of work; {doc}`03_entropy_decay` tries the alternatives.
#
# ## What single memories fire on
#
# For each layer, the memories whose strongest firings stand highest above their mean use, and the places in held-out text where they fire most (one a document).
# The token they fire on is in bold, its successor in italics. Arrows are line ends.

# %% tags=["hide-input"]
def context(c):
    before, at, following = (plot.plain(c[part].strip()) or "␣" for part in ("before", "at", "next"))
    return f"… {before} **{at}** *{following}*"

plot.table(
    [
        (m["layer"], m["memory"], f"{m['contexts'][0]['coefficient']:+.2f}", "; ".join(context(c) for c in m["contexts"][:4]))
        for m in v["shown"]
    ],
    ("layer", "memory", "strongest", "where it fires"),
)

# %% [markdown]
# ## Which tokens they write
#
# The last projection turns the residual stream into a score for each token. Since the stream is a sum, each memory's share of it can be sent through that projection alone:
#
# ```{math}
# :label: eq-lens
# \text{logits}_i = c_i\, W_U v_i .
# ```
#
# This ignores the final norm and all later layers. For the same memories, the tokens that they raise most where they fire:

# %% tags=["hide-input"]
plot.table(
    [(m["layer"], m["memory"], ", ".join(f"“{plot.plain(t.strip()) or '␣'}”" for t in m["writes"])) for m in v["shown"]],
    ("layer", "memory", "tokens it raises most"),
)

# %% [markdown]
# A table of chosen examples proves nothing, so here is the count over *all* memories: at the places where a memory fires most, is the token that really follows among the ten that
# it raises most? For comparison, the same question with the value of another memory in its place.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-memories-promoted", "caption": "How often the true next token is among the ten that a memory raises most, at its strongest firings, by layer; and with another memory's value instead."}, "image": {"alt": "Two curves over layers: the share of hits of the memories themselves, and the lower share by chance. In later layers the gap between the two differs from that in earlier ones."}}
with plot.figure(height=2.8) as axes:
    layers = range(v["layers"])
    plot.series(axes, layers, [100 * p["hit"] for p in v["promoted"]], "its own value", origin=row.origin)
    plot.series(axes, layers, [100 * p["chance"] for p in v["promoted"]], "another's value", origin=row.origin, index=1)
    axes.set(xlabel="layer", ylabel="hits (%)", xticks=list(layers), title="Do memories write the next token?", ylim=(0, None))
    axes.legend()

# %% [markdown]
# In the last layer a memory names the next token in {result}`memories.hit.last|.0f` of its strongest firings, against {result}`memories.chance.last|.0f` for a value that is not its own.
#
# ## Remove one
#
# If {eq}`eq-ffn` is the right way to cut the layer, we can say beforehand what happens when one memory is taken out at one token: the logit of token $t$ should change by
#
# ```{math}
# :label: eq-removal
# \Delta_t \approx - \frac{c_i\,(W_U v_i)_t}{\sigma(h)} ,
# ```
#
# with $\sigma(h)$ the scale by which the final norm divides. Later layers may react, and {eq}`eq-removal` knows nothing of that.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-memories-removed", "caption": "Change of the logit of the token that a memory raises most when that memory is removed at the token where it fires most: foretold by its value, and seen. One point a memory; the line is equality."}, "image": {"alt": "Two scatter plots with the line of equality, for the first and the last layer. In the last layer the points lie close to the line; in the first they scatter around it."}}
with plot.figure(columns=2, height=3.4) as both:
    for axes, layer in zip(both, (0, v["layers"] - 1), strict=True):
        removed = v["removed"][layer]
        ends = [min(removed["foretold"] + removed["seen"]), max(removed["foretold"] + removed["seen"])]
        axes.plot(ends, ends, color="#999999", linewidth=1)
        axes.plot(removed["foretold"], removed["seen"], linestyle="none", **{k: x for k, x in plot.look(row.origin, layer).items() if k != "linestyle"})
        axes.set(xlabel="foretold change of the logit", ylabel="seen", title=f"Layer {layer}: correlation {memories.agreement(removed):.2f}")

# %% [markdown]
# For the last layer, whose output goes almost straight to the vocabulary, what is foretold and what is seen go together (correlation {result}`memories.agreement.last|.2f`); the seen change is mostly smaller, since the norm's scale shrinks with what is taken out. For the first layer the correlation is
# {result}`memories.agreement.first|.2f`: what a memory *does* there is mostly read by later layers. That is the reason why chapter after chapter of this book edits memories and then
# runs the whole model, instead of reading the edit off the weights.
#
# ## Why coefficients matter for learning
#
# The gradient of the loss for one value is, from {eq}`eq-ffn`,
#
# ```{math}
# :label: eq-gradient
# \frac{\partial \mathcal{L}}{\partial v_i} = c_i \, \frac{\partial \mathcal{L}}{\partial\, \mathrm{FFN}(x)} .
# ```
#
# All values of a layer share the same upstream gradient; the coefficient alone says who gets how much of it (appendix A.1 of the paper). A layer in which a few memories do all the work will write what is new into those few. That is
# the paper's argument for why the *spread* of use should matter. It is an argument about plain gradients; AdamW divides each by its own running size, and a later chapter asks what is left of it then.
#
# ## What differs from the paper
#
# | | paper | here |
# | --- | --- | --- |
# | how the coefficient is read | a fork of the model's code that returns it | a hook on the last projection of the unmodified model, for ten families |
# | biases | left out | `values @ c + bias` where a family has them |
# | single memories | not shown | contexts, tokens, removal |
#
# ## Exercises
#
# ```{exercise}
# :label: ex-concave
# Show on numbers that the entropy of a mean is at least the mean of the entropies, and find a case in which they are equal.
# ```
#
# ```{solution-start} ex-concave
# :class: dropdown
# ```

# %%
import torch

from kemem.entropy import layer_entropy

tokens = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # each token uses one memory of its own
print(f"entropy of the mean {layer_entropy(tokens.mean(0)):.4f}, mean of the entropies {layer_entropy(tokens).mean():.4f}")
same = torch.tensor([[0.5, 0.3, 0.2]]).repeat(3, 1)  # all tokens use the same ones
assert torch.isclose(layer_entropy(same.mean(0)), layer_entropy(same).mean())

# %% [markdown]
# The first is $\ln 3$, the second 0: the widest use of a text by the narrowest tokens. They are equal when all tokens use memories in the same proportions.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-scale-key
# In a gated layer, multiply row $i$ of $K$ by 2. What happens to $c_i$? And in an ungated layer with GELU?
# ```
#
# ```{solution-start} ex-scale-key
# :class: dropdown
# ```

# %%
x, gate, key = torch.tensor(0.7), torch.tensor(1.3), torch.tensor(-0.4)
gated = [float(torch.nn.functional.silu(gate * x) * (k * x)) for k in (key, 2 * key)]
ungated = [float(torch.nn.functional.gelu(k * x)) for k in (key, 2 * key)]
print(f"gated: factor {gated[1] / gated[0]:.3f}; ungated: factor {ungated[1] / ungated[0]:.3f}")
assert abs(gated[1] / gated[0] - 2) < 1e-6 and abs(ungated[1] / ungated[0] - 2) > 0.1

# %% [markdown]
# In the gated layer $c_i$ is linear in $k_i$, so it doubles exactly. With GELU between key and coefficient it does not. The paper's resuscitation scales keys, and so it is exact in gated models only.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - A feed-forward layer is a sum of $M$ values, weighted by coefficients; that holds to rounding in a running model.
# - The coefficient is the input of the last projection, in every architecture. It is the one tensor that all three papers share.
# - One token and a whole text use memories differently widely; knowledge entropy is about the text.
# - A memory's value foretells what it does to the output, well in the last layer and less well the more layers follow.
