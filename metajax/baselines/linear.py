"""Linear models that are fitted to the support set of one task."""

import chex
import jax
import jax.numpy as jnp

from metajax import trees
from metajax.baselines.simple import Baseline, coded, weights_of
from metajax.learners.metric import heads
from metajax.types import Array, Batch

# The constant feature of the intercept. The penalty of its weight is a hundredth of that of a weight of a
# feature of ones, so that the shares of the classes are hardly pulled to one half.
_INTERCEPT = 10.0


def logistic_regression(*, ways: int, regularization: float = 1.0, steps: int = 12) -> Baseline:
    """Makes the baseline of logistic regression on the support set, each class against all others.

    The weights W and intercepts b of a class minimize sum_i w_i log(1 + exp(-s_i (x_i W + b))) +
    regularization / 2 (|W|^2 + b^2 / 100), with signs s_i of +1 for its rows and -1 for others, by Newton's
    method. The strength is fixed and not chosen by the data, since a few rows cannot choose it: 1, scikit-
    learn's default, for inputs of about unit scale.

    Args:
      ways: Number of classes N, 2 or more.
      regularization: Weight of the penalty, a number above 0.
      steps: Number of Newton steps.

    Returns:
      `(support, queries) -> logits [Q, N]`, the logarithms of the N probabilities; softmax normalizes them.

    Raises:
      ValueError: If `ways` is below 2 or `regularization` is not above 0.

    Example:
      >>> support = metajax.Batch(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]))
      >>> logits = logistic_regression(ways=2)(support, jnp.array([[-3.0], [3.0]]))
      >>> logits.argmax(axis=1).tolist()
      [0, 1]
    """
    if ways < 2:
        raise ValueError(f"ways is {ways}; use 2 or more.")
    _check_regularization(regularization)
    solve = heads.logistic(steps)

    def predict(support: Batch, queries: Array) -> Array:
        rows, queries = (_with_constant(x) for x in (support.inputs, queries))
        head = solve(rows, coded(support, ways), weights_of(support), regularization)
        return jax.nn.log_sigmoid(queries @ head)

    return predict


def ridge_regression(*, regularization: float = 1.0) -> Baseline:
    """Makes the baseline of ridge regression on the support set, with an intercept that is not penalized.

    The weights W minimize sum_i w_i |(x_i - m) W - (y_i - n)|^2 + regularization |W|^2, with the weighted
    means m and n of inputs and values. The strength is fixed, as in `logistic_regression`.

    Args:
      regularization: Weight of the penalty, a number above 0.

    Returns:
      `(support, queries) -> values [Q, Y]`.

    Raises:
      ValueError: If `regularization` is not above 0.

    Example:
      >>> support = metajax.Batch(jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [4.0]]))
      >>> ridge_regression(regularization=2.0)(support, jnp.array([[1.0]])).tolist()  # 2 + 4 / (2 + 2)
      [[3.0]]
    """
    _check_regularization(regularization)

    def predict(support: Batch, queries: Array) -> Array:
        targets, weights = coded(support, None), weights_of(support)
        chex.assert_rank([support.inputs, targets, queries], 2)
        rows, queries = (jnp.asarray(x, trees.float_dtype(x)) for x in (support.inputs, queries))
        shares = weights / jnp.maximum(jnp.sum(weights), 1e-9)
        middle, level = shares @ rows, shares @ targets
        head = heads.ridge(rows - middle, targets - level, weights, regularization)
        return (queries - middle) @ head + level

    return predict


def _with_constant(x: Array) -> Array:
    """Appends the feature of the intercept."""
    chex.assert_rank(x, 2)
    x = jnp.asarray(x, trees.float_dtype(x))
    return jnp.concatenate([x, jnp.full_like(x[:, :1], _INTERCEPT)], axis=1)


def _check_regularization(regularization: float) -> None:
    """Raises ValueError for a regularization that is not above zero."""
    if not regularization > 0:
        raise ValueError(f"regularization is {regularization}; use a number above 0.")
