"""The meta-gradient by reverse-mode differentiation of an objective."""

import jax
import jax.numpy as jnp

from metajax.metagrads.averaging import in_groups, means
from metajax.types import MetaGrad, Objective


def backprop(objective: Objective, *, tasks_at_once: int | None = None) -> MetaGrad:
    """Differentiates the mean objective over tasks, through the adaptation that the objective contains.

    How the inner loop is differentiated is the learner's choice, by its adjoint.

    Args:
      objective: Objective of one task; traced once for each shape of its arguments, as under `jax.jit`.
      tasks_at_once: Number of tasks that are vectorized together. The groups run one after another in a scan
        that accumulates the gradient, so that memory is that of one group. None takes all tasks at once.

    Returns:
      `(meta, keys [T], tasks [T, ...], step) -> (grads, metrics)`: the gradient of the mean objective, shaped
      like `meta`, and the mean metrics; the step is ignored. It raises a ValueError if `tasks_at_once` does
      not divide T.

    Example:
      >>> objective = lambda meta, key, task: ((meta - task) ** 2, {"loss": (meta - task) ** 2})
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> grads, metrics = backprop(objective)(jnp.array(1.0), keys, jnp.array([0.0, 4.0]))
      >>> grads.item(), metrics["loss"].item()
      (-2.0, 5.0)

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), eq. 1.
    """

    def objective_of_one(meta, key, task):
        loss, metrics = objective(meta, key, task)
        return loss, means(metrics, axis=())

    # The gradient of a mean over vectorized tasks, not a vectorized gradient: XLA can then sum over tasks
    # inside its kernels and never holds one gradient per task.
    def mean_objective(meta, keys, tasks):
        losses, metrics = jax.vmap(objective, (None, 0, 0))(meta, keys, tasks)
        return jnp.mean(losses), means(metrics, axis=0)

    return in_groups(
        jax.grad(objective_of_one, has_aux=True),
        jax.grad(mean_objective, has_aux=True),
        tasks_at_once=tasks_at_once,
    )
