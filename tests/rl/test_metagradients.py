"""Meta-gradients of sampled experience against exact ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.rl_worlds import DISCOUNT, RETURNS, Enumerated, table_policy
from metajax import rl
from metajax.types import Batch, Episode, Model

STEP = 0.5


@pytest.mark.parametrize("curvature", ["dice", "none"])
def test_sampled_meta_gradient(curvature, float64):
    every, lives, episodes = Enumerated(3), 32, 3000  # about 1e5 episodes to adapt to
    dice = rl.policy_gradient(curvature="dice", discount=DISCOUNT)
    inner = rl.policy_gradient(curvature=curvature, discount=DISCOUNT)
    # `none` leaves the discount from the start of an episode to the advantage.
    advantage = RETURNS if curvature == "dice" else from_the_start
    # Losses are means over the steps, so that the step size has the horizon as a factor.
    rule = optax.sgd(STEP * every.horizon)
    learner = metajax.maml(table_policy(every.logits), inner, rule=rule)
    env = every.env()
    evidence = rl.on_policy(learner, env, episodes=episodes, advantage=advantage)
    objective = metajax.query_objective(learner, dice, evidence=evidence)
    meta = learner.init(jax.random.key(0), jnp.zeros(1, int))

    @jax.jit
    def gradients(meta, keys):
        def one(key):
            return jax.grad(lambda meta: objective(meta, key, jnp.zeros(()))[0])(meta)

        return jax.lax.map(one, keys).params["logits"] * -every.horizon

    found = np.asarray(gradients(meta, jax.random.split(jax.random.key(1), lives)))

    def after(logits):
        return every.value(logits + STEP * jax.grad(every.value)(logits))

    exact = np.asarray(jax.jit(jax.grad(after))(jnp.asarray(every.logits)))
    errors = np.abs(found.mean(0) - exact) / (found.std(0, ddof=1) / np.sqrt(lives))
    if curvature == "dice":
        assert errors.max() < 4
    else:  # and these are enough samples to tell them apart
        assert errors.max() > 8


def from_the_start(lived):
    """Estimates advantages whose discount begins with the episode."""
    found = RETURNS(lived)
    scale = DISCOUNT ** jnp.arange(lived.reward.shape[1])
    return found._replace(advantage=found.advantage * scale)


REWARDS = np.array([0.3, -1.0, 2.0])
LOGITS = np.array([0.2, 0.7, -0.4])


def arms_policy():
    """Makes a policy whose logits are its parameters, whatever it observes."""
    return Model(
        lambda key, inputs: {"logits": jnp.asarray(LOGITS)},
        lambda params, inputs: rl.Categorical(
            jnp.broadcast_to(params["logits"], (len(inputs), len(LOGITS)))
        ),
    )


def pulls(logits, arms):
    """Makes the experience of arms [N] that a policy with these logits pulled, an episode each."""
    reward = jnp.asarray(REWARDS)[arms]
    nothing, ends = jnp.zeros_like(reward), jnp.ones(len(arms), bool)
    behavior = rl.Categorical(jnp.broadcast_to(logits, (len(arms), len(logits))))
    decisions = rl.Decisions(arms, reward, ends, behavior, reward, reward, nothing)
    return Batch(jnp.zeros((len(arms), 1)), decisions, jnp.ones(len(arms)))


@pytest.mark.parametrize("samples", [1, 2])
def test_exploration_term_is_unbiased(samples, float64):
    """All samples of the arms before adapting, and of the arm after: formulation II without bias."""

    def learner(curvature):
        rule = optax.sgd(STEP)
        return metajax.maml(arms_policy(), rl.policy_gradient(curvature=curvature), rule=rule)

    maml = learner("none")
    every = jnp.asarray(list(itertools.product(range(3), repeat=samples)))
    meta, key = maml.init(jax.random.key(0), jnp.zeros((1, 1))), jax.random.key(1)

    def adapted(meta, arms):
        batch = pulls(jax.lax.stop_gradient(meta.params["logits"]), arms)
        return maml.adapt(meta, maml.start(meta, key), key, batch).params["logits"], batch

    def expected_return(meta):
        chance = jnp.prod(jax.nn.softmax(meta.params["logits"])[every], axis=1)
        after = jax.vmap(lambda arms: adapted(meta, arms)[0])(every)
        return jnp.sum(chance * (jax.nn.softmax(after) @ REWARDS))

    def expected_gradient(meta, curvature="none", **options):
        objective = rl.lifetime_objective(
            learner(curvature), rl.policy_gradient(curvature="lvc"), **options
        )

        def of_sample(arms, arm):
            after, batch = adapted(meta, arms)
            support = jax.tree.map(lambda leaf: leaf[None], batch)
            life = Episode(support, pulls(after, arm[None]))
            slope = jax.grad(lambda meta: objective(meta, key, life)[0])(meta)
            chance = jnp.prod(jax.nn.softmax(meta.params["logits"])[arms])
            return -chance * jax.nn.softmax(after)[arm] * slope.params["logits"]

        each = jax.vmap(lambda arms: jax.vmap(lambda arm: of_sample(arms, arm))(jnp.arange(3)))
        return jnp.sum(each(every), axis=(0, 1))

    def baseline(life):  # of nothing but the task
        return jnp.mean(jnp.asarray(REWARDS))

    exact, plain, less, left_out, twice = jax.jit(
        lambda meta: (
            jax.grad(expected_return)(meta).params["logits"],
            expected_gradient(meta, exploration=1.0),
            expected_gradient(meta, exploration=1.0, exploration_baseline=baseline),
            expected_gradient(meta),
            expected_gradient(meta, exploration=1.0, curvature="lvc"),
        )
    )(meta)
    np.testing.assert_allclose(plain, exact, atol=1e-12)
    np.testing.assert_allclose(less, exact, atol=1e-12)
    assert float(jnp.abs(left_out - exact).max()) > 1e-2
    assert float(jnp.abs(twice - exact).max()) > 1e-2


LOW, CENTER, STD, RATE, EPISODES, SIGMA = 0.4, 1.1, 0.5, 0.1, 4, 0.3


def parabola():
    """Makes a bandit whose reward is minus the squared distance of the action from the task."""
    return rl.Env(
        lambda key: jnp.asarray(CENTER),
        lambda key, task: (jnp.zeros(()), jnp.zeros(1)),
        lambda key, task, state, action: rl.Step(
            state, jnp.zeros(1), -((action[0] - task) ** 2), jnp.array(False)
        ),
        rl.Continuous(1),
        1,
    )


def aim():
    """Makes a policy with a mean to learn and a fixed deviation."""

    def apply(params, inputs):
        mean = jnp.broadcast_to(params["mean"], (len(inputs), 1))
        return rl.Normal(mean, jnp.full_like(mean, np.log(STD)))

    return Model(lambda key, inputs: {"mean": jnp.asarray([LOW])}, apply)


def test_evolution_of_the_return_after_adapting(float64):
    loss = rl.policy_gradient(curvature="none")
    learner = metajax.maml(aim(), loss, rule=optax.sgd(RATE))
    plain = rl.advantages(discount=1.0, baseline="none", normalize=False)
    objective = rl.return_after(learner, parabola(), episodes=EPISODES, calls=1, advantage=plain)
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    tasks = 4000
    keys = jax.random.split(jax.random.key(1), tasks)
    meta_grad = jax.jit(metajax.metagrads.evolution(objective, sigma=SIGMA, pairs=4))
    grads, metrics = meta_grad(meta, keys, jnp.full(tasks, CENTER))
    # One step moves the mean by RATE times g, the mean of (e / s) r over N actions, e ~ N(0, 1). With
    # d = mean - center: E g = -2 d, Var g = (d^4 / s^2 + 14 d^2 + 15 s^2) / N; and smoothing adds the moments
    # of a normal to d.
    d, s = LOW - CENTER, STD
    d2, d4 = d**2 + SIGMA**2, d**4 + 6 * d**2 * SIGMA**2 + 3 * SIGMA**4
    spread = RATE**2 / EPISODES
    loss = (1 - 2 * RATE) ** 2 * d2 + spread * (d4 / s**2 + 14 * d2 + 15 * s**2) + s**2
    slope = 2 * (1 - 2 * RATE) ** 2 * d
    slope += spread * ((4 * d**3 + 12 * d * SIGMA**2) / s**2 + 28 * d)
    error = float(jnp.sqrt(metrics["grad_variance"] / tasks))
    found = float(grads.params["mean"][0])
    assert abs(found - slope) < 4 * error < 0.2 * abs(slope)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=0.05)
    assert float(metrics["return_0"]) == pytest.approx(-(d2 + s**2), rel=0.05)
    assert float(metrics["loss"]) == -float(metrics["return_1"])


def test_returns_after_each_call_are_those_of_a_life(float64):
    loss = rl.policy_gradient(curvature="none")
    learner = metajax.maml(aim(), loss, rule=optax.sgd(RATE))
    options = {"episodes": 3, "calls": 2, "advantage": RETURNS}
    meta, key = learner.init(jax.random.key(0), jnp.zeros((1, 1))), jax.random.key(1)
    env, task = parabola(), jnp.asarray(CENTER)

    @jax.jit
    def everything(meta):
        life = rl.live(learner, env, **options)(meta, key, task)
        returns = jax.vmap(lambda batch: rl.mean_return(None, batch))(life.support)
        returns = jnp.append(returns, rl.mean_return(None, life.query))
        _, found = rl.return_after(learner, env, **options)(meta, key, task)
        _, greedy = rl.return_after(learner, env, mode=True, **options)(meta, key, task)
        outputs, _ = rl.lifetime_outputs(learner)(meta, key, life)
        return returns, found, greedy, outputs.mean[0, 0]

    returns, found, greedy, mean = everything(meta)
    for index in range(3):
        assert float(found[f"return_{index}"]) == pytest.approx(float(returns[index]), rel=1e-12)
    # The most likely actions are the means, of the same adapted policies.
    assert float(greedy["return_0"]) == pytest.approx(-((LOW - CENTER) ** 2), rel=1e-12)
    assert float(greedy["return_2"]) == pytest.approx(-((float(mean) - CENTER) ** 2), rel=1e-12)
    none = rl.return_after(learner, env, episodes=3, calls=0)
    assert sorted(jax.eval_shape(none, meta, key, task)[1]) == ["loss", "return_0"]
    with pytest.raises(ValueError, match="calls is -1; use 0 or more"):
        rl.return_after(learner, env, episodes=3, calls=-1)
