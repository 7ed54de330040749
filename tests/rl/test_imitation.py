"""Demonstrations, cloning, and learning to imitate from one demonstration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from metajax.types import Batch


def point(horizon=10):
    """A point that walks to a goal; a task is the goal, which the observation does not show."""

    def sample(key):
        angle = jax.random.uniform(key, maxval=2 * jnp.pi)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def reset(key, task):
        place = 0.05 * jax.random.normal(key, (2,))
        return place, place

    def step(key, task, state, action):
        state = state + 0.2 * action
        return rl.Step(state, state, -jnp.linalg.norm(state - task), jnp.array(False))

    return rl.Env(sample, reset, step, rl.Continuous(2, -1.0, 1.0), horizon)


def walk(task, observation):
    return jnp.clip(3 * (task - observation), -1, 1)


def counter(horizon, lasts):
    """Counts its steps; a task is the step at which an episode ends."""

    def reset(key, task):
        return jnp.zeros((), jnp.int32), jnp.zeros(1)

    def step(key, task, state, action):
        state = state + 1
        return rl.Step(state, state[None] * 1.0, jnp.ones(()), state >= task)

    return rl.Env(lambda key: jnp.array(lasts), reset, step, rl.Discrete(3), horizon)


def test_demonstrations_are_the_experts_steps_without_its_rewards():
    env = counter(6, 4)
    record = rl.demonstrations(env, lambda task, seen: (seen[:, 0] % 3).astype(int), episodes=2)
    batch = jax.jit(record)(jax.random.key(0), jnp.array(4))
    np.testing.assert_array_equal(batch.weights.reshape(2, 6), [[1, 1, 1, 1, 0, 0]] * 2)
    alive = np.asarray(batch.weights) > 0
    np.testing.assert_array_equal(batch.inputs[alive, 0], [0, 1, 2, 3] * 2)
    np.testing.assert_array_equal(batch.targets.action[alive], [0, 1, 2, 0] * 2)
    np.testing.assert_array_equal(np.flatnonzero(batch.targets.ends), [3, 9])
    assert not batch.targets.reward.any()
    record = rl.demonstrations(env, lambda task, seen: (seen[:, 0] % 3).astype(int), rewards=True)
    assert (
        jax.jit(record)(jax.random.key(0), jnp.array(4)).targets.reward.tolist()
        == [1] * 4 + [0] * 2
    )


def test_support_and_query_are_different_episodes_of_one_expert():
    env = point()
    draw = rl.demonstration_episode(env, walk, shots=2, queries=3)
    task = jax.jit(lambda key: draw(key, env.sample(key)))(jax.random.key(0))
    assert task.support.weights.shape == (20,) and task.query.weights.shape == (30,)
    for batch in (task.support, task.query):
        np.testing.assert_allclose(batch.targets.action, walk(task.task, batch.inputs), atol=1e-6)
    assert not np.isin(np.asarray(task.support.inputs), np.asarray(task.query.inputs)).any()


def test_subsampled_demonstrations_are_every_kth_step_from_a_random_offset():
    episodes, horizon, every = 300, 12, 4
    rows = jnp.arange(episodes * horizon)
    weights = (rows % horizon < 7) * 1.0
    found = rl.subsample(
        jax.random.key(0), Batch(rows[:, None], rows, weights), horizon=horizon, every=every
    )
    kept = np.asarray(found.targets).reshape(episodes, horizon // every)
    np.testing.assert_array_equal(np.diff(kept, axis=1), every)
    np.testing.assert_array_equal(kept // horizon, np.arange(episodes)[:, None] + np.zeros((1, 3)))
    counts = np.bincount(kept[:, 0] % horizon, minlength=every)
    assert len(counts) == every and counts.min() > 50  # of 75: each offset about equally often
    np.testing.assert_array_equal(found.weights, (np.asarray(found.targets) % horizon < 7) * 1.0)
    np.testing.assert_array_equal(found.inputs[:, 0], found.targets)


def test_cloning_finds_the_frequencies_and_never_reads_a_dead_row():
    # Three quarters of the actions at the first observation are 0, a quarter at the second.
    seen = jnp.concatenate([jnp.tile(jnp.eye(2), (4, 1)), jnp.full((2, 2), jnp.nan)])
    actions = jnp.array([0, 0, 0, 1, 0, 1, 1, 1, 1, 1])
    batch = Batch(seen, actions, jnp.array([1.0] * 8 + [0.0] * 2))
    model = rl.mlp_policy(rl.Discrete(2), hidden=())
    params = model.init(jax.random.key(0), seen)
    train = jax.jit(rl.clone(model, optax.adam(0.02), steps=600, minibatch=64))
    found = jax.nn.softmax(
        model.apply(train(params, jax.random.key(1), batch).params, jnp.eye(2)).logits
    )
    np.testing.assert_allclose(found[:, 0], [0.75, 0.25], atol=0.06)


def test_cloning_keeps_the_best_iterate_on_held_out_demonstrations():
    model = rl.mlp_policy(rl.Discrete(2), hidden=())
    batch = Batch(jnp.eye(2), jnp.array([0, 1]))
    # The held-out expert is less certain: training too long is too certain.
    held_out = Batch(jnp.eye(2)[jnp.array([0, 0, 0, 1, 1, 1])], jnp.array([0, 0, 1, 1, 1, 0]))
    params = model.init(jax.random.key(0), batch.inputs)
    train = jax.jit(rl.clone(model, optax.sgd(0.3), steps=40))
    cloned = train(params, jax.random.key(1), batch, held_out)
    best = int(cloned.held_out.argmin())
    assert 0 < best < 39
    again = jax.jit(rl.clone(model, optax.sgd(0.3), steps=best + 1))(
        params, jax.random.key(1), batch
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), cloned.params, again.params
    )
    assert bool((cloned.losses[1:] < cloned.losses[:-1]).all())


def trained(learner, env, *, steps, learning_rate):
    draw = rl.demonstration_episode(env, walk)

    def sample(data, key):
        task_key, draw_key = jax.random.split(key)
        return draw(draw_key, env.sample(task_key))

    objective = metajax.query_objective(learner, rl.imitation_loss)
    optimizer = optax.adam(learning_rate)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=16)

    @jax.jit
    def run(key):
        meta = learner.init(key, jnp.zeros((1, 2)))
        state = metajax.init_state(meta, optimizer, key)
        return metajax.many_steps(step, steps)(state, None)[0].meta

    return run(jax.random.key(0)), sample


def mean_returns(learner, meta, env, sample, **options):
    measure = rl.imitation_returns(learner, env, episodes=2, **options)

    @jax.jit
    def run(keys):
        tasks = jax.vmap(lambda key: sample(None, key))(keys)
        return jax.vmap(measure, (None, 0, 0))(meta, keys, tasks)["returns"].mean(axis=0)

    return np.asarray(run(jax.random.split(jax.random.key(9), 24)))


def test_one_demonstration_beats_cloning_without_and_with_fine_tuning():
    env = point()
    model = rl.mlp_policy(env.actions, hidden=(32,), initial_std=0.5)

    def learner(steps):
        return metajax.maml(model, rl.imitation_loss, rule=optax.sgd(0.05), steps=steps)

    # Cloning of all tasks together is the same learner without steps.
    cloned, sample = trained(learner(0), env, steps=400, learning_rate=0.01)
    meta, _ = trained(learner(2), env, steps=400, learning_rate=0.01)
    unadapted, finetuned = mean_returns(learner(20), cloned, env, sample)
    before, after = mean_returns(learner(2), meta, env, sample)
    # The expert's mean return is -1.8; a policy that does not know the goal stays where it is: -10.
    assert after > -5 and after > finetuned + 0.5 and after > unadapted + 4, (
        before,
        after,
        finetuned,
    )


def test_a_reader_imitates_the_demonstration_it_read():
    env = point(horizon=6)
    learner = rl.reading_policy(metajax.learners.gru_model(24), env.actions, initial_std=0.5)
    meta, sample = trained(learner, env, steps=250, learning_rate=0.01)
    before, after = mean_returns(learner, meta, env, sample)
    assert after > -2.5 > before + 1, (before, after)


def test_returns_before_and_after_each_call():
    env = counter(6, 4)
    model = rl.mlp_policy(env.actions, hidden=())
    learner = metajax.maml(model, rl.imitation_loss, rule=optax.sgd(1.0))
    task = rl.Demonstrated(jnp.array(4), Batch(jnp.zeros((2, 1)), jnp.array([0, 1])))
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    found = jax.jit(rl.imitation_returns(learner, env, calls=2))(meta, jax.random.key(1), task)
    assert found["returns"].tolist() == [4.0, 4.0, 4.0]


def test_normalized_observations_have_mean_zero_and_deviation_one(float64):
    values = jax.random.normal(jax.random.key(0), (50, 3)) * jnp.array([1.0, 5.0, 0.0]) + 2
    weights = (jnp.arange(50) % 3 > 0) * 1.0
    found = rl.fit_normalizer(values, weights)(values)[weights > 0]
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=0), [1, 1, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda e: rl.check_demonstrations(
                e, Batch(jnp.zeros((4, 3)), jnp.zeros((4, 2))), jnp.ones(2)
            ),
            r"observations have shape \(3,\); the environment's \(2,\)",
        ),
        (
            lambda e: rl.check_demonstrations(
                e, Batch(jnp.zeros((4, 2)), jnp.zeros(4)), jnp.ones(2)
            ),
            r"actions have shape \(\); the environment's have \(2,\)",
        ),
        (
            lambda e: rl.check_demonstrations(
                e, Batch(jnp.zeros((4, 2)).at[2].set(jnp.nan), jnp.zeros((4, 2))), jnp.ones(2)
            ),
            "observation of row 2 is not finite",
        ),
        (
            lambda e: rl.subsample(
                jax.random.key(0), Batch(jnp.zeros(12), None), horizon=6, every=4
            ),
            "every is 4; use a divisor of the horizon 6",
        ),
        (
            lambda e: rl.subsample(
                jax.random.key(0), Batch(jnp.zeros(13), None), horizon=6, every=3
            ),
            "13 rows are no whole episodes",
        ),
        (lambda e: rl.clone(None, None, steps=0), "steps is 0"),
        (lambda e: rl.imitation_returns(None, e, calls=-1), "calls is -1"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make(point())


def test_good_demonstrations_pass_with_anything_in_dead_rows():
    batch = Batch(
        jnp.zeros((3, 2)).at[2].set(jnp.nan), jnp.zeros((3, 2)), jnp.array([1.0, 1.0, 0.0])
    )
    rl.check_demonstrations(point(), batch, jnp.ones(2))
