"""Solved linear heads, against the equations they solve."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from helpers.differences import noisy, relative_error
from helpers.toys import classification_episode, normed_model
from metajax.inner.scalars import learned
from metajax.learners.metric.heads import linear_head, logistic, ridge, svm

KEY = jax.random.key(0)
TARGETS = jnp.array([0, 1, 2, 0, 1, 2, 1])
WEIGHTS = jnp.array([1, 1, 2, 1, 0.5, 1, 0])
SOLVERS = {"ridge": ridge, "logistic": logistic(5), "svm": svm(10)}


def problem(features):
    x = jax.random.normal(KEY, (len(TARGETS), features), jnp.float64)
    return x, jax.nn.one_hot(TARGETS, 3, dtype=x.dtype), WEIGHTS.astype(x.dtype)


@pytest.mark.parametrize("features", [4, 12])
def test_ridge_solves_the_normal_equations(float64, features):
    x, y, weights = problem(features)
    weighted = np.diag(weights) @ x
    expected = np.linalg.solve(weighted.T @ x + 0.3 * np.eye(features), weighted.T @ y)
    np.testing.assert_allclose(ridge(x, y, weights, 0.3), expected, rtol=1e-9)


def test_logistic_arrives_at_the_minimum(float64):
    x, y, weights = problem(4)
    head = logistic(12)(x, y, weights, 0.3)

    def loss(head):
        losses = jnp.logaddexp(0, -(2 * y - 1) * (x @ head))
        return jnp.sum(weights[:, None] * losses) + 0.15 * jnp.sum(head**2)

    np.testing.assert_allclose(jax.grad(loss)(head), 0, atol=1e-9)


def test_svm_arrives_at_the_minimum(float64):
    x, y, weights = problem(4)
    head = svm(5000, margin_cost=1.0)(x, y, weights, 0.5)

    def primal(head):
        scores = x @ head
        margins = scores - jnp.sum(scores * y, axis=1, keepdims=True) + 1 - y
        return 0.25 * jnp.sum(head**2) + jnp.sum(weights * jnp.max(margins, axis=1))

    least = primal(head)
    for key in jax.random.split(KEY, 20):
        assert primal(head + 1e-3 * jax.random.normal(key, head.shape)) > least


@pytest.mark.parametrize("solver", [ridge, logistic(2)], ids=["ridge", "logistic"])
def test_a_cpu_factors_one_matrix_at_a_time(float64, solver):
    """Checks that CPUs get one system at a time: a batch may deadlock in jaxlib before 0.11.2."""
    x, y, weights = problem(4)
    tasks = jax.vmap(jax.grad(lambda x: jnp.sum(solver(x, y, weights, 0.3) ** 2)))
    lowered = jax.jit(jax.vmap(tasks)).lower(jnp.stack([x] * 6).reshape(2, 3, *x.shape)).as_text()
    calls = [line for line in lowered.splitlines() if "potrf" in line or "trsm" in line]
    assert calls
    for line in calls:
        assert not re.search(r"tensor<\d+x\d+x\d", line), line


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_gradients_of_encoder_and_regularization(float64, solver):
    learner = linear_head(normed_model(5, None), solver, ways=3, regularization=learned(0.5))
    episode = classification_episode(KEY, dtype=jnp.float64)
    meta = noisy(learner.init(KEY, episode.support.inputs), 0.1)
    objective = metajax.query_objective(learner, metajax.cross_entropy)

    def loss(meta):
        return objective(meta, KEY, episode)[0]

    assert relative_error(loss, meta) < 1e-6
    assert abs(jax.jit(jax.grad(loss))(meta).log_strength) > 1e-5


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_padding_and_pieces_change_nothing(float64, solver):
    learner = linear_head(normed_model(5, None), solver, ways=3, regularization=0.5, scale=2.0)
    episode = classification_episode(KEY, dtype=jnp.float64)
    support, queries = episode.support, episode.query.inputs
    meta = learner.init(KEY, support.inputs)
    assert meta.log_strength == meta.log_scale == (), "plain numbers are fixed"
    start = learner.start(meta, KEY, support)
    whole = learner.predict(meta, learner.adapt(meta, start, KEY, support), queries)
    padded = metajax.Batch(
        jnp.concatenate([support.inputs, 9 + support.inputs]),
        jnp.tile(support.targets, 2),
        jnp.repeat(jnp.array([1.0, 0.0]), 6),
    )
    fast = learner.adapt(meta, start, KEY, padded)
    np.testing.assert_allclose(learner.predict(meta, fast, queries), whole, rtol=1e-9)
    fast = start
    for part in (slice(None, 2), slice(2, None)):
        fast = learner.adapt(meta, fast, KEY, jax.tree.map(lambda leaf, p=part: leaf[p], support))
    np.testing.assert_allclose(learner.predict(meta, fast, queries), whole, rtol=1e-9)


def test_options_out_of_range_are_refused():
    encoder = normed_model(5, None)
    with pytest.raises(ValueError, match="regularization is 0; use a finite number above 0"):
        linear_head(encoder, ridge, ways=3, regularization=0)
    with pytest.raises(ValueError, match="ways is 1; use 2 or more"):
        linear_head(encoder, ridge, ways=1, regularization=1.0)
    for make in (logistic, svm):
        with pytest.raises(ValueError, match="steps is 0; use 1 or more"):
            make(0)


@pytest.fixture(scope="module")
def many_examples():
    """Draws 50 examples of 6 features in 5 classes, for margins that cost 10 times the regularization."""
    keys = jax.random.split(KEY)
    targets = jnp.arange(50) % 5
    x = jax.random.normal(keys[0], (50, 6)) + jax.random.normal(keys[1], (5, 6))[targets]
    x = np.concatenate([x, np.ones((50, 1))], axis=1)
    return np.float64(x), np.eye(5)[targets], np.ones(50)


def svm_error(problem, steps):
    """Computes the error relative to the largest weight, against a solution of many more iterations."""
    heads = [
        jax.jit(svm(n, margin_cost=10.0))(*map(jnp.asarray, problem), 1.0) for n in (steps, 9000)
    ]
    return jnp.abs(heads[0] - heads[1]).max() / jnp.abs(heads[1]).max()


def test_svm_arrives_where_examples_outnumber_features(float64, many_examples):
    assert svm_error(many_examples, 100) < 0.15
    assert svm_error(many_examples, 1000) < 0.02
    assert svm_error(many_examples, 5000) < 1e-6


def test_svm_is_that_of_another_solver(float64, many_examples):
    sklearn_svm = pytest.importorskip("sklearn.svm")
    x, labels, _ = many_examples
    other = sklearn_svm.LinearSVC(
        multi_class="crammer_singer", C=10.0, fit_intercept=False, tol=1e-12, max_iter=10**7
    )
    want = other.fit(x, labels.argmax(1)).coef_.T
    got = jax.jit(svm(5000, margin_cost=10.0))(*map(jnp.asarray, many_examples), 1.0)
    # The objective looks at differences of columns, of which the least norm is ours: their mean is zero.
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_svm_without_examples_is_zero_and_has_a_derivative():
    x, labels, weights = jnp.zeros((4, 3)), jnp.eye(4)[:, :2], jnp.zeros(4)
    head, slope = jax.value_and_grad(lambda x: svm(5)(x, labels, weights, 1.0).sum())(x)
    assert head == 0 and np.isfinite(slope).all()


def test_svm_arrives_at_once_where_features_outnumber_examples(float64):
    x, y, weights = problem(12)
    few, many = (svm(steps, margin_cost=1.0)(x, y, weights, 0.5) for steps in (100, 2000))
    np.testing.assert_allclose(few, many, atol=1e-6 * jnp.abs(many).max())


def test_an_eager_svm_warns_of_a_head_that_may_be_off(many_examples):
    x, y, weights = (jnp.asarray(a, jnp.float32) for a in many_examples)
    with pytest.warns(RuntimeWarning, match="of the head's norm, and 10% is allowed; use more"):
        svm(margin_cost=10.0)(x, y, weights, 1.0)
    svm(2000, margin_cost=10.0)(x, y, weights, 1.0)
    svm(margin_cost=10.0, tolerance=9.0)(x, y, weights, 1.0)
