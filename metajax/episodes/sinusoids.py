"""The sinusoid regression tasks of MAML: a task is an amplitude and a phase."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Batch, Episode, Key

AMPLITUDES = (0.1, 5.0)
"""Least and largest amplitude."""
PHASES = (0.0, math.pi)
"""Least and largest phase, in radians."""
INPUTS = (-5.0, 5.0)
"""Least and largest input."""


@dataclasses.dataclass(frozen=True)
class SinusoidSampler:
    """Draws tasks y = amplitude * sin(x - phase); call it as `sampler(data, key) -> Episode`.

    The amplitude is uniform in [0.1, 5], the phase in [0, pi], and inputs are uniform in [-5, 5]. The tasks
    need no data: `data` is ignored, and stands there so that all samplers are called alike.

    Attributes:
      shots: Number K of support points.
      queries: Number Q of query points.

    Example:
      >>> sampler = SinusoidSampler(shots=5, queries=10)
      >>> episode = sampler(None, jax.random.key(0))
      >>> episode.support.inputs.shape, episode.query.targets.shape
      ((5, 1), (10, 1))

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.1.
    """

    shots: int = 10
    queries: int = 10

    def identify(self, data: Any, key: Key) -> tuple[Array, Array, Array]:
        """Draws the amplitude, the phase and the inputs that determine the episode of a key.

        Args:
          data: Any value; ignored.
          key: Random key, consumed.

        Returns:
          Amplitude [], phase [] and inputs [K + Q, 1], all float32.
        """
        del data
        amplitude_key, phase_key, inputs_key = jax.random.split(key, 3)
        shape = (self.shots + self.queries, 1)
        return (
            jax.random.uniform(amplitude_key, (), jnp.float32, *AMPLITUDES),
            jax.random.uniform(phase_key, (), jnp.float32, *PHASES),
            jax.random.uniform(inputs_key, shape, jnp.float32, *INPUTS),
        )

    def __call__(self, data: Any, key: Key) -> Episode:
        """Draws one episode.

        Args:
          data: Any value; ignored.
          key: Random key, consumed.

        Returns:
          An episode with inputs and targets [K, 1] in the support set and [Q, 1] in the query set.
        """
        amplitude, phase, inputs = self.identify(data, key)
        points = Batch(inputs, sinusoid(inputs, amplitude, phase))
        return Episode(
            jax.tree.map(lambda leaf: leaf[: self.shots], points),
            jax.tree.map(lambda leaf: leaf[self.shots :], points),
        )


def sinusoid(inputs: Array, amplitude: Array, phase: Array) -> Array:
    """Computes amplitude * sin(inputs - phase).

    Args:
      inputs: Points of any shape.
      amplitude: Amplitude, broadcast to the inputs.
      phase: Phase in radians, broadcast to the inputs.

    Returns:
      Values of the shape of the inputs.

    Example:
      >>> print(sinusoid(jnp.array([0.5]), 2.0, 0.5))
      [0.]
    """
    return amplitude * jnp.sin(inputs - phase)
