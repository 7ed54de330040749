"""Metrics against scikit-learn; weights against repeated examples; tasks together against one at a time."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import metrics
from metajax.losses import accuracy
from metajax.metrics import Metric, Summary
from metajax.types import Batch

TASKS, EXAMPLES = 4, 24
MEASURES = {
    "auroc": metrics.auroc(),
    "auroc of three": metrics.auroc(),
    "average precision": metrics.average_precision(),
    "average precision of three": metrics.average_precision(),
    "delta auprc": metrics.delta_auprc(),
    "ndcg, linear": metrics.ndcg(5, gain="linear"),
    "ndcg, exponential": metrics.ndcg(40, gain="exponential"),
    "mae": metrics.mae(),
    "rmse": metrics.rmse(),
    "calibration error": metrics.calibration_error(4),
    "calibration error of three": metrics.calibration_error(),
    "pooled": metrics.pooled(metrics.auroc()),
}


def tasks_of(name, *, dtype=np.float32):
    """Draws outputs and targets of some tasks, [T, B] or [T, B, D], with ties, and weights 0, 1 and 2."""
    rng = np.random.default_rng(0)
    ways = 3 if "three" in name else 2
    size = {3: (3,), 2: (2,)}[ways] if "calibration" in name or ways == 3 else ()
    # Quarters are exact in every type, and some of them are equal.
    outputs = rng.integers(-8, 9, (TASKS, EXAMPLES, *size)) / 4
    targets = rng.integers(0, ways, (TASKS, EXAMPLES))
    if "ndcg" in name:
        targets = rng.integers(0, 4, (TASKS, EXAMPLES)).astype(np.float32)
    if name in ("mae", "rmse"):
        outputs, targets = rng.normal(size=(2, TASKS, EXAMPLES, 2))
    weights = rng.permuted(np.repeat([[0, 1, 2]], TASKS, axis=0).repeat(EXAMPLES // 3, 1), axis=1)
    return outputs.astype(dtype), targets, weights.astype(dtype)


def repeated(outputs, targets, weights):
    """Repeats the examples of each task by their integer weights, whose sum is the number of examples."""
    return (
        np.stack(
            [np.repeat(*pair, axis=0) for pair in zip(array, weights.astype(int), strict=True)]
        )
        for array in (outputs, targets)
    )


@functools.cache
def compiled(name):
    """Compiles a metric over tasks."""
    return jax.jit(jax.vmap(lambda *task: MEASURES[name](task[0], Batch(None, *task[1:]))))


def close(found, expected, tolerance=1e-5):
    jax.tree.map(
        lambda *both: np.testing.assert_allclose(*both, rtol=tolerance, atol=tolerance),
        found,
        expected,
    )


def probabilities(logits):
    """Computes probabilities in float64: scikit-learn checks that they sum to one."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim == 1:
        return 1 / (1 + np.exp(-logits))
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def by_scikit_learn(name, outputs, targets, weights):
    sklearn = pytest.importorskip("sklearn.metrics")
    if "auroc" in name:
        options = {"multi_class": "ovr"} if "three" in name else {}
        return sklearn.roc_auc_score(
            targets, probabilities(outputs), sample_weight=weights, **options
        )
    if "average" in name:
        return sklearn.average_precision_score(
            targets, probabilities(outputs), sample_weight=weights
        )
    if name == "delta auprc":
        found = sklearn.average_precision_score(targets, outputs, sample_weight=weights)
        return found - np.average(targets, weights=weights)
    if name == "mae":
        return sklearn.mean_absolute_error(targets, outputs, sample_weight=weights)
    if name == "rmse":
        return np.sqrt(sklearn.mean_squared_error(targets, outputs, sample_weight=weights))
    times = weights.astype(int)  # it has no sample weights
    outputs, targets = np.repeat(outputs, times), np.repeat(targets, times)
    gains, k = (targets, 5) if "linear" in name else (2.0**targets - 1, 40)
    return sklearn.ndcg_score(gains[None], outputs[None], k=k)


@pytest.mark.parametrize("name", [n for n in MEASURES if n != "pooled" and "calibration" not in n])
def test_values_equal_scikit_learn(name):
    drawn = tasks_of(name)
    expected = [by_scikit_learn(name, *task) for task in zip(*drawn, strict=True)]
    close(compiled(name)(*drawn), expected, 3e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_padding_counts_nothing_and_a_weight_of_two_is_two_examples(name):
    outputs, targets, weights = tasks_of(name)
    # Padding holds values that would raise an error, or make the result NaN, if they had any weight.
    padding = (weights == 0).reshape(*weights.shape, *[1] * (outputs.ndim - 2))
    labels = targets if targets.ndim > 2 else np.where(weights == 0, 200, targets)
    found = compiled(name)(np.where(padding, np.nan, outputs), labels, weights)
    expected = compiled(name)(*repeated(outputs, targets, weights), np.ones_like(weights))
    if name == "pooled":
        found, expected = (MEASURES[name].combine(of) for of in (found, expected))
    close(found, expected)


@pytest.mark.parametrize("name", MEASURES)
def test_tasks_are_measured_each_by_itself_and_as_eagerly(name):
    drawn = tasks_of(name)
    found = compiled(name)(*drawn)
    outputs, targets, weights = (jnp.asarray(array[1]) for array in drawn)
    close(
        jax.tree.map(lambda leaf: leaf[1], found),
        MEASURES[name](outputs, Batch(None, targets, weights)),
    )


@pytest.mark.parametrize("name", MEASURES)
def test_low_precision_and_double_precision(name, float64):
    # Quarters and their order are the same in bfloat16, and sums are exact in float64.
    drawn = tasks_of(name, dtype=np.float64)
    if name in ("mae", "rmse"):
        drawn = [np.round(4 * array) / 4 for array in drawn]
    exact = compiled(name)(*drawn)
    outputs = jnp.asarray(drawn[0], jnp.bfloat16)
    rounded = compiled(name)(outputs, *drawn[1:])
    if name == "pooled":
        exact, rounded = (MEASURES[name].combine(of) for of in (exact, rounded))
    elif "calibration" not in name:
        close(exact, [by_scikit_learn(name, *task) for task in zip(*drawn, strict=True)], 1e-12)
    close(rounded, exact, 1e-5)


def test_pooled_is_the_measure_of_all_examples():
    sklearn = pytest.importorskip("sklearn.metrics")
    outputs, targets, weights = (array.reshape(-1) for array in tasks_of("pooled"))
    summary = MEASURES["pooled"].combine(compiled("pooled")(*tasks_of("pooled")))
    expected = sklearn.roc_auc_score(targets, outputs, sample_weight=weights)
    np.testing.assert_allclose(summary.value, expected, rtol=1e-12)
    assert summary.ci95 is None and summary.left_out is None


def test_pooled_counts_in_float64():
    # Sums of 2^24 and more, which float32 cannot count one by one.
    share = metrics.pooled(accuracy)
    ones = np.ones((2, 2), np.float32)
    values = (
        np.array([[[1.0, 0.0], [0.0, 1.0]]] * 2, np.float32),
        Batch(None, np.zeros((2, 2), int), ones),
    )
    many = values[1]._replace(weights=np.array([[2.0**24, 1.0], [1.0, 1.0]], np.float32))
    assert share.combine(values).value == 0.5
    np.testing.assert_allclose(
        1 - share.combine((values[0], many)).value, 2 / (2**24 + 3), rtol=1e-7
    )


@pytest.mark.parametrize("ways", [2, 3])
def test_calibration_error_is_of_the_whole_test_set(ways):
    name = "calibration error of three" if ways == 3 else "calibration error"
    outputs, targets, weights = tasks_of(name)
    bins = 15 if ways == 3 else 4
    found = MEASURES[name].combine(compiled(name)(outputs, targets, weights))
    shares = probabilities(outputs).reshape(-1, ways)
    confidence, hits = shares.max(axis=1), shares.argmax(axis=1) == targets.reshape(-1)
    edges, expected, weights = np.linspace(0, 1, bins + 1), 0.0, weights.reshape(-1)
    for low, high in itertools.pairwise(edges):
        own = weights * ((confidence > low) & (confidence <= high))
        expected += abs(np.sum(own * hits) - np.sum(own * confidence))
    np.testing.assert_allclose(found.value, expected / np.sum(weights), rtol=1e-5)
    assert found.ci95 is None


def test_one_column_is_the_logit_of_class_one():
    logits, batch = jnp.array([0.3, -0.2, 0.9]), Batch(None, jnp.array([1, 0, 0]))
    both = jnp.stack([jnp.full(3, 5.0), logits + 5], axis=1)
    for measure in (metrics.auroc(), metrics.calibration_error()):
        for outputs in (logits[:, None], both):
            close(measure(outputs, batch), measure(logits, batch))


def test_confident_predictions_are_ranked():
    # Both probabilities are one in float32, and the second prediction is more confident.
    logits = jnp.array([[30.0, 0, 0], [40.0, 0, 0], [0, 50.0, 0], [0, 0, 50.0]])
    assert metrics.auroc()(logits, Batch(None, jnp.array([1, 0, 1, 2]))) == 1


def test_nan_is_never_right():
    logits, labels = jnp.array([jnp.nan, 1.0, 0.0, jnp.nan]), jnp.array([1, 1, 0, 0])
    batch = Batch(None, labels)
    # One of the four pairs has no NaN, and it is in order.
    assert metrics.auroc()(logits, batch) == 0.25
    # The positive with a score ranks after the negative whose score is NaN.
    assert metrics.average_precision()(logits, batch) == 0.25
    # The NaN scores take the first two places, and the only gain comes third.
    expected = (1 / np.log2(4)) / (1 + 1 / np.log2(3))
    np.testing.assert_allclose(metrics.ndcg(4, gain="linear")(logits, batch), expected, rtol=1e-6)
    measure = metrics.calibration_error()
    whole = measure.combine(jax.tree.map(lambda leaf: leaf[None], measure(logits, batch)))
    right = 1 / (
        1 + np.exp(-1)
    )  # two wrong with confidence 1; one right; one undecided, which argmax assigns to class 0
    np.testing.assert_allclose(whole.value, (2 + 1 - right + 1 / 2) / 4, rtol=1e-6)
    assert np.isnan(metrics.mae()(logits, Batch(None, logits)))


def test_tasks_without_a_class_are_left_out_and_counted():
    outputs, targets, _ = tasks_of("auroc")
    targets[1], targets[2] = 0, 1
    for measure, missing in ((metrics.auroc(), [1, 2]), (metrics.average_precision(), [1])):
        values = jax.vmap(measure)(outputs, Batch(None, targets))
        assert np.isnan(values).nonzero()[0].tolist() == missing
        summary, kept = measure.combine(values), np.delete(values, missing)
        mean, ci95 = metrics.confidence_interval(kept)
        assert summary == Summary(mean, ci95, len(missing))
    nothing = metrics.auroc().combine(np.full(3, np.nan))
    assert np.isnan(nothing.value) and nothing.left_out == 3
    irrelevant = Batch(None, jnp.zeros(3))
    assert np.isnan(metrics.ndcg(2, gain="linear")(jnp.arange(3.0), irrelevant))


def test_a_mean_over_tasks_leaves_none_out():
    assert np.isnan(metrics.mae().combine(np.array([0.5, np.nan])).value)
    values = np.array([0.0, 1.0, 1.0, 0.0], np.float32)
    for metric in (accuracy, metrics.rmse()):
        found = metrics.as_metric(metric).combine(values)
        assert found == Summary(*metrics.confidence_interval(values))


def test_repeats_are_averaged_before_assays():
    values = np.array([0.2, 0.4, 0.9, np.nan, np.nan, np.nan])
    found = metrics.mean_over_repeats(2)(values)
    mean, ci95 = metrics.confidence_interval(np.array([0.3, 0.9]))
    assert found == pytest.approx(Summary(mean, ci95, 3))
    with pytest.raises(ValueError, match="6 tasks do not divide into assays of 4 repeats"):
        metrics.mean_over_repeats(4)(values)


@pytest.mark.parametrize(
    "measure", [metrics.auroc(), metrics.average_precision(), metrics.calibration_error()]
)
def test_labels_out_of_range_are_refused_or_nan(measure):
    logits, labels = jnp.zeros((3, 2)), jnp.array([0, 1, 2])
    with pytest.raises(
        ValueError, match="labels are from 0 to 2 for 2 ways; use labels from 0 to 1"
    ):
        measure(logits, Batch(None, labels))
    values = jax.jit(lambda labels: measure(logits, Batch(None, labels)))(labels)
    assert np.isnan(
        measure.combine(jax.tree.map(lambda leaf: np.asarray(leaf)[None], values)).value
    )
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 2, 1\); use logits"):
        measure(logits[..., None], Batch(None, labels))


def test_wrong_options_and_shapes_are_refused():
    with pytest.raises(ValueError, match="gain is 'quadratic'; use 'linear' or 'exponential'"):
        metrics.ndcg(5, gain="quadratic")
    with pytest.raises(ValueError, match="k is 0; use 1 or more"):
        metrics.ndcg(0, gain="linear")
    with pytest.raises(ValueError, match="bins is 0; use 1 or more"):
        metrics.calibration_error(0)
    with pytest.raises(AssertionError):
        metrics.rmse()(jnp.ones((3, 1)), Batch(None, jnp.ones(3)))
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 2\); use scores"):
        metrics.ndcg(1, gain="linear")(jnp.ones((3, 2)), Batch(None, jnp.ones((3, 2))))
    negative = metrics.ndcg(1, gain="linear")(jnp.ones(2), Batch(None, jnp.array([1.0, -1.0])))
    assert np.isnan(negative)


def test_a_metric_is_a_function_of_outputs_and_batch():
    largest = Metric(lambda outputs, batch: jnp.max(outputs))
    assert largest(jnp.array([1.0, 3.0]), Batch(None, None)) == 3.0
