"""Robots of brax as lines on a plane, for pictures that need no renderer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.envs.foreign import installed
from metajax.types import Array, Tree

# Kinds of geometry in MuJoCo that a line shows: a capsule, along its own third axis.
_CAPSULE = 3


def skeleton(name: str, *, axes: tuple[int, int]) -> Callable[[Tree], Array]:
    """Makes the function that draws a robot of brax by the axes of its capsules.

    Args:
      name: Name of the robot in `brax.envs`.
      axes: Coordinates of the plane: (0, 2) is a view from the side, (0, 1) from above.

    Returns:
      Function from a state of the robot's environment to points [P, 2] in meters: a polyline with NaN between
      its pieces, whose last point is the origin of the torso.

    Raises:
      ImportError: If brax is not installed.

    Example:
      >>> draw = skeleton("halfcheetah", axes=(0, 2))
      >>> env = metajax.rl.envs.locomotion.cheetah_direction()
      >>> state, _ = jax.eval_shape(env.reset, jax.random.key(0), env.sample(jax.random.key(1)))
      >>> jax.eval_shape(draw, state).shape  # eight capsules, and the torso
      (25, 2)
    """
    robot = installed("brax.envs").get_environment(name).sys
    rotate = installed("brax.math").rotate
    capsules = np.asarray(robot.geom_type) == _CAPSULE
    links = np.asarray(robot.geom_bodyid)[capsules] - 1  # The first body is the world.
    middle, turned = (np.asarray(part)[capsules] for part in (robot.geom_pos, robot.geom_quat))
    half = np.asarray(robot.geom_size)[capsules, 1]
    along = jax.vmap(rotate)(np.stack([0 * half, 0 * half, half], axis=1), turned)
    ends = jnp.stack([middle - along, middle + along], axis=1)  # [G, 2, 3], in frames of links
    place = jnp.asarray(axes)

    def points(state: Tree) -> Array:
        frames = state.x
        seen = jax.vmap(jax.vmap(rotate, (0, None)))(ends, frames.rot[links])
        seen = (seen + frames.pos[links][:, None])[..., place]
        lines = jnp.concatenate([seen, jnp.full_like(seen[:, :1], jnp.nan)], axis=1)
        return jnp.concatenate([lines.reshape(-1, 2), frames.pos[:1, place]])

    return points
