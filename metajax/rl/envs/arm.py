"""An arm of two links that is to reach a target: rigid bodies in the plane, with inertia and damping."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.rl.types import Continuous, Env, Step
from metajax.types import Array, Key


class ArmTask(NamedTuple):
    """An arm and its target.

    Attributes:
      lengths: Lengths [2] of the links in meters; a link is a uniform rod of 1 kg per meter.
      target: Position [2] of the target in meters, with the shoulder at the origin.

    Example:
      >>> task = ArmTask(lengths=jnp.array([0.6, 0.4]), target=jnp.array([0.5, 0.5]))
      >>> task.lengths.shape, task.target.shape
      ((2,), (2,))
    """

    lengths: Array
    target: Array


class ArmState(NamedTuple):
    """State of the arm.

    Attributes:
      joints: Angles [2] in radians: of the first link, and of the second relative to the first.
      velocity: Velocities [2] of the joints in radians per second.
    """

    joints: Array
    velocity: Array


def reacher(
    *,
    horizon: int = 50,
    torque: float = 2.0,
    damping: float = 0.3,
    cost: float = 0.01,
    seconds: float = 0.05,
    substeps: int = 5,
) -> Env:
    """Makes an arm of two links that moves in a horizontal plane, with its lengths and target as the task.

    Actions are torques of the two joints in [-1, 1], times `torque`. The observation has the cosines and
    sines of the joints and their velocities, [6]: neither lengths nor target, which only rewards reveal. The
    reward is minus the distance of the tip to the target after the step, minus `cost` times the squared
    action. Tasks have lengths uniform in [0.3, 0.7] m and a target that some posture of that arm reaches.

    Args:
      horizon: Number of steps of an episode.
      torque: Largest torque of a joint in newton meters.
      damping: Friction of a joint, in newton meters per radian per second.
      cost: Factor of the squared action in the reward.
      seconds: Duration of a step, for which the torque is constant.
      substeps: Number of Runge-Kutta steps of fourth order in it; more for a larger friction, which makes the
        equations stiff.

    Returns:
      An environment whose tasks are `ArmTask`s.

    Raises:
      ValueError: If `horizon` or `substeps` is below 1, `torque` or `seconds` not above 0, or `damping` or
        `cost` below 0.

    Example:
      >>> env = reacher()
      >>> task = env.sample(jax.random.key(0))
      >>> jax.eval_shape(env.reset, jax.random.key(1), task)[1].shape, env.horizon
      ((6,), 50)

    Reference: Spong et al., 2006, Robot Modeling and Control, section 7.4: the planar elbow manipulator.
    """
    for name, number in (("horizon", horizon), ("substeps", substeps)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")
    for name, number in (("torque", torque), ("seconds", seconds)):
        if not number > 0:
            raise ValueError(f"{name} is {number}; use a number above 0.")
    for name, number in (("damping", damping), ("cost", cost)):
        if not number >= 0:
            raise ValueError(f"{name} is {number}; use 0 or more.")

    def sample(key: Key) -> ArmTask:
        length_key, posture_key = jax.random.split(key)
        lengths = jax.random.uniform(length_key, (2,), minval=0.3, maxval=0.7)
        posture = jax.random.uniform(posture_key, (2,), minval=-jnp.pi, maxval=jnp.pi)
        return ArmTask(lengths, tip(lengths, posture))

    def observe(state: ArmState) -> Array:
        joints, velocity = state
        return jnp.concatenate([jnp.cos(joints), jnp.sin(joints), velocity])

    def reset(key: Key, task: ArmTask) -> tuple[ArmState, Array]:
        joints = jax.random.uniform(key, (2,), task.lengths.dtype, -0.1, 0.1)
        state = ArmState(joints, jnp.zeros_like(joints))
        return state, observe(state)

    def step(key: Key, task: ArmTask, state: ArmState, action: Array) -> Step:
        del key
        action = action.astype(task.lengths.dtype)
        after = move(
            task.lengths,
            state,
            torque * action,
            damping=damping,
            seconds=seconds,
            substeps=substeps,
        )
        miss = tip(task.lengths, after.joints) - task.target
        reward = -jnp.sqrt(jnp.sum(miss**2)) - cost * jnp.sum(action**2)
        return Step(after, observe(after), reward, jnp.array(False))

    return Env(sample, reset, step, Continuous(2, -1.0, 1.0), horizon)


def tip(lengths: Array, joints: Array) -> Array:
    """Computes the position [2] of the tip of an arm from its lengths [2] and joints [2]."""
    first, second = joints[0], joints[0] + joints[1]
    elbow = lengths[0] * jnp.stack([jnp.cos(first), jnp.sin(first)])
    return elbow + lengths[1] * jnp.stack([jnp.cos(second), jnp.sin(second)])


def inertia(lengths: Array, joints: Array) -> Array:
    """Computes the mass matrix [2, 2] in kg m^2: the kinetic energy is v^T M v / 2 of velocities v.

    A rod of mass m and length l has its center at l / 2 and the moment m l^2 / 3 about its end.
    """
    (one, two), mass = lengths, lengths  # 1 kg per meter
    bend = mass[1] * one * two / 2 * jnp.cos(joints[1])
    outer = mass[1] * two**2 / 3
    shoulder = mass[0] * one**2 / 3 + mass[1] * one**2 + outer + 2 * bend
    return jnp.array([[shoulder, outer + bend], [outer + bend, outer]])


def energy(lengths: Array, state: ArmState) -> Array:
    """Computes the kinetic energy in joules, all that an arm in a horizontal plane has."""
    return state.velocity @ inertia(lengths, state.joints) @ state.velocity / 2


def acceleration(lengths: Array, state: ArmState, torque: Array, *, damping: float) -> Array:
    """Computes the accelerations [2] of the joints in radians per second squared.

    M(q) q'' + C(q, q') + damping q' = torque, with the Coriolis and centrifugal torques C. The matrix of two
    rows is inverted by its determinant: a solver is slow under `vmap`.
    """
    mass = inertia(lengths, state.joints)
    first, second = state.velocity
    pull = lengths[1] * lengths[0] * lengths[1] / 2 * jnp.sin(state.joints[1])
    coriolis = pull * jnp.stack([-second * (2 * first + second), first**2])
    force = torque - damping * state.velocity - coriolis
    (a, b), (_, d) = mass
    return jnp.stack([d * force[0] - b * force[1], a * force[1] - b * force[0]]) / (a * d - b * b)


def move(
    lengths: Array,
    state: ArmState,
    torque: Array,
    *,
    damping: float,
    seconds: float,
    substeps: int,
) -> ArmState:
    """Integrates the arm under a constant torque [2] by Runge-Kutta steps of fourth order."""
    duration = seconds / substeps

    def slope(state: ArmState) -> ArmState:
        return ArmState(state.velocity, acceleration(lengths, state, torque, damping=damping))

    def ahead(state: ArmState, slope: ArmState, share: float) -> ArmState:
        return jax.tree.map(lambda at, change: at + share * duration * change, state, slope)

    def substep(state: ArmState, _: None) -> tuple[ArmState, None]:
        one = slope(state)
        two = slope(ahead(state, one, 0.5))
        three = slope(ahead(state, two, 0.5))
        four = slope(ahead(state, three, 1.0))
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, one, two, three, four)
        return ahead(state, mean, 1.0), None

    return jax.lax.scan(substep, state, length=substeps)[0]
