"""Antithetic evolution strategies: a meta-gradient from values of the outer loss alone."""

import jax
import jax.numpy as jnp

from metajax.metagrads.averaging import mean_over_tasks, means
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
from metajax.types import Array, Key, Meta, MetaGrad, Metrics, Objective, Task


def evolution(
    objective: Objective,
    *,
    sigma: float,
    pairs: int = 1,
    tasks_at_once: int | None = None,
) -> MetaGrad:
    """Estimates the gradient of the smoothed objective from antithetic pairs of perturbations.

    The estimate of a task is the mean over pairs of (L(meta + sigma e) - L(meta - sigma e)) / (2 sigma) e,
    with one e ~ N(0, I) per pair. All evaluations of a task share its key. Leaves of `meta` that are not
    floating-point stay as they are and get zeros.

    Args:
      objective: Objective of one task; it need not be differentiable.
      sigma: Standard deviation of the perturbations, a positive float, the same for every number in `meta`.
      pairs: Number of perturbations P per task, each evaluated with both signs; all 2 P are vectorized.
      tasks_at_once: Number of tasks that are vectorized together, as in `backprop`.

    Returns:
      `(meta, keys [T], tasks [T, ...], step) -> (grads, metrics)`. The metrics are the objective's, averaged
      over tasks, pairs and signs, and `grad_variance`: an unbiased estimate of the trace of the covariance of
      *one* task's estimate, over tasks and perturbations. The mean over T independent tasks has 1/T of it.
      Because it is defined without T, it does not depend on the groups of tasks, and its mean over devices
      (`over_tasks`) has the same expectation as on one device. It is left out where a call, or a device,
      sees a single task.

    Raises:
      ValueError: If `sigma` is not a finite positive number, or `pairs` or `tasks_at_once` is below 1.

    Example:
      >>> objective = lambda meta, key, task: (jnp.where(meta > task, 1.0, 0.0), {})  # no gradient
      >>> keys = jax.random.split(jax.random.key(0), 100)
      >>> grads, _ = evolution(objective, sigma=1.0, pairs=8)(jnp.array(0.0), keys, jnp.zeros(100))
      >>> 0.3 < grads.item() < 0.5  # the density of N(0, 1) at 0 is 0.4
      True

    Reference: Salimans et al., 2017 (https://arxiv.org/abs/1703.03864), section 2; around an adaptation,
    Song et al., 2020 (https://arxiv.org/abs/1910.01215), zero-order ES-MAML, section 3.
    """
    check_sigma(sigma)
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; use 1 or more.")

    def of_task(meta, key, task):
        def of_pair(pair):
            noise = draw_noise(key, pair, meta)
            losses, metrics = both_signs(
                lambda sign: objective(perturb(meta, noise, sign * sigma), key, task)
            )
            return scaled(noise, slope(losses, sigma)), metrics

        grads, metrics = jax.vmap(of_pair)(jnp.arange(pairs))
        grads = means(grads, axis=0)
        return grads, (means(metrics, axis=(0, 1)), square_norm(grads))

    mean = mean_over_tasks(of_task, tasks_at_once=tasks_at_once)

    def meta_grad(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        grads, (metrics, mean_square) = mean(meta, keys, tasks, step)
        return grads, {**metrics, **grad_variance(grads, mean_square, keys.shape[0])}

    return meta_grad
