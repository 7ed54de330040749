"""Old keyword arguments of learners: each warns, names the new one, and works."""

import optax
import pytest

import metajax
from helpers.toys import normed_model
from metajax import learners

MODEL, ENCODER = normed_model(4, 3), normed_model(4, None)
LOSS = metajax.cross_entropy
CELL = learners.gru_model(units=4)
OLD = {
    "meta_sgd(rate)": lambda: learners.meta_sgd(MODEL, LOSS, rate=0.1),
    "meta_curvature(rate)": lambda: learners.meta_curvature(MODEL, LOSS, rate=0.1),
    "learned_optimizer(rate)": lambda: learners.learned_optimizer(MODEL, LOSS, rate=0.1),
    "meta_lstm(rate)": lambda: learners.meta_lstm(MODEL, LOSS, rate=0.1),
    "maml_plus_plus(rate)": lambda: learners.maml_plus_plus(MODEL, LOSS, rate=0.1),
    "leo(rate)": lambda: learners.leo(ENCODER, LOSS, ways=3, rate=0.1),
    "baseline(rate)": lambda: learners.baseline(ENCODER, LOSS, ways=3, classes=6, rate=0.1),
    "imaml(strength)": lambda: learners.imaml(MODEL, LOSS, rule=optax.sgd(0.1), strength=1.0),
    "linear_head(strength)": lambda: learners.linear_head(
        ENCODER, learners.ridge, ways=3, strength=1.0
    ),
    "linear_probe(strength)": lambda: learners.linear_probe(
        ENCODER, ways=3, classes=6, strength=1.0
    ),
    "cnp(values)": lambda: learners.cnp(ENCODER, ENCODER, values=2),
    "anp(values)": lambda: learners.anp(ENCODER, ENCODER, ENCODER, values=2),
    "snail(values)": lambda: learners.snail(ENCODER, ways=None, length=7, values=2),
    "in_context(values)": lambda: learners.in_context(ENCODER, ways=None, values=2),
    "recurrent_learner(values)": lambda: learners.recurrent_learner(
        ENCODER, CELL, ways=None, values=2
    ),
    "recurrent_learner(reader)": lambda: learners.recurrent_learner(ENCODER, reader=CELL, ways=3),
}
NEW = {
    "rate": "learning_rate",
    "strength": "regularization",
    "values": "num_outputs",
    "reader": "sequence_model",
}


@pytest.mark.parametrize("call", OLD)
def test_an_old_keyword_warns_and_works(call):
    name, old = call.removesuffix(")").split("(")
    warning = rf"{name}\({old}=\.\.\.\) is now {name}\({NEW[old]}=\.\.\.\)"
    with pytest.warns(DeprecationWarning, match=warning):
        assert isinstance(OLD[call](), metajax.Learner)


@pytest.mark.parametrize("room", ["gradient.gradient_learner", "metric.protonet"])
def test_an_old_module_gives_its_functions_and_warns(room):
    module, name = room.split(".")
    with pytest.warns(DeprecationWarning, match=f"{name} is now metajax.learners.{name}"):
        found = getattr(getattr(learners, module), name)
    assert found is getattr(learners, name)


def test_old_and_new_keyword_together_are_refused():
    with pytest.raises(TypeError), pytest.warns(DeprecationWarning):
        learners.recurrent_learner(ENCODER, CELL, ways=3, reader=CELL)
