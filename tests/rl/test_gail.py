"""Adversarial imitation: the optimal discriminator by enumeration, rewards, absorbing states, learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from metajax.types import Batch, Model

STATES, CHOICES = 3, 2


def tabular(horizon, *, ends=None):
    """Makes an environment of a few states; the task is their first distribution and transitions."""

    def sample(key):
        first, second = jax.random.split(key)
        begin = jax.random.dirichlet(first, jnp.ones(STATES))
        return begin, jax.random.dirichlet(second, jnp.ones(STATES), (STATES, CHOICES))

    def seen(state):
        return jax.nn.one_hot(state, STATES)

    def reset(key, task):
        state = jax.random.categorical(key, jnp.log(task[0]))
        return state, seen(state)

    def step(key, task, state, action):
        after = jax.random.categorical(key, jnp.log(task[1][state, action]))
        return rl.Step(
            after, seen(after), jnp.ones(()), after == (STATES if ends is None else ends)
        )

    return rl.Env(sample, reset, step, rl.Discrete(CHOICES), horizon)


def visited(task, policy, horizon):
    """Computes the mean probabilities [STATES, CHOICES] of states and actions over the steps."""
    begin, moves = task
    total, state = 0, begin
    for _ in range(horizon):
        both = state[:, None] * policy
        total, state = total + both / horizon, jnp.einsum("sa,sat->t", both, moves)
    return total


def every_pair(weights=None):
    states, actions = np.divmod(np.arange(STATES * CHOICES), CHOICES)
    flat = None if weights is None else jnp.asarray(weights).reshape(-1)
    return Batch(jnp.eye(STATES)[states], jnp.asarray(actions), flat)


def product_model():
    """Any function of a state and an action: bilinear in their codes."""

    def apply(params, features):
        states = jnp.pad(features[:, :STATES], ((0, 0), (0, 1)), constant_values=1.0)
        return jnp.einsum("bs,ba,sa->b", states, features[:, STATES:], params)

    return Model(lambda key, features: jnp.zeros((STATES + 1, CHOICES)), apply)


def test_the_optimal_discriminator_is_the_log_ratio_of_what_is_visited(float64):
    @jax.jit
    def drawn():
        task = tabular(5).sample(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1))
        policies = (jax.random.dirichlet(key, jnp.ones(CHOICES), (STATES,)) for key in keys)
        return [visited(task, policy, 5) for policy in policies]

    ours, theirs = drawn()
    # Classes count by half each, whatever the sums of their weights.
    batches = every_pair(ours * 7), every_pair(theirs * 2)
    judge = rl.discriminator(rl.Discrete(CHOICES), model=product_model(), entropy=0.0)
    shape = (STATES + 1, CHOICES)

    @jax.jit
    def loss(flat):
        return judge.loss(flat.reshape(shape), jax.random.key(3), *batches)[0]

    @jax.jit
    def newton(flat):  # There are more parameters than pairs, hence the pseudo-inverse.
        return flat - jnp.linalg.pinv(jax.hessian(loss)(flat), rtol=1e-12) @ jax.grad(loss)(flat)

    flat = jnp.zeros(shape).reshape(-1)
    for _ in range(12):
        flat = newton(flat)
    found = jax.jit(judge.logits)(flat.reshape(shape), *batches)
    np.testing.assert_allclose(found, jnp.log(theirs / ours).reshape(-1), atol=1e-9)
    # Its loss is log 2 less the Jensen-Shannon divergence.
    mid = (ours + theirs) / 2
    divergence = jnp.sum(ours * jnp.log(ours / mid) + theirs * jnp.log(theirs / mid)) / 2
    assert float(loss(flat)) == pytest.approx(float(jnp.log(2) - divergence), abs=1e-12)


@pytest.mark.parametrize("sign", ["positive", "negative", "difference"])
def test_rewards_of_both_signs(sign, float64):
    logits = jnp.linspace(-5, 5, 11)
    d = 1 / (1 + np.exp(-np.asarray(logits)))
    wanted = {"positive": -np.log(1 - d), "negative": np.log(d), "difference": np.log(d / (1 - d))}
    found = rl.learned_reward(logits, sign=sign)
    np.testing.assert_allclose(found, wanted[sign], rtol=1e-10)
    batch = every_pair(np.arange(6) % 2)
    judge = rl.discriminator(rl.Discrete(CHOICES), model=product_model(), sign=sign)
    params = jax.random.normal(jax.random.key(0), (STATES + 1, CHOICES))
    kept = rl.learned_reward(judge.logits(params, batch, batch), sign=sign) * (np.arange(6) % 2)
    np.testing.assert_allclose(judge.reward(params, batch, batch), kept)


def uniform(observation):
    return rl.Categorical(jnp.zeros((observation.shape[0], CHOICES)))


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_a_constant_discriminator_gives_no_advantage_at_a_fixed_horizon(sign, float64):
    env = tabular(20)
    task = env.sample(jax.random.key(0))
    judge = rl.discriminator(env.actions, sign=sign)

    @jax.jit
    def estimates(key):
        lives = rl.lived(env, uniform, key, task, episodes=10)
        rows = rl.visits(lives)
        params = judge.init(jax.random.key(2), rows)
        judged = rl.rewarded(judge, params, lives, rows, discount=1.0)
        options = {"trace": 0.97, "normalize": False}
        fitted = rl.advantages(discount=1.0, **options)(judged)
        none = rl.advantages(discount=0.995, baseline="none", **options)(judged)
        return judged.reward, fitted.advantage, none.advantage

    reward, fitted, none = estimates(jax.random.key(1))
    np.testing.assert_allclose(jnp.abs(reward), np.log(2), rtol=1e-12)
    assert float(jnp.abs(fitted).max()) < 1e-3 * 20 * np.log(2)  # the ridge of the baseline
    np.testing.assert_allclose(none, jnp.broadcast_to(none[:1], none.shape), atol=1e-12)


def shaken(params):
    """Adds noise to parameters, so that the last layer is not zero."""
    return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(3), x.shape), params)


@functools.cache
def ended(horizon=6):
    """Trajectories of an environment that ends in state 2, some early, one in its last step, one never."""
    env = tabular(horizon, ends=2)
    task = (
        jnp.array([0.4, 0.5, 0.1]),
        jnp.full((STATES, CHOICES, STATES), jnp.array([0.5, 0.3, 0.2])),
    )
    live = jax.jit(lambda key: rl.lived(env, uniform, key, task, episodes=16))
    lives = live(jax.random.key(4))
    assert len(set(lives.alive.sum(axis=1).tolist())) > 3
    assert lives.terminated[:, -1].any() and (lives.alive[:, -1] & ~lives.terminated[:, -1]).any()
    return env, lives


@pytest.mark.parametrize("forever", [False, True])
def test_the_absorbing_state_pays_until_the_horizon_or_forever(forever, float64):
    env, lives = ended()
    judge = rl.discriminator(env.actions, hidden=(5,), absorbing=True, sign="difference")
    discount, horizon = 0.9, env.horizon

    @jax.jit
    def rewards():
        rows = rl.visits(lives)
        params = shaken(judge.init(jax.random.key(2), rows))
        found = rl.rewarded(judge, params, lives, rows, discount=discount, forever=forever)
        return found.reward, judge.reward(params, rows, rows).reshape(lives.reward.shape)

    found, each = map(np.asarray, rewards())
    gone = each[~np.asarray(lives.alive)]
    assert np.ptp(gone) < 1e-12 and abs(gone[0]) > 0.1
    for n in range(len(each)):
        length = int(lives.alive[n].sum())
        wanted = np.where(np.asarray(lives.alive[n]), each[n], 0)
        if bool(lives.terminated[n].any()):
            steps = 2000 if forever else horizon - length
            wanted[length - 1] += sum(discount**k * gone[0] for k in range(1, steps + 1))
        np.testing.assert_allclose(found[n], wanted, atol=1e-9)


def test_with_absorbing_states_a_constant_discriminator_prefers_no_length(float64):
    env, lives = ended()

    @functools.partial(jax.jit, static_argnums=0)
    def returns(absorbing):
        judge = rl.discriminator(env.actions, absorbing=absorbing)
        rows = rl.visits(lives)
        params = judge.init(jax.random.key(2), rows)
        judged = rl.rewarded(judge, params, lives, rows, discount=0.9)
        return rl.discounted_sums(judged.reward, 0.9)[:, 0]

    assert float(jnp.ptp(returns(True))) < 1e-12 < 0.1 < float(jnp.ptp(returns(False)))


@pytest.mark.parametrize(("sign", "pays"), [("positive", 1), ("negative", -1), ("difference", 0)])
def test_the_sign_of_a_constant_discriminator_prefers_long_or_short_episodes(sign, pays, float64):
    env, lives = ended()

    @jax.jit
    def returns():
        judge = rl.discriminator(env.actions, sign=sign)
        rows = rl.visits(lives)
        params = judge.init(jax.random.key(2), rows)
        return rl.rewarded(judge, params, lives, rows, discount=1.0).reward.sum(axis=1)

    lengths = np.asarray(lives.alive.sum(axis=1))
    np.testing.assert_allclose(returns(), pays * lengths * np.log(2), atol=1e-12)


@pytest.mark.parametrize("absorbing", [False, True])
def test_what_dead_steps_hold_changes_nothing(absorbing, float64):
    env, lives = ended()
    rows = rl.visits(lives)
    dead = rows.weights == 0
    spoiled = rows._replace(
        inputs=jnp.where(dead[:, None], jnp.nan, rows.inputs),
        targets=jnp.where(dead, 1, rows.targets),
    )
    judge = rl.discriminator(env.actions, hidden=(5,), absorbing=absorbing, gradient_penalty=1.0)

    @jax.jit
    def results(rows):
        params = shaken(judge.init(jax.random.key(2), rows))
        loss = jax.value_and_grad(judge.loss, has_aux=True)(params, jax.random.key(4), rows, rows)
        return judge.reward(params, rows, rows), loss

    found = results(rows)
    jax.tree.map(np.testing.assert_array_equal, found, results(spoiled))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
    assert bool((found[0][dead] == 0).all()) is not absorbing


def test_gradient_penalty_and_entropy_against_their_definitions(float64):
    own = Batch(jnp.array([[2.0], [2.0]]), jnp.array([[0.0], [0.0]]))
    expert = Batch(jnp.array([[-1.0], [1.0]]), jnp.array([[0.5], [-0.5]]))  # features ±1
    key = jax.random.key(0)

    def loss(apply, **options):
        model = Model(lambda key, features: jnp.array([3.0, 4.0]), apply)
        options = {"entropy": 0.0, **options}
        judge = rl.discriminator(rl.Continuous(1), model=model, **options)
        return float(judge.loss(jnp.array([3.0, 4.0]), key, own, expert)[0])

    def linear(params, features):
        return features @ params

    penalty = loss(linear, gradient_penalty=2.0) - loss(linear)
    assert penalty == pytest.approx(2 * (5 - 1) ** 2)  # the slope is (3, 4) everywhere

    # The slope of |x|^2 / 2 is x: on the way from (2, 0) to (-1, 1) or (1, -1), where mixes are uniform.
    def bent(params, features):
        return jnp.sum(features**2, axis=1) / 2

    keys = jax.random.split(key, 4000)
    model = Model(lambda key, features: (), bent)
    judge = rl.discriminator(rl.Continuous(1), model=model, entropy=0.0, gradient_penalty=1.0)
    plain = rl.discriminator(rl.Continuous(1), model=model, entropy=0.0)
    found = jax.jit(jax.vmap(lambda key: judge.loss((), key, own, expert)[0]))(keys)
    found = found - plain.loss((), key, own, expert)[0]
    mixes = np.linspace(0, 1, 100_001)[:, None, None]
    points = np.array([2.0, 0.0]) + mixes * (np.array([[-1.0, 1.0], [1.0, -1.0]]) - [2.0, 0.0])
    wanted = np.mean((np.linalg.norm(points, axis=-1) - 1) ** 2)
    assert abs(float(found.mean()) - wanted) < 4 * float(found.std()) / np.sqrt(len(keys))

    d = 1 / (1 + np.exp(-np.array([6.0, 6.0, -3.0 + 4.0, 3.0 - 4.0])))
    entropies = -d * np.log(d) - (1 - d) * np.log(1 - d)
    bonus = loss(linear) - loss(linear, entropy=0.1)
    assert bonus == pytest.approx(0.1 * (entropies[:2].mean() + entropies[2:].mean()) / 2)


EXPERT = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])


def problem(policy, improve, *, episodes=100, **options):
    """Adversarial imitation of an expert of a tabular problem, and the distance from what it visits."""
    env = tabular(8)
    task = env.sample(jax.random.key(0))
    record = rl.demonstrations(
        env, lambda task, seen: rl.Categorical(jnp.log(seen @ EXPERT)), episodes=200
    )
    data = rl.Demonstrated(task, jax.jit(record)(jax.random.key(1), task))
    judge = rl.discriminator(env.actions, model=product_model())
    options = {"steps": 5, "optimizer": optax.adam(0.1), **options}
    gail = rl.make_gail(env, policy, judge, improve, episodes=episodes, **options)
    wanted = visited(task, EXPERT, env.horizon)

    def distance(state):
        outputs = policy.apply(state.meta.policy, jnp.eye(STATES))
        own = jax.nn.softmax(rl.policy_of(outputs).logits)
        return float(jnp.abs(visited(task, own, env.horizon) - wanted).sum() / 2)

    return gail, data, distance


def test_the_policy_comes_to_visit_what_the_expert_visits():
    policy = rl.mlp_policy(rl.Discrete(CHOICES), hidden=())
    improve = rl.trust_region(
        rl.policy_outputs(policy), max_kl=0.003, damping=0.01, backtracks=5, cg_steps=4
    )
    gail, data, distance = problem(policy, improve)
    state = jax.jit(gail.init)(jax.random.key(2), data.support)
    assert distance(state) > 0.3
    state, metrics = jax.jit(metajax.many_steps(gail.step, 40))(state, data)
    assert distance(state) < 0.07
    assert float(metrics["kl"].max()) <= 0.003 + 1e-6
    # The expert and the policy cannot be told apart any more.
    assert float(metrics["accuracy"][-10:].mean()) < 0.55 < float(metrics["accuracy"][:3].mean())


def test_clipped_steps_with_a_critic_learn_too_and_a_resumed_run_is_the_same():
    policy = rl.mlp_policy(rl.Discrete(CHOICES), hidden=(), critic=True)
    loss = rl.clipped(epsilon=0.2, value_cost=0.5)
    improve = rl.on_rows(policy, loss, optax.adam(0.01), epochs=2, minibatches=2)
    gail, data, distance = problem(policy, improve, baseline="value", policy_entropy=1e-3)
    state = jax.jit(gail.init)(jax.random.key(2), data.support)
    steps = jax.jit(metajax.train.steps_up_to(gail.step, 40))
    whole, metrics = steps(state, data, 40)
    half, _ = steps(state, data, 15)
    again, _ = steps(half, data, 25)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        assert bool((one == other).all())
    assert int(whole.step) == 40 and bool(jnp.isfinite(metrics["loss"]).all())
    assert distance(state) > 0.3 and distance(whole) < 0.07


def test_one_epoch_of_one_minibatch_is_a_gradient_step_and_dead_minibatches_are_skipped(float64):
    env, lives = ended()
    policy = rl.mlp_policy(env.actions, hidden=(4,))
    loss, rows = rl.clipped(), lives.alive.size

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def improved(epochs, minibatches, counted):
        params = policy.init(jax.random.key(0), jnp.eye(STATES))
        batch = rl.as_batch(lives, rl.advantages())
        batch = batch._replace(weights=batch.weights * (jnp.arange(rows) < counted))
        improve = rl.on_rows(policy, loss, optax.sgd(0.1), epochs=epochs, minibatches=minibatches)
        several = jax.tree.map(lambda x: x[None], batch)
        keys = jax.random.split(jax.random.key(2), 1)
        found, *_ = improve.update(params, improve.init(params), jax.random.key(1), keys, several)
        grads = jax.grad(lambda p: loss(policy.apply(p, batch.inputs), batch))(params)
        return found, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *improved(1, 1, rows))
    # Of minibatches of two rows most have nothing that counts.
    found, _ = improved(2, rows // 2, 1)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))


def test_improvements_in_turn_move_policy_and_value():
    policy = rl.mlp_policy(rl.Discrete(CHOICES), hidden=(), critic=True)
    improve = rl.in_turn(
        rl.trust_region(rl.policy_outputs(policy), damping=0.1, backtracks=3, cg_steps=3),
        rl.on_rows(policy, rl.value_loss, optax.sgd(0.1), epochs=1, minibatches=1),
    )
    gail, data, _ = problem(policy, improve, baseline="value", episodes=20)
    state = jax.jit(gail.init)(jax.random.key(2), data.support)
    new, metrics = jax.jit(gail.step)(state, data)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.meta.policy, new.meta.policy)
    assert moved["head"]["kernel"] and moved["critic"]["head"]["kernel"]
    assert 0 < float(metrics["kl"]) <= 0.01


def fewshot(**options):
    """A learner that adapts both networks to experts of a tabular problem, with one task's evidence."""
    env = tabular(4)
    policy = rl.mlp_policy(env.actions, hidden=())
    judge = rl.discriminator(env.actions, hidden=(6,))
    learner = rl.gail_learner(
        env,
        policy,
        judge,
        **{
            "policy_rule": optax.sgd(2.0),
            "judge_rule": optax.sgd(5.0),
            "baseline": "none",
            **options,
        },
    )

    def expert(task, seen):
        return rl.Categorical(jnp.log(seen @ task[2]))

    inner = env._replace(
        sample=lambda key: (
            *env.sample(key),
            jax.random.dirichlet(key, jnp.ones(2) / 2, (STATES,)),
        ),
    )
    return (
        inner,
        learner,
        rl.demonstration_episode(inner, expert, shots=8, queries=8),
        policy,
        judge,
    )


def test_fewshot_adapts_by_one_step_of_each_network(float64):
    env, learner, draw, policy, judge = fewshot(normalize=False, trace=1.0)
    evidence = rl.gail_evidence(learner, env, episodes=6)

    @jax.jit
    def both_ways():
        task = draw(jax.random.key(0), env.sample(jax.random.key(1)))
        meta = learner.init(jax.random.key(2), task.support.inputs)
        fast = learner.start(meta, jax.random.key(3))
        own, expert = compared = evidence.to_adapt(meta, fast, jax.random.key(4), task)
        found = learner.adapt(meta, fast, jax.random.key(5), compared).params
        key = jax.random.key(6)
        grads = jax.grad(lambda p: judge.loss(p, key, own, expert)[0])(meta.discriminator)
        judged = jax.tree.map(lambda p, g: p - 5 * g, meta.discriminator, grads)
        # A horizon of 4, no end by itself: returns to go of the learned reward.
        reward = judge.reward(judged, own, expert).reshape(6, 4)
        togo = [sum(0.995**k * reward[:, t + k] for k in range(4 - t)) for t in range(4)]
        advantage = jnp.stack(togo, axis=1).reshape(-1)
        own = own._replace(targets=own.targets._replace(advantage=advantage))
        loss = rl.policy_gradient(curvature="lvc")
        grads = jax.grad(lambda p: loss(policy.apply(p, own.inputs), own))(meta.policy)
        wanted = jax.tree.map(lambda p, g: p - 2 * g, meta.policy, grads)
        return found, rl.GailParams(wanted, judged), meta

    found, wanted, meta = both_ways()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, wanted)
    assert jax.tree.leaves(found)[0].dtype == jnp.float64
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, meta)
    assert all(max(jax.tree.leaves(part)) > 1e-3 for part in moved)


def test_the_metagradient_of_both_starts_against_finite_differences(float64):
    env, learner, draw, *_ = fewshot(steps=2, policy_rule=optax.sgd(0.5), baseline="linear")
    evidence = rl.gail_evidence(learner, env, episodes=6)

    @jax.jit
    def drawn():
        task = draw(jax.random.key(0), env.sample(jax.random.key(1)))
        meta = learner.init(jax.random.key(2), task.support.inputs)
        meta = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(3), x.shape), meta)
        fast = learner.start(meta, jax.random.key(3))
        return task, meta, evidence.to_adapt(meta, fast, jax.random.key(4), task)

    task, meta, fixed = drawn()
    given = metajax.TaskEvidence(lambda *_: fixed, evidence.query)
    objective = metajax.query_objective(learner, rl.imitation_loss, evidence=given)
    value_and_grads = jax.jit(
        jax.value_and_grad(lambda meta: objective(meta, jax.random.key(5), task)[0])
    )
    _, grads = value_and_grads(meta)

    def value(meta):
        return value_and_grads(meta)[0]

    for part in ("policy", "discriminator"):
        own = getattr(grads, part)
        length = optax.tree.norm(own)
        assert float(length) > 1e-3
        ahead = jax.tree.map(jnp.zeros_like, meta)._replace(**{part: own})
        size = 1e-5 / length
        up, down = (
            value(jax.tree.map(lambda m, d, s=s: m + s * d, meta, ahead)) for s in (size, -size)
        )
        assert float((up - down) / (2 * size)) == pytest.approx(float(length**2), rel=1e-5)


def test_fewshot_training_moves_both_starts_and_lowers_the_loss_after_adapting():
    env, learner, draw, *_ = fewshot()
    evidence = rl.gail_evidence(learner, env, episodes=20)

    def sample(data, key):
        task_key, draw_key = jax.random.split(key)
        return draw(draw_key, env.sample(task_key))

    objective = metajax.query_objective(learner, rl.imitation_loss, evidence=evidence)
    optimizer = optax.adam(0.05)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=16)
    meta = learner.init(jax.random.key(0), jnp.eye(STATES))
    state = metajax.init_state(meta, optimizer, jax.random.key(1))
    state, metrics = jax.jit(metajax.many_steps(step, 40))(state, None)
    losses = metrics["loss"]
    assert float(losses[-10:].mean()) < float(losses[:5].mean()) - 0.02
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, state.meta, meta).discriminator)) > 0.1

    # Reptile moves both starts by what the learner adapted, towards where it came.
    def of_task(key):
        task = sample(None, key)
        grads, _ = metajax.reptile(learner, rl.imitation_loss, evidence=evidence)(
            meta, key[None], jax.tree.map(lambda x: x[None], task)
        )
        fast = metajax.objectives.adapt_to_task(learner, meta, key, task, evidence=evidence)
        return grads, jax.tree.map(jnp.subtract, meta, fast.params)

    grads, wanted = jax.jit(of_task)(jax.random.key(2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, wanted)
    assert all(float(optax.tree.norm(part)) > 0.01 for part in grads)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rl.learned_reward(jnp.zeros(1), sign="both"), "sign is 'both'"),
        (lambda: rl.discriminator(rl.Discrete(2), sign="both"), "sign is 'both'"),
        (lambda: problem(None, None, steps=0), "steps is 0"),
        (lambda: fewshot(steps=-1), "steps is -1"),
        (lambda: fewshot(baseline="value"), "baseline is 'value'"),
        (lambda: rl.on_rows(None, None, optax.sgd(1.0), epochs=0), "epochs is 0"),
    ],
)
def test_bad_options_are_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()
