"""Gradient autoscaled normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_gradnorm._arguments import AxisName, Mask, StackedAxes, check_state
from optax_gradnorm._layers import layer_resolver, resolve_at_init
from optax_gradnorm._mesh import check_varies_as, zero_global
from optax_gradnorm._moments import global_std, measure, statistics_dtype, subtract


class GanState(NamedTuple):
    """What `gan` remembers and shows: scalars, float32 (float64 if a layer is float64).

    Attributes:
      first_sigma: the first finite, non-zero global standard deviation; 0 until there was one.
      sigma: global standard deviation of the last gradients.
      multiplier: that of the last update; 1 before the first. (Not `scale`, which `optax.tree.get` would find in
        the state of `optax.contrib.reduce_on_plateau` too.)
    """

    first_sigma: jax.Array
    sigma: jax.Array
    multiplier: jax.Array


def default_autoscale(sigma: jax.Array, first_sigma: jax.Array) -> jax.Array:
    r"""The multiplier of `gan`: our definition, which meets what is known of the paper's.

    .. math::
      \alpha_t = \phi(\sigma_t)^p, \quad \phi(s) = \frac{s}{1 + s}, \quad p = \frac{1}{1 - \ln \phi(\sigma_1)}

    It is smooth, has no hyperparameter, lies strictly between 0 and 1 for positive standard deviations and
    falls with :math:`\sigma_t`. The exponent is fixed by the first gradients, so that
    :math:`\alpha_1 > 1/e` however small they are.

    Args:
      sigma: global standard deviation of the gradients, a scalar.
      first_sigma: its first finite, non-zero value, a scalar of the same dtype.

    Returns:
      The multiplier, a scalar of the same dtype; 0 where `sigma` is 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_gradnorm
      >>> for sigma in (1.0, 0.1, 0.01):
      ...     print(f"{optax_gradnorm.default_autoscale(jnp.array(sigma), jnp.array(1.0)):.3f}")
      0.664
      0.243
      0.065

    References:
      The clues are those in the accounts of Yun, `Insights from Gradient Dynamics: Gradient Autoscaled
      Normalization <https://arxiv.org/abs/2509.03677>`_, 2025; its own formula may differ.
    """
    is_zero = sigma == 0  # where phi is 0, but the derivative of log(phi) is not finite
    log_phi = _log_phi(jnp.where(is_zero, 1, sigma))
    multiplier = jnp.where(is_zero, 0, jnp.exp(log_phi / (1 - _log_phi(first_sigma))))
    return jnp.minimum(multiplier, 1 - jnp.finfo(multiplier.dtype).epsneg)


def _log_phi(sigma: jax.Array) -> jax.Array:
    """log(sigma / (1 + sigma)), to the last digits and with finite derivatives at every scale."""
    is_small = sigma < 1
    small, large = jnp.where(is_small, sigma, 1), jnp.where(is_small, 1, sigma)
    return jnp.where(is_small, jnp.log(small) - jnp.log1p(small), -jnp.log1p(1 / large))


def gan(
    *,
    autoscale: Callable[[jax.Array, jax.Array], jax.Array] = default_autoscale,
    mask: Mask = None,
    stacked_axes: StackedAxes = None,
    axis_name: AxisName = None,
    stacked_axis_name: AxisName = None,
) -> optax.GradientTransformation:
    r"""Centres every layer's gradient and scales all of them by one multiplier (GAN).

    .. math::
      u_l = \alpha_t (g_l - \mu_l), \quad
      \sigma_t = \sqrt{\frac{\sum_l \sum (g_l - \mu_l)^2}{\sum_l n_l}}, \quad
      \alpha_t = \mathrm{autoscale}(\sigma_t, \sigma_1)

    with :math:`\mu_l` the mean over the :math:`n_l` elements of layer :math:`l`, :math:`\sigma_t` the global
    standard deviation at step :math:`t`, and :math:`\sigma_1` its first finite, non-zero value. No layer is
    divided by its own standard deviation, so none is amplified.

    GAN is the paper's name and not adversarial. We could not obtain the paper's formula of the multiplier:
    `default_autoscale` is ours, and `autoscale` takes any other. A constant multiplier cancels in Adam, up
    to its epsilon; under SGD it is a factor on the learning rate.

    Args:
      autoscale: a function from two scalars, the global standard deviation and its first finite, non-zero
        value, to the multiplier. Under `optax.inject_hyperparams` name it in `static_args`, which else
        takes it for a schedule.
      mask: which leaves are layers, as in `znorm`.
      stacked_axes: how many leading axes of a leaf index separate layers, as in `znorm`.
      axis_name: mesh axes over which a layer is sharded, as in `znorm`.
      stacked_axis_name: mesh axes that index separate layers, such as the experts of a mixture, one per
        device; in the same forms. :math:`\sigma_t` is then that of all of them, the same on every device. Under
        `pmap` and `check_vma=False` name it for these leaves alone; there nothing notices if it is forgotten.

    Returns:
      An `optax.GradientTransformation` with the state `GanState`. Updates keep each leaf's shape and
      dtype; statistics are taken in float32 (float64 for float64 leaves), at any scale the dtype holds. A
      constant layer gives 0. A NaN or an infinity reaches the multiplier and so every layer of that step,
      but not `first_sigma`: wrap in `optax.apply_if_finite` to skip such steps.

    Raises:
      ValueError: as `znorm`; at `update` also when :math:`\sigma_t` differs between devices, which JAX knows
        inside `shard_map`, and the state does not.
      TypeError: `autoscale` is not callable or does not return a real scalar, or another argument holds
        something else than booleans, integers or axis names; at `update`, the state is not `gan`'s.

    Warns:
      UserWarning: at `init`, when the default rule finds no layer.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_gradnorm
      >>> optimizer = optax.chain(optax_gradnorm.gan(), optax.sgd(1.0))
      >>> params = {"kernel": jnp.zeros((2, 2))}
      >>> state = optimizer.init(params)
      >>> grads = {"kernel": jnp.array([[1.0, 3.0], [3.0, 1.0]])}
      >>> updates, state = optimizer.update(grads, state)
      >>> print(f"sigma {state[0].sigma:.3f}, multiplier {state[0].multiplier:.3f}")
      sigma 1.000, multiplier 0.664
      >>> bool((updates["kernel"] == -state[0].multiplier * jnp.array([[-1.0, 1.0], [1.0, -1.0]])).all())
      True

    References:
      Yun, `Insights from Gradient Dynamics: Gradient Autoscaled Normalization
      <https://arxiv.org/abs/2509.03677>`_, 2025.
    """
    if not callable(autoscale):
        raise TypeError(f"autoscale must be a function of (sigma, first_sigma), got {autoscale!r}")
    resolve = layer_resolver(mask, stacked_axes, axis_name, stacked_axis_name)

    def init_fn(params):
        layers = resolve_at_init(resolve, params, mask)
        found = [(leaf, layer) for leaf, layer in zip(jax.tree.leaves(params), layers, strict=True) if layer]
        is_double = any(statistics_dtype(leaf.dtype) == jnp.float64 for leaf, _ in found)
        named = [(leaf, layer.axis_names + layer.stacked_axis_names) for leaf, layer in found]
        zero = zero_global(named, jnp.float64 if is_double else jnp.float32)
        # Three separate buffers, because a state may be donated.
        return GanState(zero, zero + 0, zero + 1)

    def update_fn(updates, state, params=None):
        del params
        check_state(state, GanState, "gan")
        leaves, structure = jax.tree.flatten(updates)
        found = measure(leaves, resolve(updates))
        dtype = state.first_sigma.dtype
        sigma = global_std([m for m in found if m is not None], dtype)
        check_varies_as(state.sigma, sigma, "the global standard deviation")

        usable = jnp.isfinite(sigma) & (sigma > 0)
        seen = state.first_sigma > 0
        first_sigma = jnp.where(seen | ~usable, state.first_sigma, sigma)
        # Before the first standard deviation every layer is 0 or NaN, so any value will do.
        multiplier = _check_multiplier(autoscale(sigma, jnp.where(first_sigma > 0, first_sigma, 1))).astype(
            dtype
        )

        leaves = [
            g if m is None else subtract(g, m.mean, multiplier) for g, m in zip(leaves, found, strict=True)
        ]
        return jax.tree.unflatten(structure, leaves), GanState(first_sigma, sigma, multiplier)

    return optax.GradientTransformation(init_fn, update_fn)


def _check_multiplier(multiplier: Any) -> jax.Array:
    try:
        multiplier = jnp.asarray(multiplier)
    except (TypeError, ValueError):
        raise TypeError(f"autoscale must return a real scalar, got {multiplier!r}") from None
    is_real = jnp.issubdtype(multiplier.dtype, jnp.floating) or jnp.issubdtype(multiplier.dtype, jnp.integer)
    if multiplier.shape or not is_real:
        raise TypeError(
            f"autoscale must return a real scalar, got {multiplier.dtype}{list(multiplier.shape)}"
        )
    return multiplier
