"""Reasons: influences against examples really left out, attributions against their axioms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import explain, models
from metajax.toys import toy_episode, toy_model

KEY = jax.random.key(3)


def of_class(targets):
    return lambda outputs: jax.nn.log_softmax(outputs)[jnp.arange(len(targets)), targets]


LEARNERS = {
    "protonet": lambda: metajax.protonet(toy_model(None), ways=3),
    "maml": lambda: metajax.maml(toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1), steps=2),
}


@pytest.fixture(scope="module")
def task():
    return toy_episode(jax.random.key(0), ways=3, shots=2, queries=2)


@pytest.mark.parametrize("name", LEARNERS)
def test_leaving_one_out_is_adapting_to_the_others(name, task):
    learner, score = LEARNERS[name](), of_class(task.query.targets)
    meta = learner.init(KEY, task.support.inputs)
    found = explain.leave_one_out(learner, meta, KEY, task.support, task.query.inputs, score)

    def scores(rows):
        batch = jax.tree.map(lambda leaf: leaf[np.array(rows)], task.support)
        fast = learner.adapt(meta, learner.start(meta, KEY, batch), KEY, batch)
        return score(learner.predict(meta, fast, task.query.inputs))

    every = list(range(6))
    for left_out in every:
        expected = scores(every) - scores([i for i in every if i != left_out])
        np.testing.assert_allclose(found[:, left_out], expected, atol=1e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_derivative_by_weights_is_that_of_finite_differences(name, task):
    with jax.enable_x64(True):
        task = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, task
        )
        learner, score = LEARNERS[name](), of_class(task.query.targets)
        meta = learner.init(KEY, task.support.inputs)
        found = explain.weight_influence(learner, meta, KEY, task.support, task.query.inputs, score)

        def scores(weights):
            batch = task.support._replace(weights=weights)
            fast = learner.adapt(meta, learner.start(meta, KEY, batch), KEY, batch)
            return score(learner.predict(meta, fast, task.query.inputs))

        for i in range(6):
            step = jnp.zeros(6).at[i].set(1e-5)
            expected = (scores(jnp.ones(6) + step) - scores(jnp.ones(6) - step)) / 2e-5
            np.testing.assert_allclose(found[:, i], expected, atol=1e-7)


def test_a_planted_wrong_label_is_found_by_the_other_examples():
    # Twenty tasks of five shots, each with one wrong label; the clouds overlap a little.
    plain = models.from_functions(lambda key, x: jnp.zeros(1), lambda params, x: x + 0 * params)
    learner, labels = metajax.protonet(plain, ways=3), np.repeat(np.arange(3), 5)
    meta = learner.init(KEY, jnp.zeros((15, 4)))

    @jax.jit
    def suspected(key, planted):
        inputs = 2.0 * jnp.eye(3, 4)[labels] + 0.5 * jax.random.normal(key, (15, 4))
        given = jnp.asarray(labels).at[planted].add(1) % 3
        support = metajax.Batch(inputs, given)
        outputs = explain.left_out_outputs(learner, meta, KEY, support)
        return jax.nn.log_softmax(outputs)[jnp.arange(15), given].argmin()

    planted = np.arange(20) % 15
    found = [int(suspected(jax.random.key(i), p)) for i, p in enumerate(planted)]
    assert np.mean(found == planted) >= 0.8


def test_short_steps_next_to_the_baseline_find_what_normalized_inputs_do_there():
    weights = jnp.array([3.0, 1.0, -2.0])

    def score(x):  # of any scale but the smallest, as after a norm of single inputs
        return weights @ x / jnp.sqrt(jnp.mean(x**2) + 1e-5)

    x = jnp.array([1.0, 2.0, -1.0])
    total = score(x) - score(jnp.zeros(3))
    even, short = (
        explain.integrated_gradients(score, x, jnp.zeros(3), steps=64, power=p) for p in (1.0, 4.0)
    )
    assert abs(even.sum() / total - 1) > 0.1
    np.testing.assert_allclose(short.sum(), total, rtol=0.01)


def test_integrated_gradients_are_complete():
    weights = jax.random.normal(KEY, (2, 5, 5, 1))

    def score(image):
        return jnp.tanh(jnp.vdot(weights[0], image)) + jax.nn.relu(jnp.vdot(weights[1], image))

    image = jax.random.normal(jax.random.key(4), (5, 5, 1))
    found = explain.integrated_gradients(score, image, jnp.zeros_like(image))
    difference = score(image) - score(jnp.zeros_like(image))
    assert abs(found.sum() - difference) < 0.01 * abs(difference)


def test_occlusion_is_the_mean_fall_over_the_patches_that_cover_a_pixel():
    image, cover = jax.random.normal(KEY, (5, 4, 2)), jnp.ones((5, 4, 2))
    weights = jax.random.normal(jax.random.key(5), image.shape)

    def score(image):
        return jnp.vdot(weights, image) ** 2

    found = explain.occlusion(score, image, cover, patch=2, stride=2)
    expected, times = np.zeros((5, 4)), np.zeros((5, 4))
    for top in (0, 2):
        for left in (0, 2):
            covered = image.at[top : top + 2, left : left + 2].set(1.0)
            expected[top : top + 2, left : left + 2] += score(image) - score(covered)
            times[top : top + 2, left : left + 2] += 1
    np.testing.assert_allclose(found, expected / np.maximum(times, 1), rtol=1e-4)
    assert not found[4].any()  # the last row, which no patch covers


def test_the_right_order_of_pixels_scores_better_than_any_other():
    image = jax.random.permutation(KEY, jnp.arange(16.0)).reshape(4, 4, 1)
    blank = jnp.zeros_like(image)
    right = explain.insertion_deletion(jnp.sum, image, blank, image[..., 0], steps=16)
    for seed in range(5):
        other = jax.random.normal(jax.random.key(seed), (4, 4))
        insertion, deletion = explain.insertion_deletion(jnp.sum, image, blank, other, steps=16)
        assert right[0] > insertion and right[1] < deletion


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: explain.integrated_gradients(jnp.sum, x, x, steps=0), "steps is 0"),
        (lambda x: explain.integrated_gradients(jnp.sum, x, x, power=0.5), "power is 0.5"),
        (lambda x: explain.occlusion(jnp.sum, x, x, patch=9), "patch is 9; use 1 to 4"),
        (lambda x: explain.occlusion(jnp.sum, x, x, patch=1, stride=0), "stride is 0"),
        (lambda x: explain.insertion_deletion(jnp.sum, x, x, x[..., 0], steps=0), "steps is 0"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((4, 5, 1)))
