"""Learns to predict the rows of a new user, assay, student or segment from a few of them.

Every value of the column --group is a task: some of its rows are the support set, all others the queries. A
meta-learner is trained on the tasks of some groups and tested on groups it has never seen, each --repeats
times; baselines without meta-learning, from the mean to a random forest, are measured on the same tasks, with
the learner's paired difference to each.

  python -m experiments.pertask --data_dir=ratings.csv --group=user --target=rating --features=genre,year
  python -m experiments.pertask --dataset=fsmol --data_dir=fsmol --support=16,32,64
  python -m experiments.pertask --dataset=restaurant --data_dir=restaurant --support=4 --baselines_only
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.rows import Rows
from metajax.episodes.split_sampler import SplitSampler
from metajax.episodes.views import Examples, View, plain_view
from metajax.errors import DataError
from metajax.learners.sequence.neural_process import gaussian_nll, mixture
from metajax.learners.wrappers.ensembles import mean_probabilities, mean_values
from metajax.losses import cross_entropy, squared_error
from metajax.objectives.query import query_objective
from metajax.objectives.scoring import Scoring
from metajax.types import Learner

from .. import conduct
from ..reports import report
from ..runtime.files import write_json
from ..runtime.launch import launch
from ..runtime.observers import Observer
from ..runtime.progress import Score
from ..runtime.workdir import prepare_workdir
from ..setup.experiment import Experiment, Setup
from ..setup.learners import inner_adjoint, learner_maker
from ..setup.row_tests import ListedTasks
from . import networks, reports, scores, splits
from .data import TaskData
from .loading import load
from .options import PertaskPlan, PertaskSettings, resolve_pertask, settled
from .reports import Tested


def start(settings: PertaskSettings, *, observers: Sequence[Observer] = ()) -> int:
    """Runs the experiment, with observers of its training; returns the exit status."""
    if settings.baselines_only:
        return only_baselines(settings)
    return conduct.conduct(build, settings, observers=observers)


def build(settings: PertaskSettings) -> Experiment:
    """Checks the settings and reads the table.

    Raises:
      DataError: If rows are missing, broken or too few.
      UsageError: If options do not go together.
    """
    plan, data = read(settings)
    experiment = make_experiment(plan, data)
    found = {n: v for n, v in plan.common.asked.items() if v != getattr(settings, n)}
    return experiment._replace(settled={**experiment.settled, **found})


def read(settings: PertaskSettings) -> tuple[PertaskPlan, TaskData]:
    """Checks the settings, reads the table, and resolves what depends on it.

    Raises:
      DataError: If rows are missing, broken or too few.
      UsageError: If options do not go together.
    """
    resolve_pertask(settings)  # before a table is read, which may take minutes
    data, found = load(settings)
    return resolve_pertask(settled(settings, found)), data


def make_experiment(plan: PertaskPlan, data: TaskData) -> Experiment:
    """Puts table, model and learner together.

    Args:
      plan: The run.
      data: The tables.

    Returns:
      The experiment.

    Raises:
      DataError: If tasks cannot be drawn.
      UsageError: If the metric does not fit the targets.
    """
    inner, classes = plan.common.inner, data.ways is not None
    tests, parts = reports.list_tests(plan, data), networks.build(plan, data)
    loss = inner.entry.loss or (cross_entropy if classes else squared_error)
    uncertain = loss is gaussian_nll
    metrics = reports.metrics_of(plan, data, plan.supports[0], uncertain=uncertain)
    reports.chosen_baselines(plan, data)
    tested = Tested()
    digests = np.concatenate([own.digests() for own in tests.values()])
    samplers = make_samplers(plan, data, parts.view)
    maker = functools.partial(
        learner_maker,
        inner,
        cross_entropy if classes else squared_error,
        model=parts.model,
        decoder=parts.decoder,
        ways=data.ways,
        test_ways=data.ways,
        examples=max(plan.train_support, *plan.supports),
    )
    return Experiment(
        name=f"{plan.table.dataset}-{inner.learner}-{plan.supports[0]}rows",
        make_learner=maker(encoder=parts.encoder),
        inputs=example_inputs(data.stores["train"], parts.view, plan.train_support),
        scoring=Scoring(loss, metrics),
        score=Score(plan.metric, higher_is_better=plan.metric not in scores.LOWER_IS_BETTER),
        samplers={**samplers, "test": ListedTasks()},
        data={**{split: data.stores[split] for split in samplers}, "test": digests},
        fingerprint=data.fingerprint,
        transductive=False,
        combine=mean_probabilities if classes else mixture if uncertain else mean_values,
        announcement=[*announcement(plan, data, tests), *parts.announcement],
        facts={"learner": inner.learner, **reports.facts(plan, data, tests)},
        pictures=lambda meta, workdir: {},
        measured=functools.partial(_measure, plan, data, tests, tested),
        penalty=inner.entry.penalty,
        listed={
            "test": functools.partial(_scorer, plan, data, tests, tested, parts, maker, uncertain)
        },
        settled={"eval_episodes": len(digests)},
    )


def make_samplers(
    plan: PertaskPlan, data: TaskData, view: View
) -> dict[str, SplitSampler | GroupSampler]:
    """Makes the samplers of training and validation tasks, and checks that they can draw.

    Raises:
      DataError: If all tasks of a split are too small.
    """
    sizes = {
        "train": (plan.train_support, plan.tasks.queries),
        "valid": (plan.supports[0], plan.tasks.valid_queries),
    }
    found: dict[str, SplitSampler | GroupSampler] = {}
    for split, (support, queries) in sizes.items():
        if plan.tasks.order == "balanced":
            splits.check_divides(support, data.ways)
            shots, asked = support // data.ways, max(1, queries // data.ways)
            _check_classes(split, shots, asked, data)
            found[split] = GroupSampler(
                data.ways, shots, asked, within=True, own_targets=True, view=view
            )
        else:
            found[split] = SplitSampler(
                support, queries, order=plan.tasks.order, by_group=data.by_group, view=view
            )
        found[split].check(data.stores[split], name=f"the {split} rows")
    return found


def _check_classes(split: str, shots: int, queries: int, data: TaskData) -> None:
    """Raises DataError if a class of a task has too few rows, of which balanced tasks have a fixed number."""
    counts, flag = np.asarray(data.stores[split].counts), {"train": "", "valid": "valid_"}[split]
    if (few := int((counts < shots + queries).sum())) and len(counts):
        fits = (int(counts.min()) - shots) * data.ways
        remedy = f"--{flag}queries={fits} or less, or " if fits > 0 else ""
        raise DataError(
            f"--order=balanced takes {shots} support rows and {queries} queries of each class of a {split} "
            f"task, and {few:,} of {len(counts):,} classes of tasks have fewer rows, the smallest "
            f"{counts.min():,}; use {remedy}--order=stratified."
        )


def example_inputs(store: Rows, view: View, examples: int) -> Any:
    """Makes inputs of zeros [B, ...], to initialize from."""

    def inputs(store: Rows) -> Any:
        rows = jnp.zeros(examples, jnp.int32)
        return view(store, jax.random.key(0), Examples(store.take(rows)))

    return jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(inputs, store)
    )


def _scorer(
    plan: PertaskPlan,
    data: TaskData,
    tests: dict[int, splits.Tests],
    tested: Tested,
    parts: networks.Networks,
    maker: Callable[..., Callable[..., Learner]],
    uncertain: bool,
    setup: Setup,
    learner: Learner,
) -> Any:
    """Makes the scorer of the test: `meta -> scores` of the first support size, one per unit."""
    inner, training = plan.common.inner, plan.common.training
    loss, seed = setup.experiment.scoring.loss, plan.common.test.eval_seed
    # An encoder that alone reads inputs reads each row once, not once for every task that has it.
    encoder_of = inner.entry.encoder_of if training.ensemble == 1 else None
    if encoder_of:
        features = maker(encoder=parts.encoder._replace(apply=lambda params, inputs: inputs))
        learner = features(inner.test_steps, inner_adjoint(inner.adjoint), testing=True)

    def score(meta: Any) -> dict[str, Any]:
        found, rows, view = {}, data, parts.view
        if encoder_of:
            test = scores.encoded(data.stores["test"], parts.encoder, encoder_of(meta), view)
            rows, view = data._replace(stores={**data.stores, "test": test}), plain_view
        for size, own in tests.items():
            metrics = reports.metrics_of(plan, data, size, uncertain=uncertain)
            scoring = Scoring(loss, metrics, chunk=plan.common.outer.chunk)
            objective = query_objective(learner, scoring)
            found[size] = scores.scores_of(setup.mesh, seed, rows, own, objective, meta, view=view)
        tested.learner = found
        first = plan.supports[0]
        metrics = reports.metrics_of(plan, data, first, uncertain=uncertain)
        return scores.over_repeats(tests[first], found[first], metrics)

    return score


def _measure(
    plan: PertaskPlan,
    data: TaskData,
    tests: dict[int, splits.Tests],
    tested: Tested,
    meta: Any,
    folder: Any,
) -> dict[str, Any]:
    """Measures the baselines on the test tasks, prints the comparison and keeps the tasks."""
    del meta
    return reports.compare(plan, data, tests, tested.learner, folder)


def announcement(
    plan: PertaskPlan, data: TaskData, tests: dict[int, splits.Tests]
) -> list[tuple[str, str]]:
    """Describes the data and the tasks, a row for each subject."""
    kind = data.kind
    if data.labels:
        kind += f" ({', '.join(data.labels[:5])}{', ...' if data.labels[5:] else ''})"
    sizes = ", ".join(map(str, plan.supports))
    rows = [
        ("data", data.description),
        *[("note", note) for note in data.notes],
        ("targets", kind),
        ("tasks", f"{sizes} support rows, {plan.tasks.order}; all others are queries"),
    ]
    for size, own in tests.items():
        left = f"; {own.left_out:,} with fewer rows are left out" if own.left_out else ""
        asked = [len(queries) for queries in own.queries]
        rows.append(
            (
                f"test at {size}",
                f"{len(own.units):,} tasks x {own.repeats}, {min(asked):,} to {max(asked):,} queries{left}",
            )
        )
    return rows


def only_baselines(settings: PertaskSettings) -> int:
    """Measures the baselines without a learner; returns the exit status."""
    plan, data = read(settings)
    tests = reports.list_tests(plan, data)
    workdir = prepare_workdir(settings, f"{plan.table.dataset}-baselines", data.fingerprint)
    rows = [*announcement(plan, data, tests), ("work directory", str(workdir))]
    print(report.table(rows), flush=True)
    result = {**reports.facts(plan, data, tests), "settings": plan.common.asked}
    result |= reports.compare(plan, data, tests, None, workdir)
    write_json(workdir / "result.json", {**result, "versions": report.versions()})
    return 0


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(PertaskSettings, __doc__, start, prepare=conduct.prepare_process)
