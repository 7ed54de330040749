"""Metrics: a measurement of one task, and the combination of all tasks' measurements into one number.

A plain function `(outputs, batch) -> scalar`, such as `losses.accuracy`, is a metric that is averaged over
tasks. A `Metric` may combine the values in another way: tasks on which AUROC is undefined are left out and
counted, calibration error is a function of the whole test set, `mean_over_repeats` averages per assay first,
and `pooled` measures the examples of all tasks as if they were one task.

Weights are sample weights: an example of weight 2 counts as two examples, and an example of weight 0 is
padding, whatever its outputs and targets. An example with a NaN among its outputs counts as wrong, with the
worst score, or makes the value NaN; it is never right.
"""

from metajax.metrics.errors import calibration_error, mae, rmse
from metajax.metrics.ranking import auroc, average_precision, delta_auprc, ndcg
from metajax.metrics.reach import (
    Metric,
    Summary,
    as_metric,
    confidence_interval,
    mean_over_repeats,
    mean_over_tasks,
    mean_where_defined,
    pooled,
)

__all__ = [
    "Metric",
    "Summary",
    "as_metric",
    "auroc",
    "average_precision",
    "calibration_error",
    "confidence_interval",
    "delta_auprc",
    "mae",
    "mean_over_repeats",
    "mean_over_tasks",
    "mean_where_defined",
    "ndcg",
    "pooled",
    "rmse",
]
