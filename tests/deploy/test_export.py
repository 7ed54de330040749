"""Exported programs answer as the classifier does, at sizes other than any that was traced."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import deploy
from metajax.errors import DataError
from metajax.zoo import LEARNERS

SHAPE = (16, 16, 1)
# The learner of tables reads cells, and no pictures.
TABLES = {"in_context_tables"}
CLASSIFY = [n for n, entry in LEARNERS.items() if "classes" in entry.predicts and n not in TABLES]
# Learners whose program depends on the number of examples: they draw an order or minibatches of them.
FIXED = {"baseline", "baseline_plus_plus", "mann", "metanet", "recurrent", "snail"}
QUICK = ("protonet", "maml", "r2d2", "simpleshot")


def made(learner, *, network="mlp", norm=None):
    filters = 16 if network == "resnet12" else 8
    options = {} if network == "mlp" else {"filters": filters, "norm": norm}
    classes = 7 if LEARNERS[learner].objective else None
    spec = deploy.LearnerSpec(
        learner, network, 3, 7, network_options=options, classes=classes, steps=2, rows=2
    )
    meta = jax.jit(deploy.make_learner_of(spec).init)(jax.random.key(0), jnp.zeros((2, *SHAPE)))
    return deploy.Bundle(spec, deploy.ImageForm(SHAPE, (0.5,), (0.25,)), meta, temperature=2.0)


def agrees(bundle, tolerance=1e-5):
    program = jax.export.deserialize(deploy.export_program(bundle, platforms=("cpu",)).serialize())
    random = np.random.default_rng(0)
    support, queries = (
        random.integers(0, 256, (count, *SHAPE)).astype(np.uint8) for count in (7, 4)
    )
    labels = np.array([0, 0, 0, 1, 1, 2, 2], np.int32)
    found = program.call(support, labels, queries)
    examples = {str(i): support[labels == i] for i in range(3)}
    expected = deploy.Classifier(bundle, examples).answer(queries)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    # A class without an example gets nothing.
    two = program.call(support[:5], labels[:5], queries[:1])
    assert two[0, 2] == 0 and abs(two.sum() - 1) < 1e-5


@pytest.mark.parametrize("learner", QUICK)
def test_a_program_answers_as_the_classifier_does(learner):
    agrees(made(learner))


@pytest.mark.parametrize("learner", [n for n in CLASSIFY if n not in (*FIXED, *QUICK, "relation")])
def test_a_program_of_every_other_learner_answers_so_too(learner):
    network, norm = ("conv4", "group") if learner == "leo" else ("mlp", None)
    agrees(made(learner, network=network, norm=norm))


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("network", ["conv4_stride", "conv4", "resnet12", "vit"])
def test_every_network_leaves_in_a_program(network, norm):
    if (network, norm) != ("vit", "batch"):
        agrees(made("protonet", network=network, norm=norm))


@pytest.mark.parametrize("learner", sorted(FIXED))
def test_learners_that_draw_an_order_are_refused(learner):
    with pytest.raises(DataError, match="cannot be exported for all"):
        deploy.export_program(made(learner), platforms=("cpu",))


def test_a_number_of_classes_that_a_head_does_not_have_is_refused():
    with pytest.raises(DataError, match="ways is 5; for this maml use 3"):
        deploy.export_program(made("maml"), ways=5)
    with pytest.raises(DataError, match="ways is 1; for this protonet use 2 or more"):
        deploy.export_program(made("protonet"), ways=1)
