"""Z-score gradient normalization."""

from __future__ import annotations

from numbers import Real
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from optax_gradnorm._arguments import AxisName, Mask, StackedAxes
from optax_gradnorm._layers import layer_resolver
from optax_gradnorm._moments import Moments, per_layer, standardize


def znorm(
    eps: jax.typing.ArrayLike = 1e-10,
    *,
    mask: Mask = None,
    stacked_axes: StackedAxes = None,
    axis_name: AxisName = None,
    stacked_axis_name: AxisName = None,
) -> optax.GradientTransformation:
    r"""Gives every layer's gradient zero mean and unit standard deviation.

    .. math::
      u = \frac{g - \mu}{\sigma + \epsilon}

    with :math:`\mu` and :math:`\sigma` the mean and the population standard deviation over all elements of
    the layer. It is stateless and goes in front of an optimizer. The update of a layer of n elements has norm
    :math:`\sqrt{n}` whatever the gradient's scale, so under SGD the learning rate alone sets the step: it
    starts near 1e-4 to 1e-3 and falls; Adam's stays as it is. The authors' public code normalizes each row
    by its unbiased deviation; `stacked_axes=1` gives one statistic per row, together with a mask that says
    which leaves are weights (a row of a matrix alone looks like a bias).

    Args:
      eps: added to the standard deviation; a non-negative number, which may be traced.
      mask: which leaves are layers: a pytree of booleans (or a prefix of one) with the structure of the
        gradients, or a function from the gradients to one, such as `exclude` makes. By default every leaf
        with more than one axis longer than 1, stacked axes not counted, whose name is not 'bias' (the last on
        its path, in which 'key/bias' and 'key.bias' count as two): biases and norm scales pass through
        unchanged; Python numbers and weakly typed scalars, which look the same
        inside `jit`, always do. `layers` names what is taken.
      stacked_axes: how many leading axes of a leaf index separate layers, as in parameters stacked for
        `lax.scan`: an integer, a pytree of integers (or a prefix of one), or a function from the gradients
        to one. `None` is 0, and lets `optax.inject_hyperparams` trace `eps` alone.
      axis_name: mesh axes over which a layer is sharded inside `shard_map` or `pmap`: a name, a tuple of
        names, a pytree of these with `None` for replicated leaves, or a function from the gradients to
        one. A leaf that JAX knows to be replicated over a named axis counts once; under `pmap` and
        `check_vma=False` it does not know, and every leaf counts as sharded over what is named for it.
        Under `jit` with sharded arrays no argument is needed.
      stacked_axis_name: mesh axes that index separate layers, such as the experts of a mixture, one per
        device; in the same forms, and with the same caveat under `pmap` and `check_vma=False`. Each device
        normalizes its own layers, with it and without: only global statistics (`gan`,
        `track_gradient_dynamics`) differ.

    Returns:
      An `optax.GradientTransformation` with an empty state. Updates keep each leaf's shape and dtype;
      statistics are taken in float32 (float64 for float64 leaves), at any scale the dtype holds. Complex
      leaves have a complex mean and the variance :math:`E|g - \mu|^2`. A constant layer and a layer of
      one element give 0; a NaN or an infinity makes its own layer NaN and no other.

    Raises:
      ValueError: `eps` or `stacked_axes` is negative, or an axis is named both in `axis_name` and in
        `stacked_axis_name`; at `init` and `update`, an argument does not fit the tree, or the shape of a
        shard leaves open whether the leaf is a weight, and no mask says it.
      TypeError: an argument holds something else than numbers, booleans, integers or axis names.

    Warns:
      UserWarning: at `init`, when the default rule finds no layer.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_gradnorm
      >>> optimizer = optax.chain(optax_gradnorm.znorm(), optax.sgd(1e-3))
      >>> params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
      >>> state = optimizer.init(params)
      >>> grads = {"kernel": jnp.array([[1.0, 3.0], [3.0, 1.0]]) * 1e-5, "bias": jnp.ones(2)}
      >>> updates, state = optimizer.update(grads, state)
      >>> print(updates["kernel"].round(6))
      [[ 0.001 -0.001]
       [-0.001  0.001]]
      >>> print(updates["bias"])
      [-0.001 -0.001]

    References:
      Yun, `ZNorm: Z-Score Gradient Normalization Accelerating Skip-Connected Network Training without
      Architectural Modification <https://arxiv.org/abs/2408.01215>`_, 2024.

      Yun, `Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
      Non-Convex Optimization <https://arxiv.org/abs/2410.21564>`_, 2024, equation 32.
    """
    if not isinstance(eps, jax.core.Tracer):
        _check_eps(eps)
    resolve = layer_resolver(mask, stacked_axes, axis_name, stacked_axis_name)

    def normalize(gradient: jax.Array, moments: Moments) -> jax.Array:
        return standardize(gradient, moments.mean, moments.std + jnp.asarray(eps).astype(moments.std.dtype))

    return per_layer(normalize, resolve, mask)


def _check_eps(eps: Any) -> None:
    if isinstance(eps, np.ndarray | np.generic | jax.Array) and eps.ndim == 0:
        eps = eps.item()
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(f"eps must be a non-negative number, got {eps!r}")
    if not float(eps) >= 0:
        raise ValueError(f"eps must be a non-negative number, got {eps}")
