"""Trials of policies that read their own history (RL2)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.rl_worlds import walk
from metajax import rl

EPISODES, HORIZON = 3, 4


def learner_of(env, **options):
    return rl.reading_policy(metajax.learners.gru_model(6), env.actions, **options)


def first_meta(env, learner, *, scale=3.0):
    """Draws parameters, larger than at the start: predictions depend on what was read."""
    inputs = env.reset(jax.random.key(0), env.sample(jax.random.key(1)))[1][None]
    return jax.tree.map(lambda leaf: scale * leaf, learner.init(jax.random.key(2), inputs))


def a_trial(*, vectors=False, task=0.7, reading=None, **options):
    env = walk(horizon=HORIZON, vectors=vectors)
    learner = learner_of(env, **(reading or {}))
    meta = first_meta(env, learner)
    trial = rl.trials(learner, env, episodes=EPISODES, **options)
    batch = jax.jit(trial)(meta, jax.random.key(3), jnp.asarray(task))
    return env, learner, meta, batch


TABLES = {"transitions": True, "head_units": 5}


@pytest.mark.parametrize(("vectors", "reading"), [(False, None), (True, None), (False, TABLES)])
def test_replaying_gives_what_was_recorded(vectors, reading):
    _, learner, meta, batch = a_trial(vectors=vectors, reading=reading)
    alive = np.asarray(batch.weights) > 0
    ends = np.asarray(batch.targets.ends)
    assert 0 < alive.mean() < 1 and ends.sum() == EPISODES
    outputs, _ = jax.jit(rl.trial_outputs(learner))(meta, jax.random.key(9), batch)
    decisions = batch.targets
    for ours, theirs in zip(
        jax.tree.leaves(outputs.policy), jax.tree.leaves(decisions.behavior), strict=True
    ):
        np.testing.assert_allclose(np.asarray(ours)[alive], np.asarray(theirs)[alive], atol=1e-5)
    now, then = (
        policy.log_prob(decisions.action) for policy in (outputs.policy, decisions.behavior)
    )
    np.testing.assert_allclose(np.asarray(now)[alive], np.asarray(then)[alive], atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(outputs.value)[alive], np.asarray(decisions.value)[alive], atol=1e-5
    )
    # Predictions differ from step to step: the test would see a state that is lost.
    spread = np.ptp(np.asarray(jax.tree.leaves(outputs.policy)[0])[alive], axis=0)
    assert spread.max() > 0.1


def test_replaying_at_once_is_replaying_row_by_row(float64):
    _, learner, meta, batch = a_trial()
    plain = learner._replace(adapt=lambda *args: learner.adapt(*args))
    key = jax.random.key(4)

    @jax.jit
    def both(meta):
        def of_one(learner):
            outputs = rl.trial_outputs(learner)(meta, key, batch)[0]
            objective = rl.trial_objective(learner, rl.clipped(value_cost=0.5))
            return outputs, jax.grad(lambda meta: objective(meta, key, batch)[0])(meta)

        return of_one(learner), of_one(plain)

    for ours, theirs in zip(*map(jax.tree.leaves, both(meta)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


def test_the_last_reward_of_an_episode_is_read():
    _, learner, meta, batch = a_trial()
    last = int(np.flatnonzero(np.asarray(batch.targets.ends))[0])
    key, seen = jax.random.key(4), batch.inputs[:1]

    @jax.jit
    def after(reward, ends):
        targets = batch.targets._replace(
            reward=batch.targets.reward.at[last].set(reward),
            ends=batch.targets.ends.at[last].set(ends),
        )
        first = jax.tree.map(lambda leaf: leaf[:HORIZON], batch._replace(targets=targets))
        fast = learner.adapt(meta, learner.start(meta, key), key, first)
        return fast, learner.predict(meta, fast, seen).policy.logits

    fast, logits = after(0.0, True)
    for other, change in ((after(1.0, True), "reward"), (after(0.0, False), "end")):
        assert float(jnp.abs(other[0].last - fast.last).max()) == 1, change
        assert float(jnp.abs(other[1] - logits).max()) > 1e-3, change
    # In the trial itself, too: the first prediction of the second episode has read that reward.
    start = learner.predict(meta, learner.start(meta, key), batch.inputs[HORIZON : HORIZON + 1])
    recorded = batch.targets.behavior.logits[HORIZON]
    assert float(jnp.abs(start.policy.logits[0] - recorded).max()) > 1e-3
    first = jax.tree.map(lambda leaf: leaf[:HORIZON], batch)
    fast = learner.adapt(meta, learner.start(meta, key), key, first)
    again = learner.predict(meta, fast, batch.inputs[HORIZON : HORIZON + 1])
    np.testing.assert_allclose(again.policy.logits[0], recorded, atol=1e-5)


def test_transitions_show_the_observation_that_a_decision_answered():
    _, learner, meta, batch = a_trial(reading={"transitions": True})
    key = jax.random.key(4)
    first = jax.tree.map(lambda leaf: leaf[:1], batch)
    begin = learner.start(meta, key)
    fast = learner.adapt(meta, begin, key, first)
    assert begin.last.shape == fast.last.shape and not begin.last.any()
    decisions = first.targets
    shown = [
        *np.eye(3)[np.asarray(decisions.action)[0]],
        decisions.reward[0],
        decisions.ends[0],
        *np.asarray(first.inputs)[0],
    ]
    np.testing.assert_allclose(fast.last, shown)


def test_the_hidden_layer_of_the_head_sees_the_observation():
    env, learner, meta, batch = a_trial(reading={"head_units": 5})
    key = jax.random.key(4)
    fast = learner.start(meta, key)
    inputs = batch.inputs[:1]
    _, hidden = learner.adapt.walk(meta, fast, jax.tree.map(lambda leaf: leaf[:1], batch))
    outputs = learner.predict(meta, fast, inputs)
    both = np.concatenate([np.asarray(hidden), np.asarray(inputs)], axis=1)
    for layers, found in (
        (meta.head, outputs.policy.logits),
        (meta.critic, outputs.value[:, None]),
    ):
        layer = layers["hidden"]
        features = np.maximum(both @ layer["kernel"] + layer["bias"], 0)
        np.testing.assert_allclose(
            found, features @ layers["kernel"] + layers["bias"], rtol=1e-5, atol=1e-6
        )
    with pytest.raises(ValueError, match="head_units is -1; use 0 or more"):
        learner_of(env, head_units=-1)


def test_the_state_lasts_for_the_trial_and_no_longer():
    _, learner, meta, batch = a_trial()
    key = jax.random.key(4)

    @jax.jit
    def states():
        start = learner.start(meta, key)
        whole = learner.adapt(meta, start, key, batch)
        parts = start
        for index in range(EPISODES):
            rows = slice(index * HORIZON, (index + 1) * HORIZON)
            parts = learner.adapt(
                meta, parts, key, jax.tree.map(lambda leaf, r=rows: leaf[r], batch)
            )
        one = start
        for index in range(EPISODES * HORIZON):  # a row at a time, as in the trial
            row = jax.tree.map(lambda leaf, i=index: leaf[i : i + 1], batch)
            one = learner.adapt(meta, one, key, row)
        return start, whole, parts, one

    start, whole, *others = states()
    for other in others:
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert float(jnp.abs(whole.state[0] - start.state[0]).max()) > 0.1
    for leaf in jax.tree.leaves(start):
        assert float(jnp.abs(leaf).max()) == 0


def test_order_matters():
    _, learner, meta, batch = a_trial(task=5.0)
    key = jax.random.key(4)
    adapt = jax.jit(lambda batch: learner.adapt(meta, learner.start(meta, key), key, batch))
    backwards = jax.tree.map(lambda leaf: leaf[::-1], batch)
    assert float(jnp.abs(adapt(batch).state[0] - adapt(backwards).state[0]).max()) > 1e-2


def test_advantages_run_over_the_ends_of_episodes(float64):
    estimate = rl.advantages(discount=0.9, baseline="none", normalize=False)
    *_, batch = a_trial(advantage=estimate)
    alive = np.asarray(batch.weights) > 0
    assert not alive.all()
    reward = np.asarray(batch.targets.reward)
    lived = reward[alive]  # steps after an end take no time
    true = [np.sum(lived[t:] * 0.9 ** np.arange(len(lived) - t)) for t in range(len(lived))]
    np.testing.assert_allclose(np.asarray(batch.targets.advantage)[alive], true, atol=1e-12)
    assert np.all(reward[~alive] == 0)


def test_what_follows_an_end_changes_no_gradient(float64):
    _, learner, meta, batch = a_trial()
    objective = rl.trial_objective(learner, rl.clipped(value_cost=0.5, entropy_bonus=0.1))

    @jax.jit
    def gradient(batch):
        return jax.grad(lambda meta: objective(meta, jax.random.key(4), batch)[0])(meta)

    alive = np.asarray(batch.weights) > 0
    changed = batch._replace(
        inputs=jnp.where(alive[:, None], batch.inputs, 7.0),
        targets=batch.targets._replace(
            action=jnp.where(alive, batch.targets.action, 2),
            reward=jnp.where(alive, batch.targets.reward, 3.0),
            advantage=jnp.where(alive, batch.targets.advantage, 9.0),
        ),
    )
    for a, b in zip(
        jax.tree.leaves(gradient(batch)), jax.tree.leaves(gradient(changed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("vectors", [False, True])
def test_gradients_by_finite_differences(vectors, float64):
    _, learner, meta, batch = a_trial(vectors=vectors)
    objective = rl.trial_objective(
        learner, rl.clipped(epsilon=5.0, value_cost=0.5, entropy_bonus=0.1)
    )
    # Away from where it acted, so that ratios are not one.
    meta = jax.tree.map(lambda leaf: 1.1 * leaf + 0.01, meta)
    flat, back = jax.flatten_util.ravel_pytree(meta)
    direction = jax.random.normal(jax.random.key(5), flat.shape)

    @jax.jit
    def loss(shift):
        return objective(back(flat + shift * direction), jax.random.key(4), batch)[0]

    slope = float(jax.jit(jax.grad(loss))(0.0))
    step = 1e-5
    found = float(loss(step) - loss(-step)) / (2 * step)
    assert slope == pytest.approx(found, rel=1e-7) and abs(slope) > 1e-2


def test_the_trust_region_takes_trials():
    env = rl.envs.bandit(3, pulls=1)
    learner = learner_of(env)
    meta = first_meta(env, learner, scale=1.0)
    improve = rl.trust_region(rl.trial_outputs(learner), max_kl=0.01)
    live = rl.trials(learner, env, episodes=5)
    step = rl.make_step(
        live,
        improve,
        lambda data, key: env.sample(key),
        num_tasks=8,
        prepare=rl.normalize_over_tasks,
    )
    state, metrics = jax.jit(step)(metajax.init_state(meta, improve, jax.random.key(1)), None)
    assert 0 < float(metrics["kl"]) <= 0.01
    change = jax.tree.map(jnp.subtract, state.meta, meta)
    assert float(optax.tree.norm(change)) > 0


def test_numbers_that_are_refused():
    env = walk()
    with pytest.raises(ValueError, match="episodes is 0; use 1 or more"):
        rl.trials(learner_of(env), env, episodes=0)
    with pytest.raises(ValueError, match="initial_std is 0; use a number above 0"):
        rl.reading_policy(metajax.learners.gru_model(6), rl.Continuous(1), initial_std=0)
    with pytest.raises(ValueError, match="initial_std is -1; use a number above 0"):
        rl.mlp_policy(rl.Continuous(1), initial_std=-1)


def scaled_trials(factor=1.0, seed=0):
    """Draws trials [5, 6] with rewards times a factor; some steps were not taken."""
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(3, 2, (5, 6)), rng.normal(size=(5, 6))
    weights = np.ones((5, 6))
    weights[1, 3] = weights[2, 4:] = 0
    reward, value = reward * weights, value * weights
    ends = np.zeros((5, 6), bool)
    ends[:, 2] = True  # of an episode, not of the trial
    zeros = np.zeros((5, 6))
    decisions = rl.Decisions(zeros, factor * reward, ends, None, zeros, zeros, value)
    return metajax.Batch(zeros, decisions, weights)


def test_standardized_values_by_their_definition(float64):
    discount, trace = 0.9, 0.4
    given = scaled_trials()
    reward, value, weights = given.targets.reward, given.targets.value, given.weights
    found = rl.standardize_values(given, discount=discount, trace=trace).targets
    tasks, steps = reward.shape

    def follow(task):  # numbers of a task's steps that were taken, in order
        return np.flatnonzero(weights[task])

    returns = np.zeros_like(reward)
    for task in range(tasks):
        taken = follow(task)
        for i, t in enumerate(taken):
            returns[task, t] = sum(discount**j * reward[task, u] for j, u in enumerate(taken[i:]))
    mean = np.zeros_like(reward)
    for task in range(tasks):
        for t in range(steps):
            others = [returns[o, t] for o in range(tasks) if o != task and weights[o, t]]
            mean[task, t] = np.mean(others)
    taken = weights > 0
    deviation = np.sqrt(np.mean((returns - mean)[taken] ** 2))
    values = mean + deviation * value
    for task in range(tasks):
        rows = [*follow(task), None]
        for i, t in enumerate(rows[:-1]):
            wanted = 0.0
            for j, (now, after) in enumerate(zip(rows[i:], rows[i + 1 :], strict=False)):
                following = 0.0 if after is None else values[task, after]
                delta = reward[task, now] + discount * following - values[task, now]
                wanted += (discount * trace) ** j * delta
            np.testing.assert_allclose(found.advantage[task, t], wanted, atol=1e-12)
    np.testing.assert_allclose(found.returns[taken], ((returns - mean) / deviation)[taken])
    assert not np.asarray(found.advantage)[~taken].any()


def test_a_single_task_is_standardized_by_its_own_returns():
    one = jax.tree.map(lambda leaf: leaf[:1], scaled_trials())
    found = rl.standardize_values(one, discount=1.0, trace=1.0).targets
    returns = np.cumsum(one.targets.reward[0, ::-1])[::-1]
    np.testing.assert_allclose(found.returns[0], returns / np.sqrt(np.mean(returns**2)), rtol=1e-5)


@pytest.mark.parametrize("scale", ["standard", "raw"])
def test_the_size_of_rewards_does_not_change_the_update_of_standardized_values(scale):
    env = walk(horizon=HORIZON)
    learner = learner_of(env)
    meta = first_meta(env, learner, scale=1.0)
    trial = jax.vmap(rl.trials(learner, env, episodes=EPISODES), (None, 0, 0))
    keys = jax.random.split(jax.random.key(3), 6)
    lives = jax.jit(trial)(meta, keys, jnp.linspace(0.2, 0.9, 6))
    improve = rl.several(
        metajax.backprop(rl.trial_objective(learner, rl.clipped(value_cost=0.5))), optax.sgd(0.1)
    )

    @jax.jit
    def moved(factor):
        targets = lives.targets
        paid = lives._replace(targets=targets._replace(reward=factor * targets.reward))
        if scale == "standard":
            ready = rl.standardize_values(paid, trace=0.5)
        else:  # as `advantages(baseline="value")` of the trial itself
            sums = rl.discounted_sums(paid.targets.reward, 0.99)
            advantage = sums - targets.value
            ready = paid._replace(targets=targets._replace(advantage=advantage, returns=sums))
        ready = rl.normalize_over_tasks(ready)
        # What was read stays as it was: it is the learning from rewards that is looked at.
        ready = ready._replace(targets=ready.targets._replace(reward=targets.reward))
        return improve.update(meta, improve.init(meta), keys[0], keys, ready)[0]

    once, often = moved(1.0), moved(100.0)
    steps = jax.tree.map(lambda new, old: new - old, (once, often), (meta, meta))
    apart = optax.tree.norm(jax.tree.map(lambda a, b: a - b, *steps))
    relative = float(apart / optax.tree.norm(steps[0]))
    assert relative < 1e-4 if scale == "standard" else relative > 1


def test_a_memory_recalls_what_followed_the_same_observation(float64):
    seen, decision, keys, values = 3, 4, 3, 2
    model = rl.with_recall(
        metajax.learners.gru_model(5), decision=decision, keys=keys, values=values
    )
    params = model.init(jax.random.key(0), 2 * seen + decision, jnp.float64)
    # Keys that are observations: a table.
    params = params._replace(keys=jnp.eye(seen + 1)[:, :seen])
    rng = np.random.default_rng(0)
    places = [0, 1, 0, 2, 0, 1]
    state, table = model.start(params), np.zeros((seen, values))
    for before, now in itertools.pairwise(places):
        what = rng.normal(size=decision)
        vector = np.concatenate([np.eye(seen)[now], what, np.eye(seen)[before]])
        value, gate = np.split(vector @ params.values + params.bias, 2)
        table[before] += value * np.tanh(gate)
        hidden = state.model
        state, output = model.step(params, state, jnp.asarray(vector))
        np.testing.assert_allclose(output[-values:], table[now], rtol=1e-10)
        plain = metajax.learners.gru_model(5).step(
            params.model, hidden, jnp.concatenate([vector, table[now]])
        )
        np.testing.assert_allclose(output[:-values], plain[1], rtol=1e-10)
    # Where there is nothing to see, all visits are alike.
    blind = params._replace(keys=jnp.ones((seen + 1, keys)))
    nothing = jnp.concatenate([jnp.zeros(seen), jnp.ones(decision), jnp.zeros(seen)])
    once, first = model.step(blind, model.start(blind), nothing)
    np.testing.assert_allclose(model.step(blind, once, nothing)[1][-values:], 2 * first[-values:])
    with pytest.raises(ValueError, match="Vectors of 9 numbers are no two observations"):
        model.init(jax.random.key(0), 9, jnp.float64)
    with pytest.raises(ValueError, match="keys is 0; use 1 or more"):
        rl.with_recall(metajax.learners.gru_model(5), decision=4, keys=0)
