# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradient dynamics: what happens to each layer's gradient
#
# > **Take-away.** On this small task the deviation of all layers together falls in every run, and so does
# > that of nearly every layer; relative to it, half of the layers rise and half fall. ZNorm's amplification grows as
# > gradients shrink, GAN's factor stays below 1.
#
# Yun, *Insights from Gradient Dynamics: Gradient Autoscaled Normalization*, 2025, [arXiv
# 2509.03677](https://arxiv.org/abs/2509.03677), rests on an observation: during training the standard
# deviations of single layers' gradients rise or fall, each in its own way, while the standard deviation of
# all layers together falls. This notebook records both with `track_gradient_dynamics` and checks the
# observation on a small residual network and scikit-learn's digits, for plain AdamW, ZNorm and GAN, over
# several seeds.
#
# The paper trained ResNets and a VGG network on CIFAR-100 for 300 epochs. What you see here is a far smaller
# case: it shows how to look, and neither confirms nor refutes the paper's own runs.

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
import scipy.stats
from flax import nnx
from sklearn.datasets import load_digits

import optax_gradnorm

print("running on", jax.default_backend())

# %% [markdown]
# ## Data and network
#
# The digits are 1,797 images of 8 x 8 pixels. A 3 x 3 convolution is written as a linear layer on 3 x 3
# patches: the same function, and much faster on CPU inside `lax.scan` than XLA's own convolution.

# %%
digits = load_digits()
shuffled = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.images[shuffled, :, :, None] / 16, jnp.float32)
labels = jnp.asarray(digits.target[shuffled])

train_images, test_images = jnp.split(images, [1408])
train_labels, test_labels = jnp.split(labels, [1408])
print(f"{len(train_labels)} training and {len(test_labels)} test images")


# %%
def patches(x):
    """The 3 x 3 pixels around each: [n, h, w, channels] to [n, h, w, 9 * channels]."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1
    )


class Convolution(nnx.Module):
    """A 3 x 3 convolution and BatchNorm."""

    def __init__(self, in_features, features, rngs):
        he_normal = nnx.initializers.he_normal()
        self.linear = nnx.Linear(
            9 * in_features, features, use_bias=False, kernel_init=he_normal, rngs=rngs
        )
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def __call__(self, x, train):
        return self.norm(self.linear(patches(x)), use_running_average=not train)


class Block(nnx.Module):
    """A residual block."""

    def __init__(self, features, rngs):
        self.conv1 = Convolution(features, features, rngs)
        self.conv2 = Convolution(features, features, rngs)

    def __call__(self, x, train):
        return nnx.relu(x + self.conv2(nnx.relu(self.conv1(x, train)), train))


class ResNet(nnx.Module):
    """Convolution, pooling to 4 x 4, residual blocks, mean over the image, linear layer."""

    def __init__(self, rngs, blocks=3, features=16):
        # Names that sort in the network's order: JAX lists parameters alphabetically.
        self.conv = Convolution(1, features, rngs)
        self.residual = nnx.List([Block(features, rngs) for _ in range(blocks)])
        self.to_logits = nnx.Linear(features, 10, rngs=rngs)

    def __call__(self, x, train):
        x = nnx.avg_pool(nnx.relu(self.conv(x, train)), (2, 2), strides=(2, 2))
        for block in self.residual:
            x = block(x, train)
        return self.to_logits(jnp.mean(x, axis=(1, 2)))


# %% [markdown]
# ## Recording
#
# `track_gradient_dynamics` stands in front of the method under study, so it sees the raw gradients. Its state
# holds the statistics of the last step and never changes its structure: it rides in `lax.scan`, and returning
# it from each step gives the trace of a whole epoch, copied to the host once.

# %%
METHODS = {
    "baseline": optax.identity,
    "ZNorm": optax_gradnorm.znorm,
    "GAN": optax_gradnorm.gan,
}
SEEDS = range(3)
EPOCHS = 16
BATCH_SIZE = 128
LEARNING_RATE = 2e-3


@functools.partial(jax.jit, static_argnames="method")
def train(method, seed):
    """Trains a network; returns accuracy per epoch, loss and gradient statistics per step."""
    init_key, shuffle_key = jax.random.split(jax.random.key(seed))
    graphdef, params, batch_stats = nnx.split(
        ResNet(nnx.Rngs(init_key)), nnx.Param, nnx.BatchStat
    )
    params, batch_stats = (nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))

    optimizer = optax.chain(
        optax_gradnorm.track_gradient_dynamics(),
        METHODS[method](),
        optax.adamw(LEARNING_RATE, weight_decay=5e-5),
    )

    def loss_fn(params, batch_stats, batch):
        model = nnx.merge(graphdef, params, batch_stats)
        logits = model(train_images[batch], train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, train_labels[batch]
        )
        return losses.mean(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def step(state, batch):
        params, batch_stats, opt_state = state
        (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            params, batch_stats, batch
        )
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        dynamics = optax_gradnorm.gradient_dynamics(opt_state)
        return (params, batch_stats, opt_state), {"loss": loss, "dynamics": dynamics}

    def epoch(state, key):
        batches = jax.random.permutation(key, len(train_labels)).reshape(-1, BATCH_SIZE)
        state, steps = jax.lax.scan(step, state, batches)
        params, batch_stats, _ = state
        logits = nnx.merge(graphdef, params, batch_stats)(test_images, train=False)
        return state, steps | {
            "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == test_labels)
        }

    state = (params, batch_stats, optimizer.init(params))
    _, history = jax.lax.scan(epoch, state, jax.random.split(shuffle_key, EPOCHS))
    return history


histories = {
    method: [jax.device_get(train(method, seed)) for seed in SEEDS] for method in METHODS
}

print(f"after {EPOCHS} epochs, mean over {len(SEEDS)} seeds (lowest to highest)")
for method, runs in histories.items():
    accuracy = [run["accuracy"][-1] for run in runs]
    loss = np.mean([run["loss"][-1] for run in runs])
    spread = f"{np.mean(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f})"
    print(f"{method:10}test accuracy {spread}, training loss {loss:.1e}")

# %% [markdown]
# Statistics per epoch are means over its steps, on a logarithmic scale: gradients shrink by factors.

# %%
LAYERS = [
    name.removesuffix("/linear/kernel").removesuffix("/kernel")
    for name in optax_gradnorm.layer_names(histories["baseline"][0]["dynamics"].std)
]


def layer_std(run):
    """Standard deviation of each layer and epoch: [layers, epochs]."""
    per_step = np.stack(jax.tree.leaves(run["dynamics"].std))
    return np.exp(np.log(per_step).mean(axis=-1))


def global_std(run):
    """Standard deviation of all layers together, per epoch."""
    return np.exp(np.log(run["dynamics"].global_std).mean(axis=-1))


# %% [markdown]
# ## Every layer over time

# %%
plt.rcParams |= {"figure.dpi": 90, "lines.linewidth": 1.8}
# The colour-blind-safe palette of Okabe and Ito.
STYLES = {
    "baseline": {"color": "#000000", "linestyle": "--"},
    "ZNorm": {"color": "#0072B2", "linestyle": "-"},
    "GAN": {"color": "#D55E00", "linestyle": ":"},
}


def draw_heat_maps(panels, colorbar_label, colormap, norm=plt.matplotlib.colors.LogNorm):
    """One heat map per panel: layers downwards, epochs to the right, one colour scale."""
    lowest = min(values.min() for values in panels.values())
    norm = norm(lowest, max(values.max() for values in panels.values()))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(10, 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        extent = (0.5, EPOCHS + 0.5, len(LAYERS) - 0.5, -0.5)
        image = axis.imshow(values, aspect="auto", norm=norm, cmap=colormap, extent=extent)
        axis.set(title=title, xlabel="epoch", yticks=range(len(LAYERS)), yticklabels=LAYERS)
    axes[0, 0].set_ylabel("layer, from images to logits")
    figure.colorbar(image, ax=axes, label=colorbar_label)
    plt.show()


draw_heat_maps(
    {f"{method}, seed 0": layer_std(runs[0]) for method, runs in histories.items()},
    "standard deviation of the raw gradient",
    "viridis",
)

# %% [markdown]
# Most of that is common to all layers. Divided by the standard deviation of all layers together, and by its
# own first epoch, each layer shows how it moves against the others: red has risen, blue has fallen.


# %%
def relative_std(run):
    """Standard deviation of each layer as a multiple of the global one: [layers, epochs]."""
    return layer_std(run) / global_std(run)


changes = {}
for method, runs in histories.items():
    factors = np.mean([np.log2(relative_std(run)) for run in runs], axis=0)
    changes[method] = factors - factors[:, :1]
draw_heat_maps(
    {f"{method}, mean of {len(SEEDS)} seeds": values for method, values in changes.items()},
    "layer relative to all layers:\nchange since epoch 1 (powers of two)",
    "RdBu_r",
    lambda low, high: plt.Normalize(-max(-low, high), max(-low, high)),
)

# %% [markdown]
# ## All layers together

# %%
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
epochs = np.arange(1, EPOCHS + 1)
for method, runs in histories.items():
    curves = np.array([global_std(run) for run in runs])
    axis.plot(epochs, np.exp(np.log(curves).mean(axis=0)), label=method, **STYLES[method])
    color = STYLES[method]["color"]
    axis.fill_between(
        epochs, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15, linewidth=0
    )
axis.set(
    xlabel="epoch", ylabel="global standard deviation\nof the raw gradient", yscale="log"
)
axis.grid(alpha=0.3)
axis.legend(title=f"line: geometric mean of {len(SEEDS)} seeds\nband: lowest to highest")
plt.show()

# %% [markdown]
# ## Was the observation seen?
#
# A curve *falls* if Kendall's rank correlation with the epoch is negative with p < 0.05, and *rises* if it
# is positive with p < 0.05. (Epochs of one run are not independent, so read p as a threshold, not as a
# probability.) Layers are counted twice: by their standard deviation, and by that relative to the global one.
# Factors are the last epoch's value over the first's, of the layer that fell most and the one that fell
# least.


# %%
def trend(curve):
    """-1 for a falling curve, 1 for a rising one, 0 for neither."""
    correlation, p_value = scipy.stats.kendalltau(np.arange(len(curve)), curve)
    return int(np.sign(correlation)) if p_value < 0.05 else 0


def count_trends(curves):
    trends = [trend(curve) for curve in curves]
    return trends.count(1), trends.count(-1)


print(f"{'':16}{'global':^20}{'layers':^16}{'relative layers':^18}{'factor of layers':^24}")
print(
    f"{'method':10}{'seed':>6}{'trend':>9}{'factor':>11}{'rise':>8}{'fall':>8}{'rise':>9}{'fall':>9}",
    end="",
)
print(f"{'smallest':>12}{'largest':>12}")
seen = {}
for method, runs in histories.items():
    seen[method] = []
    for seed, run in zip(SEEDS, runs, strict=True):
        curve, layers = global_std(run), layer_std(run)
        rise, fall = count_trends(layers)
        relative_rise, relative_fall = count_trends(relative_std(run))
        factors = layers[:, -1] / layers[:, 0]
        word = {-1: "falls", 0: "neither", 1: "rises"}[trend(curve)]
        change = curve[-1] / curve[0]
        print(f"{method:10}{seed:6}{word:>9}{change:11.3g}{rise:8}{fall:8}", end="")
        print(
            f"{relative_rise:9}{relative_fall:9}{factors.min():12.3g}{factors.max():12.3g}"
        )
        seen[method].append(
            (
                word == "falls",
                rise > 0 and fall > 0,
                relative_rise > 0 and relative_fall > 0,
            )
        )

print()
for method, observations in seen.items():
    falls, wander, wander_relative = np.sum(observations, axis=0)
    print(
        f"{method}, of {len(observations)} runs: global falls in {falls}; some layers rise while others fall",
        end="",
    )
    print(f" in {wander}, relative to the global one in {wander_relative}")

# %% [markdown]
# ## What ZNorm does with it
#
# ZNorm multiplies the centred gradient of each layer by $1 / (\sigma_l + \epsilon)$. As a layer's standard
# deviation falls, its amplification grows without bound, up to $1 / \epsilon$: near convergence it lifts what
# is left of the gradient, noise included, back to full size. GAN multiplies all layers by one factor below 1.

# %%
EPS = 1e-10  # The default of `znorm`.

draw_heat_maps(
    {
        f"{method}, seed 0": 1 / (layer_std(histories[method][0]) + EPS)
        for method in ("baseline", "ZNorm")
    },
    "amplification by ZNorm, $1 / (\\sigma_l + \\epsilon)$",
    "cividis",
)

print("factor on the centred gradient, over layers and seeds")
print(f"{'':34}{'first epoch':^22}{'last epoch':^22}")
print(f"{'':34}{'smallest':>11}{'largest':>11}{'smallest':>11}{'largest':>11}")
for label, method in (
    ("ZNorm on its own run", "ZNorm"),
    ("ZNorm, had the baseline used it", "baseline"),
):
    factors = 1 / (np.stack([layer_std(run) for run in histories[method]]) + EPS)
    first, last = factors[:, :, 0], factors[:, :, -1]
    print(
        f"{label:34}{first.min():11.3g}{first.max():11.3g}{last.min():11.3g}{last.max():11.3g}"
    )
factors = np.stack(
    [
        optax_gradnorm.default_autoscale(
            jnp.asarray(global_std(run)), jnp.asarray(run["dynamics"].global_std[0, 0])
        )
        for run in histories["GAN"]
    ]
)
first, last = factors[:, 0], factors[:, -1]
print(
    f"{'GAN on its own run (one factor)':34}{first.min():11.3g}{first.max():11.3g}"
    f"{last.min():11.3g}{last.max():11.3g}"
)

# %% [markdown]
# To look at your own training, put `optax_gradnorm.track_gradient_dynamics()` in front of your optimizer and
# read `optax_gradnorm.gradient_dynamics(opt_state)`: `mean` and `std` per layer, `global_std`, `step`. Put
# it behind a normalizer to see what the optimizer gets. (GAN's multiplier is our own definition; its
# docstring gives the formula.)
