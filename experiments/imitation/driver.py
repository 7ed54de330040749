"""Learns to act from demonstrations instead of rewards.

Trains a meta-learner to imitate the expert of a new task after one demonstration, on a family of environments
whose experts know the task; or imitates one expert in one task, by generative adversarial imitation (GAIL) or
behavior cloning. The environment's reward is measured in tests, and never learned from.

  python -m experiments.imitation
  python -m experiments.imitation --env=reacher --learner=rl2
  python -m experiments.imitation --learner=gail --env=cartpole --expert_file=cartpole.npz
"""

from collections.abc import Sequence

from metajax.zoo.environments import ENVIRONMENTS, expert_of

from .. import conduct
from ..flags.settings import UsageError
from ..runtime.launch import launch
from ..runtime.observers import Observer
from ..setup import environments
from ..setup.experiment import Experiment
from . import many, single
from .options import SINGLE, ImitationPlan, ImitationSettings, plan_of


def start(settings: ImitationSettings, *, observers: Sequence[Observer] = ()) -> int:
    """Runs the experiment, with observers of its training; returns the exit status."""
    return conduct.conduct(build, settings, observers=observers)


def build(settings: ImitationSettings) -> Experiment:
    """Checks the settings and makes the environment and its expert.

    Raises:
      DataError: If the expert's file does not fit.
      UsageError: If options do not go together, or there is no expert.
      ImportError: If the environment needs a package that is missing.
    """
    plan = plan_of(settings)
    options = plan.options
    trains = plan.common.command.mode == "train"
    env = environments.environment(options.env, plan.env_options, tried=trains)
    expert = expert_of(options.env, env, plan.env_options)
    if expert is None and not options.expert_file:
        raise UsageError(_without_expert(plan))
    if settings.learner in SINGLE:
        return single.make_experiment(plan, env, expert)
    return many.make_experiment(plan, env, expert)


def _without_expert(plan: ImitationPlan) -> str:
    """Explains what to do in an environment without an expert of its own."""
    able = ", ".join(name for name, entry in ENVIRONMENTS.items() if entry.expert)
    remedy = f"use one of {able}"
    if plan.common.inner.learner in SINGLE:
        remedy = "give the --expert_file of a trained policy"
    return f"--env={plan.options.env} has no expert of its own; {remedy}."


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(ImitationSettings, __doc__, start, prepare=conduct.prepare_process)
