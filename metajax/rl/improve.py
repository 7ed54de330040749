"""Outer steps on experience: several optimizer steps, or one step within a trust region."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from metajax.objectives.scoring import as_scoring
from metajax.rl.distributions import policy_of
from metajax.rl.experience import call_keys, steps_taken
from metajax.rl.losses import policy_gradient
from metajax.rl.objectives import replay
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
    Objective,
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


def lifetime_outputs(learner: Learner) -> OutputsFn:
    """Makes the function that `lifetime_objective` scores: the outputs after adapting to what was lived.

    Args:
      learner: Learner that lived.

    Returns:
      `(meta, key, life) -> (outputs, query batch)`.

    Example:
      >>> model = metajax.rl.mlp_policy(metajax.rl.Discrete(3))
      >>> loss = metajax.rl.policy_gradient()
      >>> outputs = lifetime_outputs(metajax.maml(model, loss, rule=optax.sgd(0.1)))
      >>> improve = metajax.rl.trust_region(outputs)
    """

    def outputs(meta: Meta, key: Key, life: Episode) -> tuple[Tree, Batch]:
        start_key, _, adapt_keys = call_keys(key, life.support.targets.ends.shape[0])

        def call(fast: Any, batch_and_key: tuple[Batch, Key]) -> tuple[Any, None]:
            batch, key = batch_and_key
            return learner.adapt(meta, fast, key, batch), None

        fast, _ = jax.lax.scan(call, learner.start(meta, start_key), (life.support, adapt_keys))
        return learner.predict(meta, fast, life.query.inputs), life.query

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


def normalize_over_tasks(lives: Any) -> Any:
    """Shifts and scales the advantages of a step to mean 0 and deviation 1 over all tasks together.

    Args:
      lives: Trials [T, B, ...], or lives of `live`. Of these only the query is scaled: the advantages of the
        support were adapted to, and replaying must adapt to the same.

    Returns:
      The same with other advantages.

    Example:
      >>> ones = jnp.ones((2, 3))
      >>> advantage = jnp.arange(6.0).reshape(2, 3)
      >>> decisions = metajax.rl.Decisions(ones, ones, ones > 0, None, advantage, ones, ones)
      >>> lives = normalize_over_tasks(metajax.Batch(ones, decisions, ones))
      >>> bool(jnp.abs(lives.targets.advantage.mean()) < 1e-6)
      True
    """

    def scaled(batch: Batch) -> Batch:
        advantage, weights = batch.targets.advantage, steps_taken(batch)
        total = jnp.sum(weights)
        centered = (advantage - jnp.sum(advantage * weights) / total) * weights
        deviation = jnp.sqrt(jnp.sum(centered**2) / total)
        found = centered / jnp.maximum(deviation, 1e-6)
        return batch._replace(targets=batch.targets._replace(advantage=found))

    return (
        lives._replace(query=scaled(lives.query)) if isinstance(lives, Episode) else scaled(lives)
    )
