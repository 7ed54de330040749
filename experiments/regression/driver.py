"""Learns to fit a new sinusoid from ten points.

Trains a meta-learner on sinusoids of random amplitude and phase, and tests it on 600 new ones: the regression
experiment of MAML (Finn et al., 2017, https://arxiv.org/abs/1703.03400, section 5.1). Neural processes (cnp,
anp) are also asked how likely they held the test points, and how often those lay within their intervals.

  python -m experiments.regression
  python -m experiments.regression --learner=anp
  python -m experiments.regression --flagfile=experiments/recipes/sinusoid_10shot_maml.flags
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.sinusoids import INPUTS, SinusoidSampler, sinusoid
from metajax.evaluate import make_evaluate
from metajax.learners.sequence.neural_process import (
    gaussian_nll,
    log_likelihood,
    mean_and_std,
    mean_error,
    mixture,
)
from metajax.learners.wrappers.ensembles import mean_values
from metajax.losses import squared_error
from metajax.metrics import confidence_interval
from metajax.models import in_precision
from metajax.objectives.query import adapt_to_task
from metajax.objectives.scoring import Scoring
from metajax.types import Learner, Objective
from metajax.zoo import models

from .. import conduct
from ..flags.plan import RunPlan, part, resolve
from ..flags.settings import option, redeclare
from ..flags.training import TrainingSettings, check_together, hidden_widths
from ..reports import pictures
from ..reports.calibration import coverage, measure_calibration
from ..runtime.launch import launch
from ..runtime.observers import Observer
from ..runtime.progress import Score
from ..setup.experiment import Experiment, evaluation_key
from ..setup.learners import inner_adjoint, learner_maker

PICTURED_TASKS = 4
GRID = np.linspace(*INPUTS, 200, dtype=np.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class SinusoidOptions:
    """The tasks, and the network."""

    shots: int = option(10, "Support points.", section="Episodes", least=1, basic=True)
    queries: int = option(10, "Query points in training.", section="Episodes", least=1)
    test_queries: int = option(
        100, "Query points in validation and test.", section="Episodes", least=1, scope="test"
    )
    hidden: str = option("40,40", "Widths of the MLP's hidden layers.", section="Learner")


@dataclasses.dataclass(frozen=True)
class RegressionSettings(SinusoidOptions, TrainingSettings):
    """Every option of sinusoid regression; the defaults are the paper's."""

    predicts: ClassVar[str] = "values"

    inner_lr: float = redeclare(
        TrainingSettings,
        "inner_lr",
        0.01,
        help="Inner step size. Where step sizes are learned, their initial value.",
    )
    test_inner_steps: int | None = redeclare(
        TrainingSettings, "test_inner_steps", 10, help="Inner steps in validation and test."
    )
    outer_lr: float = redeclare(TrainingSettings, "outer_lr", 1e-3)
    outer_schedule: str = redeclare(TrainingSettings, "outer_schedule", "constant")
    meta_batch: int = redeclare(TrainingSettings, "meta_batch", 25)
    steps: int = redeclare(TrainingSettings, "steps", 70_000)
    eval_every: int = redeclare(TrainingSettings, "eval_every", 2500)
    tasks_at_once: str = redeclare(
        TrainingSettings,
        "tasks_at_once",
        "1000",
        help="Tasks vectorized together on a device, a number; these are small. auto is one on a CPU, all "
        "elsewhere.",
    )
    log_every: int = redeclare(TrainingSettings, "log_every", 500)
    checkpoint_every: int = redeclare(TrainingSettings, "checkpoint_every", 10_000)


class RegressionPlan(NamedTuple):
    """A run of sinusoid regression as resolved from its options.

    Attributes:
      common: Plan that all drivers share.
      tasks: Options of the tasks and the network.
    """

    common: RunPlan
    tasks: SinusoidOptions


def start(settings: RegressionSettings, *, observers: Sequence[Observer] = ()) -> int:
    """Runs the experiment, with observers of its training; returns the exit status."""
    return conduct.conduct(build, settings, observers=observers)


def build(settings: RegressionSettings) -> Experiment:
    """Checks the settings and makes the tasks.

    Raises:
      UsageError: If options do not go together.
    """
    check_together(settings)
    plan = RegressionPlan(resolve(settings), part(SinusoidOptions, settings))
    return make_experiment(plan, hidden_widths(settings.hidden))


def make_experiment(plan: RegressionPlan, hidden: tuple[int, ...]) -> Experiment:
    """Puts sampler, model and learner together.

    Args:
      plan: The run.
      hidden: Widths of the network's hidden layers.

    Returns:
      The experiment.
    """
    tasks, inner = plan.tasks, plan.common.inner
    model, encoder, decoder = (
        in_precision(
            models.build_model("mlp", outputs=outputs, features=hidden),
            jnp.dtype(plan.common.training.precision),
        )
        for outputs in (1, None, 2)
    )
    learner = learner_maker(
        inner,
        squared_error,
        model=model,
        encoder=encoder,
        decoder=decoder,
        examples=tasks.shots,
    )
    train = SinusoidSampler(tasks.shots, tasks.queries)
    test = SinusoidSampler(tasks.shots, tasks.test_queries)
    uncertain = inner.entry.loss is gaussian_nll
    metrics = {"mse": squared_error}
    if uncertain:
        metrics = {"mse": mean_error, "log_likelihood": log_likelihood}
    one_step = learner(1, inner_adjoint(inner.adjoint), testing=True)
    draw = _distributions if uncertain else _fits
    return Experiment(
        name=f"sinusoid-{inner.learner}-{tasks.shots}shot",
        make_learner=learner,
        inputs=np.zeros((tasks.shots, 1), np.float32),
        scoring=Scoring(inner.entry.loss or squared_error, metrics),
        score=Score("mse", higher_is_better=False),
        samplers={"train": train, "valid": test, "test": test},
        data=dict.fromkeys(("train", "valid", "test")),
        fingerprint="sinusoids",
        transductive=False,
        combine=mixture if uncertain else mean_values,
        announcement=[
            ("data", "sinusoids, amplitude 0.1 to 5, phase 0 to pi, inputs -5 to 5"),
            ("episodes", f"{tasks.shots} points, {tasks.queries} queries"),
            ("learner", inner.learner),
            ("model", f"MLP {tasks.hidden}"),
        ],
        facts={
            "dataset": "sinusoids",
            "learner": inner.learner,
            "shots": tasks.shots,
            "queries": tasks.test_queries,
        },
        pictures=functools.partial(draw, plan, one_step, test),
    )


def _fits(
    plan: RegressionPlan,
    one_step: Learner,
    sampler: SinusoidSampler,
    meta: Any,
    workdir: Path,
) -> dict[str, Any]:
    """Plots fits before and after each inner step, and measures the test error after each."""
    # What takes no inner steps has no answer before it has read the support set.
    first, calls = (0, plan.common.inner.test_steps) if plan.common.inner.entry.inner else (1, 0)

    def follow(meta, key, task):
        episode, truth = task
        start_key, adapt_key = jax.random.split(key)  # as `query_outputs` does

        def adapt(fast):
            return one_step.adapt(meta, fast, adapt_key, episode.support)

        def step(fast, _):
            predictions = one_step.predict(meta, fast, GRID)[:, 0]
            error = squared_error(one_step.predict(meta, fast, episode.query.inputs), episode.query)
            return adapt(fast) if calls else fast, (predictions, error)

        fast = one_step.start(meta, start_key, episode.support)
        for _ in range(first):
            fast = adapt(fast)
        _, (fits, errors) = jax.lax.scan(step, fast, length=calls + 1)
        return (), (fits, errors, truth, episode.support)

    fits, errors, truth, support = _over_tests(plan, follow, sampler, meta)
    _draw(plan, workdir, truth, fits, support)
    if plan.common.inner.own.get("minibatch") or not calls:
        return {}  # one call of several steps passes over the points, as several calls of one do not
    by_step = [confidence_interval(column) for column in errors.T]
    return {
        "test_mse_by_step": [{"step": i, "mse": m, "ci95": c} for i, (m, c) in enumerate(by_step)]
    }


def _distributions(
    plan: RegressionPlan,
    learner: Learner,
    sampler: SinusoidSampler,
    meta: Any,
    workdir: Path,
) -> dict[str, Any]:
    """Plots fits of the best checkpoint, and how often test targets lie within its intervals."""

    def follow(meta, key, task):
        episode, truth = task
        fast = adapt_to_task(learner, meta, key, episode)
        mean, std = mean_and_std(learner.predict(meta, fast, GRID))
        query_mean, query_std = mean_and_std(learner.predict(meta, fast, episode.query.inputs))
        errors = (episode.query.targets - query_mean) / query_std
        return (), (mean[:, 0], std[:, 0], truth, episode.support, coverage(errors))

    mean, std, truth, support, covered = _over_tests(plan, follow, sampler, meta)
    _draw(plan, workdir, truth, mean[:, None], support, deviations=std[:PICTURED_TASKS])
    targets = plan.common.test.eval_episodes * plan.tasks.test_queries
    title = f"{plan.common.inner.learner}: {targets:,} test targets"
    return measure_calibration(workdir, covered, title=title)


def _over_tests(
    plan: RegressionPlan, follow: Objective, sampler: SinusoidSampler, meta: Any
) -> Any:
    """Follows the test tasks, (episode, its sinusoid on the grid); returns the metrics of all."""

    def sample(data, key):
        amplitude, phase, _ = sampler.identify(data, key)
        return sampler(data, key), sinusoid(GRID[:, 0], amplitude, phase)

    evaluate = jax.jit(make_evaluate(follow, sample, tasks_at_once=100))
    key, tasks = (
        evaluation_key(plan.common.test.eval_seed, "test"),
        jnp.arange(plan.common.test.eval_episodes),
    )
    return jax.tree.map(np.asarray, evaluate(meta, None, key, tasks))


def _draw(
    plan: RegressionPlan, workdir: Path, truth: Any, fits: Any, support: Any, **more: Any
) -> None:
    shown = slice(0, PICTURED_TASKS)
    pictures.fits_picture(
        workdir / "fits.png",
        grid=GRID[:, 0],
        truth=truth[shown],
        fits=fits[shown],
        support_x=support.inputs[shown, :, 0],
        support_y=support.targets[shown, :, 0],
        title=f"{plan.common.inner.learner}: new sinusoids from {plan.tasks.shots} points",
        **more,
    )


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(RegressionSettings, __doc__, start, prepare=conduct.prepare_process)
