"""Learners whose linear head solves a convex problem on the support features.

Gradients flow through the solver to the encoder, to the regularization and to the scale of the outputs.
Adapting again solves for all examples so far. Adapting piece by piece therefore equals adapting to the whole,
unless the encoder has batch norm, under which the features of an example depend on its batch.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.core import InconclusiveDimensionOperation, Tracer

from metajax import trees
from metajax.deprecation import renamed_arguments
from metajax.inner.scalars import Positive, as_positive, learned
from metajax.learners.metric.positive_definite import solve as solve_definite
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

# (features [B, D], one-hot labels [B, N], weights [B], regularization) -> head [D, N].
Solver = Callable[[Array, Array, Array, Array | float], Array]
LEARNED_FROM_ONE = learned(1.0)


class LinearHeadMeta(NamedTuple):
    """Meta-parameters of learners with a solved head.

    Attributes:
      params: Parameters of the encoder.
      log_strength: Logarithm of the regularization, a scalar; () if it is fixed.
      log_scale: Logarithm of the scale of the outputs, a scalar; () if it is fixed.
      bias: Bias added to the scaled outputs, a scalar.
    """

    params: Params
    log_strength: Any
    log_scale: Any
    bias: Array


@renamed_arguments(strength="regularization")
def linear_head(
    encoder: Model,
    solver: Solver,
    *,
    ways: int,
    regularization: float | Positive = LEARNED_FROM_ONE,
    scale: float | Positive = LEARNED_FROM_ONE,
) -> Learner[LinearHeadMeta, Kept]:
    """Adapts by solving for a linear head on the features of the support set.

    `ridge` makes it R2-D2, `logistic()` LR-D2, and `svm()` MetaOptNet. The logits are scale * x W + bias,
    with a scale and a bias learned across tasks.

    Args:
      encoder: Network without a head, with features [B, D].
      solver: Solver of the head: `ridge`, `logistic(steps)`, `svm(steps)`, or any function (features
        [B, D + 1], one-hot labels [B, N], weights [B], regularization) -> [D + 1, N]. The last feature is
        one, for the intercepts.
      ways: Number of classes N. Learners of different N share their meta-parameters.
      regularization: Weight of the penalty of the solver, a number above 0; `metajax.learned(1.0)`, the
        default, learns it, starting at 1, as in the papers.
      scale: Factor of the outputs, a number above 0 or `metajax.learned(1.0)`, the default.

    Returns:
      A learner with meta-parameters `LinearHeadMeta` and fast state `Kept`, whose `made` is the head
      [D + 1, N]; its last row are the intercepts. The logit of a class without examples is `states.ABSENT`.

    Raises:
      ValueError: If `ways` is below 2, or `regularization` or `scale` is not above 0.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = linear_head(metajax.toys.toy_model(None), metajax.learners.ridge, ways=3)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Bertinetto et al., 2019 (https://arxiv.org/abs/1805.08136), section 3; Lee et al., 2019
    (https://arxiv.org/abs/1904.03758), section 3.
    """
    if ways < 2:
        raise ValueError(f"ways is {ways}; use 2 or more.")
    encoder = exact(encoder)
    features_of = features_by(encoder, "params")
    cost = as_positive(regularization, name="regularization")
    factor = as_positive(scale, name="scale")

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


@renamed_arguments(strength="regularization")
def ridge(features: Array, labels: Array, weights: Array, regularization: Array | float) -> Array:
    """Solves ridge regression on one-hot labels.

    The head W minimizes sum_i w_i |x_i W - y_i|^2 + regularization |W|^2. Of two equal formulas, the one with
    the smaller system is used: X^T (X X^T + regularization I)^-1 Y, eq. 4, if examples are fewer than
    features, else (X^T X + regularization I)^-1 X^T Y.

    Args:
      features: Float features X [B, D].
      labels: One-hot labels Y [B, N].
      weights: Float weights w [B]; zero marks padding.
      regularization: Weight of the penalty, a positive scalar.

    Returns:
      The head W [D, N], float32 at least.

    Example:
      >>> head = ridge(jnp.eye(3), jnp.eye(3), jnp.ones(3), 1.0)
      >>> bool(jnp.allclose(head, 0.5 * jnp.eye(3)))  # 1 / (1 + regularization)
      True

    Reference: Bertinetto et al., 2019 (https://arxiv.org/abs/1805.08136), section 3.2.
    """
    _check_shapes(features, labels, weights)
    features, labels, weights, regularization = _alike(features, labels, weights, regularization)
    roots = jnp.sqrt(jnp.where(weights > 0, weights, 1)) * (weights > 0)
    x, y = features * roots[:, None], labels * roots[:, None]
    examples, dim = x.shape
    if _is_less(examples, dim):
        # Woodbury identity, eq. 4: B equations instead of D, for few shots and wide features.
        return x.T @ solve_definite(x @ x.T + regularization * jnp.eye(examples, dtype=x.dtype), y)
    return solve_definite(x.T @ x + regularization * jnp.eye(dim, dtype=x.dtype), x.T @ y)


def _is_less(examples: int, dim: int) -> bool:
    """Compares sizes; False where the number of examples is symbolic, as `jax.export` has it."""
    try:
        return examples < dim
    except InconclusiveDimensionOperation:
        return False


def logistic(steps: int = 5) -> Solver:
    """Makes a solver of logistic regression, each class against all others, by Newton's method.

    The head minimizes sum_i w_i log(1 + exp(-(2 y_i - 1) x_i W)) + regularization / 2 |W|^2. Each Newton step
    is a weighted ridge regression: iteratively reweighted least squares.

    Args:
      steps: Number of Newton steps from a head of zeros, 1 or more.

    Returns:
      A solver (features [B, D], one-hot labels [B, N], weights [B], regularization) -> head [D, N].

    Raises:
      ValueError: If `steps` is below 1.

    Example:
      >>> solve = jax.jit(logistic(steps=5))
      >>> head = solve(jnp.eye(3), jnp.eye(3), jnp.ones(3), 1.0)
      >>> head.shape, bool((head.diagonal() > 0).all())
      ((3, 3), True)

    Reference: Bertinetto et al., 2019 (https://arxiv.org/abs/1805.08136), section 3.3 and eq. 8.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 or more.")

    def solve(
        features: Array, labels: Array, weights: Array, regularization: Array | float
    ) -> Array:
        _check_shapes(features, labels, weights)
        alike = _alike(features, labels, weights, regularization)
        return jax.vmap(of_class, (None, 1, None, None), 1)(*alike)

    def of_class(features, labels, weights, regularization):
        def step(head, _):
            logits = features @ head
            probabilities = jax.nn.sigmoid(logits)
            # IRLS: weights are the slopes p (1 - p), targets z = x W + (y - p) / (p (1 - p)). The bound keeps
            # the target of an example finite where the model is certain of it.
            slopes = jnp.maximum(probabilities * (1 - probabilities), 1e-6)
            targets = logits + (labels - probabilities) / slopes
            return ridge(features, targets[:, None], weights * slopes, regularization)[:, 0], None

        zeros = jnp.zeros_like(features[0])
        return jax.lax.scan(step, zeros, length=steps)[0]

    return solve


def svm(steps: int = 100, *, margin_cost: float = 0.1, tolerance: float = 0.1) -> Solver:
    """Makes a solver of the multi-class support vector machine of Crammer and Singer.

    The head minimizes regularization / 2 |W|^2 + margin_cost * sum_i w_i max_k (x_i W_k - x_i W_y + 1 -
    y_ik): its dual is solved by the alternating direction method of multipliers (ADMM). If features
    outnumber examples, 100 iterations leave only rounding error. If examples outnumber features and margins
    are expensive, they leave more: 5 to 11% of the largest weight for 50 examples of 6 features at a margin
    cost of 10 times the regularization, 1% after 1,000 iterations, and 1e-7 after 5,000.

    Args:
      steps: Number of iterations on the B N dual variables, 1 or more; the derivative is the derivative of
        the iterations.
      margin_cost: Cost C of a violated margin.
      tolerance: Largest relative error of the head, as bounded by the duality gap, for which an eager call
        gives no RuntimeWarning. A compiled program never warns.

    Returns:
      A solver (features [B, D], one-hot labels [B, N], weights [B], regularization) -> head [D, N].

    Raises:
      ValueError: If `steps` is below 1.

    Example:
      >>> solve = jax.jit(svm(steps=20))
      >>> head = solve(jnp.eye(3), jnp.eye(3), jnp.ones(3), 1.0)
      >>> head.shape, bool((head.argmax(axis=1) == jnp.arange(3)).all())
      ((3, 3), True)

    Reference: Lee et al., 2019 (https://arxiv.org/abs/1904.03758), section 3.3; Boyd et al., 2011
    (https://stanford.edu/~boyd/papers/admm_distr_stats.html), section 5.2 and, for the relaxation, 3.4.3.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 or more.")

    projection = optax.projections.projection_simplex

    def solve(
        features: Array, labels: Array, weights: Array, regularization: Array | float
    ) -> Array:
        _check_shapes(features, labels, weights)
        features, labels, weights, regularization = _alike(
            features, labels, weights, regularization
        )
        # Of the dual variables alpha [B, N], an example's row is at most C_i = margin_cost w_i /
        # regularization at its label, and at most 0 elsewhere, and sums to zero.
        caps, seen = margin_cost * weights / regularization, weights > 0
        features, labels = features * seen[:, None], labels * seen[:, None]
        gram, start = features @ features.T, caps[:, None] * labels

        def project(rows):
            """Projects onto the feasible set: C_i labels - rows is on the simplex of size C_i."""
            # Padding has C_i = 0, for which there is no simplex.
            size = jnp.where(caps > 0, caps, 1)[:, None]
            # In float64 wherever it is enabled, which the derivative of Optax's projection expects.
            wide = ((start - rows) / size).astype(jnp.result_type(float))
            beta = caps[:, None] * jax.vmap(projection)(wide).astype(rows.dtype)
            rows = start - beta
            # Rows sum to zero; the entry at the label is set from the others, which are small, so that it
            # does not carry the rounding error of C_i.
            return rows - labels * jnp.sum(rows, axis=1, keepdims=True)

        # The dual: minimize <alpha, G alpha> / 2 - <alpha, labels> over feasible alpha, with G = X X^T. The
        # head is W = X^T alpha.
        trace = jnp.trace(gram)
        # Without examples every penalty gives a head of zeros, but a penalty of zero would give 0 / 0.
        penalty = jnp.where(trace > 0, _PENALTY * trace / jnp.maximum(jnp.sum(seen), 1), 1)
        eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
        inverse = solve_definite(gram + penalty * eye, eye)
        constant, factor = inverse @ labels, penalty * inverse

        def step(state, _):
            # ADMM with relaxation: minimize without constraints, project, and accumulate the residual.
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


def _alike(*arrays: Array | float) -> list[Array]:
    """Casts arrays to the widest of their floating dtypes, float32 at least: bfloat16 solves no system."""
    dtype = trees.float_dtype(arrays)
    return [jnp.asarray(array, dtype) for array in arrays]


def _check_shapes(features: Array, labels: Array, weights: Array) -> None:
    """Checks that features are [B, D], labels [B, N] and weights [B]."""
    chex.assert_rank([features, labels, weights], [2, 2, 1])
    chex.assert_equal_shape_prefix([features, labels, weights], 1)


# ADMM's penalty relative to the mean eigenvalue of the Gram matrix, and its over-relaxation. Measured:
# penalties of 0.1 and 1 need more iterations.
_PENALTY, _RELAXATION = 0.3, 1.6


def _warn_of_gap(
    features: Array, labels: Array, caps: Array, beta: Array, head: Array, tolerance: float
) -> None:
    """Warns of a head whose relative error may exceed a tolerance, if the numbers are known."""
    if any(isinstance(array, Tracer) for array in (features, labels, caps, beta)):
        return
    scores = features @ head
    margins = scores - jnp.sum(scores * labels, axis=1, keepdims=True) + 1 - labels
    costs = jnp.sum(caps * jnp.max(margins, axis=1)) - jnp.sum(beta * (1 - labels))
    # The primal is strongly convex, so half the squared error of the head is at most the duality gap,
    # square + costs. A gap below the rounding error of its terms counts as zero.
    square, epsilon = jnp.sum(jnp.square(head)), jnp.finfo(head.dtype).eps
    rounding = 8 * len(head) ** 0.5 * epsilon * jnp.sum(caps)
    error = float(jnp.sqrt(2 * jnp.maximum(square + costs - rounding, 0) / square))
    if error > tolerance:
        warnings.warn(
            f"svm may be off by {error:.0%} of the head's norm, and {tolerance:.0%} is allowed; use more "
            "steps than it has, such as svm(5000), a larger regularization, or a smaller margin_cost.",
            RuntimeWarning,
            stacklevel=2,
        )


def _with_one(features: Array) -> Array:
    """Appends a feature of ones, whose weight is the intercept."""
    return jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)
