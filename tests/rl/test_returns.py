"""Returns, advantages and baselines against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import rl
from metajax.rl.baselines import rounded_inverse
from metajax.rl.returns import normalized

DISCOUNT, TRACE = 0.9, 0.7


def by_definition(reward, value, last, alive, terminated, *, discount, trace, truncation):
    """Sums (discount trace)^l delta over all that follows, for each step by itself."""
    found = np.zeros(reward.shape)
    for n in range(len(reward)):
        steps = np.flatnonzero(alive[n])
        delta = {}
        for t, after in zip(steps, [*steps[1:], None], strict=True):
            ahead = (last[n] if truncation == "bootstrap" else 0) if after is None else None
            ahead = value[n, after] if ahead is None else ahead
            ahead = 0 if terminated[n, t] else ahead
            delta[t] = reward[n, t] + discount * ahead - value[n, t]
        for i, t in enumerate(steps):
            for power, later in enumerate(steps[i:]):
                found[n, t] += (discount * trace) ** power * delta[later]
                if terminated[n, later]:
                    break
    return found


def masks():
    """Rows that end early or not and by themselves or not, and trials with dead steps in between."""
    alive, terminated = np.ones((6, 8), bool), np.zeros((6, 8), bool)
    terminated[1, 7] = True  # by itself, in the very last step
    alive[2, 4:], terminated[2, 3] = False, True  # by itself, early
    alive[3, 4:] = False  # cut early
    alive[4, 2:4] = alive[4, 7:] = False  # a trial of two episodes
    alive[5, 3:4] = False
    terminated[5, 2] = True  # two episodes that do not hand on
    return alive, terminated


def numbers():
    draw = np.random.default_rng(0)
    return draw.normal(size=(6, 8)), draw.normal(size=(6, 8)), draw.normal(size=6)


@pytest.mark.parametrize("truncation", ["end", "bootstrap"])
@pytest.mark.parametrize("trace", [0.0, TRACE, 1.0])
def test_advantages_by_definition(trace, truncation, float64):
    (reward, value, last), (alive, terminated) = numbers(), masks()
    options = {"discount": DISCOUNT, "trace": trace, "truncation": truncation}
    found = rl.generalized_advantages(
        *map(jnp.asarray, (reward, value, last, alive, terminated)), **options
    )
    true = by_definition(reward, value, last, alive, terminated, **options)
    np.testing.assert_allclose(found, true, atol=1e-13)
    if truncation == "bootstrap":  # the two kinds of an end do differ
        assert abs(found[0, 7] - found[1, 7] - DISCOUNT * last[0]) > 1e-3
        assert found[1, 7] == pytest.approx(reward[1, 7] - value[1, 7])


def test_discounted_sums(float64):
    values, last = numbers()[0], numbers()[2]
    found = rl.discounted_sums(jnp.asarray(values), DISCOUNT, jnp.asarray(last))
    for t in range(8):
        powers = DISCOUNT ** np.arange(8 - t)
        true = values[:, t:] @ powers + DISCOUNT ** (8 - t) * last
        np.testing.assert_allclose(found[:, t], true, atol=1e-13)


def trajectories(dead):
    """Makes trajectories whose steps after an end hold the given number."""
    (reward, value, last), (alive, terminated) = numbers(), masks()
    seen = np.random.default_rng(1).normal(size=(6, 8, 2))
    logits = np.random.default_rng(2).normal(size=(6, 8, 3))
    fill = lambda array: np.where(  # noqa: E731
        alive.reshape(alive.shape + (1,) * (array.ndim - 2)), array, dead
    )
    ends = alive & (terminated | ~np.pad(alive[:, 1:], ((0, 0), (0, 1))))
    action = np.where(alive, 1, 0 if dead == 0 else 2)
    lived = rl.Trajectories(
        fill(seen),
        action,
        fill(reward),
        alive,
        terminated & alive,
        ends,
        rl.Categorical(fill(logits)),
        fill(value),
        seen[:, -1],
        last,
    )
    return jax.tree.map(jnp.asarray, lived)


@pytest.mark.parametrize("baseline", ["linear", "value", "none"])
def test_what_follows_an_end_changes_nothing(baseline, float64):
    model = rl.mlp_policy(rl.Discrete(3), hidden=(4,))
    params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    estimate = rl.advantages(discount=DISCOUNT, baseline=baseline)

    @jax.jit
    def losses_and_gradients(lived):
        batch = rl.as_batch(lived, estimate)

        def loss(params, curvature):
            outputs = model.apply(params, batch.inputs)
            found = rl.policy_gradient(curvature=curvature, discount=DISCOUNT)(outputs, batch)
            return found + rl.policy_kl(outputs, batch) + rl.mean_entropy(outputs, batch)

        each = [jax.value_and_grad(loss)(params, name) for name in ("lvc", "dice", "loaded")]
        return each, rl.mean_return(None, batch), batch.weights.sum()

    plain = losses_and_gradients(trajectories(0.0))
    for dead in (5.0, jnp.nan):
        for ours, other in zip(
            jax.tree.leaves(plain),
            jax.tree.leaves(losses_and_gradients(trajectories(dead))),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, other)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(plain))
    assert float(plain[-1]) == masks()[0].sum()


def test_gradients_of_advantages_pass_over_the_dead(float64):
    (reward, value, last), (alive, terminated) = numbers(), masks()

    @jax.jit
    def gradient(reward, value):
        def total(reward, value):
            parts = (reward, value, last, alive, terminated)
            return jnp.sum(rl.generalized_advantages(*parts, discount=DISCOUNT, trace=TRACE) ** 2)

        return jax.grad(total, (0, 1))(reward, value)

    plain = gradient(reward, value)
    other = gradient(*(np.where(alive, array, np.nan) for array in (reward, value)))
    for ours, theirs in zip(plain, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.all(np.asarray(ours)[~alive] == 0) and np.all(np.asarray(ours)[alive] != 0)


def linear_returns(draw, steps=40):
    seen = draw.uniform(-1, 1, size=(5, steps, 3))
    time = np.broadcast_to(np.arange(steps) / 100, (5, steps))
    returns = 3 + seen @ [2.0, -1.0, 0.5] - seen[..., 1] ** 2 + 4 * time - 7 * time**2 + time**3
    return seen, returns


@pytest.mark.parametrize("steps", [40, 5])
def test_baseline_meets_linear_returns(steps, float64):
    seen, returns = linear_returns(np.random.default_rng(0), steps)
    alive = np.random.default_rng(1).uniform(size=returns.shape) < 0.7
    garbage = np.where(alive, returns, 1e6), np.where(alive[..., None], seen, np.nan)
    found = rl.linear_baseline(jnp.asarray(seen), jnp.asarray(returns), jnp.ones_like(alive))
    np.testing.assert_allclose(found, returns, atol=1e-8)
    masked = rl.linear_baseline(*map(jnp.asarray, (garbage[1], garbage[0], alive)))
    np.testing.assert_allclose(np.asarray(masked)[alive], returns[alive], atol=1e-7)


def test_baseline_is_the_least_squares_fit(float64):
    draw = np.random.default_rng(0)
    seen, _ = linear_returns(draw)
    returns = draw.normal(size=(5, 40))
    time = np.broadcast_to(np.arange(40)[:, None] / 100, (5, 40, 1))
    features = np.concatenate([seen, seen**2, time, time**2, time**3, np.ones_like(time)], -1)
    features = features.reshape(200, -1)
    best, *_ = np.linalg.lstsq(features, returns.ravel(), rcond=None)
    found = rl.linear_baseline(jnp.asarray(seen), jnp.asarray(returns), jnp.ones((5, 40), bool))
    np.testing.assert_allclose(found.ravel(), features @ best, atol=1e-8)


def test_baseline_in_float32():
    seen, returns = linear_returns(np.random.default_rng(0))
    # A feature that says nothing, and one twice: nothing to invert, and no NaN.
    seen = np.concatenate([seen, seen[..., :1], np.zeros_like(seen[..., :1])], -1)
    numbers = (jnp.asarray(array, jnp.float32) for array in (seen, returns))
    found = jax.jit(rl.linear_baseline)(*numbers, jnp.ones(returns.shape, bool))
    np.testing.assert_allclose(found, returns, atol=1e-3)


def test_rank_deficient_features_of_many_tasks_meet_the_least_squares_fit(float64):
    draw = np.random.default_rng(0)
    angle = draw.uniform(-3, 3, size=(3, 5, 40, 1))
    # The squares of a sine and a cosine and the last feature, one: rank 7 of 10.
    seen = np.concatenate([np.sin(angle), np.cos(angle), np.sin(angle)], -1)
    returns, alive = draw.normal(size=(3, 5, 40)), draw.uniform(size=(3, 5, 40)) < 0.7
    alive[2, :], alive[2, 0, :2] = False, True  # one task of two steps: rank 2
    fit = jax.jit(jax.vmap(rl.linear_baseline))
    found = fit(*map(jnp.asarray, (seen, returns, alive)))
    rounded = fit(*(jnp.asarray(array, jnp.float32) for array in (seen, returns)), alive)
    time = np.broadcast_to(np.arange(40)[:, None] / 100, (5, 40, 1))
    for task in range(3):
        parts = [seen[task], seen[task] ** 2, time, time**2, time**3, np.ones_like(time)]
        features = np.concatenate(parts, -1)[alive[task]]
        assert np.linalg.matrix_rank(features) == (2 if task == 2 else 7)
        best, *_ = np.linalg.lstsq(features, returns[task][alive[task]], rcond=None)
        for fitted, atol in ((found, 1e-6), (rounded, 2e-3)):
            np.testing.assert_allclose(fitted[task][alive[task]], features @ best, atol=atol)
    # Nothing of LAPACK, whose threads have waited for each other forever.
    assert "custom" not in fit.lower(seen, returns, alive).as_text()


def test_what_rounding_makes_of_equal_features_is_no_nan(float64):
    noise = np.random.default_rng(0).normal(size=(4, 4)) * 3e-5
    gram = np.ones((4, 4)) + np.triu(noise, 1) + np.triu(noise, 1).T
    assert np.linalg.eigvalsh(gram)[0] < -1e-5  # no product of real features
    solve = rounded_inverse(jnp.asarray(gram, jnp.float32))
    weights = solve(jnp.ones(4, jnp.float32))
    weights += solve(1 - jnp.asarray(gram, jnp.float32) @ weights)
    np.testing.assert_allclose(np.ones(4) @ weights, 1, atol=1e-3)
    assert not jnp.isfinite(rounded_inverse(jnp.full((2, 2), jnp.nan))(jnp.ones(2))).any()


def test_the_inverse_and_its_derivative_are_exact(float64):
    half = np.random.default_rng(0).normal(size=(5, 9))
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    gram, wanted = half @ half.T, np.arange(5.0)

    def total(gram, solver):
        return jnp.sum(solver((gram + gram.T) / 2) ** 2)

    ours = jax.value_and_grad(total)(gram, lambda gram: rounded_inverse(gram)(wanted))
    true = jax.value_and_grad(total)(gram, lambda gram: jnp.linalg.solve(gram, wanted))
    for one, other in zip(ours, true, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_normalized_over_steps_that_were_taken(float64):
    values, (alive, _) = numbers()[0], masks()
    found = np.asarray(normalized(jnp.where(alive, values, jnp.nan), jnp.asarray(alive)))
    true = (values - values[alive].mean()) / values[alive].std()
    np.testing.assert_allclose(found[alive], true[alive], atol=1e-12)
    assert np.all(found[~alive] == 0)


def test_equal_advantages_stay_small():
    found = normalized(jnp.full((20, 100), 1000.1, jnp.float32), jnp.ones((20, 100), bool))
    assert float(jnp.abs(found).max()) < 0.1


def test_what_a_baseline_leaves_by_rounding_stays_small():
    seen, returns = linear_returns(np.random.default_rng(0), 5)
    alive = jnp.ones(returns.shape, bool)
    reward = returns - np.pad(returns[:, 1:], ((0, 0), (0, 1)))
    nothing, last = jnp.zeros(returns.shape), jnp.zeros(len(returns))
    seen, reward = jnp.asarray(seen, jnp.float32), jnp.asarray(reward, jnp.float32)
    lived = rl.Trajectories(
        seen, nothing, reward, alive, ~alive, ~alive, None, nothing, seen[:, -1], last
    )
    found = jax.jit(rl.advantages(discount=1.0))(lived)
    np.testing.assert_allclose(found.returns, returns, atol=1e-4)
    assert float(jnp.abs(found.advantage).max()) < 0.5
    noise = jax.random.normal(jax.random.key(0), reward.shape)
    other = jax.jit(rl.advantages(discount=1.0))(lived._replace(reward=reward + noise))
    assert float(jnp.std(other.advantage)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.1}, "discount is 1.1; use 0 to 1"),
        ({"trace": -0.1}, "trace is -0.1; use 0 to 1"),
        ({"baseline": "linaer"}, "baseline is 'linaer'"),
        ({"truncation": "stop"}, "truncation is 'stop'"),
        ({"truncation": "bootstrap"}, "linear baseline"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        rl.advantages(**options)
