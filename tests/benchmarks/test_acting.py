"""The benchmark of acting runs the same episodes by NumPy, and shows medians of its parts."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import acting
from metajax import rl


def test_the_numpy_loop_runs_the_same_episodes():
    env = rl.envs.navigation(horizon=12)
    policy = rl.mlp_policy(env.actions, hidden=(4, 4))
    goals = jnp.array([[0.0, 0.2], [0.1, -0.4]])
    first = jax.jit(policy.init)(jax.random.key(0), jnp.zeros((1, 2)))
    first["head"]["log_std"] = jnp.full(2, -jnp.inf)  # no noise
    # One task's policy walks straight to its goal, and ends early.
    second = jax.tree.map(lambda leaf: leaf * 3, first)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    for leaves, towards in ((0, [0.0, 10.0]), (1, [0.5, -0.5])):
        params["head"]["bias"] = params["head"]["bias"].at[leaves].set(jnp.array(towards))

    def live(params, task):
        def act(seen):
            return policy.apply(params, seen)

        return rl.lived(env, act, jax.random.key(1), task, episodes=3, mode=True)

    expected = jax.jit(jax.vmap(live))(params, goals)
    found = acting.numpy_episodes(
        jax.device_get(params),
        np.asarray(goals),
        episodes=3,
        horizon=12,
        rng=np.random.default_rng(0),
    )
    assert not expected.alive[0].all() and expected.alive[1].all()
    for name in ("alive", "reward", "observation"):
        rows = np.moveaxis(found[name], 0, 2)  # [T, N, H, ...]
        alive = np.asarray(expected.alive)
        alive = alive[..., None] if rows.ndim > alive.ndim else alive
        ours = np.asarray(getattr(expected, name))
        np.testing.assert_allclose(np.where(alive, rows, 0), np.where(alive, ours, 0), atol=1e-5)


def test_the_parts_fit_each_other():
    options = acting.parse(["--quick"])
    iteration = acting.make_iteration(options)
    keys, lives = jax.eval_shape(iteration.rollout, iteration.state)
    assert lives.query.weights.shape == (4, 2 * 5) and lives.support.weights.shape == (4, 1, 2 * 5)
    meta, _, _ = jax.eval_shape(iteration.update, iteration.state, keys, lives)
    state, metrics = jax.eval_shape(iteration.whole, iteration.state)
    assert jax.tree.structure(meta) == jax.tree.structure(state.meta)
    assert "loss" in metrics


def test_parts_are_measured_in_turn(monkeypatch):
    calls = []
    layer = {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    state = types.SimpleNamespace(meta={"head": {**layer, "log_std": np.zeros(2, np.float32)}})
    iteration = acting.Iteration(
        state,
        rollout=lambda state: (calls.append("rollout"), None),
        update=lambda state, keys, lives: calls.append("update"),
        whole=lambda state: calls.append("whole"),
    )
    monkeypatch.setattr(acting, "make_iteration", lambda options: iteration)
    seconds = acting.measure(acting.parse(["--quick", "--rounds=2"]))
    assert calls == ["rollout", *["rollout", "update", "whole"] * 3]
    assert set(seconds) == set(acting.PARTS) and all(len(times) == 2 for times in seconds.values())


def test_medians_are_shown_with_their_shares():
    options = acting.parse(["--tasks=10", "--episodes=5", "--horizon=10"])
    seconds = {"rollout": [1, 9, 1], "update": [3, 3, 0], "whole": [2, 2, 2], "numpy": [4, 5, 4]}
    table = dict(acting.rows(seconds, options))
    assert table["training"] == "500 environment steps/s"
    assert table["rollouts alone"] == "1,000 environment steps/s"
    assert table["update"].endswith("75% of both parts") and "4.0 times" in table["NumPy loop"]
    assert "numpy" in table["versions"] and "device" in table["versions"]


def test_what_is_wrong_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        acting.parse(["--horizon=0"])
    assert len(capsys.readouterr().err.splitlines()) == 1
