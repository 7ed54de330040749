"""How tasks are drawn, lived in, learned from and scored."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import rl
from metajax.objectives import Scoring
from metajax.rl.distributions import action_size
from metajax.sharding import draw_over_tasks
from metajax.train import StepFn, TrainState, make_step
from metajax.types import Array, Batch, Episode, Key, Learner, Meta, Metrics, Objective

from ..flags.settings import UsageError
from ..runtime.memory import in_words
from ..setup.experiment import Setup
from ..setup.images import memory
from .options import LIVED, RlPlan

# What a row of experience holds, in the order in which one follows from another.
_PARTS = ("observation", "action", "reward")


def episodes_of(plan: RlPlan, *, testing: bool) -> int:
    """Returns the number of episodes before each adaptation."""
    return (plan.options.test_episodes if testing else 0) or plan.options.episodes


def episodes_of_life(plan: RlPlan, *, testing: bool) -> int:
    """Returns the number of episodes of a task whose rewards are added; 1 where their mean is scored."""
    options = plan.options
    if plan.reads:
        return options.trial_episodes
    calls = options.test_calls if testing else options.calls
    return (calls + 1) * episodes_of(plan, testing=testing) if options.whole_life else 1


def check_memory(plan: RlPlan, env: rl.Env) -> None:
    """Refuses a meta-step whose experience alone is larger than the memory, before anything compiles.

    Args:
      plan: The run.
      env: Environment.

    Raises:
      UsageError: If it is; the message names what fits.
    """
    options, tasks = plan.options, plan.common.training.meta_batch
    if plan.outer not in LIVED:
        return  # These gather experience for as many tasks as are held at once.
    episodes = options.trial_episodes if plan.reads else (options.calls + 1) * options.episodes
    task = jax.eval_shape(env.sample, jax.random.key(0))
    _, seen = jax.eval_shape(env.reset, jax.random.key(0), task)
    # An observation; an action and its distribution; and the other numbers of a row.
    size = action_size(env.actions)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(seen)) + 3 * size + 7
    each, present = 4 * numbers * episodes * env.horizon, memory()
    if tasks * each > present:
        fits = int(present // each)
        named = "--trial_episodes" if plan.reads else "--episodes"
        remedy = f"use --meta_batch={fits} at most, or fewer" if fits else "use fewer"
        raise UsageError(
            f"--meta_batch={tasks} of {episodes:,} episodes of {env.horizon:,} steps each is "
            f"{in_words(tasks * each)} of experience, and there are {in_words(int(present))} of memory; "
            f"{remedy} {named}."
        )


def curvature_of(plan: RlPlan) -> str:
    """Returns the inner surrogate: of whole lives the one without a second credit for what is gathered."""
    return "none" if plan.options.whole_life else plan.options.curvature


def advantage_of(plan: RlPlan) -> rl.AdvantageFn:
    """Makes the estimator of advantages that the options ask for."""
    options = plan.options
    constant = options.baseline == "constant"
    baseline = options.baseline_return if constant else options.baseline
    if plan.reads:  # nothing but promp learns a value
        baseline = "value" if plan.outer == "promp" else "none"
    return rl.advantages(
        discount=options.discount,
        trace=options.trace,
        baseline=baseline,
        # Over all tasks together where a network knows the value, see `normalize_over_tasks`.
        normalize=not (plan.reads or constant),
    )


def outer_loss(plan: RlPlan) -> Scoring:
    """Makes the scoring of experience in training."""
    options = plan.options
    if plan.outer == "promp":
        value = plan.reads or options.baseline == "value"
        loss = rl.clipped(
            epsilon=options.clip_ratio,
            value_cost=options.value_cost if value else 0.0,
            entropy_bonus=options.entropy_bonus,
        )
    else:
        loss = rl.policy_gradient(curvature="lvc")
    return Scoring(loss, {"entropy": rl.mean_entropy})


def trained(plan: RlPlan, env: rl.Env, learner: Learner) -> Objective:
    """Makes the objective of training.

    Args:
      plan: The run.
      env: Environment.
      learner: Learner.

    Returns:
      An objective of tasks for es, of experience for the others.
    """
    options, scoring = plan.options, outer_loss(plan)
    if plan.outer == "es":
        return scored(plan, env, learner, testing=False)
    if plan.reads:
        return rl.trial_objective(learner, scoring)
    promp = plan.outer == "promp"
    return rl.lifetime_objective(
        learner,
        scoring,
        kl_cost=options.kl_cost if promp else 0.0,
        exploration=options.exploration if promp else 0.0,
        whole=options.whole_life,
    )


def lives(plan: RlPlan, env: rl.Env, learner: Learner) -> Callable[[Meta, Key, Any], Any]:
    """Makes the function that gathers the experience of a task in training."""
    options, advantage = plan.options, advantage_of(plan)
    if plan.reads:
        return rl.trials(learner, env, episodes=options.trial_episodes, advantage=advantage)
    return rl.live(
        learner, env, episodes=options.episodes, calls=options.calls, advantage=advantage
    )


def outer_step(plan: RlPlan, env: rl.Env, setup: Setup) -> StepFn:
    """Makes the outer step: live, then improve on what was lived; es does both at once.

    Args:
      plan: The run.
      env: Environment.
      setup: The experiment on its devices, with the meta-gradient of experience.

    Returns:
      The step.
    """
    options, learner = plan.options, setup.learner
    if plan.outer == "es":
        return _evolved(plan, env, setup)
    if plan.outer == "trpo":
        outputs = (
            rl.trial_outputs(learner)
            if plan.reads
            else rl.lifetime_outputs(learner, whole=options.whole_life)
        )
        improve = rl.trust_region(outputs, max_kl=options.max_kl)
    else:
        improve = rl.several(
            setup.meta_grad,
            setup.optimizer(),
            steps=options.updates if plan.outer == "promp" else 1,
            minibatches=options.minibatches,
        )
    return rl.make_step(
        lives(plan, env, learner),
        improve,
        setup.experiment.samplers["train"],
        num_tasks=setup.plan.training.meta_batch,
        prepare=functools.partial(_prepared, plan),
        measure=_returns_of_trials
        if plan.reads
        else functools.partial(_returns_of_lives, whole=options.whole_life),
        draw=draw_over_tasks(setup.mesh),
    )


def _evolved(plan: RlPlan, env: rl.Env, setup: Setup) -> StepFn:
    """Makes the outer step of es, which lives anew to find a number that is not finite."""
    sample, number = setup.experiment.samplers["train"], setup.plan.training.meta_batch
    draw, live = draw_over_tasks(setup.mesh), lives(plan, env, setup.learner)
    step = make_step(setup.meta_grad, setup.optimizer(), sample, num_tasks=number, draw=draw)

    def found(state: TrainState, data: Any) -> Array:
        # The tasks and keys of the step, and the parameters between its perturbations: what an environment
        # gives in a task is found, unless the policies before and after a perturbation part too early.
        keys, tasks = draw(sample, data, state.key, state.step, jnp.arange(number))
        return first_not_finite(jax.vmap(live, (None, 0, 0))(state.meta, keys, tasks))

    def evolved(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, data)
        where = jax.lax.cond(
            jnp.isfinite(metrics["loss"]), lambda *_: jnp.full(3, -1, jnp.int32), found, state, data
        )
        return after, {**metrics, "nonfinite_at": where}

    return evolved


def _prepared(plan: RlPlan, lives: Any) -> Any:
    """Estimates advantages that depend on all tasks of a meta-step."""
    if plan.options.whole_life:
        return rl.normalize_over_tasks(rl.whole_lives(lives))
    if not plan.reads:
        return lives
    if plan.options.value_scale == "standard":
        lives = rl.standardize_values(
            lives, discount=plan.options.discount, trace=plan.options.trace
        )
    return rl.normalize_over_tasks(lives)


def _returns_of_trials(trials: Batch) -> Metrics:
    """Averages the total reward of trials [T, B], and finds numbers that are not finite."""
    found = {"return": jnp.mean(jnp.sum(trials.targets.reward, axis=1))}
    return {**found, "nonfinite_at": first_not_finite(trials)}


def _returns_of_lives(lives: Any, *, whole: bool) -> Metrics:
    """Averages the return before the first and after the last adaptation; finds numbers not finite."""
    first = jax.tree.map(lambda leaf: leaf[:, 0], lives.support)
    found = {"return_0": _mean_return(first), "return": _mean_return(lives.query)}
    if whole:
        earned = [jnp.sum(batch.targets.reward) for batch in (lives.support, lives.query)]
        found["return"] = sum(earned) / lives.query.targets.reward.shape[0]
    return {**found, "nonfinite_at": first_not_finite(lives)}


def _mean_return(batches: Batch) -> Array:
    """Averages the return of the episodes of batches [T, B]."""
    return jnp.mean(jax.vmap(lambda batch: rl.mean_return(None, batch))(batches))


def first_not_finite(lives: Batch | Episode) -> Array:
    """Finds the first number of experience that is not finite: of the first task, at its first step.

    Args:
      lives: Trials [T, B, ...], or lives of C adaptations: support [T, C, B, ...] and query [T, B, ...].

    Returns:
      Task, row among the B rows of a trial or the (C + 1) B of a life, and index into observation, action and
      reward, int [3]; all -1 where every number is finite.
    """
    if isinstance(lives, Episode):
        bad = [_not_finite(lives.support, 3), _not_finite(lives.query, 2)]
        tasks = bad[1].shape[0]
        bad = jnp.concatenate([rows.reshape(tasks, -1, len(_PARTS)) for rows in bad], axis=1)
    else:
        bad = _not_finite(lives, 2)
    place = jnp.stack(jnp.unravel_index(jnp.argmax(bad), bad.shape)).astype(jnp.int32)
    return jnp.where(jnp.any(bad), place, -1)


def _not_finite(batch: Batch, axes: int) -> Array:
    """Finds rows with numbers that are not finite, by part: bool [..., 3], with `axes` axes before it."""
    decisions = batch.targets

    def some(leaf: Array) -> Array:
        return ~jnp.all(jnp.isfinite(leaf).reshape(*leaf.shape[:axes], -1), axis=-1)

    parts = (batch.inputs, decisions.action, decisions.reward)
    found = [functools.reduce(jnp.logical_or, map(some, jax.tree.leaves(part))) for part in parts]
    return jnp.stack(found, axis=-1)


def where_not_finite(plan: RlPlan, env: rl.Env, metrics: Mapping[str, np.ndarray]) -> str:
    """Describes where the experience of a meta-step was first not finite.

    Args:
      plan: The run.
      env: Environment.
      metrics: Metrics of the step; `nonfinite_at` is that of `first_not_finite`.

    Returns:
      A sentence; empty where all experience is finite.
    """
    task, row, part = np.asarray(metrics.get("nonfinite_at", (-1, -1, -1))).tolist()
    if task < 0:
        return ""
    when = ""
    if not plan.reads:
        call, row = divmod(row, plan.options.episodes * env.horizon)
        when = f" after {call} adaptation{'s' if call != 1 else ''}"
    episode, step = divmod(row, env.horizon)
    cause = (
        "the policy gave it"
        if _PARTS[part] == "action"
        else "the environment gave it; metajax.rl.check_env tries one"
    )
    return (
        f"First the {_PARTS[part]} at step {step} of episode {episode}{when}, in task {task} of the "
        f"meta-step (all from 0): {cause}."
    )


def scored(
    plan: RlPlan,
    env: rl.Env,
    learner: Learner,
    *,
    testing: bool = True,
    calls: int | None = None,
) -> Objective:
    """Makes the objective of validation and test: returns after adaptations, of whole lives, or of a trial.

    Args:
      plan: The run.
      env: Environment.
      learner: Learner.
      testing: Whether the numbers of adaptations and episodes are the test's.
      calls: Number of adaptations; None is as in the options.

    Returns:
      An objective of tasks whose loss is minus the return: after the last adaptation, or the sum over a trial
      (with the returns of its episodes) or a whole life, which has its episodes also where `calls` leaves out
      adaptations.
    """
    options, advantage = plan.options, advantage_of(plan)
    greedy = options.greedy and testing
    if plan.reads:
        live = rl.trials(
            learner, env, episodes=options.trial_episodes, advantage=advantage, mode=greedy
        )

        def of_trial(meta: Meta, key: Key, task: Any) -> tuple[Array, Metrics]:
            reward = live(meta, key, task).targets.reward.reshape(options.trial_episodes, -1)
            earned, total = jnp.sum(reward, axis=1), jnp.sum(reward)
            each = {f"return_{index}": earned[index] for index in range(len(earned))}
            # Of one episode there is no curve.
            return -total, {**(each if len(each) > 1 else {}), "loss": -total, "return": total}

        return of_trial
    if calls is None:
        calls = options.test_calls if testing else options.calls
    episodes, whole = episodes_of(plan, testing=testing), options.whole_life
    if whole:
        episodes = episodes_of_life(plan, testing=testing) // (calls + 1)
    after = rl.return_after(
        learner, env, episodes=episodes, calls=calls, advantage=advantage, mode=greedy, whole=whole
    )

    def of_life(meta: Meta, key: Key, task: Any) -> tuple[Array, Metrics]:
        loss, metrics = after(meta, key, task)
        return loss, {**metrics, "return": -loss}

    return of_life


def walked(
    plan: RlPlan,
    env: rl.Env,
    learner: Learner,
    *,
    episodes: int = 5,
    mode: bool = False,
    points: Callable[[Any, Any, Any], Array] | None = None,
) -> Callable[[Meta, Key, Any], Any]:
    """Makes the function that lives in a task to be looked at: before any and after all adaptations.

    Args:
      plan: The run.
      env: Environment.
      learner: Learner.
      episodes: Number of episodes N of each.
      mode: Whether the most likely actions are taken.
      points: Function of a task, a state and an observation to what is drawn; None draws nothing.

    Returns:
      Function `(meta, key, task) -> (lives, drawn)`, both with a first axis of 2, before and after adapting:
      trajectories of N episodes, and points [2, N, H, P, 2] or None.
    """
    options = plan.options
    evidence = rl.rollouts(
        learner, env, episodes=episodes_of(plan, testing=True), advantage=advantage_of(plan)
    )

    def shown(task: Any, state: Any, observation: Any) -> tuple[Any, Any]:
        return observation, points(task, state, observation) if points else None

    def reset(key: Key, task: Any) -> tuple[Any, Any]:
        state, observation = env.reset(key, task)
        return state, shown(task, state, observation)

    def step(key: Key, task: Any, state: Any, action: Any) -> rl.Step:
        after = env.step(key, task, state, action)
        return after._replace(observation=shown(task, after.state, after.observation))

    looked_at = env._replace(reset=reset, step=step)

    def walk(meta: Meta, key: Key, task: Any) -> Any:
        start_key, key = jax.random.split(key)

        def gather(fast: Any, key: Key) -> tuple[Batch, None]:
            return evidence(meta, fast, key, task), None

        keys = jax.vmap(lambda call: jax.random.split(jax.random.fold_in(key, call)))(
            jnp.arange(options.test_calls)
        )
        begin = learner.start(meta, start_key)
        fast, _ = rl.adapt_in_turn(learner, meta, begin, keys[:, 1], keys[:, 0], gather)

        def act(fast: Any) -> rl.Trajectories:
            def policy(observation: Any) -> Any:
                return learner.predict(meta, fast, observation[0])

            return rl.lived(looked_at, policy, key, task, episodes=episodes, mode=mode)

        # One after the other: the physics of a robot takes a minute to compile.
        lives = jax.lax.map(act, jax.tree.map(lambda *both: jnp.stack(both), begin, fast))
        return lives._replace(observation=lives.observation[0]), lives.observation[1]

    return walk
