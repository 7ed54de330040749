"""Measures images per second streamed from disk, next to the rate at which a training step consumes them.

    python -m benchmarks.streaming --data_dir=~/tensorflow_datasets --dataset=tiny_imagenet32 [--workers=2]

Worker processes draw the episodes of a step, read and decode their images, and return the raw pixels; the
step makes episodes of them and takes a second-order MAML step of conv4. Both are measured separately and in
turn, round after round, and then together: "fed" is the step on images that just arrived. The command prints
medians over rounds in images per second. "ratio" is the stream's rate divided by the step's: above 1 the
step need not wait, and its inverse is about the share of the workers' time that is used.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

import metajax
from benchmarks.harness import options as shared
from experiments.reports import report
from experiments.runtime.devices import use_every_core
from metajax.data import sources, streaming
from metajax.data.streamed import StreamedImages
from metajax.data.streaming import Streamed
from metajax.episodes.store import EpisodeSampler, class_store
from metajax.errors import DataError
from metajax.sharding import divided
from metajax.zoo import models

ROUND_SECONDS = 1.5
MANY_STEPS = 10**6  # more steps than are taken


class Rates(NamedTuple):
    """Images per second, one number per round.

    Attributes:
      step: Rate of the training step on images that are in memory.
      stream: Rate of the stream while nothing else runs.
      fed: Rate of both together.
    """

    step: list[float]
    stream: list[float]
    fed: list[float]


def measure(
    train: Callable[[np.ndarray], None],
    pixels: Iterator[np.ndarray],
    *,
    images: int,
    ahead: int,
    rounds: int,
) -> Rates:
    """Measures step, stream and both in turn.

    Args:
      train: Function that takes a step on images and returns when it is done.
      pixels: Iterator over the images of steps.
      images: Number of images per step.
      ahead: Number of steps whose images may have been read in advance.
      rounds: Number of rounds.

    Returns:
      The rates.
    """
    rates = Rates([], [], [])
    raw = next(pixels)
    train(raw)

    def measured(work: Callable[[], object]) -> float:
        """Measures the images per second of repeated work on one step."""
        start, steps = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < ROUND_SECONDS:
            work()
            steps += 1
        return steps * images / passed

    for _ in range(rounds):
        for _ in range(ahead):
            next(pixels)
        rates.stream.append(measured(lambda: next(pixels)))
        train(next(pixels))
        rates.fed.append(measured(lambda: train(next(pixels))))
        # Workers read ahead; the step alone is measured once they have nothing left to do.
        time.sleep(2 * ahead * images / rates.stream[-1])
        rates.step.append(measured(lambda: train(raw)))
    return rates


def make_train(
    data: StreamedImages, sampler: EpisodeSampler, options: argparse.Namespace, key: jax.Array
) -> Callable[[np.ndarray], None]:
    """Makes a training step that keeps its state; it is compiled at the first call.

    Args:
      data: Images on disk.
      sampler: Sampler of the episodes.
      options: Options of the command.
      key: Random key of the run.

    Returns:
      Function of raw pixels [T, N, K + Q, H, W, C], uint8.
    """
    model = models.build_model("conv4", outputs=options.ways, filters=options.filters)
    learner = metajax.maml(
        model, metajax.cross_entropy, rule=optax.sgd(0.01), steps=options.inner_steps
    )
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    mesh = metajax.task_mesh()
    at_once = 1 if jax.default_backend() == "cpu" else None
    step = metajax.make_step(
        metajax.over_tasks(mesh, metajax.backprop(objective, tasks_at_once=at_once)),
        optax.adam(1e-3),
        streaming.sampler(sampler),
        num_tasks=options.meta_batch,
        by_task=streaming.BY_TASK,
    )
    step = jax.jit(step)
    store = class_store(data)
    examples = np.zeros((options.ways * options.shots, *data.shape), np.float32)
    state = metajax.init_state(learner.init(key, examples), optax.adam(1e-3), key)

    def train(raw: np.ndarray) -> None:
        nonlocal state
        pixels = jax.device_put(raw, divided(mesh))
        state, _ = jax.block_until_ready(step(state, Streamed(store, pixels)))

    return train


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = shared.Parser("benchmarks.streaming", __doc__)
    parser.add_argument(
        "--dataset", default="tiny_imagenet32", help="data set, as in the drivers [tiny_imagenet32]"
    )
    parser.add_argument("--data_dir", help="folder of the data sets, as in the drivers")
    for name, default, what in (
        ("image_size", None, "side in pixels [the data set's]"),
        ("ways", 5, "classes per task [5]"),
        ("shots", 1, "support images per class [1]"),
        ("queries", 15, "query images per class [15]"),
        ("meta_batch", 16, "tasks per step [16]"),
        ("inner_steps", 1, "inner steps of MAML [1]"),
        ("filters", 64, "channels of conv4 [64]"),
        ("workers", 2, "processes that read images [2]"),
        ("rounds", 5, "rounds of measurements [5]"),
    ):
        parser.add_argument(f"--{name}", type=shared.positive(int), default=default, help=what)
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, and prints a table.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    use_every_core(options.meta_batch)
    sampler = EpisodeSampler(options.ways, options.shots, options.queries)
    key = jax.random.key(0)
    try:
        splits = sources.load(
            options.dataset,
            data_dir=options.data_dir,
            image_size=options.image_size,
            resident="never",
        )
        sampler.check(class_store(splits.train), name="training")
        train = make_train(splits.train, sampler, options, key)
        start = time.perf_counter()
        with streaming.training_pixels(
            sampler,
            splits.train,
            key=key,
            steps=range(MANY_STEPS),
            tasks=range(options.meta_batch),
            workers=options.workers,
        ) as pixels:
            first = next(pixels)
            waited = time.perf_counter() - start
            rates = measure(
                train,
                pixels,
                images=int(np.prod(first.shape[:3])),
                ahead=4 * options.workers,
                rounds=options.rounds,
            )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.table(rows(rates, options, splits.description, waited)))
    return 0


def rows(
    rates: Rates, options: argparse.Namespace, description: str, waited: float
) -> list[tuple[str, str]]:
    """Formats the measurements.

    Args:
      rates: Measured rates.
      options: Options of the command.
      description: Description of the data.
      waited: Seconds until the first images arrived.

    Returns:
      Pairs of name and text for `report.table`.
    """
    step, stream, fed = (statistics.median(numbers) for numbers in rates)
    versions = report.versions()
    return [
        ("data", description),
        (
            "step",
            f"MAML, conv4-{options.filters}, inner steps: {options.inner_steps}; {options.meta_batch} tasks, "
            f"{options.ways}-way {options.shots}-shot, {options.queries} queries per class",
        ),
        ("step alone", f"{_in_words(rates.step)} images/s"),
        (f"{options.workers} workers alone", f"{_in_words(rates.stream)} images/s"),
        ("ratio", f"{stream / step:.2f}"),
        ("both at once", f"{_in_words(rates.fed)} images/s, {fed / step:.2f} of the step alone"),
        ("first images", f"after {waited:.1f} s"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _in_words(numbers: Sequence[float]) -> str:
    """Formats the median and the range of the rounds."""
    return f"{statistics.median(numbers):,.0f} ({min(numbers):,.0f} to {max(numbers):,.0f})"


if __name__ == "__main__":
    sys.exit(main())
