"""Gradient statistics per layer, recorded in the optimizer's state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_gradnorm._arguments import AxisName, Mask, StackedAxes, check_integer, check_state
from optax_gradnorm._layers import layer_resolver, resolve_at_init
from optax_gradnorm._mesh import check_varies_as, zero_global, zero_statistic
from optax_gradnorm._moments import global_std, measure
from optax_gradnorm._names import PyTree, leaf_parts, path_parts, without_boxes


class GradientDynamicsState(NamedTuple):
    """Statistics of the last gradients that `track_gradient_dynamics` saw; zeros before the first.

    Attributes:
      num_updates: how many there were so far, int32. (Not `count` or `step`, which `optax.tree.get` would find in
        the states of Adam and `optax.conditionally_transform` too.)
      mean: mean of each layer: a pytree with the structure of the parameters, in which leaves that are not
        layers are `optax.MaskedNode`. A scalar per layer, or an array with the shape of the stacked axes;
        float32, complex64 for complex layers.
      std: population standard deviation of each layer, likewise; always float32.
      global_std: standard deviation of all layers together, each about its own mean (the `sigma` of
        `gan`): a float32 scalar.
    """

    num_updates: jax.Array
    mean: PyTree
    std: PyTree
    global_std: jax.Array


def track_gradient_dynamics(
    *,
    mask: Mask = None,
    stacked_axes: StackedAxes = None,
    axis_name: AxisName = None,
    stacked_axis_name: AxisName = None,
) -> optax.GradientTransformation:
    r"""Records mean and standard deviation of every layer's gradient, and leaves the updates as they are.

    .. math::
      \mu_l = \frac{1}{n_l} \sum g_l, \quad
      \sigma_l = \sqrt{\frac{1}{n_l} \sum (g_l - \mu_l)^2}, \quad
      \sigma = \sqrt{\frac{\sum_l n_l \sigma_l^2}{\sum_l n_l}}

    with sums over all :math:`n_l` elements of layer :math:`l`. Put it in front of a normalizer to see raw
    gradients, behind it to see what the optimizer gets. The state holds the last step only: return it from
    a `lax.scan` over an epoch to have the whole trace, one transfer per epoch.

    Args:
      mask: which leaves are layers, as in `znorm`.
      stacked_axes: how many leading axes of a leaf index separate layers, as in `znorm`.
      axis_name: mesh axes over which a layer is sharded, as in `znorm`.
      stacked_axis_name: mesh axes that index separate layers, such as the experts of a mixture, one per
        device. Each device then records its own layers, and `global_std` is that of all of them; under
        `pmap` and `check_vma=False` with the caveats of `gan`.

    Returns:
      An `optax.GradientTransformation` with the state `GradientDynamicsState`, whose structure, shapes and
      dtypes never change; `gradient_dynamics` finds it in the state of any optimizer. Updates are returned
      untouched. Statistics are those of `znorm` and `gan`, at any scale the dtype holds, and are stored in
      single precision (float64 layers are measured in float64 and rounded). A NaN or an infinity shows in
      its own layer and in the global standard deviation of that step alone. A layer whose gradient is
      `None` has statistics of 0 and does not count. `optax.tree_map_params(transform_non_params=...)` gets
      the statistics one by one where this object's `init` has seen one tree of parameters, and else each
      field of the state whole, since optax hands it neither the parameters nor the state.

    Raises:
      ValueError: as `znorm`; at `update` also when there is a layer that `init` did not see, a leaf is no
        longer one, or a statistic differs between devices and the state does not.
      TypeError: an argument holds something else than booleans, integers or axis names; at `update`, the
        state is not that of this transformation.

    Warns:
      UserWarning: at `init`, when the default rule finds no layer.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_gradnorm
      >>> optimizer = optax.chain(optax_gradnorm.track_gradient_dynamics(), optax.sgd(0.1))
      >>> params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
      >>> state = optimizer.init(params)
      >>> grads = {"kernel": jnp.array([[1.0, 3.0], [3.0, 1.0]]), "bias": jnp.ones(2)}
      >>> updates, state = optimizer.update(grads, state)
      >>> dynamics = optax_gradnorm.gradient_dynamics(state)
      >>> print(dynamics.mean["kernel"], dynamics.std["kernel"], dynamics.global_std)
      2.0 1.0 1.0
      >>> optax_gradnorm.layer_names(dynamics.std)
      ['kernel']

    References:
      Yun, `Insights from Gradient Dynamics: Gradient Autoscaled Normalization
      <https://arxiv.org/abs/2509.03677>`_, 2025.
    """
    resolve = layer_resolver(mask, stacked_axes, axis_name, stacked_axis_name)

    def init_fn(params):
        layers = resolve_at_init(resolve, params, mask, stacklevel=4)
        found = list(zip(jax.tree.leaves(params), layers, strict=True))
        structure = jax.tree.structure(without_boxes(params))

        def zeros(dtype_of):
            return structure.unflatten(
                optax.MaskedNode()
                if layer is None
                else zero_statistic(g, layer.stacked_axes, layer.axis_names, dtype_of(g))
                for g, layer in found
            )

        named = [(g, layer.axis_names + layer.stacked_axis_names) for g, layer in found if layer is not None]
        # Each array gets its own buffer, because a state may be donated.
        return GradientDynamicsState(
            num_updates=jnp.zeros((), jnp.int32),
            mean=zeros(lambda g: jnp.complex64 if jnp.iscomplexobj(g) else jnp.float32),
            std=zeros(lambda g: jnp.float32),
            global_std=zero_global(named, jnp.float32),
        )

    def update_fn(updates, state, params=None):
        del params
        check_state(state, GradientDynamicsState, "track_gradient_dynamics")
        # By path: gradients may come in another container than the parameters, and in another order.
        paths, leaves, layers = leaf_parts(updates), jax.tree.leaves(updates), resolve(updates)
        order = leaf_parts(state.std)
        known = set(order)
        layers = [
            # A scalar that was weakly typed at init is no layer, though an update has made it a strong one.
            layer if path in known or jnp.ndim(g) else None
            for path, g, layer in zip(paths, leaves, layers, strict=True)
        ]
        found = {path: m for path, m in zip(paths, measure(leaves, layers), strict=True) if m is not None}
        if new := found.keys() - known:
            shape = leaves[paths.index(min(new))].shape
            raise ValueError(
                f"updates have the layer {'/'.join(min(new))!r}, of shape {shape}, parameters given to init had not: "
                "if mask has changed, init anew or keep the mask of tracking; gradients per example need jax.vmap"
            )
        if lost := known & {*paths} - found.keys():
            raise ValueError(
                f"{'/'.join(min(lost))!r} is a layer in the parameters given to init, and not in updates: use mask "
                "to say what it is; if mask has changed, init anew or keep the mask of tracking"
            )

        def renew(path, old, field):
            if path not in found:
                return jnp.zeros_like(old)  # A frozen layer may have None for a gradient.
            new = getattr(found[path], field).astype(old.dtype)
            # Reshaping alone would lose the sharding of a stack of one layer; it refuses another length.
            new = jnp.squeeze(new, tuple(range(old.ndim, new.ndim))).reshape(old.shape)
            check_varies_as(old, new, f"the {field} of {'/'.join(path)!r}")
            return new

        def renew_all(tree, field):
            leaves, structure = jax.tree.flatten(tree)
            return structure.unflatten(
                [renew(path, old, field) for path, old in zip(order, leaves, strict=True)]
            )

        sigma = global_std(list(found.values()), state.global_std.dtype)
        check_varies_as(state.global_std, sigma, "the global standard deviation")
        return updates, GradientDynamicsState(
            num_updates=jnp.asarray(optax.safe_increment(state.num_updates)),
            mean=renew_all(state.mean, "mean"),
            std=renew_all(state.std, "std"),
            global_std=sigma,
        )

    return optax.GradientTransformation(_answering_tree_map_params(init_fn), update_fn)


def _answering_tree_map_params(init: optax.TransformInitFn) -> optax.TransformInitFn:
    """An `init` that also tells `optax.tree_map_params` that no leaf of its state is a parameter.

    Optax calls it with a placeholder for all parameters, and takes for parameters what comes back of that. The answer
    needs the structure of the state, which is remembered; if there were several, each field is one leaf.
    """
    structures = set()

    def init_fn(params):
        if type(params).__module__.startswith("optax.tree_utils"):
            if len(structures) == 1:
                (structure,) = structures
                return structure.unflatten([0] * structure.num_leaves)
            return GradientDynamicsState(*map(jnp.zeros, [()] * 4))
        state = init(params)
        structures.add(jax.tree.structure(state))
        return state

    return init_fn


def gradient_dynamics(opt_state: Any, which: int | str | None = None) -> GradientDynamicsState:
    """Finds the statistics that `track_gradient_dynamics` recorded, anywhere in an optimizer's state.

    Args:
      opt_state: the state of any optimizer, however chained and wrapped; an `nnx.Optimizer`'s too.
      which: needed when several transformations record: the index among them, in the order of the state,
        or a name on the path to one, such as a name given to `optax.named_chain` or a label of
        `optax.partition`.

    Returns:
      The `GradientDynamicsState`, of plain arrays.

    Raises:
      ValueError: there is no such state, or several and `which` does not single one out.
      TypeError: `which` is neither an integer nor a string.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_gradnorm
      >>> optimizer = optax.named_chain(
      ...     ("raw", optax_gradnorm.track_gradient_dynamics()),
      ...     ("znorm", optax_gradnorm.znorm()),
      ...     ("normalized", optax_gradnorm.track_gradient_dynamics()),
      ...     ("sgd", optax.sgd(0.1)),
      ... )
      >>> params = {"kernel": jnp.zeros((2, 2))}
      >>> grads = {"kernel": jnp.array([[1.0, 3.0], [3.0, 1.0]]) * 100}
      >>> _, state = optimizer.update(grads, optimizer.init(params))
      >>> print(optax_gradnorm.gradient_dynamics(state, "raw").global_std)
      100.0
      >>> print(optax_gradnorm.gradient_dynamics(state, "normalized").global_std)
      1.0
    """
    found = [
        (path_parts(path), node)
        for path, node in optax.tree.get_all_with_path(opt_state, GradientDynamicsState.__name__)
    ]
    if not found:
        raise ValueError(
            "opt_state holds no track_gradient_dynamics state; "
            "it must be the optimizer's own state, not a copy of it in other containers"
        )
    if which is None:
        chosen = found
    elif isinstance(which, str):
        chosen = [(path, node) for path, node in found if which in path]
    else:
        index = check_integer("which", which)
        chosen = found[index : index + 1] if index >= 0 else []
    if len(chosen) != 1:
        paths = ", ".join(f"{index}: {'/'.join(path) or '(root)'}" for index, (path, _) in enumerate(found))
        raise ValueError(
            f"which must single out one track_gradient_dynamics state by its index or a name on its path, "
            f"got {which!r}; opt_state holds {len(found)} ({paths})"
        )
    return without_boxes(chosen[0][1])
