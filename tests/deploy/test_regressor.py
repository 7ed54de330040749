"""A trained learner of numbers as an estimator: equal to adapting by hand, and one line for what is none."""

import jax
import numpy as np
import optax
import pytest

import metajax
from metajax.errors import DataError
from metajax.learners import cnp
from metajax.learners.sequence.neural_process import mean_and_std
from metajax.toys import toy_model

base = pytest.importorskip("sklearn.base")

RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(-5, 5, (10, 1)).astype(np.float32)
NEW = RANDOM.uniform(-5, 5, (7, 1)).astype(np.float32)


def gradient_learner(targets=1):
    learner = metajax.maml(toy_model(targets), metajax.squared_error, rule=optax.sgd(0.1), steps=3)
    return learner, learner.init(jax.random.key(1), X)


@pytest.mark.parametrize("targets", [1, 2])
def test_it_is_the_learner_after_its_inner_steps(targets):
    model = toy_model(targets)
    learner, meta = gradient_learner(targets)
    y = np.sin(X + np.arange(targets)).astype(np.float32)
    params = meta.params
    gradient = jax.jit(jax.grad(lambda p: ((model.apply(p, X) - y) ** 2).mean()))
    for _ in range(3):  # gradient descent by hand
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params))
    few = metajax.FewShotRegressor(learner, meta).fit(X, y)
    np.testing.assert_allclose(few.predict(NEW), model.apply(params, NEW), atol=1e-5)
    flat = metajax.FewShotRegressor(learner, meta)
    if targets == 1:
        np.testing.assert_array_equal(flat.fit(X, y[:, 0]).predict(NEW), few.predict(NEW)[:, 0])


def test_a_neural_process_has_deviations_too():
    learner = cnp(toy_model(None), toy_model(2), num_outputs=1)
    meta = learner.init(jax.random.key(2), X)
    y = np.sin(X[:, 0])
    few = metajax.FewShotRegressor(learner, meta).fit(X, y)
    batch = metajax.Batch(X, y[:, None])
    fast = learner.adapt(
        meta, learner.start(meta, jax.random.key(0), batch), jax.random.key(0), batch
    )
    mean, std = mean_and_std(learner.predict(meta, fast, NEW))
    found_mean, found_std = few.predict(NEW, return_std=True)
    np.testing.assert_allclose(found_mean, mean[:, 0], atol=1e-6)
    np.testing.assert_allclose(found_std, std[:, 0], atol=1e-6)
    assert few.predict(NEW).shape == (7,)


def test_it_keeps_the_interface_of_estimators():
    learner, meta = gradient_learner()
    y = (0.5 * X[:, 0] + 1).astype(np.float32)
    few = base.clone(metajax.FewShotRegressor(learner, meta, seed=3))
    assert set(few.get_params()) == {"learner", "meta", "seed"} and few.seed == 3
    assert few.get_params()["learner"] == learner
    predicted = few.set_params(seed=0).fit(X.tolist(), y.tolist()).predict(X)
    share = 1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2)
    assert few.score(X, y) == pytest.approx(share, abs=1e-6)
    assert few.predict(X[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda few: metajax.FewShotRegressor().fit(X, X), "has no learner; use FewShotRegressor"),
        (lambda few: few.predict(X), "has no examples yet; call fit first"),
        (lambda few: few.fit(X, X[:3]), "there are 10 examples and 3 targets; give one each"),
        (lambda few: few.fit(X[:0], X[:0]), r"X is \[0, 1\] and y \[0, 1\]; use"),
        (lambda few: few.fit(X[:, 0], X[:, 0]), r"X is \[10\] and y"),
        (lambda few: few.fit([["a"]], [1]), "X holds values that are no numbers"),
        (lambda few: few.fit(np.where(X > 0, np.nan, X), X), "X holds nan in row"),
        (lambda few: few.fit(X.repeat(2, 1), X), r"does not read inputs \[10, 2\]"),
        (lambda few: few.fit(X, X.repeat(2, 1)), r"with targets \[10, 2\]"),
        (lambda few: few.fit(X, X).predict(X.repeat(2, 1)), r"the examples were \[M, 1\]"),
        (lambda few: few.fit(X, X).predict(X, return_std=True), "predicts values without"),
    ],
)
def test_what_does_not_serve_is_one_line(call, message):
    with pytest.raises(DataError, match=message) as error:
        call(metajax.FewShotRegressor(*gradient_learner()))
    assert "\n" not in str(error.value)
