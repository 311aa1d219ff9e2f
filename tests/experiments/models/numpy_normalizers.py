"""The definitions of the normalizers again, in float64 NumPy."""

import math

import numpy as np

FEATURES = 8  # of the inputs

# `p` has a module's parameters and statistics by the end of their path.


def moments(x, axes):
    return x.mean(axes, keepdims=True), np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def by_group(x, groups):
    """Mean and standard deviation of the group that each element belongs to."""
    grouped = x.reshape(*x.shape[:3], groups, -1)
    return [np.broadcast_to(m, grouped.shape).reshape(x.shape) for m in moments(grouped, (1, 2, 4))]


def batch_std(x, running, train):
    return moments(x, (0, 1, 2))[1] if train else np.sqrt(running + 1e-5)


def relu(x):
    return np.maximum(x, 0)


def batch_norm(x, p, train):
    mean, std = moments(x, (0, 1, 2)) if train else (p["mean"], np.sqrt(p["var"] + 1e-5))
    return relu((x - mean) / std * p["scale"] + p["bias"])


def group_norm(groups):
    def normalize(x, p, train):
        mean, std = by_group(x, groups)
        return relu((x - mean) / std * p["scale"] + p["bias"])

    return normalize


def frn(x, p, train):
    rms = np.sqrt((x**2).mean((1, 2), keepdims=True) + np.abs(p["epsilon"]))
    return np.maximum(x / rms * p["scale"] + p["shift"], p["threshold"])


def variance_norm(x, p, train):
    return relu(x / batch_std(x, p["running"], train) * p["scale"] + p["shift"])


def evonorm_b0(x, p, train):
    other = p["slope"] * x + moments(x, (1, 2))[1]
    return x / np.maximum(batch_std(x, p["running"], train), other) * p["scale"] + p["shift"]


def evonorm_s0(x, p, train):
    std = by_group(x, 4)[1]
    return x / (1 + np.exp(-p["slope"] * x)) / std * p["scale"] + p["shift"]


def weight_norm(x, p, train):
    return math.sqrt(2 * math.pi / (math.pi - 1)) * (relu(x) - math.sqrt(1 / (2 * math.pi)))


def only_relu(x, p, train):
    return relu(x)


REFERENCES = {
    "none": only_relu,
    "batch_norm": batch_norm,
    "layer_norm": group_norm(1),
    "instance_norm": group_norm(FEATURES),
    "group_norm:groups": group_norm(4),
    "group_norm:size": group_norm(2),
    "frn": frn,
    "variance_norm": variance_norm,
    "evonorm_b0": evonorm_b0,
    "evonorm_s0": evonorm_s0,
    "weight_norm": weight_norm,
    "scaled_ws": only_relu,
}


def reference_of(normalization):
    if normalization.name == "group_norm":
        return REFERENCES["group_norm:size" if normalization.group_size else "group_norm:groups"]
    return REFERENCES[normalization.name]
