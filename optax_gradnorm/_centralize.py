"""Gradient centralization."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from optax_gradnorm._arguments import AxisName, FeatureAxis, Mask, StackedAxes
from optax_gradnorm._layers import at_least, layer_resolver
from optax_gradnorm._moments import Moments, per_layer, subtract


def centralize(
    *,
    feature_axis: FeatureAxis = -1,
    mask: Mask = None,
    stacked_axes: StackedAxes = None,
    axis_name: AxisName = None,
    stacked_axis_name: AxisName = None,
) -> optax.GradientTransformation:
    r"""Subtracts from each output unit's gradient its mean over the unit's weights.

    .. math::
      u_{\ldots j} = g_{\ldots j} - \frac{1}{n} \sum_i g_{i j}

    with :math:`j` the index on `feature_axis` and :math:`i` running over the :math:`n` elements of all
    other axes of the layer. Flax and Haiku keep output features last; for Equinox and PyTorch layouts
    give `feature_axis=0`. `optax.centralize` always keeps axis 0 apart, which on a Flax kernel is not the
    paper's operation.

    Args:
      feature_axis: axes of a layer (not counting its stacked axes) that index output units: an integer or a
        tuple of integers for all layers, a pytree of these (or a prefix of one), or a function from the
        gradients to one. The query, key and value kernels of Flax's attention, (inputs, heads, dim), have
        two: (-2, -1). A plain tuple is always one value; where parameters are a tuple, give a function.
      mask: which leaves are layers, as in `znorm`.
      stacked_axes: how many leading axes of a leaf index separate layers, as in `znorm`.
      axis_name: mesh axes that shard the averaged axes of a leaf, in the forms that `znorm` takes. A mesh
        axis that shards a feature axis is not among them: its shards hold different units.
      stacked_axis_name: mesh axes that index separate layers, as in `znorm`.

    Returns:
      An `optax.GradientTransformation` with an empty state. Updates keep each leaf's shape and dtype;
      means are taken in float32 (float64 for float64 leaves). Constant units give 0; units of a single
      weight pass through unchanged.

    Raises:
      ValueError: as `znorm`; also when `feature_axis` is not an axis of a layer, or takes all of them.
      TypeError: an argument holds something else than integers, booleans or axis names.

    Warns:
      UserWarning: at `init`, when the default rule finds no layer.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_gradnorm
      >>> transform = optax_gradnorm.centralize()
      >>> grads = {"kernel": jnp.array([[1.0, 5.0], [3.0, 7.0]])}
      >>> updates, _ = transform.update(grads, transform.init(grads))
      >>> print(updates["kernel"])
      [[-1. -1.]
       [ 1.  1.]]

    References:
      Yong et al., `Gradient Centralization: A New Optimization Technique for Deep Neural Networks
      <https://arxiv.org/abs/2004.01461>`_, 2020, equation 1.
    """
    resolve = layer_resolver(mask, stacked_axes, axis_name, stacked_axis_name, feature_axis)

    def subtract_mean(gradient: jax.Array, moments: Moments) -> jax.Array:
        # A unit of a single weight would never train; a symbolic size may come to be 1.
        if moments.size == 1:
            return gradient
        centred = subtract(gradient, moments.mean)
        if at_least(moments.size, 2):
            return centred
        return jnp.where(jnp.asarray(moments.size) == 1, gradient, centred)

    return per_layer(subtract_mean, resolve, mask)
