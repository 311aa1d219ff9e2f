"""Gradient normalization for optax: ZNorm, GAN and centralization as gradient transformations."""

from optax_gradnorm import overlap
from optax_gradnorm._centralize import centralize
from optax_gradnorm._dynamics import GradientDynamicsState, gradient_dynamics, track_gradient_dynamics
from optax_gradnorm._gan import GanState, default_autoscale, gan
from optax_gradnorm._layers import exclude, layers
from optax_gradnorm._names import layer_names
from optax_gradnorm._znorm import znorm

__version__ = "0.2.0"

__all__ = [
    "GanState",
    "GradientDynamicsState",
    "centralize",
    "default_autoscale",
    "exclude",
    "gan",
    "gradient_dynamics",
    "layer_names",
    "layers",
    "overlap",
    "track_gradient_dynamics",
    "znorm",
]
