"""Tasks whose examples are collected with the current fast state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers import differences
from helpers.toys import classification_episode, linear_model
from metajax.types import Batch, Episode, Learner

WIND = jnp.array([0.3, -0.2])
KEY = jax.random.key(5)


def act(fast, noise):
    """Computes the actions of a policy: its output in each state plus noise."""
    return jnp.tanh(noise @ fast.params["body"]) @ fast.params["head"]["kernel"] + noise[:, :2] / 2


def rollout(meta, fast, key, task, *, size=6):
    """Acts in random states and observes the costs: evidence that depends on the policy."""
    states = jax.random.normal(key, (size, 4), meta.params["body"].dtype)
    actions = act(fast, states)
    return Batch({"states": states, "actions": actions}, (actions - task["goal"] - WIND) ** 2)


def cost(outputs, batch):
    """Computes a loss whose descent moves the outputs towards actions of low cost."""
    return jnp.mean(jnp.exp(-batch.targets) * (outputs - batch.inputs["actions"]) ** 2)


def policy(steps=2):
    """Makes a MAML learner that reads the states."""
    model = linear_model(5, 2)
    reads = metajax.Model(
        lambda key, inputs: model.init(key, inputs["states"]),
        lambda params, inputs: model.apply(params, inputs["states"]),
    )
    return metajax.maml(reads, cost, rule=optax.sgd(0.5), steps=steps)


COLLECT = metajax.TaskEvidence(rollout, functools.partial(rollout, size=4))


def tasks_of(count):
    """Draws keys and goals of tasks."""
    keys = jax.random.split(KEY, count)
    return keys, {"goal": jax.random.normal(jax.random.key(6), (count, 2))}


def setting():
    """Makes a learner, meta-parameters and three tasks."""
    learner = policy()
    keys, tasks = tasks_of(3)
    return learner, learner.init(KEY, {"states": jnp.zeros((1, 4))}), keys, tasks


OBJECTIVES = {
    "query": lambda learner, **more: metajax.query_objective(
        learner, metajax.Scoring(cost, chunk=3), **more
    ),
    "multi_step": lambda learner, **more: metajax.multi_step_objective(
        learner, cost, weights=jnp.array([0.3, 0.7]), **more
    ),
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_derivative_flows_through_collected_evidence(float64, name):
    learner, meta, keys, tasks = setting()
    task = jax.tree.map(lambda leaf: leaf[0], tasks)

    def loss(meta, evidence=COLLECT):
        return OBJECTIVES[name](learner, evidence=evidence)(meta, keys[0], task)[0]

    assert differences.relative_error(loss, meta) < 1e-7

    def stopped(meta, fast, *rest):
        return rollout(*jax.lax.stop_gradient((meta, fast)), *rest)

    @jax.jit
    @jax.grad
    def stopped_slope(meta):
        return loss(meta, COLLECT._replace(support=stopped))

    whole = jax.jit(jax.grad(loss))(meta).params["body"]
    short = stopped_slope(meta).params["body"]
    assert np.linalg.norm(whole - short) > 1e-2 * np.linalg.norm(whole)


def by_hand(learner, meta, key, task, calls):
    """Computes the query loss after each call, requesting the evidence in order."""
    start_key, adapt_key = jax.random.split(key)
    fast, found = learner.start(meta, start_key), []
    for call_key, learner_key in calls(key, adapt_key):
        support_key, query_key = (jax.random.fold_in(call_key, n) for n in (0x53555050, 0x51554552))
        fast = learner.adapt(meta, fast, learner_key, rollout(meta, fast, support_key, task))
        batch = COLLECT.query(meta, fast, query_key, task)
        found.append(cost(learner.predict(meta, fast, batch.inputs), batch))
    return jnp.stack(found)


def test_evidence_is_requested_with_the_current_fast_state(float64):
    learner, meta, keys, tasks = setting()
    key, task = keys[0], jax.tree.map(lambda leaf: leaf[0], tasks)
    once = by_hand(learner, meta, key, task, lambda key, adapt_key: [(key, adapt_key)])
    found, _ = OBJECTIVES["query"](learner, evidence=COLLECT)(meta, key, task)
    np.testing.assert_allclose(found, once[0], rtol=1e-10)

    def each(key, adapt_key):
        return [(k, k) for k in jax.random.split(adapt_key, 2)]

    losses = by_hand(learner, meta, key, task, each)
    found, metrics = OBJECTIVES["multi_step"](learner, evidence=COLLECT)(meta, key, task)
    np.testing.assert_allclose(found, 0.3 * losses[0] + 0.7 * losses[1], rtol=1e-10)
    np.testing.assert_allclose(metrics["loss"], losses[1], rtol=1e-10)
    outputs = metajax.objectives.query_outputs(learner, meta, key, task, evidence=COLLECT)
    assert outputs.shape == (4, 2)


def test_estimators_groups_and_devices_take_any_task():
    learner, meta, keys, tasks = setting()
    keys, tasks = tasks_of(4)
    objective = OBJECTIVES["query"](learner, evidence=COLLECT)
    expected = jax.jit(metajax.backprop(objective))(meta, keys, tasks)
    spread = metajax.over_tasks(
        metajax.task_mesh(jax.devices()[:2]), metajax.backprop(objective, tasks_at_once=1)
    )
    assert_close(jax.jit(spread)(meta, keys, tasks), expected)
    moved, metrics = jax.jit(metajax.reptile(learner, cost, evidence=COLLECT))(meta, keys, tasks)
    np.testing.assert_allclose(metrics["loss"], expected[1]["loss"], rtol=1e-5)
    assert np.abs(moved.params["body"]).max() > 1e-4
    # With one truncation per life, `pes` is `evolution`.
    estimator = metajax.metagrads.pes(learner, cost, sigma=0.1, unrolls=1, evidence=COLLECT)
    memory = jax.jit(estimator.init)(meta, keys, tasks)
    grads, _, metrics = jax.jit(estimator.update)(meta, memory, keys, tasks)
    evolved = jax.jit(metajax.metagrads.evolution(objective, sigma=0.1))(meta, keys, tasks)
    assert_close((grads, metrics), evolved)


def test_a_life_collects_anew_at_every_truncation():
    seen = Learner(
        init=lambda key, inputs: jnp.zeros(2),
        start=lambda meta, key, like: jnp.zeros((3, 2)),
        adapt=lambda meta, fast, key, batch: jnp.roll(fast, -1, axis=0).at[-1].set(batch.inputs[0]),
        predict=lambda meta, fast, inputs: fast,
    )

    def collect(meta, fast, key, task):
        # The next example depends on the previous one.
        noise = jax.random.normal(key, (1, 2))
        return Batch(noise + 10 * fast[-1], noise)

    estimator = metajax.metagrads.pes(
        seen,
        lambda outputs, batch: jnp.sum(outputs),
        sigma=0.1,
        unrolls=3,
        evidence=metajax.TaskEvidence(collect, collect),
    )
    memory = estimator.init(jnp.zeros(2), KEY[None], jnp.zeros(1))
    for _ in range(3):
        _, memory, _ = estimator.update(jnp.zeros(2), memory, KEY[None], jnp.zeros(1))
    first, second, third = memory.fasts[0, 0]
    noises = np.stack([first, second - 10 * first, third - 10 * second])
    assert np.abs(noises).max() < 5 and np.abs(noises).min() > 0
    assert np.abs(noises[:, None] - noises + np.eye(3)[..., None]).min() > 1e-3


def test_adversarial_and_sequence_objectives_request_evidence_too(float64):
    episode = classification_episode(KEY, shots=2, dtype=jnp.float64)
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5))
    meta = learner.init(KEY, episode.support.inputs)
    both = metajax.Episode(episode.query, episode.support)
    swapped = metajax.TaskEvidence(
        support=lambda meta, fast, key, task: task["late"],
        query=lambda meta, fast, key, task: task["early"],
        like=lambda task: task["late"],
    )
    task = {"early": episode.support, "late": episode.query}
    sequence = functools.partial(
        metajax.objectives.sequence_objective, learner, metajax.cross_entropy, presentations=2
    )
    assert_close(
        jax.jit(sequence(evidence=swapped))(meta, KEY, task), jax.jit(sequence())(meta, KEY, both)
    )
    attacked = functools.partial(
        metajax.objectives.adversarial_objective,
        learner,
        metajax.cross_entropy,
        metajax.objectives.Attack(0.2),
        attack_support=True,
    )
    assert_close(
        jax.jit(attacked(evidence=swapped))(meta, KEY, task), jax.jit(attacked())(meta, KEY, both)
    )


@pytest.mark.parametrize(("calls", "make"), [(1, "query"), (3, "multi_step"), (4, "pes")])
def test_a_task_starts_with_room_for_all_the_evidence_it_will_see(calls, make):
    rooms = []

    def start(meta, key, like=None):
        rooms.append(like)
        return meta

    keeps = Learner(None, start, lambda meta, fast, key, batch: fast, lambda meta, fast, x: x)
    task = Episode(*[Batch({"x": jnp.zeros((5, 2))}, jnp.zeros(5, jnp.int32))] * 2)
    collect = metajax.TaskEvidence(*[lambda meta, fast, key, task: task.support] * 2)

    def asked(**options):
        if make == "pes":
            estimator = metajax.metagrads.pes(keeps, loss_of_x, sigma=0.1, unrolls=calls, **options)
            tasks = jax.tree.map(lambda leaf: leaf[None], task)
            estimator.init(jnp.zeros(2), KEY[None], tasks)
        elif make == "multi_step":
            weights = jnp.full(calls, 1 / calls)
            only = metajax.multi_step_objective(keeps, loss_of_x, weights=weights, **options)
            only(jnp.zeros(2), KEY, task)
        else:
            metajax.query_objective(keeps, loss_of_x, **options)(jnp.zeros(2), KEY, task)
        return rooms[-1]

    def loss_of_x(outputs, batch):
        return jnp.sum(outputs["x"])

    expected = Batch(
        {"x": jax.ShapeDtypeStruct((5 * calls, 2), jnp.float32)},
        jax.ShapeDtypeStruct((5 * calls,), jnp.int32),
    )
    assert asked() == expected
    assert asked(evidence=collect) is None, "nothing is known of other evidence"
    assert asked(evidence=collect._replace(like=lambda task: task.query)) == expected


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)
