# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradient overlap: what skip connections add to the gradient
#
# > **Take-away.** The paper's bound holds for every image and block, and is loose by two to four powers of
# > ten. In these networks the two paths are nearly orthogonal at the start, and overlap a little after
# > training.
#
# A residual block $y = x + f(x)$ passes the gradient $v = \partial L / \partial y$ back along two paths,
# which add up:
#
# $$\frac{\partial L}{\partial x} = v + J_f^\top v.$$
#
# Yun, *Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
# Non-Convex Optimization*, 2024, [arXiv 2410.21564](https://arxiv.org/abs/2410.21564), calls this gradient
# overlap and bounds it: with $\alpha_i$ the operator norm of the Jacobian of branch $i$,
#
# $$\left\|\frac{\partial L}{\partial x_0}\right\| \le \prod_{i=1}^N (1 + \alpha_i)
# \left\|\frac{\partial L}{\partial y_N}\right\| \quad \text{(Lemma 2.1)},$$
#
# and $\prod_i \alpha_i$ in place of $\prod_i (1 + \alpha_i)$ without skip connections (Lemma 2.2, printed as
# an equality, which holds as an upper bound only).
#
# This notebook measures both sides with `optax_gradnorm.overlap`, on a residual network and its plain twin,
# before and after training on scikit-learn's digits. Then it draws the paper's two-dimensional picture.

# %%
# In the folder `notebooks` of a checkout; installs what is missing.
from importlib.util import find_spec

if not (find_spec("optax_gradnorm") and find_spec("flax")):
    get_ipython().run_line_magic("pip", "install --quiet ..[experiments]")

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_gradnorm
from optax_gradnorm import overlap

# GPUs and TPUs would multiply matrices in less than single precision.
jax.config.update("jax_default_matmul_precision", "highest")
print("running on", jax.default_backend())

# %% [markdown]
# ## A residual network and its plain twin
#
# Fully connected, so that every Jacobian is a small matrix; nothing follows the addition, so that the lemma
# applies as printed. The branch begins with LayerNorm, as in today's residual networks.

# %%
digits = load_digits()
shuffled = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.data[shuffled] / 16, jnp.float32)
labels = jnp.asarray(digits.target[shuffled])

train_images, test_images = jnp.split(images, [1408])
train_labels, test_labels = jnp.split(labels, [1408])
print(f"{len(train_labels)} training and {len(test_labels)} test images")

BLOCKS = 8


class Branch(nnx.Module):
    """LayerNorm and two linear layers with a ReLU between them."""

    def __init__(self, features, rngs):
        he_normal = nnx.initializers.he_normal()
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.linear1 = nnx.Linear(features, features, kernel_init=he_normal, rngs=rngs)
        self.linear2 = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, x):
        return self.linear2(nnx.relu(self.linear1(self.norm(x))))


class Network(nnx.Module):
    """Linear layer, blocks x + branch(x) (branch(x) in the plain network), LayerNorm, linear layer."""

    def __init__(self, residual, rngs, features=48):
        self.residual = residual
        self.stem = nnx.Linear(64, features, rngs=rngs)
        self.branches = nnx.List([Branch(features, rngs) for _ in range(BLOCKS)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.to_logits = nnx.Linear(features, 10, rngs=rngs)

    def head(self, x):
        return self.to_logits(self.norm(x))

    def __call__(self, images):
        x = self.stem(images)
        for branch in self.branches:
            x = x + branch(x) if self.residual else branch(x)
        return self.head(x)


# %% [markdown]
# ## Training
#
# One seed, plain Adam and Adam after ZNorm.

# %%
METHODS = {"Adam": optax.identity, "ZNorm, Adam": optax_gradnorm.znorm}
EPOCHS = 10
BATCH_SIZE = 64
LEARNING_RATE = 1e-3


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@functools.partial(jax.jit, static_argnames=("graphdef", "method"))
def train(graphdef, params, method):
    optimizer = optax.chain(METHODS[method](), optax.adam(LEARNING_RATE))

    def loss_fn(params, batch):
        logits = nnx.merge(graphdef, params)(train_images[batch])
        return jnp.mean(cross_entropy(logits, train_labels[batch]))

    def step(state, batch):
        params, opt_state = state
        updates, opt_state = optimizer.update(
            jax.grad(loss_fn)(params, batch), opt_state, params
        )
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(0), EPOCHS)
    batches = jax.vmap(lambda key: jax.random.permutation(key, len(train_labels)))(keys)
    state = (params, optimizer.init(params))
    (params, _), _ = jax.lax.scan(step, state, batches.reshape(-1, BATCH_SIZE))
    return params


models = {}  # By kind of network and state of training.
for kind in ("residual", "plain"):
    graphdef, params = nnx.split(Network(kind == "residual", nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    models[kind, "initialisation"] = nnx.merge(graphdef, params)
    for method in METHODS:
        models[kind, method] = nnx.merge(graphdef, train(graphdef, params, method))

print("test accuracy")
for (kind, training), model in models.items():
    accuracy = jnp.mean(jnp.argmax(model(test_images), axis=-1) == test_labels)
    print(f"{kind:10}{training:16}{accuracy:.3f}")

# %% [markdown]
# ## Measuring
#
# For one image: forwards to collect every block's input $x_i$, then backwards block by block.
# `residual_overlap` gives the gradients of both paths, their cosine, the amplification
# $\|v + J_f^\top v\| / \|v\|$ and $\alpha$; its `total` is the incoming gradient of the block before.
# `vmap` does it for many images at once.

# %%
IMAGES = 32


def measure_one(model, image, label):
    """Per block, in the network's order: gradient norms, bounds, and what `residual_overlap` says."""
    inputs = [model.stem(image)]
    for branch in model.branches:
        x = inputs[-1]
        inputs.append(x + branch(x) if model.residual else branch(x))
    gradient = jax.grad(lambda x: cross_entropy(model.head(x), label))(inputs[-1])

    gradients, measured = [gradient], []
    for branch, x in zip(reversed(model.branches), reversed(inputs[:-1]), strict=True):
        paths = overlap.residual_overlap(branch, x, gradients[0], iterations=100)
        measured.insert(0, paths)
        gradients.insert(0, paths.total if model.residual else paths.branch)

    norms = jnp.linalg.norm(jnp.stack(gradients), axis=-1)
    alphas = jnp.stack([paths.alpha.norm for paths in measured])
    bounds = [overlap.gradient_bounds(alphas[i:], norms[-1]) for i in range(BLOCKS + 1)]
    bounds = [bound.residual if model.residual else bound.plain for bound in bounds]
    return {
        "norms": norms,
        "bounds": jnp.stack(bounds),
        "alpha": alphas,
        "error": jnp.stack([paths.alpha.error for paths in measured]),
        "cosine": jnp.stack([paths.cosine for paths in measured]),
        "amplification": jnp.stack([paths.amplification for paths in measured]),
    }


@functools.partial(jax.jit, static_argnames="graphdef")
def measure(graphdef, params):
    model = nnx.merge(graphdef, params)
    one = functools.partial(measure_one, model)
    return jax.vmap(one)(test_images[:IMAGES], test_labels[:IMAGES])


def measure_model(model):
    graphdef, params = nnx.split(model)
    return jax.device_get(measure(graphdef, nnx.to_pure_dict(params)))


results = {name: measure_model(model) for name, model in models.items()}

# %% [markdown]
# Three checks before believing any of it. The blocks' gradients chain to the gradient of the whole network;
# the operator norms, found by power iteration without forming a Jacobian, are those of a dense singular value
# decomposition (the estimate never exceeds the true norm); and the bound holds for every image and every
# block.


# %%
def largest_difference_to_whole_network(model, norms):
    def loss_of_input(x, label):
        for branch in model.branches:
            x = x + branch(x) if model.residual else branch(x)
        return cross_entropy(model.head(x), label)

    stems = model.stem(test_images[:IMAGES])
    gradients = jax.vmap(jax.grad(loss_of_input))(stems, test_labels[:IMAGES])
    expected = jnp.linalg.norm(gradients, axis=-1)
    return float(jnp.max(jnp.abs(norms[:, 0] / expected - 1)))


def largest_difference_to_dense(model, alphas):
    jacobians = jax.vmap(jax.jacobian(model.branches[0]))(model.stem(test_images[:IMAGES]))
    expected = np.linalg.norm(np.asarray(jacobians, np.float64), 2, axis=(1, 2))
    return np.max(np.abs(alphas[:, 0] / expected - 1))


print(f"{IMAGES} test images, {BLOCKS} blocks")
print(
    f"{'network':10}{'training':16}{'chain rule':>14}{'dense alpha':>14}{'norm / bound':>20}"
)
for (kind, training), result in results.items():
    chain = largest_difference_to_whole_network(models[kind, training], result["norms"])
    dense = largest_difference_to_dense(models[kind, training], result["alpha"])
    # At the output both are the same.
    ratio = (result["norms"] / result["bounds"])[:, :-1].max()
    print(f"{kind:10}{training:16}{chain:14.1e}{dense:14.1e}{ratio:20.3f}")

# %% [markdown]
# The first two columns are relative differences and should be small. The bound holds where the last column is
# at most 1; how far below 1 it stays says how loose the bound is.
#
# ## Norm and cosine, block by block
#
# A cosine of 1 means that both paths point the same way and overlap fully, 0 that they are orthogonal; where
# it is negative they work against each other, and the amplification can fall below 1.

# %%
plt.rcParams |= {"figure.dpi": 78, "axes.grid": True, "grid.alpha": 0.3}
plt.rcParams["lines.linewidth"] = 1.8
# The colour-blind-safe palette of Okabe and Ito.
STYLES = {
    "initialisation": {"color": "#E69F00", "linestyle": ":"},
    "Adam": {"color": "#000000", "linestyle": "--"},
    "ZNorm, Adam": {"color": "#0072B2", "linestyle": "-"},
}


def plot_images(axis, x, values, label, style):
    """Draws the median over images, and a band from the 10th to the 90th percentile."""
    low, median, high = np.percentile(values, (10, 50, 90), axis=0)
    axis.plot(x, median, label=label, **style)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
blocks = np.arange(1, BLOCKS + 1)
for training, style in STYLES.items():
    result = results["residual", training]
    for axis, quantity in zip(axes, ("alpha", "cosine", "amplification"), strict=True):
        plot_images(axis, blocks, result[quantity], training, style)
axes[0].set(ylabel=r"operator norm of the branch, $\alpha_i$", ylim=(0, None))
axes[1].set(ylabel="cosine between the two paths")
axes[2].set(ylabel="amplification, |sum| / |skip|")
axes[1].axhline(0, color="grey", linewidth=1)
axes[2].axhline(1, color="grey", linewidth=1)
for axis in axes:
    axis.set(xlabel="residual block", xticks=blocks)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.suptitle(f"residual network: median and 10 % to 90 % of {IMAGES} test images")
plt.show()

print("medians over images and blocks of the residual network")
print(f"{'training':16}{'alpha':>8}{'cosine':>8}{'amplification':>15}")
for training in STYLES:
    result = results["residual", training]
    alpha, cosine, amplification = map(
        np.median, (result["alpha"], result["cosine"], result["amplification"])
    )
    print(f"{training:16}{alpha:8.2f}{cosine:8.2f}{amplification:15.2f}")

# %% [markdown]
# ## Bound and measurement
#
# The gradient's norm on its way back from the last block to the first, relative to where it started, beside
# the bound from the blocks it has passed.

# %%
columns = list(STYLES)
figure, axes = plt.subplots(
    2, len(columns), figsize=(10, 5.4), sharex=True, sharey="row", layout="constrained"
)
positions = np.arange(BLOCKS + 1)
for row, kind in zip(axes, ("residual", "plain"), strict=True):
    for axis, training in zip(row, columns, strict=True):
        result = results[kind, training]
        start = result["norms"][:, -1:]
        bound_style = {"color": "#D55E00", "linestyle": "--"}
        label = "bound, product of $1 + \\alpha_i$ (residual) or $\\alpha_i$ (plain)"
        plot_images(axis, positions, result["bounds"] / start, label, bound_style)
        measured = result["norms"] / start
        plot_images(axis, positions, measured, "measured", {"color": "#0072B2"})
        axis.set(title=f"{kind}, {training}", yscale="log")
    row[0].set_ylabel("norm of the gradient\nrelative to the output")
for axis in axes[1]:
    axis.set(xlabel="blocks below (0: input of the first block)", xticks=positions)
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()

print("gradient norm at the first block's input, relative to the output, medians")
print(f"{'network':10}{'training':16}{'measured':>10}{'bound':>12}{'bound / measured':>18}")
for (kind, training), result in results.items():
    measured = result["norms"][:, 0] / result["norms"][:, -1]
    bound = result["bounds"][:, 0] / result["norms"][:, -1]
    medians = map(np.median, (measured, bound, bound / measured))
    print("{:10}{:16}{:10.3g}{:12.3g}{:18.3g}".format(kind, training, *medians))

# %% [markdown]
# Theorem 2.3 compares bounds: at equal $\alpha_i$ the one with skip connections is the larger. The two
# networks here have $\alpha_i$ of their own, so their bounds may stand in either order, and neither bound
# says where the gradient itself lies below it; the measured column does. Here, with 8 blocks, the residual
# network's gradient grows more than its twin's; in the study's deeper networks, at initialisation, it grows less.
#
# ## The paper's picture
#
# The paper simulates overlap on a two-dimensional surface: a gradient field $g$ becomes $g + 0.5\,g$
# (equation 31), and ZNorm normalizes it (equation 32). It does not print the surface, its domain or the grid.
# The choice here is ours: $Z = \sin(2 x_1) \cos(2 x_2) + (x_1^2 + x_2^2) / 4$ on $[-3, 3]^2$.


# %%
def surface(x):
    return jnp.sin(2 * x[0]) * jnp.cos(2 * x[1]) + jnp.sum(jnp.square(x)) / 4


def znorm(field):
    """Takes the whole field as the gradient of one layer."""
    transform = optax_gradnorm.znorm()
    return transform.update(field, transform.init(field))[0]


points = jnp.linspace(-3, 3, 61)
grid = jnp.stack(jnp.meshgrid(points, points), axis=-1)  # The first axis runs along x2.
original = jax.vmap(jax.vmap(jax.grad(surface)))(grid)
residual = original + 0.5 * original
panels = {
    "original: g": original,
    "residual: 1.5 g": residual,
    "ZNorm of residual": znorm(residual),
    "difference: ZNorm - residual": znorm(residual) - residual,
}

lengths = {title: jnp.linalg.norm(field, axis=-1) for title, field in panels.items()}
longest = max(float(length.max()) for length in lengths.values())
figure, axes = plt.subplots(1, 4, figsize=(12, 3.7), sharey=True, layout="constrained")
for axis, (title, field) in zip(axes, panels.items(), strict=True):
    image = axis.pcolormesh(points, points, lengths[title], vmin=0, vmax=longest)
    directions = (field / jnp.maximum(lengths[title], 1e-12)[..., None])[::4, ::4]
    arrows = jnp.moveaxis(directions, -1, 0)
    axis.quiver(points[::4], points[::4], *arrows, color="white", scale=22)
    axis.set(title=title, xlabel="$x_1$", aspect="equal")
    axis.grid(visible=False)
axes[0].set_ylabel("$x_2$")
figure.colorbar(image, ax=axes, label="length of the gradient")
figure.suptitle("color: length of the gradient; arrows: its direction")
plt.show()

for title, length in lengths.items():
    print(f"{title:32}mean length {length.mean():.2f}, longest {length.max():.2f}")
difference = jnp.max(jnp.abs(znorm(residual) - znorm(original)))
print(f"largest difference between ZNorm of residual and original: {difference:.1e}")

# %% [markdown]
# ZNorm does not depend on the gradient's scale: the last line. In a network overlap is more than a factor, as the
# cosines above show; what ZNorm undoes is the part that scales a whole layer. The last two panels look alike in
# length because this surface's sigma is close to 2: ZNorm halves the field, and the difference is the other half.
