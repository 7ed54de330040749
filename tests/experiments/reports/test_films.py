"""Films of policies: one frame per step, where bodies are, whom the view follows."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageSequence

from experiments.reports import films
from experiments.rl import driver
from experiments.rl.options import RlSettings, plan_of
from experiments.setup.experiment import Setup
from metajax.rl import envs


def frames(path):
    """Reads the frames of a film, as arrays of colors."""
    with Image.open(path) as film:
        return [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(film)]


def columns_drawn(frame):
    """Finds the mean column of the body's blue pixels."""
    distance = np.abs(frame - np.array([0x1F, 0x6F, 0xB4])).sum(axis=2)
    return np.nonzero(distance < 90)[1].mean()


def moves(speed, *, steps=4):
    """Makes bodies [1, 1, H, 3, 2] of an upright line of length one that moves along x."""
    line = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    places = speed * np.arange(steps)[:, None, None] * np.array([1.0, 0.0])
    return (line + places)[None, None]


@pytest.mark.parametrize(("speed", "followed"), [(0.5, False), (5.0, True)])
def test_bodies_move_in_the_film_unless_the_view_follows_them(speed, followed, tmp_path):
    alive = np.ones((1, 1, 4), bool)
    alive[..., 3:] = False
    path = films.film(
        tmp_path / "film.gif",
        bodies=[moves(speed)],
        alive=[alive],
        goals=None,
        names=["before"],
        title="a line",
        captions=["a task"],
    )
    shown = [columns_drawn(frame) for frame in frames(path)]
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]
    if followed:
        np.testing.assert_allclose(shown, shown[0], atol=2)
    else:  # Equal steps; the posture of the end stays, and is the same frame for longer.
        assert len(shown) == 3
        np.testing.assert_allclose(np.diff(shown), shown[1] - shown[0], atol=2)
        assert shown[1] - shown[0] > 10


def test_an_arm_is_filmed_before_and_after_it_adapts(tmp_path):
    flags = dict(env="reacher", horizon=3, episodes=1, hidden="4", test_calls=1, eval_episodes=2)
    plan = plan_of(RlSettings(**flags, baseline="none"))
    env = envs.reacher(horizon=3)
    experiment = driver.make_experiment(plan, env)
    learner = Setup(experiment, plan.common).test_learner
    meta = learner.init(jax.random.key(0), experiment.inputs)
    driver._draw_paths(plan, env, experiment, meta, tmp_path)
    assert len(frames(tmp_path / "rollouts.gif")) == 3
    assert (tmp_path / "rollouts.png").stat().st_size > 1000
