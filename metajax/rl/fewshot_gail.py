"""Few-shot adversarial imitation: a policy and a discriminator that adapt together to a new expert."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.losses import weighted_mean
from metajax.objectives.evidence import TaskEvidence
from metajax.rl.discriminators import Discriminator, rewarded
from metajax.rl.distributions import policy_of
from metajax.rl.experience import rollouts
from metajax.rl.gail import GailParams
from metajax.rl.imitation import Demonstrated
from metajax.rl.returns import advantages
from metajax.rl.types import Decisions, Env, Trajectories
from metajax.types import Array, Batch, Fast, Key, Learner, Meta, Model, Params


class Comparison(NamedTuple):
    """What a learner of `gail_learner` adapts to, in place of a batch.

    Attributes:
      own: Experience of the policy as adapted so far, a batch of `Decisions` of whole episodes.
      expert: Demonstrations.
    """

    own: Batch
    expert: Batch


class GailFast(NamedTuple):
    """Fast state of few-shot adversarial imitation: both networks and the states of their rules.

    Attributes:
      params: Parameters of policy and discriminator.
      opt_state: States of their rules.
    """

    params: GailParams
    opt_state: GailParams


def gail_learner(
    env: Env,
    policy: Model,
    judge: Discriminator,
    *,
    policy_rule: optax.GradientTransformation,
    judge_rule: optax.GradientTransformation,
    steps: int = 1,
    discount: float = 0.995,
    trace: float = 0.97,
    baseline: str = "linear",
    normalize: bool = True,
) -> Learner[GailParams, GailFast]:
    """Adapts a policy and its discriminator to a new expert by alternating gradient steps: few-shot GAIL.

    The meta-parameters are the two initializations. A call of `adapt` reads demonstrations and the policy's
    own experience, and takes `steps` pairs of steps on them: one of the discriminator on its loss, one of the
    policy on the likelihood ratio times the advantage that the discriminator's reward implies. Nothing here
    stops a gradient but the rules: by `backprop`, the outer loss also trains the discriminator's start, by
    the advantages that the policy's steps use. Visited states are data: it is the gradient for given
    experience. `metajax.reptile` moves both starts towards what they adapted to.

    This is the initialization of MAML around the alternation of GAIL, and no published algorithm by itself;
    the nearest ones meta-learn a reward's initialization.

    Args:
      env: Environment, of which only the horizon is used.
      policy: Policy.
      judge: Discriminator.
      policy_rule: Rule of the policy's steps; behind `metajax.inner.stop_gradient()` first order.
      judge_rule: Rule of the discriminator's steps.
      steps: Number of pairs of steps per call.
      discount: Discount per step.
      trace: Lambda of generalized advantage estimation.
      baseline: "linear" or "none".
      normalize: Whether advantages are normalized.

    Returns:
      A learner with meta-parameters `GailParams` that adapts to a `Comparison`, which `gail_evidence` makes.

    Raises:
      ValueError: If `steps` is below 0, or the baseline is another.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> policy = metajax.rl.mlp_policy(env.actions, hidden=())
      >>> learner = gail_learner(
      ...     env, policy, metajax.rl.discriminator(env.actions, hidden=(8,)),
      ...     policy_rule=optax.sgd(0.5), judge_rule=optax.sgd(0.5))
      >>> evidence = metajax.rl.gail_evidence(learner, env, episodes=4)
      >>> objective = metajax.query_objective(learner, metajax.rl.imitation_loss, evidence=evidence)
      >>> best = lambda task, seen: jnp.full(seen.shape[0], jnp.argmax(task))
      >>> draw = metajax.rl.demonstration_episode(env, best)
      >>> task = jax.eval_shape(draw, jax.random.key(0), jnp.array([0.0, 1.0, 0.0]))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> jax.eval_shape(objective, meta, jax.random.key(2), task)[0].shape
      ()

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), eq. 1, around Ho and Ermon, 2016
    (https://arxiv.org/abs/1606.03476), algorithm 1. Related: Xu et al., 2019
    (https://arxiv.org/abs/1805.12573); Yu et al., 2019 (https://arxiv.org/abs/1909.09314).
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; use 0 or more.")
    if baseline not in ("linear", "none"):
        raise ValueError(f"baseline is {baseline!r}; use 'linear' or 'none'.")
    estimate = advantages(
        discount=discount, trace=trace, baseline=baseline, normalize=normalize, truncation="end"
    )

    def init(key: Key, inputs: Any) -> GailParams:
        policy_key, judge_key = jax.random.split(key)
        params = policy.init(policy_key, inputs)
        # Any actions will do: only their shape is read.
        like = policy_of(policy.apply(params, inputs)).mode()
        return GailParams(params, judge.init(judge_key, Batch(inputs, like)))

    def start(meta: GailParams, key: Key, like: Any = None) -> GailFast:
        del key, like
        states = GailParams(policy_rule.init(meta.policy), judge_rule.init(meta.discriminator))
        return GailFast(meta, states)

    def adapt(meta: GailParams, fast: GailFast, key: Key, batch: Any) -> GailFast:
        del meta
        own, expert = batch
        lives = _trajectories(own, env.horizon)
        weights = own.weights

        def surrogate(params: Params, advantage: Array) -> Array:
            decisions: Decisions = own.targets
            log_prob = policy_of(policy.apply(params, own.inputs)).log_prob(decisions.action)
            ratio = jnp.exp(log_prob - decisions.behavior.log_prob(decisions.action))
            return -weighted_mean(ratio * advantage, weights)

        def pair(fast: GailFast, key: Key) -> tuple[GailFast, None]:
            (ours, found), states = fast
            grads, _ = jax.grad(judge.loss, has_aux=True)(found, key, own, expert)
            updates, judge_state = judge_rule.update(grads, states.discriminator, found)
            found = optax.apply_updates(found, updates)
            judged = rewarded(judge, found, lives, expert, discount=discount)
            advantage = estimate(judged).advantage.reshape(-1)
            grads = jax.grad(surrogate)(ours, advantage)
            updates, policy_state = policy_rule.update(grads, states.policy, ours)
            ours = optax.apply_updates(ours, updates)
            return GailFast(GailParams(ours, found), GailParams(policy_state, judge_state)), None

        return jax.lax.scan(pair, fast, jax.random.split(key, steps))[0]

    def predict(meta: GailParams, fast: GailFast, inputs: Any) -> Any:
        del meta
        return policy.apply(fast.params.policy, inputs)

    def adapted(fast: GailFast) -> GailParams:
        return fast.params

    return Learner(init, start, adapt, predict, adapted)


def gail_evidence(learner: Learner, env: Env, *, episodes: int) -> TaskEvidence:
    """Makes the evidence of few-shot adversarial imitation, for tasks that are `Demonstrated`.

    Args:
      learner: Learner of `gail_learner`.
      env: Environment, in which the learner gathers its own experience before each call of `adapt`.
      episodes: Number of episodes of it.

    Returns:
      Evidence whose support is a `Comparison` and whose query are the demonstrations that remain.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> policy = metajax.rl.mlp_policy(env.actions, hidden=())
      >>> learner = metajax.rl.gail_learner(
      ...     env, policy, metajax.rl.discriminator(env.actions),
      ...     policy_rule=optax.sgd(0.5), judge_rule=optax.sgd(0.5))
      >>> evidence = gail_evidence(learner, env, episodes=4)
    """
    act = rollouts(learner, env, episodes=episodes, advantage=advantages(baseline="none"))

    def support(meta: Meta, fast: Fast, key: Key, task: Demonstrated) -> Any:
        return Comparison(act(meta, fast, key, task.task), task.support)

    def query(meta: Meta, fast: Fast, key: Key, task: Demonstrated) -> Any:
        del meta, fast, key
        return task.query

    return TaskEvidence(support, query)


def _trajectories(batch: Batch, horizon: int) -> Trajectories:
    """Restores trajectories from experience of whole episodes; an end at the horizon is the time limit's."""
    decisions: Decisions = batch.targets

    def shaped(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, horizon, *leaf.shape[1:]), tree)

    observation, alive, ends = (
        shaped(batch.inputs),
        shaped(batch.weights) > 0,
        shaped(decisions.ends),
    )
    reward = shaped(decisions.reward)
    return Trajectories(
        observation=observation,
        action=shaped(decisions.action),
        reward=reward,
        alive=alive,
        terminated=ends & (jnp.arange(horizon) < horizon - 1),
        ends=ends,
        behavior=shaped(decisions.behavior),
        value=jnp.zeros_like(reward),
        last_observation=jax.tree.map(lambda leaf: leaf[:, -1], observation),
        last_value=jnp.zeros_like(reward[:, 0]),
    )
