"""Measures tasks from tables: encoding molecules, drawing tasks, and training steps.

    python -m benchmarks.rows
    python -m benchmarks.rows --measures=drawing,step --meta_batch=16 --support=64 --queries=64
    python -m benchmarks.rows --quick     # tiny sizes, to see that it works

The molecules are chains of fragments that are put together at random, the store has --assays assays of
--molecules rows in all, and the step is one of `fsmol_protonet`: prototypical networks with a
Mahalanobis distance on counts of fragments. "drawing" draws the tasks of that step alone, features included,
so its share of the step is what the sampler costs. The measures take turns; the command prints medians and
ranges of the rounds.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from benchmarks.harness import options as shared
from experiments.reports import report
from experiments.runtime.devices import use_every_core
from metajax.data.features.molecules import morgan_counts
from metajax.episodes.rows import Rows
from metajax.episodes.split_sampler import SplitSampler
from metajax.learners.metric.mahalanobis import mahalanobis_protonet
from metajax.models.molecules import fingerprint_encoder

_FRAGMENTS = (
    "C",
    "CC",
    "CO",
    "CN",
    "C(=O)N",
    "C(C)C",
    "c1ccccc1",
    "c1ccncc1",
    "C1CCNCC1",
    "S(=O)(=O)N",
)
_SIZES = {
    "molecules": (2000, "molecules of the store, and encoded molecules"),
    "assays": (100, "assays of the store"),
    "size": (2048, "bins of a fingerprint"),
    "width": (512, "units of the hidden layer"),
    "embedding": (128, "features of a molecule"),
    "meta_batch": (16, "tasks of a step"),
    "support": (64, "support rows of a task"),
    "queries": (64, "query rows of a task"),
    "rounds": (5, "rounds of measurements"),
}
QUICK = {
    **{"molecules": 60, "assays": 4, "size": 32, "width": 8, "meta_batch": 2},
    "embedding": 4,
    **{"support": 4, "queries": 4, "rounds": 1},
}


class Measure(NamedTuple):
    """Work to be timed.

    Attributes:
      run: Function to call; it returns arrays that are waited for.
      count: Number of units that a call handles, of `UNITS`.
    """

    run: Callable[[], Any]
    count: int


def molecules(count: int, seed: int = 0) -> list[str]:
    """Puts fragments together to molecules.

    Args:
      count: Number of molecules.
      seed: Seed of the choice.

    Returns:
      SMILES.
    """
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(_FRAGMENTS, rng.integers(4, 12))) for _ in range(count)]


def make_store(options: argparse.Namespace) -> Rows:
    """Makes a store of assays, whose molecules are active by chance.

    Args:
      options: Options of the command.

    Returns:
      The store; an assay is a parent of inactive and active molecules.
    """
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.03, (options.molecules, options.size)).astype(np.uint8)
    assays = rng.integers(0, options.assays, options.molecules)
    active = np.arange(options.molecules) % 2
    groups = 2 * assays + active
    return Rows.from_groups(
        counts, groups, targets=active.astype(np.int32), parents=np.arange(2 * options.assays) // 2
    )


def _fingerprints(options: argparse.Namespace) -> Measure:
    """Encodes molecules as counts of fragments, on one core."""
    run = functools.partial(morgan_counts, molecules(options.molecules), size=options.size)
    return Measure(lambda: run().values, options.molecules)


def _drawing(options: argparse.Namespace) -> Measure:
    """Draws the tasks of a step."""
    store, sampler = make_store(options), _sampler(options)

    @jax.jit
    def draw(store: Rows, key: jax.Array) -> Any:
        return jax.vmap(sampler, (None, 0))(store, jax.random.split(key, options.meta_batch))

    key = jax.random.key(0)
    return Measure(lambda: draw(store, key), options.meta_batch)


def _step(options: argparse.Namespace) -> Measure:
    """Takes a training step, drawing included."""
    store, sampler = make_store(options), _sampler(options)
    encoder = fingerprint_encoder(width=options.width, depth=0, embedding=options.embedding)
    learner = mahalanobis_protonet(encoder, ways=2)
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    optimizer = optax.adam(1e-3)
    step = jax.jit(
        metajax.make_step(
            metajax.backprop(objective), optimizer, sampler, num_tasks=options.meta_batch
        )
    )
    init_key, train_key = jax.random.split(jax.random.key(0))
    meta = jax.jit(learner.init)(init_key, store.take(jnp.zeros(2, jnp.int32)))
    state = metajax.init_state(meta, optimizer, train_key)
    return Measure(lambda: step(state, store), options.meta_batch)


def _sampler(options: argparse.Namespace) -> SplitSampler:
    return SplitSampler(options.support, options.queries, order="stratified")


MEASURES: Mapping[str, Callable[[argparse.Namespace], Measure]] = {
    "fingerprints": _fingerprints,
    "drawing": _drawing,
    "step": _step,
}
"""Functions from options to the work that is timed, by name."""

UNITS = {"fingerprints": "molecules", "drawing": "tasks", "step": "tasks"}
"""Unit of each measure."""


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Measures in turn, after a call of each that compiles it.

    Args:
      options: Options of the command.

    Returns:
      Seconds of each round, by measure.
    """
    made = {name: MEASURES[name](options) for name in options.measures}
    found: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(options.rounds + 1):
        for name, one in made.items():
            start = time.perf_counter()
            jax.block_until_ready(one.run())
            if turn:  # the first one compiles
                found[name].append((time.perf_counter() - start) / one.count)
    return found


def rows(seconds: Mapping[str, Sequence[float]], options: argparse.Namespace) -> list[Any]:
    """Formats the measurements.

    Args:
      seconds: Seconds per unit of each round, by measure.
      options: Options of the command.

    Returns:
      Pairs of name and text for `report.table`.
    """
    found = []
    for name, times in seconds.items():
        slow, median, fast = (1 / f(times) for f in (max, statistics.median, min))
        found.append((name, f"{median:,.1f} {UNITS[name]}/s ({slow:,.1f} to {fast:,.1f})"))
    if {"drawing", "step"} <= set(seconds):
        share = statistics.median(seconds["drawing"]) / statistics.median(seconds["step"])
        found.append(("share of drawing", f"{share:.1%} of a step"))
    sizes = ", ".join(f"{name} {getattr(options, name):,}" for name in _SIZES)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
    return [*found, ("sizes", sizes), ("versions", versions)]


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = shared.Parser("benchmarks.rows", __doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes instead of the defaults, and one round"
    )
    parser.add_argument(
        "--measures",
        type=functools.partial(shared.names, known=MEASURES),
        default=tuple(MEASURES),
        help=f"what to measure, with commas between [{','.join(MEASURES)}]",
    )
    for name, (default, text) in _SIZES.items():
        parser.add_argument(f"--{name}", type=shared.positive(int), help=f"{text} [{default:,}]")
    options = parser.parse_args(args)
    for name, (default, _) in _SIZES.items():
        if getattr(options, name) is None:
            setattr(options, name, QUICK[name] if options.quick else default)
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Measures, and prints a table.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    use_every_core(options.meta_batch)
    print(report.table(rows(measure(options), options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
