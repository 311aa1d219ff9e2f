# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: normalize gradients in front of any optax optimizer
#
# > **Take-away.** On this small task centralization, ZNorm and GAN reach what Adam reaches alone, within the
# > spread over seeds. One line in front of the optimizer is all the code there is, and what it does to the
# > gradients is easy to see.
#
# `optax_gradnorm` holds gradient transformations. You put one in front of your optimizer with `optax.chain`,
# and nothing else in your training code changes.
#
# This notebook trains a small residual network on scikit-learn's handwritten digits with each of them,
# compares them over several seeds and learning rates, and looks at what they do to the gradients.
# It runs on CPU, GPU and TPU.

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
# ## One line
#
# `optax.chain(optax_gradnorm.znorm(), optax.adam(1e-3))` is an optimizer like any other. To see what reaches
# Adam, here is `znorm` alone, on the gradients of two layers of very different size:

# %%
gradients = {
    "small": {
        "kernel": 1e-6 * jax.random.normal(jax.random.key(0), (3, 4)),
        "bias": jnp.ones(4),
    },
    "large": {
        "kernel": 1e3 + 50 * jax.random.normal(jax.random.key(1), (3, 4)),
        "bias": jnp.ones(4),
    },
}
znorm = optax_gradnorm.znorm()
updates, _ = znorm.update(gradients, znorm.init(gradients))

print(
    f"{'layer':13}{'mean before':>13}{'std before':>13}{'mean after':>13}{'std after':>13}"
)
names = optax_gradnorm.layer_names(gradients)
for name, before, after in zip(
    names, jax.tree.leaves(gradients), jax.tree.leaves(updates), strict=True
):
    print(
        f"{name:13}{before.mean():13.2e}{before.std():13.2e}{after.mean():13.2e}{after.std():13.2e}"
    )

# %% [markdown]
# Kernels come out with mean 0 and standard deviation 1. Biases, and every other leaf with a single dimension,
# pass through unchanged; `mask` chooses other leaves.
#
# ## Data and network
#
# The digits are 1,797 images of 8 x 8 pixels. Learning rates are chosen on the validation images;
# the test images are used for the final comparison alone.

# %%
digits = load_digits()
shuffled = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.images[shuffled, :, :, None] / 16, jnp.float32)
labels = jnp.asarray(digits.target[shuffled])

train_images, validation_images, test_images = jnp.split(images, [1280, 1536])
train_labels, validation_labels, test_labels = jnp.split(labels, [1280, 1536])
print(
    f"{len(train_labels)} training, {len(validation_labels)} validation, {len(test_labels)} test images"
)

# %% [markdown]
# A residual network for such small images. A 3 x 3 convolution is a linear layer on 3 x 3 patches; written
# so, it is much faster on CPU inside `lax.scan` than XLA's own convolution, and the same function.


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

    def __init__(self, rngs, blocks=2, features=16):
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
# ## Training
#
# The optimizer is a chain of three: `track_gradient_dynamics` records statistics of the raw gradients and
# changes nothing, then one of four methods, then Adam. Everything from initialisation to the last epoch is
# one compiled function, and an epoch is one `lax.scan`.

# %%
METHODS = {
    "baseline": optax.identity,
    "centralization": optax_gradnorm.centralize,
    "ZNorm": optax_gradnorm.znorm,
    "GAN": optax_gradnorm.gan,
}
EPOCHS = 6
BATCH_SIZE = 128


@functools.partial(jax.jit, static_argnames="method")
def train(method, learning_rate, seed):
    """Trains one network.

    Returns accuracies after each epoch, and loss and gradient statistics of each step.
    """
    init_key, shuffle_key = jax.random.split(jax.random.key(seed))
    graphdef, params, batch_stats = nnx.split(
        ResNet(nnx.Rngs(init_key)), nnx.Param, nnx.BatchStat
    )
    params, batch_stats = (nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))

    optimizer = optax.chain(
        optax_gradnorm.track_gradient_dynamics(),
        METHODS[method](),
        optax.adam(learning_rate),
    )

    def loss_fn(params, batch_stats, batch):
        model = nnx.merge(graphdef, params, batch_stats)
        logits = model(train_images[batch], train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, train_labels[batch]
        )
        return losses.mean(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def accuracy(params, batch_stats, images, labels):
        logits = nnx.merge(graphdef, params, batch_stats)(images, train=False)
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

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
        return state, steps | {
            "validation": accuracy(
                params, batch_stats, validation_images, validation_labels
            ),
            "test": accuracy(params, batch_stats, test_images, test_labels),
        }

    state = (params, batch_stats, optimizer.init(params))
    _, history = jax.lax.scan(epoch, state, jax.random.split(shuffle_key, EPOCHS))
    return history


# %% [markdown]
# ## Comparison
#
# Every method gets the same budget: the same three learning rates, the same seeds. For each method the
# learning rate with the best mean validation accuracy after the last epoch is taken.

# %%
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
SEEDS = range(5)

best = {}
print(f"validation accuracy, mean over {len(SEEDS)} seeds")
print(
    f"{'method':16}"
    + "".join(f"{f'lr {rate:g}':>11}" for rate in LEARNING_RATES)
    + f"{'chosen':>11}"
)
for method in METHODS:
    runs = {
        rate: jax.device_get([train(method, rate, seed) for seed in SEEDS])
        for rate in LEARNING_RATES
    }
    validation = {
        rate: np.mean([history["validation"][-1] for history in runs[rate]])
        for rate in LEARNING_RATES
    }
    chosen = max(validation, key=validation.get)
    best[method] = runs[chosen]
    columns = "".join(f"{validation[rate]:11.3f}" for rate in LEARNING_RATES)
    print(f"{method:16}{columns}{chosen:11g}")

# %% [markdown]
# Test accuracy at these learning rates. Runs with the same seed start from the same network and see the same
# batches, so the difference to the baseline is taken seed by seed; its 95 % interval is Student's. An
# interval that contains 0 shows no difference.


# %%
def test_accuracies(method):
    return np.array([history["test"][-1] for history in best[method]])


print(f"test accuracy after {EPOCHS} epochs, {len(SEEDS)} seeds")
print(
    f"{'method':16}{'mean ± std':>16}{'lowest':>9}{'highest':>9}   difference to baseline"
)
for method in METHODS:
    accuracies = test_accuracies(method)
    difference = accuracies - test_accuracies("baseline")
    half_width = scipy.stats.t.ppf(0.975, len(SEEDS) - 1) * scipy.stats.sem(difference)
    low, high = difference.mean() - half_width, difference.mean() + half_width
    verdict = (
        "no difference shown" if low <= 0 <= high else "better" if low > 0 else "worse"
    )
    spread = f"{accuracies.mean():.3f} ± {accuracies.std(ddof=1):.3f}"
    compared = "" if method == "baseline" else f"{low:+.3f} to {high:+.3f}: {verdict}"
    print(
        f"{method:16}{spread:>16}{accuracies.min():9.3f}{accuracies.max():9.3f}   {compared}"
    )

# %%
# The colour-blind-safe palette of Okabe and Ito.
STYLES = {
    "baseline": {"color": "#000000", "linestyle": "--"},
    "centralization": {"color": "#56B4E9", "linestyle": "-."},
    "ZNorm": {"color": "#0072B2", "linestyle": "-"},
    "GAN": {"color": "#D55E00", "linestyle": ":"},
}
plt.rcParams |= {"figure.dpi": 90, "axes.grid": True, "grid.alpha": 0.3}
plt.rcParams["lines.linewidth"] = 1.8


def plot_runs(axis, x, values, method):
    """Draws the mean over seeds, and a band from the lowest to the highest seed."""
    axis.plot(x, np.mean(values, axis=0), label=method, **STYLES[method])
    band = {"color": STYLES[method]["color"], "alpha": 0.15, "linewidth": 0}
    axis.fill_between(x, np.min(values, axis=0), np.max(values, axis=0), **band)


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
epochs = np.arange(1, EPOCHS + 1)
for method, histories in best.items():
    plot_runs(left, epochs, [history["loss"].mean(axis=1) for history in histories], method)
    plot_runs(right, epochs, [history["validation"] for history in histories], method)
left.set(xlabel="epoch", ylabel="training loss, mean over the epoch (nats)", yscale="log")
left.legend(title="line: mean over seeds\nband: lowest to highest")
right.set(xlabel="epoch", ylabel="validation accuracy")
plt.show()

# %% [markdown]
# Small differences on an easy data set say little about yours. Whatever the table shows here, compare on your
# own task with a learning rate tuned for each method, and several seeds.
#
# ## What happens to the gradients
#
# `train` returned `gradient_dynamics(opt_state)` from every step, so the whole trace is there already: the
# standard deviation of each layer, with the parameters' structure, and that of all layers together.

# %%
history = best["baseline"][0]
layers = optax_gradnorm.layer_names(history["dynamics"].std)
steps = np.arange(history["loss"].size)

figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
colors = plt.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
for name, std, color in zip(
    layers, jax.tree.leaves(history["dynamics"].std), colors, strict=True
):
    axis.plot(
        steps, std.ravel(), color=color, linewidth=1.2, label=name.removesuffix("/kernel")
    )
global_std = history["dynamics"].global_std.ravel()
axis.plot(steps, global_std, color="black", linewidth=2.4, label="all layers")
axis.set(xlabel="step", ylabel="standard deviation of the gradient", yscale="log")
axis.set_title("baseline, first seed: raw gradients, first layer (dark) to last (light)")
figure.legend(loc="outside right center")
plt.show()

# %% [markdown]
# ZNorm divides each layer by its own curve, so that all reach the optimizer with standard deviation 1. GAN
# multiplies all layers by one factor, which follows the black curve.
#
# ## GAN's multiplier
#
# We could not obtain the formula of the GAN paper (Yun, *Insights from Gradient Dynamics: Gradient Autoscaled
# Normalization*, 2025, [arXiv 2509.03677](https://arxiv.org/abs/2509.03677)); **this one is ours.** It meets
# every property described there: with $\phi(s) = s / (1 + s)$,
# $\sigma_t$ the standard deviation of all layers together at step $t$ and $\sigma_1$ its first value,
#
# $$\alpha_t = \phi(\sigma_t)^p, \qquad p = \frac{1}{1 - \ln \phi(\sigma_1)}.$$
#
# It is smooth, has no hyperparameter, lies between 0 and 1, falls as $\sigma_t$ falls, and starts above $1/e$
# however small the first gradients are. `gan(autoscale=...)` takes any other function of
# $(\sigma_t, \sigma_1)$.


# %%
def multipliers(history):
    sigma = history["dynamics"].global_std.ravel()
    return optax_gradnorm.default_autoscale(jnp.asarray(sigma), jnp.asarray(sigma[0]))


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
sigma = jnp.logspace(-8, 0, 200)
for first_sigma, style in ((1e-6, ":"), (1e-3, "--"), (1e-1, "-")):
    alpha = optax_gradnorm.default_autoscale(sigma, jnp.float32(first_sigma))
    label = f"$\\sigma_1$ = {first_sigma:g}"
    left.plot(sigma, alpha, style, color=STYLES["GAN"]["color"], label=label)
left.axhline(1 / np.e, color="grey", linewidth=1)
left.annotate(
    "1/e", (1.5e-8, 1 / np.e), textcoords="offset points", xytext=(0, 3), color="grey"
)
left.set(
    xlabel="global standard deviation $\\sigma_t$",
    ylabel="multiplier $\\alpha_t$",
    xscale="log",
)
left.legend()
plot_runs(right, steps, [multipliers(history) for history in best["GAN"]], "GAN")
right.set(xlabel="step", ylabel="multiplier $\\alpha_t$", ylim=(0, None))
right.legend(title=f"mean and range of {len(SEEDS)} seeds")
plt.show()

# %% [markdown]
# In front of Adam a constant factor cancels, so there only the changes of this multiplier act, beside the
# centring. Under SGD it scales the learning rate.
#
# Next: `gradient_dynamics.ipynb` looks closer at the per-layer curves, `gradient_overlap.ipynb` at what skip
# connections do to gradients.
