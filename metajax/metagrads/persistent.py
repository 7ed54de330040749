"""Persistent evolution strategies: an outer step after every piece of a long adaptation, without bias."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.metagrads.averaging import means
from metajax.metagrads.perturbations import (
    both_signs,
    check_sigma,
    draw_noise,
    grad_variance,
    perturb,
    scaled,
    slope,
    square_norm,
)
from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import Array, Fast, Key, Learner, LossFn, Meta, Metrics, StatefulMetaGrad, Task

# Folded into a task's key; small numbers would repeat keys, since `split(key)[i]` is `fold_in(key, i)`.
_NEXT = 0x6E657874


class PesMemory(NamedTuple):
    """Memory of `pes`: one unfinished adaptation (a life) per task; every leaf has a leading task axis.

    Attributes:
      task: Tasks [T, ...] that are being adapted to.
      key: Random keys [T] of the next truncation.
      fasts: Fast states [T, 2, ...] of the two particles, meta + sigma e first.
      drift: Sum of the task's perturbations so far, in units of sigma; shaped like `meta`, [T, ...].
      age: Number of truncations in the life so far, int32 [T]; at `unrolls` the next step replaces the task.
    """

    task: Task
    key: Key
    fasts: Fast
    drift: Meta
    age: Array


def pes(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    sigma: float,
    unrolls: int,
    evidence: TaskEvidence = EPISODE,
    tasks_at_once: int | None = None,
) -> StatefulMetaGrad:
    """Estimates meta-gradients after every truncation of a long adaptation, without truncation bias.

    The life of a task is `unrolls` calls of `learner.adapt` on support evidence, the truncations. Every outer
    step runs one truncation with two particles per task. Both continue from their own fast state, one with
    `meta + sigma e` and the other with `meta - sigma e`, for a new e ~ N(0, I). The estimate is
    xi (L+ - L-) / (2 sigma^2), where L is the query loss after the truncation and xi the sum of the
    perturbations in this life, sigma (e_1 + ... + e_t). While `meta` does not change, the mean over a life is
    an unbiased estimate of the gradient of the mean, over truncations, of the smoothed losses, through the
    whole adaptation before each. The variance grows with t.

    Args:
      learner: Learner to train; it starts from the perturbed `meta`.
      scoring: Scoring or loss, as in `query_objective`; loss plus penalty is descended.
      sigma: Standard deviation of the perturbations, a positive float, the same for every number in `meta`.
      unrolls: Number of truncations in a life; with 1 it equals `evolution` of the `query_objective`, with
        one pair.
      evidence: Source of examples, as in `query_objective`; each truncation asks for its own support
        examples, and the learner starts with room for all truncations of a life.
      tasks_at_once: Number of tasks that are vectorized together; groups run one after another. None takes
        all tasks at once.

    Returns:
      `init` and `update` over `PesMemory`. The tasks given to `init` live first. `update` takes an offered
      task and its key only where a life has ended, and ignores the others. `init` starts all tasks at once
      and counts task i as i % unrolls truncations old, so that the first lives end at different steps: after
      `unrolls` steps each step averages over all ages evenly (if T is a multiple of `unrolls`), and new tasks
      arrive at an even rate. Before, early truncations are overrepresented. The metrics are the metrics of
      `scoring`, averaged over tasks and particles, and `grad_variance` as in `evolution`, with a task's age
      as another random variable.

    Raises:
      ValueError: If `sigma` is not a finite positive number, or `unrolls` is below 1.

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.maml(toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1))
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> tasks = jax.vmap(toy_episode)(keys)
      >>> meta = learner.init(jax.random.key(1), tasks.support.inputs[0])
      >>> estimator = pes(learner, metajax.cross_entropy, sigma=0.01, unrolls=3)
      >>> memory = estimator.init(meta, keys, tasks)
      >>> grads, memory, metrics = jax.jit(estimator.update)(meta, memory, keys, tasks)
      >>> memory.age.tolist()
      [1, 2, 3, 1]

    Reference: Vicol et al., 2021 (https://arxiv.org/abs/2112.13835), algorithm 2.
    """
    check_sigma(sigma)
    if unrolls < 1:
        raise ValueError(f"unrolls is {unrolls}; use 1 or more truncations in a life.")
    scoring = as_scoring(scoring)

    def begin(meta: Meta, key: Key, task: Task, age: Array) -> PesMemory:
        start_key, _ = jax.random.split(key)
        noise = draw_noise(key, 0, meta)

        def start(sign: Array) -> Fast:
            shifted = perturb(meta, noise, sign * sigma)
            return learner.start(shifted, start_key, evidence.room(task, calls=unrolls))

        fasts = both_signs(start)
        return PesMemory(task, key, fasts, jax.tree.map(jnp.zeros_like, noise), age)

    def live(meta: Meta, life: PesMemory) -> tuple[Meta, PesMemory, Metrics]:
        _, adapt_key = jax.random.split(life.key)
        # Drawn as in `begin`: a life's start and its first truncation share one perturbation.
        noise = draw_noise(life.key, 0, meta)

        def truncation(sign: Array, fast: Fast) -> tuple[Fast, Metrics]:
            shifted = perturb(meta, noise, sign * sigma)
            batch = evidence.to_adapt(shifted, fast, life.key, life.task)
            fast = learner.adapt(shifted, fast, adapt_key, batch)
            batch = evidence.to_score(shifted, fast, life.key, life.task)
            return fast, scoring.score(learner, shifted, fast, batch)

        fasts, values = both_signs(truncation, life.fasts)
        # xi / sigma = e_1 + ... + e_t: the slope already holds one division by sigma.
        drift = jax.tree.map(jnp.add, life.drift, noise)
        grads = scaled(drift, slope(scoring.total(values), sigma))
        next_key = jax.random.fold_in(life.key, _NEXT)
        return grads, PesMemory(life.task, next_key, fasts, drift, life.age + 1), values

    def init(meta: Meta, keys: Key, tasks: Task) -> PesMemory:
        ages = jnp.arange(keys.shape[0], dtype=jnp.int32) % unrolls
        return jax.vmap(begin, (None, 0, 0, 0))(meta, keys, tasks, ages)

    def of_task(meta, life_and_offer):
        life, key, task = life_and_offer
        born = begin(meta, key, task, jnp.zeros_like(life.age))
        ended = life.age >= unrolls
        life = jax.tree.map(lambda new, old: jnp.where(ended, new, old), born, life)
        grads, life, values = live(meta, life)
        return grads, life, values, square_norm(grads)

    def update(
        meta: Meta, memory: PesMemory, keys: Key, tasks: Task
    ) -> tuple[Meta, PesMemory, Metrics]:
        lives, one = (memory, keys, tasks), functools.partial(of_task, meta)
        if tasks_at_once is None:
            grads, memory, values, squares = jax.vmap(one)(lives)
        else:
            grads, memory, values, squares = jax.lax.map(one, lives, batch_size=tasks_at_once)
        grads = means(grads, axis=0)
        variance = grad_variance(grads, jnp.mean(squares), keys.shape[0])
        return grads, memory, {**means(values, axis=(0, 1)), **variance}

    return StatefulMetaGrad(init, update)
