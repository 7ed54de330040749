"""Outer steps on experience: several optimizer steps, the trust region, devices, resuming, bad numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.rl_worlds import walk
from metajax import rl
from metajax.types import Batch, Model

TASKS = 4


# With a baseline that fits all returns of so few episodes, nothing but rounding would be left.
PLAIN = rl.advantages(baseline="none")


def learner_of(env, hidden=()):
    model = rl.mlp_policy(env.actions, hidden=hidden)
    return metajax.maml(model, rl.policy_gradient(), rule=optax.sgd(0.3))


def first_meta(env, learner):
    inputs = env.reset(jax.random.key(0), env.sample(jax.random.key(1)))[1][None]
    return learner.init(jax.random.key(2), inputs)


def lives_of(env, learner, *, calls=1):
    """Lives in four tasks, in one program."""
    meta, keys = first_meta(env, learner), jax.random.split(jax.random.key(3), TASKS)
    live = rl.live(learner, env, episodes=2, calls=calls, advantage=PLAIN)
    live = jax.vmap(live, (None, 0, 0))
    return meta, keys, jax.jit(lambda meta: live(meta, keys, jax.vmap(env.sample)(keys)))(meta)


# Several steps.


def test_several_steps_are_a_loop(float64):
    env = walk(horizon=3)
    learner = learner_of(env)
    meta, keys, lives = lives_of(env, learner)
    meta_grad = metajax.backprop(rl.lifetime_objective(learner, rl.clipped()))
    optimizer = optax.adam(0.05)
    improve = rl.several(meta_grad, optimizer, steps=3)
    key = jax.random.key(4)
    found, state, metrics = jax.jit(improve.update)(meta, improve.init(meta), key, keys, lives)
    one, true, opt_state, norms = jax.jit(meta_grad), meta, optimizer.init(meta), []
    for index in range(3):
        grads, values = one(true, keys, lives)
        updates, opt_state = optimizer.update(grads, opt_state, true)
        true = optax.apply_updates(true, updates)
        norms.append(float(optax.tree.norm(grads)))
        if index == 0:
            assert float(metrics["loss"]) == pytest.approx(float(values["loss"]), rel=1e-12)
    assert float(metrics["grad_norm"]) == pytest.approx(np.mean(norms), rel=1e-10)
    for ours, theirs in zip(
        jax.tree.leaves((found, state)), jax.tree.leaves((true, opt_state)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def counts(meta, keys, tasks, step=None):
    """Counts how often each number was among the tasks, as a meta-gradient."""
    del keys, step
    seen = jnp.sum(jax.nn.one_hot(tasks, meta.shape[0]), axis=0)
    return -seen, {"loss": jnp.mean(tasks * 1.0), "most": jnp.max(seen)}


def test_minibatches_divide_the_tasks():
    improve = rl.several(counts, optax.sgd(1.0), steps=3, minibatches=4)
    meta, keys, tasks = jnp.zeros(8), jax.random.split(jax.random.key(0), 8), jnp.arange(8)
    update = jax.jit(improve.update)
    found, _, metrics = update(meta, improve.init(meta), jax.random.key(1), keys, tasks)
    assert found.tolist() == [3.0] * 8  # each task once in each pass
    assert float(metrics["loss"]) == 3.5 and float(metrics["most"]) == 1
    assert float(metrics["grad_norm"]) == pytest.approx(np.sqrt(2))
    with pytest.raises(ValueError, match="8 tasks do not divide into 3 minibatches"):
        rl.several(counts, optax.sgd(1.0), minibatches=3).update(meta, (), None, keys, tasks)
    with pytest.raises(ValueError, match="steps is 0; use 1 or more"):
        rl.several(counts, optax.sgd(1.0), steps=0)


def test_minibatches_are_other_ones_in_each_pass():
    def firsts(meta, keys, tasks, step=None):
        # A number that remembers: each step shifts the digits by one and adds its first task.
        return -(9 * meta + tasks[0]), {"loss": 0.0}

    improve = rl.several(firsts, optax.sgd(1.0), steps=3, minibatches=2)
    keys, tasks = jax.random.split(jax.random.key(0), 8), jnp.arange(8.0)
    meta = jnp.zeros(())
    found, *_ = jax.jit(improve.update)(meta, improve.init(meta), keys[0], keys, tasks)
    digits = f"{int(found):06d}"
    assert len({digits[0:2], digits[2:4], digits[4:6]}) > 1


def test_only_the_query_is_scaled_over_tasks(float64):
    env = walk(horizon=3)
    *_, lives = lives_of(env, learner_of(env))
    found = jax.jit(rl.normalize_over_tasks)(lives)
    for ours, theirs in zip(
        jax.tree.leaves(found.support), jax.tree.leaves(lives.support), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    alive = np.asarray(lives.query.weights) > 0
    before = np.asarray(lives.query.targets.advantage)[alive]
    after = np.asarray(found.query.targets.advantage)
    np.testing.assert_allclose(after[alive], (before - before.mean()) / before.std(), atol=1e-12)
    assert np.all(after[~alive] == 0)


# The trust region.


def policies_after(learner, keys, lives):
    outputs = jax.vmap(rl.lifetime_outputs(learner), (None, 0, 0))
    return lambda meta: rl.policy_of(outputs(meta, keys, lives)[0])


def mean_kl(old, new, weights):
    return jnp.mean(jnp.sum(old.kl(new) * weights, 1) / jnp.sum(weights, 1))


@pytest.mark.parametrize("kind", ["table", "after adapting"])
def test_fisher_product_is_the_hessian_of_the_divergence(kind, float64):
    if kind == "table":
        meta = {"logits": jax.random.normal(jax.random.key(0), (2, 3, 4))}
        weights = jnp.array([[1.0, 1, 1], [1, 0, 0]])
        policies = lambda meta: rl.Categorical(meta["logits"])  # noqa: E731
    else:
        env = walk(horizon=3, vectors=True)
        learner = learner_of(env, hidden=(3,))
        meta, keys, lives = lives_of(env, learner)
        weights, policies = lives.query.weights, policies_after(learner, keys, lives)
    assert float(weights.min()) == 0  # some episodes ended early
    draw = jax.random.split(jax.random.key(5), len(jax.tree.leaves(meta)))
    vector = jax.tree.structure(meta).unflatten(
        [
            jax.random.normal(key, leaf.shape)
            for key, leaf in zip(draw, jax.tree.leaves(meta), strict=True)
        ]
    )

    @jax.jit
    def both(meta, vector):
        old = policies(meta)
        slope = jax.grad(lambda meta: mean_kl(old, policies(meta), weights))
        _, exact = jax.jvp(slope, (meta,), (vector,))
        return rl.fisher_product(policies, meta, weights)(vector), exact

    found, exact = both(meta, vector)
    size = float(optax.tree.norm(exact))
    difference = jax.tree.map(jnp.subtract, found, exact)
    assert float(optax.tree.norm(difference)) < 1e-10 * size and size > 1e-3
    assert float(optax.tree.vdot(vector, found)) > 0


@functools.cache
def region(max_kl):
    """A compiled trust-region step of MAML, whose advantages are factors of a life's."""
    env = walk(horizon=3)
    learner = learner_of(env)
    meta, keys, lives = lives_of(env, learner)
    improve = rl.trust_region(rl.lifetime_outputs(learner), max_kl=max_kl)
    policies = policies_after(learner, keys, lives)

    @jax.jit
    def step(meta, scale):
        advantage = lives.query.targets.advantage * scale
        targets = lives.query.targets._replace(advantage=advantage)
        changed = lives._replace(query=lives.query._replace(targets=targets))
        new, _, metrics = improve.update(meta, (), keys[0], keys, changed)
        return new, metrics, mean_kl(policies(meta), policies(new), lives.query.weights)

    return meta, step


@pytest.mark.parametrize("scale", [1.0, 1e4, -1e-4])
def test_the_region_is_never_left(scale):
    meta, step = region(0.01)
    for shift in (0.0, 0.3, 2.0):
        new, metrics, kl = step(jax.tree.map(lambda leaf, s=shift: leaf + s, meta), scale)
        assert 0 < float(metrics["kl"]) <= 0.01
        assert float(kl) <= 0.01 * (1 + 1e-3)  # measured anew, in float32
        assert float(metrics["max_kl"]) >= float(metrics["kl"])
        assert 0 < float(metrics["step_length"]) <= 1
        assert bool(jax.tree.all(jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), new)))


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_old_parameters_return_where_nothing_improves(scale):
    meta, step = region(0.01)
    new, metrics, _ = step(meta, scale)
    for ours, old in zip(jax.tree.leaves(new), jax.tree.leaves(meta), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(old).tobytes()
    assert float(metrics["step_length"]) == 0 and float(metrics["kl"]) == 0


def aim_lives():
    """Makes experience of a normal policy with mean 0.5 and deviation 2, which liked larger actions."""
    action = jnp.array([[[1.0], [-1.0], [0.7]], [[2.0], [0.0], [9.0]]])
    advantage, weights = action[..., 0] - 0.5, jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    behavior = rl.Normal(jnp.full((2, 3, 1), 0.5), jnp.full((2, 3, 1), np.log(2.0)))
    nothing, ends = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    decisions = rl.Decisions(action, advantage, ends, behavior, advantage, nothing, nothing)
    return Batch(jnp.zeros((2, 3, 1)), decisions, weights)


def aim_outputs(meta, key, batch):
    mean = jnp.broadcast_to(meta, batch.targets.action.shape)
    return rl.Normal(mean, jnp.full_like(mean, np.log(2.0))), batch


def test_a_natural_gradient_step(float64):
    improve = rl.trust_region(aim_outputs, max_kl=0.02, damping=0.1)
    meta, lives = jnp.asarray(0.5), aim_lives()
    keys = jax.random.split(jax.random.key(0), 2)
    new, _, metrics = jax.jit(improve.update)(meta, (), keys[0], keys, lives)
    # Its Fisher number is 1 / 4 and the divergence (m' - m)^2 / 8; damping adds 0.1 to the former.
    assert float(new) == pytest.approx(0.5 + np.sqrt(2 * 0.02 / (0.25 + 0.1)), rel=1e-10)
    assert float(metrics["kl"]) == pytest.approx((float(new) - 0.5) ** 2 / 8, rel=1e-10)
    assert float(metrics["step_length"]) == 1
    # The gradient of mean(ratio A) at the old mean is the mean of (a - m) / 4 A over the steps taken.
    slopes = (np.asarray(lives.targets.action[..., 0]) - 0.5) ** 2 / 4
    slope = np.mean([slopes[0].mean(), slopes[1, :2].mean()])
    assert float(metrics["grad_norm"]) == pytest.approx(slope, rel=1e-10)
    # What a step after an end holds does not matter.
    action = lives.targets.action.at[1, 2].set(-50.0)
    other = lives._replace(targets=lives.targets._replace(action=action))
    again, _, metrics_again = jax.jit(improve.update)(meta, (), keys[0], keys, other)
    assert float(again) == float(new)
    assert float(metrics_again["loss"]) == float(metrics["loss"])


def test_the_line_search_shortens(float64):
    # A surrogate that is better only near the old mean: half of the longest step is too long.
    def objective(meta, key, life):
        loss = -(meta - 0.5) + 4.5 * (meta - 0.5) ** 2
        return loss, {"loss": loss + 100.0}  # a metric is not what the search compares

    improve = rl.trust_region(
        aim_outputs, objective=objective, max_kl=0.125, damping=1e-12, shrink=0.5
    )
    keys = jax.random.split(jax.random.key(0), 2)
    new, _, metrics = jax.jit(improve.update)(jnp.asarray(0.5), (), keys[0], keys, aim_lives())
    # The longest step is 1; the loss is below zero only up to 2 / 9: the third length, 1 / 4, is not better.
    assert float(metrics["step_length"]) == 0.125
    assert float(new) == pytest.approx(0.625, rel=1e-9)
    few = rl.trust_region(
        aim_outputs, objective=objective, max_kl=0.125, damping=1e-12, shrink=0.5, backtracks=3
    )
    new, _, metrics = jax.jit(few.update)(jnp.asarray(0.5), (), keys[0], keys, aim_lives())
    assert float(new) == 0.5 and float(metrics["step_length"]) == 0


def test_numbers_of_the_region_that_are_refused():
    for options, message in (
        ({"max_kl": 0}, "max_kl is 0; use a number above 0"),
        ({"shrink": 1}, "shrink is 1; use a number between 0 and 1"),
        ({"backtracks": 0}, "backtracks is 0; use 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            rl.trust_region(aim_outputs, **options)


def test_an_adjoint_without_forward_mode_is_refused():
    slope = metajax.inner.mixed_gradient(lambda mean, target: (mean - target) ** 2)

    def policies(mean):
        mean = mean - slope(mean, 1.0)
        return rl.Normal(jnp.full((1, 1, 1), mean), jnp.zeros((1, 1, 1)))

    with pytest.raises(ValueError, match="use the adjoint 'reverse' or 'remat'"):
        rl.fisher_product(policies, jnp.array(0.0), jnp.ones((1, 1)))(jnp.array(1.0))


# Whole steps.


def step_of(kind, *, wrap=lambda meta_grad: meta_grad, env=None, **options):
    """Makes a step of MAML with one of the ways to improve, and its first state."""
    env = walk(horizon=3) if env is None else env
    learner = learner_of(env)
    meta = first_meta(env, learner)
    meta_grad = wrap(metajax.backprop(rl.lifetime_objective(learner, rl.clipped())))
    improve = {
        "promp": lambda: rl.several(meta_grad, optax.adam(0.01), steps=2),
        "minibatches": lambda: rl.several(meta_grad, optax.adam(0.01), steps=2, minibatches=2),
        "trpo": lambda: rl.trust_region(rl.lifetime_outputs(learner)),
    }[kind]()
    live = rl.live(learner, env, episodes=2, advantage=PLAIN)
    sample = lambda data, key: env.sample(key)  # noqa: E731
    options = {"prepare": rl.normalize_over_tasks, **options}
    step = rl.make_step(live, improve, sample, num_tasks=TASKS, **options)
    return step, metajax.init_state(meta, improve, jax.random.key(7))


@functools.cache
def compiled(kind):
    step, state = step_of(kind)
    return jax.jit(step), state


@pytest.mark.parametrize("kind", ["minibatches", "trpo"])
def test_two_devices_equal_one(kind, float64):
    mesh = metajax.task_mesh(jax.devices()[:2])
    one, state = compiled(kind)
    two, _ = step_of(
        kind,
        wrap=lambda meta_grad: metajax.over_tasks(mesh, meta_grad),
        draw=metajax.sharding.draw_over_tasks(mesh),
        measure=lambda lives: {"lives": lives.query.weights},
    )
    ours, metrics = one(state, None)
    placed = metajax.sharding.place(mesh, state)
    theirs, spread = jax.jit(two)(placed, None)
    # Experience was gathered, and stays, on the device of its task.
    assert spread.pop("lives").sharding.shard_shape((TASKS, 6)) == (TASKS // 2, 6)
    for a, b in zip(
        jax.tree.leaves((ours.meta, ours.opt_state, metrics)),
        jax.tree.leaves((theirs.meta, theirs.opt_state, spread)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    change = jax.tree.map(jnp.subtract, ours.meta, state.meta)
    assert float(optax.tree.norm(change)) > 1e-3


@pytest.mark.parametrize("kind", ["minibatches", "trpo"])
def test_resuming_is_bit_for_bit(kind, float64):
    step, state = compiled(kind)
    straight = state
    for _ in range(4):
        straight, _ = step(straight, None)
    for _ in range(2):
        state, _ = step(state, None)
    # All that there is goes to the host and comes back.
    key = jax.random.wrap_key_data(np.asarray(jax.random.key_data(state.key)))
    stored = jax.tree.map(np.asarray, state._replace(key=()))
    state = jax.tree.map(jnp.asarray, stored)._replace(key=key)
    for _ in range(2):
        state, _ = step(state, None)
    for a, b in zip(
        jax.tree.leaves(straight._replace(key=())),
        jax.tree.leaves(state._replace(key=())),
        strict=True,
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(("kind", "field"), [("promp", "observation"), ("trpo", "reward")])
def test_numbers_that_are_not_finite_are_skipped(kind, field):
    env = walk(horizon=3)

    def broken(key, task, state, action):
        after = env.step(key, task, state, action)
        bad = jnp.where(task > 1.0, jnp.nan, getattr(after, field))
        return after._replace(**{field: bad})

    step, state = step_of(kind, env=env._replace(step=broken))
    step = jax.jit(metajax.train.skip_nonfinite(step))
    new, metrics = step(state, None)
    assert int(metrics["skipped"]) == 1 and not np.isfinite(float(metrics["loss"]))
    assert int(new.step) == 1
    for ours, old in zip(
        jax.tree.leaves((new.meta, new.opt_state)),
        jax.tree.leaves((state.meta, state.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, old)


def test_a_late_pass_that_fails_is_seen():
    def meta_grad(meta, keys, tasks, step=None):
        return jnp.where(meta < 0, jnp.nan, 1.0), {"loss": meta}

    improve = rl.several(meta_grad, optax.sgd(1.0), steps=3)
    keys = jax.random.split(jax.random.key(0), 2)
    _, _, metrics = improve.update(
        jnp.asarray(0.5), improve.init(jnp.asarray(0.5)), None, keys, None
    )
    assert np.isfinite(float(metrics["loss"])) and np.isnan(float(metrics["grad_norm"]))


def test_a_step_moves_towards_what_paid(float64):
    model = Model(
        lambda key, inputs: {"logits": jnp.zeros(3)},
        lambda params, inputs: rl.Categorical(jnp.broadcast_to(params["logits"], (len(inputs), 3))),
    )
    learner = metajax.maml(model, rl.policy_gradient(), rule=optax.sgd(0.0))
    env = rl.envs.bandit(3, pulls=20)
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    live = rl.live(learner, env, episodes=5, advantage=rl.advantages(baseline="none"))
    improve = rl.trust_region(rl.lifetime_outputs(learner), max_kl=0.05)
    sample = lambda data, key: jnp.array([0.0, 1.0, 0.0])  # noqa: E731
    step = rl.make_step(live, improve, sample, num_tasks=2)
    state, _ = jax.jit(step)(metajax.init_state(meta, improve, jax.random.key(1)), None)
    assert int(jnp.argmax(state.meta.params["logits"])) == 1
