"""Optax transformations as inner rules: the arguments that they require, and their derivatives."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import noisy, relative_error
from helpers.toys import classification_episode, linear_model
from metajax.inner.adjoints import ADJOINTS
from metajax.inner.rules.base import Learned, as_rule
from metajax.inner.rules.start_decay import DecayToStart, decay_to_start

KEY = jax.random.key(0)
LOSS = metajax.cross_entropy


def setting(rule, *, steps=2, adjoint="reverse", dtype=jnp.float64, make=metajax.maml):
    options = {} if make is metajax.imaml else {"adjoint": ADJOINTS[adjoint]}
    learner = make(linear_model(5, 3), LOSS, rule=rule, steps=steps, **options)
    episode = classification_episode(KEY, dtype=dtype)
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    return learner, meta, episode


def outer_loss(learner, episode):
    objective = metajax.query_objective(learner, LOSS)
    return lambda meta: objective(meta, KEY, episode)[0]


READ_THE_LOSS = {
    "polyak": optax.polyak_sgd(max_learning_rate=0.5),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
    "momo": optax.contrib.momo(0.1),
}


@pytest.mark.parametrize("adjoint", ["reverse", "mixed"])
@pytest.mark.parametrize("name", READ_THE_LOSS)
def test_rules_that_read_the_loss_are_differentiated_with_it(float64, name, adjoint):
    learner, meta, episode = setting(READ_THE_LOSS[name], adjoint=adjoint)
    transform = optax.with_extra_args_support(READ_THE_LOSS[name])

    def by_hand(meta):
        params, state = meta.params, transform.init(meta.params)
        apply = linear_model(5, 3).apply

        def loss(params, batch=episode.support):
            return LOSS(apply(params, batch.inputs), batch)

        for _ in range(2):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = transform.update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
        return loss(params, episode.query)

    got, want = (
        jax.jit(jax.value_and_grad(f))(meta) for f in (outer_loss(learner, episode), by_hand)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, want)


def test_first_order_takes_the_value_of_the_loss_for_a_constant(float64):
    rule = READ_THE_LOSS["polyak"]
    learner, meta, episode = setting(rule, steps=1, adjoint="first_order")
    grads = jax.jit(jax.grad(outer_loss(learner, episode)))(meta).params
    fast = learner.adapt(meta, learner.start(meta, KEY), KEY, episode.support)

    def at_the_end(params):
        return LOSS(linear_model(5, 3).apply(params, episode.query.inputs), episode.query)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
        grads,
        jax.grad(at_the_end)(fast.params),
    )


SEARCHES = [
    optax.lbfgs(),
    optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(9)),
]


@pytest.mark.parametrize("rule", SEARCHES)
def test_line_searches_adapt(rule):
    learner, meta, episode = setting(rule, steps=5, dtype=jnp.float32)
    fast = jax.jit(learner.adapt)(meta, learner.start(meta, KEY), KEY, episode.support)
    apply = linear_model(5, 3).apply
    before, after = (
        LOSS(apply(params, episode.support.inputs), episode.support)
        for params in (meta.params, fast.params)
    )
    assert after < 0.7 * before


def test_a_search_without_a_derivative_raises():
    learner, meta, episode = setting(optax.lbfgs(), dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"no meta-gradient flows; use it in metajax.imaml"):
        jax.jit(jax.grad(outer_loss(learner, episode)))(meta)


def test_first_order_needs_no_derivative_of_a_search(float64):
    learner, meta, episode = setting(optax.lbfgs(), steps=2, adjoint="first_order")
    grads = jax.jit(jax.grad(outer_loss(learner, episode)))(meta).params
    fast = learner.adapt(meta, learner.start(meta, KEY), KEY, episode.support)

    def at_the_end(params):
        return LOSS(linear_model(5, 3).apply(params, episode.query.inputs), episode.query)

    want = jax.grad(at_the_end)(fast.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), grads, want)


def test_without_its_line_search_lbfgs_has_a_derivative(float64):
    learner, meta, episode = setting(optax.lbfgs(0.1, linesearch=None))
    assert relative_error(outer_loss(learner, episode), meta) < 1e-6


def test_a_rule_that_asks_for_more_is_refused_by_name():
    def update(grads, state, params=None, *, hessian):
        return grads, state

    asking = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(TypeError, match=r"argument: 'hessian'\. Use a rule that needs only value"):
        as_rule(asking)
    with pytest.raises(TypeError, match="obj_fn must be provided"):
        metajax.maml(linear_model(5, 3), LOSS, rule=optax.contrib.sophia(0.1))


def is_head(params):
    return {"body": False, "head": {"kernel": True}}


def labels(params):
    return {"body": "one", "head": {"kernel": "other"}}


ONE = metajax.learned_rates(0.4)
COMPOSED = {
    "chain": optax.chain(optax.clip(0.05), optax.add_decayed_weights(0.1), ONE),
    "masked": optax.chain(optax.masked(ONE, is_head), optax.scale(1.5)),
    "partition": optax.partition(
        {"one": metajax.learned_rates(0.3, per="leaf"), "other": optax.sgd(0.2)}, labels
    ),
    "two that learn": optax.chain(decay_to_start(0.4, 0.2), metajax.learned_rates(-0.7, steps=2)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_learned_rules_compose_with_any_transformation(float64, name):
    """Compares with a hand-written loop over the transformation itself, whose state holds its parameters."""
    rule = COMPOSED[name]
    learner, meta, episode = setting(rule)

    def by_hand(meta):
        values = iter(meta.rule if name == "two that learn" else [meta.rule])
        params, state = meta.params, rule.init(meta.params)
        state = jax.tree.map(
            lambda node: Learned(next(values)) if isinstance(node, Learned) else node,
            state,
            is_leaf=lambda node: isinstance(node, Learned),
        )
        apply = linear_model(5, 3).apply

        def loss(params, batch=episode.support):
            return LOSS(apply(params, batch.inputs), batch)

        for _ in range(2):
            updates, state = rule.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return loss(params, episode.query)

    meta = noisy(meta, 0.2)
    got, want = (
        jax.jit(jax.value_and_grad(f))(meta) for f in (outer_loss(learner, episode), by_hand)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, want)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(got[1].rule))


def test_meta_parameters_hold_the_learned_parameters_and_the_fast_state_does_not():
    shapes = {"chain": [(4, 5), (5, 3)], "masked": [(5, 3)], "partition": [()]}
    for name, expected in shapes.items():
        learner, meta, _ = setting(COMPOSED[name], dtype=jnp.float32)
        assert [leaf.shape for leaf in jax.tree.leaves(meta.rule)] == expected
        assert not jax.tree.leaves(learner.start(meta, KEY).opt_state)
    assert set(meta.rule) == {"body", "head"}  # the value itself, if one rule learns
    assert setting(optax.sgd(0.1), dtype=jnp.float32)[1].rule == ()
    _, meta, _ = setting(COMPOSED["two that learn"], dtype=jnp.float32)
    assert isinstance(meta.rule, tuple) and isinstance(meta.rule[0], DecayToStart)


def test_a_learned_rule_is_an_outer_optimizer_with_the_values_it_starts_with():
    rule = optax.chain(optax.clip(1.0), metajax.learned_rates(0.4))
    params, grads = jnp.ones(3), jnp.array([3.0, 0.5, -3.0])
    state = rule.init(params)
    for _ in range(2):
        updates, state = jax.jit(rule.update)(grads, state, params)
        np.testing.assert_allclose(updates, [-0.4, -0.2, 0.4], rtol=1e-6)


def test_a_rule_of_ones_own_learns_its_step_size(float64):
    adam = optax.scale_by_adam(eps_root=1e-8)

    def update(log_rate, grads, state, params, *, value, **extra):
        updates, state = adam.update(grads, state, params)
        return jax.tree.map(lambda u: -jnp.exp(log_rate) * value * u, updates), state

    rule = metajax.rules.learned_transformation(lambda params: jnp.log(0.05), update, adam.init)
    learner, meta, episode = setting(optax.chain(optax.clip(1.0), rule))
    assert relative_error(outer_loss(learner, episode), meta) < 1e-6


UNSAFE = {
    "adam": optax.adam(0.1),
    "adamw in a chain": optax.chain(optax.clip(1.0), optax.adamw(0.1)),
    "lamb": optax.lamb(0.1),
    "adam of one leaf": optax.multi_transform(
        {"adam": optax.adam(0.1), "sgd": optax.sgd(0.1)},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, leaf: "adam" if "head" in jax.tree_util.keystr(path) else "sgd", params
        ),
    ),
}
SAFE = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam with a root": optax.adam(0.1, eps_root=1e-8),
    "rmsprop": optax.rmsprop(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "first order": optax.chain(metajax.stop_gradient(), optax.adam(0.1)),
    "rates": metajax.learned_rates(0.4),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_an_infinite_derivative_is_warned_of_where_a_meta_gradient_is_taken(name):
    learner, meta, episode = setting(UNSAFE[name], dtype=jnp.float32)
    # Its values are right, and so are derivatives that do not pass through it.
    jax.eval_shape(outer_loss(learner, episode), meta)
    with pytest.warns(RuntimeWarning, match="eps_root, such as optax.adam") as warned:
        jax.eval_shape(jax.grad(outer_loss(learner, episode)), meta)
    assert len(warned) == 1


@pytest.mark.parametrize("name", SAFE)
def test_no_warning_of_a_safe_rule(name):
    learner, meta, episode = setting(SAFE[name], dtype=jnp.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(jax.grad(outer_loss(learner, episode)), meta)


@pytest.mark.parametrize("how", ["first_order", "imaml", "reptile"])
def test_no_warning_where_nothing_is_differentiated_through_the_rule(how):
    adjoint = how if how in ADJOINTS else "reverse"
    make = metajax.imaml if how == "imaml" else metajax.maml
    learner, meta, episode = setting(optax.adam(0.1), adjoint=adjoint, dtype=jnp.float32, make=make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if how == "reptile":
            tasks = jax.tree.map(lambda leaf: leaf[None], (KEY, episode))
            jax.eval_shape(metajax.reptile(learner, LOSS), meta, *tasks)
        else:
            jax.eval_shape(jax.grad(outer_loss(learner, episode)), meta)
