r"""Gradient overlap of residual blocks: what skip connections add to the gradient that flows back.

A residual block :math:`y = x + f(x)` passes the gradient :math:`v = \partial L / \partial y` back along two
paths, which add up:

.. math::
  \frac{\partial L}{\partial x} = v + J_f^\top v

with :math:`J_f` the Jacobian of the branch at :math:`x` and :math:`\alpha = \|J_f\|_2` its operator norm.
The three statements of the paper that names this gradient overlap, for blocks :math:`i = 1 \ldots N`:

- Lemma 2.1, equations 1 and 17: in a residual network
  :math:`\|\partial L / \partial x_0\| \le \prod_i (1 + \alpha_i) \|\partial L / \partial y_N\|`. Each block
  can lengthen the gradient at most by the norm of the identity plus that of its branch.
- Lemma 2.2, equations 18 and 23: in the same network without skip connections the norm is said to equal
  :math:`\prod_i \alpha_i \|\partial L / \partial y_N\|`. An operator norm only bounds what happens to one
  gradient, so this holds as an upper bound (:math:`\le`), with equality where every block's incoming
  gradient is a top left singular vector of its Jacobian.
- Theorem 2.3, equations 24 and 30: since :math:`\prod_i (1 + \alpha_i) > \prod_i \alpha_i`, skip connections
  raise the bound; the surplus comes from the identity's 1 in each block. It compares bounds, not gradients:
  where the paths point in opposite directions their sum is shorter than either.

All functions are pure and run under `jax.jit`. Norms are Euclidean over all leaves of a pytree, without
overflow or underflow of squares, and are float32 (float64 for double precision).

References:
  Yun, `Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
  Non-Convex Optimization <https://arxiv.org/abs/2410.21564>`_, 2024, section 3.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from optax_gradnorm._arguments import check_integer
from optax_gradnorm._moments import norm_of, power_of_two, statistics_dtype, widen

__all__ = [
    "GradientBounds",
    "OperatorNorm",
    "ResidualOverlap",
    "gradient_bounds",
    "operator_norm",
    "residual_overlap",
]

PyTree = Any


class OperatorNorm(NamedTuple):
    """Spectral norm of a Jacobian, as `operator_norm` estimates it.

    Attributes:
      norm: largest singular value found: up to rounding never above the true norm.
      error: relative width of the interval around `norm` that certainly holds a singular value. It falls to
        rounding as the iteration converges; give it more iterations while it is too large.
    """

    norm: jax.Array
    error: jax.Array


class ResidualOverlap(NamedTuple):
    """Gradients along the two paths of a residual block, as `residual_overlap` measures them.

    Attributes:
      skip: gradient through the shortcut, with the structure of the block's input.
      branch: gradient through the branch.
      total: their sum, the gradient of the block's input; the cotangent of the block before it.
      skip_norm: norm of `skip`.
      branch_norm: norm of `branch`.
      total_norm: norm of `total`.
      cosine: cosine of the angle between `skip` and `branch`; NaN where one of them is 0.
      amplification: `total_norm / skip_norm`; NaN or infinite where `skip` is 0.
      alpha: operator norm of the branch's Jacobian, the paper's alpha.
      shortcut_alpha: operator norm of the shortcut's Jacobian; 1 for the identity.
    """

    skip: PyTree
    branch: PyTree
    total: PyTree
    skip_norm: jax.Array
    branch_norm: jax.Array
    total_norm: jax.Array
    cosine: jax.Array
    amplification: jax.Array
    alpha: OperatorNorm
    shortcut_alpha: OperatorNorm


class GradientBounds(NamedTuple):
    """Upper bounds of the norm of the gradient at the input of a network, from `gradient_bounds`.

    Attributes:
      log_residual: natural logarithm of the bound with skip connections.
      log_plain: natural logarithm of the bound without them; minus infinity where an alpha is 0.
      residual: the bound with skip connections; infinite beyond the range of its dtype.
      plain: the bound without them, likewise.
    """

    log_residual: jax.Array
    log_plain: jax.Array
    residual: jax.Array
    plain: jax.Array


def operator_norm(
    f: Callable[[PyTree], PyTree], x: PyTree, *, iterations: int = 30, key: jax.Array | None = None
) -> OperatorNorm:
    r"""Spectral norm of the Jacobian of a function at a point, by power iteration.

    .. math::
      \|J\|_2 = \max_{v \ne 0} \frac{\|J v\|}{\|v\|}, \quad
      u_k = \frac{J v_k}{\|J v_k\|}, \quad v_{k+1} = \frac{J^\top u_k}{\|J^\top u_k\|}

    The Jacobian is never formed: each iteration takes one Jacobian-vector and one vector-Jacobian product.
    The estimate :math:`\sigma_k = \|J v_k\|` rises towards the norm, the faster the further the largest
    singular value lies above the next. From :math:`r = \|J^\top u_k - \sigma_k v_k\|` follows that a
    singular value lies within :math:`r` of :math:`\sigma_k`.

    Args:
      f: a function from `x` to an array or a pytree of arrays that JAX can differentiate forwards.
      x: where to take the Jacobian: a floating-point or complex array, or a pytree of them.
      iterations: number of iterations, at least 1; static under `jax.jit`.
      key: random key of the first direction; `jax.random.key(0)` by default.

    Returns:
      An `OperatorNorm`: `norm`, :math:`\sigma_k` of the last iteration, and `error`, :math:`r / \sigma_k`.
      Both are scalars in float32, or in float64 where `x` is double precision throughout. A Jacobian of
      zeros gives 0 and 0; with a NaN or an infinity in it the error is NaN. Complex functions are taken as
      maps of real and imaginary parts, which for a holomorphic function is the spectral norm of its complex
      Jacobian.

    Raises:
      ValueError: `iterations` is less than 1.
      TypeError: `x` or `f(x)` holds something else than floating-point or complex arrays.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_gradnorm import overlap
      >>> matrix = jnp.array([[3.0, 0.0], [4.0, 5.0]])
      >>> estimate = overlap.operator_norm(lambda x: matrix @ x, jnp.zeros(2))
      >>> print(f"{estimate.norm:.4f}, converged: {estimate.error < 1e-5}")
      6.7082, converged: True

    References:
      Golub and Van Loan, Matrix Computations, 4th edition, 2013, section 8.2.
    """
    iterations = check_integer("iterations", iterations)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    x = jax.tree.map(jnp.asarray, x)
    _check_inexact("x", x)
    # Python numbers too, which f may return.
    output, jvp = jax.linearize(lambda x: jax.tree.map(jnp.asarray, f(x)), x)
    _check_inexact("f(x)", output)
    transpose = jax.linear_transpose(jvp, x)

    def vjp(u):
        # The adjoint: JAX transposes without conjugating.
        return _conjugate(transpose(_conjugate(u))[0])

    def iterate(v, _):
        u = jvp(v)
        norm = norm_of(u)
        w = vjp(_divide(u, norm))
        distance = norm_of(jax.tree.map(lambda w, v: widen(w) - norm.astype(widen(v).dtype) * widen(v), w, v))
        # 0 for a Jacobian of zeros, NaN for one with a NaN or an infinity.
        error = jnp.where(norm == 0, 0, distance.astype(norm.dtype) / jnp.where(norm == 0, 1, norm))
        return _divide(w, norm_of(w)), OperatorNorm(norm, error)

    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(leaves))
    # Added to zeros that are sharded like the leaf.
    start = [
        jnp.zeros_like(leaf) + jax.random.normal(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    start = jax.tree.unflatten(structure, start)
    _, estimates = lax.scan(iterate, _divide(start, norm_of(start)), length=iterations)
    return jax.tree.map(lambda estimate: estimate[-1], estimates)


def residual_overlap(
    branch: Callable[[PyTree], PyTree],
    x: PyTree,
    cotangent: PyTree,
    *,
    shortcut: Callable[[PyTree], PyTree] | None = None,
    iterations: int = 30,
    key: jax.Array | None = None,
) -> ResidualOverlap:
    r"""Measures how the gradients of a residual block's two paths add up.

    .. math::
      y = x + f(x): \quad
      g_{\text{skip}} = v, \quad g_{\text{branch}} = J_f^\top v, \quad
      \text{amplification} = \frac{\|g_{\text{skip}} + g_{\text{branch}}\|}{\|g_{\text{skip}}\|}
      \le 1 + \alpha, \quad \alpha = \|J_f\|_2

    with :math:`v` the gradient of the loss at :math:`y` (`cotangent`). The inequality is one step of
    Lemma 2.1 (equation 16). It is met with equality only if both paths point in the same direction (cosine
    1) and the branch lengthens :math:`v` as much as it can; a negative cosine means that the paths work
    against each other. With a shortcut :math:`s` that is not the identity, :math:`g_{\text{skip}} =
    J_s^\top v`, and its operator norm takes the place of 1 relative to :math:`\|v\|`:
    :math:`\|g_{\text{skip}} + g_{\text{branch}}\| \le (\|J_s\|_2 + \alpha) \|v\|`.

    Args:
      branch: the residual branch, a function of `x`.
      x: input of the block: an array or a pytree of arrays.
      cotangent: gradient of the loss at the sum of the two paths, before any activation that follows it; an
        array or pytree like `branch(x)`.
      shortcut: the other path, such as a projection; the identity by default.
      iterations: of `operator_norm`.
      key: of `operator_norm`.

    Returns:
      A `ResidualOverlap`. Gradients keep the dtypes of `x`; measures are scalars in float32 (float64 for
      double precision).

    Raises:
      ValueError: `branch(x)`, `shortcut(x)` and `cotangent` differ in structure, shape or dtype, or
        `iterations` is less than 1.
      TypeError: `x` holds something else than floating-point or complex arrays.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_gradnorm import overlap
      >>> measured = overlap.residual_overlap(lambda x: 0.5 * x, jnp.zeros(3), jnp.ones(3))
      >>> print(f"{measured.cosine:.2f} {measured.amplification:.2f} {measured.alpha.norm:.2f}")
      1.00 1.50 0.50

    References:
      Yun, `Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
      Non-Convex Optimization <https://arxiv.org/abs/2410.21564>`_, 2024, lemma 2.1, equations 4 to 16.
    """
    x, cotangent = jax.tree.map(jnp.asarray, (x, cotangent))
    given_shortcut = shortcut
    shortcut = shortcut or (lambda x: x)
    expected = _signature(jax.eval_shape(branch, x))
    for name, tree in (("shortcut(x)", jax.eval_shape(shortcut, x)), ("cotangent", cotangent)):
        if _signature(tree) != expected:
            raise ValueError(
                f"{name} must have the structure, shapes and dtypes of branch(x): "
                f"got {_signature(tree)[1]}, expected {expected[1]}"
            )
    alpha = operator_norm(branch, x, iterations=iterations, key=key)
    if given_shortcut is None:
        shortcut_alpha = OperatorNorm(jnp.ones_like(alpha.norm), jnp.zeros_like(alpha.error))
    else:
        shortcut_alpha = operator_norm(shortcut, x, iterations=iterations, key=key)

    (branch_gradient,) = jax.vjp(branch, x)[1](cotangent)
    (skip_gradient,) = jax.vjp(shortcut, x)[1](cotangent)
    total = jax.tree.map(jnp.add, skip_gradient, branch_gradient)
    skip_norm, branch_norm, total_norm = norm_of(skip_gradient), norm_of(branch_gradient), norm_of(total)
    directions = zip(
        jax.tree.leaves(_divide(skip_gradient, skip_norm)),
        jax.tree.leaves(_divide(branch_gradient, branch_norm)),
        strict=True,
    )
    cosine = sum(jnp.sum((jnp.conj(widen(a)) * widen(b)).real).astype(skip_norm.dtype) for a, b in directions)
    defined = (skip_norm > 0) & (branch_norm > 0)
    return ResidualOverlap(
        skip=skip_gradient,
        branch=branch_gradient,
        total=total,
        skip_norm=skip_norm,
        branch_norm=branch_norm,
        total_norm=total_norm,
        cosine=jnp.where(defined, jnp.clip(cosine, -1, 1), jnp.nan),
        amplification=total_norm / skip_norm,
        alpha=alpha,
        shortcut_alpha=shortcut_alpha,
    )


def gradient_bounds(
    alphas: jax.typing.ArrayLike | Sequence[jax.typing.ArrayLike],
    output_gradient_norm: jax.typing.ArrayLike,
    *,
    shortcut_alphas: jax.typing.ArrayLike | Sequence[jax.typing.ArrayLike] = 1.0,
) -> GradientBounds:
    r"""Bounds the gradient at a network's input by the operator norms of its blocks.

    .. math::
      \text{residual} = \prod_{i=1}^N (1 + \alpha_i) \left\|\frac{\partial L}{\partial y_N}\right\|, \quad
      \text{plain} = \prod_{i=1}^N \alpha_i \left\|\frac{\partial L}{\partial y_N}\right\|

    The first is Lemma 2.1 (equation 17) and Theorem 2.3 (equation 24). The second is the right-hand side of
    Lemma 2.2 (equation 23), which is printed as an equality but is an upper bound only. Products are sums of
    logarithms, so that depth cannot overflow them: compare depths by the logarithms.

    An activation with slope at most 1 after the addition, such as ReLU, only shrinks gradients: both stay
    bounds. Where a shortcut is not the identity, its operator norm takes the place of 1.

    Args:
      alphas: operator norm of each block's branch: a one-dimensional array or a sequence of scalars.
      output_gradient_norm: norm of the gradient at the output of the last block, a scalar.
      shortcut_alphas: operator norm of each block's shortcut, likewise, or one number for all.

    Returns:
      A `GradientBounds` of float32 scalars (float64 if `alphas` is double precision).

    Raises:
      ValueError: `alphas` is not one-dimensional, another argument does not fit it, or one is negative (under
        `jax.jit`, where values are not known, that gives NaN).
      TypeError: an argument is complex.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_gradnorm import overlap
      >>> bounds = overlap.gradient_bounds(jnp.full(2, 0.5), 4.0)
      >>> print(f"{bounds.residual:.2f} {bounds.plain:.2f}")
      9.00 1.00
      >>> bounds = overlap.gradient_bounds(jnp.full(152, 10.0), 1.0)
      >>> print(bounds.residual, f"= exp({bounds.log_residual:.1f})")
      inf = exp(364.5)

    References:
      Yun, `Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
      Non-Convex Optimization <https://arxiv.org/abs/2410.21564>`_, 2024, equations 17, 23, 24 and 30.
    """
    alphas = jnp.asarray(alphas)
    if alphas.ndim != 1:
        raise ValueError(f"alphas must be one-dimensional, got shape {alphas.shape}")
    output_gradient_norm = jnp.asarray(output_gradient_norm)
    if output_gradient_norm.ndim:
        raise ValueError(f"output_gradient_norm must be a scalar, got shape {output_gradient_norm.shape}")
    shortcut_alphas = jnp.asarray(shortcut_alphas)
    if shortcut_alphas.shape not in ((), alphas.shape):
        raise ValueError(
            "shortcut_alphas must be a scalar or have the shape "
            f"{alphas.shape} of alphas, got {shortcut_alphas.shape}"
        )
    _check_norms("alphas", alphas)
    _check_norms("output_gradient_norm", output_gradient_norm)
    _check_norms("shortcut_alphas", shortcut_alphas)

    dtype = statistics_dtype(alphas.dtype) if jnp.issubdtype(alphas.dtype, jnp.floating) else jnp.float32
    alphas, shortcut_alphas = alphas.astype(dtype), shortcut_alphas.astype(dtype)
    log_norm = jnp.log(output_gradient_norm.astype(dtype))
    # Added to 1, small alphas would lose their digits.
    factors = jnp.where(shortcut_alphas == 1, jnp.log1p(alphas), jnp.log(shortcut_alphas + alphas))
    log_residual = jnp.sum(factors) + log_norm
    log_plain = jnp.sum(jnp.log(alphas)) + log_norm
    return GradientBounds(log_residual, log_plain, jnp.exp(log_residual), jnp.exp(log_plain))


def _check_norms(name: str, values: jax.Array) -> None:
    if jnp.iscomplexobj(values):
        raise TypeError(f"{name} must be real, got {values.dtype}")
    # Traced arrays have no values yet; a negative number then gives a logarithm of NaN.
    if isinstance(values, jax.core.Tracer) or not values.size:
        return
    with jax.ensure_compile_time_eval():
        smallest = float(jnp.min(values))
    if smallest < 0:
        raise ValueError(f"{name} must not be negative, got {smallest:g}")


def _check_inexact(name: str, tree: PyTree) -> None:
    leaves = jax.tree.leaves(tree)
    found = [leaf.dtype for leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if found or not leaves:
        raise TypeError(
            f"{name} must hold floating-point or complex arrays, got {found[0] if found else 'none'}"
        )


def _signature(tree: PyTree) -> tuple[Any, list[str]]:
    leaves = [f"{jnp.dtype(x.dtype).name}{list(x.shape)}" for x in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), leaves


def _divide(tree: PyTree, norm: jax.Array) -> PyTree:
    """The tree over its norm, in its own dtypes; zeros stay zeros."""
    per_unit = 1 / power_of_two(norm)
    rest = jnp.where(norm > 0, norm * per_unit, 1)

    def divide(x):
        wide = widen(x)
        return (wide * per_unit.astype(wide.dtype) / rest.astype(wide.dtype)).astype(x.dtype)

    return jax.tree.map(divide, tree)


def _conjugate(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.conj, tree)
