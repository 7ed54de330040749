"""Baselines against scikit-learn and closed forms; padding, and what a test target must not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import baselines
from metajax.types import Batch

WAYS = 3


def task(kind, *, examples=14, queries=9, features=5, seed=0):
    """Draws support inputs and targets, and queries, of class labels or values."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, features)).astype(np.float32)
    asked = rng.normal(size=(queries, features)).astype(np.float32)
    if kind == "values":
        return inputs, rng.normal(size=(examples, 1)).astype(np.float32), asked
    ways = 2 if kind == "binary" else WAYS
    return inputs, (np.arange(examples) % ways).astype(np.int32), asked


def made(name, kind):
    """Makes a baseline by name, for a kind of targets."""
    ways = {"binary": 2, "classes": WAYS, "values": None}[kind]
    return {
        "constant": lambda: baselines.constant(ways=ways),
        "euclidean": lambda: baselines.nearest_neighbors(4, ways=ways),
        "cosine": lambda: baselines.nearest_neighbors(4, similarity="cosine", ways=ways),
        "tanimoto": lambda: baselines.nearest_neighbors(4, similarity="tanimoto", ways=ways),
        "linear": lambda: (
            baselines.ridge_regression()
            if ways is None
            else baselines.logistic_regression(ways=ways)
        ),
    }[name]()


def probabilities(logits):
    return np.asarray(jax.nn.softmax(logits, axis=1))


@pytest.mark.parametrize("kind", ["binary", "classes"])
def test_logistic_regression_equals_scikit_learn(kind):
    linear_model = pytest.importorskip("sklearn.linear_model")
    multiclass = pytest.importorskip("sklearn.multiclass")
    inputs, labels, queries = task(kind)
    theirs = linear_model.LogisticRegression(solver="liblinear", intercept_scaling=10, tol=1e-8)
    theirs = multiclass.OneVsRestClassifier(theirs).fit(inputs, labels)
    expected = theirs.predict_proba(queries)
    found = made("linear", kind)(Batch(inputs, labels), queries)
    np.testing.assert_allclose(probabilities(found), expected, atol=2e-4)


def test_logistic_regression_of_wide_rows_has_converged():
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, labels, queries = task("binary", examples=10, features=300)
    theirs = linear_model.LogisticRegression(solver="liblinear", intercept_scaling=10, tol=1e-8)
    expected = theirs.fit(inputs, labels).decision_function(queries)
    found = made("linear", "binary")(Batch(inputs, labels), queries)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_ridge_regression_equals_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    for features in (5, 40):  # Fewer and more than examples.
        inputs, values, queries = task("values", features=features)
        expected = linear_model.Ridge(alpha=1.0).fit(inputs, values).predict(queries)
        found = made("linear", "values")(Batch(inputs, values), queries)
        np.testing.assert_allclose(found[:, 0], expected.reshape(-1), atol=1e-4)


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["binary", "classes", "values"])
def test_neighbors_equal_scikit_learn(similarity, kind):
    neighbors = pytest.importorskip("sklearn.neighbors")
    inputs, targets, queries = task(kind)
    found = made(similarity, kind)(Batch(inputs, targets), queries)
    if kind == "values":
        theirs = neighbors.KNeighborsRegressor(4, metric=similarity).fit(inputs, targets)
        np.testing.assert_allclose(found, theirs.predict(queries), atol=1e-5)
        return
    theirs = neighbors.KNeighborsClassifier(4, metric=similarity).fit(inputs, targets)
    np.testing.assert_allclose(probabilities(found), theirs.predict_proba(queries), atol=2e-3)


def test_tanimoto_is_the_sum_of_minima_over_the_sum_of_maxima():
    rng = np.random.default_rng(1)
    rows, queries = (rng.integers(0, 4, (n, 6)).astype(np.uint8) for n in (7, 3))
    found = baselines.SIMILARITIES["tanimoto"](jnp.asarray(queries), jnp.asarray(rows))
    for place, query in enumerate(queries):
        for other, row in enumerate(rows):
            expected = np.minimum(query, row).sum() / np.maximum(query, row).sum()
            np.testing.assert_allclose(found[place, other], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "classes", "values"])
@pytest.mark.parametrize("name", ["constant", "euclidean", "cosine", "tanimoto", "linear"])
def test_padding_changes_nothing_and_tasks_are_vectorized(name, kind):
    baseline, tasks, padded = made(name, kind), [], []
    for seed in range(3):
        inputs, targets, queries = task(kind, seed=seed)
        inputs, queries = np.abs(inputs), np.abs(queries)  # as counts are
        tasks.append((Batch(inputs, targets, np.ones(len(inputs), np.float32)), queries))
        junk = np.full((4, inputs.shape[1]), 0.1, np.float32)
        support = Batch(
            np.concatenate([inputs, junk]),
            np.concatenate([targets, targets[:4]]),
            np.concatenate([np.ones(len(inputs)), np.zeros(4)]).astype(np.float32),
        )
        padded.append((support, queries))
    alone = np.stack([baseline(*each) for each in tasks])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    together = jax.jit(jax.vmap(baseline))(*stacked)
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_a_small_support_set_has_as_many_neighbors_as_rows():
    support = Batch(jnp.zeros((3, 2)), jnp.array([[1.0], [2.0], [9.0]]), jnp.array([1.0, 1.0, 0.0]))
    found = baselines.nearest_neighbors(4, ways=None)(support, jnp.ones((1, 2)))
    assert found.tolist() == [[1.5]]


def test_a_constant_is_the_share_of_each_class():
    support = Batch(jnp.zeros((4, 1)), jnp.array([0, 0, 0, 1]))
    found = baselines.constant(ways=2)(support, jnp.zeros((2, 1)))
    np.testing.assert_allclose(probabilities(found), [[0.75, 0.25]] * 2, atol=1e-3)


def test_item_means_know_training_rows_alone():
    items, targets = np.array([0, 0, 1, -1]), np.array([5.0, 3.0, 1.0, 3.0])
    means = baselines.item_means(items, targets, num_items=3, shrinkage=2.0)
    # (8 + 2 * 3) / 4, (1 + 2 * 3) / 3, and the overall mean of 3 where no row was seen.
    np.testing.assert_allclose(means.values, [3.5, 7 / 3, 3.0], rtol=1e-6)
    assert means.overall == 3

    def predict(query_targets):
        del query_targets  # there is no way in
        support = jnp.array([0, 1]), jnp.array([4.5, 7 / 3]), jnp.array([1.0, 1.0])
        return baselines.item_offset(means, *support, jnp.array([1, 2, -1]))

    # The user is 1 above its items in one of two rows: an offset of 1 / (2 + 1).
    np.testing.assert_allclose(predict([0.0]), [7 / 3 + 1 / 3, 10 / 3, 10 / 3], rtol=1e-6)
    padded = jnp.array([0, 1, 0]), jnp.array([4.5, 7 / 3, np.nan]), jnp.array([1.0, 1.0, 0.0])
    found = baselines.item_offset(means, *padded, jnp.array([1, 2, -1]))
    np.testing.assert_allclose(found, predict([1.0]), rtol=1e-6)


def test_a_forest_leaves_classes_that_it_has_not_seen_a_share_of_zero():
    pytest.importorskip("sklearn")
    x = np.arange(10.0)[:, None]
    shares = probabilities(baselines.random_forest(x, np.repeat([0, 2], 5), x, ways=3, trees=20))
    assert (shares.argmax(1) == np.repeat([0, 2], 5)).all() and shares[:, 1].max() < 1e-3
    values = baselines.random_forest(x, x, x, ways=None, trees=50)
    assert values.shape == (10, 1) and np.abs(values - x).mean() < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: baselines.nearest_neighbors(0, ways=2), "k is 0; use 1 or more"),
        (lambda: baselines.nearest_neighbors(similarity="l1", ways=2), "use euclidean, cosine"),
        (lambda: baselines.logistic_regression(ways=1), "ways is 1; use 2"),
        (lambda: baselines.ridge_regression(regularization=0.0), "use a number above 0"),
        (lambda: baselines.item_means(np.array([]), np.array([]), num_items=1), "give one or more"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
