"""Every registered learner with float64, bfloat16 and integer inputs, in training and prediction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.contract import OF_EXAMPLES, episode_of, make
from metajax import trees
from metajax.learners.wrappers.ensembles import ensemble, model_soup, select_member
from metajax.types import Model
from metajax.zoo.learners import LEARNERS

LARGEST = 7
# Few layers and slots, because compilation takes most of the time.
SMALL = {
    "imaml": {"solver_steps": 2},
    "in_context": {"layers": 1, "width": 8, "heads": 2},
    "mann": {"slots": 4, "heads": 1, "slot_width": 4, "units": 6},
    "snail": {"width": 4},
}
KEY = jax.random.key(2)


@pytest.fixture(params=OF_EXAMPLES)
def name(request):
    return request.param


def in_type(dtype, *, parameters=jnp.float32):
    """Makes a model compute in one dtype with parameters of another, for inputs of any dtype."""

    def wrap(model: Model) -> Model:
        def init(key, inputs):
            params = model.init(key, jax.ShapeDtypeStruct(inputs.shape, jnp.float32))
            return jax.tree.map(lambda leaf: leaf.astype(parameters), params)

        def apply(params, inputs):
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            return model.apply(params, inputs.astype(dtype))

        return Model(init, apply)

    return wrap


def promoting(model: Model) -> Model:
    """Makes a model with float32 parameters compute in the dtype that parameters and inputs promote to."""
    return Model(in_type(jnp.float32)(model).init, model.apply)


def embedding(model: Model) -> Model:
    """Makes a model read integers as tokens, by the mean embedding of each example, in bfloat16."""
    model = in_type(jnp.bfloat16)(model)

    def init(key, inputs):
        params = {"net": model.init(key, inputs)}
        if jnp.issubdtype(inputs.dtype, jnp.integer):
            params["table"] = jax.random.normal(key, (LARGEST, inputs.shape[1]), jnp.float32)
        return params

    def apply(params, inputs):
        if "table" in params:
            inputs = jnp.mean(params["table"][inputs], axis=1)
        return model.apply(params["net"], inputs)

    return Model(init, apply)


def setting(name, dtype, wrap):
    """Makes a learner of wrapped toys, an episode of small whole numbers of a dtype, and the objective."""
    options = {} if "finetune_steps" not in LEARNERS[name].options else {"finetune_steps": 1}
    learner = make(name, steps=1, examples=3, wrap=wrap, options=SMALL.get(name, {}) | options)
    episode = episode_of(name, jax.random.key(0), shots=1)
    inputs = [jnp.clip(jnp.round(2 * batch.inputs) + 3, 0, LARGEST - 1) for batch in episode]
    episode = metajax.Episode(
        *(b._replace(inputs=x.astype(dtype)) for b, x in zip(episode, inputs, strict=True))
    )
    entry = LEARNERS[name]
    loss = entry.loss or metajax.cross_entropy
    return (
        learner,
        episode,
        metajax.query_objective(learner, metajax.Scoring(loss, penalty=entry.penalty)),
    )


def selecting(learner):
    return select_member(learner, metajax.cross_entropy)


def types(tree):
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


WIDE = {"float64 inputs", "integers and float64"}
KINDS = {
    "float64 inputs": (jnp.float64, promoting),
    "integers and float64": (jnp.int32, embedding),
    "bfloat16 parameters": (jnp.bfloat16, in_type(jnp.bfloat16, parameters=jnp.bfloat16)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_types_stay_those_of_the_parameters(name, kind):
    with jax.enable_x64(kind in WIDE):
        dtype, wrap = KINDS[kind]
        learner, episode, objective = setting(name, dtype, wrap)

        def outcome(support, query):
            meta = learner.init(KEY, support.inputs)
            like = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), support)
            start = learner.start(meta, KEY, like)
            once = learner.adapt(meta, start, KEY, support)
            twice = learner.adapt(meta, once, KEY, support)
            loss = functools.partial(objective, key=KEY, task=metajax.Episode(support, query))
            (value, _), grads = jax.value_and_grad(lambda m: loss(m), has_aux=True)(meta)
            outputs = learner.predict(meta, twice, query.inputs)
            return meta, grads, start, once, twice, value, outputs

        meta, grads, start, once, twice, value, outputs = jax.eval_shape(outcome, *episode)
    assert types(grads) == types(meta)
    assert types(start) == types(once) == types(twice)
    # Parameters that the learner adds are never coarser than float32, nor wider than the network.
    allowed = {jnp.dtype(jnp.float32)}
    if kind == "bfloat16 parameters":
        allowed.add(jnp.dtype(jnp.bfloat16))
    assert set(types(meta)) <= allowed
    assert value.dtype == (jnp.float64 if outputs.dtype == jnp.float64 else jnp.float32)


def test_values_do_not_depend_on_the_type_of_the_inputs(name):
    learner, episode, objective = setting(name, jnp.float32, in_type(jnp.float32))
    *_, in_bfloat16 = setting(name, jnp.float32, in_type(jnp.bfloat16))
    *_, pixels, _ = setting(name, jnp.uint8, in_type(jnp.float32))
    meta = learner.init(KEY, episode.support.inputs)

    def loss(objective, episode):
        return jax.jit(lambda *operands: objective(*operands)[0])(meta, KEY, episode)

    exact, coarse = (loss(one, episode) for one in (objective, in_bfloat16))
    with jax.enable_x64(True):
        wide = loss(objective, pixels)
    np.testing.assert_allclose(wide, exact, rtol=1e-4)
    np.testing.assert_allclose(coarse, exact, rtol=0.1)


def test_training_on_tokens_in_bfloat16_and_64_bits(name):
    learner, episode, objective = setting(name, jnp.int32, embedding)
    meta = learner.init(KEY, episode.support.inputs)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda meta, episode: objective(meta, KEY, episode)[0]))
        grads = gradient(meta, episode)
        norm = optax.tree.norm(grads)
        tables = [
            leaf
            for path, leaf in zip(trees.paths(grads), jax.tree.leaves(grads), strict=True)
            if path.endswith("table")
        ]
        assert types(grads) == types(meta)
        assert np.isfinite(norm) and norm > 1e-4
        # Neural processes read integers as numbers, not as tokens.
        assert tables or LEARNERS[name].predicts == ("values",)
        assert all(jnp.any(table != 0) for table in tables)


def test_parameters_that_are_not_floating_point_arrays_are_named(name):
    def counting(model: Model) -> Model:
        def init(key, inputs):
            return {"net": model.init(key, inputs), "layers": {"count": 3, "ids": jnp.arange(2)}}

        return Model(init, lambda params, inputs: model.apply(params["net"], inputs))

    learner, episode, _ = setting(name, jnp.float32, counting)
    with pytest.raises(
        ValueError, match=r"layers/count \(int 3\), .*layers/ids \(int32\).* out of"
    ):
        jax.eval_shape(lambda inputs: learner.init(KEY, inputs), episode.support.inputs)


def test_adapting_integers_of_given_parameters_is_refused():
    learner, episode, _ = setting("maml", jnp.float32, in_type(jnp.float32))
    meta = learner.init(KEY, episode.support.inputs)
    meta = meta._replace(params=meta.params | {"steps": jnp.int32(2)})
    with pytest.raises(ValueError, match=r"steps \(int32\)"):
        learner.start(meta, KEY)


@pytest.mark.parametrize("combined", [ensemble, model_soup, selecting])
def test_members_keep_their_types_in_64_bits(combined):
    with jax.enable_x64(True):
        member, episode, _ = setting("maml", jnp.float64, promoting)
        learner = combined(member)

        def states(support):
            meta = jax.tree.map(
                lambda leaf: jnp.repeat(leaf, 2, 0), learner.init(KEY, support.inputs)
            )
            start = learner.start(meta, KEY)
            return start, learner.adapt(meta, start, KEY, support)

        start, once = jax.eval_shape(states, episode.support)
    assert types(once) == types(start)
