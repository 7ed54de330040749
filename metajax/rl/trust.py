"""A natural-gradient step within a trust region, also through an adaptation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from metajax.objectives.scoring import as_scoring
from metajax.rl.distributions import policy_of
from metajax.rl.experience import steps_taken
from metajax.rl.improve import Improve, OutputsFn
from metajax.rl.losses import policy_gradient
from metajax.types import Array, Key, Meta, Metrics, Objective


def trust_region(
    outputs: OutputsFn,
    *,
    objective: Objective | None = None,
    max_kl: float = 0.01,
    cg_steps: int = 10,
    damping: float = 1e-5,
    backtracks: int = 15,
    shrink: float = 0.8,
) -> Improve:
    """Takes a natural-gradient step within a trust region (TRPO), also through an adaptation.

    The Fisher product is that of Gauss and Newton: J^T F J v, with the Jacobian J of the *adapted* policy's
    parameters in the meta-parameters and the Fisher matrix F of the distributions. Where old and new policy
    agree it equals the Hessian of the mean divergence, it is positive semidefinite, and it costs one order of
    derivatives less. The line search accepts a step that improves the surrogate within the region, and keeps
    the old meta-parameters if there is none.

    Args:
      outputs: Function `(meta, key, life) -> (outputs, batch)`: `lifetime_outputs(learner)` or
        `trial_outputs(learner)`. The learner's adjoint must allow forward mode: "reverse" or "remat".
      objective: Surrogate objective of a life; None is the likelihood ratio times the advantage, of the
        outputs.
      max_kl: Largest mean divergence KL(old || new) of the adapted policies, in nats.
      cg_steps: Number of conjugate-gradient steps.
      damping: Number added to the diagonal of the Fisher matrix.
      backtracks: Number of step lengths that the line search tries.
      shrink: Factor from one length to the next, in (0, 1).

    Returns:
      An `Improve`; its metrics are the objective's, `kl`, the largest divergence of a task `max_kl`,
      `step_length` (0 if none was accepted) and `grad_norm`.

    Raises:
      ValueError: If `max_kl` is not above 0, `shrink` not in (0, 1), or `cg_steps` or `backtracks` below 1.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> loss = metajax.rl.policy_gradient()
      >>> learner = metajax.maml(metajax.rl.mlp_policy(env.actions, hidden=()), loss, rule=optax.sgd(0.1))
      >>> life = metajax.rl.live(learner, env, episodes=5)
      >>> improve = trust_region(metajax.rl.lifetime_outputs(learner))
      >>> step = metajax.rl.make_step(life, improve, lambda env_data, key: env.sample(key), num_tasks=2)
      >>> def begin(key):
      ...     return metajax.init_state(learner.init(key, jnp.zeros((1, 1))), improve, key)
      >>> state = jax.eval_shape(begin, jax.random.key(0))
      >>> sorted(jax.eval_shape(step, state, None)[1])
      ['grad_norm', 'kl', 'loss', 'max_kl', 'step_length']

    Reference: Schulman et al., 2015 (https://arxiv.org/abs/1502.05477), appendix C; around an adaptation,
    Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.3.
    """
    if not max_kl > 0:
        raise ValueError(f"max_kl is {max_kl}; use a number above 0, such as 0.01.")
    if not 0 < shrink < 1:
        raise ValueError(f"shrink is {shrink}; use a number between 0 and 1, such as 0.8.")
    for name, number in (("cg_steps", cg_steps), ("backtracks", backtracks)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")
    surrogate = as_scoring(policy_gradient(curvature="lvc"))

    def of_outputs(meta: Meta, key: Key, life: Any) -> tuple[Array, Metrics]:
        found, batch = outputs(meta, key, life)
        values = surrogate.measure(found, batch)
        return values["loss"], values

    score = of_outputs if objective is None else objective

    def update(
        meta: Meta, state: Any, key: Key, keys: Key, lives: Any
    ) -> tuple[Meta, Any, Metrics]:
        del key

        def loss_of(meta: Meta) -> tuple[Array, Metrics]:
            losses, metrics = jax.vmap(score, (None, 0, 0))(meta, keys, lives)
            return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

        def policies(meta: Meta) -> Any:
            found, _ = jax.vmap(outputs, (None, 0, 0))(meta, keys, lives)
            return policy_of(found)

        found, batches = jax.vmap(outputs, (None, 0, 0))(meta, keys, lives)
        old = policy_of(found)
        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(meta)
        weights = steps_taken(batches)
        product = fisher_product(policies, meta, weights)

        def kl_of_tasks(policy: Any) -> Array:
            return _kl_of_tasks(old, policy, weights)

        def fisher(vector: Meta) -> Meta:
            return jax.tree.map(lambda a, v: a + damping * v, product(vector), vector)

        direction, _ = cg(fisher, grads, maxiter=cg_steps, tol=1e-10)
        curvature = optax.tree.vdot(direction, fisher(direction))
        length = jnp.sqrt(2 * max_kl / jnp.maximum(curvature, 1e-20))

        def moved(fraction: Array) -> Meta:
            return jax.tree.map(lambda p, d: p - fraction * length * d, meta, direction)

        def fails(fraction: Array) -> Array:
            candidate = moved(fraction)
            better = loss_of(candidate)[0] < loss
            return ~(better & (jnp.mean(kl_of_tasks(policies(candidate))) <= max_kl))

        def shorter(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            tried, fraction, _ = carry
            fraction = fraction * shrink
            return tried + 1, fraction, fails(fraction)

        one = jnp.ones((), loss.dtype)
        _, fraction, failed = jax.lax.while_loop(
            lambda carry: carry[2] & (carry[0] < backtracks),
            shorter,
            (jnp.ones((), jnp.int32), one, fails(one)),
        )
        fraction = jnp.where(failed, 0, fraction)
        # By a choice, not by a product with zero: a direction that is not finite must not spoil what was.
        new = jax.tree.map(lambda a, b: jnp.where(failed, b, a), moved(fraction), meta)
        kl = kl_of_tasks(policies(new))
        found = {
            **metrics,
            "kl": jnp.mean(kl),
            "max_kl": jnp.max(kl),
            "step_length": fraction,
            "grad_norm": optax.tree.norm(grads),
        }
        return new, state, found

    return Improve(lambda meta: (), update)


def fisher_product(
    policies: Callable[[Meta], Any], meta: Meta, weights: Array
) -> Callable[[Meta], Meta]:
    """Makes the product of the Fisher matrix of policies with a vector, J^T F J v.

    It is the Hessian of the mean divergence KL(policies(meta) || policies(.)) at `meta`, by Gauss and Newton.

    Args:
      policies: Function from meta-parameters to distributions [T, B].
      meta: Meta-parameters.
      weights: Float weights [T, B]; the mean is over the steps of each task and then over tasks.

    Returns:
      Function from a tree like `meta` to another.

    Raises:
      ValueError: (when called) If the policies have no forward mode, as with a mixed adjoint.

    Example:
      >>> policies = lambda mean: metajax.rl.Normal(jnp.full((1, 2, 1), mean), jnp.zeros((1, 2, 1)))
      >>> product = lambda vector: fisher_product(policies, jnp.array(0.0), jnp.ones((1, 2)))(vector)
      >>> jax.jit(product)(jnp.array(3.0)).item()
      3.0

    Reference: Schulman et al., 2015 (https://arxiv.org/abs/1502.05477), appendix C.1.
    """
    old, push = jax.linearize(policies, meta)
    _, pull = jax.vjp(policies, meta)

    def product(vector: Meta) -> Meta:
        def mean_kl(policy: Any) -> Array:
            return jnp.mean(_kl_of_tasks(old, policy, weights))

        try:
            towards = push(vector)
        except TypeError as refusal:
            if "custom_vjp" not in str(refusal):
                raise
            raise ValueError(
                "The policies have no forward mode, which the Fisher product needs; use the adjoint "
                "'reverse' or 'remat'."
            ) from refusal
        _, bent = jax.jvp(jax.grad(mean_kl), (old,), (towards,))
        return pull(bent)[0]

    return product


def _kl_of_tasks(old: Any, new: Any, weights: Array) -> Array:
    """Computes the mean divergence [T] of each task over its steps, of policies [T, B]."""
    return jnp.sum(old.kl(new) * weights, axis=1) / jnp.sum(weights, axis=1)
