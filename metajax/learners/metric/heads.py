"""Learners whose head is the solution of a convex problem on the features of the support set.

Backpropagation goes through the solver to the encoder, to the regularisation and to how the solution is
scaled. Adapting again solves anew for all examples so far, so that adapting in pieces is adapting to the
whole, if the encoder's answer to an example does not depend on its batch (not under batch norm).
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.inner.scalars import Positive, as_positive, learned
from metajax.learners.states import (
    Examples,
    Kept,
    counts_of,
    exact,
    features_by,
    init_encoder,
    keeping,
    mask_absent,
)
from metajax.losses import one_hot
from metajax.types import Array, Key, Learner, Model, Params, Tree

# (features [n, D], labels [n, N] in {0, 1}, weights [n], regularisation) -> head [D, N].
Solver = Callable[[Array, Array, Array, Array], Array]
LEARNED_FROM_ONE = learned(1.0)


class LinearHeadMeta(NamedTuple):
    """What learners with a solved head learn across tasks.

    Attributes:
      params: those of the encoder.
      log_strength: Logarithm of the regularisation, a scalar; () where that is fixed.
      log_scale: Logarithm of the factor of the head's outputs, likewise.
      bias: Scalar added to them then.
    """

    params: Params
    log_strength: Any
    log_scale: Any
    bias: Array


def linear_head(
    encoder: Model,
    solver: Solver,
    *,
    ways: int,
    regularization: float | Positive = LEARNED_FROM_ONE,
    scale: float | Positive = LEARNED_FROM_ONE,
) -> Learner[LinearHeadMeta, Kept]:
    """Adapts by solving for a linear head.

    Args:
      encoder: gives features [B, D], without a head.
      solver: (features [n, D + 1], labels [n, N] of zeros and ones, weights [n], strength) -> [D + 1, N],
        such as `ridge`, `logistic(steps)` and `svm(steps)`. The last feature is one.
      ways: N. Learners that differ in it share their meta-parameters.
      regularization: Strength of the regularisation, a positive number, which is fixed, or `learned(1.0)`,
        which is learned from that value on, as in the papers.
      scale: Factor of the outputs, likewise.

    Returns:
      A learner with `ClosedMeta` and `Kept`, which has made the head [D + 1, N], the last row being the
      intercepts. A class without examples has the logit `support.ABSENT`.
    """
    if ways < 2:
        raise ValueError(f"ways is {ways}; use 2 or more.")
    encoder = exact(encoder)
    features_of = features_by(encoder, "params")
    cost, factor = as_positive(regularization, name="strength"), as_positive(scale, name="scale")

    def init(key: Key, inputs: Tree) -> LinearHeadMeta:
        params, _, dtype = init_encoder(encoder, key, inputs)
        return LinearHeadMeta(params, cost.init(dtype), factor.init(dtype), jnp.zeros((), dtype))

    def solve(meta: LinearHeadMeta, key: Key, examples: Examples) -> Array:
        del key
        features = _with_one(examples.features)
        labels = one_hot(examples.targets, ways, features.dtype)
        return solver(features, labels, examples.weights, cost.value(meta.log_strength))

    def predict(meta: LinearHeadMeta, fast: Kept, inputs: Tree) -> Array:
        queries = _with_one(features_of(meta, inputs))
        logits = factor.value(meta.log_scale) * (queries @ fast.made) + meta.bias
        return mask_absent(logits, counts_of(fast.examples, ways))

    return Learner(init, *keeping(features_of, ways, solve), predict)


def ridge(features: Array, labels: Array, weights: Array, regularization: Array) -> Array:
    """Ridge regression on labels: the head W that minimises sum_i w_i |x_i W - y_i|^2 + strength |W|^2.

    The system that is solved has the smaller side of X: X^T (X X^T + strength)^-1 Y of the examples, eq. 4 of
    the reference, or (X^T X + strength)^-1 X^T Y.

    Reference: Bertinetto et al., 2019 (https://arxiv.org/abs/1805.08136), section 3.2.
    """
    features, labels, weights, regularization = _alike(features, labels, weights, regularization)
    roots = jnp.sqrt(jnp.where(weights > 0, weights, 1)) * (weights > 0)
    x, y = features * roots[:, None], labels * roots[:, None]
    examples, dim = x.shape
    if examples < dim:
        return x.T @ _solve(x @ x.T + regularization * jnp.eye(examples, dtype=x.dtype), y)
    return _solve(x.T @ x + regularization * jnp.eye(dim, dtype=x.dtype), x.T @ y)


def logistic(steps: int = 5) -> Solver:
    """Logistic regression of each class against all others, by Newton's steps.

    Each step is a ridge regression with weights of its own: iteratively reweighted least squares. Its head
    minimises sum_i w_i log(1 + exp(-(2 y_i - 1) x_i W)) + strength / 2 |W|^2.

    Args:
      steps: Newton's steps from a head of zeros.

    Reference: Bertinetto et al., 2019 (https://arxiv.org/abs/1805.08136), section 3.3 and eq. 8.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 or more.")

    def solve(features, labels, weights, regularization):
        alike = _alike(features, labels, weights, regularization)
        return jax.vmap(of_class, (None, 1, None, None), 1)(*alike)

    def of_class(features, labels, weights, regularization):
        def step(head, _):
            logits = features @ head
            probabilities = jax.nn.sigmoid(logits)
            # Where an example is certain it says nothing, and its target would be infinite.
            slopes = jnp.maximum(probabilities * (1 - probabilities), 1e-6)
            targets = logits + (labels - probabilities) / slopes
            return ridge(features, targets[:, None], weights * slopes, regularization)[:, 0], None

        zeros = jnp.zeros_like(features[0])
        return jax.lax.scan(step, zeros, length=steps)[0]

    return solve


def svm(steps: int = 100, *, margin_cost: float = 0.1, tolerance: float = 0.1) -> Solver:
    """The multi-class support vector machine of Crammer and Singer, by alternating directions on its dual.

    Where features outnumber examples, 100 iterations leave an error of rounding. Where examples outnumber
    features and margins are dear they leave more: 5 to 11% of the largest weight for 50 examples of 6
    features at a margin cost of 10 times the regularisation, 1% after 1,000, and 1e-7 after 5,000.

    Args:
      steps: Number of iterations on the dual, of N n numbers; the derivative is that of the iterations.
      margin_cost: Cost C of a violated margin, where the norm of the head costs a half: times that of
        the regularisation.
      tolerance: Largest relative error of the head, as bounded by the duality gap, that an eager call lets
        pass without a RuntimeWarning. A compiled program never warns.

    Reference: Lee et al., 2019 (https://arxiv.org/abs/1904.03758), section 3.3; Boyd et al., 2011
    (https://stanford.edu/~boyd/papers/admm_distr_stats.html), section 5.2 and, for the relaxation, 3.4.3.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 or more.")

    projection = optax.projections.projection_simplex

    def solve(features, labels, weights, regularization):
        features, labels, weights, regularization = _alike(
            features, labels, weights, regularization
        )
        caps, seen = margin_cost * weights / regularization, weights > 0
        features, labels = features * seen[:, None], labels * seen[:, None]
        gram, start = features @ features.T, caps[:, None] * labels

        def project(rows):
            # Padding has a cap of zero, and no simplex.
            size = jnp.where(caps > 0, caps, 1)[:, None]
            # In float64 wherever JAX has it: the derivative of Optax's projection expects that.
            wide = ((start - rows) / size).astype(jnp.result_type(float))
            beta = caps[:, None] * jax.vmap(projection)(wide).astype(rows.dtype)
            rows = start - beta
            # What its label loses to the others, without the rounding of a large number.
            return rows - labels * jnp.sum(rows, axis=1, keepdims=True)

        # The head is features^T alpha, alpha = caps labels - beta, with beta on the simplex of size caps for
        # each example: the minimum of <alpha, gram alpha> / 2 - <alpha, labels>.
        trace = jnp.trace(gram)
        # Without an example any penalty leaves a head of zeros, and one of zero would divide by it.
        penalty = jnp.where(trace > 0, _PENALTY * trace / jnp.maximum(jnp.sum(seen), 1), 1)
        eye = jnp.eye(len(gram), dtype=gram.dtype)
        inverse = _solve(gram + penalty * eye, eye)
        constant, factor = inverse @ labels, penalty * inverse

        def step(state, _):
            alpha, gathered = state
            free = factor @ (alpha - gathered) + constant
            free = _RELAXATION * free + (1 - _RELAXATION) * alpha
            new = project(free + gathered)
            return (new, gathered + free - new), None

        zeros = jnp.zeros_like(start)
        (alpha, _), _ = jax.lax.scan(step, (zeros, zeros), length=steps)
        head = features.T @ alpha
        _warn_of_gap(features, labels, caps, start - alpha, head, tolerance)
        return head

    return solve


def _alike(*arrays: Array) -> list[Array]:
    """Arrays in the widest of their floating types, float32 at least, for no system is solved in bfloat16."""
    dtype = trees.float_dtype(arrays)
    return [jnp.asarray(array, dtype) for array in arrays]


# How dear it is to leave the simplex, over the mean eigenvalue; measured: 0.1 and 1 need more iterations.
_PENALTY, _RELAXATION = 0.3, 1.6


def _warn_of_gap(
    features: Array, labels: Array, caps: Array, beta: Array, head: Array, tolerance: float
) -> None:
    """Warns of a head that may be off by more than a tolerance, where the numbers are known."""
    if any(isinstance(array, jax.core.Tracer) for array in (features, labels, caps, beta)):
        return
    scores = features @ head
    margins = scores - jnp.sum(scores * labels, axis=1, keepdims=True) + 1 - labels
    costs = jnp.sum(caps * jnp.max(margins, axis=1)) - jnp.sum(beta * (1 - labels))
    # The primal is strongly convex: half the squared error is at most the gap. Less is rounding.
    square, epsilon = jnp.sum(jnp.square(head)), jnp.finfo(head.dtype).eps
    rounding = 8 * len(head) ** 0.5 * epsilon * jnp.sum(caps)
    error = float(jnp.sqrt(2 * jnp.maximum(square + costs - rounding, 0) / square))
    if error > tolerance:
        warnings.warn(
            f"svm may be off by {error:.0%} of the head's norm, and {tolerance:.0%} is allowed; use more "
            "steps than it has, such as svm(5000), a larger regularisation, or a smaller margin_cost.",
            RuntimeWarning,
            stacklevel=2,
        )


def _solve(matrix: Array, right: Array) -> Array:
    """Solves a symmetric positive system; its derivatives are solutions of the same system."""
    fixed = jax.lax.stop_gradient(matrix)
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x, right, solve=lambda _, b: _cholesky(fixed, b), symmetric=True
    )


def _factor_and_solve(matrix: Array, right: Array) -> Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


# One system at a time on a CPU, where jaxlib before 0.11.2 may never come back from several: each of its
# calls takes a thread of a pool and waits there for parts of itself that no thread is left to compute.
_cholesky = jax.custom_batching.custom_vmap(_factor_and_solve)


@_cholesky.def_vmap
def _several(axis_size: int, batched: list, *operands: Array) -> tuple[Array, bool]:
    matrices, rights = (
        operand if each else jnp.broadcast_to(operand, (axis_size, *operand.shape))
        for operand, each in zip(operands, batched, strict=True)
    )

    def one_by_one(*systems):
        return jax.lax.map(lambda system: _cholesky(*system), systems)

    together = jax.vmap(_factor_and_solve)
    return jax.lax.platform_dependent(matrices, rights, cpu=one_by_one, default=together), True


def _with_one(features: Array) -> Array:
    """Adds a feature that is one, whose weight is an intercept."""
    return jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)
