"""Objectives of experience: the outer loss of a life or a trial that has been lived."""

import jax
import jax.numpy as jnp

from metajax.objectives.scoring import Scoring, as_scoring
from metajax.rl.distributions import policy_of
from metajax.rl.losses import policy_kl
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
    Tree,
)


def lifetime_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    kl_cost: float = 0.0,
    exploration: float = 0.0,
) -> Objective:
    """Adapts again to what was lived and scores the experience after the last call.

    The task is an `Episode` of `live`. Its experience is data, so that an optimizer may take several steps on
    it: the policy that acted is recorded, and surrogates of likelihood ratios correct for it.

    Args:
      learner: Learner that lived.
      scoring: Scoring or loss of the experience after adapting, such as `clipped()`.
      kl_cost: Factor of the mean divergence, over the calls, of the policy before each call from the one that
        acted; the penalty of ProMP.
      exploration: Factor of E-MAML's term: the log-likelihood of the actions before adapting, times the mean
        return after adapting less the mean over the batch's value baseline. It credits exploration for what
        was learned from it.

    Returns:
      `(meta, key, life) -> (loss, metrics)`. The metrics are the scoring's and, with `kl_cost`,
      `inner_kl`.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> loss = metajax.rl.policy_gradient()
      >>> learner = metajax.maml(metajax.rl.mlp_policy(env.actions), loss, rule=optax.sgd(0.1))
      >>> task = env.sample(jax.random.key(0))
      >>> meta = learner.init(jax.random.key(1), env.reset(jax.random.key(2), task)[1][None])
      >>> life = jax.eval_shape(metajax.rl.live(learner, env, episodes=5), meta, jax.random.key(3), task)
      >>> objective = lifetime_objective(learner, metajax.rl.clipped())
      >>> sorted(jax.eval_shape(objective, meta, jax.random.key(3), life)[1])
      ['loss']

    Reference: ProMP, Rothfuss et al., 2019 (https://arxiv.org/abs/1810.06784), eq. 13; E-MAML, Stadie et
    al., 2018 (https://arxiv.org/abs/1803.01118), section 3.
    """
    scoring = as_scoring(scoring)

    def objective(meta: Meta, key: Key, life: Episode) -> tuple[Array, Metrics]:
        start_key, adapt_key = jax.random.split(key)
        calls = life.support.weights.shape[0]

        def call(fast: Fast, batch_and_key: tuple[Batch, Key]) -> tuple[Fast, tuple[Array, Array]]:
            batch, key = batch_and_key
            zero = jnp.zeros((), batch.weights.dtype)
            kl, log_likelihood = zero, zero
            if kl_cost or exploration:
                outputs = learner.predict(meta, fast, batch.inputs)
                kl = policy_kl(outputs, batch)
                log_prob = policy_of(outputs).log_prob(batch.targets.action)
                log_likelihood = jnp.sum(jnp.where(batch.weights > 0, log_prob, 0))
                log_likelihood = log_likelihood / jnp.sum(batch.targets.ends)
            return learner.adapt(meta, fast, key, batch), (kl, log_likelihood)

        keys = jax.random.split(adapt_key, calls)
        fast = learner.start(meta, start_key)
        fast, (kl, log_likelihood) = jax.lax.scan(call, fast, (life.support, keys))
        values = scoring.score(learner, meta, fast, life.query)
        loss = scoring.total(values)
        if kl_cost:
            loss, values = loss + kl_cost * jnp.mean(kl), {**values, "inner_kl": jnp.mean(kl)}
        if exploration:
            weights = life.query.weights
            good = jnp.sum(life.query.targets.advantage * weights) / jnp.sum(weights)
            loss = loss - exploration * jnp.sum(log_likelihood) * good
        return loss, values

    return objective


def trial_objective(learner: Learner, scoring: Scoring | LossFn) -> Objective:
    """Replays a trial in order, and scores the predictions before each step.

    The task is the experience of `trials`: rows of several episodes of one task, one after another. Each row
    is predicted from the state before it, and then read.

    Args:
      learner: Learner that reads step by step, such as `reading_policy`.
      scoring: Scoring or loss of all outputs [B, ...], such as `clipped(value_cost=0.5)`.

    Returns:
      `(meta, key, trial) -> (loss, metrics)`.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> reader = metajax.learners.gru_model(8)
      >>> learner = metajax.rl.reading_policy(reader, env.actions)
      >>> task = env.sample(jax.random.key(0))
      >>> meta = learner.init(jax.random.key(1), env.reset(jax.random.key(2), task)[1][None])
      >>> trials = metajax.rl.trials(learner, env, episodes=1)
      >>> trial = jax.eval_shape(trials, meta, jax.random.key(3), task)
      >>> objective = trial_objective(learner, metajax.rl.clipped(value_cost=0.5))
      >>> jax.eval_shape(objective, meta, jax.random.key(4), trial)[0].shape
      ()

    Reference: Duan et al., 2016 (https://arxiv.org/abs/1611.02779), section 2.2.
    """
    scoring = as_scoring(scoring)

    def objective(meta: Meta, key: Key, trial: Batch) -> tuple[Array, Metrics]:
        outputs, fast = replay(learner, meta, key, trial)
        values = scoring.penalize(scoring.measure(outputs, trial), meta, fast)
        return scoring.total(values), values

    return objective


def replay(learner: Learner, meta: Meta, key: Key, trial: Batch) -> tuple[Tree, Fast]:
    """Predicts each row of a trial from the state before it.

    Args:
      learner: Learner that reads step by step.
      meta: Meta-parameters.
      key: Random key; consumed.
      trial: Rows [B] in the order in which they were lived.

    Returns:
      Outputs [B, ...], and the fast state after the last row.
    """
    start_key, adapt_key = jax.random.split(key)
    rows = jax.tree.map(lambda leaf: leaf[:, None], trial)

    def step(fast: Fast, row: Batch) -> tuple[Fast, Tree]:
        outputs = learner.predict(meta, fast, row.inputs)
        return learner.adapt(meta, fast, adapt_key, row), outputs

    fast, outputs = jax.lax.scan(step, learner.start(meta, start_key), rows)
    return jax.tree.map(lambda leaf: leaf[:, 0], outputs), fast
