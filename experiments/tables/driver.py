r"""Learns to predict tables from tables that are made up.

Trains an in-context learner on random structural causal tables, drawn on the device, and tests it on real
tables that it has never seen: some rows of a table are the support set, all others the queries, several
times. No weight changes on a real table. Baselines are fitted to the same support sets, and the learner's
paired difference to each is printed: the idea of TabPFN (Hollmann et al., 2023,
https://arxiv.org/abs/2207.01848) at the size of nanoTabPFN (https://arxiv.org/abs/2511.03634).

  python -m experiments.tables
  python -m experiments.tables --workdir=runs/tables
  python -m experiments.tables --workdir=runs/tables --mode=evaluate --test_dataset=table \
    --data_dir=loans.csv --target=default --features=income,job
  python -m experiments.tables --flagfile=tables_prior_fitted --data_dir=tables
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from metajax.episodes.causal_tables import CausalTableSampler
from metajax.errors import DataError
from metajax.learners.wrappers.ensembles import mean_probabilities
from metajax.losses import cross_entropy
from metajax.models import in_precision
from metajax.models.cells import cells_encoder
from metajax.objectives.scoring import Scoring
from metajax.types import Array, Learner

from .. import conduct
from ..runtime.launch import launch
from ..runtime.observers import Observer
from ..runtime.progress import Score
from ..setup.experiment import Experiment, Setup, evaluation_key
from ..setup.learners import learner_maker
from ..setup.row_tests import ListedTasks, digests, measurable
from . import reports, scores
from .data import RealTable, Splits, list_splits, read_real
from .options import TablesPlan, TablesSettings, resolve_tables


def start(settings: TablesSettings, *, observers: Sequence[Observer] = ()) -> int:
    """Runs the experiment, with observers of its training; returns the exit status."""
    return conduct.conduct(build, settings, observers=observers)


def build(settings: TablesSettings) -> Experiment:
    """Checks the settings and reads the real tables.

    Raises:
      DataError: If a table is missing, broken, too small, or has too many classes.
      UsageError: If options do not go together.
    """
    plan = resolve_tables(settings)
    plan = plan._replace(baselines=measurable(plan.baselines, named=settings.baselines != "all"))
    real, most = plan.real, plan.common.inner.own["most_ways"]
    tables = [read_real(name, real.data_dir, real.target, real) for name in plan.names]
    for table in tables:
        if len(table.classes) > most:
            raise DataError(
                f"{table.name} has {len(table.classes)} classes, and the learner --most_ways={most}; train "
                f"with --most_ways={len(table.classes)}."
            )
    splits = {
        size: [
            list_splits(
                table,
                size,
                repeats=real.repeats,
                queries=real.test_queries,
                seed=plan.common.test.eval_seed,
            )
            for table in tables
        ]
        for size in plan.supports
    }
    return make_experiment(plan, tables, splits)


def make_experiment(
    plan: TablesPlan, tables: list[RealTable], splits: dict[int, list[Splits]]
) -> Experiment:
    """Puts made-up tables, real tables and learner together.

    Args:
      plan: The run.
      tables: Real tables.
      splits: Splits of each of them, by support size.

    Returns:
      The experiment.
    """
    made, inner = plan.made, plan.common.inner
    ways = inner.own["most_ways"]
    encoder = in_precision(cells_encoder(), jnp.dtype(plan.common.training.precision))
    sampler = CausalTableSampler(made.rows, made.queries, made.columns, ways, max(16, ways))
    rows = np.concatenate([digests(zip(*own, strict=True)) for own in splits[plan.supports[0]]])
    fingerprint = hashlib.sha256("".join(table.digest() for table in tables).encode()).hexdigest()
    tested = reports.Tested()
    words = ", ".join(
        f"{table.name} ({len(table.labels):,} x {table.cells.shape[1]}, {len(table.classes)} classes)"
        for table in tables
    )
    notes = [f"{table.name}: {note}" for table in tables for note in table.notes]
    return Experiment(
        name=f"tables-{inner.learner}",
        make_learner=learner_maker(
            inner,
            cross_entropy,
            model=encoder,
            encoder=encoder,
            ways=ways,
            test_ways=ways,
            examples=made.rows,
        ),
        inputs=np.zeros((made.rows, made.columns), np.float32),
        scoring=Scoring(cross_entropy, dict(scores.METRICS)),
        score=Score("auroc", higher_is_better=True),
        samplers={"train": sampler, "valid": sampler, "test": ListedTasks()},
        data={"train": None, "valid": None, "test": rows},
        fingerprint=f"made_tables.{fingerprint}",
        transductive=False,
        combine=mean_probabilities,
        announcement=[
            (
                "training tables",
                f"made up, up to {made.rows} + {made.queries} rows, {made.columns} columns, {ways} classes",
            ),
            ("test tables", words),
            ("test splits", f"{plan.real.repeats} of each, {plan.real.support} support rows"),
            *[("note", note) for note in notes],
            ("learner", inner.learner),
        ],
        facts={
            "dataset": "made_tables",
            "learner": inner.learner,
            "tables": list(plan.names),
            "repeats": plan.real.repeats,
            "notes": "; ".join(notes),
        },
        pictures=lambda meta, workdir: {},
        measured=functools.partial(_measure, plan, tables, splits, tested),
        listed={"test": functools.partial(_scorer, plan, tables, splits, tested)},
        settled={"eval_episodes": len(rows)},
    )


def _scorer(
    plan: TablesPlan,
    tables: list[RealTable],
    splits: dict[int, list[Splits]],
    tested: reports.Tested,
    setup: Setup,
    learner: Learner,
) -> Any:
    """Makes the scorer of the test: `meta -> scores` [E] of the first support size."""
    del setup
    key, chunk = evaluation_key(plan.common.test.eval_seed, "test"), plan.common.outer.chunk

    def score(meta: Any) -> dict[str, Array]:
        tested.learner = {
            size: [
                scores.of_learner(learner, meta, key, table, own, chunk=chunk)
                for table, own in zip(tables, splits[size], strict=True)
            ]
            for size in plan.supports
        }
        first = tested.learner[plan.supports[0]]
        return {name: np.concatenate([own[name] for own in first]) for name in first[0]}

    return score


def _measure(
    plan: TablesPlan,
    tables: list[RealTable],
    splits: dict[int, list[Splits]],
    tested: reports.Tested,
    meta: Any,
    folder: Path,
) -> dict[str, Any]:
    """Measures the baselines on the same splits, prints the comparison and keeps the splits."""
    del meta
    found = {
        size: [
            scores.of_baselines(
                plan.baselines,
                table,
                own,
                trees=plan.real.trees,
                seed=plan.common.test.eval_seed,
            )
            for table, own in zip(tables, splits[size], strict=True)
        ]
        for size in plan.supports
    }
    return reports.compare(tables, splits, tested.learner, found, folder)


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(TablesSettings, __doc__, start, prepare=conduct.prepare_process)
