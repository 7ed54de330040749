import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, linear_model
from metajax.inner import adjoints
from metajax.inner.adjoints import ADJOINTS, Adjoint, make_adjoint, unroll
from metajax.inner.mixed import mixed_mode_error
from metajax.inner.rules.base import learned_rates
from metajax.learners.gradient.base import check_mixed

REVERSE = ADJOINTS["reverse"]
EXACT = {
    name: adjoint._replace(last=None)
    for name, adjoint in ADJOINTS.items()
    if name not in ("reverse", "first_order")
}
EXACT["mixed, all kept"] = Adjoint("mixed", "all")
EXACT["reverse, segments"] = Adjoint("reverse", "segments")
EXACT["truncated at more than there are"] = Adjoint("mixed", "steps", last=100)
RULES = {
    "sgd": optax.sgd(0.4),
    "momentum": optax.sgd(0.2, momentum=0.9),
    "adam": optax.adam(0.05, eps_root=1e-8),
    "rates": learned_rates(0.3),
    "rates and momentum": optax.chain(optax.trace(0.9), learned_rates(0.2)),
}


@pytest.fixture(params=sorted(EXACT))
def adjoint(request):
    return EXACT[request.param]


def meta_value_and_grad(adjoint, *, rule=RULES["sgd"], steps=5, adapts=metajax.trees.everything):
    learner = metajax.learners.gradient_learner(
        linear_model(5, 3),
        metajax.cross_entropy,
        rule=rule,
        steps=steps,
        adapts=adapts,
        adjoint=adjoint,
    )
    episode = classification_episode(jax.random.key(0), dtype=jnp.float64)
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    grad = jax.value_and_grad(lambda meta: objective(meta, jax.random.key(2), episode)[0])
    return jax.jit(grad)(meta)


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def distance(a, b):
    a, b = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@functools.cache
def of_reverse(rule, steps):
    """The meta-gradient in reverse mode, once for all adjoints that are compared with it."""
    return meta_value_and_grad(REVERSE, rule=RULES[rule], steps=steps)


@pytest.mark.parametrize(
    ("rule", "steps"), [*((rule, 7) for rule in RULES), ("momentum", 1), ("momentum", 4)]
)
def test_every_exact_adjoint_equals_reverse(float64, adjoint, rule, steps):
    expected = of_reverse(rule, steps)
    measured = meta_value_and_grad(adjoint, rule=RULES[rule], steps=steps)
    assert_trees_close(measured, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_single_step_is_no_loop(steps):
    learner = metajax.maml(
        linear_model(5, 3), metajax.cross_entropy, rule=RULES["sgd"], steps=steps
    )
    episode = classification_episode(jax.random.key(0))
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    program = jax.make_jaxpr(jax.grad(objective, has_aux=True))(meta, jax.random.key(2), episode)
    assert ("scan[" in str(program)) == (steps > 1)


def test_operands_with_integers_keys_and_none_are_differentiated_where_they_can_be(float64):
    operands = {
        "scale": jnp.array([2.0, 3.0]),
        "index": jnp.array([1, 0]),
        "key": jax.random.key(0),
        "nothing": None,
    }

    def loss(params, operands):
        noise = jax.random.normal(operands["key"], (2,), jnp.float64)
        return jnp.sum(jnp.sin(params * operands["scale"])[operands["index"]] * noise)

    def update(operands, grads, params, state):
        return params - operands["scale"] * grads, state

    def outer(scale, adjoint):
        start, given = jnp.array([0.3, -0.2]), operands | {"scale": scale}
        params, _ = unroll(loss, update, start, (), given, steps=3, adjoint=adjoint)
        return jnp.sum(params**2)

    reverse, mixed = (jax.grad(outer)(operands["scale"], name) for name in ("reverse", "mixed"))
    np.testing.assert_allclose(mixed, reverse, rtol=1e-10)


@pytest.mark.parametrize("rule", ["sgd", "momentum", "rates"])
def test_first_order_is_the_rule_that_stops_gradients(float64, rule):
    stopped = meta_value_and_grad(ADJOINTS["first_order"], rule=RULES[rule])
    rule = RULES[rule]
    constants = optax.chain(metajax.stop_gradient(), rule)
    assert_trees_close(
        stopped, meta_value_and_grad(REVERSE, rule=constants), rtol=1e-12, atol=1e-14
    )
    exact = meta_value_and_grad(REVERSE, rule=rule)
    assert distance(stopped[1].params, exact[1].params) > 1e-2


@pytest.mark.parametrize("kind", ["reverse", "mixed"])
def test_truncated_lies_between_first_order_and_exact(float64, kind):
    rule = RULES["sgd"]
    first = optax.chain(metajax.stop_gradient(), rule)
    first_order = meta_value_and_grad(REVERSE, rule=first)
    exact = meta_value_and_grad(REVERSE, rule=rule)
    none, two = (
        meta_value_and_grad(Adjoint(kind, "steps", last=last), rule=rule) for last in (0, 2)
    )
    assert_trees_close(none, first_order, rtol=1e-12)
    assert exact[0] == two[0] == none[0]  # the loss is the same number
    assert distance(two[1], first_order[1]) > 1e-2
    assert distance(two[1], exact[1]) > 1e-2


def test_truncated_on_a_quadratic_in_closed_form(float64):
    # x <- x - lr (x - c): the exact derivative is (1 - lr)^5, of the last two steps (1 - lr)^2.
    lr, start = 0.3, jnp.array(2.0)

    def adapted(start, center):
        return unroll(
            lambda x, c: 0.5 * (x - c) ** 2,
            lambda c, grads, x, state: (x - lr * grads, state),
            start,
            (),
            center,
            steps=5,
            adjoint=Adjoint("mixed", "steps", last=2),
        )[0]

    by_start, by_center = jax.grad(adapted, (0, 1))(start, jnp.array(0.5))
    np.testing.assert_allclose(by_start, (1 - lr) ** 2, rtol=1e-14)
    np.testing.assert_allclose(by_center, 1 - (1 - lr) ** 2, rtol=1e-14)


def test_first_order_rules_stay_first_order_in_mixed_mode(float64):
    rule = optax.chain(metajax.stop_gradient(), RULES["sgd"])
    expected = meta_value_and_grad(REVERSE, rule=rule)
    assert_trees_close(meta_value_and_grad(ADJOINTS["mixed"], rule=rule), expected, rtol=1e-12)


def compiled(adjoint, steps, *, width=64, depth=4, batch=512):
    def loss(params, inputs):
        hidden = inputs
        for kernel in params:
            hidden = jnp.tanh(hidden @ kernel)
        return jnp.mean(hidden**2)

    def update(inputs, grads, params, state):
        del inputs
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state

    def outer(params, inputs):
        found, _ = unroll(loss, update, params, (), inputs, steps=steps, adjoint=adjoint)
        return loss(found, inputs)

    params = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * depth
    inputs = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    return jax.jit(jax.grad(outer)).lower(params, inputs).compile()


def temporary_bytes(name, steps):
    return compiled(ADJOINTS[name], steps).memory_analysis().temp_size_in_bytes


def test_memory_of_each_adjoint_grows_with_its_store():
    # 4 kernels of 64 x 64 are 64 KiB a state; activations of 512 x 64 in 4 layers are 512 KiB a step.
    state, activations = 4 * 64 * 64 * 4, 4 * 512 * 64 * 4
    grown = {
        name: temporary_bytes(name, 60) - temporary_bytes(name, 20)
        for name in ("reverse", "remat", "mixed", "recursive")
    }
    assert grown["reverse"] > 40 * activations
    assert grown["remat"] < 41 * state
    assert grown["mixed"] < 2 * 41 * state  # a state and a gradient
    assert grown["recursive"] < 15 * state
    assert temporary_bytes("mixed", 1) < temporary_bytes("reverse", 20) / 4


@pytest.mark.parametrize("name", sorted(ADJOINTS))
def test_programs_do_not_grow_with_steps(name):
    lines = [len(compiled(ADJOINTS[name], steps).as_text().splitlines()) for steps in (11, 102)]
    assert abs(lines[1] - lines[0]) < 0.02 * lines[0]


def tasks(adjoint):
    learner = metajax.maml(
        linear_model(5, 3),
        metajax.cross_entropy,
        rule=RULES["momentum"],
        steps=3,
        adjoint=adjoint,
    )
    keys = jax.random.split(jax.random.key(1), 4)
    episodes = jax.vmap(lambda key: classification_episode(key, dtype=jnp.float64))(keys)
    meta = learner.init(jax.random.key(2), episodes.support.inputs[0])
    return metajax.query_objective(learner, metajax.cross_entropy), meta, keys, episodes


def test_eager_vmap_and_shard_map_agree(float64, adjoint):
    objective, meta, keys, episodes = tasks(adjoint)
    meta_grad = metajax.backprop(objective)
    eager = meta_grad(meta, keys, episodes)
    expected = metajax.backprop(tasks(REVERSE)[0])(meta, keys, episodes)
    assert_trees_close(eager, expected, rtol=1e-9, atol=1e-12)
    assert_trees_close(jax.jit(meta_grad)(meta, keys, episodes), eager, rtol=1e-9, atol=1e-12)
    if adjoint.store == "host":
        return  # offloading from within shard_map has not been tried
    spread = metajax.over_tasks(metajax.task_mesh(jax.devices()[:2]), meta_grad)
    assert_trees_close(jax.jit(spread)(meta, keys, episodes), eager, rtol=1e-9, atol=1e-12)


def test_offload_moves_states_and_gradients_to_the_host(float64):
    jaxpr = str(jax.make_jaxpr(lambda: meta_value_and_grad(ADJOINTS["offload"], steps=7))())
    assert "host" in jaxpr and "host" not in str(
        jax.make_jaxpr(lambda: meta_value_and_grad(ADJOINTS["mixed"], steps=7))()
    )


def test_offload_without_host_memory_names_the_remedy(monkeypatch):
    monkeypatch.setattr(adjoints, "HOST", "attic")
    with pytest.raises(ValueError, match=r"'attic', and .* has .*; use the adjoint 'recursive'"):
        compiled(ADJOINTS["offload"], 2)


@pytest.mark.parametrize(
    ("adjoint", "says"),
    [
        (Adjoint("sideways", "all"), "gradient is 'sideways'; use one of reverse, mixed"),
        (Adjoint("mixed", "none"), "store is 'none'; use one of all"),
        (Adjoint("mixed", "all", last=-1), "last is -1; use 0 or more"),
    ],
)
def test_an_adjoint_that_is_none_is_refused(adjoint, says):
    with pytest.raises(ValueError, match=says):
        compiled(adjoint, 2)


def test_an_unknown_name_suggests_the_nearest():
    assert make_adjoint("mixed") is ADJOINTS["mixed"]
    with pytest.raises(ValueError, match=r"'recursiv'.*recursive"):
        make_adjoint("recursiv")


def custom(forward, backward):
    function = jax.custom_vjp(forward)
    function.defvjp(lambda x: (forward(x), None), lambda _, cotangent: (backward(cotangent),))
    return function


def rounded(x):
    return jnp.round(3 * x) / 3


def stopped(x):
    return x + jax.lax.stop_gradient(rounded(x) - x)


STRAIGHT_THROUGH = custom(rounded, lambda cotangent: cotangent)
CLIPPED = custom(lambda x: x, lambda cotangent: jnp.clip(cotangent, -0.01, 0.01))
REVERSED = custom(lambda x: x, lambda cotangent: -cotangent)


def model_with(activation):
    def apply(params, inputs):
        return activation(jnp.tanh(inputs @ params["body"])) @ params["head"]["kernel"]

    return linear_model(5, 3)._replace(apply=apply)


def mixed_setting(activation, dtype=jnp.float64):
    model = model_with(activation)
    batch = classification_episode(jax.random.key(0), dtype=dtype).support
    return model, metajax.cross_entropy, model.init(jax.random.key(1), batch.inputs), batch


@pytest.mark.parametrize("activation", [jnp.tanh, jax.lax.stop_gradient, stopped])
def test_mixed_mode_is_exact_where_constants_are_stopped(float64, activation):
    model, loss, params, batch = mixed_setting(activation)
    error = mixed_mode_error(
        lambda params, batch: loss(model.apply(params, batch.inputs), batch),
        params,
        batch,
        key=jax.random.key(2),
    )
    assert error < 1e-12


def test_rounding_passes_the_check():
    check_mixed(*mixed_setting(jnp.tanh, jnp.float32), key=jax.random.key(2))


@pytest.mark.parametrize("activation", [STRAIGHT_THROUGH, CLIPPED, REVERSED])
def test_custom_derivatives_of_no_function_are_caught(float64, activation):
    with pytest.raises(ValueError, match=r"Mixed mode differs .* 'reverse', or 'remat'"):
        check_mixed(*mixed_setting(activation), key=jax.random.key(2))


def test_the_check_agrees_with_mixed_mode(float64):
    *_, params, batch = mixed_setting(STRAIGHT_THROUGH)

    def meta_grad(adjoint):
        learner = metajax.maml(
            model_with(STRAIGHT_THROUGH),
            metajax.cross_entropy,
            rule=RULES["sgd"],
            steps=2,
            adjoint=adjoint,
        )
        objective = metajax.query_objective(learner, metajax.cross_entropy)
        meta = learner.init(jax.random.key(1), batch.inputs)._replace(params=params)
        episode = metajax.Episode(batch, batch)
        return jax.grad(lambda meta: objective(meta, jax.random.key(0), episode)[0])(meta)

    exact = meta_grad(REVERSE)
    assert distance(meta_grad(ADJOINTS["mixed"]), exact) > 1e-2
    assert distance(meta_grad(ADJOINTS["remat"]), exact) < 1e-12


def test_a_function_without_forward_mode_is_refused_with_the_remedy(float64):
    opaque = jax.custom_vjp(jnp.tanh)
    opaque.defvjp(lambda x: (opaque(x), x), lambda x, ct: (ct / jnp.cosh(x) ** 2,))
    with pytest.raises(ValueError, match=r"Mixed mode cannot differentiate .* 'remat'"):
        check_mixed(*mixed_setting(opaque), key=jax.random.key(2))
