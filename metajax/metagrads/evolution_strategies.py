"""Evolution strategies: meta-gradients from values of the outer loss alone, nothing is differentiated.

They estimate the gradient of the loss smoothed by a Gaussian, E L(meta + sigma e) with e ~ N(0, I). It exists
where L has none (accuracy, discrete choices), and stays moderate where that of L explodes over a long
adaptation.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.metagrads.estimators import mean_over_tasks, means
from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import (
    Array,
    Fast,
    Key,
    Learner,
    LossFn,
    Meta,
    MetaGrad,
    Metrics,
    Objective,
    StatefulMetaGrad,
    Task,
)

# Folded into a task's key; small numbers would repeat keys, as `split(key)[i]` is `fold_in(key, i)`.
_NOISE, _NEXT = 0x6E6F6973, 0x6E657874


class PesMemory(NamedTuple):
    """What `pes` remembers of each task; every leaf has a leading axis of tasks.

    Attributes:
      task: The task that is being lived through.
      key: [T] of the next truncation.
      fasts: [T, 2, ...] fast states of the two particles, meta + sigma e first.
      drift: Sum of the task's perturbations so far, in units of sigma; like `meta` [T, ...].
      age: [T] int, truncations since its life began; at `unrolls` the next step replaces it.
    """

    task: Task
    key: Key
    fasts: Fast
    drift: Meta
    age: Array


def evolution(
    objective: Objective,
    *,
    sigma: float,
    pairs: int = 1,
    tasks_at_once: int | None = None,
) -> MetaGrad:
    """Estimates the gradient of the smoothed objective from antithetic pairs of perturbations.

    The estimate of a task is the mean over pairs of (L(meta + sigma e) - L(meta - sigma e)) / (2 sigma) e,
    with one e ~ N(0, I) a pair. All evaluations of a task share its key. Leaves of `meta` that
    are not floating stay as they are and get zeros.

    Args:
      objective: Score of one task; it need not be differentiable.
      sigma: Standard deviation of the perturbations, the same for every number in `meta`.
      pairs: P, perturbations a task, each evaluated with both signs; all 2 P are vectorised together.
      tasks_at_once: As in `backprop`.

    Returns:
      `(meta, keys [T], tasks [T, ...], step) -> (grads, metrics)`, as of `backprop`. The metrics are means
      over tasks, pairs and signs of those of the objective, and `grad_variance`: an unbiased estimate of the
      trace of the covariance of *one* task's estimate, over tasks and perturbations; the mean over T tasks
      drawn independently has a T-th of it. Defined without T, it is the same in any groups of tasks, and its
      mean over devices (`over_tasks`) has the expectation that it has on one device. Where a call, or a
      device, sees a single task it cannot be known and is left out.

    Reference: Salimans et al., 2017 (https://arxiv.org/abs/1703.03864), section 2; around an adaptation,
    Song et al., 2020 (https://arxiv.org/abs/1910.01215), zero-order ES-MAML, section 3.
    """
    _check_sigma(sigma)
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; use 1 or more.")

    def of_task(meta, key, task):
        def of_pair(pair):
            noise = _noise(key, pair, meta)
            losses, metrics = _both(
                lambda sign: objective(_shifted(meta, noise, sign * sigma), key, task)
            )
            return _scaled(noise, _slope(losses, sigma)), metrics

        grads, metrics = jax.vmap(of_pair)(jnp.arange(pairs))
        grads = means(grads, axis=0)
        return grads, (means(metrics, axis=(0, 1)), _square_norm(grads))

    mean = mean_over_tasks(of_task, tasks_at_once=tasks_at_once)

    def meta_grad(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        grads, (metrics, mean_square) = mean(meta, keys, tasks, step)
        return grads, {**metrics, **_variance(grads, mean_square, keys.shape[0])}

    return meta_grad


def pes(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    sigma: float,
    unrolls: int,
    evidence: TaskEvidence = EPISODE,
    tasks_at_once: int | None = None,
) -> StatefulMetaGrad:
    """Persistent evolution strategies: an update after every piece of a long adaptation, without bias.

    A task lives for `unrolls` calls of `learner.adapt` on support evidence, the truncations, and every outer
    step takes one of them for two particles a task. Both go on from where they were, one with
    `meta + sigma e` and the other with `meta - sigma e`, of a new e ~ N(0, I). The estimate is
    xi (L+ - L-) / (2 sigma^2), where L is the query loss after the truncation and xi the sum of the
    perturbations of the life so far, sigma (e_1 + ... + e_t). While `meta` stands still, the mean over a life
    estimates without bias the gradient of the mean, over truncations, of the smoothed losses, through the
    whole adaptation before each. The variance grows with t.

    Args:
      learner: The learner that is trained; it starts from the perturbed `meta`.
      scoring: As in `query_objective`; loss and penalty are what is descended.
      sigma: Standard deviation of the perturbations, the same for every number in `meta`.
      unrolls: Truncations a life; with 1 it is `evolution` of the `query_objective`, with one pair.
      evidence: As in `query_objective`; each truncation asks for its own, and there is room for that of all
        truncations of a life.
      tasks_at_once: Number of tasks that are vectorised together; the others wait their turn. None takes all.

    Returns:
      `init` and `update` over `PesMemory`. The tasks given to `init` live first; `update` takes an offered
      task, and its key, where a life has ended, and ignores the others. `init` starts all tasks at once, and
      counts task i as i % unrolls truncations old, so that first lives end at different steps: after
      `unrolls` steps each step averages over all ages evenly (T a multiple of `unrolls`), and new tasks come
      in at an even rate. Before, early truncations are seen more often. The metrics are means over tasks and
      particles of those of `scoring`, and `grad_variance` as in `evolution`, where a task's age counts as
      chance too.

    Reference: Vicol et al., 2021 (https://arxiv.org/abs/2112.13835), algorithm 2.
    """
    _check_sigma(sigma)
    if unrolls < 1:
        raise ValueError(f"unrolls is {unrolls}; use 1 or more truncations a life.")
    scoring = as_scoring(scoring)

    def begin(meta: Meta, key: Key, task: Task, age: Array) -> PesMemory:
        start_key, _ = jax.random.split(key)
        noise = _noise(key, 0, meta)

        def start(sign: Array) -> Fast:
            shifted = _shifted(meta, noise, sign * sigma)
            return learner.start(shifted, start_key, evidence.room(task, calls=unrolls))

        fasts = _both(start)
        return PesMemory(task, key, fasts, jax.tree.map(jnp.zeros_like, noise), age)

    def live(meta: Meta, life: PesMemory) -> tuple[Meta, PesMemory, Metrics]:
        _, adapt_key = jax.random.split(life.key)
        noise = _noise(life.key, 0, meta)

        def truncation(sign: Array, fast: Fast) -> tuple[Fast, Metrics]:
            shifted = _shifted(meta, noise, sign * sigma)
            batch = evidence.to_adapt(shifted, fast, life.key, life.task)
            fast = learner.adapt(shifted, fast, adapt_key, batch)
            batch = evidence.to_score(shifted, fast, life.key, life.task)
            return fast, scoring.score(learner, shifted, fast, batch)

        fasts, values = _both(truncation, life.fasts)
        drift = jax.tree.map(jnp.add, life.drift, noise)
        grads = _scaled(drift, _slope(scoring.total(values), sigma))
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
        return grads, life, values, _square_norm(grads)

    def update(
        meta: Meta, memory: PesMemory, keys: Key, tasks: Task
    ) -> tuple[Meta, PesMemory, Metrics]:
        lives, one = (memory, keys, tasks), functools.partial(of_task, meta)
        if tasks_at_once is None:
            grads, memory, values, squares = jax.vmap(one)(lives)
        else:
            grads, memory, values, squares = jax.lax.map(one, lives, batch_size=tasks_at_once)
        grads = means(grads, axis=0)
        variance = _variance(grads, jnp.mean(squares), keys.shape[0])
        return grads, memory, {**means(values, axis=(0, 1)), **variance}

    return StatefulMetaGrad(init, update)


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; use a finite number above 0, such as 0.01.")


def _noise(key: Key, pair: int | Array, meta: Meta) -> Meta:
    """Draws e ~ N(0, I) shaped like `meta`, zeros for leaves that are not floating; `key` is folded into."""
    leaves, treedef = jax.tree.flatten(meta)
    keys = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(key, _NOISE), pair), max(len(leaves), 1)
    )
    return treedef.unflatten(
        jax.random.normal(keys[i], jnp.shape(leaf), jnp.result_type(leaf))
        if _moves(leaf)
        else jnp.zeros(jnp.shape(leaf), jnp.float32)
        for i, leaf in enumerate(leaves)
    )


def _shifted(meta: Meta, noise: Meta, scale: Array) -> Meta:
    return jax.tree.map(
        lambda leaf, e: leaf + (scale * e).astype(e.dtype) if _moves(leaf) else leaf, meta, noise
    )


def _moves(leaf: Array) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _both(member: Callable, *operands):
    """Evaluates (sign, *operands) -> results for the signs + and -; all have a leading axis of two."""
    # One trace for the two of them.
    return jax.vmap(member)(jnp.array([1.0, -1.0]), *operands)


def _slope(losses: Array, sigma: float) -> Array:
    """Divides the difference of the losses [2] of meta + sigma e and meta - sigma e by their distance."""
    return (losses[0] - losses[1]) / (2 * sigma)


def _scaled(noise: Meta, scale: Array) -> Meta:
    return jax.tree.map(lambda e: (scale * e).astype(e.dtype), noise)


def _square_norm(tree: Meta) -> Array:
    # At least float32: half precision overflows at 65504 or sums coarsely.
    wide = (
        leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(tree)
    )
    return sum((jnp.sum(leaf**2) for leaf in wide), jnp.zeros((), jnp.float32))


def _variance(mean: Meta, mean_square: Array, tasks: int) -> Metrics:
    """Estimates the trace of the covariance of what was averaged; empty for a single task."""
    if tasks < 2:
        return {}
    spread = mean_square - _square_norm(mean)
    # Negative by rounding only.
    return {"grad_variance": jnp.maximum(spread, 0) * (tasks / (tasks - 1))}
