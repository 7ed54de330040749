"""Every registered learner and every loss: invalid labels are refused, or make the loss NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from helpers.contract import episode_of, make
from helpers.toys import classification_episode
from metajax.learners import states
from metajax.zoo.learners import LEARNERS

KEY = jax.random.key(2)
CLASSES = sorted(name for name, entry in LEARNERS.items() if "classes" in entry.predicts)
PARTS = ("support", "query")


class Case:
    """A learner, a task, and the program of its objective."""

    def __init__(self, name):
        entry = LEARNERS[name]
        self.learner = make(name, examples=12)
        self.episode = episode_of(name, jax.random.key(0))
        self.meta = self.learner.init(jax.random.key(1), self.episode.support.inputs)
        loss, metrics = entry.loss or metajax.cross_entropy, {"accuracy": metajax.accuracy}
        objective = metajax.query_objective(self.learner, metajax.Scoring(loss, metrics))
        self.program = jax.jit(lambda episode: objective(self.meta, KEY, episode))


def padded(episode):
    """Repeats all examples with weight zero."""

    def twice(batch):
        batch = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), batch)
        return batch._replace(weights=jnp.repeat(jnp.array([1.0, 0.0]), len(batch.targets) // 2))

    return metajax.Episode(*map(twice, episode))


def with_label(episode, part, place, label):
    batch = getattr(episode, part)
    return episode._replace(**{part: batch._replace(targets=batch.targets.at[place].set(label))})


@pytest.fixture(scope="module", params=CLASSES)
def case(request):
    return Case(request.param)


def test_known_labels_out_of_range_are_refused(case):
    support = case.episode.support
    shifted = support._replace(targets=support.targets + 7)
    with pytest.raises(
        ValueError, match="labels are from 7 to 9 for 3 ways; use labels from 0 to 2"
    ):
        case.learner.adapt(case.meta, case.learner.start(case.meta, KEY, support), KEY, shifted)


def test_labels_in_a_program_make_the_loss_nan_unless_they_are_padding(case):
    episode = padded(case.episode)
    whole = case.program(episode)
    assert np.isfinite(whole[0])
    for part in PARTS:
        for label in (-1, 3):
            of_padding = case.program(with_label(episode, part, 9, label))
            jax.tree.map(
                lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6),
                of_padding,
                whole,
            )
            loss, metrics = case.program(with_label(episode, part, 1, label))
            assert np.isnan(loss) and np.isnan(metrics["loss"])
            assert np.isnan(metrics["accuracy"]) or part == "support"


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (jnp.zeros((6, 3), jnp.int32), r"targets are int32 of shape \(6, 3\); use integer labels"),
        (jnp.zeros((6, 3)), r"targets are float32 of shape \(6, 3\); use integer labels \[6\]"),
        (
            jnp.zeros(6),
            r"targets are float32 of shape \(6,\); use integer labels \[6\] from 0 to 2",
        ),
        (jnp.zeros(5, jnp.int32), r"targets have shape \(5,\) for 6 examples; use shape \(6,\)"),
    ],
    ids=["multi-label", "probabilities", "values", "too few"],
)
def test_targets_that_are_not_labels_are_refused(case, targets, message):
    support = case.episode.support._replace(targets=targets)
    start = case.learner.start(case.meta, KEY, case.episode.support)
    with pytest.raises(ValueError, match=message):
        case.learner.adapt(case.meta, start, KEY, support)
    # Also in a traced program, where only shapes are known.
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(case.learner.adapt, case.meta, start, KEY, support)


@pytest.mark.parametrize("name", [n for n in LEARNERS if LEARNERS[n].predicts == ("values",)])
def test_labels_given_to_a_regression_learner_are_refused(name):
    learner = make(name)
    support = classification_episode(KEY).support
    meta = learner.init(KEY, support.inputs)
    start = learner.start(meta, KEY, support._replace(targets=support.targets[:, None]))
    with pytest.raises(ValueError, match=r"targets are of shape \(6,\), of 6 examples; use values"):
        learner.adapt(meta, start, KEY, support)


@pytest.mark.parametrize(
    "loss", [metajax.cross_entropy, metajax.learners.relation_loss, metajax.accuracy]
)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8, jnp.uint8])
def test_a_loss_of_any_label_out_of_range_is_nan_in_a_program(loss, dtype):
    outputs, program = jax.random.normal(KEY, (2, 3)), jax.jit(jax.value_and_grad(loss))
    for labels, wrong in (([0, 2], False), ([0, 3], True), ([255, 1], True)):
        batch = metajax.Batch(None, jnp.array(labels).astype(dtype))
        value, slopes = program(outputs, batch)
        assert np.isnan(value) == wrong
        if wrong:
            assert np.isnan(slopes).all() or loss is metajax.accuracy, "inner steps read no value"
            with pytest.raises(ValueError, match="for 3 ways; use labels from 0 to 2"):
                loss(outputs, batch)
    # More classes than the dtype of labels can represent.
    many = metajax.Batch(None, jnp.array([0, 127]).astype(dtype))
    logits = jax.random.normal(KEY, (2, 300))
    wide = many._replace(targets=many.targets.astype(jnp.int32))
    np.testing.assert_array_equal(program(logits, many)[0], program(logits, wide)[0])


def test_classes_beyond_the_type_of_labels_have_no_examples():
    batch = metajax.Batch(jnp.ones((3, 1)), jnp.array([0, 5, 5], jnp.int8))
    zeros = states.ClassSums(jnp.zeros((300, 1)), jnp.zeros(300))
    sums = states.add_to_sums(zeros, jnp.ones((3, 1)), batch)
    np.testing.assert_array_equal(np.flatnonzero(sums.counts), [0, 5])
    np.testing.assert_array_equal(sums.counts[jnp.array([0, 5])], [1, 2])


def test_the_classifier_of_all_classes_refuses_them_too():
    episode = classification_episode(KEY)
    learner = make("baseline")
    meta = learner.init(KEY, episode.support.inputs)

    def apply(params, inputs):
        return jnp.tanh(inputs @ params["body"] * params["norm"]["scale"]), jnp.zeros(())

    objective = metajax.learners.classification_objective(
        metajax.types.Model(None, apply), metajax.cross_entropy
    )
    bad = with_label(episode, "query", 0, 6)
    with pytest.raises(
        ValueError, match="labels are from 0 to 6 for 6 ways; use labels from 0 to 5"
    ):
        objective(meta, KEY, bad)
    grads, metrics = jax.jit(jax.grad(objective, has_aux=True))(meta, KEY, bad)
    assert np.isnan(metrics["loss"]) and np.isnan(grads.classifier.rows).all()
