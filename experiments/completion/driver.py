"""Learns to complete an image from a few of its pixels.

Trains a neural process on images, each a task: it sees some pixels, the context, and predicts a
distribution for every pixel. It is tested on images of classes it has never seen, as Garnelo et al., 2018
(https://arxiv.org/abs/1807.01613, section 4.2) and Kim et al., 2019 (https://arxiv.org/abs/1901.05761,
section 4.2) complete faces and digits. With no flags: a conditional neural process on glyphs, letters of the
world's scripts that are drawn on this machine; the test scripts are never seen in training.

  python -m experiments.completion
  python -m experiments.completion --learner=anp
  python -m experiments.completion --dataset=folder --data_dir=pictures --image_size=32
  python -m experiments.completion --flagfile=experiments/recipes/glyphs_completion_anp.flags
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.data import sources
from metajax.data.streamed import StreamedImages
from metajax.episodes import store
from metajax.episodes.pixels import PixelSampler
from metajax.episodes.rows import Rows
from metajax.evaluate import make_evaluate
from metajax.learners.sequence.neural_process import (
    gaussian_nll,
    log_likelihood,
    mean_and_std,
    mean_error,
    mixture,
)
from metajax.metrics import confidence_interval
from metajax.models import in_precision
from metajax.objectives.query import adapt_to_task
from metajax.objectives.scoring import Scoring
from metajax.types import Array, Batch, Learner
from metajax.zoo import models
from metajax.zoo.learners import LEARNERS

from .. import conduct
from ..flags.images import DataOptions, ImageSettings
from ..flags.plan import RunPlan, part, resolve
from ..flags.settings import UsageError, option, redeclare
from ..flags.training import check_together, hidden_widths
from ..reports import image_notes, pictures
from ..reports.calibration import coverage, measure_calibration
from ..runtime.launch import launch
from ..runtime.observers import Observer
from ..runtime.progress import Score
from ..setup import images as setup_images
from ..setup import streams
from ..setup.experiment import Experiment, evaluation_key
from ..setup.images import on_disk, read_images
from ..setup.learners import inner_adjoint, learner_maker

PROCESSES = tuple(name for name, entry in LEARNERS.items() if entry.loss is gaussian_nll)
# Numbers of context points that are tested besides --points, and pictured.
COUNTS = (10, 30, 100, 300)
PICTURED_IMAGES = 4
MIN_POINTS, QUERIES = 3, 200
METRICS = {"log_likelihood": log_likelihood, "mse": mean_error}


@dataclasses.dataclass(frozen=True)
class PixelOptions:
    """The tasks, and the networks."""

    points: int = option(
        100,
        "Context pixels in validation and test, and the most in training.",
        section="Episodes",
        least=1,
        basic=True,
    )
    min_points: int | None = option(
        None,
        f"Fewest context pixels of a training task, drawn up to --points [{MIN_POINTS}].",
        section="Episodes",
        least=1,
    )
    queries: int | None = option(
        None,
        f"Query pixels in training [{QUERIES}, or all]. In validation and test all pixels are queries.",
        section="Episodes",
        least=1,
    )
    hidden: str = option(
        "128,128,128", "Widths of the hidden layers of each MLP.", section="Learner"
    )


@dataclasses.dataclass(frozen=True)
class CompletionSettings(PixelOptions, ImageSettings):
    """Every option of image completion."""

    predicts: ClassVar[str] = "values"

    learner: str = redeclare(
        ImageSettings,
        "learner",
        "cnp",
        help="Neural process: cnp sees the mean of the codes of the context's pixels; anp attends to them.",
    )
    steps: int = redeclare(ImageSettings, "steps", 5000)
    eval_every: int = redeclare(ImageSettings, "eval_every", 500)


class CompletionPlan(NamedTuple):
    """A run of image completion as resolved from its options.

    Attributes:
      common: Plan that all drivers share.
      data: Options of the images.
      tasks: Options of the tasks and the networks.
    """

    common: RunPlan
    data: DataOptions
    tasks: PixelOptions


def start(settings: CompletionSettings, *, observers: Sequence[Observer] = ()) -> int:
    """Runs the experiment, with observers of its training; returns the exit status."""
    return conduct.conduct(build, settings, observers=observers)


def build(settings: CompletionSettings) -> Experiment:
    """Checks the settings and reads the images.

    Raises:
      DataError: If images are missing or broken.
      UsageError: If options do not go together.
    """
    if settings.learner not in PROCESSES:
        raise UsageError(
            f"--learner={settings.learner} gives no distributions of pixels; use {' or '.join(PROCESSES)}."
        )
    check_together(settings)
    plan = CompletionPlan(
        resolve(settings), part(DataOptions, settings), part(PixelOptions, settings)
    )
    if settings.min_points and settings.min_points > settings.points:
        raise UsageError(
            f"--min_points={settings.min_points} is more than --points={settings.points}; use as many or "
            "fewer."
        )
    return make_experiment(plan, hidden_widths(settings.hidden), read_images(settings))


def make_experiment(
    plan: CompletionPlan, hidden: tuple[int, ...], images: sources.Splits
) -> Experiment:
    """Puts data, model and learner together; raises before anything is compiled.

    Args:
      plan: The run.
      hidden: Widths of the networks' hidden layers.
      images: Images by split.

    Returns:
      The experiment.
    """
    tasks, inner = plan.tasks, plan.common.inner
    splits = {"train": images.train, "valid": images.valid, "test": images.test}
    height, width, channels = images.train.shape
    fewest = tasks.min_points or min(MIN_POINTS, tasks.points)
    queries = tasks.queries or min(QUERIES, height * width)
    train = PixelSampler(tasks.points, queries, fewest)
    test = PixelSampler(tasks.points)
    samplers = {"train": train, "valid": test, "test": test}
    for name, split in splits.items():
        samplers[name].check(split, name=name)
    streamed = on_disk(splits)
    described = image_notes.describe(images)
    statistics = store.pixel_statistics(images.train)
    data = {name: store.class_store(split, statistics=statistics) for name, split in splits.items()}
    encoder, decoder = (
        in_precision(
            models.build_model("mlp", outputs=outputs, features=hidden),
            jnp.dtype(plan.common.training.precision),
        )
        for outputs in (None, 2 * channels)
    )
    learner = learner_maker(
        inner,
        gaussian_nll,
        model=decoder,
        encoder=encoder,
        decoder=decoder,
        num_outputs=channels,
        examples=tasks.points,
    )
    test_learner = learner(inner.test_steps, inner_adjoint(inner.adjoint), testing=True)
    return Experiment(
        name=f"{plan.data.dataset}-completion-{inner.learner}-{tasks.points}points",
        make_learner=learner,
        inputs=np.zeros((tasks.points, 2), np.float32),
        scoring=Scoring(gaussian_nll, METRICS),
        score=Score("log_likelihood", higher_is_better=True),
        samplers=samplers,
        data=data,
        fingerprint=".".join(split.fingerprint() for split in splits.values()),
        transductive=False,
        combine=mixture,
        announcement=[
            ("data", images.description),
            ("images", f"{height} x {width} x {channels}, each a task"),
            *described.rows,
            (
                "episodes",
                f"{fewest} to {tasks.points} context pixels, {queries} queries in training; "
                f"{tasks.points}, and all {height * width:,}, in test",
            ),
            ("learner", inner.learner),
            ("model", f"MLPs {tasks.hidden}"),
        ],
        facts={
            "dataset": plan.data.dataset,
            **setup_images.tested_elsewhere(plan.data),
            "split": images.description,
            **described.facts,
            "learner": inner.learner,
            "points": tasks.points,
            "queries": height * width,
        },
        pictures=functools.partial(
            _pictures, plan, test_learner, data["test"], streamed.get("test")
        ),
        streamed=streamed,
        workers=plan.data.read_workers,
        record=setup_images.record(plan.common.command, images),
    )


def _pictures(
    plan: CompletionPlan,
    learner: Learner,
    data: Rows,
    images: StreamedImages | None,
    meta: Any,
    workdir: Path,
) -> dict[str, Any]:
    """Draws completions of test images, and measures the test by context points, and its calibration."""
    height, width, channels = data.features.shape[1:]
    pixels = height * width
    counts = sorted({*(count for count in COUNTS if count < pixels), plan.tasks.points})
    over = functools.partial(_over_tests, plan, learner, data, images, meta, counts)
    _draw(plan, workdir, data, counts, over(_show, num_tasks=PICTURED_IMAGES))
    measured = over(_measure, num_tasks=plan.common.test.eval_episodes)
    targets = plan.common.test.eval_episodes * pixels * channels
    return {
        **measure_calibration(
            workdir,
            measured["covered"][counts.index(plan.tasks.points)],
            title=f"{plan.common.inner.learner}: {targets:,} values of test pixels",
        ),
        **{f"test_{name}_by_points": _by_points(name, counts, measured[name]) for name in METRICS},
    }


def _over_tests(
    plan: CompletionPlan,
    learner: Learner,
    data: Rows,
    images: StreamedImages | None,
    meta: Any,
    counts: Sequence[int],
    follow: Callable[..., Any],
    *,
    num_tasks: int,
) -> Any:
    """Follows the first test tasks at each number of context points; leaves [counts, tasks, ...]."""
    sampler, key = PixelSampler(max(counts)), evaluation_key(plan.common.test.eval_seed, "test")
    draw, by_task = streams.drawing(sampler, images)

    def sample(data, key):
        store = data if images is None else data.store
        return draw(data, key), sampler.identify(store, key)

    def complete(given, key, task):
        (meta, count), (episode, drawn) = given, task
        # Fewer points are the first of more: one program for all counts.
        weights = (jnp.arange(sampler.points) < count).astype(jnp.float32)
        episode = episode._replace(support=episode.support._replace(weights=weights))
        fast = adapt_to_task(learner, meta, key, episode)
        seen = jnp.zeros(len(drawn.queries), jnp.float32).at[drawn.context].set(weights) > 0
        inputs = episode.query.inputs
        outputs = jax.lax.map(
            lambda pixel: learner.predict(meta, fast, pixel[None])[0],
            inputs,
            batch_size=plan.common.outer.chunk or len(inputs),
        )
        return (), follow(outputs, episode.query, seen)

    evaluate = jax.jit(make_evaluate(complete, sample, by_task=by_task))
    data = streams.first_data(sampler, data, images, key, num_tasks)
    found = [
        jax.tree.map(np.asarray, evaluate((meta, count), data, key, jnp.arange(num_tasks)))
        for count in counts
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def _measure(outputs: Array, query: Batch, seen: Array) -> dict[str, Array]:
    del seen
    mean, std = mean_and_std(outputs)
    measured = {name: metric(outputs, query) for name, metric in METRICS.items()}
    return {**measured, "covered": coverage((query.targets - mean) / std)}


def _show(outputs: Array, query: Batch, seen: Array) -> tuple[Array, ...]:
    return query.targets, seen, *mean_and_std(outputs)


def _draw(
    plan: CompletionPlan,
    workdir: Path,
    data: Rows,
    counts: Sequence[int],
    shown: tuple[np.ndarray, ...],
) -> None:
    height, width, channels = data.features.shape[1:]
    truth, seen, mean, std = shown
    images = (len(counts), PICTURED_IMAGES, height, width)
    pictures.completions_picture(
        workdir / "completions.png",
        truth=truth[0].reshape(*images[1:], channels),
        seen=seen.reshape(images),
        mean=mean.reshape(*images, channels),
        deviations=std.reshape(*images, channels),
        points=counts,
        title=f"{setup_images.tested_images(plan.data)}: images of unseen classes, completed by "
        f"{plan.common.inner.learner}",
    )


def _by_points(name: str, counts: Sequence[int], scores: np.ndarray) -> list[dict[str, float]]:
    intervals = [confidence_interval(of) for of in scores]
    return [
        {"points": count, name: mean, "ci95": ci95}
        for count, (mean, ci95) in zip(counts, intervals, strict=True)
    ]


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(CompletionSettings, __doc__, start, prepare=conduct.prepare_process)
