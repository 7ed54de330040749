"""Adversarial examples in tasks: what training sees, and how accuracy holds against them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.objectives import MetricFn, adapted
from metajax.types import (
    Array,
    Batch,
    Episode,
    Fast,
    Key,
    Learner,
    LossFn,
    Meta,
    Metrics,
    Objective,
)

# A small number would give a key of `split(key)` again, as `adapted` makes them.
_ATTACK = 0x41545441


class Attack(NamedTuple):
    """How inputs are changed within a box around them to raise a loss.

    Attributes:
      epsilon: half the side of the box, in the units of the inputs; broadcasts against them, such as [C].
      steps: 1 is one step to the edge of the box along the sign of the gradient (FGSM); more are steps of
        `rate` from a random point of the box, each brought back into it (PGD).
      rate: in multiples of epsilon; None is 2.5 / steps.
      low, high: what inputs may be, such as those of black and white; None leaves them free.

    Reference: Goodfellow et al., 2015 (https://arxiv.org/abs/1412.6572), section 4; Madry et al., 2018
    (https://arxiv.org/abs/1706.06083), section 2.1.
    """

    epsilon: Array | float
    steps: int = 1
    rate: float | None = None
    low: Array | float | None = None
    high: Array | float | None = None


def perturb(attack: Attack, loss: Callable[[Array], Array], inputs: Array, key: Key) -> Array:
    """Changes inputs [B, ...] so that a scalar loss of them rises; nothing flows through the change.

    Raises:
      ValueError: for less than one step, and for inputs that are not one floating-point array.
    """
    if attack.steps < 1:
        raise ValueError(f"attack.steps is {attack.steps}; use 1 or more.")
    if not jnp.issubdtype(getattr(inputs, "dtype", int), jnp.floating):
        raise ValueError(
            f"inputs are {getattr(inputs, 'dtype', type(inputs).__name__)}; an attack moves along gradients "
            "of one floating-point array [B, ...]."
        )
    epsilon = jnp.asarray(attack.epsilon, inputs.dtype)
    once = attack.steps == 1
    rate = 1.0 if once else attack.rate or 2.5 / attack.steps

    def within(changed: Array) -> Array:
        changed = inputs + jnp.clip(changed - inputs, -epsilon, epsilon)
        return jnp.clip(changed, attack.low, attack.high)

    def step(changed: Array, _) -> tuple[Array, None]:
        return within(changed + rate * epsilon * jnp.sign(jax.grad(loss)(changed))), None

    start = inputs
    if not once:
        noise = jax.random.uniform(key, inputs.shape, inputs.dtype, -1, 1)
        start = within(inputs + noise * epsilon)
    changed, _ = jax.lax.scan(step, start, length=attack.steps)
    return jax.lax.stop_gradient(changed)


def adversarial_objective(
    learner: Learner,
    loss: LossFn,
    attack: Attack,
    *,
    support: bool = False,
    query: bool = True,
    metrics: Mapping[str, MetricFn] | None = None,
    penalty: Callable[[Meta, Fast], Array] | None = None,
) -> Objective:
    """Adapts and scores as `query_objective`, on a support or a query set that is attacked.

    Queries are attacked once the task has been adapted to. Support examples are attacked where the task has
    been adapted to them as they are; then it starts anew and adapts to them as they have become.

    Args:
      learner: what is trained.
      loss: the outer loss, which the attack raises.
      attack: how.
      support: whether support examples are attacked (the inner loss sees them).
      query: whether queries are (the outer loss sees them).
      metrics: named functions of query outputs and batch; each is reported of the queries as they are, and
        with `robust_` before its name of attacked ones.
      penalty: as of `query_objective`.

    Returns:
      `(meta, key, episode) -> (loss, metrics)`; the loss is that of attacked queries if `query`, else of
      queries as they are.

    Reference: adversarial querying, Goldblum et al., 2020 (https://arxiv.org/abs/1910.00982), algorithm 2; of
    the inner loss too, Yin et al., 2018 (https://arxiv.org/abs/1806.03316).
    """
    named = {**(metrics or {}), "loss": loss}

    def attacked(meta: Meta, fast: Fast, batch: Batch, key: Key) -> Batch:
        meta, fast = jax.lax.stop_gradient((meta, fast))

        def of_inputs(inputs):
            return loss(learner.predict(meta, fast, inputs), batch._replace(inputs=inputs))

        return batch._replace(inputs=perturb(attack, of_inputs, batch.inputs, key))

    def objective(meta: Meta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        support_key, query_key = jax.random.split(jax.random.fold_in(key, _ATTACK))
        if support:
            clean = adapted(learner, meta, key, episode)
            batch = attacked(meta, clean, episode.support, support_key)
            episode = episode._replace(support=batch)
        fast = adapted(learner, meta, key, episode)
        worse = attacked(meta, fast, episode.query, query_key)
        values = {}
        for prefix, batch in (("", episode.query), ("robust_", worse)):
            outputs = learner.predict(meta, fast, batch.inputs)
            values |= {prefix + name: metric(outputs, batch) for name, metric in named.items()}
        total = values["robust_loss" if query else "loss"]
        if penalty is not None:
            values["penalty"] = penalty(meta, fast)
            total = total + values["penalty"]
        return total, values

    return objective
