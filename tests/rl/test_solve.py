"""Yardsticks against enumeration, against each other, and against what is simulated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import rl
from metajax.rl import solve, strategies

KEY = jax.random.key(0)


def tables(states, choices):
    """Draws transitions and rewards of a random MDP."""
    draw = np.random.default_rng(0)
    moves = draw.dirichlet(np.ones(states), size=(states, choices))
    return jnp.asarray(moves), jnp.asarray(draw.normal(size=(states, choices)))


def test_plan_is_the_best_of_all_policies(float64):
    """Every deterministic policy that may depend on the step: 2^6 of three steps in two states."""
    transitions, rewards = tables(2, 2)
    policies = np.array(list(itertools.product(range(2), repeat=6))).reshape(-1, 3, 2)

    @jax.jit
    def values(policies):
        value = functools.partial(
            solve.episode_value, transitions, rewards, horizon=3, discount=0.9
        )
        return jax.vmap(value)(jax.nn.one_hot(policies, 2))[:, 0]

    found = solve.plan(transitions, rewards, horizon=3, discount=0.9)
    every = values(policies)
    np.testing.assert_allclose(found.value[0], every.max(0), rtol=1e-12)
    (number,) = np.flatnonzero((policies == np.asarray(found.choice)).all((1, 2)))
    np.testing.assert_allclose(every[number], every.max(0), rtol=1e-12)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99])
def test_value_iteration_is_the_best_of_all_policies(discount, float64):
    transitions, rewards = tables(3, 2)
    policies = np.array(list(itertools.product(range(2), repeat=3)))

    @jax.jit
    def values(policies):
        value = functools.partial(solve.policy_value, transitions, rewards, discount=discount)
        return jax.vmap(value)(jax.nn.one_hot(policies, 2))

    found = solve.value_iteration(transitions, rewards, discount=discount)
    np.testing.assert_allclose(found.value, values(policies).max(0), rtol=1e-12)
    ahead = rewards + discount * transitions @ found.value
    np.testing.assert_allclose(found.value, ahead.max(1), rtol=1e-12)  # Bellman's equation


def test_value_iteration_needs_no_float64():
    transitions, rewards = (table.astype(jnp.float32) for table in tables(3, 2))
    found = solve.value_iteration(transitions, rewards, discount=0.99)
    with jax.enable_x64(True):
        exact = solve.value_iteration(*tables(3, 2), discount=0.99)
    np.testing.assert_allclose(found.value, exact.value, rtol=1e-4)
    assert found.choice.tolist() == exact.choice.tolist()


def test_values_of_policies_agree_with_what_is_lived():
    """Episodes of a random policy in the environment: 2e5 steps for each of the two values."""
    discount = 0.8
    policy = jax.nn.softmax(jnp.asarray(np.random.default_rng(1).normal(size=(4, 3))))

    def act(seen):
        return rl.Categorical(jnp.log(seen @ policy))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def both(horizon, episodes):
        env = rl.envs.tabular_mdp(4, 3, horizon=horizon)
        task = env.sample(KEY)
        reward = rl.lived(env, act, KEY, task, episodes=episodes).reward
        discounted = reward @ discount ** jnp.arange(horizon)
        ends = solve.episode_value(*task, policy, horizon=horizon)[0, 0]
        return (
            reward.sum(1),
            ends,
            discounted,
            solve.policy_value(*task, policy, discount=discount)[0],
        )

    def standard_errors(found, true):
        return abs(found.mean() - true) / (found.std() / len(found) ** 0.5)

    totals, ends, _, _ = map(np.asarray, both(10, 20_000))
    assert standard_errors(totals, ends) < 4
    # From step 60 on all rewards together are discounted to less than 1e-5.
    _, _, discounted, endless = map(np.asarray, both(60, 3_000))
    assert standard_errors(discounted, endless) < 4
    assert standard_errors(totals, ends + 0.3) > 4  # the test has the power to see a difference


def test_bandit_values_are_the_known_ones():
    assert solve.bandit_value(1, 7) == pytest.approx(3.5, abs=1e-12)
    # Two pulls: 1/2, and then 2/3 after a success and 1/2, with the other arm, after a failure.
    assert solve.bandit_value(2, 2) == pytest.approx(1 / 2 + (2 / 3 + 1 / 2) / 2, abs=1e-12)
    assert solve.bandit_value(2, 10) == pytest.approx(6.0218, abs=5e-5)
    assert solve.bandit_value(5, 10) == pytest.approx(6.6600, abs=5e-5)


def expected(index, arms, pulls):
    """Computes the exact total reward of a strategy that takes the largest index, ties at random."""

    @functools.cache
    def value(counts, left):
        if not left:
            return 0.0
        scores = [index(wins, losses, pulls - left) for wins, losses in counts]
        best = [arm for arm, score in enumerate(scores) if score > max(scores) - 1e-6]
        return sum(pull(counts, arm, left) for arm in best) / len(best)

    def pull(counts, arm, left):
        (wins, losses), rest = counts[arm], counts[:arm] + counts[arm + 1 :]
        chance = (wins + 1) / (wins + losses + 2)
        after_win = value(tuple(sorted((*rest, (wins + 1, losses)))), left - 1)
        after_loss = value(tuple(sorted((*rest, (wins, losses + 1)))), left - 1)
        return chance * (1 + after_win) + (1 - chance) * after_loss

    return value(((0, 0),) * arms, pulls)


def mean(wins, losses):
    return (wins + 1) / (wins + losses + 2)


def bound(c):
    """Makes the index of UCB1."""

    def index(wins, losses, pull):
        return mean(wins, losses) + c * np.sqrt(2 * np.log(pull + 1) / (wins + losses + 2))

    return index


def whittle(wins, losses, pull):
    """Computes Whittle's approximation at the discount 0.99."""
    m, n = mean(wins, losses), wins + losses + 2
    return m + m * (1 - m) / (n * np.sqrt((1 / n - 2 * np.log(0.99)) * m * (1 - m)) + m - 0.5)


@pytest.mark.parametrize(
    ("strategy", "index", "published"),
    [
        (strategies.uniform(), lambda wins, losses, pull: 0, 5.0),
        (strategies.greedy(), lambda wins, losses, pull: mean(wins, losses), 6.62),
        (strategies.epsilon_greedy(0.0), lambda wins, losses, pull: mean(wins, losses), 6.62),
        (strategies.ucb1(0.2), bound(0.2), 6.66),
        (strategies.ucb1(1.0), bound(1.0), 5.80),
        (strategies.gittins(0.99), whittle, 6.6),
    ],
    ids=["uniform", "greedy", "epsilon_greedy", "ucb_0.2", "ucb_1", "gittins"],
)
def test_simulated_strategies_earn_their_exact_expectation(strategy, index, published):
    exact = expected(index, 5, 10)
    assert exact <= solve.bandit_value(5, 10)
    assert exact == pytest.approx(published, abs=0.05)
    found = strategies.play(strategy, KEY, arms=5, pulls=10, instances=20_000)
    assert float(found.interval) < 0.035
    assert abs(float(found.mean) - exact) < 4 * float(found.interval) / 1.96


@pytest.mark.parametrize(
    ("strategy", "published"), [(strategies.greedy(), 76.0), (strategies.ucb1(0.2), 78.2)]
)
def test_a_hundred_pulls_reward_exploration(strategy, published):
    found = strategies.play(strategy, KEY, arms=5, pulls=100, instances=6_000)
    assert abs(float(found.mean) - published) < 4 * float(found.interval) / 1.96


def test_thompson_sampling_earns_what_its_probabilities_give():
    """Two arms and two pulls: exact by the probability that one Beta draw exceeds the other."""
    # First any arm. P(Beta(2, 1) > U) = 2/3 after a success, P(Beta(1, 2) > U) = 1/3 after a failure.
    second = (2 / 3 * 2 / 3 + 1 / 3 * 1 / 2) / 2 + (1 / 3 * 1 / 3 + 2 / 3 * 1 / 2) / 2
    found = strategies.play(strategies.thompson(), KEY, arms=2, pulls=2, instances=20_000)
    assert abs(float(found.mean) - (0.5 + second)) < 4 * float(found.interval) / 1.96


def test_optimistic_draws_are_never_below_the_mean():
    """An arm of mean 0.9 with many pulls against one of mean 1/2: chosen unless 1/2's draw exceeds 0.9."""
    wins, losses = jnp.array([8999.0, 0.0]), jnp.array([999.0, 0.0])

    @functools.partial(jax.jit, static_argnums=0)
    def share(optimistic):
        strategy = strategies.thompson(optimistic=optimistic)
        keys = jax.random.split(KEY, 4000)
        # The mean of the second arm, 1/2, replaces half of its draws; the arm at 0.45 loses to it always.
        worse = jnp.array([4499.0, 0.0]), jnp.array([5499.0, 0.0])
        arms = [
            jax.vmap(strategy, (0, None, None, None))(keys, *counts, 0)
            for counts in ((wins, losses), worse)
        ]
        return jnp.stack([jnp.mean(arm == 1) for arm in arms])

    plain, optimistic = share(False), share(True)
    np.testing.assert_allclose(plain, [0.1, 0.55], atol=0.04)
    np.testing.assert_allclose(optimistic, [0.1, 1.0], atol=0.04)


def exact_gittins(wins, losses, discount, ahead=400):
    """Computes the index by bisection: the sure reward per pull that is worth as much as the arm."""
    low, high = 0.0, 1.0
    for _ in range(22):
        sure = (low + high) / 2
        n = wins + losses + 2 + ahead
        means = (wins + 1 + np.arange(ahead + 1)) / n
        value = np.maximum(sure, means) / (1 - discount)
        for left in range(ahead, 0, -1):
            m = (wins + 1 + np.arange(left)) / (wins + losses + 2 + left - 1)
            stop = sure / (1 - discount)
            go = m * (1 + discount * value[1 : left + 1]) + (1 - m) * discount * value[:left]
            value = np.maximum(stop, go)
        low, high = (sure, high) if go[0] > stop else (low, sure)
    return low


def test_whittles_index_is_near_gittins():
    """The known exact index 0.8699 of a new arm at the discount 0.99 is a check of the exact one."""
    assert exact_gittins(0, 0, 0.99) == pytest.approx(0.8699, abs=5e-4)
    for wins, losses in ((0, 0), (1, 0), (0, 1), (3, 3), (6, 2)):
        near = strategies.gittins_index(jnp.float32(wins), jnp.float32(losses), 0.99)
        assert float(near) == pytest.approx(exact_gittins(wins, losses, 0.99), abs=0.04)


def test_posterior_sampling_earns_what_was_published():
    """Ten episodes of ten steps: 138.1 in RL2's comparison, of 1000 instances; 100 at random, 218 at best."""
    found = strategies.psrl(rl.envs.tabular_mdp(), KEY, episodes=10, instances=64)
    assert abs(float(found.mean) - 138.1) < 4 * float(found.interval) / 1.96
    assert float(found.interval) < 8


def test_posterior_sampling_finds_the_optimum():
    env, instances = rl.envs.tabular_mdp(2, 2, horizon=5, noise=0.1), 32

    @jax.jit
    @jax.vmap
    def best(key):
        task = env.sample(jax.random.split(key)[0])  # the task of the instance with this key
        return solve.plan(*task, horizon=5).value[0, 0]

    optimum = float(best(jax.random.split(KEY, instances)).mean())
    found = strategies.psrl(env, KEY, episodes=100, instances=instances)
    assert 0.94 * optimum < float(found.mean) / 100 < 1.005 * optimum


def test_the_oracle_of_navigation_is_as_near_as_steps_allow():
    env = rl.envs.navigation(horizon=20)
    goals = rl.envs.navigation_tasks(40)

    @jax.jit
    @jax.vmap
    def returns(goal):
        act = solve.straight_to(goal)
        lives = rl.lived(env, act, KEY, goal, episodes=1, mode=True)
        return lives.reward.sum(), lives.alive.sum()

    found, steps = returns(goals)
    left = np.abs(np.asarray(goals))[:, None] - 0.1 * np.arange(1, 21)[:, None]
    nearest = -np.sqrt((np.maximum(left, 0) ** 2).sum(-1)).sum(-1)  # of all points in reach
    # The episode may end up to 0.01 short of the goal.
    np.testing.assert_allclose(found, nearest, atol=0.015)
    assert float(found.mean()) == pytest.approx(-0.49, abs=0.01)
    assert steps.max() <= 5


def test_the_expert_of_the_arm_reaches_its_targets():
    env = rl.envs.reacher()
    keys = jax.random.split(KEY, 100)

    @jax.jit
    @jax.vmap
    def lives(key):
        task = env.sample(key)
        chance = lambda seen: rl.Normal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))  # noqa: E731
        wild = rl.lived(env, chance, key, task, episodes=1)
        life = rl.lived(env, solve.reach(task), key, task, episodes=1, mode=True)
        return life.reward.sum(), life.reward[0, -1], wild.reward.sum()

    expert, last, wild = lives(keys)
    assert float(expert.mean()) == pytest.approx(-15, abs=2)
    assert float(wild.mean()) < -45
    assert -0.02 < float(jnp.median(last)) < 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solve.plan(*tables(2, 2), horizon=0), "horizon is 0; use 1 or more"),
        (
            lambda: solve.value_iteration(*tables(2, 2), discount=1.0),
            "discount is 1.0; an infinite",
        ),
        (lambda: solve.bandit_value(0, 3), "arms is 0; use 1 or more"),
        (
            lambda: solve.straight_to(jnp.zeros(2), step_size=0),
            "step_size is 0; use a number above 0",
        ),
        (lambda: strategies.epsilon_greedy(2), "epsilon is 2; use a number in"),
        (lambda: strategies.ucb1(-1), "c is -1; use 0 or more"),
        (lambda: strategies.gittins(1.0), "discount is 1.0; use a number in"),
        (
            lambda: strategies.play(strategies.greedy(), KEY, arms=2, pulls=2, instances=1),
            "instances is 1; use 2 or more",
        ),
        (
            lambda: strategies.psrl(rl.envs.tabular_mdp(), KEY, episodes=0, instances=2),
            "episodes is 0; use 1 or more",
        ),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tables_must_belong_together():
    transitions, rewards = tables(3, 2)
    with pytest.raises(AssertionError):
        solve.plan(transitions, rewards.T, horizon=2)
