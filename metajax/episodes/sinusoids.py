"""The sinusoid regression tasks of MAML: amplitude and phase make a task."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Batch, Episode, Key

AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, math.pi)
INPUTS = (-5.0, 5.0)


@dataclasses.dataclass(frozen=True)
class SinusoidSampler:
    """Draws y = amplitude * sin(x - phase); call it as `sampler(data, key) -> Episode`, with any `data`.

    Amplitude is uniform in [0.1, 5], phase in [0, pi], inputs in [-5, 5].

    Attributes:
      shots: K, support points.
      queries: Q, query points.

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.1.
    """

    shots: int = 10
    queries: int = 10

    def identify(self, data: Any, key: Key) -> tuple[Array, Array, Array]:
        """Draws amplitude [], phase [] and inputs [K + Q, 1]: what determines the episode of `key`."""
        del data
        amplitude_key, phase_key, inputs_key = jax.random.split(key, 3)
        shape = (self.shots + self.queries, 1)
        return (
            jax.random.uniform(amplitude_key, (), jnp.float32, *AMPLITUDES),
            jax.random.uniform(phase_key, (), jnp.float32, *PHASES),
            jax.random.uniform(inputs_key, shape, jnp.float32, *INPUTS),
        )

    def __call__(self, data: Any, key: Key) -> Episode:
        """Draws one episode; support [K, 1] and query [Q, 1], inputs and targets alike."""
        amplitude, phase, inputs = self.identify(data, key)
        points = Batch(inputs, sinusoid(inputs, amplitude, phase))
        return Episode(
            jax.tree.map(lambda leaf: leaf[: self.shots], points),
            jax.tree.map(lambda leaf: leaf[self.shots :], points),
        )


def sinusoid(inputs: Array, amplitude: Array, phase: Array) -> Array:
    """amplitude * sin(inputs - phase)."""
    return amplitude * jnp.sin(inputs - phase)
