"""Bundles of trained runs, which learn and answer without the run's data and without these drivers."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from metajax.data import sources
from metajax.deploy import Bundle, ImageForm, LearnerSpec, RowForm

from ..reports.report import versions
from .options import FewshotPlan

_FACTS = (
    *("dataset", "split", "test_accuracy", "test_accuracy_ci95", "episodes", "episodes_sha256"),
    *("transductive", "ways", "shots", "queries", "seed", "steps", "best_step"),
)


def bundle_maker(
    plan: FewshotPlan, form: ImageForm | RowForm, sizes: Mapping[str, int]
) -> Callable[[Any, Mapping[str, Any]], Bundle]:
    """Makes the function that puts a trained learner into a bundle.

    Args:
      plan: The run.
      form: Form of the pictures or of the rows.
      sizes: Sizes that the learner was made for, as `learner_sizes` returns them.

    Returns:
      Function (meta, fields of result.json) -> bundle.
    """
    inner, network = plan.common.inner, plan.network
    own = network.network_options if isinstance(form, ImageForm) else plan.row_options.network
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
        return Bundle(spec, form, meta, training={**facts, "versions": versions()})

    return make


def image_form(images: sources.Splits, statistics: tuple[np.ndarray, np.ndarray]) -> ImageForm:
    """Describes the pictures of a run.

    Args:
      images: Images by split.
      statistics: Mean and standard deviation [C] of the training pixels.
    """
    mean, scale = (tuple(map(float, values)) for values in statistics)
    return ImageForm(images.train.shape, mean, scale, *images.form)
