"""Objectives of experience: the outer loss of a life or a trial that has been lived."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.losses import weighted_mean
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.rl.distributions import policy_of
from metajax.rl.experience import adapt_in_turn, call_keys, rollouts, steps_taken
from metajax.rl.losses import mean_return, policy_kl
from metajax.rl.returns import AdvantageFn
from metajax.rl.types import Env
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
    Task,
    Tree,
)


def lifetime_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    kl_cost: float = 0.0,
    exploration: float = 0.0,
    exploration_baseline: Callable[[Episode], Array] | float = 0.0,
    whole: bool = False,
) -> Objective:
    """Adapts again to what was lived and scores the experience after the last call, or all of it.

    The task is an `Episode` of `live`. Its experience is data, so that an optimizer may take several steps on
    it: the policy that acted is recorded, and surrogates of likelihood ratios correct for it.

    Args:
      learner: Learner that lived.
      scoring: Scoring or loss of the experience after adapting, such as `clipped()`.
      kl_cost: Factor of the mean divergence, over the calls, of the policy before each call from the one that
        acted; the penalty of ProMP.
      exploration: Factor of E-MAML's term: the log-likelihood of all actions adapted to, times the mean
        reward of a step after adapting. It credits exploration for what was learned from it. With factor 1,
        an inner loss of curvature "none", an outer surrogate whose advantages are neither discounted nor
        normalized, and episodes of full length, the expected gradient is exact for any N: of minus the return
        after adapting, divided by the horizon. The other curvatures estimate the same effect: with them it
        would count twice. All of this holds for the first optimizer step on an experience.
      exploration_baseline: Mean reward of a step to expect, which the term subtracts: a number, or a function
        of the life. It must not depend on the actions adapted to; less variance, same expectation.
      whole: Whether the life is one of `whole_lives`: each call's rows are scored as predicted before it.

    Returns:
      `(meta, key, life) -> (loss, metrics)`. The metrics are the scoring's and, with `kl_cost`,
      `inner_kl`.

    Raises:
      ValueError: If `exploration` goes with `whole`, whose gradient has that term already.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> loss = metajax.rl.policy_gradient()
      >>> learner = metajax.maml(metajax.rl.mlp_policy(env.actions), loss, rule=optax.sgd(0.1))
      >>> task = env.sample(jax.random.key(0))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), jnp.zeros((1, 1)))
      >>> life = jax.eval_shape(metajax.rl.live(learner, env, episodes=5), meta, jax.random.key(3), task)
      >>> objective = lifetime_objective(learner, metajax.rl.clipped())
      >>> sorted(jax.eval_shape(objective, meta, jax.random.key(3), life)[1])
      ['loss']

    Reference: ProMP, Rothfuss et al., 2019 (https://arxiv.org/abs/1810.06784), eq. 13; E-MAML, Stadie et
    al., 2018 (https://arxiv.org/abs/1803.01118), eq. 5.
    """
    scoring = as_scoring(scoring)
    if whole and exploration:
        raise ValueError(
            f"exploration is {exploration}; use 0 with whole=True, where actions are credited for all that "
            "follows already."
        )

    def objective(meta: Meta, key: Key, task: Episode) -> tuple[Array, Metrics]:
        life = task

        def look(outputs: Tree, batch: Batch) -> tuple[Array, Array]:
            log_prob = policy_of(outputs).log_prob(batch.targets.action)
            log_likelihood = jnp.sum(jnp.where(steps_taken(batch) > 0, log_prob, 0))
            return policy_kl(outputs, batch), log_likelihood

        looked = look if kl_cost or exploration else None
        fast, outputs, found = relive(
            learner, meta, key, life, whole=whole, look=looked, predict=scoring.predict
        )
        values = scoring.penalize(scoring.measure(outputs, life.query), meta, fast)
        loss = scoring.total(values)
        if kl_cost:
            kl = jnp.mean(found[0])
            loss, values = loss + kl_cost * kl, {**values, "inner_kl": kl}
        if exploration:
            good = weighted_mean(life.query.targets.reward, life.query.weights)
            expected = exploration_baseline
            expected = expected(life) if callable(expected) else expected
            credit = jax.lax.stop_gradient(good - expected)
            loss = loss - exploration * jnp.sum(found[1]) * credit
        return loss, values

    return objective


def relive(
    learner: Learner,
    meta: Meta,
    key: Key,
    life: Episode,
    *,
    whole: bool = False,
    look: Callable[[Tree, Batch], Tree] | None = None,
    predict: Callable[[Learner, Meta, Fast, Tree], Tree] | None = None,
) -> tuple[Fast, Tree, Tree]:
    """Adapts again to what was lived.

    Args:
      learner: Learner that lived.
      meta: Meta-parameters, which may have moved since.
      key: Random key of the life; consumed.
      life: Experience of `live`, or of `whole_lives`.
      whole: Whether the outputs are of the whole life, call by call.
      look: Function `(outputs, batch) -> tree` of each call before it adapts.
      predict: Function `(learner, meta, fast, inputs) -> outputs` of what is scored, as `Scoring.predict`;
        None is the learner's own.

    Returns:
      Fast state after the last call, outputs for the rows of the query, and what `look` saw, [C, ...].
    """
    calls, size = life.support.targets.ends.shape
    start_key, _, adapt_keys = call_keys(key, calls)

    def answer(fast: Fast, inputs: Tree) -> Tree:
        if predict is None:
            return learner.predict(meta, fast, inputs)
        return predict(learner, meta, fast, inputs)

    def gather(fast: Fast, batch: Batch) -> tuple[Batch, Tree]:
        if not whole and look is None:
            return batch, ((), ())
        outputs = answer(fast, batch.inputs)
        return batch, (outputs if whole else (), () if look is None else look(outputs, batch))

    fast = learner.start(meta, start_key)
    fast, (before, seen) = adapt_in_turn(learner, meta, fast, adapt_keys, life.support, gather)
    if not whole:
        return fast, answer(fast, life.query.inputs), seen
    last = jax.tree.map(lambda leaf: leaf[calls * size :], life.query.inputs)
    outputs = jax.tree.map(
        lambda rows, more: jnp.concatenate([rows.reshape(-1, *rows.shape[2:]), more]),
        before,
        answer(fast, last),
    )
    return fast, outputs, seen


def return_after(
    learner: Learner,
    env: Env,
    *,
    episodes: int,
    calls: int = 1,
    advantage: AdvantageFn | None = None,
    mode: bool = False,
    whole: bool = False,
) -> Objective:
    """Lets a learner live in a task and measures its returns: after no call of `adapt`, after one, and so on.

    As an objective of evolution it is ES-MAML, which needs no derivative; as an evaluation, the curve of
    adaptation. Each return is that of the episodes that the next call adapts to, or of further ones after the
    last; so the curve costs nothing.

    Args:
      learner: Learner whose outputs are distributions of actions.
      env: Environment.
      episodes: Number of episodes N before each call of `adapt`, and after the last.
      calls: Number of calls C of `adapt`, 0 or more.
      advantage: Estimator of the advantages adapted to; None is `advantages()`.
      mode: Whether returns are measured in N further episodes with the most likely actions. Actions are drawn
        all the same in the episodes that are adapted to.
      whole: Whether all rewards count, those before adapting too: the loss is minus the sum over all
        episodes of all calls.

    Returns:
      `(meta, key, task) -> (loss, metrics)`: the loss is minus the mean undiscounted return after the last
      call; the metrics are `return_0` to `return_C`, means over episodes, and `loss`. Keys are derived as by
      `live`.

    Raises:
      ValueError: If `calls` is below 0.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> loss = metajax.rl.policy_gradient()
      >>> learner = metajax.maml(metajax.rl.mlp_policy(env.actions), loss, rule=optax.sgd(0.1))
      >>> task = env.sample(jax.random.key(0))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), jnp.zeros((1, 1)))
      >>> objective = return_after(learner, env, episodes=5, calls=2)
      >>> list(jax.eval_shape(objective, meta, jax.random.key(3), task)[1])
      ['loss', 'return_0', 'return_1', 'return_2']
      >>> meta_grad = metajax.metagrads.evolution(objective, sigma=0.1)

    Reference: Song et al., 2020 (https://arxiv.org/abs/1910.01215), section 3.
    """
    if calls < 0:
        raise ValueError(f"calls is {calls}; use 0 or more.")
    evidence = rollouts(learner, env, episodes=episodes, advantage=advantage)
    greedy = rollouts(learner, env, episodes=episodes, advantage=advantage, mode=True)

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        start_key, act_keys, adapt_keys = call_keys(key, calls)

        def lives(fast: Fast, key: Key) -> tuple[Batch, Array]:
            batch = evidence(meta, fast, key, task)
            # The greedy episodes share the key: their actions draw nothing from it.
            shown = greedy(meta, fast, key, task) if mode else batch
            return batch, mean_return(None, shown)

        fast = learner.start(meta, start_key)
        fast, before = adapt_in_turn(learner, meta, fast, adapt_keys, act_keys[:-1], lives)
        returns = jnp.append(before, lives(fast, act_keys[-1])[1])
        metrics = {f"return_{index}": returns[index] for index in range(calls + 1)}
        loss = -episodes * jnp.sum(returns) if whole else -returns[-1]
        return loss, {**metrics, "loss": loss}

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
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), jnp.zeros((1, 1)))
      >>> trials = metajax.rl.trials(learner, env, episodes=1)
      >>> trial = jax.eval_shape(trials, meta, jax.random.key(3), task)
      >>> objective = trial_objective(learner, metajax.rl.clipped(value_cost=0.5))
      >>> jax.eval_shape(objective, meta, jax.random.key(4), trial)[0].shape
      ()

    Reference: Duan et al., 2016 (https://arxiv.org/abs/1611.02779), section 2.2.
    """
    scoring = as_scoring(scoring)

    def objective(meta: Meta, key: Key, task: Batch) -> tuple[Array, Metrics]:
        outputs, fast = replay(learner, meta, key, task)
        values = scoring.penalize(scoring.measure(outputs, task), meta, fast)
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
    with_outputs = getattr(learner.adapt, "with_outputs", None)
    if with_outputs is not None:  # one reading for both, as in `reading_policy`
        return with_outputs(meta, learner.start(meta, start_key), trial)
    rows = jax.tree.map(lambda leaf: leaf[:, None], trial)

    def step(fast: Fast, row: Batch) -> tuple[Fast, Tree]:
        outputs = learner.predict(meta, fast, row.inputs)
        return learner.adapt(meta, fast, adapt_key, row), outputs

    fast, outputs = jax.lax.scan(step, learner.start(meta, start_key), rows)
    return jax.tree.map(lambda leaf: leaf[:, 0], outputs), fast
