"""The contract of every registered learner that can act: it adapts to decisions and answers observations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers.contract import POLICIES
from metajax import rl
from metajax.inner.adjoints import ADJOINTS
from metajax.types import Batch
from metajax.zoo.ingredients import Ingredients
from metajax.zoo.learners import LEARNERS, make_learner

ROWS, TASKS = 6, 3
ACTIONS = {"choices": rl.Discrete(3), "vectors": rl.Continuous(2, -1.0, 1.0)}


def experience(actions, key):
    """Rows of two episodes, of which the last row is dead."""
    keys = jax.random.split(key, 4)
    policy = rl.Categorical(jnp.zeros((ROWS, 3)))
    if isinstance(actions, rl.Continuous):
        policy = rl.Normal(jnp.zeros((ROWS, 2)), jnp.zeros((ROWS, 2)))
    reward = jax.random.normal(keys[0], (ROWS,))
    ends = jnp.array([False, True, False, False, True, False])
    decisions = rl.Decisions(
        policy.sample(keys[1]), reward, ends, policy, reward, reward, jnp.zeros(ROWS)
    )
    weights = jnp.array([1.0, 1, 1, 1, 1, 0])
    return Batch(jax.random.normal(keys[2], (ROWS, 4)), decisions, weights)


@functools.cache
def setting(name, kind):
    actions = ACTIONS[kind]
    model = rl.mlp_policy(actions, hidden=(5,))
    options = {"units": 4} if name == "rl2" else {}
    options |= {"context_size": 3} if name == "cavia" else {}
    learner = make_learner(
        name,
        Ingredients(
            model,
            rl.policy_gradient(),
            optax.sgd(0.3),
            0.3,
            2,
            ADJOINTS["reverse"],
            examples=ROWS,
            actions=actions,
            options=options,
        ),
    )
    batch = experience(actions, jax.random.key(0))
    meta = jax.jit(learner.init)(jax.random.key(1), batch.inputs)

    @jax.jit
    def answer(meta, key, batch):
        fast = learner.adapt(meta, learner.start(meta, key), key, batch)
        return fast, learner.predict(meta, fast, batch.inputs)

    return learner, meta, batch, answer


@pytest.fixture(params=[(name, kind) for name in POLICIES for kind in ACTIONS], ids="-".join)
def case(request):
    return request.param


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), a, b)


def test_adapting_keeps_the_state_and_changes_the_distribution(case):
    learner, meta, batch, answer = setting(*case)
    key = jax.random.key(2)
    fast, outputs = answer(meta, key, batch)
    like = jax.eval_shape(learner.start, meta, key)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fast) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    before = rl.policy_of(learner.predict(meta, learner.start(meta, key), batch.inputs))
    policy = rl.policy_of(outputs)
    assert float(jnp.max(before.kl(policy))) > 1e-7
    assert np.isfinite(policy.log_prob(batch.targets.action)).all()


def test_dead_rows_change_nothing(case):
    _, meta, batch, answer = setting(*case)
    reward = batch.targets.reward.at[-1].set(1e6)
    changed = batch._replace(
        inputs=batch.inputs.at[-1].set(7.0),
        targets=batch.targets._replace(reward=reward, advantage=reward),
    )
    key = jax.random.key(2)
    assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    assert_equal(answer(meta, key, batch)[0], answer(meta, key, changed)[0])


def test_many_tasks_at_once_equal_one_after_another(case):
    _, meta, _, answer = setting(*case)
    keys = jax.random.split(jax.random.key(3), TASKS)
    batches = [experience(ACTIONS[case[1]], key) for key in keys]
    together = jax.jit(jax.vmap(answer, (None, 0, 0)))(
        meta, keys, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    )
    for index, batch in enumerate(batches):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        close(own, answer(meta, keys[index], batch))


@pytest.mark.parametrize("kind", ACTIONS)
def test_pieces_equal_the_whole_where_the_zoo_says_so(kind):
    for name in POLICIES:
        learner, meta, batch, answer = setting(name, kind)
        if not LEARNERS[name].incremental:
            continue
        key, fast = jax.random.key(2), learner.start(meta, jax.random.key(2))
        for part in (slice(0, 2), slice(2, ROWS)):
            piece = jax.tree.map(lambda leaf, part=part: leaf[part], batch)
            fast = learner.adapt(meta, fast, key, piece)
        close(fast, answer(meta, key, batch)[0])
