"""Transformer and SNAIL that read one vector at a time equal those that read a whole sequence at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import learners, nn
from metajax.learners.sequence import convolutions, transformer

LENGTH, FEATURES = 6, 3
READERS = {
    "transformer": functools.partial(learners.transformer_model, width=8, heads=2),
    "snail": functools.partial(learners.snail_model, width=4),
}


def read(model, params, vectors):
    return jax.lax.scan(lambda s, v: model.step(params, s, v), model.start(params), vectors)[1]


def whole(name, params, vectors):
    """Reads all vectors at once, with masks in place of a memory."""
    places = jnp.arange(len(vectors))
    if name == "snail":
        plan = convolutions.layers_of(LENGTH, 4)
        for layer, own in zip(plan, params, strict=True):
            vectors = convolutions.apply_layer(layer, own, vectors, vectors, places)
        return vectors
    tokens = vectors @ params.token + params.places[: len(vectors)]
    for index in range(2):
        block = jax.tree.map(lambda leaf, index=index: leaf[index], params.blocks)
        seen = places <= places[:, None]
        answer = nn.attend(*transformer.project(block, tokens), heads=2, seen=seen)
        tokens = transformer.feed_forward(block, tokens + answer @ block.out)
    return transformer.layer_norm(tokens, params.norm)


@pytest.mark.parametrize("name", READERS)
def test_step_by_step_equals_the_whole_and_outputs_after_the_length_are_nan(name, float64):
    model = READERS[name](LENGTH)
    params = model.init(jax.random.key(0), FEATURES, jnp.float64)
    vectors = jax.random.normal(jax.random.key(1), (LENGTH + 1, FEATURES))
    found = jax.jit(functools.partial(read, model))(params, vectors)
    expected = whole(name, params, vectors[:LENGTH])
    np.testing.assert_allclose(found[:LENGTH], expected, atol=1e-12)
    assert np.isnan(found[LENGTH]).all()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (learners.transformer_model, {"length": 0}, "length is 0; use 1 or more"),
        (learners.transformer_model, {"length": 4, "width": 6}, "4 heads do not divide"),
        (learners.snail_model, {"length": 1}, "length is 1; use"),
        (learners.snail_model, {"length": 4, "width": 3}, "width is 3; use 4 or more"),
    ],
)
def test_impossible_sizes_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)
