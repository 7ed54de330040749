"""Learns to fit a new sinusoid from ten points.

Trains a gradient meta-learner on sinusoids of random amplitude and phase, and tests it on 600 new ones: the
regression experiment of MAML (Finn et al., 2017, https://arxiv.org/abs/1703.03400, section 5.1).

  python -m experiments.regression
  python -m experiments.regression --flagfile=experiments/recipes/sinusoid_10shot_maml.flags
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import loop, pictures, run
from experiments.experiment import Experiment, evaluation_key
from experiments.learner_options import inner_adjoint, learner_maker
from experiments.options import MAX_COUNT, SCHEDULES, TrainingSettings, check_together
from experiments.settings import UsageError, launch, option
from metajax.episodes.sinusoids import INPUTS, SinusoidSampler, sinusoid
from metajax.learners.ensemble import mean_values
from metajax.losses import squared_error
from metajax.models import in_precision
from metajax.models import registry as models
from metajax.train import confidence_interval, draw_task
from metajax.types import Learner

PICTURED_TASKS = 4


@dataclasses.dataclass(frozen=True)
class RegressionSettings(TrainingSettings):
    """Every option of sinusoid regression; the defaults are the paper's."""

    shots: int = option(10, "Support points.", section="Episodes", least=1)
    queries: int = option(10, "Query points in training.", section="Episodes", least=1)
    test_queries: int = option(
        100, "Query points in validation and test.", section="Episodes", least=1
    )
    hidden: str = option("40,40", "Widths of the MLP's hidden layers.", section="Learner")
    inner_lr: float = option(
        0.01,
        "Inner step size. Where step sizes are learned, what training starts from.",
        section="Inner loop",
        above=0,
    )
    test_inner_steps: int | None = option(
        10, "Inner steps in validation and test.", section="Inner loop", least=0
    )
    outer_lr: float = option(1e-3, "Step size of the outer optimizer.", section="Training", above=0)
    outer_schedule: str = option(
        "constant",
        "How the outer step size runs over training: constant, or along a cosine or a line to "
        "--outer_lr_end.",
        section="Training",
        choices=SCHEDULES,
    )
    meta_batch: int = option(25, "Tasks a meta-step averages over.", section="Training", least=1)
    steps: int = option(70_000, "Meta-steps.", section="Training", least=1, most=MAX_COUNT)
    eval_every: int = option(
        2500,
        "Meta-steps between validations; 0 validates at the end only.",
        section="Training",
        least=0,
    )
    tasks_at_once: str = option(
        "1000",
        "Tasks vectorised together on a device, a number; these are small. auto is one on a CPU, all "
        "elsewhere.",
        section="Training",
    )
    log_every: int = option(500, "Meta-steps between rows of metrics.csv.", section="Run", least=1)
    checkpoint_every: int = option(
        10_000, "Meta-steps between checkpoints; 0 saves at the end only.", section="Run", least=0
    )


def start(settings: RegressionSettings) -> int:
    """Runs the experiment; returns the exit status."""
    check_together(settings)
    try:
        hidden = tuple(int(width) for width in settings.hidden.split(","))
    except ValueError:
        hidden = ()
    if not hidden or min(hidden) < 1:
        raise UsageError(
            f"--hidden={settings.hidden} is not a list of positive widths such as 40,40."
        )
    experiment = make_experiment(settings, hidden)
    name = f"sinusoid-{settings.learner}-{settings.shots}shot"
    return run.conduct(experiment, settings, name)


def make_experiment(settings: RegressionSettings, hidden: tuple[int, ...]) -> Experiment:
    """Puts sampler, model and learner together."""
    model, encoder = (
        in_precision(
            models.build("mlp", outputs=outputs, features=hidden), jnp.dtype(settings.precision)
        )
        for outputs in (1, None)
    )

    learner = learner_maker(settings, squared_error, model=model, encoder=encoder)

    one_step = learner(1, inner_adjoint(settings), testing=True)
    train = SinusoidSampler(settings.shots, settings.queries)
    test = SinusoidSampler(settings.shots, settings.test_queries)
    return Experiment(
        make_learner=learner,
        inputs=np.zeros((settings.shots, 1), np.float32),
        loss=squared_error,
        metrics={"mse": squared_error},
        score=loop.Score("mse", higher_is_better=False),
        samplers={"train": train, "valid": test, "test": test},
        data=dict.fromkeys(("train", "valid", "test")),
        fingerprint="sinusoids",
        transductive=False,
        beside_support=False,
        combine=mean_values,
        plan=[
            ("data", "sinusoids, amplitude 0.1 to 5, phase 0 to pi, inputs -5 to 5"),
            ("episodes", f"{settings.shots} points, {settings.queries} queries"),
            ("learner", settings.learner),
            ("model", f"MLP {settings.hidden}"),
        ],
        facts={
            "dataset": "sinusoids",
            "learner": settings.learner,
            "shots": settings.shots,
            "queries": settings.test_queries,
        },
        pictures=functools.partial(_fits, settings, one_step, test, settings.steps_at_test),
    )


def _fits(
    settings: RegressionSettings,
    one_step: Learner,
    sampler: SinusoidSampler,
    num_steps: int,
    meta: Any,
    workdir: Path,
) -> dict[str, Any]:
    """Plots fits before and after each inner step, and measures the test error after each."""
    key = jax.random.fold_in(evaluation_key(settings, "test"), 0)
    grid = jnp.linspace(*INPUTS, 200)[:, None]

    def follow(task):
        learner_key, episode = draw_task(sampler, None, key, task)

        def step(fast, _):
            predictions = one_step.predict(meta, fast, grid)[:, 0]
            error = squared_error(one_step.predict(meta, fast, episode.query.inputs), episode.query)
            return one_step.adapt(meta, fast, adapt_key, episode.support), (predictions, error)

        start_key, adapt_key = jax.random.split(learner_key)  # as `query_outputs` does
        fast = one_step.start(meta, start_key)
        _, (fits, errors) = jax.lax.scan(step, fast, length=num_steps + 1)
        amplitude, phase, _ = draw_task(sampler.identify, None, key, task)[1]
        return fits, errors, sinusoid(grid[:, 0], amplitude, phase), episode.support

    tasks = jnp.arange(settings.eval_episodes)
    fits, errors, truth, support = jax.jit(
        lambda tasks: jax.lax.map(follow, tasks, batch_size=100)
    )(tasks)
    shown = slice(0, PICTURED_TASKS)
    pictures.fits_picture(
        workdir / "fits.png",
        grid=np.asarray(grid[:, 0]),
        truth=np.asarray(truth[shown]),
        fits=np.asarray(fits[shown]),
        support_x=np.asarray(support.inputs[shown, :, 0]),
        support_y=np.asarray(support.targets[shown, :, 0]),
        title=f"{settings.learner}: new sinusoids from {settings.shots} points",
    )
    if settings.minibatch:
        return {}  # one call of several steps passes over the points, as several calls of one do not
    by_step = [confidence_interval(column) for column in np.asarray(errors).T]
    return {
        "test_mse_by_step": [{"step": i, "mse": m, "ci95": c} for i, (m, c) in enumerate(by_step)]
    }


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(RegressionSettings, __doc__, start, prepare=run.prepare_process)


if __name__ == "__main__":
    main()
