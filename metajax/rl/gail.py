"""Generative adversarial imitation (GAIL): a policy learns to visit what an expert visited.

A discriminator tells the expert's observations and actions from the policy's, and a function of its logit is
the policy's reward. At its optimum the logit is log p_expert / p_policy of the observation and the action.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.rl.discriminators import Discriminator, rewarded, visits
from metajax.rl.distributions import policy_of
from metajax.rl.experience import as_batch, lived
from metajax.rl.imitation import Demonstrated
from metajax.rl.improve import Improve, OutputsFn
from metajax.rl.returns import advantages
from metajax.rl.types import Env
from metajax.train import StepFn, TrainState
from metajax.types import Array, Batch, Key, LossFn, Meta, Metrics, Model, Params


class GailParams(NamedTuple):
    """Parameters of a policy and its discriminator.

    Attributes:
      policy: Parameters of the policy.
      discriminator: Parameters of the discriminator.
    """

    policy: Params
    discriminator: Params


class Gail(NamedTuple):
    """Generative adversarial imitation of one expert.

    Attributes:
      init: Function `(key, demonstrations) -> TrainState`, whose `meta` is `GailParams`.
      step: Function `(state, Demonstrated) -> (state, metrics)`, an iteration; the `query` is not read.
    """

    init: Callable[[Key, Batch], TrainState]
    step: StepFn


def make_gail(
    env: Env,
    policy: Model,
    judge: Discriminator,
    improve: Improve,
    *,
    episodes: int,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 1,
    discount: float = 0.995,
    trace: float = 0.97,
    baseline: str = "linear",
    truncation: str = "end",
    policy_entropy: float = 0.0,
) -> Gail:
    """Makes generative adversarial imitation: gather experience, train the discriminator, then the policy.

    An iteration is a pure function of a `TrainState`, which holds everything: it compiles, `many_steps` and
    `make_run` repeat it, and a run that is resumed is the same run.

    Args:
      env: Environment; its own reward is reported as `return`, and not learned from.
      policy: Policy, such as `mlp_policy(...)`, with a critic for `baseline="value"`.
      judge: Discriminator.
      improve: Improvement of the policy, such as `trust_region(policy_outputs(policy), damping=0.1)`, or
        `on_rows(policy, clipped(value_cost=0.5), optax.adam(3e-4))`.
      episodes: Number of episodes N of an iteration.
      optimizer: Optimizer of the discriminator; None is Adam with the published step size 0.01. With few
        demonstrations 0.001 is steadier: the discriminator learns them by heart more slowly.
      steps: Number of optimizer steps of the discriminator per iteration.
      discount: Discount per step.
      trace: Lambda of generalized advantage estimation.
      baseline: Baseline, as in `advantages`.
      truncation: Treatment of the time limit, as in `advantages`; with "bootstrap" and absorbing states an
        end is worth the absorbing state forever.
      policy_entropy: Factor of the policy's causal entropy: -log pi of an action is added to its reward.

    Returns:
      A `Gail`. Metrics are the discriminator's in its last step, the metrics of `improve`, and `return`,
      `length` and `learned_return`, means over episodes.

    Raises:
      ValueError: If `steps` is below 1, or `discount` is 1 with absorbing states and "bootstrap".

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> policy = metajax.rl.mlp_policy(env.actions, hidden=())
      >>> improve = metajax.rl.trust_region(metajax.rl.policy_outputs(policy), damping=0.1)
      >>> gail = make_gail(env, policy, metajax.rl.discriminator(env.actions), improve, episodes=8)
      >>> best = lambda task, seen: jnp.full(seen.shape[0], jnp.argmax(task))
      >>> task = jnp.array([0.0, 1.0, 0.0])
      >>> shown = jax.eval_shape(metajax.rl.demonstrations(env, best), jax.random.key(0), task)
      >>> state = jax.eval_shape(gail.init, jax.random.key(1), shown)
      >>> _, metrics = jax.eval_shape(gail.step, state, metajax.rl.Demonstrated(task, shown))
      >>> metrics["return"].shape
      ()

    Reference: Ho and Ermon, 2016 (https://arxiv.org/abs/1606.03476), algorithm 1. Their code improves the
    policy first, by the discriminator of the iteration before.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 or more.")
    if judge.absorbing and truncation == "bootstrap" and not discount < 1:
        raise ValueError(f"discount is {discount}; an absorbing state forever needs one below 1.")
    estimate = advantages(discount=discount, trace=trace, baseline=baseline, truncation=truncation)
    chosen = optax.adam(0.01) if optimizer is None else optimizer

    def init(key: Key, demonstrations: Batch) -> TrainState:
        policy_key, judge_key, run_key = jax.random.split(key, 3)
        params = GailParams(
            policy.init(policy_key, demonstrations.inputs), judge.init(judge_key, demonstrations)
        )
        opt_state = (improve.init(params.policy), chosen.init(params.discriminator))
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, run_key)

    def step(state: TrainState, data: Demonstrated) -> tuple[TrainState, Metrics]:
        states: Any = state.opt_state
        params, (policy_state, judge_state) = state.meta, states
        act_key, judge_key, improve_key = jax.random.split(
            jax.random.fold_in(state.key, state.step), 3
        )
        expert = data.support

        def act(observation: Any) -> Any:
            return policy.apply(params.policy, observation)

        lives = lived(env, act, act_key, data.task, episodes=episodes)
        own = visits(lives)

        def fit(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Metrics]:
            found, state = carry
            grads, metrics = jax.grad(judge.loss, has_aux=True)(found, key, own, expert)
            updates, state = chosen.update(grads, state, found)
            return (optax.apply_updates(found, updates), state), metrics

        (found, judge_state), metrics = jax.lax.scan(
            fit, (params.discriminator, judge_state), jax.random.split(judge_key, steps)
        )
        judged = rewarded(
            judge, found, lives, expert, discount=discount, forever=truncation == "bootstrap"
        )
        if policy_entropy:
            bonus = -policy_entropy * policy_of(lives.behavior).log_prob(lives.action)
            judged = judged._replace(reward=judged.reward + jnp.where(lives.alive, bonus, 0))
        experience = jax.tree.map(lambda leaf: leaf[None], as_batch(judged, estimate))
        learned, policy_state, improved = improve.update(
            params.policy, policy_state, improve_key, improve_key[None], experience
        )
        new = TrainState(
            state.step + 1, GailParams(learned, found), (policy_state, judge_state), state.key
        )
        return new, {
            **improved,
            **jax.tree.map(lambda leaf: leaf[-1], metrics),
            "return": jnp.mean(jnp.sum(lives.reward, axis=1)),
            "length": jnp.mean(jnp.sum(lives.alive, axis=1, dtype=lives.reward.dtype)),
            "learned_return": jnp.mean(jnp.sum(judged.reward, axis=1)),
        }

    return Gail(init, step)


def policy_outputs(model: Model) -> OutputsFn:
    """Makes the outputs function of a policy that does not adapt, for `trust_region`.

    Args:
      model: Policy.

    Returns:
      `(params, key, batch) -> (outputs, batch)`.

    Example:
      >>> policy = metajax.rl.mlp_policy(metajax.rl.Discrete(3))
      >>> improve = metajax.rl.trust_region(policy_outputs(policy), max_kl=0.01, damping=0.1)
    """
    return lambda params, key, batch: (model.apply(params, batch.inputs), batch)


def on_rows(
    model: Model,
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 10,
    minibatches: int = 4,
) -> Improve:
    """Improves a policy that does not adapt by minibatches of single steps of all tasks (PPO).

    Args:
      model: Policy; its outputs depend on one observation alone.
      loss: Loss of experience, such as `clipped(epsilon=0.2, value_cost=0.5)`, or `value_loss`.
      optimizer: Optimizer.
      epochs: Number of passes over the experience.
      minibatches: Number of parts into which the rows are divided anew in each pass, at random; rows that are
        left over wait for the next pass.

    Returns:
      An `Improve`; its metrics are the `loss` and `grad_norm` of the first minibatch.

    Raises:
      ValueError: If `epochs` or `minibatches` is below 1, or (when called) there are fewer rows than parts.

    Example:
      >>> policy = metajax.rl.mlp_policy(metajax.rl.Discrete(3), critic=True)
      >>> improve = on_rows(policy, metajax.rl.clipped(value_cost=0.5), optax.adam(3e-4))

    Reference: Schulman et al., 2017 (https://arxiv.org/abs/1707.06347), algorithm 1.
    """
    for name, number in (("epochs", epochs), ("minibatches", minibatches)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")

    def score(params: Params, batch: Batch) -> Array:
        return loss(model.apply(params, batch.inputs), batch)

    def update(params: Params, state: Any, key: Key, keys: Key, lives: Batch):
        del keys
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), lives)
        number = len(rows.weights)
        size = number // minibatches
        if not size:
            raise ValueError(
                f"{number} rows do not fill {minibatches} minibatches; use fewer of them."
            )

        def one(carry: tuple[Params, Any], chosen: Array) -> tuple[tuple[Params, Any], Metrics]:
            batch = jax.tree.map(lambda leaf: leaf[chosen], rows)
            value, grads = jax.value_and_grad(score)(carry[0], batch)
            updates, after = optimizer.update(grads, carry[1], carry[0])
            moved = (optax.apply_updates(carry[0], updates), after)
            # All steps of a minibatch may lie after an end, and their mean is NaN.
            some = jnp.any(batch.weights > 0)
            kept = jax.tree.map(lambda new, old: jnp.where(some, new, old), moved, carry)
            return kept, {"loss": value, "grad_norm": optax.tree.norm(grads)}

        def epoch(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Metrics]:
            order = jax.random.permutation(key, number)[: size * minibatches]
            return jax.lax.scan(one, carry, order.reshape(minibatches, size))

        (params, state), metrics = jax.lax.scan(
            epoch, (params, state), jax.random.split(key, epochs)
        )
        return params, state, jax.tree.map(lambda leaf: leaf[0, 0], metrics)

    return Improve(optimizer.init, update)


def in_turn(*improves: Improve) -> Improve:
    """Applies several improvements to the same experience, one after another.

    Args:
      *improves: Improvements, such as `trust_region(...)` of the policy and `on_rows(model, value_loss, ...)`
        of the value. Metrics of the first take precedence.

    Returns:
      An `Improve`.

    Example:
      >>> policy = metajax.rl.mlp_policy(metajax.rl.Discrete(3), critic=True)
      >>> improve = in_turn(
      ...     metajax.rl.trust_region(metajax.rl.policy_outputs(policy), damping=0.1),
      ...     metajax.rl.on_rows(policy, metajax.rl.value_loss, optax.adam(1e-3)))
    """

    def update(meta: Meta, states: Any, key: Key, keys: Key, lives: Any):
        metrics: Metrics = {}
        after = []
        for index, (improve, state) in enumerate(zip(improves, states, strict=True)):
            own_key = jax.random.fold_in(key, index)
            meta, state, found = improve.update(meta, state, own_key, keys, lives)
            metrics, after = {**found, **metrics}, [*after, state]
        return meta, tuple(after), metrics

    return Improve(lambda meta: tuple(improve.init(meta) for improve in improves), update)
