"""Bundles of trained runs, which learn and answer without the run's data and without these drivers."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from metajax.data import sources
from metajax.deploy import Bundle, ImageForm, LearnerSpec, RowForm, make_learner_of
from metajax.zoo.models import MODELS

from ..reports.report import versions
from .calibrate import Calibration, Tasks, calibrate, check_unknown
from .options import FewshotPlan

_FACTS = (
    *("dataset", "split", "test_accuracy", "ci95", "episodes", "episodes_sha256"),
    *("transductive", "ways", "shots", "queries", "seed", "steps", "best_step"),
)


def bundle_maker(
    plan: FewshotPlan,
    form: ImageForm | RowForm,
    sizes: Mapping[str, int],
    tasks: Tasks,
    *,
    threshold: bool = False,
) -> Callable[[Any, Mapping[str, Any]], Bundle]:
    """Makes the function that puts a trained learner into a bundle.

    Args:
      plan: The run.
      form: Form of the pictures or of the rows.
      sizes: Sizes that the learner was made for, as `learner_sizes` returns them.
      tasks: Tasks of validation and test, to calibrate on.
      threshold: Whether the bundle shall have a threshold for "unknown" even without `--unknown_ways`.

    Returns:
      Function (meta, fields of result.json) -> bundle, whose training facts have the calibration.

    Raises:
      DataError: If there are too few classes for `--unknown_ways`.
    """
    check_unknown(plan, tasks)
    inner, network = plan.common.inner, plan.network
    of_pixels = network.model in MODELS
    own = network.network_options if of_pixels else plan.row_options.network
    spec = LearnerSpec(
        learner=inner.learner,
        options=dict(inner.own),
        network=network.model,
        network_options={name: v for name, v in own.items() if v is not None},
        ways=plan.episodes.ways,
        examples=sizes["examples"],
        classes=sizes.get("classes"),
        steps=inner.test_steps,
        rows=inner.steps,
        rule=inner.optimizer,
        learning_rate=inner.learning_rate,
        differentiated=inner.estimator == "backprop",
        precision=plan.common.training.precision,
    )

    def make(meta: Any, result: Mapping[str, Any]) -> Bundle:
        facts = {name: result[name] for name in _FACTS if name in result}
        found = Calibration()
        if plan.episodes.calibration_episodes and plan.episodes.protocol == "episodes":
            learner = make_learner_of(spec, alone=True, about=form.about)
            found = calibrate(plan, tasks, learner, meta, threshold=threshold)
        measured = {"calibration": dict(found.facts)} if found.facts else {}
        measured |= {"reliability": dict(found.reliability)} if found.reliability else {}
        training = {**facts, **measured, "versions": versions()}
        return Bundle(spec, form, meta, found.temperature, found.threshold, training)

    return make


def image_form(images: sources.Splits, statistics: tuple[np.ndarray, np.ndarray]) -> ImageForm:
    """Describes the pictures of a run.

    Args:
      images: Images by split.
      statistics: Mean and standard deviation [C] of the training pixels.
    """
    mean, scale = (tuple(map(float, values)) for values in statistics)
    return ImageForm(images.train.shape, mean, scale, *images.form)
