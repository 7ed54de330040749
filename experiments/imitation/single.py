"""Imitation of one expert in one task: generative adversarial imitation (GAIL) and behavior cloning."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import rl
from metajax.objectives import Scoring
from metajax.rl.distributions import policy_of
from metajax.rl.policies import flattened
from metajax.train import StepFn
from metajax.types import Array, Key, Learner, Meta, Metrics, Model, Objective

from ..flags.settings import UsageError
from ..reports import policies
from ..runtime.progress import Score
from ..setup import demonstrations, environments
from ..setup.estimators import outer_optimizer
from ..setup.experiment import Experiment, Setup
from .many import Expert, no_combination, on_many
from .options import ImitationPlan

# Share of the demonstrated steps that cloning trains on; the others choose its iterate, as in Ho and Ermon.
_TRAINED = 0.7
_SUBSAMPLE, _DIVIDE, _RECORD, _CLONE = 0x53554253, 0x44495649, 0x5245434F, 0x434C4F4E


class Shown(NamedTuple):
    """One expert in one task.

    Attributes:
      env: Environment whose only task is the expert's.
      data: The task, and the demonstrated steps that imitators see.
      parts: The same, divided for cloning: support to train on, query to choose the iterate by.
      returns: Returns of the expert's episodes, if known.
      digest: Digest of the expert's file, or a description of the environment's own expert.
    """

    env: rl.Env
    data: rl.Demonstrated
    parts: rl.Demonstrated
    returns: np.ndarray | None
    digest: str


class FixedSampler:
    """Draws the same task each time: its data."""

    by_task = None

    def __call__(self, data: Any, key: Key) -> Any:
        """Returns the data."""
        del key
        return data

    identify = __call__


def show(plan: ImitationPlan, env: rl.Env, expert: Expert | None) -> Shown:
    """Reads or records the demonstrations.

    Args:
      plan: The run.
      env: Environment.
      expert: The environment's own expert, used without a file.

    Returns:
      The expert's task and its demonstrations.

    Raises:
      DataError: If the file does not fit.
      UsageError: If the steps to keep do not divide the horizon.
    """
    options = plan.options
    key = jax.random.key(plan.common.training.seed)
    task = env.sample(jax.random.key(options.task_seed))
    if options.expert_file:
        path = Path(options.expert_file).expanduser()
        file = demonstrations.read(path, env, episodes=options.demonstrations)
        batch = jax.tree.map(jnp.asarray, file.batch)
        task = task if file.task is None else file.task
        returns, digest = file.returns, file.sha256
    else:
        record = rl.demonstrations(
            env, on_many(expert), episodes=options.demonstrations, rewards=True
        )
        found = jax.jit(record)(jax.random.fold_in(key, _RECORD), task)
        returns = np.asarray(found.targets.reward).reshape(options.demonstrations, -1).sum(axis=1)
        batch, digest = found._replace(targets=found.targets.action), f"task {options.task_seed}"
    try:
        batch = rl.subsample(
            jax.random.fold_in(key, _SUBSAMPLE), batch, horizon=env.horizon, every=options.subsample
        )
    except ValueError as error:
        raise UsageError(f"--subsample={options.subsample} does not work here: {error}") from error
    if not bool(jnp.any(batch.weights > 0)):
        raise UsageError(
            f"--subsample={options.subsample} keeps no step of such short episodes; use a smaller one."
        )
    train = jax.random.uniform(jax.random.fold_in(key, _DIVIDE), batch.weights.shape) < _TRAINED
    kept, held = (batch._replace(weights=batch.weights * part) for part in (train, ~train))
    if not (bool(jnp.any(kept.weights > 0)) and bool(jnp.any(held.weights > 0))):
        kept = held = batch  # too few steps to hold any out
    only = env._replace(sample=lambda key: task)
    return Shown(
        only, rl.Demonstrated(task, batch), rl.Demonstrated(task, kept, held), returns, digest
    )


def make_experiment(plan: ImitationPlan, env: rl.Env, expert: Expert | None) -> Experiment:
    """Puts demonstrations, policy and discriminator together.

    Args:
      plan: The run.
      env: Environment.
      expert: The environment's own expert, used without a file.

    Returns:
      The experiment.
    """
    options, shown = plan.options, show(plan, env, expert)
    adversarial = plan.common.inner.learner == "gail"
    critic = adversarial and options.policy_step == "ppo"
    model = _policy(plan, shown, critic=critic)
    data = shown.data if adversarial else shown.parts
    experiment = Experiment(
        name=f"imitation-{options.env}-{plan.common.inner.learner}",
        make_learner=lambda *_, **__: _unadapted(model),
        inputs=environments.example_inputs(env),
        scoring=Scoring(rl.imitation_loss),
        score=Score("return", higher_is_better=True),
        samplers=dict.fromkeys(environments.SPLITS, FixedSampler()),
        data=dict.fromkeys(environments.SPLITS, data),
        fingerprint=f"{options.env} {sorted(plan.env_options.items())} {shown.digest}",
        transductive=False,
        combine=no_combination,
        announcement=_announcement(plan, shown),
        facts=_facts(plan, shown),
        pictures=lambda meta, workdir: {},
        scored=functools.partial(scored, plan, shown.env),
        settled={"meta_batch": 1},
    )
    if not adversarial:
        experiment = experiment._replace(
            # Its iterate is chosen by demonstrations that were held out: it has no reward.
            score=Score("held_out_loss", higher_is_better=False),
            trained=_cloning,
        )
    else:
        experiment = _adversarial(plan, shown, model, experiment)
    return experiment._replace(measured=functools.partial(_measure, plan, shown, model, experiment))


def _policy(plan: ImitationPlan, shown: Shown, *, critic: bool) -> Model:
    """Makes the network of the policy, which sees observations normalized by the demonstrations."""
    model = rl.mlp_policy(
        shown.env.actions,
        hidden=plan.hidden,
        critic=critic,
        initial_std=plan.options.initial_std,
    )
    # A velocity of hundredths next to a position of one would hardly be seen.
    steps = shown.data.support
    return rl.with_normalizer(model, rl.fit_normalizer(flattened(steps.inputs), steps.weights))


def _adversarial(
    plan: ImitationPlan, shown: Shown, model: Model, experiment: Experiment
) -> Experiment:
    """Trains the policy against a discriminator."""
    options, env = plan.options, shown.env
    judge = rl.discriminator(
        env.actions,
        hidden=plan.discriminator,
        sign=options.sign,
        absorbing=options.absorbing,
        entropy=options.entropy,
        gradient_penalty=options.gradient_penalty,
    )
    optimizer = optax.adam(options.discriminator_lr)
    improve = _improvement(plan, model)
    gail = rl.make_gail(
        env,
        model,
        judge,
        improve,
        episodes=options.episodes,
        optimizer=optimizer,
        steps=options.discriminator_steps,
        discount=options.discount,
        trace=options.trace,
        baseline="value" if options.policy_step == "ppo" else "linear",
        policy_entropy=options.policy_entropy,
    )
    demonstrated = shown.data.support

    def init(key: Key, inputs: Any) -> rl.GailParams:
        del inputs
        return gail.init(key, demonstrated).meta

    def states(params: rl.GailParams) -> Any:
        return improve.init(params.policy), optimizer.init(params.discriminator)

    def outer_step(setup: Setup) -> StepFn:
        del setup
        return gail.step

    learner = _unadapted(model, init=init, policy=lambda params: params.policy)
    return experiment._replace(
        make_learner=lambda *_, **__: learner,
        outer_step=outer_step,
        follows="a trust region" if options.policy_step == "trpo" else None,
        optimizer=optax.GradientTransformation(states, _never),
        settled={"meta_batch": 1, "eval_every": 0},
    )


def _never(*arguments: Any) -> Any:
    """Stands for the update of an optimizer where a step makes its own."""
    raise NotImplementedError("The step updates its optimizers itself.")


def _improvement(plan: ImitationPlan, model: Model) -> rl.Improve:
    """Makes the improvement of the policy."""
    options = plan.options
    if options.policy_step == "trpo":
        return rl.trust_region(rl.policy_outputs(model), max_kl=options.max_kl, damping=0.1)
    return rl.on_rows(
        model,
        rl.clipped(epsilon=options.clip_ratio, value_cost=0.5),
        outer_optimizer(plan.common.outer, supervised=False),
        epochs=options.updates,
        minibatches=options.minibatches,
    )


def _unadapted(
    model: Model,
    *,
    init: Callable[[Key, Any], Any] | None = None,
    policy: Callable[[Any], Any] = lambda params: params,
) -> Learner:
    """Makes a policy that does not adapt, in the form of a learner."""
    return Learner(
        init=model.init if init is None else init,
        start=lambda meta, key, like=None: (),
        adapt=lambda meta, fast, key, batch: fast,
        predict=lambda meta, fast, inputs: model.apply(policy(meta), inputs),
    )


def _cloning(learner: Learner) -> Objective:
    """Makes the objective of behavior cloning."""

    def objective(meta: Meta, key: Key, task: rl.Demonstrated) -> tuple[Array, Metrics]:
        del key
        loss = rl.imitation_loss(learner.predict(meta, (), task.support.inputs), task.support)
        return loss, {"loss": loss}

    return objective


def scored(plan: ImitationPlan, env: rl.Env, learner: Learner) -> Objective:
    """Makes the objective of validation and test: the return of one episode.

    Args:
      plan: The run.
      env: Environment.
      learner: Policy.

    Returns:
      An objective of a `Demonstrated` task; with a query, `held_out_loss` is the loss on it.
    """
    mode = not plan.options.sampled

    def objective(meta: Meta, key: Key, task: rl.Demonstrated) -> tuple[Array, Metrics]:
        act = functools.partial(learner.predict, meta, ())
        lives = rl.lived(env, act, key, task.task, episodes=1, mode=mode)
        total = jnp.sum(lives.reward)
        if task.query is None:
            return -total, {"loss": -total, "return": total}
        loss = rl.imitation_loss(policy_of(act(task.query.inputs)), task.query)
        return loss, {"loss": loss, "held_out_loss": loss, "return": total}

    return objective


def _announcement(plan: ImitationPlan, shown: Shown) -> list[tuple[str, str]]:
    """Describes what only this driver knows."""
    options = plan.options
    steps = int((shown.data.support.weights > 0).sum())
    source = options.expert_file or "the environment's own expert"
    rows = [
        ("environment", environments.in_words(options.env, plan.env_options, shown.env)),
        ("demonstrations", f"{options.demonstrations} of {source}, {steps:,} steps in all"),
        ("learner", plan.common.inner.learner),
        ("model", f"MLP {options.hidden}"),
    ]
    if plan.common.inner.learner == "clone":
        return rows
    end = ", absorbing states" if options.absorbing else ""
    return [
        *rows,
        (
            "discriminator",
            f"MLP {options.discriminator_hidden}, reward {options.sign}{end}, adam "
            f"{options.discriminator_lr:g}, {options.discriminator_steps} steps to one of the policy",
        ),
        ("policy step", f"{options.policy_step}, {options.episodes} episodes each"),
    ]


def _facts(plan: ImitationPlan, shown: Shown) -> dict[str, Any]:
    """Lists the fields of result.json that only this driver knows."""
    options = plan.options
    facts = {
        "environment": options.env,
        "environment_options": plan.env_options,
        "learner": plan.common.inner.learner,
        "demonstrations": options.demonstrations,
        "demonstrated_steps": int((shown.data.support.weights > 0).sum()),
        "horizon": shown.env.horizon,
    }
    if facts["learner"] == "clone":
        return facts
    return {**facts, "sign": options.sign, "absorbing": options.absorbing}


def _measure(
    plan: ImitationPlan,
    shown: Shown,
    model: Model,
    experiment: Experiment,
    meta: Any,
    workdir: Path,
) -> dict[str, Any]:
    """Measures the yardsticks."""
    del meta, workdir
    common = plan.common
    found = policies.untrained(common, experiment, functools.partial(scored, plan, shown.env))
    if shown.returns is not None:
        measured = policies.fields("expert", {"return": shown.returns})
        # A single demonstration has a return and no interval.
        found |= {name: value for name, value in measured.items() if np.isfinite(value)}
    if plan.clone_steps:
        plain = _policy(plan, shown, critic=False)
        params = _cloned(plan, shown, plain)
        objective = scored(plan, shown.env, _unadapted(plain))
        metrics = policies.on_test_tasks(common, experiment, objective, params)
        found |= policies.fields("clone", {"return": metrics["return"]})
    return found


def _cloned(plan: ImitationPlan, shown: Shown, model: Model) -> Any:
    """Clones the expert by the same network; the iterate is the best on what was held out."""
    key = jax.random.fold_in(jax.random.key(plan.common.training.seed), _CLONE)
    init_key, clone_key = jax.random.split(key)
    support, held_out = shown.parts.support, shown.parts.query
    clone = rl.clone(model, optax.adam(1e-3), steps=plan.clone_steps)
    params = model.init(init_key, support.inputs)
    return jax.jit(clone)(params, clone_key, support, held_out).params
