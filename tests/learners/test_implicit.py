"""Implicit MAML: minima and implicit gradients, against closed forms and unrolled gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import relative_error
from helpers.toys import classification_episode, linear_model, point_model
from metajax.inner import conjugate_gradient, hessian_free, identity_solver, neumann
from metajax.learners.gradient.implicit import imaml
from metajax.types import Batch, Episode

CONVERGED = {"rule": optax.sgd(0.3), "steps": 300, "solver": conjugate_gradient(40)}


def half_square(scale):
    return lambda outputs, batch: 0.5 * scale * jnp.sum((outputs - batch.targets) ** 2)


def setting(dtype=jnp.float64, **options):
    learner = imaml(linear_model(5, 3), metajax.cross_entropy, **options)
    episode = classification_episode(jax.random.key(0), dtype=dtype)
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    objective = metajax.query_objective(learner, metajax.cross_entropy)

    def loss(meta):
        return objective(meta, jax.random.key(2), episode)[0]

    return learner, episode, meta, loss


def adapted(learner, meta, episode, times=1):
    fast = learner.start(meta, jax.random.key(2))
    for _ in range(times):
        fast = learner.adapt(meta, fast, jax.random.key(3), episode.support)
    return fast


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def distance(a, b):
    a, b = flat(a), flat(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("rule", [optax.sgd(0.4), hessian_free()], ids=["descent", "newton"])
def test_implicit_gradients_of_a_quadratic_in_closed_form(float64, rule):
    # x = (a c + s t) / (a + s): dx/dt = s / (a + s), dx/ds = (t - x) / (a + s) and ds/dlog s = s.
    a, b, s = 0.7, 1.3, 0.9
    start, center, query = (jnp.array(v) for v in ([0.4, -2.0], [1.5, 0.3], [-0.6, 0.9]))
    learner = imaml(
        point_model(2), half_square(a), rule=rule, steps=60, regularization=metajax.learned(s)
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))._replace(params=start)
    episode = Episode(*(Batch(jnp.zeros((1, 1)), target[None]) for target in (center, query)))
    objective = metajax.query_objective(learner, half_square(b))
    grads, _ = jax.jit(jax.grad(objective, has_aux=True))(meta, jax.random.key(0), episode)
    minimum = (a * center + s * start) / (a + s)
    slope = b * (minimum - query)
    np.testing.assert_allclose(
        adapted(learner, meta, episode).params, minimum, rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(grads.params, s / (a + s) * slope, rtol=1e-12)
    np.testing.assert_allclose(grads.strength, slope @ (start - minimum) * s / (a + s), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        CONVERGED | {"rule": hessian_free(10), "steps": 8},
        CONVERGED
        | {
            "solver": neumann(90, learning_rate=0.6),
            "regularization": metajax.learned(0.7),
            "adapts": metajax.trees.under("head"),
        },
    ],
    ids=["newton", "descent and series on the head, regularization learned"],
)
def test_meta_gradient_against_finite_differences(float64, options):
    _, _, meta, loss = setting(**options)
    assert relative_error(loss, meta) < 1e-8


def proximal_loss(episode, strength):
    """Makes the inner objective of the linear model, written out: (params, start) -> scalar."""

    def proximal(params, start):
        outputs = linear_model(5, 3).apply(params, episode.support.inputs)
        differences = jax.tree.map(jnp.subtract, params, start)
        pull = 0.5 * strength * optax.tree.norm(differences, squared=True)
        return metajax.cross_entropy(outputs, episode.support) + pull

    return proximal


def unrolled_gradients(counts, *, rate):
    """Computes gradients through gradient descent on the proximal problem, for each number of steps."""
    _, episode, meta, _ = setting(rule=optax.sgd(rate))
    proximal = proximal_loss(episode, 2.0)

    def outer(start):
        def step(params, _):
            grads = jax.grad(proximal)(params, start)
            params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
            outputs = linear_model(5, 3).apply(params, episode.query.inputs)
            return params, metajax.cross_entropy(outputs, episode.query)

        _, losses = jax.lax.scan(step, start, length=max(counts))
        return losses[jnp.array(counts) - 1]

    gradients = jax.jit(jax.jacrev(outer))(meta.params)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], gradients) for i in range(len(counts))]


def slowest_contraction(rate):
    """Computes the slowest contraction of gradient descent on the proximal problem, at its minimum."""
    learner, episode, meta, _ = setting(rule=optax.sgd(rate), steps=300)
    minimum = jax.jit(lambda meta: adapted(learner, meta, episode).params)(meta)
    minimum, unravel = jax.flatten_util.ravel_pytree(minimum)
    proximal = proximal_loss(episode, 2.0)
    hessian = jax.jit(jax.hessian(lambda vector: proximal(unravel(vector), meta.params)))(minimum)
    return np.max(np.abs(1 - rate * np.linalg.eigvalsh(hessian)))


def implicit_gradient_at(params, solver):
    """Computes the implicit gradient at given adapted parameters, with no inner steps."""
    learner, episode, meta, _ = setting(rule=optax.sgd(0.2), steps=0, solver=solver)

    def loss(meta):
        fast = learner.start(meta, jax.random.key(2))._replace(params=params)
        fast = learner.adapt(meta, fast, jax.random.key(3), episode.support)
        outputs = learner.predict(meta, fast, episode.query.inputs)
        return metajax.cross_entropy(outputs, episode.query)

    return jax.jit(jax.grad(loss))(meta).params


def descended(steps):
    learner, episode, meta, _ = setting(rule=optax.sgd(0.2), steps=steps)
    return jax.jit(lambda meta: adapted(learner, meta, episode).params)(meta)


def test_implicit_gradients_tend_to_unrolled_ones_with_steps(float64):
    counts = (20, 40)
    errors = [
        distance(implicit_gradient_at(descended(steps), conjugate_gradient(40)), unrolled)
        for steps, unrolled in zip(counts, unrolled_gradients(counts, rate=0.2), strict=True)
    ]
    # Both tend to the limit as fast as the parameters to the minimum, in the slowest direction at last.
    ratio = errors[1] / errors[0] / slowest_contraction(0.2) ** 20
    assert 0.3 < ratio < 1.5
    assert errors[1] < 1e-4


def test_implicit_gradients_tend_to_unrolled_ones_with_the_solver(float64):
    (exact,), minimum = unrolled_gradients((200,), rate=0.2), descended(200)

    def error(solver):
        return distance(implicit_gradient_at(minimum, solver), exact)

    first_order, *gradients = map(
        error, [identity_solver(), *(conjugate_gradient(steps) for steps in (1, 3, 8))]
    )
    series = [error(neumann(steps)) for steps in (3, 8)]
    assert 0.1 < gradients[0] < first_order
    for errors in (gradients, series):
        assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(errors))
    assert gradients[-1] < 1e-4


def test_identity_is_first_order(float64):
    learner, episode, meta, _ = setting(rule=optax.sgd(0.2), steps=3)
    params = jax.jit(lambda meta: adapted(learner, meta, episode).params)(meta)

    @jax.jit
    @jax.grad
    def query_gradient(params):
        outputs = linear_model(5, 3).apply(params, episode.query.inputs)
        return metajax.cross_entropy(outputs, episode.query)

    implicit = implicit_gradient_at(params, identity_solver())
    assert_trees_close(implicit, query_gradient(params), rtol=1e-12)


def test_vmapped_and_sharded_equal_a_loop_over_tasks(float64):
    options = {"rule": hessian_free(3), "steps": 3, "regularization": metajax.learned(2.0)}
    learner, _, meta, _ = setting(**options)
    keys = jax.random.split(jax.random.key(5), 4)
    episodes = jax.vmap(lambda key: classification_episode(key, dtype=jnp.float64))(keys)
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    expected = jax.jit(metajax.backprop(objective, tasks_at_once=1))(meta, keys, episodes)
    at_once = metajax.backprop(objective)
    spread = metajax.over_tasks(metajax.task_mesh(jax.devices()[:2]), at_once)
    for meta_grad in (at_once, spread):
        assert_trees_close(jax.jit(meta_grad)(meta, keys, episodes), expected, rtol=1e-9)


def test_learned_rates_of_the_rule_get_no_gradient(float64):
    _, _, meta, loss = setting(rule=metajax.learned_rates(0.3), steps=4)
    grads = jax.jit(jax.grad(loss))(meta)
    assert not np.any(flat(grads.rule)) and np.all(flat(grads.params) != 0)


def test_adapting_again_continues_and_is_pulled_to_the_same_start(float64):
    three, six = (setting(rule=optax.adam(0.1), steps=steps) for steps in (3, 6))
    twice = adapted(*three[:1], three[2], three[1], times=2)
    once = adapted(*six[:1], six[2], six[1])
    assert_trees_close(twice.params, once.params, rtol=1e-12)
    assert_trees_close(twice.opt_state, once.opt_state, rtol=1e-12)
    assert twice.step == once.step == 6


def test_steps_are_those_of_the_rule_on_loss_and_pull(float64):
    learner, episode, meta, _ = setting(rule=optax.sgd(0.2), steps=2, regularization=3.0)
    model, params = linear_model(5, 3), meta.params
    for _ in range(2):
        grads = jax.grad(
            lambda p: metajax.cross_entropy(model.apply(p, episode.support.inputs), episode.support)
        )(params)
        params = jax.tree.map(
            lambda p, g, start: p - 0.2 * (g + 3.0 * (p - start)), params, grads, meta.params
        )
    assert_trees_close(adapted(learner, meta, episode).params, params, rtol=1e-12)


def test_zero_steps_predict_as_meta_learned(float64):
    learner, episode, meta, loss = setting(rule=optax.sgd(0.3), steps=0)
    jax.tree.map(np.testing.assert_array_equal, adapted(learner, meta, episode).params, meta.params)
    assert np.all(np.isfinite(flat(jax.grad(loss)(meta))))


def test_hessian_free_gets_nearer_to_the_minimum_than_descent(float64):
    def gradient_norm(rule):
        learner, episode, meta, _ = setting(rule=rule, steps=4)
        found = jax.jit(lambda meta: adapted(learner, meta, episode).params)(meta)
        return optax.tree.norm(jax.grad(proximal_loss(episode, 2.0))(found, meta.params))

    descent = min(gradient_norm(optax.sgd(rate)) for rate in (0.3, 0.5))
    assert gradient_norm(hessian_free(5)) < 0.01 * descent


def test_line_searches_of_optax_are_rules(float64):
    learner, episode, meta, _ = setting(rule=optax.lbfgs(), steps=25)
    found = jax.jit(lambda meta: adapted(learner, meta, episode).params)(meta)
    assert_trees_close(found, descended(200), rtol=1e-7)


def test_memory_does_not_grow_with_inner_steps():
    def temporary_bytes(steps):
        _, _, meta, loss = setting(jnp.float32, rule=optax.sgd(0.3), steps=steps)
        return jax.jit(jax.grad(loss)).lower(meta).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(100) < 1.05 * temporary_bytes(5)


def test_a_linear_system_that_is_not_solved_is_warned_of():
    _, _, meta, loss = setting(jnp.float32, rule=optax.sgd(0.3), regularization=0.1, tolerance=0.1)
    with pytest.warns(RuntimeWarning, match=r"and 0\.1 is allowed; use more steps of the linear"):
        jax.jit(jax.grad(loss))(meta)
        jax.effects_barrier()
    _, _, meta, loss = setting(jnp.float32, rule=optax.sgd(0.3), regularization=5.0, tolerance=0.1)
    jax.jit(jax.grad(loss))(meta)
    jax.effects_barrier()


def test_invalid_options_are_refused():
    for strength in (0, float("inf")):
        with pytest.raises(
            ValueError, match=f"regularization is {strength}; use a finite number above"
        ):
            setting(rule=optax.sgd(0.3), regularization=strength)
    with pytest.raises(ValueError, match="steps is -1"):
        setting(rule=optax.sgd(0.3), steps=-1)
    with pytest.raises(TypeError, match=r"0\.4 is no optax transformation"):
        setting(rule=0.4)
