"""Gradient normalization for optax: ZNorm, GAN and centralization as gradient transformations."""

from optax_gradnorm._centralize import centralize
from optax_gradnorm._gan import GanState, default_autoscale, gan
from optax_gradnorm._layers import layer_names
from optax_gradnorm._znorm import znorm

__version__ = "0.1.0"

__all__ = ["GanState", "centralize", "default_autoscale", "gan", "layer_names", "znorm"]
