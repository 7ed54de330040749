"""Outer steps on experience, and several optimizer steps on the same; `trust` has the natural gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.rl.objectives import relive, replay
from metajax.train import DrawFn, SampleFn, StepFn, TrainState, draw_tasks
from metajax.types import (
    Array,
    Batch,
    Episode,
    Key,
    Learner,
    Meta,
    MetaGrad,
    Metrics,
    Tree,
)

# (meta, key, life) -> the outputs that are scored, and the batch that they belong to.
OutputsFn = Callable[[Meta, Key, Any], tuple[Tree, Batch]]


class Improve(NamedTuple):
    """A way to improve meta-parameters on the experience of many tasks.

    Attributes:
      init: Function `meta -> state`, like an optax optimizer's, which `metajax.init_state` calls.
      update: Function `(meta, state, key, keys [T], lives [T, ...]) -> (meta, state, metrics)`; `keys` are
        the keys with which the lives were lived, `key` is one for anything else.
    """

    init: Callable[[Meta], Any]
    update: Callable[[Meta, Any, Key, Key, Any], tuple[Meta, Any, Metrics]]


def several(
    meta_grad: MetaGrad,
    optimizer: optax.GradientTransformation,
    *,
    steps: int = 5,
    minibatches: int = 1,
) -> Improve:
    """Takes several optimizer steps on the same experience, as ProMP and PPO do.

    Args:
      meta_grad: Meta-gradient of an objective of experience, such as
        `metajax.backprop(lifetime_objective(...))`, sharded or not.
      optimizer: Outer optimizer.
      steps: Number of passes over the experience.
      minibatches: Number of parts into which the tasks are divided anew in each pass, at random, with one
        optimizer step for each; 1 takes them all together. It divides the number of tasks.

    Returns:
      An `Improve`, with the metrics of the meta-gradient in the first pass and `grad_norm`, the mean over all
      optimizer steps: not finite if any of them was not.

    Raises:
      ValueError: If `steps` or `minibatches` is below 1, or (when called) the parts are not equal.

    Example:
      >>> objective = lambda meta, key, task: ((meta - task) ** 2, {"loss": (meta - task) ** 2})
      >>> improve = several(metajax.backprop(objective), optax.sgd(0.25), steps=2)
      >>> key = jax.random.key(0)
      >>> meta, keys = jnp.array(1.0), jax.random.split(key, 2)
      >>> improve.update(meta, improve.init(meta), key, keys, jnp.array([3.0, 3.0]))[0].item()
      2.5

    Reference: Rothfuss et al., 2019 (https://arxiv.org/abs/1810.06784), algorithm 1.
    """
    for name, number in (("steps", steps), ("minibatches", minibatches)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")

    def update(
        meta: Meta, state: Any, key: Key, keys: Key, lives: Any
    ) -> tuple[Meta, Any, Metrics]:
        num_tasks = keys.shape[0]

        # The norm is that of all passes, so that `skip_nonfinite` sees a late one fail.
        def of_first(metrics: Metrics) -> Metrics:
            first = jax.tree.map(lambda leaf: leaf[0], metrics)
            return {**first, "grad_norm": jnp.mean(metrics["grad_norm"])}

        if num_tasks % minibatches:
            raise ValueError(
                f"{num_tasks} tasks do not divide into {minibatches} minibatches; use a divisor."
            )

        def one(carry: tuple[Meta, Any], chosen: Array | None) -> tuple[tuple[Meta, Any], Metrics]:
            meta, state = carry
            part = (keys, lives)
            if chosen is not None:
                part = jax.tree.map(lambda leaf: leaf[chosen], part)
            grads, metrics = meta_grad(meta, *part)
            updates, state = optimizer.update(grads, state, meta)
            metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
            return (optax.apply_updates(meta, updates), state), metrics

        if minibatches == 1:
            (meta, state), metrics = jax.lax.scan(
                lambda carry, _: one(carry, None), (meta, state), length=steps
            )
            return meta, state, of_first(metrics)

        def epoch(carry: tuple[Meta, Any], key: Key) -> tuple[tuple[Meta, Any], Metrics]:
            order = jax.random.permutation(key, num_tasks).reshape(minibatches, -1)
            return jax.lax.scan(one, carry, order)

        (meta, state), metrics = jax.lax.scan(epoch, (meta, state), jax.random.split(key, steps))
        means = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=1), metrics)
        return meta, state, of_first(means)

    return Improve(optimizer.init, update)


def lifetime_outputs(learner: Learner, *, whole: bool = False) -> OutputsFn:
    """Makes the function that `lifetime_objective` scores: the outputs after adapting to what was lived.

    Args:
      learner: Learner that lived.
      whole: Whether the lives come from `whole_lives`, with the outputs before each call too.

    Returns:
      `(meta, key, life) -> (outputs, query batch)`.

    Example:
      >>> model = metajax.rl.mlp_policy(metajax.rl.Discrete(3))
      >>> loss = metajax.rl.policy_gradient()
      >>> outputs = lifetime_outputs(metajax.maml(model, loss, rule=optax.sgd(0.1)))
      >>> improve = metajax.rl.trust_region(outputs)
    """

    def outputs(meta: Meta, key: Key, life: Episode) -> tuple[Tree, Batch]:
        return relive(learner, meta, key, life, whole=whole)[1], life.query

    return outputs


def trial_outputs(learner: Learner) -> OutputsFn:
    """Makes the function that `trial_objective` scores: the outputs before each row of a trial.

    Args:
      learner: Learner that reads step by step.

    Returns:
      `(meta, key, trial) -> (outputs, trial)`.

    Example:
      >>> reader = metajax.learners.gru_model(8)
      >>> outputs = trial_outputs(metajax.rl.reading_policy(reader, metajax.rl.Discrete(3)))
      >>> improve = metajax.rl.trust_region(outputs)
    """
    return lambda meta, key, trial: (replay(learner, meta, key, trial)[0], trial)


def make_step(
    live: Callable[[Meta, Key, Any], Any],
    improve: Improve,
    sample: SampleFn,
    *,
    num_tasks: int,
    prepare: Callable[[Any], Any] = lambda lives: lives,
    measure: Callable[[Any], Metrics] = lambda lives: {},
    draw: DrawFn = draw_tasks,
) -> StepFn:
    """Makes an outer step: draw tasks, live in each of them, improve on what was lived.

    Args:
      live: Function `(meta, key, task) -> life`, such as `live(...)` or `trials(...)`.
      improve: Way to use the experience: `several` or `trust_region`.
      sample: Function `(data, key) -> task`, one task.
      num_tasks: Number of tasks T per step.
      prepare: Function of all lives [T, ...] before they are used, such as `normalize_over_tasks`.
      measure: Function of all lives [T, ...] that returns further metrics, such as returns.
      draw: Function that draws all tasks, as in `metajax.make_step`.

    Returns:
      `(state, data) -> (state, metrics)`, like `metajax.make_step`; the state is
      `metajax.init_state(meta, improve, key)`.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> loss = metajax.rl.policy_gradient()
      >>> learner = metajax.maml(metajax.rl.mlp_policy(env.actions), loss, rule=optax.sgd(0.1))
      >>> objective = metajax.rl.lifetime_objective(learner, metajax.rl.clipped())
      >>> improve = metajax.rl.several(metajax.backprop(objective), optax.adam(1e-3), steps=2)
      >>> life = metajax.rl.live(learner, env, episodes=5)
      >>> step = make_step(life, improve, lambda data, key: env.sample(key), num_tasks=2)
      >>> def begin(key):
      ...     return metajax.init_state(learner.init(key, jnp.zeros((1, 1))), improve, key)
      >>> state = jax.eval_shape(begin, jax.random.key(0))
      >>> sorted(jax.eval_shape(step, state, None)[1])
      ['grad_norm', 'loss']
    """

    def step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        numbers = jnp.arange(num_tasks)
        keys, tasks = draw(sample, data, state.key, state.step, numbers)
        lives = jax.vmap(live, (None, 0, 0))(state.meta, keys, tasks)
        more = measure(lives)
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), num_tasks)
        meta, opt_state, metrics = improve.update(
            state.meta, state.opt_state, key, keys, prepare(lives)
        )
        new = TrainState(state.step + 1, meta, opt_state, state.key, state.memory)
        return new, {**metrics, **more}

    return step
