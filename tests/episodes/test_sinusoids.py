import jax
import numpy as np

from metajax.episodes.sinusoids import SinusoidSampler
from metajax.train import draw_tasks


def test_points_lie_on_sinusoids_of_the_papers_ranges():
    sampler = SinusoidSampler(shots=4, queries=6)
    tasks = draw_tasks(sampler, None, jax.random.key(0), 0, np.arange(2000))[1]
    drawn = draw_tasks(sampler.identify, None, jax.random.key(0), 0, np.arange(2000))[1]
    amplitude, phase, inputs = map(np.asarray, drawn)
    expected = amplitude[:, None, None] * np.sin(inputs - phase[:, None, None])
    np.testing.assert_allclose(tasks.support.targets, expected[:, :4], atol=1e-4)
    np.testing.assert_allclose(tasks.query.targets, expected[:, 4:], atol=1e-4)
    np.testing.assert_array_equal(tasks.query.inputs, inputs[:, 4:])
    for values, low, high in ((amplitude, 0.1, 5), (phase, 0, np.pi), (inputs, -5, 5)):
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
