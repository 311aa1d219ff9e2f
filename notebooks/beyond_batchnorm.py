# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Beyond BatchNorm: four claims about normalizers, on a small scale
#
# > **Take-away.** At this size the claims about groups (3) and about early gradients (4) look as the paper
# > describes them. The non-linearity on the branch does not cure the growth of the variance under parametric
# > normalizers (2), and whether activation normalizers grow along a line (1) takes deeper networks to tell.
#
# Lubana, Dick and Tanaka, *Beyond BatchNorm: Towards a Unified Understanding of Normalization in Deep
# Learning*, 2021, [arXiv 2106.05956](https://arxiv.org/abs/2106.05956), explain which normalizers train fast
# and stably by what a network does before it has learnt anything:
#
# 1. normalizers of activations keep the variance from growing exponentially along a residual network;
# 2. normalizers of weights do not, unless the residual block is changed;
# 3. the larger the groups of GroupNorm, the more alike the activations of different images become;
# 4. the smaller the groups, the larger the gradients of early layers: InstanceNorm, BatchNorm, GroupNorm,
#    LayerNorm, in this order.
#
# This notebook measures all four on scikit-learn's digits with networks that are narrow and short, so that it
# takes a minute or two. `python -m experiments reproduce beyond_batchnorm --preset cpu` measures them on CIFAR-100
# with five seeds, at the paper's depths and widths.
#
# It needs a checkout of the repository, for the networks and probes in `experiments`: on Colab, upload or clone
# one and change into it first.

# %%
# In the folder `notebooks` of a checkout; installs what is missing.
import sys
from importlib.util import find_spec

sys.path.append("..")  # for the experiments, which come with a checkout only
if not (find_spec("optax_gradnorm") and find_spec("flax")):
    get_ipython().run_line_magic("pip", "install --quiet ..[experiments]")

# %%

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

from experiments import models
from experiments.report.style import NORMALIZER_COLORS, STYLE
from experiments.studies.beyond_batchnorm import probes

plt.rcParams |= STYLE
print("running on", jax.default_backend())

# %% [markdown]
# ## Images and measures
#
# Digits of 8 x 8 pixels, each pixel repeated to give 32 x 32 as the networks want it. `insert_probes` puts a
# probe around every layer and every convolution; `propagate` runs the network forwards and backwards and
# returns what the probes saw, with everything that may explode as a logarithm.

# %%
digits = load_digits()
chosen = np.random.default_rng(0).permutation(len(digits.target))[:32]
images = jnp.asarray(
    np.kron(digits.images[chosen], np.ones((1, 4, 4)))[..., None] / 8 - 1, jnp.float32
)
labels = jnp.asarray(digits.target[chosen])
noise = jnp.asarray(np.random.default_rng(1).normal(size=(32, 8, 8, 1)), jnp.float32)


def measure(name, images, gradients=False):
    """Statistics of every unit, and the gradient norm of every convolution, of a fresh network."""
    model = models.create(
        name, num_classes=10, channels=1, image_size=images.shape[1], rngs=nnx.Rngs(0)
    )
    probed = probes.insert_probes(model)

    @jax.jit
    def run(params, batch_stats):
        statistics, _, _ = probes.propagate(probed, params, batch_stats, images, labels)
        # What is not returned is not computed.
        forward = {
            key: jnp.stack([statistics[unit][key] for unit in probed.units])
            for key in ("log_variance", "cosine_similarity", "stable_rank")
        }
        norms = [statistics[conv]["log_gradient_norm"] for conv in probed.convolutions]
        return forward | ({"log_gradient_norm": jnp.stack(norms)} if gradients else {})

    return jax.device_get(run(probed.params, probed.batch_stats))


# %% [markdown]
# ## Claim 1: activation normalizers
#
# A residual network with three stages of three blocks. Within a stage the variance climbs; whether along a
# line or exponentially, three blocks are too few to tell, and the study has nine. The first block of the next stage
# starts over, since its shortcut is normalized too.

# %%
names = {"batch_norm": "BatchNorm", "layer_norm": "LayerNorm"}
growth = {name: measure(f"resnet20w8:{name}", images) for name in names}

figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
for name, measured in growth.items():
    axes.plot(
        np.exp(measured["log_variance"]),
        "o-",
        color=NORMALIZER_COLORS[name],
        markersize=3,
        label=names[name],
    )
axes.set(xlabel="block (0: input layer)", ylabel="activation variance", ylim=(0, None))
figure.legend(loc="outside right upper")
plt.show()

# %% [markdown]
# ## Claim 2: parametric normalizers
#
# WeightNorm and scaled weight standardization keep the variance of the branch, so that adding the shortcut
# should double it. Under WeightNorm it grows even faster. SkipInit, a gain of 0 on the branch, helps scaled
# weight standardization alone: WeightNorm's activation multiplies by 1.71, and still follows each addition. The
# non-linearity on the branch leaves nothing behind the addition. The paper claims that it cures both, but a branch
# that keeps the variance still at least doubles it.

# %%
names = {"weight_norm": "WeightNorm", "scaled_ws": "scaled WS"}
blocks = {
    "": ("", "-"),
    ":skip_init": (", SkipInit", "--"),
    ":nonlinearity_on_residual": (", non-linearity on the branch", ":"),
}
parametric = {
    (name, block): measure(f"resnet20w8:{name}{block}", images)
    for name in names
    for block in blocks
}


def growth_per_block(measured):
    """Factor of the variance per block, mean over the three stages."""
    stages = measured["log_variance"][1:].reshape(3, 3)
    return np.exp(np.mean([np.polyfit(np.arange(3), stage, 1)[0] for stage in stages]))


figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for (name, block), measured in parametric.items():
    words, line = blocks[block]
    axes.semilogy(
        np.exp(measured["log_variance"]),
        f"o{line}",
        color=NORMALIZER_COLORS[name],
        markersize=3,
        label=names[name] + words,
    )
    print(f"{names[name] + words:40} grows by {growth_per_block(measured):.2f} per block")
axes.set(xlabel="block (0: input layer)", ylabel="activation variance")
figure.legend(loc="outside right upper")
plt.show()

# %% [markdown]
# ## Claim 3: the size of the groups
#
# Thirty layers of width 64 on Gaussian noise. The stable rank of the last layer's activations says how many
# directions the images differ in; the paper finds it linear in the square root of width over group size.

# %%
group_sizes = np.array([1, 4, 16, 64])
ranks = [
    measure(f"uniform30w64:group_norm:size={g}", noise)["stable_rank"][-1]
    for g in group_sizes
]
roots = np.sqrt(64 / group_sizes)
slope, intercept = np.polyfit(roots, ranks, 1)
print(f"correlation {np.corrcoef(roots, ranks)[0, 1]:.3f}")

figure, axes = plt.subplots(figsize=(4.5, 3), layout="constrained")
axes.plot(roots, ranks, "o", color=NORMALIZER_COLORS["group_norm"], label="measured")
axes.plot(roots, slope * roots + intercept, "--", color="#000000", label="linear fit")
axes.set(xlabel=r"$\sqrt{\mathrm{width} / \mathrm{group\ size}}$", ylabel="stable rank")
axes.legend()
plt.show()

# %% [markdown]
# ## Claim 4: gradients of early layers
#
# Ten plain layers. Small groups divide by small deviations, which multiplies the gradient on its way back.

# %%
names = {
    "instance_norm": "InstanceNorm",
    "batch_norm": "BatchNorm",
    "group_norm": "GroupNorm, 4 groups",
    "layer_norm": "LayerNorm",
}
options = {"group_norm": ":groups=4"}
gradients = {
    name: measure(f"cnn10w8:{name}{options.get(name, '')}", images, gradients=True)
    for name in names
}

figure, axes = plt.subplots(figsize=(5.5, 3), layout="constrained")
for name, measured in gradients.items():
    norms = np.exp(measured["log_gradient_norm"])
    axes.semilogy(
        np.arange(1, 11),
        norms,
        "o-",
        color=NORMALIZER_COLORS[name],
        markersize=3,
        label=names[name],
    )
    print(f"{names[name]:20} first layer {norms[0]:.3f}")
axes.set(xlabel="layer", ylabel="gradient norm")
axes.legend()
plt.show()

# %% [markdown]
# One seed and small networks: this shows how to look. The study's report has five seeds and a
# verdict on every claim.
