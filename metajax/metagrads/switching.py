"""Meta-gradients that depend on the outer step."""

from collections.abc import Callable

import jax

from metajax.types import Array, Key, Meta, MetaGrad, Metrics, Task


def switch_at(boundary: int, before: MetaGrad, after: MetaGrad) -> MetaGrad:
    """Uses one meta-gradient for the first `boundary` outer steps and another afterwards.

    Only the current one is computed. Two uses in MAML++: the order of derivatives is annealed by a first
    meta-gradient with the adjoint `first_order`, and the loss after every inner step is no longer computed
    once all weight is on the last one.

    Args:
      boundary: Number of outer steps with `before`, an int of 0 or more.
      before: First meta-gradient; it may itself be switched or scheduled.
      after: Second meta-gradient, with the same meta-parameters and metrics.

    Returns:
      A meta-gradient that needs the step, and raises a ValueError without it. Under a `vmap` over steps both
      are computed.

    Raises:
      ValueError: If `boundary` is negative.

    Example:
      >>> def constant(value):
      ...     return lambda meta, keys, tasks, step=None: (jnp.full_like(meta, value), {})
      >>> meta_grad = switch_at(10, constant(1.0), constant(2.0))
      >>> [meta_grad(jnp.zeros(()), None, None, step)[0].item() for step in (9, 10)]
      [1.0, 2.0]

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    if boundary < 0:
        raise ValueError(f"boundary is {boundary}; use 0 or more outer steps.")

    # A choice between gradients, not the gradient of a choice: the backward pass of a `cond` keeps the
    # residuals of both branches, zeros for the branch not taken, and would be slower.
    def meta_grad(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        step = _require(step)
        return jax.lax.cond(step < boundary, before, after, meta, keys, tasks, step)

    return meta_grad


def scheduled(at: Callable[[Array], MetaGrad]) -> MetaGrad:
    """Builds the meta-gradient of each outer step, such as one with annealed loss weights.

    Args:
      at: Function from the number of outer steps so far, a scalar, to the meta-gradient of this step.

    Returns:
      A meta-gradient that needs the step, and raises a ValueError without it.

    Example:
      >>> weights = metajax.objectives.annealed_weights(5, over=1000)
      >>> def at(step):
      ...     objective = lambda meta, key, task: (weights(step)[-1] * meta**2, {})
      ...     return metajax.backprop(objective)
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> round(scheduled(at)(jnp.array(1.0), keys, jnp.zeros(1), 500)[0].item(), 3)
      1.2
    """

    def meta_grad(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        step = _require(step)
        return at(step)(meta, keys, tasks, step)

    return meta_grad


def _require(step: Array | None) -> Array:
    """Returns the step, or raises a ValueError if there is none."""
    if step is None:
        raise ValueError(
            "The meta-gradient depends on the outer step; call it with step, the number of outer steps taken "
            "so far."
        )
    return step
