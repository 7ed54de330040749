"""The online protocol: each example is predicted before its label is read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, normed_model
from metajax.learners.sequence.memory import mann_model
from metajax.learners.sequence.recurrent import gru_model, recurrent_learner
from metajax.objectives.sequence import sequence_objective
from metajax.types import Learner, Model

KEY = jax.random.key(0)
IDENTITY = Model(lambda key, inputs: (), lambda params, inputs: inputs)


def remembering(ways):
    """Makes a learner that predicts every class whose label it has read."""
    return Learner(
        init=lambda key, inputs: jnp.zeros(()),
        start=lambda meta, key, like: jnp.zeros(ways),
        adapt=lambda meta, fast, key, batch: fast + jax.nn.one_hot(batch.targets[0], ways),
        predict=lambda meta, fast, inputs: (fast > 0).astype(float)[None],
    )


def test_the_first_of_a_class_is_predicted_before_its_label_is_read():
    def metric(outputs, batch):
        # One if the label was read before: zero at the first presentation, one at all others.
        return outputs[0, batch.targets[0]]

    objective = sequence_objective(
        remembering(3), metajax.Scoring(metajax.cross_entropy, {"known": metric}), presentations=4
    )
    episode = classification_episode(KEY, shots=4)
    _, metrics = objective(jnp.zeros(()), KEY, episode)
    assert metrics["known_at_1"] == 0 and metrics["known"] == metrics["known_at_2"] == 1
    assert metrics["known_at_4"] == 1 and "known_at_5" not in metrics


def test_the_loss_is_the_mean_over_all_predictions():
    # Zero at the first presentation of each class and one at the three others, in whatever order.
    objective = sequence_objective(
        remembering(3), lambda outputs, batch: outputs[0, batch.targets[0]], presentations=4
    )
    loss, metrics = objective(jnp.zeros(()), KEY, classification_episode(KEY, shots=4))
    assert loss == metrics["loss"] == 0.75


@pytest.mark.parametrize(
    "reader",
    [gru_model(32), mann_model(units=32, slots=16, slot_width=8, heads=2)],
    ids=["gru", "mann"],
)
def test_a_reader_knows_a_class_from_its_second_presentation_on(reader):
    learner = recurrent_learner(IDENTITY, reader, ways=3)

    def sample(data, key):
        del data
        # Three inputs with new labels in every task, so the labels must be read.
        names = jax.random.permutation(key, 3)
        episode = classification_episode(key, shots=4, queries=1, size=3)
        inputs = jax.nn.one_hot(names[episode.support.targets], 3)
        return episode._replace(support=episode.support._replace(inputs=inputs))

    objective = sequence_objective(
        learner,
        metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy}),
        presentations=4,
    )
    meta = learner.init(KEY, jnp.zeros((1, 3)))
    optimizer = optax.adam(0.01)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=16)
    state = metajax.init_state(meta, optimizer, jax.random.key(3))
    _, metrics = jax.jit(metajax.many_steps(step, 400))(state, None)
    at = [float(metrics[f"accuracy_at_{k}"][-50:].mean()) for k in (1, 2, 4)]
    # A first presentation can be guessed among the classes not yet seen: (1/3 + 1/2 + 1) / 3.
    assert at[0] < 0.66 < 0.8 < at[1] and at[2] > 0.85


def test_one_presentation_is_refused():
    with pytest.raises(ValueError, match="presentations is 1"):
        sequence_objective(remembering(3), metajax.cross_entropy, presentations=1)


def test_encoding_all_examples_first_is_encoding_each_in_turn():
    model = normed_model(5, None)
    episode = classification_episode(KEY, shots=3)
    plain, of_features = (
        recurrent_learner(encoder, gru_model(8), ways=3)
        for encoder in (model, Model(model.init, lambda params, features: features))
    )
    meta = plain.init(KEY, episode.support.inputs)
    scoring = metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
    each = sequence_objective(plain, scoring, presentations=3)
    before = sequence_objective(
        of_features,
        scoring,
        presentations=3,
        encode=lambda meta, inputs: model.apply(meta.encoder, inputs),
    )
    found, expected = (
        jax.jit(jax.value_and_grad(lambda meta, one=one: one(meta, KEY, episode)[0]))(meta)
        for one in (before, each)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )
