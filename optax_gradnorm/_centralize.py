"""Gradient centralization."""

import jax
import optax

from optax_gradnorm._layers import AxisName, Layer, Mask, StackedAxes, check_integer, layer_resolver
from optax_gradnorm._moments import center


def centralize(
    *,
    feature_axis: int = -1,
    mask: Mask = None,
    stacked_axes: StackedAxes = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformation:
    r"""Subtracts from the gradient of each output unit's weights their mean.

    .. math::
      u_{\ldots j} = g_{\ldots j} - \frac{1}{n} \sum_i g_{i j}

    with :math:`j` the index on `feature_axis` and :math:`i` running over the :math:`n` elements of all
    other axes of the layer. Flax and Haiku keep output features last; for Equinox and PyTorch layouts
    give `feature_axis=0`. `optax.centralize` always keeps axis 0 apart, which on a Flax kernel is not the
    paper's operation.

    Args:
      feature_axis: axis of a layer (not counting its stacked axes) that indexes output units.
      mask: which leaves are layers, as in `znorm`.
      stacked_axes: how many leading axes of a leaf index separate layers, as in `znorm`.
      axis_name: mesh axes that shard the averaged axes of a leaf, in the forms that `znorm` takes. A mesh
        axis that shards the feature axis is not among them: its shards hold different units.

    Returns:
      An `optax.GradientTransformation` with an empty state. Updates keep each leaf's shape and dtype;
      means are taken in float32 (float64 for float64 leaves). Constant units give 0.

    Raises:
      ValueError: `stacked_axes` is negative; at `init`, `feature_axis` is not an axis of a layer, or
        `mask`, `stacked_axes` or `axis_name` does not fit the tree.
      TypeError: an argument holds something else than integers, booleans or axis names.

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
    feature_axis = check_integer("feature_axis", feature_axis)
    resolve = layer_resolver(mask, stacked_axes, axis_name)

    def averaged_axes(ndim: int, layer: Layer) -> tuple[int, ...]:
        own_axes = layer.own_axes(ndim)
        if not -len(own_axes) <= feature_axis < len(own_axes):
            raise ValueError(f"feature_axis is {feature_axis} for a layer of {len(own_axes)} dimensions")
        feature = own_axes[feature_axis]
        return tuple(axis for axis in own_axes if axis != feature)

    def init_fn(params):
        for leaf, layer in zip(jax.tree.leaves(params), resolve(params), strict=True):
            if layer is not None:
                averaged_axes(leaf.ndim, layer)
        return optax.EmptyState()

    def subtract_mean(gradient, layer: Layer | None):
        if layer is None:
            return gradient
        values, _, _, unit = center(gradient, averaged_axes(gradient.ndim, layer), layer.axis_names)
        return (values * unit.astype(values.dtype)).astype(gradient.dtype)

    def update_fn(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates)
        leaves = [subtract_mean(g, layer) for g, layer in zip(leaves, resolve(updates), strict=True)]
        return jax.tree.unflatten(structure, leaves), state

    return optax.GradientTransformation(init_fn, update_fn)
