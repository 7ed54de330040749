import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime.best import none_yet


def offered(scores, *, size, higher_is_better=True):
    best = none_yet({"x": jnp.zeros(2)}, size)
    for step, score in enumerate(scores):
        meta = {"x": jnp.full(2, float(step))}
        best = best.offer(meta, score, step, higher_is_better=higher_is_better)
    return best


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_best_are_kept_in_order_and_of_equals_the_first(higher_is_better):
    sign = 1 if higher_is_better else -1
    scores = [sign * score for score in (0.3, 0.5, 0.1, 0.5, 0.4)]
    best = offered(scores, size=3, higher_is_better=higher_is_better)
    assert best.steps == (1, 3, 4)
    assert best.scores == tuple(sign * score for score in (0.5, 0.5, 0.4))
    np.testing.assert_array_equal(best.metas["x"][:, 0], [1, 3, 4])
    np.testing.assert_array_equal(best.first["x"], [1, 1])


def test_nan_is_never_among_the_best():
    assert offered([float("nan")], size=2).scores == ()
    assert offered([0.2, float("nan")], size=2).steps == (0,)


def test_only_what_was_found_is_tested():
    best = offered([0.2, 0.6], size=5)
    assert best.metas["x"].shape == (5, 2) and best.found["x"].shape == (2, 2)
    np.testing.assert_array_equal(best.found["x"][:, 0], [1, 0])
    assert none_yet({"x": jnp.zeros(2)}, 4).found["x"].shape == (1, 2)


def test_one_place_holds_the_best_alone():
    best = offered([0.2, 0.6, 0.4], size=1)
    assert best.steps == (1,)
    np.testing.assert_array_equal(best.metas["x"], [[1, 1]])
