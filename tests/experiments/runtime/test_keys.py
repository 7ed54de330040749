"""Training, validation and test draw from keys of their own, also where the seeds are equal."""

import jax
import numpy as np

from experiments.setup.experiment import evaluation_key
from metajax.episodes.sinusoids import SinusoidSampler
from metajax.train import draw_tasks


def test_no_test_task_was_trained_on():
    init_key, train_key = jax.random.split(jax.random.key(0))
    keys = [init_key, train_key, *(evaluation_key(0, split) for split in ("valid", "test"))]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 4
    sampler = SinusoidSampler(10, 10)
    drawn = [
        set(
            np.asarray(draw_tasks(sampler.identify, None, key, step, np.arange(200))[1][0]).tolist()
        )
        for key in keys[1:]
        for step in range(3)
    ]
    assert len(set.union(*drawn)) == sum(map(len, drawn))
