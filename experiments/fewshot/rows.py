"""Few-shot classification of texts, molecules and rows of tables: what `driver` makes of images."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.rows import Rows
from metajax.inner.adjoints import Adjoint
from metajax.learners.wrappers.ensembles import mean_probabilities
from metajax.learners.wrappers.one_query import one_query_at_a_time
from metajax.losses import accuracy, cross_entropy
from metajax.metrics import calibration_error
from metajax.models import in_precision
from metajax.objectives.query import query_objective
from metajax.objectives.scoring import Scoring
from metajax.trees import size
from metajax.types import Episode, Key, Learner, Model, Objective, Tree
from metajax.zoo import models
from metajax.zoo.models import MODELS

from ..flags.learner import INNER
from ..flags.settings import UsageError, given
from ..flags.training import check_together
from ..runtime.progress import Score
from ..setup.experiment import Experiment
from ..setup.learners import inner_adjoint, learner_maker
from ..setup.tables import row_network_in_words, row_networks
from .bundles import bundle_maker
from .calibrate import Tasks
from .checks import check_fewshot
from .episodes import (
    in_words,
    is_transductive,
    learner_sizes,
    training_sizes,
)
from .objectives import objectives_of
from .options import (
    FROZEN_PICTURES,
    FewshotPlan,
    FewshotSettings,
    resolve_fewshot,
)
from .picture_data import load_encoded
from .row_data import RowData, load
from .row_samplers import check_sizes, inputs_of, make_samplers, trained_on
from .row_scores import of_own, unknown_fields, with_untrained
from .sizes import preferred_sizes

# Options of learners where a command gives none of them: features of texts have length one, so that squared
# distances lie between 0 and 4, which as logits leave all classes about as likely.
_USUAL = {"protonet": {"distance": "cosine", "scale": 10.0, "learn_scale": True}}
# A head on them has as much smaller gradients: with the step of other networks n-grams learn next to nothing.
_INNER_LR = 5.0


def build(settings: FewshotSettings) -> Experiment:
    """Checks the settings and reads the table.

    Args:
      settings: Settings.

    Returns:
      The experiment.

    Raises:
      DataError: If rows are missing, broken or too few.
      UsageError: If options do not go together.
    """
    settings = _settled(settings)
    check_together(settings)
    check_fewshot(settings)
    plan = resolve_fewshot(settings)
    training_sizes(plan.episodes)
    encoded = settings.encodes
    data = load_encoded(plan, min_classes=settings.min_classes) if encoded else load(plan)
    settings = preferred_sizes(settings, trained_on(data))
    plan = plan._replace(episodes=resolve_fewshot(settings).episodes)
    samplers = make_samplers(plan, data)
    check_sizes(samplers, data)
    names = ("train_ways", "train_shots", "model", "inner_lr", *_USUAL.get(settings.learner, ()))
    experiment = make_experiment(plan, samplers, data)
    return experiment._replace(settled={name: getattr(settings, name) for name in names})


def _settled(settings: FewshotSettings) -> FewshotSettings:
    """Fills in the network of the columns, and what suits the learner on rows.

    Raises:
      UsageError: If the network is one of images.
    """
    model = settings.row_model
    if settings.encodes:
        if model not in ("mlp", FROZEN_PICTURES):
            raise UsageError(
                f"--model={model} does not read the vectors of a frozen encoder; leave it out, or use mlp."
            )
        # Photographs of a folder are not made smaller than the encoder reads them.
        if settings.dataset.partition(":")[0] == "folder" and not settings.image_size:
            settings = dataclasses.replace(settings, image_size=settings.encoder_size)
    elif model in MODELS and model != "mlp":
        raise UsageError(
            f"--model={model} reads images, and --dataset={settings.dataset} has none; leave it out, or use "
            "mlp."
        )
    usual = _USUAL.get(settings.learner, {})
    if settings.after_training or any(getattr(settings, n) is not None for n in usual):
        usual = {}
    if model == "ngrams" and _steps_as_usual(settings):
        usual = {**usual, "inner_lr": _INNER_LR}
    return dataclasses.replace(settings, model=model, **usual)


def _steps_as_usual(settings: FewshotSettings) -> bool:
    """Finds out whether neither the command nor the learner states the inner step size."""
    said = "inner_lr" in given(settings) or "inner_lr" in settings.entry.defaults.get("classes", {})
    plain = settings.learner in INNER and settings.inner_optimizer == "sgd"
    return plain and not said and not settings.after_training


class _Networks(NamedTuple):
    """Networks of a run.

    Attributes:
      model: Network with a head.
      encoder: Network without its head.
      comparer: Network of pairs of features, for relation networks.
    """

    model: Model
    encoder: Model
    comparer: Model


def _networks(plan: FewshotPlan, data: RowData) -> _Networks:
    """Builds the networks; raises UsageError if options do not fit."""
    precision, heads = plan.common.training.precision, (plan.episodes.ways, None)

    def mlp(outputs: int | None) -> Model:
        return in_precision(models.build_model("mlp", outputs=outputs), jnp.dtype(precision))

    if plan.network.model == "mlp":
        return _Networks(*map(mlp, heads), mlp(1))
    made = row_networks(plan.network.model, plan.row_options, data.about, heads, precision)
    return _Networks(*made, mlp(1))


def make_experiment(plan: FewshotPlan, samplers: dict[str, Any], data: RowData) -> Experiment:
    """Puts table, model and learner together.

    Args:
      plan: The run.
      samplers: Sampler by split.
      data: The table.

    Returns:
      The experiment.

    Raises:
      UsageError: If the network learns nothing.
    """
    episodes, inner = plan.episodes, plan.common.inner
    networks = _networks(plan, data)
    sizes = learner_sizes(plan, samplers["train"], data.stores["train"])
    quiet = learner_maker(inner, cross_entropy, **networks._asdict(), **sizes)

    def make(steps: int, adjoint: Adjoint, testing: bool = False) -> Learner:
        learner = quiet(steps, adjoint, testing=testing)
        alone = testing and episodes.one_query_at_a_time
        return one_query_at_a_time(learner) if alone else learner

    test_learner = make(inner.test_steps, inner_adjoint(inner.adjoint), testing=True)
    inputs = _example_inputs(samplers["test"].own, data.stores["test"])
    _check_learns(plan, test_learner, inputs)
    plain = {"accuracy": accuracy}
    loss = inner.entry.loss or cross_entropy
    calibration = {} if inner.entry.loss else {"calibration_error": calibration_error()}
    scoring = Scoring(loss, {**plain, **calibration})
    return Experiment(
        name=f"{plan.data.dataset}-{inner.learner}-{episodes.ways}way-{episodes.shots}shot",
        make_learner=make,
        inputs=inputs,
        scoring=scoring,
        score=Score("accuracy", higher_is_better=True),
        samplers=samplers,
        data=data.stores,
        fingerprint=data.fingerprint,
        transductive=is_transductive(plan),
        combine=mean_probabilities,
        announcement=announcement(plan, data, sizes.get("classes")),
        facts={
            "dataset": plan.data.dataset,
            "split": data.description,
            "learner": inner.learner,
            "model": plan.network.model,
            "untrained": data.compared,
            "ways": episodes.ways,
            "shots": episodes.shots,
            "queries": samplers["test"].own.queries,
        },
        pictures=lambda meta, workdir: {},
        measured=_unknown(plan, data, samplers, test_learner, scoring),
        penalty=plan.penalty,
        trained=_trained(plan, networks.encoder, Scoring(loss, plain)),
        scored=_scored(plan, scoring),
        bundle=bundle_maker(
            plan,
            data.form,
            sizes,
            Tasks({split: samplers[split].own for split in ("valid", "test")}, data.stores),
            threshold=data.unknown is not None,
        ),
    )


def _trained(
    plan: FewshotPlan, encoder: Model, scoring: Scoring
) -> Callable[[Learner], Objective] | None:
    """Makes the function from a learner to its objective of training; None is the usual one."""
    if not plan.supervised:
        return objectives_of(plan, scoring, None)[1]
    # No running averages to pull.
    trainee = encoder._replace(apply=lambda params, inputs: (encoder.apply(params, inputs), 0.0))
    classify = plan.common.inner.entry.objective(trainee, scoring)

    def objective(meta: Any, key: Key, episode: Episode) -> Any:
        return classify(meta, key, episode)

    return lambda learner: objective


def _scored(plan: FewshotPlan, scoring: Scoring) -> Callable[[Learner], Objective]:
    """Makes the function from a learner to its objective of validation and test."""
    sequence = objectives_of(plan, scoring, None)[0]
    if sequence:
        return lambda learner: of_own(sequence(learner))
    chunked = dataclasses.replace(scoring, chunk=plan.common.outer.chunk)
    ways = plan.episodes.ways
    return lambda learner: with_untrained(query_objective(learner, chunked), ways)


def _unknown(
    plan: FewshotPlan,
    data: RowData,
    samplers: dict[str, Any],
    learner: Learner,
    scoring: Scoring,
) -> Callable[[Any, Path], dict[str, Any]] | None:
    """Makes the function (meta, folder) -> fields about rows of no class; None without any."""
    if data.unknown is None or plan.episodes.protocol == "sequence":
        return None
    common = plan.common
    measure = functools.partial(
        unknown_fields,
        learner=learner,
        scoring=dataclasses.replace(scoring, chunk=common.outer.chunk),
        samplers=samplers,
        stores=data.stores,
        unknown=data.unknown,
        views=(inputs_of(plan, data), data.flat),
        seed=common.test.eval_seed,
        episodes={"valid": common.training.valid_episodes, "test": common.test.eval_episodes},
        tasks_at_once=common.tasks_at_once or 1,
    )
    return lambda meta, folder: measure(meta)


def _example_inputs(sampler: GroupSampler, store: Rows) -> Tree:
    """Makes inputs of zeros [N K, ...], to initialize from."""
    episode = jax.eval_shape(sampler, store, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), episode.support.inputs)


def _check_learns(plan: FewshotPlan, learner: Learner, inputs: Tree) -> None:
    """Raises UsageError where neither the learner nor its network has parameters."""
    try:
        numbers = size(jax.eval_shape(learner.init, jax.random.key(0), inputs))
    except ValueError as error:
        raise UsageError(
            f"--learner={plan.common.inner.learner} does not work here: {error}"
        ) from error
    if not numbers:
        raise UsageError(
            f"--model={plan.network.model} has nothing to learn with these --model_options; use others, such "
            "as scaled=true or hidden=256 of ngrams."
        )


def announcement(plan: FewshotPlan, data: RowData, classes: int | None) -> list[tuple[str, str]]:
    """Describes the run, a row for each subject."""
    counts = {split: np.asarray(store.counts) for split, store in data.stores.items()}
    found = "; ".join(
        f"{split} {len(each)} of {each.min():,} to {each.max():,} {data.noun}"
        for split, each in counts.items()
    )
    words = plan.network.model
    if words != "mlp":
        words = row_network_in_words(words, plan.row_options)
    rows = [
        ("data", data.description),
        ("classes", found),
        (
            "episodes",
            in_words(plan, classes, data.noun) + (", of one domain" if data.within else ""),
        ),
        ("learner", plan.common.inner.learner),
        ("model", words),
        ("untrained", f"class means and cosine of {data.compared}"),
    ]
    if data.unknown is not None:
        rows.append(("of no class", f"{int(data.unknown.counts.sum()):,} rows"))
    return rows
